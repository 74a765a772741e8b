"""What a command says: a result on stdout, as text or as one JSON object; progress and errors on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
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
    """Of a claim: refuted; of a certificate: invalid; of a run: the model differs from its program."""
    OPEN = 2
    """Of a claim: unknown; of a certificate: holey."""
    BAD_INPUT = 3
    """The input is wrong: arguments, files that cannot be read or hold something else, programs, tokens."""
    BUG = 70
    """An error inside certiformer."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C."""
    PIPE = 141
    """Nobody read the output to its end (`certiformer programs | head`)."""


class BadInput(Exception):
    """Wrong arguments, found by the command line itself (`models.InputError` would import torch)."""


@dataclass(frozen=True)
class Screen:
    """Where a command writes. `as_json`: stdout holds one JSON object and nothing else."""

    as_json: bool = False

    def show(self, data: Mapping[str, object], *parts: str) -> None:
        """The result: `data` in JSON mode, else the parts, one below the other."""
        if self.as_json:
            sys.stdout.write(json_text(data) + "\n")
            return
        for part in parts:
            self.say(part)

    def say(self, text: str) -> None:
        """Text for people; nothing in JSON mode."""
        if not self.as_json:
            sys.stdout.write(visible(text) + "\n")
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
    sys.stderr.write(visible(f"error: {message}\n"))
    if as_json:
        sys.stdout.write(json_text({"error": {"kind": kind, "message": message}}) + "\n")


def visible(text: str) -> str:
    """The text with everything that is not printable, but line ends, as escapes: no file steers a terminal."""
    return re.sub(r"[^ -~\n]", lambda found: found[0] if found[0].isprintable() else repr(found[0])[1:-1], text)


def json_text(data: object) -> str:
    """JSON in which people can read their alphabet, as far as stdout can write it."""
    encoding = sys.stdout.encoding or "utf-8"

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        written = character.encode(encoding, "ignore").decode(encoding, "ignore") == character
        return character if written and character.isprintable() else json.dumps(character)[1:-1]

    return re.sub(r"[^ -~\n]", escape, json.dumps(data, indent=2, ensure_ascii=False, default=plain))


def be_lenient() -> None:
    """What stdout or stderr cannot encode is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def hang_up() -> None:
    """Nobody reads stdout any more: what is still to be written, at the latest when Python ends, goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def facts(rows: Mapping[str, object]) -> str:
    """A line each: a name, and what it is."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def value_text(value: object) -> str:
    """A RASP value as a person types it."""
    return "none" if value is None else str(value)


def sequence_text(values: Sequence[object]) -> str:
    """A sequence of RASP values, separated by spaces, on one line."""
    return " ".join(map(value_text, values)).replace("\n", "\\n")


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
