"""The values that programs and tokens take: None, booleans, exact numbers and strings. Equality is Python's."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from .errors import InputError

Value: TypeAlias = bool | int | Fraction | str | None
JsonValue: TypeAlias = bool | int | str | dict[str, int] | None
MAX_VOCAB = 2**20


def as_value(value: object, what: str = "a token") -> Value:
    """The value itself; numpy integers and booleans become Python's. Raises `InputError` for any other type."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else value
    remedy = "; write an int or a Fraction" if isinstance(value, (float, np.floating)) else ""
    raise InputError(
        f"{what} must be None, a bool, an int, a Fraction or a str; "
        f"got {value!r} of type {type(value).__name__}{remedy}"
    )


def sort_key(value: Value) -> tuple[int, Fraction | int | str]:
    """None, then numbers (False and True among them) ascending, then strings."""
    if value is None:
        return (0, 0)
    if isinstance(value, str):
        return (2, value)
    return (1, value)


def distinct_values(values: object, what: str = "vocabulary") -> tuple[Value, ...]:
    """The values in the order given. Raises `InputError` for duplicates, wrong types, none, or an unsized iterable."""
    try:
        size = len(values)  # type: ignore[arg-type]
    except OverflowError:
        size = MAX_VOCAB + 1
    except TypeError:
        raise InputError(
            f"the {what} must be finite and sized (a tuple, list, range or string), got {values!r}; list its values"
        ) from None
    if not isinstance(values, Iterable):
        raise InputError(f"the {what} must be a collection of values, got {values!r}")
    if not 1 <= size <= MAX_VOCAB:
        raise InputError(f"the {what} must have 1 to {MAX_VOCAB} values, got {'more' if size else 'none'}")
    found = tuple(as_value(value, f"a value of the {what}") for value in values)
    if len(set(found)) != len(found):
        seen: set[Value] = set()
        twice = [value for value in found if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
        raise InputError(f"the {what} contains {twice[0]!r} more than once (True equals 1, False equals 0)")
    return found


def canonical_vocab(values: object) -> tuple[Value, ...]:
    """A vocabulary in canonical order. Raises `InputError` as `distinct_values` does."""
    return tuple(sorted(distinct_values(values), key=sort_key))


def value_to_json(value: Value) -> JsonValue:
    """None is null, a Fraction is {"num": a, "den": b}; the rest is itself."""
    if isinstance(value, Fraction):
        return {"num": value.numerator, "den": value.denominator}
    return value


def value_from_json(data: object) -> Value:
    """The inverse of `value_to_json`. Raises `InputError`."""
    if isinstance(data, dict):
        num, den = data.get("num"), data.get("den")
        whole = all(isinstance(part, int) and not isinstance(part, bool) for part in (num, den))
        if set(data) != {"num", "den"} or not whole or not isinstance(num, int) or not isinstance(den, int) or den < 2:
            raise InputError(f'a fraction is written {{"num": a, "den": b}} with b of at least 2, got {data!r}')
        if Fraction(num, den).denominator != den:
            raise InputError(f"a fraction must be written in lowest terms, got {data!r}")
        return Fraction(num, den)
    return as_value(data, "a value in JSON")
