"""`judge`, edges that are needed, and shares of agreement, on models that fit in a test."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import certiformer as cf
from certiformer.cli import execute
from certiformer.models import Circuit, LayerConfig, Transformer, TransformerConfig, zoo
from certiformer.models.circuits import full_circuit
from certiformer.models.task_library import get_task
from certiformer.verifier.circuit_bodies import FaithfulBody
from certiformer.verifier.claims import Faithful
from certiformer.verifier.sampling import sample_accuracy
from certiformer.verifier.task_claims import Accuracy, Labels, TaskMargin

MEANS = {"input": torch.zeros(32), "a0.h0": torch.zeros(32)}


@pytest.fixture(scope="module")
def four() -> Any:
    return zoo.load("max-of-4")


def circuit_file(folder: Path, circuit: Circuit) -> Path:
    path = folder / "circuit.json"
    path.write_text(json.dumps(circuit.to_json()))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = execute([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_edge_that_is_needed_has_a_witness_on_which_only_its_absence_is_felt(four: Any) -> None:
    model, task = four.model, four.task
    circuit = full_circuit(model.config).without(["input->logits"])
    claim = Faithful(model, circuit, "zero", codec=task.codec)
    for edge in circuit.ordered_edges():
        verdict = cf.edge_needed(claim, edge, task.domain, seconds=20)
        assert isinstance(verdict, cf.Refuted), verdict
        assert claim.holds_really(verdict.evidence) is True  # type: ignore[arg-type]
        less = Faithful(model, circuit.without([edge]), "zero", codec=task.codec)
        assert less.holds_really(verdict.evidence) is False  # type: ignore[arg-type]


def test_an_edge_that_carries_nothing_is_not_needed() -> None:
    task = get_task("max-of-3", vocab=4)
    model = Transformer.initialised(TransformerConfig(8, 3, 4, 4, (LayerConfig(1, 4, 0),), readout="last"), seed=1)
    with torch.no_grad():
        model.parameter("blocks.0.attn.W_Q").zero_()
    claim = Faithful(model, full_circuit(model.config), "zero", codec=task.codec)
    verdict = cf.edge_needed(claim, "input->a0.h0<q>", task.domain, seconds=10)
    assert isinstance(verdict, cf.Proved)
    assert isinstance(cf.edge_needed(claim, "input->logits", task.domain, seconds=10), cf.Refuted)
    with pytest.raises(cf.InputError, match="by nodes"):
        by_nodes = Faithful(model, Circuit.from_nodes(model.config, ["a0.h0"]), "zero", codec=task.codec)
        cf.edge_needed(by_nodes, "a0.h0->logits", task.domain)


def test_an_edge_of_a_circuit_that_is_wrong_anyway_is_not_called_needed() -> None:
    """Without an edge that carries nothing the circuit is as unfaithful as with it."""
    task = get_task("max-of-3", vocab=4)
    model = Transformer.initialised(TransformerConfig(8, 3, 4, 4, (LayerConfig(1, 4, 0),), readout="last"), seed=1)
    with torch.no_grad():
        model.parameter("blocks.0.attn.W_Q").zero_()
    circuit = full_circuit(model.config).without(["input->logits", "a0.h0->logits"])
    claim = Faithful(model, circuit, "zero", codec=task.codec)
    assert isinstance(cf.prove(claim, task.domain, seconds=10), cf.Refuted)
    verdict = cf.edge_needed(claim, "input->a0.h0<q>", task.domain, seconds=4)
    assert isinstance(verdict, cf.Unknown) and "not faithful" in verdict.reason, verdict


def test_a_share_of_agreement_over_a_large_domain(four: Any, tmp_path: Path) -> None:
    """36^4 inputs, too many to enumerate; the share that is proved is below the sampled one's upper end."""
    model, task = four.model, four.task
    domain = cf.sequences(range(28, 64), 4)
    circuit = full_circuit(model.config).without(["input->logits"])
    claim = Faithful(model, circuit, means=MEANS, through=task)
    bound = cf.agreement_bound(claim, domain, seconds=20)
    sampled = sample_accuracy(claim, domain, 5000)
    assert 0.9 < bound.share <= Fraction(sampled.high)
    path = tmp_path / "m.safetensors"
    model.save(path)
    outcome = cf.check(bound.certificate, path, expect=claim.at_least(bound.share), domain=domain)
    assert isinstance(outcome, cf.Valid)
    verdict = cf.prove(claim.at_least(Fraction(9, 10)), domain, seconds=20)
    assert isinstance(verdict, cf.Proved) and verdict.setting.engine == "agreement"
    assert isinstance(cf.prove(claim, domain, seconds=5), cf.Refuted)
    without = Faithful(model, circuit, means=MEANS, codec=task.codec).at_least(Fraction(9, 10))
    verdict = cf.prove(without, domain, seconds=5, engines="agreement")
    assert isinstance(verdict, cf.Unknown) and "through=task" in verdict.reason


def test_the_circuits_own_accuracy(four: Any) -> None:
    model, task = four.model, four.task
    circuit = full_circuit(model.config).without(["input->logits"])
    claim = Accuracy(model, task, Fraction(1, 2), circuit=circuit, ablation="zero")
    verdict = cf.prove(claim, task.domain, seconds=20, engines="counting")
    assert isinstance(verdict, cf.Proved)
    assert "alone" in str(verdict) and "zero" in str(verdict)
    verdict = cf.prove(Labels(model, task, circuit=circuit, ablation="resample"), task.domain, seconds=5)
    assert isinstance(verdict, cf.Refuted) and len(verdict.evidence.inputs) == 2  # type: ignore[union-attr]
    margin = TaskMargin(model, task, 100, circuit=circuit, ablation="zero")
    assert isinstance(cf.prove(margin, task.domain, seconds=5), cf.Refuted)
    with pytest.raises(cf.InputError, match="pass circuit="):
        Labels(model, task, ablation="zero")


def test_means_are_the_models_nodes_and_complete(four: Any) -> None:
    model, task = four.model, four.task
    circuit = full_circuit(model.config).without(["input->logits"])
    for means, text in (
        ({}, "missing: input"),
        ({**MEANS, "m3": torch.zeros(32)}, "got 'm3'"),
        ({"input": torch.zeros(31)}, "shape"),
        (7, "vectors by node"),
    ):
        with pytest.raises(cf.InputError, match=text):
            Faithful(model, circuit, means=means, codec=task.codec)  # type: ignore[arg-type]
    with pytest.raises(cf.InputError, match="takes either means"):
        Faithful(model, circuit, "zero", means=MEANS, codec=task.codec)
    body = Faithful(model, circuit, means=MEANS, codec=task.codec).body
    assert isinstance(body, FaithfulBody) and list(body.to_json()["means"]) == ["input"]  # type: ignore[call-overload]


def test_judge(four: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = circuit_file(tmp_path, full_circuit(four.model.config).without(["input->logits"]))
    target = tmp_path / "c.cert"
    options = ["--ablation", "mean", "--at-least", "0.9", "--certificate", target, "--json"]
    code, out, _ = run(capsys, "judge", "zoo:max-of-4", circuit, *options)
    data = json.loads(out)
    assert code == 0 and data["domain_size"] == str(64**4) and data["granularity"] == "edge"
    assert data["ablation"].startswith("mean (2000 words")
    assert [row["verdict"] for row in data["properties"]] == ["proved"] * 6
    assert all("samples" in row["sampled"] for row in data["properties"])
    path = zoo.path("max-of-4")
    assert isinstance(cf.check(target, path), cf.Valid)
    code, out, _ = run(capsys, "judge", "zoo:max-of-4", circuit, "--ablation", "zero", "--seconds", "1")
    assert (
        code == 1
        and "faithful on all inputs: refuted" in out
        and "share is proved" in out.replace("proved: agree", "share is proved")
    )


def test_judge_refuses_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    good = circuit_file(tmp_path, Circuit.from_edges(["input->logits"]))
    alien = tmp_path / "alien.json"
    alien.write_text(json.dumps(Circuit.from_edges(["a9.h9->logits"]).to_json()))
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(Circuit(frozenset(), frozenset()).to_json()))
    for arguments, text in (
        ([bad], "no known format"),
        ([tmp_path / "none.json"], "cannot read"),
        ([alien], "a9.h9"),
        ([empty], "keeps no edge"),
        ([good, "--ablation", "gaussian"], "ablation must be"),
        ([good, "--ablation", "zero", "--means", bad], "--means goes with"),
        ([good, "--ablation", "mean", "--means", bad], "means are a JSON object"),
        ([good, "--seconds", "0"], "above 0"),
        ([good, "--at-least", "many"], "--at-least"),
        ([good, "--certificate", tmp_path / "no" / "c.cert"], "no folder"),
    ):
        code, _, err = run(capsys, "judge", "zoo:max-of-4", *arguments)
        assert code == 3 and text in err, (arguments, err)


def test_judge_of_a_compiled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over inputs with BOS; the complement of a compiled circuit decides nothing."""
    compiled = cf.compile(cf.programs.reverse(), vocab=range(3), max_len=4)
    path = tmp_path / "reverse.safetensors"
    compiled.save(path)
    circuit = circuit_file(tmp_path, compiled.circuit)
    options = ["--ablation", "mean", "--lengths", "1:2", "--edge-seconds", "30", "--json"]
    code, out, _ = run(capsys, "judge", path, circuit, *options)
    data = json.loads(out)
    faithful, *edges, complement = data["properties"]
    assert data["domain_size"] == "12" and complement["verdict"] == "proved"
    assert code == 0 and faithful["verdict"] == "proved"
    assert any(row["verdict"] == "proved" for row in edges) and len(edges) == len(compiled.circuit.edges)
