"""Core programs on batches of inputs, with values put in by hand: what interchange interventions need.

Everything is an index: a value node has, for an input, the index of its value in the node's `values` at each position.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .analysis import references
from .core import (
    Aggregate,
    And,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Not,
    Or,
    Select,
    Tokens,
    Value,
    Width,
)

Ints: TypeAlias = npt.NDArray[np.int64]
Grid: TypeAlias = npt.NDArray[np.bool_]


@dataclass
class Trace:
    """`values[node]` int64 [batch, pos]; `selections[node]` bool [batch, query, key]; `undefined` bool [batch]."""

    values: dict[int, Ints]
    selections: dict[int, Grid]
    undefined: Grid


@dataclass
class Evaluator:
    """Evaluates one program; keeps the tables it derives from it."""

    program: CoreProgram
    _tables: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    _means: dict[int, dict[tuple[int, int], int]] = field(default_factory=dict)

    def run(self, tokens: Ints, targets: Collection[int], given: Mapping[int, Ints] | None = None) -> Trace:
        """The nodes that `targets` need, on tokens [batch, pos] (indices into the program's vocabulary).

        `given` fixes the values of some nodes (their indices); the others follow. A row on which a needed value is
        undefined is marked in `undefined`, and its values mean nothing.
        """
        trace = Trace(dict(given or {}), {}, np.zeros(tokens.shape[0], dtype=bool))
        for index in _needed(self.program, targets, trace.values):
            self._step(index, self.program.nodes[index], tokens, trace)
        return trace

    def _step(self, index: int, node: Node, tokens: Ints, trace: Trace) -> None:
        batch, n = tokens.shape
        match node:
            case Select():
                keys, queries = trace.values[node.keys], trace.values[node.queries]
                trace.selections[index] = node.table[keys[:, None, :], queries[:, :, None]]
            case And():
                trace.selections[index] = trace.selections[node.left] & trace.selections[node.right]
            case Or():
                trace.selections[index] = trace.selections[node.left] | trace.selections[node.right]
            case Not():
                trace.selections[index] = ~trace.selections[node.arg]
            case _:
                values = self._values(index, node, tokens, trace)
                wrong = values < 0
                trace.undefined |= wrong.any(axis=1)
                trace.values[index] = np.where(wrong, 0, values)

    def _values(
        self, index: int, node: Tokens | Indices | Map | Linear | Aggregate | Width, tokens: Ints, trace: Trace
    ) -> Ints:
        batch, n = tokens.shape
        match node:
            case Tokens():
                return tokens
            case Indices():
                return np.broadcast_to(np.arange(n), (batch, n))
            case Map():
                if not node.args:
                    return np.full((batch, n), int(node.table.reshape(-1)[0]))
                return node.table[tuple(trace.values[a] for a in node.args)].astype(np.int64)
            case Linear():
                if index not in self._tables:
                    self._tables[index] = self._linear_table(node)
                table = np.asarray(self._tables[index][tuple(trace.values[a] for a in node.args)])
                return np.broadcast_to(table, (batch, n)) if not node.args else table
            case Width():
                counts = self._visible(trace.selections[node.selector]).sum(axis=2)
                if index not in self._tables:
                    self._tables[index] = _places(tuple(range(self.program.max_len + 1)), node.values)
                return np.asarray(self._tables[index][counts])
            case Aggregate():
                return self._aggregate(index, node, self._visible(trace.selections[node.selector]), trace)

    def _visible(self, selection: Grid) -> Grid:
        if not self.program.causal:
            return selection
        n = selection.shape[1]
        return selection & np.tril(np.ones((n, n), dtype=bool))

    def _linear_table(self, node: Linear) -> Ints:
        sizes = [len(self.program.value_node(a).values) for a in node.args]
        place = {value: i for i, value in enumerate(node.values)}
        table = np.empty(sizes, dtype=np.int64)
        for at in np.ndindex(*sizes):
            parts = [self.program.value_node(a).values[i] for a, i in zip(node.args, at, strict=True)]
            defined = not any(isinstance(part, str) for part in parts)
            table[at] = place.get(_linear_value(node, parts), -1) if defined else -1
        return table

    def _aggregate(self, index: int, node: Aggregate, selected: Grid, trace: Trace) -> Ints:
        source = self.program.value_node(node.value).values
        values = trace.values[node.value][:, None, :]
        counts = selected.sum(axis=2)
        least = np.where(selected, values, len(source)).min(axis=2)
        most = np.where(selected, values, -1).max(axis=2)
        if index not in self._tables:
            self._tables[index] = _places(source, node.values)
        place = self._tables[index]
        result = np.where(counts == 0, node.default, place[np.minimum(least, len(source) - 1)])
        mixed = (counts > 0) & (least != most)
        if mixed.any():
            result[mixed] = self._mean(index, node, selected, trace.values[node.value], mixed, counts)
        return result

    def _mean(self, index: int, node: Aggregate, selected: Grid, values: Ints, at: Grid, counts: Ints) -> Ints:
        source = self.program.value_node(node.value).values
        numbers = [v if v is not None and not isinstance(v, str) else None for v in source]
        common = math.lcm(1, *(Fraction(v).denominator for v in numbers if v is not None))
        scaled = [0 if v is None else int(Fraction(v) * common) for v in numbers]
        exact = np.array(scaled, dtype=object if max(map(abs, scaled), default=0) > 2**40 else np.int64)
        symbols = np.array([v is None for v in numbers])
        row, query = np.nonzero(at)
        chosen = selected[row, query]
        sums = np.where(chosen, exact[values[row]], 0).sum(axis=1)
        mistyped = (chosen & symbols[values[row]]).any(axis=1)
        known = self._means.setdefault(index, {})
        place = {value: i for i, value in enumerate(node.values)}
        codes = sums * (selected.shape[1] + 1) + counts[at]
        distinct, first, where = np.unique(codes, return_index=True, return_inverse=True)
        means = np.empty(len(distinct), dtype=np.int64)
        for i, key in enumerate(zip(sums[first].tolist(), counts[at][first].tolist(), strict=True)):
            if key not in known:
                known[key] = place.get(Fraction(int(key[0]), common * key[1]), -1)
            means[i] = known[key]
        result = means[where.reshape(-1)]
        return np.where(mistyped, -1, result)


def _linear_value(node: Linear, parts: list[Value]) -> Value:
    if any(part is None for part in parts):
        return None
    total = node.constant
    for coefficient, part in zip(node.coefficients, parts, strict=True):
        if part is None or isinstance(part, str):
            return None
        total += coefficient * part
    return total


def _places(source: tuple[Value, ...], target: tuple[Value, ...]) -> Ints:
    place = {value: i for i, value in enumerate(target)}
    return np.array([place.get(value, -1) for value in source], dtype=np.int64)


def _needed(program: CoreProgram, targets: Collection[int], given: Mapping[int, Ints]) -> list[int]:
    wanted = set(targets)
    for index in range(max(targets, default=-1), -1, -1):
        if index in wanted and index not in given:
            wanted.update(references(program.nodes[index]))
    return sorted(wanted - set(given))
