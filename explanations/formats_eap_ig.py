"""EAP-IG's graphs, which MIB uses too: as JSON, and as tensors. Node and edge names are those of `models.circuits`.

A graph there has an MLP in every layer and the same heads in each, as models have that `to_transformer_lens` fills up;
what ours lacks is written as outside the circuit with score 0, and dropped on reading. `cfg` has n_layers, n_heads, parallel_attn_mlp and d_model. Neither
says which ablation is meant. Scores of nodes are kept in `details`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.circuits import INPUT, OUTPUT, Ablation, Circuit, all_edges, all_nodes
from ..models.config import LayerConfig, TransformerConfig
from ..models.errors import InputError
from .scored import ScoredCircuit

NODE_SCORES = "node scores"
REQUIRED = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


def from_json(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    """Raises `InputError` for a graph of another model or of neurons."""
    if not isinstance(data, dict) or not {"cfg", "nodes", "edges"} <= set(data):
        raise InputError("an EAP-IG graph is a JSON object with the keys cfg, nodes, edges")
    _check_cfg(data["cfg"], config)
    nodes, edges = (_table(data[key], key) for key in ("nodes", "edges"))
    scores, kept = {}, set()
    for name, entry in edges.items():
        if "score" in entry and entry["score"] is not None:
            scores[name] = _number(entry["score"], name)
        if _flag(entry, name):
            kept.add(name)
    node_scores = {name: _number(entry["score"], name) for name, entry in nodes.items() if "score" in entry}
    for name, entry in nodes.items():
        _refuse_neurons(entry.get("neurons"), name)
    members = {name for name, entry in nodes.items() if _flag(entry, name)}
    return _scored(config, scores, kept, members, node_scores, ablation)


def from_tensors(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    """Raises `InputError` for a graph of another model or of neurons, and for tensors of other shapes."""
    missing = [key for key in REQUIRED if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"an EAP-IG graph as tensors has {', '.join(REQUIRED)}; missing {', '.join(missing)}")
    _check_cfg(data["cfg"], config)
    sources, targets = list(data["src_nodes"]), list(data["dst_nodes"])
    for key, shape in (
        ("edges_scores", (len(sources), len(targets))),
        ("edges_in_graph", (len(sources), len(targets))),
        ("nodes_in_graph", (len(sources),)),
    ):
        if not isinstance(data[key], Tensor) or tuple(data[key].shape) != shape:
            got = tuple(data[key].shape) if isinstance(data[key], Tensor) else type(data[key]).__name__
            raise InputError(f"{key} must be a tensor of shape {shape}, as the names say, got {got}")
    neurons = data.get("neurons_in_graph")
    if neurons is not None and not bool(torch.as_tensor(neurons).bool().all()):
        raise InputError("this graph leaves out single neurons, which circuits here do not; write it by edges")
    values, flags = data["edges_scores"].tolist(), data["edges_in_graph"].bool().tolist()
    real = {str(edge) for edge in all_edges(_uniform(config))}
    scores, kept = {}, set()
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            name = f"{source}->{target}"
            if name in real:
                scores[name] = _number(values[row][column], name)
            if flags[row][column]:
                kept.add(name)
    members = {name for name, flag in zip(sources, data["nodes_in_graph"].tolist(), strict=True) if flag}
    table = data.get("nodes_scores")
    node_scores = {} if table is None else dict(zip(sources, map(float, table.tolist()), strict=True))
    node_scores = {name: score for name, score in node_scores.items() if not math.isnan(score)}
    return _scored(config, scores, kept, members, node_scores, ablation)


def to_json(scored: ScoredCircuit) -> dict[str, object]:
    """What EAP-IG's `Graph.from_json` reads. Edges without a score get 0. Raises `InputError` for infinite scores."""
    full, cfg = _uniform(scored.config), _cfg(scored.config)
    circuit, node_scores = _selected(scored), _node_scores(scored)
    found = scored.by_edge
    nodes: dict[str, dict[str, object]] = {}
    for node in all_nodes(full):
        nodes[node] = {"in_graph": node in circuit.nodes}
        if node_scores:
            nodes[node]["score"] = node_scores.get(node, 0.0)
    edges = {}
    for edge in map(str, all_edges(full)):
        edges[edge] = {"score": _finite(found.get(edge, 0.0), edge), "in_graph": edge in circuit.edges}
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def to_tensors(scored: ScoredCircuit) -> dict[str, object]:
    """What EAP-IG's `Graph.from_pt` reads; scores are float64."""
    full, circuit = _uniform(scored.config), _selected(scored)
    sources = [node for node in all_nodes(full) if node != OUTPUT]
    targets: list[str] = []
    for index, layer in enumerate(full.layers):
        targets += [f"a{index}.h{head}<{slot}>" for slot in "qkv" for head in range(layer.n_heads)]
        targets.append(f"m{index}")
    targets.append(OUTPUT)
    row, column = ({name: place for place, name in enumerate(names)} for names in (sources, targets))
    scores = torch.zeros(len(sources), len(targets), dtype=torch.float64)
    kept = torch.zeros(len(sources), len(targets), dtype=torch.bool)
    for edge in all_edges(full):
        place = row[edge.src], column[str(edge).partition("->")[2]]
        scores[place] = _finite(scored.by_edge.get(str(edge), 0.0), str(edge))
        kept[place] = str(edge) in circuit.edges
    data: dict[str, object] = {
        "cfg": _cfg(scored.config),
        "src_nodes": sources,
        "dst_nodes": targets,
        "edges_scores": scores,
        "edges_in_graph": kept,
        "nodes_in_graph": torch.tensor([node in circuit.nodes for node in sources]),
    }
    if node_scores := _node_scores(scored):
        data["nodes_scores"] = torch.tensor([node_scores.get(n, math.nan) for n in sources], dtype=torch.float64)
    return data


def _scored(
    config: TransformerConfig,
    scores: Mapping[str, float],
    kept: set[str],
    members: set[str],
    node_scores: Mapping[str, float],
    ablation: Ablation,
) -> ScoredCircuit:
    """The graph, less what the format has of a model that ours lacks, if it is outside the circuit."""
    known = {*map(str, all_edges(config)), *all_nodes(config)}
    lacking = {*map(str, all_edges(_uniform(config))), *all_nodes(_uniform(config))} - known
    unused = {name for name in lacking if name not in kept and name not in members}
    circuit = Circuit.from_edges(kept, ablation)
    circuit = replace(circuit, nodes=circuit.nodes | (members - unused))
    circuit.validate(config)
    inside = {edge: score for edge, score in scores.items() if edge not in unused}
    details = {NODE_SCORES: json.dumps(node_scores)} if node_scores else {}
    found = ScoredCircuit.from_edges(config, inside, "eap-ig file", ablation, details=details)
    return found.with_chosen(circuit) if kept or members - {INPUT, OUTPUT} else found


def _selected(scored: ScoredCircuit) -> Circuit:
    return scored.chosen if scored.chosen is not None else Circuit(frozenset(), frozenset(), scored.ablation)


def _node_scores(scored: ScoredCircuit) -> dict[str, float]:
    text = scored.details.get(NODE_SCORES)
    return {} if text is None else dict(json.loads(text))


def _check_cfg(cfg: Any, config: TransformerConfig) -> None:
    if not isinstance(cfg, Mapping):
        raise InputError(f"cfg must be an object, got {str(cfg)[:80]}")
    if cfg.get("parallel_attn_mlp"):
        raise InputError("this graph is of a model whose MLPs run beside attention (parallel_attn_mlp); ours do not")
    wanted = _cfg(config)
    wrong = [
        f"{key} {cfg[key]} (this model: {wanted[key]})" for key in wanted if key in cfg and cfg[key] != wanted[key]
    ]
    if wrong:
        raise InputError(f"this graph is another model's: {', '.join(wrong)}")


def _cfg(config: TransformerConfig) -> dict[str, object]:
    return {
        "n_layers": config.n_layers,
        "n_heads": max((layer.n_heads for layer in config.layers), default=0),
        "parallel_attn_mlp": False,
        "d_model": config.d_model,
    }


def _uniform(config: TransformerConfig) -> TransformerConfig:
    """The model with an MLP in every layer, and as many heads in each as in any."""
    heads = max((layer.n_heads for layer in config.layers), default=0)
    layers = tuple(LayerConfig(heads, 1 if heads else 0, layer.d_mlp or 1) for layer in config.layers)
    return replace(config, layers=layers)


def _table(data: Any, key: str) -> dict[str, dict[str, Any]]:
    if not isinstance(data, dict):
        raise InputError(f"{key} must be an object from name to entry, got {str(data)[:80]}")
    # Older files have a bare true or false for a node.
    return {name: entry if isinstance(entry, dict) else {"in_graph": entry} for name, entry in data.items()}


def _flag(entry: Mapping[str, Any], name: str) -> bool:
    flag = entry.get("in_graph", False)
    if not isinstance(flag, bool):
        raise InputError(f"in_graph of {name} must be true or false, got {flag!r}")
    return flag


def _number(score: Any, name: str) -> float:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise InputError(f"the score of {name} must be a number, got {score!r}")
    return float(score)


def _finite(score: float, name: str) -> float:
    if not math.isfinite(score):
        raise InputError(f"the score of {name} is {score}; EAP-IG's files hold finite ones")
    return score


def _refuse_neurons(neurons: Iterable[Any] | None, name: str) -> None:
    if neurons is not None and not all(neurons):
        raise InputError(f"{name} is in this graph without some neurons, which circuits here do not leave out")
