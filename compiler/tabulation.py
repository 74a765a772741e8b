"""Functions to finite tables: evaluated where their arguments can occur together, and nowhere else relied on."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .analysis import NoDefault
from .core import Aggregate, Bits, Table, Value
from .functions import Comparison, Function, Predicate, Undefined
from .ranges import PAIR_LIMIT, VALUE_LIMIT, Ranges, Refused, index_of, ordered
from .terms import Apply, Arg, Const, Term, show

TABLE_LIMIT = 1 << 20
"""The largest table of a map, and the most pairs on which a predicate that is no comparison is asked."""
_ELSEWHERE = "define it there, or keep these values from occurring together"

Twins = Mapping[int, frozenset[int]]
"""For a node: which of 0 and 1 it takes both as a number and as False or True. They are one value of core RASP."""


@dataclass(frozen=True, eq=False)
class Body:
    """What a map computes: on one tuple, on a product of lists (last fastest), and as a term if it is readable."""

    evaluate: Callable[[Sequence[Value]], Value | Undefined]
    tabulate: Callable[[Sequence[Sequence[Value]]], Sequence[Value | Undefined]]
    term: Term | None
    callable_: bool = False
    """It runs a Python callable, which may be no function of its arguments."""

    @staticmethod
    def of(function: Function) -> Body:
        """What a function of the language computes."""
        return Body(function.try_evaluate, function.tabulate, function.reading, function.python is not None)

    @staticmethod
    def of_term(term: Term, arity: int) -> Body:
        """What a term of `arity` arguments computes."""
        return Body.of(Function(arity, term=term))

    def with_fixed(self, parts: Sequence[tuple[Value] | int]) -> Body:
        """Some arguments fixed (1-tuples), the others taken by position from fewer arguments."""

        def evaluate(values: Sequence[Value]) -> Value | Undefined:
            return self.evaluate([part[0] if isinstance(part, tuple) else values[part] for part in parts])

        def tabulate(lists: Sequence[Sequence[Value]]) -> list[Value | Undefined]:
            return [evaluate(values) for values in itertools.product(*lists)]

        terms = [Const(part[0]) if isinstance(part, tuple) else Arg(part) for part in parts]
        term = None if self.term is None else substituted(self.term, terms)
        return Body(evaluate, tabulate, term, self.callable_)


def substituted(term: Term, parts: Sequence[Term]) -> Term:
    """The term with `parts` in place of its arguments."""
    if isinstance(term, Arg):
        return parts[term.index]
    if isinstance(term, Const):
        return term
    return Apply(term.op, tuple(substituted(arg, parts) for arg in term.args))


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A function as a table over its arguments' values lists (-1: cannot occur), its values, and their twins."""

    table: Table
    values: tuple[Value, ...]
    twins: frozenset[int]


def occurring(ranges: Ranges, args: Sequence[int], over: Sequence[int]) -> Bits:
    """`[value of args[0], ...]`: which tuples of argument values occur, as functions of joint values of `over`."""
    sizes = ranges.sizes(args)
    joint = np.broadcast_to((ranges.joint(over) != 0).any(axis=0), ranges.sizes(over))
    if tuple(args) == tuple(over):
        return joint
    axes = {basis: axis for axis, basis in enumerate(over)}
    columns = [np.broadcast_to(ranges.along(arg, axes, len(over)), joint.shape)[joint] for arg in args]
    defined = np.logical_and.reduce([column >= 0 for column in columns])
    out = np.zeros(sizes, np.bool_)
    out[tuple(column[defined] for column in columns)] = True
    return out


def tabulate(
    ranges: Ranges, body: Body, args: Sequence[int], over: Sequence[int], twins: Twins, labels: Sequence[str]
) -> Tabulated:
    """The table of a None-strict function of distinct value nodes.

    Raises `Refused`, naming the values, where the function is undefined on values that may occur.
    """
    lists = [ranges.values(arg) for arg in args]
    size = math.prod(map(len, lists))
    if size > TABLE_LIMIT:
        counts = " x ".join(str(len(values)) for values in lists)
        raise Refused(
            f"its table would have {counts} = {size} entries, more than {TABLE_LIMIT}; "
            "split it into maps of fewer arguments, or use fewer values"
        )
    occurs = occurring(ranges, args, over)
    outcomes, passed_on = _outcomes(body, lists, occurs, labels, _twin_lists(args, twins))
    flat = outcomes.ravel().tolist()
    where = np.flatnonzero(occurs.ravel())
    values = ordered(flat[at] for at in where)
    if len(values) > VALUE_LIMIT:
        raise Refused(f"it has {len(values)} different values, more than {VALUE_LIMIT}; round it to fewer")
    index = index_of(values)
    table = np.full(size, -1, np.int32)
    table[where] = [index[flat[at]] for at in where]
    kinds = {(int(flat[at]), isinstance(flat[at], bool)) for at in where if _is_bit(flat[at])}
    both = frozenset(bit for bit in (0, 1) if {(bit, True), (bit, False)} <= kinds)
    return Tabulated(table.reshape(occurs.shape), values, both | passed_on)


def tabulate_predicate(
    ranges: Ranges, predicate: Predicate, keys: int, queries: int, twins: Twins, labels: Sequence[str]
) -> Bits:
    """`[key value, query value]`: whether the predicate selects; False for None and for pairs that never occur.

    Raises `Refused` where the predicate is undefined on a pair that may occur.
    """
    lists = [ranges.values(keys), ranges.values(queries)]
    size = len(lists[0]) * len(lists[1])
    if size > PAIR_LIMIT:
        raise Refused(f"it relates {len(lists[0])} x {len(lists[1])} values, more than {PAIR_LIMIT} pairs")
    key_words, query_words = ranges.words[keys], ranges.words[queries]
    assert key_words is not None and query_words is not None
    occurs = np.zeros((len(lists[0]), len(lists[1])), np.bool_)
    for key_word, query_word in zip(key_words, query_words, strict=True):
        occurs |= (key_word[:, None] & query_word[None, :]) != 0
    occurs &= _not_none(lists)
    if predicate.comparison is not None:
        compared = _compare(predicate.comparison, *lists)
        if compared is not None:
            return compared & occurs
    if size > TABLE_LIMIT:
        raise Refused(f"the predicate would be asked about {size} pairs, more than {TABLE_LIMIT}; use a comparison")
    body = Body(predicate.try_evaluate, predicate.tabulate, None, predicate.function.python is not None)
    outcomes, _ = _outcomes(body, lists, occurs, labels, _twin_lists((keys, queries), twins))
    return np.array([held is True for held in outcomes.ravel().tolist()], np.bool_).reshape(occurs.shape) & occurs


_OPERATORS: dict[Comparison, Callable[[Any, Any], Any]] = {
    Comparison.EQ: operator.eq,
    Comparison.NEQ: operator.ne,
    Comparison.LT: operator.lt,
    Comparison.LEQ: operator.le,
    Comparison.GT: operator.gt,
    Comparison.GEQ: operator.ge,
}


def _compare(comparison: Comparison, keys: Sequence[Value], queries: Sequence[Value]) -> Bits | None:
    """A comparison for all pairs by the places of the values in one order; None if strings meet numbers in one."""
    if comparison in (Comparison.TRUE, Comparison.FALSE):
        return np.full((len(keys), len(queries)), comparison is Comparison.TRUE)
    kinds = {isinstance(value, str) for value in (*keys, *queries) if value is not None}
    if len(kinds) > 1 and comparison not in (Comparison.EQ, Comparison.NEQ):
        return None
    places = index_of(ordered((*keys, *queries)))
    key_places, query_places = (np.array([places[v] for v in values], np.int32) for values in (keys, queries))
    out: Bits = _OPERATORS[comparison](key_places[:, None], query_places[None, :])
    return out


def _outcomes(
    body: Body,
    lists: Sequence[Sequence[Value]],
    occurs: Bits,
    labels: Sequence[str],
    twins: Sequence[frozenset[int]],
) -> tuple[npt.NDArray[np.object_], frozenset[int]]:
    """The outcomes on the tuples that occur (None where an argument is None, and elsewhere), and their twins."""
    shape = tuple(map(len, lists))
    out = np.full(shape, None, object)
    wanted = occurs & _not_none(lists)
    axes = [
        np.flatnonzero(wanted.any(axis=tuple(a for a in range(len(shape)) if a != axis))) for axis in range(len(shape))
    ]
    if math.prod(len(axis) for axis in axes) <= 4 * int(wanted.sum()):
        domains = [[values[i] for i in axis.tolist()] for values, axis in zip(lists, axes, strict=True)]
        block = np.empty([len(axis) for axis in axes], object)
        block.reshape(-1)[:] = body.tabulate(domains)
        out[np.ix_(*axes)] = block if axes else block.item()
    else:
        for at in zip(*(column.tolist() for column in np.nonzero(wanted)), strict=True):
            out[at] = body.evaluate([values[i] for values, i in zip(lists, at, strict=True)])
    flat, asked = out.reshape(-1), wanted.reshape(-1)
    for position in np.flatnonzero(asked).tolist():
        outcome = flat[position]
        if isinstance(outcome, Undefined):
            at = np.unravel_index(position, shape)
            values = [members[int(i)] for members, i in zip(lists, at, strict=True)]
            place = f"undefined where {_listed(labels, values)}" if values else "undefined"
            raise Refused(f"{place}: {outcome.reason}; {_ELSEWHERE}")
    if body.callable_:
        _check_steady(body, lists, wanted, out, labels)
    passed_on = _check_twins(body.evaluate, lists, wanted, out, labels, twins) if any(twins) else frozenset()
    out[~wanted] = None
    return out, passed_on


def _check_steady(
    body: Body, lists: Sequence[Sequence[Value]], wanted: Bits, out: npt.NDArray[np.object_], labels: Sequence[str]
) -> None:
    """Ask a callable again, in the opposite order. Raises `Refused` where it gives something else."""
    for at in reversed(np.argwhere(wanted).tolist()):
        values = [members[i] for members, i in zip(lists, at, strict=True)]
        first, again = out[tuple(at)], body.evaluate(values)
        if type(first) is not type(again) or first != again:
            now = f"nothing ({again.reason})" if isinstance(again, Undefined) else show(again)
            where = f" where {_listed(labels, values)}" if values else ""
            raise Refused(
                f"it is no function of its arguments: asked twice{where}, it gave {show(first)} and then {now}; "
                "remove the state or the randomness, or write the values as a table (a dict)"
            )


def _check_twins(
    evaluate: Callable[[Sequence[Value]], Value | Undefined],
    lists: Sequence[Sequence[Value]],
    wanted: Bits,
    out: npt.NDArray[np.object_],
    labels: Sequence[str],
    twins: Sequence[frozenset[int]],
) -> frozenset[int]:
    """The results that are a number or a truth value as the arguments are.

    Refuses a function that tells True from 1 (False from 0) where an argument may be either.
    """
    found: set[int] = set()
    for at in zip(*(column.tolist() for column in np.nonzero(wanted)), strict=True):
        values = [members[i] for members, i in zip(lists, at, strict=True)]
        choices = [
            (int(v), bool(v)) if _is_bit(v) and v in twin else (v,) for v, twin in zip(values, twins, strict=True)
        ]
        for other in itertools.product(*choices):
            outcome = evaluate(other)
            if outcome == out[at]:
                if isinstance(outcome, bool) != isinstance(out[at], bool):
                    found.add(int(out[at]))
            else:
                raise Refused(
                    f"it tells a truth value from the number it equals where {_listed(labels, values)}, "
                    "and both occur; make the argument always a number or always a truth value"
                )
    return frozenset(found)


def aggregate_twins(ranges: Ranges, node: Aggregate, default: Value | NoDefault, twins: Twins) -> frozenset[int]:
    """The twins of an aggregate: its value's, and where a default or a mean equals a value of the other type."""
    out = set(twins.get(node.value, frozenset()))
    source = [v for v in ranges.values(node.value) if isinstance(v, (int, Fraction))]
    bits: list[Value] = [value for value in source if isinstance(value, bool)]
    if node.default >= 0 and not isinstance(default, NoDefault) and _is_bit(default):
        out.update(int(v) for v in source if v == default and isinstance(v, bool) != isinstance(default, bool))
        bits.append(default)
    if source:
        out.update(int(bit) for bit in bits if isinstance(bit, bool) and min(source) < bit < max(source))
    return frozenset(out)


def _twin_lists(args: Sequence[int], twins: Twins) -> list[frozenset[int]]:
    return [twins.get(arg, frozenset()) for arg in args]


def _is_bit(value: Value) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _not_none(lists: Sequence[Sequence[Value]]) -> Bits:
    """Tuples without a None."""
    out = np.ones(tuple(map(len, lists)), np.bool_)
    for axis, values in enumerate(lists):
        keep = np.array([value is not None for value in values], np.bool_)
        out &= keep.reshape([-1 if a == axis else 1 for a in range(len(lists))])
    return out


def _listed(labels: Sequence[str], values: Sequence[Value]) -> str:
    return ", ".join(f"{label} = {show(value)}" for label, value in zip(labels, values, strict=True))
