"""The body of claims about tasks: the model, read out once, decodes to the label that a machine gives the input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.labels import LabelMachine
from ..models.languages import Language
from ..models.values import Value
from .bodies import STATUS, Ids, NeverOutputsBody, _texts
from .reading import Subject, distance, judge, lead_bounds
from .theorems import number_to_json
from .witness import Arithmetic, Outcome, show_value

if TYPE_CHECKING:
    from .claims import Claim


def wanted_outputs(subject: Subject, machine: LabelMachine, ids: Tensor) -> Tensor:
    """bool [batch, 1, output]: which output is the label; none for an input without a label."""
    labels = torch.from_numpy(machine.run(ids.numpy()))
    return (torch.arange(len(subject.codec.outputs)) == labels[:, None]).unsqueeze(1)


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
        return wanted_outputs(self.subject, self.machine, ids)

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


@dataclass(frozen=True, eq=False)
class LabelMarginBody:
    """The logit of the input's label exceeds every other by at least `at_least` (categorical; a float64 above 0).

    `states`: as in `LabelsBody`.
    """

    subject: Subject
    machine: LabelMachine
    name: str
    at_least: Fraction
    states: LabelMachine | None = None
    kind: str = "label_margin"
    arity: int = 1

    def bounds(self, ids: Tensor, semantics: Arithmetic) -> tuple[Tensor, Tensor]:
        """Float64 bounds [batch, 1] of the label's logit less the largest other; no label: minus infinity."""
        wanted = wanted_outputs(self.subject, self.machine, ids)
        if semantics != "float32":
            ball = self.subject.enclosed(ids)
            return lead_bounds(ball.low(), ball.high(), wanted)
        logits = self.subject.logits(ids).to(torch.float64)
        return lead_bounds(logits, logits, wanted)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        low, high = self.bounds(ids[0], semantics)
        return judge(low >= float(self.at_least), high < float(self.at_least))

    def score(self, ids: Ids) -> Tensor:
        return self.bounds(ids[0], "float32")[0].amin(-1) - float(self.at_least)

    def outcome(self, ids: Ids) -> Outcome:
        found = float(self.bounds(ids[0], "float32")[0][0, 0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, note=f"margin of the label {found:.9g}, at least {float(self.at_least):g} claimed")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> LabelMarginBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"the logit of the label of {self.name} exceeds every other by at least {float(self.at_least):g}"

    def to_json(self) -> dict[str, object]:
        least = number_to_json(self.at_least)
        return {"kind": self.kind, "name": self.name, "machine": self.machine.to_json(), "at_least": least}


def searched(claim: Claim) -> bool:
    """Whether engine `paths` is for such claims."""
    about = isinstance(claim.body, (LabelsBody, LabelMarginBody, NeverOutputsBody))
    return about and claim.quantifier in ("forall", "at_least")


def not_counted(subject: Subject, domain: Language) -> str | None:
    """Why counts over all words of a domain do not apply to a subject; None if they do."""
    lengths = [n for n in domain.lengths if domain.size(n)]
    if len({domain.alphabet(n) for n in lengths}) != 1 or not domain.is_product():
        return "only domains that are products are covered"
    return not_compared(subject)


def not_compared(subject: Subject) -> str | None:
    """Why bounds of differences of logits do not apply to a subject; None if they do."""
    if subject.codec.bos or subject.codec.kind != "categorical":
        return "only categorical codecs without BOS are covered"
    return None


def token_places(subject: Subject, domain: Language) -> dict[int, int]:
    """The tokens of a product domain, as token ids, and their places as `domain_to_json` lists them."""
    alphabet = domain.alphabet(next(n for n in domain.lengths if domain.size(n)))
    ids = [subject.codec.index[token] for token in domain.vocab if token in alphabet]
    return {token: place for place, token in enumerate(ids)}
