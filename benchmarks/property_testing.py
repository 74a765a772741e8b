"""Planted wrong interpretations: found by random examples, by guided search, by `--certify`; and the plugin's cost."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .options import Options
from .plants import FEW_LONGEST, FEW_VOCAB, LONGEST, SMALL_LONGEST, SMALL_VOCAB, VOCAB, Plant, plants
from .report import Cell, Figure, Section, Table

ROOT = Path(__file__).parent.parent
EACH, EXAMPLES, SECONDS = 20, 1000, 30.0
FEW = 5
TESTS, SESSIONS = 1500, 15


def examine(plant: Plant, seed: int) -> dict[str, Any]:
    """Found by random examples, by guided search, and if by neither, by proving."""
    from certiformer.testing import check_interpretation, find_failure
    from certiformer.testing.check import InterpretationError

    start = time.perf_counter()
    blind = find_failure(plant.claim, plant.domain, examples=EXAMPLES, seed=seed, guided=False)
    guided = find_failure(plant.claim, plant.domain, examples=EXAMPLES, seed=seed)
    spent = time.perf_counter() - start
    found = guided or blind
    certified = None
    if guided is None:
        try:
            result = check_interpretation(
                plant.claim, plant.domain, examples=EXAMPLES, seed=seed, certify=True, seconds=SECONDS
            )
            raise AssertionError(f"a wrong claim is {result.status}: {plant.what}")
        except InterpretationError as error:
            certified = str(error).startswith("refuted")
    return {
        "random": blind is not None,
        "guided": guided is not None,
        "certified": certified,
        "length": len(found.witness.inputs[0]) if found else None,
        "longer": len(found.witness.inputs[0]) - plant.shortest if found else None,
        "seconds": spent,
    }


def overhead() -> tuple[float, float]:
    """User seconds of a pytest session of trivial tests without and with the plugin: the least of several, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        suite, site = Path(folder) / "test_dummy.py", Path(folder) / "site"
        suite.write_text(f"import pytest\n@pytest.mark.parametrize('i', range({TESTS}))\ndef test(i): assert i == i\n")
        info = site / "overhead-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: overhead\nVersion: 0\n")
        (info / "entry_points.txt").write_text("[pytest11]\ncertiformer = certiformer.testing.plugin\n")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{site}"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, str(suite)]
        spent: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(SESSIONS):
            for name, options in (("without", ["-p", "no:certiformer"]), ("with", [])):
                before = os.times()
                subprocess.run([*command, *options], env=environment, check=True, capture_output=True, cwd=folder)
                after = os.times()
                spent[name].append(after.children_user - before.children_user)
        return min(spent["without"]), min(spent["with"])


@dataclass
class Results:
    """What was found of one set of plants. `lengths`, `longer`: of the shrunk inputs, and by how much each is longer
    than the plant's shortest."""

    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    misses: list[tuple[Cell, ...]] = field(default_factory=list)
    found: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def shortest(self) -> list[int]:
        """The true least lengths, of the same plants as `lengths`."""
        return [length - more for length, more in zip(self.lengths, self.longer, strict=True)]


def examine_all(planted: dict[int, list[Plant]]) -> Results:
    """Every plant, by decade."""
    of = Results()
    for decade, here in planted.items():
        results = [examine(plant, seed) for seed, plant in enumerate(here)]
        counts = {name: sum(bool(r[name]) for r in results) for name in ("random", "guided", "certified")}
        met = [r for r in results if r["length"] is not None]
        of.lengths += [r["length"] for r in met]
        of.longer += [r["longer"] for r in met]
        of.found[decade] = {**counts, "planted": len(here)}
        of.misses += [
            (p.what, p.rate, bool(r["certified"])) for p, r in zip(here, results, strict=True) if not r["guided"]
        ]
        middle = statistics.median(r["length"] for r in met) if met else None
        least = statistics.median(r["length"] - r["longer"] for r in met) if met else None
        seconds = statistics.median(r["seconds"] for r in results)
        shown = (counts["random"], counts["guided"], counts["certified"], middle, least, seconds)
        of.rows.append((f"10^-{decade}", len(here), *shown))
        print(f"  {of.rows[-1]}", flush=True)
    return of


COLUMNS = (
    *("failure rate", "planted", "random examples find", "guided search finds", "of the rest refuted by --certify"),
    *("median shrunk length", "median true shortest length", "median s for both searches"),
)


def measure(options: Options) -> Section:
    """All decades, over 64 tokens and over 8, and the plugin's cost."""
    realistic = examine_all(plants(2 if options.quick else EACH))
    few = examine_all(plants(1 if options.quick else FEW, few_tokens=True))
    without, having = overhead()
    return Section(
        "property_testing",
        "Testing interpretations",
        tuple(_figures(realistic, few, without, having)),
        (
            Table(f"Planted wrong interpretations, runs of {EXAMPLES:,} examples.", COLUMNS, tuple(realistic.rows)),
            Table(f"Wrong programs over {FEW_VOCAB} tokens.", COLUMNS, tuple(few.rows)),
            Table(
                "Missed by guided search.",
                ("what", "failure rate", "refuted by --certify"),
                (*realistic.misses, *few.misses),
            ),
        ),
        (
            f"Wrong programs for models over {VOCAB} tokens and lengths up to {LONGEST}; models with one weight "
            f"changed, and circuits with one edge left out, over {SMALL_VOCAB} tokens and lengths up to "
            f"{SMALL_LONGEST}. Over {FEW_VOCAB} tokens and lengths up to {FEW_LONGEST}, what is wrong on one input in "
            "a million is wrong on none with fewer than about 6 tokens. Failure rates and shortest lengths are exact "
            f"counts over all inputs. The plugin's cost: user seconds, least of {SESSIONS} sessions of {TESTS:,} empty "
            "tests each.",
        ),
    )


def _figures(realistic: Results, few: Results, without: float, having: float) -> Iterator[Figure]:
    for decade, target in ((1, 0.95), (2, 0.95), (4, 0.5)):
        counts = realistic.found[decade]
        share = counts["guided"] / max(1, counts["planted"])
        peer = f"random examples: {counts['random']} of {counts['planted']}"
        text = f"{counts['guided']} of {counts['planted']}"
        yield Figure(f"found at 10^-{decade} by guided search", f">= {target:.0%}", text, share >= target, peer)
    misses = [*realistic.misses, *few.misses]
    refuted = sum(bool(row[2]) for row in misses)
    text = f"{refuted} of {len(misses)}"
    yield Figure("missed by testing, refuted by --certify", "all", text, refuted == len(misses))
    for of, what, target_ in (
        (realistic, f"over {VOCAB} tokens", "<= 4 tokens"),
        (few, f"over {FEW_VOCAB} tokens", ""),
    ):
        median = statistics.median(of.lengths) if of.lengths else math.inf
        least = statistics.median(of.shortest) if of.lengths else math.inf
        text = f"{median:g} (true shortest: {least:g})"
        yield Figure(f"median shrunk length, {what}", target_, text, median <= 4 if target_ else None)
        text = f"{of.longer.count(0)} of {len(of.longer)}"
        yield Figure(f"shrunk to the shortest length there is, {what}", "", text, None)
    share = having / without - 1
    text = f"{100 * share:.1f} % ({without:.2f} s, {having:.2f} s)"
    yield Figure("pytest plugin when not certifying", "<= 5 %", text, share <= 0.05)
