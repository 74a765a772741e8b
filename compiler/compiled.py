"""A compiled program: the model, how to talk to it, and the ground truth about its mechanism."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..models import Circuit, Codec, InputError, Transformer, Value
from .alignment import Alignment
from .alignment_json import alignment_from_json, alignment_to_json
from .core import CoreProgram
from .core_json import core_from_json, core_to_json
from .terms import show

if TYPE_CHECKING:
    from .rasp import SOp

METADATA_KEY = "certiformer.compiled"


class Certified(Protocol):
    """A certificate, as `certify=True` attaches it (`verifier.Certificate`)."""

    @property
    def theorem(self) -> Mapping[str, Any]:
        """What is proved: `proofs/SPECIFICATION.md`, section 3."""

    def to_bytes(self) -> bytes:
        """Canonical JSON, for `check`."""

    def save(self, path: str | Path) -> None:
        """Writes it, atomically."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """The width of the residual stream: as built, and as it would be if no coordinate were reused.

    The two are equal for `compile(..., reuse=False)`.
    """

    d_model: int
    d_model_without_reuse: int


@dataclass(frozen=True, eq=False, repr=False)
class Compiled:
    """What `compile` returns.

    `model`: an ordinary transformer. `codec`: tokens in, values out. `alignment`: which component computes which node
    of `core`, and how it is encoded. `core`: the program as a canonical core program. `sizes`: the width of the
    residual stream with and without reuse. `program`: the RASP expression, if it is at hand. `certificate`: set by
    `certify=True`.

    `circuit`: the nodes and edges of the model through which anything can flow: those whose source writes a
    coordinate of the residual stream that their target reads. It is ground truth for every ablation ("any"): whatever
    is put in place of the other edges' contributions, the outputs stay the same. With `reuse=True` it also has edges
    that carry no information of the program (in `hist`, `input->logits` and `a0.h0->logits`): where a value that is
    dead gives its coordinate to a new one, neurons write minus the old value, and a reader of the coordinate sums the
    old value, minus the old value, and the new one. Each of the first two is a contribution that may not be replaced
    alone, for the other would no longer cancel it, so both edges belong to the ground truth. Compile with
    `reuse=False` for a circuit without such edges.

    `margin`: the least gap by which the read-out decides, over all inputs, as the construction guarantees it: for
    categorical outputs the right logit's lead over every other one, for scalar outputs the distance of the logit to
    the nearest decision boundary. It is what the constants leave after softmax leakage, rounded weights and
    accumulated errors, in exact arithmetic of the float32 weights; infinite where there is one output only, 0.0 where
    the plan's own bounds guarantee nothing. It is a figure of the design, worked out from the plan in double precision
    and not from the weights: `prove` and `certify=True` prove what the weights do. It is the model's as compiled.
    """

    model: Transformer
    codec: Codec
    circuit: Circuit
    alignment: Alignment
    core: CoreProgram
    sizes: Sizes
    program: SOp | None = None
    certificate: Certified | None = None
    margin: float = 0.0

    @property
    def vocab(self) -> tuple[Value, ...]:
        """The tokens, in canonical order: token id t stands for `vocab[t]`."""
        return self.core.vocab

    @property
    def max_len(self) -> int:
        """The greatest number of tokens, the beginning-of-sequence token not counted."""
        return self.core.max_len

    @property
    def causal(self) -> bool:
        """Whether a position sees itself and earlier positions only."""
        return self.core.causal

    @cached_property
    def n_parameters(self) -> int:
        """How many numbers the model's weights are."""
        return sum(p.numel() for p in self.model.parameters())

    def __repr__(self) -> str:
        layers = self.model.config.layers
        heads, neurons = sum(layer.n_heads for layer in layers), sum(layer.d_mlp for layer in layers)
        shown = ", ".join(map(show, self.vocab[:4])) + (", …" if len(self.vocab) > 4 else "")
        certified = ", certified" if self.certificate is not None else ""
        return (
            f"<Compiled {self.core.name!r}: {len(self.vocab)} tokens ({shown}), lengths 1 to {self.max_len}, "
            f"{'causal' if self.causal else 'bidirectional'}; {len(layers)} layers, {heads} heads, {neurons} neurons, "
            f"d_model {self.sizes.d_model}, {self.n_parameters} parameters; margin {self.margin:.3g}{certified}>"
        )

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
            "margin": self.margin if math.isfinite(self.margin) else None,
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
            margin = math.inf if extra["margin"] is None else float(extra["margin"])
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise InputError(f"the compiled program in {path} is damaged: {error}; compile it again") from None
        return Compiled(model, codec, circuit, alignment, core, sizes, margin=margin)
