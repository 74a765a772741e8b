"""Interventions against slow references written with plain loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from certiformer.models.circuits import Circuit, all_edges, full_circuit
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.edits import (
    Ablate,
    Given,
    Interchange,
    Mean,
    Resample,
    Subspace,
    Zero,
    change_weight,
    edit,
    outside,
)
from certiformer.models.errors import InputError
from certiformer.models.transformer import Transformer

LAYERS = (LayerConfig(2, 3, 5), LayerConfig(3, 2, 0), LayerConfig(0, 0, 4), LayerConfig(1, 4, 6))


def make(**changes: object) -> Transformer:
    fields: dict[str, object] = {"d_model": 8, "n_ctx": 6, "d_vocab": 5, "d_vocab_out": 4}
    config = TransformerConfig(**{**fields, "layers": LAYERS, "causal": True, **changes})  # type: ignore[arg-type]
    model = Transformer.initialised(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[1].startswith("b_"):
                parameter.normal_(0.0, 0.5, generator=generator)
    return model


MODELS = {
    "plain": make(),
    "layer_norm": make(layer_norm=1e-5),
    "last": make(readout="last", layer_norm=1e-5),
    "mean": make(readout="mean", causal=False, positional="none"),
}
TOKENS = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1], [2, 2, 2, 0]])
SOURCE = torch.tensor([[3, 0, 4, 1], [1, 1, 0, 2], [0, 4, 3, 3]])


def reference(model: Transformer, tokens: Tensor, replaced: dict[tuple[str, str], Tensor]) -> Tensor:
    """Logits when the contribution of `src` to the reader (`a1.h0<q>`, `m0`, `logits`) is `replaced[src, reader]`."""
    config, p = model.config, model.parameter
    batch, length = tokens.shape
    x = p("embed.W_E")[tokens]
    if config.positional == "learned":
        x = x + p("pos_embed.W_pos")[:length]
    written: dict[str, Tensor] = {"input": x}
    biases = torch.zeros(config.d_model)

    def norm(x: Tensor, name: str) -> Tensor:
        if config.layer_norm is None:
            return x
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + config.layer_norm).sqrt()
        return centred / scale * p(f"{name}.w") + p(f"{name}.b")

    def read(reader: str, writers: list[str]) -> Tensor:
        total = biases.expand(batch, length, config.d_model)
        for writer in writers:
            total = total + replaced.get((writer, reader), written[writer])
        return total

    for index, layer in enumerate(config.layers):
        block, before = f"blocks.{index}", list(written)
        new: dict[str, Tensor] = {}
        for head in range(layer.n_heads):
            name = f"a{index}.h{head}"
            q, k, v = (
                norm(read(f"{name}<{s}>", before), f"{block}.ln1") @ p(f"{block}.attn.W_{s.upper()}")[head]
                + p(f"{block}.attn.b_{s.upper()}")[head]
                for s in "qkv"
            )
            scores = q @ k.transpose(1, 2) * config.scale(index)
            if config.causal:
                scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            new[name] = torch.softmax(scores, -1) @ v @ p(f"{block}.attn.W_O")[head]
        written.update(new)
        if layer.n_heads:
            biases = biases + p(f"{block}.attn.b_O")
        if layer.d_mlp:
            x = norm(read(f"m{index}", list(written)), f"{block}.ln2")
            hidden = torch.relu(x @ p(f"{block}.mlp.W_in") + p(f"{block}.mlp.b_in"))
            written[f"m{index}"] = hidden @ p(f"{block}.mlp.W_out") + p(f"{block}.mlp.b_out")
    final = norm(read("logits", list(written)), "ln_final")
    if config.readout != "each":
        final = final[:, -1] if config.readout == "last" else final.mean(1)
    return final @ p("unembed.W_U") + p("unembed.b_U")


def outputs(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """What each node writes."""
    _, cache = model.run_with_cache(tokens)
    found = {"input": cache["blocks.0.hook_resid_pre"]}
    for index, layer in enumerate(model.config.layers):
        for head in range(layer.n_heads):
            found[f"a{index}.h{head}"] = cache[f"blocks.{index}.attn.hook_result"][:, :, head]
        if layer.d_mlp:
            found[f"m{index}"] = cache[f"blocks.{index}.hook_mlp_out"]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_unedited(name: str) -> None:
    model = MODELS[name]
    with torch.no_grad():
        assert torch.allclose(model(TOKENS), reference(model, TOKENS, {}), atol=1e-5)
        assert torch.equal(edit(model)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_edge_ablated_alone(name: str) -> None:
    model = MODELS[name]
    other = outputs(model, SOURCE)
    for place, edge in enumerate(all_edges(model.config)):
        reader = edge.dst + (f"<{edge.slot}>" if edge.slot else "")
        by, value = (
            (Zero(), torch.zeros(8)),
            (Resample(SOURCE), other[edge.src]),
            (Mean(SOURCE), other[edge.src].mean((0, 1), keepdim=True)),
        )[place % 3]
        got = edit(model, Ablate(str(edge), by))(TOKENS)
        want = reference(model, TOKENS, {(edge.src, reader): value})
        assert torch.allclose(got, want, atol=1e-5), (str(edge), by)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_node_ablated_alone(name: str) -> None:
    model = MODELS[name]
    for node, other in outputs(model, SOURCE).items():
        readers = {
            edge.dst + (f"<{edge.slot}>" if edge.slot else "") for edge in all_edges(model.config) if edge.src == node
        }
        for by, value in (
            (Zero(), torch.zeros(8)),
            (Resample(SOURCE), other),
            (Mean(SOURCE, per_position=True), other.mean(0, keepdim=True)),
            (Given(torch.full((8,), 0.25)), torch.full((8,), 0.25)),
        ):
            got = edit(model, Ablate(node, by))(TOKENS)
            want = reference(model, TOKENS, {(node, reader): value for reader in readers})
            assert torch.allclose(got, want, atol=1e-5), (node, by)


@torch.no_grad()
def test_many_edits_at_once() -> None:
    model = MODELS["layer_norm"]
    edges = [edge for place, edge in enumerate(all_edges(model.config)) if place % 3 == 1]
    other = outputs(model, SOURCE)
    want = reference(model, TOKENS, {(e.src, e.dst + (f"<{e.slot}>" if e.slot else "")): other[e.src] for e in edges})
    edited = edit(model, *(Ablate(str(edge), Resample(SOURCE)) for edge in edges))
    assert torch.allclose(edited(TOKENS), want, atol=1e-5)
    stepwise = edit(edit(model, Ablate(str(edges[0]), Resample(SOURCE))), *edited.edits[1:])
    assert torch.equal(stepwise(TOKENS), edited(TOKENS))


@torch.no_grad()
def test_circuit_alone() -> None:
    model = MODELS["plain"]
    full = full_circuit(model.config)
    assert outside(full, model.config, Zero()) == ()
    empty = Circuit.from_edges([])
    alone = edit(model, *outside(empty, model.config, Zero()))(TOKENS)
    biases = sum(model.parameter(f"blocks.{i}.attn.b_O") for i in (0, 1, 3))
    assert isinstance(biases, Tensor)
    want = biases @ model.parameter("unembed.W_U") + model.parameter("unembed.b_U")
    assert torch.allclose(alone, want.expand_as(alone), atol=1e-6)
    nodes = Circuit.from_nodes(model.config, ["a0.h1", "m3"])
    assert {e.target for e in outside(nodes, model.config, Zero())} == {
        "a0.h0", "m0", "a1.h0", "a1.h1", "a1.h2", "m2", "a3.h0",
    }  # fmt: skip


@torch.no_grad()
def test_interchange_everywhere_gives_the_source_run() -> None:
    model = MODELS["plain"]
    _, source = model.run_with_cache(SOURCE)
    for site in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.3.hook_resid_post"):
        edited = edit(model, Interchange(site, SOURCE))
        assert torch.equal(edited(TOKENS), model(SOURCE))
    for site, values in source.items():
        logits, cache = edit(model, Interchange(site, SOURCE)).run_with_cache(TOKENS)
        assert torch.equal(cache[site], values) and torch.isfinite(logits).all()


@torch.no_grad()
def test_interchange_at_positions_and_heads() -> None:
    model = MODELS["plain"]
    _, base = model.run_with_cache(TOKENS)
    _, source = model.run_with_cache(SOURCE[:1])
    one = Interchange("blocks.1.attn.hook_z", SOURCE[:1], positions=(1, -1), head=2)
    _, cache = edit(model, one).run_with_cache(TOKENS)
    want = base["blocks.1.attn.hook_z"].clone()
    want[:, [1, 3], 2] = source["blocks.1.attn.hook_z"][:, [1, 3], 2]
    assert torch.equal(cache["blocks.1.attn.hook_z"], want)
    assert torch.equal(cache["blocks.1.attn.hook_z@0"], base["blocks.1.attn.hook_z"])
    pattern = Interchange("blocks.1.attn.hook_pattern", SOURCE, positions=(3,), head=0)
    _, cache = edit(model, pattern).run_with_cache(TOKENS)
    _, source = model.run_with_cache(SOURCE)
    want = base["blocks.1.attn.hook_pattern"].clone()
    want[:, 0, 3] = source["blocks.1.attn.hook_pattern"][:, 0, 3]
    assert torch.equal(cache["blocks.1.attn.hook_pattern"], want)


@torch.no_grad()
def test_subspace() -> None:
    model = MODELS["plain"]
    site = "blocks.1.hook_resid_pre"
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, 8, generator=generator)
    _, base = model.run_with_cache(TOKENS)
    _, cache = edit(model, Subspace(site, directions, Zero())).run_with_cache(TOKENS)
    assert torch.allclose(cache[site] @ directions.T, torch.zeros(3, 4, 2), atol=1e-5)
    rest = torch.linalg.svd(directions)[2][2:]
    assert torch.allclose(cache[site] @ rest.T, base[site] @ rest.T, atol=1e-5)
    everything = edit(model, Subspace(site, torch.eye(8), Resample(SOURCE)))
    assert torch.allclose(everything(TOKENS), model(SOURCE), atol=1e-5)
    head = edit(model, Subspace("blocks.0.attn.hook_v", torch.eye(3)[:1], Zero(), head=1))
    _, cache = head.run_with_cache(TOKENS)
    assert torch.allclose(cache["blocks.0.attn.hook_v"][:, :, 1, 0], torch.zeros(3, 4), atol=1e-6)
    assert torch.equal(cache["blocks.0.attn.hook_v"][:, :, 0], base["blocks.0.attn.hook_v"][:, :, 0])


@torch.no_grad()
def test_the_original_and_the_copy_do_not_touch() -> None:
    model = make()
    before, weights = model(TOKENS), copy.deepcopy(model.state_dict())
    edited = edit(model, Ablate("a0.h0", Zero()), Ablate("input->m0", Resample(SOURCE)))
    once = edited(TOKENS)
    changed = change_weight(model, "blocks.0.attn.W_Q", (1, 2, 0), 7.5)
    assert changed.parameter("blocks.0.attn.W_Q")[1, 2, 0] == 7.5
    assert torch.equal(model(TOKENS), before) and not torch.equal(once, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert sum(int((a != b).sum()) for a, b in zip(changed.parameters(), model.parameters(), strict=True)) == 1
    model.parameter("embed.W_E").zero_()
    assert torch.equal(edited(TOKENS), once)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Ablate("a0.h9", Zero()), "near names: .*a0.h"),
        (Ablate("logits", Zero()), "node or edge"),
        (Ablate("m0->a0.h0<q>", Zero()), "node or edge"),
        (Ablate("a0.h0", "zero"), "Zero, Mean, Resample or Given"),  # type: ignore[arg-type]
        (Ablate("a0.h0", Given(torch.zeros(7))), "d_model"),
        (Ablate("a0.h0", Given(torch.full((8,), torch.nan))), "finite"),
        (Ablate("a0.h0", Resample(torch.tensor([[9]]))), "tokens must be 0 to 4"),
        (Ablate("a0.h0", Mean(torch.zeros(0, 4, dtype=torch.int64))), "at least one"),
        (Interchange("blocks.0.attn.hook_zz", SOURCE), "near names: .*blocks.0.attn.hook_z"),
        (Interchange("blocks.0.attn.hook_z", SOURCE, head=2), "2 heads"),
        (Interchange("blocks.0.hook_mlp_out", SOURCE, head=0), "no heads"),
        (Interchange("blocks.0.hook_mlp_out", SOURCE, positions=(4,)), "outside the source's 4"),
        (Subspace("blocks.0.hook_mlp_out", torch.ones(1, 7), Zero()), "k, 8"),
        (Subspace("blocks.0.attn.hook_pattern", torch.ones(1, 4), Zero()), "no fixed width"),
        ("zero", "an edit is"),
    ],
)
def test_wrong_edits(wrong: Ablate, message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit(MODELS["plain"], wrong)


def test_edits_that_do_not_fit() -> None:
    model = MODELS["plain"]
    with pytest.raises(InputError, match="pos of size 4"):
        edit(model, Ablate("m0", Resample(SOURCE)))(TOKENS[:, :3])
    with pytest.raises(InputError, match="batch of size 3"):
        edit(model, Ablate("m0", Resample(SOURCE)))(TOKENS[:2])
    with pytest.raises(InputError, match="cannot be combined"):
        edit(model, Ablate("input->m0", Zero()), Interchange("blocks.1.hook_resid_pre", SOURCE))
    for name, index, value, message in (
        ("embed.W_Q", (0, 0), 1.0, "near names"),
        ("embed.W_E", (5, 0), 1.0, "no entry"),
        ("embed.W_E", (0,), 1.0, "no entry"),
        ("embed.W_E", (0, 0), float("nan"), "finite"),
        ("embed.W_E", (0, 0), 1e39, "finite"),
    ):
        with pytest.raises(InputError, match=message):
            change_weight(model, name, index, value)
