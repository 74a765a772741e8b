"""Lines below and above an activation on an interval.

relu: the triangle (exact where its sign is fixed), the lower line with the slope 0 or 1 of least area. Smooth f: a line
of any slope s is moved below the graph by the least of f(x) - s x over a grid of the interval, less what lies between
two points of the grid: with |f''| <= CURVE, a function that is at least m at both ends of a cell of width h is at least
m - CURVE h^2 / 8 inside. Of a few slopes (tangents, chord, 0, 1) the line that is best in the middle is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .activations import POINTS

CURVE = 1.2
"""At least |f''| everywhere: gelu 0.798 (2 phi(0)), gelu_new 0.80, silu 0.5; a test encloses all three."""
CELLS = 32
_SLACK = 2.0**-44


@dataclass(frozen=True, eq=False)
class Lines:
    """For every x in the interval: low_slope x + low_shift <= f(x) <= high_slope x + high_shift."""

    low_slope: Tensor
    low_shift: Tensor
    high_slope: Tensor
    high_shift: Tensor


def lines(function: str, low: Tensor, high: Tensor) -> Lines:
    """Of an activation on [low, high], entry by entry; all shapes are those of `low`. Finite for finite ends."""
    return relu_lines(low, high) if function == "relu" else smooth_lines(function, low, high)


def relu_lines(low: Tensor, high: Tensor) -> Lines:
    """The shift of the upper line is the greater of what it needs at either end, rounded up."""
    on, off = low >= 0, high <= 0
    slope = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low).clamp(min=2.0**-900)))
    shift = torch.maximum(-slope * low, high - slope * high) * (1 + 2.0**-48) + 2.0**-52 * high.abs() + 2.0**-1000
    below = torch.where(on, 1.0, torch.where(off, 0.0, (high > -low).double()))
    return Lines(below, torch.zeros_like(low), slope, torch.where(on | off, 0.0, shift))


def smooth_lines(function: str, low: Tensor, high: Tensor) -> Lines:
    """By the grid; see the module. `POINTS` gives values with proved errors."""
    share = torch.linspace(0.0, 1.0, CELLS + 1, dtype=torch.float64)
    width = high - low
    grid = low[..., None] + width[..., None] * share
    grid[..., -1] = high
    value, error = POINTS[function](grid)
    error = error * (1 + 2.0**-40) + 2.0**-52
    size = grid.abs().amax(-1) + 1.0
    between = CURVE / 8 * (width / CELLS * (1 + 2.0**-20) + size * 2.0**-50) ** 2
    middle = low + width / 2
    best = _best(function, low, high, grid, value, error, between + size * _SLACK, middle)
    return Lines(*best)


def _best(
    function: str, low: Tensor, high: Tensor, grid: Tensor, value: Tensor, error: Tensor, lost: Tensor, middle: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each slope the greatest lower and the least upper shift; the best lines in the middle."""
    step = 2.0**-12
    points = torch.stack([low, middle, high])
    rises = (POINTS[function](points + step)[0] - POINTS[function](points - step)[0]) / (2 * step)
    chord = (value[..., -1] - value[..., 0]) / (high - low).clamp(min=2.0**-40)
    chord = torch.where(high - low < 2.0**-20, rises[1], chord).clamp(min=-1.2, max=1.2)
    slopes = [chord, *rises.clamp(min=-1.2, max=1.2), torch.zeros_like(low), torch.ones_like(low)]
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for slope in slopes:
        rest = value - slope[..., None] * grid
        below, above = (rest - error).amin(-1) - lost, (rest + error).amax(-1) + lost
        if not found:
            found.append((slope, below, slope, above))
            continue
        low_slope, low_shift, high_slope, high_shift = found[-1]
        lower = slope * middle + below > low_slope * middle + low_shift
        upper = slope * middle + above < high_slope * middle + high_shift
        found.append(
            (
                *(torch.where(lower, slope, low_slope), torch.where(lower, below, low_shift)),
                *(torch.where(upper, slope, high_slope), torch.where(upper, above, high_shift)),
            )
        )
    return found[-1]
