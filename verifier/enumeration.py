"""Engine `enumeration`: every input of a small domain, in order, each decided over the reals by rigorous balls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..models.languages import Language
from .balls import Unsupported
from .claims import Claim
from .reading import FALSE, TRUE, UNDECIDED, UNDEFINED
from .refute import Candidate, Search, split_ranks
from .witness import Semantics

MAX_INPUTS = 2**20
MAX_PRECISE = 256


@dataclass
class Tally:
    """What enumeration found: how many inputs of each kind, and the first of some kinds.

    `seen` of `total` inputs were looked at, in order: shorter first, then in the order of the vocabulary. The first
    true and false one are taken, of a chunk that has any, from those that the float32 run calls the same.
    `float_false`: inputs on which the body holds over the reals, but not in the float32 run.
    """

    total: int
    semantics: Semantics = "real"
    seen: int = 0
    true: int = 0
    false: int = 0
    undecided: int = 0
    undefined: int = 0
    first_false: Candidate | None = None
    first_true: Candidate | None = None
    first_open: Candidate | None = None
    float_false: int = 0
    first_float_false: Candidate | None = None
    obstacle: str = ""
    sharpened: int = 0

    @property
    def complete(self) -> bool:
        return self.seen == self.total

    @property
    def left(self) -> int:
        """Inputs that are not decided."""
        return self.total - self.true - self.false


def size_of(claim: Claim, domain: Language) -> int:
    """How many witnesses a claim has on a domain."""
    return sum(domain.size(n) ** claim.arity for n in domain.lengths)


def every_input(search: Search) -> Iterator[Candidate]:
    """All candidates, in order, in chunks that fit in memory."""
    arity = search.claim.arity
    for n in search.lengths:
        words = search.domain.size(n)
        chunk = search.claim.subject.chunk(n, rigorous=True)
        for first in range(0, words**arity, chunk):
            ranks = np.arange(first, min(first + chunk, words**arity))
            yield tuple(search.domain.unrank(n, part) for part in split_ranks(ranks, words, arity))


def enumerate_inputs(
    claim: Claim,
    domain: Language,
    seconds: float,
    semantics: Semantics = "real",
    *,
    progress: Callable[[str], None] | None = None,
) -> Tally:
    """Decides the claim's body on every input, until time is up or the quantifier is settled.

    In `real` semantics by balls; where no rigorous rule exists, by the float32 run (`semantics`, `obstacle` say so).
    """
    search = Search(claim, domain, time.monotonic() + seconds)
    tally = Tally(size_of(claim, domain), semantics)
    said = time.monotonic()
    for words in every_input(search):
        codes = _codes(search, words, tally)
        counts = {code: int((codes == code).sum()) for code in (TRUE, FALSE, UNDECIDED, UNDEFINED)}
        tally.true, tally.false = tally.true + counts[TRUE], tally.false + counts[FALSE]
        tally.undecided, tally.undefined = tally.undecided + counts[UNDECIDED], tally.undefined + counts[UNDEFINED]
        tally.seen += len(codes)
        if tally.semantics == "real":
            ran = claim.body.judge(search.ids(words), "float32")
            differs = (ran == FALSE) & (codes == TRUE)
            tally.float_false += int(differs.sum())
            tally.first_float_false = tally.first_float_false or _first(words, differs)
            for code, name in ((FALSE, "first_false"), (TRUE, "first_true")):
                if getattr(tally, name) is None:
                    setattr(tally, name, _first(words, (codes == code) & (ran == code)))
        tally.first_false = tally.first_false or _first(words, codes == FALSE)
        tally.first_true = tally.first_true or _first(words, codes == TRUE)
        tally.first_open = tally.first_open or _first(words, (codes == UNDECIDED) | (codes == UNDEFINED))
        if claim.quantifier == "forall" and tally.first_false or claim.quantifier == "exists" and tally.first_true:
            break
        if search.out_of_time:
            break
        if progress and time.monotonic() - said > 0.5:
            said = time.monotonic()
            progress(f"enumerating: {tally.seen:,} of {tally.total:,} inputs")
    return tally


def _codes(search: Search, words: Candidate, tally: Tally) -> torch.Tensor:
    ids = search.ids(words)
    if tally.semantics == "real":
        try:
            return _sharpened(search, words, search.claim.body.judge(ids, "real"), tally)
        except Unsupported as error:
            if tally.seen:
                tally.obstacle = str(error)
                return torch.full((len(ids[0]),), UNDECIDED, dtype=torch.int8)
            tally.semantics, tally.obstacle = "float32", str(error)
    return search.claim.body.judge(ids, "float32")


def _sharpened(search: Search, words: Candidate, codes: torch.Tensor, tally: Tally) -> torch.Tensor:
    """The codes, with the first undecided rows decided in high precision, as long as there were few of them."""
    rows = np.flatnonzero((codes == UNDECIDED).numpy())[: max(0, MAX_PRECISE - tally.sharpened)]
    for row in rows.tolist():
        if search.out_of_time or not search.precise:
            break
        try:
            codes[row] = search.claim.body.judge(search.ids(tuple(word[row : row + 1] for word in words)), "precise")[0]
        except Unsupported:
            search.precise = False
        tally.sharpened += 1
        if codes[row] == FALSE and search.claim.quantifier == "forall":
            break
    return codes


def _first(words: Candidate, where: torch.Tensor) -> Candidate | None:
    if not bool(where.any()):
        return None
    row = int(where.to(torch.int8).argmax())
    return tuple(word[row : row + 1] for word in words)
