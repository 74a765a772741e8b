"""Interchange with Tracr: its programs and compiled models in, our programs out.

    imported = tracr.from_tracr_model(compile_rasp_to_model(expression, ...))   # exactly its weights
    program = tracr.from_tracr(expression)
    verdict = cf.prove(cf.Computes(imported, program), domain)

Tracr itself (the extra `certiformer[tracr]`) is imported only when one of these is given something of Tracr's.
"""

from __future__ import annotations

from .tracr_models import TracrModel as TracrModel
from .tracr_models import from_tracr_model as from_tracr_model
from .tracr_models import load_recorded as load_recorded
from .tracr_programs import from_tracr as from_tracr
from .tracr_programs import to_tracr as to_tracr
