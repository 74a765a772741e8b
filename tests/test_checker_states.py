"""The abstract residual stream encloses the real one: on every input, at every layer, also far from compiled weights.

The claimed enclosures are compared with rigorous ones of the model's residual stream. Nothing is tolerated: a claim is
refuted as soon as the two do not meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from certiformer.proofs import composition
from certiformer.proofs.balls import Ball, point
from certiformer.proofs.exact import Exact
from certiformer.proofs.model import parse_model
from certiformer.proofs.network import Edits, Network
from certiformer.proofs.state import State

from .checker_models import CASES, VOCAB, Case, interpret, words


def recorded(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, State]]:
    """The states after each layer that the checker reaches, whatever its verdict."""
    states: list[tuple[Any, State]] = []
    original = composition._check_layer

    def watched(context: Any, state: State, layer: int, steps: Any) -> State:
        after = original(context, state, layer, steps)
        states.append((context, after))
        return after

    with monkeypatch.context() as patch:
        patch.setattr(composition, "_check_layer", watched)
        case.check()
    return states


def residuals(case: Case, tokens: np.ndarray) -> list[Ball]:
    """Enclosures of the residual stream after each layer, [batch, pos, d_model]."""
    network = Network(parse_model(case.model()))
    layers = network.config.layers
    nodes = [[f"a{i}.h{head}" for head in range(x.n_heads)] + [f"m{i}"] * bool(x.d_mlp) for i, x in enumerate(layers)]
    kept = {("written", node): point(0.0) for node in ["input", *(node for row in nodes for node in row)]}
    network.logits(tokens, Edits(), kept)
    x = kept["written", "input"]
    found = []
    for number, (layer, row) in enumerate(zip(layers, nodes, strict=True)):
        for node in row:
            x = x + kept["written", node]
        x = x + point(network.weights[f"blocks.{number}.attn.b_O"]) if layer.n_heads else x
        found.append(x)
    return found


def apart(claim: Exact, radius: np.ndarray, ball: Ball) -> np.ndarray:
    with np.errstate(all="ignore"):
        return (ball.low() > np.nextafter(claim.upper() + radius, np.inf)) | (
            ball.high() < np.nextafter(claim.lower() - radius, -np.inf)
        )


def compare(case: Case, states: list[tuple[Any, State]]) -> int:
    compared = 0
    by_length: dict[int, list[Any]] = {}
    for word in words(case.domain):
        by_length.setdefault(len(word), []).append(word)
    program = {**case.program, "nodes": case.program["nodes"] + case.proof["auxiliary"]}
    for n, batch in by_length.items():
        tokens = np.array([[len(VOCAB), *(VOCAB.index(t) for t in word)] for word in batch])
        values = [interpret(program, word) for word in batch]
        for (context, state), ball in zip(states, residuals(case, tokens), strict=False):
            nodes = context.program.nodes
            claim = Exact(np.broadcast_to(state.const.data, (len(batch), n, len(state.eps))), state.const.exp)
            for node, table in state.encodings.items():
                position = nodes[node].position()
                claim = claim + table[np.array([[position[v] for v in found[node]] for found in values])]
            left = np.broadcast_to(state.eps, claim.shape)
            for node, rows in state.relief.items():
                position = nodes[node].position()
                left = left - rows[np.array([[position[v] for v in found[node]] for found in values])]
            assert not apart(claim, np.maximum(left, 0.0), ball[:, 1:]).any()
            assert not apart(state.bos, state.bosr, ball[:, 0]).any()
            compared += 1
    return compared


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-2, 0.5])
def test_states_enclose_the_residual_stream(name: str, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    compared = 0
    for _ in range(1 if size == 0 else 4):
        case = CASES[name]()
        for key, array in case.weights.items():
            if size:
                case.weights[key] = (array + size * rng.normal(size=array.shape)).astype(np.float32)
        compared += compare(case, recorded(case, monkeypatch))
    assert compared or name == "echo"


def test_a_state_that_is_too_tight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["previous"]()
    case.weights["blocks.0.attn.W_V"][0, 0, 1] = 0.1
    states = recorded(case, monkeypatch)
    assert compare(case, states)
    context, state = states[0]
    tight = State(state.encodings, state.const, state.eps * 0.9, state.bos, state.bosr)
    with pytest.raises(AssertionError):
        compare(case, [(context, tight)])
