"""The second solver's process, cvc5: the same requests and answers as `smt_worker`, but no assumptions and no models.

Imports cvc5 and the standard library alone; a request under assumptions is refused.
"""

from __future__ import annotations

import json
import resource
import sys
from array import array
from typing import Any


class Queries:
    """One formula at a time, and whether it can be satisfied."""

    def __init__(self) -> None:
        import cvc5

        self.cvc5: Any = cvc5
        self.solver: Any = None
        self.loaded = (0, array("i"))

    def load(self, count: int, flat: array[int]) -> None:
        """The solver is made when it is asked: its time limit has to be known before."""
        self.loaded = (count, flat)

    def check(self, assumptions: list[int], seconds: float) -> dict[str, Any]:
        if assumptions:
            return {"answer": "unknown", "why": "cvc5 is asked without assumptions only"}
        count, flat = self.loaded
        kinds = self.cvc5.Kind
        terms = self.cvc5.TermManager()
        solver = self.cvc5.Solver(terms)
        solver.setLogic("QF_UF")
        solver.setOption("tlimit-per", str(max(1, int(seconds * 1000))))
        boolean = terms.getBooleanSort()
        positive = [terms.mkConst(boolean, f"v{number}") for number in range(count + 1)]
        negative = [terms.mkTerm(kinds.NOT, variable) for variable in positive]
        place = 0
        while place < len(flat):
            size = flat[place]
            literals = [positive[x] if x > 0 else negative[-x] for x in flat[place + 1 : place + 1 + size]]
            place += 1 + size
            if not literals:
                return {"answer": "unsat"}
            solver.assertFormula(literals[0] if size == 1 else terms.mkTerm(kinds.OR, *literals))
        found = solver.checkSat()
        if found.isUnsat() or found.isSat():
            return {"answer": "unsat" if found.isUnsat() else "sat", "true": []}
        return {"answer": "unknown", "why": str(found.getUnknownExplanation()).replace("TIMEOUT", "timeout")}


def main() -> None:
    """Answers until stdin ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    memory = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    queries = Queries()
    for line in source:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                flat = array("i")
                flat.frombytes(source.read(request["bytes"]))
                queries.load(request["count"], flat)
                answer: dict[str, Any] = {"answer": "loaded"}
            else:
                answer = queries.check(request["assume"], request["seconds"])
        except (MemoryError, RuntimeError) as error:
            answer = {"answer": "unknown", "why": f"{type(error).__name__}: {error}"}
        target.write(json.dumps(answer).encode() + b"\n")
        target.flush()


if __name__ == "__main__":
    main()
