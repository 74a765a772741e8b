"""`prove-program`: claims about RASP programs themselves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..proofs.words import digits_of
from . import inputs
from .commands import not_proved
from .output import BadInput, ExitCode, Screen

if TYPE_CHECKING:
    from ..models import Language
    from ..verifier.program_claims import EveryLength, ProgramClaim


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    program: str
    equivalent: str | None = None
    implies: str | None = None
    ensures: str | None = None
    within: str | None = None
    vocab: str = "8"
    lengths: str = "1:8"
    every_length: bool = False
    causal: bool | None = None


def prove_about_program(
    asked: Asked,
    seconds: float,
    engines: Sequence[str] | None,
    confirm: str | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """`Proved` with a certificate, `Refuted` with the smallest input, or `Unknown`; exit codes as of `prove`."""
    from ..models import sequences
    from ..verifier.program_claims import EveryLength
    from ..verifier.program_proofs import prove_about_programs
    from ..verifier.verdicts import Proved, Unknown

    if not seconds > 0:
        raise BadInput(f"--seconds must be above 0, got {seconds:g}")
    if output is not None and not output.parent.is_dir():
        raise BadInput(f"cannot write {output}: there is no folder {output.parent}")
    named = inputs.load_program(asked.program)
    causal = asked.causal if asked.causal is not None else bool(named.entry and named.entry.causal)
    claim = _claim(asked, named, causal or (asked.every_length and asked.causal is None))
    tokens = inputs.parse_vocab(asked.vocab, named.entry)
    domain: Language | EveryLength = EveryLength(tokens)
    if not asked.every_length:
        domain = sequences(tokens, inputs.parse_lengths(asked.lengths))
    screen = Screen(as_json)
    started = time.perf_counter()
    with screen.progress(f"proving {claim.words}") as tell:
        verdict = prove_about_programs(
            claim, domain, seconds=seconds, engines=engines or None, progress=tell, confirm=confirm
        )
    data: dict[str, object] = {
        "claim": claim.describe(),
        "domain_size": None if isinstance(domain, EveryLength) else digits_of(domain.size()),
        "seconds": round(time.perf_counter() - started, 3),
    }
    certificate = verdict.certificate if isinstance(verdict, (Proved, Unknown)) else None
    if output is not None and certificate is not None:
        certificate.save(output)
    if isinstance(verdict, Proved):
        path = str(output) if output is not None else None
        screen.show({**data, "verdict": "proved", "certificate": path}, str(verdict))
        return ExitCode.OK
    if certificate is not None:
        data["holes"] = list(certificate.data["proof"]["which"])
    return not_proved(verdict, data, screen)


def _claim(asked: Asked, named: inputs.Named, causal: bool) -> ProgramClaim:
    from ..verifier import program_claims as claims

    wanted = {
        "--equivalent": asked.equivalent,
        "--implies": asked.implies,
        "--ensures": asked.ensures,
        "--range": asked.within,
    }
    given = [option for option, text in wanted.items() if text is not None]
    if len(given) != 1:
        raise BadInput(f"give one of {', '.join(wanted)}; got {' and '.join(given) or 'none'}")
    if asked.within is not None:
        least, colon, most = asked.within.partition(":")
        ends = inputs.parse_values([least, most], "--range") if colon and least != most else (None,)
        if least == most and colon:
            ends = inputs.parse_values([least], "--range") * 2
        if len(ends) != 2 or any(isinstance(end, str) or end is None for end in ends):
            raise BadInput(f"--range must be LEAST:MOST, such as 0:7, got {asked.within!r}")
        return claims.Range(named.program, *ends, causal=causal)
    if asked.ensures in claims.POSTCONDITIONS:
        return claims.Ensures(named.program, claims.POSTCONDITIONS[str(asked.ensures)], causal=causal)
    other = inputs.load_program(next(text for text in wanted.values() if text is not None)).program
    if asked.equivalent is not None:
        return claims.Equivalent(named.program, other, causal=causal)
    if asked.implies is not None:
        return claims.Implies(named.program, other, causal=causal)
    return claims.Ensures(named.program, other, causal=causal)
