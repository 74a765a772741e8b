"""The reference interpreter: exact semantics, agreement with Tracr's recorded outputs, errors that say where."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certiformer.compiler.interpreter import EvaluationError, evaluate, trace
from certiformer.compiler.rasp import (
    Map,
    SequenceMap,
    SOp,
    aggregate,
    full,
    indices,
    length,
    linear,
    select,
    selector_width,
    tokens,
    where,
)
from certiformer.models.errors import InputError

BEFORE = select(indices, indices, "<=")


# Programs of Tracr, written as its library writes them


def hist() -> SOp:
    return selector_width(select(tokens, tokens, "==")).named("hist")


def reverse() -> SOp:
    return aggregate(select(indices, length - indices - 1, "=="), tokens)


def sort_unique(keys: SOp = tokens) -> SOp:
    return aggregate(select(selector_width(select(keys, keys, "<")), indices, "=="), tokens)


def sort_freq() -> SOp:
    return sort_unique(SequenceMap(lambda x, i: x + i / 6, -1 * hist(), indices))


def frac_prevs(truth: SOp) -> SOp:
    return aggregate(BEFORE, truth, default=0).numerical()


def pair_balance(opening: str, closing: str) -> SOp:
    return linear([frac_prevs(tokens == opening), frac_prevs(tokens == closing)], [1, -1])


def shuffle_dyck2() -> SOp:
    round_, curly = pair_balance("(", ")"), pair_balance("{", "}")
    has_negative = aggregate(select(indices, indices, True), (round_ < 0) | (curly < 0), default=0)
    last_zero = aggregate(select(indices, length - 1, "=="), (round_ == 0) & (curly == 0))
    return last_zero & ~has_negative


def shift_by(offset: int, sop: SOp = tokens) -> SOp:
    return aggregate(select(indices, indices, lambda k, q: q == k + offset), sop)


def detect_pattern(pattern: str) -> SOp:
    parts = [shift_by(i, tokens == x) if i else tokens == x for i, x in enumerate(reversed(pattern))]
    found = parts.pop()
    while parts:
        found = found & parts.pop()
    return found


def none_nested() -> SOp:
    selector = select(indices, tokens, "==")
    return aggregate(selector, aggregate(selector, indices))


TRACR: dict[str, Callable[[], SOp]] = {
    "lib_count_a": lambda: selector_width(select(tokens, tokens, lambda k, q: k == "a")),
    "lib_count_less_freq_2": lambda: selector_width(select(hist(), hist(), lambda x, y: x <= 2)),
    "lib_detect_pattern_abc": lambda: detect_pattern("abc"),
    "lib_detect_pattern_ab_causal": lambda: detect_pattern("ab"),
    "lib_frac_prevs": lambda: frac_prevs(tokens == "a"),
    "lib_frac_prevs_causal": lambda: frac_prevs(tokens == "a"),
    "lib_hist": hist,
    "lib_length_categorical": lambda: length,
    "lib_pair_balance": lambda: pair_balance("(", ")"),
    "lib_reverse": reverse,
    "lib_selector_width_causal": lambda: length,
    "lib_shift_by_1": lambda: shift_by(1),
    "lib_shift_by_2_causal": lambda: shift_by(2),
    "lib_shuffle_dyck2": shuffle_dyck2,
    "lib_sort_freq": sort_freq,
    "lib_sort_unique": sort_unique,
    "none_nested_issue25": none_nested,
    "wrong_majority_so_far": lambda: frac_prevs(tokens == "a") > 0.5,
    "wrong_mean_categorical": lambda: aggregate(BEFORE, tokens),
    "wrong_percent_so_far": lambda: Map(lambda x: 100 * x, frac_prevs(tokens == "a")),
}
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "tracr_pairs.json").read_text())


def agrees(value: Any, recorded: Any) -> bool:
    if isinstance(recorded, (int, float)) and isinstance(value, (int, Fraction)):
        return abs(float(value) - recorded) <= 1e-8 * max(1, abs(recorded))
    return type(value) is type(recorded) and bool(value == recorded)


@pytest.mark.parametrize("name", TRACR)
def test_agrees_with_tracr(name: str) -> None:
    program, record = TRACR[name](), RECORDED[name]
    assert len(record["pairs"]) >= 10
    for xs, recorded in record["pairs"]:
        values = evaluate(program, xs, causal=record["causal"])
        assert len(values) == len(recorded)
        assert all(map(agrees, values, recorded)), (xs, values, recorded)


# The rules, one by one


@pytest.mark.parametrize(
    ("selected", "mean"),
    [
        ([3], 3),
        (["a"], "a"),
        (["a", "a"], "a"),
        ([None, None], None),
        ([1, 2], Fraction(3, 2)),
        ([1, 3], 2),
        ([True, False, False], Fraction(1, 3)),
        ([True, True], True),
        ([True, 1], 1),
        ([Fraction(1, 3), Fraction(1, 6)], Fraction(1, 4)),
        ([10**30, 0], 5 * 10**29),
    ],
)
def test_aggregate_takes_the_common_value_or_the_exact_mean(selected: list[Any], mean: Any) -> None:
    result = evaluate(aggregate(select(indices, indices, True), tokens), selected)
    assert result == [mean] * len(selected)
    assert type(result[0]) is type(mean) or mean == 1


def test_aggregate_default_only_where_nothing_is_selected() -> None:
    nothing = select(indices, indices, False)
    assert evaluate(aggregate(nothing, tokens), "ab") == [None, None]
    assert evaluate(aggregate(nothing, tokens, "?"), "ab") == ["?", "?"]
    assert evaluate(aggregate(select(indices, indices, "<"), tokens, 0.5), [7, 8]) == [Fraction(1, 2), 7]


def test_none_is_strict_in_maps_and_never_selected() -> None:
    shifted = shift_by(1)
    assert evaluate(Map(lambda x: "seen", shifted), "ab") == [None, "seen"]
    assert evaluate(SequenceMap(lambda x, y: 1, tokens, shifted), "ab") == [None, 1]
    assert evaluate(where(indices == 0, 1, shift_by(1, indices)), "ab") == [None, 0]
    assert evaluate(linear([indices, shift_by(1, indices)], [1, 2], 5), "abc") == [None, 6, 9]
    for predicate in ("==", "!=", True, lambda k, q: True, lambda k, q: k is None):
        as_key = evaluate(selector_width(select(shifted, tokens, predicate)), "aa")
        as_query = evaluate(selector_width(select(tokens, shifted, predicate)), "aa")
        holds = predicate in ("==", True) or (callable(predicate) and predicate("a", "a"))
        assert as_key == ([1, 1] if holds else [0, 0])
        assert as_query == ([0, 2] if holds else [0, 0])
    assert evaluate(selector_width(~select(shifted, tokens, True)), "aa") == [1, 1]


def test_causal_selectors_see_the_past_and_themselves() -> None:
    everything = select(indices, indices, True)
    assert evaluate(selector_width(everything), "abc", causal=True) == [1, 2, 3]
    assert evaluate(selector_width(~everything), "abc", causal=True) == [0, 0, 0]
    assert evaluate(selector_width(~select(indices, indices, False)), "abc", causal=True) == [1, 2, 3]
    assert evaluate(selector_width(~~everything), "abc", causal=True) == [1, 2, 3]
    assert evaluate(aggregate(select(indices, indices, ">"), tokens), "abc", causal=True) == [None] * 3
    assert evaluate(aggregate(select(indices, indices, ">"), indices), "ab") == [1, None]


def test_causal_predicates_are_not_asked_about_what_is_hidden() -> None:
    program = selector_width(select(tokens, tokens, "<="))
    assert evaluate(aggregate(select(tokens, 1, "=="), tokens), [1, "a"], causal=True) == [1, 1]
    with pytest.raises(EvaluationError):
        evaluate(program, [1, "a"], causal=True)
    keys_behind = select(indices, indices, lambda k, q: 1 / (q - k + 1) > 0)
    assert evaluate(selector_width(keys_behind), "abc", causal=True) == [1, 2, 3]


def test_selectors_combine_pointwise() -> None:
    left, right = select(indices, indices, "<="), select(indices, indices, ">=")
    assert evaluate(selector_width(left & right), "abc") == [1, 1, 1]
    assert evaluate(selector_width(left | right), "abc") == [3, 3, 3]
    assert evaluate(selector_width(~left), "abc") == [2, 1, 0]


def test_predicates_take_the_key_first() -> None:
    assert evaluate(selector_width(select(tokens, indices, "<")), [0, 5]) == [0, 1]
    assert evaluate(selector_width(select(tokens, 3, lambda k, q: k > q)), [4, 5, 1]) == [2, 2, 2]
    assert evaluate(selector_width(select(2, tokens, "<")), [4, 1]) == [2, 0]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_programs_against_plain_python(xs: list[int]) -> None:
    n = len(xs)
    assert evaluate(hist(), xs) == [xs.count(x) for x in xs]
    assert evaluate(reverse(), xs) == xs[::-1]
    assert evaluate(aggregate(BEFORE, tokens), xs) == [Fraction(sum(xs[: i + 1]), i + 1) for i in range(n)]
    ordered = sort_unique(SequenceMap(lambda x, i: x + i / 10, tokens, indices))
    assert evaluate(ordered, xs) == sorted(xs)
    if len(set(xs)) == n:
        assert evaluate(sort_unique(), xs) == sorted(xs)
    assert evaluate(linear([tokens, indices], [2, -1], 3), xs) == [2 * x - i + 3 for i, x in enumerate(xs)]
    prefix = evaluate(hist(), xs, causal=True)
    assert prefix == [xs[: i + 1].count(x) for i, x in enumerate(xs)]


def test_constants_and_bare_inputs() -> None:
    assert evaluate(tokens, "ab") == ["a", "b"]
    assert evaluate(indices, "ab") == [0, 1]
    assert evaluate(full("x"), "ab") == ["x", "x"]
    assert evaluate(aggregate(select(indices, 0, "=="), 7), "ab") == [7, 7]
    assert evaluate(tokens, [0.5, True, None]) == [Fraction(1, 2), True, None]
    assert evaluate(tokens, ("a", 1)) == ["a", 1]


def test_trace_has_every_node() -> None:
    selector = select(tokens, indices, "==")
    width = selector_width(selector)
    values = trace(width, [1, 0])
    assert set(values) == {tokens, indices, selector, width}
    assert values[selector] == [[False, True], [True, False]]
    assert trace(width, [1, 0], causal=True)[selector] == [[False, False], [True, False]]
    assert values[width] == [1, 1]


# Errors


@pytest.mark.parametrize(
    ("program", "xs", "parts"),
    [
        (Map(lambda x: 10 / x, tokens).named("inverse"), [1, 0], ["'inverse'", "position 1", "0", "division by zero"]),
        (tokens + 1, ["a"], ["map x0 + 1", "position 0", "'a'"]),
        (Map({"a": 1}, tokens), ["a", "b"], ["position 1", "no entry for 'b'"]),
        (Map(lambda x: [x], tokens), ["a"], ["list"]),
        (selector_width(select(tokens, tokens, "<")), [1, "a"], ["key < query", "query position 0, key position 1"]),
        (selector_width(select(tokens, tokens, lambda k, q: None)), [1], ["returned None"]),
        (aggregate(select(indices, indices, True), tokens), ["a", "b"], ["'a', 'b'", "only numbers have a mean"]),
        (aggregate(select(indices, indices, True), tokens), [1, None], ["1, None", "only numbers"]),
        (aggregate(select(indices, indices, True), tokens), [1, "1"], ["1, '1'"]),
        (linear([tokens], [2]), ["a"], ["linear 2 * x0", "'a' is not a number"]),
        (tokens * 0 + aggregate(select(tokens, 0, "<"), 1 / tokens, 0), [0], ["division by zero"]),
    ],
)
def test_undefined_values_name_node_place_position_and_values(program: SOp, xs: list[Any], parts: list[str]) -> None:
    with pytest.raises(EvaluationError) as caught:
        evaluate(program, xs)
    message = str(caught.value)
    assert "test_interpreter.py:" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("xs", "part"), [([], "empty"), ("", "empty"), ([[1]], "list"), ([float("nan")], "finite"), ([("a",)], "tuple")]
)
def test_bad_sequences_are_refused(xs: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        evaluate(tokens, xs)


def test_selectors_are_no_programs() -> None:
    with pytest.raises(InputError, match="a program is an s-op"):
        evaluate(select(tokens, tokens, True), "a")  # type: ignore[arg-type]
