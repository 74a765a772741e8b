"""Deterministic finite automata over token indices: construction, minimisation, boolean operations, counting."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .errors import InputError

MAX_STATES = 100_000
State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Automaton:
    """A complete deterministic automaton; the start is state 0.

    `transitions[state, symbol]` is the next state (int32); `accepting[state]` is bool.
    What `build` and `minimised` return is canonical: two of them accept the same words iff they are identical.
    """

    transitions: npt.NDArray[np.int32]
    accepting: npt.NDArray[np.bool_]

    @property
    def n_states(self) -> int:
        return int(self.transitions.shape[0])

    @property
    def n_symbols(self) -> int:
        return int(self.transitions.shape[1])

    def same(self, other: Automaton) -> bool:
        """Identical tables: for minimal automata, the same language."""
        return np.array_equal(self.transitions, other.transitions) and np.array_equal(self.accepting, other.accepting)

    def accepts(self, words: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For words [batch, length] of symbols: whether each is accepted."""
        states = np.zeros(words.shape[0], dtype=np.int32)
        for column in words.T:
            states = self.transitions[states, column]
        return self.accepting[states]

    def minimised(self) -> Automaton:
        """The smallest automaton of the same language (Moore's partition refinement), states in breadth-first order."""
        reachable = self._reachable()
        transitions = self.transitions.astype(np.int64)
        if len(reachable) < len(transitions):
            transitions = np.searchsorted(reachable, transitions[reachable])
        accepting = self.accepting[reachable]
        start = 0
        blocks = accepting.astype(np.int64)
        count = len(np.unique(blocks))
        while True:
            small = blocks.astype(np.uint8 if count <= 256 else np.int64)
            signature = np.column_stack((small, small[transitions]))
            place: dict[bytes, int] = {}
            blocks = np.array([place.setdefault(row.tobytes(), len(place)) for row in signature], dtype=np.int64)
            refined = len(place)
            if refined == count:
                break
            count = refined
        first = np.zeros(count, dtype=np.int64)
        first[blocks[::-1]] = np.arange(len(blocks))[::-1]
        quotient, final = blocks[transitions[first]], accepting[first]
        order, number = [int(blocks[start])], {int(blocks[start]): 0}
        for state in order:
            for target in quotient[state].tolist():
                if target not in number:
                    number[target] = len(order)
                    order.append(target)
        renumber = np.array([number[state] for state in range(count)], dtype=np.int32)
        return Automaton(renumber[quotient[order]].astype(np.int32), final[order])

    def _reachable(self) -> npt.NDArray[np.int64]:
        """The states that some word leads to, ascending (so the start stays state 0)."""
        seen = np.zeros(self.n_states, dtype=bool)
        seen[0] = True
        frontier = np.array([0])
        while frontier.size:
            targets = np.unique(self.transitions[frontier])
            frontier = targets[~seen[targets]]
            seen[frontier] = True
        return np.flatnonzero(seen)

    def complement(self) -> Automaton:
        """All other words, of any length."""
        return Automaton(self.transitions, ~self.accepting)

    def combine(self, other: Automaton, keep: Callable[[bool, bool], bool]) -> Automaton:
        """The words for which `keep(in this, in the other)`, minimised. Raises `InputError` beyond MAX_STATES."""
        left, right = self.transitions.tolist(), other.transitions.tolist()

        def step(state: tuple[int, int], symbol: int) -> tuple[int, int]:
            return left[state[0]][symbol], right[state[1]][symbol]

        def accept(state: tuple[int, int]) -> bool:
            return keep(bool(self.accepting[state[0]]), bool(other.accepting[state[1]]))

        return build((0, 0), step, accept, self.n_symbols)

    def recoded(self, symbols: Sequence[int], n_symbols: int) -> Automaton:
        """The same words with symbol s written `symbols[s]`, over a larger alphabet (other symbols are in no word)."""
        sink = self.n_states
        transitions = np.full((sink + 1, n_symbols), sink, dtype=np.int32)
        transitions[:sink, list(symbols)] = self.transitions
        return Automaton(transitions, np.append(self.accepting, False)).minimised()

    def counts(self, longest: int) -> list[list[int]]:
        """`counts[r][state]`: the exact number of accepted words of length r that are read from the state."""
        arrows: list[list[tuple[int, int]]] = []
        for row in self.transitions:
            targets, multiplicities = np.unique(row, return_counts=True)
            arrows.append(list(zip(targets.tolist(), multiplicities.tolist(), strict=True)))
        table = [[int(accepting) for accepting in self.accepting]]
        for _ in range(longest):
            last = table[-1]
            table.append([sum(many * last[target] for target, many in row if last[target]) for row in arrows])
        return table

    def to_json(self) -> dict[str, object]:
        """`start` (always 0), `accept` (states) and `delta` (rows of states; -1: dead), as in a certificate."""
        alive = self.accepting | (self.transitions != np.arange(self.n_states)[:, None]).any(axis=1)
        alive[0] = True
        renumber = np.where(alive, np.cumsum(alive) - 1, -1)
        return {
            "start": 0,
            "accept": renumber[np.flatnonzero(self.accepting)].tolist(),
            "delta": renumber[self.transitions[alive]].tolist(),
        }

    @staticmethod
    def from_json(data: object, n_symbols: int) -> Automaton:
        """The minimal automaton of such data. Raises `InputError` for anything else."""
        if not isinstance(data, dict) or set(data) != {"start", "accept", "delta"} or data["start"] != 0:
            raise InputError(f"an automaton in JSON has start 0, accept and delta, got {str(data)[:200]}")
        rows, accept = data["delta"], data["accept"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_STATES:
            raise InputError(f"an automaton's delta must have 1 to {MAX_STATES} rows, got {str(rows)[:200]}")
        dead = len(rows)
        for row in rows:
            if not isinstance(row, list) or len(row) != n_symbols or not all(_is_index(t, -1, dead) for t in row):
                raise InputError(f"a row must have {n_symbols} states of -1 to {dead - 1}, got {str(row)[:200]}")
        if not isinstance(accept, list) or not all(_is_index(state, 0, dead) for state in accept):
            raise InputError(f"an automaton's accepting states must be 0 to {dead - 1}, got {str(accept)[:200]}")
        transitions = np.full((dead + 1, n_symbols), -1, dtype=np.int32)
        transitions[:dead] = rows
        transitions[transitions < 0] = dead
        accepting = np.zeros(dead + 1, dtype=bool)
        accepting[accept] = True
        return Automaton(transitions, accepting).minimised()


def _is_index(value: object, least: int, below: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < below


def build(
    start: State, step: Callable[[State, int], State], accept: Callable[[State], bool], n_symbols: int
) -> Automaton:
    """The minimal automaton of a transition function over hashable states. Raises `InputError` beyond MAX_STATES."""
    place: dict[State, int] = {start: 0}
    order: list[State] = [start]
    rows: list[list[int]] = []
    for state in order:
        row = []
        for symbol in range(n_symbols):
            target = step(state, symbol)
            if target not in place:
                if len(order) >= MAX_STATES:
                    raise InputError(
                        f"this language needs more than {MAX_STATES} automaton states; "
                        "use fewer tokens, a smaller depth or shorter sequences"
                    )
                place[target] = len(order)
                order.append(target)
            row.append(place[target])
        rows.append(row)
    accepting = np.array([accept(state) for state in order], dtype=bool)
    return Automaton(np.array(rows, dtype=np.int32).reshape(len(order), n_symbols), accepting).minimised()


def product_automaton(symbols: Iterable[int], n_symbols: int) -> Automaton:
    """All words over the given symbols."""
    inside = set(symbols)
    return build(0, lambda state, symbol: state if symbol in inside else 1, lambda state: state == 0, n_symbols)


def length_automaton(lengths: Iterable[int], n_symbols: int) -> Automaton:
    """All words of the given lengths."""
    wanted = set(lengths)
    last = max(wanted, default=0) + 1
    return build(0, lambda state, _: min(state + 1, last), lambda state: state in wanted, n_symbols)
