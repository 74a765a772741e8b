"""The claim that one logit less another is at least so much, at every position of every input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..models.codec import Codec
from ..models.errors import InputError
from ..models.labels import LabelMachine
from ..models.values import Value, value_to_json
from . import precise
from .bodies import STATUS, Ids
from .claims import Claim, float64_number, subject_of
from .reading import Subject, judge
from .theorems import number_to_json
from .witness import Arithmetic, Outcome, show_value


@dataclass(frozen=True, eq=False)
class LogitDifferenceBody:
    """At every position logit `output` less logit `rival` is at least `at_least` (categorical; a float64).

    `states`: a machine over token ids by whose states a proof may tell prefixes apart; no part of the claim.
    """

    subject: Subject
    output: Value
    rival: Value
    at_least: Fraction
    states: LabelMachine | None = None
    kind: str = "logit_difference"
    arity: int = 1

    @property
    def pair(self) -> tuple[int, int]:
        """The two outputs' places in the codec."""
        outputs = self.subject.codec.outputs
        return outputs.index(self.output), outputs.index(self.rival)

    def differences(self, ids: Tensor) -> Tensor:
        """The float32 run's, as float64 [batch, pos]."""
        above, below = self.pair
        logits = self.subject.logits(ids).double()
        return logits[..., above] - logits[..., below]

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        above, below = self.pair
        if semantics == "precise":
            codec = self.subject.codec
            return judge(*precise.difference(self.subject.model, codec, ids[0], above, below, self.at_least))
        least = float(self.at_least)
        if semantics == "float32":
            found = self.differences(ids[0])
            return judge(found >= least, found < least)
        ball = self.subject.enclosed(ids[0])
        low, high, infinite = ball.low(), ball.high(), torch.tensor(torch.inf, dtype=torch.float64)
        low, high = (
            torch.nextafter(low[..., above] - high[..., below], -infinite),
            torch.nextafter(high[..., above] - low[..., below], infinite),
        )
        return judge(low >= least, high < least)

    def score(self, ids: Ids) -> Tensor:
        return self.differences(ids[0]).amin(-1) - float(self.at_least)

    def outcome(self, ids: Ids) -> Outcome:
        found = self.differences(ids[0])[0]
        status = STATUS[int(self.judge(ids, "float32")[0])]
        where = f" at position {int(found.argmin())}" if len(found) > 1 else ""
        return Outcome(
            status, note=f"difference {float(found.min()):.9g}{where}, at least {float(self.at_least):g} claimed"
        )

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> LogitDifferenceBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        above, below = show_value(self.output), show_value(self.rival)
        where = ", at every position" if self.subject.model.config.readout == "each" else ""
        return f"the logit of {above} less the logit of {below} is at least {float(self.at_least):.9g}{where}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "output": value_to_json(self.output),
            "rival": value_to_json(self.rival),
            "at_least": number_to_json(self.at_least),
        }


def LogitDifference(
    of: Any,
    output: Value,
    rival: Value,
    at_least: float | Fraction,
    *,
    codec: Codec | None = None,
    states: LabelMachine | None = None,
) -> Claim:
    """logit_output - logit_rival is at least `at_least`, at every position (or the one read-out), on every input.

    `at_least` is a number that float64 holds exactly, of any sign: that the difference is at most u is
    `LogitDifference(of, rival, output, -u)`. `states`: as for `NeverOutputs`. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    require_pair(subject, output, rival)
    return Claim(
        "forall", LogitDifferenceBody(subject, output, rival, float64_number(at_least, "a difference"), states)
    )


def require_pair(subject: Subject, output: Value, rival: Value) -> None:
    """Raises `InputError` unless these are two different outputs with a logit each."""
    if subject.codec.kind != "categorical":
        raise InputError("a difference is of two logits, but this codec is scalar (one logit, nearest point)")
    outputs = subject.codec.outputs
    for name, value in (("output", output), ("rival", rival)):
        if value not in outputs:
            raise InputError(f"{name} {value!r} is not among the model's outputs: {', '.join(map(str, outputs[:12]))}")
    if output == rival:
        raise InputError(f"the output and its rival are both {output!r}; their difference is 0")
