"""Strategies for RASP programs: typed, sized, and such that the compiler takes them.

Drawn top down: a production for the wanted kind of value, then its parts with what is left of the size; the first
production of each kind is a leaf, so that programs shrink to `tokens`. Everything is total: aggregates have defaults,
and only numbers are averaged, compared and added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

from hypothesis import note
from hypothesis import strategies as st

from ..compiler.compile import compile as compile_program
from ..compiler.compiled import Compiled
from ..compiler.lower import CompileError
from ..compiler.rasp import (
    AggregateOp,
    Constant,
    Expression,
    IndicesOp,
    Selector,
    SOp,
    TokensOp,
    WidthOp,
    aggregate,
    indices,
    maximum,
    minimum,
    select,
    selector_width,
    tokens,
    where,
)
from ..compiler.structure import nodes_of
from ..models.errors import InputError
from ..models.languages import sequences
from ..models.values import Value
from .program_source import source

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Kind: TypeAlias = Literal["token", "number", "bool"]
T = TypeVar("T")
KINDS: tuple[Kind, ...] = ("token", "number", "bool")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
DEPTH = 2


@dataclass(frozen=True)
class Setting:
    """What the programs are compiled for. `depth`: least and greatest number of nested selections."""

    vocab: tuple[Value, ...]
    max_len: int
    causal: bool
    size: int
    depth: tuple[int, int]
    max_layers: int | None

    @staticmethod
    def of(
        vocab: Iterable[Value],
        max_len: int,
        causal: bool,
        size: int,
        depth: int | tuple[int, int],
        max_layers: int | None,
    ) -> Setting:
        """Raises `InputError` for what no program meets."""
        tokens = sequences(tuple(vocab), max_len).vocab
        ends = (0, depth) if isinstance(depth, int) else tuple(depth)
        limit = 0 if max_layers is None else max_layers
        for name, numbers in (("size", (size,)), ("depth", ends), ("max_layers", (limit,))):
            if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
                raise InputError(f"{name} must be integers of at least 0, got {numbers!r}")
        if len(ends) != 2 or ends[0] > ends[1]:
            raise InputError(f"depth is a number, or the least and the greatest, got {depth!r}")
        if max_layers is not None and ends[0] > max_layers:
            raise InputError(
                f"a program of depth {ends[0]} nests as many selections and needs as many layers, but max_layers is "
                f"{max_layers}: ask for less depth or allow more layers"
            )
        if ends[0] > size:
            raise InputError(f"a program of depth {ends[0]} has at least {ends[0]} operations, but size is {size}")
        setting = Setting(tokens, max_len, causal, size, (ends[0], ends[1]), max_layers)
        simplest(setting)
        return setting


def programs(
    vocab: Iterable[Value],
    max_len: int,
    *,
    size: int = 8,
    depth: int | tuple[int, int] = DEPTH,
    max_layers: int | None = None,
    causal: bool = False,
) -> st.SearchStrategy[SOp]:
    """RASP programs over a vocabulary that compile for sequences of up to `max_len` tokens.

    `size`: the greatest number of s-ops, leaves not counted. `depth`: how many selections may be nested (or the least
    and the greatest number). `max_layers`: of the compiled model. Of a draw that the compiler refuses, or that takes
    more layers, a part is taken that fits: nothing is thrown away. Shrinks to `tokens` (with a least depth, to nested
    counts).
    The falsifying example shows the program as source.
    Raises `InputError` at once for the impossible, such as a depth above the number of layers.
    """
    setting = Setting.of(vocab, max_len, causal, size, depth, max_layers)

    @st.composite
    def program(draw: Draw) -> SOp:
        return fitting(draw, setting)[0]

    return program()


def fitting(draw: Draw, setting: Setting) -> tuple[SOp, Compiled]:
    """A drawn program, or the largest part of it that fits, and its compiled model."""
    drawn = _Drawing(draw, setting).program()
    parts = [node for node in nodes_of(drawn) if isinstance(node, SOp)]
    for part in sorted(parts, key=lambda node: -len(nodes_of(node))):
        fits = depth_of(part) >= setting.depth[0] and operations(part) <= setting.size
        if fits and (compiled := _compiled(part, setting)) is not None:
            break
    else:
        part, compiled = simplest(setting)
    note(f"program: {source(part)}")
    return part, compiled


def _compiled(program: SOp, setting: Setting) -> Compiled | None:
    try:
        found = compile_program(program, vocab=setting.vocab, max_len=setting.max_len, causal=setting.causal)
    except CompileError:
        return None
    layers = len(found.model.config.layers)
    return found if setting.max_layers is None or layers <= setting.max_layers else None


@lru_cache(maxsize=64)
def simplest(setting: Setting) -> tuple[SOp, Compiled]:
    """The first of some programs of the least depth that compiles. Raises `InputError` if none does."""
    depth = setting.depth[0]
    counts = gathers = means = tokens
    for _ in range(depth):
        counts = selector_width(select(counts, counts, "=="))
        gathers = aggregate(select(indices, 0, "=="), gathers, setting.vocab[0])
        means = aggregate(select(tokens, tokens, "=="), means, setting.vocab[0])
    reasons = []
    for program in dict.fromkeys((counts, gathers, means)):
        try:
            found = compile_program(program, vocab=setting.vocab, max_len=setting.max_len, causal=setting.causal)
        except CompileError as error:
            reasons.append(str(error))
            continue
        layers = len(found.model.config.layers)
        if setting.max_layers is None or layers <= setting.max_layers:
            return program, found
        reasons.append(f"{source(program)} takes {layers} layers")
    raise InputError(
        f"no program of depth {depth} over {len(setting.vocab)} tokens and {setting.max_len} positions is known to fit"
        + (f" into {setting.max_layers} layers" if setting.max_layers is not None else "")
        + f": {'; '.join(reasons)}"
    )


def depth_of(program: Expression) -> int:
    """How many selections (aggregates and widths) are nested."""
    depths: dict[Expression, int] = {}
    for node in nodes_of(program):
        below = max((depths[child] for child in _children(node)), default=0)
        depths[node] = below + isinstance(node, (AggregateOp, WidthOp))
    return depths[program]


def operations(program: SOp) -> int:
    """How many s-ops a program has, tokens, indices and constants not counted."""
    leaves = (TokensOp, IndicesOp, Constant)
    return sum(isinstance(node, SOp) and not isinstance(node, leaves) for node in nodes_of(program))


def _children(node: Expression) -> list[Expression]:
    found: list[Expression] = []
    for value in vars(node).values():
        parts = value if isinstance(value, tuple) else (value,)
        found += [part for part in parts if isinstance(part, (SOp, Selector))]
    return found


class _Drawing:
    """One draw. `left`: operations that may still be used; `need`: selections that must still be nested."""

    def __init__(self, draw: Draw, setting: Setting) -> None:
        self.draw = draw
        self.setting = setting
        self.numeric = not isinstance(setting.vocab[0], str)
        self.left = setting.size

    def program(self) -> SOp:
        least, most = self.setting.depth
        return self.sop(self.pick(KINDS), most, least)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.draw(st.integers(0, len(options) - 1))] if len(options) > 1 else options[0]

    def sop(self, kind: Kind, room: int, need: int) -> SOp:
        """Of this kind, with at most `room` and at least `need` nested selections."""
        if kind == "token" and self.numeric:
            kind = "number"
        if self.left <= need and need == 0:
            return self.leaf(kind)
        makers: dict[Kind, list[Callable[[int, int], SOp]]] = {
            "token": [self.gathered_token, self.chosen_token],
            "number": [self.width, self.arithmetic, self.mean, self.gathered_number, self.chosen_number],
            "bool": [self.comparison, self.logic],
        }
        options: list[Callable[[int, int], SOp]] = makers[kind]
        if need:
            selecting = (self.gathered_token, self.width, self.mean, self.gathered_number)
            nested: list[Callable[[int, int], SOp]] = [make for make in options if make in selecting]
            # Without room for more than the selections still needed, only these.
            options = nested if nested and self.left <= need + 1 else options
        elif room == 0:
            flat: dict[Kind, list[Callable[[int, int], SOp]]] = {
                "token": [self.chosen_token],
                "number": [self.arithmetic],
            }
            options = flat.get(kind, options)
        leaf: list[Callable[[int, int], SOp]] = [] if need else [lambda room, need: self.leaf(kind)]
        self.left -= 1
        return self.pick([*leaf, *options])(room, need)

    def leaf(self, kind: Kind) -> SOp:
        if kind == "token":
            return tokens
        if kind == "number":
            return self.pick((tokens, indices) if self.numeric else (indices,))
        if self.numeric:
            return tokens == self.pick(self.setting.vocab)
        return self.pick((tokens == self.pick(self.setting.vocab), indices == self.number()))

    def number(self) -> int:
        return int(self.draw(st.integers(0, 3)))

    # -- maps

    def arithmetic(self, room: int, need: int) -> SOp:
        x = self.sop("number", room, need)
        unary: list[Callable[[SOp, int], SOp]] = [
            lambda s, c: s + c,
            lambda s, c: s - c,
            lambda s, c: c - s,
            lambda s, c: s * c,
            lambda s, c: s % (c + 2),
            lambda s, c: maximum(s, c),
            lambda s, c: minimum(s, c),
            lambda s, c: abs(s - c),
        ]
        if self.draw(st.booleans()) and self.left > 0:
            y = self.sop("number", room, 0)
            binary: list[Callable[[SOp, SOp], SOp]] = [
                lambda s, t: s + t,
                lambda s, t: s - t,
                lambda s, t: maximum(s, t),
                lambda s, t: minimum(s, t),
            ]
            return self.pick(binary)(x, y)
        return self.pick(unary)(x, self.number())

    def comparison(self, room: int, need: int) -> SOp:
        compare: list[Callable[[Any, Any], SOp]] = [
            lambda s, t: s == t,
            lambda s, t: s != t,
            lambda s, t: s < t,
            lambda s, t: s <= t,
        ]
        x = self.sop("number", room, need)
        other = self.sop("number", room, 0) if self.left > 0 and self.draw(st.booleans()) else self.number()
        return self.pick(compare)(x, other)

    def logic(self, room: int, need: int) -> SOp:
        x = self.sop("bool", room, need)
        if self.left <= 0 or not self.draw(st.booleans()):
            return ~x
        y = self.sop("bool", room, 0)
        return self.pick((x & y, x | y))

    def chosen(self, kind: Kind, room: int, need: int) -> SOp:
        then = self.sop(kind, room, need)
        return where(self.sop("bool", room, 0), then, self.sop(kind, room, 0))

    def chosen_token(self, room: int, need: int) -> SOp:
        return self.chosen("token", room, need)

    def chosen_number(self, room: int, need: int) -> SOp:
        return self.chosen("number", room, need)

    # -- selections

    def width(self, room: int, need: int) -> SOp:
        return selector_width(self.selector(room - 1, max(0, need - 1)))

    def mean(self, room: int, need: int) -> SOp:
        value = self.sop("number", room - 1, max(0, need - 1))
        return aggregate(self.selector(room - 1, 0), value, self.number())

    def gathered(self, kind: Kind, room: int, need: int, default: Value) -> SOp:
        value = self.sop(kind, room - 1, max(0, need - 1))
        place: SOp | int = self.sop("number", room - 1, 0) if self.left > 0 else self.number()
        return aggregate(select(indices, place, "=="), value, default)

    def gathered_token(self, room: int, need: int) -> SOp:
        return self.gathered("token", room, need, self.pick(self.setting.vocab))

    def gathered_number(self, room: int, need: int) -> SOp:
        return self.gathered("number", room, need, self.number())

    def selector(self, room: int, need: int) -> Selector:
        if need:
            x = self.sop("number", room, need)
            return select(x, x, self.pick(COMPARISONS))
        simple = [select(tokens, tokens, "=="), select(indices, indices, self.pick(COMPARISONS))]
        if self.left <= 0:
            return self.pick(simple)
        kind = self.draw(st.integers(0, 5))
        self.left -= kind > 1
        if kind <= 1:
            return simple[kind]
        if kind == 2:
            return select(self.sop("number", room, 0), self.sop("number", room, 0), self.pick(COMPARISONS))
        if kind == 3:
            return select(self.sop("bool", room, 0), True, "==")
        one = self.selector(room, 0)
        if kind == 4:
            return ~one
        other = self.selector(room, 0)
        return self.pick((one & other, one | other))
