"""Means, and thresholds on them. References count with exact fractions."""

from __future__ import annotations

from fractions import Fraction

from ..core import Value
from ..rasp import SequenceMap, SOp, aggregate, full, indices, linear, select, selector_width, tokens
from .counting import number
from .entry import broadcast, entry, fixed, integers, letters, named, positive
from .idioms import before, everywhere, shifted, up_to

Values = list[Value]


def _mean(xs: Values) -> Fraction:
    return Fraction(sum(number(x) for x in xs), len(xs))


def _fraction(xs: Values, token: Value) -> Fraction:
    return Fraction(xs.count(token), len(xs))


def _prefixes(xs: Values) -> list[Values]:
    return [xs[: i + 1] for i in range(len(xs))]


@named
def frac_prevs(token: Value = "a") -> SOp:
    """The fraction of positions up to here that hold one given token."""
    return aggregate(up_to, tokens == token, 0)


def _frac_prevs(xs: Values, token: Value = "a") -> Values:
    return [_fraction(prefix, token) for prefix in _prefixes(xs)]


@named
def percent_so_far(token: Value = "a") -> SOp:
    """The percentage of positions up to here that hold one given token."""
    return frac_prevs(token) * 100


def _percent_so_far(xs: Values, token: Value = "a") -> Values:
    return [100 * _fraction(prefix, token) for prefix in _prefixes(xs)]


@named
def majority_so_far(token: Value = "a") -> SOp:
    """Whether one given token holds more than half of the positions up to here."""
    return frac_prevs(token) > Fraction(1, 2)


def _majority_so_far(xs: Values, token: Value = "a") -> Values:
    return [2 * prefix.count(token) > len(prefix) for prefix in _prefixes(xs)]


@named
def frac_before(token: Value = "b") -> SOp:
    """The fraction of positions strictly to the left that hold one given token; 0 at the first position."""
    return aggregate(before, tokens == token, 0)


def _frac_before(xs: Values, token: Value = "b") -> Values:
    return [_fraction(xs[:i], token) if i else 0 for i in range(len(xs))]


@named
def majority() -> SOp:
    """Whether more than half of a bit sequence is ones, everywhere."""
    return aggregate(everywhere, tokens == 1) > Fraction(1, 2)


def _majority(xs: Values) -> Values:
    return broadcast(2 * xs.count(1) > len(xs), xs)


@named
def mean() -> SOp:
    """The mean of all tokens, everywhere."""
    return aggregate(everywhere, tokens)


def _mean_of_all(xs: Values) -> Values:
    return broadcast(_mean(xs), xs)


@named
def running_mean() -> SOp:
    """The mean of the tokens up to here."""
    return aggregate(up_to, tokens)


def _running_mean(xs: Values) -> Values:
    return [_mean(prefix) for prefix in _prefixes(xs)]


@named
def window_sum(width: int = 3) -> SOp:
    """The sum of this token and the ones before it, `width` in all (fewer at the left end)."""
    terms = [shifted(offset, tokens, 0) for offset in range(width)]
    return linear(terms, [1] * width)


def _window_sum(xs: Values, width: int = 3) -> Values:
    return [sum(number(x) for x in xs[max(0, i + 1 - width) : i + 1]) for i in range(len(xs))]


@named
def window_mean(width: int = 3) -> SOp:
    """The mean of this token and the ones before it, `width` in all (fewer at the left end)."""
    return aggregate(select(indices, indices, lambda k, q: q - width < k <= q), tokens)


def _window_mean(xs: Values, width: int = 3) -> Values:
    return [_mean(xs[max(0, i + 1 - width) : i + 1]) for i in range(len(xs))]


@named
def window_count(token: Value = "a", width: int = 3) -> SOp:
    """How often one given token occurs here and before, within `width` positions."""
    return selector_width(select(tokens, full(token), "==") & select(indices, indices, lambda k, q: q - width < k <= q))


def _window_count(xs: Values, token: Value = "a", width: int = 3) -> Values:
    return [xs[max(0, i + 1 - width) : i + 1].count(token) for i in range(len(xs))]


@named
def difference() -> SOp:
    """This token minus the one to the left; the token itself at the first position."""
    return tokens - shifted(1, tokens, 0)


def _difference(xs: Values) -> Values:
    return [number(x) - (number(xs[i - 1]) if i else 0) for i, x in enumerate(xs)]


@named
def nary_ratio() -> SOp:
    """x * y / z of the index twice and the token: a map of three arguments with fractional values."""
    return SequenceMap(lambda x, y, z: Fraction(x * y, z), indices, indices, tokens)


def _nary_ratio(xs: Values) -> Values:
    return [Fraction(i * i, number(x)) for i, x in enumerate(xs)]


_FRACTIONS = "list[str] -> list[Fraction]"
_MEAN = "list[int] -> list[Fraction]"

ENTRIES = (
    entry(frac_prevs, _frac_prevs, _FRACTIONS, letters, "Tracr", "means"),
    entry(percent_so_far, _percent_so_far, _FRACTIONS, letters, "Tracr", "means"),
    entry(
        majority_so_far,
        _majority_so_far,
        "list[str] -> list[bool]",
        letters,
        "Tracr",
        "means",
        "languages",
        causal=True,
    ),
    entry(frac_before, _frac_before, _FRACTIONS, letters, "Tracr", "means"),
    entry(majority, _majority, "list[bit] -> list[bool]", fixed(0, 1), "Merrill et al. 2022", "means", "languages"),
    entry(mean, _mean_of_all, _MEAN, integers, "folklore", "means"),
    entry(running_mean, _running_mean, _MEAN, integers, "Tracr", "means"),
    entry(window_sum, _window_sum, "list[int] -> list[int]", integers, "folklore", "means", "windows"),
    entry(window_mean, _window_mean, _MEAN, integers, "folklore", "means", "windows"),
    entry(
        window_count, _window_count, "list[str] -> list[int]", letters, "folklore", "counting", "windows", causal=True
    ),
    entry(difference, _difference, "list[int] -> list[int]", integers, "folklore", "windows"),
    entry(nary_ratio, _nary_ratio, _MEAN, positive, "Tracr", "maps"),
)
