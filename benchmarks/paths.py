"""Deep models over domains too large to run: what is proved by bounds over all words at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .isolation import HERE, Failure, Kept
from .options import Options
from .report import Cell, Figure, Section, Table, Watch, count_text, scaled, seconds_text
from .trained import checked_again, counted, float_run

LIMIT = 36000.0
SOURCES = ("models", "verifier", "proofs", "benchmarks/paths.py", "benchmarks/trained.py")
PUBLISHED = "compact proofs, a model of others: .9969 / .9368 of the true accuracy, 175 s"


@dataclass(frozen=True)
class Case:
    """A model of the zoo, and the share of all inputs that it is to be proved right on. `target`: of this share."""

    what: str
    share: float
    target: float
    seconds: float
    peer: str = "none"


CASES = {
    "induction-12-sharp/1": Case("induction, length 12", 0.9999, 0.99, 1500, PUBLISHED),
    "dyck-1-24-sparse": Case("Dyck-1, length 24", 1.0, 0.999, 1500),
    "dyck-1-40-sparse": Case("Dyck-1, length 40", 0.999, 0.999, 10800),
}


@dataclass(frozen=True)
class Never:
    """Outputs that a model of the zoo is to be proved never to give, over its first so many tokens."""

    what: str
    letters: int
    outputs: tuple[int, ...]


NEVER = {
    "max-of-10": Never("max of 10, no token above 31", 32, (40,)),
    "max-of-10/1": Never("max of 10, no token above 15", 16, (40, 50)),
}


def prove_share(name: str) -> dict[str, Any]:
    """One row: what is proved, times, sizes and operations."""
    import certiformer as cf
    from certiformer.models import zoo

    found, case = zoo.load(name), CASES[name]
    model, task = found.model, found.task
    row: dict[str, Any] = {"inputs": task.domain.size(), "accuracy": str(found.card.accuracy)}
    row |= float_run(model, task)
    claim = cf.Labels(model, task) if case.share == 1 else cf.Accuracy(model, task, at_least=case.share)
    watch, file = Watch(), HERE / "partial" / f"paths-{name.replace('/', '-')}.search"
    file.parent.mkdir(exist_ok=True)
    row["resumed"] = file.exists()
    with counted() as counts:
        verdict = cf.prove(claim, task.domain, engines={"paths"}, seconds=case.seconds, resume=file)
    row["prove_s"], row["prove_cpu_s"] = watch.read()
    row |= {**counts, "verdict": type(verdict).__name__}
    if not isinstance(verdict, cf.Proved):
        return row | {"why": str(getattr(verdict, "reason", verdict))}
    return row | checked_again(verdict.certificate, model, task.domain, claim)


def prove_never(name: str) -> dict[str, Any]:
    """One row of `NeverOutputs`."""
    import certiformer as cf
    from certiformer.models import zoo

    found, case = zoo.load(name), NEVER[name]
    codec = found.task.codec
    domain = cf.sequences(codec.vocab[: case.letters], codec.max_len)
    claim = cf.NeverOutputs(found.model, case.outputs, codec=codec)
    row: dict[str, Any] = {"inputs": domain.size()}
    watch = Watch()
    verdict = cf.prove(claim, domain, engines={"paths"}, seconds=300)
    row["prove_s"], row["prove_cpu_s"] = watch.read()
    row["verdict"] = type(verdict).__name__
    if not isinstance(verdict, cf.Proved):
        return row | {"why": str(getattr(verdict, "reason", verdict))}
    return row | checked_again(verdict.certificate, found.model, domain, claim)


def _never(kept: Kept) -> tuple[list[Figure], Table]:
    figures: list[Figure] = []
    rows: list[tuple[Cell, ...]] = []
    for name, row in zip(NEVER, kept.each_apart(prove_never, [(name,) for name in NEVER], LIMIT), strict=True):
        case = NEVER[name]
        proved = not isinstance(row, Failure) and row.get("checked") == "Valid"
        shown = f"proved in {row['prove_s']:.1f} s, checked" if proved else str(getattr(row, "why", row))[:200]
        outputs = " or ".join(map(str, case.outputs))
        figures.append(Figure(f"{case.what}: never {outputs}, certificate checked", "proved", shown, proved, "none"))
        if proved:
            numbers = (row[key] for key in ("prove_s", "prove_cpu_s", "check_s", "check_cpu_s", "bytes"))
            rows.append((name, outputs, count_text(row["inputs"]), *numbers))
    columns = ("model", "never", "inputs", "prove s (with check)", "CPU s", "check s", "CPU s", "certificate bytes")
    return figures, Table("Outputs that are never given.", columns, tuple(rows))


def measure(options: Options) -> Section:
    """All cases, each in a process of its own with one thread; an interrupted run goes on where it was."""
    kept = Kept("paths", SOURCES)
    names = list(CASES)[: 1 if options.quick else None]
    figures: list[Figure] = []
    rows: list[tuple[Cell, ...]] = []
    for name, row in zip(names, kept.each_apart(prove_share, [(name,) for name in names], LIMIT), strict=True):
        case = CASES[name]
        if isinstance(row, Failure) or row["verdict"] != "Proved":
            why = row.why if isinstance(row, Failure) else row["why"]
            what = f"{case.what}: share proved right"
            figures.append(Figure(what, f">= {case.target:g}", why[:200], False, case.peer))
            continue
        figures += _figures(case, row)
        rows.append(_cells(name, case, row))
        print(f"  {rows[-1]}", flush=True)
    more, never = _never(kept)
    figures += more
    if not options.quick:
        kept.forget()
    columns = (
        *("model", "inputs", "proved right, at least", "accuracy", "prove s (with check)", "CPU s", "check s", "CPU s"),
        *("certificate bytes", "float32 run s", "CPU s", "operations, prover", "checker", "float32 run"),
    )
    notes = (
        "Proved by bounds that are conditional on the states of a machine (for induction the token before, for Dyck-1 "
        "the depth and whether it was negative), over all words at once. Float32 run: the time for all inputs, from "
        "that for 131,072 of them; it proves nothing. All with one thread; the prover's times are with its operations "
        "counted.",
        "Operations: every number that is computed, and of products of matrices every multiply-add; the checker's: "
        "the steps that it charges itself. A search that was interrupted goes on from its file in `partial`; then its "
        "time and operations are those of the last part alone.",
    )
    return Section(
        "paths",
        "Deep models, all words at once",
        tuple(figures),
        (Table("Proved.", columns, tuple(rows)), never),
        notes,
    )


def _cells(name: str, case: Case, row: dict[str, Any]) -> tuple[Cell, ...]:
    return (
        *(name, count_text(row["inputs"]), f"{case.share:g}", row["accuracy"]),
        *(row["prove_s"], row["prove_cpu_s"], row["check_s"], row["check_cpu_s"], row["bytes"]),
        *(seconds_text(row["float_s"]), row["float_cpu_s"]),
        *(scaled(row[key]) for key in ("proof_ops", "check_ops", "brute_ops")),
    )


def _figures(case: Case, row: dict[str, Any]) -> list[Figure]:
    run = f"{seconds_text(row['float_s'])} in float32, no proof"
    share = "all" if case.share == 1 else f"{case.share:g}"
    operations = f"{scaled(row['proof_ops'])} + {scaled(row['check_ops'])} to check"
    spent = f"{row['prove_s']:.0f} s ({row['prove_cpu_s']:.0f} s CPU)"
    checked = f"{row['check_s']:.0f} s ({row['check_cpu_s']:.0f} s CPU), {row['bytes']:,} bytes, {row['checked']}"
    valid = row["checked"] == "Valid"
    return [
        Figure(
            f"{case.what}: share of the {count_text(row['inputs'])} inputs proved right",
            f">= {case.target:g}",
            f"{share}, with certificate, in {spent}",
            valid and case.share >= case.target,
            case.peer,
            run,
        ),
        Figure("the same: checked", "valid", checked, valid, "no certificate"),
        Figure(
            "the same: operations",
            "fewer than brute force's",
            operations,
            row["proof_ops"] + row["check_ops"] < row["brute_ops"],
            "",
            f"{scaled(row['brute_ops'])} (float32)",
        ),
    ]
