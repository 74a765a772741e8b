"""The illusion zoo: all illusions are flagged, no control is, and what makes each look right is so."""

from __future__ import annotations

import pytest
import torch

from certiformer.explanations.illusions import Illusion, illusions
from certiformer.models.edits import Ablate, Given, Resample, Subspace, edit, outside
from certiformer.models.errors import InputError
from certiformer.models.stories import CircuitStory, EffectStory, SubspaceStory
from certiformer.verifier.claims import Faithful
from certiformer.verifier.reading import Subject
from certiformer.verifier.stories import claims_of, flagged, judge_story, read_part
from certiformer.verifier.verdicts import Proved, Refuted

ZOO = {f"{case.name}{' (control)' if case.clean else ''}": case for case in illusions(3)}


@pytest.mark.parametrize("name", ZOO)
def test_every_illusion_is_flagged_and_no_control(name: str) -> None:
    case = ZOO[name]
    findings = judge_story(case.story, case.model, case.domain, codec=case.codec)
    outcomes = [finding.outcome for finding in findings]
    assert "open" not in outcomes
    assert flagged(findings) is not case.clean
    if case.clean:
        assert set(outcomes) == {"confirmed"}


@pytest.mark.parametrize("name", ZOO)
def test_the_usual_evaluation_accepts_every_story(name: str) -> None:
    """What people measure: patching in the subspace, faithfulness on samples, the gradient along the edge."""
    case = ZOO[name]
    words = torch.tensor(list(sample(case)))
    match case.story:
        case SubspaceStory(site, directions):
            for source in words:
                patched = edit(case.model, Subspace(site, directions, Resample(source[None])))
                assert torch.equal(
                    patched(words).argmax(-1), case.model(source[None]).argmax(-1).expand(len(words), -1)
                )
        case CircuitStory(circuit):
            claim = Faithful(case.model, circuit, codec=case.codec)
            assert bool(claim.holds_batch(words).all())
        case EffectStory(edge, direction, score, _):
            assert score == 0.0 == attribution(case, words[:1], words[1:], edge, direction)


def sample(case: Illusion) -> list[list[int]]:
    """All inputs, or a few dozen of many: those a random sample would have."""
    n, vocab = max(case.domain.lengths), len(case.codec.vocab)
    if n == 1:
        return [[token] for token in range(vocab)]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab, (64, n), generator=generator).tolist()


def attribution(case: Illusion, clean: torch.Tensor, source: torch.Tensor, edge: str, direction: torch.Tensor) -> float:
    """The edge's attribution score: (what it carries on the source - on the clean input) . gradient, by a difference
    quotient along the edge."""
    there, here = (case.model.run_with_cache(x)[1]["blocks.0.hook_resid_pre"].detach() for x in (source, clean))
    step = 2.0**-10

    def value(share: float) -> float:
        edited = edit(case.model, Ablate(edge, Given(here + share * (there - here))))
        return float((edited(clean)[0, -1] @ direction).detach())

    return (value(step) - value(0.0)) / step


def test_the_subspace_illusion_needs_what_nothing_reads() -> None:
    case = ZOO["dormant pathway"]
    assert isinstance(case.story, SubspaceStory)
    seen = read_part(Subject(case.model, case.codec), case.story.site, case.story.directions)
    assert torch.allclose(seen.abs(), torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-6)
    unread = read_part(Subject(case.model, case.codec), case.story.site, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    assert unread.shape == (0, 4)


def test_one_input_is_found_and_its_certificate_stands_for_the_others() -> None:
    case = ZOO["one in 10^3"]
    (claim,) = (claim for _, _, claim in claims_of(case.story, case.model, case.codec))
    assert isinstance(case.story, CircuitStory)
    (finding,) = judge_story(case.story, case.model, case.domain, codec=case.codec)
    assert isinstance(finding.verdict, Refuted) and finding.verdict.evidence.inputs == ((1, 3, 0),)  # type: ignore[union-attr]
    wrong = int((~claim.holds_batch(torch.cartesian_prod(*[torch.arange(10)] * 3))).sum())
    assert wrong == 1
    (control,) = judge_story(
        ZOO["one in 10^3 (control)"].story, ZOO["one in 10^3 (control)"].model, case.domain, codec=case.codec
    )
    assert isinstance(control.verdict, Proved)
    edited = edit(case.model, *outside(case.story.circuit, case.model.config, Resample(torch.tensor([[0, 0, 0]]))))
    assert edited(torch.tensor([[1, 3, 0]])).shape == (1, 2)


def test_a_length_must_be_one_that_there_is() -> None:
    for bad in (0, 7, True, 2.0):
        with pytest.raises(InputError, match="from 1 to 6"):
            illusions(bad)  # type: ignore[arg-type]
