"""Training: the same run gives the same weights, wherever it was interrupted; what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certiformer.cli import execute
from certiformer.models import (
    Accuracy,
    InputError,
    LayerConfig,
    Recipe,
    Task,
    Trained,
    Transformer,
    TransformerConfig,
    card_of,
    get_task,
    load_trained,
    measure,
    train,
    training,
)
from certiformer.models.measuring import correct
from certiformer.models.training import Progress, initial, loss_of

ROOT = Path(__file__).resolve().parent.parent
TASK = get_task("max-of-3", vocab=8)
RECIPE = Recipe(seed=3, steps=12, batch=16, warmup=3, schedule="cosine")


def config_for(task: Task, *, layers: int = 1, **settings: Any) -> TransformerConfig:
    """A small model for a task."""
    block = LayerConfig(2, 4, 6)
    return TransformerConfig(
        8, task.max_len, len(task.vocab), len(task.outputs), (block,) * layers, readout=task.readout, **settings
    )


CONFIG = config_for(TASK)


class Stop(Exception):
    """Raised in place of a kill."""


def stopping_at(step: int, stop: Callable[[], None]) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.step == step:
            stop()

    return progress


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return train(TASK, CONFIG, RECIPE).model.weights_sha256()


class TestDeterminism:
    def test_the_same_run_gives_the_same_weights(self, undisturbed: str) -> None:
        assert train(TASK, CONFIG, RECIPE).model.weights_sha256() == undisturbed

    def test_it_leaves_torchs_and_numpys_generators_alone(self, undisturbed: str) -> None:
        torch.manual_seed(1)
        np.random.seed(1)
        before = torch.get_rng_state()
        assert train(TASK, CONFIG, RECIPE).model.weights_sha256() == undisturbed
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "change", [{"seed": 4}, {"batch": 17}, {"lr": 2e-3}, {"biases": False}, {"steps": 11}, {"entropy": 1}]
    )
    def test_every_setting_counts(self, undisturbed: str, change: dict[str, Any]) -> None:
        assert train(TASK, CONFIG, replace(RECIPE, **change)).model.weights_sha256() != undisturbed

    def test_no_steps_is_the_beginning(self) -> None:
        made = train(TASK, CONFIG, replace(RECIPE, steps=0))
        assert made.model.weights_sha256() == initial(CONFIG, RECIPE).weights_sha256()
        assert (made.steps, made.loss) == (0, None)


class TestInterruption:
    @pytest.mark.parametrize("step", range(1, RECIPE.steps + 1))
    def test_ctrl_c_after_any_step(self, tmp_path: Path, undisturbed: str, step: int) -> None:
        file = tmp_path / "run"
        stop = stopping_at(step, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train(TASK, CONFIG, RECIPE, checkpoint=file, progress=stop)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        seen: list[int] = []
        made = train(TASK, CONFIG, RECIPE, checkpoint=file, progress=lambda now: seen.append(now.step))
        assert seen == list(range(step + 1, RECIPE.steps + 1))
        assert made.model.weights_sha256() == undisturbed

    @pytest.mark.parametrize("step", [1, 6, 12])
    def test_killed_at_any_moment(
        self, tmp_path: Path, undisturbed: str, step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kill leaves the last state that was written; here each third is, and it dies on the way to the next."""
        file = tmp_path / "run"
        monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
        written = training._Run.save

        def sometimes(run: Any, where: Path) -> None:
            if run.step == step:
                raise Stop
            if run.step % 3 == 0:
                written(run, where)

        monkeypatch.setattr(training._Run, "save", sometimes)
        with pytest.raises(Stop):
            train(TASK, CONFIG, RECIPE, checkpoint=file)
        monkeypatch.undo()
        assert train(TASK, CONFIG, RECIPE, checkpoint=file).model.weights_sha256() == undisturbed

    def test_a_step_that_ctrl_c_hits_is_finished_first(
        self, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The signal arrives in the middle of the optimizer's step: half of the weights are new."""
        file = tmp_path / "run"
        original = torch.optim.AdamW.step

        def interrupted(self: torch.optim.AdamW, closure: Any = None) -> Any:
            signal.raise_signal(signal.SIGINT)
            return original(self)

        monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(TASK, CONFIG, RECIPE, checkpoint=file)
        monkeypatch.undo()
        assert train(TASK, CONFIG, RECIPE, checkpoint=file).model.weights_sha256() == undisturbed

    def test_a_second_ctrl_c_does_not_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def twice(self: torch.optim.AdamW, closure: Any = None) -> Any:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

        monkeypatch.setattr(torch.optim.AdamW, "step", twice)
        with pytest.raises(KeyboardInterrupt):
            train(TASK, CONFIG, RECIPE)

    def test_a_thread_trains_too(self, undisturbed: str) -> None:
        """Signals can be handled in the main thread only."""
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(train(TASK, CONFIG, RECIPE).model.weights_sha256()))
        thread.start()
        thread.join()
        assert found == [undisturbed]

    def test_a_finished_run_is_finished(self, tmp_path: Path, undisturbed: str) -> None:
        seconds = train(TASK, CONFIG, RECIPE, checkpoint=tmp_path / "run").seconds
        again = train(TASK, CONFIG, RECIPE, checkpoint=tmp_path / "run")
        assert (again.model.weights_sha256(), again.steps, again.seconds) == (undisturbed, RECIPE.steps, seconds)

    def test_early_stopping_survives(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "VALIDATE_EVERY", 5)
        recipe = replace(RECIPE, stop_at=0.0)
        assert train(TASK, CONFIG, recipe, checkpoint=tmp_path / "run").steps == 5
        assert train(TASK, CONFIG, recipe, checkpoint=tmp_path / "run").steps == 5


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("task", "recipe", "named"),
        [
            (TASK, replace(RECIPE, lr=0.5), "lr"),
            (TASK, replace(RECIPE, seed=9, batch=2), "batch, seed"),
            (get_task("most-frequent-3", vocab=8), RECIPE, "family"),
        ],
    )
    def test_of_another_run(self, tmp_path: Path, task: Task, recipe: Recipe, named: str) -> None:
        train(TASK, CONFIG, RECIPE, checkpoint=tmp_path / "run")
        with pytest.raises(InputError, match=rf"another run \({named} differ\); delete it"):
            train(task, CONFIG, recipe, checkpoint=tmp_path / "run")

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x80\x02N.", None])
    def test_that_cannot_be_read(self, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "run"
        train(TASK, CONFIG, RECIPE, checkpoint=file)
        file.write_bytes(file.read_bytes()[:-500] if content is None else content)
        with pytest.raises(InputError, match=r"checkpoint .*delete it to train from the beginning"):
            train(TASK, CONFIG, RECIPE, checkpoint=file)

    def test_that_would_run_code(self, tmp_path: Path) -> None:
        torch.save({"format": 1, "identity": Path("x")}, tmp_path / "run")
        with pytest.raises(InputError, match="cannot read the checkpoint"):
            train(TASK, CONFIG, RECIPE, checkpoint=tmp_path / "run")

    def test_in_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot write"):
            train(TASK, CONFIG, RECIPE, checkpoint=tmp_path / "none" / "run")


class TestLearning:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("max-of-3", {}),
            ("sort-3", {}),
            ("dyck-1-4", {"causal": True, "layer_norm": 1e-5, "activation": "gelu"}),
            ("bracket-type-4", {"causal": True, "activation": "silu", "layers": 2}),
            ("quotes-4", {"activation": "gelu_new", "positional": "none", "attention_scale": 1.0}),
        ],
    )
    def test_the_gradient_is_the_slope_of_the_loss(self, name: str, settings: dict[str, Any]) -> None:
        """Through the model's own program; against differences, in float64, along a direction."""
        task = get_task(name)
        model = Transformer.initialised(config_for(task, **settings), 1).double()
        (ids,) = task.draw(np.random.default_rng(0), 20)
        loss_of(model, task, ids, torch.device("cpu")).backward()  # type: ignore[no-untyped-call]
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            assert parameter.grad is not None
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            losses = []
            for side in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter += side * direction
                    losses.append(float(loss_of(model, task, ids, torch.device("cpu"))))
                    parameter -= side * direction
            slope = (losses[0] - losses[1]) / 2e-5
            assert parameter.grad is not None
            assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5, abs=1e-8)

    def test_it_learns(self) -> None:
        task = get_task("max-of-2", vocab=4)
        made = train(task, config_for(task), Recipe(steps=500, batch=32, lr=1e-2, stop_at=1.0))
        assert made.steps in (250, 500)
        assert measure(made.model, task) == Accuracy(16, 16, True)

    def test_a_batch_of_the_whole_domain_is_all_of_it(self) -> None:
        task = get_task("max-of-2", vocab=4)
        recipe = Recipe(steps=3, batch=16)
        one, other = (train(task, config_for(task), replace(recipe, batch=size)) for size in (16, 1000))
        assert one.model.weights_sha256() == other.model.weights_sha256()

    @pytest.mark.parametrize("most", [1, 5, 16])
    def test_out_of_memory_halves_the_batch(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        """The gradient is the mean over all the words, however they are cut up."""
        recipe = replace(RECIPE, steps=2, biases=False)
        whole, forward = train(TASK, CONFIG, recipe).model, Transformer.forward

        def limited(self: Transformer, tokens: torch.Tensor) -> torch.Tensor:
            if len(tokens) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return forward(self, tokens)

        right = measure(whole, TASK)
        monkeypatch.setattr(Transformer, "forward", limited)
        assert measure(whole, TASK) == right
        pieces = train(TASK, CONFIG, recipe).model
        for name, parameter in pieces.named_parameters():
            torch.testing.assert_close(parameter, whole.parameter(name), rtol=1e-3, atol=1e-5)

    def test_other_errors_are_not_taken_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(self: Transformer, tokens: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory of this")

        monkeypatch.setattr(Transformer, "forward", broken)
        for attempt in (lambda: train(TASK, CONFIG, RECIPE), lambda: measure(Transformer(CONFIG), TASK)):
            with pytest.raises(RuntimeError, match="no memory of this"):
                attempt()

    def test_frozen_biases_stay_zero(self) -> None:
        made = train(TASK, CONFIG, replace(RECIPE, biases=False))
        for name, parameter in made.model.named_parameters():
            leaf = name.rsplit(".", 1)[1]
            assert bool(parameter.any()) == (not leaf.startswith("b_")), name

    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("cosine", [0.5, 1, 1])],
    )
    def test_rates(self, schedule: Any, rates: list[float]) -> None:
        recipe = Recipe(steps=6, lr=1.0, warmup=2, schedule=schedule)
        assert [recipe.rate(step) for step in range(len(rates))] == rates
        assert all(0 < recipe.rate(step) <= 1 for step in range(6))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
            ({"batch": 0}, "batch must be"),
            ({"seed": 1.5}, "seed must be"),
            ({"lr": 0}, "lr must be above 0"),
            ({"lr": float("nan")}, "lr must be a number"),
            ({"weight_decay": -1}, "weight_decay must be"),
            ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, got 'step'"),
            ({"biases": 1}, "biases must be"),
            ({"stop_at": 1.1}, "stop_at must be a share of 0 to 1"),
            ({"stop_at": "all"}, "stop_at must be a share of 0 to 1"),
        ],
    )
    def test_recipes_that_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Recipe(**settings)

    def test_a_domain_longer_than_the_context(self) -> None:
        with pytest.raises(InputError, match="max-of-4 does not fit this model: words of 4 tokens exceed the context"):
            train(get_task("max-of-4", vocab=8), CONFIG, RECIPE)

    @pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", ""])
    def test_a_device_that_is_not_there(self, device: str) -> None:
        with pytest.raises(InputError, match="cannot train on device"):
            train(TASK, CONFIG, RECIPE, device=device)


class TestMeasuring:
    def test_a_small_domain_is_enumerated(self) -> None:
        model = Transformer.initialised(CONFIG, 0)
        right = 0
        for word in TASK.domain.enumerate():
            logits = model(torch.tensor([word]))
            right += TASK.outputs[int(logits.argmax())] == max(word)  # type: ignore[type-var]
        assert measure(model, TASK) == Accuracy(right, 512, True)

    def test_a_large_one_is_sampled(self) -> None:
        model = Transformer.initialised(CONFIG, 0)
        found = measure(model, TASK, enumerable=511, samples=5000, seed=1)
        assert (found.total, found.exact) == (5000, False)
        assert found == measure(model, TASK, enumerable=511, samples=5000, seed=1)
        assert abs(found.share - measure(model, TASK).share) < 0.05

    def test_each_position_must_be_right(self) -> None:
        task = get_task("sort-2", vocab=2)
        model = Transformer(config_for(task))  # all logits are 0: it says 0 everywhere
        assert correct(model, task, np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).tolist() == [True, False, False, False]

    def test_progress_reaches_the_end(self) -> None:
        seen: list[tuple[int, int]] = []
        measure(Transformer(CONFIG), TASK, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (512, 512)

    def test_another_tasks_model(self) -> None:
        with pytest.raises(InputError, match="does not fit"):
            measure(Transformer(CONFIG), get_task("sort-3", vocab=8))


class TestCards:
    @pytest.fixture
    def trained(self) -> Trained:
        made = train(TASK, CONFIG, RECIPE)
        return Trained(made.model, card_of(TASK, RECIPE, made, measure(made.model, TASK)))

    def test_what_is_saved_is_loaded(self, trained: Trained, tmp_path: Path) -> None:
        trained.save(tmp_path / "m")
        again = load_trained(tmp_path / "m")
        assert again.card.to_json() == trained.card.to_json()
        assert again.card.recipe == RECIPE
        assert again.model.weights_sha256() == trained.model.weights_sha256()
        assert again.card.torch == torch.__version__ and "thread" in again.card.hardware

    def test_a_model_without_a_card(self, tmp_path: Path) -> None:
        Transformer(CONFIG).save(tmp_path / "m")
        with pytest.raises(InputError, match="has no card"):
            load_trained(tmp_path / "m")

    @pytest.mark.parametrize(
        "change",
        [
            {"task": {"family": "max-of", "parameters": {"length": 4, "vocab": 8}}},
            {"task": {"family": "none", "parameters": {}}},
            {"recipe": {"speed": 1}},
            {"recipe": {"steps": "many"}},
            {"accuracy": {"correct": 3, "total": 2, "exact": True}},
            {"accuracy": None},
            {"steps": "many"},
            {"loss": "low"},
            {"extra": 1},
        ],
    )
    def test_a_wrong_card(self, trained: Trained, tmp_path: Path, change: dict[str, Any]) -> None:
        trained.model.save(tmp_path / "m", {"card": json.dumps({**trained.card.to_json(), **change})})
        with pytest.raises(InputError, match=r"the card in .* is wrong"):
            load_trained(tmp_path / "m")


class TestTheCommand:
    ARGUMENTS = ["train", "max-of-2", "--vocab", "4", "--d-model", "8", "--d-mlp", "6", "--heads", "2", "--batch", "8"]

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
        code = int(execute([str(argument) for argument in arguments]))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    def test_it_trains(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, out, _ = self.run(capsys, *self.ARGUMENTS, "--steps", 5, "--seed", 2, "-o", tmp_path, "--json")
        data = json.loads(out)
        assert code == 0
        assert [path.name for path in tmp_path.iterdir()] == ["max-of-2.safetensors"]
        trained = load_trained(data["path"])
        assert data["weights_sha256"] == trained.model.weights_sha256()
        assert data["accuracy"] == {**measure(trained.model, trained.task).to_json(), "total": 16, "exact": True}
        assert (data["recipe"]["seed"], data["steps"], data["config"]["layers"][0]["d_mlp"]) == (2, 5, 6)

    def test_penalties(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        """The options reach the recipe and the weights; without them they are 0."""
        options = {"entropy": 0.5, "score_variance": 0.25, "sparsity": 0.125}
        typed = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]
        code, out, _ = self.run(capsys, *self.ARGUMENTS, "--steps", 5, *typed, "-o", tmp_path / "m", "--json")
        data = json.loads(out)
        assert (code, {name: data["recipe"][name] for name in options}) == (0, options)
        config, task = load_trained(tmp_path / "m").model.config, get_task("max-of-2", vocab=4)
        wanted = train(task, config, Recipe(steps=5, batch=8, **options))
        assert data["weights_sha256"] == wanted.model.weights_sha256()
        _, out, _ = self.run(capsys, *self.ARGUMENTS, "--steps", 5, "-o", tmp_path / "m", "--json")
        assert not any(json.loads(out)["recipe"][name] for name in options)

    def test_in_words(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, out, _ = self.run(capsys, *self.ARGUMENTS, "--steps", 5, "-o", tmp_path / "m")
        assert code == 0
        for words in ("max-of-2 over 4 tokens", "5 steps in", "of 16 inputs, all)", str(tmp_path / "m")):
            assert words in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["max-off-10"], "did you mean max-of"),
            (["max-of-2", "--depth", "3"], "got 'depth'"),
            (["max-of-2", "--heads", "3"], "--d-model must be a multiple of --heads, got 32 and 3"),
            (["max-of-2", "--layers", "-1"], "--layers must be 0 to 100"),
            (["max-of-2", "--activation", "tanh"], "activation must be one of"),
            (["max-of-2", "--device", "tpu"], "cannot train on device 'tpu'"),
            (["max-of-2", "--steps", "-3"], "steps must be an integer of at least 0"),
            (["max-of-2", "--layer-norm", "0"], "must be positive"),
            (["max-of-2", "--entropy", "-1"], "entropy must be a number of at least 0, got -1.0"),
            (["max-of-2", "--score-variance", "nan"], "score_variance must be a number of at least 0, got nan"),
            (["max-of-2", "--sparsity", "inf"], "sparsity must be a number of at least 0, got inf"),
            (["zoo:nothing"], "no model 'nothing' in the zoo"),
        ],
    )
    def test_bad_input(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        code, out, err = self.run(capsys, "train", *arguments, "-o", tmp_path / "m")
        assert (code, out) == (3, "")
        assert message in err
        assert not list(tmp_path.iterdir())

    def test_no_folder_to_write_to(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, _, err = self.run(capsys, *self.ARGUMENTS, "-o", tmp_path / "none" / "m")
        assert code == 3 and "there is no folder" in err

    def test_ctrl_c_and_on(self, tmp_path: Path) -> None:
        """A process of its own, interrupted, says where it is; the same command then gives what it would have given."""
        command = [*self.ARGUMENTS, "--steps", "300", "--json", "-o", str(tmp_path / "m")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        target, checkpoint = tmp_path / "m", tmp_path / "m.training"
        code = "from certiformer.models import training; training.SAVE_SECONDS = 0.1\n"
        code += "from certiformer.cli import execute; import sys; sys.exit(execute(sys.argv[1:]))"
        quick = [sys.executable, "-c", code, *command]
        started = subprocess.Popen(quick, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not checkpoint.exists() and started.poll() is None:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=60)
        assert (started.returncode, out) == (130, ""), err
        assert "the same command goes on from there" in err and "Traceback" not in err
        assert not target.exists()
        step = torch.load(checkpoint, weights_only=True)["step"]
        assert 0 < step < 300
        assert execute(command) == 0
        assert not checkpoint.exists()
        recipe = Recipe(steps=300, batch=8)
        wanted = train(get_task("max-of-2", vocab=4), load_trained(target).model.config, recipe)
        assert load_trained(target).model.weights_sha256() == wanted.model.weights_sha256()
