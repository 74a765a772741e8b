"""Certificates of compiled programs, through the whole chain: valid as they are, never valid for what is false."""

from __future__ import annotations

import copy
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certiformer as cf
from certiformer import proofs
from certiformer.compiler import programs
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.check import INTERNAL
from certiformer.proofs.model import parse_model, weights_sha256

from .checker_models import holds, model_bytes
from .mutations import mutate

NAMES = ["hist", "reverse", "sort", "frac_prevs", "shuffle_dyck1", "detect_pattern", "induction", "running_mean"]
NAMES += ["sort_freq", "shift_by", "most_frequent", "is_sorted"]
NAMES += ["hist without BOS", "is_unique without BOS", "reverse without BOS"]
MUTATIONS, WEIGHTS = 60, 25


@cache
def proved(name: str) -> tuple[str, bytes]:
    """The certificate's JSON and the model's file, for 3 tokens and lengths up to 4."""
    without_bos = " without BOS"
    entry = programs.LIBRARY[name.removesuffix(without_bos)]
    vocab = entry.vocab(3)
    bos = not name.endswith(without_bos)
    compiled = cf.compile(entry.build(), vocab=vocab, max_len=4, causal=entry.causal, bos=bos)
    domain = cf.sequences(vocab=compiled.vocab, length=range(1, 5))
    verdict = cf.prove(cf.Computes(compiled, compiled.core), domain, seconds=30, engines=["composition"])
    assert isinstance(verdict, cf.Proved), (name, verdict)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        verdict.certificate.save(Path(folder) / "certificate")
        compiled.model.save(Path(folder) / "model")
        text = (Path(folder) / "certificate").read_text("utf-8")
        return text, (Path(folder) / "model").read_bytes()


def judge(outcome: proofs.Outcome, theorem: Any, weights: dict[str, np.ndarray], what: str) -> str:
    if isinstance(outcome, Valid):
        assert holds(theorem, weights), f"valid, but false: {what}"
        return "valid"
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, (what, outcome)
    assert outcome.step and outcome.rule and outcome.why
    return "invalid"


@pytest.mark.parametrize("name", NAMES)
def test_compiled_programs_have_valid_certificates(name: str) -> None:
    text, model = proved(name)
    outcome = proofs.check(text.encode(), model)
    assert isinstance(outcome, Valid), outcome
    weights = parse_model(model).weights
    assert holds(outcome.theorem, weights)
    certificate = json.loads(text)
    certificate["proof"] = {"rule": "enumerate"}
    certificate["seal"] = proofs.seal(certificate)
    assert isinstance(proofs.check(certificate, model), Valid)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_certificates_of_compiled_programs(name: str) -> None:
    text, model = proved(name)
    certificate, weights = json.loads(text), parse_model(model).weights
    rng = np.random.default_rng(sum(map(ord, name)))
    seen: Counter[str] = Counter()
    for _ in range(MUTATIONS):
        changed, what = mutate(rng, certificate)
        seen[judge(proofs.check(changed, model), changed.get("theorem"), weights, f"{name}: {what}")] += 1
    assert seen["invalid"] > MUTATIONS / 3, seen


@pytest.mark.parametrize("name", NAMES)
def test_mutated_weights_of_compiled_programs(name: str) -> None:
    text, model = proved(name)
    rng = np.random.default_rng(sum(map(ord, name)) + 1)
    seen: Counter[str] = Counter()
    original = parse_model(model)
    for _ in range(WEIGHTS):
        certificate, weights = json.loads(text), copy.deepcopy(original.weights)
        key = list(weights)[int(rng.integers(len(weights)))]
        flat = weights[key].reshape(-1)
        used = np.flatnonzero(flat) if rng.random() < 0.7 and flat.any() else np.arange(flat.size)
        place = int(rng.choice(used))
        flat[place] += np.float32([1, -1, -flat[place], flat[place], 0.1, 1e-4][int(rng.integers(6))])
        certificate["theorem"]["weights_sha256"] = weights_sha256(weights)
        certificate["seal"] = proofs.seal(certificate)
        outcome = proofs.check(certificate, model_bytes(dict(original.config.data), weights))
        seen[judge(outcome, certificate["theorem"], weights, f"{name}: {key}[{place}]")] += 1
    assert seen["invalid"] >= 3, seen
