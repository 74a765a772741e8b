"""Claims about programs: mutants against enumeration, the library against its specifications."""

from __future__ import annotations

import random
import time
from itertools import product
from typing import Any

MUTANTS = 500
CHUNK = 25
SECONDS = 900.0
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
