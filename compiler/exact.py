"""Integers and rationals that stay exact inside ordinary Python code.

A function written for numbers, such as `lambda x, y: (x + y) / 2`, is run on `ExactInt` and `ExactFraction`, which
behave as `int` and `Fraction` in every way but two: `/` never rounds, and a float met on the way is read as the
rational that `core.normalise` makes of it. So 1 / 3 is a third, and 0.5 * x is exact.

The two classes are made from tables, because a static subclass of `int` cannot promise other result types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from .core import Value, normalise

_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_BITWISE = ("and", "or", "xor", "lshift", "rshift")
MAX_POWER_BITS = 1_000_000
_UNARY = ("neg", "pos", "abs", "floor", "ceil", "trunc", "round")


def _wrap(result: Any) -> Any:
    """Plain results become exact ones again; what is no number (or a bool, or an irrational float) stays."""
    kind = type(result)
    if kind is int:
        return ExactInt(result)
    if kind is Fraction:
        numerator, denominator = result.numerator, result.denominator
        return ExactInt(numerator) if denominator == 1 else ExactFraction(numerator, denominator)
    if kind is tuple:
        return tuple(_wrap(part) for part in result)
    return result


def _rational(other: object) -> Any:
    """`other` as an exact number; a NaN or an infinity as itself; None if it is no number."""
    kind = type(other)
    if kind is Fraction or kind is ExactFraction or isinstance(other, int):
        return other
    if isinstance(other, float) and not math.isfinite(other):
        return float(other)
    try:
        value = normalise(other)
    except (TypeError, ValueError):
        return None
    return value if isinstance(value, (int, Fraction)) else None


def check_power(base: int, exponent: int) -> None:
    """Raises `OverflowError` if base ** exponent has more than `MAX_POWER_BITS` bits: better than hours of silence."""
    if abs(exponent) * int(base).bit_length() > MAX_POWER_BITS:
        raise OverflowError(f"{int(base)} ** {int(exponent)} is too large")


def _quotient(a: int, b: int) -> Any:
    if not b:
        raise ZeroDivisionError("division by zero")
    return ExactFraction(a, b) if a % b else ExactInt(a // b)


def _int_method(name: str) -> Callable[..., Any]:
    on_int, on_fraction = getattr(int, name), getattr(Fraction, name)
    divides, power = name in ("__truediv__", "__rtruediv__"), name in ("__pow__", "__rpow__")

    def method(self: Any, other: Any, *modulus: Any) -> Any:
        if power and not modulus and isinstance(other, int):
            base, exponent = (self, other) if name == "__pow__" else (other, self)
            check_power(base, exponent)
            if int(exponent) < 0:
                return _wrap(Fraction(base) ** int(exponent))
        if isinstance(other, int):
            if not divides:
                return _wrap(on_int(self, other, *modulus))
            return _quotient(int(self), int(other)) if name == "__truediv__" else _quotient(int(other), int(self))
        rational = _rational(other)
        return NotImplemented if rational is None else _wrap(on_fraction(Fraction(self.numerator), rational))

    return method


def _fraction_method(name: str) -> Callable[..., Any]:
    on_fraction = getattr(Fraction, name)

    def method(self: Any, other: Any) -> Any:
        rational = _rational(other)
        return NotImplemented if rational is None else _wrap(on_fraction(self, rational))

    return method


def _wrapping(base: type, name: str) -> Callable[..., Any]:
    on_base = getattr(base, name)

    def method(self: Any, *others: Any) -> Any:
        return _wrap(on_base(self, *others))

    return method


def _members(base: type, binary: Callable[[str], Callable[..., Any]]) -> dict[str, Any]:
    names = [f"__{sign}{name}__" for name in _ARITHMETIC for sign in ("", "r")]
    members: dict[str, Any] = {name: binary(name) for name in (*names, *(f"__{name}__" for name in _COMPARISONS))}
    members |= {f"__{name}__": _wrapping(base, f"__{name}__") for name in _UNARY}
    return members | {"__hash__": base.__hash__, "__slots__": ()}


# The classes carry the names of what they stand for: they appear in the messages of Python's own errors.
ExactInt: Any = type(
    "int",
    (int,),
    _members(int, _int_method)
    | {f"__{sign}{name}__": _wrapping(int, f"__{sign}{name}__") for name in _BITWISE for sign in ("", "r")}
    | {"__invert__": _wrapping(int, "__invert__")},
)
ExactFraction: Any = type("Fraction", (Fraction,), _members(Fraction, _fraction_method))


def lift(value: Value) -> Any:
    """The exact number for an int or a Fraction; bools, strings and None as they are."""
    kind = type(value)
    if kind is int:
        return ExactInt(value)
    return ExactFraction(value) if kind is Fraction else value


def settle(result: object) -> Value:
    """The RASP value of what a function returned: the inverse of `lift`, else `core.normalise`.

    Raises `TypeError` for a type that is no RASP value and `ValueError` for a NaN or an infinity.
    """
    kind = type(result)
    if kind is int or kind is bool or kind is str or result is None:
        return result  # type: ignore[return-value]
    if kind is ExactInt:
        return int(result)  # type: ignore[call-overload,no-any-return]
    if isinstance(result, Fraction):
        numerator, denominator = result.numerator, result.denominator
        return int(numerator) if denominator == 1 else Fraction(numerator, denominator)
    value = normalise(result)
    return str.__str__(value) if isinstance(value, str) else value
