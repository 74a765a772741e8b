"""Facts about core programs against enumeration of every input: nothing claimed may fail, with tolerance zero."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from certiformer.compiler.analysis import (
    NO_DEFAULT,
    Analysis,
    Ranges,
    Refused,
    aggregate_range,
    analyse,
    indices_range,
    linear_range,
    map_words,
    start,
    width_range,
)
from certiformer.compiler.core import (
    Aggregate,
    And,
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
    canonical,
)
from certiformer.compiler.core_evaluator import UNDEFINED, evaluate_all, evaluate_batch
from certiformer.models.errors import InputError

VOCABS: tuple[tuple[Value, ...], ...] = ((0, 1), (0, 1, 2), ("a", "b"), (False, True), (None, 1, "a"), (Fraction(1, 2), 3))


# -- random core programs ---------------------------------------------------------------------------------------------


def random_program(rng: random.Random, max_len: int = 4, size: int = 9) -> CoreProgram:
    """A random well-formed program: tables random or comparisons, selectors nested, some nodes partly undefined."""
    vocab = canonical(rng.choice(VOCABS))
    causal = rng.random() < 0.4
    ranges, words = start(vocab, max_len, causal)
    ranges.append(Tokens(vocab), words)
    positions = indices_range(ranges)
    ranges.append(Indices(positions.values), positions.words)
    if rng.random() < 0.3:
        sorting(ranges, rng)
    while len(ranges.nodes) < size:
        grow(ranges, rng)
    outputs = [i for i, node in enumerate(ranges.nodes) if not isinstance(node, (Select, And, Or, Not))]
    return CoreProgram(vocab, max_len, causal, tuple(ranges.nodes), outputs[-1])


def sorting(ranges: Ranges, rng: random.Random) -> None:
    """Ranks, with ties broken by position or not, and an aggregate that reads through them."""
    tokens = ranges.values(0)
    less = np.array([[a < b for b in range(len(tokens))] for a in range(len(tokens))])
    n = ranges.max_len
    before = np.array([[a < b for b in range(n)] for a in range(n)])
    if rng.random() < 0.3:
        before = before.T
    first = ranges.append(Select(0, 0, less), None)
    if rng.random() < 0.8:
        same = ranges.append(Select(0, 0, np.eye(len(tokens), dtype=np.bool_)), None)
        earlier = ranges.append(Select(1, 1, before), None)
        both = ranges.append(And(same, earlier), None)
        first = ranges.append(Or(first, both), None)
    found = width_range(ranges, first)
    width = ranges.append(Width(first, found.values), found.words)
    kind = rng.choice(["==", "<=", "random"])
    table = np.array(
        [
            [a == b if kind == "==" else a <= b if kind == "<=" else rng.random() < 0.4 for b in range(n)]
            for a in found.values
        ]
    ).reshape(len(found.values), n)
    at_rank = ranges.append(Select(width, 1, table), None)
    for value in (0, 1, width):
        add_aggregate(ranges, at_rank, value, None)
    found = width_range(ranges, at_rank)
    ranges.append(Width(at_rank, found.values), found.words)


def add_aggregate(ranges: Ranges, selector: int, value: int, default: Value) -> None:
    try:
        found = aggregate_range(ranges, selector, value, default)
    except Refused:
        return
    place = found.values.index(default) if default in found.values else -1
    ranges.append(Aggregate(selector, value, place, found.values), found.words)


def grow(ranges: Ranges, rng: random.Random) -> None:
    value_nodes = [i for i, words in enumerate(ranges.words) if words is not None]
    selectors = [i for i, words in enumerate(ranges.words) if words is None]
    kind = rng.choice(["map", "map", "linear", "select", "select", "logic", "width", "aggregate", "aggregate"])
    if kind == "map":
        args = tuple(rng.choice(value_nodes) for _ in range(rng.choice([0, 1, 1, 2, 2, 3])))
        sizes = tuple(len(ranges.values(arg)) for arg in args)
        if np.prod(sizes, initial=1) > 3000:
            return
        pool = rng.choice([(0, 1), (0, 1, 2), (False, True), (None, 0, 2), ("x", "y"), (Fraction(1, 3), Fraction(1, 2), 2)])
        values = canonical(pool[: rng.randint(1, len(pool))])
        table = np.array([rng.randrange(len(values)) for _ in range(int(np.prod(sizes, initial=1)))], np.int32)
        if rng.random() < 0.3:  # undefined wherever it does not occur
            probe = Map(args, np.zeros(sizes, np.int32), (0,))
            for at in range(table.size):
                partial = np.full(sizes, 0, np.int32)
                partial.reshape(-1)[at] = -1
                try:
                    map_words(ranges, Map(args, partial, probe.values))
                except Refused:
                    continue
                table[at] = -1
        node = Map(args, table.reshape(sizes), values)
        ranges.append(node, map_words(ranges, node))
    elif kind == "linear":
        args = tuple(rng.choice(value_nodes) for _ in range(rng.choice([1, 2, 2])))
        coefficients = tuple(Fraction(rng.choice([-1, 1, 2, 3]), rng.choice([1, 1, 2])) for _ in args)
        constant = Fraction(rng.choice([0, 1, -2]), rng.choice([1, 3]))
        try:
            found = linear_range(ranges, args, coefficients, constant)
        except Refused:
            return
        ranges.append(Linear(args, coefficients, constant, found.values), found.words)
    elif kind == "select":
        keys, queries = rng.choice(value_nodes), rng.choice(value_nodes)
        n_keys, n_queries = len(ranges.values(keys)), len(ranges.values(queries))
        how = rng.choice(["==", "<", "<=", "random", "rare", "often", "all"])
        chance = {"random": 0.5, "rare": 0.2, "often": 0.85, "all": 1.0}.get(how, 0.0)
        table = np.array(
            [
                [{"==": a == b, "<": a < b, "<=": a <= b}.get(how, rng.random() < chance) for b in range(n_queries)]
                for a in range(n_keys)
            ]
        )
        ranges.append(Select(keys, queries, table.reshape(n_keys, n_queries)), None)
    elif kind == "logic" and selectors:
        left, right = rng.choice(selectors), rng.choice(selectors)
        ranges.append(rng.choice([And(left, right), Or(left, right), Not(left)]), None)
    elif kind == "width" and selectors:
        selector = rng.choice(selectors)
        found = width_range(ranges, selector)
        ranges.append(Width(selector, found.values), found.words)
    elif kind == "aggregate" and selectors:
        add_aggregate(ranges, rng.choice(selectors), rng.choice(value_nodes), rng.choice([None, 0, "none", Fraction(1, 2)]))


def inputs(core: CoreProgram) -> list[tuple[Value, ...]]:
    return [xs for n in range(1, core.max_len + 1) for xs in itertools.product(core.vocab, repeat=n)]


# -- soundness --------------------------------------------------------------------------------------------------------


def check_facts(core: CoreProgram, facts: Analysis, words: Sequence[tuple[Value, ...]]) -> None:
    """Every fact of the analysis on every given input."""
    value_nodes = [i for i, possible in enumerate(facts.possible) if possible is not None]
    selectors = [i for i, node in enumerate(core.nodes) if isinstance(node, (Select, And, Or, Not))]
    selectors = [s for s in selectors if s not in facts.ranges.failed]
    index = {i: {v: k for k, v in enumerate(core.value_node(i).values)} for i in value_nodes}
    bounds = {s: facts.width_bounds(s) for s in selectors}
    nonempty = {s for s in selectors if facts.nonempty(s)}
    at_most_one = {s for s in selectors if facts.at_most_one(s)}
    widths = [i for i in value_nodes if isinstance(core.nodes[i], Width)]
    ranks = {w: facts.rank(w) for w in widths}
    permutations = {w for w in widths if facts.permutation(w)}
    singular = {i for i in value_nodes if isinstance(core.nodes[i], Aggregate) and facts.singular(i)}
    for xs in words:
        n = len(xs)
        rows = evaluate_all(core, xs)
        at = {}
        for node in value_nodes:
            row = rows[node]
            assert isinstance(row, list)
            assert UNDEFINED not in row, (node, xs)
            at[node] = [index[node][value] for value in row]
            assert all(facts.possible[node][n, k] for k in at[node]), (node, xs, row)
        for selector in selectors:
            lo, hi, possible = bounds[selector]
            _, queries = facts.selector_cuts(selector)
            counts = rows[selector].sum(axis=0)
            for i in range(n):
                where = (n, *(at[q][i] for q in queries))
                assert possible[where]
                assert lo[where] <= counts[i] <= hi[where], (selector, xs, i, lo[where], counts[i], hi[where])
            assert selector not in nonempty or counts.min() >= 1
            assert selector not in at_most_one or counts.max() <= 1
        for width in permutations:
            assert sorted(rows[width]) == list(range(n))
        for width, fact in ranks.items():
            if fact is not None:
                phi = [int(fact.phi[tuple(at[c][i] for c in fact.cut)]) for i in range(n)]
                assert min(phi) >= 0
                assert all(rows[width][i] == sum(p < phi[i] for p in phi) for i in range(n))
        for aggregate in singular:
            node = core.nodes[aggregate]
            assert isinstance(node, Aggregate)
            for i in range(n):
                assert len({rows[node.value][j] for j in np.flatnonzero(rows[node.selector][:, i])}) <= 1


def test_facts_hold_on_every_input_of_random_programs() -> None:
    rng = random.Random(1)
    seen: dict[str, int] = {}
    for _ in range(250):
        core = random_program(rng)
        facts = analyse(core)
        assert not facts.problems
        words = inputs(core)
        check_facts(core, facts, words if len(words) < 40 else rng.sample(words, 40))
        for node in core.nodes:
            seen[type(node).__name__] = seen.get(type(node).__name__, 0) + 1
        seen["rank"] = seen.get("rank", 0) + sum(facts.ranges.memo.get(("rank", i)) is not None for i in range(30))
        seen["permutation"] = seen.get("permutation", 0) + sum(
            facts.ranges.memo.get(("permutation", i)) is True for i in range(30)
        )
    kinds = {"Map", "Linear", "Select", "And", "Or", "Not", "Aggregate", "Width", "rank", "permutation"}
    assert all(seen.get(kind, 0) >= 20 for kind in kinds), seen
