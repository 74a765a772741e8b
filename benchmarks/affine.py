"""Affine bounds of trained models' logits over balls and token sets, beside auto_LiRPA's (`peer_lirpa.json`)."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .affine_models import CONFIGS, LENGTH, VOCAB, trained
from .isolation import Failure, each_apart
from .options import Options
from .peer_lirpa import RECORD, REGIONS, WORD
from .report import Cell, Figure, Section, Table, seconds_text

if TYPE_CHECKING:
    from torch import Tensor

    from certiformer.models import Transformer

REPEATS = 5
STEPS = 20
SAMPLES = 4000
SECONDS = 600.0
SHARE = 0.1
"""Of alpha-CROWN's CPU time."""
ROUNDING = 1e-9
"""What float64 may be off in the values that are reached, relative to the largest."""


def region_of(name: str) -> Any:
    """A region of `peer_lirpa.REGIONS`."""
    import certiformer as cf

    if name.startswith("ball"):
        return cf.EmbeddingBall(WORD, float(name.split()[1]))
    free = LENGTH if name == "all free" else 1
    return cf.TokenSets(range(VOCAB) if i < free else (token,) for i, token in enumerate(WORD))


def logits(model: Transformer, x: Tensor) -> Tensor:
    """Logits in float64 at embedded streams x [batch, pos, d_model]."""
    import torch

    from certiformer.models import program as ops
    from certiformer.models.execution import RULES, Run

    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    run = Run(torch.zeros(x.shape[:2], dtype=torch.int64), weights.__getitem__)
    for operation in model.program:
        match operation:
            case ops.Embed():
                run.values[operation.output] = x
            case ops.Position():
                run.values[operation.output] = torch.zeros_like(x)
            case _:
                run.values[operation.output] = RULES[type(operation)](operation, run)
    return run.values["logits"]


def reached(model: Transformer, region: Any) -> tuple[Tensor, Tensor]:
    """Least and greatest logits [pos, logit]: of all words; or found in a ball by gradient ascent for each logit, at
    corners and inside (so at most the true range: a ratio to it is not under-stated)."""
    import torch

    embed, positions = (model.parameter(x).detach().double() for x in ("embed.W_E", "pos_embed.W_pos"))
    seen: list[tuple[Tensor, Tensor]] = []

    def see(x: Tensor) -> None:
        with torch.no_grad():
            y = logits(model, x)
        seen.append((y.amin(0), y.amax(0)))

    if hasattr(region, "sets"):
        for words in torch.cartesian_prod(*map(torch.tensor, region.sets)).split(8192):
            see(embed[words] + positions)
    else:
        centre, eps = embed[list(region.tokens)] + positions, region.eps * (1 - 2.0**-30)
        generator = torch.Generator().manual_seed(0)
        for number in range(8):
            share = 2 * torch.rand(SAMPLES // 8, *centre.shape, dtype=torch.float64, generator=generator) - 1
            see(centre + eps * (share.sign() if number % 2 else share))
        outputs = LENGTH * VOCAB
        for sign in (1.0, -1.0):
            d = torch.zeros(outputs, *centre.shape, dtype=torch.float64)
            for step in range(STEPS):
                x = (centre + eps * d).requires_grad_(True)
                y = logits(model, x).reshape(outputs, outputs).diagonal().sum()
                d = (d + sign * 2 / (step + 1) * torch.autograd.grad(y, x)[0].sign()).clamp(-1, 1)
                see(centre + eps * d)
    return torch.stack([x[0] for x in seen]).amin(0), torch.stack([x[1] for x in seen]).amax(0)


def bound_one(name: str, region_name: str) -> dict[str, Any]:
    """One model and region: the reached width, ours, the CPU time, and by how much a reached value is outside."""
    import torch

    import certiformer as cf

    model, region = trained(name), region_of(region_name)
    low, high = reached(model, region)
    cpu = []
    for _ in range(REPEATS):
        start = time.process_time()
        found = cf.output_bounds(model, region)
        cpu.append(time.process_time() - start)
    whole = cf.output_bounds(model, region, leaves=1)
    outside = float(torch.maximum(found.low - low, high - found.high).max())
    return {
        "weights": model.weights_sha256(),
        "reached": float((high - low).mean()),
        "width": float((found.high - found.low).mean()),
        "whole": float((whole.high - whole.low).mean()),
        "outside": outside / float(torch.maximum(low.abs(), high.abs()).max()),
        "cpu_s": statistics.median(cpu),
    }


def peer(path: Path, name: str, region: str, weights: str, method: str) -> tuple[float | None, float | None]:
    """auto_LiRPA's width (the tighter of its softmax relaxations) and CPU seconds (the faster; a run that was stopped
    counts as long as it was given); None where it has none."""
    cases = [
        case
        for case in json.loads(path.read_text())["cases"]
        if (case["model"], case["region"], case["method"], case["weights"]) == (name, region, method, weights)
    ]
    widths = [case["width"] for case in cases if case.get("width") is not None]
    times = [case["cpu_s"] for case in cases if "cpu_s" in case]
    times += [float(case["error"].split()[2]) for case in cases if case.get("error", "").startswith("stopped after")]
    return min(widths, default=None), min(times, default=None)


def measure(options: Options) -> Section:
    """All models and regions."""
    tasks = [(name, region) for name in (list(CONFIGS)[:1] if options.quick else CONFIGS) for region in REGIONS]
    rows: list[tuple[Cell, ...]] = []
    failed: list[tuple[Cell, ...]] = []
    sound = tighter = finite = faster = timed = 0
    slowest = 0.0
    for (name, region), found in zip(tasks, each_apart(bound_one, tasks, SECONDS), strict=True):
        if isinstance(found, Failure):
            failed.append((name, region, found.why))
            continue
        ours, width = found["width"] / found["reached"], found["width"]
        peers = {
            method: peer(RECORD, name, region, found["weights"], method)
            for method in ("IBP", "CROWN", "CROWN-Optimized")
        }
        sound += math.isfinite(width) and found["outside"] <= ROUNDING
        crown, (_, seconds) = peers["CROWN"][0], peers["CROWN-Optimized"]
        finite, tighter = finite + (crown is not None), tighter + (crown is not None and width < crown)
        timed, faster = (
            timed + (seconds is not None),
            faster + (seconds is not None and found["cpu_s"] <= SHARE * seconds),
        )
        slowest = max(slowest, found["cpu_s"] / seconds if seconds else 0.0)
        ratios = [None if peers[x][0] is None else peers[x][0] / found["reached"] for x in peers]
        whole = found["whole"] / found["reached"]
        rows.append((name, region, found["reached"], ours, whole, *ratios, found["cpu_s"], peers["CROWN"][1], seconds))
        print(f"  {rows[-1]}", flush=True)
    columns = (
        *("model", "region", "reached width", "ours, times that", "not split", "IBP", "CROWN", "alpha-CROWN"),
        *("ours, CPU s", "CROWN, CPU s", "alpha-CROWN, CPU s"),
    )
    tables = [Table("Mean width of the bounds of all logits, over the mean width reached.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Not bounded.", ("model", "region", "why"), tuple(failed)))
    lost = len(tasks) - len(rows)
    total, times = len(tasks), f"{faster} of {timed}; at most 1/{math.floor(1 / slowest)}" if slowest else ""
    slow = seconds_text(max((float(row[-1] or 0) for row in rows), default=0.0))
    figures = (
        Figure(
            "1-2 layers, 1 and 4 heads, with and without MLP and LayerNorm: rows finite, every reached value inside",
            f"{total} of {total}",
            f"{sound} of {total}",
            sound == total,
        ),
        Figure(
            "the same: tighter than CROWN where that is finite",
            "everywhere",
            f"{tighter} of {finite}",
            tighter == finite and not lost,
            "CROWN: the tighter of its two softmax relaxations",
        ),
        Figure(
            "the same: CPU time beside alpha-CROWN's, where that ends",
            f"<= 1/{1 / SHARE:g}",
            times,
            faster == timed and not lost,
            f"{slow} at most",
        ),
    )
    notes = (
        "Models that count equal tokens (vocabulary 8, length 6, d_model 32), trained by `benchmarks.affine_models`; "
        f"regions around the word {list(WORD)}: balls of radius .01 and .1 around the embeddings, the first token "
        "free, all tokens free. Reached: by all words, or by gradient ascent, corners and samples of a ball.",
        "Ours: certiformer.output_bounds, rigorous, float64, one thread (median of five). A region of up to 64 words "
        "is evaluated word by word (in the column `not split` it is not). auto_LiRPA: float32, not outward-rounded, "
        "alpha-CROWN with 20 iterations; empty: NaN or an error (see peer_lirpa.json). "
        "Token regions are relaxed to one-hot boxes there.",
    )
    return Section("affine", "Bounds at any depth", figures, tuple(tables), notes)
