"""Tracr's library in our RASP, as Tracr writes it (`tracr/compiler/lib.py`), for the sizes of `cases.SCALE`.

What `certiformer.compiler.tracr.from_tracr` makes of Tracr's own expressions, without Tracr (a test compares the two).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from certiformer.compiler.rasp import (
    Map,
    SequenceMap,
    SOp,
    aggregate,
    full,
    indices,
    length,
    linear,
    select,
    selector_width,
    tokens,
)


def reverse() -> SOp:
    opposite = Map(lambda x: x - 1, SequenceMap(lambda x, y: x - y, length, indices))
    return aggregate(select(indices, opposite, "=="), tokens)


def hist() -> SOp:
    return selector_width(select(tokens, tokens, "=="))


def sort_by(values: SOp, keys: SOp) -> SOp:
    """`make_sort_unique`."""
    rank = selector_width(select(keys, keys, "<"))
    return aggregate(select(rank, indices, "=="), values)


def sort(values: SOp, keys: SOp, max_len: int) -> SOp:
    """`make_sort`: equal keys are told apart by their index, as a fraction."""
    return sort_by(values, SequenceMap(lambda x, i: x + Fraction(i, max_len), keys, indices))


def frac_prevs(marks: SOp) -> SOp:
    return aggregate(select(indices, indices, "<="), marks, 0)


def pair_balance(opening: str, closing: str) -> SOp:
    return linear([frac_prevs(tokens == opening), frac_prevs(tokens == closing)], [1, -1])


def shuffle_dyck(pairs: list[str]) -> SOp:
    balances = [pair_balance(pair[0], pair[1]) for pair in pairs]
    negative, zero = balances[0] < 0, balances[0] == 0
    for balance in balances[1:]:
        negative, zero = negative | (balance < 0), zero & (balance == 0)
    some = aggregate(select(indices, indices, "True"), Map(lambda x: x, negative), 0)
    last = aggregate(select(indices, length - 1, "=="), zero)
    return last & Map(lambda x: not x, some)


def shift_by(offset: int, values: SOp) -> SOp:
    return aggregate(select(indices, indices, lambda k, q: q == k + offset), values)


def detect_pattern(pattern: str) -> SOp:
    found: Any = tokens == pattern[0]
    detectors = [tokens == element for element in reversed(pattern)]
    shifted = [d if i == 0 else shift_by(i, d) for i, d in enumerate(detectors)]
    found = shifted.pop()
    while shifted:
        found = found & shifted.pop()
    return found


def nary() -> SOp:
    pair = SequenceMap(lambda x, y: f"{x} {y}", tokens, tokens)
    triple = SequenceMap(lambda x, y: f"{x} {y}", pair, indices)
    return Map(_sum, triple)


def _sum(text: str) -> int:
    x, y, z = map(int, text.split())
    return x + y - z


def library(max_len: int) -> dict[str, Callable[[], SOp]]:
    """Its programs by the names in `cases.py`."""
    return {
        "length": lambda: length,
        "reverse": reverse,
        "hist": hist,
        "sort": lambda: sort(tokens, tokens, max_len),
        "sort_unique": lambda: sort_by(tokens, tokens),
        "sort_freq": lambda: sort(tokens, -1 * hist(), max_len),
        "frac_prevs": lambda: frac_prevs(tokens == "a"),
        "pair_balance": lambda: pair_balance("(", ")"),
        "shuffle_dyck1": lambda: shuffle_dyck(["()"]),
        "shuffle_dyck2": lambda: shuffle_dyck(["()", "{}"]),
        "count": lambda: selector_width(select(tokens, full("a"), "==")),
        "count_less_freq": lambda: selector_width(select(hist(), hist(), lambda x, y: x <= 2)),
        "detect_pattern": lambda: detect_pattern("abc"),
        "shift_by": lambda: shift_by(1, tokens),
        "nary_sequencemap": nary,
    }
