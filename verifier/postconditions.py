"""Postconditions: Boolean programs over a program's input and output, true where what they say holds.

None never selects and is never selected; each of these is false, or counts wrong, where the output is None.
"""

from __future__ import annotations

from dataclasses import replace

from ..compiler.rasp import (
    AggregateOp,
    AndOp,
    Expression,
    LinearOp,
    MapOp,
    NotOp,
    OrOp,
    SelectOp,
    Selector,
    SOp,
    TokensOp,
    WidthOp,
    indices,
    select,
    selector_width,
)
from ..compiler.structure import nodes_of

_HERE = select(indices, indices, "==")


def is_some(output: SOp) -> SOp:
    """The output is not None."""
    return selector_width(select(output, output, True) & _HERE) == 1


def is_sorted(inputs: SOp, output: SOp) -> SOp:
    """No larger value stands to the left, and the value is not None."""
    larger = selector_width(select(output, output, ">") & select(indices, indices, "<"))
    return (larger == 0) & is_some(output)


def is_permutation(inputs: SOp, output: SOp) -> SOp:
    """The token here occurs as often in the output as in the input: at all positions, the output is a permutation."""
    return _occurrences(output, inputs) == _occurrences(inputs, inputs)


def _occurrences(where: SOp, of: SOp) -> SOp:
    same: Selector = select(where, of, "==")
    return selector_width(same)


def composed(outer: SOp, inner: SOp) -> SOp:
    """The program that gives `outer` on the output of `inner`: its tokens replaced by that s-op."""
    sops: dict[Expression, SOp] = {}
    selectors: dict[Expression, Selector] = {}
    for node in nodes_of(outer):
        if isinstance(node, SOp):
            sops[node] = _with_children(node, inner, sops, selectors)
        else:
            selectors[node] = _selector_with_children(node, sops, selectors)
    names = [program.name for program in (outer, inner)]
    return sops[outer].named(" of ".join(name or "a program" for name in names))


def _with_children(node: SOp, inner: SOp, sops: dict[Expression, SOp], selectors: dict[Expression, Selector]) -> SOp:
    match node:
        case TokensOp():
            return inner
        case MapOp(args=args) | LinearOp(args=args):
            return replace(node, args=tuple(sops[arg] for arg in args))
        case AggregateOp(selector, value):
            return replace(node, selector=selectors[selector], value=sops[value])
        case WidthOp(selector):
            return replace(node, selector=selectors[selector])
    return node


def _selector_with_children(
    node: Selector, sops: dict[Expression, SOp], selectors: dict[Expression, Selector]
) -> Selector:
    match node:
        case SelectOp(keys, queries):
            return replace(node, keys=sops[keys], queries=sops[queries])
        case AndOp(left, right) | OrOp(left, right):
            return replace(node, left=selectors[left], right=selectors[right])
        case NotOp(arg):
            return replace(node, arg=selectors[arg])
    return node
