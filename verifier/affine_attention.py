"""Softmax attention bounded below by linear functions of what it reads, around a centre.

At a query position i and head: f = sum_j A_j u_j with A = softmax(s), scores s_j = S_j + t_j, |t_j| <= rho_j, and
values u_j = U_j + w_j, |w_j| <= upsilon_j. For any slopes a_j and b_j

    f = sum_j a_j u_j + sum_j b_j t_j + [sum_j (A_j - a_j) u_j - b . t],
    (A_j - a_j) u_j >= (A_j - a_j) U_j - upsilon_j |A_j - a_j|,  and |A_j - a_j| <= kappa_j + sigma_j A_j, the chord
    over the interval of A_j,

so that the bracket is at least a constant plus G = sum_j A_j y_j - b . t with y_j = U_j - upsilon_j sigma_j. Softmax
reads differences only: with weights W = softmax(S) and T_j = t_j - W . t, |T_j| <= (1 - W_j) rho_j + sum_(k != j) W_k
rho_k and W . T = 0, so Z = sum_j W_j e^T_j lies in [1, 1 + second order]. For sum_j b_j = 0 and every level L

    Z (G - L) >= sum_j min over T_j of [W_j e^T_j (y_j - L) - (b_j - W_j L) T_j] - max|b . t| max(Z - 1)  =: F(L),

minima of one variable, so G >= L + F(L) / Z; a few steps of Newton's method find L. First-order slopes (a = W,
b_j = W_j (U_j - W . U)) leave an error of second order. With b = 0 and fixed slopes a on the values, the least of
sum_j A_j y_j is the softmax's vertex threshold, that is tight for wide scores. For each row the better is taken.

Scores are bilinear: t_j is a linear function of what is at i and at j, plus a rest of second order (`Scores.rest`).
Method: this project; the threshold is MATHS.md section 3 (Vertex-Softmax, 2026).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .balls import EXP_ERROR
from .balls import _exp_point as exp_point

STEPS = 3
NARROW = 30.0
"""Score radii beyond it get no first-order slopes."""
DEEP = 500.0
_UP, _DOWN = 1 + 4 * EXP_ERROR, 1 - 4 * EXP_ERROR
_LEAST = -690.0
_SEEN = -600.0
"""Greatest weights are taken to be at least e^-600, so that no threshold of a softmax is lost to underflow."""
_TINY = 2.0**-980


def power(x: Tensor) -> Tensor:
    """e^x up to a relative 2^-45, for x <= 300; at x < -690 it is e^-690."""
    return exp_point(x.clamp(min=_LEAST, max=300.0))


def ends(middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of e^s / e^(the greatest s) for scores s within `radius` of `middle` (minus infinity: masked)."""
    masked = torch.isneginf(middle)
    highest = torch.where(masked, -torch.inf, middle + radius)
    ceiling = highest.amax(-1, keepdim=True)
    slack = 2.0**-50 * (ceiling.abs() + middle.abs().masked_fill(masked, 0.0) + radius)
    most = torch.where(masked, 0.0, power((highest - ceiling + slack).clamp(min=_SEEN)) * _UP)
    drop = torch.where(masked, -torch.inf, middle - radius - ceiling - slack)
    return torch.where(drop < _LEAST, 0.0, power(drop) * _DOWN), most


@dataclass(frozen=True, eq=False)
class Scores:
    """One layer's scores [batch, i, head, j]: `middle` (minus infinity where masked) and `radius`; `rest`: how much of
    the radius is not linear; `key` [batch, i, head, d] and `query` [batch, i, head, j, d]: coefficients of what is at j
    and at i in score (i, j); `fixed`: their value at the middle."""

    middle: Tensor
    radius: Tensor
    rest: Tensor
    key: Tensor
    query: Tensor
    fixed: Tensor
    size: Tensor
    """[batch, i, head]: magnitude of the terms."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Softmax's weights for scores in their boxes [batch, i, 1, head, j]."""

    centre: Tensor
    deep: Tensor
    """Where the centre is too small for slopes: there the true score is below the one taken."""
    radius: Tensor
    apart: Tensor
    """At least |t| and |T|."""
    rise: Tensor
    fall: Tensor
    """e^apart and e^-apart, rounded up and down."""
    most_sum: Tensor
    """[batch, i, 1, head]: at least Z, which is at least 1."""
    low: Tensor
    high: Tensor
    """The interval of A."""
    least: Tensor
    most: Tensor
    """The interval of e^s / e^(the greatest s)."""
    mean_radius: Tensor
    """[batch, i, 1, head]: at least |W . t|, over the keys that are not deep."""
    narrow: Tensor

    @staticmethod
    def of(scores: Scores) -> Weights:
        middle, radius = scores.middle[:, :, None], scores.radius[:, :, None]
        masked = torch.isneginf(middle)
        top = middle.amax(-1, keepdim=True)
        below = torch.where(masked, -DEEP, middle - top)
        deep = below <= -DEEP
        raised = power(below.clamp(min=-DEEP))
        centre = torch.where(masked, 0.0, raised / torch.where(masked, 0.0, raised).sum(-1, keepdim=True))
        narrow = radius.amax(-1) <= NARROW
        r = torch.where(masked, 0.0, radius.clamp(max=NARROW))
        share = torch.where(deep, 0.0, centre)
        mean_radius = (share * r).sum(-1, keepdim=True) * (1 + 2.0**-40)
        apart = (r * (1 - 2 * share) + mean_radius) * (1 + 2.0**-40) + 2.0**-44 * r
        apart = torch.where(masked, 0.0, apart)
        least, most = ends(middle, radius)
        others_least = (least.sum(-1, keepdim=True) - least) * (1 - 2.0**-40) - 2.0**-46 * least.sum(-1, keepdim=True)
        others_most = (most.sum(-1, keepdim=True) - most) * (1 + 2.0**-40) + 2.0**-46 * most.sum(-1, keepdim=True)
        high = (most / (most + others_least.clamp(min=0.0)).clamp(min=_TINY) * (1 + 2.0**-40)).clamp(max=1.0)
        low = least / (least + others_most).clamp(min=_TINY) * (1 - 2.0**-40)
        low, high = torch.where(masked, 0.0, low), torch.where(masked, 0.0, high)
        return Weights(
            centre, deep, r, apart, *_powers(centre, apart), low, high, least, most, mean_radius[..., 0], narrow
        )

    @property
    def share(self) -> Tensor:
        """The weights of the mean that T is relative to."""
        return torch.where(self.deep, 0.0, self.centre)

    def within(self, apart: Tensor) -> Weights:
        """The same, where |T| is known to be at most `apart`; of deep keys that is not used."""
        apart = torch.where(self.deep, self.apart, torch.minimum(self.apart, apart))
        rise, fall, most_sum = _powers(self.centre, apart)
        high = torch.minimum(self.high, self.centre * rise * (1 + 2.0**-40))
        low = torch.maximum(self.low, self.share * fall / most_sum[..., None] * (1 - 2.0**-40))
        narrow = self.narrow[..., None]
        low, high = torch.where(narrow, low, self.low), torch.where(narrow, high, self.high)
        return replace(self, apart=apart, rise=rise, fall=fall, most_sum=most_sum, low=low, high=high)


def _powers(centre: Tensor, apart: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rise, fall = exp_point(apart) * _UP, exp_point(-apart) * _DOWN
    return rise, fall, (centre * (rise - apart)).sum(-1).clamp(min=1.0) * (1 + 2.0**-40) + 2.0**-40


@dataclass(frozen=True, eq=False)
class Row:
    """For each row and head [batch, i, k, head] f >= sum_j a_j u_j + sum_j b_j t_j + constant; a, b [.., j]."""

    a: Tensor
    b: Tensor
    constant: Tensor


def threshold(y: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """At most the least of sum_j A_j y_j over weights A proportional to numbers in [least, most]: exact up to rounding.

    At the minimum the smallest y have their greatest weights: one of the prefixes of y sorted."""
    y = torch.where(most > 0, y, 0.0)  # masked keys have no weight; and none is to set the scale
    scale = y.abs().amax(-1, keepdim=True).clamp(min=2.0**-1000)
    y, order = (y / scale).sort(-1)  # so that no product with a weight of e^-600 underflows
    least, most = (x.expand_as(y).gather(-1, order) for x in (least, most))
    ahead, behind = most.cumsum(-1), least.flip(-1).cumsum(-1).flip(-1)
    ahead_y, behind_y = (most * y).cumsum(-1), (least * y).flip(-1).cumsum(-1).flip(-1)
    weight, value = ahead.clone(), ahead_y.clone()
    weight[..., :-1] += behind[..., 1:]
    value[..., :-1] += behind_y[..., 1:]
    mean = torch.where(weight > _TINY, value / weight.clamp(min=_TINY), torch.inf).amin(-1)
    seen = torch.where(most > 0, y, torch.inf)
    floor, size = seen.amin(-1), torch.where(most > 0, y.abs(), 0.0).amax(-1)
    found = torch.maximum(torch.minimum(mean, floor + 2 * size), floor) - 2.0**-40 * size
    return found * scale[..., 0]


def chord(weights: Weights, a: Tensor) -> tuple[Tensor, Tensor]:
    """kappa and sigma: |A - a| <= kappa + sigma A on the interval of A, for a inside it or not."""
    down, up = (a - weights.low).abs(), (weights.high - a).abs()
    width = weights.high - weights.low
    sigma = torch.where(width > 2.0**-30, (up - down) / width.clamp(min=2.0**-30), 0.0).clamp(min=-1.0, max=1.0)
    kappa = torch.maximum(down - sigma * weights.low, up - sigma * weights.high)
    return kappa + 2.0**-48, sigma


def first_order(weights: Weights, value: Tensor, spread: Tensor, credit: float) -> tuple[Row, Tensor]:
    """Slopes of the first order; and the estimated least of the right-hand side (`credit`: see `affine_bounds`)."""
    a = weights.centre
    mean = (a * value).sum(-1, keepdim=True)
    b = torch.where(weights.deep, 0.0, a * (value - mean))
    kappa, sigma = chord(weights, a)
    y = value - mean - spread * sigma
    level = _level(weights, y, b)
    constant = level + mean[..., 0] - (a * value).sum(-1) - (spread * kappa).sum(-1)
    estimate = constant + (a * value).sum(-1) - credit * ((b.abs() * weights.radius).sum(-1) + (a * spread).sum(-1))
    estimate = torch.where(weights.narrow, estimate, -torch.inf)
    return Row(a.expand_as(value), b, constant), estimate


def zeroth_order(weights: Weights, value: Tensor, spread: Tensor, a: Tensor, credit: float) -> tuple[Row, Tensor]:
    """Slopes on the values only, equal to a; no slopes on scores."""
    kappa, sigma = chord(weights, a)
    constant = threshold(value - spread * sigma, weights.least, weights.most)
    constant = constant - (a * value).sum(-1) - (spread * kappa).sum(-1)
    estimate = constant + (a * value).sum(-1) - credit * (a * spread).sum(-1)
    return Row(a.expand_as(value), torch.zeros_like(value), constant), estimate


def _level(weights: Weights, y: Tensor, b: Tensor) -> Tensor:
    """At most the least of sum_j A_j y_j - b . t."""
    range_ = (b.abs() * weights.radius).sum(-1)
    lost = (range_ * (weights.most_sum - 1) + b.sum(-1).abs() * weights.mean_radius) * (1 + 2.0**-40)
    level = torch.zeros_like(lost)
    for _ in range(STEPS):
        sums, weight, _ = _sums(weights, y - level[..., None], b - weights.centre * level[..., None])
        level = level + (sums - lost) / weight.clamp(min=2.0**-20)
    size = (weights.centre * level.abs()[..., None] + b.abs()) * weights.apart
    sums, _, more = _sums(weights, y - level[..., None], b - weights.centre * level[..., None])
    sums = sums - lost - 2.0**-40 * (more + size.sum(-1) + range_)
    found = level + torch.where(sums < 0, sums, sums / weights.most_sum)
    return found - 2.0**-40 * (found.abs() + level.abs())


def _sums(weights: Weights, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_j min over |T_j| <= apart_j of [W_j e^T_j y_j - b_j T_j], about Z at the minimum, and the size of the terms.

    Where y_j > 0 the function is convex, and its tangent at any point t is below it: t is near the minimum; elsewhere
    it is concave, and least at an end. A deep key's T is not bounded below: b_j is taken as 0 there."""
    c, r = weights.centre * y, weights.apart
    b = torch.where(weights.deep, 0.0, b)
    ratio = torch.where((c > 0) & (b > 0), b / c.clamp(min=2.0**-1000), 0.0).clamp(min=2.0**-60, max=2.0**60)
    t = torch.minimum(torch.maximum(ratio.log(), -r), r)
    e = torch.where(t <= -r, weights.fall, exp_point(t))
    convex = c * e * (1 - t) - (c * e - b).abs() * r
    right, left = c * weights.rise - b * r, c * weights.fall + b * r
    least = torch.where(c > 0, torch.where(weights.deep, 0.0, convex), torch.minimum(right, left))
    weight = weights.centre * torch.where(c > 0, e, torch.where(right < left, weights.rise, weights.fall))
    return least.sum(-1), weight.sum(-1), ((c.abs() * weights.rise + b.abs()) * (1 + r)).sum(-1)


def best_rows(weights: Weights, value: Tensor, spread: Tensor, credit: float) -> Row:
    """For values [batch, i, k, head, j] within `spread`: the slopes with the best estimate, for each row and head."""
    row, score = first_order(weights, value, spread, credit)
    for a in (weights.low, weights.centre):
        other, estimate = zeroth_order(weights, value, spread, a, credit)
        use = estimate > score
        score = torch.where(use, estimate, score)
        row = Row(
            torch.where(use[..., None], other.a, row.a),
            torch.where(use[..., None], other.b, row.b),
            torch.where(use, other.constant, row.constant),
        )
    return row
