"""Question after question about circuits of one model, as verified discovery asks: earlier witnesses come first."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..models.circuits import Circuit
from ..models.languages import Language
from .claims import Claim
from .portfolio import prove
from .verdicts import Refuted, Setting, Verdict
from .witness import Witness

REPLAYED = 32
"""So many witnesses are tried on a new circuit, the last that refuted one first."""


class Decider:
    """`decide(circuit)`: the verdict on `claim_of(circuit)` over the domain, within `seconds` of search.

    What refuted one circuit often refutes the next: the witnesses found so far are replayed first, rigorously
    (`Claim.holds_really`), and only where none refutes it is the prover asked.
    """

    def __init__(self, claim_of: Callable[[Circuit], Claim], domain: Language, seconds: float = 10.0) -> None:
        self.claim_of, self.domain, self.seconds = claim_of, domain, seconds
        self.witnesses: list[Witness] = []
        self.replayed = 0

    def __call__(self, circuit: Circuit) -> Verdict:
        claim = self.claim_of(circuit)
        refuted = self._replay(claim) if claim.quantifier == "forall" else None
        if refuted is not None:
            return refuted
        verdict = prove(claim, self.domain, seconds=self.seconds)
        if isinstance(verdict, Refuted) and isinstance(verdict.evidence, Witness):
            self.witnesses.append(verdict.evidence)
        return verdict

    def _replay(self, claim: Claim) -> Refuted | None:
        begun = time.perf_counter()
        for witness in reversed(self.witnesses[-REPLAYED:]):
            if claim.holds_really(witness) is False:
                self.witnesses.remove(witness)
                self.witnesses.append(witness)
                self.replayed += 1
                notes = ("found for another circuit, replayed on this one; not shrunk",)
                setting = Setting(claim, self.domain, "real", "replay", time.perf_counter() - begun, notes)
                return Refuted(witness, setting, claim.holds(witness))
        return None
