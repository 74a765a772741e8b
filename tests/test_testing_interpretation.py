"""`@interpretation` and what it is made of: the guided search, where runs part, tests that fail as they should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import certiformer as cf
from certiformer.compiler import programs as library
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.rasp import SOp, aggregate, indices, select, selector_width, tokens, where
from certiformer.models import Ablate, Zero, balanced, change_weight, edit, sequences
from certiformer.testing import check_interpretation, divergence, find_failure, interpretation, session, words
from certiformer.testing.check import InterpretationError
from certiformer.testing.session import Session
from certiformer.verifier.reading import Subject

SORT = cf.compile(library.sort(), vocab=range(8), max_len=7)
DOMAIN = sequences(range(8), range(1, 8))
SMALL = cf.compile(library.hist(), vocab="ab", max_len=4)
SMALL_DOMAIN = sequences("ab", range(1, 5))


@pytest.fixture(autouse=True)
def own_session() -> Iterator[None]:
    """What these tests refute and prove is not part of the run's summary."""
    here = Session()
    session.enter(here)
    yield
    session.leave(here)


def count(value: cf.Value) -> SOp:
    return selector_width(select(tokens, value, "=="))


def token_at(place: int) -> SOp:
    return aggregate(select(indices, place, "=="), tokens, 0)


def sort_but(condition: SOp) -> SOp:
    """Sort, with 0 everywhere where the condition holds."""
    return where(condition, 0, library.sort())


NEEDLES: dict[str, tuple[SOp, int]] = {
    "three 3s": (sort_but(count(3) >= 3), 3),
    "five 3s": (sort_but(count(3) >= 5), 5),
    "seven 6s": (sort_but(count(6) == 7), 7),
    "a prefix": (sort_but((token_at(0) == 5) & (token_at(1) == 2) & (token_at(2) == 7) & (token_at(3) == 1)), 4),
}
"""Failing on 10^-2 down to 5 * 10^-7 of the inputs, and the length of the shortest counterexample."""


@pytest.mark.parametrize("name", NEEDLES)
def test_guided_search_finds_what_random_examples_miss(name: str) -> None:
    program, shortest = NEEDLES[name]
    claim = cf.Computes(SORT, program)
    found = find_failure(claim, DOMAIN, examples=1000)
    assert found is not None and found.over_the_reals and found.runs <= 1000
    assert claim.holds(found.witness).status == "false" == claim.holds(found.first).status
    assert len(found.witness.inputs[0]) == shortest, "not shrunk to the shortest"
    if name == "seven 6s":
        assert find_failure(claim, DOMAIN, examples=1000, guided=False) is None


@pytest.mark.parametrize("guided", [True, False])
def test_the_search_is_deterministic_and_keeps_to_its_examples(guided: bool) -> None:
    claim = cf.Computes(SORT, sort_but(count(3) >= 4))
    once, again = (find_failure(claim, DOMAIN, examples=400, seed=3, guided=guided) for _ in range(2))
    assert once == again
    right = cf.Computes(SORT)
    assert find_failure(right, DOMAIN, examples=300, guided=guided) is None


def test_counterexamples_stay_in_rare_languages() -> None:
    program = library.shuffle_dyck1()
    compiled = cf.compile(program, vocab="()", max_len=8)
    domain = balanced([("(", ")")], 4, range(2, 9))
    found = find_failure(cf.Computes(compiled, where(indices == 5, 0, program)), domain)
    assert found is not None and list(found.witness.inputs[0]) in domain and len(found.witness.inputs[0]) == 6


@pytest.mark.parametrize(("name", "value"), [("examples", 0), ("examples", True), ("seed", -1)])
def test_bad_numbers(name: str, value: Any) -> None:
    with pytest.raises(cf.InputError, match=name):
        find_failure(cf.Computes(SMALL), SMALL_DOMAIN, **{name: value})


# Where runs part


def broken(compiled: Compiled, name: str, place: int) -> Compiled:
    """With one of the non-zero entries of a parameter set to zero."""
    entries = compiled.model.parameter(name).detach().nonzero().tolist()
    return replace(compiled, model=change_weight(compiled.model, name, tuple(entries[place]), 0.0))


@pytest.mark.parametrize("name", ["sort", "hist", "reverse", "most_frequent", "shuffle_dyck1", "frac_prevs", "count"])
def test_a_compiled_model_holds_its_programs_variables(name: str) -> None:
    entry = library.LIBRARY[name]
    vocab = entry.vocab(3)
    compiled = cf.compile(entry.build(), vocab=vocab, max_len=5, causal=entry.causal)
    for word in sequences(vocab, range(1, 6)).sample(0, 8):
        assert divergence(compiled, None, word).first is None


def test_the_first_site_that_is_wrong_is_named() -> None:
    bad = broken(SORT, "blocks.0.mlp.W_out", 3)
    with pytest.raises(InterpretationError) as failure:
        check_interpretation(cf.Computes(bad), DOMAIN)
    found = find_failure(cf.Computes(bad), DOMAIN)
    assert found is not None
    parted = divergence(bad, None, list(found.witness.inputs[0]))
    assert parted.first is not None and parted.first.site == "blocks.0.mlp"
    assert all(step.agrees for step in parted.steps if step.site == "blocks.0.attn")
    assert parted.steps[-1].site == "logits" and not parted.steps[-1].agrees
    for text in ("first at blocks.0.mlp", "expected", "counterexample", "sort"):
        assert text in str(failure.value)


def test_clean_beside_ablated() -> None:
    ablated = edit(SORT.model, Ablate("a0.h0->m1", Zero()))
    parted = divergence(SORT, ablated, [0, 0, 1])
    assert parted.first is not None and parted.first.site == "blocks.1.mlp.hook_pre"
    assert divergence(SORT, edit(SORT.model), [0, 0, 1]).first is None
    assert divergence(SORT, SORT, [0, 0, 1]).first is None
    assert "no site differs" in str(divergence(SORT, SORT, [0, 0, 1]))


def test_another_program_parts_at_the_variable_of_that_name() -> None:
    wrong = (selector_width(select(tokens, tokens, "<="))).named("hist")
    compiled = cf.compile(library.hist(), vocab=range(3), max_len=4)
    parted = divergence(compiled, wrong, [0, 1])
    assert parted.first is not None and not parted.steps[-1].agrees
    assert divergence(compiled, library.hist(), [0, 1]).first is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(cf.InputError, match="compared"):
        divergence(SORT, 3, [0])
    with pytest.raises(cf.InputError, match="unknown token"):
        divergence(SORT, None, [9])
    with pytest.raises(cf.InputError, match="which program"):
        divergence(SORT.model, None, [0], codec=SORT.codec)


# The decorator


@interpretation(cf.Computes(SORT), DOMAIN, examples=200)
def test_a_right_claim_passes() -> None: ...


@interpretation(cf.Computes(SMALL), SMALL_DOMAIN, certify=True)
def test_a_right_claim_is_proved() -> None: ...


@interpretation(cf.Computes(SMALL), SMALL_DOMAIN, examples=50)
@settings(max_examples=10)  # with Hypothesis's deadline of 200 ms an example
@given(words(SMALL_DOMAIN))
def test_above_given(word: list[cf.Value]) -> None:
    assert SMALL.run(word) == cf.evaluate(library.hist(), word)


@settings(max_examples=10)
@given(words(SMALL_DOMAIN))
@interpretation(cf.Computes(SMALL), SMALL_DOMAIN, examples=50)
def test_below_given(word: list[cf.Value]) -> None:
    assert SMALL.run(word) == cf.evaluate(library.hist(), word)


@settings(max_examples=5)
@given(k=st.integers(5, 9))
@interpretation(lambda k: cf.Computes(SMALL, where(count("a") >= k, 0, library.hist())), SMALL_DOMAIN, examples=50)
def test_a_claim_of_what_is_drawn(k: int) -> None: ...


@pytest.fixture
def compiled() -> Compiled:
    return SMALL


@pytest.mark.parametrize("longest", [1, 3])
@interpretation(lambda compiled: cf.Computes(compiled), lambda longest: sequences("ab", range(1, longest + 1)))
def test_a_claim_of_fixtures_and_parameters(compiled: Compiled, longest: int) -> None: ...


WRONG = cf.Computes(SMALL, where(count("a") >= 2, 0, library.hist()))
FAILING: dict[str, tuple[cf.Claim, str]] = {
    "computes": (WRONG, r"input \['a', 'a'\]"),
    "conjunction": (cf.NeverOutputs(SMALL, [4]) & WRONG, r"input \['a', 'a'\]"),
    "never": (cf.NeverOutputs(SMALL, [3]), r"input \['a', 'a', 'a'\]"),
    "faithful": (cf.Faithful(SMALL, SMALL.circuit.without(["a0.h0->m0"]), "zero"), "first at"),
    "resample": (cf.Faithful(SMALL, SMALL.circuit.without(["a0.h0->m0"]), "resample"), "source"),
    "exists": (cf.NeverOutputs(SMALL, [1, 2, 3, 4]).exists(), "no such input among"),
    "at most": (cf.Computes(SMALL).at_most(0.5), "samples"),
    "at least": (WRONG.at_least(Fraction(9, 10)), "samples"),
}


@pytest.mark.parametrize("name", FAILING)
def test_wrong_claims_fail_with_a_report(name: str) -> None:
    claim, message = FAILING[name]

    @interpretation(claim, SMALL_DOMAIN)
    def test() -> None: ...

    with pytest.raises(InterpretationError, match=message) as failure:
        test()
    assert str(claim) in str(failure.value)


@pytest.mark.parametrize(
    "claim", [cf.NeverOutputs(SMALL, [1]).exists(), WRONG.at_most(0.9), WRONG.at_least(0.2), cf.Abstracts(SMALL)]
)
def test_other_quantifiers_pass(claim: cf.Claim) -> None:
    assert check_interpretation(claim, SMALL_DOMAIN).status == "tested"


def test_what_testing_misses_certify_refutes() -> None:
    claim = cf.Computes(SORT, sort_but(count(6) == 7))
    assert check_interpretation(claim, DOMAIN, examples=100, guided=False).status == "tested"
    with pytest.raises(InterpretationError, match=r"\[6, 6, 6, 6, 6, 6, 6\]"):
        check_interpretation(claim, DOMAIN, examples=100, guided=False, certify=True, seconds=20)


def test_what_is_not_proved_fails_only_where_a_proof_is_asked_for() -> None:
    claim = cf.EdgeEffect(SORT, "input->m0", torch.ones(8), 0, 1000)  # of 10^12 pairs of inputs
    with pytest.raises(InterpretationError, match="not proved"):
        check_interpretation(claim, DOMAIN, examples=20, guided=False, certify=True, seconds=0.1)
    here = Session(certify=True, seconds=0.1)
    session.enter(here)
    try:
        assert check_interpretation(claim, DOMAIN, examples=20, guided=False).status == "unknown"
        assert check_interpretation(claim, DOMAIN, examples=20, guided=False, certify=False).status == "tested"
    finally:
        session.leave(here)
    assert [record.status for record in here.records] == ["unknown", "tested"]
    assert here.records[0].detail


def test_an_edited_model_is_tested_but_cannot_be_proved() -> None:
    claim = cf.Computes(Subject(edit(SMALL.model), SMALL.codec), SMALL.core)
    assert check_interpretation(claim, SMALL_DOMAIN).status == "tested"
    with pytest.raises(InterpretationError, match="edited"):
        check_interpretation(claim, SMALL_DOMAIN, certify=True)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "an empty domain": (lambda: interpretation(cf.Computes(SMALL), SMALL_DOMAIN.difference(SMALL_DOMAIN)), "empty"),
    "an empty domain, claim later": (lambda: interpretation(len, SMALL_DOMAIN.difference(SMALL_DOMAIN)), "empty"),  # type: ignore[arg-type]
    "unknown tokens": (lambda: interpretation(cf.Computes(SMALL), sequences("abc", 2)), "'c'"),
    "too long": (lambda: interpretation(cf.Computes(SMALL), sequences("ab", 5)), "length 5"),
    "no claim": (lambda: interpretation(SMALL, SMALL_DOMAIN), "claim"),  # type: ignore[arg-type]
    "no domain": (lambda: interpretation(cf.Computes(SMALL), ["ab"]), "domain"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_at_definition_time(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(cf.InputError, match=message):
        make()


def test_a_claim_that_asks_for_an_unknown_argument() -> None:
    @interpretation(lambda model: cf.Computes(model), SMALL_DOMAIN)
    def test(compiled: Compiled) -> None: ...

    with pytest.raises(cf.InputError, match="asks for model, the test has compiled"):
        test(SMALL)


def test_nothing_is_recorded_without_a_session() -> None:
    here = Session()
    session.enter(here)
    check_interpretation(cf.Computes(SMALL), SMALL_DOMAIN)
    session.leave(here)
    assert [record.status for record in here.records] == ["tested"]
    outside = Session(keep=False)
    outside.record(here.records[0])
    assert not outside.records


def test_a_failure_under_given_is_shrunk_by_hypothesis() -> None:
    drawn: list[int] = []

    @settings(max_examples=50, deadline=None, database=None)
    @given(k=st.integers(1, 9))
    @interpretation(lambda k: cf.Computes(SMALL, where(count("a") == k, 0, library.hist())), SMALL_DOMAIN, examples=60)
    def test(k: int) -> None:
        drawn.append(k)

    with pytest.raises(InterpretationError, match=r"input \['a'\]"):
        test()
    assert drawn[-1] == 1
