"""What every composition rule reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from .attention import Head
from .core import Program
from .exact import Exact
from .format import require
from .ranges import Ranges
from .resolving import Resolver
from .state import State
from .theorem import Theorem


@dataclass(frozen=True, eq=False)
class Context:
    """What every rule reads: the theorem, its (extended) program's ranges, and how values follow from values."""

    theorem: Theorem
    ranges: Ranges
    resolver: Resolver

    @property
    def program(self) -> Program:
        return self.ranges.program


def attention_scale(theorem: Theorem, layer: int) -> Fraction:
    scale = theorem.model.config.scale
    if scale is not None:
        return Fraction(scale)
    root = math.isqrt(theorem.model.config.layers[layer].d_head)
    exact = root * root == theorem.model.config.layers[layer].d_head and root & (root - 1) == 0
    require(exact, "unsupported: composition needs attentionattention_scale as a number, or d_head a power of 4")
    return Fraction(1, root)


def head_of(context: Context, state: State, layer: int, number: int) -> Head:
    theorem = context.theorem
    scale = attention_scale(theorem, layer)
    return Head(theorem.model, layer, number, scale, theorem.codec.bos, state)


def added(table: dict[int, Exact], node: int, encoding: Exact) -> dict[int, Exact]:
    return {**table, node: table[node] + encoding if node in table else encoding}


def with_bias(state: State, bias: Exact) -> State:
    return replace(state, const=state.const + bias, bos=state.bos + bias)
