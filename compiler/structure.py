"""The shape of programs: walking them in order, and merging what is structurally equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from ..models.errors import InternalError
from .core import Value
from .rasp import (
    AggregateOp,
    AndOp,
    Constant,
    Encoding,
    Expression,
    IndicesOp,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    Selector,
    SOp,
    TokensOp,
    WidthOp,
)


def children(node: Expression) -> tuple[Expression, ...]:
    """The nodes a node reads, in order of its fields."""
    match node:
        case TokensOp() | IndicesOp() | Constant():
            return ()
        case MapOp(args=args) | LinearOp(args=args):
            return args
        case AggregateOp(selector, value):
            return (selector, value)
        case WidthOp(selector):
            return (selector,)
        case SelectOp(keys, queries):
            return (keys, queries)
        case AndOp(left, right) | OrOp(left, right):
            return (left, right)
        case NotOp(arg):
            return (arg,)
    raise InternalError(f"{node!r} is no node of the language")


def nodes_of(program: Expression) -> list[Expression]:
    """All nodes a program reads, each once, after the nodes it reads itself; the program is last.

    Iterative, so that deep programs need no deep stack. The order depends on the structure alone.
    """
    return list(_order(program))


@lru_cache(maxsize=256)
def _order(program: Expression) -> tuple[Expression, ...]:
    done: dict[Expression, None] = {}
    stack: list[tuple[Expression, bool]] = [(program, False)]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded:
            done[node] = None
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children(node)) if child not in done)
    return tuple(done)


Key = tuple[object, ...]


def structural_key(program: Expression) -> tuple[Key, ...]:
    """Hashable; two programs with equal keys have equal structure, hence equal meaning.

    Names, places and encodings do not count. Functions are equal if they read as the same term or table, or are the
    same object; keep the program alive as long as the key.
    """
    return tuple(_classes(program)[1])


def canonicalise(program: SOp) -> SOp:
    """The same program with structurally equal subexpressions merged into one node.

    Law: `evaluate(canonicalise(p), xs) == evaluate(p, xs)`. A merged node takes the first name and the first encoding
    hint given to any of its copies, in the order of `nodes_of`; the place is that of the first copy.
    """
    class_of, keys = _classes(program)
    names: dict[int, str] = {}
    hints: dict[int, Encoding] = {}
    first: dict[int, Expression] = {}
    for node, number in class_of.items():
        first.setdefault(number, node)
        if node.name is not None:
            names.setdefault(number, node.name)
        if isinstance(node, SOp) and node.encoding != "auto":
            hints.setdefault(number, node.encoding)
    if class_of[program] == 0 and len(keys) == 1 and first[0] is program:
        return program
    sops: dict[int, SOp] = {}
    selectors: dict[int, Selector] = {}
    for number, node in first.items():
        name = names.get(number)
        if isinstance(node, SOp):
            rebuilt = _rebuild_sop(node, lambda n: sops[class_of[n]], lambda s: selectors[class_of[s]])
            hint = hints.get(number, "auto")
            unchanged = rebuilt is node and rebuilt.name == name and rebuilt.encoding == hint
            sops[number] = node if unchanged else replace(rebuilt, name=name, encoding=hint)
        else:
            again = _rebuild_selector(node, lambda n: sops[class_of[n]], lambda s: selectors[class_of[s]])
            selectors[number] = again if again is node and again.name == name else replace(again, name=name)
    return sops[class_of[program]]


def _classes(program: Expression) -> tuple[dict[Expression, int], list[Key]]:
    """Each node's class of structurally equal nodes, numbered in topological order, and the key of each class."""
    numbers: dict[Key, int] = {}
    class_of: dict[Expression, int] = {}
    for node in _order(program):
        key = (*_own_key(node), *(class_of[child] for child in children(node)))
        class_of[node] = numbers.setdefault(key, len(numbers))
    return class_of, list(numbers)


def _own_key(node: Expression) -> Key:
    """What a node is, besides its children. Equal values of different type (True, 1) are kept apart."""
    match node:
        case TokensOp():
            return ("tokens",)
        case IndicesOp():
            return ("indices",)
        case Constant(value):
            return ("full", *_typed(value))
        case MapOp(function):
            return ("map", function.key)
        case LinearOp():
            return ("linear", node.coefficients, node.constant)
        case AggregateOp(default=default):
            return ("aggregate", *_typed(default))
        case WidthOp():
            return ("width",)
        case SelectOp(predicate=predicate):
            return ("select", predicate.key)
        case AndOp():
            return ("and",)
        case OrOp():
            return ("or",)
        case NotOp():
            return ("not",)
    raise InternalError(f"{node!r} is no node of the language")


def _typed(value: Value | Fraction) -> Key:
    return (type(value).__name__, value)


def _rebuild_sop(node: SOp, sop: Callable[[SOp], SOp], selector: Callable[[Selector], Selector]) -> SOp:
    match node:
        case MapOp(args=args) | LinearOp(args=args):
            new = tuple(map(sop, args))
            return node if all(a is b for a, b in zip(args, new, strict=True)) else replace(node, args=new)
        case AggregateOp(old, value):
            if selector(old) is old and sop(value) is value:
                return node
            return replace(node, selector=selector(old), value=sop(value))
        case WidthOp(old):
            return node if selector(old) is old else replace(node, selector=selector(old))
    return node


def _rebuild_selector(node: Selector, sop: Callable[[SOp], SOp], selector: Callable[[Selector], Selector]) -> Selector:
    match node:
        case SelectOp(keys, queries):
            if sop(keys) is keys and sop(queries) is queries:
                return node
            return replace(node, keys=sop(keys), queries=sop(queries))
        case AndOp(left, right) | OrOp(left, right):
            if selector(left) is left and selector(right) is right:
                return node
            return replace(node, left=selector(left), right=selector(right))
        case NotOp(arg):
            return node if selector(arg) is arg else replace(node, arg=selector(arg))
    return node
