"""What decompilation is told of a model: which component writes which variable, where, and in which encoding.

No operator, predicate, table or function of a program is in a sketch. Those are read off the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..compiler.alignment import Alignment, Encoding, OneHot, Scaled
from ..compiler.core import Value


@dataclass(frozen=True)
class Variable:
    """A variable's name, and the values that it can have, in the order of its encodings."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class HeadSite:
    """Head `head` of layer `layer` writes `variable`: it compares these pairs (key variable, query variable) and reads
    values from `reads`. `affine`: for a mean, (coordinate, offset, slope)."""

    layer: int
    head: int
    variable: int
    compares: tuple[tuple[int, int], ...]
    reads: tuple[int, ...]
    encoding: Encoding
    affine: tuple[int, float, float] | None

    @property
    def place(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False)
class NeuronSite:
    """Neurons first..end-1 of layer `layer` read `reads` and write `variable`."""

    layer: int
    neurons: tuple[int, int]
    variable: int
    reads: tuple[int, ...]
    encoding: Encoding

    @property
    def place(self) -> str:
        return f"the MLP of layer {self.layer}, neurons {self.neurons[0]} to {self.neurons[1] - 1}"

    @property
    def clears(self) -> bool:
        """Whether it writes minus a variable, to free its coordinates."""
        sign, inner = 1, self.encoding
        while isinstance(inner, Scaled):
            sign, inner = sign * inner.by, inner.of
        return sign < 0


@dataclass(frozen=True, eq=False)
class Sketch:
    """All of it. Variable 0 is the token and variable 1 the position; `decode_reads`: what the logits are read from."""

    variables: Mapping[int, Variable]
    heads: tuple[HeadSite, ...]
    neurons: tuple[NeuronSite, ...]
    decode_reads: tuple[int, ...]

    @staticmethod
    def of(alignment: Alignment) -> Sketch:
        """An alignment without its program: names, values, sites and encodings stay."""
        heads = tuple(
            HeadSite(r.layer, r.head, r.node, tuple((a.key, a.query) for a in r.atoms), r.reads, r.encoding, r.affine)
            for r in alignment.heads
        )
        neurons = tuple(NeuronSite(r.layer, r.neurons, r.node, r.reads, r.encoding) for r in alignment.neurons)
        used = {0, 1, *alignment.decode_reads}
        for head in heads:
            used |= {head.variable, *head.reads, *(side for pair in head.compares for side in pair)}
        for group in neurons:
            used |= {group.variable, *group.reads}
        nodes = {node: alignment.program.value_node(node) for node in sorted(used)}
        variables = {node: Variable(found.name, found.values) for node, found in nodes.items()}
        return Sketch(variables, heads, neurons, alignment.decode_reads)


def occurring(encoding: Encoding, n_values: int) -> tuple[bool, ...]:
    """Which values the encoding says occur: a one-hot has a coordinate for those that do."""
    inner = encoding
    while isinstance(inner, Scaled):
        inner = inner.of
    return tuple(dim >= 0 for dim in inner.dims) if isinstance(inner, OneHot) else (True,) * n_values
