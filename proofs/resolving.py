"""Tuples of values at one position, and nodes whose value follows from them (section 4, *Resolving*; width sums)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from .core import Bits, Ints, Program, linear_indices, weighted_indices
from .format import Json, Rejected, as_fraction, integer, is_number, listing, record, require
from .joint import Joint, TooLarge
from .ranges import MAX_CELLS, Ranges, is_function, look_up

MAX_COEFFICIENT = 2**20
MAX_TERMS = 64


class Unresolved(Rejected):
    """A node's value does not follow from the tuple by definitions."""


class Resolver:
    """Values that follow from other values at the same position of the same input."""

    def __init__(
        self, ranges: Ranges, sums: dict[int, list[tuple[int, int]]], shares: dict[int, tuple[int, int]] | None = None
    ) -> None:
        self.ranges, self.sums, self.shares = ranges, sums, shares or {}

    def tuples(self, reads: list[int]) -> Joint:
        """The possible tuples: those all of whose values are possible at one and the same length."""
        joint = self.ranges.joint(reads)
        kept = joint.kept(np.asarray(joint.mask.any(axis=0)))
        require(kept.size > 0, f"no tuple of values of nodes {reads} is possible")
        return kept

    def resolve(self, node: int, joint: Joint) -> tuple[Ints, Bits]:
        """The node's value index on each tuple, and at which lengths the tuple (with all resolved values) is possible.

        Index -1, and no length: the tuple cannot occur. Raises `Rejected` if the node does not follow from the tuple.
        """
        mask = joint.mask.copy()
        try:
            index = self._resolve(node, joint, mask, {}, ())
        except Unresolved as error:
            index = self._resolve_by_function(node, joint, error.why)
            mask &= self.ranges.possible[node][:, index] & (index >= 0)
        return index, mask

    def _resolve_by_function(self, node: int, joint: Joint, why: str) -> Ints:
        """Over the possible tuples of C = the cuts of the node and of the tuple's nodes, the node's value must be a
        function of the tuple; tuples that do not arise from C cannot occur (-1)."""
        ranges = self.ranges
        base = ranges.joint(sorted({n for other in (node, *joint.nodes) for n in ranges.cuts[other]}))
        possible = base.mask.copy()
        read = [ranges.value_on(other, base) for other in joint.nodes]
        value = ranges.value_on(node, base)
        for other, index in zip((*joint.nodes, node), (*read, value), strict=True):
            possible &= ranges.possible[other][:, index] & (index >= 0)
        rows = possible.any(axis=0)
        sizes = tuple(len(ranges.program.nodes[other].values) for other in joint.nodes)
        require(math.prod(sizes) < 2**62, why)
        argument, image = _flat(read, sizes, base.size)[rows], value[rows]
        require(rows.any() and is_function(argument, image), f"{why}, nor is it a function of them")
        keys, first = np.unique(argument, return_index=True)
        asked = _flat([joint.columns[other] for other in joint.nodes], sizes, joint.size)
        place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        return np.where(keys[place] == asked, image[first][place], -1)

    def _resolve(self, node: int, joint: Joint, mask: Bits, memo: dict[int, Ints], above: tuple[int, ...]) -> Ints:
        if node in joint.columns:
            return joint.columns[node]
        if node in memo:
            return memo[node]
        require(node not in above and len(above) < 500, f"node {node} is defined through itself")
        program = self.ranges.program
        definition = program.nodes[node]
        terms = self.sums.get(node)
        share = self.shares.get(node) if terms is None else None
        followed = definition.kind in ("map", "linear") or terms is not None or share is not None
        if not followed:
            raise Unresolved(f"node {node} ({definition.kind}) does not follow from nodes {list(joint.nodes)}")
        sources = definition.args if terms is None else tuple(term for term, _ in terms)
        sources = sources if share is None else share
        args = [self._resolve(arg, joint, mask, memo, (*above, node)) for arg in sources]
        if definition.kind == "map":
            assert definition.table is not None
            index = look_up(definition.table, args, joint.size)
        elif definition.kind == "linear":
            index = np.broadcast_to(linear_indices(definition, program.nodes, args), (joint.size,))
        elif share is not None:
            index = share_indices(program, node, share, args)
        else:
            assert terms is not None
            tables: list[list[Fraction | None]] = [
                [Fraction(c) * as_fraction(v) if is_number(v) else None for v in program.nodes[w].values]
                for w, c in terms
            ]
            bad = np.zeros(joint.size, dtype=np.bool_)
            for arg, table in zip(args, tables, strict=True):
                bad = bad | (arg < 0) | np.array([x is None for x in table])[arg]
            index = weighted_indices(definition, tables, args, Fraction(0), bad, np.zeros_like(bad))
        mask &= self.ranges.possible[node][:, index] & (index >= 0)
        index = np.where(mask.any(axis=0), index, -1)
        memo[node] = index
        return index


def _flat(columns: list[Ints], sizes: tuple[int, ...], count: int) -> Ints:
    """One number for each of `count` tuples of indices."""
    total = np.zeros(count, dtype=np.int64)
    for column, size in zip(columns, sizes, strict=True):
        total = total * size + column
    return total


def read_width_sums(data: Json, ranges: Ranges) -> dict[int, list[tuple[int, int]]]:
    """Width sums: [selector of w] = sum of c_t [selector of w_t], checked for all joint key and query values; and mean
    sums, of aggregates."""
    sums: dict[int, list[tuple[int, int]]] = {}
    count = len(ranges.program.nodes)
    for entry in listing(data, "width_sums", count):
        item = record(entry, "a width sum", ("node", "terms"))
        node = integer(item["node"], "a width sum's node", 0, count - 1)
        require(node not in sums, f"two width sums for node {node}")
        terms = []
        for term in listing(item["terms"], "terms", MAX_TERMS):
            pair = listing(term, "a term", 2, 2)
            terms.append(
                (
                    integer(pair[0], "a term's node", 0, count - 1),
                    integer(pair[1], "a coefficient", -MAX_COEFFICIENT, MAX_COEFFICIENT),
                )
            )
        if ranges.program.nodes[node].kind == "aggregate":
            check_mean_sum(ranges, node, terms)
        else:
            check_width_sum(ranges, node, terms)
        sums[node] = terms
    return sums


def check_mean_sum(ranges: Ranges, node: int, terms: list[tuple[int, int]]) -> None:
    """a = sum_t c_t a_t on every input: all are means over one selection of numbers that add up at each position."""
    nodes = ranges.program.nodes
    every = [node, *(term for term, _ in terms)]
    require(all(nodes[a].kind == "aggregate" for a in every), "a mean sum is of aggregates")
    require(len(set(every)) == len(every), f"the mean sum of node {node} names an aggregate twice")
    require(len({nodes[a].args[0] for a in every}) == 1, f"the mean sum of node {node} is over several selectors")
    factors = [Fraction(-1), *(Fraction(c) for _, c in terms)]
    if not all(a in ranges.nonempty for a in every):
        defaults = [nodes[a].values[nodes[a].default] if nodes[a].default >= 0 else None for a in every]
        require(all(is_number(v) for v in defaults), f"a default in the mean sum of node {node} is no number")
        total = sum((c * as_fraction(v) for c, v in zip(factors, defaults, strict=True)), Fraction(0))
        require(total == 0, f"the defaults in the mean sum of node {node} do not add up")
    sources = [nodes[a].args[1] for a in every]
    joint = ranges.joint(sorted({basis for source in sources for basis in ranges.cuts[source]}))
    rows = joint.kept(np.asarray(joint.mask.any(axis=0)))
    require(rows.size * len(every) <= MAX_CELLS, f"the mean sum of node {node} is over too many tuples of values")
    used = [np.unique(ranges.value_on(source, rows), return_inverse=True) for source in sources]
    require(all(values[0] >= 0 for values, _ in used), f"a value in the mean sum of node {node} may be undefined")
    found = [[nodes[source].values[v] for v in values] for source, (values, _) in zip(sources, used, strict=True)]
    require(all(is_number(v) for some in found for v in some), f"a value in the mean sum of node {node} is no number")
    terms_of = [[c * as_fraction(v) for v in some] for c, some in zip(factors, found, strict=True)]
    scale = math.lcm(*(term.denominator for some in terms_of for term in some))
    whole = [[int(term * scale) for term in some] for some in terms_of]
    small = sum(max(map(abs, some)) for some in whole) < 2**62
    kind = np.dtype(np.int64 if small else object)
    added = np.zeros(1, dtype=kind)
    for some, (_, place) in zip(whole, used, strict=True):
        added = added + np.array(some, dtype=kind)[place.reshape(-1)]
    require(not (added != 0).any(), f"the values in the mean sum of node {node} do not add up")


def check_width_sum(ranges: Ranges, node: int, terms: list[tuple[int, int]]) -> None:
    """The identity that makes w = sum_t c_t w_t true on every input, for every pair of positions."""
    selectors = []
    for width in [node, *(term for term, _ in terms)]:
        require(ranges.program.nodes[width].kind == "width", f"node {width} of a width sum is not a width")
        selectors.append(ranges.program.nodes[width].args[0])
    keys, queries = (
        ranges.merged(
            ranges.joint(sorted({node for s in selectors for node in joint[s]})),
            {node for s in selectors for node in ranges.arguments(s, side)},
        )[0]
        for side, joint in enumerate((ranges.keys, ranges.queries))
    )
    size = 1 + sum(abs(coefficient) for _, coefficient in terms)
    require(size < 2**31, "the coefficients of a width sum are too large")
    kind = np.dtype(np.int8 if size < 2**7 else np.int32)
    total = -ranges.selector_on(selectors[0], keys, queries).astype(kind)
    for selector, (_, coefficient) in zip(selectors[1:], terms, strict=True):
        total += np.array(coefficient, kind) * ranges.selector_on(selector, keys, queries)
    require(identity_holds(total != 0, keys, queries), f"the width sum of node {node} is not an identity of selectors")


def identity_holds(differs: Bits, keys: Joint, queries: Joint) -> bool:
    """No pair of a key tuple and a query tuple that are possible at one length differs."""
    if not differs.any():
        return True
    together = keys.mask.T.astype(np.float32) @ queries.mask.astype(np.float32) > 0
    return not (differs & together).any()


def read_width_shares(data: Json, ranges: Ranges) -> dict[int, tuple[int, int]]:
    """Width shares: w = c - 1 if m = 0, else w = c, where m is the share of position 0 in w's selection."""
    shares: dict[int, tuple[int, int]] = {}
    count = len(ranges.program.nodes)
    for entry in listing(data, "width_shares", count, 1):
        item = record(entry, "a width share", ("node", "counted", "inside"))
        node, c, m = (integer(item[key], key, 0, count - 1) for key in ("node", "counted", "inside"))
        require(node not in shares, f"two width shares for node {node}")
        check_width_share(ranges, node, c, m)
        shares[node] = (c, m)
    return shares


def check_width_share(ranges: Ranges, node: int, c: int, m: int) -> None:
    """w = width(s), s not empty; c = width(s or first); m = mean over s of [indices = 0].

    Exactly one position has index 0, and it is visible. If s selects it, m = 1 / w and c = w; else m = 0 and c = w + 1.
    """
    nodes = ranges.program.nodes
    require(nodes[node].kind == "width" and nodes[c].kind == "width", f"nodes {node} and {c} must be widths")
    (s,), (either,) = nodes[node].args, nodes[c].args
    require(nodes[either].kind == "or" and nodes[either].args[0] == s, f"node {c} must count `or` of {s} and another")
    first = nodes[nodes[either].args[1]]
    require(first.kind == "select" and first.args[0] == 1, "the other selector must be a select by indices")
    assert first.table is not None
    only_zero = (first.table == (np.arange(len(first.table)) == 0)[:, None]).all()
    require(only_zero, "the other selector must select position 0, whatever the query")
    require(nodes[m].kind == "aggregate" and nodes[m].args[0] == s, f"node {m} must aggregate over selector {s}")
    require(m in ranges.nonempty, f"the selection of node {m} may be empty")
    mark = nodes[nodes[m].args[1]]
    require(mark.kind == "map" and mark.args == (1,), f"node {m} must aggregate a map of indices")
    assert mark.table is not None
    wanted = [1 if index == 0 else 0 for index in range(len(mark.table))]
    require([mark.values[v] if v >= 0 else None for v in mark.table] == wanted, "the map must be 1 at 0, else 0")


def share_indices(program: Program, node: int, share: tuple[int, int], args: list[Ints]) -> Ints:
    """Indices of w, from c and m; -1 where m is neither 0 nor 1 / w, or w < 1."""
    position = program.nodes[node].position()
    counts, shares = (program.nodes[n].values for n in share)
    table = np.full((len(counts), len(shares)), -1, dtype=np.int64)
    for i, count in enumerate(counts):
        for j, inside in enumerate(shares):
            assert isinstance(count, int)
            w = count - 1 if inside == 0 else int(count)
            if w >= 1 and (inside == 0 or inside == Fraction(1, w)):
                table[i, j] = position.get(w, -1)
    return look_up(table, args, len(args[0]))


def first_always_selected(ranges: Ranges, selector: int) -> bool:
    """Every query selects every key with `indices` = 0, over possible joint values."""
    keys = ranges.joint(sorted({*ranges.keys[selector], 1}))
    keys = keys.kept(keys.columns[1] == 0)
    queries = ranges.joint(ranges.queries[selector])
    return identity_holds(~ranges.selector_on(selector, keys, queries), keys, queries)


def check_atoms(ranges: Ranges, selector: int, atoms: list[tuple[int, int, Bits]]) -> None:
    """(k selected by q under the selector) <=> all atoms hold, for all joint values of the nodes concerned."""
    keys = ranges.joint(sorted({*ranges.keys[selector], *(n for x, _, _ in atoms for n in ranges.cuts[x])}))
    queries = ranges.joint(sorted({*ranges.queries[selector], *(n for _, z, _ in atoms for n in ranges.cuts[z])}))
    keys, _ = ranges.merged(keys, {*ranges.arguments(selector, 0), *(x for x, _, _ in atoms)})
    queries, _ = ranges.merged(queries, {*ranges.arguments(selector, 1), *(z for _, z, _ in atoms)})
    if keys.size * queries.size > MAX_CELLS:
        raise TooLarge(f"{keys.size} key tuples times {queries.size} query tuples")
    all_hold = np.ones((keys.size, queries.size), dtype=np.bool_)
    for x, z, table in atoms:
        all_hold &= table[:, ranges.value_on(z, queries)].take(ranges.value_on(x, keys), axis=0)
    differs = selector_differs(ranges.selector_on(selector, keys, queries), all_hold)
    require(identity_holds(differs, keys, queries), f"the atoms are not equivalent to selector {selector}")


def selector_differs(selected: Bits, all_hold: Bits) -> Bits:
    return np.asarray(selected != all_hold, dtype=np.bool_)
