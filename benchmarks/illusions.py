"""The illusion zoo: which explanations that look right are flagged, and which controls."""

from __future__ import annotations

import time
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table

SECONDS = 300.0
NAMES = (
    "dormant pathway", "backup head", "cancelling pair", "vacuous alignment", "zero-gradient edge", "two circuits",
    "one in 10^6",
)  # fmt: skip


def judged(number: int, length: int) -> dict[str, Any]:
    """The findings about one of the zoo, and how long they took."""
    from certiformer.explanations.illusions import illusions
    from certiformer.verifier.stories import flagged, judge_story

    case = illusions(length)[number]
    start = time.perf_counter()
    findings = judge_story(case.story, case.model, case.domain, codec=case.codec, seconds=SECONDS)
    outcomes = [finding.outcome for finding in findings]
    return {"outcomes": outcomes, "flagged": flagged(findings), "seconds": time.perf_counter() - start}


def measure(options: Options) -> Section:
    """All of the zoo, each illusion beside its control."""
    length = 4 if options.quick else 6
    cases = [(number, length) for number in range(2 * len(NAMES))]
    rows: list[tuple[Cell, ...]] = []
    counts = {False: 0, True: 0}
    failed = 0
    for (number, _), found in zip(cases, each_apart(judged, cases, 3 * SECONDS), strict=True):
        name, clean = NAMES[number // 2], number % 2 == 1
        if isinstance(found, Failure):
            failed += 1
            rows.append((name, "control" if clean else "illusion", str(found), None, None))
            continue
        counts[clean] += found["flagged"]
        said = ", ".join(found["outcomes"])
        rows.append(
            (name, "control" if clean else "illusion", said, "yes" if found["flagged"] else "no", found["seconds"])
        )
        print(f"  {rows[-1]}", flush=True)
    text = f"{counts[False]} of {len(NAMES)} illusions, {counts[True]} of {len(NAMES)} controls"
    met = counts[False] == len(NAMES) and not counts[True] and not failed
    figure = Figure("illusions and clean controls flagged", "all / none", text, met)
    head = ("model", "", "what the story says, by verdicts", "flagged", "s")
    table = Table("illusions", head, tuple(rows))
    note = "Each story is one that patching, samples or a gradient would confirm (tests/test_illusions.py shows so)."
    return Section("illusions", "Explanations that look right and are wrong", (figure,), (table,), (note,))
