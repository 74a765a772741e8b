"""Rule `low_rank`: every bound against exact logits, every proof against enumeration, with tolerance zero."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import flint
import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine, build_machine
from certiformer.models.transformer import Transformer
from certiformer.proofs import Invalid, Outcome, Valid, check
from certiformer.proofs.low_rank_layer import Factors, Layer
from certiformer.proofs.low_rank_words import Tables
from certiformer.proofs.model import read_model
from certiformer.proofs.near import Near, Work, up
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelMarginBody, LabelsBody
from certiformer.verifier.low_rank import Factored, Ranks, factorise
from certiformer.verifier.reading import Subject
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate, Proved

Array = np.ndarray[Any, Any]
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


def exact_logits(model: Transformer, word: tuple[int, ...]) -> list[flint.arb]:
    """The formula of the specification, in balls of the precision that is set."""
    w = {name: x.detach().numpy().astype(np.float64) for name, x in model.named_parameters()}
    config, layer = model.config, model.config.layers[0]

    def of(array: Array) -> Array:
        return np.vectorize(lambda x: flint.arb(float(x)), otypes=[object])(array) if array.size else array

    x = [of(w["embed.W_E"][t]) for t in word]
    if config.positional == "learned":
        x = [a + of(w["pos_embed.W_pos"][i]) for i, a in enumerate(x)]
    stated = config.attention_scale
    scale = flint.arb(stated) if isinstance(stated, float) else 1 / flint.arb(max(1, layer.d_head)).sqrt()
    stream = x[-1].copy()
    for h in range(layer.n_heads):
        q, k, v = (
            [a @ of(w[f"blocks.0.attn.W_{c}"][h]) + of(w[f"blocks.0.attn.b_{c}"][h]) for a in x] for c in "QKV"
        )
        scores = [scale * (q[-1] @ key) for key in k]
        powers = [(score - scores[0]).exp() for score in scores]
        mixed = sum(p * value for p, value in zip(powers, v, strict=True)) / sum(powers[1:], powers[0])
        stream = stream + mixed @ of(w["blocks.0.attn.W_O"][h])
    if layer.n_heads:
        stream = stream + of(w["blocks.0.attn.b_O"])
    if layer.d_mlp:
        pre = stream @ of(w["blocks.0.mlp.W_in"]) + of(w["blocks.0.mlp.b_in"])
        active = np.array([x.max(flint.arb(0)) for x in pre], dtype=object)
        stream = stream + active @ of(w["blocks.0.mlp.W_out"]) + of(w["blocks.0.mlp.b_out"])
    return list(stream @ of(w["unembed.W_U"]) + of(w["unembed.b_U"]))


def lead(logits: list[flint.arb], label: int) -> flint.arb:
    """The label's logit less the largest other."""
    found = [logits[label] - other for w, other in enumerate(logits) if w != label]
    least = found[0]
    for x in found[1:]:
        least = least.min(x)
    return least


def random_factors(rng: np.random.Generator, model: Transformer) -> Factors:
    """Right ones (a basis of everything), nearly right ones, and nonsense of any size."""
    d, hidden, outputs = model.config.d_model, model.config.layers[0].d_mlp, model.config.d_vocab_out
    inner, outer = int(rng.integers(0, d + 3)), int(rng.integers(0, 6))
    size = (1.0, 1e-3, 1e5)[int(rng.integers(3))]

    def matrix(rows: int, columns: int) -> Array:
        return np.asarray((rng.normal(size=(rows, columns)) * size).astype(np.float32), dtype=np.float64)

    narrow, widen = matrix(d, inner), matrix(inner, d)
    read, write = matrix(hidden, outer), matrix(outer, outputs)
    if rng.random() < 0.6:
        turn = np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32).astype(np.float64)
        keep = min(inner, d)
        narrow, widen = np.zeros((d, inner)), np.zeros((inner, d))
        narrow[:, :keep], widen[:keep] = turn[:, :keep], turn[:, :keep].T
    if hidden and rng.random() < 0.6:
        weights = dict(model.named_parameters())
        written = (weights["blocks.0.mlp.W_out"] @ weights["unembed.W_U"]).detach().numpy().astype(np.float64)
        u, s, v = np.linalg.svd(written, full_matrices=False)
        read, write = ((x[:, :outer]).astype(np.float32).astype(np.float64) for x in (u * s, v.T))
        write = write.T
    return Factors(narrow, widen, read, write, matrix(1, hidden) * rng.integers(2), int(rng.integers(0, inner + 1)))


@pytest.mark.parametrize("seed", range(60))
def test_every_bound_of_a_lead_holds_of_exact_logits(seed: int, tmp_path: Path) -> None:
    """At points of any kind: the word's own coordinates, another word's, and random ones."""
    rng = np.random.default_rng(seed)
    model, n = random_model(rng), int(rng.integers(1, 4))
    model.save(tmp_path / "m")
    tokens = model.config.d_vocab
    every = np.array(list(itertools.product(range(tokens), repeat=n)))
    words = every[np.sort(rng.permutation(len(every))[:24])]
    used, outputs = 0, model.config.d_vocab_out
    with np.errstate(all="ignore"):
        layer = Layer(read_model(tmp_path / "m"), random_factors(rng, model), Work())
        try:
            tables = Tables(layer, [np.unique(column) for column in words.T])
        except cf.proofs.format.Rejected as error:
            assert "scores are known too roughly" in str(error)
            return
        found = tables.coordinates(words)
        used = layer.used
        points = found.inner[rng.integers(0, len(words), len(words))].copy()
        points[::3] = found.inner[::3]
        points[1::5] += rng.normal(size=points[1::5].shape) * 0.1
        points[:, used:] = points[:1, used:]
        apart = Near(found.inner - points, 0.0, layer.work)
        apart = Near(apart.mid, float(up(2.0**-52 * apart.norm())), layer.work)
        left = up(apart.lengths(layer.inner_gram) + found.left)
        logits = tables.logits(points[:, :used], points[:1, used:])
        rows = np.arange(len(words))
        bounds = np.stack([logits.leads(rows, np.full(len(words), y), left) for y in range(outputs)], axis=1)
    with precision(600):
        for row, word in enumerate(words):
            exact = exact_logits(model, tuple(word))
            for y in range(outputs):
                if not found.good[row] or np.isnan(bounds[row, y]):
                    continue
                if outputs == 1:
                    assert bounds[row, y] == np.inf
                elif bounds[row, y] > -np.inf:
                    assert flint.arb(float(bounds[row, y])) <= lead(exact, y)
