"""The theorem of a certificate: reading it, and saying it in words (section 3 of the specification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from .automaton import MAX_TOKENS, Bits, Domain, read_domain
from .circuit import ABLATIONS, Circuit, read_circuit
from .core import Program, read_program
from .format import (
    Json,
    Value,
    boolean,
    canonical_json,
    distinct_values,
    dyadic,
    listing,
    record,
    require,
    show,
    value,
    within,
)
from .model import Config, Model, read_config, same_config

MAX_PARTS = 64


@dataclass(frozen=True)
class Codec:
    """Token t is vocab.index(t); BOS is len(vocab); outputs are decoded from the largest logit or the nearest point."""

    vocab: tuple[Value, ...]
    bos: bool
    categorical: bool
    outputs: tuple[Value, ...]
    points: tuple[Fraction, ...]


@dataclass(frozen=True)
class Computes:
    """The decoded output equals the program's output, at every position."""

    program: Program


@dataclass(frozen=True)
class NeverOutputs:
    """The decoded output is none of these, at any position."""

    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Margin:
    """The decoded logit minus every other logit is at least this, at every position."""

    at_least: Fraction


@dataclass(frozen=True)
class Faithful:
    """With everything outside the circuit replaced, the model decodes as it does with nothing replaced."""

    circuit: Circuit
    ablation: str


Part: TypeAlias = Computes | NeverOutputs | Margin | Faithful


@dataclass(frozen=True)
class Theorem:
    """A well-formed theorem about a model that has the stated configuration and weights."""

    domain: Domain
    parts: tuple[Part, ...]
    program: Program | None
    codec: Codec
    model: Model

    def alphabets(self, program: Program) -> dict[int, Bits]:
        """For each length with words, which of the program's tokens occur. Raises `Rejected` for unknown tokens."""
        position = {item: index for index, item in enumerate(program.vocab)}
        found = {}
        for n, occurs in self.domain.alphabets().items():
            tokens = [self.domain.vocab[v] for v in np.flatnonzero(occurs)]
            require(all(t in position for t in tokens), f"tokens of {show(tokens)} are not in the program's vocab")
            found[n] = np.zeros(len(program.vocab), dtype=np.bool_)
            found[n][[position[t] for t in tokens]] = True
        return found


def read_theorem(data: Json, model: Model) -> Theorem:
    """The theorem, if it is well formed and about this model."""
    with within("theorem", "theorem"):
        keys = ("quantifier", "domain", "body", "codec", "config", "weights_sha256", "semantics")
        item = record(data, "theorem", keys)
        require(item["quantifier"] == "forall", f"unsupported quantifier {show(item['quantifier'])}")
        require(item["semantics"] == "real", f"unsupported semantics {show(item['semantics'])}")
        config = read_config(item["config"])
        require(same_config(config, model.config), "the model has another configuration than the theorem")
        require(item["weights_sha256"] == model.sha256, "the model has other weights than the theorem (weights_sha256)")
        config.require_plain()
        domain, codec = read_domain(item["domain"]), _read_codec(item["codec"])
        programs: dict[bytes, Program] = {}
        parts = tuple(_read_body(item["body"], programs, config))
        require(len(programs) <= 1, "two parts of the body are about different programs")
        theorem = Theorem(domain, parts, next(iter(programs.values()), None), codec, model)
        _check_fit(theorem)
        return theorem


def _read_codec(data: Json) -> Codec:
    item = record(data, "codec", ("vocab", "bos", "kind", "outputs", "points"))
    vocab = distinct_values(item["vocab"], "codec vocab", MAX_TOKENS)
    outputs = distinct_values(item["outputs"], "codec outputs")
    require(item["kind"] in ("categorical", "scalar"), f"unknown codec kind {show(item['kind'])}")
    categorical = item["kind"] == "categorical"
    count = 0 if categorical else len(outputs)
    points = tuple(dyadic(point, "a point") for point in listing(item["points"], "codec points", count, count))
    require(len(set(points)) == len(points), "two outputs have the same point")
    return Codec(vocab, boolean(item["bos"], "codec bos"), categorical, outputs, points)


def _read_body(data: Json, programs: dict[bytes, Program], config: Config) -> list[Part]:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "computes":
        item = record(data, "body", ("kind", "program"))
        program = programs.setdefault(canonical_json(_nameless(item["program"])), read_program(item["program"]))
        return [Computes(program)]
    if kind == "never_outputs":
        item = record(data, "body", ("kind", "outputs"))
        outputs = tuple(value(x, "an output") for x in listing(item["outputs"], "outputs", 2**16, 1))
        return [NeverOutputs(outputs)]
    if kind == "margin":
        return [Margin(dyadic(record(data, "body", ("kind", "at_least"))["at_least"], "at_least"))]
    if kind == "faithful":
        item = record(data, "body", ("kind", "circuit", "ablation"))
        require(item["ablation"] in ABLATIONS, f"unknown ablation {show(item['ablation'])}")
        return [Faithful(read_circuit(item["circuit"], config), item["ablation"])]
    require(kind == "and", f"unknown body {show(kind)}")
    parts = listing(record(data, "body", ("kind", "parts"))["parts"], "parts", MAX_PARTS, 1)
    found = [leaf for part in parts for leaf in _read_body(part, programs, config)]
    require(len(found) <= MAX_PARTS, f"the body has more than {MAX_PARTS} parts")
    return found


def _nameless(program: Json) -> Json:
    """The program's JSON without names, which have no meaning."""
    if not isinstance(program, dict) or not isinstance(program.get("nodes"), list):
        return program
    nodes = [{k: v for k, v in n.items() if k != "name"} if isinstance(n, dict) else n for n in program["nodes"]]
    return {**program, "name": "", "nodes": nodes}


def _check_fit(theorem: Theorem) -> None:
    """Codec, domain, program and model belong together."""
    codec, config, domain = theorem.codec, theorem.model.config, theorem.domain
    extra = int(codec.bos)
    require(config.d_vocab >= len(codec.vocab) + extra, "the model's vocabulary is smaller than the codec's")
    require(config.n_ctx >= domain.hi + extra, f"inputs of length {domain.hi} do not fit the model's context")
    if codec.categorical:
        require(config.d_vocab_out == len(codec.outputs), "the model's logits do not match the codec's outputs")
    else:
        require(config.d_vocab_out == 1, "a scalar codec needs a model with one logit")
        require(not any(isinstance(part, Margin) for part in theorem.parts), "a margin needs a categorical codec")
    known = set(codec.vocab)
    unknown = [token for token in domain.vocab if token not in known]
    require(not unknown, f"tokens {show(unknown)} of the domain are not in the codec's vocab")
    require(len(domain.alphabets()) > 0, "the domain is empty")
    if theorem.program is not None:
        require(theorem.program.max_len >= domain.hi, "the domain has longer inputs than the program")


# --- in words ----------------------------------------------------------------------------------------------------

SEMANTICS = (
    "Semantics: real. The weights are the float32 numbers of the file, taken as exact reals; the model is evaluated "
    "without rounding, on one unpadded sequence. What float32 arithmetic on a machine computes is not covered."
)
TRUSTED_BASE = (
    "Trusted base: certiformer.proofs (this checker) and its specification; Python, numpy (IEEE 754 double precision, "
    "round to nearest) and python-flint (arb's exponential); SHA-256 for the weights' identity. That a Python function "
    "was tabulated faithfully into the program's finite tables is outside the theorem: the tables are the theorem."
)


def describe(theorem: Mapping[str, Json]) -> str:
    """The theorem in words, with the domain's exact size, the semantics and the trusted base.

    Takes the `theorem` object of a certificate, as `Valid.theorem` holds it.
    """
    domain = read_domain(theorem["domain"])
    size = domain.size()
    kind = "every sequence" if theorem["domain"]["kind"] == "product" else "every sequence that the automaton accepts"
    tokens = ", ".join(_plain(item) for item in domain.vocab[:12]) + (", …" if len(domain.vocab) > 12 else "")
    config, codec = theorem["config"], theorem["codec"]
    layers = "; ".join(
        f"layer {i}: {layer['n_heads']} heads of width {layer['d_head']}, {layer['d_mlp']} neurons"
        for i, layer in enumerate(config["layers"])
    )
    lines = [
        f"For {kind} of length {domain.lo} to {domain.hi} over {len(domain.vocab)} tokens ({tokens}):",
        f"  {_body(theorem['body'])}.",
        f"Domain: {size} inputs.",
        f"Model: weights SHA-256 {theorem['weights_sha256']}; d_model {config['d_model']}; {layers}; "
        f"{'causal' if config['causal'] else 'bidirectional'} attention.",
        f"Read-out: {codec['kind']}, {len(codec['outputs'])} outputs"
        + (", with a BOS token in front whose position is dropped." if codec["bos"] else ", no BOS token."),
        SEMANTICS,
        TRUSTED_BASE,
    ]
    return "\n".join(lines)


def _body(body: Json) -> str:
    if body["kind"] == "computes":
        program = body["program"]
        return (
            f"the model's decoded output equals the RASP program {_plain(program['name'])} "
            f"({len(program['nodes'])} nodes, given in full in the certificate) at every position"
        )
    if body["kind"] == "never_outputs":
        return "the model never outputs " + ", ".join(_plain(value(x, "an output")) for x in body["outputs"])
    if body["kind"] == "margin":
        return f"the decoded logit exceeds every other logit by at least {_plain(dyadic(body['at_least'], 'at_least'))}"
    if body["kind"] == "faithful":
        circuit = body["circuit"]
        size = f"{len(circuit['nodes'])} nodes, {len(circuit['edges'])} edges, given in the certificate"
        others = f"every other {circuit['granularity']} under {body['ablation']} ablation"
        return f"the circuit ({size}) alone decodes as the model does, {others}"
    return "; and ".join(_body(part) for part in body["parts"])


def _plain(item: Value) -> str:
    return repr(item) if isinstance(item, str) else str(item)
