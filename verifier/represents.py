"""The body of claims that a subspace represents a variable of a program: interchange interventions in the subspace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator
from ..compiler.core_json import core_to_json
from ..models.values import Value
from .bodies import STATUS, Ids
from .reading import UNDEFINED, Subject, Vocabulary, distance, judge
from .stream_bodies import About, SubspaceBody, stream_site
from .witness import Arithmetic, Outcome, show_value


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
        table = Vocabulary(self.subject.codec.vocab, self.program.vocab).table
        base, source = (table[x].numpy().astype(np.int64) for x in ids)
        given = self._evaluator[0].run(source, (self.node,))
        undefined = given.undefined.copy()
        values = given.values[self.node]
        if self.patch.positions is not None:
            own = self._evaluator[0].run(base, (self.node,))
            exchanged = np.isin(np.arange(base.shape[1]), self.patch.positions)
            if not exchanged.all():
                undefined |= own.undefined
            values = np.where(exchanged, values, own.values[self.node])
        trace = self._evaluator[0].run(base, (self.program.output,), {self.node: values})
        outputs = torch.from_numpy(np.array(trace.values[self.program.output], dtype=np.int64))
        if self.subject.model.config.readout != "each":
            outputs = outputs[:, -1:]
        names = self.program.value_node(self.program.output).values
        index = Vocabulary(names, self.subject.codec.outputs).table[outputs]
        wanted = torch.arange(len(self.subject.codec.outputs)) == index.unsqueeze(-1)
        return wanted, torch.from_numpy(undefined | trace.undefined)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        wanted, undefined = self.expected(ids)
        _, reading, _ = self.patch.patched(ids, semantics)
        found = judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))
        return torch.where(undefined, UNDEFINED, found)

    def score(self, ids: Ids) -> Tensor:
        wanted, undefined = self.expected(ids)
        found = distance(self.subject.codec, self.patch.patched(ids, "float32")[0], wanted).amin(-1)
        return torch.where(undefined, torch.inf, found)

    def outcome(self, ids: Ids) -> Outcome:
        wanted, _ = self.expected(ids)
        status = STATUS[int(self.judge(ids, "float32")[0])]
        if status == "undefined":
            return Outcome(status, note=f"the program is undefined when `{self.name}` is exchanged here")
        outputs = self.subject.codec.outputs
        expected = tuple(
            show_value(outputs[int(row.int().argmax())]) if row.any() else "no output" for row in wanted[0]
        )
        got = self._texts(self.patch.patched(ids, "float32")[1])
        return Outcome(status, expected, got, f"exchanged: `{self.name}`, in the subspace")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocab = tuple(v for v in self.subject.codec.vocab if v in self.program.vocab)
        return vocab, min(self.subject.longest, self.program.max_len)

    def with_subject(self, subject: Subject) -> RepresentsBody:
        return replace(self, subject=subject, patch=self.patch.with_subject(subject))

    def describe(self) -> str:
        where = "all positions" if self.patch.positions is None else f"positions {list(self.patch.positions)}"
        site = stream_site(self.subject, self.patch.depth)
        span = f"the span of {len(self.patch.directions)} directions of {site} at {where}"
        return f"{span} represents `{self.name}` of `{self.program.name}`: exchanging it changes the outputs as there"

    def to_json(self) -> dict[str, object]:
        patch = self.patch.to_json()
        kept = {key: patch[key] for key in ("stream", "directions", "positions")}
        return {"kind": self.kind, **kept, "program": core_to_json(self.program), "node": self.node}
