"""`check` and `show`: the commands that import neither torch nor z3."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import words
from .output import BadInput, ExitCode, Screen, facts, grouped


def check_certificate(certificate: Path, model: Path | None, expect: Path | None, as_json: bool) -> int:
    """`valid`, `invalid(step, rule, why)` or `holey(which)`. Raises `BadInput` where there is nothing to check."""
    from .. import proofs
    from ..proofs.files import objection

    screen = Screen(as_json)
    content = _contents(certificate)
    if model is not None:
        model = _model(model)
        _exists(model)
    wanted = _expected(expect) if expect else None
    started = time.perf_counter()
    with screen.progress(f"checking {certificate.name}"):
        result = proofs.check(content, model, expect=wanted)
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
            if problem := objection(result, content):
                raise BadInput(f"{model or certificate if step == 'model' else certificate}: {problem}")
            screen.show(
                {"verdict": "invalid", "step": step, "rule": rule, "why": why, "seconds": seconds},
                f"invalid: step {step}, rule {rule}: {why}",
            )
            return ExitCode.NO
        case proofs.Holey(which):
            screen.show(
                {"verdict": "holey", "which": which, "seconds": seconds},
                f"holey: these steps are stated without proof: {', '.join(which)}",
            )
            return ExitCode.OPEN


def _model(path: Path) -> Path:
    """The file of a model; `zoo:NAME` is found without torch, which the zoo's own module imports."""
    name = str(path)
    if not name.startswith("zoo:"):
        return path
    name = name.removeprefix("zoo:")
    folder = Path(__file__).resolve().parent.parent / "models" / "zoo"
    return folder / f"{name if '/' in name else name + '/0'}.safetensors"


def show_certificate(path: Path, as_json: bool) -> int:
    """The theorem in words, the program, the semantics, the trusted base. Nothing is checked but the format."""
    from ..proofs import Rejected
    from ..proofs.format import read_certificate
    from ..proofs.words import TRUSTED_BASE, digits_of, particulars, read_statement, sentence, sizes

    screen = Screen(as_json)
    content = _contents(path)
    try:
        certificate = read_certificate(content)
        theorem: Mapping[str, Any] = certificate["theorem"]
        if isinstance(theorem, dict) and theorem.get("about") == "programs":
            return _show_about_programs(certificate, screen)
        read_statement(theorem)
    except Rejected as error:
        raise BadInput(f"{path} is no certificate with a theorem to show: {_where(error)}{error.why}") from None
    inputs, pairs = sizes(theorem)
    parts = {
        "theorem": sentence(theorem),
        **{name.lower(): text for name, text in particulars(theorem).items()},
        "checker": f"{checker_lines():,} lines of Python",
        "proof": words.proof_words(certificate["proof"]),
        "file": f"{grouped(len(content))} bytes, seal {certificate['seal']}",
    }
    data = {
        "theorem": theorem,
        "words": parts["theorem"],
        "domain_size": None if inputs is None else digits_of(inputs),
        "pairs": None if pairs is None else digits_of(pairs),
        "semantics": theorem["semantics"],
        "proof_rule": certificate["proof"].get("rule") if isinstance(certificate["proof"], dict) else None,
        "seal": certificate["seal"],
        "trusted_base": TRUSTED_BASE,
        "checked": False,
    }
    blocks: list[str] = []
    for title, lines in words.listings(theorem):
        blocks += [f"\n{title}:", *(f"  {line}" for line in lines)]
    screen.show(data, facts(parts), *blocks, "\nNothing has been checked: certiformer check does that.")
    return ExitCode.OK


def _show_about_programs(certificate: Mapping[str, Any], screen: Screen) -> int:
    """A theorem without a model. Raises `Rejected`."""
    from ..proofs import program_words

    theorem, proof = certificate["theorem"], certificate["proof"]
    rule = proof.get("rule") if isinstance(proof, dict) else None
    holes = proof.get("which") if rule == "hole" else None
    data = {
        "theorem": theorem,
        "words": program_words.sentence(theorem),
        "proof_rule": rule,
        "holes": holes,
        "seal": certificate["seal"],
        "trusted_base": program_words.TRUSTED_BASE,
        "checked": False,
    }
    lines = ["holes: " + "; ".join(map(str, holes))] if isinstance(holes, list) else []
    said = "\nNothing has been checked: certiformer check does that."
    screen.show(data, program_words.describe(theorem), f"Rule: {rule}", *lines, said)
    return ExitCode.OK


def checker_lines() -> int:
    """How much code must be right for `valid` to mean true."""
    folder = Path(__file__).resolve().parent.parent / "proofs"
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in sorted(folder.rglob("*.py")))


def _expected(path: Path) -> Mapping[str, Any]:
    """The theorem in a certificate, in what `show --json` prints, or by itself. Raises `BadInput`."""
    from ..proofs import Rejected
    from ..proofs.format import MAX_BYTES, parse_json, require
    from ..proofs.program_theorem import read_program_theorem
    from ..proofs.words import read_statement

    content = _contents(path)
    try:
        require(len(content) <= MAX_BYTES, f"it has more than {MAX_BYTES} bytes")
        data = parse_json(content)
        theorem = data["theorem"] if isinstance(data, dict) and "theorem" in data else data
        if isinstance(theorem, dict) and theorem.get("about") == "programs":
            read_program_theorem(theorem)
        else:
            read_statement(theorem)
    except Rejected as error:
        raise BadInput(
            f"--expect {path} holds no whole theorem: {_where(error)}{error.why}; "
            "give a certificate, or what `certiformer show --json CERT` prints"
        ) from None
    found: Mapping[str, Any] = theorem
    return found


def _where(error: Any) -> str:
    return f"{error.step}: " if error.step else ""


def _exists(path: Path) -> None:
    if path.is_dir():
        raise BadInput(f"{str(path)!r} is a folder; `certiformer import` makes a file of a checkpoint")
    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}")


def _contents(path: Path) -> bytes:
    """A file as the checker reads it. Raises `BadInput`."""
    from ..proofs import Rejected
    from ..proofs.files import read_bytes

    _exists(path)
    try:
        return read_bytes(path)
    except Rejected as error:
        raise BadInput(f"{path}: {error.why}") from None
