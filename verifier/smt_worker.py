"""A solver's process: queries from stdin, answers on stdout. Imports the solver and the standard library alone.

Its arguments are its memory in MiB and the solver's name. A request is a JSON line; `load` is followed by the bytes of
the clauses. One answer, a JSON line, for each request.
"""

from __future__ import annotations

import json
import resource
import sys
from array import array
from typing import Any


class Z3:
    """One formula at a time, and questions about it under assumptions."""

    def __init__(self) -> None:
        import z3

        self.z3: Any = z3
        self.errors: tuple[type[BaseException], ...] = (MemoryError, z3.Z3Exception)
        self.solver: Any = None
        self.positive: list[Any] = []
        self.negative: list[Any] = []

    def load(self, count: int, flat: array[int]) -> None:
        z3 = self.z3
        self.solver = z3.SolverFor("QF_FD")
        context = z3.main_ctx().ref()
        self.positive = [z3.Bool(f"v{number}") for number in range(count + 1)]
        self.negative = [z3.Not(variable) for variable in self.positive]
        yes = [variable.as_ast() for variable in self.positive]
        no = [variable.as_ast() for variable in self.negative]
        place = 0
        while place < len(flat):
            size = flat[place]
            literals = [yes[x] if x > 0 else no[-x] for x in flat[place + 1 : place + 1 + size]]
            place += 1 + size
            clause = literals[0] if size == 1 else z3.Z3_mk_or(context, size, (z3.Ast * size)(*literals))
            z3.Z3_solver_assert(context, self.solver.solver, clause)

    def check(self, assumptions: list[int], wanted: list[int], seconds: float) -> dict[str, Any]:
        self.solver.set("timeout", max(1, int(seconds * 1000)))
        answer = self.solver.check(*(self.positive[x] if x > 0 else self.negative[-x] for x in assumptions))
        found: dict[str, Any] = {"answer": str(answer)}
        if str(answer) == "sat":
            model = self.solver.model()
            true = [self.z3.is_true(model.eval(self.positive[x], model_completion=True)) for x in wanted]
            found["true"] = [x for x, holds in zip(wanted, true, strict=True) if holds]
        elif str(answer) == "unknown":
            found["why"] = self.solver.reason_unknown()
        return found


class Cvc5:
    """One formula at a time, and whether it can be satisfied: no assumptions, no models."""

    def __init__(self) -> None:
        import cvc5

        self.cvc5: Any = cvc5
        self.errors: tuple[type[BaseException], ...] = (MemoryError, RuntimeError)
        self.solver: Any = None
        self.loaded = (0, array("i"))

    def load(self, count: int, flat: array[int]) -> None:
        """The solver is made when it is asked: its time limit has to be known before."""
        self.loaded = (count, flat)

    def check(self, assumptions: list[int], wanted: list[int], seconds: float) -> dict[str, Any]:
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


SOLVERS: dict[str, type[Z3] | type[Cvc5]] = {"z3": Z3, "cvc5": Cvc5}


def main() -> None:
    """Answers until stdin ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    memory = int(sys.argv[1]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    queries = SOLVERS[sys.argv[2]]()
    for line in source:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                flat = array("i")
                flat.frombytes(source.read(request["bytes"]))
                queries.load(request["count"], flat)
                answer: dict[str, Any] = {"answer": "loaded"}
            else:
                answer = queries.check(request["assume"], request["wanted"], request["seconds"])
        except queries.errors as error:
            answer = {"answer": "unknown", "why": f"{type(error).__name__}: {error}"}
        target.write(json.dumps(answer).encode() + b"\n")
        target.flush()


if __name__ == "__main__":
    main()
