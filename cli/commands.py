"""`compile`, `run`, `prove` and `programs`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..proofs.words import digits_of
from . import inputs
from .claims import OF_EITHER, OF_TASKS, claim_of
from .claims import Wanted as Wanted
from .output import BadInput, ExitCode, Screen, facts, grouped, sequence_text

if TYPE_CHECKING:
    from ..compiler.compiled import Compiled
    from ..models import Codec, Language
    from ..models.cards import Trained
    from ..verifier.claims import Claim
    from ..verifier.reading import Subject
    from ..verifier.verdicts import EmptyDomain, Refuted, Unknown, Vacuous


def compile_program(
    program: str, output: Path, vocab: str, max_len: int, causal: bool | None, bos: bool, as_json: bool
) -> int:
    """Compiles and saves; shows the model's shape."""
    from ..compiler.compile import compile as compile_

    screen = Screen(as_json)
    named = inputs.load_program(program)
    tokens = inputs.parse_vocab(vocab, named.entry)
    if causal is None:
        causal = named.entry.causal if named.entry else False
    target = _target(output, f"{named.name}.safetensors", inputs.source_file(program))
    notes = _vocab_notes(vocab, named.name, len(tokens))
    started = time.perf_counter()
    with screen.progress(f"compiling {named.name}"):
        compiled = compile_(named.program, vocab=tokens, max_len=max_len, causal=causal, bos=bos, name=named.name)
    seconds = round(time.perf_counter() - started, 3)
    compiled.save(target)
    data = {
        "program": named.name,
        "vocab": list(tokens),
        "max_len": max_len,
        "causal": causal,
        "bos": bos,
        **shape(compiled),
        "margin": compiled.margin if math.isfinite(compiled.margin) else None,
        "seconds": seconds,
        "path": str(target),
        "notes": notes,
    }
    rows = {
        "program": named.name,
        "vocabulary": f"{len(tokens)} tokens: {sequence_text(tokens[:12])}{' ...' if len(tokens) > 12 else ''}",
        "lengths": f"1 to {max_len}",
        "model": shape_words(compiled),
        "margin": f"{compiled.margin:.4g} at the read-out by construction, before any proof",
        "compiled in": f"{seconds:.2f} s",
        "saved": str(target),
    }
    screen.show(data, facts(rows), *(f"note: {note}" for note in notes))
    return ExitCode.OK


def _vocab_notes(asked: str, name: str, size: int) -> list[str]:
    """What to say of a library program that does not take as many tokens as were asked for."""
    wanted = inputs.vocab_size(asked)
    if wanted in (None, size):
        return []
    return [
        f"{name} has a vocabulary of its own, of {size} tokens where {wanted} are asked for; --vocab a,b,c lists others"
    ]


def shape(compiled: Compiled) -> dict[str, object]:
    """The model's shape as data."""
    config = compiled.model.config
    return {
        "layers": config.n_layers,
        "heads": [layer.n_heads for layer in config.layers],
        "d_head": [layer.d_head for layer in config.layers],
        "d_mlp": [layer.d_mlp for layer in config.layers],
        "d_model": config.d_model,
        "d_model_without_reuse": compiled.sizes.d_model_without_reuse,
        "parameters": config.n_parameters,
        "weights_sha256": compiled.model.weights_sha256(),
    }


def shape_words(compiled: Compiled) -> str:
    """The model's shape on a line."""
    config = compiled.model.config
    heads = sum(layer.n_heads for layer in config.layers)
    neurons = sum(layer.d_mlp for layer in config.layers)
    return (
        f"{config.n_layers} layers, {heads} attention heads, {grouped(neurons)} neurons, d_model {config.d_model} "
        f"({compiled.sizes.d_model_without_reuse} without reuse), {grouped(config.n_parameters)} parameters"
    )


def run_model(path: Path, tokens: Sequence[str], as_json: bool) -> int:
    """The model's decoded output, and what its program gives; `ExitCode.NO` where they disagree."""
    from ..compiler.compiled import Compiled
    from ..compiler.core_evaluator import evaluate_core

    if inputs.is_coded(path):
        return _run_coded(path, tokens, as_json)
    compiled = Compiled.load(path)
    xs = inputs.parse_tokens(tokens, compiled.codec.vocab)
    found = compiled.run(xs)
    wanted = evaluate_core(compiled.core, xs)
    agree = found == wanted
    Screen(as_json).show(
        {"input": xs, "output": found, "program_output": wanted, "agree": agree},
        sequence_text(found),
        *([] if agree else [f"its program gives  {sequence_text(wanted)}"]),
    )
    return ExitCode.OK if agree else ExitCode.NO


def _run_coded(path: Path, tokens: Sequence[str], as_json: bool) -> int:
    """What an imported model decodes; it has no program."""
    import torch

    found = inputs.load_coded(path)
    xs = inputs.parse_tokens(tokens, found.codec.vocab)
    with torch.no_grad():
        output = found.codec.decode(found.model(found.codec.encode([xs])))[0]
    Screen(as_json).show({"input": xs, "output": output}, sequence_text(output))
    return ExitCode.OK


def prove_claim(
    path: Path,
    wanted: Wanted,
    seconds: float,
    engines: Sequence[str] | None,
    resume: Path | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """`Proved` with a certificate, `Refuted` with a witness, or `Unknown` with what is left."""
    from ..verifier.portfolio import prove
    from ..verifier.verdicts import Proved

    if not seconds > 0:
        raise BadInput(f"--seconds must be above 0, got {seconds:g}")
    screen = Screen(as_json)
    file = inputs.model_file(path)
    claim, domain = question(path, wanted)
    source = inputs.source_file(wanted.program) if wanted.program else None
    target = _target(output, f"{file.stem}.cert", file, source) if output else None
    size = digits_of(domain.size())
    started = time.perf_counter()
    with screen.progress(f"proving {wanted.claim}") as tell:
        verdict = prove(claim, domain, seconds=seconds, engines=engines or None, resume=resume, progress=tell)
    took = round(time.perf_counter() - started, 3)
    data: dict[str, object] = {"claim": wanted.claim, "domain_size": size, "seconds": took}
    match verdict:
        case Proved():
            if target:
                verdict.certificate.save(target)
            data |= {"verdict": "proved", "certificate": str(target) if target else None}
            saved = [f"certificate: {target}"] if target else []
            screen.show(data, str(verdict), *saved)
            return ExitCode.OK
        case _:
            return not_proved(verdict, data, screen)


def question(path: Path, wanted: Wanted) -> tuple[Claim, Language]:
    """The claim that was typed, and the inputs it is about."""
    from ..compiler.compiled import Compiled
    from ..models.cards import Trained
    from ..verifier.reading import Subject

    if inputs.is_coded(path):
        subject = subject_of_coded(path, f"--claim {wanted.claim}", wanted.claim in OF_EITHER)
        return claim_of(subject, wanted), free_domain(subject.codec, subject.longest, wanted)
    of_task = wanted.claim in OF_TASKS or (wanted.claim in OF_EITHER and inputs.is_trained(path))
    model = inputs.load_trained_model(path) if of_task else Compiled.load(inputs.model_file(path))
    if isinstance(model, Trained) and wanted.claim in OF_EITHER:
        asked = replace(wanted, states=model.task.states)
        return claim_of(Subject(model.model, model.task.codec), asked), _task_domain(model, wanted)
    claim = claim_of(model, wanted)
    return claim, compiled_domain(model, wanted) if isinstance(model, Compiled) else _task_domain(model, wanted)


def subject_of_coded(path: Path, what: str, goes: bool = True) -> Subject:
    """An imported model to make a claim about. Raises `BadInput` unless `what` is asked of such models."""
    from ..verifier.reading import Subject

    if not goes:
        raise BadInput(
            f"{what} is about a program or a task, and {path} is an imported model, which has neither; its claims are "
            f"{', '.join(OF_EITHER)}"
        )
    found = inputs.load_coded(path)
    return Subject(found.model, found.codec)


def not_proved(verdict: Refuted | Unknown | EmptyDomain | Vacuous, data: dict[str, object], screen: Screen) -> int:
    """Shows a verdict that is no proof; the exit code."""
    from ..verifier.verdicts import EmptyDomain, Refuted, Unknown, Vacuous

    match verdict:
        case Refuted():
            data |= {"verdict": "refuted", "evidence": verdict.evidence, "outcome": outcome_data(verdict)}
            screen.show(data, str(verdict))
            return ExitCode.NO
        case Unknown(reason="interrupted"):
            raise KeyboardInterrupt
        case Unknown():
            data |= {"verdict": "unknown", "reason": verdict.reason, "left": verdict.left}
        case EmptyDomain():
            data |= {"verdict": "empty", "reason": verdict.reason}
        case Vacuous():
            data |= {"verdict": "vacuous", "reason": verdict.reason}
    screen.show(data, str(verdict))
    return ExitCode.OPEN


def outcome_data(refuted: Refuted) -> dict[str, object] | None:
    """What the claim says on the witness, as data."""
    outcome = refuted.outcome
    if outcome is None:
        return None
    return {
        "status": outcome.status,
        "expected": list(outcome.expected),
        "got": list(outcome.got),
        "positions": list(outcome.positions),
        "note": outcome.note,
    }


def _task_domain(trained: Trained, wanted: Wanted) -> Language:
    if wanted.lengths or wanted.vocab:
        raise BadInput(f"--claim {wanted.claim} is about all inputs of the task; it takes no --lengths and no --vocab")
    return trained.task.domain


def compiled_domain(compiled: Compiled, wanted: Wanted) -> Language:
    """The sequences the claim is about."""
    return free_domain(compiled.codec, compiled.core.max_len, wanted)


def free_domain(codec: Codec, longest: int, wanted: Wanted) -> Language:
    """The sequences of all tokens and lengths that a model takes, or those that were asked for."""
    from ..models import sequences

    lengths = inputs.parse_lengths(wanted.lengths) if wanted.lengths else range(1, longest + 1)
    if lengths[-1] > longest:
        raise BadInput(f"--lengths goes to {lengths[-1]}, but the model takes at most {longest} tokens")
    vocab: Sequence[object] = codec.vocab
    if wanted.vocab:
        vocab = inputs.listed_tokens([item.strip() for item in wanted.vocab.split(",")], codec.vocab)
    return sequences(vocab=vocab, length=lengths)


def list_programs(as_json: bool) -> int:
    """The library as a table."""
    from ..compiler.programs import LIBRARY

    data = [
        {
            "name": entry.name,
            "signature": entry.signature,
            "summary": entry.summary,
            "causal": entry.causal,
            "source": entry.source,
            "tags": list(entry.tags),
            "max_vocab": entry.max_vocab,
            "max_len": entry.max_len,
        }
        for entry in LIBRARY.values()
    ]
    width = max(map(len, LIBRARY))
    lines = [
        f"{entry.name:<{width}}  {entry.summary.replace('`', '')}{'  (causal)' if entry.causal else ''}"
        for entry in LIBRARY.values()
    ]
    Screen(as_json).show({"programs": data}, *lines, f"\n{len(data)} programs")
    return ExitCode.OK


def _target(output: Path, name: str, *sources: Path | None) -> Path:
    """The file to write: `output`, or `name` in it if it is a folder. Raises `BadInput` before any work is done.

    `sources`: the files that are read; none of them is overwritten.
    """
    target = output / name if output.is_dir() else output
    if not target.parent.is_dir():
        raise BadInput(f"cannot write {target}: there is no folder {target.parent}")
    for source in sources:
        if source is not None and source.exists() and target.exists() and target.samefile(source):
            raise BadInput(f"-o {target} is the input {source}, which would be lost; choose another file")
    return target
