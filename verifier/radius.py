"""How much all weights may change, independently of each other, before a proof no longer stands.

A claim is proved of all models near one by the rules that prove it of one, with balls for weights (`perturbed`), by the
engine `enumeration` or `counting`. The largest radius at which that succeeds is looked for by bisection. What is
proved of a ball is proved of every smaller one around the same weights, so that inputs once decided stay so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Context
from typing import Protocol, TypeAlias

import numpy as np
import torch

from ..models.languages import Language
from .accuracy import Aim, Mass
from .balls import Unsupported, check_arithmetic
from .bodies import AndBody, Body, ComputesBody, InvariantBody, MarginBody, NeverOutputsBody
from .claims import Claim
from .enumeration import MAX_INPUTS, every_input, size_of
from .label_bodies import LabelMarginBody, LabelsBody
from .perturbed import PerturbedWeights
from .portfolio import AT_ONCE, check_question, prove
from .reading import FALSE, TRUE, UNDECIDED, Subject
from .refute import Candidate, Search
from .shares import count_claim
from .verdicts import EmptyDomain, Proved, Refuted, Setting, Unknown, Vacuous, count_text, describe_domain

LEAST, MOST = -44, 4
"""Powers of two between which a radius is looked for."""
STEPS = 6
"""The radius is found to a 64th of the power of two below it."""
SAMPLE = 256
"""So many inputs say where to begin."""
BODIES = (ComputesBody, MarginBody, NeverOutputsBody, InvariantBody, LabelsBody, LabelMarginBody)
NOT_CLAIMED = (
    "no certificate: the engine's word, which the independent checker does not verify again",
    "a lower bound: no claim that the statement fails beyond it; the bounds alone may be too wide there",
    "exact arithmetic on each of these models, not their float32 runs; the configuration is not perturbed",
)


@dataclass(frozen=True)
class WeightRadius:
    """The claim of `setting` is proved of every model whose real weights w' obey |w' - w| <= eps |w| (`relative`; so a
    weight of 0 stays 0) or |w' - w| <= eps, w being the given ones: over the reals, on every input of the domain.

    `eps` is exactly this float64. `beyond`: the least radius tried at which it was not proved (which says nothing
    about its truth there); None if none was found.
    """

    eps: float
    relative: bool
    beyond: float | None
    setting: Setting

    @property
    def inputs(self) -> int:
        """How many inputs (or pairs of inputs) the claim is about."""
        claim, domain = self.setting.claim, self.setting.domain
        assert isinstance(claim, Claim) and isinstance(domain, Language)
        return size_of(claim, domain)

    @property
    def semantics(self) -> str:
        """What is proved, in words."""
        by = "times their own magnitude" if self.relative else "each"
        return f"every model whose real weights differ from the given ones by at most {rounded_down(self.eps)} {by}"

    def lines(self) -> list[str]:
        """A line for each fact, with what is not claimed."""
        setting = self.setting
        rows = [
            ("claim", setting.claim.describe()),
            ("domain", describe_domain(setting.domain, setting.claim.arity)),
            ("proved of", f"{self.semantics}, over the reals"),
            ("not proved", f"at {self.beyond:.3g}" if self.beyond is not None else "at no radius that was tried"),
            ("engine", f"{setting.engine}, {setting.seconds:.2f} s"),
            *(("note", note) for note in setting.notes),
            *(("not claimed", text) for text in NOT_CLAIMED),
        ]
        return [f"  {name + ':':<13}{text}" for name, text in rows]

    def __str__(self) -> str:
        kind = "relative" if self.relative else "absolute"
        return "\n".join([f"Weight radius {rounded_down(self.eps)} ({kind})", *self.lines()])


Found: TypeAlias = WeightRadius | Refuted | Unknown | EmptyDomain | Vacuous


def rounded_down(x: float) -> str:
    """Three digits of a number >= 0, not above it."""
    return f"{float(Context(prec=3, rounding=ROUND_DOWN).create_decimal(x)):g}"


def weight_radius(
    claim: Claim,
    domain: Language,
    *,
    relative: bool = True,
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Found:
    """The largest perturbation of all weights under which the claim stays proved on the domain: `WeightRadius`.

    Each weight may differ from the given one by eps times its own magnitude (`relative`) or by eps; eps is found by
    bisection up to 2^4, and rounded down. Time that is up gives the largest one proved so far, noted. Where not even
    2^-44 is proved, what `prove` finds in the time left: `Refuted`; or `Unknown` with the reason.

    For engines `enumeration` (2^20 inputs at most, any model) and `counting` (shares of the inputs that a task labels);
    claims about outputs. Raises `Unsupported` for others, and `InputError` as `prove` does.
    """
    began = time.monotonic()
    check_question("weight_radius", claim, domain, seconds)
    if domain.is_empty:
        return EmptyDomain("no token sequence of these lengths is in the domain; widen it", _setting(claim, domain))
    _require_outputs(claim)
    check_arithmetic()
    question = _Question(claim.snapshot(), domain, relative, began, began + seconds, progress or (lambda text: None))
    method = _method(question)
    search = _Trials(method.proves, question.progress)
    notes: list[str] = []
    try:
        _bisect(search, method)
    except _TimeUp:
        notes.append("time was up: a larger radius may be provable; allow more seconds")
    except KeyboardInterrupt:
        notes.append("interrupted: a larger radius may be provable")
    spent = time.monotonic() - began
    setting = Setting(question.claim, domain, "real", method.engine, spent, tuple(notes))
    if search.proved > 0:
        beyond = search.failed if math.isfinite(search.failed) else None
        return WeightRadius(search.proved, relative, beyond, setting)
    return _without_radius(question, setting)


def _require_outputs(claim: Claim) -> None:
    parts: tuple[Body, ...] = claim.body.parts if isinstance(claim.body, AndBody) else (claim.body,)
    if strange := [part.kind for part in parts if not isinstance(part, BODIES)]:
        raise Unsupported(f"a weight radius is for claims about outputs, not for {', '.join(strange)}")
    if claim.quantifier == "exists":
        raise Unsupported("a weight radius is for claims about all inputs, or a share of them")


def _setting(claim: Claim, domain: Language) -> Setting:
    return Setting(claim, domain, "real", "none", 0.0)


def _without_radius(question: _Question, setting: Setting) -> Found:
    """What there is to say where no radius is proved."""
    reason = f"no radius above 0 is proved by {setting.engine}"
    if setting.notes:
        return Unknown(setting.notes[0] if "interrupted" not in setting.notes[0] else "interrupted", None, setting)
    left = question.deadline - time.monotonic()
    if left <= 0:
        return Unknown(f"{reason}; time was up", None, setting)
    question.progress("the claim itself")
    verdict = prove(question.claim, question.domain, seconds=left, progress=question.progress)
    if isinstance(verdict, Proved):
        text = f"{reason}: the claim is proved of the exact weights (by {verdict.setting.engine}), not of any ball"
        return Unknown(text, None, setting)
    if isinstance(verdict, Unknown) and verdict.reason != "interrupted":
        return Unknown(f"{reason}, nor the claim of the exact weights: {verdict.reason}", verdict.left, setting)
    return verdict


class _TimeUp(Exception):
    """No time is left for this radius."""


@dataclass(frozen=True)
class _Question:
    claim: Claim
    domain: Language
    relative: bool
    began: float
    deadline: float
    progress: Callable[[str], None]

    def around(self, eps: float) -> Claim:
        """The claim about all models within eps."""
        claim, subject = self.claim, self.claim.subject
        near = PerturbedWeights.of(subject.model, eps, relative=self.relative)
        body = claim.body.with_subject(Subject(near, subject.codec, subject.alignment, subject.labels))
        return Claim(claim.quantifier, body, claim.share, claim.most)

    def settled(self, true: int, false: int, total: int) -> bool:
        """Whether the claim follows from the number of inputs that are true, and false, of every model of a ball."""
        return self.claim.settled(true, false, total) is True if self.claim.counted else true == total


class _Method(Protocol):
    @property
    def engine(self) -> str: ...
    def guess(self, search: _Trials) -> int:
        """The power of two near which to look first."""
        ...

    def proves(self, eps: float) -> bool:
        """Whether the claim is proved of all models within eps. Called with an eps below all that were not proved, and
        above all that were. Raises `_TimeUp`."""
        ...


@dataclass
class _Trials:
    """Radii that were tried: the largest one `proved`, and the least that `failed` to be."""

    attempt: Callable[[float], bool]
    progress: Callable[[str], None]
    proved: float = 0.0
    failed: float = math.inf

    def proves(self, eps: float) -> bool:
        if not self.proved < eps < self.failed:
            return eps <= self.proved
        self.progress(f"radius {eps:.3g}; proved so far {rounded_down(self.proved)}")
        found = self.attempt(eps)
        if found:
            self.proved = eps
        else:
            self.failed = eps
        return found


def _bisect(search: _Trials, method: _Method) -> None:
    """From a first guess by powers of two, then between two of them."""
    power = method.guess(search)
    if search.proves(2.0**power):
        while power < MOST and search.proves(2.0 ** (power + 1)):
            power += 1
        if power == MOST:
            return
    else:
        while not search.proves(2.0**power):
            if power == LEAST:
                return
            power -= 1
    for _ in range(STEPS):
        search.proves((search.proved + search.failed) / 2)


def _by_powers(search: _Trials) -> int:
    """The largest power of two that is proved, or the least there is, by bisection over the powers."""
    low, high = LEAST, MOST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if search.proves(2.0**middle) else (low, middle)
    return low


def _method(question: _Question) -> _Method:
    """As `prove` chooses: few inputs are enumerated; shares are counted where that applies; then 2^20 are few."""
    claim, size = question.claim, size_of(question.claim, question.domain)
    why = ""
    if size > AT_ONCE and claim.counted and isinstance(claim.body, LabelsBody):
        counted, why = count_claim(claim, question.domain, Aim(enough=lambda mass: True))
        if counted is not None:
            return _Counting(question)
        why = f"counting: {why}; "
    if size > MAX_INPUTS:
        raise Unsupported(f"{why}a weight radius is found by enumeration up to 2^20 inputs, not for {count_text(size)}")
    search = Search(claim, question.domain, question.deadline)
    chunks = list(every_input(search))
    return _Enumeration(question, search, size, chunks, _few(chunks, size))


def _few(chunks: Iterable[Candidate], size: int) -> list[Candidate]:
    """Some inputs, evenly spaced."""
    apart, first, found = max(1, size // SAMPLE), 0, []
    for words in chunks:
        rows = np.arange(-first % apart, len(words[0]), apart)
        first += len(words[0])
        if len(rows):
            found.append(tuple(word[rows] for word in words))
    return found


@dataclass
class _Enumeration:
    """Every input, decided by balls. `open`: those that no radius so far has decided, with how many others are `true`
    and `false` of every model of the smallest ball that failed (and so of all smaller ones, which are all that come).
    """

    question: _Question
    search: Search
    total: int
    open: list[Candidate]
    few: list[Candidate] = field(default_factory=list)
    true: int = 0
    false: int = 0
    engine: str = "enumeration"

    def guess(self, search: _Trials) -> int:
        some = sum(len(words[0]) for words in self.few)
        method = _Enumeration(self.question, self.search, some, self.few)
        return _by_powers(_Trials(method.proves, search.progress))

    def proves(self, eps: float) -> bool:
        claim = self.question.around(eps)
        true, false, still = self.true, self.false, []
        for words in self.open:
            if self.search.out_of_time:
                raise _TimeUp
            codes = torch.full((len(words[0]),), UNDECIDED, dtype=torch.int8)
            with suppress(Unsupported):  # the balls are too wide for a rule
                codes = claim.body.judge(self.search.ids(words), "real")
            true, false = true + int((codes == TRUE).sum()), false + int((codes == FALSE).sum())
            rows = np.flatnonzero(((codes != TRUE) & (codes != FALSE)).numpy())
            if len(rows):
                still.append(tuple(word[rows] for word in words))
        if self.question.settled(true, false, self.total):
            return True
        self.true, self.false, self.open = true, false, still
        return False


@dataclass(frozen=True)
class _Counting:
    """How many inputs may go wrong, counted over intervals that hold for all models of a ball."""

    question: _Question
    engine: str = "counting"

    def guess(self, search: _Trials) -> int:
        return _by_powers(search)

    def proves(self, eps: float) -> bool:
        question, at_least = self.question, self.question.claim.quantifier == "at_least"

        def enough(mass: Mass) -> bool:
            lost = mass.looked_at - mass.proved
            hopeless = at_least and mass.total - lost < question.claim.share * mass.total
            return hopeless or question.settled(mass.proved, mass.refuted, mass.total)

        aim = Aim(not at_least, question.deadline, enough)
        found, _ = count_claim(question.around(eps), question.domain, aim)
        if found is not None and question.settled(found.mass.proved, found.mass.refuted, found.mass.total):
            return True
        if time.monotonic() > question.deadline:
            raise _TimeUp
        return False
