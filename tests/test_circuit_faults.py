"""The engine for circuits with one text changed: what is false is not accepted, and the change is felt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from certiformer.models import CertiformerError, reduction
from certiformer.verifier import agreement, alone, reducing, shares
from certiformer.verifier.accuracy import Aim, proof_of
from certiformer.verifier.balls import Unsupported

from .circuit_cases import Case, accepted, certificate, random_case

PLANTS: list[tuple[ModuleType, str, str, str, str]] = [
    (reduction, "zero", "if edge not in edges:", "if edge in edges:", "the edges inside are cut"),
    (reduction, "mean", "elif by is not None:", "elif by is None:", "means are left out"),
    (reduction, "zero", "if _stage(port.node) > stage]", "if _stage(port.node) > stage + 1]", "the MLP reads a slot"),
    (reduction, "zero", "if stage < _stage(port.node))", "if stage + 1 < _stage(port.node))", "an MLP lacks b_O"),
    (reduction, "mean", "self.constants[writer.node], writer", "-self.constants[writer.node], writer", "negated means"),
    (reduction, "mean", "wide[..., d * at : d * (at + 1)] = value", "wide[..., :d] = value", "one slot for all"),
    (reduction, "resample", "ids.repeat(vocab)]", "ids.repeat_interleave(vocab)]", "the second input is the first"),
    (reduction, "resample", "Writer(SECOND, edge.src))", "Writer(FIRST, edge.src))", "the second run reads the first"),
    (reduction, "zero", "torch.stack([bias[h] for _, h in heads])", "torch.stack([0 * bias[h] for _, h in heads])",
     "heads lose their biases"),
    (reduction, "zero", "if any(member in read for member in members) else zero", "if True else zero", "all is read"),
    (reducing, "resample", "np.repeat(machine.transitions, machine.transitions.shape[1], axis=1)",
     "np.tile(machine.transitions, (1, machine.transitions.shape[1]))", "labels are those of the second input"),
    (reducing, "resample", "found[x] * len(found) + found[y]", "found[y] * len(found) + found[x]", "pairs turned"),
    (agreement, "zero", "return Fraction(self.proved, self.total)", "return Fraction(1)", "premises claim all"),
    (agreement, "zero", "premise(body, body.alone, domain", "premise(body, None, domain", "a proof of the model twice"),
    (agreement, "zero", "share = found[0].share + found[1].share - 1\n        if share <= 0:",
     "share = max(found[0].share, found[1].share)\n        if share <= 0:", "shares are not added up"),
    (agreement, "zero", "share = found[0].share + found[1].share - 1\n        if share <= 0:",
     "share = found[0].share * found[1].share\n        if share <= 0:", "shares are multiplied"),
]  # fmt: skip
USERS: dict[ModuleType, tuple[tuple[ModuleType, tuple[str, ...]], ...]] = {
    reduction: ((alone, ("circuit_model", "paired_model")),),
    reducing: ((shares, ("plain", "places")),),
    agreement: (),
}
"""Where the changed functions are called from."""


@contextmanager
def planted(module: ModuleType, old: str, new: str) -> Iterator[ModuleType]:
    """The module with one text changed, and its users calling it; all is put back afterwards."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    made = ModuleType(module.__name__)
    made.__package__ = module.__package__
    exec(compile(source.replace(old, new), f"<planted {module.__name__}>", "exec"), made.__dict__)
    kept = [(user, name, getattr(user, name)) for user, names in USERS[module] for name in names]
    try:
        for user, name, _ in kept:
            setattr(user, name, getattr(made, name))
        yield made
    finally:
        for user, name, value in kept:
            setattr(user, name, value)


def differs(case: Case) -> bool:
    """Whether the circuit's own model computes something else than the model with edits."""
    ids = case.inputs()
    found, edited = case.alone.logits(ids), case.alone.enclosed_by_edits(ids).mid
    return not torch.allclose(found.double(), edited, atol=1e-3, rtol=1e-3)


def accepted_wrongly(case: Case, made: ModuleType, tmp_path: Path) -> tuple[bool, bool]:
    """Whether more is proved, and accepted, than is true; and whether what the engine claims is rejected."""
    if hasattr(made, "agreement_bound"):
        made.MAX_INPUTS = 0  # type: ignore[attr-defined]
        try:
            bound = made.agreement_bound(case.faithful, case.domain, seconds=0.3)
        except CertiformerError as error:
            return False, "does not accept" in str(error)
        return bound.share * case.agreement()[2] > case.agreement()[1], False
    counted, _ = shares.count_claim(case.labels, case.domain, Aim())
    if counted is None:
        return False, False
    _, may, total = case.truth()
    proof = proof_of(counted, getattr(made, "places", reducing.places)(case.labels.body, case.domain))
    claim = case.labels.at_least(Fraction(counted.mass.proved, total))
    good = accepted(certificate(claim, case.domain, proof), case.subject.model, tmp_path)
    return good and counted.mass.proved > may, not good


@pytest.mark.parametrize(("module", "ablation", "old", "new", "why"), PLANTS, ids=[plant[4] for plant in PLANTS])
def test_a_planted_fault_proves_nothing_false(
    module: ModuleType, ablation: str, old: str, new: str, why: str, tmp_path: Path
) -> None:
    felt = 0
    with planted(module, old, new) as made:
        for seed in range(120):
            case = random_case(seed, "paths" if "MLP" in why else "count", ablation)
            felt += module is reduction and differs(case)
            with suppress(Unsupported):
                wrong, rejected = accepted_wrongly(case, made, tmp_path)
                assert not wrong, (seed, why)
                felt += rejected
            if felt >= 2:
                break
    assert felt, why
