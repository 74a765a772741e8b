"""What must hold of the rules for smooth activations and LayerNorm, of the engine and of the checker, against arb.

Each function takes the module with the rules, so that the same conditions are put to changed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flint
import numpy as np
import torch

from certiformer.proofs import balls as checker_balls
from certiformer.verifier.balls import Ball

Array = np.ndarray[Any, Any]
Enclose = Callable[..., tuple[Array, Array]]
SMOOTH = ("gelu", "gelu_new", "silu")
BITS = 192


def exactly(name: str, x: flint.arb) -> flint.arb:
    """The activation, from its definition."""
    if name == "gelu":
        return x * (-x / flint.arb(2).sqrt()).erfc() / 2
    if name == "silu":
        return x / (1 + (-x).exp())
    inner = (2 / flint.arb.pi()).sqrt() * (x + flint.arb(44715) / 10**6 * x * x * x)
    return x / (1 + (-2 * inner).exp())


def places() -> Array:
    """Float64 numbers at which activations are tried: everywhere, near 0, near the valleys, and far out."""
    rng = np.random.default_rng(0)
    valleys = [-0.7517915246935645, -0.7524614219987, -1.2784645427610738]
    near = [v + s * 10.0**-k for v in valleys for s in (-1, 1) for k in range(1, 17)]
    ends = [0.0, -0.0, 5e-324, -1e-300, 8.5, -8.5, 8.6, 9.0, -9.0, 8.999999, 40.0, -40.0, 701.0, -701.0, 1e9, -1e9]
    return np.array([*np.linspace(-10, 10, 1601), *rng.normal(scale=3, size=800), *near, *ends])


def engine(module: Any) -> dict[str, Enclose]:
    """`activation(name, mid, rad)` and `norm(mid, rad, weight, bias, eps)` of the engine: bounds."""

    def bounds(ball: Ball) -> tuple[Array, Array]:
        return ball.low().numpy(), ball.high().numpy()

    def activation(name: str, mid: Array, rad: Array) -> tuple[Array, Array]:
        return bounds(module.activation(name, Ball(torch.from_numpy(mid), torch.from_numpy(rad))))

    def norm(mid: Array, rad: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array]:
        exact = [Ball(torch.from_numpy(x), torch.zeros(x.shape, dtype=torch.float64)) for x in (weight, bias)]
        return bounds(module.normalise(Ball(torch.from_numpy(mid), torch.from_numpy(rad)), *exact, eps))

    def near(name: str, x: Array) -> tuple[Array, Array]:
        value, error = module.POINTS[name](torch.from_numpy(x))
        return value.numpy(), error.numpy() + 2.0**-53

    return {"activation": activation, "norm": norm, "near": near}


def checker(module: Any) -> dict[str, Enclose]:
    """The same of the checker."""

    def activation(name: str, mid: Array, rad: Array) -> tuple[Array, Array]:
        ball = module.activation(name, checker_balls.Ball(mid, rad))
        return ball.low(), ball.high()

    def norm(mid: Array, rad: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            ball = module.layer_norm(checker_balls.Ball(mid, rad), weight, bias, eps)
        return ball.low(), ball.high()

    def near(name: str, x: Array) -> tuple[Array, Array]:
        value, error = module.SMOOTH[name].near(x)
        return value, error + 2.0**-59

    return {"activation": activation, "norm": norm, "near": near}


def require_inside(low: float, value: flint.arb, high: float, what: object) -> None:
    assert not flint.arb(low) > value and not flint.arb(high) < value, (what, low, value, high)


def activations_contain_points(rules: dict[str, Enclose]) -> None:
    x = places()
    for name in SMOOTH:
        low, high = rules["activation"](name, x, np.zeros_like(x))
        for i, at in enumerate(x.tolist()):
            require_inside(low[i], exactly(name, flint.arb(at)), high[i], (name, at))
        small = np.abs(x) < 100
        assert (high - low)[small].max() < 1e-11, "and they are tight"


def points_are_near(rules: dict[str, Enclose]) -> None:
    """As near as is said, without the widening that follows; also where all numbers are small."""
    every = places()
    for name in SMOOTH:
        for x in (every, every[np.abs(every) < 1], every[np.abs(every) < 3]):
            value, error = rules["near"](name, x)
            for i, at in enumerate(x.tolist()):
                apart = abs(exactly(name, flint.arb(at)) - flint.arb(value[i]))
                assert not apart > flint.arb(error[i]) * (1 + flint.arb(2) ** -50), (name, at, apart, error[i])


def activations_contain_balls(rules: dict[str, Enclose]) -> None:
    """Balls of all sizes: both ends, the middle and numbers between lie inside."""
    rng = np.random.default_rng(1)
    mid = rng.normal(scale=3, size=400)
    rad = np.abs(rng.normal(size=400)) * 10.0 ** rng.integers(-14, 2, size=400)
    for name in SMOOTH:
        low, high = rules["activation"](name, mid, rad)
        for i in range(len(mid)):
            for part in (-1.0, 1.0, 0.0, *rng.uniform(-1, 1, size=6)):
                x = flint.arb(mid[i]) + flint.arb(rad[i]) * flint.arb(float(part))
                require_inside(low[i], exactly(name, x), high[i], (name, mid[i], rad[i], part))


def norm_contains(rules: dict[str, Enclose]) -> None:
    """LayerNorm of vectors anywhere in balls, most of them at corners; of nearly equal numbers, large and small."""
    rng = np.random.default_rng(2)
    for case in range(60):
        d = int(rng.integers(1, 7))
        eps = float(rng.choice([1e-5, 1e-12, 0.3, 1e-300]))
        scale, spread = 10.0 ** rng.integers(-6, 6), 10.0 ** rng.integers(-12, 1)
        mid = scale * (float(rng.normal()) + spread * rng.normal(size=(3, d)))
        if case % 3 == 0:
            mid = scale * np.eye(d)[rng.integers(0, d, size=3)]
        rad = np.abs(mid) * 10.0 ** rng.integers(-16, 1) * rng.uniform(size=(3, d)) * (case % 4 > 0)
        weight, bias = rng.normal(size=d).astype(np.float32), rng.normal(size=d).astype(np.float32)
        weight, bias = weight.astype(np.float64), bias.astype(np.float64)
        low, high = rules["norm"](mid, rad, weight, bias, eps)
        for row in range(3):
            for _ in range(8):
                signs = rng.choice([-1.0, 0.0, 1.0, 0.5], size=d, p=[0.4, 0.1, 0.4, 0.1])
                x = [
                    flint.arb(m) + flint.arb(r) * flint.arb(float(s))
                    for m, r, s in zip(mid[row], rad[row], signs, strict=True)
                ]
                mean = sum(x, flint.arb(0)) / d
                centred = [t - mean for t in x]
                root = (sum((c * c for c in centred), flint.arb(0)) / d + flint.arb(eps)).sqrt()
                for j, c in enumerate(centred):
                    value = c / root * flint.arb(weight[j]) + flint.arb(bias[j])
                    require_inside(low[row, j], value, high[row, j], (case, row, j, eps))
        if not rad.any() and eps > 1e-9 and scale * spread > 1e-4 * scale:
            assert (high - low).max() < 1e-9, "and tight"


CONDITIONS = (points_are_near, activations_contain_points, activations_contain_balls, norm_contains)
