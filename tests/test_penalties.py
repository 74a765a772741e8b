"""Penalties: their values and gradients against direct computation, what they do to a model, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from certiformer.models import (
    InputError,
    LayerConfig,
    Recipe,
    Task,
    Trained,
    Transformer,
    TransformerConfig,
    card_of,
    get_task,
    load_trained,
    measure,
    train,
    zoo,
)
from certiformer.models.penalties import PENALTIES, mean_entropy, mean_magnitude, mean_score_variance, sites_of
from certiformer.models.training import loss_of

CPU = torch.device("cpu")
BOTH, NO_NEURONS, NO_HEADS, NEITHER = (
    LayerConfig(2, 4, 6),
    LayerConfig(2, 4, 0),
    LayerConfig(0, 0, 6),
    LayerConfig(0, 0, 0),
)
SHAPES = {
    "both": (BOTH, BOTH),
    "attention only": (NO_NEURONS,),
    "neurons only": (NO_HEADS,),
    "mixed": (NO_NEURONS, NO_HEADS, NEITHER),
    "no layers": (),
}


def config_for(task: Task, layers: tuple[LayerConfig, ...] = (BOTH, BOTH), **settings: Any) -> TransformerConfig:
    return TransformerConfig(
        8, task.max_len, len(task.vocab), len(task.outputs), layers, readout=task.readout, **settings
    )


def words_of(task: Task, number: int = 9) -> np.ndarray[Any, np.dtype[np.int64]]:
    (ids,) = task.draw(np.random.default_rng(0), number)
    return ids


def directly(name: str, model: Transformer, tokens: Tensor) -> float:
    """A penalty in plain Python: over words, heads, queries and the keys each sees, one at a time."""
    _, cache = model.run_with_cache(tokens)
    total = 0.0
    for index, layer in enumerate(model.config.layers):
        block = f"blocks.{index}"
        if name == "sparsity":
            sites = [f"{block}.hook_attn_out"] * (layer.n_heads > 0) + [f"{block}.mlp.hook_post"] * (layer.d_mlp > 0)
            for site in sites:
                norms = [sum(map(abs, vector)) for word in cache[site].tolist() for vector in word]
                total += sum(norms) / len(norms)
        elif layer.n_heads:
            found = []
            for word in cache[f"{block}.attn.hook_attn_scores"].tolist():
                for head in word:
                    for query, row in enumerate(head):
                        seen = row[: query + 1] if model.config.causal else row
                        found.append(entropy(seen) if name == "entropy" else float(np.var(seen)))
            total += sum(found) / len(found)
    return total


def entropy(scores: list[float]) -> float:
    total = sum(math.exp(score) for score in scores)
    return -sum(math.exp(score) / total * math.log(math.exp(score) / total) for score in scores)


class TestValues:
    @pytest.mark.parametrize("name", PENALTIES)
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_loss_is_cross_entropy_plus_penalty(self, name: str, causal: bool, shape: str) -> None:
        task = get_task("max-of-4", vocab=5)
        model, ids = Transformer.initialised(config_for(task, SHAPES[shape], causal=causal), 3), words_of(task)
        with torch.no_grad():
            plain, penalised = (float(loss_of(model, task, ids, CPU, {name: c})) for c in (0.0, 0.5))
            wanted = directly(name, model, torch.from_numpy(ids))
        assert penalised - plain == pytest.approx(0.5 * wanted, rel=1e-5, abs=1e-12)
        has_heads, has_neurons = (any(getattr(x, p) for x in SHAPES[shape]) for p in ("n_heads", "d_mlp"))
        assert (wanted > 0) == (has_heads or (name == "sparsity" and has_neurons))

    def test_several_add_up(self) -> None:
        task = get_task("max-of-4", vocab=5)
        model, ids = Transformer.initialised(config_for(task), 3), words_of(task)
        coefficients = {"entropy": 0.5, "score_variance": 2.0, "sparsity": 0.25}
        with torch.no_grad():
            added = loss_of(model, task, ids, CPU, coefficients) - loss_of(model, task, ids, CPU)
            wanted = sum(c * directly(name, model, torch.from_numpy(ids)) for name, c in coefficients.items())
        assert float(added) == pytest.approx(wanted, rel=1e-5)

    def test_known_values(self) -> None:
        """Uniform over the two keys that are seen: entropy log 2; scores 1 and 3: variance 1; one key: 0 and 0."""
        row = torch.tensor([7.0, 7.0, -math.inf])
        assert float(mean_entropy(row.view(1, 1, 1, 3))) == pytest.approx(math.log(2))
        assert float(mean_score_variance(row.view(1, 1, 1, 3))) == 0
        assert float(mean_score_variance(torch.tensor([1.0, 3.0, -math.inf]).view(1, 1, 1, 3))) == 1
        alone = torch.tensor([5.0, -math.inf]).view(1, 1, 1, 2)
        assert (float(mean_entropy(alone)), float(mean_score_variance(alone))) == (0, 0)
        assert float(mean_magnitude(torch.tensor([[[1.0, -2.0], [0.0, 5.0]]]))) == 4


class TestGradients:
    @pytest.mark.parametrize("name", PENALTIES)
    @pytest.mark.parametrize("causal", [False, True])
    def test_against_differences(self, name: str, causal: bool) -> None:
        task = get_task("max-of-4", vocab=5)
        model, ids = Transformer.initialised(config_for(task, causal=causal), 1).double(), words_of(task)
        coefficients = {name: 0.7}
        loss_of(model, task, ids, CPU, coefficients).backward()  # type: ignore[no-untyped-call]
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            assert parameter.grad is not None
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            losses = []
            for side in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter += side * direction
                    losses.append(float(loss_of(model, task, ids, CPU, coefficients)))
                    parameter -= side * direction
            slope = (losses[0] - losses[1]) / 2e-6
            assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-4, abs=1e-7)

    @pytest.mark.parametrize("term", [mean_entropy, mean_score_variance])
    def test_finite_where_weights_vanish(self, term: Any) -> None:
        """Scores so far apart that weights are 0 in float32, keys that are not seen, equal scores."""
        rows = [[0.0, 1000.0, -1000.0], [200.0, -200.0, -math.inf], [3.0, -math.inf, -math.inf], [0.0, 0.0, 0.0]]
        scores = torch.tensor(rows).view(1, 1, 4, 3).requires_grad_()
        value = term(scores)
        (gradient,) = torch.autograd.grad(value, scores)
        assert bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
        assert not gradient[torch.isneginf(scores)].any()


class TestTraining:
    @pytest.mark.parametrize("name", PENALTIES)
    @pytest.mark.parametrize(("family", "causal"), [("max-of-4", False), ("dyck-1-4", True)])
    def test_each_lowers_what_it_penalises(self, name: str, family: str, causal: bool) -> None:
        task = get_task(family)
        config, recipe = config_for(task, causal=causal), Recipe(steps=60, batch=32, lr=5e-3)
        tokens = torch.from_numpy(words_of(task, 50))
        plain, made = (train(task, config, replace(recipe, **{name: c})).model for c in (0.0, 1.0))
        with torch.no_grad():
            assert directly(name, made, tokens) < 0.7 * directly(name, plain, tokens)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_shape_trains(self, shape: str) -> None:
        """What a model lacks adds nothing; all that it has stays finite, also with strong penalties."""
        task = get_task("max-of-4", vocab=5)
        recipe = Recipe(steps=20, batch=16, lr=1e-2, entropy=10.0, score_variance=10.0, sparsity=10.0)
        made = train(task, config_for(task, SHAPES[shape]), recipe)
        made.model.require_float32()
        assert made.loss is not None and math.isfinite(made.loss)
        plain = train(task, config_for(task, SHAPES[shape]), Recipe(steps=20, batch=16, lr=1e-2))
        same = made.model.weights_sha256() == plain.model.weights_sha256()
        assert same == (not sites_of(made.model.program, recipe.coefficients))

    def test_a_batch_in_pieces_has_the_same_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However a batch is cut up, the penalised loss is a mean over its words."""
        task = get_task("max-of-4", vocab=5)
        recipe = Recipe(steps=2, batch=16, biases=False, score_variance=1.0, sparsity=0.1)
        whole, run = train(task, config_for(task), recipe).model, Transformer.run_with_cache

        def limited(self: Transformer, tokens: Tensor, *rest: Any) -> Any:
            if len(tokens) > 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return run(self, tokens, *rest)

        monkeypatch.setattr(Transformer, "run_with_cache", limited)
        pieces = train(task, config_for(task), recipe).model
        for name, parameter in pieces.named_parameters():
            torch.testing.assert_close(parameter, whole.parameter(name), rtol=1e-3, atol=1e-5)

    def test_the_card_says_so(self, tmp_path: Any) -> None:
        task, recipe = get_task("max-of-2", vocab=4), Recipe(steps=3, entropy=0.5, sparsity=0.25)
        made = train(task, config_for(task), recipe)
        Trained(made.model, card_of(task, recipe, made, measure(made.model, task))).save(tmp_path / "m")
        again = load_trained(tmp_path / "m")
        assert again.card.recipe == recipe
        assert train(task, again.model.config, again.card.recipe).model.weights_sha256() == made.model.weights_sha256()

    def test_older_cards_have_none(self) -> None:
        assert not any(zoo.load("max-of-4").card.recipe.coefficients.values())
        assert zoo.load("induction-12-sharp").card.recipe.coefficients == {
            "entropy": 0.1,
            "score_variance": 0.0,
            "sparsity": 0.0,
        }

    @pytest.mark.parametrize("name", PENALTIES)
    @pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "much", None])
    def test_what_is_refused(self, name: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"{name} must be a number of at least 0, got"):
            Recipe(**{name: value})
