"""Tuples of values of some nodes that are possible together, and how many of them a selector selects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .core import Bits, Ints
from .format import Rejected, require


class TooLarge(Rejected):
    """A product of possible values exceeds the limits."""


@dataclass(frozen=True, eq=False)
class Joint:
    """The tuples of values of some nodes, each value possible at some length; `mask[l, t]`: all are, at length l."""

    nodes: tuple[int, ...]
    columns: dict[int, Ints]
    mask: Bits

    @property
    def size(self) -> int:
        return int(self.mask.shape[1])

    def kept(self, rows: Ints | Bits) -> Joint:
        """Only some of the tuples."""
        return Joint(self.nodes, {node: column[rows] for node, column in self.columns.items()}, self.mask[:, rows])


def by_class(mask: Bits, code: Ints, classes: int) -> Ints:
    """[length, class]: how many of a class are possible."""
    return np.array([np.bincount(code[row], minlength=classes) for row in mask], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Selected:
    """Which key tuples the query tuples select: holds[class of the key, class of the query]."""

    keys: Joint
    key_class: Ints
    query_class: Ints
    holds: Bits

    def count(self, rows: Bits) -> Ints:
        """[length, query]: of these key tuples, how many are possible and selected. Exact: below 2^24."""
        require(self.keys.size < 2**24, "too many key tuples to count")
        classes, code = np.unique(self.key_class[rows], return_inverse=True)
        possible = by_class(self.keys.mask[:, rows], code, len(classes))
        patterns, which = np.unique(possible, axis=0, return_inverse=True)
        found = patterns.astype(np.float32) @ self.holds[classes].astype(np.float32)
        return np.asarray(found.astype(np.int64)[which.reshape(-1)][:, self.query_class])

    def own(self, queries: Joint) -> tuple[Ints, Ints]:
        """[length, query]: of the possible key tuples that agree with the query tuple on the nodes in both, how many
        are selected; and how many there are."""
        both = [node for node in self.keys.nodes if node in queries.columns]
        nothing = [np.zeros(self.keys.size, dtype=np.int64)], [np.zeros(queries.size, dtype=np.int64)]
        sides = [
            np.stack([side.columns[node] for node in both] or none)
            for side, none in zip((self.keys, queries), nothing, strict=True)
        ]
        _, code = np.unique(np.concatenate(sides, axis=1), axis=1, return_inverse=True)
        of_key, of_query = np.split(code.reshape(-1), [self.keys.size])
        order = np.argsort(of_key, kind="stable")
        start, end = (np.searchsorted(of_key[order], of_query, side) for side in ("left", "right"))
        found = np.zeros((len(self.keys.mask), queries.size), dtype=np.int64)
        total = np.zeros_like(found)
        for step in range(int((end - start).max(initial=0))):
            here = np.flatnonzero(start + step < end)
            key = order[start[here] + step]
            mask = self.keys.mask[:, key]
            total[:, here] += mask
            found[:, here] += mask & self.holds[self.key_class[key], self.query_class[here]]
        return found, total
