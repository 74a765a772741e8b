"""Composition: a theorem about whole sequences from lemmas about the values each component reads.

The rules and their statements are in `proofs/SPECIFICATION.md`, section 4; this is the producer's side of them. It
walks the layers once with an abstract state (encodings of nodes, a constant, an error box, BOS's own residual) and
verifies, against the weights, what the alignment says of each component. Cost: polynomial in vocabulary and length,
never in the number of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import NeuronRole
from ..compiler.core import Value
from ..compiler.first_position import is_width_share
from .abstract_state import Context, Failed, State, Tuples
from .head_rule import HeadRule
from .rounding import Enclosure, Unbounded, between, bound_product, product, widen
from .selector_identity import is_width_sum

Array = npt.NDArray[np.float64]

MAX_ENTRIES = 60_000_000


@dataclass(frozen=True)
class Composed:
    """What a composition showed: the least decoding margin and, per layer, the largest error of the residual stream."""

    margin: float
    errors: tuple[float, ...] = field(default=())


class Composition:
    """One verification of one model against one alignment; `run` raises `Failed`."""

    def __init__(self, context: Context, step: Callable[[str], None] = lambda _: None) -> None:
        """`step` is called with the name of each component before its lemma is looked at; it may raise."""
        self.c, self.step = context, step

    # -- the walk ---------------------------------------------------------------------------------------------------

    def run(self) -> Composed:
        try:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                return self._run()
        except Unbounded as error:
            raise Failed("model", str(error)) from None

    def _run(self) -> Composed:
        self._check_scope()
        self.step("width sums")
        for width, terms in self.c.sums.items():
            if not is_width_sum(self.c.an, width, terms):
                raise Failed(f"width sum of node {width}", "the selectors do not add up")
        for node, (counted, inside) in self.c.shares.items():
            if not is_width_share(self.c.an, node, counted, inside):
                raise Failed(f"width share of node {node}", "its definitions do not fit")
        state = self._start()
        errors = []
        for layer in range(len(self.c.config.layers)):
            self._attention(state, layer)
            self._mlp(state, layer)
            errors.append(float(state.eps.max(initial=0.0)))
        return Composed(self._decode(state), tuple(errors))

    def _check_scope(self) -> None:
        c = self.c.config
        unsupported = [
            what
            for bad, what in (
                (c.layer_norm is not None, "LayerNorm"),
                (c.activation != "relu" and any(x.d_mlp for x in c.layers), f"activation {c.activation}"),
                (c.attention != "softmax", f"{c.attention} attention"),
                (c.readout != "each", f"readout {c.readout}"),
                (
                    isinstance(c.attention_scale, str) and any(x.n_heads for x in c.layers),
                    "attention scale 1/sqrt(d_head), which is not exact",
                ),
                (c.causal != self.c.program.causal, "a causal mask unlike the program's"),
            )
            if bad
        ]
        if unsupported:
            raise Failed("model", f"composition does not cover {', '.join(unsupported)}")
        if not all(np.isfinite(v).all() for v in self.c.w.values()):
            raise Failed("model", "a weight is not finite")
        shift = 1 if self.c.codec.bos else 0
        if self.c.codec.vocab != self.c.program.vocab:
            raise Failed("codec", "its vocabulary is not the program's")
        if c.d_vocab < len(self.c.program.vocab) + shift or c.n_ctx < self.c.max_len + shift:
            raise Failed("model", "it cannot read the program's inputs: too few tokens or positions")
        outputs = 1 if self.c.codec.kind == "scalar" else len(self.c.codec.outputs)
        if c.d_vocab_out != outputs:
            raise Failed("codec", f"it reads {outputs} logits, the model has {c.d_vocab_out}")

    def _start(self) -> State:
        d = self.c.config.d_model
        embed, positions = self.c.w["embed.W_E"], self.c.w.get("pos_embed.W_pos")
        shift = 1 if self.c.codec.bos else 0
        terms = {0: embed[: len(self.c.program.vocab)].copy()}
        bos = np.zeros(d)
        if positions is not None:
            rows = np.zeros((self.c.program.max_len, d))
            found = positions[shift : shift + self.c.program.max_len]
            rows[: len(found)] = found
            terms[1] = rows
            if self.c.codec.bos:
                bos = bos + positions[0]
        result = Enclosure.exact(bos)
        if self.c.codec.bos:
            result = result + Enclosure.exact(embed[len(self.c.program.vocab)])
        return State(np.zeros(d), {k: v for k, v in terms.items() if v.any()}, np.zeros(d), result)

    # -- heads ------------------------------------------------------------------------------------------------------

    def _attention(self, state: State, layer: int) -> None:
        heads = self.c.config.layers[layer].n_heads
        if not heads:
            return
        roles = {role.head: role for role in self.c.alignment.heads if role.layer == layer}
        self.step(f"heads of layer {layer}")
        updates = [HeadRule(self.c, state, layer, head, roles.get(head)).update() for head in range(heads)]
        bos = state.bos
        for update in updates:
            if update.matrix is not None:
                state.add(update.node, update.matrix)
            state.eps = widen(state.eps + update.rho, 1)
            bos = bos + update.bos
        state.bos = bos
        state.shift(self.c.w[f"blocks.{layer}.attn.b_O"])

    # -- neurons ----------------------------------------------------------------------------------------------------

    def _mlp(self, state: State, layer: int) -> None:
        if not self.c.config.layers[layer].d_mlp:
            return
        prefix = f"blocks.{layer}.mlp."
        into, bias = self.c.w[prefix + "W_in"], self.c.w[prefix + "b_in"]
        out = self.c.w[prefix + "W_out"]
        d_mlp = into.shape[1]
        base = product(Enclosure.exact(state.const), Enclosure.exact(into)) + Enclosure.exact(bias)
        base = base.plus_error(bound_product(state.eps, into))
        tables = {n: product(Enclosure.exact(m), Enclosure.exact(into)) for n, m in state.terms.items()}
        roles = sorted((r for r in self.c.alignment.neurons if r.layer == layer), key=lambda r: r.neurons)
        free = np.ones(d_mlp, dtype=bool)
        additions: list[tuple[int, Array]] = []
        rho = np.zeros(state.eps.shape)
        for role in roles:
            first, end = role.neurons
            if not 0 <= first <= end <= d_mlp or not free[first:end].all():
                raise Failed(f"m{layer}", f"neurons {first}..{end} overlap or do not exist")
            free[first:end] = False
            matrix, error = self._group(state, role, base, tables, (into, bias, out))
            additions.append((role.node, matrix))
            rho = widen(rho + error, 1)
        if free.any():
            others = self.c.others(state, (), tables, d_mlp)
            post = (base + others).relu().size[free]
            rho = widen(rho + bound_product(post, out[free]), 1)
        if self.c.codec.bos:
            at_bos = (product(state.bos, Enclosure.exact(into)) + Enclosure.exact(bias)).relu()
            change = product(at_bos, Enclosure.exact(out))
        else:
            change = Enclosure.exact(np.zeros(state.eps.shape))
        for node, matrix in additions:
            state.add(node, matrix)
        state.eps = widen(state.eps + rho, 1)
        state.bos = state.bos + change
        state.shift(self.c.w[prefix + "b_out"])

    def _group(
        self,
        state: State,
        role: NeuronRole,
        base: Enclosure,
        tables: Mapping[int, Enclosure],
        weights: tuple[Array, Array, Array],
    ) -> tuple[Array, Array]:
        into, bias, out = weights
        first, end = role.neurons
        place = f"m{role.layer} neurons {first}..{end - 1}"
        tuples, targets = self.c.tuples(role.reads, role.node, place)
        part = {n: t[:, first:end] for n, t in tables.items()}
        others = self.c.others(state, role.reads, part, end - first)
        encoding = self.c.encoding(role.node, role.encoding, place)
        written = np.flatnonzero(out[first:end].any(axis=0) | encoding.any(axis=0))
        out = out[:, written]
        rho = np.zeros(self.c.config.d_model)
        chunk = max(1, MAX_ENTRIES // 8 // max(1, end - first, len(written)))
        for start in range(0, len(tuples), chunk):
            self.step(place)
            rows = tuples[start : start + chunk]
            pre = base[first:end] + others
            pre = Enclosure(
                np.broadcast_to(pre.mid, (len(rows), end - first)), np.broadcast_to(pre.rad, (len(rows), end - first))
            )
            for column, node in enumerate(role.reads):
                if node in part:
                    pre = pre + part[node][rows[:, column]]
            found = product(*self._activate(pre, into[:, first:end], bias[first:end], out[first:end]))
            distance = (found - Enclosure.exact(encoding[targets[start : start + chunk]][:, written])).size
            rho[written] = np.maximum(rho[written], distance.max(axis=0, initial=0.0))
        return encoding, rho

    @staticmethod
    def _activate(pre: Enclosure, into: Array, bias: Array, out: Array) -> tuple[Enclosure, Enclosure]:
        """Activations and their output rows; a ramp (`ramps`) counts as one unit, clip(z, 0, b - b')."""
        first = ramps(into, bias, out)
        post = pre.relu()
        if first.size:
            top = bias[first] - bias[first + 1]
            exact = (bias[first] - top == bias[first + 1]) & (bias[first + 1] + top == bias[first])
            least, most = np.where(exact, top, np.nextafter(top, 0.0)), np.where(exact, top, np.nextafter(top, np.inf))
            ramp = between(np.clip(pre.low[:, first], 0.0, least), np.clip(pre.high[:, first], 0.0, most))
            keep = np.setdiff1d(np.arange(len(bias)), np.concatenate([first, first + 1]))
            post = Enclosure(
                np.concatenate([ramp.mid, post.mid[:, keep]], axis=1),
                np.concatenate([ramp.rad, post.rad[:, keep]], axis=1),
            )
            out = np.concatenate([out[first], out[keep]])
        return post, Enclosure.exact(out)

    # -- read-out ---------------------------------------------------------------------------------------------------

    def _decode(self, state: State) -> float:
        w, b = self.c.w["unembed.W_U"], self.c.w["unembed.b_U"]
        reads, codec = self.c.alignment.decode_reads, self.c.codec
        tuples, targets = self.c.tuples(reads, self.c.program.output, "decode")
        values = self.c.program.value_node(self.c.program.output).values
        column_of = self._columns(values)
        if codec.kind == "scalar":
            return self._decode_scalar(state, w, b, tuples, targets, column_of)
        margin = np.inf
        for target in np.unique(targets):
            rows = tuples[targets == target]
            column = column_of[target]
            if column < 0:
                raise Failed("decode", f"output {values[target]!r} is missing from the codec")
            others_ = np.arange(w.shape[1]) != column
            if not others_.any():
                continue
            diff = w[:, [column]] - w[:, others_]
            slack = np.abs(diff) * 2.0**-52
            logits = self._logits(
                state, Enclosure(diff, slack), Enclosure.exact(b[column]) - Enclosure.exact(b[others_]), reads, rows
            )
            least = float(logits.low.min())
            if not least > 0:
                worst = int(np.argmin(logits.low.min(axis=1)))
                raise Failed(
                    "decode",
                    f"output {values[target]!r} is not certain to win",
                    dict(zip(reads, rows[worst].tolist(), strict=True)),
                )
            margin = min(margin, least)
        return float(margin)

    def _logits(self, state: State, w: Enclosure, b: Enclosure, reads: Sequence[int], rows: Tuples) -> Enclosure:
        tables = {n: product(Enclosure.exact(m), w) for n, m in state.terms.items()}
        result = product(Enclosure.exact(state.const), w) + b + self.c.others(state, reads, tables, w.mid.shape[1])
        result = result.plus_error(bound_product(state.eps, np.abs(w.mid) + w.rad))
        shape = (len(rows), w.mid.shape[1])
        result = Enclosure(np.broadcast_to(result.mid, shape), np.broadcast_to(result.rad, shape))
        for column, node in enumerate(reads):
            if node in tables:
                result = result + tables[node][rows[:, column]]
        return result

    def _columns(self, values: Sequence[Value]) -> list[int]:
        index = {v: i for i, v in enumerate(self.c.codec.outputs)}
        return [index.get(v, -1) for v in values]

    def _decode_scalar(
        self, state: State, w: Array, b: Array, tuples: Tuples, targets: npt.NDArray[np.int64], column_of: list[int]
    ) -> float:
        logits = self._logits(state, Enclosure.exact(w), Enclosure.exact(b), self.c.alignment.decode_reads, tuples)
        points = np.array(self.c.codec.points, dtype=np.float64)
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
            hint = dict(zip(self.c.alignment.decode_reads, tuples[worst].tolist(), strict=True))
            raise Failed("decode", f"point {points[at[worst]]} may be decoded as its neighbour", hint)
        return float(room.min(initial=np.inf))


def ramps(into: Array, bias: Array, out: Array) -> npt.NDArray[np.int64]:
    """Positions j such that neurons j and j + 1 read the same, b_j >= b_j+1, and write opposite vectors.

    Together they write clip(z_j, 0, b_j - b_j+1) times what neuron j writes: saturated, exactly, away from the ramp.
    """
    found = []
    j = 0
    while j + 1 < len(bias):
        same = (into[:, j] == into[:, j + 1]).all() and (out[j] == -out[j + 1]).all()
        if same and bias[j] >= bias[j + 1]:
            found.append(j)
            j += 1
        j += 1
    return np.array(found, dtype=np.int64)
