"""The commands `import` and `export`: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import EPILOG, AsJson, Model, app
from .app import _integer as integer
from .app import _number as number


@app.command("export", epilog=EPILOG)
def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A file; for huggingface and vnnlib a folder.")],
    to: Annotated[str, typer.Option(help="onnx, vnnlib, jax (.npz), huggingface (GPT-2) or transformer-lens.")],
    site: Annotated[
        str | None,
        typer.Option(help="For onnx: start at this site of the residual stream; for vnnlib: what is perturbed."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            parser=integer, metavar="<int>", help="For onnx: this many positions, BOS included. Default: any."
        ),
    ] = None,
    double: Annotated[bool, typer.Option("--double", help="For onnx: all in float64.")] = False,
    radius: Annotated[str | None, typer.Option(help="For vnnlib: how far each coordinate may be moved.")] = None,
    word: Annotated[
        list[str] | None, typer.Option(help="For vnnlib: a word, such as '3 1 2' (may be repeated: a query for each).")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(parser=number, metavar="<float>", help="For vnnlib: the time limit in instances.csv."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write a model for other tools, with exactly its weights."""
    from .formats import Exporting, export_model

    return export_model(model, Exporting(to, output, site, length, double, radius, word, seconds), as_json)


@app.command("import", epilog=EPILOG)
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint of another tool: a file or folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write: a file, or an existing folder.")],
    from_: Annotated[str, typer.Option("--from", help="huggingface (GPT-2), transformer-lens, jax (.npz) or tracr.")],
    config: Annotated[Path | None, typer.Option(help="For transformer-lens: its configuration, as JSON.")] = None,
    readout: Annotated[
        str | None, typer.Option(help="For transformer-lens: each, last or mean. Default: each.")
    ] = None,
    values: Annotated[
        str | None, typer.Option(help="For tracr: the numbers that a numerical output stands for, by commas.")
    ] = None,
    upcast: Annotated[bool, typer.Option("--upcast", help="Take float16 and bfloat16 weights as float32.")] = False,
    as_json: AsJson = False,
) -> int:
    """Save another tool's model, with exactly its weights, as one that the other commands take."""
    from .formats import Importing, import_model

    return import_model(source, Importing(from_, output, config, readout, values, upcast), as_json)
