"""Rules for GELU, SiLU and LayerNorm: against arb with tolerance zero; and each line of them is needed."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import flint
import numpy as np
import pytest

from certiformer.proofs import smooth
from certiformer.verifier import activations

from .planted import mutated_module
from .smooth_cases import BITS, CONDITIONS, SMOOTH, checker, engine, exactly

RULES: dict[str, Any] = {"verifier.activations": engine, "proofs.smooth": checker}


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = flint.ctx.prec
    flint.ctx.prec = BITS
    yield
    flint.ctx.prec = before


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.__name__)
@pytest.mark.parametrize("module", [activations, smooth], ids=["engine", "checker"])
def test_the_rules_hold(module: ModuleType, condition: Any) -> None:
    condition(RULES[module.__name__.removeprefix("certiformer.")](module))


def slope(name: str, x: flint.arb) -> flint.arb:
    """The derivative, from the definitions."""
    density = (-x * x / 2).exp() / (2 * flint.arb.pi()).sqrt()
    if name == "gelu":
        return (-x / flint.arb(2).sqrt()).erfc() / 2 + x * density
    z, up = x, flint.arb(1)
    if name == "gelu_new":
        c, cube = (8 / flint.arb.pi()).sqrt(), flint.arb(44715) / 10**6
        z, up = c * (x + cube * x * x * x), c * (1 + 3 * cube * x * x)
    share = 1 / (1 + (-z).exp())
    return share + x * share * (1 - share) * up


@pytest.mark.parametrize("name", SMOOTH)
def test_no_slope_is_above_the_one_used(name: str) -> None:
    """On [-12, 12] by intervals; beyond, x s(1 - s) z' is at most x e^-z (C + 3 C K x^2) < 0.001 and s at most 1."""
    width = flint.arb(1) / 1024
    for k in range(-12 * 512, 12 * 512 + 1):
        assert abs(slope(name, flint.arb(flint.arb(2 * k) / 1024, width))) < flint.arb(activations.SLOPE)


@pytest.mark.parametrize("name", SMOOTH)
def test_valleys_lie_where_the_checker_says(name: str) -> None:
    """The derivative changes its sign there, and (as the module shows) nowhere else; nothing lies below the least."""
    found = smooth.SMOOTH[name]
    assert slope(name, flint.arb(found.left)) < 0 < slope(name, flint.arb(found.right))
    for x in (found.left, found.right, (found.left + found.right) / 2):
        value = exactly(name, flint.arb(x))
        assert flint.arb(found.least) < value < flint.arb(found.least) + flint.arb(2) ** -30


def test_infinite_bounds_stay_bounds() -> None:
    """What is not known is not claimed: LayerNorm is at most sqrt(d) all the same."""
    mid, rad = np.array([[0.0, 1.0]]), np.array([[np.inf, 1e200]])
    low, high = checker(smooth)["norm"](mid, rad, np.ones(2), np.zeros(2), 1e-5)
    assert (low <= -np.sqrt(2)).all() and (high >= np.sqrt(2)).all()
    huge = np.array([[1e200, -1e200, 3e199]])
    low, high = checker(smooth)["norm"](huge, np.zeros((1, 3)), np.ones(3), np.zeros(3), 1e-5)
    assert (low <= huge / 1e200).all() and (high >= huge / 1e200 * 0.9).all()


PLANTS = [
    ("verifier.activations", "SLOPE = 1.13", "SLOPE = 1.0", "gelu is steeper than 1"),
    ("verifier.activations", "FLAT = 8.5", "FLAT = 4.0", "the tail is cut too soon"),
    ("verifier.activations", "2.0**-56", "2.0**-20", "the series is cut too soon"),
    ("verifier.activations", "1.0 / (2 * n + 1)", "1.0 / (2 * n + 2)", "another series"),
    ("verifier.activations", "(y * (3 * U) + 140 * U) * bulk + U * x.abs()", "0.0 * x", "the rounding of gelu"),
    ("verifier.activations", "140 * U * value.abs() + 2.0**-1000 * x.abs()", "0.0 * x", "the rounding of silu"),
    ("verifier.activations", "140 * U * value.abs() + 4 * U * x.abs()", "0.0 * x", "the rounding of gelu_new"),
    ("verifier.activations", "_CUBE = 0.044715", "_CUBE = 0.0447", "another cubic term"),
    ("verifier.activations", "x.clamp(min=0.0)), error", "x), error", "x below -8.5 is not silenced"),
    ("verifier.activations", "SLOPE * a.rad + error", "error", "the radius is lost"),
    ("verifier.activations", "float(a.mid.shape[-1])", "float(a.mid.shape[-1] - 1 or 1)", "the unbiased variance"),
    (
        "verifier.activations",
        "negate(divide(total(a, -1), width))",
        "exact(-divide(total(a, -1), width).mid)",
        "the mean is taken to be exact",
    ),
    ("verifier.activations", "exact(torch.tensor(eps,", "exact(torch.tensor(0.0 * eps,", "no epsilon"),
    ("verifier.activations", "(most - least) / 2 + 4 * U * most", "4 * U * most", "the deviation is taken to be exact"),
    ("verifier.activations", "math.sqrt(a.mid.shape[-1])", "1.0", "a cap that is too low"),
    ("verifier.activations", "_up((high - low) / 2 + 4 * U * most)", "0.0 * a.rad", "a capped ball is a point"),
    ("proofs.smooth", "LIMIT = 9", "LIMIT = 4", "the tail is cut too soon"),
    ("proofs.smooth", "DEGREE = 7", "DEGREE = 3", "the series is cut too soon"),
    ("proofs.smooth", "(n - 1) * previous", "n * previous", "other polynomials"),
    ("proofs.smooth", "np.where(inside, t * 2.0**-48, 0.0)", "0.0 * t", "the rounding of gelu"),
    ("proofs.smooth", "np.abs(value) * 2.0**-45 + np.abs(x) * 2.0**-900", "0.0 * x", "the rounding of silu"),
    ("proofs.smooth", "np.abs(value) * 2.0**-45 + np.abs(x) * 2.0**-49", "0.0 * x", "the rounding of gelu_new"),
    ("proofs.smooth", "0.044715 * x", "0.0447 * x", "another cubic term"),
    ("proofs.smooth", "valley = ~((left", "valley = False & ~((left", "the valley is jumped over"),
    ("proofs.smooth", "np.maximum(left_high, right_high)", "right_high", "the left end may be the higher one"),
    ("proofs.smooth", "np.minimum(left_low, right_low)", "left_low", "the right end may be the lower one"),
    ("proofs.smooth", "d * np.eye(d) - 1.0", "d * np.eye(d)", "the mean is not subtracted"),
    ("proofs.smooth", "/ d + eps * d * d", "/ d + eps", "another epsilon"),
    ("proofs.smooth", "most = np.maximum(-low, high)", "most = high", "negative numbers have squares too"),
    ("proofs.smooth", "np.where(low > 0, low, np.where(high < 0, -high, 0.0))", "most", "the least of squares"),
    ("proofs.smooth", "np.where(low > 0, root_most, root_least)", "root_most", "what divides a negative bound"),
    ("proofs.smooth", "np.where(high > 0, root_least, root_most)", "root_most", "what divides a positive bound"),
    ("proofs.smooth", "cap = np.sqrt(d) * ", "cap = 1.0 * ", "a cap that is too low"),
    ("proofs.smooth", "point(weight)) + point(bias)", "point(weight))", "the bias"),
]


@pytest.mark.parametrize(
    ("module", "old", "new", "why"), PLANTS, ids=[f"{m.split('.')[0]}: {w}" for m, _, _, w in PLANTS]
)
def test_a_changed_line_breaks_a_condition(module: str, old: str, new: str, why: str) -> None:
    changed = mutated_module(module, old, new)
    broken = 0
    for condition in CONDITIONS:
        try:
            condition(RULES[module](changed))
        except AssertionError as error:
            broken += "tight" not in str(error)
    assert broken, f"no condition fails: {why}"
