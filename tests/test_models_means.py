"""Stored means: their values, their provenance, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

from certiformer.models import (
    Ablate,
    Codec,
    InputError,
    LayerConfig,
    Mean,
    Transformer,
    TransformerConfig,
    edit,
    sequences,
)
from certiformer.models.means import MeanAblation, domain_means, mean_activations

CONFIG = TransformerConfig(6, 5, 4, 3, (LayerConfig(2, 3, 4), LayerConfig(1, 3, 0)), layer_norm=1e-5)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer.initialised(CONFIG, 3)


def test_means_are_those_of_the_edits(model: Transformer) -> None:
    tokens = torch.randint(0, 4, (7, 5), generator=torch.Generator().manual_seed(0))
    means = mean_activations(model, tokens)
    means.validate(CONFIG)
    for target in ("a0.h1", "input->a1.h0<q>", "m0->logits", "a1.h0->logits"):
        stored = edit(model, Ablate(target, means.of(target)))(tokens)
        torch.testing.assert_close(stored, edit(model, Ablate(target, Mean(tokens)))(tokens), rtol=1e-5, atol=1e-6)


def test_each_position_counts_the_same(model: Transformer) -> None:
    short, long = torch.tensor([[0]]), torch.tensor([[1, 2, 3, 0]])
    means = mean_activations(model, [short, long])
    site = "blocks.0.hook_resid_pre"
    rows = torch.cat([model.run_with_cache(t, site)[1][site].reshape(-1, 6) for t in (short, long)])
    torch.testing.assert_close(means.values["input"], rows.mean(0))
    assert "2 inputs" in means.provenance and "5 positions" in means.provenance


def test_the_provenance_names_domain_seed_and_number(model: Transformer) -> None:
    domain = sequences(range(1, 4), range(1, 4))
    codec = Codec(tuple(range(4)), False, "categorical", (0, 1, 2))
    means = domain_means(model, domain, codec, samples=50, seed=7)
    assert repr(domain) in means.provenance and "50 words" in means.provenance and "seed 7" in means.provenance
    again = domain_means(model, domain, codec, samples=50, seed=7)
    assert all(torch.equal(means.values[node], again.values[node]) for node in means.values)


def test_the_domains_tokens_are_read_by_the_codec(model: Transformer) -> None:
    """The domain's only token is the codec's last, and BOS comes first."""
    codec = Codec(tuple("xyz"), True, "categorical", (0, 1, 2))
    means = domain_means(model, sequences(["z"], 2), codec, samples=3)
    expected = mean_activations(model, torch.tensor([[3, 2, 2]]))
    torch.testing.assert_close(means.values["input"], expected.values["input"])
    assert "BOS included" in means.provenance
    with pytest.raises(InputError, match=r"has not: \['q'\]"):
        domain_means(model, sequences(["q"], 2), codec, samples=3)


def test_json_keeps_every_bit(model: Transformer) -> None:
    means = mean_activations(model, torch.tensor([[0, 1, 2]]), "here")
    back = MeanAblation.from_json(json.loads(json.dumps(means.to_json())))
    assert back.provenance == "here"
    assert all(torch.equal(back.values[node], value) for node, value in means.values.items())


def test_wrong_means_are_refused(model: Transformer) -> None:
    means = mean_activations(model, torch.tensor([[0, 1, 2]]))
    with pytest.raises(InputError, match="m0 must be a float32 vector"):
        MeanAblation({**means.values, "m0": torch.zeros(6, dtype=torch.float64)}, "x")
    with pytest.raises(InputError, match="m0 has NaN"):
        MeanAblation({**means.values, "m0": torch.full((6,), torch.nan)}, "x")
    with pytest.raises(InputError, match=r"missing \['m0'\], unknown \['m7'\]"):
        MeanAblation({("m7" if k == "m0" else k): v for k, v in means.values.items()}, "x").validate(CONFIG)
    with pytest.raises(InputError, match="d_model = 6"):
        MeanAblation({k: v[:5] for k, v in means.values.items()}, "x").validate(CONFIG)
    with pytest.raises(InputError, match="no mean of 'a7.h0'"):
        means.of("a7.h0->logits")
    with pytest.raises(InputError, match="some inputs"):
        mean_activations(model, [])
    with pytest.raises(InputError, match="list of numbers"):
        MeanAblation.from_json({"provenance": "", "values": {"m0": ["a"]}})
