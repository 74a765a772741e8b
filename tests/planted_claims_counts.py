"""False claims about the read-out, means, counts and neurons."""

from __future__ import annotations

from dataclasses import replace

from certiformer.compiler.alignment import Atom, Scalar
from certiformer.compiler.core import Select, Width

from .planted import (
    BOS,
    OUT,
    PLACES,
    TOKENS,
    VOCAB,
    Parts,
    blank,
    core,
    echo,
    mapping,
    table,
    unembed,
)
from .planted_models import (
    BIN,
    BQ,
    BU,
    BUP,
    BV,
    IN,
    NOISY,
    S0,
    UP,
    V1,
    A,
    B,
    Claims,
    K,
    Q,
    U,
    V,
    always,
    change,
    count,
    count_without_bos,
    disturb,
    echoing,
    equal,
    exchange,
    extended,
    into,
    lost_additions,
    lost_biases,
    ramp_that_is_none,
    role,
    share,
    tight,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)


# --- read-out
_("a bias decides", lambda: change(echo(), (BU, 1, 1.5)))
_("all logits equal", lambda: change(echo(), (U, slice(None), 0)))
_("the place is read too", lambda: change(echo(), (U, (PLACES[2], 0), 2)))
_("tight echo", lambda: tight(change(echo(), (U, (PLACES[2], 0), 0.25), (BU, 1, 0.25))))
_("one token is wrong", lambda: change(echo(), (U, (A, 0), -1)))
_("noise at the read-out", lambda: disturb(echoing([(0, 0, 1)]), B, 1.5, 0))
_("tight noise at the read-out", lambda: tight(disturb(echoing([(0, 0, 1)]), B, 0.25, 0)))
_("off by more than half", lambda: change(count(), (BU, 0, 0.06)))
_("off downwards", lambda: change(count(), (BU, 0, -0.06)))
_("an output is missing", lambda: _missing_output())


def _missing_output() -> Parts:
    parts = echo()
    made = blank(parts.program, [], ("a", "b"))
    unembed(made, TOKENS[:2])
    return made


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
