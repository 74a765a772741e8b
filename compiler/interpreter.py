"""The reference interpreter: what a RASP program means, exactly, on one input sequence.

It is written to be obviously right. Its results are Tracr's interpreter's, with exact means in place of floats, and
with an error where a value is undefined. Where Tracr raises, on a None key or query, nothing is selected.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from ..models.errors import InputError, InternalError
from .core import Value, normalise
from .functions import Comparison, Undefined
from .rasp import (
    AggregateOp,
    AndOp,
    Constant,
    Expression,
    IndicesOp,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    SOp,
    TokensOp,
    WidthOp,
    describe,
)
from .structure import nodes_of
from .terms import show

Rows: TypeAlias = list[list[bool]]  # rows[i][j]: position j is selected (and visible) from query position i


class EvaluationError(InputError):
    """A program has no value on an input: the message names the node, its place, the position and the values."""


def evaluate(program: SOp, xs: Sequence[Value], *, causal: bool = False) -> list[Value]:
    """The value of `program` at each position of `xs`; with `causal`, position i sees only positions j <= i.

    Every node is evaluated at every position, also where its value does not matter in the end.
    Raises `InputError` for an empty sequence or a token that is no value, `EvaluationError` where a function raises,
    an order compares strings with numbers, or values that have no mean are averaged.
    """
    return trace(program, xs, causal=causal)[program]


def trace(program: SOp, xs: Sequence[Value], *, causal: bool = False) -> dict[Expression, list[Any]]:
    """The values of every node: one per position for an s-op, rows[query][key] of bools for a selector.

    Raises as `evaluate`.
    """
    if not isinstance(program, SOp):
        raise InputError(f"a program is an s-op, got {program!r}: aggregate the selector, or take its width")
    tokens = _tokens(xs)
    results: dict[Expression, list[Any]] = {}
    for node in nodes_of(program):
        results[node] = _evaluate_node(node, tokens, causal, results)
    return results


def _tokens(xs: Sequence[Value]) -> list[Value]:
    try:
        tokens = [normalise(x) for x in xs]
    except (TypeError, ValueError) as error:
        raise InputError(f"a token of {xs!r} cannot be used: {error}") from None
    if not tokens:
        raise InputError("the input sequence is empty: RASP programs are defined on sequences of length 1 and more")
    return tokens


def _evaluate_node(
    node: Expression, tokens: list[Value], causal: bool, results: dict[Expression, list[Any]]
) -> list[Any]:
    positions = range(len(tokens))
    match node:
        case TokensOp():
            return tokens
        case IndicesOp():
            return list(positions)
        case Constant(value):
            return [value] * len(tokens)
        case MapOp(_, args):
            return [_map(node, i, [results[arg][i] for arg in args]) for i in positions]
        case LinearOp(args):
            return [_linear(node, i, [results[arg][i] for arg in args]) for i in positions]
        case WidthOp(selector):
            return [sum(row) for row in results[selector]]
        case AggregateOp(selector, value):
            values = results[value]
            return [
                _aggregate(node, i, [values[j] for j in positions if row[j]]) for i, row in enumerate(results[selector])
            ]
        case SelectOp(keys, queries):
            return _select(node, results[keys], results[queries], causal)
        case AndOp(left, right):
            return _pointwise(operator.and_, results[left], results[right])
        case OrOp(left, right):
            return _pointwise(operator.or_, results[left], results[right])
        case NotOp(arg):
            rows = enumerate(results[arg])
            return [[not held and (j <= i or not causal) for j, held in enumerate(row)] for i, row in rows]
    raise InternalError(f"{node!r} is no node of the language")


def _map(node: MapOp, position: int, values: list[Value]) -> Value:
    if None in values:
        return None
    outcome = node.function.try_evaluate(values)
    if isinstance(outcome, Undefined):
        raise _error(node, f"position {position}", f"arguments {_listed(values)}", outcome.reason)
    return outcome


def _linear(node: LinearOp, position: int, values: list[Value]) -> Value:
    if None in values:
        return None
    total = node.constant
    for coefficient, value in zip(node.coefficients, values, strict=True):
        if not isinstance(value, (int, Fraction)):
            reason = f"{show(value)} is not a number"
            raise _error(node, f"position {position}", f"arguments {_listed(values)}", reason)
        total += coefficient * value
    return normalise(total)


def _aggregate(node: AggregateOp, position: int, selected: list[Value]) -> Value:
    if not selected:
        return node.default
    if all(value == selected[0] for value in selected):
        return selected[0]
    numbers = [value for value in selected if isinstance(value, (int, Fraction))]
    if len(numbers) < len(selected):
        reason = "only numbers have a mean: select one position, or positions that agree"
        raise _error(node, f"position {position}", f"selected values {_listed(selected)}", reason)
    return normalise(Fraction(sum(numbers)) / len(numbers))


_ON_VALUES: dict[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQ: operator.eq,
    Comparison.NEQ: operator.ne,
    Comparison.LT: operator.lt,
    Comparison.LEQ: operator.le,
    Comparison.GT: operator.gt,
    Comparison.GEQ: operator.ge,
    Comparison.TRUE: lambda key, query: True,
    Comparison.FALSE: lambda key, query: False,
}


def _select(node: SelectOp, keys: list[Value], queries: list[Value], causal: bool) -> Rows:
    """A pair that is not visible is not selected, and the predicate is not asked about it."""
    compare = None if node.predicate.comparison is None else _ON_VALUES[node.predicate.comparison]
    rows: Rows = []
    for i, query in enumerate(queries):
        visible = keys[: i + 1] if causal else keys
        hidden = [False] * (len(keys) - len(visible))
        if query is None:
            rows.append([False] * len(keys))
            continue
        if compare is not None:
            try:
                rows.append([key is not None and compare(key, query) for key in visible] + hidden)
                continue
            except TypeError:
                pass  # some pair cannot be compared: the loop below says which
        rows.append([_holds(node, j, i, key, query) for j, key in enumerate(visible)] + hidden)
    return rows


def _holds(node: SelectOp, key_position: int, query_position: int, key: Value, query: Value) -> bool:
    if key is None or query is None:
        return False
    outcome = node.predicate.try_evaluate((key, query))
    if isinstance(outcome, Undefined):
        place = f"query position {query_position}, key position {key_position}"
        raise _error(node, place, f"key {show(key)} and query {show(query)}", outcome.reason)
    return outcome


def _pointwise(combine: Callable[[bool, bool], bool], left: Rows, right: Rows) -> Rows:
    return [[combine(a, b) for a, b in zip(one, other, strict=True)] for one, other in zip(left, right, strict=True)]


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(map(show, values))


def _error(node: Expression, place: str, values: str, reason: str) -> EvaluationError:
    return EvaluationError(
        f"{describe(node)} is undefined at {place}, on {values}: {reason}. "
        "Define it for these values, or keep them out of the input"
    )
