"""What a plan is made of: representations of nodes, heads and groups of neurons, before they get coordinates.

Times: the embedding is ready at 0; the heads of layer l run at time 2l, its neurons at 2l + 1; what is written at
time t can be read from t + 1 on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .core import Bits

MAX_ONEHOT = 4096
MAX_NEURONS = 6000
MAX_FUSED = 1 << 18
SCALAR_OUTPUT_FROM = 129


class PlanError(Exception):
    """A node that the compiler cannot realise: the node's position, the reason and the remedy.

    `too_long`: with shorter sequences it could be realised.
    """

    def __init__(self, node: int, reason: str, too_long: bool = False) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason
        self.too_long = too_long


class Unplannable(Exception):
    """A program with nodes that cannot be realised: all that were found, each on a node of the source program."""

    def __init__(self, problems: tuple[PlanError, ...]) -> None:
        super().__init__("; ".join(f"node {problem.node}: {problem.reason}" for problem in problems))
        self.problems = problems


@dataclass(eq=False)
class Rep:
    """A node's values in the residual stream: one-hot (value i at `slot[i]`) or a scalar (`points[i]`).

    `dims`, the coordinates, are chosen by the layout. `reads` collects the times at which components read it.
    """

    node: int
    kind: Literal["onehot", "scalar"]
    size: int
    slot: npt.NDArray[np.int64]
    points: npt.NDArray[np.float64] | None
    written: int
    last_read: int = -1
    dims: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def ready(self) -> int:
        """The time from which it can be read."""
        return self.written + 1

    def read_at(self, time: int) -> None:
        """Note that a component reads it at `time`."""
        self.last_read = max(self.last_read, time)


Weights: TypeAlias = list[tuple[Rep, int, float]]
"""Sparse vectors over the residual stream: (representation, local coordinate, weight)."""


@dataclass(eq=False)
class Axis:
    """A linear functional of the residual stream that carries a node's values as numbers.

    On value v of node `over` it reads `points[v]` = bias + weights . residual; `affine`: points equal the (numeric)
    values.
    `reads`: the nodes whose representations it touches.
    """

    over: int
    reads: tuple[int, ...]
    weights: Weights
    bias: float
    points: npt.NDArray[np.float64]
    affine: bool
    ready: int


@dataclass(eq=False)
class Neuron:
    """relu(bias + weights . residual), times `writes`."""

    weights: Weights
    bias: float
    writes: Weights


@dataclass(eq=False)
class GroupPlan:
    """Neurons that compute `node` from `reads` into `out`; `clears`: they write minus `out` instead.

    `line`: the number line they read by thresholds, if they do; what they write is exact while its readings are off
    by less than `tolerance`.
    """

    time: int
    node: int
    reads: tuple[int, ...]
    neurons: list[Neuron]
    out: Rep
    clears: bool = False
    line: Axis | None = None
    tolerance: float = 0.0


@dataclass(eq=False)
class AtomPlan:
    """One comparison of a head: `table[key value, query value]` over two one-hots."""

    key: Rep
    query: Rep
    table: Bits


@dataclass(eq=False)
class HeadPlan:
    """A head that computes `node` into `out`.

    `values`: (source representation, its local coordinate, local coordinate of `out`, weight); `offset` is added to
    every value and `sink` is BOS's value, per local coordinate of `out`. `affine`: the output is a mean.
    """

    time: int
    node: int
    atoms: list[AtomPlan]
    reads: tuple[int, ...]
    values: list[tuple[Rep, int, int, float]]
    offset: npt.NDArray[np.float64]
    sink: npt.NDArray[np.float64]
    out: Rep
    is_width: bool
    affine: bool = False


def points_of(values: tuple[object, ...]) -> npt.NDArray[np.float64]:
    """The values as numbers, 0 in place of what is no number."""
    return np.array([0.0 if v is None or isinstance(v, str) else float(v) for v in values])  # type: ignore[arg-type]


def is_number(value: object) -> bool:
    """Whether a value is a number (True and False are)."""
    return value is not None and not isinstance(value, str)


def separated(values: tuple[object, ...]) -> npt.NDArray[np.float64]:
    """Numbers at their places, what is no number at places of its own below them."""
    points = points_of(values)
    numbers = [i for i, value in enumerate(values) if is_number(value)]
    others = [i for i, value in enumerate(values) if not is_number(value)]
    points[others] = np.floor(points[numbers].min(initial=0.0)) - 1.0 - np.arange(len(others))
    return points


def new_scalar(node: int, points: npt.NDArray[np.float64], written: int) -> Rep:
    """A scalar representation of `node` whose value i is `points[i]`."""
    return Rep(node, "scalar", 1, np.zeros(len(points), dtype=np.int64), points, written)


def axis_of(node: int, rep: Rep, affine: bool) -> Axis:
    """The number line that a scalar representation is."""
    assert rep.points is not None
    return Axis(node, (node,), [(rep, 0, 1.0)], 0.0, rep.points, affine, rep.ready)


def neuron_estimate(table: npt.NDArray[np.int32]) -> int:
    """About how many neurons a lookup of the table takes."""
    return int(np.prod(sorted(table.shape)[:-1])) if table.ndim > 1 else table.size


def odd(time: int) -> int:
    """The first time of neurons from `time` on."""
    return time if time % 2 else time + 1


def even(time: int) -> int:
    """The first time of heads from `time` on."""
    return time if time % 2 == 0 else time + 1
