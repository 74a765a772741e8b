"""Trained models: what is proved of every input, beside running every input in float32; in seconds and operations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from .isolation import Failure, apart
from .options import Options
from .report import Cell, Figure, Section, Table, Watch, count_text, scaled, seconds_text

LIMIT = 3600.0
BATCH = 4096
RUN = 2**17
"""Of more inputs than this, only so many are run in float32, and the time for all is calculated."""
EXHAUSTIVE = "exhaustive interval proof, no certificate: about 2 h"


@dataclass(frozen=True)
class Case:
    """A claim about a model of the zoo. `margin`: `TaskMargin` with the margin that `least_margin` finds; `labels`:
    `Labels`. `prove_s`, `check_s`: the targets."""

    model: str
    what: str
    claim: str = "margin"
    engine: str = "enumeration"
    prove_s: float = 60.0
    check_s: float = 60.0
    seconds: float = 600.0
    peer: str = "none"
    quick: bool = False


CASES = (
    Case("dyck-1-16", "Dyck-1, length 16", peer=EXHAUSTIVE),
    Case("dyck-1-16-mlp-readout", "the same with an MLP at the read-out"),
    Case("dyck-1-16-layernorm-gelu", "the same with LayerNorm and GELU"),
    Case("bracket-type-12", "bracket type, length 12"),
    Case("modular-addition-113", "modular addition, p = 113", prove_s=5, check_s=5, quick=True),
)


def run_case(case: Case) -> dict[str, Any]:
    """One row: times, sizes and operations."""
    import certiformer as cf
    from certiformer.models import zoo

    found = zoo.load(case.model)
    model, task = found.model, found.task
    row: dict[str, Any] = {"inputs": task.domain.size(), "margin": None, **float_run(model, task)}
    watch = Watch()
    if case.claim == "margin":
        row["margin"] = cf.least_margin(model, task, seconds=case.seconds)
        claim = cf.TaskMargin(model, task, row["margin"])
    else:
        claim = cf.Labels(model, task)
    verdict = cf.prove(claim, task.domain, engines={case.engine}, seconds=case.seconds)
    row["prove_s"], row["prove_cpu_s"] = watch.read()
    row["verdict"] = type(verdict).__name__
    if not isinstance(verdict, cf.Proved):
        return row | {"why": str(getattr(verdict, "reason", verdict))}
    row |= checked_again(verdict.certificate, model, task.domain, claim)
    with counted() as counts:
        if case.claim == "margin":
            cf.least_margin(model, task, seconds=2 * case.seconds)
        cf.prove(claim, task.domain, engines={case.engine}, seconds=2 * case.seconds)
    return row | counts


def checked_again(certificate: Any, model: Any, domain: Any, claim: Any = None) -> dict[str, Any]:
    """The checker's verdict on a certificate and a model in files: its kind, the certificate's bytes, and the time."""
    import certiformer as cf

    with tempfile.TemporaryDirectory() as folder:
        file, weights = Path(folder) / "c", Path(folder) / "m"
        certificate.save(file)
        model.save(weights)
        watch = Watch()
        found = cf.check(file, weights, expect=claim, domain=domain)
        spent = dict(zip(("check_s", "check_cpu_s"), watch.read(), strict=True))
        return {"checked": type(found).__name__, "bytes": file.stat().st_size, **spent}


def float_run(model: Any, task: Any) -> dict[str, Any]:
    """Every input, or the first RUN, in float32 by batches: time, the share labelled rightly, the least margin, and the
    multiply-adds of all of them."""
    import torch

    words = next(iter(task.domain.batches(16)))
    with torch.no_grad(), _operations() as operations:
        model(torch.from_numpy(words))
    each = operations.count // len(words)
    seen, right, least = 0, 0, float("inf")
    watch = Watch()
    with torch.no_grad():
        for words in task.domain.batches(BATCH):
            logits = model(torch.from_numpy(words))
            label = torch.from_numpy(task.labels(words))[:, None]
            own = logits.gather(1, label)
            lead = (own - logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)).amin(1)
            seen, right, least = seen + len(words), right + int((lead > 0).sum()), min(least, float(lead.min()))
            if seen >= RUN:
                break
    spent, cpu = (part * task.domain.size() / seen for part in watch.read())
    return {
        "float_s": spent,
        "float_cpu_s": cpu,
        "float_share": right / seen,
        "float_margin": least,
        "float_all": seen == task.domain.size(),
        "brute_ops": each * task.domain.size(),
    }


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Operations: numbers that the prover computes in torch, multiply-adds of products of matrices for these; and the
    checker's, in numpy: multiply-adds, or in rule `paths` the steps that it charges itself."""
    import numpy as np

    from certiformer.proofs.balls import Ball
    from certiformer.proofs.paths import _Checker

    counts = {"proof_ops": 0, "check_ops": 0}
    multiply, spend = Ball.__matmul__, _Checker._spend

    def counting(left: Any, right: Any) -> Any:
        found = multiply(left, right)
        products = 2 + bool(np.any(right.rad))
        counts["check_ops"] += products * found.mid.size * left.mid.shape[-1]
        return found

    def spending(checker: Any, work: int) -> None:
        counts["check_ops"] += work
        spend(checker, work)

    patches = mock.patch.object(Ball, "__matmul__", counting), mock.patch.object(_Checker, "_spend", spending)
    with patches[0], patches[1], _operations() as operations:
        yield counts
    counts["proof_ops"] = operations.count


def _operations() -> Any:
    """Counts what torch computes while it is entered."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Operations(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            if func._overloadpacket in flop_registry:
                self.count += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found) // 2
            elif not func.is_view:
                self.count += sum(x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor))
            return found

    return Operations()


def measure(options: Options) -> Section:
    """All cases, each in a process of its own with one thread."""
    figures: list[Figure] = []
    rows: list[tuple[Cell, ...]] = []
    missed: list[tuple[Cell, ...]] = []
    for case in CASES:
        if options.quick and not case.quick:
            continue
        row = apart(run_case, (case,), LIMIT)
        if isinstance(row, Failure) or row["verdict"] != "Proved":
            why = row.why if isinstance(row, Failure) else row["why"]
            missed.append((case.model, case.claim, why))
            figures.append(Figure(f"{case.what}: {case.claim}", "proved", f"not proved: {why}"[:200], False, case.peer))
            continue
        rows.append(_cells(case, row))
        figures += _figures(case, row)
        print(f"  {rows[-1]}", flush=True)
    columns = (
        *("model", "claim", "engine", "inputs", "margin", "float32 margin", "prove s (with check)", "CPU s", "check s"),
        *("CPU s", "certificate bytes", "float32 run s", "CPU s", "operations, prover", "checker", "float32 run"),
    )
    tables = [Table("Proved of every input.", columns, tuple(rows))]
    if missed:
        tables.append(Table("Not proved.", ("model", "claim", "why"), tuple(missed)))
    notes = (
        "Float32 run: every input through the model in batches, which proves nothing. Prove: the margin is looked for, "
        "each input is enclosed over the reals, the certificate is checked. All with one thread.",
        "Operations: every number that is computed, and of products of matrices every multiply-add; the checker's: the "
        "multiply-adds, in rule `paths` the steps that it charges itself.",
    )
    return Section("trained", "Trained models", tuple(figures), tuple(tables), notes)


def _cells(case: Case, row: dict[str, Any]) -> tuple[Cell, ...]:
    about = "" if row["float_all"] else "about "
    return (
        *(case.model, case.claim, case.engine, count_text(row["inputs"]), row["margin"], row["float_margin"]),
        *(row["prove_s"], row["prove_cpu_s"], row["check_s"], row["check_cpu_s"], row["bytes"]),
        *(about + seconds_text(row["float_s"]), row["float_cpu_s"]),
        *(scaled(row["proof_ops"]), scaled(row["check_ops"]), scaled(row["brute_ops"])),
    )


def _figures(case: Case, row: dict[str, Any]) -> list[Figure]:
    inputs, ran = count_text(row["inputs"]), f"{seconds_text(row['float_s'])} in float32, no proof"
    said = f", at least {row['margin']:.4g}" if row["margin"] is not None else ""
    good = row["checked"] == "Valid"
    operations = f"{scaled(row['proof_ops'])} + {scaled(row['check_ops'])} to check"
    return [
        Figure(
            f"{case.what}: {case.claim}{said}, all {inputs} inputs, with certificate",
            f"<= {case.prove_s:g} s",
            f"{row['prove_s']:.1f} s ({row['prove_cpu_s']:.1f} s CPU)",
            row["prove_s"] <= case.prove_s,
            case.peer,
            ran,
        ),
        Figure(
            "the same: checked",
            f"<= {case.check_s:g} s",
            f"{row['check_s']:.1f} s ({row['check_cpu_s']:.1f} s CPU), {row['bytes']:,} bytes, {row['checked']}",
            good and row["check_s"] <= case.check_s,
            "no certificate",
        ),
        Figure("the same: operations", "reported", operations, None, "", f"{scaled(row['brute_ops'])} (float32)"),
    ]
