"""`explain`: the circuit of a model by a discovery method, scored against the compiled circuit where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inputs
from .output import BadInput, ExitCode, Screen, facts

if TYPE_CHECKING:
    from ..compiler.compiled import Compiled
    from ..explanations import ScoredCircuit, Setup
    from ..explanations.graph_runs import Progress
    from ..models import Circuit, Codec, Language, Task, Transformer

METHODS = ("eap", "eap-ig", "acdc", "patching", "verified")
OWN: Mapping[str, tuple[str, ...]] = {
    "steps": ("eap-ig",),
    "path": ("eap-ig",),
    "seconds": ("verified",),
    "resume": ("verified",),
    "start": ("verified",),
}
"""Options that belong to some methods only."""


@dataclass(frozen=True)
class Explaining:
    """The options of `explain` as typed; None: not given."""

    method: str = "eap-ig"
    metric: str | None = None
    ablation: str = "resample"
    top: int | None = None
    threshold: float | None = None
    pairs: int = 1000
    seed: int = 0
    lengths: str | None = None
    vocab: str | None = None
    steps: int | None = None
    path: str | None = None
    start: Path | None = None
    seconds: float | None = None
    resume: Path | None = None
    device: str = "cpu"
    format: str = "certiformer"
    output: Path | None = None
    svg: Path | None = None

    def check(self) -> None:
        """Raises `BadInput` for options that do not go together."""
        if self.method not in METHODS:
            raise BadInput(f"--method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for name, methods in OWN.items():
            if getattr(self, name) is not None and self.method not in methods:
                raise BadInput(f"--{name} goes with --method {' or '.join(methods)}, not with {self.method}")
        if self.ablation not in ("zero", "mean", "resample"):
            raise BadInput(f"--ablation must be zero, mean or resample, got {self.ablation!r}")
        if self.top is not None and self.threshold is not None:
            raise BadInput("--top and --threshold exclude each other; give one")
        if self.method == "acdc" and self.threshold is None:
            raise BadInput("--method acdc needs --threshold: how much worse the metric may get by cutting an edge")
        if self.method in ("acdc", "verified") and self.top is not None:
            raise BadInput(f"--method {self.method} selects the circuit by itself; leave --top out")
        if self.method == "verified" and self.threshold is not None:
            raise BadInput("--method verified selects the circuit by itself; leave --threshold out")
        if self.pairs < 1:
            raise BadInput(f"--pairs must be at least 1, got {self.pairs}")
        if self.seconds is not None and not self.seconds > 0:
            raise BadInput(f"--seconds must be above 0, got {self.seconds:g}")
        if self.format != "certiformer" and self.output is None:
            raise BadInput("--format says how to write; say where with -o FILE")


@dataclass(frozen=True)
class Explained:
    """A model that can be explained: how it reads and writes, its inputs, and the compiled circuit, if it is one.

    `whole`: what claims are made about. `through`: the task of a trained model, where proofs can read its labels.
    """

    name: str
    model: Transformer
    codec: Codec
    domain: Language
    circuit: Circuit | None
    whole: Compiled | Transformer
    through: Task | None = None


def load(model: str | Path, wanted: Explaining) -> Explained:
    """A compiled or trained model by its file or zoo name, with the inputs asked for. Raises `BadInput`."""
    from ..compiler.compiled import METADATA_KEY, Compiled
    from ..models.cards import CARD_KEY, load_trained
    from ..models.transformer import Transformer
    from .commands import Wanted, compiled_domain, free_domain, subject_of_coded

    file = inputs.model_file(model)
    if inputs.is_coded(model):
        subject = subject_of_coded(file, "explain")
        asked = Wanted("faithful", lengths=wanted.lengths, vocab=wanted.vocab)
        domain = free_domain(subject.codec, subject.longest, asked)
        return Explained(file.stem, subject.model, subject.codec, domain, None, subject.model)
    _, metadata = Transformer.load_with_metadata(file)
    if METADATA_KEY in metadata:
        compiled = Compiled.load(file)
        domain = compiled_domain(compiled, Wanted("faithful", lengths=wanted.lengths, vocab=wanted.vocab))
        return Explained(compiled.core.name, compiled.model, compiled.codec, domain, compiled.circuit, compiled)
    if CARD_KEY not in metadata:
        raise BadInput(
            f"{model} holds a bare model; explain needs one of `certiformer compile` or `train`, or zoo:NAME"
        )
    if wanted.lengths or wanted.vocab:
        raise BadInput("a trained model is explained on the inputs of its task; it takes no --lengths and no --vocab")
    trained = load_trained(file)
    task = trained.task
    through = task if task.build_machine else None
    return Explained(task.name, trained.model, task.codec, task.domain, None, trained.model, through)


def explain_model(model: Path, wanted: Explaining, as_json: bool) -> int:
    """Finds a circuit, shows it, and writes what was asked for."""
    from ..explanations import FORMATS, METRICS, Setup, against, sample_pairs, sampled_faithfulness
    from ..models.files import write_atomically
    from ..models.means import domain_means
    from .commands import _target

    wanted.check()
    if wanted.format not in FORMATS:
        raise BadInput(f"--format must be one of {', '.join(FORMATS)}, got {wanted.format!r}")
    if wanted.metric is not None and wanted.metric not in METRICS:
        raise BadInput(f"--metric must be one of {', '.join(METRICS)}, got {wanted.metric!r}")
    screen = Screen(as_json)
    explained = load(model, wanted)
    file = inputs.model_file(model)
    if wanted.output is not None:
        wanted = replace(wanted, output=_target(wanted.output, f"{explained.name}.circuit.json", file, wanted.start))
    if wanted.svg is not None:
        wanted = replace(wanted, svg=_target(wanted.svg, f"{explained.name}.svg", file, wanted.start))
    config = explained.model.config
    if wanted.format != "certiformer" and not _selects(wanted) and wanted.format in ("circuit", "acdc", "interpbench"):
        raise BadInput(f"--format {wanted.format} holds a circuit, not scores; select one with --top or --threshold")
    if wanted.svg is not None and not _selects(wanted):
        raise BadInput("--svg draws a circuit; select one with --top or --threshold")
    metric = wanted.metric or ("kl" if wanted.method == "acdc" and config.d_vocab_out > 1 else None)
    means = None
    if wanted.ablation == "mean":
        means = domain_means(explained.model, explained.domain, explained.codec, wanted.pairs, wanted.seed)
    pairs = sample_pairs(explained.domain, explained.codec, wanted.pairs, wanted.seed)
    setup = Setup(explained.model, pairs, wanted.ablation, metric, means, wanted.device)  # type: ignore[arg-type]
    started = time.perf_counter()
    found, extra = _discover(setup, explained, wanted, screen)
    seconds = round(time.perf_counter() - started, 3)
    data: dict[str, Any] = {
        "model": explained.name,
        "method": found.method,
        "ablation": wanted.ablation,
        "details": dict(found.details),
        "seconds": seconds,
        "scores": found.by_edge,
    }
    rows: dict[str, object] = {
        "model": explained.name,
        "method": f"{found.method}, {wanted.ablation} ablation, {setup.measured.name}, {seconds:.2f} s",
        "pairs": pairs.provenance,
    }
    parts = [facts(rows), found.to_text(12)]
    if found.chosen is not None:
        sampled = sampled_faithfulness(setup, found.chosen)
        data |= {"circuit": found.chosen.to_json(), "sampled": sampled.to_json()}
        parts += [found.chosen.to_text(), sampled.to_text()]
    if explained.circuit is not None:
        compared = against(found, explained.circuit)
        data["against_compiled"] = compared.to_json()
        parts += ["against the compiled circuit (all through which anything can flow):", compared.to_text()]
    if wanted.svg is not None:
        from ..explanations.scoring import to_svg

        write_atomically(wanted.svg, to_svg(found).encode())
        parts.append(f"picture: {wanted.svg}")
    if wanted.output is not None:
        from ..explanations import write

        write(found, wanted.output, wanted.format)  # type: ignore[arg-type]
        parts.append(f"saved: {wanted.output}")
    lines = extra.pop("lines", [])
    data |= {
        **extra,
        "path": str(wanted.output) if wanted.output else None,
        "svg": str(wanted.svg) if wanted.svg else None,
    }
    screen.show(data, *parts, *lines)
    return ExitCode.OPEN if extra.get("unknown") else ExitCode.OK


def _selects(wanted: Explaining) -> bool:
    return wanted.method in ("acdc", "verified") or wanted.top is not None or wanted.threshold is not None


def _discover(
    setup: Setup, explained: Explained, wanted: Explaining, screen: Screen
) -> tuple[ScoredCircuit, dict[str, Any]]:
    """The scores, with the circuit that the options select; and what a method has to say beyond."""
    from ..explanations import acdc, eap, eap_ig, patching

    with screen.bar(f"{wanted.method} of {explained.name}") as tell:
        if wanted.method == "acdc":
            assert wanted.threshold is not None
            return acdc(setup, threshold=wanted.threshold, progress=tell), {}
        if wanted.method == "verified":
            return _verified(setup, explained, wanted, screen, tell)
        methods: dict[str, Callable[[], ScoredCircuit]] = {
            "eap": lambda: eap(setup, progress=tell),
            "eap-ig": lambda: eap_ig(setup, steps=wanted.steps or 5, path=wanted.path or "inputs", progress=tell),  # type: ignore[arg-type]
            "patching": lambda: patching(setup, progress=tell),
        }
        found = methods[wanted.method]()
    if wanted.top is None and wanted.threshold is None:
        return found, {}
    return found.with_chosen(found.circuit(top=wanted.top, threshold=wanted.threshold)), {}


def _verified(
    setup: Setup, explained: Explained, wanted: Explaining, screen: Screen, tell: Progress
) -> tuple[ScoredCircuit, dict[str, Any]]:
    """Deletes edges by proof, in the order of exact patching. The certificate goes beside the output."""
    from .. import discover_verified
    from ..explanations import patching, read
    from ..verifier.verdicts import Proved

    scored = patching(setup, progress=tell)
    start = None
    if wanted.start is not None:
        start = replace(read(wanted.start, explained.model).circuit(), ablation=setup.ablation)
    try:
        found = discover_verified(
            explained.whole,
            explained.domain,
            ablation=setup.ablation,
            means=setup.means,
            through=explained.through,
            start=start,
            scores=scored.by_edge,
            codec=explained.codec,
            seconds=wanted.seconds or 10.0,
            resume=wanted.resume,
            progress=tell,
        )
    except KeyboardInterrupt:
        if wanted.resume is not None and wanted.resume.exists():
            screen.note(f"the decisions so far are in {wanted.resume}; the same command goes on from there")
        raise
    lines = [found.to_text()]
    certificate = None
    if wanted.output is not None and isinstance(found.faithful.verdict, Proved):
        certificate = wanted.output.with_name(wanted.output.name + ".cert")
        found.faithful.verdict.certificate.save(certificate)
        lines.append(f"certificate: {certificate}")
    extra = {
        "verified": found.to_json(),
        "certificate": str(certificate) if certificate else None,
        "unknown": not found.minimal,
        "lines": lines,
    }
    result = replace(scored, method="verified", chosen=found.circuit, means=setup.means)
    return result, extra
