"""The counts that the benchmark of property testing rests on, against enumeration."""

from __future__ import annotations

from itertools import islice, product

import pytest
import torch
from benchmarks import plants

from certiformer.verifier.reading import FALSE


@pytest.mark.parametrize("vocab", [3, 4])
def test_closed_forms_count_words(vocab: int) -> None:
    for n in range(1, 6):
        words = list(product(range(vocab), repeat=n))
        for places, ends in (([0], [2]), ([1, 3], [1, 2]), ([0, 1, 2], [2, 3, 1])):
            wrong = [w for w in words if n > places[-1] and all(w[p] < e for p, e in zip(places, ends, strict=True))]
            assert plants.tokens_at(n, places, ends, vocab) == len(wrong)
        for k, more in product(range(1, 5), range(3)):
            wrong = [w for w in words if (w.count(0) == k and w.count(1) == more if more else w.count(0) >= k)]
            assert plants.repeated(n, k, more, vocab) == len(wrong)


def test_plants_are_wrong_where_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few tokens, so that all inputs can be run: the share that is wrong, and the shortest input."""
    monkeypatch.setattr(plants, "VOCAB", 4)
    monkeypatch.setattr(plants, "LONGEST", 4)
    monkeypatch.setattr(plants.tokens_at, "__defaults__", (4,))
    monkeypatch.setattr(plants.repeated, "__defaults__", (4,))
    for plant in islice(plants.rare_programs(), 12):
        wrong = []
        for n in plant.domain.lengths:
            ids = torch.tensor(list(product(range(4), repeat=n)))
            wrong += [n] * int((plant.claim.body.judge((ids,), "float32") == FALSE).sum())
        assert len(wrong) == round(plant.rate * plant.domain.size()), plant.what
        assert min(wrong) == plant.shortest, plant.what
