"""Decompilation's parts: formulas fitted to tables, programs for trained models, the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import certiformer as cf
from certiformer.cli import execute
from certiformer.compiler.interpreter import evaluate
from certiformer.explanations import approximate, decompile_trained
from certiformer.explanations.decompile_fitting import fit, fit_predicate
from certiformer.models import LayerConfig, Transformer, TransformerConfig, zoo
from certiformer.models.cards import load_trained
from certiformer.models.labels import build_machine
from certiformer.models.tasks import Task

Run = Callable[..., tuple[int, str, str]]

# Formulas.

RECOGNISED: dict[str, tuple[Callable[..., Any], int]] = {
    "x0": (lambda x: x, 1),
    "x0 + x1": (lambda x, y: x + y, 2),
    "x0 - x1 + 1": (lambda x, y: x - y + 1, 2),
    "1/2 * x0 - 2": (lambda x: Fraction(x, 2) - 2, 1),
    "3 - x0": (lambda x: 3 - x, 1),
    "min(x0, x1)": (min, 2),
    "max(x0, 2)": (lambda x: max(x, 2), 1),
    "x0 % 3": (lambda x: x % 3, 1),
    "x0 < x1": (lambda x, y: x < y, 2),
    "x0 - x1 == 1": (lambda x, y: x == y + 1, 2),
    "x0 in (1, 4)": (lambda x: x in (1, 4), 1),
    "x0 == x1 and x1 == x2": (lambda x, y, z: x == y == z, 3),
    "x0 * x1": (lambda x, y: x * y, 2),
}


@pytest.mark.parametrize("text", RECOGNISED)
def test_a_formula_is_recognised(text: str) -> None:
    function, arity = RECOGNISED[text]
    cells = {key: function(*key) for key in itertools.product(range(6), repeat=arity)}
    found = fit(cells, arity)
    assert found.term is not None
    if text != found.text:  # another way to write it
        assert all(found.try_evaluate(key) == value for key, value in cells.items())
        assert found.text in {"x0 == x1 and x0 == x2", "x0 == x2 and x1 == x2", "x0 == x1 and x2 == x1"}


@pytest.mark.parametrize("arity", [2, 3])
def test_boolean_functions_become_connectives(arity: int) -> None:
    keys = list(itertools.product((False, True), repeat=arity))
    for bits in itertools.product((False, True), repeat=len(keys)):
        cells = dict(zip(keys, bits, strict=True))
        found = fit(cells, arity)
        assert found.term is not None and all(found.try_evaluate(key) == value for key, value in cells.items())


VALUES = st.sampled_from([0, 1, 2, 3, -1, Fraction(1, 2), True, False, "a", "b"])


@given(st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 3)), VALUES, min_size=1))
def test_a_fitted_function_is_the_table(cells: dict[tuple[Any, ...], Any]) -> None:
    found = fit(cells, 2)
    for key, value in cells.items():
        got = found.try_evaluate(key)
        assert got == value and isinstance(got, bool) == isinstance(value, bool)


@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), st.booleans(), min_size=1))
def test_a_fitted_predicate_is_the_table(cells: dict[tuple[Any, ...], bool]) -> None:
    found = fit_predicate(cells)
    assert all(found.try_evaluate(key) == value for key, value in cells.items())


@pytest.mark.parametrize("shift", [-2, 1, 3])
def test_shifts_and_reversals_are_predicates(shift: int) -> None:
    keys = list(itertools.product(range(6), repeat=2))
    assert fit_predicate({(k, q): k == q + shift for k, q in keys}).term is not None
    assert fit_predicate({(k, q): k + q == 5 for k, q in keys}).text == "x0 + x1 == 5"


# Trained models.


def one_head(vocab: int, n: int, seed: int) -> Transformer:
    model = Transformer(TransformerConfig(6, n, vocab, vocab, (LayerConfig(1, 4, 0),), readout="last"))
    return randomised(model, seed)


def two_layers(vocab: int, n: int, seed: int) -> Transformer:
    layers = (LayerConfig(1, 4, 4), LayerConfig(1, 4, 4))
    return randomised(Transformer(TransformerConfig(6, n, vocab, 2, layers, readout="last", causal=True)), seed)


def randomised(model: Transformer, seed: int) -> Transformer:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def task_of(vocab: int, n: int, outputs: int) -> Task:
    domain = cf.sequences(range(vocab), n)
    machine = build_machine(0, lambda state, symbol: 0, lambda state: 0, vocab)
    return Task(
        "max-of", {}, "anything", domain, tuple(range(outputs)), "last", machine.run, build_machine=lambda: machine
    )


def share(model: Transformer, task: Task) -> Fraction:
    """By running all words."""
    ids = np.concatenate(list(task.domain.batches()))
    with torch.no_grad():
        told = model(torch.from_numpy(ids)).argmax(dim=-1).numpy()
    return Fraction(int((told == task.labels(ids)).sum()), len(ids))


@pytest.mark.parametrize("seed", range(4))
def test_the_share_of_a_program_for_one_head_is_exact(seed: int) -> None:
    model, task = one_head(4, 3, seed), task_of(4, 3, 4)
    found = cf.decompile_trained(model, task)
    assert found.kind == "extremum" and found.program is not None
    assert found.agreement.low == found.agreement.high == share(model, found.task)
    assert found.differing == (1 - found.agreement.low) * task.domain.size() and found.compared == task.domain.size()
    for word in itertools.product(range(4), repeat=3):  # the machine and the program are the same function
        assert evaluate(found.program, list(word))[-1] == found.task.label(word)
    for one in found.disagreements:
        assert found.task.label(one.word) == one.program != one.model


@pytest.mark.parametrize("seed", range(3))
def test_a_machine_learnt_from_all_answers_is_right_everywhere(seed: int) -> None:
    model, task = two_layers(2, 5, seed), task_of(2, 5, 2)
    found = cf.decompile_trained(model, task)
    assert found.kind == "states" and found.differing == 0 and found.agreement.low == 1
    scope: dict[str, Any] = {}
    exec(found.text, scope)
    assert all(scope["answer"](w) == found.task.label(w) for w in itertools.product(range(2), repeat=5))


def test_the_program_of_a_zoo_model_is_not_the_task() -> None:
    trained = load_trained(zoo.path("max-of-4/0"))
    found = cf.decompile_trained(trained.model, trained.task, seconds=30)
    assert found.agreement.low > Fraction(999, 1000) and found.disagreements
    assert isinstance(cf.check(found.agreement.certificate, zoo.path("max-of-4/0")), cf.Valid)
    one = found.disagreements[0]
    assert evaluate(found.program, list(one.word))[-1] == one.program  # type: ignore[arg-type]


def test_models_that_neither_way_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompile_trained, "MAX_RUNS", 20)
    with pytest.raises(cf.InputError, match="tells too many beginnings"):
        approximate(two_layers(2, 5, 0), task_of(2, 5, 2))
    each = Transformer(TransformerConfig(6, 3, 4, 4, (LayerConfig(1, 4, 0),), readout="each"))
    with pytest.raises(cf.InputError, match="read out once"):
        approximate(each, task_of(4, 3, 4))


# The command.


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
    path = tmp_path_factory.mktemp("decompile") / "hist.safetensors"
    cf.compile(cf.programs.hist(), vocab=range(3), max_len=4).save(path)
    return path


def test_the_command(run: Run, hist: Path, tmp_path: Path) -> None:
    module, certificate = tmp_path / "p.py", tmp_path / "p.cert"
    code, out, _ = run("decompile", hist, "--source", "hist", "-o", module, "--certificate", certificate)
    assert code == 0 and out.count("Proved") == 2 and 'selector_width(select(tokens, tokens, "=="))' in out
    assert run("check", certificate, "--model", hist)[0] == 0
    assert run("prove-program", f"{module}:program", "--equivalent", "hist", "--vocab", 3, "--lengths", "1:4")[0] == 0
    code, out, _ = run("decompile", hist, "--source", "length", "--json", "-o", tmp_path / "p.json")
    data = json.loads(out)
    assert code == 0 and data["verdict"] == "proved" and data["equivalent_to_source"] == "refuted"
    assert json.loads((tmp_path / "p.json").read_text())["core"]["vocab"] == [0, 1, 2]


def test_the_command_on_a_trained_model(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("decompile", "zoo:max-of-4", "--seconds", 1, "-o", tmp_path / "p.py")
    assert code in (0, 2) and "program agrees" in out and "the model gives" in out  # as far as one second goes
    assert "place" in (tmp_path / "p.py").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (("-o", "p.txt"), "ends in .py or .json"),
        (("--certificate", "nowhere/p.cert"), "no folder"),
        (("--seconds", "0"), "above 0"),
        (("--source", "histo"), "no program"),
        (("--lengths", "1:9"), "at most 4"),
    ],
)
def test_what_cannot_be_asked(run: Run, hist: Path, options: tuple[str, ...], message: str) -> None:
    code, _, err = run("decompile", hist, *options)
    assert code == 3 and message in err


def test_what_cannot_be_asked_of_other_files(run: Run, tmp_path: Path) -> None:
    assert "it takes no --source" in run("decompile", "zoo:max-of-4", "--source", "maximum")[2]
    bare = tmp_path / "bare.safetensors"
    one_head(3, 3, 0).save(bare)
    code, _, err = run("decompile", bare)
    assert code == 3 and "no compiled program" in err
