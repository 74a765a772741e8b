"""Balls contain the exact real values: compared with 128-bit arithmetic, tolerance zero."""

from __future__ import annotations

import math
from fractions import Fraction

import flint
import pytest
import torch

from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.program import OPERATIONS
from certiformer.models.transformer import Transformer
from certiformer.verifier import balls
from certiformer.verifier.balls import Ball, Unsupported, enclose

from .smooth_cases import exactly

Row = list[flint.arb]


@pytest.fixture(autouse=True)
def _precision() -> None:
    flint.ctx.prec = 128


def contains(ball: Ball, index: tuple[int, ...], value: flint.arb) -> bool:
    return bool(flint.arb(float(ball.mid[index]), float(ball.rad[index])).contains(value))


def random_model(seed: int, **options: object) -> Transformer:
    layers = (LayerConfig(2, 3, 5), LayerConfig(1, 4, 0), LayerConfig(0, 0, 6))
    config = TransformerConfig(6, 5, 4, 3, layers, **options)  # type: ignore[arg-type]
    model = Transformer.initialised(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def projected(scores: list[flint.arb]) -> list[flint.arb]:
    """Onto the simplex, by trying how many scores are above the threshold."""
    ordered = sorted(scores, key=lambda x: float(x.mid()), reverse=True)
    for count in range(len(scores), 0, -1):
        threshold = (sum(ordered[:count], flint.arb(0)) - 1) / count
        if ordered[count - 1] > threshold:
            break
    return [(x - threshold).max(flint.arb(0)) for x in scores]


def exact_logits(model: Transformer, tokens: list[int]) -> list[Row]:
    """The model once more, from the definition of the real semantics, in 128-bit ball arithmetic."""
    config = model.config

    def parameter(name: str) -> list:  # type: ignore[type-arg]
        return model.parameter(name).tolist()  # type: ignore[no-any-return]

    def affine(x: Row, weight: list[list[float]], bias: list[float]) -> Row:
        return [sum((x[i] * flint.arb(weight[i][o]) for i in range(len(x))), flint.arb(b)) for o, b in enumerate(bias)]

    def norm(x: Row, name: str) -> Row:
        if config.layer_norm is None:
            return x
        mean = sum(x, flint.arb(0)) / len(x)
        root = (sum(((t - mean) * (t - mean) for t in x), flint.arb(0)) / len(x) + flint.arb(config.layer_norm)).sqrt()
        w, b = parameter(f"{name}.w"), parameter(f"{name}.b")
        return [(t - mean) / root * flint.arb(w[j]) + flint.arb(b[j]) for j, t in enumerate(x)]

    def active(x: flint.arb) -> flint.arb:
        if config.activation == "leaky_relu":
            return x if x >= 0 else x / 100 if x < 0 else x.max(x / 100)
        return x.max(flint.arb(0)) if config.activation == "relu" else exactly(config.activation, x)

    stream = [[flint.arb(e) for e in parameter("embed.W_E")[t]] for t in tokens]
    if config.positional == "learned":
        places = parameter("pos_embed.W_pos")
        stream = [[e + flint.arb(p) for e, p in zip(x, places[i], strict=True)] for i, x in enumerate(stream)]
    for index, layer in enumerate(config.layers):
        if layer.n_heads:
            attn = f"blocks.{index}.attn"
            w = {name: parameter(f"{attn}.{name}") for name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "W_O", "b_O")}
            scale = 1 / flint.arb(layer.d_head).sqrt()
            if config.attention_scale != "1/sqrt(d_head)":
                scale = flint.arb(config.attention_scale)
            written = [[flint.arb(b) for b in w["b_O"]] for _ in tokens]
            for h in range(layer.n_heads):
                read = [norm(x, f"blocks.{index}.ln1") for x in stream]
                q, k, v = ([affine(x, w[f"W_{c}"][h], w[f"b_{c}"][h]) for x in read] for c in "QKV")
                for i in range(len(tokens)):
                    seen = range(i + 1 if config.causal else len(tokens))
                    scores = [scale * sum((a * b for a, b in zip(q[i], k[j], strict=True)), flint.arb(0)) for j in seen]
                    weights = [x.exp() for x in scores]
                    if config.attention == "sparsemax":
                        weights = projected(scores)
                    z = [
                        sum((weights[j] * v[j][e] for j in seen), flint.arb(0)) / sum(weights, flint.arb(0))
                        for e in range(layer.d_head)
                    ]
                    written[i] = [
                        a + b for a, b in zip(written[i], affine(z, w["W_O"][h], [0.0] * config.d_model), strict=True)
                    ]
            stream = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(stream, written, strict=True)]
        if layer.d_mlp:
            mlp = f"blocks.{index}.mlp"
            for i, x in enumerate(stream):
                pre = affine(norm(x, f"blocks.{index}.ln2"), parameter(f"{mlp}.W_in"), parameter(f"{mlp}.b_in"))
                post = [active(p) for p in pre]
                out = affine(post, parameter(f"{mlp}.W_out"), parameter(f"{mlp}.b_out"))
                stream[i] = [a + b for a, b in zip(x, out, strict=True)]
    stream = [norm(x, "ln_final") for x in stream]
    if config.readout == "last":
        stream = stream[-1:]
    if config.readout == "mean":
        stream = [[sum(column, flint.arb(0)) / len(stream) for column in zip(*stream, strict=True)]]
    if config.d_readout:
        hidden = [affine(x, parameter("readout.W_in"), parameter("readout.b_in")) for x in stream]
        stream = [[active(value) for value in x] for x in hidden]
    return [affine(x, parameter("unembed.W_U"), parameter("unembed.b_U")) for x in stream]


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"attention_scale": 7.25}, {"attention_scale": 40.0, "causal": True}]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_forward_pass_contains_the_exact_logits(seed: int, options: dict[str, object]) -> None:
    model = random_model(seed, **options)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, (3, 5), generator=generator)
    logits = enclose(model, tokens)["logits"]
    for row in range(3):
        for i, values in enumerate(exact_logits(model, tokens[row].tolist())):
            assert all(contains(logits, (row, i, o), value) for o, value in enumerate(values))
    assert float(logits.rad.max()) < 1e-6, "and they are tight"


def spread(n: int, low: float, high: float, seed: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_exp_contains_both_ends() -> None:
    mid = torch.cat(
        [spread(400, -705, 700, 0), spread(200, -1, 1, 1), torch.tensor([0.0, -0.0, 1e-320, 700.0, -700.0])]
    )
    mid = mid.to(torch.float64)
    rad = torch.where(torch.arange(len(mid)) % 3 == 0, 0.0, spread(len(mid), 0, 1, 2))
    ball = balls.exp(Ball(mid, rad))
    for i in range(len(mid)):
        m, r = flint.arb(float(mid[i])), flint.arb(float(rad[i]))
        assert contains(ball, (i,), (m - r).exp()) and contains(ball, (i,), (m + r).exp())


def test_the_rounding_error_of_exp_is_within_its_bound() -> None:
    x = spread(2000, -700, 700, 3)
    y = balls._exp_point(x)
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        e = flint.arb(a).exp()
        assert abs(flint.arb(b) - e) < e * flint.arb(2) ** -46


@pytest.mark.parametrize("size", [1.0, 1e-160, 1e-300, 1e150])
def test_field_operations_contain_corners(size: float) -> None:
    def ball(seed: int, low: float) -> Ball:
        return Ball(size * spread(200, low, 3, seed), size * 0.2 * spread(200, 0, 1, seed + 1))

    a, b = ball(4, -3), ball(6, 0.5)
    results = {"+": balls.add(a, b), "*": balls.multiply(a, b), "/": balls.divide(a, b)}
    for i in range(200):
        for s in (-1, 1):
            for t in (-1, 1):
                x = Fraction(float(a.mid[i])) + s * Fraction(float(a.rad[i]))
                y = Fraction(float(b.mid[i])) + t * Fraction(float(b.rad[i]))
                for name, value in (("+", x + y), ("*", x * y), ("/", x / y)):
                    got = results[name]
                    low, high = Fraction(float(got.low()[i])), Fraction(float(got.high()[i]))
                    assert low <= value <= high, (name, size)


@pytest.mark.parametrize("size", [1.0, 1e-160, 1e-310])
def test_matmul_contains_corners(size: float) -> None:
    generator = torch.Generator().manual_seed(1)

    def ball(*shape: int) -> Ball:
        mid = size * torch.randn(shape, dtype=torch.float64, generator=generator)
        return Ball(mid, size * 1e-9 * torch.rand(shape, dtype=torch.float64, generator=generator))

    a, b = ball(5, 40), ball(40, 3)
    product = balls.matmul(a, b)
    for i in range(5):
        for o in range(3):
            for sign in (-1, 1):
                value = Fraction(0)
                for k in range(40):
                    x, y = Fraction(float(a.mid[i, k])), Fraction(float(b.mid[k, o]))
                    r, s = Fraction(float(a.rad[i, k])), Fraction(float(b.rad[k, o]))
                    corners = [(x + p * r) * (y + q * s) for p in (-1, 1) for q in (-1, 1)]
                    value += max(corners) if sign > 0 else min(corners)
                assert Fraction(float(product.low()[i, o])) <= value <= Fraction(float(product.high()[i, o]))


def test_masked_and_saturated_softmax() -> None:
    scores = torch.tensor([[0.0, -math.inf, -800.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    share = balls.softmax(Ball(scores, torch.zeros_like(scores)))
    assert share.mid[0, 1] == 0 and share.rad[0, 1] == 0
    assert contains(share, (0, 2), flint.arb(-800).exp() / (1 + flint.arb(-800).exp()))
    assert contains(share, (0, 0), 1 / (1 + flint.arb(-800).exp()))
    assert all(contains(share, (1, j), flint.arb(1) / 3) for j in range(3))


@pytest.mark.parametrize("seed", range(8))
def test_shares_of_scores_known_roughly_or_well(seed: int) -> None:
    """Scores drawn from their balls, radii from 0 to 100: the shares lie in the balls, and these are finite."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=draw)

    for radius in (0.0, 1e-9, 0.2, 0.26, 1.0, 5.0, 100.0):
        for spread in (0.1, 10.0, 2000.0):
            mid, rad = (uniform(6, 5) - 0.5) * spread, uniform(6, 5) * radius
            mid[0, 1:3] = -math.inf
            rad[0, 1:3] = 0.0
            share = balls.softmax(Ball(mid, rad))
            assert torch.isfinite(share.mid).all() and torch.isfinite(share.rad).all()
            for _ in range(4):
                at = (uniform(6, 5) - 0.5).sign() * rad
                for row in range(6):
                    pairs = zip(mid[row].tolist(), at[row].tolist(), strict=True)
                    terms = [(flint.arb(m) + flint.arb(t)).exp() if m > -math.inf else flint.arb(0) for m, t in pairs]
                    whole = sum(terms, flint.arb(0))
                    for j, term in enumerate(terms):
                        apart = abs(term / whole - flint.arb(float(share.mid[row, j])))
                        assert not apart > flint.arb(float(share.rad[row, j]))


def test_one_rough_row_leaves_the_others_precise() -> None:
    scores, rough = torch.zeros(2, 4, dtype=torch.float64), torch.tensor([[0.0], [math.inf]], dtype=torch.float64)
    share = balls.softmax(Ball(scores, rough.expand(2, 4).clone()))
    assert bool((share.rad[0] < 1e-12).all()) and contains(share, (0, 0), flint.arb(1) / 4)
    assert all(contains(share, (1, j), flint.arb(x)) for j in range(4) for x in (0, 1))


def test_every_operation_has_a_rule() -> None:
    assert set(balls.RULES) == set(OPERATIONS)


def test_unknown_magnitudes_are_refused_not_guessed() -> None:
    with pytest.raises(Unsupported, match="scores"):
        balls.exp(Ball(torch.tensor([0.0]), torch.tensor([2.0])))
    model = random_model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3e38)
    with pytest.raises(Unsupported):
        enclose(model, torch.zeros(1, 3, dtype=torch.int64))
