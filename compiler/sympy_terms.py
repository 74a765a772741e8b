"""Terms to sympy expressions and back. sympy is imported only when one of the two is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

from ..models.errors import InputError
from .core import Value, normalise
from .terms import Apply, Arg, Const, Term


def to_sympy(term: Term) -> Any | None:
    """The sympy expression in the symbols x0, x1, …, or None where sympy has none (of strings, for one).

    sympy simplifies as it builds (x0 / x0 becomes 1): the expression says what the function is wherever it is defined.
    """
    import sympy

    rules = sympy_rules()

    def build(part: Term) -> Any:
        if isinstance(part, Arg):
            return sympy.Symbol(f"x{part.index}")
        if isinstance(part, Const):
            return _constant(part.value)
        return rules[part.op](*map(build, part.args))

    try:
        return sympy.sympify(build(term))
    except (TypeError, ValueError, AttributeError):
        return None


def _constant(value: Value) -> Any:
    import sympy

    if isinstance(value, bool):
        return sympy.true if value else sympy.false
    if isinstance(value, (int, Fraction)):
        return sympy.Rational(value.numerator, value.denominator)
    raise ValueError(f"sympy has no constant {value!r}")


def sympy_rules() -> dict[str, Callable[..., Any]]:
    """Operation to sympy constructor, total over `terms.OPERATIONS`."""
    import sympy

    return {
        "or": sympy.Or,
        "and": sympy.And,
        "not": sympy.Not,
        "==": sympy.Eq,
        "!=": sympy.Ne,
        "<": sympy.Lt,
        "<=": sympy.Le,
        ">": sympy.Gt,
        ">=": sympy.Ge,
        "in": lambda x, *values: sympy.Or(*(sympy.Eq(x, value) for value in values)),
        "+": lambda x, y: x + y,
        "-": lambda x, y: x - y,
        "*": lambda x, y: x * y,
        "/": lambda x, y: x / y,
        "//": lambda x, y: sympy.floor(x / y),
        "%": sympy.Mod,
        "neg": lambda x: -x,
        "**": lambda x, y: x**y,
        "abs": sympy.Abs,
        "floor": sympy.floor,
        "ceil": sympy.ceiling,
        "min": sympy.Min,
        "max": sympy.Max,
        "where": lambda c, a, b: sympy.Piecewise((a, c), (b, True)),
    }


def from_sympy(source: Any, arity: int) -> Term:
    """The term of a sympy Lambda or expression of `arity` arguments.

    A bare expression takes its symbols in order of number, if all are called x0, x1, …, else in order of name.
    Raises `InputError` for an operation that is not in `terms.OPERATIONS`, or too many symbols.
    """
    import sympy

    if isinstance(source, sympy.Lambda):
        symbols, expression = list(source.signature), source.expr
        if len(symbols) != arity:
            raise InputError(f"{source} takes {len(symbols)} arguments, but {arity} are given: pass as many s-ops")
    else:
        expression = source
        symbols = _ordered_symbols(sorted(expression.free_symbols, key=lambda symbol: str(symbol.name)), arity)
        if len(symbols) > arity:
            names = ", ".join(map(str, symbols))
            raise InputError(f"{expression} reads {names}, but {arity} arguments are given: pass one s-op a symbol")
    index = {symbol: position for position, symbol in enumerate(symbols)}
    rules: dict[Any, Callable[[Sequence[Term]], Term]] = {
        sympy.Add: lambda args: _fold("+", args),
        sympy.Mul: lambda args: _fold("*", args),
        sympy.And: lambda args: _fold("and", args),
        sympy.Or: lambda args: _fold("or", args),
        sympy.Min: lambda args: Apply("min", tuple(args)),
        sympy.Max: lambda args: Apply("max", tuple(args)),
        sympy.Pow: lambda args: Apply("**", tuple(args)),
        sympy.Mod: lambda args: Apply("%", tuple(args)),
        sympy.Abs: lambda args: Apply("abs", tuple(args)),
        sympy.floor: lambda args: Apply("floor", tuple(args)),
        sympy.ceiling: lambda args: Apply("ceil", tuple(args)),
        sympy.Not: lambda args: Apply("not", tuple(args)),
        sympy.Equality: lambda args: Apply("==", tuple(args)),
        sympy.Unequality: lambda args: Apply("!=", tuple(args)),
        sympy.StrictLessThan: lambda args: Apply("<", tuple(args)),
        sympy.LessThan: lambda args: Apply("<=", tuple(args)),
        sympy.StrictGreaterThan: lambda args: Apply(">", tuple(args)),
        sympy.GreaterThan: lambda args: Apply(">=", tuple(args)),
    }

    def build(part: Any) -> Term:
        if part in index:
            return Arg(index[part])
        if part in (sympy.true, sympy.false):
            return Const(bool(part))
        if isinstance(part, sympy.Rational):
            return Const(normalise(Fraction(int(part.p), int(part.q))))
        if isinstance(part, sympy.Float):
            return Const(normalise(float(part)))
        if isinstance(part, sympy.Piecewise):
            return _piecewise([(build(value), condition) for value, condition in part.args], build)
        if part.func not in rules:
            raise InputError(
                f"{part} in {expression} is not among the operations a function can read: "
                "pass a Python callable instead, which is tabulated over its finite inputs"
            )
        return rules[part.func]([build(arg) for arg in part.args])

    return build(expression)


def _fold(op: str, args: Sequence[Term]) -> Term:
    return reduce(lambda left, right: Apply(op, (left, right)), args)


def _piecewise(cases: list[tuple[Term, Any]], build: Callable[[Any], Term]) -> Term:
    last, condition = cases[-1]
    if condition != True:  # noqa: E712 (sympy's true equals True, and is not it)
        raise InputError("a Piecewise must end with a case that always holds: add (value, True)")
    return reduce(lambda rest, case: Apply("where", (build(case[1]), case[0], rest)), reversed(cases[:-1]), last)


def _ordered_symbols(symbols: list[Any], arity: int) -> list[Any]:
    import sympy

    numbers = [re.fullmatch(r"x(\d+)", str(symbol.name)) for symbol in symbols]
    if not symbols or not all(numbers):
        return symbols
    highest = max(int(match.group(1)) for match in numbers if match)
    by_name = {symbol.name: symbol for symbol in symbols}
    return [by_name.get(f"x{k}", sympy.Symbol(f"x{k}")) for k in range(max(highest + 1, arity))]
