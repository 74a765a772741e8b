"""ONNX files, run by onnxruntime: every operation, site and shape; in float64 against our operations in float64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import certiformer as cf
from certiformer.models import Ablate, InputError, Mean, Transformer, Zero, edit, zoo
from certiformer.models.onnx_export import RULES, onnx_bytes, to_onnx
from certiformer.models.program import OPERATIONS, input_site
from certiformer.models.sites import sites
from certiformer.testing import interventions

from .exported import MODELS, difference, in_float64, make, run_onnx, words

EQUAL = 1e-12
"""In float64."""
ROUNDING = 4e-6
"""In float32, where both sides round, and sums are in another order."""
BASIC = {
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Erf",
    "Expand",
    "Gather",
    "GreaterOrEqual",
    "Identity",
    "MatMul",
    "Max",
    "Mul",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
}
BASIC |= {
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Sqrt",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
}


def runs_in_double(model: Any) -> bool:
    """onnxruntime has no Erf of float64."""
    return model.config.activation != "gelu"


def test_every_operation_has_a_rule() -> None:
    assert set(RULES) == set(OPERATIONS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fixed", [False, True])
def test_every_site(name: str, fixed: bool) -> None:
    model = MODELS[name]
    double = runs_in_double(model)
    known = list(sites(model.config))
    file = None if fixed else onnx_bytes(model, outputs=known, double=double)
    for length in (1, 4, 6):
        tokens = words(model, 5, length)
        file = onnx_bytes(model, outputs=known, length=length, batch=5, double=double) if fixed else file
        wanted = in_float64(model, tokens, known)
        assert file is not None
        for site, found in zip(known, run_onnx(file, {"tokens": tokens}), strict=True):
            assert difference(found, wanted[site]) < (EQUAL if double else ROUNDING), site


@pytest.mark.parametrize("name", MODELS)
def test_from_the_residual_stream_on(name: str) -> None:
    model = MODELS[name]
    layers = len(model.config.layers)
    stream = [input_site(model.config), *(f"blocks.{layer}.hook_resid_post" for layer in range(layers))]
    tokens = words(model, 3, 4)
    wanted = in_float64(model, tokens, (*stream, "logits"))
    for site in stream:
        file = onnx_bytes(model, start=site, length=4, double=runs_in_double(model))
        given_ = wanted[site] if runs_in_double(model) else wanted[site].astype("f4")
        (found,) = run_onnx(file, {site: given_})
        assert difference(found, wanted["logits"]) < (EQUAL if runs_in_double(model) else ROUNDING)
        assert not any(entry.name.startswith("embed") for entry in onnx.load_from_string(file).graph.initializer)


@pytest.mark.parametrize("name", ["max-of-10", "dyck-1-16-layernorm-gelu", "induction-12"])
def test_ten_thousand_inputs(name: str) -> None:
    """float32 beside float32, relative to the largest logit; neither is exact to 1e-6 of the real logits."""
    model = zoo.load(name).model
    tokens = words(model, 10_000)
    with torch.no_grad():
        ours = torch.cat([model(part) for part in tokens.split(2000)]).numpy()
    (found,) = run_onnx(onnx_bytes(model), {"tokens": tokens})
    assert difference(found, ours) < 2e-6


def test_compiled_programs_decode_the_same() -> None:
    compiled = cf.compile(cf.programs.sort(), vocab=range(6), max_len=6)
    tokens = compiled.codec.with_bos(torch.randint(0, 6, (500, 6), generator=torch.Generator().manual_seed(0)))
    (found,) = run_onnx(onnx_bytes(compiled.model), {"tokens": tokens})
    assert compiled.codec.decode(torch.from_numpy(found)) == compiled.codec.decode(compiled.model(tokens))


EDITED = make(9, causal=True)


@settings(max_examples=30)
@given(st.data())
def test_edited_models(data: st.DataObject) -> None:
    edits = data.draw(interventions(EDITED, 4))
    model = edit(EDITED, *edits)
    tokens = words(model, 3, 4)
    (found,) = run_onnx(onnx_bytes(model, length=4, double=True), {"tokens": tokens})
    assert difference(found, in_float64(model, tokens)["logits"]) < EQUAL


def test_edits_of_every_kind() -> None:
    tokens = words(EDITED, 3, 4)
    for edits in (
        [Ablate("a0.h1", Zero())],
        [Ablate("input->m0", Mean(tokens))],
        [Ablate("a0.h0->a2.h0<q>", Mean(tokens, per_position=True)), Ablate("a0.h1", Zero())],
        [Ablate(f"a0.h{head}", Zero()) for head in (0, 1)],
    ):
        model = edit(EDITED, *edits)
        (found,) = run_onnx(onnx_bytes(model, double=True), {"tokens": tokens})
        assert difference(found, in_float64(model, tokens)["logits"]) < EQUAL


def test_a_file_of_elementary_operations_and_the_same_bytes(tmp_path: Path) -> None:
    for name, model in MODELS.items():
        made = onnx.load_from_string(onnx_bytes(model))
        assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 17)]
        assert {node.op_type for node in made.graph.node} <= BASIC, name
        assert onnx_bytes(model) == onnx_bytes(model)
        used = {name for node in made.graph.node for name in node.input}
        assert {entry.name for entry in made.graph.initializer} <= used
        axes = made.graph.input[0].type.tensor_type.shape.dim
        assert [axis.dim_param for axis in axes] == ["batch", "pos"]
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    to_onnx(MODELS["plain"], target)
    assert target.read_bytes() == onnx_bytes(MODELS["plain"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_are_exactly_ours() -> None:
    model = MODELS["causal"]
    stored = {e.name: onnx.numpy_helper.to_array(e) for e in onnx.load_from_string(onnx_bytes(model)).graph.initializer}
    for name in ("embed.W_E", "pos_embed.W_pos", "blocks.0.mlp.W_in", "unembed.W_U", "unembed.b_U"):
        assert (stored[name] == model.parameter(name).detach().numpy()).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"outputs": ["blocks.0.hook_nothing"]}, "no site 'blocks.0.hook_nothing'"),
        ({"start": "hook_nothing"}, "no site 'hook_nothing'"),
        ({"start": "blocks.0.attn.hook_q"}, "does not follow from blocks.0.attn.hook_q alone"),
        ({"start": "logits"}, "is the input"),
        ({"length": 7}, "length must be at most n_ctx = 6, got 7"),
        ({"length": 0}, "length must be an integer of at least 1"),
        ({"batch": 2.0}, "batch must be an integer"),
    ],
    ids=str,
)
def test_what_cannot_be_exported(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        onnx_bytes(MODELS["plain"], **options)


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"certiformer\[onnx\]"):
        to_onnx(Transformer(MODELS["plain"].config), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
