"""Engine `low_rank`: a compact proof for a one-layer model read at the last position, cheaper than running every input.

What the neurons read is nearly linear in few coordinates of an input, and what they write nearly spans few directions:
so an input costs d_mlp times two small ranks, in place of d_mlp times d_model and d_vocab_out; and inputs with nearly
equal coordinates share their neurons (that of the first of them). What is left out is bounded by Cauchy-Schwarz. An
input is proved if its lead is greater than that. Method: Gross et al., Compact Proofs of Model Performance via
Mechanistic Interpretability, 2024, here with truncated singular value decompositions for the explanation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np

from ..models.languages import Language
from .claims import Claim
from .enumeration import MAX_INPUTS
from .first_layer import Floats, Integers
from .label_bodies import LabelMarginBody, LabelsBody, not_compared
from .low_rank_model import Folded, Operations, TokenTables, obstacle
from .low_rank_words import BATCH, Length, Matrices, Plan, Room, distances, float32
from .theorems import domain_to_json
from .verdicts import Certificate

SAMPLE = 128
JOINED = 0.1
"""An input joins an earlier one if that costs at most about this share of what most sampled inputs lead by."""
GIVEN_UP = 0.2
"""This share of a sampled input's lead may be lost to the coordinates that are left out: these cost no neurons."""
SPARE = 1.5
"""So much more than a sampled input loses it has to lead by: others may lead by less."""
TRIES = 6
HOPE = 0.5
"""Where less than this part of what is wanted is proved, higher ranks are not tried."""


@dataclass(frozen=True)
class Ranks:
    """How many coordinates of what the neurons read are kept, for how many of these the neurons are calculated (the
    others, which hardly vary, cost no neurons), and of what they write to the logits."""

    inner: int
    used: int
    outer: int

    def raised(self) -> Ranks:
        """Each a little higher."""
        return Ranks(self.inner * 9 // 8 + 1, self.used * 9 // 8 + 1, self.outer * 5 // 4 + 1)


@dataclass(frozen=True, eq=False)
class Factored:
    """What was found with factors of these ranks: the rule's proof, how many of all inputs it proves, and what finding
    it cost (see `Operations`), with every rank that was tried before."""

    ranks: Ranks
    proof: dict[str, object]
    proved: int
    total: int
    points: int
    operations: int


def prove_low_rank(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate for a claim that a share of the inputs (or all) get their label; or why there is none."""
    total = domain.size()
    enough = total if claim.quantifier == "forall" else -(-claim.share.numerator * total // claim.share.denominator)
    found, why = factorise(claim, domain, enough, deadline, progress)
    if found is None:
        return None, why
    if found.proved < enough:
        at = f"at {found.ranks}"
        return None, f"{found.proved / total:.6f} of the inputs are proved right, {at}"
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, found.proof), ""


def factorise(
    claim: Claim,
    domain: Language,
    enough: int,
    deadline: float = float("inf"),
    progress: Callable[[str], None] = lambda text: None,
    ranks: Ranks | None = None,
) -> tuple[Factored | None, str]:
    """Factors that prove `enough` inputs, of ranks as small as a sample allows (or of these); or why there are none.

    Ranks are raised a few times, until the deadline; the last try is returned even if it proves fewer.
    """
    body = claim.body
    if not isinstance(body, (LabelsBody, LabelMarginBody)) or body.alone is not None:
        return None, "low-rank factors are for labels and their margins, of models and not circuits"
    why = not_compared(body.subject) or obstacle(body.subject.model.config)
    if why is None and domain.size() > MAX_INPUTS:
        why = f"each of at most 2^20 inputs is looked at; there are {domain.size()}"
    if why is None and any(token not in body.subject.codec.index for token in domain.vocab):
        why = "the domain's vocabulary has tokens that the model does not know"
    if why:
        return None, why
    try:
        with np.errstate(all="ignore"):
            return _at_rising_ranks(_Search(body, domain), enough, deadline, progress, ranks), ""
    except np.linalg.LinAlgError:
        return None, "the weights are too large for float64"


def _at_rising_ranks(
    search: _Search, enough: int, deadline: float, progress: Callable[[str], None], ranks: Ranks | None
) -> Factored:
    """Factors of higher and higher ranks."""
    tried = search.possible(ranks or search.ranks(enough / search.total))
    for _ in range(1 if ranks else TRIES):
        found = search.attempt(tried)
        progress(f"low rank: {found.proved / found.total:.4%} proved right, at {tried}")
        higher = search.possible(tried.raised())
        if found.proved >= enough or found.proved < HOPE * enough or higher == tried or time.monotonic() > deadline:
            break
        tried = higher
    return found


@dataclass(frozen=True, eq=False)
class _Sample:
    """Of some labelled words: logits [word, output], neurons, all coordinates [word, d_model], and the length of what
    each rank leaves out of them, at most [word, rank]."""

    logits: Floats
    hidden: Floats
    inner: Floats
    lost: Floats
    labels: Integers


class _Search:
    """All that is known of one claim, and factors of the ranks asked for."""

    def __init__(self, body: LabelsBody | LabelMarginBody, domain: Language) -> None:
        self.operations = Operations()
        self.folded = folded = Folded(body.subject.model, self.operations)
        self.outputs, self.total = len(body.subject.codec.outputs), domain.size()
        places = np.array([body.subject.codec.index[token] for token in domain.vocab], dtype=np.int64)
        words = {n: places[np.concatenate(list(domain.batches(BATCH, [n])))] for n in domain.lengths if domain.size(n)}
        tables = {n: TokenTables(folded, ids) for n, ids in words.items()}
        found = {n: table.attention() for n, table in tables.items()}
        attention = {n: shares for n, (shares, _) in found.items()}
        self._find_directions(tables, attention)
        self.lengths = []
        for n, ids in words.items():
            lost = [self._lost(written) for written in tables[n].written]
            base_lost = self._lost(tables[n].base)
            labels = np.where(found[n][1], body.machine.run(ids), -1)
            self.lengths.append(Length(n, tables[n], labels, attention[n], lost, base_lost))
        both = np.concatenate([folded.written, folded.W_U])
        centred = self.operations.of(both - both.mean(axis=1, keepdims=True), 3)
        self.room = Room(float(getattr(body, "at_least", 0.0)), np.sqrt(np.square(centred).sum(axis=0)))
        self.sample = [self._sampled(length) for length in self.lengths]
        hidden = np.concatenate([sample.hidden for sample in self.sample])
        self.middle = float32(hidden.mean(axis=0)) if len(hidden) else np.zeros(folded.d_mlp)
        self.most = min(max(1, folded.d_mlp), self.outputs)
        self.joined = self._joined()

    def _find_directions(self, tables: dict[int, TokenTables], attention: dict[int, Floats]) -> None:
        """`into` [d_model, d_model] and its inverse `back`: coordinates in which lengths are those that neurons and
        logits see, those first along which the tables' rows are longest, weighted by their mean attention."""
        product = self.operations.product
        rows = []
        for n, table in tables.items():
            rows.append(table.base)
            for written, weights in zip(table.written, attention[n], strict=True):
                seen = np.bincount(table.rows.reshape(-1), weights.reshape(-1), len(written)) / len(table.rows)
                rows.append(written * np.sqrt(seen)[:, None])
        values, vectors = self.operations.symmetric(self.folded.metric)
        root = np.sqrt(np.maximum(values, 1.0))
        spread = product(np.concatenate(rows), vectors * root)
        _, turned = self.operations.symmetric(product(spread.T, spread))
        self.into = product(vectors * root, turned)
        self.back = product(turned.T, (vectors / root).T)

    def _lost(self, stream: Floats) -> Floats:
        """[row, rank from 0 to d_model]: the length of what a rank leaves out of these rows of the stream."""
        squares = np.square(self.operations.product(stream, self.into))
        tail = np.cumsum(self.operations.of(squares, 2)[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(np.sqrt(np.concatenate([tail, np.zeros((len(tail), 1))], axis=1)))

    def _sampled(self, length: Length) -> _Sample:
        folded, product, tables = self.folded, self.operations.product, length.tables
        labelled = np.flatnonzero(length.labels >= 0)
        most = max(16, SAMPLE * len(labelled) // self.total)
        some = labelled[np.linspace(0, len(labelled) - 1, min(most, len(labelled))).astype(np.int64)]
        attention, query = length.attention[:, some], tables.query[some]
        varied, lost = tables.base[query], length.base_lost[query]
        if folded.n_heads:
            varied = varied + tables.summed(tables.written, attention, some)
            lost = lost + tables.summed(length.lost, attention, some)
        stream = tables.mean + varied
        hidden = np.maximum(product(stream, folded.W_in) + folded.b_in, 0)
        logits = product(hidden, folded.written) + product(stream + folded.b_out, folded.W_U) + folded.b_U
        return _Sample(logits, hidden, product(varied, self.into), lost, length.labels[some])

    def _joined(self) -> float:
        """How far apart two words may be that share their neurons."""
        room = [self.room.of(sample.logits, sample.labels) for sample in self.sample]
        least = np.concatenate([(lead / far).min(axis=1, initial=np.inf) for lead, far in room])
        least = least[(least > 0) & np.isfinite(least)]
        return JOINED * float(np.median(least)) if least.size else 0.0

    # Ranks

    def possible(self, ranks: Ranks) -> Ranks:
        """These, or the greatest that there are."""
        inner = min(ranks.inner, self.folded.d)
        return Ranks(inner, min(ranks.used, inner), min(ranks.outer, self.most))

    def ranks(self, share: float) -> Ranks:
        """The least ranks at which this share of the sampled words would be proved, or as many as can be."""
        rooms = [self.room.of(sample.logits, sample.labels) for sample in self.sample]
        wanted = int(np.ceil(share * sum(len(sample.labels) for sample in self.sample)))

        def held(inner: int) -> int:
            """Sampled words that lose little of their lead to this rank."""
            pairs = [(*room, sample.lost[:, inner, None]) for room, sample in zip(rooms, self.sample, strict=True)]
            return sum(int((lead * GIVEN_UP > lost * far).all(axis=1).sum()) for lead, far, lost in pairs)

        best = min(held(self.folded.d), wanted)
        inner = _least(1, self.folded.d, lambda rank: held(rank) >= best)
        tails = self._tails(inner)
        right, values = self._readout
        sizes = [np.sqrt(np.square(sample.hidden - self.middle).sum(axis=1)) for sample in self.sample]

        @cache
        def apart(outer: int) -> Floats:
            some = right[:, outer:] * np.sqrt(values[outer:])
            return distances(self.operations.product(some, some.T))

        def proved(used: int, outer: int) -> int:
            found = 0
            for sample, (lead, far), tail, size in zip(self.sample, rooms, tails, sizes, strict=True):
                left = sample.lost[:, inner] + tail[:, used] + self.joined
                need = left[:, None] * far + size[:, None] * apart(outer)[sample.labels]
                found += int((self.operations.of(lead, 4) > SPARE * need).all(axis=1).sum())
            return found

        best = min(proved(inner, self.most), wanted)

        def enough(used: int, outer: int) -> bool:
            return proved(used, outer) >= best

        found = Ranks(inner, inner, self.most)
        for used in range(inner, 0, -1):
            if not enough(used, self.most):
                break
            outer = _least(1, self.most, partial(enough, used))
            if used + outer <= found.used + found.outer:
                found = Ranks(inner, used, outer)
        return found

    def _tails(self, inner: int) -> list[Floats]:
        """[word, used]: how far a sampled word is from one with the usual coordinates from there on."""
        turn, usual = self._turn(inner)
        found = []
        for sample in self.sample:
            squares = np.square(self.operations.product(sample.inner[:, :inner], turn) - usual)
            tail = np.cumsum(self.operations.of(squares, 2)[:, ::-1], axis=1)[:, ::-1]
            found.append(np.sqrt(np.concatenate([tail, np.zeros((len(tail), 1))], axis=1)))
        return found

    def _turn(self, inner: int) -> tuple[Floats, Floats]:
        """A rotation of the first coordinates: those first in which words differ most; and the mean word's."""
        coordinates = np.concatenate([sample.inner[:, :inner] for sample in self.sample])
        usual = coordinates.mean(axis=0) if len(coordinates) else np.zeros(inner)
        centred = coordinates - usual
        _, turn = self.operations.symmetric(self.operations.product(centred.T, centred))
        return turn, usual @ turn

    @cached_property
    def _readout(self) -> tuple[Floats, Floats]:
        """Right singular vectors [output, rank] and squared singular values of W_out W_U, without what all outputs have
        in common."""
        centred = self.folded.written - self.folded.written.mean(axis=1, keepdims=True)
        values, vectors = self.operations.symmetric(self.operations.product(centred.T, centred))
        return vectors[:, : self.most], np.maximum(values[: self.most], 0)

    def _factors(self, ranks: Ranks) -> Matrices:
        product, written = self.operations.product, self.folded.written
        turn, _ = self._turn(ranks.inner)
        narrow = float32(product(self.into[:, : ranks.inner], turn))
        widen = float32(product(turn.T, self.back[: ranks.inner]))
        write = float32(self._readout[0][:, : ranks.outer].T)
        read = float32(product(written, write.T))
        rest = written - product(read, write)
        apart = distances(product(rest.T, rest))
        seen, direct = product(widen, self.folded.W_in), product(widen, self.folded.W_U)
        return Matrices(narrow, widen, read, write, self.middle, seen, direct, apart)

    # Proofs

    def attempt(self, ranks: Ranks) -> Factored:
        """The proof with factors of these ranks."""
        factors = self._factors(ranks)
        entries, proved, points = [], 0, 0
        for length in self.lengths:
            leaders = self._leaders(length, factors, ranks)
            entries.append({"n": length.n, "leaders": leaders.tolist()})
            proved += int((leaders >= 0).sum())
            points += int((leaders == np.arange(len(leaders))).sum())
        proof: dict[str, object] = {"rule": "low_rank", "ranks": [ranks.inner, ranks.used, ranks.outer]}
        for name in ("narrow", "widen", "read", "write", "middle"):
            proof[name] = getattr(factors, name).astype("<f4").tobytes().hex()
        return Factored(ranks, proof | {"words": entries}, proved, self.total, points, self.operations.count)

    def _leaders(self, length: Length, factors: Matrices, ranks: Ranks) -> Integers:
        """For each word that is proved the first of those that it shares neurons with; for each other -1."""
        tables, product, query = length.tables, self.operations.product, length.tables.query
        inner = product(tables.base, factors.narrow)[query]
        left = length.base_lost[query, ranks.inner]
        if self.folded.n_heads:
            values = [product(written, factors.narrow) for written in tables.written]
            inner = inner + tables.summed(values, length.attention, slice(None))
            lost = [table[:, ranks.inner, None] for table in length.lost]
            left = left + tables.summed(lost, length.attention, slice(None))[:, 0]
        usable = (length.labels >= 0) & np.isfinite(inner).all(axis=1) & np.isfinite(left)
        if not usable.any():
            return np.full(len(inner), -1)
        fixed = inner[usable, ranks.used :].mean(axis=0)
        plan = Plan(self.folded, self.room, length, factors, inner, left, fixed)
        leaders = plan.joined(np.where(usable, length.labels, -1), self.joined)
        good = plan.won(leaders)
        number = np.bincount(leaders[leaders >= 0], minlength=len(leaders))
        alone = np.where((leaders >= 0) & ~good & (number[leaders] > 1), np.arange(len(leaders)), -1)
        again = plan.won(alone)
        return np.where(good, leaders, np.where(again, alone, -1))


def _least(low: int, high: int, good: Callable[[int], bool]) -> int:
    """The least number from `low` to `high` that is good, if good ones are followed by good ones; else `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return low
