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
    """The units of a group: unit t has activation clip(pre, 0, w) for some w within slack_t of width_t if `bounded[t]`,
    else relu(pre)."""

    bounded: npt.NDArray[np.bool_]
    width: Exact
    slack: Radii

    def activation(self, center: Exact, radius: Radii) -> tuple[Exact, Radii]:
        """The activation at `center`, and a bound of its change for |x - center| <= radius.

        Like relu it has slope 0 or 1; above its width only what reaches below the width counts.
        """
        over = center - self.width
        post = center.relu() - Exact(np.where(self.bounded, over.relu().data, 0), over.exp)
        change = relu_radius(center, radius)
        clipped = grow(np.minimum(change, relu_radius(-over, radius)) + self.slack)
        return post, np.where(self.bounded, clipped, change)


@dataclass(frozen=True, eq=False)
class Known:
    """Coordinates of the residual stream at which all positions but BOS's have `level`, up to `radius`, always."""

    coordinates: npt.NDArray[np.bool_]
    level: Exact
    radius: Radii


def ramps(weight_in: Weights, bias: Weights, weight_out: Weights, known: Known) -> tuple[npt.NDArray[np.int64], Widths]:
    """The first neuron of each unit, and the units' widths.

    In order: neurons j, j + 1 with W_out[j+1] = -W_out[j] and columns of W_in that are equal but at known coordinates
    are one unit if d = pre_j - pre_j+1, which is then known, is at least 0: relu(p) - relu(p - d) = clip(p, 0, d). All
    other neurons are units of their own.
    """
    count = len(bias)
    columns, offsets = from_float32(weight_in), from_float32(bias)
    apart = columns[:, :-1] - columns[:, 1:]
    known_apart = Exact(np.where(known.coordinates[:, None], apart.data, 0), apart.exp)
    width = offsets[:-1] - offsets[1:] + known.level @ known_apart
    slack = np.where((known_apart.data != 0).any(axis=0), grow(known.radius @ known_apart.magnitude()), 0.0)
    same_in = (apart.data[~known.coordinates] == 0).all(axis=0)
    opposite_out = (weight_out[1:] == -weight_out[:-1]).all(axis=1)
    pair = np.zeros(count, dtype=np.bool_)
    pair[: count - 1] = same_in & opposite_out & (width.lower() >= slack)
    first, bounded, j = [], [], 0
    while j < count:
        first.append(j)
        bounded.append(bool(pair[j]))
        j += 2 if pair[j] else 1
    units = np.array(first, dtype=np.int64)
    if count < 2:
        return units, Widths(np.zeros(count, dtype=np.bool_), offsets, np.zeros(count))
    place = np.minimum(units, count - 2)
    return units, Widths(np.array(bounded, dtype=np.bool_), width[place], slack[place])
