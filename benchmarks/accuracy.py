"""Accuracy of trained max-of-K models: what is proved of it, beside what is sampled or enumerated."""

from __future__ import annotations

from typing import Any

from .counting_operations import counted_counting
from .options import Options
from .report import Cell, Figure, Section, Table, Watch, scaled
from .trained import checked_again, operations_each

MODELS = (
    *(f"max-of-4/{seed}" for seed in range(5)),
    "max-of-5/0",
    *(f"max-of-10/{seed}" for seed in range(3)),
    "max-of-20/0",
    "max-of-20-vocab-512/0",
)
COUNTED = ("max-of-4/0", "max-of-5/0", "max-of-10/0", "max-of-20/0")
"""Of these the operations are counted, in a second run that is not timed."""
PEER = {4: "0.96 (cubic)", 5: "", 10: "0.87 to 0.94", 20: "0.87 to 0.94"}


def prove_accuracy(name: str) -> dict[str, Any]:
    """The bounds that counting finds for one model, and the checker's verdict on their certificate."""
    import certiformer as cf
    from certiformer.models import zoo

    found = zoo.load(name)
    task = found.task
    watch = Watch()
    bounds = cf.accuracy_bounds(found.model, task, seconds=600)
    row: dict[str, Any] = dict(zip(("prove_s", "prove_cpu_s"), watch.read(), strict=True))
    row |= {"low": float(bounds.low), "high": float(bounds.high)}
    row |= {"known": found.card.accuracy.correct / found.card.accuracy.total, "exact": found.card.accuracy.exact}
    row |= {"length": task.max_len, "tokens": len(task.vocab), "sum": bounds.total == task.domain.size()}
    row |= checked_again(bounds.certificate, found.model, task.domain)
    row["brute_ops"] = operations_each(found.model, task) * task.domain.size()
    if name in COUNTED:
        with counted_counting() as counts:
            cf.accuracy_bounds(found.model, task, seconds=600)
        row |= counts
    return row


def measure(options: Options) -> Section:
    """All max-of-K models of one layer and one head."""
    rows: list[tuple[Cell, ...]] = []
    found = {}
    for name in MODELS[:-1:4] if options.quick else MODELS:
        row = found[name] = prove_accuracy(name)
        rows.append(
            (
                *(name, f"{row['tokens']}^{row['length']}", f"{row['low']:.6f}", f"{row['high']:.6f}"),
                *(f"{row['known']:.6f}", "all inputs" if row["exact"] else "sampled"),
                *(round(row[key], 2) for key in ("prove_s", "prove_cpu_s", "check_s", "check_cpu_s")),
                *(row["checked"], row["bytes"]),
                *(scaled(row[key]) if key in row else "" for key in ("proof_ops", "check_ops", "brute_ops")),
                PEER[row["length"]] if row["tokens"] == 64 else "none",
            )
        )
        print(f"  {rows[-1]}", flush=True)
    columns = (
        *("model", "inputs", "at least", "at most", "true or sampled", "how", "prove s (with check)", "CPU s"),
        *("check s", "CPU s", "checker", "certificate bytes", "operations, prover", "checker", "float32 run, all"),
        "compact proofs (published)",
    )
    note = (
        "At least, at most: proved bounds of the share of all inputs that the model labels rightly, in real semantics. "
        "Published figures are of models of the same shape, trained by others (Gross et al., 2024). Operations: "
        "multiply-adds of products of matrices and polynomials, and numbers computed otherwise; of the float32 run of "
        "all inputs, calculated from one batch. Counted in a second run, of some of the models."
    )
    table = Table("Max-of-K.", columns, tuple(rows))
    return Section("accuracy", "Accuracy of trained models", _figures(found), (table,), (note,))


def _figures(found: dict[str, dict[str, Any]]) -> tuple[Figure, ...]:
    """The targets, and what was reached."""
    four = [row for row in found.values() if row["length"] == 4]
    long = [row for row in found.values() if row["length"] > 4 and row["tokens"] == 64]
    wide = [row for row in found.values() if row["tokens"] == 512]
    ratio = min(row["low"] / row["known"] for row in four)
    gap = max((row["known"] - row["low"] for row in long), default=0.0)
    width = max((row["high"] - row["low"] for row in long), default=0.0)
    valid = sum(row["checked"] == "Valid" and row["sum"] for row in found.values())
    slow, slowest = (max((row["prove_s"] for row in rows), default=0.0) for rows in (four, long))
    busy, busiest = (max((row["prove_cpu_s"] for row in rows), default=0.0) for rows in (four, long))
    figures = [
        Figure("max-of-4, proved / true accuracy, worst seed", ">= .9999", f"{ratio:.6f}", ratio >= 0.9999, "0.96"),
        Figure("max-of-4, time with check, worst", "<= 2 s", f"{slow:.1f} s ({busy:.1f} s CPU)", slow <= 2),
        Figure("max-of-5, 10, 20: sampled - proved, worst", "<= .002", f"{gap:.5f}", gap <= 0.002, ".06 to .13"),
        Figure("max-of-5, 10, 20: width of the interval, worst", "<= .003", f"{width:.5f}", width <= 0.003),
        Figure(
            "max-of-5, 10, 20: time with check, worst",
            "<= 30 s",
            f"{slowest:.1f} s ({busiest:.1f} s CPU)",
            slowest <= 30,
        ),
        Figure(
            "max-of-4: operations, prover + checker, first seed",
            "reported",
            f"{scaled(four[0]['proof_ops'])} + {scaled(four[0]['check_ops'])}",
            None,
            "3.5e7 (cubic), 8.8e11 (brute force)",
            f"{scaled(four[0]['brute_ops'])} (float32)",
        ),
        Figure("certificates valid", "all", f"{valid} of {len(found)}", valid == len(found), "no certificates"),
    ]
    for row in wide:
        gap, ratio = row["known"] - row["low"], row["check_s"] / row["prove_s"]
        figures += [
            Figure("vocabulary 512, K = 20: sampled - proved", "<= .005", f"{gap:.5f}", gap <= 0.005, "none"),
            Figure(
                "the same: time with check",
                "<= 10 min",
                f"{row['prove_s']:.0f} s ({row['prove_cpu_s']:.0f} s CPU)",
                row["prove_s"] <= 600,
                "none",
            ),
            Figure("the same: check, against proof time", "<= 2x", f"{ratio:.2f}x", ratio <= 2),
            Figure("the same: certificate", "<= 5 MB", f"{row['bytes'] / 1e6:.1f} MB", row["bytes"] <= 5e6),
        ]
    return tuple(figures)
