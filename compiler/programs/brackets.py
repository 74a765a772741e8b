"""Brackets: balances as fractions (as Tracr has them) and as exact counts."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ..core import Value
from ..rasp import Map, SequenceMap, SOp, aggregate, full, indices, select, selector_width, tokens
from .entry import broadcast, entry, fixed, named, with_marks
from .idioms import everywhere, gather, last, marked, never, previous_with, up_to

Values = list[Value]


def _fraction_up_to(token: Value) -> SOp:
    return aggregate(up_to, tokens == token, 0)


def pair_balance(opening: Value = "(", closing: Value = ")") -> SOp:
    """The fraction of opening minus the fraction of closing brackets, up to here."""
    return _fraction_up_to(opening) - _fraction_up_to(closing)


def _pair_balance(xs: Values, opening: Value = "(", closing: Value = ")") -> Values:
    prefixes = [xs[: i + 1] for i in range(len(xs))]
    return [Fraction(prefix.count(opening) - prefix.count(closing), len(prefix)) for prefix in prefixes]


def _balanced(pair: str) -> SOp:
    """Whether one kind of brackets is balanced: never negative, and zero at the end."""
    balance = pair_balance(pair[0], pair[1])
    return last(balance == 0) & never(balance < 0)


def _shuffle(pairs: Sequence[str]) -> SOp:
    verdict, *others = map(_balanced, pairs)
    for other in others:
        verdict = verdict & other
    return verdict


def _closes_in_order(xs: Values, opening: Value, closing: Value) -> bool:
    depth = 0
    for x in xs:
        depth += (x == opening) - (x == closing)
        if depth < 0:
            return False
    return depth == 0


def _shuffle_reference(xs: Values, pairs: Sequence[str]) -> Values:
    return broadcast(all(_closes_in_order(xs, pair[0], pair[1]) for pair in pairs), xs)


@named
def shuffle_dyck1() -> SOp:
    """Whether ( and ) are balanced, everywhere."""
    return _shuffle(["()"])


def _shuffle_dyck1(xs: Values) -> Values:
    return _shuffle_reference(xs, ["()"])


@named
def shuffle_dyck2() -> SOp:
    """Whether () and {} are balanced, each for itself, everywhere."""
    return _shuffle(["()", "{}"])


def _shuffle_dyck2(xs: Values) -> Values:
    return _shuffle_reference(xs, ["()", "{}"])


@named
def shuffle_dyck3() -> SOp:
    """Whether (), [] and {} are balanced, each for itself, everywhere."""
    return _shuffle(["()", "[]", "{}"])


def _shuffle_dyck3(xs: Values) -> Values:
    return _shuffle_reference(xs, ["()", "[]", "{}"])


def _depth(pairs: Sequence[str]) -> SOp:
    opening = Map(lambda x: x in [pair[0] for pair in pairs], tokens)
    closing = Map(lambda x: x in [pair[1] for pair in pairs], tokens)
    return selector_width(marked(opening) & up_to) - selector_width(marked(closing) & up_to)


@named
def bracket_depth() -> SOp:
    """How many ( are open after this position; negative after too many )."""
    return _depth(["()"])


def _bracket_depth(xs: Values) -> Values:
    prefixes = [xs[: i + 1] for i in range(len(xs))]
    return [prefix.count("(") - prefix.count(")") for prefix in prefixes]


@named
def dyck1_bounded(bound: int = 3) -> SOp:
    """Whether ( and ) are balanced and nowhere nested deeper than `bound`, everywhere."""
    depth = _depth(["()"])
    return last(depth == 0) & never(Map(lambda d: not 0 <= d <= bound, depth))


def _dyck1_bounded(xs: Values, bound: int = 3) -> Values:
    depth, good = 0, True
    for x in xs:
        depth += 1 if x == "(" else -1
        good = good and 0 <= depth <= bound
    return broadcast(good and depth == 0, xs)


def _dyck(pairs: Sequence[str], bound: int | None) -> SOp:
    """Brackets of one level alternate; each closing one must meet its kind as the previous bracket of its level."""
    opening = [pair[0] for pair in pairs]
    depth = _depth(pairs)
    outer = depth - Map(lambda x: 1 if x in opening else 0, tokens)
    level = selector_width(select(indices, outer, "<"))  # the outer depth, or 0 where the word is wrong anyway
    partner = gather(previous_with(level), tokens, default="")
    mismatch = SequenceMap(lambda x, p: x not in opening and p + x not in pairs, tokens, partner)
    outside = Map(lambda d: d < 0 or (bound is not None and d > bound), depth)
    return last(depth == 0) & never(outside | mismatch)


def _dyck_reference(xs: Values, pairs: Sequence[str], bound: int | None) -> Values:
    stack: list[Value] = []
    for x in xs:
        if x in [pair[0] for pair in pairs]:
            stack.append(x)
            if bound is not None and len(stack) > bound:
                return broadcast(False, xs)
        elif not stack or f"{stack.pop()}{x}" not in pairs:
            return broadcast(False, xs)
    return broadcast(not stack, xs)


@named
def dyck2() -> SOp:
    """Whether () and [] are properly nested, everywhere."""
    return _dyck(["()", "[]"], None)


def _dyck2(xs: Values) -> Values:
    return _dyck_reference(xs, ["()", "[]"], None)


@named
def dyck2_bounded(bound: int = 3) -> SOp:
    """Whether () and [] are properly nested and nowhere deeper than `bound`, everywhere."""
    return _dyck(["()", "[]"], bound)


def _dyck2_bounded(xs: Values, bound: int = 3) -> Values:
    return _dyck_reference(xs, ["()", "[]"], bound)


def nearly_balanced(tolerance: Fraction = Fraction(1, 4)) -> SOp:
    """Whether the numbers of ( and ) differ by at most `tolerance` of the length, everywhere."""
    surplus = aggregate(everywhere, tokens == "(") - aggregate(everywhere, tokens == ")")
    return Map(lambda s: abs(s) <= tolerance, surplus)


def _nearly_balanced(xs: Values, tolerance: Fraction = Fraction(1, 4)) -> Values:
    return broadcast(abs(xs.count("(") - xs.count(")")) <= tolerance * len(xs), xs)


def _out_of_order() -> SOp:
    return selector_width(select(tokens, tokens, ">") & up_to) > 0


@named
def nested_pairs() -> SOp:
    """Whether the sequence is n times a, then n times b, everywhere."""
    surplus = selector_width(select(tokens, full("a"), "==")) - selector_width(select(tokens, full("b"), "=="))
    return (surplus == 0) & never(_out_of_order())


def _nested_pairs(xs: Values) -> Values:
    half = len(xs) // 2
    return broadcast(xs == ["a"] * half + ["b"] * half, xs)


@named
def abc_blocks() -> SOp:
    """Whether the sequence is n times a, then n times b, then n times c, everywhere."""
    ca, cb, cc = (selector_width(select(tokens, full(token), "==")) for token in "abc")
    return (ca - cb == 0) & (cb - cc == 0) & never(_out_of_order())


def _abc_blocks(xs: Values) -> Values:
    third = len(xs) // 3
    return broadcast(xs == ["a"] * third + ["b"] * third + ["c"] * third, xs)


_DECIDES = "list[str] -> list[bool]"

ENTRIES = (
    entry(pair_balance, _pair_balance, "list[str] -> list[Fraction]", with_marks("(", ")"), "Tracr", "brackets"),
    entry(shuffle_dyck1, _shuffle_dyck1, _DECIDES, fixed(*"()"), "Tracr; Weiss et al. 2021", "brackets", "languages"),
    entry(shuffle_dyck2, _shuffle_dyck2, _DECIDES, fixed(*"(){}"), "Tracr; Weiss et al. 2021", "brackets", "languages"),
    entry(shuffle_dyck3, _shuffle_dyck3, _DECIDES, fixed(*"()[]{}"), "Tracr", "brackets", "languages"),
    entry(bracket_depth, _bracket_depth, "list[str] -> list[int]", with_marks("(", ")"), "folklore", "brackets"),
    entry(dyck1_bounded, _dyck1_bounded, _DECIDES, fixed(*"()"), "Yao et al. 2021", "brackets", "languages"),
    entry(dyck2, _dyck2, _DECIDES, fixed(*"()[]"), "Weiss et al. 2021", "brackets", "languages"),
    entry(dyck2_bounded, _dyck2_bounded, _DECIDES, fixed(*"()[]"), "Yao et al. 2021", "brackets", "languages"),
    entry(nearly_balanced, _nearly_balanced, _DECIDES, with_marks("(", ")"), "folklore", "brackets", "means"),
    entry(nested_pairs, _nested_pairs, _DECIDES, fixed(*"ab"), "Bhattamishra et al. 2020", "counting", "languages"),
    entry(abc_blocks, _abc_blocks, _DECIDES, fixed(*"abc"), "Bhattamishra et al. 2020", "counting", "languages"),
)
