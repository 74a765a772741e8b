"""Theorems about programs alone (section 13 of the specification): their domain, body, and what it says of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .automaton import Domain, read_domain
from .core import Bits, Ints, Program, read_program
from .format import Json, Value, as_fraction, is_number, rational, record, require, show, within

BODIES: dict[str, tuple[str, ...]] = {
    "equivalent": ("left", "right"),
    "implies": ("left", "right"),
    "ensures": ("program",),
    "range": ("program", "least", "most"),
    "accepts": ("program", "language"),
}


@dataclass(frozen=True)
class ProgramTheorem:
    """`symbols[p]`: the program's token index of each token of the domain. `language`: null means no word at all.

    `read[p, value index]`: what the body needs of a program's output value; see `_classes`.
    """

    domain: Domain
    kind: str
    programs: tuple[Program, ...]
    symbols: tuple[Ints, ...]
    read: tuple[Ints, ...]
    language: Domain | None = None

    def holds(self, outputs: tuple[Ints, ...], members: Bits) -> Bits:
        """[batch]: at every position, for output value indices [batch, n] of each program."""
        first, *rest = (classes[output] for classes, output in zip(self.read, outputs, strict=True))
        if self.kind == "equivalent":
            good = first == rest[0]
        elif self.kind == "implies":
            good = (first == 0) | (rest[0] == 1)
        elif self.kind == "accepts":
            good = first == members[:, None]
        else:
            good = first == 1
        return np.asarray(good.all(axis=1))

    def members(self, words: Ints) -> Bits:
        """[batch]: whether the word, of tokens of the domain, is in `language`."""
        found = np.zeros(len(words), dtype=np.bool_)
        if self.language is None or not self.language.lo <= words.shape[1] <= self.language.hi:
            return found
        state = np.full(len(words), self.language.start, dtype=np.int64)
        delta = self.language_delta()
        for column in words.T:
            state = delta[state, column]
        return np.asarray(self.language.accept[state])

    def language_delta(self) -> Ints:
        """The language's transitions by tokens of the domain; one that it does not know leads to its dead state."""
        assert self.language is not None
        position = {token: index for index, token in enumerate(self.language.vocab)}
        count = len(self.language.accept)
        columns = [
            self.language.delta[:, position[token]] if token in position else np.full(count, count - 1)
            for token in self.domain.vocab
        ]
        return np.stack(columns, axis=1)


def read_program_theorem(data: Json) -> ProgramTheorem:
    """The theorem, if it is well formed."""
    with within("theorem", "theorem"):
        item = record(data, "theorem", ("quantifier", "about", "domain", "body"))
        require(item["quantifier"] == "forall", f"unsupported quantifier {show(item['quantifier'])}")
        require(item["about"] == "programs", f"unsupported subject {show(item['about'])}")
        domain = read_domain(item["domain"])
        require(len(domain.alphabets()) > 0, "the domain is empty")
        kind = item["body"].get("kind") if isinstance(item["body"], dict) else None
        require(isinstance(kind, str) and kind in BODIES, f"unknown body {show(kind)}")
        body = record(item["body"], "body", ("kind", *BODIES[str(kind)]))
        programs = tuple(read_program(body[name]) for name in ("left", "right", "program") if name in body)
        language = _language(body["language"]) if "language" in body and body["language"] is not None else None
        for program in programs:
            require(program.max_len >= domain.hi, "the domain has longer inputs than the program")
            require(program.causal == programs[0].causal, "one program is causal, the other is not")
        symbols = tuple(_symbols(domain, program) for program in programs)
        return ProgramTheorem(domain, str(kind), programs, symbols, _classes(str(kind), programs, body), language)


def _language(data: Json) -> Domain:
    language = read_domain(data)
    require(not language.distinct, "a language is a product or an automaton")
    if len(language.accept) > 1:
        return language
    dead = np.array([[0] * len(language.vocab), [1] * len(language.vocab)], dtype=np.int64)
    return Domain(language.vocab, language.lo, language.hi, 0, np.array([True, False]), dead)


def _symbols(domain: Domain, program: Program) -> Ints:
    position = {token: index for index, token in enumerate(program.vocab)}
    require(all(token in position for token in domain.vocab), "a token of the domain is not in the program's vocab")
    return np.array([position[token] for token in domain.vocab], dtype=np.int64)


def _classes(kind: str, programs: tuple[Program, ...], body: Mapping[str, Json]) -> tuple[Ints, ...]:
    """Per program and output value, a number: for `equivalent`, equal numbers are equal values; else 1 is "true" (for
    `range`: a number within the ends), 0 is not."""
    lists = [program.nodes[program.output].values for program in programs]
    if kind == "equivalent":
        number = {item: index for index, item in enumerate(dict.fromkeys(item for items in lists for item in items))}
        return tuple(np.array([number[item] for item in items], dtype=np.int64) for items in lists)
    if kind == "range":
        least, most = rational(body["least"], "least"), rational(body["most"], "most")
        return tuple(np.array([_inside(item, least, most) for item in items], dtype=np.int64) for items in lists)
    return tuple(
        np.array([_inside(item, Fraction(1), Fraction(1)) for item in items], dtype=np.int64) for items in lists
    )


def _inside(item: Value, least: Fraction, most: Fraction) -> bool:
    return is_number(item) and least <= as_fraction(item) <= most
