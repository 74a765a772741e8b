"""Engine `agreement`: model and circuit agree at least where both are proved to decode to a task's label.

If the model is right on a share p of the inputs, and the circuit alone on a share q, they agree on at least p + q - 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ..models.errors import CertiformerError, InputError
from ..models.token_language import Language
from ..models.values import value_to_json
from .accuracy import Aim, Mass, proof_of
from .alone import Alone
from .balls import Unsupported
from .circuit_bodies import FaithfulBody
from .claims import Claim
from .enumeration import MAX_INPUTS, enumerate_inputs, size_of
from .label_bodies import LabelsBody
from .path_proofs import search_by_paths
from .recheck import objection
from .reducing import places
from .shares import count_claim
from .theorems import domain_to_json
from .verdicts import Certificate

LEAD = 0.5
"""Of the time, the share that the model may take; the circuit has what is left."""


LOSS = Fraction(1, 2**16)
"""Of all inputs: so much less is stated than the engine proves by paths, whose bounds the checker finds anew."""


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

    def stated(self, less: Fraction) -> dict[str, object]:
        """As a certificate has it, of a share that is less by so much."""
        share = self.share - less
        return {"share": int(share) if share.denominator == 1 else value_to_json(share), "proof": self.proof}


def prove_agreement(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate by rule `both_right` that a circuit is faithful (everywhere, or on a share); or why none."""
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
    return _certificate(claim, domain, found), ""


def _certificate(claim: Claim, domain: Language, found: tuple[Premise, Premise]) -> Certificate:
    """Both premises state no more than the claim takes: by paths the checker may prove a little less."""
    spare = (found[0].share + found[1].share - 1 - claim.share) / 2
    through = claim.body.through if isinstance(claim.body, FaithfulBody) else None
    assert through is not None
    proof = {
        "rule": "both_right",
        "name": through.name,
        "machine": through.machine.to_json(),
        "model": found[0].stated(spare),
        "circuit": found[1].stated(spare),
    }
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


@dataclass(frozen=True)
class AgreementBound:
    """Circuit and model agree on at least `share` of the witnesses: a theorem with its certificate, checked.

    `right`: the shares on which the model, and the circuit, were proved to give the task's label; None with engine
    `enumeration`, which needs none and whose share is exact (up to inputs too near a boundary for float64 balls).
    """

    share: Fraction
    right: tuple[Fraction, Fraction] | None
    engine: str
    certificate: Certificate
    seconds: float
    check_seconds: float

    def __str__(self) -> str:
        shares = (
            "" if self.right is None else "model right on {:.6f}, circuit on {:.6f}, ".format(*map(float, self.right))
        )
        return f"agree on at least {float(self.share):.6f} ({shares}by {self.engine}), {self.certificate}"


def agreement_bound(
    claim: Claim, domain: Language, *, seconds: float = 60.0, progress: Callable[[str], None] | None = None
) -> AgreementBound:
    """The greatest share that is proved within the time, for a `Faithful(..., through=task)` on a domain of any size.

    Up to 2^20 witnesses are enumerated (then no task is needed). Raises `Unsupported` for circuits whose own model no
    engine covers, and where nothing at all is proved.
    """
    claim, began = claim.snapshot(), time.monotonic()
    body, say = claim.body, progress or (lambda text: None)
    if not isinstance(body, FaithfulBody):
        raise InputError(f"agreement_bound is about Faithful(model, circuit, through=task), got {claim}")
    if domain.is_empty:
        raise InputError("the domain is empty: a share of no inputs is not a number")
    right: tuple[Fraction, Fraction] | None = None
    if size_of(claim, domain) <= MAX_INPUTS:
        tally = enumerate_inputs(claim.at_least(0), domain, seconds, progress=say)
        if tally.semantics != "real":
            raise Unsupported(f"enumeration: {tally.obstacle}")
        share, engine = Fraction(tally.true, tally.total), "enumeration"
        stated = {**claim.at_least(share).theorem(), "domain": domain_to_json(domain)}
        certificate = Certificate.of(stated, {"rule": "enumerate"})
    else:
        found, why = agreement(body, domain, None, began + seconds, say)
        if found is None:
            raise Unsupported(why)
        right = (found[0].share, found[1].share)
        share = found[0].share + found[1].share - 1
        if share <= 0:
            shares = "the model is proved right on {:.6f}, the circuit on {:.6f}".format(*map(float, right))
            raise Unsupported(f"{shares}: they need not agree anywhere")
        engine = " and ".join(dict.fromkeys(one.engine for one in found))
        share = max(share - (LOSS if "paths" in engine and share < 1 else 0), Fraction(0))
        certificate = _certificate(claim.at_least(share), domain, found)
    spent, start = time.monotonic() - began, time.monotonic()
    say("checking the certificate")
    if problem := objection(certificate, claim.subject.model):
        raise CertiformerError(f"the independent checker does not accept this bound: {problem}")
    return AgreementBound(share, right, engine, certificate, spent, time.monotonic() - start)


def agreement(
    body: FaithfulBody, domain: Language, wanted: Fraction | None, deadline: float, progress: Callable[[str], None]
) -> tuple[tuple[Premise, Premise] | None, str]:
    """What is proved of the model and of the circuit, until they are proved to agree on the share `wanted`.

    None: until all is looked at, or time is up.
    """
    if body.through is None:
        return None, "it goes through a task's labels: pass through=task"
    if body.arity == 2 and len([n for n in domain.lengths if domain.size(n)]) > 1:
        return None, "with ablation resample, it is for words of one length"
    began = time.monotonic()
    half = began + LEAD * (deadline - began)
    first, why = premise(body, None, domain, None if wanted is None else (1 + wanted) / 2, half, progress)
    if first is None:
        return None, f"of the model: {why}"
    if wanted is not None and first.share < wanted:
        return None, f"the model itself is proved to give {body.through.name}'s label on {float(first.share):.6f} only"
    left = None if wanted is None else wanted + 1 - first.share
    second, why = premise(body, body.alone, domain, left, deadline, progress)
    if second is None:
        return None, f"of the circuit: {why}"
    if wanted is not None and first.share + second.share - 1 < wanted and time.monotonic() < deadline:
        more, _ = premise(body, None, domain, min(wanted + 1 - second.share, Fraction(1)), deadline, progress)
        first = first if more is None else max(first, more, key=lambda one: one.proved)  # it had stopped early
    return (first, second), ""


def premise(
    body: FaithfulBody,
    alone: Alone | None,
    domain: Language,
    wanted: Fraction | None,
    deadline: float,
    progress: Callable[[str], None],
) -> tuple[Premise | None, str]:
    """On how many witnesses the model, or the circuit, is right: until that is the share `wanted`, or time is up."""
    through = body.through
    assert through is not None
    labels = LabelsBody(body.subject, through.machine, through.name, through.states, alone)
    claim = Claim("forall", labels)
    total = size_of(claim, domain)
    enough = total + 1 if wanted is None else -(-wanted.numerator * total // wanted.denominator)
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
