"""Engine `composition`: prove a claim about a model from its alignment, and write the certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..compiler.alignment import Alignment
from ..compiler.alignment_json import alignment_to_json
from ..compiler.analysis import Analysis, analyse
from ..compiler.core import CoreProgram, Value
from ..compiler.core_json import core_to_json
from ..models import Transformer
from ..models.flow import flowing
from ..models.languages import Language
from .abstract_state import Context, Failed
from .bodies import Body, ComputesBody, MarginBody, NeverOutputsBody
from .circuit_bodies import FaithfulBody
from .claims import Claim, parts_of
from .composition import Composed, Composition
from .mechanism_bodies import InterchangeBody
from .suspects import Suspect, suspects
from .theorems import domain_to_json
from .verdicts import Certificate

Hint: TypeAlias = tuple[Mapping[int, Value], ...]
"""Node -> value, one mapping per position of an input."""

MAX_HINTS = 24
QUIET_SECONDS = 0.2


@dataclass(frozen=True)
class Reason:
    """Why there is no proof by composition. `hints`: values of nodes where it broke down."""

    text: str
    hints: tuple[Hint, ...] = ()


class OutOfTime(Failed):
    """The budget was spent before the proof was complete."""


def prove_by_composition(
    claim: Claim, domain: Language, *, deadline: float = math.inf, progress: Callable[[str], None] | None = None
) -> Certificate | Reason:
    """A certificate for a claim about all inputs of a domain, or why composition cannot give one.

    Covers `Computes` (of the program that the alignment is about), `Margin`, `NeverOutputs` and their conjunctions.
    Needs an alignment; every statement of it is verified against the weights, so a wrong one cannot produce a
    certificate. Gives up at `deadline`, a `time.monotonic` value. `progress` is called with each component's name.
    """
    if claim.quantifier != "forall":
        return Reason("composition proves claims about all inputs only")
    if all(isinstance(part, FaithfulBody) for part in parts_of(claim.body)):
        return _no_flow(claim, domain)
    alignment = claim.subject.alignment
    if alignment is None:
        return Reason("composition needs an alignment (an explanation of the model); pass a compiled program")
    parts = parts_of(claim.body)
    if all(isinstance(part, InterchangeBody) for part in parts):
        return _interchange(claim, domain, alignment)
    strange = [part.kind for part in parts if not isinstance(part, (ComputesBody, MarginBody, NeverOutputsBody))]
    if strange:
        return Reason(f"composition does not cover claims of kind {', '.join(strange)}")
    source = _source(alignment)
    for part in parts:
        if isinstance(part, ComputesBody) and not _same_program(part.program, source):
            return Reason("the claim is about another program than the alignment")
    analysis = _analyse(alignment, domain)
    if analysis.problems:
        return Reason(f"the program is not total on this domain: {analysis.problems[0].reason}")
    said = 0.0

    def step(place: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now > deadline:
            raise OutOfTime(place, "time was up")
        if progress and now > said + QUIET_SECONDS:
            progress(f"composing: {place}")
            said = now

    try:
        found = compose(claim, alignment, analysis, step)
    except OutOfTime as failure:
        return Reason(str(failure))
    except Failed as failure:
        return Reason(str(failure), _hints(failure, claim, alignment, analysis))
    for part in parts:
        missing = _missing(part, found, analysis, source)
        if missing is not None:
            return missing
    return _certificate(claim, domain, alignment, source)


def _no_flow(claim: Claim, domain: Language) -> Certificate | Reason:
    """What the circuits leave out carries nothing, whatever is put in its place."""
    model = claim.subject.model
    if not isinstance(model, Transformer) or model.config.layer_norm is not None:
        return Reason("absence of flow is shown for plain transformers without LayerNorm only")
    if model.config.d_readout or model.config.attention != "softmax" or model.config.activation != "relu":
        return Reason("absence of flow is shown for ReLU and softmax attention, without an MLP at the read-out, only")
    weights = weights_of(model)
    for part in parts_of(claim.body):
        assert isinstance(part, FaithfulBody)
        edges = flowing(part.circuit, model.config, weights)
        if edges:
            shown = ", ".join(map(str, edges[:3])) + (", ..." if len(edges) > 3 else "")
            return Reason(f"something may flow through {len(edges)} edges outside the circuit: {shown}")
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, {"rule": "no_flow"})


def _interchange(claim: Claim, domain: Language, alignment: Alignment) -> Certificate | Reason:
    """The composition's steps as a proof about two runs; the checker replays them on both, and is the judge of it."""
    proof: dict[str, object] = {"rule": "interchange", **alignment_to_json(alignment)}
    for part in parts_of(claim.body):
        assert isinstance(part, InterchangeBody)
        if _same_program(part.program, alignment.program):
            proof["auxiliary"] = []  # they are the program's own nodes
        elif not _same_program(part.program, _source(alignment)):
            return Reason("the claim is about another program than the alignment")
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


def weights_of(model: Transformer) -> dict[str, npt.NDArray[np.float32]]:
    """The parameters by name, as float32 arrays."""
    return {name: p.detach().cpu().numpy() for name, p in model.named_parameters()}


def compose(
    claim: Claim, alignment: Alignment, analysis: Analysis, step: Callable[[str], None] = lambda _: None
) -> Composed:
    """Verify the alignment against the claim's model. Raises `Failed`."""
    model = claim.subject.model
    if not isinstance(model, Transformer):
        raise Failed("model", "composition covers plain transformers, not edited ones")
    return Composition(Context(model.config, weights_of(model), claim.subject.codec, alignment, analysis), step).run()


def _source(alignment: Alignment) -> CoreProgram:
    p = alignment.program
    return CoreProgram(p.vocab, p.max_len, p.causal, p.nodes[: alignment.n_source], p.output, p.name)


def _same_program(a: CoreProgram, b: CoreProgram) -> bool:
    return a is b or _anonymous(core_to_json(a)) == _anonymous(core_to_json(b))


def _anonymous(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _anonymous(v) for k, v in data.items() if k != "name"}
    return [_anonymous(v) for v in data] if isinstance(data, list) else data


def _analyse(alignment: Alignment, domain: Language) -> Analysis:
    lengths = [n for n in domain.lengths if domain.size(n)]
    return analyse(alignment.program, lengths, {n: sorted_alphabet(domain, n) for n in lengths})


def sorted_alphabet(domain: Language, length: int) -> tuple[Value, ...]:
    """The tokens that occur in some word of this length, in canonical order."""
    letters = domain.alphabet(length)
    return tuple(v for v in domain.vocab if v in letters)


def _missing(part: Body, found: Composed, analysis: Analysis, source: CoreProgram) -> Reason | None:
    if isinstance(part, MarginBody) and found.margin < part.at_least:
        return Reason(f"the margin is at least {found.margin:.9g}; {float(part.at_least):g} is not shown")
    if isinstance(part, NeverOutputsBody):
        values = source.value_node(source.output).values
        possible = [
            v for v, here in zip(values, analysis.ever(source.output), strict=True) if here and v in part.outputs
        ]
        if possible:
            return Reason(f"the program may output {possible[0]!r}")
    return None


def _certificate(claim: Claim, domain: Language, alignment: Alignment, source: CoreProgram) -> Certificate:
    proof: dict[str, object] = {"rule": "composition", **alignment_to_json(alignment)}
    if not any(isinstance(part, ComputesBody) for part in parts_of(claim.body)):
        proof["program"] = core_to_json(source)
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof)


def _hints(failure: Failed, claim: Claim, alignment: Alignment, analysis: Analysis) -> tuple[Hint, ...]:
    """What the failure names, then the components that deviate most; values of nodes in place of their indices."""
    found: list[Suspect] = [(failure.hint,)] if failure.hint else []
    model = claim.subject.model
    if isinstance(model, Transformer):
        found += suspects(Context(model.config, weights_of(model), claim.subject.codec, alignment, analysis))[
            :MAX_HINTS
        ]

    def named(values: Mapping[int, int]) -> Mapping[int, Value]:
        return {node: alignment.program.value_node(node).values[v] for node, v in values.items()}

    return tuple(tuple(named(place) for place in suspect) for suspect in found)
