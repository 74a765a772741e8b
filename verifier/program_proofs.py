"""Claims about programs, decided: a smallest counterexample by Z3, a proof by what the independent checker re-derives.

`Proved` means that the checker accepts the certificate. Where Z3 alone finds no counterexample the verdict is
`Unknown`, and its certificate says, as holes, what it rests on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from ..compiler.core import Value
from ..models.errors import InputError
from ..models.languages import Language
from ..proofs import Invalid, Valid, check
from .program_claims import EveryLength, ProgramClaim, is_true
from .smt_gates import TooLarge
from .smt_search import Query
from .smt_solver import MEMORY_MIB, Solver, SolverFailed
from .verdicts import Certificate, EmptyDomain, Proved, Refuted, Setting, Unknown, Vacuous, Verdict, count_text
from .witness import Witness

PROGRAM_ENGINES = ("smt", "enumeration")
SAMPLES = 64
FEW_WORDS = 2**16
"""With no more inputs than these, only renamings and reorderings are tried."""


def prove_about_programs(
    claim: ProgramClaim,
    domain: Language | EveryLength,
    *,
    seconds: float = 60.0,
    engines: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
    confirm: str | None = None,
) -> Verdict:
    """As `prove_program`, or, on `EveryLength`, `every_length.prove_every_length`."""
    if isinstance(domain, EveryLength):
        if confirm is not None:
            raise InputError("on every length no answer of a solver is used, so there is nothing to confirm")
        from .every_length import prove_every_length

        return prove_every_length(claim, domain, seconds=seconds, engines=engines, progress=progress)
    return prove_program(claim, domain, seconds=seconds, engines=engines, progress=progress, confirm=confirm)


def prove_program(
    claim: ProgramClaim,
    domain: Language,
    *,
    seconds: float = 60.0,
    engines: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
    memory_mib: int = MEMORY_MIB,
    confirm: str | None = None,
) -> Verdict:
    """Proves or refutes a claim about programs on a domain, or says what is left.

    `Refuted` has the shortest input on which the claim fails, and of those the first in the vocabulary's order, found
    and shown to be so by Z3 (or by running them all, where they are few) and replayed by the reference interpreter.
    `engines`: `smt` (queries to Z3) and `enumeration` (the checker evaluates the programs, once for all words that
    they cannot tell apart). A query that runs out of time or of `memory_mib`, or a crash of the solver, gives `Unknown`
    with the reason; so does Ctrl-C. `confirm`: `cvc5` is asked again, with the same limits, whenever Z3 finds that no
    input fails; where it finds otherwise, or nothing in time, Z3's answer does not count. Raises `InputError`.
    """
    if not isinstance(domain, Language):
        raise InputError(f"prove takes a token language, such as sequences(vocab, length), got {domain!r}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InputError(f"seconds must be a positive number, got {seconds!r}")
    chosen = PROGRAM_ENGINES if engines is None else tuple([engines] if isinstance(engines, str) else engines)
    if not chosen or not set(chosen) <= set(PROGRAM_ENGINES):
        raise InputError(f"engines for claims about programs are {', '.join(PROGRAM_ENGINES)}; got {chosen!r}")
    _check_confirm(confirm, chosen)
    began = time.monotonic()
    say = progress or (lambda _: None)
    with ExitStack() as stack:
        solver = stack.enter_context(Solver(memory_mib))
        second = stack.enter_context(Solver(memory_mib, confirm)) if confirm is not None else None
        attempt = _Attempt(claim, domain, began, float(seconds), chosen, say, solver, second)
        try:
            return attempt.run()
        except KeyboardInterrupt:
            return Unknown("interrupted", None, attempt.setting("none"))


def _check_confirm(confirm: str | None, engines: Collection[str]) -> None:
    if confirm is None:
        return
    if confirm != "cvc5":
        raise InputError(f"Z3's answers can be confirmed by cvc5, not by {confirm!r}")
    if "smt" not in engines:
        raise InputError("there is nothing to confirm without engine 'smt'")
    if find_spec("cvc5") is None:
        raise InputError("cvc5 is not installed; pip install 'certiformer[cvc5]' brings it")


@dataclass
class _Attempt:
    """One call. `open`: the lengths not decided by a query yet."""

    claim: ProgramClaim
    domain: Language
    began: float
    seconds: float
    engines: tuple[str, ...]
    say: Callable[[str], None]
    solver: Solver
    second: Solver | None = None
    query: Query = field(init=False)
    open: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.query = Query(self.claim, self.domain, self.solver, self.deadline, second=self.second)
        self.open = [n for n in self.domain.lengths if self.domain.size(n)]

    @property
    def deadline(self) -> float:
        return self.began + self.seconds

    def setting(self, engine: str) -> Setting:
        spent = time.monotonic() - self.began
        return Setting(self.claim, self.domain, "real", engine, spent, tuple(self.notes))

    def run(self) -> Verdict:
        if not self.open:
            return EmptyDomain("no token sequence of these lengths is in the domain; widen it", self.setting("none"))
        if (verdict := self.vacuous()) is not None:
            return verdict
        failing = self.sampled_failure()
        if failing is None and "enumeration" in self.engines and (verdict := self.certify()) is not None:
            return verdict
        if (verdict := self.refute()) is not None:
            return verdict
        if failing is not None:
            self.notes.append("not shown to be the smallest: " + ("; ".join(self.reasons) or "smt was not asked"))
            return self.refuted(failing, "sampling")
        return self.unknown()

    # The premise

    def vacuous(self) -> Verdict | None:
        """Vacuous, if the claim's premise is met on no input."""
        if self.claim.kind != "implies" or any(self.met(word) for word in self.sample()):
            return None
        for n in self.open:
            try:
                if self.query.premise_met(n):
                    return None
            except (SolverFailed, TooLarge) as error:
                reason = f"whether the premise is ever true was not found out: {error}"
                return Unknown(reason, self.domain.size(), self.setting("smt"))
        self.notes.append("that is Z3's answer")
        return Vacuous("the premise is true at no position of any input of the domain", self.setting("smt"))

    def met(self, word: tuple[Value, ...]) -> bool:
        try:
            return any(map(is_true, self.claim.evaluate(word)[0]))
        except InputError:
            return True

    # Refutation

    def sample(self) -> list[tuple[Value, ...]]:
        return [tuple(word) for word in self.domain.sample(np.random.default_rng(0), SAMPLES)]

    def sampled_failure(self) -> tuple[Value, ...] | None:
        """A random input on which the claim fails."""
        return next(filter(self.query.fails, self.sample()), None)

    def refute(self) -> Verdict | None:
        """The smallest counterexample, if there is one among the lengths that are open and that is found out."""
        if "smt" not in self.engines:
            return None
        while self.open:
            n = self.open[0]
            self.say(f"length {n}")
            try:
                word = self.query.smallest_failure(n)
            except (SolverFailed, TooLarge) as error:
                self.reasons.append(f"length {n}: {error}")
                return None
            if word is not None:
                self.notes.append("no shorter input fails, and of this length none before it, by Z3's answers")
                return self.refuted(word, "smt")
            self.open.pop(0)
        return None

    def refuted(self, word: tuple[Value, ...], engine: str) -> Refuted:
        witness = Witness((word,))
        return Refuted(witness, self.setting(engine), self.claim.holds(witness))

    # Proof

    def certify(self) -> Verdict | None:
        """Proved, if the checker re-derives the claim."""
        self.say("checking")
        try:
            theorem = self.claim.theorem(self.domain)
        except InputError as error:
            self.reasons.append(f"no certificate: {error}")
            return None
        rules = ["enumerate_programs"] if self.domain.size() <= FEW_WORDS else ["enumerate_cones", "enumerate_programs"]
        why = ""
        for rule in rules:
            certificate = Certificate.of(theorem, {"rule": rule})
            outcome = check(certificate.to_bytes())
            if isinstance(outcome, Valid):
                return Proved(certificate, self.setting("enumeration"))
            why = outcome.why if isinstance(outcome, Invalid) else str(outcome)
        self.reasons.append(f"no certificate: {why}")
        return None

    def unknown(self) -> Unknown:
        """With a certificate whose holes say what rests on Z3, if that answered for every length."""
        size = self.domain.size()
        if self.open or "smt" not in self.engines:
            left = sum(self.domain.size(n) for n in self.open)
            done = [n for n in self.domain.lengths if n not in self.open and self.domain.size(n)]
            if done:
                self.notes.append(f"no counterexample of length {done[0]} to {done[-1]}, by Z3's answers")
            return Unknown("; ".join(self.reasons) or "no engine applies", left, self.setting("+".join(self.engines)))
        solvers = {"z3": f"z3 {version('z3-solver')}"}
        if self.second is not None and self.query.confirmed:
            solvers[self.second.name] = f"{self.second.name} {version(self.second.name)}"
        asked = f"{' and '.join(solvers.values())}: unsat for every length, {count_text(size)} inputs"
        holes = [f"{asked}: no input fails ({self.claim.words})"]
        certificate = None
        try:
            certificate = Certificate.of(self.claim.theorem(self.domain), {"rule": "hole", "which": holes})
        except InputError:
            pass
        finders = "Z3 finds" if len(solvers) == 1 else "Z3 and cvc5 find"
        why = "; ".join([f"{finders} no counterexample, which nothing has checked", *self.reasons])
        return Unknown(why, size, self.setting("smt"), certificate)
