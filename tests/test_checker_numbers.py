"""The checker's numbers against fractions and arb: exact is exact, and bounds are bounds, with tolerance zero."""

from __future__ import annotations

from fractions import Fraction

import flint
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certiformer.proofs import balls, exact
from certiformer.proofs.format import Rejected
from certiformer.proofs.neurons import Known, Widths, ramps, relu_radius
from certiformer.proofs.weights import capped_sum, first_share_bounds, outside_weight, share_bounds, unevenness

SEEDS = st.integers(0, 2**32 - 1)


def random_float32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Float32 numbers of one of several kinds: small integers, halves, full mantissas, wild exponents, denormals."""
    kind = rng.integers(5)
    numbers = rng.normal(size=shape)
    if kind == 0:
        numbers = np.round(4 * numbers)
    elif kind == 1:
        numbers = np.round(4 * numbers) / 2
    elif kind == 3:
        numbers = numbers * 2.0 ** rng.integers(-100, 100, size=shape)
    elif kind == 4:
        numbers = np.where(rng.random(shape) < 0.5, numbers * 2.0**-140, np.round(numbers))
    return numbers.astype(np.float32)


def fractions(matrix: exact.Exact) -> np.ndarray:
    entries = [matrix.number(place) for place in np.ndindex(matrix.shape)]
    return np.array(entries, dtype=object).reshape(matrix.shape)


def of_float(array: np.ndarray) -> np.ndarray:
    return np.array([Fraction(float(x)) for x in array.reshape(-1)], dtype=object).reshape(array.shape)


@given(SEEDS)
def test_exact_arithmetic_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, inner, columns = (int(n) for n in rng.integers(1, 6, size=3))
    a, c = random_float32(rng, rows, inner), random_float32(rng, rows, inner)
    b = random_float32(rng, inner, columns)
    x, y, z = (exact.from_float32(array) for array in (a, b, c))
    fa, fb, fc = of_float(a), of_float(b), of_float(c)
    assert (fractions(x) == fa).all()
    assert (fractions(x @ y) == fa @ fb).all()
    assert (fractions(x + z) == fa + fc).all() and (fractions(x - z) == fa - fc).all()
    deep = x @ y @ y.T @ z.T
    assert (fractions(deep) == fa @ fb @ fb.T @ fc.T).all()
    assert (fractions(deep.max()) == (fa @ fb @ fb.T @ fc.T).max(axis=0)).all()
    assert (fractions(x.maximum(z)) == np.maximum(fa, fc)).all() and (
        fractions(x.minimum(z)) == np.minimum(fa, fc)
    ).all()
    assert (fractions(x.relu()) == np.maximum(fa, Fraction(0))).all()
    assert (fractions(x.scaled(Fraction(-5, 8))) == fa * Fraction(-5, 8)).all()
    for matrix in (x, deep, x + z):
        low, high, most = matrix.lower(), matrix.upper(), matrix.magnitude()
        for place in np.ndindex(matrix.shape):
            value = matrix.number(place)
            assert Fraction(low[place]) <= value <= Fraction(high[place])
            assert abs(value) <= Fraction(most[place]) <= abs(value) * Fraction(5, 4) + Fraction(1, 2**900)
    grid, lost = exact.rounded(deep, 20)
    for place in np.ndindex(deep.shape):
        assert abs(grid.number(place) - deep.number(place)) <= Fraction(lost[place])


@given(SEEDS)
def test_radii_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    radii, weights = np.abs(random_float32(rng, 6)).astype(np.float64), random_float32(rng, 6, 4)
    got = exact.through(radii, weights)
    for column in range(4):
        true = sum(Fraction(r) * abs(Fraction(float(w))) for r, w in zip(radii, weights[:, column], strict=True))
        assert true <= Fraction(got[column])
    assert exact.grow(np.array([np.nan, np.inf])).tolist() == [np.inf, np.inf]


@given(st.fractions(-200, 200))
def test_exponentials_are_bounds(x: Fraction) -> None:
    low, high = exact.exp_below(x), exact.exp_above(x)
    assert 0 <= low <= high < low * Fraction(1000001, 1000000)
    saved, flint.ctx.prec = flint.ctx.prec, 400
    try:
        true = (flint.arb(x.numerator) / x.denominator).exp()
        assert (
            not flint.arb(low.numerator) / low.denominator > true
            and not true > flint.arb(high.numerator) / high.denominator
        )
    finally:
        flint.ctx.prec = saved


def test_exponentials_far_out() -> None:
    assert exact.exp_below(Fraction(-(10**9))) == 0 < exact.exp_above(Fraction(-(10**9))) < Fraction(1, 10**2000)
    with pytest.raises(Rejected):
        exact.exp_above(Fraction(10**9))


def test_softmax_weights_are_bounds() -> None:
    """Sampled scores within the stated bounds: every stated bound holds for the softmax they give."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        longest, selected = int(rng.integers(1, 6)), int(rng.integers(0, 6))
        selected = min(selected, longest)
        low, high = sorted(rng.normal(2, 3, size=2))
        other = low - rng.exponential(2)
        scores = np.concatenate([rng.uniform(low, high, selected), rng.uniform(other - 3, other, longest - selected)])
        power = np.exp(scores)
        a, top, u = Fraction(low), Fraction(high), Fraction(other)
        share = 1 / (1 + power.sum())
        least, most = share_bounds(a, top, u, selected, longest)
        assert float(least) * (1 - 1e-12) <= share <= float(most) * (1 + 1e-12)
        if selected:
            for sink in (0.0, 1.0):
                inside = power[:selected].sum()
                outside = 1 - inside / (power.sum() + sink)
                assert outside <= outside_weight(a, u, longest, bool(sink)) * (1 + 1e-12) + 1e-12
                uneven = np.abs(power[:selected] / inside - 1 / selected).sum()
                assert uneven <= unevenness(a, top) * 2 + 1e-12  # the sum counts both signs; diam halves it
        if selected:
            share = power[0] / power.sum()
            least, most = first_share_bounds(a, top, u, selected, longest)
            assert float(least) * (1 - 1e-12) <= share <= float(most) * (1 + 1e-12)
    assert capped_sum([(3, Fraction(0))]) == 1.0 and capped_sum([]) == 0.0


@given(SEEDS)
def test_neurons_stay_within_their_radius(seed: int) -> None:
    rng = np.random.default_rng(seed)
    center, radius = random_float32(rng, 5, 4), np.abs(random_float32(rng, 4)).astype(np.float64)
    point = exact.from_float32(center)
    width = exact.from_float32(np.abs(random_float32(rng, 4)))
    slack = rng.choice([0.0, 1.0], size=4) * rng.random(4) * np.array([float(width.number(i)) for i in range(4)])
    bounded = rng.random(4) < 0.5
    change = relu_radius(point, radius)
    post, clipped = Widths(bounded, width, slack).activation(point, radius)
    for place in np.ndindex(center.shape):
        c, r, d = point.number(place), Fraction(radius[place[1]]), width.number(place[1])
        for t in (-1, 1, 0, Fraction(1, 3), -c / r if 0 < abs(c) < r else 0, (d - c) / r if 0 < abs(d - c) < r else 0):
            x = c + t * r
            assert abs(max(x, 0) - max(c, 0)) <= Fraction(change[place])
            for off in (-1, 0, 1):
                true = min(max(x, 0), d + off * Fraction(slack[place[1]])) if bounded[place[1]] else max(x, 0)
                assert abs(true - post.number(place)) <= Fraction(clipped[place])


def test_ramps_are_found_exactly() -> None:
    weight_in = np.array([[1, 1, 2, 2, 2, 3]], dtype=np.float32)
    bias = np.array([5, 4, 1, 2, 0, 0], dtype=np.float32)
    out = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 1], [1, 1]], dtype=np.float32)
    nothing = Known(np.array([False]), exact.from_float32(np.zeros(1, dtype=np.float32)), np.zeros(1))
    units, widths = ramps(weight_in, bias, out, nothing)
    assert units.tolist() == [0, 2, 3, 5]  # 2, 3: biases ascend; 3, 4 are a ramp
    assert widths.bounded.tolist() == [True, False, True, False]
    assert widths.width.number(0) == 1 and widths.width.number(2) == 2
    x = np.linspace(-9, 9, 37)[:, None]
    direct = np.maximum(0, x @ weight_in + bias) @ out
    pre = exact.from_float32((x @ weight_in + bias)[:, units].astype(np.float32))
    post, radius = widths.activation(pre, np.zeros(4))
    assert np.array_equal(post.lower().round(6) @ out[units], direct.round(6)) and radius.max() < 1e-200


def test_ramps_whose_neurons_differ_at_a_known_coordinate() -> None:
    """The second coordinate is 3, give or take 1/4: what two neurons differ by there is a width of 3/2 +- 1/8."""
    weight_in = np.array([[1, 1, 1], [1, 0.5, 0.5]], dtype=np.float32)
    bias, out = np.zeros(3, dtype=np.float32), np.array([[1], [-1], [2]], dtype=np.float32)
    level = exact.from_float32(np.array([9, 3], dtype=np.float32))
    units, widths = ramps(weight_in, bias, out, Known(np.array([False, True]), level, np.array([0.5, 0.25])))
    assert units.tolist() == [0, 2] and widths.bounded.tolist() == [True, False]
    assert widths.width.number(0) == Fraction(3, 2) and 0.125 <= widths.slack[0] < 0.125 * (1 + 1e-9)
    for known in (
        Known(np.array([False, False]), level, np.zeros(2)),
        Known(np.array([False, True]), level, np.array([0, 4])),
    ):
        assert ramps(weight_in, bias, out, known)[0].tolist() == [0, 1, 2]  # not known; the width may be negative


# --- balls ---------------------------------------------------------------------------------------------------------


def test_this_machine_rounds_to_nearest() -> None:
    balls.check_arithmetic()


def test_ln2_is_split_well() -> None:
    saved, flint.ctx.prec = flint.ctx.prec, 300
    try:
        rest = flint.arb(2).log() - flint.arb(balls.HIGH) - flint.arb(balls.LOW)
        assert abs(rest) < flint.arb(2) ** -80
    finally:
        flint.ctx.prec = saved
    assert balls.HIGH * 2**32 == int(balls.HIGH * 2**32)


def test_exp_near() -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-700, 700, 3000), rng.uniform(-1, 1, 3000), np.arange(-20, 21) * np.log(2) / 2])
    saved, flint.ctx.prec = flint.ctx.prec, 200
    try:
        for got, at in zip(balls.exp_near(x).tolist(), x.tolist(), strict=True):
            true = flint.arb(at).exp()
            assert abs(flint.arb(got) - true) < true * flint.arb(balls.EXP_ERROR)
    finally:
        flint.ctx.prec = saved


@given(SEEDS)
def test_balls_contain_what_they_should(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mid, rad = rng.normal(size=(3, 5)), np.abs(rng.normal(size=(3, 5))) * 10.0 ** rng.integers(-20, 1)
    other, other_rad = rng.normal(size=(5, 2)), np.abs(rng.normal(size=(5, 2))) * 10.0 ** rng.integers(-20, 1)
    x = of_float(mid) + of_float(rng.choice([-1.0, 0.0, 1.0], size=rad.shape)) * of_float(rad)
    y = of_float(other) + of_float(rng.choice([-1.0, 0.0, 1.0], size=other_rad.shape)) * of_float(other_rad)
    a, b = balls.Ball(mid, rad), balls.Ball(other, other_rad)
    for ball, true in ((a @ b, x @ y), (a.relu(), np.maximum(x, Fraction(0))), (a + a, x + x)):
        low, high = of_float(ball.low()), of_float(ball.high())
        assert (low <= true).all() and (true <= high).all()


@given(SEEDS)
def test_softmax_contains_the_softmax(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    mid, rad = rng.normal(size=(n, n)) * 10.0 ** rng.integers(0, 4), np.full((n, n), 10.0 ** rng.integers(-16, 1))
    visible = np.tril(np.ones((n, n), dtype=np.bool_)) if rng.random() < 0.5 else np.ones((n, n), dtype=np.bool_)
    scores = mid + rng.choice([-1.0, 0.0, 1.0], size=rad.shape) * rad * (1 - 2.0**-20)
    with np.errstate(all="ignore"):
        got = balls.softmax(balls.Ball(mid, rad), visible)
    saved, flint.ctx.prec = flint.ctx.prec, 200
    try:
        for i in range(n):
            powers = [flint.arb(scores[i, j]).exp() if visible[i, j] else flint.arb(0) for j in range(n)]
            total = sum(powers, flint.arb(0))
            for j in range(n):
                share = powers[j] / total
                assert flint.arb(got.low()[i, j]) <= share <= flint.arb(got.high()[i, j])
                assert visible[i, j] or got.high()[i, j] < 1e-290
    finally:
        flint.ctx.prec = saved
