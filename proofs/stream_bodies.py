"""Bodies about the residual stream, nodes and edges of a model, read strictly (section 3 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .balls import Floats
from .circuit import Circuit, Edge, edges_of, nodes_of, read_circuit
from .codec import Codec
from .core import Ints, Program
from .format import Json, boolean, distinct_values, dyadic, integer, integers, listing, require, show, text
from .model import Config

MAX_NUMBERS = 2**22


@dataclass(frozen=True)
class Robust:
    """Whatever is added to the stream before layer `stream`, up to `radius` in each coordinate at each position, the
    model decodes as it does with nothing added. It is never proved to fail."""

    stream: int
    radius: float
    arity: int = 1


@dataclass(frozen=True)
class Monotone:
    """One token replaced by the next one up, the decoded output at no position stands lower.

    `following[token]`: the next one up, or -1. `rank[output]`: how high an output stands.
    """

    following: Ints
    rank: Ints
    arity: int = 1


@dataclass(frozen=True)
class Subspace:
    """The component in the span of `directions` [k, d_model] (`complement`: the rest) of the stream before layer
    `stream`, at some positions, is taken from y. `whole`: the model then decodes as if all of the stream there were
    taken from y; else as it does on x."""

    stream: int
    directions: Floats
    complement: bool
    positions: tuple[int, ...] | None
    whole: bool
    arity: int = 2


@dataclass(frozen=True)
class Writes:
    """What a node writes has, along each direction [k, d_model] and at every position, a size of at most `at_most`."""

    node: str
    directions: Floats
    at_most: Fraction
    arity: int = 1


@dataclass(frozen=True)
class Effect:
    """What `direction` . logits, at the last read-out, loses when one edge carries what its source writes on y, is
    within `within` of `score`."""

    edge: Edge
    direction: Floats
    score: Fraction
    within: Fraction
    arity: int = 2


@dataclass(frozen=True)
class HeadTable:
    """Of a head's full OV (`ov`: token to logit) or QK circuit (query token to key token), without positions.

    In the row of each token, the entry of the same value (`diagonal`) exceeds all others, or each entry the one before,
    by at least `at_least`. `same[token]`: the column of the same value, or -1.
    """

    layer: int
    head: int
    ov: bool
    diagonal: bool
    at_least: Fraction
    same: Ints
    arity: int = 1


def read_head_table(config: Config, codec: Codec, item: dict[str, Json]) -> HeadTable:
    require(config.layer_norm is None, "the table of a head is for models without LayerNorm")
    pair = listing(item["head"], "a head", 2, 2)
    layer = integer(pair[0], "layer", 0, len(config.layers) - 1)
    head = integer(pair[1], "head", 0, config.layers[layer].n_heads - 1)
    require(item["circuit"] in ("ov", "qk"), f"a head's circuit is ov or qk, got {show(item['circuit'])}")
    require(item["relation"] in ("diagonal", "increasing"), f"unknown relation {show(item['relation'])}")
    ov = item["circuit"] == "ov"
    require(codec.categorical or not ov, "the OV circuit's table is for categorical codecs")
    require(config.d_readout == 0 or not ov, "the OV circuit's table is for models without an MLP at the read-out")
    columns = codec.outputs if ov else codec.vocab
    require(len(codec.vocab) * len(columns) <= MAX_NUMBERS, "the table of the head is too large")
    place = {value: number for number, value in enumerate(columns)}
    same = np.array([place.get(token, -1) for token in codec.vocab], dtype=np.int64)
    return HeadTable(layer, head, ov, item["relation"] == "diagonal", dyadic(item["at_least"], "at_least"), same)


@dataclass(frozen=True)
class Agree:
    """Two circuits, each alone (everything outside it replaced), decode alike.

    Of ablation `zero` or `resample`, as in `faithful`.
    """

    circuits: tuple[Circuit, Circuit]
    resample: bool

    @property
    def arity(self) -> int:
        return 2 if self.resample else 1


def read_agree(config: Config, codec: Codec, item: dict[str, Json]) -> Agree:
    require(
        item["ablation"] in ("zero", "resample"),
        f"two circuits agree under zero or resample, got {show(item['ablation'])}",
    )
    found = [read_circuit(data, config) for data in listing(item["circuits"], "circuits", 2, 2)]
    return Agree((found[0], found[1]), item["ablation"] == "resample")


def read_robust(config: Config, codec: Codec, item: dict[str, Json]) -> Robust:
    radius = _float64(item["radius"], "radius")
    require(radius > 0, "a radius must be above 0")
    return Robust(_stream(config, item), radius)


def read_monotone(config: Config, codec: Codec, item: dict[str, Json]) -> Monotone:
    tokens = [codec.token(token) for token in distinct_values(item["tokens"], "tokens")]
    require(len(tokens) > 1, "an order of tokens has at least two")
    following = np.full(len(codec.vocab), -1, dtype=np.int64)
    following[tokens[:-1]] = tokens[1:]
    order = distinct_values(item["outputs"], "outputs")
    place = {output: height for height, output in enumerate(order)}
    known = set(order) == set(codec.outputs)
    require(known, "an order of outputs lists each of the codec's outputs once")
    return Monotone(following, np.array([place[output] for output in codec.outputs], dtype=np.int64))


def read_subspace(config: Config, codec: Codec, item: dict[str, Json]) -> Subspace:
    directions = _matrix(item["directions"], config)
    positions: tuple[int, ...] | None = None
    if item["positions"] is not None:
        found = integers(item["positions"], "positions", 0, config.n_ctx - 1, config.n_ctx)
        require(found == sorted(set(found)) and found, "positions must ascend, and there must be some; or null")
        positions = tuple(found)
    require(item["carries"] in ("all", "nothing"), f"a subspace carries all or nothing, got {show(item['carries'])}")
    complement = boolean(item["complement"], "complement")
    return Subspace(_stream(config, item), directions, complement, positions, item["carries"] == "all")


@dataclass(frozen=True, eq=False)
class Represents:
    """With the part of the stream that `patch` says taken from y, the model decodes to the program's output when the
    values of `node`, at the same positions, are taken from the program on y."""

    patch: Subspace
    program: Program
    node: int
    arity: int = 2


def read_represents(config: Config, codec: Codec, program: Program, item: dict[str, Json]) -> Represents:
    patch = read_subspace(config, codec, {**item, "complement": False, "carries": "all"})
    node = integer(item["node"], "node", 0, len(program.nodes) - 1)
    program.value(node, "node")
    return Represents(patch, program, node)


def read_writes(config: Config, codec: Codec, item: dict[str, Json]) -> Writes:
    node = text(item["node"], "a node")
    require(node in {name for name, _ in nodes_of(config)}, f"the model has no node {show(node)} that writes")
    at_most = dyadic(item["at_most"], "at_most")
    require(at_most >= 0, "at_most must be at least 0")
    return Writes(node, _matrix(item["directions"], config), at_most)


def read_effect(config: Config, codec: Codec, item: dict[str, Json]) -> Effect:
    name = text(item["edge"], "an edge")
    edges = {str(edge): edge for edge in edges_of(config)}
    require(name in edges, f"the model has no edge {show(name)}")
    numbers = listing(item["direction"], "a direction", config.d_vocab_out, config.d_vocab_out)
    direction = np.array([_float64(number, "a coordinate") for number in numbers])
    within = dyadic(item["within"], "within")
    require(within >= 0, "within must be at least 0")
    return Effect(edges[name], direction, dyadic(item["score"], "score"), within)


def _stream(config: Config, item: dict[str, Json]) -> int:
    """Before which layer; their number: before the read-out."""
    return integer(item["stream"], "stream", 0, len(config.layers))


def _matrix(data: Json, config: Config) -> Floats:
    """Directions [k, d_model], k from 1 to d_model."""
    rows = listing(data, "directions", config.d_model, 1)
    require(len(rows) * config.d_model <= MAX_NUMBERS, "the directions have too many numbers")
    found = [listing(row, "a direction", config.d_model, config.d_model) for row in rows]
    return np.array([[_float64(number, "a coordinate") for number in row] for row in found])


def _float64(data: Json, what: str) -> float:
    """A number that float64 holds exactly."""
    exact = dyadic(data, what)
    try:
        near = exact.numerator / exact.denominator
    except OverflowError:
        near = float("inf")
    require(abs(near) < float("inf") and Fraction(near) == exact, f"{what} must be a float64 number")
    return near
