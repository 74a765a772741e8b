"""Programs as text, for the messages of tests."""

from __future__ import annotations

from certiformer.compiler.rasp import (
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


def show(node: Expression) -> str:
    """The program as one line of source; callables by their names."""
    match node:
        case TokensOp():
            return "tokens"
        case IndicesOp():
            return "indices"
        case WidthOp() if node is length:
            return "length"
        case Constant(value=value):
            return f"full({value!r})"
        case MapOp(function=function, args=args):
            return f"Map({function.text}; {', '.join(map(show, args))})"
        case LinearOp(args=args, coefficients=coefficients, constant=constant):
            terms = " + ".join(f"{c}*{show(a)}" for c, a in zip(coefficients, args, strict=True))
            return f"linear({terms} + {constant})"
        case AggregateOp(selector=selector, value=sop, default=default):
            return f"aggregate({show(selector)}, {show(sop)}, {default!r})"
        case WidthOp(selector=selector):
            return f"selector_width({show(selector)})"
        case SelectOp(keys=keys, queries=queries, predicate=predicate):
            return f"select({show(keys)}, {show(queries)}, {predicate.text})"
        case AndOp(left=left, right=right):
            return f"({show(left)} & {show(right)})"
        case OrOp(left=left, right=right):
            return f"({show(left)} | {show(right)})"
        case NotOp(arg=arg):
            return f"~{show(arg)}"
    raise AssertionError(f"{node!r} is no node of the language")
