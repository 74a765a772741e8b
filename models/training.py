"""Training a transformer on a task: deterministic on a CPU, and resumable from a file at any moment."""

from __future__ import annotations

import io
import json
import math
import pickle
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TransformerConfig
from .errors import InputError
from .files import write_atomically
from .measuring import Accuracy, count_right, out_of_memory
from .penalties import PENALTIES, penalty, sites_of
from .tasks import Task, check_fit
from .token_language import Ids
from .transformer import Transformer

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
FORMAT = 1
SAVE_SECONDS = 10.0  # how much work a kill can lose
VALIDATION = 4096  # words, for early stopping and progress
VALIDATE_EVERY = 250  # steps
BATCHES, VALIDATION_WORDS = 1, 2  # what a stream of random numbers is for
# What torch raises for files that it did not write, or that are cut off.
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, pickle.PickleError)


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW on cross-entropy plus penalties, batches drawn from the task.

    `batch`: words in a step; of at least the domain's size, every step sees every word of the domain once.
    `schedule`: of the learning rate, after `warmup` steps of linear increase: constant, or to 0 along a line or a
    cosine. `init_scale` multiplies the weights of `Transformer.initialised`. `biases`: False keeps all biases of
    attention, MLP and unembedding at zero. `stop_at`: stop when so large a share of held-out words is right.

    Coefficients of what is added to the loss, so that more can be proved about the model (0: nothing is added; sums
    are over layers, see `penalties`): `entropy`, of the mean entropy of a query's attention weights, in nats, for
    attention to one key; `score_variance`, of the mean variance of a query's scores over the keys that it sees, for
    nearly uniform attention; `sparsity`, of the mean L1 norm of MLP activations and of what attention layers write at
    a position, for neurons that are seldom unstable. Proofs bound such attention and neurons much more tightly.
    """

    seed: int = 0
    steps: int = 3000
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: Schedule = "constant"
    warmup: int = 0
    init_scale: float = 1.0
    biases: bool = True
    stop_at: float | None = None
    entropy: float = 0.0
    score_variance: float = 0.0
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 0), ("batch", 1), ("warmup", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
        may_be_zero = dict.fromkeys(("weight_decay", *PENALTIES), False)
        for name, above in {"lr": True, "init_scale": True, **may_be_zero}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise InputError(f"{name} must be a number of at least 0, got {value!r}")
            if above and value == 0:
                raise InputError(f"{name} must be above 0, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.schedule not in get_args(Schedule):
            raise InputError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if not isinstance(self.biases, bool):
            raise InputError(f"biases must be True or False, got {self.biases!r}")
        if self.stop_at is not None and not (isinstance(self.stop_at, (int, float)) and 0 <= self.stop_at <= 1):
            raise InputError(f"stop_at must be a share of 0 to 1, got {self.stop_at!r}")

    @property
    def coefficients(self) -> dict[str, float]:
        """Of the penalties, by their names in `penalties.PENALTIES`."""
        return {name: getattr(self, name) for name in PENALTIES}

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.lr * factors[self.schedule]


@dataclass(frozen=True)
class Progress:
    """Where a training run is; `accuracy` on held-out words, when last looked at; `loss` with its penalties."""

    step: int
    steps: int
    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Training:
    """What a finished run leaves: the model, and what its card says about how it was made.

    `held_out`: of words drawn as the batches are, but for the seed. Where they favour what is rare in the domain
    (balanced words, say), it says more than the accuracy on the domain. `loss`: of the last step, with its penalties.
    """

    model: Transformer
    steps: int
    seconds: float
    hardware: str
    loss: float | None
    held_out: Accuracy


def train(
    task: Task,
    config: TransformerConfig,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Training:
    """Trains a new model. On one CPU, with as many threads, the same arguments give the same weights, bit for bit.

    `checkpoint`: a file from which an interrupted run goes on (Ctrl-C, or a kill: then at most `SAVE_SECONDS` are
    done again), with the same result as an uninterrupted one; in the end it holds the last state, and it is the
    caller's to delete. Step s draws its batch from a generator seeded with (seed, s), so the state is the weights, the
    optimizer's moments and s.

    Raises `InputError` if the task does not fit the configuration, or the checkpoint is another run's;
    `KeyboardInterrupt` on Ctrl-C, once the state is on disk.
    """
    recipe = recipe or Recipe()
    check_fit(task, config)
    where = _device(device)
    run = _Run(task, config, recipe, where)
    file = Path(checkpoint) if checkpoint is not None else None
    if file is not None and file.exists():
        run.restore(file)
    held_out = task.draw(np.random.default_rng([recipe.seed, VALIDATION_WORDS]), VALIDATION)
    saved, accuracy = time.monotonic(), run.accuracy
    with _deferred_interrupt() as interrupted:
        while run.step < recipe.steps and not run.stopped:
            started = time.monotonic()
            run.advance()
            if run.step % VALIDATE_EVERY == 0 and (recipe.stop_at is not None or progress):
                accuracy = run.accuracy = _accuracy(run.model, task, held_out).share
                run.stopped = recipe.stop_at is not None and accuracy >= recipe.stop_at
            run.seconds += time.monotonic() - started
            if progress:
                progress(Progress(run.step, recipe.steps, float(run.loss), accuracy, run.seconds))
            if file is not None and (interrupted() or time.monotonic() - saved > SAVE_SECONDS):
                run.save(file)
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    model = Transformer.from_parameters(config, {name: p.detach().cpu() for name, p in run.model.named_parameters()})
    if file is not None:
        run.save(file)
    loss = float(run.loss) if run.step else None
    return Training(model, run.step, run.seconds, hardware(where), loss, _accuracy(model, task, held_out))


class _Run:
    """The state of one run between two steps."""

    def __init__(self, task: Task, config: TransformerConfig, recipe: Recipe, device: torch.device) -> None:
        self.task, self.config, self.recipe, self.device = task, config, recipe, device
        self.model = initial(config, recipe).to(device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.piece = recipe.batch
        self.whole = list(task.domain.batches(recipe.batch)) if self._sees_all() else None
        self.step = 0
        self.seconds = 0.0
        self.loss = torch.zeros((), dtype=torch.float64)
        self.accuracy: float | None = None
        self.stopped = False

    def _sees_all(self) -> bool:
        return self.recipe.batch >= self.task.domain.size()

    def identity(self) -> str:
        """What a checkpoint must agree on."""
        return json.dumps(
            {"task": self.task.to_json(), "config": self.config.to_json(), "recipe": asdict(self.recipe)},
            sort_keys=True,
        )

    def advance(self) -> None:
        """One step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        batches = self.whole or self.task.draw(
            np.random.default_rng([self.recipe.seed, BATCHES, self.step]), self.recipe.batch
        )
        self.loss = self._gradient(batches)
        self.optimizer.step()
        self.step += 1

    def _gradient(self, batches: list[Ids]) -> Tensor:
        """Leaves the gradient at the parameters, gives the loss; where memory does not suffice, in smaller pieces."""
        while True:
            try:
                piece = self.piece
                return self._gradient_of([ids[i : i + piece] for ids in batches for i in range(0, len(ids), piece)])
            except RuntimeError as error:
                if self.piece == 1 or not out_of_memory(error):
                    raise
            self.piece = max(min(self.piece, max(map(len, batches))) // 2, 1)

    def _gradient_of(self, pieces: list[Ids]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        words = sum(len(ids) for ids in pieces)
        total, coefficients = torch.zeros((), dtype=torch.float64), self.recipe.coefficients
        for ids in pieces:
            loss = loss_of(self.model, self.task, ids, self.device, coefficients) * (len(ids) / words)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().cpu()
        return total

    def save(self, file: Path) -> None:
        """Writes the state; the file is the old one or the whole new one."""
        buffer = io.BytesIO()
        state = {
            "format": FORMAT,
            "identity": self.identity(),
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "stopped": self.stopped,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, buffer)
        write_atomically(file, buffer.getvalue())

    def restore(self, file: Path) -> None:
        """Raises `InputError` if the file is no checkpoint, or another run's."""
        remedy = "delete it to train from the beginning, or choose another file"
        try:
            state: Any = torch.load(file, map_location=self.device, weights_only=True)
            if not isinstance(state, dict) or state.get("format") != FORMAT:
                raise InputError(f"{file} is not a training checkpoint of this version; {remedy}")
            different = _differences(state["identity"], self.identity())
            if different:
                raise InputError(f"{file} is the checkpoint of another run ({', '.join(different)} differ); {remedy}")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.loss, self.accuracy, self.stopped = state["loss"].cpu(), state["accuracy"], bool(state["stopped"])
        except InputError:
            raise
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(f"cannot read the checkpoint {file} ({reason}); {remedy}") from error


def initial(config: TransformerConfig, recipe: Recipe) -> Transformer:
    """The model before its first step; frozen biases take no gradient."""
    model = Transformer.initialised(config, recipe.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            leaf = name.rsplit(".", 1)[1]
            if leaf.startswith("W_"):
                parameter.mul_(recipe.init_scale)
            if leaf.startswith("b_") and not recipe.biases:
                parameter.requires_grad_(False)
    return model


def loss_of(
    model: Transformer, task: Task, ids: Ids, device: torch.device, coefficients: Mapping[str, float] | None = None
) -> Tensor:
    """The mean cross-entropy, in float64, of the labels of words given as token ids [batch, n], plus penalties with
    these coefficients."""
    tokens, coefficients = torch.from_numpy(ids).to(device), coefficients or {}
    labels = torch.from_numpy(task.rule(ids)).to(device)
    penalised = sites_of(model.program, coefficients)
    logits, values = model.run_with_cache(tokens, penalised) if penalised else (model(tokens), {})
    loss = F.cross_entropy(logits.flatten(0, -2).double(), labels.flatten())
    return loss + penalty(model.program, coefficients, values) if penalised else loss


def hardware(device: torch.device) -> str:
    """What a model was trained on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _accuracy(model: Transformer, task: Task, batches: list[Ids]) -> Accuracy:
    right = sum(count_right(model, task, ids) for ids in batches)
    return Accuracy(right, sum(len(ids) for ids in batches), False)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot train on device {name!r}: {reason}; use cpu, or cuda where there is one") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"cannot train on device {name!r}; use cpu or cuda")
    return device


def _differences(theirs: object, ours: str) -> list[str]:
    """What two identities differ in, by name."""
    here: dict[str, dict[str, object]] = json.loads(ours)
    there = json.loads(theirs) if isinstance(theirs, str) else {}
    found = []
    for part, settings in here.items():
        others = there.get(part, {}) if isinstance(there, dict) else {}
        found += [key for key in settings if others.get(key) != settings[key]]
    return found


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, so that no step is left half done; a second one raises at once."""
    pressed = threading.Event()
    theirs = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or theirs is not signal.default_int_handler:
        yield pressed.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, theirs)
