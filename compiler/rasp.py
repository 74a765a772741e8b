"""RASP, the language programs are written in: s-ops, selectors, and the operators that build them.

A program is an `SOp`, an immutable expression: for every input sequence it has one value per position. Operators on
s-ops build s-ops: `tokens == "a"` is the s-op of truth values, not an answer, so `if` on it raises. All s-ops are
compared and hashed by identity; `canonicalise` merges those that are structurally equal.

Values are None, bool, int, Fraction and str; a float in a program stands for the rational `core.normalise` makes of it.
Maps are None-strict (an argument None gives None), and no selector selects a None key or for a None query.

    same = select(tokens, tokens, "==")         # predicate(key, query)
    hist = selector_width(same).named("hist")   # how often each token occurs
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, NoReturn, Self, TypeAlias

from ..models.errors import InputError
from .core import Value, normalise
from .functions import Comparison, Function, FunctionSource, Predicate, PredicateSource
from .terms import Apply, Arg, Const, Term

__all__ = [
    "AggregateOp",
    "AndOp",
    "Comparison",
    "Constant",
    "IndicesOp",
    "LinearOp",
    "Map",
    "MapOp",
    "NotOp",
    "OrOp",
    "SOp",
    "SelectOp",
    "Selector",
    "SequenceMap",
    "TokensOp",
    "WidthOp",
    "aggregate",
    "full",
    "indices",
    "length",
    "linear",
    "maximum",
    "minimum",
    "select",
    "selector_width",
    "tokens",
    "where",
]

Encoding: TypeAlias = Literal["auto", "categorical", "numerical"]


def _here() -> str:
    """The line of the user's code that builds a node, as "file.py:12"."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SOp:
    """A sequence operation: the interface of all value nodes.

    `name` and `where` are for messages; `encoding` is a hint to the compiler and never changes what is computed.
    """

    name: str | None = None
    encoding: Encoding = "auto"
    where: str = field(default_factory=_here)

    __array_ufunc__ = None  # numpy scalars on the left leave the operation to us

    def named(self, name: str) -> Self:
        """The same s-op under a name that messages and labels show."""
        return replace(self, name=name)

    def categorical(self) -> Self:
        """The same s-op, with the wish for one direction of the residual stream per value."""
        return replace(self, encoding="categorical")

    def numerical(self) -> Self:
        """The same s-op, with the wish for one direction of the residual stream that carries the number."""
        return replace(self, encoding="numerical")

    def isin(self, values: Iterable[Value | float]) -> SOp:
        """Whether the value is one of `values`. Raises `InputError` for a None among them."""
        return _operate("in", self, *values)

    def __add__(self, other: Operand) -> SOp:
        return _operate("+", self, other)

    def __radd__(self, other: Operand) -> SOp:
        return _operate("+", other, self)

    def __sub__(self, other: Operand) -> SOp:
        return _operate("-", self, other)

    def __rsub__(self, other: Operand) -> SOp:
        return _operate("-", other, self)

    def __mul__(self, other: Operand) -> SOp:
        return _operate("*", self, other)

    def __rmul__(self, other: Operand) -> SOp:
        return _operate("*", other, self)

    def __truediv__(self, other: Operand) -> SOp:
        return _operate("/", self, other)

    def __rtruediv__(self, other: Operand) -> SOp:
        return _operate("/", other, self)

    def __floordiv__(self, other: Operand) -> SOp:
        return _operate("//", self, other)

    def __rfloordiv__(self, other: Operand) -> SOp:
        return _operate("//", other, self)

    def __mod__(self, other: Operand) -> SOp:
        return _operate("%", self, other)

    def __rmod__(self, other: Operand) -> SOp:
        return _operate("%", other, self)

    def __pow__(self, other: Operand) -> SOp:
        return _operate("**", self, other)

    def __rpow__(self, other: Operand) -> SOp:
        return _operate("**", other, self)

    def __neg__(self) -> SOp:
        return _operate("neg", self)

    def __pos__(self) -> SOp:
        return self

    def __abs__(self) -> SOp:
        return _operate("abs", self)

    def __eq__(self, other: Operand) -> SOp:  # type: ignore[override]
        return _operate("==", self, other)

    def __ne__(self, other: Operand) -> SOp:  # type: ignore[override]
        return _operate("!=", self, other)

    def __lt__(self, other: Operand) -> SOp:
        return _operate("<", self, other)

    def __le__(self, other: Operand) -> SOp:
        return _operate("<=", self, other)

    def __gt__(self, other: Operand) -> SOp:
        return _operate(">", self, other)

    def __ge__(self, other: Operand) -> SOp:
        return _operate(">=", self, other)

    def __and__(self, other: Operand) -> SOp:
        return _operate("and", self, other)

    def __rand__(self, other: Operand) -> SOp:
        return _operate("and", other, self)

    def __or__(self, other: Operand) -> SOp:
        return _operate("or", self, other)

    def __ror__(self, other: Operand) -> SOp:
        return _operate("or", other, self)

    def __invert__(self) -> SOp:
        return _operate("not", self)

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{describe(self)} has a value per position and no truth value of its own: combine s-ops with "
            "& | ~ in place of and / or / not / if, use where(condition, a, b) to choose, and `is` to compare identity"
        )

    def __repr__(self) -> str:
        return f"<{describe(self)}>"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Selector:
    """A relation between query and key positions: the interface of all selector nodes. Combine with & | ~."""

    name: str | None = None
    where: str = field(default_factory=_here)

    def named(self, name: str) -> Self:
        """The same selector under a name that messages and labels show."""
        return replace(self, name=name)

    def __and__(self, other: Selector) -> Selector:
        return AndOp(self, _selector(other, "&"))

    def __or__(self, other: Selector) -> Selector:
        return OrOp(self, _selector(other, "|"))

    def __invert__(self) -> Selector:
        return NotOp(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{describe(self)} is a selector and has no truth value: combine selectors with & | ~ "
            "in place of and / or / not"
        )

    def __repr__(self) -> str:
        return f"<{describe(self)}>"


Operand: TypeAlias = SOp | Value | float
Expression: TypeAlias = SOp | Selector


@dataclass(frozen=True, eq=False, repr=False)
class TokensOp(SOp):
    """The input tokens."""


@dataclass(frozen=True, eq=False, repr=False)
class IndicesOp(SOp):
    """The positions 0, 1, …, n - 1."""


@dataclass(frozen=True, eq=False, repr=False)
class Constant(SOp):
    """The same value at every position."""

    value: Value


@dataclass(frozen=True, eq=False, repr=False)
class MapOp(SOp):
    """`function` of the values of `args` at the same position; None if one of them is None."""

    function: Function
    args: tuple[SOp, ...]


@dataclass(frozen=True, eq=False, repr=False)
class LinearOp(SOp):
    """constant + sum_t coefficients[t] * args[t] over numbers (True counts as 1); None if an argument is None."""

    args: tuple[SOp, ...]
    coefficients: tuple[Fraction, ...]
    constant: Fraction


@dataclass(frozen=True, eq=False, repr=False)
class AggregateOp(SOp):
    """`default` if nothing is selected, the value if all selected ones are equal, else their exact mean."""

    selector: Selector
    value: SOp
    default: Value


@dataclass(frozen=True, eq=False, repr=False)
class WidthOp(SOp):
    """How many (visible) positions are selected."""

    selector: Selector


@dataclass(frozen=True, eq=False, repr=False)
class SelectOp(Selector):
    """Position j is selected from i if predicate(keys[j], queries[i]); never if one of the two is None."""

    keys: SOp
    queries: SOp
    predicate: Predicate


@dataclass(frozen=True, eq=False, repr=False)
class AndOp(Selector):
    """Selected by both."""

    left: Selector
    right: Selector


@dataclass(frozen=True, eq=False, repr=False)
class OrOp(Selector):
    """Selected by one of the two, or both."""

    left: Selector
    right: Selector


@dataclass(frozen=True, eq=False, repr=False)
class NotOp(Selector):
    """Not selected (among the visible positions)."""

    arg: Selector


def Map(function: FunctionSource, sop: Operand) -> SOp:
    """`function` applied at every position.

    `function`: a callable, a dict from values to values, or a sympy Lambda or expression (see `Function.of`).
    """
    return SequenceMap(function, sop)


def SequenceMap(function: FunctionSource, *sops: Operand) -> SOp:
    """`function` of the values of one or more s-ops (or constants) at the same position; see `Map`.

    Raises `InputError` if `function` does not take `len(sops)` arguments.
    """
    if not sops:
        raise InputError("SequenceMap needs at least one s-op; for a constant use full(value)")
    return MapOp(Function.of(function, len(sops)), tuple(map(as_sop, sops)))


def linear(sops: Sequence[Operand], coefficients: Sequence[int | Fraction | float], constant: int | float = 0) -> SOp:
    """constant + sum_t coefficients[t] * sops[t], exactly. Raises `InputError` if the two lists differ in length."""
    if len(sops) != len(coefficients) or not sops:
        raise InputError(f"linear needs one coefficient per s-op, got {len(sops)} s-ops, {len(coefficients)} numbers")
    numbers = [_number(coefficient, "a coefficient") for coefficient in coefficients]
    return LinearOp(tuple(map(as_sop, sops)), tuple(numbers), _number(constant, "the constant"))


def full(value: Value | float) -> SOp:
    """`value` at every position."""
    return Constant(_value(value))


def select(keys: Operand, queries: Operand, predicate: PredicateSource) -> Selector:
    """The selector of all (query i, key j) with predicate(keys[j], queries[i]).

    `predicate`: "==", "!=", "<", "<=", ">", ">=", True, False, a `Comparison`, or a callable (key, query) -> bool.
    """
    return SelectOp(as_sop(keys), as_sop(queries), Predicate.of(predicate))


def aggregate(selector: Selector, value: Operand, default: Value | float = None) -> SOp:
    """The value at the selected positions, averaged where they differ; `default` where none is selected."""
    return AggregateOp(_selector(selector, "aggregate"), as_sop(value), _value(default))


def selector_width(selector: Selector) -> SOp:
    """How many positions are selected (under causal evaluation: how many up to the current one)."""
    return WidthOp(_selector(selector, "selector_width"))


def minimum(*operands: Operand) -> SOp:
    """The least of the operands at each position."""
    return _operate("min", *operands)


def maximum(*operands: Operand) -> SOp:
    """The greatest of the operands at each position."""
    return _operate("max", *operands)


def where(condition: Operand, then: Operand, otherwise: Operand) -> SOp:
    """`then` where the condition is true, else `otherwise`; None where one of the three is None."""
    return _operate("where", condition, then, otherwise)


def as_sop(operand: Operand) -> SOp:
    """The s-op itself, or a constant one. Raises `InputError` for what is neither an s-op nor a value."""
    return operand if isinstance(operand, SOp) else Constant(_value(operand))


def describe(node: Expression) -> str:
    """What messages call a node: "'hist' (selector_width, demo.py:12)" or "map x0 + 1 (demo.py:12)"."""
    match node:
        case TokensOp() | IndicesOp():
            return node.name or ("tokens" if isinstance(node, TokensOp) else "indices")
        case Constant(value):
            kind, detail = "full", repr(value)
        case MapOp(function):
            kind, detail = "map", function.text
        case LinearOp():
            kind, detail = "linear", " + ".join(f"{c} * x{t}" for t, c in enumerate(node.coefficients))
        case AggregateOp():
            kind, detail = "aggregate", ""
        case WidthOp():
            kind, detail = "selector_width", ""
        case SelectOp(predicate=predicate):
            kind, detail = "select", predicate.text
        case _:
            kind, detail = {AndOp: "and", OrOp: "or", NotOp: "not"}.get(type(node), type(node).__name__), ""
    label = f"{kind} {detail}".rstrip()
    return f"{node.name!r} ({label}, {node.where})" if node.name else f"{label} ({node.where})"


def _operate(op: str, *operands: Operand) -> SOp:
    """The map of one operation; constants are part of its function, and an s-op given twice is one argument."""
    args: dict[int, SOp] = {}
    parts: list[Term] = []
    for operand in operands:
        if isinstance(operand, SOp):
            args.setdefault(id(operand), operand)
            parts.append(Arg(list(args).index(id(operand))))
        else:
            value = _value(operand)
            if value is None:
                raise InputError(
                    "None cannot be an operand: a map is None wherever an argument is None, so nothing can be told "
                    "from it; give the aggregate that makes the None a default instead"
                )
            parts.append(Const(value))
    if not args:
        raise InputError(f"{op!r} needs at least one s-op among its operands, got {operands!r}; see full(value)")
    return MapOp(Function(len(args), term=Apply(op, tuple(parts))), tuple(args.values()))


def _value(value: object) -> Value:
    if isinstance(value, Selector):
        raise InputError(f"{describe(value)} is a selector, where an s-op is needed: use aggregate or selector_width")
    try:
        return normalise(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{value!r} is neither an s-op nor a value: {error}") from None


def _number(value: object, what: str) -> Fraction:
    number = _value(value)
    if not isinstance(number, (int, Fraction)):
        raise InputError(f"{what} of linear must be a number, got {value!r}")
    return Fraction(number)


def _selector(selector: object, what: str) -> Selector:
    if not isinstance(selector, Selector):
        raise InputError(f"{what} needs a selector, got {selector!r}: build one with select(keys, queries, predicate)")
    return selector


tokens: SOp = TokensOp(name="tokens", where="rasp")
indices: SOp = IndicesOp(name="indices", where="rasp")
length: SOp = WidthOp(SelectOp(indices, indices, Predicate.of(True), where="rasp"), name="length", where="rasp")
"""The number of (visible) positions. Under causal evaluation that is the length of the prefix: i + 1 at position i."""
