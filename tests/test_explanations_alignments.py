"""Alignments by sites and subspaces, and pyvene's folders of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certiformer.explanations import AlignedSite, read_pyvene, write_pyvene
from certiformer.models import InputError, LayerConfig, Resample, Transformer, TransformerConfig, edit

CONFIG = TransformerConfig(6, 4, 3, 2, (LayerConfig(2, 3, 5), LayerConfig(2, 3, 5)))


def orthonormal(k: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, k, generator=torch.Generator().manual_seed(seed))).Q.T.contiguous()


class RotateLayer(nn.Module):
    """As pyvene's: x @ weight, weight orthogonal by torch's parametrisation."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, m))
        nn.init.orthogonal_(self.weight)


class Rotated(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.rotate_layer = nn.utils.parametrizations.orthogonal(RotateLayer(n, m))
        self.register_buffer("embed_dim", torch.tensor(n))
        with torch.no_grad():  # as if it were trained; the diagonal holds signs, through which no gradient flows
            self.rotate_layer.parametrizations.weight.original.add_(0.1 * torch.randn(n, m).tril(-1))


def pyvene_folder(folder: Path, **changes: Any) -> dict[str, Any]:
    """As `IntervenableModel.save` writes it: a low-rank rotation, a full one with two dimensions, a whole site."""
    torch.manual_seed(1)
    made = {
        "layer_0_comp_block_output_unit_pos_nunit_1#0": Rotated(6, 2),
        "layer_1_comp_mlp_output_unit_pos_nunit_1#0": Rotated(6, 6),
    }
    data: dict[str, Any] = {
        "representations": [
            {"layer": 0, "component": "block_output", "unit": "pos", "max_number_of_units": 1, "low_rank_dimension": 2},
            [1, "mlp_output", "pos", 1],
            {"layer": 1, "component": "mlp_activation", "unit": "pos", "max_number_of_units": 1},
        ],
        "intervention_types": [
            "<class 'pyvene.models.interventions.LowRankRotatedSpaceIntervention'>",
            "<class 'pyvene.models.interventions.RotatedSpaceIntervention'>",
            "<class 'pyvene.models.interventions.VanillaIntervention'>",
        ],
        "intervention_dimensions": [None, [2], None],
        "sorted_keys": [*made, "layer_1_comp_mlp_activation_unit_pos_nunit_1#0"],
        "mode": "parallel",
        "transformers_version": "4.40",
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    for key, intervention in made.items():
        torch.save(intervention.state_dict(), folder / f"intkey_{key}.bin")
    return {key: intervention.rotate_layer.weight.detach() for key, intervention in made.items()}


def test_a_saved_pyvene_model(tmp_path: Path) -> None:
    weights = list(pyvene_folder(tmp_path).values())
    low, full, whole = read_pyvene(tmp_path, CONFIG)
    assert (low.site, full.site) == ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
    assert low.directions is not None and full.directions is not None
    torch.testing.assert_close(low.directions, weights[0].T)
    torch.testing.assert_close(full.directions, weights[1][:, :2].T)
    assert whole.site == "blocks.1.mlp.hook_post" and whole.directions is None
    assert low.variable == "layer_0_comp_block_output_unit_pos_nunit_1#0"


def test_written_and_read_back(tmp_path: Path) -> None:
    chosen = (
        AlignedSite("x", "blocks.0.hook_resid_pre", orthonormal(2)),
        AlignedSite("y", "blocks.0.hook_resid_pre", orthonormal(6, seed=3)),
        AlignedSite("z", "blocks.1.mlp.hook_post"),
    )
    write_pyvene(chosen, tmp_path / "new", CONFIG)
    back = read_pyvene(tmp_path / "new", CONFIG)
    for one, other in zip(chosen, back, strict=True):
        assert one.site == other.site
        if one.directions is None:
            assert other.directions is None
        else:
            assert other.directions is not None
            torch.testing.assert_close(other.directions, one.directions, rtol=1e-4, atol=1e-5)
    assert [one.variable[-2:] for one in back] == ["#0", "#1", "#0"]


def test_the_intervention_replaces_the_subspace() -> None:
    model = Transformer.initialised(CONFIG)
    aligned = AlignedSite("x", "blocks.0.hook_resid_post", orthonormal(2))
    tokens, source = torch.tensor([[0, 1, 2]]), torch.tensor([[2, 2, 0]])
    site = aligned.site
    _, cache = edit(model, aligned.edit(Resample(source))).run_with_cache(tokens, site)
    directions = orthonormal(2)
    clean, other = (model.run_with_cache(t, site)[1][site] for t in (tokens, source))
    torch.testing.assert_close(cache[site] @ directions.T, other @ directions.T)
    rest = torch.eye(6) - directions.T @ directions
    torch.testing.assert_close(cache[site] @ rest, clean @ rest)
    with pytest.raises(InputError, match="whole of blocks.0.hook_mlp_out"):
        AlignedSite("x", "blocks.0.hook_mlp_out").edit(Resample(source))


@pytest.mark.parametrize(
    ("site", "directions", "message"),
    [
        ("blocks.7.hook_mlp_out", None, "no site 'blocks.7.hook_mlp_out'"),
        ("blocks.0.hook_mlp_out", torch.ones(1, 5), r"at blocks.0.hook_mlp_out must have shape"),
        ("blocks.0.hook_mlp_out", torch.ones(7, 6), r"must have shape \[1 to 6, 6\]"),
        ("blocks.0.hook_mlp_out", torch.ones(2, 6) / 6**0.5, "2 directions at blocks.0.hook_mlp_out span only 1"),
        ("blocks.0.hook_mlp_out", torch.zeros(1, 6), "span only 0"),
        ("blocks.0.hook_mlp_out", 2 * orthonormal(2), "blocks.0.hook_mlp_out are not orthonormal"),
        ("blocks.0.hook_mlp_out", torch.full((1, 6), torch.nan), "NaN"),
    ],
)
def test_bad_subspaces_are_named_by_their_site(site: str, directions: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlignedSite("x", site, directions).validate(CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"representations": [{"component": "head_output", "unit": "h.pos"}]},
            "component 'head_output' by unit 'h.pos'",
        ),
        (
            {"representations": [{"layer": 9}], "intervention_types": None, "intervention_dimensions": None},
            "no site 'blocks.9",
        ),
        ({"representations": [{"layer": "x"}]}, "layer must be an integer"),
        ({"representations": 3}, "no list of representations"),
        ({"representations": ["x"]}, "an object or a list"),
        ({"intervention_types": ["NoiseIntervention"] * 3}, "intervention NoiseIntervention"),
        ({"intervention_types": ["a", "b"]}, "3 representations, but 2"),
        ({"intervention_dimensions": [None, [9], None]}, "must be 1 to 6, got 9"),
    ],
)
def test_what_has_no_counterpart_is_listed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pyvene_folder(tmp_path, **changes)
    if "representations" in changes and "intervention_types" not in changes:
        data = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(
            json.dumps({**data, "intervention_types": [], "intervention_dimensions": []})
        )
    with pytest.raises(InputError, match=message):
        read_pyvene(tmp_path, CONFIG)


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of pyvene's"):
        read_pyvene(tmp_path, CONFIG)
    pyvene_folder(tmp_path)
    file = tmp_path / "intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"
    torch.save({"mask": torch.zeros(3)}, file)
    with pytest.raises(InputError, match="has no rotation: its keys are mask"):
        read_pyvene(tmp_path, CONFIG)
    torch.save(Rotated(6, 3).state_dict(), file)
    with pytest.raises(InputError, match="has rank 3, the configuration says 2"):
        read_pyvene(tmp_path, CONFIG)
    file.unlink()
    with pytest.raises(InputError, match="no file intkey_layer_0"):
        read_pyvene(tmp_path, CONFIG)
    with pytest.raises(InputError, match="no component for blocks.0.attn.hook_z"):
        write_pyvene([AlignedSite("x", "blocks.0.attn.hook_z")], tmp_path / "n", CONFIG)
