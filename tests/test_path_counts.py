"""Where the checker counts fewer words as proved than engine `paths`: the search goes on, or less is claimed."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.transformer import Transformer
from certiformer.verifier import path_proofs, path_search, portfolio, shares
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.path_proofs import search_by_paths
from certiformer.verifier.reading import Subject
from certiformer.verifier.recheck import counted, objection
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

from .test_label_margins import right_model

LABELS = LabelMachine(
    np.array([[2, 0, 2, 0, 1, 2], [0, 1, 0, 2, 1, 2], [2, 1, 2, 1, 0, 0]], dtype=np.int32), np.array([2, 2, 0])
)
STATES = LabelMachine(np.array([[0, 1, 0, 0, 1, 0], [1, 0, 1, 1, 1, 0]], dtype=np.int32), np.zeros(2, dtype=np.int64))


def question() -> tuple[Claim, cf.Language]:
    """Two layers read out as a mean, 6^5 inputs: at 1024 levels, engine and checker count sums differently."""
    blocks = (LayerConfig(3, 2, 6), LayerConfig(1, 2, 6))
    model = Transformer(TransformerConfig(6, 5, 6, 3, blocks, causal=True, readout="mean"))
    generator = torch.Generator().manual_seed(89)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    codec = Codec(tuple(range(6)), False, "categorical", (0, 1, 2), max_len=5)
    return Claim("forall", LabelsBody(Subject(model, codec), LABELS, "a task", STATES)), cf.sequences(range(6), 5)


def test_a_search_goes_on_where_the_checker_counts_less(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, domain = question()
    search, _ = search_by_paths(claim, domain, 2000, time.monotonic() + 60, lambda _: None)
    assert search is not None and 2000 <= search.proved < domain.size()
    share = claim.at_least(Fraction(search.proved, domain.size()))
    exactly = Certificate.of({**share.theorem(), "domain": domain_to_json(domain)}, search.proof())
    problem = objection(exactly, claim.subject.model)
    assert problem is not None and 2000 < (counted(problem) or 0) < search.proved
    verdict = cf.prove(share, domain, engines="paths", seconds=60)
    assert isinstance(verdict, cf.Proved)
    assert objection(verdict.certificate, claim.subject.model) is None
    monkeypatch.setattr(path_proofs, "counted", lambda problem: None)
    verdict = cf.prove(share, domain, engines="paths", seconds=60)
    assert isinstance(verdict, cf.Unknown) and portfolio.CHECKER + "Invalid" in verdict.reason


def test_an_engine_that_counts_too_many_never_ends_in_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, domain = question()
    monkeypatch.setattr(path_search, "_right", lambda found, least, sizes: (list(sizes), {}))
    verdict = cf.prove(claim.at_least(Fraction(9, 10)), domain, engines="paths", seconds=5)
    assert isinstance(verdict, cf.Unknown) and portfolio.CHECKER in verdict.reason


def test_accuracy_bounds_claim_what_the_checker_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that leaves out half of the failing words: the bounds are those of the checker."""
    task = cf.get_task("quotes", length=4, letters=1)
    model = right_model(task)
    for name in ("AT_ONCE", "MAX_INPUTS"):
        monkeypatch.setattr(shares, name, 1)
    monkeypatch.setattr(shares, "count_claim", lambda *_: (None, "not asked"))
    with torch.no_grad():
        model.parameter("unembed.b_U")[0] = 7.0
    honest = cf.accuracy_bounds(model, task, seconds=2)
    assert honest.engine == "paths" and 0 < honest.proved
    kept = path_search._failing

    def fewer(*arguments: Any) -> tuple[dict[int, int], int]:
        counts, levels = kept(*arguments)
        return {group: count // 2 for group, count in counts.items()}, levels

    monkeypatch.setattr(path_search, "_failing", fewer)
    seen: list[int | None] = []

    def count(problem: str) -> int | None:
        seen.append(counted(problem))
        return seen[-1]

    monkeypatch.setattr(shares, "counted", count)
    found = cf.accuracy_bounds(model, task, seconds=2)
    assert seen == [found.proved]
    right = sum(
        int((model(torch.from_numpy(ids)).argmax(-1).numpy() == task.labels(ids)).sum())
        for ids in task.domain.batches(1000)
    )
    assert found.proved <= right
    assert objection(found.certificate, model) is None


@pytest.mark.parametrize("text", ["", "only few of 3 inputs are proved right", "Invalid(step='x', rule='y', why='z')"])
def test_other_objections_count_nothing(text: str) -> None:
    assert counted(text) is None
