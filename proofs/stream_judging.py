"""What bodies about the residual stream, nodes and edges say on witnesses (section 5 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .balls import Ball, point
from .circuit import outside
from .core import Bits
from .exact import grow
from .network import Edits, Port
from .reading import Decided, beyond, possible, same
from .stream_bodies import Agree, Effect, Monotone, Robust, Subspace, Writes

if TYPE_CHECKING:
    from .judging import Chunk

Found = tuple[Decided, Bits | None]


def _robust(chunk: Chunk, part: Robust, number: int) -> Found:
    """The run with a ball of that radius added decides for what the run without decides for."""
    edits = Edits(stream={part.stream: lambda x: Ball(x.mid, grow(x.rad + part.radius))})
    holds, fails = same(chunk.reading, chunk.run(edits))
    return (holds, np.zeros_like(fails)), None


def _monotone(chunk: Chunk, part: Monotone, number: int) -> Found:
    """For each position in turn, where its token has a next one up, what may be decoded then and now is compared."""
    bos = int(chunk.theorem.codec.bos)
    tokens = chunk.tokens(chunk.words[0])
    least, most = _ranks(chunk.reading, part)
    holds, fails = np.asarray(chunk.reading.any(axis=-1)), np.zeros(least.shape, dtype=np.bool_)
    for place in range(bos, tokens.shape[1]):
        rows = np.flatnonzero(part.following[tokens[:, place]] >= 0)
        if not len(rows):
            continue
        raised = tokens[rows]
        raised[:, place] = part.following[raised[:, place]]
        low, high = _ranks(possible(chunk.theorem.codec, chunk.read(chunk.network.logits(raised))), part)
        holds[rows] &= (most[rows] <= low) & (low <= high)
        fails[rows] |= (least[rows] > high) & (low <= high)
    return (holds, fails), None


def _ranks(reading: Bits, part: Monotone) -> tuple[Any, Any]:
    """The least and the greatest rank [batch, pos] of the outputs that may be decoded."""
    least = np.where(reading, part.rank, len(part.rank)).min(axis=-1)
    return least, np.where(reading, part.rank, -1).max(axis=-1)


def _subspace(chunk: Chunk, part: Subspace, number: int) -> Found:
    """Patched in the subspace, the model decodes as unpatched on x, or as patched in all of the stream."""
    given = chunk.runs[1][1]["stream", str(part.stream)]
    where = np.ones(given.mid.shape[1], dtype=np.bool_)
    if part.positions is not None:
        where = np.isin(np.arange(len(where)) - int(chunk.theorem.codec.bos), part.positions)

    def patched(x: Ball) -> Ball:
        kept, taken = (given, x) if part.complement else (x, given)
        moved = (taken + _negative(kept)) @ point(part.directions.T) @ point(part.directions)
        return _chosen(where, kept + moved, x)

    after = chunk.run(Edits(stream={part.stream: patched}))
    if not part.whole:
        return same(chunk.reading, after), None
    whole = chunk.run(Edits(stream={part.stream: lambda x: _chosen(where, given, x)}))
    return same(whole, after), None


def _chosen(where: Bits, inside: Ball, outside: Ball) -> Ball:
    """[batch, pos, d]: the one at these positions, the other elsewhere."""
    mask = where[:, None]
    return Ball(np.where(mask, inside.mid, outside.mid), np.where(mask, inside.rad, outside.rad))


def _negative(x: Ball) -> Ball:
    return Ball(-x.mid, x.rad)


def _writes(chunk: Chunk, part: Writes, number: int) -> Found:
    """The sizes along all directions are provably at most the bound; or one is provably above."""
    along = chunk.runs[0][1]["written", part.node] @ point(part.directions.T)
    low, high = along.low(), along.high()
    holds = (high < beyond(part.at_most, -1)) & (low > beyond(-part.at_most, 1))
    fails = (low > beyond(part.at_most, 1)) | (high < beyond(-part.at_most, -1))
    return (np.asarray(holds.all(axis=-1)), np.asarray(fails.any(axis=-1))), None


def _effect(chunk: Chunk, part: Effect, number: int) -> Found:
    """The difference of the two runs, along the direction, at the last read-out."""
    edge = part.edge
    given = chunk.runs[1][1]["written", edge.source]
    edited = chunk.network.logits(
        chunk.tokens(chunk.words[0]), Edits(read={(edge.target, edge.port): {edge.source: given}})
    )
    lost = (chunk.runs[0][0][:, -1:] + _negative(edited[:, -1:])) @ point(part.direction[:, None])
    low, high = lost.low()[..., 0], lost.high()[..., 0]
    least, most = part.score - part.within, part.score + part.within
    holds = (low > beyond(least, 1)) & (high < beyond(most, -1))
    fails = (high < beyond(least, -1)) | (low > beyond(most, 1))
    return (np.asarray(holds), np.asarray(fails)), None


def _agree(chunk: Chunk, part: Agree, number: int) -> Found:
    """The two runs, each with the contributions of all edges outside its circuit replaced, decode alike."""
    config = chunk.theorem.model.config
    zero = point(np.zeros((1, 1, config.d_model)))
    given = (
        {node: ball for (kind, node), ball in chunk.runs[1][1].items() if kind == "written"} if part.resample else {}
    )
    readings = []
    for circuit in part.circuits:
        read: dict[Port, dict[str, Ball]] = {}
        for edge in outside(circuit, config):
            read.setdefault((edge.target, edge.port), {})[edge.source] = given[edge.source] if part.resample else zero
        readings.append(chunk.run(Edits(read=read)))
    return same(*readings), None


RULES: dict[type[Any], Callable[[Any, Any, int], Found]] = {
    Robust: _robust,
    Monotone: _monotone,
    Subspace: _subspace,
    Writes: _writes,
    Effect: _effect,
    Agree: _agree,
}
