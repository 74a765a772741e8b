"""The two evaluators of core programs against each other, and their definitions by hand."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

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
)
from certiformer.compiler.core_evaluator import UNDEFINED, evaluate_all, evaluate_batch, evaluate_core
from certiformer.compiler.core_json import core_from_json, core_to_json
from certiformer.compiler.lower import lower
from certiformer.compiler.programs import LIBRARY
from certiformer.models.errors import InputError


def core_of(*nodes: Node, vocab: tuple[Value, ...] = (1, 2, 4), max_len: int = 4, causal: bool = False) -> CoreProgram:
    """tokens, indices, `nodes`; the last is the output."""
    first: tuple[Node, ...] = (Tokens(vocab), Indices(tuple(range(max_len))))
    return CoreProgram(vocab, max_len, causal, first + nodes, len(nodes) + 1)


ALL = np.ones((3, 3), np.bool_)
MEANS: tuple[Value, ...] = (1, Fraction(4, 3), Fraction(3, 2), 2, Fraction(7, 3), Fraction(5, 2), 3, 4)


def test_a_mean_is_exact_and_a_common_value_stays_itself() -> None:
    core = core_of(Select(0, 0, ALL), Aggregate(2, 0, -1, MEANS))
    assert evaluate_core(core, [1, 2, 4]) == [Fraction(7, 3)] * 3
    assert evaluate_core(core, [2, 2]) == [2, 2]
    words = core_of(Select(0, 0, np.ones((2, 2), np.bool_)), Aggregate(2, 0, -1, ("a", "b")), vocab=("a", "b"))
    assert evaluate_core(words, ["a", "a"]) == ["a", "a"]
    assert evaluate_all(words, ["a", "b"])[3] == [UNDEFINED, UNDEFINED]
    with pytest.raises(InputError, match=r"undefined at position 0 of \['a', 'b'\]"):
        evaluate_core(words, ["a", "b"])
    assert evaluate_batch(words, [[0, 0], [0, 1]])[3].tolist() == [[0, 0], [-1, -1]]


def test_a_causal_query_sees_itself_and_what_is_before_it_also_under_not() -> None:
    nothing = Select(0, 0, ~ALL)
    core = core_of(nothing, Not(2), Width(3, (0, 1, 2, 3, 4)), causal=True)
    assert evaluate_core(core, [1, 1, 1]) == [1, 2, 3]
    assert evaluate_batch(core, [[0, 0, 0]])[4].tolist() == [[1, 2, 3]]


def test_a_linear_combination_is_none_where_an_argument_is() -> None:
    half = Map((0,), np.array([0, 1, 2], np.int32), (None, Fraction(1, 2), 3))
    core = core_of(
        half, Linear((2, 1), (Fraction(2), Fraction(-1)), Fraction(1, 3), (None, Fraction(4, 3), Fraction(16, 3)))
    )
    assert evaluate_core(core, [2, 1]) == [Fraction(4, 3), None]
    assert evaluate_batch(core, [[1, 0]])[3].tolist() == [[1, 0]]


def test_an_undefined_map_spreads_to_all_that_reads_it() -> None:
    partial = Map((0,), np.array([0, -1, 1], np.int32), (0, 1))
    after = Map((2,), np.array([1, 0], np.int32), (0, 1))
    core = core_of(partial, after, Select(0, 0, ALL), Aggregate(4, 2, -1, (0, Fraction(1, 2), 1)))
    rows = evaluate_all(core, [1, 2])
    assert rows[2] == [0, UNDEFINED]
    assert rows[3] == [1, UNDEFINED]
    assert rows[5] == [UNDEFINED, UNDEFINED]
    batch = evaluate_batch(core, [[0, 1]], nodes=(2, 3, 5))
    assert {node: row.tolist() for node, row in batch.items()} == {2: [[0, -1]], 3: [[1, -1]], 5: [[-1, -1]]}


def test_means_with_denominators_beyond_64_bits() -> None:
    primes = [Fraction(1, p) for p in (999983, 999979, 999961, 999959)]
    values = tuple(sorted(primes))
    spread = Map((1,), np.arange(4, dtype=np.int32), values)
    means = tuple(sorted({sum(values[:n], Fraction(0)) / n for n in range(1, 5)}))
    core = core_of(spread, Select(0, 0, ALL), Aggregate(3, 2, -1, means))
    for n in range(1, 5):
        wanted = sum(values[:n], Fraction(0)) / n
        assert evaluate_core(core, [1] * n) == [wanted] * n
        assert evaluate_batch(core, [[0] * n])[4].tolist() == [[means.index(wanted)] * n]


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_batches_agree_with_the_definitions(name: str) -> None:
    entry = LIBRARY[name]
    core = lower(entry.build(), entry.vocab(3), 4, causal=entry.causal)
    rng = random.Random(0)
    nodes = range(len(core.nodes))
    for n in (1, 3, 4):
        ids = np.array([[rng.randrange(len(core.vocab)) for _ in range(n)] for _ in range(6)])
        batch = evaluate_batch(core, ids, nodes)
        for row, xs in enumerate([[core.vocab[i] for i in line] for line in ids.tolist()]):
            for index, found in enumerate(evaluate_all(core, xs)):
                if isinstance(found, np.ndarray):
                    assert np.array_equal(found, batch[index][row])
                else:
                    assert [core.value_node(index).values[k] for k in batch[index][row]] == found


@pytest.mark.parametrize(
    ("xs", "message"),
    [([], "length 0"), ([1] * 5, "length 5"), ([1, 3], "token 3 at position 1 is not in the vocabulary")],
)
def test_bad_sequences_are_refused(xs: list[Value], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_core(core_of(), xs)


@pytest.mark.parametrize("ids", [[0, 1], [[0, 3]], [[-1]], [[0] * 5], [[]]])
def test_bad_batches_are_refused(ids: object) -> None:
    with pytest.raises(InputError, match="token ids must"):
        evaluate_batch(core_of(), np.array(ids))


# -- JSON -------------------------------------------------------------------------------------------------------------


def example() -> CoreProgram:
    return core_of(
        Map((0, 1), np.arange(12, dtype=np.int32).reshape(3, 4) % 4 - 1, (None, Fraction(-1, 2), "x"), "map"),
        Linear((0, 1), (Fraction(1), Fraction(1, 3)), Fraction(0), (1, Fraction(7, 3))),
        Select(0, 1, np.eye(3, 4, dtype=np.bool_), "select"),
        Not(4),
        And(4, 5),
        Or(4, 6),
        Width(7, (0, 1, 2)),
        Aggregate(7, 0, 0, (None, True, 2)),
    )


def test_json_and_back_is_the_same_program() -> None:
    data = core_to_json(example())
    assert core_to_json(core_from_json(data)) == data
    again = core_from_json(data)
    for node, other in zip(example().nodes, again.nodes, strict=True):
        assert type(node) is type(other)
        for field, content in vars(node).items():
            if isinstance(content, np.ndarray):
                assert np.array_equal(content, vars(other)[field])
                assert content.dtype == vars(other)[field].dtype
            else:
                assert content == vars(other)[field]
    assert data["nodes"][4] == {
        "kind": "select",
        "keys": 0,
        "queries": 1,
        "table": ["1000", "0100", "0010"],
        "name": "select",
    }
    assert "name" not in core_to_json(example(), names=False)["nodes"][4]
    assert type(again.value_node(9).values[1]) is bool


BAD: list[tuple[str, object, str]] = [
    ("max_len", 0, "max_len must be an integer"),
    ("max_len", True, "max_len"),
    ("max_len", 5, "values of indices"),
    ("causal", 1, "causal"),
    ("vocab", [2, 1, 4], "canonical order"),
    ("vocab", [1, 2], "values of tokens must be the vocabulary"),
    ("output", 4, "node 4 is a selector"),
    ("output", 99, "output"),
    ("nodes", [], "first two nodes"),
    ("name", None, "name"),
]
BAD_NODES: list[tuple[int, str, object, str]] = [
    (0, "kind", "indices", "cannot stand here"),
    (2, "kind", "exec", "the kind must be one of"),
    (2, "kind", None, "the kind must be one of"),
    (2, "args", [0, 2], "a reference must be an integer in 0..1"),
    (2, "args", [0], "table must have 3 entries"),
    (2, "table", [0.0] * 12, "table entry"),
    (2, "table", [3] * 12, "table entry"),
    (2, "table", [-2] * 12, "table entry"),
    (2, "values", [], "at least one value"),
    (2, "values", [None, None, "x"], "canonical order"),
    (2, "values", [None, 0.5, "x"], "float"),
    (2, "values", [None, {"num": 2, "den": 4}, "x"], "lowest terms"),
    (2, "extra", 1, "fields"),
    (3, "coefficients", [1], "as many coefficients"),
    (3, "coefficients", [1, True], "must be a number"),
    (3, "constant", "1", "must be a number"),
    (4, "table", ["1000", "0100"], "3 strings of 4"),
    (4, "table", ["1000", "0100", "002x"], "3 strings of 4"),
    (4, "keys", 4, "reference"),
    (5, "arg", 1, "no selector"),
    (6, "left", 3, "no selector"),
    (9, "default", 3, "default"),
    (9, "value", 4, "a selector"),
    (9, "selector", 0, "no selector"),
]


@pytest.mark.parametrize(("field", "content", "message"), BAD)
def test_a_program_that_is_not_well_formed_is_refused(field: str, content: object, message: str) -> None:
    data = core_to_json(example())
    data[field] = content
    with pytest.raises(InputError, match=message):
        core_from_json(data)


@pytest.mark.parametrize(("node", "field", "content", "message"), BAD_NODES)
def test_a_node_that_is_not_well_formed_is_refused(node: int, field: str, content: object, message: str) -> None:
    data = core_to_json(example())
    nodes = data["nodes"]
    assert isinstance(nodes, list)
    nodes[node] = nodes[node] | {field: content}
    with pytest.raises(InputError, match=message):
        core_from_json(data)


@pytest.mark.parametrize("data", [None, 3, [], {}, {"vocab": [1]}, "program"])
def test_what_is_no_program_is_refused(data: object) -> None:
    with pytest.raises(InputError):
        core_from_json(data)
