"""Hand-made transformers with hand-written certificates, and a slow, obvious judge of their theorems.

Nothing here uses the checker's own evaluators: `holds` runs a plain interpreter of the program's JSON and a plain
float64 forward pass, on every input.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from certiformer import proofs
from certiformer.proofs.model import weights_sha256, write_model

Json = Any
VOCAB = ["a", "b", "c"]
LENGTH = 3
TOKENS, PLACES, BOS, OUT = range(3), range(3, 6), 6, range(7, 10)  # residual coordinates
D_MODEL = 13


class Undefined(Exception):
    pass


@dataclass
class Case:
    """A model, a theorem about it and a proof; all plain data, to be changed by tests."""

    config: Json
    weights: dict[str, np.ndarray]
    program: Json
    codec: Json
    proof: Json
    domain: Json = field(default_factory=lambda: {"kind": "product", "vocab": VOCAB[:], "lengths": [1, LENGTH]})
    body: Json = None

    def __post_init__(self) -> None:
        """Nothing is shared between cases, or between the parts of one."""
        for name in ("config", "weights", "program", "codec", "proof", "domain", "body"):
            setattr(self, name, copy.deepcopy(getattr(self, name)))

    def copy(self) -> Case:
        return copy.deepcopy(self)

    def certificate(self) -> Json:
        theorem = {
            "quantifier": "forall",
            "domain": self.domain,
            "body": self.body or {"kind": "computes", "program": self.program},
            "codec": self.codec,
            "config": self.config,
            "weights_sha256": weights_sha256(self.weights),
            "semantics": "real",
        }
        return sealed({"format": "certiformer/1", "theorem": theorem, "proof": self.proof})

    def model(self) -> bytes:
        return model_bytes(self.config, self.weights)

    def check(self) -> proofs.Outcome:
        return proofs.check(self.certificate(), self.model())

    def is_true(self) -> bool:
        return holds(self.certificate()["theorem"], self.weights)


def sealed(certificate: Json) -> Json:
    """A copy with the right seal."""
    result = copy.deepcopy(certificate)
    result["seal"] = proofs.seal(result)
    return result


def model_bytes(config: Json, weights: dict[str, np.ndarray]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_model(path, config, weights)
        return path.read_bytes()


# --- the judge -----------------------------------------------------------------------------------------------------


def read_value(data: Json) -> Any:
    return Fraction(data["num"], data["den"]) if isinstance(data, dict) else data


def interpret(program: Json, word: list[Any]) -> dict[int, list[Any]]:
    """The values of all value nodes on one word, straight from section 1 of the specification."""
    n = len(word)
    found: dict[int, list[Any]] = {}
    selected: dict[int, list[list[bool]]] = {}  # [query][key], visibility included only where it is used
    values = {i: [read_value(v) for v in node.get("values", [])] for i, node in enumerate(program["nodes"])}

    def visible(i: int) -> range:
        return range(i + 1) if program["causal"] else range(n)

    for number, node in enumerate(program["nodes"]):
        kind = node["kind"]
        if kind == "tokens":
            found[number] = list(word)
        elif kind == "indices":
            found[number] = list(range(n))
        elif kind == "map":
            shape = [len(values[a]) for a in node["args"]]
            column = []
            for i in range(n):
                flat = 0
                for a, size in zip(node["args"], shape, strict=True):
                    flat = flat * size + values[a].index(found[a][i])
                if node["table"][flat] < 0:
                    raise Undefined
                column.append(values[number][node["table"][flat]])
            found[number] = column
        elif kind == "linear":
            column = []
            for i in range(n):
                args = [found[a][i] for a in node["args"]]
                if any(x is None for x in args):
                    column.append(None)
                else:
                    total = Fraction(read_value(node["constant"]))
                    for c, x in zip(node["coefficients"], args, strict=True):
                        total += Fraction(read_value(c)) * x
                    column.append(total)
            found[number] = column
        elif kind == "select":
            keys, queries = found[node["keys"]], found[node["queries"]]
            kv, qv = values[node["keys"]], values[node["queries"]]
            selected[number] = [
                [node["table"][kv.index(keys[j])][qv.index(queries[i])] == "1" for j in range(n)] for i in range(n)
            ]
        elif kind == "not":
            selected[number] = [[not x for x in row] for row in selected[node["arg"]]]
        elif kind in ("and", "or"):
            left, right = selected[node["left"]], selected[node["right"]]
            both = all if kind == "and" else any
            selected[number] = [[both((left[i][j], right[i][j])) for j in range(n)] for i in range(n)]
        elif kind == "width":
            rows = selected[node["selector"]]
            found[number] = [sum(rows[i][j] for j in visible(i)) for i in range(n)]
        else:
            column = []
            for i in range(n):
                chosen = [found[node["value"]][j] for j in visible(i) if selected[node["selector"]][i][j]]
                if not chosen:
                    if node["default"] < 0:
                        raise Undefined
                    column.append(values[number][node["default"]])
                elif all(x == chosen[0] for x in chosen):
                    column.append(chosen[0])
                elif any(x is None or isinstance(x, str) for x in chosen):
                    raise Undefined
                else:
                    column.append(sum(map(Fraction, chosen)) / len(chosen))
            found[number] = column
        if number in found and any(x not in values[number] for x in found[number]):
            raise Undefined
    return found


def forward(config: Json, weights: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits [batch, pos, d_vocab_out] in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    n = tokens.shape[1]
    x = w["embed.W_E"][tokens]
    if config["positional"] == "learned":
        x = x + w["pos_embed.W_pos"][:n]
    for number, layer in enumerate(config["layers"]):
        name = f"blocks.{number}."
        if layer["n_heads"]:
            total = np.zeros_like(x)
            for h in range(layer["n_heads"]):
                q, k, v = (x @ w[f"{name}attn.W_{c}"][h] + w[f"{name}attn.b_{c}"][h] for c in "QKV")
                scale = config["attention_scale"]
                scale = layer["d_head"] ** -0.5 if isinstance(scale, str) else scale
                score = scale * q @ k.swapaxes(1, 2)
                if config["causal"]:
                    score = np.where(np.tril(np.ones((n, n))) > 0, score, -np.inf)
                power = np.exp(score - score.max(axis=-1, keepdims=True))
                total += power / power.sum(axis=-1, keepdims=True) @ v @ w[f"{name}attn.W_O"][h]
            x = x + total + w[f"{name}attn.b_O"]
        if layer["d_mlp"]:
            post = np.maximum(0, x @ w[f"{name}mlp.W_in"] + w[f"{name}mlp.b_in"])
            x = x + post @ w[f"{name}mlp.W_out"] + w[f"{name}mlp.b_out"]
    return x @ w["unembed.W_U"] + w["unembed.b_U"]


def words(domain: Json) -> Iterator[list[Any]]:
    vocab = [read_value(v) for v in domain["vocab"]]
    for n in range(domain["lengths"][0], domain["lengths"][1] + 1):
        for word in itertools.product(range(len(vocab)), repeat=n):
            if domain["kind"] == "dfa":
                state = domain["start"]
                for t in word:
                    state = domain["delta"][state][t] if state >= 0 else -1
                if state not in domain["accept"]:
                    continue
            yield [vocab[t] for t in word]


def dyadic(data: Json) -> Fraction:
    return Fraction(data["num"], 2 ** data["log2den"]) if isinstance(data, dict) else Fraction(data)


def holds(theorem: Json, weights: dict[str, np.ndarray]) -> bool:
    """Is the theorem true (with float64 in place of the reals)? Decides every input; for small domains only."""
    codec, body = theorem["codec"], theorem["body"]
    parts = body["parts"] if body["kind"] == "and" else [body]
    vocab = [read_value(v) for v in codec["vocab"]]
    outputs = [read_value(v) for v in codec["outputs"]]
    by_length: dict[int, list[list[Any]]] = {}
    for word in words(theorem["domain"]):
        by_length.setdefault(len(word), []).append(word)
    for batch in by_length.values():
        ids = np.array([[vocab.index(t) for t in word] for word in batch])
        if codec["bos"]:
            ids = np.concatenate([np.full((len(ids), 1), len(vocab)), ids], axis=1)
        logits = forward(theorem["config"], weights, ids)[:, int(codec["bos"]) :]
        if codec["kind"] == "categorical":
            decoded = logits.argmax(axis=-1)
        else:
            points = np.array([float(dyadic(p)) for p in codec["points"]])
            decoded = np.abs(logits[..., :1] - points).argmin(axis=-1)
        for part in parts:
            for row, word in enumerate(batch):
                if part["kind"] == "computes":
                    try:
                        wanted = interpret(part["program"], word)[part["program"]["output"]]
                    except Undefined:
                        return False
                    if [outputs[o] for o in decoded[row]] != wanted:
                        return False
                elif part["kind"] == "never_outputs":
                    if any(outputs[o] in [read_value(v) for v in part["outputs"]] for o in decoded[row]):
                        return False
                else:
                    ordered = np.sort(logits[row], axis=-1)
                    if ordered.shape[-1] > 1 and (ordered[:, -1] - ordered[:, -2]).min() < float(
                        dyadic(part["at_least"])
                    ):
                        return False
    return True


# --- the models ----------------------------------------------------------------------------------------------------


def nodes(*more: Json) -> list[Json]:
    return [
        {"kind": "tokens", "values": VOCAB[:]},
        {"kind": "indices", "values": list(range(LENGTH))},
        *more,
    ]


def program(output: int, *more: Json, causal: bool = False) -> Json:
    return {
        "vocab": VOCAB[:],
        "max_len": LENGTH,
        "causal": causal,
        "nodes": nodes(*more),
        "output": output,
        "name": "hand-made",
    }


def blank(layers: list[tuple[int, int, int]], outputs: int, causal: bool = False) -> tuple[Json, dict[str, np.ndarray]]:
    """A configuration, and weights that embed tokens, places and BOS one-hot and are zero elsewhere."""
    config = {
        "d_model": D_MODEL,
        "n_ctx": LENGTH + 1,
        "d_vocab": 4,
        "d_vocab_out": outputs,
        "layers": [{"n_heads": h, "d_head": e, "d_mlp": m} for h, e, m in layers],
        "activation": "relu",
        "causal": causal,
        "positional": "learned",
        "attention_scale": 1.0,
        "layer_norm": None,
        "readout": "each",
    }
    weights: dict[str, np.ndarray] = {}

    def make(name: str, *shape: int) -> None:
        weights[name] = np.zeros(shape, dtype=np.float32)

    make("embed.W_E", 4, D_MODEL)
    make("pos_embed.W_pos", LENGTH + 1, D_MODEL)
    for t in range(3):
        weights["embed.W_E"][t, TOKENS[t]] = 1
    weights["embed.W_E"][3, BOS] = 1
    for i in range(LENGTH):
        weights["pos_embed.W_pos"][i + 1, PLACES[i]] = 1
    for number, (h, e, m) in enumerate(layers):
        name = f"blocks.{number}."
        if h:
            for c in "QKV":
                make(f"{name}attn.W_{c}", h, D_MODEL, e)
                make(f"{name}attn.b_{c}", h, e)
            make(f"{name}attn.W_O", h, e, D_MODEL)
            make(f"{name}attn.b_O", D_MODEL)
        if m:
            make(f"{name}mlp.W_in", D_MODEL, m)
            make(f"{name}mlp.b_in", m)
            make(f"{name}mlp.W_out", m, D_MODEL)
            make(f"{name}mlp.b_out", D_MODEL)
    make("unembed.W_U", D_MODEL, outputs)
    make("unembed.b_U", outputs)
    return config, weights


def codec(outputs: list[Json], points: list[Json] | None = None) -> Json:
    kind = "categorical" if points is None else "scalar"
    return {"vocab": VOCAB[:], "bos": True, "kind": kind, "outputs": outputs, "points": points or []}


def proof(*steps: Json, auxiliary: list[Json] | None = None, width_sums: list[Json] | None = None) -> Json:
    return {"rule": "composition", "auxiliary": auxiliary or [], "width_sums": width_sums or [], "steps": list(steps)}


def decode(*reads: int) -> Json:
    return {"rule": "decode", "reads": list(reads)}


ONE_HOT = {"kind": "onehot", "dims": list(OUT)}


def echo() -> Case:
    """No layers: the output is the token."""
    config, w = blank([], 3)
    for t in range(3):
        w["unembed.W_U"][TOKENS[t], t] = 1
    return Case(config, w, program(0), codec(VOCAB[:]), proof(decode(0)))


def exchange(order: tuple[int, int, int] = (1, 2, 0)) -> Case:
    """An MLP of ramps computes a map of the token. Neuron 2t and 2t + 1 form the ramp clip(8 x_t - 2, 0, 4)."""
    config, w = blank([(0, 0, 8)], 3)
    for t in range(3):
        w["blocks.0.mlp.W_in"][TOKENS[t], 2 * t : 2 * t + 2] = 8
        w["blocks.0.mlp.b_in"][2 * t : 2 * t + 2] = (-2, -6)
        w["blocks.0.mlp.W_out"][2 * t : 2 * t + 2, OUT[order[t]]] = (0.25, -0.25)
        w["unembed.W_U"][OUT[t], t] = 1
    node = {"kind": "map", "args": [0], "table": list(order), "values": VOCAB[:]}
    group = {"neurons": [0, 6], "reads": [0], "node": 2, "encoding": ONE_HOT}
    mlp = {"rule": "mlp", "layer": 0, "groups": [group]}
    return Case(config, w, program(2, node), codec(VOCAB[:]), proof(mlp, decode(2)))


def place_rows(related: Callable[[int, int], bool]) -> list[str]:
    """A table over (key place, query place)."""
    return ["".join("01"[related(k, q)] for q in range(LENGTH)) for k in range(LENGTH)]


def token_rows(related: Callable[[int, int], bool]) -> list[str]:
    return ["".join("01"[related(k, q)] for q in range(3)) for k in range(3)]


def add_place_head(w: dict[str, np.ndarray], layer: int, gap: float, related: Callable[[int, int], bool]) -> None:
    """Scores gap * related(key place, query place), and gap / 2 for BOS."""
    name = f"blocks.{layer}.attn."
    for k in range(LENGTH):
        w[name + "W_K"][0, PLACES[k], k] = 1
        for q in range(LENGTH):
            w[name + "W_Q"][0, PLACES[q], k] = gap * related(k, q)
    w[name + "b_Q"][0, 3] = 1
    w[name + "W_K"][0, BOS, 3] = gap / 2


def previous(gap: float = 80.0, default: bool = True) -> Case:
    """The token before; at the first place "a" (BOS's value), or, without a default, the first token."""
    config, w = blank([(1, 4, 0)], 3)

    def related(k: int, q: int) -> bool:
        return k == q - 1 or (not default and k == q == 0)

    add_place_head(w, 0, gap, related)
    for t in range(3):
        w["blocks.0.attn.W_V"][0, TOKENS[t], t] = 1
        w["blocks.0.attn.W_O"][0, t, OUT[t]] = 1
        w["unembed.W_U"][OUT[t], t] = 1
    w["blocks.0.attn.W_V"][0, BOS, 0] = 1
    table = place_rows(related)
    select = {"kind": "select", "keys": 1, "queries": 1, "table": table}
    gather = {"kind": "aggregate", "selector": 2, "value": 0, "default": 0 if default else -1, "values": VOCAB[:]}
    head = {
        "rule": "head",
        "layer": 0,
        "head": 0,
        "node": 3,
        "atoms": [{"key": 1, "query": 1, "table": table}],
        "reads": [0],
        "encoding": ONE_HOT,
    }
    return Case(config, w, program(3, select, gather), codec(VOCAB[:]), proof(head, decode(3)))


def twice_previous(gap: float = 80.0) -> Case:
    """Two layers: the token two before, or "a". The second head's default is what the first left at BOS."""
    case = previous(gap)
    config, w = blank([(1, 4, 0), (1, 4, 0)], 3)
    first = {name: array for name, array in case.weights.items() if name.startswith("blocks.0.")}
    w.update(first)
    again = range(10, 13)
    add_place_head(w, 1, gap, lambda k, q: k == q - 1)
    for t in range(3):
        w["blocks.1.attn.W_V"][0, OUT[t], t] = 1
        w["blocks.1.attn.W_O"][0, t, again[t]] = 1
        w["unembed.W_U"][again[t], t] = 1
    second = copy.deepcopy(case.program["nodes"][3])
    second["value"] = 3
    step = copy.deepcopy(case.proof["steps"][0])
    step.update(layer=1, node=4, reads=[3], encoding={"kind": "onehot", "dims": list(again)})
    made = program(4, *case.program["nodes"][2:], second)
    return Case(config, w, made, codec(VOCAB[:]), proof(case.proof["steps"][0], step, decode(4)))


def count_same(gap: float = 40.0, related: Callable[[int, int], bool] = lambda k, q: k == q) -> Case:
    """How many tokens are `related` to this one (equal): a width, read from BOS's share 1 / (1 + w)."""
    config, w = blank([(1, 4, 0)], 1)
    name = "blocks.0.attn."
    for k in range(3):
        w[name + "W_K"][0, TOKENS[k], k] = 1
        for q in range(3):
            w[name + "W_Q"][0, TOKENS[q], k] = gap * related(k, q)
    w[name + "b_Q"][0, 3] = 1
    w[name + "W_K"][0, BOS, 3] = gap
    w[name + "W_V"][0, BOS, 0] = 1
    w[name + "W_O"][0, 0, OUT[0]] = 1
    w["unembed.W_U"][OUT[0], 0] = 1
    points = [{"num": round(2**40 / (1 + count)), "log2den": 40} for count in (1, 2, 3)]
    select = {"kind": "select", "keys": 0, "queries": 0, "table": token_rows(related)}
    width = {"kind": "width", "selector": 2, "values": [1, 2, 3]}
    head = {
        "rule": "head",
        "layer": 0,
        "head": 0,
        "node": 3,
        "atoms": [{"key": 0, "query": 0, "table": token_rows(related)}],
        "reads": [],
        "encoding": {"kind": "scalar", "dim": OUT[0], "points": points},
    }
    return Case(config, w, program(3, select, width), codec([1, 2, 3], points), proof(head, decode(3)))


MEANS: list[Json] = [0, {"num": 1, "den": 3}, {"num": 1, "den": 2}, {"num": 2, "den": 3}, 1]


def share_of_a(sink: float = -60.0) -> Case:
    """The fraction of tokens that are "a": a mean over all positions."""
    config, w = blank([(1, 2, 0)], 1)
    name = "blocks.0.attn."
    w[name + "b_Q"][0, 0] = 1
    w[name + "W_K"][0, BOS, 0] = sink
    w[name + "W_V"][0, TOKENS[0], 0] = 1
    w[name + "W_O"][0, 0, OUT[0]] = 1
    w["unembed.W_U"][OUT[0], 0] = 1
    points = [{"num": round(2**40 * read_value(m)), "log2den": 40} for m in MEANS]
    is_a = {"kind": "map", "args": [0], "table": [1, 0, 0], "values": [False, True]}
    everywhere = {"kind": "select", "keys": 0, "queries": 0, "table": ["111"] * 3}
    mean = {"kind": "aggregate", "selector": 3, "value": 2, "default": -1, "values": MEANS}
    head = {
        "rule": "head",
        "layer": 0,
        "head": 0,
        "node": 4,
        "atoms": [],
        "reads": [0],
        "encoding": {"kind": "scalar", "dim": OUT[0], "points": points},
        "affine": {"dim": OUT[0], "offset": 0, "slope": 1},
    }
    return Case(config, w, program(4, is_a, everywhere, mean), codec(MEANS, points), proof(head, decode(4)))


CASES: dict[str, Callable[[], Case]] = {
    "echo": echo,
    "exchange": exchange,
    "previous": previous,
    "previous without default": lambda: previous(default=False),
    "twice previous": twice_previous,
    "count same": count_same,
    "share of a": share_of_a,
}
