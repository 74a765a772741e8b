"""The body of claims about tasks: the model, read out once, decodes to the label that a machine gives the input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.labels import LabelMachine
from ..models.values import Value
from .bodies import STATUS, Ids, _texts
from .reading import Subject, distance, judge
from .witness import Arithmetic, Outcome, show_value


@dataclass(frozen=True, eq=False)
class LabelsBody:
    """The one decoded output is the label of the input; an input without a label is never right.

    `machine` reads token ids of the codec's vocabulary; its labels are indices into the codec's outputs. `states`: a
    machine by whose states a proof may tell prefixes apart; no part of the claim.
    """

    subject: Subject
    machine: LabelMachine
    name: str
    states: LabelMachine | None = None
    kind: str = "labels"
    arity: int = 1

    def _wanted(self, ids: Tensor) -> Tensor:
        """bool [batch, 1, output]."""
        labels = torch.from_numpy(self.machine.run(ids.numpy()))
        return (torch.arange(len(self.subject.codec.outputs)) == labels[:, None]).unsqueeze(1)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        wanted = self._wanted(ids[0])
        reading = self.subject.reading(ids[0], semantics)
        return judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))

    def score(self, ids: Ids) -> Tensor:
        return distance(self.subject.codec, self.subject.logits(ids[0]), self._wanted(ids[0])).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        label = int(self.machine.run(ids[0].numpy())[0])
        expected = show_value(self.subject.codec.outputs[label]) if label >= 0 else "no label"
        got = _texts(self.subject, self.subject.reading(ids[0], "float32")[0])
        return Outcome(STATUS[int(self.judge(ids, "float32")[0])], (expected,), got)

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> LabelsBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"the model's decoded output is the label of {self.name}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "labels", "name": self.name, "machine": self.machine.to_json()}
