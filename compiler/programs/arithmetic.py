"""Arithmetic on digits, one or two numbers to a sequence.

Two numbers are read in parallel: a token such as `3+4` holds one digit of each. Numbers are written with the most
significant digit first, except where a summary says otherwise; results are taken modulo base ** length.
"""

from __future__ import annotations

from itertools import product

from ..core import Value
from ..rasp import Map, Selector, SequenceMap, SOp, full, indices, select, selector_width, tokens
from .counting import number
from .entry import broadcast, entry, fixed, named
from .idioms import after, at_flagged, before, marked, shifted

Values = list[Value]


def _left(token: str) -> int:
    return int(token[0])


def _right(token: str) -> int:
    return int(token[2])


def _carry(total: SOp, base: int, lower: Selector) -> SOp:
    """Whether the digits selected by `lower` carry into this one.

    A digit sum of base - 1 passes a carry on; the nearest other one decides. It is found by its rank among those.
    """
    decides = total != base - 1
    nearest = selector_width(marked(decides) & lower) - 1
    return at_flagged(decides, nearest, total >= base, False, ties=lower)


def _add(base: int, lower: Selector) -> SOp:
    total = Map(lambda t: _left(t) + _right(t), tokens)
    return SequenceMap(lambda s, c: (s + (1 if c else 0)) % base, total, _carry(total, base, lower))


def _digits(value: int, base: int, count: int) -> list[int]:
    """Least significant first."""
    return [value // base**i % base for i in range(count)]


def _number(digits: list[int], base: int) -> int:
    """Most significant first."""
    value = 0
    for digit in digits:
        value = value * base + digit
    return value


def _add_reference(xs: Values, base: int) -> Values:
    total = sum(_number([part(str(x)) for x in xs], base) for part in (_left, _right))
    return list(reversed(_digits(total, base, len(xs))))


@named
def add_decimal() -> SOp:
    """The sum of two decimal numbers, digit by digit."""
    return _add(10, after)


def _add_decimal(xs: Values) -> Values:
    return _add_reference(xs, 10)


@named
def add_binary() -> SOp:
    """The sum of two binary numbers, least significant digit first."""
    return _add(2, before)


def _add_binary(xs: Values) -> Values:
    return _add_reference(xs[::-1], 2)[::-1]


@named
def carries() -> SOp:
    """Whether the sum of two binary numbers, least significant digit first, carries into this digit."""
    return _carry(Map(lambda t: _left(t) + _right(t), tokens), 2, before)


def _carries(xs: Values) -> Values:
    carried: Values = []
    carry = 0
    for x in xs:
        carried.append(carry == 1)
        carry = (_left(str(x)) + _right(str(x)) + carry) // 2
    return carried


@named
def compare_binary() -> SOp:
    """How two binary numbers compare: <, = or >, everywhere. The first different digit decides."""
    order = Map(lambda t: "<" if _left(t) < _right(t) else ">", tokens)
    return at_flagged(Map(lambda t: _left(t) != _right(t), tokens), full(0), order, "=")


def _compare_binary(xs: Values) -> Values:
    left, right = (_number([part(str(x)) for x in xs], 2) for part in (_left, _right))
    return broadcast("<" if left < right else ">" if left > right else "=", xs)


@named
def increment() -> SOp:
    """A binary number plus one. A bit flips if all lower ones are set."""
    zeros_below = selector_width(select(tokens, full(0), "==") & after)
    return SequenceMap(lambda x, zeros: 1 - x if zeros == 0 else x, tokens, zeros_below)


def _increment(xs: Values) -> Values:
    value = _number([number(x) for x in xs], 2) + 1
    return list(reversed(_digits(value, 2, len(xs))))


@named
def negate() -> SOp:
    """The two's complement of a binary number. A bit flips if a lower one is set."""
    ones_below = selector_width(select(tokens, full(1), "==") & after)
    return SequenceMap(lambda x, ones: 1 - x if ones > 0 else x, tokens, ones_below)


def _negate(xs: Values) -> Values:
    value = -_number([number(x) for x in xs], 2)
    return list(reversed(_digits(value, 2, len(xs))))


@named
def gray_code() -> SOp:
    """The Gray code of a binary number: each bit, exclusive or the one to the left."""
    return SequenceMap(lambda x, left: (x + left) % 2, tokens, shifted(1, tokens, 0))


def _gray_code(xs: Values) -> Values:
    value = _number([number(x) for x in xs], 2)
    return list(reversed(_digits(value ^ (value >> 1), 2, len(xs))))


@named
def divisible_by_three() -> SOp:
    """Whether a binary number is divisible by 3, everywhere: ones at even minus ones at odd positions."""
    even = indices % 2 == 0
    one = select(tokens, full(1), "==")
    surplus = selector_width(one & marked(even)) - selector_width(one & marked(~even))
    return Map(lambda s: s % 3 == 0, surplus)


def _divisible_by_three(xs: Values) -> Values:
    return broadcast(_number([number(x) for x in xs], 2) % 3 == 0, xs)


@named
def leading_zeros() -> SOp:
    """The number of zeros before the first one of a bit sequence, everywhere."""
    leading = selector_width(select(tokens, full(1), "==") & select(indices, indices, "<=")) == 0
    return selector_width(marked(leading))


def _leading_zeros(xs: Values) -> Values:
    return broadcast(xs.index(1) if 1 in xs else len(xs), xs)


_BITS = fixed(0, 1)
_BIT_SUMS = fixed(*(f"{a}+{b}" for a, b in product(range(2), repeat=2)))
_BIT_PAIRS = fixed(*(f"{a}:{b}" for a, b in product(range(2), repeat=2)))
_DIGIT_SUMS = fixed(*(f"{a}+{b}" for a, b in product(range(10), repeat=2)))
_SAME = "list[bit] -> list[bit]"

ENTRIES = (
    entry(add_decimal, _add_decimal, "list[pair] -> list[int]", _DIGIT_SUMS, "Nogueira et al. 2021", "arithmetic"),
    entry(add_binary, _add_binary, "list[pair] -> list[bit]", _BIT_SUMS, "Zhou et al. 2024", "arithmetic", "bits"),
    entry(carries, _carries, "list[pair] -> list[bool]", _BIT_SUMS, "Quirke and Barez 2024", "arithmetic", "bits"),
    entry(compare_binary, _compare_binary, "list[pair] -> list[str]", _BIT_PAIRS, "folklore", "arithmetic", "bits"),
    entry(increment, _increment, _SAME, _BITS, "Zhou et al. 2024", "arithmetic", "bits"),
    entry(negate, _negate, _SAME, _BITS, "folklore", "arithmetic", "bits"),
    entry(gray_code, _gray_code, _SAME, _BITS, "folklore", "arithmetic", "bits"),
    entry(divisible_by_three, _divisible_by_three, "list[bit] -> list[bool]", _BITS, "folklore", "arithmetic", "bits"),
    entry(leading_zeros, _leading_zeros, "list[bit] -> list[int]", _BITS, "folklore", "arithmetic", "bits"),
)
