"""Ways of saying things in RASP that many programs share.

They are chosen so that a program compiles small and its facts can be proved: a selector is a conjunction of
comparisons (a disjunction only under `selector_width`), and a key is found by its *rank*: the number of positions
before it in a strict total order of all positions. Ranks are a permutation of 0..n-1, so that
`select(rank, ..., "==")` selects at most one key. They count to the right too: these programs are not for causal
attention, even where their result depends on the left only.
"""

from __future__ import annotations

from ..core import Value
from ..rasp import Selector, SOp, aggregate, full, indices, length, select, selector_width, tokens

before = select(indices, indices, "<")
"""Keys strictly to the left of the query."""

up_to = select(indices, indices, "<=")
"""Keys to the left of the query, and the query itself."""

after = select(indices, indices, ">")
"""Keys strictly to the right of the query."""

same = select(tokens, tokens, "==")
"""Keys that hold the query's token."""

everywhere = select(indices, indices, True)
"""All keys."""


def marked(flag: SOp) -> Selector:
    """Keys at which `flag` is true."""
    return select(flag, full(True), "==")


def exists(flag: SOp) -> SOp:
    """Whether `flag` is true somewhere."""
    return selector_width(marked(flag)) > 0


def never(flag: SOp) -> SOp:
    """Whether `flag` is true nowhere."""
    return selector_width(marked(flag)) == 0


def gather(index: SOp, value: SOp, default: Value = None) -> SOp:
    """`value` at position `index`; the default where there is no such position."""
    return aggregate(select(indices, index, "=="), value, default)


def last(value: SOp) -> SOp:
    """`value` at the last position, everywhere."""
    return gather(length - 1, value)


def shifted(offset: int, value: SOp, default: Value = None) -> SOp:
    """`value` from `offset` positions to the left (to the right if negative); the default where there is none."""
    return aggregate(select(indices, indices, lambda k, q: k + offset == q), value, default)


def ordinal(key: SOp, descending: bool = False, ties: Selector = before) -> SOp:
    """The position of each element in the sort by `key`: a permutation of 0..n-1.

    `ties` must order the positions of equal key strictly; it keeps them in their order unless another is given.
    """
    ahead = select(key, key, ">" if descending else "<")
    return selector_width(ahead | (select(key, key, "==") & ties))


def at_rank(rank: SOp, wanted: SOp, value: SOp, default: Value = None) -> SOp:
    """`value` at the position whose `rank` is the `wanted` one."""
    return aggregate(select(rank, wanted, "=="), value, default)


def flagged_before(flag: SOp) -> SOp:
    """How many positions strictly to the left have `flag`."""
    return selector_width(marked(flag) & before)


def at_flagged(flag: SOp, wanted: SOp, value: SOp, default: Value = None, ties: Selector = before) -> SOp:
    """`value` at the flagged position with `wanted` flagged ones to its left (or before it in the order `ties`).

    The flagged positions come first in the sort by `~flag`, so that this number is a rank.
    """
    rank = ordinal(~flag, ties=ties)
    return aggregate(marked(flag) & select(rank, wanted, "=="), value, default)


def previous_with(key: SOp) -> SOp:
    """The nearest position to the left with the query's `key`; None if there is none.

    It stands just before the query in the sort by `key`, if what stands there has the same key. (One selector for
    both conditions would read four variables at once; two small ones are cheaper to analyse.)
    """
    rank = ordinal(key)
    predecessor = at_rank(rank, rank - 1, indices)
    return aggregate(select(indices, predecessor, "==") & select(key, key, "=="), indices)


def occurrence(key: SOp) -> SOp:
    """How many positions strictly to the left have the query's `key`."""
    return selector_width(select(key, key, "==") & before)


def is_first(key: SOp = tokens) -> SOp:
    """Whether this is the first position with its key."""
    return occurrence(key) == 0
