"""One layer of attention read out at the last position: every logit difference as a sum over positions (exact).

For a query token q (the last one) and an output y with a rival w, attention A being the softmax of the scores s,

    logit_y - logit_w = c(q, y, w) + sum_j A_j d_j(x_j; y, w),   and with A's positive normaliser
    logit_y > logit_w  <=>  sum_j e^{s_j(x_j)} (c + d_j(x_j)) > 0,

a sum of one table entry per position: the separable sign test. Tables are enclosed in float64, rounded outward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..models.config import ROOT_SCALE, TransformerConfig
from .balls import Ball, ReadsWeights, U, add, as_ball, exact, exp, matmul, multiply, negate
from .balls import Unsupported as Unsupported

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
SLACK = 2.0**-32
"""Terms are lowered by this share of the greatest of their group: less than any count can tell."""
ROUGHEST = 32.0
"""Scores known no better than this would give terms near the end of float64's range."""


def obstacle(config: TransformerConfig) -> str | None:
    """Why a model is not of this kind; None if it is."""
    if len(config.layers) != 1 or config.layers[0].n_heads != 1 or config.layers[0].d_mlp:
        shape = ", ".join(f"{layer.n_heads} heads and {layer.d_mlp} neurons" for layer in config.layers) or "no layers"
        return f"the separable sign test is for one layer with one head and no neurons; the model has {shape}"
    if config.layer_norm is not None:
        return "the separable sign test is for models without LayerNorm"
    if config.readout != "last":
        return f"the separable sign test is for the read-out 'last'; the model has {config.readout!r}"
    if config.rare:
        return f"the separable sign test does not cover {' and '.join(config.rare)}"
    return None


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """The tables of one model at one length n, as intervals in float64.

    `least[q, j, t] <= e^{s - top of q} <= most[q, j, t]` for token t at position j; `ov` [j, t, output] and
    `direct` [q, output] are what token t at j adds to the logits when it has all attention, and what the query adds
    always, as balls.
    """

    least: Floats
    most: Floats
    ov: Ball
    direct: Ball

    @property
    def n(self) -> int:
        return int(self.least.shape[1])

    def below(self, q: Integers, y: int, tokens: Integers, rivals: Integers | None = None) -> tuple[Floats, Floats]:
        """Floats b [q, w, j, token] for j < n - 1, and [q, w] for the query itself, w over `rivals` (default: all).

        b <= C e^s (c + d), with a C > 0 of q alone, by more than 2^-33 of the largest of them for this q: room for the
        rounding of whoever adds them up, or computes them in another order. A positive sum proves that y beats w.
        """
        n = self.n
        rivals = np.arange(self.direct.mid.shape[1]) if rivals is None else rivals
        columns = np.concatenate([[y], rivals])
        mid, rad = self.ov.mid.numpy()[..., columns], self.ov.rad.numpy()[..., columns]
        base, base_rad = self.direct.mid.numpy()[q][:, columns], self.direct.rad.numpy()[q][:, columns]
        always = _apart(base, base_rad)  # [q, w]
        here = _apart(mid[: n - 1, tokens], rad[: n - 1, tokens]).transpose(2, 0, 1)  # [w, j, t]
        low = always[:, :, None, None] + here
        rest = _scaled(low, self.least[q][:, None, : n - 1, tokens], self.most[q][:, None, : n - 1, tokens])
        own = always + _apart(mid[n - 1, q], rad[n - 1, q])
        own = _scaled(own, self.least[q, n - 1, q][:, None], self.most[q, n - 1, q][:, None])
        top = np.maximum(np.abs(rest).max(axis=(1, 2, 3), initial=2.0**-900), np.abs(own).max(axis=1, initial=0.0))
        return rest - (top * SLACK)[:, None, None, None], own - (top * SLACK)[:, None]


def _apart(mid: Floats, rad: Floats) -> Floats:
    """At most the first entry of the last axis minus each other one."""
    gap = mid[..., :1] - mid[..., 1:]
    error = (rad[..., :1] + rad[..., 1:]) * (1 + 2.0**-40) + np.abs(gap) * 2.0**-50 + 2.0**-1000
    return np.asarray(gap - error)


def _scaled(low: Floats, least: Floats, most: Floats) -> Floats:
    """At most e x for least <= e <= most, 0 <= least, and x >= low."""
    product = np.where(low >= 0, least, most) * low
    return np.asarray(product - (np.abs(product) * 2.0**-50 + 2.0**-1000))


def first_layer(model: ReadsWeights, n: int) -> FirstLayer:
    """The tables of a model (or of all models near one: `perturbed`) at length n.

    Raises `Unsupported` for other models, and if scores are known too roughly.
    """
    config = model.config
    if why := obstacle(config):
        raise Unsupported(why)

    def weight(name: str) -> Ball:
        return as_ball(model.parameter(name))

    def head(letter: str, x: Ball) -> Ball:
        w, b = weight(f"blocks.0.attn.W_{letter}"), weight(f"blocks.0.attn.b_{letter}")
        return add(matmul(x, w.map(lambda t: t[0])), b.map(lambda t: t[0]))

    embed = weight("embed.W_E").map(lambda t: t[None])
    stream = embed
    if config.positional == "learned":
        stream = add(embed, weight("pos_embed.W_pos").map(lambda t: t[:n, None]))
    stream = stream.map(lambda t: t.expand(n, *t.shape[1:]))
    last = stream.map(lambda t: t[n - 1])
    keys = head("K", stream).map(lambda t: t.flatten(0, 1).T)
    scores = matmul(head("Q", last), keys)  # [q, j * t]
    if config.attention_scale == ROOT_SCALE:
        scale = torch.tensor(config.layers[0].d_head, dtype=torch.float64).rsqrt()
        scores = multiply(scores, Ball(scale, scale * 8 * U))
    else:
        scores = multiply(scores, exact(torch.tensor(float(config.attention_scale), dtype=torch.float64)))
    top = Ball(scores.mid.amax(1, keepdim=True), torch.zeros(1, dtype=torch.float64))
    if not bool((scores.rad <= ROUGHEST).all()) or not bool(torch.isfinite(scores.mid).all()):
        raise Unsupported("the scores are known too roughly for float64")
    below_top = add(scores, negate(top))
    least, most = exp(exact(below_top.low())).low(), exp(exact(below_top.high())).high()
    shape = (len(scores.mid), n, -1)
    unembed = weight("unembed.W_U")
    mixed = matmul(head("V", stream), weight("blocks.0.attn.W_O").map(lambda t: t[0]))
    direct = matmul(add(last, weight("blocks.0.attn.b_O")), unembed)
    return FirstLayer(
        least.clamp(min=0.0).reshape(shape).numpy(),
        most.reshape(shape).numpy(),
        matmul(mixed, unembed),
        add(direct, weight("unembed.b_U")),
    )
