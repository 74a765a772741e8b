"""Token languages against enumeration with plain Python."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from certiformer.models.automata import Automaton, build, length_automaton
from certiformer.models.errors import InputError
from certiformer.models.languages import (
    Language,
    balanced,
    distinct,
    exactly_one,
    occurrences,
    regular,
    sequences,
    sorted_sequences,
)
from certiformer.models.patterns import any_token, concat, repeat, star, token, union
from certiformer.models.values import Value

Word = tuple[Value, ...]
ABC = ("a", "b", "c")
LENGTHS = range(1, 6)


def words(vocab: tuple[Value, ...], lengths: range, keep: Callable[[Word], bool]) -> list[list[Value]]:
    return [list(word) for n in lengths for word in itertools.product(vocab, repeat=n) if keep(word)]


def is_balanced(word: Word, depth: int) -> bool:
    stack: list[str] = []
    for symbol in word:
        if symbol in ("(", "["):
            stack.append({"(": ")", "[": "]"}[str(symbol)])
            if len(stack) > depth:
                return False
        elif symbol in (")", "]") and (not stack or stack.pop() != symbol):
            return False
    return not stack


BRACKETS = ("(", ")", "[", "]")
ENDS_IN_AB = concat(star(any_token()), token("a"), token("b"))
CASES: dict[str, tuple[Language, Callable[[Word], bool]]] = {
    "all": (sequences(ABC, LENGTHS), lambda w: True),
    "distinct": (distinct(ABC, LENGTHS), lambda w: len(set(w)) == len(w)),
    "one b": (exactly_one("b", ABC, LENGTHS), lambda w: w.count("b") == 1),
    "two or three a": (occurrences("a", ABC, LENGTHS, 2, 3), lambda w: 2 <= w.count("a") <= 3),
    "some a": (occurrences("a", ABC, LENGTHS, 1), lambda w: "a" in w),
    "no a": (occurrences("a", ABC, LENGTHS, 0, 0), lambda w: "a" not in w),
    "sorted": (sorted_sequences(ABC, LENGTHS), lambda w: list(w) == sorted(w, key=str)),
    "strictly sorted": (
        sorted_sequences(ABC, LENGTHS, strict=True),
        lambda w: list(w) == sorted(set(w), key=str),
    ),
    "balanced": (balanced([("(", ")"), ("[", "]")], 2, LENGTHS), lambda w: is_balanced(w, 2)),
    "balanced among others": (balanced([("(", ")")], 1, LENGTHS, ["x", "y"]), lambda w: is_balanced(w, 1)),
    "ends in ab": (regular(ENDS_IN_AB, ABC, LENGTHS), lambda w: w[-2:] == ("a", "b")),
    "repeats": (
        regular(repeat(token("a"), 1, 2) + repeat(any_token(but=("a",)), 2), ABC, LENGTHS),
        lambda w: "".join(map(str, w)).lstrip("a") in ("bb", "bc", "cb", "cc") and len(w) in (3, 4) and w[0] == "a",
    ),
    "either": (
        regular(star(token("a", "b")) | repeat(token("c"), 2, None), ABC, LENGTHS),
        lambda w: "c" not in w or (set(w) == {"c"} and len(w) >= 2),
    ),
    "nested stars": (
        regular(star(star(token("a")) + token("b")), ABC, LENGTHS),
        lambda w: "c" not in w and w[-1] == "b",
    ),
    "nothing": (regular(union(), ABC, LENGTHS), lambda w: False),
    "empty word only": (regular(concat(), ABC, LENGTHS), lambda w: False),
    "gaps": (sorted_sequences(ABC, [1, 4]), lambda w: list(w) == sorted(w, key=str) and len(w) in (1, 4)),
    "distinct with gaps": (distinct(ABC, [1, 3]), lambda w: len(set(w)) == len(w) and len(w) in (1, 3)),
    "few letters": (
        regular(star(token("a", "c")), ABC, LENGTHS).intersection(distinct(ABC, LENGTHS)),
        lambda w: w in [("a",), ("c",), ("a", "c"), ("c", "a")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_enumeration(name: str) -> None:
    language, keep = CASES[name]
    expected = words(language.vocab, LENGTHS, keep)
    assert list(language.enumerate()) == expected
    assert language.size() == len(expected) and language.is_empty == (not expected)
    assert [language.size(n) for n in range(7)] == [sum(len(w) == n for w in expected) for n in range(7)]
    batches = [[language.vocab[t] for t in row] for batch in language.batches(7) for row in batch.tolist()]
    assert batches == expected
    for n in LENGTHS:
        every = np.array(list(itertools.product(range(len(language.vocab)), repeat=n)))
        accepted = every[language.contains_ids(every)].tolist()
        assert [[language.vocab[t] for t in row] for row in accepted] == [w for w in expected if len(w) == n]
        here = [w for w in expected if len(w) == n]
        assert language.alphabet(n) == {t for w in here for t in w}
        assert language.alphabets(n) == tuple(frozenset(w[i] for w in here) for i in range(n))
    for word in itertools.product(language.vocab, repeat=2):
        assert (word in language) == (list(word) in language) == (list(word) in expected)
    product = all(language.size(n) == len(language.alphabet(n)) ** n for n in range(1, 6) if language.size(n))
    assert language.is_product() == product


@pytest.mark.parametrize("name", CASES)
def test_json_and_complement(name: str) -> None:
    language, keep = CASES[name]
    text = json.dumps(language.to_json())
    again = Language.from_json(json.loads(text))
    assert again.equals(language) and json.dumps(again.to_json()) == text
    within = words(language.vocab, range(1, 6), lambda w: len(w) in language.lengths and not keep(w))
    assert list(language.complement().enumerate()) == within
    minimal = language.automaton.minimised()
    assert minimal.same(language.automaton)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(CASES, 2)))
def test_combinations(first: str, second: str) -> None:
    (left, keep_left), (right, keep_right) = CASES[first], CASES[second]
    vocab = tuple(sorted({*left.vocab, *right.vocab}, key=str))
    inside = {tuple(w) for w in words(left.vocab, LENGTHS, keep_left)}
    others = {tuple(w) for w in words(right.vocab, LENGTHS, keep_right)}
    for combined, expected in (
        (left.intersection(right), inside & others),
        (left.union(right), inside | others),
        (left.difference(right), inside - others),
    ):
        assert combined.vocab == vocab
        assert {tuple(word) for word in combined.enumerate()} == expected
    assert left.is_subset(right) == (inside <= others) and right.is_subset(left) == (others <= inside)
    assert left.equals(right) == (inside == others)


def test_sampling_is_uniform() -> None:
    for name in ("all", "distinct", "sorted", "balanced among others", "repeats", "gaps"):
        language, keep = CASES[name]
        expected = words(language.vocab, LENGTHS, keep)
        counts = Counter(tuple(word) for word in language.sample(0, 40 * len(expected)))
        assert set(counts) == {tuple(word) for word in expected}
        chi_square = sum((counts[tuple(word)] - 40) ** 2 / 40 for word in expected)
        n = len(expected) - 1
        assert chi_square < n + 5 * math.sqrt(2 * n) + 5, name


def test_sampling_by_length_and_reproducibly() -> None:
    language = sorted_sequences(range(30), range(1, 51))
    rows = language.sample_length(np.random.default_rng(1), 7, 100)
    assert rows.shape == (100, 7) and language.contains_ids(rows).all()
    assert language.sample(3, 5) == language.sample(3, 5)
    for length, batch in language.sample_ids(2, 500):
        assert batch.shape[1] == length and language.contains_ids(batch).all()
    assert language.sample(0, 0) == []
    with pytest.raises(InputError, match="empty"):
        CASES["nothing"][0].sample(0, 1)
    with pytest.raises(InputError, match="no word of length 9"):
        CASES["all"][0].sample_length(0, 9, 1)
    with pytest.raises(InputError, match="got -1"):
        CASES["all"][0].sample(0, -1)


def test_large_languages_are_fast_and_exact() -> None:
    start = time.process_time()
    assert sequences(range(30), range(1, 51)).size() == sum(30**n for n in range(1, 51))
    assert distinct(range(30), range(1, 51)).size() == sum(math.perm(30, n) for n in range(1, 31))
    assert sorted_sequences(range(30), 50).size() == math.comb(79, 50)
    assert exactly_one(3, range(30), 50).size() == 50 * 29**49
    assert balanced([("(", ")")], 50, 50).size() == math.comb(50, 25) // 26
    assert balanced([("(", ")"), ("[", "]")], 9, 10).size() == 2**5 * 42
    assert regular(star(any_token()) + token(1), range(30), 50).size() == 30**49
    assert sequences(range(1000), 10_000).size() == 1000**10_000
    assert "10^30000" in repr(sequences(range(1000), 10_000))
    tens = distinct(range(30), range(1, 31)).intersection(sequences(range(20, 40), range(1, 31)))
    assert tens.size(10) == tens.size(9) == math.perm(10)
    assert distinct(range(30), range(1, 31)).is_subset(sequences(range(30), range(1, 51)))
    assert not distinct(range(30), range(1, 31)).equals(distinct(range(29), range(1, 31)))
    ranks = np.array([0, 1, math.perm(30, 12) - 1])
    assert distinct(range(30), 12).unrank(12, ranks).tolist() == [
        list(range(12)), [*range(11), 12], list(range(29, 17, -1)),
    ]  # fmt: skip
    first = next(iter(sequences(range(30), range(40, 51)).enumerate()))
    assert first == [0] * 40
    assert time.process_time() - start < 5


def test_products_by_length() -> None:
    assert sequences(range(5), range(1, 9)).is_product()
    assert not sorted_sequences(range(5), range(1, 9)).is_product()
    assert sorted_sequences(range(5), 1).is_product()
    starts = regular(token(0) | repeat(token(1, 2), 2), range(3), range(1, 4))
    assert starts.is_product() and starts.alphabet(1) == {0} and starts.alphabet(2) == {1, 2}
    assert starts.alphabet(3) == frozenset() and starts.alphabet(-1) == frozenset()


def test_vocabulary_is_canonical() -> None:
    language = sequences(["b", 2, None, "a", Fraction(1, 2)], 1)
    assert [word[0] for word in language.enumerate()] == [None, Fraction(1, 2), 2, "a", "b"]
    assert [True] in sequences(range(2), 1) and [1.0] not in sequences(range(2), 1)
    assert "ab" not in sequences("ab", 2) and ["a", "z"] not in sequences("ab", 2) and [["a"]] not in sequences("ab", 1)
    assert sequences("ab", range(1, 3)).over("abc").vocab == ("a", "b", "c")
    assert sequences("ab", range(1, 3)).over("abc").equals(sequences("ab", range(1, 3)))
    assert sequences("ab", range(1, 5)).restricted(range(2, 4)).size() == 4 + 8
    with pytest.raises(InputError, match="lacks"):
        sequences("ab", 1).over("ac")
    with pytest.raises(InputError, match="not 7"):
        sequences("ab", 1).restricted(7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequences(itertools.count(), 3), "finite"),
        (lambda: sequences((i for i in range(3)), 3), "finite"),
        (lambda: sequences(range(10**9), 3), "1 to"),
        (lambda: sequences([], 3), "none"),
        (lambda: sequences([0, 0], 3), "0 more than once"),
        (lambda: sequences([0, False], 3), "more than once"),
        (lambda: sequences([0, 0.5], 3), "got 0.5 .*write an int or a Fraction"),
        (lambda: sequences([0, (1,)], 3), "tuple"),
        (lambda: sequences("ab", 0), "got 0"),
        (lambda: sequences("ab", -2), "got -2"),
        (lambda: sequences("ab", range(3)), "got 0"),
        (lambda: sequences("ab", range(3, 3)), "no length"),
        (lambda: sequences("ab", 2.0), "range"),
        (lambda: sequences("ab", True), "got True"),
        (lambda: sequences("ab", [1, "2"]), "got '2'"),
        (lambda: sequences("ab", "12"), "range"),
        (lambda: sequences("ab", itertools.count(1)), "range"),
        (lambda: sequences("ab", range(1, 10**18)), "1 to 65536"),
        (lambda: sequences("ab", 10**18), "1 to 65536"),
        (lambda: exactly_one("z", "ab", 2), "'z' is not in the vocabulary"),
        (lambda: exactly_one(1.0, range(2), 2), "1.0"),
        (lambda: occurrences("a", "ab", 2, 3, 1), "3 to 1"),
        (lambda: occurrences("a", "ab", 2, -1), "-1"),
        (lambda: balanced([], 2, 2), "pairs"),
        (lambda: balanced(["abc"], 2, 2), "pairs"),
        (lambda: balanced([("(", "(")], 2, 2), "more than once"),
        (lambda: balanced([("(", ")")], -1, 2), "-1"),
        (lambda: balanced([("(", ")"), ("[", "]")], 40, 50), "states"),
        (lambda: regular(token("z"), "ab", 2), "'z'"),
        (lambda: regular("a*", "ab", 2), "token, any_token"),
        (lambda: token(), "at least one"),
        (lambda: repeat(token("a"), -1), "-1"),
        (lambda: repeat(token("a"), 3, 2), "3 to 2"),
        (lambda: regular(repeat(repeat(token("a"), 1000), 1000), "ab", 2), "expands"),
        (lambda: distinct(range(30), range(1, 31)).complement(), "distinct tokens among 30"),
        (lambda: list(sequences(range(30), 50).batches()), "sample"),
        (lambda: sequences(range(3), 2).unrank(2, np.array([9])), "ranks"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bad_json() -> None:
    good = CASES["sorted"][0].to_json()
    assert good["kind"] == "dfa"
    for change in (
        {"kind": "set"},
        {"vocab": ["b", "a", "c"]},
        {"vocab": "abc"},
        {"lengths": [0, 3]},
        {"lengths": [1]},
        {"lengths": [1, 10**12]},
        {"lengths": ["1", 2]},
        {"start": 1},
        {"accept": [99]},
        {"accept": [True]},
        {"delta": []},
        {"delta": [[0, 1]]},
        {"delta": [[0, 0, 7]]},
        {"delta": [[0, 0, -2]]},
        {"extra": 1},
    ):
        with pytest.raises(InputError):
            Language.from_json({**good, **change})
    with pytest.raises(InputError):
        Language.from_json([])


def test_minimisation_gives_one_automaton_for_one_language() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        states, symbols = int(rng.integers(1, 12)), int(rng.integers(1, 4))
        automaton = Automaton(
            rng.integers(states, size=(states, symbols)).astype(np.int32), rng.integers(2, size=states).astype(bool)
        )
        small = automaton.minimised()
        every = [np.array(list(itertools.product(range(symbols), repeat=n)), dtype=np.int64) for n in range(6)]
        for batch in every:
            assert np.array_equal(automaton.accepts(batch), small.accepts(batch))
        assert small.minimised().same(small)
        assert small.complement().minimised().complement().minimised().same(small)
        signatures = {tuple(small_from(small, state, every)) for state in range(small.n_states)}
        assert small.n_states <= states and (small.n_states > 6 or len(signatures) == small.n_states)
    long = length_automaton([1, 50], 2)
    assert long.n_states == 52 and long.counts(50)[50][0] == 2**50
    modulo = build(0, lambda state, symbol: (2 * state + symbol) % 12, lambda state: state % 4 == 0, 2)
    assert modulo.n_states == 3


def small_from(automaton: Automaton, state: int, every: list[npt.NDArray[np.int64]]) -> list[bool]:
    """What is accepted from the state, word by word."""
    found: list[bool] = []
    for batch in every:
        states = np.full(len(batch), state)
        for column in batch.T:
            states = automaton.transitions[states, column]
        found += automaton.accepting[states].tolist()
    return found
