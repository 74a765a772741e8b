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
from .alone import Alone
from .bodies import STATUS, Ids, _texts
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
    machine by whose states a proof may tell prefixes apart; no part of the claim. `alone`: it is not the model that is
    read out, but this circuit of it.
    """

    subject: Subject
    machine: LabelMachine
    name: str
    states: LabelMachine | None = None
    alone: Alone | None = None
    kind: str = "labels"

    @property
    def arity(self) -> int:
        return 1 if self.alone is None else self.alone.arity

    @property
    def ablation(self) -> str | None:
        return None if self.alone is None else self.alone.ablation

    def _wanted(self, ids: Tensor) -> Tensor:
        return wanted_outputs(self.subject, self.machine, ids)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        wanted = self._wanted(ids[0])
        reading = reading_of(self, ids, semantics)
        return judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))

    def score(self, ids: Ids) -> Tensor:
        return distance(self.subject.codec, logits_of(self, ids), self._wanted(ids[0])).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        label = int(self.machine.run(ids[0].numpy())[0])
        expected = show_value(self.subject.codec.outputs[label]) if label >= 0 else "no label"
        got = _texts(self.subject, reading_of(self, ids, "float32")[0])
        return Outcome(STATUS[int(self.judge(ids, "float32")[0])], (expected,), got)

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> LabelsBody:
        return replace(self, subject=subject, alone=self.alone and self.alone.with_subject(subject))

    def describe(self) -> str:
        if self.alone is None:
            return f"the model's decoded output is the label of {self.name}"
        return f"the decoded output of {_whose(self)}, is the label of {self.name}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "labels", "name": self.name, "machine": self.machine.to_json(), **_circuit(self)}


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
    alone: Alone | None = None
    kind: str = "label_margin"

    @property
    def arity(self) -> int:
        return 1 if self.alone is None else self.alone.arity

    @property
    def ablation(self) -> str | None:
        return None if self.alone is None else self.alone.ablation

    def bounds(self, ids: Ids, semantics: Arithmetic) -> tuple[Tensor, Tensor]:
        """Float64 bounds [batch, 1] of the label's logit less the largest other; no label: minus infinity."""
        wanted = wanted_outputs(self.subject, self.machine, ids[0])
        if semantics != "float32":
            ball = self.subject.enclosed(ids[0]) if self.alone is None else self.alone.enclosed(ids)
            return lead_bounds(ball.low(), ball.high(), wanted)
        logits = logits_of(self, ids).to(torch.float64)
        return lead_bounds(logits, logits, wanted)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        low, high = self.bounds(ids, semantics)
        return judge(low >= float(self.at_least), high < float(self.at_least))

    def score(self, ids: Ids) -> Tensor:
        return self.bounds(ids, "float32")[0].amin(-1) - float(self.at_least)

    def outcome(self, ids: Ids) -> Outcome:
        found = float(self.bounds(ids, "float32")[0][0, 0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, note=f"margin of the label {found:.9g}, at least {float(self.at_least):g} claimed")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> LabelMarginBody:
        return replace(self, subject=subject, alone=self.alone and self.alone.with_subject(subject))

    def describe(self) -> str:
        least = float(self.at_least)
        whose = "" if self.alone is None else f", in {_whose(self)},"
        return f"the logit of the label of {self.name}{whose} exceeds every other by at least {least:g}"

    def to_json(self) -> dict[str, object]:
        data = {"kind": self.kind, "name": self.name, "machine": self.machine.to_json(), **_circuit(self)}
        return {**data, "at_least": number_to_json(self.at_least)}


def reading_of(body: LabelsBody | LabelMarginBody, ids: Ids, semantics: Arithmetic) -> Tensor:
    """What the model, or the circuit that a body is about, may decode."""
    return body.subject.reading(ids[0], semantics) if body.alone is None else body.alone.reading(ids, semantics)


def logits_of(body: LabelsBody | LabelMarginBody, ids: Ids) -> Tensor:
    """The float32 run of the model, or of the circuit that a body is about."""
    return body.subject.logits(ids[0]) if body.alone is None else body.alone.logits(ids)


def _whose(body: LabelsBody | LabelMarginBody) -> str:
    return "the model" if body.alone is None else body.alone.describe()


def _circuit(body: LabelsBody | LabelMarginBody) -> dict[str, object]:
    return {} if body.alone is None else {"circuit": body.alone.to_json()}


def searched(claim: Claim) -> bool:
    """Whether engine `paths` is for such claims."""
    named = claim.body.kind in ("never_outputs", "logit_difference")
    return (named or isinstance(claim.body, (LabelsBody, LabelMarginBody))) and claim.quantifier in (
        "forall",
        "at_least",
    )


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
