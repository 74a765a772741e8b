"""What the library says about a program, and the vocabularies its programs are read over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from string import ascii_lowercase
from typing import ParamSpec

from ..core import Value
from ..rasp import SOp

P = ParamSpec("P")
Vocabulary = Callable[[int], tuple[Value, ...]]


@dataclass(frozen=True)
class Entry:
    """One program of the library.

    Law, for every `xs` over `vocab(size)` and every choice of options:
    `evaluate(build(**options), xs, causal=causal) == reference(xs, **options)`.

    name, summary: the function that builds it, and the first sentence of its docstring.
    signature: input and output type; `a` is any token type.
    build: `build(**options)` is the program; the options have defaults.
    reference: the same function in plain Python, written without RASP; exact (means are `Fraction`).
    vocab: the tokens for a requested vocabulary size; a fixed alphabet ignores the size.
    causal: the program is meant to be read with causal attention.
    max_vocab, max_len: inherent limits, or None.
    source: where the program comes from. tags: the themes it belongs to.
    """

    name: str
    summary: str
    signature: str
    build: Callable[..., SOp]
    reference: Callable[..., list[Value]]
    vocab: Vocabulary
    causal: bool
    source: str
    tags: tuple[str, ...]
    max_vocab: int | None = None
    max_len: int | None = None


def entry(
    build: Callable[..., SOp],
    reference: Callable[..., list[Value]],
    signature: str,
    vocab: Vocabulary,
    source: str,
    *tags: str,
    causal: bool = False,
    max_vocab: int | None = None,
    max_len: int | None = None,
) -> Entry:
    """The entry of a program built by the function `build`, which gives it its name and its summary."""
    text = build.__doc__
    assert text is not None, f"{build.__name__} has no docstring"
    summary = " ".join(text.split("\n\n")[0].split())
    return Entry(build.__name__, summary, signature, build, reference, vocab, causal, source, tags, max_vocab, max_len)


def named(build: Callable[P, SOp]) -> Callable[P, SOp]:
    """The s-ops that `build` makes carry its name."""

    @wraps(build)
    def program(*args: P.args, **options: P.kwargs) -> SOp:
        return build(*args, **options).named(build.__name__)

    return program


def letters(size: int) -> tuple[Value, ...]:
    """a, b, …, z, aa, ab, …"""
    singles = list(ascii_lowercase)
    doubles = [first + second for first in singles for second in singles]
    return tuple((singles + doubles)[:size])


def integers(size: int) -> tuple[Value, ...]:
    """0, 1, …, size - 1."""
    return tuple(range(size))


def positive(size: int) -> tuple[Value, ...]:
    """1, 2, …, size."""
    return tuple(range(1, size + 1))


def with_marks(*marks: str) -> Vocabulary:
    """The given marks, then letters up to the requested size (at least one)."""

    def vocab(size: int) -> tuple[Value, ...]:
        return (*marks, *letters(max(1, size - len(marks))))

    return vocab


def fixed(*tokens: Value) -> Vocabulary:
    """Always the given alphabet."""

    def vocab(size: int) -> tuple[Value, ...]:
        return tokens

    return vocab


def broadcast(value: Value, xs: list[Value]) -> list[Value]:
    """The value at every position."""
    return [value] * len(xs)
