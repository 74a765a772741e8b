"""How much all weights of the zoo's models may change at once with their proofs still standing."""

from __future__ import annotations

import copy
import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from .options import Options
from .report import Cell, Figure, Section, Table

SHARES = (*(f"max-of-4/{seed}" for seed in range(5)), *(f"max-of-10/{seed}" for seed in range(3)))
LABELS = ("dyck-1-16", "modular-addition-113", "dyck-1-16-layernorm-gelu", "bracket-type-12")
GIVEN_UP = Fraction(1, 1000)
"""Of the share that is proved of the exact weights, so much less is claimed."""
NOTES = (
    "Proved up to: the largest eps, found by bisection and rounded down, such that the claim is proved of every model "
    "whose real weights each differ from the given ones by at most eps times their own magnitude. The engine's word: "
    "these proofs have no certificate that the independent checker verifies again.",
    "An attack breaks it at: signs of gradients on eight inputs of small margin, in float64; but for its rounding, no "
    "radius is larger. The distance between the two columns is what interval arithmetic loses, layer by layer. Of "
    "shares, no attack is made.",
)
SAMPLED = 4096
ATTACKED = 8


def radius_of(name: str, seconds: float = 240.0) -> dict[str, Any]:
    """The radius of one model's claim: its accuracy as proved less a little, or its labels on every input."""
    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.verifier.radius import rounded_down

    found = zoo.load(name)
    claim = cf.Labels(found.model, found.task)
    row: dict[str, Any] = {"claim": "labels", "broken": None}
    if name in SHARES:
        share = cf.accuracy_bounds(found.model, found.task, seconds=120).low - GIVEN_UP
        claim, row["claim"] = claim.at_least(share), f"accuracy >= {math.floor(share * 10**6) / 10**6:.6f}"
    start = time.perf_counter()
    radius = cf.weight_radius(claim, found.task.domain, seconds=seconds)
    row |= {"seconds": time.perf_counter() - start, "inputs": found.task.domain.size(), "eps": 0.0, "engine": "-"}
    if isinstance(radius, cf.WeightRadius):
        row |= {"eps": float(rounded_down(radius.eps)), "engine": radius.setting.engine, "notes": radius.setting.notes}
    if name not in SHARES:
        row["broken"] = broken_at(claim, found.task.domain)
    return row


def broken_at(claim: Any, domain: Any) -> float:
    """The least perturbation, to a tenth, by which an attack was seen to change a label: gradient signs, in float64.

    From those of some inputs that have the least margins for their sensitivity. An upper bound of any radius, but for
    the rounding of float64.
    """
    model, rng = copy.deepcopy(claim.subject.model).double(), np.random.default_rng(0)
    n = max(domain.lengths)
    ids = _ids(claim, domain.unrank(n, rng.integers(domain.size(n), size=SAMPLED)), domain)
    labels = torch.from_numpy(claim.body.machine.run(ids.numpy()))
    with torch.no_grad():
        margins = _margins(model(claim.subject.codec.with_bos(ids)), labels)
    rows = margins.argsort()[:ATTACKED]
    found = math.inf
    for row in rows.tolist():
        word, label = claim.subject.codec.with_bos(ids[row : row + 1]), labels[row : row + 1]
        eps = 1e-5
        while eps < min(found, 1.0) and not _beaten(model, word, label, eps):
            eps *= 1.1
        found = min(found, eps)
    return found


def _ids(claim: Any, words: Any, domain: Any) -> torch.Tensor:
    table = torch.tensor([claim.subject.codec.index[value] for value in domain.vocab])
    return table[torch.from_numpy(words)]


def _margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
    return torch.where(own, logits, -torch.inf).amax(-1) - torch.where(own, -torch.inf, logits).amax(-1)


def _beaten(model: Any, word: torch.Tensor, label: torch.Tensor, eps: float) -> bool:
    near = copy.deepcopy(model)
    for _ in range(3):
        near.zero_grad()
        margin = _margins(near(word), label).sum()
        if float(margin.detach()) < 0:
            return True
        margin.backward()
        with torch.no_grad():
            for weight, parameter in zip(model.parameters(), near.parameters(), strict=True):
                sign = torch.zeros_like(weight) if parameter.grad is None else parameter.grad.sign()
                parameter.copy_(weight - eps * sign * weight.abs())
    with torch.no_grad():
        return float(_margins(near(word), label)) < 0


def measure(options: Options) -> Section:
    """The zoo's models of one layer and one head, by counting; others, by enumeration."""
    rows: list[tuple[Cell, ...]] = []
    radii = []
    for name in ("max-of-4/0", "modular-addition-113") if options.quick else (*SHARES, *LABELS):
        row = radius_of(name)
        radii.append(row["eps"])
        inputs = str(row["inputs"]) if row["inputs"] < 10**9 else f"10^{len(str(row['inputs'])) - 1}"
        rows.append((name, row["claim"], inputs, row["engine"], row["eps"], row["broken"], round(row["seconds"], 1)))
        print(f"  {rows[-1]}", flush=True)
    columns = ("model", "claim", "inputs", "engine", "proved up to", "an attack breaks it at", "seconds")
    positive = sum(eps > 0 for eps in radii)
    figure = Figure(
        "largest weight perturbation under which a proof stands, zoo",
        "reported",
        f"{min(radii):g} to {max(radii):g}",
        positive == len(radii),
        "none",
    )
    return Section(
        "radius", "Weight radii", (figure,), (Table("Relative, all weights at once.", columns, tuple(rows)),), NOTES
    )
