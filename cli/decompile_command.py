"""The command `decompile`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import EPILOG, AsJson, Lengths, Model, Seconds, Vocab, app


@app.command("decompile", epilog=EPILOG)
def decompile(
    model: Model,
    source: Annotated[
        str | None, typer.Option(help="A program (library name, or path.py:name) that the one recovered may equal.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the program: FILE.py, or FILE.json.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Where to write the certificate.")] = None,
    lengths: Lengths = None,
    vocab: Vocab = None,
    seconds: Seconds = 60.0,
    as_json: AsJson = False,
) -> int:
    """Read the RASP program of a model off its weights, and prove that the model computes it."""
    from .decompiling import Decompiling, decompile_model

    return decompile_model(model, Decompiling(source, output, certificate, lengths, vocab, seconds), as_json)
