"""Hugging Face's GPT-2 checkpoints: read with exactly their weights, written, and refused with all that is wrong.

The reference is a forward pass of its own (`gpt2_reference`), which agrees with what transformers computed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import certiformer as cf
from certiformer.models import Codec, InputError, LayerConfig, Transformer, TransformerConfig
from certiformer.models.hugging_face import load_hugging_face, save_hugging_face

from .gpt2_reference import logits, logits_of_folder

DATA = Path(__file__).parent / "data" / "hugging_face"
RECORDED: dict[str, Any] = json.loads((DATA / "recorded.json").read_text())["cases"]
CFG: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 5,
    "n_positions": 6,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 7,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}


def checkpoint(cfg: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights for a configuration, with the prefix that transformers writes."""
    generator = torch.Generator().manual_seed(seed)
    d, inner = cfg["n_embd"], cfg.get("n_inner") or 4 * cfg["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (cfg["vocab_size"], d), "wpe.weight": (cfg["n_positions"], d)}
    for i in range(cfg["n_layer"]):
        for name, shape in {
            "ln_1": (d,),
            "attn.c_attn": (d, 3 * d),
            "attn.c_proj": (d, d),
            "ln_2": (d,),
            "mlp.c_fc": (d, inner),
            "mlp.c_proj": (inner, d),
        }.items():
            shapes |= {f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[-1:]}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    state = {f"transformer.{name}": torch.randn(s, generator=generator) * 0.6 for name, s in shapes.items()}
    if not cfg.get("tie_word_embeddings", True):
        state["lm_head.weight"] = torch.randn(cfg["vocab_size"], d, generator=generator)
    return state


def written(folder: Path, cfg: dict[str, Any], state: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(cfg))
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def words(model: Transformer, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.d_vocab, (20, length or model.config.n_ctx), generator=generator)


def close(found: Tensor, wanted: Any) -> bool:
    """Equal to 1e-6 of the largest logit."""
    difference = np.abs(found.detach().double().numpy() - np.asarray(wanted))
    return bool(difference.max() <= 1e-6 * np.abs(wanted).max())


def agrees(model: Transformer, cfg: dict[str, Any], state: dict[str, Tensor]) -> bool:
    return all(close(model(words(model, n)), logits(state, cfg, words(model, n).numpy())) for n in (1, 3, 6))


# In


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_checkpoints_compute_what_transformers_computes(name: str) -> None:
    found = load_hugging_face(DATA / name).model
    for part, length in (("logits", 7), ("short", 3)):
        tokens = torch.tensor(RECORDED[name]["tokens"])[:, :length]
        assert close(found(tokens), RECORDED[name][part])
        assert np.allclose(logits_of_folder(DATA / name, tokens.numpy()), RECORDED[name][part], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        *({"activation_function": name} for name in ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish")),
        {"tie_word_embeddings": False},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True, "n_layer": 1, "scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
        {"n_inner": None, "n_head": 4, "n_layer": 3, "layer_norm_epsilon": 1e-3},
        {"n_head": 1, "n_head_unknown_to_gpt2": 7, "attn_pdrop": 0.3},
    ],
    ids=str,
)
def test_every_setting_that_models_here_have(changes: dict[str, Any], tmp_path: Path) -> None:
    cfg = {**CFG, **changes}
    state = checkpoint(cfg)
    assert agrees(load_hugging_face(written(tmp_path / "hf", cfg, state)).model, cfg, state)


def test_weights_are_taken_exactly(tmp_path: Path) -> None:
    state = checkpoint(CFG)
    model = load_hugging_face(written(tmp_path / "hf", CFG, state)).model
    joined = torch.cat([model.parameter(f"blocks.1.attn.W_{x}").permute(1, 0, 2).reshape(8, 8) for x in "QKV"], dim=1)
    assert torch.equal(joined, state["transformer.h.1.attn.c_attn.weight"])
    assert torch.equal(model.parameter("unembed.W_U"), state["transformer.wte.weight"].T)
    assert not model.parameter("unembed.b_U").any()


def test_files_in_every_form(tmp_path: Path) -> None:
    """Sharded or not, in safetensors or torch's format, with or without prefix, with the masks of old checkpoints."""
    state = checkpoint(CFG)
    whole = load_hugging_face(written(tmp_path / "whole", CFG, state)).model.weights_sha256()
    names = sorted(state)
    for suffix, save in (("safetensors", safetensors.torch.save_file), ("bin", torch.save)):
        folder = tmp_path / f"sharded-{suffix}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CFG))
        stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
        places = {name: f"part-{place % 2}.{suffix}" for place, name in enumerate(names)}
        for part in set(places.values()):
            save({name: state[name] for name in names if places[name] == part}, folder / part)
        (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        assert load_hugging_face(folder).model.weights_sha256() == whole
    bare = {name.removeprefix("transformer."): weight for name, weight in state.items()}
    for i in range(2):
        bare[f"h.{i}.attn.bias"] = torch.ones(6, 6, dtype=torch.uint8).tril()[None, None]
        bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    bare["lm_head.weight"] = bare["wte.weight"].clone()
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(CFG))
    torch.save(bare, old / "pytorch_model.bin")
    assert load_hugging_face(old).model.weights_sha256() == whole


def test_half_precision_is_taken_exactly_if_asked_for(tmp_path: Path) -> None:
    state = {name: weight.half() for name, weight in checkpoint(CFG).items()}
    folder = written(tmp_path / "hf", CFG, state)
    with pytest.raises(InputError, match="upcast=True"):
        load_hugging_face(folder)
    model = load_hugging_face(folder, upcast=True).model
    assert torch.equal(model.parameter("embed.W_E"), state["transformer.wte.weight"].float())


def test_codecs(tmp_path: Path) -> None:
    assert load_hugging_face(DATA / "lm").codec.vocab == tuple(range(11))
    assert load_hugging_face(DATA / "sequence").codec.outputs == ("a", "b", "c", "d")
    assert load_hugging_face(DATA / "tokens").codec.outputs == (0, 1, 2)
    folder = written(tmp_path / "hf", CFG, checkpoint(CFG))
    (folder / "vocab.json").write_text(json.dumps({"b": 1, "a": 0, "Ġc": 3}))
    (folder / "added_tokens.json").write_text(json.dumps({"<end>": 4}))
    codec = load_hugging_face(folder).codec
    assert codec.vocab == codec.outputs == ("a", "b", "<id 2>", "Ġc", "<end>") and codec.max_len == 6 and not codec.bos
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 0}))
    with pytest.raises(InputError, match="token 'b' has the id 0"):
        load_hugging_face(folder)


def test_claims_about_a_checkpoint_are_decided() -> None:
    found = load_hugging_face(DATA / "sequence")
    domain = cf.sequences(vocab=range(10), length=2)
    tokens = torch.tensor([[a, b] for a in range(10) for b in range(10)])
    seen = {found.codec.outputs[i] for i in logits_of_folder(DATA / "sequence", tokens.numpy()).argmax(-1).tolist()}
    for output in found.codec.outputs:
        verdict = cf.prove(cf.NeverOutputs(found.model, [output], codec=found.codec), domain, seconds=30)
        assert isinstance(verdict, cf.Refuted if output in seen else cf.Proved), output


# Out


def ours(**changes: Any) -> Transformer:
    layers = (LayerConfig(2, 4, 7), LayerConfig(0, 0, 3), LayerConfig(1, 4, 0))
    settings = {"d_model": 8, "n_ctx": 6, "d_vocab": 5, "d_vocab_out": 5, "layers": layers, "activation": "gelu"}
    config = TransformerConfig(**{**settings, "causal": True, "layer_norm": 1e-5, **changes})  # type: ignore[arg-type]
    model = Transformer.initialised(config, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b") and name != "unembed.b_U":
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize(
    ("changes", "architecture"),
    [
        ({}, "GPT2LMHeadModel"),
        ({"d_vocab_out": 3}, "GPT2ForTokenClassification"),
        ({"d_vocab_out": 2, "readout": "last", "activation": "silu"}, "GPT2ForSequenceClassification"),
        ({"attention_scale": 0.25, "activation": "relu"}, "GPT2LMHeadModel"),
        ({"layers": (LayerConfig(0, 0, 0),)}, "GPT2LMHeadModel"),
        ({"layers": (LayerConfig(2, 4, 9),) * 2, "activation": "gelu_new"}, "GPT2LMHeadModel"),
    ],
    ids=str,
)
def test_written_models_compute_the_same(changes: dict[str, Any], architecture: str, tmp_path: Path) -> None:
    model = ours(**changes)
    save_hugging_face(model, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == [architecture]
    for length in (1, 6):
        tokens = words(model, length)
        assert close(model(tokens), logits_of_folder(tmp_path / "hf", tokens.numpy()))
    back = load_hugging_face(tmp_path / "hf").model
    assert close(back(words(model)), model(words(model)).detach().double().numpy())
    if {layer.n_heads * layer.d_head for layer in model.config.layers} == {8} and "attention_scale" not in changes:
        assert back.config == model.config and back.weights_sha256() == model.weights_sha256()


def test_a_bias_of_the_logits_makes_a_classifier_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    biased, tied = ours(), ours()
    with torch.no_grad():
        biased.parameter("unembed.b_U").fill_(0.5)
        tied.parameter("unembed.W_U").copy_(tied.parameter("embed.W_E").T)
    for name, model in (("biased", biased), ("tied", tied)):
        save_hugging_face(model, tmp_path / name)
        assert close(model(words(model)), logits_of_folder(tmp_path / name, words(model).numpy()))
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "tied" / "model.safetensors")
    assert "classifier.bias" in safetensors.torch.load_file(tmp_path / "biased" / "model.safetensors")


def test_a_codec_goes_along(tmp_path: Path) -> None:
    codec = Codec(("x", "y", "z"), True, "categorical", (1, 2, 3, 4, 5), max_len=4)
    save_hugging_face(ours(), tmp_path / "hf", codec)
    assert load_hugging_face(tmp_path / "hf").codec == codec
    save_hugging_face(ours(), tmp_path / "other", Codec(tuple(range(9)), False, "categorical", (1, 2, 3, 4, 5)))
    with pytest.raises(InputError, match="another model's"):
        load_hugging_face(tmp_path / "other")


# Refused


def test_folders_with_code_are_refused(tmp_path: Path) -> None:
    base = written(tmp_path / "base", CFG, checkpoint(CFG))
    for name, change in {
        "auto_map": lambda f: (f / "config.json").write_text(json.dumps({**CFG, "auto_map": {"AutoModel": "m.M"}})),
        "modeling_gpt2.py": lambda f: (f / "modeling_gpt2.py").write_text("raise SystemExit"),
        "trust_remote_code": lambda f: (f / "config.json").write_text(json.dumps({**CFG, "trust_remote_code": True})),
        "tokenizer_config.json has auto_map": lambda f: (f / "tokenizer_config.json").write_text(
            '{"auto_map": {"a": 1}}'
        ),
    }.items():
        folder = tmp_path / name
        shutil.copytree(base, folder)
        change(folder)
        with pytest.raises(InputError, match=f"refused: it brings code of its own.*{name}"):
            load_hugging_face(folder)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    folder, mark = tmp_path / "hf", tmp_path / "was-run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CFG))
    torch.save({**checkpoint(CFG), "evil": Evil(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="refused: it wants to import"):
        load_hugging_face(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo'"),
        ({"activation_function": "quick_gelu"}, "activation_function='quick_gelu'"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads="),
        (
            {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx=True with n_layer=3",
        ),
        ({"n_head": 3}, "n_embd=8 is no multiple of n_head=3"),
        ({"n_layer": True}, "n_layer=True"),
        ({"n_inner": 0}, "n_inner=0"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights='no'"),
        ({"layer_norm_epsilon": -1}, "epsilon"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
        ({"architectures": ["GPT2Model"]}, "GPT2Model"),
        ({"architectures": None}, "no architectures"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_models_here_lack(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "hf", {**CFG, **changes}, checkpoint(CFG))
    with pytest.raises(InputError) as error:
        load_hugging_face(folder)
    assert named in str(error.value) and str(folder) in str(error.value)


def test_all_that_is_wrong_with_weights_is_listed(tmp_path: Path) -> None:
    state = checkpoint(CFG)
    del state["transformer.h.0.ln_1.bias"]
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T.contiguous()
    state["transformer.h.1.ln_2.bias"] = state["transformer.h.1.ln_2.bias"].double()
    state["transformer.rotary"] = torch.zeros(1)
    state["transformer.h.1.attn.bias"] = torch.ones(1, 1, 6, 6)
    state["lm_head.weight"] = torch.zeros(5, 8)
    with pytest.raises(InputError) as error:
        load_hugging_face(written(tmp_path / "hf", CFG, state))
    for part in (
        "h.0.ln_1.bias is missing",
        "h.0.mlp.c_fc.weight has shape (7, 8), must have (8, 7)",
        "h.1.ln_2.bias is torch.float64",
        "rotary is unknown",
        "h.1.attn.bias is not the mask of causal attention",
    ):
        assert part in str(error.value)


def test_damaged_folders(tmp_path: Path) -> None:
    state = checkpoint(CFG)
    untied = written(tmp_path / "untied", CFG, {**state, "lm_head.weight": torch.zeros(5, 8)})
    twice = written(tmp_path / "twice", CFG, {**state, "wte.weight": state["transformer.wte.weight"].clone()})
    nan = written(tmp_path / "nan", CFG, {**state, "transformer.ln_f.bias": torch.full((8,), float("nan"))})
    broken = written(tmp_path / "broken", CFG, state)
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps(CFG))
    outside, lying = tmp_path / "outside", tmp_path / "lying"
    for folder, place in ((outside, "../untied/model.safetensors"), (lying, "part.safetensors")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CFG))
        safetensors.torch.save_file(state, folder / "part.safetensors")
        index = {"weight_map": {"transformer.wte.weight": place}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torn = written(tmp_path / "torn", CFG, state)
    (torn / "config.json").write_text('{"n_embd": 8,')
    for folder, why in (
        (untied, "set it to false"),
        (twice, "there twice"),
        (nan, "NaN"),
        (broken, "no safetensors file"),
        (empty, "has no weights"),
        (outside, "outside its folder"),
        (lying, "does not hold the weights"),
        (torn, "is not JSON"),
        (tmp_path / "nowhere", "is no folder"),
    ):
        with pytest.raises(InputError, match=why):
            load_hugging_face(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_norm": None}, "layer_norm=None"),
        ({"causal": False}, "causal=False"),
        ({"positional": "none"}, "positional='none'"),
        ({"readout": "mean"}, "readout='mean'"),
        ({"layers": ()}, "without layers"),
        ({"layers": (LayerConfig(1, 4, 2), LayerConfig(1, 2, 2))}, "several widths (d_head 2, 4)"),
        ({"layers": (LayerConfig(3, 4, 2),)}, "3 heads of d_head 4 where n_head d_head must be d_model = 8"),
        ({"layers": (LayerConfig(1, 3, 2),)}, "1 heads of d_head 3"),
        ({"attention_scale": 0.3}, "attention_scale=0.3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_gpt2_cannot_express_is_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        save_hugging_face(ours(**changes), tmp_path / "hf")
    assert named in str(error.value)
    assert not (tmp_path / "hf").exists()


def test_all_that_gpt2_cannot_express_is_named_at_once_and_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer_norm=None.*causal=False.*unembed.b_U"):
        model = ours(layer_norm=None, causal=False, readout="last")
        with torch.no_grad():
            model.parameter("unembed.b_U").fill_(1.0)
        save_hugging_face(model, tmp_path / "hf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("kept")
    with pytest.raises(InputError, match="it exists"):
        save_hugging_face(ours(), tmp_path / "hf")
    huge = ours(attention_scale=2.0**100)
    with torch.no_grad():
        huge.parameter("blocks.0.attn.W_Q").fill_(1e30)
    with pytest.raises(InputError, match="leaves float32's range"):
        save_hugging_face(huge, tmp_path / "huge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
