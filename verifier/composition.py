"""Composition: a theorem about whole sequences from lemmas about the values each component reads.

The rules and their statements are in `proofs/SPECIFICATION.md`, section 4; this is the producer's side of them. It walks the
layers once with an abstract state (encodings of nodes, a constant, an error box, BOS's own residual) and verifies, against the
weights, what the alignment says of each component. Cost: polynomial in vocabulary and length, never in the number of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Alignment, HeadRole, NeuronRole, encoding_matrix
from ..compiler.analysis import Analysis
from ..compiler.core import Aggregate, Value, Width
from ..models import Codec, TransformerConfig
from .rounding import Enclosure, between, bound_product, exp_high, exp_low, product, widen
from .selector_identity import same_selector

Array = npt.NDArray[np.float64]
Tuples = npt.NDArray[np.int64]

MAX_ENTRIES = 60_000_000


class Failed(Exception):
    """A lemma that does not hold, or cannot be shown: which component, why, and values at which it fails."""

    def __init__(self, place: str, why: str, hint: Mapping[int, int] | None = None) -> None:
        super().__init__(f"{place}: {why}")
        self.place, self.why, self.hint = place, why, dict(hint or {})


@dataclass
class State:
    """Residual = const + sum of E_u[value of u] + e, |e| <= eps; at BOS: bos (an enclosure)."""

    const: Array
    terms: dict[int, Array]
    eps: Array
    bos: Enclosure

    def add(self, node: int, matrix: Array) -> None:
        if node in self.terms:
            total = self.terms[node] + matrix
            back = (total - self.terms[node] != matrix) | (total - matrix != self.terms[node])
            self.eps = widen(self.eps + np.where(back, np.abs(total) * 2.0**-52, 0.0).max(axis=0), 2)
            matrix = total
        if matrix.any():
            self.terms[node] = matrix
        else:
            self.terms.pop(node, None)

    def shift(self, bias: Array) -> None:
        total = self.const + bias
        self.eps = widen(self.eps + np.where(self.const != 0, np.abs(total) * 2.0**-52, 0.0), 2)
        self.const = total
        self.bos = self.bos + Enclosure.exact(bias)


@dataclass(frozen=True)
class Composed:
    """What a composition showed: the least decoding margin and, per layer, the largest error of the residual stream."""

    margin: float
    errors: tuple[float, ...] = field(default=())


class Composition:
    """One verification of one model against one alignment; `run` raises `Failed`."""

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, npt.NDArray[np.float32]],
        codec: Codec,
        alignment: Alignment,
        analysis: Analysis,
    ) -> None:
        self.config, self.codec, self.alignment, self.an = config, codec, alignment, analysis
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.program = alignment.program
        self.sums = dict(alignment.width_sums)
        self.max_len = max(analysis.lengths)
        self.ever: dict[int, npt.NDArray[np.bool_]] = {}

    # -- the walk ---------------------------------------------------------------------------------------------------

    def run(self) -> Composed:
        self._check_scope()
        for width, terms in self.sums.items():
            if not self.an.check_width_sum(width, terms):
                raise Failed(f"width sum of node {width}", "the selectors do not add up")
        state = self._start()
        errors = []
        for layer in range(len(self.config.layers)):
            self._attention(state, layer)
            self._mlp(state, layer)
            errors.append(float(state.eps.max(initial=0.0)))
        return Composed(self._decode(state), tuple(errors))

    def _check_scope(self) -> None:
        c = self.config
        unsupported = [
            what
            for bad, what in (
                (c.layer_norm is not None, "LayerNorm"),
                (c.activation != "relu" and any(x.d_mlp for x in c.layers), f"activation {c.activation}"),
                (c.readout != "each", f"readout {c.readout}"),
                (isinstance(c.attention_scale, str) and any(x.n_heads for x in c.layers), "attention scale 1/sqrt(d_head), which is not exact"),
                (c.causal != self.program.causal, "a causal mask unlike the program's"),
            )
            if bad
        ]
        if unsupported:
            raise Failed("model", f"composition does not cover {', '.join(unsupported)}")
        if not all(np.isfinite(v).all() for v in self.w.values()):
            raise Failed("model", "a weight is not finite")

    def possible(self, node: int) -> npt.NDArray[np.bool_]:
        if node not in self.ever:
            self.ever[node] = self.an.ever(node)
        return self.ever[node]

    def _start(self) -> State:
        d = self.config.d_model
        embed, positions = self.w["embed.W_E"], self.w.get("pos_embed.W_pos")
        shift = 1 if self.codec.bos else 0
        terms = {0: embed[: len(self.program.vocab)].copy()}
        bos = np.zeros(d)
        if positions is not None:
            terms[1] = positions[shift : shift + self.program.max_len].copy()
            if self.codec.bos:
                bos = bos + positions[0]
        result = Enclosure.exact(bos)
        if self.codec.bos:
            result = result + Enclosure.exact(embed[len(self.program.vocab)])
        return State(np.zeros(d), {k: v for k, v in terms.items() if v.any()}, np.zeros(d), result)

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _rows(self, node: int, table: Enclosure) -> Enclosure:
        """Only the rows of possible values."""
        return table[self.possible(node)]

    def _hull(self, node: int, table: Enclosure) -> tuple[Array, Array]:
        rows = self._rows(node, table)
        return rows.low.min(axis=0), rows.high.max(axis=0)

    def _tuples(self, reads: Sequence[int], node: int, place: str) -> tuple[Tuples, npt.NDArray[np.int64]]:
        """Possible value tuples of `reads` and the node's value index on each."""
        resolved = self.an.resolve(node, tuple(reads), self.sums)
        if resolved is None:
            raise Failed(place, f"node {node} is not determined by nodes {tuple(reads)}")
        tuples = np.argwhere(resolved >= 0)
        return tuples, resolved[resolved >= 0].astype(np.int64)

    def _others(self, state: State, reads: Sequence[int], tables: Mapping[int, Enclosure], width: int) -> Enclosure:
        """The hull of the sum over all nodes that are not read."""
        low, high = np.zeros(width), np.zeros(width)
        for node in state.terms:
            if node not in reads:
                below, above = self._hull(node, tables[node])
                low = np.nextafter(low + below, -np.inf)
                high = np.nextafter(high + above, np.inf)
        return Enclosure.exact(np.zeros(width)) if self._null(state, reads, tables) else between(low, high)

    def _null(self, state: State, reads: Sequence[int], tables: Mapping[int, Enclosure]) -> bool:
        return all(
            not rows.mid.any() and not rows.rad.any()
            for rows in (self._rows(n, tables[n]) for n in state.terms if n not in reads)
        )

    # -- heads ------------------------------------------------------------------------------------------------------

    def _attention(self, state: State, layer: int) -> None:
        heads = self.config.layers[layer].n_heads
        if not heads:
            return
        roles = {role.head: role for role in self.alignment.heads if role.layer == layer}
        updates = [_Head(self, state, layer, head, roles.get(head)).update() for head in range(heads)]
        bos = state.bos
        for update in updates:
            if update.matrix is not None:
                state.add(update.node, update.matrix)
            state.eps = widen(state.eps + update.rho, 1)
            bos = bos + update.bos
        state.bos = bos
        state.shift(self.w[f"blocks.{layer}.attn.b_O"])

    # -- neurons ----------------------------------------------------------------------------------------------------

    def _mlp(self, state: State, layer: int) -> None:
        if not self.config.layers[layer].d_mlp:
            return
        prefix = f"blocks.{layer}.mlp."
        into, bias = self.w[prefix + "W_in"], self.w[prefix + "b_in"]
        out = self.w[prefix + "W_out"]
        d_mlp = into.shape[1]
        base = product(Enclosure.exact(state.const), Enclosure.exact(into)) + Enclosure.exact(bias)
        base = base.plus_error(bound_product(state.eps, into))
        tables = {n: product(Enclosure.exact(m), Enclosure.exact(into)) for n, m in state.terms.items()}
        roles = sorted((r for r in self.alignment.neurons if r.layer == layer), key=lambda r: r.neurons)
        free = np.ones(d_mlp, dtype=bool)
        additions: list[tuple[int, Array]] = []
        rho = np.zeros(state.eps.shape)
        for role in roles:
            first, end = role.neurons
            if not 0 <= first <= end <= d_mlp or not free[first:end].all():
                raise Failed(f"m{layer}", f"neurons {first}..{end} overlap or do not exist")
            free[first:end] = False
            matrix, error = self._group(state, role, base, tables, out)
            additions.append((role.node, matrix))
            rho = widen(rho + error, 1)
        if free.any():
            others = self._others(state, (), tables, d_mlp)
            post = (base + others).relu().size[free]
            rho = widen(rho + bound_product(post, out[free]), 1)
        if self.codec.bos:
            post = (product(state.bos, Enclosure.exact(into)) + Enclosure.exact(bias)).relu()
            change = product(post, Enclosure.exact(out))
        else:
            change = Enclosure.exact(np.zeros(state.eps.shape))
        for node, matrix in additions:
            state.add(node, matrix)
        state.eps = widen(state.eps + rho, 1)
        state.bos = state.bos + change
        state.shift(self.w[prefix + "b_out"])

    def _group(
        self, state: State, role: NeuronRole, base: Enclosure, tables: Mapping[int, Enclosure], out: Array
    ) -> tuple[Array, Array]:
        first, end = role.neurons
        place = f"m{role.layer} neurons {first}..{end - 1}"
        tuples, targets = self._tuples(role.reads, role.node, place)
        part = {n: t[:, first:end] for n, t in tables.items()}
        others = self._others(state, role.reads, part, end - first)
        encoding = encoding_matrix(role.encoding, len(self.program.value_node(role.node).values), self.config.d_model)
        rho = np.zeros(self.config.d_model)
        chunk = max(1, MAX_ENTRIES // 8 // max(1, end - first, self.config.d_model))
        for start in range(0, len(tuples), chunk):
            rows = tuples[start : start + chunk]
            pre = base[first:end] + others
            pre = Enclosure(np.broadcast_to(pre.mid, (len(rows), end - first)), np.broadcast_to(pre.rad, (len(rows), end - first)))
            for column, node in enumerate(role.reads):
                if node in part:
                    pre = pre + part[node][rows[:, column]]
            found = product(pre.relu(), Enclosure.exact(out[first:end]))
            distance = (found - Enclosure.exact(encoding[targets[start : start + chunk]])).size
            rho = np.maximum(rho, distance.max(axis=0, initial=0.0))
        return encoding, rho

    # -- read-out ---------------------------------------------------------------------------------------------------

    def _decode(self, state: State) -> float:
        w, b = self.w["unembed.W_U"], self.w["unembed.b_U"]
        reads, codec = self.alignment.decode_reads, self.codec
        tuples, targets = self._tuples(reads, self.program.output, "decode")
        values = self.program.value_node(self.program.output).values
        column_of = self._columns(values)
        if codec.kind == "scalar":
            return self._decode_scalar(state, w, b, tuples, targets, column_of)
        margin = np.inf
        for target in np.unique(targets):
            rows = tuples[targets == target]
            column = column_of[target]
            others_ = np.arange(w.shape[1]) != column
            if not others_.any():
                continue
            # the difference of two float32 columns in float64 may round: bound it
            diff = w[:, [column]] - w[:, others_]
            slack = np.where((diff + w[:, others_] != w[:, [column]]), np.abs(diff) * 2.0**-52, 0.0)
            logits = self._logits(state, Enclosure(diff, slack), Enclosure.exact(b[column]) - Enclosure.exact(b[others_]), reads, rows)
            least = float(logits.low.min())
            if not least > 0:
                worst = int(np.argmin(logits.low.min(axis=1)))
                raise Failed("decode", f"output {values[target]!r} is not certain to win", dict(zip(reads, rows[worst].tolist(), strict=True)))
            margin = min(margin, least)
        return float(margin)

    def _logits(self, state: State, w: Enclosure, b: Enclosure, reads: Sequence[int], rows: Tuples) -> Enclosure:
        tables = {n: product(Enclosure.exact(m), w) for n, m in state.terms.items()}
        result = product(Enclosure.exact(state.const), w) + b + self._others(state, reads, tables, w.mid.shape[1])
        result = result.plus_error(bound_product(state.eps, np.abs(w.mid) + w.rad))
        shape = (len(rows), w.mid.shape[1])
        result = Enclosure(np.broadcast_to(result.mid, shape), np.broadcast_to(result.rad, shape))
        for column, node in enumerate(reads):
            if node in tables:
                result = result + tables[node][rows[:, column]]
        return result

    def _columns(self, values: Sequence[Value]) -> list[int]:
        index = {v: i for i, v in enumerate(self.codec.outputs)}
        return [index.get(v, -1) for v in values]

    def _decode_scalar(
        self, state: State, w: Array, b: Array, tuples: Tuples, targets: npt.NDArray[np.int64], column_of: list[int]
    ) -> float:
        logits = self._logits(state, Enclosure.exact(w), Enclosure.exact(b), self.alignment.decode_reads, tuples)
        points = np.array(self.codec.points, dtype=np.float64)
        order = np.argsort(points, kind="stable")
        ranked = points[order]
        gaps = np.diff(ranked, prepend=-np.inf, append=np.inf)
        least_gap = np.empty(len(points))
        least_gap[order] = np.minimum(gaps[:-1], gaps[1:])
        at = np.array(column_of)[targets]
        if (at < 0).any():
            raise Failed("decode", "a possible output is missing from the codec")
        error = (logits[:, 0] - Enclosure.exact(points[at])).size
        room = np.nextafter(least_gap[at] / 2 * (1 - 2.0**-50), 0.0) - error
        if not (room > 0).all():
            worst = int(np.argmin(room))
            hint = dict(zip(self.alignment.decode_reads, tuples[worst].tolist(), strict=True))
            raise Failed("decode", f"point {points[at[worst]]} may be decoded as its neighbour", hint)
        return float(room.min(initial=np.inf))


@dataclass(frozen=True)
class Update:
    node: int
    matrix: Array | None
    rho: Array
    bos: Enclosure


class _Head:
    """The rule `head` for one head (or an idle one), all reading the same state."""

    def __init__(self, composition: Composition, state: State, layer: int, head: int, role: HeadRole | None) -> None:
        self.c, self.state, self.role = composition, state, role
        self.place = f"a{layer}.h{head}"
        prefix = f"blocks.{layer}.attn."
        w = composition.w
        self.wq, self.wk, self.wv = (w[prefix + name][head] for name in ("W_Q", "W_K", "W_V"))
        self.bq, self.bk, self.bv = (w[prefix + name][head] for name in ("b_Q", "b_K", "b_V"))
        self.wo = w[prefix + "W_O"][head]
        self.has_bos = composition.codec.bos
        self.causal = composition.config.causal
        assert isinstance(composition.config.attention_scale, float)
        self.scale = composition.config.attention_scale

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
            below, above = c._hull(node, self.tables[node])
            low, high = np.nextafter(low + below, -np.inf), np.nextafter(high + above, np.inf)
        keys = None if c._null(state, (), self.tables) else between(low, high)
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
        for n in state.terms:
            q_size = widen(q_size + c._rows(n, query[n]).size.max(axis=0, initial=0.0), 1)
            k_size = widen(k_size + c._rows(n, key[n]).size.max(axis=0, initial=0.0), 1)
        err = float(widen(np.array(abs(self.scale) * (dq @ (k_size + dk) + q_size @ dk)), len(dq) + 6))
        low, high = -err, err
        if self.has_bos:
            constant = product(q0, k0).scaled(self.scale)
            low, high = low + float(constant.low), high + float(constant.high)
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
                        low, high = low + float(rows.low.min()), high + float(rows.high.max())
        seen_keys: set[int] = set()
        seen_queries: set[int] = set()
        for atom in atoms:
            shape = (len(c.program.value_node(atom.key).values), len(c.program.value_node(atom.query).values))
            table = tables.get((atom.key, atom.query), Enclosure.exact(np.zeros(shape)))
            if atom.key in key and atom.key not in seen_keys:
                table = table + Enclosure_broadcast(product(key[atom.key], q0).scaled(self.scale), shape, 0)
            if self.has_bos and atom.query in query and atom.query not in seen_queries:
                table = table + Enclosure_broadcast(product(query[atom.query], k0).scaled(self.scale), shape, 1)
            seen_keys.add(atom.key)
            seen_queries.add(atom.query)
            tables[atom.key, atom.query] = table
        for s in state.terms:
            if s not in seen_keys:
                only = c._rows(s, product(key[s], q0).scaled(self.scale))
                low, high = low + float(only.low.min()), high + float(only.high.max())
        for t in state.terms:
            if self.has_bos and t not in seen_queries:
                only = c._rows(t, product(query[t], k0).scaled(self.scale))
                low, high = low + float(only.low.min()), high + float(only.high.max())
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

    # the output (4)

    def _bos_query(self) -> Enclosure:
        """What BOS itself reads (5)."""
        if not self.has_bos:
            return Enclosure.exact(np.zeros_like(self.diam))
        if self.causal:
            return self.sink
        c, state = self.c, self.state
        q = product(state.bos, Enclosure.exact(self.wq)) + Enclosure.exact(self.bq)
        k0 = product(Enclosure.exact(state.const), Enclosure.exact(self.wk)) - product(state.bos, Enclosure.exact(self.wk))
        k0 = k0.plus_error(bound_product(state.eps, self.wk))
        top = float(product(q, k0).scaled(self.scale).high)
        for n, m in state.terms.items():
            only = c._rows(n, product(product(Enclosure.exact(m), Enclosure.exact(self.wk)), q).scaled(self.scale))
            top += float(only.high.max())
        top += 2.0**-46 * abs(top) + 2.0**-900
        share = min(1.0, c.max_len * exp_high(top) * (1 + 2.0**-46))
        return self.sink.plus_error(widen(share * self.diam, 2))

    def _encoding(self) -> Array:
        assert self.role is not None
        n = len(self.c.program.value_node(self.role.node).values)
        return encoding_matrix(self.role.encoding, n, self.c.config.d_model)

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
            rho = widen(self._copied(role, node, encoding, singular) + leak * self.diam, 3)
        if not nonempty:
            empty = (self.sink - Enclosure.exact(encoding[node.default])).size
            leak = min(1.0, c.max_len * exp_high(self.u) * (1 + 2.0**-46))
            rho = np.maximum(rho, widen(empty + leak * self.diam, 3))
        return Update(role.node, encoding, rho, self._bos_query())

    def _copied(self, role: HeadRole, node: Aggregate, encoding: Array, singular: bool) -> Array:
        """How far a key's value is from the encoding of what it stands for."""
        c = self.c
        tuples, targets = c._tuples(role.reads, node.value, self.place)
        others = c._others(self.state, role.reads, self.tables, c.config.d_model)
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
            return distance.max(axis=0, initial=0.0)
        if role.affine is None:
            raise Failed(self.place, "a mean needs an affine encoding")
        dim, offset, slope = role.affine
        numbers = _rounded(source)
        wanted = np.zeros(shape)
        wanted_error = np.zeros(shape)
        wanted[:, dim] = offset + slope * numbers[targets]
        wanted_error[:, dim] = (np.abs(wanted[:, dim]) + abs(offset)) * 2.0**-50
        distance = (value - Enclosure(wanted, wanted_error)).size.max(axis=0, initial=0.0)
        possible = c.possible(role.node) & np.array([v is not None and not isinstance(v, str) for v in node.values])
        points = _rounded(node.values)[possible]
        line = np.zeros((len(points), c.config.d_model))
        line_error = np.zeros_like(line)
        line[:, dim] = offset + slope * points
        line_error[:, dim] = (np.abs(line[:, dim]) + abs(offset)) * 2.0**-50
        apart = (Enclosure(encoding[possible], line_error) - Enclosure.exact(line)).size.max(axis=0, initial=0.0)
        return widen(distance + apart, 1)

    def _width(self) -> Update:
        role, c = self.role, self.c
        assert role is not None
        if not self.has_bos:
            raise Failed(self.place, "a width needs BOS")
        encoding = self._encoding()
        node = c.program.value_node(role.node)
        e_low, e_high, e_out = exp_low(self.a), exp_high(self.big_a), exp_high(self.u)
        rho = np.zeros(c.config.d_model)
        values = self.hull
        for index in np.flatnonzero(c.possible(role.node)):
            w = int(node.values[index])  # type: ignore[arg-type]
            if w and not self.selects:
                continue
            most = 1.0 / (1 + w * e_low if w else 1.0) * (1 + 2.0**-48)
            high_e = w * e_high if w else 0.0
            least = 1.0 / (1 + high_e + (c.max_len - w) * e_out) * (1 - 2.0**-48) if np.isfinite(high_e + e_out) else 0.0
            share = between(np.array(least), np.array(min(1.0, most)))
            rest = between(np.array(max(0.0, 1 - float(share.high))), np.array(min(1.0, 1 - float(share.low) + 2.0**-52)))
            result = _times(share, self.sink) + _times(rest, values)
            rho = np.maximum(rho, (result - Enclosure.exact(encoding[index])).size)
        return Update(role.node, encoding, rho, self._bos_query())


def _times(scalar: Enclosure, vector: Enclosure) -> Enclosure:
    mid = scalar.mid * vector.mid
    rad = np.abs(scalar.mid) * vector.rad + scalar.rad * (np.abs(vector.mid) + vector.rad)
    return Enclosure(mid, widen(rad + np.abs(mid) * 2.0**-53, 5))


def Enclosure_broadcast(vector: Enclosure, shape: tuple[int, int], axis: int) -> Enclosure:
    """A vector along `axis` (0: rows) as a table."""
    view = (-1, 1) if axis == 0 else (1, -1)
    return Enclosure(np.broadcast_to(vector.mid.reshape(view), shape), np.broadcast_to(vector.rad.reshape(view), shape))


def _rounded(values: Sequence[Value]) -> Array:
    """Nearest floats of numbers (0 for others); off by at most one part in 2^53."""
    return np.array([0.0 if v is None or isinstance(v, str) else float(v) for v in values])
