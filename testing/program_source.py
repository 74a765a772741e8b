"""Programs as one line of source, for the messages of tests."""

from __future__ import annotations

from ..compiler.rasp import (
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
    TokensOp,
    WidthOp,
    length,
)
from ..models.errors import InternalError


def source(node: Expression) -> str:
    """The program as text; an operation's arguments are written x0, x1, ... in it."""
    match node:
        case TokensOp():
            return "tokens"
        case WidthOp() if node is length:
            return "length"
        case IndicesOp():
            return "indices"
        case Constant(value=value):
            return f"full({value!r})"
        case MapOp(function=function, args=args):
            return f"Map({function.text}; {', '.join(map(source, args))})"
        case LinearOp(args=args, coefficients=coefficients, constant=constant):
            terms = " + ".join(f"{c}*{source(a)}" for c, a in zip(coefficients, args, strict=True))
            return f"linear({terms} + {constant})"
        case AggregateOp(selector=selector, value=value, default=default):
            return f"aggregate({source(selector)}, {source(value)}, {default!r})"
        case WidthOp(selector=selector):
            return f"selector_width({source(selector)})"
        case SelectOp(keys=keys, queries=queries, predicate=predicate):
            return f"select({source(keys)}, {source(queries)}, {predicate.text!r})"
        case AndOp(left=left, right=right):
            return f"({source(left)} & {source(right)})"
        case OrOp(left=left, right=right):
            return f"({source(left)} | {source(right)})"
        case NotOp(arg=arg):
            return f"~{source(arg)}"
    raise InternalError(f"{node!r} is no node of the language; please report this")
