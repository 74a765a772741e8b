"""The parts of a model as steps that linear lower bounds are taken back through.

A step takes coefficients c [batch, item, row, d] of the stream after it, an item being a position (and a class of
tokens there), to coefficients of the stream before it and what is added to each row's constant [batch, item, row].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .affine_attention import Scores, Weights, best_rows
from .affine_lines import Lines
from .affine_model import Attention, Neurons
from .affine_norm import Norm

TINY = 2.0**-900
"""Added to magnitudes in slacks: covers underflow, which loses at most 2^-1074 a product."""
ROOT_STEPS = 24
"""Of Newton's method, at most; a handful nearly always."""
REPAIRS = 6


@dataclass(frozen=True, eq=False)
class NeuronsStep:
    """x + MLP(x), or x + MLP(LayerNorm(x)). `size` [batch, item, d]: magnitude of what it makes."""

    neurons: Neurons
    lines: Lines
    norm: Norm | None
    size: Tensor
    rounding: float

    def back(self, c: Tensor, credit: float) -> tuple[Tensor, Tensor]:
        neurons, lines = self.neurons, self.lines
        out = c @ neurons.w_out.T
        up, down = out.clamp(min=0.0), out.clamp(max=0.0)
        inner = up * lines.low_slope[:, :, None] + down * lines.high_slope[:, :, None]
        shift = dot(up, lines.low_shift) + dot(down, lines.high_shift) + c @ neurons.b_out + inner @ neurons.b_in
        below = inner @ neurons.w_in.T
        shift = shift - self.rounding * (32 * dot(c.abs() + TINY, self.size + TINY) + shift.abs())
        if self.norm is not None:
            below, more = self.norm.back(below, credit)
            shift = shift + more
        return c + below, shift


def dot(c: Tensor, x: Tensor) -> Tensor:
    """[batch, item, row]: c [batch, item, row, d] . x [batch, item, d]."""
    return torch.matmul(c, x[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Read:
    """What attention reads, y [batch, item, d]: its box, and the magnitude of what it is computed from."""

    centre: Tensor
    radius: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class LinearAttention:
    """x + attention(y) for one class at each position, kept linear; y is x or its LayerNorm."""

    attention: Attention
    read: Read
    scores: Scores
    weights: Weights
    norm: Norm | None
    wide: bool
    """Whether regions are more than points (of which y's box tells enough)."""
    rounding: float

    def back(self, c: Tensor, whole: bool, credit: float) -> tuple[Tensor, Tensor]:
        """`whole`: a row's coefficients are of all positions at once, and shifts are summed [batch, row]; otherwise a
        row belongs to its own position, and becomes a row of the former kind [position, row]."""
        batch, n, rows, d = c.shape
        below, shift = self._below(c, whole, credit)
        if self.norm is not None:
            below, more = self.norm.back(below, credit)
            shift = shift + more.sum(1)
        if whole:
            return c + below, shift
        places = torch.arange(n)
        below.view(batch, n, n, rows, d)[:, places, places] += c
        return below, shift

    def _below(self, c: Tensor, whole: bool, credit: float) -> tuple[Tensor, Tensor]:
        """Coefficients of y [batch, j, row, d] and shifts [batch, row]."""
        circuits, read, scores = self.attention, self.read, self.scores
        values = torch.einsum("bikd,hed->bikhe", c, circuits.ov)
        value = torch.einsum("bikhe,bje->bikhj", values, read.centre)
        spread = torch.einsum("bikhe,bje->bikhj", values.abs(), read.radius)
        if self.norm is not None and self.wide:
            spread = torch.minimum(spread, self._deviation(self.norm, values, value))
        row = best_rows(self.weights, value, spread * (1 + 2.0**-40), credit)
        at_key = "bikhj,bikhe->bjke" if whole else "bikhj,bikhe->bjike"
        below = torch.einsum(at_key, row.a, values)
        shift = row.constant.sum(-1) + c @ circuits.bias
        sizes = torch.einsum("hed,bje->bjhd", circuits.ov_size, read.size).amax(1)
        size = torch.einsum("bikd,bhd->bik", c.abs() + TINY, sizes + TINY) + (c.abs() + TINY) @ (
            circuits.bias_size + TINY
        )
        b, key = row.b, scores.key[:, :, None]
        if bool(b.any()):
            below = below + torch.einsum(at_key, b, key.expand_as(values))
            at_query = torch.einsum("bikhj,bihjd->bikd", b, scores.query)
            if whole:
                below = below + at_query
            else:
                places = torch.arange(c.shape[1])
                below[:, places, places] += at_query
            shift = shift - torch.einsum("bikhj,bihj->bik", b, scores.fixed)
            shift = shift - torch.einsum("bikhj,bihj->bik", b.abs(), scores.rest) * (1 + 2.0**-40)
            size = size + torch.einsum("bikhj,bih->bik", b.abs(), scores.size)
        shift = shift - self.rounding * (32 * size + shift.abs())
        if whole:
            return below, shift.sum(1)
        return below.reshape(c.shape[0], c.shape[1], -1, c.shape[3]), shift.reshape(c.shape[0], -1)

    @staticmethod
    def _deviation(norm: Norm, values: Tensor, value: Tensor) -> Tensor:
        """[batch, i, k, head, j]: how far the heads' values [.., d] of y_j lie from those at the centre."""
        batch, n, rows, heads, d = values.shape
        g = values.reshape(batch, 1, n * rows * heads, d).expand(-1, n, -1, -1)
        at = value.permute(0, 4, 1, 2, 3).reshape(batch, n, -1)
        return norm.deviation(g, at).view(batch, n, n, rows, heads).permute(0, 2, 3, 4, 1)


@dataclass(frozen=True, eq=False)
class TableAttention:
    """x + attention(y) for several classes at each position: heads' means by their least values over all classes.

    With weights in [least, most] and values of at least `low` for each class b of j, level L is below a head's mean iff
        sum_j min over b of min(least (low - L), most (low - L)) >= 0;
    several heads at their levels have in common sum_j min_b sum_h (...) / (greatest normaliser of h) >= 0 more.
    """

    attention: Attention
    read: Read
    value: tuple[Tensor, Tensor]
    """Centre and radius of v [batch, item, head, d_head]."""
    least: Tensor
    most: Tensor
    """[batch, item, head, j, class]."""
    own: Tensor
    """[item, j]: whether j is the item's own position."""
    classes: int
    rounding: float

    def back(self, c: Tensor, credit: float) -> tuple[Tensor, Tensor]:
        circuits = self.attention
        w = torch.einsum("bikd,hed->bikhe", c, circuits.w_o)
        low = torch.einsum("bikhe,bjhe->bikhj", w, self.value[0])
        low = low - torch.einsum("bikhe,bjhe->bikhj", w.abs(), self.value[1]) * (1 + 2.0**-40)
        sizes = torch.einsum("hed,bje->bjhd", circuits.ov_size, self.read.size).amax(1)
        size = torch.einsum("bikd,bhd->bik", c.abs() + TINY, sizes + TINY) + (c.abs() + TINY) @ (
            circuits.bias_size + TINY
        )
        low = low.view(*low.shape[:-1], -1, self.classes)
        mine = torch.einsum("bikhi->bikh", low.flatten(-2))[..., None, None]
        low = torch.where(self.own[:, None, None, :, None], mine, low)
        total = self._levels(low)
        shift = total + c @ circuits.bias
        return c, shift - self.rounding * (32 * size + shift.abs())

    def _levels(self, low: Tensor) -> Tensor:
        """[batch, item, row]: at most the sum over heads of the least means of `low` [.., row, head, j, class]."""
        least, most = self.least[:, :, None], self.most[:, :, None]
        seen = most > 0
        scale = torch.where(seen, low.abs(), 0.0).amax((-1, -2, -3)).clamp(min=2.0**-1000)
        low = torch.where(seen, low, 0.0) / scale[..., None, None, None]
        floor = torch.where(seen, low, torch.inf).amin((-1, -2))
        top = torch.where(seen, low, -torch.inf).amax((-1, -2))
        middle = (least + most) / 2
        level = (middle * low).sum((-1, -2)) / middle.sum((-1, -2))
        close = 2.0**-42 * (top - floor)
        for number in range(ROOT_STEPS):
            gain, weight = _gains(low - level[..., None, None], least, most)
            step = gain.sum(-1) / weight.sum(-1).clamp(min=2.0**-980)
            level = torch.minimum(torch.maximum(level + step, floor), top)
            if number and bool((step.abs() <= close).all()):
                break
        for _ in range(REPAIRS):  # a level just above the root, where rounding hides all but the greatest weights
            level = torch.maximum(level - 2.0**-40 * (top - floor), floor)
            gain, weight = _gains(low - level[..., None, None], least, most)
            sums = gain.sum(-1)
            if not bool((sums < 0).any()):
                break
            step = sums / weight.sum(-1).clamp(min=2.0**-980)
            level = torch.maximum(level + torch.where(sums < 0, step, 0.0), floor)
        sums = _gains(low - level[..., None, None], least, most)[0].sum(-1)
        smallest = least.amin(-1).sum(-1) * (1 - 2.0**-40)
        lost = torch.where(smallest > 2.0**-900, sums / smallest.clamp(min=2.0**-900), -torch.inf) * (1 + 2.0**-40)
        short = sums < 0
        safe = torch.where(short, torch.maximum(floor, level + lost), level)
        if low.shape[3] == 1:
            return safe.sum(-1) * scale
        away = low - safe[..., None, None]
        greatest = most.amax(-1).sum(-1)[..., None, None] * (1 + 2.0**-40)
        joint = (torch.minimum(least * away, most * away) / greatest).sum(3).amin(-1).sum(-1)
        slack = 2.0**-40 * (top - floor).sum(-1)
        return (safe.sum(-1) + (joint - slack).clamp(min=0.0)) * scale


def _gains(away: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The least gain over the classes of each position, and its weight."""
    gain, at = torch.minimum(least * away, most * away).min(-1)
    weight = torch.where(away > 0, least, most).gather(-1, at[..., None])[..., 0]
    return gain, weight
