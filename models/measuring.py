"""How often a model is right about a task: counted over the whole domain where it is small, sampled otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .errors import InputError
from .tasks import Task, check_fit
from .token_language import Ids, check_number
from .transformer import Transformer

ENUMERABLE = 10**7
SAMPLES = 200_000
BATCH = 4096


@dataclass(frozen=True)
class Accuracy:
    """`correct` of `total` words have all their labels right. `exact`: these are the words of the domain, each once;
    otherwise independent samples, uniform where `measure` drew them. In float32, as the model ran."""

    correct: int
    total: int
    exact: bool

    @property
    def share(self) -> float:
        return self.correct / self.total

    def to_json(self) -> dict[str, object]:
        return {"correct": self.correct, "total": self.total, "exact": self.exact}

    @staticmethod
    def from_json(data: object) -> Accuracy:
        """Raises `InputError`."""
        if not isinstance(data, dict) or set(data) != {"correct", "total", "exact"}:
            raise InputError(f"an accuracy in JSON has correct, total and exact, got {str(data)[:200]}")
        right, total, exact = (data[key] for key in ("correct", "total", "exact"))
        if not all(type(number) is int for number in (right, total)) or not 0 <= right <= total or not total:
            raise InputError(f"an accuracy is 0 to total of a positive total, got {right!r} of {total!r}")
        if not isinstance(exact, bool):
            raise InputError(f"exact must be true or false, got {exact!r}")
        return Accuracy(right, total, exact)

    def __str__(self) -> str:
        return f"{self.share:.6g} ({self.correct} of {self.total} {'inputs, all' if self.exact else 'sampled'})"


def correct(model: Transformer, task: Task, ids: Ids) -> npt.NDArray[np.bool_]:
    """For words given as token ids [batch, n]: whether the model has all the labels right."""
    device = model.parameter("embed.W_E").device
    with torch.no_grad():
        predicted = model(torch.from_numpy(ids).to(device)).argmax(dim=-1).cpu().numpy()
    right: npt.NDArray[np.bool_] = np.equal(predicted, task.rule(ids)).reshape(len(ids), -1).all(axis=1)
    return right


def measure(
    model: Transformer,
    task: Task,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    enumerable: int = ENUMERABLE,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """The exact accuracy if the domain has at most `enumerable` words, else that of uniform samples.

    `progress` gets the number of words done, and of all. Raises `InputError` if the model does not fit the task.
    """
    check_fit(task, model.config)
    check_number(samples, "samples")
    size = task.domain.size()
    exact = size <= enumerable
    total = size if exact else max(samples, 1)
    right = done = 0
    for ids in task.domain.batches(BATCH) if exact else _samples(task, seed, total):
        right += count_right(model, task, ids)
        done += len(ids)
        if progress:
            progress(done, total)
    return Accuracy(right, total, exact)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is torch saying that memory does not suffice, on a CPU or a GPU."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def count_right(model: Transformer, task: Task, ids: Ids) -> int:
    """How many words are right; where memory does not suffice, half of them at a time."""
    try:
        return int(correct(model, task, ids).sum())
    except RuntimeError as error:
        if len(ids) == 1 or not out_of_memory(error):
            raise
    half = len(ids) // 2
    return count_right(model, task, ids[:half]) + count_right(model, task, ids[half:])


def _samples(task: Task, seed: int, total: int) -> Iterator[Ids]:
    rng = np.random.default_rng(seed)
    for first in range(0, total, BATCH):
        for _, ids in task.domain.sample_ids(rng, min(BATCH, total - first)):
            yield ids
