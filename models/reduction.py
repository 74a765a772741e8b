"""A circuit under ablation is an ordinary transformer: this builds it, out of copies of the model's weights.

The residual stream is made wider: it has *slots* of d_model coordinates each. What a writer (the input, a head, an
MLP) adds goes to its slot, and a reader's matrix is the model's own on the slots that it reads, zero elsewhere. Writers
share a slot where every later reader that counts reads both or neither. What stands in for an ablated writer has a slot
too: its mean, a constant that the embedding puts there; or (resample) what it writes in a second run, on a second
input, that the same model does beside the first: it reads pairs of tokens. The biases b_O belong to no edge and are
read by all. Heads, MLPs and layers whose output reaches nothing are left out. Over the reals the result computes
exactly what the model with the edits does. (Not with LayerNorm, which normalises what each reader reads by itself.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .circuits import INPUT, OUTPUT, Circuit, Edge, all_edges, all_nodes, head_name, mlp_name, parse_head, parse_mlp
from .config import LayerConfig, TransformerConfig, parameter_shapes
from .errors import InputError
from .transformer import Transformer

FIRST, SECOND = "first", "second"
MAX_WEIGHTS = 2**28
"""Of a reduced model: one of a gigabyte is not meant."""


@dataclass(frozen=True)
class Writer:
    """What adds to the stream: a node in a run (`first`, `second`), a `constant` for a node, the `bias` of a layer."""

    kind: str
    node: str


@dataclass(frozen=True)
class Port:
    """What reads the stream: the read-out, an MLP, or one of a head's three inputs, in one of the runs."""

    run: str
    node: str
    slot: str = ""


def outside_edges(circuit: Circuit, config: TransformerConfig) -> tuple[Edge, ...]:
    """The edges whose contribution is replaced; by nodes: those from a node outside to one inside (or `logits`).

    Raises `InputError` for a circuit of another model.
    """
    circuit.validate(config)
    if circuit.granularity == "edge":
        return tuple(edge for edge in all_edges(config) if str(edge) not in circuit.edges)
    inside = circuit.nodes | {OUTPUT}
    return tuple(edge for edge in all_edges(config) if edge.src not in inside and edge.dst in inside)


def sources(circuit: Circuit, config: TransformerConfig) -> tuple[str, ...]:
    """The nodes for which something else is put somewhere, in the order of computation."""
    found = {edge.src for edge in outside_edges(circuit, config)}
    return tuple(node for node in all_nodes(config) if node in found)


def circuit_model(model: Transformer, circuit: Circuit, means: Mapping[str, Tensor] | None = None) -> Transformer:
    """The circuit alone, with zero in place of everything else; with `means`, these vectors.

    `means`: float32 [d_model] for each of `sources(circuit, config)`, the same at all positions. The circuit's own
    `ablation` has no say. Raises `InputError` for LayerNorm, a circuit of another model, and means that do not fit.
    """
    _check(model.config)
    edges = set(outside_edges(circuit, model.config))
    if means is None:
        return _Building(model, edges, None).model()
    wanted = sources(circuit, model.config)
    lacking = [node for node in wanted if node not in means]
    if lacking:
        raise InputError(f"a mean is needed for every node that is ablated somewhere; missing: {', '.join(lacking)}")
    return _Building(
        model, edges, "constant", {node: mean_vector(means[node], node, model.config) for node in wanted}
    ).model()


def paired_model(model: Transformer, circuit: Circuit, vocab: int, bos: bool) -> Transformer:
    """The circuit alone, with what the other edges carry on a second input in place of what they carry.

    Its token x * vocab + y is token x of the first input over token y of the second, x and y below `vocab`; with
    `bos`, its last token is the model's token `vocab` in both. Raises `InputError`.
    """
    _check(model.config)
    edges = set(outside_edges(circuit, model.config))
    ids = torch.arange(vocab)
    pairs = torch.stack([ids.repeat_interleave(vocab), ids.repeat(vocab)])
    if bos:
        pairs = torch.cat([pairs, torch.full((2, 1), vocab)], dim=1)
    return _Building(model, edges, SECOND, {}, pairs).model()


def _check(config: TransformerConfig) -> None:
    if config.layer_norm is not None:
        raise InputError("a circuit of a model with LayerNorm is no transformer: each reader normalises by itself")


def mean_vector(value: Tensor, node: str, config: TransformerConfig) -> Tensor:
    """The vector that stands for a node. Raises `InputError` unless it is finite, float32 and [d_model]."""
    shape = (config.d_model,)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != torch.float32:
        got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise InputError(f"the mean of {node} must be a float32 tensor of shape {shape}, got {got}")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"the mean of {node} contains NaN or infinite values")
    return value.detach()


def _stage(node: str) -> int:
    """When a node writes: the input at 0, heads of layer l at 2 l + 1, its MLP at 2 l + 2; when it reads: before."""
    if head := parse_head(node):
        return 2 * head[0] + 1
    layer = parse_mlp(node)
    return 2**62 if node == OUTPUT else 0 if layer is None else 2 * layer + 2


class _Building:
    """The work of one reduction: what reads what, the slots, the weights."""

    def __init__(
        self,
        base: Transformer,
        edges: set[Edge],
        by: str | None,
        constants: Mapping[str, Tensor] | None = None,
        pairs: Tensor | None = None,
    ) -> None:
        self.base, self.constants, self.pairs = base, dict(constants or {}), pairs
        self.runs = (FIRST, SECOND) if by == SECOND else (FIRST,)
        self.reads = _live(_reads(base.config, edges, by, self.runs))
        self.slots: list[list[Writer]] = []
        self._assign()

    def _alive(self, run: str, node: str) -> bool:
        return any(port.run == run and port.node == node for port in self.reads)

    def _heads(self, layer: int) -> list[tuple[str, int]]:
        """The runs' heads of a layer that are kept."""
        every = [(run, head) for run in self.runs for head in range(self.base.config.layers[layer].n_heads)]
        return [(run, head) for run, head in every if self._alive(run, head_name(layer, head))]

    def _assign(self) -> None:
        """A slot for each writer. What the embedding puts there has a slot to itself, to begin with."""
        read = {writer for writers in self.reads.values() for writer in writers}
        config = self.base.config
        self.slots.append([Writer(FIRST, INPUT)])
        embedded = [Writer(SECOND, INPUT), *(Writer("constant", node) for node in all_nodes(config))]
        idle = [layer for layer in range(config.n_layers) if not self._heads(layer)]
        embedded += [Writer("bias", str(layer)) for layer in idle]
        self.slots += [[writer] for writer in embedded if writer in read]
        for layer in range(config.n_layers):
            heads = self._heads(layer)
            for run, head in heads:
                self._join(Writer(run, head_name(layer, head)), 2 * layer + 1)
            if heads:
                self._join(Writer("bias", str(layer)), 2 * layer + 1)
            for run in self.runs:
                if self._alive(run, mlp_name(layer)):
                    self._join(Writer(run, mlp_name(layer)), 2 * layer + 2)

    def _join(self, writer: Writer, stage: int) -> None:
        """Into the first slot that the readers after this stage read where they read the writer, and only there."""
        later = [writers for port, writers in self.reads.items() if _stage(port.node) > stage]
        for members in self.slots:
            if all((writer in writers) == any(member in writers for member in members) for writers in later):
                members.append(writer)
                return
        self.slots.append([writer])

    def _into(self, value: Tensor, writer: Writer) -> Tensor:
        """[..., d_model] of the model as [..., width]: in the writer's slot."""
        d = self.base.config.d_model
        at = next(i for i, members in enumerate(self.slots) if writer in members)
        wide = torch.zeros(*value.shape[:-1], d * len(self.slots))
        wide[..., d * at : d * (at + 1)] = value
        return wide

    def _from(self, weight: Tensor, port: Port) -> Tensor:
        """[d_model, ...] of the model as [width, ...]: on the slots that the port reads."""
        zero = torch.zeros_like(weight)
        read = self.reads[port]
        return torch.cat([weight if any(member in read for member in members) else zero for members in self.slots])

    def model(self) -> Transformer:
        config = self.base.config
        weights: dict[str, Tensor] = {}
        self._embedding(weights)
        layers: list[LayerConfig] = []
        for layer, shape in enumerate(config.layers):
            name, here = f"blocks.{layer}.", f"blocks.{len(layers)}."
            heads = self._heads(layer)
            runs = [run for run in self.runs if self._alive(run, mlp_name(layer))]
            if heads:
                self._attention(weights, layer, heads, f"{name}attn.", f"{here}attn.")
            if runs:
                self._mlp(weights, layer, runs, f"{name}mlp.", f"{here}mlp.")
            if heads or runs:
                layers.append(LayerConfig(len(heads), shape.d_head if heads else 0, shape.d_mlp * len(runs)))
        weights.update({name: self._weight(name) for name in config.readout_names()})
        weights[config.reader] = self._from(self._weight(config.reader), Port(FIRST, OUTPUT))
        width = config.d_model * len(self.slots)
        tokens = config.d_vocab if self.pairs is None else self.pairs.shape[1]
        made = replace(config, d_model=width, d_vocab=tokens, layers=tuple(layers))
        size = sum(shape.numel() for shape in map(torch.Size, parameter_shapes(made).values()))
        if size > MAX_WEIGHTS:
            raise InputError(f"the circuit's model would have {size} weights; take a smaller model or ablation 'zero'")
        return Transformer.from_parameters(made, weights)

    def _weight(self, name: str) -> Tensor:
        return self.base.parameter(name).detach()

    def _embedding(self, weights: dict[str, Tensor]) -> None:
        embed = self._weight("embed.W_E")
        first, second = (embed, embed) if self.pairs is None else (embed[row] for row in self.pairs)
        begun = {members[0] for members in self.slots}
        rows = self._into(first, Writer(FIRST, INPUT))
        place = self._weight("pos_embed.W_pos") if self.base.config.positional == "learned" else None
        placed = [] if place is None else [self._into(place, Writer(FIRST, INPUT))]
        if Writer(SECOND, INPUT) in begun:
            rows += self._into(second, Writer(SECOND, INPUT))
            placed += [] if place is None else [self._into(place, Writer(SECOND, INPUT))]
        for writer in begun:
            if writer.kind == "constant":
                rows += self._into(self.constants[writer.node], writer)
            elif writer.kind == "bias" and not self._heads(int(writer.node)):
                rows += self._into(self._weight(f"blocks.{writer.node}.attn.b_O"), writer)
        weights["embed.W_E"] = rows
        if placed:
            weights["pos_embed.W_pos"] = torch.stack(placed).sum(0)

    def _attention(
        self, weights: dict[str, Tensor], layer: int, heads: list[tuple[str, int]], name: str, here: str
    ) -> None:
        for letter in "QKV":
            weight, bias = self._weight(f"{name}W_{letter}"), self._weight(f"{name}b_{letter}")
            read = [self._from(weight[h], Port(run, head_name(layer, h), letter.lower())) for run, h in heads]
            weights[f"{here}W_{letter}"] = torch.stack(read)
            weights[f"{here}b_{letter}"] = torch.stack([bias[h] for _, h in heads])
        out = self._weight(f"{name}W_O")
        written = [self._into(out[h], Writer(run, head_name(layer, h))) for run, h in heads]
        weights[f"{here}W_O"] = torch.stack(written)
        weights[f"{here}b_O"] = self._into(self._weight(f"{name}b_O"), Writer("bias", str(layer)))

    def _mlp(self, weights: dict[str, Tensor], layer: int, runs: list[str], name: str, here: str) -> None:
        node, w_in, b_in = mlp_name(layer), self._weight(f"{name}W_in"), self._weight(f"{name}b_in")
        w_out, b_out = self._weight(f"{name}W_out"), self._weight(f"{name}b_out")
        weights[f"{here}W_in"] = torch.cat([self._from(w_in, Port(run, node)) for run in runs], dim=1)
        weights[f"{here}b_in"] = torch.cat([b_in for _ in runs])
        weights[f"{here}W_out"] = torch.cat([self._into(w_out, Writer(run, node)) for run in runs])
        weights[f"{here}b_out"] = torch.stack([self._into(b_out, Writer(run, node)) for run in runs]).sum(0)


def _reads(
    config: TransformerConfig, edges: set[Edge], by: str | None, runs: tuple[str, ...]
) -> dict[Port, set[Writer]]:
    """What every port of the model with the edits reads; `by`: what stands in for the sources of `edges`, if any."""
    reads: dict[Port, set[Writer]] = {}
    for edge in all_edges(config):
        read = reads.setdefault(Port(FIRST, edge.dst, edge.slot), set())
        if edge not in edges:
            read.add(Writer(FIRST, edge.src))
        elif by is not None:
            read.add(Writer(by, edge.src))
        if SECOND in runs and edge.dst != OUTPUT:
            reads.setdefault(Port(SECOND, edge.dst, edge.slot), set()).add(Writer(SECOND, edge.src))
    biases = [(Writer("bias", str(layer)), 2 * layer + 1) for layer, shape in enumerate(config.layers) if shape.n_heads]
    for port, read in reads.items():
        read.update(writer for writer, stage in biases if stage < _stage(port.node))
    return reads


def _live(reads: dict[Port, set[Writer]]) -> dict[Port, set[Writer]]:
    """The ports of the nodes that something reaches the read-out from."""
    live, waiting = {(FIRST, OUTPUT)}, [(FIRST, OUTPUT)]
    while waiting:
        run, node = waiting.pop()
        for port, read in reads.items():
            if (port.run, port.node) == (run, node):
                found = {(w.kind, w.node) for w in read if w.kind in (FIRST, SECOND) and w.node != INPUT} - live
                live |= found
                waiting += found
    return {port: read for port, read in reads.items() if (port.run, port.node) in live}
