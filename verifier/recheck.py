"""Before a proof is called one, the independent checker has to accept it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ..models import Transformer
from ..proofs import Valid, check
from .verdicts import Certificate


def objection(certificate: Certificate, model: Transformer) -> str | None:
    """Why the checker does not accept the certificate about this model; None if it does."""
    with tempfile.TemporaryDirectory(prefix="certiformer-") as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        outcome = check(certificate.to_bytes(), path)
    return None if isinstance(outcome, Valid) else str(outcome)


def counted(problem: str) -> int | None:
    """How many inputs the checker counted as proved, where its objection is that these are too few."""
    found = re.search(r"only (\d+) of \d+ inputs are proved right", problem)
    return int(found.group(1)) if found else None
