"""A theorem in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from . import program_words
from .automaton import read_domain
from .format import Json, Value, dyadic, rational, require, value, within
from .model import Model, read_config
from .theorem import Theorem, read_theorem

SEMANTICS = (
    "real: the weights are the float32 numbers of the file, taken as exact reals; the model is evaluated without "
    "rounding, on one unpadded sequence. What float32 arithmetic on a machine computes is not covered."
)
TRUSTED_BASE = (
    "certiformer.proofs (the checker) and its specification; Python, numpy (IEEE 754 double precision, round to "
    "nearest) and python-flint (arb's exponential); SHA-256 for the weights' identity. That a Python function was "
    "tabulated faithfully into the program's finite tables is outside the theorem: the tables are the theorem."
)
MAX_COUNTING = 2**23
MAX_DIGITS = 60
SHOWN = 12


def read_statement(theorem: Json) -> Theorem:
    """The theorem by the checker's own readers: all that can be read without the model. Raises `Rejected`."""
    with within("theorem", "theorem"):
        require(isinstance(theorem, dict), "the theorem is not an object")
        require("config" in theorem and "weights_sha256" in theorem, "the theorem names no model")
        sha256 = theorem["weights_sha256"]
        good = isinstance(sha256, str) and len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
        require(good, "weights_sha256 is not the SHA-256 of anything")
        return read_theorem(theorem, Model(read_config(theorem["config"]), {}, sha256))


def describe(theorem: Mapping[str, Json]) -> str:
    """The theorem in words, with the domain's exact size, the semantics and the trusted base.

    Takes the `theorem` object of a certificate, as `Valid.theorem` holds it or `read_statement` accepts it.
    """
    if theorem.get("about") == "programs":
        return program_words.describe(theorem)
    return "\n".join([sentence(theorem), *(f"{name}: {text}" for name, text in particulars(theorem).items())])


def sentence(theorem: Mapping[str, Json]) -> str:
    """What is true of which inputs."""
    pairs = of_pairs(theorem["body"])
    which = _which(theorem["domain"])
    one = f"pair x, y of equally long sequences {which}" if pairs else f"sequence {which}"
    many = f"pairs x, y of equally long sequences {which}" if pairs else f"sequences {which}"
    opening = {
        "forall": f"For every {one}",
        "none": f"For every {one}, this is false",
        "exists": f"There is a {one} for which this holds",
        "at_least": f"For at least {_share(theorem)} of the {many}",
        "fewer_than": f"For less than {_share(theorem)} of the {many} this holds, and for the others it is false",
        "at_most": f"For at most {_share(theorem)} of the {many} this holds, and for the others it is false",
        "more_than": f"For more than {_share(theorem)} of the {many}",
        "between": f"For at least {_share(theorem)} and at most {_share(theorem, 'most')} of the {many} this holds, "
        "and for the others it is false",
    }[theorem["quantifier"]]
    return f"{opening}: {_body(theorem['body'], pairs)}."


def particulars(theorem: Mapping[str, Json]) -> dict[str, str]:
    """What the sentence is about and rests on, by name."""
    codec, domain = theorem["codec"], theorem["domain"]
    inputs, pairs = sizes(theorem)
    counted = "inputs of an automaton too large to count them" if inputs is None else f"{about(inputs)} inputs"
    rows = {"Domain": counted}
    if pairs is not None:
        rows["Domain"] = f"{about(pairs)} pairs of inputs, from {counted}"
    if domain["kind"] == "dfa":
        rows["Automaton"] = (
            f"{len(domain['delta'])} states, from state {domain['start']}, accepting in {listed(domain['accept'])}"
        )
    bos = "a BOS token in front, whose position is dropped" if codec["bos"] else "no BOS token"
    return {
        **rows,
        "Model": _config(theorem["config"]),
        "Weights": f"SHA-256 {theorem['weights_sha256']}",
        "Read-out": f"{_readout(codec)}; {bos}",
        "Semantics": SEMANTICS,
        "Trusted base": TRUSTED_BASE,
    }


def sizes(theorem: Mapping[str, Json]) -> tuple[int | None, int | None]:
    """How many inputs the domain has (None: counting them would take long), and if it is about pairs, how many."""
    domain = read_domain(theorem["domain"])
    if domain.delta.size * domain.hi > MAX_COUNTING and theorem["domain"]["kind"] == "dfa":
        return None, None
    counts = domain.sizes().values()
    return sum(counts), sum(n * n for n in counts) if of_pairs(theorem["body"]) else None


OF_PAIRS = ("interchange", "subspace", "represents", "effect")


def of_pairs(body: Json) -> bool:
    """Whether a witness is a pair of inputs."""
    if body["kind"] == "and":
        return any(map(of_pairs, body["parts"]))
    return bool(
        body["kind"] in ("interchange", "subspace", "represents", "effect") or body.get("ablation") == "resample"
    )


# --- numbers and values --------------------------------------------------------------------------------------


def plain(item: Value) -> str:
    """One value: strings in quotes, with escapes for what is not printable."""
    return shorten(repr(item) if isinstance(item, str) else str(item))


def shorten(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(data: Sequence[Json]) -> str:
    """Values, separated by commas; long lists are cut, whole ranges shortened."""
    integers = all(type(item) is int for item in data)
    if integers and len(data) > 4 and list(data) == list(range(data[0], data[0] + len(data))):
        return f"{data[0]}, {data[1]}, ..., {data[-1]}"
    return first(plain(value(item, "a value")) for item in data)


def first(items: Iterable[str]) -> str:
    """The first of some texts, and how many there are."""
    found = list(items)
    return ", ".join(found[:SHOWN]) + (f", ... ({len(found)} in all)" if len(found) > SHOWN else "")


def about(size: int) -> str:
    """An integer exactly, and its size when it is long; beyond 60 digits its size alone."""
    if abs(size) < 10**9:
        return f"{size:,}"
    if abs(size) >= 10**MAX_DIGITS:
        return f"{'-' if size < 0 else ''}about 10^{int(math.log10(abs(size)))}"
    digits = str(abs(size))
    return f"{size} (about {'-' if size < 0 else ''}{digits[0]}.{digits[1:3]}e{len(digits) - 1})"


def digits_of(size: int) -> str:
    """All decimal digits of a natural number, also where Python's `str` refuses."""
    if size < 10**4000:
        return str(size)
    high, low = divmod(size, 10**4000)
    return f"{digits_of(high)}{low:04000d}"


def decimal(number: Fraction) -> str:
    """A decimal; where that is rounded, with the exact number behind it."""
    if number.denominator == 1:
        return about(number.numerator)
    exactly = f"{number.numerator}/{number.denominator}"
    power = number.denominator.bit_length() - 1
    if power > 10 and number.denominator == 1 << power:
        exactly = f"{number.numerator}/2^{power}"
    try:
        short = repr(float(number))
    except OverflowError:
        return shorten(exactly)
    if Fraction(short) == number:
        return short
    if len(exactly) <= 80:
        return f"{short} (exactly {exactly})"
    near = float(number)
    below, above = (
        (math.nextafter(near, -math.inf), near) if Fraction(near) > number else (near, math.nextafter(near, math.inf))
    )
    return f"a number between {below!r} and {above!r}"


def _share(theorem: Mapping[str, Json], key: str = "share") -> str:
    if key not in theorem:
        return ""
    share = rational(theorem[key], key)
    whole, rest = divmod(int(share * 10**12), 10**10)  # rounded down: a share below 1 is never said to be 100 %
    percent = f"{whole}.{rest:010d}".rstrip("0").rstrip(".")
    if Fraction(percent) == share * 100:
        return f"{percent} %"
    exactly = f"{share.numerator}/{share.denominator}"
    exact = f"exactly {exactly}" if len(exactly) <= 80 else "rounded down"
    return f"{percent} % ({repr(float(share))}, {exact})"


# --- parts of the theorem ------------------------------------------------------------------------------------


def _which(domain: Json) -> str:
    low, high = domain["lengths"]
    lengths = f"{low} to {high} tokens" if low != high else f"{low} token{'s' if low > 1 else ''}"
    condition = {
        "product": "",
        "distinct": " without repetition",
        "dfa": f" that an automaton of {len(domain.get('delta', ()))} states accepts",
    }[domain["kind"]]
    return f"of {lengths} from {listed(domain['vocab'])}{condition}"


def _config(config: Json) -> str:
    """The model's shape."""
    layers = config["layers"]
    heads, neurons = sum(layer["n_heads"] for layer in layers), sum(layer["d_mlp"] for layer in layers)
    attention = ("causal " if config["causal"] else "bidirectional ") + config.get("attention", "softmax")
    return (
        f"{len(layers)} layers, {heads} heads, {neurons:,} neurons, d_model {config['d_model']}, "
        f"{attention} attention, {config['activation']}"
        + ("" if config["layer_norm"] is None else f", LayerNorm (epsilon {config['layer_norm']!r})")
        + {"each": "", "last": ", read out at the last position", "mean": ", read out from the mean of all positions"}[
            config["readout"]
        ]
    )


def _readout(codec: Json) -> str:
    """The outputs in the order of the logits, or the points they stand for."""
    if codec["kind"] == "categorical":
        return f"categorical, the largest logit's of {listed(codec['outputs'])}"
    pairs = zip(codec["outputs"], codec["points"], strict=True)
    points = (f"{plain(value(output, 'an output'))} at {decimal(dyadic(point, 'a point'))}" for output, point in pairs)
    return f"scalar, the nearest of {first(points)}"


def _body(body: Json, pairs: bool) -> str:
    """What is claimed of each input; `pairs`: of x and y."""
    kind = body["kind"]
    if kind == "and":
        return "; and ".join(_body(part, pairs) for part in body["parts"])
    on_x = "on x, " if pairs and not of_pairs(body) else ""
    if kind == "computes":
        return f"{on_x}the model's decoded output equals that of the RASP program {_program(body)} at every position"
    if kind == "labels" and "circuit" in body:
        return f"{_alone(body['circuit'])}: its decoded output{_at_x(body)} is {_label(body)}"
    if kind == "labels":
        return f"the model's decoded output is {_label(body)}"
    if kind == "label_margin":
        least = decimal(dyadic(body["at_least"], "at_least"))
        whose = f"{_alone(body['circuit'])}:{_at_x(body)} " if "circuit" in body else ""
        return f"{whose}the logit of {_label(body)} exceeds every other by at least {least}"
    if kind == "never_outputs":
        return f"{on_x}the model never outputs {listed(body['outputs'])}"
    if kind == "margin":
        least = decimal(dyadic(body["at_least"], "at_least"))
        return f"{on_x}the logit of the decoded output exceeds every other by at least {least}, at every position"
    if kind == "invariant":
        return on_x + _invariant(body)
    if kind == "attends":
        return (
            f"{on_x}head {body['head']} of layer {body['layer']} attends uniformly to what selector "
            f"n{body['selector']} of the RASP program {_program(body)} selects (or, if nothing, to BOS), up to "
            f"{decimal(dyadic(body['tolerance'], 'tolerance'))}"
        )
    if kind in STREAM_WORDS:
        return STREAM_WORDS[kind](body, on_x)
    return _faithful(body, on_x) if kind == "faithful" else _interchange(body)


def _robust(body: Json, on_x: str) -> str:
    radius = decimal(dyadic(body["radius"], "radius"))
    return (
        f"{on_x}whatever is added to {_stream(body)}, up to {radius} in each coordinate at each position, "
        "the model decodes as it does with nothing added"
    )


def _monotone(body: Json, on_x: str) -> str:
    return (
        f"{on_x}where one token is replaced by the next one of {listed(body['tokens'])}, no decoded output moves "
        f"towards the front of {listed(body['outputs'])}"
    )


def _subspace(body: Json, on_x: str) -> str:
    where = "at all positions" if body["positions"] is None else f"at positions {listed(body['positions'])}"
    span = f"the span of {len(body['directions'])} directions"
    part = f"the complement of {span}" if body["complement"] else span
    expected = "on x" if body["carries"] == "nothing" else "when all of it there is taken from y"
    return (
        f"with the component in {part} of {_stream(body)}, {where}, taken from the run on y, the model decodes on x "
        f"as it does {expected}"
    )


def _represents(body: Json, on_x: str) -> str:
    where = "at all positions" if body["positions"] is None else f"at positions {listed(body['positions'])}"
    part = f"the component in the span of {len(body['directions'])} directions of {_stream(body)}, {where}"
    return (
        f"with {part}, taken from the run on y, the model's decoded output on x equals that of the RASP program "
        f"{_program(body)} on x with the values of its node n{body['node']} there taken from y"
    )


def _writes(body: Json, on_x: str) -> str:
    most, count = decimal(dyadic(body["at_most"], "at_most")), len(body["directions"])
    return f"{on_x}what {plain(body['node'])} writes measures at most {most} along each of {count} directions"


def _effect(body: Json, on_x: str) -> str:
    score, most = decimal(dyadic(body["score"], "score")), decimal(dyadic(body["within"], "within"))
    return (
        f"what the claimed direction of the logits loses on x when {plain(body['edge'])} carries what its source "
        f"writes on y is within {most} of {score}"
    )


def _agree(body: Json, on_x: str) -> str:
    sizes = [f"the circuit of {len(c['nodes'])} nodes and {len(c['edges'])} edges" for c in body["circuits"]]
    source = ", taken from y," if body["ablation"] == "resample" else ""
    here = "decode on x alike" if source else "decode alike"
    return f"{sizes[0]} alone and {sizes[1]} alone, all else under {body['ablation']} ablation{source} {here}"


def _head_table(body: Json, on_x: str) -> str:
    (layer, head), least = body["head"], decimal(dyadic(body["at_least"], "at_least"))
    circuit = "OV circuit (token to logit)" if body["circuit"] == "ov" else "QK circuit (query token to key token)"
    relation = (
        "the entry of the same value exceeds every other"
        if body["relation"] == "diagonal"
        else ("every entry exceeds the one before it")
    )
    where = f"in the row of each of its tokens of the full {circuit} of head {head} of layer {layer}"
    return f"{on_x}{where}, {relation} by at least {least}"


def _stream(body: Json) -> str:
    return f"the residual stream at depth {body['stream']} (0: the embedding)"


STREAM_WORDS = {
    "robust": _robust,
    "monotone": _monotone,
    "subspace": _subspace,
    "writes": _writes,
    "effect": _effect,
    "agree": _agree,
    "represents": _represents,
    "head_table": _head_table,
}


def _label(body: Json) -> str:
    """What the label is of, and what reads it off the input."""
    order = (
        " that reads the last token first, then the others from the first on" if "last_first" in body["machine"] else ""
    )
    return f"the label of {plain(body['name'])} (by a machine of {len(body['machine']['labels'])} states{order})"


def _program(body: Json) -> str:
    return f"{plain(body['program']['name'])} ({len(body['program']['nodes'])} nodes)"


def _invariant(body: Json) -> str:
    names = [f"{plain(value(a, 'a'))} -> {plain(value(b, 'b'))}" for a, b in body["relabelling"]]
    change = [f"tokens are relabelled ({first(names)})"] if names else []
    places = listed(body["irrelevant_positions"])
    change += [f"the tokens at positions {places} are replaced"] if places else []
    outputs = "relabelled likewise" if body["relabel_outputs"] else "the same"
    where = f" at the other positions than {places}" if places else ""
    return f"when {' and '.join(change)}, the decoded outputs{where} are {outputs}"


def _faithful(body: Json, on_x: str) -> str:
    here = "decodes on x as the model does" if body["ablation"] == "resample" else "decodes as the model does"
    circuit, others = _alone(body).split(", ", 1)
    return f"{on_x}{circuit} {here}, {others}"


def _at_x(body: Json) -> str:
    return " on x" if body["circuit"]["ablation"] == "resample" else ""


def _alone(body: Json) -> str:
    """The circuit, and what stands in for the rest."""
    circuit, ablation = body["circuit"], body["ablation"]
    size = f"{len(circuit['nodes'])} nodes and {len(circuit['edges'])} edges"
    over = f" (over {len(body.get('reference', ()))} reference inputs)"
    source = {
        "zero": "",
        "mean": f" ({len(body['means'])} stored vectors, in the theorem)" if "means" in body else over,
        "resample": ", taken from y",
        "any": ", that is whatever replaces it",
    }[ablation]
    return f"the circuit ({size}) alone, every other {circuit['granularity']} under {ablation} ablation{source}"


def _interchange(body: Json) -> str:
    heads = [f"head {head} of layer {layer}" for layer, head in body["heads"]]
    neurons = [f"neurons {begin} to {end - 1} of layer {layer}" for layer, begin, end in body["neurons"]]
    return (
        f"with {first([*heads, *neurons]) or 'nothing'} taken from the run on y, the model's decoded output on x "
        f"equals that of the RASP program {_program(body)} on x with the values of its node n{body['node']} taken "
        "from y"
    )
