"""Identities between selectors, on all values that can occur.

*Truth vectors*: the selects involved are grouped by the cuts of their keys and queries (contained cuts join a
group). In each group only some combinations of truth values arise; the identity is checked on every choice of one
combination per group. Treating groups as independent only adds cases, so what passes holds. What does not is decided
by enumerating the joint values, if there are few enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Atom
from ..compiler.analysis import Analysis
from ..compiler.core import And, Bits, Not, Or, Select, Width

MAX_PAIRS = 1 << 24
MAX_CHOICES = 1 << 16
MAX_GROUP = 16

Counts = npt.NDArray[np.int64]


def same_selector(analysis: Analysis, selector: int, atoms: Sequence[Atom]) -> bool:
    """Whether (key j is selected by query i) <=> every atom's table holds."""
    return _sums_to(analysis, selector, [(1, _Conjunction(tuple(atoms)))])


def is_width_sum(analysis: Analysis, width: int, terms: Sequence[tuple[int, int]]) -> bool:
    """Whether [selector of width] = sum of c [selector of w] over `terms` (w, c)."""
    selectors = []
    for node in (width, *(w for w, _ in terms)):
        definition = analysis.core.nodes[node]
        if not isinstance(definition, Width):
            return False
        selectors.append(definition.selector)
    return _sums_to(analysis, selectors[0], [(c, s) for s, (_, c) in zip(selectors[1:], terms, strict=True)])


class _Conjunction(tuple[Atom, ...]):
    """Atoms that all hold, as an operand beside the program's own selectors."""

    def __new__(cls, atoms: tuple[Atom, ...]) -> _Conjunction:
        return super().__new__(cls, atoms)


def _sums_to(analysis: Analysis, selector: int, parts: Sequence[tuple[int, int | _Conjunction]]) -> bool:
    leaves: list[Select | Atom] = []
    for operand in (selector, *(p for _, p in parts)):
        leaves += operand if isinstance(operand, _Conjunction) else _selects(analysis, operand)
    truth = _truth_vectors(analysis, leaves)
    if truth is not None and not _excess(analysis, selector, parts, truth).any():
        return True
    keys = tuple(sorted({c for leaf in leaves for c in analysis.cut(_sides(leaf)[0])}))
    queries = tuple(sorted({c for leaf in leaves for c in analysis.cut(_sides(leaf)[1])}))
    if _size(analysis, keys) * _size(analysis, queries) > MAX_PAIRS:
        return False
    truth = {id(leaf): _tabulate(analysis, leaf, keys, queries) for leaf in leaves}
    key_at, query_at = np.nonzero(_excess(analysis, selector, parts, truth))
    together = _lengths(analysis, keys)[:, key_at] & _lengths(analysis, queries)[:, query_at]
    return not together.any()


def _lengths(analysis: Analysis, nodes: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """`[word, joint value]`: the lengths at which the joint values (as `_tabulate` orders them) are possible."""
    words = analysis.ranges.joint(nodes)
    for axis, basis in enumerate(nodes):
        words = np.compress(analysis.ever(basis), words, axis=axis + 1)
    return words.reshape(len(words), -1)


def _excess(
    analysis: Analysis, selector: int, parts: Sequence[tuple[int, int | _Conjunction]], truth: dict[int, Bits]
) -> Counts:
    """The sum of the parts less the selector, for each case of `truth`."""

    def evaluate(operand: int | _Conjunction) -> Bits:
        if isinstance(operand, _Conjunction):
            some = next(iter(truth.values())) if truth else np.ones(1, dtype=bool)
            result: Bits = np.ones_like(some)
            for atom in operand:
                result = result & truth[id(atom)]
            return result
        node = analysis.core.nodes[operand]
        match node:
            case And():
                return evaluate(node.left) & evaluate(node.right)
            case Or():
                return evaluate(node.left) | evaluate(node.right)
            case Not():
                return ~evaluate(node.arg)
            case Select():
                return truth[id(node)]
        raise AssertionError(f"node {operand} is no selector")

    total: Counts = -evaluate(selector).astype(np.int64)
    for count, operand in parts:
        total = total + count * evaluate(operand)
    return total


def _selects(analysis: Analysis, selector: int) -> list[Select | Atom]:
    found: list[Select | Atom] = []
    stack = [selector]
    while stack:
        node = analysis.core.nodes[stack.pop()]
        if isinstance(node, (And, Or)):
            stack += [node.left, node.right]
        elif isinstance(node, Not):
            stack.append(node.arg)
        elif isinstance(node, Select):
            found.append(node)
    return found


def _sides(leaf: Select | Atom) -> tuple[int, int]:
    return (leaf.keys, leaf.queries) if isinstance(leaf, Select) else (leaf.key, leaf.query)


def _tabulate(analysis: Analysis, leaf: Select | Atom, keys: tuple[int, ...], queries: tuple[int, ...]) -> Bits:
    """The leaf on the joint values (ever possible) of `keys` and `queries`, flattened to [keys, queries]."""
    key_node, query_node = _sides(leaf)
    sides = []
    for node, over in ((key_node, keys), (query_node, queries)):
        table = analysis.function(node, over)
        for axis, basis in enumerate(over):
            table = np.compress(analysis.ever(basis), table, axis=axis)
        sides.append(table.reshape(-1))
    rows = leaf.table[np.maximum(sides[0], 0)]
    found: Bits = rows[:, np.maximum(sides[1], 0)] & (sides[0] >= 0)[:, None] & (sides[1] >= 0)[None, :]
    return found


def _size(analysis: Analysis, nodes: tuple[int, ...]) -> int:
    return math.prod(len(analysis.core.value_node(n).values) for n in nodes)


def _truth_vectors(analysis: Analysis, leaves: Sequence[Select | Atom]) -> dict[int, Bits] | None:
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Select | Atom]] = {}
    cuts = {id(x): (x, tuple(analysis.cut(side) for side in _sides(x))) for x in leaves}
    for leaf, (key, query) in sorted(cuts.values(), key=lambda item: -len(item[1][0]) - len(item[1][1])):
        home = next((g for g in groups if {*key} <= {*g[0]} and {*query} <= {*g[1]}), (key, query))
        groups.setdefault(home, []).append(leaf)
    codes: list[Counts] = []
    for (keys, queries), members in groups.items():
        if len(members) > MAX_GROUP or _size(analysis, keys) * _size(analysis, queries) > MAX_PAIRS:
            return None
        code: Counts = np.zeros((), dtype=np.int64)
        for bit, leaf in enumerate(members):
            code = code + (_tabulate(analysis, leaf, keys, queries).astype(np.int64) << bit)
        codes.append(np.flatnonzero(np.bincount(code.reshape(-1), minlength=1)))
    if math.prod(len(c) for c in codes) > MAX_CHOICES:
        return None
    choices = np.array(list(itertools.product(*(c.tolist() for c in codes))), dtype=np.int64).reshape(-1, len(codes))
    truth: dict[int, Bits] = {}
    for column, members in enumerate(groups.values()):
        for bit, leaf in enumerate(members):
            truth[id(leaf)] = (choices[:, column] >> bit & 1).astype(bool)
    return truth
