"""A circuit alone: the model with everything outside the circuit ablated, run in float32 or enclosed over the reals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from ..models import files
from ..models.circuits import OUTPUT, Circuit, all_edges, all_nodes
from ..models.codec import Codec
from ..models.config import TransformerConfig
from ..models.edits import Ablate, Edited, Given, Mean, Replacement, Resample, Zero, edit, outside, written_at
from ..models.errors import InputError
from ..models.program import LOGITS, Program
from ..models.reduction import circuit_model, mean_vector, paired_model, sources
from ..models.transformer import Transformer
from ..models.values import value_to_json
from .balls import Ball, Unsupported, divide, enclose, exact, total
from .reading import Subject, decoded, possible
from .witness import Arithmetic

Kind: TypeAlias = Literal["zero", "mean", "resample"]
KINDS = ("zero", "mean", "resample")
MAX_PAIRS = 2**14
"""Of tokens, that the model on pairs reads (and that a theorem's vocabulary may have)."""


class Stored(Protocol):
    """Vectors with their provenance."""

    @property
    def values(self) -> Mapping[str, Tensor]: ...


def vectors(means: Mapping[str, Tensor] | Stored | None) -> Mapping[str, Tensor] | None:
    """The vectors by node. Raises `InputError` for anything else."""
    found = means if means is None or isinstance(means, Mapping) else getattr(means, "values", means)
    if found is not None and not isinstance(found, Mapping):
        raise InputError(f"means are float32 vectors by node, {{'a0.h1': tensor, ...}}, got {means!r}")
    return found


@dataclass(frozen=True, eq=False)
class Alone:
    """A circuit of a subject's model, with everything else ablated.

    Ablation `zero`; `mean`: these `means`, a float32 vector [d_model] for each node that is ablated somewhere (or for
    more), or the mean over `reference` tokens [batch, pos] without BOS and over all their positions, BOS included;
    `resample`: what it is on a second input of equal length.
    """

    subject: Subject
    circuit: Circuit
    ablation: Kind
    means: Mapping[str, Tensor] | None = None
    reference: Tensor | None = None
    _made: dict[str, Subject] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        subject: Subject,
        circuit: Circuit,
        ablation: str | None,
        means: Mapping[str, Tensor] | Stored | None = None,
        reference: Tensor | None = None,
    ) -> Alone:
        """Raises `InputError` for a circuit of another model, and for an ablation that cannot be run."""
        config = subject.model.config
        circuit.validate(config)
        means = vectors(means)
        given = "mean" if means is not None or reference is not None else None
        wanted = ablation or given or ("resample" if circuit.ablation == "any" else circuit.ablation)
        if wanted not in KINDS:
            raise InputError(f"ablation must be 'zero', 'mean' or 'resample', got {ablation!r}")
        if (wanted == "mean") != (given is not None) or (means is not None and reference is not None):
            raise InputError(
                "ablation 'mean' takes either means={node: float32 vector} or reference=token ids, and no other does; "
                "or use ablation='resample'"
            )
        if circuit.granularity == "node":
            circuit = replace(circuit, nodes=circuit.nodes | {OUTPUT})
        taken = reference_of(subject, reference) if reference is not None else None
        kept = means_of(means, circuit, config) if means is not None else None
        return Alone(subject, circuit, wanted, kept, taken)  # type: ignore[arg-type]

    @property
    def arity(self) -> int:
        return 2 if self.ablation == "resample" else 1

    def with_subject(self, subject: Subject) -> Alone:
        return Alone(subject, self.circuit, self.ablation, self.means, self.reference)

    # The circuit as a model of its own

    @property
    def reducible(self) -> bool:
        """Whether the circuit is an ordinary transformer (`models/reduction.py`)."""
        codec, model = self.subject.codec, self.subject.model
        plain = isinstance(model, Transformer) and model.config.layer_norm is None
        few = self.arity == 1 or len(codec.vocab) ** 2 <= MAX_PAIRS
        return plain and few and self.reference is None

    @property
    def reduced(self) -> Subject:
        """The circuit as a model of its own; of a second input, on pairs of tokens: x * (size of the vocabulary) + y.

        Raises `Unsupported` where it is none.
        """
        if not self.reducible:
            raise Unsupported("only circuits of models without LayerNorm are models; with resample, of few tokens")
        model, codec = self.subject.model, self.subject.codec
        key = model.weights_sha256()  # the weights may have been changed
        if key not in self._made:
            self._made.clear()
            if self.ablation == "resample":
                made, codec = paired_model(model, self.circuit, len(codec.vocab), codec.bos), pair_codec(codec)
            else:
                made = circuit_model(model, self.circuit, self.means)
            self._made[key] = Subject(made, codec)
        return self._made[key]

    def tokens(self, ids: tuple[Tensor, ...]) -> Tensor:
        """What the circuit's own model reads, without BOS."""
        return ids[0] if self.arity == 1 else ids[0] * len(self.subject.codec.vocab) + ids[1]

    # What it computes

    def logits(self, ids: tuple[Tensor, ...]) -> Tensor:
        """The float32 run: logits [batch, pos, out] without BOS; one position if the model reads out once."""
        if self.reducible:
            return self.reduced.logits(self.tokens(ids))
        with torch.no_grad():
            return self.subject._positions(self.edited(ids)(self.subject.codec.with_bos(ids[0])))

    def enclosed(self, ids: tuple[Tensor, ...]) -> Ball:
        """Balls around the real logits. Raises `balls.Unsupported`."""
        return self.reduced.enclosed(self.tokens(ids)) if self.reducible else self.enclosed_by_edits(ids)

    def enclosed_by_edits(self, ids: tuple[Tensor, ...]) -> Ball:
        """The same from the model with its edits: slower, and for all models."""
        edited = self.edited(ids)
        constants: dict[str, Tensor | Ball] = dict(edited.constants)
        if self.reference is not None or self.ablation == "resample":
            constants.update(self._taken(ids[1] if self.reference is None else self.reference))
        tokens = self.subject.codec.with_bos(ids[0])
        return enclose(Enclosed(edited, constants), tokens)[LOGITS].map(self.subject._positions)

    def reading(self, ids: tuple[Tensor, ...], semantics: Arithmetic) -> Tensor:
        """bool [batch, pos, output]: what may be decoded."""
        if semantics == "float32":
            return decoded(self.subject.codec, self.logits(ids))
        if semantics == "precise":
            if not self.reducible:
                raise Unsupported("no high-precision rule for models with edits")
            return self.reduced.reading(self.tokens(ids), semantics)
        return possible(self.subject.codec, self.enclosed(ids))

    def edited(self, ids: tuple[Tensor, ...]) -> Edited:
        """The model with everything outside the circuit ablated, as it runs on these inputs."""
        model, codec = self.subject.model, self.subject.codec
        if self.means is not None:
            targets = (one.target for one in outside(self.circuit, model.config, Zero()))
            found = {target: self.means.get(target.partition("->")[0]) for target in targets}
            return edit(model, *(Ablate(t, Zero() if v is None else Given(v)) for t, v in found.items()))
        by: Replacement = Zero()
        if self.reference is not None:
            by = Mean(codec.with_bos(self.reference))
        elif self.ablation == "resample":
            by = Resample(codec.with_bos(ids[1]))
        return edit(model, *outside(self.circuit, model.config, by))

    def _taken(self, source: Tensor) -> dict[str, Ball]:
        """Enclosures of what the edited model has as float32 constants, in the order in which `edit` made them."""
        config, nodes = self.subject.model.config, self.circuit.nodes
        if self.circuit.granularity == "node":
            writers = [node for node in all_nodes(config) if node not in nodes | {OUTPUT}]
        else:
            writers = [edge.src for edge in all_edges(config) if str(edge) not in self.circuit.edges]
        places = {writer: written_at(writer, config) for writer in writers}
        wanted = tuple(dict.fromkeys(site for site, _ in places.values()))
        taken = enclose(self.subject.model, self.subject.codec.with_bos(source), wanted)
        stride = 2 if self.circuit.granularity == "node" else 1
        result: dict[str, Ball] = {}
        for step, writer in enumerate(writers):
            site, head = places[writer]
            value = mean(taken[site]) if self.ablation == "mean" else taken[site]
            if head is not None:
                at = slice(head, head + 1) if stride == 2 else head
                value = value.map(lambda t, at=at: t[:, :, at])  # type: ignore[misc]
            result[f"constant{stride * step}"] = value
        return result

    # Words and plain data

    def describe(self) -> str:
        size = f"{len(self.circuit.nodes)} nodes, {len(self.circuit.edges)} edges"
        stored = " (stored vectors)" if self.means is not None else ""
        return f"the circuit ({size}) alone, everything else under {self.ablation} ablation{stored} by {self.level}"

    @property
    def level(self) -> str:
        return str(self.circuit.granularity)

    def to_json(self) -> dict[str, object]:
        """Its part of a theorem: `proofs/SPECIFICATION.md`, section 3."""
        data: dict[str, object] = {"circuit": self.circuit.to_json(), "ablation": self.ablation}
        if self.means is not None:
            needed = sources(self.circuit, self.subject.model.config)
            data["means"] = {node: files.little_endian(self.means[node]).hex() for node in needed}
        if self.reference is not None:
            vocab = self.subject.codec.vocab
            data["reference"] = [[value_to_json(vocab[t]) for t in row] for row in self.reference.tolist()]
        return data


def pair_codec(codec: Codec) -> Codec:
    """Of the model on pairs of a codec's tokens."""
    pairs = tuple(range(len(codec.vocab) ** 2))
    return replace(codec, vocab=pairs)


def means_of(means: Mapping[str, Tensor], circuit: Circuit, config: TransformerConfig) -> dict[str, Tensor]:
    """Copies of the vectors. Raises `InputError` if some that the circuit needs lack, and for those that do not fit."""
    nodes = [node for node in all_nodes(config) if node != OUTPUT]
    if strange := [node for node in means if node not in nodes]:
        raise InputError(f"means are for the model's nodes, {', '.join(nodes[:8])}; got {strange[0]!r}")
    if lacking := [node for node in sources(circuit, config) if node not in means]:
        raise InputError(f"a mean is needed for every node that is ablated somewhere; missing: {', '.join(lacking)}")
    return {node: mean_vector(value, node, config).clone() for node, value in means.items()}


def mean(a: Ball) -> Ball:
    """Over the first two axes, which stay with size 1."""
    count = exact(torch.tensor(float(a.mid.shape[0] * a.mid.shape[1])))
    return divide(total(total(a, 1), 0), count)


def reference_of(subject: Subject, reference: Tensor) -> Tensor:
    """A copy of the reference inputs. Raises `InputError` unless they are token ids [batch, pos] of the codec."""
    if not isinstance(reference, Tensor) or reference.dim() != 2 or not reference.numel():
        shape = tuple(reference.shape) if isinstance(reference, Tensor) else repr(reference)
        raise InputError(f"reference must be token ids [batch, pos], without BOS, got {shape}")
    most = len(subject.codec.vocab) - 1
    if reference.is_floating_point() or int(reference.min()) < 0 or int(reference.max()) > most:
        raise InputError(f"reference must hold token ids from 0 to {most}: BOS is put in front of them by itself")
    if reference.shape[1] > subject.longest:
        raise InputError(f"the model reads at most {subject.longest} tokens, the reference has {reference.shape[1]}")
    return reference.detach().to(torch.int64).clone()


@dataclass(frozen=True, eq=False)
class Enclosed:
    """An edited model whose constants are known by enclosures."""

    edited: Edited
    constants: dict[str, Tensor | Ball]

    @property
    def program(self) -> Program:
        return self.edited.program

    @property
    def config(self) -> TransformerConfig:
        return self.edited.config

    def parameter(self, name: str) -> Tensor:
        return self.edited.base.parameter(name)
