"""Operations of engine `counting` and of the checker's rule `count`, counted where their work is done.

Multiply-adds of products of matrices and of polynomials (as if multiplied term by term; the library does less), and
otherwise numbers computed, several for an entry of a table. The parts that are not counted (labels' automata, JSON)
are of the order of the tokens squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from .trained import counted

EXP = 20
"""Numbers computed for an exponential."""
TERMS = 9
"""And for a term of the separable sign test: differences, their errors, the choice of an end, the product."""


def product_steps(steps: Any, moves: Any, room: int) -> int:
    """Multiply-adds of counting words by their sums from 0 to `room`: steps [position, token], all at least 0."""
    total, length = int(steps.size), 1
    for row in steps:
        widest = 0
        for *_, tokens in moves:
            here = row[tokens]
            widest = max(widest, int(here[here <= room].max(initial=0)))
            total += len(tokens) + length * min(widest + 1, room + 1)
        length = min(room + 1, length + widest)
    return total


@contextmanager
def counted_counting() -> Iterator[dict[str, int]]:
    """`proof_ops` and `check_ops` of what runs while it is entered."""
    from certiformer.proofs import counting as checking
    from certiformer.proofs import tilting as checked_tilting
    from certiformer.proofs.count_tables import Tables
    from certiformer.verifier import counting, tilting
    from certiformer.verifier.first_layer import FirstLayer

    more = {"proof_ops": 0, "check_ops": 0}

    def patch(owner: Any, name: str, side: str, cost: Callable[..., int]) -> Any:
        original = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            more[side] += cost(found, *args)
            return found

        return mock.patch.object(owner, name, run)

    def of_words(found: int, arrows: Any, table: Any, bound: int) -> int:
        low = table.min(axis=1, initial=np.iinfo(np.int64).max)
        room = bound - int(low.sum())
        return int(table.size) if room < 0 else product_steps(table - low[:, None], arrows.moves, room)

    def of_checked(found: int, words: Any, rest: Any, own: Any, exponent: int) -> int:
        terms = checking._integers(rest, exponent, len(rest) + 1)
        low = terms.min(axis=1) if len(terms) else np.zeros(0, dtype=np.int64)
        room = -int(checking._integers(own, exponent, len(rest) + 1)) - int(low.sum())
        size = 5 * int(rest.size)
        return size if room < 0 else size + product_steps(terms - low[:, None], words.moves, room)

    def of_shares(found: Any, table: Any, digits: Any) -> int:
        each = table.rest.shape[1] * (EXP + 2) + 2 * EXP + 3 * len(table.moves) * table.steps
        return int(digits.size) * each

    def of_failing(found: int, words: Any, terms: Any, theta: Any, m: int) -> int:
        return int(terms.rest.size) * (EXP + 2) + len(theta) * (2 * EXP + 3 * len(terms.moves) * m)

    def of_terms(found: Any, *args: Any) -> int:
        return TERMS * int(found.rest.size)

    def of_pair(found: tuple[Any, Any], *args: Any) -> int:
        return TERMS * int(found[0].size)

    def of_tables(found: None, tables: Any, *args: Any) -> int:
        return (2 * EXP + 8) * int(tables.low.size) + 4 * int(tables.value.mid.size)

    patches = (
        patch(FirstLayer, "below", "proof_ops", of_pair),
        patch(counting.Arrows, "least", "proof_ops", lambda found, arrows, tables: 2 * int(tables.size)),
        patch(counting, "rounded_down", "proof_ops", lambda found, *args: 4 * int(found.size)),
        patch(counting.Arrows, "count_not_above", "proof_ops", of_words),
        patch(tilting._Coarse, "maxima", "proof_ops", lambda found, *args: int(found.size)),
        patch(tilting._Coarse, "table", "proof_ops", of_terms),
        patch(tilting._Table, "shares", "proof_ops", of_shares),
        patch(Tables, "__init__", "check_ops", of_tables),
        patch(Tables, "_weighted", "check_ops", of_pair),
        patch(checking, "_least", "check_ops", lambda found, words, rest, own: 4 * int(rest.size)),
        patch(checking, "_not_above", "check_ops", of_checked),
        patch(checked_tilting._Coarse, "maxima", "check_ops", lambda found, *args: sum(int(x.size) for x in found)),
        patch(checked_tilting._Coarse, "terms", "check_ops", of_terms),
        patch(checked_tilting, "_failing", "check_ops", of_failing),
    )
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        counts = stack.enter_context(counted())
        yield more
    for side, count in counts.items():
        more[side] += count
