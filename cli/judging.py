"""`judge`: what a circuit of a model claims, each property with a verdict about all inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import inputs
from .output import BadInput, ExitCode, Screen, facts

if TYPE_CHECKING:
    from ..models.circuits import Circuit
    from ..models.codec import Codec
    from ..models.means import MeanAblation
    from ..models.tasks import Task
    from ..models.token_language import Language
    from ..models.transformer import Transformer
    from ..verifier.claims import Claim
    from ..verifier.verdicts import Verdict

MEANS, SAMPLES, SEED = 2000, 2000, 0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Judging:
    """The options of `judge` as typed; None: not given."""

    ablation: str | None = None
    means: Path | None = None
    at_least: str | None = None
    seconds: float = 60.0
    edge_seconds: float = 2.0
    certificate: Path | None = None
    lengths: str | None = None
    vocab: str | None = None


@dataclass(frozen=True)
class Property:
    """One line of the result: what is claimed, what is known of it, and the share of samples on which it holds."""

    name: str
    verdict: str
    detail: str
    sampled: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        return {**self.__dict__, "seconds": round(self.seconds, 3)}


def judge_circuit(path: Path, circuit_path: Path, options: Judging, as_json: bool) -> int:
    """Faithful (everywhere, or on a share); each edge needed; the complement does not decide. See `ExitCode`."""
    from ..proofs.words import digits_of
    from ..verifier.claims import Faithful
    from ..verifier.verdicts import Proved, Refuted

    if not options.seconds > 0 or not options.edge_seconds > 0:
        raise BadInput("--seconds and --edge-seconds must be above 0")
    target = options.certificate
    if target is not None and not target.parent.is_dir():
        raise BadInput(f"cannot write {target}: there is no folder {target.parent}")
    judged = _judged(path, options)
    circuit, stored = _read_circuit(circuit_path, judged.model)
    if not circuit.edges:
        raise BadInput(
            f"the circuit in {circuit_path} keeps no edge, so there is nothing to judge: was it cut at "
            "a threshold that no edge reached?"
        )
    domain = judged.domain
    ablation = options.ablation or ("zero" if circuit.ablation == "any" else circuit.ablation)
    means, provenance = _means(judged, ablation, options.means, stored)

    def claim_of(some: Circuit) -> Claim:
        return Faithful(judged.model, some, ablation, means=means, through=judged.task, codec=judged.codec)

    screen = Screen(as_json)
    claim = claim_of(circuit)
    rows: list[Property] = []
    with screen.progress("judging") as tell:
        verdict, row = _faithful(claim, domain, options, tell)
        rows.append(row)
        for edge in circuit.ordered_edges() if circuit.granularity == "edge" else ():
            less = claim_of(circuit.without([edge]))
            rows.append(_needed(claim, less, str(edge), domain, options.edge_seconds, tell))
        rows.append(_complement(claim_of(circuit.complement(judged.model.config)), domain, options.edge_seconds, tell))
    if target is not None and (found := _certificate(verdict)) is not None:
        found.save(target)
    about: dict[str, object] = {
        "circuit": f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges",
        "ablation": ablation + (f" ({provenance})" if provenance else ""),
        "granularity": circuit.granularity,
        "domain_size": digits_of(domain.size()),
    }
    data = {**about, "properties": [row.to_json() for row in rows]}
    screen.show(data, facts(about), _table(rows))
    if isinstance(verdict, Proved):
        return ExitCode.OK
    return ExitCode.NO if isinstance(verdict, Refuted) else ExitCode.OPEN


@dataclass(frozen=True)
class Judged:
    """The model, how it is read, the inputs; and the task whose labels a proof may go through."""

    model: Transformer
    codec: Codec
    domain: Language
    task: Task | None = None


def _judged(path: Path, options: Judging) -> Judged:
    """A trained model on its task's domain, or a compiled one on all that it takes."""
    from ..compiler.compiled import Compiled
    from .commands import Wanted, _task_domain, compiled_domain, free_domain, subject_of_coded

    wanted = Wanted("faithful", lengths=options.lengths, vocab=options.vocab)
    if inputs.is_coded(path):
        subject = subject_of_coded(path, "judge")
        return Judged(subject.model, subject.codec, free_domain(subject.codec, subject.longest, wanted))
    if not inputs.is_trained(path):
        compiled = Compiled.load(inputs.model_file(path))
        return Judged(compiled.model, compiled.codec, compiled_domain(compiled, wanted))
    trained = inputs.load_trained_model(path)
    task = trained.task
    return Judged(trained.model, task.codec, _task_domain(trained, wanted), task if task.build_machine else None)


def _read_circuit(path: Path, model: Transformer) -> tuple[Circuit, MeanAblation | None]:
    """The circuit in a file of any format that `explanations.read` knows, and the means that are stored with it."""
    from ..explanations import read

    found = read(path, model)
    return found.circuit(), found.means


def _means(
    judged: Judged, ablation: str, path: Path | None, stored: MeanAblation | None
) -> tuple[MeanAblation | None, str]:
    """The vectors of ablation `mean`: from a file, those stored with the circuit, or over words drawn from the domain;
    and where they are from."""
    if ablation != "mean":
        if path is not None:
            raise BadInput(f"--means goes with --ablation mean, not with {ablation}")
        return None, ""
    from ..models.means import MeanAblation, domain_means

    if path is None and stored is not None:
        return stored, stored.provenance
    if path is None:
        found = domain_means(judged.model, judged.domain, judged.codec, MEANS, SEED)
        return found, found.provenance
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is no file of means as JSON: {error}") from None
    found = MeanAblation.from_json(data)
    return found, found.provenance


def _faithful(claim: Claim, domain: Any, options: Judging, tell: Say) -> tuple[Verdict | Any, Property]:
    """Everywhere, or with --at-least on a share; where it is not everywhere, the share that can be proved."""
    from ..verifier.agreement import agreement_bound
    from ..verifier.balls import Unsupported
    from ..verifier.portfolio import prove
    from ..verifier.verdicts import Proved

    began, name = time.perf_counter(), "faithful on all inputs"
    if options.at_least is not None:
        share = Fraction(inputs.parse_bound(options.at_least, "--at-least"))
        name, claim = f"faithful on a share of {options.at_least}", claim.at_least(share)
    verdict = prove(claim, domain, seconds=options.seconds, progress=tell)
    detail = _detail(verdict)
    if not isinstance(verdict, Proved) and options.at_least is None:
        try:
            bound = agreement_bound(claim, domain, seconds=options.seconds, progress=tell)
            detail += f"; proved: {bound}"
            if options.certificate is not None:
                bound.certificate.save(options.certificate)
        except Unsupported as error:
            detail += f"; no share is proved: {error}"
    return verdict, Property(name, _word(verdict), detail, _sampled(claim, domain), time.perf_counter() - began)


def _needed(claim: Claim, less: Claim, edge: str, domain: Any, seconds: float, tell: Say) -> Property:
    """That on some input the circuit decodes as the model does, and without the edge does not; sampled: without it."""
    from ..verifier.necessity import edge_needed
    from ..verifier.verdicts import Proved, Refuted

    began = time.perf_counter()
    verdict = edge_needed(claim, edge, domain, seconds=seconds, progress=tell)
    word = {Refuted: "proved", Proved: "refuted"}.get(type(verdict), "unknown")
    return Property(f"needs {edge}", word, _detail(verdict), _sampled(less, domain), time.perf_counter() - began)


def _complement(claim: Claim, domain: Any, seconds: float, tell: Say) -> Property:
    """That what is outside the circuit does not decide as the model does, by itself."""
    from ..verifier.portfolio import prove
    from ..verifier.verdicts import Proved, Refuted

    began = time.perf_counter()
    verdict = prove(claim, domain, seconds=seconds, progress=tell)
    word = {Refuted: "proved", Proved: "refuted"}.get(type(verdict), "unknown")
    name = "complement alone does not decide"
    return Property(name, word, _detail(verdict), _sampled(claim, domain), time.perf_counter() - began)


def _word(verdict: Any) -> str:
    return str(type(verdict).__name__).lower()


def _detail(verdict: Any) -> str:
    """The certificate, the witness with what is decoded on it, or the reason."""
    from ..verifier.verdicts import Proved, Refuted, Unknown

    match verdict:
        case Proved(certificate):
            return str(certificate)
        case Refuted(evidence):
            return f"{evidence}" + ("" if verdict.outcome is None else f": {verdict.outcome}")
        case Unknown(reason, _):
            return str(reason)
    return str(verdict.reason)


def _certificate(verdict: Any) -> Any:
    from ..verifier.verdicts import Certificate, Proved, Refuted

    match verdict:
        case Proved(certificate):
            return certificate
        case Refuted(Certificate() as certificate):
            return certificate
    return None


def _sampled(claim: Claim, domain: Any) -> str:
    from ..verifier.sampling import sample_accuracy

    return str(sample_accuracy(claim, domain, SAMPLES))


def _table(rows: list[Property]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row.name}: {row.verdict} ({row.seconds:.2f} s)")
        lines.append(f"    {row.detail}")
        lines.append(f"    sampled: {row.sampled}")
    return "\n".join(lines)
