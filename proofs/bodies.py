"""The bodies of theorems, read strictly (section 3 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from .circuit import ABLATIONS, Circuit, outside, read_circuit
from .codec import Codec
from .core import Ints, Program, read_program
from .format import (
    Json,
    Value,
    boolean,
    canonical_json,
    dyadic,
    integer,
    integers,
    listing,
    record,
    require,
    show,
    text,
    value,
)
from .model import Config, Weights
from .stream_bodies import (
    Agree,
    Effect,
    HeadTable,
    Monotone,
    Represents,
    Robust,
    Subspace,
    Writes,
    read_agree,
    read_effect,
    read_head_table,
    read_monotone,
    read_represents,
    read_robust,
    read_subspace,
    read_writes,
)

MAX_PARTS = 1024
MAX_MACHINE = 2**22
MAX_REFERENCE = 2**20
MAX_RANGES = 2**16
HEX = "0123456789abcdef"


@dataclass(frozen=True)
class Computes:
    """The decoded output equals the program's output, at every position."""

    program: Program
    arity: int = 1


@dataclass(frozen=True)
class NeverOutputs:
    """The decoded output is none of these, at any position."""

    outputs: tuple[Value, ...]
    arity: int = 1


@dataclass(frozen=True)
class Margin:
    """The decoded logit minus every other logit is at least this, at every position."""

    at_least: Fraction
    arity: int = 1


@dataclass(frozen=True)
class LogitDifference:
    """The logit of output `above` minus that of output `below` is at least this, at every position."""

    above: int
    below: int
    at_least: Fraction
    arity: int = 1


@dataclass(frozen=True)
class Invariant:
    """On x and on x changed the decoded outputs agree, at every position that is not irrelevant.

    Changed: each token replaced by `tokens[token]`, then those at `irrelevant` positions by token 0 of the codec.
    `moved[output]`: what an output of the first run is replaced by before comparing; -1: by nothing the codec has.
    """

    tokens: Ints
    moved: Ints
    irrelevant: tuple[int, ...]
    arity: int = 1


@dataclass(frozen=True)
class Attends:
    """The head attends uniformly to the visible keys that the selector selects, or if there are none to BOS."""

    layer: int
    head: int
    program: Program
    selector: int
    tolerance: Fraction
    arity: int = 1


@dataclass(frozen=True)
class Alone:
    """A circuit by itself: everything outside it replaced.

    For ablation `mean`, one of `reference`, token ids [input, position] without BOS, and `means`, a vector [d_model]
    for each source of an edge outside the circuit.
    """

    circuit: Circuit
    ablation: str
    reference: Ints | None = None
    means: dict[str, Weights] | None = None

    @property
    def arity(self) -> int:
        return 2 if self.ablation == "resample" else 1


@dataclass(frozen=True)
class Faithful:
    """The circuit alone decodes as the model does."""

    alone: Alone

    @property
    def arity(self) -> int:
        return self.alone.arity


@dataclass(frozen=True)
class Interchange:
    """With these heads and neurons taken from a run on a second input, the model decodes to the program's output when
    the values of `node` are taken from the program on the second input. `neurons`: (layer, first, end)."""

    program: Program
    node: int
    heads: tuple[tuple[int, int], ...]
    neurons: tuple[tuple[int, int, int], ...]
    arity: int = 2


@dataclass(frozen=True)
class Labels:
    """The one decoded output is that of the input's label: of the state in which a machine ends that reads the input.

    `delta[state, token]`, the start is state 0; `labels[state]`: an index into the codec's outputs, or -1 for none.
    `last_first`: the machine reads the last token first, then the others from the first to the last but one.
    `alone`: the output is not the model's but that of this circuit alone.
    """

    delta: Ints
    labels: Ints
    last_first: bool = False
    alone: Alone | None = None

    @property
    def arity(self) -> int:
        return 1 if self.alone is None else self.alone.arity


@dataclass(frozen=True)
class LabelMargin:
    """The logit of the input's label, which it has, exceeds every other by at least `at_least` > 0; see `Labels`."""

    delta: Ints
    labels: Ints
    last_first: bool
    at_least: Fraction
    alone: Alone | None = None

    @property
    def arity(self) -> int:
        return 1 if self.alone is None else self.alone.arity


Part: TypeAlias = (
    Computes | NeverOutputs | Margin | LogitDifference | Invariant | Attends | Faithful | Interchange | Labels
    | LabelMargin | Robust | Monotone | Subspace | Writes | Effect | Agree | HeadTable | Represents
)  # fmt: skip


@dataclass
class BodyReader:
    """Reads the parts of a body about a model of this shape, read by this codec; equal programs are read once."""

    config: Config
    codec: Codec
    programs: dict[bytes, Program] = field(default_factory=dict)

    def parts(self, data: Json) -> list[Part]:
        """The parts of an `and`, or the one part; the list is flat."""
        kind = data.get("kind") if isinstance(data, dict) else None
        if kind == "and":
            entries = listing(record(data, "body", ("kind", "parts"))["parts"], "parts", MAX_PARTS, 1)
            found = [part for entry in entries for part in self.parts(entry)]
            require(len(found) <= MAX_PARTS, f"the body has more than {MAX_PARTS} parts")
            return found
        require(isinstance(kind, str) and kind in READERS, f"unknown body {show(kind)}")
        keys, reader = READERS[str(kind)]
        return [reader(self, record(data, "body", ("kind", *keys), OPTIONAL.get(str(kind), ())))]

    def program(self, data: Json) -> Program:
        key = canonical_json(_nameless(data))
        if key not in self.programs:
            self.programs[key] = read_program(data)
        return self.programs[key]


def _nameless(program: Json) -> Json:
    """The program's JSON without names, which have no meaning."""
    if not isinstance(program, dict) or not isinstance(program.get("nodes"), list):
        return program
    nodes = [{k: v for k, v in n.items() if k != "name"} if isinstance(n, dict) else n for n in program["nodes"]]
    return {**program, "name": "", "nodes": nodes}


def _computes(reader: BodyReader, item: dict[str, Json]) -> Computes:
    return Computes(reader.program(item["program"]))


def _never_outputs(reader: BodyReader, item: dict[str, Json]) -> NeverOutputs:
    return NeverOutputs(tuple(value(x, "an output") for x in listing(item["outputs"], "outputs", 2**16, 1)))


def _margin(reader: BodyReader, item: dict[str, Json]) -> Margin:
    return Margin(dyadic(item["at_least"], "at_least"))


def _logit_difference(reader: BodyReader, item: dict[str, Json]) -> LogitDifference:
    place = {output: number for number, output in enumerate(reader.codec.outputs)}
    above, below = (value(item[key], "an output") for key in ("output", "rival"))
    require(above in place and below in place, "the output or its rival is none of the codec's outputs")
    require(above != below, "an output is its own rival")
    return LogitDifference(place[above], place[below], dyadic(item["at_least"], "at_least"))


def _invariant(reader: BodyReader, item: dict[str, Json]) -> Invariant:
    codec = reader.codec
    pairs = [listing(x, "a relabelling", 2, 2) for x in listing(item["relabelling"], "relabelling", len(codec.vocab))]
    names = {value(a, "a token"): value(b, "a token") for a, b in pairs}
    require(len(names) == len(pairs), "a token is relabelled twice")
    require(set(names) <= set(codec.vocab), "a relabelled token is not in the codec's vocab")
    tokens = np.array([codec.token(names.get(token, token)) for token in codec.vocab], dtype=np.int64)
    moved = np.arange(len(codec.outputs))
    if boolean(item["relabel_outputs"], "relabel_outputs"):
        place = {output: index for index, output in enumerate(codec.outputs)}
        moved = np.array([place.get(names.get(y, y), -1) for y in codec.outputs], dtype=np.int64)
    irrelevant = integers(item["irrelevant_positions"], "positions", 0, reader.config.n_ctx - 1, reader.config.n_ctx)
    require(irrelevant == sorted(set(irrelevant)), "irrelevant positions must ascend")
    require(names or irrelevant, "nothing is changed: relabelling and irrelevant_positions are empty")
    return Invariant(tokens, moved, tuple(irrelevant))


def _attends(reader: BodyReader, item: dict[str, Json]) -> Attends:
    layer = integer(item["layer"], "layer", 0, len(reader.config.layers) - 1)
    head = integer(item["head"], "head", 0, reader.config.layers[layer].n_heads - 1)
    program = reader.program(item["program"])
    selector = integer(item["selector"], "selector", 0, len(program.nodes) - 1)
    require(program.nodes[selector].is_selector, f"node {selector} is not a selector")
    return Attends(layer, head, program, selector, dyadic(item["tolerance"], "tolerance"))


def _faithful(reader: BodyReader, item: dict[str, Json]) -> Faithful:
    return Faithful(_alone(reader, {key: entry for key, entry in item.items() if key != "kind"}))


def _alone(reader: BodyReader, data: Json) -> Alone:
    item = record(data, "a circuit with its ablation", ("circuit", "ablation"), ("reference", "means"))
    require(item["ablation"] in ABLATIONS, f"unknown ablation {show(item['ablation'])}")
    circuit = read_circuit(item["circuit"], reader.config)
    given = ("reference" in item) + ("means" in item)
    require(given == (item["ablation"] == "mean"), "a mean, and nothing else, has either reference inputs or vectors")
    if "means" in item:
        return Alone(circuit, "mean", None, _vectors(circuit, reader.config, item["means"]))
    if item["ablation"] != "mean":
        return Alone(circuit, item["ablation"])
    bos = int(reader.codec.bos)
    rows = listing(item["reference"], "reference", MAX_REFERENCE, 1)
    words = [listing(row, "a reference input", reader.config.n_ctx - bos, 1) for row in rows]
    require(len({len(word) for word in words}) == 1, "the reference inputs have different lengths")
    require(len(words) * (len(words[0]) + bos) <= MAX_REFERENCE, f"the reference has over {MAX_REFERENCE} positions")
    ids = [[reader.codec.token(value(x, "a token")) for x in word] for word in words]
    return Alone(circuit, "mean", np.array(ids, dtype=np.int64))


def _vectors(circuit: Circuit, config: Config, data: Json) -> dict[str, Weights]:
    """A finite float32 vector for each source of an edge outside the circuit: its little-endian bytes, in hex."""
    wanted = sorted({edge.source for edge in outside(circuit, config)})
    item = record(data, "means", tuple(wanted))
    found = {}
    for node in wanted:
        digits = item[node]
        good = isinstance(digits, str) and len(digits) == 8 * config.d_model and set(digits) <= set(HEX)
        require(good, f"the mean of {node} must be {8 * config.d_model} digits of 0-9a-f, got {show(digits)}")
        found[node] = np.frombuffer(bytes.fromhex(digits), "<f4").astype(np.float32)
        require(np.isfinite(found[node]).all(), f"the mean of {node} holds a NaN or an infinity")
    return found


def _interchange(reader: BodyReader, item: dict[str, Json]) -> Interchange:
    program, layers = reader.program(item["program"]), reader.config.layers
    node = integer(item["node"], "node", 0, len(program.nodes) - 1)
    program.value(node, "node")
    heads, neurons = [], []
    for entry in listing(item["heads"], "heads", MAX_RANGES):
        pair = listing(entry, "a head", 2, 2)
        layer = integer(pair[0], "layer", 0, len(layers) - 1)
        heads.append((layer, integer(pair[1], "head", 0, layers[layer].n_heads - 1)))
    for entry in listing(item["neurons"], "neurons", MAX_RANGES):
        triple = listing(entry, "a range of neurons", 3, 3)
        layer = integer(triple[0], "layer", 0, len(layers) - 1)
        first = integer(triple[1], "first neuron", 0, layers[layer].d_mlp - 1)
        neurons.append((layer, first, integer(triple[2], "end", first + 1, layers[layer].d_mlp)))
    require(all(x < y for x, y in zip(heads, heads[1:], strict=False)), "heads must ascend")
    apart = all(x[0] < y[0] or (x[0] == y[0] and x[2] <= y[1]) for x, y in zip(neurons, neurons[1:], strict=False))
    require(apart, "ranges of neurons must ascend and not overlap")
    return Interchange(program, node, tuple(heads), tuple(neurons))


def _labels(reader: BodyReader, item: dict[str, Json]) -> Labels:
    return Labels(*_machine(reader, item), _circuit(reader, item))


def _label_margin(reader: BodyReader, item: dict[str, Json]) -> LabelMargin:
    at_least = dyadic(item["at_least"], "at_least")
    require(at_least > 0, "a margin of labels must be above 0")
    return LabelMargin(*_machine(reader, item), at_least, _circuit(reader, item))


def _circuit(reader: BodyReader, item: dict[str, Json]) -> Alone | None:
    """The circuit that a body about labels is about, if it is about one."""
    if "circuit" not in item:
        return None
    alone = _alone(reader, item["circuit"])
    require(alone.ablation != "any", "ablation any is for bodies of kind faithful")
    if alone.circuit.by_node:
        require("logits" in alone.circuit.nodes, "a circuit by nodes must have the node logits")
    return alone


def _machine(reader: BodyReader, item: dict[str, Json]) -> tuple[Ints, Ints, bool]:
    """Transitions and labels of the machine, and whether it reads the last token first; see `Labels`."""
    text(item["name"], "a task's name")
    require(reader.config.readout != "each", "labels are for models with one read-out")
    machine = record(item["machine"], "a label machine", ("transitions", "labels"), ("last_first",))
    require(machine.get("last_first", True) is True, "last_first is true, or it is left out")
    rows = listing(machine["transitions"], "transitions", MAX_MACHINE, 1)
    width = len(reader.codec.vocab)
    require(len(rows) * width <= MAX_MACHINE, "the label machine is too large")
    targets = [integers(row, "transitions", 0, len(rows) - 1, width) for row in rows]
    require(all(len(row) == width for row in targets), "a label machine has one transition for each state and token")
    delta = np.array(targets, dtype=np.int64)
    labels = integers(machine["labels"], "labels", -1, len(reader.codec.outputs) - 1, len(rows))
    require(len(labels) == len(rows), "a label machine has one label for each state")
    return delta, np.array(labels, dtype=np.int64), "last_first" in machine


def _with(read: Callable[[Config, Codec, dict[str, Json]], Part]) -> Callable[[BodyReader, dict[str, Json]], Part]:
    return lambda reader, item: read(reader.config, reader.codec, item)


def _represents(reader: BodyReader, item: dict[str, Json]) -> Represents:
    return read_represents(reader.config, reader.codec, reader.program(item["program"]), item)


READERS: dict[str, tuple[tuple[str, ...], Callable[[BodyReader, dict[str, Json]], Part]]] = {
    "computes": (("program",), _computes),
    "never_outputs": (("outputs",), _never_outputs),
    "margin": (("at_least",), _margin),
    "logit_difference": (("output", "rival", "at_least"), _logit_difference),
    "invariant": (("relabelling", "relabel_outputs", "irrelevant_positions"), _invariant),
    "attends": (("layer", "head", "program", "selector", "tolerance"), _attends),
    "faithful": (("circuit", "ablation"), _faithful),
    "interchange": (("program", "node", "heads", "neurons"), _interchange),
    "labels": (("name", "machine"), _labels),
    "label_margin": (("name", "machine", "at_least"), _label_margin),
    "robust": (("stream", "radius"), _with(read_robust)),
    "monotone": (("tokens", "outputs"), _with(read_monotone)),
    "subspace": (("stream", "directions", "complement", "positions", "carries"), _with(read_subspace)),
    "writes": (("node", "directions", "at_most"), _with(read_writes)),
    "agree": (("circuits", "ablation"), _with(read_agree)),
    "head_table": (("circuit", "head", "relation", "at_least"), _with(read_head_table)),
    "represents": (("stream", "directions", "positions", "program", "node"), _represents),
    "effect": (("edge", "direction", "score", "within"), _with(read_effect)),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "faithful": ("reference", "means"),
    "labels": ("circuit",),
    "label_margin": ("circuit",),
}
