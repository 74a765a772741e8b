"""Is a selector the conjunction of a head's atoms, on all values that can occur?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..compiler.alignment import Atom
from ..compiler.analysis import Analysis
from ..compiler.core import And, Select

MAX_PAIRS = 1 << 24


def same_selector(analysis: Analysis, selector: int, atoms: Sequence[Atom]) -> bool:
    """Whether (key j is selected by query i) <=> every atom's table holds, for all possible joint values.

    True at once if the selector is literally a conjunction of these tables; otherwise by enumeration over the basis nodes.
    """
    if _literally(analysis, selector, atoms):
        return True
    keys, queries = analysis.selector_cuts(selector)
    keys = tuple(sorted({*keys, *(c for a in atoms for c in analysis.cut(a.key))}))
    queries = tuple(sorted({*queries, *(c for a in atoms for c in analysis.cut(a.query))}))
    sizes = [len(analysis.core.value_node(n).values) for n in (*keys, *queries)]
    if math.prod(sizes) > MAX_PAIRS:
        return False
    wanted = analysis.selector_table(selector, keys, queries)
    found = np.ones(sizes, dtype=bool)
    for atom in atoms:
        key = analysis.function(atom.key, keys)
        query = analysis.function(atom.query, queries)
        found &= atom.table[np.maximum(key, 0)][..., np.maximum(query, 0)].reshape(sizes)
    different = wanted != found
    for axis, node in enumerate((*keys, *queries)):
        different = np.compress(analysis.ever(node), different, axis=axis)
    return not different.any()


def _literally(analysis: Analysis, selector: int, atoms: Sequence[Atom]) -> bool:
    leaves: list[Select] = []
    stack = [selector]
    while stack:
        node = analysis.core.nodes[stack.pop()]
        if isinstance(node, And):
            stack += [node.left, node.right]
        elif isinstance(node, Select):
            leaves.append(node)
        else:
            return False
    left = list(atoms)
    for leaf in leaves:
        match = next(
            (a for a in left if (a.key, a.query) == (leaf.keys, leaf.queries) and np.array_equal(a.table, leaf.table)),
            None,
        )
        if match is None:
            return False
        left.remove(match)
    return not left
