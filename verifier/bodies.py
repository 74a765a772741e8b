"""Bodies of claims: conditions on the outputs of one model, each decided on single witnesses and on batches.

A body is a frozen dataclass. `judge(ids, semantics)` is its meaning: for token ids (one tensor [batch, pos] for each
input of the witness, indices into the codec's vocabulary, without BOS) it gives TRUE, FALSE, UNDECIDED (the rigorous
enclosure straddles the boundary; never in float32) or UNDEFINED (the program says nothing there). `score` only guides
the search: the lower, the nearer to failing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator
from ..compiler.core_json import core_to_json
from ..models.errors import InputError
from ..models.labels import LabelMachine
from ..models.values import Value, value_to_json
from .reading import (
    FALSE,
    TRUE,
    UNDECIDED,
    UNDEFINED,
    Subject,
    Vocabulary,
    distance,
    equal_readings,
    judge,
    margin_bounds,
)
from .theorems import codec_to_json, number_to_json
from .witness import Arithmetic, Outcome, Status, show_value

Ids: TypeAlias = tuple[Tensor, ...]


@runtime_checkable
class Body(Protocol):
    """See the module. `arity`: how many inputs, of one length, a witness has."""

    @property
    def kind(self) -> str: ...
    @property
    def arity(self) -> int: ...
    @property
    def subject(self) -> Subject: ...

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor: ...
    def score(self, ids: Ids) -> Tensor: ...
    def outcome(self, ids: Ids) -> Outcome: ...
    def readable(self) -> tuple[tuple[Value, ...], int]:
        """The tokens and the longest sequence on which the claim has a meaning."""
        ...

    def with_subject(self, subject: Subject) -> Body: ...
    def describe(self) -> str: ...
    def to_json(self) -> dict[str, object]: ...


STATUS: dict[int, Status] = {TRUE: "true", FALSE: "false", UNDEFINED: "undefined", UNDECIDED: "undecided"}


def _texts(subject: Subject, reading: Tensor) -> tuple[str, ...]:
    """The decoded outputs of a reading [pos, output] of a float32 run."""
    return tuple(show_value(subject.codec.outputs[o]) for o in reading.to(torch.int8).argmax(-1).tolist())


@dataclass(frozen=True, eq=False)
class ComputesBody:
    """At every position the decoded output equals the program's value (a model that reads out once: the last value)."""

    subject: Subject
    program: CoreProgram
    _evaluator: list[Evaluator] = field(default_factory=list, repr=False)
    kind: str = "computes"
    arity: int = 1

    def expected(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Indices into the program's output values [batch, pos], and where the program is undefined [batch]."""
        if not self._evaluator:
            self._evaluator.append(Evaluator(self.program))
        tokens = Vocabulary(self.subject.codec.vocab, self.program.vocab).table[ids].numpy()
        trace = self._evaluator[0].run(tokens.astype(np.int64), (self.program.output,))
        values = torch.from_numpy(np.array(trace.values[self.program.output], dtype=np.int64))
        if self.subject.model.config.readout != "each":
            values = values[:, -1:]
        return values, torch.from_numpy(trace.undefined)

    def _outputs(self, values: Tensor) -> Tensor:
        """bool [batch, pos, output]: the output equal to the program's value, if the codec has it."""
        names = self.program.value_node(self.program.output).values
        index = Vocabulary(names, self.subject.codec.outputs).table[values]
        return torch.arange(len(self.subject.codec.outputs)) == index.unsqueeze(-1)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        values, undefined = self.expected(ids[0])
        wanted = self._outputs(values)
        reading = self.subject.reading(ids[0], semantics)
        result = judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))
        return torch.where(undefined, UNDEFINED, result)

    def score(self, ids: Ids) -> Tensor:
        values, undefined = self.expected(ids[0])
        found = distance(self.subject.codec, self.subject.logits(ids[0]), self._outputs(values)).amin(-1)
        return torch.where(undefined, torch.inf, found)

    def outcome(self, ids: Ids) -> Outcome:
        values, _ = self.expected(ids[0])
        names = self.program.value_node(self.program.output).values
        status = STATUS[int(self.judge(ids, "float32")[0])]
        if status == "undefined":
            return Outcome(status, note="the program has no value on this input")
        expected = tuple(show_value(names[v]) for v in values[0].tolist())
        return Outcome(status, expected, _texts(self.subject, self.subject.reading(ids[0], "float32")[0]))

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocab = tuple(v for v in self.subject.codec.vocab if v in self.program.vocab)
        return vocab, min(self.subject.longest, self.program.max_len)

    def with_subject(self, subject: Subject) -> ComputesBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        where = "at every position" if self.subject.model.config.readout == "each" else "at its one read-out"
        return f"the model's decoded output equals `{self.program.name}` {where}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "computes", "program": core_to_json(self.program)}


@dataclass(frozen=True, eq=False)
class MarginBody:
    """At every position the decoded logit exceeds every other by at least `at_least` (categorical; a float64)."""

    subject: Subject
    at_least: Fraction
    kind: str = "margin"
    arity: int = 1

    def _bounds(self, ids: Tensor, semantics: Arithmetic) -> tuple[Tensor, Tensor]:
        if semantics != "float32":
            return margin_bounds(self.subject.enclosed(ids))
        logits = self.subject.logits(ids).to(torch.float64)
        if logits.shape[-1] == 1:
            return (torch.full(logits.shape[:-1], torch.inf, dtype=torch.float64),) * 2
        two = logits.topk(2, dim=-1).values
        gap = two[..., 0] - two[..., 1]
        return gap, gap

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        low, high = self._bounds(ids[0], semantics)
        return judge(low >= float(self.at_least), high < float(self.at_least))

    def score(self, ids: Ids) -> Tensor:
        return self._bounds(ids[0], "float32")[0].amin(-1) - float(self.at_least)

    def outcome(self, ids: Ids) -> Outcome:
        low = self._bounds(ids[0], "float32")[0][0]
        status = STATUS[int(self.judge(ids, "float32")[0])]
        least, at = float(low.min()), int(low.argmin())
        return Outcome(
            status, note=f"least margin {least:.9g} at position {at}, at least {float(self.at_least):g} claimed"
        )

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> MarginBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"the decoded logit exceeds every other by at least {float(self.at_least):g} at every position"

    def to_json(self) -> dict[str, object]:
        return {"kind": "margin", "at_least": number_to_json(self.at_least)}


@dataclass(frozen=True, eq=False)
class NeverOutputsBody:
    """At no position is one of `outputs` decoded.

    `states`: a machine over token ids by whose states a proof may tell prefixes apart; no part of the claim.
    """

    subject: Subject
    outputs: tuple[Value, ...]
    states: LabelMachine | None = None
    kind: str = "never_outputs"
    arity: int = 1

    @property
    def _banned(self) -> Tensor:
        return torch.tensor([value in self.outputs for value in self.subject.codec.outputs])

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        reading = self.subject.reading(ids[0], semantics)
        return judge(~(reading & self._banned).any(-1), ~(reading & ~self._banned).any(-1))

    def score(self, ids: Ids) -> Tensor:
        logits = self.subject.logits(ids[0])
        allowed = (~self._banned).expand(*logits.shape[:2], -1)
        return distance(self.subject.codec, logits, allowed).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        status = STATUS[int(self.judge(ids, "float32")[0])]
        got = _texts(self.subject, self.subject.reading(ids[0], "float32")[0])
        banned = {show_value(value) for value in self.outputs}
        wanted = tuple(f"not {text}" if text in banned else text for text in got)
        return Outcome(status, wanted, got)

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> NeverOutputsBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"the model never outputs {' or '.join(map(show_value, self.outputs))}"

    def to_json(self) -> dict[str, object]:
        return {"kind": "never_outputs", "outputs": [value_to_json(value) for value in self.outputs]}


@dataclass(frozen=True, eq=False)
class InvariantBody:
    """Two runs on one input x: on x, and on x changed; the second's outputs equal the first's.

    `relabelling` replaces tokens (others stay); with `relabel_outputs` the first run's outputs are replaced likewise
    before they are compared. `irrelevant` positions are all set to the vocabulary's first token, and outputs are
    compared at the other positions: so two inputs that differ only there have equal outputs.
    """

    subject: Subject
    relabelling: tuple[tuple[Value, Value], ...] = ()
    relabel_outputs: bool = False
    irrelevant: tuple[int, ...] = ()
    kind: str = "invariant"
    arity: int = 1

    @property
    def _names(self) -> dict[Value, Value]:
        return dict(self.relabelling)

    def changed(self, ids: Tensor) -> Tensor:
        """The input of the second run."""
        codec = self.subject.codec
        names = self._names
        table = torch.tensor([codec.index[names.get(v, v)] for v in codec.vocab])
        result = table[ids]
        inside = [p for p in self.irrelevant if p < ids.shape[1]]
        result[:, inside] = 0
        return result

    def _expected(self, first: Tensor) -> Tensor:
        return (first.to(torch.float32) @ self._moves().to(torch.float32)) > 0

    def _moves(self) -> Tensor:
        """bool [output, output]: which output each is relabelled to."""
        outputs, names = self.subject.codec.outputs, self._names if self.relabel_outputs else {}
        place = {value: o for o, value in enumerate(outputs)}
        move = torch.zeros(len(outputs), len(outputs), dtype=torch.bool)
        for o, value in enumerate(outputs):
            renamed = names.get(value, value)
            if renamed in place:
                move[o, place[renamed]] = True
        return move

    def _compared(self, reading: Tensor) -> Tensor:
        if self.subject.model.config.readout != "each":
            return reading
        return reading[:, [p for p in range(reading.shape[1]) if p not in self.irrelevant]]

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        first = self.subject.reading(ids[0], semantics)
        expected = self._expected(first)
        # one more column, "no output": an output that is relabelled to none must not count as decided
        lost = (first & ~self._moves().any(-1)).any(-1, keepdim=True)
        second = self.subject.reading(self.changed(ids[0]), semantics)
        expected, second = torch.cat([expected, lost], -1), torch.cat([second, torch.zeros_like(lost)], -1)
        return equal_readings(self._compared(expected), self._compared(second))

    def score(self, ids: Ids) -> Tensor:
        first = self._expected(self.subject.reading(ids[0], "float32"))
        found = distance(self.subject.codec, self.subject.logits(self.changed(ids[0])), first)
        compared = self._compared(found.unsqueeze(-1))[..., 0]
        return compared.amin(-1) if compared.shape[1] else torch.full((len(ids[0]),), torch.inf, dtype=torch.float64)

    def outcome(self, ids: Ids) -> Outcome:
        status = STATUS[int(self.judge(ids, "float32")[0])]
        first = self._expected(self.subject.reading(ids[0], "float32"))
        changed = self.changed(ids[0])
        second = self.subject.reading(changed, "float32")
        shown = ", ".join(show_value(self.subject.codec.vocab[t]) for t in changed[0].tolist())
        texts = [_texts(self.subject, self._compared(reading)[0]) for reading in (first, second)]
        return Outcome(status, texts[0], texts[1], f"the changed input is [{shown}]")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def with_subject(self, subject: Subject) -> InvariantBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        if self.irrelevant:
            shown = ", ".join(map(str, self.irrelevant))
            return f"the outputs at other positions do not depend on the tokens at positions {shown}"
        moves = ", ".join(f"{show_value(a)} -> {show_value(b)}" for a, b in self.relabelling)
        effect = "relabels the outputs likewise" if self.relabel_outputs else "leaves the outputs as they are"
        return f"relabelling tokens ({moves}) {effect}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "invariant",
            "relabelling": [[value_to_json(a), value_to_json(b)] for a, b in self.relabelling],
            "relabel_outputs": self.relabel_outputs,
            "irrelevant_positions": list(self.irrelevant),
        }


@dataclass(frozen=True, eq=False)
class AndBody:
    """All of the parts; a part of smaller arity reads the first inputs."""

    parts: tuple[Body, ...]
    kind: str = "and"

    def __post_init__(self) -> None:
        first = self.parts[0].subject
        for part in self.parts[1:]:
            if part.subject.model is not first.model:
                raise InputError(
                    f"claims about different models cannot be joined by &; prove them one by one: {part.describe()}"
                )
            if codec_to_json(part.subject.codec) != codec_to_json(first.codec):
                raise InputError(
                    f"claims with different codecs cannot be joined by &; prove them one by one: {part.describe()}"
                )

    @property
    def arity(self) -> int:
        return max(part.arity for part in self.parts)

    @property
    def subject(self) -> Subject:
        """The parts', with the explanation of the first part that has one."""
        return next((part.subject for part in self.parts if part.subject.alignment), self.parts[0].subject)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        codes = torch.stack([part.judge(ids[: part.arity], semantics) for part in self.parts])
        result = torch.where((codes == UNDECIDED).any(0), UNDECIDED, TRUE)
        result = torch.where((codes == UNDEFINED).any(0), UNDEFINED, result)
        return torch.where((codes == FALSE).any(0), FALSE, result).to(torch.int8)

    def score(self, ids: Ids) -> Tensor:
        return torch.stack([part.score(ids[: part.arity]) for part in self.parts]).amin(0)

    def outcome(self, ids: Ids) -> Outcome:
        outcomes = [(part, part.outcome(ids[: part.arity])) for part in self.parts]
        for status in ("false", "undefined", "undecided"):
            for part, outcome in outcomes:
                if outcome.status == status:
                    note = f"{outcome.note}; " if outcome.note else ""
                    return replace(outcome, note=f"{note}the part that fails: {part.describe()}")
        return outcomes[0][1]

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocabs, longest = zip(*(part.readable() for part in self.parts), strict=True)
        return tuple(v for v in vocabs[0] if all(v in vocab for vocab in vocabs)), min(longest)

    def with_subject(self, subject: Subject) -> AndBody:
        return AndBody(
            tuple(part.with_subject(replace(subject, alignment=part.subject.alignment)) for part in self.parts)
        )

    def describe(self) -> str:
        return "; and ".join(part.describe() for part in self.parts)

    def to_json(self) -> dict[str, object]:
        return {"kind": "and", "parts": [part.to_json() for part in self.parts]}
