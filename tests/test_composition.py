"""Composition against enumeration, tolerance zero: no certificate for a false claim, no state outside bounds."""

from __future__ import annotations

from collections import Counter
from functools import cache

import flint
import numpy as np
import numpy.typing as npt
import pytest
import torch

from certiformer.compiler import programs
from certiformer.compiler.analysis import analyse
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core_evaluator import BatchEvaluator
from certiformer.compiler.lower import CompileError
from certiformer.verifier.abstract_state import Context, State
from certiformer.verifier.balls import enclose
from certiformer.verifier.compose import prove_by_composition
from certiformer.verifier.composition import Composition
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.rounding import Enclosure

from .perturbations import perturbed
from .planted import Parts, proves
from .random_programs import case
from .rounding_cases import flint_precision

LIBRARY = (
    "identity reverse sort sort_unique sort_freq hist double_hist length frac_prevs majority mean "
    "shuffle_dyck1 pair_balance induction shift_by detect_pattern nary_ratio rank count_runs window_mean "
    "running_mean maximum second_maximum median parity add_binary compact is_first_occurrence "
    "most_frequent dyck1_bounded previous_occurrence equals_previous selector_and is_palindrome "
    "deduplicate"
).split()
RANDOM = range(40)


@cache
def compiled(name: str, bos: bool = True) -> Compiled | None:
    """A program of the library at vocabulary 3, length 3, or a random one; None if it is refused."""
    try:
        if name.startswith("random"):
            one = case(int(name.removeprefix("random")))
            return compile(one.program, vocab=one.vocab, max_len=3, causal=one.causal, bos=bos)
        entry = programs.LIBRARY[name]
        length = min(3, entry.max_len or 3)
        return compile(entry.build(), vocab=entry.vocab(3), max_len=length, causal=entry.causal, bos=bos)
    except CompileError:
        return None


Ids = npt.NDArray[np.int64]
NAMES = [n for n in LIBRARY if n in programs.LIBRARY] + [f"random{seed}" for seed in RANDOM]


@pytest.mark.parametrize("block", range(5))
def test_a_certificate_is_never_about_a_false_claim(block: int) -> None:
    """Changed weights, explanations and programs: whatever is certified holds on every input."""
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    for name in NAMES[block::5]:
        found = compiled(name)
        if found is None or sum(layer.d_mlp for layer in found.model.config.layers) > 200:
            continue
        original = Parts.of(found)
        assert proves(prove_by_composition, original), name
        for seed, (change, parts) in enumerate(perturbed(original, 7 * block, 16)):
            certified = proves(prove_by_composition, parts)
            outcomes["certified" if certified else "not"] += 1
            if certified:
                tally = enumerate_inputs(parts.claim(), parts.inputs(), 60)
                assert not (tally.false or tally.undefined), f"{name}, change {seed} ({change}): false, but certified"
    assert outcomes["certified"] > 30 and outcomes["not"] > 60, outcomes


# --- the abstract state


class Recording(Composition):
    """A composition that keeps the state after every half layer."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.states: dict[str, State] = {}

    def _keep(self, site: str, state: State) -> None:
        self.states[site] = State(
            state.const.copy(),
            {n: m.copy() for n, m in state.terms.items()},
            state.eps.copy(),
            state.bos,
            dict(state.relief),
        )

    def _attention(self, state: State, layer: int) -> None:
        super()._attention(state, layer)
        if self.c.config.layers[layer].n_heads and self.c.config.layers[layer].d_mlp:
            self._keep(f"blocks.{layer}.hook_resid_mid", state)

    def _mlp(self, state: State, layer: int) -> None:
        super()._mlp(state, layer)
        self._keep(f"blocks.{layer}.hook_resid_post", state)


def recorded(parts: Parts) -> Recording | None:
    """The states of a composition that goes through (to its read-out, which is left out); None if a lemma fails."""
    claim = parts.claim()
    model, alignment = claim.subject.model, claim.subject.alignment
    assert alignment is not None
    analysis = analyse(alignment.program)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    found = Recording(Context(model.config, weights, parts.codec, alignment, analysis))
    result = prove_by_composition(claim, parts.inputs())
    if hasattr(result, "text") and not result.text.startswith("decode"):
        return None
    try:
        found.run()
    except Exception as error:
        assert "decode" in str(error)
    return found


def words(parts: Parts, length: int) -> Ids:
    n = len(parts.program.vocab)
    return np.array(list(np.ndindex(*[n] * length)), dtype=np.int64)


def boxes(parts: Parts, state: State, ids: Ids) -> Enclosure:
    """What the state allows the residual stream to be on these inputs, [batch, pos, d_model], without BOS."""
    values = BatchEvaluator(parts.program)(ids, (*state.terms, *state.relief))
    shape = (*ids.shape, len(state.const))
    box = Enclosure(np.broadcast_to(state.const, shape), np.zeros(shape))
    for node, matrix in state.terms.items():
        assert (values[node] >= 0).all()
        box = box + Enclosure.exact(matrix[values[node]])
    relief = sum((rows[values[node]] for node, rows in state.relief.items()), np.zeros(shape))
    return box.plus_error(np.maximum(state.eps - relief, 0.0))


STATES = [n for n in NAMES if n != "identity"][:55]


@pytest.mark.parametrize("block", range(2))
def test_the_residual_stream_lies_in_the_abstract_state(block: int) -> None:
    """After every half layer, on every input, for compiled models and for models with noise and idle garbage."""
    torch.set_num_threads(1)
    checked = 0
    for name in STATES[block::2]:
        found = compiled(name)
        if found is None or sum(layer.d_mlp for layer in found.model.config.layers) > 200:
            continue
        noisy = [parts for _, parts in perturbed(Parts.of(found), 100 + block, 4)]
        for parts in (Parts.of(found), *noisy):
            composition = recorded(parts)
            if composition is None:
                continue
            checked += 1
            model, skipped = parts.model(), int(parts.codec.bos)
            for length in range(1, parts.program.max_len + 1):
                ids = words(parts, length)
                tokens = parts.codec.with_bos(torch.from_numpy(ids))
                balls = enclose(model, tokens, tuple(composition.states))
                for site, state in composition.states.items():
                    ball = balls[site].map(lambda t, skipped=skipped: t[:, skipped:])
                    box = boxes(parts, state, ids)
                    apart = np.abs(ball.mid.numpy() - box.mid) > (box.rad + ball.rad.numpy()) * (1 + 2.0**-50)
                    assert not apart.any(), f"{name}, {site}: outside its bounds at {np.argwhere(apart)[0]}"
                    if skipped:
                        first = balls[site].map(lambda t: t[:, 0])
                        room = (state.bos.rad + first.rad.numpy()) * (1 + 2.0**-50)
                        assert (np.abs(first.mid.numpy() - state.bos.mid) <= room).all(), f"{name}, {site}: BOS"
    assert checked > 60


def exact_stream(parts: Parts, ids: list[int]) -> dict[str, list[list[flint.arb]]]:
    """The residual stream after every half layer in high precision, straight from the definition."""
    w = {name: array.astype(np.float64) for name, array in parts.weights.items()}

    def matrix(array: npt.NDArray[np.float64]) -> flint.arb_mat:
        return flint.arb_mat(np.atleast_2d(array).tolist())

    def plus(x: flint.arb_mat, bias: npt.NDArray[np.float64]) -> flint.arb_mat:
        return x + matrix(np.broadcast_to(bias, (x.nrows(), len(bias))))

    bos = parts.codec.bos
    tokens = [len(parts.codec.vocab), *ids] if bos else ids
    n = len(tokens)
    x = matrix(w["embed.W_E"][tokens]) + matrix(w["pos_embed.W_pos"][:n])
    found = {}
    for number, layer in enumerate(parts.config["layers"]):
        at, mlp = f"blocks.{number}.attn.", f"blocks.{number}.mlp."
        if layer.n_heads:
            total = plus(flint.arb_mat(n, parts.config["d_model"]), w[at + "b_O"])
            for h in range(layer.n_heads):
                q, k, v = (plus(x * matrix(w[at + f"W_{c}"][h]), w[at + f"b_{c}"][h]) for c in "QKV")
                scores = q * k.transpose() * flint.arb(parts.config["attention_scale"])
                for i in range(n):
                    seen = i + 1 if parts.config["causal"] else n
                    top = max((scores[i, j] for j in range(seen)), key=lambda s: float(s.mid()))
                    weights = [(scores[i, j] - top).exp() for j in range(seen)]
                    share = flint.arb_mat([[e / sum(weights) for e in weights] + [0] * (n - seen)])
                    row = share * v * matrix(w[at + "W_O"][h])
                    for c in range(row.ncols()):
                        total[i, c] += row[0, c]
            x = x + total
            found[f"blocks.{number}.hook_resid_mid"] = x.tolist()
        if layer.d_mlp:
            pre = plus(x * matrix(w[mlp + "W_in"]), w[mlp + "b_in"])
            post = flint.arb_mat([[max_zero(z) for z in row] for row in pre.tolist()])
            x = x + plus(post * matrix(w[mlp + "W_out"]), w[mlp + "b_out"])
        found[f"blocks.{number}.hook_resid_post"] = x.tolist()
    return found


def max_zero(z: flint.arb) -> flint.arb:
    return z if z > 0 else flint.arb(0) if z < 0 else abs(z).union(flint.arb(0))


@pytest.mark.parametrize("name", ["sort", "hist", "frac_prevs", "detect_pattern", "random7"])
def test_the_state_contains_a_run_in_high_precision(name: str) -> None:
    """The same, against arb at 200 bits: an evaluation that shares no code with ours."""
    found = compiled(name)
    assert found is not None
    parts = Parts.of(found)
    composition = recorded(parts)
    assert composition is not None
    rng = np.random.default_rng(0)
    with flint_precision(200):
        for length in range(1, parts.program.max_len + 1):
            ids = rng.integers(0, len(parts.program.vocab), length)
            stream = exact_stream(parts, ids.tolist())
            for site, state in composition.states.items():
                box = boxes(parts, state, ids[None])
                shift = int(parts.codec.bos)
                for position, row in enumerate(stream[site][shift:]):
                    for c, value in enumerate(row):
                        assert abs(value - flint.arb(box.mid[0, position, c])) <= flint.arb(box.rad[0, position, c]) + (
                            flint.arb(2) ** -150
                        ), f"{site}, position {position}, coordinate {c}"
