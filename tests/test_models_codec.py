"""Values, codecs and circuits."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from fractions import Fraction

import numpy as np
import pytest
import torch

from certiformer.models.circuits import Circuit, all_edges, all_nodes, full_circuit, parse_edge
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.errors import InputError
from certiformer.models.values import Value, canonical_vocab, value_from_json, value_to_json

LETTERS = Codec(("a", "b", 3), True, "categorical", (None, "x", Fraction(1, 2), True), max_len=4)
SCALAR = Codec((0, 1), False, "scalar", (0, 1, Fraction(1, 2)), (0.0, 1.0, 0.5))


def test_encode() -> None:
    assert LETTERS.encode([["a", 3], ["b", "b"]]).tolist() == [[3, 0, 2], [3, 1, 1]]
    assert LETTERS.encode([[np.int64(3)]]).tolist() == [[3, 2]]
    assert SCALAR.encode([[True, 0]]).tolist() == [[1, 0]]
    assert LETTERS.decode_ids(LETTERS.encode([["a", 3]])) == [["a", 3]]
    groups = {tuple(where): ids.tolist() for where, ids in LETTERS.batches([["a", "b"], ["b"], [3, 3]])}
    assert groups == {(1,): [[3, 1]], (0, 2): [[3, 0, 1], [3, 2, 2]]}
    assert LETTERS.with_bos(torch.tensor([[0, 1]])).tolist() == [[3, 0, 1]]


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (["a", "z"], "unknown token 'z' at position 1; the vocabulary has 3: 'a', 'b', 3"),
        ([3.0], "unknown token 3.0 at position 0"),
        ([["a"]], r"unknown token \['a'\]"),
        ([None], "unknown token None"),
        ([], "at least 1 token"),
        (["a"] * 5, "at most 4 tokens, got 5"),
        (7, "list of tokens"),
    ],
)
def test_encode_refuses(sequence: list[Value], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LETTERS.encode([sequence])


def test_encode_refuses_batches() -> None:
    for sequences in ([], "ab", [["a"], ["a", "b"]]):
        with pytest.raises(InputError):
            LETTERS.encode(sequences)  # type: ignore[arg-type]


def test_categorical_decoding() -> None:
    logits = torch.tensor([[[9.0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 2]]])
    assert LETTERS.decode_indices(logits).tolist() == [[1, 3]]
    assert LETTERS.decode(logits) == [["x", True]]
    assert LETTERS.decode(logits[:, 2]) == [[True]]
    with pytest.raises(InputError, match="NaN"):
        LETTERS.decode(logits * torch.nan)
    with pytest.raises(InputError, match="decodes 4 logits, got 3"):
        LETTERS.decode(logits[..., :3])
    with pytest.raises(InputError, match="must be"):
        LETTERS.decode(logits[0, 0])


def test_scalar_decoding_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randperm(40, generator=generator).double() * 0.37 - 5
    codec = Codec((0,), False, "scalar", tuple(range(40)), tuple(points.tolist()))
    x = torch.cat([torch.randn(500, generator=generator) * 9, torch.tensor([-1e4, 1e4])])
    expected = (x.double()[:, None] - points).abs().argmin(1)
    assert torch.equal(codec.decode_indices(x.view(1, -1, 1))[0], expected)
    assert torch.equal(codec.decode_indices(torch.stack([x, -x], -1)[None])[0], expected)
    assert SCALAR.decode(torch.tensor([[[0.25], [0.75], [-3.0], [0.3]]])) == [[0, 1, 0, Fraction(1, 2)]]


def test_codec_json() -> None:
    for codec in (LETTERS, SCALAR):
        again = Codec.from_json(json.loads(json.dumps(codec.to_json())))
        assert again == codec and list(map(type, again.outputs)) == list(map(type, codec.outputs))
    for change in ({"kind": "soft"}, {"vocab": "ab"}, {"points": [1.0]}, {"bos": 1}, {"vocab": [{"num": 1}]}, {"x": 1}):
        with pytest.raises(InputError):
            Codec.from_json({**LETTERS.to_json(), **change})
    for wrong in ([0.0, float("nan"), 1.0], [0.0, 0.0, 1.0], [0.0, 1.0], [0.0, "1", 2.0]):
        with pytest.raises(InputError):
            Codec.from_json({**SCALAR.to_json(), "points": wrong})
    with pytest.raises(InputError):
        Codec.from_json([])
    with pytest.raises(InputError, match="more than once"):
        Codec((1, True), False, "categorical", (1,))


def test_values() -> None:
    for value in (None, True, 3, -(10**30), Fraction(-2, 3), "", "é"):
        again = value_from_json(json.loads(json.dumps(value_to_json(value))))
        assert again == value and type(again) is type(value)
    for wrong in (1.5, [], {"num": 2, "den": 4}, {"num": 1, "den": 0}, {"num": 1, "den": True}, {"a": 1}):
        with pytest.raises(InputError):
            value_from_json(wrong)
    mixed = canonical_vocab(["b", 2, None, "a", Fraction(1, 2)])
    assert mixed == (None, Fraction(1, 2), 2, "a", "b")
    assert canonical_vocab("cab") == ("a", "b", "c") and canonical_vocab(range(3)) == (0, 1, 2)
    for bad, message in (
        ([1, 1.5], "write an int or a Fraction"),
        ([0, False], "more than once"),
        ([], "1 to"),
        (itertools.count(), "finite"),
        (range(10**12), "more"),
        (range(10**30), "more"),
        (5, "finite"),
        ([[1]], "list"),
    ):
        with pytest.raises(InputError, match=message):
            canonical_vocab(bad)


# Circuits

CONFIG = TransformerConfig(4, 3, 3, 2, (LayerConfig(2, 2, 3), LayerConfig(1, 2, 0), LayerConfig(0, 0, 3)))


def test_names_are_eap_ig_s() -> None:
    assert all_nodes(CONFIG) == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "m2", "logits")
    edges = set(map(str, all_edges(CONFIG)))
    assert {"input->a0.h1<q>", "a0.h1->m0", "m0->a1.h0<v>", "a1.h0->m2", "m2->logits", "input->logits"} <= edges
    assert not edges & {"a0.h0->a0.h1<q>", "m0->a0.h0<k>", "m0->m0", "a0.h0->a1.h0"}
    # 2 heads and m0 in layer 0; one head that reads 4 writers thrice; m2 reads 5; logits reads 6
    assert len(edges) == 2 * 3 + 3 + 3 * 4 + 5 + 6
    for name in edges:
        assert str(parse_edge(name)) == name


@pytest.mark.parametrize("name", ["a0.h0", "a0.h0->a1.h0", "a0.h0->m1<q>", "->m0", "a->b<x>", "", 3])
def test_wrong_edge_names(name: str) -> None:
    with pytest.raises(InputError):
        Circuit(frozenset({"input", "logits", "a0.h0", "a1.h0", "m1"}), frozenset({name}))


def test_circuit_operations() -> None:
    full = full_circuit(CONFIG)
    full.validate(CONFIG)
    some = Circuit.from_edges(["input->a0.h0<v>", "a0.h0->logits", "input->a1.h0<q>"], "mean")
    assert some.nodes == {"input", "a0.h0", "a1.h0", "logits"}
    assert some.complement(CONFIG).edges == full.edges - some.edges
    assert some.complement(CONFIG).ablation == "mean"
    assert some.pruned().edges == {"input->a0.h0<v>", "a0.h0->logits"} and "a1.h0" not in some.pruned().nodes
    assert some.without(["a0.h0->logits"]).pruned().edges == frozenset()
    nodes = Circuit.from_nodes(CONFIG, ["m0", "a1.h0"], "zero")
    assert nodes.complement(CONFIG).nodes == {"input", "a0.h0", "a0.h1", "m2", "logits"}
    assert "m0->a1.h0<k>" in nodes.edges
    for circuit in (full, some, nodes):
        assert Circuit.from_json(json.loads(json.dumps(circuit.to_json()))) == circuit
    with pytest.raises(InputError, match="a0.h0->m0"):
        some.without(["a0.h0->m0"])
    with pytest.raises(InputError, match="such nodes or edges: m1, input->m1"):
        Circuit.from_edges(["input->m1"]).validate(CONFIG)
    with pytest.raises(InputError, match="m7, m8"):
        Circuit(frozenset({"m7", "m8"}), frozenset()).validate(CONFIG)
    with pytest.raises(InputError, match="not among the nodes"):
        Circuit(frozenset({"input"}), frozenset({"input->m0"}))
    for change in ({"ablation": "none"}, {"granularity": "head"}, {"nodes": ["x"]}, {"nodes": "m0"}, {"edges": [3]}):
        with pytest.raises(InputError):
            Circuit.from_json({**some.to_json(), **change})


def test_pictures() -> None:
    some = Circuit.from_edges(["input->a0.h0<v>", "input->a0.h0<q>", "a0.h0->m0", "m0->logits"])
    text = some.to_text()
    assert text.splitlines()[0] == "circuit: 4 nodes, 4 edges, any ablation by edge"
    assert "a0.h0   q: input   v: input" in text and "m0      a0.h0" in text
    graph = some.to_networkx()
    assert list(graph) == ["input", "a0.h0", "m0", "logits"] and graph.number_of_edges() == 4
    assert '"input" -> "a0.h0" [label="q"];' in some.to_dot()
    assert len(ET.fromstring(some.to_svg())) == 4 + 4 * 2
