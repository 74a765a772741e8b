"""A model prepared for bounds: float64 weights, and magnitudes for rounding errors.

Magnitudes are upper bounds, over every input, of the sums of absolute values that a site is computed from; a linear
function with coefficients c that is moved through an operation in float64 errs by at most `rounding` |c| . magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.config import ROOT_SCALE
from ..models.transformer import Transformer
from .balls import Ball, U, Unsupported, exact

WIDER = 1 + 2.0**-20


def obstacle(model: Transformer) -> str | None:
    """Why a model has no path bounds; None if it has."""
    config = model.config
    if not config.layers:
        return "path bounds are for models with at least one layer"
    if config.layer_norm is not None:
        return "path bounds do not cover LayerNorm yet"
    if config.activation != "relu" and any(layer.d_mlp for layer in config.layers):
        return f"path bounds do not cover the activation {config.activation!r} yet"
    if config.readout == "each":
        return "path bounds are for models with one read-out ('last' or 'mean')"
    if config.rare:
        return f"path bounds do not cover {' and '.join(config.rare)} yet"
    if not config.causal and not (len(config.layers) == 1 and config.readout == "last"):
        return "path bounds are for causal models, and for one layer read out at the last position"
    return None


@dataclass(frozen=True, eq=False)
class Attention:
    """One layer's heads: W_Q, W_K, W_V [head, d_model, d_head], W_O [head, d_head, d_model], biases, scale (a ball)."""

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    b_q: Tensor
    b_k: Tensor
    b_v: Tensor
    b_o: Tensor
    scale: Ball
    sizes: tuple[Tensor, Tensor, Tensor]
    """[head, d_head] each: magnitudes of queries, keys and values."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """One layer's MLP: W_in [d_model, d_mlp], W_out [d_mlp, d_model]; `size` [d_mlp]: magnitude of pre-activations."""

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """One layer; the magnitudes [d_model] of the stream before it, after its attention, and after its MLP."""

    attention: Attention | None
    neurons: Neurons | None
    before: Tensor
    middle: Tensor
    after: Tensor


class BoundedModel:
    """A model at one length n."""

    def __init__(self, model: Transformer, n: int) -> None:
        if why := obstacle(model):
            raise Unsupported(why)
        self.model, self.config, self.n = model, model.config, n
        config = model.config
        self.embedded = self._embedded()  # [n, token, d_model]
        size = self.embedded.abs().amax((0, 1)) * WIDER
        self.blocks: list[Block] = []
        for number in range(len(config.layers)):
            self.blocks.append(self._block(number, size))
            size = self.blocks[-1].after
        self.unembed = self._weight("unembed.W_U")
        self.unembed_bias = self._weight("unembed.b_U")
        widest = max([config.d_model, *(max(x.d_mlp, x.n_heads * x.d_head) for x in config.layers)])
        self.rounding = (n * (widest + 64) + 256) * 2.0**-50
        if not bool(torch.isfinite(size).all()) or float(size.max()) > 2.0**200:
            raise Unsupported("float64 bounds overflow: the weights are too large")

    def _weight(self, name: str) -> Tensor:
        return self.model.parameter(name).detach().to(torch.float64)

    def _embedded(self) -> Tensor:
        """Exact up to 2^-53 of each entry's magnitude, which `rounding` covers."""
        embed = self._weight("embed.W_E")
        if self.config.positional == "learned":
            return embed[None] + self._weight("pos_embed.W_pos")[: self.n, None]
        return embed[None].expand(self.n, -1, -1)

    def _block(self, number: int, before: Tensor) -> Block:
        layer = self.config.layers[number]
        name = f"blocks.{number}."
        attention, neurons, middle = None, None, before
        if layer.n_heads:
            w = {x: self._weight(f"{name}attn.W_{x}") for x in "QKVO"}
            b = {x: self._weight(f"{name}attn.b_{x}") for x in "QKVO"}
            sizes = {x: (torch.einsum("d,hde->he", before, w[x].abs()) + b[x].abs()) * WIDER for x in "QKV"}
            middle = (before + torch.einsum("he,hed->d", sizes["V"], w["O"].abs()) + b["O"].abs()) * WIDER
            q, k, v, o = (w[x] for x in "QKVO")
            sums = (sizes["Q"], sizes["K"], sizes["V"])
            attention = Attention(q, k, v, o, b["Q"], b["K"], b["V"], b["O"], self._scale(number), sums)
        after = middle
        if layer.d_mlp:
            w_in, b_in = self._weight(f"{name}mlp.W_in"), self._weight(f"{name}mlp.b_in")
            w_out, b_out = self._weight(f"{name}mlp.W_out"), self._weight(f"{name}mlp.b_out")
            size = (middle @ w_in.abs() + b_in.abs()) * WIDER
            after = (middle + size @ w_out.abs() + b_out.abs()) * WIDER
            neurons = Neurons(w_in, b_in, w_out, b_out, size)
        return Block(attention, neurons, before, middle, after)

    def _scale(self, number: int) -> Ball:
        if self.config.attention_scale == ROOT_SCALE:
            scale = torch.tensor(self.config.layers[number].d_head, dtype=torch.float64).rsqrt()
            return Ball(scale, scale * 8 * U)
        return exact(torch.tensor(float(self.config.attention_scale), dtype=torch.float64))
