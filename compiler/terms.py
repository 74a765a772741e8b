"""Terms: the readable inside of a function, and its three readings (text, affine form, exact evaluation).

A term is `Arg(i)` (the i-th argument), `Const(value)`, or `Apply(op, args)` with an operation of `OPERATIONS`.
The operations mean what Python's mean on exact values; `/` is exact, `and` / `or` / `not` are Python's (as in Tracr)
but evaluate both sides, `where(c, a, b)` is `a if c else b`, `in` asks whether its first argument equals another one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from .core import Value, normalise
from .exact import check_power, settle

MAX_TRACED_SIZE = 200


@dataclass(frozen=True)
class Arg:
    """The argument at a position."""

    index: int
    size = 1


@dataclass(frozen=True)
class Const:
    """A value."""

    value: Value
    size = 1


@dataclass(frozen=True)
class Apply:
    """An operation on terms."""

    op: str
    args: tuple[Term, ...]

    @property
    def size(self) -> int:
        """How many symbols the term is written with."""
        return 1 + sum(arg.size for arg in self.args)


Term: TypeAlias = Arg | Const | Apply
Affine: TypeAlias = tuple[tuple[Fraction, ...], Fraction]


@dataclass(frozen=True)
class Operation:
    """One operation: how it is written (tighter binding, higher precedence) and what it means on exact values."""

    symbol: str
    style: str  # "infix", "prefix" or "call"
    precedence: int
    evaluate: Callable[..., Any]


def _divide(a: Any, b: Any) -> Fraction:
    if isinstance(a, str) or isinstance(b, str):
        raise TypeError(f"cannot divide {a!r} by {b!r}")
    if not b:
        raise ZeroDivisionError("division by zero")
    if isinstance(a, int) and isinstance(b, int):
        return Fraction(int(a), int(b))
    return Fraction(a) / Fraction(b)


def _remainder(a: Any, b: Any) -> Any:
    if isinstance(a, str):
        raise TypeError(f"cannot take {a!r} modulo {b!r}")
    return a % b


def _power(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        check_power(a, b)
        return Fraction(a) ** b if b < 0 else a**b
    return a**b


OPERATIONS: dict[str, Operation] = {
    "or": Operation("or", "infix", 1, lambda a, b: a or b),
    "and": Operation("and", "infix", 2, lambda a, b: a and b),
    "not": Operation("not ", "prefix", 3, operator.not_),
    "==": Operation("==", "infix", 4, operator.eq),
    "!=": Operation("!=", "infix", 4, operator.ne),
    "<": Operation("<", "infix", 4, operator.lt),
    "<=": Operation("<=", "infix", 4, operator.le),
    ">": Operation(">", "infix", 4, operator.gt),
    ">=": Operation(">=", "infix", 4, operator.ge),
    "in": Operation("in", "call", 4, lambda a, *values: a in values),
    "+": Operation("+", "infix", 5, operator.add),
    "-": Operation("-", "infix", 5, operator.sub),
    "*": Operation("*", "infix", 6, operator.mul),
    "/": Operation("/", "infix", 6, _divide),
    "//": Operation("//", "infix", 6, operator.floordiv),
    "%": Operation("%", "infix", 6, _remainder),
    "neg": Operation("-", "prefix", 7, operator.neg),
    "**": Operation("**", "infix", 8, _power),
    "abs": Operation("abs", "call", 9, abs),
    "floor": Operation("floor", "call", 9, math.floor),
    "ceil": Operation("ceil", "call", 9, math.ceil),
    "min": Operation("min", "call", 9, min),
    "max": Operation("max", "call", 9, max),
    "where": Operation("where", "call", 9, lambda c, a, b: a if c else b),
}
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_TRUTH_VALUED = frozenset({*COMPARISONS, "in", "not"})


def is_truth_valued(term: Term) -> bool:
    """Whether every defined value of the term is True or False."""
    if isinstance(term, Const):
        return isinstance(term.value, bool)
    if isinstance(term, Arg):
        return False
    return term.op in _TRUTH_VALUED or (term.op in ("and", "or") and all(map(is_truth_valued, term.args)))


def text(term: Term, names: Sequence[str] | None = None) -> str:
    """The term as Python writes it, with arguments called x0, x1, … or by `names`; equal texts mean equal functions."""
    return _text(term, names)[0]


def _text(term: Term, names: Sequence[str] | None) -> tuple[str, int]:
    if isinstance(term, Arg):
        return (names[term.index] if names is not None else f"x{term.index}"), 9
    if isinstance(term, Const):
        return show(term.value), _constant_precedence(term.value)
    operation = OPERATIONS[term.op]
    level = operation.precedence
    if term.op == "in":
        first, *rest = (_text(arg, names) for arg in term.args)
        options = ", ".join(part for part, _ in rest) + ("," if len(rest) == 1 else "")
        return f"{_bracket(first, level + 1)} in ({options})", level
    if operation.style == "call":
        return f"{operation.symbol}({', '.join(_text(arg, names)[0] for arg in term.args)})", level
    if operation.style == "prefix":
        return operation.symbol + _bracket(_text(term.args[0], names), level + 1), level
    left, right = (_text(arg, names) for arg in term.args)
    strict_left = level + 1 if term.op in COMPARISONS or term.op == "**" else level
    return f"{_bracket(left, strict_left)} {operation.symbol} {_bracket(right, level + 1)}", level


def show(value: Value) -> str:
    """A value as messages and texts show it: 3, 1/3, 'a', True, None."""
    return str(value) if isinstance(value, Fraction) else repr(value)


def _constant_precedence(value: Value) -> int:
    if isinstance(value, Fraction):
        return 6
    return 7 if isinstance(value, int) and value < 0 else 9


def _bracket(part: tuple[str, int], level: int) -> str:
    return part[0] if part[1] >= level else f"({part[0]})"


def affine(term: Term, arity: int) -> Affine | None:
    """(coefficients, constant) with term = constant + sum_t coefficients[t] * x_t on all numbers, or None."""
    if isinstance(term, Arg):
        return tuple(Fraction(int(term.index == t)) for t in range(arity)), Fraction(0)
    if isinstance(term, Const):
        if not isinstance(term.value, (int, Fraction)):
            return None
        return (Fraction(0),) * arity, Fraction(term.value)
    if term.op not in ("+", "-", "*", "/", "neg"):
        return None
    parts = [affine(arg, arity) for arg in term.args]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if term.op == "neg":
        return _scaled(known[0], Fraction(-1))
    left, right = known
    if term.op in ("+", "-"):
        other = right if term.op == "+" else _scaled(right, Fraction(-1))
        return tuple(a + b for a, b in zip(left[0], other[0], strict=True)), left[1] + other[1]
    if not any(right[0]) and isinstance(term.args[1], Const):
        if term.op == "*":
            return _scaled(left, right[1])
        return _scaled(left, 1 / right[1]) if right[1] else None
    if term.op == "*" and isinstance(term.args[0], Const):
        return _scaled(right, left[1])
    return None


def _scaled(form: Affine, factor: Fraction) -> Affine:
    return tuple(factor * coefficient for coefficient in form[0]), factor * form[1]


def evaluator(term: Term, arity: int) -> Callable[..., Any]:
    """A Python function of `arity` arguments that evaluates the term on exact values; it raises where Python would."""
    if isinstance(term, Arg):
        index = term.index
        return lambda *values: values[index]
    if isinstance(term, Const):
        constant = term.value
        return lambda *values: constant
    operation = OPERATIONS[term.op].evaluate
    if term.args == tuple(Arg(t) for t in range(arity)):
        return operation
    if len(term.args) == 2 and isinstance(term.args[0], Arg) and isinstance(term.args[1], Const):
        position, second = term.args[0].index, term.args[1].value
        return lambda *values: operation(values[position], second)
    parts = [evaluator(arg, arity) for arg in term.args]
    if term.op == "where":  # the case that does not apply may be undefined
        condition, then, otherwise = parts
        return lambda *values: then(*values) if condition(*values) else otherwise(*values)
    # Between two operations a value is brought to canonical form, as it would be between two nodes.
    return lambda *values: operation(*[settle(part(*values)) for part in parts])


class Opaque(BaseException):
    """Raised while tracing a callable that does more than apply operators; not an Exception, so that it gets out."""


def trace(function: Callable[..., object], arity: int) -> Term | None:
    """The term a callable builds when it is run on symbols, or None if it looks at their values or types.

    A callable can still tell symbols from values (`type(x) is int`): compare the term with the callable before use.
    """
    try:
        result = function(*[_Symbolic(Arg(index)) for index in range(arity)])
    except (Opaque, Exception, SystemExit):
        return None
    return result.term if type(result) is _Symbolic else None


def _term(value: object) -> Term:
    if type(value) is _Symbolic:
        return value.term
    try:
        return Const(normalise(value))
    except (TypeError, ValueError):
        raise Opaque from None


def _apply(op: str, *operands: object) -> _Symbolic:
    term = Apply(op, tuple(_term(operand) for operand in operands))
    if term.size > MAX_TRACED_SIZE:
        raise Opaque
    return _Symbolic(term)


def _binary(op: str, reflected: bool = False) -> Callable[[Any, object], Any]:
    def method(self: Any, other: object) -> Any:
        return _apply(op, other, self) if reflected else _apply(op, self, other)

    return method


def _logical(op: str, reflected: bool = False) -> Callable[[Any, object], Any]:
    """`&` and `|` are bitwise in Python: they are `and` and `or` on truth values only."""

    def method(self: Any, other: object) -> Any:
        if not (is_truth_valued(self.term) and is_truth_valued(_term(other))):
            raise Opaque
        return _apply(op, other, self) if reflected else _apply(op, self, other)

    return method


def _unary(op: str) -> Callable[[Any], Any]:
    return lambda self: _apply(op, self)


def _refuse(*_: object) -> Any:
    raise Opaque


class _Symbolic:
    """A symbol for tracing: operators build terms, anything that would look at a value raises `Opaque`."""

    __slots__ = ("term",)

    def __init__(self, term: Term) -> None:
        self.term = term

    __add__, __radd__ = _binary("+"), _binary("+", True)
    __sub__, __rsub__ = _binary("-"), _binary("-", True)
    __mul__, __rmul__ = _binary("*"), _binary("*", True)
    __truediv__, __rtruediv__ = _binary("/"), _binary("/", True)
    __floordiv__, __rfloordiv__ = _binary("//"), _binary("//", True)
    __mod__, __rmod__ = _binary("%"), _binary("%", True)
    __pow__, __rpow__ = _binary("**"), _binary("**", True)
    __eq__, __ne__ = _binary("=="), _binary("!=")
    __lt__, __le__ = _binary("<"), _binary("<=")
    __gt__, __ge__ = _binary(">"), _binary(">=")
    __and__, __rand__ = _logical("and"), _logical("and", True)
    __or__, __ror__ = _logical("or"), _logical("or", True)
    __neg__, __abs__ = _unary("neg"), _unary("abs")
    __floor__, __ceil__ = _unary("floor"), _unary("ceil")
    __bool__ = __hash__ = __index__ = __int__ = __float__ = __complex__ = __round__ = __trunc__ = _refuse
    __iter__ = __len__ = __getitem__ = __contains__ = __call__ = _refuse
    __str__ = __repr__ = __format__ = _refuse
    __getattr__ = _refuse
    __class__ = property(_refuse)  # isinstance looks at it
