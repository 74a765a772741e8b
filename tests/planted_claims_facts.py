"""False claims that a wrong fact about the program would let pass: what cannot occur is not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from certiformer.compiler.alignment import Atom, HeadRole, NeuronRole, OneHot, Scalar
from certiformer.compiler.core import Aggregate, And, CoreProgram, Linear, Map, Not, Or, Select, Value, Width
from certiformer.models.languages import regular, sequences
from certiformer.models.patterns import token

from .planted import BOS, OUT, PLACES, TOKENS, VOCAB, Parts, blank, core, mapping, table, unembed
from .planted_models import (
    BQ,
    BU,
    IN,
    K1,
    MEANS,
    S0,
    S1,
    S2,
    TWO,
    UP,
    A,
    B,
    C,
    Claims,
    K,
    Q,
    Related,
    U,
    always,
    change,
    count,
    disturb,
    echoing,
    equal,
    extended,
    first,
    into,
    later,
    never,
    role,
    share,
    twice,
)

CLAIMS: Claims = {}
_ = into(CLAIMS)


# --- how many are selected
_("a count that is wrong for three", lambda: count(points=(1 / 2, 1 / 3, 0.9)))
_("a count that is wrong for one", lambda: within(count(points=(0.9, 1 / 3, 1 / 4)), [2, 3]))
_("a causal count that is wrong for one", lambda: _causal_count(0))
_("a causal count of places that is wrong for one", lambda: _causal_count(1))
_("a causal count that is wrong for three", lambda: _causal_count_by_place())
_("a count that is wrong for none", lambda: _count_of_a())
_("a count of one place that is wrong for none", lambda: _count_of_one_place())
_("a count that is wrong, by or", lambda: _by_or())
_("a count that is wrong, by not", lambda: _by_not())
_("a count that is wrong, by and", lambda: _by_and())


def within(parts: Parts, lengths: Sequence[int]) -> Parts:
    parts.domain = sequences(VOCAB, lengths)
    return parts


def _counted(program: CoreProgram, key: int, query: int, related: Related, points: Sequence[float]) -> Parts:
    """The width (node 3) of one comparison of two embedded nodes, as BOS's share; the codec reads other points."""
    counts: tuple[Value, ...] = (0, 1, 2, 3)
    parts = blank(program, ((1, 6, 0),), counts, points)
    dims = (TOKENS, PLACES)
    for i in range(3):
        parts[K][0, dims[key][i], i] = 1
        parts[Q][0, dims[query], i] = [40.0 * related(i, j) for j in range(3)]
    change(parts, (BQ, (0, 3), 1), (K, (0, BOS, 3), 40))
    change(parts, ("0.attn.W_V", (0, BOS, 0), 1), ("0.attn.W_O", (0, 0, OUT[0]), 1), (U, (OUT[0], 0), 1))
    width = len(program.nodes) - 1
    atom = Atom(key, query, table(related))
    parts.heads = [HeadRole(0, 0, width, (atom,), (), Scalar(OUT[0], tuple(points)))]
    parts.reads = (width,)
    return parts


def _causal_count(query: int) -> Parts:
    program = core(Select(query, 0, table(always)), Width(2, (0, 1, 2, 3)), causal=True)
    return within(_counted(program, query, 0, always, (1, 0.9, 1 / 3, 1 / 4)), [3])


def _causal_count_by_place() -> Parts:
    program = core(Select(1, 1, table(always)), Width(2, (0, 1, 2, 3)), causal=True)
    return _counted(program, 1, 1, always, (1, 1 / 2, 1 / 3, 0.9))


def _count_of_a() -> Parts:
    program = core(Select(0, 1, table(first)), Width(2, (0, 1, 2, 3)))
    return _counted(program, 0, 1, first, (0.1, 1 / 2, 1 / 3, 1 / 4))


def _count_of_one_place() -> Parts:
    """Counts the first place if it is an "a"."""
    both = (Select(1, 0, table(first)), Select(0, 0, table(first)))
    parts = _counted(core(*both, And(2, 3), Width(4, (0, 1, 2, 3))), 1, 0, first, (0.1, 1 / 2, 1 / 3, 1 / 4))
    change(parts, (K, (0, A, 4), 40), (BQ, (0, 4), 1), (K, (0, BOS, 3), 80))
    return role(parts, atoms=(Atom(1, 0, table(first)), Atom(0, 0, table(first))))


def _by_or() -> Parts:
    program = core(Select(0, 0, table(never)), Select(0, 0, table(always)), Or(2, 3), Width(4, (0, 1, 2, 3)))
    return _counted(program, 0, 0, always, (1, 0.9, 0.8, 0.7))


def _by_not() -> Parts:
    program = core(Select(0, 0, table(never)), Not(2), Width(3, (0, 1, 2, 3)))
    return _counted(program, 0, 0, always, (1, 0.9, 0.8, 0.7))


def _by_and() -> Parts:
    program = core(Select(0, 0, table(always)), Select(0, 0, table(never)), And(2, 3), Width(4, (0, 1, 2, 3)))
    return _counted(program, 0, 0, never, (0.1, 1 / 2, 1 / 3, 1 / 4))


# --- what is selected
_("a mean of two is another number", lambda: _bent_mean_of_two())
_("a mean of three is another number", lambda: _bent((0, 0.9, 1 / 2, 2 / 3, 1)))
_("a mean over all ranks is another number", lambda: _bent_over_ranks())
_("two tokens of one rank", lambda: _ranked(lambda k, q: k < 2 and q == 2))
_("what is counted is no rank", lambda: _ranked(lambda k, q: k == 2 and q == 1 or k > 0 and q == 2))
_("two places of one rank", lambda: _ranked(lambda k, q: k < 2 and q == 2, key=1, query=1))
_("a causal rank", lambda: _ranked(lambda k, q: k < q, causal=True))


def _bent(points: Sequence[float]) -> Parts:
    parts = share()
    parts.codec = replace(parts.codec, points=tuple(points))
    return role(parts, encoding=Scalar(OUT[0], tuple(points)))


def _bent_mean_of_two() -> Parts:
    """Half of the first two places is read as 0.9."""

    def two(k: int, q: int) -> bool:
        return k < 2

    parts = _bent((0, 1 / 3, 0.9, 0.6, 1))
    nodes = parts.program.nodes
    parts.program = core(nodes[2], Select(1, 1, table(two)), nodes[4])
    change(parts, (K, (0, PLACES[2], 0), -80))
    return role(parts, atoms=(Atom(1, 1, table(two)),))


def _bent_over_ranks() -> Parts:
    """All keys are selected, said by the ranks of their tokens."""
    parts = _bent((0, 1 / 3, 0.9, 0.6, 1))

    def less(k: int, q: int) -> bool:
        return k < q

    every = Select(4, 4, table(always, 4, 4))
    parts.program = core(
        parts.program.nodes[2],
        Select(0, 0, table(less)),
        Width(3, (0, 1, 2, 3)),
        every,
        Aggregate(5, 2, -1, MEANS),
    )
    parts.reads = (6,)
    return role(parts, node=6, atoms=(Atom(4, 4, every.table),))


def _ranked(related: Related, key: int = 0, query: int = 0, causal: bool = False) -> Parts:
    """The token where a count is 0, though there may be two such tokens: the program has no value then."""

    def none(k: int, q: int) -> bool:
        return k == 0

    points = (1, 1 / 2, 1 / 3, 1 / 4)
    counting = Select(key, query, table(related))
    chosen = Select(3, 0, table(none, 4, 3))
    counted = _counted(core(counting, Width(2, (0, 1, 2, 3)), causal=causal), key, query, related, points)
    parts = blank(core(counting, Width(2, (0, 1, 2, 3)), chosen, Aggregate(4, 0, 0, VOCAB), causal=causal), TWO)
    for name in parts.weights:
        if name.startswith("blocks.0."):
            parts.weights[name][:] = counted.weights[name]
    parts["0.attn.W_O"][0, 0] = 0
    change(parts, ("0.attn.W_O", (0, 0, S0), 1), ("1.attn.b_Q", (0, 0), 1))
    parts[K1][0, S0, 0], parts[K1][0, BOS, 0] = 320, -80  # BOS holds 1 too
    for t in range(3):
        change(parts, ("1.attn.W_V", (0, TOKENS[t], t), 1), ("1.attn.W_O", (0, t, OUT[t]), 1))
    change(parts, ("1.attn.W_V", (0, BOS, 0), 1))
    unembed(parts, OUT)
    parts.heads = [
        replace(counted.heads[0], encoding=Scalar(S0, points)),
        HeadRole(1, 0, 5, (Atom(3, 0, chosen.table),), (0,), OneHot(tuple(OUT))),
    ]
    parts.reads = (5,)
    return parts


# --- resolving
_("read from something coarser", lambda: _coarser())
_("a width sum of itself", lambda: _circular())
_("the place in place of the token", lambda: _place_for_token())
_("twice a number is the number", lambda: _linear(2, 0, (0, 2, 4), {A: 0, C: 1}))
_("a number and one is the number", lambda: _linear(1, 1, (1, 2, 3), {B: 0, C: 1}))


def _coarser() -> Parts:
    """ "a" or not is written and read; the token is claimed."""
    parts = blank(core(mapping([0], [1, 0, 0], (0, 1)), output=0), [(0, 0, 2)])
    change(parts, (IN, ([B, C], 0), 1), (UP, (0, OUT[2]), 1), (IN, (A, 1), 1), (UP, (1, OUT[0]), 1))
    unembed(parts, OUT)
    parts.neurons = [NeuronRole(0, (0, 2), (0,), 2, OneHot((OUT[2], OUT[0])))]
    parts.reads = (2,)
    return parts


def _circular() -> Parts:
    """The output is 1 always; "the width is the width" does not show that it is right."""
    parts = blank(core(Select(0, 0, table(equal)), Width(2, (1, 2, 3))), [], (1, 2, 3), (1, 2, 3))
    parts.sums, parts.reads = {3: ((3, 1),)}, ()
    return change(parts, (BU, 0, 1))


def _place_for_token() -> Parts:
    parts = blank(core(output=0), [])
    unembed(parts, PLACES)
    parts.reads = (1, 0)
    return parts


def _linear(factor: int, constant: int, values: tuple[Value, ...], outputs: dict[int, int]) -> Parts:
    number = mapping([0], [0, 1, 2], (0, 1, 2))
    parts = blank(core(number, Linear((2,), (Fraction(factor),), Fraction(constant), values)), [], values)
    for dim, output in outputs.items():
        parts[U][dim, output] = 1
    parts.reads = (0,)
    return parts


# --- width shares: claimed is how many places but the first there are
_("a width share by the share of another", lambda: _width_share(share_of=4, inside=(1,), points=(0.9, 1 / 4)))
_("a width share by the count of another", lambda: _width_share(counted=equal))
_("a width share that adds no place", lambda: _width_share(zero=never))
_("a width share that adds the last place", lambda: _last_added())
_("a width share of marked places", lambda: _marked(mapping([1], [1, 1, 1], (0, 1))))
_("a width share of marked tokens", lambda: _marked(mapping([0], [1, 0, 0], (0, 1))))
_("a width share of nothing", lambda: _share_of_nothing())
_("a width share that is not less", lambda: _width_share(points=(1 / 2, 1 / 3)))
_("a width share that is wrong for one", lambda: _width_share(points=(0.9, 1 / 4)))


def _width_share(
    counted: Related | None = None,
    zero: Related = first,
    marks: Map | None = None,
    share_of: int = 2,
    inside: tuple[Value, ...] = (0,),
    default: int = -1,
    widths: tuple[int, ...] = (1, 2),
    points: Sequence[float] = (1 / 3, 1 / 4),
    lengths: Sequence[int] = (2, 3),
) -> Parts:
    """`counted` (or what is claimed) or `zero` is counted by the model, and read as one more than is claimed."""

    def either(k: int, q: int) -> bool:
        return (counted or later)(k, q) or zero(k, q)

    program = core(Select(1, 1, table(later)), Width(2, widths))
    marked = marks or mapping([1], [1, 0, 0], (0, 1))
    numbers = (1 / 1, 1 / 2, 1 / 3, 1 / 4)
    parts = _counted(program, 1, 1, either, numbers)
    extended(
        parts,
        Select(1, 1, table(zero)),
        Select(1, 1, table(counted or later)),
        Or(5 if counted else 2, 4),
        Width(6, (0, 1, 2, 3)),
        marked,
        Aggregate(share_of, 8, default, inside),
    )
    parts.shares, parts.reads = [(3, 7, 9)], (7, 9)
    parts.codec = replace(parts.codec, outputs=widths, points=tuple(points))
    return role(within(parts, lengths), node=7)


def _last_added() -> Parts:
    """ "First" by a map of the places that turns them: it is the last of three."""
    parts = _width_share(zero=never)
    nodes = list(parts.program.nodes)
    turned = mapping([1], [1, 2, 0], (0, 1, 2))
    nodes[4], nodes[5] = turned, Select(4, 1, table(first))
    nodes[6] = Or(2, 5)
    parts.program = replace(parts.program, nodes=tuple(nodes))
    return parts


def _marked(marks: Map) -> Parts:
    """All are marked, for all tokens are "a"."""
    parts = _width_share(marks=marks, inside=(1,), points=(0.9, 1 / 4))
    a = token("a")
    parts.domain = regular((a + a) | (a + a + a), VOCAB, [2, 3])
    return parts


def _share_of_nothing() -> Parts:
    return _width_share(default=0, widths=(0, 1, 2), points=(0.9, 1 / 3, 1 / 4), lengths=(1, 2, 3))


# --- rounding
_("noise of two neurons that would cancel", lambda: _cancelling_noise())
_("scaled noise that BOS asks for", lambda: _scaled_curiosity())


def _cancelling_noise() -> Parts:
    """Two neurons write, one for "a" and one for "c", and the next layer takes the difference of what they write."""
    parts = echoing([(0, 0, 2), (0, 0, 1)])
    change(parts, (IN, (A, 0), 1), (UP, (0, S0), 1), (IN, (C, 1), 1), (UP, (1, S1), 1))
    return change(parts, ("1.mlp.W_in", (S0, 0), 1), ("1.mlp.W_in", (S1, 0), -1), ("1.mlp.W_out", (0, B), 1.5))


def _scaled_curiosity() -> Parts:
    parts = disturb(twice(layers=((0, 0, 1), (1, 6, 0), (1, 6, 0)), first=1), S2 + 1, 1, 1)
    parts.config["attention_scale"] = 4.0
    return change(parts, ("1.attn.W_Q", (0, BOS, 4), 9), (K1, (0, S2 + 1, 4), 11))
