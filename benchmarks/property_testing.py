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
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .options import Options
from .report import Cell, Figure, Section, Table

ROOT = Path(__file__).parent.parent
DECADES = (1, 2, 3, 4, 5, 6)
EACH, EXAMPLES, SECONDS = 20, 1000, 60.0
VOCAB, LONGEST = 8, 7
SMALL_VOCAB, SMALL_LONGEST = 5, 5
TESTS, SESSIONS = 1500, 7


@dataclass(frozen=True)
class Plant:
    """A claim that is wrong on a known share of the inputs of its domain (counted on all of them)."""

    what: str
    claim: Any
    domain: Any
    rate: float

    @property
    def decade(self) -> int:
        return round(-math.log10(self.rate))


def plants(each: int) -> dict[int, list[Plant]]:
    """`each` for each decade: faulty weights and circuits as long as there are, up to half; the rest wrong programs."""
    found: dict[int, list[Plant]] = {decade: [] for decade in DECADES}
    for source, limit in ((faulty(), each // 2), (wrong_programs(), each)):
        for plant in source:
            if plant.decade in found and len(found[plant.decade]) < limit:
                found[plant.decade].append(plant)
            if all(len(some) >= limit for some in found.values()):
                break
    return found


def faulty() -> Iterator[Plant]:
    """One weight of a compiled model changed, or one edge of its circuit left out."""
    import torch

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models import change_weight

    rng = np.random.default_rng(0)
    domain = cf.sequences(range(SMALL_VOCAB), range(1, SMALL_LONGEST + 1))
    for name in ("sort", "hist", "most_frequent"):
        entry = LIBRARY[name]
        compiled = cf.compile(entry.build(), vocab=range(SMALL_VOCAB), max_len=SMALL_LONGEST)
        claims = [
            (f"{name} without {e}", cf.Faithful(compiled, compiled.circuit.without([e]), "zero"))
            for e in sorted(compiled.circuit.edges)[:4]
        ]
        parameters = [n for n, p in compiled.model.named_parameters() if bool(p.any())]
        for _ in range(20):
            parameter = parameters[rng.integers(len(parameters))]
            places = compiled.model.parameter(parameter).detach().nonzero().tolist()
            place = tuple(places[rng.integers(len(places))])
            value = float(compiled.model.parameter(parameter).detach()[place])
            changed = change_weight(compiled.model, parameter, place, value * float(rng.choice([0.0, 0.5, -1.0, 0.9])))
            claims.append((f"{name}, {parameter}{list(place)}", cf.Computes(replace(compiled, model=changed))))
        for what, claim in claims:
            wrong = 0
            for n in domain.lengths:
                ids = torch.tensor(list(product(range(SMALL_VOCAB), repeat=n)))
                wrong += int((claim.body.judge((ids,), "float32") == -1).sum())
            if wrong:
                yield Plant(what, claim, domain, wrong / domain.size())


def wrong_programs() -> Iterator[Plant]:
    """A model of `sort` or of the identity, explained by a program that is wrong where a rare condition holds."""
    import certiformer as cf
    from certiformer.compiler.rasp import aggregate, indices, select, selector_width, tokens, where

    domain = cf.sequences(range(VOCAB), range(1, LONGEST + 1))
    words = {n: np.array(list(product(range(VOCAB), repeat=n)), dtype=np.int8) for n in domain.lengths}
    models = [
        (name, cf.compile(program, vocab=range(VOCAB), max_len=LONGEST), program)
        for name, program in (("sort", cf.programs.sort()), ("tokens", tokens))
    ]
    rng = np.random.default_rng(1)
    counted: dict[tuple[int, ...], int] = {}

    def times(t: int) -> Any:
        return selector_width(select(tokens, t, "=="))

    def at(place: int) -> Any:
        return aggregate(select(indices, place, "=="), tokens, -1)

    def column(w: Any, place: int) -> Any:
        return w[:, place] if place < w.shape[1] else np.full(len(w), -1)

    descents = selector_width(select(tokens, tokens, ">") & select(indices, indices, "<"))
    kinds = selector_width(select(tokens, tokens, "==") & select(indices, indices, "<"))
    while True:
        a, b = (int(x) for x in rng.choice(VOCAB, 2, replace=False))
        k = int(rng.integers(2, 8))
        chosen = sorted(int(p) for p in rng.choice(LONGEST, int(rng.integers(1, 8)), replace=False))
        values = [int(v) for v in rng.integers(VOCAB, size=len(chosen))]
        here: Any = at(chosen[0]) == values[0]
        for place, value in zip(chosen[1:], values[1:], strict=True):
            here = here & (at(place) == value)
        options: list[tuple[str, Any, Any, tuple[int, ...]]] = [
            (f"{a} at least {k} times", times(a) >= k, lambda w, a=a, k=k: (w == a).sum(1) >= k, (k,)),
            (
                f"{a} {k} times and {b} after it twice",
                (times(a) == k) & (times(b) == min(2, LONGEST - k)),
                lambda w, a=a, b=b, k=k: ((w == a).sum(1) == k) & ((w == b).sum(1) == min(2, LONGEST - k)),
                (k,),
            ),
            (
                f"{values} at {chosen}",
                here,
                lambda w, c=tuple(chosen), v=tuple(values): np.all(
                    [column(w, p) == x for p, x in zip(c, v, strict=True)], axis=0
                ),
                (len(chosen), chosen[-1]),
            ),
            (
                f"a token with {k} greater ones before it",
                descents >= k,
                lambda w, k=k: np.max([(w[:, :i] > w[:, i : i + 1]).sum(1) for i in range(w.shape[1])], axis=0) >= k,
                (k,),
            ),
            (
                f"a token for the {k}th time, first {a}",
                (kinds >= k - 1) & (at(0) == a),
                lambda w, a=a, k=k: (
                    (np.max([(w[:, :i] == w[:, i : i + 1]).sum(1) for i in range(w.shape[1])], axis=0) >= k - 1)
                    & (w[:, 0] == a)
                ),
                (k,),
            ),
        ]
        kind = int(rng.integers(len(options)))
        what, condition, holds, key = options[kind]
        if (kind, *key) not in counted:  # how many, which tokens they are does not change
            counted[kind, *key] = sum(int(holds(w).sum()) for w in words.values())
        if wrong := counted[kind, *key]:
            name, compiled, program = models[int(rng.integers(2))]
            claim = cf.Computes(compiled, where(condition, VOCAB - 1 - program, program))
            yield Plant(f"{name}, wrong with {what}", claim, domain, wrong / domain.size())


def examine(plant: Plant, seed: int) -> dict[str, Any]:
    """Found by random examples, by guided search, and if by neither, by proving."""
    import certiformer as cf
    from certiformer.testing import find_failure

    start = time.perf_counter()
    blind = find_failure(plant.claim, plant.domain, examples=EXAMPLES, seed=seed, guided=False)
    guided = find_failure(plant.claim, plant.domain, examples=EXAMPLES, seed=seed)
    spent = time.perf_counter() - start
    found = guided or blind
    certified = None
    if guided is None:
        verdict = cf.prove(plant.claim, plant.domain, seconds=SECONDS)
        certified = isinstance(verdict, cf.Refuted)
        assert not isinstance(verdict, cf.Proved), f"a wrong claim is proved: {plant.what}"
    return {
        "random": blind is not None,
        "guided": guided is not None,
        "certified": certified,
        "length": len(found.witness.inputs[0]) if found else None,
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


def measure(options: Options) -> Section:
    """All decades, and the plugin's cost."""
    each = 2 if options.quick else EACH
    rows: list[tuple[Cell, ...]] = []
    lengths: list[int] = []
    misses: list[tuple[Cell, ...]] = []
    found: dict[int, dict[str, int]] = {}
    for decade, planted in plants(each).items():
        results = [examine(plant, seed) for seed, plant in enumerate(planted)]
        counts = {name: sum(bool(r[name]) for r in results) for name in ("random", "guided", "certified")}
        here = [r["length"] for r in results if r["length"] is not None]
        lengths += here
        found[decade] = {**counts, "planted": len(planted)}
        misses += [
            (p.what, p.rate, bool(r["certified"])) for p, r in zip(planted, results, strict=True) if not r["guided"]
        ]
        median = statistics.median(here) if here else None
        seconds = statistics.median(r["seconds"] for r in results)
        rows.append(
            (f"10^-{decade}", len(planted), counts["random"], counts["guided"], counts["certified"], median, seconds)
        )
        print(f"  {rows[-1]}", flush=True)
    without, having = overhead()
    return Section(
        "property_testing",
        "Testing interpretations",
        tuple(_figures(found, lengths, misses, without, having)),
        (
            Table(
                f"Planted wrong interpretations, runs of {EXAMPLES:,} examples.",
                (*("failure rate", "planted", "random examples find", "guided search finds"),)
                + ("of the rest refuted by --certify", "median shrunk length", "median s for both searches"),
                tuple(rows),
            ),
            Table("Missed by guided search.", ("what", "failure rate", "refuted by --certify"), tuple(misses)),
        ),
        (
            f"Wrong programs for models over {VOCAB} tokens and lengths up to {LONGEST}; models with one weight "
            f"changed, and circuits with one edge left out, over {SMALL_VOCAB} tokens and lengths up to "
            f"{SMALL_LONGEST}. Failure rates are counted over all inputs. The plugin's cost: user seconds, least of "
            f"{SESSIONS} sessions of {TESTS:,} empty tests each.",
        ),
    )


def _figures(
    found: dict[int, dict[str, int]], lengths: list[int], misses: list[tuple[Cell, ...]], without: float, having: float
) -> Iterator[Figure]:
    for decade, target in ((1, 0.95), (2, 0.95), (4, 0.5)):
        counts = found[decade]
        share = counts["guided"] / max(1, counts["planted"])
        peer = f"random examples: {counts['random']} of {counts['planted']}"
        text = f"{counts['guided']} of {counts['planted']}"
        yield Figure(f"found at 10^-{decade} by guided search", f">= {target:.0%}", text, share >= target, peer)
    refuted = sum(bool(row[2]) for row in misses)
    text = f"{refuted} of {len(misses)}"
    yield Figure("missed by testing, refuted by --certify", "all", text, refuted == len(misses))
    median = statistics.median(lengths) if lengths else math.inf
    yield Figure("median shrunk length", "<= 4 tokens", f"{median:g}", median <= 4)
    share = having / without - 1
    text = f"{100 * share:.1f} % ({without:.2f} s, {having:.2f} s)"
    yield Figure("pytest plugin when not certifying", "<= 5 %", text, share <= 0.05)
