"""Discovery: patching against edited models, EAP and EAP-IG against autograd on unshared inputs, ACDC by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from certiformer.explanations import METRICS, Metric, Pairs, Setup, acdc, eap, eap_ig, patching, sample_pairs
from certiformer.explanations.graph_runs import faint_edges, layout_of, run_graph
from certiformer.models import (
    Ablate,
    Circuit,
    Codec,
    InputError,
    LayerConfig,
    Resample,
    Transformer,
    TransformerConfig,
    Zero,
    edit,
    full_circuit,
    outside,
    sequences,
)
from certiformer.models.circuits import all_edges
from certiformer.models.means import domain_means

VOCAB, LENGTH = 5, 4
DOMAIN = sequences(range(VOCAB), LENGTH)
TWO = (LayerConfig(2, 3, 7), LayerConfig(3, 2, 5))
SHAPES: dict[str, dict[str, Any]] = {
    "relu, each": {"layers": TWO},
    "layer norm, gelu, causal, last": {
        "layers": TWO,
        "layer_norm": 1e-5,
        "activation": "gelu",
        "causal": True,
        "readout": "last",
    },
    "attention only, mean": {"layers": (LayerConfig(2, 3, 0), LayerConfig(1, 3, 0)), "readout": "mean"},
    "MLP read-out, last": {"layers": TWO, "readout": "last", "d_readout": 4, "activation": "leaky_relu"},
    "no attention in layer 0": {"layers": (LayerConfig(0, 0, 6), LayerConfig(2, 3, 0)), "layer_norm": 0.1},
    "no positions, one layer": {"layers": (LayerConfig(2, 3, 4),), "positional": "none", "activation": "silu"},
    "no layers": {"layers": ()},
}


def make(shape: str, bos: bool = False, seed: int = 0, double: bool = False) -> tuple[Transformer, Codec]:
    config = TransformerConfig(6, LENGTH + bos, VOCAB + bos, 3, **SHAPES[shape])
    model = Transformer.initialised(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b"):
                parameter.normal_(0, 0.3, generator=generator)
    return model.double() if double else model, Codec(tuple(range(VOCAB)), bos, "categorical", (0, 1, 2))


def setup_of(shape: str, *, bos: bool = False, double: bool = False, k: int = 6, **kwargs: Any) -> Setup:
    model, codec = make(shape, bos, double=double)
    if kwargs.get("ablation") == "mean":
        kwargs["means"] = domain_means(model, DOMAIN, codec, samples=20)
    return Setup(model, sample_pairs(DOMAIN, codec, k, seed=1), **kwargs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_runs_with_cut_edges_are_those_of_edited_models(shape: str, ablation: str) -> None:
    model, _ = make(shape)
    layout = layout_of(model.config)
    generator = torch.Generator().manual_seed(5)
    tokens, other = (torch.randint(0, VOCAB, (3, LENGTH), generator=generator) for _ in range(2))
    source = run_graph(model, other).outputs
    stand_in, by = (source, Resample(other)) if ablation == "resample" else (torch.zeros_like(source)[:, :1], Zero())
    edges = [str(edge) for edge in layout.edges]
    for share in (0.0, 0.2, 0.6, 1.0):
        gone = [edge for edge, x in zip(edges, torch.rand(len(edges), generator=generator), strict=True) if x < share]
        found = run_graph(model, tokens, layout.cut(gone), stand_in).logits
        expected = edit(model, *(Ablate(edge, by) for edge in gone))(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_run_without_cuts_has_the_models_bits_and_its_nodes_outputs() -> None:
    model, _ = make("layer norm, gelu, causal, last")
    tokens = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1]])
    run = run_graph(model, tokens)
    assert torch.equal(run.logits, model(tokens))
    _, cache = model.run_with_cache(tokens)
    place = layout_of(model.config).writers.index
    assert torch.equal(run.outputs[place("input")], cache["blocks.0.hook_resid_pre"])
    assert torch.equal(run.outputs[place("a1.h2")], cache["blocks.1.attn.hook_result"][:, :, 2])
    assert torch.equal(run.outputs[place("m1")], cache["blocks.1.hook_mlp_out"])


def test_a_circuit_by_nodes_cuts_all_edges_out_of_the_others() -> None:
    model, _ = make("relu, each")
    circuit = Circuit.from_nodes(model.config, ["a0.h1", "m1"], "zero")
    tokens = torch.tensor([[0, 1, 2, 3]])
    layout = layout_of(model.config)
    stand_in = torch.zeros(len(layout.writers), 1, 1, 6)
    found = run_graph(model, tokens, layout.outside(circuit), stand_in).logits
    torch.testing.assert_close(found, edit(model, *outside(circuit, model.config, Zero()))(tokens))


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("metric", METRICS)
def test_patching_is_the_change_of_the_metric_in_the_edited_model(ablation: str, metric: str) -> None:
    setup = setup_of("relu, each", bos=True, ablation=ablation, metric=metric)
    found = patching(setup)
    ((clean, source),) = setup.pairs.batches
    whole = setup.model(clean)[:, 1:].detach()
    labels = whole.argmax(-1)
    function = METRICS[metric].function
    for edge in ("input->a0.h1<k>", "a0.h0->m1", "m0->a1.h2<v>", "a1.h0->logits", "input->logits"):
        by = {"zero": Zero(), "resample": Resample(source)}.get(ablation) or setup.means.of(edge)  # type: ignore[union-attr]
        with torch.no_grad():
            alone = edit(setup.model, Ablate(edge, by))(clean)[:, 1:]
        expected = (function(alone, whole, labels) - function(whole, whole, labels)).mean()
        assert found.by_edge[edge] == pytest.approx(float(expected), abs=2e-5)


def linear_model(seed: int = 0) -> Transformer:
    """Uniform attention, no MLP, no norm: logits are linear in every node's output."""
    model = Transformer.initialised(
        TransformerConfig(6, LENGTH, VOCAB, 3, (LayerConfig(2, 3, 0), LayerConfig(2, 3, 0), LayerConfig(1, 3, 0))), seed
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("W_Q", "W_K")):
                parameter.zero_()
    return model


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_on_a_linear_model_eap_is_exact(ablation: Any) -> None:
    model = linear_model()
    codec = Codec(tuple(range(VOCAB)), False, "categorical", (0, 1, 2))
    means = domain_means(model, DOMAIN, codec, samples=20) if ablation == "mean" else None
    setup = Setup(model, sample_pairs(DOMAIN, codec, 20), ablation, means=means)
    exact = patching(setup).scores
    assert float(exact.abs().max()) > 0.04
    for found in (eap(setup), eap_ig(setup, steps=3), eap_ig(setup, steps=3, path="activations")):
        torch.testing.assert_close(found.scores, exact, rtol=1e-5, atol=1e-6)


class Unshared:
    """A forward pass written for this test: every edge has its own input, so autograd gives every edge's gradient."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        self.inputs: dict[tuple[str, str], Tensor] = {}
        self.out: dict[str, Tensor] = {}

    def read(self, node: str, slot: str, stream: Tensor, norm: str) -> Tensor:
        x = stream * 1.0
        x.requires_grad_() if not x.requires_grad else x.retain_grad()
        self.inputs[node, slot] = x
        if self.config.layer_norm is None:
            return x
        weight, bias = (self.model.parameter(f"{norm}.{w}").detach() for w in "wb")
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, self.config.layer_norm)

    def run(self, tokens: Tensor, given: dict[str, Tensor] | None = None) -> Tensor:
        given = given or {}
        get = lambda name: self.model.parameter(name).detach()  # noqa: E731
        start = get("embed.W_E")[tokens]
        if self.config.positional == "learned":
            start = start + get("pos_embed.W_pos")[: tokens.shape[1]]
        stream = self.out["input"] = given.get("input", start)
        for index, layer in enumerate(self.config.layers):
            block, total = f"blocks.{index}", stream
            for head in range(layer.n_heads):
                name = f"a{index}.h{head}"
                q, k, v = (
                    self.read(name, slot, stream, f"{block}.ln1") @ get(f"{block}.attn.W_{slot.upper()}")[head]
                    + get(f"{block}.attn.b_{slot.upper()}")[head]
                    for slot in "qkv"
                )
                scores = q @ k.transpose(1, 2) * self.config.scale(index)
                if self.config.causal:
                    scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
                written = scores.softmax(-1) @ v @ get(f"{block}.attn.W_O")[head]
                self.out[name] = given.get(name, written)
                total = total + self.out[name]
            if layer.n_heads:
                total = total + get(f"{block}.attn.b_O")
            stream = total
            if layer.d_mlp:
                hidden = self.read(f"m{index}", "", stream, f"{block}.ln2") @ get(f"{block}.mlp.W_in")
                hidden = hidden + get(f"{block}.mlp.b_in")
                act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
                act["leaky_relu"] = torch.nn.functional.leaky_relu
                written = act[self.config.activation](hidden) @ get(f"{block}.mlp.W_out") + get(f"{block}.mlp.b_out")
                self.out[f"m{index}"] = given.get(f"m{index}", written)
                stream = stream + self.out[f"m{index}"]
        last = self.read("logits", "", stream, "ln_final")
        last = last[:, -1:] if self.config.readout == "last" else last
        last = last.mean(1, keepdim=True) if self.config.readout == "mean" else last
        if self.config.d_readout:
            last = torch.nn.functional.leaky_relu(last @ get("readout.W_in") + get("readout.b_in"))
        return last @ get("unembed.W_U") + get("unembed.b_U")


def by_autograd(setup: Setup, moves: list[dict[str, float]]) -> dict[str, float]:
    """Mean over the moves of the gradient at each reader's input times the source's output less the clean one's."""
    ((clean, source),) = setup.pairs.batches
    first, other = Unshared(setup.model), Unshared(setup.model)
    whole = first.run(clean).detach()
    other.run(source)
    labels = whole.argmax(-1)
    found = dict.fromkeys(map(str, all_edges(setup.model.config)), 0.0)
    difference = {node: (other.out[node] - first.out[node]).detach() for node in first.out}
    for move in moves:
        given = {node: (other.out[node] - point * difference[node]).detach() for node, point in move.items()}
        again = Unshared(setup.model)
        logits = again.run(clean, given)
        setup.measured.function(logits, whole, labels).sum().backward()
        for edge in all_edges(setup.model.config):
            grad = again.inputs[edge.dst, edge.slot].grad
            if grad is not None:
                found[str(edge)] += float((grad * difference[edge.src]).sum()) / len(moves) / len(clean)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("metric", ["logit-difference", "cross-entropy"])
def test_eap_against_autograd_on_unshared_inputs(shape: str, metric: str) -> None:
    setup = setup_of(shape, double=True, metric=metric)
    expected = by_autograd(setup, [{}])
    for edge, score in eap(setup).by_edge.items():
        assert score == pytest.approx(expected[edge], abs=1e-10), edge


@pytest.mark.parametrize("shape", ["relu, each", "layer norm, gelu, causal, last", "no attention in layer 0"])
def test_eap_ig_is_the_mean_over_its_points(shape: str) -> None:
    setup = setup_of(shape, double=True, metric="kl")
    expected = by_autograd(setup, [{"input": k / 4} for k in range(1, 5)])
    for edge, score in eap_ig(setup, steps=4).by_edge.items():
        assert score == pytest.approx(expected[edge], abs=1e-10), edge


@pytest.mark.parametrize("shape", ["relu, each", "layer norm, gelu, causal, last"])
def test_eap_ig_on_activations_moves_the_edges_own_source(shape: str) -> None:
    setup = setup_of(shape, double=True, metric="cross-entropy")
    found = eap_ig(setup, steps=3, path="activations").by_edge
    groups = [["input"], ["a0.h0", "a0.h1"], ["m0"], ["a1.h0", "a1.h1", "a1.h2"], ["m1"]]
    for group in groups:
        expected = by_autograd(setup, [dict.fromkeys(group, k / 3) for k in range(1, 4)])
        for edge in all_edges(setup.model.config):
            if edge.src in group:
                assert found[str(edge)] == pytest.approx(expected[str(edge)], abs=1e-10), edge


def test_eap_ig_of_a_nodes_edges_adds_up_to_the_effect_of_the_node() -> None:
    """The fundamental theorem of calculus, along the path of one node's output."""
    setup = setup_of("no positions, one layer", double=True, metric="kl")
    found = eap_ig(setup, steps=100, path="activations").by_edge
    ((clean, source),) = setup.pairs.batches
    run = run_graph(setup.model, clean)
    layout = layout_of(setup.model.config)
    for node in ("input", "m0"):
        cut = layout.cut(edge for edge in layout.edges if edge.src == node)
        after = run_graph(setup.model, clean, cut, run_graph(setup.model, source).outputs).logits
        labels = run.logits.argmax(-1)
        effect = METRICS["kl"].function(after, run.logits, labels).mean()
        total = sum(score for edge, score in found.items() if edge.startswith(f"{node}->"))
        assert total == pytest.approx(float(effect), rel=0.06), node


def test_one_step_of_eap_ig_is_eap() -> None:
    setup = setup_of("layer norm, gelu, causal, last", double=True)
    for path in ("inputs", "activations"):
        torch.testing.assert_close(eap_ig(setup, steps=1, path=path).scores, eap(setup).scores)  # type: ignore[arg-type]


def test_scores_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of("relu, each", k=9)
    whole = eap(setup).scores
    monkeypatch.setattr("certiformer.explanations.pairs.ROOM", 1)
    torch.testing.assert_close(eap(setup).scores, whole)


def by_hand(setup: Setup, threshold: float) -> frozenset[str]:
    """ACDC on edited models, one pair of loops, trying every edge."""
    ((clean, source),) = setup.pairs.batches
    metric, config = setup.measured, setup.model.config
    whole = setup.positions(setup.model(clean)).detach()
    labels = whole.argmax(-1)

    def value(gone: list[str]) -> float:
        with torch.no_grad():
            edited = edit(setup.model, *(Ablate(edge, Resample(source)) for edge in gone))
            logits = setup.positions(edited(clean))
        return float(metric.function(logits, whole, labels).double().mean())

    gone: list[str] = []
    for edge in reversed(all_edges(config)):
        if value([*gone, str(edge)]) - value(gone) < threshold:
            gone.append(str(edge))
    return frozenset(map(str, all_edges(config))) - frozenset(gone)


@pytest.mark.parametrize("threshold", [1e-6, 0.003, 0.03, 10.0])
def test_acdc_cuts_what_a_plain_loop_cuts(threshold: float) -> None:
    setup = setup_of("attention only, mean", metric="kl")
    found = acdc(setup, threshold=threshold)
    assert found.chosen is not None and found.circuit() is found.chosen
    assert found.chosen.edges == by_hand(setup, threshold)


def test_acdc_at_a_threshold_below_all_damage_keeps_everything_that_matters() -> None:
    """The brute force: no single kept edge can be cut at less than the threshold at its turn; at 10 nothing is left."""
    setup = setup_of("relu, each", metric="kl")
    assert acdc(setup, threshold=10.0).circuit().edges == frozenset()
    kept = acdc(setup, threshold=-1.0).circuit().edges
    assert kept == full_circuit(setup.model.config).edges


def test_faint_edges_change_nothing() -> None:
    edges = {"input->a0.h0<q>", "a0.h0->m0", "input->m0", "input->logits", "a0.h1->logits", "input->a0.h1<v>"}
    assert faint_edges(edges) == {"input->a0.h0<q>", "a0.h0->m0", "input->m0"}
    assert faint_edges(edges | {"m0->logits"}) == frozenset()
    model, _ = make("relu, each")
    layout = layout_of(model.config)
    tokens = torch.tensor([[0, 1, 2, 3]])
    stand_in = torch.zeros(len(layout.writers), 1, 1, 6)
    some = [
        run_graph(model, tokens, ~layout.cut(kept), stand_in).logits for kept in (edges, edges - faint_edges(edges))
    ]
    torch.testing.assert_close(*some)


def test_the_logit_difference_is_to_the_clean_runs_rival() -> None:
    clean = torch.tensor([[[3.0, 2.0, 0.0]]])
    logits = torch.tensor([[[1.0, 5.0, 9.0]]])
    found = METRICS["logit-difference"].function(logits, clean, torch.tensor([[0]]))
    assert found.tolist() == [-4.0]


def test_progress_is_told() -> None:
    setup = setup_of("no positions, one layer")
    told: list[tuple[int, int]] = []
    for method in (eap, eap_ig, patching):
        told.clear()
        method(setup, progress=lambda done, total, _: told.append((done, total)))  # type: ignore[operator]
        assert told and told[-1][0] == told[-1][1]


def test_pairs_are_reproducible_words_of_the_domain() -> None:
    codec = Codec(tuple(range(VOCAB)), True, "categorical", (0, 1, 2))
    domain = sequences(range(VOCAB), range(1, 4))
    first, second = (sample_pairs(domain, codec, 50, seed=3) for _ in range(2))
    assert len(first) == 50 and "seed 3" in first.provenance
    for (a, b), (c, d) in zip(first.batches, second.batches, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
        assert bool((a[:, 0] == VOCAB).all()) and a.shape == b.shape
    assert not all(torch.equal(a, b) for a, b in first.batches)


def test_what_cannot_be_run_is_refused() -> None:
    model, codec = make("relu, each")
    pairs = sample_pairs(DOMAIN, codec, 4)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"ablation": "any"}, "ablation must be one of zero, mean, resample, got 'any'"),
        ({"ablation": "mean"}, "needs means="),
        ({"metric": "accuracy"}, "metric must be one of"),
        ({"device": "cuda"}, "no device 'cuda'"),
    ]
    for kwargs, message in refused:
        if kwargs.get("device") == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(InputError, match=message):
            Setup(model, pairs, **kwargs)
    with pytest.raises(InputError, match="another model's"):
        Setup(model, sample_pairs(DOMAIN, Codec(codec.vocab, False, "categorical", (0, 1)), 4))
    with pytest.raises(InputError, match="one for each"):
        Pairs(((torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)),), codec)
    with pytest.raises(InputError, match="at least one pair"):
        Pairs((), codec)
    with pytest.raises(InputError, match="the domain has tokens"):
        sample_pairs(sequences(range(9), 3), codec, 4)
    with pytest.raises(InputError, match="at least 1, got 0"):
        sample_pairs(DOMAIN, codec, 0)
    setup = Setup(model, pairs)
    with pytest.raises(InputError, match="steps must be"):
        eap_ig(setup, steps=0)
    with pytest.raises(InputError, match="path must be"):
        eap_ig(setup, path="outputs")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threshold must be"):
        acdc(setup, threshold=math.nan)
    with pytest.raises(InputError, match="one number an example"):
        eap(Setup(model, pairs, metric=Metric("bad", lambda a, b, c: a.sum(), True)))
    with pytest.raises(InputError, match="infinite or NaN"):
        eap(Setup(model, pairs, metric=Metric("bad", lambda a, b, c: a.sum((1, 2)) / 0, True)))


def test_one_logit_is_measured_by_squared_error() -> None:
    model = Transformer.initialised(TransformerConfig(6, LENGTH, VOCAB, 1, (LayerConfig(2, 3, 4),)), 1)
    codec = Codec(tuple(range(VOCAB)), False, "scalar", (0, 1), (0.0, 1.0))
    setup = Setup(model, sample_pairs(DOMAIN, codec, 8))
    assert setup.measured.name == "squared-error"
    assert min(patching(setup).by_edge.values()) >= 0
    with pytest.raises(InputError, match="this model has one"):
        Setup(model, setup.pairs, metric="kl")


def test_all_edges_and_tables_agree() -> None:
    for shape, seed in itertools.product(SHAPES, (0,)):
        layout = layout_of(make(shape, seed=seed)[0].config)
        table = torch.arange(layout.n_rows * len(layout.writers)).view(layout.n_rows, -1)
        assert len(set(layout.vector(table).tolist())) == len(layout.edges)
        for place, edge in enumerate(layout.edges):
            assert torch.equal(layout.cut([edge]).nonzero(), torch.tensor([layout.places[place]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_on_a_gpu_the_scores_are_the_same(ablation: str) -> None:
    here = setup_of("layer norm, gelu, causal, last", ablation=ablation, metric="kl")
    there = Setup(here.model, here.pairs, here.ablation, here.metric, here.means, device="cuda")
    for method in (eap, eap_ig, patching):
        expected, found = (method(setup).scores for setup in (here, there))  # type: ignore[operator]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    kept = [acdc(setup, threshold=1.0).circuit().edges for setup in (here, there)]
    assert kept[0] == kept[1]
