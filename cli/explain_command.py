"""The command `explain`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import EPILOG, AsJson, Lengths, Model, Vocab, app
from .app import _integer as integer
from .app import _number as number


@app.command("explain", epilog=EPILOG)
def explain(
    model: Model,
    method: Annotated[
        str,
        typer.Option(help="eap, eap-ig, acdc, patching (exact, edge by edge), or verified (every deletion proved)."),
    ] = "eap-ig",
    ablation: Annotated[
        str, typer.Option(help="What is put in place of a contribution: zero, mean, or resample (another input's).")
    ] = "resample",
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit-difference, cross-entropy, kl or squared-error. Default: logit-difference; of acdc, kl; of a "
            "model with one logit, squared-error."
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(parser=integer, metavar="<int>", help="Select this many edges.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(parser=number, metavar="<float>", help="Select edges of at least this score; for acdc: its own."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(parser=integer, metavar="<int>", help="How many pairs of an input and a source.")
    ] = 1000,
    seed: Annotated[int, typer.Option(parser=integer, metavar="<int>", help="For drawing them.")] = 0,
    lengths: Lengths = None,
    vocab: Vocab = None,
    steps: Annotated[
        int | None, typer.Option(parser=integer, metavar="<int>", help="For eap-ig: points on the path. Default: 5.")
    ] = None,
    path: Annotated[str | None, typer.Option(help="For eap-ig: inputs or activations. Default: inputs.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="For verified: a circuit to start from, in any format. Default: all edges.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(parser=number, metavar="<float>", help="For verified: time for each decision. Default: 10."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="For verified: a file of decisions to go on from, written after each one.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    format: Annotated[
        str,
        typer.Option(help="Of the file: certiformer, circuit, eap-ig, eap-ig-pt, acdc, interpbench or auto-circuit."),
    ] = "certiformer",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write scores and circuit.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Where to draw the circuit.")] = None,
    as_json: AsJson = False,
) -> int:
    """Find the circuit of a model: score every edge, select some, compare with the compiled circuit."""
    from .explaining import Explaining, explain_model

    wanted = Explaining(
        method=method,
        metric=metric,
        ablation=ablation,
        top=top,
        threshold=threshold,
        pairs=pairs,
        seed=seed,
        lengths=lengths,
        vocab=vocab,
        steps=steps,
        path=path,
        start=start,
        seconds=seconds,
        resume=resume,
        device=device,
        format=format,
        output=output,
        svg=svg,
    )
    return explain_model(model, wanted, as_json)
