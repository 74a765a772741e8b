"""Rule `composition`: the model implements the program node by node (section 4 of the specification).

Numbers: centers are exact (`Exact`); radii are upward-rounded float64; exponentials come from arb, rounded outward.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .attention import idle_error
from .context import Context, head_of, with_bias
from .core import read_nodes, read_program
from .exact import from_float32, grow, rounded
from .format import Json, integer, listing, record, require, within
from .head_rule import check_head
from .mlp_rule import check_mlp
from .ranges import Ranges
from .readout import Readout
from .resolving import Resolver, read_width_shares, read_width_sums
from .state import State, node_list, start
from .theorem import Theorem

BOS_BITS = 160
MAX_STEPS = 2**14


def check_composition(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts a composition proof of the theorem, or raises `Rejected` naming step and rule."""
    with within("proof", "composition"):
        item = record(proof, "proof", ("rule", "auxiliary", "width_sums", "steps"), ("program", "width_shares"))
        context = _context(theorem, item)
        steps = listing(item["steps"], "steps", MAX_STEPS, 1)
        by_layer, decode = arrange(theorem, steps)
        state = _start(context)
    for layer in range(len(theorem.model.config.layers)):
        state = _check_layer(context, state, layer, by_layer.get(layer, []))
    with within(f"steps[{len(steps) - 1}]", "decode"):
        check_decode(context, state, decode)


def _context(theorem: Theorem, item: dict[str, Json]) -> Context:
    config = theorem.model.config
    config.require_plain()
    require(len(theorem.programs) <= 1, "two parts of the body are about different programs")
    program = next(iter(theorem.programs), None)
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
    with within("width_shares", "width_share"):
        shares = read_width_shares(item["width_shares"], ranges) if "width_shares" in item else {}
    return Context(theorem, ranges, Resolver(ranges, sums, shares))


def _start(context: Context) -> State:
    codec, program = context.theorem.codec, context.program
    used = context.ranges.some(0)
    position = {item: index for index, item in enumerate(codec.vocab)}
    for v in np.flatnonzero(used):
        require(program.vocab[v] in position, f"token {program.vocab[v]!r} is not in the codec's vocab")
    rows = np.array([position.get(item, 0) for item in program.vocab], dtype=np.int64)
    return start(context.theorem.model, context.ranges, rows, len(codec.vocab) if codec.bos else None)


def arrange(theorem: Theorem, steps: list[Json]) -> tuple[dict[int, list[tuple[str, Json]]], Json]:
    """Steps by layer; heads come before the layer's mlp, each at most once, and `decode` is last."""
    layers = theorem.model.config.layers
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
                after = check_head(context, state, after, layer, number, step)
    with within(f"layer {layer}", "idle head"):
        for number in range(shape.n_heads):
            if number not in done:
                at_keys, at_bos = idle_error(head_of(context, state, layer, number), context.ranges)
                after = replace(after, eps=grow(after.eps + at_keys), bosr=grow(after.bosr + at_bos))
    if shape.n_heads:
        after = with_bias(after, from_float32(weights[f"blocks.{layer}.attn.b_O"]))
    if shape.d_mlp:
        mlps = [(name, step) for name, step in steps if step["rule"] == "mlp"]
        name, step = mlps[0] if mlps else (f"layer {layer}", {"rule": "mlp", "layer": layer, "groups": []})
        with within(name, "mlp"):
            after = check_mlp(context, after, layer, step)
    return round_bos(after)


def round_bos(state: State) -> State:
    """BOS's residual to fewer bits, with a larger radius."""
    bos, lost = rounded(state.bos, BOS_BITS)
    return replace(state, bos=bos, bosr=grow(state.bosr + lost))


# --- rule decode -----------------------------------------------------------------------------------------------


def check_decode(context: Context, state: State, step: Json) -> None:
    """Every possible tuple of the nodes read determines the output, and every part of the body holds for it."""
    item = record(step, "decode step", ("rule", "reads"))
    theorem = context.theorem
    joint = context.resolver.tuples(node_list(item["reads"], context.ranges))
    wanted = None
    if theorem.programs:
        index, mask = context.resolver.resolve(context.program.output, joint)
        keep = mask.any(axis=0) & (index >= 0)
        require(keep.any(), "no tuple of the values read is possible")
        joint = joint.kept(keep)
        node = context.program.nodes[context.program.output]
        wanted = [node.values[v] for v in index[keep]]
    readout = Readout(theorem, context.ranges, state, joint, wanted)
    readout.check()
