"""Scores y_i^T qk y_j + key . y_j around the centre of y's box, through the singular vectors of qk.

qk = sum_e left_e right_e^T + error, and y = centre + D with |left_e . D| <= at_query_e and |right_e . D| <= at_key_e:
    |D_i^T qk D_j| <= sum_e at_query_ie at_key_je + |D_i|^T |error| |D_j|,
and likewise for the terms of first order, in D_j and, relative to a mean of the keys (softmax does not see it), in D_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .affine_steps import Read


@dataclass(frozen=True, eq=False)
class Circuit:
    """qk, error [head, d, d] (the latter absolute values); left, right [head, d, e]; others [batch, item, head, e]."""

    qk: Tensor
    left: Tensor
    right: Tensor
    error: Tensor
    at_query: Tensor
    at_key: Tensor
    rounding: float

    def rest(self, read: Read) -> Tensor:
        """[batch, i, head, j]: at least |(y_i - centre)^T qk (y_j - centre)|; from y's box, or as above."""
        found = torch.einsum("bihe,bjhe->bihj", self.at_query, self.at_key)
        found = found + _form(read.radius, self.error, read.radius)
        return torch.minimum(_form(read.radius, self.qk.abs(), read.radius), found) * (1 + 2.0**-40)

    def first(self, read: Read, weight: Tensor, along: tuple[Tensor, Tensor], key: Tensor) -> Tensor:
        """[batch, i, head, j]: at least the terms of first order. `along` [batch, j, head]: the box of key . y_j;
        `weight` [batch, i, head, j]: that of the mean of the keys."""
        y = read.centre
        left, right = (torch.einsum("hde,bid->bihe", x, y) for x in (self.left, self.right))
        lost = [self.rounding * torch.einsum("hde,bid->bihe", x.abs(), y.abs()) for x in (self.left, self.right)]
        found = torch.einsum("bihe,bjhe->bihj", left.abs() + lost[0], self.at_key)
        deviation = along[1] + (along[0] - torch.einsum("hd,bjd->bjh", key, y)).abs()
        deviation = deviation + self.rounding * torch.einsum("hd,bjd->bjh", key.abs(), y.abs())
        found = found + deviation.transpose(1, 2)[:, None]
        mean = torch.einsum("bihj,bjhe->bihe", weight, right)
        for e in range(right.shape[-1]):
            apart = (right[..., e].transpose(1, 2)[:, None] - mean[..., e, None]).abs()
            found = found + self.at_query[..., e, None] * (apart + 2 * lost[1][..., e].amax(1)[:, None, :, None])
        found = found + _form(y.abs(), self.error, read.radius)
        found = found + 2 * _form(read.radius, self.error, y.abs()).amax(-1, keepdim=True)
        return found * (1 + 2.0**-40)


def _form(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("bihe,bje->bihj", torch.einsum("bid,hde->bihe", left, matrix), right)
