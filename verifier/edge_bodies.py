"""Bodies about single nodes and edges: what is written, and effects of resampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from ..models.circuits import parse_edge
from ..models.edits import Ablate, Resample, edit
from ..models.program import LOGITS, input_site
from .balls import Unsupported, add, enclose, exact, matmul, negate
from .bodies import STATUS, Ids
from .circuit_bodies import _Enclosed, _written
from .mechanism_bodies import run_replaced
from .reading import Subject, judge
from .stream_bodies import About, matrix_to_json
from .theorems import number_to_json
from .witness import Arithmetic, Outcome


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
        site, head = _written(self.node, input_site(self.subject.model.config))
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
        site, head = _written(parse_edge(self.edge).src, input_site(model.config))
        given = enclose(model, codec.with_bos(ids[1]), (site,))[site]
        given = given if head is None else given.map(lambda t: t[:, :, head])
        (name,) = edited.constants
        ball = enclose(_Enclosed(edited, {name: given}), codec.with_bos(ids[0]))[LOGITS].map(self.subject._positions)
        plain = enclose(model, codec.with_bos(ids[0]))[LOGITS].map(self.subject._positions)
        lost_ball = matmul(add(plain, negate(ball)), exact(self.direction[:, None]))
        return lost_ball.low()[:, -1, 0], lost_ball.high()[:, -1, 0]

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for edited models")
        low, high = self._bounds(ids, semantics)
        least, most = self.score_ - self.within, self.score_ + self.within
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
