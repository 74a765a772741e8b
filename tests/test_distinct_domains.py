"""Domains without repeated tokens: counted, enumerated and proved about, however large."""

from __future__ import annotations

import itertools
import math

import certiformer as cf
from certiformer.models import distinct
from certiformer.proofs import Valid, canonical_json, check
from certiformer.proofs.automaton import read_domain
from certiformer.verifier.compose import prove_by_composition
from certiformer.verifier.verdicts import Certificate

DATA = {"kind": "distinct", "vocab": [0, 1, 2, 3], "lengths": [1, 6]}


def test_the_checker_counts_and_lists_words_without_repetition() -> None:
    domain = read_domain(DATA)
    assert domain.sizes() == {n: math.perm(4, n) for n in range(1, 7)}
    assert sorted(domain.alphabets()) == [1, 2, 3, 4]
    for n in range(1, 7):
        words = [tuple(row) for batch in domain.words(n, 5) for row in batch.tolist()]
        assert sorted(words) == sorted(itertools.permutations(range(4), n))
        assert all(domain.has(row) for batch in domain.words(n, 5) for row in batch)


def test_sorting_of_distinct_tokens_is_proved_and_checked(tmp_path: object) -> None:
    compiled = cf.compile(cf.programs.sort_unique(), vocab=range(30), max_len=30)
    domain = distinct(range(30), range(1, 31))
    certificate = prove_by_composition(cf.Computes(compiled), domain)
    assert isinstance(certificate, Certificate)
    assert certificate.theorem["domain"]["kind"] == "distinct"
    path = tmp_path / "model.safetensors"  # type: ignore[operator]
    compiled.model.save(path)
    assert isinstance(check(certificate.to_bytes(), path), Valid)
    assert canonical_json(certificate.theorem["domain"]) == canonical_json(
        {"kind": "distinct", "vocab": list(range(30)), "lengths": [1, 30]}
    )
