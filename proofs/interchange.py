"""Rule `interchange`: a composition proof of the program, replayed on two runs at once (specification, section 4b).

The run on y (the source) and the edited run on x (the base) each have an abstract state; both speak of the nodes of one
program that reads two inputs. What the exchanged components write in the base is what the source's step says of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .attention import idle_error
from .bodies import Computes, Interchange
from .composition import arrange, check_decode, round_bos
from .context import Context, head_of, with_bias
from .core import Bits, Program, read_nodes
from .exact import from_float32, grow, zeros
from .format import Json, integer, listing, record, require, within
from .head_rule import check_head
from .mlp_rule import check_mlp
from .ranges import Ranges
from .resolving import MAX_TERMS, Resolver, read_width_shares, read_width_sums
from .state import State, start
from .theorem import Theorem

SOURCE_TOKENS = 2
"""The node that holds the tokens of y, in the program of two inputs."""


def check_interchange(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if every part follows from the proof's steps, or raises `Rejected` naming part, step and rule."""
    with within("proof", "interchange"):
        item = record(proof, "proof", ("rule", "auxiliary", "width_sums", "steps"), ("width_shares",))
        theorem.model.config.require_plain()
        steps = listing(item["steps"], "steps", 2**14, 1)
    for number, part in enumerate(theorem.parts):
        assert isinstance(part, Interchange)
        with within(f"part {number} (node {part.node})", "interchange"):
            require(
                part.program.causal == theorem.model.config.causal, "the program and the model differ in being causal"
            )
            pair = _Pair.of(part, item)
        _check_part(theorem, part, pair, item, steps)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A program of two inputs: that of the theorem on y, and on x with one node's values taken from y.

    `source[u]`, `base[u]`: where node u of the (extended) program stands on y, and on x.
    """

    program: Program
    source: dict[int, int]
    base: dict[int, int]
    exchanged: int

    @staticmethod
    def of(part: Interchange, item: dict[str, Json]) -> _Pair:
        """Nodes: tokens of x, indices, tokens of y; then all nodes on y, then on x."""
        require(part.node > 1, "tokens and indices are computed by no component; there is nothing to exchange")
        whole = read_nodes(part.program, listing(item["auxiliary"], "auxiliary", 4096))
        nodes = [*whole.nodes[:2], whole.nodes[0]]
        source, base = {0: SOURCE_TOKENS, 1: 1}, {0: 0, 1: 1}
        for place in (source, base):
            for number, node in list(enumerate(whole.nodes))[2:]:
                if place is base and number == part.node:
                    base[number] = source[number]
                    continue
                place[number] = len(nodes)
                nodes.append(replace(node, args=tuple(place[arg] for arg in node.args)))
        output = base[part.program.output]
        program = Program(whole.vocab, whole.max_len, whole.causal, tuple(nodes), output)
        return _Pair(program, source, base, part.node)

    def facts(self, entries: Json, keys: tuple[str, ...]) -> list[Json]:
        """Width sums (or shares) on y, and those on x that do not speak of the exchanged node."""
        found: list[Json] = []
        for place in (self.source, self.base):
            for entry in listing(entries, "facts", len(self.source)):
                fact, spoken = _renamed_fact(record(entry, "a fact", keys), place)
                if place is self.source or self.base[self.exchanged] not in spoken:
                    found.append(fact)
        return found


def _renamed_fact(fact: dict[str, Json], place: dict[int, int]) -> tuple[Json, set[int]]:
    """A width sum or a width share with other numbers for its nodes; and these."""
    if "terms" not in fact:
        renamed = {key: _at(number, place) for key, number in fact.items()}
        return renamed, set(renamed.values())
    pairs = [listing(term, "a term", 2, 2) for term in listing(fact["terms"], "terms", MAX_TERMS)]
    terms = [[_at(number, place), coefficient] for number, coefficient in pairs]
    node = _at(fact["node"], place)
    return {"node": node, "terms": terms}, {node, *(number for number, _ in terms)}


def _at(number: Json, place: dict[int, int]) -> int:
    return place[integer(number, "a node", 0, len(place) - 1)]


def _renamed(step: Json, place: dict[int, int]) -> Json:
    """A head, mlp or decode step with other numbers for its nodes; what is malformed stays, for its rule to refuse."""
    if not isinstance(step, dict):
        return step
    found = dict(step)
    if "node" in found:
        found["node"] = _at(found["node"], place)
    if "reads" in found:
        found["reads"] = [_at(node, place) for node in listing(found["reads"], "reads", 16)]
    if "atoms" in found:
        atoms = listing(found["atoms"], "atoms", 64)
        found["atoms"] = [
            {**atom, **{key: _at(atom[key], place) for key in ("key", "query") if key in atom}}
            for atom in (record(atom, "an atom", ("key", "query", "table")) for atom in atoms)
        ]
    if "groups" in found:
        found["groups"] = [_renamed(group, place) for group in listing(found["groups"], "groups", 2**20)]
    return found


def _check_part(theorem: Theorem, part: Interchange, pair: _Pair, item: dict[str, Json], steps: list[Json]) -> None:
    """One node exchanged: both runs layer by layer, then the base's decoding."""
    program = pair.program
    claim = replace(theorem, parts=(Computes(program),), programs=(program,))
    with within("program of two inputs", "ranges"):
        ranges = Ranges(program, theorem.alphabets(program))
    with within("width_sums", "width_sum"):
        sums = read_width_sums(pair.facts(item["width_sums"], ("node", "terms")), ranges)
    with within("width_shares", "width_share"):
        listed = pair.facts(item["width_shares"], ("node", "counted", "inside")) if "width_shares" in item else None
        shares = {} if listed is None else read_width_shares(listed, ranges)
    context = Context(claim, ranges, Resolver(ranges, sums, shares))
    codec = theorem.codec
    rows = np.array([codec.token(value) if value in codec.position else 0 for value in program.vocab], dtype=np.int64)
    base = start(theorem.model, ranges, rows, len(codec.vocab) if codec.bos else None)
    encodings = dict(base.encodings)
    encodings[SOURCE_TOKENS] = encodings.pop(0)
    runs = _Runs(context, part, pair, replace(base, encodings=encodings), base)
    by_layer, decode = arrange(claim, steps)
    for layer in range(len(theorem.model.config.layers)):
        runs.layer(layer, by_layer.get(layer, []))
    with within(f"steps[{len(steps) - 1}]", "decode"):
        check_decode(context, runs.base, _renamed(decode, pair.base))


@dataclass(eq=False)
class _Runs:
    """The abstract states of the run on y and of the edited run on x."""

    context: Context
    part: Interchange
    pair: _Pair
    source: State
    base: State

    def layer(self, layer: int, steps: list[tuple[str, Json]]) -> None:
        """Heads, which all read the states before the layer; then neurons."""
        shape = self.context.theorem.model.config.layers[layer]
        weights = self.context.theorem.model.weights
        heads = {}
        for name, step in steps:
            if step["rule"] == "head":
                with within(name, "head"):
                    number = integer(step.get("head"), "head", 0, shape.n_heads - 1)
                    require(number not in heads, f"two steps for head {number}")
                    heads[number] = (name, step)
        source, base = self.source, self.base
        exchanged = {head for at, head in self.part.heads if at == layer}
        for number in range(shape.n_heads):
            name, step = heads.get(number, (f"layer {layer}", None))
            source = self._head(self.source, source, layer, number, name, step, self.pair.source)
            if number in exchanged:
                base = self._head(self.source, base, layer, number, name, step, self.pair.source)
            else:
                base = self._head(self.base, base, layer, number, name, step, self.pair.base)
        if shape.n_heads:
            bias = from_float32(weights[f"blocks.{layer}.attn.b_O"])
            source, base = with_bias(source, bias), with_bias(base, bias)
        if shape.d_mlp:
            source, base = self._neurons(source, base, layer, shape.d_mlp, steps)
        self.source, self.base = round_bos(source), round_bos(base)

    def _head(
        self, reads: State, onto: State, layer: int, number: int, name: str, step: Json, place: dict[int, int]
    ) -> State:
        """What a head that reads one state adds to another (or the same)."""
        if step is not None:
            with within(name, "head"):
                return check_head(self.context, reads, onto, layer, number, _renamed(step, place))
        with within(name, "idle head"):
            at_keys, at_bos = idle_error(head_of(self.context, reads, layer, number), self.context.ranges)
            return replace(onto, eps=grow(onto.eps + at_keys), bosr=grow(onto.bosr + at_bos))

    def _neurons(
        self, source: State, base: State, layer: int, width: int, steps: list[tuple[str, Json]]
    ) -> tuple[State, State]:
        """The source's neurons; and the base's, those exchanged from the source."""
        found = [(name, step) for name, step in steps if step["rule"] == "mlp"]
        name, step = found[0] if found else (f"layer {layer}", {"rule": "mlp", "layer": layer, "groups": []})
        exchanged: Bits = np.zeros(width, dtype=np.bool_)
        for at, first, end in self.part.neurons:
            if at == layer:
                exchanged[first:end] = True
        with within(name, "mlp"):
            on_y, on_x = (_renamed(step, place) for place in (self.pair.source, self.pair.base))
            after = check_mlp(self.context, source, layer, on_y)
            kept = check_mlp(self.context, base, layer, _groups(on_x, exchanged, False), ~exchanged)
            if exchanged.any():
                d = self.context.theorem.model.config.d_model
                nothing = State({}, zeros(d), np.zeros(d), zeros(d), np.zeros(d))
                given = check_mlp(self.context, source, layer, _groups(on_y, exchanged, True), exchanged, nothing)
                kept = _together(kept, given)
        return after, kept


def _groups(step: Json, exchanged: Bits, wanted: bool) -> Json:
    """The step with the groups whose neurons are (are not) exchanged; a group must not be torn apart."""
    chosen = []
    for group in listing(step["groups"], "groups", len(exchanged)):
        entry = record(group, "a group", ("neurons", "reads", "node", "encoding"))
        ends = listing(entry["neurons"], "neurons", 2, 2)
        first = integer(ends[0], "first neuron", 0, len(exchanged))
        inside = exchanged[first : integer(ends[1], "end of neurons", first, len(exchanged))]
        require(inside.all() or not inside.any(), f"of the group from neuron {first} on only a part is exchanged")
        if bool(inside.any()) == wanted:
            chosen.append(group)
    return {**step, "groups": chosen}


def _together(state: State, given: State) -> State:
    """The state with what `given` has besides."""
    encodings = dict(state.encodings)
    for node, table in given.encodings.items():
        encodings[node] = encodings[node] + table if node in encodings else table
    return State(
        encodings,
        state.const + given.const,
        grow(state.eps + given.eps),
        state.bos + given.bos,
        grow(state.bosr + given.bosr),
    )
