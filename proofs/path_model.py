"""A model at one length, prepared for rule `paths`: float64 weights, embeddings, and magnitudes.

*Magnitudes* are upper bounds, over all inputs, of the sums of absolute values that a number is computed from. Any
float64 dot product of N terms errs by at most N 2^-52 times the sum of the absolute values of its terms, whatever the
order; so a linear function of the stream with coefficients c, moved backwards through an operation, loses at most a
multiple (`rounding`) of |c| . magnitude. They are crude, and it does not matter: they are multiplied by 2^-40.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .balls import Floats
from .core import Ints
from .format import require
from .model import Model

WIDER = 1 + 2.0**-20
MAX_EMBEDDED = 2**26
MAX_HEADS = 256
LARGEST = 2.0**150


@dataclass(frozen=True, eq=False)
class Attention:
    """Heads: `weight` of q, k and v [head, d_model, d_head], `bias` [head, d_head], `out` [head, d_head, d_model],
    `out_bias` [d_model]; `size`: magnitudes of q, k and v [head, d_head]; `scale`, right up to 2^-52 of itself."""

    weight: dict[str, Floats]
    bias: dict[str, Floats]
    out: Floats
    out_bias: Floats
    size: dict[str, Floats]
    scale: float

    @property
    def heads(self) -> int:
        return len(self.out)


@dataclass(frozen=True, eq=False)
class Neurons:
    """W_in [d_model, d_mlp], W_out [d_mlp, d_model], biases; `size` [d_mlp]: magnitudes of pre-activations."""

    weight: Floats
    bias: Floats
    out: Floats
    out_bias: Floats
    size: Floats


@dataclass(frozen=True, eq=False)
class Block:
    """A layer; the magnitudes [d_model] of the stream after its attention and after its neurons; `rounding`.

    With D = d_model + d_head + d_mlp + 64, rounding = D 2^-49 = 8 D 2^-52. A function with coefficients c that is moved
    through the layer's neurons or its attention loses less than 6 D 2^-52 |c| . (magnitude after it); see `Bounds`.
    """

    attention: Attention | None
    neurons: Neurons | None
    middle: Floats
    after: Floats
    rounding: float


class PathModel:
    """A model on inputs of n tokens: `embedded` [position, token of the domain's vocab, d_model], within 2^-53 of each
    entry's magnitude, and its `blocks`. Raises `Rejected` if numbers may leave float64's comfortable range."""

    def __init__(self, model: Model, n: int, vocab: Ints) -> None:
        self.n, self.config = n, model.config
        config = model.config
        self._weights = {name: array.astype(np.float64) for name, array in model.weights.items()}
        require(n * len(vocab) * config.d_model <= MAX_EMBEDDED, "too many embeddings for rule paths")
        embed = self._weights["embed.W_E"][vocab]
        place = np.zeros((n, config.d_model))
        if config.positional:
            place = self._weights["pos_embed.W_pos"][:n]
        self.embedded = embed[None] + place[:, None]
        size = (np.abs(embed).max(axis=0) + np.abs(place).max(axis=0)) * WIDER
        self.blocks: list[Block] = []
        for number in range(len(config.layers)):
            self.blocks.append(self._block(number, size))
            size = self.blocks[-1].after
        self.unembed = self._weights["unembed.W_U"]
        self.unembed_bias = self._weights["unembed.b_U"]
        largest = max(float(np.abs(self.unembed).max()), float(np.abs(self.unembed_bias).max()), float(size.max()))
        require(largest < LARGEST, "the weights are too large for rule paths")

    def _block(self, number: int, before: Floats) -> Block:
        layer, name, w = self.config.layers[number], f"blocks.{number}.", self._weights
        require(layer.n_heads <= MAX_HEADS, f"rule paths is for at most {MAX_HEADS} heads a layer")
        attention, neurons, middle = None, None, before
        if layer.n_heads:
            weight, bias = ({x: w[f"{name}attn.{kind}_{x}"] for x in "QKV"} for kind in "Wb")
            size = {x: (_applied(before, weight[x]) + np.abs(bias[x])) * WIDER for x in "QKV"}
            out, out_bias = w[f"{name}attn.W_O"], w[f"{name}attn.b_O"]
            middle = np.einsum("he,hed->d", size["V"], np.abs(out))
            middle = (before + middle + np.abs(out_bias)) * WIDER
            attention = Attention(weight, bias, out, out_bias, size, self._scale(number))
            largest = max(float(part.max()) for part in size.values())
            require(largest < LARGEST and abs(attention.scale) < LARGEST, "the weights are too large for rule paths")
        after = middle
        if layer.d_mlp:
            w_in, b_in, w_out, b_out = (w[f"{name}mlp.{x}"] for x in ("W_in", "b_in", "W_out", "b_out"))
            pre = (middle @ np.abs(w_in) + np.abs(b_in)) * WIDER
            after = (middle + pre @ np.abs(w_out) + np.abs(b_out)) * WIDER
            neurons = Neurons(w_in, b_in, w_out, b_out, pre)
        terms = self.config.d_model + layer.d_head + layer.d_mlp + 64
        require(terms <= 2**16 and float(after.max()) < LARGEST, "the model is too large for rule paths")
        return Block(attention, neurons, middle, after, terms * 2.0**-49)

    def _scale(self, number: int) -> float:
        if self.config.scale is not None:
            return self.config.scale
        return 1.0 / math.sqrt(self.config.layers[number].d_head)


def _applied(size: Floats, weight: Floats) -> Floats:
    """[head, d_head]: the magnitudes of size [d_model] times weight [head, d_model, d_head]."""
    return np.asarray(np.einsum("d,hde->he", size, np.abs(weight)))
