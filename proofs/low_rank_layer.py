"""What rule `low_rank` computes of a model (section 13 of the specification); the names of the matrices are those there.

At the last position the stream before the neurons is x = mean + cR + e, with the few coordinates c = (x - mean)P. The
neurons read w + cRW_in + eW_in. What they and c write to the logits is (relu(w + cRW_in), c) read V + (the rest).
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
    """P [d_model, inner], R [inner, d_model], what reads the neurons and coordinates [d_mlp + inner, outer], and V
    [outer, output]: any numbers."""

    narrow: Floats
    widen: Floats
    read: Floats
    write: Floats


class Layer:
    """What does not depend on the input's length."""

    def __init__(self, model: Model, factors: Factors, work: Work) -> None:
        self.config, self.work, self.network = model.config, work, Network(model)
        self.d, self.heads = model.config.d_model, model.config.layers[0].n_heads
        self.d_mlp = model.config.layers[0].d_mlp
        self.P, self.R = self.exact(factors.narrow), self.exact(factors.widen)
        self.U, self.V = self.exact(factors.read), self.exact(factors.write)
        self.W_in, self.W_out = self.weight("mlp.W_in", self.d, self.d_mlp), self.weight("mlp.W_out", self.d_mlp, self.d)
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
    def inner_gram(self) -> Near:
        """Of coordinates: the square of |(cW, cR)|."""
        return self.W @ self.W.T + self.R @ self.R.T

    @cached_property
    def outputs(self) -> Near:
        """(W_out W_U; W_U): what neurons and stream write to the logits."""
        return stacked(self.W_out @ self.W_U, self.W_U)

    @cached_property
    def far(self) -> Floats:
        """[output]: |the column of `outputs` less that of any other| is at most the sum of the two's numbers."""
        mid = self.outputs.mid
        centred = mid - mid.mean(axis=1, keepdims=True)
        self.work.spend(3 * mid.size)
        return up(up(np.sqrt(np.square(centred).sum(axis=0))) + self.outputs.err)

    @cached_property
    def apart(self) -> Floats:
        """[y, w]: at least the distance of columns y and w of (W_out W_U; R W_U) - U V, what the factors leave out."""
        hidden = Near(self.outputs.mid[: self.d_mlp], self.outputs.err, self.work)
        rest = stacked(hidden, self.R @ self.W_U) - self.U @ self.V
        gram = rest.mid.T @ rest.mid
        self.work.spend(gram.size * (len(rest.mid) + 4))
        own = up(np.sqrt(up(np.square(rest.mid).sum(axis=0))))
        squares = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
        slack = (len(rest.mid) + 8) * UNIT * np.square(own[:, None] + own)
        return up(np.sqrt(up(np.maximum(squares, 0) + up(slack))) + 2 * rest.err)
