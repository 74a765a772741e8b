"""What the parts of a body say on witnesses: where each provably holds, and where it provably fails (section 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from .balls import Ball, Floats, divided, point, total
from .bodies import (
    Alone,
    Attends,
    Computes,
    Faithful,
    Interchange,
    Invariant,
    LabelMargin,
    Labels,
    LogitDifference,
    Margin,
    NeverOutputs,
    Part,
)
from .circuit import Circuit, outside
from .core import Bits, Ints, Program, trace
from .format import require
from .network import Edits, Network, Port, Site
from .precise import Precise
from .prefixes import logits_by_prefix
from .reading import Decided, apart, beyond, lead, margin, possible, same
from .stream_bodies import Agree, Effect, Represents, Subspace, Writes
from .stream_judging import RULES as STREAM_RULES
from .theorem import Theorem


@dataclass
class Judge:
    """A theorem's model and what its parts need of it on every input.

    `sites[i]`: what is kept of the run without edits on the i-th input. `means`: of a `mean` ablation, by part.
    """

    theorem: Theorem
    network: Network = field(init=False)
    precise: Precise = field(init=False)
    sites: tuple[frozenset[Site], frozenset[Site]] = field(init=False)
    means: dict[int, dict[str, Ball]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = Network(self.theorem.model)
        self.precise = Precise(self.theorem.model)
        parts = self.theorem.parts
        first = {("pattern", f"a{part.layer}.h{part.head}") for part in parts if isinstance(part, Attends)}
        first |= {("written", part.node) for part in parts if isinstance(part, Writes)}
        second = {site for part in parts for site in _taken(part, self.theorem)}
        self.sites = (frozenset(first), frozenset(second))

    def batch(self, n: int) -> int:
        """How many witnesses of n tokens to judge at once."""
        n += int(self.theorem.codec.bos)
        kept = sum(self.network.width(site, n) for sites in self.sites for site in sites)
        if self.network.config.causal:  # keys and values of all layers are remembered
            kept += sum(layer.n_heads * layer.d_head for layer in self.network.config.layers)
        sums = any(_alone(part) or isinstance(part, Effect | Agree) for part in self.theorem.parts)
        return self.network.batch(n, sums, kept)

    def mean(self, number: int) -> dict[str, Ball]:
        """What the sources of edges outside part `number`'s circuit write, on average over its reference inputs."""
        if number not in self.means:
            alone = _alone(self.theorem.parts[number])
            assert alone is not None and alone.reference is not None
            self.means[number] = _means(self, alone, alone.reference)
        return self.means[number]


class Chunk:
    """Witnesses of one length: `words`, for each input of a witness token indices of the domain [batch, n]."""

    def __init__(self, judge: Judge, words: tuple[Ints, ...]) -> None:
        self.judge, self.words = judge, words
        self.theorem, self.network = judge.theorem, judge.network

    @cached_property
    def runs(self) -> list[tuple[Ball, dict[Site, Ball]]]:
        """For each input: logits with BOS's position, and the sites kept, of the model without edits."""
        found = []
        for words, sites in zip(self.words, self.judge.sites, strict=False):
            distinct, place = (words, slice(None)) if len(self.words) == 1 else _distinct(words)
            kept: dict[Site, Ball] = dict.fromkeys(sites, point(0.0))
            if self.network.config.causal and not sites:
                logits = logits_by_prefix(self.network, self.tokens(distinct))
            else:
                logits = self.network.logits(self.tokens(distinct), Edits(), kept)
            found.append((logits[place], {site: ball[place] for site, ball in kept.items()}))
        return found

    def tokens(self, words: Ints) -> Ints:
        """The model's token ids, BOS first if there is one."""
        codec = self.theorem.codec
        ids = np.array([codec.token(item) for item in self.theorem.domain.vocab], dtype=np.int64)[words]
        return with_bos(ids, len(codec.vocab)) if codec.bos else ids

    def read(self, logits: Ball) -> Ball:
        """Without the position of BOS; of a model with one read-out, that alone."""
        return logits[:, 1:] if self.everywhere and self.theorem.codec.bos else logits

    @property
    def everywhere(self) -> bool:
        """Whether the model is read out at each position."""
        return self.theorem.model.config.readout == "each"

    @cached_property
    def reading(self) -> Bits:
        """What the model may decode to, [batch, pos, output]; some inputs that this leaves open, in high precision."""
        found = possible(self.theorem.codec, self.read(self.runs[0][0]))
        tokens, precise = self.tokens(self.words[0]), self.judge.precise
        for row in np.flatnonzero((found.sum(axis=-1) != 1).any(axis=-1))[: precise.left]:
            found[row] &= precise.possible(self.theorem.codec, tokens[row])
        return found

    def edited(self, edits: Edits) -> Ball:
        """What is read of the edited model's logits on the first input."""
        return self.read(self.network.logits(self.tokens(self.words[0]), edits))

    def run(self, edits: Edits) -> Bits:
        """What the edited model may decode to on the first input."""
        return possible(self.theorem.codec, self.edited(edits))

    def alone(self, circuit: Circuit, given: Mapping[str, Ball] | None) -> Ball:
        """As `edited`, with what is `given` by source in place of every edge outside the circuit; None: with zero."""
        zero = point(np.zeros((1, 1, self.theorem.model.config.d_model)))
        read: dict[Port, dict[str, Ball]] = {}
        for edge in outside(circuit, self.theorem.model.config):
            read.setdefault((edge.target, edge.port), {})[edge.source] = zero if given is None else given[edge.source]
        return self.edited(Edits(read=read))

    @property
    def written_on_second(self) -> dict[str, Ball]:
        """What is kept of what nodes write on the second input."""
        return {node: ball for (kind, node), ball in self.runs[1][1].items() if kind == "written"}

    def ids(self, program: Program, number: int) -> Ints:
        """An input as indices into a program's vocabulary."""
        position = {item: index for index, item in enumerate(program.vocab)}
        ids = np.array([position.get(item, -1) for item in self.theorem.domain.vocab], dtype=np.int64)
        found = ids[self.words[number]]
        require((found >= 0).all(), "a token of the domain is not in the program's vocab")
        return found

    def outputs(self, program: Program, values: Ints) -> Bits:
        """[batch, pos, output]: the codec's output that equals the program's value; none if it has none.

        With one read-out: of the last value.
        """
        outputs = {item: index for index, item in enumerate(self.theorem.codec.outputs)}
        names = program.nodes[program.output].values
        index = np.array([outputs.get(y, -1) for y in names], dtype=np.int64)[values]
        index = index if self.everywhere else index[:, -1:]
        return np.asarray(np.arange(len(outputs)) == index[..., None])


@dataclass(frozen=True)
class Judgement:
    """Where a part provably holds and provably fails [batch, pos]; both are void where `undefined` [batch]."""

    holds: Bits
    fails: Bits
    undefined: Bits

    @property
    def true(self) -> Bits:
        return np.asarray(self.holds.all(axis=1) & ~self.undefined)

    @property
    def false(self) -> Bits:
        return np.asarray(self.fails.any(axis=1) & ~self.undefined)


def judge_part(chunk: Chunk, number: int) -> Judgement:
    part = chunk.theorem.parts[number]
    with np.errstate(all="ignore"):
        (holds, fails), undefined = RULES[type(part)](chunk, part, number)
    if undefined is None:
        undefined = np.zeros(len(holds), dtype=np.bool_)
    return Judgement(holds, fails, undefined)


Found = tuple[Decided, Bits | None]


def _computes(chunk: Chunk, part: Computes, number: int) -> Found:
    """The decoded output is the program's, at every position (with one read-out: its last value)."""
    found = trace(part.program, chunk.ids(part.program, 0), part.program.output)
    wanted = chunk.outputs(part.program, found.values[part.program.output])
    return same(chunk.reading, wanted), found.undefined


def _never_outputs(chunk: Chunk, part: NeverOutputs, number: int) -> Found:
    """No position decodes to one of the outputs."""
    banned = np.array([y in set(part.outputs) for y in chunk.theorem.codec.outputs])
    return (~(chunk.reading & banned).any(axis=-1), ~(chunk.reading & ~banned).any(axis=-1)), None


def _margin(chunk: Chunk, part: Margin, number: int) -> Found:
    """The decoded logit exceeds every other by so much."""
    return margin(chunk.read(chunk.runs[0][0]), part.at_least), None


def _logit_difference(chunk: Chunk, part: LogitDifference, number: int) -> Found:
    """One logit exceeds another by so much; some inputs that balls leave open, in high precision."""
    holds, fails = apart(chunk.read(chunk.runs[0][0]), part.above, part.below, part.at_least)
    codec, precise = chunk.theorem.codec, chunk.judge.precise
    tokens = chunk.tokens(chunk.words[0])
    for row in np.flatnonzero((~holds & ~fails).any(axis=-1))[: precise.left]:
        may = precise.apart(codec, tokens[row], part.above, part.below, part.at_least)
        holds[row], fails[row] = holds[row] | ~may[:, 1], fails[row] | ~may[:, 0]
    return (holds, fails), None


def _invariant(chunk: Chunk, part: Invariant, number: int) -> Found:
    """The run on the changed input decodes to what the run on the input does, outputs moved; elsewhere is not compared.

    A column is added for "no output of the codec", which the second run never decodes to.
    """
    bos = int(chunk.theorem.codec.bos)
    tokens = chunk.tokens(chunk.words[0])
    changed = part.tokens[tokens[:, bos:]]
    n = changed.shape[1]
    changed[:, [place for place in part.irrelevant if place < n]] = 0
    tokens = np.concatenate([tokens[:, :bos], changed], axis=1)
    after = possible(chunk.theorem.codec, chunk.read(chunk.network.logits(tokens)))
    count = len(part.moved)
    move = np.arange(count + 1) == np.where(part.moved < 0, count, part.moved)[:, None]
    before = (chunk.reading[..., None] & move).any(axis=-2)
    holds, fails = same(before, np.concatenate([after, np.zeros((*after.shape[:2], 1), dtype=np.bool_)], axis=-1))
    compared = ~np.isin(np.arange(n), part.irrelevant) if chunk.everywhere else np.ones(1, dtype=np.bool_)
    return (holds | ~compared, fails & compared), None


def _attends(chunk: Chunk, part: Attends, number: int) -> Found:
    """At every query position: T is the visible selected keys, or BOS if there are none (without BOS: it fails).

    Each key of T has a weight within `tolerance` of 1 / |T|; all others together have at most `tolerance`.
    """
    found = trace(part.program, chunk.ids(part.program, 0), part.selector)
    target = found.selected[part.selector]
    if chunk.theorem.model.config.causal:
        target = np.tril(target)
    pattern = chunk.runs[0][1]["pattern", f"a{part.layer}.h{part.head}"]
    if chunk.theorem.codec.bos:
        target = np.concatenate([~target.any(axis=-1, keepdims=True), target], axis=-1)
        pattern = pattern[:, 1:]
    size = target.sum(axis=-1)
    low, high = np.maximum(pattern.low(), 0), pattern.high()
    holds, fails = _uniform(low, high, target, size, part)
    rest_low, rest_high = np.where(target, 0, low).sum(axis=-1), np.where(target, 0, high).sum(axis=-1)
    slack = (low.shape[-1] + 2) * 2.0**-52
    holds &= rest_high * (1 + slack) + 2.0**-1000 < beyond(part.tolerance, -1)
    fails |= rest_low * (1 - slack) - 2.0**-1000 > beyond(part.tolerance, 1)
    return (holds & (size > 0), fails | (size == 0)), found.undefined


def _uniform(low: Floats, high: Floats, target: Bits, size: Ints, part: Attends) -> Decided:
    """Every weight of T lies in [1 / |T| - tolerance, 1 / |T| + tolerance]."""
    shares = [Fraction(1, m) for m in range(1, low.shape[-1] + 1)]
    least, most = [s - part.tolerance for s in shares], [s + part.tolerance for s in shares]
    at = np.maximum(size, 1)[..., None] - 1

    def bound(numbers: list[Fraction], direction: int) -> Floats:
        return np.asarray(np.array([beyond(x, direction) for x in numbers])[at])

    inside = (low > bound(least, 1)) & (high < bound(most, -1))
    outside_ = (low > bound(most, 1)) | (high < bound(least, -1))
    return np.asarray((inside | ~target).all(axis=-1)), np.asarray((outside_ & target).any(axis=-1))


def _faithful(chunk: Chunk, part: Faithful, number: int) -> Found:
    """The circuit alone decodes as the model does."""
    return same(chunk.reading, possible(chunk.theorem.codec, _logits_alone(chunk, part.alone, number))), None


def _logits_alone(chunk: Chunk, alone: Alone, number: int) -> Ball:
    """With the contribution of every edge outside the circuit replaced."""
    require(alone.ablation != "any", "ablation any is for rule no_flow")
    given: dict[str, Ball] = {}
    if alone.ablation == "resample":
        given = chunk.written_on_second
    elif alone.means is not None:
        given = {node: point(vector.astype(np.float64)[None, None]) for node, vector in alone.means.items()}
    elif alone.ablation == "mean":
        given = chunk.judge.mean(number)
    return chunk.alone(alone.circuit, None if alone.ablation == "zero" else given)


def _means(judge: Judge, alone: Alone, reference: Ints) -> dict[str, Ball]:
    """The mean over all reference inputs and all their positions, BOS's included, of what each source writes."""
    codec = judge.theorem.codec
    tokens = with_bos(reference, len(codec.vocab)) if codec.bos else reference
    sites = [("written", node) for node in _sources(alone, judge.theorem)]
    n = tokens.shape[1]
    step = judge.network.batch(n, kept=len(sites) * judge.theorem.model.config.d_model)
    sums: dict[Site, Ball] = {}
    for first in range(0, len(tokens), step):
        kept: dict[Site, Ball] = dict.fromkeys(sites, point(0.0))
        judge.network.logits(tokens[first : first + step], Edits(), kept)
        for site in sites:
            ball = total(kept[site])
            sums[site] = sums[site] + ball if site in sums else ball
    return {node: divided(sums[kind, node], tokens.size) for kind, node in sites}


def _interchange(chunk: Chunk, part: Interchange, number: int) -> Found:
    """With heads and neurons taken from the second input, the model decodes to what the program gives on the first
    when the values of `node` are those on the second; undefined where either run of the program is."""
    given = trace(part.program, chunk.ids(part.program, 1), part.node)
    changed = {part.node: given.values[part.node]}
    found = trace(part.program, chunk.ids(part.program, 0), part.program.output, changed)
    wanted = chunk.outputs(part.program, found.values[part.program.output])
    kept = chunk.runs[1][1]
    heads = [f"a{layer}.h{head}" for layer, head in part.heads]
    which: dict[str, Bits] = {}
    for layer, first, end in part.neurons:
        node = f"m{layer}"
        which.setdefault(node, np.zeros(chunk.network.width(("active", node), 0), dtype=np.bool_))[first:end] = True
    active = {node: (mask, kept["active", node]) for node, mask in which.items()}
    edits = Edits(mixed={node: kept["mixed", node] for node in heads}, active=active)
    return same(chunk.run(edits), wanted), given.undefined | found.undefined


def _labels(chunk: Chunk, part: Labels, number: int) -> Found:
    """The one decoded output is the label; without a label it is not."""
    reading = chunk.reading
    if part.alone is not None:
        reading = possible(chunk.theorem.codec, _logits_alone(chunk, part.alone, number))
    return same(reading, _label(chunk, part)[:, None]), None


def _label_margin(chunk: Chunk, part: LabelMargin, number: int) -> Found:
    """The label's logit exceeds every other by so much; without a label it does not."""
    logits = chunk.read(chunk.runs[0][0]) if part.alone is None else _logits_alone(chunk, part.alone, number)
    return lead(logits, _label(chunk, part)[:, None], part.at_least), None


def _label(chunk: Chunk, part: Labels | LabelMargin) -> Bits:
    """[batch, output]: which output is the label, if any, that the machine gives the input."""
    bos = int(chunk.theorem.codec.bos)
    columns = [*chunk.tokens(chunk.words[0])[:, bos:].T]
    state = np.zeros(len(chunk.words[0]), dtype=np.int64)
    for column in [columns[-1], *columns[:-1]] if part.last_first else columns:
        state = part.delta[state, column]
    return np.asarray(np.arange(len(chunk.theorem.codec.outputs)) == part.labels[state][:, None])


def _taken(part: Part, theorem: Theorem) -> list[Site]:
    """What a part takes from the run on the second input."""
    if isinstance(part, Interchange):
        heads = [("mixed", f"a{layer}.h{head}") for layer, head in part.heads]
        return [*heads, *(("active", f"m{layer}") for layer, _, _ in part.neurons)]
    alone = _alone(part)
    if alone is not None and alone.ablation == "resample":
        return [("written", node) for node in _sources(alone, theorem)]
    if isinstance(part, (Subspace, Represents)):
        patch = part.patch if isinstance(part, Represents) else part
        return [("stream", str(patch.stream))]
    if isinstance(part, Agree) and part.resample:
        lacking = {edge.source for circuit in part.circuits for edge in outside(circuit, theorem.model.config)}
        return [("written", node) for node in sorted(lacking)]
    if isinstance(part, Effect):
        return [("written", part.edge.source)]
    return []


def _alone(part: Part) -> Alone | None:
    """The circuit that is run alone, if a part is about one."""
    return part.alone if isinstance(part, Faithful | Labels | LabelMargin) else None


def _sources(alone: Alone, theorem: Theorem) -> list[str]:
    """The sources of the edges outside the circuit."""
    return sorted({edge.source for edge in outside(alone.circuit, theorem.model.config)})


def _distinct(words: Ints) -> tuple[Ints, Ints]:
    """The different rows, and where each row is among them."""
    rows, place = np.unique(words, axis=0, return_inverse=True)
    return rows, place.reshape(-1)


def with_bos(ids: Ints, bos: int) -> Ints:
    return np.concatenate([np.full((len(ids), 1), bos, dtype=np.int64), ids], axis=1)


RULES: dict[type[Part], Callable[[Chunk, Any, int], Found]] = {
    Computes: _computes,
    NeverOutputs: _never_outputs,
    Margin: _margin,
    LogitDifference: _logit_difference,
    Invariant: _invariant,
    Attends: _attends,
    Faithful: _faithful,
    Interchange: _interchange,
    Labels: _labels,
    LabelMargin: _label_margin,
    **STREAM_RULES,
}
