"""Small random models with circuits, ablations and labels; what is true of them, by running every input with edits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

import certiformer as cf
from certiformer.models import Circuit, Codec, LayerConfig, Transformer, TransformerConfig, sequences
from certiformer.models.circuits import all_edges, all_nodes
from certiformer.models.labels import LabelMachine, build_machine
from certiformer.models.reduction import sources
from certiformer.models.token_language import Language
from certiformer.verifier.alone import Alone
from certiformer.verifier.circuit_bodies import FaithfulBody, Through
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.reading import Subject, possible
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate

LAYERS = {
    "count": ((LayerConfig(1, 2, 0),),),
    "paths": ((LayerConfig(2, 2, 2),), (LayerConfig(1, 2, 2), LayerConfig(1, 2, 0))),
}


@dataclass(frozen=True)
class Case:
    """A circuit of a model, and labels of its inputs."""

    subject: Subject
    alone: Alone
    machine: LabelMachine
    domain: Language

    @property
    def labels(self) -> Claim:
        return Claim("forall", LabelsBody(self.subject, self.machine, "random", None, self.alone))

    @property
    def faithful(self) -> Claim:
        return Claim("forall", FaithfulBody(self.alone, Through(self.machine, "random")))

    def with_model(self, model: Transformer) -> Case:
        subject = Subject(model, self.subject.codec)
        return replace(self, subject=subject, alone=self.alone.with_subject(subject))

    def inputs(self) -> tuple[Tensor, ...]:
        """All witnesses of the one length that the domain has: [batch, n] for each input."""
        words = torch.cat([torch.from_numpy(ids) for ids in self.domain.batches()])
        if self.alone.arity == 1:
            return (words,)
        return words.repeat_interleave(len(words), 0), words.repeat(len(words), 1)

    def alone_possible(self) -> Tensor:
        """bool [batch, output]: what the circuit may decode to, by the model with edits."""
        balls = [self.alone.enclosed_by_edits(part) for part in self._chunks()]
        return torch.cat([possible(self.subject.codec, ball)[:, 0] for ball in balls])

    def _chunks(self) -> list[tuple[Tensor, ...]]:
        ids = self.inputs()
        return list(zip(*(x.split(512) for x in ids), strict=True))

    def truth(self) -> tuple[int, int, int]:
        """Of how many witnesses the circuit surely gives the label, and may; and of all."""
        found = self.alone_possible()
        wanted = torch.from_numpy(self.machine.run(self.inputs()[0].numpy()))
        right = torch.arange(found.shape[1]) == wanted[:, None]
        return int((found == right).all(1).sum()), int((found & right).any(1).sum()), len(found)

    def agreement(self) -> tuple[int, int, int]:
        """On how many the circuit surely decodes as the model does, and may; and of all."""
        circuit, model = self.alone_possible(), self.subject.reading(self.inputs()[0], "real")[:, 0]
        sure = (circuit == model).all(1) & (circuit.sum(1) == 1)
        return int(sure.sum()), int((circuit & model).any(1).sum()), len(circuit)


def random_case(seed: int, kind: str = "count", ablation: str | None = None, n: int = 3, d_readout: int = 0) -> Case:
    """`kind`: for which rule. Labels: mostly those that the circuit or the model gives, sometimes random ones."""
    rng = np.random.default_rng(seed)
    tokens, outputs = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    layers = LAYERS[kind][int(rng.integers(len(LAYERS[kind])))]
    config = TransformerConfig(
        d_model=3,
        n_ctx=n,
        d_vocab=tokens,
        d_vocab_out=outputs,
        layers=layers,
        causal=len(layers) > 1 or bool(rng.integers(2)),
        positional="learned" if rng.integers(2) else "none",
        readout="last" if kind == "count" or len(layers) == 1 or rng.integers(2) else "mean",
        d_readout=d_readout,
    )
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape)).astype(np.float32)))
    subject = Subject(model, Codec(tuple(range(tokens)), False, "categorical", tuple(range(outputs)), (), n))
    circuit = random_circuit(config, rng)
    by: Any = ablation or ["zero", "mean", "resample"][int(rng.integers(3))]
    means = None
    if by == "mean":
        means = {x: torch.from_numpy(rng.normal(size=3).astype(np.float32)) for x in sources(circuit, config)}
    alone = Alone.of(subject, circuit, by, means)
    domain = sequences(range(tokens), n)
    case = Case(subject, alone, _no_labels(tokens), domain)
    return replace(case, machine=_labels(case, rng, int(rng.integers(3))))


def random_circuit(config: TransformerConfig, rng: np.random.Generator) -> Circuit:
    keep = float(rng.choice([0.6, 0.85]))
    if rng.random() < 0.2:
        return Circuit.from_nodes(config, {node for node in all_nodes(config) if rng.random() < keep})
    kept = [str(edge) for edge in all_edges(config) if rng.random() < keep]
    return Circuit(frozenset(all_nodes(config)), frozenset(kept))


def _no_labels(tokens: int) -> LabelMachine:
    return LabelMachine(np.zeros((1, tokens), dtype=np.int32), np.array([-1]))


def _labels(case: Case, rng: np.random.Generator, kind: int) -> LabelMachine:
    """0: what the circuit decodes (by a first source) on each word; 1: what the model does; 2: by a random machine."""
    tokens, outputs = len(case.domain.vocab), len(case.subject.codec.outputs)
    if kind == 2:
        step = rng.integers(3, size=(3, tokens)).astype(np.int32)
        return LabelMachine(step, rng.integers(-1, outputs, size=3))
    words = torch.cat([torch.from_numpy(ids) for ids in case.domain.batches()])
    ids = (words,) if case.alone.arity == 1 else (words, words.flip(0))
    logits = case.alone.logits(ids) if kind == 0 else case.subject.logits(words)
    return by_word({tuple(w): int(o) for w, o in zip(words.tolist(), logits[:, 0].argmax(-1), strict=True)}, tokens)


def by_word(table: dict[tuple[int, ...], int], tokens: int) -> LabelMachine:
    """The machine that remembers the word."""
    n = max(map(len, table))

    def after(word: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*word, token) if len(word) < n else word

    return build_machine((), after, lambda word: table.get(word, -1), tokens)


def one_changed(case: Case) -> Case:
    """The case with the label of one word, on which the circuit surely is right, made wrong."""
    table = {
        word: int(case.machine.run(np.array([word], dtype=np.int64))[0])
        for word in itertools.product(range(len(case.domain.vocab)), repeat=max(case.domain.lengths))
    }
    word = next(iter(table))
    table[word] = (table[word] + 1) % len(case.subject.codec.outputs)
    return replace(case, machine=by_word(table, len(case.domain.vocab)))


def certificate(claim: Claim, domain: Language, proof: Any) -> Certificate:
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


def accepted(found: Certificate, model: Transformer, tmp: Any) -> bool:
    """Whether the checker says that the theorem is true."""
    path = tmp / "m.safetensors"
    model.save(path)
    return isinstance(cf.check(found, path), cf.Valid)


def share(count: int, total: int) -> Fraction:
    return Fraction(count, total)
