"""Compile RASP programs into transformers, prove what they compute on every input, check the proof independently.

Names are imported when first used: `import certiformer`, `certiformer.proofs` and the command `certiformer check`
import neither torch nor z3.
"""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from .compiler import programs as programs
    from .compiler import rasp as rasp
    from .compiler.alignment import Alignment
    from .compiler.compiled import Compiled as Compiled
    from .compiler.core import CoreProgram
    from .compiler.interpreter import evaluate as evaluate
    from .compiler.rasp import Selector as Selector
    from .compiler.rasp import SOp as SOp
    from .explanations import Approximated, Decompiled, Verified
    from .models import CertiformerError as CertiformerError
    from .models import Circuit as Circuit
    from .models import Codec as Codec
    from .models import InputError as InputError
    from .models import InternalError as InternalError
    from .models import Language as Language
    from .models import LayerConfig as LayerConfig
    from .models import Task as Task
    from .models import Transformer as Transformer
    from .models import TransformerConfig as TransformerConfig
    from .models import Value as Value
    from .models import get_task as get_task
    from .models import sequences as sequences
    from .models import zoo as zoo
    from .models.means import MeanAblation
    from .proofs import Holey as Holey
    from .proofs import Invalid as Invalid
    from .proofs import Valid as Valid
    from .verifier.affine_bounds import OutputBounds as OutputBounds
    from .verifier.affine_bounds import output_bounds as output_bounds
    from .verifier.affine_regions import EmbeddingBall as EmbeddingBall
    from .verifier.affine_regions import TokenSets as TokenSets
    from .verifier.agreement import AgreementBound as AgreementBound
    from .verifier.agreement import agreement_bound as agreement_bound
    from .verifier.claims import Abstracts as Abstracts
    from .verifier.claims import Attends as Attends
    from .verifier.claims import Claim as Claim
    from .verifier.claims import Computes as Computes
    from .verifier.claims import Faithful as Faithful
    from .verifier.claims import Invariant as Invariant
    from .verifier.claims import Margin as Margin
    from .verifier.claims import NeverOutputs as NeverOutputs
    from .verifier.logit_difference import LogitDifference as LogitDifference
    from .verifier.necessity import edge_needed as edge_needed
    from .verifier.portfolio import prove as prove
    from .verifier.program_claims import AtMostOne as AtMostOne
    from .verifier.program_claims import Ensures as Ensures
    from .verifier.program_claims import Equivalent as Equivalent
    from .verifier.program_claims import EveryLength as EveryLength
    from .verifier.program_claims import Implies as Implies
    from .verifier.program_claims import ProgramClaim as ProgramClaim
    from .verifier.program_claims import Range as Range
    from .verifier.program_claims import accepts_exactly as accepts_exactly
    from .verifier.program_claims import composed as composed
    from .verifier.program_claims import equals as equals
    from .verifier.program_claims import is_permutation as is_permutation
    from .verifier.program_claims import is_sorted as is_sorted
    from .verifier.radius import WeightRadius as WeightRadius
    from .verifier.radius import weight_radius as weight_radius
    from .verifier.shares import AccuracyBounds as AccuracyBounds
    from .verifier.shares import accuracy_bounds as accuracy_bounds
    from .verifier.stream_claims import CircuitsAgree as CircuitsAgree
    from .verifier.stream_claims import Complete as Complete
    from .verifier.stream_claims import EdgeEffect as EdgeEffect
    from .verifier.stream_claims import HeadTable as HeadTable
    from .verifier.stream_claims import Monotone as Monotone
    from .verifier.stream_claims import Robust as Robust
    from .verifier.stream_claims import SubspaceCarries as SubspaceCarries
    from .verifier.stream_claims import SubspaceRepresents as SubspaceRepresents
    from .verifier.stream_claims import WritesAtMost as WritesAtMost
    from .verifier.task_claims import Accuracy as Accuracy
    from .verifier.task_claims import Labels as Labels
    from .verifier.task_claims import TaskMargin as TaskMargin
    from .verifier.task_claims import least_margin as least_margin
    from .verifier.verdicts import Certificate as Certificate
    from .verifier.verdicts import EmptyDomain as EmptyDomain
    from .verifier.verdicts import Proved as Proved
    from .verifier.verdicts import Refuted as Refuted
    from .verifier.verdicts import Unknown as Unknown
    from .verifier.verdicts import Vacuous as Vacuous
    from .verifier.worst_case import LeastDifference as LeastDifference
    from .verifier.worst_case import least_difference as least_difference

# Public name -> module.
# `compile`, `check`, `decompile`, `decompile_trained`, `discover_verified` are defined here: they tie together packages
# that know nothing of each other.
_NAMES: dict[str, str] = {
    "Compiled": "compiler.compiled",
    "SOp": "compiler.rasp",
    "Selector": "compiler.rasp",
    "evaluate": "compiler.interpreter",
    "programs": "compiler",
    "rasp": "compiler",
    "CertiformerError": "models",
    "Circuit": "models",
    "Codec": "models",
    "InputError": "models",
    "InternalError": "models",
    "Language": "models",
    "LayerConfig": "models",
    "Task": "models",
    "Transformer": "models",
    "TransformerConfig": "models",
    "Value": "models",
    "get_task": "models",
    "sequences": "models",
    "zoo": "models",
    "Holey": "proofs",
    "Invalid": "proofs",
    "Valid": "proofs",
    "OutputBounds": "verifier.affine_bounds",
    "output_bounds": "verifier.affine_bounds",
    "EmbeddingBall": "verifier.affine_regions",
    "TokenSets": "verifier.affine_regions",
    "AgreementBound": "verifier.agreement",
    "agreement_bound": "verifier.agreement",
    "edge_needed": "verifier.necessity",
    "Abstracts": "verifier.claims",
    "LeastDifference": "verifier.worst_case",
    "least_difference": "verifier.worst_case",
    "Accuracy": "verifier.task_claims",
    "AccuracyBounds": "verifier.shares",
    "accuracy_bounds": "verifier.shares",
    "Attends": "verifier.claims",
    "Certificate": "verifier.verdicts",
    "Claim": "verifier.claims",
    "Computes": "verifier.claims",
    "EmptyDomain": "verifier.verdicts",
    "Faithful": "verifier.claims",
    "Invariant": "verifier.claims",
    "Margin": "verifier.claims",
    "Labels": "verifier.task_claims",
    "LogitDifference": "verifier.logit_difference",
    "NeverOutputs": "verifier.claims",
    "Proved": "verifier.verdicts",
    "Refuted": "verifier.verdicts",
    "CircuitsAgree": "verifier.stream_claims",
    "Complete": "verifier.stream_claims",
    "EdgeEffect": "verifier.stream_claims",
    "HeadTable": "verifier.stream_claims",
    "Monotone": "verifier.stream_claims",
    "Robust": "verifier.stream_claims",
    "SubspaceCarries": "verifier.stream_claims",
    "SubspaceRepresents": "verifier.stream_claims",
    "WritesAtMost": "verifier.stream_claims",
    "TaskMargin": "verifier.task_claims",
    "Unknown": "verifier.verdicts",
    "Vacuous": "verifier.verdicts",
    "least_margin": "verifier.task_claims",
    "WeightRadius": "verifier.radius",
    "AtMostOne": "verifier.program_claims",
    "Ensures": "verifier.program_claims",
    "Equivalent": "verifier.program_claims",
    "EveryLength": "verifier.program_claims",
    "Implies": "verifier.program_claims",
    "ProgramClaim": "verifier.program_claims",
    "Range": "verifier.program_claims",
    "accepts_exactly": "verifier.program_claims",
    "composed": "verifier.program_claims",
    "equals": "verifier.program_claims",
    "is_permutation": "verifier.program_claims",
    "is_sorted": "verifier.program_claims",
    "prove": "verifier.portfolio",
    "weight_radius": "verifier.radius",
}
__all__ = sorted([*_NAMES, "check", "compile", "decompile", "decompile_trained", "discover_verified", "__version__"])


def compile(
    program: SOp | CoreProgram,
    *,
    vocab: Iterable[Value] | None = None,
    max_len: int | None = None,
    causal: bool = False,
    bos: bool = True,
    reuse: bool = True,
    name: str | None = None,
    certify: bool = False,
    seconds: float = 60.0,
) -> Compiled:
    """Compile a RASP program to a softmax transformer that computes it on every sequence of 1..max_len tokens.

    `vocab`: the tokens, all numbers or all strings. `causal`: position i sees positions up to i only. `bos`: put a
    token for the beginning first (needed where a selection can be empty, or selected positions are counted).
    `reuse`: give the residual coordinates of dead values to new ones. `certify`: prove within `seconds` that the
    model computes the program on all these inputs, and attach the certificate. The same program gives the same
    bytes.

    Raises `CompileError` naming everything in the program that cannot be compiled, each with place, reason and remedy;
    with `certify`, `CertiformerError` if the proof is not found in time.
    """
    from dataclasses import replace

    from .compiler.compile import compile as compile_program

    compiled = compile_program(program, vocab=vocab, max_len=max_len, causal=causal, bos=bos, reuse=reuse, name=name)
    if not certify:
        return compiled
    from .models import CertiformerError, InternalError, sequences
    from .verifier.claims import Computes
    from .verifier.portfolio import prove
    from .verifier.verdicts import Proved, Refuted

    domain = sequences(vocab=compiled.vocab, length=range(1, compiled.max_len + 1))
    verdict = prove(Computes(compiled, compiled.core), domain, seconds=seconds)
    if isinstance(verdict, Proved):
        return replace(compiled, certificate=verdict.certificate)
    if isinstance(verdict, Refuted):
        raise InternalError(f"the compiled model does not compute its program; please report this:\n{verdict}")
    raise CertiformerError(
        f"{compiled.core.name} is compiled, but not proved correct within {seconds:g} s; "
        f"allow more seconds, or compile without certify=True and use the model unproved:\n{verdict}"
    )


def check(
    certificate: str | Path | bytes | Certificate,
    model: str | Path | bytes | None = None,
    expect: Claim | ProgramClaim | dict[str, Any] | None = None,
    domain: Language | EveryLength | None = None,
) -> Valid | Invalid | Holey:
    """Whether a certificate proves its theorem about a model (files, or their bytes). Uses neither torch nor z3.

    `model`: left out for a theorem about programs alone (`expect` a claim about programs: give `domain` as well).

    `expect`: the claim (with its codec and model), or parts of a theorem as JSON, that the certificate must be about;
    `domain`: the inputs it must be about. A certificate for another claim or domain is `Invalid`; what is not given
    here has to be read off the theorem, because a proof about a trivial domain is valid too.
    """
    from . import proofs

    data = certificate if isinstance(certificate, (str, bytes, PathLike)) else getattr(certificate, "to_bytes", bytes)()
    for name, given, example in (("certificate", data, '"sort.cert"'), ("model", model, '"sort.safetensors"')):
        if name == "model" and given is None:
            continue
        if not given or not isinstance(given, (str, bytes, PathLike)):
            raise TypeError(f"check takes a {name}'s path or bytes, such as {example}, got {type(given).__name__}")
    wanted: dict[str, Any] = {}
    if expect is not None and not isinstance(expect, dict) and not hasattr(expect, "theorem"):
        raise TypeError(f"expect is a claim, or parts of a theorem as a dict, got {expect!r}")
    if expect is not None:
        wanted |= expect if isinstance(expect, dict) else _theorem(expect, domain)
    if domain is not None:
        wanted["domain"] = _domain(domain)
    return proofs.check(data, model, expect=wanted or None)


def _domain(domain: Language | EveryLength) -> object:
    from .verifier.program_claims import EveryLength
    from .verifier.theorems import domain_to_json

    return domain.to_json() if isinstance(domain, EveryLength) else domain_to_json(domain)


def _theorem(claim: Claim | ProgramClaim, domain: Language | EveryLength | None) -> dict[str, Any]:
    from .verifier.program_claims import ProgramClaim

    if not isinstance(claim, ProgramClaim):
        return claim.theorem()
    if domain is None:
        raise TypeError("a claim about programs is tabulated for a domain: give domain= as well")
    return claim.theorem(domain)


def decompile(
    of: Compiled | Transformer,
    *,
    alignment: Alignment | None = None,
    codec: Codec | None = None,
    source: SOp | None = None,
    domain: Language | None = None,
    name: str = "recovered",
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> Decompiled:
    """The RASP program that a model computes, read off its weights, with the verdict on whether it does compute it.

    `alignment`: where the model's variables are; default, a compiled program's own. Of it only names, values, sites
    and encodings are used: which keys a head attends to, what it copies and what neurons compute is read off the
    weights, and written as formulas where they fit. `.program` is the program, `.text` a Python module that builds it,
    `.verdict` that the model computes it on every input of `domain` (default: all words the alignment is about), by
    composition where that applies. `source`: another program, for which `.equivalence` is whether it equals the one
    recovered, on `domain`. `seconds`: for each of the two verdicts.

    Raises `InputError` for a model without alignment, and naming the component where an alignment cannot be right or
    no RASP program computes what is there.
    """
    import time
    from dataclasses import replace

    from .explanations import recover
    from .models import InputError, sequences
    from .verifier.claims import Computes, subject_of
    from .verifier.portfolio import prove
    from .verifier.program_claims import Equivalent
    from .verifier.reading import Subject
    from .verifier.verdicts import Unknown

    subject = subject_of(of, codec)
    where = alignment or subject.alignment
    if where is None:
        raise InputError(
            "this model has no alignment, which says where its variables are: pass alignment=, or a compiled program"
        )
    say = progress or (lambda _: None)
    found = recover(subject.model, subject.codec, where, name=name, step=lambda place: say(f"reading {place}"))
    words = domain or sequences(subject.codec.vocab, range(1, found.core.max_len + 1))
    claim = Computes(Subject(subject.model, subject.codec, found.alignment), found.core)
    start = time.monotonic()
    verdict = prove(claim, words, seconds=seconds, engines=["composition"], progress=progress)
    if isinstance(verdict, Unknown):
        left = max(1.0, seconds - (time.monotonic() - start))
        verdict = prove(claim, words, seconds=left, progress=progress)
    equivalence = None
    if source is not None:
        asked = Equivalent(found.program, source, causal=found.core.causal)
        equivalence = prove(asked, words, seconds=seconds, progress=progress)
    return replace(found, verdict=verdict, equivalence=equivalence)


def decompile_trained(
    model: Transformer,
    task: Task,
    *,
    seconds: float = 60.0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Approximated:
    """A program for a trained model that is read out once, with a proved share of the inputs on which it is right.

    One head of attention without neurons: "copy the token that is first in the order of scores", with order and copies
    read off the weights. Other models, on words of one length: a machine of states learnt from the model's answers,
    which says nothing of the weights. `.agreement` bounds the share of the inputs on which the model gives the
    program's answer (None, with `.reason`, if nothing is proved within `seconds`), `.disagreements` lists inputs on
    which it does not, run on both. Raises `InputError` for models that neither way takes.
    """
    from dataclasses import replace

    from .explanations import approximate
    from .models import CertiformerError
    from .verifier.balls import Unsupported
    from .verifier.shares import accuracy_bounds

    found = approximate(model, task, seed=seed, step=progress or (lambda _: None))
    try:
        bounds = accuracy_bounds(model, found.task, seconds=seconds, progress=progress)
    except (CertiformerError, Unsupported) as error:
        return replace(found, reason=str(error))
    if bounds.undecided == bounds.total:
        return replace(found, reason=f"no input was decided within {seconds:g} s ({bounds.engine})")
    return replace(found, agreement=bounds)


def discover_verified(
    of: Compiled | Transformer,
    domain: Language,
    *,
    ablation: Literal["zero", "mean", "resample"] = "resample",
    means: MeanAblation | None = None,
    through: Task | None = None,
    start: Circuit | None = None,
    scores: Mapping[str, float] | None = None,
    codec: Codec | None = None,
    seconds: float = 10.0,
    resume: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Verified:
    """A circuit of a model from which edges were deleted as long as the rest is proved to decide as the model does.

    It has the proof that it does so on every input of `domain`, and for each edge that is kept the verdict on its
    deletion: `.minimal` if every one is refuted, else `.unknown` lists the edges that are open. `start`: default all
    edges. `means`: the stored vectors of mean ablation. `through`: a task whose labels a proof may go through, as in
    `Faithful`. `scores`: the lowest are deleted first; default, exact patching on 200 sampled pairs. `seconds`: for one
    decision. `resume`: a file of decisions, written after each one and read when the search starts.
    Raises `InputError`, also if the start is refuted; Ctrl-C is passed on.
    """
    from .explanations import Setup, patching, sample_pairs
    from .explanations import discover_verified as discover
    from .models import full_circuit
    from .verifier.claims import Faithful, subject_of
    from .verifier.deciding import Decider
    from .verifier.theorems import domain_to_json

    subject = subject_of(of, codec)
    model = subject.model
    if scores is None:
        pairs = sample_pairs(domain, subject.codec, 200)
        scores = patching(Setup(model, pairs, ablation, means=means)).by_edge

    def claim_of(circuit: Circuit) -> Claim:
        return Faithful(of, circuit, ablation, means=means, through=through, codec=codec)

    question = {
        "weights": model.weights_sha256(),
        "ablation": ablation,
        "domain": domain_to_json(domain),
        "codec": subject.codec.to_json(),
        "means": None if means is None else means.to_json(),
    }
    return discover(
        model.config,
        Decider(claim_of, domain, seconds),
        start=start or full_circuit(model.config, ablation),
        scores=scores,
        question=question,
        resume=resume,
        effort=seconds,
        progress=progress,
    )


if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> object:
        module = _NAMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = import_module(f".{module}", __name__)
        value = getattr(found, name, None)
        if value is None:  # a submodule such as `programs`
            value = import_module(f".{module}.{name}", __name__)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
