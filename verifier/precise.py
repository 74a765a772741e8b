"""One sequence at a time, in balls of any precision: for what float64 balls leave undecided.

Compiled models that lost a weight often decide between logits that differ by e^-256. Rules as in `balls`, by arb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import flint
import torch
from torch import Tensor

from ..models import program as ops
from ..models.codec import Codec
from ..models.config import ROOT_SCALE
from ..models.program import LOGITS, needed
from .balls import RunsProgram, Unsupported

Matrix: TypeAlias = Any
PRECISIONS = (128, 1280)


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Arb computes with this many bits inside."""
    before = flint.ctx.prec
    flint.ctx.prec = bits
    try:
        yield
    finally:
        flint.ctx.prec = before


@dataclass
class _Run:
    model: RunsProgram
    tokens: list[int]
    weights: dict[str, list[Matrix]]
    values: dict[str, list[Matrix]] = field(default_factory=dict)

    def weight(self, name: str) -> list[Matrix]:
        """A parameter as matrices: one, or one for each head."""
        if name not in self.weights:
            value = self.model.parameter(name).detach().to(torch.float64)
            value = value.unsqueeze(0) if value.dim() == 1 else value
            blocks = value if value.dim() == 3 else value.unsqueeze(0)
            self.weights[name] = [flint.arb_mat(block.tolist()) for block in blocks]
        return self.weights[name]


def reading(model: RunsProgram, codec: Codec, ids: Tensor) -> Tensor:
    """bool [batch, pos, output]: what the exact real logits may decode to, at rising precision until it is decided.

    Raises `Unsupported` for operations without a rule.
    """
    weights: dict[str, list[Matrix]] = {}
    return torch.stack([_row(model, codec, row.tolist(), weights) for row in codec.with_bos(ids)])


def _row(model: RunsProgram, codec: Codec, tokens: list[int], weights: dict[str, list[Matrix]]) -> Tensor:
    result = torch.empty(0)
    for bits in PRECISIONS:
        with precision(bits):
            logits = _logits(model, tokens, weights)
            first = int(codec.bos) if model.config.readout == "each" else 0
            rows = range(first, logits.nrows())
            table = [[logits[i, o] for o in range(logits.ncols())] for i in rows]
            decode = _categorical if codec.kind == "categorical" else _scalar
            result = torch.tensor([decode(codec, row) for row in table])
        if bool((result.sum(-1) == 1).all()):
            break
    return result


def _categorical(codec: Codec, row: list[Any]) -> list[bool]:
    """Output o may be the first maximum iff no other is certainly larger, and no earlier one certainly as large."""

    def beaten(o: int) -> bool:
        return any(bool(row[k] > row[o]) or (k < o and bool(row[k] >= row[o])) for k in range(len(row)) if k != o)

    return [not beaten(o) for o in range(len(row))]


def _scalar(codec: Codec, row: list[Any]) -> list[bool]:
    """An output may be the nearest iff none is certainly nearer, and none listed before certainly as near."""
    points = [Fraction(point) for point in codec.points]

    def beaten(o: int, k: int) -> bool:
        middle = (points[o] + points[k]) / 2
        bound = flint.arb(flint.fmpq(middle.numerator, middle.denominator))
        if points[k] > points[o]:
            return bool(row[0] > bound) or (k < o and bool(row[0] >= bound))
        return bool(row[0] < bound) or (k < o and bool(row[0] <= bound))

    return [not any(beaten(o, k) for k in range(len(points)) if k != o) for o in range(len(points))]


def _logits(model: RunsProgram, tokens: list[int], weights: dict[str, list[Matrix]]) -> Matrix:
    run = _Run(model, tokens, weights)
    for operation in needed(model.program, (LOGITS,)):
        rule = RULES.get(type(operation))
        if rule is None:
            raise Unsupported(f"no high-precision rule for {type(operation).__name__.lower()}")
        run.values[operation.output] = rule(operation, run)
    (logits,) = run.values[LOGITS]
    return logits


def _rows(bias: Matrix, count: int) -> Matrix:
    """A bias [1, width] as `count` equal rows."""
    return flint.arb_mat([[1]] * count) * bias


def _embed(op: ops.Embed, run: _Run) -> list[Matrix]:
    table = run.model.parameter(op.weight).detach().to(torch.float64)
    return [flint.arb_mat(table[run.tokens].tolist())]


def _position(op: ops.Position, run: _Run) -> list[Matrix]:
    table = run.model.parameter(op.weight).detach().to(torch.float64)
    return [flint.arb_mat(table[: len(run.tokens)].tolist())]


def _add(op: ops.Add, run: _Run) -> list[Matrix]:
    total = run.values[op.inputs[0]][0]
    for site in op.inputs[1:]:
        total = total + run.values[site][0]
    return [total]


def _linear(op: ops.Linear, run: _Run) -> list[Matrix]:
    (x,), (weight,), (bias,) = run.values[op.input], run.weight(op.weight), run.weight(op.bias)
    return [x * weight + _rows(bias, x.nrows())]


def _head_linear(op: ops.HeadLinear, run: _Run) -> list[Matrix]:
    (x,), (bias,) = run.values[op.input], run.weight(op.bias)
    result = []
    for head, weight in enumerate(run.weight(op.weight)):
        own = flint.arb_mat([[bias[head, e] for e in range(bias.ncols())]])
        result.append(x * weight + _rows(own, x.nrows()))
    return result


def _scores(op: ops.Scores, run: _Run) -> list[Matrix]:
    config = run.model.config
    result = []
    for query, key in zip(run.values[op.query], run.values[op.key], strict=True):
        exact = config.attention_scale != ROOT_SCALE
        scale = flint.arb(op.scale) if exact else 1 / flint.arb(query.ncols()).sqrt()
        result.append(query * key.transpose() * scale)
    return result


def _softmax(op: ops.Softmax, run: _Run) -> list[Matrix]:
    causal = run.model.config.causal
    return [_shares(scores, causal) for scores in run.values[op.input]]


def _shares(scores: Matrix, causal: bool) -> Matrix:
    rows = []
    for i in range(scores.nrows()):
        seen = i + 1 if causal else scores.ncols()
        top = max((scores[i, j].mid() for j in range(seen)), key=float)
        weights = [(scores[i, j] - top).exp() for j in range(seen)]
        total = sum(weights, flint.arb(0))
        rows.append([weight / total for weight in weights] + [0] * (scores.ncols() - seen))
    return flint.arb_mat(rows)


def _sparsemax(op: ops.Sparsemax, run: _Run) -> list[Matrix]:
    causal = run.model.config.causal
    return [_projected(scores, causal) for scores in run.values[op.input]]


def _projected(scores: Matrix, causal: bool) -> Matrix:
    """From a guess of the threshold: where the shares that it gives sum to 1 + d > 0, it is off by at most |d|."""
    zero, one, rows = flint.arb(0), flint.arb(1), []
    for i in range(scores.nrows()):
        seen = i + 1 if causal else scores.ncols()
        row = [scores[i, j] for j in range(seen)]
        ordered = sorted((x.mid() for x in row), key=float, reverse=True)
        counts = range(1, seen + 1)
        above = [k for k in counts if float(1 + k * ordered[k - 1] - sum(ordered[:k], zero)) > 0]
        guess = ((sum(ordered[: max(above, default=1)], zero) - 1) / max(above, default=1)).mid()
        whole = sum(((x - guess).max(zero) for x in row), zero)
        off = abs(whole - 1).upper() if whole > 0 else flint.arb.pos_inf()
        threshold = flint.arb(guess, off)
        rows.append([(x - threshold).max(zero).min(one) for x in row] + [zero] * (scores.ncols() - seen))
    return flint.arb_mat(rows)


def _mix(op: ops.Mix, run: _Run) -> list[Matrix]:
    return [pattern * value for pattern, value in zip(run.values[op.pattern], run.values[op.value], strict=True)]


def _join(op: ops.Join, run: _Run) -> list[Matrix]:
    (bias,), parts = run.weight(op.bias), run.values[op.input]
    total = _rows(bias, parts[0].nrows())
    for z, weight in zip(parts, run.weight(op.weight), strict=True):
        total = total + z * weight
    return [total]


def _activation(op: ops.Activation, run: _Run) -> list[Matrix]:
    (x,) = run.values[op.input]
    function = ACTIVATIONS[op.function]
    return [flint.arb_mat([[function(x[i, j]) for j in range(x.ncols())] for i in range(x.nrows())])]


def _relu(x: Any) -> Any:
    return x.max(flint.arb(0))


def _gelu(x: Any) -> Any:
    return x * (1 + (x / flint.arb(2).sqrt()).erf()) / 2


def _gelu_new(x: Any) -> Any:
    cube = flint.arb(flint.fmpq(44715, 10**6)) * x * x * x
    return x * (1 + ((x + cube) * (2 / flint.arb.pi()).sqrt()).tanh()) / 2


def _silu(x: Any) -> Any:
    return x / (1 + (-x).exp())


def _normalise(op: ops.Normalise, run: _Run) -> list[Matrix]:
    (weight,), (bias,) = run.weight(op.weight), run.weight(op.bias)
    return [_normalised(x, weight, bias, flint.arb(op.eps)) for x in run.values[op.input]]


def _normalised(x: Matrix, weight: Matrix, bias: Matrix, eps: Any) -> Matrix:
    width = x.ncols()
    rows = []
    for i in range(x.nrows()):
        mean = sum((x[i, j] for j in range(width)), flint.arb(0)) / width
        centred = [x[i, j] - mean for j in range(width)]
        deviation = (sum((c * c for c in centred), flint.arb(0)) / width + eps).sqrt()
        rows.append([c / deviation * weight[0, j] + bias[0, j] for j, c in enumerate(centred)])
    return flint.arb_mat(rows)


def _pool(op: ops.Pool, run: _Run) -> list[Matrix]:
    (x,) = run.values[op.input]
    count = x.nrows()
    if op.how == "last":
        return [flint.arb_mat([[x[count - 1, j] for j in range(x.ncols())]])]
    return [flint.arb_mat([[1] * count]) * x * (1 / flint.arb(count))]


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "silu": _silu,
    "leaky_relu": lambda x: x.max(x / 100),
}

RULES: dict[type[ops.Operation], Callable[[Any, _Run], list[Matrix]]] = {
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
    ops.Activation: _activation,
    ops.Normalise: _normalise,
    ops.Pool: _pool,
}
