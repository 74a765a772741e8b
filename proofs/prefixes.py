"""A causal model's logits on many words, position by position: what a prefix gives is computed once.

At a position the model reads the tokens up to there, so words with a common prefix share everything on it. Keys and
values of earlier positions are remembered, as a decoder does; each row stands for one prefix among the words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .balls import Ball, point
from .core import Ints
from .network import Network, averaged
from .smooth import activation


def logits_by_prefix(network: Network, tokens: Ints) -> Ball:
    """As `Network.logits`, up to rounding, on token ids [word, pos] of a causal model without edits."""
    words, n = tokens.shape
    decoder = _Decoder(network)
    row = np.zeros(words, dtype=np.int64)
    found = []
    for place in range(n):
        pairs = np.stack([row, tokens[:, place]], axis=1)
        prefixes, row = np.unique(pairs, axis=0, return_inverse=True)
        row = row.reshape(-1)
        stream = decoder.step(prefixes[:, 0], prefixes[:, 1], place)
        if network.config.readout != "last" or place == n - 1:
            found.append((network.normed(stream, "ln_final"), row))
    if network.config.readout == "each":
        heads = [network.unembedded(x)[row] for x, row in found]
        return _side_by_side(heads)
    x = _side_by_side([x[row] for x, row in found])
    if network.config.readout == "mean":
        x = averaged(x)
    return network.unembedded(x)


def _side_by_side(parts: list[Ball]) -> Ball:
    """Along the axis of positions."""
    mid = np.concatenate([part.mid for part in parts], axis=1)
    return Ball(mid, np.concatenate([part.rad for part in parts], axis=1))


@dataclass
class _Decoder:
    """`past[layer, head]`: keys and values of the prefixes of the last step [prefix, pos, d_head]."""

    network: Network
    past: dict[tuple[int, int], tuple[Ball, Ball]] = field(default_factory=dict)

    def step(self, parents: Ints, tokens: Ints, place: int) -> Ball:
        """The residual stream [prefix, 1, d_model] at a position, of prefixes that extend the last step's `parents`."""
        network = self.network
        x = network.embedded(tokens[:, None], slice(place, place + 1))
        for number, layer in enumerate(network.config.layers):
            if layer.n_heads:
                read = network.normed(x, f"blocks.{number}.ln1")
                written = [self._head(read, number, head, parents) for head in range(layer.n_heads)]
                for value in written:
                    x = x + value
                x = x + point(network.weights[f"blocks.{number}.attn.b_O"])
            if layer.d_mlp:
                name = f"blocks.{number}.mlp."
                pre = network.affine(network.normed(x, f"blocks.{number}.ln2"), name + "W_in", name + "b_in")
                x = x + network.affine(activation(network.config.activation, pre), name + "W_out", name + "b_out")
        return x

    def _head(self, read: Ball, number: int, head: int, parents: Ints) -> Ball:
        network, name = self.network, f"blocks.{number}.attn."
        q, k, v = (network.affine(read, f"{name}W_{c}", f"{name}b_{c}", head) for c in "QKV")
        if (number, head) in self.past:
            keys, values = self.past[number, head]
            k, v = _side_by_side([keys[parents], k]), _side_by_side([values[parents], v])
        self.past[number, head] = k, v
        pattern = network.pattern(number, q, k, np.ones((1, k.mid.shape[1]), dtype=np.bool_))
        return pattern @ v @ point(network.weights[f"{name}W_O"][head])
