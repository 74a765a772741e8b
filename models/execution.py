"""Running a model program with torch, in float32: the walk, and the table from operation to function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import program as ops
from .program import Operation, Program, needed, reads


@dataclass(frozen=True, eq=False)
class Plan:
    """What must be run for the wanted sites, and after which step each other site can be forgotten."""

    steps: tuple[tuple[Operation, tuple[str, ...]], ...]


def plan(program: Program, targets: Collection[str]) -> Plan:
    """The operations `targets` need, each with the sites that no later operation reads."""
    live: set[str] = set(targets)
    steps: list[tuple[Operation, tuple[str, ...]]] = []
    for operation in reversed(needed(program, targets)):
        last = tuple(dict.fromkeys(site for site in reads(operation) if site not in live))
        live.update(last)
        steps.append((operation, last))
    return Plan(tuple(reversed(steps)))


@dataclass
class Run:
    """The state of one run: `values` maps a site to its tensor, batch first."""

    tokens: Tensor
    parameter: Callable[[str], Tensor]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


def execute(steps: Plan, run: Run) -> dict[str, Tensor]:
    """Runs the plan; what is left in `values` is what it was planned for."""
    for operation, finished in steps.steps:
        run.values[operation.output] = RULES[type(operation)](operation, run)
        for site in finished:
            del run.values[site]
    return run.values


def _embed(op: ops.Embed, run: Run) -> Tensor:
    return F.embedding(run.tokens, run.parameter(op.weight))


def _position(op: ops.Position, run: Run) -> Tensor:
    batch, length = run.tokens.shape
    weight = run.parameter(op.weight)[:length]
    return weight.expand(batch, length, weight.shape[1])


def _add(op: ops.Add, run: Run) -> Tensor:
    total = run.values[op.inputs[0]]
    for site in op.inputs[1:]:
        total = total + run.values[site]
    return total


def _linear(op: ops.Linear, run: Run) -> Tensor:
    x = run.values[op.input]
    weight = run.parameter(op.weight)
    product = torch.addmm(run.parameter(op.bias), x.reshape(-1, x.shape[-1]), weight)
    return product.view(*x.shape[:-1], weight.shape[1])


def _head_linear(op: ops.HeadLinear, run: Run) -> Tensor:
    x, weight, bias = run.values[op.input], run.parameter(op.weight), run.parameter(op.bias)
    heads, d_model, d_head = weight.shape
    if x.dim() == 4:
        return torch.einsum("bihd,hde->bihe", x, weight) + bias
    batch, length, _ = x.shape
    flat = weight.permute(1, 0, 2).reshape(d_model, heads * d_head)
    return torch.addmm(bias.reshape(-1), x.reshape(-1, d_model), flat).view(batch, length, heads, d_head)


def _scores(op: ops.Scores, run: Run) -> Tensor:
    query, key = run.values[op.query], run.values[op.key]
    scores = torch.einsum("bihe,bjhe->bhij", query, key)
    if op.scale != 1.0:
        scores = scores * op.scale
    if op.causal:
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def _softmax(op: ops.Softmax, run: Run) -> Tensor:
    x = run.values[op.input]
    weights = (x - x.amax(dim=-1, keepdim=True)).exp_()
    return weights / weights.sum(dim=-1, keepdim=True)


def _sparsemax(op: ops.Sparsemax, run: Run) -> Tensor:
    """The threshold by sorting: k entries are above it, k the most for which 1 + k z_k > z_1 + ... + z_k."""
    x = run.values[op.input]
    x = x - x.amax(dim=-1, keepdim=True)
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    sums = ordered.cumsum(-1) - 1
    above = ((count * ordered > sums).sum(-1, keepdim=True)).clamp(min=1)
    return (x - sums.gather(-1, above - 1) / above).clamp(min=0)


def _mix(op: ops.Mix, run: Run) -> Tensor:
    return torch.einsum("bhij,bjhe->bihe", run.values[op.pattern], run.values[op.value])


def _join(op: ops.Join, run: Run) -> Tensor:
    z, weight = run.values[op.input], run.parameter(op.weight)
    batch, length, heads, d_head = z.shape
    flat = torch.addmm(run.parameter(op.bias), z.reshape(-1, heads * d_head), weight.reshape(heads * d_head, -1))
    return flat.view(batch, length, weight.shape[2])


def _results(op: ops.Results, run: Run) -> Tensor:
    return torch.einsum("bihe,hed->bihd", run.values[op.input], run.parameter(op.weight))


def _activation(op: ops.Activation, run: Run) -> Tensor:
    return ACTIVATIONS[op.function](run.values[op.input])


def _normalise(op: ops.Normalise, run: Run) -> Tensor:
    x = run.values[op.input]
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + op.eps).sqrt()
    return centred / deviation * run.parameter(op.weight) + run.parameter(op.bias)


def _pool(op: ops.Pool, run: Run) -> Tensor:
    x = run.values[op.input]
    return x[:, -1] if op.how == "last" else x.mean(dim=1)


def _constant(op: ops.Constant, run: Run) -> Tensor:
    value = run.constants[op.constant]
    batch, length = run.tokens.shape
    return value.expand(batch, length, value.shape[-1])


def _sum_heads(op: ops.SumHeads, run: Run) -> Tensor:
    x = run.values[op.input]
    return x[:, :, list(op.heads)].sum(dim=2) + run.parameter(op.bias)


def _stack_heads(op: ops.StackHeads, run: Run) -> Tensor:
    return torch.stack([run.values[site] for site in op.inputs], dim=2)


def _replace(op: ops.Replace, run: Run) -> Tensor:
    return torch.where(run.constants[op.mask], run.constants[op.value], run.values[op.input])


def _project(op: ops.Project, run: Run) -> Tensor:
    x, value, projector = run.values[op.input], run.constants[op.value], run.constants[op.projector]
    if op.head is None:
        return x + (value - x) @ projector
    edited = x.clone()
    edited[:, :, op.head] += (value - x[:, :, op.head]) @ projector
    return edited


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
}

RULES: dict[type[Operation], Callable[[Any, Run], Tensor]] = {
    ops.Embed: _embed,
    ops.Position: _position,
    ops.Add: _add,
    ops.Linear: _linear,
    ops.HeadLinear: _head_linear,
    ops.Scores: _scores,
    ops.Softmax: _softmax,
    ops.Sparsemax: _sparsemax,
    ops.Mix: _mix,
    ops.Join: _join,
    ops.Results: _results,
    ops.Activation: _activation,
    ops.Normalise: _normalise,
    ops.Pool: _pool,
    ops.Constant: _constant,
    ops.SumHeads: _sum_heads,
    ops.StackHeads: _stack_heads,
    ops.Replace: _replace,
    ops.Project: _project,
}
