"""The model program: a model as a straight-line program over a small closed set of operations.

Every operation names the site it writes (`output`), the sites it reads, and its parameters; the laws below write
b for batch, i and j for positions, h for heads, and x[b, i] for a vector. An engine is a table from operation to rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from .config import ActivationName, TransformerConfig


@dataclass(frozen=True)
class Embed:
    """out[b, i] = weight[token[b, i]]"""

    output: str
    weight: str


@dataclass(frozen=True)
class Position:
    """out[b, i] = weight[i]"""

    output: str
    weight: str


@dataclass(frozen=True)
class Add:
    """out = the sum of the inputs, from the left; a single input is copied."""

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Linear:
    """out[b, i] = input[b, i] @ weight + bias; also without the position axis."""

    output: str
    input: str
    weight: str
    bias: str


@dataclass(frozen=True)
class HeadLinear:
    """out[b, i, h] = input[b, i] @ weight[h] + bias[h]; an input with a head axis is read at h."""

    output: str
    input: str
    weight: str
    bias: str


@dataclass(frozen=True)
class Scores:
    """out[b, h, i, j] = scale * (query[b, i, h] . key[b, j, h]); minus infinity where causal and j > i."""

    output: str
    query: str
    key: str
    scale: float
    causal: bool


@dataclass(frozen=True)
class Softmax:
    """out[..., j] = exp(input[..., j] - max_k input[..., k]) / sum over j of the same"""

    output: str
    input: str


@dataclass(frozen=True)
class Sparsemax:
    """out[..., j] = max(input[..., j] - t, 0), with the t for which these sum to 1 over j (Martins, Astudillo 2016)"""

    output: str
    input: str


@dataclass(frozen=True)
class Mix:
    """out[b, i, h] = sum_j pattern[b, h, i, j] * value[b, j, h]"""

    output: str
    pattern: str
    value: str


@dataclass(frozen=True)
class Join:
    """out[b, i] = sum_h input[b, i, h] @ weight[h] + bias"""

    output: str
    input: str
    weight: str
    bias: str


@dataclass(frozen=True)
class Results:
    """out[b, i, h] = input[b, i, h] @ weight[h]: each head's own contribution (read only by edits and caches)."""

    output: str
    input: str
    weight: str


@dataclass(frozen=True)
class Activation:
    """out = function(input), elementwise"""

    output: str
    input: str
    function: ActivationName


@dataclass(frozen=True)
class Normalise:
    """LayerNorm over the last axis: (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias"""

    output: str
    input: str
    weight: str
    bias: str
    eps: float


@dataclass(frozen=True)
class Pool:
    """out[b] = input[b, n-1] (last) or the mean of input[b, i] over i"""

    output: str
    input: str
    how: Literal["last", "mean"]


@dataclass(frozen=True)
class Constant:
    """out = constants[name], broadcast over the batch. Only in edited programs, as are the four below."""

    output: str
    constant: str


@dataclass(frozen=True)
class SumHeads:
    """out[b, i] = sum over the listed h of input[b, i, h], + bias"""

    output: str
    input: str
    bias: str
    heads: tuple[int, ...]


@dataclass(frozen=True)
class StackHeads:
    """out[b, i, h] = inputs[h][b, i]"""

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Replace:
    """out = constants[value] where constants[mask] else input; both broadcast to the input's shape."""

    output: str
    input: str
    value: str
    mask: str


@dataclass(frozen=True)
class Project:
    """out = input + (constants[value] - input) @ constants[projector]: the subspace's component is replaced."""

    output: str
    input: str
    value: str
    projector: str
    head: int | None


Operation: TypeAlias = (
    Embed
    | Position
    | Add
    | Linear
    | HeadLinear
    | Scores
    | Softmax
    | Sparsemax
    | Mix
    | Join
    | Results
    | Activation
    | Normalise
    | Pool
    | Constant
    | SumHeads
    | StackHeads
    | Replace
    | Project
)
Program: TypeAlias = tuple[Operation, ...]
OPERATIONS: tuple[type[Operation], ...] = get_args(Operation)
EDIT_OPERATIONS: tuple[type[Operation], ...] = (Constant, SumHeads, StackHeads, Replace, Project)
LOGITS = "logits"


def reads(operation: Operation) -> tuple[str, ...]:
    """The sites an operation reads, in order."""
    match operation:
        case Embed() | Position() | Constant():
            return ()
        case Add() | StackHeads():
            return operation.inputs
        case Scores():
            return (operation.query, operation.key)
        case Mix():
            return (operation.pattern, operation.value)
        case _:
            return (operation.input,)


def model_program(config: TransformerConfig) -> Program:
    """The program of an unedited model: from tokens to the site `logits`; every operation reads earlier outputs."""
    return tuple(_operations(config))


def _operations(config: TransformerConfig) -> Iterable[Operation]:
    embedded = ["hook_embed"]
    yield Embed("hook_embed", "embed.W_E")
    if config.positional == "learned":
        embedded.append("hook_pos_embed")
        yield Position("hook_pos_embed", "pos_embed.W_pos")
    stream = input_site(config)
    yield Add(stream, tuple(embedded))

    for index, layer in enumerate(config.layers):
        block = f"blocks.{index}"
        if index:
            yield Add(f"{block}.hook_resid_pre", (stream,))
            stream = f"{block}.hook_resid_pre"
        written = [stream]
        if layer.n_heads:
            yield from _attention(config, index, stream)
            written.append(f"{block}.hook_attn_out")
        stream = f"{block}.hook_resid_mid"
        yield Add(stream, tuple(written))
        written = [stream]
        if layer.d_mlp:
            yield from _mlp(config, index, stream)
            written.append(f"{block}.hook_mlp_out")
        stream = f"{block}.hook_resid_post"
        yield Add(stream, tuple(written))

    if config.layer_norm is not None:
        yield Normalise("ln_final.hook_normalized", stream, "ln_final.w", "ln_final.b", config.layer_norm)
        stream = "ln_final.hook_normalized"
    if config.readout != "each":
        yield Pool("hook_readout", stream, config.readout)
        stream = "hook_readout"
    if config.d_readout:
        yield Linear("readout.hook_pre", stream, "readout.W_in", "readout.b_in")
        yield Activation("readout.hook_post", "readout.hook_pre", config.activation)
        stream = "readout.hook_post"
    yield Linear(LOGITS, stream, "unembed.W_U", "unembed.b_U")


def _attention(config: TransformerConfig, index: int, stream: str) -> Iterable[Operation]:
    block, attn = f"blocks.{index}", f"blocks.{index}.attn"
    if config.layer_norm is not None:
        name = f"{block}.ln1"
        yield Normalise(f"{name}.hook_normalized", stream, f"{name}.w", f"{name}.b", config.layer_norm)
        stream = f"{name}.hook_normalized"
    for x in "qkv":
        yield HeadLinear(f"{attn}.hook_{x}", stream, f"{attn}.W_{x.upper()}", f"{attn}.b_{x.upper()}")
    scores, pattern, z = f"{attn}.hook_attn_scores", f"{attn}.hook_pattern", f"{attn}.hook_z"
    yield Scores(scores, f"{attn}.hook_q", f"{attn}.hook_k", config.scale(index), config.causal)
    yield Softmax(pattern, scores) if config.attention == "softmax" else Sparsemax(pattern, scores)
    yield Mix(z, pattern, f"{attn}.hook_v")
    yield Results(f"{attn}.hook_result", z, f"{attn}.W_O")
    yield Join(f"{block}.hook_attn_out", z, f"{attn}.W_O", f"{attn}.b_O")


def _mlp(config: TransformerConfig, index: int, stream: str) -> Iterable[Operation]:
    block, mlp = f"blocks.{index}", f"blocks.{index}.mlp"
    if config.layer_norm is not None:
        name = f"{block}.ln2"
        yield Normalise(f"{name}.hook_normalized", stream, f"{name}.w", f"{name}.b", config.layer_norm)
        stream = f"{name}.hook_normalized"
    yield Linear(f"{mlp}.hook_pre", stream, f"{mlp}.W_in", f"{mlp}.b_in")
    yield Activation(f"{mlp}.hook_post", f"{mlp}.hook_pre", config.activation)
    yield Linear(f"{block}.hook_mlp_out", f"{mlp}.hook_post", f"{mlp}.W_out", f"{mlp}.b_out")


def input_site(config: TransformerConfig) -> str:
    """The site of the first residual stream: the output of the node `input`."""
    return "blocks.0.hook_resid_pre" if config.layers else "hook_resid"


def needed(program: Program, targets: Iterable[str]) -> Program:
    """The operations that `targets` depend on, in order."""
    wanted = set(targets)
    kept: list[Operation] = []
    for operation in reversed(program):
        if operation.output in wanted:
            kept.append(operation)
            wanted.update(reads(operation))
    return tuple(reversed(kept))
