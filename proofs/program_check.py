"""Theorems about programs, checked (section 11 of the specification).

Rule `enumerate_programs`: the body is evaluated on every word of the domain to which no followed move applies. A word
that a followed move makes smaller (in the order of the domain's tokens) is as good as the smaller one; every word comes
in this way to one that no move makes smaller, and all of these are evaluated. Rule `enumerate_cones`: see there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .automaton import Domain
from .core import Bits, Ints, Program, trace
from .format import Json, Rejected, listing, record, require, show, text, within
from .prefix_check import check_prefix_theorem
from .program_cones import cone_words
from .program_moves import Move, followed
from .program_theorem import ProgramTheorem, read_program_theorem

MAX_WORDS = 2**22
CELLS = 2**23


def check_programs(theorem: ProgramTheorem, proof: dict[str, Json]) -> None:
    """Accepts if the body holds on every word that no move makes smaller."""
    with within("proof", "enumerate_programs"):
        record(proof, "proof", ("rule",))
        candidates = followed(theorem)
        while True:
            try:
                _evaluate_all(theorem, candidates)
                return
            except _Averages as found:
                candidates = [(move, unmixed) for move, unmixed in candidates if found.node not in unmixed]


def check_cones(theorem: ProgramTheorem, proof: dict[str, Json]) -> None:
    """Accepts if the body holds on every word that `cone_words` gives."""
    with within("proof", "enumerate_cones"):
        record(proof, "proof", ("rule",))
        for words in cone_words(theorem, CELLS // (16 * theorem.domain.hi**2)):
            _require_holds(theorem, set(), words)


class _Averages(Exception):
    """An aggregate averages that must not: the moves that need that are left out."""

    def __init__(self, node: tuple[int, int]) -> None:
        super().__init__(node)
        self.node = node


def _evaluate_all(theorem: ProgramTheorem, candidates: list[tuple[Move, frozenset[tuple[int, int]]]]) -> None:
    moves = [move for move, _ in candidates]
    unmixed: set[tuple[int, int]] = set().union(*(nodes for _, nodes in candidates))
    count_words(theorem.domain, moves, MAX_WORDS)
    for n in theorem.domain.alphabets():
        for words in reduced_words(theorem.domain, moves, n, max(1, CELLS // (16 * n * n))):
            _require_holds(theorem, unmixed, words)


def count_words(domain: Domain, moves: list[Move], most: int) -> int:
    """How many words are evaluated. Raises `Rejected` above `most`."""
    count = 0
    for n in domain.alphabets():
        for words in reduced_words(domain, moves, n, 2**16):
            count += len(words)
            require(count <= most, f"more than {most} words have to be evaluated")
    return count


def _require_holds(theorem: ProgramTheorem, unmixed: set[tuple[int, int]], words: Ints) -> None:
    outputs = []
    for place, (program, symbols) in enumerate(zip(theorem.programs, theorem.symbols, strict=True)):
        found = trace(program, symbols[words], program.output)
        if found.undefined.any():
            raise Rejected(f"a program is undefined on {_shown(theorem, words, found.undefined)}")
        for of_program, number in sorted(unmixed):
            if of_program == place and _mixes(program, number, found.values, found.selected).any():
                raise _Averages((place, number))
        outputs.append(found.values[program.output])
    good = theorem.holds(tuple(outputs), theorem.members(words))
    if not good.all():
        raise Rejected(f"the body is false of {_shown(theorem, words, ~good)}")


def _mixes(program: Program, number: int, values: dict[int, Ints], selected: dict[int, Bits]) -> Bits:
    """[batch]: whether the aggregate's selected values differ at some position."""
    selector, source = program.nodes[number].args
    chosen, value = selected[selector], values[source]
    n = value.shape[1]
    least, most = np.full_like(value, len(program.nodes[source].values)), np.full_like(value, -1)
    for key in range(n):
        held, here = chosen[:, :, key].copy(), value[:, key : key + 1]
        if program.causal:
            held[:, :key] = False
        least, most = np.minimum(least, np.where(held, here, least)), np.maximum(most, np.where(held, here, most))
    return np.asarray((least < most).any(axis=1))


def _shown(theorem: ProgramTheorem, words: Ints, bad: Bits) -> str:
    return show([theorem.domain.vocab[token] for token in words[int(bad.argmax())]])


@dataclass(frozen=True)
class _Prefixes:
    """Beginnings of words [batch, length], the domain's state after each, and the tokens in each [batch, token]."""

    words: Ints
    states: Ints
    present: Bits


def reduced_words(domain: Domain, moves: list[Move], n: int, most: int) -> Iterator[Ints]:
    """The words of length n that no move makes smaller, [batch, n], about `most` a batch; each once.

    A move is left out of account only where that gives more words.
    """
    ends = domain._ends()
    count = len(domain.vocab)
    before = np.zeros((count, count), dtype=np.bool_)  # [t, s]: t may not stand before s has stood
    lower = [move for move in moves if move.kind == "lower"]
    ordered = {move.second for move in moves if move.kind == "places"}
    for move in moves:
        if move.kind == "swap":
            before[move.second, move.first] = True

    def extend(prefix: _Prefixes) -> Iterator[Ints]:
        length = prefix.words.shape[1]
        if length == n:
            if len(prefix.words):
                yield prefix.words
            return
        new = domain.delta[prefix.states]
        allowed = ends[n - length - 1][new]
        if domain.distinct:
            allowed = allowed & ~prefix.present
        absent = (~prefix.present).astype(np.float32)
        allowed = allowed & (absent @ before.T.astype(np.float32) == 0)
        if length in ordered:
            allowed = allowed & (np.arange(count) >= prefix.words[:, -1:])
        rows, tokens = np.nonzero(allowed)
        present = prefix.present[rows]
        present[np.arange(len(rows)), tokens] = True
        kept = _missing(present, lower) <= n - length - 1
        rows, tokens, present = rows[kept], tokens[kept], present[kept]
        grown = np.concatenate([prefix.words[rows], tokens[:, None]], axis=1)
        states = new[rows, tokens]
        for first in range(0, len(grown), most):
            part = slice(first, first + most)
            yield from extend(_Prefixes(grown[part], states[part], present[part]))

    start = np.array([domain.start], dtype=np.int64)
    none = np.zeros((1, count), dtype=np.bool_)
    yield from extend(_Prefixes(np.zeros((1, 0), dtype=np.int64), start, none))


def _missing(present: Bits, lower: list[Move]) -> Ints:
    """[batch]: how many tokens have to follow, so that no `lower` move applies in the end."""
    needed = np.zeros_like(present)
    for move in sorted(lower, key=lambda move: -move.second):
        wanted = present[:, move.second] | needed[:, move.second]
        needed[:, move.first] |= wanted & ~present[:, move.first]
    return np.asarray(needed.sum(axis=1))


def program_holes(theorem: ProgramTheorem, proof: dict[str, Json]) -> tuple[str, ...]:
    """What a proof of rule `hole` leaves open, by its own account."""
    with within("proof", "hole"):
        holes = listing(record(proof, "proof", ("rule", "which"))["which"], "which", 1024, 1)
        return tuple(text(hole, "a hole") for hole in holes)


def check_program_certificate(data: dict[str, Json]) -> tuple[str, ...]:
    """The holes of a certificate whose theorem is about programs; none if it is proved. Raises `Rejected`."""
    proof = data["proof"]
    rule = proof.get("rule") if isinstance(proof, dict) else None
    if rule == "prefix_states":
        check_prefix_theorem(data["theorem"], proof)
        return ()
    theorem = read_program_theorem(data["theorem"])
    if rule == "hole":
        return program_holes(theorem, proof)
    with within("proof", show(rule, 40)):
        known = rule in ("enumerate_programs", "enumerate_cones")
        require(known, f"unknown rule {show(rule)} for a theorem about programs")
    (check_programs if rule == "enumerate_programs" else check_cones)(theorem, proof)
    return ()
