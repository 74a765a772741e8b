"""`bound`: the least difference of two logits over all inputs of a trained model's task."""

from __future__ import annotations

from pathlib import Path

from . import inputs
from .output import BadInput, ExitCode, Screen


def bound_difference(
    model: Path, output: str, rival: str, gap: float, seconds: float, resume: Path | None, as_json: bool
) -> int:
    """Bounds from both sides; `ExitCode.OPEN` if they are further apart than `gap` when time is up."""
    from ..verifier.worst_case import LeastDifference, least_difference

    if not seconds > 0:
        raise BadInput(f"--seconds must be above 0, got {seconds:g}")
    if not gap >= 0:
        raise BadInput(f"--gap must be at least 0, got {gap:g}")
    trained = inputs.load_trained_model(model)
    codec = trained.task.codec
    chosen = [inputs.listed_tokens([text], codec.outputs)[0] for text in (output, rival)]
    screen = Screen(as_json)
    with screen.progress("bounding") as tell:

        def say(found: LeastDifference) -> None:
            tell(f"between {found.lower:.6g} and {found.upper:.6g}, {found.groups} groups")

        found = least_difference(
            trained.model,
            chosen[0],
            chosen[1],
            trained.task.domain,
            codec=codec,
            gap=gap,
            seconds=seconds,
            resume=resume,
            progress=say,
        )
    data = {
        "output": found.output,
        "rival": found.rival,
        "lower": found.lower,
        "upper": found.upper,
        "word": list(found.word),
        "groups": found.groups,
        "seconds": round(found.seconds, 3),
        "resume": str(resume) if resume else None,
    }
    screen.show(
        data, f"logit {found.output} - logit {found.rival}, over all inputs of {trained.task.name}:", str(found)
    )
    return ExitCode.OK if found.gap <= gap else ExitCode.OPEN
