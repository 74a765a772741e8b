"""Affine combinations of means over one selector: they are one mean, of the combination of the values.

For aggregates a_t of values v_t over the same selector, c_0 + sum c_t a_t is the aggregate of c_0 + sum c_t v_t over it
(means have the same denominator; the default combines likewise; both are empty together). So a comparison of two
means, whose table is quadratic in their many values, is a test of one mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from .analysis import NO_DEFAULT, NoDefault, selection
from .core import Aggregate, Value, normalise
from .ranges import Ranges, Refused
from .tabulation import Body
from .terms import COMPARISONS, Apply, Arg, Const, Term, affine

SMALL = 1 << 12
"""A table up to this size is not taken apart."""
_VALUE_TABLE = 1 << 16


@dataclass(frozen=True)
class Form:
    """constant + the sum of coefficient times aggregate; None where one of the aggregates is None."""

    terms: tuple[tuple[int, Fraction], ...]
    constant: Fraction


@dataclass(frozen=True, eq=False)
class Means:
    """The affine forms of nodes in proper means, and how forms become nodes."""

    ranges: Ranges
    add_aggregate: Callable[[int, int, Value | NoDefault, str], int]
    add_map: Callable[[Body, Sequence[int], Sequence[str], str], int]
    forms: dict[int, Form]

    def form(self, index: int) -> Form | None:
        """The form of a node: given, or the node itself if it is a numeric aggregate that averages."""
        if index in self.forms:
            return self.forms[index]
        node = self.ranges.nodes[index]
        if not isinstance(node, Aggregate) or any(isinstance(value, str) for value in node.values):
            return None
        if selection(self.ranges, node.selector, node.value).singular.all():
            return None
        return Form(((index, Fraction(1)),), Fraction(0))

    def of_term(self, term: Term | None, args: Sequence[int]) -> Form | None:
        """The form of an affine term in the nodes `args`, if they all have one."""
        found = None if term is None else affine(term, len(args))
        if found is None:
            return None
        total: dict[int, Fraction] = {}
        constant = found[1]
        for arg, coefficient in zip(args, found[0], strict=True):
            form = self.form(arg)
            if form is None:
                if coefficient or self._maybe_none(arg):
                    return None
                continue
            constant += coefficient * form.constant
            for aggregate, factor in form.terms:
                total[aggregate] = total.get(aggregate, Fraction(0)) + coefficient * factor
        if any(not c and self._maybe_none(aggregate) for aggregate, c in total.items()):
            return None  # a None that cancelled would be lost
        terms = tuple((aggregate, c) for aggregate, c in sorted(total.items()) if c)
        return Form(terms, constant) if terms else None

    def merge(self, form: Form, name: str = "") -> int | None:
        """A form of several aggregates over one selector as one aggregate; None if it is none or not tabulable."""
        nodes = [self.ranges.nodes[aggregate] for aggregate, _ in form.terms]
        aggregates = [node for node in nodes if isinstance(node, Aggregate)]
        if len(nodes) < 2 or len({node.selector for node in aggregates}) != 1:
            return None
        factors: dict[int, Fraction] = {}
        default: Value | NoDefault = normalise(form.constant)
        for node, (_, factor) in zip(aggregates, form.terms, strict=True):
            factors[node.value] = factors.get(node.value, Fraction(0)) + factor
            if any(not isinstance(value, (int, Fraction)) for value in self.ranges.values(node.value)):
                return None
            own = node.values[node.default] if node.default >= 0 else NO_DEFAULT
            if isinstance(own, str):
                return None
            if own is None or default is None:
                default = None
            elif isinstance(own, NoDefault) or isinstance(default, NoDefault):
                default = NO_DEFAULT
            else:
                assert isinstance(default, (int, Fraction))
                default = normalise(default + factor * own)
        values = sorted(factors)
        if math.prod(self.ranges.sizes(values)) > _VALUE_TABLE:
            return None
        term = linear_term([factors[value] for value in values], form.constant)
        try:
            body = Body.of_term(term, len(values))
            value = self.add_map(body, values, [f"x{t}" for t in range(len(values))], "")
            return self.add_aggregate(aggregates[0].selector, value, default, name)
        except Refused:
            return None

    def rewrite(self, body: Body, args: Sequence[int]) -> tuple[Body, list[int]] | None:
        """The same function of fewer values: comparisons and affine parts of means over one selector become nodes.

        None if the table is small already, or does not shrink.
        """
        size = math.prod(self.ranges.sizes(args))
        if body.term is None or size <= SMALL or sum(self.form(arg) is not None for arg in args) < 2:
            return None
        new_args: list[int] = []
        covered: set[int] = set()

        def placed(index: int) -> Arg:
            if index not in new_args:
                new_args.append(index)
            return Arg(new_args.index(index))

        def merged(term: Term) -> int | None:
            form = self.of_term(term, args)
            found = None if form is None else self.merge(form)
            if found is not None and form is not None:
                covered.update(aggregate for aggregate, _ in form.terms)
            return found

        def walk(term: Term) -> Term:
            if isinstance(term, Const):
                return term
            if isinstance(term, Arg):
                return placed(args[term.index])
            if term.op in COMPARISONS:
                difference = merged(Apply("-", term.args))
                if difference is not None:
                    test = Body.of_term(Apply(term.op, (Arg(0), Const(0))), 1)
                    return placed(self.add_map(test, [difference], ["the difference"], ""))
            part = merged(term)
            return placed(part) if part is not None else Apply(term.op, tuple(walk(arg) for arg in term.args))

        term = walk(body.term)
        for arg in args:
            form = self.form(arg)
            seen = arg in new_args or (form is not None and covered.issuperset(a for a, _ in form.terms))
            if self._maybe_none(arg) and not seen:
                return None
        if not new_args or math.prod(self.ranges.sizes(new_args)) * 2 > size:
            return None
        return Body.of_term(term, len(new_args)), new_args

    def _maybe_none(self, index: int) -> bool:
        return None in self.ranges.values(index)


def linear_term(coefficients: Sequence[Fraction], constant: Fraction) -> Term:
    """constant + the sum of coefficient times argument, as a term."""
    term: Term = Const(normalise(constant))
    for index, coefficient in enumerate(coefficients):
        part: Term = Arg(index) if coefficient == 1 else Apply("*", (Const(normalise(coefficient)), Arg(index)))
        term = Apply("+", (term, part))
    return term
