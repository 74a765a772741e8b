"""What is true of a core program on every input: possible values, bounds on widths, and facts about positions.

The rules are those of proofs/SPECIFICATION.md, section 2 (ranges, width bounds, rank, permutation, aggregates, width
sums) and of its paragraph "Resolving". All are relative to a set of lengths and an alphabet for each. Exact and
deterministic; everything claimed holds on every input of the lengths and alphabets (tests enumerate).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from ..models.errors import InputError
from . import widths
from .core import (
    Aggregate,
    And,
    Bits,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Not,
    Or,
    Select,
    Tokens,
    Value,
    Width,
)
from .means import linear_lengths, mean_lengths, numbers
from .ranges import (
    CUT_LIMIT,
    PAIR_LIMIT,
    VALUE_LIMIT,
    Cut,
    Indexes,
    Problem,
    Range,
    Ranges,
    Refused,
    Words,
    canonical_alphabets,
    canonical_lengths,
    group_or,
    index_of,
    sort_distinct,
)
from .resolving import UNRESOLVED, resolve


@dataclass(frozen=True)
class NoDefault:
    """In place of an aggregate's default value: the selection is never empty."""


NO_DEFAULT: Final = NoDefault()


@dataclass(frozen=True, eq=False)
class Analysis:
    """The facts about `core` on inputs of `lengths`. Nodes with a problem, and what depends on them, have no facts.

    Tables are indexed by positions in the nodes' `values` lists; arrays over joint values have one axis per node.
    """

    core: CoreProgram
    ranges: Ranges
    possible: tuple[Bits | None, ...]
    """`possible[node][n, value]` for n = 0..max_len; None for selectors and nodes without a range."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that the facts are about, ascending."""
        return self.ranges.lengths

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why some node has no range, in order of nodes; empty for a program that is total."""
        return tuple(self.ranges.problems)

    def ever(self, node: int) -> Bits:
        """`[value]`: possible at some length."""
        return self.ranges.ever(node)

    def cut(self, node: int) -> Cut:
        """The basis nodes that a value node is a function of."""
        return self.ranges.cut(node)

    def selector_cuts(self, selector: int) -> tuple[Cut, Cut]:
        """The cuts K of the keys and Q of the queries of a selector."""
        return self.ranges.selector_cuts(selector)

    def function(self, node: int, over: Sequence[int]) -> Indexes:
        """Value index of `node` for each joint value of `over`, which covers its cut; -1 where undefined."""
        return self.ranges.function(node, over)

    def selector_table(self, selector: int, key_nodes: Sequence[int], query_nodes: Sequence[int]) -> Bits:
        """`[key axes..., query axes...]`: whether the selector holds (not, where a map is undefined)."""
        return self.ranges.selector_table(selector, key_nodes, query_nodes)

    def possible_tuples(self, nodes: Sequence[int]) -> Bits:
        """`[one axis per node]`: possible together at some common length."""
        out: Bits = (self.ranges.joint(nodes) != 0).any(axis=0)
        return np.broadcast_to(out, self.ranges.sizes(nodes))

    def possible_at(self, nodes: Sequence[int], n: int) -> Bits:
        """`[one axis per node]`: possible together at length n."""
        return np.broadcast_to(self.ranges.at(self.ranges.joint(nodes), n), self.ranges.sizes(nodes))

    def width_bounds(self, selector: int) -> widths.Bounds:
        """`(lo, hi, possible)`, each `[n = 0..max_len, query axes...]`."""
        return widths.width_bounds(self.ranges, selector)

    def nonempty(self, selector: int) -> bool:
        """Some position is selected, on every input at every position."""
        lo, _, possible = self.width_bounds(selector)
        return bool((lo[possible] >= 1).all())

    def at_most_one(self, selector: int) -> bool:
        """No two positions are selected, on every input at every position."""
        _, hi, possible = self.width_bounds(selector)
        return bool((hi[possible] <= 1).all())

    def rank(self, width: int) -> widths.Rank | None:
        """The rank fact (cut, phi) of a width: equal widths imply equal phi. None if not established."""
        return widths.rank(self.ranges, width)

    def permutation(self, width: int) -> bool:
        """The width is a bijection from the positions onto 0..n-1."""
        return widths.permutation(self.ranges, width)

    def singular(self, aggregate: int) -> bool:
        """All selected values are equal, on every input at every position."""
        node = self.core.nodes[aggregate]
        assert isinstance(node, Aggregate), f"node {aggregate} is not an aggregate"
        return bool(selection(self.ranges, node.selector, node.value).singular.all())

    def resolve(
        self,
        node: int,
        reads: Sequence[int],
        width_sums: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> Indexes | None:
        """The value index of `node` for each joint value of `reads`; -1 where the tuple cannot occur.

        By the nodes read, tables, linear combinations and width sums (width -> its terms). None: not resolvable.
        """
        found = resolve(self.ranges, node, tuple(reads), width_sums or {}, {})
        if found is None:
            return None
        return np.where(self.possible_tuples(reads), found, np.int32(UNRESOLVED))

    def check_width_sum(self, node: int, terms: Sequence[tuple[int, int]]) -> bool:
        """Whether width `node` is the sum of c times w over `terms` (w, c), on all joint key and query values."""
        ranges = self.ranges
        selectors = []
        for width in (node, *(w for w, _ in terms)):
            definition = ranges.nodes[width]
            if not isinstance(definition, Width):
                return False
            selectors.append(definition.selector)
        keys = tuple(sorted({k for s in selectors for k in ranges.selector_cuts(s)[0]}))
        queries = tuple(sorted({q for s in selectors for q in ranges.selector_cuts(s)[1]}))
        if math.prod(ranges.sizes((*keys, *queries))) > PAIR_LIMIT:
            return False
        total = -ranges.selector_table(selectors[0], keys, queries).astype(np.int64)
        for selector, (_, count) in zip(selectors[1:], terms, strict=True):
            total += count * ranges.selector_table(selector, keys, queries)
        for axis, basis in enumerate((*keys, *queries)):
            total = np.compress(ranges.ever(basis), total, axis=axis)
        return not total.any()


def analyse(
    core: CoreProgram,
    lengths: Iterable[int] | None = None,
    alphabets: Mapping[int, Sequence[Value]] | None = None,
) -> Analysis:
    """The facts about a well-formed core program on inputs of the given lengths (default 1..max_len).

    `alphabets` gives, for a length, the tokens that occur in some input of that length (default: the vocabulary).
    What has no range is listed in `problems`, each with its reason. Raises `InputError` for a length outside
    1..max_len or a token outside the vocabulary.
    """
    ranges, tokens = start(core.vocab, core.max_len, core.causal, lengths, alphabets)
    for position, node in enumerate(core.nodes):
        if position == 0:
            ranges.append(node, tokens)
        elif isinstance(node, (Select, And, Or, Not)):
            if any(arg in ranges.failed for arg in references(node)):
                ranges.refuse(node, None)
            else:
                ranges.append(node, None)
        elif any(arg in ranges.failed for arg in references(node)):
            ranges.refuse(node, None)
        else:
            try:
                ranges.append(node, _node_words(ranges, node))
            except Refused as why:
                ranges.refuse(node, str(why))
    possible = tuple(None if words is None else ranges.unpack(words) for words in ranges.words)
    return Analysis(core, ranges, possible)


def start(
    vocab: Sequence[Value],
    max_len: int,
    causal: bool,
    lengths: Iterable[int] | None = None,
    alphabets: Mapping[int, Sequence[Value]] | None = None,
) -> tuple[Ranges, Words]:
    """Empty ranges for the given lengths and alphabets, and the words of `tokens` over `vocab`."""
    wanted = canonical_lengths(max_len, lengths)
    if wanted and not 1 <= wanted[0] <= wanted[-1] <= max_len:
        raise InputError(f"lengths must lie in 1..{max_len}, got {wanted[0]}..{wanted[-1]}")
    by_length = canonical_alphabets(vocab, wanted, alphabets)
    ranges = Ranges(max_len, causal, tuple(sorted(by_length)))
    positions = index_of(vocab)
    table = np.zeros((max_len + 1, len(vocab)), np.bool_)
    for n, alphabet in by_length.items():
        for value in alphabet:
            if value not in positions:
                raise InputError(f"token {value!r} at length {n} is not in the vocabulary {tuple(vocab)!r}")
            table[n, positions[value]] = True
    return ranges, ranges.pack(table)


def references(node: Node) -> tuple[int, ...]:
    """The nodes that a node's definition mentions."""
    match node:
        case Tokens() | Indices():
            return ()
        case Map() | Linear():
            return node.args
        case Select():
            return (node.keys, node.queries)
        case And() | Or():
            return (node.left, node.right)
        case Not():
            return (node.arg,)
        case Aggregate():
            return (node.selector, node.value)
        case Width():
            return (node.selector,)


def _node_words(ranges: Ranges, node: Tokens | Indices | Map | Linear | Aggregate | Width) -> Words:
    match node:
        case Tokens():
            raise Refused("tokens may only be the first node")
        case Indices():
            return align(indices_range(ranges), node.values)
        case Map():
            return map_words(ranges, node)
        case Linear():
            return align(linear_range(ranges, node.args, node.coefficients, node.constant), node.values)
        case Width():
            return align(width_range(ranges, node.selector), node.values)
        case Aggregate():
            default = NO_DEFAULT if node.default < 0 else node.values[node.default]
            return align(aggregate_range(ranges, node.selector, node.value, default), node.values)


def align(found: Range, values: Sequence[Value]) -> Words:
    """The words of a range for another list of values. Raises `Refused` if the list misses a possible value."""
    if found.values == tuple(values):
        return found.words
    positions = index_of(values)
    words = np.zeros((found.words.shape[0], len(values)), np.uint64)
    for index, value in enumerate(found.values):
        if value not in positions:
            raise Refused(f"the value {value!r} is possible but not among the values listed")
        words[:, positions[value]] = found.words[:, index]
    return words


# -- ranges of the kinds of nodes -------------------------------------------------------------------------------------


def indices_range(ranges: Ranges) -> Range:
    """The possible values of `indices`: position i at lengths above i."""
    positions = np.arange(ranges.max_len)
    table = np.arange(ranges.max_len + 1)[:, None] > positions[None, :]
    return Range(tuple(range(ranges.max_len)), ranges.pack(table))


def map_domain(ranges: Ranges, args: Sequence[int]) -> Cut:
    """The nodes over whose joint possible values a map of `args` is taken: its cut if small, else the arguments."""
    cut = tuple(sorted({basis for arg in args for basis in ranges.cut(arg)}))
    return cut if math.prod(ranges.sizes(cut)) <= CUT_LIMIT else tuple(args)


def map_words(ranges: Ranges, node: Map) -> Words:
    """The lengths at which each value of a map is possible. Raises `Refused` where it may be undefined."""
    over = map_domain(ranges, node.args)
    axes = {basis: axis for axis, basis in enumerate(over)}
    args = [np.broadcast_to(ranges.along(arg, axes, len(over)), ranges.sizes(over)).ravel() for arg in node.args]
    joint = np.broadcast_to(ranges.joint(over), (ranges.n_words, *ranges.sizes(over))).reshape(ranges.n_words, -1)
    occurs = (joint != 0).any(axis=0)
    defined = np.logical_and.reduce([arg >= 0 for arg in args], axis=0) if args else np.ones(1, np.bool_)
    image = np.where(defined, node.table[tuple(np.maximum(arg, 0) for arg in args)].ravel(), -1)
    bad = np.flatnonzero(occurs & (image < 0))
    if bad.size:
        at = ", ".join(
            repr(ranges.values(arg)[indexes[bad[0]]]) if indexes[bad[0]] >= 0 else "undefined"
            for arg, indexes in zip(node.args, args, strict=True)
        )
        raise Refused(f"the map is undefined at ({at}), which may occur")
    keep = image >= 0
    return group_or(joint[:, keep], image[keep], len(node.values))


def linear_range(ranges: Ranges, args: Sequence[int], coefficients: Sequence[Fraction], constant: Fraction) -> Range:
    """The possible values of a linear combination. Raises `Refused` for arguments that are no numbers."""
    terms = []
    for arg in args:
        words = ranges.words[arg]
        assert words is not None
        terms.append({v: bits for v, bits in zip(ranges.values(arg), _as_ints(words), strict=True) if bits})
    found = linear_lengths(terms, coefficients, constant)
    everywhere = sum(1 << n for n in ranges.lengths)
    return _collect(ranges, [(value, bits & everywhere) for value, bits in found.items()])


def width_range(ranges: Ranges, selector: int) -> Range:
    """The possible values of a width: all between its bounds."""
    lo, hi, possible = _flat_bounds(ranges, selector)
    table = np.zeros((ranges.max_len + 1, ranges.max_len + 1), np.bool_)
    for n in ranges.lengths:
        keep = possible[n] & (lo[n] <= hi[n])
        steps = np.bincount(lo[n][keep], minlength=n + 2) - np.bincount(hi[n][keep] + 1, minlength=n + 2)
        table[n, : n + 1] = np.cumsum(steps[: n + 1]) > 0
    kept = np.flatnonzero(table.any(axis=0))
    return Range(tuple(kept.tolist()), ranges.pack(table[:, kept]))


@dataclass(frozen=True, eq=False)
class Selection:
    """What an aggregate selects: `words[word, value, q]`, the lengths at which joint query value q may select a value;
    `singular[n, q]`, whether all values it selects are equal."""

    words: Words
    singular: Bits


def selection(ranges: Ranges, selector: int, value: int) -> Selection:
    """What an aggregate of `value` over `selector` selects; remembered."""
    found = ranges.memo.get(("selection", selector, value))
    if found is None:
        found = ranges.memo["selection", selector, value] = _selection(ranges, selector, value)
    assert isinstance(found, Selection)
    return found


def _selection(ranges: Ranges, selector: int, value: int) -> Selection:
    keys, queries = ranges.selector_cuts(selector)
    cut = ranges.value_basis(selector, value)
    shared, rest = tuple(c for c in cut if c in keys), tuple(c for c in cut if c not in keys)
    picked = ranges.selected_lengths(selector, shared)
    n_queries = picked.shape[-1]
    picked = picked.reshape(ranges.n_words, -1, 1, n_queries)
    others = np.broadcast_to(ranges.joint(rest), (ranges.n_words, *ranges.sizes(rest)))
    picked = (picked & others.reshape(ranges.n_words, 1, -1, 1)).reshape(ranges.n_words, -1, n_queries)
    image = ranges.function(value, (*shared, *rest)).ravel()
    if not np.array_equal(image, np.arange(len(ranges.values(value)))):
        keep = image >= 0
        picked = group_or(picked[:, keep], image[keep], len(ranges.values(value)))
    asked = np.broadcast_to(ranges.joint(queries), (ranges.n_words, *ranges.sizes(queries)))
    picked = picked & asked.reshape(ranges.n_words, 1, n_queries)
    _, hi, possible = _flat_bounds(ranges, selector)
    singular = (hi <= 1) | ~possible
    rankers = [
        ranges.selected_lengths(selector, (node,)) for node in keys if _value_follows_rank(ranges, node, value, cut)
    ]
    for n in ranges.lengths:
        singular[n] |= ranges.at(picked, n).sum(axis=0) <= 1
        for by_rank in rankers:
            singular[n] |= ranges.at(by_rank, n).sum(axis=0) <= 1
    unused = [n for n in range(ranges.max_len + 1) if n not in ranges.lengths]
    singular[unused] = True
    return Selection(picked, singular)


def _value_follows_rank(ranges: Ranges, width: int, value: int, cut: Cut) -> bool:
    """Whether `width` has a rank fact whose phi determines `value`."""
    fact = widths.rank(ranges, width)
    if fact is None or not set(cut) <= set(fact.cut):
        return False
    return widths.is_function_of(fact.phi, ranges.function(value, fact.cut))


def aggregate_range(ranges: Ranges, selector: int, value: int, default: Value | NoDefault) -> Range:
    """The possible values of an aggregate. Raises `Refused` if an undefined case may occur."""
    keys, queries = ranges.selector_cuts(selector)
    joint = {*keys, *ranges.value_basis(selector, value)}
    tabulated = math.prod(ranges.sizes(keys)) * math.prod(ranges.sizes(queries))
    if ranges.product(joint) * ranges.product(queries) > PAIR_LIMIT or tabulated > 2 * PAIR_LIMIT:
        raise Refused(
            f"the selection relates {ranges.product(joint)} joint key values to {ranges.product(queries)} joint query "
            f"values, more than {PAIR_LIMIT} pairs; select by fewer or coarser values"
        )
    picked = selection(ranges, selector, value)
    lo, hi, possible = _flat_bounds(ranges, selector)
    found: dict[_Key, tuple[Value, int]] = {}
    empty = np.bitwise_or.reduce(ranges.pack(possible & (lo == 0)), axis=1)
    if empty.any():
        if isinstance(default, NoDefault):
            raise Refused("the selection may be empty and there is no default; give a default")
        found[_key(default)] = (default, _as_ints(empty[:, None])[0])
    taken = ranges.pack(possible & (hi >= 1))
    single = _as_ints(np.bitwise_or.reduce(picked.words & taken[:, None, :], axis=2))
    for member, bits in zip(ranges.values(value), single, strict=True):
        if bits:
            kept, before = found.get(_key(member), (member, 0))
            found[_key(member)] = kept, before | bits
    for pair, bits in mean_lengths(_averaged(ranges, picked, hi, ranges.values(value))).items():
        if pair in found:
            found[pair] = found[pair][0], found[pair][1] | bits
        else:
            found[pair] = (pair[0] if pair[1] == 1 else Fraction(*pair)), bits
    return _collect(ranges, found.values())


def _averaged(
    ranges: Ranges, picked: Selection, hi: npt.NDArray[np.int32], values: Sequence[Value]
) -> dict[tuple[Fraction, ...], dict[int, int]]:
    """The sets of values that are averaged, with the largest number of summands at each length; sets that are part of
    another with at least as many summands are left out."""
    out: dict[tuple[Fraction, ...], dict[int, int]] = {}
    fractions = [Fraction(v) if isinstance(v, (int, Fraction)) else None for v in values]
    for n in ranges.lengths:
        asking = np.flatnonzero(~picked.singular[n])
        if not asking.size:
            continue
        columns, inverse = np.unique(ranges.at(picked.words[:, :, asking], n).T, axis=0, return_inverse=True)
        most = np.zeros(len(columns), np.int64)
        np.maximum.at(most, inverse.ravel(), hi[n, asking])
        used = columns.any(axis=0)
        what = "several selected values may differ, so their mean is taken"
        remedy = "select one position, or positions that agree, or map the value to a number first"
        numbers((values[i] for i in np.flatnonzero(used).tolist()), what, remedy)
        missing = columns.astype(np.float32) @ (~columns).astype(np.float32).T
        inside = (missing == 0) & (most[:, None] <= most[None, :])
        equal = inside & inside.T
        dominated = (inside & ~(equal & np.triu(np.ones(equal.shape, np.bool_)))).any(axis=1)
        for column, count in zip(columns[~dominated], most[~dominated].tolist(), strict=True):
            members = tuple(
                sorted(f for f, is_used in zip(fractions, column.tolist(), strict=True) if is_used and f is not None)
            )
            out.setdefault(members, {})[n] = count
    return out


def _flat_bounds(ranges: Ranges, selector: int) -> widths.Bounds:
    """Width bounds `[n, flattened query value]`."""
    lo, hi, possible = widths.width_bounds(ranges, selector)
    rows = ranges.max_len + 1
    return widths.Bounds(lo.reshape(rows, -1), hi.reshape(rows, -1), possible.reshape(rows, -1))


_Key = tuple[int, int] | str | None
"""A value by its numerator and denominator: cheaper to hash than a Fraction."""


def _key(value: Value) -> _Key:
    return (value.numerator, value.denominator) if isinstance(value, (int, Fraction)) else value


def _collect(ranges: Ranges, found: Iterable[tuple[Value, int]]) -> Range:
    """The range of distinct values with their lengths as bit sets."""
    lengths = {_key(value): bits for value, bits in found if bits}
    values = sort_distinct(value for value, bits in found if bits)
    if len(values) > VALUE_LIMIT:
        raise Refused(f"{len(values)} possible values, more than {VALUE_LIMIT}; map them to fewer")
    ordered_bits = [lengths[_key(value)] for value in values]
    words = np.zeros((ranges.n_words, len(values)), np.uint64)
    for word in range(ranges.n_words):
        words[word] = [bits >> 64 * word & 0xFFFF_FFFF_FFFF_FFFF for bits in ordered_bits]
    return Range(values, words)


def _as_ints(words: Words) -> list[int]:
    """`words[word, value]` as one integer per value."""
    out = [0] * words.shape[1]
    for position, row in enumerate(words):
        out = [total | int(word) << 64 * position for total, word in zip(out, row.tolist(), strict=True)]
    return out
