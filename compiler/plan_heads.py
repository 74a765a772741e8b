"""Planning aggregates: heads that copy the one value selected, or average numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import plan_selectors
from .components import (
    AtomPlan,
    HeadPlan,
    PlanError,
    Rep,
    even,
    is_number,
    new_scalar,
    separated,
)
from .core import (
    Aggregate,
)
from .selectors import Term

if TYPE_CHECKING:
    from .plan import Planner

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]


def start(p: Planner, node: int, term: Term | None, ready: int) -> tuple[list[AtomPlan], int]:
    """The atoms of a head that selects by `term` (None: nothing) and reads from `ready` on, and its time."""
    if term is None:
        if not p.bos:
            p.report(
                PlanError(
                    node,
                    "its selection is always empty, and attention has to go somewhere: to the token for the beginning; "
                    "compile with bos=True",
                )
            )
        never = p.onehot(0)
        term = {(0, 0): np.zeros((len(p.values(0)),) * 2, dtype=bool)}
        ready = max(ready, never.ready)
    atoms = atoms_of(p, term)
    return atoms, even(max([ready, *(a.key.ready for a in atoms), *(a.query.ready for a in atoms)]))


def one_term(p: Planner, node: int, selector: int) -> Term | None:
    """The single term of a selector; None if nothing is ever selected."""
    found = plan_selectors.terms(p, selector, single=True)
    return found[0] if found else None


def atoms_of(p: Planner, term: Term) -> list[AtomPlan]:
    """The comparisons of a term, with the one-hots they compare."""
    return [AtomPlan(p.onehot(k), p.onehot(q), table) for (k, q), table in term.items()]


def need_selection(p: Planner, node: int, op: Aggregate) -> None:
    """Report an aggregate that may select nothing, where there is no BOS to attend to instead."""
    if not p.bos and not p.an.nonempty(op.selector):
        p.report(
            PlanError(
                node,
                "its selection may be empty, and attention has to go somewhere: to the token for the beginning; "
                "compile with bos=True, or select at least one position always",
            )
        )


def gather(p: Planner, node: int, op: Aggregate) -> Rep:
    """At most one value is selected (or all selected are equal): copy its one-hot."""
    need_selection(p, node, op)
    source, function = p.carrier(op.value)
    atoms, time = start(p, node, one_term(p, node, op.selector), source.ready)
    rep = p.new_onehot(node, time)
    index_of = {value: i for i, value in enumerate(op.values)}
    values = []
    for i, g in enumerate(function):
        target = index_of.get(p.values(op.value)[g], -1) if g >= 0 else -1
        if target >= 0 and rep.slot[target] >= 0 and source.slot[i] >= 0:
            values.append((source, int(source.slot[i]), int(rep.slot[target]), 1.0))
    sink = np.zeros(rep.size)
    if op.default >= 0 and rep.slot[op.default] >= 0:
        sink[rep.slot[op.default]] = 1.0
    p.add_head(HeadPlan(time, node, atoms, (source.node,), values, np.zeros(rep.size), sink, rep, False))
    return rep


def average(p: Planner, node: int, op: Aggregate) -> Rep:
    """The mean of numbers (or the copy of one) as a scalar."""
    if node in p.scalars:
        return p.scalars[node]
    need_selection(p, node, op)
    source = p.values(op.value)
    points = separated(op.values)
    if p.an.singular(node) and p.scalar_source(op.value):
        basis = p.relevant(op.value)[0]
        axis = p.affine_axis(op.value) if op.value != basis else p.axis(op.value)
        if not axis.affine:  # copied as they are; a default that is no value of the source gets its own place
            place = dict(zip(source, axis.points, strict=True))
            new = [i for i, value in enumerate(op.values) if value not in place]
            points = np.array([place.get(value, 0.0) for value in op.values])
            points[new] = np.floor(axis.points.min()) - 1.0 - np.arange(len(new))
    elif all(map(is_number, source)):
        axis = p.affine_axis(op.value)
    else:  # what is no number is selected together with equal values only
        axis = p.onehot_axis(op.value, dict(zip(op.values, points, strict=True)))
    atoms, time = start(p, node, one_term(p, node, op.selector), axis.ready)
    rep = new_scalar(node, points, time)
    values = [(r, i, 0, w) for r, i, w in axis.weights]
    sink = np.array([points[op.default] if op.default >= 0 else 0.0])
    head = HeadPlan(time, node, atoms, axis.reads, values, np.array([axis.bias]), sink, rep, False)
    head.affine = not p.an.singular(node)
    p.add_head(head)
    p.scalars[node] = rep
    return rep
