"""Attribution patching (EAP) and its integrated form (EAP-IG): the effect of every edge from a few gradients.

Of an edge from `u` to a reader `v`: the gradient of the metric at v's input, times the stand-in for u's output less
the output itself, summed over positions and averaged over the pairs. It estimates by how much the metric changes when
that contribution alone is replaced. Syed et al. 2023 (EAP); Hanna, Pezzelle and Belinkov 2024 (EAP-IG).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ..models import program as ops
from ..models.errors import InputError
from ..models.execution import RULES, Run
from ..models.program import LOGITS, input_site
from .graph_runs import Layout, Progress, Reader
from .pairs import Chunk, Setup
from .scored import ScoredCircuit

Path = Literal["inputs", "activations"]
Gradients = dict[str, Tensor]


def eap(setup: Setup, *, progress: Progress | None = None) -> ScoredCircuit:
    """Edge attribution patching: one forward and one backward pass for all edges. The gradient is at the clean run."""
    return _scored(setup, "eap", progress, lambda chunk: _along(setup, chunk, ((1.0, None),)))


def eap_ig(setup: Setup, *, steps: int = 5, path: Path = "inputs", progress: Progress | None = None) -> ScoredCircuit:
    """EAP with the gradient averaged over `steps` points k / steps, k = 1 to steps, from the stand-in to the clean run.

    `path`: `inputs`: what `input` writes goes from its stand-in to its clean value, and everything follows.
    `activations`: for the edges out of each node its own output goes this way (the heads of a layer together), the
    inputs staying clean. One step is EAP. Raises `InputError` for fewer.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be an integer of at least 1, got {steps!r}")
    if path not in get_args(Path):
        raise InputError(f"path must be 'inputs' or 'activations', got {path!r}")
    points = tuple(step / steps for step in range(1, steps + 1))
    if path == "inputs":
        moves = tuple((point, input_site(setup.model.config)) for point in points)
        return _scored(setup, "eap-ig", progress, lambda chunk: _along(setup, chunk, moves))

    def scores(chunk: Chunk) -> Tensor:
        table = torch.zeros(setup.layout.n_rows, len(setup.layout.writers), dtype=torch.float64)
        for site, columns in _groups(setup.layout):
            table[:, columns] = _along(setup, chunk, tuple((point, site) for point in points))[:, columns]
        return table

    return _scored(setup, "eap-ig-activations", progress, scores)


def _scored(setup: Setup, method: str, progress: Progress | None, scores: Callable[[Chunk], Tensor]) -> ScoredCircuit:
    layout, total = setup.layout, len(setup.pairs)
    table = torch.zeros(layout.n_rows, len(layout.writers), dtype=torch.float64)
    done = 0
    for chunk in setup.chunks():
        table += scores(chunk)
        done += len(chunk.clean)
        if progress:
            progress(done, total, "pairs")
    found = layout.vector(table / total)
    return ScoredCircuit(setup.model.config, found, method, setup.ablation, setup.details(), means=setup.means)


def _along(setup: Setup, chunk: Chunk, moves: tuple[tuple[float, str | None], ...]) -> Tensor:
    """float64 [reader, writer]: mean gradients over the moves, each a point between stand-in (0) and clean (1) and the
    site that goes there, times the stand-ins less the outputs; summed over the chunk."""
    layout = setup.layout
    sums: Gradients = {}
    for point, site in moves:
        moved = {} if site is None else {site: _between(chunk, layout, site, point)}
        for name, gradient in _gradients(setup, chunk, moved).items():
            sums[name] = sums[name].add_(gradient) if name in sums else gradient
    difference = chunk.stand_in - chunk.outputs
    table = torch.zeros(layout.n_rows, len(layout.writers), dtype=torch.float64)
    for name, gradient in sums.items():
        reader = layout.readers[name]
        flat = difference[: reader.before].reshape(reader.before, -1)
        product = gradient.reshape(len(gradient), -1) @ flat.T
        table[list(reader.rows), : reader.before] = (product / len(moves)).to("cpu", torch.float64)
    return table


def _groups(layout: Layout) -> Iterator[tuple[str, list[int]]]:
    """What is moved at once: the site, and the writers whose outputs are in it."""
    yield input_site(layout.config), [0]
    place = 1
    for index, layer in enumerate(layout.config.layers):
        if layer.n_heads:
            yield f"blocks.{index}.hook_attn_out", list(range(place, place + layer.n_heads))
        place += layer.n_heads
        if layer.d_mlp:
            yield f"blocks.{index}.hook_mlp_out", [place]
            place += 1


def _between(chunk: Chunk, layout: Layout, site: str, point: float) -> Tensor:
    columns = dict(_groups(layout))[site]
    clean, stand_in = (table[columns].sum(dim=0) for table in (chunk.outputs, chunk.stand_in))
    moved = stand_in + point * (clean - stand_in)
    if site.endswith("hook_attn_out"):
        moved = moved + chunk.model.parameter(site.replace("hook_attn_out", "attn.b_O")).detach()
    return moved


def _gradients(setup: Setup, chunk: Chunk, moved: Mapping[str, Tensor]) -> Gradients:
    """Of the metric's sum over the chunk, with the moved sites: by reader, [row, batch, pos, d_model].

    One backward pass to what the readers' linear maps give; from there to what each row reads, by hand: heads that
    read the same stream share its values, so autograd has no gradient for each of them.
    """
    model, layout = chunk.model, setup.layout
    run = Run(chunk.clean, lambda name: model.parameter(name).detach())
    start, last = input_site(layout.config), _last_stream(layout)
    taps: dict[str, Tensor] = {}
    with torch.enable_grad():
        for operation in model.program:
            site = operation.output
            if isinstance(operation, ops.Results):
                continue
            value = moved[site] if site in moved else RULES[type(operation)](operation, run)
            if site == start:
                value = value.detach().clone().requires_grad_()
            run.values[site] = value
            if site in layout.readers and site != LOGITS:
                taps[site] = value
        taps[LOGITS] = run.values[last]
        measured = setup.values(chunk, run.values[LOGITS]).sum()
        found = torch.autograd.grad(measured, list(taps.values()), allow_unused=True)
    gradients: Gradients = {}
    for site, gradient in zip(taps, found, strict=True):
        if gradient is None:  # nothing that is measured depends on it: it is before what was moved
            continue
        reader, eps = layout.readers[site], layout.config.layer_norm
        gradients[site] = gradient.unsqueeze(0) if site == LOGITS else _read(run, reader, gradient, eps)
    return gradients


def _last_stream(layout: Layout) -> str:
    layers = layout.config.n_layers
    return f"blocks.{layers - 1}.hook_resid_post" if layers else input_site(layout.config)


def _read(run: Run, reader: Reader, gradient: Tensor, eps: float | None) -> Tensor:
    """From the gradient at a linear map's output to those at its rows' inputs, [row, batch, pos, d_model]."""
    block = f"blocks.{reader.layer}"
    if reader.slot:
        back = torch.einsum("bihe,hde->hbid", gradient, run.parameter(f"{block}.attn.W_{reader.slot.upper()}"))
    else:
        back = (gradient @ run.parameter(f"{block}.mlp.W_in").T).unsqueeze(0)
    if reader.norm is None:
        return back
    assert eps is not None
    stream = run.values[f"{block}.hook_resid_pre" if reader.slot else f"{block}.hook_resid_mid"].detach()
    return _through_norm(stream, back * run.parameter(f"{reader.norm}.w"), eps)


def _through_norm(x: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """The transposed Jacobian of (x - mean) / sqrt(variance + eps) at x, times the gradient."""
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    unit = centred / deviation
    along = (gradient * unit).mean(dim=-1, keepdim=True)
    return (gradient - gradient.mean(dim=-1, keepdim=True) - unit * along) / deviation
