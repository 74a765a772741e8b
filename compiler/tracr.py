"""Interchange with Tracr: its programs and compiled models in, our programs and models out.

    imported = tracr.from_tracr_model(compile_rasp_to_model(expression, ...))   # exactly its weights
    program = tracr.from_tracr(expression)
    verdict = cf.prove(cf.Computes(imported, program), domain)
    parameters = tracr.to_haiku(compiled).params                # our model, in Haiku's names and Tracr's shape

Tracr itself (the extra `certiformer[tracr]`) is imported only when one of these is given something of Tracr's.
"""

from __future__ import annotations

from .tracr_export import HaikuModel as HaikuModel
from .tracr_export import to_haiku as to_haiku
from .tracr_export import to_tracr_model as to_tracr_model
from .tracr_models import TracrModel as TracrModel
from .tracr_models import from_tracr_model as from_tracr_model
from .tracr_models import load_recorded as load_recorded
from .tracr_programs import from_tracr as from_tracr
from .tracr_programs import to_tracr as to_tracr
