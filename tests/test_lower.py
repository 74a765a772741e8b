"""Lowering: core programs compute what the interpreter says, and what cannot be promised is refused with reasons."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest

from certiformer.compiler import interpreter
from certiformer.compiler.analysis import analyse
from certiformer.compiler.core import Aggregate, CoreProgram, Linear, Map, Select, Value, Width
from certiformer.compiler.core_evaluator import evaluate_core
from certiformer.compiler.core_json import core_to_json
from certiformer.compiler.lower import CompileError, lower, lower_with_hints
from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.rasp import (
    Map as MapOf,
)
from certiformer.compiler.rasp import (
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


def words(vocab: Sequence[Value], max_len: int) -> list[tuple[Value, ...]]:
    return [xs for n in range(1, max_len + 1) for xs in itertools.product(vocab, repeat=n)]


def check(program: SOp, core: CoreProgram, inputs: Sequence[Sequence[Value]]) -> None:
    """Equality of values; True and 1 are equal."""
    for xs in inputs:
        wanted = interpreter.evaluate(program, xs, causal=core.causal)
        found = evaluate_core(core, xs)
        assert found == wanted, (xs, found, wanted)


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_library_programs_keep_their_meaning(name: str) -> None:
    entry = LIBRARY[name]
    vocab = entry.vocab(3)
    core = lower(entry.build(), vocab, 4, causal=entry.causal)
    rng = random.Random(0)
    inputs = words(vocab, 4) if len(vocab) <= 3 else [rng.choices(vocab, k=rng.randint(1, 4)) for _ in range(120)]
    check(entry.build(), core, inputs)
    assert not analyse(core).problems


# -- random programs --------------------------------------------------------------------------------------------------

Expressions = dict[str, list[SOp]]


def random_sop(rng: random.Random, vocab: Sequence[Value], size: int) -> SOp:
    """A random program over numbers, truth values, strings and None; functions readable and opaque, some partial."""
    numeric = not isinstance(vocab[0], str)
    numbers: list[SOp] = [indices, length, full(rng.choice([0, 1, Fraction(1, 2), -3]))]
    flags: list[SOp] = [indices == 1]
    anything: list[SOp] = [tokens, full("x"), full(None)]
    if numeric:
        numbers.append(tokens)
    selectors: list[Selector] = []

    def pick(pool: list[SOp]) -> SOp:
        return rng.choice(pool[-4:] if rng.random() < 0.7 else pool)

    def any_sop() -> SOp:
        return pick(rng.choice([numbers, flags, anything]))

    def grow_number() -> None:
        a, b = pick(numbers), pick(numbers)
        makers: list[Callable[[], SOp]] = [
            lambda: a + b,
            lambda: a - 2 * b,
            lambda: a * b,
            lambda: linear([a, b], [Fraction(1, 2), -1], 1),
            lambda: a % 2,
            lambda: SequenceMap(lambda x, y: (x + y) / 3, a, b),
            lambda: SequenceMap(lambda x, y: x if x > y else 7, a, b),
            lambda: minimum(a, b, 1),
            lambda: maximum(a, b),
            lambda: where(pick(flags), a, b),
            lambda: a / (indices + 1),
            lambda: a // b,
            lambda: MapOf({0: 5, 1: 7, 2: 0}, indices % 3),
            lambda: pick(flags) + pick(flags),
        ]
        numbers.append(rng.choice(makers)())

    def grow_flag() -> None:
        a, b, f, g = pick(numbers), pick(numbers), pick(flags), pick(flags)
        makers: list[Callable[[], SOp]] = [
            lambda: a < b,
            lambda: a == b,
            lambda: a >= Fraction(1, 2),
            lambda: f & g,
            lambda: f | g,
            lambda: ~f,
            lambda: tokens == rng.choice(vocab),
            lambda: SequenceMap(lambda x, y: str(x) == str(y), any_sop(), any_sop()),
        ]
        flags.append(rng.choice(makers)())

    def grow_selector() -> None:
        if selectors and rng.random() < 0.4:
            left, right = rng.choice(selectors), rng.choice(selectors)
            selectors.append(rng.choice([left & right, left | right, ~left]))
            return
        pool = rng.choice([numbers, flags, anything, [indices]])
        predicate = rng.choice(["==", "!=", "<", "<=", ">", True, lambda k, q: k == q])
        if pool is anything:
            predicate = rng.choice(["==", "!=", True, False])
        selectors.append(select(pick(pool), pick(pool), predicate))

    def grow_reader() -> None:
        if not selectors:
            grow_selector()
        selector = rng.choice(selectors[-3:])
        if rng.random() < 0.3:
            numbers.append(selector_width(selector))
            return
        pool = rng.choice([numbers, numbers, flags, anything])
        default: Value = rng.choice([None, 0, 0, Fraction(1, 2)]) if pool is not anything else None
        (anything if pool is anything else numbers).append(aggregate(selector, pick(pool), default))

    growers = [grow_number, grow_flag, grow_selector, grow_selector, grow_reader, grow_reader]
    for _ in range(size):
        rng.choice(growers)()
    return any_sop()


def test_random_programs_keep_their_meaning() -> None:
    """Whatever is accepted computes what the interpreter says; refusals are errors of ours, with places."""
    rng = random.Random(5)
    accepted, refused = 0, 0
    for _ in range(300):
        vocab: tuple[Value, ...] = rng.choice([(0, 1, 2), ("a", "b", "c"), (False, True), (1, Fraction(5, 2))])
        program = random_sop(rng, vocab, rng.randint(2, 10))
        causal = rng.random() < 0.4
        try:
            core = lower(program, vocab, 4, causal=causal)
        except CompileError as error:
            assert error.problems
            assert all("test_lower.py:" in problem and "; " in problem for problem in error.problems), error
            refused += 1
            continue
        accepted += 1
        inputs = words(vocab, 4)
        check(program, core, rng.sample(inputs, min(15, len(inputs))))
    assert accepted > 200, (accepted, refused)


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_equal_parts_are_merged_and_unread_parts_left_out() -> None:
    program = selector_width(select(tokens, tokens, "==")) * selector_width(select(tokens, tokens, "==")) + full(2)
    core = lower(program, "ba", 3)
    assert core.vocab == ("a", "b")
    assert [type(node) for node in core.nodes[2:]] == [Select, Width, Map, Map]
    assert len(lower(program, "ba", 3).nodes) == 6


def test_selects_of_the_same_nodes_combine_to_one() -> None:
    at_most = select(tokens, tokens, "<") | ~(select(tokens, tokens, "==") & ~select(tokens, tokens, False))
    core = lower(selector_width(at_most), range(3), 3)
    assert [type(node) for node in core.nodes[2:]] == [Select, Width]


def test_names_and_hints_are_kept() -> None:
    hist = selector_width(select(tokens, tokens, "==")).named("hist").numerical()
    lowered = lower_with_hints((hist + 1).named("more"), "ab", 3)
    names = {node.name: index for index, node in enumerate(lowered.core.nodes) if node.name}
    assert lowered.core.output == names["more"]
    assert lowered.core.name == "more"
    assert lowered.hints == {names["hist"]: "numerical"}
    assert lower(hist, "ab", 3, name="other").name == "other"


def test_constants_are_folded_into_functions() -> None:
    program = SequenceMap(lambda x, y, z: (x, y, z)[1] + z, tokens, full(3), indices)
    core = lower(program, "ab", 3)
    output = core.nodes[core.output]
    assert isinstance(output, Map)
    assert output.values == (3, 4, 5)
    assert lower(SequenceMap(lambda x, y: x, tokens, full(None)), "ab", 3).value_node(2).values == (None,)
    assert lower(full(2) + full(3), "ab", 3).value_node(2).values == (5,)


def test_entries_that_cannot_occur_need_no_value() -> None:
    hist = selector_width(select(tokens, tokens, "=="))
    check(indices / hist, lower(indices / hist, "ab", 3), words("ab", 3))
    inverse = 1 / (indices + 1 - indices)
    check(inverse, lower(inverse, "ab", 3), words("ab", 3))


def fraction_of(token: Value) -> SOp:
    return aggregate(select(indices, indices, "<="), tokens == token, 0)


def test_a_comparison_of_two_means_is_a_test_of_one() -> None:
    program = fraction_of("a") < fraction_of("b")
    core = lower(program, "abc", 30, causal=True)
    output = core.nodes[core.output]
    assert isinstance(output, Map)
    assert len(output.args) == 1
    assert sum(isinstance(node, Aggregate) for node in core.nodes) == 1
    rng = random.Random(0)
    check(program, core, [[rng.choice("abc") for _ in range(rng.randint(1, 30))] for _ in range(30)])


def test_affine_combinations_of_means_are_one_mean() -> None:
    program = 2 * fraction_of("a") - (fraction_of("b") + Fraction(1, 2)) + fraction_of("c")
    core = lower(program, "abc", 20)
    assert sum(isinstance(node, Aggregate) for node in core.nodes) == 1
    rng = random.Random(0)
    check(program, core, [[rng.choice("abc") for _ in range(rng.randint(1, 20))] for _ in range(30)])


def test_a_mean_that_may_be_none_stays_so_in_combinations() -> None:
    before = select(indices, indices, "<")
    first, second = aggregate(before, tokens == "a"), aggregate(before, tokens == "b", 1)
    for program in (first - second, first < second, first - first + second, where(first < second, first, second)):
        check(program, lower(program, "abc", 4), words("abc", 4))
        rng = random.Random(0)
        check(program, lower(program, "abc", 20), [rng.choices("abc", k=20) for _ in range(5)])


def test_a_large_affine_map_is_a_linear_combination() -> None:
    program = linear([tokens, indices, length], [1, 100, 10000], 3)
    core = lower(program, range(40), 50)
    assert isinstance(core.nodes[core.output], Linear)
    check(program, core, [[39] * 50, [1, 2, 3], [0]])


def test_the_same_program_gives_the_same_bytes() -> None:
    for name in ("sort", "shuffle_dyck1", "frac_prevs"):
        entry = LIBRARY[name]
        first, second = (json.dumps(core_to_json(lower(entry.build(), entry.vocab(4), 6))) for _ in range(2))
        assert first == second


def test_lowering_sort_at_thirty_tokens_and_length_fifty_takes_no_time() -> None:
    lower(LIBRARY["sort"].build(), range(3), 3)
    began = time.process_time()
    lower(LIBRARY["sort"].build(), range(30), 50)
    assert time.process_time() - began < 1.0


# -- truth values and the numbers they equal --------------------------------------------------------------------------


def test_true_stays_true_through_an_aggregate() -> None:
    program = MapOf(lambda x: x is True, aggregate(select(indices, indices, "=="), tokens == "a"))
    core = lower(program, "ab", 3)
    check(program, core, words("ab", 3))
    assert all(type(value) is bool for value in core.value_node(core.output).values)


def test_a_function_that_tells_true_from_one_where_both_occur_is_refused() -> None:
    mixed = SequenceMap(lambda x, i: 1 if i else x == "a", tokens, indices)
    check(mixed + 1, lower(mixed + 1, "ab", 3), words("ab", 3))
    with pytest.raises(CompileError, match="tells a truth value from the number it equals"):
        lower(MapOf(lambda x: str(x), mixed), "ab", 3)
    through = aggregate(select(indices, indices, "=="), mixed)
    with pytest.raises(CompileError, match="tells a truth value from the number it equals"):
        lower(MapOf(lambda x: str(x), through), "ab", 3)


# -- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[SOp, str]] = [
    (1 / indices, r"map 1 / x0 .*undefined where indices = 0: ZeroDivisionError"),
    (tokens + 1, "undefined where tokens = 'a': TypeError"),
    (tokens < indices, "undefined where tokens = 'a', indices = 0: TypeError"),
    (selector_width(select(tokens, indices, "<")), "undefined where the key = 'a', the query = 0"),
    (selector_width(select(tokens, tokens, lambda k, q: None)), "must return True or False"),
    (aggregate(select(tokens, tokens, True), tokens), "'a' is not a number"),
    (linear([tokens], [2]), "a linear combination is of numbers, and an argument may be 'a'"),
    (MapOf(lambda x: [x], tokens), "undefined where tokens = 'a': TypeError"),
    (MapOf({"a": 1}, tokens), "no entry for 'b'"),
    (MapOf(lambda x: float("nan"), tokens), "ValueError"),
    (1 / full(0), "undefined: ZeroDivisionError"),
]


@pytest.mark.parametrize(("program", "message"), REFUSED)
def test_what_is_undefined_is_refused_with_place_and_reason(program: SOp, message: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        lower(program, "ab", 3)
    (problem,) = caught.value.problems
    assert "test_lower.py:" in problem
    assert "; " in problem


def test_all_problems_are_reported_at_once() -> None:
    first, second = (1 / indices).named("inverse"), aggregate(select(tokens, tokens, True), tokens)
    with pytest.raises(CompileError) as caught:
        lower(SequenceMap(lambda x, y: x, first + 1, second), "ab", 3)
    assert len(caught.value.problems) == 2
    assert "'inverse'" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("vocab", "max_len", "message"),
    [
        ((), 3, "none"),
        ("aba", 3, "'a' more than once"),
        ((1, True), 3, "more than once"),
        ((0.5, 1), 3, "write an int or a Fraction"),
        (([1], [2]), 3, "must be None, a bool, an int"),
        (itertools.count(), 3, "finite and sized"),
        (5, 3, "finite and sized"),
        (("a", 1), 3, "mixes types: 1 is a number and 'a' is a string"),
        ((True, 2), 3, "True is a truth value and 2 is a number"),
        ((None, "a"), 3, "None"),
        ("ab", 0, "max_len must be at least 1"),
        ("ab", -1, "got -1"),
        ("ab", 10**6, "at most"),
        ("ab", 2.5, "an integer, got 2.5"),
        ("ab", True, "an integer, got True"),
        ("ab", None, "an integer, got None"),
    ],
)
def test_bad_input_is_refused(vocab: object, max_len: object, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        lower(tokens, vocab, max_len)  # type: ignore[arg-type]


@pytest.mark.parametrize("program", [None, 3, select(tokens, tokens, "=="), "tokens", lambda: tokens])
def test_what_is_no_program_is_refused(program: object) -> None:
    with pytest.raises(CompileError, match="a program is an s-op"):
        lower(program, "ab", 3)  # type: ignore[arg-type]
