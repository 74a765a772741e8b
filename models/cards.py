"""A trained model with its card: what it was trained on and how, and how good it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType

import numpy as np
import torch

from .errors import InputError
from .files import parse_json
from .measuring import Accuracy
from .task_library import task_from_json
from .tasks import Task, check_fit
from .training import Recipe, Training
from .transformer import Transformer

CARD_KEY = "card"  # in the metadata of the model's file
PLAIN: dict[str, type | UnionType] = {
    "steps": int,
    "seconds": int | float,
    "hardware": str,
    "torch": str,
    "numpy": str,
    "loss": int | float | None,
    "accuracy_seed": int,
}


@dataclass(frozen=True)
class Card:
    """How a model was made. With its configuration, this is all that `train` needs to make it again.

    `steps`: those done, fewer than the recipe's if it stopped early. `loss`: of the last step. `held_out`: see
    `Training`. `accuracy`: what `measure` found, with the seed `accuracy_seed` where it did not take all words.
    """

    task: Task
    recipe: Recipe
    steps: int
    seconds: float
    hardware: str
    torch: str
    numpy: str
    loss: float | None
    held_out: Accuracy
    accuracy: Accuracy
    accuracy_seed: int

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {
            "task": self.task.to_json(),
            "recipe": asdict(self.recipe),
            "steps": self.steps,
            "seconds": self.seconds,
            "hardware": self.hardware,
            "torch": self.torch,
            "numpy": self.numpy,
            "loss": self.loss,
            "held_out": self.held_out.to_json(),
            "accuracy": self.accuracy.to_json(),
            "accuracy_seed": self.accuracy_seed,
        }

    @staticmethod
    def from_json(data: object) -> Card:
        """The inverse of `to_json`. Raises `InputError`."""
        keys = {field.name for field in fields(Card)}
        if not isinstance(data, dict) or set(data) != keys or not isinstance(data["recipe"], dict):
            raise InputError(f"a model card is a JSON object with the keys {sorted(keys)}, got {str(data)[:200]}")
        try:
            recipe = Recipe(**data["recipe"])
        except TypeError as error:
            raise InputError(f"the recipe of a model card is wrong: {error}") from None
        for key, kinds in PLAIN.items():
            if isinstance(data[key], bool) or not isinstance(data[key], kinds):
                raise InputError(f"{key} in a model card cannot be {data[key]!r}")
        measured = {key: Accuracy.from_json(data[key]) for key in ("held_out", "accuracy")}
        return Card(**{**data, **measured, "task": task_from_json(data["task"]), "recipe": recipe})


@dataclass(frozen=True)
class Trained:
    """A trained model and its card."""

    model: Transformer
    card: Card

    @property
    def task(self) -> Task:
        return self.card.task

    def save(self, path: str | Path) -> None:
        """One safetensors file, with the card in its metadata, written atomically."""
        text = json.dumps(self.card.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        self.model.save(path, {CARD_KEY: text})


def load_trained(path: str | Path) -> Trained:
    """The inverse of `Trained.save`. Raises `InputError` for a file that is no model, or has no card of it."""
    model, metadata = Transformer.load_with_metadata(path)
    if CARD_KEY not in metadata:
        raise InputError(f"{path} has no card: it was not written by `certiformer train`")
    try:
        card = Card.from_json(parse_json(metadata[CARD_KEY]))
        check_fit(card.task, model.config)
    except ValueError as error:
        raise InputError(f"the card in {path} is wrong: {error}") from None
    return Trained(model, card)


def card_of(task: Task, recipe: Recipe, made: Training, accuracy: Accuracy, accuracy_seed: int = 0) -> Card:
    """The card of a model that has just been trained and measured."""
    return Card(
        task=task,
        recipe=recipe,
        steps=made.steps,
        seconds=round(made.seconds, 1),
        hardware=made.hardware,
        torch=torch.__version__,
        numpy=np.__version__,
        loss=made.loss,
        held_out=made.held_out,
        accuracy=accuracy,
        accuracy_seed=accuracy_seed,
    )
