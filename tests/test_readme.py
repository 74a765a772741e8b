"""What README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import certiformer
from certiformer.cli.app import EPILOG
from certiformer.cli.output import ExitCode
from certiformer.models import zoo
from certiformer.proofs import Valid

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 10
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    verdict, domain = names["verdict"], names["domain"]
    assert isinstance(verdict, certiformer.Proved)
    again = certiformer.check("sort.cert", "sort.safetensors", expect=verdict.claim, domain=domain)  # type: ignore[arg-type]
    assert isinstance(again, Valid)
    assert isinstance(names["abstraction"], certiformer.Proved) and isinstance(names["copying"], certiformer.Proved)
    bounds = names["bounds"]
    assert isinstance(bounds, certiformer.AccuracyBounds)
    shown = f"{bounds.proved:,} right, {bounds.refuted:,} wrong, {bounds.undecided:,} undecided"
    assert shown in TEXT and str(bounds).split(", counting")[0] in TEXT
    logits = names["logits"]
    assert isinstance(logits, certiformer.OutputBounds)
    assert float(logits.low[41]) > float(logits.high[40])
    assert (tmp_path / "queries" / "instances.csv").exists() and (tmp_path / "sort.onnx").exists()
    for test in ("test_the_model_sorts", "test_the_compiler", "test_sorted"):
        names[test]()  # type: ignore[operator]


def test_the_margin() -> None:
    found = zoo.load("dyck-1-16")
    margin = certiformer.least_margin(found.model, found.task)
    assert f"exceeds every other by at least {margin:g}\n" in TEXT


def test_the_exit_codes() -> None:
    listed = [int(code) for code in re.findall(r"^\| (\d+) \| ", TEXT, re.MULTILINE)]
    assert listed == sorted(ExitCode)
    assert all(re.search(rf"\b{int(code)} ", EPILOG) for code in ExitCode)
