"""From a core program to a plan: which nodes get a representation, computed by which head or neurons, and when.

Demand-driven: the output asks for a representation, which asks for those of its arguments. Each component is
scheduled as early as its arguments allow, so depth is minimal. Functions of one categorical node cost nothing (its
one-hot is read through the function); chains of maps are fused into one group of neurons over the basis nodes they
depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from . import neurons as nn
from .analysis import Analysis
from .combinations import combination
from .components import AtomPlan, Axis, GroupPlan, HeadPlan, PlanError, Rep, Weights
from .core import (
    Aggregate,
    And,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Or,
    Select,
    Tokens,
    Value,
    Width,
    canonical,
    normalise,
)
from .first_position import selects_first
from .selectors import Term, disjoint_terms, split_product

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

MAX_ONEHOT = 4096
MAX_NEURONS = 6000
MAX_FUSED = 1 << 18
SCALAR_OUTPUT_FROM = 129


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
        self._onehot: dict[int, Rep] = {}
        self._scalar: dict[int, Rep] = {}
        self._axis: dict[int, Axis] = {}
        self._counts: dict[int, Axis] = {}
        self._terms: dict[int, list[Term]] = {}
        self._auxiliary: dict[tuple[object, ...], int] = {}

    # -- what is known of nodes -------------------------------------------------------------------------------------

    def values(self, node: int) -> tuple[Value, ...]:
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
            raise PlanError(node, "auxiliary node read through another")
        cut = self.an.cut(node)
        table = self.table(node, cut)
        moved = np.moveaxis(table, cut.index(over), 0).reshape(len(self.values(over)), -1)
        found: IntArray = moved.max(axis=1).astype(np.int64)
        return found

    def natural(self, node: int) -> str:
        """How a basis node arises most directly: "onehot" or "scalar"."""
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

    # -- representations --------------------------------------------------------------------------------------------

    def onehot(self, node: int) -> Rep:
        """The one-hot representation of exactly this node."""
        if node in self._onehot:
            return self._onehot[node]
        op = self.nodes[node]
        if isinstance(op, (Tokens, Indices)):
            rep = self._new_onehot(node, written=-1)
            self.embeddings.append(rep)
        elif isinstance(op, Aggregate) and self.natural(node) == "onehot":
            rep = self._gather(node, op)
        elif isinstance(op, Map):
            basis = self.relevant(node)
            if len(basis) == 1 and self.natural_of(basis[0]) == "scalar":
                rep = self._digitise(node, self.axis(basis[0]), "onehot")
            else:
                rep = self._combined(node, op) or self._product(node)
        else:
            rep = self._digitise(node, self.axis(node), "onehot")
        self._onehot[node] = rep
        return rep

    def natural_of(self, node: int) -> str:
        return "onehot" if node >= len(self.core.nodes) and isinstance(self.nodes[node], Map) else self.natural(node)

    def carrier(self, node: int) -> tuple[Rep, IntArray]:
        """A one-hot representation that determines the node, and the node's value index per value of it."""
        if node >= len(self.core.nodes):
            rep = self.onehot(node)
            return rep, np.arange(len(self.values(node)))
        basis = self.relevant(node)
        if not basis:
            rep = self.onehot(1 if 1 in self._onehot and 0 not in self._onehot else 0)
            return rep, np.full(len(self.values(rep.node)), int(self.an.function(node, ())), dtype=np.int64)
        if len(basis) == 1 and self.natural(basis[0]) == "onehot":
            return self.onehot(basis[0]), self.unary(node, basis[0])
        if len(basis) == 1 and basis[0] in self._onehot:
            return self._onehot[basis[0]], self.unary(node, basis[0])
        function = self.table(node, basis) if len(basis) > 1 and self._fits(basis) else None
        if function is not None and len(np.unique(function[function >= 0])) == 1:
            return self.onehot(0), np.full(len(self.values(0)), int(function.max()), dtype=np.int64)
        return self.onehot(node), np.arange(len(self.values(node)))

    def _fits(self, over: tuple[int, ...]) -> bool:
        return int(np.prod([len(self.values(c)) for c in over])) <= MAX_FUSED

    def axis(self, node: int) -> Axis:
        """A number line that carries the node (of any kind), monotone or not."""
        if node in self._axis:
            return self._axis[node]
        op = self.nodes[node]
        if isinstance(op, Width):
            found = self._width_axis(node, op)
        elif isinstance(op, Linear):
            found = self._linear_axis(node, op)
        elif isinstance(op, Aggregate) and self.natural(node) == "scalar":
            rep = self._average(node, op)
            assert rep.points is not None
            affine = all(map(_is_number, op.values)) and np.array_equal(_points(op.values), rep.points)
            found = _axis_of(node, rep, affine)
        else:
            found = self.affine_axis(node)
        self._axis[node] = found
        return found

    def affine_axis(self, node: int) -> Axis:
        """A number line on which the node's point is its value; its values must be numbers."""
        bad = [v for v in self.values(node) if v is None or isinstance(v, str)]
        if bad:
            raise PlanError(node, f"its value {bad[0]!r} is not a number, and it is averaged or added")
        op = self.nodes[node]
        basis = self.relevant(node)
        if not basis:
            points = _points(self.values(node))
            return Axis(node, (), [], float(points[int(self.an.function(node, ()))]), points, True, 0)
        source = self.nodes[basis[0]]
        if len(basis) == 1 and self.natural_of(basis[0]) == "scalar":
            if isinstance(source, Width) and node not in self._onehot:
                return self._count_axis(basis[0], node)
            if node == basis[0] and isinstance(op, (Aggregate, Linear)):
                return self.axis(node)
            affine = self.affine_map(node, basis[0])
            if affine is not None and not isinstance(source, Width):
                inner = self.affine_axis(basis[0])
                slope, offset = float(affine[0]), float(affine[1])
                weights = [(r, i, slope * w) for r, i, w in inner.weights]
                points = _points(self.values(node))
                return Axis(node, inner.reads, weights, slope * inner.bias + offset, points, True, inner.ready)
            if len(self.values(node)) >= SCALAR_OUTPUT_FROM:
                if node not in self._scalar:
                    self._scalar[node] = self._digitise(node, self.axis(basis[0]), "scalar")
                return _axis_of(node, self._scalar[node], True)
        return self._onehot_axis(node)

    def _onehot_axis(self, node: int, points: dict[object, float] | None = None) -> Axis:
        """The node's numbers read off a one-hot; `points` has places for values that are no numbers (0 for others)."""
        rep, function = self.carrier(node)
        numbers = _points(self.values(node))
        for i, value in enumerate(self.values(node)):
            if not _is_number(value) and points is not None:
                numbers[i] = points.get(value, 0.0)
        weights = [
            (rep, int(rep.slot[i]), numbers[g])
            for i, g in enumerate(function)
            if g >= 0 and numbers[g] and rep.slot[i] >= 0
        ]
        return Axis(node, (rep.node,), weights, 0.0, numbers, True, rep.ready)

    def _count_axis(self, width: int, node: int) -> Axis:
        """The width (or a function of it) as a plain number."""
        axis = self.axis(width)
        if axis.affine and node == width:
            return axis
        if node not in self._counts:
            self._counts[node] = _axis_of(node, self._digitise(node, axis, "scalar"), True)
        return self._counts[node]

    def _new_onehot(self, node: int, written: int) -> Rep:
        possible = self.an.ever(node) if node < len(self.core.nodes) else np.ones(len(self.values(node)), dtype=bool)
        slot = np.where(possible, np.cumsum(possible) - 1, -1)
        size = int(possible.sum())
        if size > MAX_ONEHOT:
            raise PlanError(node, f"it has {size} possible values, more than {MAX_ONEHOT} coordinates can be spent on")
        return Rep(node, "onehot", size, slot, None, written)

    # -- neurons ----------------------------------------------------------------------------------------------------

    def _digitise(self, node: int, axis: Axis, kind: str) -> Rep:
        """Read a number line, write the node (a function of `axis.over`)."""
        time = _odd(axis.ready)
        rep = self._new_onehot(node, time) if kind == "onehot" else _new_scalar(node, _points(self.values(node)), time)
        function = self.unary(node, axis.over)
        if axis.over < len(self.core.nodes):
            function = np.where(self.an.ever(axis.over), function, -1)
        found = nn.digitise(node, axis, function, rep, self.core.max_len, self.values(axis.over))
        self._add_group(GroupPlan(time, node, axis.reads, found, rep))
        return rep

    def _combined(self, node: int, op: Map) -> Rep | None:
        """A function of one signed sum of its arguments is read off that sum, where this takes fewer neurons."""
        args = tuple(dict.fromkeys(op.args))
        if node >= len(self.core.nodes) or len(args) < 2 or len(args) != len(op.args) or not self._fits(args):
            return None
        table = np.where(self.an.possible_tuples(args), op.table, -1)
        found = combination(table, [self.values(a) for a in args])
        if found is None or 2 * found.thresholds + 1 >= _neuron_estimate(table):
            return None
        axes = [self.affine_axis(a) for a in args]
        reads = tuple(sorted({n for axis in axes for n in axis.reads}))
        if int(np.prod([len(self.values(n)) for n in reads])) > MAX_FUSED:
            return None
        weights = [(r, i, sign * w) for sign, axis in zip(found.weights, axes, strict=True) for r, i, w in axis.weights]
        bias = sum(sign * axis.bias for sign, axis in zip(found.weights, axes, strict=True))
        line = Axis(node, reads, weights, bias, found.points, True, max(axis.ready for axis in axes))
        time = _odd(line.ready)
        rep = self._new_onehot(node, time)
        labels = tuple(float(p) for p in found.points)
        self._add_group(
            GroupPlan(time, node, reads, nn.digitise(node, line, found.function, rep, self.core.max_len, labels), rep)
        )
        return rep

    def _product(self, node: int) -> Rep:
        """A lookup over several one-hot arguments."""
        op = self.nodes[node]
        assert isinstance(op, Map)
        reads, table = self._arguments(node, op)
        time = _odd(max(rep.ready for rep in reads))
        rep = self._new_onehot(node, time)
        found = nn.lookup(node, reads, table, rep)
        if len(found) > MAX_NEURONS:
            raise PlanError(
                node, f"its table needs {len(found)} neurons (limit {MAX_NEURONS}): it has too many argument values"
            )
        self._add_group(GroupPlan(time, node, tuple(r.node for r in reads), found, rep))
        return rep

    def _arguments(self, node: int, op: Map) -> tuple[list[Rep], npt.NDArray[np.int32]]:
        """One-hot arguments that determine the node and the node's table over them (-1: cannot occur)."""
        basis = self.relevant(node) if node < len(self.core.nodes) else op.args
        if node < len(self.core.nodes) and self._fits(basis):
            table = self.table(node, basis)
            if _neuron_estimate(table) <= MAX_NEURONS:
                reads = []
                for position, c in enumerate(basis):
                    if self.natural(c) == "onehot" or c in self._onehot:
                        reads.append(self.onehot(c))
                        continue
                    classes, inverse = nn.classes(table, position)
                    representative = [int(np.argmax(inverse == k)) for k in range(classes)]
                    auxiliary = self._auxiliary_map(
                        (c,), inverse.astype(np.int32), classes, f"class of {self._name(c)}"
                    )
                    table = np.take(table, representative, axis=position)
                    reads.append(self._digitised_class(auxiliary, c))
                return reads, table
        if node >= len(self.core.nodes):
            return [self.onehot(a) for a in op.args], op.table
        found: dict[int, Rep] = {}
        for arg in op.args:
            rep, _ = self.carrier(arg)
            found[rep.node] = rep
        nodes = tuple(sorted(found))
        resolved = self.an.resolve(node, nodes)
        if resolved is None:
            raise PlanError(node, "its arguments do not determine it")
        return [found[n] for n in nodes], resolved

    def _digitised_class(self, auxiliary: int, basis: int) -> Rep:
        if auxiliary not in self._onehot:
            axis = self.axis(basis)
            time = _odd(axis.ready)
            rep = self._new_onehot(auxiliary, time)
            op = self.nodes[auxiliary]
            assert isinstance(op, Map)
            function = np.where(self.an.ever(basis), op.table, -1)
            found = nn.digitise(auxiliary, axis, function, rep, self.core.max_len, self.values(axis.over))
            self._add_group(GroupPlan(time, auxiliary, axis.reads, found, rep))
            self._onehot[auxiliary] = rep
        return self._onehot[auxiliary]

    def _auxiliary_map(self, args: tuple[int, ...], table: npt.NDArray[np.int32], n_values: int, name: str) -> int:
        key = ("map", args, table.tobytes())
        if key not in self._auxiliary:
            self._auxiliary[key] = self._append(Map(args, table, tuple(range(n_values)), name))
        return self._auxiliary[key]

    def _append(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _name(self, node: int) -> str:
        return self.nodes[node].name or f"node {node}"

    def _add_group(self, group: GroupPlan) -> None:
        for neuron in group.neurons:
            for rep, _, _ in neuron.weights:
                rep.read_at(group.time)
        self.groups.append(group)

    # -- heads ------------------------------------------------------------------------------------------------------

    def terms(self, selector: int, single: bool) -> list[Term]:
        """Disjoint terms over nodes with one-hot representations; `single`: exactly one (product keys if need be)."""

        def leaf(index: int) -> list[Term]:
            op = self.nodes[index]
            assert isinstance(op, Select)
            if not single:
                split = self._split(op)
                if split is not None:
                    return split
            key, key_of = self.carrier(op.keys)
            query, query_of = self.carrier(op.queries)
            table = op.table[np.ix_(np.maximum(key_of, 0), np.maximum(query_of, 0))].copy()
            table[key_of < 0] = False
            table[:, query_of < 0] = False
            return [{(key.node, query.node): table}]

        try:
            found = disjoint_terms(self.nodes, selector, leaf)
        except OverflowError as error:
            raise PlanError(selector, str(error)) from None
        if single and len(found) > 1:
            return self._product_keys(selector, found)
        return found

    def _split(self, op: Select) -> list[Term] | None:
        keys, queries = self.relevant(op.keys), self.relevant(op.queries)
        if len(keys) != 2 or len(queries) != 2 or any(self.natural(c) != "onehot" for c in (*keys, *queries)):
            return None
        key_table, query_table = self.table(op.keys, keys), self.table(op.queries, queries)
        if max(key_table.size, query_table.size) < 32 or key_table.size * query_table.size > 1 << 24:
            return None
        joint = op.table[np.maximum(key_table, 0)][:, :, np.maximum(query_table, 0)]
        joint = joint & (key_table >= 0)[:, :, None, None] & (query_table >= 0)[None, None]
        for flip_keys in (False, True):
            for flip_queries in (False, True):
                k = keys[::-1] if flip_keys else keys
                q = queries[::-1] if flip_queries else queries
                order = (*((1, 0) if flip_keys else (0, 1)), *((3, 2) if flip_queries else (2, 3)))
                found = split_product(joint.transpose(order), ((k[0], q[0]), (k[1], q[1])))
                if found is not None:
                    for c in (*keys, *queries):
                        self.onehot(c)
                    return found
        return None

    def _product_keys(self, selector: int, terms: list[Term]) -> list[Term]:
        """One atom over classes of joint keys and joint queries that select (are selected) alike."""
        keys = tuple(sorted({pair[0] for term in terms for pair in term}))
        queries = tuple(sorted({pair[1] for term in terms for pair in term}))
        shape = [len(self.values(n)) for n in (*keys, *queries)]
        if int(np.prod(shape)) > 1 << 24:
            raise PlanError(selector, f"a disjunction over {int(np.prod(shape))} joint values cannot be one head")
        table = np.zeros(shape, dtype=bool)
        for term in terms:
            holds = np.ones(shape, dtype=bool)
            for (key, query), atom in term.items():
                view = [1] * len(shape)
                view[keys.index(key)], view[len(keys) + queries.index(query)] = atom.shape
                holds = holds & atom.reshape(view)
            table |= holds
        flat = table.reshape(int(np.prod(shape[: len(keys)])), -1)
        key_rows, key_class = np.unique(flat, axis=0, return_inverse=True)
        columns, query_class = np.unique(key_rows, axis=1, return_inverse=True)
        key = self._class_node(keys, key_class, shape[: len(keys)], len(key_rows))
        query = self._class_node(queries, query_class, shape[len(keys) :], columns.shape[1])
        rows, cols = columns, columns
        if key == keys[0] and len(keys) == 1:
            rows = columns[key_class.reshape(-1)]
        cols = rows[:, query_class.reshape(-1)] if query == queries[0] and len(queries) == 1 else rows
        return [{(key, query): np.ascontiguousarray(cols)}]

    def _class_node(self, nodes: tuple[int, ...], classes: IntArray, shape: list[int], n: int) -> int:
        if len(nodes) == 1:
            return nodes[0]
        table = classes.reshape(shape).astype(np.int32)
        auxiliary = self._auxiliary_map(nodes, table, n, "joint class")
        if auxiliary not in self._onehot:
            self._onehot[auxiliary] = self._product(auxiliary)
        return auxiliary

    def _atoms(self, term: Term) -> list[AtomPlan]:
        return [AtomPlan(self.onehot(k), self.onehot(q), table) for (k, q), table in term.items()]

    def _head(self, head: HeadPlan) -> None:
        for atom in head.atoms:
            atom.key.read_at(head.time)
            atom.query.read_at(head.time)
        for rep, *_ in head.values:
            rep.read_at(head.time)
        self.heads.append(head)

    def _one_term(self, node: int, selector: int) -> Term | None:
        """The single term of a selector; None if nothing is ever selected."""
        found = self.terms(selector, single=True)
        return found[0] if found else None

    def _start(self, node: int, term: Term | None, ready: int) -> tuple[list[AtomPlan], int]:
        if term is None:
            if not self.bos:
                raise PlanError(node, "its selection is always empty, which needs BOS as a sink (bos=True)")
            never = self.onehot(0)
            term = {(0, 0): np.zeros((len(self.values(0)),) * 2, dtype=bool)}
            ready = max(ready, never.ready)
        atoms = self._atoms(term)
        return atoms, _even(max([ready, *(a.key.ready for a in atoms), *(a.query.ready for a in atoms)]))

    def _need_selection(self, node: int, op: Aggregate) -> None:
        if not self.bos and not self.an.nonempty(op.selector):
            raise PlanError(node, "its selection may be empty, which needs BOS as a sink: compile with bos=True")

    def _gather(self, node: int, op: Aggregate) -> Rep:
        """At most one value is selected (or all selected are equal): copy its one-hot."""
        self._need_selection(node, op)
        source, function = self.carrier(op.value)
        atoms, time = self._start(node, self._one_term(node, op.selector), source.ready)
        rep = self._new_onehot(node, time)
        index_of = {value: i for i, value in enumerate(op.values)}
        values = []
        for i, g in enumerate(function):
            target = index_of.get(self.values(op.value)[g], -1) if g >= 0 else -1
            if target >= 0 and rep.slot[target] >= 0 and source.slot[i] >= 0:
                values.append((source, int(source.slot[i]), int(rep.slot[target]), 1.0))
        sink = np.zeros(rep.size)
        if op.default >= 0 and rep.slot[op.default] >= 0:
            sink[rep.slot[op.default]] = 1.0
        self._head(HeadPlan(time, node, atoms, (source.node,), values, np.zeros(rep.size), sink, rep, False))
        return rep

    def _average(self, node: int, op: Aggregate) -> Rep:
        """The mean of numbers (or the copy of one) as a scalar."""
        if node in self._scalar:
            return self._scalar[node]
        self._need_selection(node, op)
        source = self.values(op.value)
        points = _separated(op.values)
        if self.an.singular(node) and self.scalar_source(op.value):
            basis = self.relevant(op.value)[0]
            axis = self.affine_axis(op.value) if op.value != basis else self.axis(op.value)
            if not axis.affine:  # copied as they are; a default that is no value of the source gets its own place
                place = dict(zip(source, axis.points, strict=True))
                new = [i for i, value in enumerate(op.values) if value not in place]
                points = np.array([place.get(value, 0.0) for value in op.values])
                points[new] = np.floor(axis.points.min()) - 1.0 - np.arange(len(new))
        elif all(map(_is_number, source)):
            axis = self.affine_axis(op.value)
        else:  # what is no number is selected together with equal values only
            axis = self._onehot_axis(op.value, dict(zip(op.values, points, strict=True)))
        atoms, time = self._start(node, self._one_term(node, op.selector), axis.ready)
        rep = _new_scalar(node, points, time)
        values = [(r, i, 0, w) for r, i, w in axis.weights]
        sink = np.array([points[op.default] if op.default >= 0 else 0.0])
        head = HeadPlan(time, node, atoms, axis.reads, values, np.array([axis.bias]), sink, rep, False)
        head.affine = not self.an.singular(node)
        self._head(head)
        self._scalar[node] = rep
        return rep

    def _width_axis(self, node: int, op: Width) -> Axis:
        if not self.bos:
            return self._width_without_bos(node, op)
        terms = self.terms(op.selector, single=False)
        if len(terms) > 8:
            terms = self.terms(op.selector, single=True)
        if len(terms) <= 1:
            rep = self._share(node, terms[0] if terms else None)
            return _axis_of(node, rep, False)
        axes = []
        for term in terms:
            axes.append(self._count_axis_of_term(self._term_width(term, node)))
        parts = [a.over for a in axes]
        self.width_sums[node] = tuple((p, 1) for p in parts)
        return Axis(
            node,
            tuple(parts),
            [w for a in axes for w in a.weights],
            0.0,
            _points(op.values),
            True,
            max(a.ready for a in axes),
        )

    def _count_axis_of_term(self, width: int) -> Axis:
        raw = self._axis.get(width)
        if raw is None:
            raise PlanError(width, "unplanned term")
        if width not in self._counts:
            self._counts[width] = _axis_of(width, self._digitise_term(width, raw), True)
        return self._counts[width]

    def _digitise_term(self, width: int, axis: Axis) -> Rep:
        time = _odd(axis.ready)
        rep = _new_scalar(width, _points(self.values(width)), time)
        function = np.arange(len(self.values(width)))
        self._add_group(
            GroupPlan(
                time,
                width,
                axis.reads,
                nn.digitise(width, axis, function, rep, self.core.max_len, self.values(width)),
                rep,
            )
        )
        return rep

    def _term_width(self, term: Term, parent: int) -> int:
        """An auxiliary width of one term, with its head."""
        key = ("width", tuple(sorted((pair, table.tobytes()) for pair, table in term.items())))
        if key in self._auxiliary:
            return self._auxiliary[key]
        selector = -1
        for (k, q), table in term.items():
            leaf = self._append(Select(k, q, table, ""))
            selector = leaf if selector < 0 else self._append(And(selector, leaf, ""))
        if selector < 0:
            n = len(self.values(0))
            selector = self._append(Select(0, 0, np.ones((n, n), dtype=bool), ""))
        width = self._append(Width(selector, tuple(range(self.core.max_len + 1)), f"part of {self._name(parent)}"))
        self._axis[width] = _axis_of(width, self._share(width, term), False)
        self._auxiliary[key] = width
        return width

    def _share(self, node: int, term: Term | None) -> Rep:
        """BOS is selected beside the keys and alone has value 1: the head reads 1 / (1 + width)."""
        if not self.bos:
            raise PlanError(node, "counting selected positions needs BOS: compile with bos=True")
        atoms, time = self._start(node, term, 0)
        points = np.array([1.0 / (1 + w) for w in self.values(node)])  # type: ignore[operator]
        rep = _new_scalar(node, points, time)
        self._head(HeadPlan(time, node, atoms, (), [], np.zeros(1), np.ones(1), rep, True))
        return rep

    def _width_without_bos(self, node: int, op: Width) -> Axis:
        """Position 0 stands in for BOS: where it is always selected, its share is 1 / width.

        Otherwise one head counts with position 0 added to the selection, and another tells by the share of position 0
        in the selection itself (0, or 1 / width) whether it had been in it.
        """
        if not self.an.nonempty(op.selector):
            raise PlanError(node, "it counts a selection that may be empty, which needs BOS: compile with bos=True")
        first = np.array([v == 0 for v in self.values(1)])
        if selects_first(self.an, op.selector):
            return _axis_of(node, self._share_of_first(node, self._one_term(node, op.selector)), False)
        values = self.values(1)
        zero = self._append(Select(1, 1, np.repeat(first[:, None], len(values), axis=1), ""))
        either = self._append(Or(op.selector, zero, ""))
        counted = self._append(
            Width(either, tuple(range(self.core.max_len + 1)), f"{self._name(node)} with position 0")
        )
        whole = _axis_of(counted, self._share_of_first(counted, self._one_term(counted, either)), False)
        is_first = self._append(Map((1,), first.astype(np.int32), (False, True), "is position 0"))
        means = canonical(Fraction(k, m) for m in range(1, self.core.max_len + 1) for k in range(m + 1))
        shares = tuple(normalise(v) for v in means)
        inside = self._append(
            Aggregate(op.selector, is_first, -1, shares, f"share of position 0 in {self._name(node)}")
        )
        positions = self.onehot(1)
        atoms, time = self._start(node, self._one_term(inside, op.selector), positions.ready)
        rep = _new_scalar(inside, _points(shares), time)
        weights = [(positions, int(positions.slot[0]), 0, 1.0)]
        mean = not self.an.at_most_one(op.selector)
        head = HeadPlan(time, inside, atoms, (1,), weights, np.zeros(1), np.zeros(1), rep, False, mean)
        self._head(head)
        self.width_shares[node] = (counted, inside)
        points = 1.0 / (_points(self.values(node)) + 1.0)  # position 0 not selected
        return self._membership_axis(node, whole, rep, points)

    def _membership_axis(self, node: int, whole: Axis, inside: Rep, points: Array) -> Axis:
        """1 / counted - 4 * share: positive where position 0 was not selected, -3 / width where it was."""
        values = np.array([float(w) for w in self.values(node)])  # type: ignore[arg-type]
        line = np.concatenate([points, -3.0 / np.maximum(values, 0.5)])
        function = np.concatenate([np.arange(len(values))] * 2)
        possible = np.concatenate([self.an.ever(node) & (values >= 1)] * 2)
        weights: Weights = [*whole.weights, (inside, 0, -4.0)]
        reads = tuple(sorted((*whole.reads, inside.node)))
        axis = Axis(node, reads, weights, 0.0, line, False, max(whole.ready, inside.ready))
        time = _odd(axis.ready)
        rep = _new_scalar(node, _points(self.values(node)), time)
        labels = tuple(float(p) for p in line)
        found = nn.digitise(node, axis, np.where(possible, function, -1), rep, self.core.max_len, labels)
        self._add_group(GroupPlan(time, node, reads, found, rep))
        return _axis_of(node, rep, True)

    def _share_of_first(self, node: int, term: Term | None) -> Rep:
        positions = self.onehot(1)
        atoms, time = self._start(node, term, positions.ready)
        points = 1.0 / np.maximum(1.0, _points(self.values(node)))
        rep = _new_scalar(node, points, time)
        values = [(positions, int(positions.slot[0]), 0, 1.0)]
        self._head(HeadPlan(time, node, atoms, (1,), values, np.zeros(1), np.zeros(1), rep, True))
        return rep

    def _linear_axis(self, node: int, op: Linear) -> Axis:
        axes = [self.affine_axis(arg) for arg in op.args]
        weights: Weights = []
        bias = float(op.constant)
        for axis, coefficient in zip(axes, op.coefficients, strict=True):
            weights += [(r, i, float(coefficient) * w) for r, i, w in axis.weights]
            bias += float(coefficient) * axis.bias
        reads = tuple(sorted({n for a in axes for n in a.reads}))
        return Axis(node, reads, weights, bias, _points(op.values), True, max(a.ready for a in axes))


def _points(values: tuple[object, ...]) -> npt.NDArray[np.float64]:
    return np.array([0.0 if v is None or isinstance(v, str) else float(v) for v in values])  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return value is not None and not isinstance(value, str)


def _separated(values: tuple[object, ...]) -> npt.NDArray[np.float64]:
    """Numbers at their places, what is no number at places of its own below them."""
    points = _points(values)
    numbers = [i for i, value in enumerate(values) if _is_number(value)]
    others = [i for i, value in enumerate(values) if not _is_number(value)]
    points[others] = np.floor(points[numbers].min(initial=0.0)) - 1.0 - np.arange(len(others))
    return points


def _new_scalar(node: int, points: npt.NDArray[np.float64], written: int) -> Rep:
    return Rep(node, "scalar", 1, np.zeros(len(points), dtype=np.int64), points, written)


def _axis_of(node: int, rep: Rep, affine: bool) -> Axis:
    assert rep.points is not None
    return Axis(node, (node,), [(rep, 0, 1.0)], 0.0, rep.points, affine, rep.ready)


def _neuron_estimate(table: npt.NDArray[np.int32]) -> int:
    return int(np.prod(sorted(table.shape)[:-1])) if table.ndim > 1 else table.size


def _odd(time: int) -> int:
    return time if time % 2 else time + 1


def _even(time: int) -> int:
    return time if time % 2 == 0 else time + 1


def plan(core: CoreProgram, analysis: Analysis, bos: bool) -> Plan:
    """Plan a core program. Raises `PlanError` naming the first node that cannot be realised."""
    planner = Planner(core, analysis, bos)
    output = core.output
    basis = planner.relevant(output)
    values = planner.values(output)
    number = all(v is not None and not isinstance(v, str) for v in values)
    scalar = len(basis) == 1 and planner.natural(basis[0]) == "scalar" and not isinstance(core.nodes[basis[0]], Width)
    if scalar and output == basis[0]:
        decode: tuple[Rep, IntArray] | Axis = planner.axis(output)
    elif (scalar and planner.affine_map(output, basis[0]) is not None) or (
        number and len(values) >= SCALAR_OUTPUT_FROM
    ):
        decode = planner.affine_axis(output)
    else:
        decode = planner.carrier(output)
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
