"""From a core program to a plan: which nodes get a representation, computed by which head or neurons, and when.

Demand-driven: the output asks for a representation, which asks for those of its arguments. Each component is
scheduled as early as its arguments allow, so depth is minimal. Functions of one categorical node cost nothing (its
one-hot is read through the function); chains of maps are fused into one group of neurons over the basis nodes they
depend on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from . import neurons as nn
from . import plan_heads, plan_maps, plan_widths
from .analysis import Analysis
from .components import (
    MAX_FUSED,
    MAX_ONEHOT,
    SCALAR_OUTPUT_FROM,
    Axis,
    GroupPlan,
    HeadPlan,
    PlanError,
    Rep,
    Unplannable,
    Weights,
    axis_of,
    is_number,
    new_scalar,
    points_of,
)
from .core import (
    Aggregate,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Tokens,
    Value,
    Width,
)
from .neurons import DigitisedLine
from .terms import show

IntArray = npt.NDArray[np.int64]
Made = TypeVar("Made")
Hint: TypeAlias = Literal["auto", "categorical", "numerical"]


@dataclass(eq=False)
class Plan:
    """Components in no particular order (their times order them); the output is read off a one-hot or a number line."""

    program: CoreProgram
    n_source: int
    embeddings: list[Rep]
    heads: list[HeadPlan]
    groups: list[GroupPlan]
    width_sums: dict[int, tuple[tuple[int, int], ...]]
    width_shares: dict[int, tuple[int, int]]
    decode: tuple[Rep, IntArray] | Axis


class Planner:
    """Collects components while representations are demanded; `plan()` is the entry point."""

    def __init__(self, core: CoreProgram, analysis: Analysis, bos: bool) -> None:
        self.core = core
        self.an = analysis
        self.bos = bos
        self.nodes: list[Node] = list(core.nodes)
        self.heads: list[HeadPlan] = []
        self.groups: list[GroupPlan] = []
        self.embeddings: list[Rep] = []
        self.width_sums: dict[int, tuple[tuple[int, int], ...]] = {}
        self.width_shares: dict[int, tuple[int, int]] = {}
        self.onehots: dict[int, Rep] = {}
        self.scalars: dict[int, Rep] = {}
        self.axes: dict[int, Axis] = {}
        self.counts: dict[int, Axis] = {}
        self.auxiliaries: dict[tuple[object, ...], int] = {}
        self._natural: dict[int, str] = {}
        self.problems: list[PlanError] = []
        self.source_of: dict[int, int] = {}
        self._demanded: list[int] = [core.output]
        self._kept: list[Rep] = []
        self._broken: set[int] = set()  # identities of representations that stand in for what cannot be realised

    # -- problems: reported, and planning goes on, so that all are found at once -----------------------------------

    def report(self, problem: PlanError) -> None:
        """Note a problem. That of an auxiliary node is its source node's."""
        problem.node = self.source_of.get(problem.node, problem.node)
        if all((problem.node, problem.reason) != (known.node, known.reason) for known in self.problems):
            self.problems.append(problem)

    def neurons(self, node: int, axis: Axis, function: IntArray, rep: Rep, labels: tuple[object, ...]) -> DigitisedLine:
        """`neurons.digitise`, or none where it is impossible (reported) or the line only stands in for another."""
        if any(id(source) in self._broken for source, _, _ in axis.weights):
            return DigitisedLine([], 0.0)
        try:
            return nn.digitise(node, axis, function, rep, self.core.max_len, labels)
        except PlanError as problem:
            self.report(problem)
            return DigitisedLine([], 0.0)

    def _demand(self, node: int, make: Callable[[], Made], stand_in: Callable[[], Made]) -> Made:
        self._demanded.append(self.source_of.get(node, node))
        try:
            return make()
        except PlanError as problem:
            self.report(problem)
            return stand_in()
        finally:
            self._demanded.pop()

    def _broken_onehot(self, node: int) -> Rep:
        size = len(self.values(node))
        rep = Rep(node, "onehot", size, np.arange(size), None, 0)
        self._broken.add(id(rep))
        self._kept.append(rep)
        return rep

    def _broken_axis(self, node: int) -> Axis:
        rep = new_scalar(node, np.arange(float(len(self.values(node)))), 0)
        self._broken.add(id(rep))
        self._kept.append(rep)
        return axis_of(node, rep, True)

    def values(self, node: int) -> tuple[Value, ...]:
        """The values list of a value node."""
        return self.nodes[node].values  # type: ignore[union-attr]

    def relevant(self, node: int) -> tuple[int, ...]:
        """The basis nodes that the node's value really depends on."""
        if node >= len(self.core.nodes):
            return (node,)
        cut = self.an.cut(node)
        if len(cut) <= 1:
            return cut
        size = int(np.prod([len(self.values(c)) for c in cut]))
        if size > MAX_FUSED:
            return cut
        table = self.table(node, cut)
        kept = list(cut)
        for c in reversed(cut):  # one by one: of two that tell the same, one must stay; the deeper one goes
            axis = kept.index(c)
            low = np.where(table >= 0, table, np.iinfo(np.int32).max).min(axis=axis)
            high = table.max(axis=axis)
            if not (low < high).any():
                kept.remove(c)
                table = high
        return tuple(kept) or cut[:1]

    def table(self, node: int, over: tuple[int, ...]) -> npt.NDArray[np.int32]:
        """Value index of `node` for each tuple of `over`; -1 where the tuple cannot occur.

        `over` holds the node's `relevant` nodes; the others of its cut are projected out.
        """
        ignored = tuple(c for c in self.an.cut(node) if c not in over)
        table = self.an.function(node, (*over, *ignored)).copy()
        table[~self.an.possible_tuples((*over, *ignored))] = -1
        return table.max(axis=tuple(range(len(over), table.ndim))) if ignored else table

    def unary(self, node: int, over: int) -> IntArray:
        """Value index of `node` for each value of `over`, if it depends on that alone (or is it); -1: impossible."""
        if node == over:
            return np.arange(len(self.values(node)), dtype=np.int64)
        if node >= len(self.core.nodes):
            raise PlanError(
                node,
                "the compiler would have to encode a joint value that it introduced here in two ways, which it cannot; "
                "name the parts of the expression in steps, or select by fewer values",
            )
        cut = self.an.cut(node)
        table = self.table(node, cut)
        moved = np.moveaxis(table, cut.index(over), 0).reshape(len(self.values(over)), -1)
        found: IntArray = moved.max(axis=1).astype(np.int64)
        return found

    def natural(self, node: int) -> str:
        """How a basis node arises most directly: "onehot" or "scalar"."""
        if node not in self._natural:
            self._natural[node] = self._find_natural(node)
        return self._natural[node]

    def _find_natural(self, node: int) -> str:
        op = self.nodes[node]
        if isinstance(op, (Width, Linear)):
            return "scalar"
        if isinstance(op, Aggregate):
            if not self.an.singular(node):
                return "scalar"
            return "scalar" if self.scalar_source(op.value) or len(op.values) > MAX_ONEHOT else "onehot"
        return "onehot"

    def scalar_source(self, node: int) -> bool:
        """Is the value best gathered as one number: a mean (or an affine function of one)?"""
        basis = self.relevant(node)
        if len(basis) != 1:
            return False
        op = self.nodes[basis[0]]
        if isinstance(op, Width) or self.natural(basis[0]) == "onehot":
            return False
        return node == basis[0] or self.affine_map(node, basis[0]) is not None

    def affine_map(self, node: int, basis: int) -> tuple[Fraction, Fraction] | None:
        """(slope, offset) if node = offset + slope * basis exactly, on all possible numbers (and never None)."""
        function = self.unary(node, basis)
        xs, ys = [], []
        for index in np.flatnonzero(function >= 0):
            x, y = self.values(basis)[index], self.values(node)[function[index]]
            if isinstance(x, (str, type(None))) or isinstance(y, (str, type(None))):
                return None
            xs.append(Fraction(x))
            ys.append(Fraction(y))
        if len(xs) < 2:
            return None
        slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0])
        offset = ys[0] - slope * xs[0]
        return (slope, offset) if all(y == offset + slope * x for x, y in zip(xs, ys, strict=True)) else None

    def onehot(self, node: int) -> Rep:
        """The one-hot representation of exactly this node."""
        if node not in self.onehots:
            self.onehots[node] = self._demand(node, lambda: self._onehot(node), lambda: self._broken_onehot(node))
        return self.onehots[node]

    def _onehot(self, node: int) -> Rep:
        op = self.nodes[node]
        if isinstance(op, (Tokens, Indices)):
            rep = self.new_onehot(node, written=-1)
            self.embeddings.append(rep)
        elif isinstance(op, Aggregate) and self.natural(node) == "onehot":
            rep = plan_heads.gather(self, node, op)
        elif isinstance(op, Map):
            basis = self.relevant(node)
            if len(basis) == 1 and self.natural_of(basis[0]) == "scalar":
                rep = plan_maps.digitise(self, node, self.axis(basis[0]), "onehot")
            else:
                rep = plan_maps.combined(self, node, op) or plan_maps.product(self, node)
        else:
            rep = plan_maps.digitise(self, node, self.axis(node), "onehot")
        return rep

    def natural_of(self, node: int) -> str:
        """`natural`, also for auxiliary nodes."""
        return "onehot" if node >= len(self.core.nodes) and isinstance(self.nodes[node], Map) else self.natural(node)

    def carrier(self, node: int) -> tuple[Rep, IntArray]:
        """A one-hot representation that determines the node, and the node's value index per value of it."""
        if node >= len(self.core.nodes):
            rep = self.onehot(node)
            return rep, np.arange(len(self.values(node)))
        basis = self.relevant(node)
        if not basis:
            rep = self.onehot(1 if 1 in self.onehots and 0 not in self.onehots else 0)
            return rep, np.full(len(self.values(rep.node)), int(self.an.function(node, ())), dtype=np.int64)
        if len(basis) == 1 and self.natural(basis[0]) == "onehot":
            return self.onehot(basis[0]), self.unary(node, basis[0])
        if len(basis) == 1 and basis[0] in self.onehots:
            return self.onehots[basis[0]], self.unary(node, basis[0])
        function = self.table(node, basis) if len(basis) > 1 and self.fits(basis) else None
        if function is not None and len(np.unique(function[function >= 0])) == 1:
            return self.onehot(0), np.full(len(self.values(0)), int(function.max()), dtype=np.int64)
        return self.onehot(node), np.arange(len(self.values(node)))

    def fits(self, over: tuple[int, ...]) -> bool:
        """Whether a table over all values of the nodes is small enough to be written out."""
        return int(np.prod([len(self.values(c)) for c in over])) <= MAX_FUSED

    def axis(self, node: int) -> Axis:
        """A number line that carries the node (of any kind), monotone or not."""
        if node not in self.axes:
            self.axes[node] = self._demand(node, lambda: self._axis(node), lambda: self._broken_axis(node))
        return self.axes[node]

    def _axis(self, node: int) -> Axis:
        op = self.nodes[node]
        if isinstance(op, Width):
            found = plan_widths.width_axis(self, node, op)
        elif isinstance(op, Linear):
            found = self.linear_axis(node, op)
        elif isinstance(op, Aggregate) and self.natural(node) == "scalar":
            rep = plan_heads.average(self, node, op)
            assert rep.points is not None
            affine = all(map(is_number, op.values)) and np.array_equal(points_of(op.values), rep.points)
            found = axis_of(node, rep, affine)
        else:
            found = self.affine_axis(node)
        return found

    def affine_axis(self, node: int) -> Axis:
        """A number line on which the node's point is its value; its values must be numbers."""
        return self._demand(node, lambda: self._affine_axis(node), lambda: self._broken_axis(node))

    def _affine_axis(self, node: int) -> Axis:
        bad = [v for v in self.values(node) if v is None or isinstance(v, str)]
        if bad:
            raise PlanError(
                node, f"it is averaged or added, and may be {bad[0]!r}, which is not a number; map it to numbers first"
            )
        op = self.nodes[node]
        basis = self.relevant(node)
        if not basis:
            points = points_of(self.values(node))
            return Axis(node, (), [], float(points[int(self.an.function(node, ()))]), points, True, 0)
        source = self.nodes[basis[0]]
        if len(basis) == 1 and self.natural_of(basis[0]) == "scalar":
            if isinstance(source, Width) and node not in self.onehots:
                return self.count_axis(basis[0], node)
            if node == basis[0] and isinstance(op, (Aggregate, Linear)):
                return self.axis(node)
            affine = self.affine_map(node, basis[0])
            if affine is not None and not isinstance(source, Width):
                inner = self.affine_axis(basis[0])
                slope, offset = float(affine[0]), float(affine[1])
                weights = [(r, i, slope * w) for r, i, w in inner.weights]
                points = points_of(self.values(node))
                return Axis(node, inner.reads, weights, slope * inner.bias + offset, points, True, inner.ready)
            if len(self.values(node)) >= SCALAR_OUTPUT_FROM:
                if node not in self.scalars:
                    self.scalars[node] = plan_maps.digitise(self, node, self.axis(basis[0]), "scalar")
                return axis_of(node, self.scalars[node], True)
        return self.onehot_axis(node)

    def onehot_axis(self, node: int, points: dict[object, float] | None = None) -> Axis:
        """The node's numbers read off a one-hot; `points` has places for values that are no numbers (0 for others)."""
        rep, function = self.carrier(node)
        numbers = points_of(self.values(node))
        for i, value in enumerate(self.values(node)):
            if not is_number(value) and points is not None:
                numbers[i] = points.get(value, 0.0)
        weights = [
            (rep, int(rep.slot[i]), numbers[g])
            for i, g in enumerate(function)
            if g >= 0 and numbers[g] and rep.slot[i] >= 0
        ]
        return Axis(node, (rep.node,), weights, 0.0, numbers, True, rep.ready)

    def count_axis(self, width: int, node: int) -> Axis:
        """The width (or a function of it) as a plain number."""
        axis = self.axis(width)
        if axis.affine and node == width:
            return axis
        if node not in self.counts:
            self.counts[node] = axis_of(node, plan_maps.digitise(self, node, axis, "scalar"), True)
        return self.counts[node]

    def new_onehot(self, node: int, written: int) -> Rep:
        """A one-hot with a coordinate for each possible value."""
        possible = self.an.ever(node) if node < len(self.core.nodes) else np.ones(len(self.values(node)), dtype=bool)
        slot = np.where(possible, np.cumsum(possible) - 1, -1)
        size = int(possible.sum())
        if size > MAX_ONEHOT:
            self.report(
                PlanError(
                    node,
                    f"it has {size} possible values, each of which needs a coordinate of its own here, and at most "
                    f"{MAX_ONEHOT} are given to one s-op; round or map it to fewer values, or lower max_len",
                    too_long=True,
                )
            )
        return Rep(node, "onehot", size, slot, None, written)

    def append(self, node: Node) -> int:
        """Append an auxiliary node, and return its position."""
        self.nodes.append(node)
        self.source_of[len(self.nodes) - 1] = self._demanded[-1]
        return len(self.nodes) - 1

    def name(self, node: int) -> str:
        """What messages and labels call a node."""
        return self.nodes[node].name or f"node {node}"

    def add_group(self, group: GroupPlan) -> None:
        """Add neurons, and note what they read."""
        for neuron in group.neurons:
            for rep, _, _ in neuron.weights:
                rep.read_at(group.time)
        self.groups.append(group)

    def add_head(self, head: HeadPlan) -> None:
        """Add a head, and note what it reads."""
        for atom in head.atoms:
            atom.key.read_at(head.time)
            atom.query.read_at(head.time)
        for rep, *_ in head.values:
            rep.read_at(head.time)
        self.heads.append(head)

    def linear_axis(self, node: int, op: Linear) -> Axis:
        """A linear combination's number line: that of its arguments' number lines."""
        axes = [self.affine_axis(arg) for arg in op.args]
        weights: Weights = []
        bias = float(op.constant)
        for axis, coefficient in zip(axes, op.coefficients, strict=True):
            weights += [(r, i, float(coefficient) * w) for r, i, w in axis.weights]
            bias += float(coefficient) * axis.bias
        reads = tuple(sorted({n for a in axes for n in a.reads}))
        return Axis(node, reads, weights, bias, points_of(op.values), True, max(a.ready for a in axes))


def plan(core: CoreProgram, analysis: Analysis, bos: bool, hint: Hint = "auto") -> Plan:
    """Plan a core program; `hint`: how the output is to be read. Raises `Unplannable` with all that cannot be."""
    planner = Planner(core, analysis, bos)
    try:
        found = _plan(planner, hint)
    except PlanError as problem:
        planner.report(problem)
    except Exception:  # in the wake of a problem that is reported
        if not planner.problems:
            raise
    if planner.problems:
        raise Unplannable(tuple(sorted(planner.problems, key=lambda problem: problem.node)))
    return found


def _plan(planner: Planner, hint: Hint) -> Plan:
    core = planner.core
    output = core.output
    basis = planner.relevant(output)
    values = planner.values(output)
    number = all(v is not None and not isinstance(v, str) for v in values)
    scalar = len(basis) == 1 and planner.natural(basis[0]) == "scalar" and not isinstance(core.nodes[basis[0]], Width)
    wide = number and len(values) >= SCALAR_OUTPUT_FROM
    affine = scalar and (output == basis[0] or planner.affine_map(output, basis[0]) is not None)
    decode: tuple[Rep, IntArray] | Axis
    if hint == "categorical":
        decode = planner.carrier(output)
    elif scalar and output == basis[0]:
        decode = planner.axis(output)
    elif affine or wide or (hint == "numerical" and number):
        decode = planner.affine_axis(output)
    else:
        decode = planner.carrier(output)
    if isinstance(decode, Axis) and not planner.problems:
        _check_readable(decode, core.max_len, values)
    extended = core.extended(*planner.nodes[len(core.nodes) :])
    return Plan(
        extended,
        len(core.nodes),
        planner.embeddings,
        planner.heads,
        planner.groups,
        planner.width_sums,
        planner.width_shares,
        decode,
    )


def _check_readable(axis: Axis, max_len: int, values: tuple[Value, ...]) -> None:
    """A mean of k numbers is within (k + 2) u max|v| in float32: neighbours must be further apart than twice that."""
    order = np.argsort(axis.points)
    ranked = axis.points[order]
    gaps = np.diff(ranked)
    unit = 2.0**-24
    if all(rep.kind == "onehot" for rep, _, _ in axis.weights):  # a sum of a few exact weights
        error = 4 * unit * np.maximum(np.abs(ranked[1:]), np.abs(ranked[:-1]))
    else:
        error = np.full(gaps.shape, (max_len + 2) * unit * float(np.abs(ranked).max(initial=0.0)))
    bad = np.flatnonzero(gaps <= 2 * error)
    if bad.size:
        at = int(bad[gaps[bad].argmin()])
        low, high = values[order[at]], values[order[at + 1]]
        raise PlanError(
            axis.over,
            f"the outputs {show(low)} and {show(high)} are read off one logit, on which they lie {gaps[at]:.2e} apart; "
            f"to tell them apart in float32 takes more than {2 * error[at]:.2e} at this length; "
            "lower max_len, or round the output to fewer values",
            too_long=True,
        )
