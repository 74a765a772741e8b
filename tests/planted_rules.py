"""Unsound variants of the rules: which text becomes which, why that is wrong, and a false claim that it lets pass."""

from __future__ import annotations

from .planted_rules_attention import ATTENTION_PLANTS
from .planted_rules_composition import COMPOSITION_PLANTS
from .planted_rules_facts import FACT_PLANTS
from .planted_rules_head import HEAD_PLANTS
from .planted_rules_selectors import SELECTOR_PLANTS
from .planted_rules_sums import SUM_PLANTS

PLANTS = [*HEAD_PLANTS, *ATTENTION_PLANTS, *SELECTOR_PLANTS, *COMPOSITION_PLANTS, *FACT_PLANTS, *SUM_PLANTS]
