"""Models that Tracr compiled, as models of ours: the same weights under our names, with a codec for their values.

A Tracr model reads its BOS token first; categorical outputs are the first maximum of their coordinates of the last
residual stream, numerical ones are one coordinate's number. (D. Lindner et al., Tracr: Compiled Transformers as a
Laboratory for Interpretability, 2023; `tracr/compiler/assemble.py`.) JAX and Haiku are imported by
`from_tracr_model` alone, when it is called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ..models.circuits import Circuit, all_edges
from ..models.codec import Codec
from ..models.config import LayerConfig, TransformerConfig
from ..models.errors import InputError
from ..models.flow import read, written
from ..models.transformer import Transformer
from ..models.values import Value, sort_key
from .core import CoreProgram, normalise
from .lower import lower
from .rasp import SOp

Array: TypeAlias = npt.NDArray[np.float32]
TOLERANCE = 1e-3
"""How far a number may be off and still count as the value, as in Tracr's own tests."""
DENOMINATOR = 1000


@dataclass(frozen=True, eq=False)
class TracrModel:
    """A model that Tracr compiled. `cf.Computes(imported, program)` and the other claims take it.

    `model`: its weights, unchanged; token ids are in the order of `codec.vocab`, then BOS, then Tracr's padding token.
    `labels`: what each coordinate of the residual stream stands for, in Tracr's words. `circuit`: the edges through
    which anything can flow, whatever is put in place of the others.
    """

    model: Transformer
    codec: Codec
    circuit: Circuit
    labels: tuple[str, ...]

    def run(self, xs: Sequence[Value]) -> list[Value]:
        """The decoded outputs on one sequence (without BOS). Raises `InputError` for tokens it does not know."""
        with torch.no_grad():
            return self.codec.decode(self.model(self.codec.encode([list(xs)])))[0]


@dataclass(frozen=True, eq=False)
class TracrShape:
    """What Tracr knows of a model beside its parameters.

    `tokens`: token id by value, `bos` and `pad` being values too (`pad` may be None). `readout` [d_model, outputs]:
    the matrix that reads outputs off the residual stream. `outputs`: the value of each column; None if numerical.
    """

    n_layers: int
    n_heads: int
    causal: bool
    tokens: Mapping[Any, int]
    bos: str
    pad: str | None
    readout: Array
    outputs: tuple[Value, ...] | None
    labels: tuple[str, ...]


def from_tracr_model(
    assembled: Any,
    *,
    program: SOp | CoreProgram | None = None,
    values: Sequence[Value] | None = None,
    tolerance: float = TOLERANCE,
) -> TracrModel:
    """What `tracr.compiler.compiling.compile_rasp_to_model` returns, as a model of ours with exactly its weights.

    A model with numerical outputs needs to know the numbers that are meant: `values`, or the `program` that has them. A
    logit within `tolerance` of a value decodes to it, another one to a text such as "above 3" (values that are
    nearer to each other than that: to the nearest one). Raises `InputError` for anything else than such a model.
    """
    shape = _shape_of(assembled)
    flat = {
        f"{module}/{name}": np.asarray(value, dtype=np.float32)
        for module, found in assembled.params.items()
        for name, value in found.items()
    }
    return build(flat, shape, program=program, values=values, tolerance=tolerance)


def load_recorded(
    path: str | Path,
    *,
    program: SOp | CoreProgram | None = None,
    values: Sequence[Value] | None = None,
    tolerance: float = TOLERANCE,
) -> TracrModel:
    """A model recorded without Tracr: parameters in `NAME.npz` under Haiku's names, the rest in `NAME.json` beside it.

    Raises `InputError` for files that are not there, or hold something else.
    """
    stem = Path(path).with_suffix("")
    try:
        meta = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(stem.with_suffix(".npz"), allow_pickle=False) as found:
            parameters = {name: found[name] for name in found.files if not name.startswith("probe/")}
        shape = shape_from_json(meta, parameters["token_embed/embeddings"].shape[1])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{stem}.json and .npz do not hold a recorded Tracr model: {error}") from None
    return build(parameters, shape, program=program, values=values, tolerance=tolerance)


def shape_from_json(meta: Mapping[str, Any], d_model: int) -> TracrShape:
    """The shape in a recorded model's JSON; see tests/data/README.md."""
    dims, categorical = meta["output_dims"], meta["output_kind"] == "categorical"
    outputs = (
        [exact_value(value) for value, _ in sorted(meta["output_encoding"], key=lambda p: p[1])] if categorical else []
    )
    return TracrShape(
        n_layers=meta["num_layers"],
        n_heads=meta["num_heads"],
        causal=meta["causal"],
        tokens=dict(meta["input_encoding"]),
        bos=meta["bos"],
        pad=meta["pad"],
        readout=np.eye(d_model, dtype=np.float32)[:, dims],
        outputs=tuple(outputs) if categorical else None,
        labels=tuple(meta["residual_labels"]),
    )


def _shape_of(assembled: Any) -> TracrShape:
    """Of an assembled model. Raises `InputError` if it lacks what Tracr's have."""
    needed = ("params", "model_config", "residual_labels", "input_encoder", "output_encoder", "get_compiled_model")
    if missing := [name for name in needed if getattr(assembled, name, None) is None and name != "output_encoder"]:
        raise InputError(
            f"from_tracr_model takes what compile_rasp_to_model returns; {type(assembled).__name__} has no "
            f"{', '.join(missing)}"
        )
    config, encoder = assembled.model_config, assembled.input_encoder
    if config.layer_norm or encoder.bos_token is None:
        raise InputError("Tracr's models have a BOS token and no layer norm; this one was made by other means")
    mapping = getattr(assembled.output_encoder, "encoding_map", None)
    outputs = None if mapping is None else tuple(exact_value(v) for v, _ in sorted(mapping.items(), key=lambda p: p[1]))
    return TracrShape(
        n_layers=config.num_layers,
        n_heads=config.num_heads,
        causal=bool(config.causal),
        tokens=dict(encoder.encoding_map),
        bos=encoder.bos_token,
        pad=encoder.pad_token,
        readout=_readout(assembled),
        outputs=outputs,
        labels=tuple(assembled.residual_labels),
    )


def _readout(assembled: Any) -> Array:
    """The matrix [d_model, outputs] that Tracr's unembedding multiplies by: its value on the unit vectors."""
    import haiku as hk
    import jax

    unit = np.eye(len(assembled.residual_labels), dtype=np.float32)
    applied = hk.transform(lambda: assembled.get_compiled_model().unembed(unit, False))
    found = np.asarray(applied.apply(assembled.params, jax.random.PRNGKey(0)), dtype=np.float32)
    return found.reshape(len(unit), -1)


def build(
    parameters: Mapping[str, Array],
    shape: TracrShape,
    *,
    program: SOp | CoreProgram | None = None,
    values: Sequence[Value] | None = None,
    tolerance: float = TOLERANCE,
) -> TracrModel:
    """The model of parameters under Haiku's names, flat: `transformer/layer_0/attn/query/w`. Raises `InputError`."""
    weights = _renamed(parameters, shape)
    d_model, heads = weights["embed.W_E"].shape[1], shape.n_heads
    layers = tuple(
        LayerConfig(heads, weights[f"blocks.{i}.attn.W_Q"].shape[2], weights[f"blocks.{i}.mlp.W_in"].shape[1])
        for i in range(shape.n_layers)
    )
    config = TransformerConfig(
        d_model=d_model,
        n_ctx=weights["pos_embed.W_pos"].shape[0],
        d_vocab=weights["embed.W_E"].shape[0],
        d_vocab_out=shape.readout.shape[1],
        layers=layers,
        causal=shape.causal,
    )
    model = Transformer.from_parameters(config, {name: torch.from_numpy(value) for name, value in weights.items()})
    codec = _codec(shape, config, program, values, tolerance)
    flow = [e for e in all_edges(config) if (written(e.src, weights) & read(e.dst, e.slot, weights)).any()]
    return TracrModel(model, codec, Circuit.from_edges(flow), shape.labels)


def _renamed(parameters: Mapping[str, Array], shape: TracrShape) -> dict[str, Array]:
    """Our names and shapes. Raises `InputError` naming what is missing or unknown."""
    names = {"token_embed/embeddings", "pos_embed/embeddings"}
    for layer in range(shape.n_layers):
        for part in ("attn/query", "attn/key", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2"):
            names |= {f"transformer/layer_{layer}/{part}/{kind}" for kind in "wb"}
    if names != set(parameters):
        missing, unknown = sorted(names - set(parameters)), sorted(set(parameters) - names)
        raise InputError(
            f"these are not a Tracr model's parameters: missing {', '.join(missing[:8]) or 'none'}, "
            f"unknown {', '.join(unknown[:8]) or 'none'}"
        )

    def take(name: str) -> Array:
        return np.array(parameters[name], dtype=np.float32)

    order = [shape.tokens[value] for value in _vocab(shape)] + [shape.tokens[shape.bos]]
    order += [shape.tokens[shape.pad]] if shape.pad in shape.tokens else []
    weights = {"embed.W_E": take("token_embed/embeddings")[order], "pos_embed.W_pos": take("pos_embed/embeddings")}
    d, heads = weights["embed.W_E"].shape[1], shape.n_heads
    for layer in range(shape.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer/layer_{layer}"
        for name, letter in (("query", "Q"), ("key", "K"), ("value", "V")):
            split = take(f"{theirs}/attn/{name}/w").reshape(d, heads, -1)
            weights[f"{ours}.attn.W_{letter}"] = np.ascontiguousarray(split.transpose(1, 0, 2))
            weights[f"{ours}.attn.b_{letter}"] = take(f"{theirs}/attn/{name}/b").reshape(heads, -1)
        weights[f"{ours}.attn.W_O"] = take(f"{theirs}/attn/linear/w").reshape(heads, -1, d)
        weights[f"{ours}.attn.b_O"] = take(f"{theirs}/attn/linear/b")
        for name, side in (("linear_1", "in"), ("linear_2", "out")):
            weights[f"{ours}.mlp.W_{side}"] = take(f"{theirs}/mlp/{name}/w")
            weights[f"{ours}.mlp.b_{side}"] = take(f"{theirs}/mlp/{name}/b")
    weights["unembed.W_U"] = np.ascontiguousarray(shape.readout)
    weights["unembed.b_U"] = np.zeros(shape.readout.shape[1], dtype=np.float32)
    return weights


def _vocab(shape: TracrShape) -> list[Any]:
    """The tokens without BOS and padding, in our order."""
    return sorted((value for value in shape.tokens if value not in (shape.bos, shape.pad)), key=sort_key)


def _codec(
    shape: TracrShape,
    config: TransformerConfig,
    program: SOp | CoreProgram | None,
    values: Sequence[Value] | None,
    tolerance: float,
) -> Codec:
    vocab, longest = tuple(_vocab(shape)), config.n_ctx - 1
    if shape.outputs is not None:
        return Codec(vocab, True, "categorical", shape.outputs, max_len=longest)
    if values is None:
        if program is None:
            raise InputError(
                "this model's output is a number, and it does not say which numbers are meant: pass values=, or the "
                "program= that it is to compute"
            )
        core = program if isinstance(program, CoreProgram) else lower(program, vocab, longest, causal=shape.causal)
        values = core.value_node(core.output).values
    outputs, points = _cells(values, tolerance)
    return Codec(vocab, True, "scalar", outputs, points, max_len=longest)


def _cells(values: Sequence[Value], tolerance: float) -> tuple[tuple[Value, ...], tuple[float, ...]]:
    """Outputs and points: each number, and around it, where there is room, texts for what is off by more."""
    if isinstance(tolerance, bool) or not 0 <= tolerance < math.inf:
        raise InputError(f"a tolerance must be a number of at least 0, got {tolerance!r}")
    numbers = (value for value in map(exact_value, values) if isinstance(value, (int, Fraction)))
    exact = sorted({int(value) if isinstance(value, bool) else value for value in numbers})
    if not exact:
        raise InputError(f"a numerical output needs numbers as values, got {list(values)[:8]!r}")
    found: list[tuple[Value, float]] = []
    ends = [-math.inf, *map(float, exact), math.inf]
    for place, value in enumerate(exact, start=1):
        shown = f"{value.numerator}" if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
        if tolerance and ends[place] - ends[place - 1] > 4 * tolerance:
            found.append((f"below {shown}", ends[place] - 2 * tolerance))
        found.append((value, ends[place]))
        if tolerance and ends[place + 1] - ends[place] > 4 * tolerance:
            found.append((f"above {shown}", ends[place] + 2 * tolerance))
    return tuple(value for value, _ in found), tuple(point for _, point in found)


def exact_value(value: Any) -> Value:
    """A value of Tracr's as one of ours; a float as the fraction of small denominator that it stands for."""
    if isinstance(value, (float, np.floating)) and math.isfinite(value):
        near = Fraction(float(value)).limit_denominator(DENOMINATOR)
        value = near if abs(float(near) - float(value)) < 1e-9 else value
    try:
        return normalise(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{value!r} among Tracr's values is none of ours: {error}") from None
