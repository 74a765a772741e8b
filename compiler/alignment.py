"""The alignment of a model with a core program: which component computes which node, and how.

For a compiled model it is ground truth. For any model it is an explanation, the skeleton of a composition proof
(`proofs/SPECIFICATION.md`, section 4): nothing in it is trusted, every statement is verified against the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .core import Bits, CoreProgram


@dataclass(frozen=True, eq=False)
class OneHot:
    """Value i is the unit vector of residual coordinate `dims[i]`; -1: the zero vector."""

    dims: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scalar:
    """Value i is `points[i]` at residual coordinate `dim`."""

    dim: int
    points: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Scaled:
    """`by` times another encoding; by = -1 clears what was written before."""

    by: int
    of: Encoding


Encoding: TypeAlias = OneHot | Scalar | Scaled


def encoding_matrix(encoding: Encoding, n_values: int, d_model: int) -> npt.NDArray[np.float64]:
    """The encoding as a matrix [values, d_model]."""
    if isinstance(encoding, Scaled):
        return encoding.by * encoding_matrix(encoding.of, n_values, d_model)
    matrix = np.zeros((n_values, d_model))
    if isinstance(encoding, OneHot):
        for value, dim in enumerate(encoding.dims):
            if dim >= 0:
                matrix[value, dim] = 1.0
    else:
        matrix[:, encoding.dim] = encoding.points
    return matrix


@dataclass(frozen=True, eq=False)
class Atom:
    """One comparison of a conjunction: `table[key value, query value]` of two nodes in the residual stream."""

    key: int
    query: int
    table: Bits


@dataclass(frozen=True, eq=False)
class HeadRole:
    """Head `head` of layer `layer` computes `node` (an aggregate or a width), selecting by the conjunction of `atoms`.

    `reads`: the nodes whose encodings its values are read from. `affine`: for a mean, (coordinate, offset, slope).
    """

    layer: int
    head: int
    node: int
    atoms: tuple[Atom, ...]
    reads: tuple[int, ...]
    encoding: Encoding
    affine: tuple[int, float, float] | None = None


@dataclass(frozen=True, eq=False)
class NeuronRole:
    """Neurons first..end-1 of layer `layer` compute `node` from `reads` and write it in `encoding`."""

    layer: int
    neurons: tuple[int, int]
    reads: tuple[int, ...]
    node: int
    encoding: Encoding


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """What each component of a model does, in terms of `program` (a core program extended by auxiliary definitions).

    `n_source` counts the nodes of the program the user wrote; later nodes are auxiliary.
    `width_sums[w]` states that width w is the sum of coefficient times width over the listed pairs.
    `width_shares`: (w, counted, inside), how w follows from the count with position 0 added and position 0's share.
    `decode_reads`: the nodes the logits are read from.
    """

    program: CoreProgram
    n_source: int
    heads: tuple[HeadRole, ...]
    neurons: tuple[NeuronRole, ...]
    width_sums: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    decode_reads: tuple[int, ...]
    width_shares: tuple[tuple[int, int, int], ...] = ()

    def __repr__(self) -> str:
        return f"<Alignment of {self.program.name!r}: {len(self.heads)} heads, {len(self.neurons)} groups of neurons>"

    def sites(self) -> list[dict[str, object]]:
        """For each node written by a component: name, site, coordinates of the residual stream."""
        rows: list[dict[str, object]] = []
        roles: list[HeadRole | NeuronRole] = [*self.heads, *self.neurons]
        for role in roles:
            inner: Encoding = role.encoding
            sign = 1
            while isinstance(inner, Scaled):
                sign *= inner.by
                inner = inner.of
            if sign < 0:
                continue
            dims = [d for d in inner.dims if d >= 0] if isinstance(inner, OneHot) else [inner.dim]
            if isinstance(role, HeadRole):
                site = f"blocks.{role.layer}.attn.hook_result[{role.head}]"
            else:
                site = f"blocks.{role.layer}.mlp.hook_post[{role.neurons[0]}:{role.neurons[1]}]"
            node = self.program.value_node(role.node)
            rows.append(
                {
                    "node": role.node,
                    "name": node.name or f"node {role.node}",
                    "site": site,
                    "encoding": "one-hot" if isinstance(inner, OneHot) else "scalar",
                    "dims": dims,
                    "values": len(node.values),
                }
            )
        return rows
