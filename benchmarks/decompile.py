"""Programs of the library read off the weights of their models again, and programs for trained models."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, median, seconds_text

SMALL, LARGE = (5, 5), (8, 10)
"""Vocabulary and length."""
SECONDS = 30.0
TRAINED = ("max-of-4/0", "max-of-10/1", "bracket-type-12/0", "dyck-1-16/0", "quotes-12/0", "induction-12/0")
TRAINED_SECONDS = 25.0
COLUMNS = (
    *("program", "tokens", "length", "formulas", "tables", "read s", "proof", "proof s", "checked"),
    *("equal to its source", "seconds", "inputs", "enumeration"),
)


def decompile_one(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """One program: compiled, read off the weights, proved of the model, compared with its source."""
    import torch

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.explanations import recover
    from certiformer.verifier.claims import Computes
    from certiformer.verifier.reading import Subject

    entry = LIBRARY[name]
    vocab, max_len = entry.vocab(min(size[0], entry.max_vocab or size[0])), min(size[1], entry.max_len or size[1])
    compiled = cf.compile(entry.build(), vocab=vocab, max_len=max_len, causal=entry.causal, name=name)
    domain = cf.sequences(compiled.vocab, range(1, max_len + 1))
    start = time.perf_counter()
    found = recover(compiled.model, compiled.codec, compiled.alignment, name=name)
    row: dict[str, Any] = {
        "name": name,
        "vocab": len(vocab),
        "max_len": max_len,
        "formulas": found.formulas,
        "tables": found.left_as_tables,
        "read_s": time.perf_counter() - start,
        "inputs": domain.size(),
    }
    start = time.perf_counter()
    subject = Subject(compiled.model, compiled.codec, found.alignment)
    verdict = cf.prove(Computes(subject, found.program), domain, seconds=SECONDS, engines=["composition"])
    row |= {"proof": type(verdict).__name__, "proof_s": time.perf_counter() - start}
    if isinstance(verdict, cf.Proved):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            compiled.model.save(path)
            answer = cf.check(verdict.certificate, path, expect=verdict.claim)
            row["checked"] = type(answer).__name__
    start = time.perf_counter()
    if size == SMALL:
        claim = cf.Equivalent(found.program, entry.build(), causal=entry.causal)
        equal = type(cf.prove(claim, domain, seconds=SECONDS, engines=["enumeration"])).__name__
    else:  # both are what the same weights compute
        source = cf.prove(cf.Computes(compiled), domain, seconds=SECONDS, engines=["composition"])
        both = row["proof"] == "Proved" and isinstance(source, cf.Proved)
        equal = "Proved" if both else f"Unknown ({type(source).__name__})"
    row |= {"equal": equal, "equal_s": time.perf_counter() - start}
    words = compiled.codec.with_bos(torch.from_numpy(domain.sample_length(0, max_len, 256)))
    with torch.no_grad():
        compiled.model(words)
        start = time.perf_counter()
        compiled.model(words)
    row["enumeration_s"] = domain.size() * (time.perf_counter() - start) / len(words)
    return row


def approximate_one(name: str) -> dict[str, Any]:
    """A trained model's program and the share of the inputs on which it is proved right."""
    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.models.cards import load_trained

    trained = load_trained(zoo.path(name))
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name, "inputs": trained.task.domain.size()}
    try:
        found = cf.decompile_trained(trained.model, trained.task, seconds=TRAINED_SECONDS)
    except cf.InputError as error:
        return {**row, "why": str(error)}
    row |= {"kind": found.kind, "seconds": time.perf_counter() - start, "why": found.reason}
    row["states"] = len(found.task.machine.labels) if found.task.machine else 0
    row |= {"differing": found.differing, "compared": found.compared}
    if (bounds := found.agreement) is not None:
        row |= {"low": f"{float(bounds.low):.6f}", "high": f"{float(bounds.high):.6f}", "engine": bounds.engine}
    return row


def measure(options: Options) -> Section:
    """The library at two sizes, then the trained models."""
    from certiformer.compiler.programs import LIBRARY

    names = options.programs or tuple(LIBRARY)[:: 8 if options.quick else 1]
    figures, tables, failed = [], [], []
    for size in (SMALL, LARGE):
        found: list[dict[str, Any]] = []
        tasks = [(name, size) for name in names]
        for name, row in zip(names, each_apart(decompile_one, tasks, 8 * SECONDS, options.workers), strict=True):
            if isinstance(row, Failure):
                failed.append((name, row.why))
                print(f"  {name}: {row.why}", flush=True)
            else:
                found.append(row)
        figures += _figures(size, len(names), found)
        title = f"Vocabulary {size[0]}, lengths 1 to {size[1]} (or what a program takes)."
        tables.append(Table(title, COLUMNS, tuple(map(_row, found))))
    rows = []
    for name, row in zip(TRAINED, each_apart(approximate_one, [(n,) for n in TRAINED], 240, 1), strict=True):
        if isinstance(row, Failure):
            failed.append((name, row.why))
        else:
            rows.append(row)
    tables.append(_trained(rows))
    if failed:
        tables.append(Table("Not measured.", ("case", "why"), tuple(failed)))
    return Section("decompile", "Programs read off the weights", tuple(figures), tuple(tables), (_NOTE,))


_NOTE = (
    "Of a model's alignment only names, values, sites and encodings are used. `proof`: by composition, that the model "
    "computes the program read off its weights, on every input; `checked` by the independent checker. Equal to its "
    "source: at the smaller size by the checker on all words, at the larger one because both are proved of the same "
    "weights. Enumeration: domain size over the model's measured throughput. The machine is shared by several "
    "processes."
)


def _figures(size: tuple[int, int], total: int, found: list[dict[str, Any]]) -> list[Figure]:
    equal = sum(row["equal"] == "Proved" and row["proof"] == "Proved" for row in found)
    valid = sum(row.get("checked") == "Valid" for row in found)
    where = f"vocabulary {size[0]}, lengths 1-{size[1]}"
    hardest = seconds_text(max((row["enumeration_s"] for row in found), default=0.0))
    figures = [
        Figure(
            f"library programs recovered, proved of the model and equal to their source, {where}",
            ">= 90 %",
            f"{equal} of {total}",
            equal >= 0.9 * total,
            "none",
            f"{hardest} for the largest domain",
        ),
        Figure(f"certificates of those proofs valid, {where}", "all", f"{valid} of {total}", valid == total),
    ]
    if found:
        slow = max(found, key=lambda row: row["read_s"])
        text = f"median {median([row['read_s'] for row in found]):.2f} s, worst {slow['read_s']:.2f} s ({slow['name']})"
        figures.append(Figure(f"reading a program off the weights, {where}", "", text, None))
        formulas, left = sum(row["formulas"] for row in found), sum(row["tables"] for row in found)
        text = f"{formulas} of {formulas + left}"
        figures.append(Figure(f"functions and predicates written as formulas, {where}", "", text, None))
    return figures


def _row(row: dict[str, Any]) -> tuple[Cell, ...]:
    keys = (
        "name",
        "vocab",
        "max_len",
        "formulas",
        "tables",
        "read_s",
        "proof",
        "proof_s",
        "checked",
        "equal",
        "equal_s",
    )
    return (*(row.get(key) for key in keys), row["inputs"], seconds_text(row["enumeration_s"]))


def _trained(rows: list[dict[str, Any]]) -> Table:
    columns = ("model", "inputs", "program", "states", "agrees on at least", "at most", "engine", "seconds", "differ")
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        if "kind" not in row:
            cells.append((row["name"], row["inputs"], row["why"][:120], None, None, None, None, None, None))
            continue
        differ = f"{row['differing']} of {row['compared']} run"
        shares = (row.get("low"), row.get("high"), row.get("engine") or row["why"][:80])
        cells.append((row["name"], row["inputs"], row["kind"], row["states"], *shares, row["seconds"], differ))
    return Table(
        "Trained models: a program, and the proved share of the inputs on which it is right.", columns, tuple(cells)
    )
