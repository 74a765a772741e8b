"""All models near one: each weight is a ball around the given one. What reads weights as balls reads these likewise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.config import TransformerConfig
from ..models.program import Program
from ..models.transformer import Transformer
from .balls import Ball


@dataclass(frozen=True, eq=False)
class PerturbedWeights:
    """The models of one configuration with real weights in these balls. It cannot run: no weight is a number.

    Where a model is read through `ReadsWeights`, this gives bounds that hold for every one of the models, since
    every rule for balls holds for any reals inside. (Whoever needs numbers meets a `Ball` and fails.)
    """

    config: TransformerConfig
    program: Program
    weights: Mapping[str, Ball]

    @staticmethod
    def of(model: Transformer, eps: float, *, relative: bool) -> PerturbedWeights:
        """All weights w' with |w' - w| <= eps |w| (relative; so a weight of 0 stays), or <= eps: eps >= 0, finite."""
        weights = {name: _around(weight, eps, relative) for name, weight in model.named_parameters()}
        return PerturbedWeights(model.config, model.program, weights)

    def parameter(self, name: str) -> Ball:
        """One parameter by name. Raises `KeyError`."""
        return self.weights[name]


def _around(weight: Tensor, eps: float, relative: bool) -> Ball:
    """The radius eps |w| is rounded up: its float64 product is off by half a unit in the last place at most."""
    mid = weight.detach().to(torch.float64)
    if not relative:
        return Ball(mid, torch.full_like(mid, eps))
    size = mid.abs() * eps
    up = torch.nextafter(size, torch.full_like(size, torch.inf))
    return Ball(mid, torch.where((mid == 0) | (eps == 0), 0.0, up))
