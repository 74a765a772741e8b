"""The command `prove-program`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import EPILOG, AsJson, Program, Seconds, app


@app.command("prove-program", epilog=EPILOG)
def prove_program(
    program: Program,
    equivalent: Annotated[str | None, typer.Option(help="It equals this program.")] = None,
    implies: Annotated[str | None, typer.Option(help="This program is true wherever it is.")] = None,
    ensures: Annotated[
        str | None, typer.Option(help="sorted, permutation_of_input, or a Boolean program that is true everywhere.")
    ] = None,
    within: Annotated[str | None, typer.Option("--range", help="Its values are numbers of LEAST:MOST.")] = None,
    vocab: Annotated[str, typer.Option(help="8: tokens 0 to 7, or the program's own of that size; or a,b,c.")] = "8",
    lengths: Annotated[str, typer.Option(help="FIRST:LAST.")] = "1:8",
    every_length: Annotated[
        bool, typer.Option("--every-length", help="All lengths from 1 on; the programs are read causally.")
    ] = False,
    causal: Annotated[
        bool | None,
        typer.Option("--causal/--bidirectional", help="May a position see later ones? Default: as the program says."),
    ] = None,
    seconds: Seconds = 60.0,
    engine: Annotated[
        list[str] | None, typer.Option(help="smt or enumeration (may be repeated). Default: both.")
    ] = None,
    confirm: Annotated[
        str | None, typer.Option(help="cvc5: a second solver has to agree where Z3 finds no failing input.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the certificate.")] = None,
    as_json: AsJson = False,
) -> int:
    """Prove or refute a claim about PROGRAM itself, for every input; refuted by the smallest one."""
    from .programs import Asked, prove_about_program

    asked = Asked(program, equivalent, implies, ensures, within, vocab, lengths, every_length, causal)
    return prove_about_program(asked, seconds, engine, confirm, output, as_json)
