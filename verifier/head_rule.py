"""Rule `head`: what one attention head writes (`proofs/SPECIFICATION.md`, section 4, 1-5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import HeadRole
from ..compiler.core import Aggregate, Value, Width
from ..compiler.first_position import selects_first
from .abstract_state import Context, Failed, State
from .rounding import TINY, Enclosure, between, bound_product, exp_high, exp_low, product, shrunk, widen
from .selector_identity import same_selector

Array = npt.NDArray[np.float64]
ROOT_ERROR = 2.0**-50
"""1 / sqrt(d_head) in float64 is off by less than this share: each of the two operations is rounded correctly."""


@dataclass(frozen=True)
class Update:
    node: int
    matrix: Array | None
    rho: Array
    bos: Enclosure
    relief: Array | None = None


class HeadRule:
    """The rule `head` for one head (or an idle one), all reading the same state."""

    def __init__(self, context: Context, state: State, layer: int, head: int, role: HeadRole | None) -> None:
        self.c, self.state, self.role = context, state, role
        self.place = f"a{layer}.h{head}"
        prefix = f"blocks.{layer}.attn."
        w = context.w
        self.wq, self.wk, self.wv = (w[prefix + name][head] for name in ("W_Q", "W_K", "W_V"))
        self.bq, self.bk, self.bv = (w[prefix + name][head] for name in ("b_Q", "b_K", "b_V"))
        self.wo = w[prefix + "W_O"][head]
        self.has_bos = context.codec.bos
        self.causal = context.config.causal
        self.scale = context.config.scale(layer)
        self.scale_error = 0.0 if isinstance(context.config.attention_scale, float) else ROOT_ERROR

    def update(self) -> Update:
        self._values()
        if self.role is None:
            return self._idle()
        self._check_selector()
        self._scores()
        return self._width() if isinstance(self.c.program.value_node(self.role.node), Width) else self._aggregate()

    # values (3)

    def _values(self) -> None:
        state, c = self.state, self.c
        ov = product(Enclosure.exact(self.wv), Enclosure.exact(self.wo))
        self.ov_size = ov.size
        self.tables = {n: product(Enclosure.exact(m), ov) for n, m in state.terms.items()}
        bias = product(Enclosure.exact(self.bv), Enclosure.exact(self.wo))
        self.base = product(Enclosure.exact(state.const), ov) + bias
        self.error = bound_product(state.eps, self.ov_size)
        self.sink = product(state.bos, ov) + bias
        low, high = np.zeros(c.config.d_model), np.zeros(c.config.d_model)
        for node in state.terms:
            below, above = c.hull(node, self.tables[node])
            low, high = np.nextafter(low + below, -np.inf), np.nextafter(high + above, np.inf)
        keys = None if c.null(state, (), self.tables) else between(low, high)
        hull = self.base if keys is None else self.base + keys
        self.hull = hull.plus_error(self.error)
        low, high = self.hull.low, self.hull.high
        if self.has_bos:
            low, high = np.minimum(low, self.sink.low), np.maximum(high, self.sink.high)
        self.diam = np.where(high > low, np.nextafter(high - low, np.inf), 0.0)
        self.reach = np.maximum(np.abs(low), np.abs(high))

    def _idle(self) -> Update:
        zero = np.zeros_like(self.reach)
        bos = Enclosure(zero, self.reach) if self.has_bos else Enclosure.exact(zero)
        return Update(-1, None, self.reach, bos)

    # selector (1)

    def _check_selector(self) -> None:
        assert self.role is not None
        node = self.c.program.value_node(self.role.node)
        if not isinstance(node, (Aggregate, Width)):
            raise Failed(self.place, f"node {self.role.node} is neither an aggregate nor a width")
        for atom in self.role.atoms:
            sizes = tuple(len(self.c.program.value_node(side).values) for side in (atom.key, atom.query))
            if atom.table.dtype != np.bool_ or atom.table.shape != sizes:
                found = f"{atom.table.dtype} {atom.table.shape}"
                raise Failed(self.place, f"an atom's table must be bool {sizes}, got {found}")
        if not same_selector(self.c.an, node.selector, self.role.atoms):
            raise Failed(self.place, "its atoms are not the selector of what it computes")

    # scores (2)

    def _scores(self) -> None:
        assert self.role is not None
        c, state, atoms = self.c, self.state, self.role.atoms
        query = {n: product(Enclosure.exact(m), Enclosure.exact(self.wq)) for n, m in state.terms.items()}
        key = {n: product(Enclosure.exact(m), Enclosure.exact(self.wk)) for n, m in state.terms.items()}
        q0 = product(Enclosure.exact(state.const), Enclosure.exact(self.wq)) + Enclosure.exact(self.bq)
        k0 = product(Enclosure.exact(state.const), Enclosure.exact(self.wk))
        key_error = state.eps
        if self.has_bos:
            k0 = k0 - product(Enclosure.exact(state.bos.mid), Enclosure.exact(self.wk))
            key_error = widen(key_error + state.bos.rad, 1)
        dq, dk = bound_product(state.eps, self.wq), bound_product(key_error, self.wk)
        q_size, k_size = q0.size, k0.size
        moved = widen(q_size @ dk + dq @ (k_size + dk), len(dq) + 3)
        for n in state.terms:
            queries, keys = c.rows(n, query[n]).size, c.rows(n, key[n]).size
            moved = widen(moved + (queries @ dk).max() + (keys @ dq).max(), len(dq) + 3)
            q_size = widen(q_size + queries.max(axis=0, initial=0.0), 1)
            k_size = widen(k_size + keys.max(axis=0, initial=0.0), 1)
        err = float(widen(np.array(abs(self.scale) * moved), 3))
        err = math.nextafter(err + self._through_scale(q_size + dq, k_size + dk), math.inf)
        low, high = -err, err
        if self.has_bos:
            low, high = _plus(low, high, product(q0, k0).scaled(self.scale))
        pairs = {(a.key, a.query) for a in atoms}
        if len(pairs) != len(atoms):
            raise Failed(self.place, "two atoms over the same nodes")
        tables: dict[tuple[int, int], Enclosure] = {}
        for t in state.terms:
            for s in state.terms:
                block = product(key[s], query[t].transpose()).scaled(self.scale)
                if (s, t) in pairs:
                    tables[s, t] = block
                else:
                    rows = block[c.possible(s)][:, c.possible(t)]
                    if rows.mid.any() or rows.rad.any():
                        low, high = _plus(low, high, rows)
        seen_keys: set[int] = set()
        seen_queries: set[int] = set()
        for atom in atoms:
            shape = (len(c.program.value_node(atom.key).values), len(c.program.value_node(atom.query).values))
            table = tables.get((atom.key, atom.query), Enclosure.exact(np.zeros(shape)))
            if atom.key in key and atom.key not in seen_keys:
                table = table + _spread(product(key[atom.key], q0).scaled(self.scale), shape, 0)
            if self.has_bos and atom.query in query and atom.query not in seen_queries:
                table = table + _spread(product(query[atom.query], k0).scaled(self.scale), shape, 1)
            seen_keys.add(atom.key)
            seen_queries.add(atom.query)
            tables[atom.key, atom.query] = table
        for s in state.terms:
            if s not in seen_keys:
                only = c.rows(s, product(key[s], q0).scaled(self.scale))
                low, high = _plus(low, high, only)
        for t in state.terms:
            if self.has_bos and t not in seen_queries:
                only = c.rows(t, product(query[t], k0).scaled(self.scale))
                low, high = _plus(low, high, only)
        slack = 2.0**-46 * (abs(low) + abs(high)) + 2.0**-900
        low, high = low - slack, high + slack
        self._gaps([tables[a.key, a.query] for a in atoms], low, high)

    def _gaps(self, tables: list[Enclosure], low: float, high: float) -> None:
        assert self.role is not None
        least: list[float] = []
        most: list[float] = []
        out: list[float] = []
        for atom, table in zip(self.role.atoms, tables, strict=True):
            mask = self.c.possible(atom.key)[:, None] & self.c.possible(atom.query)[None, :]
            yes, no = mask & atom.table, mask & ~atom.table
            least.append(float(table.low[yes].min(initial=np.inf)))
            most.append(float(table.high[yes].max(initial=-np.inf)))
            out.append(float(table.high[no].max(initial=-np.inf)))
        peak = [max(m, o) for m, o in zip(most, out, strict=True)]
        unselected = max((out[j] + sum(peak[:j]) + sum(peak[j + 1 :]) for j in range(len(out))), default=-np.inf)
        up = 1 + 2.0**-46
        self.a = sum(least) + low
        self.big_a = sum(most) + high
        self.u = unselected + high
        room = 2.0**-46 * sum(abs(x) for x in (*least, *peak) if np.isfinite(x)) * up + 2.0**-900
        self.a, self.big_a, self.u = self.a - room, self.big_a + room, self.u + room
        self.selects = all(np.isfinite(x) for x in least)

    def _through_scale(self, query: Array, key: Array) -> float:
        """The most that the error of the scale changes a score, from the sizes of query and key."""
        return float(widen(np.array(self.scale_error * abs(self.scale) * (query @ key)), len(query) + 6))

    # the output (4)

    def _bos_query(self) -> Enclosure:
        """What BOS itself reads (5)."""
        if not self.has_bos:
            return Enclosure.exact(np.zeros_like(self.diam))
        if self.causal:
            return self.sink
        c, state = self.c, self.state
        q = product(state.bos, Enclosure.exact(self.wq)) + Enclosure.exact(self.bq)
        k0 = product(Enclosure.exact(state.const), Enclosure.exact(self.wk)) - product(
            state.bos, Enclosure.exact(self.wk)
        )
        k0 = k0.plus_error(bound_product(state.eps, self.wk))
        top = float(product(q, k0).scaled(self.scale).high)
        size = k0.size
        for n, m in state.terms.items():
            keys = c.rows(n, product(Enclosure.exact(m), Enclosure.exact(self.wk)))
            top = math.nextafter(top + float(product(keys, q).scaled(self.scale).high.max()), math.inf)
            size = widen(size + keys.size.max(axis=0, initial=0.0), 1)
        top = math.nextafter(top + self._through_scale(q.size, size), math.inf)
        top += 2.0**-46 * abs(top) + 2.0**-900
        share = min(1.0, c.max_len * exp_high(top) * (1 + 2.0**-46))
        return self.sink.plus_error(shrunk(share, self.diam))

    def _encoding(self) -> Array:
        assert self.role is not None
        return self.c.encoding(self.role.node, self.role.encoding, self.place)

    def _aggregate(self) -> Update:
        role, c = self.role, self.c
        assert role is not None
        node = c.program.value_node(role.node)
        assert isinstance(node, Aggregate)
        encoding = self._encoding()
        singular, nonempty = c.an.singular(role.node), c.an.nonempty(node.selector)
        if not nonempty and not self.has_bos:
            raise Failed(self.place, "its selection may be empty, and there is no BOS to attend to")
        rho = np.zeros(c.config.d_model)
        if self.selects:
            delta = (c.max_len - 1) * exp_high(self.u - self.a) + (exp_high(-self.a) if self.has_bos else 0.0)
            tau = 0.0 if singular else max(0.0, exp_high(self.big_a - self.a) - 1.0) + 2.0**-50
            leak = min(1.0, (delta + tau) * (1 + 2.0**-46))
            rho = widen(self._copied(role, node, encoding, singular) + shrunk(leak, self.diam), 3)
        if not nonempty:
            empty = (self.sink - Enclosure.exact(encoding[node.default])).size
            leak = min(1.0, c.max_len * exp_high(self.u) * (1 + 2.0**-46))
            rho = np.maximum(rho, widen(empty + shrunk(leak, self.diam), 3))
        return Update(role.node, encoding, rho, self._bos_query())

    def _copied(self, role: HeadRole, node: Aggregate, encoding: Array, singular: bool) -> Array:
        """How far a key's value is from the encoding of what it stands for."""
        c = self.c
        tuples, targets = c.tuples(role.reads, node.value, self.place)
        others = c.others(self.state, role.reads, self.tables, c.config.d_model)
        value = (self.base + others).plus_error(self.error)
        shape = (len(tuples), c.config.d_model)
        value = Enclosure(np.broadcast_to(value.mid, shape), np.broadcast_to(value.rad, shape))
        for column, read in enumerate(role.reads):
            if read in self.tables:
                value = value + self.tables[read][tuples[:, column]]
        source = c.program.value_node(node.value).values
        if singular:
            index = {v: i for i, v in enumerate(node.values)}
            at = np.array([index.get(v, -1) for v in source])[targets]
            known = at >= 0  # a value that is never among the aggregate's is never selected
            distance = (value[known] - Enclosure.exact(encoding[at[known]])).size
            worst: Array = distance.max(axis=0, initial=0.0)
            return worst
        if role.affine is None:
            raise Failed(self.place, "a mean needs an affine encoding")
        index = {v: i for i, v in enumerate(node.values)}
        number = np.array([v is not None and not isinstance(v, str) for v in source])[targets]
        at = np.array([index.get(v, -1) for v in source])[targets]
        # a value that is no number is selected only together with equal ones: there the output is near its encoding
        alone = ~number & (at >= 0)
        single = (value[alone] - Enclosure.exact(encoding[at[alone]])).size.max(axis=0, initial=0.0)
        value, targets = value[number], targets[number]
        dim, offset, slope = role.affine
        numbers = _rounded(source)
        wanted = np.zeros((len(targets), c.config.d_model))
        wanted_error = np.zeros_like(wanted)
        wanted[:, dim] = offset + slope * numbers[targets]
        tiny = 2.0**-1000 * (abs(slope) + 1)  # a number below float64 is rounded to 0, or a product with it
        wanted_error[:, dim] = (np.abs(slope * numbers[targets]) + np.abs(wanted[:, dim])) * 2.0**-50 + tiny
        distance = (value - Enclosure(wanted, wanted_error)).size.max(axis=0, initial=0.0)
        possible = c.possible(role.node) & np.array([v is not None and not isinstance(v, str) for v in node.values])
        points = _rounded(node.values)[possible]
        line = np.zeros((len(points), c.config.d_model))
        line_error = np.zeros_like(line)
        line[:, dim] = offset + slope * points
        line_error[:, dim] = (np.abs(slope * points) + np.abs(line[:, dim])) * 2.0**-50 + tiny
        apart = (Enclosure(encoding[possible], line_error) - Enclosure.exact(line)).size.max(axis=0, initial=0.0)
        result: Array = np.maximum(widen(distance + apart, 1), single)
        return result

    def _width(self) -> Update:
        role, c = self.role, self.c
        assert role is not None
        node = c.program.value_node(role.node)
        assert isinstance(node, Width)
        sink, values, counted = self._counted(node)
        encoding = self._encoding()
        rho = np.zeros(c.config.d_model)
        apart = np.zeros(encoding.shape)
        for index in np.flatnonzero(c.possible(role.node)):
            w = int(node.values[index])  # type: ignore[arg-type]
            if not self.has_bos and (w == 0 or w > c.max_len):
                continue
            if w and not self.selects:
                continue
            share = self._share(w, counted)
            rest = between(
                np.array(max(0.0, 1 - float(share.high) - 2.0**-52)),
                np.array(min(1.0, 1 - float(share.low) + 2.0**-52)),
            )
            result = _times(share, sink) + _times(rest, values)
            apart[index] = (result - Enclosure.exact(encoding[index])).size
            rho = np.maximum(rho, apart[index])
        relief = np.maximum(0.0, (rho - apart) * (1 - 2.0**-40) - TINY)
        return Update(role.node, encoding, rho, self._bos_query(), relief)

    def _counted(self, node: Width) -> tuple[Enclosure, Enclosure, int]:
        """The value of the sink, that of the other keys, and how many of the selected keys the sink is (0 or 1).

        The sink is BOS or, without BOS, position 0 where it is always selected.
        """
        c, role = self.c, self.role
        assert role is not None
        if self.has_bos:
            return self.sink, self.hull, 0
        if not selects_first(c.an, node.selector):
            raise Failed(self.place, "a width without BOS needs position 0 to be always selected")
        first = np.array([v == 0 for v in c.program.value_node(1).values])
        others = (self.base + c.others(self.state, (1,), self.tables, c.config.d_model)).plus_error(self.error)
        zero = np.zeros((len(first), c.config.d_model))
        table = self.tables.get(1, Enclosure.exact(zero))
        later = table[c.possible(1) & ~first]
        rest = between(later.low.min(axis=0), later.high.max(axis=0)) if len(later.mid) else Enclosure.exact(zero[0])
        return others + table[first][0], others + rest, 1

    def _share(self, w: int, counted: int) -> Enclosure:
        """The weight of the sink when w keys are selected."""
        if counted:  # relative to the sink's own score, a selected key's is within A - a
            ratio_high, ratio_low = exp_high(self.big_a - self.a), exp_low(self.a - self.big_a)
            ratio_out = exp_high(self.u - self.a)
        else:
            ratio_high, ratio_low, ratio_out = exp_high(self.big_a), exp_low(self.a), exp_high(self.u)
        rivals = w - counted
        most = 1.0 / (1 + rivals * ratio_low if rivals else 1.0) * (1 + 2.0**-48)
        above = rivals * ratio_high if rivals else 0.0
        above += (self.c.max_len - w) * ratio_out if w < self.c.max_len else 0.0
        least = 1.0 / (1 + above) * (1 - 2.0**-48) if np.isfinite(above) else 0.0
        return between(np.array(max(0.0, least)), np.array(min(1.0, most)))


def _times(scalar: Enclosure, vector: Enclosure) -> Enclosure:
    mid = scalar.mid * vector.mid
    rad = np.abs(scalar.mid) * vector.rad + scalar.rad * (np.abs(vector.mid) + vector.rad)
    return Enclosure(mid, widen(rad + np.abs(mid) * 2.0**-53 + TINY, 5))


def _plus(low: float, high: float, part: Enclosure) -> tuple[float, float]:
    """The interval plus all entries of an enclosure, rounded outwards."""
    below, above = float(part.low.min()), float(part.high.max())
    return math.nextafter(low + below, -math.inf), math.nextafter(high + above, math.inf)


def _spread(vector: Enclosure, shape: tuple[int, int], axis: int) -> Enclosure:
    """A vector along `axis` (0: rows) as a table."""
    view = (-1, 1) if axis == 0 else (1, -1)
    return Enclosure(np.broadcast_to(vector.mid.reshape(view), shape), np.broadcast_to(vector.rad.reshape(view), shape))


def _rounded(values: Sequence[Value]) -> Array:
    """Nearest floats of numbers (0 for others); off by at most one part in 2^53."""
    return np.array([0.0 if v is None or isinstance(v, str) else float(v) for v in values])
