"""Rule `paths` of the independent checker: every bound against all words, zero tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from .path_checks import check_bounds, check_corners, check_counts, check_mean, check_proof, check_relu

CHUNKS = [range(start, start + 40) for start in range(0, 200, 40)]


@pytest.mark.parametrize("seeds", CHUNKS, ids=lambda s: str(s.start))
@pytest.mark.parametrize("check", [check_bounds, check_mean, check_corners, check_counts, check_relu])
def test_every_bound_holds_on_every_word(check, seeds) -> None:
    for seed in seeds:
        check(seed)


def test_no_more_is_proved_than_is_right() -> None:
    found = np.array([check_proof(seed) for seed in range(120)])
    print(found.sum(axis=0))
