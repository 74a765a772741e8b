"""How many words of a language make a sum of tables non-positive: exact counts by dynamic programming.

For u = u_1..u_m read by a deterministic automaton, and tables b_j(t): min and count over accepted words of
sum_j b_j(u_j), by programs over (automaton state, sum). To be counted, terms are rounded down to integers, at a scale
that is coarse, so that a count never misses a word: sum b <= 0 implies sum floor(b) <= 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import flint
import numpy as np
import numpy.typing as npt

from ..models.automata import Automaton

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
LARGEST_TERM = 48
"""Bits of the largest integers that terms are rounded to."""


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

    def least(self, tables: Floats) -> Floats:
        """[batch]: the least sum over accepted words of length m, from tables [batch, m, token]; infinite if none."""
        batch, m, _ = tables.shape
        best = np.full((batch, self.n_states), np.inf)
        best[:, 0] = 0
        for j in range(m):
            following = np.full_like(best, np.inf)
            for source, target, tokens in self.moves:
                step = best[:, source] + tables[:, j, tokens].min(axis=1)
                following[:, target] = np.minimum(following[:, target], step)
            best = following
        return np.asarray(best[:, list(self.accepting)].min(axis=1, initial=np.inf))

    def count_not_above(self, table: Integers, bound: int) -> int:
        """The number of accepted words of length m with sum <= bound, from a table [m, token]: exact.

        Costs as much as `bound` is greater than the sum of the rows' least entries.
        """
        low = table.min(axis=1, initial=np.iinfo(np.int64).max)
        room = bound - int(low.sum())
        if room < 0:
            return 0
        steps = table - low[:, None]
        state = [flint.fmpz_poly() for _ in range(self.n_states)]
        state[0] = flint.fmpz_poly([1])
        for j in range(len(table)):
            following = [flint.fmpz_poly() for _ in range(self.n_states)]
            for source, target, tokens in self.moves:
                if state[source]:
                    here = steps[j, tokens]
                    histogram = flint.fmpz_poly(np.bincount(here[here <= room], minlength=1).tolist())
                    following[target] += state[source].mul_low(histogram, room + 1)
            state = following
        return int(sum((int(sum(state[s].coeffs(), flint.fmpz(0))) for s in self.accepting), 0))


def exponent_for(rest: Floats, own: float, levels: int) -> int:
    """The power of two by which terms [m, token] and their own one make about so many levels of sums, or fewer."""
    top = max(float(np.abs(rest).max(initial=2.0**-900)), abs(own))
    most = LARGEST_TERM - int(np.ceil(np.log2(top)))
    room = -(own + float(rest.min(axis=1, initial=np.inf).sum()))
    if room <= top * 2.0**-40:
        return most
    return int(min(most, np.floor(np.log2(levels) - np.log2(room))))


def rounded_down(x: Floats, exponent: int, n: int) -> Integers:
    """floor(2^exponent x + o), o > 0 with n o < 1: if n numbers sum to at most 0, so do these integers of them.

    (Their sum is at most 2^exponent * 0 + n o < 1.) The offset o keeps small negative numbers at 0.
    """
    offset = 2.0 ** -(n.bit_length() + 1)
    return np.floor(np.nextafter(np.ldexp(x, exponent) + offset, -np.inf)).astype(np.int64)


def over_count(arrows: Arrows, rest: Floats, own: float, exponent: int) -> int:
    """At least the number of accepted words whose real terms, at least `rest` [m, token] and `own`, sum to <= 0."""
    n = len(rest) + 1
    table = rounded_down(rest, exponent, n)
    return arrows.count_not_above(table, -int(rounded_down(np.array(own), exponent, n)))
