"""Queries to Z3, or again to cvc5: with limits of time and memory, in a process of its own, reused while it behaves."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ..models.errors import CertiformerError

MEMORY_MIB = 4096
GRACE = 2.0
"""Seconds that the process may overrun the limit it was told before it is killed."""
_WORKER = str(Path(__file__).with_name("smt_worker.py"))
WORKERS = {"z3": _WORKER, "cvc5": _WORKER}
"""What each solver's process runs."""


class SolverFailed(CertiformerError):
    """No answer to a query: time, memory, a crash. `why` says which, and what can be tried next."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}; {remedy}")
        self.why, self.remedy = why, remedy


@dataclass(frozen=True)
class Answer:
    """`sat` with those of the wanted Booleans that are true, or `unsat`."""

    answer: Literal["sat", "unsat"]
    true: frozenset[int] = frozenset()


class Solver:
    """A solver process. `load` gives it a formula, `check` asks about that under assumptions.

    Every method raises `SolverFailed` when there is no answer before `deadline` (by `time.monotonic`); the process is
    then ended, and the next `load` starts another one. Ctrl-C ends it, too. `name`: z3, or cvc5, which takes no
    assumptions and tells no assignment.
    """

    def __init__(self, memory_mib: int = MEMORY_MIB, name: str = "z3") -> None:
        self.memory_mib, self.name = memory_mib, name
        self.queries = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def load(self, count: int, clauses: array[int], deadline: float) -> None:
        """Puts a formula over Booleans 1..count in place of the one before."""
        data = clauses.tobytes()
        self._ask({"do": "load", "count": count, "bytes": len(data)}, data, deadline)

    def check(self, assumptions: Sequence[int], wanted: Sequence[int], deadline: float) -> Answer:
        """Whether the formula has a model in which all the assumptions are true."""
        self.queries += 1
        left = max(deadline - time.monotonic(), 0.001)
        request = {"do": "check", "assume": list(assumptions), "wanted": list(wanted), "seconds": left}
        found = self._ask(request, b"", deadline + GRACE)
        return Answer("sat", frozenset(found["true"])) if found["answer"] == "sat" else Answer("unsat")

    def _ask(self, request: dict[str, Any], data: bytes, deadline: float) -> dict[str, Any]:
        try:
            process = self._start(request)
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            process.stdin.flush()
            found: dict[str, Any] = json.loads(self._line(process, deadline))
        except (BrokenPipeError, EOFError):
            status = self._status()
            raise SolverFailed(
                f"the solver's process ended ({status})", "give it more memory, or ask about shorter sequences"
            ) from None
        except BaseException:
            self.close()
            raise
        if found["answer"] == "unknown":
            self.close()
            why = str(found["why"])
            if "timeout" in why or "canceled" in why:
                raise _out_of_time()
            raise SolverFailed(
                f"the solver gave up: {why}",
                f"give it more memory (it had {self.memory_mib} MiB), or shorter sequences",
            )
        return found

    def _start(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        if self._process is None:
            if request["do"] != "load":
                raise SolverFailed("the solver has no formula any more", "load it again")
            command = [sys.executable, "-I", WORKERS[self.name], str(self.memory_mib), self.name]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        number = process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([number], [], [], left)[0]:
                raise _out_of_time()
            part = os.read(number, 1 << 16)
            if not part:
                raise EOFError
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _status(self) -> str:
        process = self._process
        code = None if process is None else process.wait()
        self.close()
        return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"


def _out_of_time() -> SolverFailed:
    return SolverFailed("the solver's time was up", "allow more seconds, or ask about shorter sequences")
