"""The peer's figures: measured now if Tracr can be imported, otherwise those on record."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from .cases import LARGE, SMALL, Case
from .peer_tracr import RECORD, available, measure_all


@cache
def figures() -> tuple[dict[tuple[str, bool], dict[str, Any]], str]:
    """Rows by program and size, and a sentence saying where they come from."""
    if available():
        data, source = measure_all((*SMALL, *LARGE)), "measured in this run"
    elif RECORD.exists():
        data = json.loads(RECORD.read_text())
        source = f"recorded on {data['date']} on {data['cores']} cores (Tracr cannot be imported here)"
    else:
        return {}, "no figures of the peer: neither can Tracr be imported nor is peer_tracr.json there"
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    rows = {(row["program"], row["large"]): row for row in data["rows"]}
    return rows, f"{data['peer']}, {source}: Python {data['python']}, {versions}."


def row_of(case: Case) -> dict[str, Any]:
    """The peer's row for a case; empty if there is none."""
    return figures()[0].get((case.program, case.large), {})
