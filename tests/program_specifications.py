"""What the library's programs are to compute, as postconditions and languages: said directly, not as they compute it.

`SPECIFICATIONS[name](program, causal)` is the claim. In a postcondition x is the input and y the output.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import certiformer as cf
from certiformer.compiler.rasp import (
    Map,
    Selector,
    SequenceMap,
    SOp,
    aggregate,
    full,
    indices,
    length,
    select,
    selector_width,
    where,
)
from certiformer.models.automata import build
from certiformer.models.languages import Language, balanced, distinct, occurrences, sorted_sequences
from certiformer.verifier.program_claims import ProgramClaim

Maker = Callable[[SOp, bool], ProgramClaim]
State = TypeVar("State", bound=Hashable)
LENGTHS = range(1, 9)
LETTERS = "abcdefgh"

LEFT = select(indices, indices, "<")
UP_TO = select(indices, indices, "<=")
RIGHT = select(indices, indices, ">")
ALL = select(indices, indices, True)
HERE = select(indices, indices, "==")


def number(selector: Selector) -> SOp:
    return selector_width(selector)


def is_none(y: SOp) -> SOp:
    """Whether the value is None: it then does not select itself."""
    return number(select(y, y, True) & HERE) == 0


def agree(y: SOp, wanted: SOp) -> SOp:
    """Both None, or equal: y selects `wanted` here, or neither selects itself."""
    both = number(select(y, wanted, "==") & HERE) == 1
    return both | (is_none(y) & is_none(wanted))


def at(position: SOp, value: SOp, default: Any = None) -> SOp:
    return aggregate(select(indices, position, "=="), value, default)


def occurs(x: SOp, y: SOp) -> SOp:
    return number(select(x, y, "==")) > 0


def everywhere(y: SOp) -> SOp:
    """The value is the same everywhere, and not None."""
    return number(select(y, y, "==")) == length


def first_with(flag: SOp, y: SOp) -> SOp:
    """y is the least position at which the flag is true."""
    true = select(flag, full(True), "==")
    return (number(true & select(indices, y, "==")) == 1) & (number(true & select(indices, y, "<")) == 0)


def ensures(post: Callable[[SOp, SOp], SOp]) -> Maker:
    return lambda program, causal: cf.Ensures(program, post, causal=causal)


def is_(reference: Callable[[SOp], SOp]) -> Maker:
    """The output equals a program of the input."""
    return lambda program, causal: cf.Equivalent(program, reference(cf.rasp.tokens), causal=causal)


def accepts(language: Language) -> Maker:
    return lambda program, causal: cf.Ensures(program, cf.accepts_exactly(language), causal=causal)


def machine(vocab: Any, start: State, step: Callable[[State, Any], State], accept: Callable[[State], bool]) -> Language:
    """The words that a machine accepts."""
    free = cf.sequences(vocab, LENGTHS)
    return Language(
        free.vocab, free.lengths, build(start, lambda s, t: step(s, free.vocab[t]), accept, len(free.vocab))
    )


def _shuffle(pairs: str) -> Language:
    def step(depths: tuple[int, ...], token: str) -> tuple[int, ...]:
        if min(depths) < 0:
            return depths
        place = pairs.index(token)
        return tuple(d + (1 - 2 * (place % 2)) * (k == place // 2) for k, d in enumerate(depths))

    start = (0,) * (len(pairs) // 2)
    capped = machine(pairs, start, lambda d, t: d if max(d) > 8 else step(d, t), lambda d: not any(d))
    return capped


def _blocks(letters: str) -> Language:
    words = [letter * n for n in range(1, 9) for letter in [letters]]
    good = {"".join(c * (len(word) // len(letters)) for c in letters) for word in words}
    prefixes = {word[:k] for word in good for k in range(len(word) + 1)}
    return machine(letters, "", lambda s, t: s + t if s + t in prefixes else "x", lambda s: s in good)


def _count(condition: Callable[[int, int], bool]) -> Language:
    """Bit sequences by their numbers of zeros and ones."""
    return machine((0, 1), (0, 0), lambda s, t: s if sum(s) > 9 else (s[0] + 1 - t, s[1] + t), lambda s: condition(*s))


def _least(x: SOp, y: SOp) -> SOp:
    return occurs(x, y) & (number(select(x, y, "<")) == 0)


def _greatest(x: SOp, y: SOp) -> SOp:
    return occurs(x, y) & (number(select(x, y, ">")) == 0)


def _kth(k: SOp) -> Callable[[SOp, SOp], SOp]:
    """y is the element of rank k (from 0) in ascending order."""

    def post(x: SOp, y: SOp) -> SOp:
        smaller = number(select(x, y, "<"))
        return occurs(x, y) & (smaller <= k) & (smaller + number(select(x, y, "==")) > k)

    return post


def _or_none(short: SOp, post: Callable[[SOp, SOp], SOp]) -> Callable[[SOp, SOp], SOp]:
    return lambda x, y: where(short, is_none(y), post(x, y))


def _descending(x: SOp, y: SOp) -> SOp:
    return (number(select(y, y, "<") & LEFT) == 0) & ~is_none(y)


def _occurrences(x: SOp) -> SOp:
    return number(select(x, x, "=="))


def _is_first(x: SOp) -> SOp:
    return number(select(x, x, "==") & LEFT) == 0


def _frequent(comparison: str) -> Callable[[SOp, SOp], SOp]:
    """y is the token of the first position whose token no other surpasses."""

    def post(x: SOp, y: SOp) -> SOp:
        best = number(select(_occurrences(x), _occurrences(x), comparison)) == 0
        leader = best & (number(select(best, full(True), "==") & LEFT) == 0)
        return number(select(leader, full(True), "==") & select(x, y, "==")) == 1

    return post


def _left_part(x: SOp, of: str) -> SOp:
    """Whether no separator stands here or to the left."""
    return number(select(x, full(of), "==") & UP_TO) == 0


def _right_part(x: SOp, of: str) -> SOp:
    """Whether a separator stands to the left."""
    return number(select(x, full(of), "==") & LEFT) > 0


def _in_right(x: SOp) -> SOp:
    return number(select(x, x, "==") & select(_right_part(x, "|"), full(True), "==")) > 0


def _stable(x: SOp, y: SOp) -> SOp:
    """y orders the positions by token, then by position, and is a place."""
    wrong = (select(x, x, "<") & select(y, y, ">=")) | (select(x, x, "==") & LEFT & select(y, y, ">="))
    return (number(wrong) == 0) & (number(select(indices, y, "==")) == 1)


def _neighbours(x: SOp, y: SOp) -> SOp:
    other = SequenceMap(lambda i: i + 1 if i % 2 == 0 else i - 1, indices)
    return agree(y, at(other, x))


def _runs_apart(x: SOp) -> SOp:
    """Whether a new run begins here."""
    return ~agree(x, at(indices - 1, x))


def _sorts(x: SOp, y: SOp) -> SOp:
    """The tokens at the positions y ascend, and equal ones stay in their order; y holds no position twice."""
    taken = at(y, x)
    wrong = (select(taken, taken, ">") & LEFT) | (select(taken, taken, "==") & LEFT & select(y, y, ">="))
    return (number(wrong) == 0) & (number(select(y, y, "==")) == 1)


def _gathered(x: SOp, y: SOp, kept: SOp) -> SOp:
    """A kept token stands in the output at the number of kept ones to its left; after these stand Nones."""
    chosen = select(kept, full(True), "==")
    there = number(select(indices, number(chosen & LEFT), "==") & select(y, x, "==")) == 1
    return (there | ~kept) & (is_none(y) == (indices >= number(chosen)))


def _digits(x: SOp) -> SOp:
    """The sum of the two digits of a token such as 1+0."""
    return Map(lambda token: int(token[0]) + int(token[-1]), x)


def _decimal(x: SOp, y: SOp) -> SOp:
    """Each digit of the sum, less the two digits, is the carry, which the position to the right made."""
    carry = (y - _digits(x)) % 10
    return (0 <= y) & (y < 10) & (carry == where(at(indices + 1, _digits(x) + carry, 0) >= 10, 1, 0))


def _pointed(x: SOp) -> SOp:
    """The token, if it is a position."""
    return aggregate(HERE & select(x, length, "<"), x)


def _pairs(x: SOp) -> SOp:
    return SequenceMap(lambda left, here: f"{left}{here}", at(indices - 1, x), x)


def _ends_here(x: SOp, y: SOp) -> SOp:
    """y says whether abc ends here, and is None where that cannot be yet."""
    wanted = (at(indices - 2, x, "") == "a") & (at(indices - 1, x, "") == "b") & (x == "c")
    return where(indices < 2, is_none(y), number(select(y, wanted, "==") & HERE) == 1)


def _run(x: SOp) -> SOp:
    """The number of runs that have begun."""
    return number(select(_runs_apart(x), full(True), "==") & UP_TO)


def _distinct_rank(x: SOp, y: SOp) -> SOp:
    """y is the token with as many distinct smaller ones as its place says; None after the last."""
    first = select(_is_first(x), full(True), "==")
    ordered = occurs(x, y) & (number(first & select(x, y, "<")) == indices)
    return where(indices >= number(first), is_none(y), ordered)


def _unique_rank(x: SOp, y: SOp) -> SOp:
    smaller = number(select(x, x, "<"))
    ordered = occurs(x, y) & (number(select(x, y, "<")) == indices)
    return where(number(select(smaller, indices, "==")) == 0, is_none(y), ordered)


def _by_frequency(x: SOp, y: SOp) -> SOp:
    """A permutation, by descending frequency; equally frequent tokens are ordered as their places were."""
    often = number(select(x, y, "=="))
    wrong = select(often, often, "<") & LEFT
    nth = number(select(y, y, "==") & LEFT)  # this is the nth copy of its token
    origin = aggregate(select(x, y, "==") & select(number(select(x, x, "==") & LEFT), nth, "=="), indices)
    swapped = select(often, often, "==") & LEFT & select(origin, origin, ">")
    return (number(wrong) == 0) & (number(swapped) == 0) & cf.is_permutation(x, y)


def _compared(x: SOp) -> SOp:
    """The first different digit decides."""
    left, right = (Map(lambda token, k=k: token[k], x) for k in (0, -1))
    apart = left != right
    first = apart & (number(select(apart, full(True), "==") & LEFT) == 0)
    less = number(select(first & (left < right), full(True), "==")) > 0
    more = number(select(first & (left > right), full(True), "==")) > 0
    return where(less, "<", where(more, ">", "="))


def _previous(x: SOp) -> SOp:
    """The last position to the left with this token: the one after which (up to here) it does not occur."""
    left = number(select(x, x, "==") & LEFT)
    return aggregate(select(x, x, "==") & LEFT & select(left, left, lambda k, q: k + 1 == q), indices)


def _back(x: SOp, y: SOp) -> SOp:
    first = _is_first(x)
    back = at(indices - y, x)
    nearer = number(select(x, x, "==") & LEFT & select(indices, indices - y, ">"))
    return where(first, y == 0, (y > 0) & agree(back, x) & (nearer == 0))


def _total(x: SOp, where_: Selector) -> SOp:
    """The sum of the tokens there, as their mean times their number."""
    return aggregate(where_, x, 0) * number(where_)


def _middle(x: SOp, y: SOp, sign: int = 1) -> SOp:
    """y is the mean (or difference) of a token that none exceeds and one that exceeds none."""
    top = aggregate(select(number(select(x, x, ">")), full(0), "=="), x)
    low = aggregate(select(number(select(x, x, "<")), full(0), "=="), x)
    return 2 * y == top + low if sign > 0 else y == top - low


def _near(x: SOp) -> SOp:
    surplus = number(select(x, full("("), "==")) - number(select(x, full(")"), "=="))
    return (4 * surplus <= length) & (-4 * surplus <= length)


def _only(x: SOp, flag: SOp) -> SOp:
    return aggregate(HERE & select(flag, full(True), "=="), x)


def _window(width: int) -> Selector:
    return UP_TO & select(indices, indices, lambda k, q: k > q - width)


SPECIFICATIONS: dict[str, Maker] = {
    "abc_blocks": accepts(_blocks("abc")),
    "all_distinct": accepts(distinct(LETTERS, LENGTHS)),
    "alternate_case": is_(lambda x: SequenceMap(lambda t, i: t.upper() if i % 2 == 0 else t, x, indices)),
    "argmax": ensures(lambda x, y: first_with(number(select(x, x, ">")) == 0, y)),
    "argmin": ensures(lambda x, y: first_with(number(select(x, x, "<")) == 0, y)),
    "argsort": ensures(lambda x, y: (number(select(indices, y, "==") & select(y, y, True)) == 1) & _sorts(x, y)),
    "bracket_depth": is_(
        lambda x: number(select(x, full("("), "==") & UP_TO) - number(select(x, full(")"), "==") & UP_TO)
    ),
    "add_decimal": ensures(_decimal),
    "nested_gather": ensures(lambda x, y: agree(y, at(x, _pointed(x)))),
    "add_binary": is_(lambda x: (_digits(x) + cf.programs.carries()) % 2),
    "carries": ensures(lambda x, y: y == (at(indices - 1, _digits(x) + y, 0) >= 2)),
    "compare_binary": is_(_compared),
    "count_bigram": is_(lambda x: number(select(_pairs(x), _pairs(x), "=="))),
    "detect_pattern": ensures(_ends_here),
    "increment": is_(lambda x: where(number(select(x, full(0), "==") & RIGHT) == 0, 1 - x, x)),
    "negate": is_(lambda x: where(number(select(x, full(1), "==") & RIGHT) > 0, 1 - x, x)),
    "run_length": is_(lambda x: number(select(_run(x), _run(x), "=="))),
    "run_position": ensures(lambda x, y: y == where(_runs_apart(x), 1, at(indices - 1, y, 0) + 1)),
    "sort_distinct": ensures(_distinct_rank),
    "sort_freq": ensures(_by_frequency),
    "sort_unique": ensures(_unique_rank),
    "contains": accepts(occurrences("a", LETTERS, LENGTHS, 1)),
    "contains_pattern": accepts(
        machine(
            LETTERS,
            "",
            lambda s, t: s if s == "ab" else ("ab" if s + t == "ab" else "a" if t == "a" else ""),
            lambda s: s == "ab",
        )
    ),
    "count": ensures(lambda x, y: everywhere(y) & (y == number(select(x, full("a"), "==")))),
    "count_distinct": ensures(lambda x, y: y == number(select(_is_first(x), full(True), "=="))),
    "count_less_freq": is_(lambda x: number(select(_occurrences(x), full(2), "<="))),
    "count_records": is_(lambda x: number(select(number(select(x, x, ">=") & LEFT) == 0, full(True), "==") & LEFT)),
    "count_runs": is_(lambda x: number(select(_runs_apart(x), full(True), "=="))),
    "compact": ensures(lambda x, y: _gathered(x, y, ~(x == "_"))),
    "deduplicate": ensures(lambda x, y: _gathered(x, y, _is_first(x))),
    "dense_rank": is_(lambda x: number(select(x, x, "<") & select(_is_first(x), full(True), "=="))),
    "difference": ensures(lambda x, y: y + at(indices - 1, x, 0) == x),
    "divisible_by_three": accepts(machine((0, 1), 0, lambda s, t: (2 * s + t) % 3, lambda s: s == 0)),
    "double_hist": is_(
        lambda x: number(select(_occurrences(x), _occurrences(x), "==") & select(_is_first(x), full(True), "=="))
    ),
    "dyck1_bounded": accepts(balanced([("(", ")")], 3, LENGTHS)),
    "dyck2": accepts(balanced([("(", ")"), ("[", "]")], 4, LENGTHS)),
    "dyck2_bounded": accepts(balanced([("(", ")"), ("[", "]")], 3, LENGTHS)),
    "echo": ensures(
        lambda x, y: where(occurs(x, full("b")), number(select(y, full("b"), "==") & HERE) == 1, is_none(y))
    ),
    "equals_first": is_(lambda x: number(select(x, x, "==") & select(indices, full(0), "==")) == 1),
    "equals_previous": is_(
        lambda x: number(select(x, x, "==") & select(indices, indices, lambda k, q: q - k == 1)) == 1
    ),
    "every_second": ensures(lambda x, y: agree(y, at(2 * indices, x))),
    "frac_before": ensures(
        lambda x, y: where(indices == 0, y == 0, y * indices == number(select(x, full("b"), "==") & LEFT))
    ),
    "frac_prevs": ensures(lambda x, y: y * number(UP_TO) == number(select(x, full("a"), "==") & UP_TO)),
    "gap": ensures(lambda x, y: _back(x, y)),
    "gray_code": is_(lambda x: (x + at(indices - 1, x, 0)) % 2),
    "has_duplicate": is_(lambda x: number(select(x, x, "==") & ~HERE) > 0),
    "hist": is_(_occurrences),
    "histogram": ensures(lambda x, y: y == number(select(x, indices, "=="))),
    "identity": is_(lambda x: x),
    "induction": ensures(lambda x, y: agree(y, at(_previous(x) + 1, x))),
    "inversions": is_(lambda x: number(select(x, x, ">") & LEFT)),
    "is_first_occurrence": is_(_is_first),
    "is_last_occurrence": is_(lambda x: number(select(x, x, "==") & RIGHT) == 0),
    "is_palindrome": is_(lambda x: number(select(agree(x, at(length - 1 - indices, x)), full(False), "==")) == 0),
    "is_record": is_(lambda x: number(select(x, x, ">=") & LEFT) == 0),
    "is_sorted": accepts(sorted_sequences(range(8), LENGTHS)),
    "is_subset": is_(lambda x: number(select(_left_part(x, "|") & ~_in_right(x), full(True), "==")) == 0),
    "is_unique": is_(lambda x: number(select(x, x, "==") & ~HERE) == 0),
    "kth_smallest": ensures(_or_none(length < 3, _kth(full(2)))),
    "last_token": is_(lambda x: aggregate(select(indices, length, lambda k, q: k + 1 == q), x)),
    "leading_zeros": is_(lambda x: number(select(number(select(x, full(1), "==") & UP_TO), full(0), "=="))),
    "least_frequent": ensures(_frequent("<")),
    "length": is_(lambda x: number(select(x, x, "==")) + number(select(x, x, "!="))),
    "majority": accepts(_count(lambda zeros, ones: ones > zeros)),
    "majority_so_far": is_(
        lambda x: number(select(x, full("a"), "==") & UP_TO) > number(select(x, full("a"), "!=") & UP_TO)
    ),
    "maximum": ensures(_greatest),
    "mean": ensures(lambda x, y: y * length == _total(x, ALL)),
    "median": ensures(_kth(Map(lambda n: (n - 1) // 2, length))),
    "midrange": ensures(lambda x, y: _middle(x, y)),
    "minimum": ensures(_least),
    "most_frequent": ensures(_frequent(">")),
    "nary_sequencemap": is_(lambda x: x + x - indices),
    "nary_ratio": ensures(lambda x, y: y * x == indices * indices),
    "nearly_balanced": is_(lambda x: _near(x)),
    "nested_pairs": accepts(_blocks("ab")),
    "next_token": ensures(lambda x, y: agree(y, at(indices + 1, x))),
    "no_three_zeros": accepts(
        machine((0, 1), 0, lambda s, t: 3 if s == 3 else s + 1 if t == 0 else 0, lambda s: s < 3)
    ),
    "pair_balance": ensures(
        lambda x, y: (
            y * number(UP_TO) == number(select(x, full("("), "==") & UP_TO) - number(select(x, full(")"), "==") & UP_TO)
        )
    ),
    "parity": accepts(_count(lambda zeros, ones: ones % 2 == 1)),
    "percent_so_far": ensures(lambda x, y: y * number(UP_TO) == 100 * number(select(x, full("a"), "==") & UP_TO)),
    "prefix_count": is_(lambda x: number(select(x, x, "==") & UP_TO)),
    "prefix_count_of": is_(lambda x: number(select(x, full("a"), "==") & UP_TO)),
    "prefix_length": is_(lambda x: indices + 1),
    "prefix_parity": ensures(lambda x, y: y == (at(indices - 1, y, 0) + x) % 2),
    "previous_occurrence": ensures(lambda x, y: agree(y, _previous(x))),
    "rank": is_(lambda x: number(select(x, x, "<"))),
    "remaining_count": is_(lambda x: number(select(x, x, "==") & RIGHT)),
    "reverse": ensures(lambda x, y: agree(x, at(length - 1 - indices, y))),
    "reverse_by_sort": ensures(lambda x, y: agree(x, at(length - 1 - indices, y))),
    "reverse_by_sort_unique": ensures(lambda x, y: agree(x, at(length - 1 - indices, y))),
    "rotate": ensures(lambda x, y: agree(y, at(where(indices > 0, indices - 1, length - 1), x))),
    "running_maximum": ensures(
        lambda x, y: (number(select(x, y, "==") & UP_TO) > 0) & (number(select(x, y, ">") & UP_TO) == 0)
    ),
    "running_mean": ensures(lambda x, y: y * number(UP_TO) == _total(x, UP_TO)),
    "second_maximum": ensures(_or_none(length < 2, _kth(length - 2))),
    "shift_by": ensures(lambda x, y: agree(y, at(indices - 1, x))),
    "shuffle_dyck1": accepts(balanced([("(", ")")], 4, LENGTHS)),
    "shuffle_dyck2": accepts(_shuffle("(){}")),
    "shuffle_dyck3": accepts(_shuffle("()[]{}")),
    "smallest_missing": ensures(
        lambda x, y: (
            (number(select(x, y, "==")) == 0)
            & (number(select(_is_first(x), full(True), "==") & select(x, y, "<")) == y)
        )
    ),
    "set_difference": ensures(lambda x, y: agree(y, _only(x, _left_part(x, "|") & ~_in_right(x)))),
    "set_intersection": ensures(lambda x, y: agree(y, _only(x, _left_part(x, "|") & _in_right(x)))),
    "sort": ensures(lambda x, y: cf.is_sorted(x, y) & cf.is_permutation(x, y)),
    "sort_descending": ensures(lambda x, y: _descending(x, y) & cf.is_permutation(x, y)),
    "spread": ensures(lambda x, y: _middle(x, y, -1)),
    "stable_rank": ensures(_stable),
    "swap_neighbours": ensures(_neighbours),
    "token_at": ensures(lambda x, y: agree(y, aggregate(select(indices, full(0), "=="), x))),
    "window_count": is_(lambda x: number(select(x, full("a"), "==") & _window(3))),
    "window_mean": ensures(lambda x, y: y * number(_window(3)) == _total(x, _window(3))),
    "window_sum": is_(lambda x: _total(x, _window(3))),
}
