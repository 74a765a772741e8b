"""Running one measurement in a process of its own: a crash or a stall costs one row, not the run."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "certiformer.compiler.compile", "certiformer.compiler.programs", "certiformer.verifier.portfolio"]

HERE = Path(__file__).parent
SOURCES = ("compiler", "models", "verifier", "proofs", "explanations", "testing", "benchmarks")


@dataclass(frozen=True)
class Failure:
    """Why there is no result."""

    why: str


def _child(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(function(*args))
    except BaseException as error:  # the parent is told, whatever it is
        place = traceback.extract_tb(error.__traceback__)[-1]
        pipe.send(Failure(f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"))


def apart(function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
    """`function(*args)` in a new process with one thread, or a `Failure` when it raises, dies or takes too long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, args), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Failure(f"stopped after {seconds:g} s")
        return receiver.recv()
    except EOFError:
        process.join(5)
        return Failure(f"the process died (exit code {process.exitcode})")
    finally:
        process.kill()
        process.join()
        receiver.close()


def each_apart(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], seconds: float, workers: int = 1
) -> Iterator[Any]:
    """`apart` for each task, in order, `workers` at a time."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda args: apart(function, args, seconds), tasks)


class Kept:
    """Finished tasks of a long benchmark, on disk: an interrupted run goes on where it was, on the same sources."""

    def __init__(self, name: str, sources: Sequence[str] = SOURCES) -> None:
        self.path = HERE / "partial" / f"{name}-{_digest(sources)}.jsonl"
        self.found: dict[str, Any] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                task, result = json.loads(line)
                self.found[json.dumps(task)] = result

    def each_apart(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], seconds: float, workers: int = 1
    ) -> Iterator[Any]:
        """As the function; a task that an earlier run finished is not run again. Failures are not kept."""

        def one(args: tuple[Any, ...]) -> Any:
            key = json.dumps([function.__name__, *args])
            if key not in self.found:
                result = apart(function, args, seconds)
                if isinstance(result, Failure):
                    return result
                self._keep(key, result)
            return self.found[key]

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, tasks)

    def _keep(self, key: str, result: Any) -> None:
        self.path.parent.mkdir(exist_ok=True)
        line = f"[{key}, {json.dumps(result)}]\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        self.found[key] = json.loads(json.dumps(result))

    def forget(self) -> None:
        """The benchmark is complete."""
        self.path.unlink(missing_ok=True)


def _digest(sources: Sequence[str]) -> str:
    """Of the Python files that a result depends on: files, and folders with all that is in them."""
    digest = hashlib.sha256()
    for name in sources:
        place = HERE.parent / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(HERE.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
