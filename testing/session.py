"""What a run of tests is asked to do with claims, and what became of them. Imports nothing beyond the standard library.

The pytest plugin sets the session; outside pytest claims are tested and nothing is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["tested", "proved", "refuted", "unknown"]
STATUSES: tuple[Status, ...] = ("tested", "proved", "refuted", "unknown")
SECONDS = 60.0


@dataclass(frozen=True)
class Record:
    """What became of one claim in one test: a line of the summary. `detail`: the witness, reason or certificate."""

    status: Status
    claim: str
    detail: str = ""
    test: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Session:
    """`certify`: prove what testing does not refute. `seconds`: for each proof. `folder`: where certificates go.

    `keep`: whether records are kept; outside pytest nobody would collect them.
    """

    certify: bool = False
    seconds: float = SECONDS
    folder: Path | None = None
    keep: bool = True
    records: list[Record] = field(default_factory=list)

    def record(self, record: Record) -> None:
        if self.keep:
            self.records.append(record)


_sessions: list[Session] = [Session(keep=False)]


def current() -> Session:
    """The session of the innermost pytest run, or one that only tests."""
    return _sessions[-1]


def enter(session: Session) -> None:
    _sessions.append(session)


def leave(session: Session) -> None:
    if session in _sessions[1:]:
        _sessions.remove(session)
