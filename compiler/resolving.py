"""Resolving: the value of a node from the values of the nodes that are read (SPECIFICATION.md, "Resolving")."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import Aggregate, Linear, Map, Width
from .ranges import Cut, Indexes, Ranges

UNRESOLVED = -1


def resolve(
    ranges: Ranges,
    index: int,
    reads: Cut,
    width_sums: Mapping[int, Sequence[tuple[int, int]]],
    memo: dict[int, Indexes | None],
) -> Indexes | None:
    """See `Analysis.resolve`; here the array may have axes of size 1, and tuples that are impossible are not masked."""
    if index in memo:
        return memo[index]
    node = ranges.nodes[index]
    out: Indexes | None = None
    if index in reads:
        axis = reads.index(index)
        shape = [-1 if a == axis else 1 for a in range(len(reads))]
        out = np.arange(len(ranges.values(index)), dtype=np.int32).reshape(shape)
    elif isinstance(node, (Map, Linear)) or index in width_sums:
        assert isinstance(node, (Map, Linear, Width, Aggregate))
        terms = node.args if isinstance(node, (Map, Linear)) else tuple(w for w, _ in width_sums[index])
        memo[index] = None  # a width sum that refers to itself is not resolvable
        args = [resolve(ranges, arg, reads, width_sums, memo) for arg in terms]
        known = [arg for arg in args if arg is not None]
        if len(known) == len(args):
            if isinstance(node, Map):
                out = node.table[tuple(np.maximum(arg, 0) for arg in known)].astype(np.int32)
                out = np.asarray(out).reshape([1] * len(reads) if not known else np.shape(out))
            elif isinstance(node, Linear):
                out = _sum(ranges, index, terms, known, node.coefficients, node.constant)
            else:
                counts = [Fraction(c) for _, c in width_sums[index]]
                out = _sum(ranges, index, terms, known, counts, Fraction(0))
            for arg in known:
                out = np.where(arg < 0, np.int32(UNRESOLVED), out)
    if out is not None:
        ever = ranges.ever(index)
        out = np.where((out >= 0) & ever[np.maximum(out, 0)], out, np.int32(UNRESOLVED))
    memo[index] = out
    return out


def _sum(
    ranges: Ranges,
    index: int,
    terms: Sequence[int],
    args: Sequence[Indexes],
    coefficients: Sequence[Fraction],
    constant: Fraction,
) -> Indexes:
    """Value index of a linear combination of resolved arguments; -1 if it is not a value of the node."""
    lists = [ranges.values(term) for term in terms]
    target = ranges.values(index)
    scale = math.lcm(constant.denominator, *(c.denominator for c in coefficients)) * math.lcm(
        *(v.denominator for values in (target, *lists) for v in values if isinstance(v, Fraction))
    )
    tables, largest = [], abs(int(constant * scale))
    for coefficient, values in zip(coefficients, lists, strict=True):
        table = [int(coefficient * v * scale) if isinstance(v, (int, Fraction)) else 0 for v in values]
        tables.append(table)
        largest += max(map(abs, table), default=0)
    goals = {int(v * scale): i for i, v in enumerate(target) if isinstance(v, (int, Fraction))}
    largest = max(largest, *(abs(goal) for goal in goals), 0)
    dtype: type = np.int64 if largest < 1 << 62 else object
    total: npt.NDArray[Any] = np.zeros([1] * (args[0].ndim if args else 0), dtype) + int(constant * scale)
    is_none = np.zeros(total.shape, np.bool_)
    for table, values, arg in zip(tables, lists, args, strict=True):
        total = total + np.array(table, dtype)[np.maximum(arg, 0)]
        is_none = is_none | np.array([v is None for v in values], np.bool_)[np.maximum(arg, 0)]
    order = sorted(goals)
    out = np.full(total.shape, UNRESOLVED, np.int32)
    if order and dtype is object:
        flat = [goals.get(number, UNRESOLVED) for number in total.ravel().tolist()]
        out = np.array(flat, np.int32).reshape(total.shape)
    elif order:
        sorted_goals = np.array(order, np.int64)
        place = np.minimum(np.searchsorted(sorted_goals, total), len(order) - 1)
        positions = np.array([goals[number] for number in order], np.int32)
        out = np.where(sorted_goals[place] == total, positions[place], np.int32(UNRESOLVED))
    none_index = target.index(None) if None in target else UNRESOLVED
    return np.where(is_none, np.int32(none_index), out)
