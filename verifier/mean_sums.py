"""Aggregates that are sums of aggregates: over one selection, the mean of a sum is the sum of the means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..compiler.analysis import Analysis
from ..compiler.core import Aggregate, Value

MAX_JOINT = 1 << 22
MAX_COEFFICIENT = 1 << 20


def is_mean_sum(analysis: Analysis, node: int, terms: Sequence[tuple[int, int]]) -> bool:
    """Whether aggregate `node` is the sum of c times a over `terms` (a, c), on every input.

    All are over one selector; on all joint values of what they aggregate, these are numbers and add up; and so do the
    defaults, unless the selection is never empty.
    """
    aggregates = _over_one_selector(analysis, (node, *(a for a, _ in terms)))
    if aggregates is None:
        return False
    counts = [-1, *(c for _, c in terms)]
    if not analysis.nonempty(aggregates[0].selector):
        defaults = [_number(d.values[d.default]) if d.default >= 0 else None for d in aggregates]
        if None in defaults or sum(c * (d or Fraction(0)) for c, d in zip(counts, defaults, strict=True)) != 0:
            return False
    columns = _joint(analysis, [d.value for d in aggregates])
    if columns is None:
        return False
    return not np.array([c * column for c, column in zip(counts, columns, strict=True)]).sum(axis=0).any()


def mean_sum(analysis: Analysis, node: int, reads: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """The coefficients with which an aggregate is the sum of those read, if there are any."""
    aggregates = _over_one_selector(analysis, (node, *reads))
    if aggregates is None:
        return None
    columns = _joint(analysis, [d.value for d in aggregates])
    if columns is None:
        return None
    wanted, *known = np.unique(np.stack(columns, axis=1).astype(np.float64), axis=0).T
    solved = np.asarray(np.linalg.lstsq(np.stack(known, axis=1), wanted, rcond=None)[0], dtype=np.float64)
    found: npt.NDArray[np.float64] = np.rint(solved)
    if not (np.abs(found) < MAX_COEFFICIENT).all():
        return None
    terms = tuple((read, int(c)) for read, c in zip(reads, found, strict=True))
    return terms if is_mean_sum(analysis, node, terms) else None


def _over_one_selector(analysis: Analysis, nodes: Sequence[int]) -> list[Aggregate] | None:
    definitions = [analysis.core.nodes[n] for n in nodes]
    aggregates = [d for d in definitions if isinstance(d, Aggregate)]
    if len(aggregates) < len(definitions) or any(d.selector != aggregates[0].selector for d in aggregates):
        return None
    return aggregates


def _joint(analysis: Analysis, nodes: Sequence[int]) -> list[npt.NDArray[np.object_]] | None:
    """The nodes' numbers, times one common denominator, on all possible joint values; None if some is no number."""
    basis = tuple(sorted({c for n in nodes for c in analysis.cut(n)}))
    sizes = [len(analysis.core.value_node(c).values) for c in basis]
    if math.prod(sizes) > MAX_JOINT:
        return None
    possible = analysis.possible_tuples(basis)
    columns: list[list[Fraction | None]] = []
    for node in nodes:
        index = np.broadcast_to(analysis.function(node, basis), sizes)[possible]
        values = [_number(v) for v in analysis.core.value_node(node).values]
        columns.append([values[i] if i >= 0 else None for i in index.tolist()])
    if any(v is None for column in columns for v in column):
        return None
    scale = math.lcm(*(v.denominator for column in columns for v in set(column) if v is not None))
    return [np.array([int(v * scale) for v in column if v is not None], dtype=object) for column in columns]


def _number(value: Value) -> Fraction | None:
    return None if value is None or isinstance(value, str) else Fraction(value)
