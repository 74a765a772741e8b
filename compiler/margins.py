"""The margin a plan guarantees by construction: softmax leakage and rounding, bounded and carried to the read-out.

All bounds are on the model in exact arithmetic, with its float32 weights, as all theorems are. They follow the order of
computation, one rule for each kind of component; the error of a one-hot is the sum over its coordinates. A head lets at
most n exp(-gap) of its attention go to keys that are not selected; errors of the keys and queries it compares make the
selected weigh unequal by a factor of exp(2 error). Thresholds give exact values while their reading is off by less
than their tolerance, so that errors do not add up from digit to digit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .components import Axis, GroupPlan, HeadPlan, Rep, Weights
from .emit import GAIN, BosErrors
from .layout import Layout
from .plan import Plan

UNIT = 2.0**-24


def design_margin(plan: Plan, layout: Layout, bos: bool, bos_errors: dict[int, BosErrors], n_outputs: int) -> float:
    """The least guaranteed gap of the read-out; see `Compiled.margin`.

    `bos_errors`: by identity of the head, what rounding leaves of the correction for the position of BOS.
    """
    if n_outputs < 2:
        return math.inf
    errors = _Errors(np.zeros(layout.d_model), plan.program.max_len + int(bos), bos, bos_errors)
    for rep in plan.embeddings:
        errors.of[id(rep)] = 0.0
    components: list[HeadPlan | GroupPlan] = [*layout.clears, *plan.heads, *plan.groups]
    for component in sorted(components, key=lambda item: item.time):  # stable: clears come first
        if isinstance(component, HeadPlan):
            errors.write(component.out, errors.head(component))
        elif component.clears:
            errors.clear(component)
        else:
            errors.write(component.out, errors.group(component))
    if isinstance(plan.decode, Axis):
        line = np.sort(plan.decode.points)
        found = float(np.diff(line).min()) / 2 - errors.line(plan.decode.weights, plan.decode.bias)
    else:
        found = 1.0 - errors.of[id(plan.decode[0])]
    return max(0.0, found) if math.isfinite(found) else 0.0


@dataclass(eq=False)
class _Errors:
    """Bounds `of` representations by identity, and what those that are cleared leave at each coordinate (`left`)."""

    left: np.ndarray[tuple[int], np.dtype[np.float64]]
    n_keys: int
    bos: bool
    bos_errors: dict[int, BosErrors]
    of: dict[int, float] = field(default_factory=dict)

    def write(self, rep: Rep, error: float) -> None:
        self.of[id(rep)] = error + float(self.left[rep.dims].sum())

    def clear(self, group: GroupPlan) -> None:
        for neuron in group.neurons:
            for rep, local, _ in neuron.writes:
                self.left[rep.dims[local]] = self.of[id(rep)]

    def read(self, weights: Weights) -> float:
        """How far off a weighted sum is: by the errors of what it sums, and by the rounding of the weights."""
        total = 0.0
        by_rep: dict[int, tuple[Rep, dict[int, float]]] = {}
        for rep, local, weight in weights:
            listed = by_rep.setdefault(id(rep), (rep, {}))[1]
            listed[local] = listed.get(local, 0.0) + weight
        for rep, listed in by_rep.values():
            array = np.array(list(listed.values()))
            rounding = np.abs(array.astype(np.float32).astype(float) - array)
            if rep.kind == "onehot":  # one coordinate is 1, the others are 0
                total += float((np.abs(array) + rounding).max()) * self.of[id(rep)] + float(rounding.max())
            else:
                assert rep.points is not None
                reach = float(np.abs(rep.points).max(initial=0.0))
                total += float((np.abs(array) + rounding).sum()) * self.of[id(rep)] + float(rounding.sum()) * reach
        return total

    def line(self, weights: Weights, bias: float) -> float:
        """A number line read by thresholds or off a logit; biases are rounded too."""
        return self.read(weights) + 2 * UNIT * abs(bias)

    def head(self, head: HeadPlan) -> float:
        at_bos = self.bos_errors.get(id(head), BosErrors(0.0, 0.0))
        score = at_bos.score
        for atom in head.atoms:
            key, query = self.of[id(atom.key)], self.of[id(atom.query)]
            score += GAIN * (key + query + key * query)
        gap = GAIN if head.is_width or not self.bos else GAIN / 2
        if not 2 * score < gap / 2:
            return math.inf
        leak = self.n_keys * math.exp(2 * score - gap)
        if head.out.kind == "onehot":
            size = 1.0
        else:
            assert head.out.points is not None
            size = max(float(np.abs(head.out.points).max(initial=0.0)), float(np.abs(head.sink).max(initial=0.0)), 1.0)
        uneven = math.expm1(2 * score) if head.is_width or head.affine else 0.0
        return self.read([(rep, i, w) for rep, i, _, w in head.values]) + 2 * size * (leak + uneven) + at_bos.value

    def group(self, group: GroupPlan) -> float:
        writes = [weight for neuron in group.neurons for _, _, weight in neuron.writes]
        rounding = float(np.abs(np.array(writes, np.float32).astype(float) - np.array(writes)).sum()) if writes else 0.0
        if group.line is not None:
            line = group.line
            reach = float(np.abs(line.points).max(initial=0.0)) + abs(line.bias)
            off = self.line(line.weights, line.bias) + 2 * UNIT * reach  # thresholds are rounded
            return rounding if off < group.tolerance else math.inf
        passed_on = 0.0
        for neuron in group.neurons:  # a lookup does not saturate
            size = sum(abs(weight) for _, _, weight in neuron.writes)
            passed_on += size * self.read(neuron.weights) if neuron.weights else 0.0
        return rounding + passed_on
