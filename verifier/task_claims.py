"""Claims about models trained on a task."""

from __future__ import annotations

from fractions import Fraction

from ..models.codec import Codec
from ..models.errors import InputError
from ..models.tasks import Task
from ..models.transformer import Transformer
from .claims import Claim, subject_of
from .label_bodies import LabelsBody


def Labels(model: Transformer, task: Task, *, codec: Codec | None = None) -> Claim:
    """The model, read out once, decodes to the task's label, on every input. Raises `InputError`."""
    subject = subject_of(model, codec or task.codec)
    if subject.model.config.readout == "each":
        raise InputError(f"{task.name} has one label an input; the model has a read-out at each position")
    if task.machine is None:
        raise InputError(f"{task.name} has no label machine, which proofs read; tasks with one: max-of-K")
    return Claim("forall", LabelsBody(subject, task.machine, task.name))


def Accuracy(model: Transformer, task: Task, at_least: float | Fraction, *, codec: Codec | None = None) -> Claim:
    """The model decodes to the task's label on at least this share of the inputs. Raises `InputError`."""
    return Labels(model, task, codec=codec).at_least(at_least)
