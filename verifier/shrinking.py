"""Making a failing input small, deterministically: as short as found, then as early in the canonical order as found."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .refute import Candidate, Ids, Search, split_ranks

MAX_INPUTS = 200_000
MAX_WORK = 2 * 10**11


def shrink(search: Search, found: Candidate) -> Candidate:
    """Deletes tokens while the rest still fails, then lowers tokens, until neither helps; then, where there are few
    shorter or earlier inputs, looks at all of them in order. Every step keeps to the domain and to rows that fail.

    Deterministic if the search's deadline is not reached; when it is, the best so far is returned.
    """
    while not search.out_of_time:
        shorter = _delete(search, found)
        smaller = _lower(search, shorter or found)
        if shorter is None and smaller is None:
            break
        found = smaller or shorter or found
    return _first_of_all(search, found) or found


def _delete(search: Search, found: Candidate) -> Candidate | None:
    """A failing candidate with tokens left out, leftmost largest block first; None if there is none."""
    best: Candidate | None = None
    block = found[0].shape[1] // 2
    while block >= 1:
        n = found[0].shape[1]
        kept = [[j for j in range(n) if not i <= j < i + block] for i in range(n - block + 1)]
        if n - block in search.lengths and kept:
            shorter = search.inside(tuple(np.stack([word[0, keep] for keep in kept]) for word in found))
            hit = search.first_failure(shorter) if len(shorter[0]) else None
            if hit is not None:
                found = best = hit
                block = min(block, found[0].shape[1] - 1)
                continue
        block //= 2
    return best


def _lower(search: Search, found: Candidate) -> Candidate | None:
    """A failing candidate that stands earlier: with a token renamed wherever it occurs or two exchanged, with two
    positions exchanged, with one token lowered; None if there is none."""
    best: Candidate | None = None
    for move in (_rename, _reorder):
        if hit := move(search, found):
            found = best = hit
    for which in range(len(found)):
        for position in range(found[0].shape[1]):
            token = int(found[which][0, position])
            rows = tuple(np.repeat(word, token, axis=0) for word in found)
            rows[which][:, position] = np.arange(token)
            rows = search.inside(rows)
            hit = search.first_failure(rows) if len(rows[0]) else None
            if hit is not None:
                found = best = hit
    return best


def _rename(search: Search, found: Candidate) -> Candidate | None:
    """The earliest failing candidate in which one token is replaced everywhere, or exchanged with another."""
    whole = np.concatenate([word[0] for word in found])
    seen = [int(token) for token in np.unique(whole)]
    renamed: set[tuple[int, ...]] = set()
    for a in seen:
        for b in range(a):
            renamed.add(tuple(np.where(whole == a, b, whole).tolist()))
            renamed.add(tuple(np.where(whole == a, b, np.where(whole == b, a, whole)).tolist()))
    return _earliest(search, found, renamed)


def _reorder(search: Search, found: Candidate) -> Candidate | None:
    """The earliest failing candidate with the tokens sorted, or with two positions exchanged."""
    n = found[0].shape[1]
    orders = [np.argsort(found[0][0], kind="stable")]
    for i in range(n):
        for j in range(i + 1, n):
            order = np.arange(n)
            order[i], order[j] = j, i
            orders.append(order)
    return _earliest(search, found, {tuple(np.concatenate([word[0, o] for word in found]).tolist()) for o in orders})


def _earliest(search: Search, found: Candidate, words: set[tuple[int, ...]]) -> Candidate | None:
    """The first failing candidate among those (written one input after the other) that stand before this one."""
    whole = tuple(np.concatenate([word[0] for word in found]).tolist())
    earlier = sorted(word for word in words if word < whole)
    if not earlier:
        return None
    rows = search.inside(tuple(np.split(np.array(earlier, dtype=np.int64), len(found), axis=1)))
    return search.first_failure(rows) if len(rows[0]) else None


def _first_of_all(search: Search, found: Candidate) -> Candidate | None:
    """The first failing candidate before this one, if all those before it are few; None if there is none."""
    arity, length = len(found), found[0].shape[1]
    model = search.claim.subject.model
    parameters = max(1, sum(p.numel() for p in getattr(model, "base", model).parameters()))
    budget = MAX_INPUTS
    for n in search.lengths:
        size = search.domain.size(n) ** arity
        budget = min(budget, MAX_WORK // (parameters * (n + 1)))
        if n > length or size > budget:
            return None
        budget -= size
        for ranks in _batches(size):
            words = tuple(search.domain.unrank(n, part) for part in split_ranks(ranks, search.domain.size(n), arity))
            if hit := search.first_failure(words):
                return hit
            if search.out_of_time:
                return None
    return None


def _batches(size: int, batch: int = 8192) -> Iterator[Ids]:
    return (np.arange(first, min(first + batch, size)) for first in range(0, size, batch))
