"""The false claims, by name."""

from __future__ import annotations

from . import (
    planted_claims_counts,
    planted_claims_facts,
    planted_claims_head,
    planted_claims_premises,
    planted_claims_sums,
    planted_claims_walk,
)
from .planted_models import Claims, into

CLAIMS: Claims = {}
for _part in (
    planted_claims_head,
    planted_claims_counts,
    planted_claims_premises,
    planted_claims_walk,
    planted_claims_facts,
    planted_claims_sums,
):
    for _name, _build in _part.CLAIMS.items():
        into(CLAIMS)(_name, _build)
