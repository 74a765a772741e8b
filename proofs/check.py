"""The independent checker: a certificate and a model file in; `Valid`, `Invalid` or `Holey` out.

Imports nothing of the rest of certiformer: the standard library, numpy and python-flint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TypeAlias

from .balls import check_arithmetic
from .bodies import Computes, Faithful, Interchange, Margin, NeverOutputs
from .both_right import check_both_right
from .circuit import check_no_flow
from .composition import check_composition
from .counting import check_count
from .enumeration import check_enumeration, check_witness
from .format import (
    MAX_BYTES,
    Json,
    Rejected,
    canonical_json,
    listing,
    read_certificate,
    record,
    require,
    show,
    text,
    within,
)
from .interchange import check_interchange
from .low_rank import check_low_rank
from .model import Model, parse_model, read_model
from .paths import check_paths
from .program_check import check_program_certificate
from .reduction import own_model
from .theorem import Theorem, read_theorem


@dataclass(frozen=True)
class Valid:
    """The proof is right: `theorem` (the certificate's object) is true of the model. `describe` says it in words."""

    theorem: Mapping[str, Json]


@dataclass(frozen=True)
class Invalid:
    """The certificate proves nothing: `step` of the proof, by `rule`, fails because of `why`."""

    step: str
    rule: str
    why: str


@dataclass(frozen=True)
class Holey:
    """The proof leaves these open, by its own account; nothing is proved."""

    which: tuple[str, ...]


INTERNAL = "internal error"
Outcome: TypeAlias = Valid | Invalid | Holey


def check(
    certificate: str | PathLike[str] | bytes | Mapping[str, Json],
    model: str | PathLike[str] | bytes | None = None,
    expect: Mapping[str, Json] | None = None,
) -> Outcome:
    """Checks a certificate (a path, its bytes, or its JSON object) about a model (a safetensors path, or its bytes),
    or, without `model`, about programs.

    `expect` holds parts of the theorem, such as `{"body": ..., "domain": ...}`: each must be equal, as canonical JSON,
    to the theorem's. Without it the caller must read the theorem: a proof about a trivial domain is also valid.
    Never raises on account of the certificate's or the model's contents.
    """
    try:
        with within("certificate", "format"):
            data = read_certificate(_certificate_bytes(certificate))
        with within("expect", "expect"):
            _check_expected(data["theorem"], expect)
        if isinstance(data["theorem"], dict) and data["theorem"].get("about") == "programs":
            return _check_about_programs(data, model)
        with within("model", "model"):
            require(model is not None, "the theorem is about a model: give its file")
            assert model is not None
            found = parse_model(model) if isinstance(model, bytes) else read_model(model)
        return _check(data, found)
    except Rejected as error:
        return Invalid(error.step or "proof", error.rule or "format", error.why)
    except (MemoryError, RecursionError) as error:
        return Invalid("certificate", "limits", f"too large to check: {type(error).__name__}")
    except Exception as error:  # a bug of ours; what could not be checked is not valid
        return Invalid("checker", INTERNAL, f"please report this: {type(error).__name__}: {error}")


def _check_about_programs(data: dict[str, Json], model: object) -> Outcome:
    with within("model", "model"):
        require(model is None, "the theorem is about programs alone: leave the model out")
    holes = check_program_certificate(data)
    return Holey(holes) if holes else Valid(data["theorem"])


def _check(data: Mapping[str, Json], model: Model) -> Outcome:
    with within("machine", "arithmetic"):
        check_arithmetic()
    theorem: Theorem = read_theorem(data["theorem"], model)
    proof = data["proof"]
    rule = proof.get("rule") if isinstance(proof, dict) else None
    with within("proof", str(rule)[:40]):
        require(isinstance(rule, str), f"unknown rule {show(rule)}")
        _check_fit(theorem, rule)
        if rule not in ("enumerate", "witness", "hole", *OWN_MODEL, "both_right"):
            theorem.model.config.require_piecewise_linear()
    if rule == "composition":
        check_composition(theorem, proof)
    elif rule == "interchange":
        check_interchange(theorem, proof)
    elif rule == "no_flow":
        alone = [part.alone for part in theorem.parts if isinstance(part, Faithful)]
        check_no_flow(theorem.model, [(one.circuit, one.means or {}) for one in alone], proof)
    elif rule == "both_right":
        check_both_right(theorem, proof, {"enumerate": check_enumeration, **OWN_MODEL})
    elif rule == "enumerate":
        check_enumeration(theorem, proof)
    elif rule in OWN_MODEL:
        OWN_MODEL[str(rule)](theorem, proof)
    elif rule == "low_rank":
        check_low_rank(theorem, proof)
    elif rule == "witness":
        check_witness(theorem, proof)
    elif rule == "hole":
        with within("proof", "hole"):
            holes = listing(record(proof, "proof", ("rule", "which"))["which"], "which", 1024, 1)
            return Holey(tuple(text(hole, "a hole") for hole in holes))
    else:
        with within("proof", str(rule)[:40]):
            require(False, f"unknown rule {show(rule)}")
    return Valid(data["theorem"])


def _by(
    rule: str, check_rule: Callable[[Theorem, dict[str, Json]], None]
) -> Callable[[Theorem, dict[str, Json]], None]:
    """A rule about models; a theorem about a circuit alone is one about the circuit's own model."""

    def check_own(theorem: Theorem, proof: dict[str, Json]) -> None:
        with within("proof", rule):
            own = own_model(theorem)
            own.model.config.require_piecewise_linear()
        check_rule(own, proof)

    return check_own


OWN_MODEL = {"count": _by("count", check_count), "paths": _by("paths", check_paths)}


def _check_fit(theorem: Theorem, rule: object) -> None:
    """The rule is one for this quantifier and for all parts of this body."""
    proves: dict[object, tuple[type, ...]] = {
        "composition": (Computes, Margin, NeverOutputs),
        "no_flow": (Faithful,),
        "interchange": (Interchange,),
    }
    if rule in proves:
        require(theorem.quantifier == "forall", f"rule {show(rule)} proves theorems about all inputs only")
        fits = all(isinstance(part, proves[rule]) for part in theorem.parts)
        require(fits, f"rule {show(rule)} does not prove this body")


def _certificate_bytes(certificate: str | PathLike[str] | bytes | Mapping[str, Json]) -> bytes:
    if isinstance(certificate, bytes):
        return certificate
    if isinstance(certificate, Mapping):
        return canonical_json(dict(certificate))
    try:
        with open(certificate, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Rejected(f"cannot read the certificate: {error.strerror or error}") from None


def _check_expected(theorem: Json, expect: Mapping[str, Json] | None) -> None:
    if expect is None:
        return
    require(isinstance(theorem, dict), "the theorem is not an object")
    for key, wanted in expect.items():
        require(key in theorem, f"the theorem has no {key!r}")
        require(canonical_json(theorem[key]) == canonical_json(wanted), f"the theorem's {key} is not the expected one")
