"""Models of ours as Tracr's: parameters under Haiku's names, for JAX and for what reads Tracr's models.

Tracr's transformers have the same heads and neurons in every layer, ReLU, no LayerNorm, scores divided by the root of
`key_size`, a BOS token, and a matrix without bias that reads outputs off the residual stream. Layers are made equal by
heads, widths and neurons of zero weight, and another scale of scores goes into the queries, a power of two exactly.
(D. Lindner et al., 2023; `tracr/transformer/model.py`.) Neither JAX nor Tracr is needed: the parameters are NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..models.codec import Codec
from ..models.config import ROOT_SCALE, TransformerConfig
from ..models.errors import InputError
from ..models.transformer import Transformer
from .tracr_models import TracrModel, TracrShape

Array = npt.NDArray[np.float32]
BOS, PAD = "compiler_bos", "compiler_pad"
"""Tracr's own names."""


class Coded(Protocol):
    """A model with its codec: what `compile` and `from_tracr_model` give."""

    @property
    def model(self) -> Transformer: ...
    @property
    def codec(self) -> Codec: ...


@dataclass(frozen=True, eq=False)
class HaikuModel:
    """A model as Tracr has it. `params[module][name]`: float32, as Haiku keeps them (`transformer/layer_0/attn/query`).

    `shape`: the rest of it; `build(model.flat(), model.shape)` is the way back. `key_size`, `mlp_hidden_size`: beside
    `shape.n_heads` and `shape.n_layers`, what `tracr.transformer.model.TransformerConfig` needs (ReLU, no LayerNorm).
    """

    params: Mapping[str, Mapping[str, Array]]
    shape: TracrShape
    key_size: int
    mlp_hidden_size: int

    def flat(self) -> dict[str, Array]:
        """The parameters by module and name: `transformer/layer_0/attn/query/w`."""
        return {f"{module}/{name}": value for module, held in self.params.items() for name, value in held.items()}


def to_haiku(of: Coded) -> HaikuModel:
    """The same model with Tracr's parameters. Of one that Tracr compiled: exactly its own, up to the order of tokens.

    Raises `InputError` listing all that Tracr's transformers cannot express.
    """
    model, codec = of.model, of.codec
    config = model.config
    own = {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}
    key_size, factor = _key_size(config)
    if problems := _inexpressible(config, codec, own, factor):
        raise InputError(f"Tracr has no such models: {'; '.join(problems)}")
    heads = max(1, *(layer.n_heads for layer in config.layers))
    neurons = max(1, *(layer.d_mlp for layer in config.layers))
    params: dict[str, dict[str, Array]] = {
        "token_embed": {"embeddings": own["embed.W_E"].copy()},
        "pos_embed": {"embeddings": own["pos_embed.W_pos"].copy()},
    }
    for layer in range(config.n_layers):
        block = {
            name.removeprefix(f"blocks.{layer}."): w for name, w in own.items() if name.startswith(f"blocks.{layer}.")
        }
        part = _layer(block, config.d_model, heads, key_size, neurons, factor)
        params |= {f"transformer/layer_{layer}/{name}": held for name, held in part.items()}
    labels = of.labels if isinstance(of, TracrModel) else tuple(f"residual:{i}" for i in range(config.d_model))
    tokens: dict[Any, int] = {value: number for number, value in enumerate(codec.vocab)}
    bos, pad = _free(BOS, tokens), _free(PAD, tokens)
    tokens[bos] = len(codec.vocab)
    if config.d_vocab == len(tokens) + 1:
        tokens[pad] = len(tokens)
    shape = TracrShape(
        n_layers=config.n_layers,
        n_heads=heads,
        causal=config.causal,
        tokens=tokens,
        bos=bos,
        pad=pad if pad in tokens else None,
        readout=own["unembed.W_U"].copy(),
        outputs=codec.outputs if codec.kind == "categorical" else None,
        labels=labels,
    )
    return HaikuModel(params, shape, key_size, neurons)


def _free(name: str, taken: Mapping[Any, int]) -> str:
    while name in taken:
        name += "_"
    return name


def _key_size(config: TransformerConfig) -> tuple[int, float]:
    """The width of all heads, and the factor of the queries that makes up for it.

    With the scale 1/sqrt(d_head) of heads of one width, that width and 1; else the least power of four, whose root is
    a power of two.
    """
    widths = {layer.d_head for layer in config.layers if layer.n_heads} or {1}
    if config.attention_scale == ROOT_SCALE and len(widths) == 1:
        return widths.pop(), 1.0
    size = 1
    while size < max(widths):
        size *= 4
    if config.attention_scale == ROOT_SCALE:
        return size, math.nan
    return size, float(config.attention_scale) * math.sqrt(size)


def _inexpressible(
    config: TransformerConfig, codec: Codec, own: Mapping[str, npt.NDArray[Any]], factor: float
) -> list[str]:
    """All that Tracr cannot express, in words."""
    problems = []
    if not config.layers:
        problems.append("a model without layers")
    if config.layer_norm is not None:
        problems.append(f"LayerNorm (epsilon {config.layer_norm:g})")
    if config.activation != "relu" and any(layer.d_mlp for layer in config.layers):
        problems.append(f"the activation {config.activation} (Tracr's is relu)")
    if config.attention != "softmax":
        problems.append(f"{config.attention} attention")
    if config.positional != "learned":
        problems.append(f"positional={config.positional!r}")
    if config.readout != "each":
        problems.append(f"a read-out once a sequence (readout={config.readout!r})")
    if own["unembed.b_U"].any():
        problems.append("a bias of the logits (unembed.b_U)")
    if not codec.bos:
        problems.append("a codec without BOS")
    extra = config.d_vocab - len(codec.vocab) - codec.bos
    if extra not in (0, 1):
        problems.append(f"{extra} more embedded tokens than the codec has (Tracr has one, for padding)")
    if math.isnan(factor):
        problems.append("heads of several widths with the scale 1/sqrt(d_head)")
    elif factor <= 0 or math.frexp(factor)[0] != 0.5:
        problems.append(f"attention_scale={config.attention_scale!r} (here: 1/sqrt(d_head), or a power of two)")
    return problems


def _layer(
    own: Mapping[str, Array], d: int, heads: int, width: int, neurons: int, factor: float
) -> dict[str, dict[str, Array]]:
    """One layer's parameters by module; parts that it lacks are zero."""

    def padded(name: str, *shape: int) -> Array:
        filled = np.zeros(shape, dtype=np.float32)
        if name in own:
            filled[tuple(slice(size) for size in own[name].shape)] = own[name]
        return filled

    part: dict[str, dict[str, Array]] = {}
    for name, letter in (("query", "Q"), ("key", "K"), ("value", "V")):
        scale = np.float32(factor if letter == "Q" else 1.0)
        weight = _scaled(padded(f"attn.W_{letter}", heads, d, width), scale, f"W_{letter}")
        bias = _scaled(padded(f"attn.b_{letter}", heads, width), scale, f"b_{letter}")
        flat = np.ascontiguousarray(weight.transpose(1, 0, 2).reshape(d, heads * width))
        part[f"attn/{name}"] = {"w": flat, "b": bias.reshape(-1)}
    linear = padded("attn.W_O", heads, width, d).reshape(heads * width, d)
    part["attn/linear"] = {"w": linear, "b": padded("attn.b_O", d)}
    part["mlp/linear_1"] = {"w": padded("mlp.W_in", d, neurons), "b": padded("mlp.b_in", neurons)}
    part["mlp/linear_2"] = {"w": padded("mlp.W_out", neurons, d), "b": padded("mlp.b_out", d)}
    return part


def _scaled(weight: Array, factor: np.float32, name: str) -> Array:
    """Times a power of two, exactly. Raises `InputError` where that leaves float32's range."""
    with np.errstate(over="ignore", under="ignore"):
        product = weight * factor
        same = np.array_equal(product / factor, weight)
    if not same:
        raise InputError(f"{name} times {factor:g} leaves float32's range, and Tracr has no other scale of scores")
    return product


def to_tracr_model(of: Coded) -> Any:
    """The same model as what Tracr's `compile_rasp_to_model` returns: `.apply([bos, *tokens])` runs it.

    Raises `InputError` as `to_haiku` does, and where Tracr (the extra `certiformer[tracr]`) is not installed.
    """
    made = to_haiku(of)
    try:
        import haiku as hk
        import jax
        from tracr.compiler import assemble
        from tracr.craft import bases
        from tracr.transformer import encoder
        from tracr.transformer import model as theirs
    except ImportError:
        raise InputError("this needs Tracr: pip install 'certiformer[tracr]'; to_haiku gives its parameters") from None
    shape, config = made.shape, of.model.config
    categorical = shape.outputs is not None
    settings = theirs.TransformerConfig(
        num_heads=shape.n_heads,
        num_layers=shape.n_layers,
        key_size=made.key_size,
        mlp_hidden_size=made.mlp_hidden_size,
        dropout_rate=0.0,
        activation_function=jax.nn.relu,
        layer_norm=False,
        causal=shape.causal,
    )

    def unembed(x: Any, use_unembed_argmax: bool) -> Any:
        out = x @ shape.readout
        return out.argmax(-1) if use_unembed_argmax else out.squeeze(-1) if out.shape[-1] == 1 else out

    def compiled_model() -> Any:
        return theirs.CompiledTransformerModel(
            transformer=theirs.Transformer(settings),
            token_embed=hk.Embed(embedding_matrix=made.params["token_embed"]["embeddings"], name="token_embed"),
            position_embed=hk.Embed(embedding_matrix=made.params["pos_embed"]["embeddings"], name="pos_embed"),
            unembed=hk.to_module(unembed)(),
            use_unembed_argmax=categorical,
        )

    def basis(label: str, values: Any) -> list[Any]:
        return [bases.BasisDirection(label, value) for value in values]

    transformed: Any = hk.without_apply_rng(hk.transform(lambda tokens: compiled_model()(tokens, use_dropout=False)))
    tokens = sorted(shape.tokens, key=lambda value: shape.tokens[value])
    return assemble.AssembledTransformerModel(
        forward=transformed.apply,
        get_compiled_model=compiled_model,
        params=jax.tree_util.tree_map(jax.numpy.asarray, {module: dict(held) for module, held in made.params.items()}),
        model_config=settings,
        residual_labels=list(shape.labels),
        input_encoder=encoder.CategoricalEncoder(
            basis=basis("tokens", tokens),
            enforce_bos=True,
            bos_token=shape.bos,
            pad_token=shape.pad,
            max_seq_len=config.n_ctx,
        ),
        output_encoder=(
            encoder.CategoricalEncoder(basis("output", shape.outputs)) if categorical else encoder.NumericalEncoder()
        ),
    )
