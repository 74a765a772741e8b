"""Core programs as JSON, in the form of proofs/SPECIFICATION.md, section 1, and back with every field checked.

Law: `core_from_json(core_to_json(core))` is `core` (tables, values, names and all), and the same program gives the
same JSON.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from ..models.errors import InputError
from ..models.values import value_from_json, value_to_json
from .core import (
    Aggregate,
    And,
    Bits,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Not,
    Or,
    Select,
    Tokens,
    Value,
    Width,
    sort_key,
)

MAX_NODES = 1 << 12
MAX_LEN = 1 << 10
MAX_TABLE = 1 << 22
MAX_PAIRS = 1 << 24
MAX_VALUES = 1 << 17


def core_to_json(core: CoreProgram, names: bool = True) -> dict[str, object]:
    """Plain data for `json`; `names`: with the nodes' names (a theorem leaves them out)."""
    return {
        "vocab": _values_to_json(core.vocab),
        "max_len": core.max_len,
        "causal": core.causal,
        "nodes": [node_to_json(node, names) for node in core.nodes],
        "output": core.output,
        "name": core.name,
    }


def node_to_json(node: Node, names: bool = True) -> dict[str, object]:
    """One node, with its name if it has one."""
    out = _fields(node)
    if names and node.name:
        out["name"] = node.name
    return out


def _fields(node: Node) -> dict[str, object]:
    match node:
        case Tokens():
            return {"kind": "tokens", "values": _values_to_json(node.values)}
        case Indices():
            return {"kind": "indices", "values": _values_to_json(node.values)}
        case Map():
            table = node.table.ravel().tolist()
            return {"kind": "map", "args": list(node.args), "table": table, "values": _values_to_json(node.values)}
        case Linear():
            return {
                "kind": "linear",
                "args": list(node.args),
                "coefficients": [_number_to_json(c) for c in node.coefficients],
                "constant": _number_to_json(node.constant),
                "values": _values_to_json(node.values),
            }
        case Select():
            rows = ["".join("01"[entry] for entry in row) for row in node.table.astype(np.int8).tolist()]
            return {"kind": "select", "keys": node.keys, "queries": node.queries, "table": rows}
        case And():
            return {"kind": "and", "left": node.left, "right": node.right}
        case Or():
            return {"kind": "or", "left": node.left, "right": node.right}
        case Not():
            return {"kind": "not", "arg": node.arg}
        case Aggregate():
            return {
                "kind": "aggregate",
                "selector": node.selector,
                "value": node.value,
                "default": node.default,
                "values": _values_to_json(node.values),
            }
        case Width():
            return {"kind": "width", "selector": node.selector, "values": _values_to_json(node.values)}


def core_from_json(data: object) -> CoreProgram:
    """The core program of `core_to_json`. Raises `InputError` naming the node and field that is not well formed."""
    item = _record(data, "a core program", ("vocab", "max_len", "causal", "nodes", "output", "name"), ())
    vocab = _values_from_json(item["vocab"], "the vocabulary")
    max_len = _integer(item["max_len"], "max_len", 1, MAX_LEN)
    causal, name = item["causal"], item["name"]
    if not isinstance(causal, bool):
        raise InputError(f"causal must be true or false, got {_show(causal)}")
    if not isinstance(name, str):
        raise InputError(f"the program's name must be a string, got {_show(name)}")
    nodes: list[Node] = []
    for entry in _list(item["nodes"], "nodes", MAX_NODES):
        nodes.append(node_from_json(entry, nodes))
    if len(nodes) < 2 or not isinstance(nodes[0], Tokens) or not isinstance(nodes[1], Indices):
        raise InputError("the first two nodes of a core program must be tokens and indices")
    if nodes[0].values != vocab:
        raise InputError("the values of tokens must be the vocabulary")
    if nodes[1].values != tuple(range(max_len)):
        raise InputError("the values of indices must be 0..max_len-1")
    output = _integer(item["output"], "output", 0, len(nodes) - 1)
    if isinstance(nodes[output], (Select, And, Or, Not)):
        raise InputError(f"the output must be a value node, node {output} is a selector")
    return CoreProgram(vocab, max_len, causal, tuple(nodes), output, name)


def node_from_json(data: object, nodes: Sequence[Node]) -> Node:
    """One node after `nodes`. Raises `InputError` for a field that is missing, unknown, or does not fit `nodes`."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in _READERS:
        raise InputError(f"node {len(nodes)}: the kind must be one of {', '.join(_READERS)}, got {_show(kind)}")
    fields, read = _READERS[kind]
    try:
        item = _record(data, kind, ("kind", *fields), ("name",))
        name = item.get("name", kind if kind in ("tokens", "indices") else "")
        if not isinstance(name, str):
            raise InputError(f"the name must be a string, got {_show(name)}")
        if (kind == "tokens") != (len(nodes) == 0) or (kind == "indices") != (len(nodes) == 1):
            raise InputError(f"{kind} cannot stand here: node 0, and no other, is tokens, node 1 indices")
        return read(item, nodes, name)
    except InputError as error:
        raise InputError(f"node {len(nodes)} ({kind}): {error}") from None


_Item = Mapping[str, object]


def _read_map(item: _Item, nodes: Sequence[Node], name: str) -> Map:
    args, values = _args(item, nodes), _values(item)
    shape = tuple(len(_value_list(nodes, arg)) for arg in args)
    size = math.prod(shape)
    if size > MAX_TABLE:
        raise InputError(f"the table of {size} entries is larger than {MAX_TABLE}")
    entries = _list(item["table"], "table", MAX_TABLE)
    if len(entries) != size:
        raise InputError(f"the table must have {size} entries, one per tuple of argument values, got {len(entries)}")
    flat = [_integer(entry, "a table entry", -1, len(values) - 1) for entry in entries]
    return Map(args, np.array(flat, np.int32).reshape(shape), values, name)


def _read_linear(item: _Item, nodes: Sequence[Node], name: str) -> Linear:
    args = _args(item, nodes)
    coefficients = tuple(_number(c, "a coefficient") for c in _list(item["coefficients"], "coefficients", MAX_NODES))
    if len(coefficients) != len(args):
        raise InputError(f"{len(args)} arguments need as many coefficients, got {len(coefficients)}")
    return Linear(args, coefficients, _number(item["constant"], "the constant"), _values(item), name)


def _read_select(item: _Item, nodes: Sequence[Node], name: str) -> Select:
    keys, queries = _reference(item["keys"], nodes, False), _reference(item["queries"], nodes, False)
    n_keys, n_queries = len(_value_list(nodes, keys)), len(_value_list(nodes, queries))
    if n_keys * n_queries > MAX_PAIRS:
        raise InputError(f"the table of {n_keys} x {n_queries} is larger than {MAX_PAIRS}")
    rows = _list(item["table"], "table", n_keys)
    fits = all(isinstance(row, str) and len(row) == n_queries and not row.strip("01") for row in rows)
    if len(rows) != n_keys or not fits:
        raise InputError(f"the table must be {n_keys} strings of {n_queries} characters 0 or 1")
    raw = np.frombuffer("".join(map(str, rows)).encode(), np.uint8)
    table: Bits = (raw == ord("1")).reshape(n_keys, n_queries)
    return Select(keys, queries, table, name)


def _read_aggregate(item: _Item, nodes: Sequence[Node], name: str) -> Aggregate:
    selector, value = _reference(item["selector"], nodes, True), _reference(item["value"], nodes, False)
    values = _values(item)
    return Aggregate(selector, value, _integer(item["default"], "default", -1, len(values) - 1), values, name)


_READERS: dict[str, tuple[tuple[str, ...], Callable[[_Item, Sequence[Node], str], Node]]] = {
    "tokens": (("values",), lambda item, nodes, name: Tokens(_values(item), name)),
    "indices": (("values",), lambda item, nodes, name: Indices(_values(item), name)),
    "map": (("args", "table", "values"), _read_map),
    "linear": (("args", "coefficients", "constant", "values"), _read_linear),
    "select": (("keys", "queries", "table"), _read_select),
    "and": (
        ("left", "right"),
        lambda item, nodes, name: And(
            _reference(item["left"], nodes, True), _reference(item["right"], nodes, True), name
        ),
    ),
    "or": (
        ("left", "right"),
        lambda item, nodes, name: Or(
            _reference(item["left"], nodes, True), _reference(item["right"], nodes, True), name
        ),
    ),
    "not": (("arg",), lambda item, nodes, name: Not(_reference(item["arg"], nodes, True), name)),
    "aggregate": (("selector", "value", "default", "values"), _read_aggregate),
    "width": (
        ("selector", "values"),
        lambda item, nodes, name: Width(_reference(item["selector"], nodes, True), _values(item), name),
    ),
}


# -- fields -----------------------------------------------------------------------------------------------------------


def _values_to_json(values: Iterable[Value]) -> list[object]:
    return [value_to_json(value) for value in values]


def _number_to_json(number: Fraction) -> object:
    return int(number) if number.denominator == 1 else value_to_json(number)


def _number(data: object, what: str) -> Fraction:
    value = value_from_json(data)
    if isinstance(value, bool) or not isinstance(value, (int, Fraction)):
        raise InputError(f"{what} must be a number, got {_show(data)}")
    return Fraction(value)


def _values(item: _Item) -> tuple[Value, ...]:
    return _values_from_json(item["values"], "values")


def _values_from_json(data: object, what: str) -> tuple[Value, ...]:
    values = tuple(value_from_json(entry) for entry in _list(data, what, MAX_VALUES))
    if not values:
        raise InputError(f"{what} must list at least one value")
    keys = [sort_key(value) for value in values]
    if any(not first < second for first, second in zip(keys, keys[1:], strict=False)):
        raise InputError(f"{what} must be in canonical order (null, numbers, strings; ascending) without repetition")
    return values


def _args(item: _Item, nodes: Sequence[Node]) -> tuple[int, ...]:
    return tuple(_reference(arg, nodes, False) for arg in _list(item["args"], "args", MAX_NODES))


def _value_list(nodes: Sequence[Node], index: int) -> tuple[Value, ...]:
    node = nodes[index]
    assert not isinstance(node, (Select, And, Or, Not))
    return node.values


def _reference(data: object, nodes: Sequence[Node], selector: bool) -> int:
    index = _integer(data, "a reference", 0, len(nodes) - 1)
    if isinstance(nodes[index], (Select, And, Or, Not)) != selector:
        raise InputError(f"node {index} is {'no' if selector else 'a'} selector")
    return index


def _integer(data: object, what: str, least: int, most: int) -> int:
    if not isinstance(data, int) or isinstance(data, bool) or not least <= data <= most:
        raise InputError(f"{what} must be an integer in {least}..{most}, got {_show(data)}")
    return data


def _list(data: object, what: str, most: int) -> list[object]:
    if not isinstance(data, list) or len(data) > most:
        raise InputError(f"{what} must be a list of at most {most} entries, got {_show(data)}")
    return data


def _record(data: object, what: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, object]:
    if not isinstance(data, dict) or not set(required) <= set(data) <= {*required, *optional}:
        got = sorted(map(str, data)) if isinstance(data, dict) else _show(data)
        raise InputError(f"{what} is a JSON object with the fields {', '.join(required)}; got {got}")
    return data


def _show(data: object) -> str:
    return reprlib.repr(data)
