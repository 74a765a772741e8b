"""A claim as typed on the command line: which options belong to it, and the claim they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from . import inputs
from .output import BadInput

if TYPE_CHECKING:
    from ..compiler.compiled import Compiled
    from ..models.cards import Trained
    from ..models.labels import LabelMachine
    from ..models.values import Value
    from ..verifier.claims import Claim
    from ..verifier.reading import Subject


@dataclass(frozen=True)
class Wanted:
    """A claim and its domain, as typed."""

    claim: str
    program: str | None = None
    at_least: str | None = None
    at_most: str | None = None
    outputs: str | None = None
    relabel: str | None = None
    relabel_outputs: bool | None = None
    irrelevant: str | None = None
    head: str | None = None
    selector: str | None = None
    tolerance: str | None = None
    ablation: str | None = None
    site: str | None = None
    radius: str | None = None
    lengths: str | None = None
    vocab: str | None = None
    states: LabelMachine | None = None
    """Not typed: a trained model's task may have a machine that helps proofs."""

    def given(self) -> list[str]:
        """The options that were typed, but those about the domain."""
        names = [field for fields, _ in CLAIMS.values() for field in fields]
        return [option(name) for name in dict.fromkeys(names) if getattr(self, name) is not None]


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def claim_of(model: Compiled | Trained | Subject, wanted: Wanted) -> Claim:
    """The claim asked for, with exactly the options that belong to it. Raises `BadInput`."""
    if wanted.claim not in CLAIMS:
        raise BadInput(f"--claim must be one of {', '.join(CLAIMS)}, got {wanted.claim!r}")
    fields, build = CLAIMS[wanted.claim]
    foreign = [name for name in wanted.given() if name not in map(option, fields)]
    if foreign:
        raise BadInput(f"{', '.join(foreign)} does not go with --claim {wanted.claim}")
    return build(model, wanted)


def _need(wanted: Wanted, name: str, example: str) -> str:
    text: str | None = getattr(wanted, name)
    if text is None:
        raise BadInput(f"--claim {wanted.claim} needs {option(name)} {example}")
    return text


def _computes(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Computes

    return Computes(compiled, inputs.load_program(wanted.program).program if wanted.program else compiled.core)


def _margin(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Margin

    return Margin(compiled, inputs.parse_bound(_need(wanted, "at_least", "NUMBER"), "--at-least"))


def _never_outputs(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import NeverOutputs

    known = inputs.by_text(compiled.codec.outputs)
    names = [name.strip() for name in _need(wanted, "outputs", "VALUE,VALUE").split(",")]
    strange = [name for name in names if name not in known]
    if strange:
        raise BadInput(f"--outputs: the model has no output {strange[0]!r}; it has {', '.join(list(known)[:12])}")
    return NeverOutputs(compiled, [known[name] for name in names], states=wanted.states)


def _logit_difference(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.logit_difference import LogitDifference

    items = [item.strip() for item in _need(wanted, "outputs", "OUTPUT,RIVAL").split(",")]
    if len(items) != 2:
        raise BadInput(f"--outputs must be two values, the output and its rival, got {wanted.outputs!r}")
    output, rival = inputs.listed_tokens(items, compiled.codec.outputs)
    least = inputs.parse_bound(_need(wanted, "at_least", "NUMBER"), "--at-least")
    return LogitDifference(compiled, output, rival, least, states=wanted.states)


def _accuracy(trained: Trained, wanted: Wanted) -> Claim:
    from ..verifier.task_claims import Accuracy

    if wanted.at_most is None:
        _need(wanted, "at_least", "SHARE, such as 0.99, or --at-most SHARE")
    least, most = (
        _share(text, name) for text, name in ((wanted.at_least, "--at-least"), (wanted.at_most, "--at-most"))
    )
    return Accuracy(trained.model, trained.task, least, most)


def _share(text: str | None, name: str) -> Fraction | None:
    if text is None:
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"{name} must be a share from 0 to 1, such as 0.99, got {text!r}") from None


def _labels(trained: Trained, wanted: Wanted) -> Claim:
    from ..verifier.task_claims import Labels

    return Labels(trained.model, trained.task)


def _task_margin(trained: Trained, wanted: Wanted) -> Claim:
    """Without --at-least: for the least margin that the float32 run has on any input, less a little."""
    from ..verifier.task_claims import TaskMargin, least_margin

    if wanted.at_least is not None:
        return TaskMargin(trained.model, trained.task, inputs.parse_bound(wanted.at_least, "--at-least"))
    least = least_margin(trained.model, trained.task)
    if least <= 0:
        raise BadInput(f"the model is wrong on some input (margin {least:.6g}); --claim labels or accuracy says more")
    return TaskMargin(trained.model, trained.task, least)


def _invariant(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Invariant

    if (wanted.relabel is None) == (wanted.irrelevant is None):
        raise BadInput("--claim invariant needs either --relabel A=B,C=D or --irrelevant POSITION,POSITION")
    if wanted.irrelevant is not None:
        if wanted.relabel_outputs is not None:
            raise BadInput("--relabel-outputs goes with --relabel, not with --irrelevant")
        return Invariant(compiled, irrelevant_positions=_integers(wanted.irrelevant, "--irrelevant"))
    pairs = [pair.partition("=") for pair in str(wanted.relabel).split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise BadInput(f"--relabel must look like a=b,c=d, got {wanted.relabel!r}")
    known = inputs.by_text(compiled.codec.vocab)
    names = [(_known(a.strip(), known, "--relabel"), _known(b.strip(), known, "--relabel")) for a, _, b in pairs]
    if len({a for a, _ in names}) < len(names):
        raise BadInput(f"--relabel names a token twice: {wanted.relabel!r}")
    return Invariant(compiled, relabelling=dict(names), outputs="relabelled" if wanted.relabel_outputs else "same")


def _attends(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Attends

    places = _integers(_need(wanted, "head", "LAYER,HEAD").replace(".", ","), "--head")
    if len(places) != 2:
        raise BadInput(f"--head must look like 0,1 (layer and head, from 0), got {wanted.head!r}")
    text = _need(wanted, "selector", "NODE")
    nodes = compiled.alignment.program.nodes
    named = [index for index, node in enumerate(nodes) if node.name == text or f"n{index}" == text]
    if not named:
        names = list(dict.fromkeys(node.name for node in nodes if node.name))
        raise BadInput(f"--selector: the program has no node {text!r}; it has n0 to n{len(nodes) - 1}, {names[:12]}")
    if len(named) > 1:
        raise BadInput(
            f"--selector: {len(named)} nodes are called {text!r}: {', '.join(f'n{i}' for i in named)}; name one"
        )
    tolerance = float(inputs.parse_bound(wanted.tolerance, "--tolerance", upper=True)) if wanted.tolerance else 1e-3
    return Attends(compiled, (places[0], places[1]), named[0], tolerance=tolerance)


def _faithful(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Faithful

    if wanted.ablation not in (None, "zero", "resample"):
        raise BadInput(f"--ablation must be zero or resample, got {wanted.ablation!r} (mean: from Python, with inputs)")
    return Faithful(compiled, ablation=wanted.ablation)


def _abstracts(compiled: Compiled, wanted: Wanted) -> Claim:
    from ..verifier.claims import Abstracts

    return Abstracts(compiled, inputs.load_program(wanted.program).program if wanted.program else None)


def _robust(subject: Any, wanted: Wanted) -> Claim:
    from ..verifier.stream_claims import Robust

    site = _need(wanted, "site", "SITE, such as blocks.0.hook_resid_pre")
    return Robust(subject, site, inputs.parse_bound(_need(wanted, "radius", "NUMBER"), "--radius"))


def _monotone(subject: Any, wanted: Wanted) -> Claim:
    from ..verifier.stream_claims import Monotone

    return Monotone(subject)


def _integers(text: str, name: str) -> list[int]:
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdigit() for item in items):
        raise BadInput(f"{name} must be numbers from 0, separated by commas, got {text!r}")
    return [int(item) for item in items]


def _known(text: str, known: dict[str, Value], name: str) -> Value:
    if text not in known:
        raise BadInput(f"{name}: unknown token {text!r}; the vocabulary has {', '.join(list(known)[:12])}")
    return known[text]


OF_TASKS = ("accuracy", "labels", "task-margin")
"""The claims about trained models."""
OF_EITHER = ("margin", "logit-difference", "never-outputs", "invariant", "robust", "monotone")
"""The claims about trained models and about compiled ones; the others are about compiled ones."""

CLAIMS: dict[str, tuple[Sequence[str], Callable[[Any, Wanted], Claim]]] = {
    "computes": (("program",), _computes),
    "margin": (("at_least",), _margin),
    "logit-difference": (("outputs", "at_least"), _logit_difference),
    "never-outputs": (("outputs",), _never_outputs),
    "invariant": (("relabel", "relabel_outputs", "irrelevant"), _invariant),
    "attends": (("head", "selector", "tolerance"), _attends),
    "faithful": (("ablation",), _faithful),
    "abstracts": (("program",), _abstracts),
    "robust": (("site", "radius"), _robust),
    "monotone": ((), _monotone),
    "accuracy": (("at_least", "at_most"), _accuracy),
    "labels": ((), _labels),
    "task-margin": (("at_least",), _task_margin),
}
