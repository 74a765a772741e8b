"""One attention head on the abstract residual stream: scores relative to the sink, BOS as a query (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .core import Bits
from .exact import Exact, Radii, fraction, from_float32, grow, through, zeros
from .model import Model, Weights
from .ranges import Ranges
from .state import State, hull, project
from .weights import capped_sum

Pair = tuple[Fraction, Fraction]


class Head:
    """The head's exact weights and what follows from them and the state before the layer.

    wq and bq carry the scale s: score(i, j) = q_i . k_j up to `inexact` times its size, where |scale - s| <= inexact s.
    key_constant = (const W_V + b_V) W_O, within key_error = eps |W_V||W_O| of any key's value less its nodes' part.
    bos_value = (bos W_V + b_V) W_O, within bos_error = bosr |W_V||W_O|.
    """

    def __init__(self, model: Model, layer: int, number: int, scale: Pair, bos: bool, state: State) -> None:
        def weight(name: str) -> Weights:
            weights: Weights = model.weights[f"blocks.{layer}.attn.{name}"][number]
            return weights

        self.state, self.bos, self.model = state, bos, model
        self.raw_q, self.raw_k, self.raw_v, self.raw_o = (weight(f"W_{x}") for x in "QKVO")
        self.scale, self.inexact = scale
        self.wq, self.bq = (from_float32(part).scaled(self.scale) for part in (self.raw_q, weight("b_Q")))
        self.wk = from_float32(self.raw_k)
        self.wv, self.bv, self.wo = from_float32(self.raw_v), from_float32(weight("b_V")), from_float32(self.raw_o)
        self.key_constant = (state.const @ self.wv + self.bv) @ self.wo
        self.key_error = through(through(state.eps, self.raw_v), self.raw_o)
        self.bos_value = (state.bos @ self.wv + self.bv) @ self.wo if bos else zeros(model.config.d_model)
        self.bos_error = through(through(state.bosr, self.raw_v), self.raw_o)

    def query_error(self, error: Radii) -> Radii:
        """|dq| <= |scale| error |W_Q|."""
        return grow(through(error, self.raw_q) * float(abs(self.scale)))

    def key_difference(self) -> tuple[Exact, Radii]:
        """kd = const W_K - bos W_K and |dk| <= (eps + bosr) |W_K|; without BOS 0 and eps |W_K|."""
        if not self.bos:
            return zeros(self.raw_k.shape[1]), through(self.state.eps, self.raw_k)
        return (self.state.const - self.state.bos) @ self.wk, through(
            grow(self.state.eps + self.state.bosr), self.raw_k
        )

    def scale_error(self, query: Radii, key: Radii) -> Fraction:
        """What the scale is off changes a score by at most this, with a query and a key of at most these sizes."""
        return self.inexact * fraction(float(grow(grow(query) @ grow(key)))) if self.inexact else Fraction(0)


@dataclass(frozen=True)
class Scores:
    """D = score(query, key) - score(query, BOS): selected_low <= D <= selected_high for selected keys (None: no key can
    be selected), D <= other_high for all others (None: there are none)."""

    selected_low: Fraction | None
    selected_high: Fraction | None
    other_high: Fraction | None


def _span(table: Exact, allowed: Bits) -> Pair | None:
    """Least and largest entry where `allowed`; None if nowhere."""
    chosen = table.data[allowed]
    if chosen.size == 0:
        return None
    bounds = Exact(np.array([chosen.min(), chosen.max()], dtype=table.data.dtype), table.exp)
    return bounds.number(0), bounds.number(1)


@dataclass(frozen=True, eq=False)
class Side:
    """Queries, or keys: constant + the sum of tables, within `error`."""

    tables: dict[int, Exact]
    constant: Exact
    error: Radii
    ranges: Ranges

    def sizes(self) -> list[Radii]:
        """Upper bounds of the absolute values of the constant, and of each table's possible rows."""
        tables = [table[self.ranges.some(node)].magnitude() for node, table in self.tables.items()]
        return [self.constant.magnitude()[None, :], *tables]

    def size(self) -> Radii:
        """Upper bound of the whole, error included, by coordinate."""
        return grow(sum((part.max(axis=0) for part in self.sizes()), self.error))

    def against(self, error: Radii) -> Fraction:
        """Upper bound of |constant + sum of tables| . error: each table at its worst row."""
        return fraction(float(grow(sum(float((part @ error).max()) for part in self.sizes()))))


def score_error(head: Head, query: Side, key: Side) -> Fraction:
    """|(q + dq) . (k + dk) - q . k| <= |q| . |dk| + |dq| . |k| + |dq| . |dk|, and what the scale is off."""
    both = fraction(float(grow(query.error @ key.error)))
    return query.against(key.error) + key.against(query.error) + both + head.scale_error(query.size(), key.size())


def read_scores(head: Head, ranges: Ranges, atoms: list[tuple[int, int, Bits]]) -> Scores:
    """Bounds of D over selected and other keys.

    D = (sum_t Q_t[q_t] + b + dq) . (sum_s K_s[k_s] + kd + dk) splits into tables: blocks (t, s), key-only (s),
    query-only (t), constant. Each atom takes its tables; the others contribute [low, high].
    """
    queries, keys = project(head.state, head.wq), project(head.state, head.wk)
    base = head.bq + head.state.const @ head.wq
    kd, dk = head.key_difference()
    dq = head.query_error(head.state.eps)
    err = score_error(head, Side(queries, base, dq, ranges), Side(keys, kd, dk, ranges))
    key_only = {s: keys[s] @ base for s in keys}
    query_only = {t: queries[t] @ kd for t in queries}
    constant = (base @ kd).number()
    low, high = constant, constant
    pairs = {(z, x) for x, z, _ in atoms}
    with_key, with_query = {x for x, _, _ in atoms}, {z for _, z, _ in atoms}
    loose: list[Pair | None] = [_span(key_only[s], ranges.some(s)) for s in keys if s not in with_key]
    loose += [_span(query_only[t], ranges.some(t)) for t in queries if t not in with_query]
    for t in queries:
        for s in keys:
            if (t, s) not in pairs:
                block = queries[t][ranges.some(t)] @ keys[s][ranges.some(s)].T
                loose.append(_span(block, np.ones(block.shape, dtype=np.bool_)))
    for span in loose:
        assert span is not None
        low, high = low + span[0], high + span[1]
    spans = []
    taken_keys: set[int] = set()
    taken_queries: set[int] = set()
    for x, z, table in atoms:
        total = zeros(*table.shape)
        if x in keys and z in queries:
            total = total + keys[x] @ queries[z].T
        if x in keys and x not in taken_keys:
            total = total + key_only[x][:, None]
        if z in queries and z not in taken_queries:
            total = total + query_only[z][None, :]
        taken_keys.add(x)
        taken_queries.add(z)
        at_keys, at_queries = ranges.possible[x].astype(np.float32), ranges.possible[z].astype(np.float32)
        possible = at_keys.T @ at_queries > 0  # both possible at one length
        spans.append((_span(total, table & possible), _span(total, ~table & possible)))
    return combine_scores(spans, low, high, err)


def combine_scores(
    spans: list[tuple[Pair | None, Pair | None]], low: Fraction, high: Fraction, err: Fraction
) -> Scores:
    """Selected: every atom holds. Others: for some atom j it does not, and any atom i != j holds or not.

    a = sum selmin + low - err, A = sum selmax + high + err,
    u = high + err + max over j of (unmax_j + sum over i != j of max(selmax_i, unmax_i)).
    """
    selected = [inside for inside, _ in spans]
    a = A = None
    if all(inside is not None for inside in selected):
        a = sum((inside[0] for inside in selected if inside is not None), low - err)
        A = sum((inside[1] for inside in selected if inside is not None), high + err)
    u = None
    for j, (_, outside) in enumerate(spans):
        if outside is not None:
            rest = [max(part[1] for part in spans[i] if part is not None) for i in range(len(spans)) if i != j]
            candidate = other_score(high, err, outside[1], rest)
            u = candidate if u is None else max(u, candidate)
    return Scores(a, A, u)


def other_score(high: Fraction, err: Fraction, unmax: Fraction, rest: list[Fraction]) -> Fraction:
    """A bound of D for keys for which one atom, with largest score `unmax`, does not hold."""
    return sum(rest, high + err + unmax)


def bos_weight(head: Head, ranges: Ranges, longest: int) -> float:
    """delta_B: the weight that BOS, as a query, gives to other positions: 0 if causal, else N e^(uB), capped at 1.

    uB bounds score(BOS, key) - score(BOS, BOS) = (bos W_Q + b_Q + dq) . (sum_s K_s[k_s] + kd + dk).
    """
    if head.model.config.causal:
        return 0.0
    keys = project(head.state, head.wk)
    query = head.state.bos @ head.wq + head.bq
    kd, dk = head.key_difference()
    dq = head.query_error(head.state.bosr)
    err = score_error(head, Side({}, query, dq, ranges), Side(keys, kd, dk, ranges))
    high = (query @ kd).number() + err
    for s, table in keys.items():
        span = _span(table @ query, ranges.some(s))
        assert span is not None
        high += span[1]
    return capped_sum([(longest, high)])


def idle_error(head: Head, ranges: Ranges) -> tuple[Radii, Radii]:
    """What a head without a step can add: its largest value at any key or BOS, at (non-BOS positions, BOS)."""
    rest = hull(project(head.state, head.wv, head.wo), ranges, head.model.config.d_model)
    largest = grow((head.key_constant + rest.center).magnitude() + rest.radius + head.key_error)
    if not head.bos:
        return largest, np.zeros_like(largest)
    largest = np.maximum(largest, grow(head.bos_value.magnitude() + head.bos_error))
    return largest, largest
