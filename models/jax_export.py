"""Models as JAX: the parameters as a pytree, and a jitted function that runs them, operation by operation as ours.

    params, forward = to_jax(model)
    logits = forward(params, tokens)                 # differentiable, and vmapped, as any function of JAX
    model = from_jax(params, model.config)           # the same weights, bit for bit

The extra `certiformer[jax]` is imported when a model is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from . import program as ops
from .config import TransformerConfig
from .edits import Edited
from .errors import InputError
from .execution import Plan, plan
from .program import LOGITS, Operation
from .sites import NamesFilter, select_sites
from .transformer import Transformer


def to_jax(model: Transformer | Edited, sites: NamesFilter = ()) -> tuple[dict[str, Any], Callable[..., Any]]:
    """`(params, forward)`: float32 arrays by our names, and a jitted `forward(params, tokens)` giving the logits.

    `tokens`: integers [batch, pos]; a token that is none of the model's gives NaN, as JAX can raise no error for it.
    With `sites` (as in `run_with_cache`), `forward` gives `(logits, {site: value})`. Products are in full float32 on
    every device. Raises `InputError`, also where jax is not installed.
    """
    jax = _jax()
    known = tuple(operation.output for operation in model.program)
    wanted = select_sites(sites, known)
    steps = plan(model.program, (*wanted, LOGITS))
    base = model.base if isinstance(model, Edited) else model
    constants = model.constants if isinstance(model, Edited) else {}
    kept = {name: np.asarray(value.detach().cpu()) for name, value in constants.items()}
    config = model.config
    params = {name: jax.numpy.asarray(weight.detach().cpu().numpy()) for name, weight in base.named_parameters()}

    def forward(params: Mapping[str, Any], tokens: Any) -> Any:
        if len(tokens.shape) != 2 or not 1 <= tokens.shape[1] <= config.n_ctx:
            raise InputError(f"tokens must be [batch, pos] with 1 to n_ctx = {config.n_ctx} tokens, got {tokens.shape}")
        values = _execute(steps, JaxRun(jax, tokens, params, kept))
        cache = {site: values[site] for site in wanted}
        return (values[LOGITS], cache) if wanted else values[LOGITS]

    return params, jax.jit(forward)


def from_jax(params: Mapping[str, Any], config: TransformerConfig) -> Transformer:
    """The model of parameters as `to_jax` gives them. Raises `InputError` listing all that does not fit."""
    arrays = {name: np.asarray(value) for name, value in params.items()}
    strange = [f"{name} is {value.dtype}, must be float32" for name, value in arrays.items() if value.dtype != "f4"]
    if strange:
        raise InputError(f"these weights do not fit the configuration: {'; '.join(strange)}")
    return Transformer.from_parameters(config, {name: torch.from_numpy(x.copy()) for name, x in arrays.items()})


def _jax() -> Any:
    try:
        import jax
        import jax.numpy
    except ImportError:
        raise InputError("models as JAX need the package jax: pip install 'certiformer[jax]'") from None
    return jax


@dataclass
class JaxRun:
    """The state of one run, as `execution.Run`."""

    jax: Any
    tokens: Any
    params: Mapping[str, Any]
    constants: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def np(self) -> Any:
        """jax.numpy."""
        return self.jax.numpy

    def einsum(self, formula: str, *operands: Any) -> Any:
        return self.np.einsum(formula, *operands, precision=self.jax.lax.Precision.HIGHEST)


def _execute(steps: Plan, run: JaxRun) -> dict[str, Any]:
    for operation, finished in steps.steps:
        run.values[operation.output] = RULES[type(operation)](operation, run)
        for site in finished:
            del run.values[site]
    return run.values


def _embed(op: ops.Embed, run: JaxRun) -> Any:
    tokens = run.np.where(run.tokens < 0, len(run.params[op.weight]), run.tokens)
    return run.params[op.weight].at[tokens].get(mode="fill", fill_value=math.nan)


def _position(op: ops.Position, run: JaxRun) -> Any:
    batch, length = run.tokens.shape
    weight = run.params[op.weight][:length]
    return run.np.broadcast_to(weight, (batch, length, weight.shape[1]))


def _add(op: ops.Add, run: JaxRun) -> Any:
    total = run.values[op.inputs[0]]
    for site in op.inputs[1:]:
        total = total + run.values[site]
    return total


def _linear(op: ops.Linear, run: JaxRun) -> Any:
    return run.einsum("...d,de->...e", run.values[op.input], run.params[op.weight]) + run.params[op.bias]


def _head_linear(op: ops.HeadLinear, run: JaxRun) -> Any:
    x = run.values[op.input]
    formula = "bihd,hde->bihe" if x.ndim == 4 else "bid,hde->bihe"
    return run.einsum(formula, x, run.params[op.weight]) + run.params[op.bias]


def _scores(op: ops.Scores, run: JaxRun) -> Any:
    scores = run.einsum("bihe,bjhe->bhij", run.values[op.query], run.values[op.key])
    if op.scale != 1.0:
        scores = scores * op.scale
    if op.causal:
        length = scores.shape[-1]
        scores = run.np.where(np.triu(np.ones((length, length), dtype=bool), 1), -math.inf, scores)
    return scores


def _softmax(op: ops.Softmax, run: JaxRun) -> Any:
    return run.jax.nn.softmax(run.values[op.input], axis=-1)


def _sparsemax(op: ops.Sparsemax, run: JaxRun) -> Any:
    x = run.values[op.input]
    x = x - x.max(axis=-1, keepdims=True)
    sums = run.np.cumsum(run.np.flip(run.np.sort(x, axis=-1), axis=-1), axis=-1)
    return run.jax.nn.relu(x - ((sums - 1) / np.arange(1, x.shape[-1] + 1)).max(axis=-1, keepdims=True))


def _mix(op: ops.Mix, run: JaxRun) -> Any:
    return run.einsum("bhij,bjhe->bihe", run.values[op.pattern], run.values[op.value])


def _join(op: ops.Join, run: JaxRun) -> Any:
    return run.einsum("bihe,hed->bid", run.values[op.input], run.params[op.weight]) + run.params[op.bias]


def _results(op: ops.Results, run: JaxRun) -> Any:
    return run.einsum("bihe,hed->bihd", run.values[op.input], run.params[op.weight])


def _activation(op: ops.Activation, run: JaxRun) -> Any:
    return ACTIVATIONS[op.function](run.jax.nn, run.values[op.input])


def _normalise(op: ops.Normalise, run: JaxRun) -> Any:
    x = run.values[op.input]
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = run.np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + op.eps)
    return centred / deviation * run.params[op.weight] + run.params[op.bias]


def _pool(op: ops.Pool, run: JaxRun) -> Any:
    x = run.values[op.input]
    return x[:, -1] if op.how == "last" else x.mean(axis=1)


def _constant(op: ops.Constant, run: JaxRun) -> Any:
    value = run.constants[op.constant]
    return run.np.broadcast_to(value, (*run.tokens.shape, value.shape[-1]))


def _sum_heads(op: ops.SumHeads, run: JaxRun) -> Any:
    x = run.values[op.input]
    return x[:, :, np.array(op.heads, dtype=int)].sum(axis=2) + run.params[op.bias]


def _stack_heads(op: ops.StackHeads, run: JaxRun) -> Any:
    return run.np.stack([run.values[site] for site in op.inputs], axis=2)


def _replace(op: ops.Replace, run: JaxRun) -> Any:
    return run.np.where(run.constants[op.mask], run.constants[op.value], run.values[op.input])


def _project(op: ops.Project, run: JaxRun) -> Any:
    x, value, projector = run.values[op.input], run.constants[op.value], run.constants[op.projector]
    if op.head is None:
        return x + run.einsum("...d,de->...e", value - x, projector)
    return x.at[:, :, op.head].add(run.einsum("...d,de->...e", value - x[:, :, op.head], projector))


ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda nn, x: nn.relu(x),
    "gelu": lambda nn, x: nn.gelu(x, approximate=False),
    "gelu_new": lambda nn, x: nn.gelu(x, approximate=True),
    "silu": lambda nn, x: nn.silu(x),
    "leaky_relu": lambda nn, x: nn.leaky_relu(x, 0.01),
}

RULES: dict[type[Operation], Callable[[Any, JaxRun], Any]] = {
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
