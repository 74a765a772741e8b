"""A score for every edge of a model, and the circuits that scores select."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..models.circuits import INPUT, OUTPUT, Ablation, Circuit, Edge, all_edges
from ..models.config import TransformerConfig
from ..models.errors import InputError
from ..models.files import parse_json, write_atomically
from ..models.means import MeanAblation

FORMAT = "certiformer.scored-circuit/1"


@dataclass(frozen=True, eq=False)
class ScoredCircuit:
    """Scores [edge], float64, in the order of `all_edges(config)`; NaN where an edge has none.

    `method` and `ablation`: how they were found; `details`: the metric, the pairs and whatever else a method or a file
    tells. `chosen`: the circuit that the method or the file itself selects, if it does. `means`: the stored vectors of
    mean ablation. Raises `InputError` for another number of scores, and for a circuit of another model.
    """

    config: TransformerConfig
    scores: Tensor
    method: str
    ablation: Ablation
    details: Mapping[str, str] = field(default_factory=dict)
    chosen: Circuit | None = None
    means: MeanAblation | None = None

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.edges),):
            raise InputError(
                f"the model has {len(self.edges)} edges and needs as many scores, got shape {tuple(self.scores.shape)}"
            )
        object.__setattr__(self, "scores", self.scores.detach().to("cpu", torch.float64))
        if self.chosen is not None:
            self.chosen.validate(self.config)
        if self.means is not None:
            self.means.validate(self.config)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        return all_edges(self.config)

    @cached_property
    def by_edge(self) -> dict[str, float]:
        """Score by name; edges without a score are left out."""
        pairs = zip(self.edges, self.scores.tolist(), strict=True)
        return {str(edge): score for edge, score in pairs if not math.isnan(score)}

    @staticmethod
    def from_edges(
        config: TransformerConfig,
        scores: Mapping[str, float],
        method: str,
        ablation: Ablation,
        *,
        details: Mapping[str, str] | None = None,
        chosen: Iterable[str] | None = None,
    ) -> ScoredCircuit:
        """From scores by name (others have none). Raises `InputError` naming edges that the model does not have."""
        edges = tuple(map(str, all_edges(config)))
        Circuit.from_edges(scores).validate(config)
        table = torch.tensor([scores.get(edge, math.nan) for edge in edges], dtype=torch.float64)
        circuit = None if chosen is None else Circuit.from_edges(chosen, ablation)
        return ScoredCircuit(config, table, method, ablation, details or {}, circuit)

    def ranked(self, absolute: bool = True) -> tuple[str, ...]:
        """The scored edges, the highest (in magnitude) first; ties in the order of computation."""
        found = self.by_edge
        return tuple(sorted(found, key=lambda edge: -(abs(found[edge]) if absolute else found[edge])))

    def circuit(
        self, *, top: int | None = None, threshold: float | None = None, absolute: bool = True, greedy: bool = True
    ) -> Circuit:
        """The circuit of the `top` edges, or of those with a score of at least `threshold`, pruned.

        `absolute`: by magnitude. `greedy`, as EAP-IG does: from `logits` down, always the highest scored edge into
        what is in the circuit already, so that nothing has to be pruned at its lower end; otherwise simply the highest.
        What is then on no path from `input` to `logits` is left out: there may be fewer than `top` edges. Without
        `top` and `threshold`: the method's own choice. Raises `InputError` if it has none, and if both are given.
        """
        if top is None and threshold is None:
            if self.chosen is None:
                raise InputError(f"{self.method} gives scores only: pass top=number of edges or threshold=least score")
            return self.chosen
        if top is not None and threshold is not None:
            raise InputError("pass top= or threshold=, not both")
        found = self.by_edge
        if top is not None:
            if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= len(found):
                raise InputError(f"top must be 1 to {len(found)}, the number of scored edges, got {top!r}")
            kept = self._greedy(top, absolute) if greedy else self.ranked(absolute)[:top]
        else:
            assert threshold is not None
            if math.isnan(threshold):
                raise InputError("threshold must be a number, got NaN")
            kept = tuple(e for e, score in found.items() if (abs(score) if absolute else score) >= threshold)
        return Circuit.from_edges(kept, self.ablation).pruned()

    def _greedy(self, top: int, absolute: bool) -> tuple[str, ...]:
        into: dict[str, list[Edge]] = {}
        for edge in self.edges:
            into.setdefault(edge.dst, []).append(edge)
        order = {str(edge): place for place, edge in enumerate(self.edges)}
        queue: list[tuple[float, int, Edge]] = []
        reached: set[str] = set()

        def reach(node: str) -> None:
            if node in reached or node == INPUT:
                return
            reached.add(node)
            for edge in into.get(node, []):
                score = self.by_edge.get(str(edge))
                if score is not None:
                    heapq.heappush(queue, (-(abs(score) if absolute else score), order[str(edge)], edge))

        reach(OUTPUT)
        kept: list[str] = []
        while queue and len(kept) < top:
            edge = heapq.heappop(queue)[2]
            kept.append(str(edge))
            reach(edge.src)
        return tuple(kept)

    def with_chosen(self, circuit: Circuit) -> ScoredCircuit:
        """The same scores, with a circuit selected."""
        return replace(self, chosen=circuit)

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`, exact; edges without a score are left out."""
        return {
            "format": FORMAT,
            "config": self.config.to_json(),
            "method": self.method,
            "ablation": self.ablation,
            "details": dict(self.details),
            "scores": {edge: _number(score) for edge, score in self.by_edge.items()},
            "circuit": None if self.chosen is None else self.chosen.to_json(),
            "means": None if self.means is None else self.means.to_json(),
        }

    @staticmethod
    def from_json(data: object) -> ScoredCircuit:
        """The inverse of `to_json`. Raises `InputError`."""
        keys = {"format", "config", "method", "ablation", "details", "scores", "circuit", "means"}
        if not isinstance(data, dict) or set(data) != keys or data["format"] != FORMAT:
            raise InputError(f"a scored circuit is a JSON object with the keys {sorted(keys)}, got {str(data)[:200]}")
        scores, details = data["scores"], data["details"]
        if not isinstance(scores, dict) or not isinstance(details, dict) or not isinstance(data["method"], str):
            raise InputError("a scored circuit has a method's name, and objects of scores and details")
        if not all(isinstance(value, str) for value in details.values()):
            raise InputError("the details of a scored circuit are texts")
        config = TransformerConfig.from_json(data["config"])
        numbers = {edge: _score(edge, score) for edge, score in scores.items()}
        found = ScoredCircuit.from_edges(config, numbers, data["method"], data["ablation"], details=details)
        chosen = None if data["circuit"] is None else Circuit.from_json(data["circuit"])
        means = None if data["means"] is None else MeanAblation.from_json(data["means"])
        return replace(found, chosen=chosen, means=means)

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically. Raises `InputError`."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False).encode())

    @staticmethod
    def load(path: str | Path) -> ScoredCircuit:
        """What `save` wrote. Raises `InputError`."""
        try:
            data = parse_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path} as a scored circuit: {error}") from None
        return ScoredCircuit.from_json(data)

    def to_text(self, most: int = 30) -> str:
        """A table of the highest scored edges; `*` marks those in the circuit, if one is selected."""
        ranked = self.ranked()
        kept = self.chosen.edges if self.chosen is not None else frozenset()
        width = max((len(edge) for edge in ranked[:most]), default=4)
        lines = [f"{self.method}, {self.ablation} ablation: {len(ranked)} of {len(self.edges)} edges scored"]
        for edge in ranked[:most]:
            mark = " *" if edge in kept else ""
            lines.append(f"  {edge:<{width}}  {self.by_edge[edge]:>12.5g}{mark}")
        if len(ranked) > most:
            lines.append(f"  ... and {len(ranked) - most} more")
        return "\n".join(lines)


def _number(score: float) -> float | str:
    """JSON has no infinity: `inf` or `-inf` as text."""
    return score if math.isfinite(score) else str(score)


def _score(edge: str, score: object) -> float:
    if score in ("inf", "-inf"):
        return float(str(score))
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise InputError(f"the score of {edge} must be a number, got {score!r}")
    return float(score)
