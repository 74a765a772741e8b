"""The body of claims that a subspace represents a variable of a program: interchange interventions in the subspace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator
from ..compiler.core_json import core_to_json
from ..models.values import Value
from .bodies import STATUS, Ids
from .mechanism_bodies import outputs_exchanged, wanted_texts
from .reading import UNDEFINED, Subject, distance, judge
from .stream_bodies import About, SubspaceBody
from .witness import Arithmetic, Outcome


@dataclass(frozen=True, eq=False)
class RepresentsBody(About):
    """With the part of the stream that `patch` says taken from a source, the model decodes to the program's output when
    the values of `node`, at the same positions, are taken from the program on the source.

    Undefined where the program is, under the exchange.
    """

    subject: Subject
    patch: SubspaceBody
    program: CoreProgram
    node: int
    _evaluator: list[Evaluator] = field(default_factory=list, repr=False)
    kind: str = "represents"
    arity: int = 2

    @property
    def name(self) -> str:
        return self.program.value_node(self.node).name or f"node {self.node}"

    def expected(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """bool [batch, pos, output]: the program's output under the exchange; and where it is undefined [batch]."""
        if not self._evaluator:
            self._evaluator.append(Evaluator(self.program))
        return outputs_exchanged(self.subject, self._evaluator[0], self.node, ids, self.patch.positions)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        wanted, undefined = self.expected(ids)
        reading = self.patch.patched(ids, semantics)
        found = judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))
        return torch.where(undefined, UNDEFINED, found)

    def score(self, ids: Ids) -> Tensor:
        wanted, undefined = self.expected(ids)
        found = distance(self.subject.codec, self.patch.patched_logits(ids), wanted).amin(-1)
        return torch.where(undefined, torch.inf, found)

    def outcome(self, ids: Ids) -> Outcome:
        wanted, _ = self.expected(ids)
        status = STATUS[int(self.judge(ids, "float32")[0])]
        if status == "undefined":
            return Outcome(status, note=f"the program is undefined when `{self.name}` is exchanged here")
        expected = wanted_texts(self.subject, wanted[0])
        got = self._texts(self.patch.patched(ids, "float32"))
        return Outcome(status, expected, got, f"exchanged: `{self.name}`, in the subspace")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocab = tuple(v for v in self.subject.codec.vocab if v in self.program.vocab)
        return vocab, min(self.subject.longest, self.program.max_len)

    def with_subject(self, subject: Subject) -> RepresentsBody:
        return replace(self, subject=subject, patch=self.patch.with_subject(subject))

    def describe(self) -> str:
        where = "all positions" if self.patch.positions is None else f"positions {list(self.patch.positions)}"
        span = f"the span of {len(self.patch.directions)} directions of {self.patch.site} at {where}"
        return f"{span} represents `{self.name}` of `{self.program.name}`: exchanging it changes the outputs as there"

    def to_json(self) -> dict[str, object]:
        patch = self.patch.to_json()
        kept = {key: patch[key] for key in ("stream", "directions", "positions")}
        return {"kind": self.kind, **kept, "program": core_to_json(self.program), "node": self.node}
