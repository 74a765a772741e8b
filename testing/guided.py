"""Testing a claim within a number of examples: random inputs, and a search that is guided by the program's variables.

The guided search runs the *discrete* programs (what the claim says, and what the model was compiled from), which is
cheap, to find inputs on which each of their variables takes each of its values, the rare ones first; only then is the
model run. This is coverage-guided fuzzing with a distance to every branch not yet taken (M. Boehme et al., Directed
Greybox Fuzzing, 2017), with variables for branches. Deterministic for a seed: no clock decides anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator
from ..models.errors import InputError
from ..models.languages import Language
from ..verifier.bodies import AndBody, Body
from ..verifier.claims import Claim
from ..verifier.reading import FALSE, TRUE, Vocabulary
from ..verifier.refute import Candidate, Search, letters_of, neighbours, random_words, structured_inputs
from ..verifier.shrinking import shrink
from ..verifier.witness import Witness

Ids = npt.NDArray[np.int64]
EXAMPLES = 1000
ROUNDS, POOL, MAX_ROUNDS = 24, 256, 240
"""Rounds of covering variables for each thousand examples, words in each, and the most rounds."""
MAX_TARGETS = 4096
SHRINK_SECONDS = 20.0


@dataclass(frozen=True)
class Found:
    """A witness that meets the goal. `first`: as it was met, before shrinking; `runs`: inputs run until then.

    `over_the_reals` is False if only the float32 run is known to meet it.
    """

    witness: Witness
    first: Witness
    runs: int
    over_the_reals: bool = True


@dataclass
class _Budget:
    """A search that stops after a number of model runs."""

    search: Search
    examples: int

    @property
    def left(self) -> int:
        return max(0, self.examples - self.search.runs)

    def failure(self, words: Candidate, share: float = 1.0) -> Candidate | None:
        """The first row that fails among as many as a share of what is left of the budget pays for."""
        limit = math.ceil(self.left * share)
        rows = tuple(word[:limit] for word in words)
        return self.search.first_failure(rows) if len(rows[0]) else None


def find_failure(
    claim: Claim, domain: Language, *, examples: int = EXAMPLES, seed: int = 0, guided: bool = True
) -> Found | None:
    """A shrunk counterexample (of `exists`: an input where the body holds), or None after `examples` model runs.

    `guided=False`: uniformly random inputs only. Raises `InputError` for an empty domain and a bad number.
    """
    for name, number, least in (("examples", examples, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{name} must be an integer of at least {least}, got {number!r}")
    if domain.is_empty:
        raise InputError(f"{domain!r} is empty: there is nothing to test; widen its lengths or its vocabulary")
    goal = TRUE if claim.quantifier == "exists" else FALSE
    search = Search(claim, domain, math.inf, np.random.default_rng(seed), goal)
    budget = _Budget(search, examples)
    found = None
    for words, share in _guided(budget) if guided else _random(budget, examples):
        found = budget.failure(words, share)
        if found is not None or not budget.left:
            break
    really = found is not None
    found = found if found is not None else search.float_only
    return None if found is None else _shrunk(search, found, really)


def _shrunk(search: Search, found: Candidate, really: bool) -> Found:
    import time

    runs = search.runs
    search.rigorous = search.rigorous and really
    search.deadline = time.monotonic() + SHRINK_SECONDS
    first, small = (
        search.claim.witness([row[0] for row in search.ids(words)]) for words in (found, shrink(search, found))
    )
    return Found(small, first, runs, really)


def _random(budget: _Budget, count: int) -> Iterator[tuple[Candidate, float]]:
    """Uniform words, by length."""
    search = budget.search
    for n, words in search.domain.sample_ids(search.rng, count):
        rest = tuple(search.domain.sample_length(search.rng, n, len(words)) for _ in range(search.claim.arity - 1))
        yield (words, *rest), 1.0


def _guided(budget: _Budget) -> Iterator[tuple[Candidate, float]]:
    """All inputs, if there are no more than examples. Else short ones, those that cover the programs' variables,
    structured ones, descents, random ones."""
    search = budget.search
    sizes = [search.domain.size(n) ** search.claim.arity for n in search.lengths]
    yield from _short(budget, budget.examples if sum(sizes) <= budget.examples else budget.examples // 5)
    if sum(sizes) <= budget.examples:
        return
    rounds = min(MAX_ROUNDS, max(ROUNDS, ROUNDS * budget.examples // EXAMPLES))
    pools = [_covering(search, n, rounds) for n in _lengths(search)]
    for share, pool in zip((0.25, 1 / 3, 0.5), pools, strict=False):
        if pool is not None:
            yield pool, share
    for place, n in enumerate(_lengths(search)):
        yield structured_inputs(search, n, max(24, budget.examples // 20)), 1.0
        if place == 0:
            yield from _descents(budget, n)
    if budget.left:
        yield from _random(budget, budget.left)


def _short(budget: _Budget, allowed: int) -> Iterator[tuple[Candidate, float]]:
    """Every input, shortest first, while a whole length fits into what is allowed."""
    search, arity = budget.search, budget.search.claim.arity
    for n in search.lengths:
        size = search.domain.size(n)
        if size**arity > allowed - search.runs:
            return
        ranks = np.arange(size**arity)
        parts = [ranks // size**place % size for place in range(arity - 1, -1, -1)]
        yield tuple(search.domain.unrank(n, part) for part in parts), 1.0


def _lengths(search: Search) -> list[int]:
    """The longest, a middle one, a short one."""
    lengths = search.lengths
    return list(dict.fromkeys([lengths[-1], lengths[len(lengths) // 2], lengths[len(lengths) // 4]]))


def _descents(budget: _Budget, n: int) -> Iterator[tuple[Candidate, float]]:
    """From the input of lowest score on, the neighbours that lower it; a quarter of what is left."""
    search = budget.search
    letters, limit = letters_of(search, n), budget.left // 4
    start = random_words(search, n, max(1, limit // 4))
    scores = search.scores(start)
    best = tuple(word[[int(np.argmin(scores))]] for word in start)
    level, spent = float(scores.min()), len(start[0])
    yield best, 1.0
    while spent < limit and math.isfinite(level):
        near = neighbours(search, best, letters, 32)
        if not len(near[0]):
            return
        scores = search.scores(near)
        spent += len(near[0])
        place = int(np.argmin(scores))
        if scores[place] >= level:
            return
        level, best = float(scores[place]), tuple(word[[place]] for word in near)
        yield best, 1.0


# Covering the variables of the programs


@dataclass
class _Coverage:
    """For each variable's value: how near a word comes to it, and the nearest words seen."""

    evaluators: list[tuple[Evaluator, Ids, tuple[int, ...]]]
    targets: list[tuple[int, int, int]]
    nearest: npt.NDArray[np.float64]
    hits: Ids
    kept: list[Ids | None] = field(default_factory=list)

    def add(self, words: Ids) -> None:
        """Looks at words [batch, length]; keeps for each target the first word that comes nearest."""
        distances = self._distances(words)
        self.hits += (distances == 0).sum(0)
        best = distances.argmin(0)
        improved = np.flatnonzero(distances[best, np.arange(len(self.targets))] < self.nearest)
        for target in improved.tolist():
            self.kept[target] = words[best[target]]
            self.nearest[target] = distances[best[target], target]

    def _distances(self, words: Ids) -> npt.NDArray[np.float64]:
        found = np.full((len(words), len(self.targets)), np.inf)
        for which, (evaluator, codes, nodes) in enumerate(self.evaluators):
            traces = evaluator.run(codes[words], nodes)
            for column, (program, node, value) in enumerate(self.targets):
                if program == which:
                    off = np.abs(traces.values[node] - value).min(axis=1).astype(np.float64)
                    found[:, column] = np.where(traces.undefined, np.inf, off)
        return found


def _programs(body: Body) -> list[CoreProgram]:
    """What the claim says of programs, then what the model is aligned with."""
    parts = body.parts if isinstance(body, AndBody) else (body,)
    stated = [part.program for part in parts if isinstance(getattr(part, "program", None), CoreProgram)]  # type: ignore[attr-defined]
    aligned = [body.subject.alignment.program] if body.subject.alignment is not None else []
    return list({id(program): program for program in [*stated, *aligned]}.values())


def _coverage(search: Search, n: int) -> _Coverage | None:
    evaluators: list[tuple[Evaluator, Ids, tuple[int, ...]]] = []
    targets: list[tuple[int, int, int]] = []
    for program in _programs(search.claim.body):
        codes = Vocabulary(search.domain.vocab, program.vocab).table.numpy()
        if n > program.max_len or bool((codes[letters_of(search, n)] < 0).any()):
            continue
        nodes = [i for i, node in enumerate(program.nodes) if len(getattr(node, "values", ())) > 1]
        evaluators.append((Evaluator(program), codes, tuple(nodes)))
        which = len(evaluators) - 1
        targets += [(which, i, v) for i in nodes for v in range(len(program.value_node(i).values))]
    if not targets:
        return None
    if len(targets) > MAX_TARGETS:
        chosen = search.rng.choice(len(targets), size=MAX_TARGETS, replace=False)
        targets = [targets[i] for i in sorted(chosen.tolist())]
    count = len(targets)
    return _Coverage(evaluators, targets, np.full(count, np.inf), np.zeros(count, dtype=np.int64), [None] * count)


def _covering(search: Search, n: int, rounds: int) -> Candidate | None:
    """Words of one length that together take as many values of the programs' variables as found, the rarest first."""
    coverage = _coverage(search, n)
    if coverage is None:
        return None
    letters = letters_of(search, n)
    coverage.add(random_words(search, n, POOL)[0])
    (structured, *_) = structured_inputs(search, n, POOL)
    if len(structured):
        coverage.add(structured)
    for _ in range(rounds):
        words = _mutated(search, coverage, letters, n)
        if len(words):
            coverage.add(words)
    order = np.lexsort((coverage.nearest, coverage.hits))
    reached = [coverage.kept[i] for i in order.tolist() if coverage.nearest[i] == 0]
    distinct = list({word.tobytes(): word for word in reached if word is not None}.values())
    if not distinct:
        return None
    base = np.stack(distinct)
    return (base, *(search.domain.sample_length(search.rng, n, len(base)) for _ in range(search.claim.arity - 1)))


def _mutated(search: Search, coverage: _Coverage, letters: Ids, n: int) -> Ids:
    """Changed copies of the words kept, mostly for targets that are not reached yet or hardly ever."""
    open_first = np.lexsort((coverage.hits, coverage.nearest == 0))
    candidates = [coverage.kept[i] for i in open_first.tolist() if coverage.kept[i] is not None]
    near = candidates[: max(8, len(candidates) // 3)]
    parents: Sequence[Ids | None] = [near[i] for i in search.rng.integers(len(near), size=POOL).tolist()]
    words = np.stack([parent for parent in parents if parent is not None])
    rows = np.arange(len(words))
    for _ in range(1 + int(search.rng.integers(3))):
        kind = search.rng.integers(3, size=len(words))
        first, second = search.rng.integers(n, size=len(words)), search.rng.integers(n, size=len(words))
        changed = words.copy()
        changed[rows, first] = np.where(kind == 0, search.rng.choice(letters, size=len(words)), words[rows, second])
        swapped = kind == 2
        changed[rows[swapped], second[swapped]] = words[rows[swapped], first[swapped]]
        words = changed
    return search.inside((words,))[0]
