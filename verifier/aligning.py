"""An alignment read off the weights of a model whose components each write coordinates of their own, as Tracr's do.

Nothing here is trusted: what comes out is verified like any other alignment, so a wrong guess cannot prove anything.
The walk mirrors `composition` in plain float64: a head is compared with the program's aggregates and widths, a group of
neurons with all its value nodes, by what they do on the possible values of what they read. What the program has
no node for is defined by an auxiliary one. (Tracr's layout: D. Lindner et al., 2023, sections 3 and 4.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Alignment, Atom, Encoding, HeadRole, NeuronRole, OneHot, Scalar, encoding_matrix
from ..compiler.analysis import NO_DEFAULT, Analysis, aggregate_range, map_words, width_range
from ..compiler.core import Aggregate, Bits, Map, Node, Select, Value, ValueNode, Width
from ..compiler.fibres import resolve_by_fibres
from ..compiler.ranges import Refused, Words
from ..models import Codec, TransformerConfig
from .abstract_state import Failed
from .mean_sums import mean_sum
from .selector_identity import same_selector

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MAX_TUPLES = 1 << 21
NEAR = 0.02
"""Outputs for one value may differ by this share of the least distance between those for two."""
NEGLIGIBLE = 1e-9
HALF = 0.45
"""What is nearer than this to a unit vector is one, with an error."""


def align(
    config: TransformerConfig,
    weights: Mapping[str, npt.NDArray[np.float32]],
    codec: Codec,
    analysis: Analysis,
    labels: Sequence[str] = (),
    step: Callable[[str], None] = lambda _: None,
) -> Alignment:
    """What each component of the model does in terms of `analysis.core`. Raises `Failed` naming the component.

    `labels`: of the coordinates, those of one variable being equal up to the first ":"; without them, neurons belong
    together that write to one coordinate.
    """
    families = families_of(labels, config.d_model)
    try:
        return _Aligning(config, weights, codec, analysis, families, step).run()
    except Refused as why:
        raise Failed("alignment", f"a definition that it needs is refused: {why}") from None


@dataclass
class _Stream:
    """The residual stream at a position: const + the sum of terms[u][value of u]; at BOS: bos. No errors are kept."""

    terms: dict[int, Array]
    const: Array
    bos: Array

    def add(self, node: int, matrix: Array) -> None:
        self.terms[node] = self.terms[node] + matrix if node in self.terms else matrix


@dataclass
class _Aligning:
    """One walk through the layers."""

    config: TransformerConfig
    weights: Mapping[str, npt.NDArray[np.float32]]
    codec: Codec
    analysis: Analysis
    families: Ints
    step: Callable[[str], None]
    heads: list[HeadRole] = field(default_factory=list)
    groups: list[NeuronRole] = field(default_factory=list)
    sums: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def run(self) -> Alignment:
        n_source = len(self.analysis.core.nodes)
        with np.errstate(all="ignore"):
            stream = self._start()
            for layer, shape in enumerate(self.config.layers):
                if shape.n_heads:
                    self._heads(stream, layer)
                if shape.d_mlp:
                    self._neurons(stream, layer)
        logits = {n: table @ self._weight("unembed.W_U") for n, table in stream.terms.items()}
        sums = tuple(sorted(self.sums.items()))
        reads = self._told(logits)
        return Alignment(self.analysis.core, n_source, tuple(self.heads), tuple(self.groups), sums, reads)

    def _weight(self, name: str) -> Array:
        return np.asarray(self.weights[name], dtype=np.float64)

    def _start(self) -> _Stream:
        core, shift = self.analysis.core, int(self.codec.bos)
        embed, d = self._weight("embed.W_E"), self.config.d_model
        if self.codec.vocab != core.vocab or len(embed) < len(core.vocab) + shift:
            raise Failed("codec", "its vocabulary is not the program's")
        terms, bos = {0: embed[: len(core.vocab)]}, np.zeros(d)
        if shift:
            bos = bos + embed[len(core.vocab)]
        if "pos_embed.W_pos" in self.weights:
            places = self._weight("pos_embed.W_pos")
            rows = np.zeros((core.max_len, d))
            found = places[shift : shift + core.max_len]
            rows[: len(found)] = found
            terms[1] = rows
            bos = bos + places[0]
        return _Stream({n: rows for n, rows in terms.items() if rows.any()}, np.zeros(d), bos)

    # -- questions about values --------------------------------------------------------------------------------------

    def _told(self, tables: Mapping[int, Array]) -> tuple[int, ...]:
        """The nodes whose tables are not the same for all possible values."""
        return tuple(
            sorted(n for n, t in tables.items() if np.ptp(t[self.analysis.ever(n)], axis=0).max() > NEGLIGIBLE)
        )

    def _tuples(self, reads: Sequence[int], place: str) -> Ints:
        """[tuple, node]: the possible tuples of values."""
        if math.prod(len(self._node(n).values) for n in reads) > MAX_TUPLES:
            raise Failed(place, f"it reads too many values together, of nodes {reads}")
        return np.argwhere(self.analysis.possible_tuples(reads))

    def _node(self, index: int) -> ValueNode:
        return self.analysis.core.value_node(index)

    def _value_nodes(self) -> Iterable[int]:
        return (i for i, node in enumerate(self.analysis.core.nodes) if hasattr(node, "values"))

    def _on(self, node: int, reads: tuple[int, ...], tuples: Ints) -> Ints | None:
        """The node's value index on each tuple (-1: the tuple cannot occur); None if it is not determined."""
        found = self.analysis.resolve(node, reads, self.sums)
        if found is None:
            found = resolve_by_fibres(self.analysis, node, reads)
        if found is None:
            return None
        found = np.broadcast_to(found, [len(self._node(n).values) for n in reads])
        return np.asarray(found[tuple(tuples.T)]).reshape(-1).astype(np.int64)

    # -- new nodes -----------------------------------------------------------------------------------------------------

    def _append(self, node: Node, words: Words | None) -> int:
        core, ranges = self.analysis.core.extended(node), self.analysis.ranges
        index = ranges.append(node, words)
        possible = (*self.analysis.possible, None if words is None else ranges.unpack(words))
        self.analysis = Analysis(core, ranges, possible)
        return index

    def _map(self, reads: tuple[int, ...], tuples: Ints, classes: Ints) -> int:
        table = np.full([len(self._node(n).values) for n in reads], -1, dtype=np.int32)
        table[tuple(tuples.T)] = classes if reads else classes[0]
        node = Map(reads, table, tuple(range(int(classes.max()) + 1)), f"auxiliary {len(self.analysis.core.nodes)}")
        return self._append(node, map_words(self.analysis.ranges, node))

    # -- heads ---------------------------------------------------------------------------------------------------------

    def _heads(self, stream: _Stream, layer: int) -> None:
        before = _Stream(dict(stream.terms), stream.const, stream.bos)
        for head in range(self.config.layers[layer].n_heads):
            self.step(f"a{layer}.h{head}")
            self._head(before, stream, layer, head)
        bias = self._weight(f"blocks.{layer}.attn.b_O")
        stream.const, stream.bos = stream.const + bias, stream.bos + bias

    def _head(self, before: _Stream, stream: _Stream, layer: int, head: int) -> None:
        place, name = f"a{layer}.h{head}", f"blocks.{layer}.attn."
        out = self._weight(name + "W_O")[head]
        ov, bias = self._weight(name + "W_V")[head] @ out, self._weight(name + "b_V")[head] @ out
        values = {n: table @ ov for n, table in before.terms.items()}
        base, sink = before.const @ ov + bias, before.bos @ ov + bias
        written = np.flatnonzero(np.abs([sink, base, *(row for t in values.values() for row in t)]).max(axis=0))
        if not written.size:
            return
        stream.bos = stream.bos + sink
        atom = self._atom(before, layer, head, place)
        reads = self._told(values)
        width = not reads
        node, encoding, affine = (
            self._width(atom, sink, place) if width else self._aggregate(atom, reads, values, base, sink, place)
        )
        if width:
            reads = (1,) if not self.codec.bos else ()
        self.heads.append(HeadRole(layer, head, node, (atom,), reads, encoding, affine))
        stream.add(node, encoding_matrix(encoding, len(self._node(node).values), self.config.d_model))

    def _atom(self, before: _Stream, layer: int, head: int, place: str) -> Atom:
        """The one comparison that decides the scores: those above half of the largest are of selected keys."""
        name = f"blocks.{layer}.attn."
        wq, wk = self._weight(name + "W_Q")[head], self._weight(name + "W_K")[head]
        queries = {n: table @ wq for n, table in before.terms.items()}
        keys = {n: table @ wk for n, table in before.terms.items()}
        shown = {}
        for x, z in itertools.product(keys, queries):
            block = keys[x] @ queries[z].T
            largest = float(block[self.analysis.ever(x)][:, self.analysis.ever(z)].max())
            if largest > NEGLIGIBLE:
                shown[x, z] = block > largest / 2
        if len(shown) > 1:
            raise Failed(place, f"its scores compare several pairs of nodes: {list(shown)}")
        for (x, z), table in shown.items():
            return Atom(x, z, table)
        size = len(self._node(0).values)
        return Atom(0, 0, np.zeros((size, size), dtype=np.bool_))

    def _select(self, atom: Atom) -> int:
        """The selector that the atom is."""
        for node in self.analysis.core.nodes:
            if isinstance(node, (Aggregate, Width)) and same_selector(self.analysis, node.selector, (atom,)):
                return node.selector
        return self._append(Select(atom.key, atom.query, atom.table), None)

    def _width(self, atom: Atom, sink: Array, place: str) -> tuple[int, Encoding, None]:
        dims = np.flatnonzero(np.abs(sink) > NEGLIGIBLE)
        if len(dims) != 1:
            raise Failed(place, "the share of BOS is written to several coordinates")
        nodes = self.analysis.core.nodes
        found = next(
            (
                i
                for i, n in enumerate(nodes)
                if isinstance(n, Width) and same_selector(self.analysis, n.selector, (atom,))
            ),
            None,
        )
        if found is None:
            selector = self._select(atom)
            made = width_range(self.analysis.ranges, selector)
            found = self._append(Width(selector, made.values), made.words)
        counts = [float(v) for v in self._node(found).values]  # type: ignore[arg-type]
        return found, Scalar(int(dims[0]), tuple(float(sink[dims[0]]) / (1 + w) for w in counts)), None

    def _aggregate(
        self, atom: Atom, reads: tuple[int, ...], values: Mapping[int, Array], base: Array, sink: Array, place: str
    ) -> tuple[int, Encoding, tuple[int, float, float] | None]:
        tuples = self._tuples(reads, place)
        wrote = np.broadcast_to(base, (len(tuples), len(base)))
        for column, node in enumerate(reads):
            wrote = wrote + values[node][tuples[:, column]]
        found = self._same_aggregate(atom, reads, tuples, wrote)
        if found is None:
            if len(reads) > 1:
                raise Failed(place, f"it moves a function of nodes {reads} that is none of the program's aggregates")
            found = self._new_aggregate(atom, reads[0], wrote)
        made = self._node(found)
        assert isinstance(made, Aggregate)
        source, index = self._node(made.value).values, self._on(made.value, reads, tuples)
        assert index is not None
        rows = {source[i]: wrote[index == i].mean(axis=0) for i in np.unique(index[index >= 0])}
        if self.analysis.singular(found):
            rows = {made.values[made.default]: sink, **rows} if made.default >= 0 else rows
            return found, self._encoding(found, [rows.get(v) for v in made.values], place), None
        affine = self._line(rows, place)
        dim, offset, slope = affine
        points = [offset + slope * float(v) if isinstance(v, (int, Fraction)) else 0.0 for v in made.values]
        return found, Scalar(dim, tuple(points)), affine

    def _line(self, rows: Mapping[Value, Array], place: str) -> tuple[int, float, float]:
        """(coordinate, offset, slope) of what is written for numbers."""
        numbers = {float(v): row for v, row in rows.items() if isinstance(v, (int, Fraction))}
        spread = np.ptp(list(numbers.values()), axis=0) if numbers else np.zeros(0)
        dims = np.flatnonzero(spread > NEGLIGIBLE)
        if len(dims) != 1:
            raise Failed(place, "a mean is written to one coordinate, and this is not")
        dim, (least, most) = int(dims[0]), (min(numbers), max(numbers))
        slope = (numbers[most][dim] - numbers[least][dim]) / (most - least)
        return dim, float(numbers[least][dim] - slope * least), float(slope)

    def _same_aggregate(self, atom: Atom, reads: tuple[int, ...], tuples: Ints, wrote: Array) -> int | None:
        for i, node in enumerate(self.analysis.core.nodes):
            if isinstance(node, Aggregate) and same_selector(self.analysis, node.selector, (atom,)):
                index = self._on(node.value, reads, tuples)
                if index is not None and tells(index, wrote):
                    return i
        return None

    def _new_aggregate(self, atom: Atom, value: int, wrote: Array) -> int:
        """An aggregate of a node that the program does not aggregate so; empty selections give what BOS has."""
        selector, ranges = self._select(atom), self.analysis.ranges
        default: Value = None if len(np.flatnonzero(np.abs(wrote).max(axis=0))) > 1 else 0
        empty = not self.analysis.nonempty(selector)
        made = aggregate_range(ranges, selector, value, default if empty else NO_DEFAULT)
        return self._append(
            Aggregate(selector, value, made.values.index(default) if empty else -1, made.values), made.words
        )

    # -- neurons -------------------------------------------------------------------------------------------------------

    def _neurons(self, stream: _Stream, layer: int) -> None:
        name = f"blocks.{layer}.mlp."
        into, bias, out = (self._weight(name + part) for part in ("W_in", "b_in", "W_out"))
        tables = {n: table @ into for n, table in stream.terms.items()}
        base = stream.const @ into + bias
        highest = base + sum(t[self.analysis.ever(n)].max(axis=0) for n, t in tables.items())
        active = (highest > NEGLIGIBLE) & (out != 0).any(axis=1)
        added = []
        for first, end in pieces(active, out, self.families):
            self.step(f"m{layer} neurons {first}..{end - 1}")
            span = slice(first, end)
            part = {n: t[:, span] for n, t in tables.items()}
            node, encoding, reads = self._group(part, base[span], out[span], f"m{layer} neurons {first}..{end - 1}")
            self.groups.append(NeuronRole(layer, (first, end), reads, node, encoding))
            added.append((node, encoding_matrix(encoding, len(self._node(node).values), self.config.d_model)))
        for node, matrix in added:
            stream.add(node, matrix)
        shift = self._weight(name + "b_out")
        stream.bos = stream.bos + np.maximum(stream.bos @ into + bias, 0) @ out + shift
        stream.const = stream.const + shift

    def _group(
        self, tables: Mapping[int, Array], base: Array, out: Array, place: str
    ) -> tuple[int, Encoding, tuple[int, ...]]:
        """Which node neurons compute from which, and how they write it."""
        reads = self._told(tables)
        tuples = self._tuples(reads, place)
        pre = base + sum(t[self.analysis.ever(n)].mean(axis=0) for n, t in tables.items() if n not in reads)
        columns = np.flatnonzero((out != 0).any(axis=0))
        wrote = np.zeros((len(tuples), out.shape[1]))
        chunk = max(1, (1 << 24) // max(1, len(base)))
        for start in range(0, len(tuples), chunk):
            rows = tuples[start : start + chunk]
            total = np.broadcast_to(pre, (len(rows), len(base)))
            for column, node in enumerate(reads):
                total = total + tables[node][rows[:, column]]
            wrote[start : start + chunk, columns] = np.maximum(total, 0) @ out[:, columns]
        node, index = self._computed(reads, tuples, wrote, place)
        rows_of = [
            wrote[index == v].mean(axis=0) if (index == v).any() else None for v in range(len(self._node(node).values))
        ]
        return node, self._encoding(node, rows_of, place), reads

    def _computed(self, reads: tuple[int, ...], tuples: Ints, wrote: Array, place: str) -> tuple[int, Ints]:
        """The node that `wrote` tells, no more and no less, with its value on each tuple."""
        for node in (*reads, *self._value_nodes()):
            index = self._on(node, reads, tuples)
            if index is not None and tells(index, wrote):
                return node, index
        for node, terms in self._sums_of(reads):
            self.sums[node] = terms
            index = self._on(node, reads, tuples)
            if index is not None and tells(index, wrote):
                return node, index
            del self.sums[node]
        classes = clusters(wrote)
        if classes is None:
            raise Failed(place, f"what it computes of nodes {reads} has no clear values")
        return self._map(reads, tuples, classes), classes

    def _sums_of(self, reads: tuple[int, ...]) -> Iterable[tuple[int, tuple[tuple[int, int], ...]]]:
        """Aggregates that are sums of the aggregates read."""
        if len(reads) > 1 and all(isinstance(self._node(n), Aggregate) for n in reads):
            for node in self._value_nodes():
                if node not in reads and isinstance(self._node(node), Aggregate) and node not in self.sums:
                    terms = mean_sum(self.analysis, node, reads)
                    if terms is not None:
                        yield node, terms

    def _encoding(self, node: int, rows: Sequence[Array | None], place: str) -> Encoding:
        """One-hot if the rows are nearly unit vectors or 0; else numbers at one coordinate."""
        d = self.config.d_model
        known = [row for row in rows if row is not None]
        dims = np.flatnonzero(np.abs(known).max(axis=0) > 0.1) if known else np.zeros(0, dtype=int)
        hot = all(np.abs(row - (np.arange(d) == row.argmax()) * (row.max() > 0.5)).max() < HALF for row in known)
        if hot:
            return OneHot(tuple(-1 if row is None or row.max() <= 0.5 else int(row.argmax()) for row in rows))
        if len(dims) == 1:
            return Scalar(int(dims[0]), tuple(0.0 if row is None else float(row[dims[0]]) for row in rows))
        raise Failed(place, f"how it writes node {node} is neither one-hot nor a number")


def tells(index: Ints, wrote: Array) -> bool:
    """Outputs for one value of a node are nearly equal, and far from those for any other value."""
    occurs = index >= 0
    if not occurs.any():
        return False
    index, wrote = index[occurs], wrote[occurs]
    values, which = np.unique(index, return_inverse=True)
    columns = np.flatnonzero(np.ptp(wrote, axis=0) > NEGLIGIBLE)
    if len(values) == 1 or not columns.size:
        return len(values) == 1 and not columns.size
    wrote = wrote[:, columns]
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(values)))
    low = np.minimum.reduceat(wrote[order], starts)
    high = np.maximum.reduceat(wrote[order], starts)
    spread = float((high - low).max())
    return spread < NEAR * least_distance((low + high) / 2)


def least_distance(points: Array) -> float:
    """The least distance (maximum norm) between two rows; infinite for one row."""
    if len(points) < 2:
        return math.inf
    if points.shape[1] == 1:
        return float(np.diff(np.sort(points[:, 0])).min())
    rounded = np.round(points, 3)
    unique = np.unique(rounded, axis=0)
    if len(unique) < len(points):
        return 0.0
    if len(points) > 2048:
        return 1e-3
    return min(float(np.abs(points[i] - points[i + 1 :]).max(axis=1).min()) for i in range(len(points) - 1))


def clusters(wrote: Array) -> Ints | None:
    """A number for each row, the same for rows that are nearly equal; None if some are only roughly so."""
    columns = np.flatnonzero(np.ptp(wrote, axis=0) > NEGLIGIBLE)
    if not columns.size:
        return np.zeros(len(wrote), dtype=np.int64)
    _, which = np.unique(np.round(wrote[:, columns], 4), axis=0, return_inverse=True)
    which = which.reshape(-1).astype(np.int64)
    return which if tells(which, wrote) else None


def families_of(labels: Sequence[str], d_model: int) -> Ints:
    """[coordinate]: a number, the same for those of one variable."""
    if len(labels) != d_model:
        return np.arange(d_model)
    return np.unique([label.partition(":")[0] for label in labels], return_inverse=True)[1].reshape(-1)


def pieces(active: Bits, out: Array, families: Ints) -> list[tuple[int, int]]:
    """Ranges of neurons that write to one variable each; neurons that are never active may lie in them."""
    spans: dict[int, list[int]] = {}
    for neuron in np.flatnonzero(active).tolist():
        homes = set(families[np.flatnonzero(out[neuron])].tolist())
        if len(homes) > 1:
            raise Failed(f"neuron {neuron}", "it writes to several variables")
        spans.setdefault(homes.pop(), []).append(neuron)
    found = sorted((neurons[0], neurons[-1] + 1) for neurons in spans.values())
    for (_, end), (first, _) in zip(found, found[1:], strict=False):
        if first < end:
            raise Failed(f"neuron {first}", "the neurons of two variables lie between each other")
    return found
