"""Differential testing of the whole chain: 10,000 random programs, every link of it agreeing with every other.

Interpreter, core program, compiled model, Z3's formula, the model over the reals on every input, proof by composition,
independent check: `tests/chain.py`. Seeds are in order from 0; an interrupted run goes on where it was, `--seconds`
stops one early. Every disagreement is a bug.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from .isolation import SOURCES, Failure, Kept
from .options import Options
from .report import Figure, Section, Table

PROGRAMS, QUICK = 10_000, 300
CHUNK = 50
SECONDS = 1800.0
LINKS = ("accepted", "model equals interpreter", "formula agrees", "true over the reals", "proved and checked")


def run_chunk(start: int, stop: int) -> dict[str, Any]:
    """Programs with the seeds start..stop-1: how often each link holds, and what disagrees."""
    from tests.chain import follow
    from tests.random_programs import case

    counts: Counter[str] = Counter()
    strange = []
    begun = time.process_time()
    for seed in range(start, stop):
        try:
            outcome = follow(case(seed), everything=True)
        except Exception as error:  # a crash is a finding
            strange.append((seed, f"{type(error).__name__}: {error}"[:400], case(seed).text[:600]))
            continue
        counts["accepted"] += outcome.status != "refused"
        counts["model equals interpreter"] += outcome.status == "agrees"
        counts["formula agrees"] += outcome.formula == "agrees"
        counts["true over the reals"] += outcome.reals == "true"
        counts["proved and checked"] += outcome.proved
        if outcome.disagreement:
            strange.append((seed, outcome.disagreement[:400], outcome.case.text[:600]))
        elif outcome.status == "agrees" and not outcome.proved:
            counts[f"not proved: {outcome.proof.partition(':')[2].strip()[:80]}"] += 1
    return {"counts": dict(counts), "strange": strange, "cpu": time.process_time() - begun}


def measure(options: Options) -> Section:
    """All seeds, or as many as there is time for."""
    total = QUICK if options.quick else PROGRAMS
    kept, deadline = Kept("chain", (*SOURCES, "tests")), time.monotonic() + options.seconds
    counts: Counter[str] = Counter()
    strange: list[tuple[Any, ...]] = []
    done, cpu = 0, 0.0
    for start in range(0, total, CHUNK):
        if time.monotonic() > deadline:
            break
        (found,) = kept.each_apart(run_chunk, [(start, min(start + CHUNK, total))], SECONDS)
        if isinstance(found, Failure):
            strange.append((f"{start} to {min(start + CHUNK, total) - 1}", found.why, ""))
            continue
        done += min(CHUNK, total - start)
        counts.update(found["counts"])
        strange += map(tuple, found["strange"])
        cpu += found["cpu"]
        if not done % 500:
            print(f"  {done:,} programs, {len(strange)} disagreements", flush=True)
    if done == total:
        kept.forget()
    return _section(done, counts, strange, cpu)


def _section(done: int, counts: Counter[str], strange: list[tuple[Any, ...]], cpu: float) -> Section:
    accepted = counts["accepted"]
    figures = [
        Figure("random programs through the whole chain", "10,000 a night", f"{done:,}", None),
        Figure("disagreements", "0", str(len(strange)), not strange),
    ]
    for link in LINKS[1:]:
        every = counts[link] == accepted
        figures.append(
            Figure(link, "all accepted", f"{counts[link]:,} of {accepted:,}", every if link != LINKS[-1] else None)
        )
    figures.append(Figure("CPU time a program", "", f"{cpu / max(1, done):.3f} s", None))
    tables = []
    reasons = tuple((text, n) for text, n in counts.most_common() if text.startswith("not proved"))
    if reasons:
        tables.append(Table("Right, and not proved by composition.", ("why", "programs"), reasons))
    if strange:
        tables.append(Table("Disagreements.", ("seed", "what", "program"), tuple(strange[:50])))
    note = (
        f"Seeds 0 to {done - 1} of tests/random_programs.py; every input of length 1 to 4 over three tokens (formulas: "
        "1 to 3). The same for 300 seeds in CI (tests/test_fuzz_chain.py)."
    )
    return Section("chain", "Differential testing of the whole chain", tuple(figures), tuple(tables), (note,))
