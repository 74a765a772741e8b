"""What every composition rule reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from .attention import Head
from .core import Program
from .exact import Exact
from .ranges import Ranges
from .resolving import Resolver
from .state import State
from .theorem import Theorem

SCALE_BITS = 64


@dataclass(frozen=True, eq=False)
class Context:
    """What every rule reads: the theorem, its (extended) program's ranges, and how values follow from values."""

    theorem: Theorem
    ranges: Ranges
    resolver: Resolver

    @property
    def program(self) -> Program:
        return self.ranges.program


def attention_scale(theorem: Theorem, layer: int) -> tuple[Fraction, Fraction]:
    """A dyadic s, and a bound of |scale - s| / s: 0 for a number, or if d_head is a power of 4.

    With b = SCALE_BITS, 1 / sqrt(d) lies in [s, s + 2^-b] for 2^b s = floor(2^b / sqrt(d)) = isqrt(4^b // d).
    """
    scale = theorem.model.config.scale
    if scale is not None:
        return Fraction(scale), Fraction(0)
    width = theorem.model.config.layers[layer].d_head
    steps = math.isqrt(4**SCALE_BITS // width)
    exact = steps * steps * width == 4**SCALE_BITS
    return Fraction(steps, 2**SCALE_BITS), Fraction(0) if exact else Fraction(1, steps)


def head_of(context: Context, state: State, layer: int, number: int) -> Head:
    theorem = context.theorem
    return Head(theorem.model, layer, number, attention_scale(theorem, layer), theorem.codec.bos, state)


def added(table: dict[int, Exact], node: int, encoding: Exact) -> dict[int, Exact]:
    return {**table, node: table[node] + encoding if node in table else encoding}


def with_bias(state: State, bias: Exact) -> State:
    return replace(state, const=state.const + bias, bos=state.bos + bias)
