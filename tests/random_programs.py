"""A generator of random typed programs over the whole language.

Typed: a program is meant to be total on its vocabulary (numbers are compared with numbers, only numbers are averaged,
a None is averaged never, divisors are not zero), so a compiler has no excuse to refuse it. `Typed.domain` is a superset
of the values on inputs of up to `MAX_LEN` tokens, where it is small; means have none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any, Literal

from certiformer.compiler.core import Value, canonical, normalise
from certiformer.compiler.rasp import (
    Map,
    MapOp,
    Selector,
    SequenceMap,
    SOp,
    aggregate,
    full,
    indices,
    length,
    linear,
    maximum,
    minimum,
    select,
    selector_width,
    tokens,
    where,
)
from certiformer.testing.program_source import source

from . import random_functions as f

MAX_LEN = 4
NUMBERS: tuple[Value, ...] = (1, 2, 3)
LETTERS: tuple[Value, ...] = ("a", "b", "c")
MAX_DOMAIN = 40
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

Kind = Literal["number", "bool", "string"]


@dataclass(frozen=True, eq=False)
class Typed:
    """An s-op, the kind of its values, whether it may be None, and a superset of its other values (None: unknown)."""

    sop: SOp
    kind: Kind
    nullable: bool
    domain: tuple[Value, ...] | None


@dataclass(frozen=True, eq=False)
class Selection:
    """A selector, what is known of it, and of s-ops at the positions it selects.

    `single`: at most one. `constant`: s-ops that are equal at all of them. `not_none`: s-ops that are not None there.
    """

    selector: Selector
    single: bool
    constant: tuple[Typed, ...] = ()
    not_none: tuple[Typed, ...] = ()


@dataclass(frozen=True)
class Case:
    """A random program with the settings it is read under."""

    seed: int
    program: SOp
    vocab: tuple[Value, ...]
    causal: bool

    @property
    def text(self) -> str:
        return f"seed {self.seed}, vocab {self.vocab}{', causal' if self.causal else ''}: {source(self.program)}"


def case(seed: int) -> Case:
    """The program of a seed: depth 1 to 5, two thirds over numbers, a quarter causal."""
    rng = random.Random(seed)
    vocab = LETTERS if rng.random() < 1 / 3 else NUMBERS
    causal = rng.random() < 1 / 4
    return Case(seed, random_program(rng, 1 + seed % 5, vocab), vocab, causal)


def random_program(rng: random.Random, depth: int, vocab: tuple[Value, ...] = NUMBERS) -> SOp:
    """A program of at most `depth` nested operations over `NUMBERS` or `LETTERS`; `rng` decides everything."""
    made = _Generator(rng, vocab)
    kinds: list[Kind] = ["number", "bool", "string"]
    return made.sop(rng.choices(kinds, (5, 3, 2))[0], depth).sop


class _Generator:
    """Builds typed s-ops; all choices come from `rng`."""

    def __init__(self, rng: random.Random, vocab: tuple[Value, ...]) -> None:
        self.rng = rng
        self.vocab = vocab
        self.strings = isinstance(vocab[0], str)

    def sop(self, kind: Kind, depth: int) -> Typed:
        if depth <= 0:
            return self.leaf(kind)
        table: dict[Kind, list[tuple[int, Callable[[int], Typed]]]] = {
            "number": [
                (5, self.arithmetic),
                (2, self.number_of_one),
                (3, self.number_of_many),
                (2, self.linear),
                (2, lambda d: self.chosen("number", d)),
                (2, lambda d: self.looked_up("number", d)),
                (4, self.width),
                (5, self.mean),
                (2, lambda d: self.gathered("number", d)),
            ],
            "bool": [
                (5, self.comparison),
                (3, self.logic),
                (1, self.membership),
                (2, self.bool_of),
                (1, lambda d: self.looked_up("bool", d)),
                (3, lambda d: self.gathered("bool", d)),
            ],
            "string": [
                (3, lambda d: self.looked_up("string", d)),
                (2, self.named),
                (2, lambda d: self.chosen("string", d)),
                (2, self.string_of_many),
                (4, lambda d: self.gathered("string", d)),
            ],
        }
        weights, makers = zip(*table[kind], strict=True)
        made = self.rng.choices(makers, weights)[0](depth - 1)
        return self.decorated(made)

    def decorated(self, made: Typed) -> Typed:
        """Now and then a name or an encoding hint, which change nothing."""
        roll = self.rng.random()
        if roll < 0.06:
            return replace(made, sop=made.sop.named(f"n{self.rng.randrange(100)}"))
        if roll < 0.12:
            return replace(made, sop=made.sop.categorical())
        if roll < 0.18 and made.kind != "string":
            return replace(made, sop=made.sop.numerical())
        return made

    def child(self, kind: Kind, depth: int) -> Typed:
        """As deep as allowed, or less."""
        if self.rng.random() < 0.08:
            return self.leaf(kind)
        return self.sop(kind, depth if self.rng.random() < 0.5 else self.rng.randint(0, max(depth, 0)))

    def leaf(self, kind: Kind) -> Typed:
        rng = self.rng
        letters = Typed(tokens, "string" if self.strings else "number", False, self.vocab)
        positions = Typed(indices, "number", False, tuple(range(MAX_LEN)))
        if kind == "bool":
            flag = rng.random() < 0.5
            return Typed(full(flag), "bool", False, (flag,)) if rng.random() < 0.05 else self.comparison(0)
        if kind == "string":
            if self.strings and rng.random() < 0.85:
                return letters
            if rng.random() < 0.2:
                letter: Value = rng.choice("abc")
                return Typed(full(letter), "string", False, (letter,))
            x = positions if self.strings else letters
            return self.mapped(Map(f.name, x.sop), "string", [x])
        roll = rng.random()
        if roll < 0.5 and not self.strings:
            return letters
        if roll < 0.88:
            return positions
        if roll < 0.95:
            return Typed(length, "number", False, tuple(range(1, MAX_LEN + 1)))
        number = self.constant()
        return Typed(full(number), "number", False, (normalise(number),))

    def constant(self) -> int | float | Fraction:
        return self.rng.choice((0, 1, 2, 3, -1, 0.5, Fraction(1, 3), 1.5))

    # -- maps -------------------------------------------------------------------------------------------------------

    def mapped(self, sop: SOp, kind: Kind, args: Sequence[Typed]) -> Typed:
        """The type of a map, its domain computed with the function itself."""
        nullable = any(arg.nullable for arg in args)
        domains = [arg.domain for arg in args]
        if not isinstance(sop, MapOp) or any(d is None for d in domains):
            return Typed(sop, kind, nullable, None)
        values: set[Value] = set()
        for combination in product(*(d for d in domains if d is not None)):
            value = sop.function.try_evaluate(combination)
            if not isinstance(value, (bool, int, Fraction, str)):
                return Typed(sop, kind, nullable, None)
            values.add(value)
            if len(values) > MAX_DOMAIN:
                return Typed(sop, kind, nullable, None)
        return Typed(sop, kind, nullable, canonical(values))

    def operated(self, kind: Kind, build: Callable[..., SOp], *operands: Typed) -> Typed:
        """An operation on s-ops given once each, in the order in which the map has its arguments."""
        args: dict[int, Typed] = {}
        for operand in operands:
            args.setdefault(id(operand.sop), operand)
        return self.mapped(build(*(operand.sop for operand in operands)), kind, list(args.values()))

    def arithmetic(self, depth: int) -> Typed:
        x, c = self.child("number", depth), self.constant()
        if self.rng.random() < 0.5:
            unary: list[Callable[[SOp], SOp]] = [
                lambda s: s + c,
                lambda s: c - s,
                lambda s: s * c,
                lambda s: -s,
                lambda s: abs(s),
                lambda s: s // 2,
                lambda s: s % 2,
                lambda s: s % 3,
                lambda s: s / 2,
                lambda s: maximum(s, c),
                lambda s: minimum(s, c),
            ]
            return self.operated("number", self.rng.choice(unary), x)
        y = self.child("number", depth)
        binary: list[Callable[[SOp, SOp], SOp]] = [
            lambda s, t: s + t,
            lambda s, t: s - t,
            lambda s, t: s * t,
            lambda s, t: maximum(s, t),
            lambda s, t: minimum(s, t),
        ]
        if y.domain is not None and 0 not in y.domain:
            binary += [lambda s, t: s / t, lambda s, t: s // t, lambda s, t: s % t]
        return self.operated("number", self.rng.choice(binary), x, y)

    def number_of_one(self, depth: int) -> Typed:
        if self.rng.random() < 0.25:
            x = self.child("string", depth)
            return self.mapped(Map(f.code, x.sop), "number", [x])
        x = self.child("number" if self.rng.random() < 0.8 else "bool", depth)
        functions: list[Callable[..., Any]] = [
            f.rounded,
            f.clip,
            f.sign,
            f.half,
            f.square,
            lambda v: v + 1,
            lambda v: 2 * v - 1,
            lambda v: 1 - v,
        ]
        return self.mapped(Map(self.rng.choice(functions), x.sop), "number", [x])

    def number_of_many(self, depth: int) -> Typed:
        if self.rng.random() < 0.7:
            x, y = self.child("number", depth), self.child("number", depth)
            binary: list[Callable[..., Any]] = [f.if_odd, f.distance, f.ratio, f.first, lambda v, w: 2 * v + w]
            return self.mapped(SequenceMap(self.rng.choice(binary), x.sop, y.sop), "number", [x, y])
        three = [self.child("number", depth) for _ in range(3)]
        function = self.rng.choice((f.mixed, f.middle, f.parity))
        return self.mapped(SequenceMap(function, *(x.sop for x in three)), "number", three)

    def linear(self, depth: int) -> Typed:
        parts = [
            self.child("number" if self.rng.random() < 0.75 else "bool", depth) for _ in range(self.rng.randint(1, 3))
        ]
        coefficients = [self.rng.choice((1, -1, 2, 0.5, Fraction(1, 3), 0)) for _ in parts]
        sop = linear([part.sop for part in parts], coefficients, self.rng.choice((0, 0, 1, -0.5)))
        return Typed(sop, "number", any(part.nullable for part in parts), None)

    def chosen(self, kind: Kind, depth: int) -> Typed:
        condition, then, otherwise = self.child("bool", depth), self.child(kind, depth), self.child(kind, depth)
        return self.operated(kind, where, condition, then, otherwise)

    def looked_up(self, kind: Kind, depth: int) -> Typed:
        """A map by a table."""
        x = self.child(self.rng.choice(("number", "string")), depth)
        if x.domain is None or len(x.domain) > 12:
            x = self.leaf(x.kind)
        assert x.domain is not None
        y = self.leaf("number") if self.rng.random() < 0.25 else None
        if y is not None and y.domain is not None:
            pairs = {(v, w): self.some_value(kind) for v in x.domain for w in y.domain}
            return self.mapped(SequenceMap(pairs, x.sop, y.sop), kind, [x, y])
        return self.mapped(Map({v: self.some_value(kind) for v in x.domain}, x.sop), kind, [x])

    def some_value(self, kind: Kind) -> Value:
        if kind == "number":
            return self.rng.choice((0, 1, 2, -1, Fraction(1, 2)))
        return self.rng.random() < 0.5 if kind == "bool" else self.rng.choice("abc")

    def comparison(self, depth: int) -> Typed:
        operation = self.rng.choice(COMPARISONS)
        operations: dict[str, Callable[[Any, Any], SOp]] = {
            "==": lambda s, t: s == t,
            "!=": lambda s, t: s != t,
            "<": lambda s, t: s < t,
            "<=": lambda s, t: s <= t,
            ">": lambda s, t: s > t,
            ">=": lambda s, t: s >= t,
        }
        build = operations[operation]
        kind: Kind = "string" if self.rng.random() < (0.5 if self.strings else 0.1) else "number"
        x = self.child(kind, depth)
        if self.rng.random() < 0.6:
            constant = self.threshold(x)
            return self.operated("bool", lambda s: build(s, constant), x)
        return self.operated("bool", build, x, self.child(kind, depth))

    def threshold(self, x: Typed) -> Value | float:
        """A constant to compare with; not the extreme ones, so that the comparison says something."""
        if x.kind == "string":
            return self.rng.choice("abc")
        if x.domain and self.rng.random() < 0.8:
            return self.rng.choice(x.domain[1:] or x.domain)
        return self.constant()

    def logic(self, depth: int) -> Typed:
        x = self.child("bool", depth)
        roll = self.rng.random()
        if roll < 0.25:
            return self.operated("bool", lambda s: ~s, x)
        y = self.child("bool", depth)
        if roll < 0.6:
            return self.operated("bool", lambda s, t: s & t, x, y)
        return self.operated("bool", lambda s, t: s | t, x, y)

    def membership(self, depth: int) -> Typed:
        x = self.child(self.rng.choice(("number", "string")), depth)
        values = [self.threshold(x) for _ in range(self.rng.randint(1, 3))]
        return self.operated("bool", lambda s: s.isin(values), x)

    def bool_of(self, depth: int) -> Typed:
        roll = self.rng.random()
        if roll < 0.3:
            x = self.child("number", depth)
            return self.mapped(Map(self.rng.choice((f.is_even, lambda v: v > 0.5)), x.sop), "bool", [x])
        if roll < 0.6:
            three = [self.child("number", depth) for _ in range(3)]
            return self.mapped(SequenceMap(f.between, *(x.sop for x in three)), "bool", three)
        kind: Kind = self.rng.choice(("number", "string", "bool"))
        x, y = self.child(kind, depth), self.child(kind, depth)
        return self.mapped(SequenceMap(lambda v, w: v == w, x.sop, y.sop), "bool", [x, y])

    def named(self, depth: int) -> Typed:
        x = self.child("number", depth)
        return self.mapped(Map(f.name, x.sop), "string", [x])

    def string_of_many(self, depth: int) -> Typed:
        x, y = self.child("string", depth), self.child("string", depth)
        roll = self.rng.random()
        if roll < 0.4 and all(len(str(v)) == 1 for v in (*(x.domain or ("..",)), *(y.domain or ("..",)))):
            return self.mapped(SequenceMap(f.join, x.sop, y.sop), "string", [x, y])
        return self.operated("string", maximum if roll < 0.7 else minimum, x, y)

    # -- selectors and what reads them ------------------------------------------------------------------------------

    def select(self, depth: int) -> Selection:
        roll = self.rng.random()
        if roll < 0.06:
            return Selection(select(tokens, indices, self.rng.random() < 0.7), False)
        if roll < 0.16:
            keys: Typed = self.child("number", depth) if self.strings else Typed(tokens, "number", False, self.vocab)
            queries = self.child("number", depth)
            predicate = self.rng.choice(
                (f.close, f.same_parity, f.following, f.sum_large, lambda key, query: key <= query)
            )
            return Selection(select(keys.sop, queries.sop, predicate), False, (), (keys,))
        if roll < 0.32:
            queries = self.child("number", depth)
            return Selection(select(indices, queries.sop, "=="), True)
        if roll < 0.42:
            return Selection(select(indices, indices, self.rng.choice(("<", "<=", ">=", ">", "!="))), False)
        kind: Kind = "string" if self.rng.random() < (0.6 if self.strings else 0.1) else "number"
        keys, queries = self.child(kind, depth), self.child(kind, depth)
        if kind == "string" and roll < 0.5:
            return Selection(select(keys.sop, queries.sop, f.either_a), False, (), (keys,))
        operation = self.rng.choice(COMPARISONS)
        constant = (keys,) if operation == "==" else ()
        return Selection(select(keys.sop, queries.sop, operation), False, constant, (keys,))

    def selection(self, depth: int) -> Selection:
        one = self.select(depth)
        roll = self.rng.random()
        if roll < 0.62:
            return one
        if roll < 0.7:
            return Selection(~one.selector, False)
        other = self.select(depth)
        if self.rng.random() < 0.2:
            other = Selection(~other.selector, False)
        if roll < 0.86:
            return Selection(
                one.selector & other.selector,
                one.single or other.single,
                (*one.constant, *other.constant),
                (*one.not_none, *other.not_none),
            )
        return Selection(one.selector | other.selector, False)

    def width(self, depth: int) -> Typed:
        return Typed(selector_width(self.selection(depth).selector), "number", False, tuple(range(MAX_LEN + 1)))

    def default(self, kind: Kind) -> Value:
        if self.rng.random() < 0.5:
            return None
        if kind == "number":
            return self.rng.choice((0, 0, 1, -1, Fraction(1, 2)))
        return self.rng.random() < 0.5 if kind == "bool" else self.rng.choice("abc")

    def mean(self, depth: int) -> Typed:
        """Numbers (or bools) that are never None where selected, averaged."""
        chosen = self.selection(depth)
        if chosen.not_none and self.rng.random() < 0.2:
            value = self.rng.choice(chosen.not_none)
        else:
            value = self.child("number" if self.rng.random() < 0.6 else "bool", depth)
        if value.kind == "string" or (value.nullable and value not in chosen.not_none):
            value = self.leaf("number")
        default = self.default("number")
        return Typed(aggregate(chosen.selector, value.sop, default), "number", default is None, None)

    def gathered(self, kind: Kind, depth: int) -> Typed:
        """Values of any kind, None among them, where at most one is selected or all selected are equal."""
        chosen = self.selection(depth)
        constant = [x for x in chosen.constant if x.kind == kind]
        if constant and self.rng.random() < 0.5:
            value = self.rng.choice(constant)
        else:
            if not chosen.single:
                queries = self.child("number", depth)
                chosen = Selection(select(indices, queries.sop, "=="), True)
            value = self.child(kind, depth)
        default = self.default(kind)
        domain = None if value.domain is None else canonical([*value.domain, *([] if default is None else [default])])
        nullable = default is None or value.nullable
        return Typed(aggregate(chosen.selector, value.sop, default), kind, nullable, domain)
