"""The checker's program semantics and ranges, against a plain interpreter on every input, with tolerance zero."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from certiformer.proofs.automaton import read_domain
from certiformer.proofs.core import evaluate, read_program
from certiformer.proofs.format import Rejected
from certiformer.proofs.ranges import Ranges
from certiformer.proofs.resolving import Resolver, check_width_share, check_width_sum, first_always_selected

from .checker_models import Undefined, interpret, program, read_value, token_rows, words
from .checker_programs import random_program

COUNT = 200


def full(data: Any) -> dict[int, np.ndarray]:
    return {n: np.ones(len(data["vocab"]), dtype=np.bool_) for n in range(1, data["max_len"] + 1)}


def all_words(data: Any) -> list[list[Any]]:
    vocab = [read_value(v) for v in data["vocab"]]
    return [list(w) for n in range(1, data["max_len"] + 1) for w in itertools.product(vocab, repeat=n)]


def test_the_evaluator_agrees_with_the_interpreter() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(COUNT):
        data = random_program(np.random.default_rng(seed))
        made = read_program(data)
        for word in all_words(data):
            tokens = np.array([[made.vocab.index(t) for t in word]])
            try:
                expected = interpret(data, word)
            except Undefined:
                with pytest.raises(Rejected):
                    evaluate(made, tokens)
                outcomes["undefined"] += 1
                continue
            found = evaluate(made, tokens)
            for number, column in expected.items():
                assert [made.nodes[number].values[v] for v in found[number][0]] == column, (seed, number, word)
            outcomes["defined"] += 1
    assert outcomes["defined"] > 3000 and outcomes["undefined"] > 300


def test_ranges_and_facts_hold_on_every_input() -> None:
    """Accepted programs are defined on every input, take only possible values, and have the facts claimed."""
    seen: Counter[str] = Counter()
    for seed in range(COUNT):
        data = random_program(np.random.default_rng(seed))
        made = read_program(data)
        try:
            ranges = Ranges(made, full(data))
        except Rejected:
            seen["refused"] += 1
            continue
        seen["accepted"] += 1
        kinds = [node["kind"] for node in data["nodes"]]
        seen.update(f"singular {kinds[n]}" for n in ranges.singular)
        seen.update(f"nonempty {kinds[n]}" for n in ranges.nonempty)
        seen.update(["rank"] * len(ranges.rank) + ["permutation"] * len(ranges.permutation))
        for word in all_words(data):
            found = interpret(data, word)  # Undefined would fail the test
            row = len(word) - 1
            index = {n: [made.nodes[n].position()[v] for v in column] for n, column in found.items()}
            for number, column in index.items():
                assert ranges.possible[number][row][column].all(), (seed, number, word)
            for number in (n for n, kind in enumerate(kinds) if kind in ("width", "aggregate")):
                selector = data["nodes"][number]["selector"]
                chosen = selected(data, word, selector)
                bounds = ranges.bounds(selector)
                if bounds is not None:
                    for i, keys in enumerate(chosen):
                        match = np.ones(bounds.queries.size, dtype=np.bool_)
                        for node, options in bounds.queries.columns.items():
                            match &= options == index[node][i]
                        (query,) = np.flatnonzero(match)
                        assert bounds.lo[row, query] <= len(keys) <= bounds.hi[row, query], (seed, number, word)
                if number in ranges.nonempty:
                    assert all(chosen), (seed, number, word)
                if number in ranges.singular:
                    values = found[data["nodes"][number]["value"]]
                    assert all(len({values[j] for j in keys}) <= 1 for keys in chosen), (seed, number, word)
                if number in ranges.permutation:
                    assert sorted(found[number]) == list(range(len(word))), (seed, number, word)
                if number in ranges.rank:
                    rank = ranges.rank[number]
                    phi = []
                    for i in range(len(word)):
                        match = np.ones(rank.joint.size, dtype=np.bool_)
                        for node, options in rank.joint.columns.items():
                            match &= options == index[node][i]
                        phi.append(int(rank.phi[np.flatnonzero(match)[0]]))
                    for i, j in itertools.combinations(range(len(word)), 2):
                        assert found[number][i] != found[number][j] or phi[i] == phi[j], (seed, number, word)
    assert seen["accepted"] > COUNT / 4 and seen["refused"] > 20
    for fact in ("singular aggregate", "nonempty aggregate", "rank", "permutation"):
        assert seen[fact] >= 3, (fact, seen)


def selected(data: Any, word: list[Any], selector: int) -> list[list[int]]:
    """The visible selected places at each place: from the width of that selector."""
    n, result = len(word), []
    found = interpret(data, word)

    def at(number: int, j: int, i: int) -> bool:
        node = data["nodes"][number]
        if node["kind"] == "select":
            k, q = (
                [read_value(v) for v in data["nodes"][node[side]]["values"]].index(found[node[side]][place])
                for side, place in (("keys", j), ("queries", i))
            )
            return bool(node["table"][k][q] == "1")
        if node["kind"] == "not":
            return not at(node["arg"], j, i)
        both = all if node["kind"] == "and" else any
        return both((at(node["left"], j, i), at(node["right"], j, i)))

    for i in range(n):
        visible = range(i + 1) if data["causal"] else range(n)
        result.append([j for j in visible if at(selector, j, i)])
    return result


def test_what_is_resolved_is_so_on_every_input() -> None:
    """A node resolved from a tuple of others has that value wherever the tuple occurs; such tuples are kept."""
    resolved = 0
    for seed in range(COUNT // 2):
        rng = np.random.default_rng(seed)
        data = random_program(rng)
        made = read_program(data)
        try:
            ranges = Ranges(made, full(data))
        except Rejected:
            continue
        resolver = Resolver(ranges, {})
        nodes = [n for n, node in enumerate(data["nodes"]) if "values" in node]
        reads = sorted({int(n) for n in rng.choice(nodes, size=int(rng.integers(1, 3)))})
        joint = resolver.tuples(reads)
        for target in nodes:
            try:
                index, mask = resolver.resolve(target, joint)
            except Rejected:
                continue
            resolved += target not in reads
            for word in all_words(data):
                found = interpret(data, word)
                for i in range(len(word)):
                    match = np.ones(joint.size, dtype=np.bool_)
                    for node in reads:
                        match &= joint.columns[node] == made.nodes[node].position()[found[node][i]]
                    (place,) = np.flatnonzero(match)
                    assert made.nodes[target].values[index[place]] == found[target][i] and index[place] >= 0
                    assert mask[len(word) - 1, place]
    assert resolved > 20


def test_width_sums() -> None:
    """[k < q or k = q] = [k < q] + [k = q], but not without one of them; overlapping terms need their difference."""
    tables = [token_rows(f) for f in (lambda k, q: k <= q, lambda k, q: k < q, lambda k, q: k == q, lambda k, q: True)]
    more: list[Any] = []
    for number, table in enumerate(tables):
        more.append({"kind": "select", "keys": 0, "queries": 0, "table": table})
        more.append({"kind": "width", "selector": 2 + 2 * number, "values": [0, 1, 2, 3]})
    data = program(0, *more)
    ranges = Ranges(read_program(data), full(data))
    check_width_sum(ranges, 3, [(5, 1), (7, 1)])
    check_width_sum(ranges, 5, [(3, 1), (7, -1)])
    check_width_sum(ranges, 3, [(3, 1)])
    for wrong in ([(5, 1)], [(5, 1), (7, 2)], [(9, 1)], [], [(5, 1), (7, 1), (7, 1)], [(0, 1)]):
        with pytest.raises(Rejected):
            check_width_sum(ranges, 3, wrong)


def share_program() -> Any:
    """w (3) counts equal tokens; c (6) these and place 0; m (8): the share of place 0 among the equal tokens."""
    shares = [0, {"num": 1, "den": 3}, {"num": 1, "den": 2}, {"num": 2, "den": 3}, 1]
    return program(
        3,
        {"kind": "select", "keys": 0, "queries": 0, "table": token_rows(lambda k, q: k == q)},
        {"kind": "width", "selector": 2, "values": [0, 1, 2, 3]},
        {"kind": "select", "keys": 1, "queries": 1, "table": ["111", "000", "000"]},
        {"kind": "or", "left": 2, "right": 4},
        {"kind": "width", "selector": 5, "values": [0, 1, 2, 3]},
        {"kind": "map", "args": [1], "table": [1, 0, 0], "values": [False, True]},
        {"kind": "aggregate", "selector": 2, "value": 7, "default": -1, "values": shares},
    )


def test_width_shares() -> None:
    data = share_program()
    ranges = Ranges(read_program(data), full(data))
    check_width_share(ranges, 3, 6, 8)
    resolver = Resolver(ranges, {}, {3: (6, 8)})
    joint = resolver.tuples([6, 8])
    index, _ = resolver.resolve(3, joint)
    nodes = ranges.program.nodes
    for word in all_words(data):
        found = interpret(data, word)
        for i in range(len(word)):
            match = joint.columns[6] == nodes[6].position()[found[6][i]]
            match &= joint.columns[8] == nodes[8].position()[found[8][i]]
            (place,) = np.flatnonzero(match)
            assert nodes[3].values[index[place]] == found[3][i] and index[place] >= 0
    for wrong in ((6, 6, 8), (3, 3, 8), (3, 6, 6), (8, 6, 8), (3, 6, 7)):
        with pytest.raises(Rejected):
            check_width_share(ranges, *wrong)
    assert first_always_selected(ranges, 5) and not first_always_selected(ranges, 2)


@pytest.mark.parametrize(
    ("flaw", "path", "item"),
    [
        ("c does not count place 0", (4, "table"), ["000", "000", "000"]),
        ("c counts place 1", (4, "table"), ["000", "111", "000"]),
        ("c counts place 0 for some queries", (4, "table"), ["110", "000", "000"]),
        ("c counts by token", (4, "keys"), 0),
        ("c counts something else as well", (5, "left"), 4),
        ("m is the share of place 1", (7, "table"), [0, 1, 0]),
        ("m is the share of two places", (7, "table"), [1, 1, 0]),
        ("m marks tokens", (7, "args"), [0]),
        ("m is over another selector", (8, "selector"), 5),
        ("m may be empty", (2, "table"), ["000", "000", "000"]),
    ],
)
def test_wrong_width_shares(flaw: str, path: tuple[int, str], item: Any) -> None:
    data = share_program()
    data["nodes"][path[0]][path[1]] = item
    if flaw == "m may be empty":
        data["nodes"][8]["default"] = 0
    ranges = Ranges(read_program(data), full(data))
    with pytest.raises(Rejected):
        check_width_share(ranges, 3, 6, 8)


DFAS: list[Any] = [
    {"kind": "product", "vocab": ["a", "b"], "lengths": [1, 4]},
    {
        "kind": "dfa",
        "vocab": ["(", ")"],
        "lengths": [1, 6],
        "start": 0,
        "accept": [0],
        "delta": [[1, -1], [2, 0], [-1, 1]],
    },
    {
        "kind": "dfa",
        "vocab": ["a", "b", "c"],
        "lengths": [2, 4],
        "start": 0,
        "accept": [1],
        "delta": [[0, 1, 0], [1, -1, 1]],
    },
    {"kind": "dfa", "vocab": ["a"], "lengths": [1, 3], "start": 0, "accept": [1], "delta": [[0], [1]]},
]


@pytest.mark.parametrize("data", DFAS)
def test_domains(data: Any) -> None:
    domain = read_domain(data)
    expected = list(words(data))
    assert domain.size() == len(expected)
    alphabets = domain.alphabets()
    for n in range(domain.lo, domain.hi + 1):
        here = [word for word in expected if len(word) == n]
        got = [[domain.vocab[t] for t in row] for batch in domain.words(n, 3) for row in batch]
        assert sorted(got) == sorted(here)
        assert (n in alphabets) == bool(here)
        if here:
            assert {domain.vocab[t] for t in np.flatnonzero(alphabets[n])} == {t for word in here for t in word}


def test_a_large_domain_has_an_exact_size() -> None:
    vocab = list(range(30))
    domain = read_domain({"kind": "product", "vocab": vocab, "lengths": [1, 50]})
    assert domain.size() == sum(30**n for n in range(1, 51))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "regex"},
        {"vocab": []},
        {"vocab": ["a", "a", "b"]},
        {"vocab": [1, True, 2]},
        {"lengths": [1, 10**9]},
        {"lengths": [1.0, 2]},
        {"start": 2},
        {"accept": [0, 0]},
        {"delta": [[1, 0, 0], [0, 1]]},
        {"delta": []},
        {"extra": 1},
    ],
)
def test_wrong_domains_are_rejected(change: Any) -> None:
    good = DFAS[2]
    read_domain(good)
    with pytest.raises(Rejected):
        read_domain({**good, **change})
