"""Models with false claims: each breaks one premise of one rule, and nothing else.

Either the model does not compute what is claimed, or its smallest margin is just below the one claimed (`tight`): then
an engine that forgets any error that the model really makes certifies too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from certiformer.compiler.alignment import Atom, HeadRole, NeuronRole, OneHot, Scalar
from certiformer.compiler.core import Aggregate, CoreProgram, Node, Select, Value, Width
from certiformer.verifier.claims import Claim, Margin
from certiformer.verifier.reading import Subject, margin_bounds

from .planted import BOS, ONE_HOT, OUT, PLACES, SPARE, TOKENS, VOCAB, Parts, blank, core, echo, mapping, table, unembed

Related = Callable[[int, int], bool]
A, B, C = TOKENS
S0, S1, S2 = SPARE[:3]

Q, K, V, WO = "0.attn.W_Q", "0.attn.W_K", "0.attn.W_V", "0.attn.W_O"
Q1, K1, V1, O1 = "1.attn.W_Q", "1.attn.W_K", "1.attn.W_V", "1.attn.W_O"
BQ, BV, BO = "0.attn.b_Q", "0.attn.b_V", "0.attn.b_O"
IN, BIN, UP, BUP = "0.mlp.W_in", "0.mlp.b_in", "0.mlp.W_out", "0.mlp.b_out"
U, BU = "unembed.W_U", "unembed.b_U"
TWO = ((1, 6, 0), (1, 6, 0))
"""Two layers of one head."""

Claims = dict[str, Callable[[], Parts]]


def into(claims: Claims) -> Callable[[str, Callable[[], Parts]], None]:
    """Enters a false claim under its name."""

    def enter(name: str, build: Callable[[], Parts]) -> None:
        assert name not in claims, name
        claims[name] = build

    return enter


def equal(k: int, q: int) -> bool:
    return k == q


def before(k: int, q: int) -> bool:
    """The place before; the first place itself at the first."""
    return k == max(q - 1, 0)


def strictly_before(k: int, q: int) -> bool:
    return k == q - 1


def always(k: int, q: int) -> bool:
    return True


def never(k: int, q: int) -> bool:
    return False


def first(k: int, q: int) -> bool:
    return k == 0


def later(k: int, q: int) -> bool:
    return k > 0


def up_to(k: int, q: int) -> bool:
    return k <= q


# --- claims


def tight(parts: Parts) -> Parts:
    """The claim that the margin is a little larger than it is."""
    subject = parts.claim().subject
    least, words = math.inf, list(parts.inputs().enumerate())
    for n in {len(word) for word in words}:
        ids = torch.tensor([[parts.codec.vocab.index(t) for t in word] for word in words if len(word) == n])
        least = min(least, float(margin_bounds(subject.enclosed(ids))[1].min()))
    claimed = float(np.nextafter(least, math.inf)) + 2.0**-30

    def claim(subject: Subject, program: CoreProgram) -> Claim:
        return Margin(subject, claimed)

    made = parts.copy()
    made.claim_of = claim
    return made


# --- one head that gathers, averages or counts


def score_places(parts: Parts, gap: float, related: Related, layer: int = 0, sink: float = 0.5, head: int = 0) -> None:
    """Scores gap * related(key place, query place), and sink * gap for BOS."""
    q, k = parts[f"{layer}.attn.W_Q"][head], parts[f"{layer}.attn.W_K"][head]
    n = len(PLACES)
    for i in range(n):
        k[PLACES[i], i] = 1
        for j in range(n):
            q[PLACES[j], i] = gap * related(i, j)
    parts[f"{layer}.attn.b_Q"][head, n] = 1
    k[BOS, n] = gap * sink


def copy_tokens(
    parts: Parts, layer: int = 0, source: Sequence[int] = TOKENS, target: Sequence[int] = OUT, head: int = 0
) -> None:
    for t in range(3):
        parts[f"{layer}.attn.W_V"][head, source[t], t] = 1
        parts[f"{layer}.attn.W_O"][head, t, target[t]] = 1


def gather(
    gap: float = 80.0,
    related: Related = before,
    default: int = -1,
    layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),),
    **k: Any,
) -> Parts:
    """The token at the related place; the last layer's head 0 does it. `default`: what BOS holds."""
    at = len(layers) - 1
    parts = blank(core(Select(1, 1, table(related)), Aggregate(2, 0, default, VOCAB)), layers, **k)
    score_places(parts, gap, related, at)
    copy_tokens(parts, at)
    if default >= 0:
        parts[f"{at}.attn.W_V"][0, BOS, default] = 1
    unembed(parts, OUT)
    parts.heads, parts.reads = [HeadRole(at, 0, 3, (Atom(1, 1, table(related)),), (0,), ONE_HOT)], (3,)
    return parts


NOISY = ((0, 0, 1), (1, 6, 0))
"""A layer with one neuron, free to disturb, before the layer of the head."""


def disturb(parts: Parts, target: int, amount: float, when: int | None = None, layer: int = 0) -> Parts:
    """Neuron 0 of a layer, unknown to the explanation, writes to a coordinate: always, or where the token is `when`."""
    if when is None:
        parts[f"{layer}.mlp.b_in"][0] = 1
    else:
        parts[f"{layer}.mlp.W_in"][TOKENS[when], 0] = 1
    parts[f"{layer}.mlp.W_in"][BOS, 0] = -9
    parts[f"{layer}.mlp.W_out"][0, target] = amount
    return parts


MEANS: tuple[Value, ...] = (0, Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), 1)


def share(
    related: Related = always, sink: float = -60.0, layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),)
) -> Parts:
    """The fraction of the tokens that are "a", as one number."""
    at = len(layers) - 1
    points = tuple(float(Fraction(v)) for v in MEANS)  # type: ignore[arg-type]
    is_a = mapping([0], [1, 0, 0], (0, 1))
    parts = blank(core(is_a, Select(1, 1, table(related)), Aggregate(3, 2, -1, MEANS)), layers, MEANS, points)
    parts[f"{at}.attn.b_Q"][0, 0] = 1
    parts[f"{at}.attn.W_K"][0, BOS, 0] = sink
    parts[f"{at}.attn.W_V"][0, A, 0] = 1
    parts[f"{at}.attn.W_O"][0, 0, OUT[0]] = 1
    parts["unembed.W_U"][OUT[0], 0] = 1
    encoding, affine = Scalar(OUT[0], points), (OUT[0], 0.0, 1.0)
    parts.heads = [HeadRole(at, 0, 4, (Atom(1, 1, table(related)),), (0,), encoding, affine)]
    parts.reads = (4,)
    return parts


def count(
    gap: float = 40.0,
    related: Related = equal,
    layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),),
    counts: Sequence[int] = (1, 2, 3),
    points: Sequence[float] | None = None,
) -> Parts:
    """How many tokens are related to this one, read from BOS's share 1 / (1 + w)."""
    at = len(layers) - 1
    points = tuple(1 / (1 + w) for w in counts) if points is None else tuple(points)
    parts = blank(core(Select(0, 0, table(related)), Width(2, tuple(counts))), layers, tuple(counts), points)
    for i in range(3):
        parts[f"{at}.attn.W_K"][0, TOKENS[i], i] = 1
        for j in range(3):
            parts[f"{at}.attn.W_Q"][0, TOKENS[j], i] = gap * related(i, j)
    parts[f"{at}.attn.b_Q"][0, 3] = 1
    parts[f"{at}.attn.W_K"][0, BOS, 3] = gap
    parts[f"{at}.attn.W_V"][0, BOS, 0] = 1
    parts[f"{at}.attn.W_O"][0, 0, OUT[0]] = 1
    parts["unembed.W_U"][OUT[0], 0] = 1
    parts.heads = [HeadRole(at, 0, 3, (Atom(0, 0, table(related)),), (), Scalar(OUT[0], points))]
    parts.reads = (3,)
    return parts


def count_without_bos(
    gap: float = 40.0,
    layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),),
    points: Sequence[float] = (1.0, 1 / 2, 1 / 3),
) -> Parts:
    """How many places are not behind this one: place 0, always one of them, holds 1."""
    at = len(layers) - 1

    def related(k: int, q: int) -> bool:
        return k <= q

    program = core(Select(1, 1, table(related)), Width(2, (1, 2, 3)))
    parts = blank(program, layers, (1, 2, 3), tuple(points), bos=False)
    for i in range(3):
        parts[f"{at}.attn.W_K"][0, PLACES[i], i] = 1
        for j in range(3):
            parts[f"{at}.attn.W_Q"][0, PLACES[j], i] = gap * related(i, j)
    parts[f"{at}.attn.W_V"][0, PLACES[0], 0] = 1
    parts[f"{at}.attn.W_O"][0, 0, OUT[0]] = 1
    parts["unembed.W_U"][OUT[0], 0] = 1
    parts.heads = [HeadRole(at, 0, 3, (Atom(1, 1, table(related)),), (1,), Scalar(OUT[0], tuple(points)))]
    parts.reads = (3,)
    return parts


def twice(
    gap: float = 80.0,
    layers: Sequence[tuple[int, int, int]] = ((1, 6, 0), (1, 6, 0)),
    first: int = 0,
    chosen: Related = strictly_before,
    second: Related = strictly_before,
) -> Parts:
    """The token two places before, or "a"; what the second head finds at BOS is what the first left there.

    `chosen` and `second`: the places that the two heads look at.
    """
    parts = gather(gap, second, 0, layers)
    parts.program = core(
        Select(1, 1, table(chosen)), Aggregate(2, 0, 0, VOCAB), Select(1, 1, table(second)), Aggregate(4, 3, 0, VOCAB)
    )
    score_places(parts, gap, chosen, first)
    copy_tokens(parts, first)
    parts[f"{first}.attn.W_V"][0, BOS, 0] = 1
    at = len(layers) - 1
    parts[f"{at}.attn.W_V"][:] = 0
    parts[f"{at}.attn.W_O"][:] = 0
    copy_tokens(parts, at, OUT, SPARE[:3])
    parts["unembed.W_U"][:] = 0
    unembed(parts, SPARE[:3])
    parts.heads = [
        HeadRole(first, 0, 3, (Atom(1, 1, table(chosen)),), (0,), ONE_HOT),
        HeadRole(at, 0, 5, (Atom(1, 1, table(second)),), (3,), OneHot(tuple(SPARE[:3]))),
    ]
    parts.reads = (5,)
    return parts


# --- neurons


def echoing(layers: Sequence[tuple[int, int, int]], **config: Any) -> Parts:
    """The output is the token, past layers that do nothing yet."""
    parts = blank(echo().program, layers, **config)
    unembed(parts, TOKENS)
    return parts


def exchange(order: Sequence[int] = (1, 2, 0), spare: int = 1, layers: int = 1) -> Parts:
    """A map of the token by ramps clip(8 x - 2, 0, 4) / 4, in the last layer; `spare` neurons have no group."""
    at = layers - 1
    parts = blank(core(mapping([0], order, VOCAB)), [(0, 0, 1)] * at + [(0, 0, 6 + spare)])
    for t in range(3):
        parts[f"{at}.mlp.W_in"][TOKENS[t], 2 * t : 2 * t + 2] = 8
        parts[f"{at}.mlp.b_in"][2 * t : 2 * t + 2] = (-2, -6)
        parts[f"{at}.mlp.W_out"][2 * t : 2 * t + 2, OUT[order[t]]] = (0.25, -0.25)
    unembed(parts, OUT)
    parts.neurons, parts.reads = [NeuronRole(at, (0, 6), (0,), 2, ONE_HOT)], (2,)
    return parts


def change(parts: Parts, *assignments: tuple[str, Any, Any]) -> Parts:
    """Weights set: (parameter, index, value)."""
    for name, index, value in assignments:
        parts[name][index] = value
    return parts


def extended(parts: Parts, *nodes: Node, **fields: Any) -> Parts:
    """Auxiliary nodes; then other fields."""
    p = parts.program
    parts.source = len(p.nodes)
    parts.program = p.extended(*nodes)
    for name, value in fields.items():
        setattr(parts, name, value)
    return parts


def role(parts: Parts, index: int = 0, **fields: Any) -> Parts:
    """The head role at `index`, with other fields."""
    parts.heads[index] = replace(parts.heads[index], **fields)
    return parts


def group(parts: Parts, index: int = 0, **fields: Any) -> Parts:
    parts.neurons[index] = replace(parts.neurons[index], **fields)
    return parts


def claiming(parts: Parts, program: CoreProgram) -> Parts:
    parts.program = program
    return parts


def muted(parts: Parts, *outputs: Value) -> Parts:
    """Some outputs never win: right, if the program never gives them."""
    parts = parts.copy()
    for output in outputs:
        parts["unembed.b_U"][parts.codec.outputs.index(output)] -= 1000
    return parts


# --- every false claim by name


def lost_additions(n: int = 120) -> Parts:
    """One group writes 2^60, a hundred add 100 each, which float64 loses, another takes 2^60 back."""
    parts = blank(
        core(mapping([0], [0, 0, 0], ("x",)), mapping([0], [0, 0, 0], ("x", "y")), output=3),
        [(0, 0, n + 2)],
        ("x", "y"),
    )
    amounts = [2.0**60, *[100.0] * n, -(2.0**60)]
    parts["0.mlp.b_in"][:] = 1
    parts["0.mlp.W_in"][BOS] = -9
    for j, amount in enumerate(amounts):
        parts["0.mlp.W_out"][j, S0] = amount
        parts.neurons.append(NeuronRole(0, (j, j + 1), (0,), 2, Scalar(S0, (amount,))))
    parts["unembed.W_U"][S0, 1] = 1
    parts["unembed.b_U"][:] = (10000.0, 0.0)
    parts.reads = (0,)
    return parts


def lost_biases() -> Parts:
    """2^60 + 100 - 2^60, as biases of the residual stream: exactly 100, and 0 in float64."""
    parts = echo()
    program = parts.program
    parts = blank(program, [(1, 1, 1), (1, 1, 0)])
    unembed(parts, TOKENS)
    parts["0.attn.b_O"][S0], parts["0.mlp.b_out"][S0], parts["1.attn.b_O"][S0] = 2.0**60, 100, -(2.0**60)
    parts["unembed.W_U"][S0, 1] = 1
    return parts


def ramp_that_is_none(same: bool = True, opposite: bool = True, falling: bool = True) -> Parts:
    """Neurons 0 and 1 would write 1 for "a", were they a ramp."""
    parts = exchange()
    if not same:  # relu(8 - 2) - relu(12 - 6)
        parts["0.mlp.W_in"][A, 1] = 12
    if not opposite:  # 6 / 4 - 3 * 2 / 4
        parts["0.mlp.W_out"][1, OUT[1]] = -0.75
    if not falling:  # relu(z) - relu(z + 4) is -4 for "a" only
        parts["0.mlp.b_in"][:6] = (-6, -2, *[-100] * 4)
        parts["0.mlp.W_out"][:6] = 0
        parts["0.mlp.W_out"][:2, OUT[1]] = (-0.25, 0.25)
        parts["unembed.b_U"][0] = 0.5
        parts.program = core(mapping([0], (1, 1, 1), VOCAB))
    return parts
