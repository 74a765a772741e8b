"""Patterns: what came before, what follows, and sets of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import Value
from ..rasp import SequenceMap, SOp, full, indices, select, selector_width, tokens
from .entry import broadcast, entry, fixed, integers, letters, named, with_marks
from .idioms import before, exists, gather, marked, never, previous_with, same, shifted, up_to

Values = list[Value]


@named
def detect_pattern(pattern: Sequence[Value] = "abc") -> SOp:
    """Whether the pattern ends here; None where fewer tokens than the pattern has have been read."""
    found: SOp = tokens == pattern[-1]
    for offset, token in enumerate(reversed(pattern[:-1]), start=1):
        found = found & shifted(offset, tokens == token)
    return found


def _detect_pattern(xs: Values, pattern: Sequence[Value] = "abc") -> Values:
    size = len(pattern)
    return [xs[i + 1 - size : i + 1] == list(pattern) if i + 1 >= size else None for i in range(len(xs))]


@named
def contains_pattern(pattern: Sequence[Value] = "ab") -> SOp:
    """Whether the pattern occurs, everywhere."""
    return exists(detect_pattern(pattern))


def _contains_pattern(xs: Values, pattern: Sequence[Value] = "ab") -> Values:
    return broadcast(True in _detect_pattern(xs, pattern), xs)


@named
def no_three_zeros() -> SOp:
    """Whether a bit sequence has no three zeros in a row, everywhere (Tomita's fourth language)."""
    return never(detect_pattern((0, 0, 0)))


def _no_three_zeros(xs: Values) -> Values:
    return broadcast("000" not in "".join(map(str, xs)), xs)


@named
def previous_occurrence() -> SOp:
    """The position of the previous occurrence of this position's token; None if it is the first."""
    return previous_with(tokens)


def _previous_occurrence(xs: Values) -> Values:
    return [max((j for j in range(i) if xs[j] == x), default=None) for i, x in enumerate(xs)]


@named
def gap() -> SOp:
    """How far back this position's token last occurred; 0 if it is the first occurrence."""
    return selector_width(select(indices, previous_occurrence(), ">") & up_to)


def _gap(xs: Values) -> Values:
    return [min((i - j for j in range(i) if xs[j] == x), default=0) for i, x in enumerate(xs)]


@named
def induction() -> SOp:
    """The token that followed the previous occurrence of this position's token; None if it is the first."""
    return gather(previous_occurrence() + 1, tokens)


def _induction(xs: Values) -> Values:
    found = [max((j for j in range(i) if xs[j] == x), default=None) for i, x in enumerate(xs)]
    return [None if j is None else xs[j + 1] for j in found]


def _run_number() -> SOp:
    """The number of positions up to here at which a run of equal tokens begins."""
    continues = selector_width(same & select(indices, indices, lambda k, q: k + 1 == q))
    return selector_width(select(continues, full(0), "==") & up_to)


@named
def run_length() -> SOp:
    """The length of the maximal run of equal tokens around this position."""
    run = _run_number()
    return selector_width(select(run, run, "=="))


def _runs(xs: Values) -> list[Values]:
    runs: list[Values] = []
    for i, x in enumerate(xs):
        if i and xs[i - 1] == x:
            runs[-1].append(x)
        else:
            runs.append([x])
    return runs


def _run_length(xs: Values) -> Values:
    return [len(run) for run in _runs(xs) for _ in run]


@named
def run_position() -> SOp:
    """This position's place in its maximal run of equal tokens, from 1."""
    run = _run_number()
    return selector_width(select(run, run, "==") & up_to)


def _run_position(xs: Values) -> Values:
    return [place + 1 for run in _runs(xs) for place in range(len(run))]


def _behind(separator: Value) -> SOp:
    return selector_width(select(tokens, full(separator), "==") & before)


def _found_behind(separator: Value) -> SOp:
    """How often this position's token occurs right of the first separator."""
    return selector_width(same & select(_behind(separator), full(0), ">"))


def _halves(xs: Values, separator: Value) -> tuple[Values, Values]:
    cut = xs.index(separator) if separator in xs else len(xs)
    return xs[:cut], xs[cut + 1 :]


def _kept(xs: Values, keep: list[bool]) -> Values:
    return [x if k else None for x, k in zip(xs, keep + [False] * (len(xs) - len(keep)), strict=True)]


@named
def set_difference(separator: Value = "|") -> SOp:
    """Left of the first separator, the tokens that do not occur right of it; None elsewhere."""
    keep = SequenceMap(lambda behind, found: behind == 0 and found == 0, _behind(separator), _found_behind(separator))
    return SequenceMap(lambda x, k: x if k and x != separator else None, tokens, keep)


def _set_difference(xs: Values, separator: Value = "|") -> Values:
    left, right = _halves(xs, separator)
    return _kept(xs, [x not in right for x in left])


@named
def set_intersection(separator: Value = "|") -> SOp:
    """Left of the first separator, the tokens that occur right of it too; None elsewhere."""
    keep = SequenceMap(lambda behind, found: behind == 0 and found > 0, _behind(separator), _found_behind(separator))
    return SequenceMap(lambda x, k: x if k and x != separator else None, tokens, keep)


def _set_intersection(xs: Values, separator: Value = "|") -> Values:
    left, right = _halves(xs, separator)
    return _kept(xs, [x in right for x in left])


@named
def is_subset(separator: Value = "|") -> SOp:
    """Whether all tokens left of the first separator occur right of it too, everywhere."""
    missing = SequenceMap(
        lambda behind, found: behind == 0 and found == 0, _behind(separator), _found_behind(separator)
    )
    return never(missing & (tokens != separator))


def _is_subset(xs: Values, separator: Value = "|") -> Values:
    left, right = _halves(xs, separator)
    return broadcast(set(left) <= set(right), xs)


@named
def smallest_missing() -> SOp:
    """The least number 0, 1, … that does not occur, everywhere (the mex; at most the length)."""
    present = selector_width(select(tokens, indices, "==")) > 0
    unbroken = selector_width(select(present, full(False), "==") & up_to) == 0
    return selector_width(marked(unbroken))


def _smallest_missing(xs: Values) -> Values:
    return broadcast(next(value for value in range(len(xs) + 1) if value not in xs), xs)


_INDUCES = "list[a] -> list[a | None]"
_SETS = with_marks("|")

ENTRIES = (
    entry(detect_pattern, _detect_pattern, "list[str] -> list[bool | None]", letters, "Tracr", "patterns"),
    entry(contains_pattern, _contains_pattern, "list[str] -> list[bool]", letters, "folklore", "patterns", "languages"),
    entry(no_three_zeros, _no_three_zeros, "list[bit] -> list[bool]", fixed(0, 1), "Tomita 1982", "languages"),
    entry(previous_occurrence, _previous_occurrence, "list[a] -> list[int | None]", letters, "folklore", "patterns"),
    entry(gap, _gap, "list[a] -> list[int]", letters, "folklore", "patterns"),
    entry(induction, _induction, _INDUCES, letters, "Olsson et al. 2022", "patterns"),
    entry(run_length, _run_length, "list[a] -> list[int]", letters, "folklore", "patterns"),
    entry(run_position, _run_position, "list[a] -> list[int]", letters, "folklore", "patterns"),
    entry(set_difference, _set_difference, "list[str] -> list[str | None]", _SETS, "folklore", "sets"),
    entry(set_intersection, _set_intersection, "list[str] -> list[str | None]", _SETS, "folklore", "sets"),
    entry(is_subset, _is_subset, "list[str] -> list[bool]", _SETS, "folklore", "sets", "languages"),
    entry(smallest_missing, _smallest_missing, "list[int] -> list[int]", integers, "folklore", "sets"),
)
