"""The smallest input on which a claim about programs fails: shortest first, then first in the vocabulary's order.

Law: what `smallest_failure` returns fails when it is replayed by the interpreter, and a word is returned before its
length is called free of failures only by `unsat` of a formula that every failure satisfies.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..compiler.core import Value
from ..compiler.interpreter import EvaluationError, trace
from ..compiler.rasp import AggregateOp
from ..compiler.structure import nodes_of
from ..models.errors import InternalError
from ..models.languages import Language
from .program_claims import ProgramClaim, is_true
from .smt_encoding import Choice, Encoding, Memory
from .smt_gates import FALSE
from .smt_solver import Answer, Solver, SolverFailed
from .witness import Witness

Word = tuple[Value, ...]
FEW = 64
"""A length with so few words is enumerated by the interpreter."""
SAMPLES = 24


@dataclass
class Query:
    """A claim on a domain, and what is learnt about it from length to length.

    `means`: the aggregates that average somewhere. `largest`: the largest formula, in gates. `second`: a solver that
    has to agree whenever the first finds no assignment; `confirmed`: how often it did.
    """

    claim: ProgramClaim
    domain: Language
    solver: Solver
    deadline: float
    means: set[AggregateOp] = field(default_factory=set)
    memory: Memory = field(default_factory=dict)
    largest: int = 0
    second: Solver | None = None
    confirmed: int = 0
    decided: list[int] = field(default_factory=list)

    def fails(self, word: Word) -> bool:
        """Whether the claim fails on a word, by the interpreter."""
        return self.claim.holds(Witness((word,))).status != "true"

    def learn_means(self, words: Iterable[Word]) -> bool:
        """Notes the aggregates that average on these words; whether there is a new one."""
        before = len(self.means)
        for word in words:
            for program in self.claim.programs:
                try:
                    found = trace(program, list(word), causal=self.claim.causal)
                except EvaluationError:
                    continue
                for node in nodes_of(program):
                    if isinstance(node, AggregateOp) and node not in self.means:
                        rows, values = found[node.selector], found[node.value]
                        chosen = ([v for v, held in zip(values, row, strict=True) if held] for row in rows)
                        if any(v != some[0] for some in chosen for v in some):
                            self.means.add(node)
        return len(self.means) > before

    def smallest_failure(self, n: int) -> Word | None:
        """The first word of length `n` on which the claim fails; None if it holds on all.

        Raises `SolverFailed` or `TooLarge` when that is not found out.
        """
        if self.domain.size(n) <= FEW:
            words = self.domain.unrank(n, _all(self.domain.size(n)))
            named = (tuple(self.domain.vocab[t] for t in row) for row in words.tolist())
            return next(filter(self.fails, named), None)
        self.learn_means(map(tuple, self._sampled(n)))
        while True:
            encoding = self.encoding()(n)
            word = self._least(encoding, _failure(encoding, self.claim))
            if word is None or self.fails(word):
                return word
            if not encoding.mixed:
                raise InternalError(
                    f"the solver's answer {word!r} does not replay: please report the claim {self.claim}"
                )
            self._add_means(word)

    def _add_means(self, word: Word) -> None:
        """The formula took an aggregate's values to differ there: spell out those that may average."""
        if not self.learn_means([word]):
            nodes = [node for program in self.claim.programs for node in nodes_of(program)]
            self.means |= {node for node in nodes if isinstance(node, AggregateOp)}

    def premise_met(self, n: int) -> bool:
        """Whether the first program is true at some position of some word of length `n`."""
        while True:
            encoding = self.encoding()(n)
            premise = encoding.value(self.claim.programs[0])
            met = encoding.gates.any([*_true(premise), *encoding.undefined, *encoding.mixed])
            answer = self._load(encoding, met)
            if answer is None:
                return False
            word = encoding.word(answer.true)
            try:
                if any(map(is_true, self.claim.evaluate(word)[0])):
                    return True
            except EvaluationError:
                return True
            if not encoding.mixed:
                raise InternalError(
                    f"the solver's answer {word!r} does not replay: please report the claim {self.claim}"
                )
            self._add_means(word)

    def encoding(self) -> Callable[[int], Encoding]:
        """Encodings that share what functions gave."""
        return lambda n: Encoding(self.domain, n, self.claim.causal, frozenset(self.means), self.memory)

    def _sampled(self, n: int) -> list[list[Value]]:
        words = self.domain.sample_length(np.random.default_rng(n), n, SAMPLES)
        return [[self.domain.vocab[t] for t in row] for row in words.tolist()]

    def _load(self, encoding: Encoding, goal: int) -> Answer | None:
        """An assignment in which the goal is true, if there is one."""
        self.largest = max(self.largest, encoding.gates.count)
        if goal == FALSE:
            return None
        encoding.gates.require([goal])
        if time.monotonic() > self.deadline:
            raise SolverFailed("time was up", "allow more seconds, or ask about shorter sequences")
        clauses = encoding.gates.clauses([goal])
        self.solver.load(encoding.gates.count, clauses, self.deadline)
        answer = self.solver.check([], _inputs(encoding), self.deadline)
        if answer.answer == "sat":
            return answer
        if self.second is not None:
            self._confirm(self.second, encoding.gates.count, clauses)
        return None

    def _confirm(self, second: Solver, count: int, clauses: array[int]) -> None:
        """Raises `SolverFailed` unless the second solver, too, finds that there is no assignment."""
        second.load(count, clauses, self.deadline)
        if second.check([], [], self.deadline).answer == "sat":
            raise SolverFailed(
                f"{self.solver.name} says that there is no such input, {second.name} that there is",
                f"one of the two is wrong: please report the claim {self.claim}",
            )
        self.confirmed += 1

    def _least(self, encoding: Encoding, goal: int) -> Word | None:
        """The first word, in the vocabulary's order, of an assignment in which the goal is true."""
        answer = self._load(encoding, goal)
        if answer is None:
            return None
        wanted = _inputs(encoding)
        fixed: list[int] = []
        word = encoding.word(answer.true)
        for place, choice in enumerate(encoding.tokens):
            order = list(choice)
            while (at := order.index(word[place])) > 0:
                larger = [-choice[token] for token in order[at:]]
                found = self.solver.check([*fixed, *larger], wanted, self.deadline)
                if found.answer == "unsat":
                    break
                word = encoding.word(found.true)
            fixed.append(choice[word[place]])
        return word


def _failure(encoding: Encoding, claim: ProgramClaim) -> int:
    """True on every word on which the claim fails; false on all others, if no aggregate is `mixed` on it."""
    gates = encoding.gates
    programs = [encoding.value(program) for program in claim.programs]
    bad: list[int] = []
    member = encoding.member(claim.language) if claim.language is not None else FALSE
    for choices in zip(*programs, strict=True):
        first = choices[0]
        if claim.kind == "equivalent":
            equal = [gates.both(x, choices[1].get(value, FALSE)) for value, x in first.items()]
            bad.append(-gates.any(equal))
        elif claim.kind == "implies":
            bad.append(gates.both(_is_true(first), -_is_true(choices[1])))
        elif claim.kind == "accepts":
            bad.append(-gates.same(_is_true(first), member))
        else:
            bad.append(-gates.any([x for value, x in first.items() if claim.holds_at([value])]))
    return gates.any([*bad, *encoding.undefined, *encoding.mixed])


def _is_true(choice: Choice) -> int:
    return choice.get(True, FALSE)


def _true(choices: Sequence[Choice]) -> list[int]:
    return [_is_true(choice) for choice in choices]


def _inputs(encoding: Encoding) -> list[int]:
    return [*itertools.chain.from_iterable(choice.values() for choice in encoding.tokens)]


def _all(size: int) -> npt.NDArray[np.int64]:
    return np.arange(size, dtype=np.int64)
