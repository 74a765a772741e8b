"""Rules `enumerate` and `witness`: the model is run with rigorous enclosures, and the body decided on each witness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .balls import check_arithmetic
from .core import Bits, Ints
from .format import Json, Rejected, listing, record, require, show, value, within
from .judging import Chunk, Judge, judge_part
from .network import Network as Network
from .theorem import Theorem

MAX_WITNESSES = 2**20


def check_enumeration(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if on all witnesses, or on as many as the quantifier says, the body provably holds (or fails)."""
    with within("proof", "enumerate"):
        record(proof, "proof", ("rule",))
        _check_readout(theorem)
        require(theorem.quantifier != "exists", "exists is proved by rule witness")
        theorem.model.config.require_supported()
        size = sum(count**theorem.arity for count in theorem.domain.sizes().values())
        what = "inputs" if theorem.arity == 1 else "pairs of inputs"
        require(size <= MAX_WITNESSES, f"the domain has {size} {what}; enumeration is refused above {MAX_WITNESSES}")
        check_arithmetic()
        judge = Judge(theorem)
        held = failed = 0
        for words in witnesses(theorem, judge):
            found = _decide(theorem, judge, words, theorem.quantifier == "forall")
            if theorem.quantifier == "none" and not found.false.all():
                row = int((~found.false).argmax())
                raise Rejected(f"the body is not proved to fail on {_shown(theorem, words, row)}")
            held, failed = held + int(found.true.sum()), failed + int(found.false.sum())
        if theorem.quantifier == "at_least":
            require(held >= theorem.share * size, f"the body is proved to hold on only {held} of {size} {what}")
        if theorem.quantifier == "fewer_than":
            most = size - failed
            require(most < theorem.share * size, f"the body may hold on {most} of {size} {what}")


def check_witness(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if the body provably holds on the one witness given, and that is in the domain."""
    with within("proof", "witness"):
        item = record(proof, "proof", ("rule", "inputs"))
        _check_readout(theorem)
        require(theorem.quantifier == "exists", "rule witness proves exists only")
        check_arithmetic()
        position = {token: index for index, token in enumerate(theorem.domain.vocab)}
        words = []
        for entry in listing(item["inputs"], "inputs", theorem.arity, theorem.arity):
            tokens = [value(x, "a token") for x in listing(entry, "an input", theorem.domain.hi, 1)]
            require(all(x in position for x in tokens), f"a token of {show(tokens)} is not in the domain")
            word = np.array([position[x] for x in tokens], dtype=np.int64)
            require(theorem.domain.has(word), f"{show(tokens)} is not in the domain")
            words.append(word[None, :])
        require(len({word.shape for word in words}) == 1, "the inputs of the witness have different lengths")
        _decide(theorem, Judge(theorem), tuple(words), everywhere=True)


def _check_readout(theorem: Theorem) -> None:
    require(theorem.model.config.readout != "mean", "unsupported: evaluation of models with the read-out 'mean'")


def witnesses(theorem: Theorem, judge: Judge) -> Iterator[tuple[Ints, ...]]:
    """All words, or all pairs of words of equal length, in chunks that fit in memory."""
    for n, count in theorem.domain.sizes().items():
        if theorem.arity == 1 or not count:
            yield from ((words,) for words in theorem.domain.words(n, judge.batch(n)))
            continue
        words = np.concatenate(list(theorem.domain.words(n, count)))
        step = judge.batch(n)
        for first in range(0, count * count, step):
            ranks = np.arange(first, min(first + step, count * count))
            yield (words[ranks % count], words[ranks // count])


@dataclass(frozen=True)
class _Decision:
    """On which witnesses the body provably holds, and on which it provably fails [batch]."""

    true: Bits
    false: Bits


def _decide(theorem: Theorem, judge: Judge, words: tuple[Ints, ...], everywhere: bool) -> _Decision:
    """All parts hold; or one fails. `everywhere`: raises `Rejected` where a part is not proved to hold."""
    true = np.ones(len(words[0]), dtype=np.bool_)
    false = ~true
    chunk = Chunk(judge, words)
    for number, part in enumerate(theorem.parts):
        found = judge_part(chunk, number)
        if everywhere and not found.true.all():
            row = int((~found.true).argmax())
            name, shown = type(part).__name__, _shown(theorem, words, row)
            require(not found.undefined[row], f"{name}: the program is undefined on {shown}")
            raise Rejected(f"{name} is not proved at position {int((~found.holds[row]).argmax())} of {shown}")
        true, false = true & found.true, false | found.false
    return _Decision(true, false)


def _shown(theorem: Theorem, words: tuple[Ints, ...], row: int) -> str:
    inputs = [show([theorem.domain.vocab[t] for t in word[row]]) for word in words]
    return " with ".join(inputs)
