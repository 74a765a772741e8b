"""What a benchmark returns, how it is printed, and RESULTS.md, which is generated from results.json."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
REPORT = HERE / "RESULTS.md"

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Figure:
    """One line of the summary: a figure beside its target, the peer's figure, and what enumeration would cost."""

    what: str
    target: str
    ours: str
    met: bool | None
    peer: str = ""
    enumeration: str = ""


@dataclass(frozen=True)
class Table:
    """Details. Cells are numbers where they are measured, so that results.json can be read by programs."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Section:
    """The result of one benchmark."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


class Watch:
    """Seconds since its making: on the clock, and of this process's CPU time, which a busy machine lengthens less."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure depends on."""
    model = platform.processor() or platform.machine()
    memory = None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        total = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
        memory = round(int(total.split()[1]) / 2**20, 1)
    except (OSError, StopIteration):
        pass
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "z3-solver", "sympy", "python-flint")}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
        "load_before": round(os.getloadavg()[0], 2),
    }


def record(section: Section, *, quick: bool, seconds: float, before: Mapping[str, Any]) -> None:
    """Puts one section into results.json, in place of its former result, and writes RESULTS.md anew."""
    data = load()
    data[section.name] = {
        **asdict(section),
        "date": date.today().isoformat(),
        "quick": quick,
        "seconds": round(seconds, 1),
        "machine": dict(before),
    }
    RESULTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    REPORT.write_text(markdown(data))


def load() -> dict[str, Any]:
    """The recorded sections by name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def show(section: Section) -> str:
    """A section as plain text with aligned columns."""
    blocks = [f"== {section.title} =="]
    for table in section.tables:
        rows = [table.columns, *(tuple(map(cell, row)) for row in table.rows)]
        blocks.append("\n".join([table.title, *_aligned(rows)]))
    rows = [_HEAD, *map(_figure_row, section.figures)]
    blocks.append("\n".join(_aligned(rows)))
    blocks += [f"note: {note}" for note in section.notes]
    return "\n\n".join(blocks) + "\n"


_HEAD = ("what", "target", "measured", "met", "peer", "by enumeration")


def _figure_row(figure: Figure) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[figure.met]
    return (figure.what, figure.target, figure.ours, met, figure.peer, figure.enumeration)


def cell(value: Cell) -> str:
    """A cell as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return value


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def markdown(data: Mapping[str, Any]) -> str:
    """RESULTS.md: the summary, then the details of each section."""
    parts = [
        "# Measurements",
        "Generated by `make bench` (`python -m benchmarks.run`) from results.json; do not edit. The peer is "
        "[Tracr](https://github.com/google-deepmind/tracr), measured by `python -m benchmarks.peer_tracr`.",
        "## Figures to reach",
    ]
    figures = [Figure(**f) for entry in data.values() for f in entry["figures"]]
    parts.append(_markdown_table(_HEAD, [_figure_row(f) for f in figures]))
    for name, entry in data.items():
        box = entry["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in box["versions"].items())
        quick = " --quick" if entry["quick"] else ""
        parts.append(f"## {entry['title']}")
        parts.append(
            f"`python -m benchmarks.run --only {name}{quick}`, {entry['date']}, {entry['seconds']:,} s, on "
            f"{box['cores']} cores of {box['cpu']}, {box['memory_gib']} GiB, {box['system']}, Python {box['python']}, "
            f"{versions}; load before: {box['load_before']}."
            + (" Quick run: fewer cases than the target asks for." if entry["quick"] else "")
        )
        for table in entry["tables"]:
            shown = _markdown_table(table["columns"], [[cell(x) for x in row] for row in table["rows"]])
            parts.append(f"{table['title']}\n\n{shown}")
        parts += [f"Note: {note}" for note in entry["notes"]]
    return "\n\n".join(parts) + "\n"


# Words for figures


def scaled(number: float) -> str:
    """A large number by its order."""
    return f"{number:.2g}"


def seconds_text(seconds: float) -> str:
    """A duration in a unit that can be grasped."""
    year = 365.25 * 86400
    for unit, size in (("years", year), ("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"10^{len(f'{count:.0f}') - 1} {unit}" if count >= 10**5 else f"{count:,.0f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def count_text(count: int) -> str:
    """A possibly huge count."""
    return f"{count:,}" if count < 10**9 else f"10^{len(str(count)) - 1}"


def median(values: Sequence[float]) -> float:
    """The middle value; of two, the mean."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
