"""What ReLU neurons make of an enclosed pre-activation (section 4, `mlp`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .exact import Exact, Radii, from_float32, grow
from .model import Weights


def relu_radius(center: Exact, radius: Radii) -> Radii:
    """|relu(x) - relu(center)| <= this, for |x - center| <= radius: radius; below zero only what reaches above zero."""
    upper = center.upper()
    reach = upper + radius  # the sign of a float64 sum is exact
    return np.where(upper >= 0, radius, np.where(reach > 0, grow(np.maximum(0, reach)), 0.0))


@dataclass(frozen=True, eq=False)
class Widths:
    """The units of a group: unit t has activation clip(pre, 0, width_t) if `bounded[t]`, else relu(pre)."""

    bounded: npt.NDArray[np.bool_]
    width: Exact

    def activation(self, center: Exact, radius: Radii) -> tuple[Exact, Radii]:
        """The activation at `center`, and a bound of its change for |x - center| <= radius.

        Like relu it has slope 0 or 1; above its width only what reaches below the width counts.
        """
        over = center - self.width
        post = center.relu() - Exact(np.where(self.bounded, over.relu().data, 0), over.exp)
        change = relu_radius(center, radius)
        return post, np.where(self.bounded, np.minimum(change, relu_radius(-over, radius)), change)


def ramps(weight_in: Weights, bias: Weights, weight_out: Weights) -> tuple[npt.NDArray[np.int64], Widths]:
    """The first neuron of each unit, and the units' widths.

    In order: neurons j, j + 1 with equal columns of W_in, b_j >= b_j+1 and W_out[j+1] = -W_out[j] are one unit, since
    relu(p) - relu(p - d) = clip(p, 0, d) for d = b_j - b_j+1 >= 0. All other neurons are units of their own.
    """
    count = len(bias)
    pair = np.zeros(count, dtype=np.bool_)
    same_in = (weight_in[:, :-1] == weight_in[:, 1:]).all(axis=0)
    opposite_out = (weight_out[1:] == -weight_out[:-1]).all(axis=1)
    pair[: count - 1] = same_in & opposite_out & (bias[:-1] >= bias[1:])
    first, bounded, j = [], [], 0
    while j < count:
        first.append(j)
        bounded.append(bool(pair[j]))
        j += 2 if pair[j] else 1
    units = np.array(first, dtype=np.int64)
    exact = from_float32(bias)
    following = np.minimum(units + 1, max(0, count - 1))
    return units, Widths(np.array(bounded, dtype=np.bool_), exact[units] - exact[following])
