"""Prefix programs run on one word, by the definitions: for tests, and to be compared with the interpreter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..compiler.core import Value
from ..models.values import value_from_json


def evaluate_prefix(
    nodes: Sequence[Mapping[str, object]], output: int, vocab: Sequence[Value], word: Sequence[Value]
) -> list[Value] | None:
    """The output's values on one word; None if a node is undefined somewhere."""
    n = len(word)
    rows: list[list[Any]] = []
    for node in nodes:
        rows.append(_rows(node, nodes, rows, [vocab.index(token) for token in word], n))
    values = _listed(nodes[output])
    partial = [row for node, row in zip(nodes, rows, strict=True) if node["kind"] in ("map", "pick")]
    return None if any(-1 in row for row in partial) else [values[index] for index in rows[output]]


def _rows(
    node: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], rows: list[list[Any]], tokens: list[int], n: int
) -> list[Any]:
    """Of a node with values, value indices; of a selector, the selected positions j <= i."""
    kind = node["kind"]
    if kind == "tokens":
        return tokens
    if kind == "offset":
        return [{i - node["by"]} if i >= node["by"] else set() for i in range(n)]
    if kind in ("and", "or"):
        left, right = rows[node["left"]], rows[node["right"]]
        return [a & b if kind == "and" else a | b for a, b in zip(left, right, strict=True)]
    if kind == "not":
        return [set(range(i + 1)) - held for i, held in enumerate(rows[node["arg"]])]
    if kind == "select":
        keys, queries, table = rows[node["keys"]], rows[node["queries"]], node["table"]
        return [{j for j in range(i + 1) if table[keys[j]][queries[i]] == "1"} for i in range(n)]
    if kind == "pick":
        return [
            _picked(node, _listed(nodes[node["value"]]), {rows[node["value"]][j] for j in held})
            for held in rows[node["selector"]]
        ]
    if kind == "map":
        sizes = [len(_listed(nodes[arg])) for arg in node["args"]]
        return [_entry(node["table"], sizes, [rows[arg][i] for arg in node["args"]]) for i in range(n)]
    totals = [node["constant"] + sum(c * len(rows[s][i]) for s, c in node["terms"]) for i in range(n)]
    return [t % node["modulus"] if kind == "modulo" else (t > 0) - (t < 0) + 1 for t in totals]


def _entry(table: list[int], sizes: Sequence[int], at: Sequence[int]) -> int:
    place = 0
    for size, index in zip(sizes, at, strict=True):
        if index < 0:
            return -1
        place = place * size + index
    return table[place]


def _picked(node: Mapping[str, Any], source: Sequence[Value], held: set[int]) -> int:
    if not held:
        return int(node["default"])
    value = source[min(held)]
    values = _listed(node)
    return values.index(value) if len(held) == 1 and value in values else -1


def _listed(node: Mapping[str, Any]) -> list[Value]:
    if node["kind"] == "sign":
        return [-1, 0, 1]
    if node["kind"] == "modulo":
        return list(range(node["modulus"]))
    return [value_from_json(value) for value in node["values"]]
