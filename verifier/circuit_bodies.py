"""The body of claims about circuits: the circuit alone decides as the whole model does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..models.circuits import Circuit
from ..models.labels import LabelMachine
from ..models.values import Value
from .alone import Alone, Stored
from .bodies import STATUS, Ids, _texts
from .reading import Subject, decoded, distance, equal_readings
from .witness import Arithmetic, Outcome


@dataclass(frozen=True, eq=False)
class Through:
    """A task's labels, through which a proof may go: where model and circuit both decode to the label, they agree.

    No part of a claim. `states`: as in `LabelsBody`.
    """

    machine: LabelMachine
    name: str
    states: LabelMachine | None = None


@dataclass(frozen=True, eq=False)
class FaithfulBody:
    """The model with everything outside the circuit ablated decodes to the same outputs as the model."""

    alone: Alone
    through: Through | None = None
    kind: str = "faithful"

    @staticmethod
    def of(
        subject: Subject,
        circuit: Circuit,
        ablation: str | None,
        reference: Tensor | None = None,
        means: Mapping[str, Tensor] | Stored | None = None,
        through: Through | None = None,
    ) -> FaithfulBody:
        """Raises `InputError` for a circuit of another model, and for an ablation that cannot be run."""
        return FaithfulBody(Alone.of(subject, circuit, ablation, means, reference), through)

    @property
    def subject(self) -> Subject:
        return self.alone.subject

    @property
    def circuit(self) -> Circuit:
        return self.alone.circuit

    @property
    def ablation(self) -> str:
        return self.alone.ablation

    @property
    def arity(self) -> int:
        return self.alone.arity

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        alone = self.alone.reading(ids, semantics)
        return equal_readings(self.subject.reading(ids[0], semantics), alone)

    def score(self, ids: Ids) -> Tensor:
        whole = self.subject.reading(ids[0], "float32")
        return distance(self.subject.codec, self.alone.logits(ids), whole).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        whole = _texts(self.subject, self.subject.reading(ids[0], "float32")[0])
        alone = _texts(self.subject, decoded(self.subject.codec, self.alone.logits(ids))[0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, whole, alone, "expected: the model; got: the circuit alone")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> FaithfulBody:
        return replace(self, alone=self.alone.with_subject(subject))

    def describe(self) -> str:
        size = f"{len(self.circuit.nodes)} nodes, {len(self.circuit.edges)} edges"
        return f"the circuit ({size}) alone decodes as the model does, everything else under {self.ablation} ablation"

    def to_json(self) -> dict[str, object]:
        return {"kind": "faithful", **self.alone.to_json()}


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
        first, second = (part.alone.reading(ids, semantics) for part in self.parts)
        return equal_readings(first, second)

    def score(self, ids: Ids) -> Tensor:
        first, second = self.parts
        return distance(self.subject.codec, first.alone.logits(ids), second.alone.reading(ids, "float32")).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        first, second = (_texts(self.subject, part.alone.reading(ids, "float32")[0]) for part in self.parts)
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
