"""Putting edits into a model program: one immutable program in, another out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from . import program as ops
from .circuits import INPUT, OUTPUT, head_name, mlp_name
from .config import TransformerConfig
from .errors import InputError
from .program import Operation, Program, input_site


@dataclass(frozen=True)
class SiteEdit:
    """A change of a site's value by constants: `replace` under a mask, or the component in a projector's image."""

    kind: Literal["replace", "project"]
    value: str
    by: str
    head: int | None


@dataclass
class Rewriting:
    """What is to be changed: sites, and for each reader `(node, slot)` the writers whose contribution is replaced
    (by a constant, or None: by zero)."""

    config: TransformerConfig
    constants: dict[str, Tensor] = field(default_factory=dict)
    sites: dict[str, list[SiteEdit]] = field(default_factory=dict)
    edges: dict[tuple[str, str], dict[str, str | None]] = field(default_factory=dict)


def rewrite(program: Program, changes: Rewriting) -> Program:
    """The program with the changes. Raises `InputError` for edits that contradict each other.

    A reader with replaced contributions reads its own sum of the writers' outputs instead of the residual stream.
    """
    if changes.edges:
        _refuse_stream_edits(changes)
    result: list[Operation] = []
    for operation in program:
        for changed in _reader(operation, changes):
            result += _edited(_summed(changed, changes), changes.sites.get(changed.output, []))
    return tuple(result)


def _refuse_stream_edits(changes: Rewriting) -> None:
    start = input_site(changes.config)
    passed = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_normalized")
    for site in changes.sites:
        if site != start and site.endswith(passed):
            raise InputError(
                f"an edit of {site} cannot be combined with ablated edges, whose readers sum what the nodes write; "
                "edit the nodes' outputs instead"
            )


def _edited(operation: Operation, edits: list[SiteEdit]) -> Iterator[Operation]:
    """The operation, with its output renamed, then the edits, the last of which has the site's own name."""
    site = operation.output
    names = [f"{site}@{step}" for step in range(len(edits))] + [site]
    yield replace(operation, output=names[0])
    for edit, before, after in zip(edits, names[:-1], names[1:], strict=True):
        if edit.kind == "replace":
            yield ops.Replace(after, before, edit.value, edit.by)
        else:
            yield ops.Project(after, before, edit.value, edit.by, edit.head)


def _summed(operation: Operation, changes: Rewriting) -> Operation:
    """An edit of single heads' outputs shows in their sum only if it is computed from them."""
    if isinstance(operation, ops.Join):
        layer = int(operation.output.split(".")[1])
        results = _results(layer)
        if results in changes.sites:
            heads = tuple(range(changes.config.layers[layer].n_heads))
            return ops.SumHeads(operation.output, results, operation.bias, heads)
    return operation


def _results(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_result"


def _reader(operation: Operation, changes: Rewriting) -> Iterator[Operation]:
    """The operation; if it is the first to read the stream for a changed reader, first that reader's own input."""
    config = changes.config
    place = operation.output.split(".")
    layer = int(place[1]) if place[0] == "blocks" else len(config.layers)
    normalised = config.layer_norm is not None
    leaf = place[-1]
    if isinstance(operation, ops.HeadLinear):
        slot = leaf[-1]
        readers = [(head_name(layer, head), slot) for head in range(config.layers[layer].n_heads)]
        if any(reader in changes.edges for reader in readers):
            source = yield from _head_inputs(layer, slot, readers, changes)
            operation = replace(operation, input=source)
    elif operation.output == f"blocks.{layer}." + ("ln2.hook_normalized" if normalised else "mlp.hook_pre"):
        if (mlp_name(layer), "") in changes.edges:
            yield from _sum((mlp_name(layer), ""), f"blocks.{layer}.hook_mlp_in", layer, True, changes)
            operation = _reading(operation, f"blocks.{layer}.hook_mlp_in")
    elif operation.output == _first_after_stream(config) and (OUTPUT, "") in changes.edges:
        yield from _sum((OUTPUT, ""), "hook_logits_in", len(config.layers), False, changes)
        operation = _reading(operation, "hook_logits_in")
    yield operation


def _first_after_stream(config: TransformerConfig) -> str:
    if config.layer_norm is not None:
        return "ln_final.hook_normalized"
    return ops.LOGITS if config.readout == "each" else "hook_readout"


def _reading(operation: Operation, site: str) -> Operation:
    assert isinstance(operation, (ops.Normalise, ops.Linear, ops.Pool))
    return replace(operation, input=site)


def _head_inputs(
    layer: int, slot: str, readers: list[tuple[str, str]], changes: Rewriting
) -> Generator[Operation, None, str]:
    """One residual stream for each head; returns the site to read (normalised, if the model does that)."""
    stacked = f"blocks.{layer}.hook_{slot}_input"
    sources: list[str] = []
    for reader in readers:
        if reader in changes.edges:
            sources.append(f"{stacked}.{reader[0]}")
            yield from _sum(reader, sources[-1], layer, False, changes)
        else:
            sources.append(f"blocks.{layer}.hook_resid_pre")
    yield ops.StackHeads(stacked, tuple(sources))
    if changes.config.layer_norm is None:
        return stacked
    norm = f"blocks.{layer}.ln1"
    normalised = f"{norm}.hook_normalized_{slot}"
    yield ops.Normalise(normalised, stacked, f"{norm}.w", f"{norm}.b", changes.config.layer_norm)
    return normalised


def _sum(reader: tuple[str, str], output: str, layer: int, with_heads: bool, changes: Rewriting) -> Iterator[Operation]:
    """What `reader` sees: the sum, in the order of computation, of what the nodes before it write.

    Those are the nodes of the layers before `layer`, and (`with_heads`) its heads.
    """
    replaced = changes.edges[reader]
    terms: list[str] = []

    def stand_ins(writers: Iterable[str]) -> Iterator[Operation]:
        for writer in writers:
            constant = replaced[writer]
            if constant is not None:
                terms.append(f"{output}.{writer}")
                yield ops.Constant(terms[-1], constant)

    if INPUT in replaced:
        yield from stand_ins([INPUT])
    else:
        terms.append(input_site(changes.config))
    for index, block in enumerate(changes.config.layers[: layer + with_heads]):
        gone = [head for head in range(block.n_heads) if head_name(index, head) in replaced]
        if gone:
            kept = tuple(head for head in range(block.n_heads) if head not in gone)
            terms.append(f"{output}.attn{index}")
            yield ops.SumHeads(terms[-1], _results(index), f"blocks.{index}.attn.b_O", kept)
            yield from stand_ins(head_name(index, head) for head in gone)
        elif block.n_heads:
            terms.append(f"blocks.{index}.hook_attn_out")
        if index < layer and block.d_mlp:
            if mlp_name(index) in replaced:
                yield from stand_ins([mlp_name(index)])
            else:
                terms.append(f"blocks.{index}.hook_mlp_out")
    if not terms:
        changes.constants["zero"] = torch.zeros(1, 1, changes.config.d_model)
        terms.append(f"{output}.zero")
        yield ops.Constant(terms[-1], "zero")
    yield ops.Add(output, tuple(terms))
