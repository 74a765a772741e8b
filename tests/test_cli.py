"""The command line: results, exit codes, JSON alone on stdout, messages, never tracebacks; nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import certiformer
from certiformer import proofs
from certiformer.cli import execute, inputs
from certiformer.cli.output import BadInput, Screen
from certiformer.compiler import programs
from certiformer.proofs import Holey
from certiformer.proofs.format import MAX_BYTES

COMMANDS = [
    "compile",
    "run",
    "prove",
    "prove-program",
    "check",
    "show",
    "programs",
    "demo",
    "train",
    "zoo",
    "radius",
    "bound",
    "explain",
    "import",
    "export",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(certiformer.__file__).parents[1])}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: (exit code, stdout, stderr). No traceback, ever."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = int(execute([str(argument) for argument in arguments]))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its certificate, and a model with other weights."""
    folder = tmp_path_factory.mktemp("cli")
    assert execute(["compile", "sort", "--vocab", "4", "--max-len", "4", "-o", str(folder / "sort.safetensors")]) == 0
    assert (
        execute(["compile", "reverse", "--vocab", "4", "--max-len", "4", "-o", str(folder / "other.safetensors")]) == 0
    )
    model, certificate = str(folder / "sort.safetensors"), str(folder / "sort.cert")
    assert execute(["prove", model, "--engine", "composition", "-o", certificate]) == 0
    return folder


def parsed(out: str) -> Any:
    """The one JSON object on stdout."""
    return json.loads(out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_the_exit_codes(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert "0 done, proved or valid; 1 refuted or invalid, or (run) model and program disagree; 2 unknown" in text
    assert "3 bad input; 70 an error inside certiformer; 130 interrupted; 141 nobody read the output" in text
    assert "--json" in text


def test_version(run: Run) -> None:
    from certiformer import __version__

    assert run("--version")[:2] == (0, f"certiformer {__version__}\n")


class TestTheChain:
    def test_compile(self, run: Run, tmp_path: Path) -> None:
        code, out, _ = run("compile", "reverse", "--vocab", "2,0,1", "--max-len", "4", "-o", tmp_path, "--json")
        data = parsed(out)
        assert code == 0
        assert data["path"] == str(tmp_path / "reverse.safetensors")
        assert sorted(data["vocab"]) == [0, 1, 2] and data["parameters"] > 0
        assert [path.name for path in tmp_path.iterdir()] == ["reverse.safetensors"]

    def test_compiling_twice_gives_the_same_bytes(self, run: Run, tmp_path: Path) -> None:
        for name in ("a", "b"):
            assert run("compile", "hist", "--vocab", "a,b", "--max-len", "3", "-o", tmp_path / name)[0] == 0
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_program_of_ones_own(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text("from certiformer.compiler.rasp import tokens\nfirst = tokens\ndef again(): return tokens\n")
        for name in ("first", "again"):
            assert run("compile", f"{file}:{name}", "--vocab", "a,b", "--max-len", "2", "-o", tmp_path / name)[0] == 0
            assert run("run", tmp_path / name, "ab")[:2] == (0, "a b\n")

    def test_run(self, run: Run, made: Path) -> None:
        assert run("run", made / "sort.safetensors", "3", "1", "2")[:2] == (0, "1 2 3\n")
        assert run("run", made / "sort.safetensors", "3,1,2")[:2] == (0, "1 2 3\n")
        code, out, _ = run("run", made / "sort.safetensors", "3", "1", "--json")
        assert code == 0
        assert parsed(out) == {"input": [3, 1], "output": [1, 3], "program_output": [1, 3], "agree": True}

    def test_check(self, run: Run, made: Path) -> None:
        code, out, _ = run("check", made / "sort.cert", "--model", made / "sort.safetensors", "--json")
        assert (code, parsed(out)["verdict"]) == (0, "valid")

    def test_show(self, run: Run, made: Path) -> None:
        code, out, _ = run("show", made / "sort.cert")
        assert code == 0
        for words in ("every sequence of 1 to 4 tokens", "340", "real: ", "SHA-256", "trusted", "python-flint"):
            assert words in out
        data = parsed(run("show", made / "sort.cert", "--json")[1])
        assert data["domain_size"] == "340" and data["checked"] is False

    def test_what_show_prints_can_be_expected(self, run: Run, made: Path, tmp_path: Path) -> None:
        theorem = parsed(run("show", made / "sort.cert", "--json")[1])["theorem"]
        command = ("check", made / "sort.cert", "--model", made / "sort.safetensors", "--expect")
        (tmp_path / "right.json").write_text(json.dumps(theorem))
        assert run(*command, tmp_path / "right.json")[0] == 0
        (tmp_path / "shown.json").write_text(run("show", made / "sort.cert", "--json")[1])
        assert run(*command, tmp_path / "shown.json")[0] == 0
        assert run(*command, made / "sort.cert")[0] == 0
        theorem["domain"]["lengths"] = [1, 3]
        (tmp_path / "wrong.json").write_text(json.dumps(theorem))
        assert run(*command, tmp_path / "wrong.json")[0] == 1

    @pytest.mark.parametrize("flaw", ["{}", "[]", "null", "", "{", '{"theorem": {}}', "body alone", "another kind"])
    def test_what_is_expected_is_a_whole_theorem(self, run: Run, made: Path, tmp_path: Path, flaw: str) -> None:
        theorem = json.loads((made / "sort.cert").read_bytes())["theorem"]
        texts = {
            "body alone": json.dumps({"body": theorem["body"]}),
            "another kind": json.dumps({**theorem, "quantifier": "most"}),
        }
        (tmp_path / "expected").write_text(texts.get(flaw, flaw))
        code, out, err = run(
            "check", made / "sort.cert", "--model", made / "sort.safetensors", "--expect", tmp_path / "expected"
        )
        assert (code, out) == (3, "")
        assert "holds no whole theorem" in err and "certiformer show --json" in err

    def test_a_model_that_disagrees_with_its_program(
        self, run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("certiformer.compiler.compiled.Compiled.run", lambda self, xs: [0 for _ in xs])
        assert run("run", made / "sort.safetensors", "3", "1") == (1, "0 0\nits program gives  1 3\n", "")
        code, out, _ = run("run", made / "sort.safetensors", "3", "1", "--json")
        assert code == 1 and parsed(out)["agree"] is False

    def test_the_size_without_reuse(self, run: Run, tmp_path: Path) -> None:
        command = ("compile", "sort", "--vocab", "4", "--max-len", "4", "-o", tmp_path)
        data = parsed(run(*command, "--json")[1])
        assert data["d_model"] <= data["d_model_without_reuse"]
        assert data["margin"] > 0
        assert f"d_model {data['d_model']} ({data['d_model_without_reuse']} without reuse)" in run(*command)[1]

    def test_a_vocabulary_of_the_programs_own(self, run: Run, tmp_path: Path) -> None:
        command = ("compile", "parity", "--vocab", "20", "--max-len", "2", "-o", tmp_path)
        assert "note: parity has a vocabulary of its own, of 2 tokens where 20 are asked for" in run(*command)[1]
        assert len(parsed(run(*command, "--json")[1])["notes"]) == 1
        assert (
            parsed(run("compile", "sort", "--vocab", "2", "--max-len", "2", "-o", tmp_path, "--json")[1])["notes"] == []
        )

    def test_tokens_that_are_fractions(self, run: Run, tmp_path: Path) -> None:
        command = ("compile", "sort", "--vocab", "10.5,9.5,1/3", "--max-len", "3", "-o", tmp_path, "--json")
        assert sorted(parsed(run(*command)[1])["vocab"]) == ["1/3", "19/2", "21/2"]
        assert run("run", tmp_path / "sort.safetensors", "10.5", "9.5", "1/3")[:2] == (0, "1/3 19/2 21/2\n")

    def test_proving_twice_gives_the_same_bytes(self, run: Run, made: Path, tmp_path: Path) -> None:
        again = tmp_path / "again.cert"
        assert run("prove", made / "sort.safetensors", "--engine", "composition", "-o", again)[0] == 0
        assert again.read_bytes() == (made / "sort.cert").read_bytes()

    def test_other_claims(self, run: Run, made: Path) -> None:
        model = made / "sort.safetensors"
        assert run("prove", model, "--claim", "margin", "--at-least", "0.01")[0] == 0
        assert run("prove", model, "--claim", "margin", "--at-least", "1000000")[0] == 1
        assert run("prove", model, "--claim", "never-outputs", "--outputs", "3")[0] == 1
        assert run("prove", model, "--claim", "never-outputs", "--outputs", "3", "--vocab", "0,1,2")[0] == 0

    def test_programs(self, run: Run) -> None:
        code, out, _ = run("programs", "--json")
        assert code == 0
        assert {entry["name"] for entry in parsed(out)["programs"]} == set(programs.LIBRARY)
        assert "sort" in run("programs")[1]


class TestTrainedModels:
    def test_accuracy_of_a_zoo_model_is_proved_and_checked(self, run: Run, tmp_path: Path) -> None:
        certificate = tmp_path / "max.cert"
        command = ("prove", "zoo:max-of-4", "--claim", "accuracy", "--engine", "counting")
        code, out, _ = run(*command, "--at-least", "0.9997", "-o", certificate)
        assert code == 0 and "at least 0.9997 of the inputs" in out
        assert run("check", certificate, "--model", "zoo:max-of-4/0")[0] == 0
        assert run("check", certificate, "--model", "zoo:max-of-4/1")[0] == 1
        assert "label of 'max-of-4'" in run("show", certificate)[1]
        assert run(*command, "--at-least", "0.9999")[0] == 1
        code, out, _ = run(*command, "--at-least", "0.9997", "--at-most", "0.9998")
        assert code == 0 and "at least 0.9997 and at most 0.9998 of the inputs" in out
        assert run(*command, "--at-most", "0.9997")[0] == 1

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "needs --at-least"),
            (("--at-least", "x"), "a share from 0 to 1"),
            (("--at-most", "x"), "--at-most must be a share from 0 to 1"),
            (("--at-least", "0.9", "--at-most", "0.8"), "swap them"),
            (("--at-least", "1.5"), "a number from 0 to 1"),
            (("--at-least", "0.5", "--lengths", "1:2"), "takes no --lengths"),
            (("--at-least", "0.5", "--outputs", "1"), "does not go with"),
        ],
    )
    def test_bad_input(self, run: Run, options: tuple[str, ...], said: str) -> None:
        code, _, err = run("prove", "zoo:max-of-4", "--claim", "accuracy", *options)
        assert code == 3 and said in err

    def test_the_weight_radius_of_a_claim(self, run: Run, made: Path) -> None:
        """With what is not claimed; a false claim is refuted, one that no radius is proved of unknown."""
        model = made / "sort.safetensors"
        code, out, _ = run("radius", model, "--lengths", "1:3")
        assert code == 0 and out.startswith("Weight radius") and "no certificate" in out
        code, out, _ = run("radius", model, "--lengths", "1:3", "--claim", "margin", "--at-least", "0.01", "--json")
        data = parsed(out)
        assert code == 0 and 0 < data["eps"] < data["beyond"] and data["relative"] and data["engine"] == "enumeration"
        assert any("no certificate" in text for text in data["not_claimed"])
        code, out, _ = run("radius", model, "--lengths", "1:3", "--absolute", "--json")
        assert code == 0 and parsed(out)["relative"] is False and "each" in parsed(out)["proved_of"]
        assert run("radius", model, "--lengths", "1:2", "--claim", "margin", "--at-least", "1000000")[0] == 1
        code, out, _ = run("radius", model, "--lengths", "1:3", "--seconds", "1e-9", "--json")
        assert code == 2 and parsed(out)["verdict"] == "unknown"
        for options in (("--seconds", "0"), ("--claim", "faithful"), ("--claim", "margin"), ("--vocab", "9")):
            assert run("radius", model, *options)[0] == 3

    def test_labels_and_margins_of_a_zoo_model_are_proved_by_enumeration(self, run: Run, tmp_path: Path) -> None:
        certificate, name = tmp_path / "sum.cert", "zoo:modular-addition-113"
        code, out, _ = run("prove", name, "--claim", "task-margin", "-o", certificate)
        assert code == 0 and "label of modular-addition-113 exceeds every other by at least 3.4" in out
        assert run("check", certificate, "--model", name)[0] == 0
        assert "exceeds every other by at least 3.4" in run("show", certificate)[1]
        assert run("prove", name, "--claim", "labels")[0] == 0
        assert run("prove", name, "--claim", "task-margin", "--at-least", "1000")[0] == 1
        assert run("prove", name, "--claim", "task-margin", "--at-least", "0")[0] == 3
        assert run("prove", name, "--claim", "labels", "--at-least", "0.5")[0] == 3
        assert run("prove", "zoo:max-of-10", "--claim", "task-margin")[0] == 3

    def test_a_model_that_is_not_there(self, run: Run) -> None:
        assert run("prove", "zoo:max-of-3", "--claim", "accuracy", "--at-least", "0.5")[0] == 3


class TestExitCodes:
    @pytest.mark.parametrize(
        ("options", "code"),
        [
            (("invariant", "--irrelevant", "2"), 1),
            (("invariant", "--relabel", "0=1,1=0"), 1),
            (("invariant", "--relabel", "3=0", "--vocab", "0,1,2"), 2),
            (("invariant", "--relabel", "0=1,1=2", "--relabel-outputs", "--vocab", "0,1"), 0),
            (("attends", "--head", "0,0", "--selector", "n3", "--tolerance", "0.001"), 1),
            (("faithful",), 0),
            (("faithful", "--ablation", "zero", "--engine", "enumeration"), 0),
            (("abstracts",), 0),
        ],
    )
    def test_claims_about_mechanism(
        self, run: Run, made: Path, tmp_path: Path, options: tuple[str, ...], code: int
    ) -> None:
        model, certificate = made / "sort.safetensors", tmp_path / "x.cert"
        found, out, _ = run("prove", model, "--claim", *options, "--lengths", "1:3", "-o", certificate)
        assert found == code, out
        assert certificate.exists() == (code == 0)
        if code == 0:
            assert run("check", certificate, "--model", model)[0] == 0
            about = "For every pair x, y of equally long sequences" if "pairs" in out else "For every sequence"
            assert about in run("show", certificate)[1]

    def test_a_false_claim_is_refuted_with_its_witness(self, run: Run, made: Path) -> None:
        code, out, _ = run("prove", made / "sort.safetensors", "--program", "reverse", "--json")
        data = parsed(out)
        assert (code, data["verdict"]) == (1, "refuted")
        assert data["evidence"]

    def test_nothing_is_written_for_a_refuted_claim(self, run: Run, made: Path, tmp_path: Path) -> None:
        assert run("prove", made / "sort.safetensors", "--program", "reverse", "-o", tmp_path / "x.cert")[0] == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_claim_left_open_is_unknown(self, run: Run, made: Path) -> None:
        model = made / "sort.safetensors"
        code, out, _ = run("prove", model, "--program", "reverse", "--engine", "composition", "--json")
        assert (code, parsed(out)["verdict"]) == (2, "unknown")

    def test_a_holey_certificate(self, run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("certiformer.proofs.check", lambda *_, **__: Holey(("steps/1",)))
        code, out, _ = run("check", made / "sort.cert", "--model", made / "sort.safetensors", "--json")
        assert (code, parsed(out)["verdict"], parsed(out)["which"]) == (2, "holey", ["steps/1"])

    def test_a_certificate_for_other_weights_is_invalid(self, run: Run, made: Path) -> None:
        code, out, _ = run("check", made / "sort.cert", "--model", made / "other.safetensors", "--json")
        assert code == 1
        assert parsed(out)["verdict"] == "invalid" and parsed(out)["why"]

    def test_a_changed_certificate_is_invalid(self, run: Run, made: Path, tmp_path: Path) -> None:
        data = json.loads((made / "sort.cert").read_text())
        data["theorem"]["domain"]["lengths"][1] += 1
        (tmp_path / "changed.cert").write_text(json.dumps(data))
        assert run("check", tmp_path / "changed.cert", "--model", made / "sort.safetensors")[0] == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "Usage"),
            (("fly",), "fly"),
            (("compile",), "PROGRAM"),
            (("compile", "sort"), "output"),
            (("compile", "sort", "-o", "x", "--max-len", "many"), "max-len"),
            (("compile", "srot", "-o", "x"), "did you mean sort"),
            (("compile", "none.py:program", "-o", "x"), "no file 'none.py'"),
            (("compile", "sort", "-o", "missing/folder/x"), "there is no folder"),
            (("compile", "sort", "-o", "x", "--vocab", "0"), "1 to 100000"),
            (("compile", "sort", "-o", "x", "--vocab", "a,,b"), "empty token"),
            (("compile", "sort", "-o", "x", "--vocab", "a,b,a"), "repeats a"),
            (("compile", "sort", "-o", "x", "--max-len", "0"), "max_len"),
            (("run", "missing.safetensors", "1"), "missing.safetensors"),
            (("check", "missing.cert", "--model", "missing.safetensors"), "no file 'missing.cert'"),
            (("show", "missing.cert"), "no file 'missing.cert'"),
            (("demo", "--folder", "missing"), "no folder 'missing'"),
        ],
    )
    def test_bad_input(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, err = run(*arguments)
        assert code == 3
        assert message in err + ("" if arguments else out)
        assert list(tmp_path.iterdir()) == []
        if arguments:
            code, out, _ = run(*arguments, "--json")
            assert code == 3
            assert message in parsed(out)["error"]["message"]

    def test_a_wrong_number_is_named_with_its_option(self, run: Run) -> None:
        for command, option in ((("compile", "sort", "-o", "x"), "--max-len"), (("prove", "x"), "--seconds")):
            told = parsed(run(*command, option, "abc", "--json")[1])["error"]["message"]
            assert option in told and "'abc'" in told
            err = run(*command, option, "abc")[2]
            assert option in err and "'abc'" in err

    def test_no_input_is_overwritten(self, run: Run, made: Path, tmp_path: Path) -> None:
        program = tmp_path / "mine.py"
        program.write_text("from certiformer.compiler.rasp import tokens\nmine = tokens\n")
        model, link = made / "sort.safetensors", tmp_path / "link"
        link.symlink_to(model)
        before = model.read_bytes(), program.read_text()
        for command in (
            ("prove", model, "-o", model),
            ("prove", model, "-o", link),
            ("prove", link, "-o", model),
            ("prove", model, "--program", f"{program}:mine", "-o", program),
            ("compile", f"{program}:mine", "-o", program),
        ):
            code, _, err = run(*command)
            assert code == 3 and "would be lost" in err
        assert before == (model.read_bytes(), program.read_text())

    @pytest.mark.parametrize("target", ["/proc/x.cert", "/dev/null"])
    def test_a_place_that_cannot_be_written_is_named(self, run: Run, made: Path, target: str) -> None:
        code, _, err = run("prove", made / "other.safetensors", "-o", target)
        assert code == 3
        assert f"cannot write {target}" in err and ".part" not in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--claim", "flies"), "--claim must be one of"),
            (("--claim", "margin"), "needs --at-least"),
            (("--claim", "margin", "--at-least", "much"), "--at-least must be a number"),
            (("--claim", "margin", "--at-least", "1", "--outputs", "1"), "does not go with"),
            (("--claim", "never-outputs"), "needs --outputs"),
            (("--claim", "never-outputs", "--outputs", "9"), "no output '9'"),
            (("--claim", "invariant"), "needs either"),
            (("--claim", "invariant", "--relabel", "1=2", "--irrelevant", "0"), "needs either"),
            (("--claim", "invariant", "--relabel", "12"), "must look like a=b"),
            (("--claim", "invariant", "--relabel", "1=9"), "unknown token '9'"),
            (("--claim", "invariant", "--relabel", "1=2,1=3"), "twice"),
            (("--claim", "invariant", "--irrelevant", "-1"), "numbers from 0"),
            (("--claim", "invariant", "--irrelevant", "99"), "positions are 0 to 3"),
            (("--claim", "invariant", "--irrelevant", "0", "--relabel-outputs"), "goes with --relabel"),
            (("--claim", "attends"), "needs --head"),
            (("--claim", "attends", "--head", "0"), "must look like 0,1"),
            (("--claim", "attends", "--head", "0,99", "--selector", "n3"), "no head L0H99"),
            (("--claim", "attends", "--head", "0,0", "--selector", "nothing"), "no node 'nothing'"),
            (("--claim", "attends", "--head", "0,0", "--selector", "n3", "--tolerance", "2"), "below 1"),
            (("--claim", "faithful", "--ablation", "mean"), "zero or resample"),
            (("--claim", "abstracts", "--head", "0,0"), "does not go with"),
            (("--relabel-outputs",), "does not go with"),
            (("--lengths", "0:3"), "1 <= FIRST"),
            (("--lengths", "3:2"), "1 <= FIRST"),
            (("--lengths", "some"), "must look like"),
            (("--lengths", "1:99"), "at most 4"),
            (("--vocab", "1,9"), "unknown token '9'"),
            (("--seconds", "0"), "above 0"),
            (("--seconds", "nan"), "above 0"),
            (("--engine", "magic"), "magic"),
        ],
    )
    def test_bad_claims(self, run: Run, made: Path, options: tuple[str, ...], message: str) -> None:
        code, _, err = run("prove", made / "sort.safetensors", *options)
        assert code == 3
        assert message in err

    @pytest.mark.parametrize(("tokens", "message"), [(("7",), "'7'"), (("1",) * 5, "at most 4"), (("",), "token")])
    def test_bad_tokens(self, run: Run, made: Path, tokens: tuple[str, ...], message: str) -> None:
        code, _, err = run("run", made / "sort.safetensors", *tokens)
        assert code == 3
        assert message in err

    @pytest.mark.parametrize(
        ("text", "name", "message"),
        [
            ("x = (", "x", "SyntaxError"),
            ("1 / 0", "x", "ZeroDivisionError: division by zero (line 1)"),
            ("raise SystemExit(5)", "x", "SystemExit"),
            ("from certiformer.compiler.rasp import tokens", "x", "its programs are: none"),
            (
                "from certiformer.compiler.rasp import *\nfrom certiformer.compiler.programs import sort\n"
                "first = tokens\ndef again(): return tokens\ndef shifted(by): return tokens\ndef _own(): return tokens",
                "x",
                "its programs are: again, first\n",
            ),
            ("x = 3", "x", "must be an SOp"),
            ("from certiformer.compiler.rasp import Map, tokens\nx = Map(lambda t: 1 // t, tokens)", "x", "division"),
            ("def x(): raise ValueError('no')", "x", "ValueError: no (line 1)"),
        ],
    )
    def test_bad_program_files(self, run: Run, tmp_path: Path, text: str, name: str, message: str) -> None:
        file = tmp_path / "mine.py"
        file.write_text(text)
        code, _, err = run("compile", f"{file}:{name}", "-o", tmp_path / "out.safetensors")
        assert code == 3
        assert message in err
        assert not (tmp_path / "out.safetensors").exists()

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"theorem": {}}', b"NaN"]
    )
    def test_files_that_are_something_else(self, run: Run, made: Path, tmp_path: Path, content: bytes) -> None:
        bad = tmp_path / "bad"
        bad.write_bytes(content)
        assert run("show", bad)[0] == 3
        assert run("run", bad, "1")[0] == 3
        assert run("prove", bad)[0] == 3
        for code, _, err in (
            run("check", bad, "--model", made / "sort.safetensors"),
            run("check", made / "sort.cert", "--model", bad),
        ):
            assert code == 3
            assert str(bad) in err and "`certiformer" in err

    @pytest.mark.parametrize("keep", [1, 100, 0.5, 0.999])
    def test_truncated_files(self, run: Run, made: Path, tmp_path: Path, keep: float) -> None:
        for name in ("sort.cert", "sort.safetensors"):
            whole = (made / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        assert run("check", tmp_path / "sort.cert", "--model", made / "sort.safetensors")[0] == 3
        assert run("check", made / "sort.cert", "--model", tmp_path / "sort.safetensors")[0] == 3
        assert run("run", tmp_path / "sort.safetensors", "1")[0] == 3

    def test_an_interruption_leaves_nothing(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", interrupted)
        code, _, err = run("compile", "reverse", "--vocab", "2", "--max-len", "2", "-o", tmp_path)
        assert (code, err) == (130, "interrupted\n")
        assert list(tmp_path.iterdir()) == []

    def test_a_bug_of_ours_is_called_one(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object) -> int:
            raise RuntimeError("oh")

        monkeypatch.setattr("certiformer.cli.commands.list_programs", broken)
        code, _, err = run("programs")
        assert code == 70
        assert "a bug in certiformer: RuntimeError: oh" in err


@pytest.mark.slow
def test_the_demo_ends_as_it_should(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("demo", "--folder", tmp_path, "--json")
    story = parsed(out)
    assert code == 0 and story["as_expected"]
    assert story["sorts"]["verdict"] == "proved"
    assert story["check"]["verdict"] == "valid"
    assert story["faulty"]["verdict"] == story["wrong_explanation"]["verdict"] == "refuted"
    assert story["abstracts"]["verdict"] == story["accuracy"]["verdict"] == "proved"
    assert {path.name for path in tmp_path.iterdir()} == {"sort.cert", "sort.safetensors"}

    readme = Path(__file__).resolve().parent.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("```\n1. Compile")
    shown, _, after = rest.partition("\n```")
    if os.environ.get("UPDATE_README"):
        readme.write_text(f"{before}```\n{story['text']}\n```{after}", encoding="utf-8")
    else:  # a machine's speed decides the searches in later parts, its matrix products the last bits of a bound
        varies = r"[\d.]+ s\b|[\d,]+ bytes(, seal \w+)?"
        told, kept = (re.sub(varies, "_", text).split("4. Plant")[0] for text in (story["text"], shown))
        assert told == f"1. Compile{kept}", (
            "README shows another demo: UPDATE_README=1 pytest tests/test_cli.py -k demo"
        )


class TestInputs:
    def test_vocab(self) -> None:
        assert inputs.parse_vocab("3") == (0, 1, 2)
        assert inputs.parse_vocab("3,1") == (3, 1)
        assert inputs.parse_vocab("a, b") == ("a", "b")
        assert inputs.parse_vocab("1,b") == ("1", "b")
        assert inputs.parse_vocab("x") == ("x",)
        assert inputs.parse_vocab("10.5,9.5") == (Fraction(21, 2), Fraction(19, 2))
        assert inputs.parse_vocab("-1,+2.0,.5,1/3,1e2") == (-1, 2, Fraction(1, 2), Fraction(1, 3), 100)
        assert inputs.parse_vocab("1.5,b") == ("1.5", "b")
        for text, flaw in (("1/0,2", "denominator"), ("1,1.0", "repeats 1"), ("2/4,0.5", "repeats 1/2")):
            with pytest.raises(BadInput, match=flaw):
                inputs.parse_vocab(text)

    def test_tokens(self) -> None:
        assert inputs.parse_tokens([")(("], ("(", ")")) == [")", "(", "("]
        assert inputs.parse_tokens(["10"], (1, 0, 10)) == [10]
        assert inputs.parse_tokens(["10"], (1, 0)) == [1, 0]
        assert inputs.parse_tokens(["a b a"], ("a", "b")) == ["a", "b", "a"]
        assert inputs.parse_tokens(["none", "1/3"], (None, Fraction(1, 3))) == [None, Fraction(1, 3)]
        assert inputs.parse_tokens(["0.5 1.0"], (1, Fraction(1, 2))) == [Fraction(1, 2), 1]

    @pytest.mark.parametrize(
        ("text", "vocab", "named"),
        [
            ("99", range(20), "99"),
            ("-1", range(10), "-1"),
            ("abc", ("a", "bc"), "abc"),
            ("a.b", ("a", "b"), "."),
            ("1 99", range(20), "99"),
            (" ", ("a", "b"), " "),
        ],
    )
    def test_only_tokens_of_one_character_are_told_apart(self, text: str, vocab: Any, named: str) -> None:
        with pytest.raises(BadInput, match=re.escape(f"unknown token {named!r}")):
            inputs.parse_tokens([text], tuple(vocab))

    def test_lengths(self) -> None:
        assert inputs.parse_lengths("2:4") == range(2, 5)
        assert inputs.parse_lengths("7") == range(7, 8)

    def test_bounds_are_rounded_up(self) -> None:
        assert inputs.parse_bound("1/2", "--at-least") == Fraction(1, 2)
        assert 0 <= inputs.parse_bound("0.1", "--at-least") - Fraction(1, 10) < Fraction(1, 10**17)
        assert 0 <= inputs.parse_bound("0.3", "--at-least") - Fraction(3, 10) < Fraction(1, 10**16)

    def test_an_unknown_token_is_named(self) -> None:
        with pytest.raises(BadInput, match=r"unknown token 'c'; the vocabulary has 2: a, b"):
            inputs.parse_tokens(["a", "c"], ("a", "b"))


def test_progress_is_for_people_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().progress("waiting"):
        pass
    assert capsys.readouterr() == ("", "")


class TestStreams:
    """Whoever reads the output, and however: no traceback, and never an exit code that means something else."""

    @pytest.mark.parametrize(
        "command",
        [
            ["certiformer.cli", "programs"],
            ["certiformer.cli", "programs", "--json"],
            ["certiformer.cli", "show", "sort.cert"],
            ["certiformer.cli", "show", "missing.cert", "--json"],
            ["certiformer.cli", "--help"],
            ["certiformer.proofs", "sort.cert", "sort.safetensors"],
        ],
    )
    def test_nobody_reads(self, made: Path, command: list[str]) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=made,
            env=ENVIRONMENT,
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writing)
        assert done.returncode == 141
        assert done.stderr == b"" or b"error: no file" in done.stderr

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_an_output_without_our_characters(self, options: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "certiformer.cli", "programs", *options],
            env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u2026" in done.stdout
        if options:
            assert any("…" in entry["summary"] for entry in parsed(done.stdout.decode("ascii"))["programs"])

    def test_what_a_file_says_does_not_steer_the_terminal(self, run: Run, made: Path, tmp_path: Path) -> None:
        nasty = "x\x1b[2J\x9b\nvalid\u202e"
        data = json.loads((made / "sort.cert").read_bytes())
        data["theorem"]["body"]["program"]["name"] = nasty
        data["theorem"]["body"]["program"]["nodes"][2]["name"] = nasty
        (tmp_path / "nasty.cert").write_bytes(sealed(data))
        for options in ((), ("--json",)):
            code, out, _ = run("show", tmp_path / "nasty.cert", *options)
            assert code == 0
            assert all(character.isprintable() or character == "\n" for character in out)
            assert "\nvalid" not in out
        assert parsed(out)["theorem"] == data["theorem"]


def sealed(data: Any) -> bytes:
    data["seal"] = proofs.seal(data)
    return proofs.canonical_json(data)


class TestShow:
    """What is no theorem is not shown as one."""

    @pytest.mark.parametrize(
        ("path", "item"),
        [
            ("theorem/domain/lengths", [1, 10**9]),
            ("theorem/domain/vocab", []),
            ("theorem/quantifier", "most"),
            ("theorem/semantics", "hearsay"),
            ("theorem/weights_sha256", "0"),
            ("theorem/weights_sha256", 5),
            ("theorem/config", None),
            ("theorem/config/layers", [{"n_heads": 10**12, "d_head": 1, "d_mlp": 1}]),
            ("theorem/body", {"kind": "sorts"}),
            ("theorem/body/program/nodes", []),
            ("theorem/codec/outputs", [0, 0]),
            ("theorem", []),
            ("format", "certiformer/2"),
        ],
    )
    def test_resealed(self, run: Run, made: Path, tmp_path: Path, path: str, item: Any) -> None:
        data = json.loads((made / "sort.cert").read_bytes())
        *way, last = path.split("/")
        owner = data
        for key in way:
            owner = owner[key]
        owner[last] = item
        (tmp_path / "x.cert").write_bytes(sealed(data))
        began = time.monotonic()
        for options in ((), ("--json",)):
            code, _, err = run("show", tmp_path / "x.cert", *options)
            assert code == 3 and "no certificate with a theorem to show" in err
        assert time.monotonic() - began < 10

    def test_a_broken_seal(self, run: Run, made: Path, tmp_path: Path) -> None:
        text = (made / "sort.cert").read_bytes()
        (tmp_path / "x.cert").write_bytes(text.replace(b'"lengths":[1,4]', b'"lengths":[1,3]'))
        code, _, err = run("show", tmp_path / "x.cert")
        assert code == 3 and "seal" in err
        assert run("check", tmp_path / "x.cert", "--model", made / "sort.safetensors")[0] == 1

    def test_as_many_bytes_as_the_checker_reads(self, run: Run, made: Path, tmp_path: Path) -> None:
        with open(tmp_path / "x.cert", "wb") as file:
            file.truncate(MAX_BYTES + 1)
        for command in (("show",), ("check", "--model", made / "sort.safetensors")):
            code, _, err = run(command[0], tmp_path / "x.cert", *command[1:])
            assert code == 3 and str(MAX_BYTES) in err

    @pytest.mark.parametrize("proof", [None, 3, {"rule": "x" * 500, "steps": [1, None, {"rule": []}]}, {}])
    def test_any_proof(self, run: Run, made: Path, tmp_path: Path, proof: Any) -> None:
        data = json.loads((made / "sort.cert").read_bytes())
        (tmp_path / "x.cert").write_bytes(sealed({**data, "proof": proof}))
        assert run("show", tmp_path / "x.cert")[0] == 0

    def test_the_circuit(self, run: Run, made: Path, tmp_path: Path) -> None:
        model, certificate = made / "sort.safetensors", tmp_path / "x.cert"
        assert run("prove", model, "--claim", "faithful", "-o", certificate)[0] == 0
        data = parsed(run("show", certificate, "--json")[1])
        assert (data["domain_size"], data["pairs"]) == ("340", str(sum(16**n for n in range(1, 5))))
        shown = run("show", certificate)[1]
        assert "alone decodes on x as the model does" in shown and "taken from y" in shown
        assert "69,904 pairs of inputs, from 340 inputs" in shown
        assert re.search(r"a0\.h0 +q: input +k: input +v: input", shown)


def test_bound_from_both_sides(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    arguments = ("bound", "zoo:max-of-4", "--output", 40, "--rival", 39, "--seconds", 3, "--resume", file)
    code, out, _ = run(*arguments, "--gap", 1000, "--json")
    found = parsed(out)
    assert code == 0 and found["upper"] >= found["lower"] - 1e-4 and len(found["word"]) == 4 and file.exists()
    code, out, _ = run("bound", "zoo:max-of-10-mlp", "--output", 40, "--rival", 39, "--seconds", 0.001)
    assert code == 2 and "least difference" in out
    code, _, err = run("bound", "zoo:max-of-4", "--output", 64, "--rival", 1)
    assert code == 3 and "unknown token '64'" in err
    code, _, err = run("bound", "zoo:modular-addition-113", "--output", 1, "--rival", 1)
    assert code == 3 and "both 1" in err
    code, _, err = run("bound", "zoo:dyck-1-16-layernorm-gelu", "--output", "True", "--rival", "False")
    assert code == 3 and "LayerNorm" in err


def test_bound_writes_a_certificate(run: Run, tmp_path: Path) -> None:
    target, search = tmp_path / "bound.cert", tmp_path / "search.json"
    arguments = ("bound", "zoo:max-of-4", "--output", 40, "--rival", 39, "--seconds", 20)
    code, out, _ = run(*arguments, "--gap", 1, "--certificate", target, "--resume", search, "--json")
    found = parsed(out)
    assert code == 0 and found["certificate"] == str(target) and found["certified"] == found["lower"]
    code, out, _ = run("check", target, "--model", "zoo:max-of-4", "--json")
    assert code == 0 and parsed(out)["theorem"]["body"]["kind"] == "logit_difference"
    code, out, _ = run("check", target, "--model", "zoo:max-of-4/1")
    assert code == 1 and "weights" in out
    code, out, _ = run("show", target)
    assert code == 0 and "the logit of 40 less the logit of 39 is at least -20.5" in out
    code, out, _ = run(*arguments, "--gap", 1, "--certificate", tmp_path)
    assert code == 0 and "Proved" in out and (tmp_path / "max-of-4.bound.cert").exists()
    code, _, err = run(*arguments, "--certificate", tmp_path / "none" / "x")
    assert code == 3 and "no folder" in err
    code, _, err = run(*arguments, "--certificate", search, "--resume", search)
    assert code == 3 and "would be lost" in err


def test_a_claimed_difference(run: Run, tmp_path: Path) -> None:
    claim = ("prove", "zoo:max-of-4", "--claim", "logit-difference", "--outputs")
    target = tmp_path / "difference.cert"
    code, out, _ = run(*claim, "40,39", "--at-least=-21", "--engine", "paths", "-o", target)
    assert code == 0 and "Proved" in out
    assert run("check", target, "--model", "zoo:max-of-4")[0] == 0
    code, out, _ = run(*claim, "40,39", "--at-least=-20", "--json")
    assert code == 1 and parsed(out)["verdict"] == "refuted"
    code, _, err = run(*claim, "40", "--at-least", 1)
    assert code == 3 and "two values" in err
    code, _, err = run(*claim, "40,99", "--at-least", 1)
    assert code == 3 and "unknown token '99'" in err
    code, _, err = run(*claim, "40,39")
    assert code == 3 and "needs --at-least" in err


def test_a_search_by_paths_is_kept_in_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "dyck.search"
    options = ("--engine", "paths", "--seconds", 0.5, "--resume", file)
    prove = ("prove", "zoo:dyck-1-24-sparse", "--claim")
    for _ in range(2):
        code, out, _ = run(*prove, "accuracy", "--at-least", 0.99, *options)
        assert code == 2 and "paths: 0.000000 of the inputs are proved right" in out and file.exists()
    code, _, err = run(*prove, "labels", *options)
    assert code == 3 and "dyck.search belongs to another search" in err and "choose another file" in err
    file.write_text("{}")
    code, _, err = run(*prove, "accuracy", "--at-least", 0.99, *options)
    assert code == 3 and "no file of an interrupted search" in err
    code, _, err = run("prove", "zoo:max-of-4", "--claim", "accuracy", "--at-most", 0.5, "--resume", file)
    assert code == 3 and "leave it out" in err
