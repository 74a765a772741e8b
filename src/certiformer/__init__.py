"""Compile RASP programs into transformers, prove what they compute on every input, check the proof independently.

Names are imported when first used: `import certiformer`, `certiformer.proofs` and the command `certiformer check`
import neither torch nor z3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from os import PathLike

    from .compiler import Compiled as Compiled
    from .compiler import SOp as SOp
    from .compiler import Selector as Selector
    from .compiler import evaluate as evaluate
    from .compiler import programs as programs
    from .compiler import rasp as rasp
    from .compiler.compile import compile as compile
    from .models import CertiformerError as CertiformerError
    from .models import Circuit as Circuit
    from .models import Codec as Codec
    from .models import InputError as InputError
    from .models import InternalError as InternalError
    from .models import Language as Language
    from .models import LayerConfig as LayerConfig
    from .models import Transformer as Transformer
    from .models import TransformerConfig as TransformerConfig
    from .models import sequences as sequences
    from .proofs import Holey as Holey
    from .proofs import Invalid as Invalid
    from .proofs import Valid as Valid
    from .verifier import Abstracts as Abstracts
    from .verifier import Attends as Attends
    from .verifier import Claim as Claim
    from .verifier import Computes as Computes
    from .verifier import Faithful as Faithful
    from .verifier import Invariant as Invariant
    from .verifier import Margin as Margin
    from .verifier import NeverOutputs as NeverOutputs
    from .verifier import Proved as Proved
    from .verifier import Refuted as Refuted
    from .verifier import Unknown as Unknown
    from .verifier import prove as prove

# Public name -> module. `check` is defined here, since the checker knows nothing of our claims.
_NAMES: dict[str, str] = {
    "Compiled": "compiler",
    "SOp": "compiler",
    "Selector": "compiler",
    "compile": "compiler.compile",
    "evaluate": "compiler",
    "programs": "compiler",
    "rasp": "compiler",
    "CertiformerError": "models",
    "Circuit": "models",
    "Codec": "models",
    "InputError": "models",
    "InternalError": "models",
    "Language": "models",
    "LayerConfig": "models",
    "Transformer": "models",
    "TransformerConfig": "models",
    "sequences": "models",
    "Holey": "proofs",
    "Invalid": "proofs",
    "Valid": "proofs",
    "Abstracts": "verifier",
    "Attends": "verifier",
    "Claim": "verifier",
    "Computes": "verifier",
    "Faithful": "verifier",
    "Invariant": "verifier",
    "Margin": "verifier",
    "NeverOutputs": "verifier",
    "Proved": "verifier",
    "Refuted": "verifier",
    "Unknown": "verifier",
    "prove": "verifier",
}
__all__ = sorted([*_NAMES, "check", "__version__"])


def check(
    certificate: str | PathLike[str], model: str | PathLike[str], expect: Claim | dict[str, Any] | None = None
) -> Valid | Invalid | Holey:
    """Whether a certificate proves its theorem about a model; both are files. Uses neither torch nor z3.

    `expect`: the claim (or its JSON) that the certificate must be about; a certificate for another one is `Invalid`.
    """
    from . import proofs

    wanted = expect if expect is None or isinstance(expect, dict) else expect.to_json()
    return proofs.check(certificate, model, expect=wanted)


if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> object:
        module = _NAMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = import_module(f".{module}", __name__)
        value = getattr(found, name, None)
        if value is None:  # a submodule such as `programs`
            value = import_module(f".{module}.{name}", __name__)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return __all__
