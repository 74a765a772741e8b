"""Planning widths: counted by the share of attention that a sink keeps for itself."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..models.errors import InternalError
from . import plan_heads, plan_selectors
from .components import (
    Axis,
    GroupPlan,
    HeadPlan,
    PlanError,
    Rep,
    Weights,
    axis_of,
    new_scalar,
    odd,
    points_of,
)
from .core import (
    Aggregate,
    And,
    Map,
    Or,
    Select,
    Width,
    canonical,
    normalise,
)
from .first_position import selects_first
from .selectors import Term

if TYPE_CHECKING:
    from .plan import Planner

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]


def width_axis(p: Planner, node: int, op: Width) -> Axis:
    """A number line that carries a width: the share of one head, or the sum of several counts."""
    if not p.bos:
        return width_without_bos(p, node, op)
    terms = plan_selectors.terms(p, op.selector, single=False)
    if len(terms) > 8:
        terms = plan_selectors.terms(p, op.selector, single=True)
    if len(terms) <= 1:
        rep = share(p, node, terms[0] if terms else None)
        return axis_of(node, rep, False)
    axes = []
    for term in terms:
        axes.append(count_axis_of_term(p, term_width(p, term, node)))
    parts = [a.over for a in axes]
    p.width_sums[node] = tuple((p, 1) for p in parts)
    return Axis(
        node,
        tuple(parts),
        [w for a in axes for w in a.weights],
        0.0,
        points_of(op.values),
        True,
        max(a.ready for a in axes),
    )


def count_axis_of_term(p: Planner, width: int) -> Axis:
    """The width of one term as a plain number."""
    raw = p.axes.get(width)
    if raw is None:
        raise InternalError(f"{p.name(width)}: a part of a selection was not planned; please report this")
    if width not in p.counts:
        p.counts[width] = axis_of(width, digitise_term(p, width, raw), True)
    return p.counts[width]


def digitise_term(p: Planner, width: int, axis: Axis) -> Rep:
    """The width of one term, written as a number."""
    time = odd(axis.ready)
    rep = new_scalar(width, points_of(p.values(width)), time)
    function = np.arange(len(p.values(width)))
    found = p.neurons(width, axis, function, rep, p.values(width))
    p.add_group(GroupPlan(time, width, axis.reads, found.neurons, rep, line=axis, tolerance=found.tolerance))
    return rep


def term_width(p: Planner, term: Term, parent: int) -> int:
    """An auxiliary width of one term, with its head."""
    key = ("width", tuple(sorted((pair, table.tobytes()) for pair, table in term.items())))
    if key in p.auxiliaries:
        return p.auxiliaries[key]
    selector = -1
    for (k, q), table in term.items():
        leaf = p.append(Select(k, q, table, ""))
        selector = leaf if selector < 0 else p.append(And(selector, leaf, ""))
    if selector < 0:
        n = len(p.values(0))
        selector = p.append(Select(0, 0, np.ones((n, n), dtype=bool), ""))
    width = p.append(Width(selector, tuple(range(p.core.max_len + 1)), f"part of {p.name(parent)}"))
    p.axes[width] = axis_of(width, share(p, width, term), False)
    p.auxiliaries[key] = width
    return width


def share(p: Planner, node: int, term: Term | None) -> Rep:
    """BOS is selected beside the keys and alone has value 1: the head reads 1 / (1 + width)."""
    if not p.bos:
        p.report(
            PlanError(node, "counting selected positions needs the token for the beginning; compile with bos=True")
        )
    atoms, time = plan_heads.start(p, node, term, 0)
    points = np.array([1.0 / (1 + w) for w in p.values(node)])  # type: ignore[operator]
    rep = new_scalar(node, points, time)
    p.add_head(HeadPlan(time, node, atoms, (), [], np.zeros(1), np.ones(1), rep, True))
    return rep


def width_without_bos(p: Planner, node: int, op: Width) -> Axis:
    """Position 0 stands in for BOS: where it is always selected, its share is 1 / width.

    Otherwise one head counts with position 0 added to the selection, and another tells by the share of position 0
    in the selection itself (0, or 1 / width) whether it had been in it.
    """
    if not p.an.nonempty(op.selector):
        p.report(
            PlanError(
                node,
                "it counts a selection that may be empty, which takes the token for the beginning; "
                "compile with bos=True",
            )
        )
    first = np.array([v == 0 for v in p.values(1)])
    if selects_first(p.an, op.selector):
        return axis_of(node, share_of_first(p, node, plan_heads.one_term(p, node, op.selector)), False)
    values = p.values(1)
    zero = p.append(Select(1, 1, np.repeat(first[:, None], len(values), axis=1), ""))
    either = p.append(Or(op.selector, zero, ""))
    counted = p.append(Width(either, tuple(range(p.core.max_len + 1)), f"{p.name(node)} with position 0"))
    whole = axis_of(counted, share_of_first(p, counted, plan_heads.one_term(p, counted, either)), False)
    is_first = p.append(Map((1,), first.astype(np.int32), (False, True), "is position 0"))
    means = canonical(Fraction(k, m) for m in range(1, p.core.max_len + 1) for k in range(m + 1))
    shares = tuple(normalise(v) for v in means)
    inside = p.append(Aggregate(op.selector, is_first, -1, shares, f"share of position 0 in {p.name(node)}"))
    positions = p.onehot(1)
    atoms, time = plan_heads.start(p, node, plan_heads.one_term(p, inside, op.selector), positions.ready)
    rep = new_scalar(inside, points_of(shares), time)
    weights = [(positions, int(positions.slot[0]), 0, 1.0)]
    mean = not p.an.at_most_one(op.selector)
    head = HeadPlan(time, inside, atoms, (1,), weights, np.zeros(1), np.zeros(1), rep, False, mean)
    p.add_head(head)
    p.width_shares[node] = (counted, inside)
    points = 1.0 / (points_of(p.values(node)) + 1.0)  # position 0 not selected
    return membership_axis(p, node, whole, rep, points)


def membership_axis(p: Planner, node: int, whole: Axis, inside: Rep, points: Array) -> Axis:
    """1 / counted - 4 * share: positive where position 0 was not selected, -3 / width where it was."""
    values = np.array([float(w) for w in p.values(node)])  # type: ignore[arg-type]
    line = np.concatenate([points, -3.0 / np.maximum(values, 0.5)])
    function = np.concatenate([np.arange(len(values))] * 2)
    possible = np.concatenate([p.an.ever(node) & (values >= 1)] * 2)
    weights: Weights = [*whole.weights, (inside, 0, -4.0)]
    reads = tuple(sorted((*whole.reads, inside.node)))
    axis = Axis(node, reads, weights, 0.0, line, False, max(whole.ready, inside.ready))
    time = odd(axis.ready)
    rep = new_scalar(node, points_of(p.values(node)), time)
    labels = tuple(float(p) for p in line)
    found = p.neurons(node, axis, np.where(possible, function, -1), rep, labels)
    p.add_group(GroupPlan(time, node, reads, found.neurons, rep, line=axis, tolerance=found.tolerance))
    return axis_of(node, rep, True)


def share_of_first(p: Planner, node: int, term: Term | None) -> Rep:
    """A head that reads the share of position 0: 1 / width where it is always selected."""
    positions = p.onehot(1)
    atoms, time = plan_heads.start(p, node, term, positions.ready)
    points = 1.0 / np.maximum(1.0, points_of(p.values(node)))
    rep = new_scalar(node, points, time)
    values = [(positions, int(positions.slot[0]), 0, 1.0)]
    p.add_head(HeadPlan(time, node, atoms, (1,), values, np.zeros(1), np.zeros(1), rep, True))
    return rep
