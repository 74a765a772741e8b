"""Settings shared by all tests: reproducible examples, one thread a process (the runs are parallel already)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from hypothesis import HealthCheck, settings

sys.path.append(str(Path(__file__).parent.parent))  # for `benchmarks`, whose plants and programs are tested

settings.register_profile(
    "certiformer",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "certiformer"))
