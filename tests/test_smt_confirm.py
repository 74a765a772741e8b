"""A second solver's word on what Z3 finds no counterexample to: agreement, disagreement, no answer."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import certiformer as cf
from certiformer.cli import execute
from certiformer.compiler import programs
from certiformer.verifier import smt_solver
from certiformer.verifier.program_claims import EveryLength
from certiformer.verifier.program_proofs import prove_about_programs, prove_program
from certiformer.verifier.smt_solver import Solver, SolverFailed

from .random_formulas import formulas, satisfiable

DOMAIN = cf.sequences(range(3), range(1, 6))
WORKER = """
import json, sys
for line in sys.stdin.buffer:
    request = json.loads(line)
    sys.stdin.buffer.read(request.get("bytes", 0))
    if request["do"] == "load":
        print('{"answer": "loaded"}', flush=True)
    else:
        {answer}
"""
ANSWERS = {
    "sat": 'print(\'{"answer": "sat", "true": []}\', flush=True)',
    "crash": "sys.exit(3)",
    "unknown": 'print(\'{"answer": "unknown", "why": "incomplete"}\', flush=True)',
    "slow": "import time; time.sleep(60)",
}
SAID = {"sat": "one of the two is wrong", "crash": "process ended", "unknown": "gave up", "slow": "time was up"}


def sorted_claim() -> Any:
    return cf.Ensures(programs.sort(), cf.is_sorted)


def test_both_find_no_counterexample() -> None:
    verdict = prove_program(sorted_claim(), DOMAIN, engines=["smt"], confirm="cvc5")
    assert isinstance(verdict, cf.Unknown) and verdict.certificate is not None
    assert "Z3 and cvc5 find no counterexample" in verdict.reason
    assert "cvc5 1" in verdict.certificate.data["proof"]["which"][0]


def test_what_nobody_asked_is_not_said_to_be_confirmed() -> None:
    """So few words that the interpreter runs them all."""
    verdict = prove_program(sorted_claim(), cf.sequences(range(2), 3), engines=["smt"], confirm="cvc5")
    assert isinstance(verdict, cf.Unknown) and verdict.certificate is not None
    assert "cvc5" not in verdict.certificate.data["proof"]["which"][0]


def test_a_refutation_needs_no_confirmation() -> None:
    verdict = prove_program(cf.Range(programs.hist(), 1, 3), DOMAIN, confirm="cvc5")
    assert isinstance(verdict, cf.Refuted) and verdict.evidence.inputs == ((0, 0, 0, 0),)


@pytest.mark.parametrize("answer", ANSWERS)
def test_without_agreement_z3_alone_does_not_count(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted second solver. Nothing is called free of failures, and the reason is said."""
    (tmp_path / "worker.py").write_text(WORKER.replace("{answer}", ANSWERS[answer]))
    monkeypatch.setitem(smt_solver.WORKERS, "cvc5", str(tmp_path / "worker.py"))
    verdict = prove_program(sorted_claim(), DOMAIN, engines=["smt"], confirm="cvc5", seconds=3)
    assert isinstance(verdict, cf.Unknown) and verdict.certificate is None
    assert SAID[answer] in verdict.reason and "length 4" in verdict.reason


def test_cvc5_decides_formulas_rightly() -> None:
    seen = set()
    with Solver(name="cvc5") as solver:
        for count, clauses in formulas(60):
            flat = array("i")
            for clause in clauses:
                flat.extend((len(clause), *clause))
            solver.load(count, flat, monotonic() + 20)
            wanted = satisfiable(count, clauses)
            assert (solver.check([], [], monotonic() + 20).answer == "sat") == wanted
            seen.add(wanted)
        with pytest.raises(SolverFailed, match="without assumptions"):
            solver.check([1], [], monotonic() + 20)
    assert seen == {True, False}


def test_bad_input() -> None:
    with pytest.raises(cf.InputError, match="confirmed by cvc5, not by 'yices'"):
        prove_program(sorted_claim(), DOMAIN, confirm="yices")
    with pytest.raises(cf.InputError, match="nothing to confirm without engine 'smt'"):
        prove_program(sorted_claim(), DOMAIN, engines=["enumeration"], confirm="cvc5")
    with pytest.raises(cf.InputError, match="nothing to confirm"):
        prove_about_programs(cf.Range(programs.hist(), 1, 9), EveryLength(range(2)), confirm="cvc5")


def test_where_it_is_missing_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certiformer.verifier.program_proofs.find_spec", lambda _: None)
    with pytest.raises(cf.InputError, match=r"pip install 'certiformer\[cvc5\]'"):
        prove_program(sorted_claim(), DOMAIN, confirm="cvc5")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--vocab", "3", "--lengths", "1:5", "--engine", "smt", "--confirm", "cvc5", "--json"]
    code = execute(["prove-program", "sort", "--ensures", "sorted", *options])
    assert code == 2 and "cvc5" in json.loads(capsys.readouterr().out)["holes"][0]
