"""The forward pass over 1,000 sequences beside Tracr's: one `apply` each, and one jitted batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from .cases import SEQUENCES, SMALL, Case
from .compile_times import build
from .isolation import Failure, each_apart
from .options import Options
from .peer import figures, row_of
from .report import Cell, Figure, Section, Table, median

REPEATS, WARM_UP = 21, 3
SECONDS = 120.0


def run_one(case: Case) -> dict[str, Any]:
    """Median milliseconds for the batch: the model alone, and from lists of tokens to lists of values; by one thread or
    one per core, whichever is faster here."""
    import torch

    import certiformer as cf

    compiled = cf.compile(build(case), vocab=case.vocab, max_len=case.max_len)
    words = cf.sequences(case.vocab, case.max_len).sample(0, SEQUENCES)
    ids = compiled.codec.encode(words)
    found = []
    with torch.no_grad():
        for threads in sorted({1, os.cpu_count() or 1}):
            torch.set_num_threads(threads)
            model, tokens = _median_ms(lambda: compiled.model(ids)), _median_ms(lambda: compiled.run_batch(words))
            row = {"model_ms": model[0], "model_cpu_ms": model[1], "tokens_ms": tokens[0], "tokens_cpu_ms": tokens[1]}
            found.append(row | {"threads": threads})
    return min(found, key=lambda row: row["model_ms"])


def _median_ms(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU milliseconds; the first runs are not counted."""
    walls, cpus = [], []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        walls.append(1000 * (time.perf_counter() - wall))
        cpus.append(1000 * (time.process_time() - cpu))
    return median(walls[WARM_UP:]), median(cpus[WARM_UP:])


def measure(options: Options) -> Section:
    """All cases, one after the other."""
    cases = SMALL[:4] if options.quick else SMALL
    rows: list[tuple[Cell, ...]] = []
    failed: list[tuple[Cell, ...]] = []
    applied: list[float] = []
    jit: list[float] = []
    bare: list[float] = []
    cpu: list[float] = []
    for case, row in zip(cases, each_apart(run_one, [(c,) for c in cases], SECONDS), strict=True):
        if isinstance(row, Failure):
            failed.append((case.label, row.why))
            continue
        peer = row_of(case)
        apply = peer["apply_cpu_ms_each"] * SEQUENCES if "apply_cpu_ms_each" in peer else None
        batch = peer.get("jit_ms_batch")
        against_apply = apply / row["tokens_cpu_ms"] if apply else None
        outputs = peer.get("jit_outputs_ms_batch")
        against_jit = batch / row["model_ms"] if batch else None
        in_cpu = peer["jit_cpu_ms_batch"] / row["model_cpu_ms"] if batch else None
        against_outputs = outputs / row["model_ms"] if outputs else None
        applied += [against_apply] if against_apply else []
        jit += [against_jit] if against_jit else []
        cpu += [in_cpu] if in_cpu else []
        bare += [against_outputs] if against_outputs else []
        rows.append(
            (
                *(
                    case.label,
                    row["threads"],
                    row["model_ms"],
                    row["model_cpu_ms"],
                    row["tokens_ms"],
                    row["tokens_cpu_ms"],
                ),
                *(peer.get("apply_cpu_ms_each"), batch, peer.get("jit_cpu_ms_batch"), outputs),
                *(against_apply, against_jit, in_cpu, against_outputs),
            )
        )
    columns = (
        *("program, vocabulary/length", "threads", "model ms", "CPU ms", "tokens to values ms", "CPU ms"),
        *("Tracr apply CPU ms each", "Tracr jitted ms", "CPU ms", "outputs only ms"),
        *("times faster than apply", "than jitted", "in CPU time", "than jitted, outputs only"),
    )
    tables = [Table(f"{SEQUENCES:,} sequences of length 10 over 10 tokens.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Not run.", ("program", "why"), tuple(failed)))
    found = []
    for what, ratios, least, target in (
        ("forward, 1,000 sequences, against Tracr's apply, median", applied, 100, ">= 100x faster"),
        ("forward, 1,000 sequences, against jitted JAX, median", jit, 5, ">= 5x faster"),
        ("the same in CPU time, median", cpu, None, ""),
        ("forward, 1,000 sequences, against JAX jitted for the outputs alone, median", bare, 5, ">= 5x faster"),
    ):
        text = f"{median(ratios):.1f}x (least {min(ratios):.1f}x)" if ratios else "no figures of the peer"
        found.append(Figure(what, target, text, median(ratios) >= least if ratios and least else None, "1x"))
    notes = (
        "The peer: " + figures()[1],
        "Against `apply`: CPU time from lists of tokens to lists of values on both sides.",
        "Against jitted JAX: wall time of the model on token ids, JAX's compilation not counted; Tracr's jitted "
        "forward returns residual streams and scores too, unless asked for the outputs only.",
    )
    return Section("forward", "Forward pass", tuple(found), tuple(tables), notes)
