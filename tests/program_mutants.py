"""Programs with one operator, constant or comparison changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from certiformer.compiler.functions import Comparison, Function, Predicate
from certiformer.compiler.rasp import (
    AggregateOp,
    AndOp,
    Constant,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    SOp,
    WidthOp,
)
from certiformer.compiler.structure import nodes_of
from certiformer.compiler.terms import Apply, Arg, Const, Term

_SWAPS: dict[str, tuple[str, ...]] = {
    "==": ("!=", "<", "<=", ">="),
    "!=": ("==", "<", ">"),
    "<": ("<=", ">", "!="),
    "<=": ("<", ">=", "=="),
    ">": (">=", "<", "!="),
    ">=": (">", "<=", "=="),
    "+": ("-",),
    "-": ("+",),
    "*": ("+",),
    "%": ("//",),
    "//": ("%",),
    "and": ("or",),
    "or": ("and",),
    "min": ("max",),
    "max": ("min",),
}


def mutant(program: SOp, rng: random.Random) -> tuple[SOp, str] | None:
    """The program with one change, and what was changed; None if it has nothing to change."""
    options = [(node, change) for node in nodes_of(program) for change in _changes(node, rng)]
    if not options:
        return None
    node, (new, what) = options[rng.randrange(len(options))]
    return _rebuilt(program, node, new), what


def _changes(node: Any, rng: random.Random) -> list[tuple[Any, str]]:
    if isinstance(node, SelectOp) and node.predicate.comparison is not None:
        found = []
        for other in _SWAPS.get(node.predicate.comparison.value, ("==",)):
            changed = replace(node, predicate=Predicate.of(Comparison(other)))
            found.append((changed, f"{node.predicate.text} to {other}"))
        return found
    if isinstance(node, SelectOp):
        term = node.predicate.function.reading
        return [(replace(node, predicate=Predicate(Function(2, term=new))), what) for new, what in _terms(term)]
    if isinstance(node, AndOp):
        return [(OrOp(node.left, node.right), "and to or")]
    if isinstance(node, OrOp):
        return [(AndOp(node.left, node.right), "or to and")]
    if isinstance(node, NotOp):
        return [(NotOp(NotOp(node.arg)), "not dropped")]
    if isinstance(node, Constant):
        return [(replace(node, value=_other(node.value)), f"{node.value!r} to {_other(node.value)!r}")]
    if isinstance(node, AggregateOp) and node.default is not None:
        return [(replace(node, default=_other(node.default)), f"default {node.default!r} to {_other(node.default)!r}")]
    if isinstance(node, MapOp):
        return [
            (replace(node, function=Function(node.function.arity, term=new)), what)
            for new, what in _terms(node.function.reading)
        ]
    return []


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, Fraction)):
        return value + 1
    return {"a": "b", "(": ")", ")": "("}.get(value, "a")


def _terms(term: Term | None) -> list[tuple[Term, str]]:
    """The term with one of its operations or constants changed."""
    if isinstance(term, Const):
        return [(Const(_other(term.value)), f"{term.value!r} to {_other(term.value)!r}")]
    if term is None or isinstance(term, Arg):
        return []
    found: list[tuple[Term, str]] = [(Apply(op, term.args), f"{term.op} to {op}") for op in _SWAPS.get(term.op, ())]
    for place, arg in enumerate(term.args):
        for new, what in _terms(arg):
            found.append((Apply(term.op, (*term.args[:place], new, *term.args[place + 1 :])), what))
    return found


def _rebuilt(program: SOp, old: Any, new: Any) -> SOp:
    """The program with one node replaced."""
    made: dict[Any, Any] = {}
    for node in nodes_of(program):
        made[node] = new if node is old else _with(node, lambda child: made[child])
    changed = made[program]
    assert isinstance(changed, SOp)
    return changed


def _with(node: Any, at: Callable[[Any], Any]) -> Any:
    match node:
        case MapOp() | LinearOp():
            return replace(node, args=tuple(at(arg) for arg in node.args))
        case AggregateOp():
            return replace(node, selector=at(node.selector), value=at(node.value))
        case WidthOp():
            return replace(node, selector=at(node.selector))
        case SelectOp():
            return replace(node, keys=at(node.keys), queries=at(node.queries))
        case AndOp() | OrOp():
            return replace(node, left=at(node.left), right=at(node.right))
        case NotOp():
            return replace(node, arg=at(node.arg))
    return node
