"""Token languages: the domains of claims. Sets of non-empty token sequences with exact sizes.

A language is what a deterministic automaton over its vocabulary accepts at given lengths. One property with
exponentially many states is kept apart: `distinct`, no token twice, on top of all words over an alphabet.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .automata import Automaton, build, length_automaton, product_automaton
from .errors import InputError
from .values import Value, canonical_vocab, sort_key, value_from_json, value_to_json

Ids: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = int | range | Sequence[int]
MAX_LENGTH = 2**16
MAX_DISTINCT_STATES = 2**14


@dataclass(frozen=True, eq=False)
class Language:
    """The words of the automaton at the given lengths (and, if `distinct`, with no token twice).

    `vocab` is in canonical order (numbers ascending, then strings); token id t is `vocab[t]`; `lengths` ascend.
    """

    vocab: tuple[Value, ...]
    lengths: tuple[int, ...]
    automaton: Automaton
    distinct: bool = False

    def __post_init__(self) -> None:
        if self.vocab != canonical_vocab(self.vocab):
            raise InputError(f"a language's vocabulary must be in canonical order, got {self.vocab!r}")
        if self.automaton.n_symbols != len(self.vocab):
            raise InputError(
                f"an automaton over {self.automaton.n_symbols} symbols cannot read {len(self.vocab)} tokens"
            )
        if self.distinct and not self._is_free:
            raise InputError("distinct tokens are kept apart only on all words over an alphabet; use intersection")

    def __repr__(self) -> str:
        size = self.size()
        shown = str(size) if size < 10**15 else f"about 10^{int(math.log10(size))}"
        return f"Language({len(self.vocab)} tokens, lengths {_lengths_text(self.lengths)}, {shown} words)"

    @cached_property
    def index(self) -> dict[Value, int]:
        return {value: symbol for symbol, value in enumerate(self.vocab)}

    @cached_property
    def _counts(self) -> list[list[int]]:
        return self.automaton.counts(max(self.lengths, default=0))

    @cached_property
    def _letters(self) -> tuple[int, ...]:
        """The symbols that are a word by themselves: with `_is_free`, those that words are made of."""
        row = self.automaton.transitions[0]
        return tuple(np.flatnonzero(self.automaton.accepting[row]).tolist())

    @cached_property
    def _is_free(self) -> bool:
        """Whether the automaton accepts all the words over an alphabet."""
        return self.automaton.same(product_automaton(self._letters, len(self.vocab)))

    # Sizes and membership

    def size(self, length: int | None = None) -> int:
        """The exact number of words, of all lengths or of one."""
        if length is None:
            return sum(self.size(n) for n in self.lengths)
        if length not in self.lengths:
            return 0
        return math.perm(len(self._letters), length) if self.distinct else self._counts[length][0]

    @property
    def is_empty(self) -> bool:
        return not any(self.size(n) for n in self.lengths)

    def is_product(self) -> bool:
        """Whether the words of each length are all the words over an alphabet (which may depend on the length)."""
        return all(self.size(n) == len(self.alphabet(n)) ** n for n in self.lengths if self.size(n))

    def __contains__(self, sequence: object) -> bool:
        if isinstance(sequence, str) or not isinstance(sequence, Sequence) or len(sequence) not in self.lengths:
            return False
        try:
            word = [self.index[token] for token in sequence]
        except (KeyError, TypeError):
            return False
        if any(isinstance(token, float) for token in sequence):
            return False
        return bool(self.contains_ids(np.array([word], dtype=np.int64))[0])

    def contains_ids(self, words: Ids) -> npt.NDArray[np.bool_]:
        """For token ids [batch, length]: which rows are words of the language."""
        batch, length = words.shape
        if length not in self.lengths:
            return np.zeros(batch, dtype=bool)
        inside = (words >= 0) & (words < len(self.vocab))
        accepted = self.automaton.accepts(np.where(inside, words, 0)) & inside.all(axis=1)
        if self.distinct:
            ordered = np.sort(words, axis=1)
            accepted &= (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        return accepted

    def alphabet(self, length: int) -> frozenset[Value]:
        """The tokens that occur in any word of this length."""
        return frozenset().union(*self.alphabets(length))

    def alphabets(self, length: int) -> tuple[frozenset[Value], ...]:
        """For each position, the tokens that occur there in any word of this length; all empty if there is none."""
        if not self.size(length):
            return (frozenset(),) * max(length, 0)
        if self.distinct:
            return (frozenset(self.vocab[symbol] for symbol in self._letters),) * length
        found: list[frozenset[Value]] = []
        states: npt.NDArray[np.intp] = np.array([0])
        for remaining in range(length - 1, -1, -1):
            nonempty = np.array([count > 0 for count in self._counts[remaining]])
            alive = nonempty[self.automaton.transitions[states]]
            found.append(frozenset(self.vocab[symbol] for symbol in np.flatnonzero(alive.any(axis=0)).tolist()))
            states = np.unique(self.automaton.transitions[states][alive])
        return tuple(found)

    def _cumulative(self, remaining: int) -> npt.NDArray[np.float64]:
        """[state, symbol]: the probability that a uniform word of `remaining` + 1 tokens, read from the state, starts
        with the symbol or an earlier one."""
        if remaining in self._cumulatives:
            return self._cumulatives[remaining]
        after, now = self._counts[remaining], self._counts[remaining + 1]
        n_symbols = len(self.vocab)
        rows = np.zeros((self.automaton.n_states, n_symbols))
        for state, row in enumerate(self.automaton.transitions.tolist()):
            if now[state]:
                share = {target: after[target] / now[state] for target in set(row)}
                rows[state] = [share[target] for target in row]
        sums = np.cumsum(rows, axis=1)
        # From the last possible symbol on exactly 1, so that rounding never picks an impossible one.
        last = n_symbols - 1 - np.argmax(rows[:, ::-1] > 0, axis=1)
        sums[np.arange(n_symbols) >= last[:, None]] = 1.0
        self._cumulatives[remaining] = sums
        return sums

    @cached_property
    def _cumulatives(self) -> dict[int, npt.NDArray[np.float64]]:
        return {}

    # Sampling

    def sample(self, rng: np.random.Generator | int, k: int) -> list[list[Value]]:
        """`k` words, independent and uniform over the language. Raises `InputError` if it is empty."""
        rng = np.random.default_rng(rng)
        drawn = [row for _, batch in self.sample_ids(rng, k) for row in batch.tolist()]
        words = [[self.vocab[symbol] for symbol in row] for row in drawn]
        return [words[position] for position in rng.permutation(len(words))]

    def sample_ids(self, rng: np.random.Generator | int, k: int) -> list[tuple[int, Ids]]:
        """`k` uniform words as (length, token ids [batch, length]), by ascending length.

        Lengths are drawn with exact integers; tokens by probabilities rounded to float64.
        """
        check_number(k)
        rng = np.random.default_rng(rng)
        sizes = [self.size(n) for n in self.lengths]
        total = sum(sizes)
        if not total:
            raise InputError(f"{self!r} is empty: nothing can be sampled; widen its lengths or its vocabulary")
        bounds = list(accumulate(sizes))
        drawn = Counter(bisect_right(bounds, number) for number in _below(rng, total, k))
        return [
            (self.lengths[place], self.sample_length(rng, self.lengths[place], drawn[place])) for place in sorted(drawn)
        ]

    def sample_length(self, rng: np.random.Generator | int, length: int, k: int) -> Ids:
        """`k` uniform words of one length, token ids [k, length]. Raises `InputError` if there is none."""
        check_number(k)
        rng = np.random.default_rng(rng)
        if not self.size(length):
            raise InputError(f"{self!r} has no word of length {length}")
        if self.distinct:
            letters = np.array(self._letters, dtype=np.int64)
            return letters[np.argsort(rng.random((k, len(letters))), axis=1)[:, :length]]
        if self._is_free:
            return np.array(self._letters, dtype=np.int64)[rng.integers(len(self._letters), size=(k, length))]
        words = np.empty((k, length), dtype=np.int64)
        states = np.zeros(k, dtype=np.int32)
        for position in range(length):
            cumulative = self._cumulative(length - position - 1)
            words[:, position] = (rng.random(k)[:, None] >= cumulative[states]).sum(axis=1)
            states = self.automaton.transitions[states, words[:, position]]
        return words

    # Enumeration

    def enumerate(self) -> Iterator[list[Value]]:
        """Every word: shorter first, then in the order of the vocabulary."""
        for length in self.lengths:
            for row in self._words(length):
                yield [self.vocab[symbol] for symbol in row]

    def batches(self, batch: int = 4096, lengths: Iterable[int] | None = None) -> Iterator[Ids]:
        """Every word, in the order of `enumerate`, as token ids [at most batch, length]."""
        check_number(batch, "batch")
        for length in self.lengths if lengths is None else sorted(set(lengths)):
            size = self.size(length)
            if size >= 2**62:
                raise InputError(f"the words of length {length} are more than 2^62: sample them")
            for first in range(0, size, batch):
                yield self.unrank(length, np.arange(first, min(first + batch, size)))

    def unrank(self, length: int, ranks: Ids) -> Ids:
        """The words of one length that stand at the given places of the order of `enumerate`; below 2^62 of them."""
        size = self.size(length)
        if size >= 2**62 or (ranks.size and not 0 <= int(ranks.min()) <= int(ranks.max()) < size):
            raise InputError(f"ranks must be places of words of length {length}, fewer than 2^62 (there are {self!r})")
        words = np.empty((len(ranks), length), dtype=np.int64)
        ranks = ranks.astype(np.int64)
        if self.distinct:
            return self._unrank_distinct(words, ranks)
        states = np.zeros(len(ranks), dtype=np.int64)
        for position in range(length):
            after = self._counts[length - position - 1]
            visited, rows = np.unique(states, return_inverse=True)
            targets = self.automaton.transitions[visited]
            sums = np.cumsum(np.array([[after[t] for t in row] for row in targets.tolist()], dtype=np.int64), axis=1)
            bounds: Ids = sums[rows.reshape(-1)]
            symbols = (ranks[:, None] >= bounds).sum(axis=1)
            before = np.take_along_axis(bounds, np.maximum(symbols - 1, 0)[:, None], axis=1)[:, 0]
            ranks = ranks - np.where(symbols > 0, before, 0)
            words[:, position] = symbols
            states = self.automaton.transitions[states, symbols].astype(np.int64)
        return words

    def _unrank_distinct(self, words: Ids, ranks: Ids) -> Ids:
        letters = np.array(self._letters, dtype=np.int64)
        free = np.ones((len(ranks), len(letters)), dtype=bool)
        for position in range(words.shape[1]):
            weight = math.perm(len(letters) - position - 1, words.shape[1] - position - 1)
            place, ranks = np.divmod(ranks, weight)
            chosen = np.argmax(np.cumsum(free, axis=1) == place[:, None] + 1, axis=1)
            free[np.arange(len(ranks)), chosen] = False
            words[:, position] = letters[chosen]
        return words

    def _words(self, length: int) -> Iterator[tuple[int, ...]]:
        if not self.size(length):
            return
        transitions, word = self.automaton.transitions.tolist(), [-1] * length
        states = [0] * (length + 1)
        position = 0
        while position >= 0:
            if position == length:
                yield tuple(word)
                position -= 1
                continue
            word[position] += 1
            if word[position] == len(self.vocab):
                word[position] = -1
                position -= 1
                continue
            target = transitions[states[position]][word[position]]
            if self._counts[length - position - 1][target] and not (
                self.distinct and word[position] in word[:position]
            ):
                states[position + 1] = target
                position += 1

    # Combination

    def intersection(self, other: Language) -> Language:
        """The words of both; the vocabulary is that of both."""
        left, right = _aligned(self, other)
        lengths = tuple(n for n in left.lengths if n in set(right.lengths))
        if left.distinct or right.distinct:
            both = left._loosened.automaton.combine(right._loosened.automaton, operator.and_)
            loose = Language(left.vocab, lengths, both)
            if loose._is_free:
                return Language(left.vocab, lengths, both, True)
            left, right = (Language(x.vocab, lengths, x.automaton, x.distinct)._explicit() for x in (left, right))
        both = left.automaton.combine(right.automaton, operator.and_)
        return Language(left.vocab, lengths, both)

    def union(self, other: Language) -> Language:
        """The words of either; the vocabulary is that of both."""
        left, right = (language._explicit() for language in _aligned(self, other))
        lengths = tuple(sorted({*left.lengths, *right.lengths}))
        if left.lengths != right.lengths:
            left, right = left._fixed(), right._fixed()
        return Language(left.vocab, lengths, left.automaton.combine(right.automaton, operator.or_))

    def complement(self) -> Language:
        """The words over the vocabulary, of the same lengths, that are not in the language."""
        explicit = self._explicit()
        return Language(self.vocab, self.lengths, explicit.automaton.complement().minimised())

    def difference(self, other: Language) -> Language:
        """The words of this language that are not in the other."""
        left, right = (language._explicit() for language in _aligned(self, other))
        removed = right._fixed().automaton if left.lengths != right.lengths else right.automaton
        kept = left.automaton.combine(removed, lambda here, there: here and not there)
        return Language(left.vocab, left.lengths, kept)

    def is_subset(self, other: Language) -> bool:
        """Whether every word of this language is in the other."""
        if other.is_product_of_vocabulary and set(self.vocab) <= set(other.vocab):
            return all(n in other.lengths for n in self.lengths if self.size(n))
        if self.distinct and other.distinct:
            allowed = {other.vocab[symbol] for symbol in other._letters}
            return all(n in other.lengths and self.alphabet(n) <= allowed for n in self.lengths if self.size(n))
        if self.distinct and not other.distinct and self._loosened.is_subset(other):
            return True
        return self.difference(other).is_empty

    @property
    def is_product_of_vocabulary(self) -> bool:
        """Whether it has every word over its vocabulary, at its lengths."""
        return not self.distinct and self.automaton.n_states == 1 and bool(self.automaton.accepting[0])

    def equals(self, other: Language) -> bool:
        """Whether the two have the same words (vocabularies and lengths without words do not matter)."""
        return self.is_subset(other) and other.is_subset(self)

    def restricted(self, length: Lengths) -> Language:
        """The words of some of the lengths. Raises `InputError` for a length the language was not made for."""
        lengths = as_lengths(length)
        if extra := [n for n in lengths if n not in self.lengths]:
            raise InputError(f"the language has lengths {_lengths_text(self.lengths)}, not {extra[0]}; build it anew")
        return Language(self.vocab, lengths, self.automaton, self.distinct)

    def over(self, vocab: object) -> Language:
        """The same words, over a larger vocabulary."""
        wide = canonical_vocab(vocab)
        if missing := set(self.vocab) - set(wide):
            raise InputError(f"the new vocabulary lacks {sorted(missing, key=sort_key)!r}")
        place = {value: symbol for symbol, value in enumerate(wide)}
        automaton = self.automaton.recoded([place[value] for value in self.vocab], len(wide))
        return Language(wide, self.lengths, automaton, self.distinct)

    @property
    def _loosened(self) -> Language:
        """Without the condition that tokens be distinct."""
        return Language(self.vocab, self.lengths, self.automaton) if self.distinct else self

    def _explicit(self) -> Language:
        """As a bare automaton. Raises `InputError` if distinct tokens would need too many states."""
        if not self.distinct:
            return self
        longest = min(len(self._letters), max(self.lengths, default=0))
        states = sum(math.comb(len(self._letters), n) for n in range(longest + 1))
        if states > MAX_DISTINCT_STATES:
            raise InputError(
                f"distinct tokens among {len(self._letters)} need {states} automaton states in this combination "
                f"(limit {MAX_DISTINCT_STATES}); use fewer tokens or shorter sequences"
            )
        letters = set(self._letters)

        def step(used: int, symbol: int) -> int:
            if used < 0 or symbol not in letters or used >> symbol & 1 or used.bit_count() >= longest:
                return -1
            return used | 1 << symbol

        return Language(self.vocab, self.lengths, build(0, step, lambda used: used >= 0, len(self.vocab)))

    def _fixed(self) -> Language:
        """With the lengths inside the automaton."""
        lengths = length_automaton(self.lengths, len(self.vocab))
        return Language(self.vocab, self.lengths, self.automaton.combine(lengths, operator.and_))

    # Data

    def to_json(self) -> dict[str, object]:
        """The domain of a certificate (proofs/SPECIFICATION.md), with the same words; the same words in, the same out.

        `{"kind": "product" | "distinct" | "dfa", "vocab", "lengths": [lo, hi]}`, for a dfa `start`, `accept` and
        `delta` (-1: dead), which is minimal with states numbered breadth-first, and holds any gaps between the lengths.
        """
        bounds = [self.lengths[0], self.lengths[-1]] if self.lengths else [1, 0]
        if bounds[1] - bounds[0] + 1 != len(self.lengths):
            whole = self._explicit()._fixed()
            return Language(self.vocab, tuple(range(bounds[0], bounds[1] + 1)), whole.automaton).to_json()
        kind = "distinct" if self.distinct else "product" if self._is_free else "dfa"
        vocab = self.vocab if kind == "dfa" else [self.vocab[symbol] for symbol in self._letters]
        data: dict[str, object] = {
            "kind": kind if vocab else "dfa",
            "vocab": [value_to_json(value) for value in vocab or self.vocab],
            "lengths": bounds,
        }
        return {**data, **self.automaton.to_json()} if data["kind"] == "dfa" else data

    @staticmethod
    def from_json(data: object) -> Language:
        """Raises `InputError`."""
        kind = data.get("kind") if isinstance(data, dict) else None
        keys = {"kind", "vocab", "lengths"} | ({"start", "accept", "delta"} if kind == "dfa" else set())
        if not isinstance(data, dict) or kind not in ("product", "distinct", "dfa") or set(data) != keys:
            raise InputError(f"a language in JSON has a kind and the keys {sorted(keys)}, got {str(data)[:200]}")
        ends = data["lengths"]
        whole = isinstance(ends, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in ends)
        if not isinstance(data["vocab"], list) or not whole or len(ends) != 2:
            raise InputError(f"a language's vocab must be a list and its lengths [lo, hi], got {str(data)[:200]}")
        vocab = tuple(value_from_json(value) for value in data["vocab"])
        lengths = () if ends[0] > ends[1] else as_lengths(range(ends[0], ends[1] + 1))
        if kind != "dfa":
            return Language(vocab, lengths, product_automaton(range(len(vocab)), len(vocab)), kind == "distinct")
        automaton = Automaton.from_json({key: data[key] for key in ("start", "accept", "delta")}, len(vocab))
        return Language(vocab, lengths, automaton)


def as_lengths(length: Lengths) -> tuple[int, ...]:
    """Ascending lengths, each at least 1. Raises `InputError` naming the value that is none."""
    if isinstance(length, int):
        numbers: tuple[object, ...] = (length,)
    elif isinstance(length, Sequence) and not isinstance(length, str):
        ends = (length.start, length.stop) if isinstance(length, range) else ()
        if max((abs(end) for end in ends), default=0) > MAX_LENGTH + 1:
            raise InputError(f"length must be 1 to {MAX_LENGTH}, got {length!r}")
        numbers = tuple(length)
    else:
        raise InputError(f"length must be an integer or a range such as range(1, 9), got {length!r}")
    if not numbers:
        raise InputError(f"{length!r} has no length in it; range(1, 9) is the lengths 1 to 8")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_LENGTH:
            raise InputError(f"a sequence's length must be an integer of 1 to {MAX_LENGTH}, got {number!r}")
    return tuple(sorted({number for number in numbers if isinstance(number, int)}))


def check_number(number: object, name: str = "the number of samples") -> int:
    least = 1 if name == "batch" else 0
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {number!r}")
    return int(number)


def _below(rng: np.random.Generator, bound: int, k: int) -> Iterator[int]:
    """`k` uniform integers of 0 to bound - 1, of any size."""
    bits = bound.bit_length()
    width = (bits + 7) // 8
    while k:
        data = rng.bytes(width * k)
        for place in range(0, len(data), width):
            drawn = int.from_bytes(data[place : place + width], "little") >> (-bits % 8)
            if drawn < bound:
                k -= 1
                yield drawn


def _lengths_text(lengths: tuple[int, ...]) -> str:
    if len(lengths) > 1 and lengths == tuple(range(lengths[0], lengths[-1] + 1)):
        return f"{lengths[0]} to {lengths[-1]}"
    return ", ".join(map(str, lengths)) or "none"


def _aligned(left: Language, right: Language) -> tuple[Language, Language]:
    """Both over one vocabulary."""
    if left.vocab == right.vocab:
        return left, right
    vocab = tuple(sorted({*left.vocab, *right.vocab}, key=sort_key))
    return left.over(vocab), right.over(vocab)
