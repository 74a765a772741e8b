"""LayerNorm without weight and bias, z = c / sqrt(mean(c^2) + eps), c = x - mean(x), bounded by linear functions of x.

With c = C + D, |D| <= radius entry by entry, v = mean(c^2), V = mean(C^2), r = (v + eps)^(-1/2), any numbers R, tau:

    g . z = g . c R - (2 tau / d) (g . C) (C . D) + (g . C) e + (g . D) (r - R),
    e = [r - R + tau (v - V)] - tau mean(D^2).

The bracket is convex in v, so at most the greater of its values at the ends of v's interval; with tau = -r'(V) and
R = r(V) it is at least 0. So the error is of second order. For wide intervals the slope tau = 0 with R amid r's
interval, the box of z, and |z|_2 <= sqrt(d) compete; for each row the one with the best estimate is taken.
Method: this project.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = 2.0**-40


def centred(g: Tensor) -> Tensor:
    """Coefficients of x from those of c."""
    return g - g.mean(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Norm:
    """At items [batch, item]: `centre` and `radius` of c [.., d]; the rest [.., 1]. `size` [.., d]: at least the sum of
    the absolute values that c is computed from."""

    centre: Tensor
    radius: Tensor
    square: Tensor
    """V, exact up to the slack of `error`."""
    inverse: Tensor
    slope: Tensor
    error: tuple[Tensor, Tensor]
    """The interval of e."""
    least: Tensor
    most: Tensor
    """The interval of r."""
    stream: Tensor
    """[.., d]: the radius of x around its own box's centre."""
    offset: Tensor
    """[.., d]: that centre, less its mean, less the centre of c."""
    size: Tensor
    rounding: float

    @staticmethod
    def of(
        box: tuple[Tensor, Tensor],
        along: tuple[Tensor, Tensor],
        stream: tuple[Tensor, Tensor],
        eps: float,
        size: Tensor,
        rounding: float,
    ) -> Norm:
        """From the box of c, the interval `along` [batch, item] of C . c, and the box of x."""
        centre, radius = box
        d = centre.shape[-1]
        large = (centre.abs() + radius).square().mean(-1, keepdim=True)
        small = (centre.abs() - radius).clamp(min=0.0).square().mean(-1, keepdim=True)
        square = centre.square().mean(-1, keepdim=True)
        away = radius.square().mean(-1, keepdim=True) * (1 + _SLACK)
        low, high = (2 / d * (x[..., None] - d * square) for x in along)  # of 2 mean(C D)
        slack = _SLACK * large
        low = torch.maximum(torch.maximum(small, square + low.clamp(max=0.0)), _least_square(box, along[0])) - slack
        high = torch.minimum(large, square + high.clamp(min=0.0) + away) + slack
        low = torch.minimum(low.clamp(min=0.0), square)
        high = torch.maximum(high, square)
        most = (low + eps).rsqrt() * (1 + 2.0**-45)
        least = (high + eps).rsqrt() * (1 - 2.0**-45)
        inverse = (square + eps).rsqrt()
        slope = inverse.pow(3) / 2
        ends = torch.maximum(most - inverse + slope * (low - square), least - inverse + slope * (high - square))
        loss = _SLACK * (most + slope * (high - low) + slope * large)
        error = (-slope * away - loss, ends.clamp(min=0.0) + loss)
        offset = centred(stream[0]) - centre
        return Norm(
            *(centre, radius, square, inverse, slope, error, least, most, stream[1], offset, size, rounding),
        )

    def box(self) -> tuple[Tensor, Tensor]:
        """Centre and radius of z [batch, item, d]."""
        low, high = self.centre - self.radius, self.centre + self.radius
        most = torch.maximum(high * self.most, high * self.least)
        least = torch.minimum(low * self.most, low * self.least)
        most_z = math.sqrt(self.centre.shape[-1])
        most, least = most.clamp(max=most_z, min=-most_z), least.clamp(min=-most_z, max=most_z)
        middle = (most + least) / 2
        return middle, (most - least) / 2 * (1 + _SLACK) + _SLACK * (self.most * (self.centre.abs() + self.radius))

    def back(self, g: Tensor, credit: float) -> tuple[Tensor, Tensor]:
        """For g [batch, item, k, d]: c and shift with g . z >= c . x + shift; `credit`: see `affine_bounds`."""
        d = g.shape[-1]
        at, away, bend, first, remainder = self._first_order(g)
        shift = bend * d * self.square - remainder[0]
        score = shift + _dot(first, self.centre) - credit * self._reach(first)
        middle = (self.most + self.least) / 2
        flat = -at.abs() * (self.most - middle) - away * (self.most - middle)
        flat_score = flat + middle * at - credit * middle * away
        z, spread = self.box()
        constant = torch.maximum(_dot(g, z) - _dot(g.abs(), spread), -self._most(g))
        use = (flat_score > score) | ~torch.isfinite(score)
        coefficients = torch.where(use[..., None], middle[..., None] * g, first)
        shift, score = torch.where(use, flat, shift), torch.where(use, flat_score, score)
        fixed = constant > score
        coefficients = torch.where(fixed[..., None], 0.0, coefficients)
        shift = torch.where(fixed, constant, shift)
        return centred(coefficients), shift - 16 * self.rounding * (self._terms(g, bend) + shift.abs())

    def deviation(self, g: Tensor, value: Tensor) -> Tensor:
        """For g [batch, item, k, d] at least |g . z - value|, value [batch, item, k]."""
        d = g.shape[-1]
        _, _, bend, first, remainder = self._first_order(g)
        middle, reach = bend * d * self.square + _dot(first, self.centre) - value, self._reach(first)
        low, high = reach + remainder[0] - middle, reach + remainder[1] + middle
        found = torch.minimum(torch.maximum(low, high), self._most(g) + value.abs())
        return found + 16 * self.rounding * (self._terms(g, bend) + value.abs())

    def _first_order(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """g . C, at least |g . D|, how much of C the row loses, the row, and what may be lost below and above."""
        at, away = _dot(g, self.centre), self._reach(g)
        bend = at * (2 / g.shape[-1]) * self.slope
        first = self.inverse[..., None] * g - bend[..., None] * self.centre[..., None, :]
        wide = away * torch.maximum(self.most - self.inverse, self.inverse - self.least)
        ends = at * self.error[0], at * self.error[1]
        return at, away, bend, first, (wide - torch.minimum(*ends), wide + torch.maximum(*ends))

    @staticmethod
    def _most(g: Tensor) -> Tensor:
        """At least |g . z|: the sum of z^2 is at most d, and that of z is 0."""
        return centred(g).square().sum(-1).sqrt() * math.sqrt(g.shape[-1]) * (1 + _SLACK)

    def _reach(self, g: Tensor) -> Tensor:
        """At least |g . D|, from the box of c and from that of x."""
        by_stream = _dot(centred(g).abs(), self.stream) + _dot(g, self.offset).abs()
        found = torch.minimum(_dot(g.abs(), self.radius), by_stream)
        return found * (1 + _SLACK)

    def _terms(self, g: Tensor, bend: Tensor) -> Tensor:
        """Magnitudes of what a row is computed from."""
        whole = self.size + self.size.mean(-1, keepdim=True) + 2.0**-900
        terms = _dot(g.abs() + 2.0**-900, whole) * self.most
        return terms + bend.abs() * ((self.centre.abs() * whole).sum(-1, keepdim=True) + g.shape[-1] * self.square)


def _least_square(box: tuple[Tensor, Tensor], along: Tensor) -> Tensor:
    """At most mean(c^2) over the box where C . c >= along: by weak duality, for every number k >= 0,
    sum c^2 >= k along + sum_d min over the box of (c_d^2 - k C_d c_d)."""
    centre, radius = box
    best = torch.zeros_like(along)
    root = 2 * along / centre.square().sum(-1).clamp(min=2.0**-900)
    for k in (*(torch.full_like(along, x / 4) for x in range(1, 9)), root.clamp(min=0.0, max=4.0)):
        half = k[..., None] / 2 * centre
        near = torch.minimum(torch.maximum(half, centre - radius), centre + radius)
        best = torch.maximum(best, k * along + (near * near - 2 * half * near).sum(-1))
    return best[..., None] / centre.shape[-1]


def _dot(g: Tensor, x: Tensor) -> Tensor:
    return (g @ x[..., None])[..., 0]
