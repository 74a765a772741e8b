"""Counting without BOS: position 0 stands in for it (SPECIFICATION, "Width shares")."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .analysis import Analysis
from .core import Aggregate, Map, Or, Select, Width

MAX_PAIRS = 1 << 24


def selects_first(analysis: Analysis, selector: int) -> bool:
    """Whether every query selects position 0, on every input."""
    keys, queries = analysis.selector_cuts(selector)
    sizes = [len(analysis.core.value_node(n).values) for n in (*keys, *queries)]
    if math.prod(sizes) > MAX_PAIRS:
        return False
    table = analysis.selector_table(selector, keys, queries)
    for axis, node in enumerate((*keys, *queries)):
        possible = analysis.ever(node)
        if node == 1 and axis < len(keys):
            possible = possible & np.array([v == 0 for v in analysis.core.value_node(1).values])
        table = np.compress(possible, table, axis=axis)
    return bool(table.all())


def is_width_share(analysis: Analysis, node: int, counted: int, inside: int) -> bool:
    """Whether node = width(s), s never empty, counted = width(s or first), inside = mean over s of first.

    `first`: the key position is 0.

    Then inside is 0 or 1 / node, and node = counted - 1 if inside = 0, else counted.
    """
    nodes = analysis.core.nodes
    width, whole, share = nodes[node], nodes[counted], nodes[inside]
    if not (isinstance(width, Width) and isinstance(whole, Width) and isinstance(share, Aggregate)):
        return False
    either, value = nodes[whole.selector], nodes[share.value]
    if not isinstance(either, Or) or either.left != width.selector or share.selector != width.selector:
        return False
    zero = nodes[either.right]
    positions = analysis.core.value_node(1).values
    first = np.array([v == 0 for v in positions])
    if not isinstance(zero, Select) or zero.keys != 1 or not (zero.table == first[:, None]).all():
        return False
    if not isinstance(value, Map) or value.args != (1,):
        return False
    marked = [value.values[k] if k >= 0 else None for k in value.table]
    return marked == [v == 0 for v in positions] and analysis.nonempty(width.selector)


def resolve_width_share(analysis: Analysis, node: int, counted: int, inside: int) -> npt.NDArray[np.int32]:
    """Value index of `node` for each joint value of (counted, inside); -1: cannot occur."""
    values = {v: i for i, v in enumerate(analysis.core.value_node(node).values)}
    wholes, shares = analysis.core.value_node(counted).values, analysis.core.value_node(inside).values
    table = np.full((len(wholes), len(shares)), -1, dtype=np.int32)
    possible = analysis.ever(node)
    for i, whole in enumerate(wholes):
        for j, share in enumerate(shares):
            assert isinstance(whole, int) and isinstance(share, (int, Fraction))
            width = whole if share else whole - 1
            index = values.get(width, -1)
            if width >= 1 and index >= 0 and possible[index] and (not share or share * width == 1):
                table[i, j] = index
    table[~analysis.possible_tuples((counted, inside))] = -1
    return table
