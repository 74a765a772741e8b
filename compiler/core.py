"""Core RASP: the canonical, straight-line form of a program in which every function is a finite table.

A core program is what a theorem is about. It is a tuple of nodes; a node refers to earlier nodes by position.
Value nodes (`Tokens`, `Indices`, `Map`, `Linear`, `Aggregate`, `Width`) carry `values`, the canonical list of
the values the node can take on any input of length 1..max_len (a superset is sound); tables index into those lists.
Selector nodes (`Select`, `And`, `Or`, `Not`) are boolean relations between a key and a query position.

Meaning, on tokens x_0..x_{n-1}, at position i (position j is visible from i iff not causal or j <= i):

    tokens_i = x_i;  indices_i = i
    map_i = values[table[index of arg_1 at i, ..., index of arg_m at i]]        (an entry -1 is undefined)
    linear_i = constant + sum_t coefficient_t * arg_t at i                      (None if any argument is None)
    select[i, j] = table[index of keys at j, index of queries at i];  and / or / not are pointwise
    width_i = #{visible j : selector[i, j]}
    aggregate_i = the default if no visible j is selected; the value, if all selected values are equal;
                  the exact mean, if they are numbers (True counts as 1); otherwise undefined.

The compiler refuses a program that could reach an undefined case.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Value: TypeAlias = None | bool | int | Fraction | str
Bits: TypeAlias = npt.NDArray[np.bool_]
Table: TypeAlias = npt.NDArray[np.int32]


def normalise(value: object) -> Value:
    """The canonical form of a value: integral rationals become int, a float the decimal it prints as (0.4 is 2/5).

    Raises `TypeError` for a type that is no RASP value and `ValueError` for a NaN or an infinity.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_,)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value):
            raise ValueError(f"a RASP value must be finite, got {value!r}")
        value = Fraction(repr(float(value)))
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else value
    raise TypeError(f"a RASP value is None, bool, int, Fraction or str; got {value!r} of type {type(value).__name__}")


def sort_key(value: Value) -> tuple[int, Fraction | int | str]:
    """None, then numbers (False and True among them) ascending, then strings."""
    if value is None:
        return (0, 0)
    if isinstance(value, str):
        return (2, value)
    return (1, value)


def canonical(values: Iterable[Value]) -> tuple[Value, ...]:
    """Distinct values in canonical order. Equal numbers are one value (True is 1); a bool if all copies are."""
    kept: dict[Value, Value] = {}
    for value in values:
        seen = kept.get(value, value)
        kept[value] = value if isinstance(seen, bool) else seen
    return tuple(sorted(kept.values(), key=sort_key))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The input tokens."""

    values: tuple[Value, ...]
    name: str = "tokens"


@dataclass(frozen=True, eq=False)
class Indices:
    """The positions 0, 1, …"""

    values: tuple[Value, ...]
    name: str = "indices"


@dataclass(frozen=True, eq=False)
class Map:
    """`table` has one axis per argument; entry -1: undefined."""

    args: tuple[int, ...]
    table: Table
    values: tuple[Value, ...]
    name: str = ""


@dataclass(frozen=True, eq=False)
class Linear:
    """constant + the sum of coefficient times argument; None if an argument is None."""

    args: tuple[int, ...]
    coefficients: tuple[Fraction, ...]
    constant: Fraction
    values: tuple[Value, ...]
    name: str = ""


@dataclass(frozen=True, eq=False)
class Select:
    """`table[key value, query value]`."""

    keys: int
    queries: int
    table: Bits
    name: str = ""


@dataclass(frozen=True, eq=False)
class And:
    """Selected by both."""

    left: int
    right: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Or:
    """Selected by one of the two, or both."""

    left: int
    right: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Not:
    """Not selected, among the visible positions."""

    arg: int
    name: str = ""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """`default` indexes `values`; -1 when the selection is never empty and no default is needed."""

    selector: int
    value: int
    default: int
    values: tuple[Value, ...]
    name: str = ""


@dataclass(frozen=True, eq=False)
class Width:
    """How many visible positions are selected."""

    selector: int
    values: tuple[Value, ...]
    name: str = ""


ValueNode: TypeAlias = Tokens | Indices | Map | Linear | Aggregate | Width
SelectorNode: TypeAlias = Select | And | Or | Not
Node: TypeAlias = ValueNode | SelectorNode


@dataclass(frozen=True, eq=False, repr=False)
class CoreProgram:
    """A program over `vocab` (canonical order) for sequences of length 1..max_len.

    `nodes` always starts with `Tokens` (0) and `Indices` (1); `output` is a value node.
    """

    vocab: tuple[Value, ...]
    max_len: int
    causal: bool
    nodes: tuple[Node, ...]
    output: int
    name: str = "program"

    def __repr__(self) -> str:
        return (
            f"<CoreProgram {self.name!r}: {len(self.nodes)} nodes over {len(self.vocab)} tokens, up to {self.max_len}>"
        )

    def value_node(self, index: int) -> ValueNode:
        """The node at `index`, which must not be a selector."""
        node = self.nodes[index]
        assert not isinstance(node, (Select, And, Or, Not)), f"node {index} is a selector"
        return node

    def extended(self, *nodes: Node) -> CoreProgram:
        """The same program with auxiliary definitions appended; `output` and all references keep their meaning."""
        return CoreProgram(self.vocab, self.max_len, self.causal, (*self.nodes, *nodes), self.output, self.name)
