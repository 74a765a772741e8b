"""Functions, terms and predicates: exact values, readings that agree with them, reasons where there are none."""

from __future__ import annotations

import math
import operator
import subprocess
import sys
import time
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from certiformer.compiler import terms
from certiformer.compiler.exact import ExactFraction, ExactInt, lift, settle
from certiformer.compiler.functions import Comparison, Function, Predicate, Undefined
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.rasp import (
    Map,
    tokens,
)
from certiformer.compiler.sympy_terms import sympy_rules
from certiformer.models.errors import InputError

NUMBERS = [-3, -1, 0, 1, 2, 5, Fraction(1, 3), Fraction(-7, 2), True, False]


# Functions


@pytest.mark.parametrize(
    ("source", "arity", "text"),
    [
        (lambda x, y: x + y, 2, "x0 + x1"),
        (lambda x: x == "a", 1, "x0 == 'a'"),
        (lambda x, y: (x - y) - (y - x), 2, "x0 - x1 - (x1 - x0)"),
        (lambda x: -((x + 1) ** 2), 1, "-(x0 + 1) ** 2"),
        (lambda x: (-x) ** 2, 1, "(-x0) ** 2"),
        (lambda x: (x**2) ** 3, 1, "(x0 ** 2) ** 3"),
        (lambda x: x * Fraction(1, 3), 1, "x0 * (1/3)"),
        (lambda x: x - -1, 1, "x0 - -1"),
        (lambda x: 0.5 * x, 1, "1/2 * x0"),
        (lambda x, y: (x > 1) & (y < 2), 2, "x0 > 1 and x1 < 2"),
        (lambda x: abs(math.floor(x / 2)), 1, "abs(floor(x0 / 2))"),
        (lambda x: x, 1, "x0"),
    ],
)
def test_callables_that_apply_operators_are_read(source: Any, arity: int, text: str) -> None:
    assert Function.of(source, arity).text == text


def named_function(x: Any) -> Any:
    return 1 if x == 1 else 0


@pytest.mark.parametrize(
    "trap",
    [
        named_function,
        lambda x: x + 1 if x == 1 else x - 1,
        lambda x: x + 1 if x > 0 else x,
        lambda x: 0 < x < 3,
        lambda x: x and x + 1,
        lambda x: not x,
        lambda x: x + 1 if isinstance(x, int) else x,
        lambda x: x + 1 if type(x) is bool else x,
        lambda x: x + 1 if type(x).__name__ == "int" else x,
        lambda x: x + 1 if x is True else x + 2,
        lambda x: x + 1 if x in (1, 2) else x,
        lambda x: {1: 2}.get(x, 0),
        lambda x: min(x, 3),
        lambda x: x & 6,
        lambda x: ~(x > 1),
        lambda x: (x & 1) + x,
        lambda x: str(x),
        lambda x: f"{x}!",
        lambda x: x.upper(),
        lambda x: x + 1 if hasattr(x, "upper") else x,
        lambda x: [0, 1, 2][x],
        lambda x: sum(range(x)),
        lambda x: round(x),
        lambda x: 7,
        lambda x: int(x) + 1,
        lambda x: math.sqrt(x),
        lambda x: sum(x for _ in range(10_000)),
        abs,
    ],
)  # fmt: skip
def test_traced_terms_agree_or_are_not_taken(trap: Any) -> None:
    function = Function.of(trap, 1)
    if function.reading is not None:
        assert trap is abs
    for value in [*NUMBERS, "a", 7]:
        try:
            expected = trap(value)
        except Exception:
            assert isinstance(function.try_evaluate([value]), Undefined)
        else:
            got = function.try_evaluate([value])
            assert got == (Fraction(repr(expected)) if isinstance(expected, float) else expected)


def test_a_callable_that_swallows_the_tracer_is_found_out_by_probes() -> None:
    def sneaky(x: Any) -> Any:
        try:
            return x + 1 if x > 3 else x
        except BaseException:
            return x

    function = Function.of(sneaky, 1)
    assert function.reading is None
    assert function.try_evaluate([7]) == 8
    assert function.text == "sneaky"
    assert function.affine() is None


def test_opaque_functions_have_names() -> None:
    assert Function.of(named_function, 1).text == "named_function"
    assert Function.of(lambda x: x if x else 1, 1).text.startswith("lambda at test_functions.py:")
    assert Function.of({"a": 1, "b": Fraction(1, 2)}, 1).text == "{'a': 1, 'b': 1/2}[x0]"
    assert Function.of({k: k for k in range(9)}, 1).text.endswith("…}[x0]")


def test_callables_are_exact() -> None:
    def run(source: Any, *values: Any) -> Any:
        return Function.of(source, len(values)).try_evaluate(values)

    assert run(lambda x, y: x / y, 1, 3) == Fraction(1, 3)
    assert run(lambda x, y: x / y, 6, 3) == 2
    assert run(lambda x, y: (x + y) / 3 if x > 0 else 0, 1, 1) == Fraction(2, 3)
    assert run(lambda x: x / 3, True) == Fraction(1, 3)
    assert run(lambda x: 0.5 * x, Fraction(1, 3)) == Fraction(1, 6)
    assert run(lambda x: 1 / x, 7) == Fraction(1, 7)
    assert run(lambda x: x**-2, 3) == Fraction(1, 9)
    assert run(lambda x: x**2, Fraction(1, 3)) == Fraction(1, 9)
    assert run(lambda x: sum([x, x]) / 4, 1) == Fraction(1, 2)
    assert run(lambda x: x < float("inf"), 1) is True
    assert run(lambda x: x == 0.5, Fraction(1, 2)) is True
    assert run(lambda x: divmod(x, 2)[1] / 3, 5) == Fraction(1, 3)
    assert run(lambda x: pow(x, 2, 5), 4) == 1
    assert run(lambda x: {1: "one"}[x], 1) == "one"
    assert run(lambda x: x, True) is True
    assert run(lambda x: np.float64(x) / 2, 3) == Fraction(3, 2)
    assert run(lambda x: x + np.int64(2), 3) == 5
    assert type(run(lambda x: x + 1, 3)) is int
    assert type(run(lambda x: x / 2, 3)) is Fraction
    assert type(run(lambda x: x, 3)) is int


@pytest.mark.parametrize(
    ("source", "values", "reason"),
    [
        (lambda x: 10 / x, [0], "ZeroDivisionError: division by zero"),
        (lambda x: 10 / x if x >= 0 else 0, [0], "ZeroDivisionError"),
        (lambda x: x % 0, [1], "ZeroDivisionError"),
        (lambda x: x + 1, ["a"], "TypeError"),
        (lambda x: "a" < x, [1], "'<' not supported between instances of 'str' and 'int'|'>' not supported"),
        (lambda x: [x], [1], "list"),
        (lambda x: (x, x), [1], "tuple"),
        (lambda x: float("nan"), [1], "finite"),
        (lambda x: (-2) ** 0.5 if x else 0, [1], "complex"),
        (lambda x: x**x, [10**9], "too large"),
        ({"a": 1}, ["b"], "the table has no entry for 'b'"),
    ],
)
def test_undefined_has_a_reason(source: Any, values: Any, reason: str) -> None:
    outcome = Function.of(source, 1).try_evaluate(values)
    assert isinstance(outcome, Undefined)
    assert any(part in outcome.reason for part in reason.split("|"))


def test_operators_are_undefined_as_callables_are() -> None:
    for node in (1 / tokens, 1 // tokens, 1 % tokens):
        assert isinstance(node.function.try_evaluate([0]), Undefined)  # type: ignore[attr-defined]
    assert isinstance((tokens < 1).function.try_evaluate(["a"]), Undefined)  # type: ignore[attr-defined]
    assert isinstance((tokens / 2).function.try_evaluate(["4"]), Undefined)  # type: ignore[attr-defined]
    assert isinstance((tokens % 2).function.try_evaluate(["%d"]), Undefined)  # type: ignore[attr-defined]
    assert isinstance((2**tokens).function.try_evaluate([10**9]), Undefined)  # type: ignore[attr-defined]


def test_tables_with_several_arguments() -> None:
    function = Function.of({(1, "a"): "x", (2, "a"): 0.5}, 2)
    assert function.try_evaluate((2, "a")) == Fraction(1, 2)
    assert function.try_evaluate((True, "a")) == "x"


EXACT_OPERATIONS: list[Any] = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, divmod,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip
RATIONALS = st.one_of(st.integers(-50, 50), st.fractions(-9, 9, max_denominator=12), st.booleans())


@given(RATIONALS, RATIONALS)
def test_exact_numbers_are_fractions_under_every_operation(a: Any, b: Any) -> None:
    for operation in EXACT_OPERATIONS:
        try:
            expected = operation(Fraction(a), Fraction(b))
        except ZeroDivisionError:
            if not isinstance(a, bool):
                with pytest.raises(ZeroDivisionError):
                    operation(lift(a), lift(b))
            continue
        if isinstance(a, bool):
            continue  # bools stay what they are
        got = operation(lift(a), lift(b))
        assert got == expected
        parts = got if isinstance(got, tuple) else (got,)
        assert all(type(part) in (bool, ExactInt, ExactFraction) for part in parts)
    for unary in (operator.neg, operator.pos, abs, math.floor, math.ceil, round, math.trunc):
        assert unary(lift(a)) == unary(Fraction(a))  # type: ignore[operator]
    assert hash(lift(a)) == hash(a)
    assert settle(lift(a)) == a


def test_tables_of_65536_entries_are_fast() -> None:
    domain = list(range(256))
    for source in (lambda x, y: x + y, lambda x, y: x if x > y else y):
        start = time.perf_counter()
        table = Function.of(source, 2).tabulate([domain, domain])
        assert time.perf_counter() - start < 1.5  # 0.05 s alone on a core
        assert len(table) == 65536
        assert table[256 * 3 + 5] == source(3, 5)


def test_tabulate_is_row_major() -> None:
    domains: list[list[Any]] = [[0, 1], ["a", "b", "c"]]
    for source in (lambda x, y: f"{x}{y}", {(x, y): f"{x}{y}" for x, y in product(*domains)}):
        assert Function.of(source, 2).tabulate(domains) == [f"{x}{y}" for x, y in product(*domains)]
    assert Predicate.of("<").tabulate([[0, 1], [0, 1]]) == [False, True, False, False]


# Terms and sympy


def test_the_sympy_rules_are_total() -> None:
    assert set(sympy_rules()) == set(terms.OPERATIONS)


def test_sympy_sources() -> None:
    x, y = sympy.symbols("x y")
    function = Function.of(sympy.Lambda((y, x), x - 2 * y), 2)
    assert function.try_evaluate((1, 5)) == 3
    assert function.affine() == ((-2, 1), 0)
    assert Function.of(x / 3 + y**2, 2).try_evaluate((1, 2)) == Fraction(13, 3)
    assert Function.of(sympy.Mod(x, 2), 1).try_evaluate([5]) == 1
    piecewise = sympy.Piecewise((0, sympy.Eq(x, 0)), (1 / x, True))
    assert Function.of(piecewise, 1).tabulate([[0, 4]]) == [0, Fraction(1, 4)]
    assert Function.of(sympy.Min(x, 3) + sympy.Max(x, 1) + sympy.floor(x / 2), 1).try_evaluate([5]) == 10
    assert Function.of((x > 1) & ~(x >= 3), 1).tabulate([[1, 2, 3]]) == [False, True, False]
    ten = sympy.symbols("x0:11")
    assert Function.of(ten[10] - ten[2], 11).try_evaluate([0, 0, 1, *[0] * 7, 5]) == 4
    assert Function.of(sympy.Integer(3), 1).try_evaluate([0]) == 3
    assert evaluate(Map(x + 1, tokens), [1]) == [2]


@pytest.mark.parametrize(
    ("source", "arity"),
    [
        (sympy.sin(sympy.Symbol("x")), 1),
        (sympy.Symbol("x") + sympy.Symbol("y"), 1),
        (sympy.Lambda(sympy.Symbol("x"), sympy.Symbol("x")), 2),
        (sympy.Piecewise((1, sympy.Symbol("x") > 0)), 1),
        (sympy.pi, 1),
    ],
)
def test_sympy_sources_that_cannot_be_read(source: Any, arity: int) -> None:
    with pytest.raises(InputError):
        Function.of(source, arity)


TERMS = st.recursive(
    st.one_of(st.integers(0, 1).map(terms.Arg), st.integers(-3, 3).map(terms.Const)),
    lambda inner: st.one_of(
        st.builds(
            lambda op, a, b: terms.Apply(op, (a, b)),
            st.sampled_from(["+", "-", "*", "/", "//", "%", "min", "max"]),
            inner,
            inner,
        ),
        st.builds(lambda op, a: terms.Apply(op, (a,)), st.sampled_from(["neg", "abs", "floor", "ceil"]), inner),
    ),
    max_leaves=6,
)


@given(TERMS)
def test_text_affine_and_sympy_say_what_the_term_evaluates_to(term: terms.Term) -> None:
    function = Function(2, term=term)
    scope = {"floor": math.floor, "ceil": math.ceil}
    as_python = Function.of(eval(f"lambda x0, x1: {terms.text(term)}", scope), 2)
    affine = function.affine()
    for values in product([-2, 0, 3, Fraction(1, 2)], repeat=2):
        value = function.try_evaluate(values)
        again = as_python.try_evaluate(values)
        if "x" in terms.text(term):  # constants alone are computed in Python's floats
            constants_divide = isinstance(again, Fraction) and again != value
            assert isinstance(value, Undefined) == isinstance(again, Undefined)
            assert constants_divide or value == again or isinstance(value, Undefined)
        if affine is not None and not isinstance(value, Undefined):
            assert value == affine[1] + sum(c * x for c, x in zip(affine[0], values, strict=True))


def test_expressions_are_sympy() -> None:
    x0, x1 = sympy.symbols("x0 x1")
    assert Function.of(lambda x, y: (x + y) / 2, 2).expression == (x0 + x1) / 2
    assert Function.of(lambda x: x == 1, 1).expression == sympy.Eq(x0, 1)
    assert (tokens == "a").function.expression is None  # type: ignore[attr-defined]
    assert Function.of(named_function, 1).expression is None
    for op in terms.OPERATIONS:
        arity = {"neg": 1, "abs": 1, "floor": 1, "ceil": 1, "not": 1, "where": 3}.get(op, 2)
        term = terms.Apply(op, tuple(terms.Arg(t) for t in range(arity)))
        if op not in ("and", "or", "not", "where"):
            expression = Function(arity, term=term).expression
            assert expression.subs({x0: 7, x1: 3}) == terms.OPERATIONS[op].evaluate(*[7, 3][:arity])


def test_sympy_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from certiformer.compiler.rasp import *; from certiformer.compiler.interpreter import evaluate;"
        "evaluate(Map(lambda x: x + 1, tokens), [1]); print((tokens + 1).function.text, 'sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert done.stdout.split() == ["x0", "+", "1", "False"]


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# Predicates


@pytest.mark.parametrize("comparison", list(Comparison))
def test_comparisons_by_name_enum_and_value(comparison: Comparison) -> None:
    python = {
        "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
        "True": lambda k, q: True, "False": lambda k, q: False,
    }[comparison.value]  # fmt: skip
    for source in (comparison, comparison.value):
        predicate = Predicate.of(source)
        assert predicate.comparison is comparison
        for key, query in product(NUMBERS, repeat=2):
            assert predicate.try_evaluate((key, query)) == python(key, query)


def test_predicates() -> None:
    assert Predicate.of(True).comparison is Comparison.TRUE
    assert Predicate.of(False).comparison is Comparison.FALSE
    assert Predicate.of("<=").text == "key <= query"
    assert Predicate.of(lambda k, q: q == k + 1).text == "query == key + 1"
    assert Predicate.of(lambda k, q: q == k + 1).try_evaluate((1, 2)) is True
    assert Predicate.of(lambda k, q: k % 2).try_evaluate((3, 0)) is True
    assert Predicate.of({(0, 1): True, (1, 1): False}).try_evaluate((0, 1)) is True
    assert isinstance(Predicate.of("<").try_evaluate(("a", 1)), Undefined)
    assert Predicate.of("==").try_evaluate(("a", 1)) is False
    for outcome in (None, "yes", []):
        result = Predicate.of(lambda k, q, out=outcome: out).try_evaluate((1, 1))
        assert isinstance(result, Undefined)
