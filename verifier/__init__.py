"""Claims about models, engines that prove or refute them, and verdicts that carry their evidence."""

from __future__ import annotations

from .claims import Abstracts as Abstracts
from .claims import Attends as Attends
from .claims import Claim as Claim
from .claims import Computes as Computes
from .claims import Faithful as Faithful
from .claims import Invariant as Invariant
from .claims import Margin as Margin
from .claims import NeverOutputs as NeverOutputs
from .logit_difference import LogitDifference as LogitDifference
from .portfolio import ENGINES as ENGINES
from .portfolio import prove as prove
from .sampling import sample_accuracy as sample_accuracy
from .statistics import Estimate as Estimate
from .statistics import clopper_pearson as clopper_pearson
from .verdicts import Certificate as Certificate
from .verdicts import EmptyDomain as EmptyDomain
from .verdicts import Proved as Proved
from .verdicts import Refuted as Refuted
from .verdicts import Unknown as Unknown
from .verdicts import Vacuous as Vacuous
from .verdicts import Verdict as Verdict
from .witness import Outcome as Outcome
from .witness import Witness as Witness
