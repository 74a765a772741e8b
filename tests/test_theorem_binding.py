"""A verdict is about one model, read by one codec, on one domain, and the checker agrees before anything is proved."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import certiformer as cf
from certiformer.compiler import programs, rasp
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.programs import LIBRARY
from certiformer.models.edits import change_weight
from certiformer.proofs import Invalid, Valid, describe
from certiformer.verifier.verdicts import Proved, Refuted, Unknown


@pytest.fixture(scope="module")
def reverse() -> Compiled:
    return cf.compile(programs.reverse(), vocab=range(3), max_len=4)


def domain(longest: int = 4) -> cf.Language:
    return cf.sequences(range(3), range(1, longest + 1))


def test_claims_about_two_models_or_two_codecs_are_not_joined(reverse: Compiled) -> None:
    broken = replace(reverse, model=change_weight(reverse.model, "unembed.b_U", (0,), 50.0))
    with pytest.raises(cf.InputError, match="different models"):
        cf.Computes(reverse) & cf.Computes(broken)
    other = replace(reverse.codec, outputs=tuple(reversed(reverse.codec.outputs)))
    with pytest.raises(cf.InputError, match="different codecs"):
        cf.Computes(reverse) & cf.Computes(reverse.model, reverse.core, codec=other)
    both = cf.Margin(reverse.model, 0.25, codec=reverse.codec) & cf.Computes(reverse)
    assert isinstance(cf.prove(both, domain(), engines="composition"), Proved)


def test_the_joined_claim_is_about_one_copy_of_the_model(reverse: Compiled) -> None:
    joined = (cf.Computes(reverse) & cf.Margin(reverse, 0.25)).snapshot()
    models = {id(part.subject.model) for part in joined.body.parts}  # type: ignore[attr-defined]
    assert len(models) == 1 and id(reverse.model) not in models


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_that_are_not_float32_are_refused(kind: torch.dtype) -> None:
    made = cf.compile(programs.reverse(), vocab=range(3), max_len=4)
    made.model.to(kind)
    with pytest.raises(cf.InputError, match="must be float32"):
        cf.prove(cf.Computes(made), domain())
    with pytest.raises(cf.InputError, match="must be float32"):
        made.model.weights_sha256()


def test_check_compares_codec_weights_and_domain_with_the_claim(reverse: Compiled, tmp_path: Path) -> None:
    flip = cf.compile(rasp.tokens * 1, vocab=range(2), max_len=3)
    swapped = replace(flip.codec, outputs=(1, 0))
    negation = cf.Computes(flip.model, cf.compile(1 - rasp.tokens, vocab=range(2), max_len=3).core, codec=swapped)
    small = cf.sequences(range(2), 2)
    verdict = cf.prove(negation, small)
    assert isinstance(verdict, Proved)
    flip.save(tmp_path / "m")
    assert isinstance(cf.check(verdict.certificate, tmp_path / "m", expect=negation, domain=small), Valid)
    honest = cf.Computes(flip.model, cf.compile(1 - rasp.tokens, vocab=range(2), max_len=3).core, codec=flip.codec)
    assert isinstance(cf.prove(honest, small), Refuted)
    assert isinstance(cf.check(verdict.certificate, tmp_path / "m", expect=honest), Invalid)
    found = cf.check(verdict.certificate, tmp_path / "m", expect=negation, domain=cf.sequences(range(2), range(1, 3)))
    assert isinstance(found, Invalid) and "domain" in found.why
    assert "1, 0" in describe(verdict.certificate.theorem)


def test_check_says_what_it_takes(reverse: Compiled) -> None:
    with pytest.raises(TypeError, match="certificate's path"):
        cf.check(None, "m")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model's path"):
        cf.check(b"x", reverse)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expect is a claim"):
        cf.check(b"x", b"y", expect="sort")  # type: ignore[arg-type]


def test_two_programs_in_one_theorem_are_proved_by_enumeration_and_checked(tmp_path: Path) -> None:
    first = cf.compile(rasp.tokens * 1, vocab=range(2), max_len=2)
    other = cf.compile(2 - rasp.tokens - 2 + rasp.tokens * 2, vocab=range(2), max_len=2).core
    both = cf.Computes(first) & cf.Computes(first.model, other, codec=first.codec)
    verdict = cf.prove(both, cf.sequences(range(2), range(1, 3)))
    assert isinstance(verdict, Proved), verdict
    first.save(tmp_path / "m")
    assert isinstance(cf.check(verdict.certificate, tmp_path / "m"), Valid)


def test_what_the_checker_rejects_is_not_called_proved(reverse: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certiformer.verifier.recheck.objection", lambda *_: "no")
    for engines in ({"enumeration"}, {"composition"}):
        verdict = cf.prove(cf.Computes(reverse), domain(), engines=engines)
        assert isinstance(verdict, Unknown) and "does not accept the proof: no" in verdict.reason
    verdict = cf.prove(cf.NeverOutputs(reverse, [0]).exists(), domain())
    assert isinstance(verdict, Unknown)


def test_composition_keeps_to_its_time() -> None:
    """In CPU time of this thread, which does not depend on what else the machine does; the whole proof takes 19 s."""
    entry = LIBRARY["dyck2_bounded"]
    made = cf.compile(entry.build(), vocab=entry.vocab(30), max_len=50, causal=entry.causal)
    said: list[str] = []
    began = time.thread_time()
    verdict = cf.prove(cf.Computes(made), cf.sequences(made.vocab, range(1, 51)), seconds=2.5, progress=said.append)
    assert isinstance(verdict, Unknown) and "time was up" in verdict.reason
    assert time.thread_time() - began < 6
    assert any(line.startswith("composing: ") for line in said)


def test_bad_shares_and_heads(reverse: Compiled) -> None:
    claim = cf.NeverOutputs(reverse, [0])
    for share in (float("nan"), "x", float("inf")):
        with pytest.raises(cf.InputError, match="share"):
            claim.at_least(share)  # type: ignore[arg-type]
    with pytest.raises(cf.InputError, match="a head is"):
        cf.Attends(reverse, 5, 0)  # type: ignore[arg-type]


def test_pairs_are_called_pairs(reverse: Compiled) -> None:
    words = cf.sequences(range(2), 1)
    verdict = cf.prove(cf.Faithful(reverse, ablation="resample"), words)
    assert isinstance(verdict, Proved)
    text = describe(verdict.certificate.theorem)
    assert "every pair x, y" in text and "4 pairs of inputs" in text
