"""Models with an MLP between their one read-out and the logits: what is proved of them, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import certiformer as cf
from certiformer.cli.app import execute
from certiformer.models import LayerConfig, Transformer, TransformerConfig
from certiformer.models.circuits import all_edges, all_nodes
from certiformer.models.transformer_lens import to_transformer_lens
from certiformer.verifier.balls import Unsupported
from certiformer.verifier.reading import Subject
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

LENGTH = 4
DOMAIN = cf.sequences(range(3), LENGTH)


def subject(seed: int = 0, **settings: Any) -> Subject:
    config = TransformerConfig(
        4, LENGTH, 3, 3, (LayerConfig(2, 2, 3),), **{"readout": "last", "causal": True, "d_readout": 5, **settings}
    )
    model = Transformer.initialised(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.parameter("readout.b_in").normal_(0, 0.5, generator=generator)
        model.parameter("unembed.b_U").normal_(0, 0.1, generator=generator)
    return Subject(model, cf.Codec((0, 1, 2), False, "categorical", ("a", "b", "c"), (), LENGTH))


def outputs_of(about: Subject) -> set[str]:
    with torch.no_grad():
        logits = about.model(torch.cartesian_prod(*[torch.arange(3)] * LENGTH))
    return {"abc"[k] for k in logits.argmax(-1).tolist()}


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("seed", range(3))
def test_what_it_outputs_is_decided_and_checked(seed: int, activation: str, readout: str, tmp_path: Path) -> None:
    about = subject(seed, activation=activation, readout=readout)
    about.model.save(tmp_path / "m")
    seen = outputs_of(about)
    for output in "abc":
        verdict = cf.prove(cf.NeverOutputs(about, [output]), DOMAIN)
        assert isinstance(verdict, cf.Refuted if output in seen else cf.Proved)
        if isinstance(verdict, cf.Proved):
            verdict.certificate.save(tmp_path / "c")
            assert isinstance(cf.check(tmp_path / "c", tmp_path / "m"), cf.Valid)


def test_a_circuit_of_it_is_judged() -> None:
    """By enumeration: without any edge it decides otherwise somewhere, whole it does not."""
    about = subject(4)
    assert len(outputs_of(about)) > 1
    nodes, edges = frozenset(all_nodes(about.model.config)), frozenset(map(str, all_edges(about.model.config)))
    whole, less = cf.Circuit(nodes, edges), cf.Circuit(nodes, frozenset())
    assert isinstance(cf.prove(cf.Faithful(about, whole, "zero"), DOMAIN), cf.Proved)
    verdict = cf.prove(cf.Faithful(about, less, "zero"), DOMAIN)
    assert isinstance(verdict, cf.Refuted)


@pytest.mark.parametrize("rule", ["paths", "count", "no_flow", "composition"])
def test_a_certificate_by_a_rule_that_does_not_cover_it_is_rejected(rule: str, tmp_path: Path) -> None:
    about = subject()
    about.model.save(tmp_path / "m")
    nodes, edges = frozenset(all_nodes(about.model.config)), frozenset(map(str, all_edges(about.model.config)))
    circuit = cf.Faithful(about, cf.Circuit(nodes, edges), "zero")
    claim = circuit if rule == "no_flow" else cf.NeverOutputs(about, ["a"])
    forged = Certificate.of({**claim.theorem(), "domain": domain_to_json(DOMAIN)}, {"rule": rule})
    found = cf.check(forged, tmp_path / "m")
    assert isinstance(found, cf.Invalid) and "unsupported: an MLP at the read-out" in found.why


def test_engines_that_do_not_cover_it_say_so() -> None:
    about, task = subject(), cf.get_task("max-of-4", vocab=3)
    about = Subject(about.model, task.codec)
    verdict = cf.prove(cf.Accuracy(about.model, task, at_least=0.01), task.domain, engines={"counting", "paths"})
    assert isinstance(verdict, cf.Unknown) and "MLP at the read-out" in str(verdict)


REFUSALS: dict[str, Callable[[Subject], object]] = {
    "has no MLP between": lambda about: to_transformer_lens(about.model),
    "bounds over regions do not cover": lambda about: cf.output_bounds(about.model, cf.TokenSets([(0, 1)] * LENGTH)),
    "OV circuit gives no logits": lambda about: cf.HeadTable(about, (0, 0), "ov", "diagonal", 0.0),
    "do not cover an MLP at the read-out": lambda about: cf.least_difference(about, "a", "b", DOMAIN),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_it_has_not_is_refused(why: str) -> None:
    with pytest.raises((cf.InputError, Unsupported), match=why):
        REFUSALS[why](subject())


def test_it_is_trained_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "m.safetensors"
    code = execute(["train", "dyck-1-4", "--steps", "2", "--d-readout", "3", "-o", str(where), "--json"])
    assert code == 0 and json.loads(capsys.readouterr().out)["config"]["d_readout"] == 3
    assert Transformer.load(where).config.d_readout == 3
