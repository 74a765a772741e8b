"""2,000 random typed programs: how many are accepted, and whether the accepted ones are compiled rightly."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table

PROGRAMS = 2000
CHUNK = 50
SECONDS = 900.0


def run_chunk(start: int, stop: int) -> list[dict[str, Any]]:
    """Programs with the seeds start..stop-1, each on every input of length 1 to 4 over its three tokens."""
    from tests.random_programs import MAX_LEN, case

    import certiformer as cf
    from certiformer.compiler.lower import CompileError

    rows = []
    for seed in range(start, stop):
        this = case(seed)
        words = [list(xs) for n in range(1, MAX_LEN + 1) for xs in product(this.vocab, repeat=n)]
        row: dict[str, Any] = {"seed": seed, "inputs": len(words)}
        rows.append(row)
        try:
            compiled = cf.compile(this.program, vocab=this.vocab, max_len=MAX_LEN, causal=this.causal)
        except CompileError as error:
            row |= {"status": "refused", "why": str(error)}
            continue
        except Exception as error:  # a crash is a finding
            row |= {"status": "crashed", "why": f"{type(error).__name__}: {error}", "program": this.text}
            continue
        row["parameters"] = compiled.n_parameters
        try:
            expected = [cf.evaluate(this.program, xs, causal=this.causal) for xs in words]
        except cf.CertiformerError as error:
            row |= {"status": "accepted, not total", "why": str(error), "program": this.text}
            continue
        got = compiled.run_batch(words)
        wrong = [i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b]
        row["status"] = "wrong" if wrong else "right"
        if wrong:
            i = wrong[0]
            row |= {"why": f"{words[i]}: interpreter {expected[i]}, model {got[i]}", "program": this.text}
    return rows


def measure(options: Options) -> Section:
    """All seeds."""
    total = 100 if options.quick else PROGRAMS
    tasks = [(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
    rows: list[dict[str, Any]] = []
    failed = []
    for task, found in zip(tasks, each_apart(run_chunk, tasks, SECONDS, options.workers), strict=True):
        if isinstance(found, Failure):
            failed.append((f"seeds {task[0]} to {task[1] - 1}", found.why))
        else:
            rows += found
    counts = Counter(row["status"] for row in rows)
    accepted = counts["right"] + counts["wrong"] + counts["accepted, not total"]
    share = accepted / total
    figures = (
        Figure("random typed programs accepted", ">= 95 %", f"{100 * share:.1f} % of {total:,}", share >= 0.95),
        Figure(
            "accepted programs whose model equals the interpreter on every input of length <= 4 over 3 tokens",
            "100 %",
            f"{counts['right']:,} of {accepted:,}",
            counts["right"] == accepted and not failed,
            "86.5 % (of random programs)",
        ),
        Figure(
            "crashes of the compiler", "0", str(counts["crashed"] + len(failed)), not counts["crashed"] and not failed
        ),
    )
    reasons = Counter(_reason(row["why"]) for row in rows if row["status"] == "refused")
    refused: tuple[tuple[Cell, ...], ...] = tuple((text, count) for text, count in reasons.most_common(30))
    strange = [row for row in rows if row["status"] not in ("right", "refused")]
    listed = tuple((row["seed"], row["status"], row["why"][:300], row.get("program", "")[:400]) for row in strange[:30])
    tables = [Table("Outcomes.", ("status", "programs"), tuple(sorted(counts.items())))]
    if refused:
        tables.append(Table("Why programs are refused.", ("reason", "programs"), refused))
    if listed:
        tables.append(Table("Not right.", ("seed", "status", "what", "program"), listed))
    if failed:
        tables.append(Table("Not run.", ("programs", "why"), tuple(failed)))
    return Section("random_programs", "Random typed programs", figures, tuple(tables))


def _reason(message: str) -> str:
    """A refusal without its numbers, so that like ones are counted together."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = lines[1] if len(lines) > 1 else lines[0]
    return "".join("0" if c.isdigit() else c for c in text)[:160].replace("00", "0")
