"""Where a composition breaks down: values of nodes on which some component does not do what its role says.

A heuristic for the search for counterexamples (nothing rests on it): each role is evaluated on the ideal encodings
in plain float64, and the tuples on which it is furthest from what it should write, or from selecting as it should,
are reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import HeadRole, NeuronRole
from ..compiler.core import Aggregate
from .abstract_state import Context, Failed, State
from .composition import Composition
from .rounding import Unbounded

Array = npt.NDArray[np.float64]
Suspect = tuple[dict[int, int], ...]
"""Node -> value index, a mapping per position: at some position all of the first, at some other all of the second."""

EACH = 4
DEVIATION = 1e-3


def suspects(context: Context) -> list[Suspect]:
    """The most deviant tuples of every component, the most deviant component first."""
    composition = Composition(context)
    found: list[tuple[float, Suspect]] = []
    with contextlib.suppress(Failed, Unbounded), np.errstate(over="ignore", under="ignore", invalid="ignore"):
        state = composition._start()
        for layer in range(len(context.config.layers)):
            for head in (r for r in context.alignment.heads if r.layer == layer):
                found += _head(context, state, head)
            composition._attention(state, layer)
            for group in (r for r in context.alignment.neurons if r.layer == layer):
                found += _group(context, state, group)
            composition._mlp(state, layer)
        found += _decode(context, state)
    found.sort(key=lambda item: -item[0])
    return [suspect for _, suspect in found]


def _worst(deviation: Array) -> list[int]:
    order = np.argsort(-deviation)[:EACH]
    return [int(i) for i in order if deviation[i] > DEVIATION]


def _group(c: Context, state: State, role: NeuronRole) -> list[tuple[float, Suspect]]:
    prefix = f"blocks.{role.layer}.mlp."
    span = slice(*role.neurons)
    into, bias, out = c.w[prefix + "W_in"][:, span], c.w[prefix + "b_in"][span], c.w[prefix + "W_out"][span]
    tuples, targets = c.tuples(role.reads, role.node, "suspects")
    pre = np.broadcast_to(state.const @ into + bias, (len(tuples), into.shape[1]))
    for column, node in enumerate(role.reads):
        if node in state.terms:
            pre = pre + (state.terms[node] @ into)[tuples[:, column]]
    encoding = c.encoding(role.node, role.encoding, "suspects")
    found: list[tuple[float, Suspect]] = []
    miss = np.abs(np.maximum(pre, 0) @ out - encoding[targets]).max(axis=1, initial=0.0)
    for row in _worst(miss):
        found.append((float(miss[row]), (dict(zip(role.reads, map(int, tuples[row]), strict=True)),)))
    for node, matrix in state.terms.items():
        if node not in role.reads:
            stray = np.where(c.possible(node), np.abs(matrix @ into).max(axis=1, initial=0.0), 0.0)
            found += [(float(stray[v]), ({node: v},)) for v in _worst(stray)]
    return found


def _head(c: Context, state: State, role: HeadRole) -> list[tuple[float, Suspect]]:
    prefix = f"blocks.{role.layer}.attn."
    w = {name: c.w[prefix + name][role.head] for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_V")}
    found: list[tuple[float, Suspect]] = []
    atoms = {(a.key, a.query): a.table for a in role.atoms}
    for s, keys in state.terms.items():
        for t, queries in state.terms.items():
            block = (keys @ w["W_K"]) @ (queries @ w["W_Q"]).T
            possible = c.possible(s)[:, None] & c.possible(t)[None, :]
            wanted = atoms.get((s, t))
            off = np.abs(block)
            if wanted is not None:
                typical = float(np.median(block[wanted])) if wanted.any() else 0.0
                off = np.abs(block - np.where(wanted, typical, 0.0))
            off = np.where(possible, off, 0.0)
            for flat in _worst(off.reshape(-1)):
                k, q = divmod(flat, off.shape[1])
                found.append((float(off[k, q]), ({t: q}, {s: k})))
    node = c.program.value_node(role.node)
    for s, matrix in state.terms.items():
        value = matrix @ w["W_V"] @ w["W_O"]
        if isinstance(node, Aggregate) and s in role.reads and role.affine is None:
            tuples, targets = c.tuples(role.reads, node.value, "suspects")
            if len(role.reads) != 1:
                continue
            index = {v: i for i, v in enumerate(node.values)}
            at = np.array([index.get(v, -1) for v in c.program.value_node(node.value).values])[targets]
            encoding = c.encoding(role.node, role.encoding, "suspects")
            miss = np.zeros(len(value))
            miss[tuples[at >= 0, 0]] = np.abs(value[tuples[at >= 0, 0]] - encoding[at[at >= 0]]).max(
                axis=1, initial=0.0
            )
        elif s in role.reads:
            continue
        else:
            miss = np.abs(value).max(axis=1, initial=0.0)
        miss = np.where(c.possible(s), miss, 0.0)
        found += [(float(miss[v]), ({s: v},)) for v in _worst(miss)]
    return found


def _decode(c: Context, state: State) -> list[tuple[float, Suspect]]:
    if c.codec.kind != "categorical":
        return []
    w, b = c.w["unembed.W_U"], c.w["unembed.b_U"]
    found: list[tuple[float, Suspect]] = []
    tables: Mapping[int, Array] = {n: m @ w for n, m in state.terms.items()}
    for node, table in tables.items():
        rows = table + state.const @ w + b
        if node in c.alignment.decode_reads:
            spread = np.sort(rows, axis=1)
            close = 1.0 - (spread[:, -1] - spread[:, -2]) if rows.shape[1] > 1 else np.zeros(len(rows))
        else:
            close = np.abs(table).max(axis=1, initial=0.0)
        close = np.where(c.possible(node), close, 0.0)
        found += [(float(close[v]), ({node: v},)) for v in _worst(close)]
    return found
