"""Bodies about the residual stream and the tokens: robustness, monotonicity, subspaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..models.execution import RULES, Run
from ..models.program import LOGITS, input_site, needed
from ..models.values import Value, value_to_json
from .balls import Ball, Unsupported, add, enclose, exact, matmul, negate
from .bodies import STATUS, Ids, _texts
from .mechanism_bodies import run_replaced
from .reading import FALSE, Subject, decoded, distance, equal_readings, judge, possible
from .theorems import number_to_json
from .witness import Arithmetic, Outcome, show_value

STEPS = 4
"""Of the gradient attack on a claim of robustness."""

Move = Callable[[Tensor], Tensor]
MoveBall = Callable[[Ball], Ball]


def stream_site(subject: Subject, depth: int) -> str:
    """The site of the residual stream before layer `depth`, or, for the number of layers, before the read-out."""
    if depth == 0:
        return input_site(subject.model.config)
    layers = len(subject.model.config.layers)
    return f"blocks.{depth}.hook_resid_pre" if depth < layers else f"blocks.{depth - 1}.hook_resid_post"


class About:
    """What the bodies of this module share."""

    subject: Subject

    def readable(self) -> tuple[tuple[Value, ...], int]:
        return self.subject.codec.vocab, self.subject.longest

    def _run(self, ids: Tensor, moves: dict[str, Move]) -> Tensor:
        """Logits [batch, pos, out] of a float32 run in which what is computed at some sites is moved."""
        tokens = self.subject.codec.with_bos(ids)
        return self.subject._positions(run_replaced(self.subject, tokens, (LOGITS,), moves)[LOGITS])

    def _enclosed(self, ids: Tensor, moves: dict[str, MoveBall]) -> Ball:
        tokens = self.subject.codec.with_bos(ids)
        return enclose(self.subject.model, tokens, (LOGITS,), moves)[LOGITS].map(self.subject._positions)

    def _texts(self, reading: Tensor) -> tuple[str, ...]:
        return _texts(self.subject, reading[0])


@dataclass(frozen=True, eq=False)
class RobustBody(About):
    """Whatever is added to the stream at `depth`, up to `radius` in each coordinate at each position (BOS included),
    the model decodes as it does with nothing added.

    What the float32 run says comes from an attack along the gradient's signs, always the same: a search, not a proof.
    """

    subject: Subject
    depth: int
    radius: float
    kind: str = "robust"
    arity: int = 1

    @property
    def site(self) -> str:
        return stream_site(self.subject, self.depth)

    def attack(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What to add, float32 [batch, pos, d_model] within the radius; and the lead [batch] of the outputs that are
        decoded without it, which it lowers (negative: another output is decoded)."""
        allowed = decoded(self.subject.codec, self.subject.logits(ids))
        step = torch.tensor(self.radius, dtype=torch.float32)
        step = step if float(step) <= self.radius else torch.nextafter(step, torch.tensor(0.0))
        best = self._with(ids, torch.zeros(()), allowed)
        added = torch.zeros_like(best[1])
        slope = best[1]
        for _ in range(STEPS):
            proposed = -step * slope.sign()
            lead, slope = self._with(ids, proposed, allowed)
            better = lead < best[0]
            added = torch.where(better[:, None, None], proposed, added)
            best = (torch.minimum(lead, best[0]), slope)
        return added, best[0]

    def _with(self, ids: Tensor, added: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The lead [batch] of what is allowed, and its gradient by what is added."""
        model, tokens = self.subject.model, self.subject.codec.with_bos(ids)
        shape = (*tokens.shape, model.config.d_model)
        moved = added.expand(shape).clone().requires_grad_()
        run = Run(tokens, model.parameter)
        with torch.enable_grad():
            for operation in needed(model.program, (LOGITS,)):
                value = RULES[type(operation)](operation, run)
                run.values[operation.output] = value + moved if operation.output == self.site else value
            logits = self.subject._positions(run.values[LOGITS])
            lead = distance(self.subject.codec, logits, allowed).amin(-1)
            (slope,) = torch.autograd.grad(lead.sum(), moved)
        return lead.detach(), slope

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        if semantics == "precise":
            raise Unsupported("no high-precision rule for perturbed models")
        if semantics == "float32":
            failed = self.attack(ids[0])[1] < 0
            return judge(~failed[:, None], failed[:, None])
        before = self.subject.reading(ids[0], semantics)
        ball = self._enclosed(ids[0], {self.site: lambda x: Ball(x.mid, (x.rad + self.radius) * (1 + 2.0**-40))})
        found = equal_readings(before, possible(self.subject.codec, ball))
        found = torch.where(found == FALSE, 0, found).to(torch.int8)
        unsure = torch.nonzero(found != 1)[:, 0]
        if len(unsure):
            tokens = ids[0][unsure]
            added = exact(self.attack(tokens)[0])
            after = possible(self.subject.codec, self._enclosed(tokens, {self.site: lambda x: add(x, added)}))
            differs = equal_readings(before[unsure], after) == FALSE
            found[unsure[differs]] = FALSE
        return found

    def score(self, ids: Ids) -> Tensor:
        return self.attack(ids[0])[1]

    def outcome(self, ids: Ids) -> Outcome:
        added, lead = self.attack(ids[0])
        before = self.subject.reading(ids[0], "float32")
        after = decoded(self.subject.codec, self._run(ids[0], {self.site: lambda x: x + added}))
        status = STATUS[FALSE if float(lead[0]) < 0 else 1]
        note = f"expected: nothing added; got: the attack's signs times {self.radius:g} added at {self.site}"
        return Outcome(status, self._texts(before), self._texts(after), note)

    def with_subject(self, subject: Subject) -> RobustBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return f"the model decodes the same whatever is added to {self.site}, up to {self.radius:g} in each coordinate"

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "stream": self.depth, "radius": number_to_json(self.radius)}


@dataclass(frozen=True, eq=False)
class MonotoneBody(About):
    """With one token replaced by the next one of `tokens`, no decoded output stands before what it was in `outputs`.

    The changed input need not be in the domain.
    """

    subject: Subject
    tokens: tuple[Value, ...]
    outputs: tuple[Value, ...]
    kind: str = "monotone"
    arity: int = 1

    def _following(self) -> Tensor:
        codec = self.subject.codec
        table = torch.full((len(codec.vocab),), -1, dtype=torch.int64)
        for token, above in zip(self.tokens, self.tokens[1:], strict=False):
            table[codec.index[token]] = codec.index[above]
        return table

    def raised(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """All inputs with one token raised [row, pos], and the row of `ids` that each is made of."""
        after = self._following()[ids]
        rows, places = torch.nonzero(after >= 0, as_tuple=True)
        made = ids[rows].clone()
        made[torch.arange(len(rows)), places] = after[rows, places]
        return made, rows

    def _ranks(self, reading: Tensor) -> tuple[Tensor, Tensor]:
        """How high the lowest and the highest output of a reading [.., output] stand in `outputs`."""
        place = {output: height for height, output in enumerate(self.outputs)}
        rank = torch.tensor([place[output] for output in self.subject.codec.outputs])
        return torch.where(reading, rank, len(rank)).amin(-1), torch.where(reading, rank, -1).amax(-1)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        made, rows = self.raised(ids[0])
        if semantics == "precise" and len(made) > 1:
            raise Unsupported("monotonicity is not decided in high precision")
        before = self.subject.reading(ids[0], semantics)
        holds = torch.ones(len(ids[0]), dtype=torch.bool)
        fails = torch.zeros(len(ids[0]), dtype=torch.bool)
        if len(made):
            after = self.subject.reading(made, semantics)
            (least, most), (low, high) = self._ranks(before[rows]), self._ranks(after)
            holds[rows[~(most <= low).all(-1)]] = False
            fails[rows[(least > high).any(-1)]] = True
        return judge(holds[:, None], fails[:, None])

    def score(self, ids: Ids) -> Tensor:
        made, rows = self.raised(ids[0])
        found = torch.full((len(ids[0]),), torch.inf, dtype=torch.float64)
        if not len(made):
            return found
        least = self._ranks(self.subject.reading(ids[0], "float32"))[0][rows]
        place = {output: height for height, output in enumerate(self.outputs)}
        rank = torch.tensor([place[output] for output in self.subject.codec.outputs])
        allowed = rank >= least[..., None]
        lead = distance(self.subject.codec, self.subject.logits(made), allowed).amin(-1)
        return found.scatter_reduce(0, rows, lead, "amin")

    def outcome(self, ids: Ids) -> Outcome:
        status = STATUS[int(self.judge(ids, "float32")[0])]
        before = self.subject.reading(ids[0], "float32")
        made, _ = self.raised(ids[0])
        least = self._ranks(before)[0]
        for row in made:
            after = self.subject.reading(row[None], "float32")
            if bool((self._ranks(after)[1] < least).any()):
                shown = ", ".join(show_value(self.subject.codec.vocab[t]) for t in row.tolist())
                return Outcome(status, self._texts(before), self._texts(after), f"the raised input is [{shown}]")
        return Outcome(status)

    def with_subject(self, subject: Subject) -> MonotoneBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        return (
            f"raising one token (in the order {_ends(self.tokens)}) never lowers a decoded output "
            f"(in the order {_ends(self.outputs)})"
        )

    def to_json(self) -> dict[str, object]:
        tokens, outputs = ([value_to_json(x) for x in values] for values in (self.tokens, self.outputs))
        return {"kind": self.kind, "tokens": tokens, "outputs": outputs}


@dataclass(frozen=True, eq=False)
class SubspaceBody(About):
    """The part of the stream at `depth`, at `positions`, in the span of `directions`, is taken from a second input.

    `directions` [k, d_model], float32, stand for the map s -> s + (t - s) Q^T Q exactly; `complement`: I - Q^T Q.
    `carries` `all`: the model then decodes as with all of the stream at these positions taken from the source;
    `nothing`: as with nothing taken.
    """

    subject: Subject
    depth: int
    directions: Tensor
    complement: bool
    positions: tuple[int, ...] | None
    carries: Literal["all", "nothing"]
    kind: str = "subspace"
    arity: int = 2

    def _where(self, length: int) -> Tensor:
        """bool [pos, 1] with BOS."""
        bos = int(self.subject.codec.bos)
        where = torch.zeros(length + bos, dtype=torch.bool)
        places = range(-bos, length) if self.positions is None else self.positions
        where[[place + bos for place in places if place < length]] = True
        return where[:, None]

    def patched(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        """What the patched model may decode: bool [batch, pos, output]."""
        if semantics == "float32":
            return decoded(self.subject.codec, self.patched_logits(ids))
        if semantics == "precise":
            raise Unsupported("no high-precision rule for patched models")
        return possible(self.subject.codec, self._enclosed(ids[0], {self.site: self._ball_moves(ids)[0]}))

    def patched_logits(self, ids: Ids) -> Tensor:
        """[batch, pos, out] of the patched float32 run."""
        return self._run(ids[0], {self.site: self._moves(ids)[0]})

    def _compared(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        """What may be decoded with all of the stream patched, or with nothing."""
        if self.carries == "nothing":
            return self.subject.reading(ids[0], semantics)
        if semantics == "float32":
            return decoded(self.subject.codec, self._run(ids[0], {self.site: self._moves(ids)[1]}))
        return possible(self.subject.codec, self._enclosed(ids[0], {self.site: self._ball_moves(ids)[1]}))

    @property
    def site(self) -> str:
        return stream_site(self.subject, self.depth)

    def _moves(self, ids: Ids) -> tuple[Move, Move]:
        """What the stream becomes: patched in the subspace, and in whole."""
        where, q = self._where(ids[0].shape[1]), self.directions
        given = run_replaced(self.subject, self.subject.codec.with_bos(ids[1]), (self.site,), {})[self.site]

        def patched(x: Tensor) -> Tensor:
            kept, taken = (given, x) if self.complement else (x, given)
            return torch.where(where, kept + (taken - kept) @ q.T @ q, x)

        return patched, lambda x: torch.where(where, given, x)

    def _ball_moves(self, ids: Ids) -> tuple[MoveBall, MoveBall]:
        """The same, of enclosures."""
        where, q = self._where(ids[0].shape[1]), exact(self.directions)
        given = enclose(self.subject.model, self.subject.codec.with_bos(ids[1]), (self.site,))[self.site]

        def inside(a: Ball, x: Ball) -> Ball:
            return Ball(torch.where(where, a.mid, x.mid), torch.where(where, a.rad, x.rad))

        def patched(x: Ball) -> Ball:
            kept, taken = (given, x) if self.complement else (x, given)
            part = matmul(matmul(add(taken, negate(kept)), q.map(lambda t: t.T)), q)
            return inside(add(kept, part), x)

        return patched, lambda x: inside(given, x)

    def judge(self, ids: Ids, semantics: Arithmetic) -> Tensor:
        return equal_readings(self.patched(ids, semantics), self._compared(ids, semantics))

    def score(self, ids: Ids) -> Tensor:
        return distance(self.subject.codec, self.patched_logits(ids), self._compared(ids, "float32")).amin(-1)

    def outcome(self, ids: Ids) -> Outcome:
        patched, compared = self.patched(ids, "float32"), self._compared(ids, "float32")
        status = STATUS[int(equal_readings(patched, compared)[0])]
        against = "all of the stream patched" if self.carries == "all" else "nothing patched"
        return Outcome(status, self._texts(compared), self._texts(patched), f"expected: {against}; got: the subspace")

    def with_subject(self, subject: Subject) -> SubspaceBody:
        return replace(self, subject=subject)

    def describe(self) -> str:
        span = f"the span of {len(self.directions)} directions"
        part = f"the complement of {span}" if self.complement else span
        where = "all positions" if self.positions is None else f"positions {', '.join(map(str, self.positions))}"
        return f"{part} of {self.site} at {where} carries {self.carries}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "stream": self.depth,
            "directions": matrix_to_json(self.directions),
            "complement": self.complement,
            "positions": None if self.positions is None else list(self.positions),
            "carries": self.carries,
        }


def matrix_to_json(directions: Tensor) -> list[list[object]]:
    return [[number_to_json(x) for x in row] for row in directions.tolist()]


def _ends(values: tuple[Value, ...]) -> str:
    shown = [show_value(value) for value in values]
    return " < ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]])
