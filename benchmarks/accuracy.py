"""Accuracy of trained max-of-K models: what is proved of it, beside what is sampled or enumerated."""

from __future__ import annotations

import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from .options import Options
from .report import Cell, Figure, Section, Table

MODELS = (
    *(f"max-of-4/{seed}" for seed in range(5)),
    "max-of-5/0",
    *(f"max-of-10/{seed}" for seed in range(3)),
    "max-of-20/0",
)
PEER = {4: "0.96 (cubic)", 5: "", 10: "0.87 to 0.94", 20: "0.87 to 0.94"}
SLACK = 1e-6


def prove_accuracy(name: str) -> dict[str, Any]:
    """What counting proves of one model, rounded down a little; the verdict on that claim, and the checker's."""
    import numpy as np

    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.verifier.accuracy import count_groups

    found = zoo.load(name)
    task = found.task
    assert task.machine is not None
    start = time.perf_counter()
    _, mass = count_groups(found.model, task.machine, np.arange(len(task.vocab)), [task.max_len])
    counted = time.perf_counter() - start
    share = Fraction(int(mass.proved / mass.total / SLACK), int(1 / SLACK))
    start = time.perf_counter()
    verdict = cf.prove(cf.Accuracy(found.model, task, share), task.domain, seconds=600, engines="counting")
    proved = time.perf_counter() - start
    row: dict[str, Any] = {
        "verdict": type(verdict).__name__,
        "share": float(share),
        "count_s": counted,
        "prove_s": proved,
    }
    row |= {"known": found.card.accuracy.correct / found.card.accuracy.total, "exact": found.card.accuracy.exact}
    row |= {"length": task.max_len, "tokens": len(task.vocab), "inputs": task.domain.size()}
    if isinstance(verdict, cf.Proved):
        with tempfile.TemporaryDirectory() as folder:
            certificate, model = Path(folder) / "c", Path(folder) / "m"
            verdict.certificate.save(certificate)
            found.model.save(model)
            start = time.perf_counter()
            checked = cf.check(certificate, model, expect=verdict.claim, domain=task.domain)
            row |= {"check_s": time.perf_counter() - start, "checked": type(checked).__name__}
            row["bytes"] = certificate.stat().st_size
    return row


def measure(options: Options) -> Section:
    """All max-of-K models of one layer and one head."""
    rows: list[tuple[Cell, ...]] = []
    ratios, gaps, slow, invalid = [], [], [], []
    for name in MODELS[::4] if options.quick else MODELS:
        row = prove_accuracy(name)
        rows.append(
            (
                *(name, f"{row['tokens']}^{row['length']}", f"{row['share']:.6f}", f"{row['known']:.6f}"),
                *("all inputs" if row["exact"] else "sampled", row["verdict"], round(row["count_s"], 2)),
                *(round(row["prove_s"], 2), row.get("checked"), round(row.get("check_s", 0.0), 2), row.get("bytes")),
                PEER[row["length"]],
            )
        )
        print(f"  {rows[-1]}", flush=True)
        if row["exact"]:
            ratios.append(row["share"] / row["known"])
        else:
            gaps.append(row["known"] - row["share"])
        slow.append((row["count_s"], row["length"]))
        if row.get("checked") != "Valid":
            invalid.append(name)
    small = max((s for s, n in slow if n == 4), default=0.0)
    large = max((s for s, n in slow if n > 4), default=0.0)
    figures = (
        Figure(
            "max-of-4, proved / true accuracy, worst seed",
            ">= .9999",
            f"{min(ratios):.6f}",
            min(ratios) >= 0.9999,
            "0.96",
        ),
        Figure("max-of-4, time of the count", "<= 2 s", f"{small:.1f} s", small <= 2),
        Figure(
            "max-of-5, 10, 20: sampled - proved, worst", "<= .002", f"{max(gaps):.5f}", max(gaps) <= 0.002, ".06 to .13"
        ),
        Figure("max-of-5, 10, 20: time of the count, worst", "<= 30 s", f"{large:.1f} s", large <= 30),
        Figure(
            "certificates valid", "all", f"{len(rows) - len(invalid)} of {len(rows)}", not invalid, "no certificates"
        ),
    )
    columns = (
        *("model", "inputs", "proved accuracy", "true or sampled", "how", "verdict", "count s"),
        *("prove s (with check)", "checker", "check s", "certificate bytes", "compact proofs (published)"),
    )
    note = (
        "Proved: at least this share of all inputs, in real semantics, rounded down to six digits. Published figures "
        "are of models of the same shape, trained by others (Gross et al., 2024)."
    )
    return Section(
        "accuracy", "Accuracy of trained models", figures, (Table("Max-of-K.", columns, tuple(rows)),), (note,)
    )
