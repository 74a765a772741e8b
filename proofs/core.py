"""Core RASP: reading, well-formedness, and a batched evaluator (section 1 of the specification)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .format import (
    Json,
    Rejected,
    Value,
    as_fraction,
    boolean,
    common_scale,
    distinct_values,
    integer,
    integers,
    is_number,
    listing,
    rational,
    record,
    require,
    show,
    text,
)

MAX_NODES = 4096
MAX_TABLE = 2**22
MAX_ARGS = 64
MAX_LEN = 1024
Bits = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
SELECTORS = ("select", "and", "or", "not")
VALUES = ("tokens", "indices", "map", "linear", "width", "aggregate")


@dataclass(frozen=True, eq=False)
class Node:
    """One node. `args` are its references in the order of the specification's columns.

    table: `map` int64, one axis per argument, -1 undefined; `select` bool [key value, query value].
    `values` is empty for selectors; `default` is -1 where there is none.
    """

    kind: str
    args: tuple[int, ...]
    values: tuple[Value, ...] = ()
    table: npt.NDArray[Any] | None = None
    coefficients: tuple[Fraction, ...] = ()
    constant: Fraction = Fraction(0)
    default: int = -1

    @property
    def is_selector(self) -> bool:
        return self.kind in SELECTORS

    def position(self) -> dict[Value, int]:
        """Value to index; equality is numeric (true = 1)."""
        return {item: index for index, item in enumerate(self.values)}


@dataclass(frozen=True, eq=False)
class Program:
    vocab: tuple[Value, ...]
    max_len: int
    causal: bool
    nodes: tuple[Node, ...]
    output: int

    def value(self, index: int, what: str) -> Node:
        """The value node at `index`."""
        require(0 <= index < len(self.nodes), f"{what}: there is no node {index}")
        require(not self.nodes[index].is_selector, f"{what}: node {index} is a selector, not a value")
        return self.nodes[index]


def read_program(data: Json) -> Program:
    """A well-formed program, or `Rejected` naming the node and what is wrong with it."""
    item = record(data, "program", ("vocab", "max_len", "causal", "nodes", "output", "name"))
    text(item["name"], "program name")
    vocab = distinct_values(item["vocab"], "program vocab", canonical_order=True)
    max_len = integer(item["max_len"], "max_len", 1, MAX_LEN)
    causal = boolean(item["causal"], "program causal")
    entries = listing(item["nodes"], "program nodes", MAX_NODES, 2)
    program = read_nodes(Program(vocab, max_len, causal, (), 0), entries)
    output = integer(item["output"], "program output", 0, len(program.nodes) - 1)
    program.value(output, "program output")
    return Program(vocab, max_len, causal, program.nodes, output)


def read_nodes(program: Program, entries: list[Json]) -> Program:
    """The program with the nodes of `entries` appended, each well formed."""
    nodes = list(program.nodes)
    require(len(nodes) + len(entries) <= MAX_NODES, f"more than {MAX_NODES} nodes")
    for entry in entries:
        try:
            nodes.append(_read_node(program, nodes, entry))
        except Rejected as error:
            raise Rejected(f"node {len(nodes)}: {error.why}") from None
    return Program(program.vocab, program.max_len, program.causal, tuple(nodes), program.output)


def _read_node(program: Program, nodes: list[Node], entry: Json) -> Node:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    require(isinstance(kind, str) and kind in _READERS, f"unknown kind {show(kind)}")
    here = len(nodes)
    require((here == 0) == (kind == "tokens"), "node 0, and no other, is tokens")
    require((here == 1) == (kind == "indices"), "node 1, and no other, is indices")
    keys, reader = _READERS[str(kind)]
    return reader(record(entry, str(kind), ("kind", *keys), ("name",)), nodes, program)


def _reference(data: Json, nodes: list[Node], selector: bool) -> int:
    index = integer(data, "a reference", 0, len(nodes) - 1)
    require(nodes[index].is_selector == selector, f"node {index} is {'not ' if selector else ''}a selector")
    return index


def _arguments(data: Json, nodes: list[Node]) -> tuple[int, ...]:
    return tuple(_reference(index, nodes, False) for index in listing(data, "args", MAX_ARGS))


def _values(item: dict[str, Json]) -> tuple[Value, ...]:
    return distinct_values(item["values"], "values", canonical_order=True)


def _tokens(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    values = _values(item)
    require(values == program.vocab, "the values of tokens are not the vocab")
    return Node("tokens", (), values)


def _indices(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    values = _values(item)
    require(values == tuple(range(program.max_len)), "the values of indices are not 0..max_len-1")
    return Node("indices", (), tuple(range(program.max_len)))


def _map(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    args, values = _arguments(item["args"], nodes), _values(item)
    shape = tuple(len(nodes[arg].values) for arg in args)
    size = math.prod(shape)
    require(size <= MAX_TABLE, f"the table has {size} entries; the limit is {MAX_TABLE}")
    flat = integers(item["table"], "table", -1, len(values) - 1, MAX_TABLE)
    require(len(flat) == size, f"the table has {len(flat)} entries, must have {size}")
    return Node("map", args, values, np.array(flat, dtype=np.int64).reshape(shape))


def _linear(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    args, values = _arguments(item["args"], nodes), _values(item)
    coefficients = tuple(rational(c, "a coefficient") for c in listing(item["coefficients"], "coefficients", MAX_ARGS))
    require(len(coefficients) == len(args), f"{len(args)} arguments but {len(coefficients)} coefficients")
    return Node("linear", args, values, None, coefficients, rational(item["constant"], "constant"))


def _select(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    args = (_reference(item["keys"], nodes, False), _reference(item["queries"], nodes, False))
    return Node("select", args, (), read_bits(item["table"], *(len(nodes[arg].values) for arg in args)))


def read_bits(data: Json, rows: int, columns: int) -> Bits:
    """A boolean matrix, one string of 0 and 1 per row."""
    require(rows * columns <= MAX_TABLE * 4, f"a table of {rows} x {columns} is too large")
    lines = listing(data, "table", rows, rows)
    good = all(isinstance(line, str) and len(line) == columns and set(line) <= {"0", "1"} for line in lines)
    require(good, f"every row of the table must be a string of {columns} characters 0 or 1")
    bits: Bits = np.frombuffer("".join(lines).encode("ascii"), dtype=np.uint8) == ord("1")
    return bits.reshape(rows, columns)


def _binary(kind: str) -> Callable[[dict[str, Json], list[Node], Program], Node]:
    def read(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
        return Node(kind, (_reference(item["left"], nodes, True), _reference(item["right"], nodes, True)))

    return read


def _not(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    return Node("not", (_reference(item["arg"], nodes, True),))


def _width(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    return Node("width", (_reference(item["selector"], nodes, True),), _values(item))


def _aggregate(item: dict[str, Json], nodes: list[Node], program: Program) -> Node:
    values = _values(item)
    args = (_reference(item["selector"], nodes, True), _reference(item["value"], nodes, False))
    default = integer(item["default"], "default", -1, len(values) - 1)
    return Node("aggregate", args, values, default=default)


_READERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Json], list[Node], Program], Node]]] = {
    "tokens": (("values",), _tokens),
    "indices": (("values",), _indices),
    "map": (("args", "table", "values"), _map),
    "linear": (("args", "coefficients", "constant", "values"), _linear),
    "select": (("keys", "queries", "table"), _select),
    "and": (("left", "right"), _binary("and")),
    "or": (("left", "right"), _binary("or")),
    "not": (("arg",), _not),
    "width": (("selector", "values"), _width),
    "aggregate": (("selector", "value", "default", "values"), _aggregate),
}


# --- evaluation ------------------------------------------------------------------------------------------------


def linear_indices(node: Node, nodes: tuple[Node, ...], args: list[Ints]) -> Ints:
    """Indices into `node.values` of constant + sum of coefficient * argument, elementwise over equal shapes.

    None if an argument is None; -1 where an argument is undefined (-1), is a string, or the sum is not in `values`.
    """
    shape = args[0].shape if args else ()
    tables: list[list[Fraction | None]] = []
    bad = np.zeros(shape, dtype=np.bool_)
    none = np.zeros(shape, dtype=np.bool_)
    for arg, coefficient, index in zip(node.args, node.coefficients, args, strict=True):
        values = nodes[arg].values
        is_text = np.array([isinstance(v, str) for v in values])
        is_none = np.array([v is None for v in values])
        bad |= (index < 0) | is_text[index]
        none |= is_none[index]
        tables.append([coefficient * as_fraction(v) if is_number(v) else None for v in values])
    return weighted_indices(node, tables, args, node.constant, bad, none)


def weighted_indices(
    node: Node, tables: list[list[Fraction | None]], args: list[Ints], constant: Fraction, bad: Bits, none: Bits
) -> Ints:
    """Indices of constant + sum of tables[t][args[t]] in `node.values`; None where `none`, -1 where `bad` or absent."""
    numbers = [x for table in tables for x in table if x is not None] + [constant]
    scale = common_scale(numbers)
    scaled = [[0 if x is None else int(x * scale) for x in table] for table in tables]
    bound = abs(int(constant * scale)) + sum(max((abs(x) for x in row), default=0) for row in scaled)
    dtype: type = np.int64 if bound < 2**62 else np.object_
    total: npt.NDArray[Any] = np.full(bad.shape, int(constant * scale), dtype=dtype)
    for row, index in zip(scaled, args, strict=True):
        total = total + np.array(row, dtype=dtype)[index]
    unique, inverse = np.unique(total, return_inverse=True)
    position = node.position()
    looked_up = np.array([position.get(Fraction(int(x), scale), -1) for x in unique], dtype=np.int64)
    found = looked_up[inverse.reshape(bad.shape)]
    found = np.where(none, position.get(None, -1), found)
    return np.where(bad, -1, found)


@dataclass(frozen=True)
class Trace:
    """`values`: indices into the nodes' values [batch, n]; `selected`: bool [batch, query, key], not only visible ones.

    `undefined`: [batch], where a value is undefined or not listed; the row's other values then mean nothing.
    """

    values: dict[int, Ints]
    selected: dict[int, Bits]
    undefined: Bits


def trace(program: Program, tokens: Ints, target: int, given: Mapping[int, Ints] | None = None) -> Trace:
    """The node `target` and what it depends on, on token indices [batch, n] (into the vocab).

    `given`: nodes whose values are put in by hand; what only they depend on is not evaluated.
    """
    n = tokens.shape[1]
    require(1 <= n <= program.max_len, f"a sequence of length {n}; max_len is {program.max_len}")
    found = Trace(dict(given or {}), {}, np.zeros(len(tokens), dtype=np.bool_))
    for number in _dependencies(program, target, found.values):
        if program.nodes[number].is_selector:
            found.selected[number] = _evaluate_selector(program.nodes[number], found.values, found.selected)
            continue
        result = _evaluate_value(program, number, tokens, found.values, found.selected)
        found.undefined[:] |= (result < 0).any(axis=1)
        found.values[number] = np.maximum(result, 0)
    return found


def _dependencies(program: Program, target: int, given: Mapping[int, Ints]) -> list[int]:
    """The nodes to evaluate, ascending."""
    wanted = {target}
    for number in range(target, -1, -1):
        if number in wanted and number not in given:
            wanted.update(program.nodes[number].args)
    return sorted(wanted - set(given))


def evaluate(program: Program, tokens: Ints) -> dict[int, Ints]:
    """For every value node, indices into its values [batch, n], on token indices [batch, n] (into the vocab).

    Raises `Rejected` where the program is undefined, or takes a value that its `values` do not list.
    """
    n = tokens.shape[1]
    require(1 <= n <= program.max_len, f"a sequence of length {n}; max_len is {program.max_len}")
    found: dict[int, Ints] = {}
    selected: dict[int, Bits] = {}
    for number, node in enumerate(program.nodes):
        if node.is_selector:
            selected[number] = _evaluate_selector(node, found, selected)
            continue
        result = _evaluate_value(program, number, tokens, found, selected)
        if (result < 0).any():
            row, place = np.argwhere(result < 0)[0]
            word = [program.vocab[t] for t in tokens[row]]
            raise Rejected(f"node {number} ({node.kind}) is undefined at position {place} of {show(word)}")
        found[number] = result
    return found


def _evaluate_value(
    program: Program, number: int, tokens: Ints, found: dict[int, Ints], selected: dict[int, Bits]
) -> Ints:
    """Indices [batch, n] of a value node's values; -1 where it is undefined or its value is not listed."""
    batch, n = tokens.shape
    node = program.nodes[number]
    if node.kind == "tokens":
        return tokens.astype(np.int64)
    if node.kind == "indices":
        return np.broadcast_to(np.arange(n, dtype=np.int64), (batch, n))
    if node.kind == "map":
        assert node.table is not None
        looked_up = node.table[tuple(found[arg] for arg in node.args)]
        return np.broadcast_to(np.asarray(looked_up, dtype=np.int64), (batch, n))
    if node.kind == "linear":
        sums = linear_indices(node, program.nodes, [found[arg] for arg in node.args])
        return np.broadcast_to(sums, (batch, n))
    visible = np.tril(np.ones((n, n), dtype=np.bool_)) if program.causal else np.ones((n, n), dtype=np.bool_)
    chosen = selected[node.args[0]] & visible
    if node.kind == "width":
        position = node.position()
        counted = np.array([position.get(count, -1) for count in range(n + 1)], dtype=np.int64)
        return np.asarray(counted[chosen.sum(axis=2)])
    return _evaluate_aggregate(node, program.nodes[node.args[1]], chosen, found[node.args[1]])


def _evaluate_selector(node: Node, found: dict[int, Ints], selected: dict[int, Bits]) -> Bits:
    if node.kind == "select":
        assert node.table is not None
        keys, queries = found[node.args[0]], found[node.args[1]]
        held: Bits = node.table[keys[:, None, :], queries[:, :, None]]
        return held
    if node.kind == "not":
        return ~selected[node.args[0]]
    left, right = (selected[arg] for arg in node.args)
    return left & right if node.kind == "and" else left | right


def _evaluate_aggregate(node: Node, source: Node, chosen: Bits, value: Ints) -> Ints:
    """The default, the common value, or the exact mean of the chosen values; -1 where undefined."""
    position = node.position()
    count = chosen.sum(axis=2)
    size = len(source.values)
    keyed = np.broadcast_to(value[:, None, :], chosen.shape)
    least = np.where(chosen, keyed, size).min(axis=2)
    most = np.where(chosen, keyed, -1).max(axis=2)
    common = np.array([*(position.get(v, -1) for v in source.values), -1], dtype=np.int64)
    result = np.where(count == 0, node.default, common[least])
    mixed = (count > 0) & (least != most)
    if not mixed.any():
        return result
    numeric = np.array([is_number(v) for v in source.values])
    numbers = [as_fraction(v) if is_number(v) else Fraction(0) for v in source.values]
    scale = common_scale(numbers)
    scaled = [int(x * scale) for x in numbers]
    base = chosen.shape[2] + 1
    dtype = np.int64 if max(map(abs, scaled)) * base * base < 2**62 else np.object_
    total = np.where(chosen, np.array(scaled, dtype=dtype)[keyed], 0).sum(axis=2)
    defined = ~(chosen & ~numeric[keyed]).any(axis=2)
    pairs, inverse = np.unique(total[mixed] * base + count[mixed], return_inverse=True)
    means = [position.get(Fraction(int(pair) // base, int(pair) % base * scale), -1) for pair in pairs]
    result[mixed] = np.array(means, dtype=np.int64)[inverse]
    return np.where(mixed & ~defined, -1, result)
