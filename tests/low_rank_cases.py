"""Small models, labels and factors for tests of rule `low_rank`, and exact logits to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import flint
import numpy as np
import torch

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine, build_machine
from certiformer.models.languages import Language, distinct, occurrences
from certiformer.models.transformer import Transformer
from certiformer.proofs import Outcome, check
from certiformer.proofs.low_rank_layer import Factors
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelMarginBody, LabelsBody
from certiformer.verifier.low_rank import Factored, Ranks, factorise
from certiformer.verifier.reading import Subject
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

Array = np.ndarray[Any, Any]

SIZES = (1.0, 1e-3, 1e5)
SCALES = (0.2, 1.0, 6.0, 60.0, 1e6)


def random_model(rng: np.random.Generator, scale: float | None = None) -> Transformer:
    """One layer of any shape that the rule is for: weights up to a scale, and now and then one of a huge size."""
    heads, neurons = int(rng.integers(0, 5)), int(rng.integers(0, 9))
    config = TransformerConfig(
        *(int(rng.integers(2, 7)), 3, int(rng.integers(3, 8)), int(rng.integers(1, 6))),
        (LayerConfig(heads, int(rng.integers(1, 4)) if heads else 0, neurons),),
        causal=bool(rng.integers(2)),
        positional=("learned", "none")[int(rng.integers(2))],
        attention_scale=(1.0, "1/sqrt(d_head)", -2.5, 0.0)[int(rng.integers(4))],
        readout="last",
    )
    model = Transformer(config)
    scale = scale or SCALES[int(rng.integers(len(SCALES)))]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = scale if "attn" in name or rng.random() < 0.3 else min(scale, 3.0)
            values = rng.normal(size=tuple(weight.shape)) * size
            values[rng.random(values.shape) < 0.1] = 0.0
            weight.copy_(torch.from_numpy(values))
    return model


@contextmanager
def precision(bits: int) -> Iterator[None]:
    saved = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = saved


def exact(array: Array) -> Array:
    """Float64 numbers as balls."""
    return np.vectorize(lambda x: flint.arb(float(x)), otypes=[object])(array) if array.size else array


def exact_stream(model: Transformer, word: tuple[int, ...]) -> Array:
    """At the last position before the neurons, in balls of the precision that is set."""
    w = {name: x.detach().numpy().astype(np.float64) for name, x in model.named_parameters()}
    config, layer = model.config, model.config.layers[0]

    x = [exact(w["embed.W_E"][t]) for t in word]
    if config.positional == "learned":
        x = [a + exact(w["pos_embed.W_pos"][i]) for i, a in enumerate(x)]
    stated = config.attention_scale
    scale = flint.arb(stated) if isinstance(stated, float) else 1 / flint.arb(max(1, layer.d_head)).sqrt()
    stream = x[-1].copy()
    for h in range(layer.n_heads):
        q, k, v = (
            [a @ exact(w[f"blocks.0.attn.W_{c}"][h]) + exact(w[f"blocks.0.attn.b_{c}"][h]) for a in x] for c in "QKV"
        )
        scores = [scale * (q[-1] @ key) for key in k]
        powers = [(score - scores[0]).exp() for score in scores]
        mixed = sum(p * value for p, value in zip(powers, v, strict=True)) / sum(powers[1:], powers[0])
        stream = stream + mixed @ exact(w["blocks.0.attn.W_O"][h])
    return stream + exact(w["blocks.0.attn.b_O"]) if layer.n_heads else stream


def exact_logits(model: Transformer, word: tuple[int, ...]) -> list[flint.arb]:
    """The formula of the specification, in balls of the precision that is set."""
    w = {name: x.detach().numpy().astype(np.float64) for name, x in model.named_parameters()}
    stream = exact_stream(model, word)
    if model.config.layers[0].d_mlp:
        pre = stream @ exact(w["blocks.0.mlp.W_in"]) + exact(w["blocks.0.mlp.b_in"])
        active = np.array([x.max(flint.arb(0)) for x in pre], dtype=object)
        stream = stream + active @ exact(w["blocks.0.mlp.W_out"]) + exact(w["blocks.0.mlp.b_out"])
    return list(stream @ exact(w["unembed.W_U"]) + exact(w["unembed.b_U"]))


def lead(logits: list[flint.arb], label: int) -> flint.arb:
    """The label's logit less the largest other."""
    found = [logits[label] - other for w, other in enumerate(logits) if w != label]
    least = found[0]
    for x in found[1:]:
        least = least.min(x)
    return least


def rounded(array: Array) -> Array:
    """To float32 numbers."""
    return np.asarray(np.clip(array, -3e38, 3e38).astype(np.float32), dtype=np.float64)


def huge_model(rng: np.random.Generator) -> Transformer:
    """Weights near the end of float32's range (attention apart), whose products are beyond that of float64."""
    config = TransformerConfig(
        *(int(rng.integers(1, 4)), 3, int(rng.integers(2, 4)), int(rng.integers(2, 4))),
        (LayerConfig(int(rng.integers(0, 2)) or 1, 1, int(rng.integers(0, 4))),),
        positional="none",
        attention_scale=0.0,
        readout="last",
    )
    model = Transformer(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 10.0 ** rng.integers(25, 39) if "attn" not in name or rng.random() < 0.5 else 1.0
            weight.copy_(torch.from_numpy(np.clip(rng.normal(size=tuple(weight.shape)) * size, -3e38, 3e38)))
    return model


def random_factors(rng: np.random.Generator, model: Transformer, sizes: tuple[float, ...] = SIZES) -> Factors:
    """Right ones (a basis of everything), nearly right ones, and nonsense of any size."""
    d, hidden, outputs = model.config.d_model, model.config.layers[0].d_mlp, model.config.d_vocab_out
    inner, outer = int(rng.integers(0, d + 3)), int(rng.integers(0, 6))
    size = sizes[int(rng.integers(len(sizes)))]

    def matrix(rows: int, columns: int) -> Array:
        return np.asarray(
            np.clip(rng.normal(size=(rows, columns)) * size, -3e38, 3e38).astype(np.float32), dtype=np.float64
        )

    narrow, widen = matrix(d, inner), matrix(inner, d)
    read, write = matrix(hidden, outer), matrix(outer, outputs)
    if rng.random() < 0.6:
        turn = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32).astype(np.float64)
        keep = min(inner, d)
        narrow, widen = np.zeros((d, inner)), np.zeros((inner, d))
        narrow[:, :keep], widen[:keep] = turn[:, :keep], turn[:, :keep].T
    if hidden and rng.random() < 0.6:
        weights = dict(model.named_parameters())
        written = (weights["blocks.0.mlp.W_out"].double() @ weights["unembed.W_U"].double()).detach().numpy()
        u, s, v = np.linalg.svd(written, full_matrices=False)
        read, write = (rounded(x[:, :outer]) for x in (u * s, v.T))
        write = write.T
    return Factors(narrow, widen, read, write, matrix(1, hidden) * rng.integers(2), int(rng.integers(0, inner + 1)))


def words_of(tokens: int, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [word for n in lengths for word in itertools.product(range(tokens), repeat=n)]


def labels_of(model: Transformer, lengths: tuple[int, ...], rng: np.random.Generator, wrong: float) -> LabelMachine:
    """What the model says, but for a share of the words: another label, or none."""
    said = {}
    for word in words_of(model.config.d_vocab, lengths):
        with torch.no_grad():
            said[word] = int(model(torch.tensor([word]))[0].argmax())
        if rng.random() < wrong:
            said[word] = int(rng.integers(-1, model.config.d_vocab_out))
    start: tuple[int, ...] = ()

    def step(state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)[: max(lengths)]

    return build_machine(start, step, lambda state: said.get(state, -1), model.config.d_vocab)


@dataclass(frozen=True)
class Case:
    """A claim about a share of the words of some lengths."""

    model: Transformer
    machine: LabelMachine
    domain: Language
    margin: Fraction = Fraction(0)

    def claim(self, share: Fraction | None = None) -> Claim:
        codec = Codec(tuple(range(self.model.config.d_vocab)), False, "categorical", tuple(self.outputs))
        subject = Subject(self.model, codec)
        if self.margin:
            body: Any = LabelMarginBody(subject, self.machine, "test", self.margin)
        else:
            body = LabelsBody(subject, self.machine, "test")
        claim = Claim("forall", body).snapshot()
        return claim if share is None else claim.at_least(share)

    @property
    def outputs(self) -> range:
        return range(self.model.config.d_vocab_out)

    def find(self, ranks: Ranks | None = None) -> Factored:
        found, why = factorise(self.claim(), self.domain, self.domain.size(), ranks=ranks)
        assert found is not None, why
        return found

    def certificate(self, proof: dict[str, Any], right: int) -> Certificate:
        """That at least so many words are right."""
        stated = self.claim(Fraction(right, self.domain.size())).theorem()
        return Certificate.of({**stated, "domain": domain_to_json(self.domain)}, proof)

    def check(self, proof: dict[str, Any], right: int, folder: Path) -> Outcome:
        self.model.save(folder / "model")
        return check(self.certificate(proof, right).to_bytes(), folder / "model")

    def which(self) -> Array:
        """Which words have their label (with the margin), exactly."""
        found = []
        with precision(256):
            for ids in self.domain.batches(1000):
                for word, label in zip(ids.tolist(), self.machine.run(ids).tolist(), strict=True):
                    found.append(label >= 0 and self._holds(tuple(word), label))
        return np.array(found)

    def _holds(self, word: tuple[int, ...], label: int) -> bool:
        if len(self.outputs) == 1:
            return True
        ahead = lead(exact_logits(self.model, word), label)
        margin = flint.arb(self.margin.numerator) / self.margin.denominator
        return bool(ahead >= margin if self.margin else ahead > 0)

    def right(self) -> int:
        """How many these are."""
        return int(self.which().sum())


def random_case(seed: int, wrong: float = 0.2, scale: float | None = None) -> Case:
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale)
    lengths = ((1, 2), (2,), (3,), (1, 3))[int(rng.integers(4))]
    machine = labels_of(model, lengths, rng, wrong)
    tokens = range(model.config.d_vocab)
    domains = cf.sequences(tokens, lengths), distinct(tokens, lengths), occurrences(0, tokens, lengths, 1)
    return Case(model, machine, domains[int(rng.integers(3))], Fraction(int(rng.integers(0, 3)), 4))
