"""Tasks to train on and to prove things about: a domain of inputs, and for each input what is to be predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .codec import Codec
from .config import Readout, TransformerConfig
from .errors import InputError
from .labels import LabelMachine
from .token_language import Ids, Language
from .values import Value


@dataclass(frozen=True, eq=False)
class Task:
    """What a model is to compute: for each word of `domain` a label, an index into `outputs`.

    `rule` maps token ids [batch, n] to labels: [batch] with the readouts `last` and `mean` (one label a word),
    [batch, n] with `each` (one a position). It is exact and total on words over the vocabulary; outside the domain it
    means nothing. `family` and `parameters` name the task: `get_task(family, **parameters)` gives it again.
    `training`: batches are drawn from these languages in equal shares; empty: uniformly from the domain.
    """

    family: str
    parameters: Mapping[str, int]
    name: str
    domain: Language
    outputs: tuple[Value, ...]
    readout: Readout
    rule: Callable[[Ids], Ids]
    training: tuple[Language, ...] = ()
    build_machine: Callable[[], LabelMachine] | None = None
    build_states: Callable[[], LabelMachine] | None = None

    def __repr__(self) -> str:
        return f"Task({self.name}, {self.domain!r}, {len(self.outputs)} outputs, readout {self.readout})"

    @property
    def vocab(self) -> tuple[Value, ...]:
        """Token id t stands for `vocab[t]`."""
        return self.domain.vocab

    @cached_property
    def machine(self) -> LabelMachine | None:
        """The same labels by a deterministic machine, which is what proofs read; None where there is none yet."""
        return self.build_machine() if self.build_machine else None

    @cached_property
    def states(self) -> LabelMachine | None:
        """A machine by whose states proofs may tell prefixes apart: what a model of the task is thought to know at each
        position. Its labels mean nothing. None: only the label machine's own states."""
        return self.build_states() if self.build_states else None

    @property
    def max_len(self) -> int:
        return max(self.domain.lengths)

    @cached_property
    def codec(self) -> Codec:
        """How a model of this task reads tokens, and how its logits are read: the first maximum is the output."""
        return Codec(self.vocab, False, "categorical", self.outputs, max_len=self.max_len)

    def labels(self, ids: Ids) -> Ids:
        """The labels of words given as token ids [batch, n], int64: [batch], or [batch, n] with readout `each`.

        Raises `InputError` for anything but such ids at a length of the domain.
        """
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or ids.dtype != np.int64:
            got = f"{ids.shape} of {ids.dtype}" if isinstance(ids, np.ndarray) else repr(ids)
            raise InputError(f"token ids must be an int64 array [batch, n], got {got}")
        if ids.shape[1] not in self.domain.lengths:
            raise InputError(f"{self.name} has words of length {_span(self.domain.lengths)}, got {ids.shape[1]}")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.vocab):
            raise InputError(f"token ids must be 0 to {len(self.vocab) - 1}, got {int(ids.min())} to {int(ids.max())}")
        return self.rule(ids)

    def label(self, sequence: Sequence[Value]) -> Value | list[Value]:
        """What is to be predicted for one word: a value, or with readout `each` a value for each position.

        Raises `InputError` if the word is not in the domain.
        """
        if sequence not in self.domain:
            raise InputError(f"{list(sequence)!r} is not in the domain of {self.name}: {self.domain!r}")
        (found,) = self.labels(np.array([[self.domain.index[value] for value in sequence]], dtype=np.int64)).tolist()
        return [self.outputs[index] for index in found] if isinstance(found, list) else self.outputs[found]

    def draw(self, rng: np.random.Generator, k: int) -> list[Ids]:
        """A training batch: `k` words as token ids, one array for each length that occurs."""
        languages = self.training or (self.domain,)
        shares = [len(part) for part in np.array_split(np.arange(k), len(languages))]
        found: dict[int, list[Ids]] = {}
        for language, share in zip(languages, shares, strict=True):
            for length, ids in language.sample_ids(rng, share):
                found.setdefault(length, []).append(ids)
        return [np.concatenate(found[length]) for length in sorted(found)]

    def to_json(self) -> dict[str, object]:
        """`task_from_json` gives the task again."""
        return {"family": self.family, "parameters": dict(self.parameters)}


def misfits(task: Task, config: TransformerConfig) -> list[str]:
    """Why a model of this configuration cannot be one of the task; nothing if it can."""
    found = []
    if task.max_len > config.n_ctx:
        found.append(f"words of {task.max_len} tokens exceed the context, n_ctx = {config.n_ctx}")
    if config.d_vocab != len(task.vocab):
        found.append(f"the task has {len(task.vocab)} tokens, the model d_vocab = {config.d_vocab}")
    if config.d_vocab_out != len(task.outputs):
        found.append(f"the task has {len(task.outputs)} outputs, the model d_vocab_out = {config.d_vocab_out}")
    if config.readout != task.readout:
        found.append(f"the task is read out at {task.readout!r}, the model at {config.readout!r}")
    return found


def check_fit(task: Task, config: TransformerConfig) -> None:
    """Raises `InputError` with all the reasons why a model of this configuration cannot be one of the task."""
    if reasons := misfits(task, config):
        raise InputError(f"{task.name} does not fit this model: " + "; ".join(reasons))


def _span(lengths: tuple[int, ...]) -> str:
    return str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
