"""Four heads, one layer of attention, all tokens free: the least difference of two logits, from both sides."""

from __future__ import annotations

import itertools
import time
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, count_text, seconds_text

CASES: tuple[tuple[int, int, int], ...] = ((8, 6, 0), (8, 6, 1), (8, 6, 2), (32, 12, 0), (32, 12, 1), (32, 12, 2))
"""Vocabulary, length, seed."""
LIMIT = {8: 1.0, 32: 30.0}
GAP = 0.05
SAMPLES = 10_000
SECONDS = 600.0


def random_model(vocab: int, n: int, seed: int) -> Any:
    """One layer of four heads, d_model 32, normal weights: scores of both signs up to 30, logits up to 100."""
    import torch

    from certiformer.models import LayerConfig, Transformer, TransformerConfig

    model = Transformer(TransformerConfig(32, n, vocab, vocab, (LayerConfig(4, 8, 0),), readout="last"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 2.0 / parameter.shape[-2] ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def bound_one(vocab: int, n: int, seed: int) -> dict[str, Any]:
    """The search until the gap is small, beside running all inputs (or a sample) in float32."""
    import torch

    import certiformer as cf
    from certiformer.verifier import worst_case  # noqa: F401  (what is imported when first used is not timed)

    model = random_model(vocab, n, seed)
    codec = cf.Codec(tuple(range(vocab)), False, "categorical", tuple(range(vocab)), max_len=n)
    complete = vocab**n <= 2**20
    if complete:
        words = torch.tensor(list(itertools.product(range(vocab), repeat=n)))
    else:
        words = torch.randint(0, vocab, (SAMPLES, n), generator=torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in words.split(4096)])
    run_s = (time.perf_counter() - start) * vocab**n / len(words)
    difference = logits[:, 0] - logits[:, 1]
    spread, domain = float(difference.max() - difference.min()), cf.sequences(range(vocab), n)
    if not complete:  # both ends by coordinate search
        ends = [cf.least_difference(model, *pair, domain, codec=codec, seconds=1) for pair in ((0, 1), (1, 0))]
        spread = -ends[1].upper - ends[0].upper
    cpu, start = time.process_time(), time.perf_counter()
    found = cf.least_difference(model, 0, 1, domain, codec=codec, gap=GAP * spread, seconds=10 * LIMIT[vocab])
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return {
        "lower": found.lower,
        "upper": found.upper,
        "exact": float(difference.min()) if complete else None,
        "spread": spread,
        "groups": found.groups,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "inputs": vocab**n,
        "run_s": run_s,
        **certificate_of(found),
    }


def certificate_of(found: Any) -> dict[str, Any]:
    """What the checker accepts of a search's lower bound, and what that takes."""
    import certiformer as cf
    from certiformer.verifier.worst_case import certified

    cpu = time.process_time()
    verdict = found.prove()
    check_s = time.process_time() - cpu
    if not isinstance(verdict, cf.Proved):
        return {"proved": None, "check_s": check_s, "bytes": None, "leaves": None, "why": verdict.reason}
    content = verdict.certificate.to_bytes()
    return {
        "proved": certified(verdict),
        "check_s": check_s,
        "bytes": len(content),
        "leaves": content.count(b'["leaf"'),
        "why": "",
    }


def measure(options: Options) -> Section:
    """All cases."""
    cases = CASES[:1] if options.quick else CASES
    rows: list[tuple[Cell, ...]] = []
    failed, worst = [], {8: (0.0, 0.0), 32: (0.0, 0.0)}
    for case, found in zip(cases, each_apart(bound_one, cases, SECONDS), strict=True):
        if isinstance(found, Failure):
            failed.append((*case, found.why))
            continue
        if found["proved"] is None:
            failed.append((*case, found["why"]))
        least = found["upper"] if found["exact"] is None else found["exact"]
        gap = (least - (found["lower"] if found["proved"] is None else found["proved"])) / found["spread"]
        seconds, greatest = worst[case[0]]
        worst[case[0]] = (max(seconds, found["cpu_s"] + found["check_s"]), max(greatest, gap))
        rows.append(
            (
                *(case[0], case[1], case[2], count_text(found["inputs"]), found["lower"], found["upper"]),
                *(found["exact"], 100 * gap, found["groups"], found["wall_s"], found["cpu_s"], found["run_s"]),
                *(found["proved"], found["check_s"], found["leaves"], found["bytes"]),
            )
        )
        print(f"  {rows[-1]}", flush=True)
    figures = []
    for vocab, n in sorted({case[:2] for case in cases}):
        seconds, gap = worst[vocab]
        text = f"{100 * gap:.1f} % in {seconds_text(seconds)} CPU at most, certificate checked"
        against = "exact minimum" if vocab == 8 else "best input found"
        met = not failed and gap <= GAP and seconds <= LIMIT[vocab]
        figures.append(
            Figure(
                f"4 heads, vocabulary {vocab}, length {n}: gap to the {against}, of the margin's range",
                f"<= 5 % in {LIMIT[vocab]:g} s",
                text,
                met,
                "auto_LiRPA: NaN; intervals: 112 times the range",
                seconds_text(max(float(row[-1] or 0) for row in rows if row[0] == vocab)) if rows else "",
            )
        )
    columns = (
        *("tokens", "length", "seed", "inputs", "lower bound", "best input found", "exact minimum", "gap, % of range"),
        *("groups", "wall s", "CPU s", "all inputs in float32, s"),
        *("bound certified", "certificate checked, CPU s", "leaves", "certificate, bytes"),
    )
    tables = [Table("Least of logit 0 - logit 1 over all inputs.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Not bounded, or not certified.", ("tokens", "length", "seed", "why"), tuple(failed)))
    note = (
        "One layer, four heads, d_model 32, random normal weights, read out last. The range is that of all inputs, or "
        "what coordinate search reaches at both ends (at most the true one: the gap's share is not under-stated). "
        "The gap is that of the bound that the independent checker accepts; the time of the figures is that of the "
        "search and the check together."
    )
    return Section("heads", "Four heads, worst case", tuple(figures), tuple(tables), (note,))
