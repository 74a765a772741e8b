"""The search for a counterexample: short inputs exhaustively, random and structured ones, then descent on the margin.

Everything runs in float32, batched; what fails there is confirmed over the reals by balls. Then see `shrinking`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..compiler.core_batches import Evaluator
from ..models.languages import Language
from ..models.values import Value
from .balls import Unsupported
from .claims import Claim
from .reading import FALSE, UNDECIDED, Vocabulary

Ids = npt.NDArray[np.int64]
Candidate = tuple[Ids, ...]
Hint = tuple[Mapping[int, Value], ...]
"""Values of the program's nodes, one mapping for each of some positions."""
HINTS_AT_ONCE = 3
CONFIRMED = 64
PRECISE = 3
DIRECTED_STEPS = 40
STEP_SECONDS = 0.3


@dataclass
class Search:
    """One search: what it looks for, the domain, the clock, and what it met.

    Words are arrays of domain ids [batch, length]; a candidate has one word for each of the claim's inputs.
    It looks for rows where the body is `goal` (FALSE for a counterexample), in float32 and, where balls can tell, over
    the reals; `float_only` keeps the first row that float32 alone found. `deadline` is a `time.monotonic` value.
    """

    claim: Claim
    domain: Language
    deadline: float
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    goal: int = FALSE
    rigorous: bool = True
    precise: bool = True
    runs: int = 0
    float_only: Candidate | None = None

    def __post_init__(self) -> None:
        self.codes = Vocabulary(self.domain.vocab, self.claim.subject.codec.vocab).table
        self.lengths = [n for n in self.domain.lengths if self.domain.size(n)]

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def ids(self, words: Candidate) -> tuple[Tensor, ...]:
        """Token ids as the claim's body takes them."""
        return tuple(self.codes[torch.from_numpy(np.ascontiguousarray(word))] for word in words)

    def _chunks(self, words: Candidate) -> Iterator[slice]:
        size = self.claim.subject.chunk(words[0].shape[1], rigorous=False)
        return (slice(at, at + size) for at in range(0, len(words[0]), size))

    def first_failure(self, words: Candidate) -> Candidate | None:
        """The first row that meets the goal; None if there is none (or time ran out before one was met)."""
        for part in self._chunks(words):
            chunk = tuple(word[part] for word in words)
            met = self.claim.body.judge(self.ids(chunk), "float32") == self.goal
            self.runs += len(chunk[0])
            rows = np.flatnonzero(met.numpy())[:CONFIRMED]
            if rows.size and (found := self.confirmed(tuple(word[rows] for word in chunk))):
                return found
            if self.out_of_time:
                return None
        return None

    def confirmed(self, words: Candidate) -> Candidate | None:
        """The first of these rows that meets the goal over the reals too; without rigorous rules, the first."""
        size = self.claim.subject.chunk(words[0].shape[1], rigorous=True)
        for at in range(0, len(words[0]), size):
            chunk = tuple(word[at : at + size] for word in words)
            met = self._really(chunk)
            if met.any():
                row = int(met.argmax())
                return tuple(word[row : row + 1] for word in chunk)
        self.float_only = self.float_only or tuple(word[:1] for word in words)
        return None

    def _really(self, words: Candidate) -> npt.NDArray[np.bool_]:
        """Which rows meet the goal over the reals. If float64 balls decide none, the first few in high precision."""
        if not self.rigorous:
            return np.ones(len(words[0]), dtype=bool)
        try:
            codes = self.claim.body.judge(self.ids(words), "real").numpy()
            met = codes == self.goal
            if not met.any():
                open_rows = np.flatnonzero(codes == UNDECIDED)[:PRECISE]
                few = tuple(word[open_rows] for word in words)
                if len(open_rows) and self.precise:
                    met[open_rows] = self._precisely(few)
            return np.asarray(met)
        except Unsupported:
            self.rigorous = False
            return np.ones(len(words[0]), dtype=bool)

    def _precisely(self, words: Candidate) -> npt.NDArray[np.bool_]:
        try:
            return np.asarray((self.claim.body.judge(self.ids(words), "precise") == self.goal).numpy())
        except Unsupported:
            self.precise = False
            return np.zeros(len(words[0]), dtype=bool)

    def scores(self, words: Candidate) -> npt.NDArray[np.float64]:
        """How far each row is from failing; rows not reached in time are infinitely far."""
        found = np.full(len(words[0]), np.inf)
        for part in self._chunks(words):
            score = self.claim.body.score(self.ids(tuple(word[part] for word in words)))
            score = score if self.goal == FALSE else -score
            found[part] = torch.nan_to_num(score, nan=-np.inf).numpy()
            self.runs += len(found[part])
            if self.out_of_time:
                break
        return found

    def failure(self, words: Candidate, scores: npt.NDArray[np.float64]) -> Candidate | None:
        """A failing row among those of lowest score."""
        near = np.flatnonzero(scores <= max(0.0, float(np.min(scores, initial=np.inf))))[:64]
        return self.first_failure(tuple(word[near] for word in words)) if near.size else None

    def inside(self, words: Candidate) -> Candidate:
        """The rows that lie in the domain."""
        keep = np.logical_and.reduce([self.domain.contains_ids(word) for word in words])
        return tuple(word[keep] for word in words)


def short_inputs(search: Search, budget: int) -> tuple[Candidate | None, bool]:
    """Every input, shortest first, as many as the budget allows (whole lengths only); and whether these were all."""
    arity = search.claim.arity
    for n in search.lengths:
        size = search.domain.size(n)
        if size**arity > budget:
            return None, False
        budget -= size**arity
        for ranks in _ranks(size**arity):
            words = tuple(search.domain.unrank(n, part) for part in split_ranks(ranks, size, arity))
            if found := search.first_failure(words):
                return found, False
            if search.out_of_time:
                return None, False
    return None, True


def _ranks(size: int, batch: int = 8192) -> Iterator[Ids]:
    return (np.arange(first, min(first + batch, size)) for first in range(0, size, batch))


def split_ranks(ranks: Ids, size: int, arity: int) -> Iterator[Ids]:
    """The ranks of the words that a tuple's rank stands for."""
    for place in range(arity - 1, -1, -1):
        yield ranks // size**place % size


def pick_lengths(search: Search, count: int) -> list[int]:
    """Distinct lengths to try: the longest, the shortest, the middle one, the rest at random."""
    lengths = search.lengths
    drawn = search.rng.choice(lengths, size=max(0, count - 3)).tolist()
    return list(dict.fromkeys([lengths[-1], lengths[len(lengths) // 2], lengths[0], *drawn]))[:count]


def letters_of(search: Search, n: int) -> Ids:
    """The domain ids that occur in words of length n, ascending."""
    return np.array(sorted(search.domain.index[v] for v in search.domain.alphabet(n)), dtype=np.int64)


def random_words(search: Search, n: int, rows: int) -> Candidate:
    """Uniform words of one length."""
    return tuple(search.domain.sample_length(search.rng, n, rows) for _ in range(search.claim.arity))


def structured_inputs(search: Search, n: int, rows: int) -> Candidate:
    """Words of the kinds that break programs: few distinct tokens, sorted, repeated blocks, one odd token out, runs."""
    letters = letters_of(search, n)
    return search.inside(tuple(structured_words(search.rng, letters, n, rows) for _ in range(search.claim.arity)))


def structured_words(rng: np.random.Generator, letters: Ids, n: int, rows: int) -> Ids:
    """Words of one length over some letters; see `structured_inputs`."""
    words = np.empty((rows, n), dtype=np.int64)
    for row in range(rows):
        few = rng.choice(letters, size=min(len(letters), 1 + int(rng.integers(4))), replace=False)
        word = rng.choice(few, size=n)
        kind = row % 6
        if kind == 1:
            word = np.sort(word)[:: 1 if rng.integers(2) else -1]
        elif kind == 2:
            block = word[: 1 + int(rng.integers(n))]
            word = np.resize(block, n)
        elif kind == 3:
            word = np.full(n, few[0])
            word[rng.integers(n)] = rng.choice(letters)
        elif kind == 4:
            word = np.full(n, few[0])
            word[: int(rng.integers(n + 1))] = rng.choice(letters)
        elif kind == 5:
            word = np.resize(rng.permutation(letters), n)
        words[row] = word
    return words


def hinted_inputs(search: Search, hints: Sequence[Hint], n: int, rows: int) -> Candidate:
    """Words of length n on which the program's nodes take the values that a hint names for some positions, as far as
    found: by descent on the discrete program alone, which is cheap.
    """
    alignment = search.claim.subject.alignment
    if alignment is None or not hints:
        return tuple(word[:0] for word in random_words(search, n, 1))
    program = alignment.program
    evaluator = Evaluator(program)
    codes = Vocabulary(search.domain.vocab, program.vocab).table.numpy()
    parts = []
    for hint in hints:
        wanted = [{node: program.value_node(node).values.index(v) for node, v in place.items()} for place in hint]
        parts.append(_directed(search, evaluator, codes, wanted, search.domain.sample_length(search.rng, n, rows)))
    words = np.concatenate(parts)
    return (words, *(search.domain.sample_length(search.rng, n, len(words)) for _ in range(search.claim.arity - 1)))


def _directed(search: Search, evaluator: Evaluator, codes: Ids, wanted: Sequence[Mapping[int, int]], words: Ids) -> Ids:
    """Changes tokens of the words to bring the nodes' value indices nearer to `wanted` at some position."""
    rows, n = words.shape
    letters = letters_of(search, n)

    def gap(some: Ids) -> npt.NDArray[np.float64]:
        trace = evaluator.run(codes[some], tuple({node for place in wanted for node in place}))
        total = np.zeros(len(some))
        for place in wanted:
            apart = np.zeros(some.shape)
            for node, value in place.items():
                off = np.abs(trace.values[node] - value)
                apart += np.where(off == 0, 0.0, 1.0 + off / (1.0 + off))
            total += apart.min(axis=1)
        return np.where(trace.undefined, np.inf, total)

    gaps = gap(words)
    for _ in range(DIRECTED_STEPS):
        if search.out_of_time or np.count_nonzero(gaps == 0) > rows // 4:
            break
        order = np.argsort(gaps, kind="stable")[: max(8, rows // 8)]
        parents = words[search.rng.choice(order, size=rows)].copy()
        for _ in range(1 + int(search.rng.integers(3))):
            parents[np.arange(rows), search.rng.integers(n, size=rows)] = search.rng.choice(letters, size=rows)
        (parents,) = search.inside((parents,))
        words = np.concatenate([words, parents])
        gaps = np.concatenate([gaps, gap(parents)])
        kept = np.argsort(gaps, kind="stable")[:rows]
        words, gaps = words[kept], gaps[kept]
    return words


def neighbours(search: Search, words: Candidate, letters: Ids, limit: int) -> Candidate:
    """All words that differ from the single rows `words` in one token, and some with two places swapped or copied."""
    n, arity = words[0].shape[1], len(words)
    moves: list[Candidate] = []
    for which in range(arity):
        single = np.repeat(words[which], n * len(letters), axis=0)
        single[np.arange(n * len(letters)), np.repeat(np.arange(n), len(letters))] = np.tile(letters, n)
        pairs = min(4 * n, 64)
        first, second = search.rng.integers(n, size=pairs), search.rng.integers(n, size=pairs)
        swapped = np.repeat(words[which], pairs, axis=0)
        row = np.arange(pairs)
        swapped[row, first], swapped[row, second] = words[which][0, second], words[which][0, first]
        copied = np.repeat(words[which], pairs, axis=0)
        copied[row, first] = words[which][0, second]
        copied[row, second] = search.rng.choice(letters, size=pairs)
        changed = np.concatenate([single, swapped, copied])
        if len(changed) > limit:
            changed = changed[search.rng.choice(len(changed), size=limit, replace=False)]
        moves.append(tuple(changed if i == which else np.repeat(w, len(changed), axis=0) for i, w in enumerate(words)))
    together = tuple(np.concatenate([move[i] for move in moves]) for i in range(arity))
    return search.inside(together)


def descend(search: Search, start: Candidate, patience: int = 2, beam: int = 4) -> Candidate | None:
    """From the best rows of `start`, change one token at a time to what lowers the score most; a failing row, or None.

    A step tries all single changes of the `beam` best rows, or as many as take about STEP_SECONDS.
    """
    began, before = time.monotonic(), search.runs
    letters = letters_of(search, start[0].shape[1])
    scores = search.scores(start)
    if found := search.failure(start, scores):
        return found
    rate = (search.runs - before) / max(1e-6, time.monotonic() - began)
    limit = int(min(4096, max(64, rate * STEP_SECONDS / beam)))
    order = np.argsort(scores, kind="stable")[:beam]
    front = [(float(scores[i]), tuple(word[i : i + 1] for word in start)) for i in order]
    best, stale = front[0][0], 0
    seen: set[bytes] = set()
    while stale < patience and not search.out_of_time:
        parts: list[Candidate] = []
        for _, words in front:
            key = b"|".join(word.tobytes() for word in words)
            if key not in seen:
                seen.add(key)
                parts.append(neighbours(search, words, letters, limit))
        parts = [part for part in parts if len(part[0])]
        if not parts:
            return None
        together = tuple(np.concatenate([part[i] for part in parts]) for i in range(len(start)))
        scores = search.scores(together)
        if found := search.failure(together, scores):
            return found
        order = np.argsort(scores, kind="stable")
        pool = [*front, *((float(scores[i]), tuple(w[i : i + 1] for w in together)) for i in order[: 4 * beam])]
        front = _distinct(sorted(pool, key=lambda item: item[0]), beam)
        stale = stale + 1 if front[0][0] >= best else 0
        best = min(best, front[0][0])
    return None


def _distinct(pool: list[tuple[float, Candidate]], count: int) -> list[tuple[float, Candidate]]:
    kept: dict[bytes, tuple[float, Candidate]] = {}
    for item in pool:
        kept.setdefault(b"|".join(word.tobytes() for word in item[1]), item)
        if len(kept) == count:
            break
    return list(kept.values())


def search_for_failure(
    claim: Claim,
    domain: Language,
    seconds: float,
    *,
    goal: int = FALSE,
    rigorous: bool = True,
    hints: Sequence[Hint] = (),
    seed: int = 0,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[Candidate | None, Search]:
    """A candidate that meets the goal (domain ids, one row each), or None when time is up; and the search.

    `rigorous`: it must meet the goal over the reals too. `quick` ends after a first pass instead of using all the
    time. Deterministic up to the clock.
    """
    search = Search(claim, domain, time.monotonic() + seconds, np.random.default_rng(seed), goal, rigorous)
    say = progress or (lambda _: None)
    say("refuting: short inputs")
    found, complete = short_inputs(search, 4096 if quick else 65536)
    if found or complete:
        return found, search
    rounds = 0
    while not search.out_of_time:
        say(f"refuting: round {rounds + 1}, {search.runs:,} inputs run")
        now = [hints[(HINTS_AT_ONCE * rounds + i) % len(hints)] for i in range(min(HINTS_AT_ONCE, len(hints)))]
        for pool in _pools(search, now, 128 if rounds == 0 else 512):
            if search.out_of_time:
                break
            if found := descend(search, pool, patience=1 if rounds == 0 else 2):
                return found, search
        rounds += 1
        if quick:
            break
    return None, search


def _pools(search: Search, hints: Sequence[Hint], rows: int) -> Iterator[Candidate]:
    """Starting points for descents, one pool for each of several lengths."""
    for n in pick_lengths(search, 6):
        kinds = (
            hinted_inputs(search, hints, n, rows),
            structured_inputs(search, n, rows),
            random_words(search, n, rows),
        )
        yield tuple(np.concatenate([kind[i] for kind in kinds]) for i in range(search.claim.arity))
