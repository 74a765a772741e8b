"""Boolean formulas as numbered gates: built with simplification and sharing, handed to a solver as clauses.

A literal is a non-zero integer; -x is the negation of x, `TRUE` is 1. Laws: `both(a, b)` is true iff a and b are;
a model of `clauses()` restricted to the inputs extends every assignment of the inputs uniquely.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from ..models.errors import CertiformerError

TRUE, FALSE = 1, -1
MAX_GATES = 3_000_000


class TooLarge(CertiformerError):
    """The formula, or a set of values in it, would be too large; the message says what."""


class Gates:
    """A growing formula. Conjunctions that are written twice are one gate."""

    def __init__(self) -> None:
        self.count = 1
        self._conjunctions: dict[tuple[int, ...], int] = {}
        self._clauses: list[tuple[int, ...]] = [(TRUE,)]

    def new(self) -> int:
        """A free Boolean."""
        self.count += 1
        if self.count > MAX_GATES:
            raise TooLarge(f"the formula has more than {MAX_GATES:,} gates: take fewer tokens or shorter sequences")
        return self.count

    def require(self, literals: Iterable[int]) -> None:
        """One of the literals is true."""
        self._clauses.append(tuple(literals))

    def all(self, literals: Iterable[int]) -> int:
        """The conjunction."""
        chosen = set(literals)
        chosen.discard(TRUE)
        if not chosen:
            return TRUE
        if FALSE in chosen or any(-literal in chosen for literal in chosen):
            return FALSE
        if len(chosen) == 1:
            return chosen.pop()
        key = tuple(sorted(chosen))
        gate = self._conjunctions.get(key)
        if gate is None:
            gate = self._conjunctions[key] = self.new()
        return gate

    def any(self, literals: Iterable[int]) -> int:
        """The disjunction."""
        return -self.all([-literal for literal in literals])

    def both(self, a: int, b: int) -> int:
        """a and b."""
        if a == TRUE or a == b:
            return b
        if b == TRUE:
            return a
        if a == FALSE or b == FALSE or a == -b:
            return FALSE
        key = (a, b) if a < b else (b, a)
        gate = self._conjunctions.get(key)
        if gate is None:
            gate = self._conjunctions[key] = self.new()
        return gate

    def either(self, a: int, b: int) -> int:
        """a or b."""
        return -self.both(-a, -b)

    def same(self, a: int, b: int) -> int:
        """a iff b."""
        return self.either(self.both(a, b), self.both(-a, -b))

    def exactly_one(self, literals: list[int]) -> None:
        """Requires that exactly one of the literals is true."""
        self.require(literals)
        for place, one in enumerate(literals):
            for other in literals[:place]:
                self.require((-one, -other))

    def clauses(self, goals: Iterable[int]) -> array[int]:
        """Flat clauses, each its length and its literals: what `require` was given, and the gates that the goals and
        those need, in both directions."""
        needed = [False] * (self.count + 1)
        for literal in [*goals, *(literal for clause in self._clauses for literal in clause)]:
            needed[abs(literal)] = True
        for key, gate in reversed(self._conjunctions.items()):  # later gates read earlier ones only
            if needed[gate]:
                for literal in key:
                    needed[abs(literal)] = True
        flat = array("i")
        for clause in self._clauses:
            flat.extend((len(clause), *clause))
        for key, gate in self._conjunctions.items():
            if needed[gate]:
                for literal in key:
                    flat.extend((2, -gate, literal))
                flat.extend((len(key) + 1, gate, *(-literal for literal in key)))
        return flat
