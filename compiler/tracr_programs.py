"""Tracr's RASP expressions as programs of ours, and back. Tracr is imported when one of the two is called."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ..models.errors import InputError
from .core import Value
from .functions import Function, Predicate, Undefined
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
    SequenceMap,
    SOp,
    TokensOp,
    WidthOp,
    aggregate,
    as_sop,
    describe,
    full,
    indices,
    length,
    linear,
    select,
    selector_width,
    tokens,
)
from .tracr_models import exact_value

REMEDY = "pip install 'certiformer[tracr]', or put a checkout of github.com/google-deepmind/tracr on the path"


def _rasp() -> Any:
    """Tracr's module of RASP expressions. Raises `InputError` if it cannot be imported."""
    try:
        from tracr.rasp import rasp
    except ImportError as error:
        raise InputError(f"this needs Tracr, which cannot be imported ({error}): {REMEDY}") from None
    return rasp


def from_tracr(expression: Any) -> SOp:
    """Our program of the same meaning as a Tracr s-op, wherever Tracr's evaluator gives that a value.

    Its numbers are exact here: a factor or default 0.1 is 1/10, a mean of 1, 0, 0 is 1/3. Where Tracr raises (a key
    None under a comparison, letters averaged), ours follows its own rules. Names are kept, encodings are not.
    Raises `InputError` naming all nodes that have no counterpart (constant sequences and selectors, other types).
    """
    taking = _Taking(_rasp())
    found = taking.take(expression)
    if taking.problems:
        raise InputError("this Tracr expression cannot be taken: " + "; ".join(taking.problems))
    if not isinstance(found, SOp):
        raise InputError(f"a program is an s-op, got the selector {expression!r}: use Aggregate or SelectorWidth")
    return found


class _Taking:
    """One conversion: nodes already converted by identity, so that what is shared stays shared, and problems."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs
        self.done: dict[int, Expression] = {}
        self.problems: list[str] = []

    def take(self, node: Any) -> Any:
        if id(node) not in self.done:
            made = self.convert(node)
            name = getattr(node, "name", None)
            fixed = made is tokens or made is indices or made is length
            self.done[id(node)] = made if fixed or not isinstance(name, str) else made.named(name)
        return self.done[id(node)]

    def convert(self, node: Any) -> Expression:
        t = self.theirs
        match node:
            case t.TokensType():
                return tokens
            case t.IndicesType():
                return indices
            case t.LengthType():
                return length
            case t.Full():
                return full(exact_value(node.fill))
            case t.LinearSequenceMap():
                return linear([self.take(node.fst), self.take(node.snd)], [node.fst_fac, node.snd_fac])
            case t.SequenceMap():
                return SequenceMap(_own(node.f), self.take(node.fst), self.take(node.snd))
            case t.Map():
                return SequenceMap(_own(node.f), self.take(node.inner))
            case t.SelectorWidth():
                return selector_width(self.take(node.selector))
            case t.Aggregate():
                return aggregate(self.take(node.selector), self.take(node.sop), exact_value(node.default))
            case t.Select():
                known = isinstance(node.predicate, t.Comparison)
                predicate = node.predicate.value if known else _own(node.predicate)
                return select(self.take(node.keys), self.take(node.queries), predicate)
            case t.SelectorAnd():
                return AndOp(self.take(node.fst), self.take(node.snd))
            case t.SelectorOr():
                return OrOp(self.take(node.fst), self.take(node.snd))
            case t.SelectorNot():
                return NotOp(self.take(node.inner))
        return self.refused(node)

    def refused(self, node: Any) -> Expression:
        kind = type(node).__name__
        named = f"{node.name!r} ({kind})" if isinstance(getattr(node, "name", None), str) else f"{node!r} ({kind})"
        constant = kind in ("ConstantSOp", "ConstantSelector")
        why = "is written out for one length of input" if constant else "is no RASP expression of Tracr's that we know"
        self.problems.append(f"{named} {why}")
        return select(tokens, tokens, "==") if isinstance(node, self.theirs.Selector) else tokens


def to_tracr(program: SOp) -> Any:
    """A Tracr s-op of the same meaning, for Tracr to evaluate or compile; fractions become floats.

    Raises `InputError` naming what Tracr cannot express: maps of three or more arguments.
    """
    theirs = _rasp()
    problems: list[str] = []
    done: dict[Expression, Any] = {}

    def give(node: Expression) -> Any:
        if node not in done:
            made = _give(node, theirs, give, problems)
            done[node] = made.named(node.name) if node.name and not isinstance(node, (TokensOp, IndicesOp)) else made
        return done[node]

    found = give(as_sop(program))
    if problems:
        raise InputError("Tracr cannot express " + "; ".join(problems))
    return found


def _give(node: Expression, t: Any, give: Callable[[Expression], Any], problems: list[str]) -> Any:
    match node:
        case TokensOp():
            return t.tokens
        case IndicesOp():
            return t.indices
        case Constant(value=value):
            return t.Full(_plain(value))
        case LinearOp(args=args):
            return _linear(node, t, [give(arg) for arg in args], problems)
        case MapOp(function=function, args=args):
            return _map(node, t, [give(arg) for arg in args], _callable(function.try_evaluate, function), problems)
        case WidthOp(selector=selector):
            return t.SelectorWidth(give(selector))
        case AggregateOp(selector=selector, value=value, default=default):
            return t.Aggregate(give(selector), give(value), _plain(default))
        case SelectOp(keys=keys, queries=queries, predicate=predicate):
            if predicate.comparison is not None:
                test: Any = t.Comparison(predicate.comparison.value)
            else:
                test = _callable(predicate.try_evaluate, predicate)
            return t.Select(give(keys), give(queries), test)
        case AndOp(left=left, right=right):
            return t.SelectorAnd(give(left), give(right))
        case OrOp(left=left, right=right):
            return t.SelectorOr(give(left), give(right))
        case NotOp(arg=arg):
            return t.SelectorNot(give(arg))
    raise InputError(f"{node!r} is no node of the language")


def _linear(node: LinearOp, t: Any, args: list[Any], problems: list[str]) -> Any:
    if len(args) == 2 and not node.constant:
        return t.LinearSequenceMap(*args, *map(float, node.coefficients))

    def value(values: list[Value]) -> Value:
        numbers = [Fraction(v) for v in values if isinstance(v, (int, Fraction))]
        return node.constant + sum(c * x for c, x in zip(node.coefficients, numbers, strict=True))

    return _map(node, t, args, _callable(value), problems)


def _map(node: Expression, t: Any, args: list[Any], function: Callable[..., Any], problems: list[str]) -> Any:
    if len(args) > 2:
        problems.append(f"{describe(node)}, a map of {len(args)} arguments (its maps have one or two)")
        return t.tokens
    return t.Map(function, *args, simplify=False) if len(args) == 1 else t.SequenceMap(function, *args)


def _callable(value: Callable[[list[Value]], Any], ours: Function | Predicate | None = None) -> Callable[..., Any]:
    """A Python function on Tracr's values. It raises `ValueError` where ours is undefined; `ours` goes with it."""

    def function(*values: Any) -> Any:
        found = value([exact_value(v) for v in values])
        if isinstance(found, Undefined):
            raise ValueError(f"undefined on {values}: {found}")
        return _plain(found)

    function.certiformer = ours  # type: ignore[attr-defined]
    return function


def _own(function: Any) -> Any:
    """A function of ours that came to Tracr by `to_tracr`; any other one itself."""
    return getattr(function, "certiformer", None) or function


def _plain(value: Value) -> Any:
    return float(value) if isinstance(value, Fraction) else value
