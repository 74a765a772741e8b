"""Stories: what an explanation of a model says, as data. `verifier/stories.py` turns them into claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from .circuits import Circuit


@dataclass(frozen=True)
class CircuitStory:
    """The circuit alone decides as the model does.

    `complete`: also after whatever knockouts of up to so many of its nodes. `minimal`: not without any set of up to so
    many of its nodes. `unique`: the model without the circuit's heads and MLPs does not decide as the model does.
    """

    circuit: Circuit
    complete: int = 0
    minimal: int = 0
    unique: bool = False


@dataclass(frozen=True, eq=False)
class SubspaceStory:
    """The span of `directions` [k, d_model], orthonormal, is where the stream at `site` holds what decides: it carries
    all, the part of it that later components read carries all, and what is orthogonal to it carries nothing."""

    site: str
    directions: Tensor


@dataclass(frozen=True, eq=False)
class EffectStory:
    """An attribution score: resampling `edge` lowers direction . logits by `score`, to within `within`."""

    edge: str
    direction: Tensor
    score: float
    within: float


Story: TypeAlias = CircuitStory | SubspaceStory | EffectStory
