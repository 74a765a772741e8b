"""Random programs through the whole chain: interpreter, core program, model, proof and checker agree."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certiformer.compiler.compile import compile
from certiformer.compiler.core import Value
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.lower import CompileError, lower
from certiformer.compiler.rasp import Map, SOp, aggregate, full, indices, length, select, selector_width, tokens, where
from certiformer.compiler.structure import nodes_of
from certiformer.models.errors import InputError
from certiformer.testing.program_source import source
from certiformer.testing.program_strategies import programs

from .chain import (
    Outcome,
    attempt_proof,
    disagreement,
    follow,
    formula,
    inputs,
    over_the_reals,
    run_many,
    summarise,
)
from .random_programs import LETTERS, NUMBERS, Case, case, random_program

SEEDS = range(300)
"""A prefix of the benchmark's."""


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return run_many(SEEDS, everything=True)


def test_interpreter_core_and_model_agree_on_every_input(outcomes: list[Outcome]) -> None:
    wrong = [str(outcome) for outcome in outcomes if outcome.status == "wrong"]
    assert not wrong, "\n".join(wrong)


def test_nothing_in_the_chain_disagrees(outcomes: list[Outcome]) -> None:
    """Z3's formula, the model over the reals, the proof and the checker, besides."""
    found = [f"{outcome}\n    {outcome.disagreement}" for outcome in outcomes if outcome.disagreement]
    assert not found, "\n".join(found)
    checked = [outcome for outcome in outcomes if outcome.status != "refused"]
    assert all(outcome.formula == "agrees" and outcome.reals == "true" for outcome in checked)


def test_a_link_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of programs with two outputs or more: another program for one of the links."""
    noticed: Counter[str] = Counter()
    for seed in range(0, 24, 2):
        one, other = case(seed), case(seed + 24)
        right = [evaluate(one.program, xs, causal=one.causal) for xs in inputs(one.vocab, 2)]
        with contextlib.suppress(CompileError, InputError):
            if right == [evaluate(other.program, xs, causal=one.causal) for xs in inputs(one.vocab, 2)]:
                continue
            compiled = compile(one.program, vocab=one.vocab, max_len=4, causal=one.causal)
            core = lower(other.program, one.vocab, 4, causal=one.causal)
            noticed["reals"] += over_the_reals(compiled, program=core).startswith("false")
            noticed["formula"] += formula(replace(one, program=other.program), program=one.program).startswith("sat")
            noticed["cases"] += 1
    assert noticed["cases"] >= 5 and noticed["reals"] == noticed["formula"] == noticed["cases"], noticed


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=programs(vocab="abc", max_len=4, size=8), causal=st.booleans())
def test_drawn_programs_agree_too(drawn: SOp, causal: bool) -> None:
    outcome = follow(Case(0, drawn, ("a", "b", "c"), causal), everything=True)
    assert outcome.formula and not outcome.disagreement, f"{outcome}\n    {outcome.disagreement}"


def test_nearly_all_are_accepted(outcomes: list[Outcome]) -> None:
    refused = [str(outcome) for outcome in outcomes if outcome.status == "refused"]
    assert len(refused) <= 0.05 * len(outcomes), "\n".join(refused)


def test_nearly_all_are_proved_and_the_checker_agrees(outcomes: list[Outcome]) -> None:
    accepted = [outcome for outcome in outcomes if outcome.status != "refused"]
    unproved = [str(outcome) for outcome in accepted if not outcome.proved]
    assert len(unproved) <= 0.02 * len(accepted), "\n".join(unproved)
    assert not [text for text in unproved if "checker" in text], "the engine proves what the checker does not accept"


def test_what_is_wrong_is_not_proved(outcomes: list[Outcome]) -> None:
    assert not [str(outcome) for outcome in outcomes if outcome.status == "wrong" and outcome.proved]


def test_summary_counts_what_there_is(outcomes: list[Outcome]) -> None:
    counts = summarise(outcomes)
    assert counts["programs"] == len(SEEDS)
    assert counts["accepted"] == counts["agree"] + counts["wrong"]


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_without_bos_right_or_refused(seed: int) -> None:
    """Without BOS much is refused (nothing can be counted), and what is not refused is right."""
    outcome = follow(case(seed), bos=False)
    assert outcome.status == "refused" or (outcome.status == "agrees" and outcome.proved), str(outcome)


@pytest.mark.parametrize("seed", range(1, 40, 4))
def test_reusing_coordinates_changes_nothing(seed: int) -> None:
    one = case(seed)
    try:
        compiled = compile(one.program, vocab=one.vocab, max_len=4, causal=one.causal, reuse=False)
    except CompileError:
        return
    assert disagreement(one.program, compiled, inputs(one.vocab)) == ""
    assert compiled.sizes.d_model == compiled.sizes.d_model_without_reuse


@pytest.mark.parametrize("seed", range(2, 40, 4))
def test_longer_than_the_generator_thinks(seed: int) -> None:
    """At length 6 tables may be too short for the program: then it is refused, and else right."""
    one = case(seed)
    try:
        compiled = compile(one.program, vocab=one.vocab, max_len=6, causal=one.causal)
    except CompileError:
        return
    rng = random.Random(seed)
    rows = [[rng.choice(one.vocab) for _ in range(rng.randint(1, 6))] for _ in range(60)]
    assert disagreement(one.program, compiled, rows) == ""


def test_programs_are_the_same_for_a_seed() -> None:
    assert [case(seed).text for seed in range(40)] == [case(seed).text for seed in range(40)]


def test_programs_are_total_and_rarely_trivial() -> None:
    """The generator is typed: its programs have a value on every input; hardly any has the same everywhere."""
    constant = 0
    for seed in range(60):
        one = case(seed)
        rows = [list(xs) for n in (1, 2, 3, 4) for xs in product(one.vocab, repeat=n)]
        values = {value for xs in rows for value in evaluate(one.program, xs, causal=one.causal)}
        constant += len(values) == 1
    assert constant < 25


def test_the_generator_covers_the_language() -> None:
    kinds: Counter[str] = Counter()
    predicates: Counter[str] = Counter()
    for seed in range(300):
        for node in nodes_of(case(seed).program):
            kinds[type(node).__name__] += 1
            if type(node).__name__ == "SelectOp":
                predicates[node.predicate.text] += 1  # type: ignore[union-attr]
    expected = "Tokens Indices Constant Map Linear Aggregate Width Select And Or Not".split()
    assert [kind for kind in expected if kinds[f"{kind}Op"] + kinds[kind] < 10] == []
    comparisons = ["==", "!=", "<", "<=", ">", ">="]
    assert [c for c in comparisons if predicates[f"key {c} query"] < 10] == []
    assert predicates["True"] and predicates["False"] and len(predicates) > 10


def test_depth_bounds_nesting() -> None:
    for seed in range(30):
        program = random_program(random.Random(seed), 1, LETTERS if seed % 2 else NUMBERS)
        assert source(program).count("aggregate") + source(program).count("selector_width") <= 2


# What the generator found: the smallest program that showed each fault.


def _name(index: int) -> str:
    return "a" if index <= 1 else "b"


OLD_FAULTS: dict[str, tuple[tuple[Value, ...], Callable[[], SOp]]] = {
    "a head without atoms let BOS attend to the tokens": (
        NUMBERS,
        lambda: selector_width(select(length, where(indices >= 0, length, length - 1), "==")),
    ),
    "of two lengths both were thought irrelevant": (
        NUMBERS,
        lambda: where(tokens, length, selector_width(select(indices, indices, "!="))),
    ),
    "the length, and a copy of it": (
        LETTERS,
        lambda: where(
            tokens == "a", length, aggregate(select(indices, indices, "=="), length, 0)
        ),
    ),
    "an argument that does not matter": (
        NUMBERS,
        lambda: aggregate(select(indices, indices, "<="), tokens + indices * 0 + (length == 4), 0),
    ),
    "a constant as a key": (NUMBERS, lambda: selector_width(select(1, tokens, "<="))),
    "a constant as the value": (NUMBERS, lambda: aggregate(select(tokens, tokens, "<"), full(2), 0)),
    "a map of constants only": (NUMBERS, lambda: aggregate(select(indices, tokens, "=="), full(0) != 0, True)),
    "the default at the place of None": (
        NUMBERS,
        lambda: aggregate(select(indices, tokens, "=="), aggregate(select(indices, tokens, ">="), indices), 0),
    ),
    "a default of another type than strings": (
        NUMBERS,
        lambda: aggregate(select(indices, tokens, "=="), where(tokens > 1, "a", "b"), True),
    ),
    "the mean of what is None elsewhere": (
        LETTERS,
        lambda: aggregate(
            select(aggregate(select(tokens, tokens, "<"), indices), indices, ">="),
            aggregate(select(tokens, tokens, "<"), indices),
        ),
    ),
    "a string among numbers as the default of a mean": (
        NUMBERS,
        lambda: aggregate(select(tokens, indices, "<"), tokens, "x"),
    ),
    "an argument that does not matter beside a width in two parts": (
        LETTERS,
        lambda: where(
            tokens > "c",
            tokens,
            selector_width(select(Map(_name, indices), tokens, "==") | select(tokens, tokens, "<=")),
        ),
    ),
    "lengths that no input has together": (
        LETTERS,
        lambda: aggregate(
            select(indices, indices / (selector_width(select(indices, 1.5, "<=")) + 1), "=="), indices, False
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", OLD_FAULTS)
@pytest.mark.parametrize("causal", [False, True])
def test_old_faults(fault: str, causal: bool) -> None:
    vocab, build = OLD_FAULTS[fault]
    program = build()
    compiled = compile(program, vocab=vocab, max_len=4, causal=causal)
    assert disagreement(program, compiled, inputs(vocab)) == ""
    assert attempt_proof(compiled) == "proved"
