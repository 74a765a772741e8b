"""Selectors as disjoint conjunctions of atoms: what attention heads can realise.

A head realises a selector only if all selected scores are equal; scores of several atoms add, so a conjunction
is one head. Disjunctions are split into *disjoint* conjunctions ("terms"): widths add over them.
An atom is a table over one pair (key node, query node); a term maps pairs to tables, and holds iff all tables do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from .core import And, Bits, Node, Not, Or, Select

Pair: TypeAlias = tuple[int, int]
Term: TypeAlias = dict[Pair, Bits]
Literal: TypeAlias = tuple[int, bool]
"""A form (by its number) or its complement."""

MAX_TERMS = 64
TOO_MANY = f"as attention patterns it takes more than {MAX_TERMS} disjoint conjunctions of comparisons"


def disjoint_terms(nodes: Sequence[Node], selector: int, leaf: Callable[[int], list[Term]]) -> list[Term]:
    """Pairwise disjoint terms whose union is the selector.

    `leaf(i)` gives the disjoint terms of the `Select` node i. Equal parts are one part, and parts over one pair one
    table, before anything is multiplied out. Raises `OverflowError` where more than `MAX_TERMS` terms come up.
    """
    forms = _Forms()
    literals: dict[int, Literal] = {}
    for index in _left_to_right(nodes, selector):
        literals[index] = forms.leaf(leaf(index))
    for index in _operands_first(nodes, selector):
        node = nodes[index]
        if isinstance(node, Not):
            literals[index] = _negated(literals[node.arg])
        elif isinstance(node, Or):
            literals[index] = forms.union([literals[node.left], literals[node.right]])
        elif isinstance(node, And):
            both = [_negated(literals[node.left]), _negated(literals[node.right])]
            literals[index] = _negated(forms.union(both))
    return forms.terms(literals[selector])


def _left_to_right(nodes: Sequence[Node], selector: int) -> list[int]:
    """The selects of a selector in the order they are read, each once."""
    found, seen, todo = [], set(), [selector]
    while todo:
        index = todo.pop()
        if index in seen:
            continue
        seen.add(index)
        node = nodes[index]
        if isinstance(node, Not):
            todo.append(node.arg)
        elif isinstance(node, (And, Or)):
            todo += [node.right, node.left]
        else:
            assert isinstance(node, Select)
            found.append(index)
    return found


def _operands_first(nodes: Sequence[Node], selector: int) -> list[int]:
    seen, todo = {selector}, [selector]
    while todo:
        node = nodes[todo.pop()]
        args = (node.arg,) if isinstance(node, Not) else (node.left, node.right) if isinstance(node, (And, Or)) else ()
        todo += [arg for arg in args if arg not in seen]
        seen.update(args)
    return sorted(seen)


def _negated(literal: Literal) -> Literal:
    return literal[0], not literal[1]


class _Forms:
    """Selectors as hash-consed forms: a form is a list of disjoint terms, or a union of literals.

    An intersection is the complement of a union of complements. Equal forms have one number, so that what a form
    takes to multiply out is found once, and a union holds each part once.
    """

    def __init__(self) -> None:
        self.leaves: dict[int, list[Term]] = {}
        self.unions: dict[int, list[Literal]] = {}
        self.numbers: dict[Hashable, int] = {}
        self.known: dict[Literal, list[Term]] = {}

    def leaf(self, terms: list[Term]) -> Literal:
        key = tuple(tuple((pair, table.tobytes()) for pair, table in sorted_pairs(term)) for term in terms)
        number = self.numbers.setdefault(key, len(self.numbers))
        self.leaves.setdefault(number, terms)
        return number, True

    def union(self, literals: Iterable[Literal]) -> Literal:
        """The union of literals: unions among them are opened, and tables over one pair united."""
        parts: dict[Literal, None] = {}
        for literal in literals:
            opened = self.unions[literal[0]] if literal[1] and literal[0] in self.unions else [literal]
            parts.update(dict.fromkeys(opened))
        if any(_negated(part) in parts for part in parts):
            return self.leaf([{}])
        by_pair: dict[Pair, list[Literal]] = {}
        for part in parts:
            atom = self.atom(part)
            if atom is not None:
                by_pair.setdefault(atom[0], []).append(part)
        for pair, same in by_pair.items():
            if len(same) > 1:
                tables = [atom[1] for part in same if (atom := self.atom(part)) is not None]
                united = self.leaf([{pair: np.logical_or.reduce(tables)}])
                parts = dict.fromkeys(united if part == same[0] else part for part in parts if part not in same[1:])
        if len(parts) == 1:
            return next(iter(parts))
        number = self.numbers.setdefault(frozenset(parts), len(self.numbers))
        self.unions.setdefault(number, list(parts))
        return number, True

    def atom(self, literal: Literal) -> tuple[Pair, Bits] | None:
        """The one table that a literal is, if it is one."""
        terms = self.leaves.get(literal[0])
        if terms is None or len(terms) != 1 or len(terms[0]) != 1:
            return None
        ((pair, table),) = terms[0].items()
        return pair, table if literal[1] else ~table

    def terms(self, literal: Literal) -> list[Term]:
        """Disjoint terms of a literal."""
        found = self.known.get(literal)
        if found is None:
            number, positive = literal
            if number in self.leaves:
                leaf = self.leaves[number]
                found = simplify(leaf if positive else complement(leaf))
            elif positive:
                found = self._any(self.unions[number])
            else:
                found = self._none(self.unions[number])
            self.known[literal] = found
        return found

    def _none(self, parts: Sequence[Literal]) -> list[Term]:
        found = self.terms(_negated(parts[0]))
        for part in parts[1:]:
            found = simplify(conjoin(found, self.terms(_negated(part))))
        return found

    def _any(self, parts: Sequence[Literal]) -> list[Term]:
        """Part by part: what is not in the earlier ones, or the earlier ones without it, whichever is shorter."""
        found, outside = self.terms(parts[0]), self._or_none(self.terms, _negated(parts[0]))
        for count, part in enumerate(parts[1:], start=2):
            new, not_new = self.terms(part), self._or_none(self.terms, _negated(part))
            one = None if outside is None else self._or_none(disjoin, found, outside, new)
            two = None if not_new is None else self._or_none(disjoin, new, not_new, found)
            if one is None and two is None:
                raise OverflowError(TOO_MANY)
            if outside is not None and count < len(parts):
                outside = None if not_new is None else self._or_none(conjoin, outside, not_new)
                outside = None if outside is None else simplify(outside)
            found = min((way for way in (one, two) if way is not None), key=len)
        return found

    @staticmethod
    def _or_none(make: Callable[..., list[Term]], *args: object) -> list[Term] | None:
        try:
            return make(*args)
        except OverflowError:
            return None


def sorted_pairs(term: Term) -> list[tuple[Pair, Bits]]:
    """The tables of a term in order of their pairs."""
    return sorted(term.items(), key=lambda item: item[0])


def conjoin(left: list[Term], right: list[Term]) -> list[Term]:
    """The products of terms, less those that can never hold. Raises `OverflowError` for more than `MAX_TERMS`."""
    product = []
    for a in left:
        for b in right:
            merged = dict(a)
            for pair, table in b.items():
                merged[pair] = merged[pair] & table if pair in merged else table
            if all(table.any() for table in merged.values()):
                product.append(merged)
                if len(product) > MAX_TERMS:
                    raise OverflowError(TOO_MANY)
    return product


def disjoin(left: list[Term], not_left: list[Term], right: list[Term]) -> list[Term]:
    """left or (not left and right), disjoint by construction."""
    return simplify([*left, *conjoin(not_left, right)])


def complement(terms: list[Term]) -> list[Term]:
    """Disjoint terms of what is in none of the terms."""
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
    seen: dict[bytes, int] = {}
    numbers = [_numbered(term, seen) for term in kept]
    i = 0
    while i < len(kept):
        j = next((j for j in range(i + 1, len(kept)) if _differ_in_one(numbers[i], numbers[j]) is not None), None)
        if j is None:
            i += 1
            continue
        pair = _differ_in_one(numbers[i], numbers[j])
        assert pair is not None
        table = kept[i][pair] | kept[j][pair]
        rest = {p: t for p, t in kept[i].items() if p != pair}
        kept[i] = rest if table.all() else {**rest, pair: table}
        numbers[i] = _numbered(kept[i], seen)
        del kept[j], numbers[j]
        i = 0
    return kept


def _numbered(term: Term, seen: dict[bytes, int]) -> dict[Pair, int]:
    """The term with equal tables of one pair as equal numbers."""
    return {pair: seen.setdefault(table.tobytes(), len(seen)) for pair, table in term.items()}


def _differ_in_one(a: dict[Pair, int], b: dict[Pair, int]) -> Pair | None:
    """The pair whose tables alone tell two terms apart."""
    if a.keys() != b.keys():
        return None
    different = [pair for pair in a if a[pair] != b[pair]]
    return different[0] if len(different) == 1 else None


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
