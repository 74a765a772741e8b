"""Models of every configuration to export, what they compute in float64, and onnxruntime to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from certiformer.models import LayerConfig, Transformer, TransformerConfig
from certiformer.models.edits import Edited
from certiformer.models.execution import Run, execute, plan
from certiformer.models.program import LOGITS

Array = npt.NDArray[Any]
LAYERS = (LayerConfig(2, 3, 7), LayerConfig(0, 0, 5), LayerConfig(1, 8, 0))


def make(seed: int = 0, **changes: Any) -> Transformer:
    fields: dict[str, Any] = {"d_model": 8, "n_ctx": 6, "d_vocab": 5, "d_vocab_out": 4, "layers": LAYERS}
    model = Transformer.initialised(TransformerConfig(**{**fields, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2][0] == "b":
                parameter.normal_(0.0, 0.3, generator=generator)
    return model


MODELS = {
    "plain": make(),
    "causal": make(1, causal=True, attention_scale=0.7),
    "gelu": make(2, activation="gelu", layer_norm=1e-5, causal=True),
    "gelu_new": make(3, activation="gelu_new", layer_norm=1e-3, readout="last"),
    "silu": make(4, activation="silu", layer_norm=1e-5, readout="mean", causal=True),
    "sparsemax, leaky ReLU": make(7, attention="sparsemax", activation="leaky_relu", causal=True),
    "MLP at the read-out": make(8, attention="sparsemax", activation="silu", readout="mean", d_readout=5),
    "no positions": make(5, positional="none", readout="last", attention_scale=1.0),
    "no layers": make(6, layers=(), layer_norm=1e-5),
}


def words(model: Transformer | Edited, count: int, length: int | None = None, seed: int = 0) -> Tensor:
    config = model.config
    shape = (count, config.n_ctx if length is None else length)
    return torch.randint(0, config.d_vocab, shape, generator=torch.Generator().manual_seed(seed))


def in_float64(model: Transformer | Edited, tokens: Tensor, sites: Sequence[str] = (LOGITS,)) -> dict[str, Array]:
    """Values at sites by our own operations, in float64."""
    base = model.base if isinstance(model, Edited) else model
    weights = {name: parameter.detach().double() for name, parameter in base.named_parameters()}
    constants = model.constants if isinstance(model, Edited) else {}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in constants.items()}
    found = execute(plan(model.program, tuple(sites)), Run(tokens, weights.__getitem__, exact))
    return {site: found[site].numpy() for site in sites}


def session_of(file: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    made = onnx.load_from_string(file)
    if any(entry.data_type == onnx.TensorProto.DOUBLE for entry in made.graph.initializer):
        # Fusing a product with its scale makes a float32 attribute of the scale.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run_onnx(file: bytes, feeds: Mapping[str, Tensor | Array]) -> list[Array]:
    arrays = {name: x.numpy() if isinstance(x, Tensor) else x for name, x in feeds.items()}
    return [np.asarray(found) for found in session_of(file).run(None, arrays)]


def difference(found: Array, wanted: Array) -> float:
    """The largest, relative to the largest number; both must be infinite in the same places (masked scores)."""
    assert found.shape == wanted.shape
    finite = np.isfinite(wanted)
    assert (finite == np.isfinite(found)).all()
    return float(np.abs(found[finite] - wanted[finite]).max() / max(np.abs(wanted[finite]).max(), 1e-30))
