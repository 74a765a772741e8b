"""Rule `mlp`: groups of neurons compute nodes from nodes at the same position (section 4 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .context import Context, added, with_bias
from .core import Bits
from .exact import Exact, Radii, from_float32, grow, through
from .format import Json, integer, listing, record, require, within
from .joint import Joint
from .model import Weights
from .neurons import Known, Widths, ramps, relu_radius
from .state import State, hull, image, node_list, project, read_encoding

MAX_CHUNK = 2**22


def check_mlp(
    context: Context, state: State, layer: int, step: Json, neurons: Bits | None = None, onto: State | None = None
) -> State:
    """Each group computes E'[y] from the nodes it reads, within rho; neurons in no group are error.

    `neurons`: only these, the groups being of them. `onto`: another state that all this is added to, without the bias.
    """
    item = record(step, "mlp step", ("rule", "layer", "groups"))
    model = context.theorem.model
    shape, name = model.config.layers[layer], f"blocks.{layer}.mlp."
    weight_in, weight_out = model.weights[name + "W_in"], model.weights[name + "W_out"]
    into, out = from_float32(weight_in), from_float32(weight_out)
    raw_bias = model.weights[name + "b_in"]
    bias = from_float32(raw_bias)
    tables = project(state, into)
    constant = state.const @ into + bias
    error = through(state.eps, weight_in)
    free = np.ones(shape.d_mlp, dtype=np.bool_) if neurons is None else neurons.copy()
    used, to = free.copy(), state if onto is None else onto
    known = known_coordinates(context, state)
    encodings, eps = to.encodings, to.eps
    paired: list[npt.NDArray[np.int64]] = []
    for number, entry in enumerate(listing(item["groups"], "groups", shape.d_mlp)):
        with within("", f"mlp group {number}"):
            group = record(entry, "a group", ("neurons", "reads", "node", "encoding"))
            ends = listing(group["neurons"], "neurons", 2, 2)
            first = integer(ends[0], "first neuron", 0, shape.d_mlp)
            span = slice(first, integer(ends[1], "end of neurons", first, shape.d_mlp))
            require(free[span].all(), "two groups share a neuron")
            free[span] = False
            y = integer(group["node"], "node", 0, len(context.program.nodes) - 1)
            size = len(context.program.value(y, "node").values)
            encoding = read_encoding(group["encoding"], size, model.config.d_model)
            joint = context.resolver.tuples(node_list(group["reads"], context.ranges))
            units, widest = ramps(weight_in[:, span], raw_bias[span], weight_out[span], known)
            units = units + first
            paired.append(units[widest.bounded])
            inner = {node: table[:, units] for node, table in tables.items()}
            rows = _Group(
                inner, constant[units], widest, weight_in[:, units], out[units], weight_out[units], encoding, y
            )
            eps = grow(eps + _group_error(context, state, rows, joint))
            encodings = added(encodings, y, encoding)
    rest = hull(tables, context.ranges, shape.d_mlp)
    eps = grow(eps + stray_error(constant + rest.center, grow(rest.radius + error), free, weight_out))
    pre = state.bos @ into + bias
    bos = to.bos + pre.relu()[used] @ out[used]
    radius = bos_radius(pre, state.bosr, weight_in, np.concatenate([np.zeros(0, dtype=np.int64), *paired]))
    bosr = grow(to.bosr + through(radius[used], weight_out[used]))
    result = State(encodings, to.const, eps, bos, bosr, to.relief)
    return result if onto is not None else with_bias(result, from_float32(model.weights[name + "b_out"]))


def bos_radius(pre: Exact, error: Radii, weight_in: Weights, first: npt.NDArray[np.int64]) -> Radii:
    """By neuron, how far its activation at BOS is from relu(pre), with BOS's residual within `error`.

    The units of two neurons (at `first` and after) are units there too if d = pre_j - pre_j+1 is certainly >= 0: then
    clip(p, 0, d) is all that the two write, as one multiple of W_out[j]; its whole radius is put down for j.
    """
    reach = through(error, weight_in)
    radius = relu_radius(pre, reach)
    apart = from_float32(weight_in[:, first]) - from_float32(weight_in[:, first + 1])
    slack = grow(error @ apart.magnitude())
    sure = (pre[first] - pre[first + 1]).lower() >= slack
    first, slack = first[sure], slack[sure]
    radius[first] = grow(np.minimum(radius[first], relu_radius(-pre[first + 1], reach[first])) + slack)
    radius[first + 1] = 0.0
    return radius


def known_coordinates(context: Context, state: State) -> Known:
    """Where each E_u has one and the same entry for all possible values of u."""
    known, level = np.ones(state.eps.shape, dtype=np.bool_), state.const
    for node, table in state.encodings.items():
        rows = table[context.ranges.some(node)]
        known &= (rows.data == rows.data[:1]).all(axis=0)
        level = level + rows[0]
    return Known(known, Exact(np.where(known, level.data, 0), level.exp), np.where(known, state.eps, 0.0))


def stray_error(center: Exact, radius: Radii, free: Bits, weight_out: Weights) -> Radii:
    """The most that neurons in no group can write, by coordinate, with pre-activations within `radius` of `center`."""
    post = grow(np.maximum(0, center.upper() + radius))
    return through(np.where(free, post, 0.0), weight_out)


@dataclass(frozen=True, eq=False)
class _Group:
    """The units of one group: their pre-activation by node, and constant, the widths at which their activation
    saturates (`ramps`), their weights, and E' of y."""

    tables: dict[int, Exact]
    constant: Exact
    widest: Widths
    weight_in: Weights
    out: Exact
    weight_out: Weights
    encoding: Exact
    y: int


def _group_error(context: Context, state: State, group: _Group, joint: Joint) -> Radii:
    """rho_c >= |out_c - E'[y]_c| over possible tuples, with y resolved from the tuple; tuples in chunks."""
    index, mask = context.resolver.resolve(group.y, joint)
    keep = mask.any(axis=0) & (index >= 0)
    require(keep.any(), "no tuple of the values read is possible")
    joint, index = joint.kept(keep), index[keep]
    columns = np.flatnonzero((group.out.data != 0).any(axis=0) | (group.encoding.data != 0).any(axis=0))
    out, weight_out = group.out[:, columns], group.weight_out[:, columns]
    encoding = group.encoding[:, columns]
    error = np.zeros(len(columns))
    relieved = len(state.eps) if any(node in state.relief for node in joint.columns) else 0
    chunk = max(1, MAX_CHUNK // max(1, out.shape[0] + len(columns) + relieved))
    for first in range(0, joint.size, chunk):
        rows = slice(first, first + chunk)
        some = joint.kept(np.arange(joint.size)[rows])
        reach = through(state.error_on(some), group.weight_in)
        pre = image(group.tables, context.ranges, some, group.constant, reach)
        post, radius = group.widest.activation(pre.center, pre.radius)
        got = (post @ out - encoding[index[rows]]).magnitude()
        error = np.maximum(error, grow(got + through(radius, weight_out)).max(axis=0))
    full = np.zeros(context.theorem.model.config.d_model)
    full[columns] = error
    return full
