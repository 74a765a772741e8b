"""Claims: what a body says on one witness, on batches, and over the reals; what a verdict shows and refuses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from certiformer.compiler.core import Aggregate, CoreProgram, Indices, Map, Select, Tokens, Value
from certiformer.compiler.core_batches import Evaluator
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.errors import InputError
from certiformer.models.languages import sequences
from certiformer.models.transformer import Transformer
from certiformer.verifier.balls import Ball
from certiformer.verifier.claims import Attends, Claim, Computes, Invariant, Margin, NeverOutputs
from certiformer.verifier.portfolio import prove
from certiformer.verifier.reading import Subject, decoded, margin_bounds, possible
from certiformer.verifier.sampling import sample_accuracy
from certiformer.verifier.statistics import clopper_pearson
from certiformer.verifier.verdicts import Certificate, EmptyDomain, Proved, Refuted, Unknown, Vacuous
from certiformer.verifier.witness import Witness


def first_token(vocab: int = 3, length: int = 4, gain: float = 60.0) -> tuple[Transformer, Codec, CoreProgram]:
    """A model by hand: one head attends to position 0 and copies its token to every position."""
    d = 2 * vocab + length
    config = TransformerConfig(d, length, vocab, vocab, (LayerConfig(1, vocab, 0),), attention_scale=1.0)
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E")[:, :vocab] = torch.eye(vocab)
        model.parameter("pos_embed.W_pos")[:, vocab : vocab + length] = torch.eye(length)
        model.parameter("blocks.0.attn.b_Q")[0, 0] = gain
        model.parameter("blocks.0.attn.W_K")[0, vocab, 0] = 1.0
        model.parameter("blocks.0.attn.W_V")[0, :vocab] = torch.eye(vocab)
        model.parameter("blocks.0.attn.W_O")[0, :, vocab + length :] = torch.eye(vocab)
        model.parameter("unembed.W_U")[vocab + length :] = torch.eye(vocab)
    values = tuple(range(vocab))
    places = tuple(range(length))
    first = np.zeros((length, length), dtype=bool)
    first[0] = True
    nodes = (Tokens(values), Indices(places), Select(1, 1, first, "first"), Aggregate(2, 0, -1, values, "copied"))
    program = CoreProgram(values, length, False, nodes, 3, "first token")
    return model, Codec(values, False, "categorical", values, (), length), program


def witness(*tokens: Value) -> Witness:
    return Witness((tuple(tokens),))


def changed(model: Transformer, name: str, index: tuple[int, ...], value: float) -> Transformer:
    copy = Transformer.from_parameters(model.config, dict(model.named_parameters()))
    with torch.no_grad():
        copy.parameter(name)[index] = value
    return copy


# --- bodies on single witnesses and on batches


def test_computes_compares_position_by_position() -> None:
    model, codec, program = first_token()
    right = Computes(model, program, codec=codec)
    assert right.holds(witness(2, 0, 1)).status == "true"
    assert right.holds_really(witness(2, 0, 1)) is True
    wrong = Computes(changed(model, "unembed.b_U", (1,), 2.0), program, codec=codec)
    outcome = wrong.holds(witness(2, 1))
    assert (outcome.status, outcome.expected, outcome.got) == ("false", ("2", "2"), ("1", "1"))
    assert outcome.positions == (0, 1)
    assert wrong.holds_really(witness(2, 1)) is False and wrong.holds_really(witness(1, 2)) is True
    batch = torch.tensor([[2, 1], [1, 2], [0, 0]])
    assert wrong.holds_batch(batch).tolist() == [False, True, False]
    assert wrong.holds_batch(batch, semantics="real").tolist() == [False, True, False]


def test_an_undefined_program_value_is_an_outcome_of_its_own() -> None:
    model, codec, program = first_token()
    partial = Map((0,), np.array([0, 1, -1], dtype=np.int32), (0, 1), "partial")
    claim = Computes(model, CoreProgram((0, 1, 2), 4, False, (*program.nodes, partial), 4, "partial"), codec=codec)
    assert claim.holds(witness(2)).status == "undefined" and claim.holds_really(witness(2)) is None
    assert not claim.holds_batch(torch.tensor([[2]]))
    match prove(claim, sequences(range(3), 1), engines={"enumeration"}):
        case Unknown(reason, left):
            assert "undefined" in reason and left == 1
        case other:
            raise AssertionError(other)


def test_margin_never_outputs_and_conjunction() -> None:
    model, codec, program = first_token()
    assert Margin(model, 0.999, codec=codec).holds(witness(1, 2)).status == "true"
    assert Margin(model, 1.5, codec=codec).holds(witness(1, 2)).status == "false"
    never = NeverOutputs(model, [2], codec=codec)
    assert never.holds(witness(1, 2)).status == "true" and never.holds(witness(2, 1)).status == "false"
    both = Computes(model, program, codec=codec) & never & Margin(model, 0.5, codec=codec)
    outcome = both.holds(witness(2, 1))
    assert outcome.status == "false" and "never outputs 2" in outcome.note
    assert both.to_json()["body"]["kind"] == "and" and len(both.body.parts) == 3  # type: ignore[index, attr-defined]


def test_invariants_are_pairs_of_runs_derived_from_one_input() -> None:
    model, codec, _ = first_token()
    swap = {0: 1, 1: 0}
    assert Invariant(model, relabelling=swap, outputs="relabelled", codec=codec).holds(witness(0, 2)).status == "true"
    same = Invariant(model, relabelling=swap, codec=codec)
    assert same.holds(witness(0, 2)).status == "false" and same.holds(witness(2, 0)).status == "true"
    assert Invariant(model, irrelevant_positions=[1, 2], codec=codec).holds(witness(1, 2, 0, 1)).status == "true"
    outcome = Invariant(model, irrelevant_positions=[0], codec=codec).holds(witness(1, 2))
    assert outcome.status == "false" and outcome.expected == ("1",) and "[0, 2]" in outcome.note


def test_attends_is_about_the_pattern() -> None:
    model, codec, program = first_token()
    subject = Subject(model, codec)

    def claim(node: int, **options: float) -> Claim:
        class Compiled:
            pass

        of = Compiled()
        of.model, of.codec, of.core = model, codec, program  # type: ignore[attr-defined]
        return Attends(of, (0, 0), node, **options)

    assert claim(3).holds(witness(2, 0, 1)).status == "true" and claim(3).holds_really(witness(2, 0, 1)) is True
    weak = changed(model, "blocks.0.attn.b_Q", (0, 0), 2.0)
    blurred = Claim("forall", claim(2).body.with_subject(Subject(weak, codec)))
    outcome = blurred.holds(witness(2, 0, 1))
    assert outcome.status == "false" and "query 0" in outcome.note and blurred.holds_really(witness(2, 0, 1)) is False
    assert blurred.holds(witness(2)).status == "true", "with one key, all the weight is on it"
    assert (
        Claim("forall", claim(2, tolerance=0.5).body.with_subject(Subject(weak, codec))).holds(witness(1, 0)).status
        == "true"
    )
    assert subject.longest == 4


# --- readings


def test_what_balls_leave_possible_agrees_with_the_codec_at_points_and_contains_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    categorical = Codec((0,), False, "categorical", (0, 1, 2, 3))
    scalar = Codec((0,), False, "scalar", (0, 1, 2, 3), (0.5, -1.0, 2.0, 0.75))
    for codec, width in ((categorical, 4), (scalar, 1)):
        mid = torch.randint(-2, 3, (60, 5, width), generator=generator).to(torch.float64) / 2
        points = possible(codec, Ball(mid, torch.zeros_like(mid)))
        assert bool((points & decoded(codec, mid.float())).any(-1).all())
        rad = torch.rand(mid.shape, dtype=torch.float64, generator=generator)
        wide = possible(codec, Ball(mid, rad))
        low, high = margin_bounds(Ball(mid, rad))
        for _ in range(40):
            inside = mid + rad * (2 * torch.rand(mid.shape, dtype=torch.float64, generator=generator) - 1)
            assert bool((wide & decoded(codec, inside)).any(-1).all())
            if width > 1:
                two = inside.topk(2).values
                gap = two[..., 0] - two[..., 1]
                assert bool((low <= gap).all() and (gap <= high).all())


def test_exact_ties_go_to_the_first_output() -> None:
    codec = Codec((0,), False, "categorical", ("a", "b", "c"))
    tie = torch.tensor([[[1.0, 3.0, 3.0]]], dtype=torch.float64)
    reading = possible(codec, Ball(tie, torch.zeros_like(tie)))
    assert reading.tolist() == [[[False, True, True]]] or reading.tolist() == [[[False, True, False]]]


def test_core_values_in_batches_equal_the_definitions() -> None:
    values: tuple[Value, ...] = (0, 1, 2)
    means = tuple(sorted({Fraction(a, b) for b in range(1, 5) for a in range(2 * b + 1)}))
    table = np.array([[k <= q for q in range(4)] for k in range(4)])
    nodes = (Tokens(values), Indices((0, 1, 2, 3)), Select(1, 1, table), Aggregate(2, 0, -1, means))
    program = CoreProgram(values, 4, False, nodes, 3)
    words = np.array([[2, 0, 1, 1], [0, 0, 2, 2]])
    trace = Evaluator(program).run(words, (3,))
    got = [[means[v] for v in row] for row in trace.values[3].tolist()]
    assert got == [[Fraction(sum(map(int, row[: i + 1])), i + 1) for i in range(4)] for row in words]
    given = Evaluator(program).run(words, (3,), {0: np.zeros((2, 4), dtype=np.int64)})
    assert {means[v] for v in given.values[3].reshape(-1)} == {0}


# --- verdicts


def test_verdicts_are_matched_and_never_tested() -> None:
    model, codec, program = first_token()
    domain = sequences(range(3), range(1, 4))
    proved = prove(Computes(model, program, codec=codec), domain)
    match proved:
        case Proved(certificate):
            assert certificate.theorem["body"]["kind"] == "computes" and certificate.rule == "enumerate"
        case other:
            raise AssertionError(other)
    with pytest.raises(TypeError, match="match verdict"):
        bool(proved)
    text = str(proved)
    for part in ("first token", "39 inputs", "lengths 1 to 3", "real", "enumeration"):
        assert part.replace("lengths", "length") in text
    refuted = prove(Computes(changed(model, "unembed.b_U", (1,), 2.0), program, codec=codec), domain)
    match refuted:
        case Refuted(Witness(inputs)):
            assert inputs == ((0,),)
        case other:
            raise AssertionError(other)
    assert "expected [0], got [1]" in str(refuted)
    with pytest.raises(TypeError):
        assert refuted


def test_empty_domains_and_premises_that_are_never_met_are_outcomes_of_their_own() -> None:
    model, codec, program = first_token()
    nothing = sequences(range(3), 2).difference(sequences(range(3), 2))
    assert isinstance(prove(Computes(model, program, codec=codec), nothing), EmptyDomain)
    relabelled = Invariant(model, relabelling={2: 0}, codec=codec)
    assert isinstance(prove(relabelled, sequences(range(2), 2)), Vacuous)
    assert isinstance(prove(Invariant(model, irrelevant_positions=[3], codec=codec), sequences(range(2), 2)), Vacuous)


def test_certificates_are_canonical_and_written_whole(tmp_path: object) -> None:
    certificate = Certificate.of({"b": 1, "a": [1, 2]}, {"rule": "enumerate"})
    assert certificate.to_bytes() == Certificate.of({"a": [1, 2], "b": 1}, {"rule": "enumerate"}).to_bytes()
    target = tmp_path / "x.cert"  # type: ignore[operator]
    certificate.save(target)
    assert target.read_bytes() == certificate.to_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["x.cert"]


def test_the_model_is_copied_when_proving_starts() -> None:
    model, codec, program = first_token()
    domain = sequences(range(3), range(1, 4))

    def vandal(_: str) -> None:
        with torch.no_grad():
            model.parameter("unembed.b_U").add_(5.0 * torch.tensor([0.0, 1.0, 0.0]))

    digest = model.weights_sha256()
    verdict = prove(Computes(model, program, codec=codec), domain, progress=vandal)
    assert isinstance(verdict, Proved) and verdict.certificate.theorem["weights_sha256"] == digest


# --- bad input


def test_domains_that_the_claim_cannot_read_are_refused() -> None:
    model, codec, program = first_token()
    claim = Computes(model, program, codec=codec)
    with pytest.raises(InputError, match="length 9"):
        prove(claim, sequences(range(3), range(1, 10)))
    with pytest.raises(InputError, match="7"):
        prove(claim, sequences([0, 7], 2))
    with pytest.raises(InputError, match="'refute', 'enumeration', 'composition'"):
        prove(claim, sequences(range(3), 2), engines={"magic"})
    with pytest.raises(InputError, match="seconds"):
        prove(claim, sequences(range(3), 2), seconds=0)
    with pytest.raises(InputError, match="token language"):
        prove(claim, [[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown token"):
        claim.holds(witness(5))
    with pytest.raises(InputError, match="1 inputs"):
        claim.holds(Witness(((1,), (2,))))


def test_claims_refuse_what_makes_no_sense() -> None:
    model, codec, program = first_token()
    with pytest.raises(InputError, match="codec="):
        Computes(model, program)
    with pytest.raises(InputError, match="which program"):
        Computes(model, codec=codec)
    with pytest.raises(InputError, match="outputs only"):
        NeverOutputs(model, [9], codec=codec)
    with pytest.raises(InputError, match="exactly"):
        Margin(model, Fraction(1, 3), codec=codec)
    with pytest.raises(InputError, match="either"):
        Invariant(model, codec=codec)
    with pytest.raises(InputError, match="none"):
        Invariant(model, relabelling={0: 9}, codec=codec)
    with pytest.raises(InputError, match="another model"):
        Computes(model, program, codec=Codec((0, 1), False, "categorical", (0, 1)))
    with pytest.raises(InputError, match="joined by &"):
        Computes(model, program, codec=codec).exists() & Computes(model, program, codec=codec)


# --- quantifiers and figures


def test_exists_and_at_least() -> None:
    model, codec, program = first_token()
    domain = sequences(range(3), range(1, 4))
    never = NeverOutputs(model, [2], codec=codec)
    assert isinstance(prove(never.exists(), domain), Proved)
    assert isinstance(prove(never.at_least(0.6), domain), Proved)
    assert isinstance(prove(never.at_least(0.7), domain), Refuted)
    always = NeverOutputs(model, [0, 1, 2], codec=codec)
    assert isinstance(prove(always.exists(), domain), Refuted)
    estimate = sample_accuracy(never, domain, 500)
    assert estimate.low < 2 / 3 < estimate.high and "Clopper-Pearson" in str(estimate)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (99, 100), (1, 1), (50, 100)])
def test_clopper_pearson_bounds_have_the_tails_they_promise(successes: int, trials: int) -> None:
    from math import comb

    def tail(least: int, most: int, p: float) -> Fraction:
        q = Fraction(p)
        return sum((comb(trials, k) * q**k * (1 - q) ** (trials - k) for k in range(least, most + 1)), Fraction(0))

    low, high = clopper_pearson(successes, trials, 0.95)
    assert low <= successes / trials <= high
    for bound, least, most in ((low, successes, trials), (high, 0, successes)):
        if 0 < bound < 1:
            assert 0.025 * 0.999 < tail(least, most, bound) <= Fraction(1, 40)
