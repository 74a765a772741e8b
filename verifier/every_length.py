"""Claims about programs on inputs of every length: by the states that reading from left to right leads to.

The claim becomes a prefix program that is to be true at every position; the independent checker visits all its states,
in which counts are known up to a bound only (an inductive invariant, found by the visit itself: no solver is asked).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from fractions import Fraction
from itertools import product

from ..compiler.core import Value
from ..compiler.interpreter import EvaluationError
from ..models.errors import InputError, InternalError
from ..models.languages import sequences
from ..proofs import Valid, check
from .prefix_evaluator import evaluate_prefix
from .prefix_programs import Counted, Finite, NoPrefixProgram, PrefixBuilder, Symbol
from .program_claims import EveryLength, ProgramClaim, is_true
from .program_proofs import prove_program
from .verdicts import Certificate, EmptyDomain, Proved, Refuted, Setting, Unknown, Vacuous, Verdict

BOUNDED = 2**12
"""The claim is first tried on lengths up to 8 with so many inputs."""
COMPARED = 400
CLIPS = 3


def prove_every_length(
    claim: ProgramClaim,
    domain: EveryLength,
    *,
    seconds: float = 60.0,
    engines: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Proves a claim, read causally, for every length; or refutes it by the smallest input of a small length.

    `Unknown` says up to which length it is proved, if only a bounded length is. Raises `InputError`.
    """
    if not claim.causal:
        raise InputError("claims on EveryLength are about programs read causally: give causal=True")
    began = time.monotonic()
    longest = _longest(len(domain.vocab))
    bounded = prove_program(
        claim, sequences(domain.vocab, range(1, longest + 1)), seconds=seconds, engines=engines, progress=progress
    )
    if isinstance(bounded, Refuted):
        return replace(bounded, setting=replace(bounded.setting, domain=domain))
    say = progress or (lambda _: None)
    say("every length")
    reason, certificate = _certificate(claim, domain, longest)
    spent = time.monotonic() - began
    setting = Setting(claim, domain, "real", "prefix states", spent)
    if certificate is not None:
        notes = ["the theorem is about a prefix program, compared with the interpreter on the shortest inputs only"]
        if isinstance(bounded, Vacuous):
            notes.append(f"up to length {longest} the premise is met by no input")
        return Proved(certificate, replace(setting, notes=tuple(notes)))
    proved = isinstance(bounded, Proved)
    assert not isinstance(bounded, EmptyDomain)
    known = f"proved for length 1 to {longest} only" if proved else f"not proved for length 1 to {longest} either"
    return Unknown(f"{reason}; {known}", None, setting)


def _longest(tokens: int) -> int:
    longest = 1
    while longest < 8 and sum(tokens**n for n in range(1, longest + 2)) <= BOUNDED:
        longest += 1
    return longest


def _certificate(claim: ProgramClaim, domain: EveryLength, longest: int) -> tuple[str, Certificate | None]:
    """A certificate that the checker accepts, or why there is none."""
    builder = PrefixBuilder(domain.vocab)
    try:
        output = _condition(builder, claim)
    except NoPrefixProgram as error:
        return str(error), None
    if not _compare(builder, output, claim, domain.vocab, longest):
        return "an aggregate averages: it has no form for every length", None
    theorem, why = _theorem(domain, builder, output), ""
    reach = max((int(str(node["by"])) for node in builder.nodes if node["kind"] == "offset"), default=0)
    clip = builder.largest * (reach + 2) + 1
    for _ in range(CLIPS):
        certificate = Certificate.of(theorem, {"rule": "prefix_states", "clip": min(clip, 1024)})
        outcome = check(certificate.to_bytes())
        if isinstance(outcome, Valid):
            return "", certificate
        why = getattr(outcome, "why", str(outcome))
        clip = 2 * clip + 1
    return f"the states up to counts of {clip // 2} do not show it: {why}", None


def theorem_on_every_length(claim: ProgramClaim, domain: EveryLength) -> dict[str, object]:
    """What a certificate states. Raises `NoPrefixProgram`."""
    builder = PrefixBuilder(domain.vocab)
    return _theorem(domain, builder, _condition(builder, claim))


def _theorem(domain: EveryLength, builder: PrefixBuilder, output: Finite) -> dict[str, object]:
    program = {"vocab": domain.to_json()["vocab"], "nodes": builder.nodes, "output": output.node}
    body = {"kind": "prefix_ensures", "program": program}
    return {"quantifier": "forall", "about": "programs", "domain": domain.to_json(), "body": body}


def _condition(builder: PrefixBuilder, claim: ProgramClaim) -> Finite:
    """What is to be true at every position."""
    first, *rest = (builder.program(program) for program in claim.programs)
    if claim.kind == "accepts":
        raise NoPrefixProgram("a language has longest words: say what is accepted by a program")
    if claim.kind == "range":
        assert isinstance(claim.least, (int, Fraction)) and isinstance(claim.most, (int, Fraction))
        if isinstance(first, Counted):
            ends = [builder.constant(end) for end in (claim.least, claim.most)]
            inside = [builder.compared(">=", first, ends[0]), builder.compared("<=", first, ends[1])]
            return builder.map(inside, lambda a, b: a and b)
        return builder.map([first], lambda value: claim.holds_at([value]))
    if claim.kind == "ensures":
        return _true(builder, first)
    if claim.kind == "implies":
        return builder.map([_true(builder, first), _true(builder, rest[0])], lambda a, b: not a or b)
    if isinstance(first, Finite) and isinstance(rest[0], Finite):
        return builder.map([first, rest[0]], lambda a, b: claim.holds_at([a, b]))
    return builder.compared("==", first, rest[0])


def _true(builder: PrefixBuilder, symbol: Symbol) -> Finite:
    if isinstance(symbol, Counted):
        return builder.compared("==", symbol, builder.constant(1))
    return builder.map([symbol], is_true)


def _compare(
    builder: PrefixBuilder, output: Finite, claim: ProgramClaim, vocab: tuple[Value, ...], longest: int
) -> bool:
    """Whether the prefix program has a value on the shortest inputs. Raises `InternalError` if it is another one than
    the interpreter's, or there should be none."""
    words = (word for n in range(1, longest + 1) for word in product(vocab, repeat=n))
    for _, word in zip(range(COMPARED), words, strict=False):
        found = evaluate_prefix(builder.nodes, output.node, vocab, word)
        if found is None:
            return False
        try:
            expected = [claim.holds_at(values) for values in zip(*claim.evaluate(word), strict=True)]
        except EvaluationError:
            expected = []
        if [value == 1 for value in found] != expected:
            raise InternalError(f"the prefix program differs from {claim} on {word!r}: please report this")
    return True
