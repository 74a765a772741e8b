"""Running a model with edges cut: each reader sums, from what the writers before it write, the sum that it reads.

Tables over edges are matrices [reader, writer]: a reader is a node's input (of a head: its `q`, `k` or `v`), in the
order of `all_edges`, and the writers that it can read are always the first few.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..models import program as ops
from ..models.circuits import OUTPUT, Circuit, Edge, all_edges, all_nodes, head_name, mlp_name, parse_edge
from ..models.config import TransformerConfig
from ..models.execution import RULES, Run
from ..models.program import LOGITS, Operation, input_site
from ..models.transformer import Transformer, check_tokens


@dataclass(frozen=True, eq=False)
class Reader:
    """What reads the residual stream as one operation: all heads of a layer at one slot, an MLP, or the logits.

    `rows`: their rows in tables over edges; `before`: how many writers they can read; `attention`: how many layers'
    `b_O` are in the stream that they read; `norm`: the LayerNorm in between.
    """

    layer: int
    slot: str
    rows: tuple[int, ...]
    before: int
    attention: int
    norm: str | None


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the edges of a model stand in tables [reader, writer]. `readers` maps the first operation that reads."""

    config: TransformerConfig
    edges: tuple[Edge, ...]
    writers: tuple[str, ...]
    readers: dict[str, Reader]
    places: tuple[tuple[int, int], ...]

    @property
    def n_rows(self) -> int:
        return 1 + max(row for row, _ in self.places)

    def vector(self, table: Tensor) -> Tensor:
        """[reader, writer] to [edge], in the order of `all_edges`."""
        rows, columns = (torch.tensor(part) for part in zip(*self.places, strict=True))
        return table[rows, columns]

    def cut(self, edges: Iterable[str | Edge]) -> Tensor:
        """bool [reader, writer]: true at these edges."""
        index = {str(edge): place for edge, place in zip(self.edges, self.places, strict=True)}
        table = torch.zeros(self.n_rows, len(self.writers), dtype=torch.bool)
        for edge in edges:
            table[index[str(edge)]] = True
        return table

    def outside(self, circuit: Circuit) -> Tensor:
        """bool [reader, writer]: the edges that the circuit cuts; by nodes, all edges out of the nodes outside it."""
        circuit.validate(self.config)
        if circuit.granularity == "node":
            return self.cut(edge for edge in self.edges if edge.src not in circuit.nodes)
        return self.cut(edge for edge in self.edges if str(edge) not in circuit.edges)


@lru_cache(maxsize=64)
def layout_of(config: TransformerConfig) -> Layout:
    """The tables of a model."""
    edges = all_edges(config)
    writers = tuple(node for node in all_nodes(config) if node != OUTPUT)
    column = {node: place for place, node in enumerate(writers)}
    rows: dict[tuple[str, str], int] = {}
    for edge in edges:
        rows.setdefault((edge.dst, edge.slot), len(rows))
    before = {reader: sum((e.dst, e.slot) == reader for e in edges) for reader in rows}
    readers: dict[str, Reader] = {}
    normed = config.layer_norm is not None
    attention = 0
    for index, layer in enumerate(config.layers):
        block = f"blocks.{index}"
        for slot in "qkv" if layer.n_heads else "":
            names = [(head_name(index, head), slot) for head in range(layer.n_heads)]
            places = tuple(rows[name] for name in names)
            norm = f"{block}.ln1" if normed else None
            readers[f"{block}.attn.hook_{slot}"] = Reader(index, slot, places, before[names[0]], attention, norm)
        attention += bool(layer.n_heads)
        if layer.d_mlp:
            name = (mlp_name(index), "")
            norm = f"{block}.ln2" if normed else None
            readers[f"{block}.mlp.hook_pre"] = Reader(index, "", (rows[name],), before[name], attention, norm)
    last = (OUTPUT, "")
    readers[LOGITS] = Reader(
        len(config.layers), "", (rows[last],), before[last], attention, "ln_final" if normed else None
    )
    return Layout(
        config, edges, writers, readers, tuple((rows[edge.dst, edge.slot], column[edge.src]) for edge in edges)
    )


@dataclass(frozen=True, eq=False)
class GraphRun:
    """`logits` as the model gives them; `outputs` [writer, batch, pos, d_model]: what each node wrote in this run.

    `values`: what is at each site, if that was asked for.
    """

    logits: Tensor
    outputs: Tensor
    values: dict[str, Tensor]


def run_graph(
    model: Transformer,
    tokens: Tensor,
    cut: Tensor | None = None,
    source: Tensor | None = None,
    *,
    clean: GraphRun | None = None,
    keep: bool = False,
) -> GraphRun:
    """The model with the edges of `cut` (bool [reader, writer]) replaced by `source`; no gradients.

    `source` [writer, batch or 1, pos or 1, d_model] is what stands in for the writers' outputs at cut edges; nodes
    without cut edges read the residual stream itself, so that a run without cuts has the model's own bits. `clean`:
    such a run on the same tokens with `keep`, from which all up to the first cut is taken.
    """
    check_tokens(tokens, model.config)
    layout = layout_of(model.config)
    walk = _Walk(model, layout, tokens, cut, source)
    program: Sequence[Operation] = model.program
    if clean is not None:
        cuts = (place for place, operation in enumerate(program) if walk.cut_reader(operation.output))
        first = next(cuts, None)
        if first is None:
            return clean
        walk.resume(clean, program[first].output)
        program = program[first:]
    with torch.no_grad():
        for operation in program:
            walk.step(operation)
    return GraphRun(walk.run.values[LOGITS], walk.outputs, walk.run.values if keep else {})


class _Walk:
    """One run: the values so far, and what has been written."""

    def __init__(
        self, model: Transformer, layout: Layout, tokens: Tensor, cut: Tensor | None, source: Tensor | None
    ) -> None:
        self.layout, self.cut, self.source = layout, cut, source
        self.config = layout.config
        self.run = Run(tokens, model.parameter)
        shape = (len(layout.writers), *tokens.shape, self.config.d_model)
        self.outputs = next(model.parameters()).new_empty(shape)
        self.written = 0
        self.start = input_site(self.config)
        self.entry = {_entry(site, reader, self.config): reader for site, reader in layout.readers.items()}

    def cut_reader(self, site: str) -> Reader | None:
        """The reader that comes in at this site, if any of its edges are cut."""
        reader = self.entry.get(site)
        if reader is None or self.cut is None or not bool(self.cut[list(reader.rows)].any()):
            return None
        return reader

    def resume(self, clean: GraphRun, site: str) -> None:
        """Takes from a run without cuts what is before this site."""
        self.run.values = dict(clean.values)
        self.written = self.entry[site].before
        self.outputs[: self.written] = clean.outputs[: self.written]

    def step(self, operation: Operation) -> None:
        site, values = operation.output, self.run.values
        if reader := self.cut_reader(site):
            operation = self.reading(operation, reader)
        values[site] = RULES[type(operation)](operation, self.run)
        if site == self.start or site.endswith("hook_mlp_out"):
            self.write(values[site].unsqueeze(0))
        elif isinstance(operation, ops.Results):
            self.write(values.pop(site).permute(2, 0, 1, 3))

    def write(self, value: Tensor) -> None:
        self.outputs[self.written : self.written + len(value)] = value
        self.written += len(value)

    def reading(self, operation: Operation, reader: Reader) -> Operation:
        """The operation, reading its own sum, which is normalised where the heads' own inputs are."""
        if isinstance(operation, ops.HeadLinear):
            stream = self.run.values[f"blocks.{reader.layer}.hook_resid_pre"]
            total = stream.unsqueeze(2).repeat(1, 1, len(reader.rows), 1)
            assert self.cut is not None
            some = self.cut[list(reader.rows)].any(dim=1).nonzero().flatten().tolist()
            total[:, :, some] = self.mixed(reader, [reader.rows[place] for place in some])
            self.run.values["@mixed"] = total
        else:
            self.run.values["@mixed"] = self.mixed(reader, list(reader.rows))[:, :, 0]
        if isinstance(operation, ops.HeadLinear) and reader.norm is not None:
            assert self.config.layer_norm is not None
            norm = ops.Normalise("@normal", "@mixed", f"{reader.norm}.w", f"{reader.norm}.b", self.config.layer_norm)
            self.run.values["@normal"] = RULES[ops.Normalise](norm, self.run)
            return replace(operation, input="@normal")
        assert isinstance(operation, (ops.HeadLinear, ops.Linear, ops.Normalise, ops.Pool))
        return replace(operation, input="@mixed")

    def mixed(self, reader: Reader, rows: list[int]) -> Tensor:
        """[batch, pos, row, d_model]: what these rows of the reader read."""
        assert self.cut is not None and self.source is not None
        count, (_, batch, length, width) = reader.before, self.outputs.shape
        assert count <= self.written
        cut = self.cut[rows, :count].to(self.outputs)
        kept = ((1 - cut) @ self.outputs[:count].reshape(count, -1)).view(-1, batch, length, width)
        source = self.source[:count]
        taken = (cut @ source.reshape(count, -1)).view(-1, *source.shape[1:])
        total = kept + taken
        biases = [layer for layer, block in enumerate(self.config.layers) if block.n_heads][: reader.attention]
        for layer in biases:
            total = total + self.run.parameter(f"blocks.{layer}.attn.b_O")
        return total.permute(1, 2, 0, 3)


def _entry(site: str, reader: Reader, config: TransformerConfig) -> str:
    """Where a reader's own input comes in: heads' at their linear map, others' at the first operation to read."""
    if reader.slot:
        return site
    if reader.norm is not None:
        return f"{reader.norm}.hook_normalized"
    return "hook_readout" if site == LOGITS and config.readout != "each" else site


def faint_edges(edges: Iterable[str]) -> frozenset[str]:
    """Those of the edges from whose end no path of these edges leads to `logits`: cutting them changes nothing."""
    parsed = [parse_edge(edge) for edge in edges]
    reaching = {OUTPUT}
    while more := {edge.src for edge in parsed if edge.dst in reaching} - reaching:
        reaching |= more
    return frozenset(str(edge) for edge in parsed if edge.dst not in reaching)


def on_device(model: Transformer, device: str | torch.device) -> Transformer:
    """The model itself if it is there, else a copy on the device."""
    if next(model.parameters()).device == torch.device(device):
        return model
    return copy.deepcopy(model).to(device)


Progress = Callable[[int, int, str], None]
