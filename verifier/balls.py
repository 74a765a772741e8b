"""Rigorous balls: a model program over the reals, enclosed in float64 tensors of midpoints and radii.

A `Ball(mid, rad)` stands for the set of real tensors x with |x - mid| <= rad in every entry. Each rule below obeys

    the exact real result of the operation, on any tensors inside the input balls, lies inside the output ball,

for any order of summation and with or without fused multiply-add, provided that float64 arithmetic rounds to nearest
and underflows gradually (`check_arithmetic` tests both). With u = 2^-53:

- |fl(a + b) - (a + b)| <= u |fl(a + b)|; a product or quotient can moreover lose at most 2^-1075 by underflow;
- a dot product of n terms loses at most gamma_n sum |x_i y_i| + n 2^-1074, with gamma_n = n u / (1 - n u) (Higham);
- a radius is computed by a chain of at most eight roundings of non-negative terms, so that multiplying it by 1 + 32 u
  and adding 2^-1000 (`_up`) makes it an upper bound; radii of dot products use gamma as well.

Weights are exact float32 numbers, or balls around them (`perturbed`). LayerNorm and smooth activations: `activations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..models import program as ops
from ..models.config import ROOT_SCALE, TransformerConfig
from ..models.errors import CertiformerError, InternalError
from ..models.program import LOGITS, Operation, Program, needed, reads

U = 2.0**-53
_UP = 1.0 + 2.0**-48
_TINY = 2.0**-1000


class Unsupported(CertiformerError):
    """No rigorous rule for this operation; the message names it."""


class RunsProgram(Protocol):
    """What is evaluated: a `Transformer`, or an edited copy of one."""

    @property
    def program(self) -> Program: ...

    @property
    def config(self) -> TransformerConfig: ...

    def parameter(self, name: str) -> Tensor: ...


class ReadsWeights(Protocol):
    """What is evaluated by balls: what `RunsProgram`, or all models near one (`perturbed`)."""

    @property
    def program(self) -> Program: ...

    @property
    def config(self) -> TransformerConfig: ...

    def parameter(self, name: str) -> Tensor | Ball: ...


@dataclass(frozen=True, eq=False)
class Ball:
    """The real tensors within `rad` (>= 0) of `mid`, entry by entry. Both float64, of one shape."""

    mid: Tensor
    rad: Tensor

    def low(self) -> Tensor:
        """Float64 lower bounds."""
        return torch.nextafter(self.mid - self.rad, _infinity(-1))

    def high(self) -> Tensor:
        """Float64 upper bounds."""
        return torch.nextafter(self.mid + self.rad, _infinity(1))

    def map(self, move: Callable[[Tensor], Tensor]) -> Ball:
        """`move` only rearranges, repeats or picks entries."""
        return Ball(move(self.mid), move(self.rad))


def _infinity(sign: int) -> Tensor:
    return torch.tensor(sign * math.inf, dtype=torch.float64)


def check_arithmetic() -> None:
    """Raises `InternalError` unless float64 rounds to nearest even and underflows gradually here, in torch."""
    one = torch.ones(8, dtype=torch.float64)
    nearest = bool((one + U == 1).all() and (one + 1.5 * U > 1).all() and (-one - U == -1).all())
    gradual = bool((one * 2.0**-1074 > 0).all() and (one * 2.0**-1022 / 2 > 0).all())
    if not (nearest and gradual):
        raise InternalError(
            "float64 arithmetic here does not round to nearest or flushes denormals; "
            "call torch.set_flush_denormal(False) and unset fast-math"
        )


def exact(value: Tensor) -> Ball:
    """A tensor of float32 or float64 numbers, taken exactly."""
    mid = value.detach().to(torch.float64)
    return Ball(mid, torch.zeros_like(mid))


def as_ball(value: Tensor | Ball) -> Ball:
    """A weight or constant as it is read: one that is a ball already stays as wide as it is."""
    return value if isinstance(value, Ball) else exact(value)


def _up(radius: Tensor) -> Tensor:
    """At least the real value that `radius` was computed for; see the module."""
    return radius * _UP + _TINY


def gamma(n: int) -> float:
    """At least n u / (1 - n u)."""
    return n * U / (1 - n * U) * _UP


def add(a: Ball, b: Ball) -> Ball:
    """a + b, broadcast."""
    mid = a.mid + b.mid
    return Ball(mid, _up(a.rad + b.rad + U * mid.abs()))


def negate(a: Ball) -> Ball:
    """-a, exactly."""
    return Ball(-a.mid, a.rad)


def multiply(a: Ball, b: Ball) -> Ball:
    """a * b, broadcast: |xy - mid| <= |a| s + r (|b| + s) + rounding, for radii r and s."""
    mid = a.mid * b.mid
    return Ball(mid, _up(a.mid.abs() * b.rad + a.rad * (b.mid.abs() + b.rad) + U * mid.abs()))


def matmul(a: Ball, b: Ball, contraction: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Ball:
    """The sum over the last axis of `a` of products, as `contraction(x, y)` takes it: dot products.

    |sum xy - mid| <= sum (r + gamma |a|) |b| + sum (|a| + r) s + underflow, for radii r and s.
    """
    n = a.mid.shape[-1]
    mid = contraction(a.mid, b.mid)
    size = a.mid.abs()
    rad = contraction(a.rad + gamma(n) * size + _TINY, b.mid.abs())
    if bool(b.rad.any()):
        rad = rad + contraction(size + a.rad, b.rad)
    return _known(mid, _up(rad * (1 + 2 * gamma(n + 8))))


def _known(mid: Tensor, rad: Tensor) -> Ball:
    """The ball; where a midpoint overflowed, any number at all."""
    lost = ~torch.isfinite(mid) | torch.isnan(rad)
    return Ball(mid.masked_fill(lost, 0.0), rad.masked_fill(lost, torch.inf)) if bool(lost.any()) else Ball(mid, rad)


def total(a: Ball, axis: int) -> Ball:
    """The sum over an axis, which stays with size 1."""
    n = a.mid.shape[axis]
    rad = a.rad.sum(axis, keepdim=True) + gamma(n) * a.mid.abs().sum(axis, keepdim=True)
    return _known(a.mid.sum(axis, keepdim=True), _up(rad * (1 + 2 * gamma(n + 8))))


def relu(a: Ball) -> Ball:
    """ReLU has slope at most 1, and is 0 where the whole ball is negative."""
    return Ball(a.mid.clamp(min=0.0), torch.where(a.mid < -a.rad, 0.0, a.rad))


def divide(a: Ball, b: Ball) -> Ball:
    """a / b for b > 0: |x/y - a/b| <= (r + |a/b| s) / (b - s). Raises `Unsupported` if b can reach 0."""
    least = torch.nextafter(b.mid - b.rad, _infinity(-1))
    if not bool((least > 0).all()):
        raise Unsupported("a softmax normaliser's ball reaches 0: its scores are known too roughly")
    mid = a.mid / b.mid
    return Ball(mid, _up((a.rad + (mid.abs() * _UP + _TINY) * b.rad) / least + U * mid.abs()))


# ln 2 = HIGH + LOW + t with |t| < 2^-85; HIGH has 32 significant bits, so k HIGH is exact for |k| < 2^21.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_COEFFICIENTS = tuple(1.0 / math.factorial(i) for i in range(14))
EXP_ERROR = 2.0**-45
EXP_LEAST = -700.0
ROUGH = 0.25


def _exp_point(x: Tensor) -> Tensor:
    """y with |y - exp(x)| <= 2^-46 exp(x), for -700 <= x <= 700.

    x = k ln 2 + r, |r| <= 0.35, r within 1.3 u; Taylor to degree 13 leaves 5e-18; Horner loses gamma_26 e^0.35,
    coefficients u each: together below 70 u = 70 * 2^-53 < 2^-46. Scaling by 2^k is exact in this range.
    """
    k = torch.round(x * 1.4426950408889634)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    y = torch.full_like(x, _COEFFICIENTS[13])
    for coefficient in reversed(_COEFFICIENTS[:13]):
        y.mul_(r).add_(coefficient)
    return y * ((k.to(torch.int64) + 1023) << 52).view(torch.float64)


def exp(a: Ball) -> Ball:
    """e^a for a <= 700: e^(mid + t) is within e^mid (|t| + t^2) of e^mid for |t| <= 1.

    Below -700 the result lies in [0, 2^-1000]. Raises `Unsupported` for larger radii or values.
    """
    if bool((a.rad > 1).any()) or bool((a.mid > -EXP_LEAST).any()):
        raise Unsupported("an exponential's argument is above 700 or known to no better than 1: scores are too rough")
    small = a.mid < EXP_LEAST
    mid = _exp_point(a.mid.clamp(min=EXP_LEAST))
    rad = _up(mid * (EXP_ERROR + (1 + EXP_ERROR) * (a.rad + a.rad * a.rad)))
    return Ball(torch.where(small, 0.0, mid), torch.where(small, 2.0**-1000, rad))


def softmax(a: Ball) -> Ball:
    """Over the last axis: e^(x_j - x_t) / sum_k e^(x_k - x_t) for the largest midpoint t, whose own term is exactly 1.

    So saturated attention stays tight however large its scores. An entry of minus infinity (masked) gets exactly 0.
    Rows with a difference known to no better than 1/4 get `_rough_shares`.
    """
    masked = torch.isneginf(a.mid)
    at = a.mid.argmax(-1, keepdim=True)
    top = Ball(a.mid.gather(-1, at), a.rad.gather(-1, at))
    shifted = add(Ball(torch.where(masked, top.mid, a.mid), a.rad), negate(top))
    shifted = Ball(shifted.mid.scatter(-1, at, 0.0), shifted.rad.scatter(-1, at, 0.0))
    rough = ~(shifted.rad <= ROUGH).all(-1, keepdim=True)
    weights = exp(Ball(torch.where(rough, 0.0, shifted.mid), torch.where(rough, 0.0, shifted.rad)))
    weights = Ball(weights.mid.scatter(-1, at, 1.0), weights.rad.scatter(-1, at, 0.0))
    weights = Ball(torch.where(masked, 0.0, weights.mid), torch.where(masked, 0.0, weights.rad))
    shares = divide(weights, total(weights, -1))
    if bool(rough.any()):
        wide = _rough_shares(shifted, masked, at)
        shares = Ball(torch.where(rough, wide.mid, shares.mid), torch.where(rough, wide.rad, shares.rad))
    return Ball(shares.mid, torch.where(masked, 0.0, shares.rad))


def _rough_shares(shifted: Ball, masked: Tensor, at: Tensor) -> Ball:
    """Softmax from differences to entry `at` that may be known very roughly, or (not finite) not at all.

    The share of j is least where its weight is least and the others' greatest, and the reverse: interval bounds on
    w_j / (w_j + sum of the others), with w_at = 1.
    """
    size = shifted.mid.shape[-1]
    up, down = 1 + 4 * gamma(size + 16) + EXP_ERROR, 1 - 4 * gamma(size + 16) - EXP_ERROR
    high = shifted.high().nan_to_num(nan=torch.inf)
    low = shifted.low().nan_to_num(nan=-torch.inf)
    most = _exp_point(high.clamp(min=EXP_LEAST, max=-EXP_LEAST)) * up
    most = torch.where(high > -EXP_LEAST, torch.inf, most)
    least = _exp_point(low.clamp(min=EXP_LEAST, max=-EXP_LEAST)) * down
    least = torch.where(low < EXP_LEAST, 0.0, least)
    most, least = (torch.where(masked, 0.0, weight).scatter(-1, at, 1.0) for weight in (most, least))
    rounding = 4 * gamma(size + 16)
    floor, ceiling = least.sum(-1, keepdim=True), most.sum(-1, keepdim=True)
    others = (floor - least - rounding * floor).clamp(min=0.0)
    greatest = torch.where(torch.isinf(most), 1.0, most / (most + others) * up).clamp(max=1.0)
    rest = (ceiling - most + rounding * ceiling).nan_to_num(nan=torch.inf, posinf=torch.inf)
    smallest = least / (rest + least) * down
    mid = (smallest + greatest) / 2
    return Ball(mid, _up((greatest - smallest).clamp(min=0.0) / 2 + 4 * U * mid))


def sparsemax(a: Ball) -> Ball:
    """Over the last axis: max(x_j - t, 0), t the threshold for which these sum to 1. An entry of minus infinity gets 0.

    t rises with every score, so that it lies between those of the lower ends and of the upper ends.
    """
    masked = torch.isneginf(a.mid)
    top = a.mid.amax(-1, keepdim=True)
    shift = add(Ball(torch.where(masked, top, a.mid), a.rad), negate(exact(top)))
    low = torch.where(masked, -torch.inf, shift.low())
    high = torch.where(masked, -torch.inf, shift.high())
    least, most = _threshold(low)[0], _threshold(high)[1]
    floor = (low - most).clamp(min=0.0) * (1 - 4 * U)
    ceiling = torch.where(high > least, ((high - least) * (1 + 4 * U) + _TINY).clamp(max=1.0), 0.0)
    mid = (floor + ceiling) / 2
    return Ball(mid, torch.where(ceiling > 0, _up((ceiling - floor).clamp(min=0.0) / 2 + 4 * U * mid), 0.0))


def _threshold(z: Tensor) -> tuple[Tensor, Tensor]:
    """At most and at least the t with g(t) = sum of max(z_j - t, 0) = 1 [.., 1].

    From any t', with g(t') = 1 + d: g falls by at least as much as t rises as long as it is above 0, so t <= t' + d for
    d > 0; and, if g(t') > 0, t >= t' + d for d < 0. Also t >= max z - 1.
    """
    n = z.shape[-1]
    ordered = z.sort(-1, descending=True).values
    sums = ordered.cumsum(-1) - 1
    count = torch.arange(1, n + 1, dtype=torch.float64)
    above = (count * ordered > sums).sum(-1, keepdim=True).clamp(min=1)
    guess = sums.gather(-1, above - 1) / above
    found = (z - guess).clamp(min=0.0).sum(-1, keepdim=True)
    slack = 4 * gamma(n + 4)
    rise = (found * (1 + slack) + n * _TINY - 1).clamp(min=0.0)
    fall = (1 - (found * (1 - slack) - n * _TINY)).clamp(min=0.0)
    bottom = _down(z.amax(-1, keepdim=True) - 1)
    least = torch.where(found > 0, _down(guess - fall * (1 + 4 * U)), bottom)
    return torch.maximum(least, bottom), -_down(-(guess + rise * (1 + 4 * U)))


def _down(x: Tensor) -> Tensor:
    """Below what was rounded to x."""
    return torch.nextafter(x, _infinity(-1))


@dataclass
class _Run:
    """One evaluation: `values` maps a site to its ball, batch first."""

    tokens: Tensor
    config: TransformerConfig
    parameter: Callable[[str], Tensor | Ball]
    constants: Mapping[str, Tensor | Ball]
    values: dict[str, Ball] = field(default_factory=dict)

    def weight(self, name: str) -> Ball:
        return as_ball(self.parameter(name))

    def constant(self, name: str) -> Ball:
        return as_ball(self.constants[name])


def enclose(
    model: ReadsWeights,
    tokens: Tensor,
    sites: tuple[str, ...] = (LOGITS,),
    replace: Mapping[str, Callable[[Ball], Ball]] | None = None,
) -> dict[str, Ball]:
    """Balls around the real values at `sites`, on integer tokens [batch, pos] that the model can read.

    `replace[site]` maps the value computed at a site to the one that later operations read (an intervention).
    Raises `Unsupported` where no rule is known, and for balls that grew too wide for one.
    """
    check_arithmetic()
    constants: Mapping[str, Tensor | Ball] = getattr(model, "constants", {})
    run = _Run(tokens.to(torch.int64), model.config, model.parameter, constants)
    program = needed(model.program, sites)
    last: dict[str, int] = {}
    for step, operation in enumerate(program):
        last.update(dict.fromkeys(reads(operation), step))
    with torch.no_grad():
        for step, operation in enumerate(program):
            value = RULES[type(operation)](operation, run)
            if replace and operation.output in replace:
                value = replace[operation.output](value)
            run.values[operation.output] = value
            for site in reads(operation):
                if last[site] == step and site not in sites:
                    run.values.pop(site, None)
    for site in sites:
        _finite(site, Ball(run.values[site].mid.nan_to_num(neginf=0.0), run.values[site].rad))
    return {site: run.values[site] for site in sites}


def _finite(site: str, ball: Ball) -> None:
    if not bool(torch.isfinite(ball.mid).all() and torch.isfinite(ball.rad).all()):
        raise Unsupported(f"float64 bounds overflow at {site}: the weights are too large")


def _embed(op: ops.Embed, run: _Run) -> Ball:
    return run.weight(op.weight).map(lambda w: w[run.tokens])


def _position(op: ops.Position, run: _Run) -> Ball:
    batch, length = run.tokens.shape
    return run.weight(op.weight).map(lambda w: w[:length].expand(batch, length, w.shape[1]))


def _add(op: ops.Add, run: _Run) -> Ball:
    result = run.values[op.inputs[0]]
    for site in op.inputs[1:]:
        result = add(result, run.values[site])
    return result


def _linear(op: ops.Linear, run: _Run) -> Ball:
    return add(matmul(run.values[op.input], run.weight(op.weight)), run.weight(op.bias))


def _per_head(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bihd,hde->bihe", x, w)


def _head_linear(op: ops.HeadLinear, run: _Run) -> Ball:
    x, weight, bias = run.values[op.input], run.weight(op.weight), run.weight(op.bias)
    heads, width, d_head = weight.mid.shape
    if x.mid.dim() == 4:
        return add(matmul(x, weight, _per_head), bias)
    flat = weight.map(lambda w: w.permute(1, 0, 2).reshape(width, heads * d_head))
    return add(matmul(x, flat).map(lambda t: t.view(*t.shape[:-1], heads, d_head)), bias)


def _scores(op: ops.Scores, run: _Run) -> Ball:
    query = run.values[op.query].map(lambda t: t.transpose(1, 2))
    key = run.values[op.key].map(lambda t: t.permute(0, 2, 3, 1))
    scores = matmul(query, key)
    if run.config.attention_scale == ROOT_SCALE:
        scale = torch.tensor(op.scale, dtype=torch.float64)
        scores = multiply(scores, Ball(scale, scale * 4 * U))
    elif op.scale != 1.0:
        scores = multiply(scores, exact(torch.tensor(op.scale, dtype=torch.float64)))
    _finite(op.output, scores)
    if op.causal:
        length = scores.mid.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = Ball(scores.mid.masked_fill(future, -torch.inf), scores.rad.masked_fill(future, 0.0))
    return scores


def _softmax(op: ops.Softmax, run: _Run) -> Ball:
    return softmax(run.values[op.input])


def _sparsemax(op: ops.Sparsemax, run: _Run) -> Ball:
    return sparsemax(run.values[op.input])


def _mix(op: ops.Mix, run: _Run) -> Ball:
    values = run.values[op.value].map(lambda t: t.transpose(1, 2))
    return matmul(run.values[op.pattern], values).map(lambda t: t.transpose(1, 2))


def _join(op: ops.Join, run: _Run) -> Ball:
    flat = run.values[op.input].map(lambda t: t.flatten(2))
    return add(matmul(flat, run.weight(op.weight).map(lambda w: w.flatten(0, 1))), run.weight(op.bias))


def _results(op: ops.Results, run: _Run) -> Ball:
    return matmul(run.values[op.input], run.weight(op.weight), _per_head)


def _activation(op: ops.Activation, run: _Run) -> Ball:
    from .activations import activation

    return activation(op.function, run.values[op.input])


def _normalise(op: ops.Normalise, run: _Run) -> Ball:
    from .activations import normalise

    return normalise(run.values[op.input], run.weight(op.weight), run.weight(op.bias), op.eps)


def _pool(op: ops.Pool, run: _Run) -> Ball:
    x = run.values[op.input]
    if op.how == "last":
        return x.map(lambda t: t[:, -1])
    mean = divide(total(x, 1), exact(torch.tensor(float(x.mid.shape[1]))))
    return mean.map(lambda t: t[:, 0])


def _constant(op: ops.Constant, run: _Run) -> Ball:
    batch, length = run.tokens.shape
    return run.constant(op.constant).map(lambda t: t.expand(batch, length, t.shape[-1]))


def _sum_heads(op: ops.SumHeads, run: _Run) -> Ball:
    picked = run.values[op.input].map(lambda t: t[:, :, list(op.heads)])
    return add(total(picked, 2).map(lambda t: t[:, :, 0]), run.weight(op.bias))


def _stack_heads(op: ops.StackHeads, run: _Run) -> Ball:
    parts = [run.values[site] for site in op.inputs]
    return Ball(torch.stack([p.mid for p in parts], 2), torch.stack([p.rad for p in parts], 2))


def _replace(op: ops.Replace, run: _Run) -> Ball:
    mask, value, x = run.constant(op.mask).mid.bool(), run.constant(op.value), run.values[op.input]
    return Ball(torch.where(mask, value.mid, x.mid), torch.where(mask, value.rad, x.rad))


def _project(op: ops.Project, run: _Run) -> Ball:
    x, value, projector = run.values[op.input], run.constant(op.value), run.constant(op.projector)
    part = x if op.head is None else x.map(lambda t: t[:, :, op.head])
    edited = add(part, matmul(add(value, negate(part)), projector))
    if op.head is None:
        return edited
    mid, rad = x.mid.clone(), x.rad.clone()
    mid[:, :, op.head], rad[:, :, op.head] = edited.mid, edited.rad
    return Ball(mid, rad)


RULES: dict[type[Operation], Callable[[Any, _Run], Ball]] = {
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
