"""Lowering: a RASP program, a vocabulary and a maximal length to core RASP, where every function is a finite table.

Law: `evaluate_core(lower(p, vocab, N, causal), xs) == interpreter.evaluate(p, xs, causal=causal)` for every sequence xs
of 1..N tokens. A program for which this cannot be promised is refused, with all the reasons at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from ..models.errors import InputError
from ..models.values import canonical_vocab
from .affine import Means, linear_term
from .analysis import (
    Analysis,
    NoDefault,
    aggregate_range,
    analyse,
    indices_range,
    linear_range,
    map_domain,
    map_words,
    references,
    start,
    width_range,
)
from .core import (
    Aggregate,
    And,
    CoreProgram,
    Indices,
    Linear,
    Map,
    Node,
    Not,
    Or,
    Select,
    Table,
    Tokens,
    Value,
    Width,
)
from .ranges import Refused, Words
from .rasp import (
    AggregateOp,
    AndOp,
    Constant,
    Expression,
    IndicesOp,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    SOp,
    TokensOp,
    WidthOp,
    describe,
)
from .structure import canonicalise, children, nodes_of
from .tabulation import Body, aggregate_twins, tabulate, tabulate_predicate
from .terms import affine
from .widths import width_bounds

MAX_LEN = 1 << 10
LARGE = 1 << 16
"""An affine map with a larger table becomes a linear combination."""
MOST_JOINT = 1 << 22


class CompileError(InputError):
    """A program that cannot be compiled; one line for each problem: the node with its place, the reason, the remedy."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join((message, *(f"  {problem}" for problem in problems))))
        self.problems = tuple(problems)


@dataclass(frozen=True, eq=False)
class Lowered:
    """A core program, and what is known beside it.

    `hints`: the encodings its nodes were wished to have (node -> "categorical" or "numerical"); `origins`: what
    messages call the expression that each node comes from, with its place; `analysis`: the facts about the program.
    """

    core: CoreProgram
    hints: dict[int, Literal["categorical", "numerical"]]
    origins: tuple[str, ...]
    analysis: Analysis


def lower(
    program: SOp, vocab: Iterable[Value] | None, max_len: int | None, causal: bool = False, name: str | None = None
) -> CoreProgram:
    """The core program that computes `program` on every sequence of 1..max_len tokens of `vocab`.

    Structurally equal parts are merged, parts that nothing reads are left out, the vocabulary is put in canonical
    order. Raises `CompileError` (an `InputError`) listing everything that stands in the way.
    """
    return lower_with_hints(program, vocab, max_len, causal, name).core


def lower_with_hints(
    program: SOp, vocab: Iterable[Value] | None, max_len: int | None, causal: bool = False, name: str | None = None
) -> Lowered:
    """As `lower`, with the encoding hints, the places and the facts."""
    words, longest = _check_input(program, vocab, max_len, causal)
    title = name or program.name or "program"
    merged = canonicalise(program)
    lowering = _Lowering(words, longest, causal)
    lowering.place_all(merged, title)
    return lowering.finish(merged, title)


def lower_beside(
    program: SOp, others: Sequence[SOp], vocab: Iterable[Value] | None, max_len: int | None, causal: bool = False
) -> tuple[CoreProgram, int, list[int]]:
    """The core program of `program`, extended by what `others` need beside it.

    Returns the extended program, how many of its nodes `lower(program, ...)` has (they come first, and are the same),
    and the node that each of the others is. Raises `CompileError`.
    """
    words, longest = _check_input(program, vocab, max_len, causal)
    title = program.name or "program"
    merged = canonicalise(program)
    lowering = _Lowering(words, longest, causal)
    lowering.place_all(merged, title)
    for other in others:
        lowering.place_all(other, title)
    return lowering.extended(merged, [lowering.place[other] for other in others], title)


class Stepwise:
    """Expressions lowered one after the other, to learn which of their values occur together."""

    def __init__(self, vocab: tuple[Value, ...], max_len: int, causal: bool) -> None:
        self._lowering = _Lowering(vocab, max_len, causal)

    def occurring(self, expressions: Sequence[SOp]) -> set[tuple[Value, ...]] | None:
        """The values that these may have at one position, on some input; None if they are too many to list.

        A superset of those that they do have. Raises `CompileError` for what cannot be lowered.
        """
        for expression in expressions:
            self._lowering.place_all(expression, "program")
        ranges = self._lowering.ranges
        nodes = [self._lowering.place[expression] for expression in expressions]
        basis = map_domain(ranges, nodes)
        if ranges.product(basis) > LARGE or math.prod(ranges.sizes(basis)) > MOST_JOINT:
            return None
        possible = np.broadcast_to((ranges.joint(basis) != 0).any(axis=0), ranges.sizes(basis))
        columns = [ranges.function(node, basis)[possible] for node in nodes]
        rows = np.unique(np.stack(columns, axis=1), axis=0) if columns else np.zeros((1, 0), np.int32)
        lists = [ranges.values(node) for node in nodes]
        return {
            tuple(v[i] for v, i in zip(lists, row, strict=True)) for row in rows.tolist() if min(row, default=0) >= 0
        }


def _check_input(program: object, vocab: object, max_len: object, causal: object) -> tuple[tuple[Value, ...], int]:
    if not isinstance(program, SOp):
        raise CompileError(
            f"a program is an s-op, got {program!r} of type {type(program).__name__}; "
            "from a selector make one with aggregate or selector_width"
        )
    if isinstance(max_len, bool) or not isinstance(max_len, (int, np.integer)):
        raise CompileError(f"max_len must be an integer, got {max_len!r}")
    if not 1 <= max_len <= MAX_LEN:
        raise CompileError(f"max_len must be at least 1 and at most {MAX_LEN}, got {max_len}")
    if not isinstance(causal, bool):
        raise CompileError(f"causal must be True or False, got {causal!r}")
    try:
        words = canonical_vocab(vocab)
    except InputError as error:
        raise CompileError(str(error)) from None
    if None in words:
        raise CompileError("the vocabulary contains None, which in RASP stands for no value; use a string or a number")
    kinds: dict[str, Value] = {}
    for word in words:
        kind = "string" if isinstance(word, str) else "truth value" if isinstance(word, bool) else "number"
        kinds.setdefault(kind, word)
    if len(kinds) > 1:
        (first, a), (second, b), *_ = kinds.items()
        raise CompileError(
            f"the vocabulary mixes types: {a!r} is a {first} and {b!r} is a {second}; use tokens of one type"
        )
    return words, int(max_len)


class _Lowering:
    """The core program being built. Nodes that are equal are placed once."""

    def __init__(self, vocab: tuple[Value, ...], max_len: int, causal: bool) -> None:
        self.vocab, self.max_len, self.causal = vocab, max_len, causal
        self.ranges, words = start(vocab, self.max_len, causal)
        self.place: dict[Expression, int] = {}
        self.failed: set[Expression] = set()
        self.twins: dict[int, frozenset[int]] = {}
        self.current: Expression | None = None
        self.origins: list[Expression | None] = []
        self._known: dict[tuple[object, ...], int] = {}
        self.add(Tokens(vocab), words)
        positions = indices_range(self.ranges)
        self.add(Indices(positions.values), positions.words)
        self.means = Means(self.ranges, self.add_aggregate, self.add_map, {})

    # -- nodes --------------------------------------------------------------------------------------------------------

    def place_all(self, program: SOp, title: str) -> None:
        """Place what a program reads, and itself. Raises `CompileError` with all that cannot be."""
        problems: list[str] = []
        for node in nodes_of(program):
            if node in self.place:
                continue
            if any(child in self.failed for child in children(node)):
                self.failed.add(node)
                continue
            try:
                self.current = node
                self.place[node] = self.node(node)
            except Refused as why:
                self.failed.add(node)
                problems.append(f"{describe(node)}: {why}")
        if problems:
            head = f"cannot compile {title!r} for {len(self.vocab)} tokens and length {self.max_len}:"
            raise CompileError(head, problems)

    def node(self, op: Expression) -> int:
        """Place one node of the language whose children are placed. Raises `Refused`."""
        name = op.name or ""
        place = self.place
        match op:
            case TokensOp():
                return 0
            case IndicesOp():
                return 1
            case Constant(value):
                return self.constant(value, name)
            case MapOp(function, args):
                labels = [arg.name or f"x{t}" for t, arg in enumerate(args)]
                return self.map(Body.of(function), [place[arg] for arg in args], labels, name)
            case LinearOp(args, coefficients, constant):
                return self.linear([place[arg] for arg in args], coefficients, constant, name)
            case SelectOp(keys, queries, predicate):
                table = tabulate_predicate(
                    self.ranges, predicate, place[keys], place[queries], self.twins, ("the key", "the query")
                )
                return self.add(Select(place[keys], place[queries], table, name), None)
            case AndOp(left, right):
                return self.combine(And(place[left], place[right], name))
            case OrOp(left, right):
                return self.combine(Or(place[left], place[right], name))
            case NotOp(arg):
                return self.negate(place[arg], name)
            case WidthOp(selector):
                found = width_range(self.ranges, place[selector])
                return self.add(Width(place[selector], found.values, name), found.words)
            case AggregateOp(selector, value, default):
                return self.add_aggregate(place[selector], place[value], default, name)
        raise AssertionError(f"{op!r} is no node of the language")

    def constant(self, value: Value, name: str = "") -> int:
        words = self.ranges.all_lengths()[:, None]
        return self.add(Map((), np.array(0, np.int32), (value,), name), words)

    def map(self, body: Body, args: Sequence[int], labels: Sequence[str], name: str) -> int:
        """A function of placed nodes: constants and repetitions among the arguments are taken out first."""
        free = list(dict.fromkeys(arg for arg in args if self.fixed(arg) is None))
        if len(free) < len(args):
            parts = [self.fixed(arg) or free.index(arg) for arg in args]
            if (None,) in parts:
                return self.constant(None, name)
            body = body.with_fixed(parts)
            labels = [labels[list(args).index(arg)] for arg in free]
        size = math.prod(self.ranges.sizes(free))
        form = self.means.of_term(body.term, free)
        placed = None if form is None else self.means.merge(form, name)
        if placed is None and size > LARGE and body.term is not None and self.numeric(free):
            formula = affine(body.term, len(free))
            placed = None if formula is None else self.add_linear(free, *formula, name)
        if placed is None and (simpler := self.means.rewrite(body, free)) is not None:
            return self.map(
                *simpler, [self.ranges.nodes[arg].name or f"x{t}" for t, arg in enumerate(simpler[1])], name
            )
        if placed is None:
            placed = self.add_map(body, free, labels, name)
        if form is not None:
            self.means.forms.setdefault(placed, form)
        return placed

    def linear(self, args: Sequence[int], coefficients: Sequence[Fraction], constant: Fraction, name: str) -> int:
        for arg in args:
            for value, ever in zip(self.ranges.values(arg), self.ranges.ever(arg).tolist(), strict=True):
                if ever and isinstance(value, str):
                    raise Refused(
                        f"a linear combination is of numbers, and an argument may be {value!r}; map it to numbers"
                    )
        body = Body.of_term(linear_term(coefficients, constant), len(args))
        return self.map(body, args, [f"x{t}" for t in range(len(args))], name)

    def negate(self, selector: int, name: str) -> int:
        inner = self.ranges.nodes[selector]
        if isinstance(inner, Not):
            return inner.arg
        if isinstance(inner, Select):
            return self.add(Select(inner.keys, inner.queries, ~inner.table, name), None)
        return self.add(Not(selector, name), None)

    def combine(self, node: And | Or) -> int:
        """Selects of the same keys and queries combine to one select."""
        left, right = self.ranges.nodes[node.left], self.ranges.nodes[node.right]
        if node.left == node.right:
            return node.left
        if isinstance(left, Select) and isinstance(right, Select):
            if (left.keys, left.queries) == (right.keys, right.queries):
                table = left.table & right.table if isinstance(node, And) else left.table | right.table
                return self.add(Select(left.keys, left.queries, table, node.name), None)
        return self.add(node, None)

    # -- placing ------------------------------------------------------------------------------------------------------

    def add(self, node: Node, words: Words | None) -> int:
        key = _identity(node)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self.ranges.append(node, words)
            self.origins.append(self.current)
        elif node.name and not self.ranges.nodes[found].name:
            self.ranges.nodes[found] = replace(self.ranges.nodes[found], name=node.name)
        return found

    def add_map(self, body: Body, args: Sequence[int], labels: Sequence[str], name: str) -> int:
        found = tabulate(self.ranges, body, args, map_domain(self.ranges, args), self.twins, labels)
        kept, table = _that_matter(args, found.table)
        node = Map(kept, table, found.values, name)
        return self.with_twins(self.add(node, map_words(self.ranges, node)), found.twins)

    def add_linear(self, args: Sequence[int], coefficients: Sequence[Fraction], constant: Fraction, name: str) -> int:
        kept = [(arg, c) for arg, c in zip(args, coefficients, strict=True) if c or None in self.ranges.values(arg)]
        nodes, factors = tuple(arg for arg, _ in kept), tuple(c for _, c in kept)
        found = linear_range(self.ranges, nodes, factors, constant)
        return self.add(Linear(nodes, factors, constant, found.values, name), found.words)

    def add_aggregate(self, selector: int, value: int, default: Value | NoDefault, name: str = "") -> int:
        found = aggregate_range(self.ranges, selector, value, default)
        index = -1
        if not isinstance(default, NoDefault) and default in found.values:
            lo, _, possible = width_bounds(self.ranges, selector)
            index = found.values.index(default) if bool((possible & (lo == 0)).any()) else -1
        node = Aggregate(selector, value, index, found.values, name)
        return self.with_twins(self.add(node, found.words), aggregate_twins(self.ranges, node, default, self.twins))

    def with_twins(self, index: int, twins: frozenset[int]) -> int:
        if twins:
            self.twins[index] = self.twins.get(index, frozenset()) | twins
        return index

    def fixed(self, index: int) -> tuple[Value] | None:
        """The value of a node with one value only."""
        values = self.ranges.values(index)
        return (values[0],) if len(values) == 1 and index not in self.twins else None

    def numeric(self, args: Sequence[int]) -> bool:
        return not any(isinstance(value, str) for arg in args for value in self.ranges.values(arg))

    # -- finishing ----------------------------------------------------------------------------------------------------

    def finish(self, program: SOp, name: str) -> Lowered:
        """The nodes that the output needs, renumbered."""
        output = self.place[program]
        nodes = self.ranges.nodes
        kept = self.needed([output])
        renumbered = {old: new for new, old in enumerate(kept)}
        moved = tuple(_moved(nodes[index], renumbered) for index in kept)
        core = CoreProgram(self.vocab, self.max_len, self.causal, moved, renumbered[output], name)
        hints: dict[int, Literal["categorical", "numerical"]] = {}
        for op, index in self.place.items():
            if isinstance(op, SOp) and index in renumbered and op.encoding != "auto":
                hints.setdefault(renumbered[index], op.encoding)
        origins = tuple(_origin(self.origins[index], nodes[index]) for index in kept)
        return Lowered(core, hints, origins, analyse(core) if len(kept) < len(nodes) else self.facts(core))

    def extended(self, program: SOp, others: Sequence[int], name: str) -> tuple[CoreProgram, int, list[int]]:
        """The nodes that the output needs, then those that other nodes need besides; see `lower_beside`."""
        output = self.place[program]
        kept = self.needed([output])
        n_source = len(kept)
        kept += [index for index in self.needed(others) if index not in set(kept)]
        renumbered = {old: new for new, old in enumerate(kept)}
        moved = tuple(_moved(self.ranges.nodes[index], renumbered) for index in kept)
        core = CoreProgram(self.vocab, self.max_len, self.causal, moved, renumbered[output], name)
        return core, n_source, [renumbered[other] for other in others]

    def needed(self, wanted: Iterable[int]) -> list[int]:
        """The positions of nodes, and of all that they read, in order; always those of tokens and indices."""
        found = {0, 1, *wanted}
        for index in range(len(self.ranges.nodes) - 1, 1, -1):
            if index in found:
                found.update(references(self.ranges.nodes[index]))
        return sorted(found)

    def facts(self, core: CoreProgram) -> Analysis:
        """The facts about the program, where all nodes placed are in it: those found on the way."""
        possible = tuple(None if words is None else self.ranges.unpack(words) for words in self.ranges.words)
        return Analysis(core, self.ranges, possible)


def _origin(expression: Expression | None, node: Node) -> str:
    if expression is None:
        return node.name
    return describe(expression)


def _that_matter(args: Sequence[int], table: Table) -> tuple[tuple[int, ...], Table]:
    """The arguments that a table depends on, where it is defined, and the table over them.

    Of two arguments that tell the same, one stays; the later node goes.
    """
    kept = list(args)
    for arg in sorted(args, reverse=True):
        axis = kept.index(arg)
        high = table.max(axis=axis)
        low = np.where(table < 0, high.max(initial=0) + 1, table).min(axis=axis)
        if not (low < high).any():
            kept.remove(arg)
            table = high
    return tuple(kept), table


def _identity(node: Node) -> tuple[object, ...]:
    """What makes two nodes the same: everything but the name. True and 1 are kept apart."""
    parts: list[object] = [type(node).__name__]
    for field, content in vars(node).items():
        if isinstance(content, np.ndarray):
            parts.append((content.shape, content.tobytes()))
        elif field == "values":
            parts.append(tuple((type(value).__name__, value) for value in content))
        elif field != "name":
            parts.append(content)
    return tuple(parts)


def _moved(node: Node, to: dict[int, int]) -> Node:
    match node:
        case Tokens() | Indices():
            return node
        case Map() | Linear():
            return replace(node, args=tuple(to[arg] for arg in node.args))
        case Select():
            return replace(node, keys=to[node.keys], queries=to[node.queries])
        case And() | Or():
            return replace(node, left=to[node.left], right=to[node.right])
        case Not():
            return replace(node, arg=to[node.arg])
        case Aggregate():
            return replace(node, selector=to[node.selector], value=to[node.value])
        case Width():
            return replace(node, selector=to[node.selector])
