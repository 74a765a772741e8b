"""The zoo: every model loads, is small, fits its task, and is as good as its card says."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from certiformer.cli import inputs
from certiformer.models import InputError, measure, train, zoo
from certiformer.models.tasks import misfits

ROOT = Path(__file__).resolve().parent.parent
NAMES = zoo.names()
WANTED = {
    **{f"max-of-4/{seed}": ("max-of-4", 64) for seed in range(5)},
    "max-of-5/0": ("max-of-5", 64),
    **{f"max-of-10/{seed}": ("max-of-10", 64) for seed in range(3)},
    "max-of-10-mlp/0": ("max-of-10", 64),
    "max-of-20/0": ("max-of-20", 64),
    "max-of-20-vocab-512/0": ("max-of-20", 512),
    "induction-12/0": ("induction-12", 8),
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
    assert card.accuracy.share > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_the_card_agrees_with_another_sample(name: str) -> None:
    """Within five standard deviations, and three words."""
    trained = zoo.load(name)
    card = trained.card.accuracy
    again = measure(trained.model, trained.task, seed=trained.card.accuracy_seed + 1, samples=3000, enumerable=3000)
    deviation = math.sqrt(card.share * (1 - card.share) / again.total) if not again.exact else 0.0
    assert abs(again.share - card.share) <= 5 * deviation + 3 / again.total


@pytest.mark.slow
def test_a_card_is_enough_to_make_the_model_again() -> None:
    """The same weights on the same machine and torch; elsewhere rounding differs, and the model is as good."""
    trained = zoo.load("max-of-4/0")
    again = train(trained.task, trained.model.config, trained.card.recipe)
    same = again.model.weights_sha256() == trained.model.weights_sha256()
    assert same or measure(again.model, trained.task, samples=50_000, enumerable=0).share > 0.998


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
