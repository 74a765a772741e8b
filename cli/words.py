"""A certificate's theorem in words. Reads it as plain data (`proofs/SPECIFICATION.md`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

SEMANTICS = {
    "real": (
        "real: the float32 weights taken as exact numbers, arithmetic over the reals. What a computer calculates "
        "differs by rounding, which this theorem does not bound."
    ),
    "float32": "float32: what the hardware calculates, in any order of summation.",
}
Json = Mapping[str, Any]


def number(data: object) -> Fraction | int | str | bool | None:
    """A value, a dyadic or a rational, as the specification writes them."""
    if isinstance(data, Mapping):
        if "log2den" in data:
            return Fraction(int(data["num"]), 2 ** int(data["log2den"]))
        return Fraction(int(data["num"]), int(data["den"]))
    return data if isinstance(data, (int, str, bool)) else None


def value(data: object) -> str:
    """One RASP value."""
    shown = number(data)
    return "none" if shown is None else str(shown)


def values(data: Sequence[object], most: int = 12) -> str:
    """A list of values; long ones are cut, whole ranges shortened."""
    shown = [number(item) for item in data]
    integers = [item for item in shown if type(item) is int]
    if len(integers) == len(shown) > 4 and integers == list(range(integers[0], integers[0] + len(integers))):
        return f"{integers[0]}, {integers[1]}, ..., {integers[-1]}"
    head = ", ".join(value(item) for item in data[:most])
    return head + (f", ... ({len(data)} in all)" if len(data) > most else "")


def domain_size(domain: Json) -> int:
    """The number of input sequences, exactly."""
    low, high = domain["lengths"]
    if domain["kind"] == "product":
        return sum(len(domain["vocab"]) ** n for n in range(low, high + 1))
    reached = {int(domain["start"]): 1}
    accept = set(domain["accept"])
    total = 0
    for length in range(high + 1):
        if length >= low:
            total += sum(count for state, count in reached.items() if state in accept)
        following: dict[int, int] = {}
        for state, count in reached.items():
            for target in domain["delta"][state]:
                if target >= 0:
                    following[target] = following.get(target, 0) + count
        reached = following
    return total


def about(size: int) -> str:
    """An exact integer, and its size when it is long."""
    if size < 10**9:
        return f"{size:,}"
    digits = str(size)
    return f"{digits} (about {digits[0]}.{digits[1:3]}e{len(digits) - 1})"


def domain_words(domain: Json) -> str:
    """`every sequence of 1 to 32 tokens from 0, 1, ..., 19`."""
    low, high = domain["lengths"]
    lengths = f"{low} to {high} tokens" if low != high else f"{low} token{'s' if low > 1 else ''}"
    if domain["kind"] == "product":
        return f"every sequence of {lengths} from {values(domain['vocab'])}"
    return (
        f"every sequence of {lengths} from {values(domain['vocab'])} that the automaton below accepts "
        f"({len(domain['delta'])} states)"
    )


def body_words(body: Json) -> str:
    """What is claimed of each input."""
    match body.get("kind"):
        case "computes":
            return f"the decoded output is that of the RASP program `{body['program'].get('name', 'program')}`"
        case "margin":
            return f"the logit of the decoded output exceeds every other by at least {value(body['at_least'])}"
        case "never_outputs":
            return f"no position is decoded to {values(body['outputs'])}"
        case "invariant":
            return _invariant_words(body)
        case "attends":
            head = f"head {body['head']} of layer {body['layer']}"
            error = float(number(body["tolerance"]) or 0)
            return f"{head} attends uniformly to what selector n{body['selector']} selects, up to {error:g}"
        case "faithful":
            circuit = body["circuit"]
            size = f"{len(circuit['nodes'])} nodes, {len(circuit['edges'])} edges"
            return f"the circuit ({size}) alone decodes as the model does, the rest under {body['ablation']} ablation"
        case "interchange":
            name = body["program"].get("name", "program")
            return f"interchanging n{body['node']} changes the outputs as the RASP program `{name}` says"
        case "and":
            return ", and ".join(body_words(part) for part in body["parts"])
        case kind:
            return f"`{kind}` holds: " + ", ".join(
                f"{key} = {shorten(item)}" for key, item in sorted(body.items()) if key != "kind"
            )


def _invariant_words(body: Json) -> str:
    effect = "relabels the outputs likewise" if body["relabel_outputs"] else "leaves the outputs as they are"
    moves = ", ".join(f"{value(a)} -> {value(b)}" for a, b in body["relabelling"])
    places = ", ".join(map(str, body["irrelevant_positions"]))
    parts = [f"relabelling tokens ({moves}) {effect}"] if moves else []
    parts += [f"the outputs at other positions do not depend on the tokens at positions {places}"] if places else []
    return "; and ".join(parts)


def theorem_words(theorem: Json) -> str:
    """The theorem as one sentence."""
    share = value(theorem.get("share"))
    opening = {
        "forall": "For",
        "exists": "For some input among",
        "none": "For no input among",
        "at_least": f"For a share of at least {share} of",
        "fewer_than": f"For a share of less than {share} of",
    }.get(str(theorem["quantifier"]), str(theorem["quantifier"]))
    return f"{opening} {domain_words(theorem['domain'])}: {body_words(theorem['body'])}."


def programs_in(body: Json) -> list[Json]:
    """The core programs a body mentions."""
    if body.get("kind") == "and":
        return [program for part in body["parts"] for program in programs_in(part)]
    return [body["program"]] if isinstance(body.get("program"), Mapping) else []


def program_lines(program: Json) -> list[str]:
    """A core program, a line a node; tables are in the certificate."""
    lines = []
    nodes: Sequence[Json] = program["nodes"]
    for index, node in enumerate(nodes):
        name = "" if node.get("name") in (None, "", node["kind"]) else f"   # {node['name']}"
        mark = "   <- output" if index == program["output"] else ""
        lines.append(f"n{index} = {node_words(node)}{name}{mark}")
    return lines


def node_words(node: Json) -> str:
    """One core node as an expression over earlier ones."""
    match node["kind"]:
        case "tokens" | "indices" as kind:
            return str(kind)
        case "map":
            return f"map({_names(node['args'])}) -> {values(node['values'], 6)}"
        case "linear":
            terms = [f"{value(c)}*n{a}" for c, a in zip(node["coefficients"], node["args"], strict=False)]
            return " + ".join([*terms, value(node["constant"])])
        case "select":
            return f"select(keys=n{node['keys']}, queries=n{node['queries']}, {_relation(node['table'])})"
        case "and" | "or" as kind:
            return f"n{node['left']} {kind} n{node['right']}"
        case "not":
            return f"not n{node['arg']}"
        case "width":
            return f"selector_width(n{node['selector']})"
        case "aggregate":
            default = "" if node["default"] == -1 else f", default={value(node['values'][node['default']])}"
            return f"aggregate(n{node['selector']}, n{node['value']}{default})"
        case kind:
            return str(kind)


def _relation(table: Sequence[str]) -> str:
    """The comparison a square select table is, if it is one over equally ordered values."""
    size = len(table)
    comparisons: dict[str, Callable[[int, int], bool]] = {
        "==": lambda k, q: k == q,
        "!=": lambda k, q: k != q,
        "<": lambda k, q: k < q,
        "<=": lambda k, q: k <= q,
        ">": lambda k, q: k > q,
        ">=": lambda k, q: k >= q,
    }
    if all(set(row) == {"1"} for row in table):
        return "always"
    for name, holds in comparisons.items():
        if all(len(row) == size for row in table) and all(
            (table[k][q] == "1") == holds(k, q) for k in range(size) for q in range(size)
        ):
            return f"{name} on ranks"
    return f"table {size} x {len(table[0]) if table else 0}"


def proof_words(proof: Json) -> str:
    """The rule and the number of its steps."""
    steps: Sequence[Json] = proof.get("steps", [])
    kinds: dict[str, int] = {}
    for step in steps:
        kinds[str(step.get("rule"))] = kinds.get(str(step.get("rule")), 0) + 1
    counted = ", ".join(f"{count} {rule}" for rule, count in kinds.items())
    return f"{proof.get('rule')}" + (f": {len(steps)} steps ({counted})" if steps else "")


def config_words(config: Json) -> str:
    """The model's shape on a line."""
    layers: Sequence[Json] = config["layers"]
    heads = sum(int(layer["n_heads"]) for layer in layers)
    neurons = sum(int(layer["d_mlp"]) for layer in layers)
    attention = "causal" if config["causal"] else "bidirectional"
    return (
        f"{len(layers)} layers, {heads} heads, {neurons} neurons, d_model {config['d_model']}, "
        f"{attention} softmax attention, {config['activation']}"
    )


def shorten(data: object, most: int = 80) -> str:
    """Any data on one line."""
    text = str(data)
    return text if len(text) <= most else text[: most - 3] + "..."


def _names(indices: Iterable[object]) -> str:
    return ", ".join(f"n{index}" for index in indices)
