"""Running one measurement in a process of its own: a crash or a stall costs one row, not the run."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PRELOAD = ["torch", "certiformer.compiler.compile", "certiformer.compiler.programs", "certiformer.verifier.portfolio"]


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
