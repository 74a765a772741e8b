"""Rule `no_flow`: an edge outside the circuit may carry nothing; the checker's edges are the models' edges."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Valid
from certiformer.proofs.circuit import Circuit, edges_of, nodes_of, outside
from certiformer.proofs.model import read_config

from .checker_models import BOS, OUT, Case, exchange, previous, twice_previous


def faithful(case: Case, edges: list[str] | None = None, nodes: list[str] | None = None) -> Case:
    """The case with the claim that the circuit without these edges (or nodes) does all."""
    config = read_config(case.config)
    every = ["logits", *(name for name, _ in nodes_of(config))]
    circuit = {
        "nodes": [name for name in every if name not in (nodes or [])],
        "edges": [str(edge) for edge in edges_of(config) if str(edge) not in (edges or [])],
        "ablation": "any",
        "granularity": "edge" if nodes is None else "node",
    }
    case.body = {"kind": "faithful", "circuit": circuit, "ablation": "resample"}
    case.proof = {"rule": "no_flow"}
    return case


def test_edges_are_those_of_the_specification() -> None:
    config = read_config(twice_previous().config)
    assert [str(edge) for edge in edges_of(config)] == [
        "input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>",
        "input->a1.h0<q>", "input->a1.h0<k>", "input->a1.h0<v>", "input->logits",
        "a0.h0->a1.h0<q>", "a0.h0->a1.h0<k>", "a0.h0->a1.h0<v>", "a0.h0->logits", "a1.h0->logits",
    ]  # fmt: skip
    config = read_config(exchange().config)
    assert [str(edge) for edge in edges_of(config)] == ["input->m0", "input->logits", "m0->logits"]


@pytest.mark.parametrize(
    "edge", ["a0.h0->a1.h0<q>", "a0.h0->a1.h0<k>", "input->a1.h0<v>", "a0.h0->logits", "input->logits"]
)
def test_an_edge_that_carries_nothing_may_be_left_out(edge: str) -> None:
    case = faithful(twice_previous(), [edge])
    assert isinstance(case.check(), Valid), case.check()


@pytest.mark.parametrize("edge", ["a0.h0->a1.h0<v>", "input->a1.h0<q>", "input->a0.h0<k>", "a1.h0->logits"])
def test_an_edge_that_carries_something_may_not(edge: str) -> None:
    outcome = faithful(twice_previous(), [edge]).check()
    assert isinstance(outcome, Invalid) and edge in outcome.why


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("unembed.W_U", (OUT[0], 0)),
        ("blocks.1.attn.W_O", (0, 1, 0)),
        ("blocks.0.attn.W_O", (0, 3, 10)),
    ],
)
def test_one_weight_opens_an_edge(place: str, key: Any) -> None:
    """A tiny weight is enough: then something flows."""
    quiet = ["input->logits", "a0.h0->logits", "a0.h0->a1.h0<q>"]
    case = faithful(twice_previous(), quiet)
    assert isinstance(case.check(), Valid)
    case.weights[place][key] = 1e-30
    if place == "blocks.1.attn.W_O":
        case.weights["unembed.W_U"][0, 0] = 1e-30
    assert isinstance(case.check(), Invalid)


def test_biases_of_neurons_and_places_count_as_written() -> None:
    case = exchange()
    case.weights["blocks.0.mlp.W_out"][:] = 0
    case.weights["unembed.W_U"][BOS, 0] = 0
    assert isinstance(faithful(case, ["m0->logits"]).check(), Valid)
    case.weights["blocks.0.mlp.b_out"][OUT[0]] = 1
    assert isinstance(faithful(case, ["m0->logits"]).check(), Invalid)
    case = exchange()
    assert isinstance(faithful(case, ["input->logits"]).check(), Valid)
    case.weights["pos_embed.W_pos"][0, OUT[0]] = 1
    assert isinstance(faithful(case, ["input->logits"]).check(), Invalid)


def test_circuits_by_nodes() -> None:
    case = previous()
    assert isinstance(faithful(case, nodes=[]).check(), Valid)
    assert isinstance(faithful(case, nodes=["a0.h0"]).check(), Invalid)
    assert isinstance(faithful(case, nodes=["input"]).check(), Invalid)
    case.weights["blocks.0.attn.W_O"][:] = 0
    assert isinstance(faithful(case, nodes=["a0.h0"]).check(), Valid)
    assert isinstance(faithful(case, nodes=["a0.h0", "logits"]).check(), Invalid), "the read-out must stay"


def test_rules_and_bodies_must_fit() -> None:
    for change in ({"rule": "witness", "inputs": [["a"]]}, {"rule": "no_flow", "extra": 1}, previous().proof):
        case = faithful(previous())
        case.proof = change
        assert isinstance(case.check(), Invalid)
    case = previous()
    case.proof = {"rule": "no_flow"}
    assert isinstance(case.check(), Invalid)
    case = faithful(previous())
    both = {"kind": "and", "parts": [copy.deepcopy(case.body), copy.deepcopy(case.body)]}
    case.body = both
    assert isinstance(case.check(), Valid)
    both["parts"].append({"kind": "computes", "program": case.program})
    assert isinstance(case.check(), Invalid)


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("nodes", ["input", "a9.h0", "logits"]),
        ("nodes", ["logits", "logits"]),
        ("edges", ["input->input"]),
        ("edges", ["logits->input"]),
        ("edges", ["input->a0.h0"]),
        ("edges", [["input", "logits"]]),
        ("ablation", "gaussian"),
        ("ablation", ["zero"]),
        ("granularity", "layer"),
    ],
)
def test_malformed_circuits(key: str, item: Any) -> None:
    case = faithful(previous())
    case.body["circuit"][key] = item
    assert isinstance(case.check(), Invalid)


def test_what_is_outside() -> None:
    config = read_config(twice_previous().config)
    nodes = frozenset({"input", "a1.h0", "logits"})
    left = [str(edge) for edge in outside(Circuit(nodes, frozenset(), True), config)]
    assert left == ["a0.h0->a1.h0<q>", "a0.h0->a1.h0<k>", "a0.h0->a1.h0<v>", "a0.h0->logits"]
    assert len(outside(Circuit(nodes, frozenset(), False), config)) == len(edges_of(config))
    assert not outside(Circuit(nodes, frozenset(map(str, edges_of(config))), False), config)
    assert np.isfinite(len(left))
