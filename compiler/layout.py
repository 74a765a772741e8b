"""Coordinates of the residual stream for a plan's representations, dead ones reused.

A representation is dead after its last read. Its coordinates can be given to another only once neurons have written
minus its content ("cleared" it), at the first MLP that runs no earlier than the last read; the new content may be
written by that MLP itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import neurons as nn
from .components import Axis, GroupPlan, Rep
from .plan import Plan


@dataclass(frozen=True, eq=False)
class Layout:
    """`d_model` with reuse, `d_model_without` if nothing were reused, and the clearing groups."""

    d_model: int
    d_model_without: int
    clears: list[GroupPlan]


def lay_out(plan: Plan, bos: bool, reuse: bool = True) -> Layout:
    """Choose `dims` for every representation of the plan (coordinate 0 marks BOS, if there is one)."""
    reps = [*plan.embeddings, *(h.out for h in plan.heads), *(g.out for g in plan.groups)]
    reps.sort(key=lambda rep: rep.written)
    kept = {id(rep) for rep in _output_reps(plan)}
    means = {id(head.out) for head in plan.heads if head.out.kind == "scalar" and not head.is_width}
    rough: set[int] = set()  # coordinates that held a mean: its error stays, and heads that read a one-hot magnify it
    used = 1 if bos else 0
    total = used + sum(rep.size for rep in reps)
    free: list[tuple[int, Rep, int, int]] = []  # (time of clearing, owner, local coordinate, coordinate)
    cleared: dict[tuple[int, int], tuple[Rep, int, list[int]]] = {}
    for rep in reps:
        dims: list[int] = []
        if reuse and rep.written >= 0:
            usable = [e for e in free if e[0] <= rep.written and (rep.kind == "scalar" or e[3] not in rough)]
            for entry in usable[: rep.size]:
                free.remove(entry)
                when, owner, local, dim = entry
                dims.append(dim)
                cleared.setdefault((when, id(owner)), (owner, when, []))[2].append(local)
        while len(dims) < rep.size:
            dims.append(used)
            used += 1
        rep.dims = np.array(dims, dtype=np.int64)
        if id(rep) in means:
            rough.update(dims)
        if id(rep) not in kept:
            last = max(rep.last_read, rep.written + 1)
            when = last if last % 2 else last + 1
            free += [(when, rep, local, dim) for local, dim in enumerate(dims)]
            free.sort(key=lambda entry: (entry[0], entry[3]))
    clears = [
        GroupPlan(when, rep.node, (rep.node,), nn.clear(rep, locals_), rep, clears=True)
        for rep, when, locals_ in cleared.values()
    ]
    return Layout(used, total, clears)


def _output_reps(plan: Plan) -> list[Rep]:
    if isinstance(plan.decode, Axis):
        return [rep for rep, _, _ in plan.decode.weights]
    return [plan.decode[0]]
