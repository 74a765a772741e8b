"""A compiled program: the model, how to talk to it, and the ground truth about its mechanism."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..models import Circuit, Codec, InputError, Transformer, Value
from .alignment import Alignment
from .alignment_json import alignment_from_json, alignment_to_json
from .core import CoreProgram
from .core_json import core_from_json, core_to_json

METADATA_KEY = "certiformer.compiled"


@dataclass(frozen=True, eq=False)
class Sizes:
    """`d_model` as built, and what it would be if no coordinate of the residual stream were reused."""

    d_model: int
    d_model_without_reuse: int


@dataclass(frozen=True, eq=False)
class Compiled:
    """What `compile` returns.

    `model`: an ordinary transformer; `codec`: tokens in, values out; `circuit`: its nodes and edges (ground truth
    for every ablation); `alignment`: which component computes which node of `core`, and how it is encoded; `core`:
    the program as a canonical core program; `program`: the RASP expression, if it is at hand; `certificate`: set by
    `certify=True`.
    """

    model: Transformer
    codec: Codec
    circuit: Circuit
    alignment: Alignment
    core: CoreProgram
    sizes: Sizes
    program: object | None = None
    certificate: object | None = None

    @property
    def vocab(self) -> tuple[Value, ...]:
        return self.core.vocab

    @property
    def max_len(self) -> int:
        return self.core.max_len

    @property
    def causal(self) -> bool:
        return self.core.causal

    @cached_property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def run(self, xs: Sequence[Value]) -> list[Value]:
        """The model's decoded output on one sequence. Raises `InputError` for unknown tokens or lengths."""
        return self.run_batch([xs])[0]

    def run_batch(self, sequences: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """Decoded outputs of many sequences, of any mixture of lengths (run by length: nothing is padded)."""
        results: list[list[Value]] = [[] for _ in sequences]
        with torch.no_grad():
            for positions, tokens in self.codec.batches(sequences):
                for position, row in zip(positions, self.codec.decode(self.model(tokens)), strict=True):
                    results[position] = row
        return results

    def save(self, path: str | Path) -> None:
        """One safetensors file that holds the model, the core program, codec, circuit and alignment."""
        extra = {
            "core": core_to_json(self.core),
            "codec": self.codec.to_json(),
            "circuit": self.circuit.to_json(),
            "alignment": alignment_to_json(self.alignment),
            "d_model_without_reuse": self.sizes.d_model_without_reuse,
        }
        text = json.dumps(extra, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        self.model.save(path, extra={METADATA_KEY: text})

    @staticmethod
    def load(path: str | Path) -> Compiled:
        """What `save` wrote. Raises `InputError` if the file is anything else."""
        model, metadata = Transformer.load_with_metadata(path)
        if METADATA_KEY not in metadata:
            raise InputError(f"{path} holds a model, but no compiled program; use Transformer.load for bare models")
        try:
            extra = json.loads(metadata[METADATA_KEY])
            core = core_from_json(extra["core"])
            alignment = alignment_from_json(extra["alignment"], core)
            codec, circuit = Codec.from_json(extra["codec"]), Circuit.from_json(extra["circuit"])
            sizes = Sizes(model.config.d_model, int(extra["d_model_without_reuse"]))
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise InputError(f"the compiled program in {path} is damaged: {error}; compile it again") from None
        return Compiled(model, codec, circuit, alignment, core, sizes)
