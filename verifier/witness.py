"""Inputs that decide a claim, and what a claim says on them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from ..models.values import Value, value_to_json

Semantics: TypeAlias = Literal["real", "float32"]
Arithmetic: TypeAlias = Literal["real", "float32", "precise"]
"""How a body is decided: the float32 run; the reals by float64 balls; the reals by balls of high precision (slow)."""
Status: TypeAlias = Literal["true", "false", "undefined", "undecided"]


@dataclass(frozen=True)
class Witness:
    """One point of a claim's space: its inputs (one sequence, or several of equal length), and any further choices."""

    inputs: tuple[tuple[Value, ...], ...]
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ("input",) if len(self.inputs) == 1 else ("base", "source")
        parts = [f"{name} {show_sequence(x)}" for name, x in zip(names, self.inputs, strict=True)]
        return ", ".join([*parts, *(f"at {choice}" for choice in self.choices)])

    def to_json(self) -> dict[str, object]:
        return {"inputs": [[value_to_json(v) for v in x] for x in self.inputs], "choices": list(self.choices)}


@dataclass(frozen=True)
class Outcome:
    """What a claim's body says on a witness, and why.

    `undefined`: the program has no value there; `undecided`: the float32 run gave NaN.
    `expected` and `got` hold a text for each position that the claim compares; they differ at `positions`.
    """

    status: Status
    expected: tuple[str, ...] = ()
    got: tuple[str, ...] = ()
    note: str = ""

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(i for i, (a, b) in enumerate(zip(self.expected, self.got, strict=True)) if a != b)

    def __bool__(self) -> bool:
        raise TypeError("an outcome is true, false or undefined: compare its status, e.g. outcome.status == 'true'")

    def __str__(self) -> str:
        parts: list[str] = [self.status]
        if self.expected:
            parts.append(f"expected [{', '.join(self.expected)}], got [{', '.join(self.got)}]")
        if self.positions and len(self.expected) > 1:
            parts.append(
                f"differs at position{'s' * (len(self.positions) > 1)} {', '.join(map(str, self.positions[:8]))}"
            )
        return "; ".join([*parts, *([self.note] if self.note else [])])


def show_value(value: Value) -> str:
    """As a user would write it."""
    return str(value) if isinstance(value, Fraction) else repr(value)


def show_sequence(values: tuple[Value, ...]) -> str:
    return f"[{', '.join(map(show_value, values))}]"
