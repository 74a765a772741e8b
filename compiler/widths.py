"""How many positions a selector selects, and when a width ranks or permutes the positions.

Every rule here is stated in proofs/SPECIFICATION.md, section 2; tests compare each with enumeration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .core import Bits, Indices, Width
from .ranges import PAIR_LIMIT, Cut, Indexes, Ranges, Words

Counts = npt.NDArray[np.int32]
_CHUNK = 1 << 20


class Bounds(NamedTuple):
    """`lo <= width <= hi` at length n for joint query value q, where `possible`; arrays `[n = 0..max_len, q axes...]`.

    Where the query value is not possible, lo = 0 and hi = n. For a selector too large to tabulate, lo = 0, hi = n and
    the query axes have size 1.
    """

    lo: Counts
    hi: Counts
    possible: Bits


@dataclass(frozen=True, eq=False)
class Rank:
    """The rank fact of a width: on joint values of `cut`, k is selected by q iff phi[k] < phi[q] (phi is -1 where a
    member is never possible). So on one input, positions with equal widths have equal phi."""

    cut: Cut
    phi: Indexes


def distinct_nodes(ranges: Ranges, keys: Cut) -> list[int]:
    """The nodes among `keys` that take each of 0..n-1 at exactly one position."""
    return [
        node
        for node in keys
        if isinstance(ranges.nodes[node], Indices) or (not ranges.causal and permutation(ranges, node))
    ]


def width_bounds(ranges: Ranges, selector: int) -> Bounds:
    """Bounds on the number of selected visible positions, for each length and joint query value."""
    found = ranges.memo.get(("bounds", selector))
    if found is None:
        found = ranges.memo["bounds", selector] = _width_bounds(ranges, selector)
    assert isinstance(found, Bounds)
    return found


def _width_bounds(ranges: Ranges, selector: int) -> Bounds:
    keys, queries = ranges.selector_cuts(selector)
    shape = ranges.sizes(queries)
    n_queries = math.prod(shape)
    if math.prod(ranges.sizes(keys)) * n_queries > PAIR_LIMIT or n_queries * (ranges.max_len + 1) > 2 * PAIR_LIMIT:
        rows = np.arange(ranges.max_len + 1, dtype=np.int32).reshape(-1, *(1 for _ in shape))
        return Bounds(np.zeros_like(rows), rows, np.isin(rows, ranges.lengths))
    joint = np.broadcast_to(ranges.joint(queries), (ranges.n_words, *shape)).reshape(ranges.n_words, -1)
    possible = ranges.unpack(joint)
    rows = np.arange(ranges.max_len + 1, dtype=np.int32)[:, None]
    lo = np.zeros((ranges.max_len + 1, n_queries), np.int32)
    hi = np.broadcast_to(rows, lo.shape).copy()
    position = _query_position(ranges, queries)
    visible_lo: Counts
    visible_hi: Counts
    for n in ranges.lengths:
        if not ranges.causal:
            visible_lo = visible_hi = np.full(n_queries, n, np.int32)
        elif position is not None:
            visible_lo = visible_hi = position + np.int32(1)
        else:
            visible_lo, visible_hi = np.ones(n_queries, np.int32), np.full(n_queries, n, np.int32)
        some = ranges.at(ranges.selected_lengths(selector, ()), n)
        every = ~ranges.at(ranges.selected_lengths(selector, (), False), n)
        hi[n] = np.minimum(hi[n], np.where(some, visible_hi, 0))
        lo[n] = np.maximum(lo[n], np.where(every, visible_lo, 0))
        self_some, self_every = (ranges.at(words, n) for words in _self_lengths(ranges, selector))
        lo[n] = np.maximum(lo[n], np.where(self_every & self_some, 1, 0))
        hi[n] = np.minimum(hi[n], np.where(self_some, n, visible_hi - 1))
    for node in distinct_nodes(ranges, keys):
        _count_distinct(ranges, selector, node, position, lo, hi)
    lo[~possible] = 0
    hi = np.where(possible, hi, rows)
    return Bounds(lo.reshape(-1, *shape), hi.reshape(-1, *shape), possible.reshape(-1, *shape))


def _query_position(ranges: Ranges, queries: Cut) -> Counts | None:
    """The position, for each flattened joint query value, where `indices` is among the queries."""
    shape = ranges.sizes(queries)
    for axis, node in enumerate(queries):
        if isinstance(ranges.nodes[node], Indices):
            values = _integers(ranges, node)
            return np.broadcast_to(values.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape).ravel()
    return None


def _integers(ranges: Ranges, node: int) -> Counts:
    """The values of a node that counts; -1 in place of a listed value that is no count."""
    return np.array([int(v) if isinstance(v, int) else -1 for v in ranges.values(node)], np.int32)


def _count_distinct(ranges: Ranges, selector: int, node: int, position: Counts | None, lo: Counts, hi: Counts) -> None:
    """Tighten by a node that is distinct: one position for each of its values."""
    some = ranges.selected_lengths(selector, (node,))
    fail = ranges.selected_lengths(selector, (node,), False)
    values = _integers(ranges, node)
    exists = ranges.pack((values >= 0) & (values < np.arange(ranges.max_len + 1)[:, None]))
    before = None if position is None or not ranges.causal else values[:, None] <= position
    for word in range(ranges.n_words):  # arrays of one word stay in the cache
        lengths = [n for n in ranges.lengths if n // 64 == word]
        for_hi = some[word] & exists[word][:, None]
        if before is not None:
            for_hi = np.where(before, for_hi, np.uint64(0))
        for_lo = for_hi & ~fail[word]
        if ranges.causal and position is None:
            for_lo = np.where((values == 0)[:, None], for_lo, np.uint64(0))
        bits = [n % 64 for n in lengths]
        hi[lengths] = np.minimum(hi[lengths], _count(for_hi)[bits])
        lo[lengths] = np.maximum(lo[lengths], _count(for_lo)[bits])


def _count(words: Words) -> Counts:
    """`[bit, q]`: how many values v have the bit in `words[v, q]`."""
    n_values, n_queries = words.shape
    if n_queries > 1 and (words == words[:, :1]).all():
        return np.broadcast_to(_count(words[:, :1]), (64, n_queries))
    out = np.zeros((64, n_queries), np.int32)
    of_value, of_query = np.nonzero(words)
    if 16 * len(of_value) <= words.size:  # few: bit by bit
        listed = words[of_value, of_query]
        for bit in range(64):
            held = of_query[(listed >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)]
            out[bit] = np.bincount(held, minlength=n_queries)
        return out
    n_used = int(of_value[-1]) + 1
    width = max(1, _CHUNK // (255 * 64))
    for first in range(0, n_queries, width):
        for start in range(0, n_used, 255):  # so many ones fit into a byte
            block = np.ascontiguousarray(words[start : min(start + 255, n_used), first : first + width], "<u8")
            bits = np.unpackbits(block.view(np.uint8), axis=1, bitorder="little")
            out[:, first : first + width] += np.add.reduce(bits, axis=0, dtype=np.uint8).reshape(-1, 64).T
    return out


def _self_lengths(ranges: Ranges, selector: int) -> tuple[Words, Words]:
    """For each joint query value: the lengths at which some key value that agrees with it is selected, and those at
    which none is unselected."""
    found = ranges.memo.get(("self", selector))
    if found is None:
        keys, queries = ranges.selector_cuts(selector)
        rest = tuple(node for node in keys if node not in queries)
        order = (*queries, *rest)
        query_axes = {node: axis for axis, node in enumerate(queries)}
        key_axes = {node: axis for axis, node in enumerate(order) if node in keys}
        table = ranges.relation(selector, key_axes, query_axes, len(order))
        table = np.broadcast_to(table, ranges.sizes(order)).reshape(math.prod(ranges.sizes(queries)), -1)
        lengths = np.broadcast_to(ranges.joint(rest), (ranges.n_words, *ranges.sizes(rest))).reshape(
            ranges.n_words, 1, -1
        )
        zero = np.uint64(0)
        some = np.bitwise_or.reduce(np.where(table, lengths, zero), axis=2)
        fail = np.bitwise_or.reduce(np.where(table, zero, lengths), axis=2)
        found = ranges.memo["self", selector] = some, ~fail
    assert isinstance(found, tuple)
    return found[0], found[1]


def rank(ranges: Ranges, width: int) -> Rank | None:
    """The rank fact of a width (bidirectional programs only), or None."""
    if ("rank", width) not in ranges.memo:
        ranges.memo["rank", width] = _rank(ranges, width)
    found = ranges.memo["rank", width]
    assert found is None or isinstance(found, Rank)
    return found


def _rank(ranges: Ranges, width: int) -> Rank | None:
    node = ranges.nodes[width]
    if ranges.causal or not isinstance(node, Width) or width in ranges.failed:
        return None
    keys, queries = ranges.selector_cuts(node.selector)
    if keys != queries or ranges.product(keys) ** 2 > PAIR_LIMIT or math.prod(ranges.sizes(keys)) ** 2 > 4 * PAIR_LIMIT:
        return None
    shape = ranges.sizes(keys)
    members = np.ones(shape, np.bool_)
    for axis, basis in enumerate(keys):
        members &= ranges.ever(basis).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    flat = np.flatnonzero(members.ravel())
    table = ranges.selector_table(node.selector, keys, keys).reshape(members.size, members.size)
    if flat.size < members.size:
        table = table[np.ix_(flat, flat)]
    phi = table.sum(axis=0, dtype=np.int32)
    if not np.array_equal(table, phi[:, None] < phi[None, :]):
        return None
    full = np.full(members.size, -1, np.int32)
    full[flat] = phi
    return Rank(keys, full.reshape(shape))


def permutation(ranges: Ranges, width: int) -> bool:
    """Whether a width provably is a bijection from the positions onto 0..n-1."""
    if ("permutation", width) not in ranges.memo:
        ranges.memo["permutation", width] = _permutation(ranges, width)
    return bool(ranges.memo["permutation", width])


def _permutation(ranges: Ranges, width: int) -> bool:
    fact = rank(ranges, width)
    if fact is None:
        return False
    axes = [axis for axis, node in enumerate(fact.cut) if isinstance(ranges.nodes[node], Indices)]
    if not axes:
        return False
    positions = np.arange(fact.phi.shape[axes[0]], dtype=np.int32)
    shape = [-1 if axis == axes[0] else 1 for axis in range(fact.phi.ndim)]
    return is_function_of(fact.phi, np.broadcast_to(positions.reshape(shape), fact.phi.shape))


def is_function_of(phi: Indexes, image: Indexes) -> bool:
    """Whether tuples with equal phi (where phi >= 0) have equal `image`."""
    used = phi >= 0
    keys, images = phi[used], image[used]
    if not keys.size:
        return True
    first = np.full(int(keys.max()) + 1, -1, images.dtype)
    first[keys] = images
    return bool((first[keys] == images).all())
