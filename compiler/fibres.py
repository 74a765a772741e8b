"""Resolving a node from nodes that are coarser than its arguments (SPECIFICATION, "Resolving", second paragraph)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .analysis import Analysis

MAX_JOINT = 1 << 22


def resolve_by_fibres(analysis: Analysis, node: int, reads: tuple[int, ...]) -> npt.NDArray[np.int32] | None:
    """Value index of `node` for each joint value of `reads` (-1: does not occur), or None.

    Over the possible tuples of the basis nodes that both depend on, the node's value must be a function of the
    values read.
    """
    basis = tuple(sorted({c for n in (node, *reads) for c in analysis.cut(n)}))
    sizes = [len(analysis.core.value_node(c).values) for c in basis]
    if math.prod(sizes) > MAX_JOINT:
        return None
    possible = analysis.possible_tuples(basis)
    wanted = np.broadcast_to(analysis.function(node, basis), sizes)[possible]
    shape = [len(analysis.core.value_node(r).values) for r in reads]
    columns = [np.broadcast_to(analysis.function(r, basis), sizes)[possible] for r in reads]
    defined = (wanted >= 0) & np.logical_and.reduce([c >= 0 for c in columns])
    wanted = wanted[defined]
    place = np.ravel_multi_index([c[defined] for c in columns], shape) if reads else np.zeros(len(wanted), np.int64)
    low = np.full(math.prod(shape), np.iinfo(np.int32).max, dtype=np.int32)
    high = np.full(math.prod(shape), -1, dtype=np.int32)
    np.minimum.at(low, place, wanted)
    np.maximum.at(high, place, wanted)
    if (low[high >= 0] != high[high >= 0]).any():
        return None
    return high.reshape(shape)
