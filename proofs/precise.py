"""The model on one input in balls of any precision (arb): for inputs that float64 balls leave undecided.

Logits that are exactly equal, or differ by e^-256, are decided here. Section 5 of the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import flint
import numpy as np

from .codec import Codec
from .core import Bits, Ints
from .model import Model

Matrix: TypeAlias = Any
PRECISIONS = (128, 1280)


class Precise:
    """Runs of one model, as matrices of arbs; at most `left` inputs."""

    def __init__(self, model: Model, left: int = 4096) -> None:
        self.model, self.left = model, left
        self._weights: dict[tuple[str, int], Matrix] = {}

    def possible(self, codec: Codec, tokens: Ints) -> Bits:
        """What may be decoded [pos, output], BOS's position left out, on token ids [pos] with BOS."""
        self.left -= 1
        before = flint.ctx.prec
        try:
            for bits in PRECISIONS:
                flint.ctx.prec = bits
                logits = self._logits(tokens.tolist())
                first = int(codec.bos) if self.model.config.readout == "each" else 0
                rows = [[logits[i, o] for o in range(logits.ncols())] for i in range(first, logits.nrows())]
                decode = _categorical if codec.categorical else _scalar
                found = np.array([decode(codec, row) for row in rows], dtype=np.bool_)
                if (found.sum(axis=-1) == 1).all():
                    break
        finally:
            flint.ctx.prec = before
        return found

    def _weight(self, name: str, head: int = -1) -> Matrix:
        """A parameter, or one head's part of it; a vector as one row. Float32 numbers are exact arbs."""
        if (name, head) not in self._weights:
            array = self.model.weights[name].astype(np.float64)
            array = array[head] if head >= 0 else array
            self._weights[name, head] = flint.arb_mat(np.atleast_2d(array).tolist())
        return self._weights[name, head]

    def _affine(self, x: Matrix, weight: Matrix, bias: Matrix) -> Matrix:
        return x * weight + flint.arb_mat([[1]] * x.nrows()) * bias

    def _logits(self, tokens: list[int]) -> Matrix:
        config, n = self.model.config, len(tokens)
        x = flint.arb_mat(self.model.weights["embed.W_E"].astype(np.float64)[tokens].tolist())
        if config.positional:
            x = x + flint.arb_mat(self.model.weights["pos_embed.W_pos"].astype(np.float64)[:n].tolist())
        for number, layer in enumerate(config.layers):
            if layer.n_heads:
                read = self._normed(x, f"blocks.{number}.ln1")
                written = [self._head(read, number, head) for head in range(layer.n_heads)]
                x = x + flint.arb_mat([[1]] * n) * self._weight(f"blocks.{number}.attn.b_O")
                for value in written:
                    x = x + value
            if layer.d_mlp:
                name = f"blocks.{number}.mlp."
                read = self._normed(x, f"blocks.{number}.ln2")
                pre = self._affine(read, self._weight(name + "W_in"), self._weight(name + "b_in"))
                post = _active(pre, config.activation)
                x = x + self._affine(post, self._weight(name + "W_out"), self._weight(name + "b_out"))
        x = self._normed(x, "ln_final")
        if config.readout == "last":
            x = flint.arb_mat([[x[n - 1, j] for j in range(x.ncols())]])
        if config.readout == "mean":
            x = flint.arb_mat([[sum((x[i, j] for i in range(n)), flint.arb(0)) / n for j in range(x.ncols())]])
        if config.d_readout:
            x = _active(self._affine(x, self._weight("readout.W_in"), self._weight("readout.b_in")), config.activation)
        return self._affine(x, self._weight("unembed.W_U"), self._weight("unembed.b_U"))

    def _normed(self, x: Matrix, name: str) -> Matrix:
        """Every row less its mean, divided by the root of the mean of its squares plus epsilon; scaled and shifted."""
        eps, d = self.model.config.layer_norm, x.ncols()
        if eps is None:
            return x
        weight, bias = self._weight(name + ".w"), self._weight(name + ".b")
        rows = []
        for i in range(x.nrows()):
            mean = sum((x[i, j] for j in range(d)), flint.arb(0)) / d
            row = [x[i, j] - mean for j in range(d)]
            root = (sum((c * c for c in row), flint.arb(0)) / d + flint.arb(eps)).sqrt()
            rows.append([row[j] / root * weight[0, j] + bias[0, j] for j in range(d)])
        return flint.arb_mat(rows)

    def _head(self, x: Matrix, number: int, head: int) -> Matrix:
        name = f"blocks.{number}.attn."
        q, k, v = (
            self._affine(x, self._weight(name + "W_" + c, head), self._weight(name + "b_" + c, head)) for c in "QKV"
        )
        config, n = self.model.config, x.nrows()
        width = config.layers[number].d_head
        scale = flint.arb(config.scale) if config.scale is not None else 1 / flint.arb(width).sqrt()
        scores = q * k.transpose() * scale
        pattern = []
        for i in range(n):
            seen = i + 1 if config.causal else n
            row = [scores[i, j] for j in range(seen)]
            if config.sparse:
                pattern.append(_projection(row) + [flint.arb(0)] * (n - seen))
                continue
            top = max(range(seen), key=lambda j: float(row[j].mid()))
            powers = [flint.arb(1) if j == top else (row[j] - row[top]).exp() for j in range(seen)]
            whole = sum(powers[1:], powers[0])
            pattern.append([power / whole for power in powers] + [flint.arb(0)] * (n - seen))
        return flint.arb_mat(pattern) * v * self._weight(name + "W_O", head)


def _projection(row: list[Any]) -> list[Any]:
    """Onto the simplex: max(x - t, 0). By Michelot's rounds for the middles; then t is bracketed, and that is tested.

    The sum of max(x - t, 0) falls with t: where it is at most 1 t is not too small, and where at least 1 not too large.
    """
    middles, zero = [x.mid() for x in row], flint.arb(0)
    active = list(range(len(row)))
    while True:
        guess = ((sum((middles[j] for j in active), zero) - 1) / len(active)).mid()
        left = [j for j in active if middles[j] > guess]
        if len(left) == len(active) or not left:
            break
        active = left
    gap = (sum(((x - guess).max(zero) for x in row), zero) - 1).abs_upper() * 2 + flint.arb(2) ** -(flint.ctx.prec + 8)
    below, above = guess - gap, guess + gap
    low = max(range(len(row)), key=lambda j: float(middles[j]))
    if not sum(((x - below).max(zero) for x in row), zero) >= 1:
        below = (row[low] - 1).lower()
    if not sum(((x - above).max(zero) for x in row), zero) <= 1:
        above = _largest(row)
    share = [(x - below).max(zero).upper() for x in row]
    least = [(x - above).max(zero).lower() for x in row]
    return [a.union(b) for a, b in zip(least, share, strict=True)]


def _largest(row: list[Any]) -> Any:
    """At least every number of the row."""
    found = row[0].upper()
    for x in row[1:]:
        found = found.max(x.upper()).upper()
    return found


def _active(x: Matrix, name: str) -> Matrix:
    """The activation of every entry."""
    return flint.arb_mat([[ACTIVATIONS[name](x[i, j]) for j in range(x.ncols())] for i in range(x.nrows())])


def _gelu_new(x: Any) -> Any:
    """x s(2 sqrt(2/pi) (x + 0.044715 x^3)), s the logistic function."""
    inner = x + x * x * x * flint.arb(8943) / 200000
    return x / (1 + (-(8 / flint.arb.pi()).sqrt() * inner).exp())


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: x.max(flint.arb(0)),
    "gelu": lambda x: x * (-x / flint.arb(2).sqrt()).erfc() / 2,
    "gelu_new": _gelu_new,
    "silu": lambda x: x / (1 + (-x).exp()),
    "leaky_relu": lambda x: x.max(x / 100),
}


def _categorical(codec: Codec, row: list[Any]) -> list[bool]:
    """Output o may be the first maximum iff no other is certainly larger, and no earlier one certainly as large."""

    def beaten(o: int) -> bool:
        return any(bool(row[k] > row[o]) or (k < o and bool(row[k] >= row[o])) for k in range(len(row)) if k != o)

    return [not beaten(o) for o in range(len(row))]


def _scalar(codec: Codec, row: list[Any]) -> list[bool]:
    """An output may be the nearest iff none is certainly nearer, and none listed before certainly as near."""
    points = [Fraction(point) for point in codec.points]

    def beaten(o: int, k: int) -> bool:
        middle = (points[o] + points[k]) / 2
        bound = flint.arb(flint.fmpq(middle.numerator, middle.denominator))
        if points[k] > points[o]:
            return bool(row[0] > bound) or (k < o and bool(row[0] >= bound))
        return bool(row[0] < bound) or (k < o and bool(row[0] <= bound))

    return [not any(beaten(o, k) for k in range(len(points)) if k != o) for o in range(len(points))]
