"""Prefix programs: programs read from left to right, on sequences of any length (section 14 of the specification)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .core import MAX_NODES, MAX_TABLE, read_bits
from .format import (
    Json,
    Value,
    as_fraction,
    big,
    distinct_values,
    integer,
    integers,
    is_number,
    listing,
    record,
    require,
    show,
)

FAR = -1
"""The distance of a position that is farther than every `offset` of the program."""
MAX_OFFSET = 64
SELECTORS = ("select", "offset", "and", "or", "not")


@dataclass(frozen=True)
class PrefixNode:
    """`args`: nodes it reads. `table`: of a map, flat; of a select, [key, query]. `values`: of what is no selector.

    `terms`: selectors with integer coefficients, and `constant`, of `sign` and `modulo`. `number`: an offset, a
    modulus, or the index of a default.
    """

    kind: str
    args: tuple[int, ...] = ()
    values: tuple[Value, ...] = ()
    table: npt.NDArray[Any] | None = None
    terms: tuple[tuple[int, int], ...] = ()
    constant: int = 0
    number: int = 0


@dataclass(frozen=True)
class PrefixProgram:
    """`output` is a node with values."""

    vocab: tuple[Value, ...]
    nodes: tuple[PrefixNode, ...]
    output: int

    def selects(self, node: int, key: Callable[[int], int], query: Callable[[int], int], distance: int) -> bool:
        """Whether a selector selects a position so far to the left; `key` and `query` give value indices by node."""
        this = self.nodes[node]
        if this.kind == "offset":
            return distance == this.number
        if this.kind == "select":
            assert this.table is not None
            return bool(this.table[key(this.args[0]), query(this.args[1])])
        if this.kind == "not":
            return not self.selects(this.args[0], key, query, distance)
        left, right = (self.selects(arg, key, query, distance) for arg in this.args)
        return left and right if this.kind == "and" else left or right

    def is_true(self, value: int) -> bool:
        """Whether a value of the output is true: a number that equals 1."""
        item = self.nodes[self.output].values[value]
        return is_number(item) and as_fraction(item) == 1

    def within(self, roots: list[int]) -> list[int]:
        """The nodes that these depend on, and they themselves, ascending."""
        wanted = set(roots)
        for number in range(len(self.nodes) - 1, -1, -1):
            if number in wanted:
                wanted.update(self.nodes[number].args)
        return sorted(wanted)

    @property
    def reach(self) -> int:
        """The largest offset."""
        return max((node.number for node in self.nodes if node.kind == "offset"), default=0)


def read_prefix_program(data: Json) -> PrefixProgram:
    """A well-formed prefix program."""
    item = record(data, "program", ("vocab", "nodes", "output"))
    vocab = distinct_values(item["vocab"], "program vocab", canonical_order=True)
    nodes: list[PrefixNode] = []
    for entry in listing(item["nodes"], "program nodes", MAX_NODES, 1):
        kind = entry.get("kind") if isinstance(entry, dict) else None
        require(isinstance(kind, str) and kind in _READERS, f"unknown kind {show(kind)}")
        require((not nodes) == (kind == "tokens"), "node 0, and no other, is tokens")
        keys, reader = _READERS[str(kind)]
        nodes.append(reader(record(entry, str(kind), ("kind", *keys)), nodes))
    require(nodes[0].values == vocab, "the values of tokens are not the vocab")
    output = _reference(item["output"], nodes, False)
    return PrefixProgram(vocab, tuple(nodes), output)


_Item = dict[str, Json]


def _reference(data: Json, nodes: list[PrefixNode], selector: bool) -> int:
    index = integer(data, "a reference", 0, len(nodes) - 1)
    require((nodes[index].kind in SELECTORS) == selector, f"node {index} is {'not ' if selector else ''}a selector")
    return index


def _values(item: _Item) -> tuple[Value, ...]:
    return distinct_values(item["values"], "values", canonical_order=True)


def _tokens(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    return PrefixNode("tokens", (), _values(item))


def _map(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    args = tuple(_reference(arg, nodes, False) for arg in listing(item["args"], "args", 64))
    values, shape = _values(item), tuple(len(nodes[arg].values) for arg in args)
    require(math.prod(shape) <= MAX_TABLE, f"the table has {math.prod(shape)} entries")
    flat = integers(item["table"], "table", -1, len(values) - 1, MAX_TABLE)
    require(len(flat) == math.prod(shape), f"the table has {len(flat)} entries, must have {math.prod(shape)}")
    return PrefixNode("map", args, values, np.array(flat, dtype=np.int64).reshape(shape))


def _select(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    args = (_reference(item["keys"], nodes, False), _reference(item["queries"], nodes, False))
    return PrefixNode("select", args, (), read_bits(item["table"], *(len(nodes[arg].values) for arg in args)))


def _offset(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    return PrefixNode("offset", number=integer(item["by"], "offset", 0, MAX_OFFSET))


def _binary(kind: str) -> Callable[[_Item, list[PrefixNode]], PrefixNode]:
    def read(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
        return PrefixNode(kind, (_reference(item["left"], nodes, True), _reference(item["right"], nodes, True)))

    return read


def _not(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    return PrefixNode("not", (_reference(item["arg"], nodes, True),))


def _terms(item: _Item, nodes: list[PrefixNode]) -> tuple[tuple[int, int], ...]:
    found = []
    for entry in listing(item["terms"], "terms", MAX_NODES):
        selector, coefficient = listing(entry, "a term", 2, 2)
        found.append((_reference(selector, nodes, True), big(coefficient, "a coefficient")))
    return tuple(found)


def _sign(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    terms = _terms(item, nodes)
    args = tuple(selector for selector, _ in terms)
    return PrefixNode("sign", args, (-1, 0, 1), terms=terms, constant=big(item["constant"], "the constant"))


def _modulo(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    terms, modulus = _terms(item, nodes), integer(item["modulus"], "modulus", 1, 2**10)
    args = tuple(selector for selector, _ in terms)
    constant = big(item["constant"], "the constant")
    return PrefixNode("modulo", args, tuple(range(modulus)), terms=terms, constant=constant, number=modulus)


def _pick(item: _Item, nodes: list[PrefixNode]) -> PrefixNode:
    args = (_reference(item["selector"], nodes, True), _reference(item["value"], nodes, False))
    values = _values(item)
    return PrefixNode("pick", args, values, number=integer(item["default"], "default", -1, len(values) - 1))


_READERS: dict[str, tuple[tuple[str, ...], Callable[[_Item, list[PrefixNode]], PrefixNode]]] = {
    "tokens": (("values",), _tokens),
    "map": (("args", "table", "values"), _map),
    "select": (("keys", "queries", "table"), _select),
    "offset": (("by",), _offset),
    "and": (("left", "right"), _binary("and")),
    "or": (("left", "right"), _binary("or")),
    "not": (("arg",), _not),
    "sign": (("terms", "constant"), _sign),
    "modulo": (("terms", "constant", "modulus"), _modulo),
    "pick": (("selector", "value", "default", "values"), _pick),
}
