"""A circuit's own model: the circuit alone, under ablation, as a plain transformer (section 11 of the specification).

Every weight of it is a copy of one of the model's, or of a stored vector's; no arithmetic is done on weights. The
coordinates of its stream are those of the model, once for each of some *lanes*. A lane is a set of writers; a reader
reads a lane or not. What each reader should read is a table, and that the lanes give it is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from .automaton import MAX_CELLS, MAX_TOKENS, MAX_WORK, Domain
from .bodies import Alone, LabelMargin, Labels
from .circuit import edges_of, nodes_of, outside
from .codec import Codec
from .core import Ints
from .format import require
from .model import Config, Layer, Model, Weights, weights_sha256
from .theorem import Theorem

MAX_NUMBERS = 2**28
END = 2**40
Writer: TypeAlias = tuple[str, str]
"""("x", node): what the node writes; ("y", node): what it writes in the run on the second input; ("c", node): the
stored vector of the node; ("b", layer): the layer's b_O."""
Reader: TypeAlias = tuple[str, str, str]
"""The run, x or y; the target; its port."""


def own_model(theorem: Theorem) -> Theorem:
    """The theorem about a circuit alone as one about a model (if it is one: else as it is), with as many witnesses."""
    part = theorem.parts[0]
    if len(theorem.parts) != 1 or not isinstance(part, Labels | LabelMargin) or part.alone is None:
        return theorem
    require(not theorem.model.config.layer_norm, "a circuit of a model with LayerNorm is no model of its own")
    alone, codec = part.alone, theorem.codec
    require(alone.reference is None, "a mean over reference inputs is no stored vector; state it as `means`")
    if alone.ablation != "resample":
        model = _build(theorem.model, alone, None)
        return replace(theorem, parts=(replace(part, alone=None),), model=model)
    size = len(codec.vocab)
    require(size * size <= MAX_TOKENS, f"{size} tokens make more than {MAX_TOKENS} pairs")
    first, second = np.divmod(np.arange(size * size), size)
    if codec.bos:
        first, second = np.append(first, size), np.append(second, size)
    model = _build(theorem.model, alone, np.stack([first, second]))
    paired = replace(part, delta=np.repeat(part.delta, size, axis=1), alone=None)
    numbers = replace(codec, vocab=tuple(range(size * size)))
    return replace(theorem, parts=(paired,), model=model, codec=numbers, domain=_pairs(theorem.domain, codec))


def _pairs(domain: Domain, codec: Codec) -> Domain:
    """Pairs of words of equal length as words of pairs of tokens: x, then y; the second runs fastest."""
    require(not domain.distinct, "pairs of words without repetition are not covered")
    states, tokens = domain.delta.shape
    cells = (states * tokens) ** 2
    require(cells <= MAX_CELLS and domain.hi**2 * cells <= MAX_WORK, "the domain is too large for pairs of words")
    size = len(codec.vocab)
    ids = [codec.token(token) for token in domain.vocab]
    step = domain.delta[:, None, :, None] * states + domain.delta[None, :, None, :]
    accept = domain.accept[:, None] & domain.accept[None, :]
    return Domain(
        tuple(x * size + y for x in ids for y in ids),
        domain.lo,
        domain.hi,
        domain.start * states + domain.start,
        np.asarray(accept.reshape(-1)),
        np.asarray(step.reshape(states * states, tokens * tokens)),
    )


def _stage(config: Config) -> dict[str, int]:
    """When a node writes, and before which it reads."""
    return {**dict(nodes_of(config)), "logits": END}


def _table(config: Config, alone: Alone) -> dict[Reader, set[Writer]]:
    """What every reader reads that the read-out depends on, over the reals (section 3)."""
    stage = _stage(config)
    replaced = {(edge.source, edge.target, edge.port) for edge in outside(alone.circuit, config)}
    instead = {"zero": "", "mean": "c", "resample": "y"}[alone.ablation]
    table: dict[Reader, set[Writer]] = {}
    for edge in edges_of(config):
        here = table.setdefault(("x", edge.target, edge.port), set())
        kind = instead if (edge.source, edge.target, edge.port) in replaced else "x"
        if kind:
            here.add((kind, edge.source))
        table.setdefault(("y", edge.target, edge.port), set()).add(("y", edge.source))
    for (_, target, _), read in table.items():
        for number, layer in enumerate(config.layers):
            if layer.n_heads and 2 * number + 1 < stage[target]:
                read.add(("b", str(number)))
    needed, grown = {("x", "logits")}, True
    while grown:
        writers = {writer for (run, target, _), read in table.items() if (run, target) in needed for writer in read}
        wider = needed | {(run, node) for run, node in writers if run in "xy" and node != "input"}
        needed, grown = wider, wider != needed
    return {reader: read for reader, read in table.items() if reader[:2] in needed}


@dataclass(frozen=True)
class _Plan:
    """What every reader reads, and the lanes: each a list of writers, the earliest first."""

    table: dict[Reader, set[Writer]]
    lanes: list[list[Writer]]
    heads: list[list[tuple[str, int]]]
    mlps: list[list[str]]

    def lane(self, writer: Writer) -> int | None:
        return next((number for number, lane in enumerate(self.lanes) if writer in lane), None)

    def reads(self, reader: Reader) -> list[int]:
        return [number for number, lane in enumerate(self.lanes) if self.table[reader] & set(lane)]


def _plan(config: Config, table: dict[Reader, set[Writer]]) -> _Plan:
    """Lanes: whatever the embedding holds has its own; others join the first that serves, or begin one."""
    stage = _stage(config)
    made = {reader[:2] for reader in table}
    heads = [
        [(run, head) for run in "xy" for head in range(layer.n_heads) if (run, f"a{number}.h{head}") in made]
        for number, layer in enumerate(config.layers)
    ]
    mlps = [[run for run in "xy" if (run, f"m{number}") in made] for number in range(len(config.layers))]
    read = set().union(*table.values())
    lanes: list[list[Writer]] = [[writer] for writer in sorted(read) if writer[1] == "input" or writer[0] == "c"]
    lanes += [[("b", str(number))] for number, kept in enumerate(heads) if not kept and ("b", str(number)) in read]
    for number in range(len(config.layers)):
        attention: list[Writer] = [(run, f"a{number}.h{head}") for run, head in heads[number]]
        attention += [("b", str(number))] if heads[number] else []
        for writer in [*attention, *((run, f"m{number}") for run in mlps[number])]:
            after = 2 * number + (2 if writer[1][0] == "m" else 1)
            later = [found for reader, found in table.items() if stage[reader[1]] > after]
            fitting = (lane for lane in lanes if all((writer in found) == bool(found & set(lane)) for found in later))
            lane = next(fitting, None)
            if lane is None:
                lanes.append([writer])
            else:
                lane.append(writer)
    plan = _Plan(table, lanes or [[]], heads, mlps)
    _check_plan(config, plan)
    return plan


def _check_plan(config: Config, plan: _Plan) -> None:
    """Of what is in a lane when a reader reads it, it should read all or nothing; and every writer has a lane."""
    stage = _stage(config)

    def written(writer: Writer) -> int:
        kind, name = writer
        if kind == "c" or (kind == "b" and not plan.heads[int(name)]):
            return 0
        return 2 * int(name) + 1 if kind == "b" else stage[name]

    every = [writer for lane in plan.lanes for writer in lane]
    good = len(set(every)) == len(every) and set().union(*plan.table.values()) <= set(every)
    for reader, read in plan.table.items():
        for lane in plan.lanes:
            there = [writer for writer in lane if written(writer) < stage[reader[1]]]
            good = good and len({writer in read for writer in there}) <= 1
            good = good and all(written(writer) < stage[reader[1]] for writer in lane if writer in read)
    for lane in plan.lanes:  # no two of these meet in one array of weights
        good = good and sum(written(writer) == 0 for writer in lane) <= 1
        layers = [node for _, node in lane if node[:1] == "m"]
        good = good and len(set(layers)) == len(layers)
    require(good, "internal error: the circuit's own model is not laid out well")


def _build(model: Model, alone: Alone, pairs: Ints | None) -> Model:
    """`pairs` [2, token]: of a model on pairs, the model's own tokens."""
    config, old = model.config, model.weights
    plan = _plan(config, _table(config, alone))
    d, width = config.d_model, config.d_model * len(plan.lanes)
    tokens = config.d_vocab if pairs is None else pairs.shape[1]
    layers = [
        Layer(len(heads), layer.d_head if heads else 0, layer.d_mlp * len(runs))
        for heads, runs, layer in zip(plan.heads, plan.mlps, config.layers, strict=True)
    ]
    kept = [number for number, layer in enumerate(layers) if layer.n_heads or layer.d_mlp]
    shape = replace(config, d_model=width, d_vocab=tokens, layers=tuple(layers[number] for number in kept))
    shapes = shape.shapes()
    require(sum(int(np.prod(s)) for s in shapes.values()) <= MAX_NUMBERS, "the circuit's own model is too large")
    new: dict[str, Weights] = {name: np.zeros(s, dtype=np.float32) for name, s in shapes.items()}

    def write(array: Weights, writer: Writer, rows: Weights) -> None:
        """Rows [.., d_model] into the writer's lane (nowhere, if nothing reads it)."""
        lane = plan.lane(writer)
        if lane is not None:
            array[..., d * lane : d * (lane + 1)] = rows

    def read(array: Weights, reader: Reader, columns: Weights) -> None:
        """Columns [d_model, ..] on the lanes that the reader reads."""
        for lane in plan.reads(reader):
            array[d * lane : d * (lane + 1)] = columns

    for run, ids in (("x", None), ("y", None)) if pairs is None else (("x", pairs[0]), ("y", pairs[1])):
        write(new["embed.W_E"], (run, "input"), old["embed.W_E"] if ids is None else old["embed.W_E"][ids])
        if config.positional:
            write(new["pos_embed.W_pos"], (run, "input"), old["pos_embed.W_pos"])
    for node, vector in (alone.means or {}).items():
        write(new["embed.W_E"], ("c", node), vector)
    for number, layer in enumerate(config.layers):
        if layer.n_heads and not plan.heads[number]:
            write(new["embed.W_E"], ("b", str(number)), old[f"blocks.{number}.attn.b_O"])
    for place, number in enumerate(kept):
        was, now = f"blocks.{number}.attn.", f"blocks.{place}.attn."
        for slot, (run, head) in enumerate(plan.heads[number]):
            node = f"a{number}.h{head}"
            for letter in "QKV":
                read(new[f"{now}W_{letter}"][slot], (run, node, letter.lower()), old[f"{was}W_{letter}"][head])
                new[f"{now}b_{letter}"][slot] = old[f"{was}b_{letter}"][head]
            write(new[f"{now}W_O"][slot], (run, node), old[f"{was}W_O"][head])
        if plan.heads[number]:
            write(new[f"{now}b_O"], ("b", str(number)), old[f"{was}b_O"])
        was, now, m = f"blocks.{number}.mlp.", f"blocks.{place}.mlp.", config.layers[number].d_mlp
        for slot, run in enumerate(plan.mlps[number]):
            neurons = slice(m * slot, m * (slot + 1))
            read(new[f"{now}W_in"][:, neurons], (run, f"m{number}", ""), old[f"{was}W_in"])
            new[f"{now}b_in"][neurons] = old[f"{was}b_in"]
            write(new[f"{now}W_out"][neurons], (run, f"m{number}"), old[f"{was}W_out"])
            write(new[f"{now}b_out"], (run, f"m{number}"), old[f"{was}b_out"])
    read(new["unembed.W_U"], ("x", "logits", ""), old["unembed.W_U"])
    new["unembed.b_U"][:] = old["unembed.b_U"]
    return Model(shape, new, weights_sha256(new))
