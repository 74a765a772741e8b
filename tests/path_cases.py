"""Random models, machines and trees for rule `paths`; a plain forward pass in long double; all words, one by one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from certiformer.proofs import Outcome, check
from certiformer.proofs.model import Model, parse_model, weights_sha256
from certiformer.proofs.path_graph import Restriction, WordGraph, word_graph
from certiformer.proofs.path_language import minimal

from .checker_models import model_bytes, sealed

Json = Any
Array = np.ndarray[Any, Any]
LONG = np.longdouble


@dataclass
class Case:
    """A model, a label machine and a refinement machine; plain data."""

    config: Json
    weights: dict[str, Array]
    n: int
    tokens: int
    labels: Json
    states: list[list[int]]
    lengths: list[int] = field(default_factory=list)

    def model(self) -> Model:
        return parse_model(model_bytes(self.config, self.weights))

    def words(self, n: int) -> list[tuple[int, ...]]:
        return list(itertools.product(range(self.tokens), repeat=n))

    def label(self, word: tuple[int, ...]) -> int:
        state = 0
        for token in word:
            state = self.labels["transitions"][state][token]
        return int(self.labels["labels"][state])

    def reading(self, word: tuple[int, ...]) -> list[int]:
        """The refinement machine's states after 0, 1, ... tokens."""
        found = [0]
        for token in word:
            found.append(self.states[found[-1]][token])
        return found

    def meets(self, word: tuple[int, ...], restrictions: list[Restriction]) -> bool:
        reading = self.reading(word)
        return all((word if kind == "tokens" else reading)[p] in some for kind, p, some in restrictions)

    def graph(self, n: int, label: int, restrictions: list[Restriction]) -> WordGraph | None:
        delta, labels = np.array(self.labels["transitions"]), np.array(self.labels["labels"])
        words = minimal(delta, (labels == label)[delta])
        return word_graph(words, np.array(self.states), n, restrictions, np.arange(self.tokens))

    def right(self, n: int) -> int:
        """How many words of length n the model labels right, by the plain forward pass."""
        logits = {word: Run(self, word).logits for word in self.words(n)}
        return sum(self.label(word) >= 0 and int(x.argmax()) == self.label(word) for word, x in logits.items())

    def theorem(self, share: Fraction | None) -> Json:
        codec = {"vocab": list(range(self.tokens)), "bos": False, "kind": "categorical", "points": []}
        codec["outputs"] = list(range(self.config["d_vocab_out"]))
        lengths = self.lengths or [self.n, self.n]
        theorem = {
            "quantifier": "forall" if share is None else "at_least",
            "domain": {"kind": "product", "vocab": list(range(self.tokens)), "lengths": lengths},
            "body": {"kind": "labels", "name": "random", "machine": self.labels},
            "codec": codec,
            "config": self.config,
            "weights_sha256": weights_sha256(self.weights),
            "semantics": "real",
        }
        if share is not None:
            exact = {"num": share.numerator, "den": share.denominator}
            theorem["share"] = exact if share.denominator > 1 else share.numerator
        return theorem

    def check(self, trees: Json, share: Fraction | None) -> Outcome:
        proof = {"rule": "paths", "states": self.states, "trees": trees}
        certificate = sealed({"format": "certiformer/1", "theorem": self.theorem(share), "proof": proof})
        return check(certificate, model_bytes(self.config, self.weights))


class Run:
    """The plain forward pass on one word, in long double: `stream[l]` after layer l (stream[-1]: embeddings),
    `middle[l]`, `pre[l]` [pos, ...]; `q`, `k`, `v`, `score` of layer l [head, ...]; `logits`."""

    def __init__(self, case: Case, word: tuple[int, ...]) -> None:
        w = {name: array.astype(LONG) for name, array in case.weights.items()}
        config, ids, n = case.config, list(word), len(word)
        x = w["embed.W_E"][ids]
        if config["positional"] == "learned":
            x = x + w["pos_embed.W_pos"][:n]
        self.stream, self.middle, self.pre = {-1: x}, {}, {}
        self.q, self.k, self.v, self.score = {}, {}, {}, {}
        for number, layer in enumerate(config["layers"]):
            if layer["n_heads"]:
                name = f"blocks.{number}.attn."
                q, k, v = (np.einsum("nd,hde->hne", x, w[f"{name}W_{y}"]) + w[f"{name}b_{y}"][:, None] for y in "QKV")
                scale = config["attention_scale"]
                scale = 1 / np.sqrt(LONG(layer["d_head"])) if isinstance(scale, str) else LONG(scale)
                score = scale * np.einsum("hie,hje->hij", q, k)
                if config["causal"]:
                    score = np.where(np.tril(np.ones((n, n), dtype=bool)), score, -np.inf)
                e = np.exp(score - score.max(axis=2, keepdims=True))
                pattern = e / e.sum(axis=2, keepdims=True)
                x = x + np.einsum("hij,hje,hed->id", pattern, v, w[name + "W_O"]) + w[name + "b_O"]
                self.q[number], self.k[number], self.v[number], self.score[number] = q, k, v, score
            self.middle[number] = x
            if layer["d_mlp"]:
                name = f"blocks.{number}.mlp."
                self.pre[number] = x @ w[name + "W_in"] + w[name + "b_in"]
                x = x + np.maximum(self.pre[number], 0) @ w[name + "W_out"] + w[name + "b_out"]
            self.stream[number] = x
        read = x.mean(axis=0) if config["readout"] == "mean" else x[-1]
        self.logits = read @ w["unembed.W_U"] + w["unembed.b_U"]


def random_config(rng: np.random.Generator, tokens: int, n: int) -> Json:
    """Causal with up to two layers; or one layer, not causal, read out at the last position."""
    causal = bool(rng.random() < 0.8)
    depth = int(rng.choice([1, 2, 2, 3])) if causal else 1
    d = int(rng.integers(1, 5))
    layers = []
    for _ in range(depth):
        heads = int(rng.choice([0, 1, 1, 2]))
        layers.append({"n_heads": heads, "d_head": int(rng.integers(1, 4)) if heads else 0,
                       "d_mlp": int(rng.choice([0, 1, 3]))})  # fmt: skip
    return {
        "d_model": d,
        "n_ctx": n,
        "d_vocab": tokens,
        "d_vocab_out": int(rng.integers(1, 4)),
        "layers": layers,
        "activation": "relu",
        "causal": causal,
        "positional": "learned" if rng.integers(2) else "none",
        "attention_scale": "1/sqrt(d_head)" if rng.integers(2) else float(rng.choice([1.0, -0.5, 0.1])),
        "layer_norm": None,
        "readout": "mean" if causal and rng.integers(2) else "last",
    }


def shapes(config: Json) -> dict[str, tuple[int, ...]]:
    d = config["d_model"]
    found: dict[str, tuple[int, ...]] = {"embed.W_E": (config["d_vocab"], d)}
    if config["positional"] == "learned":
        found["pos_embed.W_pos"] = (config["n_ctx"], d)
    for number, layer in enumerate(config["layers"]):
        name, h, e, m = f"blocks.{number}.", layer["n_heads"], layer["d_head"], layer["d_mlp"]
        if h:
            found |= {f"{name}attn.W_{x}": (h, d, e) for x in "QKV"} | {f"{name}attn.b_{x}": (h, e) for x in "QKV"}
            found |= {f"{name}attn.W_O": (h, e, d), f"{name}attn.b_O": (d,)}
        if m:
            found |= {f"{name}mlp.W_in": (d, m), f"{name}mlp.b_in": (m,)}
            found |= {f"{name}mlp.W_out": (m, d), f"{name}mlp.b_out": (d,)}
    return found | {"unembed.W_U": (d, config["d_vocab_out"]), "unembed.b_U": (config["d_vocab_out"],)}


def random_weights(rng: np.random.Generator, config: Json, size: float) -> dict[str, Array]:
    weights = {}
    for name, shape in shapes(config).items():
        weights[name] = rng.normal(scale=size, size=shape).astype(np.float32)
        if rng.random() < 0.2:
            weights[name] = weights[name].round()
    return weights


def random_machine(rng: np.random.Generator, states: int, tokens: int) -> list[list[int]]:
    return [[int(x) for x in row] for row in rng.integers(states, size=(states, tokens))]


def remembering(case: Case, n: int) -> Json:
    """The machine that remembers the word and labels words of length n as the model does."""
    words: list[tuple[int, ...]] = [w for m in range(n + 1) for w in itertools.product(range(case.tokens), repeat=m)]
    place = {word: number for number, word in enumerate(words)}
    rows = [[place.get((*word, t), place[word]) for t in range(case.tokens)] for word in words]
    labels = [int(Run(case, word).logits.argmax()) if len(word) == n else -1 for word in words]
    return {"transitions": rows, "labels": labels}


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    tokens, n = int(rng.integers(2, 4)), int(rng.integers(1, 6))
    n = min(n, 5 if tokens == 2 else 3)
    config = random_config(rng, tokens, n)
    weights = random_weights(rng, config, float(rng.choice([0.3, 0.6, 1.0, 3.0, 40.0], p=[0.3, 0.3, 0.2, 0.1, 0.1])))
    states = int(rng.integers(1, 5))
    labels = {"transitions": random_machine(rng, states, tokens), "labels": []}
    labels["labels"] = [int(x) for x in rng.integers(-1, config["d_vocab_out"], size=states)]
    case = Case(config, weights, n, tokens, labels, random_machine(rng, int(rng.integers(1, 5)), tokens))
    if rng.random() < 0.6:
        case.labels = remembering(case, n)
        if rng.random() < 0.5:  # a word is wrong
            used = [s for s, y in enumerate(case.labels["labels"]) if y >= 0]
            case.labels["labels"][int(rng.choice(used))] = int(rng.integers(config["d_vocab_out"]))
    return case


def random_split(rng: np.random.Generator, case: Case, n: int) -> Json:
    kind = str(rng.choice(["tokens", "states"]))
    width = case.tokens if kind == "tokens" else len(case.states)
    place = int(rng.integers(n)) if kind == "tokens" else int(rng.integers(n + 1))
    parts: list[list[int]] = [[] for _ in range(width)]
    for item in range(width):
        if rng.random() < 0.95:
            parts[int(rng.integers(width))].append(item)
    parts = [part for part in parts if part] or [[0]]
    return [kind, place, parts]


def random_tree(rng: np.random.Generator, case: Case, n: int, label: int, depth: int = 2) -> Json:
    """Nodes in preorder; the leaves list all rivals or some."""
    if depth and rng.random() < 0.6:
        split = random_split(rng, case, n)
        below = [random_tree(rng, case, n, label, depth - 1) for _ in split[2]]
        return [split, *itertools.chain(*below)]
    if rng.random() < 0.05:
        return [["open"]]
    rivals = [w for w in range(case.config["d_vocab_out"]) if w != label and rng.random() < 0.9]
    return [["leaf", [[w, int(rng.choice([1, 3, 50, 2000]))] for w in rivals]]]


def leaves(tree: Json) -> list[tuple[list[Restriction], Json]]:
    """Every leaf with its restrictions."""
    waiting: list[list[Restriction]] = [[]]
    found = []
    for node in tree:
        above = waiting.pop()
        if node[0] in ("tokens", "states"):
            waiting.extend([*above, (node[0], node[1], tuple(part))] for part in reversed(node[2]))
        else:
            found.append((above, node))
    assert not waiting
    return found
