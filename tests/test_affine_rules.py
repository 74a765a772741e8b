"""Each rule of affine bounds against what it bounds, tried out: tolerance zero up to the rounding of the trial itself,
which is done in long double (64 bits of mantissa) where a bound can be met exactly."""

from __future__ import annotations

import itertools
from typing import Any

import flint
import numpy as np
import pytest
import torch

from certiformer.verifier import affine_attention, affine_circuit, affine_lines, affine_norm, affine_steps
from certiformer.verifier.affine_attention import Scores, Weights

from .smooth_cases import exactly

LONG = np.longdouble
SMOOTH = ("gelu", "gelu_new", "silu")


def scores(middle: torch.Tensor, radius: torch.Tensor) -> Scores:
    """Boxes [batch, i, head, j]; nothing linear about them."""
    none = torch.zeros(0)
    return Scores(middle, radius, none, none, none, none, none)


def softmax(s: Any) -> Any:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_failures(module: Any, seed: int) -> float:
    """By how much rows of one head are above sum_j A_j u_j at points of the box, for sure."""
    rng = np.random.default_rng(seed)
    n, rows = int(rng.integers(1, 6)), 3
    middle = rng.normal(scale=float(rng.choice([0.1, 1, 10, 1000])), size=n)
    radius = np.abs(rng.normal(scale=float(rng.choice([0, 1e-6, 0.1, 1, 5, 20, 1000])), size=n))
    value = rng.normal(scale=float(rng.choice([0.1, 1, 1000])), size=(rows, n))
    spread = np.abs(rng.normal(scale=float(rng.choice([0, 0.1, 1, 100])), size=(rows, n)))
    if rng.random() < 0.2:
        value, spread[:] = value.round(), 0.0
    if n > 1 and rng.random() < 0.3:
        middle[-1] = -np.inf
        radius[-1] = 0.0
    box = scores(torch.from_numpy(middle)[None, None, None], torch.from_numpy(radius)[None, None, None])
    weights = module.Weights.of(box)
    shape = (1, 1, rows, 1, n)
    tensors = torch.from_numpy(value).view(shape), torch.from_numpy(spread).view(shape)
    candidates = [module.best_rows(weights, *tensors, credit) for credit in (0.0, 0.4, 1.0)]
    if bool(weights.narrow.all()):
        candidates.append(module.first_order(weights, *tensors, 1.0)[0])
    candidates += [module.zeroth_order(weights, *tensors, a, 1.0)[0] for a in (weights.low, weights.centre)]
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    t = np.concatenate([signs, rng.uniform(-1, 1, (64, n)), np.zeros((1, n))]).astype(LONG) * radius
    w = rng.choice([-1.0, 1.0, 0.3], size=(len(t), rows, n)).astype(LONG) * spread
    pattern = softmax(np.where(np.isneginf(middle), -np.inf, middle + t))[:, None]
    u = value.astype(LONG) + w
    true = (pattern * u).sum(-1)
    size = 2.0**-58 * (np.abs(value) + spread).max() * n
    worst = 0.0
    for row in candidates:
        a, b, constant = (x.numpy().astype(LONG).reshape(rows, -1) for x in (row.a, row.b, row.constant))
        line = (a * u).sum(-1) + (b * t[:, None]).sum(-1) + constant[:, 0]
        slack = size + 2.0**-58 * ((np.abs(a * u)).sum(-1) + np.abs(b * t[:, None]).sum(-1))
        # the caller takes the rounding of sums of values off: 32 roundings of their magnitudes, 2^-42 each at least
        slack = slack + 32 * 2.0**-42 * (np.abs(value) + spread).max(-1)
        worst = max(worst, float((line - true - slack).max()))
    return worst


@pytest.mark.parametrize("start", range(0, 1200, 100))
def test_rows_of_attention_are_below_it(start: int) -> None:
    assert max(attention_failures(affine_attention, seed) for seed in range(start, start + 100)) <= 0


def test_the_chord_and_not_the_tangent_bounds_a_saturated_softmax() -> None:
    """y = 1000 softmax([x, 0])_0 - k x for x in [-1000, -12], from above: a known mistake of another library, whose
    tangent of log-sum-exp is off where the softmax is nearly constant, however small its range is."""
    x = torch.linspace(-1000.0, -12.0, 4001, dtype=torch.float64)
    for k in (0.0, 1e-6, 1e-3, 1.0):
        for low, high in ((-1000.0, -12.0), (-40.0, -12.0), (-13.0, -12.0)):
            middle = torch.tensor([(low + high) / 2, 0.0], dtype=torch.float64)[None, None, None]
            radius = torch.tensor([(high - low) / 2, 0.0], dtype=torch.float64)[None, None, None]
            weights = Weights.of(scores(middle, radius))
            value = torch.tensor([-1000.0, 0.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
            row = affine_attention.best_rows(weights, value, torch.zeros_like(value), 1.0)
            at = x[(x >= low) & (x <= high)]
            t = (at - middle[0, 0, 0, 0])[:, None] * torch.tensor([1.0, 0.0])
            upper = -((row.a * value).sum() + (row.b[0, 0, 0, 0] * t).sum(-1) + row.constant.sum()) - k * at
            y = 1000 * torch.sigmoid(at) - k * at
            assert bool((upper >= y).all()), (k, low, high)
            best = float(1000 * torch.sigmoid(torch.tensor(high, dtype=torch.float64)))
            assert float((upper + k * at).max()) <= best * 1.5 + 1e-9


def test_the_threshold_is_the_least_mean_over_the_box() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        n = int(rng.integers(1, 6))
        most = np.exp(rng.normal(scale=5, size=n))
        least = most * rng.choice([0.0, 1e-9, 0.3, 1.0], size=n)
        y = rng.normal(size=n).round(int(rng.integers(0, 4)))
        ends = np.array(list(itertools.product((0, 1), repeat=n)))
        weight = np.where(ends, most, least).astype(LONG)
        weight, ends = weight[weight.sum(-1) > 0], ends[weight.sum(-1) > 0]
        true = ((weight * y).sum(-1) / weight.sum(-1)).min()
        found = float(affine_attention.threshold(*(torch.from_numpy(x)[None] for x in (y, least, most))))
        assert found <= true
        assert found >= true - 1e-9 * (1 + np.abs(y).max())


def table_failures(module: Any, seed: int) -> tuple[float, float]:
    """By how much the level of `TableAttention` is above the least over all classes, and below it (one head)."""
    rng = np.random.default_rng(seed)
    heads, n, classes = int(rng.choice([1, 1, 2, 3])), int(rng.integers(1, 5)), int(rng.integers(1, 4))
    shape = (1, 1, heads, n, classes)
    highest = rng.normal(scale=float(rng.choice([1, 10, 600])), size=shape)
    highest -= highest.max((-1, -2), keepdims=True)
    most = np.exp(np.maximum(highest, -600.0))
    least = most * np.exp(-np.abs(rng.normal(scale=float(rng.choice([0, 0.1, 3, 50])), size=shape)))
    if rng.random() < 0.2:
        least = np.zeros_like(least)
    low = rng.normal(scale=float(rng.choice([1, 100])), size=(1, 1, 2, heads, n, classes))
    own = torch.zeros(1, n, dtype=torch.bool)
    none: Any = None
    step = module.TableAttention(
        none, none, none, torch.from_numpy(least), torch.from_numpy(most), own, classes, 2.0**-40
    )
    found = step._levels(torch.from_numpy(low))[0, 0].numpy()
    above = below = -np.inf
    for row in range(2):
        true = np.inf
        for word in itertools.product(range(classes), repeat=n):
            total = LONG(0)
            for head in range(heads):
                at = [(head, j, b) for j, b in enumerate(word)]
                y = np.array([low[0, 0, row][x] for x in at], dtype=LONG)
                lo, hi = (np.array([e[0, 0][x] for x in at], dtype=LONG) for e in (least, most))
                best = np.inf
                for ends in itertools.product((0, 1), repeat=n):
                    weight = np.where(ends, hi, lo)
                    if weight.sum() > 0:
                        best = min(best, (weight * y).sum() / weight.sum())
                total += best
            true = min(true, total)
        slack = 32 * 2.0**-42 * np.abs(low[0, 0, row]).max() * heads  # the caller takes it off
        above = max(above, float(found[row] - true - slack))
        below = max(below, float(true - found[row]) / float(np.abs(low).max()) if heads == 1 else 0.0)
    return above, below


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_levels_over_tables_are_below_every_word_and_exact_for_one_head(start: int) -> None:
    found = [table_failures(affine_steps, seed) for seed in range(start, start + 50)]
    assert max(x[0] for x in found) <= 0
    assert max(x[1] for x in found) <= 1e-6


def line_failures(module: Any, name: str) -> float:
    """By how much an activation leaves its lines, for sure, by 192-bit balls."""
    rng = np.random.default_rng(len(name))
    ends = np.sort(rng.normal(scale=rng.choice([0.01, 1.0, 5.0, 50.0], size=(60, 1)), size=(60, 2)), -1)
    ends = np.concatenate([ends, ends[:10, :1].repeat(2, 1), [[-1.0, 1.0], [0.0, 0.0], [-9.0, -8.0], [-1e6, 1e6]]])
    low, high = (torch.from_numpy(np.ascontiguousarray(x)) for x in ends.T)
    lines = module.lines(name, low, high)
    worst = -np.inf
    flint.ctx.prec = 192
    for k, (a, b) in enumerate(ends):
        for x in [a, b, *rng.uniform(a, b, 12), *(c for c in (0.0, -0.75, -1.28) if a <= c <= b)]:
            point = flint.arb(float(x))
            y = exactly(name, point) if name != "relu" else flint.arb(max(0.0, float(x)))
            below = flint.arb(float(lines.low_slope[k])) * point + flint.arb(float(lines.low_shift[k])) - y
            above = y - flint.arb(float(lines.high_slope[k])) * point - flint.arb(float(lines.high_shift[k]))
            for gap in (below, above):
                worst = max(worst, float(gap.lower()))
    return float(worst)


@pytest.mark.parametrize("name", ["relu", *SMOOTH])
def test_activations_lie_between_their_lines(name: str) -> None:
    assert line_failures(affine_lines, name) <= 0


@pytest.mark.parametrize("name", SMOOTH)
def test_the_curvature_constant_bounds_the_second_derivative(name: str) -> None:
    """On [-12, 12] by balls over short intervals; beyond, |f''| falls like e^-|x| (|x|^k) from below 0.01 there."""
    flint.ctx.prec = 128
    worst = 0.0
    step = 1 / 64
    for k in range(-768, 768):
        x = flint.arb((k + 0.5) * step, step / 2 * 1.01)
        series = exactly_series(name, flint.arb_series([x, 1], 3))
        worst = max(worst, abs(float((2 * series[2]).abs_upper())))
    assert worst <= affine_lines.CURVE


def exactly_series(name: str, x: Any) -> Any:
    """Taylor's series of an activation."""
    if name == "gelu":
        return x * (1 + (x / flint.arb(2).sqrt()).erf()) / 2
    if name == "silu":
        return x / (1 + (-x).exp())
    inner = (2 / flint.arb.pi()).sqrt() * (x + flint.arb(44715) / 10**6 * x * x * x)
    return x / (1 + (-2 * inner).exp())


def norm_failures(module: Any, seed: int) -> float:
    """By how much rows taken back through LayerNorm are above it, and values outside their box, for sure."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 6))
    x = rng.normal(scale=float(rng.choice([0.01, 1, 100])), size=d)
    radius = np.abs(rng.normal(size=d)) * float(rng.choice([0, 1e-6, 0.01, 0.3, 1, 10])) * np.abs(x).max()
    eps = float(rng.choice([1e-5, 0.1]))
    pick = np.eye(d) - 1 / d
    reach = (np.abs(pick) @ radius) * (1 + 1e-12) + 1e-12 * np.abs(x).max()
    move = rng.normal(size=d) * radius * float(rng.choice([0.0, 0.0, 0.5, 3.0]))  # a rough box of c, around another C
    centre, away = x - x.mean() + move, reach + np.abs(move)
    along = (centre @ (x - x.mean()), (np.abs(pick @ centre) @ radius) * (1 + 1e-12) + 1e-11 * np.square(x).max())
    size = np.abs(x) + radius

    def tensor(array: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(array, dtype=np.float64)).reshape(1, 1, -1)

    ends = tuple(
        torch.tensor([[float(end)]], dtype=torch.float64) for end in (along[0] - along[1], along[0] + along[1])
    )
    stream = tensor(x), tensor(radius * (1 + 1e-12) + 1e-13 * np.abs(x).max())
    norm = module.Norm.of((tensor(centre), tensor(away)), ends, stream, eps, tensor(size), 2.0**-42)
    g = rng.normal(size=(4, d))
    rows, constant = norm.back(torch.from_numpy(g)[None, None], float(rng.choice([0.0, 0.4, 1.0])))
    value = torch.from_numpy(g @ (centre / np.sqrt(np.square(centre).mean() + eps)))[None, None]
    deviation = norm.deviation(torch.from_numpy(g)[None, None], value)
    middle, spread = norm.box()
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=d)))
    t = np.concatenate([signs, rng.uniform(-1, 1, (200, d)), np.zeros((1, d))]).astype(LONG)
    points = x.astype(LONG) + t * radius
    c = points - points.mean(-1, keepdims=True)
    z = c / np.sqrt(np.square(c).mean(-1, keepdims=True) + LONG(eps))
    true = z @ g.T.astype(LONG)
    coefficients = rows[0, 0].numpy().astype(LONG)
    line = points @ coefficients.T + constant[0, 0].numpy()
    slack = LONG(2) ** -56 * ((np.abs(points) @ np.abs(coefficients).T) + np.abs(true) + np.abs(constant[0, 0].numpy()))
    worst = float((line - true - slack).max())
    outside = np.abs(true - value[0, 0].numpy()) - deviation[0, 0].numpy() - slack
    boxed = np.abs(z - middle[0, 0].numpy()) - spread[0, 0].numpy() - LONG(2) ** -58
    return max(worst, float(outside.max()), float(boxed.max()))


@pytest.mark.parametrize("start", range(0, 600, 100))
def test_rows_through_layernorm_are_below_it(start: int) -> None:
    assert max(norm_failures(affine_norm, seed) for seed in range(start, start + 100)) <= 0


def circuit_failures(module: Any, seed: int) -> float:
    """By how much scores vary more around the centre than is said, for sure."""
    rng = np.random.default_rng(seed)
    items, heads, d = int(rng.integers(1, 4)), int(rng.integers(1, 3)), int(rng.integers(2, 5))
    rank = int(rng.integers(1, d + 1))
    qk = torch.from_numpy(rng.normal(size=(heads, d, rank)) @ rng.normal(size=(heads, rank, d)))
    y = torch.from_numpy(rng.normal(size=(1, items, d)) * float(rng.choice([0.0, 1.0])))
    radius = torch.from_numpy(np.abs(rng.normal(size=(1, items, d))) * float(rng.choice([0.0, 1e-3, 1.0])))
    key = torch.from_numpy(rng.normal(size=(heads, d)) * float(rng.choice([0.0, 1.0])))
    left, sizes, right = torch.linalg.svd(qk)
    kept = int(rng.integers(1, rank + 1))
    left, right = (left * sizes[:, None])[..., :kept], right[:, :kept].transpose(1, 2)
    error = (qk - left @ right.transpose(1, 2)).abs() * (1 + 1e-9) + 1e-13
    ranges = [torch.einsum("bid,hde->bihe", radius, x.abs()) * (1 + 1e-12) for x in (left, right)]
    circuit = module.Circuit(qk, left, right, error, *ranges, 2.0**-42)
    read = affine_steps.Read(y, radius, y.abs() + radius)
    along = torch.einsum("hd,bjd->bjh", key, y), torch.einsum("hd,bjd->bjh", key.abs(), radius) * (1 + 1e-12)
    weight = torch.from_numpy(rng.dirichlet(np.ones(items), size=(1, items, heads)))
    rest, first = circuit.rest(read)[0].numpy(), circuit.first(read, weight, along, key)[0].numpy()
    mean = torch.einsum("bihj,bjd->bihd", weight, y)[0].numpy()
    worst = -np.inf
    centre, m, p = (x.numpy().astype(LONG) for x in (y[0], qk, key))
    for share in [*rng.choice([-1.0, 1.0], size=(60, items, d)), np.zeros((items, d))]:
        away = share.astype(LONG) * radius[0].numpy()
        second = np.einsum("id,hde,je->ihj", away, m, away)
        linear = np.einsum("id,hde,je->ihj", centre, m, away) + np.einsum("hd,jd->hj", p, away)
        linear = linear + np.einsum("id,hde,ihje->ihj", away, m, centre[None, None] - mean[:, :, None])
        worst = max(worst, float((np.abs(second) - rest).max()), float((np.abs(linear) - first).max()))
    return worst - 1e-17


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_scores_vary_at_most_as_singular_vectors_say(start: int) -> None:
    assert max(circuit_failures(affine_circuit, seed) for seed in range(start, start + 100)) <= 0
