"""Ways to make a token language: products, regular expressions, distinct, sorted, balanced, counted tokens."""

from __future__ import annotations

from collections.abc import Iterable

from .automata import build, product_automaton
from .errors import InputError
from .patterns import Pattern, pattern_automaton
from .token_language import Language as Language
from .token_language import Lengths, as_lengths, check_number
from .values import Value, as_value, canonical_vocab


def sequences(vocab: object, length: Lengths) -> Language:
    """All sequences over a vocabulary: `sequences(range(10), range(1, 17))`."""
    tokens = canonical_vocab(vocab)
    return Language(tokens, as_lengths(length), product_automaton(range(len(tokens)), len(tokens)))


def distinct(vocab: object, length: Lengths) -> Language:
    """The sequences in which no token occurs twice."""
    free = sequences(vocab, length)
    return Language(free.vocab, free.lengths, free.automaton, True)


def regular(pattern: Pattern, vocab: object, length: Lengths) -> Language:
    """The sequences that match a pattern from beginning to end; see `patterns`."""
    tokens = canonical_vocab(vocab)
    return Language(tokens, as_lengths(length), pattern_automaton(pattern, tokens))


def occurrences(token: Value, vocab: object, length: Lengths, least: int, most: int | None = None) -> Language:
    """The sequences in which the token occurs `least` to `most` times (None: no limit)."""
    tokens = canonical_vocab(vocab)
    value = as_value(token)
    if value not in tokens:
        raise InputError(f"{token!r} is not in the vocabulary {tokens[:12]!r}")
    check_number(least, "least")
    if most is not None and check_number(most, "most") < least:
        raise InputError(f"most must be at least least, got {least} to {most}")
    counted, cap = tokens.index(value), (least if most is None else most + 1)
    automaton = build(
        0,
        lambda seen, symbol: min(seen + (symbol == counted), cap),
        lambda seen: seen >= least and (most is None or seen <= most),
        len(tokens),
    )
    return Language(tokens, as_lengths(length), automaton)


def exactly_one(token: Value, vocab: object, length: Lengths) -> Language:
    """The sequences in which the token occurs exactly once."""
    return occurrences(token, vocab, length, 1, 1)


def sorted_sequences(vocab: object, length: Lengths, strict: bool = False) -> Language:
    """The sequences that ascend in the vocabulary's canonical order, `strict`: without repetition."""
    tokens = canonical_vocab(vocab)
    dead = len(tokens) + 1

    def step(least: int, symbol: int) -> int:
        return (symbol + 1 if strict else symbol) if symbol >= least else dead

    return Language(tokens, as_lengths(length), build(0, step, lambda state: state != dead, len(tokens)))


def balanced(
    pairs: Iterable[tuple[Value, Value]], max_depth: int, length: Lengths, others: Iterable[Value] = ()
) -> Language:
    """The sequences whose brackets match and nest at most `max_depth` deep; `others` are tokens that do not count."""
    brackets = [tuple(pair) for pair in pairs]
    if not brackets or any(len(pair) != 2 for pair in brackets):
        raise InputError(f"pairs must be like [('(', ')')], got {brackets!r}")
    check_number(max_depth, "max_depth")
    tokens = canonical_vocab((*(value for pair in brackets for value in pair), *others))
    opens = {tokens.index(as_value(pair[0])): kind for kind, pair in enumerate(brackets)}
    closes = {tokens.index(as_value(pair[1])): kind for kind, pair in enumerate(brackets)}
    dead = (-1,)

    def step(stack: tuple[int, ...], symbol: int) -> tuple[int, ...]:
        if stack == dead:
            return dead
        if symbol in opens:
            return (*stack, opens[symbol]) if len(stack) < max_depth else dead
        if symbol in closes:
            return stack[:-1] if stack and stack[-1] == closes[symbol] else dead
        return stack

    empty: tuple[int, ...] = ()
    automaton = build(empty, step, lambda stack: stack == empty, len(tokens))
    return Language(tokens, as_lengths(length), automaton)
