"""Activation patching, edge by edge: what replacing one contribution really does to the metric. No approximation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..models.circuits import Circuit
from .graph_runs import Progress
from .pairs import Chunk, Setup
from .scored import ScoredCircuit


def patching(setup: Setup, *, progress: Progress | None = None) -> ScoredCircuit:
    """For each edge the mean over the pairs of the metric with that edge cut, less the metric of the clean run.

    Cost: one run of the model an edge.
    """
    layout = setup.layout
    sums = torch.zeros(len(layout.edges), dtype=torch.float64)
    chunks = list(setup.chunks(keep=True))
    for place, edge in enumerate(layout.edges):
        cut = layout.cut([edge])
        sums[place] = sum(change(setup, chunk, cut) for chunk in chunks)
        if progress:
            progress(place + 1, len(layout.edges), str(edge))
    return ScoredCircuit(
        setup.model.config, sums / len(setup.pairs), "patching", setup.ablation, setup.details(), means=setup.means
    )


def change(setup: Setup, chunk: Chunk, cut: Tensor) -> float:
    """The metric with these edges cut (bool [reader, writer]) less that of the clean run, summed over the chunk."""
    after = setup.cut_values(chunk, cut)
    return float((after.double() - _clean(setup, chunk).double()).sum())


def _clean(setup: Setup, chunk: Chunk) -> Tensor:
    return setup.measured.function(chunk.logits, chunk.logits, chunk.labels)


def effect(setup: Setup, circuit: Circuit | Iterable[str]) -> float:
    """The mean change of the metric when only the circuit is left; of edges given instead: when these are cut."""
    layout = setup.layout
    cut = layout.outside(circuit) if isinstance(circuit, Circuit) else layout.cut(circuit)
    return sum(change(setup, chunk, cut) for chunk in setup.chunks()) / len(setup.pairs)
