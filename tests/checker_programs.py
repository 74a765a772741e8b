"""Random small core programs, as JSON, for the checker: every node kind, over three tokens and up to three places."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np

from certiformer.proofs.format import sort_key

Json = Any
VOCABS: list[list[Any]] = [["a", "b", "c"], [0, 1, 2], [False, True, 3], [-1, Fraction(1, 2), 2]]


def write_value(value: Any) -> Json:
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else {"num": value.numerator, "den": value.denominator}
    return value


def canonical(values: list[Any]) -> list[Any]:
    return sorted(dict.fromkeys(values), key=sort_key)


def numbers(values: list[Any]) -> list[Any]:
    return [v for v in values if v is not None and not isinstance(v, str)]


def random_program(rng: np.random.Generator, length: int = 3) -> Json:
    """A well-formed program; its `values` are supersets built from the arguments' lists, so ranges may be narrower."""
    vocab = VOCABS[rng.integers(len(VOCABS))]
    nodes: list[Json] = [{"kind": "tokens"}, {"kind": "indices"}]
    values: list[list[Any]] = [canonical(vocab), list(range(length))]
    causal = bool(rng.random() < 0.5)

    def pick(selector: bool) -> int:
        kinds = ("select", "and", "or", "not")
        places = [i for i, node in enumerate(nodes) if (node["kind"] in kinds) == selector]
        return int(places[rng.integers(len(places))])

    def table(rows: int, columns: int) -> list[str]:
        style = rng.integers(5)
        if style == 0:
            bits = np.eye(rows, columns)
        elif style == 1:
            bits = np.tri(columns, rows, -1).T if rng.random() < 0.5 else np.tri(rows, columns)
        else:
            bits = rng.random((rows, columns)) < rng.random()
        return ["".join("01"[int(x)] for x in row) for row in bits]

    def add(node: Json, found: list[Any] | None = None) -> None:
        nodes.append(node)
        values.append([] if found is None else canonical(found))

    if rng.random() < 0.3:  # a stable rank: token less, or equal and place less
        upper, equal = ["".join("01"[q > k] for q in range(3)) for k in range(3)], ["100", "010", "001"]
        add({"kind": "select", "keys": 0, "queries": 0, "table": upper})
        add({"kind": "select", "keys": 0, "queries": 0, "table": equal})
        add({"kind": "select", "keys": 1, "queries": 1, "table": upper})
        add({"kind": "and", "left": 3, "right": 4})
        add({"kind": "or", "left": 2, "right": 5})
        add({"kind": "width", "selector": 6 if rng.random() < 0.7 else 2}, list(range(length + 1)))
        same = ["".join("01"[k == q] for q in range(length)) for k in range(length + 1)]
        add({"kind": "select", "keys": 7, "queries": 1, "table": same})
    for _ in range(int(rng.integers(2, 8))):
        have = any(node["kind"] in ("select", "and", "or", "not") for node in nodes)
        later = ["and", "or", "not", "width", "width", "aggregate", "aggregate", "aggregate"] if have else []
        kind = rng.choice(["map", "linear", "select", *later])
        if kind == "map":
            args = [pick(False) for _ in range(int(rng.integers(1, 3)))]
            image = canonical([None, "x", 0, 1, 2, Fraction(1, 3)][: int(rng.integers(2, 7))][int(rng.integers(2)) :])
            size = int(np.prod([len(values[a]) for a in args]))
            if size > 200:
                continue
            add({"kind": "map", "args": args, "table": rng.integers(0, len(image), size).tolist()}, image)
        elif kind == "linear":
            args = [a for a in (pick(False), pick(False)) if not any(isinstance(v, str) for v in values[a])]
            weights = [Fraction(int(rng.integers(-2, 3)), int(rng.integers(1, 3))) for _ in args]
            constant = Fraction(int(rng.integers(-1, 2)))
            sums: list[Any] = []
            for tuple_ in product(*(values[a] for a in args)):
                none = any(v is None for v in tuple_)
                sums.append(None if none else constant + sum(c * v for c, v in zip(weights, tuple_, strict=True)))
            if len(set(sums)) > 40:
                continue
            coefficients = [write_value(c) for c in weights]
            add({"kind": "linear", "args": args, "coefficients": coefficients, "constant": write_value(constant)}, sums)
        elif kind == "select":
            keys = pick(False)
            queries = keys if rng.random() < 0.5 else pick(False)
            rows = table(len(values[keys]), len(values[queries]))
            add({"kind": "select", "keys": keys, "queries": queries, "table": rows})
        elif kind in ("and", "or"):
            add({"kind": str(kind), "left": pick(True), "right": pick(True)})
        elif kind == "not":
            add({"kind": "not", "arg": pick(True)})
        elif kind == "width":
            add({"kind": "width", "selector": pick(True)}, list(range(length + 1)))
        else:
            source = pick(False)
            items = numbers(values[source])
            means = [
                sum(map(Fraction, c)) / m for m in range(2, length + 1) for c in combinations_with_replacement(items, m)
            ]
            default = [None, 0, "x"][int(rng.integers(3))]
            found = canonical([*values[source], *means, default])
            if len(found) > 60:
                continue
            place = -1 if rng.random() < 0.3 else found.index(default)
            add({"kind": "aggregate", "selector": pick(True), "value": source, "default": place}, found)
    for node, found in zip(nodes, values, strict=True):
        if found:
            node["values"] = [write_value(v) for v in found]
    return {
        "vocab": [write_value(v) for v in canonical(vocab)],
        "max_len": length,
        "causal": causal,
        "nodes": nodes,
        "output": pick(False),
        "name": "random",
    }
