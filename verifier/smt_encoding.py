"""RASP programs as Boolean formulas, exactly, for sequences of one length from a token language.

A value at a position is a literal for each value it may take; exactly one is true wherever the program is defined.
Numbers are the interpreter's: values are computed by the same functions, on the finitely many arguments that occur.
Where nothing is `undefined` and no aggregate of `mixed` averages, the formula is the interpreter's answer. An aggregate
over values that differ is spelled out, as sums and counts, only for the nodes in `means`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from ..compiler.core import Value, normalise
from ..compiler.functions import Undefined
from ..compiler.rasp import (
    AggregateOp,
    AndOp,
    Constant,
    Expression,
    IndicesOp,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    SOp,
    TokensOp,
    WidthOp,
    describe,
)
from ..compiler.structure import nodes_of
from ..models.errors import InternalError
from ..models.languages import Language
from .smt_gates import FALSE, TRUE, Gates, TooLarge

MAX_VALUES = 4096
MAX_TUPLES = 400_000

Choice: TypeAlias = dict[Value, int]
"""The literal of each value; what is not listed is impossible."""
Memory: TypeAlias = dict[tuple[int, tuple[Value, ...]], Value | Undefined]
"""What functions gave, by their identity and arguments: shared by the encodings of a program for several lengths."""


@dataclass
class Encoding:
    """The formula of all words of length `n` of `domain`.

    `tokens[j]`: the literals of the tokens possible at j. `undefined`: where a node has no value. `mixed`: where an
    aggregate that is not in `means` has to average.
    """

    domain: Language
    n: int
    causal: bool
    means: Collection[AggregateOp] = ()
    memory: Memory = field(default_factory=dict)
    gates: Gates = field(default_factory=Gates)
    tokens: list[Choice] = field(default_factory=list)
    undefined: list[int] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)
    _values: dict[Expression, list[Choice]] = field(default_factory=dict)
    _rows: dict[Expression, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for alphabet in self.domain.alphabets(self.n):
            choice = {token: self.gates.new() for token in self.domain.vocab if token in alphabet}
            self.gates.exactly_one(list(choice.values()))
            self.tokens.append(choice)
        self.gates.require([self.member(self.domain)])

    def member(self, language: Language) -> int:
        """Whether the word is in a language."""
        gates = self.gates
        if self.n not in language.lengths:
            return FALSE
        states = {0: TRUE}
        for choice in self.tokens:
            ways: dict[int, list[int]] = {}
            for state, here in states.items():
                row = language.automaton.transitions[state]
                to: dict[int, list[int]] = {}
                for token, literal in choice.items():
                    symbol = language.index.get(token)
                    if symbol is not None:
                        to.setdefault(int(row[symbol]), []).append(literal)
                for target, literals in to.items():
                    read = _covering(gates, literals, choice)
                    ways.setdefault(target, []).append(gates.both(here, read))
            states = {target: gates.any(literals) for target, literals in ways.items()}
        accepted = [literal for state, literal in states.items() if language.automaton.accepting[state]]
        return gates.all([gates.any(accepted), *(self._unrepeated() if language.distinct else ())])

    def _unrepeated(self) -> Iterable[int]:
        for place, choice in enumerate(self.tokens):
            for other in self.tokens[:place]:
                for token in choice.keys() & other.keys():
                    yield -self.gates.both(choice[token], other[token])

    def word(self, true: Collection[int]) -> tuple[Value, ...]:
        """The input that an assignment stands for."""
        return tuple(next(token for token, literal in choice.items() if literal in true) for choice in self.tokens)

    def value(self, program: SOp) -> list[Choice]:
        """The values of a program at each position."""
        for node in nodes_of(program):
            if node not in self._values and node not in self._rows:
                self._place(node)
        return self._values[program]

    def _place(self, node: Expression) -> None:
        if isinstance(node, (SelectOp, AndOp, OrOp, NotOp)):
            self._rows[node] = self._selector(node)
            return
        choices = self._sop(node)
        for choice in choices:
            if len(choice) > MAX_VALUES:
                raise TooLarge(
                    f"{describe(node)} takes more than {MAX_VALUES:,} values: fewer tokens, shorter sequences"
                )
        self._values[node] = choices

    def _sop(self, node: Expression) -> list[Choice]:
        values = self._values
        match node:
            case TokensOp():
                return self.tokens
            case IndicesOp():
                return [{position: TRUE} for position in range(self.n)]
            case Constant(value):
                return [{value: TRUE}] * self.n
            case MapOp(function, args):
                return [self._map(node, function.try_evaluate, choices) for choices in self._columns(args)]
            case LinearOp(args):
                return [self._map(node, lambda given: _linear(node, given), c) for c in self._columns(args)]
            case WidthOp(selector):
                return [self._count(row) for row in self._rows[selector]]
            case AggregateOp(selector, value):
                return [self._aggregate(node, row, values[value]) for row in self._rows[selector]]
        raise InternalError(f"{node!r} is no node of the language")

    def _columns(self, args: Sequence[SOp]) -> list[list[Choice]]:
        return [[self._values[arg][i] for arg in args] for i in range(self.n)]

    # Maps

    def _map(
        self, node: MapOp | LinearOp, function: Callable[[Sequence[Value]], Value | Undefined], choices: list[Choice]
    ) -> Choice:
        gates = self.gates
        tuples: list[tuple[tuple[Value, ...], int]] = [((), TRUE)]
        for choice in choices:
            if len(tuples) * len(choice) > MAX_TUPLES:
                raise TooLarge(f"{describe(node)} has more than {MAX_TUPLES:,} tuples of arguments: fewer tokens")
            tuples = [
                ((*given, value), held)
                for given, literal in tuples
                for value, other in choice.items()
                if (held := gates.both(literal, other)) != FALSE
            ]
        ways: dict[Value, list[int]] = {}
        source = id(node.function if isinstance(node, MapOp) else node)
        for given, literal in tuples:
            outcome: Value | Undefined = None
            if None not in given:
                key = (source, given)
                if key not in self.memory:
                    self.memory[key] = function(given)
                outcome = self.memory[key]
            if isinstance(outcome, Undefined):
                self.undefined.append(literal)
            else:
                ways.setdefault(outcome, []).append(literal)
        return self._choice(ways)

    def _choice(self, ways: Mapping[Value, list[int]]) -> Choice:
        """Of two values one is the negation of the other (where the value is defined)."""
        if len(ways) == 1:
            return dict.fromkeys(ways, TRUE)
        if len(ways) == 2:
            (one, first), (other, second) = ways.items()
            if len(first) > len(second):
                one, first, other = other, second, one
            literal = self.gates.any(first)
            found = {one: literal, other: -literal}
        else:
            found = {value: self.gates.any(literals) for value, literals in ways.items()}
        return {value: literal for value, literal in found.items() if literal != FALSE}

    # Selectors

    def _selector(self, node: Expression) -> list[list[int]]:
        gates, rows = self.gates, self._rows
        match node:
            case SelectOp(keys, queries):
                return self._select(node, self._values[keys], self._values[queries])
            case AndOp(left, right):
                return [[*map(gates.both, a, b)] for a, b in zip(rows[left], rows[right], strict=True)]
            case OrOp(left, right):
                return [[*map(gates.either, a, b)] for a, b in zip(rows[left], rows[right], strict=True)]
            case NotOp(arg):
                return [
                    [-literal if self._visible(i, j) else FALSE for j, literal in enumerate(row)]
                    for i, row in enumerate(rows[arg])
                ]
        raise InternalError(f"{node!r} is no selector")

    def _visible(self, i: int, j: int) -> bool:
        return j <= i or not self.causal

    def _select(self, node: SelectOp, keys: list[Choice], queries: list[Choice]) -> list[list[int]]:
        gates = self.gates
        rows = []
        for i, query in enumerate(queries):
            row = []
            for j, key in enumerate(keys):
                found = []
                for wanted, asked in query.items() if self._visible(i, j) else ():
                    matching, lost = self._matching(node, key, wanted)
                    if lost:
                        self.undefined.append(gates.both(asked, gates.any(lost)))
                    found.append(gates.both(asked, _covering(gates, matching, key)))
                row.append(gates.any(found))
            rows.append(row)
        return rows

    def _matching(self, node: SelectOp, key: Choice, query: Value) -> tuple[list[int], list[int]]:
        """The literals of the key's values that the query selects, and of those on which the predicate is undefined."""
        matching: list[int] = []
        lost: list[int] = []
        if query is None:
            return matching, lost
        source = id(node.predicate)
        for value, literal in key.items():
            if value is None:
                continue
            at = (source, (value, query))
            if at not in self.memory:
                self.memory[at] = node.predicate.try_evaluate((value, query))
            outcome = self.memory[at]
            if isinstance(outcome, Undefined):
                lost.append(literal)
            elif outcome:
                matching.append(literal)
        return matching, lost

    # Counts and means

    def _count(self, row: Sequence[int]) -> Choice:
        """How many of the literals are true: `least[c]` says at least c."""
        gates = self.gates
        least, certain = [TRUE], 0
        for literal in row:
            if literal == TRUE:
                certain += 1
            elif literal != FALSE:
                more = [gates.both(one, literal) for one in least]
                least = [TRUE, *map(gates.either, least[1:], more), more[-1]]
        exact = [gates.both(one, -other) for one, other in zip(least, [*least[1:], FALSE], strict=True)]
        return {certain + count: literal for count, literal in enumerate(exact) if literal != FALSE}

    def _aggregate(self, node: AggregateOp, row: Sequence[int], values: list[Choice]) -> Choice:
        gates = self.gates
        chosen: dict[Value, list[int]] = {}
        for selected, choice in zip(row, values, strict=True):
            if selected != FALSE:
                for value, literal in choice.items():
                    chosen.setdefault(value, []).append(gates.both(selected, literal))
        held = {value: gates.any(literals) for value, literals in chosen.items()}
        ways: dict[Value, list[int]] = {node.default: [gates.all([-selected for selected in row])]}
        below = [FALSE]
        for literal in held.values():
            below.append(gates.either(below[-1], literal))
        above, several = FALSE, FALSE
        for value, before in zip(reversed(held), reversed(below[:-1]), strict=True):
            others = gates.either(before, above)
            ways.setdefault(value, []).append(gates.both(held[value], -others))
            several = gates.either(several, gates.both(held[value], above))
            above = gates.either(above, held[value])
        if several != FALSE and node in self.means:
            for value, literal in self._mean(row, values, held, several):
                ways.setdefault(value, []).append(literal)
        elif several != FALSE:
            self.mixed.append(several)
        found = {value: gates.any(literals) for value, literals in ways.items()}
        return {value: literal for value, literal in found.items() if literal != FALSE}

    def _mean(
        self, row: Sequence[int], values: list[Choice], held: Mapping[Value, int], several: int
    ) -> Iterable[tuple[Value, int]]:
        """The means of two values or more, each with the literal of its sum and count."""
        gates = self.gates
        strange = [literal for value, literal in held.items() if not isinstance(value, (int, Fraction))]
        self.undefined.append(gates.both(several, gates.any(strange)))
        states: dict[tuple[Fraction, int], int] = {(Fraction(0), 0): TRUE}
        for selected, choice in zip(row, values, strict=True):
            if selected == FALSE:
                continue
            ways: dict[tuple[Fraction, int], list[int]] = {}
            numbers = [(v, gates.both(selected, x)) for v, x in choice.items() if isinstance(v, (int, Fraction))]
            for (total, count), literal in states.items():
                ways.setdefault((total, count), []).append(gates.both(literal, -selected))
                for value, taken in numbers:
                    ways.setdefault((total + value, count + 1), []).append(gates.both(literal, taken))
            states = {state: one for state, literals in ways.items() if (one := gates.any(literals)) != FALSE}
            if len(states) > MAX_VALUES:
                raise TooLarge(f"an average has more than {MAX_VALUES:,} sums: fewer tokens, shorter sequences")
        for (total, count), literal in states.items():
            if count > 1:
                yield normalise(total / count), gates.both(several, literal)


def _covering(gates: Gates, literals: list[int], choice: Choice) -> int:
    """The disjunction of some of a choice's literals, exactly one of which is true: written the shorter way."""
    if 2 * len(literals) <= len(choice):
        return gates.any(literals)
    inside = set(literals)
    return -gates.any([literal for literal in choice.values() if literal not in inside])


def _linear(node: LinearOp, given: Sequence[Value]) -> Value | Undefined:
    total = node.constant
    for coefficient, value in zip(node.coefficients, given, strict=True):
        if not isinstance(value, (int, Fraction)):
            return Undefined(f"{value!r} is not a number")
        total += coefficient * value
    return normalise(total)
