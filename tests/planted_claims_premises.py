"""False claims that break one premise of the rule for heads, and no other."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from certiformer.compiler.alignment import Atom, HeadRole, NeuronRole, OneHot, Scalar
from certiformer.compiler.core import Aggregate, Select, Value
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
    mapping,
    table,
    unembed,
)
from .planted_claims_head import stray_at_bos, with_sink
from .planted_models import (
    BO,
    BQ,
    BU,
    BV,
    IN,
    K1,
    NOISY,
    O1,
    Q1,
    S0,
    S2,
    TWO,
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
    count,
    count_without_bos,
    disturb,
    equal,
    extended,
    gather,
    into,
    role,
    score_places,
    share,
    strictly_before,
    tight,
    twice,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)


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
_("the constant asks for BOS", lambda: change(_with_constant(with_sink(layers=TWO)), (Q1, (0, S0, 3), 9)))
_(
    "the constant is no key",
    lambda: change(_with_constant(with_sink(layers=TWO)), (K1, (0, BOS, 3), 96), (K1, (0, S0, 3), -56)),
)
_("a place asks for BOS", lambda: change(with_sink(), (Q, (0, PLACES[1], 3), 9)))
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
_("one place is softer than BOS", lambda: change(with_sink(), (Q, (0, PLACES[2], 1), 30)))
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
    parts = stray_at_bos()
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
    return role(parts, atoms=(Atom(1, 1, np.ones((3, 3), dtype=int)),))


def _comparison_twice() -> Parts:
    parts = change(with_sink(), (K, (0, BOS, 3), 96))
    return role(parts, atoms=(parts.heads[0].atoms[0], Atom(1, 1, table(before))))


def _seen_by_bos() -> Parts:
    """BOS saw a place's token in the first layer, and is a louder key for it in the second."""
    parts = twice(second=before)
    return change(parts, (Q, (0, BOS, 1), 900), (K1, (0, BOS, 3), 72), (V1, (0, BOS, 2), 1), (K1, (0, OUT[2], 3), 30))


def _scaled_noise() -> Parts:
    parts = change(disturb(with_sink(20.0, NOISY), S0, 1, 0), (K1, (0, S0, 3), -15))
    parts.config["attention_scale"] = 4.0
    return parts


def _soft_noise() -> Parts:
    return change(disturb(with_sink(layers=NOISY), S0, 1, 0), (K1, (0, S0, 3), -60))


def _opposite_noise() -> Parts:
    parts = gather(layers=((0, 0, 2), (1, 6, 0)))
    change(parts, (IN, (A, 0), 1), (UP, (0, S0), 1), (IN, (B, 1), 1), (UP, (1, S0), -1))
    parts.neurons = [NeuronRole(0, (0, 2), (0,), 0, Scalar(S0, (0.0, 0.0, 0.0)))]
    return change(parts, (K1, (0, BOS, 3), 8), (K1, (0, S0, 3), 56))


def _cancelling_scores(copies: int = 10, gap: float = 6000.0) -> Parts:
    """Scores of 2^60, which cancel, and a hundred of 127 between them, which float64 loses if it sums in this order."""
    width = D_MODEL + 3 * copies
    maps = [mapping([0], [0, 1, 2], VOCAB) for _ in range(copies)]
    program = core(*maps, Select(0, 0, table(equal)), Aggregate(2 + copies, 0, -1, VOCAB))
    parts = blank(program, [(0, 0, 3 * copies), (1, 5 + copies, 0)], d_model=width)
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
    parts.program = core(parts.program.nodes[2], Aggregate(2, 0, 0, VOCAB))
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
