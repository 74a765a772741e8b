"""False theorems that a checker would accept if one premise of its rules were left out."""

from __future__ import annotations

from typing import Any

import pytest

import certiformer as cf
from certiformer import proofs
from certiformer.compiler.rasp import Map, aggregate, full, indices, length, select, selector_width, tokens
from certiformer.models.languages import regular
from certiformer.models.patterns import token
from certiformer.verifier.program_claims import ProgramClaim

from .test_smt_programs import first_failure, valid

_ANY = token("a") | token("b")
_BOTH = cf.sequences("ab", 2).difference(regular(token("b") + token("b"), vocab="ab", length=2))
_ALL = select(indices, indices, True)
_FIRST = aggregate(select(indices, full(0), "=="), tokens)
_LAST = aggregate(select(indices, length, lambda k, q: k == q - 1), tokens)
_WEIGHT = aggregate(_ALL, Map({0: 7, 1: 7, 2: 9}, tokens))

PLANTED: dict[str, tuple[str, ProgramClaim, cf.Language]] = {
    "a move leads out of the domain": (
        "enumerate_programs",
        cf.Range(selector_width(select(tokens, tokens, "==")), 0, 1),
        regular(token("b") + _ANY, vocab="ab", length=2),
    ),
    "values that differ become equal": (
        "enumerate_programs",
        cf.Ensures(_WEIGHT, _WEIGHT != 8),
        cf.sequences(range(3), 2),
    ),
    "tokens that are renamed are averaged": (
        "enumerate_programs",
        cf.Ensures(tokens, aggregate(_ALL, tokens) * 2 != 5),
        cf.sequences((0, 1, 5), 2),
    ),
    "the language tells tokens apart": (
        "enumerate_programs",
        cf.Ensures(
            indices >= 0,
            cf.accepts_exactly(_BOTH),
        ),
        cf.sequences("ab", 2),
    ),
    "positions are told apart": (
        "enumerate_programs",
        cf.Ensures(tokens, ~((_FIRST == "b") & (_LAST == "a"))),
        cf.sequences("ab", 3),
    ),
    "tokens are told apart": ("enumerate_programs", cf.Ensures(tokens, tokens != "b"), cf.sequences("ab", 2)),
    "a query reads its token": (
        "enumerate_cones",
        cf.Range(selector_width(select(indices, tokens, "<")), 0, 0),
        cf.sequences(range(3), 3),
    ),
    "a key reads its token": (
        "enumerate_cones",
        cf.Range(selector_width(select(tokens, indices, ">")), 0, 0),
        cf.sequences(range(4), 3),
    ),
    "a key and a query read two tokens": (
        "enumerate_cones",
        cf.Range(
            selector_width(select(tokens, tokens, lambda k, q: k + q == 4) & select(indices, indices, "!=")), 0, 0
        ),
        cf.sequences(range(3), 2),
    ),
    "two programs read two tokens": (
        "enumerate_cones",
        cf.Implies(_FIRST == "b", _LAST != "b"),
        cf.sequences("ab", 3),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_false_theorems_are_not_valid(name: str) -> None:
    rule, claim, domain = PLANTED[name]
    assert first_failure(claim, domain) is not None
    assert not valid(claim.theorem(domain), rule)


_OPEN, _CLOSED = (selector_width(select(tokens, full(bracket), "==")) for bracket in "()")
_DEPTH = _OPEN - _CLOSED
_PREVIOUS = aggregate(select(indices, indices - 1, "=="), tokens, "")
_TWICE = (_PREVIOUS == ")") & (tokens == ")")
_AGAIN = (tokens == "(") & (_CLOSED > 0)
_NEVER_AGAIN = selector_width(select(_AGAIN, full(True), "==")) == 0
ENDLESS: dict[str, ProgramClaim] = {
    "a count far beyond the clip comes back": cf.Implies(
        _NEVER_AGAIN & (_CLOSED % 4 == 0) & (tokens == ")"), _DEPTH <= 0, causal=True
    ),
    "a count beyond the clip comes back": cf.Implies(_TWICE, _DEPTH <= 0, causal=True),
    "and from below": cf.Implies((_PREVIOUS == "(") & (tokens == "("), _DEPTH >= 0, causal=True),
    "the last token counts": cf.Range(_DEPTH, -9, 0, causal=True),
    "a remainder wraps": cf.Ensures(tokens, (_OPEN % 3 != 2) | (_CLOSED % 2 != 1), causal=True),
    "offsets are exact": cf.Implies(_PREVIOUS == "(", tokens == ")", causal=True),
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("clip", [1, 2, 3, 5, 8])
def test_false_theorems_about_every_length_are_not_valid(name: str, clip: int) -> None:
    claim = ENDLESS[name]
    assert first_failure(claim, cf.sequences("()", range(1, 10))) is not None
    theorem: Any = claim.theorem(cf.EveryLength("()"))
    data = {"format": "certiformer/1", "theorem": theorem, "proof": {"rule": "prefix_states", "clip": clip}}
    assert isinstance(proofs.check({**data, "seal": proofs.seal(data)}), proofs.Invalid)
