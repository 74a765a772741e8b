"""Circuits with sparsemax attention and leaky ReLU, and a softmax circuit, over all inputs of small and large domains.

The peer's figures: Verifiable Transformers (Somani, 2026), solver time at 128 inputs. cvc5's own exponential is asked
beside it about the smallest softmax there is, where cvc5 is installed.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, count_text, seconds_text
from .trained import checked_again

MODELS = ("quotes-12-sparsemax", "bracket-type-12-sparsemax")
KINDS = ("labels", "equivalence", "necessity", "invariance", "robustness")
LIMIT = {"small": 10.0, "large": 120.0}
SECONDS = 900.0
SOFTMAX = "max-of-8-vocab-8"
PEER = "8 to 273 s of solver time (128 inputs)"
CVC5 = 60.0


def domains(name: str) -> dict[str, Any]:
    """128 inputs, and 10^6 (of bracket type: all that there are at this length)."""
    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.models.languages import regular
    from certiformer.models.patterns import concat, repeat, token, union

    task = zoo.load(name).task
    if name.startswith("quotes"):
        few = concat(token('"', "'"), repeat(token("a", "b"), 6, 6), repeat(token("c"), 5, 5))
        return {"small": regular(few, task.vocab, 12), "large": cf.get_task("quotes-12", letters=2).domain}
    pair = union(concat(token("("), token(")")), concat(token("["), token("]")))
    few = concat(repeat(token("(", "["), 2, 2), repeat(pair, 5, 5))
    return {"small": regular(few, task.vocab, 12), "large": task.domain}


def claims(name: str, circuit: Any) -> dict[str, Any]:
    """What is said of a model."""
    import certiformer as cf
    from certiformer.models import zoo

    found = zoo.load(name)
    model, task = found.model, found.task
    swap = {"a": "b", "b": "a"} if name.startswith("quotes") else {"(": "[", "[": "(", ")": "]", "]": ")"}
    how: Any = "same" if name.startswith("quotes") else "relabelled"
    return {
        "labels": cf.Labels(model, task),
        "equivalence": cf.Faithful(model, circuit, "zero", codec=task.codec),
        "invariance": cf.Invariant(model, relabelling=swap, outputs=how, codec=task.codec),
        "robustness": cf.Robust(model, "blocks.1.hook_resid_pre", 2.0**-14, codec=task.codec),
    }


def judge(name: str, size: str) -> list[dict[str, Any]]:
    """A row for each kind of claim on a domain. The circuit is the verified one of the small domain."""
    import certiformer as cf
    from certiformer.explanations.verified import discover_verified
    from certiformer.models import zoo
    from certiformer.models.circuits import full_circuit

    found = zoo.load(name)
    model, task = found.model, found.task
    where = domains(name)
    begun = time.process_time()
    verified = discover_verified(
        model.config,
        lambda c: cf.prove(cf.Faithful(model, c, "zero", codec=task.codec), where["small"], seconds=20),
        start=full_circuit(model.config),
    )
    rows: list[dict[str, Any]] = []
    spent = time.process_time() - begun
    if size == "small":
        kinds = [decision.kind for decision in verified.kept.values()]
        outcome = f"{kinds.count('refuted')} of {len(kinds)} kept edges needed, each by a witness"
        rows.append({"kind": "necessity", "verdict": outcome, "cpu_s": spent, "decided": "unknown" not in kinds})
    for kind, claim in claims(name, verified.circuit).items():
        begun = time.process_time()
        verdict = cf.prove(claim, where[size], seconds=600)
        row = {"kind": kind, "verdict": type(verdict).__name__, "cpu_s": time.process_time() - begun}
        row["decided"] = isinstance(verdict, (cf.Proved, cf.Refuted))
        if isinstance(verdict, cf.Proved):
            row |= checked_again(verdict.certificate, model, where[size], claim)
        rows.append(row)
    return [{**row, "inputs": where[size].size(), "edges": len(verified.circuit.edges)} for row in rows]


def softmax_circuit() -> dict[str, Any]:
    """One layer, 8 tokens, d_model 16: how often it is right on all inputs, from both sides."""
    import certiformer as cf
    from certiformer.models import zoo

    found = zoo.load(SOFTMAX)
    begun = time.process_time()
    bounds = cf.accuracy_bounds(found.model, found.task, seconds=60)
    return {
        "inputs": found.task.domain.size(),
        "low": float(bounds.low),
        "high": float(bounds.high),
        "cpu_s": time.process_time() - begun,
    }


def cvc5_on_two() -> float | None:
    """Seconds of cvc5's on a share of two scores in [-1, 1], which is below 0.9 (it is 0.881 at most); None: no answer
    in `CVC5`."""
    import cvc5

    kind, terms = cvc5.Kind, cvc5.TermManager()
    solver = cvc5.Solver(terms)
    solver.setLogic("QF_NRAT")
    solver.setOption("tlimit-per", str(int(1000 * CVC5)))
    scores = [terms.mkConst(terms.getRealSort(), name) for name in "xy"]
    for score in scores:
        solver.assertFormula(terms.mkTerm(kind.LEQ, score, terms.mkReal(1)))
        solver.assertFormula(terms.mkTerm(kind.GEQ, score, terms.mkReal(-1)))
    first, second = (terms.mkTerm(kind.EXPONENTIAL, score) for score in scores)
    share = terms.mkTerm(kind.MULT, terms.mkReal("0.9"), terms.mkTerm(kind.ADD, first, second))
    solver.assertFormula(terms.mkTerm(kind.GEQ, first, share))
    begun = time.perf_counter()
    return time.perf_counter() - begun if solver.checkSat().isUnsat() else None


def measure(options: Options) -> Section:
    """Both models on both domains, and the softmax circuit beside cvc5."""
    cases = [(name, size) for name in MODELS for size in (("small",) if options.quick else ("small", "large"))]
    figures, rows, failed = [], [], []
    worst: dict[str, tuple[float, int, int]] = {}
    for case, found in zip(cases, each_apart(judge, cases, SECONDS), strict=True):
        if isinstance(found, Failure):
            failed.append((*case, found.why))
            continue
        for row in found:
            slowest, decided, number = worst.get(case[1], (0.0, 0, 0))
            worst[case[1]] = (max(slowest, row["cpu_s"]), decided + row["decided"], number + 1)
            cells: tuple[Cell, ...] = (case[0], row["kind"], count_text(row["inputs"]), row["edges"], row["verdict"])
            rows.append((*cells, row["cpu_s"], row.get("check_s"), row.get("checked"), row.get("bytes")))
            print(f"  {rows[-1]}", flush=True)
    for size, (slowest, decided, number) in worst.items():
        what = "128 inputs" if size == "small" else "up to 10^6 inputs"
        text = f"{decided} of {number} decided, {seconds_text(slowest)} CPU at most"
        met = not failed and decided == number and slowest <= LIMIT[size]
        title = f"sparsemax and leaky ReLU, two layers, 7,106 parameters: claims on {what}"
        figures.append(Figure(title, f"each <= {LIMIT[size]:g} s", text, met, PEER if size == "small" else "none"))
    softmax = softmax_circuit()
    theirs = None if options.quick or find_spec("cvc5") is None else cvc5_on_two()
    asked = not options.quick and find_spec("cvc5") is not None
    peer = "not asked" if not asked else "no answer in 60 s on two scores" if theirs is None else seconds_text(theirs)
    figures.append(
        Figure(
            "softmax, one layer, 8 tokens, d_model 16: share of all inputs right, from both sides",
            "<= 60 s, 20 x faster than cvc5's exp",
            f"{softmax['low']:.6f} to {softmax['high']:.6f} of {count_text(softmax['inputs'])} in "
            f"{seconds_text(softmax['cpu_s'])} CPU",
            softmax["high"] - softmax["low"] <= 0.001
            and softmax["cpu_s"] <= (CVC5 / 20 if asked and not theirs else CVC5),
            f"cvc5: {peer}",
        )
    )
    columns = ("model", "claim", "inputs", "edges of the circuit", "verdict", "CPU s", "check s", "checked", "bytes")
    tables = [Table("Claims over all inputs.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Not judged.", ("model", "domain", "why"), tuple(failed)))
    note = (
        "Equivalence: the 1-minimal circuit that verified discovery finds on the 128 inputs, everything else at zero, "
        "decides as the model does. Robustness: anything within 2^-14 added to the stream before layer 1."
    )
    return Section("sparse", "Sparsemax circuits", tuple(figures), tuple(tables), (note,))
