"""What a certificate holds beyond the words of its theorem (`proofs.words`): programs, circuits, automata, proofs.

Reads data that the checker's readers accept (`proofs.words.read_statement`); the proof is read as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..proofs.format import Value, rational
from ..proofs.format import value as read_value
from ..proofs.words import decimal, first, listed, plain, shorten

Json = Mapping[str, Any]
MAX_STATES, MAX_TOKENS = 40, 24


def bodies(body: Json) -> Iterator[Json]:
    """The parts of a body that are not themselves conjunctions."""
    if body["kind"] == "and":
        for part in body["parts"]:
            yield from bodies(part)
    else:
        yield body


def listings(theorem: Json) -> Iterator[tuple[str, list[str]]]:
    """What the theorem's sentence names, each with its title and in lines: automaton, programs, circuits."""
    if theorem["domain"]["kind"] == "dfa":
        yield "The automaton", automaton_lines(theorem["domain"])
    told: list[Json] = []
    for body in bodies(theorem["body"]):
        for kind in ("program", "circuit"):
            if kind in body and body[kind] not in told:
                told.append(body[kind])
                if kind == "program":
                    name = plain(body["program"]["name"])
                    yield (
                        f"The program {name} as core RASP; the certificate holds its tables",
                        program_lines(body[kind]),
                    )
                else:
                    yield "The circuit", circuit_lines(body["circuit"])


def automaton_lines(domain: Json) -> list[str]:
    """A line a state: which token leads where. What is not listed leads out of the language."""
    rows: Sequence[Sequence[int]] = domain["delta"]
    tokens = [plain(_value(item)) for item in domain["vocab"]]
    accepting = set(domain["accept"])
    lines = []
    for state, row in enumerate(rows[:MAX_STATES]):
        marks = [
            mark for mark, holds in (("start", state == domain["start"]), ("accepts", state in accepting)) if holds
        ]
        steps = [f"{token} -> {target}" for token, target in zip(tokens, row, strict=True) if target >= 0]
        more = f", ... ({len(steps)} in all)" if len(steps) > MAX_TOKENS else ""
        shown = ", ".join(steps[:MAX_TOKENS]) + more or "leads nowhere"
        told = f" ({', '.join(marks)})" if marks else ""
        lines.append(f"state {state}{told}: {shown}")
    if len(rows) > MAX_STATES:
        lines.append(f"... ({len(rows)} states in all; the certificate has them)")
    return lines


def circuit_lines(circuit: Json) -> list[str]:
    """A line a node: what it reads, a head by q, k and v."""
    reads: dict[str, dict[str, list[str]]] = {node: {} for node in circuit["nodes"]}
    for edge in circuit["edges"]:
        source, _, target = edge.partition("->")
        node, _, port = target.partition("<")
        reads.setdefault(node, {}).setdefault(port.rstrip(">"), []).append(source)
    rows = [("node", "reads"), ("----", "-----")]
    for node, ports in reads.items():
        parts = ((f"{port}: " if port else "") + ", ".join(sources) for port, sources in ports.items())
        rows.append((node, "   ".join(parts)))
    width = max(len(node) for node, _ in rows)
    return [f"{node:<{width}}  {text}".rstrip() for node, text in rows]


def program_lines(program: Json) -> list[str]:
    """A core program, a line a node; tables are in the certificate."""
    lines = []
    nodes: Sequence[Json] = program["nodes"]
    for index, node in enumerate(nodes):
        name = node.get("name")
        comment = f"   # {shorten(name)}" if isinstance(name, str) and name not in ("", node["kind"]) else ""
        mark = "   <- output" if index == program["output"] else ""
        lines.append(f"n{index} = {node_words(node)}{' '.join(comment.splitlines())}{mark}")
    return lines


def node_words(node: Json) -> str:
    """One core node as an expression over earlier ones."""
    match node["kind"]:
        case "tokens" | "indices" as kind:
            return str(kind)
        case "map":
            return f"map({_names(node['args'])}) -> {listed(node['values'])}"
        case "linear":
            pairs = zip(node["coefficients"], node["args"], strict=True)
            terms = [f"{_number(coefficient)}*n{arg}" for coefficient, arg in pairs]
            return " + ".join([*terms, _number(node["constant"])])
        case "select":
            return f"select(keys=n{node['keys']}, queries=n{node['queries']}, {_relation(node['table'])})"
        case "and" | "or" as kind:
            return f"n{node['left']} {kind} n{node['right']}"
        case "not":
            return f"not n{node['arg']}"
        case "width":
            return f"selector_width(n{node['selector']})"
        case "aggregate":
            default = node["default"]
            fallback = "" if default == -1 else f", default={plain(_value(node['values'][default]))}"
            return f"aggregate(n{node['selector']}, n{node['value']}{fallback})"
        case kind:
            return str(kind)


def _relation(table: Sequence[str]) -> str:
    """The comparison a square select table is, if it is one over equally ordered values."""
    size, columns = len(table), len(table[0]) if table else 0
    if all(row == "1" * columns for row in table):
        return "always"
    rows: dict[str, Callable[[int], str]] = {
        "==": lambda k: "0" * k + "1" + "0" * (size - k - 1),
        "!=": lambda k: "1" * k + "0" + "1" * (size - k - 1),
        "<": lambda k: "0" * (k + 1) + "1" * (size - k - 1),
        "<=": lambda k: "0" * k + "1" * (size - k),
        ">": lambda k: "1" * k + "0" * (size - k),
        ">=": lambda k: "1" * (k + 1) + "0" * (size - k - 1),
    }
    for name, row_of in rows.items():
        if size == columns and all(row == row_of(k) for k, row in enumerate(table)):
            return f"{name} on ranks"
    return f"table {size} x {columns}"


def proof_words(proof: object) -> str:
    """The rule and the number of its steps."""
    if not isinstance(proof, Mapping):
        return "none"
    steps = proof.get("steps")
    steps = steps if isinstance(steps, list) else []
    kinds: dict[str, int] = {}
    for step in steps:
        kind = shorten(str(step.get("rule") if isinstance(step, Mapping) else step), 20)
        kinds[kind] = kinds.get(kind, 0) + 1
    counted = first(f"{count} {kind}" for kind, count in kinds.items())
    rule = shorten(str(proof.get("rule")), 40)
    return rule + (f": {len(steps)} steps ({counted})" if steps else "")


def _value(data: object) -> Value:
    return read_value(data, "a value")


def _number(data: object) -> str:
    return decimal(rational(data, "a coefficient"))


def _names(indices: Sequence[int]) -> str:
    return ", ".join(f"n{index}" for index in indices)
