"""Regular expressions over tokens: `token(s)`, `any_token()`, and `+`, `|`, `star`, `repeat` to combine them."""

from __future__ import annotations

from dataclasses import dataclass

from .automata import Automaton, build
from .errors import InputError
from .values import Value, as_value

MAX_PARTS = 20_000


@dataclass(frozen=True)
class OneOf:
    """One token among `tokens`, or (`tokens` None) any one of the vocabulary but `excluded`."""

    tokens: tuple[Value, ...] | None
    excluded: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Concat:
    """The parts, one after another; of no parts: the empty word."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True)
class Union:
    """Any of the parts; of no parts: no word."""

    parts: tuple[Pattern, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` copies of the part (`most` None: any number)."""

    part: Pattern
    least: int
    most: int | None


@dataclass(frozen=True)
class Pattern:
    """A regular expression; `p + q` is p then q, `p | q` is either."""

    node: OneOf | Concat | Union | Repeat

    def __add__(self, other: Pattern) -> Pattern:
        return concat(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return union(self, other)


def token(*tokens: Value) -> Pattern:
    """Any one of the given tokens."""
    if not tokens:
        raise InputError("token() needs at least one token; any_token() is all of them")
    return Pattern(OneOf(tuple(as_value(value) for value in tokens)))


def any_token(*, but: tuple[Value, ...] = ()) -> Pattern:
    """Any one token of the vocabulary, except those in `but`."""
    return Pattern(OneOf(None, tuple(as_value(value) for value in but)))


def concat(*parts: Pattern) -> Pattern:
    return Pattern(Concat(tuple(_pattern(part) for part in parts)))


def union(*parts: Pattern) -> Pattern:
    return Pattern(Union(tuple(_pattern(part) for part in parts)))


def star(part: Pattern) -> Pattern:
    """Any number of copies, none among them."""
    return Pattern(Repeat(_pattern(part), 0, None))


def repeat(part: Pattern, least: int, most: int | None = -1) -> Pattern:
    """`least` to `most` copies; exactly `least` if `most` is not given, at least so many if it is None."""
    most = least if most == -1 else most
    for name, bound in (("least", least), ("most", most)):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
            raise InputError(f"repeat's {name} must be an integer of at least 0, got {bound!r}")
    if most is not None and most < least:
        raise InputError(f"repeat's most must be at least its least, got {least} to {most}")
    return Pattern(Repeat(_pattern(part), least, most))


def _pattern(part: object) -> Pattern:
    if not isinstance(part, Pattern):
        raise InputError(f"a pattern is made by token, any_token, concat, union, star or repeat; got {part!r}")
    return part


def pattern_automaton(pattern: Pattern, vocab: tuple[Value, ...]) -> Automaton:
    """The minimal automaton of a pattern: positions and their followers (Glushkov), then subsets.

    Raises `InputError` for tokens outside the vocabulary, and for patterns beyond MAX_PARTS tokens.
    """
    index = {value: symbol for symbol, value in enumerate(vocab)}
    symbols: list[frozenset[int]] = []
    followers: list[set[int]] = []

    def position(part: OneOf) -> int:
        for value in (*(part.tokens or ()), *part.excluded):
            if value not in index:
                raise InputError(f"the pattern uses {value!r}, which is not in the vocabulary {vocab[:12]!r}")
        chosen = vocab if part.tokens is None else part.tokens
        symbols.append(frozenset(index[value] for value in chosen if value not in part.excluded))
        followers.append(set())
        if len(symbols) > MAX_PARTS:
            raise InputError(f"the pattern expands to more than {MAX_PARTS} tokens; use smaller repeats")
        return len(symbols) - 1

    def sequence(parts: list[_Ends]) -> _Ends:
        total = _Ends(True, frozenset(), frozenset())
        for part in parts:
            for last in total.last:
                followers[last] |= part.first
            total = _Ends(
                total.empty and part.empty,
                total.first | part.first if total.empty else total.first,
                total.last | part.last if part.empty else part.last,
            )
        return total

    def ends(pattern: Pattern) -> _Ends:
        match pattern.node:
            case OneOf() as choice:
                only = frozenset({position(choice)})
                return _Ends(False, only, only)
            case Concat(parts):
                return sequence([ends(inner) for inner in parts])
            case Union(parts):
                found = [ends(inner) for inner in parts]
                return _Ends(
                    any(e.empty for e in found),
                    frozenset().union(*(e.first for e in found)),
                    frozenset().union(*(e.last for e in found)),
                )
            case Repeat(part, least, most):
                required = [ends(part) for _ in range(least)]
                if most is not None:
                    extra = [ends(part) for _ in range(most - least)]
                    return sequence(required + [_Ends(True, e.first, e.last) for e in extra])
                loop = ends(part)
                for last in loop.last:
                    followers[last] |= loop.first
                return sequence([*required, _Ends(True, loop.first, loop.last)])

    whole = ends(_pattern(pattern))
    start = -1

    def step(state: frozenset[int], symbol: int) -> frozenset[int]:
        after: set[int] = set()
        for place in state:
            after |= whole.first if place == start else followers[place]
        return frozenset(place for place in after if symbol in symbols[place])

    def accept(state: frozenset[int]) -> bool:
        return bool(state & whole.last) or (start in state and whole.empty)

    return build(frozenset({start}), step, accept, len(vocab))


@dataclass(frozen=True)
class _Ends:
    """Whether a part matches the empty word, and the positions its words can begin and end with."""

    empty: bool
    first: frozenset[int]
    last: frozenset[int]
