"""The transformer: configuration, forward, cache, files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from certiformer.models import execution
from certiformer.models.config import LayerConfig, TransformerConfig, parameter_shapes
from certiformer.models.errors import InputError
from certiformer.models.program import OPERATIONS, model_program, reads
from certiformer.models.sites import sites
from certiformer.models.transformer import Transformer

CONFIG = TransformerConfig(
    d_model=8,
    n_ctx=6,
    d_vocab=5,
    d_vocab_out=3,
    layers=(LayerConfig(2, 3, 7), LayerConfig(0, 0, 4), LayerConfig(1, 5, 0), LayerConfig(0, 0, 0)),
    causal=True,
)
VARIANTS = {
    "plain": {},
    "bidirectional": {"causal": False, "attention_scale": 1.0, "positional": "none"},
    "layer_norm": {"layer_norm": 1e-5, "activation": "gelu_new"},
    "last": {"readout": "last", "activation": "gelu"},
    "mean": {"readout": "mean", "layer_norm": 0.1, "activation": "silu"},
    "no_layers": {"layers": ()},
    "mlp_at_the_read_out": {"readout": "mean", "layer_norm": 0.1, "activation": "silu", "d_readout": 6},
    "sparsemax": {"attention": "sparsemax", "activation": "leaky_relu"},
}
TOKENS = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1]])


def variant(name: str) -> TransformerConfig:
    return TransformerConfig.from_json({**CONFIG.to_json(), **_json(VARIANTS[name])})


def _json(changes: dict[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_config_json_round_trip(name: str) -> None:
    config = variant(name)
    assert TransformerConfig.from_json(json.loads(config.canonical_json())) == config
    assert config.canonical_json() == json.dumps(
        json.loads(config.canonical_json()), sort_keys=True, separators=(",", ":")
    )
    assert hash(config) == hash(variant(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"d_vocab": True}, "must be an integer, got True"),
        ({"n_ctx": 2.0}, "must be an integer"),
        ({"layers": [[1, 2, 3]]}, "layer must be a JSON object"),
        ({"layers": [{"n_heads": 1, "d_head": 0, "d_mlp": 0}]}, "d_head must be at least 1, got 0"),
        ({"layers": [{"n_heads": -1, "d_head": 0, "d_mlp": 0}]}, "n_heads must be at least 0, got -1"),
        ({"layers": [{"n_heads": 1, "d_head": 2}]}, "missing .*d_mlp"),
        ({"activation": "tanh"}, "'relu'.*got 'tanh'"),
        ({"activation": ["relu"]}, "activation"),
        ({"positional": "rotary"}, "positional"),
        ({"readout": "first"}, "readout"),
        ({"attention": "hardmax"}, "attention must be one of 'softmax', 'sparsemax', got 'hardmax'"),
        ({"d_readout": 2}, "one read-out: take readout 'last' or 'mean'"),
        ({"readout": "mean", "d_readout": -1}, "d_readout must be at least 0, got -1"),
        ({"readout": "mean", "d_readout": True}, "d_readout must be an integer, got True"),
        ({"causal": 1}, "causal"),
        ({"attention_scale": float("inf")}, "finite"),
        ({"attention_scale": "1"}, "attention_scale"),
        ({"layer_norm": 0}, "positive"),
        ({"layer_norm": float("nan")}, "finite"),
        ({"colour": 1}, "unknown .*colour"),
    ],
)
def test_config_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransformerConfig.from_json({**CONFIG.to_json(), **change})


def test_the_program_is_straight_line_and_the_tables_are_total() -> None:
    for name in VARIANTS:
        seen: set[str] = set()
        for operation in model_program(variant(name)):
            assert set(reads(operation)) <= seen, operation
            assert operation.output not in seen
            seen.add(operation.output)
    missing = set(OPERATIONS) ^ set(execution.RULES)
    assert not missing, f"execution.RULES and the operations differ in {missing}"


@pytest.mark.parametrize("name", VARIANTS)
def test_sites_tell_the_shapes(name: str) -> None:
    config = variant(name)
    model = Transformer.initialised(config)
    logits, cache = model.run_with_cache(TOKENS)
    known = sites(config)
    assert list(cache) == list(known)
    assert logits.shape == ((2, 4, 3) if config.readout == "each" else (2, 3))
    lengths = {"batch": 2, "pos": 4, "query": 4, "key": 4}
    for site, value in cache.items():
        axes, sizes = known[site].axes, known[site].sizes
        expected = [lengths[axis] if size is None else size for axis, size in zip(axes, sizes, strict=True)]
        assert list(value.shape) == expected, site


def test_parameters_are_transformer_lens_s() -> None:
    names = set(dict(Transformer(variant("layer_norm")).named_parameters()))
    assert names == set(parameter_shapes(variant("layer_norm")))
    assert {"embed.W_E", "pos_embed.W_pos", "blocks.0.attn.W_Q", "blocks.0.attn.b_O", "blocks.0.ln2.w"} <= names
    assert {"blocks.1.mlp.W_in", "blocks.1.mlp.b_out", "ln_final.b", "unembed.W_U", "unembed.b_U"} <= names
    assert not any(name.startswith(("blocks.1.attn", "blocks.2.mlp", "blocks.3")) for name in names)
    model = Transformer(CONFIG)
    assert model.blocks[0].attn.W_Q.shape == (2, 8, 3)  # type: ignore[index, union-attr]
    assert CONFIG.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (Transformer(CONFIG)(TOKENS) == 0).all()


def test_causal_models_do_not_look_ahead() -> None:
    model = Transformer.initialised(CONFIG, seed=1)
    changed = TOKENS.clone()
    changed[:, 3] = 2
    assert torch.equal(model(TOKENS)[:, :3], model(changed)[:, :3])
    free = Transformer.initialised(variant("bidirectional"), seed=1)
    assert not torch.allclose(free(TOKENS)[:, :3], free(changed)[:, :3])


def test_batches_and_gradients() -> None:
    model = Transformer.initialised(variant("layer_norm"), seed=1)
    together = model(TOKENS)
    for row in range(2):
        assert torch.allclose(model(TOKENS[row : row + 1])[0], together[row], atol=1e-5)
    assert model(TOKENS[:0]).shape == (0, 4, 3)
    together.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_cache_and_pattern() -> None:
    model = Transformer.initialised(CONFIG)
    logits, cache = model.run_with_cache(TOKENS, "blocks.0.attn.hook_pattern")
    assert list(cache) == ["blocks.0.attn.hook_pattern"] and torch.equal(logits, model(TOKENS))
    assert torch.allclose(cache["blocks.0.attn.hook_pattern"].sum(-1), torch.ones(2, 2, 4))
    _, cache = model.run_with_cache(TOKENS, lambda name: name.endswith("hook_result"))
    assert list(cache) == ["blocks.0.attn.hook_result", "blocks.2.attn.hook_result"]
    _, cache = model.run_with_cache(TOKENS, ["blocks.0.hook_attn_out", "blocks.0.attn.hook_result"])
    total = cache["blocks.0.attn.hook_result"].sum(2) + model.parameter("blocks.0.attn.b_O")
    assert torch.allclose(total, cache["blocks.0.hook_attn_out"], atol=1e-6)
    with pytest.raises(InputError, match="near names: .*blocks.0.attn.hook_pattern"):
        model.run_with_cache(TOKENS, "blocks.0.attn.hook_patern")
    with pytest.raises(InputError, match="near names: .*blocks.0.attn.W_Q"):
        model.parameter("blocks.0.attn.W_q")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[5]]), "0 to 4, got 5"),
        (torch.tensor([[-1]]), "got -1"),
        (torch.tensor([1, 2]), "shape"),
        (torch.tensor([[1.0]]), "float32"),
        (torch.zeros(1, 7, dtype=torch.int64), "n_ctx = 6 tokens, got 7"),
        (torch.zeros(1, 0, dtype=torch.int64), "got 0"),
        ([[1, 2]], "integer tensor"),
    ],
)
def test_wrong_tokens(tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transformer(CONFIG)(tokens)


def test_from_parameters_lists_all_problems() -> None:
    parameters = dict(Transformer(CONFIG).state_dict())
    del parameters["unembed.b_U"]
    parameters["extra"] = torch.zeros(1)
    parameters["embed.W_E"] = torch.zeros(5, 9)
    parameters["unembed.W_U"] = torch.zeros(8, 3, dtype=torch.float64)
    parameters["pos_embed.W_pos"] = torch.full((6, 8), torch.nan)
    with pytest.raises(InputError) as caught:
        Transformer.from_parameters(CONFIG, parameters)
    for part in ("missing unembed.b_U", "unknown extra", r"(5, 9)", "float64", "pos_embed.W_pos contains NaN"):
        assert part in str(caught.value)


# Files


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    model = Transformer.initialised(variant(name), seed=5)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model.save(first, {"z": "1", "codec": "{}"})
    model.save(str(second), {"codec": "{}", "z": "1"})
    assert first.read_bytes() == second.read_bytes()
    loaded, extra = Transformer.load_with_metadata(first)
    assert loaded.config == model.config and extra == {"z": "1", "codec": "{}"}
    assert loaded.weights_sha256() == model.weights_sha256()
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    others = safetensors.torch.load_file(first)
    assert all(torch.equal(value, others[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_files_of_the_safetensors_library_load(tmp_path: Path) -> None:
    model = Transformer.initialised(CONFIG)
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(model.state_dict(), path, {"certiformer": model.config_json()})
    assert Transformer.load(path).weights_sha256() == model.weights_sha256()


def test_weights_hash_is_what_it_says() -> None:
    config = TransformerConfig(2, 1, 2, 1, (), positional="none")
    model = Transformer.initialised(config)
    expected = b""
    for name, sizes in (("embed.W_E", "2,2"), ("unembed.W_U", "2,1"), ("unembed.b_U", "1")):
        values = model.parameter(name).detach().numpy().astype("<f4").tobytes()
        expected += f"{name}\nF32{sizes}\n".encode() + values
    assert model.weights_sha256() == hashlib.sha256(expected).hexdigest()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    model = Transformer.initialised(CONFIG)
    path = tmp_path / "m.safetensors"
    model.save(path)
    old = path.read_bytes()
    with torch.no_grad():
        model.parameter("embed.W_E")[0, 0] = torch.inf
    with pytest.raises(InputError, match="embed.W_E contains NaN or infinite"):
        model.save(path)
    assert path.read_bytes() == old
    with pytest.raises(InputError, match="cannot write"):
        Transformer(CONFIG).save(tmp_path / "no" / "m.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        Transformer.load(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        Transformer.load(tmp_path)


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    model, pipe, target = Transformer.initialised(CONFIG), tmp_path / "pipe", tmp_path / "m.safetensors"
    os.mkfifo(pipe)
    for path, what in ((pipe, "a device or pipe"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=what):
            model.save(path)
    assert pipe.is_fifo()
    link = tmp_path / "link"
    link.symlink_to(target)
    model.save(link)
    assert link.is_symlink() and target.is_file()


def parts(model: Transformer, path: Path) -> tuple[dict[str, object], bytes]:
    model.save(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_malicious_files(tmp_path: Path) -> None:
    model = Transformer.initialised(CONFIG)
    path = tmp_path / "m.safetensors"
    header, body = parts(model, path)
    config = CONFIG.to_json()

    def entry(**changes: object) -> dict[str, object]:
        old = header["embed.W_E"]
        assert isinstance(old, dict)
        return {**header, "embed.W_E": {**old, **changes}}

    def metadata(value: object) -> dict[str, object]:
        return {**header, "__metadata__": value}

    def configured(**changes: object) -> dict[str, object]:
        return metadata({"certiformer": json.dumps({**config, **changes})})

    nan = np.frombuffer(body, "<f4").copy()
    nan[3] = np.nan
    missing = {key: value for key, value in header.items() if key != "unembed.W_U"}
    cases = {
        b"": "too few",
        b"1234567": "too few",
        struct.pack("<Q", 2**63) + b"{}": "header claims",
        struct.pack("<Q", 100) + b"{}": "header claims",
        join(b"\xff\xfe", body): "not JSON",
        join(b"[" * 100_000, b""): "not JSON",
        join(b"9" * 10_000, b""): "not JSON",
        join(b"[]", body): "not a JSON object",
        join(b'{"a":1,"a":1}', b""): "repeats a key",
        join(b'{"a":NaN}', b""): "NaN",
        join(header, body[:-4]): "embed|at bytes|data exactly|unembed",
        join(header, body + b"0000"): "data exactly",
        join(entry(dtype="F16"), body): "only F32",
        join(entry(dtype=["F32"]), body): "only F32",
        join(entry(shape=[2**40, 2**40]), body): "has shape",
        join(entry(shape=[-5, -8]), body): "has shape",
        join(entry(shape=[5.0, 8]), body): "has shape",
        join(entry(shape=[1] * 1000), body): "has shape",
        join(entry(shape=[8, 5]), body): "must have",
        join(entry(data_offsets=[0, 2**62]), body): "has shape|at",
        join(entry(data_offsets=[0]), body): "has shape",
        join(entry(data_offsets="01"), body): "has shape",
        join({**header, "copy": header["embed.W_E"]}, body): "exactly",
        join({**header, "x": 1}, body): "not a tensor",
        join({**header, "x": {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}}, body): "unknown x",
        join(missing, body): "data exactly",
        join(header, nan.tobytes()): "NaN",
        join(metadata(None), body): "no configuration",
        join(metadata({"certiformer": 1}), body): "strings",
        join(metadata({"certiformer": "{"}), body): "configuration is wrong",
        join(metadata({"certiformer": "[" * 100_000}), body): "configuration is wrong",
        join(configured(d_model=2**60), body): "must have",
        join(configured(d_vocab=6), body): "must have",
        join(configured(layers=[]), body): "unknown",
        join(configured(layers=1), body): "configuration is wrong",
        join(configured(activation={}), body): "configuration is wrong",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            Transformer.load(path)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    model = Transformer.initialised(CONFIG)
    path = tmp_path / "m.safetensors"
    header, _ = parts(model, path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        damaged = bytearray(data)
        if trial % 3 == 0:
            del damaged[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(len(json.dumps(header)), size=1 + trial % 4):
                damaged[int(place)] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            Transformer.load(path)
        except InputError as error:
            assert os.fspath(path) in str(error)
