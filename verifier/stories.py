"""Judging stories: each thing an explanation says, as a claim that is expected to be proved, or to be refuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.circuits import INPUT, OUTPUT, full_circuit
from ..models.codec import Codec
from ..models.languages import Language
from ..models.stories import EffectStory, Story, SubspaceStory
from .claims import Claim, Faithful, subject_of
from .portfolio import prove
from .reading import Subject
from .stream_claims import Complete, EdgeEffect, SubspaceCarries, depth_of, without_nodes
from .verdicts import Proved, Refuted, Vacuous, Verdict


@dataclass(frozen=True, eq=False)
class Finding:
    """One thing that a story says: a claim that holds on every input, or (`expected` is `refuted`) not on every one."""

    says: str
    expected: Literal["proved", "refuted"]
    verdict: Verdict

    @property
    def outcome(self) -> Literal["confirmed", "contradicted", "vacuous", "open"]:
        """`vacuous`: the claim is true and says nothing about the model."""
        if isinstance(self.verdict, Vacuous):
            return "vacuous"
        decided = {Proved: "proved", Refuted: "refuted"}.get(type(self.verdict))
        if decided is None:
            return "open"
        return "confirmed" if decided == self.expected else "contradicted"


def claims_of(
    story: Story, of: Any, codec: Codec | None = None
) -> list[tuple[str, Literal["proved", "refuted"], Claim]]:
    """What a story says: in words, whether the claim is expected to be proved or refuted, and the claim.

    Raises `InputError` for a story about another model.
    """
    subject = subject_of(of, codec)
    match story:
        case SubspaceStory(site, directions):
            carries = SubspaceCarries(subject, site, directions, "all")
            rest = SubspaceCarries(subject, site, directions, "nothing", complement=True)
            said: list[tuple[str, Literal["proved", "refuted"], Claim]]
            said = [("the subspace carries all", "proved", carries), ("its complement carries nothing", "proved", rest)]
            if len(seen := read_part(subject, site, directions)):
                part = SubspaceCarries(subject, site, seen, "all")
                said.append(("the part of it that is read later carries all", "proved", part))
            return said
        case EffectStory(edge, direction, score, within):
            claim = EdgeEffect(subject, edge, direction, score, within)
            return [(f"the effect of {edge} is {score:g}, to within {within:g}", "proved", claim)]
    circuit = story.circuit
    found: list[tuple[str, Literal["proved", "refuted"], Claim]] = []
    if story.complete:
        complete = Complete(subject, circuit, knockouts=story.complete)
        found.append(
            (f"the circuit is faithful, and complete under up to {story.complete} knockouts", "proved", complete)
        )
    else:
        found.append(("the circuit is faithful", "proved", Faithful(subject, circuit)))
    inner = [node for node in circuit.ordered_nodes() if node not in (INPUT, OUTPUT)]
    for count in range(1, story.minimal + 1):
        for out in combinations(inner, count):
            less = Faithful(subject, without_nodes(circuit, set(out)))
            found.append((f"it is not faithful without {', '.join(out)}", "refuted", less))
    if story.unique:
        whole = full_circuit(subject.model.config, circuit.ablation)
        rest = Faithful(subject, without_nodes(whole, set(inner)))
        found.append(("the model without the circuit's heads and MLPs does not decide alike", "refuted", rest))
    return found


def read_part(subject: Subject, site: str, directions: Tensor) -> Tensor:
    """An orthonormal basis [r, d_model] of the projection of a subspace onto what later components read of the stream.

    The rest of it is in the kernel of every later reader: patching it does nothing. Makelov et al. (2023): a subspace
    whose patching works only together with that rest is an illusion. By singular values, above 1e-6 of the largest.
    """
    depth, config = depth_of(subject, site), subject.model.config
    readers = [subject.model.parameter(config.reader)]
    for number, layer in list(enumerate(config.layers))[depth:]:
        if layer.n_heads:
            heads = (subject.model.parameter(f"blocks.{number}.attn.W_{x}") for x in "QKV")
            readers += [w.transpose(0, 1).flatten(1) for w in heads]
        if layer.d_mlp:
            readers.append(subject.model.parameter(f"blocks.{number}.mlp.W_in"))
    read = _span(torch.cat([w.detach() for w in readers], 1).to(torch.float64))
    return _span(read @ read.T @ directions.detach().to(torch.float64).T).T.to(torch.float32).contiguous()


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis [d, r] of the span of columns [d, k]."""
    left: Tensor
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, sizes > 1e-6 * sizes.amax().clamp(min=1e-30)]


def judge_story(
    story: Story,
    of: Any,
    domain: Language,
    *,
    codec: Codec | None = None,
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """A verdict for everything that a story says, within `seconds` for each. Raises `InputError`."""
    found = []
    for says, expected, claim in claims_of(story, of, codec):
        if progress:
            progress(says)
        found.append(Finding(says, expected, prove(claim, domain, seconds=seconds, progress=progress)))
    return found


def flagged(findings: list[Finding]) -> bool:
    """Whether something that the story says is contradicted, or says nothing. (What is open is not flagged.)"""
    return any(finding.outcome in ("contradicted", "vacuous") for finding in findings)
