"""How many words of a language make a sum of integer tables non-positive: exact counts by dynamic programming.

For u = u_1..u_m read by a deterministic automaton, and integers b_j(t): min and count over accepted words of
sum_j b_j(u_j), by programs over (automaton state, sum). Sums are kept at a coarser scale, rounded down, so that a
count never misses a word: sum b <= 0 implies sum floor(b / 2^r) <= 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import flint
import numpy as np
import numpy.typing as npt

from ..models.automata import Automaton

Integers = npt.NDArray[np.int64]
UNREACHED = np.iinfo(np.int64).max // 4


@dataclass(frozen=True, eq=False)
class Arrows:
    """An automaton's live part: `moves` lists (from, to, places of tokens in `tokens`, the token ids that occur).

    Tables have a column for each of `tokens`, in this order. States that no accepted word needs are left out.
    """

    n_states: int
    moves: tuple[tuple[int, int, Integers], ...]
    accepting: tuple[int, ...]
    tokens: Integers

    @staticmethod
    def of(automaton: Automaton, letters: Integers) -> Arrows:
        """Of an automaton, with the words over some letters only."""
        useful = automaton.accepting.copy()
        while True:
            wider = useful | useful[automaton.transitions[:, letters]].any(axis=1)
            if (wider == useful).all():
                break
            useful = wider
        moves = []
        for state in np.flatnonzero(useful).tolist():
            targets = automaton.transitions[state, letters]
            for target in np.unique(targets[useful[targets]]).tolist():
                moves.append((state, target, letters[targets == target]))
        tokens = np.unique(np.concatenate([some for _, _, some in moves] or [letters[:0]]))
        placed = tuple((source, target, np.searchsorted(tokens, some)) for source, target, some in moves)
        return Arrows(automaton.n_states, placed, tuple(np.flatnonzero(automaton.accepting).tolist()), tokens)

    def size(self, m: int) -> int:
        """The number of accepted words of length m."""
        counts = [0] * self.n_states
        counts[0] = 1
        for _ in range(m):
            following = [0] * self.n_states
            for source, target, tokens in self.moves:
                following[target] += counts[source] * len(tokens)
            counts = following
        return sum(counts[state] for state in self.accepting)

    def least(self, tables: Integers) -> Integers:
        """[batch]: the least sum over accepted words of length m, from tables [batch, m, token]."""
        batch, m, _ = tables.shape
        best = np.full((batch, self.n_states), UNREACHED)
        best[:, 0] = 0
        for j in range(m):
            following = np.full_like(best, UNREACHED)
            for source, target, tokens in self.moves:
                step = np.minimum(best[:, source] + tables[:, j, tokens].min(axis=1), UNREACHED)
                following[:, target] = np.minimum(following[:, target], step)
            best = following
        return np.asarray(best[:, list(self.accepting)].min(axis=1, initial=UNREACHED))

    def count_not_above(self, table: Integers, bound: int, bins: int) -> int:
        """At least the number of accepted words of length m with sum <= bound, from a table [m, token].

        Sums are told apart at `bins` levels or fewer; with enough levels the count is exact.
        """
        m = len(table)
        low = table.min(axis=1)
        room = bound - int(low.sum())
        if room < 0:
            return 0
        drop = max(0, (room // max(1, bins)).bit_length())
        shifted = (table - low[:, None]) >> drop
        levels = (room >> drop) + 1
        state = [flint.fmpz_poly() for _ in range(self.n_states)]
        state[0] = flint.fmpz_poly([1])
        for j in range(m):
            following = [flint.fmpz_poly() for _ in range(self.n_states)]
            for source, target, tokens in self.moves:
                if state[source]:
                    steps = shifted[j, tokens]
                    histogram = flint.fmpz_poly(np.bincount(steps[steps < levels], minlength=1).tolist())
                    following[target] += state[source].mul_low(histogram, levels)
            state = following
        return int(sum((int(sum(state[s].coeffs(), flint.fmpz(0))) for s in self.accepting), 0))
