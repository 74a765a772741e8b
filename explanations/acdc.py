"""ACDC (Conmy et al. 2023): cut edges one after the other, from the output back, unless that does harm."""

from __future__ import annotations

import math

import torch

from ..models.circuits import OUTPUT, Circuit
from ..models.errors import InputError
from .graph_runs import Progress
from .pairs import Setup
from .scored import ScoredCircuit


def acdc(setup: Setup, *, threshold: float, progress: Progress | None = None) -> ScoredCircuit:
    """Readers from `logits` back to the first layer, of each the writers from the latest to `input`: an edge is cut
    for good if the mean metric gets worse by less than `threshold` by it. Readers that reach `logits` no more lose all
    their edges.

    The result's `chosen` is the circuit; its scores are by how much the metric got worse at the edge's turn (NaN for
    edges that were not tried, because cutting them changes nothing). Raises `InputError` for a bad threshold.
    """
    if not math.isfinite(threshold):
        raise InputError(f"threshold must be a finite number, got {threshold!r}")
    layout, metric = setup.layout, setup.measured
    chunks = list(setup.chunks(keep=True))
    cut = torch.zeros(layout.n_rows, len(layout.writers), dtype=torch.bool)
    scores = torch.full((len(layout.edges),), math.nan, dtype=torch.float64)

    def mean() -> float:
        total = sum(float(setup.cut_values(chunk, cut).double().sum()) for chunk in chunks)
        return total / len(setup.pairs)

    current, reaching = mean(), {OUTPUT}
    for place in reversed(range(len(layout.edges))):
        edge, (row, column) = layout.edges[place], layout.places[place]
        cut[row, column] = True
        if edge.dst in reaching:
            after = mean()
            scores[place] = metric.damage(current, after)
            if float(scores[place]) < threshold:
                current = after
            else:
                cut[row, column] = False
                reaching.add(edge.src)
        if progress:
            progress(len(layout.edges) - place, len(layout.edges), str(edge))
    kept = [edge for edge, (row, column) in zip(layout.edges, layout.places, strict=True) if not cut[row, column]]
    chosen = Circuit.from_edges(kept, setup.ablation)
    details = {**setup.details(), "threshold": repr(threshold)}
    return ScoredCircuit(setup.model.config, scores, "acdc", setup.ablation, details, chosen, setup.means)
