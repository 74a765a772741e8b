"""Planning selectors: conjunctions of atoms over nodes that have one-hots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import plan_maps
from .components import (
    PlanError,
)
from .core import (
    Select,
)
from .selectors import Term, disjoint_terms, split_product

if TYPE_CHECKING:
    from .plan import Planner

IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]


def terms(p: Planner, selector: int, single: bool) -> list[Term]:
    """Disjoint terms over nodes with one-hot representations; `single`: exactly one (product keys if need be)."""

    def leaf(index: int) -> list[Term]:
        op = p.nodes[index]
        assert isinstance(op, Select)
        if not single:
            parts = split_leaf(p, op)
            if parts is not None:
                return parts
        key, key_of = p.carrier(op.keys)
        query, query_of = p.carrier(op.queries)
        table = op.table[np.ix_(np.maximum(key_of, 0), np.maximum(query_of, 0))].copy()
        table[key_of < 0] = False
        table[:, query_of < 0] = False
        return [{(key.node, query.node): table}]

    try:
        found = disjoint_terms(p.nodes, selector, leaf)
    except OverflowError as error:
        remedy = "map keys and queries to fewer values, or make it one select of one predicate"
        raise PlanError(selector, f"{error}; {remedy}") from None
    if single and len(found) > 1:
        return product_keys(p, selector, found)
    return found


def split_leaf(p: Planner, op: Select) -> list[Term] | None:
    """A select of two joint values as a few terms over the parts, or None."""
    keys, queries = p.relevant(op.keys), p.relevant(op.queries)
    if len(keys) != 2 or len(queries) != 2 or any(p.natural(c) != "onehot" for c in (*keys, *queries)):
        return None
    key_table, query_table = p.table(op.keys, keys), p.table(op.queries, queries)
    if max(key_table.size, query_table.size) < 32 or key_table.size * query_table.size > 1 << 24:
        return None
    joint = op.table[np.maximum(key_table, 0)][:, :, np.maximum(query_table, 0)]
    joint = joint & (key_table >= 0)[:, :, None, None] & (query_table >= 0)[None, None]
    for flip_keys in (False, True):
        for flip_queries in (False, True):
            k = keys[::-1] if flip_keys else keys
            q = queries[::-1] if flip_queries else queries
            order = (*((1, 0) if flip_keys else (0, 1)), *((3, 2) if flip_queries else (2, 3)))
            found = split_product(joint.transpose(order), ((k[0], q[0]), (k[1], q[1])))
            if found is not None:
                for c in (*keys, *queries):
                    p.onehot(c)
                return found
    return None


def product_keys(p: Planner, selector: int, terms: list[Term]) -> list[Term]:
    """One atom over classes of joint keys and joint queries that select (are selected) alike."""
    keys = tuple(sorted({pair[0] for term in terms for pair in term}))
    queries = tuple(sorted({pair[1] for term in terms for pair in term}))
    shape = [len(p.values(n)) for n in (*keys, *queries)]
    if int(np.prod(shape)) > 1 << 24:
        raise PlanError(
            selector,
            f"one head has to select by {int(np.prod(shape[: len(keys)]))} joint values of the keys and "
            f"{int(np.prod(shape[len(keys) :]))} of the queries, more than {1 << 24} pairs; "
            "select by fewer or coarser values, or lower max_len",
            too_long=True,
        )
    table = np.zeros(shape, dtype=bool)
    for term in terms:
        holds = np.ones(shape, dtype=bool)
        for (key, query), atom in term.items():
            view = [1] * len(shape)
            view[keys.index(key)], view[len(keys) + queries.index(query)] = atom.shape
            holds = holds & atom.reshape(view)
        table |= holds
    flat = table.reshape(int(np.prod(shape[: len(keys)])), -1)
    key_rows, key_class = np.unique(flat, axis=0, return_inverse=True)
    columns, query_class = np.unique(key_rows, axis=1, return_inverse=True)
    key = class_node(p, keys, key_class, shape[: len(keys)], len(key_rows))
    query = class_node(p, queries, query_class, shape[len(keys) :], columns.shape[1])
    rows, cols = columns, columns
    if key == keys[0] and len(keys) == 1:
        rows = columns[key_class.reshape(-1)]
    cols = rows[:, query_class.reshape(-1)] if query == queries[0] and len(queries) == 1 else rows
    return [{(key, query): np.ascontiguousarray(cols)}]


def class_node(p: Planner, nodes: tuple[int, ...], classes: IntArray, shape: list[int], n: int) -> int:
    """The node that tells the classes of joint values apart."""
    if len(nodes) == 1:
        return nodes[0]
    table = classes.reshape(shape).astype(np.int32)
    auxiliary = plan_maps.auxiliary_map(p, nodes, table, n, "joint class")
    if auxiliary not in p.onehots:
        p.onehots[auxiliary] = plan_maps.product(p, auxiliary)
    return auxiliary
