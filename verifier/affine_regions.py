"""Regions of inputs for `output_bounds`: a set of tokens at each position, or a ball around embedded tokens."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.errors import InputError
from ..models.transformer import Transformer


@dataclass(frozen=True)
class TokenSets:
    """All words with a token of `sets[i]` at each position i: token ids, each set not empty."""

    sets: tuple[tuple[int, ...], ...]

    def __init__(self, sets: Iterable[Iterable[int]]) -> None:
        try:
            found = tuple(tuple(dict.fromkeys(tokens)) for tokens in sets)
        except TypeError:
            raise InputError(f"sets must be an iterable of sets of token ids, one a position, got {sets!r}") from None
        object.__setattr__(self, "sets", found)
        _integers([token for tokens in found for token in tokens])
        if not found:
            raise InputError("sets has no positions; give at least one set of token ids")
        for position, tokens in enumerate(found):
            if not tokens:
                raise InputError(f"no token is allowed at position {position}: give at least one token id there")

    @property
    def words(self) -> int:
        """How many words."""
        return math.prod(map(len, self.sets))


@dataclass(frozen=True)
class EmbeddingBall:
    """All real embeddings within `eps` of those of `tokens` (W_E[token] + W_pos[position]), in every coordinate."""

    tokens: tuple[int, ...]
    eps: float

    def __init__(self, tokens: Iterable[int], eps: float) -> None:
        try:
            found = tuple(tokens)
        except TypeError:
            raise InputError(f"tokens must be an iterable of token ids, got {tokens!r}") from None
        _integers(found)
        if not found:
            raise InputError("tokens is empty; give at least one token id")
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps <= sys.float_info.max:
            raise InputError(f"eps, the ball's radius, must be a finite number of at least 0, got {eps!r}")
        object.__setattr__(self, "tokens", found)
        object.__setattr__(self, "eps", float(eps))


Region = TokenSets | EmbeddingBall


def _integers(tokens: Sequence[object]) -> None:
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError(f"a token id must be an integer, got {token!r}; encode words with a Codec")


def check_regions(model: Transformer, regions: Sequence[Region]) -> int:
    """The regions' common length. Raises `InputError` for what the model cannot read."""
    if not isinstance(model, Transformer):
        raise InputError(f"model must be a Transformer, got {model!r}; edited copies are not bounded yet")
    config = model.config
    if not regions:
        raise InputError("no regions are given; give at least one TokenSets or EmbeddingBall")
    lengths = set()
    for region in regions:
        if not isinstance(region, (TokenSets, EmbeddingBall)):
            raise InputError(f"a region is a TokenSets or an EmbeddingBall, got {region!r}")
        sets = region.sets if isinstance(region, TokenSets) else tuple((token,) for token in region.tokens)
        lengths.add(len(sets))
        for token in (token for tokens in sets for token in tokens):
            if not 0 <= token < config.d_vocab:
                raise InputError(f"token ids of this model are 0 to {config.d_vocab - 1}, got {token}")
    if len(lengths) > 1:
        raise InputError(f"regions of one batch must have one length, got {sorted(lengths)}; bound them apart")
    n = lengths.pop()
    if n > config.n_ctx:
        raise InputError(f"a region has {n} positions, and the model reads at most n_ctx = {config.n_ctx}; shorten it")
    return n


def points(embed: Tensor, positions: Tensor, region: Region) -> tuple[Tensor, float]:
    """The embeddings [pos, class, d] that may stand at each position, and the radius around them.

    Smaller sets are filled up with their first token.
    """
    if isinstance(region, EmbeddingBall):
        return (embed[list(region.tokens)] + positions)[:, None], region.eps
    most = max(map(len, region.sets))
    table = torch.tensor([[*tokens, *[tokens[0]] * (most - len(tokens))] for tokens in region.sets])
    return embed[table] + positions[:, None], 0.0
