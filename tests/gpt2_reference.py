"""GPT-2 in NumPy float64, from a checkpoint: written from the definition in transformers, not from our code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

Array = npt.NDArray[np.float64]


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": silu,
    "swish": silu,
}


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def logits(weights: dict[str, Any], cfg: dict[str, Any], tokens: npt.NDArray[np.int64]) -> Array:
    """[batch, pos, out], or [batch, out] of `GPT2ForSequenceClassification`."""
    w = {name.removeprefix("transformer."): np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    d, heads, eps = cfg["n_embd"], cfg["n_head"], cfg["layer_norm_epsilon"]
    x = w["wte.weight"][tokens] + w["wpe.weight"][np.arange(tokens.shape[1])]
    future = np.triu(np.ones((tokens.shape[1],) * 2, dtype=bool), 1)
    for i in range(cfg["n_layer"]):
        read = layer_norm(x, w[f"h.{i}.ln_1.weight"], w[f"h.{i}.ln_1.bias"], eps)
        qkv = read @ w[f"h.{i}.attn.c_attn.weight"] + w[f"h.{i}.attn.c_attn.bias"]
        parts = []
        for h in range(heads):
            e = d // heads
            q, k, v = (qkv[..., s * d + h * e : s * d + (h + 1) * e] for s in range(3))
            scores = q @ k.swapaxes(1, 2)
            if cfg.get("scale_attn_weights", True):
                scores = scores / math.sqrt(e)
            if cfg.get("scale_attn_by_inverse_layer_idx", False):
                scores = scores / (i + 1)
            scores = np.where(future, -np.inf, scores)
            power = np.exp(scores - scores.max(-1, keepdims=True))
            parts.append(power / power.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(parts, -1) @ w[f"h.{i}.attn.c_proj.weight"] + w[f"h.{i}.attn.c_proj.bias"]
        read = layer_norm(x, w[f"h.{i}.ln_2.weight"], w[f"h.{i}.ln_2.bias"], eps)
        hidden = ACTIVATIONS[cfg["activation_function"]](read @ w[f"h.{i}.mlp.c_fc.weight"] + w[f"h.{i}.mlp.c_fc.bias"])
        x = x + hidden @ w[f"h.{i}.mlp.c_proj.weight"] + w[f"h.{i}.mlp.c_proj.bias"]
    x = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"], eps)
    match cfg["architectures"]:
        case ["GPT2LMHeadModel"]:
            return x @ w["wte.weight" if cfg.get("tie_word_embeddings", True) else "lm_head.weight"].T
        case ["GPT2ForTokenClassification"]:
            return x @ w["classifier.weight"].T + w["classifier.bias"]
        case _:
            return x[:, -1] @ w["score.weight"].T


def logits_of_folder(folder: Path, tokens: npt.NDArray[np.int64]) -> Array:
    cfg = json.loads((folder / "config.json").read_text())
    return logits(safetensors.numpy.load_file(folder / "model.safetensors"), cfg, tokens)
