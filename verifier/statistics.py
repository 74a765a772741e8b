"""Figures from samples, always with an interval: Clopper and Pearson (1934), rounded outwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.errors import InputError


def _log_terms(least: int, most: int, trials: int, p: float) -> float:
    """log P(least <= X <= most) for X binomial(trials, p), 0 < p < 1, summed from the largest term outwards."""
    log_p, log_q = math.log(p), math.log1p(-p)
    peak = min(max(math.floor((trials + 1) * p), least), most)
    at_peak = math.lgamma(trials + 1) - math.lgamma(peak + 1) - math.lgamma(trials - peak + 1)
    at_peak += peak * log_p + (trials - peak) * log_q
    odds = p / (1 - p)
    terms = [1.0]
    for step, end in ((1, most), (-1, least)):
        term, k = 1.0, peak
        while k != end and term > 1e-19:
            term *= (trials - k) / (k + 1) * odds if step == 1 else k / (trials - k + 1) / odds
            k += step
            terms.append(term)
    return at_peak + math.log(math.fsum(terms))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.99) -> tuple[float, float]:
    """An interval that contains the success probability with at least `confidence`, whatever that probability is.

    Low is the p with P(X >= successes) = (1 - confidence) / 2, high the p with P(X <= successes) the same; found by
    bisection to 1e-12 and widened by 1e-9 of itself (far above the error of `lgamma`). Raises `InputError`.
    """
    if not isinstance(trials, int) or trials < 1:
        raise InputError(f"an interval needs at least 1 trial, got {trials!r}")
    if not 0 <= successes <= trials:
        raise InputError(f"successes must be 0 to {trials}, got {successes!r}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence!r}")
    target = math.log((1 - confidence) / 2)

    def solve(least: int, most: int, rising: bool) -> float:
        low, high = 0.0, 1.0
        while high - low > 1e-13 * high:
            middle = (low + high) / 2
            if (_log_terms(least, most, trials, middle) < target) == rising:
                low = middle
            else:
                high = middle
            if high < 1e-300 or low == middle == high:
                break
            if 1 - low < 1e-15:
                break
        return low if rising else high

    low = 0.0 if successes == 0 else max(0.0, solve(successes, trials, True) * (1 - 1e-9))
    high = 1.0 if successes == trials else min(1.0, 1 - (1 - solve(0, successes, False)) * (1 - 1e-9))
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A share found by sampling: an estimate with its interval, never a proof."""

    successes: int
    trials: int
    confidence: float
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.successes / self.trials

    def __str__(self) -> str:
        return (
            f"{self.share:.6g} of {self.trials:,} samples ({self.confidence:.0%} Clopper-Pearson interval "
            f"[{self.low:.6g}, {self.high:.6g}])"
        )


def estimate(successes: int, trials: int, confidence: float = 0.99) -> Estimate:
    """The share with its Clopper-Pearson interval. Raises `InputError`."""
    return Estimate(successes, trials, confidence, *clopper_pearson(successes, trials, confidence))
