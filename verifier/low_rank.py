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

import numpy as np

from ..models.languages import Language
from .claims import Claim
from .enumeration import MAX_INPUTS
from .first_layer import Floats, Integers
from .label_bodies import LabelMarginBody, LabelsBody, not_compared
from .low_rank_model import Folded, Operations, TokenTables, obstacle
from .theorems import domain_to_json
from .verdicts import Certificate

SAMPLE = 256
BATCH = 2**12
JOINED = 0.1
"""An input joins an earlier one if that costs at most about this share of what most sampled inputs lead by."""
NEIGHBOURS = 8
GIVEN_UP = 0.25
"""Of the least lead of a sampled input, this share may be lost to the rank of what the neurons read."""
SLACK = 1e-6
"""Of all that is lost: what the checker's rounding may add."""
TRIES = 6


@dataclass(frozen=True)
class Ranks:
    """Of what the neurons read, and of what they write to the logits."""

    inner: int
    outer: int


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


@dataclass(frozen=True, eq=False)
class _Length:
    """The words of one length, and what of them does not depend on the ranks. `lost` [head][row, rank] and `base_lost`
    [query, rank]: what that rank leaves out, as neurons and logits see it."""

    n: int
    tables: TokenTables
    labels: Integers
    attention: Floats
    lost: list[Floats]
    base_lost: Floats


@dataclass(frozen=True, eq=False)
class _Factors:
    """P, R, the read-out's left and right factor, rounded to float32; R W_in; and for two outputs how far apart they
    are in what the factors leave out."""

    narrow: Floats
    widen: Floats
    read: Floats
    write: Floats
    seen: Floats
    left_over: Floats


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
        at = f"at ranks {found.ranks.inner} and {found.ranks.outer}"
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
    if why:
        return None, why
    search = _Search(body, domain)
    tried = ranks or search.ranks(enough / domain.size())
    for attempt in range(TRIES):
        found = search.attempt(tried)
        progress(
            f"low rank: {found.proved / found.total:.4%} proved right, at ranks {tried.inner} and {tried.outer}"
        )
        most = Ranks(search.folded.d, min(search.folded.d_mlp + tried.inner, search.outputs))
        if ranks or found.proved >= enough or tried == most or time.monotonic() > deadline or attempt == TRIES - 1:
            break
        raised = Ranks(tried.inner + 1 + tried.inner // 8, tried.outer + 1 + tried.outer // 4)
        tried = Ranks(min(raised.inner, most.inner), min(raised.outer, most.outer))
    return found, ""


class _Search:
    """All that is known of one claim, and factors of the ranks asked for."""

    def __init__(self, body: LabelsBody | LabelMarginBody, domain: Language) -> None:
        self.operations = Operations()
        self.folded = Folded(body.subject.model, self.operations)
        self.needed = float(getattr(body, "at_least", 0.0))
        self.outputs, self.total = len(body.subject.codec.outputs), domain.size()
        self.places = np.array([body.subject.codec.index[token] for token in domain.vocab], dtype=np.int64)
        words = {n: np.concatenate(list(domain.batches(BATCH, [n]))) for n in domain.lengths if domain.size(n)}
        tables = {n: TokenTables(self.folded, self.places[ids]) for n, ids in words.items()}
        attention = {n: table.attention(slice(None)) for n, table in tables.items()}
        self._find_directions(tables, attention)
        self.lengths = []
        for n, ids in words.items():
            lost = [self._lost(table @ self.folded.W_O[h]) for h, table in enumerate(tables[n].values)]
            labels = body.machine.run(self.places[ids])
            self.lengths.append(_Length(n, tables[n], labels, attention[n], lost, self._lost(tables[n].base)))
        written = np.concatenate([self.folded.written, self.folded.W_U])
        centred = written - written.mean(axis=1, keepdims=True)
        self.far = np.sqrt(np.square(self.operations.of(centred, 3)).sum(axis=0))
        self.sample = [self._sampled(length) for length in self.lengths]
        self.joined = self._joined()

    def _find_directions(self, tables: dict[int, TokenTables], attention: dict[int, Floats]) -> None:
        """`into` [d_model, d_model] and its inverse `back`: their first k columns (rows) are the P (the R) of rank k."""
        product = self.operations.product
        rows = []
        for n, table in tables.items():
            rows.append(table.base)
            for h, weights in enumerate(attention[n]):
                seen = np.bincount(table.rows.reshape(-1), weights.reshape(-1), len(table.values[h])) / len(table.rows)
                written = product(table.values[h], self.folded.W_O[h])
                rows.append(written * np.sqrt(np.nan_to_num(seen))[:, None])
        values, vectors = self.operations.symmetric(self.folded.metric)
        root = np.sqrt(np.maximum(values, 1.0))
        spread = np.concatenate(rows) @ (vectors * root)
        self.operations.count += spread.size * self.folded.d
        _, turned = self.operations.symmetric(product(spread.T, spread))
        self.into = product(vectors * root, turned)
        self.back = product(turned.T, (vectors / root).T)

    def _lost(self, stream: Floats) -> Floats:
        """[row, rank from 0 to d_model]: the length of what a rank leaves out of these rows of the stream."""
        squares = np.square(self.operations.product(stream, self.into))
        tail = np.cumsum(self.operations.of(squares, 2)[:, ::-1], axis=1)[:, ::-1]
        return np.sqrt(np.concatenate([tail, np.zeros((len(tail), 1))], axis=1))

    def _sampled(self, length: _Length) -> tuple[Floats, Floats, Floats, Integers]:
        """Of some words with a label: logits, |(neurons, stream)|, what each rank leaves out, and labels."""
        folded, product = self.folded, self.operations.product
        labelled = np.flatnonzero(length.labels >= 0)
        most = max(16, SAMPLE * len(labelled) // self.total)
        some = labelled[np.linspace(0, len(labelled) - 1, min(most, len(labelled))).astype(np.int64)]
        tables, attention = length.tables, length.attention[:, some]
        written = [product(value, folded.W_O[h]) for h, value in enumerate(tables.values)]
        query = tables.query[some]
        varied = tables.base[query] + (tables.summed(written, attention, some) if written else 0.0)
        stream = tables.mean + varied
        hidden = np.maximum(product(stream, folded.W_in) + folded.b_in, 0)
        logits = product(hidden, folded.written) + product(stream + folded.b_out, folded.W_U) + folded.b_U
        lost = length.base_lost[query] + (tables.summed(length.lost, attention, some) if written else 0.0)
        inner = product(varied, self.into)
        size = np.sqrt(np.square(hidden).sum(axis=1) + np.square(inner).sum(axis=1))
        return logits, size, lost, length.labels[some]

    def _joined(self) -> float:
        """How far apart two words may be that share their neurons."""
        room = [self._room(logits, label) for logits, _, _, label in self.sample]
        least = np.concatenate([(lead / far).min(axis=1, initial=np.inf) for lead, far in room])
        least = least[least > 0]
        return JOINED * float(np.median(least)) if least.size and np.isfinite(least).all() else 0.0

    def _room(self, logits: Floats, label: Integers) -> tuple[Floats, Floats]:
        """[word, output]: by how much more than needed the label leads (infinite against itself), and what a unit of
        change in neurons and stream may cost of it."""
        lead = np.take_along_axis(logits, label[:, None], 1) - logits - self.needed
        lead[np.arange(len(label)), label] = np.inf
        return lead, np.maximum(self.far + self.far[label][:, None], 2.0**-500)

    def ranks(self, share: float) -> Ranks:
        """The least ranks at which this share of the sampled words would be proved, or as many as can be."""
        rooms = [(*self._room(logits, label), size, lost, label) for logits, size, lost, label in self.sample]
        count = sum(len(label) for *_, label in rooms)

        def held(inner: int) -> int:
            return sum(int((lead * GIVEN_UP > lost[:, inner, None] * far).all(1).sum()) for lead, far, _, lost, _ in rooms)

        best = min(held(self.folded.d), -(-int(share * 2**20) * count // 2**20))
        inner = _least(1, self.folded.d, lambda rank: held(rank) >= best)
        left, values = self._readout(inner)
        squares = np.cumsum((np.square(left) * values)[:, ::-1], axis=1)[:, ::-1]  # [output, rank]: its column's square

        def proved(outer: int) -> int:
            if outer < left.shape[1]:
                some = left[:, outer:] * np.sqrt(values[outer:])
                gram = self.operations.product(some, some.T)
                apart = np.sqrt(np.maximum(squares[:, outer, None] + squares[:, outer] - 2 * gram, 0))
            else:
                apart = np.zeros((self.outputs, self.outputs))
            found = 0
            for lead, far, size, lost, label in rooms:
                need = (lost[:, inner, None] + self.joined) * far + size[:, None] * apart[label]
                found += int((lead > need).all(axis=1).sum())
            return found

        most = left.shape[1]
        best = min(proved(most), best)
        return Ranks(inner, _least(1, most, lambda rank: proved(rank) >= best))

    def _readout(self, inner: int) -> tuple[Floats, Floats]:
        """Right singular vectors [output, rank] and squared singular values of (W_out W_U; R W_U), without what all
        outputs have in common."""
        stack = self._stack(inner)
        values, vectors = self.operations.symmetric(self.operations.product(stack.T, stack))
        most = min(stack.shape)
        return vectors[:, :most], np.maximum(values[:most], 0)

    def _stack(self, inner: int) -> Floats:
        seen = self.operations.product(self.back[:inner], self.folded.W_U)
        stack = np.concatenate([self.folded.written, seen])
        return self.operations.of(stack - stack.mean(axis=1, keepdims=True), 2)

    def factors(self, ranks: Ranks) -> _Factors:
        product = self.operations.product
        narrow, widen = _float32(self.into[:, : ranks.inner]), _float32(self.back[: ranks.inner])
        right, _ = self._readout(ranks.inner)
        write = _float32(right[:, : ranks.outer].T)
        read = _float32(product(self._stack(ranks.inner), write.T))
        stack = np.concatenate([self.folded.written, product(widen, self.folded.W_U)])
        rest = stack - product(read, write)
        rest = self.operations.of(rest - rest.mean(axis=1, keepdims=True), 3)
        gram = product(rest.T, rest)
        apart = np.sqrt(np.maximum(np.diag(gram)[:, None] + np.diag(gram) - 2 * gram, 0))
        return _Factors(narrow, widen, read, write, product(widen, self.folded.W_in), apart)

    def attempt(self, ranks: Ranks) -> Factored:
        """The proof with factors of these ranks."""
        factors = self.factors(ranks)
        entries, proved, points = [], 0, 0
        for length in self.lengths:
            leaders = self._leaders(length, factors, ranks)
            entries.append({"n": length.n, "leaders": leaders.tolist()})
            proved += int((leaders >= 0).sum())
            points += int((leaders == np.arange(len(leaders))).sum())
        matrices = ("narrow", factors.narrow), ("widen", factors.widen), ("read", factors.read), ("write", factors.write)
        proof: dict[str, object] = {"rule": "low_rank", "ranks": [ranks.inner, ranks.outer], "words": entries}
        proof |= {name: matrix.astype("<f4").tobytes().hex() for name, matrix in matrices}
        return Factored(ranks, proof, proved, self.total, points, self.operations.count)

    def _leaders(self, length: _Length, factors: _Factors, ranks: Ranks) -> Integers:
        """For each word that is proved the first of those that it shares neurons with; for each other -1."""
        tables, product = length.tables, self.operations.product
        folded, query = self.folded, length.tables.query
        inner = product(tables.base, factors.narrow)[query]
        values = [product(value, product(folded.W_O[h], factors.narrow)) for h, value in enumerate(tables.values)]
        left = length.base_lost[query, ranks.inner]
        if values:
            inner = inner + tables.summed(values, length.attention, slice(None))
            lost = [table[:, ranks.inner, None] for table in length.lost]
            left = left + tables.summed(lost, length.attention, slice(None))[:, 0]
        root = np.concatenate([factors.seen, factors.widen], axis=1)
        gram = product(root, root.T)
        usable = (length.labels >= 0) & np.isfinite(inner).all(axis=1) & np.isfinite(left)
        leaders = self._join(inner, gram, np.where(usable, length.labels, -1))
        good = self._won(length, factors, inner, left, gram, leaders)
        alone = np.where((leaders >= 0) & ~good, np.arange(len(leaders)), -1)
        alone[np.bincount(leaders[leaders >= 0], minlength=len(leaders))[np.maximum(leaders, 0)] == 1] = -1
        again = self._won(length, factors, inner, left, gram, alone)
        return np.where(good, leaders, np.where(again, alone, -1))

    def _join(self, inner: Floats, gram: Floats, labels: Integers) -> Integers:
        """Leaders: of words of one label that lie side by side along the first coordinate, and are near each other."""
        leaders = np.where(labels >= 0, np.arange(len(labels)), -1)
        order = np.lexsort((inner[:, 0], labels))
        order = order[labels[order] >= 0]
        near: list[tuple[int, int]] = []
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-step], order[step:]
            apart = inner[first] - inner[second]
            length = np.sqrt(np.maximum((self.operations.product(apart, gram) * apart).sum(axis=1), 0))
            close = (labels[first] == labels[second]) & (length <= self.joined)
            near += zip(first[close].tolist(), second[close].tolist(), strict=True)
        for pair in near:
            low, high = min(pair), max(pair)
            if leaders[low] == low and leaders[high] == high:
                leaders[high] = low
        # a word that others follow may itself have joined one later: then they go their own way
        chained = (leaders >= 0) & (leaders[np.maximum(leaders, 0)] != leaders)
        return np.where(chained, np.arange(len(leaders)), leaders)

    def _won(
        self, length: _Length, factors: _Factors, inner: Floats, left: Floats, gram: Floats, leaders: Integers
    ) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which words are proved, with their leaders' neurons."""
        followers = np.flatnonzero(leaders >= 0)
        apart = inner[followers] - inner[leaders[followers]]
        off = left[followers] + np.sqrt(np.maximum((self.operations.product(apart, gram) * apart).sum(axis=1), 0))
        worst = np.zeros(len(leaders))
        np.maximum.at(worst, leaders[followers], off)
        won = np.zeros(len(leaders), dtype=np.bool_)
        points = np.flatnonzero(leaders == np.arange(len(leaders)))
        folded, tables, product = self.folded, length.tables, self.operations.product
        read = tables.mean @ folded.W_in + folded.b_in
        constant = (tables.mean + folded.b_out) @ folded.W_U + folded.b_U
        for some in np.array_split(points, -(-len(points) // BATCH)) if len(points) else []:
            hidden = np.concatenate([np.maximum(product(inner[some], factors.seen) + read, 0), inner[some]], axis=1)
            size = np.sqrt(np.square(self.operations.of(hidden, 4)).sum(axis=1))
            logits = product(product(hidden, factors.read), factors.write) + constant
            lead, far = self._room(logits, length.labels[some])
            lost = worst[some, None] * far + size[:, None] * factors.left_over[length.labels[some]]
            rounding = 1e-9 * (1.0 + np.abs(logits).max(axis=1, keepdims=True))
            won[some] = (self.operations.of(lead, 8) > lost * (1 + SLACK) + rounding).all(axis=1)
        return np.asarray((leaders >= 0) & won[np.maximum(leaders, 0)])


def _float32(matrix: Floats) -> Floats:
    return matrix.astype(np.float32).astype(np.float64)


def _least(low: int, high: int, good: Callable[[int], bool]) -> int:
    """The least number from `low` to `high` that is good, if good ones are followed by good ones; else `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle + 1, high)
    return low
