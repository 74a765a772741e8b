"""The body of claims about circuits: the circuit alone decides as the whole model does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..models.circuits import INPUT, OUTPUT, Circuit, all_edges, all_nodes, parse_head, parse_mlp
from ..models.config import TransformerConfig
from ..models.edits import Edited, Mean, Replacement, Resample, Zero, edit, outside
from ..models.errors import InputError
from ..models.program import LOGITS, Program, input_site
from ..models.values import Value, value_to_json
from .balls import Ball, Unsupported, divide, enclose, exact, total
from .bodies import STATUS, Ids, _texts
from .reading import Subject, decoded, distance, equal_readings, possible
from .witness import Arithmetic, Outcome

Kind = Literal["zero", "mean", "resample"]


@dataclass(frozen=True, eq=False)
class FaithfulBody:
    """The model with everything outside the circuit ablated decodes to the same outputs as the model.

    Ablation `zero`; `mean`: the mean over `reference` tokens [batch, pos] without BOS and over all their positions, BOS
    included; `resample`: the contributions on a second input of equal length, the witness's `source`.
    """

    subject: Subject
    circuit: Circuit
    ablation: Kind
    reference: Tensor | None = None
    kind: str = "faithful"

    @staticmethod
    def of(subject: Subject, circuit: Circuit, ablation: str | None, reference: Tensor | None = None) -> FaithfulBody:
        """Raises `InputError` for a circuit of another model, and for an ablation that cannot be run."""
        circuit.validate(subject.model.config)
        wanted = ablation or ("resample" if circuit.ablation == "any" else circuit.ablation)
        if wanted not in ("zero", "mean", "resample"):
            raise InputError(f"ablation must be 'zero', 'mean' or 'resample', got {ablation!r}")
        if wanted == "mean" and reference is None:
            raise InputError("a mean is taken over some inputs: pass reference=token ids, or use ablation='resample'")
        if circuit.granularity == "node":
            circuit = replace(circuit, nodes=circuit.nodes | {OUTPUT})
        taken = _reference(subject, reference) if wanted == "mean" else None
        return FaithfulBody(subject, circuit, wanted, taken)  # type: ignore[arg-type]

    @property
    def arity(self) -> int:
        return 2 if self.ablation == "resample" else 1

    def _by(self, ids: Ids) -> Replacement:
        if self.ablation == "zero":
            return Zero()
        if self.ablation == "mean":
            assert self.reference is not None
            return Mean(self.subject.codec.with_bos(self.reference))
        return Resample(self.subject.codec.with_bos(ids[1]))

    def _edited(self, ids: Ids) -> Edited:
        return edit(self.subject.model, *outside(self.circuit, self.subject.model.config, self._by(ids)))

    def _alone(self, ids: Ids) -> Tensor:
        with torch.no_grad():
            return self.subject._positions(self._edited(ids)(self.subject.codec.with_bos(ids[0])))

    def _alone_ball(self, ids: Ids) -> Ball:
        edited = self._edited(ids)
        constants: dict[str, Tensor | Ball] = dict(edited.constants)
        if self.ablation != "zero":
            constants.update(self._taken(self.reference if self.ablation == "mean" else ids[1]))
        tokens = self.subject.codec.with_bos(ids[0])
        whole = _Enclosed(edited, constants)
        return enclose(whole, tokens)[LOGITS].map(self.subject._positions)

    def _taken(self, source: Tensor | None) -> dict[str, Ball]:
        """Enclosures of what the edited model has as float32 constants, in the order in which `edit` made them."""
        assert source is not None
        config, nodes = self.subject.model.config, self.circuit.nodes
        if self.circuit.granularity == "node":
            writers = [node for node in all_nodes(config) if node not in nodes | {OUTPUT}]
        else:
            writers = [edge.src for edge in all_edges(config) if str(edge) not in self.circuit.edges]
        places = {writer: _written(writer, input_site(config)) for writer in writers}
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

    def alone(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        """What the circuit alone may decode to: bool [batch, pos, output]."""
        if semantics == "float32":
            return decoded(self.subject.codec, self._alone(ids))
        return possible(self.subject.codec, self._alone_ball(ids))

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for ablated models")
        return equal_readings(self.subject.reading(ids[0], semantics), self.alone(ids, semantics))

    def score(self, ids: Ids) -> Tensor:
        whole = self.subject.reading(ids[0], "float32")
        return distance(self.subject.codec, self._alone(ids), whole).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        whole = _texts(self.subject, self.subject.reading(ids[0], "float32")[0])
        alone = _texts(self.subject, decoded(self.subject.codec, self._alone(ids))[0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, whole, alone, "expected: the model; got: the circuit alone")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> FaithfulBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        size = f"{len(self.circuit.nodes)} nodes, {len(self.circuit.edges)} edges"
        return f"the circuit ({size}) alone decodes as the model does, everything else under {self.ablation} ablation"

    def to_json(self) -> dict[str, object]:
        data: dict[str, object] = {"kind": "faithful", "circuit": self.circuit.to_json(), "ablation": self.ablation}
        if self.reference is None:
            return data
        vocab = self.subject.codec.vocab
        return {**data, "reference": [[value_to_json(vocab[t]) for t in row] for row in self.reference.tolist()]}


@dataclass(frozen=True, eq=False)
class AgreeBody:
    """Two circuits, each alone and everything else under the same ablation, decode to the same outputs.

    `parts`: for each circuit, that it is faithful; of ablation `zero` or `resample`, both the same.
    """

    parts: tuple[FaithfulBody, FaithfulBody]
    kind: str = "agree"

    @property
    def subject(self) -> Subject:
        return self.parts[0].subject

    @property
    def arity(self) -> int:
        return self.parts[0].arity

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for ablated models")
        first, second = (part.alone(ids, semantics) for part in self.parts)
        return equal_readings(first, second)

    def score(self, ids: Ids) -> Tensor:
        first, second = self.parts
        return distance(self.subject.codec, first._alone(ids), second.alone(ids, "float32")).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        first, second = (_texts(self.subject, part.alone(ids, "float32")[0]) for part in self.parts)
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, first, second, "expected: the first circuit alone; got: the second alone")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.parts[0].readable()

    def with_subject(self, subject: Subject) -> AgreeBody:
        return AgreeBody((self.parts[0].with_subject(subject), self.parts[1].with_subject(subject)))

    def describe(self) -> str:
        sizes = [f"a circuit of {len(x.circuit.nodes)} nodes, {len(x.circuit.edges)} edges" for x in self.parts]
        return f"{sizes[0]} and {sizes[1]} decode alike, everything else under {self.parts[0].ablation} ablation"

    def to_json(self) -> dict[str, object]:
        circuits = [part.circuit.to_json() for part in self.parts]
        return {"kind": self.kind, "circuits": circuits, "ablation": self.parts[0].ablation}


def mean(a: Ball) -> Ball:
    """Over the first two axes, which stay with size 1."""
    count = exact(torch.tensor(float(a.mid.shape[0] * a.mid.shape[1])))
    return divide(total(total(a, 1), 0), count)


def _reference(subject: Subject, reference: Tensor | None) -> Tensor:
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
class _Enclosed:
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


def _written(node: str, start: str) -> tuple[str, int | None]:
    """The site that holds a node's output, and its head."""
    if node == INPUT:
        return start, None
    if place := parse_head(node):
        return f"blocks.{place[0]}.attn.hook_result", place[1]
    return f"blocks.{parse_mlp(node)}.hook_mlp_out", None
