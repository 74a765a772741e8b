"""Refutation: planted faults are found, witnesses are small, stay in the domain, and replay in both semantics."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from certiformer.compiler import programs
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.models.circuits import Circuit
from certiformer.models.edits import change_weight
from certiformer.models.languages import Language, distinct, sequences, sorted_sequences
from certiformer.verifier.claims import Abstracts, Claim, Computes, Faithful, Margin
from certiformer.verifier.portfolio import prove
from certiformer.verifier.reading import FALSE, TRUE
from certiformer.verifier.refute import Search, hinted_inputs, search_for_failure, structured_words
from certiformer.verifier.shrinking import shrink
from certiformer.verifier.verdicts import Refuted, Unknown
from certiformer.verifier.witness import Witness

SEARCH = {"refute"}


@pytest.fixture(scope="module")
def sort() -> Compiled:
    return compile(programs.sort(), vocab=range(8), max_len=10)


@pytest.fixture(scope="module")
def hist() -> Compiled:
    return compile(programs.hist(), vocab=range(6), max_len=12)


def faulty(compiled: Compiled, name: str, index: tuple[int, ...], value: float) -> Compiled:
    return replace(compiled, model=change_weight(compiled.model, name, index, value))


def where(compiled: Compiled, name: str, place: int) -> tuple[int, ...]:
    """A non-zero entry of a parameter."""
    entries = compiled.model.parameter(name).detach().nonzero().tolist()
    return tuple(entries[place % len(entries)])


def witness_of(claim: Claim, domain: Language, **options: float) -> Witness:
    match prove(claim, domain, engines=SEARCH, **options):  # type: ignore[arg-type]
        case Refuted(Witness() as witness):
            return witness
        case other:
            raise AssertionError(other)


FAULTS = [
    ("embed.W_E", 6, 3.0),
    ("pos_embed.W_pos", 7, 3.0),
    ("blocks.0.attn.W_K", 27, 0.0),
    ("blocks.0.mlp.b_in", 30, 60.0),
    ("blocks.0.mlp.W_out", 27, 0.0),
    ("blocks.1.mlp.W_in", 40, 0.0),
    ("blocks.1.mlp.W_out", 28, -3.0),
    ("unembed.W_U", 2, 0.0),
]


@pytest.mark.parametrize(("name", "place", "value"), FAULTS)
def test_a_planted_fault_is_refuted_by_a_witness_that_replays(
    sort: Compiled, name: str, place: int, value: float
) -> None:
    claim = Computes(faulty(sort, name, where(sort, name, place), value))
    domain = sequences(range(8), range(1, 11))
    (tokens,) = witness_of(claim, domain, seconds=10).inputs
    assert list(tokens) in domain
    outcome = claim.holds(Witness((tokens,)))
    assert outcome.status == "false" and outcome.positions
    assert outcome.expected == tuple(map(str, sorted(tokens)))  # type: ignore[type-var]
    assert claim.holds_really(Witness((tokens,))) is False


def test_a_fault_on_six_inputs_of_two_billion_is_found(hist: Compiled) -> None:
    """hist is wrong only where one token fills all 12 positions."""
    fault = faulty(hist, "unembed.b_U", (hist.codec.outputs.index(12),), -5.0)
    assert witness_of(Computes(fault), sequences(range(6), 12), seconds=15).inputs == ((0,) * 12,)


def test_a_fault_on_a_rare_count_is_found_by_descent_on_the_margin(hist: Compiled) -> None:
    """hist is wrong only where some token occurs exactly 9 times."""
    fault = faulty(hist, "unembed.b_U", (hist.codec.outputs.index(9),), -5.0)
    (tokens,) = witness_of(Computes(fault), sequences(range(6), 12), seconds=15).inputs
    assert tokens == (0,) * 9 + (1,) * 3


def test_the_witness_is_the_shortest_and_then_the_smallest(sort: Compiled) -> None:
    fault = faulty(sort, "blocks.0.attn.W_K", where(sort, "blocks.0.attn.W_K", 27), 0.0)
    claim, domain = Computes(fault), sequences(range(8), range(1, 6))
    search = Search(claim, domain, math.inf)
    expected = None
    for n in range(1, 6):
        for word in domain.restricted(n).batches(4096):
            codes = claim.body.judge(search.ids((word,)), "real") == FALSE
            if bool(codes.any()):
                expected = tuple(word[int(codes.int().argmax())].tolist())
                break
        if expected:
            break
    assert expected is not None
    assert witness_of(claim, domain).inputs == (expected,)
    start = np.array([[7, 6, 5, 4, 3]])
    if bool((claim.body.judge(search.ids((start,)), "real") == FALSE).any()):
        assert tuple(shrink(search, (start,))[0][0].tolist()) == expected


@pytest.mark.parametrize("domain", [distinct(range(8), range(2, 9)), sorted_sequences(range(8), range(1, 9))])
def test_witnesses_lie_in_the_language(sort: Compiled, domain: Language) -> None:
    claim = Computes(faulty(sort, "unembed.W_U", where(sort, "unembed.W_U", 2), 0.0))
    verdict = prove(claim, domain, engines=SEARCH, seconds=4)
    if isinstance(verdict, Refuted):
        assert isinstance(verdict.evidence, Witness) and list(verdict.evidence.inputs[0]) in domain
    else:
        assert isinstance(verdict, Unknown)


def test_the_search_is_deterministic(sort: Compiled) -> None:
    claim = Computes(faulty(sort, "pos_embed.W_pos", where(sort, "pos_embed.W_pos", 7), 3.0))
    domain = sequences(range(8), range(1, 11))
    assert witness_of(claim, domain) == witness_of(claim, domain)


def test_a_right_model_is_never_refuted(sort: Compiled, hist: Compiled) -> None:
    for compiled, tokens in ((sort, 8), (hist, 6)):
        verdict = prove(Computes(compiled), sequences(range(tokens), range(1, 11)), engines=SEARCH, seconds=1)
        match verdict:
            case Unknown(reason, left):
                assert "no counterexample" in reason and left == sum(tokens**n for n in range(1, 11))
            case other:
                raise AssertionError(other)


def test_a_quick_refutation_comes_before_the_other_engines(sort: Compiled) -> None:
    fault = faulty(sort, "unembed.W_U", where(sort, "unembed.W_U", 2), 0.0)
    verdict = prove(Computes(fault), sequences(range(8), range(1, 11)))
    assert isinstance(verdict, Refuted) and verdict.setting.engine == "refute" and verdict.setting.seconds < 15


def test_what_only_the_float32_run_gets_wrong_is_not_a_refutation(sort: Compiled) -> None:
    """Margins between the least float32 and the least real margin: the claim is about the reals."""
    claim = Margin(sort, 0.25)
    ids = torch.tensor([[3, 1, 2]])
    real = claim.body._bounds(ids, "real")  # type: ignore[attr-defined]
    between = float(real[0].min() + real[1].min()) / 2
    straddling = Margin(sort, Fraction(between))
    code = int(straddling.body.judge((ids,), "real")[0])
    if code not in (TRUE, FALSE):
        assert straddling.holds_really(straddling.witness([ids[0]])) is None


def test_hints_lead_to_inputs_on_which_the_nodes_take_these_values(hist: Compiled) -> None:
    claim, domain = Computes(hist), sequences(range(6), 12)
    search = Search(claim, domain, math.inf)
    node = hist.alignment.program.output
    (words,) = hinted_inputs(search, [({node: 11},)], 12, 200)
    counts = np.array([[list(row).count(t) for t in row] for row in words])
    assert (counts == 11).any(axis=1).sum() > 10
    (words,) = hinted_inputs(search, [({node: 5, 0: 2}, {node: 4, 0: 3})], 12, 200)
    assert ((words == 2).sum(axis=1) == 5).sum() > 10
    assert (((words == 2).sum(axis=1) == 5) & ((words == 3).sum(axis=1) == 4)).any()


def test_structured_words_cover_the_kinds_that_break_programs() -> None:
    words = structured_words(np.random.default_rng(0), np.arange(5), 6, 300)
    kinds = {
        "constant": lambda w: len(set(w)) == 1,
        "ascending": lambda w: list(w) == sorted(w) and len(set(w)) > 2,
        "descending": lambda w: list(w) == sorted(w, reverse=True) and len(set(w)) > 2,
        "odd one out": lambda w: sorted(map(list(w).count, set(w))) == [1, 5],
        "periodic": lambda w: list(w[:3]) == list(w[3:]) and len(set(w)) == 3,
        "many distinct": lambda w: len(set(w)) == 5,
    }
    for name, is_kind in kinds.items():
        assert any(is_kind(tuple(row)) for row in words.tolist()), name


# --- claims about pairs of inputs and about mechanism


def test_compiled_models_abstract_their_programs_and_a_fault_shows(hist: Compiled) -> None:
    small = compile(programs.hist(), vocab=range(3), max_len=3)
    domain = sequences(range(3), range(1, 4))
    claim = Abstracts(small)
    assert claim.arity == 2
    assert not isinstance(prove(claim, domain, seconds=20), Refuted)
    name = "blocks.0.mlp.W_out"
    fault = faulty(small, name, where(small, name, 0), -3.0)
    verdict = prove(Abstracts(fault), domain, seconds=20)
    assert isinstance(verdict, Refuted) and isinstance(verdict.evidence, Witness) and len(verdict.evidence.inputs) == 2


def test_the_compiled_circuit_is_faithful_and_a_smaller_one_is_not() -> None:
    small = compile(programs.sort(), vocab=range(3), max_len=3)
    domain = sequences(range(3), range(1, 4))
    for ablation in ("zero", "resample"):
        assert not isinstance(prove(Faithful(small, ablation=ablation), domain, seconds=10), Refuted)
    edge = sorted(small.circuit.edges)[0]
    less = small.circuit.without([edge])
    assert isinstance(less, Circuit)
    verdict = prove(Faithful(small, less, "resample"), domain, seconds=10)
    assert isinstance(verdict, Refuted), edge
    assert "resample" in str(verdict)


def test_search_can_look_for_what_holds(sort: Compiled) -> None:
    fault = faulty(sort, "unembed.W_U", where(sort, "unembed.W_U", 2), 0.0)
    found, search = search_for_failure(Computes(fault), sequences(range(8), 9), 10, goal=TRUE)
    assert found is not None and int(Computes(fault).body.judge(search.ids(found), "real")[0]) == TRUE
