"""Verdicts: what is known about a claim on a domain, with the evidence, and what was assumed.

match prove(claim, domain):
    case Proved(certificate): certificate.save("sort.cert")
    case Refuted(witness): print(witness)
    case Unknown(reason, left): print(reason, left)
    case EmptyDomain(reason) | Vacuous(reason): print(reason)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeAlias

from ..models.files import write_atomically
from ..models.languages import Language
from .claims import Claim
from .program_claims import EveryLength, ProgramClaim
from .witness import Outcome, Semantics, Witness

FORMAT = "certiformer/1"


def canonical_json(data: object) -> bytes:
    """UTF-8, keys sorted, no spaces, no NaN: the same data gives the same bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@dataclass(frozen=True)
class Certificate:
    """A theorem with its proof, as plain data (`proofs/SPECIFICATION.md`), sealed by a hash of the rest."""

    data: Mapping[str, Any]

    @staticmethod
    def of(theorem: Mapping[str, object], proof: Mapping[str, object]) -> Certificate:
        """A sealed certificate."""
        data = {"format": FORMAT, "theorem": dict(theorem), "proof": dict(proof)}
        return Certificate({**data, "seal": hashlib.sha256(canonical_json(data)).hexdigest()})

    @property
    def theorem(self) -> Mapping[str, Any]:
        return self.data["theorem"]  # type: ignore[no-any-return]

    @property
    def rule(self) -> str:
        return str(self.data["proof"].get("rule", "?"))

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.data)

    def save(self, path: str | Path) -> None:
        """Writes the certificate; the file at `path` is the old one or the whole new one. Raises `InputError`."""
        write_atomically(path, self.to_bytes())

    def __str__(self) -> str:
        return f"certificate ({self.rule}, {len(self.to_bytes()):,} bytes, seal {str(self.data.get('seal', ''))[:12]})"


def _three_valued(kind: str) -> NoReturn:
    raise TypeError(
        f"a verdict is not true or false (this one is {kind}): use `match verdict:` with `case Proved(certificate)`, "
        "`case Refuted(witness)`, `case Unknown(reason, left)`, or isinstance(verdict, Proved)"
    )


@dataclass(frozen=True)
class Setting:
    """What a verdict is about and how it was found."""

    claim: Claim | ProgramClaim
    domain: Language | EveryLength
    semantics: Semantics
    engine: str
    seconds: float
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        ablation = getattr(getattr(self.claim, "body", None), "ablation", None)
        meaning = {"real": "the exact weights, over the reals", "float32": "the float32 run on this machine"}
        semantics = f"{self.semantics} ({meaning[self.semantics]})"
        if isinstance(self.claim, ProgramClaim):
            semantics = "what the programs mean, exactly; no model is involved"
        rows = [
            ("claim", self.claim.describe()),
            ("domain", describe_domain(self.domain, self.claim.arity)),
            ("semantics", semantics),
            *([("ablation", str(ablation))] if ablation else []),
            ("engine", f"{self.engine}, {self.seconds:.2f} s"),
            *(("note", note) for note in self.notes),
        ]
        return [f"  {name + ':':<11}{text}" for name, text in rows]


def count_text(count: int) -> str:
    """A number of inputs: exact up to 12 digits, else about."""
    digits = str(count)
    return f"{count:,}" if len(digits) <= 12 else f"about {digits[0]}.{digits[1:3]}e{len(digits) - 1}"


def describe_domain(domain: Language | EveryLength, arity: int = 1) -> str:
    """Its tokens, lengths and exact size."""
    if isinstance(domain, EveryLength):
        return f"all inputs of every length from 1 on, over {len(domain.vocab)} tokens"
    lengths = [n for n in domain.lengths if domain.size(n)]
    size = domain.size() if arity == 1 else sum(domain.size(n) ** arity for n in domain.lengths)
    if not size:
        return f"no input over {len(domain.vocab)} tokens"
    what = "inputs" if arity == 1 else "pairs of inputs"
    span = f"{min(lengths)}" if len(lengths) == 1 else f"{min(lengths)} to {max(lengths)}"
    return f"{count_text(size)} {what} of length {span} over {len(domain.vocab)} tokens"


@dataclass(frozen=True)
class Proved:
    """The claim holds on the whole domain; `certificate` can be checked independently."""

    certificate: Certificate
    setting: Setting
    __match_args__: ClassVar = ("certificate",)

    @property
    def claim(self) -> Claim | ProgramClaim:
        return self.setting.claim

    def __bool__(self) -> bool:
        _three_valued("Proved")

    def __str__(self) -> str:
        return "\n".join(["Proved", *self.setting.lines(), f"  evidence:  {self.certificate}"])


@dataclass(frozen=True)
class Refuted:
    """The claim fails: at `evidence`, a witness (for `forall`), or by a certificate (for `exists` and for shares).

    `outcome`: what the body says on the witness in the model's float32 run.
    """

    evidence: Witness | Certificate
    setting: Setting
    outcome: Outcome | None = None
    __match_args__: ClassVar = ("evidence",)

    @property
    def claim(self) -> Claim | ProgramClaim:
        return self.setting.claim

    def __bool__(self) -> bool:
        _three_valued("Refuted")

    def __str__(self) -> str:
        lines = ["Refuted", f"  witness:   {self.evidence}"]
        if self.outcome is not None:
            lines.append(f"  outcome:   {self.outcome}")
        return "\n".join([*lines, *self.setting.lines()])


@dataclass(frozen=True)
class Unknown:
    """Neither proved nor refuted: why, and how many inputs are left open (None: not counted).

    `certificate`: of a proof with holes, which it names: nothing in it is to be relied on that rests on these.
    """

    reason: str
    left: int | None
    setting: Setting
    certificate: Certificate | None = None
    __match_args__: ClassVar = ("reason", "left")

    @property
    def claim(self) -> Claim | ProgramClaim:
        return self.setting.claim

    def __bool__(self) -> bool:
        _three_valued("Unknown")

    def __str__(self) -> str:
        left = "not counted" if self.left is None else count_text(self.left)
        lines = ["Unknown", f"  reason:    {self.reason}", f"  left:      {left} inputs"]
        if self.certificate is not None:
            lines.append(f"  holes:     {'; '.join(self.certificate.data['proof']['which'])}")
        return "\n".join([*lines, *self.setting.lines()])


@dataclass(frozen=True)
class EmptyDomain:
    """The domain has no input: the claim says nothing about the model."""

    reason: str
    setting: Setting
    __match_args__: ClassVar = ("reason",)

    @property
    def claim(self) -> Claim | ProgramClaim:
        return self.setting.claim

    def __bool__(self) -> bool:
        _three_valued("EmptyDomain")

    def __str__(self) -> str:
        return "\n".join(["Empty domain", f"  reason:    {self.reason}", *self.setting.lines()])


@dataclass(frozen=True)
class Vacuous:
    """The claim's premise is never met on the domain: it holds, but says nothing about the model."""

    reason: str
    setting: Setting
    __match_args__: ClassVar = ("reason",)

    @property
    def claim(self) -> Claim | ProgramClaim:
        return self.setting.claim

    def __bool__(self) -> bool:
        _three_valued("Vacuous")

    def __str__(self) -> str:
        return "\n".join(["Vacuous", f"  reason:    {self.reason}", *self.setting.lines()])


Verdict: TypeAlias = Proved | Refuted | Unknown | EmptyDomain | Vacuous
