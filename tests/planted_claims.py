"""The false claims, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from certiformer.compiler.alignment import Atom, HeadRole, NeuronRole, OneHot, Scalar
from certiformer.compiler.core import Aggregate, And, Select, Value, Width
from certiformer.models.languages import sequences

from .planted import (
    BOS,
    D_MODEL,
    ONE_HOT,
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
    NOISY,
    S0,
    S2,
    A,
    B,
    C,
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
    lost_additions,
    lost_biases,
    ramp_that_is_none,
    role,
    score_places,
    share,
    strictly_before,
    tight,
    twice,
)

Q, K, V, WO = "0.attn.W_Q", "0.attn.W_K", "0.attn.W_V", "0.attn.W_O"
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


def _with_sink(gap: float = 80.0, layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),)) -> Parts:
    """BOS holds "c"."""
    parts = gather(gap, layers=layers)
    parts[f"{len(layers) - 1}.attn.W_V"][0, BOS, 2] = 1
    return parts


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
_(
    "bias fools the default",
    lambda: change(gather(related=strictly_before, default=0), (V, (0, BOS, 0), 0), (BV, (0, 2), 0.4)),
)
_("BOS is loud in value", lambda: change(gather(4.0), (V, (0, BOS, 2), 9)))
_("another encoding", lambda: _another_encoding())


# --- idle heads, BOS's own residual
_("stray head", lambda: _stray(1.5))
_("tight stray head", lambda: tight(_stray(0.25)))
_("tight stray head downwards", lambda: tight(_stray(-0.25)))
_("stray bias of a head", lambda: tight(change(_stray(0), (BV, (0, 0), 0.25), (WO, (0, 0, B), 1))))
_("stray head of noise", lambda: tight(_stray_of_noise()))
_(
    "stray head on BOS",
    lambda: tight(change(_stray(0), (V, (0, BOS, 0), 0.25), (WO, (0, 0, B), 1), (BQ, (0, 1), 9), (K, (0, BOS, 1), 9))),
)
_("curious BOS", lambda: change(twice(), (Q, (0, BOS, 1), 900)))
_("BOS curious for tokens", lambda: change(twice(), (Q, (0, BOS, 4), 9), (K, (0, B, 4), 9)))
_("BOS curious for noise", lambda: _curious_for_noise())
_("BOS changed by a stray head", lambda: _stray_at_bos())
_("BOS changed by a neuron", lambda: _neuron_at_bos())
_("BOS changed by a bias", lambda: change(twice(), (BO, OUT[2], 3)))
_("BOS changed by a bias of neurons", lambda: change(twice(layers=((1, 6, 1), (1, 6, 0))), (BUP, OUT[2], 3)))
_(
    "BOS's position",
    lambda: change(
        gather(related=strictly_before, default=0),
        ("pos_embed.W_pos", (0, A), 0),
        ("pos_embed.W_pos", (0, C), 2),
        (V, (0, BOS), 0),
        (V, (0, BOS, 0), 1),
    ),
)
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
    return change(parts, (V, (0, A, 0), amount), (WO, (0, 0, B), 1), (K, (0, A, 0), 9), (BQ, (0, 0), 9))


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
    parts[V][1, B, 0], parts[WO][1, 0, S2 + 1] = 3, 1
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


# --- one premise each, of the head rule
_("the constant is copied", lambda: change(gather(layers=((1, 6, 0), (1, 6, 0))), (BO, B, 1.5)))
_("default with a compensated bias", lambda: _compensated())
_("BOS changed where it matters little", lambda: _little_at_bos())
_("values of another node", lambda: _constant_of_tokens())
_("a table of integers", lambda: _integers())
_("one comparison twice", lambda: _comparison_twice())
_("louder BOS with what it saw", lambda: _seen_by_bos())
_(
    "noisy keys for queries of places",
    lambda: change(disturb(gather(layers=NOISY), S0, 1, 0), (Q1, (0, PLACES[2], 4), 160), (K1, (0, S0, 4), 1)),
)
_("noise scaled up", lambda: _scaled_noise())
_("noise makes keys softer", lambda: _soft_noise())
_("noise makes one softer and one louder", lambda: _opposite_noise())
_("the constant asks for BOS", lambda: change(_with_constant(_with_sink(layers=TWO)), (Q1, (0, S0, 3), 9)))
_(
    "the constant is no key",
    lambda: change(_with_constant(_with_sink(layers=TWO)), (K1, (0, BOS, 3), 96), (K1, (0, S0, 3), -56)),
)
_("a place asks for BOS", lambda: change(_with_sink(), (Q, (0, PLACES[1], 3), 9)))
_("scores that cancel", lambda: _cancelling_scores())
_("uneven mean over places", lambda: change(share(), (K, (0, PLACES[1], 0), 3)))
_("BOS asks by its bias", lambda: _biased_bos())
_("BOS asks by what it saw", lambda: _asked_by_what_it_saw())
_("BOS is softer to itself", lambda: change(twice(), (Q, (0, BOS, 3), -2)))
_("BOS is much softer to itself than its keys", lambda: _softer_than_keys())
_("a bent mean with a bias", lambda: _bent_and_biased())
_("count without BOS of one more, at low scores", lambda: _one_more())
_("tight BOS is a little curious", lambda: tight(change(twice(), (Q, (0, BOS, 3), -0.92))))
_("nothing selected without BOS", lambda: _empty_without_bos())
_("weak gap of low scores without BOS", lambda: _low_without_bos())
_("one place is softer than BOS", lambda: change(_with_sink(), (Q, (0, PLACES[2], 1), 30)))
_("a value that is no number", lambda: _none_among_numbers())
_(
    "count without BOS of noise",
    lambda: disturb(change(count_without_bos(layers=NOISY), (V1, (0, S0, 0), 1)), S0, 0.5, 1),
)
_("count without BOS of one more", lambda: count_without_bos(points=(1 / 2, 1 / 3, 1 / 4)))
_("slightly louder count without BOS", lambda: _slightly(0.34, (1, 0.54, 1 / 3)))
_("slightly softer count without BOS", lambda: _slightly(0.34, (1, 0.5, 0.3)))
_("slightly loud count", lambda: change(count(points=(0.49, 1 / 3, 1 / 4)), (K, (0, BOS, 3), 39.636)))
_("slightly soft count", lambda: change(count(), (K, (0, BOS, 3), 40.22)))
_("two others count", lambda: count(1.461, points=(0.48, 1 / 3, 1 / 4)))
_("count of points in between", lambda: count(points=(1 / 2, 5 / 12, 3 / 8)))

TWO = ((1, 6, 0), (1, 6, 0))


def _with_constant(parts: Parts) -> Parts:
    """The first layer's bias puts 1 on a spare coordinate."""
    return change(parts, (BO, S0, 1))


def _compensated() -> Parts:
    """Tokens hold what the bias adds, BOS does not."""
    parts = gather(related=strictly_before, default=0)
    parts[BV][0, 2] = 1.5
    for t in TOKENS:
        parts[V][0, t, 2] -= 1.5
    return parts


def _little_at_bos() -> Parts:
    """BOS's value is nearly wrong; what a stray head adds there makes it wrong."""
    parts = _stray_at_bos()
    parts[V][1, B, 0] = 0.49
    parts[V1][0, S2 + 1, 2] = 1
    parts[V1][0, BOS, 0], parts[V1][0, BOS, 2] = -0.3, 0.49
    return parts


def _constant_of_tokens() -> Parts:
    """A bias says "x" always, and the values say "y" for b."""
    parts = gather()
    constant = mapping([0], [0, 0, 0], ("x", "y"))
    made = blank(core(constant, Select(1, 1, table(before)), Aggregate(3, 2, -1, ("x", "y"))), ((1, 6, 0),), ("x", "y"))
    score_places(made, 80.0, before)
    change(made, (BV, (0, 0), 1), (WO, (0, 0, OUT[0]), 1), (WO, (0, 1, OUT[1]), 1), (V, (0, B, 1), 3))
    unembed(made, OUT[:2])
    made.heads, made.reads = [replace(parts.heads[0], node=4, encoding=OneHot(tuple(OUT[:2])))], (4,)
    return made


def _integers() -> Parts:
    """All places are selected, but attention is on place 1."""
    parts = change(share(), (K, (0, PLACES[1], 0), 30))
    return role(parts, atoms=(Atom(1, 1, np.ones((3, 3), dtype=int)),))  # type: ignore[arg-type]


def _comparison_twice() -> Parts:
    parts = change(_with_sink(), (K, (0, BOS, 3), 96))
    return role(parts, atoms=(parts.heads[0].atoms[0], Atom(1, 1, table(before))))


def _seen_by_bos() -> Parts:
    """BOS saw a place's token in the first layer, and is a louder key for it in the second."""
    parts = twice(second=before)
    return change(parts, (Q, (0, BOS, 1), 900), (K1, (0, BOS, 3), 72), (V1, (0, BOS, 2), 1), (K1, (0, OUT[2], 3), 30))


def _scaled_noise() -> Parts:
    parts = change(disturb(_with_sink(20.0, NOISY), S0, 1, 0), (K1, (0, S0, 3), -15))
    parts.config["attention_scale"] = 4.0
    return parts


def _soft_noise() -> Parts:
    return change(disturb(_with_sink(layers=NOISY), S0, 1, 0), (K1, (0, S0, 3), -60))


def _opposite_noise() -> Parts:
    parts = gather(layers=((0, 0, 2), (1, 6, 0)))
    change(parts, (IN, (A, 0), 1), (UP, (0, S0), 1), (IN, (B, 1), 1), (UP, (1, S0), -1))
    parts.neurons = [NeuronRole(0, (0, 2), (0,), 0, Scalar(S0, (0.0, 0.0, 0.0)))]
    return change(parts, (K1, (0, BOS, 3), 8), (K1, (0, S0, 3), 56))


def _cancelling_scores(copies: int = 10, gap: float = 6000.0) -> Parts:
    """Scores of 2^60, which cancel, and a hundred of 127 between them, which float64 loses if it sums in this order."""
    width = D_MODEL + 3 * copies
    maps = [mapping([0], [0, 1, 2], VOCAB) for _ in range(copies)]
    nodes = (*maps, Select(0, 0, table(equal)), Aggregate(2 + copies, 0, -1, VOCAB))
    parts = blank(core(*nodes), [(0, 0, 3 * copies), (1, 5 + copies, 0)], d_model=width)
    q, k = parts[Q1][0], parts[K1][0]
    for c in range(copies):
        dims = tuple(range(D_MODEL + 3 * c, D_MODEL + 3 * c + 3))
        for t in range(3):
            parts[IN][TOKENS[t], 3 * c + t] = parts[UP][3 * c + t, dims[t]] = 1
        parts.neurons.append(NeuronRole(0, (3 * c, 3 * c + 3), (0,), 2 + c, OneHot(dims)))
        q[dims[0], 5 + c] = 1
        k[D_MODEL + 1 :: 3, 5 + c] = 127
    parts["1.attn.b_Q"][0, 0] = 2.0**30
    k[[*PLACES, BOS], 0] = -(2.0**30)
    for t in range(3):
        q[TOKENS[t], 2 + t], k[TOKENS[t], 2 + t] = gap, 1
        parts[V1][0, TOKENS[t], t] = parts[O1][0, t, OUT[t]] = 1
    unembed(parts, OUT)
    parts.heads = [HeadRole(1, 0, 3 + copies, (Atom(0, 0, table(equal)),), (0,), ONE_HOT)]
    parts.reads = (3 + copies,)
    return parts


def _biased_bos() -> Parts:
    """All queries like "b" a little; BOS prefers it to itself."""
    parts = twice(chosen=before)
    return change(parts, (Q, (0, BOS, 3), 1), (K, (0, BOS, 3), 16), (BQ, (0, 5), 1), (K, (0, B, 5), 50))


def _asked_by_what_it_saw() -> Parts:
    """What BOS saw in the first layer decides what it asks for in the second; the third finds that at BOS."""
    parts = twice(layers=((1, 6, 0), (1, 6, 0), (1, 6, 0)), first=1, chosen=before)
    nodes = parts.program.nodes
    score_places(parts, 80.0, before)
    change(parts, (Q, (0, BOS, 1), 900), (V, (0, A, 0), 1), (V, (0, B, 1), 1), (V, (0, C, 2), 1))
    for t in range(3):
        parts[WO][0, t, S2 + 1 + t] = 1
    change(parts, (K1, (0, BOS, 3), 16), (Q1, (0, S2 + 2, 4), 1), (K1, (0, B, 4), 30))
    extended(parts, Aggregate(2, 0, 0, VOCAB))
    parts.heads.insert(0, HeadRole(0, 0, len(nodes), parts.heads[0].atoms, (0,), OneHot(tuple(range(S2 + 1, S2 + 4)))))
    return parts


def _empty_without_bos() -> Parts:
    """At the first place nothing is selected, and all places get the same low score."""
    parts = gather(related=strictly_before, bos=False)
    nodes = parts.program.nodes
    parts.program = core(nodes[2], replace(nodes[3], default=0))  # type: ignore[type-var]
    for i in range(3):
        parts[Q][0, PLACES, i] = [-80.0 * (i != j - 1) for j in range(3)]
    change(parts, (U, (OUT[0], 0), 0), (WO, (0, 0, OUT[0]), 0), (BU, 0, 0.5))
    return role(parts, encoding=OneHot((-1, OUT[1], OUT[2])))


def _low_without_bos() -> Parts:
    parts = gather(0.5, bos=False)
    parts[Q][0, PLACES, 0:3] -= 50
    return parts


def _none_among_numbers() -> Parts:
    """ "c" selects "c" only and gives None, at -1; the model writes 1 for it."""
    values: tuple[Value, ...] = (None, 0, Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), 1)
    points = (-1.0, 0.0, 1 / 3, 0.5, 2 / 3, 1.0)

    def related(k: int, q: int) -> bool:
        return (k == 2) == (q == 2)

    number = mapping([0], [2, 1, 0], (None, 0, 1))
    parts = blank(core(number, Select(0, 0, table(related)), Aggregate(3, 2, -1, values)), ((1, 6, 0),), values, points)
    for i in range(3):
        parts[K][0, TOKENS[i], i] = 1
        parts[Q][0, TOKENS, i] = [80.0 * related(i, j) for j in range(3)]
    change(parts, (V, (0, A, 0), 1), (V, (0, C, 0), 1), (WO, (0, 0, OUT[0]), 1), (U, (OUT[0], 0), 1))
    encoding = Scalar(OUT[0], points)
    parts.heads = [HeadRole(0, 0, 4, (Atom(0, 0, table(related)),), (0,), encoding, (OUT[0], 0.0, 1.0))]
    parts.reads = (4,)
    return parts


def _softer_than_keys() -> Parts:
    parts = change(twice(), (Q, (0, BOS, 4), 1), (K, (0, BOS, 4), -100))
    parts[K][0, PLACES, 4] = -40
    return parts


def _bent_and_biased() -> Parts:
    """The points are below the line, the values above it. (1/3 and 2/3 do not occur.)"""
    points = (-0.1, -5.0, 0.4, 7.0, 0.9)
    parts = change(share(), (BV, (0, 0), 0.16))
    parts.codec, parts.domain = replace(parts.codec, points=points), sequences(VOCAB, [1, 2])
    return role(parts, encoding=Scalar(OUT[0], points))


def _one_more() -> Parts:
    parts = count_without_bos(points=(1 / 2, 1 / 3, 1 / 4))
    parts[Q][0, PLACES, 0:3] -= 40
    return parts


def _slightly(amount: float, points: tuple[float, float, float]) -> Parts:
    """Counting without BOS, where key "b" is a little louder."""
    return change(count_without_bos(points=points), (K, (0, B, 3), 1), (BQ, (0, 3), amount))
