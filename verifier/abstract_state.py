"""The abstract state of a composition proof: what is known of the residual stream, for all inputs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Alignment, Encoding, OneHot, Scaled, encoding_matrix
from ..compiler.analysis import Analysis
from ..compiler.fibres import resolve_by_fibres
from ..compiler.first_position import resolve_width_share
from ..models import Codec, TransformerConfig
from .rounding import Enclosure, between, widen

Array = npt.NDArray[np.float64]
Tuples = npt.NDArray[np.int64]


class Failed(Exception):
    """A lemma that does not hold, or cannot be shown: which component, why, and values at which it fails."""

    def __init__(self, place: str, why: str, hint: Mapping[int, int] | None = None) -> None:
        super().__init__(f"{place}: {why}")
        self.place, self.why, self.hint = place, why, dict(hint or {})


@dataclass
class State:
    """Residual = const + sum of E_u[value of u] + e, |e| <= eps - sum of relief_u[value of u]; at BOS: in bos."""

    const: Array
    terms: dict[int, Array]
    eps: Array
    bos: Enclosure
    relief: dict[int, Array] = field(default_factory=dict)

    def add(self, node: int, matrix: Array) -> None:
        if node in self.terms:
            total = self.terms[node] + matrix
            back = (total - self.terms[node] != matrix) | (total - matrix != self.terms[node])
            self.eps = widen(self.eps + np.where(back, np.abs(total) * 2.0**-52, 0.0).max(axis=0), 2)
            matrix = total
        if matrix.any():
            self.terms[node] = matrix
        else:
            self.terms.pop(node, None)

    def relieve(self, node: int, relief: Array) -> None:
        """Besides, |e| is smaller than eps by `relief` [values, d_model], where the node has the value."""
        self.relief[node] = self.relief[node] + relief if node in self.relief else relief

    def shift(self, bias: Array) -> None:
        total = self.const + bias
        self.eps = widen(self.eps + np.where(self.const != 0, np.abs(total) * 2.0**-52, 0.0), 2)
        self.const = total
        self.bos = self.bos + Enclosure.exact(bias)


class Context:
    """A model, its alignment and the facts about its program, with the questions that every rule asks."""

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, npt.NDArray[np.float32]],
        codec: Codec,
        alignment: Alignment,
        analysis: Analysis,
    ) -> None:
        self.config, self.codec, self.alignment, self.an = config, codec, alignment, analysis
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.program = alignment.program
        self.sums = dict(alignment.width_sums)
        self.shares = {node: (counted, inside) for node, counted, inside in alignment.width_shares}
        self.max_len = max(analysis.lengths)
        self._ever: dict[int, npt.NDArray[np.bool_]] = {}

    def possible(self, node: int) -> npt.NDArray[np.bool_]:
        if node not in self._ever:
            self._ever[node] = self.an.ever(node)
        return self._ever[node]

    def rows(self, node: int, table: Enclosure) -> Enclosure:
        """Only the rows of possible values."""
        return table[self.possible(node)]

    def hull(self, node: int, table: Enclosure) -> tuple[Array, Array]:
        rows = self.rows(node, table)
        return rows.low.min(axis=0), rows.high.max(axis=0)

    def encoding(self, node: int, encoding: Encoding, place: str) -> Array:
        """The matrix [values, d_model] of an encoding of a node. Raises `Failed` if it fits the node or model ill."""
        n, d, inner = len(self.program.value_node(node).values), self.config.d_model, encoding
        while isinstance(inner, Scaled):
            inner = inner.of
        listed, dims = (inner.dims, inner.dims) if isinstance(inner, OneHot) else (inner.points, (inner.dim,))
        if len(listed) != n or not all(-1 <= dim < d for dim in dims) or not np.isfinite(listed).all():
            raise Failed(place, f"its encoding does not fit the {n} values of node {node} and {d} coordinates")
        return encoding_matrix(encoding, n, d)

    def tuples(self, reads: Sequence[int], node: int, place: str) -> tuple[Tuples, npt.NDArray[np.int64]]:
        """Possible value tuples of `reads` and the node's value index on each."""
        if len(set(reads)) != len(reads):
            raise Failed(place, f"it reads a node twice: {tuple(reads)}")
        resolved = None
        if self.shares.get(node) == tuple(reads):
            resolved = resolve_width_share(self.an, node, *self.shares[node])
        if resolved is None:
            resolved = self.an.resolve(node, tuple(reads), self.sums)
        if resolved is None:
            resolved = resolve_by_fibres(self.an, node, tuple(reads))
        if resolved is None:
            raise Failed(place, f"node {node} is not determined by nodes {tuple(reads)}")
        tuples = np.argwhere(resolved >= 0)
        return tuples, resolved[resolved >= 0].astype(np.int64)

    def others(self, state: State, reads: Sequence[int], tables: Mapping[int, Enclosure], width: int) -> Enclosure:
        """The hull of the sum over all nodes that are not read."""
        low, high = np.zeros(width), np.zeros(width)
        for node in state.terms:
            if node not in reads:
                below, above = self.hull(node, tables[node])
                low = np.nextafter(low + below, -np.inf)
                high = np.nextafter(high + above, np.inf)
        return Enclosure.exact(np.zeros(width)) if self.null(state, reads, tables) else between(low, high)

    def null(self, state: State, reads: Sequence[int], tables: Mapping[int, Enclosure]) -> bool:
        return all(
            not rows.mid.any() and not rows.rad.any()
            for rows in (self.rows(n, tables[n]) for n in state.terms if n not in reads)
        )
