"""Circuits of a model, and rule `no_flow` (section 6 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .format import Json, Rejected, listing, record, require, show, text, within
from .model import Config, Model, Weights

ABLATIONS = ("zero", "mean", "resample", "any")
MAX_EDGES = 2**20
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Edge:
    """From a node to a node; `port` is q, k or v if the target is a head, else empty."""

    source: str
    target: str
    port: str = ""

    def __str__(self) -> str:
        return f"{self.source}->{self.target}" + (f"<{self.port}>" if self.port else "")


@dataclass(frozen=True)
class Circuit:
    """The nodes and edges that stay; `by_node`: whole nodes are ablated, else single edges."""

    nodes: frozenset[str]
    edges: frozenset[str]
    by_node: bool


def nodes_of(config: Config) -> list[tuple[str, int]]:
    """Nodes but `logits` with their stages, ascending: heads of layer l at 2 l + 1, its MLP at 2 l + 2."""
    nodes = [("input", 0)]
    for number, layer in enumerate(config.layers):
        nodes += [(f"a{number}.h{head}", 2 * number + 1) for head in range(layer.n_heads)]
        nodes += [(f"m{number}", 2 * number + 2)] if layer.d_mlp else []
    return nodes


def edges_of(config: Config) -> list[Edge]:
    """From every node to the ports of all nodes of later stages, and to `logits`."""
    nodes = nodes_of(config)
    require(3 * len(nodes) ** 2 <= MAX_EDGES, f"a model with {len(nodes)} nodes has too many edges")
    edges = []
    for source, stage in nodes:
        for target, later in nodes:
            if later > stage:
                edges += [Edge(source, target, port) for port in ("qkv" if target[0] == "a" else [""])]
        edges.append(Edge(source, "logits"))
    return edges


def read_circuit(data: Json, config: Config) -> Circuit:
    """A circuit of a model of this shape: only nodes and edges that it has."""
    item = record(data, "circuit", ("nodes", "edges", "ablation", "granularity"))
    require(item["ablation"] in ABLATIONS, f"unknown ablation {show(item['ablation'])}")
    require(item["granularity"] in ("edge", "node"), f"unknown granularity {show(item['granularity'])}")
    nodes = [text(node, "a node") for node in listing(item["nodes"], "circuit nodes", MAX_EDGES)]
    edges = [text(edge, "an edge") for edge in listing(item["edges"], "circuit edges", MAX_EDGES)]
    known_nodes = {"logits", *(node for node, _ in nodes_of(config))}
    known_edges = {str(edge) for edge in edges_of(config)}
    require(set(nodes) <= known_nodes, f"the model has no nodes {show(sorted(set(nodes) - known_nodes))}")
    require(set(edges) <= known_edges, f"the model has no edges {show(sorted(set(edges) - known_edges))}")
    require(len(set(nodes)) == len(nodes) and len(set(edges)) == len(edges), "the circuit repeats a node or an edge")
    return Circuit(frozenset(nodes), frozenset(edges), item["granularity"] == "node")


def written(model: Model, node: str) -> Bits:
    """The residual coordinates that the node can write: where a row of its output matrices is not zero."""
    w = model.weights
    if node == "input":
        names = ["embed.W_E"] + (["pos_embed.W_pos"] if model.config.positional else [])
        return np.asarray(np.any([(w[name] != 0).any(axis=0) for name in names], axis=0), dtype=np.bool_)
    if node[0] == "m":
        name = f"blocks.{node[1:]}.mlp."
        return np.asarray((w[name + "W_out"] != 0).any(axis=0) | (w[name + "b_out"] != 0))
    layer, head = node[1:].split(".h")
    return np.asarray((w[f"blocks.{layer}.attn.W_O"][int(head)] != 0).any(axis=0))


def read_by(model: Model, target: str, port: str) -> Bits:
    """The residual coordinates that the target reads: where its input matrix has a row that is not zero."""
    w = model.weights
    if target == "logits":
        return np.asarray((w[model.config.reader] != 0).any(axis=1))
    if target[0] == "m":
        return np.asarray((w[f"blocks.{target[1:]}.mlp.W_in"] != 0).any(axis=1))
    layer, head = target[1:].split(".h")
    return np.asarray((w[f"blocks.{layer}.attn.W_{port.upper()}"][int(head)] != 0).any(axis=1))


def outside(circuit: Circuit, config: Config) -> list[Edge]:
    """The edges whose contribution may be replaced without being in the circuit.

    By node: those from an ablated node to one that stays; what reaches other ablated nodes does not matter, for they
    are replaced themselves. The read-out must stay.
    """
    if not circuit.by_node:
        return [edge for edge in edges_of(config) if str(edge) not in circuit.edges]
    require("logits" in circuit.nodes, "a circuit by nodes must have the node logits")
    return [edge for edge in edges_of(config) if edge.source not in circuit.nodes and edge.target in circuit.nodes]


def check_no_flow(model: Model, circuits: list[tuple[Circuit, dict[str, Weights]]], proof: dict[str, Json]) -> None:
    """No coordinate is both written by the source and read by the target of an edge outside the circuit.

    Then, in order of computation, every node that stays computes what it computed, whatever is put in place of those
    contributions, as long as it lies in the coordinates that the source can write. (Of a stored vector it is asked that
    those in which it is not zero are not read either.)
    """
    with within("proof", "no_flow"):
        record(proof, "proof", ("rule",))
        model.config.require_plain()
        for circuit, means in circuits:
            writes = {node: written(model, node) for node, _ in nodes_of(model.config)}
            reads: dict[tuple[str, str], Bits] = {}
            for edge in outside(circuit, model.config):
                place = (edge.target, edge.port)
                if place not in reads:
                    reads[place] = read_by(model, *place)
                there = writes[edge.source]
                if edge.source in means:
                    there = there | (means[edge.source] != 0)
                shared = there & reads[place]
                if shared.any():
                    raise Rejected(f"{edge} carries residual coordinates {np.flatnonzero(shared)[:8].tolist()}")
