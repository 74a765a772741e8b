"""The certificate as bytes: canonical JSON, its seal, and strict readers for the pieces it is made of.

Every reader either returns exactly what the specification allows or raises `Rejected`; nothing is repaired.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from operator import lt
from typing import Any, TypeAlias

Value: TypeAlias = None | bool | int | Fraction | str
Json: TypeAlias = Any

FORMAT = "certiformer/1"
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 64
MAX_BITS = 4096
MAX_LOG2DEN = 512
MAX_TEXT = 4096


class Rejected(Exception):
    """A premise does not hold. `step` and `rule` are filled in by the nearest enclosing `within`."""

    def __init__(self, why: str, step: str = "", rule: str = "") -> None:
        super().__init__(why)
        self.why, self.step, self.rule = why, step, rule


@contextmanager
def within(step: str, rule: str) -> Iterator[None]:
    """Names the step and rule of every `Rejected` raised inside that has none yet."""
    try:
        yield
    except Rejected as error:
        error.step, error.rule = error.step or step, error.rule or rule
        raise


def require(holds: object, why: str) -> None:
    """Raises `Rejected(why)` unless `holds`. (Callers pass bools; a NaN comparison is False, hence rejected.)"""
    if not bool(holds):
        raise Rejected(why)


def show(data: object, limit: int = 80) -> str:
    """A short picture of a piece of the certificate, for messages."""
    text = repr(data)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def canonical_json(data: Json) -> bytes:
    """UTF-8, keys sorted, no spaces, no NaN. Law: `parse_json(canonical_json(d)) == d`."""
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise Rejected(f"cannot be written as canonical JSON: {error}") from None


def seal(certificate: Mapping[str, Json]) -> str:
    """SHA-256 (hex) of the canonical JSON of the certificate without its `seal`."""
    body = {key: item for key, item in certificate.items() if key != "seal"}
    return hashlib.sha256(canonical_json(body)).hexdigest()


def parse_json(text: bytes) -> Json:
    """JSON without duplicate keys, NaN, infinities, or more than `MAX_DEPTH` levels."""

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        require(len(found) == len(pairs), "a JSON object repeats a key")
        return found

    def constant(name: str) -> Json:
        raise Rejected(f"{name} is not a JSON number")

    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise Rejected(f"not JSON: {show(str(error))}") from None
    _check_depth(data)
    return data


def _check_depth(data: Json) -> None:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise Rejected(f"JSON is nested deeper than {MAX_DEPTH} levels")


def read_certificate(text: bytes) -> dict[str, Json]:
    """The certificate, if its bytes are canonical, its format is known and its seal is right."""
    require(len(text) <= MAX_BYTES, f"the certificate has {len(text)} bytes; the limit is {MAX_BYTES}")
    data = record(parse_json(text), "certificate", ("format", "theorem", "proof", "seal"))
    require(data["format"] == FORMAT, f"format must be {FORMAT!r}, got {show(data['format'])}")
    require(canonical_json(data) == text, "the JSON is not canonical (UTF-8, keys sorted, no spaces)")
    require(data["seal"] == seal(data), "the seal does not match the contents")
    return data


# --- readers -------------------------------------------------------------------------------------------------


def record(data: Json, what: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Json]:
    """A JSON object with exactly these keys (the optional ones may be missing)."""
    if not isinstance(data, dict):
        raise Rejected(f"{what} must be an object, got {show(data)}")
    missing = [key for key in keys if key not in data]
    unknown = [key for key in data if key not in keys and key not in optional]
    if missing or unknown:
        raise Rejected(f"{what}: missing keys {missing}, unknown keys {show(unknown)}")
    return dict(data)


def listing(data: Json, what: str, most: int, least: int = 0) -> list[Json]:
    """A JSON array with `least` to `most` items."""
    require(isinstance(data, list), f"{what} must be a list, got {show(data)}")
    require(least <= len(data) <= most, f"{what} must have {least} to {most} items, got {len(data)}")
    return list(data)


def integer(data: Json, what: str, least: int, most: int) -> int:
    """A JSON integer (no bool, no float) in a range."""
    if type(data) is not int or not least <= data <= most:
        raise Rejected(f"{what} must be an integer in {least}..{most}, got {show(data)}")
    return data


def integers(data: Json, what: str, least: int, most: int, max_items: int) -> list[int]:
    """A list of integers in a range."""
    items = listing(data, what, max_items)
    good = all(type(item) is int and least <= item <= most for item in items)
    require(good, f"{what} must hold integers in {least}..{most}")
    return items


def boolean(data: Json, what: str) -> bool:
    require(isinstance(data, bool), f"{what} must be true or false, got {show(data)}")
    return bool(data)


def text(data: Json, what: str) -> str:
    require(isinstance(data, str) and len(data) <= MAX_TEXT, f"{what} must be a short string, got {show(data)}")
    return str(data)


def big(data: Json, what: str) -> int:
    """An integer of at most `MAX_BITS` bits."""
    if type(data) is not int:
        raise Rejected(f"{what} must be a number, got {show(data)}")
    if data.bit_length() > MAX_BITS:
        raise Rejected(f"{what} has more than {MAX_BITS} bits")
    return data


def dyadic(data: Json, what: str) -> Fraction:
    """An integer or `{"num": a, "log2den": k}`, the number a / 2^k."""
    if isinstance(data, dict):
        item = record(data, what, ("num", "log2den"))
        return Fraction(big(item["num"], what), 2 ** integer(item["log2den"], what, 0, MAX_LOG2DEN))
    return Fraction(big(data, what))


def rational(data: Json, what: str) -> Fraction:
    """A dyadic, or `{"num": a, "den": b}` in lowest terms with b > 1."""
    if isinstance(data, dict) and "den" in data:
        item = record(data, what, ("num", "den"))
        num, den = big(item["num"], what), big(item["den"], what)
        if den <= 1 or math.gcd(num, den) != 1:
            raise Rejected(f"{what}: {show(data)} is not in lowest terms with a denominator above 1")
        return Fraction(num, den)
    return dyadic(data, what)


def value(data: Json, what: str) -> Value:
    """A RASP value: null, true/false, an integer, `{"num","den"}` in lowest terms, or a string."""
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, str):
        return text(data, what)
    if isinstance(data, dict):
        if "den" not in data:
            raise Rejected(f"{what}: {show(data)} is not a value")
        return rational(data, what)
    return big(data, what)


def sort_key(item: Value) -> tuple[int, Fraction | int | str]:
    """null, then numbers ascending, then strings ascending."""
    if item is None:
        return (0, 0)
    return (2, item) if isinstance(item, str) else (1, item)


def common_scale(numbers: Iterable[Fraction]) -> int:
    """The least common denominator, if it has at most `MAX_BITS` bits."""
    scale = 1
    for denominator in {item.denominator for item in numbers}:
        scale = math.lcm(scale, denominator)
        require(scale.bit_length() <= MAX_BITS, f"a common denominator has more than {MAX_BITS} bits")
    return scale


def is_number(item: Value) -> bool:
    return item is not None and not isinstance(item, str)


def as_fraction(item: Value) -> Fraction:
    """A numeric value (true is 1) as a fraction."""
    assert item is not None and not isinstance(item, str), item
    return Fraction(item)


def distinct_values(data: Json, what: str, most: int = 2**16, canonical_order: bool = False) -> tuple[Value, ...]:
    """A non-empty list of values without repetition (equality is numeric: true = 1)."""
    items = tuple(value(item, what) for item in listing(data, what, most, 1))
    require(len(set(items)) == len(items), f"{what} repeats a value")
    if canonical_order:
        keys = [sort_key(item) for item in items]
        require(all(map(lt, keys, keys[1:])), f"{what} is not in canonical order")
    return items
