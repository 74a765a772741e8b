"""Where float64 overflows nothing is known: no theorem rests on a midpoint that is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models import LayerConfig, Transformer, TransformerConfig
from certiformer.models.config import parameter_shapes
from certiformer.proofs import balls, simplex
from certiformer.verifier import balls as engine
from certiformer.verifier.reading import Subject
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

HUGE = 1.5e308
DOMAIN = cf.sequences(range(2), 2)


def blank(config: TransformerConfig) -> Subject:
    model = Transformer(config)
    with torch.no_grad():
        for name in parameter_shapes(config):
            model.parameter(name).zero_()
    return Subject(model, cf.Codec((0, 1), False, "categorical", ("a", "b"), (), 2))


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_a_product_that_overflows_is_not_known(width: int) -> None:
    """The sum is 0; partial sums are beyond float64."""
    left, right = np.ones((1, width)), np.array([[HUGE]] * (width // 2) + [[-HUGE]] * (width // 2))
    with np.errstate(all="ignore"):
        found = balls.point(left) @ balls.point(right)
        assert found.low()[0, 0] <= 0 <= found.high()[0, 0]
    other = engine.matmul(engine.exact(torch.from_numpy(left)), engine.exact(torch.from_numpy(right)))
    assert float(other.low()) <= 0 <= float(other.high())
    total = engine.total(engine.exact(torch.from_numpy(right.T)), -1)
    assert float(total.low()) <= 0 <= float(total.high())
    with np.errstate(all="ignore"):
        summed = balls.total(balls.point(right[:, :, None]))
    assert float(summed.low().item()) <= 0 <= float(summed.high().item())


def test_every_operation_on_what_overflowed_is_any_number() -> None:
    with np.errstate(all="ignore"):
        lost = balls.point(np.full((1, 1), HUGE)) + balls.point(np.full((1, 1), HUGE))
        one = balls.point(np.ones((1, 1)))
        for found in (lost, lost + lost, lost @ one, one @ lost, balls.times(lost, one), balls.divided(lost, 2)):
            assert found.mid[0, 0] == 0 and found.rad[0, 0] == np.inf
        assert balls.between(np.array([0.0]), np.array([np.inf])).rad[0] == np.inf
        relu = lost.relu()
        assert relu.low()[0, 0] <= 0 and relu.high()[0, 0] == np.inf


@pytest.mark.parametrize(
    ("mid", "rad"),
    [([np.inf, 0], [np.inf, 0]), ([np.nan, 0], [np.nan, 0]), ([-np.inf, 0], [np.inf, 0]), ([0, 0], [np.inf, 0])],
)
def test_a_share_of_an_unknown_score_is_not_known(mid: list[float], rad: list[float]) -> None:
    scores = balls.Ball(np.array([mid], dtype=float), np.array([rad], dtype=float))
    with np.errstate(all="ignore"):
        found = simplex.sparsemax(scores, np.ones((1, 2), dtype=np.bool_))
    assert (found.low() <= 0).all() and (found.high() >= 1).all()


@pytest.mark.parametrize("attention", ["softmax", "sparsemax"])
def test_a_false_theorem_behind_an_overflow_is_not_accepted(attention: Any, tmp_path: Path) -> None:
    """The stream reaches 10^152 and scores 10^380; whatever they are, the head moves 1, and the model says `a`."""
    layers = (LayerConfig(0, 0, 1), LayerConfig(0, 0, 1), LayerConfig(1, 1, 0))
    about = blank(
        TransformerConfig(3, 2, 2, 2, layers, readout="last", causal=True, attention=attention, attention_scale=1.0)
    )
    model = about.model
    with torch.no_grad():
        model.parameter("embed.W_E")[:, :2] = 1
        for layer in (0, 1):
            for name in ("W_in", "W_out"):
                model.parameter(f"blocks.{layer}.mlp.{name}")[0, 0] = 1e38
        for name in "QK":
            model.parameter(f"blocks.2.attn.W_{name}")[0, 0, 0] = 1e38
        model.parameter("blocks.2.attn.W_V")[0, 1, 0] = model.parameter("blocks.2.attn.W_O")[0, 0, 2] = 1
        model.parameter("unembed.W_U")[2, 0] = 1
        model.parameter("unembed.b_U")[1] = 0.5
    model.save(tmp_path / "m")
    theorem = {**cf.NeverOutputs(about, ["a"]).theorem(), "domain": domain_to_json(DOMAIN)}
    assert isinstance(cf.check(Certificate.of(theorem, {"rule": "enumerate"}), tmp_path / "m"), cf.Invalid)


@pytest.mark.parametrize("width", [8, 16, 32])
def test_directions_beyond_float64_say_nothing(width: int, tmp_path: Path) -> None:
    """Their sum over the ones that `input` writes is 0, so that it never writes more; the claim is that it does."""
    about = blank(TransformerConfig(width, 2, 2, 2, (LayerConfig(0, 0, 1),), readout="last", attention_scale=1.0))
    with torch.no_grad():
        about.model.parameter("embed.W_E").fill_(1)
    about.model.save(tmp_path / "m")
    claim = cf.WritesAtMost(about, "input", torch.ones(1, width), 1.0)
    theorem: dict[str, Any] = {**claim.theorem(), "domain": domain_to_json(DOMAIN), "quantifier": "none"}
    row = [int(HUGE)] * (width // 2) + [-int(HUGE)] * (width // 2)
    theorem["body"] = {**theorem["body"], "directions": [row], "at_most": 0}
    assert isinstance(cf.check(Certificate.of(theorem, {"rule": "enumerate"}), tmp_path / "m"), cf.Invalid)
