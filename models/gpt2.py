"""GPT-2's architecture in Hugging Face's names: configuration and weights, as ours and back, exactly.

A block is ln_1, attention (one `Conv1D` [d, 3 d] for q, k and v), ln_2, an MLP; the unembedding is the embedding's
transpose unless `tie_word_embeddings` is false. (Radford et al., 2019; `transformers/models/gpt2/modeling_gpt2.py`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config import ROOT_SCALE, ActivationName, LayerConfig, Readout, TransformerConfig
from .errors import InputError
from .transformer import Transformer

LM, TOKENS, SEQUENCE = "GPT2LMHeadModel", "GPT2ForTokenClassification", "GPT2ForSequenceClassification"
HEADS = {LM: "lm_head", TOKENS: "classifier", SEQUENCE: "score"}
"""The last linear map of each architecture; a classifier has a bias, and a score is of the last position alone."""
ACTIVATIONS: dict[str, ActivationName] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "quantization_config": (None,),
    "pruned_heads": (None, {}),
}
"""Settings that change the model and have no counterpart here, and the values at which they do nothing."""
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
"""With GPT-2's own, which a configuration need not repeat."""
FLAGS = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True}
LOW = (torch.float16, torch.bfloat16)
SHOWN = 12


def architecture_of(cfg: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """Which of the supported architectures a checkpoint is. Raises `InputError`."""
    named = cfg.get("architectures") or [LM if "lm_head.weight" in keys else ""]
    if len(named) == 1 and named[0] in HEADS:
        return str(named[0])
    what = ", ".join(map(str, named)) if named[0] else "unknown (config.json has no architectures)"
    raise InputError(f"the checkpoint's architecture is {what}; models here have a head: {', '.join(HEADS)}")


def config_from_gpt2(cfg: Mapping[str, Any], architecture: str = LM, outputs: int | None = None) -> TransformerConfig:
    """The shape of a GPT-2 model from its config.json. `outputs`: how many labels a classifier has.

    Raises `InputError` listing all settings that models here do not have.
    """
    sizes = {name: cfg.get(name, usual) for name, usual in SIZES.items()}
    bad = [f"{name}={size!r}" for name, size in sizes.items() if type(size) is not int or size < 1]
    bad += [f"{name}={cfg[name]!r}" for name in FLAGS if not isinstance(cfg.get(name, True), bool)]
    bad += [f"{name}={cfg[name]!r}" for name, plain in UNSUPPORTED.items() if cfg.get(name) not in plain]
    if cfg.get("model_type", "gpt2") != "gpt2":
        bad.append(f"model_type={cfg['model_type']!r} (here: gpt2)")
    activation = cfg.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        bad.append(f"activation_function={activation!r} (here: {', '.join(ACTIVATIONS)})")
    if not bad and sizes["n_embd"] % sizes["n_head"]:
        bad.append(f"n_embd={sizes['n_embd']} is no multiple of n_head={sizes['n_head']}")
    if not bad and cfg.get("scale_attn_by_inverse_layer_idx", False) and sizes["n_layer"] > 2:
        bad.append(
            f"scale_attn_by_inverse_layer_idx=True with n_layer={sizes['n_layer']} (scores of layer 2 are divided by "
            "3, which no float32 weights do exactly; here: n_layer at most 2)"
        )
    inner = cfg.get("n_inner")
    if inner is not None and (type(inner) is not int or inner < 1):
        bad.append(f"n_inner={inner!r}")
    if bad:
        raise InputError(f"models here have no such settings: {'; '.join(bad)}")
    d = sizes["n_embd"]
    layer = LayerConfig(sizes["n_head"], d // sizes["n_head"], 4 * d if inner is None else inner)
    return TransformerConfig(
        d_model=d,
        n_ctx=sizes["n_positions"],
        d_vocab=sizes["vocab_size"],
        d_vocab_out=sizes["vocab_size"] if outputs is None else outputs,
        layers=(layer,) * sizes["n_layer"],
        activation=ACTIVATIONS[activation],
        causal=True,
        positional="learned",
        attention_scale=ROOT_SCALE if cfg.get("scale_attn_weights", True) else 1.0,
        layer_norm=cfg.get("layer_norm_epsilon", 1e-5),
        readout="last" if architecture == SEQUENCE else "each",
    )


def from_gpt2(state: Mapping[str, Tensor], cfg: Mapping[str, Any], *, upcast: bool = False) -> Transformer:
    """A model with the weights of a GPT-2 state dictionary, with or without the prefix `transformer.`.

    `upcast`: take float16 and bfloat16 weights, each exactly, as float32. Raises `InputError` listing everything that
    is unknown, missing, of another shape or of another type.
    """
    architecture = architecture_of(cfg, state)
    head = HEADS[architecture]
    named = {str(name).removeprefix("transformer."): tensor for name, tensor in state.items()}
    if len(named) < len(state):
        raise InputError("some weights are there twice, with and without the prefix 'transformer.'; keep one of each")
    last = named.get(f"{head}.weight")
    labels = last.shape[0] if architecture != LM and isinstance(last, Tensor) and last.dim() == 2 else None
    if architecture != LM and labels is None:
        raise InputError(f"a {architecture} has {head}.weight [labels, n_embd]; it is missing")
    config = config_from_gpt2(cfg, architecture, labels)
    tied = architecture == LM and cfg.get("tie_word_embeddings", True)
    shapes = _shapes(config, architecture, tied)
    problems, found = _read(named, shapes, upcast)
    problems += _strange(named, shapes, config)
    if tied and not problems and f"{head}.weight" in named and not torch.equal(named["wte.weight"], last):  # type: ignore[arg-type]
        problems.append("lm_head.weight is not wte.weight, though tie_word_embeddings is not false: set it to false")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"these are not the weights of this configuration: {'; '.join(problems[:SHOWN])}{more}")
    found.setdefault(f"{head}.weight", found["wte.weight"])
    found.setdefault(f"{head}.bias", torch.zeros(config.d_vocab_out))
    parameters = _ours(found, config, head)
    if cfg.get("scale_attn_by_inverse_layer_idx", False) and config.n_layers == 2:
        for name in ("blocks.1.attn.W_Q", "blocks.1.attn.b_Q"):
            parameters[name] = _scaled(parameters[name], 0.5, name)
    return Transformer.from_parameters(config, parameters)


def _shapes(config: TransformerConfig, architecture: str, tied: bool) -> dict[str, tuple[int, ...]]:
    """Every weight's name, without prefix, and shape."""
    d, out = config.d_model, config.d_vocab_out
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (config.d_vocab, d), "wpe.weight": (config.n_ctx, d)}
    for index, layer in enumerate(config.layers):
        linear = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, layer.d_mlp)}
        linear["mlp.c_proj"] = (layer.d_mlp, d)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{index}.{norm}.weight": (d,), f"h.{index}.{norm}.bias": (d,)}
        for name, shape in linear.items():
            shapes |= {f"h.{index}.{name}.weight": shape, f"h.{index}.{name}.bias": shape[1:]}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    if not tied:
        shapes[f"{HEADS[architecture]}.weight"] = (out, d)
    if architecture == TOKENS:
        shapes["classifier.bias"] = (out,)
    return shapes


def _read(
    named: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], upcast: bool
) -> tuple[list[str], dict[str, Tensor]]:
    """What is wrong with the weights, and those that are right."""
    problems, found = [], {}
    for name, shape in shapes.items():
        tensor = named.get(name)
        if tensor is None:
            problems.append(f"{name} is missing")
        elif not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            problems.append(f"{name} has shape {got}, must have {shape}")
        elif tensor.dtype in LOW and not upcast:
            problems.append(f"{name} is {tensor.dtype} (upcast=True takes its values, exactly, as float32)")
        elif tensor.dtype not in (torch.float32, *LOW):
            problems.append(f"{name} is {tensor.dtype}, must be float32")
        else:
            found[name] = tensor.detach().to(torch.float32)
    return problems, found


def _strange(named: Mapping[str, Any], shapes: Mapping[str, Any], config: TransformerConfig) -> list[str]:
    """Keys that mean nothing here; the masks that old checkpoints hold must be those of causal attention."""
    problems = []
    causal = torch.ones(config.n_ctx, config.n_ctx, dtype=torch.bool).tril()
    for name, tensor in named.items():
        if name in shapes or name == "lm_head.weight":
            continue
        if name.startswith("h.") and name.endswith(".attn.masked_bias"):
            continue
        if not (name.startswith("h.") and name.endswith(".attn.bias")):
            problems.append(f"{name} is unknown")
        elif tensor.numel() != causal.numel() or not torch.equal(tensor.reshape(causal.shape).bool(), causal):
            problems.append(f"{name} is not the mask of causal attention")
    return problems


def _ours(found: Mapping[str, Tensor], config: TransformerConfig, head: str) -> dict[str, Tensor]:
    """The weights under our names, in our shapes."""
    d = config.d_model
    ours = {"embed.W_E": found["wte.weight"], "pos_embed.W_pos": found["wpe.weight"]}
    for index, layer in enumerate(config.layers):
        h, e, block = layer.n_heads, layer.d_head, f"blocks.{index}"
        for norm in (1, 2):
            ours[f"{block}.ln{norm}.w"] = found[f"h.{index}.ln_{norm}.weight"]
            ours[f"{block}.ln{norm}.b"] = found[f"h.{index}.ln_{norm}.bias"]
        weights = torch.split(found[f"h.{index}.attn.c_attn.weight"], d, dim=1)
        biases = torch.split(found[f"h.{index}.attn.c_attn.bias"], d)
        for x, weight, bias in zip("QKV", weights, biases, strict=True):
            ours[f"{block}.attn.W_{x}"] = weight.reshape(d, h, e).permute(1, 0, 2).contiguous()
            ours[f"{block}.attn.b_{x}"] = bias.reshape(h, e)
        ours[f"{block}.attn.W_O"] = found[f"h.{index}.attn.c_proj.weight"].reshape(h, e, d)
        ours[f"{block}.attn.b_O"] = found[f"h.{index}.attn.c_proj.bias"]
        for side, name in (("in", "c_fc"), ("out", "c_proj")):
            ours[f"{block}.mlp.W_{side}"] = found[f"h.{index}.mlp.{name}.weight"]
            ours[f"{block}.mlp.b_{side}"] = found[f"h.{index}.mlp.{name}.bias"]
    ours |= {"ln_final.w": found["ln_f.weight"], "ln_final.b": found["ln_f.bias"]}
    return ours | {"unembed.W_U": found[f"{head}.weight"].T.contiguous(), "unembed.b_U": found[f"{head}.bias"]}


def _scaled(weight: Tensor, factor: float, name: str) -> Tensor:
    """Times a power of two, exactly. Raises `InputError` where that leaves float32's range."""
    product = weight * factor
    if not torch.equal(product / factor, weight):
        raise InputError(f"{name} times {factor:g} leaves float32's range, and its scores are so scaled in the file")
    return product


def to_gpt2(model: Transformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and config.json of the same model in Hugging Face's names.

    `GPT2LMHeadModel` has logits at each position, as many as tokens, without a bias; `GPT2ForTokenClassification` any
    number, with one; `GPT2ForSequenceClassification` has those of the last position.
    Layers are made equal by heads and neurons of zero weight, which add nothing. Raises `InputError` listing all that
    GPT-2 cannot express.
    """
    config = model.config
    own = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    biased = bool(own["unembed.b_U"].any())
    architecture = SEQUENCE
    if config.readout == "each":
        architecture = LM if config.d_vocab_out == config.d_vocab and not biased else TOKENS
    d_head = _head_width(config)
    if problems := _inexpressible(config, d_head, biased):
        raise InputError(f"GPT-2 has no such models: {'; '.join(problems)}")
    tied = architecture == LM and torch.equal(own["unembed.W_U"], own["embed.W_E"].T)
    factor = 1.0 if config.attention_scale == ROOT_SCALE else float(config.attention_scale)
    inner = max(1, *(layer.d_mlp for layer in config.layers))
    heads = config.d_model // d_head
    state = {"wte.weight": own["embed.W_E"], "wpe.weight": own["pos_embed.W_pos"]}
    for index in range(config.n_layers):
        block = {
            name.removeprefix(f"blocks.{index}."): w for name, w in own.items() if name.startswith(f"blocks.{index}.")
        }
        state |= {f"h.{index}.{name}": w for name, w in _block(block, config.d_model, heads, inner, factor).items()}
    state |= {"ln_f.weight": own["ln_final.w"], "ln_f.bias": own["ln_final.b"]}
    state = {f"transformer.{name}": weight.contiguous() for name, weight in state.items()}
    if not tied:
        state[f"{HEADS[architecture]}.weight"] = own["unembed.W_U"].T.contiguous()
    if architecture == TOKENS:
        state["classifier.bias"] = own["unembed.b_U"]
    return state, _settings(config, architecture, heads, inner, tied)


def _head_width(config: TransformerConfig) -> int:
    """The d_head of all heads; without heads, or with several, d_model (of several `_inexpressible` tells)."""
    widths = {layer.d_head for layer in config.layers if layer.n_heads}
    return widths.pop() if len(widths) == 1 else config.d_model


def _inexpressible(config: TransformerConfig, d_head: int, biased: bool) -> list[str]:
    """All that GPT-2 cannot express, in words."""
    problems = []
    if config.layer_norm is None:
        problems.append("a model without LayerNorm (layer_norm=None)")
    if not config.causal:
        problems.append("bidirectional attention (causal=False)")
    if config.positional != "learned":
        problems.append(f"positional={config.positional!r}")
    problems += config.rare
    if config.readout == "mean":
        problems.append("a read-out from the mean (readout='mean')")
    if config.readout == "last" and biased:
        problems.append("a bias of the logits (unembed.b_U) that are read out at the last position")
    if not config.layers:
        problems.append("a model without layers")
    widths = sorted({layer.d_head for layer in config.layers if layer.n_heads})
    if len(widths) > 1:
        problems.append(f"heads of several widths (d_head {', '.join(map(str, widths))})")
    elif (
        config.d_model % d_head or max((layer.n_heads for layer in config.layers), default=0) > config.d_model // d_head
    ):
        most = max(layer.n_heads for layer in config.layers)
        problems.append(f"{most} heads of d_head {d_head} where n_head d_head must be d_model = {config.d_model}")
    scale = config.attention_scale
    if scale != ROOT_SCALE and (float(scale) <= 0 or math.frexp(float(scale))[0] != 0.5):
        problems.append(f"attention_scale={scale!r} (here: 1/sqrt(d_head), or a power of two)")
    return problems


def _block(own: Mapping[str, Tensor], d: int, heads: int, inner: int, factor: float) -> dict[str, Tensor]:
    """One block's weights in Hugging Face's names; parts that it lacks are zero."""

    def padded(name: str, shape: tuple[int, ...]) -> Tensor:
        weight = own.get(name)
        if weight is not None and weight.shape == shape:
            return weight
        filled = torch.zeros(shape)
        if weight is not None:
            filled[tuple(slice(size) for size in weight.shape)] = weight
        return filled

    e = d // heads
    block: dict[str, Tensor] = {}
    for norm in (1, 2):
        block[f"ln_{norm}.weight"] = own.get(f"ln{norm}.w", torch.ones(d))
        block[f"ln_{norm}.bias"] = own.get(f"ln{norm}.b", torch.zeros(d))
    weights, biases = [], []
    for x in "QKV":
        scale = factor if x == "Q" else 1.0
        weight = _scaled(padded(f"attn.W_{x}", (heads, d, e)), scale, f"W_{x}")
        weights.append(weight.permute(1, 0, 2).reshape(d, d))
        biases.append(_scaled(padded(f"attn.b_{x}", (heads, e)), scale, f"b_{x}").reshape(d))
    block |= {"attn.c_attn.weight": torch.cat(weights, 1), "attn.c_attn.bias": torch.cat(biases)}
    block |= {"attn.c_proj.weight": padded("attn.W_O", (heads, e, d)).reshape(d, d)}
    block |= {"attn.c_proj.bias": padded("attn.b_O", (d,))}
    block |= {"mlp.c_fc.weight": padded("mlp.W_in", (d, inner)), "mlp.c_fc.bias": padded("mlp.b_in", (inner,))}
    block |= {"mlp.c_proj.weight": padded("mlp.W_out", (inner, d)), "mlp.c_proj.bias": padded("mlp.b_out", (d,))}
    return block


def _settings(config: TransformerConfig, architecture: str, heads: int, inner: int, tied: bool) -> dict[str, Any]:
    readout: Readout = config.readout
    settings = {
        "architectures": [architecture],
        "model_type": "gpt2",
        "dtype": "float32",
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": heads,
        "n_inner": inner,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.layer_norm,
        "scale_attn_weights": config.attention_scale == ROOT_SCALE,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": tied,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "classifier_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": config.d_vocab if readout == "last" else None,  # no token: read out at the last, always
        "use_cache": True,
    }
    if architecture != LM:
        settings["id2label"] = {str(label): f"LABEL_{label}" for label in range(config.d_vocab_out)}
    return settings
