"""Every way to enclose a model's logits contains the exact ones, for models of every configuration; tolerance zero.

Engine: `enclose`, `logits_of_words` (what words share computed once), `precise`. Checker: `Network`,
`logits_by_prefix`, `Precise`. The reference is the definition, in 192-bit ball arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import flint
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.transformer import Transformer
from certiformer.proofs import network, prefixes
from certiformer.proofs.model import Model, parse_model
from certiformer.proofs.precise import Precise
from certiformer.verifier import balls, precise, sharing

from .planted import mutated_module
from .test_balls import exact_logits

BITS = 192
Case = tuple[Transformer, Model, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    before = flint.ctx.prec
    flint.ctx.prec = BITS
    yield
    flint.ctx.prec = before


def random_case(seed: int, **fixed: Any) -> Case:
    """A model of any configuration, and a few words of one length, some with common prefixes."""
    rng = np.random.default_rng(seed)
    tokens, n = int(rng.integers(2, 4)), int(rng.integers(1, 5))
    layers = []
    for _ in range(int(rng.integers(0, 4))):
        heads = int(rng.integers(0, 3))
        layers.append(LayerConfig(heads, int(rng.integers(1, 4)) if heads else 0, int(rng.integers(0, 4))))
    settings_ = {
        "activation": str(rng.choice(["relu", "gelu", "gelu_new", "silu", "leaky_relu"])),
        "causal": bool(rng.integers(2)),
        "layer_norm": float(rng.choice([1e-5, 0.5])) if rng.integers(2) else None,
        "readout": str(rng.choice(["each", "last", "mean"])),
        "positional": "learned" if rng.integers(2) else "none",
        "attention_scale": "1/sqrt(d_head)" if rng.integers(2) else 1.5,
        **fixed,
    }
    settings_["d_readout"] = 0 if settings_["readout"] == "each" else seed // 3 % 2 * (1 + seed % 4)
    settings_.setdefault("attention", ("softmax", "sparsemax")[seed // 2 % 2])
    config = TransformerConfig(
        int(rng.integers(1, 5)), n + 1, tokens, int(rng.integers(1, 4)), tuple(layers), **settings_
    )
    model = Transformer(config)
    size = float(rng.choice([0.3, 1.0, 2.0]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(scale=size, size=tuple(parameter.shape)).astype(np.float32)))
    words = rng.integers(tokens, size=(5, n))
    words[1:3, : n - 1] = words[0, : n - 1]
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m")
        return model, parse_model((Path(folder) / "m").read_bytes()), words


def of_engine(ball: balls.Ball) -> tuple[Any, Any]:
    mid, rad = ball.mid.numpy(), ball.rad.numpy()
    return (mid, rad) if mid.ndim == 3 else (mid[:, None], rad[:, None])


WAYS: dict[str, Callable[[ModuleType, Case], tuple[Any, Any]]] = {
    "verifier.balls": lambda module, case: of_engine(module.enclose(case[0], torch.from_numpy(case[2]))["logits"]),
    "verifier.sharing": lambda module, case: of_engine(module.logits_of_words(case[0], torch.from_numpy(case[2]))),
    "proofs.network": lambda module, case: checked(module.Network(case[1]).logits(case[2])),
    "proofs.prefixes": lambda module, case: checked(module.logits_by_prefix(network.Network(case[1]), case[2])),
}
MODULES = {"verifier.balls": balls, "verifier.sharing": sharing, "proofs.network": network, "proofs.prefixes": prefixes}


def checked(ball: Any) -> tuple[Any, Any]:
    return ball.mid, ball.rad


def require_contained(way: str, module: ModuleType, case: Case, exact: list[Any]) -> None:
    model, _, words = case
    if way == "proofs.prefixes" and not model.config.causal:
        return
    with np.errstate(all="ignore"):
        mid, rad = WAYS[way](module, case)
    positions = words.shape[1] if model.config.readout == "each" else 1
    assert mid.shape == (len(words), positions, model.config.d_vocab_out)
    for w, rows in enumerate(exact):
        for i, row in enumerate(rows):
            for o, value in enumerate(row):
                if np.isfinite(rad[w, i, o]):
                    apart = abs(value - flint.arb(float(mid[w, i, o])))
                    assert not apart > flint.arb(float(rad[w, i, o])), (way, model.config, w, i, o)


def logits_of(case: Case) -> list[Any]:
    return [exact_logits(case[0], word) for word in case[2].tolist()]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_all_enclosures_contain_the_exact_logits(seed: int) -> None:
    case = random_case(seed)
    exact = logits_of(case)
    for way, module in MODULES.items():
        require_contained(way, module, case, exact)
    for word, rows in zip(case[2].tolist(), exact, strict=True):
        sharp = [precise._logits(case[0], word, {}), Precise(case[1])._logits(word)]
        for logits in sharp:
            for i, row in enumerate(rows):
                assert all(logits[i, o].overlaps(value) for o, value in enumerate(row))


def test_they_are_tight() -> None:
    """But for models with attention scores in the millions."""
    widest: dict[str, list[float]] = {way: [] for way in MODULES}
    for seed in range(20):
        case = random_case(seed, causal=True)
        for way, module in MODULES.items():
            with np.errstate(all="ignore"):
                widest[way].append(float(WAYS[way](module, case)[1].max()))
    assert all(sorted(found)[14] < 1e-8 for found in widest.values()), widest


@cache
def examples() -> list[tuple[Case, list[Any]]]:
    """Models of every read-out, causal and not, with LayerNorm and without."""
    flint.ctx.prec = BITS
    found = []
    for seed in range(40):
        readout, causal = ("each", "last", "mean")[seed % 3], bool(seed % 2)
        case = random_case(seed, readout=readout, causal=causal)
        found.append((case, logits_of(case)))
    return found


PLANTS = [
    ("verifier.sharing", "tokens + vocab * places", "tokens", "a token is the same at all positions"),
    ("verifier.sharing", "prefix * vocab + column", "column", "a prefix is its last token"),
    ("verifier.sharing", "> rows.at[finest][:, None]", "> rows.at[finest][:, None] + 1", "the next token is seen"),
    ("verifier.sharing", "if op.causal else None", "if False else None", "all tokens are seen"),
    ("verifier.sharing", "full((batch,), length - 1)", "full((batch,), 0)", "the first position is read"),
    ("verifier.sharing", '[rows.at["token"]]', '[0 * rows.at["token"]]', "all stand at the first position"),
    ("verifier.sharing", 'elif isinstance(operation, ops.Mix):', 'elif False:', "values elsewhere are left out"),
    ("verifier.balls", 'return x.map(lambda t: t[:, -1])', 'return x.map(lambda t: t[:, 0])', "the first is the last"),
    ("verifier.balls", "torch.tensor(float(x.mid.shape[1]))", "torch.tensor(float(x.mid.shape[1] + 1))", "more"),
    ("verifier.balls", "activation(op.function,", 'activation("relu",', "always ReLU"),
    ("verifier.balls", "run.weight(op.bias), op.eps)", "run.weight(op.bias), 1e-8)", "another epsilon"),
    ("proofs.network", "x = x[:, -1:]", "x = x[:, :1]", "the first is the last"),
    ("proofs.network", 'if self.config.readout == "mean":', "if False:", "no mean"),
    ("proofs.network", 'if self.config.d_readout:', "if False:", "no MLP at the read-out"),
    ("proofs.network", '"readout.W_in", "readout.b_in"))', '"readout.W_in", "readout.b_in") + point(1.0))', "a shift"),
    ("proofs.prefixes", "return network.unembedded(x)", "return network.unembedded(x + x)", "twice the read-out"),
    ("proofs.network", "np.ones((1, n))) @ x, n)", "np.ones((1, n))) @ x, n + 1)", "a mean of more"),
    ("proofs.network", 'x = self.normed(x, "ln_final")', "pass", "the last norm is left out"),
    ("proofs.network", 'f"blocks.{number}.ln2")', 'f"blocks.{number}.ln2") if 0 else stream.total', "no norm"),
    ("proofs.network", "queries = slice(n - 1, n)", "queries = slice(0, 1)", "the first position is read"),
    ("proofs.network", "post = activation(self.config.activation,", 'post = activation("relu",', "always ReLU"),
    ("proofs.network", "x = activation(self.config.activation,", 'x = activation("relu",', "ReLU at the read-out"),
    ("proofs.network", 'self.normed(stream.total, f"blocks.{number}.ln1") if', "stream.total if", "no norm"),
    ("proofs.prefixes", "[row, tokens[:, place]]", "[0 * row, tokens[:, place]]", "a prefix is a token"),
    ("proofs.prefixes", "slice(place, place + 1)", "slice(0, 1)", "all stand at the first position"),
    ("proofs.prefixes", "keys[parents]", "keys[0 * parents]", "keys of another prefix"),
    ("proofs.prefixes", "values[parents]", "values[0 * parents]", "values of another prefix"),
    ("proofs.prefixes", "network.normed(stream, \"ln_final\")", "stream", "the last norm is left out"),
    ("proofs.prefixes", "self.past[number, head] = k, v", "self.past.setdefault((number, head), (k, v))", "no past"),
    ("proofs.prefixes", "x = averaged(x)", "x = x[:, -1:]", "the last in place of the mean"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "old", "new", "why"), PLANTS, ids=[f"{way}: {why}" for way, _, _, why in PLANTS])
def test_a_changed_line_is_noticed(way: str, old: str, new: str, why: str) -> None:
    changed = mutated_module(way, old, new)
    noticed = 0
    for case, exact in examples():
        try:
            require_contained(way, changed, case, exact)
        except (AssertionError, IndexError, ValueError, RuntimeError, KeyError):
            noticed += 1
    assert noticed, f"nothing fails: {why}"
