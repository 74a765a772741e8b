"""Circuits: subgraphs of a model's computational graph, with the names of EAP-IG.

Nodes: `input` (embedding and position), `a{layer}.h{head}`, `m{layer}`, `logits`. An edge `src->dst` is the
contribution of what `src` writes to what `dst` reads from the residual stream; into a head there are three,
`src->a1.h0<q>`, `<k>` and `<v>`. Biases (`b_O` among them) belong to no edge and always flow.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from .config import TransformerConfig
from .errors import InputError
from .sites import unknown

if TYPE_CHECKING:
    import networkx

Ablation: TypeAlias = Literal["zero", "mean", "resample", "any"]
Granularity: TypeAlias = Literal["edge", "node"]
INPUT, OUTPUT = "input", "logits"
_EDGE = re.compile(r"(?P<src>[^<>]+)->(?P<dst>[^<>]+?)(?:<(?P<slot>[qkv])>)?")
_HEAD = re.compile(r"a(\d+)\.h(\d+)")
_MLP = re.compile(r"m(\d+)")


@dataclass(frozen=True, order=True)
class Edge:
    """`src->dst`, and for a head the input it arrives at: `q`, `k` or `v`."""

    src: str
    dst: str
    slot: str = ""

    def __str__(self) -> str:
        return f"{self.src}->{self.dst}" + (f"<{self.slot}>" if self.slot else "")


def head_name(layer: int, head: int) -> str:
    return f"a{layer}.h{head}"


def mlp_name(layer: int) -> str:
    return f"m{layer}"


def parse_head(node: str) -> tuple[int, int] | None:
    """(layer, head) of a head's name; None for other nodes."""
    match = _HEAD.fullmatch(node)
    return (int(match[1]), int(match[2])) if match else None


def parse_mlp(node: str) -> int | None:
    """The layer of an MLP's name; None for other nodes."""
    match = _MLP.fullmatch(node)
    return int(match[1]) if match else None


def parse_edge(name: str) -> Edge:
    """Raises `InputError` for what is not written as an edge."""
    match = _EDGE.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise InputError(f"an edge is written like 'a0.h1->m2' or 'input->a0.h0<q>', got {name!r}")
    edge = Edge(match["src"], match["dst"], match["slot"] or "")
    if (parse_head(edge.dst) is not None) != bool(edge.slot):
        remedy = "an edge into a head ends in <q>, <k> or <v>; no other does"
        raise InputError(f"{remedy}; got {name!r}")
    return edge


def _rank(node: str) -> tuple[int, int, int]:
    """The order of computation: input, then per layer heads and MLP, then logits."""
    if head := parse_head(node):
        return (head[0], 0, head[1])
    layer = parse_mlp(node)
    if layer is not None:
        return (layer, 1, 0)
    return (-1, 0, 0) if node == INPUT else (2**60, 0, 0)


def all_nodes(config: TransformerConfig) -> tuple[str, ...]:
    """The nodes of a model, in the order of computation."""
    nodes = [INPUT]
    for index, layer in enumerate(config.layers):
        nodes += [head_name(index, head) for head in range(layer.n_heads)]
        nodes += [mlp_name(index)] if layer.d_mlp else []
    return (*nodes, OUTPUT)


def all_edges(config: TransformerConfig) -> tuple[Edge, ...]:
    """The edges of a model: from every writer to every later reader, in the order of computation."""
    writers: list[str] = [INPUT]
    edges: list[Edge] = []
    for index, layer in enumerate(config.layers):
        heads = [head_name(index, head) for head in range(layer.n_heads)]
        edges += [Edge(src, head, slot) for head in heads for slot in "qkv" for src in writers]
        writers += heads
        if layer.d_mlp:
            edges += [Edge(src, mlp_name(index)) for src in writers]
            writers.append(mlp_name(index))
    return (*edges, *(Edge(src, OUTPUT) for src in writers))


@dataclass(frozen=True)
class Circuit:
    """A subgraph that is said to do the work, and under which ablation of everything else.

    `ablation`: what stands in for the contributions of the edges outside (granularity `edge`), or for the outputs of
    the nodes outside (`node`): zero, their mean, another input's (resample), or any value at all.
    Raises `InputError` for names that are no node or edge, and for edges whose ends are not among the nodes.
    """

    nodes: frozenset[str]
    edges: frozenset[str]
    ablation: Ablation = "any"
    granularity: Granularity = "edge"

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", frozenset(self.nodes))
        object.__setattr__(self, "edges", frozenset(str(edge) for edge in self.edges))
        if self.ablation not in get_args(Ablation):
            raise InputError(f"ablation must be one of {', '.join(get_args(Ablation))}, got {self.ablation!r}")
        if self.granularity not in get_args(Granularity):
            raise InputError(f"granularity must be 'edge' or 'node', got {self.granularity!r}")
        for node in self.nodes:
            if not isinstance(node, str) or not (
                node in (INPUT, OUTPUT) or _HEAD.fullmatch(node) or _MLP.fullmatch(node)
            ):
                raise InputError(f"a node is written input, a0.h1, m2 or logits, got {node!r}")
        loose = sorted(str(edge) for edge in map(parse_edge, self.edges) if not {edge.src, edge.dst} <= self.nodes)
        if loose:
            raise InputError(f"the ends of these edges are not among the nodes; add them: {_some(loose)}")

    @staticmethod
    def from_edges(edges: Iterable[str | Edge], ablation: Ablation = "any") -> Circuit:
        """The circuit with these edges, their ends, `input` and `logits`."""
        parsed = [parse_edge(str(edge)) for edge in edges]
        nodes = {INPUT, OUTPUT, *(e.src for e in parsed), *(e.dst for e in parsed)}
        return Circuit(frozenset(nodes), frozenset(map(str, parsed)), ablation)

    @staticmethod
    def from_nodes(config: TransformerConfig, nodes: Iterable[str], ablation: Ablation = "any") -> Circuit:
        """The circuit of these nodes, `input` and `logits`, with every edge between them."""
        kept = {INPUT, OUTPUT, *nodes}
        edges = frozenset(str(edge) for edge in all_edges(config) if {edge.src, edge.dst} <= kept)
        circuit = Circuit(frozenset(kept), edges, ablation, "node")
        circuit.validate(config)
        return circuit

    def ordered_nodes(self) -> tuple[str, ...]:
        return tuple(sorted(self.nodes, key=_rank))

    def ordered_edges(self) -> tuple[Edge, ...]:
        parsed = [parse_edge(edge) for edge in self.edges]
        return tuple(sorted(parsed, key=lambda e: (_rank(e.dst), "qkv".find(e.slot), _rank(e.src))))

    def validate(self, config: TransformerConfig) -> None:
        """Raises `InputError` listing the nodes and edges that the model does not have."""
        nodes, edges = all_nodes(config), tuple(map(str, all_edges(config)))
        known_nodes, known_edges = set(nodes), set(edges)
        strange = [node for node in self.ordered_nodes() if node not in known_nodes]
        strange += [str(edge) for edge in self.ordered_edges() if str(edge) not in known_edges]
        if len(strange) == 1:
            raise unknown("node or edge", strange[0], (*nodes, *edges))
        if strange:
            raise InputError(f"the model has no such nodes or edges: {_some(strange)}; its nodes are {_some(nodes)}")

    def complement(self, config: TransformerConfig) -> Circuit:
        """What is outside the circuit: its edges and their ends, or its nodes with every edge between them."""
        self.validate(config)
        if self.granularity == "node":
            return Circuit.from_nodes(config, set(all_nodes(config)) - self.nodes, self.ablation)
        return Circuit.from_edges((e for e in all_edges(config) if str(e) not in self.edges), self.ablation)

    def without(self, edges: Collection[str | Edge]) -> Circuit:
        """The circuit less some edges; the nodes stay. Raises `InputError` for edges it does not have."""
        names = {str(edge) for edge in edges}
        if absent := sorted(names - self.edges):
            raise InputError(f"the circuit has no edges {_some(absent)}")
        return replace(self, edges=self.edges - names)

    def pruned(self) -> Circuit:
        """The circuit less what is on no path from `input` to `logits`."""
        edges = self.ordered_edges()
        reached, reaching = {INPUT}, {OUTPUT}
        for edge in edges:
            if edge.src in reached:
                reached.add(edge.dst)
        for edge in sorted(edges, key=lambda e: _rank(e.dst), reverse=True):
            if edge.dst in reaching:
                reaching.add(edge.src)
        kept = (reached & reaching) | {INPUT, OUTPUT}
        return replace(
            self,
            nodes=frozenset(kept),
            edges=frozenset(str(edge) for edge in edges if {edge.src, edge.dst} <= kept),
        )

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`; `Circuit.from_json(c.to_json()) == c`."""
        return {
            "nodes": list(self.ordered_nodes()),
            "edges": [str(edge) for edge in self.ordered_edges()],
            "ablation": self.ablation,
            "granularity": self.granularity,
        }

    @staticmethod
    def from_json(data: object) -> Circuit:
        """Raises `InputError`."""
        keys = {"nodes", "edges", "ablation", "granularity"}
        if not isinstance(data, dict) or set(data) != keys:
            raise InputError(f"a circuit is a JSON object with the keys {sorted(keys)}, got {str(data)[:200]}")
        for key in ("nodes", "edges"):
            if not isinstance(data[key], list) or not all(isinstance(name, str) for name in data[key]):
                raise InputError(f"a circuit's {key} must be a list of names, got {str(data[key])[:200]}")
        return Circuit(frozenset(data["nodes"]), frozenset(data["edges"]), data["ablation"], data["granularity"])

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """A directed multigraph; an edge's key is its slot (`q`, `k`, `v` or empty)."""
        import networkx

        graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph(ablation=self.ablation)
        graph.add_nodes_from(self.ordered_nodes())
        for edge in self.ordered_edges():
            graph.add_edge(edge.src, edge.dst, key=edge.slot)
        return graph

    def to_text(self) -> str:
        """A table: each node, in the order of computation, and what it reads."""
        rows = [("node", "reads"), ("----", "-----")]
        for node in self.ordered_nodes():
            slots: dict[str, list[str]] = {}
            for edge in self.ordered_edges():
                if edge.dst == node:
                    slots.setdefault(edge.slot, []).append(edge.src)
            reads = "   ".join((f"{slot}: " if slot else "") + ", ".join(srcs) for slot, srcs in slots.items())
            rows.append((node, reads))
        width = max(len(node) for node, _ in rows)
        title = (
            f"circuit: {len(self.nodes)} nodes, {len(self.edges)} edges, {self.ablation} ablation by {self.granularity}"
        )
        return "\n".join([title, *(f"{node:<{width}}  {reads}".rstrip() for node, reads in rows)])

    def to_dot(self) -> str:
        """The graph in Graphviz's language."""
        lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box, fontname=Helvetica];"]
        lines += [f'  "{node}";' for node in self.ordered_nodes()]
        for edge in self.ordered_edges():
            label = f' [label="{edge.slot}"]' if edge.slot else ""
            lines.append(f'  "{edge.src}" -> "{edge.dst}"{label};')
        return "\n".join([*lines, "}"]) + "\n"

    def to_svg(self) -> str:
        """A picture without dependencies: computation goes upwards, a row for each layer's heads and MLP."""
        rows: dict[tuple[int, int], list[str]] = {}
        for node in self.ordered_nodes():
            rows.setdefault(_rank(node)[:2], []).append(node)
        columns = max(len(nodes) for nodes in rows.values())
        width, height = 100 * columns + 40, 70 * len(rows) + 20
        place: dict[str, tuple[float, float]] = {}
        for row, nodes in enumerate(rows.values()):
            for column, node in enumerate(nodes):
                place[node] = (width / 2 + 100 * (column - (len(nodes) - 1) / 2), height - 45 - 70 * row)
        colours = {"q": "#c0392b", "k": "#2471a3", "v": "#1e8449", "": "#555555"}
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica">']
        for edge in self.ordered_edges():
            (x1, y1), (x2, y2) = place[edge.src], place[edge.dst]
            shift = {"q": -14, "k": 0, "v": 14}.get(edge.slot, 0)
            parts.append(
                f'<line x1="{x1:g}" y1="{y1 - 14:g}" x2="{x2 + shift:g}" y2="{y2 + 14:g}" stroke-opacity="0.6" '
                f'stroke="{colours[edge.slot]}"><title>{escape(str(edge))}</title></line>'
            )
        for node, (x, y) in place.items():
            parts.append(
                f'<rect x="{x - 36:g}" y="{y - 14:g}" width="72" height="28" rx="6" fill="white" stroke="black"/>'
                f'<text x="{x:g}" y="{y + 5:g}" font-size="13" text-anchor="middle">{escape(node)}</text>'
            )
        return "\n".join([*parts, "</svg>"]) + "\n"


def full_circuit(config: TransformerConfig, ablation: Ablation = "any", granularity: Granularity = "edge") -> Circuit:
    """Every node and edge of the model."""
    edges = frozenset(map(str, all_edges(config)))
    return Circuit(frozenset(all_nodes(config)), edges, ablation, granularity)


def _some(names: Collection[str]) -> str:
    shown = list(names)[:8]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
