"""False claims about heads: scores, values, idle heads, and what becomes of BOS."""

from __future__ import annotations

from collections.abc import Sequence

from certiformer.compiler.alignment import Atom, HeadRole, OneHot
from certiformer.compiler.core import Aggregate, And, Select

from .planted import (
    BOS,
    ONE_HOT,
    OUT,
    PLACES,
    TOKENS,
    VOCAB,
    Parts,
    blank,
    core,
    echo,
    table,
    unembed,
)
from .planted_models import (
    BO,
    BQ,
    BUP,
    BV,
    IN,
    K1,
    NOISY,
    O1,
    Q1,
    S0,
    S2,
    UP,
    V1,
    WO,
    A,
    B,
    C,
    Claims,
    K,
    Q,
    U,
    V,
    before,
    change,
    disturb,
    equal,
    gather,
    into,
    role,
    strictly_before,
    tight,
    twice,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)


# --- the head: scores
_("weak gap", lambda: gather(0.5))
_("tight gap", lambda: tight(gather(4.0)))
_("tight others", lambda: tight(change(gather(4.0), (K, (0, BOS, 3), -4))))
_("queries look nowhere", lambda: change(gather(), (Q, 0, 0), (BQ, (0, 3), -1)))
_("sink takes all", lambda: change(with_sink(), (BQ, (0, 3), 9)))
_("sink takes all on b", lambda: change(with_sink(), (Q, (0, B, 3), 9)))
_("sink takes all from b", lambda: change(with_sink(), (K, (0, B, 3), -9 * 40)))
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


def with_sink(gap: float = 80.0, layers: Sequence[tuple[int, int, int]] = ((1, 6, 0),)) -> Parts:
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
_("BOS changed by a stray head", lambda: stray_at_bos())
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


def stray_at_bos() -> Parts:
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
    parts = stray_at_bos()
    return change(parts, (V1, (0, S2 + 1, 2), 0), (K1, (0, S2 + 1, 3), 90))
