"""Groups of ReLU neurons: reading numbers by thresholds, looking up tables of one-hot arguments, clearing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .components import Axis, Neuron, PlanError, Rep, Weights

FLOAT32 = 2.0**-24
GRID = 2.0**-6


def constant(writes: Weights) -> Neuron:
    """A neuron that is always 1 (it is switched off at BOS, where nothing may be written)."""
    return Neuron([], 1.0, writes)


def write(rep: Rep, value: int, factor: float) -> Weights:
    """`factor` times the encoding of value index `value`."""
    if rep.kind == "onehot":
        return [(rep, int(rep.slot[value]), factor)] if rep.slot[value] >= 0 else []
    assert rep.points is not None
    return [(rep, 0, factor * float(rep.points[value]))] if rep.points[value] else []


def difference(rep: Rep, after: int, before: int) -> Weights:
    """The encoding of `after` minus that of `before`."""
    if rep.kind == "scalar":
        assert rep.points is not None
        step = float(rep.points[after] - rep.points[before])
        return [(rep, 0, step)] if step else []
    return [*write(rep, after, 1.0), *write(rep, before, -1.0)]


@dataclass(frozen=True, eq=False)
class DigitisedLine:
    """Neurons that read a number line, and how far off its readings may be: the output is exact up to there."""

    neurons: list[Neuron]
    tolerance: float


def digitise(
    node: int, axis: Axis, function: npt.NDArray[np.int64], rep: Rep, max_len: int, over_values: tuple[object, ...]
) -> DigitisedLine:
    """Thresholds between neighbouring points of a number line with different values of `function`.

    `function[v]` is the value index to write where the line stands at `axis.points[v]` (-1: impossible). Each
    threshold is a ramp relu(z) - relu(z - 1) in the middle half of the real gap, so the output is exactly 0 or 1 if
    the reading is off by less than a quarter of the gap. Raises `PlanError` where float32 could not tell the
    neighbours apart.
    """
    known = np.flatnonzero(function >= 0)
    order = known[np.argsort(axis.points[known], kind="stable")]
    points, targets = axis.points[order], function[order]
    changes = [i for i in range(1, len(order)) if targets[i] != targets[i - 1]]
    reach = float(np.abs(axis.points[known]).max(initial=0.0)) + abs(axis.bias)
    error = (max_len + 8) * FLOAT32 * max(reach, 2.0**-20)
    gaps = {i: float(points[i] - points[i - 1]) for i in changes}
    least = min(gaps, key=lambda i: gaps[i], default=0)
    if changes and not gaps[least] > 32 * error:
        one, other = (over_values[order[i]] for i in (least - 1, least))
        raise PlanError(
            node,
            f"to compute it, {one} has to be told from {other}; they are read as {points[least - 1]:.6g} and "
            f"{points[least]:.6g}, {gaps[least]:.2e} apart, and at this length float32 takes more than "
            f"{32 * error:.2e} (32 times its rounding error); lower max_len, or tell fewer values apart",
            too_long=True,
        )
    slopes = {i: 2.0 ** np.ceil(np.log2(2.0 / (points[i] - points[i - 1]))) for i in changes}
    rising = max((slopes[i] * (points[-1] - points[i]) for i in changes), default=0.0)
    falling = max((slopes[i] * (points[i] - points[0]) for i in changes), default=0.0)
    sign = 1.0 if rising <= falling else -1.0
    base = targets[0] if sign > 0 else targets[-1]
    found: list[Neuron] = []
    start = write(rep, int(base), 1.0)
    if start:
        found.append(constant(start))
    for i in changes if sign > 0 else reversed(changes):
        after, before = (targets[i], targets[i - 1]) if sign > 0 else (targets[i - 1], targets[i])
        slope = slopes[i]
        middle = (points[i] + points[i - 1]) / 2 - axis.bias
        weights = [(r, c, sign * slope * w) for r, c, w in axis.weights]
        bias = float(np.round((0.5 - sign * slope * middle) / GRID) * GRID)
        step = difference(rep, int(after), int(before))
        if not step:
            continue
        found.append(Neuron(weights, bias, step))
        found.append(Neuron(list(weights), bias - 1.0, [(r, c, -w) for r, c, w in step]))
    spare = min((gaps[i] / 2 - (0.5 + GRID / 2) / slopes[i] for i in changes), default=np.inf)
    return DigitisedLine(found, float(spare))


def classes(table: npt.NDArray[np.int32], axis: int) -> tuple[int, npt.NDArray[np.int64]]:
    """Number of distinct slices of a table along an axis, and the class of each index."""
    rows = np.moveaxis(table, axis, 0).reshape(table.shape[axis], -1)
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    first: dict[int, int] = {}
    ordered = np.array([first.setdefault(int(k), len(first)) for k in inverse], dtype=np.int64)
    return len(first), ordered


def lookup(node: int, reads: list[Rep], table: npt.NDArray[np.int32], rep: Rep) -> list[Neuron]:
    """A table over one-hot arguments: one neuron per class of the leading arguments and set of the last one's values.

    Each neuron is relu(sum of indicators - (m - 1)), exactly 0 or 1 on one-hot arguments. The most frequent value is
    written by one constant neuron; the others write the difference to it.
    """
    best: list[Neuron] | None = None
    for last in range(len(reads)) if table.size <= 1 << 16 else [int(np.argmax(table.shape))]:
        order = [i for i in range(len(reads)) if i != last] + [last]
        found = _lookup([reads[i] for i in order], table.transpose(order), rep)
        if best is None or len(found) < len(best):
            best = found
    assert best is not None
    return best


def _lookup(reads: list[Rep], table: npt.NDArray[np.int32], rep: Rep) -> list[Neuron]:
    if len(reads) == 1:
        members = [{int(v): [i for i in range(len(table)) if table[i] == v] for v in np.unique(table[table >= 0])}]
        heads: list[tuple[list[list[int]], dict[int, list[int]]]] = [([], members[0])]
    else:
        groups = []
        for axis in range(len(reads) - 1):
            count, inverse = classes(table, axis)
            groups.append([np.flatnonzero(inverse == k) for k in range(count)])
        heads = []
        for combination in itertools.product(*groups):
            row = table[tuple(int(g[0]) for g in combination)]
            values = {int(v): np.flatnonzero(row == v).tolist() for v in np.unique(row[row >= 0])}
            if values:
                heads.append(([g.tolist() for g in combination], values))
    counts: dict[int, int] = {}
    for _, values in heads:
        for value in values:
            counts[value] = counts.get(value, 0) + 1
    base = max(counts, key=lambda v: (counts[v], -v))
    found: list[Neuron] = []
    if counts[base] > 1:
        found.append(constant(write(rep, base, 1.0)))
    else:
        base = -1
    for lead, values in heads:
        for value, last in values.items():
            if value == base:
                continue
            sets = [*lead, last]
            weights = [
                (r, int(r.slot[i]), 1.0)
                for r, members_ in zip(reads, sets, strict=True)
                for i in members_
                if r.slot[i] >= 0
            ]
            writes = difference(rep, value, base) if base >= 0 else write(rep, value, 1.0)
            if writes:
                found.append(Neuron(weights, 1.0 - len(reads), writes))
    return [n for n in found if n.writes]


def clear(rep: Rep, locals_: list[int]) -> list[Neuron]:
    """Neurons that write minus what the representation holds at some of its local coordinates."""
    found = []
    for i in locals_:
        found.append(Neuron([(rep, i, 1.0)], 0.0, [(rep, i, -1.0)]))
        if rep.points is not None and rep.points.min() < 0:
            found.append(Neuron([(rep, i, -1.0)], 0.0, [(rep, i, 1.0)]))
    return found
