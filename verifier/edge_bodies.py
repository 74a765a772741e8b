"""Bodies about single nodes and edges: what is written, and effects of resampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..models.circuits import parse_edge
from ..models.edits import Ablate, Resample, edit, written_at
from ..models.program import LOGITS
from .alone import Enclosed
from .balls import Ball, Unsupported, add, enclose, exact, matmul, multiply, negate
from .bodies import STATUS, Ids
from .mechanism_bodies import run_replaced
from .reading import Subject, Vocabulary, judge
from .stream_bodies import About, matrix_to_json
from .theorems import number_to_json
from .witness import Arithmetic, Outcome, show_value


@dataclass(frozen=True, eq=False)
class WritesBody(About):
    """What a node writes measures at most `at_most` along each of `directions` [k, d_model], at every position."""

    subject: Subject
    node: str
    directions: Tensor
    at_most: Fraction
    kind: str = "writes"
    arity: int = 1

    def _bounds(self, ids: Tensor, semantics: Arithmetic) -> tuple[Tensor, Tensor]:
        """Float64 bounds [batch, pos, direction] of the absolute values."""
        site, head = written_at(self.node, self.subject.model.config)
        tokens = self.subject.codec.with_bos(ids)
        if semantics == "float32":
            value = run_replaced(self.subject, tokens, (site,), {})[site]
            value = value if head is None else value[:, :, head]
            size = (value.to(torch.float64) @ self.directions.to(torch.float64).T).abs()
            return size, size
        ball = enclose(self.subject.model, tokens, (site,))[site]
        ball = ball if head is None else ball.map(lambda t: t[:, :, head])
        along = matmul(ball, exact(self.directions.T))
        low, high = along.low(), along.high()
        return torch.maximum(torch.maximum(low, -high), torch.zeros(())), torch.maximum(high, -low)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for what a node writes")
        least, most = self._bounds(ids[0], semantics)
        limit = float(self.at_most)
        return judge((most <= limit).flatten(1), (least > limit).flatten(1))

    def score(self, ids: Ids) -> Tensor:
        return float(self.at_most) - self._bounds(ids[0], "float32")[1].flatten(1).amax(-1)

    def outcome(self, ids: Ids) -> Outcome:
        size = float(self._bounds(ids[0], "float32")[1].max())
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, note=f"{self.node} writes {size:.9g} along a direction, at most {float(self.at_most):g}")

    def with_subject(self, subject: Subject) -> WritesBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        count = len(self.directions)
        return f"what {self.node} writes measures at most {float(self.at_most):g} along each of {count} directions"

    def to_json(self) -> dict[str, object]:
        least = number_to_json(self.at_most)
        return {"kind": self.kind, "node": self.node, "directions": matrix_to_json(self.directions), "at_most": least}


@dataclass(frozen=True, eq=False)
class EffectBody(About):
    """What `direction` . logits, at the last read-out, loses when `edge` carries what its source writes on a second
    input is within `within` of `score`."""

    subject: Subject
    edge: str
    direction: Tensor
    score_: Fraction
    within: Fraction
    kind: str = "effect"
    arity: int = 2

    def _bounds(self, ids: Ids, semantics: Arithmetic) -> tuple[Tensor, Tensor]:
        """Float64 bounds [batch] of the effect."""
        codec, model = self.subject.codec, self.subject.model
        edited = edit(model, Ablate(self.edge, Resample(codec.with_bos(ids[1]))))
        if semantics == "float32":
            with torch.no_grad():
                after = self.subject._positions(edited(codec.with_bos(ids[0])))
            lost = (self.subject.logits(ids[0]) - after)[:, -1].to(torch.float64) @ self.direction.to(torch.float64)
            return lost, lost
        site, head = written_at(parse_edge(self.edge).src, model.config)
        given = enclose(model, codec.with_bos(ids[1]), (site,))[site]
        given = given if head is None else given.map(lambda t: t[:, :, head])
        (name,) = edited.constants
        ball = enclose(Enclosed(edited, {name: given}), codec.with_bos(ids[0]))[LOGITS].map(self.subject._positions)
        plain = enclose(model, codec.with_bos(ids[0]))[LOGITS].map(self.subject._positions)
        lost_ball = matmul(add(plain, negate(ball)), exact(self.direction[:, None]))
        return lost_ball.low()[:, -1, 0], lost_ball.high()[:, -1, 0]

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for edited models")
        low, high = self._bounds(ids, semantics)
        least, most = self.score_ - self.within, self.score_ + self.within
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise Unsupported("float64 bounds overflow at the logits: the weights are too large")
        bounds = [(Fraction(a), Fraction(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        inside = torch.tensor([a >= least and b <= most for a, b in bounds])
        outside = torch.tensor([b < least or a > most for a, b in bounds])
        return judge(inside[:, None], outside[:, None])

    def score(self, ids: Ids) -> Tensor:
        return float(self.within) - (self._bounds(ids, "float32")[0] - float(self.score_)).abs()

    def outcome(self, ids: Ids) -> Outcome:
        effect = float(self._bounds(ids, "float32")[0][0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        claimed = f"{float(self.score_):g} +- {float(self.within):g} claimed"
        return Outcome(status, note=f"the effect of {self.edge} is {effect:.9g}, {claimed}")

    def with_subject(self, subject: Subject) -> EffectBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return (
            f"resampling {self.edge} lowers the claimed direction of the logits by {float(self.score_):g}, "
            f"to within {float(self.within):g}"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "edge": self.edge,
            "direction": [number_to_json(x) for x in self.direction.tolist()],
            "score": number_to_json(self.score_),
            "within": number_to_json(self.within),
        }


@dataclass(frozen=True, eq=False)
class HeadTableBody(About):
    """Of a head's full OV circuit (token to logit) or QK circuit (query token to key token), positions left out: in the
    row of each token of the input, the entry of the same value exceeds every other (`diagonal`), or every entry the one
    before it (`increasing`), by at least `at_least`."""

    subject: Subject
    layer: int
    head: int
    circuit: Literal["ov", "qk"]
    relation: Literal["diagonal", "increasing"]
    at_least: Fraction
    kind: str = "head_table"
    arity: int = 1

    def table(self) -> Ball:
        """[token, output or key token]."""
        model, name = self.subject.model, f"blocks.{self.layer}.attn."

        def weight(key: str) -> Ball:
            return exact(model.parameter(f"{name}{key}")[self.head].detach())

        tokens = exact(model.parameter("embed.W_E").detach()[: len(self.subject.codec.vocab)])
        if self.circuit == "ov":
            unembed = exact(model.parameter("unembed.W_U").detach())
            return matmul(matmul(matmul(tokens, weight("W_V")), weight("W_O")), unembed)
        keys = matmul(tokens, weight("W_K")).map(lambda t: t.T)
        scores = matmul(add(matmul(tokens, weight("W_Q")), weight("b_Q")), keys)
        scale = torch.tensor(model.config.scale(self.layer), dtype=torch.float64)
        rooted = isinstance(model.config.attention_scale, str)
        return multiply(scores, Ball(scale, scale * 2.0**-50) if rooted else exact(scale))

    def gaps(self) -> tuple[Tensor, Tensor]:
        """Bounds [token] of the least difference; minus infinity for a token that has no column of its own."""
        table, codec = self.table(), self.subject.codec
        if self.relation == "increasing":
            gap = add(table.map(lambda t: t[:, 1:]), negate(table.map(lambda t: t[:, :-1])))
            return gap.low().amin(-1), gap.high().amin(-1)
        columns = codec.outputs if self.circuit == "ov" else codec.vocab
        place = Vocabulary(codec.vocab, columns).table
        at = place.clamp(min=0)[:, None]
        gap = add(table.map(lambda t: t.gather(1, at).expand_as(t)), negate(table))
        own = torch.arange(len(columns)) == at
        low, high = (torch.where(own, torch.inf, bound).amin(-1) for bound in (gap.low(), gap.high()))
        return torch.where(place < 0, -torch.inf, low), torch.where(place < 0, -torch.inf, high)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for tables of heads")
        low, high = self.gaps()
        limit = float(self.at_least)
        return judge((low >= limit)[ids[0]], (high < limit)[ids[0]])

    def score(self, ids: Ids) -> Tensor:
        return self.gaps()[0][ids[0]].amin(-1) - float(self.at_least)

    def outcome(self, ids: Ids) -> Outcome:
        low, _ = self.gaps()
        worst = int(ids[0][0][int(low[ids[0][0]].argmin())])
        value = show_value(self.subject.codec.vocab[worst])
        note = (
            f"in the row of {value} the least difference is {float(low[worst]):.6g}; {float(self.at_least):g} claimed"
        )
        return Outcome(STATUS[int(self.judge(ids, "real")[0])], note=note)

    def with_subject(self, subject: Subject) -> HeadTableBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        rows = "token to logit" if self.circuit == "ov" else "query token to key token"
        says = "the same value's entry exceeds every other" if self.relation == "diagonal" else "entries increase"
        name = f"head L{self.layer}H{self.head}'s full {self.circuit.upper()} circuit ({rows})"
        return f"in {name}, {says} by at least {float(self.at_least):g}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "circuit": self.circuit,
            "head": [self.layer, self.head],
            "relation": self.relation,
            "at_least": number_to_json(self.at_least),
        }
