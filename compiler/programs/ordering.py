"""Sorting and what follows from it: order statistics are read off at a rank."""

from __future__ import annotations

from fractions import Fraction

from ..core import Value
from ..rasp import SOp, full, indices, length, select, selector_width, tokens
from .counting import hist, number
from .entry import broadcast, entry, integers, letters, named
from .idioms import at_flagged, at_rank, before, flagged_before, is_first, marked, never, ordinal

Values = list[Value]


def _numbers(xs: Values) -> list[int]:
    return [number(x) for x in xs]


@named
def sort() -> SOp:
    """The tokens in ascending order."""
    return at_rank(ordinal(tokens), indices, tokens)


def _sort(xs: Values) -> Values:
    ordered = sorted(_numbers(xs))
    return [*ordered]


@named
def sort_descending() -> SOp:
    """The tokens in descending order."""
    return at_rank(ordinal(tokens, descending=True), indices, tokens)


def _sort_descending(xs: Values) -> Values:
    ordered = sorted(_numbers(xs), reverse=True)
    return [*ordered]


@named
def sort_unique() -> SOp:
    """Each token at the number of smaller ones: sorting for distinct tokens; None in the places of repetitions."""
    return at_rank(selector_width(select(tokens, tokens, "<")), indices, tokens)


def _sort_unique(xs: Values) -> Values:
    ordered = sorted(_numbers(xs))
    return [x if i == 0 or ordered[i - 1] != x else None for i, x in enumerate(ordered)]


@named
def sort_freq() -> SOp:
    """The tokens by descending frequency; equally frequent ones stay in their order."""
    return at_rank(ordinal(hist(), descending=True), indices, tokens)


def _sort_freq(xs: Values) -> Values:
    return sorted(xs, key=lambda x: -xs.count(x))


@named
def reverse_by_sort() -> SOp:
    """The sequence reversed, by sorting it with key 1 - index."""
    return at_rank(ordinal(1 - indices), indices, tokens)


@named
def reverse_by_sort_unique() -> SOp:
    """The sequence reversed, by counting the positions with a smaller key 1 - index."""
    return at_rank(selector_width(select(1 - indices, 1 - indices, "<")), indices, tokens)


def _reversed(xs: Values) -> Values:
    return xs[::-1]


@named
def sort_distinct() -> SOp:
    """The distinct tokens in ascending order, then None."""
    ascending = sort()
    return at_flagged(is_first(ascending), indices, ascending)


def _sort_distinct(xs: Values) -> Values:
    ordered = sorted(set(_numbers(xs)))
    return [*ordered, *[None] * (len(xs) - len(ordered))]


@named
def stable_rank() -> SOp:
    """The place of each element in the stable ascending sort: a permutation."""
    return ordinal(tokens)


def _stable_rank(xs: Values) -> Values:
    order = sorted(range(len(xs)), key=lambda i: number(xs[i]))
    return [order.index(i) for i in range(len(xs))]


@named
def maximum() -> SOp:
    """The largest token, everywhere."""
    return at_rank(ordinal(tokens, descending=True), full(0), tokens)


def _maximum(xs: Values) -> Values:
    return broadcast(max(_numbers(xs)), xs)


@named
def minimum() -> SOp:
    """The smallest token, everywhere."""
    return at_rank(ordinal(tokens), full(0), tokens)


def _minimum(xs: Values) -> Values:
    return broadcast(min(_numbers(xs)), xs)


@named
def second_maximum() -> SOp:
    """The second element in descending order (equal to the first if that occurs twice), everywhere; None if alone."""
    return at_rank(ordinal(tokens, descending=True), full(1), tokens)


def _second_maximum(xs: Values) -> Values:
    return broadcast(sorted(_numbers(xs))[-2] if len(xs) > 1 else None, xs)


@named
def kth_smallest(k: int = 3) -> SOp:
    """The k-th element in ascending order, counted from 1, everywhere; None for shorter sequences."""
    return at_rank(ordinal(tokens), full(k - 1), tokens)


def _kth_smallest(xs: Values, k: int = 3) -> Values:
    return broadcast(sorted(_numbers(xs))[k - 1] if len(xs) >= k else None, xs)


@named
def median() -> SOp:
    """The middle element in ascending order, the lower one for even lengths, everywhere."""
    return at_rank(ordinal(tokens), (length - 1) // 2, tokens)


def _median(xs: Values) -> Values:
    return broadcast(sorted(_numbers(xs))[(len(xs) - 1) // 2], xs)


@named
def spread() -> SOp:
    """The largest token minus the smallest, everywhere."""
    return maximum() - minimum()


def _spread(xs: Values) -> Values:
    return broadcast(max(_numbers(xs)) - min(_numbers(xs)), xs)


@named
def midrange() -> SOp:
    """The mean of the largest and the smallest token, everywhere."""
    return maximum() * Fraction(1, 2) + minimum() * Fraction(1, 2)


def _midrange(xs: Values) -> Values:
    return broadcast(Fraction(max(_numbers(xs)) + min(_numbers(xs)), 2), xs)


@named
def argmax() -> SOp:
    """The first position of the largest token, everywhere."""
    return at_rank(ordinal(tokens, descending=True), full(0), indices)


def _argmax(xs: Values) -> Values:
    return broadcast(xs.index(max(_numbers(xs))), xs)


@named
def argmin() -> SOp:
    """The first position of the smallest token, everywhere."""
    return at_rank(ordinal(tokens), full(0), indices)


def _argmin(xs: Values) -> Values:
    return broadcast(xs.index(min(_numbers(xs))), xs)


@named
def argsort() -> SOp:
    """The positions of the elements in stable ascending order."""
    return at_rank(ordinal(tokens), indices, indices)


def _argsort(xs: Values) -> Values:
    order = sorted(range(len(xs)), key=lambda i: number(xs[i]))
    return [*order]


@named
def most_frequent() -> SOp:
    """The most frequent token, everywhere; of several, the one that comes first."""
    return at_rank(ordinal(hist(), descending=True), full(0), tokens)


def _most_frequent(xs: Values) -> Values:
    return broadcast(max(xs, key=xs.count), xs)


@named
def least_frequent() -> SOp:
    """The least frequent token, everywhere; of several, the one that comes first."""
    return at_rank(ordinal(hist()), full(0), tokens)


def _least_frequent(xs: Values) -> Values:
    return broadcast(min(xs, key=xs.count), xs)


@named
def is_sorted() -> SOp:
    """Whether the tokens are in ascending order, everywhere."""
    return never(selector_width(select(tokens, tokens, ">") & before) > 0)


def _is_sorted(xs: Values) -> Values:
    return broadcast(_sort(xs) == xs, xs)


@named
def is_record() -> SOp:
    """Whether this position's token is larger than all to the left."""
    return selector_width(select(tokens, tokens, ">=") & before) == 0


def _is_record(xs: Values) -> Values:
    return [all(number(y) < number(x) for y in xs[:i]) for i, x in enumerate(xs)]


@named
def running_maximum() -> SOp:
    """The largest token up to here: the latest one that was larger than all before it."""
    record = is_record()
    seen = selector_width(marked(record) & select(indices, indices, "<="))
    return at_flagged(record, seen - 1, tokens)


def _running_maximum(xs: Values) -> Values:
    return [max(_numbers(xs[: i + 1])) for i in range(len(xs))]


@named
def count_records() -> SOp:
    """How many positions to the left held a token larger than all before it."""
    return flagged_before(is_record())


def _count_records(xs: Values) -> Values:
    return [sum(map(bool, _is_record(xs)[:i])) for i in range(len(xs))]


_SAME = "list[int] -> list[int]"

ENTRIES = (
    entry(sort, _sort, _SAME, integers, "Tracr; Weiss et al. 2021", "ordering"),
    entry(sort_descending, _sort_descending, _SAME, integers, "folklore", "ordering"),
    entry(sort_unique, _sort_unique, "list[int] -> list[int | None]", integers, "Tracr", "ordering"),
    entry(sort_freq, _sort_freq, "list[a] -> list[a]", letters, "Tracr; Weiss et al. 2021", "ordering"),
    entry(reverse_by_sort, _reversed, "list[a] -> list[a]", letters, "Tracr", "ordering", "positions"),
    entry(reverse_by_sort_unique, _reversed, "list[a] -> list[a]", letters, "Tracr", "ordering", "positions"),
    entry(sort_distinct, _sort_distinct, "list[int] -> list[int | None]", integers, "folklore", "ordering", "sets"),
    entry(stable_rank, _stable_rank, _SAME, integers, "Weiss et al. 2021", "ordering"),
    entry(maximum, _maximum, _SAME, integers, "Friedman et al. 2023", "ordering"),
    entry(minimum, _minimum, _SAME, integers, "folklore", "ordering"),
    entry(second_maximum, _second_maximum, "list[int] -> list[int | None]", integers, "folklore", "ordering"),
    entry(kth_smallest, _kth_smallest, "list[int] -> list[int | None]", integers, "folklore", "ordering"),
    entry(median, _median, _SAME, integers, "folklore", "ordering"),
    entry(spread, _spread, _SAME, integers, "folklore", "ordering"),
    entry(midrange, _midrange, "list[int] -> list[Fraction]", integers, "folklore", "ordering"),
    entry(argmax, _argmax, _SAME, integers, "folklore", "ordering"),
    entry(argmin, _argmin, _SAME, integers, "folklore", "ordering"),
    entry(argsort, _argsort, _SAME, integers, "folklore", "ordering"),
    entry(most_frequent, _most_frequent, "list[a] -> list[a]", letters, "Friedman et al. 2023", "ordering"),
    entry(least_frequent, _least_frequent, "list[a] -> list[a]", letters, "folklore", "ordering"),
    entry(is_sorted, _is_sorted, "list[int] -> list[bool]", integers, "folklore", "ordering", "languages"),
    entry(is_record, _is_record, "list[int] -> list[bool]", integers, "folklore", "ordering"),
    entry(running_maximum, _running_maximum, _SAME, integers, "folklore", "ordering"),
    entry(count_records, _count_records, _SAME, integers, "folklore", "ordering"),
)
