"""Margins of labels: proved exactly where true, on all inputs of small models; forged certificates are refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Valid
from certiformer.verifier.label_bodies import LabelMarginBody
from certiformer.verifier.reading import FALSE, TRUE, UNDECIDED, lead_bounds
from certiformer.verifier.refute import Search
from certiformer.verifier.verdicts import Certificate, Proved, Refuted

from .checker_judge import is_true
from .mutations import mutate

TASKS = [
    ("quotes", {"length": 4, "letters": 1}),
    ("dyck-1", {"length": 4}),
    ("bracket-type", {"length": 4, "depth": 2}),
]


def counting_model(task: cf.Task, seed: int, **settings: Any) -> Transformer:
    """A random model of a task, with a read-out bias; by chance right on some inputs."""
    shape = (task.max_len, len(task.vocab), len(task.outputs))
    config = TransformerConfig(4, *shape, (LayerConfig(2, 2, 3),), readout=task.readout, **settings)
    return Transformer.initialised(config, seed)


def right_model(task: cf.Task, **settings: Any) -> Transformer:
    """A model of `quotes`: attention goes to the quotes, most of it to the first."""
    config = TransformerConfig(
        3, task.max_len, len(task.vocab), 2, (LayerConfig(1, 3, 0),), readout="last", attention_scale=1.0, **settings
    )
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        model.parameter("blocks.0.attn.W_K")[0].copy_(torch.diag(torch.tensor([20.0, 20.0, 0.0])))
        model.parameter("pos_embed.W_pos")[:, 2] = torch.linspace(0, -3, task.max_len)
        model.parameter("blocks.0.attn.W_K")[0, 2, 0] = 4.0
        model.parameter("blocks.0.attn.b_Q").fill_(1.0)
        model.parameter("blocks.0.attn.W_V")[0].copy_(torch.eye(3))
        model.parameter("blocks.0.attn.W_O")[0].copy_(8 * torch.eye(3))
        model.parameter("unembed.W_U").copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    return model


def least(model: Transformer, task: cf.Task) -> float:
    """Of all inputs, by the float32 run."""
    found = []
    with torch.no_grad():
        for ids in task.domain.batches(1000):
            logits = model(torch.from_numpy(ids)).double()
            own = logits.gather(1, torch.from_numpy(task.labels(ids))[:, None])[:, 0]
            logits.scatter_(1, torch.from_numpy(task.labels(ids))[:, None], -np.inf)
            found.append(float((own - logits.amax(1)).min()))
    return min(found)


@pytest.mark.parametrize("name_and_size", TASKS, ids=lambda item: item[0])
@pytest.mark.parametrize("settings", [{}, {"causal": True}, {"layer_norm": 1e-3, "activation": "gelu"}])
def test_shares_of_inputs_with_a_margin(name_and_size: tuple[str, dict[str, int]], settings: dict[str, Any]) -> None:
    """The share proved is the true one, and no greater one; at several margins."""
    task = cf.get_task(name_and_size[0], **name_and_size[1])
    for seed in range(3):
        model = counting_model(task, seed, **settings)
        for margin in (0.0625, 0.25, 1.0):
            claim = cf.TaskMargin(model, task, margin)
            body, search = claim.body, Search(claim, task.domain, float("inf"))
            words = next(iter(task.domain.batches(1000)))
            right = int((body.judge(search.ids((words,)), "float32") == TRUE).sum())
            share = Fraction(right, len(words))
            assert isinstance(cf.prove(claim.at_least(share), task.domain, engines="enumeration"), Proved)
            if share < 1:
                more = claim.at_least(share + Fraction(1, 10**6))
                assert isinstance(cf.prove(more, task.domain, engines="enumeration"), Refuted)


@pytest.mark.parametrize("settings", [{}, {"causal": True}])
def test_the_least_margin_is_proved_and_no_larger_one(settings: dict[str, Any], tmp_path: Path) -> None:
    task = cf.get_task("quotes", length=4, letters=1)
    model = right_model(task, **settings)
    found = cf.least_margin(model, task)
    true = least(model, task)
    assert 0 < true * 0.99 < found < true
    verdict = cf.prove(cf.TaskMargin(model, task, found), task.domain)
    assert isinstance(verdict, Proved) and verdict.certificate.rule == "enumerate"
    model.save(tmp_path / "m")
    assert isinstance(cf.check(verdict.certificate, tmp_path / "m", expect=verdict.claim, domain=task.domain), Valid)
    assert isinstance(cf.prove(cf.TaskMargin(model, task, true * 1.001), task.domain), Refuted)
    assert isinstance(cf.prove(cf.Labels(model, task), task.domain), Proved)


def test_a_margin_that_float_rounding_could_decide_is_left_open() -> None:
    task = cf.get_task("quotes", length=2, letters=1)
    config = TransformerConfig(1, 2, 3, 2, (), readout="last")
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("unembed.b_U")[0] = 0.5
    body = cf.TaskMargin(model, task, 0.5).body
    assert body.judge((torch.tensor([[2, 0]]),), "real").tolist() == [UNDECIDED]
    assert body.judge((torch.tensor([[2, 1]]),), "real").tolist() == [FALSE]
    body = cf.TaskMargin(model, task, 0.499).body
    assert body.judge((torch.tensor([[2, 0]]),), "real").tolist() == [TRUE]


def test_bounds_of_leads() -> None:
    low, high = torch.tensor([[[0.0, 2.0, 1.0]]]).double(), torch.tensor([[[0.5, 3.0, 1.5]]]).double()
    for wanted, least_, most in ((1, 0.5, 2.0), (0, -3.0, -1.5), (2, -2.0, -0.5)):
        found = lead_bounds(low, high, torch.arange(3) == wanted)
        assert least_ - 1e-12 < float(found[0]) <= least_ and most <= float(found[1]) < most + 1e-12
    none = lead_bounds(low, high, torch.zeros(1, 1, 3, dtype=torch.bool))
    assert float(none[0]) == float(none[1]) == -np.inf


@pytest.mark.parametrize("margin", [0, -1.0, float("nan"), float("inf"), Fraction(1, 3), "x"])
def test_margins_that_are_none(margin: Any) -> None:
    task = cf.get_task("quotes", length=4, letters=1)
    with pytest.raises(cf.InputError, match="margin"):
        cf.TaskMargin(right_model(task), task, margin)


# --- certificates


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Path, Transformer]:
    task = cf.get_task("quotes", length=4, letters=1)
    model = right_model(task)
    path = tmp_path_factory.mktemp("margin") / "m"
    model.save(path)
    verdict = cf.prove(cf.TaskMargin(model, task, cf.least_margin(model, task)), task.domain)
    assert isinstance(verdict, Proved)
    return verdict.certificate, path, model


def _more(data: Any) -> None:
    data["theorem"]["body"]["at_least"]["num"] = int(data["theorem"]["body"]["at_least"]["num"] * 1.01)


def _nothing(data: Any) -> None:
    data["theorem"]["body"]["at_least"] = 0


def _negative(data: Any) -> None:
    data["theorem"]["body"]["at_least"] = -1


def _other_label(data: Any) -> None:
    labels = data["theorem"]["body"]["machine"]["labels"]
    labels[1:] = [1 - label if label >= 0 else label for label in labels[1:]]


def _no_label(data: Any) -> None:
    data["theorem"]["body"]["machine"]["labels"] = [-1] * len(data["theorem"]["body"]["machine"]["labels"])


def _unknown_label(data: Any) -> None:
    data["theorem"]["body"]["machine"]["labels"][-1] = 2


def _transition(data: Any) -> None:
    rows = data["theorem"]["body"]["machine"]["transitions"]
    rows[1], rows[2] = rows[2], rows[1]


def _state(data: Any) -> None:
    data["theorem"]["body"]["machine"]["transitions"][0][0] = 99


def _count(data: Any) -> None:
    """Rule `count` is about labels, not about margins."""
    data["theorem"] |= {"quantifier": "at_least", "share": 0}
    data["proof"] = {"rule": "count", "groups": []}


def _composition(data: Any) -> None:
    data["proof"] = {
        "rule": "composition",
        "auxiliary": [],
        "width_sums": [],
        "steps": [{"rule": "decode", "reads": []}],
    }


def _readout(data: Any) -> None:
    data["theorem"]["config"]["readout"] = "each"


def _norm(data: Any) -> None:
    data["theorem"]["config"]["layer_norm"] = 1e-5


def _empty(data: Any) -> None:
    data["theorem"]["domain"]["accept"] = []


FORGERIES = [_more, _nothing, _negative, _other_label, _no_label, _unknown_label, _transition, _state, _count]
FORGERIES += [_composition, _readout, _norm, _empty]


@pytest.mark.parametrize("change", FORGERIES)
def test_a_changed_certificate_is_rejected(proved: tuple[Certificate, Path, Transformer], change: Any) -> None:
    certificate, path, _ = proved
    data = copy.deepcopy(dict(certificate.data))
    change(data)
    found = cf.check(Certificate.of(data["theorem"], data["proof"]), path)
    assert isinstance(found, Invalid) and "report this" not in found.why, found


def test_mutated_certificates_are_valid_only_if_true(proved: tuple[Certificate, Path, Transformer]) -> None:
    certificate, path, model = proved
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    rng, seen = np.random.default_rng(4), {"valid": 0, "invalid": 0}
    for _ in range(200):
        changed, what = mutate(rng, certificate.data)
        found = cf.proofs.check(changed, path)
        assert not isinstance(found, Invalid) or found.rule != "internal", (what, found)
        if isinstance(found, Valid):
            assert is_true(changed["theorem"], weights) is not False, what
        seen["valid" if isinstance(found, Valid) else "invalid"] += 1
    assert seen["invalid"] > 100 and seen["valid"]


def test_counting_says_nothing_about_models_with_layer_norm(tmp_path: Path) -> None:
    """Rule `count` compares logits that are sums over positions; a final norm and its weights are no part of it."""
    task = cf.get_task("quotes", length=4, letters=1)
    plain = right_model(task)
    config = replace(plain.config, layer_norm=1.0)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            model.parameter(name).copy_(parameter)
        model.parameter("ln_final.w").fill_(-1.0)
    model.save(tmp_path / "m")
    claim = cf.Labels(model, task).at_least(0)
    assert not isinstance(cf.prove(claim, task.domain, engines="counting"), Proved)
    forged = Certificate.of(
        {**claim.theorem(), "domain": {"kind": "product", "vocab": ['"', "'", "a"], "lengths": [4, 4]}},
        {"rule": "count", "groups": []},
    )
    found = cf.check(forged, tmp_path / "m")
    assert isinstance(found, Invalid) and "LayerNorm" in found.why


def test_the_machine_is_read_as_the_task_says() -> None:
    """A wrong machine gives another claim, which is refuted."""
    task = cf.get_task("quotes", length=4, letters=1)
    model = right_model(task)
    claim = cf.TaskMargin(model, task, 0.25)
    body = claim.body
    assert isinstance(body, LabelMarginBody)
    swapped = LabelMachine(body.machine.transitions, np.where(body.machine.labels < 0, -1, 1 - body.machine.labels))
    wrong = type(claim)("forall", LabelMarginBody(body.subject, swapped, "swapped", body.at_least))
    assert isinstance(cf.prove(wrong, task.domain), Refuted)
