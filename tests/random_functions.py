"""Functions that random programs map with: some can be read as terms, some must be tabulated."""

from __future__ import annotations

from typing import Any


def rounded(x: Any) -> Any:
    return round(x)


def clip(x: Any) -> Any:
    return 0 if x < 0 else 2 if x > 2 else x


def is_even(x: Any) -> Any:
    return bool(x % 2 == 0)


def sign(x: Any) -> Any:
    return (x > 0) - (x < 0)


def name(x: Any) -> Any:
    return "a" if x <= 1 else "b" if x < 3 else "c"


def half(x: Any) -> Any:
    return x / 2


def square(x: Any) -> Any:
    return x * x


def if_odd(x: Any, y: Any) -> Any:
    return x if x % 2 == 1 else y


def distance(x: Any, y: Any) -> Any:
    return abs(x - y)


def ratio(x: Any, y: Any) -> Any:
    return x / (abs(y) + 1)


def mixed(x: Any, y: Any, z: Any) -> Any:
    return x * y - z


def between(x: Any, y: Any, z: Any) -> Any:
    return x <= y <= z


def middle(x: Any, y: Any, z: Any) -> Any:
    return sorted((x, y, z))[1]


def parity(x: Any, y: Any, z: Any) -> Any:
    return (x + y + z) % 2


def join(x: Any, y: Any) -> Any:
    return x + y


def first(x: Any, y: Any) -> Any:
    return min(x, y)


def code(x: Any) -> Any:
    return len(x) + (x == "a")


def close(key: Any, query: Any) -> Any:
    return abs(key - query) <= 1


def same_parity(key: Any, query: Any) -> Any:
    return key % 2 == query % 2


def following(key: Any, query: Any) -> Any:
    return key == query + 1


def sum_large(key: Any, query: Any) -> Any:
    return key + query > 2


def either_a(key: Any, query: Any) -> Any:
    return key == "a" or key == query
