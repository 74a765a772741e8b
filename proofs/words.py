"""A theorem in words."""

from __future__ import annotations

from collections.abc import Mapping

from .automaton import read_domain
from .format import Json, Value, dyadic, rational, value

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
    several = "forall" != theorem["quantifier"]
    kind = "sequences" if several else "every sequence"
    kind += {"product": "", "distinct": " without repeated tokens"}.get(
        theorem["domain"]["kind"], " that the automaton accepts"
    )
    opening = _opening(theorem)
    tokens = ", ".join(_plain(item) for item in domain.vocab[:12]) + (", …" if len(domain.vocab) > 12 else "")
    config, codec = theorem["config"], theorem["codec"]
    layers = "; ".join(
        f"layer {i}: {layer['n_heads']} heads of width {layer['d_head']}, {layer['d_mlp']} neurons"
        for i, layer in enumerate(config["layers"])
    )
    lines = [
        f"{opening} {kind} of length {domain.lo} to {domain.hi} over {len(domain.vocab)} tokens ({tokens}):",
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


def _opening(theorem: Mapping[str, Json]) -> str:
    share = _plain(rational(theorem["share"], "share")) if "share" in theorem else ""
    return {
        "forall": "For",
        "none": "For none of the",
        "exists": "For at least one of the",
        "at_least": f"For a share of at least {share} of the",
        "fewer_than": f"For a share of less than {share} of the",
    }[theorem["quantifier"]]


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
    if body["kind"] == "invariant":
        return _invariant(body)
    if body["kind"] == "attends":
        return (
            f"head {body['head']} of layer {body['layer']} attends uniformly to what selector {body['selector']} of "
            "the RASP program in the certificate selects (or, if nothing, to BOS), up to "
            f"{_plain(dyadic(body['tolerance'], 'tolerance'))}"
        )
    if body["kind"] == "faithful":
        circuit = body["circuit"]
        size = f"{len(circuit['nodes'])} nodes, {len(circuit['edges'])} edges, given in the certificate"
        others = f"every other {circuit['granularity']} under {body['ablation']} ablation"
        source = " (from any second sequence of the same length)" if body["ablation"] == "resample" else ""
        return f"the circuit ({size}) alone decodes as the model does, {others}{source}"
    if body["kind"] == "interchange":
        return (
            f"with {len(body['heads'])} heads and {len(body['neurons'])} ranges of neurons taken from a run on any "
            "second sequence of the same length, the decoded output equals the RASP program "
            f"{_plain(body['program']['name'])} with the values of node {body['node']} taken from that sequence"
        )
    return "; and ".join(_body(part) for part in body["parts"])


def _invariant(body: Json) -> str:
    names = [f"{_plain(value(a, 'a'))} -> {_plain(value(b, 'b'))}" for a, b in body["relabelling"]]
    change = [f"tokens are relabelled ({', '.join(names)})"] if names else []
    places = ", ".join(map(str, body["irrelevant_positions"]))
    change += [f"the tokens at positions {places} are replaced"] if places else []
    outputs = "relabelled likewise" if body["relabel_outputs"] else "the same"
    where = f" at the other positions than {places}" if places else ""
    return f"when {' and '.join(change)}, the decoded outputs{where} are {outputs}"


def _plain(item: Value) -> str:
    return repr(item) if isinstance(item, str) else str(item)
