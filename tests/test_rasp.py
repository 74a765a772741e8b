"""The language: nodes, operators, structure."""

from __future__ import annotations

import operator
import random
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.compiler import rasp
from certiformer.compiler.functions import Function
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.rasp import (
    Map,
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
from certiformer.compiler.structure import canonicalise, children, nodes_of, structural_key
from certiformer.models.errors import InputError

NUMBERS = [-3, -1, 0, 1, 2, 5, Fraction(1, 3), Fraction(-7, 2), True, False]


# Operators


@pytest.mark.parametrize("constant", [2, Fraction(1, 2), True, -3])
@pytest.mark.parametrize(
    "op", [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.lt, operator.le,
           operator.gt, operator.ge, operator.eq, operator.ne]
)  # fmt: skip
def test_operators_mean_what_python_means(op: Any, constant: Any) -> None:
    xs = [x for x in NUMBERS if x]
    assert evaluate(op(tokens, constant), xs) == [op(x, constant) for x in xs]
    assert evaluate(op(constant, tokens), xs) == [op(constant, x) for x in xs]
    assert evaluate(op(tokens, tokens + constant + 10), xs) == [op(x, x + constant + 10) for x in xs]


def test_division_is_exact() -> None:
    assert evaluate(tokens / 3, [1, 2, 3]) == [Fraction(1, 3), Fraction(2, 3), 1]
    assert evaluate(1 / tokens, [3, True]) == [Fraction(1, 3), 1]
    assert evaluate(tokens / (indices + 1), [1, 1, 1]) == [1, Fraction(1, 2), Fraction(1, 3)]
    assert isinstance(evaluate(tokens / 3, [3])[0], int)


def test_unary_and_choice() -> None:
    assert evaluate(-tokens, [1, -2]) == [-1, 2]
    assert evaluate(+tokens, [1]) == [1]
    assert evaluate(abs(tokens), [1, -2]) == [1, 2]
    assert evaluate(tokens**2, [3, -2]) == [9, 4]
    assert evaluate(2**tokens, [3, -1]) == [8, Fraction(1, 2)]
    assert evaluate(minimum(tokens, indices, 1), [5, 5, 0]) == [0, 1, 0]
    assert evaluate(maximum(tokens, 1), [5, 0]) == [5, 1]
    assert evaluate(where(tokens > 1, "big", tokens), [0, 2]) == [0, "big"]
    assert evaluate(tokens.isin(["a", "b"]), "abc") == [True, True, False]
    assert evaluate(tokens.isin([]), "ab") == [False, False]


def test_booleans_combine_as_in_tracr() -> None:
    big, odd = tokens > 1, tokens % 2 == 1
    xs = [0, 1, 2, 3]
    assert evaluate(big & odd, xs) == [False, False, False, True]
    assert evaluate(big | odd, xs) == [False, True, True, True]
    assert evaluate(~big, xs) == [True, True, False, False]
    assert evaluate(True & big, xs) == evaluate(big & True, xs) == evaluate(big, xs)
    assert evaluate(False | big, xs) == evaluate(big, xs)


def test_constants_stand_inside_the_function_and_a_repeated_operand_is_one_argument() -> None:
    node = tokens + 3
    assert isinstance(node, rasp.MapOp)
    assert node.args == (tokens,) or node.args[0] is tokens
    assert node.function.text == "x0 + 3"
    double = tokens + tokens
    assert isinstance(double, rasp.MapOp)
    assert len(double.args) == 1
    assert double.function.affine() == ((2,), 0)


def test_numpy_numbers_work_on_either_side() -> None:
    assert evaluate(np.int64(3) + tokens, [1]) == [4]
    assert evaluate(tokens * np.float64(0.5), [1]) == [Fraction(1, 2)]
    assert isinstance(np.int64(3) == tokens, SOp)


@pytest.mark.parametrize(
    ("build", "coefficients", "constant"),
    [
        (lambda a, b: a + b, (1, 1), 0),
        (lambda a, b: a - b, (1, -1), 0),
        (lambda a, b: 2 * a, (2,), 0),
        (lambda a, b: a * 2, (2,), 0),
        (lambda a, b: a / 2, (Fraction(1, 2),), 0),
        (lambda a, b: -a, (-1,), 0),
        (lambda a, b: 5 - a, (-1,), 5),
        (lambda a, b: a + Fraction(1, 3), (1,), Fraction(1, 3)),
    ],
)
def test_affine_operators_are_recognised(build: Any, coefficients: Any, constant: Any) -> None:
    node = build(tokens, indices)
    assert isinstance(node, rasp.MapOp)
    assert node.function.affine() == (coefficients, constant)


@pytest.mark.parametrize("node", [tokens * indices, 1 / tokens, tokens + "a", tokens // 2, abs(tokens), tokens / 0])
def test_others_are_not_affine(node: Any) -> None:
    assert node.function.affine() is None


# What goes wrong, says so


def test_truth_values_of_sops_and_selectors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"& \| ~"):
        bool(tokens == "a")
    with pytest.raises(TypeError, match="no truth value"):
        assert tokens in [indices]
    with pytest.raises(TypeError, match="selectors with"):
        bool(select(tokens, tokens, "=="))
    with pytest.raises(TypeError, match="map x0 < 3"):
        _ = 0 < tokens < 3 if (tokens < 3) else None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tokens == None, "None cannot be an operand"),  # noqa: E711
        (lambda: tokens + [1], "neither an s-op nor a value"),
        (lambda: tokens + float("nan"), "finite"),
        (lambda: full(float("inf")), "finite"),
        (lambda: tokens + select(tokens, tokens, True), "is a selector"),
        (lambda: aggregate(tokens, tokens), "needs a selector"),  # type: ignore[arg-type]
        (lambda: selector_width(tokens), "needs a selector"),  # type: ignore[arg-type]
        (lambda: select(tokens, tokens, "==") & tokens, "needs a selector"),  # type: ignore[operator]
        (lambda: select(tokens, tokens, "=<"), "a predicate is one of '=='"),
        (lambda: select(tokens, tokens, lambda k: True), "called with 2 arguments"),
        (lambda: Map(lambda x, y: x, tokens), "called with 1 argument"),
        (lambda: SequenceMap(lambda x: x, tokens, indices), "called with 2 arguments"),
        (lambda: SequenceMap(lambda: 1), "at least one s-op"),
        (lambda: Map(3, tokens), "needs a callable"),
        (lambda: Map({("a", "b"): 1}, tokens), "1-tuples"),
        (lambda: Map({"a": [1]}, tokens), "cannot be used"),
        (lambda: linear([tokens], [1, 2]), "one coefficient"),
        (lambda: linear([tokens], ["a"]), "must be a number"),  # type: ignore[list-item]
        (lambda: minimum(1, 2), "at least one s-op"),
        (lambda: SequenceMap(Function.of(abs, 1), tokens, tokens), "takes 1 arguments"),
    ],
)
def test_bad_input_is_refused_with_a_reason(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


# Nodes


def test_nodes_are_immutable_and_compared_by_identity() -> None:
    with pytest.raises(FrozenInstanceError):
        tokens.name = "x"  # type: ignore[misc]
    assert len({tokens, indices, tokens, tokens + 1, tokens + 1}) == 4


def test_names_places_and_encodings() -> None:
    node = (tokens + 1).named("next")
    assert node.name == "next"
    assert node.where.startswith("test_rasp.py:")
    assert rasp.describe(node) == f"'next' (map x0 + 1, {node.where})"
    assert node.numerical().encoding == "numerical"
    assert node.categorical().encoding == "categorical"
    assert node.numerical().where == node.where
    assert select(tokens, indices, "<").where.startswith("test_rasp.py:")
    assert "key < query" in rasp.describe(select(tokens, indices, "<"))
    assert repr(tokens) == "<tokens>"
    assert repr(full("a")).startswith("<full 'a'")
    for op in nodes_of(aggregate(~(select(tokens, 1, "<") & select(indices, 2, ">")), linear([tokens], [2]), "x")):
        assert rasp.describe(op)


def test_length_is_the_width_of_the_true_selector() -> None:
    assert evaluate(length, "abc") == [3, 3, 3]
    assert evaluate(length, "abc", causal=True) == [1, 2, 3]


# Structure


def named_function(x: Any) -> Any:
    return 1 if x == 1 else 0


def test_nodes_come_after_what_they_read_and_once() -> None:
    shared = tokens + 1
    program = shared * shared + aggregate(select(shared, indices, "=="), shared)
    order = nodes_of(program)
    assert len(order) == len(set(order))
    assert order[-1] is program
    position = {node: k for k, node in enumerate(order)}
    assert all(position[child] < position[node] for node in order for child in children(node))


def test_deep_programs_need_no_deep_stack() -> None:
    program: SOp = tokens
    for _ in range(5_000):
        program = program + 1
    assert evaluate(program, [0]) == [5_000]
    assert len(structural_key(program)) == 5_001
    assert len(nodes_of(canonicalise(program))) == 5_001


def test_doubly_shared_programs_are_walked_once() -> None:
    program: SOp = tokens
    for _ in range(100):
        program = SequenceMap(lambda x, y: x + y, program, program)
    assert evaluate(program, [1]) == [2**100]


def hist() -> SOp:
    return selector_width(select(tokens, tokens, "=="))


def test_canonicalise_merges_equal_structure() -> None:
    program = (hist() + Map(lambda x: x + 1, hist().named("hist"))) * (tokens + 1)
    merged = canonicalise(program)
    widths = [node for node in nodes_of(merged) if isinstance(node, rasp.WidthOp)]
    assert len(widths) == 1
    assert widths[0].name == "hist"
    assert evaluate(merged, [3, 3, 1]) == evaluate(program, [3, 3, 1])
    assert canonicalise(tokens) is tokens
    assert nodes_of(canonicalise(merged)) == nodes_of(merged) or canonicalise(merged) is merged


def test_canonicalise_keeps_hints_and_leaves_canonical_programs_alone() -> None:
    merged = canonicalise(SequenceMap(max, hist(), hist().numerical()))
    assert [node.encoding for node in nodes_of(merged) if isinstance(node, rasp.WidthOp)] == ["numerical"]
    assert canonicalise(merged) is merged


def test_structural_key_tells_programs_apart() -> None:
    programs = [
        tokens, indices, full(1), full(True), full("1"), tokens + 1, tokens + True, tokens + "1", 1 + tokens,
        tokens + indices, tokens - indices, indices - tokens, Map({1: 1}, tokens), Map({1: 2}, tokens),
        Map({1: True}, tokens), Map(named_function, tokens), Map(lambda x: 1 if x == 1 else 0, tokens),
        linear([tokens], [1]), linear([tokens], [1], 1), hist(), selector_width(select(tokens, tokens, "!=")),
        selector_width(~select(tokens, tokens, "==")), aggregate(select(tokens, indices, "=="), tokens),
        aggregate(select(indices, tokens, "=="), tokens), aggregate(select(tokens, indices, "=="), tokens, 0),
        aggregate(select(tokens, indices, "==") & select(tokens, indices, "<"), tokens),
        aggregate(select(tokens, indices, "==") | select(tokens, indices, "<"), tokens),
    ]  # fmt: skip
    keys = [structural_key(program) for program in programs]
    assert len(set(keys)) == len(keys)
    assert structural_key(tokens + 1) == structural_key(Map(lambda x: x + 1, tokens).named("n").numerical())
    assert structural_key(Map({1: 2, 3: 4}, tokens)) == structural_key(Map({3: 4, 1: 2}, tokens))
    assert structural_key(select(tokens, tokens, "==")) == structural_key(select(tokens, tokens, lambda k, q: k == q))


def test_canonicalise_preserves_meaning_on_random_programs() -> None:
    generator = random.Random(5)
    for _ in range(60):
        program = random_program(generator)
        merged = canonicalise(program)
        assert structural_key(merged) == structural_key(program)
        assert len(nodes_of(merged)) == len(structural_key(program))
        for xs in ([1], [2, 0, 1], [1, 1, 0, 2]):
            assert evaluate(merged, xs) == evaluate(program, xs)
            assert evaluate(merged, xs, causal=True) == evaluate(program, xs, causal=True)


def random_program(generator: random.Random) -> SOp:
    """Numeric and total: selections of one mean, so that no value is undefined."""
    sops: list[SOp] = [tokens, indices, full(1)]
    selectors = [select(tokens, indices, "<=")]
    for _ in range(12):
        a, b, s, t = *generator.choices(sops, k=2), *generator.choices(selectors, k=2)
        sops.append(
            generator.choice([a + b, a - b, minimum(a, b), where(a > b, a, 0), aggregate(s, a, 0), selector_width(s),
                              linear([a, b], [2, -1], 1), Map(lambda x: x / 2, a)])
        )  # fmt: skip
        selectors.append(generator.choice([s & t, s | t, ~s, select(a, b, generator.choice(["==", "<", True]))]))
    return sops[-1] + sops[-2]
