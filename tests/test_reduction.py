"""The circuit's own model computes what the model with the edits does: in float64, and by rigorous enclosures."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch

from certiformer.models import Circuit, InputError, LayerConfig, Transformer, TransformerConfig, edit, outside
from certiformer.models.circuits import all_edges, all_nodes, full_circuit
from certiformer.models.edits import Ablate, Edited, Given, Resample, Zero
from certiformer.models.program import LOGITS
from certiformer.models.reduction import circuit_model, outside_edges, paired_model, sources
from certiformer.verifier.alone import Enclosed
from certiformer.verifier.balls import enclose

LAYERS = (
    (LayerConfig(1, 3, 0),),
    (LayerConfig(2, 2, 3),),
    (LayerConfig(0, 0, 4),),
    (LayerConfig(1, 2, 2), LayerConfig(2, 2, 0)),
    (LayerConfig(2, 2, 3), LayerConfig(0, 0, 2), LayerConfig(1, 3, 2)),
)


def random_model(seed: int) -> Transformer:
    rng = random.Random(seed)
    config = TransformerConfig(
        d_model=rng.choice([2, 4]),
        n_ctx=4,
        d_vocab=4,
        d_vocab_out=3,
        layers=rng.choice(LAYERS),
        activation=rng.choice(["relu", "gelu", "silu"]),
        causal=rng.random() < 0.5,
        positional=rng.choice(["learned", "none"]),
        attention_scale=rng.choice(["1/sqrt(d_head)", 0.75]),
        readout=rng.choice(["each", "last", "mean"]),
    )
    if config.readout != "each" and seed % 2:
        config = replace(config, d_readout=3)
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
    return model


def random_circuit(config: TransformerConfig, seed: int) -> Circuit:
    rng = random.Random(seed)
    keep = rng.choice([0.3, 0.6, 0.9])
    if rng.random() < 0.3:
        return Circuit.from_nodes(config, {node for node in all_nodes(config) if rng.random() < keep})
    nodes, edges = set(all_nodes(config)), [str(edge) for edge in all_edges(config) if rng.random() < keep]
    return Circuit(frozenset(nodes), frozenset(edges))


def doubled(model: Transformer) -> Transformer:
    return copy.deepcopy(model).double()


def edited(model: Transformer, *edits: Ablate) -> Edited:
    """The model with the edits, all in float64."""
    found = edit(doubled(model), *edits)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in found.constants.items()}
    return replace(found, constants=wide)


def random_means(model: Transformer, circuit: Circuit, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {node: torch.randn(model.config.d_model, generator=generator) for node in sources(circuit, model.config)}


def by_means(model: Transformer, circuit: Circuit, means: dict[str, torch.Tensor]) -> list[Ablate]:
    """The edits that leave the circuit, with these vectors in place of the rest."""
    targets = [one.target for one in outside(circuit, model.config, Zero())]
    found = {target: means.get(target.partition("->")[0]) for target in targets}
    return [Ablate(target, Zero() if value is None else Given(value)) for target, value in found.items()]


@pytest.mark.parametrize("seed", range(60))
def test_what_it_computes_is_what_the_edited_model_computes(seed: int) -> None:
    model = random_model(seed)
    circuit = random_circuit(model.config, seed + 1000)
    tokens = torch.randint(0, 3, (5, random.Random(seed).randint(1, 4)), generator=torch.Generator().manual_seed(seed))
    second = tokens.roll(1, 0)
    means = random_means(model, circuit, seed)
    edits = [
        (outside(circuit, model.config, Zero()), circuit_model(model, circuit), tokens),
        (by_means(model, circuit, means), circuit_model(model, circuit, means), tokens),
        (outside(circuit, model.config, Resample(second)), paired_model(model, circuit, 3, False), tokens * 3 + second),
    ]
    for edit_, reduced, ids in edits:
        wanted = edited(model, *edit_)(tokens)
        found = doubled(reduced)(ids)
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_enclosures_of_both_overlap(seed: int) -> None:
    model = random_model(seed + 200)
    circuit = random_circuit(model.config, seed)
    tokens = torch.randint(0, 4, (3, 3), generator=torch.Generator().manual_seed(seed))
    ablated = edit(model, *outside(circuit, model.config, Zero()))
    left = enclose(Enclosed(ablated, dict(ablated.constants)), tokens)[LOGITS]
    right = enclose(circuit_model(model, circuit), tokens)[LOGITS]
    assert bool(((left.low() <= right.high()) & (right.low() <= left.high())).all())
    assert float((left.high() - left.low()).max()) < 1e-6


def test_bos_is_the_same_token_in_both_runs() -> None:
    model = random_model(3)
    circuit = random_circuit(model.config, 5)
    tokens, second = torch.tensor([[3, 0, 2]]), torch.tensor([[3, 1, 1]])
    wanted = edited(model, *outside(circuit, model.config, Resample(second)))(tokens)
    found = doubled(paired_model(model, circuit, 3, True))(torch.tensor([[9, 1, 7]]))
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_full_circuit_is_the_model(seed: int) -> None:
    model = random_model(seed)
    same = circuit_model(model, full_circuit(model.config))
    assert same.config == model.config and same.weights_sha256() == model.weights_sha256()


def test_an_empty_circuit_is_the_bias_alone() -> None:
    model = random_model(8)
    empty = circuit_model(model, Circuit(frozenset(all_nodes(model.config)), frozenset()))
    assert not empty.config.layers
    wanted = edit(model, *outside(Circuit(frozenset(all_nodes(model.config)), frozenset()), model.config, Zero()))
    tokens = torch.tensor([[0, 1, 2]])
    assert torch.allclose(empty(tokens), wanted(tokens), atol=1e-6)


def test_every_weight_is_a_copy() -> None:
    for seed in range(20):
        model = random_model(seed)
        circuit = random_circuit(model.config, seed)
        means = random_means(model, circuit, seed)
        known = {0.0, *(x for p in model.parameters() for x in p.flatten().tolist())}
        known |= {x for m in means.values() for x in m.tolist()}
        for reduced in (circuit_model(model, circuit, means), paired_model(model, circuit, 3, True)):
            assert {x for p in reduced.parameters() for x in p.flatten().tolist()} <= known


def test_bad_input() -> None:
    model = random_model(1)
    circuit = Circuit(frozenset(all_nodes(model.config)), frozenset())
    means = random_means(model, circuit, 0)
    with pytest.raises(InputError, match="missing: input"):
        circuit_model(model, circuit, {})
    with pytest.raises(InputError, match="float32 tensor of shape"):
        circuit_model(model, circuit, {**means, "input": torch.zeros(99)})
    with pytest.raises(InputError, match="NaN or infinite"):
        circuit_model(model, circuit, {**means, "input": means["input"] * torch.inf})
    normed = Transformer(TransformerConfig(4, 4, 4, 3, (LayerConfig(1, 2, 0),), layer_norm=1e-5))
    with pytest.raises(InputError, match="LayerNorm"):
        circuit_model(normed, full_circuit(normed.config))
    with pytest.raises(InputError, match="no such nodes|unknown"):
        circuit_model(model, Circuit.from_edges(["a7.h0->logits"]))
    assert outside_edges(circuit, model.config) == all_edges(model.config)
