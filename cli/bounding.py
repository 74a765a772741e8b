"""`bound`: the least difference of two logits over all inputs of a trained model's task."""

from __future__ import annotations

from pathlib import Path

from . import inputs
from .output import BadInput, ExitCode, Screen


def bound_difference(
    model: Path,
    output: str,
    rival: str,
    gap: float,
    seconds: float,
    resume: Path | None,
    certificate: Path | None,
    as_json: bool,
) -> int:
    """Bounds from both sides; `ExitCode.OPEN` if they are further apart than `gap` when time is up, or if a certificate
    for the lower one is asked for and the checker accepts none."""
    from ..verifier.verdicts import Proved
    from ..verifier.worst_case import LeastDifference, certified, least_difference
    from .commands import _target

    if not seconds > 0:
        raise BadInput(f"--seconds must be above 0, got {seconds:g}")
    if not gap >= 0:
        raise BadInput(f"--gap must be at least 0, got {gap:g}")
    trained = inputs.load_trained_model(model)
    codec, task = trained.task.codec, trained.task
    target = _target(certificate, f"{task.name}.bound.cert", inputs.model_file(model), resume) if certificate else None
    above, below = (inputs.listed_tokens([text], codec.outputs)[0] for text in (output, rival))
    screen = Screen(as_json)
    with screen.progress("bounding") as tell:

        def say(found: LeastDifference) -> None:
            tell(f"between {found.lower:.6g} and {found.upper:.6g}, {found.groups} groups")

        found = least_difference(
            trained.model,
            above,
            below,
            task.domain,
            codec=codec,
            gap=gap,
            seconds=seconds,
            resume=resume,
            progress=say,
        )
        verdict = found.prove(tell) if target else None
    data = {
        "output": found.output,
        "rival": found.rival,
        "lower": found.lower,
        "upper": found.upper,
        "word": list(found.word),
        "groups": found.groups,
        "seconds": round(found.seconds, 3),
        "resume": str(resume) if resume else None,
        "certificate": None,
    }
    lines = [f"logit {found.output} - logit {found.rival}, over all inputs of {task.name}:", str(found)]
    if target is None or verdict is None:
        screen.show(data, *lines)
        return ExitCode.OK if found.gap <= gap else ExitCode.OPEN
    lines.append(str(verdict))
    if not isinstance(verdict, Proved):
        screen.show({**data, "why_no_certificate": verdict.reason}, *lines)
        return ExitCode.OPEN
    verdict.certificate.save(target)
    screen.show({**data, "certificate": str(target), "certified": certified(verdict)}, *lines, f"certificate: {target}")
    return ExitCode.OK if found.gap <= gap else ExitCode.OPEN
