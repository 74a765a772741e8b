"""Decompilation: a RASP program read off the weights of a model whose variables are located.

The alignment says which component writes which variable, where, in which encoding (`decompile_sketch`). What the
components compute is read off the weights (`decompile_reading`), written as formulas where formulas fit
(`decompile_fitting`), put together as a program (`decompile_programs`). The way is float64 and heuristics; whether the
model computes the program is for a prover to say, and `Decompiled.verdict` is what it said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..compiler.alignment import Alignment
from ..compiler.core import CoreProgram
from ..compiler.core_json import core_to_json
from ..compiler.lower import CompileError
from ..compiler.rasp import MapOp, SelectOp, SOp
from ..compiler.structure import nodes_of
from ..models import Codec, InputError, Transformer
from .decompile_programs import align, build_program
from .decompile_reading import Tables, read_tables
from .decompile_sketch import Sketch
from .program_text import program_text


@dataclass(frozen=True, eq=False, repr=False)
class Decompiled:
    """A program that was read off a model's weights, and what is proved of it.

    `program`: in RASP; `text`: a Python module that builds it; `core`: in core RASP; `alignment`: of the model with
    it; `tables`: what was read. `formulas`, `left_as_tables`: how many of its functions and predicates are which.
    `verdict`: that the model computes the program on every input of the domain (None: not asked for yet).
    `equivalence`: that the program equals another one, if one was given.
    """

    program: SOp
    text: str
    core: CoreProgram
    alignment: Alignment
    tables: Tables
    formulas: int
    left_as_tables: int
    verdict: Any = None
    equivalence: Any = None

    def __repr__(self) -> str:
        known = type(self.verdict).__name__ if self.verdict is not None else "not proved"
        return (
            f"<Decompiled {self.core.name!r}: {len(self.core.nodes)} nodes, {self.formulas} formulas, "
            f"{self.left_as_tables} tables; {known}>"
        )

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`: the program as text and in core RASP, and what the verdicts are."""
        known = None if self.equivalence is None else type(self.equivalence).__name__.lower()
        return {
            "program": self.text,
            "core": core_to_json(self.core),
            "formulas": self.formulas,
            "left_as_tables": self.left_as_tables,
            "verdict": None if self.verdict is None else type(self.verdict).__name__.lower(),
            "equivalent_to_source": known,
        }


def recover(
    model: Transformer,
    codec: Codec,
    alignment: Alignment,
    *,
    name: str = "recovered",
    step: Callable[[str], None] = lambda _: None,
) -> Decompiled:
    """The program that the weights compute, if the alignment locates their variables. Nothing is proved here.

    Of the alignment only names, values, sites and encodings are used, not its program. `step` is told each component.
    Raises `InputError` naming the component for which the alignment cannot be right, or that no RASP program has.
    """
    if not isinstance(model, Transformer):
        raise InputError(f"tables are read off a Transformer, got {model!r}; apply edits to the weights first")
    if not isinstance(alignment, Alignment):
        raise InputError(
            f"an alignment is needed, which says where the variables are, got {alignment!r}: compiled programs have "
            "one (`Compiled.alignment`, and in the file of `Compiled.save`)"
        )
    tables = read_tables(model, codec, Sketch.of(alignment), step)
    longest = min(alignment.program.max_len, codec.max_len or alignment.program.max_len)
    causal = bool(model.config.causal)
    step("the program")
    try:
        recovered = build_program(tables, name, codec.vocab, longest, causal)
        found, core = align(tables, recovered, codec, longest, causal)
    except CompileError as error:
        raise InputError(f"the tables read off the weights make no RASP program on these inputs: {error}") from None
    functions = [
        node.function if isinstance(node, MapOp) else node.predicate.function
        for node in nodes_of(recovered.program)
        if isinstance(node, (MapOp, SelectOp))
    ]
    left = sum(function.table is not None for function in functions)
    text = program_text(recovered.program, f"{name}, read off the weights of a model")
    return Decompiled(recovered.program, text, core, found, tables, len(functions) - left, left)
