"""Each rule of the proof engine is needed: one changed line, and a false claim is certified; the checker objects.

The false claims (`planted_claims`) are hand-made; the changed lines (`planted_rules`) each name the claim that they
let pass. So a rule that is lost or weakened later fails the first test here by name.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from certiformer.models import Transformer
from certiformer.proofs.check import INTERNAL
from certiformer.verifier.compose import prove_by_composition
from certiformer.verifier.recheck import objection
from certiformer.verifier.verdicts import Certificate

from .planted import ENGINE, Parts, Plant, is_true, mutated_engine, mutated_source, proves
from .planted_claims import CLAIMS
from .planted_rules import PLANTS


@cache
def built(name: str) -> Parts:
    return CLAIMS[name]()


def called(plant: Plant) -> str:
    return f"{plant.module.rpartition('.')[2]}: {plant.why}"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_false_claim_is_false_and_not_certified(name: str) -> None:
    assert not is_true(built(name))
    assert not proves(prove_by_composition, built(name))


@pytest.mark.parametrize("plant", PLANTS, ids=called)
def test_a_changed_rule_certifies_a_false_claim_and_the_checker_objects(plant: Plant) -> None:
    claim, domain = built(plant.claim).claim(), built(plant.claim).inputs()
    with mutated_engine(plant.module, plant.old, plant.new) as engine, np.errstate(all="ignore"):
        found = engine(claim, domain)
    assert isinstance(found, Certificate), f"not needed to refuse this claim: {found}"
    assert isinstance(claim.subject.model, Transformer)
    why = objection(found, claim.subject.model)
    assert why is not None, "the checker accepts a proof of a false claim"
    assert INTERNAL not in why


def test_the_tables_fit_the_engine() -> None:
    assert {plant.module for plant in PLANTS} <= set(ENGINE)
    assert {plant.claim for plant in PLANTS} <= set(CLAIMS)
    assert len({called(plant) for plant in PLANTS}) == len(PLANTS)
    for plant in PLANTS:
        mutated_source(plant.module, plant.old, plant.new)
        assert plant.new != plant.old
