"""Each program of the library at vocabulary 30, lengths 1 to 50: compiled, proved by composition, the proof checked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, cell, count_text, median, seconds_text

VOCAB, MAX_LEN = 30, 50
SECONDS = 60.0
COLUMNS = (
    *("program", "tokens", "length", "verdict", "compile s", "parameters", "layers", "d_model", "without reuse"),
    *("proof s", "certificate bytes", "check s", "checked", "inputs", "by enumeration"),
)


def sizes(name: str) -> tuple[tuple[Any, ...], int]:
    """The vocabulary and maximal length that a program of the library is measured at."""
    from certiformer.compiler.programs import LIBRARY

    entry = LIBRARY[name]
    return entry.vocab(min(VOCAB, entry.max_vocab or VOCAB)), min(MAX_LEN, entry.max_len or MAX_LEN)


def prove_one(name: str, seconds: float) -> dict[str, Any]:
    """One program from source to checked certificate, in this process."""
    import torch

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY

    entry = LIBRARY[name]
    vocab, max_len = sizes(name)
    start = time.perf_counter()
    compiled = cf.compile(entry.build(), vocab=vocab, max_len=max_len, causal=entry.causal, name=name)
    compile_s = time.perf_counter() - start
    domain = cf.sequences(compiled.vocab, range(1, max_len + 1))
    row: dict[str, Any] = {
        "name": name,
        "vocab": len(vocab),
        "max_len": max_len,
        "compile_s": compile_s,
        "parameters": compiled.n_parameters,
        "layers": len(compiled.model.config.layers),
        "d_model": compiled.sizes.d_model,
        "d_model_without_reuse": compiled.sizes.d_model_without_reuse,
        "inputs": count_text(domain.size()),
    }
    start = time.perf_counter()
    verdict = cf.prove(cf.Computes(compiled), domain, seconds=seconds, engines={"composition"})
    row |= {"proof_s": time.perf_counter() - start, "verdict": type(verdict).__name__}
    words = domain.sample_length(0, max_len, 256)
    ids = compiled.codec.with_bos(torch.from_numpy(words))
    with torch.no_grad():
        compiled.model(ids)
        start = time.perf_counter()
        compiled.model(ids)
    row["enumeration_s"] = float(domain.size()) * (time.perf_counter() - start) / len(words)
    if not isinstance(verdict, cf.Proved):
        return {**row, "why": getattr(verdict, "reason", str(verdict))}
    with tempfile.TemporaryDirectory() as folder:
        certificate, model = Path(folder) / "proof.cert", Path(folder) / "model.safetensors"
        verdict.certificate.save(certificate)
        compiled.save(model)
        row["bytes"] = certificate.stat().st_size
        start = time.perf_counter()
        try:
            answer = cf.check(certificate, model, expect=verdict.claim)
        except Exception as error:  # a checker that crashes is a finding; the proof's row is kept
            return {**row, "checked": "crashed", "why": f"the checker raised {type(error).__name__}: {error}"}
        row |= {"check_s": time.perf_counter() - start, "checked": type(answer).__name__}
        if row["checked"] != "Valid":
            row["why"] = str(answer)
    return row


def measure(options: Options) -> Section:
    """All programs, one after the other."""
    from certiformer.compiler.programs import LIBRARY

    names = options.programs or tuple(LIBRARY)
    if options.quick and not options.programs:
        names = names[::8]
    found, failed = [], []
    tasks = [(name, SECONDS) for name in names]
    for name, row in zip(names, each_apart(prove_one, tasks, 4 * SECONDS, options.workers), strict=True):
        print(f"  {name}: {row.why if isinstance(row, Failure) else _progress(row)}", flush=True)
        if isinstance(row, Failure):
            failed.append((name, row.why))
        else:
            found.append(row)
            if row["verdict"] != "Proved" or row.get("checked") != "Valid":
                failed.append((name, f"{row['verdict']}, checked {row.get('checked', '-')}: {row.get('why', '')}"))
    return _section(names, found, failed)


def _progress(row: dict[str, Any]) -> str:
    check = f", check {row['check_s']:.2f} s: {row['checked']}" if "check_s" in row else ""
    text = f"compile {row['compile_s']:.2f} s, {row['verdict']} in {row['proof_s']:.2f} s{check}"
    return f"{text} {row.get('why', '')[:200]}"


def _section(names: tuple[str, ...], found: list[dict[str, Any]], failed: list[tuple[str, str]]) -> Section:
    proved = [row for row in found if row["verdict"] == "Proved"]
    checked = [row for row in proved if row.get("checked") == "Valid"]
    figures = [
        Figure(
            "library programs proved by composition, vocabulary 30, lengths 1-50",
            "all",
            f"{len(proved)} of {len(names)}",
            len(proved) == len(names),
            "no proofs",
            f"{_hardest(found)} for the largest domain" if found else "",
        ),
        Figure(
            "certificates found valid by the checker",
            "all",
            f"{len(checked)} of {len(names)}",
            len(checked) == len(names),
            "no certificates",
        ),
    ]
    if proved:
        times = [row["proof_s"] for row in proved]
        middle, worst = median(times), max(times)
        figures.append(Figure("proof time, median", "<= 5 s", f"{middle:.2f} s", middle <= 5))
        slow = max(proved, key=lambda row: row["proof_s"])["name"]
        figures.append(Figure("proof time, worst", "<= 60 s", f"{worst:.2f} s ({slow})", worst <= 60))
        biggest = max(proved, key=lambda row: row["bytes"])
        text = f"{biggest['bytes'] / 1e6:.2f} MB ({biggest['name']})"
        figures.append(Figure("certificate, largest", "<= 5 MB", text, biggest["bytes"] <= 5_000_000))
    if checked:
        ratios = [row["check_s"] / row["proof_s"] for row in checked]
        slow = max(checked, key=lambda row: row["check_s"] / row["proof_s"])["name"]
        text = f"median {median(ratios):.2f}x, worst {max(ratios):.2f}x ({slow})"
        figures.append(Figure("certificate check, against proof time", "<= 2x", text, max(ratios) <= 2))
        total = sum(row["check_s"] for row in checked) / sum(row["proof_s"] for row in checked)
        figures.append(Figure("certificate check, all together", "<= 2x", f"{total:.2f}x", total <= 2))
    rows = tuple(_row(row) for row in found)
    tables = [Table("Per program; one thread.", COLUMNS, rows)]
    if found:
        tables.append(_summary(found))
    if failed:
        tables.append(Table("Not proved or not valid.", ("program", "why"), tuple(failed)))
    return Section("library", "Proofs over the library", tuple(figures), tuple(tables), (_NOTE,))


_NOTE = (
    "Proof time is that of `prove(..., engines={'composition'})`, from claim to verdict, the verifier's own re-check "
    "included; check time is that of `check` on the two files. Enumeration: domain size over the model's measured "
    "throughput on one thread."
)


def _row(row: dict[str, Any]) -> tuple[Cell, ...]:
    keys = ("compile_s", "parameters", "layers", "d_model", "d_model_without_reuse", "proof_s", "bytes", "check_s")
    start = (row["name"], row["vocab"], row["max_len"], row["verdict"])
    end = (row.get("checked"), row["inputs"], seconds_text(row["enumeration_s"]))
    return (*start, *(row.get(key) for key in keys), *end)


def _summary(found: list[dict[str, Any]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for key in ("compile_s", "parameters", "layers", "d_model", "d_model_without_reuse", "proof_s", "bytes", "check_s"):
        values = [row[key] for row in found if key in row]
        if values:
            rows.append((key, cell(min(values)), cell(float(median(values))), cell(max(values))))
    return Table("All programs together.", ("what", "least", "median", "greatest"), tuple(rows))


def _hardest(found: list[dict[str, Any]]) -> str:
    return seconds_text(max(row["enumeration_s"] for row in found))
