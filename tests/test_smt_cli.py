"""`certiformer prove-program`: verdicts, exit codes, JSON, certificates without a model, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from certiformer.cli import execute

FILE = """
from certiformer.compiler.rasp import indices, select, selector_width, tokens

same = select(tokens, tokens, "==")
slow = selector_width(same & select(indices, indices, "<")) + selector_width(same & select(indices, indices, ">"))
fast = selector_width(same) - 1
wrong = selector_width(same)
positive = fast >= 0
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = int(execute(["prove-program", *map(str, arguments)]))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_equivalent_programs_and_their_certificate(run: Any, file: Path, tmp_path: Path, capsys: Any) -> None:
    certificate = tmp_path / "mine.cert"
    code, out, _ = run(
        f"{file}:fast", "--equivalent", f"{file}:slow", "--vocab", "a,b,c", "--lengths", "1:5", "-o", certificate
    )
    assert code == 0 and "Proved" in out
    assert execute(["check", str(certificate)]) == 0
    assert "valid" in capsys.readouterr().out
    assert execute(["show", str(certificate)]) == 0
    assert "same value at every position" in capsys.readouterr().out
    assert execute(["check", str(certificate), "--expect", str(certificate), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "valid"


def test_a_refutation_is_the_smallest_input(run: Any, file: Path) -> None:
    code, out, _ = run(f"{file}:slow", "--equivalent", f"{file}:wrong", "--vocab", "a,b", "--json")
    data = json.loads(out)
    assert code == 1 and data["verdict"] == "refuted" and data["evidence"]["inputs"] == [["a"]]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["sort", "--ensures", "sorted", "--vocab", "3", "--lengths", "1:4"], 0),
        (["sort", "--ensures", "permutation_of_input", "--vocab", "3", "--lengths", "4"], 0),
        (["sort_unique", "--ensures", "sorted", "--vocab", "3", "--lengths", "1:4"], 1),
        (["hist", "--range", "1:4", "--vocab", "3", "--lengths", "1:4"], 0),
        (["hist", "--range", "1:1", "--vocab", "3", "--lengths", "1:4"], 1),
        (["is_unique", "--implies", "is_first_occurrence", "--vocab", "3", "--lengths", "1:4"], 0),
        (["hist", "--equivalent", "prefix_count", "--every-length", "--vocab", "3"], 0),
        (["hist", "--range", "1:99", "--every-length", "--vocab", "2"], 2),
        (["sort", "--ensures", "sorted", "--vocab", "3", "--lengths", "1:4", "--engine", "smt"], 2),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else str(value),
)
def test_exit_codes(run: Any, options: list[str], code: int) -> None:
    assert run(*options)[0] == code


def test_what_z3_alone_says_is_holey(run: Any, tmp_path: Path) -> None:
    certificate = tmp_path / "z3.cert"
    options = ["--vocab", "2", "--lengths", "1:7", "--engine", "smt", "-o", certificate, "--json"]
    code, out, _ = run("count", "--range", "0:7", *options)
    data = json.loads(out)
    assert code == 2 and data["verdict"] == "unknown" and "z3" in data["holes"][0]
    assert execute(["check", str(certificate)]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["sort"], "--equivalent"),
        (["sort", "--range", "0:1", "--implies", "hist"], "--range"),
        (["sort", "--range", "1"], "LEAST:MOST"),
        (["sort", "--ensures", "no_such"], "no program"),
        (["sort", "--range", "0:3", "--engine", "paths"], "engines"),
        (["hist", "--range", "0:3", "--every-length", "--bidirectional"], "causal"),
        (["sort", "--range", "0:3", "-o", "/no/such/folder/x.cert"], "folder"),
        (["sort", "--range", "0:3", "--seconds", "0"], "--seconds"),
    ],
)
def test_bad_input(run: Any, options: list[str], words: str) -> None:
    code, _, err = run(*options)
    assert code == 3 and words in err
