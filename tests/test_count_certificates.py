"""Certificates of rule `count`: what was changed is rejected, and what the engine gets wrong is not accepted."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models import zoo
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.languages import sequences
from certiformer.models.measuring import count_right
from certiformer.models.task_library import get_task
from certiformer.models.tasks import Task
from certiformer.models.training import Recipe, train
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.counting import _scope
from certiformer.proofs.format import Rejected
from certiformer.proofs.model import read_model
from certiformer.proofs.theorem import read_theorem
from certiformer.verifier import accuracy, shares
from certiformer.verifier.accuracy import Aim, Counted, count_groups, proof_of
from certiformer.verifier.claims import Claim
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.reading import Subject
from certiformer.verifier.shares import count_claim
from certiformer.verifier.task_claims import Accuracy, Labels
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate, Proved, Unknown

from .test_counting import certificate_of


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Path, Claim]:
    """A small max-of-3 model's certificate."""
    task = get_task("max-of-3", vocab=5)
    config = TransformerConfig(5, 3, 5, 5, (LayerConfig(1, 5, 0),), readout="last", attention_scale=1.0)
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.eye(5))
        model.parameter("blocks.0.attn.W_Q")[0].fill_(1.0)
        model.parameter("blocks.0.attn.W_K")[0].copy_(torch.diag(torch.tensor([0.0, 1.0, 2.0, 2.5, 4.0])))
        model.parameter("blocks.0.attn.W_V")[0].copy_(torch.eye(5))
        model.parameter("blocks.0.attn.W_O")[0].copy_(torch.eye(5))
        model.parameter("unembed.W_U").copy_(torch.eye(5) - torch.triu(torch.ones(5, 5), 1).T * 0.1)
    path = tmp_path_factory.mktemp("count") / "m.safetensors"
    model.save(path)
    claim = Accuracy(model, task, 0)
    letters = np.arange(5)
    assert task.machine is not None
    mass = count_groups(model, task.machine, letters, [3]).mass
    assert 0.3 < mass.proved / mass.total < 1
    verdict = cf.prove(Accuracy(model, task, Fraction(mass.proved, mass.total)), task.domain, engines={"counting"})
    assert isinstance(verdict, Proved)
    del claim
    return verdict.certificate, path, verdict.claim


def resealed(certificate: Certificate, change: Any) -> Certificate:
    data = copy.deepcopy(dict(certificate.data))
    change(data)
    return Certificate.of(data["theorem"], data["proof"])


def test_the_certificate_is_valid_and_says_what_it_is(proved: tuple[Certificate, Path, Claim]) -> None:
    certificate, path, claim = proved
    assert isinstance(cf.check(certificate, path, expect=claim), Valid)


def _share(data: Any) -> None:
    data["theorem"]["share"] = {"num": 999, "den": 1000}


def _rival(data: Any) -> None:
    group = next(group for group in data["proof"]["groups"] if group.get("counts"))
    del group["counts"][0]


def _twice(data: Any) -> None:
    data["proof"]["groups"].append(data["proof"]["groups"][-1])


def _no_group(data: Any) -> None:
    del data["proof"]["groups"][0]


def _label(data: Any) -> None:
    labels = data["theorem"]["body"]["machine"]["labels"]
    labels[-1], labels[-2] = labels[-2], labels[-1]


def _transition(data: Any) -> None:
    data["theorem"]["body"]["machine"]["transitions"][5] = [0] * 5


def _short_row(data: Any) -> None:
    data["theorem"]["body"]["machine"]["transitions"][5] = [0] * 4


def _forall(data: Any) -> None:
    data["theorem"]["quantifier"] = "forall"
    del data["theorem"]["share"]


def _lengths(data: Any) -> None:
    data["theorem"]["domain"]["lengths"] = [2, 3]


def _own_rival(data: Any) -> None:
    group = data["proof"]["groups"][0]
    group["counts"].append([group["label"], 4])


def _exponent(data: Any) -> None:
    next(group for group in data["proof"]["groups"] if group.get("counts"))["counts"][0][1] += 60


def _scalar(data: Any) -> None:
    """A scalar codec has one logit and no rivals to compare."""
    data["theorem"]["codec"] |= {"kind": "scalar", "points": [0, 1, 2, 3, 4]}


def _no_longer_lost(data: Any) -> None:
    """The share of the refuted is claimed, and what refutes is gone."""
    next(group for group in data["proof"]["groups"] if "lost" in group).pop("lost")


def _lost_to_itself(data: Any) -> None:
    group = next(group for group in data["proof"]["groups"] if "lost" in group)
    group["lost"][0] = group["label"]


def _lost_to_another(data: Any) -> None:
    group = next(group for group in data["proof"]["groups"] if "lost" in group)
    group["lost"][0] = next(w for w in range(5) if w not in (group["label"], group["lost"][0]))


def _most(data: Any) -> None:
    data["theorem"]["most"] = data["theorem"]["share"]


def _at_most(data: Any) -> None:
    data["theorem"]["quantifier"] = "at_most"
    del data["theorem"]["most"]


def _wrong_tilt(data: Any) -> None:
    for entry in data["proof"]["tilted"]:
        for query in entry["queries"]:
            query[1] -= 12


def _no_rival(data: Any) -> None:
    data["proof"]["tilted"][0]["rivals"].pop()
    for query in data["proof"]["tilted"][0]["queries"]:
        query[2] = query[2][:-1]


def _label_among_rivals(data: Any) -> None:
    entry = data["proof"]["tilted"][0]
    entry["rivals"] = [[0, 5]]
    for query in entry["queries"]:
        query[2] = query[2][:1]


def _ranges_overlap(data: Any) -> None:
    entry = next(entry for entry in data["proof"]["tilted"] if len(entry["rivals"]) > 1)
    entry["rivals"][1][0] = entry["rivals"][0][0]


def _tilted_and_counted(data: Any) -> None:
    entry = data["proof"]["tilted"][-1]
    data["proof"]["groups"].append({"n": 3, "label": entry["label"], "query": entry["queries"][-1][0], "counts": []})


def _digit(data: Any) -> None:
    data["proof"]["tilted"][0]["queries"][0][2] = "!" * len(data["proof"]["tilted"][0]["rivals"])


TWO_SIDED = [_no_longer_lost, _lost_to_itself, _lost_to_another, _most, _at_most, _no_group, _twice]
TILTED = [_wrong_tilt, _no_rival, _label_among_rivals, _ranges_overlap, _tilted_and_counted, _digit, _share]


def two_sided(certificate: Certificate, path: Path, *, tilted: bool) -> tuple[Certificate, Counted, Transformer, Task]:
    """The bounds of the same model, as a certificate that the checker accepts."""
    model, task = Transformer.load(path), get_task("max-of-3", vocab=5)
    claim = Labels(model, task)
    with mock.patch.object(accuracy, "MANY", 0 if tilted else accuracy.MANY):
        found, why = count_claim(claim, task.domain, Aim(both=True))
    assert found is not None, why
    mass = found.mass
    assert bool(found.tilted) == tilted and bool(mass.refuted) != tilted and 0 < mass.proved
    stated = claim.between(Fraction(mass.proved, mass.total), 1 - Fraction(mass.refuted, mass.total))
    made = certificate_of(stated, task.domain, proof_of(found, {i: i for i in range(5)}))
    assert isinstance(cf.check(made, path), Valid)
    return made, found, model, task


@pytest.mark.parametrize("change", [*TWO_SIDED, *TILTED])
def test_changed_bounds_are_rejected(proved: tuple[Certificate, Path, Claim], change: Any) -> None:
    certificate, path, _ = proved
    made, _, _, _ = two_sided(certificate, path, tilted=change in TILTED)
    found = cf.check(resealed(made, change), path)
    assert isinstance(found, Invalid) and found.rule != "internal error", found


def test_refuted_shares_and_bounds(proved: tuple[Certificate, Path, Claim]) -> None:
    """The exact share by enumeration lies in the counted interval; claims beyond it are refuted by either engine."""
    certificate, path, _ = proved
    _, found, model, task = two_sided(certificate, path, tilted=False)
    mass = found.mass
    bounds = cf.accuracy_bounds(model, task)
    assert bounds.engine == "enumeration" and bounds.undecided == 0
    assert bounds.proved + bounds.refuted == bounds.total == 125
    assert mass.proved <= bounds.proved <= mass.total - mass.refuted
    with mock.patch.object(shares, "AT_ONCE", 0):
        counted = cf.accuracy_bounds(model, task)
    assert (counted.engine, counted.proved, counted.refuted) == ("counting", mass.proved, mass.refuted)
    assert isinstance(cf.check(counted.certificate, path), Valid)
    high, low = counted.high, counted.low
    for claim, verdict in (
        (Accuracy(model, task, at_most=high), Proved),
        (Accuracy(model, task, low, high), Proved),
        (Accuracy(model, task, at_least=high + Fraction(1, 1000)), cf.Refuted),
        (Accuracy(model, task, at_least=(low + high) / 2), Unknown),
        (Accuracy(model, task, at_most=low - Fraction(1, 1000)), cf.Refuted),
        (Accuracy(model, task, high + Fraction(1, 1000), 1), cf.Refuted),
        (Accuracy(model, task, 0, low - Fraction(1, 1000)), cf.Refuted),
    ):
        said = cf.prove(claim, task.domain, engines={"counting"})
        assert isinstance(said, verdict), said
        if isinstance(said, cf.Refuted):
            assert isinstance(said.evidence, Certificate)
            assert isinstance(cf.check(said.evidence, path), Valid)


FAULTS = {
    "nothing fails": ("accuracy.over_count", lambda *args: 0, False),
    "rounded up": ("counting.rounded_down", lambda x, e, n: np.ceil(np.ldexp(x, e)).astype(np.int64) + 1, False),
    "no small sums": ("accuracy.Arrows.least", lambda self, tables: np.full(len(tables), 1.0), False),
    "nothing is lost by ranges": ("tilting._Table.shares", lambda self, digits: np.zeros(digits.shape), True),
    "a term dropped": ("tilting._exp_above", lambda x: np.exp(np.minimum(x, 0.0)) * 0.5, True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_proves_nothing(proved: tuple[Certificate, Path, Claim], fault: str) -> None:
    """With the fault the engine finds too much, and the checker accepts none of it."""
    _, path, _ = proved
    name, change, tilted = FAULTS[fault]
    model, task = Transformer.load(path), get_task("max-of-3", vocab=5)
    true = cf.accuracy_bounds(model, task)
    with mock.patch(f"certiformer.verifier.{name}", change):
        with mock.patch.object(accuracy, "MANY", 0 if tilted else accuracy.MANY):
            found, _ = count_claim(Labels(model, task), task.domain, Aim())
            assert found is not None and found.mass.proved > true.proved
            stated = Accuracy(model, task, Fraction(true.proved + 1, true.total))
            said = cf.prove(stated, task.domain, engines={"counting"})
    assert isinstance(said, Unknown) and "the independent checker does not accept the proof" in said.reason


FORGERIES = [
    *(_scalar, _share, _rival, _twice, _no_group, _label, _transition, _short_row, _forall, _lengths),
    *(_own_rival, _exponent),
]


@pytest.mark.parametrize("change", FORGERIES)
def test_a_changed_count_is_rejected(proved: tuple[Certificate, Path, Claim], change: Any) -> None:
    certificate, path, _ = proved
    found = cf.check(resealed(certificate, change), path)
    assert isinstance(found, Invalid) and found.rule != "internal error", found


def test_max_of_4_is_proved_nearly_as_good_as_it_is() -> None:
    found = zoo.load("max-of-4")
    assert found.task.machine is not None
    words = found.task.domain.sample_length(np.random.default_rng(0), 4, 1000)
    assert (found.task.machine.run(words) == found.task.labels(words)).all()
    true = Fraction(found.card.accuracy.correct, found.card.accuracy.total)
    verdict = cf.prove(Accuracy(found.model, found.task, true * Fraction(9999, 10000)), found.task.domain)
    assert isinstance(verdict, Proved) and verdict.setting.engine == "counting"
    refuted = cf.prove(Accuracy(found.model, found.task, 1), found.task.domain, engines="counting")
    assert isinstance(refuted, cf.Refuted) and isinstance(refuted.evidence, Certificate)
    bounds = cf.accuracy_bounds(found.model, found.task)
    assert bounds.low <= true <= bounds.high and bounds.high - bounds.low < Fraction(1, 10000)
    assert bounds.proved + bounds.refuted + bounds.undecided == bounds.total == found.task.domain.size()


def test_deep_models_over_large_domains_have_bounds_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers, too many words to be run: as many are proved right as time allows, and a certificate says so."""
    monkeypatch.setattr(shares, "AT_ONCE", 2**10)
    monkeypatch.setattr(shares, "MAX_INPUTS", 2**10)
    task = get_task("max-of-11", vocab=2)
    layer = LayerConfig(n_heads=1, d_head=8, d_mlp=0)
    config = TransformerConfig(8, 11, 2, 2, (layer, layer), readout="last", causal=True)
    made = train(task, config, Recipe(steps=150, lr=1e-2, score_variance=0.1))
    bounds = cf.accuracy_bounds(made.model, task, seconds=20)
    assert bounds.engine == "paths" and bounds.refuted == 0 and bounds.total == 2**11
    right = sum(count_right(made.model, task, ids) for ids in task.domain.batches(2**11))
    assert 2**10 < bounds.proved <= right
    claim = Accuracy(made.model, task, bounds.low)
    made.model.save(tmp_path / "m")
    assert isinstance(cf.check(bounds.certificate.to_bytes(), tmp_path / "m", expect=claim), Valid)


def test_what_counting_does_not_cover_is_said() -> None:
    found = zoo.load("max-of-10-mlp")
    verdict = cf.prove(Accuracy(found.model, found.task, 0.5), found.task.domain, engines="counting")
    assert isinstance(verdict, Unknown) and "one layer with one head and no neurons" in verdict.reason
    config = TransformerConfig(8, 12, 12, 12, (), readout="last")
    with pytest.raises(cf.InputError, match="no label machine"):
        Accuracy(Transformer.initialised(config), get_task("most-frequent-12", vocab=12), 0.5)


def test_one_logit_has_no_rivals_and_proves_nothing(tmp_path: Path) -> None:
    """With a scalar codec no logit is compared with another: rule count must not apply."""
    config = TransformerConfig(2, 1, 2, 1, (LayerConfig(1, 1, 0),), readout="last")
    model = Transformer(config)
    model.save(tmp_path / "m")
    with torch.no_grad():
        model.parameter("unembed.b_U").fill_(1.0)
    model.save(tmp_path / "m")
    codec = Codec((0, 1), False, "scalar", (0, 1), (0.0, 1.0), 1)
    machine = LabelMachine(np.zeros((1, 2), dtype=np.int32), np.zeros(1, dtype=np.int64))
    claim = Claim("forall", LabelsBody(Subject(model, codec), machine, "zero")).at_least(1)
    domain = sequences(range(2), 1)
    assert not isinstance(cf.prove(claim, domain), Proved)
    groups = [{"n": 1, "label": 0, "query": q, "counts": []} for q in (0, 1)]
    forged = Certificate.of(
        {**claim.theorem(), "domain": domain_to_json(domain)}, {"rule": "count", "groups": groups, "tilted": []}
    )
    found = cf.check(forged, tmp_path / "m")
    assert isinstance(found, Invalid) and "categorical" in found.why


def test_another_architecture_is_out_of_scope(proved: tuple[Certificate, Path, Claim]) -> None:
    """The rule looks at the configuration itself: what the checker covers elsewhere may grow."""
    certificate, path, _ = proved
    model = read_model(path)
    theorem = read_theorem(dict(certificate.theorem), model)
    _scope(theorem)
    for change in ({"layer_norm": True}, {"readout": "mean"}, {"d_readout": 4}, {"layers": model.config.layers * 2}):
        other = replace(model, config=replace(model.config, **change))  # type: ignore[arg-type]
        with pytest.raises(Rejected, match="rule count is for"):
            _scope(replace(theorem, model=other))


def test_a_domain_with_some_tokens_in_another_order_and_several_lengths(
    proved: tuple[Certificate, Path, Claim],
) -> None:
    _, path, _ = proved
    model, task = Transformer.load(path), get_task("max-of-3", vocab=5)
    assert task.machine is not None
    machine = LabelMachine(task.machine.transitions, task.machine.labels)
    claim = Claim("forall", LabelsBody(Subject(model, task.codec), machine, "max"))
    domain = cf.sequences((4, 1, 3), range(1, 4))
    exact = enumerate_inputs(claim.at_least(0), domain, 60)
    for many in (accuracy.MANY, 0):
        with mock.patch.object(accuracy, "MANY", many):
            found, why = count_claim(claim, domain, Aim(both=True))
        assert found is not None, why
        assert 0 < found.mass.proved <= exact.true <= found.mass.total - found.mass.refuted
        share = Fraction(found.mass.proved, found.mass.total)
        with mock.patch.object(accuracy, "MANY", many):
            assert isinstance(cf.prove(claim.at_least(share), domain, engines={"counting"}), Proved)
