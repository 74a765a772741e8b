"""TransformerLens's weights: its state dictionaries and configurations, read and written without TransformerLens.

Parameter names and shapes are ours; what differs is what there is no name for. A model with folded LayerNorm
(`LNPre`) has no `ln1.w`: here it has ones and zeros. Every layer there has the same heads and neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import ROOT_SCALE, AttentionScale, LayerConfig, Readout, TransformerConfig, parameter_shapes
from .errors import InputError
from .files import parse_json
from .torch_files import read_torch
from .transformer import Transformer

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "parallel_attn_mlp": (False, None),
    "gated_mlp": (False, None),
    "final_rms": (False, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "use_local_attn": (False, None),
    "use_normalization_before_and_after": (False, None),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
    "attn_scores_soft_cap": (None, -1, -1.0, 0, 0.0),
    "output_logits_soft_cap": (None, -1, -1.0, 0, 0.0),
}
"""Settings of TransformerLens that have no counterpart here, and the values at which they do nothing."""
ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
NORMS: dict[str | None, bool] = {None: False, "LN": True, "LNPre": True}
BUFFERS = ("attn.mask", "attn.IGNORE")
LOW = (torch.float16, torch.bfloat16)


def config_from_transformer_lens(cfg: Mapping[str, Any], readout: Readout = "each") -> TransformerConfig:
    """The shape of a `HookedTransformer` from its configuration as a dictionary (`cfg.to_dict()`, or JSON of it).

    `readout`: TransformerLens gives logits at each position; of a model that is read out at the last, say so.
    Raises `InputError` listing all settings that models here do not have.
    """
    needed = ("n_layers", "d_model", "n_ctx", "d_head", "d_vocab")
    missing = [key for key in needed if cfg.get(key) is None]
    if missing:
        raise InputError(f"a TransformerLens configuration must have {', '.join(missing)}")
    problems = [
        f"{key}={cfg[key]!r}"
        for key, plain in UNSUPPORTED.items()
        if key in cfg and cfg[key] not in plain and not (key == "n_key_value_heads" and cfg[key] == cfg.get("n_heads"))
    ]
    attention_only = bool(cfg.get("attn_only", False))
    for key, default, known in (
        ("positional_embedding_type", "standard", ("standard",)),
        ("normalization_type", "LN", tuple(NORMS)),
        ("attention_dir", "causal", ("causal", "bidirectional")),
        ("act_fn", None, (*ACTIVATIONS, None) if attention_only else ACTIVATIONS),
    ):
        if cfg.get(key, default) not in known:
            problems.append(f"{key}={cfg.get(key, default)!r} (here: {', '.join(map(str, known))})")
    if problems:
        raise InputError(f"models here have no such settings: {'; '.join(problems)}")
    n_heads = cfg.get("n_heads") or cfg["d_model"] // cfg["d_head"]
    if not attention_only and cfg.get("d_mlp") is None:
        cfg = {**cfg, "d_mlp": 4 * cfg["d_model"]}
    layer = LayerConfig(n_heads, cfg["d_head"], 0 if attention_only else cfg["d_mlp"])
    outputs = cfg.get("d_vocab_out")
    return TransformerConfig(
        d_model=cfg["d_model"],
        n_ctx=cfg["n_ctx"],
        d_vocab=cfg["d_vocab"],
        d_vocab_out=cfg["d_vocab"] if outputs in (None, -1) else outputs,
        layers=(layer,) * cfg["n_layers"],
        activation=cfg.get("act_fn") or "relu",
        causal=cfg.get("attention_dir", "causal") == "causal",
        positional="learned",
        attention_scale=_scale(cfg),
        layer_norm=cfg.get("eps", 1e-5) if NORMS[cfg.get("normalization_type", "LN")] else None,
        readout=readout,
    )


def _scale(cfg: Mapping[str, Any]) -> AttentionScale:
    """TransformerLens divides scores by `attn_scale`; -1 stands for the root of d_head."""
    if not cfg.get("use_attn_scale", True):
        return 1.0
    divisor = cfg.get("attn_scale", -1.0)
    if divisor in (None, -1, -1.0) or divisor == math.sqrt(cfg["d_head"]):
        return ROOT_SCALE
    if isinstance(divisor, bool) or not isinstance(divisor, (int, float)) or not divisor > 0:
        raise InputError(f"attn_scale must be a positive number, got {divisor!r}")
    return 1.0 / float(divisor)


def from_transformer_lens(
    state: Mapping[str, Tensor], cfg: Mapping[str, Any], *, readout: Readout = "each", upcast: bool = False
) -> Transformer:
    """A model with the weights of a TransformerLens state dictionary, folded or not.

    `upcast`: take float16 and bfloat16 weights, each exactly, as float32. Raises `InputError` listing everything that
    is unknown, missing, of another shape or of another type.
    """
    config = config_from_transformer_lens(cfg, readout)
    folded = cfg.get("normalization_type", "LN") == "LNPre"
    shapes = parameter_shapes(config)
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        norm = name.rpartition(".")[0].rpartition(".")[2] in ("ln1", "ln2", "ln_final")
        tensor = state.get(name)
        if tensor is None:
            if norm and folded:
                found[name] = torch.full(shape, 1.0 if name.endswith(".w") else 0.0)
            else:
                problems.append(f"{name} is missing")
        elif not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            problems.append(f"{name} has shape {got}, must have {shape}")
        elif tensor.dtype in LOW and upcast:
            found[name] = tensor.to(torch.float32)
        elif tensor.dtype in LOW:
            problems.append(f"{name} is {tensor.dtype} (upcast=True takes its values, exactly, as float32)")
        else:
            found[name] = tensor
    problems += _strange(state, shapes, config)
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise InputError(f"these are not the weights of this configuration: {'; '.join(problems[:12])}{more}")
    return Transformer.from_parameters(config, found)


def _strange(state: Mapping[str, Tensor], shapes: Mapping[str, Any], config: TransformerConfig) -> list[str]:
    """Keys that mean nothing here, and masks of attention other than what the configuration says."""
    problems = []
    causal = torch.ones(config.n_ctx, config.n_ctx, dtype=torch.bool).tril()
    wanted = causal if config.causal else torch.ones_like(causal)
    for name, tensor in state.items():
        if name in shapes:
            continue
        block, _, leaf = str(name).partition(".attn.")
        if f"attn.{leaf}" not in BUFFERS or not block.startswith("blocks."):
            hint = " (rotary positions are not supported)" if "rotary" in str(name) else ""
            problems.append(f"{name} is unknown{hint}")
        elif leaf == "mask" and not (tensor.shape == wanted.shape and bool((tensor.cpu().bool() == wanted).all())):
            kind = "causal" if config.causal else "bidirectional"
            problems.append(f"{name} is not the mask of {kind} attention (local attention is not supported)")
    return problems


def to_transformer_lens(model: Transformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dictionary and configuration for `HookedTransformer(cfg).load_state_dict(state)`.

    Layers are made equal by heads and neurons of zero weight, which add nothing. A read-out at the last position or
    at the mean is not written: TransformerLens gives the logits at each position, of which ours are the last, or the
    mean. Raises `InputError` if layers of different d_head share the scale 1/sqrt(d_head).
    """
    config = model.config
    heads = max((layer.n_heads for layer in config.layers), default=0) or 1
    width = max((layer.d_head for layer in config.layers), default=0) or 1
    neurons = max((layer.d_mlp for layer in config.layers), default=0)
    if config.attention != "softmax" or config.activation == "leaky_relu":
        raise InputError("TransformerLens has no sparsemax attention and no leaky_relu")
    if config.d_readout:
        raise InputError("TransformerLens has no MLP between the residual stream and the logits (d_readout)")
    if not config.layers:
        raise InputError("TransformerLens has no models without layers")
    if config.attention_scale == ROOT_SCALE and len({layer.d_head for layer in config.layers if layer.n_heads}) > 1:
        raise InputError("layers of different d_head are scaled differently here; TransformerLens has one d_head")
    state: dict[str, Tensor] = {}
    equal = TransformerConfig(
        **{**vars(config), "layers": (LayerConfig(heads, width, neurons),) * config.n_layers, "positional": "learned"}
    )
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    causal = torch.ones(config.n_ctx, config.n_ctx, dtype=torch.bool)
    for name, shape in parameter_shapes(equal).items():
        filled = torch.ones(shape) if name.endswith(".w") else torch.zeros(shape)
        if name in own:
            filled = torch.zeros(shape)
            filled[tuple(slice(size) for size in own[name].shape)] = own[name].cpu()
        state[name] = filled
    for index in range(config.n_layers):
        state[f"blocks.{index}.attn.mask"] = causal.tril() if config.causal else causal.clone()
        state[f"blocks.{index}.attn.IGNORE"] = torch.tensor(-torch.inf)
    root = config.attention_scale == ROOT_SCALE
    scale = 1.0 if root else float(config.attention_scale)
    if not root and (scale <= 0 or 1.0 / (1.0 / scale) != scale):
        raise InputError(f"attention_scale {scale!r} has no exact divisor, which TransformerLens would need")
    cfg: dict[str, Any] = {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_ctx": config.n_ctx,
        "d_head": width,
        "n_heads": heads,
        "d_mlp": neurons or None,
        "d_vocab": config.d_vocab,
        "d_vocab_out": config.d_vocab_out,
        "act_fn": config.activation if neurons else None,
        "attn_only": not neurons,
        "eps": config.layer_norm if config.layer_norm is not None else 1e-5,
        "normalization_type": None if config.layer_norm is None else "LN",
        "attention_dir": "causal" if config.causal else "bidirectional",
        "positional_embedding_type": "standard",
        "use_attn_scale": root or scale != 1.0,
        "attn_scale": -1.0 if root else 1.0 / scale,
        "parallel_attn_mlp": False,
        "gated_mlp": False,
    }
    return state, cfg


def load_transformer_lens(
    path: str | Path, cfg: Mapping[str, Any] | str | Path, *, readout: Readout = "each", upcast: bool = False
) -> Transformer:
    """`from_transformer_lens` of a torch or safetensors file; `cfg`: the configuration, or a JSON file with it.

    No code in the files is run. Raises `InputError`.
    """
    try:
        raw = Path(path).read_bytes()
        settings = cfg if isinstance(cfg, Mapping) else parse_json(Path(cfg).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} or its configuration: {error}") from None
    if not isinstance(settings, Mapping):
        raise InputError(f"a TransformerLens configuration is a JSON object, got {str(settings)[:80]}")
    if str(path).endswith(".safetensors"):
        import safetensors.torch

        try:
            state: Any = safetensors.torch.load(raw)
        except Exception as error:  # the library's own error class is not exported as a type
            raise InputError(f"{path} is no safetensors file that can be read: {error}") from None
    else:
        state = read_torch(raw, str(path))
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds no state dictionary, but {type(state).__name__}")
    return from_transformer_lens(state, settings, readout=readout, upcast=upcast)
