"""Mutated and resealed certificates, and mutated weights: never valid for a false theorem, never a crash."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest

from certiformer import proofs
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.check import INTERNAL
from certiformer.proofs.model import weights_sha256

from .checker_models import CASES, holds, model_bytes
from .mutations import mutate

PER_CASE = 180


def judge(outcome: proofs.Outcome, theorem: Any, weights: dict[str, np.ndarray], what: str) -> str:
    """Valid outcomes must be of true theorems; invalid ones must name step, rule and reason."""
    if isinstance(outcome, Valid):
        assert outcome.theorem == theorem
        assert holds(theorem, weights), f"valid, but false: {what}"
        return "valid"
    assert isinstance(outcome, Invalid), what
    assert outcome.rule != INTERNAL, (what, outcome)
    assert outcome.step and outcome.rule and outcome.why, (what, outcome)
    return "invalid"


@pytest.mark.parametrize("name", CASES)
def test_mutated_certificates(name: str) -> None:
    case = CASES[name]()
    certificate, model = case.certificate(), case.model()
    rng = np.random.default_rng(sum(map(ord, name)))
    seen: Counter[str] = Counter()
    for _ in range(PER_CASE):
        changed, what = mutate(rng, certificate)
        if changed == certificate:
            continue
        outcome = proofs.check(changed, model)
        seen[judge(outcome, changed.get("theorem"), case.weights, f"{name}: {what}")] += 1
        if isinstance(outcome, Valid) and changed["theorem"] == certificate["theorem"]:
            seen["another proof"] += 1
    assert seen["invalid"] > PER_CASE / 2, seen


@pytest.mark.parametrize("name", CASES)
def test_mutated_weights(name: str) -> None:
    """One weight changed, with the right hash: valid only if the model still does what the theorem says."""
    rng = np.random.default_rng(sum(map(ord, name)))
    seen: Counter[str] = Counter()
    for _ in range(60):
        case = CASES[name]()
        key = list(case.weights)[int(rng.integers(len(case.weights)))]
        flat = case.weights[key].reshape(-1)
        place = int(rng.integers(flat.size))
        change = [1, -1, 0.25, -flat[place], flat[place], 30, 1e-3, 1e-9, 1e5][int(rng.integers(9))]
        flat[place] += np.float32(change)
        theorem = case.certificate()["theorem"]
        seen[judge(case.check(), theorem, case.weights, f"{name}: {key}[{place}] {change:+g}")] += 1
    assert len(seen) == 2, seen


@pytest.mark.parametrize("name", ["exchange", "previous", "count same", "share of a"])
def test_noise_on_all_weights(name: str) -> None:
    """Random models near a right one: valid only if true; with little noise valid, with much invalid."""
    rng = np.random.default_rng(11)
    for size, expected in ((1e-7, True), (1e-3, None), (0.1, None), (1.0, False)):
        for _ in range(6):
            case = CASES[name]()
            for key, array in case.weights.items():
                case.weights[key] = (array + size * rng.normal(size=array.shape)).astype(np.float32)
            outcome = case.check()
            verdict = judge(outcome, case.certificate()["theorem"], case.weights, f"{name} {size}")
            assert expected is None or (verdict == "valid") == expected, (name, size, outcome)


def test_two_mutations_at_once() -> None:
    """Compensating changes of theorem and proof."""
    rng = np.random.default_rng(5)
    for name in ("echo", "exchange", "previous", "count same"):
        case = CASES[name]()
        certificate, model = case.certificate(), case.model()
        for _ in range(60):
            once, first = mutate(rng, certificate)
            try:
                twice, second = mutate(rng, once)
            except (KeyError, IndexError, ValueError):
                continue
            judge(proofs.check(twice, model), twice.get("theorem"), case.weights, f"{name}: {first}; {second}")


def test_swapped_certificates() -> None:
    """Proofs and theorems of different cases do not fit."""
    certificates = {name: build().certificate() for name, build in CASES.items()}
    for one, theorem in certificates.items():
        for two, proof in certificates.items():
            if one == two:
                continue
            mixed = copy.deepcopy({**theorem, "proof": proof["proof"]})
            mixed["seal"] = proofs.seal(mixed)
            case = CASES[one]()
            outcome = proofs.check(mixed, case.model())
            judge(outcome, mixed["theorem"], case.weights, f"{one} with the proof of {two}")
            assert isinstance(outcome, Invalid)
    case = CASES["echo"]()
    assert weights_sha256(case.weights) in str(case.certificate())
    other = model_bytes(case.config, CASES["echo"]().weights)
    assert other == case.model()
