"""From tables to a RASP program, and to the alignment of the model with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..compiler import rasp
from ..compiler.alignment import Alignment, Atom, HeadRole, NeuronRole
from ..compiler.core import CoreProgram, Value
from ..compiler.functions import Predicate
from ..compiler.lower import Stepwise, lower_beside
from ..compiler.rasp import MapOp, SelectOp, Selector, SOp
from ..models import Codec, InputError
from .decompile_fitting import Cells, Key, fit, fit_predicate
from .decompile_reading import BLANK, Cell, Comparison, Copied, Counted, Read, Table, Tables, moved
from .decompile_sketch import NeuronSite

SPARE = "(never selected)"


@dataclass(frozen=True, eq=False)
class Recovered:
    """A program, and each variable of the tables as an expression.

    `sums`: (the count of a union, the counts of its parts), by variable and expression.
    """

    program: SOp
    expressions: Mapping[int, SOp]
    sums: tuple[tuple[SOp, tuple[int, ...]], ...]


def build_program(tables: Tables, name: str, vocab: tuple[Value, ...], max_len: int, causal: bool) -> Recovered:
    """The program that the tables are. Raises `InputError` for a table that no RASP program has."""
    builder = _Builder(tables, Stepwise(vocab, max_len, causal))
    for read in tables.variables:
        builder.expressions[read.number] = builder.variable(read)
    program = builder.map(tables.output, "output")
    program = program.named(name)
    return Recovered(program, builder.expressions, tuple(builder.sums.values()))


class _Builder:
    def __init__(self, tables: Tables, stepwise: Stepwise) -> None:
        self.tables, self.stepwise = tables, stepwise
        self.expressions: dict[int, SOp] = {}
        self.selectors: dict[int, Selector] = {}
        self.sums: dict[tuple[int, ...], tuple[SOp, tuple[int, ...]]] = {}

    def variable(self, read: Read) -> SOp:
        if read.origin is None:
            return rasp.tokens if read.number == 0 else rasp.indices
        if isinstance(read.origin, Table):
            found = self.map(read.origin, read.name)
        else:
            selector = self.selector(read.origin.comparisons)
            if isinstance(read.origin, Counted):
                self.selectors[read.number] = selector
                found = rasp.selector_width(selector)
            else:
                value = self.map(self._total(read.origin.value, read), f"values of {read.name}")
                found = rasp.aggregate(selector, value, read.origin.default)
        known = any(found is other for other in self.expressions.values())
        return found if known or not read.name else found.named(read.name)

    def _total(self, value: Table, read: Read) -> Table:
        """What is never selected needs a value too: its own, if that is told from those selected, or a spare one."""
        own = self.tables.variables[value.reads[0]].values if len(value.reads) == 1 else ()
        taken = set(read.values)
        cells: list[Cell] = []
        for at, cell in enumerate(value.cells):
            if cell is BLANK:
                kept = own[at] if own and own[at] not in taken and own[at] is not None else self._spare(read)
                cell = kept if self._occurs(value.reads, at) else BLANK
            cells.append(cell)
        return Table(value.reads, tuple(cells))

    def _occurs(self, reads: Sequence[int], at: int) -> bool:
        sizes = [len(self.tables.variables[n].values) for n in reads]
        places = np.unravel_index(at, sizes) if sizes else ()
        return all(bool(self.tables.variables[n].occurs[i]) for n, i in zip(reads, places, strict=True))

    @staticmethod
    def _spare(read: Read) -> Value:
        if any(isinstance(value, str) for value in read.values):
            return SPARE
        return next(number for number in itertools.count() if number not in read.values)

    # -- selectors ----------------------------------------------------------------------------------------------------

    def selector(self, comparisons: Sequence[Comparison]) -> Selector:
        parts = [self.select(comparison) for comparison in comparisons]
        if not parts:
            return rasp.select(rasp.tokens, rasp.tokens, True)
        found = parts[0]
        for part in parts[1:]:
            found = found & part
        return found

    def select(self, comparison: Comparison) -> Selector:
        key, query = (self.tables.variables[n] for n in (comparison.key, comparison.query))
        cells: dict[Key, bool] = {}
        keys, queries = (self.stepwise.occurring([self.expressions[v.number]]) for v in (key, query))
        for (i, k), (j, q) in itertools.product(enumerate(key.values), enumerate(query.values)):
            if not (key.occurs[i] and query.occurs[j]):
                continue
            if (keys is not None and (k,) not in keys) or (queries is not None and (q,) not in queries):
                continue
            if k is None or q is None:
                if comparison.table[i, j]:
                    side = key.name if k is None else query.name
                    raise InputError(f"a head attends where {side!r} is None, which no selector of RASP does")
                continue
            cells[k, q] = bool(comparison.table[i, j])
        predicate = Predicate(fit_predicate(cells))
        if predicate.function.term is not None:
            predicate = _by_name(predicate)
        return SelectOp(self.expressions[comparison.key], self.expressions[comparison.query], predicate)

    # -- maps ---------------------------------------------------------------------------------------------------------

    def map(self, table: Table, what: str) -> SOp:
        """The map that a table is; only the arguments it depends on are its arguments."""
        keys = list(itertools.product(*(self.tables.variables[n].values for n in table.reads)))
        cells = {key: cell for key, cell in zip(keys, table.cells, strict=True) if cell is not BLANK}
        cells = self._occurring(cells, [self.expressions[n] for n in table.reads])
        reads, cells = _that_matter(table.reads, cells)
        for numbers in _groups(reads, cells, self.selectors):
            found = self._union(numbers, reads, cells)
            if found is not None:
                reads, cells, extra = found
                cells = self._occurring(cells, [*map(self._expression, reads), extra])
                return self._apply([*map(self._expression, reads), extra], cells, what)
        return self._apply([self._expression(n) for n in reads], cells, what)

    def _occurring(self, cells: Cells, args: Sequence[SOp]) -> dict[Key, Value]:
        """The part of a table that matters: where the arguments' values may occur together."""
        occurring = self.stepwise.occurring(args)
        return {key: cell for key, cell in cells.items() if occurring is None or key in occurring}

    def _expression(self, number: int) -> SOp:
        return self.expressions[number]

    def _apply(self, args: Sequence[SOp], cells: Cells, what: str) -> SOp:
        strict: dict[Key, Value] = {}
        for key, value in cells.items():
            if None not in key:
                strict[key] = value
            elif value is not None:
                raise InputError(f"{what!r} is {value!r} where an argument is None, and a map of RASP is None there")
        if not strict:
            return rasp.full(None)
        if not args:
            return rasp.full(strict[()])
        function = fit(strict, len(args))
        if len(args) == 1 and all(key[0] == value for key, value in strict.items()):
            return args[0]
        return MapOp(function, tuple(args))

    def _union(
        self, numbers: tuple[int, ...], reads: tuple[int, ...], cells: Cells
    ) -> tuple[tuple[int, ...], dict[Key, Value], SOp] | None:
        """The table over the count of a union in place of the counts of its parts."""
        if numbers not in self.sums:
            selector = self.selectors[numbers[0]]
            for number in numbers[1:]:
                selector = selector | self.selectors[number]
            self.sums[numbers] = (rasp.selector_width(selector), numbers)
        at = [reads.index(n) for n in numbers]
        rest = [t for t in range(len(reads)) if t not in at]
        longest = len(self.tables.variables[1].values)
        merged: dict[Key, Value] = {}
        for key, cell in cells.items():
            total = sum((_count(key[t]) for t in at), 0)
            if total > longest:
                continue
            if merged.setdefault((*(key[t] for t in rest), total), cell) != cell:
                return None
        return tuple(reads[t] for t in rest), merged, self.sums[numbers][0]


def _by_name(predicate: Predicate) -> Predicate:
    """The comparison that the predicate is, if it has a name."""
    for comparison in rasp.Comparison:
        named = Predicate.of(comparison)
        if named.function.term == predicate.function.term:
            return named
    return predicate


def _that_matter(reads: tuple[int, ...], cells: Cells) -> tuple[tuple[int, ...], dict[Key, Value]]:
    """The variables that a table depends on, and the table over them."""
    kept, found = list(reads), dict(cells)
    for number in reversed(reads):
        at = kept.index(number)
        shorter: dict[Key, Value] = {}
        for key, cell in found.items():
            rest = (*key[:at], *key[at + 1 :])
            before = shorter.setdefault(rest, cell)
            if before != cell or (before is None) != (cell is None):
                break
        else:
            del kept[at]
            found = shorter
    return tuple(kept), found


def _groups(reads: tuple[int, ...], cells: Cells, selectors: Mapping[int, Selector]) -> Iterator[tuple[int, ...]]:
    """Counts among the variables that are interchangeable one for one: the table knows their sum alone."""
    counts = [n for n in reads if n in selectors]
    alike: list[list[int]] = []
    for number in counts:
        home = next((g for g in alike if _exchange(reads.index(g[0]), reads.index(number), cells)), None)
        if home is None:
            alike.append([number])
        else:
            home.append(number)
    yield from (tuple(group) for group in alike if len(group) > 1)


def _count(value: Value) -> int:
    """The value of a count."""
    assert isinstance(value, int), f"{value!r} is no count"
    return value


def _exchange(i: int, j: int, cells: Cells) -> bool:
    """Whether one more of argument i and one less of argument j changes nothing, wherever both are known."""
    longest = max((_count(key[i]) for key in cells), default=0)
    seen = False
    for key, cell in cells.items():
        if _count(key[j]) < 1 or _count(key[i]) + _count(key[j]) > longest:
            continue
        moved = list(key)
        moved[i], moved[j] = _count(key[i]) + 1, _count(key[j]) - 1
        other = cells.get(tuple(moved), BLANK)
        if other is not BLANK:
            seen = True
            if other != cell:
                return False
    return seen


def align(
    tables: Tables, recovered: Recovered, codec: Codec, max_len: int, causal: bool
) -> tuple[Alignment, CoreProgram]:
    """The model's alignment with the recovered program, and that program in core RASP.

    Nothing of it is trusted: a composition proof verifies every statement against the weights.
    """
    numbers = [read.number for read in tables.variables]
    widths = [width for width, _ in recovered.sums]
    others = [*(recovered.expressions[n] for n in numbers), *widths]
    extended, n_source, places = lower_beside(recovered.program, others, codec.vocab, max_len, causal)
    place = dict(zip(numbers, places, strict=False))
    sums = {
        places[len(numbers) + t]: tuple((place[n], 1) for n in parts) for t, (_, parts) in enumerate(recovered.sums)
    }
    heads: list[HeadRole] = []
    neurons: list[NeuronRole] = []
    for read in tables.variables:
        values = extended.value_node(place[read.number]).values
        for site in read.sites:
            encoding = moved(tables.encodings[id(site)], read.values, values)
            reads = tuple(dict.fromkeys(place[n] for n in tables.reads[id(site)]))
            if isinstance(site, NeuronSite):
                neurons.append(NeuronRole(site.layer, site.neurons, reads, place[read.number], encoding))
                continue
            assert isinstance(read.origin, (Copied, Counted))
            atoms = _atoms(read.origin.comparisons, tables, place, extended)
            heads.append(HeadRole(site.layer, site.head, place[read.number], atoms, reads, encoding, site.affine))
    heads.sort(key=lambda role: (role.layer, role.head))
    neurons.sort(key=lambda role: (role.layer, role.neurons))
    decode = tuple(dict.fromkeys(place[n] for n in tables.output.reads))
    found = Alignment(extended, n_source, tuple(heads), tuple(neurons), tuple(sorted(sums.items())), decode)
    core = CoreProgram(
        extended.vocab, extended.max_len, causal, extended.nodes[:n_source], extended.output, extended.name
    )
    return found, core


def _atoms(
    comparisons: Sequence[Comparison], tables: Tables, place: Mapping[int, int], program: CoreProgram
) -> tuple[Atom, ...]:
    found: dict[tuple[int, int], Atom] = {}
    for comparison in comparisons:
        key, query = place[comparison.key], place[comparison.query]
        rows = _indices(tables.variables[comparison.key].values, program.value_node(key).values)
        columns = _indices(tables.variables[comparison.query].values, program.value_node(query).values)
        table = comparison.table[np.ix_(np.maximum(rows, 0), np.maximum(columns, 0))].copy()
        table[rows < 0], table[:, columns < 0] = False, False
        if (key, query) in found:
            table &= found[key, query].table
        found[key, query] = Atom(key, query, table)
    return tuple(found.values())


def _indices(old: Sequence[Value], new: Sequence[Value]) -> npt.NDArray[np.int64]:
    known = {value: i for i, value in enumerate(old)}
    return np.array([known.get(value, -1) for value in new], dtype=np.int64)
