"""Random formulas in conjunctive normal form, and whether they can be satisfied, by trying all assignments."""

from __future__ import annotations

import itertools
import random

Clauses = list[tuple[int, ...]]


def formulas(number: int) -> list[tuple[int, Clauses]]:
    """How many Booleans, and clauses over 1..count; about half of them can be satisfied."""
    found = []
    for seed in range(number):
        rng = random.Random(seed)
        count = rng.randint(1, 6)
        clauses = [
            tuple(rng.choice([1, -1]) * rng.randint(1, count) for _ in range(rng.randint(1, 3)))
            for _ in range(rng.randint(1, 5 * count))
        ]
        found.append((count, clauses))
    return found


def satisfiable(count: int, clauses: Clauses) -> bool:
    for values in itertools.product([False, True], repeat=count):
        if all(any(values[abs(x) - 1] == (x > 0) for x in clause) for clause in clauses):
            return True
    return False
