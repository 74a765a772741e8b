"""Weights from a plan with coordinates.

Scores: each atom of a head contributes GAIN to a selected pair and 0 to another, so with m atoms a selected key
scores m GAIN and any other at most (m - 1) GAIN. BOS, the sink, scores (m - 1/2) GAIN (m GAIN for a width, where it
is counted with the selected), whatever the query. exp(-GAIN / 2) is far below the least positive float32: unselected
keys weigh exactly 0 there. What the BOS position itself holds is known, and every reader of it is corrected for it
through BOS's own coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .alignment import Alignment, Atom, Encoding, HeadRole, NeuronRole, OneHot, Scalar, Scaled
from .components import Axis, GroupPlan, HeadPlan, Rep, Weights
from .core import CoreProgram
from .layout import Layout
from .plan import Plan

Array = npt.NDArray[np.float64]

GAIN = 256.0


@dataclass(frozen=True)
class BosErrors:
    """What float32 weights leave of a head's correction for the position of BOS: in its score, and in its value."""

    score: float
    value: float


@dataclass(frozen=True, eq=False)
class Emitted:
    """Parameters by TransformerLens name (float32), sizes per layer (heads, d_head, d_mlp), and the alignment.

    `bos_errors`: by identity of the planned head.
    """

    parameters: dict[str, npt.NDArray[np.float32]]
    layers: list[tuple[int, int, int]]
    d_model: int
    alignment: Alignment
    bos_errors: dict[int, BosErrors]


def encoding_of(rep: Rep) -> Encoding:
    """The encoding that a representation with coordinates is."""
    if rep.kind == "onehot":
        return OneHot(tuple(int(rep.dims[s]) if s >= 0 else -1 for s in rep.slot))
    assert rep.points is not None
    return Scalar(int(rep.dims[0]), tuple(float(p) for p in rep.points))


def emit(plan: Plan, layout: Layout, bos: bool, outputs: tuple[object, ...]) -> Emitted:
    """The weights of a plan with a layout; `outputs`: the values that are decoded to."""
    core, d_model = plan.program, layout.d_model
    groups = [*plan.groups, *layout.clears]
    n_layers = max([0, *(h.time // 2 + 1 for h in plan.heads), *(g.time // 2 + 1 for g in groups)])
    parameters: dict[str, Array] = {}
    residual_bos = _embed(parameters, plan, core, d_model, bos)
    head_roles: list[HeadRole] = []
    neuron_roles: list[NeuronRole] = []
    sizes: list[tuple[int, int, int]] = []
    bos_errors: dict[int, BosErrors] = {}
    for layer in range(n_layers):
        heads = [h for h in plan.heads if h.time == 2 * layer]
        blocks = [_head(h, d_model, bos, residual_bos) for h in heads]
        d_head = max([0, *(max(b.query.shape[1], b.value.shape[1]) for b in blocks)])
        change = np.zeros(d_model)
        if heads:
            if bos:
                found = (_bos_errors(h, block, residual_bos) for h, block in zip(heads, blocks, strict=True))
                bos_errors.update(zip(map(id, heads), found, strict=True))
            change = _attention(parameters, f"blocks.{layer}.attn.", blocks, d_model, d_head, residual_bos)
            head_roles += [_head_role(h, layer, i) for i, h in enumerate(heads)]
        residual_bos = residual_bos + change
        here = [g for g in groups if g.time == 2 * layer + 1]
        d_mlp = sum(len(g.neurons) for g in here)
        if d_mlp:
            _mlp(parameters, f"blocks.{layer}.mlp.", here, d_model, d_mlp, bos, residual_bos)
            start = 0
            for g in here:
                end = start + len(g.neurons)
                neuron_roles.append(NeuronRole(layer, (start, end), g.reads, g.node, _group_encoding(g)))
                start = end
        sizes.append((len(heads), d_head, d_mlp))
    reads = _unembed(parameters, plan, d_model, len(outputs))
    sums = tuple(sorted(plan.width_sums.items()))
    shares = tuple((node, *pair) for node, pair in sorted(plan.width_shares.items()))
    alignment = Alignment(core, plan.n_source, tuple(head_roles), tuple(neuron_roles), sums, reads, shares)
    rounded = {k: v.astype(np.float32) for k, v in parameters.items()}
    return Emitted(rounded, sizes, d_model, alignment, bos_errors)


def _embed(parameters: dict[str, Array], plan: Plan, core: CoreProgram, d_model: int, bos: bool) -> Array:
    shift = 1 if bos else 0
    tokens = np.zeros((len(core.vocab) + shift, d_model))
    positions = np.zeros((core.max_len + shift, d_model))
    for rep in plan.embeddings:
        target, offset = (tokens, 0) if rep.node == 0 else (positions, shift)
        for value, slot in enumerate(rep.slot):
            if slot >= 0:
                target[value + offset, rep.dims[slot]] = 1.0
    if bos:
        tokens[len(core.vocab), 0] = 1.0
    parameters["embed.W_E"] = tokens
    parameters["pos_embed.W_pos"] = positions
    return tokens[-1] + positions[0] if bos else np.zeros(d_model)


@dataclass(frozen=True, eq=False)
class _Block:
    query: Array
    key: Array
    query_bias: Array
    value: Array
    value_bias: Array
    out: Array


def _atom(atom_table: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Factors (key [values, dims], query [values, dims]) with key . query = the table; a dim per class of one side."""
    columns, column_of = np.unique(atom_table, axis=1, return_inverse=True)
    rows, row_of = np.unique(atom_table, axis=0, return_inverse=True)
    live_columns = columns.any(axis=0)
    live_rows = rows.any(axis=1)
    if live_columns.sum() <= live_rows.sum():
        query = np.eye(columns.shape[1])[column_of.reshape(-1)][:, live_columns]
        return columns[:, live_columns].astype(float), query
    key = np.eye(rows.shape[0])[row_of.reshape(-1)][:, live_rows]
    return key, rows[live_rows].T.astype(float)


def _head(head: HeadPlan, d_model: int, bos: bool, residual_bos: Array) -> _Block:
    factors = [_atom(atom.table) for atom in head.atoms]
    width = sum(k.shape[1] for k, _ in factors) + (1 if bos else 0)
    query, key = np.zeros((d_model, width)), np.zeros((d_model, width))
    start = 0
    for atom, (key_factor, query_factor) in zip(head.atoms, factors, strict=True):
        end = start + key_factor.shape[1]
        _place(key[:, start:end], atom.key, key_factor)
        _place(query[:, start:end], atom.query, GAIN * query_factor)
        start = end
    query_bias = np.zeros(width)
    out_size = head.out.size
    value = np.zeros((d_model, out_size))
    for rep, local, target, weight in head.values:
        value[rep.dims[local], target] += weight
    if bos:
        query_bias[-1] = GAIN * len(head.atoms) if head.is_width else GAIN * (len(head.atoms) - 0.5)
        key[0, -1] = 1.0
        garbage = residual_bos.copy()
        garbage[0] = 0.0
        query[0] -= garbage @ query
        if not head.atoms:  # BOS itself must not attend to the tokens, which also score 0
            query[0, -1] += GAIN
        key[0] -= garbage @ key
        value[0] += head.sink - head.offset - (garbage @ value.astype(np.float32).astype(float))
    out = np.zeros((out_size, d_model))
    out[np.arange(out_size), head.out.dims] = 1.0
    return _Block(query, key, query_bias, value, head.offset, out)


def _bos_errors(head: HeadPlan, block: _Block, residual_bos: Array) -> BosErrors:
    """How far the key and the value of BOS are from what they are meant to be (key: 1 in the last place)."""
    key = residual_bos @ _rounded(block.key)
    key[-1] -= 1.0
    value = residual_bos @ _rounded(block.value) + _rounded(block.value_bias)
    query = GAIN * max(1, len(head.atoms))  # no query holds more in one place
    return BosErrors(float(query * np.abs(key).sum()), float(np.abs(value - head.sink).sum()))


def _rounded(array: Array) -> Array:
    return array.astype(np.float32).astype(float)


def _place(target: Array, rep: Rep, factor: Array) -> None:
    for value, slot in enumerate(rep.slot):
        if slot >= 0:
            target[rep.dims[slot]] = factor[value]


def _attention(
    parameters: dict[str, Array], prefix: str, blocks: list[_Block], d_model: int, d_head: int, residual_bos: Array
) -> Array:
    n = len(blocks)
    names = {"W_Q": "query", "W_K": "key", "W_V": "value"}
    for name, attribute in names.items():
        parameters[prefix + name] = np.zeros((n, d_model, d_head))
        parameters[prefix + name.replace("W", "b")] = np.zeros((n, d_head))
        for i, block in enumerate(blocks):
            matrix = getattr(block, attribute)
            parameters[prefix + name][i, :, : matrix.shape[1]] = matrix
    parameters[prefix + "W_O"] = np.zeros((n, d_head, d_model))
    parameters[prefix + "b_O"] = np.zeros(d_model)
    change = np.zeros(d_model)
    for i, block in enumerate(blocks):
        parameters[prefix + "b_Q"][i, : len(block.query_bias)] = block.query_bias
        parameters[prefix + "b_V"][i, : len(block.value_bias)] = block.value_bias
        parameters[prefix + "W_O"][i, : len(block.out)] = block.out
        value = residual_bos @ block.value.astype(np.float32).astype(float) + block.value_bias.astype(
            np.float32
        ).astype(float)
        change += value @ block.out
    return change


def _mlp(
    parameters: dict[str, Array],
    prefix: str,
    groups: list[GroupPlan],
    d_model: int,
    d_mlp: int,
    bos: bool,
    residual_bos: Array,
) -> None:
    into, bias, out = np.zeros((d_model, d_mlp)), np.zeros(d_mlp), np.zeros((d_mlp, d_model))
    column = 0
    for group in groups:
        for neuron in group.neurons:
            for rep, local, weight in neuron.weights:
                into[rep.dims[local], column] += weight
            bias[column] = neuron.bias
            for rep, local, weight in neuron.writes:
                out[column, rep.dims[local]] += weight
            column += 1
    if bos:
        off = into[0] - (residual_bos @ into + np.maximum(bias, 0.0) + 1.0)
        for j in range(1, d_mlp):  # the two neurons of a ramp stay alike
            if bias[j] <= bias[j - 1] and (into[:, j] == into[:, j - 1]).all():
                off[j] = off[j - 1]
        into[0] = off
    parameters[prefix + "W_in"], parameters[prefix + "b_in"] = into, bias
    parameters[prefix + "W_out"], parameters[prefix + "b_out"] = out, np.zeros(d_model)


def _unembed(parameters: dict[str, Array], plan: Plan, d_model: int, n_outputs: int) -> tuple[int, ...]:
    if isinstance(plan.decode, Axis):
        weights: Weights = plan.decode.weights
        matrix, bias = np.zeros((d_model, 1)), np.array([plan.decode.bias])
        for rep, local, weight in weights:
            matrix[rep.dims[local], 0] += weight
        reads = plan.decode.reads
    else:
        rep, function = plan.decode
        matrix, bias = np.zeros((d_model, n_outputs)), np.zeros(n_outputs)
        for value, target in enumerate(function):
            if target >= 0 and rep.slot[value] >= 0:
                matrix[rep.dims[rep.slot[value]], target] = 1.0
        reads = (rep.node,)
    parameters["unembed.W_U"], parameters["unembed.b_U"] = matrix, bias
    return reads


def _head_role(head: HeadPlan, layer: int, index: int) -> HeadRole:
    atoms = tuple(Atom(a.key.node, a.query.node, a.table) for a in head.atoms)
    affine = (int(head.out.dims[0]), 0.0, 1.0) if head.affine else None
    return HeadRole(layer, index, head.node, atoms, head.reads, encoding_of(head.out), affine)


def _group_encoding(group: GroupPlan) -> Encoding:
    encoding = encoding_of(group.out)
    if not group.clears:
        return encoding
    cleared = {int(r.dims[i]) for n in group.neurons for r, i, _ in n.writes}
    if isinstance(encoding, OneHot):
        encoding = OneHot(tuple(d if d in cleared else -1 for d in encoding.dims))
    return Scaled(-1, encoding)
