"""Selectors as disjoint conjunctions of atoms: what attention heads can realise.

A head realises a selector only if all selected scores are equal; scores of several atoms add, so a conjunction
is one head. Disjunctions are split into *disjoint* conjunctions ("terms"): widths add over them.
An atom is a table over one pair (key node, query node); a term maps pairs to tables, and holds iff all tables do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .core import And, Bits, Node, Not, Or, Select

Pair: TypeAlias = tuple[int, int]
Term: TypeAlias = dict[Pair, Bits]

MAX_TERMS = 64


def disjoint_terms(
    nodes: tuple[Node, ...] | list[Node], selector: int, leaf: Callable[[int], list[Term]]
) -> list[Term]:
    """Pairwise disjoint terms whose union is the selector.

    `leaf(i)` gives the disjoint terms of the `Select` node i. Terms number at most `MAX_TERMS`, else `OverflowError`.
    """

    def terms(index: int, positive: bool) -> list[Term]:
        node = nodes[index]
        if isinstance(node, Not):
            return terms(node.arg, not positive)
        if isinstance(node, (And, Or)):
            if isinstance(node, And) == positive:
                return simplify(conjoin(terms(node.left, positive), terms(node.right, positive)))
            one = disjoin(terms(node.left, positive), terms(node.left, not positive), terms(node.right, positive))
            two = disjoin(terms(node.right, positive), terms(node.right, not positive), terms(node.left, positive))
            return one if len(one) <= len(two) else two
        assert isinstance(node, Select)
        found = leaf(index)
        return simplify(found if positive else complement(found))

    return terms(selector, True)


def conjoin(left: list[Term], right: list[Term]) -> list[Term]:
    product = []
    for a in left:
        for b in right:
            merged = dict(a)
            for pair, table in b.items():
                merged[pair] = merged[pair] & table if pair in merged else table
            product.append(merged)
    if len(product) > MAX_TERMS:
        raise OverflowError(f"a selector needs more than {MAX_TERMS} disjoint conjunctions")
    return product


def disjoin(left: list[Term], not_left: list[Term], right: list[Term]) -> list[Term]:
    """left or (not left and right), disjoint by construction."""
    return simplify([*left, *conjoin(not_left, right)])


def complement(terms: list[Term]) -> list[Term]:
    result: list[Term] = [{}]
    for term in terms:
        outside: list[Term] = []
        held: Term = {}
        for pair, table in term.items():
            outside.append({**held, pair: ~table})
            held[pair] = table
        result = simplify(conjoin(result, outside))
    return result


def simplify(terms: list[Term]) -> list[Term]:
    """Drop what can never hold and what always holds; unite terms that differ in one table only."""
    kept: list[Term] = []
    for term in terms:
        if any(not table.any() for table in term.values()):
            continue
        kept.append({pair: table for pair, table in term.items() if not table.all()})
    changed = True
    while changed:
        changed = False
        for i in range(len(kept)):
            for j in range(i + 1, len(kept)):
                united = _unite(kept[i], kept[j])
                if united is not None:
                    kept[i] = united
                    del kept[j]
                    changed = True
                    break
            if changed:
                break
    return kept


def _unite(a: Term, b: Term) -> Term | None:
    if a.keys() != b.keys():
        return None
    different = [pair for pair in a if not np.array_equal(a[pair], b[pair])]
    if len(different) != 1:
        return None
    pair = different[0]
    table = a[pair] | b[pair]
    rest = {p: t for p, t in a.items() if p != pair}
    return rest if table.all() else {**rest, pair: table}


def split_product(table: Bits, pairs: tuple[Pair, Pair]) -> list[Term] | None:
    """Split a relation over two key and two query nodes into a few disjoint terms, or None.

    `table[k1, k2, q1, q2]`; for each (k1, q1) the block over (k2, q2) is constant or one of at most two patterns.
    A lexicographic order on (k1, k2) becomes {k1 < q1} and {k1 = q1, k2 < q2}.
    """
    n1, n2, m1, m2 = table.shape
    blocks = np.ascontiguousarray(table.transpose(0, 2, 1, 3)).reshape(n1 * m1, n2 * m2)
    packed = np.packbits(blocks, axis=1)
    patterns, which = np.unique(packed, axis=0, return_inverse=True)
    if len(patterns) > 4:
        return None
    which = which.reshape(n1, m1)
    terms: list[Term] = []
    varying = 0
    for index in range(len(patterns)):
        block = blocks[int(np.argmax(which.reshape(-1) == index))].reshape(n2, m2)
        if not block.any():
            continue
        term: Term = {pairs[0]: which == index}
        if not block.all():
            term[pairs[1]] = block
            varying += 1
        terms.append(term)
    return simplify(terms) if varying <= 2 else None
