"""Certificates: their format (SPECIFICATION.md) and the independent checker; it imports nothing else of ours."""

from .check import Holey as Holey
from .check import Invalid as Invalid
from .check import Outcome as Outcome
from .check import Valid as Valid
from .check import check as check
from .format import Rejected as Rejected
from .format import canonical_json as canonical_json
from .format import seal as seal
from .words import describe as describe
