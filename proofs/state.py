"""The abstract residual stream of a composition proof, and the encodings that steps add to it (section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .exact import Exact, Ints, Radii, from_float32, from_fractions, grow, zeros
from .format import Json, dyadic, integer, integers, listing, record, require, show
from .joint import Joint, TooLarge
from .model import Model
from .ranges import Ranges

MAX_ENTRIES = 2**25
MAX_FACTOR = 2**20
MAX_PARTS = 64
POINT_BITS = 512


@dataclass(frozen=True, eq=False)
class State:
    """At a (non-BOS) position: const + sum over nodes of encodings[node][value] + e, where
    |e_c| <= eps_c - sum over nodes of relief[node][value, c].

    At the BOS position (if there is one): bos + e', |e'_c| <= bosr_c.
    """

    encodings: dict[int, Exact]
    const: Exact
    eps: Radii
    bos: Exact
    bosr: Radii
    relief: dict[int, Radii] = field(default_factory=dict)

    def error_on(self, joint: Joint) -> Radii:
        """[tuple or 1, coordinate]: the bound of |e| on tuples of values of some nodes."""
        left = self.eps[None, :]
        for node, column in joint.columns.items():
            if node in self.relief:
                left = left - self.relief[node][column]
        return grow(np.maximum(left, 0.0))


@dataclass(frozen=True, eq=False)
class Image:
    """center[t, c] +- radius[c] (or radius[t, c]) encloses coordinate c of an affine image of the residual stream, on
    tuple t."""

    center: Exact
    radius: Radii


def project(state: State, *weights: Exact) -> dict[int, Exact]:
    """Each node's encoding times the matrices (nodes for which that is zero are left out)."""
    tables = {}
    for node, table in state.encodings.items():
        for weight in weights:
            table = table @ weight
        if not table.is_zero():
            tables[node] = table
    return tables


def hull(tables: dict[int, Exact], ranges: Ranges, width: int, without: tuple[int, ...] = ()) -> Image:
    """Encloses the sum of the tables of all nodes not in `without`, over their possible values (one row)."""
    center, radius = zeros(width), np.zeros(width)
    for node, table in tables.items():
        if node not in without:
            rows = table[ranges.some(node)]
            high, low = rows.max(), rows.min()
            middle = high + low
            center = center + Exact(middle.data, middle.exp - 1)
            radius = grow(radius + (high - low).magnitude() / 2)
    return Image(center, radius)


def image(tables: dict[int, Exact], ranges: Ranges, joint: Joint, constant: Exact, error: Radii) -> Image:
    """On each tuple of `joint`: the tables of its nodes, plus the hull of all others, plus constant, within error."""
    rest = hull(tables, ranges, constant.shape[0], joint.nodes)
    center = broadcast(constant + rest.center, joint.size)
    for node, column in joint.columns.items():
        if node in tables:
            center = center + tables[node][column]
    return Image(center, grow(rest.radius + error))


def broadcast(row: Exact, size: int) -> Exact:
    """A row repeated `size` times."""
    return Exact(np.broadcast_to(row.data, (size, *row.shape)), row.exp)


def start(model: Model, ranges: Ranges, rows: Ints, bos: int | None) -> State:
    """The residual stream after embedding; `rows[v]`: the token id of the program's token v; `bos`: BOS's id."""
    d = model.config.d_model
    embedding = from_float32(model.weights["embed.W_E"])
    encodings = {0: embedding[rows]}
    at_bos = zeros(d) if bos is None else embedding[bos]
    if model.config.positional:
        positions = model.weights["pos_embed.W_pos"]
        first = 0 if bos is None else 1
        used = int(ranges.lengths[-1])
        table = np.zeros((ranges.program.max_len, d), dtype=np.float32)
        table[:used] = positions[first : first + used]
        encodings[1] = from_float32(table)
        if bos is not None:
            at_bos = at_bos + from_float32(positions[0])
    return State(encodings, zeros(d), np.zeros(d), at_bos, np.zeros(d))


def read_encoding(data: Json, values: int, d_model: int) -> Exact:
    """E'[value] as a matrix [values, d_model]."""
    require(_count(data) <= MAX_PARTS, f"an encoding has more than {MAX_PARTS} parts")
    encoding = _read_encoding(data, values, d_model)
    require((encoding.magnitude() < 2.0**POINT_BITS).all(), "an encoding is too large")
    return encoding


def _count(data: Json) -> int:
    """How many objects the encoding consists of."""
    if isinstance(data, list):
        return sum(map(_count, data))
    return 1 + _count(data.get("parts", [])) + _count(data.get("of", [])) if isinstance(data, dict) else 0


def _read_encoding(data: Json, values: int, d_model: int) -> Exact:
    if values * d_model > MAX_ENTRIES:
        raise TooLarge(f"an encoding of {values} x {d_model}")
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "onehot":
        item = record(data, "encoding", ("kind", "dims"))
        dims = integers(item["dims"], "dims", -1, d_model - 1, values)
        require(len(dims) == values, f"dims has {len(dims)} entries for {values} values")
        table = np.zeros((values, d_model), dtype=np.int64)
        used = np.array(dims, dtype=np.int64)
        table[np.flatnonzero(used >= 0), used[used >= 0]] = 1
        return Exact(table, 0)
    if kind == "scalar":
        item = record(data, "encoding", ("kind", "dim", "points"))
        points = [dyadic(point, "a point") for point in listing(item["points"], "points", values, values)]
        require(all(abs(p) < 2**POINT_BITS for p in points), "a point is too large")
        column = from_fractions(points)
        filled: npt.NDArray[np.generic] = np.zeros((values, d_model), dtype=column.data.dtype)
        filled[:, integer(item["dim"], "dim", 0, d_model - 1)] = column.data
        return Exact(filled, column.exp)
    if kind == "sum":
        item = record(data, "encoding", ("kind", "parts"))
        total = zeros(values, d_model)
        for part in listing(item["parts"], "parts", MAX_PARTS):
            total = total + _read_encoding(part, values, d_model)
        return total
    require(kind == "scaled", f"unknown encoding {show(kind)}")
    item = record(data, "encoding", ("kind", "by", "of"))
    factor = integer(item["by"], "by", -MAX_FACTOR, MAX_FACTOR)
    return _read_encoding(item["of"], values, d_model).scaled(Fraction(factor))


def node_list(data: Json, ranges: Ranges) -> list[int]:
    """Distinct value nodes."""
    nodes = integers(data, "reads", 0, len(ranges.program.nodes) - 1, 16)
    require(len(set(nodes)) == len(nodes), "reads repeats a node")
    for node in nodes:
        ranges.program.value(node, "reads")
    return nodes
