"""What every benchmark is told."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """`quick`: fewer cases, to see that a benchmark works; `workers`: processes at a time, where times are not the
    result; `programs`: only these of the library (empty: all); `seconds`: when to stop what can go on another time."""

    quick: bool = False
    workers: int = 1
    programs: tuple[str, ...] = ()
    seconds: float = math.inf
