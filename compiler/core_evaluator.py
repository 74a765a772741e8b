"""Running core programs: one sequence by the definitions, and many at once on value indices, both exact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..models.errors import InputError
from .analysis import references
from .core import (
    Aggregate,
    And,
    Bits,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Not,
    Or,
    Select,
    Tokens,
    Value,
    Width,
    normalise,
)
from .ranges import index_of


class Undefined:
    """What a node without a meaning on an input evaluates to (only in programs that the compiler refuses)."""

    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED: Final = Undefined()
Result = Value | Undefined
Row = list[Result] | Bits
_INT64 = 1 << 62


def evaluate_core(core: CoreProgram, xs: Sequence[Value]) -> list[Value]:
    """The outputs of a core program on tokens xs, position by position, by the definitions.

    Raises `InputError` for a token outside the vocabulary, a length outside 1..max_len, or an undefined output.
    """
    row = evaluate_all(core, xs)[core.output]
    assert isinstance(row, list), "the output is a value node"
    out: list[Value] = []
    for position, value in enumerate(row):
        if isinstance(value, Undefined):
            raise InputError(f"{core.name} is undefined at position {position} of {list(xs)!r}")
        out.append(value)
    return out


def evaluate_all(core: CoreProgram, xs: Sequence[Value]) -> list[Row]:
    """All nodes on tokens xs: value nodes as lists (with `UNDEFINED`), selectors as `[key, query]` booleans.

    A selector is False in causal programs where the key is not visible, and where a key or query is undefined.
    """
    n = len(xs)
    if not 1 <= n <= core.max_len:
        raise InputError(f"{core.name} takes sequences of length 1..{core.max_len}, got length {n}")
    positions = index_of(core.vocab)
    tokens: list[Result] = []
    for position, token in enumerate(xs):
        if token not in positions:
            raise InputError(f"token {token!r} at position {position} is not in the vocabulary {core.vocab!r}")
        tokens.append(core.vocab[positions[token]])
    indexes: dict[int, dict[Value, int]] = {}
    rows: list[Row] = []

    def values(node: int) -> list[Result]:
        row = rows[node]
        assert isinstance(row, list), f"node {node} is a selector"
        return row

    def indices(node: int) -> list[int]:
        """Value indices; -1 where undefined or not a listed value."""
        if node not in indexes:
            indexes[node] = index_of(core.value_node(node).values)
        return [-1 if isinstance(v, Undefined) else indexes[node].get(v, -1) for v in values(node)]

    def selected(node: int) -> Bits:
        row = rows[node]
        assert isinstance(row, np.ndarray), f"node {node} is a value"
        return row

    for node in core.nodes:
        match node:
            case Tokens():
                rows.append(tokens)
            case Indices():
                rows.append(list(range(n)))
            case Map():
                args = [indices(arg) for arg in node.args]
                rows.append([_entry(node, tuple(arg[i] for arg in args)) for i in range(n)])
            case Linear():
                terms = [values(arg) for arg in node.args]
                rows.append([_combine(node, [term[i] for term in terms]) for i in range(n)])
            case Select():
                keys, queries = np.array(indices(node.keys)), np.array(indices(node.queries))
                defined = (keys >= 0)[:, None] & (queries >= 0)[None, :]
                rows.append(node.table[keys[:, None], queries[None, :]] & defined & _visible(core, n))
            case And():
                rows.append(selected(node.left) & selected(node.right))
            case Or():
                rows.append(selected(node.left) | selected(node.right))
            case Not():
                rows.append(~selected(node.arg) & _visible(core, n))
            case Width():
                rows.append([int(count) for count in selected(node.selector).sum(axis=0)])
            case Aggregate():
                default = UNDEFINED if node.default < 0 else node.values[node.default]
                row, chosen = values(node.value), selected(node.selector)
                rows.append([_average([row[j] for j in np.flatnonzero(chosen[:, i])], default) for i in range(n)])
    return rows


def _visible(core: CoreProgram, n: int) -> Bits:
    """`[key, query]`: causal programs see keys up to the query."""
    return np.triu(np.ones((n, n), np.bool_)) if core.causal else np.ones((n, n), np.bool_)


def _entry(node: Map, at: tuple[int, ...]) -> Result:
    if any(index < 0 for index in at) or node.table[at] < 0:
        return UNDEFINED
    return node.values[int(node.table[at])]


def _combine(node: Linear, args: Sequence[Result]) -> Result:
    total = node.constant
    if any(isinstance(arg, Undefined) for arg in args):
        return UNDEFINED
    if any(arg is None for arg in args):
        return None
    for coefficient, arg in zip(node.coefficients, args, strict=True):
        if not isinstance(arg, (int, Fraction)):
            return UNDEFINED
        total += coefficient * arg
    return normalise(total)


def _average(members: Sequence[Result], default: Result) -> Result:
    if not members:
        return default
    if any(isinstance(member, Undefined) for member in members):
        return UNDEFINED
    if all(member == members[0] for member in members):
        return members[0]
    total = Fraction(0)
    for member in members:
        if not isinstance(member, (int, Fraction)):
            return UNDEFINED
        total += member
    return normalise(total / len(members))


# -- batches ----------------------------------------------------------------------------------------------------------


class BatchEvaluator:
    """A core program prepared for many batches: exact, on value indices.

    Means and linear combinations are sums of integers scaled by the common denominators, looked up among the scaled
    values of the node (Python integers where 64 bits do not suffice).
    """

    def __init__(self, core: CoreProgram) -> None:
        self.core = core
        self._lookups: dict[int, _Lookup] = {}

    def __call__(
        self, ids: npt.ArrayLike, nodes: Iterable[int] | None = None
    ) -> dict[int, npt.NDArray[np.int32] | Bits]:
        """`ids[batch, n]`, indices into the vocabulary, to `node -> [batch, n]` value indices (-1 undefined) or
        `[batch, key, query]` for selectors, for `nodes` (default: the output). All sequences have the same length.

        Raises `InputError` for ids out of range or a length outside 1..max_len.
        """
        core = self.core
        tokens = np.asarray(ids)
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= core.max_len:
            raise InputError(f"token ids must have shape [batch, 1..{core.max_len}], got {tokens.shape}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(core.vocab):
            raise InputError(f"token ids must lie in 0..{len(core.vocab) - 1}, got {tokens.min()}..{tokens.max()}")
        wanted = (core.output,) if nodes is None else tuple(nodes)
        needed = _needed(core, wanted)
        batch, n = tokens.shape
        visible = _visible(core, n)
        rows: dict[int, Any] = {}
        for index in sorted(needed):
            node = core.nodes[index]
            match node:
                case Tokens():
                    rows[index] = tokens.astype(np.int32)
                case Indices():
                    rows[index] = np.broadcast_to(np.arange(n, dtype=np.int32), (batch, n))
                case Map():
                    args = [rows[arg] for arg in node.args]
                    out = np.broadcast_to(node.table[tuple(np.maximum(arg, 0) for arg in args)], (batch, n))
                    rows[index] = _where_defined(out.astype(np.int32), args)
                case Linear():
                    rows[index] = self._linear(index, node, [rows[arg] for arg in node.args], (batch, n))
                case Select():
                    keys, queries = rows[node.keys][:, :, None], rows[node.queries][:, None, :]
                    chosen = node.table[np.maximum(keys, 0), np.maximum(queries, 0)]
                    rows[index] = chosen & (keys >= 0) & (queries >= 0) & visible
                case And():
                    rows[index] = rows[node.left] & rows[node.right]
                case Or():
                    rows[index] = rows[node.left] | rows[node.right]
                case Not():
                    rows[index] = ~rows[node.arg] & visible
                case Width():
                    counts = rows[node.selector].sum(axis=1)
                    lookup = self._lookup(index, 1)
                    rows[index] = lookup.find(counts * lookup.scale)
                case Aggregate():
                    rows[index] = self._aggregate(index, node, rows[node.selector], rows[node.value])
        return {index: rows[index] for index in wanted}

    def _lookup(self, index: int, scale: int) -> _Lookup:
        found = self._lookups.get(index)
        if found is None or found.scale % scale:
            common = scale if found is None else math.lcm(found.scale, scale)
            found = self._lookups[index] = _Lookup(self.core.value_node(index).values, common)
        return found

    def _linear(self, index: int, node: Linear, args: Sequence[Any], shape: tuple[int, int]) -> npt.NDArray[np.int32]:
        lists = [self.core.value_node(arg).values for arg in node.args]
        den = math.lcm(node.constant.denominator, *(c.denominator for c in node.coefficients))
        lookup = self._lookup(index, den * _denominator(value for values in lists for value in values))
        total: Any = np.full(shape, int(node.constant * lookup.scale), object)
        bound = abs(int(node.constant * lookup.scale))
        tables = []
        for coefficient, values in zip(node.coefficients, lists, strict=True):
            tables.append([_scaled(v, coefficient * lookup.scale) for v in values])
            bound += max(map(abs, tables[-1]), default=0)
        total = total.astype(np.int64) if bound < _INT64 else total
        is_none = np.zeros(shape, np.bool_)
        strings = np.zeros(shape, np.bool_)
        for table, values, arg in zip(tables, lists, args, strict=True):
            at = np.maximum(arg, 0)
            total = total + np.array(table, total.dtype)[at]
            is_none |= np.array([v is None for v in values], np.bool_)[at]
            strings |= np.array([isinstance(v, str) for v in values], np.bool_)[at]
        out = np.where(strings, np.int32(-1), lookup.find(total))
        return _where_defined(np.where(is_none, np.int32(lookup.none), out), args)

    def _aggregate(self, index: int, node: Aggregate, chosen: Bits, value: Any) -> npt.NDArray[np.int32]:
        source = self.core.value_node(node.value).values
        counts = chosen.sum(axis=1)
        # The common value: the least and the greatest selected index agree.
        high = np.where(chosen, value[:, :, None], -2).max(axis=1)
        low = np.where(chosen, value[:, :, None], len(source)).min(axis=1)
        into = index_of(node.values)
        translate = np.array([into.get(v, -1) for v in source], np.int32)
        out = np.where((low == high) & (low >= 0), translate[np.clip(low, 0, len(source) - 1)], np.int32(-1))
        mixed = (counts > 0) & (low != high)
        if mixed.any():
            lookup = self._lookup(index, _denominator(source))
            table = [_scaled(v, Fraction(lookup.scale)) for v in source]
            n = chosen.shape[1]
            dtype: Any = np.int64 if max(map(abs, table)) * n < _INT64 else object
            numeric = np.array([_is_number(v) for v in source], np.bool_)[np.maximum(value, 0)] & (value >= 0)
            scaled = np.where(numeric, np.array(table, dtype)[np.maximum(value, 0)], 0)
            batch, query = np.nonzero(mixed)
            members = chosen[batch, :, query]
            total = np.where(members, scaled[batch], 0).sum(axis=1)
            count = counts[batch, query]
            found = lookup.find_quotient(total, count)
            usable = ~(members & ~numeric[batch]).any(axis=1)
            out[batch, query] = np.where(usable, found, np.int32(-1))
        return np.where(counts == 0, np.int32(node.default), out)


def evaluate_batch(
    core: CoreProgram, ids: npt.ArrayLike, nodes: Iterable[int] | None = None
) -> dict[int, npt.NDArray[np.int32] | Bits]:
    """`BatchEvaluator(core)(ids, nodes)`: `ids[batch, n]` to `node -> value indices [batch, n]`, -1 undefined.

    Without `nodes`: only the output node."""
    return BatchEvaluator(core)(ids, nodes)


class _Lookup:
    """Positions of numbers, scaled to integers, in a list of values; the scale may grow for quotients."""

    def __init__(self, values: Sequence[Value], scale: int) -> None:
        self.values = values
        self.scale = math.lcm(scale, _denominator(values))
        self.none = values.index(None) if None in values else -1
        numbers = {int(v * self.scale): i for i, v in enumerate(values) if isinstance(v, (int, Fraction))}
        self.by_number: Mapping[int, int] = numbers
        self.keys = sorted(numbers)
        self.positions = np.array([numbers[key] for key in self.keys], np.int32)
        self.bound = max((abs(key) for key in self.keys), default=0)

    def find(self, scaled: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Positions of the integers `scaled` (number times scale); -1 if absent."""
        if not self.keys:
            return np.full(scaled.shape, -1, np.int32)
        if scaled.dtype == object or self.bound >= _INT64:
            found = [self.by_number.get(int(number), -1) for number in scaled.ravel().tolist()]
            return np.array(found, np.int32).reshape(scaled.shape)
        keys = np.array(self.keys, np.int64)
        place = np.minimum(np.searchsorted(keys, scaled), len(keys) - 1)
        return np.where(keys[place] == scaled, self.positions[place], np.int32(-1))

    def find_quotient(self, total: npt.NDArray[Any], count: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Positions of total / (scale * count); distinct pairs are looked up once."""
        pairs = list(zip(total.tolist(), count.tolist(), strict=True))
        known = {
            (number, m): self.by_number.get(number // m, -1) if number % m == 0 else -1 for number, m in set(pairs)
        }
        return np.array([known[pair] for pair in pairs], np.int32)


def _where_defined(out: npt.NDArray[np.int32], args: Sequence[Any]) -> npt.NDArray[np.int32]:
    for arg in args:
        if arg.size and arg.min() < 0:
            out = np.where(arg < 0, np.int32(-1), out)
    return out


def _needed(core: CoreProgram, wanted: Iterable[int]) -> set[int]:
    needed: set[int] = set()
    todo = list(wanted)
    while todo:
        index = todo.pop()
        if index not in needed:
            needed.add(index)
            todo.extend(references(core.nodes[index]))
    return needed


def _scaled(value: Value, scale: Fraction) -> int:
    return int(value * scale) if isinstance(value, (int, Fraction)) else 0


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, Fraction))


def _denominator(values: Iterable[Value]) -> int:
    return math.lcm(*(value.denominator for value in values if isinstance(value, Fraction)))
