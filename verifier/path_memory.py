"""What bounds found for classes, kept for other graphs in which the same paths lead to them.

In a causal model all that holds for the paths through a class depends on the paths up to it alone. So a group of words
and its parts share the bounds of all classes before the split, and of those after it that one part has to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .word_graph import WordGraph

ROOM = 2**26
Rows: TypeAlias = tuple[Tensor, ...]


class Memory:
    """For bounds that agree in all but their graphs. Two generations of at most `room` numbers: the elder is dropped
    when the younger is full."""

    def __init__(self, room: int = ROOM) -> None:
        self.room, self._held = room, 0
        self._numbers: dict[tuple[object, ...], int] = {}
        self._young: dict[tuple[object, ...], Rows] = {}
        self._old: dict[tuple[object, ...], Rows] = {}

    def classes(self, graph: WordGraph) -> list[list[int]]:
        """For each position, [class]: a number that it shares with the classes (of any graph) of the same token and
        state, there, to which the same paths lead."""
        nodes = [self._number(("start", state)) for state in graph.nodes[0][:, 1].tolist()]
        found = []
        for j, edges in enumerate(graph.edges):
            sources, targets = edges.source.tolist(), edges.target.tolist()
            here = [self._number((nodes[s], t)) for s, t in zip(sources, edges.token.tolist(), strict=True)]
            into: list[list[int]] = [[] for _ in graph.nodes[j + 1]]
            for number, target in zip(here, targets, strict=True):
                into[target].append(number)
            states = graph.nodes[j + 1][:, 1].tolist()
            nodes = [self._number(("node", s, *sorted(set(x)))) for s, x in zip(states, into, strict=True)]
            found.append(here)
        return found

    def _number(self, key: tuple[object, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def rows(self, name: tuple[object, ...], numbers: Sequence[int], find: Callable[[Tensor], Rows]) -> Rows:
        """What `find`, given classes, finds for each: [class, ...] each; only asked for those not known yet."""
        keys = [(*name, number) for number in numbers]
        kept = [self._kept(key) for key in keys]
        missing = [place for place, rows in enumerate(kept) if rows is None]
        if missing:
            parts = find(torch.tensor(missing, dtype=torch.int64))
            for at, place in enumerate(missing):
                kept[place] = self._keep(keys[place], tuple(part[at].clone() for part in parts))
        found = [rows for rows in kept if rows is not None]
        return tuple(torch.stack(part) for part in zip(*found, strict=True))

    def _kept(self, key: tuple[object, ...]) -> Rows | None:
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[object, ...], rows: Rows) -> Rows:
        if self._held > self.room:
            self._old, self._young, self._held = self._young, {}, 0
        self._young[key] = rows
        self._held += sum(row.numel() for row in rows)
        return rows
