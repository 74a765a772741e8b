"""The command line on claims that trained and compiled models share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certiformer.cli import execute

SITE = ("--site", "blocks.1.hook_resid_post")


def prove(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    code = int(execute(["prove", *options]))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


@pytest.fixture(scope="module")
def sort(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("compiled") / "sort.safetensors"
    assert execute(["compile", "sort", "--vocab", "2", "--max-len", "3", "-o", str(file)]) == 0
    return str(file)


def test_a_compiled_model_is_robust_and_its_certificate_is_checked(
    sort: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = str(tmp_path / "robust.cert")
    options = ("--claim", "robust", *SITE, "--radius", "0.001")
    code, out, _ = prove(capsys, sort, *options, "-o", certificate, "--json")
    assert code == 0 and json.loads(out)["verdict"] == "proved"
    assert execute(["check", certificate, "--model", sort]) == 0
    shown = capsys.readouterr().out
    assert "whatever is added to the residual stream at depth 2" in shown


def test_a_trained_model_is_not_monotone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prove(capsys, "zoo:max-of-4", "--claim", "monotone", "--json")
    found = json.loads(out)
    assert code == 1 and found["verdict"] == "refuted" and "raised input" in found["outcome"]["note"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--claim", "robust"), "needs --site"),
        (("--claim", "robust", *SITE), "needs --radius"),
        (("--claim", "robust", "--site", "blocks.9.hook_resid_post", "--radius", "1"), "blocks.9.hook_resid_post"),
        (("--claim", "robust", *SITE, "--radius", "-1"), "-1"),
        (("--claim", "robust", *SITE, "--radius", "much"), "much"),
        (("--claim", "monotone", "--radius", "1"), "does not go with"),
    ],
)
def test_bad_options_are_named(
    sort: str, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    code, _, err = prove(capsys, sort, *options)
    assert code == 3 and message in err


def test_claims_of_tasks_take_no_domain(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = prove(capsys, "zoo:max-of-4", "--claim", "never-outputs", "--outputs", "3", "--lengths", "1")
    assert code == 3 and "takes no --lengths" in err
