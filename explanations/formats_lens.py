"""Circuits by TransformerLens's hook names: ACDC's edges, InterpBench's edges, auto-circuit's prune scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..models.circuits import INPUT, OUTPUT, Ablation, Edge, head_name, mlp_name, parse_head, parse_mlp
from ..models.config import TransformerConfig
from ..models.errors import InputError
from .graph_runs import layout_of
from .restricted_pickle import HookEdge, HookIndex
from .scored import ScoredCircuit

_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(?:attn\.|mlp\.)?(hook_\w+)(?:\[(\d+)\])?")
_INPUTS = ("hook_embed", "hook_pos_embed")
_WITHIN = ("hook_q", "hook_k", "hook_v")


def from_interpbench(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    """`edges.pkl`: pairs (from, to) of names such as `blocks.0.attn.hook_result[2]`, no scores."""
    if not isinstance(data, (list, tuple, set, frozenset)):
        raise InputError(f"InterpBench's edges are a list of pairs of names, got {type(data).__name__}")
    pairs = []
    for entry in data:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not all(isinstance(p, str) for p in entry):
            raise InputError(f"InterpBench's edges are pairs of names, got {str(entry)[:120]}")
        pairs.append((_Hook.parse(entry[0]), _Hook.parse(entry[1]), None))
    return _circuit(pairs, config, ablation, "interpbench file")


def from_acdc(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    """ACDC's saved edges: ((child, index, parent, index), effect size), in a list, or a dictionary of edges."""
    entries = data.items() if isinstance(data, dict) else data
    if not isinstance(data, (list, tuple, dict)):
        raise InputError(f"ACDC's edges are a list or a dictionary, got {type(data).__name__}")
    pairs = []
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[0], (list, tuple)):
            raise InputError(f"ACDC's edges are ((child, index, parent, index), effect size), got {str(entry)[:120]}")
        key, value = entry
        if len(key) != 4 or not isinstance(key[0], str) or not isinstance(key[2], str):
            raise InputError(f"ACDC's edges are (child, index, parent, index), got {str(key)[:120]}")
        present, effect = (value.present, value.effect_size) if isinstance(value, HookEdge) else (True, value)
        if isinstance(effect, bool):
            present, effect = effect, None
        if effect is not None and not isinstance(effect, (int, float)):
            raise InputError(f"the effect size of {key[2]} -> {key[0]} must be a number, got {str(effect)[:80]}")
        if present:
            pairs.append((_Hook.of(key[2], key[3]), _Hook.of(key[0], key[1]), effect))
    return _circuit(pairs, config, ablation, "acdc file")


class _Hook:
    """A hook and, of those with heads, the head."""

    def __init__(self, name: str, head: int | None) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"a hook is written like blocks.0.attn.hook_result or hook_embed, got {name!r}")
        self.text = name if head is None else f"{name}[{head}]"
        self.layer = None if match[1] is None else int(match[1])
        self.leaf, self.head = match[2], int(match[3]) if match[3] else head

    @staticmethod
    def parse(text: str) -> _Hook:
        return _Hook(text.replace("[:]", ""), None)

    @staticmethod
    def of(name: str, index: Any) -> _Hook:
        """With an index [:] or [:, :, head], as ACDC writes it."""
        parts = index.hashable_tuple if isinstance(index, HookIndex) else index
        if parts is None:
            return _Hook(name, None)
        if not isinstance(parts, (list, tuple)) or len(parts) not in (1, 3) or any(p is not None for p in parts[:2]):
            raise InputError(f"the index of {name} must be [:] or [:, :, head], got {str(parts)[:80]}")
        head = parts[2] if len(parts) == 3 else None
        if head is not None and (isinstance(head, bool) or not isinstance(head, int)):
            raise InputError(f"the index of {name} must be [:] or [:, :, head], got {str(parts)[:80]}")
        return _Hook(name, head)

    def writer(self) -> str | None:
        """The node whose output is here."""
        if self.leaf in _INPUTS or (self.leaf == "hook_resid_pre" and self.layer in (0, None)):
            return INPUT
        if self.layer is None:
            return None
        if self.leaf in ("hook_result", "hook_z"):
            return None if self.head is None else head_name(self.layer, self.head)
        return mlp_name(self.layer) if self.leaf in ("hook_mlp_out", "hook_post") else None

    def readers(self, config: TransformerConfig) -> list[tuple[str, str]]:
        """The nodes, with slots, whose input is here; a head's output stands for all its inputs."""
        if self.layer is None:
            return [(OUTPUT, "")] if self.leaf == "hook_resid" and not config.layers else []
        if self.head is not None:
            node = head_name(self.layer, self.head)
            if found := re.fullmatch(r"hook_([qkv])(_input)?", self.leaf):
                return [(node, found[1])]
            return [(node, slot) for slot in "qkv"] if self.leaf in ("hook_result", "hook_attn_in", "hook_z") else []
        if self.leaf in ("hook_mlp_in", "hook_resid_mid", "hook_mlp_out", "hook_pre", "hook_post"):
            return [(mlp_name(self.layer), "")]
        return [(OUTPUT, "")] if self.leaf == "hook_resid_post" and self.layer == config.n_layers - 1 else []


def _within(source: _Hook, target: _Hook) -> str | None:
    """`q`, `k` or `v`, or empty for an MLP, if the edge is inside one node, from its input to its output."""
    if source.layer != target.layer or source.head != target.head or source.layer is None:
        return None
    if source.leaf in ("hook_mlp_in", "hook_resid_mid", "hook_pre"):
        return "" if target.leaf in ("hook_mlp_out", "hook_post", "hook_pre") else None
    found = re.fullmatch(r"hook_([qkv])(_input)?", source.leaf)
    return found[1] if found and target.leaf in (*_WITHIN, "hook_result", "hook_z") else None


def _circuit(
    pairs: Iterable[tuple[_Hook, _Hook, float | None]], config: TransformerConfig, ablation: Ablation, method: str
) -> ScoredCircuit:
    """Edges inside a node are not edges here; but where such edges are listed, a head's or MLP's input whose own is
    missing is cut off, and with it all edges that arrive there."""
    scores: dict[str, float] = {}
    kept: set[str] = set()
    inside: set[tuple[str, str]] = set()
    used: dict[str, set[str]] = {}
    strange: list[str] = []
    for source, target, score in pairs:
        slot = _within(source, target)
        if slot is not None:
            # of q_input -> q -> result, the first two are what can be cut
            if target.leaf not in ("hook_result", "hook_z") or source.leaf.endswith("_input"):
                inside.update(reader for reader in source.readers(config) if reader[1] == slot)
            continue
        writer, readers = source.writer(), target.readers(config)
        if writer is None or not readers:
            strange.append(f"{source.text} -> {target.text}")
            continue
        for node, at in readers:
            edge = str(Edge(writer, node, at))
            kept.add(edge)
            if writer == INPUT:
                used.setdefault(edge, set()).add(source.leaf)
            if score is not None and abs(score) >= abs(scores.get(edge, 0.0)):
                scores[edge] = float(score)
    if strange:
        raise InputError(f"these are no edges of a transformer's residual stream: {', '.join(strange[:8])}")
    for_mlps, for_heads = ({r for r in inside if bool(parse_head(r[0])) is heads} for heads in (False, True))
    for edge in list(kept):
        target_name, _, at = edge.partition("->")[2].partition("<")
        reader = (target_name, at.rstrip(">"))
        listed = for_heads if parse_head(target_name) else for_mlps
        if target_name != OUTPUT and listed and reader not in listed:
            kept.discard(edge)
    partly = sorted(edge for edge, leaves in used.items() if edge in kept and len(leaves & set(_INPUTS)) == 1)
    details = {}
    if partly and config.positional == "learned":
        details["coarsened"] = (
            "embedding and position are one node here; the file has only one of them in " + ", ".join(partly[:20])
        )
    inner = {edge: score for edge, score in scores.items() if edge in kept}
    return ScoredCircuit.from_edges(config, inner, method, ablation, details=details, chosen=kept)


def _hooks(edge: Edge, config: TransformerConfig) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
    """The hooks of an edge's ends, each with its head: ACDC's names with split inputs of heads and MLPs."""
    place, layer = parse_head(edge.src), parse_mlp(edge.src)
    if place is not None:
        source: tuple[str, int | None] = (f"blocks.{place[0]}.attn.hook_result", place[1])
    else:
        source = ("blocks.0.hook_resid_pre" if layer is None else f"blocks.{layer}.hook_mlp_out", None)
    place, layer = parse_head(edge.dst), parse_mlp(edge.dst)
    if place is not None:
        return source, (f"blocks.{place[0]}.hook_{edge.slot}_input", place[1])
    if layer is not None:
        return source, (f"blocks.{layer}.hook_mlp_in", None)
    return source, (f"blocks.{config.n_layers - 1}.hook_resid_post", None)


def _all_hooks(scored: ScoredCircuit) -> Iterator[tuple[tuple[str, int | None], tuple[str, int | None], float | None]]:
    """Source, target and score of the selected circuit's edges, and of those inside the nodes that they arrive at."""
    if scored.config.n_layers == 0:
        raise InputError("a model without layers has no hooks to name its edges by")
    arrived: dict[tuple[str, int | None], None] = {}
    for edge in scored.circuit().ordered_edges():
        source, target = _hooks(edge, scored.config)
        yield source, target, scored.by_edge.get(str(edge))
        arrived[target] = None
    for name, head in arrived:
        if name.endswith("_input"):
            yield (name, head), (name.removesuffix("_input").replace(".hook", ".attn.hook"), head), None
        elif name.endswith("hook_mlp_in"):
            yield (name, head), (name.replace("hook_mlp_in", "hook_mlp_out"), head), None


def to_interpbench(scored: ScoredCircuit) -> list[tuple[str, str]]:
    """Pairs of names (from, to), with `blocks.0.hook_resid_pre` for `input`."""
    return [(_named(*source), _named(*target)) for source, target, _ in _all_hooks(scored)]


def _named(name: str, head: int | None) -> str:
    return name if head is None else f"{name}[{head}]"


def to_acdc(scored: ScoredCircuit) -> list[tuple[tuple[str, HookIndex, str, HookIndex], float | None]]:
    """What ACDC's `save_edges` pickles."""
    return [
        ((target, _index(at), source, _index(head)), score)
        for (source, head), (target, at), score in _all_hooks(scored)
    ]


def _index(head: int | None) -> HookIndex:
    return HookIndex((None,) if head is None else (None, None, head))


def from_auto_circuit(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    """Prune scores: from module name to scores [head, source], or [source] for an MLP's input and the logits."""
    if not isinstance(data, dict) or not data or not all(isinstance(key, str) for key in data):
        raise InputError(f"prune scores are a dictionary from module name to tensor, got {str(data)[:120]}")
    if nested := [key for key, value in data.items() if isinstance(value, dict)]:
        raise InputError(f"it holds several sets of prune scores, under {nested[:8]}; save one of them alone")
    layout = layout_of(config)
    scores: dict[str, float] = {}
    strange = []
    for module, table in data.items():
        hook = _Hook(module, None)
        reader = next((r for r in layout.readers.values() if _module(r.layer, r.slot, config) == module), None)
        slots = "qkv" if hook.leaf == "hook_attn_in" else (reader.slot if reader else "")
        if reader is None and hook.leaf == "hook_attn_in":
            reader = layout.readers.get(f"blocks.{hook.layer}.attn.hook_q")
        if reader is None:
            strange.append(module)
            continue
        shape = (len(reader.rows), reader.before) if slots else (reader.before,)
        if not isinstance(table, Tensor) or tuple(table.shape) != shape:
            got = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
            raise InputError(f"the scores of {module} must have shape {shape} (not split by position), got {got}")
        rows = table.tolist() if slots else [table.tolist()]
        for slot in slots or ("",):
            for head, row in enumerate(rows):
                node = head_name(reader.layer, head) if slot else _reading_node(reader.layer, config)
                for source, score in zip(layout.writers, row, strict=False):
                    scores[str(Edge(source, node, slot))] = float(score)
    if strange:
        raise InputError(f"this model has no such modules: {', '.join(strange[:8])}; it has {_modules(config)}")
    return ScoredCircuit.from_edges(config, scores, "auto-circuit file", ablation)


def to_auto_circuit(scored: ScoredCircuit) -> dict[str, Tensor]:
    """The scores as auto-circuit keeps them, with inputs split by q, k and v; edges without a score get 0."""
    layout = layout_of(scored.config)
    values = torch.zeros(layout.n_rows, len(layout.writers), dtype=torch.float64)
    for (row, column), score in zip(layout.places, scored.scores.nan_to_num(nan=0.0).tolist(), strict=True):
        values[row, column] = score
    found: dict[str, Tensor] = {}
    for reader in layout.readers.values():
        table = values[list(reader.rows), : reader.before].clone()
        found[_module(reader.layer, reader.slot, scored.config)] = table if reader.slot else table[0]
    return found


def _module(layer: int, slot: str, config: TransformerConfig) -> str:
    if slot:
        return f"blocks.{layer}.hook_{slot}_input"
    return f"blocks.{layer}.hook_mlp_in" if layer < config.n_layers else f"blocks.{layer - 1}.hook_resid_post"


def _reading_node(layer: int, config: TransformerConfig) -> str:
    return mlp_name(layer) if layer < config.n_layers else OUTPUT


def _modules(config: TransformerConfig) -> str:
    return ", ".join(_module(reader.layer, reader.slot, config) for reader in layout_of(config).readers.values())
