"""The zoo: every model loads, is small, fits its task, and is as good as its card says."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from certiformer.cli import execute, inputs
from certiformer.models import Accuracy, InputError, Recipe, Task, TransformerConfig, measure, train, zoo
from certiformer.models.tasks import misfits
from certiformer.models.training import Training

ROOT = Path(__file__).resolve().parent.parent
NAMES = zoo.names()
WANTED = {
    **{f"max-of-4/{seed}": ("max-of-4", 64) for seed in range(5)},
    "max-of-5/0": ("max-of-5", 64),
    "max-of-8-vocab-8/0": ("max-of-8", 8),
    **{f"max-of-10/{seed}": ("max-of-10", 64) for seed in range(3)},
    "max-of-10-mlp/0": ("max-of-10", 64),
    "max-of-20/0": ("max-of-20", 64),
    "max-of-20-vocab-512/0": ("max-of-20", 512),
    "modular-addition-113/0": ("modular-addition-113", 114),
    "induction-12/0": ("induction-12", 8),
    "induction-12-sharp/0": ("induction-12", 8),
    "induction-12-sharp/1": ("induction-12", 8),
    "dyck-1-16/0": ("dyck-1-16", 2),
    "dyck-1-16-mlp-readout/0": ("dyck-1-16", 2),
    "dyck-1-24/0": ("dyck-1-24", 2),
    "dyck-1-24-sparse/0": ("dyck-1-24", 2),
    "dyck-1-40-sparse/0": ("dyck-1-40", 2),
    "dyck-1-40/0": ("dyck-1-40", 2),
    "dyck-1-16-layernorm-gelu/0": ("dyck-1-16", 2),
    "quotes-12/0": ("quotes-12", 6),
    "quotes-12-sparsemax/0": ("quotes-12", 28),
    "bracket-type-12-sparsemax/0": ("bracket-type-12", 4),
    "bracket-type-12/0": ("bracket-type-12", 4),
}


def test_what_the_zoo_has() -> None:
    assert {name: (zoo.load(name).task.name, len(zoo.load(name).task.vocab)) for name in NAMES} == WANTED


@pytest.mark.parametrize("name", NAMES)
def test_a_model_and_its_card(name: str) -> None:
    trained = zoo.load(name)
    card = trained.card
    assert zoo.path(name).stat().st_size < 1_000_000
    assert not misfits(trained.task, trained.model.config)
    assert card.recipe.seed == int(name.partition("/")[2])
    assert 0 < card.steps <= card.recipe.steps
    assert card.accuracy.exact == (card.accuracy.total == trained.task.domain.size())
    assert card.accuracy.share > 0.99 and card.held_out.share > 0.98


@pytest.mark.parametrize("name", NAMES)
def test_the_card_agrees_with_another_sample(name: str) -> None:
    """Within five standard deviations, and three words."""
    trained = zoo.load(name)
    card = trained.card.accuracy
    again = measure(trained.model, trained.task, seed=trained.card.accuracy_seed + 1, samples=3000, enumerable=3000)
    deviation = math.sqrt(card.share * (1 - card.share) / again.total) if not again.exact else 0.0
    assert abs(again.share - card.share) <= 5 * deviation + 3 / again.total


def test_the_command_makes_a_model_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train zoo:NAME` trains with what the card says, and nothing else can be asked for but another seed."""
    known, penalised = zoo.load("max-of-4/2"), zoo.load("induction-12-sharp/0")
    asked: list[tuple[str, object, Recipe]] = []

    def quickly(task: Task, config: TransformerConfig, recipe: Recipe, **_: object) -> Training:
        asked.append((task.name, config, recipe))
        return train(task, config, replace(recipe, steps=1))

    monkeypatch.setattr("certiformer.models.measuring.measure", lambda *_, **__: Accuracy(1, 2, False))
    monkeypatch.setattr("certiformer.models.training.train", quickly)
    assert execute(["train", "zoo:max-of-4/2", "-o", str(tmp_path / "m")]) == 0
    assert execute(["train", "zoo:max-of-4/2", "--seed", "9", "-o", str(tmp_path / "m")]) == 0
    assert execute(["train", "zoo:induction-12-sharp/0", "-o", str(tmp_path / "m")]) == 0
    shape, recipe = known.model.config, known.card.recipe
    assert penalised.card.recipe.entropy > 0
    assert asked == [
        ("max-of-4", shape, recipe),
        ("max-of-4", shape, replace(recipe, seed=9)),
        ("induction-12", penalised.model.config, penalised.card.recipe),
    ]
    for option in ("--steps", "--entropy"):
        assert execute(["train", "zoo:max-of-4/2", option, "9", "-o", str(tmp_path / "m")]) == 3


def test_the_first_seed_is_meant() -> None:
    assert zoo.path("max-of-10") == zoo.path("max-of-10/0")
    assert zoo.path("max-of-4/3").name == "3.safetensors"


@pytest.mark.parametrize("name", ["max-of-11", "max-of-4/9", "", "../max-of-4/0", "max-of-4/"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(InputError, match="in the zoo; .*it has .*max-of-4/0"):
        zoo.load(name)


def test_the_command_line_takes_zoo_names_and_files(tmp_path: Path) -> None:
    file = shutil.copy(zoo.path("max-of-4"), tmp_path / "mine")
    assert inputs.model_file("zoo:max-of-4") == zoo.path("max-of-4/0")
    assert inputs.model_file(file) == file
    for name in ("zoo:max-of-4", file):
        assert inputs.load_trained_model(name).task.name == "max-of-4"
    with pytest.raises(InputError, match="did you mean max-of-4"):
        inputs.load_trained_model("zoo:max-of-44")


def test_the_wheel_holds_the_zoo(tmp_path: Path) -> None:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"certiformer/models/zoo/{name}.safetensors" for name in NAMES} <= held
