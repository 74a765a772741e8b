"""Models as JAX: every operation and site, in float64 and float32; there and back bit for bit; Tracr's names."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
import torch

import certiformer as cf
from certiformer.compiler import tracr
from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.tracr_models import build
from certiformer.models import Ablate, Codec, InputError, Interchange, LayerConfig, Mean, Subspace, Zero, edit, zoo
from certiformer.models.jax_export import RULES, from_jax, to_jax
from certiformer.models.program import OPERATIONS
from certiformer.models.sites import sites

from .exported import MODELS, difference, in_float64, make, words
from .recorded_tracr import NAMES, recorded

EQUAL = 1e-12
"""In float64."""


def in_jax64(model: Any, tokens: torch.Tensor, names: Any) -> dict[str, npt.NDArray[Any]]:
    with jax.enable_x64(True):
        params, forward = to_jax(model, names)
        exact = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
        return {site: np.asarray(value) for site, value in forward(exact, tokens.numpy())[1].items()}


def test_every_operation_has_a_rule() -> None:
    assert set(RULES) == set(OPERATIONS)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "no positions"])
def test_every_site(name: str) -> None:
    model = MODELS[name]
    tokens, known = words(model, 5, 4), tuple(sites(model.config))
    wanted = in_float64(model, tokens, known)
    found = in_jax64(model, tokens, None)
    assert set(found) == set(known)
    for site in known:
        assert difference(found[site], wanted[site]) < EQUAL, site


def test_edited_models() -> None:
    base = make(9, causal=True)
    tokens = words(base, 3, 4)
    directions = torch.linalg.qr(torch.randn(3, 2, generator=torch.Generator().manual_seed(0))).Q.T
    wide = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(0))).Q.T
    for edits in (
        [
            Ablate("a0.h0->a2.h0<q>", Mean(tokens, per_position=True)),
            Ablate("a0.h1", Zero()),
            Interchange("blocks.0.attn.hook_pattern", words(base, 1, 4, seed=5), positions=(1, 2), head=1),
            Subspace("blocks.0.attn.hook_z", directions, Mean(tokens), head=1),
        ],
        [Subspace("blocks.1.hook_resid_post", wide, Zero())],
    ):
        model = edit(base, *edits)
        found = in_jax64(model, tokens, "logits")["logits"]
        assert difference(found, in_float64(model, tokens)["logits"]) < EQUAL


@pytest.mark.parametrize("name", ["max-of-10", "dyck-1-16"])
def test_ten_thousand_inputs(name: str) -> None:
    """float32 beside float32, relative to the largest logit; neither is exact to 1e-6 of the real logits."""
    model = zoo.load(name).model
    params, forward = to_jax(model)
    tokens = words(model, 10_000)
    with torch.no_grad():
        ours = torch.cat([model(part) for part in tokens.split(2000)]).numpy()
    found = np.concatenate([np.asarray(forward(params, part.numpy())) for part in tokens.split(2000)])
    assert found.dtype == np.float32 and difference(found, ours) < 2e-6


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_for_bit(name: str) -> None:
    model = MODELS[name]
    params, _ = to_jax(model)
    back = from_jax(params, model.config)
    assert back.config == model.config and back.weights_sha256() == model.weights_sha256()
    with torch.no_grad():
        back.parameter("embed.W_E").fill_(0.0)
    assert from_jax(params, model.config).weights_sha256() == model.weights_sha256()


def test_it_is_an_ordinary_function_of_jax() -> None:
    """Its gradient by the weights is PyTorch's."""
    model = make(3, causal=True, layers=(LayerConfig(1, 2, 3),))
    tokens = words(model, 4)
    params, forward = to_jax(model)
    slopes = jax.grad(lambda weights: (forward(weights, tokens.numpy()) ** 2).sum())(params)
    model.zero_grad()
    (model(tokens) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        wanted = parameter.grad.numpy()
        assert np.abs(np.asarray(slopes[name]) - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max()), name


def test_wrong_input() -> None:
    model = MODELS["plain"]
    params, forward = to_jax(model)
    logits = np.asarray(forward(params, np.array([[0, 1], [5, 1], [-1, 1]])))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).any() and np.isnan(logits[2]).any()
    for shape in ((1, 7), (1, 0), (3,)):
        with pytest.raises(InputError, match="n_ctx = 6"):
            forward(params, np.zeros(shape, dtype=np.int32))
    with pytest.raises(InputError, match="no site 'blocks.9.hook_z'"):
        to_jax(model, "blocks.9.hook_z")
    with pytest.raises(InputError, match="missing unembed.b_U"):
        from_jax({name: value for name, value in params.items() if name != "unembed.b_U"}, model.config)
    with pytest.raises(InputError, match="unembed.b_U is float16"):
        from_jax({**params, "unembed.b_U": params["unembed.b_U"].astype("float16")}, model.config)


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(InputError, match=r"certiformer\[jax\]"):
        to_jax(MODELS["plain"])


# Under Haiku's names, as Tracr's models


@pytest.mark.parametrize("name", NAMES)
def test_tracrs_own_parameters_come_back_bit_for_bit(name: str) -> None:
    found = recorded(name)
    made = tracr.to_haiku(found.imported)
    for key, value in found.parameters.items():
        ours = made.flat()[key]
        rows = sorted if key == "token_embed/embeddings" else list  # tokens are in our order
        assert ours.dtype == np.float32 and rows(ours.tolist()) == rows(value.tolist())
    back = build(made.flat(), made.shape, program=found.program)
    assert back.model.config == found.imported.model.config and back.codec == found.imported.codec
    assert back.model.weights_sha256() == found.imported.model.weights_sha256()


def haiku_forward(made: tracr.HaikuModel, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The residual stream read out, by Tracr's definition (`tracr/transformer`), in float64."""
    p = {name: value.astype(np.float64) for name, value in made.flat().items()}
    x = p["token_embed/embeddings"][tokens] + p["pos_embed/embeddings"][np.arange(tokens.shape[1])]
    heads, size = made.shape.n_heads, made.key_size
    for layer in range(made.shape.n_layers):
        block = f"transformer/layer_{layer}"
        q, k, v = (
            (x @ p[f"{block}/attn/{part}/w"] + p[f"{block}/attn/{part}/b"]).reshape(*tokens.shape, heads, size)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bthd,bThd->bhtT", q, k) / np.sqrt(size)
        if made.shape.causal:
            scores = np.where(np.tril(np.ones((tokens.shape[1],) * 2)) > 0, scores, -1e30)
        power = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhtT,bThd->bthd", power / power.sum(-1, keepdims=True), v).reshape(*tokens.shape, -1)
        x = x + mixed @ p[f"{block}/attn/linear/w"] + p[f"{block}/attn/linear/b"]
        hidden = np.maximum(x @ p[f"{block}/mlp/linear_1/w"] + p[f"{block}/mlp/linear_1/b"], 0)
        assert hidden.shape[-1] == made.mlp_hidden_size
        x = x + hidden @ p[f"{block}/mlp/linear_2/w"] + p[f"{block}/mlp/linear_2/b"]
    return x @ made.shape.readout.astype(np.float64)


@pytest.mark.parametrize("name", [name for name in list(LIBRARY)[::3] if name not in ("identity", "tokens", "indices")])
def test_compiled_programs_as_tracrs_models(name: str) -> None:
    entry = LIBRARY[name]
    compiled = cf.compile(entry.build(), vocab=entry.vocab(3), max_len=4, causal=entry.causal)
    made = tracr.to_haiku(compiled)
    generator = torch.Generator().manual_seed(0)
    tokens = compiled.codec.with_bos(torch.randint(0, len(compiled.vocab), (40, 4), generator=generator))
    wanted = in_float64(compiled.model, tokens)["logits"]
    assert difference(haiku_forward(made, tokens.numpy()), wanted) < 1e-9
    back = build(made.flat(), made.shape, program=compiled.core)
    assert difference(in_float64(back.model, tokens)["logits"], wanted) < 1e-9
    for weight, ours in compiled.model.named_parameters():
        if weight.endswith("mlp.W_in"):
            theirs = back.model.parameter(weight)
            assert torch.equal(theirs[:, : ours.shape[1]], ours) and not theirs[:, ours.shape[1] :].any()


def test_what_tracr_cannot_express_is_named() -> None:
    codec = Codec((0, 1, 2, 3), True, "categorical", (0, 1, 2, 3))

    def problems(changes: dict[str, Any], codec: Codec = codec) -> str:
        model = make(0, layers=(LayerConfig(2, 3, 7),), **{"attention_scale": 1.0, **changes})
        with torch.no_grad():
            model.parameter("unembed.b_U").zero_()
        with pytest.raises(InputError, match="Tracr has no such models") as error:
            tracr.to_haiku(tracr.TracrModel(model, codec, cf.Circuit.from_edges([]), ()))
        return str(error.value)

    assert "LayerNorm (epsilon 0.001)" in problems({"layer_norm": 1e-3})
    assert "the activation silu" in problems({"activation": "silu"})
    assert "positional='none'" in problems({"positional": "none"})
    assert "readout='last'" in problems({"readout": "last"})
    assert "attention_scale=0.3" in problems({"attention_scale": 0.3})
    assert "3 more embedded tokens" in problems({"d_vocab": 8})
    assert "a codec without BOS" in problems({}, Codec((0, 1, 2, 3, 4), False, "categorical", (0, 1, 2, 3)))
    every = problems({"layer_norm": 1e-3, "activation": "silu", "readout": "mean"})
    assert all(part in every for part in ("LayerNorm", "silu", "readout='mean'"))
    biased = make(0, layers=(LayerConfig(2, 3, 7),))
    with pytest.raises(InputError, match="a bias of the logits"):
        tracr.to_haiku(tracr.TracrModel(biased, codec, cf.Circuit.from_edges([]), ()))
    with pytest.raises(InputError, match="heads of several widths"):
        tracr.to_haiku(
            tracr.TracrModel(
                make(layers=(LayerConfig(2, 3, 1), LayerConfig(1, 2, 1))), codec, cf.Circuit.from_edges([]), ()
            )
        )
