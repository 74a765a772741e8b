"""The notation of the recorded random Tracr programs, read as RASP.

    Map(f, x), C2N(f, x), N2C(f, x), NMap(f, x)   a map; C and N tell the encodings, categorical and numerical
    SeqMap(f, x, y)                               a map of two arguments
    Lin(a, b, x, y)                               a * x + b * y
    Agg(s, x)                                     aggregate, categorical, default None
    NAgg(s, x)                                    aggregate, numerical, default 0
    Width(s)                                      selector_width
    Select(keys, queries, comparison)             EQ, NEQ, LT, LEQ, GT, GEQ or TRUE

with `tokens` and `indices` for x and y, and a function by its name in `FUNCTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from certiformer.compiler.rasp import (
    Map,
    Selector,
    SequenceMap,
    SOp,
    aggregate,
    indices,
    select,
    selector_width,
    tokens,
)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "neg": lambda x: -x,
    "odd": lambda x: x % 2 == 1,
    "round": round,
    "min2": lambda x: min(x, 2),
    "%2": lambda x: x % 2,
    "+1": lambda x: x + 1,
    ">1": lambda x: x > 1,
    "==2": lambda x: x == 2,
    "x<=0": lambda x: x <= 0,
    "1-x": lambda x: 1 - x,
    "2x": lambda x: 2 * x,
    ">.5": lambda x: x > Fraction(1, 2),
    "<.4": lambda x: x < Fraction(2, 5),
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "max": lambda x, y: max(x, y),
    "eq": lambda x, y: x == y,
    # The record does not define `ite`; this reading agrees with all programs that use it.
    "ite": lambda x, y: x if x % 2 == 1 else y,
}
COMPARISONS = {"EQ": "==", "NEQ": "!=", "LT": "<", "LEQ": "<=", "GT": ">", "GEQ": ">=", "TRUE": True}
LEAVES = {"tokens": tokens, "indices": indices}


@dataclass(frozen=True)
class Call:
    """`name(args…)`; a leaf has no arguments."""

    name: str
    args: tuple[Call, ...]


def parse(source: str) -> Call:
    """The syntax tree. Raises `ValueError` if the text is no term."""
    symbols = re.findall(r"[(),]|[^(),]+", source)
    call, rest = _term(symbols)
    if rest:
        raise ValueError(f"{''.join(rest)!r} follows the end of the program in {source!r}")
    return call


def _term(symbols: list[str]) -> tuple[Call, list[str]]:
    if not symbols or symbols[0] in "(),":
        raise ValueError(f"expected a name, got {''.join(symbols)!r}")
    name, rest = symbols[0], symbols[1:]
    args: list[Call] = []
    if rest and rest[0] == "(":
        while rest[0] != ")":
            arg, rest = _term(rest[1:])
            args.append(arg)
            if not rest or rest[0] not in ",)":
                raise ValueError(f"expected , or ) after an argument of {name}, got {''.join(rest)!r}")
        rest = rest[1:]
    return Call(name, tuple(args)), rest


def sop(call: Call) -> SOp:
    """The s-op that the term denotes."""
    name, args = call.name, call.args
    if name in LEAVES:
        return LEAVES[name]
    if name in ("Map", "C2N", "N2C", "NMap"):
        mapped = Map(FUNCTIONS[args[0].name], sop(args[1]))
        return mapped.numerical() if name in ("C2N", "NMap") else mapped.categorical()
    if name == "SeqMap":
        return SequenceMap(FUNCTIONS[args[0].name], sop(args[1]), sop(args[2]))
    if name == "Lin":
        return sop(args[2]) * Fraction(args[0].name) + sop(args[3]) * Fraction(args[1].name)
    if name == "Agg":
        return aggregate(selector(args[0]), sop(args[1]))
    if name == "NAgg":
        return aggregate(selector(args[0]), sop(args[1]), 0).numerical()
    if name == "Width":
        return selector_width(selector(args[0]))
    raise ValueError(f"unknown s-op {name!r}")


def selector(call: Call) -> Selector:
    """The selector that the term denotes."""
    if call.name != "Select":
        raise ValueError(f"unknown selector {call.name!r}")
    keys, queries, comparison = call.args
    return select(sop(keys), sop(queries), COMPARISONS[comparison.name])
