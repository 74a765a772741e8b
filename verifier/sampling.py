"""Figures by sampling: never a verdict, always with an interval."""

from __future__ import annotations

import numpy as np

from ..models.errors import InputError
from ..models.languages import Language
from .claims import Claim
from .refute import Search
from .statistics import Estimate, estimate


def sample_accuracy(
    claim: Claim, domain: Language, samples: int, *, confidence: float = 0.99, seed: int = 0
) -> Estimate:
    """The share of inputs on which the claim's body holds in the float32 run, from uniform independent samples.

    Of a claim about pairs: a base uniform over the domain, and a source uniform among the words of its length.
    Raises `InputError` for an empty domain or no samples.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples must be an integer of at least 1, got {samples!r}")
    search = Search(claim, domain, float("inf"))
    rng = np.random.default_rng(seed)
    good = 0
    for n, words in domain.sample_ids(rng, samples):
        rest = tuple(domain.sample_length(rng, n, len(words)) for _ in range(claim.arity - 1))
        size = claim.subject.chunk(n, rigorous=False)
        for at in range(0, len(words), size):
            ids = search.ids(tuple(word[at : at + size] for word in (words, *rest)))
            good += int(claim.holds_batch(*ids).sum())
    return estimate(good, samples, confidence)
