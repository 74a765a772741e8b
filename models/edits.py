"""Interventions: `edit(model, ...)` returns an edited copy, whose program has the edits in it; no hook is left behind.

What is put in the place of an activation always comes from the unedited model: its mean or its value on other tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .circuits import INPUT, OUTPUT, Circuit, all_edges, all_nodes, parse_edge, parse_head, parse_mlp
from .config import TransformerConfig, parameter_shapes
from .errors import InputError
from .execution import Run, execute, plan
from .program import LOGITS, Program, input_site
from .rewriting import Rewriting, SiteEdit, rewrite
from .sites import NamesFilter, Site, select_sites, sites, unknown
from .transformer import Transformer, check_tokens


@dataclass(frozen=True)
class Zero:
    """Replace by zero."""


@dataclass(frozen=True, eq=False)
class Mean:
    """Replace by the mean over these tokens [batch, pos]; `per_position`: one mean for each position."""

    tokens: Tensor
    per_position: bool = False


@dataclass(frozen=True, eq=False)
class Resample:
    """Replace by the value on these tokens: one sequence, or one for each in the batch that is run."""

    tokens: Tensor


@dataclass(frozen=True, eq=False)
class Given:
    """Replace by any values of the caller's: [d_model], [pos, d_model] or [batch, pos, d_model]."""

    values: Tensor


Replacement: TypeAlias = Zero | Mean | Resample | Given


@dataclass(frozen=True, eq=False)
class Ablate:
    """Replaces a node's output (`a0.h1`) for all its readers, or one contribution (`a0.h1->m2`, `input->a1.h0<q>`).

    An edge's reader sees the residual stream with that writer's contribution replaced; nobody else does.
    """

    target: str
    by: Replacement


@dataclass(frozen=True, eq=False)
class Interchange:
    """Takes a site's value from a run on the source tokens; only at `positions` (of a pattern: queries) and one `head`
    if they are given."""

    site: str
    source: Tensor
    positions: tuple[int, ...] | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Subspace:
    """Replaces the component of a site in the span of `directions` [k, width]; the rest stays."""

    site: str
    directions: Tensor
    by: Replacement
    head: int | None = None


Edit: TypeAlias = Ablate | Interchange | Subspace


@dataclass(frozen=True, eq=False)
class Edited:
    """A model with edits: it runs as a `Transformer` does. Made by `edit`."""

    base: Transformer
    edits: tuple[Edit, ...]
    program: Program
    constants: dict[str, Tensor]
    axes: dict[str, tuple[str, ...]]

    @property
    def config(self) -> TransformerConfig:
        return self.base.config

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.forward(tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Transformer.forward`. Raises `InputError` when an edit's values are for another batch or length."""
        return self._execute(tokens, (LOGITS,))[LOGITS]

    def run_with_cache(self, tokens: Tensor, names_filter: NamesFilter = None) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Transformer.run_with_cache`; a site's value before its edits is under its name with `@0` (`@1`, ...)."""
        wanted = select_sites(names_filter, tuple(operation.output for operation in self.program))
        values = self._execute(tokens, (*wanted, LOGITS))
        return values[LOGITS], {site: values[site] for site in wanted}

    def _execute(self, tokens: Tensor, targets: tuple[str, ...]) -> dict[str, Tensor]:
        check_tokens(tokens, self.config)
        batch, length = tokens.shape
        for name, axes in self.axes.items():
            for axis, size in zip(axes, self.constants[name].shape, strict=True):
                needed = {"batch": batch, "pos": length, "query": length, "key": length}.get(axis)
                if needed is not None and size not in (1, needed):
                    raise InputError(
                        f"an edit has values for {axis} of size {size}, but these tokens have {axis} of size {needed}; "
                        "give source tokens of one sequence or the same batch, and of the same length"
                    )
        return execute(plan(self.program, targets), Run(tokens, self.base.parameter, self.constants))


def edit(model: Transformer | Edited, *edits: Edit) -> Edited:
    """A copy of the model with the edits, applied in the order given (after those it already has).

    Raises `InputError` for unknown targets and for values that do not fit. Cost: one run of the unedited model for
    each set of tokens.
    """
    if isinstance(model, Edited):
        return edit(model.base, *model.edits, *edits)
    base = copy.deepcopy(model)
    return _Editing(base).finish(edits)


def outside(circuit: Circuit, config: TransformerConfig, by: Replacement) -> tuple[Ablate, ...]:
    """The edits that leave only the circuit: one for each edge (or node, by its granularity) outside it."""
    circuit.validate(config)
    if circuit.granularity == "node":
        return tuple(Ablate(node, by) for node in all_nodes(config) if node not in circuit.nodes | {OUTPUT})
    return tuple(Ablate(str(edge), by) for edge in all_edges(config) if str(edge) not in circuit.edges)


def change_weight(model: Transformer, name: str, index: Sequence[int], value: float) -> Transformer:
    """A copy of the model with one weight set. Raises `InputError` for an unknown name, bad index or value."""
    shape = parameter_shapes(model.config).get(name)
    if shape is None:
        raise unknown("parameter", name, tuple(parameter_shapes(model.config)))
    place = tuple(index)
    fits = len(place) == len(shape) and all(-size <= i < size for i, size in zip(place, shape, strict=True))
    if not fits:
        raise InputError(f"{name} has shape {shape}; there is no entry {place}")
    if not math.isfinite(value) or abs(value) > torch.finfo(torch.float32).max:
        raise InputError(f"a weight must be a finite float32, got {value!r}")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.parameter(name)[place] = value
    return changed


class _Editing:
    """The work of one `edit`: what has been run, and the rewriting that is being put together."""

    def __init__(self, base: Transformer) -> None:
        self.base = base
        self.sites: dict[str, Site] = sites(base.config)
        self.rewriting = Rewriting(base.config)
        self.axes: dict[str, tuple[str, ...]] = {}
        self.runs: dict[tuple[int, str], Tensor] = {}

    def finish(self, edits: tuple[Edit, ...]) -> Edited:
        for one in edits:
            match one:
                case Ablate():
                    self.ablate(one)
                case Interchange():
                    self.interchange(one)
                case Subspace():
                    self.subspace(one)
                case _:
                    raise InputError(f"an edit is Ablate, Interchange or Subspace, got {one!r}")
        program = rewrite(self.base.program, self.rewriting)
        return Edited(self.base, edits, program, self.rewriting.constants, self.axes)

    def ablate(self, one: Ablate) -> None:
        config = self.base.config
        nodes, edges = all_nodes(config), tuple(map(str, all_edges(config)))
        if one.target in edges:
            edge = parse_edge(one.target)
            site, head = written_at(edge.src, config)
            value = self.value(site, head, one.by)
            name = None if isinstance(one.by, Zero) else self.constant(value, ("batch", "pos", "d_model"))
            self.rewriting.edges.setdefault((edge.dst, edge.slot), {})[edge.src] = name
        elif one.target in nodes and one.target != OUTPUT:
            site, head = written_at(one.target, config)
            self.replace(site, self.value(site, head, one.by), None, head)
        else:
            raise unknown("node or edge to ablate", one.target, (*nodes[:-1], *edges))

    def interchange(self, one: Interchange) -> None:
        site = self.site(one.site)
        self.head(site, one.head)
        value = self.run(one.source, site.name)
        if one.head is not None:
            value = value.select(site.axes.index("head"), one.head)
        self.replace(one.site, value, one.positions, one.head)

    def subspace(self, one: Subspace) -> None:
        site = self.site(one.site)
        self.head(site, one.head)
        width = site.sizes[-1]
        directions = one.directions
        if width is None or (one.head is not None and site.axes.index("head") != 2):
            raise InputError(f"{one.site} has no fixed width, so it has no subspaces; choose another site")
        if directions.dim() != 2 or directions.shape[1] != width or not bool(torch.isfinite(directions).all()):
            raise InputError(f"directions must be finite, of shape [k, {width}], got {tuple(directions.shape)}")
        columns, values, _ = torch.linalg.svd(directions.to(torch.float64).T, full_matrices=False)
        basis = columns[:, values > values.max() * 1e-12] if values.numel() else columns
        projector = (basis @ basis.T).to(torch.float32)
        axes = tuple(axis for axis in site.axes if one.head is None or axis != "head")
        value = self.constant(self.value(one.site, one.head, one.by), axes)
        edit = SiteEdit("project", value, self.constant(projector), one.head)
        self.rewriting.sites.setdefault(one.site, []).append(edit)

    def replace(self, name: str, value: Tensor, positions: tuple[int, ...] | None, head: int | None) -> None:
        """Where the mask holds, the site takes the value (which lacks the head axis if there is a head)."""
        site = self.sites[name]
        shape = [1] * len(site.axes)
        mask = torch.ones(shape, dtype=torch.bool)
        if head is not None:
            axis = site.axes.index("head")
            value = value.unsqueeze(axis)
            size = site.sizes[axis]
            assert size is not None
            mask = mask & _one_hot_axis([head], size, axis, len(shape))
        if positions is not None:
            along = [i for i, kind in enumerate(site.axes) if kind in ("pos", "query")]
            if not along:
                raise InputError(f"{name} has no positions; leave positions out")
            axis = along[0]
            length = value.shape[axis]
            if bad := [place for place in positions if not -length <= place < length]:
                raise InputError(f"position {bad[0]} is outside the source's {length} positions")
            mask = mask & _one_hot_axis([place % length for place in positions], length, axis, len(shape))
        edit = SiteEdit("replace", self.constant(value, site.axes), self.constant(mask, site.axes), None)
        self.rewriting.sites.setdefault(name, []).append(edit)

    def value(self, name: str, head: int | None, by: Replacement) -> Tensor:
        """The replacement's values at a site (at one head, without that axis), with as many dimensions as it."""
        site = self.sites[name]
        axes = [axis for axis in site.axes if head is None or axis != "head"]
        sizes = [size for axis, size in zip(site.axes, site.sizes, strict=True) if head is None or axis != "head"]
        match by:
            case Zero():
                return torch.zeros([1 if size is None else size for size in sizes])
            case Given(values):
                if not isinstance(values, Tensor) or not bool(torch.isfinite(values).all()):
                    raise InputError(f"the values given for {name} must be a finite tensor")
                values = values.detach().to(torch.float32)
                values = values.reshape((1,) * (len(axes) - values.dim()) + tuple(values.shape))
                fits = len(values.shape) == len(axes)
                if not fits or any(s not in (None, v) for s, v in zip(sizes, values.shape, strict=True)):
                    raise InputError(f"the values given for {name} must have axes {axes}, got {tuple(values.shape)}")
                return values
            case Resample(tokens) | Mean(tokens):
                found = self.run(tokens, name)
                found = found if head is None else found.select(site.axes.index("head"), head)
                if isinstance(by, Resample):
                    return found
                lengthwise = [i for i, axis in enumerate(axes) if axis in ("batch", "pos") and not by.per_position]
                return found.mean(dim=lengthwise or [0], keepdim=True)
        raise InputError(f"a replacement is Zero, Mean, Resample or Given, got {by!r}")

    def run(self, tokens: Tensor, site: str) -> Tensor:
        key = (id(tokens), site)
        if key not in self.runs:
            if isinstance(tokens, Tensor) and tokens.numel() == 0:
                raise InputError("source tokens must have at least one sequence, got none")
            with torch.no_grad():
                self.runs[key] = self.base.run_with_cache(tokens, site)[1][site]
        return self.runs[key]

    def constant(self, value: Tensor, axes: tuple[str, ...] | None = None) -> str:
        name = f"constant{len(self.rewriting.constants)}"
        self.rewriting.constants[name] = value.detach().clone()
        if axes is not None:
            self.axes[name] = axes
        return name

    def site(self, name: str) -> Site:
        if name not in self.sites:
            raise unknown("site", name, tuple(self.sites))
        return self.sites[name]

    def head(self, site: Site, head: int | None) -> None:
        heads = dict(zip(site.axes, site.sizes, strict=True)).get("head")
        if head is not None and (heads is None or not 0 <= head < heads):
            raise InputError(f"{site.name} has {heads or 'no'} heads; there is no head {head!r}")


def written_at(node: str, config: TransformerConfig) -> tuple[str, int | None]:
    """The site that holds a node's output, and the head if the node is one."""
    if node == INPUT:
        return input_site(config), None
    if place := parse_head(node):
        return f"blocks.{place[0]}.attn.hook_result", place[1]
    return f"blocks.{parse_mlp(node)}.hook_mlp_out", None


def _one_hot_axis(places: list[int], size: int, axis: int, dims: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[places] = True
    return mask.view([size if i == axis else 1 for i in range(dims)])
