"""How tokens and logits stand for values (section 3 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from .automaton import MAX_TOKENS
from .format import Json, Value, boolean, distinct_values, dyadic, listing, record, require, show


@dataclass(frozen=True)
class Codec:
    """Token t is vocab.index(t); BOS is len(vocab); outputs are decoded from the largest logit or the nearest point."""

    vocab: tuple[Value, ...]
    bos: bool
    categorical: bool
    outputs: tuple[Value, ...]
    points: tuple[Fraction, ...]

    @cached_property
    def position(self) -> dict[Value, int]:
        """The id of each token."""
        return {item: index for index, item in enumerate(self.vocab)}

    def token(self, item: Value) -> int:
        """The id of a token of the codec's vocabulary."""
        require(item in self.position, f"token {show(item)} is not in the codec's vocab")
        return self.position[item]


def read_codec(data: Json) -> Codec:
    item = record(data, "codec", ("vocab", "bos", "kind", "outputs", "points"))
    vocab = distinct_values(item["vocab"], "codec vocab", MAX_TOKENS)
    outputs = distinct_values(item["outputs"], "codec outputs")
    require(item["kind"] in ("categorical", "scalar"), f"unknown codec kind {show(item['kind'])}")
    categorical = item["kind"] == "categorical"
    count = 0 if categorical else len(outputs)
    points = tuple(dyadic(point, "a point") for point in listing(item["points"], "codec points", count, count))
    require(len(set(points)) == len(points), "two outputs have the same point")
    return Codec(vocab, boolean(item["bos"], "codec bos"), categorical, outputs, points)
