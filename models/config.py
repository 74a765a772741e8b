"""The shape of a model: everything about it but its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeAlias, get_args

from .errors import InputError

ActivationName: TypeAlias = Literal["relu", "gelu", "gelu_new", "silu", "leaky_relu"]
Positional: TypeAlias = Literal["learned", "none"]
Readout: TypeAlias = Literal["each", "last", "mean"]
AttentionKind: TypeAlias = Literal["softmax", "sparsemax"]
AttentionScale: TypeAlias = Literal["1/sqrt(d_head)"] | float
ROOT_SCALE: Literal["1/sqrt(d_head)"] = "1/sqrt(d_head)"


OPTIONAL: dict[str, object] = {"d_readout": 0, "attention": "softmax"}
"""What is left out of a configuration's JSON where it has this value."""


def _integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value!r}")


@dataclass(frozen=True)
class LayerConfig:
    """One block: `n_heads` attention heads of width `d_head`, then an MLP of `d_mlp` neurons.

    `n_heads=0` (then `d_head` is 0 too) or `d_mlp=0`: the block lacks that part, and its parameters.
    """

    n_heads: int
    d_head: int
    d_mlp: int

    def __post_init__(self) -> None:
        _integer("n_heads", self.n_heads, 0)
        _integer("d_head", self.d_head, 1 if self.n_heads else 0)
        _integer("d_mlp", self.d_mlp, 0)


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a `Transformer`.

    `attention_scale` multiplies query-key products: the usual 1/sqrt(d_head), or an exact factor (compiled: 1.0).
    `layer_norm`: None, or the epsilon of pre-LayerNorm in every block and before the unembedding.
    `readout`: logits at `each` position, or from the `last` position's residual stream, or from its `mean`
    over all positions (after the final LayerNorm, if any). `d_readout`: neurons of an MLP between that one read-out
    and the logits, so that the unembedding reads their activations; 0: none. `attention`: from scores to patterns by
    softmax, or by sparsemax, the Euclidean projection onto the simplex (Martins and Astudillo, 2016).
    `activation`: `leaky_relu` is x, or x / 100 below 0.
    Raises `InputError` for anything outside these.
    """

    d_model: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    layers: tuple[LayerConfig, ...]
    activation: ActivationName = "relu"
    causal: bool = False
    positional: Positional = "learned"
    attention_scale: AttentionScale = ROOT_SCALE
    layer_norm: float | None = None
    readout: Readout = "each"
    d_readout: int = 0
    attention: AttentionKind = "softmax"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_ctx", "d_vocab", "d_vocab_out"):
            _integer(name, getattr(self, name), 1)
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, LayerConfig) for layer in self.layers):
            raise InputError(f"layers must be a tuple of LayerConfig, got {self.layers!r}")
        _one_of("activation", self.activation, get_args(ActivationName))
        _one_of("positional", self.positional, get_args(Positional))
        _one_of("readout", self.readout, get_args(Readout))
        _one_of("attention", self.attention, get_args(AttentionKind))
        _integer("d_readout", self.d_readout, 0)
        if self.d_readout and self.readout == "each":
            raise InputError("d_readout is for models with one read-out: take readout 'last' or 'mean', or d_readout 0")
        if not isinstance(self.causal, bool):
            raise InputError(f"causal must be True or False, got {self.causal!r}")
        if self.attention_scale != ROOT_SCALE:
            _number(f"attention_scale must be {ROOT_SCALE!r} or a number; it", self.attention_scale)
            object.__setattr__(self, "attention_scale", float(self.attention_scale))
        if self.layer_norm is not None:
            _number("layer_norm (its epsilon)", self.layer_norm)
            if self.layer_norm <= 0:
                raise InputError(f"layer_norm (its epsilon) must be positive, got {self.layer_norm!r}")
            object.__setattr__(self, "layer_norm", float(self.layer_norm))

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(shape) for shape in parameter_shapes(self).values())

    @property
    def rare(self) -> tuple[str, ...]:
        """What this model has that only enumeration covers, in words."""
        found = ["sparsemax attention"] if self.attention == "sparsemax" else []
        found += ["an MLP at the read-out"] if self.d_readout else []
        return (*found, "leaky_relu") if self.activation == "leaky_relu" else tuple(found)

    @property
    def reader(self) -> str:
        """The matrix that reads the residual stream for the logits: the unembedding, or the read-out MLP's."""
        return "readout.W_in" if self.d_readout else "unembed.W_U"

    def readout_names(self) -> tuple[str, ...]:
        """The parameters between the residual stream (or the final LayerNorm) and the logits."""
        mlp = ("readout.W_in", "readout.b_in") if self.d_readout else ()
        return (*mlp, "unembed.W_U", "unembed.b_U")

    def scale(self, layer: int) -> float:
        """The factor of query-key products in `layer`, as a float."""
        if isinstance(self.attention_scale, float):
            return self.attention_scale
        return 1.0 / math.sqrt(self.layers[layer].d_head)

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`; `TransformerConfig.from_json(c.to_json()) == c`."""
        data = {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}
        return {key: value for key, value in data.items() if OPTIONAL.get(key, data) != value}

    def canonical_json(self) -> str:
        """The same configuration gives the same text: sorted keys, no spaces."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @staticmethod
    def from_json(data: object) -> TransformerConfig:
        """Raises `InputError` naming missing and unknown keys."""
        if isinstance(data, Mapping):
            data = {**OPTIONAL, **data}
        known = _exact_keys("configuration", data, TransformerConfig)
        layers = known["layers"]
        if not isinstance(layers, list):
            raise InputError(f"layers must be a list, got {layers!r}")
        blocks = tuple(LayerConfig(**_exact_keys("layer", layer, LayerConfig)) for layer in layers)  # type: ignore[arg-type]
        return TransformerConfig(**{**known, "layers": blocks})  # type: ignore[arg-type]


def _exact_keys(what: str, data: object, cls: type[LayerConfig] | type[TransformerConfig]) -> dict[str, object]:
    if not isinstance(data, Mapping):
        raise InputError(f"a {what} must be a JSON object, got {data!r}")
    expected = {field.name for field in fields(cls)}
    missing, extra = sorted(expected - set(data)), sorted(map(str, set(data) - expected))
    if missing or extra:
        raise InputError(f"a {what} has exactly the keys {sorted(expected)}; missing {missing}, unknown {extra}")
    return dict(data)


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name (TransformerLens's) and shape, in the order the model uses them."""
    d = config.d_model
    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (config.d_vocab, d)}
    if config.positional == "learned":
        shapes["pos_embed.W_pos"] = (config.n_ctx, d)

    def norm(name: str) -> None:
        if config.layer_norm is not None:
            shapes[f"{name}.w"] = shapes[f"{name}.b"] = (d,)

    for index, layer in enumerate(config.layers):
        block, h, e = f"blocks.{index}", layer.n_heads, layer.d_head
        if h:
            norm(f"{block}.ln1")
            shapes.update({f"{block}.attn.W_{x}": (h, d, e) for x in "QKV"})
            shapes.update({f"{block}.attn.b_{x}": (h, e) for x in "QKV"})
            shapes.update({f"{block}.attn.W_O": (h, e, d), f"{block}.attn.b_O": (d,)})
        if layer.d_mlp:
            norm(f"{block}.ln2")
            shapes.update({f"{block}.mlp.W_in": (d, layer.d_mlp), f"{block}.mlp.b_in": (layer.d_mlp,)})
            shapes.update({f"{block}.mlp.W_out": (layer.d_mlp, d), f"{block}.mlp.b_out": (d,)})
    norm("ln_final")
    if config.d_readout:
        shapes.update({"readout.W_in": (d, config.d_readout), "readout.b_in": (config.d_readout,)})
    shapes.update({"unembed.W_U": (config.d_readout or d, config.d_vocab_out), "unembed.b_U": (config.d_vocab_out,)})
    return shapes
