"""The least difference of two logits: never missed, attained by its word, resumable."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.errors import InputError
from certiformer.models.transformer import Transformer

from .path_models import random_model


def codec_of(model: Transformer) -> Codec:
    tokens, outputs = tuple(range(model.config.d_vocab)), tuple(range(model.config.d_vocab_out))
    return Codec(tokens, False, "categorical", outputs, max_len=model.config.n_ctx)


def exact(model: Transformer, n: int) -> float:
    words = torch.tensor(list(itertools.product(range(model.config.d_vocab), repeat=n)))
    with torch.no_grad():
        logits = model.double()(words)
        model.float()
    return float((logits[:, 0] - logits[:, 1]).min())


@pytest.mark.parametrize("seed", range(16))
def test_the_least_difference_lies_between_its_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.3, 1.0])))
    n = int(rng.integers(1, 5))
    domain = cf.sequences(range(model.config.d_vocab), n)
    true = exact(model, n)
    for seconds, gap in ((0.001, 0.0), (30.0, 1e-3 * (1 + abs(true)))):
        found = cf.least_difference(model, 0, 1, domain, codec=codec_of(model), seconds=seconds, gap=gap)
        assert found.lower <= true
        assert found.upper >= true - 1e-4 * (1 + abs(true))  # a float32 run
        assert len(found.word) == n
    assert found.gap <= gap
    with torch.no_grad():
        logits = model(torch.tensor([found.word]))[0]
    assert float(logits[0] - logits[1]) == pytest.approx(found.upper, rel=1e-5, abs=1e-5)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    model = random_model(rng, scale=0.5)
    domain, file = cf.sequences(range(model.config.d_vocab), 4), tmp_path / "search.json"
    whole = cf.least_difference(model, 0, 1, domain, codec=codec_of(model), gap=1e-3)
    found = None
    for _ in range(400):
        found = cf.least_difference(model, 0, 1, domain, codec=codec_of(model), gap=1e-3, seconds=1e-9, resume=file)
        if found.gap <= 1e-3:
            break
        cf.least_difference(model, 0, 1, domain, codec=codec_of(model), gap=1e-3, seconds=0.02, resume=file)
    assert found is not None
    assert abs(found.lower - whole.lower) <= 2e-3
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "nodes": [[99.0, *data["nodes"][0][1:]], *data["nodes"][1:]]}))
    with pytest.raises(InputError, match="the hash differs"):
        cf.least_difference(model, 0, 1, domain, codec=codec_of(model), resume=file)
    data["identity"][0] = "other"
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="another search"):
        cf.least_difference(model, 0, 1, domain, codec=codec_of(model), resume=file)
    file.write_text("{")
    with pytest.raises(InputError, match="remove it"):
        cf.least_difference(model, 0, 1, domain, codec=codec_of(model), resume=file)


def test_bad_input() -> None:
    model = random_model(np.random.default_rng(4))
    codec = codec_of(model)
    with pytest.raises(InputError, match="not among"):
        cf.least_difference(model, 0, 99, cf.sequences(range(2), 3), codec=codec)
    with pytest.raises(InputError, match="both 0"):
        cf.least_difference(model, 0, 0, cf.sequences(range(2), 3), codec=codec)
    with pytest.raises(InputError, match="does not know|do not know"):
        cf.least_difference(model, 0, 1, cf.sequences(range(99), 3), codec=codec)
    with pytest.raises(InputError, match="reads at most 5"):
        cf.least_difference(model, 0, 1, cf.sequences(range(2), 6), codec=codec)
    with pytest.raises(InputError, match="float32"):
        cf.least_difference(
            random_model(np.random.default_rng(4)).double(), 0, 1, cf.sequences(range(2), 3), codec=codec
        )
    with pytest.raises(InputError, match="positive"):
        cf.least_difference(model, 0, 1, cf.sequences(range(2), 3), codec=codec, seconds=0)
    with pytest.raises(InputError, match="one length"):
        cf.least_difference(model, 0, 1, cf.sequences(range(2), range(1, 4)), codec=codec)


@pytest.mark.parametrize("seed", range(12))
def test_a_search_run_to_its_end_keeps_a_rigorous_bound(seed: int) -> None:
    """When nothing is left to split, the bound is that of single words, not the float32 run's value."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=1.0)
    n = int(rng.integers(1, 4))
    domain = cf.sequences(range(model.config.d_vocab), n)
    found = cf.least_difference(model, 0, 1, domain, codec=codec_of(model), seconds=60)
    true = exact(model, n)
    assert found.lower <= true
    assert found.lower >= true - 1e-3 * (1 + abs(true))
    assert found.seconds < 60
