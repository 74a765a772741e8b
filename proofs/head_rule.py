"""Rule `head`: a head computes an aggregate or a width (section 4 of the specification)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .attention import Head, Scores, bos_weight, read_scores
from .context import Context, added, head_of
from .core import read_bits
from .exact import TINY, Exact, Ints, Radii, above, from_fractions, grow
from .format import Json, Value, as_fraction, dyadic, integer, is_number, listing, record, require
from .joint import Joint
from .resolving import check_atoms, first_always_selected
from .state import Image, State, image, node_list, project, read_encoding
from .weights import first_share_bounds, outside_weight, share_bounds, unevenness, weight_without_selection

MAX_VALUES = 2**25
LINE_BITS = 100


def check_head(context: Context, before: State, after: State, layer: int, number: int, step: Json) -> State:
    """Conclusion: E_a += E', eps += rho'; bos += U_B + cbB, bosr += bosr |W_V||W_O| + delta_B diam."""
    item = record(step, "head step", ("rule", "layer", "head", "node", "atoms", "reads", "encoding"), ("affine",))
    program, ranges = context.program, context.ranges
    a = integer(item["node"], "node", 0, len(program.nodes) - 1)
    node = program.nodes[a]
    require(node.kind in ("aggregate", "width"), f"node {a} is a {node.kind}, not an aggregate or a width")
    atoms = []
    for entry in listing(item["atoms"], "atoms", 64):
        atom = record(entry, "an atom", ("key", "query", "table"))
        x, z = (integer(atom[key], key, 0, len(program.nodes) - 1) for key in ("key", "query"))
        shape = (len(program.value(x, "key").values), len(program.value(z, "query").values))
        atoms.append((x, z, read_bits(atom["table"], *shape)))
    require(len({(x, z) for x, z, _ in atoms}) == len(atoms), "two atoms have the same key and query")
    check_atoms(ranges, node.args[0], atoms)
    encoding = read_encoding(item["encoding"], len(node.values), context.theorem.model.config.d_model)
    head = head_of(context, before, layer, number)
    scores = read_scores(head, ranges, atoms)
    values = _read_values(context, head, node_list(item["reads"], ranges), encoding)
    longest = int(ranges.lengths[-1])
    apart = None
    if node.kind == "width":
        require("affine" not in item, "affine is for aggregates")
        apart = _width_error(context, values, scores, a, longest)
        error = apart.max(axis=0)
    else:
        error = _aggregate_error(context, values, scores, a, longest, item.get("affine"))
    eps, bosr, bos = after.eps.copy(), after.bosr, after.bos
    eps[values.columns] = grow(eps[values.columns] + error)
    if head.bos:
        delta = bos_weight(head, ranges, longest)
        spread = np.zeros_like(eps)
        spread[values.columns] = grow(delta * values.diameter)
        bos, bosr = bos + head.bos_value, grow(bosr + head.bos_error + spread)
    relief = after.relief
    if apart is not None:
        spared = np.zeros((len(node.values), len(eps)))
        spared[:, values.columns] = np.maximum(0.0, (error - apart) * (1 - 2.0**-30) - TINY)
        relief = {**relief, a: relief[a] + spared if a in relief else spared}
    return State(added(after.encodings, a, encoding), after.const, eps, bos, bosr, relief)


@dataclass(frozen=True, eq=False)
class Values:
    """What a head's keys and BOS contribute, at the residual coordinates `columns` (elsewhere all is exactly 0).

    `keys`: on each tuple of the nodes in `joint`; `bos` +- `bos_radius`; `encoding`: E'.
    `diameter`: the largest difference between any two of the keys' values and BOS's, errors included.
    """

    columns: Ints
    joint: Joint
    keys: Image
    bos: Exact
    bos_radius: Radii
    diameter: Radii
    encoding: Exact


def _read_values(context: Context, head: Head, reads: list[int], encoding: Exact) -> Values:
    tables = project(head.state, head.wv, head.wo)
    used = (head.wo.data != 0).any(axis=0) | (encoding.data != 0).any(axis=0)
    columns = np.flatnonzero(used)
    joint = context.resolver.tuples(reads)
    require(joint.size * len(columns) <= MAX_VALUES, f"{joint.size} tuples times {len(columns)} coordinates")
    cut = {node: table[:, columns] for node, table in tables.items()}
    keys = image(cut, context.ranges, joint, head.key_constant[columns], head.key_error[columns])
    bos, bos_radius = head.bos_value[columns], head.bos_error[columns]
    diameter = value_diameter(keys, bos, bos_radius, head.bos)
    return Values(columns, joint, keys, bos, bos_radius, diameter, encoding[:, columns])


def value_diameter(keys: Image, bos: Exact, bos_radius: Radii, has_bos: bool) -> Radii:
    """diam_c: the largest difference at coordinate c between any two of the keys' values and BOS's."""
    high, low, radius = keys.center.max(), keys.center.min(), keys.radius
    if has_bos:
        high, low, radius = high.maximum(bos), low.minimum(bos), np.maximum(radius, bos_radius)
    return grow((high - low).magnitude() + 2 * radius)


def _aggregate_error(context: Context, values: Values, scores: Scores, a: int, longest: int, affine: Json) -> Radii:
    """rho': the distance of the head's output from E'[a], whether the selection is empty or not."""
    ranges, bos = context.ranges, context.theorem.codec.bos
    node = context.program.nodes[a]
    rho = np.zeros(len(values.columns))
    if scores.selected_low is not None and scores.selected_high is not None:
        delta = outside_weight(scores.selected_low, scores.other_high, longest, bos)
        if a in ranges.singular:
            require(affine is None, "affine is for aggregates that are not singular")
            near = _singular_error(context, values, a)
            spread = grow(delta * values.diameter)
        else:
            near = _affine_error(context, values, a, affine)
            spread = grow((unevenness(scores.selected_low, scores.selected_high) + delta) * values.diameter)
        rho = grow(near + spread)
    if a not in ranges.nonempty:
        require(bos, f"the selection of node {a} may be empty, and there is no BOS")
        require(node.default >= 0, f"the selection of node {a} may be empty, and it has no default")
        delta = weight_without_selection(scores.other_high, longest)
        miss = (values.bos - values.encoding[node.default]).magnitude()
        rho = np.maximum(rho, grow(miss + values.bos_radius + delta * values.diameter))
    return rho


def _aggregated(context: Context, values: Values, a: int) -> tuple[np.ndarray, np.ndarray]:
    """On each tuple: the index of the aggregated value, and at which lengths the tuple is possible."""
    return context.resolver.resolve(context.program.nodes[a].args[1], values.joint)


def _singular_error(context: Context, values: Values, a: int) -> Radii:
    """rho_c >= |value at c - E'[value(reads)]_c| over possible tuples whose value is a possible value of a.

    All selected keys have one value v, and a = v: so tuples with an impossible v are never selected.
    """
    index, mask = _aggregated(context, values, a)
    source = context.program.nodes[context.program.nodes[a].args[1]]
    position = context.program.nodes[a].position()
    target = np.array([position.get(v, -1) for v in source.values], dtype=np.int64)[index]
    mask = mask & context.ranges.possible[a][:, target] & (target >= 0) & (index >= 0)
    return distance(values.keys, values.encoding, target, mask.any(axis=0))


def distance(got: Image, encoding: Exact, target: np.ndarray, rows: np.ndarray) -> Radii:
    """Upper bound of |got - encoding[target]| over the tuples in `rows`, by coordinate."""
    if not rows.any():
        return np.zeros(len(got.radius))
    differences = got.center[rows] - encoding[target[rows]]
    return grow(differences.magnitude().max(axis=0) + got.radius)


def _affine_error(context: Context, values: Values, a: int, affine: Json) -> Radii:
    """rho_c >= |value_c - (alpha_c + beta_c v)| + |E'[v']_c - (alpha_c + beta_c v')|.

    The mean over S of the former is as near to alpha_c + beta_c a. Keys with a value that is no number are selected
    only together with keys of the same value, so there the output is near E'[that value], as in the singular case.
    """
    require(affine is not None, f"node {a} is not singular: the step needs affine")
    program, ranges = context.program, context.ranges
    width = len(values.columns)
    line = record(affine, "affine", ("dim", "offset", "slope"))
    dim = integer(line["dim"], "dim", 0, context.theorem.model.config.d_model - 1)
    offset, steepness = dyadic(line["offset"], "offset"), dyadic(line["slope"], "slope")
    require(max(abs(offset), abs(steepness)) < 2**512, "affine is too large")
    require(dim in values.columns, f"the head does not write coordinate {dim} of affine")
    here = [int(c) == dim for c in values.columns]
    alpha, beta = [offset if h else Fraction(0) for h in here], [steepness if h else Fraction(0) for h in here]
    shift, slope = from_fractions(alpha), from_fractions(beta)
    index, mask = _aggregated(context, values, a)
    source, node = program.nodes[program.nodes[a].args[1]], program.nodes[a]
    numeric = np.array([is_number(v) for v in source.values])[index]
    possible = mask.any(axis=0) & (index >= 0)
    error = np.zeros(width)
    if (possible & numeric).any():
        rows = possible & numeric
        error = line_error(values.keys.center[rows], [source.values[v] for v in index[rows]], shift, slope)
        error = grow(error + values.keys.radius)
    own = np.flatnonzero(ranges.some(a) & np.array([is_number(v) for v in node.values]))
    if len(own):
        error = grow(error + line_error(values.encoding[own], [node.values[v] for v in own], shift, slope))
    position = node.position()
    target = np.array([position.get(v, -1) for v in source.values], dtype=np.int64)[index]
    other = mask & ranges.possible[a][:, target] & (target >= 0) & ~numeric
    return np.maximum(error, distance(values.keys, values.encoding, target, other.any(axis=0) & possible))


def line_error(points: Exact, numbers: Sequence[Value], shift: Exact, slope: Exact) -> Radii:
    """Upper bound of |points[t, c] - (shift_c + slope_c numbers[t])| over t."""
    unique = list(dict.fromkeys(numbers))
    place = {v: i for i, v in enumerate(unique)}
    grid = [Fraction(round(as_fraction(v) * 2**LINE_BITS), 2**LINE_BITS) for v in unique]  # within 2^-LINE_BITS of v
    along = from_fractions(grid)
    line = Exact(along.data[:, None], along.exp) @ Exact(slope.data[None, :], slope.exp)
    chosen = line[np.array([place[v] for v in numbers], dtype=np.int64)]
    moved = grow(slope.magnitude() * 2.0**-LINE_BITS)
    return grow((points - chosen - Exact(shift.data[None, :], shift.exp)).magnitude().max(axis=0) + moved)


def _width_error(context: Context, values: Values, scores: Scores, a: int, longest: int) -> Radii:
    """rho'_w: how far share (the sink's value) + (1 - share) (any other key's value) is from E'[w], for possible w.

    The sink is BOS; without BOS it is position 0, which every query must select, so that it is one of the w.
    """
    node = context.program.nodes[a]
    if context.theorem.codec.bos:
        sink, sink_radius, others = values.bos, values.bos_radius, values.keys.center
    else:
        require(first_always_selected(context.ranges, node.args[0]), "without BOS, all must select position 0")
        require(values.joint.nodes == (1,), "without BOS, a width reads [indices]")
        first = values.joint.columns[1] == 0
        sink, sink_radius = values.keys.center[first][0], values.keys.radius
        others = values.keys.center[~first if not first.all() else first]
    high, low = others.max(), others.min()
    middle = high + low
    key = Exact(middle.data, middle.exp - 1)
    key_radius = grow((high - low).magnitude() / 2 + values.keys.radius)
    between = sink - key
    reach = grow(between.magnitude() + sink_radius + key_radius)
    error = np.zeros((len(node.values), len(values.columns)))
    for v in np.flatnonzero(context.ranges.some(a)):
        share = _share(context, scores, int(node.values[v]), longest)  # type: ignore[arg-type]
        if share is None:
            continue
        center = Fraction(round((share[0] + share[1]) / 2 * 2**80), 2**80)
        slack = above(max(share[1] - center, center - share[0], Fraction(0)))
        miss = (key + between.scaled(center) - values.encoding[v]).magnitude()
        error[v] = grow(miss + slack * reach + np.maximum(sink_radius, key_radius))
    return error


def _share(context: Context, scores: Scores, w: int, longest: int) -> tuple[Fraction, Fraction] | None:
    """Bounds of the sink's weight when w keys are selected; None if that cannot be."""
    low, high, other = scores.selected_low, scores.selected_high, scores.other_high
    if w > longest or (w > 0 and low is None):
        return None
    if context.theorem.codec.bos:
        return share_bounds(low, high, other, w, longest)
    if w < 1:
        return None
    assert low is not None and high is not None
    return first_share_bounds(low, high, other, w, longest)
