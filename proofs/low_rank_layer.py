"""What rule `low_rank` computes of a model (section 15 of the specification, whose names of matrices it uses).

At the last position the stream before the neurons is x = mean + cR + e, with few coordinates c = (x - mean)P. The
neurons read w + cRW_in + eW_in, and write W_out W_U = UV + E to the logits, with few columns of U.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .balls import UNIT, Floats
from .model import Model
from .near import Near, Work, stacked, up
from .network import Network


@dataclass(frozen=True, eq=False)
class Factors:
    """P [d_model, inner], R [inner, d_model], U [d_mlp, outer], V [outer, output] and typical neurons [1, d_mlp]: any
    numbers. `used`: so many of the coordinates vary in what the neurons are calculated from."""

    narrow: Floats
    widen: Floats
    read: Floats
    write: Floats
    middle: Floats
    used: int


class Layer:
    """What does not depend on the input's length."""

    def __init__(self, model: Model, factors: Factors, work: Work) -> None:
        self.config, self.work, self.network = model.config, work, Network(model)
        self.d, self.heads = model.config.d_model, model.config.layers[0].n_heads
        self.d_mlp = model.config.layers[0].d_mlp
        self.P, self.R = self.exact(factors.narrow), self.exact(factors.widen)
        self.U, self.V = self.exact(factors.read), self.exact(factors.write)
        self.middle, self.used = self.exact(factors.middle), factors.used
        self.W_in, self.W_out = (
            self.weight("mlp.W_in", self.d, self.d_mlp),
            self.weight("mlp.W_out", self.d_mlp, self.d),
        )
        self.W_U = self.exact(self.network.weights["unembed.W_U"])

    def exact(self, array: Floats) -> Near:
        return Near(array, 0.0, self.work)

    def weight(self, name: str, *shape: int, head: int | None = None) -> Near:
        """A weight of the layer; zeros, if the layer has no such part; a vector as one row."""
        found = self.network.weights.get(f"blocks.0.{name}", np.zeros(shape))
        found = found if head is None else found[head]
        return self.exact(found.reshape(shape))

    @cached_property
    def W(self) -> Near:
        """R W_in: what the neurons read of the coordinates."""
        return self.R @ self.W_in

    @cached_property
    def stream_gram(self) -> Near:
        """W_in W_in^T + 1: the square of |(eW_in, e)| is e of this e^T."""
        return self.W_in @ self.W_in.T + self.exact(np.eye(self.d))

    @cached_property
    def D(self) -> Near:
        """R W_U: what the coordinates write to the logits past the neurons."""
        return self.R @ self.W_U

    @cached_property
    def inner_gram(self) -> Near:
        """Of coordinates: the square of |(cW, cR)|."""
        return self.W @ self.W.T + self.R @ self.R.T

    @cached_property
    def written(self) -> Near:
        """W_out W_U."""
        return self.W_out @ self.W_U

    @cached_property
    def far(self) -> Floats:
        """[output]: |the column of (W_out W_U; W_U) less that of any other| is at most the sum of the two's numbers."""
        both = stacked(self.written, self.W_U)
        centred = both.mid - both.mid.mean(axis=1, keepdims=True)
        self.work.spend(3 * centred.size)
        return up(up(np.sqrt(np.square(centred).sum(axis=0))) + both.err)

    @cached_property
    def apart(self) -> Floats:
        """[y, w]: at least the distance of columns y and w of E."""
        rest = self.written - self.U @ self.V
        gram = rest.mid.T @ rest.mid
        self.work.spend(gram.size * (len(rest.mid) + 4))
        own = up(np.sqrt(np.square(rest.mid).sum(axis=0)))
        squares = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
        slack = (len(rest.mid) + 8) * UNIT * np.square(own[:, None] + own)
        squares = np.where(np.isfinite(squares), np.maximum(squares, 0), np.inf)
        return up(np.sqrt(up(squares + slack)) + 2 * rest.err)
