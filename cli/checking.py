"""`check` and `show`: the commands that import neither torch nor z3."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import words
from .output import BadInput, ExitCode, Screen, facts, grouped

MAX_BYTES = 256 * 2**20


def check_certificate(certificate: Path, model: Path, expect: Path | None, as_json: bool) -> int:
    """`valid`, `invalid(step, rule, why)` or `holey(which)`."""
    from .. import proofs

    screen = Screen(as_json)
    _exists(certificate)
    _exists(model)
    wanted = _json_file(expect) if expect else None
    started = time.perf_counter()
    with screen.progress(f"checking {certificate.name}"):
        result = proofs.check(certificate, model, expect=wanted)
    seconds = round(time.perf_counter() - started, 3)
    match result:
        case proofs.Valid(theorem):
            screen.show(
                {"verdict": "valid", "theorem": theorem, "seconds": seconds},
                f"valid  ({seconds:.1f} s)",
                proofs.describe(theorem),
            )
            return ExitCode.OK
        case proofs.Invalid(step, rule, why):
            screen.show(
                {"verdict": "invalid", "step": step, "rule": rule, "why": why, "seconds": seconds},
                f"invalid: step {step}, rule {rule}: {why}",
            )
            return ExitCode.NO
        case proofs.Holey(which):
            screen.show(
                {"verdict": "holey", "which": which, "seconds": seconds},
                f"holey: these steps are stated without proof: {which}",
            )
            return ExitCode.OPEN


def show_certificate(path: Path, as_json: bool) -> int:
    """The theorem in words, the program, the semantics, the trusted base. Nothing is checked."""
    screen = Screen(as_json)
    certificate = _json_file(path)
    try:
        theorem: Mapping[str, Any] = certificate["theorem"]
        size = words.domain_size(theorem["domain"])
        sentence = words.theorem_words(theorem)
        parts = {
            "theorem": sentence,
            "inputs": words.about(size),
            "model": words.config_words(theorem["config"]),
            "weights": f"SHA-256 {theorem['weights_sha256']}",
            "semantics": words.SEMANTICS.get(str(theorem["semantics"]), str(theorem["semantics"])),
            "proof": words.proof_words(certificate["proof"]),
            "trusted": trusted_base(),
            "file": f"{grouped(path.stat().st_size)} bytes, seal {certificate['seal']}",
        }
        listings = [(program, words.program_lines(program)) for program in words.programs_in(theorem["body"])]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise BadInput(f"{path} is not a certificate: {type(error).__name__}: {error}") from None
    data = {
        "theorem": theorem,
        "words": sentence,
        "domain_size": str(size),
        "semantics": theorem["semantics"],
        "proof_rule": certificate["proof"].get("rule"),
        "seal": certificate["seal"],
        "trusted_base": trusted_base(),
        "checked": False,
    }
    blocks: list[str] = []
    for program, lines in listings:
        blocks.append(f"\nThe program {program['name']} as core RASP; the certificate holds its tables:")
        blocks += [f"  {line}" for line in lines]
    screen.show(data, facts(parts), *blocks, "\nNothing has been checked: certiformer check does that.")
    return ExitCode.OK


def trusted_base() -> str:
    """What must be right for `valid` to mean true."""
    folder = Path(__file__).resolve().parent.parent / "proofs"
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in sorted(folder.rglob("*.py")))
    return (
        f"the checker certiformer.proofs ({grouped(lines)} lines of Python), its specification, Python, numpy, "
        "safetensors, python-flint"
    )


def _exists(path: Path) -> None:
    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}")


def _json_file(path: Path) -> Any:
    """A JSON object in a file. Raises `BadInput` for anything else."""
    _exists(path)
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"{path} has {grouped(path.stat().st_size)} bytes; at most {grouped(MAX_BYTES)} are read")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data
