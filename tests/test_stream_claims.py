"""Claims about the stream, nodes and edges: what they refuse, what witnesses show, and enclosures against runs."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch

import certiformer as cf
from certiformer.models import zoo
from certiformer.models.circuits import Circuit, full_circuit
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.errors import InputError
from certiformer.models.execution import RULES, Run
from certiformer.models.languages import sequences
from certiformer.models.program import LOGITS, needed
from certiformer.models.transformer import Transformer
from certiformer.verifier.claims import Claim
from certiformer.verifier.reading import FALSE, TRUE
from certiformer.verifier.stream_bodies import MonotoneBody, RobustBody
from certiformer.verifier.verdicts import Proved, Refuted, Vacuous

DOMAIN = sequences(range(3), range(1, 4))


def model(seed: int = 0, **settings: Any) -> Transformer:
    """Two layers of random weights."""
    shape = {"readout": "last", "layers": (LayerConfig(2, 3, 5), LayerConfig(1, 4, 0)), **settings}
    made = Transformer(TransformerConfig(6, 3, 3, 4, **shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return made


CODEC = Codec((0, 1, 2), False, "categorical", ("a", "b", "c", "d"), (), 3)
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "each": {"readout": "each"},
    "mean, causal": {"readout": "mean", "causal": True},
    "LayerNorm, gelu": {"layer_norm": 1e-3, "activation": "gelu"},
}


def moved(made: Transformer, ids: torch.Tensor, site: str, added: torch.Tensor) -> torch.Tensor:
    """The logits with something added at a site, in float64."""
    double = {name: parameter.detach().double() for name, parameter in made.named_parameters()}
    run = Run(ids, lambda name: double[name])
    for operation in needed(made.program, (LOGITS,)):
        value = RULES[type(operation)](operation, run)
        run.values[operation.output] = value + added if operation.output == site else value
    return run.values[LOGITS]


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_perturbation_within_a_proved_radius_changes_an_output(shape: str, site: str) -> None:
    """Corners of the box, the attack's among them, on every input that is proved robust; and some are."""
    made = model(**SHAPES[shape])
    generator = torch.Generator().manual_seed(1)
    proved = 0
    for radius in (2.0**-26, 2.0**-18, 2.0**-12, 2.0**-9, 2.0**-6, 2.0**-4, 0.5):
        body = cf.Robust(made, site, radius, codec=CODEC).body
        assert isinstance(body, RobustBody)
        for n in (1, 3):
            ids = torch.tensor(list(itertools.product(range(3), repeat=n)))
            codes = body.judge((ids,), "real")
            before = made(ids).argmax(-1)
            robust = codes == TRUE
            proved += int(robust.sum())
            corners = [body.attack(ids)[0].double()]
            corners += [radius * torch.randn(len(ids), n, 6, generator=generator).sign().double() for _ in range(20)]
            for added in corners:
                assert float(added.abs().max()) <= radius
                after = moved(made, ids, site, added).argmax(-1)
                assert torch.equal(after[robust], before[robust])
            broken = codes == FALSE
            after = moved(made, ids, site, corners[0]).argmax(-1)
            assert bool((after != before).reshape(len(ids), -1).any(-1)[broken].all())
    assert proved > 10


def test_robustness_is_refuted_by_an_input_and_its_attack() -> None:
    verdict = cf.prove(cf.Robust(model(), "blocks.0.hook_resid_pre", 4.0, codec=CODEC), DOMAIN)
    assert isinstance(verdict, Refuted)
    assert verdict.outcome is not None and verdict.outcome.status == "false"
    assert verdict.outcome.expected != verdict.outcome.got and "4 added at" in verdict.outcome.note
    proved = cf.prove(cf.Robust(model(), "blocks.1.hook_resid_post", 2.0**-12, codec=CODEC), DOMAIN)
    assert isinstance(proved, Proved)


@pytest.mark.parametrize("seed", range(6))
def test_monotone_is_what_its_words_say(seed: int) -> None:
    made = model(seed)
    claim = cf.Monotone(made, [0, 1, 2], ["d", "c", "b", "a"], codec=CODEC)
    verdict = cf.prove(claim, DOMAIN)
    height = {"d": 0, "c": 1, "b": 2, "a": 3}
    failing = []
    for n in (1, 2, 3):
        for word in itertools.product(range(3), repeat=n):
            here = height[CODEC.outputs[int(made(torch.tensor([word])).argmax())]]
            for place in range(n):
                if word[place] < 2:
                    raised = [*word[:place], word[place] + 1, *word[place + 1 :]]
                    if height[CODEC.outputs[int(made(torch.tensor([raised])).argmax())]] < here:
                        failing.append(word)
    assert isinstance(verdict, Refuted if failing else Proved)
    if isinstance(verdict, Refuted):
        (word,) = verdict.evidence.inputs  # type: ignore[union-attr]
        assert tuple(word) in failing and verdict.outcome is not None and "raised input" in verdict.outcome.note


def test_tokens_left_out_of_an_order_are_not_raised() -> None:
    body = cf.Monotone(model(), [2, 0], codec=CODEC).body
    assert isinstance(body, MonotoneBody)
    made, rows = body.raised(torch.tensor([[1, 1], [2, 0], [2, 2]]))
    assert made.tolist() == [[0, 0], [0, 2], [2, 0]] and rows.tolist() == [1, 2, 2]


def test_a_subspace_as_wide_as_the_stream_says_nothing() -> None:
    claim = cf.SubspaceCarries(model(), "blocks.1.hook_resid_pre", torch.eye(6), "all", codec=CODEC)
    assert isinstance(cf.prove(claim, DOMAIN), Vacuous)


def test_the_subspace_that_the_read_out_sees_carries_all() -> None:
    made = model()
    seen = torch.linalg.qr(made.parameter("unembed.W_U").detach()).Q.T.contiguous()
    short = sequences(range(3), range(1, 3))
    assert isinstance(
        cf.prove(cf.SubspaceCarries(made, "blocks.1.hook_resid_post", seen, "all", codec=CODEC), short), Proved
    )
    rest = cf.SubspaceCarries(made, "blocks.1.hook_resid_post", seen, "nothing", complement=True, codec=CODEC)
    assert isinstance(cf.prove(rest, short), Proved)
    wrong = cf.SubspaceCarries(made, "blocks.1.hook_resid_post", seen[:1], "all", codec=CODEC)
    assert isinstance(cf.prove(wrong, short), Refuted)


def test_an_effect_is_known_to_within_its_worst_case() -> None:
    made, direction = model(), torch.tensor([1.0, -1.0, 0.0, 0.0])
    words = torch.tensor(list(itertools.product(range(3), repeat=2)))
    body: Any = cf.EdgeEffect(made, "input->a0.h1<v>", direction, 0.0, 0.0, codec=CODEC).body
    base, source = words.repeat_interleave(9, 0), words.repeat(9, 1)
    low, high = body._bounds((base, source), "real")
    runs = body._bounds((base, source), "float32")[0]
    assert bool((low <= high).all()) and float((high - low).max()) < 1e-8
    assert float((runs - low).abs().max()) < 1e-4
    most = float(runs.abs().max())
    domain = sequences(range(3), 2)
    for within, kind in ((most * 1.01, Proved), (most * 0.99, Refuted)):
        claim = cf.EdgeEffect(made, "input->a0.h1<v>", direction, 0.0, within, codec=CODEC)
        assert isinstance(cf.prove(claim, domain), kind)


def test_what_a_node_writes_is_bounded_by_its_greatest() -> None:
    made = model()
    body: Any = cf.WritesAtMost(made, "m0", torch.eye(6), 0.0, codec=CODEC).body
    words = torch.tensor(list(itertools.product(range(3), repeat=3)))
    most = float(body._bounds(words, "real")[1].max())
    for limit, kind in ((most * 1.0001, Proved), (most * 0.9999, Refuted)):
        assert isinstance(
            cf.prove(cf.WritesAtMost(made, "m0", torch.eye(6), limit, codec=CODEC), sequences(range(3), 3)), kind
        )


def test_a_circuit_may_be_faithful_and_not_complete() -> None:
    made = model()
    whole = full_circuit(made.config, "zero")
    assert isinstance(cf.prove(cf.Complete(made, whole, knockouts=2, codec=CODEC), DOMAIN), Proved)
    assert len(cf.Complete(made, whole, knockouts=2, codec=CODEC).to_json()["body"]["parts"]) == 1 + 4 + 6  # type: ignore[index]
    none = Circuit.from_edges(["input->logits"], "zero")
    assert isinstance(cf.prove(cf.Complete(made, none, codec=CODEC), DOMAIN), Refuted)


def test_the_induction_head_copies_and_the_head_before_it_need_not() -> None:
    """The trained model's second-layer head writes, for each token, that token's logit most, by more than 10."""
    trained = zoo.load("induction-12-sharp")
    tokens = sequences(trained.task.codec.vocab, 1)
    copies = cf.HeadTable(trained.model, (1, 0), "ov", "diagonal", 10, codec=trained.task.codec)
    assert isinstance(cf.prove(copies, tokens), Proved)
    verdict = cf.prove(cf.HeadTable(trained.model, (0, 0), "ov", "diagonal", codec=trained.task.codec), tokens)
    assert isinstance(verdict, Refuted) and verdict.outcome is not None and "least difference" in verdict.outcome.note


BAD: dict[str, tuple[Any, str]] = {
    "radius": (lambda m: cf.Robust(m, "blocks.0.hook_resid_pre", 0, codec=CODEC), "above 0, got 0"),
    "radius that is no float64": (
        lambda m: cf.Robust(m, "blocks.0.hook_resid_pre", Fraction(1, 3), codec=CODEC), "float64 holds exactly",
    ),
    "site": (lambda m: cf.Robust(m, "blocks.0.hook_mlp_out", 1.0, codec=CODEC), "no site of the residual stream"),
    "tokens": (lambda m: cf.Monotone(m, [0, 7], codec=CODEC), "tokens must be at least two"),
    "outputs": (lambda m: cf.Monotone(m, outputs=["a", "b"], codec=CODEC), "missing"),
    "width": (
        lambda m: cf.SubspaceCarries(m, "blocks.0.hook_resid_pre", torch.eye(3), "all", codec=CODEC), "d_model = 6",
    ),
    "not orthonormal": (
        lambda m: cf.SubspaceCarries(m, "blocks.0.hook_resid_pre", torch.ones(2, 6), "all", codec=CODEC), "orthonormal",
    ),
    "what": (
        lambda m: cf.SubspaceCarries(m, "blocks.0.hook_resid_pre", torch.eye(6)[:1], "some", codec=CODEC), "'some'",
    ),
    "position": (
        lambda m: cf.SubspaceCarries(m, "blocks.0.hook_resid_pre", torch.eye(6)[:1], "all", positions=[3], codec=CODEC),
        "positions are 0 to 2",
    ),
    "infinite": (lambda m: cf.WritesAtMost(m, "m0", torch.full((1, 6), torch.inf), 1.0, codec=CODEC), "finite"),
    "node": (lambda m: cf.WritesAtMost(m, "m1", torch.eye(6), 1.0, codec=CODEC), "no node that writes 'm1'"),
    "edge": (lambda m: cf.EdgeEffect(m, "m0->a0.h0<q>", torch.ones(4), 0, 1, codec=CODEC), "no edge"),
    "direction": (lambda m: cf.EdgeEffect(m, "m0->logits", torch.ones(3), 0, 1, codec=CODEC), "d_vocab_out = 4"),
    "head": (lambda m: cf.HeadTable(m, (2, 0), "ov", "diagonal", codec=CODEC), "no head L2H0"),
    "circuit of a head": (lambda m: cf.HeadTable(m, (0, 0), "kq", "diagonal", codec=CODEC), "'kq'"),  # type: ignore[arg-type]
    "table with LayerNorm": (
        lambda m: cf.HeadTable(model(layer_norm=1e-3), (0, 0), "ov", "diagonal", codec=CODEC), "LayerNorm",
    ),
    "knockouts": (
        lambda m: cf.Complete(m, full_circuit(m.config, "zero"), knockouts=-1, codec=CODEC), "at least 0, got -1",
    ),
    "ablations": (
        lambda m: cf.CircuitsAgree(m, full_circuit(m.config, "zero"), full_circuit(m.config, "resample"), codec=CODEC),
        "different ablations",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message):
        make(model())


def test_every_claim_describes_itself() -> None:
    made = model()
    claims: list[Claim] = [
        cf.Robust(made, "blocks.0.hook_resid_pre", 0.5, codec=CODEC),
        cf.Monotone(made, codec=CODEC),
        cf.SubspaceCarries(made, "blocks.0.hook_resid_pre", torch.eye(6)[:2], "all", positions=[0], codec=CODEC),
        cf.WritesAtMost(made, "a0.h0", torch.eye(6), 1.0, codec=CODEC),
        cf.EdgeEffect(made, "m0->logits", torch.ones(4), 0, 1, codec=CODEC),
        cf.CircuitsAgree(made, full_circuit(made.config), full_circuit(made.config), "zero", codec=CODEC),
        cf.HeadTable(made, (0, 1), "qk", "increasing", 0.5, codec=CODEC),
    ]
    words = [
        "whatever is added",
        "raising one token",
        "positions 0 carries all",
        "measures at most 1",
        "resampling m0->logits",
        "decode alike",
        "entries increase by at least 0.5",
    ]
    for claim, text in zip(claims, words, strict=True):
        assert text in claim.describe()
