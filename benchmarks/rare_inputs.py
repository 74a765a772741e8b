"""Words that uniform sampling never meets, each with a bound on how rare its kind is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """Words of one length, [batch, n], with the family that each belongs to, and its bound in that family."""

    ids: Ids
    family: str
    share: float


def frequent_share(vocab: int, n: int, count: int) -> float:
    """A bound on the share of words of length n in which some token occurs at least `count` times."""
    tail = sum(comb(n, k) * (vocab - 1) ** (n - k) for k in range(count, n + 1))
    return float(min(1.0, vocab * tail / vocab**n))


def run_share(vocab: int, n: int, run: int) -> float:
    """A bound on the share of words with a run of at least `run` equal tokens."""
    return float(min(1.0, n / vocab ** (run - 1)))


def few_share(vocab: int, n: int, distinct: int) -> float:
    """A bound on the share of words with at most `distinct` distinct tokens."""
    return float(min(1.0, comb(vocab, distinct) * distinct**n / vocab**n))


def short_share(vocab: int, longest: int, n: int) -> float:
    """The share of words of length at most n among those of length 1..longest."""
    return float(sum(vocab**k for k in range(1, n + 1)) / sum(vocab**k for k in range(1, longest + 1)))


def rare_words(vocab: int, longest: int, rng: np.random.Generator, each: int) -> Iterator[Words]:
    """Words over token ids 0..vocab-1, family by family; `each` words of every kind."""
    for n in (*range(1, min(7, longest)), *range(8, longest, 6)):
        yield Words(rng.integers(vocab, size=(each, n)), "short", short_share(vocab, longest, n))
    n = longest
    for count in range(2, n + 1):
        words = rng.integers(vocab, size=(each, n))
        token = rng.integers(vocab, size=(each, 1))
        words = np.where(words == token, (words + 1) % vocab, words)
        places = rng.random((each, n)).argsort(axis=1) < count
        yield Words(np.where(places, token, words), "frequent token", frequent_share(vocab, n, count))
    for run in range(3, n + 1, 2):
        words = rng.integers(vocab, size=(each, n))
        start = rng.integers(n - run + 1, size=(each, 1))
        inside = (np.arange(n) >= start) & (np.arange(n) < start + run)
        yield Words(np.where(inside, rng.integers(vocab, size=(each, 1)), words), "long run", run_share(vocab, n, run))
    for distinct in range(1, min(vocab, 8)):
        chosen = rng.random((each, vocab)).argsort(axis=1)[:, :distinct]
        picks = rng.integers(distinct, size=(each, n))
        yield Words(np.take_along_axis(chosen, picks, axis=1), "few tokens", few_share(vocab, n, distinct))
    ascending = np.sort(rng.integers(vocab, size=(each, n)), axis=1)
    share = comb(n + vocab - 1, n) / vocab**n
    yield Words(ascending, "ascending", share)
    yield Words(np.ascontiguousarray(ascending[:, ::-1]), "descending", share)
