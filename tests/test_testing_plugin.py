"""The pytest plugin, in sessions of its own: options, certificates, summary, reports, and what it costs to have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import certiformer as cf
from certiformer.testing import check_interpretation, session
from certiformer.testing.session import Record, Session

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent

SUITE = """
import torch

import certiformer as cf
from hypothesis import given, settings, strategies as st
from certiformer.compiler.rasp import indices, select, selector_width, tokens, where
from certiformer.testing import interpretation, words

HIST = cf.compile(cf.programs.hist(), vocab="ab", max_len=4)
DOMAIN = cf.sequences("ab", range(1, 5))
SORT = cf.compile(cf.programs.sort(), vocab=range(3), max_len=7)
FAR = cf.sequences(range(3), range(1, 8))
LATE = selector_width(select(tokens, 2, "==")) == 7

@interpretation(cf.Computes(HIST), DOMAIN)
def test_right(): ...

@interpretation(cf.Computes(HIST, where(indices == 2, 0, cf.programs.hist())), DOMAIN)
def test_wrong(): ...

@interpretation(cf.Computes(SORT, where(LATE, 0, cf.programs.sort())), FAR, guided=False, examples=20)
def test_rarely_wrong(): ...

@interpretation(cf.EdgeEffect(SORT, "input->m0", torch.ones(3), 0, 1000), FAR, examples=20, guided=False)
def test_open(): ...

@settings(max_examples=5, deadline=None)
@given(k=st.integers(3, 6))  # wrong for 3
@interpretation(lambda k: cf.Computes(HIST, where(indices == k, 0, cf.programs.hist())), DOMAIN, examples=40)
def test_drawn(k): ...

def test_ordinary(): assert True
"""
SMALL_SUITE = (
    SUITE.partition("SORT =")[0]
    + """
@interpretation(cf.Computes(HIST), DOMAIN, guided=False)
def test_right(): ...

@interpretation(cf.NeverOutputs(HIST, [2]), DOMAIN, guided=False)
def test_wrong(): ...

@interpretation(cf.NeverOutputs(HIST, [4]).at_least(0.5), DOMAIN, guided=False)
def test_rarely_wrong(): ...

def test_expected():
    import pytest
    from certiformer.testing import check_interpretation
    with pytest.raises(AssertionError):
        check_interpretation(cf.NeverOutputs(HIST, [1]), DOMAIN)

def test_ordinary(): assert True
"""
)
PLUGIN = ("-p", "no:certiformer", "-p", "certiformer.testing.plugin", "-p", "no:cacheprovider", "-p", "no:randomly")


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported() -> None:
    """Runs in this process forget what they import, and numpy cannot be imported twice."""
    session.enter(Session(keep=False))
    small, domain = cf.compile(cf.programs.hist(), vocab="ab", max_len=2), cf.sequences("ab", 2)
    assert check_interpretation(cf.Computes(small), domain, certify=True, seconds=5).status == "proved"
    session.leave(session.current())


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with the suite above; sub-processes find this source tree."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    pytester.makepyfile(test_claims=SUITE)
    return pytester


def test_without_certify_claims_are_tested(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*counterexample:  input [[]'a', 'a', 'a'[]]*",
            "*expected:*",
            "*got:*",
            "*where the runs part:*",
            "*Failing test case: test_drawn(*",
            "*k=3*",
            "test_claims.py:*",
            "*certiformer: claims*",
            "*4 tested, 0 proved, 2 refuted, 0 unknown*",
            "refuted: test_claims.py::test_wrong:*",
        ]
    )
    assert "certificates in" not in result.stdout.str()
    assert not (suite.path / "certificates").exists()


def test_certify_proves_refutes_and_lists_what_is_unknown(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess(*PLUGIN, "--certify", "--certify-seconds=4", "--certify-dir=proofs")
    result.assert_outcomes(passed=3, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*input [[]2, 2, 2, 2, 2, 2, 2[]] (by *, after 20 examples had not met it)*",
            "*0 tested, 2 proved, 3 refuted, 1 unknown*",
            "unknown: test_claims.py::test_open:*",
            "  Unknown: *",
            "certificates in *proofs",
        ]
    )
    (certificate,) = (suite.path / "proofs").glob("test_claims.py-test_right-*.cert")
    (model,) = (suite.path / "proofs").glob("*.safetensors")
    compiled = cf.compile(cf.programs.hist(), vocab="ab", max_len=4)
    answer = cf.check(certificate, model, cf.Computes(compiled), cf.sequences("ab", range(1, 5)))
    assert isinstance(answer, cf.Valid)


def test_parallel_runs_and_junit_have_the_records(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist is a development dependency")
    suite.makepyfile(test_claims=SMALL_SUITE)
    result = suite.runpytest_subprocess(*PLUGIN, "-n1", "--junitxml=out.xml", "-k", "right or wrong or expected")
    result.stdout.fnmatch_lines(["*counterexample:*", "*2 tested, 0 proved, 1 refuted, 0 unknown*"])
    records = [
        line for line in (suite.path / "out.xml").read_text().split("<property ") if 'name="certiformer"' in line
    ]
    assert len(records) == 4


def test_bad_options_are_refused(suite: pytest.Pytester) -> None:
    for value in ("0", "-1", "soon", "inf"):
        result = suite.runpytest_inprocess(*PLUGIN, "--certify", f"--certify-seconds={value}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*a time must be a positive number of seconds, got '{value}'*"])


def test_a_session_that_makes_no_claims_imports_nothing_and_shows_nothing(suite: pytest.Pytester) -> None:
    heavy = ["torch", "z3", "sympy", "networkx", "numpy", "hypothesis", "certiformer.verifier", "certiformer.models"]
    suite.makepyfile(
        test_claims=f"import sys\ndef test_light(): assert not set(sys.modules) & set({heavy!r}), sys.modules"
    )
    result = suite.runpytest_subprocess(*PLUGIN, "-p", "no:hypothesispytest", "-W", "error")
    result.assert_outcomes(passed=1)
    assert "certiformer: claims" not in result.stdout.str()


def test_warnings_as_errors_and_strict_options(suite: pytest.Pytester) -> None:
    """As in this repository's own configuration."""
    suite.makepyfile(test_claims=SMALL_SUITE)
    suite.makeini(
        "[pytest]\naddopts = --import-mode=importlib --strict-markers --strict-config\nfilterwarnings = error\n"
    )
    result = suite.runpytest_subprocess(*PLUGIN, "-k", "test_right or ordinary")
    result.assert_outcomes(passed=2, deselected=3)


def test_the_entry_point_names_the_plugin() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"certiformer": "certiformer.testing.plugin"}
    assert {"hypothesis", "pytest"} == {text.split(">")[0] for text in project["optional-dependencies"]["testing"]}


def test_records_are_plain_data() -> None:
    record = Record("unknown", "for every input, ...", "no engine applies", "test_x.py::test_y")
    assert Record(**json.loads(json.dumps(record.to_json()))) == record
