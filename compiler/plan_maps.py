"""Planning maps: thresholds on a number line, signed sums of several, and lookups over one-hots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import neurons as nn
from .combinations import combination
from .components import (
    MAX_FUSED,
    MAX_NEURONS,
    Axis,
    GroupPlan,
    PlanError,
    Rep,
    neuron_estimate,
    new_scalar,
    odd,
    points_of,
)
from .core import (
    Map,
)

if TYPE_CHECKING:
    from .plan import Planner

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]


def digitise(p: Planner, node: int, axis: Axis, kind: str) -> Rep:
    """Read a number line, write the node (a function of `axis.over`)."""
    time = odd(axis.ready)
    rep = p.new_onehot(node, time) if kind == "onehot" else new_scalar(node, points_of(p.values(node)), time)
    function = p.unary(node, axis.over)
    if axis.over < len(p.core.nodes):
        function = np.where(p.an.ever(axis.over), function, -1)
    found = p.neurons(node, axis, function, rep, p.values(axis.over))
    p.add_group(GroupPlan(time, node, axis.reads, found.neurons, rep, line=axis, tolerance=found.tolerance))
    return rep


def combined(p: Planner, node: int, op: Map) -> Rep | None:
    """A function of one signed sum of its arguments is read off that sum, if this takes fewer neurons."""
    if node >= len(p.core.nodes):
        return None
    for args in dict.fromkeys((tuple(dict.fromkeys(op.args)), p.relevant(node))):
        if len(args) < 2 or not p.fits(args):
            continue
        table = p.table(node, args) if args == p.relevant(node) else table_over_arguments(p, op, args)
        found = None if table is None else combination(table, [p.values(a) for a in args])
        if found is None or table is None or 2 * found.thresholds + 1 >= lookup_estimate(table):
            continue
        axes = [p.affine_axis(a) for a in args]
        reads = tuple(sorted({n for axis in axes for n in axis.reads}))
        if math.prod(len(p.values(n)) for n in reads) > MAX_FUSED:
            continue
        weights = [(r, i, sign * w) for sign, axis in zip(found.weights, axes, strict=True) for r, i, w in axis.weights]
        bias = sum(sign * axis.bias for sign, axis in zip(found.weights, axes, strict=True))
        line = Axis(node, reads, weights, bias, found.points, True, max(axis.ready for axis in axes))
        time = odd(line.ready)
        rep = p.new_onehot(node, time)
        labels = tuple(float(x) for x in found.points)
        read = p.neurons(node, line, found.function, rep, labels)
        p.add_group(GroupPlan(time, node, reads, read.neurons, rep, line=line, tolerance=read.tolerance))
        return rep
    return None


def table_over_arguments(p: Planner, op: Map, args: tuple[int, ...]) -> npt.NDArray[np.int32] | None:
    """The map's table over its distinct arguments, -1 where they cannot occur together; None if one is repeated."""
    return np.where(p.an.possible_tuples(args), op.table, -1) if len(args) == len(op.args) else None


def lookup_estimate(table: npt.NDArray[np.int32]) -> int:
    """About how many neurons a lookup takes: for each distinct row (of the best last axis), its distinct values."""
    counts = []
    for axis in range(table.ndim):
        rows = np.unique(np.moveaxis(table, axis, -1).reshape(-1, table.shape[axis]), axis=0)
        counts.append(sum(len(np.unique(row[row >= 0])) for row in rows))
    return min(counts)


def product(p: Planner, node: int) -> Rep:
    """A lookup over several one-hot arguments."""
    op = p.nodes[node]
    assert isinstance(op, Map)
    reads, table = arguments(p, node, op)
    time = odd(max(rep.ready for rep in reads))
    rep = p.new_onehot(node, time)
    found = nn.lookup(node, reads, table, rep)
    if len(found) > MAX_NEURONS:
        p.report(
            PlanError(
                node,
                f"its table over {_listed(p, [r.node for r in reads])} would take {len(found)} neurons, more than "
                f"{MAX_NEURONS}; map the arguments to fewer values first, or split it into maps of fewer arguments",
                too_long=True,
            )
        )
    p.add_group(GroupPlan(time, node, tuple(r.node for r in reads), found, rep))
    return rep


def arguments(p: Planner, node: int, op: Map) -> tuple[list[Rep], npt.NDArray[np.int32]]:
    """One-hot arguments that determine the node and the node's table over them (-1: cannot occur)."""
    basis = p.relevant(node) if node < len(p.core.nodes) else op.args
    if node < len(p.core.nodes) and p.fits(basis):
        table = p.table(node, basis)
        if neuron_estimate(table) <= MAX_NEURONS:
            reads = []
            for position, c in enumerate(basis):
                if p.natural(c) == "onehot" or c in p.onehots:
                    reads.append(p.onehot(c))
                    continue
                classes, inverse = nn.classes(table, position)
                representative = [int(np.argmax(inverse == k)) for k in range(classes)]
                auxiliary = auxiliary_map(p, (c,), inverse.astype(np.int32), classes, f"class of {p.name(c)}")
                table = np.take(table, representative, axis=position)
                reads.append(digitised_class(p, auxiliary, c))
            return reads, table
    if node >= len(p.core.nodes):
        return [p.onehot(a) for a in op.args], op.table
    found: dict[int, Rep] = {}
    for arg in op.args:
        rep, _ = p.carrier(arg)
        found[rep.node] = rep
    nodes = tuple(sorted(found))
    resolved = p.an.resolve(node, nodes)
    if resolved is None:
        raise PlanError(
            node,
            f"its table over {_listed(p, basis)} is too large, and the compiler finds no way to compute it from "
            f"{_listed(p, nodes)}; map the arguments to fewer values first, or split it into maps of fewer arguments",
            too_long=True,
        )
    return [found[n] for n in nodes], resolved


def _listed(p: Planner, nodes: Sequence[int]) -> str:
    """The nodes by name with the number of their values."""
    return " x ".join(f"{p.name(node)} ({len(p.values(node))} values)" for node in nodes)


def digitised_class(p: Planner, auxiliary: int, basis: int) -> Rep:
    """The one-hot of a class of values of a number line."""
    if auxiliary not in p.onehots:
        axis = p.axis(basis)
        time = odd(axis.ready)
        rep = p.new_onehot(auxiliary, time)
        op = p.nodes[auxiliary]
        assert isinstance(op, Map)
        function = np.where(p.an.ever(basis), op.table, -1)
        found = p.neurons(auxiliary, axis, function, rep, p.values(axis.over))
        group = GroupPlan(time, auxiliary, axis.reads, found.neurons, rep, line=axis, tolerance=found.tolerance)
        p.add_group(group)
        p.onehots[auxiliary] = rep
    return p.onehots[auxiliary]


def auxiliary_map(p: Planner, args: tuple[int, ...], table: npt.NDArray[np.int32], n_values: int, name: str) -> int:
    """The auxiliary node with this table, one for equal tables."""
    key = ("map", args, table.tobytes())
    if key not in p.auxiliaries:
        p.auxiliaries[key] = p.append(Map(args, table, tuple(range(n_values)), name))
    return p.auxiliaries[key]
