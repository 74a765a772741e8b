"""Rule `enumerate_cones`: where values at a position depend on few tokens, the others need not vary (section 13)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .core import Ints, Program, Trace, trace
from .format import require
from .program_theorem import ProgramTheorem

MAX_CONE_WORDS = 2**22
Places = frozenset[int]
NOWHERE: Places = frozenset()


@dataclass
class Cones:
    """`values[v, i]`: positions of the tokens on which node v depends at i. `selected[s, i, j]`: likewise of whether j
    is selected from i. Where that is nowhere, the value is the one it has on the base word (of `base`)."""

    program: Program
    base: Trace
    n: int
    values: dict[tuple[int, int], Places] = field(default_factory=dict)
    selected: dict[tuple[int, int, int], Places] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = {self.program.output}
        for number in range(self.program.output, -1, -1):
            if number in wanted:
                wanted.update(self.program.nodes[number].args)
        for number in sorted(wanted):
            for i in range(self.n):
                if self.program.nodes[number].is_selector:
                    for j in self.visible(i):
                        self.selected[number, i, j] = self._of_pair(number, i, j)
                else:
                    self.values[number, i] = self._of_value(number, i)

    def visible(self, i: int) -> range:
        return range(i + 1 if self.program.causal else self.n)

    def never(self, number: int, i: int, j: int) -> bool:
        """Whether j is selected from i on no word."""
        return not self.selected[number, i, j] and not self.base.selected[number][0, i, j]

    def always(self, number: int, i: int, j: int) -> bool:
        """Whether j is selected from i on every word."""
        return not self.selected[number, i, j] and bool(self.base.selected[number][0, i, j])

    def _of_value(self, number: int, i: int) -> Places:
        node = self.program.nodes[number]
        if node.kind == "tokens":
            return frozenset([i])
        if node.kind == "indices":
            return NOWHERE
        if node.kind in ("map", "linear"):
            return NOWHERE.union(*(self.values[arg, i] for arg in node.args))
        selector = node.args[0]
        found = NOWHERE.union(*(self.selected[selector, i, j] for j in self.visible(i)))
        if node.kind == "aggregate":
            taken = [j for j in self.visible(i) if not self.never(selector, i, j)]
            found = found.union(*(self.values[node.args[1], j] for j in taken))
        return found

    def _of_pair(self, number: int, i: int, j: int) -> Places:
        node = self.program.nodes[number]
        if node.kind == "select":
            return self.values[node.args[0], j] | self.values[node.args[1], i]
        if node.kind == "not":
            return self.selected[node.args[0], i, j]
        settles = self.never if node.kind == "and" else self.always
        if any(settles(arg, i, j) for arg in node.args):
            return NOWHERE
        return self.selected[node.args[0], i, j] | self.selected[node.args[1], i, j]


def cone_words(theorem: ProgramTheorem, most: int) -> Iterator[Ints]:
    """Words [batch, n] that stand for all: for each largest set of positions on which something depends, all tokens
    there, and the domain's first elsewhere."""
    require(len(theorem.domain.accept) == 1 and not theorem.domain.distinct, "the domain is no product")
    require(theorem.kind != "accepts", "a language depends on all tokens")
    families = {n: _largest(theorem, n) for n in range(theorem.domain.lo, theorem.domain.hi + 1)}
    count = len(theorem.domain.vocab)
    total = sum(count ** len(places) for family in families.values() for places in family)
    require(total <= MAX_CONE_WORDS, f"{total} words have to be evaluated, more than {MAX_CONE_WORDS}")
    for n, family in families.items():
        for places in family:
            columns = sorted(places)
            for first in range(0, count ** len(columns), most):
                ranks = np.arange(first, min(first + most, count ** len(columns)))
                words = np.zeros((len(ranks), n), dtype=np.int64)
                for column in columns:
                    words[:, column] = ranks % count
                    ranks = ranks // count
                yield words


def _largest(theorem: ProgramTheorem, n: int) -> list[Places]:
    """The sets of positions that are in no other: of every node at every position, and of the outputs together."""
    found: set[Places] = {NOWHERE}
    outputs = [NOWHERE] * n
    for program, symbols in zip(theorem.programs, theorem.symbols, strict=True):
        base = trace(program, symbols[np.zeros((1, n), dtype=np.int64)], program.output)
        require(not base.undefined.any(), "a program is undefined on the domain's first word")
        cones = Cones(program, base, n)
        found.update(cones.values.values(), cones.selected.values())
        outputs = [known | cones.values[program.output, i] for i, known in enumerate(outputs)]
    found.update(outputs)
    ordered = sorted(found, key=lambda places: (-len(places), sorted(places)))
    kept: list[Places] = []
    for places in ordered:
        if not any(places < other for other in kept):
            kept.append(places)
    return kept
