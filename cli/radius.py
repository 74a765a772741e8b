"""`radius`: how much all weights may change with a claim still proved."""

from __future__ import annotations

import time
from pathlib import Path

from ..proofs.words import digits_of
from .commands import Wanted, not_proved, question
from .output import BadInput, ExitCode, Screen


def weight_radius_of(path: Path, wanted: Wanted, relative: bool, seconds: float, as_json: bool) -> int:
    """The radius, rounded down, with what is not claimed of it; else what is known of the claim itself."""
    from ..verifier.radius import NOT_CLAIMED, WeightRadius, weight_radius

    if not seconds > 0:
        raise BadInput(f"--seconds must be above 0, got {seconds:g}")
    screen = Screen(as_json)
    claim, domain = question(path, wanted)
    started = time.perf_counter()
    with screen.progress(f"radius of {wanted.claim}") as tell:
        found = weight_radius(claim, domain, relative=relative, seconds=seconds, progress=tell)
    data: dict[str, object] = {
        "claim": wanted.claim,
        "domain_size": digits_of(domain.size()),
        "seconds": round(time.perf_counter() - started, 3),
        "relative": relative,
    }
    if not isinstance(found, WeightRadius):
        return not_proved(found, data, screen)
    data |= {"eps": found.eps, "beyond": found.beyond, "engine": found.setting.engine, "proved_of": found.semantics}
    data |= {"notes": list(found.setting.notes), "not_claimed": list(NOT_CLAIMED)}
    screen.show(data, str(found))
    return ExitCode.OK
