"""The pytest plugin: `pytest --certify` proves what `interpretation` tests, writes certificates, and says what is left.

Imported in every pytest run where certiformer is installed: it imports nothing but the standard library and pytest.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import session
from .session import Record, Session

PROPERTY = "certiformer"
SESSION = pytest.StashKey[Session]()
FOLDER = "certificates"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("certiformer", "certiformer: claims about transformers")
    group.addoption(
        "--certify", action="store_true", help="prove the claims that @interpretation tests, and write certificates"
    )
    group.addoption(
        "--certify-seconds",
        type=_positive,
        default=session.SECONDS,
        metavar="S",
        help="time for each proof (default: %(default)g)",
    )
    group.addoption(
        "--certify-dir",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"where certificates are written (default: {FOLDER}/ under the root directory)",
    )


def _positive(text: str) -> float:
    import argparse

    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a time must be a positive number of seconds, got {text!r}")
    return number


def pytest_configure(config: pytest.Config) -> None:
    certify = bool(config.getoption("--certify"))
    folder: Path | None = config.getoption("--certify-dir")
    made = Session(
        certify=certify,
        seconds=float(config.getoption("--certify-seconds")),
        folder=(folder or config.rootpath / FOLDER) if certify else None,
    )
    config.stash[SESSION] = made
    session.enter(made)


def pytest_unconfigure(config: pytest.Config) -> None:
    made = config.stash.get(SESSION, None)
    if made is not None:
        session.leave(made)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the test recorded goes with its report: to the summary, to the controller of a parallel run, to JUnit."""
    records = item.config.stash[SESSION].records
    if records and call.when == "call":
        refuted = [record for record in records if record.status == "refuted"][-1:]  # Hypothesis shrinks: the last
        kept = [*(record for record in records if record.status != "refuted"), *refuted]
        item.user_properties.extend((PROPERTY, json.dumps({**r.to_json(), "test": item.nodeid})) for r in kept)
        records.clear()
    report = yield
    if call.excinfo is not None and hasattr(call.excinfo.value, "certiformer_report"):
        error = call.excinfo.value  # its text is the report; the frames below the test say nothing to the user
        path, line, _ = item.location
        place = f"{path}:{(line or 0) + 1}"
        notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith("Explanation")]
        error.args = ("\n".join([str(error), *notes, place]),)
        report.longrepr = call.excinfo.getrepr(style="value")
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = list(_records(terminalreporter.stats))
    if not found:
        return
    terminalreporter.section("certiformer: claims")
    counts = {status: sum(record.status == status for record in found) for status in session.STATUSES}
    terminalreporter.write_line(", ".join(f"{count} {status}" for status, count in counts.items()))
    for record in found:
        if record.status in ("unknown", "refuted"):
            terminalreporter.write_line(f"{record.status}: {record.test}: {record.claim}")
            terminalreporter.write_line(f"  {record.detail}")
    folder = terminalreporter.config.stash[SESSION].folder
    if counts["proved"] and folder is not None:
        terminalreporter.write_line(f"certificates in {folder}")


def _records(stats: dict[str, list[Any]]) -> Iterator[Record]:
    """The records of all tests, in the order of the reports; one for each distinct claim and status of a test."""
    seen: set[str] = set()
    for reports in stats.values():
        for report in reports:
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == PROPERTY and value not in seen:
                    seen.add(value)
                    record = Record(**json.loads(value))
                    if record.status != "refuted" or report.failed:  # else the test expects it
                        yield record
