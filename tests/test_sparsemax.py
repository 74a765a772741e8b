"""Sparsemax attention and leaky ReLU: enclosures against exact rationals, the float32 run, refusals by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch

import certiformer as cf
from certiformer.models import LayerConfig, Transformer, TransformerConfig
from certiformer.models.execution import ACTIVATIONS
from certiformer.models.transformer_lens import to_transformer_lens
from certiformer.proofs import balls as checker_balls
from certiformer.verifier import balls as engine_balls
from certiformer.verifier.balls import Unsupported
from certiformer.verifier.reading import Subject

from .planted import mutated_module

Floats = npt.NDArray[np.float64]
Rational = list[Fraction]


def projected(scores: Rational) -> Rational:
    """Onto the simplex, exactly."""
    ordered = sorted(scores, reverse=True)
    count = max(k for k in range(1, len(scores) + 1) if 1 + k * ordered[k - 1] > sum(ordered[:k]))
    threshold = (sum(ordered[:count]) - 1) / Fraction(count)
    return [max(score - threshold, Fraction(0)) for score in scores]


def rows(number: int, seed: int) -> Iterator[tuple[Floats, Floats, npt.NDArray[np.bool_], list[Rational]]]:
    """Balls of scores, which are visible, and scores in the balls: corners and others."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        n, scale = int(rng.integers(1, 7)), float(rng.choice([1e-12, 0.1, 1, 10, 1e4, 1e12]))
        mid = rng.normal(size=n) * scale
        if rng.random() < 0.3:
            mid = np.round(mid)
        rad = np.abs(rng.normal(size=n)) * float(rng.choice([0, 1e-14, 1e-3, 0.2, scale]))
        visible = np.arange(n) <= rng.integers(n)
        moves = [rng.choice([-1, 0, 1], size=n), rng.choice([-1, 1], size=n), rng.uniform(-1, 1, n)]
        inside = [
            [
                Fraction(float(m)) + Fraction(float(r)) * Fraction(float(t))
                for m, r, t in zip(mid, rad, move, strict=True)
            ]
            for move in moves
        ]
        yield mid, rad, visible, inside


def of_engine(module: ModuleType, mid: Floats, rad: Floats, visible: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    scores = torch.from_numpy(np.where(visible, mid, -np.inf))
    found = module.sparsemax(engine_balls.Ball(scores, torch.from_numpy(np.where(visible, rad, 0.0))))
    return found.mid.numpy(), found.rad.numpy()


def of_checker(module: ModuleType, mid: Floats, rad: Floats, visible: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    found = module.sparsemax(checker_balls.Ball(mid[None], rad[None]), visible[None])
    return found.mid[0], found.rad[0]


WAYS = {"verifier.balls": of_engine, "proofs.simplex": of_checker}


def first_miss(name: str, module: ModuleType, number: int) -> str | None:
    """What is not contained, if anything is not."""
    with np.errstate(all="ignore"):
        for mid, rad, visible, inside in rows(number, seed=3):
            centre, radius = WAYS[name](module, mid, rad, visible)
            if (centre[~visible] != 0).any() or (radius[~visible] != 0).any():
                return f"a masked entry has a share: {mid} {rad} {visible}"
            for scores in inside:
                wanted = iter(projected([score for score, seen in zip(scores, visible, strict=True) if seen]))
                for m, r, seen in zip(centre, radius, visible, strict=True):
                    if seen and abs(next(wanted) - Fraction(float(m))) > Fraction(float(r)):
                        return f"{mid} {rad} {visible}: {centre} {radius}"
    return None


@pytest.mark.parametrize("name", WAYS)
def test_enclosures_contain_the_projection(name: str) -> None:
    assert first_miss(name, importlib.import_module(f"certiformer.{name}"), 600) is None


@pytest.mark.parametrize("name", WAYS)
def test_they_are_tight_where_scores_are_known(name: str) -> None:
    """And exactly 0 or 1 where one score is above the others by more than 1."""
    module = importlib.import_module(f"certiformer.{name}")
    scores, known, seen = np.array([0.3, 0.1, -0.2, 1e9, 1e9 - 2]), np.zeros(5), np.ones(5, dtype=np.bool_)
    mid, rad = WAYS[name](module, scores[:3], known[:3], seen[:3])
    assert rad.max() < 1e-14
    mid, rad = WAYS[name](module, scores, known, seen)
    assert mid.tolist() == pytest.approx([0, 0, 0, 1, 0]) and rad[[0, 1, 2, 4]].max() == 0 and rad[3] < 1e-6


PLANTS = [
    ("verifier.balls", "_threshold(low)[0], _threshold(high)[1]", "_threshold(high)[0], _threshold(low)[1]", "ends"),
    ("verifier.balls", "high = torch.where(masked, -torch.inf, shift.high())", "high = shift.high()", "masked"),
    ("verifier.balls", "+ _TINY).clamp(max=1.0), 0.0)", "+ _TINY).clamp(max=0.9), 0.0)", "no share above 0.9"),
    ("verifier.balls", "-_down(-(guess + rise * (1 + 4 * U)))", "-_down(-(guess - 0.01))", "no test of the guess"),
    ("verifier.balls", "_down(guess - fall * (1 + 4 * U))", "guess + 0.01", "no test of the guess below"),
    ("proofs.simplex", "above, below = _above(high), _below(low)", "below, above = _above(high), _below(low)", "ends"),
    ("proofs.simplex", "high = np.where(visible, shifted.high(), -np.inf)", "high = shifted.high()", "masked"),
    ("proofs.simplex", "keepdims=True) - 1.0, -np.inf)", "keepdims=True) - 0.5, -np.inf)", "the largest is near"),
    ("proofs.simplex", "np.where(_sum_above(high, t, 1) <= 1.0, t,", "np.where(t < 9, t - 0.01,", "no test"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "why"), PLANTS, ids=[f"{name}: {why}" for name, _, _, why in PLANTS])
def test_a_planted_fault_is_noticed(name: str, old: str, new: str, why: str) -> None:
    changed = mutated_module(name, old, new)
    assert first_miss(name, changed, 300), f"nothing fails: {why}"


BAD_GUESSES = [
    ("verifier.balls", "guess = sums.gather(-1, above - 1) / above", "guess = sums.gather(-1, above - 1) / above + {}"),
    ("proofs.simplex", "return np.asarray(t)", "return np.asarray(t + {})"),
]


@pytest.mark.parametrize("off", [0.1, -0.1, 5.0, -5.0])
@pytest.mark.parametrize(("name", "old", "new"), BAD_GUESSES, ids=["engine", "checker"])
def test_a_bad_guess_of_the_threshold_is_harmless(name: str, old: str, new: str, off: float) -> None:
    changed = mutated_module(name, old, new.format(off))
    assert first_miss(name, changed, 150) is None


def test_the_float_run_is_near_and_learns() -> None:
    config = TransformerConfig(4, 5, 3, 2, (LayerConfig(2, 2, 3),), activation="leaky_relu", attention="sparsemax")
    model = Transformer.initialised(config, 1)
    tokens = torch.randint(0, 3, (6, 5), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    scores, pattern = cache["blocks.0.attn.hook_attn_scores"], cache["blocks.0.attn.hook_pattern"]
    for row, found in zip(scores.flatten(0, 2).tolist(), pattern.flatten(0, 2).tolist(), strict=True):
        assert found == pytest.approx([float(x) for x in projected([Fraction(x) for x in row])], abs=1e-6)
    assert bool((pattern == 0).any())
    model(tokens).square().sum().backward()
    gradient = model.parameter("blocks.0.attn.W_Q").grad
    assert gradient is not None and bool(torch.isfinite(gradient).all()) and bool(gradient.any())


@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.3, 50.0])
def test_leaky_relu_of_balls(radius: float) -> None:
    from certiformer.proofs.smooth import activation as of_checker_balls
    from certiformer.verifier.activations import activation as of_engine_balls

    x = np.concatenate([np.linspace(-3, 3, 61), [1e300, -1e300, 5e-324, -5e-324]])
    engine = of_engine_balls(
        "leaky_relu", engine_balls.Ball(torch.from_numpy(x), torch.full((65,), radius, dtype=torch.float64))
    )
    checker = of_checker_balls("leaky_relu", checker_balls.Ball(x, np.full(65, radius)))
    for mid, rad in ((engine.mid.numpy(), engine.rad.numpy()), (checker.mid, checker.rad)):
        for centre, m, r in zip(x, mid, rad, strict=True):
            for end in (Fraction(float(centre)) + sign * Fraction(radius) for sign in (-1, 0, 1)):
                value = end if end >= 0 else end / 100
                assert abs(value - Fraction(float(m))) <= Fraction(float(r))
    if radius == 0:
        assert (
            float(np.abs(engine.mid.numpy() - ACTIVATIONS["leaky_relu"](torch.from_numpy(x)).numpy())[:61].max()) < 1e-9
        )


def subject() -> Subject:
    layers = (LayerConfig(1, 3, 4),)
    config = TransformerConfig(4, 4, 3, 3, layers, activation="leaky_relu", attention="sparsemax", readout="last")
    return Subject(Transformer.initialised(config, 2), cf.Codec((0, 1, 2), False, "categorical", (0, 1, 2), (), 4))


REFUSALS: dict[str, Callable[[Subject], object]] = {
    "TransformerLens has no sparsemax": lambda about: to_transformer_lens(about.model),
    "bounds over regions do not cover sparsemax": lambda about: cf.output_bounds(
        about.model, cf.TokenSets([(0, 1)] * 4)
    ),
    "path bounds do not cover": lambda about: cf.least_difference(about, 0, 1, cf.sequences(range(3), 4)),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_does_not_cover_it_is_refused_by_name(why: str) -> None:
    with pytest.raises((cf.InputError, Unsupported), match=why):
        REFUSALS[why](subject())
