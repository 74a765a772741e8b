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


def Accuracy(
    model: Transformer,
    task: Task,
    at_least: float | Fraction | None = None,
    at_most: float | Fraction | None = None,
    *,
    codec: Codec | None = None,
) -> Claim:
    """The model decodes to the task's label on at least, at most, these shares of the inputs. Raises `InputError`."""
    labels = Labels(model, task, codec=codec)
    if at_least is None and at_most is None:
        raise InputError("an accuracy of what? pass at_least=, at_most= or both; accuracy_bounds finds them")
    if at_most is None:
        return labels.at_least(at_least or 0)
    return labels.at_most(at_most) if at_least is None else labels.between(at_least, at_most)
