"""Enumeration: every input of a small domain, in order, rigorously; high precision where float64 is too rough."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from certiformer.compiler import programs
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core import CoreProgram, Indices, Map, Tokens
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.edits import change_weight
from certiformer.models.languages import distinct, exactly_one, sequences
from certiformer.models.transformer import Transformer
from certiformer.verifier import precise
from certiformer.verifier.balls import Unsupported
from certiformer.verifier.claims import Claim, Computes, Invariant, Margin, NeverOutputs
from certiformer.verifier.enumeration import enumerate_inputs, every_input, size_of
from certiformer.verifier.portfolio import prove
from certiformer.verifier.reading import TRUE, UNDECIDED, Subject
from certiformer.verifier.refute import Search
from certiformer.verifier.verdicts import Proved, Refuted, Unknown
from certiformer.verifier.witness import Witness

ENUMERATION = {"enumeration"}


@pytest.fixture(scope="module")
def sort() -> Compiled:
    return compile(programs.sort(), vocab=range(4), max_len=4)


def untrained(seed: int, **options: object) -> Subject:
    config = TransformerConfig(6, 4, 4, 3, (LayerConfig(2, 3, 5), LayerConfig(1, 4, 6)), **options)  # type: ignore[arg-type]
    return Subject(Transformer.initialised(config, seed), Codec((0, 1, 2), True, "categorical", ("a", "b", "c"), (), 3))


def test_a_compiled_model_is_proved_on_all_inputs(sort: Compiled) -> None:
    domain = sequences(range(4), range(1, 5))
    match prove(Computes(sort), domain, engines=ENUMERATION):
        case Proved(certificate) as verdict:
            assert certificate.rule == "enumerate" and verdict.setting.engine == "enumeration"
            assert certificate.theorem["domain"] == {"kind": "product", "vocab": [0, 1, 2, 3], "lengths": [1, 4]}
            assert certificate.theorem["weights_sha256"] == sort.model.weights_sha256()
        case other:
            raise AssertionError(other)


def test_the_same_proof_gives_the_same_bytes(sort: Compiled) -> None:
    first, second = (prove(Computes(sort), sequences(range(4), 2), engines=ENUMERATION) for _ in range(2))
    assert isinstance(first, Proved) and isinstance(second, Proved)
    assert first.certificate.to_bytes() == second.certificate.to_bytes()


def test_languages_that_are_no_products_are_written_as_automata(sort: Compiled) -> None:
    for domain in (exactly_one(2, range(4), range(1, 5)), distinct(range(4), (1, 3, 4))):
        match prove(Computes(sort), domain, engines=ENUMERATION):
            case Proved(certificate):
                data = certificate.theorem["domain"]
                assert data["kind"] == "dfa"
                count = 0
                for n in range(data["lengths"][0], data["lengths"][1] + 1):
                    for word in np.ndindex(*[4] * n):
                        state = data["start"]
                        for token in word:
                            state = data["delta"][state][token] if state >= 0 else -1
                        count += state in data["accept"]
                assert count == domain.size()
            case other:
                raise AssertionError(other)


def test_refuted_with_the_first_input_of_the_order(sort: Compiled) -> None:
    """Sorting is wrong from the first word that is not sorted; the identity is the wrong explanation."""
    identity = CoreProgram((0, 1, 2, 3), 4, False, (Tokens((0, 1, 2, 3)),), 0, "identity")
    match prove(Computes(sort, identity), sequences(range(4), range(1, 5)), engines=ENUMERATION):
        case Refuted(Witness(inputs)) as verdict:
            assert inputs == ((1, 0),)
            assert verdict.outcome is not None and verdict.outcome.expected == ("1", "0")
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"readout": "last"}, {"readout": "mean"}])
def test_verdicts_on_random_models_agree_with_running_every_input(seed: int, options: dict[str, object]) -> None:
    subject = untrained(seed, **options)
    domain = sequences(range(3), range(1, 4))
    claims = [
        NeverOutputs(subject, ["a"]),
        NeverOutputs(subject, ["c"]),
        Margin(subject, 0.01),
        Invariant(subject, relabelling={0: 1, 1: 0}),
        Invariant(subject, irrelevant_positions=[1]),
    ]
    for claim in claims:
        failing = [w for w in domain.enumerate() if claim.holds(Witness((tuple(w),))).status == "false"]
        match prove(claim, domain, engines=ENUMERATION):
            case Proved():
                assert not failing
            case Refuted(Witness(inputs)):
                assert list(inputs[0]) == failing[0]
            case other:
                raise AssertionError(other)
        share = Fraction(domain.size() - len(failing), domain.size())
        assert isinstance(prove(claim.at_least(share), domain, engines=ENUMERATION), Proved)
        if share < 1:
            assert isinstance(prove(claim.at_least(share + Fraction(1, 1000)), domain, engines=ENUMERATION), Refuted)


def test_every_input_is_visited_once_in_order(sort: Compiled) -> None:
    domain = exactly_one(1, range(4), range(1, 5))
    search = Search(Computes(sort), domain, float("inf"))
    seen = [list(row) for words in every_input(search) for row in words[0].tolist()]
    assert seen == list(domain.enumerate()) and len(seen) == size_of(search.claim, domain)


def test_large_domains_are_not_enumerated_and_say_so(sort: Compiled) -> None:
    large = compile(programs.reverse(), vocab=range(10), max_len=8)
    match prove(Computes(large), sequences(range(10), range(1, 9)), engines=ENUMERATION):
        case Unknown(reason, left):
            assert "2^20" in reason and left == sum(10**n for n in range(1, 9))
        case other:
            raise AssertionError(other)


def test_time_runs_out_with_a_count_of_what_is_left() -> None:
    large = compile(programs.sort(), vocab=range(8), max_len=6)
    domain = sequences(range(8), range(1, 7))
    match prove(Computes(large), domain, engines=ENUMERATION, seconds=0.3):
        case Unknown(reason, left) as verdict:
            assert "time was up" in reason and left is not None and 0 < left < domain.size()
            assert verdict.setting.seconds < 2
        case other:
            raise AssertionError(other)


def test_an_interrupt_is_an_outcome(sort: Compiled) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    match prove(Computes(sort), sequences(range(4), range(1, 5)), engines={"refute"}, progress=interrupt):
        case Unknown(reason, _):
            assert reason == "interrupted"
        case other:
            raise AssertionError(other)


def test_models_without_rigorous_bounds_are_refuted_in_float32_only_and_never_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object) -> None:
        raise Unsupported("float64 bounds overflow")

    monkeypatch.setattr(Subject, "enclosed", none)
    monkeypatch.setattr(precise, "reading", none)
    subject = untrained(0)
    outputs = {claim: prove(NeverOutputs(subject, [claim]), sequences(range(3), range(1, 3))) for claim in "abc"}
    for verdict in outputs.values():
        assert isinstance(verdict, (Refuted, Unknown))
        if isinstance(verdict, Refuted):
            assert verdict.setting.semantics == "float32" and "float32" in str(verdict)
    assert any(isinstance(verdict, Refuted) for verdict in outputs.values())


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
@pytest.mark.parametrize("layer_norm", [None, 1e-5])
def test_every_configuration_is_decided_over_the_reals(activation: str, layer_norm: float | None) -> None:
    for readout in ("each", "last", "mean"):
        subject = untrained(1, layer_norm=layer_norm, activation=activation, readout=readout)
        domain = sequences(range(3), range(1, 4))
        verdicts = [prove(NeverOutputs(subject, [output]), domain) for output in "abc"]
        assert all(isinstance(verdict, (Proved, Refuted)) for verdict in verdicts)
        assert all(verdict.setting.semantics == "real" and not verdict.setting.notes for verdict in verdicts)
        assert any(isinstance(verdict, Refuted) for verdict in verdicts)


# --- exact ties and differences below float64


def constant_logits(values: list[float]) -> Claim:
    """A model whose logits are these constants, said to output the first of 'a', 'b', ..."""
    outputs = tuple("abcdef"[: len(values)])
    config = TransformerConfig(1, 2, 1, len(values), ())
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("unembed.b_U").copy_(torch.tensor(values))
    table = np.zeros(1, dtype=np.int32)
    nodes = (Tokens((0,)), Indices((0, 1)), Map((0,), table, ("a",)))
    core = CoreProgram((0,), 2, False, nodes, 2, "a")
    return Computes(model, core, codec=Codec((0,), False, "categorical", outputs, (), 2))


@pytest.mark.parametrize(("logits", "right"), [([0.0, 0.0], True), ([1.0, 1.0, 0.0], True), ([0.0, 2.0**-149], False)])
def test_exact_ties_are_decided_by_the_order_of_outputs(logits: list[float], right: bool) -> None:
    claim = constant_logits(logits)
    assert int(claim.body.judge((torch.tensor([[0]]),), "precise")[0]) == (TRUE if right else -1)
    verdict = prove(claim, sequences([0], [1, 2]))
    assert isinstance(verdict, Proved if right else Refuted)


def test_a_weight_set_to_zero_leaves_ties_up_to_e_to_the_minus_256_and_is_still_decided(sort: Compiled) -> None:
    entry = tuple(sort.model.parameter("unembed.W_U").detach().nonzero().tolist()[2])
    fault = replace(sort, model=change_weight(sort.model, "unembed.W_U", entry, 0.0))
    claim = Computes(fault)
    search = Search(claim, sequences(range(4), 1), float("inf"))
    ids = search.ids((np.array([[2]]),))
    assert int(claim.body.judge(ids, "real")[0]) == UNDECIDED
    assert claim.holds_really(Witness(((2,),))) is not None
    assert isinstance(prove(claim, sequences(range(4), range(1, 5))), Refuted)


@pytest.mark.parametrize("seed", range(3))
def test_high_precision_agrees_with_float64_balls(seed: int) -> None:
    for options in ({}, {"causal": True}, {"attention_scale": 0.5}):
        subject = untrained(seed, **options)
        words = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 1, 1]])
        wide, sharp = subject.reading(words, "real"), subject.reading(words, "precise")
        assert bool((sharp <= wide).all()) and bool((sharp.sum(-1) == 1).all())


def test_enumeration_counts_what_it_cannot_decide() -> None:
    claim = constant_logits([0.0, 0.0])
    margin = Claim("forall", Margin(claim.subject.model, 0.0, codec=claim.subject.codec).body)
    tally = enumerate_inputs(margin, sequences([0], [1, 2]), 10)
    assert tally.true + tally.undecided == tally.total == 2


def test_a_leak_that_only_float32_cannot_see_is_noted_and_refutes_the_run_alone() -> None:
    """Over the reals e^-200 still decides; in float32 it is zero, and the first output wins the tie."""
    claim = constant_logits([0.0, 0.0])
    config = TransformerConfig(1, 2, 1, 2, (LayerConfig(1, 1, 0),), attention_scale=1.0)
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E").fill_(1.0)
        model.parameter("pos_embed.W_pos")[1] = 1.0
        model.parameter("blocks.0.attn.b_Q").fill_(-200.0)
        model.parameter("blocks.0.attn.W_K").fill_(1.0)
        model.parameter("blocks.0.attn.W_V").fill_(1.0)
        model.parameter("blocks.0.attn.b_V").fill_(-1.0)
        model.parameter("blocks.0.attn.W_O").fill_(1.0)
        model.parameter("unembed.W_U")[0, 1] = 1.0
        model.parameter("unembed.b_U")[1] = -1.0
    codec = Codec((0,), False, "categorical", ("b", "a"), (), 2)
    program = claim.body.program  # type: ignore[attr-defined]
    fault = Computes(model, program, codec=codec)
    ids = (torch.tensor([[0, 0]]),)
    assert int(fault.body.judge(ids, "float32")[0]) == -1 and fault.holds_really(Witness(((0, 0),))) is True
    real = prove(fault, sequences([0], 2))
    assert isinstance(real, Proved) and "float32 run fails on 1 inputs" in str(real)
    run = prove(fault, sequences([0], 2), semantics="float32")
    assert isinstance(run, Refuted) and run.setting.semantics == "float32" and "over the reals it holds" in str(run)
