"""Claims about programs: mutants against enumeration, the library against its specifications."""

from __future__ import annotations

import random
import statistics
import time
from itertools import product
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, Watch

MUTANTS = 500
CHUNK = 25
SECONDS = 900.0
LIMIT = 60.0
WORDS = 400
"""Mutants are compared on all inputs up to the length at which these are so many, and up to length 5."""


def settings(vocab: tuple[Any, ...]) -> int:
    """The longest length."""
    longest = 1
    while longest < 5 and sum(len(vocab) ** n for n in range(1, longest + 2)) <= WORDS:
        longest += 1
    return longest


def enumerated(program: Any, other: Any, vocab: tuple[Any, ...], longest: int, causal: bool) -> tuple[Any, ...] | None:
    """The first input on which the interpreter gives two programs different values, or one of them none."""
    import certiformer as cf

    for n in range(1, longest + 1):
        for word in product(vocab, repeat=n):
            try:
                left = cf.evaluate(program, list(word), causal=causal)
                right = cf.evaluate(other, list(word), causal=causal)
            except cf.InputError:
                return word
            if any(a != b or (a is None) != (b is None) for a, b in zip(left, right, strict=True)):
                return word
    return None


def mutants(start: int, stop: int, engines: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Mutants number `start` to `stop` - 1: a verdict on their equivalence to the program, beside enumeration's."""
    from tests.program_mutants import mutant

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models.values import canonical_vocab

    names = list(LIBRARY)
    rows = []
    for number in range(start, stop):
        rng = random.Random(number)
        changed = None
        while changed is None:
            entry = LIBRARY[names[rng.randrange(len(names))]]
            program = entry.build()
            changed = mutant(program, rng)
        other, what = changed
        vocab = canonical_vocab(entry.vocab(3))
        longest = settings(vocab)
        expected = enumerated(program, other, vocab, longest, entry.causal)
        began = time.perf_counter()
        claim = cf.Equivalent(program, other, causal=entry.causal)
        verdict = cf.prove(claim, cf.sequences(vocab, range(1, longest + 1)), seconds=60, engines=engines)
        spent = time.perf_counter() - began
        row: dict[str, Any] = {
            "program": entry.name,
            "change": what,
            "seconds": spent,
            "verdict": type(verdict).__name__,
        }
        if isinstance(verdict, cf.Refuted):
            assert not isinstance(verdict.evidence, cf.Certificate)
            row["agrees"] = verdict.evidence.inputs[0] == expected
        elif isinstance(verdict, cf.Proved) or verdict.certificate is not None:  # type: ignore[union-attr]
            row["agrees"] = expected is None
        else:
            row["agrees"] = None
            row["why"] = str(getattr(verdict, "reason", ""))
        row["found"] = str(expected)
        rows.append(row)
    return rows


def specified(names: tuple[str, ...], every_length: bool) -> list[dict[str, Any]]:
    """Library programs against their specifications: vocabulary 8, lengths 1 to 8, or read causally on every length."""
    from tests.program_specifications import SPECIFICATIONS

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY

    rows = []
    for name in names:
        entry = LIBRARY[name]
        row: dict[str, Any] = {"program": name}
        rows.append(row)
        claim = SPECIFICATIONS[name](entry.build(), entry.causal or every_length)
        vocab = entry.vocab(3 if every_length else 8)
        domain: Any = cf.EveryLength(vocab) if every_length else cf.sequences(vocab, range(1, 9))
        watch = Watch()
        verdict = cf.prove(claim, domain, seconds=LIMIT)
        row["wall"], row["cpu"] = watch.read()
        row["verdict"] = type(verdict).__name__
        row["inputs"] = None if every_length else domain.size()
        if isinstance(verdict, cf.Proved):
            began = Watch()
            row["valid"] = isinstance(cf.check(verdict.certificate), cf.Valid)
            row["check"] = began.read()[1]
            row["bytes"] = len(verdict.certificate.to_bytes())
        elif isinstance(verdict, cf.Unknown):
            row["verdict"] = "Z3 alone" if verdict.certificate is not None else "Unknown"
            row["why"] = verdict.reason
    return rows


def measure(options: Options) -> Section:
    """Mutants, then the library on 8 tokens, then on every length."""
    from tests.program_specifications import SPECIFICATIONS

    names = tuple(SPECIFICATIONS)[:6] if options.quick else tuple(SPECIFICATIONS)
    total = 50 if options.quick else MUTANTS
    failed: list[tuple[Cell, ...]] = []

    def gather(function: Any, tasks: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        rows = []
        for task, found in zip(tasks, each_apart(function, tasks, SECONDS, options.workers), strict=True):
            if isinstance(found, Failure):
                failed.append((str(task)[:60], found.why))
            else:
                rows += found
        return rows

    changed = gather(mutants, [(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK)])
    bounded = gather(specified, [((name,), False) for name in names])
    every = [name for name in names if name != "add_decimal"]
    endless = gather(specified, [(tuple(every[first : first + 10]), True) for first in range(0, len(every), 10)])
    return Section(
        "smt",
        "Claims about programs",
        _figures(changed, bounded, endless, len(names)),
        _tables(changed, bounded, endless, failed),
    )


def _figures(
    changed: list[dict[str, Any]], bounded: list[dict[str, Any]], endless: list[dict[str, Any]], count: int
) -> tuple[Figure, ...]:
    agree = [row for row in changed if row["agrees"]]
    wrong = [row for row in changed if row["agrees"] is False]
    proved = [row for row in bounded if row["verdict"] == "Proved" and row["valid"]]
    alone = [row for row in bounded if row["verdict"] == "Z3 alone"]
    always = [row for row in endless if row["verdict"] == "Proved" and row["valid"]]
    refuted = sum(row["verdict"] == "Refuted" for row in changed)
    median = statistics.median(row["cpu"] for row in bounded) if bounded else 0.0
    return (
        Figure(
            "mutated programs: equivalence proved, or refuted by the smallest input, as enumeration says",
            "500 of 500",
            f"{len(agree)} of {len(changed)} ({refuted} refuted), {len(wrong)} wrong",
            len(agree) == len(changed) and not wrong,
            "",
            "all inputs by the interpreter",
        ),
        Figure(
            "library programs against their specifications, 8 tokens, length 1 to 8",
            "all proved, median <= 2 s",
            f"{len(proved) + len(alone)} of {count} ({len(alone)} by Z3 alone), median {median:.2f} s CPU",
            len(proved) + len(alone) == count and median <= 2,
        ),
        Figure(
            "of these, proved by a certificate without holes",
            ">= 90 %",
            f"{len(proved)} of {count}",
            len(proved) >= 0.9 * count,
        ),
        Figure("library programs proved for every length, read causally", ">= 15", f"{len(always)}", len(always) >= 15),
    )


def _tables(
    changed: list[dict[str, Any]],
    bounded: list[dict[str, Any]],
    endless: list[dict[str, Any]],
    failed: list[tuple[Cell, ...]],
) -> tuple[Table, ...]:
    kinds = sorted({(row["verdict"], str(row["agrees"])) for row in changed})
    tallies = tuple((*kind, sum((row["verdict"], str(row["agrees"])) == kind for row in changed)) for kind in kinds)
    rows = tuple(
        (row["program"], row["verdict"], row["inputs"], row["wall"], row["cpu"], row.get("check"), row.get("bytes"))
        for row in sorted(bounded, key=lambda row: str(row["program"]))
    )
    always = tuple(
        (row["program"], row["wall"], row["cpu"], row["bytes"]) for row in endless if row["verdict"] == "Proved"
    )
    tables = [
        Table("Mutants: verdicts, and whether enumeration agrees.", ("verdict", "agrees", "mutants"), tallies),
        Table(
            "The library against its specifications.",
            ("program", "verdict", "inputs", "wall s", "CPU s", "check, CPU s", "bytes"),
            rows,
        ),
        Table("On every length.", ("program", "wall s", "CPU s", "bytes"), always),
    ]
    if failed:
        tables.append(Table("Not measured.", ("task", "why"), tuple(failed)))
    return tuple(tables)
