"""Classes of the positions of a word graph for which functions are bounded together (`path_bounds`)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from .path_means import Keys, Prefixes, Weights
from .word_graph import WordGraph


class Place:
    """Some classes, each of a position, the last positions first; and what is found once for all functions there."""

    def __init__(self, graph: WordGraph, tokens: list[Tensor], positions: Tensor, classes: Tensor) -> None:
        self.graph, self.all_tokens, self.positions, self.classes = graph, tokens, positions, classes
        unique, counts = torch.unique_consecutive(positions, return_counts=True)
        self.groups = list(zip(unique.tolist(), torch.split(classes, counts.tolist()), strict=True))
        self.tokens = torch.cat([tokens[i][rows] for i, rows in self.groups])
        self.keys: dict[bool, Keys] = {}
        self.weights: dict[int, Weights] = {}

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def prefixes(self) -> Prefixes:
        return Prefixes.of(self.graph, self.positions, self.classes)

    def keys_of(self, layer: int) -> Keys:
        """In layer 0 the keys are of the tokens."""
        first = layer == 0
        if first not in self.keys:
            self.keys[first] = Keys.of(self.prefixes, self.all_tokens if first else None)
        return self.keys[first]

    def part(self, rows: Tensor) -> Place:
        if len(rows) == len(self):
            return self
        return Place(self.graph, self.all_tokens, self.positions[rows], self.classes[rows])
