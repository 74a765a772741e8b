"""The words that a label machine labels y, as an automaton over pairs of states (rule `paths`, specification 8).

A pair is a state of the label machine and one of the domain's automaton, after the tokens read so far. It closes with a
token if the word that ends with this token is in the domain and labelled y. Pairs are merged only if they close with
the same tokens and go to the same classes for every token, and this is looked up in the end for every pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .automaton import Domain
from .bodies import LabelMargin, Labels
from .core import Bits, Ints
from .format import require

MAX_PAIRS = 2**24
MAX_CELLS = 2**22
MAX_MINIMISING = 2**26
ROUND = 2**11
"""What a round costs, however little it does, in cells of a table."""


@dataclass(frozen=True, eq=False)
class Language:
    """The words of a domain with one label (and, if the last token is read first, one last token).

    `step` [class, token of the domain]: the next class; `closes` [class, token]: whether a word may end so; `start`:
    the class of the empty prefix; `work`: what it took to find this, in cells of tables.
    """

    step: Ints
    closes: Bits
    start: int
    work: int = 0

    @cached_property
    def dead(self) -> Bits:
        """[class]: closes with nothing, and leads only to itself. (Every other class has words, if it is minimal.)"""
        return np.asarray(~self.closes.any(axis=1) & (self.step == np.arange(len(self.step))[:, None]).all(axis=1))


def language(part: Labels | LabelMargin, domain: Domain, vocab: Ints, label: int, last: int | None) -> Language:
    """The words of `domain` that `part`'s machine labels `label` >= 0.

    `vocab` [token of the domain]: its id in the codec; `last`: the place, in the domain's vocab, of the words' last
    token if the machine reads it first, else None. Raises `Rejected` for too many pairs, or if merging takes too long.
    """
    assert label >= 0 and part.last_first == (last is not None) and not domain.distinct
    delta, labelled = part.delta[:, vocab], part.labels == label
    first = 0 if last is None else int(delta[0, last])
    pairs, step, work = _reached(delta, domain.delta, first, domain.start)
    state, place = np.divmod(pairs, len(domain.delta))
    closes = domain.accept[domain.delta[place]]
    if last is None:
        closes &= labelled[delta[state]]
    else:
        closes &= labelled[state][:, None] & (np.arange(len(vocab)) == last)
    return minimal(step, closes, work + delta.size)


def _reached(delta: Ints, other: Ints, first: int, second: int) -> tuple[Ints, Ints, int]:
    """The pairs that words lead to, as state * len(other) + state of the other, the first being the start; for each
    [pair, token] the place of the next; and the work."""
    size, tokens = len(delta) * len(other), delta.shape[1]
    require(size <= MAX_PAIRS, f"{size} pairs of label and domain states; the limit is {MAX_PAIRS}")
    number = np.full(size, -1, dtype=np.int64)
    layer = np.array([first * len(other) + second], dtype=np.int64)
    number[layer] = 0
    layers, steps, count, work = [layer], [], 1, size
    while len(layer):
        work += layer.size * tokens + ROUND
        require(count * tokens <= MAX_CELLS and work <= MAX_MINIMISING, "too many pairs of label and domain states")
        states, others = np.divmod(layer, len(other))
        after = delta[states] * len(other) + other[others]
        layer = np.unique(after[number[after] < 0])
        number[layer] = np.arange(count, count + len(layer))
        count += len(layer)
        steps.append(after)
        layers.append(layer)
    return np.concatenate(layers), number[np.concatenate(steps)], work


# --- merging ---------------------------------------------------------------------------------------------------------


def minimal(step: Ints, closes: Bits, work: int = 0) -> Language:
    """The coarsest partition of the states of `step` [state, token] in which those of one class close with the same
    tokens and go to the same classes; the start is state 0. Raises `Rejected` beyond `MAX_MINIMISING`."""
    block, work = _partition(step, closes, work)
    _, first, block = np.unique(block, return_index=True, return_inverse=True)
    block = block.reshape(-1)
    found = Language(block[step[first]], closes[first], int(block[0]), work)
    stable = (found.step[block] == block[step]).all() and (found.closes[block] == closes).all()
    require(stable, "internal error: states were merged that differ")
    return found


def _partition(step: Ints, closes: Bits, work: int) -> tuple[Ints, int]:
    """[state]: its block; and the work. In rounds: only states that lead to a state of a new block can leave their own,
    and the largest part of a block keeps its name (Hopcroft 1971)."""
    states, tokens = step.shape
    block = _ranks(np.packbits(closes, axis=1).astype(np.int64))
    into = np.argsort(step.reshape(-1), kind="stable") // tokens  # states, by where their tokens lead
    degree = np.bincount(step.reshape(-1), minlength=states)
    first = np.cumsum(degree) - degree
    dirty = np.arange(states)
    work += 4 * step.size
    while len(dirty):
        work += len(dirty) * (tokens + 1) + states // 4 + ROUND
        require(work <= MAX_MINIMISING, "the label machine is too large to be minimised")
        following = _split(step, block, dirty)
        changed = np.flatnonzero(following != block)
        block, count = following, degree[changed]
        before = np.zeros(states, dtype=np.bool_)
        before[into[np.repeat(first[changed] - (np.cumsum(count) - count), count) + np.arange(count.sum())]] = True
        dirty = np.flatnonzero(before)
        work += int(count.sum())
    return block, work


def _split(step: Ints, block: Ints, dirty: Ints) -> Ints:
    """Blocks, with the dirty states told apart by their next blocks; those of one block that are not dirty agree on
    these, and differ from all that are (no name of a new block was used before)."""
    blocks = int(block.max()) + 1
    part = _ranks(np.column_stack([block[dirty], block[step[dirty]]]))
    size, owner = np.bincount(part), np.zeros(int(part.max()) + 1, dtype=np.int64)
    owner[part] = block[dirty]
    owners, begin = np.unique(owner, return_index=True)
    largest = np.lexsort((-size, owner))[begin]
    clean = np.bincount(block, minlength=blocks)[owners] - np.add.reduceat(size, begin)
    leads = size[largest] > clean
    name, fresh = owner.copy(), np.ones(len(owner), dtype=np.bool_)
    fresh[largest[leads]] = False
    name[fresh] = blocks + np.arange(fresh.sum())
    moved = owners[leads & (clean > 0)]
    names = np.arange(blocks)
    names[moved] = blocks + fresh.sum() + np.arange(len(moved))
    found = names[block]
    found[dirty] = name[part]
    return found


def _ranks(rows: Ints) -> Ints:
    """[row]: how many different rows come before it in lexicographic order. (Column by column: much faster than whole
    rows. Entries are below 2^31.)"""
    rank = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        rank = np.unique(rank * (int(column.max()) + 1) + column, return_inverse=True)[1].reshape(-1)
    return rank
