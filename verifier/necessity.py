"""Whether a circuit needs an edge: an input on which it decides as the model does, and without the edge does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.circuits import Edge
from ..models.errors import InputError
from ..models.token_language import Language
from ..models.values import Value
from .bodies import STATUS, Ids, _texts
from .circuit_bodies import FaithfulBody
from .claims import Claim
from .portfolio import prove
from .reading import FALSE, TRUE, UNDECIDED, Subject
from .verdicts import Refuted, Unknown, Verdict
from .witness import Arithmetic, Outcome, Witness


@dataclass(frozen=True, eq=False)
class NotNeededBody:
    """Where the circuit decodes as the model does, it still does with one edge less: false where the edge is needed.

    Only refuted (by a witness); that a circuit never needs an edge is proved of `less`, where it is faithful.
    """

    whole: FaithfulBody
    less: FaithfulBody
    edge: str
    kind: str = "not_needed"

    @property
    def subject(self) -> Subject:
        return self.whole.subject

    @property
    def ablation(self) -> str:
        return self.whole.ablation

    @property
    def arity(self) -> int:
        return self.whole.arity

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        whole, less = self.whole.judge(ids, semantics), self.less.judge(ids, semantics)
        fine = (whole == FALSE) | (less == TRUE)
        needed = (whole == TRUE) & (less == FALSE)
        return torch.where(needed, FALSE, torch.where(fine, TRUE, UNDECIDED)).to(torch.int8)

    def score(self, ids: Ids) -> Tensor:
        """How far from needed: the worse of how wrong the circuit is, and how right it is without the edge."""
        return torch.maximum(self.less.score(ids), -self.whole.score(ids))

    def outcome(self, ids: Ids) -> Outcome:
        model = _texts(self.subject, self.subject.reading(ids[0], "float32")[0])
        less = _texts(self.subject, self.less.alone.reading(ids, "float32")[0])
        status = STATUS[int(self.judge(ids, "float32")[0])]
        return Outcome(status, model, less, "expected: the model and the circuit; got: the circuit without the edge")

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.whole.readable()

    def with_subject(self, subject: Subject) -> NotNeededBody:
        return replace(self, whole=self.whole.with_subject(subject), less=self.less.with_subject(subject))

    def describe(self) -> str:
        return f"where the circuit alone decodes as the model does, it does without {self.edge} as well"

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "circuit": self.whole.to_json(), "edge": self.edge}


def edge_needed(
    claim: Claim,
    edge: str | Edge,
    domain: Language,
    *,
    seconds: float = 5.0,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Whether the circuit of a `Faithful` claim needs one of its edges, on some input of the domain.

    `Refuted`: it does; the witness is an input on which circuit and model decode alike, and the circuit without the
    edge does not (over the reals, shrunk). `Proved`: it does not: without the edge it is faithful too, with a
    certificate. `Unknown`: no such input was found, though without the edge it may be unfaithful, as the circuit itself
    may be. With ablation `mean` the vectors must have that of the edge's source. Raises `InputError`.
    """
    body = claim.body
    if not isinstance(body, FaithfulBody):
        raise InputError(f"edge_needed is about a claim Faithful(model, circuit), got {claim}")
    if body.circuit.granularity != "edge":
        raise InputError("single edges are cut from circuits of granularity 'edge'; this one is by nodes")
    alone = body.alone
    rest = body.circuit.without([edge])
    less = FaithfulBody.of(body.subject, rest, alone.ablation, alone.reference, alone.means, body.through)
    needed = Claim("forall", NotNeededBody(body, less, str(edge)))
    found = prove(needed, domain, seconds=seconds / 2, engines="refute", progress=progress)
    if isinstance(found, Refuted):
        return found
    rest_found = prove(Claim("forall", less), domain, seconds=seconds / 2, progress=progress)
    if not isinstance(rest_found, Refuted):
        return rest_found
    setting = replace(rest_found.setting, claim=needed)
    if isinstance(rest_found.evidence, Witness) and needed.holds_really(rest_found.evidence) is False:
        return Refuted(rest_found.evidence, setting)
    why = "the circuit is not faithful without the edge, but no input was found on which it is with it and not without"
    return Unknown(why, None, setting)
