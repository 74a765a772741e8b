"""Engine `agreement`: model and circuit agree at least where both are proved to decode to a task's label.

If the model is right on a share p of the inputs, and the circuit alone on a share q, they agree on at least p + q - 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ..models.token_language import Language
from ..models.values import value_to_json
from .accuracy import Aim, Mass, proof_of
from .alone import Alone
from .circuit_bodies import FaithfulBody, Through
from .claims import Claim
from .enumeration import size_of
from .label_bodies import LabelsBody
from .path_proofs import search_by_paths
from .reducing import places
from .shares import count_claim
from .theorems import domain_to_json
from .verdicts import Certificate

LEAD = 0.5
"""Of the time, the share that the model may take; the circuit has what is left."""


@dataclass(frozen=True)
class Premise:
    """The model (or the circuit alone) is right on `proved` of `total` witnesses."""

    proved: int
    total: int
    proof: dict[str, object]
    engine: str

    @property
    def share(self) -> Fraction:
        return Fraction(self.proved, self.total)

    def to_json(self) -> dict[str, object]:
        share = int(self.share) if self.share.denominator == 1 else value_to_json(self.share)
        return {"share": share, "proof": self.proof}


def prove_agreement(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate by rule `agree` for a claim that a circuit is faithful (everywhere, or on a share); or why none."""
    body = claim.body
    assert isinstance(body, FaithfulBody)
    wanted = claim.share if claim.quantifier == "at_least" else Fraction(1)
    found, why = agreement(body, domain, wanted, deadline, progress)
    if found is None:
        return None, why
    share = found[0].share + found[1].share - 1
    if share < wanted:
        model, alone = (f"{float(one.share):.6f}" for one in found)
        return None, f"the model is proved right on {model}, the circuit on {alone}: together {float(share):.6f}"
    assert body.through is not None
    proof = {
        "rule": "agree",
        "name": body.through.name,
        "machine": body.through.machine.to_json(),
        "model": found[0].to_json(),
        "circuit": found[1].to_json(),
    }
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof), ""


def agreement(
    body: FaithfulBody, domain: Language, wanted: Fraction, deadline: float, progress: Callable[[str], None]
) -> tuple[tuple[Premise, Premise] | None, str]:
    """What is proved of the model and of the circuit, until they are proved to agree on the share `wanted`."""
    if body.through is None:
        return None, "it goes through a task's labels: pass through=task"
    if body.arity == 2 and len([n for n in domain.lengths if domain.size(n)]) > 1:
        return None, "with ablation resample, it is for words of one length"
    spare = (1 - wanted) / 2
    began = time.monotonic()
    half = began + LEAD * (deadline - began)
    first, why = premise(body, None, body.through, domain, 1 - spare if spare else wanted, half, progress)
    if first is None:
        return None, f"of the model: {why}"
    if first.share < wanted:
        return (
            None,
            f"the model itself is proved to give the label of {body.through.name} on {float(first.share):.6f} only",
        )
    second, why = premise(body, body.alone, body.through, domain, wanted + 1 - first.share, deadline, progress)
    return (None, f"of the circuit: {why}") if second is None else ((first, second), "")


def premise(
    body: FaithfulBody,
    alone: Alone | None,
    through: Through,
    domain: Language,
    wanted: Fraction,
    deadline: float,
    progress: Callable[[str], None],
) -> tuple[Premise | None, str]:
    """On how many witnesses the model, or the circuit, is right: until that is the share `wanted`, or time is up."""
    labels = LabelsBody(body.subject, through.machine, through.name, through.states, alone)
    claim = Claim("forall", labels)
    total = size_of(claim, domain)
    enough = -(-wanted.numerator * total // wanted.denominator)
    which = "the model" if alone is None else "the circuit"

    def say(text: str) -> None:
        progress(f"{which}: {text}")

    def count(mass: Mass) -> None:
        say(f"{mass.proved / mass.total:.4%} proved right, {1 - mass.looked_at / mass.total:.4%} not looked at yet")

    aim = Aim(False, deadline, lambda mass: mass.proved >= enough, count)
    counted, not_counted = count_claim(claim, domain, aim)
    if counted is not None:
        return Premise(counted.mass.proved, total, proof_of(counted, places(labels, domain)), "counting"), ""
    search, reason = search_by_paths(claim, domain, enough, deadline, say)
    if search is None:
        return None, f"counting: {not_counted}; paths: {reason}"
    return Premise(search.proved, total, search.proof(), "paths"), ""
