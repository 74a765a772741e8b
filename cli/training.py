"""`train` and `zoo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .inputs import ZOO, is_zoo
from .output import BadInput, ExitCode, Screen, facts, grouped

if TYPE_CHECKING:
    from ..models.cards import Trained
    from ..models.config import TransformerConfig
    from ..models.tasks import Task
    from ..models.training import Progress, Recipe

CHECKPOINT = ".training"  # appended to the name of the model's file


@dataclass(frozen=True)
class Settings:
    """The options of `train` as typed; what is not in a group was not given."""

    task: Mapping[str, int]
    model: Mapping[str, Any]
    recipe: Mapping[str, Any]


def train_model(text: str, settings: Settings, device: str, output: Path, as_json: bool) -> int:
    """Trains, measures and saves; a run that was interrupted goes on when the same command is given again."""
    from ..models.cards import Trained, card_of
    from ..models.measuring import measure
    from ..models.tasks import check_fit
    from ..models.training import train

    screen = Screen(as_json)
    task, config, recipe = _wanted(text, settings)
    check_fit(task, config)
    target = _target(output, f"{task.name}.safetensors")
    checkpoint = target.with_name(target.name + CHECKPOINT)
    try:
        with screen.bar(f"training {task.name}") as tell:
            made = train(
                task,
                config,
                recipe,
                device=device,
                checkpoint=checkpoint,
                progress=lambda now: tell(now.step, now.steps, _words(now)),
            )
        with screen.bar(f"measuring {task.name}") as tell:
            accuracy = measure(made.model, task, progress=lambda done, total: tell(done, total, ""))
    except KeyboardInterrupt:
        if checkpoint.exists():
            screen.note(f"what is done so far is in {checkpoint}; the same command goes on from there")
        raise
    trained = Trained(made.model, card_of(task, recipe, made, accuracy))
    trained.save(target)
    checkpoint.unlink(missing_ok=True)
    screen.show({**description(trained), "path": str(target)}, facts(_rows(trained, target)))
    return ExitCode.OK


def list_zoo(as_json: bool) -> int:
    """The zoo as a table."""
    from ..models import zoo

    found = {name: zoo.load(name) for name in zoo.names()}
    width = max(map(len, found), default=0)
    lines = [
        f"{name:<{width}}  {_shape(trained.model.config)}; {trained.card.accuracy}" for name, trained in found.items()
    ]
    data = [{"zoo": name, **description(trained)} for name, trained in found.items()]
    Screen(as_json).show(
        {"models": data}, *lines, f"\n{len(data)} models; a command that takes a trained model takes zoo:NAME"
    )
    return ExitCode.OK


def description(trained: Trained) -> dict[str, object]:
    """A trained model as data: its card and its shape."""
    config = trained.model.config
    return {
        "name": trained.task.name,
        **trained.card.to_json(),
        "config": config.to_json(),
        "parameters": config.n_parameters,
        "domain_size": str(trained.task.domain.size()),
        "weights_sha256": trained.model.weights_sha256(),
    }


def _rows(trained: Trained, target: Path) -> dict[str, object]:
    card = trained.card
    return {
        "task": f"{trained.task.name} over {len(trained.task.vocab)} tokens",
        "model": _shape(trained.model.config),
        "trained": f"{card.steps} steps in {card.seconds:g} s on {card.hardware}, seed {card.recipe.seed}",
        "accuracy": card.accuracy,
        "held out": f"{card.held_out.share:.6g} of words drawn as in training",
        "saved": target,
    }


def _shape(config: TransformerConfig) -> str:
    """A model's shape on a line; what is none is left out."""
    heads, neurons = (sum(getattr(layer, part) for layer in config.layers) for part in ("n_heads", "d_mlp"))
    parts = (
        _counted(config.n_layers, "layer"),
        _counted(heads, "head"),
        f"{grouped(neurons)} {config.activation} neurons" if neurons else "",
        "LayerNorm" if config.layer_norm else "",
        "causal" if config.causal else "",
        f"d_model {config.d_model}",
        f"{grouped(config.n_parameters)} parameters",
    )
    return ", ".join(filter(None, parts))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _words(now: Progress) -> str:
    accuracy = "" if now.accuracy is None else f", accuracy {now.accuracy:.4f}"
    return f"loss {now.loss:.3g}{accuracy}"


def _wanted(text: str, settings: Settings) -> tuple[Task, TransformerConfig, Recipe]:
    """What to train: a task by name, or what a model of the zoo was made with."""
    from ..models.config import LayerConfig, TransformerConfig
    from ..models.task_library import get_task
    from ..models.training import Recipe

    if is_zoo(text):
        from ..models import zoo

        known = zoo.load(text.removeprefix(ZOO))
        refused = {**settings.task, **settings.model, **settings.recipe}.keys() - {"seed"}
        if refused:
            shown = ", ".join("--" + name.replace("_", "-") for name in sorted(refused))
            raise BadInput(
                f"{text} says how it is trained; {shown} would change that: name its task, {known.task.name}"
            )
        return known.task, known.model.config, replace(known.card.recipe, **settings.recipe)
    task = get_task(text, **settings.task)
    shape = {"layers": 1, "heads": 1, "d_model": 32, "d_mlp": 0, **settings.model}
    layers, heads, d_model, d_mlp = (shape.pop(name) for name in ("layers", "heads", "d_model", "d_mlp"))
    if not 0 <= layers <= 100:
        raise BadInput(f"--layers must be 0 to 100, got {layers}")
    if heads and d_model % heads:
        raise BadInput(f"--d-model must be a multiple of --heads, got {d_model} and {heads}")
    layer = LayerConfig(heads, d_model // heads if heads else 0, d_mlp)
    config = TransformerConfig(
        d_model=d_model,
        n_ctx=task.max_len,
        d_vocab=len(task.vocab),
        d_vocab_out=len(task.outputs),
        layers=(layer,) * layers,
        readout=task.readout,
        **shape,
    )
    return task, config, Recipe(**settings.recipe)


def _target(output: Path, name: str) -> Path:
    """The file to write, before any work is done: `output`, or `name` in it if it is a folder."""
    target = output / name if output.is_dir() else output
    if not target.parent.is_dir():
        raise BadInput(f"cannot write {target}: there is no folder {target.parent}")
    return target
