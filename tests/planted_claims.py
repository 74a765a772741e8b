"""The false claims, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from certiformer.compiler import programs
from certiformer.compiler.alignment import Atom, HeadRole, NeuronRole, OneHot, Scalar, Scaled
from certiformer.compiler.compile import compile
from certiformer.compiler.core import Aggregate, And, Linear, Not, Or, Select, Value, Width
from certiformer.compiler.rasp import (
    Map,
    SOp,
    aggregate,
    full,
    indices,
    select,
    selector_width,
    tokens,
)
from certiformer.models.config import LayerConfig
from certiformer.models.languages import sequences
from certiformer.verifier.claims import NeverOutputs

from .planted import BOS, D_MODEL, ONE_HOT, OUT, PLACES, SPARE, TOKENS, VOCAB, Parts, blank, core, echo, mapping, table, unembed
from .planted_models import (
    NOISY,
    A,
    B,
    C,
    S0,
    S1,
    S2,
    always,
    before,
    change,
    count,
    count_without_bos,
    disturb,
    equal,
    exchange,
    extended,
    gather,
    group,
    lost_additions,
    lost_biases,
    muted,
    ramp_that_is_none,
    role,
    share,
    strictly_before,
    tight,
    twice,
)

Q, K, V, O = "0.attn.W_Q", "0.attn.W_K", "0.attn.W_V", "0.attn.W_O"
Q1, K1, V1, O1 = "1.attn.W_Q", "1.attn.W_K", "1.attn.W_V", "1.attn.W_O"
BQ, BV, BO = "0.attn.b_Q", "0.attn.b_V", "0.attn.b_O"
IN, BIN, UP, BUP = "0.mlp.W_in", "0.mlp.b_in", "0.mlp.W_out", "0.mlp.b_out"
U, BU = "unembed.W_U", "unembed.b_U"

CLAIMS: dict[str, Callable[[], Parts]] = {}


def _(name: str, build: Callable[[], Parts]) -> None:
    assert name not in CLAIMS, name
    CLAIMS[name] = build


# --- read-out
_("a bias decides", lambda: change(echo(), (BU, 1, 1.5)))
_("all logits equal", lambda: change(echo(), (U, slice(None), 0)))
_("the place is read too", lambda: change(echo(), (U, (PLACES[2], 0), 2)))
_("tight echo", lambda: tight(change(echo(), (U, (PLACES[2], 0), 0.25), (BU, 1, 0.25))))
_("one token is wrong", lambda: change(echo(), (U, (A, 0), -1)))
_("noise at the read-out", lambda: disturb(_with_layer(echo()), B, 1.5, 0))
_("tight noise at the read-out", lambda: tight(disturb(_with_layer(echo()), B, 0.25, 0)))
_("off by more than half", lambda: change(count(), (BU, 0, 0.06)))
_("off downwards", lambda: change(count(), (BU, 0, -0.06)))
_("an output is missing", lambda: _missing_output())


def _with_layer(parts: Parts) -> Parts:
    """The same with a layer of one neuron that does nothing yet."""
    made = blank(parts.program, [(0, 0, 1)])
    unembed(made, TOKENS)
    return made


def _missing_output() -> Parts:
    parts = echo()
    made = blank(parts.program, [], ("a", "b"))
    unembed(made, TOKENS[:2])
    return made


# --- the head: scores
_("weak gap", lambda: gather(0.5))
_("tight gap", lambda: tight(gather(4.0)))
_("tight others", lambda: tight(change(gather(4.0), (K, (0, BOS, 3), -4))))
_("queries look nowhere", lambda: change(gather(), (Q, 0, 0), (BQ, (0, 3), -1)))
_("sink takes all", lambda: change(_with_sink(), (BQ, (0, 3), 9)))
_("sink takes all on b", lambda: change(_with_sink(), (Q, (0, B, 3), 9)))
_("sink takes all from b", lambda: change(_with_sink(), (K, (0, B, 3), -9 * 40)))
_("sink takes little", lambda: change(gather(related=strictly_before, default=0), (BQ, (0, 3), -1)))
_("sink takes little on b", lambda: change(gather(related=strictly_before, default=0), (Q, (0, B, 3), -2)))
_("sink takes little from b", lambda: change(gather(related=strictly_before, default=0), (K, (0, B, 3), 80)))
_("b is louder", lambda: change(gather(), (K, (0, B, 3), 120)))
_("b is louder for a", lambda: change(gather(), (Q, (0, A, 4), 120), (K, (0, B, 4), 1)))
_("b is softer for a", lambda: change(gather(), (Q, (0, A, 4), -120), (K, (0, B, 4), 1)))
_("constant shifts the score", lambda: change(gather(), (BQ, (0, 0), 300)))
_("a place is not found", lambda: change(gather(), (Q, (0, PLACES[2], 1), 0)))
_("a place is found twice", lambda: change(gather(), (Q, (0, PLACES[2], 0), 80)))
_("noise in queries", lambda: change(disturb(gather(layers=NOISY), S0, 1, 0), (Q1, (0, S0, 0), 160)))
_("noise in keys", lambda: change(disturb(gather(layers=NOISY), S0, 1, 0), (K1, (0, S0, 3), 160)))
_("noise in both", lambda: change(disturb(gather(layers=NOISY), S0, 1, 0), (Q1, (0, S0, 4), 160), (K1, (0, S0, 4), 1)))
_("soft default", lambda: tight(gather(4.0, strictly_before, 0)))
_("softer default", lambda: gather(1.0, strictly_before, 0))
_("atoms of another selector", lambda: _other_atoms())
_("two heads of one table", lambda: _joint_atoms(False))


def _with_sink(gap: float = 80.0) -> Parts:
    """BOS holds "c"."""
    return change(gather(gap), (V, (0, BOS, 2), 1))


def _other_atoms() -> Parts:
    parts = gather(related=equal)
    nodes = parts.program.nodes
    parts.program = core(Select(1, 1, table(before)), nodes[3])
    return parts


def _joint_atoms(right: bool) -> Parts:
    """Select by place and by token; the scores know of the place only, unless `right`."""
    same, near = Select(0, 0, table(equal)), Select(1, 1, table(before))
    parts = gather(40.0)
    parts.program = core(near, same, And(2, 3), Aggregate(4, 0, 0, VOCAB))
    parts[V][0, BOS, 0] = 1
    for t in range(3):
        parts[K][0, TOKENS[t], 4 if t else 5] = 1 if t else 0
    parts.heads = [HeadRole(0, 0, 5, (Atom(1, 1, table(before)), Atom(0, 0, table(equal))), (0,), ONE_HOT)]
    parts.reads = (5,)
    return parts


# --- the head: values
_("noise in values", lambda: disturb(gather(layers=NOISY), B, 1.5, 0))
_("tight noise in values", lambda: tight(disturb(gather(layers=NOISY), B, 0.25, 0)))
_("values have a bias", lambda: change(gather(), (BV, (0, 1), 1.5)))
_("tight bias of values", lambda: tight(change(gather(), (BV, (0, 1), 0.25))))
_("places are copied too", lambda: change(gather(), (V, (0, PLACES[1], 2), 1.5)))
_("tight places are copied too", lambda: tight(change(gather(), (V, (0, PLACES[1], 2), 0.25))))
_("tokens are copied weakly", lambda: change(gather(), (V, (0, A, 0), -1)))
_("wrong default", lambda: change(gather(related=strictly_before, default=0), (V, (0, BOS), [0, 0, 1, 0, 0, 0])))
_("default has a bias", lambda: change(gather(related=strictly_before, default=0), (V, (0, BOS, 1), 2)))
_("bias fools the default", lambda: change(gather(related=strictly_before, default=0), (V, (0, BOS, 0), 0), (BV, (0, 2), 0.4)))
_("BOS is loud in value", lambda: change(gather(4.0), (V, (0, BOS, 2), 9)))
_("another encoding", lambda: _another_encoding())


# --- idle heads, BOS's own residual
_("stray head", lambda: _stray(1.5))
_("tight stray head", lambda: tight(_stray(0.25)))
_("tight stray head downwards", lambda: tight(_stray(-0.25)))
_("stray bias of a head", lambda: tight(change(_stray(0), (BV, (0, 0), 0.25), (O, (0, 0, B), 1))))
_("stray head of noise", lambda: tight(_stray_of_noise()))
_("stray head on BOS", lambda: tight(change(_stray(0), (V, (0, BOS, 0), 0.25), (O, (0, 0, B), 1), (BQ, (0, 1), 9), (K, (0, BOS, 1), 9))))
_("curious BOS", lambda: change(twice(), (Q, (0, BOS, 1), 900)))
_("BOS curious for tokens", lambda: change(twice(), (Q, (0, BOS, 4), 9), (K, (0, B, 4), 9)))
_("BOS curious for noise", lambda: _curious_for_noise())
_("BOS changed by a stray head", lambda: _stray_at_bos())
_("BOS changed by a neuron", lambda: _neuron_at_bos())
_("BOS changed by a bias", lambda: change(twice(), (BO, OUT[2], 3)))
_("BOS changed by a bias of neurons", lambda: change(twice(layers=((1, 6, 1), (1, 6, 0))), (BUP, OUT[2], 3)))
_("BOS's position", lambda: change(gather(related=strictly_before, default=0), ("pos_embed.W_pos", (0, A), 0), ("pos_embed.W_pos", (0, C), 2), (V, (0, BOS), 0), (V, (0, BOS, 0), 1)))
_("noise at BOS in keys", lambda: _noise_at_bos_in_keys())


def _another_encoding() -> Parts:
    parts = role(gather(), encoding=OneHot((OUT[1], OUT[0], OUT[2])))
    parts[U][:] = 0
    unembed(parts, (OUT[1], OUT[0], OUT[2]))
    return parts


def _stray(amount: float) -> Parts:
    """A head that no step mentions gathers "a" tokens and pushes output "b"."""
    parts = blank(echo().program, [(1, 2, 0)])
    unembed(parts, TOKENS)
    return change(parts, (V, (0, A, 0), amount), (O, (0, 0, B), 1), (K, (0, A, 0), 9), (BQ, (0, 0), 9))


def _stray_of_noise() -> Parts:
    parts = blank(echo().program, [(0, 0, 1), (1, 2, 0)])
    unembed(parts, TOKENS)
    disturb(parts, S0, 1, 0)
    return change(parts, (V1, (0, S0, 0), 0.25), (O1, (0, 0, B), 1), (K1, (0, A, 0), 9), ("1.attn.b_Q", (0, 0), 9))


def _curious_for_noise() -> Parts:
    parts = disturb(twice(layers=((0, 0, 1), (1, 6, 0), (1, 6, 0)), first=1), S2 + 1, 1, 1)
    return change(parts, (Q1, (0, BOS, 4), 9), (K1, (0, S2 + 1, 4), 90))


def _stray_at_bos() -> Parts:
    """A second head of the first layer writes to BOS's output coordinates what it finds."""
    parts = twice(layers=((2, 6, 0), (1, 6, 0)))
    parts[Q][1, BOS, 0], parts[K][1, B, 0] = 9, 9
    parts[V][1, B, 0], parts[O][1, 0, S2 + 1] = 3, 1
    parts[V1][0, S2 + 1, 2] = 1
    for name in (V1,):
        parts[name][0, S2 + 1, 2] = 1
    parts[Q][1, :3, 1] = 9  # other positions look at BOS, where this head finds nothing
    parts[K][1, BOS, 1] = 9
    return parts


def _neuron_at_bos() -> Parts:
    parts = twice(layers=((1, 6, 1), (1, 6, 0)))
    return change(parts, (IN, (BOS, 0), 1), (UP, (0, OUT[2]), 3))


def _noise_at_bos_in_keys() -> Parts:
    """What a stray head leaves at BOS makes it a loud key of the second."""
    parts = _stray_at_bos()
    return change(parts, (V1, (0, S2 + 1, 2), 0), (K1, (0, S2 + 1, 3), 90))


# --- means
_("uneven mean", lambda: change(share(), (K, (0, A, 0), 3)))
_("uneven mean called even", lambda: role(change(share(), (K, (0, A, 0), 3)), affine=None))
_("mean of another slope", lambda: change(share(), (V, (0, A, 0), 0.5)))
_("mean leaks to BOS", lambda: share(sink=1.0))
_("mean with another offset", lambda: change(share(), (BV, (0, 0), 0.3)))
_("mean encoded as something else", lambda: _bent_mean())
_("mean not affine", lambda: role(_bent_mean(), affine=None))
_("mean with noise", lambda: disturb(share(layers=NOISY), A, -0.5, 0))


def _bent_mean() -> Parts:
    """The claimed points are not on the line: the codec reads 1/2 at 0.9, and 2/3 at 0.6."""
    points = (0.0, 1 / 3, 0.9, 0.6, 1.0)
    parts = share()
    parts.codec = replace(parts.codec, points=points)
    return role(parts, encoding=Scalar(OUT[0], points))


# --- counts
_("count of all", lambda: _count_all())
_("weak count", lambda: count(1.0))
_("loud count", lambda: change(count(), (K, (0, BOS, 3), 39.0)))
_("soft count", lambda: change(count(), (K, (0, BOS, 3), 41.0)))
_("keys have values", lambda: change(count(), (V, (0, A, 0), 0.5)))
_("keys have negative values", lambda: change(count(), (V, (0, A, 0), -0.5)))
_("sink of another value", lambda: change(count(), (V, (0, BOS, 0), 1.2)))
_("count of other points", lambda: _count_other_points())
_("count with noise", lambda: disturb(change(count(layers=NOISY), (V1, (0, S0, 0), 1)), S0, 0.5, 0))
_("count with a bias", lambda: change(count(), (BV, (0, 0), 0.06)))
_("weak count without BOS", lambda: count_without_bos(1.0))
_("uneven count without BOS", lambda: change(count_without_bos(), (K, (0, B, 0), 0.5), (Q, (0, PLACES[0], 0), 40)))
_("louder count without BOS", lambda: change(count_without_bos(), (K, (0, B, 3), 1), (BQ, (0, 3), 0.6)))
_("softer count without BOS", lambda: change(count_without_bos(), (K, (0, B, 3), -1), (BQ, (0, 3), 0.6)))
_("count without BOS and without place 0", lambda: _without_place_0())
_("count without BOS, places have values", lambda: change(count_without_bos(), (V, (0, PLACES[1], 0), 0.5)))
_("count without BOS, tokens have values", lambda: change(count_without_bos(), (V, (0, B, 0), 0.5)))
_("count without BOS, another value", lambda: change(count_without_bos(), (V, (0, PLACES[0], 0), 1.4)))
_("wrong width sum", lambda: _wrong_width_sum())


def _count_all() -> Parts:
    """Claims to count equal tokens, by atoms that are always true."""
    parts = count(related=always)
    parts.program = core(Select(0, 0, table(equal)), Width(2, (1, 2, 3)))
    return parts


def _count_other_points() -> Parts:
    parts = count()
    points = (0.5, 0.3, 0.2)
    parts.codec = replace(parts.codec, points=points)
    return role(parts, encoding=Scalar(OUT[0], points))


def _without_place_0() -> Parts:
    """Position 0 is not always selected, but the sink."""

    def related(k: int, q: int) -> bool:
        return 0 < k <= q or k == q

    parts = count_without_bos()
    parts.program = core(Select(1, 1, table(related)), Width(2, (1, 2, 3)))
    for j in range(3):
        for i in range(3):
            parts[Q][0, PLACES[j], i] = 40.0 * related(i, j)
    return role(parts, atoms=(Atom(1, 1, table(related)),))


def _wrong_width_sum() -> Parts:
    """All tokens are counted; a width sum says that these are the equal ones."""
    parts = count(related=always)
    head, points = parts.heads[0], parts.codec.points
    parts = blank(core(Select(0, 0, table(equal)), Width(2, (1, 2, 3))), ((1, 6, 0),), (1, 2, 3), points)
    parts.weights = count(related=always).weights
    extended(parts, Select(0, 0, table(always)), Width(4, (1, 2, 3)))
    parts.heads, parts.reads, parts.sums = [replace(head, node=5)], (5,), {3: ((5, 1),)}
    return parts


# --- neurons
_("a neuron is missing", lambda: change(exchange(), (UP, slice(0, 2), 0)))
_("another table entry", lambda: replace_map(exchange(), (1, 2, 1)))
_("stray neuron", lambda: change(exchange(), (BIN, 6, 1), (UP, (6, OUT[0]), 3)))
_("tight stray neuron", lambda: tight(change(exchange(), (BIN, 6, 1), (UP, (6, OUT[0]), 0.25))))
_("tight negative stray neuron", lambda: tight(change(exchange(), (IN, (A, 6), 1), (UP, (6, OUT[1]), -0.25))))
_("stray bias of neurons", lambda: change(exchange(), (BUP, OUT[0], 3)))
_("tight bias of neurons", lambda: tight(change(exchange(), (BUP, OUT[0], 0.25))))
_("neurons read the place", lambda: change(exchange(), (IN, (PLACES[1], slice(0, 2)), -8)))
_("noise before a ramp", lambda: _noisy_ramp())
_("tight noise before a neuron", lambda: tight(_noisy_ramp(0.5, plain=True)))
_("overlapping groups", lambda: _overlapping())
_("no ramp: other inputs", lambda: ramp_that_is_none(same=False))
_("no ramp: other outputs", lambda: ramp_that_is_none(opposite=False))
_("no ramp: rising", lambda: ramp_that_is_none(falling=False))
_("lost additions", lost_additions)
_("lost biases", lost_biases)


def replace_map(parts: Parts, entries: tuple[int, ...]) -> Parts:
    parts.program = core(mapping([0], entries, VOCAB))
    return parts


def _noisy_ramp(amount: float = 1.0, plain: bool = False) -> Parts:
    parts = disturb(exchange(layers=2), A, amount, 1)
    if plain:  # without saturation the noise goes through
        parts["1.mlp.b_in"][1:6:2] = -100
        parts["1.mlp.W_out"][0:6:2] /= 2
    return parts


def _overlapping() -> Parts:
    """Two groups claim the same neurons: what they write is counted twice."""
    parts = exchange()
    parts["unembed.b_U"][0] = 1.5
    parts.neurons.append(replace(parts.neurons[0]))
    return parts
