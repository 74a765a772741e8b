"""Labels of words by a deterministic machine: what a proof about a task reads in place of its rule."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .automata import MAX_STATES, Automaton
from .errors import InputError

State = TypeVar("State", bound=Hashable)
NO_LABEL = -1


@dataclass(frozen=True, eq=False)
class LabelMachine:
    """A complete deterministic automaton (a Moore machine): a word's label is that of the state it ends in.

    `transitions[state, token id]` is the next state (int32), the start is state 0; `labels[state]` is an index into
    the outputs, or -1: a word that ends there has no label, and nothing decoded is right. `last_first`: it reads the
    last token before the others, so that it knows what to look for (induction's labels take so few states only then).
    """

    transitions: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int64]
    last_first: bool = False

    def run(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Labels [batch] of words of token ids [batch, n]."""
        states = np.zeros(len(ids), dtype=np.int32)
        for column in np.roll(ids, 1, axis=1).T if self.last_first else ids.T:
            states = self.transitions[states, column]
        return np.asarray(self.labels[states])

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`: `proofs/SPECIFICATION.md`, section 3."""
        order: dict[str, object] = {"last_first": True} if self.last_first else {}
        return {"transitions": self.transitions.tolist(), "labels": self.labels.tolist(), **order}

    def ending(self, token: int, label: int) -> Automaton:
        """The words u such that u followed by `token` has this label; minimal. For machines that read from the left."""
        assert not self.last_first
        accepting = self.labels[self.transitions[:, token]] == label
        return Automaton(self.transitions, accepting).minimised()


def build_machine(
    start: State,
    step: Callable[[State, int], State],
    label: Callable[[State], int],
    n_symbols: int,
    last_first: bool = False,
) -> LabelMachine:
    """The machine whose states are what `step` reaches from `start`. Raises `InputError` beyond MAX_STATES."""
    order: list[State] = [start]
    place = {start: 0}
    rows: list[Sequence[int]] = []
    for state in order:
        row = []
        for symbol in range(n_symbols):
            target = step(state, symbol)
            if target not in place:
                if len(order) >= MAX_STATES:
                    raise InputError(f"a label machine of more than {MAX_STATES} states; take a smaller task")
                place[target] = len(order)
                order.append(target)
            row.append(place[target])
        rows.append(row)
    labels = np.array([label(state) for state in order], dtype=np.int64)
    return LabelMachine(np.array(rows, dtype=np.int32), labels, last_first)
