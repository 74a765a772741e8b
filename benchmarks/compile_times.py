"""Compile time and size beside Tracr's, at the sizes the targets name and over Tracr's library at 10/10."""

from __future__ import annotations

import time
from typing import Any

from .cases import LARGE, SMALL, Case
from .isolation import Failure, each_apart
from .options import Options
from .peer import figures, row_of
from .report import Cell, Figure, Section, Table, median

SECONDS = 120.0
SIZED = ("sort", "sort_freq", "shuffle_dyck2", "nary_sequencemap")
"""The programs whose size has a target."""


def build(case: Case) -> Any:
    """Our program for a case."""
    from certiformer.compiler.programs import LIBRARY

    return LIBRARY[case.program].build()


def compile_one(case: Case) -> dict[str, Any]:
    """First and repeated compilation, in CPU seconds, after a small program has been compiled."""
    import certiformer as cf

    cf.compile(build(Case("length", ("a", "b"), 2)), vocab=("a", "b"), max_len=2)
    times = []
    for _ in range(2):
        start = time.process_time()
        compiled = cf.compile(build(case), vocab=case.vocab, max_len=case.max_len)
        times.append(time.process_time() - start)
    return {
        "first": times[0],
        "again": times[1],
        "parameters": compiled.n_parameters,
        "layers": len(compiled.model.config.layers),
        "d_model": compiled.sizes.d_model,
    }


def measure(options: Options) -> Section:
    """All cases, one after the other."""
    cases = (*LARGE, *SMALL[:4]) if options.quick else (*LARGE, *SMALL)
    found, failed = {}, []
    for case, row in zip(cases, each_apart(compile_one, [(c,) for c in cases], SECONDS), strict=True):
        if isinstance(row, Failure):
            failed.append((case.label, row.why))
        else:
            found[case] = row
    columns = (
        *(
            "program, vocabulary/length",
            "CPU s",
            "again",
            "Tracr CPU s",
            "again",
            "parameters",
            "Tracr's",
            "times fewer",
        ),
        *("layers", "Tracr's", "d_model", "Tracr's"),
    )
    rows = tuple(_row(case, row, row_of(case)) for case, row in found.items())
    tables = [
        Table("CPU seconds, in a fresh process after one small program; `again`: the same once more.", columns, rows)
    ]
    if failed:
        tables.append(Table("Not compiled.", ("program", "why"), tuple(failed)))
    notes = ("The peer: " + figures()[1], "`over` marks a compilation that was stopped.")
    return Section("compile", "Compile time and size", tuple(_figures(found, failed)), tuple(tables), notes)


def _row(case: Case, ours: dict[str, Any], peer: dict[str, Any]) -> tuple[Cell, ...]:
    first: Cell = peer.get("compile_cpu_s", f"over {peer['stopped_s']:g}" if "stopped_s" in peer else None)
    theirs = peer.get("parameters")
    fewer = theirs / ours["parameters"] if theirs else None
    return (
        *(case.label, ours["first"], ours["again"], first, peer.get("compile_again_cpu_s")),
        *(ours["parameters"], theirs, fewer),
        *(ours["layers"], peer.get("layers"), ours["d_model"], peer.get("d_model")),
    )


def _figures(found: dict[Case, dict[str, Any]], failed: list[tuple[str, str]]) -> list[Figure]:
    large = {case: row for case, row in found.items() if case.large}
    figures_list = [Figure("programs that compile", "all", f"{len(found)} of {len(found) + len(failed)}", not failed)]
    for case, row in large.items():
        peer = row_of(case)
        text = f"over {peer['stopped_s']:g} s" if "stopped_s" in peer else _seconds(peer.get("compile_cpu_s"))
        figures_list.append(
            Figure(f"compile {case.label}, CPU", "<= 1 s", f"{row['first']:.3f} s", row["first"] <= 1, text)
        )
    slower, compared = [], 0
    for case, row in found.items():
        least = row_of(case).get("compile_again_cpu_s", row_of(case).get("compile_cpu_s"))
        if least is not None:
            compared += 1
            if row["again"] > least:
                slower.append(f"{case.label} ({row['again']:.3f} s, Tracr {least:.3f} s)")
    text = f"slower on {len(slower)} of {compared}" + (": " + ", ".join(slower) if slower else "")
    figures_list.append(
        Figure("repeated compilation against Tracr's", "never slower", text, not slower if compared else None)
    )
    cold = [c for c, r in found.items() if r["first"] > row_of(c).get("compile_cpu_s", float("inf"))]
    text = f"slower on {len(cold)}" + (": " + ", ".join(c.label for c in cold) if cold else "")
    figures_list.append(Figure("first compilation against Tracr's", "never slower", text, not cold))
    for case, row in large.items():
        theirs = row_of(case).get("parameters")
        if theirs and case.program in SIZED:
            ratio = theirs / row["parameters"]
            text = f"{ratio:.0f}x fewer ({row['parameters']:,})"
            figures_list.append(Figure(f"parameters, {case.label}", ">= 20x fewer", text, ratio >= 20, f"{theirs:,}"))
        if case.program == "sort":
            count = row["parameters"]
            figures_list.append(Figure(f"parameters, {case.label}", "< 0.5 M", f"{count:,}", count < 500_000))
    small = [
        row_of(case)["parameters"] / row["parameters"]
        for case, row in found.items()
        if not case.large and "parameters" in row_of(case)
    ]
    if small:
        text = f"median {median(small):.1f}x, least {min(small):.2f}x"
        figures_list.append(Figure("parameters over Tracr's library at 10/10", "fewer", text, median(small) > 1))
    return figures_list


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"
