"""Claims about models trained on a task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from ..models.circuits import Circuit
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.tasks import Task
from ..models.transformer import Transformer
from .alone import Alone, Stored
from .claims import Claim, float64_number, label_machine, subject_of
from .enumeration import MAX_INPUTS, every_input
from .label_bodies import LabelMarginBody, LabelsBody
from .reading import Subject
from .refute import Search

SLACK = 2.0**-10
"""Of the least margin that the float32 run has, this share is given up before a proof is tried."""


def Labels(
    model: Transformer,
    task: Task,
    *,
    circuit: Circuit | None = None,
    ablation: str | None = None,
    means: Mapping[str, Tensor] | Stored | None = None,
    codec: Codec | None = None,
) -> Claim:
    """The model, read out once, decodes to the task's label, on every input.

    `circuit`: not the model but this circuit alone does, everything else under `ablation`: `zero`, `mean` (with
    `means`: a float32 vector [d_model] by node), or `resample`; default: the circuit's own. Raises `InputError`.
    """
    subject = subject_of(model, codec or task.codec)
    alone = _alone(subject, circuit, ablation, means)
    return Claim("forall", LabelsBody(subject, label_machine(subject, task), task.name, task.states, alone))


def _alone(
    subject: Subject, circuit: Circuit | None, ablation: str | None, means: Mapping[str, Tensor] | Stored | None
) -> Alone | None:
    if circuit is not None:
        return Alone.of(subject, circuit, ablation, means)
    if ablation is not None or means is not None:
        raise InputError("an ablation of what? pass circuit= as well: what is outside it is ablated")
    return None


def Accuracy(
    model: Transformer,
    task: Task,
    at_least: float | Fraction | None = None,
    at_most: float | Fraction | None = None,
    *,
    circuit: Circuit | None = None,
    ablation: str | None = None,
    means: Mapping[str, Tensor] | Stored | None = None,
    codec: Codec | None = None,
) -> Claim:
    """The model decodes to the task's label on at least, at most, these shares of the inputs.

    `circuit`, `ablation`, `means`: as in `Labels`. Raises `InputError`.
    """
    labels = Labels(model, task, circuit=circuit, ablation=ablation, means=means, codec=codec)
    if at_least is None and at_most is None:
        raise InputError("an accuracy of what? pass at_least=, at_most= or both; accuracy_bounds finds them")
    if at_most is None:
        return labels.at_least(at_least or 0)
    return labels.at_most(at_most) if at_least is None else labels.between(at_least, at_most)


def TaskMargin(
    model: Transformer,
    task: Task,
    at_least: float | Fraction,
    *,
    circuit: Circuit | None = None,
    ablation: str | None = None,
    means: Mapping[str, Tensor] | Stored | None = None,
    codec: Codec | None = None,
) -> Claim:
    """The logit of the task's label exceeds every other by at least `at_least`, on every input.

    `at_least` is a number above 0 that float64 holds exactly. `circuit`, `ablation`, `means`: as in `Labels`.
    Raises `InputError`.
    """
    subject = subject_of(model, codec or task.codec)
    if subject.codec.kind != "categorical":
        raise InputError("a margin compares logits, but this codec is scalar (one logit, nearest point)")
    exact = float64_number(at_least, "a margin")
    if exact <= 0:
        raise InputError(f"a margin of labels must be above 0, got {at_least}; that the label wins is Labels")
    machine, alone = label_machine(subject, task), _alone(subject, circuit, ablation, means)
    return Claim("forall", LabelMarginBody(subject, machine, task.name, exact, task.states, alone))


def least_margin(
    model: Transformer,
    task: Task,
    *,
    codec: Codec | None = None,
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> float:
    """A margin for `TaskMargin` that is likely provable: the float32 run's least over all inputs, less `SLACK` of it.

    It is rounded down to 24 bits; not positive where the model is wrong on some input. Nothing is proved here.
    Raises `InputError` for domains above 2^20 inputs, and if time runs out.
    """
    if task.domain.size() > MAX_INPUTS:
        raise InputError(
            f"{task.name} has {task.domain.size()} inputs; the least margin is looked for among 2^20 at most"
        )
    claim = TaskMargin(model, task, 1, codec=codec)
    body = claim.body
    assert isinstance(body, LabelMarginBody)
    search = Search(claim, task.domain, time.monotonic() + seconds)
    least, seen = math.inf, 0
    with torch.no_grad():
        for words in every_input(search):
            least = min(least, float(body.bounds(search.ids(words), "float32")[0].min()))
            seen += len(words[0])
            if search.out_of_time:
                raise InputError(f"time was up after {seen} inputs; the least margin so far is {least:.6g}")
            if progress:
                progress(f"least margin so far {least:.6g}, {seen:,} inputs")
    if not math.isfinite(least):
        return least
    mantissa, exponent = math.frexp(least * (1 - SLACK) if least > 0 else least)
    return math.ldexp(math.floor(math.ldexp(mantissa, 24)), exponent - 24)
