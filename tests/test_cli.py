"""The command line: results, exit codes, JSON alone on stdout, messages, never tracebacks; nothing half-written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from certiformer.cli import execute, inputs
from certiformer.cli.output import BadInput, Screen
from certiformer.compiler import programs
from certiformer.proofs import Holey

COMMANDS = ["compile", "run", "prove", "check", "show", "programs", "demo", "train", "zoo"]
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
    assert "0 done, proved or valid; 1 refuted or invalid; 2 unknown or holey; 3 bad input" in text
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
        theorem["domain"]["lengths"] = [1, 3]
        (tmp_path / "wrong.json").write_text(json.dumps(theorem))
        assert run(*command, tmp_path / "wrong.json")[0] == 1

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
            assert "every sequence" in run("show", certificate)[1]

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
            assert message in parsed(out)["error"]["message"] or parsed(out)["error"]["kind"] == "usage"

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
            ("from certiformer.compiler.rasp import tokens", "x", "its programs are: tokens"),
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
        assert run("check", bad, "--model", made / "sort.safetensors")[0] in (1, 3)
        assert run("check", made / "sort.cert", "--model", bad)[0] in (1, 3)

    @pytest.mark.parametrize("keep", [1, 100, 0.5, 0.999])
    def test_truncated_files(self, run: Run, made: Path, tmp_path: Path, keep: float) -> None:
        for name in ("sort.cert", "sort.safetensors"):
            whole = (made / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
        assert run("check", tmp_path / "sort.cert", "--model", made / "sort.safetensors")[0] in (1, 3)
        assert run("check", made / "sort.cert", "--model", tmp_path / "sort.safetensors")[0] in (1, 3)
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
    assert {path.name for path in tmp_path.iterdir()} == {"sort.cert", "sort.safetensors"}

    readme = Path(__file__).resolve().parent.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("```\n1. Compile")
    shown, _, after = rest.partition("\n```")
    if os.environ.get("UPDATE_README"):
        readme.write_text(f"{before}```\n{story['text']}\n```{after}", encoding="utf-8")
    else:  # a machine's speed decides the searches in later parts, its matrix products the last bits of a bound
        varies = r"[\d.]+ s\b|[\d,]+ bytes, seal \w+"
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

    def test_tokens(self) -> None:
        assert inputs.parse_tokens([")(("], ("(", ")")) == [")", "(", "("]
        assert inputs.parse_tokens(["10"], (1, 0, 10)) == [10]
        assert inputs.parse_tokens(["10"], (1, 0)) == [1, 0]
        assert inputs.parse_tokens(["a b a"], ("a", "b")) == ["a", "b", "a"]
        assert inputs.parse_tokens(["none", "1/3"], (None, Fraction(1, 3))) == [None, Fraction(1, 3)]

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
