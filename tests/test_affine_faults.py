"""Each rule of affine bounds is needed: one changed text, and its test (or the test of whole models) fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .affine_cases import HAND_MADE, failure, hand_made_failure, heads_apart_failure, mutated
from .affine_plants import PLANTS
from .test_affine_rules import (
    SMOOTH,
    attention_failures,
    circuit_failures,
    line_failures,
    norm_failures,
    table_failures,
)

SEEDS = 400


def models(module: Any) -> Iterator[float]:
    for name in HAND_MADE:
        yield hand_made_failure(module.output_bounds, name)
    yield heads_apart_failure(module.output_bounds)
    for seed in range(60):
        for kind in range(3):
            yield failure(module.output_bounds, seed, kind)


JUDGES: dict[str, tuple[str, str, Callable[[Any], Iterator[float]]]] = {
    "lines": ("affine_lines", "affine_lines", lambda made: (line_failures(made, x) for x in ("relu", *SMOOTH))),
    "norm": ("affine_norm", "affine_norm", lambda made: (norm_failures(made, s) for s in range(SEEDS))),
    "attention": (
        "affine_attention",
        "affine_attention",
        lambda made: (attention_failures(made, s) for s in range(SEEDS)),
    ),
    "levels": ("affine_steps", "affine_steps", lambda made: (table_failures(made, s)[0] for s in range(SEEDS))),
    "steps": ("affine_steps", "affine_bounds", models),
    "circuit": ("affine_circuit", "affine_circuit", lambda made: (circuit_failures(made, s) for s in range(SEEDS))),
    "model": ("affine_model", "affine_bounds", models),
    "bounds": ("affine_bounds", "affine_bounds", models),
}
"""Group of plants -> the changed module, the module that is judged, and its failures on many cases."""


@pytest.mark.parametrize("group, old, new, why", PLANTS, ids=[f"{plant[0]}: {plant[3]}" for plant in PLANTS])
def test_a_planted_fault_is_caught(group: str, old: str, new: str, why: str) -> None:
    changed, judged, failures = JUDGES[group]
    with mutated(f"verifier.{changed}", old, new) as made:
        assert any(found > 0 for found in failures(made[f"verifier.{judged}"])), why


def test_the_plants_differ() -> None:
    assert len(set(PLANTS)) == len(PLANTS)
    assert len({plant[3] for plant in PLANTS}) == len(PLANTS)
