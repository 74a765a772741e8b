"""Small random models and machines for tests of path bounds."""

from __future__ import annotations

import numpy as np
import torch

from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.transformer import Transformer


def random_model(rng: np.random.Generator, scale: float = 1.0) -> Transformer:
    """Of one to three layers, causal, or of one layer read out last."""
    layers = int(rng.integers(1, 4))
    causal = layers > 1 or bool(rng.integers(2))
    blocks = tuple(
        LayerConfig(int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.choice([0, 5]))) for _ in range(layers)
    )
    config = TransformerConfig(
        d_model=int(rng.integers(3, 7)),
        n_ctx=5,
        d_vocab=int(rng.integers(2, 4)),
        d_vocab_out=int(rng.integers(2, 4)),
        layers=blocks,
        causal=causal,
        readout=str(rng.choice(["last", "mean"])) if causal else "last",  # type: ignore[arg-type]
        positional="learned" if rng.integers(4) else "none",
        attention_scale=1.0 if rng.integers(2) else "1/sqrt(d_head)",
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def random_machine(rng: np.random.Generator, states: int, tokens: int, labels: int, least: int = 0) -> LabelMachine:
    transitions = rng.integers(states, size=(states, tokens)).astype(np.int32)
    return LabelMachine(transitions, rng.integers(least, labels, size=states).astype(np.int64))
