"""Compiled models beside the interpreter: every input of small domains, 10^5 random ones of large domains."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .isolation import Failure, Kept
from .library import sizes
from .options import Options
from .report import Cell, Figure, Section, Table

EXHAUSTIVE = 10**6
SAMPLES = 10**5
INTERPRETED = 200
SMALL_VOCAB = 4
BATCH = 2048
SECONDS = 3600.0
MODEL = tuple(f"models/{name}.py" for name in ("transformer", "execution", "program", "codec", "config"))
SOURCES = ("compiler", *MODEL, "benchmarks/agreement.py")


def small_size(name: str, limit: int) -> tuple[tuple[Any, ...], int]:
    """The largest length at which a small vocabulary has at most `limit` inputs."""
    from certiformer.compiler.programs import LIBRARY

    entry = LIBRARY[name]
    vocab, longest, total = entry.vocab(min(SMALL_VOCAB, entry.max_vocab or SMALL_VOCAB)), 0, 0
    bound = entry.max_len or sizes(name)[1]
    while longest < bound and total + len(vocab) ** (longest + 1) <= limit:
        longest += 1
        total += len(vocab) ** longest
    return vocab, max(longest, 1)


def compare(name: str, exhaustive: bool, inputs: int) -> dict[str, Any]:
    """Differences between model, core evaluator, interpreter and the reference in plain Python, for one program."""
    import torch

    import certiformer as cf
    from certiformer.compiler.core_evaluator import BatchEvaluator
    from certiformer.compiler.programs import LIBRARY

    entry = LIBRARY[name]
    vocab, max_len = small_size(name, inputs) if exhaustive else sizes(name)
    program = entry.build()
    compiled = cf.compile(program, vocab=vocab, max_len=max_len, causal=entry.causal, name=name)
    domain = cf.sequences(compiled.vocab, range(1, max_len + 1))
    evaluate, values = BatchEvaluator(compiled.core), compiled.core.value_node(compiled.core.output).values
    if exhaustive:
        batches = domain.batches(BATCH)
    else:
        rng = np.random.default_rng(1)
        lengths = np.bincount(rng.integers(1, max_len + 1, size=inputs), minlength=max_len + 1)
        batches = (
            domain.sample_length(rng, n, min(BATCH, int(count) - start))
            for n, count in enumerate(lengths)
            for start in range(0, int(count), BATCH)
        )
    count = differing = 0
    first: str | None = None
    model_s = 0.0
    interpreted: list[list[Any]] = []
    for words in batches:
        expected = evaluate(words)[compiled.core.output]
        start = time.perf_counter()
        with torch.no_grad():
            logits = compiled.model(compiled.codec.with_bos(torch.from_numpy(np.ascontiguousarray(words))))
            got = compiled.codec.decode_indices(logits).numpy()
        model_s += time.perf_counter() - start
        count += len(words)
        wrong = _wrong(got, expected, compiled.codec.outputs, values)
        differing += int(wrong.sum())
        if first is None and wrong.any():
            row = words[int(np.argmax(wrong))]
            first = repr([compiled.vocab[int(t)] for t in row])
        if len(interpreted) < 10 * INTERPRETED:
            interpreted += [[compiled.vocab[int(t)] for t in row] for row in words[:: max(1, len(words) // 20)]]
    chosen = interpreted[:: max(1, len(interpreted) // INTERPRETED)]
    slow = 0
    for xs, outputs in zip(chosen, compiled.run_batch(chosen), strict=True):
        expected_values = cf.evaluate(program, xs, causal=entry.causal)
        index = evaluate(np.array([[compiled.vocab.index(x) for x in xs]]))[compiled.core.output][0]
        quick = [values[int(i)] if i >= 0 else "undefined" for i in index]
        if not (expected_values == quick == outputs == entry.reference(xs)):
            slow += 1
            first = first or f"{xs!r}: interpreter {expected_values!r}, core {quick!r}, model {outputs!r}"
    return {
        "vocab": len(vocab),
        "max_len": max_len,
        "inputs": count,
        "differing": differing,
        "interpreted": len(chosen),
        "interpreted_differing": slow,
        "first": first,
        "per_second": count / model_s,
    }


def _wrong(got: Any, expected: Any, outputs: tuple[Any, ...], values: tuple[Any, ...]) -> Any:
    """bool [batch]: some position differs, as values; an undefined value (-1) differs from everything."""
    index = {value: i for i, value in enumerate(outputs)}
    table = np.array([*(index.get(value, -1) for value in values), -1])
    return (table[expected] != got).any(axis=1)


def measure(options: Options) -> Section:
    """All programs, on a small domain and on the large one."""
    from certiformer.compiler.programs import LIBRARY

    names = options.programs or (tuple(LIBRARY)[::8] if options.quick else tuple(LIBRARY))
    limit, samples = (10**4, 10**3) if options.quick else (EXHAUSTIVE, SAMPLES)
    tasks = [(name, exhaustive, limit if exhaustive else samples) for name in names for exhaustive in (True, False)]
    kept = Kept("agreement", SOURCES)
    rows: list[tuple[Cell, ...]] = []
    failed, exact, sampled, slow, differing = [], 0, 0, 0, 0
    for task, row in zip(tasks, kept.each_apart(compare, tasks, SECONDS, options.workers), strict=True):
        if isinstance(row, Failure):
            failed.append((task[0], "all inputs" if task[1] else "random", row.why))
            print(f"  {task[0]}: {row.why}", flush=True)
            continue
        exact, sampled = exact + row["inputs"] * task[1], sampled + row["inputs"] * (not task[1])
        slow += row["interpreted"]
        differing += row["differing"] + row["interpreted_differing"]
        kind = "all" if task[1] else "random"
        rows.append(
            (
                *(task[0], row["vocab"], row["max_len"], kind, row["inputs"], row["differing"], row["interpreted"]),
                *(row["interpreted_differing"], row["per_second"], row["first"] or ""),
            )
        )
        if row["first"]:
            print(f"  {task[0]}: {row['first']}", flush=True)
    kept.forget()
    columns = (
        *("program", "tokens", "length", "which inputs", "inputs", "differing"),
        *("through the interpreter", "differing", "model inputs/s", "first difference"),
    )
    tables = [Table("Model against the program's exact value.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Not compared.", ("program", "inputs", "why"), tuple(failed)))
    text = f"{differing} differences on {exact:,} inputs of complete domains and {sampled:,} random ones"
    figure = Figure(
        "agreement with the interpreter",
        "zero differences",
        text,
        differing == 0 and not failed,
        "13.5 % of random programs wrong",
    )
    notes = (
        "The exact value of an input comes from the batched evaluator of core programs; on "
        f"{slow:,} inputs it was compared with the reference interpreter and the reference function in plain Python.",
    )
    return Section("agreement", "Agreement with the interpreter", (figure,), tuple(tables), notes)
