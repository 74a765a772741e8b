"""From tables to formulas: the simplest term that agrees with a table wherever the table says something.

Every candidate is evaluated, exactly, on the whole table before it is taken: a formula never stands for a table that it
does not equal. What no candidate fits stays a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

from ..compiler.core import Value
from ..compiler.functions import Function, Undefined
from ..compiler.terms import COMPARISONS, Apply, Arg, Const, Term

Key: TypeAlias = tuple[Value, ...]
Cells: TypeAlias = Mapping[Key, Value]

MAX_CELLS = 1 << 14
MAX_CONSTANTS = 40
MAX_SPLIT = 1 << 10
MAX_TRIES = 200
MAX_EVALUATIONS = 1 << 17
MAX_JOINED = 5
"""No longer conjunctions are looked for."""
FEW = 3
"""No longer lists are written out as `in (...)`."""


def fit(cells: Cells, arity: int) -> Function:
    """A function that equals the table on all of its keys: a formula if one is found, else the table itself."""
    if cells and len(cells) <= MAX_CELLS:
        for term in candidates(cells, arity):
            if agrees(term, cells, arity):
                return Function(arity, term=term)
    return Function(arity, table=dict(cells))


def fit_predicate(cells: Mapping[Key, bool]) -> Function:
    """As `fit`, for a predicate of a key (argument 0) and a query (argument 1)."""
    if len(cells) <= MAX_CELLS:
        for term in _predicates(cells):
            if agrees(term, cells, 2):
                return Function(2, term=term)
    return Function(2, table=dict(cells))


def agrees(term: Term, cells: Mapping[Key, Value], arity: int) -> bool:
    """Whether the term has the table's value at each of its keys, of the table's kind (a number is no truth value)."""
    function = Function(arity, term=term)
    for key, wanted in cells.items():
        got = function.try_evaluate(key)
        if isinstance(got, Undefined) or got != wanted or (got is None) != (wanted is None):
            return False
        if isinstance(got, bool) != isinstance(wanted, bool):
            return False
    return True


def candidates(cells: Cells, arity: int) -> Iterator[Term]:
    """Terms that may fit, the simplest first."""
    wanted = list(dict.fromkeys(cells.values()))
    if len(wanted) == 1:
        yield Const(wanted[0])
    if arity == 0:
        return
    for t in range(arity):
        yield Arg(t)
    truth = all(isinstance(value, bool) for value in wanted)
    numbers = all(_is_number(value) for value in wanted)
    if truth:
        yield from _truths(cells, arity)
    elif numbers:
        yield from _numbers(cells, arity)
    yield from _choices(cells, arity)


def _numbers(cells: Cells, arity: int) -> Iterator[Term]:
    affine = affine_of(cells, arity)
    if affine is not None:
        yield affine
    args = [Arg(t) for t in range(arity)]
    if arity > 1:
        yield from (Apply(op, tuple(args)) for op in ("min", "max") if arity > 1)
    for pair in itertools.permutations(args, 2):
        yield from (Apply(op, pair) for op in ("*", "/", "//", "%"))
        yield Apply("abs", (Apply("-", pair),))
    for arg in args:
        yield Apply("abs", (arg,))
        for c in _constants(cells, arg.index):
            yield Apply("min", (arg, Const(c)))
            yield Apply("max", (arg, Const(c)))
            yield Apply("abs", (Apply("-", (arg, Const(c))),))
    for modulus in range(2, 17):
        inners: list[Term] = [*args, *(Apply("+", pair) for pair in itertools.combinations(args, 2))]
        for inner in inners:
            yield Apply("%", (inner, Const(modulus)))
            yield Apply("//", (inner, Const(modulus)))
    for pair in itertools.permutations(args, 2):
        for extra in (-1, 1):
            yield Apply("max", (Apply("+", (Apply("-", pair), Const(extra))), Const(0)))
        yield Apply("max", (Apply("-", pair), Const(0)))


def _truths(cells: Cells, arity: int, joined: bool = True) -> Iterator[Term]:
    args = [Arg(t) for t in range(arity)]
    yield from (Apply("not", (arg,)) for arg in args)
    for left, right in itertools.permutations(args, 2):
        yield from (Apply(op, (left, right)) for op in COMPARISONS)
    if arity > 1 and all(isinstance(value, bool) for key in cells for value in key):
        yield from _connectives(cells, args)
    for arg in args:
        for c in _constants(cells, arg.index):
            yield from (Apply(op, (arg, Const(c))) for op in COMPARISONS)
    if arity == 1:
        yield from _members(cells)
        for modulus, rest in ((m, r) for m in range(2, 10) for r in range(m)):
            yield Apply("==", (Apply("%", (args[0], Const(modulus))), Const(rest)))
    if arity == 2 and all(_is_number(value) for key in cells for value in key):
        for op in ("-", "+"):
            inner = Apply(op, (args[0], args[1]))
            differences = sorted({_combined(op, key) for key in cells})
            for c in differences[:MAX_CONSTANTS]:
                yield from (Apply(comparison, (inner, Const(_whole(c)))) for comparison in COMPARISONS)
    if arity > 1:
        yield from _sums_compared(cells, arity)
        if joined:
            yield from _joined(cells, arity)


def _joined(cells: Cells, arity: int) -> Iterator[Term]:
    """A conjunction, or a disjunction, of a few comparisons: greedily those that exclude most of what is left."""
    literals: list[Term] = []
    for t in range(arity):
        values = list(dict.fromkeys(key[t] for key in cells))
        if all(isinstance(value, bool) for value in values):
            literals += [Arg(t), Apply("not", (Arg(t),))]
            continue
        ordered = all(map(_is_number, values))
        for c in values[:MAX_CONSTANTS]:
            literals += [Apply(op, (Arg(t), Const(c))) for op in (("==", "!=", "<", ">=") if ordered else ("==", "!="))]
    literals += [Apply(op, (Arg(s), Arg(t))) for s, t in itertools.combinations(range(arity), 2) for op in COMPARISONS]
    if len(literals) * len(cells) > MAX_EVALUATIONS:
        return
    rows: dict[Term, dict[Key, bool]] = {}
    for term in literals:
        function = Function(arity, term=term)
        found = {key: function.try_evaluate(key) for key in cells}
        if all(isinstance(value, bool) for value in found.values()):
            rows[term] = found  # type: ignore[assignment]
    for op, wanted in (("and", True), ("or", False)):
        usable = {
            term: row for term, row in rows.items() if all(row[k] == wanted for k, v in cells.items() if v == wanted)
        }
        left = {key for key, value in cells.items() if value != wanted}
        chosen: list[Term] = []
        while left and len(chosen) < MAX_JOINED and usable:
            best = max(usable, key=lambda term: sum(usable[term][key] != wanted for key in left))
            gone = {key for key in left if usable[best][key] != wanted}
            if not gone:
                break
            chosen.append(best)
            left -= gone
        if not left and chosen:
            result = chosen[0]
            for term in chosen[1:]:
                result = Apply(op, (result, term))
            yield result


def _sums_compared(cells: Cells, arity: int) -> Iterator[Term]:
    """Sums with signs, compared with a number."""
    if arity > 4 or not all(_is_number(value) for key in cells for value in key):
        return
    for signs in itertools.product((1, -1), repeat=arity):
        if signs[0] < 0:
            continue
        totals: dict[Fraction, Value] = {}
        for key, value in cells.items():
            total = sum((s * Fraction(v) for s, v in zip(signs, key, strict=True)), Fraction(0))  # type: ignore[arg-type]
            if totals.setdefault(total, value) != value:
                break
        else:
            inner: Term = Arg(0)
            for t in range(1, arity):
                inner = Apply("+" if signs[t] > 0 else "-", (inner, Arg(t)))
            for c in sorted(totals)[:MAX_CONSTANTS]:
                yield from (Apply(op, (inner, Const(_whole(c)))) for op in COMPARISONS)


def _connectives(cells: Cells, args: Sequence[Arg]) -> Iterator[Term]:
    """Boolean functions of truth values, minimised by sympy; combinations that do not occur do not matter."""
    for op in ("and", "or"):
        term: Term = args[0]
        for arg in args[1:]:
            term = Apply(op, (term, arg))
        yield term
    if len(args) > 6:
        return
    from sympy import symbols
    from sympy.logic import POSform, SOPform

    names = symbols([f"x{t}" for t in range(len(args))])
    ones = [list(map(int, key)) for key, value in cells.items() if value]  # type: ignore[arg-type]
    unknown = [
        list(bits) for bits in itertools.product((0, 1), repeat=len(args)) if tuple(map(bool, bits)) not in cells
    ]
    forms = [_from_logic(form(names, ones, unknown)) for form in (SOPform, POSform)]
    yield from sorted((form for form in forms if form is not None), key=lambda form: form.size)


def _from_logic(expression: object) -> Term | None:
    from sympy import And, Not, Or, Symbol

    if isinstance(expression, Symbol):
        return Arg(int(expression.name[1:]))
    if isinstance(expression, (And, Or, Not)):
        parts = [_from_logic(arg) for arg in sorted(expression.args, key=str)]
        if any(part is None for part in parts):
            return None
        terms = [part for part in parts if part is not None]
        if isinstance(expression, Not):
            return Apply("not", (terms[0],))
        found = terms[0]
        for part in terms[1:]:
            found = Apply("and" if isinstance(expression, And) else "or", (found, part))
        return found
    return None


def _members(cells: Cells) -> Iterator[Term]:
    inside = [key[0] for key, value in cells.items() if value]
    outside = [key[0] for key, value in cells.items() if not value]
    if 1 < len(inside) <= FEW:
        yield Apply("in", (Arg(0), *map(Const, inside)))
    if 1 < len(outside) <= FEW:
        yield Apply("not", (Apply("in", (Arg(0), *map(Const, outside))),))


def _choices(cells: Cells, arity: int, depth: int = 1) -> Iterator[Term]:
    """`where(condition, then, otherwise)`: the condition is on one argument, the two cases are simple."""
    if len(cells) > MAX_SPLIT:
        return
    for t in range(arity):
        for condition in _conditions(cells, t, thresholds=depth > 0):
            holds = Function(arity, term=condition)
            parts: tuple[dict[Key, Value], dict[Key, Value]] = ({}, {})
            for key, value in cells.items():
                parts[0 if holds.try_evaluate(key) is True else 1][key] = value
            if parts[0] and parts[1]:
                then = _simple(parts[0], arity, depth)
                otherwise = None if then is None else _simple(parts[1], arity, depth)
                if then is not None and otherwise is not None:
                    yield Apply("where", (condition, then, otherwise))


def _conditions(cells: Cells, argument: int, thresholds: bool) -> Iterator[Term]:
    """Conditions on one argument that tell apart values with different tables over the other arguments."""
    tables: dict[Value, dict[Key, Value]] = {}
    for key, value in cells.items():
        tables.setdefault(key[argument], {})[(*key[:argument], *key[argument + 1 :])] = value
    classes: list[list[Value]] = []
    for value, table in tables.items():
        home = next((c for c in classes if _compatible(tables[c[0]], table)), None)
        if home is None:
            classes.append([value])
        else:
            home.append(value)
    arg = Arg(argument)
    if all(isinstance(value, bool) for value in tables):
        yield arg
        return
    for group in sorted(classes, key=len)[: 1 if len(classes) == 2 else FEW]:
        if len(group) == 1:
            yield Apply("==", (arg, Const(group[0])))
        elif len(group) <= FEW:
            yield Apply("in", (arg, *map(Const, group)))
    if thresholds and len(classes) > 2 and all(map(_is_number, tables)):
        for c in sorted(tables)[1:MAX_CONSTANTS]:  # type: ignore[type-var]
            yield Apply("<", (arg, Const(c)))


def _compatible(one: Mapping[Key, Value], other: Mapping[Key, Value]) -> bool:
    """Whether two tables agree wherever both are known, as they are somewhere."""
    common = one.keys() & other.keys()
    return bool(common) and all(one[k] == other[k] and (one[k] is None) == (other[k] is None) for k in common)


def _simple(cells: Cells, arity: int, depth: int) -> Term | None:
    """A constant, an argument, an affine function or (while `depth` lasts) another choice that fits."""
    wanted = list(dict.fromkeys(cells.values()))
    if len(wanted) == 1 and wanted[0] is not None:
        return Const(wanted[0])
    found: Iterator[Term] = iter(())
    if all(map(_is_number, wanted)) and (affine := affine_of(cells, arity)) is not None:
        return affine
    if all(isinstance(value, bool) for value in wanted):
        found = itertools.islice(_truths(cells, arity, joined=False), MAX_TRIES)
    for term in itertools.chain(map(Arg, range(arity)), found, _choices(cells, arity, depth - 1) if depth else ()):
        if agrees(term, cells, arity):
            return term
    return None


def affine_of(cells: Cells, arity: int) -> Term | None:
    """constant + sum of coefficient times argument, if the table is that (exactly, on all its keys)."""
    if not cells or not all(_is_number(v) for key, value in cells.items() for v in (*key, value)):
        return None
    reduced: list[tuple[int, list[Fraction]]] = []  # (pivot, row), in echelon form: coefficients, constant, value
    for key, value in cells.items():
        row = [*(Fraction(v) for v in key), Fraction(1), Fraction(value)]  # type: ignore[arg-type]
        for pivot, other in reduced:
            if factor := row[pivot]:
                row = [x - factor * y for x, y in zip(row, other, strict=True)]
        first = next((t for t, x in enumerate(row) if x), None)
        if first == arity + 1:
            return None
        if first is not None:
            reduced.append((first, [x / row[first] for x in row]))
    numbers = [Fraction(0)] * (arity + 1)
    for pivot, row in reversed(reduced):
        numbers[pivot] = row[-1] - sum((row[t] * numbers[t] for t in range(arity + 1) if t != pivot), Fraction(0))
    return _sum(numbers[:-1], numbers[-1])


def _sum(coefficients: Sequence[Fraction], constant: Fraction) -> Term:
    found: Term | None = None
    order = sorted((t for t, c in enumerate(coefficients) if c), key=lambda t: coefficients[t] < 0)
    for t in order:
        c = coefficients[t]
        size = abs(c)
        part: Term = Arg(t) if size == 1 else Apply("*", (Const(_whole(size)), Arg(t)))
        if found is None:
            found = part if c > 0 else Apply("neg", (part,))
        else:
            found = Apply("+" if c > 0 else "-", (found, part))
    if found is None:
        return Const(_whole(constant))
    if not constant:
        return found
    if isinstance(found, Apply) and found.op == "neg":
        return Apply("-", (Const(_whole(constant)), found.args[0]))
    return Apply("+" if constant > 0 else "-", (found, Const(_whole(abs(constant)))))


def _predicates(cells: Mapping[Key, bool]) -> Iterator[Term]:
    """Terms over (key, query), the simplest first."""
    wanted = set(cells.values())
    if len(wanted) <= 1:
        yield Const(bool(wanted) and wanted.pop())
    key, query = Arg(0), Arg(1)
    yield from (Apply(op, (key, query)) for op in COMPARISONS)
    for arg in (key, query):
        values = list(dict.fromkeys(k[arg.index] for k in cells))
        if all(isinstance(value, bool) for value in values):
            yield arg
            yield Apply("not", (arg,))
        for c in values[:MAX_CONSTANTS]:
            yield Apply("==", (arg, Const(c)))
            yield Apply("!=", (arg, Const(c)))
        if all(_is_number(value) for value in values):
            for c in values[:MAX_CONSTANTS]:
                yield Apply("<", (arg, Const(c)))
                yield Apply(">=", (arg, Const(c)))
        alone: dict[Key, Value] = {(k[arg.index],): value for k, value in cells.items()}
        yield from (_renamed(term, arg) for term in _members(alone))
    unlike = Apply("!=", (key, query))
    for c in list(dict.fromkeys(k[0] for k in cells))[:MAX_CONSTANTS]:
        for arg in (key, query):
            yield Apply("or", (Apply("==", (key, query)), Apply("==", (arg, Const(c)))))
            yield Apply("and", (unlike, Apply("!=", (arg, Const(c)))))
    if not all(_is_number(value) for k in cells for value in k):
        return
    for c in sorted({Fraction(k[0]) - Fraction(k[1]) for k in cells}, key=abs)[:MAX_CONSTANTS]:  # type: ignore[arg-type]
        if c:
            shifted = Apply("+" if c > 0 else "-", (query, Const(_whole(abs(c)))))
            yield from (Apply(op, (key, shifted)) for op in COMPARISONS)
    for c in sorted({Fraction(k[0]) + Fraction(k[1]) for k in cells})[:MAX_CONSTANTS]:  # type: ignore[arg-type]
        yield from (Apply(op, (Apply("+", (key, query)), Const(_whole(c)))) for op in COMPARISONS)
    for c in range(1, 9):
        apart = Apply("-", (query, key))
        yield Apply("and", (Apply("<=", (Const(0), apart)), Apply("<=", (apart, Const(c)))))
        yield Apply("and", (Apply("<", (Const(0), apart)), Apply("<=", (apart, Const(c)))))
        yield Apply("<=", (Apply("abs", (apart,)), Const(c)))
    for modulus in range(2, 9):
        yield Apply("==", (Apply("%", (key, Const(modulus))), Apply("%", (query, Const(modulus)))))


def _renamed(term: Term, arg: Arg) -> Term:
    """A term in argument 0 as one in another argument."""
    if isinstance(term, Apply):
        return Apply(term.op, tuple(_renamed(part, arg) for part in term.args))
    return arg if isinstance(term, Arg) else term


def _constants(cells: Cells, argument: int) -> list[Value]:
    """The argument's values as constants of formulas: 0 and the least whole numbers first."""
    found = dict.fromkeys(key[argument] for key in cells if key[argument] is not None)
    if found and all(map(_is_number, found)):
        found = dict.fromkeys([0, *sorted(found, key=lambda c: (Fraction(c).denominator, abs(c)))])  # type: ignore[arg-type]
    return list(found)[:MAX_CONSTANTS]


def _combined(op: str, key: Key) -> Fraction:
    left, right = Fraction(key[0]), Fraction(key[1])  # type: ignore[arg-type]
    return left - right if op == "-" else left + right


def _whole(number: Fraction) -> Value:
    return int(number) if number.denominator == 1 else number


def _ratio(value: Value) -> tuple[int, int]:
    number = Fraction(value)  # type: ignore[arg-type]
    return number.numerator, number.denominator


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, Fraction)) and math.isfinite(value)
