"""RASP programs as prefix programs (`proofs/SPECIFICATION.md`, section 14): the same at every length.

A value is a node with finitely many values, or a linear form over counts, or the quotient of such a form by a count
that is never zero. What is none of these (a map of a count that is no comparison, a remainder or linear) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import TypeAlias

from ..compiler.core import Value, canonical, normalise
from ..compiler.functions import Function, Predicate, Undefined
from ..compiler.rasp import (
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
from ..compiler.structure import nodes_of
from ..compiler.terms import COMPARISONS, Apply, Arg, Const, Term
from ..compiler.terms import affine as affine_of
from ..models.errors import CertiformerError, InternalError
from ..models.values import value_to_json

MAX_TABLE = 1 << 18


class NoPrefixProgram(CertiformerError):
    """The program has no such form; the message names the node and says why."""


@dataclass(frozen=True)
class Finite:
    """A node with these values."""

    node: int
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Counted:
    """(constant + sum of coefficient times width of selector) / width of `over` (None: 1)."""

    terms: tuple[tuple[int, Fraction], ...]
    constant: Fraction = Fraction(0)
    over: int | None = None

    def scaled(self, factor: Fraction) -> Counted:
        return Counted(tuple((s, c * factor) for s, c in self.terms if c * factor), self.constant * factor, self.over)


Symbol: TypeAlias = Finite | Counted
_HOLDS: Mapping[str, Callable[[int], bool]] = {
    "==": lambda sign: sign == 0,
    "!=": lambda sign: sign != 0,
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
}


@dataclass
class PrefixBuilder:
    """A growing prefix program. `nodes`: as in a certificate; equal ones are one."""

    vocab: tuple[Value, ...]
    nodes: list[dict[str, object]] = field(default_factory=list)
    largest: int = 0
    _known: dict[str, int] = field(default_factory=dict)
    _made: dict[Expression, Symbol | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = Finite(self._add(kind="tokens", values=_json(self.vocab)), self.vocab)
        one = self.map([], lambda: True)
        self.here = self._add(kind="offset", by=0)
        self.all = self.select(one, one, lambda key, query: True)
        self.index = Counted(((self.all, Fraction(1)),), Fraction(-1))

    def _add(self, **node: object) -> int:
        key = repr(sorted(node.items()))
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]

    # Nodes

    def map(self, args: Sequence[Finite], function: Callable[..., Value | Undefined]) -> Finite:
        """`function` of the arguments' values, None among them; -1 where it is undefined."""
        if math.prod(len(arg.values) for arg in args) > MAX_TABLE:
            raise NoPrefixProgram(f"a table of more than {MAX_TABLE:,} entries: use fewer tokens")
        outcomes = [function(*given) for given in product(*(arg.values for arg in args))]
        values = canonical([outcome for outcome in outcomes if not isinstance(outcome, Undefined)] or [None])
        place = {value: index for index, value in enumerate(values)}
        table = [-1 if isinstance(outcome, Undefined) else place[outcome] for outcome in outcomes]
        return Finite(self._add(kind="map", args=[a.node for a in args], table=table, values=_json(values)), values)

    def constant(self, value: Value) -> Finite:
        """The same value everywhere."""
        return self.map([], lambda: value)

    def select(self, keys: Finite, queries: Finite, holds: Callable[[Value, Value], bool]) -> int:
        rows = ["".join("01"[bool(holds(key, query))] for query in queries.values) for key in keys.values]
        return self._add(kind="select", keys=keys.node, queries=queries.node, table=rows)

    def both(self, left: int, right: int) -> int:
        return self._add(kind="and", left=left, right=right)

    def either(self, left: int, right: int) -> int:
        return self._add(kind="or", left=left, right=right)

    def none(self) -> int:
        return self._add(kind="not", arg=self.all)

    def sign(self, form: Counted) -> Finite:
        """-1, 0 or 1 (of a quotient: of its numerator, because what it is divided by is positive)."""
        scale = math.lcm(form.constant.denominator, *(c.denominator for _, c in form.terms))
        terms = [[selector, int(c * scale)] for selector, c in form.terms]
        constant = int(form.constant * scale)
        self.largest = max(self.largest, abs(constant), *(abs(int(c * scale)) for _, c in form.terms), 0)
        return Finite(self._add(kind="sign", terms=terms, constant=constant), (-1, 0, 1))

    # Arithmetic

    def counted(self, symbol: Symbol) -> Counted:
        """A number as a linear form: of a finite node, the sum of its values times "it is here"."""
        if isinstance(symbol, Counted):
            return symbol
        numbers = [value for value in symbol.values if isinstance(value, (int, Fraction))]
        if len(numbers) < len(symbol.values):
            raise NoPrefixProgram("a count is combined with what may be a string or None")
        if len(numbers) == 1:
            return Counted((), Fraction(numbers[0]))
        terms = []
        for value in numbers:
            if value:
                held = self.select(symbol, symbol, _key_is(value))
                terms.append((self.both(self.here, held), Fraction(value)))
        return Counted(tuple(terms))

    def sum(self, parts: Sequence[tuple[Symbol, Fraction]], constant: Fraction = Fraction(0)) -> Counted:
        """constant + the sum of the parts times their coefficients."""
        forms = [(self.counted(symbol), factor) for symbol, factor in parts]
        over = {form.over for form, _ in forms if form.over is not None}
        if len(over) > 1:
            raise NoPrefixProgram("means over different positions are added or compared")
        divisor = next(iter(over), None)
        terms: dict[int, Fraction] = {}
        total = Fraction(0)
        for form, factor in [*forms, (Counted((), constant), Fraction(1))]:
            if divisor is None or form.over is not None:
                pieces, shift = form.terms, form.constant
            elif form.terms:
                raise NoPrefixProgram("a count is added to a mean or compared with one")
            else:  # a constant: as many times what the others are divided by
                pieces, shift = ((divisor, form.constant),), Fraction(0)
            for selector, coefficient in pieces:
                terms[selector] = terms.get(selector, Fraction(0)) + coefficient * factor
            total += shift * factor
        return Counted(tuple((s, c) for s, c in sorted(terms.items()) if c), total, divisor)

    def compared(self, op: str, left: Symbol, right: Symbol) -> Finite:
        """A comparison of numbers."""
        difference = self.sum([(left, Fraction(1)), (right, Fraction(-1))])
        sign = self.sign(Counted(difference.terms, difference.constant))
        return self.map([sign], lambda s: _HOLDS[op](s))

    def chosen(self, condition: Finite, then: Symbol, otherwise: Symbol) -> Symbol:
        """`then` where the condition is true, else `otherwise`."""
        if isinstance(then, Finite) and isinstance(otherwise, Finite):
            return self.map([condition, then, otherwise], lambda c, a, b: None if None in (c, a, b) else a if c else b)
        parts = []
        for symbol, wanted in ((then, True), (otherwise, False)):
            form = self.counted(symbol)
            if form.over is not None or None in condition.values:
                raise NoPrefixProgram("a choice between a mean and something else, or where the condition may be None")
            gate = self.select(condition, condition, _query_is(wanted))
            terms = [(self.both(selector, gate), c) for selector, c in form.terms]
            parts.append(Counted((*terms, (self.both(self.here, gate), form.constant))))
        return self.sum([(part, Fraction(1)) for part in parts])

    # Programs

    def program(self, program: SOp) -> Symbol:
        """The program's value. Raises `NoPrefixProgram`."""
        for node in nodes_of(program):
            if node not in self._made:
                try:
                    self._made[node] = self._place(node)
                except NoPrefixProgram as error:
                    if " has no form" in str(error):
                        raise
                    raise NoPrefixProgram(f"{describe(node)} has no form for every length: {error}") from None
        found = self._made[program]
        assert not isinstance(found, int)
        return found

    def _symbol(self, node: Expression) -> Symbol:
        found = self._made[node]
        assert not isinstance(found, int)
        return found

    def _selector(self, node: Expression) -> int:
        found = self._made[node]
        assert isinstance(found, int)
        return found

    def _place(self, node: Expression) -> Symbol | int:
        match node:
            case TokensOp():
                return self.tokens
            case IndicesOp():
                return self.index
            case Constant(value):
                return self.constant(value)
            case MapOp(function, args):
                return self._map(function, [self._symbol(arg) for arg in args])
            case LinearOp(args, coefficients, constant):
                parts = [(self._symbol(arg), c) for arg, c in zip(args, coefficients, strict=True)]
                return self.sum(parts, constant)
            case WidthOp(selector):
                return Counted(((self._selector(selector), Fraction(1)),))
            case AggregateOp(selector, value, default):
                return self._aggregate(self._selector(selector), self._symbol(value), default)
            case SelectOp(keys, queries, predicate):
                return self._select(self._symbol(keys), self._symbol(queries), predicate)
            case AndOp(left, right):
                return self.both(self._selector(left), self._selector(right))
            case OrOp(left, right):
                return self.either(self._selector(left), self._selector(right))
            case NotOp(arg):
                return self._add(kind="not", arg=self._selector(arg))
        raise InternalError(f"{node!r} is no node of the language")

    def _map(self, function: Function, args: list[Symbol]) -> Symbol:
        finite = [arg for arg in args if isinstance(arg, Finite)]
        if len(finite) == len(args):
            return self.map(finite, lambda *given: None if None in given else function.try_evaluate(given))
        if function.reading is None:
            raise NoPrefixProgram("what it does with a count is not readable as arithmetic and comparisons")
        return self._term(function.reading, args)

    def _term(self, term: Term, args: list[Symbol]) -> Symbol:
        if isinstance(term, Arg):
            return args[term.index]
        if isinstance(term, Const):
            return self.constant(term.value)
        parts = [self._term(arg, args) for arg in term.args]
        finite = [part for part in parts if isinstance(part, Finite)]
        if len(finite) == len(parts):
            whole = Function(len(parts), term=Apply(term.op, tuple(Arg(t) for t in range(len(parts)))))
            return self.map(finite, lambda *given: None if None in given else whole.try_evaluate(given))
        if term.op in COMPARISONS:
            return self.compared(term.op, parts[0], parts[1])
        if term.op in ("+", "-"):
            return self.sum([(parts[0], Fraction(1)), (parts[1], Fraction(1 if term.op == "+" else -1))])
        if term.op == "neg":
            return self.counted(parts[0]).scaled(Fraction(-1))
        if term.op in ("*", "/"):
            return self._product(term.op, parts)
        if term.op == "%":
            return self._remainder(parts)
        if term.op in ("min", "max") and len(parts) == 2:
            first = self.compared("<=" if term.op == "min" else ">=", parts[0], parts[1])
            return self.chosen(first, parts[0], parts[1])
        if term.op == "where" and isinstance(parts[0], Finite):
            return self.chosen(parts[0], parts[1], parts[2])
        raise NoPrefixProgram(f"{term.op!r} of a count")

    def _constant(self, symbol: Symbol) -> Fraction:
        if isinstance(symbol, Finite) and len(symbol.values) == 1 and isinstance(symbol.values[0], (int, Fraction)):
            return Fraction(symbol.values[0])
        raise NoPrefixProgram("a count is multiplied, divided or reduced by what is not constant")

    def _product(self, op: str, parts: list[Symbol]) -> Symbol:
        if op == "*" and isinstance(parts[0], Finite):
            parts = parts[::-1]
        factor = self._constant(parts[1])
        if op == "/" and not factor:
            raise NoPrefixProgram("division by zero")
        return self.counted(parts[0]).scaled(factor if op == "*" else 1 / factor)

    def _remainder(self, parts: list[Symbol]) -> Finite:
        form, modulus = self.counted(parts[0]), self._constant(parts[1])
        whole = all(c.denominator == 1 for c in (form.constant, modulus, *(c for _, c in form.terms)))
        if not whole or form.over is not None or not 1 <= modulus <= 1024:
            raise NoPrefixProgram("a remainder of a fraction, or by what is not 1 to 1024")
        terms, size = [[selector, int(c)] for selector, c in form.terms], int(modulus)
        node = self._add(kind="modulo", terms=terms, constant=int(form.constant), modulus=size)
        return Finite(node, tuple(range(size)))

    def _aggregate(self, selector: int, value: Symbol, default: Value) -> Symbol:
        if isinstance(value, Counted):
            if selector == self.here:
                return value
            raise NoPrefixProgram("a count is taken from another position")
        numbers = all(isinstance(v, (int, Fraction)) for v in value.values)
        if numbers and len(value.values) > 1 and self._nonempty(selector):
            terms = []
            for number in value.values:
                if isinstance(number, (int, Fraction)) and number:
                    held = self.select(value, value, _key_is(number))
                    terms.append((self.both(selector, held), Fraction(number)))
            return Counted(tuple(terms), Fraction(0), selector)
        values = canonical([*value.values, default])
        node = self._add(
            kind="pick", selector=selector, value=value.node, default=values.index(default), values=_json(values)
        )
        return Finite(node, values)

    def _nonempty(self, selector: int) -> bool:
        """Whether it selects the query's position, and every other."""
        return selector == self.all

    # Selectors

    def _select(self, keys: Symbol, queries: Symbol, predicate: Predicate) -> int:
        if isinstance(keys, Finite) and isinstance(queries, Finite):
            return self.select(keys, queries, lambda key, query: _holds(predicate, key, query))
        term = predicate.function.reading
        if isinstance(term, Const):
            given = [side for side in (keys, queries) if isinstance(side, Finite)]
            if any(None in side.values for side in given):
                raise NoPrefixProgram("a selector that always holds, of what may be None")
            return self.all if term.value else self.none()
        if not isinstance(term, Apply) or term.op not in COMPARISONS:
            raise NoPrefixProgram("a predicate of counts that is no comparison")
        form = affine_of(Apply("-", term.args), 2)
        if form is None:
            raise NoPrefixProgram("a predicate of counts that is not linear")
        (of_key, of_query), constant = form
        if isinstance(keys, Counted) and isinstance(queries, Counted):
            return self._by_position(term.op, keys.scaled(of_key), queries.scaled(of_query), constant)
        if isinstance(keys, Counted):
            assert isinstance(queries, Finite)
            return self._against(term.op, keys, of_key, queries, of_query, constant, keys_counted=True)
        assert isinstance(queries, Counted)
        return self._against(term.op, queries, of_query, keys, of_key, constant, keys_counted=False)

    def _by_position(self, op: str, keys: Counted, queries: Counted, constant: Fraction) -> int:
        """a * (index of the key) + .. compared with a * (index of the query): a question of the distance alone."""
        everywhere = {self.all}
        if {s for s, _ in keys.terms} != everywhere or {s for s, _ in queries.terms} != everywhere:
            raise NoPrefixProgram("positions are chosen by a count that is not the index")
        a, b = keys.terms[0][1], queries.terms[0][1]
        shift = keys.constant + queries.constant + constant
        if a + b or keys.over is not None or queries.over is not None:
            raise NoPrefixProgram("positions are chosen by more than their distance")
        # a * (key - query) + shift OP 0, with key - query = -distance
        found, last = self.none(), abs(shift / a)
        beyond = int(last) + 1
        if beyond > 32:
            raise NoPrefixProgram("positions are chosen more than 32 apart")
        near = self.none()
        for distance in range(beyond + 1):
            offset = self._add(kind="offset", by=distance)
            near = self.either(near, offset)
            if _HOLDS[op](_sign(-a * distance + shift)):
                found = self.either(found, offset)
        if _HOLDS[op](_sign(-a * (beyond + 1) + shift)):
            found = self.either(found, self._add(kind="not", arg=near))
        single = [d for d in range(beyond + 1) if _HOLDS[op](_sign(-a * d + shift))]
        if len(single) == 1 and not _HOLDS[op](_sign(-a * (beyond + 1) + shift)):
            return self._add(kind="offset", by=single[0])
        if len(single) == beyond + 1 and _HOLDS[op](_sign(-a * (beyond + 1) + shift)):
            return self.all
        return found

    def _against(
        self,
        op: str,
        count: Counted,
        factor: Fraction,
        other: Finite,
        of_other: Fraction,
        constant: Fraction,
        *,
        keys_counted: bool,
    ) -> int:
        """A count on one side, finitely many values on the other: the sign of the difference, for each of them."""
        found = self.none()
        for value in other.values:
            if value is None:
                continue
            if not isinstance(value, (int, Fraction)):
                raise NoPrefixProgram("a count is compared with a string")
            shifted = self.sum([(count, factor)], constant + of_other * value)
            sign = self.sign(Counted(shifted.terms, shifted.constant))
            if keys_counted:
                part = self.select(sign, other, _sign_at(op, value))
            else:
                part = self.select(other, sign, _swapped(_sign_at(op, value)))
            found = self.either(found, part)
        return found


def _key_is(value: Value) -> Callable[[Value, Value], bool]:
    return lambda key, query: key == value


def _query_is(truth: bool) -> Callable[[Value, Value], bool]:
    return lambda key, query: bool(query) == truth


def _sign_at(op: str, value: Value) -> Callable[[Value, Value], bool]:
    """Whether the sign satisfies the comparison, and the other side has the value."""
    return lambda sign, other: other == value and isinstance(sign, int) and _HOLDS[op](sign)


def _swapped(holds: Callable[[Value, Value], bool]) -> Callable[[Value, Value], bool]:
    return lambda key, query: holds(query, key)


def _holds(predicate: Predicate, key: Value, query: Value) -> bool:
    if key is None or query is None:
        return False
    outcome = predicate.try_evaluate((key, query))
    if isinstance(outcome, Undefined):
        raise NoPrefixProgram(f"the predicate is undefined on {key!r} and {query!r}: {outcome.reason}")
    return outcome


def _sign(number: Fraction) -> int:
    return (number > 0) - (number < 0)


def _json(values: Sequence[Value]) -> list[object]:
    return [value_to_json(normalise(value)) for value in values]
