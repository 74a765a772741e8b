"""A circuit's own model: the circuit alone, under ablation, as a plain transformer (section 11 of the specification).

Every weight of it is a copy of one of the model's, or of a stored vector's; no arithmetic is done on weights. The
coordinates of its stream are those of the model, once for each of some *lanes*. A lane is a set of writers; a reader
reads a lane or not. What each reader should read is a table, and that the lanes give it is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
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
MAX_MACHINE = 2**25
"""Transitions of a label machine that reads pairs."""
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
    require(part.delta.size * size <= MAX_MACHINE, "the label machine is too large for pairs of tokens")
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
    edges: dict[str, list[tuple[str, str]]] = {target: [] for target in stage}
    for edge in edges_of(config):
        edges[edge.target].append((edge.port, edge.source))
    biases = [(("b", str(number)), 2 * number + 1) for number, layer in enumerate(config.layers) if layer.n_heads]
    table: dict[Reader, set[Writer]] = {}
    needed = {("x", "logits")}
    for target in reversed(stage):  # all that reads a node comes after it
        for run in "xy":
            if (run, target) not in needed:
                continue
            for port, source in edges[target]:
                read = table.setdefault((run, target, port), set())
                kind = instead if run == "x" and (source, target, port) in replaced else run
                if kind:
                    read.add((kind, source))
                if kind in ("x", "y"):
                    needed.add((kind, source))
            for reader in [(run, target, port) for port in {port for port, _ in edges[target]}]:
                table[reader].update(bias for bias, written in biases if written < stage[target])
    return table


@dataclass(frozen=True)
class _Plan:
    """What every reader reads, and the lanes: each a list of writers, the earliest first."""

    table: dict[Reader, set[Writer]]
    lanes: list[list[Writer]]
    heads: list[list[tuple[str, int]]]
    mlps: list[list[str]]

    @cached_property
    def lane(self) -> dict[Writer, int]:
        return {writer: number for number, lane in enumerate(self.lanes) for writer in lane}

    def reads(self, reader: Reader) -> list[int]:
        return sorted({self.lane[writer] for writer in self.table[reader]})


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
    at = np.array([stage[reader[1]] for reader in table])
    wants = dict.fromkeys(read, 0)  # the readers of a writer (and below, of a lane), as bits of an integer
    for bit, found in enumerate(table.values()):
        for writer in found:
            wants[writer] |= 1 << bit
    read_lanes = [wants[lane[0]] for lane in lanes]
    for number in range(len(config.layers)):
        attention: list[Writer] = [(run, f"a{number}.h{head}") for run, head in heads[number]]
        attention += [("b", str(number))] if heads[number] else []
        for writer in [*attention, *((run, f"m{number}") for run in mlps[number])]:
            after = 2 * number + (2 if writer[1][0] == "m" else 1)
            later = int.from_bytes(np.packbits(at > after, bitorder="little").tobytes(), "little")
            wanted = wants.get(writer, 0)
            place = next((place for place, reads in enumerate(read_lanes) if not (reads ^ wanted) & later), None)
            if place is None:
                lanes.append([writer])
                read_lanes.append(wanted)
            else:
                lanes[place].append(writer)
                read_lanes[place] |= wanted
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
    at = np.array([stage[reader[1]] for reader in plan.table])
    for lane in filter(None, plan.lanes):
        wanted = np.array([[writer in read for writer in lane] for read in plan.table.values()])
        there = np.array([written(writer) for writer in lane]) < at[:, None]
        good = good and not ((wanted & there).any(axis=1) & (~wanted & there).any(axis=1)).any()
        good = good and not (wanted & ~there).any()
        # no two of these meet in one array of weights
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
        lane = plan.lane.get(writer)
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
    for name in ("unembed.W_U", "unembed.b_U", *(("readout.b_in",) if config.d_readout else ())):
        if name != config.reader:
            new[name][:] = old[name]
    read(new[config.reader], ("x", "logits", ""), old[config.reader])
    return Model(shape, new, weights_sha256(new))
