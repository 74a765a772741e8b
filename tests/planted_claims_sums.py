"""False claims about the scale of scores, sums of means, counts with an error of their own, and ramps by known
coordinates."""

from __future__ import annotations

from dataclasses import replace

from certiformer.compiler.alignment import HeadRole, NeuronRole, OneHot, Scalar
from certiformer.compiler.core import Aggregate, Select, Width

from .planted import BOS, OUT, PLACES, SPARE, Parts, blank, core, mapping, table, unembed
from .planted_models import (
    MEANS,
    A,
    B,
    Claims,
    always,
    change,
    count,
    equal,
    exchange,
    extended,
    gather,
    into,
    share,
    strictly_before,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)

_("scores divided by their root", lambda: _scaled_down())
_("a sum of means of others", lambda: _mean_sum(of=(0, 1, 0)))
_("a sum of twice a mean", lambda: _twice_a_mean())
_("a sum of means over others", lambda: _mean_sum(of=(1, 0, 0), first_only=True))
_("a sum of means with another default", lambda: _mean_sum_by_default())
_("a count with an error before neurons", lambda: _count_before_neurons())
_("no ramp: known of one token only", lambda: change(exchange(), ("0.mlp.W_in", (B, 3), 12)))
_("no ramp: another height", lambda: _known_height())
_("no ramp at BOS", lambda: _ramp_at_bos())


def _scaled_down() -> Parts:
    """Right with a scale of 1; with 1 / sqrt(6) the scores are too near each other."""
    parts = count(3.3)
    parts.config["attention_scale"] = "1/sqrt(d_head)"
    return parts


def _twice_a_mean() -> Parts:
    """The head computes twice the share of "a"; the claim is about the share, said to be twice another equal one."""
    parts = _mean_sum(of=(1, 0, 0))
    role = parts.heads[0]
    points = tuple(2 * point for point in parts.codec.points)
    parts.heads = [replace(role, encoding=Scalar(OUT[0], points), affine=(OUT[0], 0.0, 2.0))]
    parts.sums = {4: ((role.node, 2),)}
    return change(parts, ("0.attn.W_V", (0, A, 0), 2))


def _mean_sum(of: tuple[int, int, int], first_only: bool = False) -> Parts:
    """The head computes the share of "a"; the claim is about the share of `of`, said to be as much."""
    parts = share()
    nodes = list(parts.program.nodes)
    nodes[2] = mapping([0], of, (0, 1))
    if first_only:
        nodes[3] = Select(1, 1, table(lambda k, q: k == 0))
        nodes[4] = Aggregate(3, 2, -1, (0, 1))
    parts.program = core(*nodes[2:])
    extra = [mapping([0], (1, 0, 0), (0, 1)), Select(1, 1, table(always))]
    head = parts.heads[0]
    if first_only:
        extended(parts, *extra, Aggregate(6, 5, -1, MEANS))
        made = 7
    else:
        extended(parts, extra[0], Aggregate(3, 5, -1, MEANS))
        made = 6
    parts.heads = [HeadRole(0, 0, made, head.atoms, (0,), head.encoding, head.affine)]
    parts.sums, parts.reads = {4: ((made, 1),)}, (made,)
    return parts


def _mean_sum_by_default() -> Parts:
    """The token before, as a number; none before the first: there the claim says 1 and the head gives BOS's 0."""

    def related(k: int, q: int) -> bool:
        return k == q - 1

    marks = mapping([0], (1, 0, 0), (0, 1))
    parts = blank(
        core(marks, Select(1, 1, table(related)), Aggregate(3, 2, 1, (0, 1))), ((1, 6, 0),), (0, 1), (0.0, 1.0)
    )
    for k in range(3):
        parts["0.attn.W_K"][0, PLACES[k], k] = 1
        for q in range(3):
            parts["0.attn.W_Q"][0, PLACES[q], k] = 80 * related(k, q)
    parts["0.attn.b_Q"][0, 3] = 1
    parts["0.attn.W_K"][0, BOS, 3] = 40
    parts["0.attn.W_V"][0, A, 0] = 1
    parts["0.attn.W_O"][0, 0, OUT[0]] = 1
    parts["unembed.W_U"][OUT[0], 0] = 1
    extended(parts, Aggregate(3, 2, 0, (0, 1)))
    atoms = count(related=related).heads[0].atoms[0]
    place = type(atoms)(1, 1, table(related))
    parts.heads = [HeadRole(0, 0, 5, (place,), (0,), Scalar(OUT[0], (0.0, 1.0)))]
    parts.sums, parts.reads = {4: ((5, 1),)}, (5,)
    return parts


def _count_before_neurons() -> Parts:
    """Scores so small that BOS's share is not that of the count, which neurons read with thresholds between shares."""
    parts = blank(core(Select(0, 0, table(equal)), Width(2, (1, 2, 3))), ((1, 6, 6),), (1, 2, 3))
    counting = count(1.5)
    for name, array in counting.weights.items():
        if ".attn." in name:
            parts.weights[name][:] = array
    steep, thresholds = 100.0, (5 / 12, 7 / 24)
    for j, threshold in enumerate(thresholds):  # above the first: 1; else above the second: 2; else 3
        parts["0.mlp.W_in"][OUT[0], 2 * j : 2 * j + 2] = steep
        parts["0.mlp.b_in"][2 * j : 2 * j + 2] = (-steep * threshold + 0.5, -steep * threshold - 0.5)
        parts["0.mlp.W_out"][2 * j, [10 + j, 11 + j]] = (1, -1)
        parts["0.mlp.W_out"][2 * j + 1, [10 + j, 11 + j]] = (-1, 1)
    parts["0.mlp.b_in"][4] = 1
    parts["0.mlp.W_out"][4, 12] = 1
    unembed(parts, (10, 11, 12))
    role = counting.heads[0]
    parts.heads = [HeadRole(0, 0, 3, role.atoms, (), role.encoding)]
    parts.neurons, parts.reads = [NeuronRole(0, (0, 5), (3,), 3, OneHot((10, 11, 12)))], (3,)
    return parts


def _known_height() -> Parts:
    """Ramps that saturate by a coordinate that is 1 at every token: at a twentieth of what is said."""
    parts = exchange()
    ones = 12
    parts["embed.W_E"][:3, ones] = 1
    for t in range(3):
        parts["0.mlp.W_in"][ones, 2 * t + 1] = 3.8
    parts["unembed.b_U"][0] = 0.5
    return parts


def _ramp_at_bos() -> Parts:
    """Two neurons leave relu(9) - relu(9 - 1) = 1 at BOS: at the first place, a head takes it for "c", not for "a"."""
    parts = gather(related=strictly_before, default=0, layers=((0, 0, 2), (1, 6, 0)))
    parts["0.mlp.W_in"][BOS] = 9
    parts["0.mlp.b_in"][:] = (0, -1)
    parts["0.mlp.W_out"][:, SPARE[0]] = (1, -1)
    parts["1.attn.W_V"][0, SPARE[0], 2] = 3
    node = len(parts.program.nodes)
    extended(parts, mapping([], 0, (0,)))
    parts.neurons = [NeuronRole(0, (0, 2), (), node, Scalar(SPARE[0], (0.0,)))]
    return parts
