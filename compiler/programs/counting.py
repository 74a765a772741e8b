"""Counting: how many positions stand in a relation to this one."""

from __future__ import annotations

from ..core import Value
from ..rasp import Selector, SOp, full, indices, select, selector_width, tokens
from ..rasp import length as sequence_length
from .entry import broadcast, entry, fixed, integers, letters, named
from .idioms import after, everywhere, is_first, marked, never, occurrence, same, shifted, up_to

Values = list[Value]


def number(value: Value) -> int:
    """The value, which the vocabulary promises to be an integer."""
    assert isinstance(value, int), value
    return value


def _holds(token: Value) -> Selector:
    return select(tokens, full(token), "==")


@named
def length() -> SOp:
    """The length of the sequence, everywhere."""
    return sequence_length


def _length(xs: Values) -> Values:
    return broadcast(len(xs), xs)


@named
def prefix_length() -> SOp:
    """The number of visible positions; with causal attention, the length of the prefix."""
    return selector_width(everywhere)


def _prefix_length(xs: Values) -> Values:
    return [i + 1 for i in range(len(xs))]


@named
def hist() -> SOp:
    """How often this position's token occurs in the sequence."""
    return selector_width(same)


def _hist(xs: Values) -> Values:
    return [xs.count(x) for x in xs]


@named
def double_hist() -> SOp:
    """How many distinct tokens occur as often as this one does."""
    frequency = hist()
    return selector_width(select(frequency, frequency, "==") & marked(is_first()))


def _double_hist(xs: Values) -> Values:
    return [len({y for y in xs if xs.count(y) == xs.count(x)}) for x in xs]


@named
def count(token: Value = "a") -> SOp:
    """How often one given token occurs, everywhere."""
    return selector_width(_holds(token))


def _count(xs: Values, token: Value = "a") -> Values:
    return broadcast(xs.count(token), xs)


@named
def count_less_freq(bound: int = 2) -> SOp:
    """How many positions hold a token that occurs at most `bound` times, everywhere."""
    return selector_width(select(hist(), full(bound), "<="))


def _count_less_freq(xs: Values, bound: int = 2) -> Values:
    return broadcast(sum(xs.count(x) <= bound for x in xs), xs)


@named
def count_distinct() -> SOp:
    """The number of distinct tokens, everywhere."""
    return selector_width(marked(is_first()))


def _count_distinct(xs: Values) -> Values:
    return broadcast(len(set(xs)), xs)


@named
def prefix_count() -> SOp:
    """Which occurrence of its token this is: 1 for the first, 2 for the second, …"""
    return selector_width(same & up_to)


def _prefix_count(xs: Values) -> Values:
    return [xs[: i + 1].count(x) for i, x in enumerate(xs)]


@named
def remaining_count() -> SOp:
    """How often this position's token occurs again further right."""
    return selector_width(same & after)


def _remaining_count(xs: Values) -> Values:
    return [xs[i + 1 :].count(x) for i, x in enumerate(xs)]


@named
def prefix_count_of(token: Value = "a") -> SOp:
    """How often one given token has occurred so far, this position included."""
    return selector_width(_holds(token) & up_to)


def _prefix_count_of(xs: Values, token: Value = "a") -> Values:
    return [xs[: i + 1].count(token) for i in range(len(xs))]


@named
def histogram(width: int = 1) -> SOp:
    """Position i holds the number of tokens in bin i, the integers from i * width to (i + 1) * width - 1."""
    return selector_width(select(tokens // width, indices, "=="))


def _histogram(xs: Values, width: int = 1) -> Values:
    return [sum(i * width <= number(x) < (i + 1) * width for x in xs) for i in range(len(xs))]


@named
def parity() -> SOp:
    """Whether the number of ones in a bit sequence is odd, as a bit, everywhere."""
    return selector_width(_holds(1)) % 2


def _parity(xs: Values) -> Values:
    return broadcast(xs.count(1) % 2, xs)


@named
def prefix_parity() -> SOp:
    """The parity of the ones up to here: the running exclusive or of a bit sequence (which decodes Gray code)."""
    return selector_width(_holds(1) & up_to) % 2


def _prefix_parity(xs: Values) -> Values:
    return [xs[: i + 1].count(1) % 2 for i in range(len(xs))]


@named
def rank() -> SOp:
    """How many positions hold a smaller token."""
    return selector_width(select(tokens, tokens, "<"))


def _rank(xs: Values) -> Values:
    return [sum(number(y) < number(x) for y in xs) for x in xs]


@named
def dense_rank() -> SOp:
    """How many distinct smaller tokens occur."""
    return selector_width(select(tokens, tokens, "<") & marked(is_first()))


def _dense_rank(xs: Values) -> Values:
    return [sorted(map(number, set(xs))).index(number(x)) for x in xs]


@named
def inversions() -> SOp:
    """How many positions to the left hold a larger token."""
    return selector_width(select(tokens, tokens, ">") & select(indices, indices, "<"))


def _inversions(xs: Values) -> Values:
    return [sum(number(y) > number(x) for y in xs[:i]) for i, x in enumerate(xs)]


@named
def is_unique() -> SOp:
    """Whether this position's token occurs once only."""
    return hist() == 1


def _is_unique(xs: Values) -> Values:
    return [xs.count(x) == 1 for x in xs]


@named
def has_duplicate() -> SOp:
    """Whether this position's token occurs elsewhere too."""
    return hist() > 1


def _has_duplicate(xs: Values) -> Values:
    return [xs.count(x) > 1 for x in xs]


@named
def is_first_occurrence() -> SOp:
    """Whether this position's token did not occur to the left."""
    return is_first()


def _is_first_occurrence(xs: Values) -> Values:
    return [x not in xs[:i] for i, x in enumerate(xs)]


@named
def is_last_occurrence() -> SOp:
    """Whether this position's token does not occur to the right."""
    return remaining_count() == 0


def _is_last_occurrence(xs: Values) -> Values:
    return [x not in xs[i + 1 :] for i, x in enumerate(xs)]


@named
def all_distinct() -> SOp:
    """Whether no token occurs twice, everywhere."""
    return never(occurrence(tokens) > 0)


def _all_distinct(xs: Values) -> Values:
    return broadcast(len(set(xs)) == len(xs), xs)


@named
def contains(token: Value = "a") -> SOp:
    """Whether one given token occurs, everywhere."""
    return selector_width(_holds(token)) > 0


def _contains(xs: Values, token: Value = "a") -> Values:
    return broadcast(token in xs, xs)


@named
def count_bigram() -> SOp:
    """How often the pair of the token to the left and this one is visible; with causal attention, so far."""
    left = shifted(1, tokens)
    return selector_width(select(left, left, "==") & same)


def _count_bigram(xs: Values) -> Values:
    pairs = list(zip(xs, xs[1:], strict=False))
    return [0, *(pairs[: i + 1].count(pair) for i, pair in enumerate(pairs))]


@named
def count_runs() -> SOp:
    """The number of maximal runs of equal tokens, everywhere."""
    neighbour = selector_width(same & select(indices, indices, lambda k, q: k + 1 == q))
    return selector_width(select(neighbour, full(0), "=="))


def _count_runs(xs: Values) -> Values:
    return broadcast(sum(i == 0 or xs[i - 1] != x for i, x in enumerate(xs)), xs)


_BITS = fixed(0, 1)

ENTRIES = (
    entry(length, _length, "list[a] -> list[int]", letters, "Tracr", "counting"),
    entry(prefix_length, _prefix_length, "list[a] -> list[int]", letters, "Tracr", "counting", causal=True),
    entry(hist, _hist, "list[a] -> list[int]", letters, "Tracr; Weiss et al. 2021", "counting"),
    entry(double_hist, _double_hist, "list[a] -> list[int]", letters, "Weiss et al. 2021", "counting"),
    entry(count, _count, "list[str] -> list[int]", letters, "Tracr", "counting"),
    entry(count_less_freq, _count_less_freq, "list[a] -> list[int]", letters, "Tracr", "counting"),
    entry(count_distinct, _count_distinct, "list[a] -> list[int]", letters, "folklore", "counting", "sets"),
    entry(prefix_count, _prefix_count, "list[a] -> list[int]", letters, "folklore", "counting", causal=True),
    entry(remaining_count, _remaining_count, "list[a] -> list[int]", letters, "folklore", "counting"),
    entry(prefix_count_of, _prefix_count_of, "list[str] -> list[int]", letters, "folklore", "counting"),
    entry(histogram, _histogram, "list[int] -> list[int]", integers, "folklore", "counting"),
    entry(parity, _parity, "list[bit] -> list[bit]", _BITS, "Hahn 2020", "counting", "bits", "languages"),
    entry(prefix_parity, _prefix_parity, "list[bit] -> list[bit]", _BITS, "Hahn 2020", "counting", "bits", causal=True),
    entry(rank, _rank, "list[int] -> list[int]", integers, "Tracr", "counting", "ordering"),
    entry(dense_rank, _dense_rank, "list[int] -> list[int]", integers, "folklore", "counting", "ordering"),
    entry(inversions, _inversions, "list[int] -> list[int]", integers, "folklore", "counting", "ordering"),
    entry(is_unique, _is_unique, "list[a] -> list[bool]", letters, "Friedman et al. 2023", "counting", "sets"),
    entry(has_duplicate, _has_duplicate, "list[a] -> list[bool]", letters, "folklore", "counting", "sets"),
    entry(
        is_first_occurrence, _is_first_occurrence, "list[a] -> list[bool]", letters, "folklore", "counting", causal=True
    ),
    entry(is_last_occurrence, _is_last_occurrence, "list[a] -> list[bool]", letters, "folklore", "counting"),
    entry(all_distinct, _all_distinct, "list[a] -> list[bool]", letters, "folklore", "counting", "sets"),
    entry(contains, _contains, "list[str] -> list[bool]", letters, "folklore", "counting", "sets"),
    entry(
        count_bigram, _count_bigram, "list[a] -> list[int]", letters, "folklore", "counting", "patterns", causal=True
    ),
    entry(count_runs, _count_runs, "list[a] -> list[int]", letters, "folklore", "counting", "patterns"),
)
