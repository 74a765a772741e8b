"""False claims about the walk through the layers, selectors, and what is claimed; each breaks one premise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from certiformer.compiler.alignment import Atom, NeuronRole, OneHot, Scalar, Scaled
from certiformer.compiler.core import Aggregate, And, CoreProgram, Node, Not, Or, Select, Width
from certiformer.models.circuits import Circuit
from certiformer.models.languages import regular, sequences
from certiformer.models.patterns import token
from certiformer.verifier.claims import Claim, Computes, Faithful, Margin, NeverOutputs
from certiformer.verifier.reading import Subject

from .planted import BOS, LENGTH, ONE_HOT, OUT, PLACES, TOKENS, VOCAB, Parts, blank, core, echo, mapping, table, unembed
from .planted_models import (
    BIN,
    BO,
    BQ,
    BU,
    IN,
    S0,
    S2,
    UP,
    V1,
    A,
    B,
    C,
    Claims,
    K,
    Q,
    Related,
    U,
    V,
    always,
    change,
    count,
    echoing,
    equal,
    exchange,
    extended,
    first,
    gather,
    into,
    later,
    never,
    role,
    score_places,
    share,
    twice,
    up_to,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)


def claimed(parts: Parts, claim_of: Callable[[Subject, CoreProgram], Claim]) -> Parts:
    parts.claim_of = claim_of
    return parts


def configured(parts: Parts, **settings: Any) -> Parts:
    parts.config.update(settings)
    return parts


# --- scores
_("nothing is selected by two atoms", lambda: _nothing_by_two())


def _nothing_by_two() -> Parts:
    """Neither atom ever holds, so "a" is the output; but BOS is softer than all places."""
    parts = gather(related=never, default=0)
    parts.program = core(Select(1, 1, table(never)), Select(0, 0, table(never)), And(2, 3), Aggregate(4, 0, 0, VOCAB))
    parts.reads = (5,)
    change(parts, (K, (0, BOS, 3), -80))
    return role(parts, node=5, atoms=(Atom(1, 1, table(never)), Atom(0, 0, table(never))))


# --- scope
_("wrong width share", lambda: _wrong_width_share())
_("LayerNorm reads its bias", lambda: _norm())
_("silu lets through what relu stops", lambda: _silu())
_("the mean of all positions is read", lambda: configured(echo(), readout="mean"))
_("a causal mean", lambda: configured(share(), causal=True))
_("tokens of another order", lambda: _relabelled())
_("no room for the longest", lambda: _short())


def _wrong_width_share() -> Parts:
    """All tokens are counted; a width share says that one less are equal to this one."""
    parts = count(related=always, points=(1 / 3, 1 / 4, 1 / 5))
    parts.program = core(Select(0, 0, table(equal)), Width(2, (1, 2, 3)))
    zero = mapping([0], [0, 0, 0], (0,))
    extended(parts, Select(0, 0, table(always)), Width(4, (1, 2, 3)), zero, Aggregate(4, 6, -1, (0,)))
    parts.shares, parts.reads = [(3, 5, 7)], (5, 7)
    return role(parts, node=5, encoding=Scalar(OUT[0], (1 / 2, 1 / 3, 1 / 4)))


def _norm() -> Parts:
    parts = echoing([], layer_norm=1e-5)
    return change(parts, ("ln_final.w", slice(None), 0), ("ln_final.b", A, 1))


def _silu() -> Parts:
    """A neuron below zero: silent under relu."""
    parts = echoing([(0, 0, 1)], activation="silu")
    return change(parts, (BIN, 0, -1), (UP, (0, A), 100))


def _relabelled() -> Parts:
    parts = echo()
    parts.codec = replace(parts.codec, vocab=("b", "a", "c"))
    return parts


def _short() -> Parts:
    parts = echo()
    parts.weights["pos_embed.W_pos"] = parts["pos_embed.W_pos"][:LENGTH]
    return configured(parts, n_ctx=LENGTH)


# --- the walk
_("a head pushes the output", lambda: _pushed())
_("a neuron reads the constant", lambda: _constant_neuron())
_("a neuron's bias at BOS", lambda: _neuron_bias_at_bos())
_("a neuron reads what BOS saw", lambda: _neuron_saw())
_("neurons read the place upwards", lambda: change(exchange(), (IN, (PLACES[1], slice(0, 2)), 8)))
_("a ramp of less height", lambda: _low_ramp())
_("the first margins are small", lambda: _small_margins())
_("a constant but for b", lambda: _but_for_b())
_("a number is missing", lambda: _missing_number())


def _pushed() -> Parts:
    """The previous token, written by a head as the explanation says, decides; claimed is the token."""
    parts = gather()
    nodes = parts.program.nodes
    parts.program = core(*nodes[2:], output=0)
    unembed(parts, TOKENS)
    unembed(parts, OUT, 2)
    parts.reads = (0,)
    return parts


def _constant_neuron() -> Parts:
    parts = echoing([(1, 1, 1)])
    return change(parts, (BO, S0, 1), (IN, (S0, 0), 1), (UP, (0, B), 1.5))


def _neuron_bias_at_bos() -> Parts:
    parts = twice(layers=((1, 6, 1), (1, 6, 0)))
    return change(parts, (BIN, 0, 1), (IN, (slice(A, C + 1), 0), -9), (UP, (0, OUT[2]), 3))


def _neuron_saw() -> Parts:
    """A stray head leaves at BOS that there is a "b"; a neuron, silent elsewhere, turns that into "c"."""
    parts = twice(layers=((2, 6, 1), (1, 6, 0)))
    change(parts, (Q, (1, BOS, 0), 9), (K, (1, B, 0), 9), (V, (1, B, 0), 3), ("0.attn.W_O", (1, 0, S2 + 1), 1))
    return change(parts, (IN, (S2 + 1, 0), 1), (IN, (slice(A, C + 1), 0), -9), (UP, (0, OUT[2]), 3))


def _low_ramp() -> Parts:
    """Ramps of height 4 to which a sum of biases would give 8; a bias of the output outweighs half of it."""
    parts = exchange()
    for t in TOKENS:
        parts[IN][TOKENS, 2 * t] = parts[IN][TOKENS, 2 * t + 1] = -16
        parts[IN][t, 2 * t : 2 * t + 2] = 16
    parts[BIN][0:6:2], parts[BIN][1:6:2] = 6, 2
    parts[UP][:6] /= 2
    return change(parts, (BU, 0, 0.75))


def _small_margins() -> Parts:
    return claimed(change(echo(), (U, (C, 2), 5)), lambda subject, _: Margin(subject, 3))


def _but_for_b() -> Parts:
    parts = blank(core(mapping([0], [0, 0, 0], ("x", "y"))), [], ("x", "y"))
    return change(parts, (U, (A, 0), 1), (U, (B, 1), 1), (U, (C, 0), 1))


def _missing_number() -> Parts:
    """The codec has no output 3; the last one stands where 3 is."""
    parts = count()
    parts.codec = replace(parts.codec, outputs=(1, 2), points=(1 / 2, 0.3))
    return parts


# --- states
_("a second write outweighs the first", lambda: _second_write())
_("a bias at BOS that tokens undo", lambda: _undone())
_("read twice, it would win", lambda: _read_twice())
_("a width share of other counts", lambda: _share_of_others())


def _second_write() -> Parts:
    parts = blank(core(mapping([0], [0, 1, 2], VOCAB)), [(0, 0, 6)])
    for t in range(3):
        change(parts, (IN, (TOKENS[t], [t, 3 + t]), 1), (UP, (t, OUT[t]), 1), (UP, (3 + t, OUT[(t + 1) % 3]), 2))
    unembed(parts, OUT)
    turned = Scaled(2, OneHot((OUT[1], OUT[2], OUT[0])))
    parts.neurons = [NeuronRole(0, (0, 3), (0,), 2, ONE_HOT), NeuronRole(0, (3, 6), (0,), 2, turned)]
    parts.reads = (2,)
    return parts


def _undone() -> Parts:
    """The first bias reads as "c" by the second head; every token takes that back, and BOS does not."""
    return change(twice(), (BO, S2 + 1, 1), (V1, (0, S2 + 1, 2), 3), (V1, (0, slice(A, C + 1), 2), -3))


def _read_twice() -> Parts:
    """Every token adds 1 to "x", and "y" has a bias between 1 and 2."""
    parts = blank(core(mapping([0], [0, 0, 0], ("x", "y"))), [], ("x", "y"))
    parts.reads = (0, 0)
    return change(parts, (U, (slice(A, C + 1), 0), 1), (BU, 1, 1.5))


def _share_of_others() -> Parts:
    """Claimed: how many places but the first there are, by a true width share. Read: how many tokens are equal."""

    parts = count()
    is_first = mapping([1], [1, 0, 0], (False, True))
    parts.program = core(Select(1, 1, table(later)), Width(2, (1, 2)))
    extended(
        parts,
        Select(1, 1, table(first)),
        Or(2, 4),
        Width(5, (1, 2, 3)),
        is_first,
        Aggregate(2, 7, -1, (0,)),
        Select(0, 0, table(equal)),
        Width(9, (1, 2, 3)),
    )
    parts.shares, parts.reads = [(3, 6, 8)], (10, 8)
    parts.codec = replace(parts.codec, outputs=(1, 2), points=(1 / 3, 1 / 4))
    parts.domain = sequences(VOCAB, [2, 3])
    return role(parts, node=10)


# --- selectors
_("atoms that differ where they can and cannot", lambda: _impossible_place())
_("a mean over equal places only", lambda: _mean_over_one())
_("twice the width of the same", lambda: _twice_the_width())
_("a count of the others", lambda: counting(Select(0, 0, table(equal)), Not(2)))
_(
    "a count of one condition of two",
    lambda: counting(Select(0, 0, table(equal)), Select(1, 1, table(up_to)), And(2, 3)),
)
_(
    "a count of one condition of either",
    lambda: counting(Select(0, 0, table(equal)), Select(1, 1, table(always)), Or(2, 3)),
)
_("a count that is right for a", lambda: counting(Select(0, 0, table(equal)), related=lambda k, q: k == q or k > 0))


def counting(*nodes: Node, related: Related = equal) -> Parts:
    """Claims the width of the last of `nodes`, for a model that counts equal (or so `related`) tokens."""
    parts = count(related=related, counts=(0, 1, 2, 3))
    parts.program = core(*nodes, Width(1 + len(nodes), (0, 1, 2, 3)))
    width = 2 + len(nodes)
    parts.reads = (width,)
    return role(parts, node=width)


def _impossible_place() -> Parts:
    """For query "b" all places get the score that only the first should; "c" is a whole input, and has one place."""

    def also(k: int, q: int) -> bool:
        return k == 0 or q == 1 or (q, k) == (2, 2)

    parts = gather()
    parts.program = core(Select(1, 0, table(first)), Aggregate(2, 0, -1, VOCAB))
    parts[Q][:, PLACES, :3] = 0
    for k in range(3):
        parts[Q][0, TOKENS, k] = [80.0 * also(k, q) for q in range(3)]
    short = token("a", "b")
    parts.domain = regular(token("c") | (short + short) | (short + short + short), VOCAB, [1, 2, 3])
    return role(parts, atoms=(Atom(1, 0, table(also)),))


def _mean_over_one() -> Parts:
    parts = change(share(), (BQ, (0, 0), 0), (K, (0, BOS, 0), 0))
    score_places(parts, 80, equal)
    return role(parts, atoms=(Atom(1, 1, table(equal)),))


def _twice_the_width() -> Parts:
    """ "w is twice w'", of the same selector."""
    parts = count()
    extended(parts, Width(2, (1, 2, 3)))
    parts.sums, parts.reads = {3: ((4, 2),)}, (4,)
    parts.codec = replace(parts.codec, points=(1.0, 1 / 2, 0.0))
    return role(parts, node=4, encoding=Scalar(OUT[0], (1 / 2, 1 / 3, 1 / 4)))


# --- what is claimed
_("another program than the explanation's", lambda: _another_program())
_("a partial program", lambda: _partial())
_("an output that is possible", lambda: claimed(echo(), lambda subject, _: NeverOutputs(subject, ["a"])))
_("no flow but through LayerNorm", lambda: _through_norm())


def _another_program() -> Parts:
    other = core(mapping([0], [1, 2, 0], VOCAB))
    return claimed(echo(), lambda subject, _: Computes(subject, other))


def _partial() -> Parts:
    """ "a" for "a", "b" for "b", and no value for "c"."""
    parts = echo()
    parts.program = core(mapping([0], [0, 1, -1], VOCAB))
    return parts


def _through_norm() -> Parts:
    """A neuron writes where nobody reads, but for the norm."""

    def claim(subject: Subject, program: CoreProgram) -> Claim:
        return Faithful(subject, Circuit.from_edges(["input->logits"]), "zero")

    parts = claimed(echoing([(0, 0, 1)], layer_norm=1e-5), claim)
    for name in ("ln_final.w", "0.ln2.w"):
        parts[name][:] = 1
    return change(parts, (BIN, 0, 9), (UP, (0, S0), 100), (BU, 1, 0.5))
