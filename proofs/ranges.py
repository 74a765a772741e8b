"""What values are possible, and the facts about selectors, widths and aggregates (section 2 of the specification).

Everything is computed here from the program and the alphabets; nothing is taken from the certificate but the claim
that the `values` lists contain all possible values, which is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .core import Bits, Ints, Node, Program, linear_indices
from .format import Rejected, Value, as_fraction, common_scale, is_number, require
from .joint import Joint, Selected, TooLarge, by_class

MAX_CELLS = 2**25
MAX_TUPLES = 2**22
MAX_MASK = 2**28
MAX_WEIGHT = 2**26
MAP_BY_CUT = 65536
MAX_SUM_BITS = 2**22
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Rank:
    """w's selector holds of (k, q) iff phi(k) < phi(q), for the tuples of `joint`."""

    joint: Joint
    phi: Ints


@dataclass(frozen=True, eq=False)
class Bounds:
    """lo <= number of visible selected positions <= hi, by length and query tuple (only where `queries.mask`)."""

    queries: Joint
    lo: Ints
    hi: Ints


class Ranges:
    """Section 2 for one program and one alphabet per length, extended node by node.

    possible[node][l, v]: value v of the node is possible at length `lengths[l]`.
    """

    def __init__(self, program: Program, alphabets: dict[int, Bits]) -> None:
        self.program = program
        self.lengths = np.array(sorted(alphabets), dtype=np.int64)
        require(len(self.lengths) > 0, "the domain is empty")
        require(self.lengths[-1] <= program.max_len, f"max_len {program.max_len} is below the longest input")
        self.possible: dict[int, Bits] = {}
        self.cuts: dict[int, tuple[int, ...]] = {}
        self.keys: dict[int, tuple[int, ...]] = {}
        self.queries: dict[int, tuple[int, ...]] = {}
        self.rank: dict[int, Rank] = {}
        self.permutation: set[int] = set()
        self.singular: set[int] = set()
        self.nonempty: set[int] = set()
        self._bounds: dict[int, Bounds | None] = {}
        for number, node in enumerate(program.nodes):
            try:
                self._add(number, node, alphabets)
            except Rejected as error:
                raise type(error)(f"node {number} ({node.kind}): {error.why}") from None

    def _add(self, number: int, node: Node, alphabets: dict[int, Bits]) -> None:
        if node.is_selector:
            self._add_selector(number, node)
            return
        self.cuts[number] = _union(self.cuts[arg] for arg in node.args) if node.kind == "map" else (number,)
        if node.kind == "tokens":
            result = np.array([alphabets[int(n)] for n in self.lengths])
        elif node.kind == "indices":
            result = np.arange(self.program.max_len)[None, :] < self.lengths[:, None]
        else:
            rules = {"map": self._map, "linear": self._linear, "width": self._width, "aggregate": self._aggregate}
            result = rules[node.kind](number, node)
        require(result.any(axis=1).all(), "no value is possible")
        self.possible[number] = result
        if node.kind == "width":
            self._find_rank(number, node)

    def _add_selector(self, number: int, node: Node) -> None:
        if node.kind == "select":
            self.keys[number], self.queries[number] = self.cuts[node.args[0]], self.cuts[node.args[1]]
        else:
            self.keys[number] = _union(self.keys[arg] for arg in node.args)
            self.queries[number] = _union(self.queries[arg] for arg in node.args)

    # --- tuples ----------------------------------------------------------------------------------------------

    def some(self, node: int) -> Bits:
        """The values that are possible at some length."""
        return np.asarray(self.possible[node].any(axis=0))

    def joint(self, nodes: Iterable[int]) -> Joint:
        """All tuples of values possible at some length each. Raises `TooLarge`."""
        ordered = tuple(nodes)
        axes = [np.flatnonzero(self.some(node)) for node in ordered]
        size = math.prod(len(axis) for axis in axes)
        if size > MAX_TUPLES or size * len(self.lengths) > MAX_MASK:
            raise TooLarge(f"nodes {list(ordered)} have {size} tuples of values")
        grids = np.meshgrid(*axes, indexing="ij") if axes else []
        columns = {node: grid.reshape(-1) for node, grid in zip(ordered, grids, strict=True)}
        mask = np.ones((len(self.lengths), size), dtype=np.bool_)
        for node, column in columns.items():
            mask &= self.possible[node][:, column]
        return Joint(ordered, columns, mask)

    def value_on(self, node: int, joint: Joint) -> Ints:
        """The node's value index on each tuple of a superset of its cut; -1 where a table is undefined."""
        return self._value_on(node, joint, {})

    def _value_on(self, node: int, joint: Joint, memo: dict[int, Ints]) -> Ints:
        if node in joint.columns:
            return joint.columns[node]
        if node not in memo:
            definition = self.program.nodes[node]
            assert definition.kind == "map" and definition.table is not None
            args = [self._value_on(arg, joint, memo) for arg in definition.args]
            memo[node] = look_up(definition.table, args, joint.size)
        return memo[node]

    def selector_on(self, selector: int, keys: Joint, queries: Joint) -> Bits:
        """[key tuple, query tuple]: does the selector hold? (Where a table is undefined, any answer.)"""
        if keys.size * queries.size > MAX_CELLS:
            raise TooLarge(f"{keys.size} key tuples times {queries.size} query tuples")
        node = self.program.nodes[selector]
        if node.kind == "select":
            assert node.table is not None
            rows, columns = self.value_on(node.args[0], keys), self.value_on(node.args[1], queries)
            return np.asarray(node.table[:, columns].take(rows, axis=0), dtype=np.bool_)
        if node.kind == "not":
            return ~self.selector_on(node.args[0], keys, queries)
        left, right = (self.selector_on(arg, keys, queries) for arg in node.args)
        return left & right if node.kind == "and" else left | right

    def arguments(self, selector: int, side: int) -> set[int]:
        """The nodes that the comparisons of a selector read as keys (side 0) or queries (side 1)."""
        node = self.program.nodes[selector]
        if node.kind == "select":
            return {node.args[side]}
        return {read for arg in node.args for read in self.arguments(arg, side)}

    def merged(self, joint: Joint, nodes: Iterable[int]) -> tuple[Joint, Ints]:
        """The tuples up to the values of some nodes: one of each class, possible if any of it is; and all classes."""
        ordered = sorted(nodes)
        code = np.zeros(joint.size, dtype=np.int64)
        for node in ordered:
            values = self.value_on(node, joint) + 1
            code = np.unique(code * (int(values.max(initial=0)) + 1) + values, return_inverse=True)[1].reshape(-1)
        _, first = np.unique(code, return_index=True)
        mask = by_class(joint.mask, code, len(first)) > 0
        return Joint(joint.nodes, {node: column[first] for node, column in joint.columns.items()}, mask), code

    # --- rules -----------------------------------------------------------------------------------------------

    def _image(self, node: Node, index: Ints, mask: Bits) -> Bits:
        require(not (mask.any(axis=0) & (index < 0)).any(), "an undefined case is possible, or a value not listed")
        result = np.zeros((len(self.lengths), len(node.values)), dtype=np.bool_)
        for row, allowed in zip(result, mask, strict=True):
            row[index[allowed]] = True
        return result

    def _map(self, number: int, node: Node) -> Bits:
        """The image of P_n(cut) if that product is small, else of the product of the arguments' possible values."""
        cut = self.cuts[number]
        assert node.table is not None
        if math.prod(len(self.program.nodes[base].values) for base in cut) <= MAP_BY_CUT:
            joint = self.joint(cut)
            return self._image(node, self.value_on(number, joint), joint.mask)
        joint = self.joint(dict.fromkeys(node.args))
        index = look_up(node.table, [joint.columns[arg] for arg in node.args], joint.size)
        return self._image(node, index, joint.mask)

    def _linear(self, number: int, node: Node) -> Bits:
        """All sums over the product of the arguments' possible values."""
        try:
            joint = self.joint(dict.fromkeys(node.args))
        except TooLarge:
            return self._long_linear(node)
        index = linear_indices(node, self.program.nodes, [joint.columns[arg] for arg in node.args])
        return self._image(node, np.broadcast_to(index, (joint.size,)), joint.mask)

    def _long_linear(self, node: Node) -> Bits:
        result = np.zeros((len(self.lengths), len(node.values)), dtype=np.bool_)
        position = node.position()
        for row in range(len(self.lengths)):
            sums: set[Fraction] = {node.constant}
            for arg, coefficient in zip(node.args, node.coefficients, strict=True):
                values = [self.program.nodes[arg].values[v] for v in np.flatnonzero(self.possible[arg][row])]
                require(not any(isinstance(v, str) for v in values), "an argument may be a string")
                if None in values:
                    require(None in position, "None is possible but not listed")
                    result[row, position[None]] = True
                numbers = [coefficient * as_fraction(v) for v in values if is_number(v)]
                if len(numbers) * len(sums) > MAX_TUPLES:
                    raise TooLarge("the sum has too many possible values")
                sums = {total + x for total in sums for x in numbers}
            for total in sums:
                require(total in position, f"the value {total} is possible but not listed")
                result[row, position[total]] = True
        return result

    def _width(self, number: int, node: Node) -> Bits:
        """The union, over possible query tuples, of lo..hi."""
        bounds = self.bounds(node.args[0])
        top = int(self.lengths[-1])
        steps = np.zeros((len(self.lengths), top + 2), dtype=np.int64)
        if bounds is None:
            steps[:, 0] += 1
            np.add.at(steps, (np.arange(len(self.lengths)), self.lengths + 1), -1)
        else:
            row, query = np.nonzero(bounds.queries.mask & (bounds.lo <= bounds.hi))
            np.add.at(steps, (row, bounds.lo[row, query]), 1)
            np.add.at(steps, (row, bounds.hi[row, query] + 1), -1)
        reached = np.cumsum(steps, axis=1)[:, : top + 1] > 0
        position = node.position()
        result = np.zeros((len(self.lengths), len(node.values)), dtype=np.bool_)
        for count in np.flatnonzero(reached.any(axis=0)):
            require(int(count) in position, f"the width {count} is possible but not listed")
            result[:, position[int(count)]] = reached[:, count]
        return result

    def bounds(self, selector: int) -> Bounds | None:
        """Width bounds by length and query tuple; None if the products are too large to decide."""
        if selector not in self._bounds:
            try:
                self._bounds[selector] = self._find_bounds(selector)
            except TooLarge:
                self._bounds[selector] = None
        return self._bounds[selector]

    def _find_bounds(self, selector: int) -> Bounds:
        keys, queries = self.joint(self.keys[selector]), self.joint(self.queries[selector])
        if queries.mask.size > MAX_CELLS or keys.mask.size > MAX_WEIGHT:
            raise TooLarge("too many tuples")
        some_keys, key_class = self.merged(keys, self.arguments(selector, 0))
        some_queries, query_class = self.merged(queries, self.arguments(selector, 1))
        holds = self.selector_on(selector, some_keys, some_queries)
        causal, n = self.program.causal, self.lengths[:, None]
        index = queries.columns.get(1) if causal else None
        shape = (len(self.lengths), queries.size)
        visible = np.broadcast_to(n if index is None else index[None, :] + 1, shape)
        surely = np.ones(shape, dtype=np.int64) if causal and index is None else visible
        selected = Selected(keys, key_class, query_class, holds)
        every = np.ones(keys.size, dtype=np.bool_)
        count, total = selected.count(every), keys.mask.sum(axis=1)[:, None]
        hi = np.where(count > 0, visible, 0)
        lo = np.where(count == total, surely, 0)
        for node in self.keys[selector]:
            if node == 1 or (not causal and node in self.permutation):
                most, least = self._by_distinct(node, keys, selected, index)
                hi, lo = np.minimum(hi, most), np.maximum(lo, least)
        own_count, own_total = selected.own(queries)
        lo = np.where((own_total > 0) & (own_count == own_total), np.maximum(lo, 1), lo)
        hi = np.where(own_count == 0, np.minimum(hi, visible - 1), hi)
        return Bounds(queries, lo.astype(np.int64), hi.astype(np.int64))

    def _by_distinct(self, node: int, keys: Joint, selected: Selected, index: Ints | None) -> tuple[Ints, Ints]:
        """Counts of the values r that a distinct node takes exactly once each, for which some / every key is selected.

        Not causal: r = 0..n-1. Causal (the node is `indices`): r = 0..i if i is known; else 0..n-1 above and 0 below.
        """
        shape = (len(self.lengths), len(selected.query_class))
        most, least = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        values = self.program.nodes[node].values
        for v in np.flatnonzero(self.some(node)):
            r = values[v]
            assert isinstance(r, int)
            rows = keys.columns[node] == v
            count, total = selected.count(rows), keys.mask[:, rows].sum(axis=1)[:, None]
            inside = np.broadcast_to((r < self.lengths)[:, None], shape)
            if index is not None:
                inside = inside & (r <= index)[None, :]
            most += inside & (count > 0)
            if not self.program.causal or index is not None or r == 0:
                least += inside & (count == total) & (total > 0)
        return most, least

    def _find_rank(self, number: int, node: Node) -> None:
        """The rank and permutation facts; not causal, K = Q, small products only."""
        keys, queries = self.keys[node.args[0]], self.queries[node.args[0]]
        if self.program.causal or keys != queries:
            return
        try:
            joint = self.joint(keys)
            holds = self.selector_on(node.args[0], joint, joint)
        except TooLarge:
            return
        phi = holds.sum(axis=0).astype(np.int64)
        if not (holds == (phi[:, None] < phi[None, :])).all():
            return
        self.rank[number] = Rank(joint, phi)
        if 1 in keys and is_function(phi, joint.columns[1]):
            self.permutation.add(number)

    def _aggregate(self, number: int, node: Node) -> Bits:
        selector, source = node.args
        bounds = self.bounds(selector)
        if bounds is None:
            raise TooLarge("its selector is too large to bound")
        lo, hi, queries = bounds.lo, bounds.hi, bounds.queries
        keys = self.joint(_union([self.keys[selector], self.cuts[source]]))
        holds = self.selector_on(selector, keys, queries).astype(np.float32)
        value = self.value_on(source, keys)
        weight = keys.mask.astype(np.float32)
        size = len(self.program.nodes[source].values)
        if queries.mask.size * size > MAX_WEIGHT or keys.mask.size > MAX_WEIGHT:
            raise TooLarge("too many values and query tuples")
        require(not (keys.mask.any(axis=0) & (value < 0)).any(), "the aggregated value may be undefined")
        reach = np.zeros((len(self.lengths), queries.size, size), dtype=np.bool_)
        for v in np.unique(value[value >= 0]):
            rows = value == v
            reach[:, :, v] = weight[:, rows] @ holds[rows] > 0
        singular = np.asarray((hi <= 1) | (reach.sum(axis=2) <= 1), dtype=np.bool_)
        for width in self.keys[selector]:
            if width in self.rank and self._function_of_rank(source, self.rank[width]):
                singular = singular | self._one_value(width, keys, weight, holds)
        singular = np.asarray(singular | ~queries.mask)
        empty = queries.mask & (lo == 0)
        if singular.all():
            self.singular.add(number)
        if not empty.any():
            self.nonempty.add(number)
        require(node.default >= 0 or not empty.any(), "the selection may be empty and there is no default")
        position = node.position()
        result = np.zeros((len(self.lengths), len(node.values)), dtype=np.bool_)
        if node.default >= 0:
            result[:, node.default] = empty.any(axis=1)
        used = np.asarray((reach & (queries.mask & (hi >= 1))[:, :, None]).any(axis=1))
        for v in np.flatnonzero(used.any(axis=0)):
            item = self.program.nodes[source].values[v]
            require(item in position, f"the value {item!r} is possible but not listed")
            result[:, position[item]] |= used[:, v]
        means = _Means(self.program.nodes[source].values, node)
        for row in range(len(self.lengths)):
            open_queries = np.flatnonzero(~singular[row])
            for chosen, most in _maximal(reach[row, open_queries], hi[row, open_queries]):
                result[row] |= means.possible(chosen, most)
        return result

    def _function_of_rank(self, source: int, rank: Rank) -> bool:
        """cut(value) is contained in the rank's nodes, and tuples with equal phi have equal value."""
        if not set(self.cuts[source]) <= set(rank.joint.nodes):
            return False
        return is_function(rank.phi, self.value_on(source, rank.joint))

    def _one_value(self, node: int, keys: Joint, weight: Floats, holds: Floats) -> Bits:
        """[length, query]: all selected key tuples have the same value of the node."""
        column = keys.columns[node]
        found = np.zeros((weight.shape[0], holds.shape[1]), dtype=np.int64)
        for v in np.unique(column):
            rows = column == v
            found += weight[:, rows] @ holds[rows] > 0
        return found <= 1


def look_up(table: npt.NDArray[np.generic], args: list[Ints], size: int) -> Ints:
    """table[args], -1 where an argument is -1; all arrays of length `size`."""
    result = np.broadcast_to(np.asarray(table[tuple(args)], dtype=np.int64), (size,))
    for arg in args:
        result = np.where(arg < 0, -1, result)
    return result


def is_function(argument: Ints, image: Ints) -> bool:
    """Equal arguments have equal images."""
    order = np.lexsort((image, argument))
    a, b = argument[order], image[order]
    return not ((a[1:] == a[:-1]) & (b[1:] != b[:-1])).any()


def _union(cuts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({node for cut in cuts for node in cut}))


def _maximal(sets: Bits, most: Ints) -> list[tuple[tuple[int, ...], int]]:
    """Distinct sets with their largest bound, without those contained in another with at least that bound."""
    best: dict[bytes, tuple[Bits, int]] = {}
    for row, bound in zip(sets, most.tolist(), strict=True):
        key = row.tobytes()
        if key not in best or best[key][1] < bound:
            best[key] = (row, bound)
    ordered = sorted(best.values(), key=lambda item: (-int(item[0].sum()), -item[1]))
    kept: list[tuple[Bits, int]] = []
    for row, bound in ordered:
        if not any(bound <= other_bound and not (row & ~other).any() for other, other_bound in kept):
            kept.append((row, bound))
    return [(tuple(np.flatnonzero(row).tolist()), bound) for row, bound in kept]


class _Means:
    """Which means of 2..m elements of a set of values, with repetition, occur; memoised by set."""

    def __init__(self, source: tuple[Value, ...], node: Node) -> None:
        self.source, self.node, self.position = source, node, node.position()
        self.memo: dict[tuple[int, ...], tuple[list[int], list[Bits]]] = {}

    def possible(self, chosen: tuple[int, ...], most: int) -> Bits:
        """[value of the node]: some mean of 2..most elements of `chosen` equals it."""
        values = [self.source[v] for v in chosen]
        require(all(is_number(v) for v in values), f"a mean of {values[:4]} is possible, which are not all numbers")
        numbers = [as_fraction(v) for v in values]
        scale = common_scale(numbers)
        whole = [int(x * scale) for x in numbers]
        base = min(whole)
        if (max(whole) - base) * most > MAX_SUM_BITS:
            raise TooLarge("its means have too large a range")
        sums, unions = self.memo.setdefault(chosen, ([1, sum(1 << (x - base) for x in set(whole))], []))
        while len(unions) < most - 1:
            wider = 0
            for x in set(whole):
                wider |= sums[-1] << (x - base)
            sums.append(wider)
            m = len(sums) - 1
            union = unions[-1].copy() if unions else np.zeros(len(self.node.values), dtype=np.bool_)
            for total in _set_bits(wider):
                mean = Fraction(total + m * base, m * scale)
                require(mean in self.position, f"the mean {mean} is possible but not listed")
                union[self.position[mean]] = True
            unions.append(union)
        return unions[most - 2]


def _set_bits(number: int) -> list[int]:
    raw = np.frombuffer(number.to_bytes(number.bit_length() // 8 + 1, "little"), dtype=np.uint8)
    return [int(i) for i in np.flatnonzero(np.unpackbits(raw, bitorder="little"))]
