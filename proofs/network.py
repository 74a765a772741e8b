"""The model's function over the reals, on batches, in ball arithmetic; with parts replaced (sections 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .balls import Ball, divided, point, softmax, times
from .core import Bits, Ints
from .model import Model
from .simplex import sparsemax
from .smooth import activation, layer_norm

MAX_ACTIVATIONS = 2**22
Site: TypeAlias = tuple[str, str]
"""Of a node: ("written", any node) what it adds to the residual stream [batch, pos, d_model];
("pattern", head) [batch, query, key]; ("mixed", head) its pattern times its values [batch, pos, d_head];
("active", MLP) its neurons after the activation [batch, pos, d_mlp]. ("stream", l) the residual stream before layer l,
or, for their number, before the read-out [batch, pos, d_model]."""
Port: TypeAlias = tuple[str, str]
"""A reader: a node (or `logits`) and, of a head, q, k or v."""


@dataclass(frozen=True)
class Edits:
    """What is replaced in a run; everything else is computed from it.

    `read[port][source]`: what that reader, and no other, sees of `source` [batch, pos, d_model].
    `mixed[head]` [batch, pos, d_head]. `active[MLP]`: which neurons [d_mlp], and their activations [batch, pos, d_mlp].
    `stream[l]`: what the residual stream before layer l (their number: before the read-out) becomes, for all later
    readers; not together with `read`.
    """

    read: Mapping[Port, Mapping[str, Ball]] = field(default_factory=dict)
    mixed: Mapping[str, Ball] = field(default_factory=dict)
    active: Mapping[str, tuple[Bits, Ball]] = field(default_factory=dict)
    stream: Mapping[int, Callable[[Ball], Ball]] = field(default_factory=dict)


@dataclass
class _Stream:
    """The residual stream as it is summed up; and its terms, if some readers have sums of their own."""

    total: Ball
    terms: list[tuple[str, Ball]] | None

    def write(self, node: str, value: Ball) -> None:
        self.total = self.total + value
        if self.terms is not None:
            self.terms.append((node, value))

    def enter(self, number: int, edits: Edits, kept: dict[Site, Ball] | None) -> None:
        """Before a layer, or the read-out."""
        _keep(kept, ("stream", str(number)), self.total)
        if number in edits.stream:
            assert self.terms is None
            self.total = edits.stream[number](self.total)

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
        widest = max(
            [d, self.config.d_vocab_out, self.config.d_readout]
            + [max(n, x.d_head, x.d_mlp, x.n_heads * d) for x in layers]
        )
        terms = d * sum(layer.n_heads + 2 for layer in layers) if sums else 0
        return max(1, MAX_ACTIVATIONS // (n * (widest + terms + kept)))

    def width(self, site: Site, n: int) -> int:
        """How many numbers a position a site has."""
        kind, node = site
        if kind in ("written", "stream"):
            return self.config.d_model
        layer = self.config.layers[int(node[1:].split(".")[0])]
        return {"pattern": n, "mixed": layer.d_head, "active": layer.d_mlp}[kind]

    def logits(self, tokens: Ints, edits: Edits | None = None, kept: dict[Site, Ball] | None = None) -> Ball:
        """[batch, pos, d_vocab_out] on token ids [batch, pos]; one position, if the model has one read-out.

        The sites that are keys of `kept` are filled in.
        """
        n = tokens.shape[1]
        edits = edits or Edits()
        edited = edits.read or edits.mixed or edits.active or edits.stream
        lone = self.config.readout == "last" and not (kept or edited)
        embedded = self.embedded(tokens, slice(0, n))
        _keep(kept, ("written", "input"), embedded)
        stream = _Stream(embedded, [("input", embedded)] if edits.read else None)
        visible = np.tril(np.ones((n, n), dtype=np.bool_)) if self.config.causal else np.ones((n, n), dtype=np.bool_)
        for number, layer in enumerate(self.config.layers):
            stream.enter(number, edits, kept)
            only_last = lone and number == len(self.config.layers) - 1
            queries = slice(n - 1, n) if only_last else slice(0, n)  # nothing reads the other positions any more
            read = self.normed(stream.total, f"blocks.{number}.ln1") if layer.n_heads else stream.total
            written = [
                self._head(number, head, stream, read, queries, visible[queries], edits, kept)
                for head in range(layer.n_heads)
            ]
            stream.total = stream.total[:, queries]
            for head, value in enumerate(written):
                stream.write(f"a{number}.h{head}", value)
            if layer.n_heads:
                stream.write("", point(self.weights[f"blocks.{number}.attn.b_O"]))
            if layer.d_mlp:
                stream.write(f"m{number}", self._mlp(number, stream, edits, kept))
        stream.enter(len(self.config.layers), edits, kept)
        x = stream.seen(edits.read.get(("logits", ""), {}))
        return self.read_out(x)

    def embedded(self, tokens: Ints, positions: slice) -> Ball:
        """What `input` writes, for tokens [.., pos] that stand at these positions."""
        x = point(self.weights["embed.W_E"][tokens])
        return x + point(self.weights["pos_embed.W_pos"][positions]) if self.config.positional else x

    def normed(self, x: Ball, name: str) -> Ball:
        """Through the LayerNorm of that name, if the model has any."""
        if self.config.layer_norm is None:
            return x
        return layer_norm(x, self.weights[name + ".w"], self.weights[name + ".b"], self.config.layer_norm)

    def read_out(self, x: Ball) -> Ball:
        """Logits [batch, pos or 1, d_vocab_out] of the residual stream [batch, pos, d_model]."""
        x = self.normed(x, "ln_final")
        if self.config.readout == "last":
            x = x[:, -1:]
        if self.config.readout == "mean":
            x = averaged(x)
        return self.unembedded(x)

    def unembedded(self, x: Ball) -> Ball:
        """Logits of what is read out [.., d_model], through the read-out's MLP if there is one."""
        if self.config.d_readout:
            x = activation(self.config.activation, self.affine(x, "readout.W_in", "readout.b_in"))
        return self.affine(x, "unembed.W_U", "unembed.b_U")

    def affine(self, x: Ball, weight: str, bias: str, head: int | None = None) -> Ball:
        """x weight + bias, or of one head."""
        w, b = self.weights[weight], self.weights[bias]
        return x @ point(w if head is None else w[head]) + point(b if head is None else b[head])

    def _head(
        self,
        number: int,
        head: int,
        stream: _Stream,
        plain: Ball,
        queries: slice,
        visible: Bits,
        edits: Edits,
        kept: dict[Site, Ball] | None,
    ) -> Ball:
        """What a head writes at the positions `queries`; `plain`: what it reads where nothing is replaced."""
        name, node = f"blocks.{number}.attn.", f"a{number}.h{head}"

        def port(letter: str, positions: slice = slice(None)) -> Ball:
            replaced = edits.read.get((node, letter.lower()))
            x = self.normed(stream.seen(replaced), f"blocks.{number}.ln1") if replaced else plain
            return self.affine(x[:, positions], f"{name}W_{letter}", f"{name}b_{letter}", head)

        if node in edits.mixed:
            mixed = edits.mixed[node]
        else:
            pattern = self.pattern(number, port("Q", queries), port("K"), visible)
            _keep(kept, ("pattern", node), pattern)
            mixed = pattern @ port("V")
        _keep(kept, ("mixed", node), mixed)
        written = mixed @ point(self.weights[f"{name}W_O"][head])
        _keep(kept, ("written", node), written)
        return written

    def pattern(self, number: int, q: Ball, k: Ball, visible: Bits) -> Ball:
        """A layer's attention from queries [.., query, d_head] to keys [.., key, d_head]."""
        scores = times(q @ k.swapped(), self._scale(number))
        return sparsemax(scores, visible) if self.config.sparse else softmax(scores, visible)

    def _scale(self, number: int) -> Ball:
        """What a layer's products of queries and keys are multiplied by."""
        if self.config.scale is not None:
            return point(self.config.scale)
        near = 1.0 / math.sqrt(self.config.layers[number].d_head)  # two roundings of relative error 2^-53
        return Ball(np.asarray(near), np.asarray(near * 2.0**-50))

    def _mlp(self, number: int, stream: _Stream, edits: Edits, kept: dict[Site, Ball] | None) -> Ball:
        name, node = f"blocks.{number}.mlp.", f"m{number}"
        x = self.normed(stream.seen(edits.read.get((node, ""), {})), f"blocks.{number}.ln2")
        post = activation(self.config.activation, self.affine(x, name + "W_in", name + "b_in"))
        if node in edits.active:
            which, given = edits.active[node]
            post = Ball(np.where(which, given.mid, post.mid), np.where(which, given.rad, post.rad))
        _keep(kept, ("active", node), post)
        written = self.affine(post, name + "W_out", name + "b_out")
        _keep(kept, ("written", node), written)
        return written


def averaged(x: Ball) -> Ball:
    """The mean over the second axis, which stays with size 1."""
    n = x.mid.shape[1]
    return divided(point(np.ones((1, n))) @ x, n)


def _keep(kept: dict[Site, Ball] | None, site: Site, value: Ball) -> None:
    if kept is not None and site in kept:
        kept[site] = value
