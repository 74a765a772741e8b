"""Counted accuracy against enumeration, tolerance zero: never more proved than is right; and no forged count."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine, build_machine
from certiformer.models.languages import sequences
from certiformer.models.transformer import Transformer
from certiformer.proofs.count_tables import Words
from certiformer.proofs.counting import _integers
from certiformer.proofs.tilting import _failing, _Terms
from certiformer.verifier import accuracy, tilting
from certiformer.verifier.accuracy import Aim, count_groups, proof_of
from certiformer.verifier.claims import Claim
from certiformer.verifier.counting import Arrows, exponent_for, over_count, rounded_down
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.reading import Subject
from certiformer.verifier.recheck import objection
from certiformer.verifier.shares import count_claim
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate, Proved, Unknown

SEEDS = st.integers(0, 2**32 - 1)


def random_machine(rng: np.random.Generator, tokens: int, outputs: int) -> LabelMachine:
    states = int(rng.integers(1, 5))
    transitions = rng.integers(states, size=(states, tokens)).astype(np.int32)
    return LabelMachine(transitions, rng.integers(-1, outputs, size=states))


def random_case(seed: int) -> tuple[Claim, cf.Language]:
    """A model of one layer and one head, and labels; often labels that the model gives on most inputs."""
    rng = np.random.default_rng(seed)
    tokens, outputs, n = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 5))
    config = TransformerConfig(
        d_model=int(rng.integers(1, 5)),
        n_ctx=n + int(rng.integers(2)),
        d_vocab=tokens,
        d_vocab_out=outputs,
        layers=(LayerConfig(1, int(rng.integers(1, 4)), 0),),
        causal=bool(rng.integers(2)),
        positional="learned" if rng.integers(2) else "none",
        readout="last",
        attention_scale="1/sqrt(d_head)" if rng.integers(2) else 0.7,
    )
    model = Transformer(config)
    size = float(rng.choice([0.3, 1.0, 4.0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=size, size=tuple(parameter.shape)).astype(np.float32)))
            if rng.random() < 0.3:
                parameter.copy_(parameter.round())
    codec = Codec(tuple(range(tokens)), False, "categorical", tuple(range(outputs)), (), n)
    machine = random_machine(rng, tokens, outputs)
    if rng.random() < 0.6:  # what the model does, by a machine that remembers the word

        def after(word: tuple[int, ...], token: int) -> tuple[int, ...]:
            return (*word, token) if len(word) < n else word

        def label(word: tuple[int, ...]) -> int:
            if len(word) != n:
                return -1
            with torch.no_grad():
                return int(model(torch.tensor([word])).argmax())

        machine = build_machine((), after, label, tokens)
    low = int(rng.integers(1, n + 1))
    return Claim("forall", LabelsBody(Subject(model, codec), machine, "random")), sequences(
        range(tokens), range(low, n + 1)
    )


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_never_more_is_proved_than_is_right(seed: int) -> None:
    claim, domain = random_case(seed)
    body = claim.body
    assert isinstance(body, LabelsBody)
    letters = np.arange(len(body.subject.codec.vocab))
    found = count_groups(body.subject.model, body.machine, letters, list(domain.lengths))
    mass = found.mass
    tally = enumerate_inputs(claim.at_least(0), domain, 60)
    assert tally.complete and mass.total == tally.total
    assert mass.proved <= tally.true
    assert mass.proved == sum(group.proved for group in found.groups)
    verdict = cf.prove(claim.at_least(Fraction(mass.proved, mass.total)), domain, engines={"counting"})
    assert isinstance(verdict, Proved) and verdict.certificate.rule == "count"
    more = cf.prove(
        claim.at_least(Fraction(min(mass.total, mass.proved + 1), mass.total)), domain, engines={"counting"}
    )
    assert isinstance(more, Proved) if mass.proved == mass.total else isinstance(more, (Unknown, cf.Refuted))
    assert tally.true <= mass.proved or isinstance(more, Unknown)


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_what_is_right_lies_between_the_bounds(seed: int) -> None:
    """Proved and refuted mass, counted one by one and in the coarse way, against enumeration; both as certificates."""
    claim, domain = random_case(seed)
    body = claim.body
    assert isinstance(body, LabelsBody)
    tally = enumerate_inputs(claim.at_least(0), domain, 60)
    letters = np.arange(len(body.subject.codec.vocab))
    for many in (accuracy.MANY, 0):
        with mock.patch.object(accuracy, "MANY", many):
            found, why = count_claim(claim, domain, Aim(both=True))
        assert found is not None, why
        mass = found.mass
        assert mass.proved <= tally.true and mass.refuted <= tally.false
        assert mass.proved + mass.refuted + mass.undecided == mass.total == tally.total
        assert bool(found.tilted) <= (many == 0)
        stated = claim.between(Fraction(mass.proved, mass.total), 1 - Fraction(mass.refuted, mass.total))
        proof = proof_of(found, {int(letter): int(letter) for letter in letters})
        assert objection(certificate_of(stated, domain, proof), body.subject.model) is None
        if tally.true + tally.false < tally.total:
            continue
        above, below = Fraction(tally.true + 1, tally.total), Fraction(tally.true - 1, tally.total)
        wrong = [claim.at_least(above)] if above <= 1 else []
        for stated in wrong + ([claim.at_most(below)] if below >= 0 else []):
            assert objection(certificate_of(stated, domain, proof), body.subject.model) is not None
            assert not isinstance(cf.prove(stated, domain, engines={"counting"}), Proved)


def certificate_of(claim: Claim, domain: cf.Language, proof: dict[str, object]) -> Certificate:
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_shares_by_enumeration(seed: int) -> None:
    """Every claim about a share is settled rightly, and never by an accepted certificate of the opposite."""
    claim, domain = random_case(seed)
    tally = enumerate_inputs(claim.at_least(0), domain, 60)
    if tally.true + tally.false < tally.total:
        return
    true = Fraction(tally.true, tally.total)
    step = Fraction(1, 2 * tally.total)
    for low in {max(Fraction(0), true - step), true, min(Fraction(1), true + step)}:
        for stated, right in (
            (claim.at_least(low), true >= low),
            (claim.at_most(low), true <= low),
            (claim.between(low, max(low, true)), true >= low),
            (claim.between(min(low, true), low), true <= low),
        ):
            verdict = cf.prove(stated, domain, engines={"enumeration"})
            assert isinstance(verdict, Proved if right else cf.Refuted), verdict
            both = cf.prove(stated, domain, engines={"counting"})
            assert isinstance(both, Unknown) or isinstance(both, Proved) == right


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_counts_and_least_sums_against_all_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens, m = int(rng.integers(1, 4)), int(rng.integers(0, 5))
    machine = random_machine(rng, tokens, 2)
    query = int(rng.integers(tokens))
    arrows = Arrows.of(machine.ending(query, 1), np.arange(tokens))
    words = [w for w in itertools.product(range(tokens), repeat=m) if machine.run(np.array([[*w, query]]))[0] == 1]
    assert arrows.size(m) == len(words)
    if not words:
        return
    tables = rng.integers(-20, 20, size=(2, m, tokens)) * int(rng.choice([1, 1000]))
    place = {int(token): i for i, token in enumerate(arrows.tokens)}
    sums = [[int(sum(t[j, x] for j, x in enumerate(w))) for w in words] for t in tables]
    cut = tables[:, :, arrows.tokens]
    assert set(place) >= {x for w in words for x in w}
    assert arrows.least(cut.astype(np.float64)).tolist() == [min(s) for s in sums]
    bound = int(rng.integers(-30, 30))
    assert arrows.count_not_above(cut[0], bound) == sum(s <= bound for s in sums[0])
    real = cut[0] * 2.0**-3 + rng.choice([0.0, 0.01, -1e-9])
    own = -bound * 2.0**-3
    exact = sum(sum(real[j, place[x]] for j, x in enumerate(w)) + own <= 0 for w in words)
    for levels in (1, 3, 10, 10**4):
        exponent = exponent_for(real, own, levels)
        assert exact <= over_count(arrows, real, own, exponent) <= len(words)


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_rounded_sums_never_miss(seed: int) -> None:
    """sum x <= 0 implies that the sum of the integers is at most 0, in exact arithmetic; engine and checker."""
    rng = np.random.default_rng(seed)
    n, exponent = int(rng.integers(1, 40)), int(rng.integers(-6, 6))
    x = rng.integers(-64, 64, size=n) * 2.0 ** -int(rng.integers(0, 8)) + rng.choice([0.0, 1e-13, -1e-13], size=n)
    x = x.astype(np.float64)
    exact = sum(map(Fraction, x.tolist()), Fraction(0))
    for whole in (rounded_down(x, exponent, n), _integers(x, exponent, n)):
        assert exact > 0 or int(whole.sum()) <= 0
        assert (np.abs(whole - np.ldexp(x, exponent)) <= 1).all()


def _least_share(terms: Any, own: Any, words: Any) -> list[int]:
    """For each range, how many words have a sum of at most 0, in exact arithmetic."""
    table = [[Fraction(float(t)) for t in row] for row in terms]
    return [
        sum(sum(row[t] for t in w) + Fraction(float(end)) <= 0 for w in words)
        for row, end in zip(table, own, strict=True)
    ]


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_exponential_bounds_against_all_words(seed: int) -> None:
    """For every theta the bound holds: engine and checker, with and without tokens of little weight."""
    rng = np.random.default_rng(seed)
    tokens, m = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    machine = random_machine(rng, tokens, 2)
    query = int(rng.integers(tokens))
    arrows = Arrows.of(machine.ending(query, 1), np.arange(tokens))
    words = [w for w in itertools.product(range(tokens), repeat=m) if machine.run(np.array([[*w, query]]))[0] == 1]
    if not words:
        return
    heavy = rng.random(len(arrows.tokens)) < 0.7
    terms = rng.normal(size=(2, len(arrows.tokens))) * float(rng.choice([0.1, 1.0, 100.0]))
    faint = -0.01
    terms[:, ~heavy] = faint
    own = rng.normal(size=2)
    every = np.zeros((2, tokens))
    every[:, arrows.tokens] = terms
    exact = _least_share(every, own, words)
    places = np.cumsum(heavy) - 1
    moves = tuple((s, t, places[some[heavy[some]]], int((~heavy[some]).sum())) for s, t, some in arrows.moves)
    table = tilting._Table(terms[:, heavy], faint, own, -6, arrows, moves, m)
    digits = rng.integers(0, 30, size=(5, 2))
    shares = table.shares(digits)
    for row, choice in zip(shares, digits, strict=True):
        assert (row * len(words) >= exact).all()
        checked = Words(arrows.n_states, 0, np.isin(np.arange(arrows.n_states), arrows.accepting), arrows.tokens,
                        list(arrows.moves), len(words))  # fmt: skip
        theta = np.where(choice % 2, 3.0, 2.0) * 2.0 ** (-6 + choice // 2)
        found = _Terms(terms[:, heavy], np.array([faint]), own, list(moves))
        assert _failing(checked, found, theta, m) >= min(len(words), max(exact))
