"""Searches for alignments: on compiled models, where the truth is known; what they find becomes a claim."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import certiformer as cf
from certiformer.compiler import programs
from certiformer.compiler.alignment import encoding_matrix
from certiformer.compiler.compiled import Compiled
from certiformer.explanations.alignments import AlignedSite
from certiformer.explanations.subspaces import Variable, agreement, das, linear_readout
from certiformer.models.errors import InputError
from certiformer.verifier.mechanism_bodies import writes


def made(name: str = "sort", size: int = 3, length: int = 3) -> Compiled:
    entry = programs.LIBRARY[name]
    return cf.compile(entry.build(), vocab=entry.vocab(size), max_len=length, causal=entry.causal)


def variable(compiled: Compiled) -> tuple[Variable, str, torch.Tensor]:
    """The first s-op that a component computes, the site after its layer, and the coordinates it is written in."""
    alignment = compiled.alignment
    roles = [role for role in (*alignment.heads, *alignment.neurons) if role.node < alignment.n_source and writes(role)]
    role = min(roles, key=lambda role: role.layer)
    domain = cf.sequences(compiled.codec.vocab, range(1, alignment.program.max_len + 1))
    values = len(alignment.program.value_node(role.node).values)
    matrix = encoding_matrix(role.encoding, values, compiled.model.config.d_model)
    truth = torch.eye(compiled.model.config.d_model)[torch.from_numpy((matrix != 0).any(0))]
    asked = Variable(compiled.model, compiled.codec, alignment.program, role.node, domain)
    return asked, f"blocks.{role.layer}.hook_resid_post", truth


def proved(compiled: Compiled, found: AlignedSite, node: int, domain: Any) -> Any:
    claim = cf.SubspaceRepresents(compiled, found.site, found.directions, node, compiled.alignment.program)
    return cf.prove(claim, domain, seconds=60)


def test_the_truth_of_a_compiled_model_represents_its_variable_for_every_pair() -> None:
    compiled = made()
    asked, site, truth = variable(compiled)
    aligned = AlignedSite(asked.name, site, truth)
    assert agreement(asked, aligned, 200) == 1.0
    assert isinstance(proved(compiled, aligned, asked.node, asked.domain), cf.Proved)


def test_a_subspace_that_does_not_hold_the_variable_is_refuted() -> None:
    compiled = made()
    asked, site, truth = variable(compiled)
    rest = torch.linalg.qr(torch.cat([truth, torch.eye(truth.shape[1])]).T).Q.T[len(truth) :][:2].contiguous()
    aligned = AlignedSite(asked.name, site, rest)
    assert agreement(asked, aligned, 200) < 0.9
    assert isinstance(proved(compiled, aligned, asked.node, asked.domain), cf.Refuted)


def test_distributed_alignment_search_finds_what_a_trained_eye_would() -> None:
    """A rotation of the stream hides the coordinates; DAS finds directions that carry the variable."""
    compiled = made("sort", 3, 2)
    asked, site, truth = variable(compiled)
    found = das(asked, site, len(truth), steps=200, samples=300, seed=1)
    random = das(asked, site, len(truth), steps=0, samples=300, seed=1)
    assert found.agreement > 0.97 > random.agreement
    assert found.aligned.directions is not None
    gram = found.aligned.directions @ found.aligned.directions.T
    assert torch.allclose(gram, torch.eye(len(truth)), atol=1e-5)
    again = das(asked, site, len(truth), steps=200, samples=300, seed=1)
    assert torch.equal(again.aligned.directions, found.aligned.directions)  # type: ignore[arg-type]
    verdict = proved(compiled, found.aligned, asked.node, asked.domain)
    assert isinstance(verdict, cf.Proved if found.agreement == 1.0 else (cf.Proved, cf.Refuted))


def test_a_linear_readout_reads_the_variable_off() -> None:
    compiled = made("sort", 3, 3)
    asked, site, truth = variable(compiled)
    found = linear_readout(asked, site, samples=300)
    assert found.agreement == 1.0 and found.aligned.directions is not None
    inside = found.aligned.directions @ truth.T @ truth
    assert float((inside - found.aligned.directions).abs().max()) < 1.0
    early = linear_readout(asked, "blocks.0.hook_resid_pre", samples=300)
    assert early.agreement < 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v, s: das(v, s, 0), "from 1 to"),
        (lambda v, s: das(v, s, 10_000), "from 1 to"),
        (lambda v, s: das(v, "blocks.9.hook_resid_post", 1), "blocks.9"),
        (lambda v, s: das(v, "blocks.0.attn.hook_pattern", 1), "axes"),
        (lambda v, s: das(v, s, 1, samples=1), "at least 2, got 1"),
        (lambda v, s: Variable(v.model, v.codec, v.program, 10_000, v.domain), "no variable"),
        (lambda v, s: Variable(v.model, v.codec, v.program, v.node, cf.sequences(["x"], 1)), "does not know: .'x'."),
        (lambda v, s: agreement(v, AlignedSite("x", s, None)), "name directions"),
    ],
)
def test_bad_questions_are_refused(make: Any, message: str) -> None:
    asked, site, _ = variable(made())
    with pytest.raises(InputError, match=message):
        make(asked, site)
