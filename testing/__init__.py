"""Property-based testing of interpretations: Hypothesis strategies, a decorator for claims, a pytest plugin.

    from hypothesis import given
    from certiformer.testing import interpretation, programs, words

    @interpretation(cf.Computes(model, program), domain)
    def test_the_model_sorts(): ...

Needs the extra `certiformer[testing]` (Hypothesis, pytest). Names are imported when first used, so that the plugin
costs nothing in a session that does not use it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .check import Checked as Checked
    from .check import check_interpretation as check_interpretation
    from .check import interpretation as interpretation
    from .circuit_strategies import alignments as alignments
    from .circuit_strategies import circuits as circuits
    from .circuit_strategies import interventions as interventions
    from .diverging import Divergence as Divergence
    from .diverging import divergence as divergence
    from .guided import find_failure as find_failure
    from .machines import intervention_machine as intervention_machine
    from .model_strategies import compiled_models as compiled_models
    from .model_strategies import models as models
    from .model_strategies import noisy_models as noisy_models
    from .model_strategies import random_models as random_models
    from .model_strategies import zoo_models as zoo_models
    from .program_strategies import programs as programs
    from .word_strategies import pairs as pairs
    from .word_strategies import words as words

# Public name -> module.
_NAMES: dict[str, str] = {
    "Checked": "check",
    "check_interpretation": "check",
    "interpretation": "check",
    "alignments": "circuit_strategies",
    "circuits": "circuit_strategies",
    "interventions": "circuit_strategies",
    "Divergence": "diverging",
    "divergence": "diverging",
    "compiled_models": "model_strategies",
    "models": "model_strategies",
    "noisy_models": "model_strategies",
    "random_models": "model_strategies",
    "zoo_models": "model_strategies",
    "programs": "program_strategies",
    "find_failure": "guided",
    "intervention_machine": "machines",
    "pairs": "word_strategies",
    "words": "word_strategies",
}
__all__ = sorted(_NAMES)


if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> object:
        module = _NAMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
