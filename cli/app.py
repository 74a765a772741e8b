"""The commands. Each imports what it needs when it runs, so that `check` and `show` never import torch or z3."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import BadInput, ExitCode, be_lenient, complain, hang_up

EPILOG = (
    "Exit codes: 0 done, proved or valid; 1 refuted or invalid, or (run) model and program disagree; 2 unknown or "
    "holey; 3 bad input; 70 an error inside certiformer; 130 interrupted; 141 nobody read the output."
)
TRACEBACK = "CERTIFORMER_TRACEBACK"

app = typer.Typer(
    name="certiformer",
    help="Compile RASP programs into transformers, prove what they compute on every input, check the proof.",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A model saved by `certiformer compile` or `train`, or zoo:NAME.")
]
Certificate = Annotated[Path, typer.Argument(metavar="CERT", help="A certificate.")]
AtMost = Annotated[str | None, typer.Option(help="For accuracy: the share that it does not exceed.")]
Lengths = Annotated[str | None, typer.Option(help="FIRST:LAST, for example 1:32. Default: all the model takes.")]
Vocab = Annotated[str | None, typer.Option(help="Only sequences of these tokens: a,b,c. Default: all.")]
Seconds = Annotated[float, typer.Option(parser=_number, metavar="<float>", help="Time limit.")]
Program = Annotated[str, typer.Argument(metavar="PROGRAM", help="A library program, or path.py:name for your own.")]


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"certiformer {__version__}")
        raise typer.Exit


def _integer(text: object) -> int:
    """As typer reads an integer, but its message has the text in it."""
    try:
        return int(str(text))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("compile", epilog=EPILOG)
def compile_(
    program: Program,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write: a file, or an existing folder.")],
    vocab: Annotated[str, typer.Option(help="20: tokens 0 to 19, or the program's own of that size; or a,b,c.")] = "10",
    max_len: Annotated[int, typer.Option(parser=_integer, metavar="<int>", help="The longest sequence.")] = 16,
    causal: Annotated[
        bool | None,
        typer.Option("--causal/--bidirectional", help="May a position see later ones? Default: as the program says."),
    ] = None,
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Put a token for the beginning first.")] = True,
    as_json: AsJson = False,
) -> int:
    """Compile PROGRAM into a transformer and save it."""
    from .commands import compile_program

    return compile_program(program, output, vocab, max_len, causal, bos, as_json)


@app.command("run", epilog=EPILOG)
def run(
    model: Model,
    tokens: Annotated[
        list[str],
        typer.Argument(metavar="TOKENS...", help="3 1 2, or 3,1,2, or ')(()' for tokens of one character each."),
    ],
    as_json: AsJson = False,
) -> int:
    """Run a model on one sequence, and its program beside it; exit code 1 if they disagree."""
    from .commands import run_model

    return run_model(model, tokens, as_json)


@app.command("prove", epilog=EPILOG)
def prove(
    model: Model,
    claim: Annotated[
        str,
        typer.Option(
            help="computes, margin, never-outputs, invariant, attends, faithful, abstracts, robust, monotone; "
            "of a trained model: accuracy, labels, task-margin, margin, never-outputs, invariant, robust, monotone."
        ),
    ] = "computes",
    program: Annotated[
        str | None, typer.Option(help="For computes, abstracts: another program than the one that was compiled.")
    ] = None,
    at_least: Annotated[
        str | None,
        typer.Option(
            help="For margin and task-margin: the bound (task-margin: or one is found); for accuracy: the share."
        ),
    ] = None,
    at_most: AtMost = None,
    outputs: Annotated[str | None, typer.Option(help="For never-outputs: values, separated by commas.")] = None,
    relabel: Annotated[
        str | None, typer.Option(help="For invariant: a=b,c=d; replacing these tokens leaves the outputs as they are.")
    ] = None,
    relabel_outputs: Annotated[
        bool | None, typer.Option("--relabel-outputs", help="With --relabel: the outputs are replaced likewise.")
    ] = None,
    irrelevant: Annotated[
        str | None, typer.Option(help="For invariant: positions (from 0) on which the other outputs do not depend.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="For attends: layer and head, for example 0,1.")] = None,
    selector: Annotated[
        str | None, typer.Option(help="For attends: a selector or aggregate of the program by name, or as n3.")
    ] = None,
    tolerance: Annotated[str | None, typer.Option(help="For attends: the largest error. Default: 0.001.")] = None,
    ablation: Annotated[str | None, typer.Option(help="For faithful: zero or resample.")] = None,
    site: Annotated[str | None, typer.Option(help="For robust: a site, such as blocks.0.hook_resid_pre.")] = None,
    radius: Annotated[str | None, typer.Option(help="For robust: how far each coordinate there may be moved.")] = None,
    lengths: Lengths = None,
    vocab: Vocab = None,
    seconds: Seconds = 60.0,
    engine: Annotated[
        list[str] | None, typer.Option(help="Use this engine only (may be repeated). Default: all that apply.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="A file that engine paths goes on from, and writes what is left to (also after Ctrl-C)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the certificate.")] = None,
    as_json: AsJson = False,
) -> int:
    """Prove or refute a claim about a model, for every input."""
    from .commands import Wanted, prove_claim

    wanted = Wanted(
        claim,
        program,
        at_least,
        at_most,
        outputs,
        relabel,
        relabel_outputs,
        irrelevant,
        head,
        selector,
        tolerance,
        ablation,
        site,
        radius,
        lengths,
        vocab,
    )
    return prove_claim(model, wanted, seconds, engine, resume, output, as_json)


@app.command("bound", epilog=EPILOG)
def bound(
    model: Model,
    output: Annotated[str, typer.Option(help="An output of the model.")],
    rival: Annotated[str, typer.Option(help="Another one.")],
    gap: Annotated[float, typer.Option(parser=_number, metavar="<float>", help="How far the bounds may differ.")] = 0.0,
    seconds: Seconds = 60.0,
    resume: Annotated[
        Path | None, typer.Option(help="A file to go on from, and to write what is left to (also after Ctrl-C).")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Bound the least of logit OUTPUT - logit RIVAL over all inputs of a trained model's task."""
    from .bounding import bound_difference

    return bound_difference(model, output, rival, gap, seconds, resume, as_json)


@app.command("judge", epilog=EPILOG)
def judge(
    model: Model,
    circuit: Annotated[Path, typer.Argument(metavar="CIRCUIT", help="A circuit of the model, as JSON.")],
    ablation: Annotated[
        str | None, typer.Option(help="zero, mean or resample, of all the rest. Default: the circuit's own.")
    ] = None,
    means: Annotated[
        Path | None, typer.Option(help="For mean: the vectors, as JSON. Default: over words drawn from the domain.")
    ] = None,
    at_least: Annotated[str | None, typer.Option(help="Faithful on this share of the inputs. Default: on all.")] = None,
    seconds: Seconds = 60.0,
    edge_seconds: Annotated[
        float, typer.Option(parser=_number, metavar="<float>", help="Time limit for each edge.")
    ] = 2.0,
    certificate: Annotated[Path | None, typer.Option(help="Where to write the certificate of what is proved.")] = None,
    lengths: Lengths = None,
    vocab: Vocab = None,
    as_json: AsJson = False,
) -> int:
    """Judge a circuit of a model: is it faithful on every input, does it need each edge, does the rest not decide?"""
    from .judging import Judging, judge_circuit

    options = Judging(ablation, means, at_least, seconds, edge_seconds, certificate, lengths, vocab)
    return judge_circuit(model, circuit, options, as_json)


@app.command("radius", epilog=EPILOG)
def radius(
    model: Model,
    claim: Annotated[
        str, typer.Option(help="computes, margin; of a trained model: accuracy, labels, task-margin.")
    ] = "computes",
    at_least: Annotated[
        str | None, typer.Option(help="For margin and task-margin: the bound; for accuracy: the share.")
    ] = None,
    at_most: AtMost = None,
    lengths: Lengths = None,
    vocab: Vocab = None,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Weights change by so much each. Default: relative to their magnitude.")
    ] = False,
    seconds: Seconds = 60.0,
    as_json: AsJson = False,
) -> int:
    """How much all weights may change at once with a claim still proved, for every input. No certificate."""
    from .commands import Wanted
    from .radius import weight_radius_of

    wanted = Wanted(claim, at_least=at_least, at_most=at_most, lengths=lengths, vocab=vocab)
    return weight_radius_of(model, wanted, not absolute, seconds, as_json)


@app.command("check", epilog=EPILOG)
def check(
    certificate: Certificate,
    model: Annotated[
        Path | None, typer.Option(help="The model the certificate is about. (One about programs has none.)")
    ] = None,
    expect: Annotated[
        Path | None,
        typer.Option(help="A file with the theorem you want: a certificate, or what `certiformer show --json` prints."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check a certificate with the independent checker."""
    from .checking import check_certificate

    return check_certificate(certificate, model, expect, as_json)


@app.command("show", epilog=EPILOG)
def show(certificate: Certificate, as_json: AsJson = False) -> int:
    """Show a certificate's theorem in words; checks nothing."""
    from .checking import show_certificate

    return show_certificate(certificate, as_json)


@app.command("train", epilog=EPILOG)
def train(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK", help="max-of-10, dyck-1-16, ...; or zoo:NAME, to make a zoo model again."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write: a file, or an existing folder.")],
    vocab: Annotated[int | None, typer.Option(help="How many tokens; for max-of, sort and others.")] = None,
    letters: Annotated[int | None, typer.Option(help="How many letters beside the quotes; for quotes.")] = None,
    depth: Annotated[int | None, typer.Option(help="How deep brackets nest; for bracket-type.")] = None,
    layers: Annotated[int | None, typer.Option(help="Default: 1.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of a layer. Default: 1.")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of the residual stream. Default: 32.")] = None,
    d_mlp: Annotated[int | None, typer.Option(help="Neurons of a layer. Default: 0, no MLP.")] = None,
    d_readout: Annotated[
        int | None, typer.Option(help="Neurons of an MLP between the read-out and the logits. Default: 0, none.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="relu, gelu, gelu_new, silu or leaky_relu. Default: relu.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="softmax or sparsemax. Default: softmax.")] = None,
    causal: Annotated[
        bool | None,
        typer.Option("--causal/--bidirectional", help="May a position see later ones? Default: bidirectional."),
    ] = None,
    layer_norm: Annotated[float | None, typer.Option(help="LayerNorm with this epsilon. Default: none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: 3000.")] = None,
    batch: Annotated[int | None, typer.Option(help="Words a step. Default: 128.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW. Default: 0.001.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default: 0.01.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the learning rate: constant, linear or cosine (to 0). Default: constant.")
    ] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps before the full learning rate. Default: 0.")] = None,
    init_scale: Annotated[float | None, typer.Option(help="Factor of the first weights. Default: 1.")] = None,
    biases: Annotated[
        bool | None, typer.Option("--biases/--no-biases", help="Train biases, or keep them zero. Default: train.")
    ] = None,
    stop_at: Annotated[
        float | None, typer.Option(help="Stop when this share of held-out inputs is right. Default: never.")
    ] = None,
    entropy: Annotated[
        float | None,
        typer.Option(help="Coefficient of the entropy of attention, for attention to one key. Default: 0."),
    ] = None,
    score_variance: Annotated[
        float | None,
        typer.Option(help="Coefficient of the variance of attention scores, for uniform attention. Default: 0."),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Coefficient of the L1 norm of activations and attention outputs. Default: 0."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> int:
    """Train a transformer on TASK and save it. Ctrl-C keeps what is done; the same command goes on."""
    from .training import Settings, train_model

    settings = Settings(
        task=_given(vocab=vocab, letters=letters, depth=depth),
        model=_given(
            layers=layers,
            heads=heads,
            d_model=d_model,
            d_mlp=d_mlp,
            d_readout=d_readout,
            activation=activation,
            attention=attention,
            causal=causal,
            layer_norm=layer_norm,
        ),
        recipe=_given(
            seed=seed,
            steps=steps,
            batch=batch,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup=warmup,
            init_scale=init_scale,
            biases=biases,
            stop_at=stop_at,
            entropy=entropy,
            score_variance=score_variance,
            sparsity=sparsity,
        ),
    )
    return train_model(task, settings, device, output, as_json)


@app.command("zoo", epilog=EPILOG)
def zoo(as_json: AsJson = False) -> int:
    """List the trained models that come with the package."""
    from .training import list_zoo

    return list_zoo(as_json)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


@app.command("programs", epilog=EPILOG)
def programs(as_json: AsJson = False) -> int:
    """List the library of programs."""
    from .commands import list_programs

    return list_programs(as_json)


@app.command("demo", epilog=EPILOG)
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Keep the model and the certificate here. Default: nowhere.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compile sort, prove it on every input, check the proof, refute two false claims."""
    from .demo import run_demo

    return run_demo(folder, as_json)


def execute(arguments: Sequence[str]) -> int:
    """Runs the command line; the exit code. Errors are messages on stderr, never tracebacks."""
    be_lenient()
    streams = sys.stdout, sys.stderr
    try:
        code = _execute(list(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        pass
    except SystemExit as stop:  # typer makes this of a broken pipe, and puts other streams in place
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
    finally:
        sys.stdout, sys.stderr = streams
    hang_up()
    return ExitCode.PIPE


def _execute(options: list[str]) -> int:
    as_json = "--json" in options[: options.index("--")] if "--" in options else "--json" in options
    try:
        result = app(args=options, prog_name="certiformer", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        result = ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(error, as_json)
    if result == ExitCode.INTERRUPTED:  # typer makes this of Ctrl-C
        sys.stderr.write("interrupted\n")
    return result if isinstance(result, int) else ExitCode.OK


def _failed(error: Exception, as_json: bool) -> int:
    """Tells wrong input from a bug of ours."""
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "exit_code"):  # typer's own: wrong arguments
        if as_json:
            told = getattr(error, "format_message", lambda: str(error))
            complain(str(told()), as_json=True, kind="usage")
        else:
            show()
        return ExitCode.BAD_INPUT
    if isinstance(error, BadInput) or _is_input_error(error):
        complain(str(error), as_json=as_json, kind="input")
        return ExitCode.BAD_INPUT
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}", as_json=as_json, kind="input")
        return ExitCode.BAD_INPUT
    if os.environ.get(TRACEBACK):
        raise error
    complain(
        f"a bug in certiformer: {type(error).__name__}: {error}\nplease report it; {TRACEBACK}=1 shows where it is",
        as_json=as_json,
        kind="bug",
    )
    return ExitCode.BUG


def _is_input_error(error: Exception) -> bool:
    """Whether `error` is one of the packages' own. Looks only at what is imported already."""
    errors = sys.modules.get(f"{__package__.rpartition('.')[0]}.models.errors")
    if errors is None or isinstance(error, errors.InternalError):
        return False
    return isinstance(error, errors.CertiformerError)


def main() -> None:
    """The console script `certiformer`."""
    sys.exit(execute(sys.argv[1:]))
