"""Compiled models turned into models of other configurations, and claims about labels that these give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from certiformer.compiler.compiled import Compiled
from certiformer.models.labels import LabelMachine, build_machine
from certiformer.models.transformer import Transformer
from certiformer.verifier.claims import Claim, NeverOutputs
from certiformer.verifier.reading import Subject

SHAPES: dict[str, dict[str, Any]] = {
    "read out at the last position": {"readout": "last"},
    "causal, last, LayerNorm": {"readout": "last", "causal": True, "layer_norm": 1e-2},
    "causal, mean, LayerNorm, silu": {"readout": "mean", "causal": True, "layer_norm": 0.5, "activation": "silu"},
    "causal, mean, sparsemax, gelu, MLP read-out": {
        "readout": "mean",
        "causal": True,
        "d_readout": 5,
        "attention": "sparsemax",
        "activation": "gelu",
    },
    "LayerNorm, gelu_new": {"layer_norm": 1e-5, "activation": "gelu_new"},
}


def reshaped(made: Compiled, **settings: Any) -> Compiled:
    """A model of another configuration, with the weights of this one and noise."""
    config = replace(made.model.config, **settings)
    other = Transformer(config)
    known, generator = dict(made.model.named_parameters()), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            start = known.get(name, parameter)
            if start.shape != parameter.shape:  # an unembedding behind an MLP
                start = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(start + 0.1 * torch.randn(parameter.shape, generator=generator))
    return Compiled(**{**{field: getattr(made, field) for field in made.__dataclass_fields__}, "model": other})


def labelled(compiled: Compiled, body: Callable[[Subject, LabelMachine], Any]) -> Claim:
    """About the labels that the model's run gives most words, by a machine that remembers words; not one is wrong.

    For models that do not have these bodies: another claim.
    """
    config, codec = compiled.model.config, compiled.codec
    if config.readout == "each" or codec.kind == "scalar":
        return NeverOutputs(compiled, [codec.outputs[0]])

    def label(word: tuple[int, ...]) -> int:
        if not 0 < len(word) < 4:
            return -1
        chosen = int(Subject(compiled.model, codec).logits(torch.tensor([word])).argmax())
        return chosen if word != (0, 1) else (chosen + 1) % len(codec.outputs)

    def longer(word: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*word, token)[:4]

    machine = build_machine((), longer, label, len(codec.vocab))
    return Claim("forall", body(Subject(compiled.model, codec), machine))
