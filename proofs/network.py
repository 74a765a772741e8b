"""The model's function over the reals, on batches, in ball arithmetic; with parts replaced (sections 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .balls import Ball, point, softmax, times
from .core import Bits, Ints
from .model import Model

MAX_ACTIVATIONS = 2**22
Site: TypeAlias = tuple[str, str]
"""Of a node: ("written", any node) what it adds to the residual stream [batch, pos, d_model];
("pattern", head) [batch, query, key]; ("mixed", head) its pattern times its values [batch, pos, d_head];
("active", MLP) its neurons after the ReLU [batch, pos, d_mlp]."""
Port: TypeAlias = tuple[str, str]
"""A reader: a node (or `logits`) and, of a head, q, k or v."""


@dataclass(frozen=True)
class Edits:
    """What is replaced in a run; everything else is computed from it.

    `read[port][source]`: what that reader, and no other, sees of `source` [batch, pos, d_model].
    `mixed[head]` [batch, pos, d_head]. `active[MLP]`: which neurons [d_mlp], and their activations [batch, pos, d_mlp].
    """

    read: Mapping[Port, Mapping[str, Ball]] = field(default_factory=dict)
    mixed: Mapping[str, Ball] = field(default_factory=dict)
    active: Mapping[str, tuple[Bits, Ball]] = field(default_factory=dict)


@dataclass
class _Stream:
    """The residual stream as it is summed up; and its terms, if some readers have sums of their own."""

    total: Ball
    terms: list[tuple[str, Ball]] | None

    def write(self, node: str, value: Ball) -> None:
        self.total = self.total + value
        if self.terms is not None:
            self.terms.append((node, value))

    def seen(self, replaced: Mapping[str, Ball]) -> Ball:
        """The sum of the terms, those of `replaced` replaced; biases, which are of no node, stay."""
        if not replaced:
            return self.total
        assert self.terms is not None
        found = [replaced.get(node, value) for node, value in self.terms]
        result = found[0]
        for value in found[1:]:
            result = result + value
        return result.spread(self.total.mid.shape)


class Network:
    """Runs of one model."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.weights = {name: array.astype(np.float64) for name, array in model.weights.items()}

    def batch(self, n: int, sums: bool = False, kept: int = 0) -> int:
        """How many inputs of n positions to run at once; `sums`: with readers' own sums; `kept`: numbers a position."""
        layers = self.config.layers
        d = self.config.d_model
        widest = max([d, self.config.d_vocab_out] + [max(n, x.d_head, x.d_mlp, x.n_heads * d) for x in layers])
        terms = d * sum(layer.n_heads + 2 for layer in layers) if sums else 0
        return max(1, MAX_ACTIVATIONS // (n * (widest + terms + kept)))

    def width(self, site: Site, n: int) -> int:
        """How many numbers a position a site has."""
        kind, node = site
        if kind == "written":
            return self.config.d_model
        layer = self.config.layers[int(node[1:].split(".")[0])]
        return {"pattern": n, "mixed": layer.d_head, "active": layer.d_mlp}[kind]

    def logits(self, tokens: Ints, edits: Edits | None = None, kept: dict[Site, Ball] | None = None) -> Ball:
        """[batch, pos, d_vocab_out] on token ids [batch, pos]. The sites that are keys of `kept` are filled in."""
        n = tokens.shape[1]
        edits = edits or Edits()
        embedded = point(self.weights["embed.W_E"][tokens])
        if self.config.positional:
            embedded = embedded + point(self.weights["pos_embed.W_pos"][None, :n])
        _keep(kept, ("written", "input"), embedded)
        stream = _Stream(embedded, [("input", embedded)] if edits.read else None)
        visible = np.tril(np.ones((n, n), dtype=np.bool_)) if self.config.causal else np.ones((n, n), dtype=np.bool_)
        for number, layer in enumerate(self.config.layers):
            written = [self._head(number, head, stream, visible, edits, kept) for head in range(layer.n_heads)]
            for head, value in enumerate(written):
                stream.write(f"a{number}.h{head}", value)
            if layer.n_heads:
                stream.write("", point(self.weights[f"blocks.{number}.attn.b_O"]))
            if layer.d_mlp:
                stream.write(f"m{number}", self._mlp(number, stream, edits, kept))
        x = stream.seen(edits.read.get(("logits", ""), {}))
        return x @ point(self.weights["unembed.W_U"]) + point(self.weights["unembed.b_U"])

    def _head(
        self,
        number: int,
        head: int,
        stream: _Stream,
        visible: Bits,
        edits: Edits,
        kept: dict[Site, Ball] | None,
    ) -> Ball:
        name, node = f"blocks.{number}.attn.", f"a{number}.h{head}"

        def port(letter: str) -> Ball:
            x = stream.seen(edits.read.get((node, letter.lower()), {}))
            return x @ point(self.weights[f"{name}W_{letter}"][head]) + point(self.weights[f"{name}b_{letter}"][head])

        if node in edits.mixed:
            mixed = edits.mixed[node]
        else:
            pattern = softmax(times(port("Q") @ port("K").swapped(), self._scale(number)), visible)
            _keep(kept, ("pattern", node), pattern)
            mixed = pattern @ port("V")
        _keep(kept, ("mixed", node), mixed)
        written = mixed @ point(self.weights[f"{name}W_O"][head])
        _keep(kept, ("written", node), written)
        return written

    def _scale(self, number: int) -> Ball:
        if self.config.scale is not None:
            return point(self.config.scale)
        near = 1.0 / math.sqrt(self.config.layers[number].d_head)  # two roundings of relative error 2^-53
        return Ball(np.asarray(near), np.asarray(near * 2.0**-50))

    def _mlp(self, number: int, stream: _Stream, edits: Edits, kept: dict[Site, Ball] | None) -> Ball:
        name, node = f"blocks.{number}.mlp.", f"m{number}"
        x = stream.seen(edits.read.get((node, ""), {}))
        post = (x @ point(self.weights[name + "W_in"]) + point(self.weights[name + "b_in"])).relu()
        if node in edits.active:
            which, given = edits.active[node]
            post = Ball(np.where(which, given.mid, post.mid), np.where(which, given.rad, post.rad))
        _keep(kept, ("active", node), post)
        written = post @ point(self.weights[name + "W_out"]) + point(self.weights[name + "b_out"])
        _keep(kept, ("written", node), written)
        return written


def _keep(kept: dict[Site, Ball] | None, site: Site, value: Ball) -> None:
    if kept is not None and site in kept:
        kept[site] = value
