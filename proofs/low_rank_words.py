"""The words of one length in rule `low_rank`: their coordinates from tables, and the logits at chosen coordinates.

For a head and a query q (the last token), attention is a_j = e^(s_j) / sum e^(s_j), and the values enter as their
difference from any vector m of the head: sum_j a_j v_j = m + sum_j a_j (v_j - m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .balls import UNIT, Floats, exp_near
from .core import Bits, Ints
from .format import require
from .low_rank_layer import Layer
from .near import Near, up

FLOOR = -690.0
LEAST_SUM = 2.0**-400
ROUGHEST = 2.0**-10
MAX_TABLE = 2**24


@dataclass(frozen=True, eq=False)
class _Head:
    """`power` [query, row]: e^(s - top) up to a share of `rough` (0 where it is below e^-690); of the values of each
    row what enters the coordinates (`inner`), and the length of what does not, as the neurons and logits see it."""

    power: Floats
    rough: float
    inner: Near
    left: Floats


@dataclass(frozen=True, eq=False)
class Coordinates:
    """`inner` [word, rank] and `left` [word]: the true coordinates c and remainder e of a word are such that
    |((c - inner)W, (c - inner)R)| + |(eW_in, e)| <= left. Nothing is known of a word that is not `good`."""

    inner: Floats
    left: Floats
    good: Bits


class Tables:
    """All tokens at all positions of words of length n, each a *row*; `tokens[j]`: the token ids that occur at j."""

    def __init__(self, layer: Layer, tokens: list[Ints]) -> None:
        self.layer, self.work, self.n = layer, layer.work, len(tokens)
        self.tokens = tokens
        self.starts = np.concatenate([[0], np.cumsum([len(found) for found in tokens])])
        rows, queries = int(self.starts[-1]), len(tokens[-1])
        require(rows * max(queries, layer.d) * max(1, layer.heads) <= MAX_TABLE, "the tables are too large")
        embedded = layer.network.weights["embed.W_E"][np.concatenate(tokens)]
        x = layer.exact(embedded)
        if layer.config.positional:
            position = np.repeat(np.arange(self.n), [len(found) for found in tokens])
            x = x + layer.exact(layer.network.weights["pos_embed.W_pos"][position])
        last = Near(x.mid[self.starts[-2] :], x.err, self.work)
        base = last + layer.weight("attn.b_O", 1, layer.d)
        self.each: list[_Head] = []
        for number in range(layer.heads):
            head, middle = self._head(number, x, last)
            self.each.append(head)
            base = base + middle
        self.mean = mean = layer.exact(base.mid.mean(axis=0, keepdims=True))
        varied = base - mean
        self.base = varied @ layer.P
        self.base_left = (varied - self.base @ layer.R).lengths(layer.stream_gram)
        self.constant = (mean + layer.weight("mlp.b_out", 1, layer.d)) @ layer.W_U + layer.exact(
            layer.network.weights["unembed.b_U"][None]
        )
        self.read = mean @ layer.W_in + layer.weight("mlp.b_in", 1, layer.d_mlp)
        self._sum_up()

    def _head(self, number: int, x: Near, last: Near) -> tuple[_Head, Near]:
        """One head's tables, and what the middle of its values writes to the stream (one row)."""
        layer, d = self.layer, self.layer.d
        e = layer.config.layers[0].d_head

        def weight(letter: str) -> Near:
            return layer.weight(f"attn.W_{letter}", *((e, d) if letter == "O" else (d, e)), head=number)

        query = last @ weight("Q") + layer.weight("attn.b_Q", 1, e, head=number)
        scores = (query @ weight("K").T) @ x.T  # a score's part that no key changes is left out
        scale = layer.network._scale(0)
        factor, size = float(scale.mid), scores.norm()
        below = scores.mid * factor
        top = below.max(axis=1, keepdims=True)
        below = below - top
        err = float(up(scores.err * abs(factor) + size * (float(scale.rad) + 8 * UNIT * abs(factor))))
        require(err <= ROUGHEST, "the scores are known too roughly")
        self.work.spend(40 * below.size)
        power = np.where(below >= FLOOR, exp_near(np.maximum(below, FLOOR)), 0.0)
        values = x @ weight("V") + layer.weight("attn.b_V", 1, e, head=number)
        middle = layer.exact(values.mid.mean(axis=0, keepdims=True))
        varied = values - middle
        into = weight("O") @ layer.P
        outside = weight("O") - into @ layer.R
        gram = outside @ layer.stream_gram @ outside.T
        return _Head(power, 2 * err + 2.0**-44, varied @ into, varied.lengths(gram)), middle @ weight("O")

    def _sum_up(self) -> None:
        """How roughly coordinates and remainders are known, at most, on account of rounding."""
        few = (2 * self.n + 8) * UNIT
        base = float(self.base.rows().max())
        inner, left, total = self.base.err, 0.0, base
        for head in self.each:
            most = float(head.inner.rows().max())
            share = 2 * head.rough + 2.0**-44 + few
            inner += 1.01 * (share * most + head.inner.err)
            left += 1.01 * share * float(head.left.max())
            total += most
        inner += (len(self.each) + 1) * UNIT * 1.02 * total
        gram = self.layer.inner_gram
        self.rough = float(up(up(inner) * up(np.sqrt(gram.norm())) + left))

    def coordinates(self, words: Ints) -> Coordinates:
        """Of words of token ids [word, n]."""
        places = np.stack(
            [np.searchsorted(found, column) for found, column in zip(self.tokens, words.T, strict=True)], 1
        )
        query = places[:, -1]
        rows = places + self.starts[:-1]
        inner, left = self.base.mid[query], self.base_left[query]
        good = np.ones(len(words), dtype=np.bool_)
        for head in self.each:
            power = head.power[query[:, None], rows]
            total = power.sum(axis=1, keepdims=True)
            good &= total[:, 0] >= LEAST_SUM
            weights = power / total
            inner = inner + (weights[:, None, :] @ head.inner.mid[rows])[:, 0]
            left = left + (weights * head.left[rows]).sum(axis=1)
        self.work.spend(len(self.each) * rows.size * (inner.shape[1] + 3) + inner.size)
        return Coordinates(inner, up(up(left) + self.rough), good)

    def logits(self, inner: Floats, fixed: Floats) -> Logits:
        """At coordinates of which the first are given [point, used] and the others are the same for all [1, others]."""
        layer, work = self.layer, self.work
        used = inner.shape[1]
        fix = layer.exact(fixed)
        base = self.read + fix @ _part(layer.W, slice(used, None))
        constant = self.constant + fix @ _part(layer.D, slice(used, None)) + layer.middle @ layer.written
        seen, direct = _part(layer.W, slice(used)), _part(layer.D, slice(used))
        inner_size = up(np.sqrt(np.square(inner).sum(axis=1)))
        before = inner @ seen.mid + base.mid
        off = inner_size * seen.err + base.err + (used + 4) * UNIT * (inner_size * seen.norm() + base.norm())
        hidden = np.maximum(before, 0) - layer.middle.mid
        size = up(np.sqrt(np.square(hidden).sum(axis=1)))
        read = hidden @ layer.U.mid
        found = read @ layer.V.mid + inner @ direct.mid + constant.mid
        read_size, most = up(np.sqrt(np.square(read).sum(axis=1))), float(np.abs(constant.mid).max())
        wide, straight = float(layer.V.T.rows().max()), direct.norm()
        rounding = (hidden.shape[1] + 4) * UNIT * size * layer.U.norm() * wide
        rounding = rounding + (read.shape[1] + 32) * UNIT * read_size * wide
        rounding = (
            rounding + inner_size * (direct.err + (used + 32) * UNIT * straight) + 32 * UNIT * most + constant.err
        )
        work.spend(hidden.size * (used + read.shape[1] + 4) + found.size * (used + read.shape[1] + 2))
        return Logits(found, size, up(off + UNIT * size), up(2 * rounding), layer)


def _part(matrix: Near, rows: slice) -> Near:
    """Some rows."""
    return Near(matrix.mid[rows], matrix.err, matrix.work)


@dataclass(frozen=True, eq=False)
class Logits:
    """At some points: `found` [point, output] is what the factors give; `size` [point] = |neurons - middle|;
    `off` [point]: how far the neurons are from these, at most; `slack` [point]: rounding of a difference of logits."""

    found: Floats
    size: Floats
    off: Floats
    slack: Floats
    layer: Layer

    def leads(self, point: Ints, label: Ints, left: Floats) -> Floats:
        """[pair]: at most the label's logit less any other, of all words within `left` of that point (infinite, if
        there is no other)."""
        layer = self.layer
        found = self.found[point]
        own = np.take_along_axis(found, label[:, None], axis=1)
        far = (left + self.off[point])[:, None] * (layer.far + layer.far[label][:, None])
        lost = up(up(self.size[point][:, None] * layer.apart[label] + up(far)) + self.slack[point][:, None])
        lead = own - found - lost
        lead = np.where(np.isfinite(lead), lead, -np.inf)  # what overflows is greater than nothing
        lead = np.where(np.arange(found.shape[1]) == label[:, None], np.inf, lead)
        layer.work.spend(8 * found.size)
        return np.asarray(lead.min(axis=1))
