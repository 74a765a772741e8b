"""Claims about programs: verdicts against enumeration, minimal counterexamples, what None and undefined mean."""

from __future__ import annotations

import contextlib
import json
import random
from itertools import product
from typing import Any

import pytest

import certiformer as cf
from certiformer import proofs
from certiformer.compiler import programs
from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.rasp import aggregate, full, indices, select, selector_width, tokens
from certiformer.models.languages import balanced, distinct
from certiformer.verifier import smt_search
from certiformer.verifier.program_claims import ProgramClaim
from certiformer.verifier.program_proofs import prove_program

from .program_mutants import mutant
from .random_programs import case


def first_failure(claim: ProgramClaim, domain: cf.Language) -> tuple[Any, ...] | None:
    """By running the interpreter on every input in order."""
    for word in domain.enumerate():
        rows = None
        try:
            rows = claim.evaluate(word)
        except cf.InputError:
            return tuple(word)
        member = claim.language is not None and word in claim.language
        if not all(claim.holds_at(values, member) for values in zip(*rows, strict=True)):
            return tuple(word)
    return None


def agrees(claim: ProgramClaim, domain: cf.Language, **options: Any) -> bool:
    """The verdict is what enumeration says, with the same input; the second solver path (no enumeration) too."""
    expected = first_failure(claim, domain)
    verdict = prove_program(claim, domain, **options)
    if expected is None:
        if isinstance(verdict, cf.Proved):
            return isinstance(cf.check(verdict.certificate, expect=claim, domain=domain), cf.Valid)
        return isinstance(verdict, cf.Unknown) and verdict.certificate is not None
    assert isinstance(verdict, cf.Refuted), (str(claim), expected, verdict)
    assert not isinstance(verdict.evidence, cf.Certificate)
    return verdict.evidence.inputs == (expected,)


@pytest.mark.parametrize("seed", range(40))
def test_mutants_are_proved_or_refuted_as_enumeration_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smt_search, "FEW", 0)  # every length is a query
    rng = random.Random(1000 + seed)
    changed = None
    while changed is None:
        entry = LIBRARY[list(LIBRARY)[rng.randrange(len(LIBRARY))]]
        program = entry.build()
        changed = mutant(program, rng)
    size = len(entry.vocab(3))
    domain = cf.sequences(entry.vocab(3), range(1, 5 if size <= 3 else 4 if size <= 4 else 3))
    claim = cf.Equivalent(program, changed[0], causal=entry.causal)
    assert agrees(claim, domain, engines=("smt",) if seed % 2 else None), (entry.name, changed[1])


_SORT, _HIST = programs.sort(), programs.hist()
_CLAIMS: dict[str, tuple[ProgramClaim, cf.Language]] = {
    "sorted": (cf.Ensures(_SORT, cf.is_sorted), cf.sequences(range(3), range(1, 5))),
    "a permutation": (cf.Ensures(_SORT, cf.is_permutation), cf.sequences(range(3), range(1, 5))),
    "not sorted": (cf.Ensures(programs.sort_descending(), cf.is_sorted), cf.sequences(range(3), range(1, 5))),
    "None is not sorted": (cf.Ensures(programs.sort_unique(), cf.is_sorted), cf.sequences(range(3), range(1, 5))),
    "sorted on distinct tokens": (cf.Ensures(programs.sort_unique(), cf.is_sorted), distinct(range(4), range(1, 5))),
    "dyck": (
        cf.Ensures(programs.shuffle_dyck1(), cf.accepts_exactly(balanced([("(", ")")], 3, range(1, 7)))),
        cf.sequences("()", range(1, 7)),
    ),
    "dyck, not deep enough": (
        cf.Ensures(programs.shuffle_dyck1(), cf.accepts_exactly(balanced([("(", ")")], 2, range(1, 7)))),
        cf.sequences("()", range(1, 7)),
    ),
    "range": (cf.Range(_HIST, 1, 4), cf.sequences("abc", range(1, 5))),
    "range too small": (cf.Range(_HIST, 1, 3), cf.sequences("abc", range(1, 5))),
    "None is in no range": (cf.Range(programs.next_token(), 0, 9), cf.sequences(range(3), range(1, 5))),
    "one key": (cf.AtMostOne(select(indices, indices, "==")), cf.sequences("ab", range(1, 5))),
    "several keys": (cf.AtMostOne(select(tokens, tokens, "==")), cf.sequences("ab", range(1, 5))),
    "implied": (cf.Implies(programs.is_unique(), _HIST < 2), cf.sequences("abc", range(1, 5))),
    "not implied": (cf.Implies(_HIST < 3, programs.is_unique()), cf.sequences("abc", range(1, 5))),
    "None implies nothing": (cf.Implies(_HIST > 0, programs.next_token() == "a"), cf.sequences("a", range(1, 4))),
    "means": (cf.Equivalent(programs.mean(), programs.midrange()), cf.sequences(range(3), range(1, 5))),
    "causal": (cf.Equivalent(programs.prefix_count(), _HIST, causal=True), cf.sequences("abc", range(1, 5))),
    "not causal": (cf.Equivalent(programs.prefix_count(), _HIST), cf.sequences("abc", range(1, 5))),
}


@pytest.mark.parametrize("name", _CLAIMS)
@pytest.mark.parametrize("engines", [None, ("smt",)], ids=["both", "smt"])
def test_verdicts_are_enumerations(name: str, engines: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smt_search, "FEW", 0)
    claim, domain = _CLAIMS[name]
    assert agrees(claim, domain, engines=engines)


def test_composition_of_programs() -> None:
    words = cf.sequences("abc", range(1, 5))
    twice = cf.composed(programs.reverse(), programs.reverse())
    assert isinstance(cf.prove(cf.Equivalent(twice, programs.identity()), words), cf.Proved)
    assert agrees(cf.Equivalent(cf.composed(programs.rotate(), programs.shift_by()), programs.identity()), words)
    for word in words.enumerate():
        first = cf.evaluate(programs.rotate(), word)
        assert cf.evaluate(cf.composed(programs.hist(), programs.rotate()), word) == cf.evaluate(programs.hist(), first)


def test_undefined_is_a_failure_even_where_both_are() -> None:
    inverse = 1 / tokens
    verdict = cf.prove(cf.Equivalent(inverse, 1 / tokens), cf.sequences(range(3), range(1, 3)))
    assert isinstance(verdict, cf.Refuted) and verdict.outcome is not None
    assert verdict.outcome.status == "undefined" and "division by zero" in verdict.outcome.note


def test_a_premise_that_is_never_met_is_vacuous() -> None:
    verdict = cf.prove(cf.Implies(_HIST > 9, _HIST > 10), cf.sequences("ab", range(1, 5)))
    assert isinstance(verdict, cf.Vacuous)


def test_no_input_is_an_empty_domain() -> None:
    nothing = cf.sequences("ab", 3).difference(cf.sequences("ab", 3))
    assert isinstance(cf.prove(cf.Equivalent(_HIST, _HIST), nothing), cf.EmptyDomain)


def test_a_solver_alone_proves_nothing() -> None:
    verdict = cf.prove(_CLAIMS["sorted"][0], cf.sequences(range(3), range(1, 6)), engines=("smt",))
    assert isinstance(verdict, cf.Unknown) and verdict.certificate is not None
    assert isinstance(cf.check(verdict.certificate), cf.Holey)
    assert "Z3" in verdict.reason and "z3" in str(verdict)


def test_time_is_a_reason() -> None:
    other = cf.Equivalent(programs.median(), programs.kth_smallest(4))
    domain = cf.sequences(range(8), 7)
    verdict = cf.prove(cf.Ensures(_SORT, cf.is_sorted), domain, seconds=1, engines=("smt",))
    assert isinstance(verdict, cf.Unknown) and "more seconds" in verdict.reason and verdict.left == 8**7
    refuted = cf.prove(other, cf.sequences(range(8), range(1, 8)))
    assert isinstance(refuted, cf.Refuted)


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(smt_search.Query, "smallest_failure", interrupted)
    verdict = cf.prove(_CLAIMS["range"][0], cf.sequences("abc", range(1, 5)), engines=("smt",))
    assert isinstance(verdict, cf.Unknown) and verdict.reason == "interrupted"


def test_a_solver_that_lies_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """An assignment that does not replay is an internal error."""
    monkeypatch.setattr(smt_search, "FEW", 0)
    monkeypatch.setattr(smt_search.Query, "fails", lambda self, word: False)
    claim, domain = _CLAIMS["range too small"]
    with pytest.raises(cf.InternalError, match="replay"):
        cf.prove(claim, domain, engines=("smt",))


def test_without_a_solver_a_sampled_failure_says_what_it_is() -> None:
    claim, domain = _CLAIMS["range too small"]
    verdict = cf.prove(claim, domain, engines=("enumeration",))
    assert isinstance(verdict, cf.Refuted) and "not shown to be the smallest" in str(verdict)


def test_programs_that_average_different_tokens_are_not_certified_by_renaming() -> None:
    """The mean of tokens is not renamed with them: only 3 and 5 give 4, so no smaller word stands for them."""
    four = aggregate(select(tokens, tokens, True), tokens) == 4
    never = selector_width(select(four, full(True), "==")) > 99
    domain = cf.sequences((3, 5, 8), range(1, 4))
    assert agrees(cf.Equivalent(four, never), domain)


@pytest.mark.parametrize("bad", [{"engines": ()}, {"engines": ("paths",)}, {"seconds": 0}])
def test_bad_input(bad: dict[str, Any]) -> None:
    with pytest.raises(cf.InputError):
        cf.prove(cf.Range(_HIST, 0, 1), cf.sequences("ab", 2), **bad)
    with pytest.raises(cf.InputError):
        cf.Range(_HIST, "a", 2)
    with pytest.raises(cf.InputError, match="float32"):
        cf.prove(cf.Range(_HIST, 0, 1), cf.sequences("ab", 2), semantics="float32")
    with pytest.raises(cf.InputError):
        cf.Ensures(_HIST, lambda x, y: 3)  # type: ignore[arg-type, return-value]


def valid(theorem: dict[str, Any], rule: str = "enumerate_programs") -> bool:
    data = {"format": "certiformer/1", "theorem": theorem, "proof": {"rule": rule}}
    return isinstance(proofs.check({**data, "seal": proofs.seal(data)}), proofs.Valid)


@pytest.mark.parametrize("seed", range(30))
def test_the_checker_accepts_what_is_true_and_nothing_else(seed: int) -> None:
    """Mutants again, on domains with renamings and reorderings, straight to the checker."""
    rng = random.Random(seed)
    theorem = None
    while theorem is None:  # a mutant that may be undefined has no tables
        name = rng.choice(["hist", "rank", "sort", "count_runs", "mean", "is_first_occurrence", "median", "sort_freq"])
        entry = LIBRARY[name]
        changed = mutant(entry.build(), rng)
        assert changed is not None
        vocab = entry.vocab(4)
        domain = [cf.sequences(vocab, range(1, 5)), distinct(vocab, range(1, 5))][seed % 2]
        claim = cf.Equivalent(entry.build(), changed[0])
        with contextlib.suppress(cf.InputError):
            theorem = claim.theorem(domain)
    assert valid(theorem) == (first_failure(claim, domain) is None), (name, changed[1])


_LOCAL = [
    *("difference", "window_sum", "window_mean", "detect_pattern", "gray_code", "equals_previous", "shift_by"),
    *("swap_neighbours", "alternate_case", "nary_sequencemap", "equals_first", "prefix_count", "contains_pattern"),
]


@pytest.mark.parametrize("seed", range(60))
def test_cones_accept_what_is_true_and_nothing_else(seed: int) -> None:
    """Of programs that read near positions, and of some that do not; causal and not."""
    rng = random.Random(seed)
    theorem = None
    while theorem is None:
        entry = LIBRARY[rng.choice(_LOCAL)]
        changed = mutant(entry.build(), rng)
        if changed is None:
            continue
        domain = cf.sequences(entry.vocab(3), range(1, 6))
        claim = cf.Equivalent(entry.build(), changed[0], causal=rng.random() < 0.3)
        with contextlib.suppress(cf.InputError):
            theorem = claim.theorem(domain)
    assert valid(theorem, "enumerate_cones") == (first_failure(claim, domain) is None), (entry.name, changed[1])


@pytest.mark.parametrize("seed", range(60))
def test_cones_of_random_programs(seed: int) -> None:
    """A random program, and one change of a table: valid only if true on every word of the tables themselves."""
    this = case(seed)
    domain = cf.sequences(this.vocab, range(1, 4))
    other = mutant(this.program, random.Random(seed))
    for program in [this.program, *([other[0]] if other else [])]:
        claim = cf.Equivalent(this.program, program, causal=this.causal)
        try:
            theorem = claim.theorem(domain)
        except cf.InputError:
            continue
        expected = first_failure(claim, domain) is None
        assert valid(theorem, "enumerate_cones") == expected, this.text
        assert valid(theorem) == expected, this.text


def test_cones_are_small_where_programs_are_local() -> None:
    """8^9 inputs of length 9 alone."""
    claim = cf.Range(programs.difference(), -7, 7)
    assert isinstance(cf.prove(claim, cf.sequences(range(8), range(1, 10))), cf.Proved)
    refuted = cf.prove(cf.Range(programs.difference(), -6, 7), cf.sequences(range(8), range(1, 10)))
    assert isinstance(refuted, cf.Refuted) and refuted.evidence.inputs == ((7, 0),)  # type: ignore[union-attr]


def test_no_mutated_theorem_is_valid_unless_true() -> None:
    """One entry of a table at a time."""
    domain = cf.sequences("abc", range(1, 4))
    theorem = cf.Equivalent(_HIST, selector_width(select(tokens, tokens, "=="))).theorem(domain)
    text = json.dumps(theorem)
    accepted = 0
    for place in [at for at, character in enumerate(text) if character in "01"]:
        changed = json.loads(text[:place] + "10"[int(text[place])] + text[place + 1 :])
        if changed["domain"] != theorem["domain"]:
            continue
        accepted += valid(changed)
    assert valid(theorem) and accepted == 0


def test_all_words_come_to_a_reduced_one() -> None:
    """Each class of words that moves connect has a word that is evaluated."""
    from certiformer.proofs.automaton import read_domain
    from certiformer.proofs.program_check import reduced_words
    from certiformer.proofs.program_moves import Move

    domain = read_domain({"kind": "product", "vocab": ["a", "b", "c", "d"], "lengths": [1, 5]})
    sets = [
        [Move("swap", s, t) for s in range(4) for t in range(s + 1, 4)],
        [Move("swap", 1, 3)],
        [Move("lower", s, s + 1) for s in range(3)],
        [Move("lower", 1, 2), Move("swap", 0, 3)],
        [Move("places", j, j + 1) for j in range(4)],
        [Move("places", 1, 2), Move("swap", 0, 1), Move("lower", 2, 3)],
        [],
    ]
    for moves in sets:
        for n in (1, 3, 5):
            kept = {tuple(row) for words in reduced_words(domain, moves, n, 7) for row in words.tolist()}
            for word in product(range(4), repeat=n):
                assert reduce(word, moves) in kept


def reduce(word: tuple[int, ...], moves: list[Any]) -> tuple[int, ...]:
    """Moves that make the word smaller, one after the other, while there is one."""
    while True:
        smaller = [new for move in moves if (new := moved(word, move)) < word]
        if not smaller:
            return word
        word = smaller[0]


def moved(word: tuple[int, ...], move: Any) -> tuple[int, ...]:
    if move.kind == "places":
        if len(word) <= move.second:
            return word
        changed = list(word)
        changed[move.first], changed[move.second] = changed[move.second], changed[move.first]
        return tuple(changed)
    if move.kind == "lower" and move.first in word:
        return word
    names = {move.second: move.first}
    if move.kind == "swap":
        names[move.first] = move.second
    return tuple(names.get(token, token) for token in word)
