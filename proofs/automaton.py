"""The domain: a product, all words without repetition, or a deterministic automaton, cut to a range of lengths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .format import Json, Value, distinct_values, integer, integers, listing, record, require

MAX_LENGTH = 1024
MAX_TOKENS = 2**14
MAX_CELLS = 2**22
MAX_WORK = 2**32
Bits = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """Words w over `vocab` with lo <= |w| <= hi on which the automaton, run from `start`, ends in `accept`.

    `delta[state, token]` is the next state; the dead state is the last one and leads only to itself.
    `distinct` (only where the automaton accepts every word): and in which no token occurs twice.
    """

    vocab: tuple[Value, ...]
    lo: int
    hi: int
    start: int
    accept: Bits
    delta: Ints
    distinct: bool = False

    def _ends(self) -> Bits:
        """[hi + 1, states]: an accepted word of exactly m more tokens exists."""
        ends = np.zeros((self.hi + 1, len(self.accept)), dtype=np.bool_)
        ends[0] = self.accept
        for more in range(1, self.hi + 1):
            ends[more] = ends[more - 1][self.delta].any(axis=1)
        return ends

    def alphabets(self) -> dict[int, Bits]:
        """For each length with at least one word: the tokens that occur, at any place, in words of that length."""
        if self.distinct:
            every = np.ones(len(self.vocab), dtype=np.bool_)
            return dict.fromkeys(range(self.lo, min(self.hi, len(self.vocab)) + 1), every)
        ends = self._ends()
        reached = np.zeros((self.hi + 1, len(self.accept)), dtype=np.bool_)
        reached[0, self.start] = True
        for step in range(self.hi):
            reached[step + 1, np.unique(self.delta[reached[step]])] = True
        occurs = np.zeros((self.hi + 1, len(self.vocab)), dtype=np.bool_)
        for more in range(self.hi):
            before = reached[: self.hi - more].astype(np.float32)  # row `step`: the word has length step + 1 + more
            used = before @ ends[more][self.delta].astype(np.float32) > 0  # a sum of non-negative terms: exact sign
            occurs[more + 1 :] |= used
        return {n: occurs[n] for n in range(self.lo, self.hi + 1) if ends[n, self.start]}

    def size(self) -> int:
        """The number of words, exactly."""
        return sum(self.sizes().values())

    def sizes(self) -> dict[int, int]:
        """The number of words of each length from `lo` to `hi`, exactly."""
        if self.distinct:
            return {n: math.perm(len(self.vocab), n) for n in range(self.lo, self.hi + 1)}
        counts = [int(flag) for flag in self.accept]
        rows = [np.unique(row, return_counts=True) for row in self.delta]
        steps = [[(int(s), int(c)) for s, c in zip(*row, strict=True)] for row in rows]
        found = {}
        for n in range(1, self.hi + 1):
            counts = [sum(c * counts[s] for s, c in row) for row in steps]
            if n >= self.lo:
                found[n] = counts[self.start]
        return found

    def has(self, word: Ints) -> bool:
        """Whether a word of token indices [n] is in the domain."""
        state = self.start
        for token in word:
            state = int(self.delta[state, token])
        repeats = self.distinct and len(set(word.tolist())) < len(word)
        return self.lo <= len(word) <= self.hi and bool(self.accept[state]) and not repeats

    def words(self, n: int, most: int) -> Iterator[Ints]:
        """All words of length n as arrays of token indices [batch, n], at most `most` a batch, each word once."""
        ends = self._ends()

        def extend(prefix: Ints, state: Ints) -> Iterator[Ints]:
            if prefix.shape[1] == n:
                yield prefix
                return
            new = self.delta[state]
            allowed = ends[n - prefix.shape[1] - 1][new]
            if self.distinct:
                allowed[np.arange(len(prefix))[:, None], prefix] = False
            rows, tokens = np.nonzero(allowed)
            grown = np.concatenate([prefix[rows], tokens[:, None]], axis=1)
            states = new[rows, tokens]
            for first in range(0, len(grown), most):
                yield from extend(grown[first : first + most], states[first : first + most])

        if ends[n, self.start]:
            yield from extend(np.zeros((1, 0), dtype=np.int64), np.array([self.start], dtype=np.int64))


def read_domain(data: Json) -> Domain:
    """A `product`, `distinct` or `dfa` domain, as specified in section 3."""
    kind = data.get("kind") if isinstance(data, dict) else None
    keys = ("kind", "vocab", "lengths")
    if kind == "dfa":
        item = record(data, "domain", (*keys, "start", "accept", "delta"))
    else:
        require(kind in ("product", "distinct"), f"domain kind must be 'product', 'distinct' or 'dfa', got {kind!r}")
        item = record(data, "domain", keys)
    vocab = distinct_values(item["vocab"], "domain vocab", MAX_TOKENS)
    lengths = listing(item["lengths"], "domain lengths", 2, 2)
    lo = integer(lengths[0], "shortest length", 1, MAX_LENGTH)
    hi = integer(lengths[1], "longest length", lo, MAX_LENGTH)
    if kind != "dfa":
        free = np.zeros((1, len(vocab)), dtype=np.int64)
        return Domain(vocab, lo, hi, 0, np.array([True]), free, distinct=kind == "distinct")
    rows = listing(item["delta"], "delta", MAX_CELLS, 1)
    count = len(rows)
    require((count + 1) * len(vocab) <= MAX_CELLS, f"the automaton has more than {MAX_CELLS} transitions")
    work = hi * hi * (count + 1) * len(vocab)
    require(work <= MAX_WORK, "the automaton is too large for these lengths")
    delta = np.full((count + 1, len(vocab)), count, dtype=np.int64)
    for state, row in enumerate(rows):
        targets = integers(row, f"delta of state {state}", -1, count - 1, len(vocab))
        require(len(targets) == len(vocab), f"delta of state {state} must have one entry per token")
        delta[state] = [count if target < 0 else target for target in targets]
    accepting = integers(item["accept"], "accept", 0, count - 1, count)
    require(len(set(accepting)) == len(accepting), "accept repeats a state")
    accept = np.zeros(count + 1, dtype=np.bool_)
    accept[accepting] = True
    return Domain(vocab, lo, hi, integer(item["start"], "start", 0, count - 1), accept, delta)
