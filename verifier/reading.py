"""What a model's outputs say: one set of conditions, for the float32 run and for rigorous enclosures alike.

A reading of a batch is, for every position, the set of outputs that may be decoded there. The float32 run gives one;
an enclosure of the real logits gives all that its balls leave possible: one, when it is decided.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..compiler.alignment import Alignment
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.program import LOGITS
from .balls import Ball, enclose
from .sharing import logits_of_words, shareable
from .witness import Arithmetic

TRUE, FALSE, UNDECIDED, UNDEFINED = 1, -1, 0, 2


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the codec that it is read by. Token ids here are indices into `codec.vocab`, without BOS.

    `labels`: of each coordinate of the residual stream, if known; those of one variable are equal up to the first ":".
    """

    model: Any
    codec: Codec
    alignment: Alignment | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        config = getattr(self.model, "config", None)
        if config is None:
            raise InputError(f"a claim is about a Transformer or a compiled program, got {self.model!r}")
        width = len(self.codec.vocab) + self.codec.bos
        if config.d_vocab < width:
            raise InputError(
                f"the codec has {width} token ids, the model embeds {config.d_vocab}: another model's codec"
            )
        outputs = len(self.codec.outputs) if self.codec.kind == "categorical" else 1
        if config.d_vocab_out != outputs:
            raise InputError(f"the codec decodes {outputs} logits, the model has {config.d_vocab_out}: another model's")

    @property
    def longest(self) -> int:
        """The longest sequence, without BOS, that the model can read."""
        room = int(self.model.config.n_ctx) - self.codec.bos
        return room if self.codec.max_len is None else min(room, self.codec.max_len)

    def snapshot(self) -> Subject:
        """The same, with a copy of the weights: later changes to the model do not reach it."""
        return Subject(copy.deepcopy(self.model), self.codec, self.alignment, self.labels)

    def chunk(self, length: int, rigorous: bool) -> int:
        """How many inputs of this length to run at once."""
        n, config = length + self.codec.bos, self.model.config
        widths = [n * layer.n_heads + layer.n_heads * layer.d_head + layer.d_mlp for layer in config.layers]
        widest = max([config.d_model, config.d_vocab_out, *widths])
        if rigorous and shareable(self.model):  # about two rows a word, each with the keys it sees
            seen = max((n * layer.n_heads * layer.d_head for layer in config.layers), default=0)
            return int(max(1, min(16384, 2_000_000 // (2 * (widest + seen)))))
        return int(max(1, min(65536, (1_000_000 if rigorous else 4_000_000) // (n * widest))))

    def logits(self, ids: Tensor) -> Tensor:
        """The float32 run: logits [batch, pos, out] without BOS; one position if the model reads out once."""
        with torch.no_grad():
            return self._positions(self.model(self.codec.with_bos(ids)))

    def enclosed(self, ids: Tensor) -> Ball:
        """Balls around the real logits. Raises `balls.Unsupported`."""
        tokens = self.codec.with_bos(ids)
        if shareable(self.model):
            return logits_of_words(self.model, tokens).map(self._positions)
        return enclose(self.model, tokens)[LOGITS].map(self._positions)

    def _positions(self, logits: Tensor) -> Tensor:
        if logits.dim() == 2:
            return logits.unsqueeze(1)
        return logits[:, int(self.codec.bos) :]

    def reading(self, ids: Tensor, semantics: Arithmetic) -> Tensor:
        """bool [batch, pos, output]: what may be decoded."""
        if semantics == "float32":
            return decoded(self.codec, self.logits(ids))
        if semantics == "precise":
            from . import precise

            return precise.reading(self.model, self.codec, ids)
        return possible(self.codec, self.enclosed(ids))


def decoded(codec: Codec, logits: Tensor) -> Tensor:
    """The reading of a float32 run, by the codec itself."""
    indices = _decode(codec, logits)
    return torch.nn.functional.one_hot(indices, len(codec.outputs)).bool()


def _decode(codec: Codec, logits: Tensor) -> Tensor:
    """As `Codec.decode_indices`, of logits whose BOS position is already dropped."""
    batch, positions, width = logits.shape
    return codec.decode_indices(logits.reshape(batch * positions, width)).view(batch, positions)


def possible(codec: Codec, logits: Ball) -> Tensor:
    """The outputs that some real logits inside the balls decode to (on a tie of distances: either).

    Categorical, first maximum: o is possible iff its upper bound exceeds the largest lower bound, or equals it and o
    stands before the first output that attains it. Scalar: iff the ball meets the closed cell of o's point.
    """
    low, high = logits.low(), logits.high()
    if codec.kind == "categorical":
        best, first = _first_maximum(low)
        place = torch.arange(low.shape[-1])
        return (high > best) | ((high == best) & (place <= first)) | (place == first)
    below, above = cells(codec)
    return (high[..., :1] >= below) & (low[..., :1] <= above)


def _first_maximum(x: Tensor) -> tuple[Tensor, Tensor]:
    best = x.amax(-1, keepdim=True)
    return best, (x == best).to(torch.int8).argmax(-1, keepdim=True)


@lru_cache(maxsize=64)
def cells(codec: Codec) -> tuple[Tensor, Tensor]:
    """For each output of a scalar codec, its cell of logits rounded outwards: [below, above] around its point."""
    order = sorted(range(len(codec.points)), key=lambda o: codec.points[o])
    below, above = [-math.inf] * len(order), [math.inf] * len(order)
    for left, right in zip(order, order[1:], strict=False):
        middle = (Fraction(codec.points[left]) + Fraction(codec.points[right])) / 2
        above[left] = math.nextafter(float(middle), math.inf)
        below[right] = math.nextafter(float(middle), -math.inf)
    return torch.tensor(below, dtype=torch.float64), torch.tensor(above, dtype=torch.float64)


def distance(codec: Codec, logits: Tensor, allowed: Tensor) -> Tensor:
    """How far float32 logits are from decoding outside `allowed` (bool [batch, pos, output]); negative: they do.

    Categorical: the best allowed logit less the best other. Scalar: the logit's distance to the nearest boundary
    between an allowed and another cell, in units of half the cell; a heuristic that only the search uses.
    """
    x = logits.to(torch.float64)
    if codec.kind == "categorical":
        inside = torch.where(allowed, x, -torch.inf).amax(-1)
        outside = torch.where(allowed, -torch.inf, x).amax(-1)
        return inside - outside
    below, above = cells(codec)
    middle = torch.tensor(codec.points, dtype=torch.float64)
    half = torch.minimum(above - middle, middle - below).clamp(min=1e-30)
    half = torch.where(torch.isinf(half), 1.0, half)
    depth = torch.minimum(x[..., :1] - below, above - x[..., :1]) / half
    return torch.where(allowed, depth, -torch.inf).amax(-1)


def margin_bounds(logits: Ball) -> tuple[Tensor, Tensor]:
    """Bounds, [batch, pos], of the largest logit less the second largest (infinite if there is one)."""
    low, high = logits.low(), logits.high()
    infinite = torch.tensor(math.inf, dtype=torch.float64)
    if low.shape[-1] == 1:
        return infinite.expand(low.shape[:-1]), infinite.expand(low.shape[:-1])
    best, first = _first_maximum(low)
    others = high.scatter(-1, first, -torch.inf).amax(-1)
    least = torch.nextafter(best[..., 0] - others, -infinite)
    two = low.topk(2, dim=-1)
    rest = torch.where(torch.arange(low.shape[-1]) == two.indices[..., :1], two.values[..., 1:], two.values[..., :1])
    most = torch.nextafter(high - rest, infinite).amax(-1)
    return least, most


def lead_bounds(low: Tensor, high: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds, [batch, pos], of the one wanted logit less the largest other, from bounds of the logits.

    Minus infinity where no logit is wanted; infinite where there is no other.
    """
    infinite = torch.tensor(torch.inf, dtype=torch.float64)

    def largest(x: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, x, -infinite).amax(-1)

    none, lone = ~wanted.any(-1), wanted.all(-1)
    bounds = []
    for own, rival, sign in ((low, high, -1), (high, low, 1)):
        apart = torch.nextafter(largest(own, wanted) - largest(rival, ~wanted), sign * infinite)
        bounds.append(torch.where(none, -infinite, torch.where(lone, infinite, apart)))
    return bounds[0], bounds[1]


def judge(true: Tensor, false: Tensor) -> Tensor:
    """int8 [batch] from conditions [batch, pos]: TRUE if true everywhere, FALSE if false somewhere, else UNDECIDED."""
    return torch.where(false.any(-1), FALSE, torch.where(true.all(-1), TRUE, UNDECIDED)).to(torch.int8)


def equal_readings(a: Tensor, b: Tensor) -> Tensor:
    """int8 [batch]: whether two readings decode to the same outputs."""
    certain = (a == b).all(-1) & (a.sum(-1) == 1)
    return judge(certain, ~(a & b).any(-1))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Where one list of values stands in another."""

    source: tuple[Any, ...]
    target: tuple[Any, ...]

    @cached_property
    def table(self) -> Tensor:
        """int64: the index in `target` of each value of `source`; -1 if it is not there."""
        place: Mapping[Any, int] = {value: i for i, value in enumerate(self.target)}
        return torch.tensor([place.get(value, -1) for value in self.source], dtype=torch.int64)
