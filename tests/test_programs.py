"""The library of programs: interpreter against plain Python, and against what Tracr's interpreter recorded."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from certiformer.compiler import programs
from certiformer.compiler.core import Value
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.programs import LIBRARY, Entry

from .tracr_fuzz_language import parse, sop

DATA = Path(__file__).parent / "data"
TRACR: dict[str, Any] = json.loads((DATA / "tracr_pairs.json").read_text())
FUZZ: list[dict[str, Any]] = [json.loads(line) for line in (DATA / "tracr_fuzz.jsonl").read_text().splitlines()]

MAX_SEQUENCES = 200
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("compact", {"blank": "a"}),
    ("contains", {"token": "b"}),
    ("contains_pattern", {"pattern": "aba"}),
    ("count", {"token": "b"}),
    ("count_less_freq", {"bound": 1}),
    ("detect_pattern", {"pattern": "a"}),
    ("detect_pattern", {"pattern": "ab"}),
    ("dyck1_bounded", {"bound": 1}),
    ("dyck2_bounded", {"bound": 1}),
    ("histogram", {"width": 2}),
    ("kth_smallest", {"k": 1}),
    ("majority_so_far", {"token": "b"}),
    ("pair_balance", {"opening": "(", "closing": "a"}),
    ("rotate", {"times": 0}),
    ("rotate", {"times": 3}),
    ("shift_by", {"offset": 0}),
    ("shift_by", {"offset": 2}),
    ("shift_by", {"offset": -1}),
    ("token_at", {"position": 2}),
    ("window_count", {"token": "b", "width": 2}),
    ("window_mean", {"width": 2}),
    ("window_sum", {"width": 1}),
]


def identical(got: Sequence[Value], expected: Sequence[Value]) -> bool:
    """Equal values; None only where None is expected."""
    return len(got) == len(expected) and all(
        (g is None) == (e is None) and g == e for g, e in zip(got, expected, strict=True)
    )


def agrees(got: Sequence[Value], recorded: Sequence[Any]) -> bool:
    """As `identical`, with recorded numbers being floats."""

    def close(g: Value, r: Any) -> bool:
        if g is None or r is None or isinstance(g, str) or isinstance(r, str):
            return bool(g == r)
        return abs(float(g) - float(r)) < 1e-6

    return len(got) == len(recorded) and all(map(close, got, recorded))


def short_sequences(vocab: tuple[Value, ...]) -> Iterator[list[Value]]:
    """All of lengths 1 to 4, as far as a length has at most `MAX_SEQUENCES`; a sample of that many otherwise."""
    generator = random.Random(0)
    for length in range(1, 5):
        if len(vocab) ** length <= MAX_SEQUENCES:
            yield from map(list, product(vocab, repeat=length))
        else:
            yield from (generator.choices(vocab, k=length) for _ in range(MAX_SEQUENCES))


def check(entry: Entry, sequences: Iterator[list[Value]], **options: Any) -> None:
    program = entry.build(**options)
    for xs in sequences:
        got, expected = evaluate(program, xs, causal=entry.causal), entry.reference(list(xs), **options)
        assert identical(got, expected), f"{entry.name}({options}) on {xs}: {got}, expected {expected}"


@pytest.mark.parametrize("name", LIBRARY)
def test_program_computes_its_reference_on_all_short_sequences(name: str) -> None:
    check(LIBRARY[name], short_sequences(LIBRARY[name].vocab(3)))


@pytest.mark.parametrize("name", LIBRARY)
def test_program_computes_its_reference_on_longer_sequences(name: str) -> None:
    generator = random.Random(name)
    vocab = LIBRARY[name].vocab(6)
    check(LIBRARY[name], (generator.choices(vocab, k=generator.randint(1, 8)) for _ in range(40)))


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_mean_the_same_to_program_and_reference(name: str, options: dict[str, Any]) -> None:
    check(LIBRARY[name], short_sequences(LIBRARY[name].vocab(3)), **options)


def nested(generator: random.Random, pairs: list[str], size: int) -> list[Value]:
    """A properly nested word of `size` pairs."""
    if size == 0:
        return []
    inside = generator.randrange(size)
    pair = generator.choice(pairs)
    return [pair[0], *nested(generator, pairs, inside), pair[1], *nested(generator, pairs, size - 1 - inside)]


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("dyck1_bounded", ["()"]),
        ("dyck2", ["()", "[]"]),
        ("dyck2_bounded", ["()", "[]"]),
        ("shuffle_dyck1", ["()"]),
        ("shuffle_dyck2", ["()", "{}"]),
        ("shuffle_dyck3", ["()", "[]", "{}"]),
    ],
)
def test_brackets_on_words_that_are_balanced_or_nearly(name: str, pairs: list[str]) -> None:
    """Random words are hardly ever balanced."""
    generator = random.Random(name)
    accepted: set[Value] = set()

    def words() -> Iterator[list[Value]]:
        for size in range(1, 6):
            for _ in range(10):
                word = nested(generator, pairs, size)
                accepted.add(LIBRARY[name].reference(list(word))[0])
                yield word
                word = list(word)
                word[generator.randrange(len(word))] = generator.choice("".join(pairs))
                yield word

    check(LIBRARY[name], words())
    assert True in accepted


@pytest.mark.parametrize("name", ["add_decimal", "add_binary", "carries", "compare_binary"])
def test_arithmetic_on_long_numbers(name: str) -> None:
    """Carries that run far are rare among random digits: sums of base - 1 and equal digits are made frequent."""
    generator = random.Random(name)
    vocab = [str(token) for token in LIBRARY[name].vocab(100)]
    base = round(len(vocab) ** 0.5)
    passing = [t for t in vocab if (t[0] == t[2] if ":" in t else int(t[0]) + int(t[2]) == base - 1)]
    check(LIBRARY[name], ([*generator.choices(vocab + passing * base, k=12)] for _ in range(40)))


def test_library_is_sorted_complete_and_described() -> None:
    assert len(LIBRARY) >= 45
    assert list(LIBRARY) == sorted(LIBRARY)
    for name, entry in LIBRARY.items():
        assert entry.name == name
        assert getattr(programs, name) is entry.build, f"programs.{name} is not the library's program"
        assert entry.summary.endswith((".", "…", ")")), f"{name}: the summary is no sentence: {entry.summary!r}"
        assert " -> list[" in entry.signature
        assert entry.tags and entry.source


@pytest.mark.parametrize("name", LIBRARY)
def test_vocabularies_are_of_one_kind_and_grow(name: str) -> None:
    small, large = LIBRARY[name].vocab(4), LIBRARY[name].vocab(30)
    for vocab in (small, large):
        assert len(set(vocab)) == len(vocab)
        assert len({isinstance(token, str) for token in vocab}) == 1
    assert len(large) == 30 or small == large
    assert len(small) == 4 or small == large


@pytest.mark.parametrize("name", TRACR)
def test_agrees_with_tracr(name: str) -> None:
    record = TRACR[name]
    program = LIBRARY[record["program"]].build(**record["options"])
    for xs, recorded in record["pairs"]:
        got = evaluate(program, xs, causal=record["causal"])
        assert agrees(got, recorded), f"{record['program']}({record['options']}) on {xs}: {got}, recorded {recorded}"


def test_tracr_record_is_whole() -> None:
    assert len(TRACR) == 90
    assert len(FUZZ) == 41
    assert sum(len(record["pairs"]) for record in TRACR.values()) > 3000


@pytest.mark.parametrize("record", FUZZ, ids=lambda record: f"seed{record['seed']}")
def test_agrees_with_tracr_on_programs_it_compiles_wrong(record: dict[str, Any]) -> None:
    got = evaluate(sop(parse(record["source"])), record["input"])
    assert agrees(got, record["output"]), f"{record['source']} on {record['input']}: {got}"


@pytest.mark.parametrize("source", ["", "Map(", "tokens)", "Map(odd tokens", "Width(tokens)", "Nope(tokens)"])
def test_fuzz_notation_refuses_what_it_does_not_know(source: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        sop(parse(source))
