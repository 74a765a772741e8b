"""Programs as formulas: the encoding gives the interpreter's values, and the solver's process keeps its limits."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import product

import pytest

import certiformer as cf
from certiformer.compiler.core import Value
from certiformer.compiler.interpreter import EvaluationError, evaluate
from certiformer.compiler.rasp import AggregateOp
from certiformer.compiler.structure import nodes_of
from certiformer.models.languages import balanced, distinct, exactly_one
from certiformer.verifier.smt_encoding import Encoding
from certiformer.verifier.smt_gates import Gates
from certiformer.verifier.smt_solver import Solver, SolverFailed

from .random_programs import case


def simulated(encoding: Encoding, word: tuple[Value, ...]) -> Callable[[int], bool]:
    """The truth of every literal on a word, gate by gate: no solver."""
    truth = [False] * (encoding.gates.count + 1)
    truth[1] = True
    for choice, token in zip(encoding.tokens, word, strict=True):
        for value, literal in choice.items():
            truth[literal] = value == token
    for literals, gate in encoding.gates._conjunctions.items():
        truth[gate] = all(truth[x] if x > 0 else not truth[-x] for x in literals)
    return lambda literal: truth[literal] if literal > 0 else not truth[-literal]


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_have_the_interpreters_values(seed: int) -> None:
    this = case(seed)
    for n in (1, 2, 3):
        means = {node for node in nodes_of(this.program) if isinstance(node, AggregateOp)}
        encoding = Encoding(cf.sequences(this.vocab, n), n, this.causal, means)
        choices = encoding.value(this.program)
        assert not encoding.mixed
        for word in product(this.vocab, repeat=n):
            true = simulated(encoding, word)
            undefined = any(map(true, encoding.undefined))
            try:
                expected = evaluate(this.program, list(word), causal=this.causal)
            except EvaluationError:
                assert undefined, (this.text, word)
                continue
            assert not undefined, (this.text, word)
            got = [[value for value, literal in choice.items() if true(literal)] for choice in choices]
            assert got == [[value] for value in expected], (this.text, word)
            assert [row == [None] for row in got] == [value is None for value in expected]


@pytest.mark.parametrize(
    "language",
    [
        balanced([("(", ")"), ("[", "]")], 2, range(1, 6)),
        exactly_one("a", "abc", range(2, 5)),
        distinct("abc", range(1, 4)),
        cf.sequences("ab", range(1, 4)).difference(cf.sequences("a", range(1, 4))),
    ],
    ids=repr,
)
def test_the_words_of_a_formula_are_those_of_the_language(language: cf.Language) -> None:
    for n in range(1, 6):
        encoding = Encoding(cf.sequences(language.vocab, n), n, False)
        member = encoding.member(language)
        for word in product(language.vocab, repeat=n):
            assert simulated(encoding, word)(member) == (list(word) in language), word


def pigeons(count: int) -> Gates:
    """More pigeons than holes: hard for resolution."""
    gates = Gates()
    at = [[gates.new() for _ in range(count)] for _ in range(count + 1)]
    for row in at:
        gates.require(row)
    for column in zip(*at, strict=True):
        for place, one in enumerate(column):
            for other in column[:place]:
                gates.require((-one, -other))
    return gates


def test_a_query_that_takes_too_long_is_given_up_and_the_next_one_works() -> None:
    with Solver() as solver:
        hard = pigeons(14)
        began = time.monotonic()
        with pytest.raises(SolverFailed, match="time was up"):
            solver.load(hard.count, hard.clauses([]), began + 30)
            solver.check([], [], time.monotonic() + 0.3)
        assert time.monotonic() - began < 10
        easy = Gates()
        free = easy.new()
        easy.require([free])
        solver.load(easy.count, easy.clauses([]), time.monotonic() + 30)
        assert solver.check([], [free], time.monotonic() + 30).true == {free}
        assert solver.check([-free], [free], time.monotonic() + 30).answer == "unsat"


def test_a_solver_without_memory_says_so() -> None:
    hard = pigeons(14)
    with Solver(memory_mib=64) as solver, pytest.raises(SolverFailed, match="memory"):
        solver.load(hard.count, hard.clauses([]), time.monotonic() + 20)
        solver.check([], [], time.monotonic() + 5)


def test_a_crash_is_a_reason_and_not_an_answer() -> None:
    with Solver() as solver:
        solver.load(1, array("i", (1, 1)), time.monotonic() + 20)
        assert solver._process is not None
        solver._process.kill()
        solver._process.wait()
        with pytest.raises(SolverFailed, match="ended"):
            solver.check([], [], time.monotonic() + 5)
