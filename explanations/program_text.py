"""A RASP program as a Python module that builds it again.

Law: the s-op `program` of the module equals the program, on every input on which that is defined.
"""

from __future__ import annotations

import ast
import keyword
import re
import textwrap
from collections.abc import Sequence
from fractions import Fraction

from ..compiler import rasp
from ..compiler.core import Value
from ..compiler.functions import Function, Predicate
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
    SOp,
    TokensOp,
    WidthOp,
)
from ..compiler.structure import children, nodes_of
from ..compiler.terms import COMPARISONS, OPERATIONS, Apply, Arg, Const, Term
from ..models.errors import InputError, InternalError

LINE = 88
"""A longer part gets a line, and a name, of its own."""
WIDTH = 110
"""Of a line of a table."""
_OPERATORS = frozenset({"+", "-", "*", "neg", "abs", "and", "or", "not", *COMPARISONS})
_AS_OPERATORS = {"and": "&", "or": "|", "not": "~"}
_LEVELS = {"|": 2, "^": 3, "&": 4, "~": 8} | dict.fromkeys(COMPARISONS, 1)


def program_text(program: SOp, title: str = "") -> str:
    """The module's text. Raises `InputError` for a program with a callable that is no formula and no table."""
    return _Writer(program).module(title)


class _Writer:
    def __init__(self, program: SOp) -> None:
        self.program = program
        self.order = nodes_of(program)
        self.uses: dict[Expression, int] = {}
        for node in self.order:
            for child in children(node):
                self.uses[child] = self.uses.get(child, 0) + 1
        self.names: dict[Expression, str] = {}
        self.imports: set[str] = set()
        self.fractions = False
        self.lines: list[str] = []

    def module(self, title: str) -> str:
        texts: dict[Expression, str] = {}
        for node in self.order:
            text = self._node(node, texts)
            if node is not self.program and self._has_line(node, text):
                self.names[node] = self._fresh(node)
                self.lines.append(f"{self.names[node]} = {_bare(text)}")
                text = self.names[node]
            texts[node] = text
        self.lines.append(f"program = {texts[self.program]}")
        head = [f'"""{_plain(title)}"""', ""] if title else []
        if self.fractions:
            head += ["from fractions import Fraction", ""]
        names = ", ".join(sorted(self.imports, key=str.lower))
        return "\n".join([*head, f"from certiformer.compiler.rasp import {names}", "", *self.lines, ""])

    def _has_line(self, node: Expression, text: str) -> bool:
        if isinstance(node, (TokensOp, IndicesOp, Constant)):
            return False
        return self.uses.get(node, 0) > 1 or bool(node.name) or len(text) > LINE

    def _fresh(self, node: Expression) -> str:
        kind = {WidthOp: "count", AggregateOp: "read", MapOp: "value", SelectOp: "match"}.get(type(node), "match")
        wanted = re.sub(r"\W+", "_", node.name or "", flags=re.ASCII).strip("_")
        base = wanted if wanted.isidentifier() and not keyword.iskeyword(wanted) else kind
        taken = {*self.names.values(), "program", "Fraction", *rasp.__all__, "key", "query", "abs"}
        if base not in taken and base != kind:
            return base
        number = 1
        while f"{base}_{number}" in taken:
            number += 1
        return f"{base}_{number}"

    def _use(self, name: str) -> str:
        self.imports.add(name)
        return name

    def _node(self, node: Expression, texts: dict[Expression, str]) -> str:
        match node:
            case TokensOp():
                return self._use("tokens")
            case IndicesOp():
                return self._use("indices")
            case Constant(value=value):
                return f"{self._use('full')}({self._value(value)})"
            case MapOp(function=function, args=args):
                return self._map(function, [texts[arg] for arg in args])
            case LinearOp(args=args, coefficients=coefficients, constant=constant):
                parts = ", ".join(texts[arg] for arg in args)
                factors = ", ".join(map(self._value, coefficients))
                return f"{self._use('linear')}([{parts}], [{factors}], {self._value(constant)})"
            case AggregateOp(selector=selector, value=value, default=default):
                tail = "" if default is None else f", default={self._value(default)}"
                return f"{self._use('aggregate')}({_bare(texts[selector])}, {texts[value]}{tail})"
            case WidthOp(selector=selector):
                return f"{self._use('selector_width')}({_bare(texts[selector])})"
            case SelectOp(keys=keys, queries=queries, predicate=predicate):
                return f"{self._use('select')}({texts[keys]}, {texts[queries]}, {self._predicate(predicate)})"
            case AndOp(left=left, right=right):
                return f"({texts[left]} & {texts[right]})"
            case OrOp(left=left, right=right):
                return f"({texts[left]} | {texts[right]})"
            case NotOp(arg=arg):
                return f"~{texts[arg]}"
        raise InternalError(f"{node!r} is no node of the language; please report this")

    # -- functions ----------------------------------------------------------------------------------------------------

    def _map(self, function: Function, args: Sequence[str]) -> str:
        term = function.reading
        if term is None:
            table = self._table(function)
            if len(args) == 1:
                return f"{self._use('Map')}({table}, {args[0]})"
            return f"{self._use('SequenceMap')}({table}, {', '.join(args)})"
        if isinstance(term, Apply) and _plain_operators(term):
            return self._operators(term, args)[0]
        call = self._call(term, args)
        if call is not None:
            return call
        names = ["x", "y", "z"][: len(args)] if len(args) < 4 else [f"x{t}" for t in range(len(args))]
        body = f"lambda {', '.join(names)}: {_bare(self._term(term, names))}"
        return f"{self._use('Map' if len(args) == 1 else 'SequenceMap')}({body}, {', '.join(args)})"

    def _call(self, term: Term, args: Sequence[str]) -> str | None:
        """min, max and where of arguments and constants."""
        names = {"min": "minimum", "max": "maximum", "where": "where"}
        if not isinstance(term, Apply) or term.op not in names:
            return None
        parts = []
        for part in term.args:
            if isinstance(part, Const):
                parts.append(self._value(part.value))
            elif isinstance(part, Arg):
                parts.append(args[part.index])
            elif isinstance(part, Apply) and _plain_operators(part) and (term.op != "where" or part is term.args[0]):
                parts.append(self._operators(part, args)[0])
            else:
                return None
        return f"{self._use(names[term.op])}({', '.join(parts)})"

    def _operators(self, term: Term, args: Sequence[str]) -> tuple[str, int]:
        """The term by operators on s-ops, and how tightly it binds."""
        if isinstance(term, Const):
            negative = isinstance(term.value, (int, Fraction)) and term.value < 0
            return self._value(term.value), 7 if negative else 9
        if isinstance(term, Arg):
            text = args[term.index]
            return text, 9 if _binds_tightly(text) else 0
        if term.op == "abs":
            return f"abs({self._operators(term.args[0], args)[0]})", 9
        symbol = _AS_OPERATORS.get(term.op, OPERATIONS[term.op].symbol)
        level = _LEVELS.get(symbol, OPERATIONS[term.op].precedence)
        parts = [self._operators(part, args) for part in term.args]
        if len(parts) == 1:
            return symbol + _within(parts[0], level), level
        strict = level + 1 if term.op in COMPARISONS else level
        return f"{_within(parts[0], strict)} {symbol} {_within(parts[1], level + 1)}", level

    def _term(self, term: Term, names: Sequence[str]) -> str:
        """As Python inside a lambda; a fraction stays exact."""
        if isinstance(term, Const):
            return self._value(term.value)
        if isinstance(term, Arg):
            return names[term.index]
        operation = OPERATIONS[term.op]
        parts = [self._term(part, names) for part in term.args]
        if term.op == "where":
            return f"({parts[1]} if {parts[0]} else {parts[2]})"
        if term.op == "in":
            return f"({parts[0]} in ({', '.join(parts[1:])},))"
        if term.op in ("floor", "ceil"):
            return f"({parts[0]} // 1)" if term.op == "floor" else f"(-(-{parts[0]} // 1))"
        if operation.style == "call":
            return f"{operation.symbol}({', '.join(parts)})"
        if operation.style == "prefix":
            return f"({operation.symbol}{parts[0]})"
        return f"({parts[0]} {operation.symbol} {parts[1]})"

    def _predicate(self, predicate: Predicate) -> str:
        if predicate.comparison is not None:
            comparison = predicate.comparison.value
            return comparison if comparison in ("True", "False") else f'"{comparison}"'
        term = predicate.function.reading
        if term is None:
            return self._table(predicate.function)
        text = self._term(term, ["key", "query"])
        return f"lambda key, query: {_bare(text)}"

    def _table(self, function: Function) -> str:
        if function.table is None:
            raise InputError(f"{function.text} is a Python function that is no formula: it cannot be written as text")
        entries = []
        for key, value in function.table.items():
            shown = self._value(key[0]) if function.arity == 1 else f"({', '.join(map(self._value, key))})"
            entries.append(f"{shown}: {self._value(value)}")
        lines = textwrap.wrap(", ".join(entries), WIDTH, break_long_words=False, break_on_hyphens=False)
        if len(lines) < 2 or any(isinstance(v, str) and " " in v for k, v in function.table.items() for v in (*k, v)):
            return "{" + ", ".join(entries) + "}"
        return "{\n    " + "\n    ".join(lines) + "\n}"

    def _value(self, value: Value) -> str:
        if isinstance(value, Fraction) and value.denominator != 1:
            self.fractions = True
            return f"Fraction({value.numerator}, {value.denominator})"
        return repr(int(value)) if isinstance(value, Fraction) else repr(value)


def _plain_operators(term: Term) -> bool:
    """Whether it is made of operators that s-ops have, with an s-op in each."""
    if not isinstance(term, Apply):
        return True
    with_sop = any(not isinstance(arg, Const) for arg in term.args)
    return term.op in _OPERATORS and with_sop and all(map(_plain_operators, term.args))


def _within(part: tuple[str, int], level: int) -> str:
    return part[0] if part[1] >= level else f"({part[0]})"


def _binds_tightly(text: str) -> bool:
    """Whether it is a name or one call."""
    return isinstance(ast.parse(text, mode="eval").body, (ast.Name, ast.Call, ast.Constant))


def _bare(text: str) -> str:
    """Without the brackets around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    try:
        inner = ast.dump(ast.parse(text[1:-1], mode="eval"))
    except SyntaxError:
        return text
    return text[1:-1] if inner == ast.dump(ast.parse(text, mode="eval")) else text


def _plain(title: str) -> str:
    return title.replace("\\", "\\\\").replace('"', "'")
