"""Causal abstraction of the library's programs for all pairs of inputs, one composition for each s-op exchanged."""

from __future__ import annotations

import statistics
from typing import Any

from .isolation import Failure, Kept
from .options import Options
from .report import Cell, Figure, Section, Table

VOCAB, LENGTH, SECONDS = 20, 20, 600.0


def abstracted(name: str, vocab: int, length: int) -> dict[str, Any]:
    """The verdicts of one program, s-op by s-op: by composition, and where that leaves it open by a search."""
    import time

    import certiformer as cf
    from certiformer.compiler import programs
    from certiformer.verifier.claims import Claim

    entry = programs.LIBRARY[name]
    longest = min(length, entry.max_len or length)
    tokens = entry.vocab(min(vocab, entry.max_vocab or vocab))
    compiled = cf.compile(entry.build(), vocab=tokens, max_len=longest, causal=entry.causal)
    domain = cf.sequences(compiled.codec.vocab, range(1, longest + 1))
    pairs = sum(domain.size(n) ** 2 for n in domain.lengths)
    found: dict[str, Any] = {"parts": 0, "proved": 0, "refuted": 0, "open": [], "seconds": 0.0, "pairs": float(pairs)}
    try:
        claim = cf.Abstracts(compiled)
    except cf.InputError:  # a program without an s-op that a component computes
        return found
    start = time.perf_counter()
    whole = cf.prove(claim, domain, seconds=SECONDS, engines={"composition"})
    parts: tuple[Any, ...] = getattr(claim.body, "parts", (claim.body,))
    for part in parts:
        verdict = whole
        if not isinstance(whole, cf.Proved):
            verdict = cf.prove(Claim("forall", part), domain, seconds=SECONDS / 10, engines={"composition", "refute"})
        found["proved"] += isinstance(verdict, cf.Proved)
        found["refuted"] += isinstance(verdict, cf.Refuted)
        if isinstance(verdict, cf.Unknown):
            found["open"].append(part.name)
    return {**found, "parts": len(parts), "seconds": time.perf_counter() - start}


def measure(options: Options) -> Section:
    """The whole library, or the programs named."""
    from certiformer.compiler.programs import LIBRARY

    names = list(options.programs or LIBRARY)[: 12 if options.quick else None]
    vocab, length = (5, 5) if options.quick else (VOCAB, LENGTH)
    cases = [(name, vocab, length) for name in names]
    rows: list[tuple[Cell, ...]] = []
    decided, total, seconds = 0, 0, []
    for name, found in zip(
        names, Kept("abstraction").each_apart(abstracted, cases, 3 * SECONDS, options.workers), strict=True
    ):
        if isinstance(found, Failure):
            rows.append((name, None, None, None, str(found), None))
            total += 1
            continue
        total += found["parts"]
        decided += found["proved"] + found["refuted"]
        seconds.append(found["seconds"])
        rows.append(
            (name, found["parts"], found["proved"], found["refuted"], ", ".join(found["open"]), found["seconds"])
        )
        print(f"  {rows[-1]}", flush=True)
    text = f"{decided} of {total} s-ops of {len(names)} programs, median {statistics.median(seconds):.2g} s a program"
    figure = Figure(
        f"interchange of whole s-ops decided for all pairs, vocabulary {vocab}, length up to {length}",
        "all", text, decided == total, "10 sampled pairs", "more than 10^50 pairs",
    )  # fmt: skip
    head = ("program", "s-ops", "proved", "refuted", "open", "s, check included")
    note = "Every proof is a certificate of rule `interchange` that the independent checker accepted."
    return Section(
        "abstraction", "Causal abstraction for all pairs", (figure,), (Table("programs", head, tuple(rows)),), (note,)
    )
