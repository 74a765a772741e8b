"""Reading the finite tables off a model's weights, component by component, given where its variables live.

The residual stream is taken to be a sum of the encodings of the variables written so far. A head's predicates are the
scores of pairs of values: a key is attended to if its score reaches that of the beginning-of-sequence token, or of the
best key where there is none. What it copies is what its values write, to the nearest encoded value. Groups of neurons
and the read-out are run on every combination of the values they read.

Float64 and nearest values throughout: nothing here is a proof. What is read is proved, or not, afterwards.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Encoding, OneHot, Scalar, Scaled, encoding_matrix
from ..compiler.core import Bits, Value, canonical, normalise
from ..models import Codec, InputError, Transformer
from .decompile_sketch import HeadSite, NeuronSite, Sketch, occurring

Array: TypeAlias = npt.NDArray[np.float64]

FLOOR = 30.0
"""A key whose score is this much below the sink's has less than 1e-13 of its weight: not attended to."""
MAX_COMBINATIONS = 1 << 20
CHUNK = 1 << 24
NEAR = 0.25
"""A vector stands for a value if it is nearer to its encoding than this share of the way to the next one."""


class Blank(enum.Enum):
    """In place of a value: this combination writes nothing that stands for one."""

    BLANK = "-"


BLANK = Blank.BLANK
Cell: TypeAlias = Value | Blank


@dataclass(frozen=True, eq=False)
class Table:
    """A function of variables: one cell for each combination of their values, the last variable's fastest."""

    reads: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A predicate: `table[key value, query value]`, whether the key is attended to."""

    key: int
    query: int
    table: Bits


@dataclass(frozen=True, eq=False)
class Copied:
    """A head that copies, or averages, a function of variables at the keys attended to; `default` where none is."""

    comparisons: tuple[Comparison, ...]
    value: Table
    default: Value


@dataclass(frozen=True, eq=False)
class Counted:
    """A head that counts the keys attended to."""

    comparisons: tuple[Comparison, ...]


@dataclass(eq=False)
class Read:
    """A variable as it was read: how it comes about (None: token and position) and the values it can have.

    `sites`: the components that write it. `occurs`: which of the values it can have, as far as its encodings say.
    """

    number: int
    name: str
    values: tuple[Value, ...]
    occurs: Bits
    origin: Copied | Counted | Table | None
    sites: list[HeadSite | NeuronSite] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Tables:
    """What was read: the variables in order, for each component the variable it writes and those it reads."""

    variables: tuple[Read, ...]
    writes: Mapping[int, int]
    reads: Mapping[int, tuple[int, ...]]
    encodings: Mapping[int, Encoding]
    output: Table
    """`writes`, `reads` and `encodings` (of the variable's values): by identity of the site."""


def read_tables(
    model: Transformer, codec: Codec, sketch: Sketch, step: Callable[[str], None] = lambda _: None
) -> Tables:
    """All tables of a model. Raises `InputError` for what the sketch says and the weights do not bear out."""
    return _Reader(model, codec, sketch, step).run()


class _Reader:
    def __init__(self, model: Transformer, codec: Codec, sketch: Sketch, step: Callable[[str], None]) -> None:
        self.config, self.codec, self.sketch, self.step = model.config, codec, sketch, step
        _check_scope(model, codec, sketch)
        self.w = {name: p.detach().cpu().numpy().astype(np.float64) for name, p in model.named_parameters()}
        self.found: list[Read] = []
        self.versions: dict[int, list[int]] = {}
        self.terms: dict[int, Array] = {}
        self.const = np.zeros(self.config.d_model)
        self.bos = np.zeros(self.config.d_model)
        self.writes: dict[int, int] = {}
        self.reads: dict[int, tuple[int, ...]] = {}
        self.encodings: dict[int, Encoding] = {}

    def run(self) -> Tables:
        self._embeddings()
        for layer in range(len(self.config.layers)):
            self._attention(layer)
            self._mlp(layer)
        output = self._read_out()
        return Tables(tuple(self.found), self.writes, self.reads, self.encodings, output)

    # -- variables ----------------------------------------------------------------------------------------------------

    def _embeddings(self) -> None:
        shift = int(self.codec.bos)
        positions = tuple(self.sketch.variables[1].values)
        embed, place = self.w["embed.W_E"], self.w.get("pos_embed.W_pos")
        rows = np.zeros((len(positions), self.config.d_model)) if place is None else place[shift:][: len(positions)]
        for node, values, matrix in ((0, self.codec.vocab, embed[: len(self.codec.vocab)]), (1, positions, rows)):
            number = self._new(node, ("tokens", "indices")[node], values, np.ones(len(values), np.bool_), None)
            self.terms[number] = matrix.copy()
        if self.codec.bos:
            self.bos = embed[len(self.codec.vocab)] + (0.0 if place is None else place[0])

    def _new(
        self, node: int, name: str, values: tuple[Value, ...], occurs: Bits, origin: Copied | Counted | Table | None
    ) -> int:
        number = len(self.found)
        self.found.append(Read(number, name, values, occurs, origin))
        self.versions.setdefault(node, []).append(number)
        return number

    def _define(self, site: HeadSite | NeuronSite, origin: Copied | Counted | Table) -> int:
        """The variable that a component writes: a known one again, or a new one."""
        said = self.sketch.variables[site.variable]
        occurs = np.array(occurring(site.encoding, len(said.values)))
        for number in self.versions.get(site.variable, ()):
            if _again(number, self.found[number], origin):
                self.found[number].occurs &= occurs
                return number
        values = said.values
        if isinstance(origin, Counted) and self.codec.bos:  # a count may be what nobody has listed
            values = tuple(range(len(self.found[1].values) + 1))
            occurs = np.ones(len(values), np.bool_)
        return self._new(site.variable, said.name, values, occurs, origin)

    def _add(self, number: int, site: HeadSite | NeuronSite) -> None:
        self._check_encoding(site.encoding, site.variable)
        listed, values = self.sketch.variables[site.variable].values, self.found[number].values
        encoding = self.encodings[id(site)] = moved(site.encoding, listed, values)
        matrix = encoding_matrix(encoding, len(values), self.config.d_model)
        self.terms[number] = self.terms.get(number, np.zeros_like(matrix)) + matrix
        self.writes[id(site)] = number
        self.found[number].sites.append(site)

    def _check_encoding(self, encoding: Encoding, node: int) -> None:
        n, inner = len(self.sketch.variables[node].values), encoding
        while isinstance(inner, Scaled):
            inner = inner.of
        listed, dims = (inner.dims, inner.dims) if isinstance(inner, OneHot) else (inner.points, (inner.dim,))
        if len(listed) != n or not all(-1 <= dim < self.config.d_model for dim in dims):
            name = self.sketch.variables[node].name or f"variable {node}"
            raise InputError(
                f"the alignment's encoding of {name!r} does not fit its {n} values and {self.config.d_model} "
                "coordinates; it is another model's"
            )

    def _version(self, node: int, place: str, into: Array) -> int:
        """Which variable written under this name the component reads through `into` [d_model, any]."""
        known = [number for number in self.versions.get(node, ()) if number in self.terms]
        if not known:
            name = self.sketch.variables[node].name or f"variable {node}"
            raise InputError(
                f"{place} is said to read {name!r}, which nothing before it writes; the alignment is wrong"
            )
        if len(known) == 1:
            return known[0]
        seen = [number for number in known if (self.terms[number] @ into).any()]
        if len(seen) > 1:
            names = " and ".join(repr(self.found[number].name) for number in seen)
            raise InputError(f"{place} reads {names}, which differ, where the alignment names one variable")
        return seen[0] if seen else known[0]

    def _combine(
        self, reads: Sequence[int], base: Array, tables: Mapping[int, Array], place: str
    ) -> tuple[Array, Bits]:
        """`base` plus the rows of the tables, for each combination of values [combinations, width]; which occur."""
        sizes = [len(self.found[number].values) for number in reads]
        if math.prod(sizes) > MAX_COMBINATIONS:
            raise InputError(
                f"{place} reads {math.prod(sizes)} combinations of values, more than {MAX_COMBINATIONS}; "
                "compile for a smaller vocabulary or length"
            )
        total, occurs = base[None, :], np.ones(1, np.bool_)
        for number in reads:
            total = (total[:, None, :] + tables[number][None, :, :]).reshape(-1, base.shape[0])
            occurs = (occurs[:, None] & self.found[number].occurs[None, :]).reshape(-1)
        return total, occurs

    # -- heads --------------------------------------------------------------------------------------------------------

    def _attention(self, layer: int) -> None:
        sites = {site.head: site for site in self.sketch.heads if site.layer == layer}
        if not self.config.layers[layer].n_heads:
            return
        bias = self.w[f"blocks.{layer}.attn.b_O"]
        change = bias.copy()
        pending: list[tuple[HeadSite, int]] = []
        for head in range(self.config.layers[layer].n_heads):
            change = change + self._ov(layer, head, self.bos)
            if head in sites:
                self.step(sites[head].place)
                pending.append((sites[head], self._head(sites[head])))
        for site, number in pending:
            self._add(number, site)
        self.const = self.const + bias
        self.bos = self.bos + change

    def _ov(self, layer: int, head: int, residual: Array, bias: bool = True) -> Array:
        prefix = f"blocks.{layer}.attn."
        value = residual @ self.w[prefix + "W_V"][head] + (self.w[prefix + "b_V"][head] if bias else 0.0)
        found: Array = value @ self.w[prefix + "W_O"][head]
        return found

    def _head(self, site: HeadSite) -> int:
        comparisons, level = self._comparisons(site)
        prefix = f"blocks.{site.layer}.attn."
        ov = self.w[prefix + "W_V"][site.head] @ self.w[prefix + "W_O"][site.head]
        reads = tuple(dict.fromkeys(self._version(node, site.place, ov) for node in site.reads))
        self.reads[id(site)] = reads
        if self._counts(site, level):
            return self._define(site, Counted(comparisons))
        base = self._ov(site.layer, site.head, self.const)
        tables = {number: self._ov(site.layer, site.head, self.terms[number], bias=False) for number in reads}
        total, occurs = self._combine(reads, base, tables, site.place)
        decode = self._decoder(site, site.encoding, site.variable)
        cells = tuple(decode(row) if here else BLANK for row, here in zip(total, occurs, strict=True))
        sink = decode(self._ov(site.layer, site.head, self.bos)) if self.codec.bos else None
        default = None if isinstance(sink, Blank) else sink
        return self._define(site, Copied(comparisons, Table(reads, cells), default))

    def _counts(self, site: HeadSite, level: float) -> bool:
        """Whether the head counts: the sink is one of those attended to, and its share is what is written."""
        if not isinstance(site.encoding, Scalar):
            return False
        if self.codec.bos:
            return abs(level) < 1.0
        values = self.sketch.variables[site.variable].values
        numbers = [v for v in values if isinstance(v, (int, Fraction))]
        shares = [1.0 / max(1.0, float(v)) for v in numbers]
        return len(numbers) == len(values) and np.allclose(shares, site.encoding.points, rtol=0, atol=1e-6)

    def _comparisons(self, site: HeadSite) -> tuple[tuple[Comparison, ...], float]:
        """The predicates, and by how much the best key's score exceeds the sink's (0 without a sink)."""
        prefix = f"blocks.{site.layer}.attn."
        wq, wk = self.w[prefix + "W_Q"][site.head], self.w[prefix + "W_K"][site.head]
        assert isinstance(self.config.attention_scale, float)
        scale, bos = self.config.attention_scale, self.codec.bos
        q0 = (self.const @ wq + self.w[prefix + "b_Q"][site.head]) * scale
        k0 = (self.const - self.bos) @ wk if bos else np.zeros(wk.shape[1])
        tables: dict[tuple[int, int], Array] = {}
        keys, queries = set[int](), set[int]()
        for key_node, query_node in site.compares:
            key, query = self._version(key_node, site.place, wk), self._version(query_node, site.place, wq)
            block = (self.terms[key] @ wk) @ (self.terms[query] @ wq).T * scale
            if key not in keys:
                block = block + (self.terms[key] @ wk @ q0)[:, None]
            if query not in queries:
                block = block + (self.terms[query] @ wq @ k0 * scale)[None, :]
            keys.add(key)
            queries.add(query)
            tables[key, query] = tables.get((key, query), 0.0) + block
        rest = float(q0 @ k0) if bos else 0.0
        best = {pair: self._best(pair, table) for pair, table in tables.items()}
        level = rest + sum(float(b.max(initial=-np.inf)) for b in best.values())
        found = []
        for pair, table in tables.items():
            if bos:
                attended = table + rest + sum(float(b.max()) for other, b in best.items() if other != pair) > -FLOOR
            else:
                attended = table > best[pair] - FLOOR
            found.append(Comparison(*pair, attended))
        return tuple(found), level

    def _best(self, pair: tuple[int, int], table: Array) -> Array:
        """The best score among the key values that occur, for each query value."""
        keys, queries = self.found[pair[0]].occurs, self.found[pair[1]].occurs
        return np.where(queries, np.where(keys[:, None], table, -np.inf).max(axis=0), -np.inf)

    # -- neurons ------------------------------------------------------------------------------------------------------

    def _mlp(self, layer: int) -> None:
        if not self.config.layers[layer].d_mlp:
            return
        prefix = f"blocks.{layer}.mlp."
        into, bias, out = (self.w[prefix + name] for name in ("W_in", "b_in", "W_out"))
        pending: list[tuple[NeuronSite, int]] = []
        for site in sorted((s for s in self.sketch.neurons if s.layer == layer), key=lambda s: s.neurons):
            self.step(site.place)
            first, end = site.neurons
            if not 0 <= first <= end <= into.shape[1]:
                raise InputError(f"the alignment names {site.place}, but that layer has {into.shape[1]} neurons")
            part = into[:, first:end]
            reads = tuple(dict.fromkeys(self._version(node, site.place, part) for node in site.reads))
            self.reads[id(site)] = reads
            pending.append((site, reads[0] if site.clears else self._group(site, reads, part, bias, out)))
        if self.codec.bos:
            self.bos = self.bos + np.maximum(self.bos @ into + bias, 0.0) @ out + self.w[prefix + "b_out"]
        for site, number in pending:
            self._add(number, site)
        self.const = self.const + self.w[prefix + "b_out"]

    def _group(self, site: NeuronSite, reads: tuple[int, ...], into: Array, bias: Array, out: Array) -> int:
        first, end = site.neurons
        base = self.const @ into + bias[first:end]
        tables = {number: self.terms[number] @ into for number in reads}
        decode = self._decoder(site, site.encoding, site.variable)
        cells: list[Cell] = []
        head, *rest = reads if reads else (None,)
        starts = [base] if head is None else [base + row for row in tables[head]]
        live = np.ones(1, np.bool_) if head is None else self.found[head].occurs
        for start, here in zip(starts, live, strict=True):  # one value of the first variable at a time
            pre, occurs = self._combine([r for r in rest if r is not None], start, tables, site.place)
            written = np.maximum(pre, 0.0) @ out[first:end]
            cells += [decode(row) if ok and here else BLANK for row, ok in zip(written, occurs, strict=True)]
        return self._define(site, Table(reads, tuple(cells)))

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decoder(self, site: HeadSite | NeuronSite, encoding: Encoding, node: int) -> Callable[[Array], Cell]:
        """From what a component writes to the value that it stands for."""
        values = self.sketch.variables[node].values
        self._check_encoding(encoding, node)
        matrix = encoding_matrix(encoding, len(values), self.config.d_model)
        kept = np.flatnonzero(occurring(encoding, len(values)))
        if isinstance(site, HeadSite) and site.affine is not None:
            return _numbers(site.affine, [values[i] for i in kept], matrix[kept])
        columns = np.flatnonzero(matrix.any(axis=0))
        points = matrix[np.ix_(kept, columns)]
        gap = _least_distance(points)

        def nearest(row: Array) -> Cell:
            distance = np.abs(points - row[columns]).max(axis=1, initial=0.0)
            at = int(distance.argmin()) if len(distance) else -1
            return values[kept[at]] if at >= 0 and distance[at] <= NEAR * gap else BLANK

        return nearest

    def _read_out(self) -> Table:
        self.step("the read-out")
        matrix, bias = self.w["unembed.W_U"], self.w["unembed.b_U"]
        reads = tuple(dict.fromkeys(self._version(node, "the read-out", matrix) for node in self.sketch.decode_reads))
        base = self.const @ matrix + bias
        tables = {number: self.terms[number] @ matrix for number in reads}
        logits, occurs = self._combine(reads, base, tables, "the read-out")
        outputs = self.codec.outputs
        if self.codec.kind == "categorical":
            at = logits.argmax(axis=1)
            return Table(reads, tuple(outputs[i] if ok else BLANK for i, ok in zip(at, occurs, strict=True)))
        points = np.array(self.codec.points)
        gaps = np.abs(points[:, None] - points[None, :]) + np.where(np.eye(len(points), dtype=bool), np.inf, 0.0)
        room = np.minimum(gaps.min(axis=1, initial=np.inf), 1e300) / 2
        cells: list[Cell] = []
        for x, ok in zip(logits[:, 0], occurs, strict=True):
            distance = np.abs(points - x)
            i = int(distance.argmin())
            cells.append(outputs[i] if ok and distance[i] < room[i] else BLANK)
        return Table(reads, tuple(cells))


def moved(encoding: Encoding, old: Sequence[Value], new: Sequence[Value]) -> Encoding:
    """The encoding for another list of values. Of a value that it does not know: a count's share of attention where
    the others are that, else the zero vector (and no proof will go through where it matters)."""
    if isinstance(encoding, Scaled):
        return Scaled(encoding.by, moved(encoding.of, old, new))
    known = {value: i for i, value in enumerate(old)}
    at = [known.get(value, -1) for value in new]
    if isinstance(encoding, OneHot):
        return OneHot(tuple(encoding.dims[i] if i >= 0 else -1 for i in at))
    shares = all(isinstance(v, int) and abs(p * (1 + v) - 1) < 1e-6 for v, p in zip(old, encoding.points, strict=True))
    points = [
        encoding.points[i] if i >= 0 else 1.0 / (1 + v) if shares and isinstance(v, int) else 0.0
        for i, v in zip(at, new, strict=True)
    ]
    return Scalar(encoding.dim, tuple(points))


def _again(number: int, known: Read, origin: Copied | Counted | Table) -> bool:
    """Whether the origin is the known variable: an identity of it, or the same table of the same variables."""
    if not isinstance(origin, Table):
        return False
    if origin.reads == (number,):
        return all(isinstance(c, Blank) or c == v for c, v in zip(origin.cells, known.values, strict=True))
    before = known.origin
    return isinstance(before, Table) and before.reads == origin.reads and before.cells == origin.cells


def _numbers(affine: tuple[int, float, float], values: Sequence[Value], matrix: Array) -> Callable[[Array], Cell]:
    """The number that is written at a coordinate: one of `values`, or the simplest near it."""
    dim, offset, slope = affine

    def number(row: Array) -> Cell:
        distance = np.abs(matrix[:, dim] - row[dim])
        at = int(distance.argmin()) if len(distance) else -1
        near = 1e-5 * (1.0 + abs(float(row[dim])))
        if at >= 0 and distance[at] <= near:
            return values[at]
        x = (float(row[dim]) - offset) / slope if slope else math.nan
        if not math.isfinite(x):
            return BLANK
        simple = Fraction(x).limit_denominator(1000)
        return normalise(simple) if abs(float(simple) - x) <= near else BLANK

    return number


def _least_distance(points: Array) -> float:
    if len(points) < 2:
        return 1.0
    if points.shape[1] == 1:
        gaps = np.diff(np.unique(points[:, 0]))
        return float(gaps.min(initial=np.inf)) if gaps.size else 1.0
    return 1.0


def _check_scope(model: Transformer, codec: Codec, sketch: Sketch) -> None:
    """Raises `InputError` with all that stands in the way."""
    c = model.config
    wrong = [
        what
        for bad, what in (
            (c.layer_norm is not None, "LayerNorm"),
            (c.attention != "softmax", f"{c.attention} attention"),
            (c.activation != "relu" and any(x.d_mlp for x in c.layers), f"activation {c.activation}"),
            (c.readout != "each", f"readout {c.readout}"),
            (bool(c.d_readout), "an MLP at the read-out"),
            (isinstance(c.attention_scale, str) and any(x.n_heads for x in c.layers), "attention scale 1/sqrt(d_head)"),
        )
        if bad
    ]
    if wrong:
        raise InputError(f"tables are read off plain ReLU transformers read out at each position; this has {wrong}")
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise InputError("a weight is not finite, so the model computes no function; look for overflow in training")
    for site in sketch.heads:
        if not (0 <= site.layer < len(c.layers) and 0 <= site.head < c.layers[site.layer].n_heads):
            raise InputError(f"the alignment names head {site.place}, which the model has not; it is another model's")
    for group in sketch.neurons:
        if not 0 <= group.layer < len(c.layers):
            raise InputError(f"the alignment names {group.place}, but the model has {len(c.layers)} layers")
    if canonical(codec.vocab) != canonical(sketch.variables[0].values):
        raise InputError("the alignment's vocabulary is not the codec's; it is another model's")
