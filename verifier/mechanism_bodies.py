"""Bodies of claims about mechanism: where a head looks, and what happens under interchange of representations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..compiler.alignment import Encoding, HeadRole, NeuronRole, Scaled
from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator
from ..compiler.core_json import core_to_json
from ..models.execution import RULES, Run
from ..models.program import LOGITS, needed
from ..models.values import Value
from .balls import Ball, Unsupported, enclose, total
from .bodies import STATUS, Ids, _texts
from .reading import UNDEFINED, Subject, Vocabulary, decoded, distance, judge, possible
from .theorems import number_to_json
from .witness import Arithmetic, Outcome, show_value


@dataclass(frozen=True, eq=False)
class AttendsBody:
    """Head `head` of layer `layer` attends uniformly to what a selector selects, up to `tolerance`.

    For every query position (other than BOS) let T be the visible keys that the selector selects there, or, if it
    selects none, BOS. Each key of T has a weight within `tolerance` of 1 / |T|, and all other keys together have at
    most `tolerance`. Without BOS an empty selection makes the claim false.
    """

    subject: Subject
    layer: int
    head: int
    program: CoreProgram
    selector: int
    tolerance: float
    _evaluator: list[Evaluator] = field(default_factory=list, repr=False)
    kind: str = "attends"
    arity: int = 1

    @property
    def site(self) -> str:
        return f"blocks.{self.layer}.attn.hook_pattern"

    def target(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """bool [batch, query, key] with BOS, if any, as key 0; and where the program is undefined [batch]."""
        if not self._evaluator:
            self._evaluator.append(Evaluator(self.program))
        tokens = Vocabulary(self.subject.codec.vocab, self.program.vocab).table[ids].numpy()
        trace = self._evaluator[0].run(tokens.astype(np.int64), (self.selector,))
        selected = torch.from_numpy(np.array(trace.selections[self.selector]))
        if self.subject.model.config.causal:
            selected = selected.tril()
        if self.subject.codec.bos:
            selected = torch.cat([~selected.any(-1, keepdim=True), selected], dim=-1)
        return selected, torch.from_numpy(trace.undefined)

    def _pattern(self, ids: Tensor, semantics: Arithmetic) -> Ball:
        tokens, first = self.subject.codec.with_bos(ids), int(self.subject.codec.bos)
        if semantics != "float32":
            return enclose(self.subject.model, tokens, (self.site,))[self.site].map(lambda p: p[:, self.head, first:])
        with torch.no_grad():
            pattern = self.subject.model.run_with_cache(tokens, self.site)[1][self.site]
        mid = pattern[:, self.head, first:].to(torch.float64)
        return Ball(mid, torch.zeros_like(mid))

    def _excess(self, ids: Tensor, semantics: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds [batch, query] of the largest deviation, and where the program is undefined."""
        target, undefined = self.target(ids)
        weight = self._pattern(ids, semantics)
        share = 1.0 / target.sum(-1, keepdim=True).clamp(min=1).to(torch.float64)
        slack = 2.0**-52 if semantics != "float32" else 0.0
        low, high = (weight.low(), weight.high()) if semantics != "float32" else (weight.mid, weight.mid)
        most = torch.where(target, torch.maximum(high - share, share - low) + slack, 0.0).amax(-1)
        least = torch.where(target, torch.maximum(low - share, share - high) - slack, 0.0).amax(-1)
        rest = total(weight.map(lambda w: torch.where(target, 0.0, w)), -1)
        outside = (rest.low(), rest.high()) if semantics != "float32" else (rest.mid, rest.mid)
        least, most = torch.maximum(least, outside[0][..., 0]), torch.maximum(most, outside[1][..., 0])
        empty = ~target.any(-1)
        return torch.where(empty, torch.inf, least), torch.where(empty, torch.inf, most), undefined

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        least, most, undefined = self._excess(ids[0], semantics)
        return torch.where(undefined, UNDEFINED, judge(most <= self.tolerance, least > self.tolerance))

    def score(self, ids: Ids) -> Tensor:
        least, _, undefined = self._excess(ids[0], "float32")
        return torch.where(undefined, torch.inf, self.tolerance - least.amax(-1))

    def outcome(self, ids: Ids) -> Outcome:
        least, _, undefined = self._excess(ids[0], "float32")
        if bool(undefined[0]):
            return Outcome("undefined", note="the selector has no meaning on this input")
        query = int(least[0].argmax())
        target, names = self.target(ids[0])[0][0, query], ["BOS"] * self.subject.codec.bos
        names += [str(i) for i in range(ids[0].shape[1])]
        weights = self._pattern(ids[0], "float32").mid[0, query]
        seen = ", ".join(f"{name}: {w:.4g}" for name, w in zip(names, weights.tolist(), strict=True) if w > 1e-4)
        wanted = ", ".join(name for name, t in zip(names, target.tolist(), strict=True) if t)
        note = f"query {query} should attend uniformly to {{{wanted}}}; weights by key {{{seen}}}"
        return Outcome(STATUS[int(self.judge(ids, "float32")[0])], note=note)

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocab = tuple(v for v in self.subject.codec.vocab if v in self.program.vocab)
        return vocab, min(self.subject.longest, self.program.max_len)

    def with_subject(self, subject: Subject) -> AttendsBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        name = getattr(self.program.nodes[self.selector], "name", "") or f"selector {self.selector}"
        return f"head L{self.layer}H{self.head} attends uniformly to `{name}`, up to {self.tolerance:g}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "attends",
            "layer": self.layer,
            "head": self.head,
            "program": core_to_json(self.program),
            "selector": self.selector,
            "tolerance": number_to_json(self.tolerance),
        }


@dataclass(frozen=True, eq=False)
class InterchangeBody:
    """Taking the representation of one s-op from a second input changes the output as the program says.

    Witness: a base and a source of equal length. In the model, what the components aligned with `node` write on the
    source replaces what they write on the base, at all positions; in the program, the node's values do.
    The decoded outputs must equal the program's. Where the program is undefined under the interchange, so is the claim.
    """

    subject: Subject
    program: CoreProgram
    node: int
    parts: tuple[HeadRole | NeuronRole, ...]
    _evaluator: list[Evaluator] = field(default_factory=list, repr=False)
    kind: str = "interchange"
    arity: int = 2

    @property
    def name(self) -> str:
        return self.program.value_node(self.node).name or f"node {self.node}"

    def expected(self, base: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """bool [batch, pos, output]: the program's output under the interchange; and where it is undefined [batch]."""
        if not self._evaluator:
            self._evaluator.append(Evaluator(self.program))
        return outputs_exchanged(self.subject, self._evaluator[0], self.node, (base, source))

    def _places(self) -> dict[str, tuple[list[int], int]]:
        """By site: the heads or neurons to replace, and the axis they stand on."""
        places: dict[str, tuple[list[int], int]] = {}
        for part in self.parts:
            if isinstance(part, HeadRole):
                places.setdefault(f"blocks.{part.layer}.attn.hook_z", ([], 2))[0].append(part.head)
            else:
                site = f"blocks.{part.layer}.mlp.hook_post"
                places.setdefault(site, ([], 2))[0].extend(range(*part.neurons))
        return places

    def _logits(self, base: Tensor, source: Tensor, semantics: Arithmetic) -> tuple[Tensor, Ball | None]:
        codec, places = self.subject.codec, self._places()
        base, source = codec.with_bos(base), codec.with_bos(source)
        if semantics == "float32":
            taken = run_replaced(self.subject, source, tuple(places), {})
            moves = {site: _replacing(taken[site], *place) for site, place in places.items()}
            return self.subject._positions(run_replaced(self.subject, base, (LOGITS,), moves)[LOGITS]), None
        if semantics == "precise":
            raise Unsupported("no high-precision rule for interchange interventions")
        given = enclose(self.subject.model, source, tuple(places))
        swaps = {site: _replacing_ball(given[site], *place) for site, place in places.items()}
        ball = enclose(self.subject.model, base, (LOGITS,), swaps)[LOGITS]
        return ball.mid, ball.map(self.subject._positions)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        wanted, undefined = self.expected(ids[0], ids[1])
        logits, ball = self._logits(ids[0], ids[1], semantics)
        reading = decoded(self.subject.codec, logits) if ball is None else possible(self.subject.codec, ball)
        found = judge((reading == wanted).all(-1), ~(reading & wanted).any(-1))
        return torch.where(undefined, UNDEFINED, found)

    def score(self, ids: Ids) -> Tensor:
        wanted, undefined = self.expected(ids[0], ids[1])
        found = distance(self.subject.codec, self._logits(ids[0], ids[1], "float32")[0], wanted).amin(-1)
        return torch.where(undefined, torch.inf, found)

    def outcome(self, ids: Ids) -> Outcome:
        wanted, _ = self.expected(ids[0], ids[1])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        if status == "undefined":
            return Outcome(status, note=f"the program is undefined when `{self.name}` is interchanged here")
        expected = wanted_texts(self.subject, wanted[0])
        got = _texts(self.subject, decoded(self.subject.codec, self._logits(ids[0], ids[1], "float32")[0])[0])
        return Outcome(status, expected, got, f"interchanged: `{self.name}`")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        vocab = tuple(v for v in self.subject.codec.vocab if v in self.program.vocab)
        return vocab, min(self.subject.longest, self.program.max_len)

    def with_subject(self, subject: Subject) -> InterchangeBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"interchanging `{self.name}` changes the outputs as the program `{self.program.name}` says"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "interchange",
            "program": core_to_json(self.program),
            "node": self.node,
            "heads": [list(at) for at in sorted({(p.layer, p.head) for p in self.parts if isinstance(p, HeadRole)})],
            "neurons": [list(span) for span in self._neurons()],
        }

    def _neurons(self) -> list[tuple[int, int, int]]:
        """(layer, first, end), ascending; ranges that meet or overlap are joined."""
        spans: list[tuple[int, int, int]] = []
        for layer, first, end in sorted((p.layer, *p.neurons) for p in self.parts if isinstance(p, NeuronRole)):
            if spans and spans[-1][0] == layer and first <= spans[-1][2]:
                spans[-1] = (layer, spans[-1][1], max(end, spans[-1][2]))
            elif first < end:
                spans.append((layer, first, end))
        return spans


def outputs_exchanged(
    subject: Subject, evaluator: Evaluator, node: int, ids: Ids, positions: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """bool [batch, pos, output]: the program's output on a base when a node's values, at `positions` (None: all), are
    those on a source; and where it is undefined [batch]."""
    program, table = evaluator.program, Vocabulary(subject.codec.vocab, evaluator.program.vocab).table
    base, source = (table[x].numpy() for x in ids)
    given = evaluator.run(source, (node,))
    undefined, values = given.undefined.copy(), given.values[node]
    if positions is not None:
        own = evaluator.run(base, (node,))
        exchanged = np.isin(np.arange(base.shape[1]), positions)
        if not exchanged.all():
            undefined |= own.undefined
        values = np.where(exchanged, values, own.values[node])
    trace = evaluator.run(base, (program.output,), {node: values})
    outputs = torch.from_numpy(np.array(trace.values[program.output], dtype=np.int64))
    if subject.model.config.readout != "each":
        outputs = outputs[:, -1:]
    index = Vocabulary(program.value_node(program.output).values, subject.codec.outputs).table[outputs]
    wanted = torch.arange(len(subject.codec.outputs)) == index.unsqueeze(-1)
    return wanted, torch.from_numpy(undefined | trace.undefined)


def wanted_texts(subject: Subject, wanted: Tensor) -> tuple[str, ...]:
    """The wanted outputs [pos, output] in words."""
    outputs = subject.codec.outputs
    return tuple(show_value(outputs[int(row.int().argmax())]) if row.any() else "no output" for row in wanted)


def writes(role: HeadRole | NeuronRole) -> bool:
    """Whether a component writes its node's value, rather than clearing it."""
    encoding: Encoding = role.encoding
    sign = 1
    while isinstance(encoding, Scaled):
        sign *= encoding.by
        encoding = encoding.of
    return sign > 0


def run_replaced(
    subject: Subject, tokens: Tensor, sites: tuple[str, ...], replace: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Tensor]:
    """A float32 run in which `replace[site]` maps what a site computes to what later operations read."""
    run = Run(tokens, subject.model.parameter, getattr(subject.model, "constants", {}))
    with torch.no_grad():
        for operation in needed(subject.model.program, sites):
            value = RULES[type(operation)](operation, run)
            move = replace.get(operation.output)
            run.values[operation.output] = value if move is None else move(value)
    return {site: run.values[site] for site in sites}


def _replacing(source: Tensor, places: list[int], axis: int) -> Callable[[Tensor], Tensor]:
    index = torch.tensor(places)
    return lambda x: x.index_copy(axis, index, source.index_select(axis, index))


def _replacing_ball(source: Ball, places: list[int], axis: int) -> Callable[[Ball], Ball]:
    mid, rad = _replacing(source.mid, places, axis), _replacing(source.rad, places, axis)
    return lambda x: Ball(mid(x.mid), rad(x.rad))
