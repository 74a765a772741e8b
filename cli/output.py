"""What a command says: a result on stdout, as text or as one JSON object; progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PATIENCE = 2.0  # seconds before progress is shown


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    """Done; of a claim: proved; of a certificate: valid."""
    NO = 1
    """Of a claim: refuted; of a certificate: invalid."""
    OPEN = 2
    """Of a claim: unknown; of a certificate: holey."""
    BAD_INPUT = 3
    """The input is wrong: arguments, files, programs, tokens."""
    BUG = 70
    """An error inside certiformer."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""


class BadInput(Exception):
    """Wrong arguments, found by the command line itself (`models.InputError` would import torch)."""


@dataclass(frozen=True)
class Screen:
    """Where a command writes. `as_json`: stdout holds one JSON object and nothing else."""

    as_json: bool = False

    def show(self, data: Mapping[str, object], *parts: str) -> None:
        """The result: `data` in JSON mode, else the parts, one below the other."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=plain) + "\n")
            return
        for part in parts:
            self.say(part)

    def say(self, text: str) -> None:
        """Text for people; nothing in JSON mode."""
        if not self.as_json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[str], None]]:
        """Shows on stderr that `what` is going on, if it takes over two seconds and a person is watching.

        Gives a function that says how far it is.
        """
        console = Console(stderr=True)
        if not console.is_terminal:
            yield lambda _: None
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        progress = Progress(*columns, console=console, transient=True)
        task = progress.add_task(what, total=None)
        timer = threading.Timer(PATIENCE, progress.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda line: progress.update(task, description=f"{what}: {line}")
        finally:
            timer.cancel()
            timer.join()
            progress.stop()

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int, str], None]]:
        """As `progress`, with a bar. Gives a function that says how much is done, of how much, and a remark."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield lambda done, total, remark: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        progress = Progress(*columns, console=console, transient=True)
        task = progress.add_task(what, total=None, remark="")
        with progress:
            yield lambda done, total, remark: progress.update(task, completed=done, total=total, remark=remark)

    def note(self, text: str) -> None:
        """A remark on stderr, in JSON mode too."""
        sys.stderr.write(text + "\n")


def complain(message: str, *, as_json: bool, kind: str) -> None:
    """An error: on stderr for people; with `--json` also as an object on stdout."""
    sys.stderr.write(f"error: {message}\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": {"kind": kind, "message": message}}, indent=2) + "\n")


def facts(rows: Mapping[str, object]) -> str:
    """A line each: a name, and what it is."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def value_text(value: object) -> str:
    """A RASP value as a person types it."""
    return "none" if value is None else str(value)


def sequence_text(values: Sequence[object]) -> str:
    """A sequence of RASP values, separated by spaces."""
    return " ".join(map(value_text, values))


def plain(value: object) -> object:
    """What `json` does not know: a Fraction is its text (`1/3`), a set a sorted list, anything else its `to_json()`."""
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    convert = getattr(value, "to_json", None)
    return convert() if callable(convert) else str(value)


def grouped(number: int) -> str:
    """An exact integer in groups of three digits."""
    return f"{number:,}"
