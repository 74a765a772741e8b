"""Explanations of models: circuits found by search or read from other tools' files, and how good they are."""

from __future__ import annotations

from .acdc import acdc as acdc
from .alignments import AlignedSite as AlignedSite
from .alignments import read_pyvene as read_pyvene
from .alignments import write_pyvene as write_pyvene
from .attribution import eap as eap
from .attribution import eap_ig as eap_ig
from .decompile import Decompiled as Decompiled
from .decompile import recover as recover
from .decompile_trained import Approximated as Approximated
from .decompile_trained import approximate as approximate
from .formats import FORMATS as FORMATS
from .formats import read as read
from .formats import unscored as unscored
from .formats import write as write
from .pairs import METRICS as METRICS
from .pairs import Metric as Metric
from .pairs import Pairs as Pairs
from .pairs import Setup as Setup
from .pairs import sample_pairs as sample_pairs
from .patching import patching as patching
from .program_text import program_text as program_text
from .scored import ScoredCircuit as ScoredCircuit
from .scoring import Against as Against
from .scoring import Sampled as Sampled
from .scoring import against as against
from .scoring import auroc as auroc
from .scoring import sampled_faithfulness as sampled_faithfulness
from .verified import Decision as Decision
from .verified import Verified as Verified
from .verified import discover_verified as discover_verified
