"""Softmax weights: how far attention is from uniform over the selected keys (section 4, `head`, 4)."""

from __future__ import annotations

from fractions import Fraction

from .exact import above, exp_above, exp_below


def capped_sum(terms: list[tuple[int, Fraction]]) -> float:
    """An upper bound of min(1, sum of m e^x)."""
    if any(x >= 0 for _, x in terms):
        return 1.0
    return min(1.0, above(sum((m * exp_above(x) for m, x in terms), Fraction(0))))


def outside_weight(low: Fraction, other_high: Fraction | None, longest: int, bos: bool) -> float:
    """delta1 >= the weight outside S, |S| >= 1: (N - 1) e^(u - a) + [bos] e^(-a), capped at 1.

    Selected keys weigh at least e^a, at most N - 1 others at most e^u each, BOS e^0.
    """
    terms = [(1, sink_exponent(low))] if bos else []
    if other_high is not None and longest > 1:
        terms.append((longest - 1, leak_exponent(low, other_high)))
    return capped_sum(terms)


def leak_exponent(low: Fraction, other_high: Fraction) -> Fraction:
    """u - a."""
    return other_high - low


def sink_exponent(low: Fraction) -> Fraction:
    """-a."""
    return -low


def weight_without_selection(other_high: Fraction | None, longest: int) -> float:
    """delta0 >= the weight outside BOS when nothing is selected: N e^u, capped at 1."""
    return capped_sum([] if other_high is None else [(longest, other_high)])


def unevenness(low: Fraction, high: Fraction) -> float:
    """tau >= e^(A - a) - 1, capped at 1: sum over S of |weight / (weight of S) - 1/|S|| is at most that."""
    gap = high - low
    return 1.0 if gap >= 1 else min(1.0, above(max(Fraction(0), exp_above(gap) - 1)))


def share_bounds(
    low: Fraction | None, high: Fraction | None, other_high: Fraction | None, w: int, longest: int
) -> tuple[Fraction, Fraction]:
    """BOS's weight, with w keys selected, lies in [1 / (1 + w e^A + (N - w) e^u), 1 / (1 + w e^a)]."""
    most_selected = least_selected = others = Fraction(0)
    if w:
        assert low is not None and high is not None
        most_selected, least_selected = w * exp_above(high), w * exp_below(low)
    if other_high is not None and longest > w:
        others = (longest - w) * exp_above(other_high)
    return 1 / (1 + most_selected + others), 1 / (1 + least_selected)


def first_share_bounds(
    low: Fraction, high: Fraction, other_high: Fraction | None, w: int, longest: int
) -> tuple[Fraction, Fraction]:
    """Position 0's weight, itself one of the w >= 1 selected keys (no BOS), lies in
    [1 / (1 + (w - 1) e^(A - a) + (N - w) e^(u - a)), 1 / (1 + (w - 1) e^(a - A))]."""
    others = Fraction(0)
    if other_high is not None and longest > w:
        others = (longest - w) * exp_above(leak_exponent(low, other_high))
    return 1 / (1 + (w - 1) * exp_above(high - low) + others), 1 / (1 + (w - 1) * exp_below(low - high))
