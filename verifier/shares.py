"""The share of the inputs that a model labels rightly: a claim about it proved or refuted, or bounds found for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike

import numpy as np

from ..models.codec import Codec
from ..models.errors import CertiformerError, InputError
from ..models.languages import Language
from ..models.tasks import Task
from ..models.transformer import Transformer
from .accuracy import Aim, Counted, Mass, count_groups, proof_of
from .balls import Unsupported
from .claims import Claim
from .enumeration import MAX_INPUTS, enumerate_inputs
from .label_bodies import LabelsBody, not_counted, token_places
from .path_proofs import search_by_paths
from .recheck import counted, objection
from .reducing import narrowed, places, plain
from .task_claims import Labels
from .theorems import domain_to_json
from .verdicts import Certificate

AT_ONCE = 2**14
"""Domains of at most so many inputs are enumerated: that is exact."""


MAX_TABLE = 2**26
"""Entries of a table of queries, positions and tokens, that are held at once."""


@dataclass(frozen=True)
class AccuracyBounds:
    """How many inputs of a domain are `proved` right, `refuted` and `undecided`: exact integers that add up to `total`.

    `certificate`: the theorem that the share of the inputs labelled rightly lies in [low, high] (with engine `paths`:
    that it is at least `low`), checked.
    """

    proved: int
    refuted: int
    undecided: int
    certificate: Certificate
    engine: str
    seconds: float

    @property
    def total(self) -> int:
        return self.proved + self.refuted + self.undecided

    @property
    def low(self) -> Fraction:
        return Fraction(self.proved, self.total)

    @property
    def high(self) -> Fraction:
        return 1 - Fraction(self.refuted, self.total)

    def __str__(self) -> str:
        return f"accuracy in [{float(self.low):.6f}, {float(self.high):.6f}], {self.engine}, {self.seconds:.2f} s"


def accuracy_bounds(
    model: Transformer,
    task: Task,
    domain: Language | None = None,
    *,
    codec: Codec | None = None,
    seconds: float = 60.0,
    resume: str | PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> AccuracyBounds:
    """Bounds for the share of the inputs (default: the task's domain) on which the model gives the task's label.

    After `seconds` the inputs not looked at yet are undecided. Engines: enumeration of at most 2^14 inputs; counting
    (one layer and head); enumeration of at most 2^20; paths (from below only). `resume`: a file that engine paths goes
    on from if it is there, and writes what is left to (also after Ctrl-C, which ends its search). Raises `InputError`
    for an empty domain and for tasks without a label machine, `Unsupported` for models that none of these covers.
    """
    began = time.monotonic()
    claim, domain = Labels(model, task, codec=codec).snapshot(), domain or task.domain
    size = domain.size()
    if not size:
        raise InputError("the domain is empty: a share of no inputs is not a number")
    if resume is not None and size <= MAX_INPUTS:
        raise InputError(f"resume={str(resume)!r} is for domains too large to enumerate; this one has {size} inputs")
    say = progress or (lambda text: None)
    found = why = None
    if size > AT_ONCE:
        found, why = count_claim(claim, domain, Aim(both=True, deadline=began + seconds, progress=_teller(say)))
    if found is not None:
        true, false, engine = found.mass.proved, found.mass.refuted, "counting"
        proof = proof_of(found, _places(claim, domain))
    elif size <= MAX_INPUTS:
        tally = enumerate_inputs(claim.at_least(0), domain, seconds - (time.monotonic() - began), progress=say)
        if not tally.complete or tally.semantics != "real":
            raise Unsupported(f"enumeration did not end: {tally.obstacle or 'time was up'}")
        true, false, engine, proof = tally.true, tally.false, "enumeration", {"rule": "enumerate"}
    else:
        search, reason = search_by_paths(claim, domain, size - 1, began + seconds, say, resume, anytime=True)
        if search is None:
            raise Unsupported(f"counting: {why}; too many inputs to enumerate them; paths: {reason}")
        true, false, engine, proof = search.proved, 0, "paths", search.proof()
    say("checking the certificate")
    certificate = _stated(claim, domain, engine, true, false, proof)
    problem = objection(certificate, claim.subject.model)
    if problem and engine == "paths" and (less := counted(problem)) is not None:
        true, certificate = less, _stated(claim, domain, engine, less, false, proof)
        problem = objection(certificate, claim.subject.model)
    if problem:
        raise CertiformerError(f"the independent checker does not accept these bounds: {problem}")
    return AccuracyBounds(true, false, size - true - false, certificate, engine, time.monotonic() - began)


def _stated(
    claim: Claim, domain: Language, engine: str, true: int, false: int, proof: dict[str, object]
) -> Certificate:
    """That the claim's body holds on at least so many inputs, and fails on so many; rule `paths` proves the former."""
    size = domain.size()
    low, high = Fraction(true, size), 1 - Fraction(false, size)
    stated = claim.at_least(low) if engine == "paths" else claim.between(low, high)
    return Certificate.of({**stated.theorem(), "domain": domain_to_json(domain)}, proof)


def prove_share(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate for a claim about a share of the inputs that a `LabelsBody` is about, or for its negation; or why
    there is none."""

    def enough(mass: Mass) -> bool:
        return claim.settled(mass.proved, mass.refuted, mass.total) is not None

    both = claim.quantifier != "at_least"
    found, why = count_claim(claim, domain, Aim(both, deadline, enough, _teller(progress)))
    if found is not None and not both and not found.tilted and not enough(found.mass) and time.monotonic() < deadline:
        both = True  # not proved: it may be refuted
        found, why = count_claim(claim, domain, Aim(both, deadline, enough, _teller(progress)))
    if found is None:
        return None, why
    mass = found.mass
    settled = claim.settled(mass.proved, mass.refuted, mass.total)
    if settled is None:
        looked = f"{mass.looked_at / mass.total:.6f} looked at"
        shown = f"only {mass.proved / mass.total:.6f} of the inputs are proved right"
        refuted = f" and {mass.refuted / mass.total:.6f} wrong" if both else ""
        return None, f"{shown}{refuted} ({looked})"
    stated = {**claim.theorem(), "domain": domain_to_json(domain)}
    if not settled:
        kept = {key: value for key, value in stated.items() if key not in ("share", "most")}
        stated = {**kept, **claim.negated_by(mass.proved, mass.refuted, mass.total)}
    return Certificate.of(stated, proof_of(found, _places(claim, domain))), ""


def _places(claim: Claim, domain: Language) -> dict[int, int]:
    assert isinstance(claim.body, LabelsBody)
    return places(claim.body, domain)


def count_claim(claim: Claim, domain: Language, aim: Aim) -> tuple[Counted | None, str]:
    """What counting finds for the body of a claim on a domain; or why it does not apply."""
    assert isinstance(claim.body, LabelsBody)
    try:
        body, domain = plain(claim.body, domain)
    except Unsupported as error:
        return None, str(error)
    if why := not_counted(body.subject, domain):
        return None, why
    lengths = [n for n in domain.lengths if domain.size(n)]
    letters = np.array(list(token_places(body.subject, domain)), dtype=np.int64)
    if max(lengths) * len(letters) ** 2 > MAX_TABLE:
        return None, f"tables of {len(letters)} x {len(letters)} tokens at {max(lengths)} positions are too large"
    if claim.arity == 2:  # of the many pairs of the codec's tokens, those of the domain's
        body, letters = narrowed(body, letters), np.arange(len(letters))
    try:
        return count_groups(body.subject.model, body.machine, letters, lengths, aim), ""
    except Unsupported as error:
        return None, str(error)


def _teller(progress: Callable[[str], None]) -> Callable[[Mass], None]:
    def say(mass: Mass) -> None:
        refuted = f", {mass.refuted / mass.total:.4%} wrong" if mass.refuted else ""
        unseen = 1 - mass.looked_at / mass.total
        progress(f"counting: {mass.proved / mass.total:.4%} proved right{refuted}, {unseen:.4%} not looked at yet")

    return say
