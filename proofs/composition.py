"""Rule `composition`: the model implements the program node by node (section 4 of the specification).

Numbers: centers are exact (`Exact`); radii are upward-rounded float64; exponentials come from arb, rounded outward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .attention import Head, Scores, bos_weight, idle_error, read_scores
from .core import Bits, Program, read_bits, read_nodes, read_program
from .exact import Exact, Radii, above, from_float32, from_fractions, grow, rounded, through
from .format import Json, Value, as_fraction, dyadic, integer, is_number, listing, record, require, within
from .model import Weights
from .neurons import Widths, ramps, relu_radius
from .ranges import Joint, Ranges
from .readout import Readout
from .resolving import Resolver, check_atoms, read_width_sums
from .state import Image, State, hull, image, node_list, project, read_encoding, start
from .theorem import Theorem
from .weights import outside_weight, share_bounds, unevenness, weight_without_selection

MAX_CHUNK = 2**22
BOS_BITS = 160
MAX_STEPS = 2**14


@dataclass(frozen=True, eq=False)
class Context:
    """What every rule reads: the theorem, its (extended) program's ranges, and how values follow from values."""

    theorem: Theorem
    ranges: Ranges
    resolver: Resolver

    @property
    def program(self) -> Program:
        return self.ranges.program


def check_composition(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts a composition proof of the theorem, or raises `Rejected` naming step and rule."""
    with within("proof", "composition"):
        item = record(proof, "proof", ("rule", "auxiliary", "width_sums", "steps"), ("program",))
        context = _context(theorem, item)
        steps = listing(item["steps"], "steps", MAX_STEPS, 1)
        by_layer, decode = _arrange(context, steps)
        state = _start(context)
    for layer in range(len(theorem.model.config.layers)):
        state = _check_layer(context, state, layer, by_layer.get(layer, []))
    with within(f"steps[{len(steps) - 1}]", "decode"):
        _check_decode(context, state, decode)


def _context(theorem: Theorem, item: dict[str, Json]) -> Context:
    config = theorem.model.config
    config.require_plain()
    program = theorem.program
    if program is None:  # `margin` and `never_outputs` alone mention no program; the proof brings its own variables
        require("program" in item, "the theorem has no program, so the proof must have one")
        program = read_program(item["program"])
    else:
        require("program" not in item, "the program is the theorem's; the proof must not have another")
    require(program.causal == config.causal, "the program and the model differ in being causal")
    with within("auxiliary", "well-formed"):
        program = read_nodes(program, listing(item["auxiliary"], "auxiliary", 4096))
    with within("program", "ranges"):
        ranges = Ranges(program, theorem.alphabets(program))
    with within("width_sums", "width_sum"):
        sums = read_width_sums(item["width_sums"], ranges)
    return Context(theorem, ranges, Resolver(ranges, sums))


def _scale(theorem: Theorem, layer: int) -> Fraction:
    scale = theorem.model.config.scale
    if scale is not None:
        return Fraction(scale)
    root = math.isqrt(theorem.model.config.layers[layer].d_head)
    exact = root * root == theorem.model.config.layers[layer].d_head and root & (root - 1) == 0
    require(exact, "unsupported: composition needs attention_scale as a number, or d_head a power of 4")
    return Fraction(1, root)


def _start(context: Context) -> State:
    codec, program = context.theorem.codec, context.program
    used = context.ranges.some(0)
    position = {item: index for index, item in enumerate(codec.vocab)}
    for v in np.flatnonzero(used):
        require(program.vocab[v] in position, f"token {program.vocab[v]!r} is not in the codec's vocab")
    rows = np.array([position.get(item, 0) for item in program.vocab], dtype=np.int64)
    return start(context.theorem.model, context.ranges, rows, len(codec.vocab) if codec.bos else None)


def _arrange(context: Context, steps: list[Json]) -> tuple[dict[int, list[tuple[str, Json]]], Json]:
    """Steps by layer; heads come before the layer's mlp, each at most once, and `decode` is last."""
    layers = context.theorem.model.config.layers
    by_layer: dict[int, list[tuple[str, Json]]] = {}
    last: tuple[int, int] = (-1, 0)
    for number, step in enumerate(steps):
        rule = step.get("rule") if isinstance(step, dict) else None
        with within(f"steps[{number}]", str(rule)[:40]):
            require(rule in ("head", "mlp", "decode"), f"unknown rule {rule!r}")
            require((rule == "decode") == (number == len(steps) - 1), "decode must be the last step, and only that")
            if rule == "decode":
                break
            layer = integer(step.get("layer"), "layer", 0, len(layers) - 1)
            here = (layer, 0 if rule == "head" else 1)
            require(rule == "head" or layers[layer].d_mlp > 0, f"layer {layer} has no neurons")
            require(here >= last and (rule == "head" or here > last), "steps are out of order")
            last = here
            by_layer.setdefault(layer, []).append((f"steps[{number}]", step))
    return by_layer, steps[-1]


def _check_layer(context: Context, state: State, layer: int, steps: list[tuple[str, Json]]) -> State:
    """All heads read the state before the layer; then the mlp reads the state after the heads."""
    shape = context.theorem.model.config.layers[layer]
    weights = context.theorem.model.weights
    done: set[int] = set()
    after = state
    for name, step in steps:
        if step["rule"] == "head":
            with within(name, "head"):
                number = integer(step.get("head"), "head", 0, shape.n_heads - 1)
                require(number not in done, f"two steps for head {number}")
                done.add(number)
                after = _check_head(context, state, after, layer, number, step)
    with within(f"layer {layer}", "idle head"):
        for number in range(shape.n_heads):
            if number not in done:
                at_keys, at_bos = idle_error(_head(context, state, layer, number), context.ranges)
                after = replace(after, eps=grow(after.eps + at_keys), bosr=grow(after.bosr + at_bos))
    if shape.n_heads:
        after = _add_bias(after, from_float32(weights[f"blocks.{layer}.attn.b_O"]))
    if shape.d_mlp:
        mlps = [(name, step) for name, step in steps if step["rule"] == "mlp"]
        name, step = mlps[0] if mlps else (f"layer {layer}", {"rule": "mlp", "layer": layer, "groups": []})
        with within(name, "mlp"):
            after = _check_mlp(context, after, layer, step)
    bos, lost = rounded(after.bos, BOS_BITS)
    return replace(after, bos=bos, bosr=grow(after.bosr + lost))


def _add_bias(state: State, bias: Exact) -> State:
    return replace(state, const=state.const + bias, bos=state.bos + bias)


def _head(context: Context, state: State, layer: int, number: int) -> Head:
    theorem = context.theorem
    scale = _scale(theorem, layer)
    return Head(theorem.model, layer, number, scale, theorem.codec.bos, state)


def _add(table: dict[int, Exact], node: int, encoding: Exact) -> dict[int, Exact]:
    return {**table, node: table[node] + encoding if node in table else encoding}


# --- rule head -------------------------------------------------------------------------------------------------


def _check_head(context: Context, before: State, after: State, layer: int, number: int, step: Json) -> State:
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
    head = _head(context, before, layer, number)
    scores = read_scores(head, ranges, atoms)
    values = _read_values(context, head, node_list(item["reads"], ranges), encoding)
    longest = int(ranges.lengths[-1])
    if node.kind == "width":
        require("affine" not in item, "affine is for aggregates")
        error = _width_error(context, values, scores, a, longest)
    else:
        error = _aggregate_error(context, values, scores, a, longest, item.get("affine"))
    eps, bosr, bos = after.eps.copy(), after.bosr, after.bos
    eps[values.columns] = grow(eps[values.columns] + error)
    if head.bos:
        delta = bos_weight(head, ranges, longest)
        spread = np.zeros_like(eps)
        spread[values.columns] = grow(delta * values.diameter)
        bos, bosr = bos + head.bos_value, grow(bosr + head.bos_error + spread)
    return State(_add(after.encodings, a, encoding), after.const, eps, bos, bosr)


@dataclass(frozen=True, eq=False)
class Values:
    """What a head's keys and BOS contribute, at the residual coordinates `columns` (elsewhere all is exactly 0).

    `keys`: on each tuple of the nodes in `joint`; `bos` +- `bos_radius`; `encoding`: E'.
    `diameter`: the largest difference between any two of the keys' values and BOS's, errors included.
    """

    columns: np.ndarray
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
    require(joint.size * len(columns) <= MAX_CHUNK * 8, f"{joint.size} tuples times {len(columns)} coordinates")
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


LINE_BITS = 100


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
    """rho': share (BOS's value) + (1 - share) (any key's value) against E'[w], over possible w.

    The share lies in [1 / (1 + w e^A + (N - w) e^u), 1 / (1 + w e^a)].
    """
    require(context.theorem.codec.bos, "a width needs a BOS")
    ranges, node = context.ranges, context.program.nodes[a]
    high, low = values.keys.center.max(), values.keys.center.min()
    middle = high + low
    key = Exact(middle.data, middle.exp - 1)
    key_radius = grow((high - low).magnitude() / 2 + values.keys.radius)
    between = values.bos - key
    reach = grow(between.magnitude() + values.bos_radius + key_radius)
    error = np.zeros(len(values.columns))
    for v in np.flatnonzero(ranges.some(a)):
        w = node.values[v]
        assert isinstance(w, int)
        if w > longest or (w > 0 and scores.selected_low is None):
            continue  # cannot occur
        least, most = share_bounds(scores.selected_low, scores.selected_high, scores.other_high, int(w), longest)
        share = Fraction(round((least + most) / 2 * 2**80), 2**80)
        slack = above(max(most - share, share - least, Fraction(0)))
        miss = (key + between.scaled(share) - values.encoding[v]).magnitude()
        error = np.maximum(error, grow(miss + slack * reach + np.maximum(values.bos_radius, key_radius)))
    return error


# --- rule mlp --------------------------------------------------------------------------------------------------


def _check_mlp(context: Context, state: State, layer: int, step: Json) -> State:
    """Each group computes E'[y] from the nodes it reads, within rho; neurons in no group are error."""
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
    free = np.ones(shape.d_mlp, dtype=np.bool_)
    encodings, eps = state.encodings, state.eps
    for number, entry in enumerate(listing(item["groups"], "groups", shape.d_mlp)):
        with within("", f"mlp group {number}"):
            group = record(entry, "a group", ("neurons", "reads", "node", "encoding"))
            ends = listing(group["neurons"], "neurons", 2, 2)
            first = integer(ends[0], "first neuron", 0, shape.d_mlp)
            neurons = slice(first, integer(ends[1], "end of neurons", first, shape.d_mlp))
            require(free[neurons].all(), "two groups share a neuron")
            free[neurons] = False
            y = integer(group["node"], "node", 0, len(context.program.nodes) - 1)
            size = len(context.program.value(y, "node").values)
            encoding = read_encoding(group["encoding"], size, model.config.d_model)
            joint = context.resolver.tuples(node_list(group["reads"], context.ranges))
            units, widest = ramps(weight_in[:, neurons], raw_bias[neurons], weight_out[neurons])
            units = units + first
            inner = {node: table[:, units] for node, table in tables.items()}
            rows = _Group(inner, constant[units], error[units], widest, out[units], weight_out[units], encoding, y)
            eps = grow(eps + _group_error(context, rows, joint))
            encodings = _add(encodings, y, encoding)
    rest = hull(tables, context.ranges, shape.d_mlp)
    eps = grow(eps + stray_error(constant + rest.center, grow(rest.radius + error), free, weight_out))
    pre = state.bos @ into + bias
    bos = state.bos + pre.relu() @ out
    bosr = grow(state.bosr + through(relu_radius(pre, through(state.bosr, weight_in)), weight_out))
    return _add_bias(State(encodings, state.const, eps, bos, bosr), from_float32(model.weights[name + "b_out"]))


def stray_error(center: Exact, radius: Radii, free: Bits, weight_out: Weights) -> Radii:
    """The most that neurons in no group can write, by coordinate, with pre-activations within `radius` of `center`."""
    post = grow(np.maximum(0, center.upper() + radius))
    return through(np.where(free, post, 0.0), weight_out)


@dataclass(frozen=True, eq=False)
class _Group:
    """The units of one group: their pre-activation by node, constant and error, the widths at which their activation
    saturates (`ramps`), their output weights, and E' of y."""

    tables: dict[int, Exact]
    constant: Exact
    error: Radii
    widest: Widths
    out: Exact
    weight_out: Weights
    encoding: Exact
    y: int


def _group_error(context: Context, group: _Group, joint: Joint) -> Radii:
    """rho_c >= |out_c - E'[y]_c| over possible tuples, with y resolved from the tuple; tuples in chunks."""
    index, mask = context.resolver.resolve(group.y, joint)
    keep = mask.any(axis=0) & (index >= 0)
    require(keep.any(), "no tuple of the values read is possible")
    joint, index = joint.kept(keep), index[keep]
    columns = np.flatnonzero((group.out.data != 0).any(axis=0) | (group.encoding.data != 0).any(axis=0))
    out, weight_out = group.out[:, columns], group.weight_out[:, columns]
    encoding = group.encoding[:, columns]
    error = np.zeros(len(columns))
    chunk = max(1, MAX_CHUNK // max(1, out.shape[0] + len(columns)))
    for first in range(0, joint.size, chunk):
        rows = slice(first, first + chunk)
        pre = image(group.tables, context.ranges, joint.kept(np.arange(joint.size)[rows]), group.constant, group.error)
        post, radius = group.widest.activation(pre.center, pre.radius)
        got = (post @ out - encoding[index[rows]]).magnitude()
        error = np.maximum(error, grow(got + through(radius, weight_out)).max(axis=0))
    full = np.zeros(context.theorem.model.config.d_model)
    full[columns] = error
    return full


# --- rule decode -----------------------------------------------------------------------------------------------


def _check_decode(context: Context, state: State, step: Json) -> None:
    """Every possible tuple of the nodes read determines the output, and every part of the body holds for it."""
    item = record(step, "decode step", ("rule", "reads"))
    theorem = context.theorem
    joint = context.resolver.tuples(node_list(item["reads"], context.ranges))
    wanted = None
    if theorem.program is not None:
        index, mask = context.resolver.resolve(context.program.output, joint)
        keep = mask.any(axis=0) & (index >= 0)
        require(keep.any(), "no tuple of the values read is possible")
        joint = joint.kept(keep)
        node = context.program.nodes[context.program.output]
        wanted = [node.values[v] for v in index[keep]]
    readout = Readout(theorem, context.ranges, state, joint, wanted)
    readout.check()
