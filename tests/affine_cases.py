"""Models, regions and points for tests of affine bounds, and engines with one change.

What a model does at a point is enclosed by balls (`verifier.balls`, another method, whose own tests compare it with
128-bit arithmetic). A bound is broken when it leaves even the ball's far end out: never a false alarm; what is broken
by less than a ball's width (about 1e-12 of the values) is not seen.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certiformer.models import program as ops
from certiformer.models.config import ActivationName, LayerConfig, TransformerConfig
from certiformer.models.execution import RULES, Run
from certiformer.models.program import input_site
from certiformer.models.transformer import Transformer
from certiformer.verifier.affine_regions import EmbeddingBall, Region, TokenSets
from certiformer.verifier.balls import Ball, enclose, exact

from .planted import _code, _executed, mutated_source

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")
ENGINE = (
    "verifier.affine_lines",
    "verifier.affine_model",
    "verifier.affine_norm",
    "verifier.affine_attention",
    "verifier.affine_steps",
    "verifier.affine_circuit",
    "verifier.affine_bounds",
)
"""The modules of the engine, each after what it imports."""
Bounds = Callable[..., Any]


def random_config(rng: np.random.Generator, **given: Any) -> TransformerConfig:
    """Zero to two layers, every other choice at random."""
    depth = int(rng.choice([0, 1, 1, 2, 2]))
    heads = int(rng.choice([0, 1, 1, 2, 4]))
    neurons = int(rng.choice([0, 3, 6]))
    settings: dict[str, Any] = {
        "d_model": int(rng.integers(2, 7)),
        "n_ctx": 4,
        "d_vocab": 3,
        "d_vocab_out": int(rng.integers(1, 4)),
        "layers": tuple(LayerConfig(heads, int(rng.integers(1, 4)) if heads else 0, neurons) for _ in range(depth)),
        "activation": str(rng.choice(ACTIVATIONS)),
        "causal": bool(rng.integers(2)),
        "positional": "learned" if rng.integers(4) else "none",
        "attention_scale": "1/sqrt(d_head)" if rng.integers(2) else float(rng.choice([1.0, -0.5])),
        "layer_norm": [None, 1e-5, 0.1][int(rng.integers(3))],
        "readout": str(rng.choice(["each", "last", "mean"])),
    }
    return TransformerConfig(**(settings | given))


def random_weights(config: TransformerConfig, seed: int, scale: float) -> Transformer:
    """Normal weights times `scale`; a fifth of the tensors rounded to integers."""
    rng = np.random.default_rng(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            values = rng.normal(scale=scale, size=tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(values.round() if rng.random() < 0.2 else values))
    return model


def random_model(seed: int, **given: Any) -> Transformer:
    rng = np.random.default_rng(seed)
    config = random_config(rng, **given)
    return random_weights(config, seed + 1, float(rng.choice([0.3, 0.6, 1.0, 3.0, 30.0], p=[0.3, 0.3, 0.2, 0.1, 0.1])))


def random_sets(rng: np.random.Generator, vocab: int, n: int) -> TokenSets:
    return TokenSets(sorted(rng.permutation(vocab)[: rng.integers(1, vocab + 1)].tolist()) for _ in range(n))


def random_ball(rng: np.random.Generator, vocab: int, n: int) -> EmbeddingBall:
    eps = float(rng.choice([0.0, 1e-6, 1e-3, 0.01, 0.1, 0.5, 3.0]))
    return EmbeddingBall(rng.integers(vocab, size=n).tolist(), eps)


def words(region: TokenSets) -> Tensor:
    return torch.tensor(list(itertools.product(*region.sets)))


def at_points(model: Transformer, x: Tensor) -> Ball:
    """Logits at embedded streams x [batch, pos, d], enclosed."""
    tokens = torch.zeros(x.shape[:2], dtype=torch.int64)
    site = input_site(model.config)
    return enclose(model, tokens, ("logits",), {site: lambda _: exact(x)})["logits"]


def plain(model: Transformer, x: Tensor) -> Tensor:
    """The same in float64, to take gradients of."""
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    run = Run(torch.zeros(x.shape[:2], dtype=torch.int64), weights.__getitem__)
    for operation in model.program:
        match operation:
            case ops.Embed():
                run.values[operation.output] = x
            case ops.Position():
                run.values[operation.output] = torch.zeros_like(x)
            case _:
                run.values[operation.output] = RULES[type(operation)](operation, run)
    return run.values["logits"]


def inside(model: Transformer, region: EmbeddingBall, count: int, seed: int, steps: int = 4) -> Tensor:
    """Points of a ball [point, pos, d]: corners, its inside, and where gradient ascent leads each logit."""
    centre = model.parameter("embed.W_E").detach().double()[list(region.tokens)]
    if model.config.positional == "learned":
        centre = centre + model.parameter("pos_embed.W_pos").detach().double()[: len(region.tokens)]
    eps = region.eps * (1 - 2.0**-20) - 2.0**-40 * float(centre.abs().max()) * (region.eps > 0)
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *centre.shape, dtype=torch.float64, generator=generator) * 2 - 1
    share[::2] = share[::2].sign()
    found = [share]
    for sign in (1.0, -1.0):
        outputs = plain(model, centre[None]).numel()
        d = torch.zeros(outputs, *centre.shape, dtype=torch.float64)
        for step in range(steps):
            x = (centre + eps * d).requires_grad_(True)
            y = plain(model, x).reshape(outputs, outputs).diagonal().sum()
            slope = torch.autograd.grad(y, x)[0].nan_to_num()
            d = (d + sign * slope.sign() * 2.0 / (step + 1)).clamp(-1, 1)
            found.append(d)
    return centre + max(eps, 0.0) * torch.cat(found)


def truth(model: Transformer, region: Region, count: int = 24, seed: int = 0) -> Ball:
    """Logits of all words of a region, or at points of a ball [point, ...]."""
    if isinstance(region, TokenSets):
        return enclose(model, words(region))["logits"]
    return at_points(model, inside(model, region, count, seed))


def broken(found: Any, values: Ball) -> float:
    """By how much the bounds miss a value for sure; 0 if they hold (or are not numbers: infinity)."""
    if not bool(torch.isfinite(found.low).all() and torch.isfinite(found.high).all()):
        return float("inf")
    below = (found.low - values.high()).max()
    above = (values.low() - found.high).max()
    return max(0.0, float(below), float(above))


def failure(bounds: Bounds, seed: int, kind: int, **given: Any) -> float:
    """By how much one random case fails: `kind` 0 tokens by classes, 1 tiny balls around words, 2 a ball."""
    model, rng = random_model(seed, **given), np.random.default_rng(seed + 10**6)
    n = int(rng.integers(1, 5))
    region = random_ball(rng, 3, n) if kind == 2 else random_sets(rng, 3, n)
    values = truth(model, region, seed=seed)
    if kind == 1:  # whole words are left to balls, so those alone would compare the reference with itself
        tiny = bounds(model, [EmbeddingBall(word, 1e-9) for word in words(region).tolist()])
        return max(broken(tiny, values), broken(bounds(model, region, leaves=64), values))
    return broken(bounds(model, region, leaves=1), values)


def _one_head(scores: dict[str, list[list[float]]], tokens: list[list[float]]) -> Transformer:
    """One head on coordinates (value, a, b): it writes 0.1 of the first; W_Q and W_K as given; logit 0 reads it."""
    config = TransformerConfig(3, 3, 3, 2, (LayerConfig(1, 2, 0),), positional="none", attention_scale=1.0)
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.tensor(tokens))
        for name, weight in scores.items():
            model.parameter(f"blocks.0.attn.W_{name}").copy_(torch.tensor(weight)[None])
        model.parameter("blocks.0.attn.W_V")[0, 0, 0] = 0.001
        model.parameter("blocks.0.attn.W_O")[0, 0, 1] = 100.0
        model.parameter("unembed.W_U")[1, 0] = 1.0
    return model


_IDLE = [[0.0, 0.0]]
HAND_MADE: dict[str, tuple[Transformer, float]] = {
    "scores of second order": (
        _one_head({"Q": [*_IDLE, [3.0, 0.0], [0.0, 3.0]], "K": [*_IDLE, [3.0, 0.0], [0.0, 3.0]]},
                  [[90.0, 0.0, 0.0], [-90.0, 0.0, 0.0], [30.0, 0.0, 0.0]]), 0.1),
    "scores of first order": (
        _one_head({"Q": [*_IDLE, [20.0, 0.0], [0.0, 0.0]], "K": [*_IDLE, [0.0, 0.0], [0.5, 0.0]]},
                  [[90.0, 1.0, 0.0], [-90.0, 1.0, 0.0], [30.0, 1.0, 0.0]]), 0.02),
    "scores of both": (
        _one_head({"Q": [*_IDLE, [2.0, 1.0], [0.0, -1.0]], "K": [*_IDLE, [1.0, -2.0], [2.0, 1.0]]},
                  [[90.0, 1.0, -1.0], [-90.0, 0.5, 1.0], [30.0, -1.0, 0.0]]), 0.1),
}  # fmt: skip
"""One head whose values hardly vary while its scores do: model and radius, tokens (0, 1, 2)."""


def hand_made_failure(bounds: Bounds, name: str) -> float:
    """By how much the bounds fail at any corner of the ball, or on a grid inside."""
    model, eps = HAND_MADE[name]
    centre = model.parameter("embed.W_E").detach().double()
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=9)), dtype=torch.float64).view(-1, 3, 3)
    points = centre + eps * (1 - 2.0**-20) * torch.cat([corners, corners * 0.5, corners * 0.1])
    return broken(bounds(model, EmbeddingBall((0, 1, 2), eps)), at_points(model, points))


def heads_apart(activation: ActivationName) -> Transformer:
    """Each head attends to a position of its own, so that no one position has what they add together."""
    config = TransformerConfig(4, 2, 2, 1, (LayerConfig(2, 1, 1),), activation, positional="none", attention_scale=1.0,
                               readout="last")  # fmt: skip
    shape = Transformer(config)
    weights = {name: torch.zeros_like(parameter) for name, parameter in shape.named_parameters()}
    weights["embed.W_E"][0, 0] = weights["embed.W_E"][1, 1] = 1.0
    for h in range(2):
        weights["blocks.0.attn.b_Q"][h, 0] = 40.0
        weights["blocks.0.attn.W_K"][h, h, 0] = weights["blocks.0.attn.W_V"][h, h, 0] = 1.0
        weights["blocks.0.attn.W_O"][h, 0, 2] = 1.0
    weights["blocks.0.mlp.W_in"][2, 0] = weights["blocks.0.mlp.W_out"][0, 3] = weights["unembed.W_U"][3, 0] = 1.0
    return Transformer.from_parameters(config, weights)


def heads_apart_failure(bounds: Bounds) -> float:
    """By how much the bounds of `heads_apart` fail at the centre of a small ball."""
    model = heads_apart("gelu")
    centre = model.parameter("embed.W_E").detach().double()
    return broken(bounds(model, EmbeddingBall((0, 1), 1e-6)), at_points(model, centre[None]))


@contextmanager
def mutated(module: str, old: str, new: str) -> Iterator[dict[str, Any]]:
    """The engine's modules with one text of one of them replaced; see `planted.mutated_engine`."""
    changed = compile(mutated_source(module, old, new), f"<mutated {module}>", "exec", dont_inherit=True)
    before = {name: importlib.import_module(f"certiformer.{name}") for name in ENGINE}
    try:
        start = ENGINE.index(module)
        made = {name: _executed(name, changed if name == module else _code(name)) for name in ENGINE[start:]}
        yield {name: made.get(name, before[name]) for name in ENGINE}
    finally:
        for name, original in before.items():
            full = f"certiformer.{name}"
            sys.modules[full] = original
            setattr(sys.modules[full.rpartition(".")[0]], full.rpartition(".")[2], original)
