"""A slow, obvious judge of any theorem, in plain float64: it runs the edited model node by node on every witness.

Uses nothing of the checker. Where float64 is too near a boundary to be trusted, it says so by `None`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from .checker_models import Undefined, dyadic, interpret, read_value, words

Json = Any
Array = np.ndarray[Any, Any]
NEAR = 1e-9


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * np.vectorize(lambda t: math.erfc(-t / math.sqrt(2)) / 2)(x),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / 2 * (1 + np.tanh(x / 2)),
    "leaky_relu": lambda x: np.where(x < 0, x / 100, x),
}


def projected(scores: Array) -> Array:
    """Onto the simplex: the threshold is the greatest of those that the k largest scores give."""
    ordered = np.sort(scores)[::-1]
    threshold = max((ordered[:k].sum() - 1) / k for k in range(1, len(scores) + 1) if ordered[k - 1] > -np.inf)
    return np.asarray(np.maximum(scores - threshold, 0))


class TooNear(Exception):
    """A difference that decides is within rounding."""


class Run:
    """One run on one sequence of token ids. `edges[reader][source]`, `mixed[head]`, `active[mlp]` are put in.

    `patch[depth]`: what is added there to the stream, given that.
    """

    def __init__(
        self, config: Json, weights: Mapping[str, Array], ids: list[int], edges: Json = None, mixed: Json = None,
        active: Json = None, patch: Json = None,
    ) -> None:  # fmt: skip
        self.streams: list[Array] = []
        self.w = {name: array.astype(np.float64) for name, array in weights.items()}
        self.config, self.edges = config, edges or {}
        self.patterns: dict[str, Array] = {}
        self.mixed: dict[str, Array] = {}
        self.active: dict[str, Array] = {}
        self.written = {"input": self.w["embed.W_E"][ids]}
        if config["positional"] == "learned":
            self.written["input"] = self.written["input"] + self.w["pos_embed.W_pos"][: len(ids)]
        self.biases = np.zeros(config["d_model"])
        for number, layer in enumerate(config["layers"]):
            name = f"blocks.{number}."
            self.enter(patch or {})
            heads = {}
            for h in range(layer["n_heads"]):
                heads[f"a{number}.h{h}"] = self.head(number, h, layer, mixed or {})
            self.written |= heads
            if heads:
                self.biases = self.biases + self.w[name + "attn.b_O"]
            if layer["d_mlp"]:
                node = f"m{number}"
                pre = self.norm(self.read(node), name + "ln2") @ self.w[name + "mlp.W_in"] + self.w[name + "mlp.b_in"]
                self.active[node] = ACTIVATIONS[config["activation"]](pre)
                for j, column in (active or {}).get(node, {}).items():
                    self.active[node][:, j] = column
                self.written[node] = self.active[node] @ self.w[name + "mlp.W_out"] + self.w[name + "mlp.b_out"]
        self.enter(patch or {})
        x = self.norm(self.read("logits"), "ln_final")
        x = {"each": x, "last": x[-1:], "mean": x.mean(axis=0, keepdims=True)}[config["readout"]]
        if "d_readout" in config:
            x = ACTIVATIONS[config["activation"]](x @ self.w["readout.W_in"] + self.w["readout.b_in"])
        self.logits = x @ self.w["unembed.W_U"] + self.w["unembed.b_U"]

    def enter(self, patch: Json) -> None:
        depth = len(self.streams)
        self.streams.append(self.read(""))
        if depth in patch:
            self.written["patch"] = patch[depth](self.streams[-1])

    def norm(self, x: Array, name: str) -> Array:
        eps = self.config["layer_norm"]
        if eps is None:
            return x
        scaled = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
        return np.asarray(scaled * self.w[name + ".w"] + self.w[name + ".b"])

    def read(self, reader: str) -> Array:
        other = self.edges.get(reader, {})
        start = np.zeros_like(self.written["input"]) + self.biases
        return np.asarray(sum((other.get(node, value) for node, value in self.written.items()), start))

    def head(self, number: int, h: int, layer: Json, mixed: Json) -> Array:
        name, node = f"blocks.{number}.attn.", f"a{number}.h{h}"
        q, k, v = (
            self.norm(self.read(f"{node}<{c.lower()}>"), f"blocks.{number}.ln1") @ self.w[f"{name}W_{c}"][h]
            + self.w[f"{name}b_{c}"][h]
            for c in "QKV"
        )
        scale = self.config["attention_scale"]
        score = (layer["d_head"] ** -0.5 if isinstance(scale, str) else scale) * q @ k.T
        if self.config["causal"]:
            score = np.where(np.tril(np.ones(score.shape)) > 0, score, -np.inf)
        power = np.exp(score - score.max(axis=-1, keepdims=True))
        self.patterns[node] = power / power.sum(axis=-1, keepdims=True)
        if "attention" in self.config:
            self.patterns[node] = np.array([projected(row) for row in score])
        self.mixed[node] = mixed.get(node, self.patterns[node] @ v)
        return np.asarray(self.mixed[node] @ self.w[name + "W_O"][h])


class Judge:
    def __init__(self, theorem: Json, weights: Mapping[str, Array]) -> None:
        self.theorem, self.weights, self.config = theorem, weights, theorem["config"]
        self.codec = theorem["codec"]
        self.vocab = [read_value(v) for v in self.codec["vocab"]]
        self.outputs = [read_value(v) for v in self.codec["outputs"]]
        self.plain: dict[tuple[Any, ...], Run] = {}

    def ids(self, word: list[Any]) -> list[int]:
        return [len(self.vocab)] * self.codec["bos"] + [self.vocab.index(t) for t in word]

    def run(self, word: list[Any]) -> Run:
        key = tuple(word)
        if key not in self.plain:
            self.plain[key] = Run(self.config, self.weights, self.ids(word))
        return self.plain[key]

    def decode(self, run: Run) -> list[Any]:
        logits = self.read_out(run)
        if self.codec["kind"] == "scalar":
            logits = -np.abs(logits[:, :1] - np.array([float(dyadic(p)) for p in self.codec["points"]]))
        ordered = np.sort(logits, axis=-1)
        if ordered.shape[1] > 1 and (ordered[:, -1] - ordered[:, -2]).min() < NEAR:
            raise TooNear
        return [self.outputs[o] for o in logits.argmax(axis=-1)]

    def read_out(self, run: Run) -> Array:
        return run.logits[int(self.codec["bos"] and self.config["readout"] == "each") :]

    def last(self, values: list[Any]) -> list[Any]:
        """The values at the positions that are read out."""
        return values if self.config["readout"] == "each" else values[-1:]

    def body(self, body: Json, witness: tuple[list[Any], ...]) -> bool:
        if body["kind"] == "and":
            return self.conjunction(body["parts"], witness)
        return bool(getattr(self, body["kind"])(body, witness))

    def conjunction(self, parts: Json, witness: tuple[list[Any], ...]) -> bool:
        undefined = False
        for part in parts:
            try:
                if not self.body(part, witness):
                    return False
            except Undefined:
                undefined = True
        if undefined:
            raise Undefined
        return True

    def computes(self, body: Json, witness: Any) -> bool:
        program = body["program"]
        wanted = interpret(needed(program, program["output"]), witness[0])[program["output"]]
        return self.decode(self.run(witness[0])) == self.last(wanted)

    def labels(self, body: Json, witness: Any) -> bool:
        label = self.label(body, witness[0])
        return label >= 0 and self.decode(self.run(witness[0])) == [self.outputs[label]]

    def label_margin(self, body: Json, witness: Any) -> bool:
        label, logits = self.label(body, witness[0]), self.read_out(self.run(witness[0]))[0]
        gap = min((logits[label] - x for i, x in enumerate(logits) if i != label), default=np.inf)
        wanted = float(dyadic(body["at_least"]))
        if label >= 0 and abs(gap - wanted) < NEAR:
            raise TooNear
        return bool(label >= 0 and gap >= wanted)

    def label(self, body: Json, word: list[Any]) -> int:
        state = 0
        for token in [word[-1], *word[:-1]] if "last_first" in body["machine"] else word:
            state = body["machine"]["transitions"][state][self.vocab.index(token)]
        return int(body["machine"]["labels"][state])

    def never_outputs(self, body: Json, witness: Any) -> bool:
        return not set(self.decode(self.run(witness[0]))) & {read_value(v) for v in body["outputs"]}

    def margin(self, body: Json, witness: Any) -> bool:
        logits = np.sort(self.read_out(self.run(witness[0])), axis=-1)
        gap = float((logits[:, -1] - logits[:, -2]).min()) if logits.shape[1] > 1 else np.inf
        wanted = float(dyadic(body["at_least"]))
        if wanted > 0 and abs(gap - wanted) < NEAR:
            raise TooNear
        return wanted <= 0 or gap >= wanted

    def invariant(self, body: Json, witness: Any) -> bool:
        names = {read_value(a): read_value(b) for a, b in body["relabelling"]}
        skipped, word = body["irrelevant_positions"], witness[0]
        everywhere = self.config["readout"] == "each"
        changed = [self.vocab[0] if i in skipped else names.get(t, t) for i, t in enumerate(word)]
        first, second = self.decode(self.run(word)), self.decode(self.run(changed))
        moved = [names.get(y, y) if body["relabel_outputs"] else y for y in first]
        return all(
            a == b for i, (a, b) in enumerate(zip(moved, second, strict=True)) if not (everywhere and i in skipped)
        )

    def attends(self, body: Json, witness: Any) -> bool:
        word = witness[0]
        rows = selections(needed(body["program"], body["selector"]), word, body["selector"])
        bos, tolerance = int(self.codec["bos"]), float(dyadic(body["tolerance"]))
        pattern = self.run(word).patterns[f"a{body['layer']}.h{body['head']}"]
        for i, row in enumerate(rows):
            chosen = [j + bos for j, held in enumerate(row) if held and (j <= i or not self.config["causal"])]
            if not chosen and not bos:
                return False
            target = chosen or [0]
            weights = pattern[i + bos]
            errors = [abs(weights[j] - 1 / len(target)) for j in target]
            errors.append(sum(weights[j] for j in range(len(weights)) if j not in target))
            if any(abs(error - tolerance) < NEAR for error in errors):
                raise TooNear
            if max(errors) > tolerance:
                return False
        return True

    def faithful(self, body: Json, witness: Any) -> bool:
        return self.decode(self.alone(body["circuit"], body, witness)) == self.decode(self.run(witness[0]))

    def agree(self, body: Json, witness: Any) -> bool:
        first, second = (self.decode(self.alone(circuit, body, witness)) for circuit in body["circuits"])
        return first == second

    def alone(self, circuit: Json, body: Json, witness: Any) -> Run:
        """The run of a circuit, everything else ablated."""
        ablation = body["ablation"]
        runs = [self.run([read_value(t) for t in row]) for row in body.get("reference", [])]
        runs = [self.run(witness[1])] if ablation == "resample" else runs

        def stand_in(source: str) -> Array:
            if ablation == "zero":
                return np.zeros(self.config["d_model"])
            values = np.stack([run.written[source] for run in runs])
            return np.asarray(values[0] if ablation == "resample" else values.mean(axis=(0, 1)))

        edges: dict[str, dict[str, Array]] = {}
        for source, reader in every_edge(self.config):
            by_node = circuit["granularity"] == "node"
            if source not in circuit["nodes"] if by_node else f"{source}->{reader}" not in circuit["edges"]:
                edges.setdefault(reader, {})[source] = stand_in(source)
        return Run(self.config, self.weights, self.ids(witness[0]), edges)

    def interchange(self, body: Json, witness: Any) -> bool:
        base, source = witness
        other, program = self.run(source), body["program"]
        mixed = {f"a{layer}.h{h}": other.mixed[f"a{layer}.h{h}"] for layer, h in body["heads"]}
        active: dict[str, dict[int, Array]] = {}
        for layer, first, end in body["neurons"]:
            for j in range(first, end):
                active.setdefault(f"m{layer}", {})[j] = other.active[f"m{layer}"][:, j]
        given = interpret(needed(program, body["node"]), source)[body["node"]]
        run = Run(self.config, self.weights, self.ids(base), None, mixed, active)
        return self.decode(run) == self.last(interchanged(program, base, body["node"], given))

    def robust(self, body: Json, witness: Any) -> bool:
        """False if some corner of the box changes the output; true only where the box is far too small to matter."""
        radius, run = float(dyadic(body["radius"])), self.run(witness[0])
        before = self.decode(run)
        rng = np.random.default_rng(0)
        for _ in range(8):
            added = rng.choice([-radius, radius], size=run.streams[0].shape)
            other = Run(
                self.config, self.weights, self.ids(witness[0]), patch={body["stream"]: lambda s, added=added: added}
            )
            if self.decode(other) != before:
                return False
        if radius > 1e-5:
            raise TooNear
        return True

    def monotone(self, body: Json, witness: Any) -> bool:
        word = witness[0]
        tokens, outputs = ([read_value(x) for x in body[key]] for key in ("tokens", "outputs"))
        held = True
        for place, token in enumerate(word):
            if token in tokens[:-1]:
                raised = [*word]
                raised[place] = tokens[tokens.index(token) + 1]
                pairs = zip(self.decode(self.run(word)), self.decode(self.run(raised)), strict=True)
                held &= all(outputs.index(a) <= outputs.index(b) for a, b in pairs)
        return held

    def subspace(self, body: Json, witness: Any) -> bool:
        base, source = witness
        depth, bos = body["stream"], int(self.codec["bos"])
        q = np.array([[float(dyadic(x)) for x in row] for row in body["directions"]])
        m = np.eye(q.shape[1]) - q.T @ q if body["complement"] else q.T @ q
        other = self.run(source).streams[depth]
        places = range(-bos, len(base)) if body["positions"] is None else body["positions"]
        mask = np.array([[i - bos in places] for i in range(len(base) + bos)])

        def patched(by: Array) -> Run:
            return Run(self.config, self.weights, self.ids(base), patch={depth: lambda s: mask * ((other - s) @ by)})

        against = patched(np.eye(len(m))) if body["carries"] == "all" else self.run(base)
        return self.decode(patched(m)) == self.decode(against)

    def represents(self, body: Json, witness: Any) -> bool:
        base, source = witness
        depth, bos, program, node = body["stream"], int(self.codec["bos"]), body["program"], body["node"]
        q = np.array([[float(dyadic(x)) for x in row] for row in body["directions"]])
        other = self.run(source).streams[depth]
        places = range(-bos, len(base)) if body["positions"] is None else body["positions"]
        mask = np.array([[i - bos in places] for i in range(len(base) + bos)])
        run = Run(self.config, self.weights, self.ids(base), patch={depth: lambda s: mask * ((other - s) @ q.T @ q)})
        given = interpret(needed(program, node), source)[node]
        if not mask[bos:].all():
            own = interpret(needed(program, node), base)[node]
            given = [b if at else a for a, b, at in zip(own, given, mask[bos:, 0], strict=True)]
        return self.decode(run) == self.last(interchanged(program, base, node, given))

    def writes(self, body: Json, witness: Any) -> bool:
        q = np.array([[float(dyadic(x)) for x in row] for row in body["directions"]])
        return self.below(np.abs(self.run(witness[0]).written[body["node"]] @ q.T), body["at_most"])

    def effect(self, body: Json, witness: Any) -> bool:
        base, source = witness
        writer, _, reader = body["edge"].partition("->")
        edited = Run(self.config, self.weights, self.ids(base), {reader: {writer: self.run(source).written[writer]}})
        direction = np.array([float(dyadic(x)) for x in body["direction"]])
        lost = (self.run(base).logits[-1] - edited.logits[-1]) @ direction
        return self.below(np.abs(lost - float(dyadic(body["score"]))), body["within"])

    def head_table(self, body: Json, witness: Any) -> bool:
        (layer, head), least = body["head"], float(dyadic(body["at_least"]))
        w = {k: v.astype(np.float64) for k, v in self.weights.items()}
        name, tokens = f"blocks.{layer}.attn.", w["embed.W_E"][: len(self.vocab)]
        columns = self.outputs if body["circuit"] == "ov" else self.vocab
        if body["circuit"] == "ov":
            table = tokens @ w[name + "W_V"][head] @ w[name + "W_O"][head] @ w["unembed.W_U"]
        else:
            scale = self.config["attention_scale"]
            scale = self.config["layers"][layer]["d_head"] ** -0.5 if isinstance(scale, str) else scale
            queries = tokens @ w[name + "W_Q"][head] + w[name + "b_Q"][head]
            table = scale * queries @ (tokens @ w[name + "W_K"][head]).T
        held = True
        for token in witness[0]:
            row = table[self.vocab.index(token)]
            if body["relation"] == "increasing":
                gaps = list(row[1:] - row[:-1])
            elif token in columns:
                at = columns.index(token)
                gaps = [row[at] - x for c, x in enumerate(row) if c != at]
            else:
                gaps = [-math.inf]
            if any(abs(gap - least) < NEAR for gap in gaps):
                raise TooNear
            held &= all(gap > least for gap in gaps)
        return held

    def below(self, sizes: Array, most: Json) -> bool:
        limit = float(dyadic(most))
        if (np.abs(sizes - limit) < NEAR).any():
            raise TooNear
        return bool((sizes < limit).all())

    def counts(self) -> tuple[int, int, int]:
        """Witnesses on which the body is true, and false; and all."""
        true = false = total = 0
        for witness in witnesses(self.theorem):
            total += 1
            try:
                held = self.body(self.theorem["body"], witness)
                true, false = true + held, false + (not held)
            except Undefined:
                pass
        return true, false, total


def every_edge(config: Json) -> Iterator[tuple[str, str]]:
    writers = ["input"]
    for number, layer in enumerate(config["layers"]):
        heads = [f"a{number}.h{h}" for h in range(layer["n_heads"])]
        yield from ((w, f"{head}<{port}>") for head in heads for port in "qkv" for w in writers)
        writers += heads
        if layer["d_mlp"]:
            yield from ((w, f"m{number}") for w in writers)
            writers.append(f"m{number}")
    yield from ((w, "logits") for w in writers)


def selections(program: Json, word: list[Any], selector: int) -> list[list[bool]]:
    """[query][key], of the visible keys, by widths of the selector cut to single keys."""
    n, places = len(word), list(range(program["max_len"]))
    rows = [[False] * n for _ in range(n)]
    for j in range(n):
        only = ["1" * len(places) if key == j else "0" * len(places) for key in places]
        more = [
            {"kind": "select", "keys": 1, "queries": 1, "table": only},
            {"kind": "and", "left": selector, "right": len(program["nodes"])},
            {"kind": "width", "selector": len(program["nodes"]) + 1, "values": [0, 1]},
        ]
        found = interpret({**program, "nodes": [*program["nodes"], *more]}, word)
        for i, count in enumerate(found[len(program["nodes"]) + 2]):
            rows[i][j] = count == 1
    return rows


def interchanged(program: Json, word: list[Any], node: int, given: list[Any]) -> list[Any]:
    """The output with the node's values put in: as a map of `indices` that gives them."""
    entry = program["nodes"][node]
    values = [read_value(v) for v in entry["values"]]
    table = [values.index(v) for v in given] + [0] * (program["max_len"] - len(given))
    nodes = [*program["nodes"]]
    if node < 2:
        raise Undefined  # tokens and indices cannot be written as maps; the tests have no such theorem
    nodes[node] = {"kind": "map", "args": [1], "table": table, "values": entry["values"]}
    return list(interpret(needed({**program, "nodes": nodes}, program["output"]), word)[program["output"]])


def needed(program: Json, target: int) -> Json:
    """The program with the nodes that `target` does not depend on made harmless."""
    wanted = {0, 1, target}
    for number in range(target, -1, -1):
        node = program["nodes"][number]
        if number in wanted:
            wanted.update(node.get("args", []))
            wanted.update(
                node[key] for key in ("selector", "value", "keys", "queries", "left", "right", "arg") if key in node
            )
    return {
        **program,
        "nodes": [node if i in wanted else program["nodes"][1] for i, node in enumerate(program["nodes"])],
    }


def arity(body: Json) -> int:
    if body["kind"] == "and":
        return max(arity(part) for part in body["parts"])
    pairs = body["kind"] in ("interchange", "subspace", "represents", "effect") or body.get("ablation") == "resample"
    return 2 if pairs else 1


def witnesses(theorem: Json) -> Iterator[tuple[list[Any], ...]]:
    by_length: dict[int, list[list[Any]]] = {}
    for word in words(theorem["domain"]):
        by_length.setdefault(len(word), []).append(word)
    for same in by_length.values():
        yield from itertools.product(same, repeat=arity(theorem["body"]))


def is_true(theorem: Json, weights: Mapping[str, Array]) -> bool | None:
    """Whether the theorem is true; None if float64 cannot tell."""
    try:
        true, false, total = Judge(theorem, weights).counts()
    except TooNear:
        return None
    share, most = read_value(theorem.get("share", 1)), read_value(theorem.get("most", 1))
    return {
        "forall": true == total,
        "none": false == total,
        "exists": true > 0,
        "at_least": true >= Fraction(share) * total,
        "fewer_than": total - false < Fraction(share) * total,
        "at_most": total - false <= Fraction(share) * total,
        "more_than": true > Fraction(share) * total,
        "between": Fraction(share) * total <= true and total - false <= Fraction(most) * total,
    }[theorem["quantifier"]]
