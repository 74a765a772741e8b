"""What bodies about the residual stream, nodes and edges say on witnesses (section 5 of the specification)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .balls import Ball, point, times
from .core import Bits, trace
from .exact import grow
from .network import Edits
from .reading import Decided, beyond, possible, same
from .stream_bodies import Agree, Effect, HeadTable, Monotone, Represents, Robust, Subspace, Writes

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


def _patch(chunk: Chunk, part: Subspace) -> tuple[Bits, Ball, Callable[[Ball], Ball]]:
    """The positions [pos], the stream on y, and what the stream on x becomes."""
    given = chunk.runs[1][1]["stream", str(part.stream)]
    where = np.ones(given.mid.shape[1], dtype=np.bool_)
    if part.positions is not None:
        where = np.isin(np.arange(len(where)) - int(chunk.theorem.codec.bos), part.positions)

    def patched(x: Ball) -> Ball:
        kept, taken = (given, x) if part.complement else (x, given)
        moved = (taken + _negative(kept)) @ point(part.directions.T) @ point(part.directions)
        return _chosen(where, kept + moved, x)

    return where, given, patched


def _represents(chunk: Chunk, part: Represents, number: int) -> Found:
    """The patched run against the program with the node's values at these positions taken from y."""
    program, node = part.program, part.node
    where, _, patched = _patch(chunk, part.patch)
    source = trace(program, chunk.ids(program, 1), node)
    own = trace(program, chunk.ids(program, 0), node)
    mask = where[int(chunk.theorem.codec.bos) :]
    undefined = source.undefined | (own.undefined if not mask.all() else np.zeros_like(own.undefined))
    mixed = np.where(mask, source.values[node], own.values[node])
    found = trace(program, chunk.ids(program, 0), program.output, {node: mixed})
    wanted = chunk.outputs(program, found.values[program.output])
    after = chunk.run(Edits(stream={part.patch.stream: patched}))
    return same(after, wanted), undefined | found.undefined


def _subspace(chunk: Chunk, part: Subspace, number: int) -> Found:
    """Patched in the subspace, the model decodes as unpatched on x, or as patched in all of the stream."""
    where, given, patched = _patch(chunk, part)
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
    given = chunk.written_on_second if part.resample else None
    readings = [possible(chunk.theorem.codec, chunk.alone(circuit, given)) for circuit in part.circuits]
    return same(*readings), None


def _head_table(chunk: Chunk, part: HeadTable, number: int) -> Found:
    """Of every token of the input, the differences in its row are provably large enough, or one provably is not."""
    network, codec = chunk.network, chunk.theorem.codec
    name = f"blocks.{part.layer}.attn."
    tokens = point(network.weights["embed.W_E"][: len(codec.vocab)])

    def through(x: Ball, letter: str) -> Ball:
        return x @ point(network.weights[f"{name}W_{letter}"][part.head])

    if part.ov:
        table = through(through(tokens, "V"), "O") @ point(network.weights["unembed.W_U"])
    else:
        queries = through(tokens, "Q") + point(network.weights[f"{name}b_Q"][part.head])
        table = times(queries @ through(tokens, "K").swapped(), network._scale(part.layer))
    if part.diagonal:
        column = np.maximum(part.same, 0)[:, None]
        own = Ball(np.take_along_axis(table.mid, column, 1), np.take_along_axis(table.rad, column, 1))
        gap = own.spread(table.mid.shape) + _negative(table)
        compared = np.arange(table.mid.shape[1]) != column
        known = part.same >= 0
    else:
        gap = table[:, 1:] + _negative(table[:, :-1])
        compared, known = np.ones(gap.mid.shape, dtype=np.bool_), np.ones(len(part.same), dtype=np.bool_)
    enough = ((gap.low() > beyond(part.at_least, 1)) | ~compared).all(axis=1) & known
    short = ((gap.high() < beyond(part.at_least, -1)) & compared).any(axis=1) | ~known
    ids = chunk.tokens(chunk.words[0])[:, int(codec.bos) :]
    return (np.asarray(enough[ids]), np.asarray(short[ids])), None


RULES: dict[type[Any], Callable[[Any, Any, int], Found]] = {
    Robust: _robust,
    Monotone: _monotone,
    Subspace: _subspace,
    Writes: _writes,
    Effect: _effect,
    Agree: _agree,
    HeadTable: _head_table,
    Represents: _represents,
}
