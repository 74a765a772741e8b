"""`certiformer explain`: what it finds, what it writes, which options go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import certiformer as cf
from certiformer.cli import execute
from certiformer.explanations import ScoredCircuit, read
from certiformer.models import Transformer, zoo

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = int(execute([str(argument) for argument in arguments]))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture(scope="module")
def hist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "hist.safetensors"
    cf.compile(cf.programs.hist(), vocab=range(3), max_len=4).save(path)
    return path


@pytest.mark.parametrize("method", ["eap", "eap-ig", "patching"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_scores_of_a_compiled_model(run: Run, hist: Path, tmp_path: Path, method: str, ablation: str) -> None:
    out_file = tmp_path / "c.json"
    options = ["--method", method, "--ablation", ablation, "--top", 4, "--pairs", 30, "-o", out_file, "--json"]
    code, out, _ = run("explain", hist, *options)
    data = json.loads(out)
    assert code == 0 and data["method"] == method and data["ablation"] == ablation and len(data["scores"]) == 8
    assert set(data["against_compiled"]) == {"edges", "nodes", "edge_auroc", "node_auroc"}
    saved = ScoredCircuit.load(out_file)
    assert saved.by_edge == data["scores"] and saved.circuit().to_json() == data["circuit"]
    assert (saved.means is not None) == (ablation == "mean")
    if saved.means is not None:
        assert "30 words" in saved.means.provenance


def test_text_for_people_and_a_picture(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("explain", "zoo:max-of-4", "--top", 3, "--pairs", 50, "--svg", tmp_path / "c.svg")
    assert code == 0
    for part in ("eap-ig, resample ablation, logit-difference", "sampled pairs", "input->a0.h0<v>", "picture: "):
        assert part in out
    assert (tmp_path / "c.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("format", ["eap-ig", "eap-ig-pt", "acdc", "interpbench", "auto-circuit", "circuit"])
def test_acdc_in_every_format(run: Run, hist: Path, tmp_path: Path, format: str) -> None:
    options = ["--method", "acdc", "--threshold", "0.001", "--pairs", 30, "--format", format]
    code, out, _ = run("explain", hist, *options, "-o", tmp_path / "c", "--json")
    assert code == 0
    kept = json.loads(out)["circuit"]["edges"]
    back = read(tmp_path / "c", cf.Compiled.load(hist).model)
    if format != "auto-circuit":
        assert back.circuit().edges == set(kept)


def test_verified_with_its_certificate(run: Run, hist: Path, tmp_path: Path) -> None:
    options = ["--method", "verified", "--lengths", "1:3", "--vocab", "0,1", "--pairs", 20, "--seconds", 5]
    files = ["-o", tmp_path / "v.json", "--resume", tmp_path / "r.json", "--json"]
    code, out, _ = run("explain", hist, *options, *files)
    data = json.loads(out)
    assert code == 0 and data["verified"]["minimal"] and not data["verified"]["unknown"]
    assert all(kept["verdict"] == "refuted" for kept in data["verified"]["kept"].values())
    assert run("check", tmp_path / "v.json.cert", "--model", hist)[0] == 0
    code, out, _ = run("explain", hist, *options, *files)
    again = json.loads(out)
    assert code == 0 and again["verified"]["decisions"] == 1 and again["circuit"] == data["circuit"]
    code, _, err = run("explain", hist, *options, "--ablation", "zero", "--resume", tmp_path / "r.json")
    assert code == 3 and "is about another ablation" in err
    started = ["--start", tmp_path / "v.json", "--resume", tmp_path / "s.json"]
    code, out, _ = run("explain", hist, *options, *started)
    assert code == 0 and "1-minimal: each deletion is refuted" in out


def test_verified_with_stored_means_of_a_trained_model(run: Run, tmp_path: Path) -> None:
    """All 64^10 inputs; what is proved is about the means that are in the file, and `judge` takes them from there."""
    options = ["--method", "verified", "--ablation", "mean", "--pairs", 100, "--seconds", 5]
    code, out, _ = run("explain", "zoo:max-of-10", *options, "-o", tmp_path / "v.json", "--json")
    data = json.loads(out)
    assert code == 0 and data["verified"]["minimal"]
    saved = ScoredCircuit.load(tmp_path / "v.json")
    assert saved.means is not None and "100 words" in saved.means.provenance
    assert saved.circuit().ablation == "mean"
    code, out, _ = run("judge", "zoo:max-of-10", tmp_path / "v.json", "--seconds", 1, "--edge-seconds", 0.2, "--json")
    assert code in (0, 2) and saved.means.provenance in json.loads(out)["ablation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magic"], "--method must be one of eap, eap-ig"),
        (["--method", "eap", "--steps", "3"], "--steps goes with --method eap-ig, not with eap"),
        (["--seconds", "3"], "--seconds goes with --method verified"),
        (["--ablation", "any"], "--ablation must be zero, mean or resample"),
        (["--metric", "accuracy"], "--metric must be one of logit-difference"),
        (["--top", "2", "--threshold", "0.1"], "exclude each other"),
        (["--top", "99"], "top must be 1 to 8"),
        (["--method", "acdc"], "--method acdc needs --threshold"),
        (["--method", "verified", "--top", "3"], "leave --top out"),
        (["-o", "no-folder/c.json"], "there is no folder no-folder"),
        (["--method", "verified", "--threshold", "1"], "leave --threshold out"),
        (["--pairs", "0"], "--pairs must be at least 1, got 0"),
        (["--format", "eap-ig"], "say where with -o FILE"),
        (["--format", "dot", "-o", "x"], "--format must be one of certiformer"),
        (["--format", "acdc", "-o", "x"], "select one with --top or --threshold"),
        (["--svg", "x.svg"], "select one with --top or --threshold"),
        (["--path", "outputs"], "path must be 'inputs' or 'activations'"),
        (["--lengths", "1:9"], "the model takes at most 4 tokens"),
        (["--vocab", "7"], "unknown token '7'"),
        (["--method", "verified", "--start", "none.json"], "cannot read none.json"),
        (["--method", "verified", "--seconds", "0"], "--seconds must be above 0"),
    ],
)
def test_bad_options_are_named(run: Run, hist: Path, options: list[str], message: str) -> None:
    code, _, err = run("explain", hist, "--pairs", 5, *options)
    assert code == 3 and message in " ".join(err.split())
    assert not Path("x").exists()


def test_the_model_is_not_overwritten(run: Run, hist: Path) -> None:
    before = hist.read_bytes()
    for option in ("-o", "--svg"):
        code, _, err = run("explain", hist, "--top", 3, option, hist)
        assert code == 3 and "which would be lost" in err
    assert hist.read_bytes() == before


def test_models_that_cannot_be_explained(run: Run, tmp_path: Path) -> None:
    Transformer.initialised(zoo.load("max-of-4").model.config).save(tmp_path / "bare.safetensors")
    code, _, err = run("explain", tmp_path / "bare.safetensors")
    assert code == 3 and "holds a bare model" in err
    code, _, err = run("explain", "zoo:max-of-4", "--lengths", "1:2")
    assert code == 3 and "takes no --lengths" in err
    assert run("explain", "zoo:nothing")[0] == 3 and run("explain", tmp_path / "none")[0] == 3
