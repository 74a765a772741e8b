"""`prove`: picks engines for a claim on a domain, within a time budget, and gives a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from ..models.errors import InputError
from ..models.languages import Language
from ..models.transformer import Transformer
from ..models.values import Value
from .bodies import InvariantBody
from .circuit_bodies import FaithfulBody
from .claims import Claim
from .enumeration import MAX_INPUTS, Tally, enumerate_inputs, size_of
from .label_bodies import LabelMarginBody, LabelsBody, searched
from .program_claims import EveryLength, ProgramClaim
from .reading import FALSE, TRUE, Subject
from .refute import Candidate, Hint, Search, search_for_failure
from .sampling import sample_accuracy
from .shrinking import shrink
from .stream_bodies import SubspaceBody
from .theorems import domain_to_json
from .verdicts import Certificate, EmptyDomain, Proved, Refuted, Setting, Unknown, Vacuous, Verdict
from .witness import Outcome, Semantics, Witness, show_value

ENGINES = ("refute", "enumeration", "composition", "counting", "low_rank", "paths", "agreement")
QUICK_SHARE, QUICK_SECONDS, SHRINK_SECONDS = 0.1, 1.0, 10.0
PATHS_SHARE = 0.8
AT_ONCE = 2**14
CHECKER = "the independent checker does not accept the proof: "


def prove(
    claim: Claim | ProgramClaim,
    domain: Language | EveryLength,
    *,
    seconds: float = 60.0,
    engines: Collection[str] | None = None,
    semantics: Semantics = "real",
    resume: str | PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Proves or refutes a claim on a domain, or says what is left.

    In order: a quick search for a counterexample (unless there are few inputs); enumeration, if there are at most
    2^14 (after composition, for a model with labels); composition; counting (of shares of the inputs that a task
    labels); low-rank factors (of what a task labels); enumeration up to 2^20 inputs; paths (of what a task labels, of
    outputs never given and of differences of logits); agreement (of a circuit and its model, through a task's labels);
    a longer search. `engines` (of `refute`, `enumeration`, `composition`, `counting`, `low_rank`, `paths`,
    `agreement`) restricts this to those named. The weights are copied at the start. `progress` is called with a line
    now and then. Ctrl-C gives `Unknown`. Once a proof is found, it is checked even if the time is up.
    `semantics`: what the verdict is about. `real`: the exact weights over the reals; inputs on which only the float32
    run fails are noted. `float32`: the model as it runs here, which can be refuted but not proved.
    `resume`: a file that engine `paths` goes on from if it is there, and writes what is left to (atomically, now and
    then and after Ctrl-C); what it says is trusted no more than a certificate.
    `Proved` means that the independent checker accepts the certificate. Raises `InputError` when the domain has tokens
    or lengths that the claim has no meaning for, or the weights are not finite float32 numbers.
    Claims about programs alone have engines of their own: see `program_proofs.prove_about_programs`.
    """
    if isinstance(claim, ProgramClaim):
        if semantics != "real":
            raise InputError(f"claims about programs are about no model: they have no {semantics} semantics")
        from .program_proofs import prove_about_programs

        return prove_about_programs(claim, domain, seconds=seconds, engines=engines, progress=progress)
    if isinstance(domain, EveryLength):
        raise InputError("EveryLength is a domain of claims about programs; a model has a longest input")
    check_question("prove", claim, domain, seconds)
    if semantics not in ("real", "float32"):
        raise InputError(f"semantics is 'real' or 'float32', got {semantics!r}")
    chosen = _engines(engines)
    _check_resume(resume, claim, chosen, semantics)
    say = progress or (lambda _: None)
    attempt = _Attempt(claim.snapshot(), domain, semantics, time.monotonic(), float(seconds), chosen, say, resume)
    if domain.is_empty:
        return EmptyDomain("no token sequence of these lengths is in the domain; widen it", attempt.setting("none"))
    if reason := _vacuous(claim, domain):
        return Vacuous(reason, attempt.setting("none"))
    try:
        return attempt.run()
    except KeyboardInterrupt:
        kept = f"; {resume} has what the search by paths found" if resume and Path(resume).exists() else ""
        return Unknown(f"interrupted{kept}", size_of(claim, domain), attempt.setting(attempt.engine))


def _engines(engines: Collection[str] | None) -> tuple[str, ...]:
    if engines is None:
        return ENGINES
    names = (engines,) if isinstance(engines, str) else tuple(engines)
    unknown = [name for name in names if name not in ENGINES]
    if unknown or not names:
        shown = ", ".join(map(repr, unknown)) or "none"
        raise InputError(f"engines are {', '.join(map(repr, ENGINES))}; got {shown}")
    return tuple(name for name in ENGINES if name in names)


def _check_resume(
    resume: str | PathLike[str] | None, claim: Claim, engines: tuple[str, ...], semantics: Semantics
) -> None:
    if resume is not None and not (searched(claim) and "paths" in engines and semantics == "real"):
        raise InputError(
            f"resume={str(resume)!r} is a file of engine paths, which does not search for this: it is for claims about "
            "the labels of all inputs, or of at least a share of them, NeverOutputs and LogitDifference, over the "
            "reals; leave it out"
        )


def check_question(who: str, claim: Claim, domain: Language, seconds: float) -> None:
    """Raises `InputError` unless these are a claim about finite float32 weights, a domain that it has a meaning for,
    and a positive time."""
    if not isinstance(claim, Claim):
        raise InputError(f"{who} takes a claim, such as Computes(compiled), got {claim!r}")
    check_setting(who, claim.subject, domain, seconds)
    check_readable(*claim.body.readable(), domain)


def check_setting(who: str, subject: Subject, domain: Language, seconds: float) -> None:
    """As `check_question`, of all but the claim."""
    if not isinstance(domain, Language):
        raise InputError(f"{who} takes a token language, such as sequences(vocab, length), got {domain!r}")
    if not isinstance(subject.model, Transformer):
        raise InputError(f"{who} takes claims about a Transformer; an edited copy has no weights of its own to certify")
    subject.model.require_float32()
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise InputError(f"seconds must be a positive number, got {seconds!r}")


def check_readable(vocab: Sequence[Value], longest: int, domain: Language) -> None:
    """Raises `InputError` naming the tokens and lengths of the domain that are not read."""
    lengths = [n for n in domain.lengths if domain.size(n)]
    if not lengths:
        return
    if max(lengths) > longest:
        raise InputError(f"the domain has sequences of length {max(lengths)}, the claim reads at most {longest}")
    letters = frozenset[object]().union(*(domain.alphabet(n) for n in lengths))
    if strange := [value for value in domain.vocab if value in letters and value not in vocab]:
        shown = ", ".join(map(show_value, strange[:8]))
        known = ", ".join(map(show_value, vocab[:12])) + (", ..." if len(vocab) > 12 else "")
        raise InputError(f"the domain has tokens that the model or program does not know: {shown}; it knows {known}")


def _vacuous(claim: Claim, domain: Language) -> str:
    """Why the claim says nothing about the model on this domain; empty if it does."""
    body = claim.body
    if isinstance(body, InvariantBody):
        letters = frozenset[object]().union(*(domain.alphabet(n) for n in domain.lengths if domain.size(n)))
        if body.relabelling and not any(a in letters and a != b for a, b in body.relabelling):
            return "no input of the domain is changed by this relabelling"
        longest = max(n for n in domain.lengths if domain.size(n))
        if body.irrelevant and not any(p < longest for p in body.irrelevant):
            return "no input of the domain has these positions"
    if isinstance(body, SubspaceBody) and len(body.directions) == body.subject.model.config.d_model:
        return f"{len(body.directions)} directions span all of the stream, and leave nothing out; take fewer"
    return ""


@dataclass
class _Attempt:
    """One call of `prove`."""

    claim: Claim
    domain: Language
    semantics: Semantics
    began: float
    seconds: float
    engines: tuple[str, ...]
    progress: Callable[[str], None]
    resume: str | PathLike[str] | None = None
    engine: str = "none"
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: int | None = None

    @property
    def remaining(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def setting(self, engine: str, semantics: Semantics | None = None, notes: Sequence[str] = ()) -> Setting:
        spent = time.monotonic() - self.began
        return Setting(self.claim, self.domain, semantics or self.semantics, engine, spent, (*self.notes, *notes))

    def run(self) -> Verdict:
        size = size_of(self.claim, self.domain)
        self.left = size
        hints: Sequence[Hint] = ()
        searching = "refute" in self.engines and not self.claim.counted
        if searching and not ("enumeration" in self.engines and size <= AT_ONCE):
            quick = min(
                self.remaining, QUICK_SECONDS, self.seconds * QUICK_SHARE if len(self.engines) > 1 else self.seconds
            )
            if (verdict := self.search(quick, quick=len(self.engines) > 1 or size <= MAX_INPUTS)) is not None:
                return verdict
        few = size <= AT_ONCE
        composing = "composition" in self.engines and self.semantics == "real"
        early = composing and few and bool(self.claim.subject.labels)
        if early:
            verdict, hints = self.compose()
            if verdict is not None:
                return verdict
        if "enumeration" in self.engines and few and (verdict := self.enumerate(size)) is not None:
            return verdict
        if self.semantics == "float32" and self.engines != ("refute",):
            self.reasons.append("proofs are about the reals, not about the float32 run")
        elif composing and not early and self.remaining > 0:
            verdict, hints = self.compose()
            if verdict is not None:
                return verdict
        if "counting" in self.engines and self.semantics == "real" and self.remaining > 0:
            if (verdict := self.count()) is not None:
                return verdict
        if "low_rank" in self.engines and self.semantics == "real" and self.remaining > 0:
            if (verdict := self.low_rank()) is not None:
                return verdict
        if "enumeration" in self.engines and not few and (verdict := self.enumerate(size)) is not None:
            return verdict
        if "paths" in self.engines and self.semantics == "real" and self.remaining > 0 and not self.exhausted(size):
            if (verdict := self.paths()) is not None:
                return verdict
        if "agreement" in self.engines and self.semantics == "real" and self.remaining > 0 and not self.exhausted(size):
            if (verdict := self.agree()) is not None:
                return verdict
        if searching and self.remaining > 0 and not self.exhausted(size):
            if (verdict := self.search(self.remaining, hints=hints)) is not None:
                return verdict
        if searching:
            what = "witness" if self.claim.quantifier == "exists" else "counterexample"
            spent = time.monotonic() - self.began
            self.reasons.append(f"no {what} found in {spent:.3g} s")
        if self.claim.counted:
            self.notes.append(f"sampled: {sample_accuracy(self.claim, self.domain, 2000)}")
        reason = "; ".join(self.reasons) or "no engine applies"
        return Unknown(reason, self.left, self.setting("+".join(self.engines)))

    def exhausted(self, size: int) -> bool:
        """Whether everything that a search could meet has been decided already."""
        return "enumeration" in self.engines and size <= MAX_INPUTS and self.left is not None and self.left < size

    # Search

    def search(self, seconds: float, *, quick: bool = False, hints: Sequence[Hint] = ()) -> Verdict | None:
        """A refutation (of `exists`: a proof) by a replayed witness, or None."""
        self.engine = "refute"
        goal = TRUE if self.claim.quantifier == "exists" else FALSE
        found, search = search_for_failure(
            self.claim,
            self.domain,
            seconds,
            goal=goal,
            rigorous=self.semantics == "real",
            hints=hints,
            quick=quick,
            progress=self.progress,
        )
        if found is None:
            if search.float_only is not None:
                witness = self.claim.witness([row[0] for row in search.ids(search.float_only)])
                self.notes.append(f"the float32 run differs from the real semantics on {witness}")
            return None
        return self.by_witness(found, search, "refute")

    def by_witness(self, found: Candidate, search: Search, engine: str, smallest: bool = False) -> Verdict | None:
        """Shrinks, replays through the single-input path, and reports; None if the replay does not confirm it."""
        if not smallest:
            self.progress("shrinking")
            search.deadline = time.monotonic() + SHRINK_SECONDS
            found = shrink(search, found)
        witness = self.claim.witness([row[0] for row in search.ids(found)])
        outcome, really = self.claim.holds(witness), self.claim.holds_really(witness)
        met = "true" if search.goal == TRUE else "false"
        if self.semantics == "float32":
            if outcome.status != met:
                self.notes.append(f"a failure in a batch did not replay on {witness} alone")
                return None
            said = {True: "it holds", False: "it fails", None: "it is not decided"}[really]
            return self.settle(witness, outcome, self.setting(engine, notes=[f"over the reals {said} there"]))
        if really is (search.goal == TRUE):
            notes = [] if outcome.status == met else [f"float32 run differs: there the body is {outcome.status}"]
            return self.settle(witness, outcome, self.setting(engine, "real", notes))
        if outcome.status == met and really is None and not search.rigorous:
            notes = ["no rigorous rule covers this model: this is about the float32 run only"]
            return self.settle(witness, outcome, self.setting(engine, "float32", notes))
        self.notes.append(f"the float32 run differs from the real semantics on {witness}: {outcome}")
        return None

    def settle(self, witness: Witness, outcome: Outcome, setting: Setting) -> Verdict | None:
        if self.claim.quantifier == "exists":
            proof = {"rule": "witness", "inputs": witness.to_json()["inputs"]}
            return self.checked(self.certificate(proof, semantics=setting.semantics), setting)
        return Refuted(witness, setting, outcome)

    # Enumeration

    def enumerate(self, size: int) -> Verdict | None:
        self.engine = "enumeration"
        if size > MAX_INPUTS:
            self.reasons.append(
                f"enumeration: {size:,} inputs are more than 2^20" if size < 10**15 else "too many inputs"
            )
            return None
        if self.remaining <= 0:
            return None
        tally = enumerate_inputs(self.claim, self.domain, self.remaining, self.semantics, progress=self.progress)
        self.left = tally.left
        return self.counted(tally)

    def counted(self, tally: Tally) -> Verdict | None:
        """What a tally settles; else its reason is noted."""
        if tally.first_float_false is not None:
            first = self._replay(FALSE, tally).ids(tally.first_float_false)
            witness = self.claim.witness([row[0] for row in first])
            self.notes.append(
                f"the float32 run fails on {tally.float_false:,} inputs that hold, the first is {witness}"
            )
        found = None
        if self.claim.quantifier == "forall" and tally.first_false:
            found = self.by_witness(tally.first_false, self._replay(FALSE, tally), "enumeration", smallest=True)
        elif self.claim.quantifier == "exists" and tally.first_true:
            found = self.by_witness(tally.first_true, self._replay(TRUE, tally), "enumeration", smallest=True)
        if found is not None:
            return found
        if tally.semantics == "real" and tally.complete:
            if self._holds(tally):
                return self.checked(self.certificate({"rule": "enumerate"}), self.setting("enumeration"))
            if self._fails(tally):
                negation = self.claim.negated_by(tally.true, tally.false, tally.total)
                return self.checked(self.certificate({"rule": "enumerate"}, negation), self.setting("enumeration"))
        self.reasons.append(self._why(tally))
        return None

    def _replay(self, goal: int, tally: Tally) -> Search:
        search = Search(self.claim, self.domain, time.monotonic(), goal=goal)
        search.rigorous = tally.semantics == "real"
        return search

    def _holds(self, tally: Tally) -> bool:
        if self.claim.counted:
            return self.claim.settled(tally.true, tally.false, tally.total) is True
        return self.claim.quantifier == "forall" and tally.true == tally.total

    def _fails(self, tally: Tally) -> bool:
        if self.claim.counted:
            return self.claim.settled(tally.true, tally.false, tally.total) is False
        return self.claim.quantifier == "exists" and tally.false == tally.total

    def _why(self, tally: Tally) -> str:
        if not tally.complete and not tally.obstacle:
            return f"enumeration: time was up after {tally.seen:,} of {tally.total:,} inputs"
        parts = [f"enumeration: {tally.true:,} inputs hold, {tally.false:,} fail"]
        if tally.undecided:
            parts.append(f"{tally.undecided:,} lie too near the boundary for float64 balls")
        if tally.undefined:
            parts.append(f"on {tally.undefined:,} the program is undefined")
        if tally.first_open:
            ids = self._replay(FALSE, tally).ids(tally.first_open)
            parts.append(f"the first is {self.claim.witness([row[0] for row in ids])}")
        if tally.obstacle:
            parts.append(f"{tally.semantics} semantics only: {tally.obstacle}")
        return ", ".join(parts)

    # Composition

    def compose(self) -> tuple[Verdict | None, Sequence[Hint]]:
        self.engine = "composition"
        self.progress("composing")
        from .compose import prove_by_composition

        deadline = self.began + self.seconds
        result = prove_by_composition(self.claim, self.domain, deadline=deadline, progress=self.progress)
        if isinstance(result, Certificate):
            return self.checked(result, self.setting("composition")), ()
        self.reasons.append(f"composition: {result.text}")
        return None, result.hints

    # Counting

    def count(self) -> Verdict | None:
        self.engine = "counting"
        if not isinstance(self.claim.body, LabelsBody) or not self.claim.counted:
            return None
        from .shares import prove_share

        certificate, reason = prove_share(self.claim, self.domain, self.began + self.seconds, self.progress)
        if certificate is not None:
            return self.checked(certificate, self.setting("counting"))
        self.reasons.append(f"counting: {reason}")
        return None

    # Low rank

    def low_rank(self) -> Verdict | None:
        self.engine = "low_rank"
        if not isinstance(self.claim.body, (LabelsBody, LabelMarginBody)) or not searched(self.claim):
            return None
        from .low_rank import prove_low_rank

        certificate, reason = prove_low_rank(self.claim, self.domain, self.began + self.seconds, self.progress)
        if certificate is not None:
            return self.checked(certificate, self.setting("low_rank"))
        self.reasons.append(f"low_rank: {reason}")
        return None

    # Paths

    def paths(self) -> Verdict | None:
        self.engine = "paths"
        if not searched(self.claim):
            return None
        from .path_proofs import prove_by_paths

        share = PATHS_SHARE if self.claim.quantifier == "forall" and "refute" in self.engines else 1.0
        deadline = time.monotonic() + share * self.remaining
        found: list[Verdict] = []

        def objection(certificate: Certificate) -> str | None:
            verdict = self.checked(certificate, self.setting("paths"))
            if verdict is None:
                return self.reasons.pop().partition(CHECKER)[2]
            found.append(verdict)
            return None

        reason = prove_by_paths(self.claim, self.domain, deadline, self.progress, objection, self.resume)
        if reason is None:
            return found[0]
        self.reasons.append(f"paths: {reason}")
        return None

    # Agreement

    def agree(self) -> Verdict | None:
        self.engine = "agreement"
        body = self.claim.body
        if not isinstance(body, FaithfulBody) or self.claim.quantifier not in ("forall", "at_least"):
            return None
        from .agreement import prove_agreement

        share = PATHS_SHARE if self.claim.quantifier == "forall" and "refute" in self.engines else 1.0
        deadline = time.monotonic() + share * self.remaining
        certificate, reason = prove_agreement(self.claim, self.domain, deadline, self.progress)
        if certificate is not None:
            return self.checked(certificate, self.setting("agreement"))
        self.reasons.append(f"agreement: {reason}")
        return None

    # Certificates

    def checked(self, certificate: Certificate, setting: Setting) -> Verdict | None:
        """Proved (a negation: refuted) by a certificate that the independent checker accepts, or does not cover."""
        from .recheck import objection

        notes = self._unchecked(setting.semantics)
        if not notes:
            self.progress("checking the certificate")
            if problem := objection(certificate, self.claim.subject.model):
                self.reasons.append(f"{setting.engine}: {CHECKER}{problem}")
                return None
        spent = time.monotonic() - self.began
        setting = replace(setting, notes=(*setting.notes, *notes), seconds=spent)
        negated = certificate.theorem["quantifier"] in ("none", "fewer_than", "more_than")
        return Refuted(certificate, setting) if negated else Proved(certificate, setting)

    def certificate(
        self,
        proof: dict[str, object],
        negation: Mapping[str, object] | None = None,
        *,
        semantics: Semantics = "real",
    ) -> Certificate:
        """Of the claim, or of its negation: what this puts in place of its quantifier."""
        stated = theorem(self.claim, self.domain, semantics)
        if negation is not None:
            stated = {**{key: stated[key] for key in stated if key not in ("share", "most")}, **negation}
        return Certificate.of(stated, proof)

    def _unchecked(self, semantics: Semantics = "real") -> list[str]:
        """What the independent checker does not cover of this theorem."""
        return [f"the independent checker does not cover {semantics} semantics"] if semantics != "real" else []


def theorem(claim: Claim, domain: Language, semantics: Semantics = "real") -> dict[str, object]:
    """What a certificate of this claim states (`proofs/SPECIFICATION.md`, section 3)."""
    return {**claim.theorem(), "domain": domain_to_json(domain), "semantics": semantics}
