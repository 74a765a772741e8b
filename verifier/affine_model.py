"""A model of any configuration prepared for affine bounds: LayerNorm's own weights folded, QK and OV circuits formed.

Attention reads y (the stream, or its LayerNorm without weight and bias): up to a term that is equal for all keys,
    score(i, j) = y_i^T qk y_j + key . y_j,       head's output at i = sum_j A_ij (y_j @ ov) + its share of `bias`.
The weights are float32, so a weight times LayerNorm's is exact in float64; what the other sums lose is covered by
`rounding` times the magnitudes in `Attention.qk_size`, `Attention.ov_size` and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.errors import InputError
from ..models.transformer import Transformer

WIDER = 1 + 2.0**-20
LARGEST = 2.0**60
"""Magnitudes beyond it are refused, so that no product in the bounds leaves the range of float64."""


@dataclass(frozen=True, eq=False)
class Attention:
    """qk, ov [head, d, d]; key [head, d]; bias [d]; `*_size`: sums of absolute values of the same."""

    qk: Tensor
    key: Tensor
    ov: Tensor
    bias: Tensor
    qk_size: Tensor
    key_size: Tensor
    ov_size: Tensor
    bias_size: Tensor
    w_v: Tensor
    w_o: Tensor
    """[head, d, d_head], [head, d_head, d]: a head's output through its values."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """w_in [d, neuron], b_in [neuron], w_out [neuron, d], b_out [d]; `b_in_size`: magnitude of b_in."""

    w_in: Tensor
    b_in: Tensor
    b_in_size: Tensor
    w_out: Tensor
    b_out: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    attention: Attention | None
    neurons: Neurons | None


class AffineModel:
    """Weights in float64. Raises `InputError` for weights that are not finite, or too large."""

    def __init__(self, model: Transformer, n: int) -> None:
        model.require_float32()
        self.config, self.n, self.transformer = model.config, n, model
        config = self.config
        self.eps = config.layer_norm
        largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
        if largest > LARGEST:
            raise InputError(f"a weight of this model is {largest:.3g}: bounds need weights up to 2^60; scale it down")
        widest = max([config.d_model, *(max(x.d_mlp, x.n_heads * x.d_head) for x in config.layers)])
        self.rounding = (n * (widest + 64) + 256) * 2.0**-50
        self.embed = self._weight("embed.W_E")
        self.blocks = [self._block(number) for number in range(len(config.layers))]
        weight, bias = self._norm("ln_final")
        self.unembed = weight[:, None] * self._weight("unembed.W_U")
        self.unembed_bias = self._weight("unembed.b_U") + bias @ self._weight("unembed.W_U")
        size = self._weight("unembed.b_U").abs() + bias.abs() @ self._weight("unembed.W_U").abs()
        self.unembed_bias_size = size * WIDER

    def positions(self) -> Tensor:
        """[n, d]: what is added to a token's embedding."""
        if self.config.positional == "learned":
            return self._weight("pos_embed.W_pos")[: self.n]
        return torch.zeros(self.n, self.config.d_model, dtype=torch.float64)

    def _weight(self, name: str) -> Tensor:
        return self.transformer.parameter(name).detach().to(torch.float64)

    def _norm(self, name: str) -> tuple[Tensor, Tensor]:
        if self.eps is None:
            d = self.config.d_model
            return torch.ones(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        return self._weight(f"{name}.w"), self._weight(f"{name}.b")

    def _block(self, number: int) -> Block:
        layer, name = self.config.layers[number], f"blocks.{number}."
        attention, neurons = None, None
        if layer.n_heads:
            attention = self._attention(number, name)
        if layer.d_mlp:
            weight, bias = self._norm(f"{name}ln2")
            w_in, b_in = self._weight(f"{name}mlp.W_in"), self._weight(f"{name}mlp.b_in")
            size = (b_in.abs() + bias.abs() @ w_in.abs()) * WIDER
            out = self._weight(f"{name}mlp.W_out"), self._weight(f"{name}mlp.b_out")
            neurons = Neurons(weight[:, None] * w_in, b_in + bias @ w_in, size, *out)
        return Block(attention, neurons)

    def _attention(self, number: int, name: str) -> Attention:
        weight, shift = self._norm(f"{name}ln1")
        q, k, v, o = (self._weight(f"{name}attn.W_{x}") for x in "QKVO")
        b_q, _, b_v, b_o = (self._weight(f"{name}attn.b_{x}") for x in "QKVO")
        scale = self.config.scale(number)  # within 4 u of 1 / sqrt(d_head), or exact
        query_bias = b_q + torch.einsum("d,hde->he", shift, q)
        query_size = b_q.abs() + torch.einsum("d,hde->he", shift.abs(), q.abs())
        value_bias = b_v + torch.einsum("d,hde->he", shift, v)
        value_size = b_v.abs() + torch.einsum("d,hde->he", shift.abs(), v.abs())
        wq, wk, wv = (weight[:, None] * x for x in (q, k, v))

        def circuits(x: Tensor, y: Tensor, z: Tensor, w: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (
                torch.einsum("hde,hfe->hdf", x, y),
                torch.einsum("he,hfe->hf", bias, y),
                torch.einsum("hde,hef->hdf", z, w),
            )

        qk, key, ov = circuits(wq * scale, wk, wv, o, query_bias * scale)
        qk_size, key_size, ov_size = circuits(
            wq.abs() * abs(scale), wk.abs(), wv.abs(), o.abs(), query_size * abs(scale)
        )
        bias = torch.einsum("he,hed->d", value_bias, o) + b_o
        bias_size = torch.einsum("he,hed->d", value_size, o.abs()) + b_o.abs()
        sizes = (qk_size * WIDER, key_size * WIDER, ov_size * WIDER, bias_size * WIDER)
        return Attention(qk, key, ov, bias, *sizes, wv, o)
