"""Which values are possible: the finite state that every fact about a core program is computed from.

Each value of each value node carries the *set of lengths* at which it is possible, as a bit set: bit n of word n // 64
is length n. A tuple of values is possible at the intersection (bitwise and) of its members' sets, and "some key is
selected" is a union (bitwise or), so one pass over a selector's table decides all lengths at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .core import Aggregate, And, Bits, Indices, Linear, Map, Node, Not, Or, Select, Tokens, Value, Width, normalise

Words: TypeAlias = npt.NDArray[np.uint64]
Indexes: TypeAlias = npt.NDArray[np.int32]
Cut: TypeAlias = tuple[int, ...]

CUT_LIMIT = 1 << 16
"""A map's image is taken over its cut up to this product of the lengths of the values lists."""
PAIR_LIMIT = 1 << 24
"""The largest relation between joint key values and joint query values that is tabulated."""
VALUE_LIMIT = 1 << 17
"""The largest number of values of one node."""
_CHUNK = 1 << 21
_REMEMBERED = 1 << 10
"""`Ranges.along` keeps arrays up to this size."""


class Refused(Exception):
    """A node whose range is not determined; the message is the reason. Internal: it becomes a `Problem`."""


@dataclass(frozen=True)
class Problem:
    """Why a node has no range: `node` is its position in the program."""

    node: int
    reason: str


@dataclass(frozen=True, eq=False)
class Range:
    """The possible values of a node, canonical, and `words[word, value]`, the lengths at which each is possible."""

    values: tuple[Value, ...]
    words: Words


@dataclass(frozen=True, eq=False)
class Ranges:
    """The nodes so far and their ranges (`words[node]` is None for selectors and for nodes with a problem).

    Grows by `append` only; what is said about a node never changes, so facts are remembered in `memo`.
    """

    max_len: int
    causal: bool
    lengths: tuple[int, ...]
    nodes: list[Node] = field(default_factory=list)
    words: list[Words | None] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    memo: dict[Hashable, object] = field(default_factory=dict)

    # -- sets of lengths ------------------------------------------------------------------------------------------

    @property
    def n_words(self) -> int:
        """How many words a set of lengths takes."""
        return self.max_len // 64 + 1

    def pack(self, possible: Bits) -> Words:
        """`possible[length 0..max_len, ...]` as words `[word, ...]`."""
        out = np.zeros((self.n_words, *possible.shape[1:]), np.uint64)
        for n in self.lengths:
            out[n // 64] |= possible[n].astype(np.uint64) << np.uint64(n % 64)
        return out

    def unpack(self, words: Words) -> Bits:
        """`words[word, ...]` as booleans `[length 0..max_len, ...]`."""
        out = np.zeros((self.max_len + 1, *words.shape[1:]), np.bool_)
        for n in self.lengths:
            out[n] = self.at(words, n)
        return out

    def at(self, words: Words, n: int) -> Bits:
        """Membership of length n: drops the word axis."""
        out: Bits = (words[n // 64] >> np.uint64(n % 64) & np.uint64(1)).astype(np.bool_)
        return out

    def all_lengths(self) -> Words:
        """The set of all lengths, as words."""
        return self.pack(np.ones(self.max_len + 1, np.bool_))

    # -- growing --------------------------------------------------------------------------------------------------

    def append(self, node: Node, words: Words | None) -> int:
        """Append a node with its range, and return its position."""
        self.nodes.append(node)
        self.words.append(words)
        return len(self.nodes) - 1

    def refuse(self, node: Node, reason: str | None) -> int:
        """Append a node without a range; no reason: it only depends on a node that has none."""
        index = self.append(node, None)
        self.failed.add(index)
        if reason is not None:
            self.problems.append(Problem(index, reason))
        return index

    # -- cuts and functions of them -------------------------------------------------------------------------------

    def values(self, index: int) -> tuple[Value, ...]:
        """The values list of a value node."""
        node = self.nodes[index]
        assert not isinstance(node, (Select, And, Or, Not)), f"node {index} is a selector"
        return node.values

    def cut(self, index: int) -> Cut:
        """The basis nodes that a value node is a function of (itself, unless it is a map), ascending."""
        todo = [index]
        while todo:
            current = todo[-1]
            node = self.nodes[current]
            if ("cut", current) in self.memo:
                todo.pop()
            elif isinstance(node, Map):
                missing = [arg for arg in node.args if ("cut", arg) not in self.memo]
                todo += missing
                if not missing:
                    parts = (self._known_cut(arg) for arg in node.args)
                    self.memo["cut", current] = tuple(sorted({basis for part in parts for basis in part}))
            else:
                assert isinstance(node, (Tokens, Indices, Linear, Aggregate, Width)), f"node {current} is a selector"
                self.memo["cut", current] = (current,)
        return self._known_cut(index)

    def _known_cut(self, index: int) -> Cut:
        found = self.memo["cut", index]
        assert isinstance(found, tuple)
        return found

    def selector_cuts(self, index: int) -> tuple[Cut, Cut]:
        """K and Q: the union of the cuts of the keys, and of the queries, of the selects in a selector.

        If their product exceeds `PAIR_LIMIT` and is smaller for the keys and queries themselves (constants left out),
        these are taken: any nodes will do that keys and queries are functions of.
        """
        found = self.memo.get(("cuts", index))
        if found is None:
            selects = self.selects(index)
            keys = {basis for select in selects for basis in self.cut(select.keys)}
            queries = {basis for select in selects for basis in self.cut(select.queries)}
            size = math.prod(self.sizes(keys)) * math.prod(self.sizes(queries))
            if size > PAIR_LIMIT:
                coarse_keys = {select.keys for select in selects if self.cut(select.keys)}
                coarse_queries = {select.queries for select in selects if self.cut(select.queries)}
                if math.prod(self.sizes(coarse_keys)) * math.prod(self.sizes(coarse_queries)) < size:
                    keys, queries = coarse_keys, coarse_queries
            found = self.memo["cuts", index] = tuple(sorted(keys)), tuple(sorted(queries))
        assert isinstance(found, tuple)
        return found[0], found[1]

    def value_basis(self, selector: int, value: int) -> Cut:
        """The nodes an aggregated value is taken as a function of: its cut, or itself if the pairs with it exceed
        `PAIR_LIMIT`."""
        keys, queries = self.selector_cuts(selector)
        joint = {*keys, *self.cut(value)}
        return self.cut(value) if self.product(joint) * self.product(queries) <= PAIR_LIMIT else (value,)

    def selects(self, index: int) -> list[Select]:
        """The selects that a selector is a boolean combination of."""
        parts = (self.nodes[part] for part in self.selector_parts(index))
        return [node for node in parts if isinstance(node, Select)]

    def selector_parts(self, index: int) -> list[int]:
        """The selectors that a selector is made of, itself last, each after its operands."""
        seen, todo = {index}, [index]
        while todo:
            node = self.nodes[todo.pop()]
            assert isinstance(node, (Select, And, Or, Not)), f"{node!r} is not a selector"
            new = [arg for arg in _operands(node) if arg not in seen]
            seen.update(new)
            todo += new
        return sorted(seen)

    def sizes(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """The lengths of the values lists."""
        return tuple(len(self.values(node)) for node in nodes)

    def ever(self, index: int) -> Bits:
        """Which values are possible at some length."""
        words = self.words[index]
        assert words is not None, f"node {index} has no range"
        out: Bits = (words != 0).any(axis=0)
        return out

    def product(self, nodes: Iterable[int]) -> int:
        """How many tuples of values are possible, each at some length."""
        return math.prod(int(self.ever(node).sum()) for node in nodes)

    def joint(self, nodes: Sequence[int]) -> Words:
        """`[word, value of nodes[0], value of nodes[1], ...]`: the lengths at which all are possible."""
        out = self.all_lengths().reshape(self.n_words, *(1 for _ in nodes))
        for axis, node in enumerate(nodes):
            words = self.words[node]
            assert words is not None, f"node {node} has no range"
            out = out & words.reshape(self.n_words, *(-1 if a == axis else 1 for a in range(len(nodes))))
        return out

    def along(self, index: int, axes: Mapping[int, int], ndim: int) -> Indexes:
        """The value index of a node for each joint value on `axes` (node -> axis): broadcastable, -1 undefined.

        Not recursive, and small arrays are remembered: long chains of maps cost one step a map.
        """
        where = (tuple(axes.items()), ndim)
        known: dict[int, Indexes] = {}

        def recall(node: int) -> Indexes | None:
            found = known.get(node)
            if found is None and (kept := self.memo.get(("along", node, where))) is not None:
                assert isinstance(kept, np.ndarray)
                found = known[node] = kept
            return found

        if recall(index) is None:
            for node in self._between(index, axes, recall):
                known[node] = found = np.asarray(self._along(node, axes, ndim, known))
                if found.size <= _REMEMBERED:
                    self.memo["along", node, where] = found
        return known[index]

    def _between(self, index: int, axes: Mapping[int, int], recall: Callable[[int], Indexes | None]) -> list[int]:
        """The nodes that `along` has to compute, arguments first."""
        wanted, todo = {index}, [index]
        while todo:
            current = todo.pop()
            node = self.nodes[current]
            if current in axes:
                continue
            assert isinstance(node, Map), f"node {current} is not a function of nodes {sorted(axes)}"
            new = [arg for arg in node.args if arg not in wanted and recall(arg) is None]
            wanted.update(new)
            todo += new
        return sorted(wanted)

    def _along(self, index: int, axes: Mapping[int, int], ndim: int, known: Mapping[int, Indexes]) -> Indexes:
        if index in axes:
            shape = [1] * ndim
            shape[axes[index]] = len(self.values(index))
            return np.arange(len(self.values(index)), dtype=np.int32).reshape(shape)
        node = self.nodes[index]
        assert isinstance(node, Map)
        args = [known[arg] for arg in node.args]
        if not args:
            return np.asarray(node.table, np.int32).reshape([1] * ndim)
        out = node.table[tuple(np.maximum(arg, 0) for arg in args)].astype(np.int32)
        for arg in args:
            if arg.size and arg.min() < 0:
                out = np.where(arg < 0, np.int32(-1), out)
        return out

    def function(self, index: int, over: Sequence[int]) -> Indexes:
        """The value index of a node for each joint value of `over` (one axis each), which must cover its cut."""
        out = self.along(index, {node: axis for axis, node in enumerate(over)}, len(over))
        return np.broadcast_to(out, self.sizes(over))

    def relation(self, index: int, keys: Mapping[int, int], queries: Mapping[int, int], ndim: int) -> Bits:
        """A selector as a function of key values and query values on the given axes: broadcastable."""
        last_use: dict[int, int] = {}
        needed = self.selector_parts(index)
        for user in needed:
            for arg in _operands(self.nodes[user]):
                last_use[arg] = user
        done: dict[int, Bits] = {}
        for current in needed:
            match self.nodes[current]:
                case Select() as node:
                    key, query = self.along(node.keys, keys, ndim), self.along(node.queries, queries, ndim)
                    out: Bits = node.table[np.maximum(key, 0), np.maximum(query, 0)]
                    if min(key.min(initial=0), query.min(initial=0)) < 0:
                        out = out & (key >= 0) & (query >= 0)
                    done[current] = out
                case And() as node:
                    done[current] = done[node.left] & done[node.right]
                case Or() as node:
                    done[current] = done[node.left] | done[node.right]
                case Not() as node:
                    done[current] = ~done[node.arg]
            for arg in _operands(self.nodes[current]):
                if last_use[arg] == current:
                    done.pop(arg, None)
        return done[index]

    def selector_table(self, index: int, key_nodes: Sequence[int], query_nodes: Sequence[int]) -> Bits:
        """`[key axes..., query axes...]`: whether a selector holds. Tuples with an undefined map are not selected."""
        ndim = len(key_nodes) + len(query_nodes)
        keys = {node: axis for axis, node in enumerate(key_nodes)}
        queries = {node: len(key_nodes) + axis for axis, node in enumerate(query_nodes)}
        return np.broadcast_to(self.relation(index, keys, queries, ndim), self.sizes((*key_nodes, *query_nodes)))

    def selected_lengths(self, index: int, keep: Cut, holds: bool = True) -> Words:
        """`[word, axes of keep..., q]`: the lengths at which some joint key value with these values on `keep` has
        selector = `holds` for the (flattened) joint query value q. The query's own possibility is left out."""
        memo = ("selected", index, keep, holds)
        found = self.memo.get(memo)
        if found is None:
            keys, queries = self.selector_cuts(index)
            order = (*keep, *(node for node in keys if node not in keep))
            kept, rest = math.prod(self.sizes(keep)), math.prod(self.sizes(order[len(keep) :]))
            table = self.selector_table(index, order, queries).reshape(kept, rest, -1)
            joint = np.broadcast_to(self.joint(order), (self.n_words, *self.sizes(order)))
            lengths = joint.reshape(self.n_words, kept, rest, 1)
            n_queries = table.shape[2]
            out = np.zeros((self.n_words, kept, n_queries), np.uint64)
            step = max(1, _CHUNK // max(1, kept * rest))
            zero = np.uint64(0)
            for start in range(0, n_queries, step):
                part = table[:, :, start : start + step]
                for word in range(self.n_words):
                    if rest == 1:
                        shown = part[:, 0] if holds else ~part[:, 0]
                        np.multiply(shown, lengths[word, :, 0], out=out[word, :, start : start + step])
                        continue
                    picked = np.where(part, lengths[word], zero) if holds else np.where(part, zero, lengths[word])
                    np.bitwise_or.reduce(picked, axis=1, out=out[word, :, start : start + step])
            found = self.memo[memo] = out.reshape(self.n_words, *self.sizes(keep), n_queries)
        assert isinstance(found, np.ndarray)
        return found


def _operands(node: Node) -> tuple[int, ...]:
    """The selectors that a selector combines."""
    match node:
        case And() | Or():
            return (node.left, node.right)
        case Not():
            return (node.arg,)
    return ()


def group_or(words: Words, groups: npt.NDArray[np.integer], n_groups: int) -> Words:
    """`out[word, g, ...]` is the union of `words[word, t, ...]` over t with `groups[t] == g`."""
    out = np.zeros((words.shape[0], n_groups, *words.shape[2:]), np.uint64)
    if groups.size:
        order = np.argsort(groups, kind="stable")
        sorted_groups = groups[order]
        starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
        out[:, sorted_groups[starts]] = np.bitwise_or.reduceat(words[:, order], starts, axis=1)
    return out


def index_of(values: Sequence[Value]) -> dict[Value, int]:
    """Position of each value; equal numbers are one value."""
    return {value: position for position, value in enumerate(values)}


def canonical_lengths(max_len: int, lengths: Iterable[int] | None) -> tuple[int, ...]:
    """The lengths, ascending; all up to `max_len` if None."""
    return tuple(range(1, max_len + 1)) if lengths is None else tuple(sorted(set(lengths)))


def canonical_alphabets(
    vocab: Sequence[Value], lengths: Sequence[int], alphabets: Mapping[int, Sequence[Value]] | None
) -> dict[int, tuple[Value, ...]]:
    """The alphabet at each length; a length with an empty alphabet has no sequence and is left out."""
    if alphabets is None:
        return {n: tuple(vocab) for n in lengths}
    out = {n: tuple(normalise(value) for value in alphabets.get(n, ())) for n in lengths}
    return {n: alphabet for n, alphabet in out.items() if alphabet}


def ordered(values: Iterable[Value]) -> tuple[Value, ...]:
    """`core.canonical`, faster for many rationals."""
    kept: dict[Value, Value] = {}
    for value in values:
        seen = kept.get(value, value)
        kept[value] = value if isinstance(seen, bool) else seen
    return sort_distinct(kept.values())


def sort_distinct(values: Iterable[Value]) -> tuple[Value, ...]:
    """Distinct values in canonical order; numbers are presorted by their nearest floats."""
    distinct = list(values)
    numbers = [value for value in distinct if value is not None and not isinstance(value, str)]
    try:
        numbers.sort(key=float)
        exact = all(a.numerator * b.denominator < b.numerator * a.denominator for a, b in itertools.pairwise(numbers))
    except OverflowError:
        exact = False
    if not exact:
        numbers.sort()
    return (
        *((None,) if any(value is None for value in distinct) else ()),
        *numbers,
        *sorted(value for value in distinct if isinstance(value, str)),
    )
