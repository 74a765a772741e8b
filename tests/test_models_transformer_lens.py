"""TransformerLens's state dictionaries: read, written, and refused with all that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import certiformer as cf
from certiformer.models import InputError, LayerConfig, Transformer, TransformerConfig
from certiformer.models.transformer_lens import from_transformer_lens, load_transformer_lens, to_transformer_lens

CFG: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 6,
    "n_ctx": 5,
    "d_head": 3,
    "n_heads": 2,
    "d_mlp": 7,
    "d_vocab": 4,
    "d_vocab_out": 3,
    "act_fn": "gelu",
    "eps": 1e-5,
    "normalization_type": "LN",
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "use_attn_scale": True,
    "n_devices": 1,
    "dtype": "torch.float32",
    "use_attn_result": True,
}


def hooked_state(cfg: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """As `HookedTransformer.state_dict()` has it, for the version with masks as buffers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    d, h, e, m = cfg["d_model"], cfg["n_heads"], cfg["d_head"], cfg["d_mlp"]
    state = {"embed.W_E": draw(cfg["d_vocab"], d), "pos_embed.W_pos": draw(cfg["n_ctx"], d)}
    norms = cfg["normalization_type"] == "LN"
    for index in range(cfg["n_layers"]):
        block = f"blocks.{index}"
        for norm in ("ln1", "ln2") if norms else ():
            state[f"{block}.{norm}.w"], state[f"{block}.{norm}.b"] = draw(d), draw(d)
        for x in "QKV":
            state[f"{block}.attn.W_{x}"], state[f"{block}.attn.b_{x}"] = draw(h, d, e), draw(h, e)
        state[f"{block}.attn.W_O"], state[f"{block}.attn.b_O"] = draw(h, e, d), draw(d)
        state[f"{block}.attn.mask"] = torch.ones(cfg["n_ctx"], cfg["n_ctx"], dtype=torch.bool).tril()
        state[f"{block}.attn.IGNORE"] = torch.tensor(-torch.inf)
        state[f"{block}.mlp.W_in"], state[f"{block}.mlp.b_in"] = draw(d, m), draw(m)
        state[f"{block}.mlp.W_out"], state[f"{block}.mlp.b_out"] = draw(m, d), draw(d)
    if norms:
        state["ln_final.w"], state["ln_final.b"] = draw(d), draw(d)
    state["unembed.W_U"], state["unembed.b_U"] = draw(d, cfg["d_vocab_out"]), draw(cfg["d_vocab_out"])
    return state


def hooked_forward(state: dict[str, Tensor], cfg: dict[str, Any], tokens: Tensor) -> Tensor:
    """TransformerLens's formulas, head by head."""

    def norm(x: Tensor, name: str) -> Tensor:
        if cfg["normalization_type"] is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + cfg["eps"]).sqrt()
        return x * state[f"{name}.w"] + state[f"{name}.b"] if f"{name}.w" in state else x

    length = tokens.shape[1]
    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][:length]
    for index in range(cfg["n_layers"]):
        block = f"blocks.{index}"
        read = norm(x, f"{block}.ln1")
        total = state[f"{block}.attn.b_O"]
        for head in range(cfg["n_heads"]):
            q, k, v = (read @ state[f"{block}.attn.W_{s}"][head] + state[f"{block}.attn.b_{s}"][head] for s in "QKV")
            scale = cfg.get("attn_scale", cfg["d_head"] ** 0.5) if cfg.get("use_attn_scale", True) else 1.0
            scores = q @ k.transpose(1, 2) / (cfg["d_head"] ** 0.5 if scale == -1.0 else scale)
            scores = scores.masked_fill(~state[f"{block}.attn.mask"][:length, :length], -torch.inf)
            total = total + scores.softmax(-1) @ v @ state[f"{block}.attn.W_O"][head]
        x = x + total
        hidden = norm(x, f"{block}.ln2") @ state[f"{block}.mlp.W_in"] + state[f"{block}.mlp.b_in"]
        act = {"gelu": torch.nn.functional.gelu, "relu": torch.relu, "silu": torch.nn.functional.silu}[cfg["act_fn"]]
        x = x + act(hidden) @ state[f"{block}.mlp.W_out"] + state[f"{block}.mlp.b_out"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


TOKENS = torch.tensor([[0, 1, 2, 3, 0], [3, 3, 1, 0, 2]])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization_type": "LNPre"},
        {"normalization_type": None, "act_fn": "relu"},
        {"use_attn_scale": False},
        {"attn_scale": 4.0},
        {"attn_scale": -1.0},
        {"d_vocab_out": 4},
    ],
    ids=str,
)
def test_logits_are_those_of_the_formulas(changes: dict[str, Any]) -> None:
    cfg = {**CFG, **changes}
    state = hooked_state(cfg)
    model = from_transformer_lens(state, cfg)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), hooked_forward(state, cfg, TOKENS), rtol=1e-4, atol=1e-4)
        last = from_transformer_lens(state, cfg, readout="last")(TOKENS)
        torch.testing.assert_close(last, model(TOKENS)[:, -1])


@pytest.mark.parametrize("folder", ["relu", "norm"])
def test_written_and_read_back_it_is_the_same_model(folder: str, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"layer_norm": 1e-5, "activation": "gelu_new"} if folder == "norm" else {}
    config = TransformerConfig(6, 5, 4, 3, (LayerConfig(2, 3, 7), LayerConfig(2, 3, 7)), causal=True, **extra)
    model = Transformer.initialised(config, 1)
    state, cfg = to_transformer_lens(model)
    torch.save(state, tmp_path / "m.pth")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    back = load_transformer_lens(tmp_path / "m.pth", tmp_path / "cfg.json")
    assert back.config == config and back.weights_sha256() == model.weights_sha256()


def test_unequal_layers_are_filled_with_what_adds_nothing() -> None:
    compiled = cf.compile(cf.programs.reverse(), vocab=range(3), max_len=4)
    assert len(set(compiled.model.config.layers)) > 1
    state, cfg = to_transformer_lens(compiled.model)
    back = from_transformer_lens(state, cfg)
    assert len(set(back.config.layers)) == 1
    tokens = compiled.codec.encode([[0, 1, 2, 2], [1, 1, 0, 2]])
    with torch.no_grad():
        torch.testing.assert_close(back(tokens), compiled.model(tokens), rtol=1e-4, atol=1e-4)
        hooked = hooked_forward(state, cfg, tokens)
    torch.testing.assert_close(hooked, compiled.model(tokens).detach(), rtol=1e-4, atol=1e-4)


def test_everything_that_is_wrong_is_listed() -> None:
    state = hooked_state(CFG)
    del state["blocks.0.attn.W_Q"], state["ln_final.b"]
    state["blocks.1.mlp.W_in"] = torch.zeros(7, 6)
    state["unembed.W_U"] = state["unembed.W_U"].half()
    state["embed.W_E"] = state["embed.W_E"].bfloat16()
    state["blocks.0.attn.rotary_sin"] = torch.zeros(3)
    state["blocks.1.attn.mask"] = torch.ones(5, 5, dtype=torch.bool)
    with pytest.raises(InputError) as error:
        from_transformer_lens(state, CFG)
    for part in (
        "blocks.0.attn.W_Q is missing",
        "ln_final.b is missing",
        "blocks.1.mlp.W_in has shape (7, 6), must have (6, 7)",
        "unembed.W_U is torch.float16 (upcast=True",
        "embed.W_E is torch.bfloat16",
        "blocks.0.attn.rotary_sin is unknown (rotary",
        "blocks.1.attn.mask is not the mask of causal attention",
    ):
        assert part in str(error.value)


def test_low_precision_is_read_exactly_when_asked() -> None:
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in hooked_state(CFG).items()}
    model = from_transformer_lens(state, CFG, upcast=True)
    assert torch.equal(model.parameter("embed.W_E").detach(), state["embed.W_E"].float())
    with pytest.raises(InputError, match="float64, must be float32"):
        from_transformer_lens({name: t.double() for name, t in hooked_state(CFG).items()}, CFG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positional_embedding_type": "rotary"}, "positional_embedding_type='rotary'"),
        ({"positional_embedding_type": "shortformer"}, "'shortformer'"),
        ({"normalization_type": "RMS", "gated_mlp": True}, "gated_mlp=True; normalization_type='RMS'"),
        ({"parallel_attn_mlp": True}, "parallel_attn_mlp"),
        ({"n_key_value_heads": 1}, "n_key_value_heads=1"),
        ({"act_fn": "solu_ln"}, "act_fn='solu_ln'"),
        ({"attention_dir": "local"}, "attention_dir='local'"),
        ({"d_head": None}, "must have d_head"),
        ({"attn_scale": "big"}, "attn_scale must be"),
        ({"n_heads": -1}, "n_heads"),
    ],
)
def test_settings_without_a_counterpart_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_transformer_lens(hooked_state(CFG), {**CFG, **changes})
    assert from_transformer_lens(hooked_state(CFG), {**CFG, "n_key_value_heads": 2})


def test_attention_only_models(tmp_path: Path) -> None:
    config = TransformerConfig(6, 5, 4, 3, (LayerConfig(2, 3, 0),))
    state, cfg = to_transformer_lens(Transformer.initialised(config, 1))
    assert cfg["attn_only"] and not any("mlp" in name for name in state)
    assert from_transformer_lens(state, cfg).config == config


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="no torch file"):
        load_transformer_lens(tmp_path / "m.pth", CFG)
    torch.save([1, 2], tmp_path / "m.pth")
    with pytest.raises(InputError, match="no state dictionary, but list"):
        load_transformer_lens(tmp_path / "m.pth", CFG)
    (tmp_path / "m.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="no safetensors file"):
        load_transformer_lens(tmp_path / "m.safetensors", CFG)
    with pytest.raises(InputError, match="cannot read"):
        load_transformer_lens(tmp_path / "none.pth", CFG)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(InputError, match="JSON object"):
        load_transformer_lens(tmp_path / "m.pth", tmp_path / "cfg.json")
