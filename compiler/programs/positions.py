"""Moving tokens: what stands at another position."""

from __future__ import annotations

from ..core import Value
from ..rasp import SequenceMap, SOp, aggregate, full, indices, length, select, selector_width, tokens
from .counting import number
from .entry import broadcast, entry, letters, named, positive, with_marks
from .idioms import at_flagged, gather, is_first, last, never, same, shifted

Values = list[Value]


@named
def identity() -> SOp:
    """The tokens themselves."""
    return tokens


def _identity(xs: Values) -> Values:
    return list(xs)


@named
def reverse() -> SOp:
    """The sequence reversed."""
    return gather(length - indices - 1, tokens)


def _reverse(xs: Values) -> Values:
    return xs[::-1]


@named
def shift_by(offset: int = 1) -> SOp:
    """The tokens moved `offset` positions to the right (to the left if negative); None where nothing arrives."""
    return shifted(offset, tokens)


def _shift_by(xs: Values, offset: int = 1) -> Values:
    return [xs[i - offset] if 0 <= i - offset < len(xs) else None for i in range(len(xs))]


@named
def next_token() -> SOp:
    """The token to the right; None at the last position."""
    return shifted(-1, tokens)


def _next_token(xs: Values) -> Values:
    return [*xs[1:], None]


@named
def rotate(times: int = 1) -> SOp:
    """The sequence rotated to the right by one position, `times` times."""
    source = selector_width(select(indices, indices, lambda k, q: k < q - 1 if q > 0 else k > 0))
    value: SOp = tokens
    for _ in range(times):
        value = gather(source, value)
    return value


def _rotate(xs: Values, times: int = 1) -> Values:
    return [xs[(i - times) % len(xs)] for i in range(len(xs))]


@named
def token_at(position: int = 0) -> SOp:
    """The token at one given position, everywhere; None for shorter sequences."""
    return gather(full(position), tokens)


def _token_at(xs: Values, position: int = 0) -> Values:
    return broadcast(xs[position] if position < len(xs) else None, xs)


@named
def echo(token: Value = "b") -> SOp:
    """One given token, everywhere, if it occurs; None otherwise."""
    return aggregate(select(tokens, full(token), "=="), tokens)


def _echo(xs: Values, token: Value = "b") -> Values:
    return broadcast(token if token in xs else None, xs)


@named
def last_token() -> SOp:
    """The last token, everywhere."""
    return last(tokens)


def _last_token(xs: Values) -> Values:
    return broadcast(xs[-1], xs)


@named
def equals_first() -> SOp:
    """Whether this position's token is the first one."""
    return selector_width(same & select(indices, full(0), "==")) > 0


def _equals_first(xs: Values) -> Values:
    return [x == xs[0] for x in xs]


@named
def equals_previous() -> SOp:
    """Whether this position's token is the one to the left; false at the first position."""
    return selector_width(same & select(indices, indices, lambda k, q: k + 1 == q)) > 0


def _equals_previous(xs: Values) -> Values:
    return [i > 0 and xs[i - 1] == x for i, x in enumerate(xs)]


@named
def is_palindrome() -> SOp:
    """Whether the sequence reads the same backwards, everywhere."""
    return never(reverse() != tokens)


def _is_palindrome(xs: Values) -> Values:
    return broadcast(xs == xs[::-1], xs)


@named
def swap_neighbours() -> SOp:
    """Positions 0 and 1 exchanged, 2 and 3, …; None where there is no partner."""
    return aggregate(select(indices, indices, lambda k, q: k == q + 1 - 2 * (q % 2)), tokens)


def _swap_neighbours(xs: Values) -> Values:
    swapped: Values = []
    for i in range(0, len(xs), 2):
        swapped += [xs[i + 1], xs[i]] if i + 1 < len(xs) else [None]
    return swapped


@named
def every_second() -> SOp:
    """The tokens at even positions, then None."""
    return aggregate(select(indices, indices, lambda k, q: k == 2 * q), tokens)


def _every_second(xs: Values) -> Values:
    kept = xs[::2]
    return [*kept, *[None] * (len(xs) - len(kept))]


@named
def compact(blank: Value = "_") -> SOp:
    """The tokens that are not blank, in their order, then None."""
    return at_flagged(tokens != blank, indices, tokens)


def _compact(xs: Values, blank: Value = "_") -> Values:
    kept = [x for x in xs if x != blank]
    return [*kept, *[None] * (len(xs) - len(kept))]


@named
def deduplicate() -> SOp:
    """The first occurrence of each token, in their order, then None."""
    return at_flagged(is_first(), indices, tokens)


def _deduplicate(xs: Values) -> Values:
    kept = list(dict.fromkeys(xs))
    return [*kept, *[None] * (len(xs) - len(kept))]


@named
def nested_gather() -> SOp:
    """Each token points at a position; follow it twice. None where it points outside the sequence."""
    pointed = gather(tokens, indices)
    return gather(tokens, pointed)


def _nested_gather(xs: Values) -> Values:
    pointed = [x if number(x) < len(xs) else None for x in xs]
    return [pointed[number(x)] if number(x) < len(xs) else None for x in xs]


@named
def nary_sequencemap() -> SOp:
    """x + y - z of the token twice and the index: a map of three arguments."""
    return SequenceMap(lambda x, y, z: x + y - z, tokens, tokens, indices)


def _nary_sequencemap(xs: Values) -> Values:
    return [2 * number(x) - i for i, x in enumerate(xs)]


@named
def alternate_case() -> SOp:
    """Letters in upper case at even positions, in lower case at odd ones."""
    return SequenceMap(lambda x, even: x.upper() if even else x, tokens, indices % 2 == 0)


def _alternate_case(xs: Values) -> Values:
    return [str(x).upper() if i % 2 == 0 else x for i, x in enumerate(xs)]


_SAME = "list[a] -> list[a]"
_PARTIAL = "list[a] -> list[a | None]"

ENTRIES = (
    entry(identity, _identity, _SAME, letters, "Tracr", "positions"),
    entry(reverse, _reverse, _SAME, letters, "Tracr; Weiss et al. 2021", "positions"),
    entry(shift_by, _shift_by, _PARTIAL, letters, "Tracr", "positions"),
    entry(next_token, _next_token, _PARTIAL, letters, "folklore", "positions"),
    entry(rotate, _rotate, _SAME, letters, "folklore", "positions"),
    entry(token_at, _token_at, _PARTIAL, letters, "folklore", "positions"),
    entry(echo, _echo, "list[str] -> list[str | None]", letters, "Tracr", "positions", "sets"),
    entry(last_token, _last_token, _SAME, letters, "folklore", "positions"),
    entry(equals_first, _equals_first, "list[a] -> list[bool]", letters, "Chiang and Cholak 2022", "positions"),
    entry(equals_previous, _equals_previous, "list[a] -> list[bool]", letters, "folklore", "positions"),
    entry(is_palindrome, _is_palindrome, "list[a] -> list[bool]", letters, "folklore", "positions", "languages"),
    entry(swap_neighbours, _swap_neighbours, _PARTIAL, letters, "folklore", "positions"),
    entry(every_second, _every_second, _PARTIAL, letters, "folklore", "positions"),
    entry(compact, _compact, "list[str] -> list[str | None]", with_marks("_"), "folklore", "positions"),
    entry(deduplicate, _deduplicate, _PARTIAL, letters, "folklore", "positions", "sets"),
    entry(nested_gather, _nested_gather, "list[int] -> list[int | None]", positive, "Tracr, issue 25", "positions"),
    entry(nary_sequencemap, _nary_sequencemap, "list[int] -> list[int]", positive, "Tracr", "maps"),
    entry(alternate_case, _alternate_case, "list[str] -> list[str]", letters, "folklore", "maps"),
)
