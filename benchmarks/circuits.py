"""Circuits of trained models: the share of all inputs on which circuit and model are proved to decode alike."""

from __future__ import annotations

import time
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, count_text, median, seconds_text

CASES: tuple[tuple[str, str, float], ...] = (
    ("max-of-10", "zero", 60),
    ("max-of-10", "mean", 60),
    ("max-of-20", "zero", 100),
    ("max-of-20", "mean", 100),
    ("max-of-10 on 8 tokens", "resample", 60),
    ("bracket-type-12", "zero", 60),
    ("bracket-type-12", "mean", 60),
    ("quotes-12", "zero", 120),
    ("induction-12-sharp", "zero", 140),
    ("induction-12-sharp", "mean", 140),
    ("dyck-1-24-sparse", "zero", 140),
)
"""Model (and domain), ablation, seconds for the proof."""
KEPT = 0.99
"""Edges are cut one by one, in order, as long as sampled agreement stays at least this."""
SAMPLES, TRIED, SECONDS = 20_000, 1000, 900.0
EDGES = 12
"""How many kept edges are shown to be needed (the first ones), at 2 s each."""


def judged(name: str, ablation: str, seconds: float) -> dict[str, Any]:
    """One circuit: what is sampled, what is proved, and which edges are needed."""
    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.models.circuits import all_edges, full_circuit
    from certiformer.models.means import domain_means
    from certiformer.verifier.balls import Unsupported
    from certiformer.verifier.enumeration import size_of
    from certiformer.verifier.sampling import sample_accuracy

    model_name, _, small = name.partition(" on 8 tokens")
    trained = zoo.load(model_name)
    model, task = trained.model, trained.task
    domain = task.domain if name == model_name else cf.sequences([40, 44, 48, 52, 56, 60, 62, 63], 10)
    means = domain_means(model, domain, task.codec, 2000) if ablation == "mean" else None

    def claim_of(circuit: Any) -> Any:
        return cf.Faithful(model, circuit, ablation, means=means, through=task)

    circuit, every = full_circuit(model.config), all_edges(model.config)
    for edge in reversed(every):
        less = circuit.without([edge])
        if sample_accuracy(claim_of(less), domain, TRIED).share >= KEPT:
            circuit = less
    claim = claim_of(circuit)
    found: dict[str, Any] = {
        "inputs": size_of(claim, domain),
        "edges": f"{len(circuit.edges)} of {len(every)}",
        "sampled": sample_accuracy(claim, domain, SAMPLES).share,
    }
    start = time.perf_counter()
    everywhere = cf.prove(claim, domain, seconds=5, engines="refute")
    found["everywhere"] = type(everywhere).__name__
    found["refute_s"] = time.perf_counter() - start
    try:
        bound = cf.agreement_bound(claim, domain, seconds=seconds)
        right = bound.right or (None, None)
        found |= {"share": float(bound.share), "engine": bound.engine, "prove_s": bound.seconds}
        found |= {"check_s": bound.check_seconds, "bytes": len(bound.certificate.to_bytes())}
        found |= {"model": None if right[0] is None else float(right[0])}
        found |= {"circuit": None if right[1] is None else float(right[1])}
    except Unsupported as error:
        found |= {"share": None, "why": str(error), "prove_s": seconds}
    times, needed = [], 0
    for edge in circuit.ordered_edges()[:EDGES]:
        start = time.perf_counter()
        needed += isinstance(cf.edge_needed(claim, edge, domain, seconds=2), cf.Refuted)
        times.append(time.perf_counter() - start)
    return {**found, "needed": f"{needed} of {len(times)}", "edge_s": median(times)}


def measure(options: Options) -> Section:
    """All cases."""
    cases = CASES[:2] if options.quick else CASES
    rows: list[tuple[Cell, ...]] = []
    figures: list[Figure] = []
    failed: list[tuple[Cell, ...]] = []
    for case, found in zip(cases, each_apart(judged, cases, SECONDS), strict=True):
        if isinstance(found, Failure):
            failed.append((*case[:2], found.why))
            continue
        if found["share"] is None:
            failed.append((*case[:2], found["why"]))
        shown = ("engine", "model", "circuit", "prove_s", "bytes", "check_s")
        rows.append(
            (
                *(case[0], case[1], count_text(found["inputs"]), found["edges"], found["sampled"], found["share"]),
                *(found.get(key) for key in shown),
                *(found["everywhere"], found["refute_s"], found["needed"], found["edge_s"]),
            )
        )
        print(f"  {rows[-1]}", flush=True)
        share = "nothing" if found["share"] is None else f"{found['share']:.5f}, with certificate"
        figures.append(
            Figure(
                f"{case[0]}, {case[1]} ablation: share of {count_text(found['inputs'])} inputs, circuit as the model",
                ">= 0.99",
                f"{share}, in {seconds_text(found['prove_s'])}",
                found["share"] is not None and found["share"] >= 0.99,
                f"sampled: {found['sampled']:.4f}, no proof",
            )
        )
    columns = (
        *("model", "ablation", "inputs", "edges kept", "sampled agreement", "proved share", "engine", "model right"),
        *("circuit right", "prove s", "certificate bytes", "check s", "on all inputs", "refute s", "edges needed"),
        *("s an edge",),
    )
    tables = [Table("Circuits, everything else ablated: agreement with the model.", columns, tuple(rows))]
    if failed:
        tables.append(Table("Nothing proved.", ("model", "ablation", "why"), tuple(failed)))
    note = (
        f"Circuits: all edges, cut one by one from the read-out down while {TRIED} samples agree on {KEPT:g}. Means: "
        f"stored vectors over 2000 words. Needed: an input on which the circuit decides as the model and without the "
        f"edge does not, over the reals (the first {EDGES} edges). 'Refuted' on all inputs: with a shrunk witness."
    )
    return Section("circuits", "Circuits of trained models", tuple(figures), tuple(tables), (note,))
