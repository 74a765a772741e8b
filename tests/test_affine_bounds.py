"""Affine bounds of whole models: every word, and points of every kind in balls, lie inside. Tolerance zero.

References are balls (see `affine_cases`): a bound fails when it excludes a whole ball.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import certiformer as cf
from certiformer.models import InputError, LayerConfig, Transformer, TransformerConfig, zoo
from certiformer.models.config import ActivationName
from certiformer.verifier import affine_bounds
from certiformer.verifier.affine_bounds import output_bounds
from certiformer.verifier.affine_regions import EmbeddingBall, TokenSets
from certiformer.verifier.balls import enclose

from .affine_cases import (
    ACTIVATIONS,
    HAND_MADE,
    broken,
    failure,
    hand_made_failure,
    heads_apart,
    plain,
    random_ball,
    random_model,
    random_sets,
    random_weights,
    truth,
)


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("start", range(0, 100, 20))
def test_random_models_stay_within_their_bounds(start: int, kind: int) -> None:
    assert max(failure(output_bounds, seed, kind) for seed in range(start, start + 20)) == 0


def test_scores_read_through_singular_vectors_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for many classes, where rows for each pair would not fit into memory."""
    monkeypatch.setattr(affine_bounds, "TABLES", 0)
    assert max(failure(output_bounds, seed, 0) for seed in range(100)) == 0
    assert max(failure(output_bounds, seed, 0, layers=(LayerConfig(1, 2, 0),) * 2) for seed in range(40)) == 0


CHOICES = {
    "activation": ACTIVATIONS,
    "causal": (False, True),
    "layer_norm": (None, 1e-5),
    "readout": ("each", "last", "mean"),
    "layers": tuple(
        (LayerConfig(heads, 2 if heads else 0, neurons),) * depth
        for depth, heads, neurons in ((0, 1, 0), (1, 1, 0), (1, 4, 3), (1, 0, 4), (2, 1, 0), (2, 2, 3))
    ),
}


@pytest.mark.parametrize("part, choice", [(part, choice) for part, some in CHOICES.items() for choice in some])
def test_each_choice_of_configuration(part: str, choice: Any) -> None:
    for seed in range(3):
        for kind in (0, 2):
            assert failure(output_bounds, 5000 + seed, kind, **{part: choice}) == 0


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_models_stay_within_their_bounds_at_every_corner(name: str) -> None:
    assert hand_made_failure(output_bounds, name) == 0


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
def test_heads_may_attend_to_different_positions(activation: ActivationName) -> None:
    """Found by review: the stream's magnitude was that of all heads at one position, and bounds were clipped to it."""
    model = heads_apart(activation)
    with torch.no_grad():
        value = float(copy.deepcopy(model).double()(torch.tensor([[0, 1]])))
    for found in (
        *(output_bounds(model, EmbeddingBall((0, 1), eps)) for eps in (1e-6, 0.01)),
        output_bounds(model, TokenSets([[0, 1], [0, 1]]), leaves=1),
        output_bounds(model, TokenSets([[0], [1]]), leaves=1),
    ):
        low, high = float(found.low), float(found.high)
        assert low <= value + 1e-12 and value - 1e-12 <= high  # `value` is rounded; in balls: `heads_apart_failure`


@pytest.mark.parametrize("size", [1e-60, 1e-70, 1e-200])
def test_tiny_directions_do_not_underflow(size: float) -> None:
    """Found by review: values times the least weights were 0, and the bound had the wrong sign."""
    config = TransformerConfig(4, 2, 2, 1, (LayerConfig(1, 1, 0),), positional="none", attention_scale=1.0,
                               readout="last")  # fmt: skip
    weights = {name: torch.zeros_like(parameter) for name, parameter in Transformer(config).named_parameters()}
    weights["embed.W_E"][:] = torch.tensor([[1.0, 10.0, 0.0, 0.0], [-1.0, -10.0, 0.0, 0.0]])
    weights["blocks.0.attn.b_Q"][0, 0] = 500.0
    weights["blocks.0.attn.W_K"][0, 0, 0] = weights["blocks.0.attn.W_V"][0, 1, 0] = 1.0
    weights["blocks.0.attn.W_O"][0, 0, 2] = weights["unembed.W_U"][2, 0] = 1.0
    model, direction = Transformer.from_parameters(config, weights), torch.tensor([[size]], dtype=torch.float64)
    words = output_bounds(model, TokenSets([[0, 1], [0, 1]]), direction, leaves=1)
    assert float(words.low) <= -9.9 * size and float(words.high) >= 9.9 * size  # 10 and -10, at (0, 0) and (1, 1)
    assert float(output_bounds(model, EmbeddingBall((1, 0), 2.0), direction).low) <= -13.9 * size


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2]))
def test_generated_shapes_stay_within_their_bounds(seed: int, kind: int) -> None:
    assert failure(output_bounds, seed, kind) == 0


@pytest.mark.parametrize(
    "name", ["max-of-4", "dyck-1-16-layernorm-gelu", "dyck-1-16", "induction-12", "bracket-type-12"]
)
def test_trained_models_stay_within_their_bounds(name: str) -> None:
    model = zoo.load(name).model
    rng = np.random.default_rng(0)
    vocab, n = model.config.d_vocab, min(4, model.config.n_ctx)
    for kind in range(3):
        word = rng.integers(vocab, size=n).tolist()
        sets = [rng.permutation(vocab)[:3].tolist() for _ in range(n)]
        region = EmbeddingBall(word, 0.02) if kind == 2 else TokenSets(sets if kind else [[t] for t in word])
        assert broken(output_bounds(model, region, leaves=4), truth(model, region, 8)) == 0


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("norm", [None, 1e-5])
def test_saturated_attention_is_finite_and_sound(layers: int, norm: float | None) -> None:
    """Scores of both signs beyond 1000, where exponentials and their differences overflow or vanish."""
    block = LayerConfig(2, 3, 4)
    config = TransformerConfig(6, 3, 4, 3, (block,) * layers, layer_norm=norm, readout="each")
    model = random_weights(config, 3, 1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("W_Q", "W_K")):
                parameter.mul_(60.0)
    words = torch.randint(4, (64, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, cache = model.run_with_cache(words, "blocks.0.attn.hook_attn_scores")
    assert float(cache["blocks.0.attn.hook_attn_scores"].abs().max()) > 1000
    for leaves in (1, 64):
        region = TokenSets([[0, 1, 2, 3]] * 3)
        assert broken(output_bounds(model, region, leaves=leaves), truth(model, region)) == 0
    for eps in (1e-4, 0.01, 1.0, 100.0):
        ball = EmbeddingBall((3, 1, 2), eps)
        assert broken(output_bounds(model, ball), truth(model, ball)) == 0


def test_huge_weights_are_finite_and_sound_or_refused() -> None:
    config = TransformerConfig(4, 2, 3, 2, (LayerConfig(1, 2, 2),) * 2, readout="last")
    for scale in (1e3, 1e6, 1e12):
        model = random_weights(config, 1, scale)
        found = output_bounds(model, TokenSets([[0, 1, 2]] * 2), leaves=1)
        assert bool(torch.isfinite(found.low).all() and torch.isfinite(found.high).all())
        assert bool((found.low <= found.high).all())
    for regions in (TokenSets([[0, 1, 2]] * 2), EmbeddingBall([0, 1], 0.1)):
        with pytest.raises(InputError, match="scale them down"):
            output_bounds(random_weights(TransformerConfig(4, 2, 3, 2, (LayerConfig(1, 2, 2),) * 4), 1, 1e17), regions)
    with pytest.raises(InputError, match="scale it down"):
        output_bounds(random_weights(config, 1, 1e30), TokenSets([[0], [1]]))


@pytest.mark.parametrize("seed", range(40))
def test_a_single_word_is_bounded_nearly_exactly(seed: int) -> None:
    model = random_weights(random_model(seed).config, seed, 0.7)
    rng = np.random.default_rng(seed)
    word = rng.integers(3, size=3).tolist()
    for region in (TokenSets([t] for t in word), EmbeddingBall(word, 0.0)):
        found, values = output_bounds(model, region), enclose(model, torch.tensor([word]))["logits"]
        assert broken(found, values) == 0
        assert float((found.high - found.low).max()) <= 1e-6 * (1 + float(values.mid.abs().max()))


def test_bounds_of_small_balls_are_of_first_order() -> None:
    """As the radius falls, the width comes close to that of the linear function with the logits' gradients."""
    for seed in (0, 1, 2, 4):
        model = random_weights(
            TransformerConfig(6, 3, 3, 2, (LayerConfig(2, 3, 4),) * 2, "gelu", layer_norm=0.1), seed, 0.5
        )
        centre = (model.parameter("embed.W_E")[[0, 1, 2]] + model.parameter("pos_embed.W_pos")).detach().double()
        x = centre[None].requires_grad_(True)
        y = plain(model, x)
        eps = 1e-5
        slopes = [torch.autograd.grad(v, x, retain_graph=True)[0].abs().sum() for v in y.flatten()]
        linear = 2 * eps * torch.stack(slopes).view(y.shape[1:])
        found = output_bounds(model, EmbeddingBall((0, 1, 2), eps))
        assert bool(((found.high - found.low) <= 1.02 * linear + 1e-8).all())


def test_one_layer_one_head_without_mlp_is_exact_for_each_token_at_the_position() -> None:
    """The exact root of the sign test, for every logit (all positions free)."""
    for seed in range(10):
        config = TransformerConfig(4, 3, 3, 2, (LayerConfig(1, 3, 0),), readout="each")
        model, region = random_weights(config, seed, 1.0), TokenSets([[0, 1, 2]] * 3)
        values = truth(model, region)
        found = output_bounds(model, region, leaves=1)
        width = float((values.mid.amax(0) - values.mid.amin(0)).max())
        assert float((values.mid.amin(0) - found.low).max()) <= 1e-6 * width
        assert float((found.high - values.mid.amax(0)).max()) <= 1e-6 * width


def test_batches_and_chunks_give_what_single_regions_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the order of summation in matrix products, which may also tip the choice between slopes."""
    for seed in range(5):
        model, rng = random_model(seed), np.random.default_rng(seed)
        regions = [random_sets(rng, 3, 3) if k % 2 else random_ball(rng, 3, 3) for k in range(6)]
        together = output_bounds(model, regions, leaves=4)
        alone = [output_bounds(model, region, leaves=4) for region in regions]
        with monkeypatch.context() as patch:
            patch.setattr(affine_bounds, "ENTRIES", 1000)
            chunked = output_bounds(model, regions, leaves=4)
        for k, single in enumerate(alone):
            for other in (together, chunked):
                for one, many in ((single.low, other.low[k]), (single.high, other.high[k])):
                    size = 1 + float(one.abs().max())
                    assert float((one - many).abs().max()) <= 1e-5 * size


def test_directions_bound_linear_functions_of_the_logits() -> None:
    for seed in range(20):
        model, rng = random_model(seed, d_vocab_out=3), np.random.default_rng(seed)
        directions = torch.tensor([[1.0, -1.0, 0.0], [0.3, 0.3, -2.0]])
        for region in (random_sets(rng, 3, 3), random_ball(rng, 3, 3)):
            found, values = output_bounds(model, region, directions, leaves=1), truth(model, region)
            exact = values.mid @ directions.double().T
            slack = (values.rad @ directions.double().abs().T) + 2.0**-48 * (1 + values.mid.abs().amax())
            assert bool((found.low <= exact + slack).all()) and bool((found.high >= exact - slack).all())


def test_public_names() -> None:
    assert cf.output_bounds is output_bounds
    assert cf.TokenSets is TokenSets
    assert cf.EmbeddingBall is EmbeddingBall


MODEL = random_weights(TransformerConfig(4, 3, 3, 2, (LayerConfig(1, 2, 0),)), 0, 1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TokenSets([]), "no positions"),
        (lambda: TokenSets([[0], []]), "no token is allowed at position 1"),
        (lambda: TokenSets([0, 1]), "sets must be an iterable of sets"),
        (lambda: TokenSets([["a"]]), "token id must be an integer, got 'a'"),
        (lambda: TokenSets([[True]]), "token id must be an integer, got True"),
        (lambda: EmbeddingBall([], 0.1), "tokens is empty"),
        (lambda: EmbeddingBall([0], -1.0), "eps, the ball's radius, .* got -1.0"),
        (lambda: EmbeddingBall([0], 10**400), "eps, the ball's radius, .* got 1000"),
        (lambda: EmbeddingBall([0], float("nan")), "finite number"),
        (lambda: EmbeddingBall(3, 0.1), "tokens must be an iterable"),  # type: ignore[arg-type]
        (lambda: output_bounds(MODEL, []), "no regions"),
        (lambda: output_bounds(MODEL, [3]), "a region is a TokenSets or an EmbeddingBall, got 3"),  # type: ignore[list-item]
        (lambda: output_bounds(MODEL, TokenSets([[3]])), "0 to 2, got 3"),
        (lambda: output_bounds(MODEL, EmbeddingBall([-1], 0.1)), "0 to 2, got -1"),
        (lambda: output_bounds(MODEL, TokenSets([[0]] * 4)), "n_ctx = 3"),
        (lambda: output_bounds(MODEL, [TokenSets([[0]]), EmbeddingBall([0, 1], 0.1)]), "one length, got \\[1, 2\\]"),
        (lambda: output_bounds(MODEL, TokenSets([[0]]), torch.ones(2)), "d_vocab_out = 2"),
        (lambda: output_bounds(MODEL, TokenSets([[0]]), torch.ones(1, 2) / 0), "finite floating-point"),
        (lambda: output_bounds(MODEL, TokenSets([[0]]), leaves=0), "leaves must be .* got 0"),
        (lambda: output_bounds(None, TokenSets([[0]])), "a Transformer, got None"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_weights_that_are_not_finite_are_named() -> None:
    model = random_weights(MODEL.config, 0, 1.0)
    with torch.no_grad():
        model.parameter("unembed.W_U")[0, 0] = torch.nan
    with pytest.raises(InputError, match="unembed.W_U contains NaN"):
        output_bounds(model, TokenSets([[0]]))
