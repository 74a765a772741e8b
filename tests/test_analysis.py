"""Facts about core programs against enumeration of every input: nothing claimed may fail, with tolerance zero."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from certiformer.compiler import analysis as analysis_module
from certiformer.compiler import ranges as ranges_module
from certiformer.compiler import widths as widths_module
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
from certiformer.compiler.core_evaluator import UNDEFINED, evaluate_all
from certiformer.models.errors import InputError

VOCABS: tuple[tuple[Value, ...], ...] = (
    (0, 1),
    (0, 1, 2),
    ("a", "b"),
    (False, True),
    (None, 1, "a"),
    (Fraction(1, 2), 3),
)


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
        pool = rng.choice(
            [(0, 1), (0, 1, 2), (False, True), (None, 0, 2), ("x", "y"), (Fraction(1, 3), Fraction(1, 2), 2)]
        )
        values = canonical(pool[: rng.randint(1, len(pool))])
        table = np.array([rng.randrange(len(values)) for _ in range(int(np.prod(sizes, initial=1)))], np.int32)
        if rng.random() < 0.3 and table.size < 100:  # undefined wherever it does not occur
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
        if n_keys * n_queries > 20_000:
            return
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
        add_aggregate(
            ranges, rng.choice(selectors), rng.choice(value_nodes), rng.choice([None, 0, "none", Fraction(1, 2)])
        )


def inputs(core: CoreProgram) -> list[tuple[Value, ...]]:
    return [xs for n in range(1, core.max_len + 1) for xs in itertools.product(core.vocab, repeat=n)]


# -- soundness --------------------------------------------------------------------------------------------------------


def check_facts(core: CoreProgram, facts: Analysis, words: Sequence[Sequence[Value]]) -> None:
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
                indexes = [at[q][i] for q in queries]
                where = (n, *(k if size > 1 else 0 for k, size in zip(indexes, lo.shape[1:], strict=True)))
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


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that random programs reach what is done beyond them."""
    for module in (ranges_module, widths_module, analysis_module):
        if hasattr(module, "PAIR_LIMIT"):
            monkeypatch.setattr(module, "PAIR_LIMIT", 20)
        if hasattr(module, "CUT_LIMIT"):
            monkeypatch.setattr(module, "CUT_LIMIT", 3)


@pytest.mark.usefixtures("small_limits")
def test_facts_hold_beyond_the_limits_of_tabulation() -> None:
    rng = random.Random(2)
    for _ in range(80):
        core = random_program(rng, max_len=3)
        facts = analyse(core)
        check_facts(core, facts, rng.sample(inputs(core), min(14, len(inputs(core)))))


def test_facts_hold_on_the_given_lengths_and_alphabets() -> None:
    rng = random.Random(3)
    for _ in range(80):
        core = random_program(rng, max_len=4)
        lengths = sorted(rng.sample(range(1, 5), rng.randint(1, 3)))
        alphabets = {n: rng.sample(core.vocab, rng.randint(1, len(core.vocab))) for n in lengths}
        facts = analyse(core, lengths=range(lengths[0], lengths[-1] + 1), alphabets=alphabets)
        assert facts.lengths == tuple(lengths)
        words = [xs for n in lengths for xs in itertools.product(alphabets[n], repeat=n)]
        check_facts(core, facts, rng.sample(words, min(20, len(words))))


def test_facts_hold_beyond_one_word_of_lengths() -> None:
    rng = random.Random(9)
    for _ in range(2):
        core = random_program(rng, max_len=66, size=7)
        facts = analyse(core)
        check_facts(core, facts, [rng.choices(core.vocab, k=n) for n in (1, 63, 64, 66)])


def test_resolved_values_are_those_of_every_input() -> None:
    rng = random.Random(4)
    resolved = 0
    for _ in range(150):
        core = random_program(rng, max_len=3)
        facts = analyse(core)
        value_nodes = [i for i, possible in enumerate(facts.possible) if possible is not None]
        reads = tuple(rng.sample(value_nodes, min(3, len(value_nodes))))
        tables = {y: facts.resolve(y, reads) for y in value_nodes}
        tables = {y: table for y, table in tables.items() if table is not None}
        assert set(reads) <= set(tables)
        resolved += len(tables)
        for xs in rng.sample(inputs(core), min(10, len(inputs(core)))):
            rows = evaluate_all(core, xs)
            for i in range(len(xs)):
                at = tuple(core.value_node(r).values.index(rows[r][i]) for r in reads)
                assert facts.possible_tuples(reads)[at]
                assert facts.possible_at(reads, len(xs))[at]
                for y, table in tables.items():
                    assert table.shape == facts.possible_tuples(reads).shape
                    assert core.value_node(y).values[table[at]] == rows[y][i]
                    assert table[at] >= 0
    assert resolved > 500


def test_a_node_that_is_no_function_of_what_is_read_is_not_resolved() -> None:
    core = sort_program(3, 4)
    facts = analyse(core)
    width = next(i for i, node in enumerate(core.nodes) if isinstance(node, Width))
    assert facts.resolve(width, (0, 1)) is None
    assert facts.resolve(0, (1,)) is None


def test_width_sums() -> None:
    """|A or B| = |A| + |B| - |A and B|, and the width is resolved through the sum."""
    eye = np.eye(3, dtype=np.bool_)
    table = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0]], np.bool_)
    core = program_of([Select(0, 0, eye), Select(0, 0, table), And(2, 3), Or(2, 3)], widths_of=(2, 3, 4, 5))
    facts = analyse(core)
    both, either = 8, 9
    terms = ((6, 1), (7, 1), (both, -1))
    assert facts.check_width_sum(either, terms)
    assert not facts.check_width_sum(either, ((6, 1), (7, 1)))
    assert not facts.check_width_sum(either, ((6, 1), (7, 1), (both, 1)))
    assert not facts.check_width_sum(2, terms)
    found = facts.resolve(either, (6, 7, both), {either: terms})
    assert found is not None
    assert facts.resolve(either, (6, 7, both)) is None
    for xs in inputs(core):
        rows = evaluate_all(core, xs)
        for i in range(len(xs)):
            at = tuple(core.value_node(r).values.index(rows[r][i]) for r in (6, 7, both))
            assert core.value_node(either).values[found[at]] == rows[either][i]


# -- particular programs ----------------------------------------------------------------------------------------------


def program_of(
    nodes: Sequence[Node], widths_of: Sequence[int] = (), max_len: int = 4, causal: bool = False
) -> CoreProgram:
    """Selectors over tokens 0, 1, 2, followed by their widths."""
    ranges, words = start((0, 1, 2), max_len, causal)
    ranges.append(Tokens((0, 1, 2)), words)
    ranges.append(Indices(tuple(range(max_len))), indices_range(ranges).words)
    for node in nodes:
        ranges.append(node, None)
    for selector in widths_of:
        found = width_range(ranges, selector)
        ranges.append(Width(selector, found.values), found.words)
    return CoreProgram((0, 1, 2), max_len, causal, tuple(ranges.nodes), len(ranges.nodes) - 1)


def sort_program(vocab: int, max_len: int) -> CoreProgram:
    tokens = tuple(range(vocab))
    ranges, words = start(tokens, max_len, False)
    ranges.append(Tokens(tokens), words)
    ranges.append(Indices(tuple(range(max_len))), indices_range(ranges).words)
    less = ranges.append(Select(0, 0, np.triu(np.ones((vocab, vocab), np.bool_), 1)), None)
    same = ranges.append(Select(0, 0, np.eye(vocab, dtype=np.bool_)), None)
    earlier = ranges.append(Select(1, 1, np.triu(np.ones((max_len, max_len), np.bool_), 1)), None)
    ahead = ranges.append(Or(less, ranges.append(And(same, earlier), None)), None)
    found = width_range(ranges, ahead)
    rank = ranges.append(Width(ahead, found.values), found.words)
    at_rank = ranges.append(Select(rank, 1, np.eye(len(found.values), max_len, dtype=np.bool_)), None)
    found = aggregate_range(ranges, at_rank, 0, NO_DEFAULT)
    output = ranges.append(Aggregate(at_rank, 0, -1, found.values), found.words)
    return CoreProgram(tokens, max_len, False, tuple(ranges.nodes), output, "sort")


def test_sorting_has_all_its_facts() -> None:
    core = sort_program(4, 6)
    facts = analyse(core)
    rank, at_rank, output = core.output - 2, core.output - 1, core.output
    assert facts.permutation(rank)
    assert facts.nonempty(at_rank)
    assert facts.at_most_one(at_rank)
    assert facts.singular(output)
    assert core.value_node(output).values == core.vocab
    possible = facts.possible[rank]
    assert possible is not None
    assert [possible[n].tolist() for n in (1, 3)] == [[True] + [False] * 5, [True] * 3 + [False] * 3]


def test_sorting_thirty_tokens_to_length_fifty_takes_no_time() -> None:
    began = time.process_time()
    core = sort_program(30, 50)
    facts = analyse(core)
    assert facts.singular(core.output)
    assert time.process_time() - began < 1.0


def test_ranks_without_tie_breaking_give_equal_values() -> None:
    """`sort` without ties: the selected keys differ, their values do not."""
    less = np.triu(np.ones((3, 3), np.bool_), 1)
    core = program_of([Select(0, 0, less)], widths_of=(2,))
    ranges = analyse(core).ranges
    selector = ranges.append(Select(3, 1, np.eye(4, dtype=np.bool_)), None)
    found = aggregate_range(ranges, selector, 0, None)
    output = ranges.append(Aggregate(selector, 0, 0, found.values), found.words)
    core = CoreProgram(core.vocab, 4, False, tuple(ranges.nodes), output)
    facts = analyse(core)
    assert found.values == (None, 0, 1, 2)
    assert facts.rank(3) is not None
    assert not facts.permutation(3)
    assert facts.singular(output)
    assert not facts.at_most_one(selector)


def test_ranks_of_a_coarser_order_do_not_make_values_equal() -> None:
    """Ranked by whether the token is 2, the keys of rank 0 may hold 0 and 1: their mean is possible."""
    coarse = np.array([[a < 2 and b == 2 for b in range(3)] for a in range(3)])
    ranges = analyse(program_of([Select(0, 0, coarse)], widths_of=(2,))).ranges
    selector = ranges.append(Select(3, 1, np.eye(4, dtype=np.bool_)), None)
    found = aggregate_range(ranges, selector, 0, None)
    output = ranges.append(Aggregate(selector, 0, 0, found.values), found.words)
    core = CoreProgram((0, 1, 2), 4, False, tuple(ranges.nodes), output)
    facts = analyse(core)
    assert facts.rank(3) is not None
    assert not facts.singular(output)
    check_facts(core, facts, inputs(core))


def test_a_causal_program_has_no_permutations() -> None:
    before = np.triu(np.ones((4, 4), np.bool_), 1)
    core = program_of([Select(1, 1, before)], widths_of=(2,), causal=True)
    assert not analyse(core).permutation(3)
    assert analyse(program_of([Select(1, 1, before)], widths_of=(2,))).permutation(3)


def test_means_are_exact() -> None:
    everything = Select(0, 0, np.ones((3, 3), np.bool_))
    core = program_of([everything])
    found = aggregate_range(analyse(core).ranges, 2, 0, NO_DEFAULT)
    wanted = {Fraction(sum(xs), n) for n in range(1, 5) for xs in itertools.product(range(3), repeat=n)}
    assert found.values == canonical(wanted)


def test_problems_are_collected_with_their_nodes() -> None:
    ranges, words = start(("a", "b"), 3, False)
    positions = indices_range(ranges)
    undefined = Map((1,), np.array([0, 0, -1], np.int32), (5,))
    everything = Select(0, 0, np.ones((2, 2), np.bool_))
    nodes = (
        Tokens(("a", "b")),
        Indices(positions.values),
        undefined,
        Map((2,), np.array([0], np.int32), (1,)),
        everything,
        Aggregate(4, 0, -1, ("a", "b")),
        Select(0, 0, np.zeros((2, 2), np.bool_)),
        Aggregate(6, 1, -1, (0, 1, 2)),
        Width(4, (0, 1)),
    )
    facts = analyse(CoreProgram(("a", "b"), 3, False, nodes, 8))
    reasons = {problem.node: problem.reason for problem in facts.problems}
    assert set(reasons) == {2, 5, 7, 8}
    assert "undefined at (2)" in reasons[2]
    assert "'a' is not a number" in reasons[5]
    assert "may be empty" in reasons[7]
    assert "value 2 is possible but not among" in reasons[8]
    assert facts.possible[3] is None


@pytest.mark.parametrize(
    ("lengths", "alphabets", "message"),
    [(range(3), None, "1..4, got 0..2"), (range(2, 9), None, "got 2..8"), (None, {2: [7]}, "token 7 at length 2")],
)
def test_bad_domains_are_refused(lengths: range | None, alphabets: dict[int, list[Value]] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        analyse(program_of([]), lengths, alphabets)


def test_facts_hold_on_every_input_of_random_programs() -> None:
    rng = random.Random(1)
    seen: dict[str, int] = {}
    for _ in range(200):
        core = random_program(rng)
        facts = analyse(core)
        assert not facts.problems
        words = inputs(core)
        check_facts(core, facts, rng.sample(words, min(25, len(words))))
        for node in core.nodes:
            seen[type(node).__name__] = seen.get(type(node).__name__, 0) + 1
        seen["rank"] = seen.get("rank", 0) + sum(facts.ranges.memo.get(("rank", i)) is not None for i in range(30))
        seen["permutation"] = seen.get("permutation", 0) + sum(
            facts.ranges.memo.get(("permutation", i)) is True for i in range(30)
        )
    kinds = {"Map", "Linear", "Select", "And", "Or", "Not", "Aggregate", "Width", "rank", "permutation"}
    assert all(seen.get(kind, 0) >= 20 for kind in kinds), seen
