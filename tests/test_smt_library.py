"""The library meets its specifications, and these are no weaker than the references in plain Python."""

from __future__ import annotations

import random

import pytest

import certiformer as cf
from certiformer.compiler.programs import LIBRARY
from certiformer.verifier.program_claims import is_true

from .program_mutants import mutant
from .program_specifications import SPECIFICATIONS

SAMPLE = [name for place, name in enumerate(sorted(SPECIFICATIONS)) if place % 6 == 1]
ATTEMPTS = 40


def test_every_program_has_a_specification() -> None:
    assert set(SPECIFICATIONS) == set(LIBRARY)


def small(name: str) -> cf.Language:
    vocab = LIBRARY[name].vocab(3)
    return cf.sequences(vocab, range(1, 5 if len(vocab) <= 3 else 4 if len(vocab) <= 6 else 2))


@pytest.mark.parametrize("name", SAMPLE)
def test_programs_meet_their_specifications(name: str) -> None:
    entry = LIBRARY[name]
    verdict = cf.prove(SPECIFICATIONS[name](entry.build(), entry.causal), small(name))
    assert isinstance(verdict, cf.Proved), verdict


@pytest.mark.parametrize("name", SAMPLE)
def test_specifications_refute_what_the_reference_refutes(name: str) -> None:
    """A changed program fails its specification on an input iff it differs from the reference there."""
    entry, rng = LIBRARY[name], random.Random(name)
    words = list(small(name).enumerate())
    tried = 0
    for _ in range(ATTEMPTS):
        changed = mutant(entry.build(), rng)
        if changed is None or tried == 3:
            return
        claim = SPECIFICATIONS[name](changed[0], entry.causal)
        differs = [word for word in words if not same(changed[0], word, name, claim.kind == "accepts")]
        if not differs:
            continue
        tried += 1
        verdict = cf.prove(claim, small(name), engines=("smt",))
        assert isinstance(verdict, cf.Refuted), (name, changed[1], differs[0])
        assert not isinstance(verdict.evidence, cf.Certificate)
        assert list(verdict.evidence.inputs[0]) == differs[0], (name, changed[1], verdict)


def same(program: cf.SOp, word: list[cf.Value], name: str, accepts: bool) -> bool:
    """Whether a program's output is the reference's; `accepts`: is true where the reference's is, and only there."""
    entry = LIBRARY[name]
    try:
        got = cf.evaluate(program, word, causal=entry.causal)
    except cf.InputError:
        return False
    if accepts:
        return [*map(is_true, got)] == [*map(is_true, entry.reference(word))]
    return all((a is None) == (b is None) and a == b for a, b in zip(got, entry.reference(word), strict=True))
