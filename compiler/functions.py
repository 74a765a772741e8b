"""Functions inside maps and predicates inside selects: exact to evaluate, readable where possible.

A function comes from a Python callable, a sympy Lambda or expression, a table (dict), or an operator on s-ops. Its
meaning is exact: ints and Fractions reach a callable as `exact.ExactInt` and `exact.ExactFraction`, so `/` does not
round. Floats a callable produces from something else than its arguments (`math.sqrt`, `1 / 3`) are taken as the
rationals they are; bools reach it as bools, so `(x > 1) / 3 == y`, hiding such a float in a comparison, rounds. Where a
function has no value (it raises, or returns what is no RASP value), the outcome is `Undefined(reason)`. A callable must
be a pure function of its arguments, and must not tell True from 1: they are one value.

None never reaches a function: maps and selectors are None-strict, which the interpreter and the lowering see to.
"""

from __future__ import annotations

import enum
import inspect
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice, product
from typing import Any, TypeAlias

from ..models.errors import InputError
from . import terms
from .core import Value, normalise
from .exact import ExactInt, lift, settle
from .terms import Affine, Apply, Arg, Const, Term


@dataclass(frozen=True)
class Undefined:
    """The function has no value here, and why."""

    reason: str


Table: TypeAlias = Mapping[tuple[Value, ...], Value]
FunctionSource: TypeAlias = "Function | Callable[..., object] | Mapping[Any, object] | Any"

_PROBES: tuple[Value, ...] = (-2, 0, 1, 2, 7, 1_000_003, Fraction(1, 2), Fraction(-7, 3), True, False, "a", "bc")
_MAX_PROBES = 150


@dataclass(frozen=True, eq=False, repr=False)
class Function:
    """A function of `arity` values; exactly one of `term`, `table` and `python` gives its meaning.

    Laws: `tabulate(domains)[k] == try_evaluate(the k-th tuple of the product of domains, last fastest)`;
    `affine() == (c, c0)` implies `try_evaluate(x) == c0 + sum_t c[t] * x[t]` for numbers x (True counts as 1);
    equal `key` implies equal values.
    """

    arity: int
    term: Term | None = None
    table: Table | None = None
    python: Callable[..., object] | None = None

    @staticmethod
    def of(source: FunctionSource, arity: int) -> Function:
        """The function of a callable, a dict, or a sympy Lambda or expression.

        A dict maps values (tuples of values for two or more arguments) to values.
        Raises `InputError` if the source is none of these, or does not take `arity` arguments.
        """
        if isinstance(source, Function):
            if source.arity != arity:
                raise InputError(f"{source.text} takes {source.arity} arguments, got {arity}: pass one s-op for each")
            return source
        if isinstance(source, Mapping):
            return Function(arity, table=_table(source, arity))
        if type(source).__module__.partition(".")[0] == "sympy":
            from .sympy_terms import from_sympy

            return Function(arity, term=from_sympy(source, arity))
        if callable(source):
            _check_arity(source, arity)
            return Function(arity, python=source)
        raise InputError(
            f"a map needs a callable, a dict or a sympy expression, got {source!r} of type {type(source).__name__}"
        )

    def try_evaluate(self, values: Sequence[Value]) -> Value | Undefined:
        """The value at `values` (none of them None), or why there is none. Never raises for what the function does."""
        if self.python is not None:
            return _call(self.python, [lift(value) for value in values])
        return _guarded(self._evaluator, values)

    def tabulate(self, domains: Sequence[Sequence[Value]]) -> list[Value | Undefined]:
        """The values on the product of `domains`, in row-major order: the last argument changes fastest."""
        if self.python is not None:
            function = self.python
            return [_call(function, values) for values in product(*([lift(v) for v in domain] for domain in domains))]
        evaluator = self._evaluator
        return [_guarded(evaluator, values) for values in product(*domains)]

    @cached_property
    def _evaluator(self) -> Callable[..., Any]:
        if self.term is not None:
            return terms.evaluator(self.term, self.arity)
        assert self.table is not None, "a function has a term, a table or a callable"
        table = self.table

        def look_up(*values: Value) -> Value:
            if values not in table:
                raise KeyError(f"the table has no entry for {', '.join(map(terms.show, values))}")
            return table[values]

        return look_up

    @cached_property
    def reading(self) -> Term | None:
        """The function as a term: given, or traced from the callable and found to agree with it on probe values."""
        if self.term is not None or self.python is None:
            return self.term
        term = terms.trace(self.python, self.arity)
        return term if term is not None and _agree(self, Function(self.arity, term=term)) else None

    @cached_property
    def expression(self) -> Any | None:
        """The function as a sympy expression in x0, x1, …, or None. Advisory: evaluation never uses it."""
        if self.reading is None:
            return None
        from .sympy_terms import to_sympy

        return to_sympy(self.reading)

    def affine(self) -> Affine | None:
        """(coefficients, constant) if the function is readable and affine on numbers, else None.

        It says nothing about strings: x0 + x1 joins them.
        """
        return None if self.reading is None else terms.affine(self.reading, self.arity)

    @cached_property
    def text(self) -> str:
        """How messages show it: "x0 + x1", "{'a': 1, 'b': 2}[x0]", or the callable's name."""
        return self.text_with(None)

    def text_with(self, names: Sequence[str] | None) -> str:
        """`text` with the arguments called by `names`."""
        if self.reading is not None:
            return terms.text(self.reading, names)
        if self.table is not None:
            entries = [f"{_show_key(key)}: {terms.show(value)}" for key, value in islice(self.table.items(), 5)]
            more = ", …" if len(self.table) > 5 else ""
            return f"{{{', '.join(entries)}{more}}}[{', '.join(names or [f'x{t}' for t in range(self.arity)])}]"
        return _callable_name(self.python)

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Hashable; functions with equal keys are equal. The object a callable is must outlive the key."""
        if self.reading is not None:
            return ("term", self.arity, terms.text(self.reading))
        if self.table is not None:
            return ("table", self.arity, frozenset((_show_key(k), terms.show(v)) for k, v in self.table.items()))
        return ("python", self.arity, id(self.python))

    def __repr__(self) -> str:
        return f"Function({self.text})"


class Comparison(enum.Enum):
    """The comparisons `select` knows by name, applied as key OP query; the names are Tracr's."""

    EQ = "=="
    LT = "<"
    LEQ = "<="
    GT = ">"
    GEQ = ">="
    NEQ = "!="
    TRUE = "True"
    FALSE = "False"


_BY_SOURCE: dict[object, Comparison] = {comparison.value: comparison for comparison in Comparison}
PredicateSource: TypeAlias = "Predicate | Comparison | str | bool | Function | Callable[[Any, Any], object] | Any"


@dataclass(frozen=True, eq=False, repr=False)
class Predicate:
    """A relation between a key (argument 0) and a query (argument 1), both not None."""

    function: Function
    comparison: Comparison | None = None

    @staticmethod
    def of(source: PredicateSource) -> Predicate:
        """From a `Comparison` or its name, True or False, or whatever `Function.of` takes for two arguments.

        Raises `InputError` for an unknown name or a source of another kind.
        """
        if isinstance(source, Predicate):
            return source
        if isinstance(source, bool):
            source = str(source)
        if isinstance(source, str):
            if source not in _BY_SOURCE:
                known = ", ".join(repr(comparison.value) for comparison in Comparison)
                raise InputError(f"a predicate is one of {known}, or a callable (key, query) -> bool; got {source!r}")
            source = _BY_SOURCE[source]
        if isinstance(source, Comparison):
            return Predicate(_COMPARISON_FUNCTIONS[source], source)
        return Predicate(Function.of(source, 2))

    def try_evaluate(self, values: Sequence[Value]) -> bool | Undefined:
        """Whether the predicate holds for (key, query), or why that has no answer.

        Numbers count as truth values (0 is False); a predicate that returns None or a string is undefined.
        """
        return _truth(self.function.try_evaluate(values))

    def tabulate(self, domains: Sequence[Sequence[Value]]) -> list[bool | Undefined]:
        """The outcomes for all (key, query) of two domains, in row-major order: the query changes fastest."""
        return [_truth(outcome) for outcome in self.function.tabulate(domains)]

    @property
    def text(self) -> str:
        """How messages show it: "key <= query", "True", or the callable's name."""
        return self.function.text_with(("key", "query"))

    @property
    def key(self) -> tuple[object, ...]:
        """As `Function.key`."""
        return self.function.key

    def __repr__(self) -> str:
        return f"Predicate({self.text})"


def _comparison_function(comparison: Comparison) -> Function:
    if comparison in (Comparison.TRUE, Comparison.FALSE):
        return Function(2, term=Const(comparison is Comparison.TRUE))
    return Function(2, term=Apply(comparison.value, (Arg(0), Arg(1))))


_COMPARISON_FUNCTIONS = {comparison: _comparison_function(comparison) for comparison in Comparison}


def _call(function: Callable[..., object], lifted: Sequence[Any]) -> Value | Undefined:
    """Run a callable on lifted values. A float result with bools among the arguments is computed again on 0 and 1:
    bools cannot be made exact numbers without ceasing to be bools, and True / 3 rounds."""
    try:
        result = function(*lifted)
        if isinstance(result, float) and any(type(value) is bool for value in lifted):
            result = function(*[ExactInt(value) if type(value) is bool else value for value in lifted])
        return settle(result)
    except (Exception, SystemExit) as error:  # a function that exits has no value; the user's Ctrl-C gets through
        return Undefined(_reason(error))


def _guarded(evaluator: Callable[..., Any], values: Sequence[Value]) -> Value | Undefined:
    try:
        return settle(evaluator(*values))
    except Exception as error:
        return Undefined(_reason(error))


def _reason(error: BaseException) -> str:
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _truth(outcome: Value | Undefined) -> bool | Undefined:
    if isinstance(outcome, (bool, Undefined)):
        return outcome
    if outcome is None or isinstance(outcome, str):
        return Undefined(f"the predicate returned {outcome!r}: it must return True or False")
    return bool(outcome)


def _agree(first: Function, second: Function) -> bool:
    """Whether two functions have the same outcome on probe values: all tuples of them, or a fixed sample."""
    if len(_PROBES) ** first.arity <= _MAX_PROBES:
        samples = list(product(_PROBES, repeat=first.arity))
    else:
        generator = random.Random(first.arity)
        samples = [tuple(generator.choices(_PROBES, k=first.arity)) for _ in range(_MAX_PROBES)]
    for values in samples:
        one, other = first.try_evaluate(values), second.try_evaluate(values)
        if isinstance(one, Undefined) != isinstance(other, Undefined):
            return False
        if not isinstance(one, Undefined) and (one != other or isinstance(one, bool) != isinstance(other, bool)):
            return False
    return True


def _table(source: Mapping[Any, object], arity: int) -> Table:
    table: dict[tuple[Value, ...], Value] = {}
    for key, value in source.items():
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) != arity:
            raise InputError(f"the table has the key {key!r}, but its map has {arity} arguments: use {arity}-tuples")
        try:
            table[tuple(map(normalise, parts))] = normalise(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"the table entry {key!r}: {value!r} cannot be used: {error}") from None
    return table


def _show_key(key: tuple[Value, ...]) -> str:
    return terms.show(key[0]) if len(key) == 1 else f"({', '.join(map(terms.show, key))})"


def _check_arity(function: Callable[..., object], arity: int) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a builtin without a signature: a wrong call shows as an undefined value
    try:
        signature.bind(*range(arity))
    except TypeError as error:
        count = "1 argument" if arity == 1 else f"{arity} arguments"
        raise InputError(
            f"{_callable_name(function)} is called with {count}, one per s-op, but its signature is "
            f"{signature}: {error}"
        ) from None


def _callable_name(function: object) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    code = getattr(function, "__code__", None)
    if name == "<lambda>" and code is not None:
        return f"lambda at {os.path.basename(code.co_filename)}:{code.co_firstlineno}"
    return str(name)
