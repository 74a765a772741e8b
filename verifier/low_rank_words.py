"""The words of one length in engine `low_rank`: which share their neurons, and which are proved, with given factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .first_layer import Floats, Integers
from .low_rank_model import Flags, Folded, TokenTables

BATCH = 2**12
NEIGHBOURS = 4
SLACK = 3e-5
"""Of all that is lost: what the checker's rounding may add."""


@dataclass(frozen=True, eq=False)
class Room:
    """How much the labels' logits have to lead by, and `far` [output]: a unit of change in neurons and stream
    changes the difference of two outputs by no more than the sum of their numbers."""

    needed: float
    far: Floats

    def of(self, logits: Floats, label: Integers) -> tuple[Floats, Floats]:
        """[word, output]: by how much more than needed the label leads (infinite against itself), and what a unit of
        change may cost of it."""
        lead = np.take_along_axis(logits, label[:, None], 1) - logits - self.needed
        lead[np.arange(len(label)), label] = np.inf
        return lead, np.maximum(self.far + self.far[label][:, None], 2.0**-500)


@dataclass(frozen=True, eq=False)
class Length:
    """The words of one length, and what of them does not depend on the ranks. `labels`: -1 for words that are not
    looked at. `lost` [head][row, rank] and `base_lost`
    [query, rank]: what that rank leaves out, as neurons and logits see it."""

    n: int
    tables: TokenTables
    labels: Integers
    attention: Floats
    lost: list[Floats]
    base_lost: Floats


@dataclass(frozen=True, eq=False)
class Matrices:
    """P, R, the read-out's left and right factor, typical neurons, all rounded to float32; R W_in and R W_U; and for
    two outputs how far apart they are in what the factors leave out."""

    narrow: Floats
    widen: Floats
    read: Floats
    write: Floats
    middle: Floats
    seen: Floats
    direct: Floats
    left_over: Floats


@dataclass(frozen=True, eq=False)
class Plan:
    """The words of one length with their coordinates `inner`, `left` what these leave out, and `fixed` the coordinates
    that are not used."""

    folded: Folded
    room: Room
    length: Length
    factors: Matrices
    inner: Floats
    left: Floats
    fixed: Floats

    @cached_property
    def gram(self) -> Floats:
        """Lengths of differences of coordinates, as neurons and logits see them."""
        root = np.concatenate([self.factors.seen, self.factors.widen], axis=1)
        return self.folded.operations.product(root, root.T)

    def lengths(self, apart: Floats) -> Floats:
        return np.asarray(
            np.sqrt(np.maximum((self.folded.operations.product(apart, self.gram) * apart).sum(axis=1), 0))
        )

    def joined(self, labels: Integers, most: float) -> Integers:
        """Leaders: of words of one label that lie side by side along the first coordinate, and are near each other."""
        leaders = np.where(labels >= 0, np.arange(len(labels)), -1)
        order = np.lexsort((self.inner[:, 0], labels))
        order = order[labels[order] >= 0]
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            low, high = np.sort([order[:-step], order[step:]], axis=0)
            same = labels[low] == labels[high]
            low, high = low[same], high[same]
            close = self.lengths(self.inner[low] - self.inner[high]) <= most
            for first, second in zip(low[close].tolist(), high[close].tolist(), strict=True):
                if leaders[first] == first and leaders[second] == second:
                    leaders[second] = first
        chained = leaders[np.maximum(leaders, 0)] != leaders  # it has joined one that then joined another
        return np.where((leaders >= 0) & chained, np.arange(len(leaders)), leaders)

    def won(self, leaders: Integers) -> Flags:
        """Which words are proved, with their leaders' neurons."""
        used = self.inner.shape[1] - len(self.fixed)
        followers = np.flatnonzero(leaders >= 0)
        apart = self.inner[followers].copy()
        apart[:, :used] -= self.inner[leaders[followers], :used]
        apart[:, used:] -= self.fixed
        worst = np.zeros(len(leaders))
        np.maximum.at(worst, leaders[followers], self.left[followers] + self.lengths(apart))
        won = np.zeros(len(leaders), dtype=np.bool_)
        points = np.flatnonzero(leaders == np.arange(len(leaders)))
        for first in range(0, len(points), BATCH):
            some = points[first : first + BATCH]
            logits, size = self._logits(some, used)
            label = self.length.labels[some]
            lead, far = self.room.of(logits, label)
            lost = worst[some, None] * far + size[:, None] * self.factors.left_over[label]
            rounding = 1e-9 * (1.0 + np.abs(logits).max(axis=1, keepdims=True))
            won[some] = (self.folded.operations.of(lead, 8) > lost * (1 + SLACK) + rounding).all(axis=1)
        return np.asarray((leaders >= 0) & won[np.maximum(leaders, 0)])

    def _logits(self, points: Integers, used: int) -> tuple[Floats, Floats]:
        """What the factors give at some words' coordinates, and how far their neurons are from typical ones."""
        folded, tables, product = self.folded, self.length.tables, self.folded.operations.product
        factors, inner = self.factors, self.inner[points, :used]
        read = tables.mean @ folded.W_in + folded.b_in + self.fixed @ factors.seen[used:]
        constant = (tables.mean + folded.b_out) @ folded.W_U + folded.b_U + self.fixed @ factors.direct[used:]
        hidden = np.maximum(product(inner, factors.seen[:used]) + read, 0) - factors.middle
        size = np.sqrt(np.square(self.folded.operations.of(hidden, 4)).sum(axis=1))
        logits = product(product(hidden, factors.read), factors.write) + product(inner, factors.direct[:used])
        return logits + constant + factors.middle @ folded.written, size


def float32(matrix: Floats) -> Floats:
    return matrix.astype(np.float32).astype(np.float64)


def distances(gram: Floats) -> Floats:
    """[i, j]: the distance of columns i and j of a matrix X, from X^T X."""
    own = np.diag(gram)
    return np.sqrt(np.maximum(own[:, None] + own - 2 * gram, 0))
