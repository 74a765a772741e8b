"""Rule `decode`: what the abstract residual stream at the end says about the decoded output (section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .bodies import Computes, Margin, NeverOutputs
from .core import Bits, Ints
from .exact import Exact, Radii, from_float32, from_fractions, grow, through
from .format import Value, require
from .joint import Joint, TooLarge
from .ranges import Ranges
from .state import State, broadcast, image, project
from .theorem import Theorem

MAX_LOGITS = 2**25


@dataclass(frozen=True, eq=False)
class Readout:
    """The residual stream at the end, the possible tuples of the nodes read, and the program's output on each.

    `wanted` is None if the theorem has no program.
    """

    theorem: Theorem
    ranges: Ranges
    state: State
    joint: Joint
    wanted: Sequence[Value] | None

    def check(self) -> None:
        """Every part of the body holds on every tuple."""
        outputs = {item: index for index, item in enumerate(self.theorem.codec.outputs)}
        index = None
        if self.wanted is not None:
            missing = [y for y in self.wanted if y not in outputs]
            require(not missing, f"the program's output {missing[:1]} is not among the codec's outputs")
            index = np.array([outputs[y] for y in self.wanted], dtype=np.int64)
        for part in self.theorem.parts:
            require(
                isinstance(part, (Computes, NeverOutputs, Margin)), "decode proves computes, never_outputs and margin"
            )
            forbidden = np.zeros(len(outputs), dtype=np.bool_)
            if isinstance(part, NeverOutputs):
                forbidden[[outputs[y] for y in part.outputs if y in outputs]] = True
            if not self.theorem.codec.categorical:
                self._nearest(index, forbidden)
            elif isinstance(part, Computes):
                self._largest(index, ~forbidden, forbidden, Fraction(0), strict=True)
            elif isinstance(part, NeverOutputs):
                self._largest(index, forbidden, forbidden, Fraction(0), strict=True)
            elif isinstance(part, Margin) and part.at_least > 0:
                self._largest(index, ~forbidden, forbidden, part.at_least, strict=False)

    # --- categorical -------------------------------------------------------------------------------------------

    def _largest(self, index: Ints | None, rivals: Bits, forbidden: Bits, margin: Fraction, strict: bool) -> None:
        """On each tuple there is an o, not forbidden (`index`, if given), with logit_o - logit_r > margin (>= if not
        strict) for all other rivals r."""
        weight = self.theorem.model.weights["unembed.W_U"]
        exact = from_float32(weight)
        if self.joint.size * weight.shape[1] > MAX_LOGITS:
            raise TooLarge(f"{self.joint.size} tuples times {weight.shape[1]} logits")
        tables = project(self.state, exact)
        center = self.state.const @ exact + from_float32(self.theorem.model.weights["unembed.b_U"])
        logits = broadcast(center, self.joint.size)
        for node, column in self.joint.columns.items():
            if node in tables:
                logits = logits + tables[node][column]
        if index is None:
            require(not forbidden.all(), "all outputs are forbidden")
            index = np.where(forbidden[None, :], -np.inf, logits.lower()).argmax(axis=1)
        require(not forbidden[index].any(), "the program can give a forbidden output")
        rest = remaining(tables, self.ranges, self.joint)
        least = Exact(np.array([margin.numerator]).astype(object), -(margin.denominator.bit_length() - 1))
        for o in np.unique(index):
            others = rivals.copy()
            others[o] = False
            if not others.any():
                continue
            rows = logits[index == o]
            difference = rows[:, o : o + 1] - rows[:, others] - least
            for table in rest.values():
                difference = difference + (table[:, o : o + 1] - table[:, others]).min()
            error = through_difference(self.state.eps, weight, int(o), others)
            low = difference.lower()
            good = exceeds(low, error, strict)
            if not good.all():
                row, rival = np.argwhere(~good)[0]
                name = self.theorem.codec.outputs
                lost = name[int(np.flatnonzero(others)[rival])]
                require(
                    False, f"the logit of {name[o]!r} may not exceed that of {lost!r} (bound {low[row, rival]:.3g})"
                )

    # --- scalar --------------------------------------------------------------------------------------------------

    def _nearest(self, index: Ints | None, forbidden: Bits) -> None:
        """On each tuple: |logit_0 - point(o)| is less than half the distance from point(o) to any other point."""
        points = self.theorem.codec.points
        weight = self.theorem.model.weights["unembed.W_U"][:, :1]
        exact = from_float32(weight)
        bias = from_float32(self.theorem.model.weights["unembed.b_U"][:1])
        constant = self.state.const @ exact + bias
        tables = project(self.state, exact)
        logit = image(tables, self.ranges, self.joint, constant, through(self.state.eps, weight))
        if index is None:
            near = logit.center.lower()[:, 0]
            index = np.array(
                [min(range(len(points)), key=lambda o: abs(points[o] - Fraction(x))) for x in near.tolist()]
            )
        require(not forbidden[index].any(), "the program can give a forbidden output")
        if len(points) == 1:
            return
        exact_points = from_fractions(list(points))
        column = Exact(exact_points.data[index][:, None], exact_points.exp)
        miss = grow((logit.center - column).magnitude() + logit.radius)[:, 0]
        good = miss < half_gaps(exact_points).lower()[index]
        if not good.all():
            worst = int(np.flatnonzero(~good)[0])
            name = self.theorem.codec.outputs[index[worst]]
            require(False, f"the logit for {name!r} may be {miss[worst]:.3g} off its point")


def remaining(tables: dict[int, Exact], ranges: Ranges, joint: Joint) -> dict[int, Exact]:
    """The rows of possible values of the nodes that are not read."""
    return {node: table[ranges.some(node)] for node, table in tables.items() if node not in joint.columns}


def exceeds(low: Radii, error: Radii, strict: bool) -> Bits:
    """Is a difference with lower bound `low`, up to `error`, surely above 0 (at least 0 if not strict)?"""
    return np.asarray((low > error) if strict else (low >= error))


def half_gaps(points: Exact) -> Exact:
    """Half the distance from each point to the nearest other (at least two points)."""
    order = np.argsort(points.data, kind="stable")
    ordered = points.data[order].astype(object)
    gaps = ordered[1:] - ordered[:-1]
    nearest = np.empty_like(ordered)
    nearest[order] = np.minimum(np.append(gaps, gaps[-1]), np.insert(gaps, 0, gaps[0]))
    return Exact(nearest, points.exp - 1)


def through_difference(eps: Radii, weight: np.ndarray, o: int, others: Bits) -> Radii:
    """Upper bounds of eps |W_o - W_r| for the rivals r."""
    wide = weight.astype(np.float64)
    gap = grow(np.abs(wide[:, o : o + 1] - wide[:, others]))
    with np.errstate(all="ignore"):
        return grow(eps @ gap)
