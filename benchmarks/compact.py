"""Compact proofs: low-rank factors as explanation, in operations beside running every input; cost against tightness."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .options import Options
from .report import Cell, Figure, Section, Table, Watch, scaled
from .trained import counted, float_run

MODEL = "modular-addition-113"
OUTER = (2, 4, 5, 6, 7, 8, 9, 10, 12, 16)
"""Ranks of the read-out, with all of 16 coordinates kept and 9 of them used."""
OTHERS = ((16, 8, 12), (16, 7, 12), (8, 8, 12), (12, 8, 12), (32, 16, 12))
MARGINS = (1.0, 2.0, 3.0)
LESS = 10
"""The proof and its check together are to take so many times fewer operations than the float32 run."""


def prove_and_check(claim: Any, domain: Any, model: Any, ranks: Any = None, search: Any = None) -> dict[str, Any]:
    """One proof with what it proves, and the checker's verdict on exactly that; times and operations of both."""
    import certiformer as cf
    from certiformer.verifier.low_rank import factorise
    from certiformer.verifier.theorems import domain_to_json
    from certiformer.verifier.verdicts import Certificate

    watch = Watch()
    found = search.attempt(ranks) if search else factorise(claim, domain, domain.size(), ranks=ranks)[0]
    row: dict[str, Any] = dict(zip(("prove_s", "prove_cpu_s"), watch.read(), strict=True))
    stated = claim.at_least(Fraction(found.proved, found.total)).theorem()
    certificate = Certificate.of({**stated, "domain": domain_to_json(domain)}, found.proof)
    with tempfile.TemporaryDirectory() as folder:
        file, weights = Path(folder) / "c", Path(folder) / "m"
        certificate.save(file)
        model.save(weights)
        watch = Watch()
        checked = cf.check(file, weights, domain=domain)
        row |= dict(zip(("check_s", "check_cpu_s"), watch.read(), strict=True))
        with counted() as counts:
            cf.check(file, weights, domain=domain)
        row |= {"bytes": file.stat().st_size, "checked": type(checked).__name__, "check_ops": counts["check_ops"]}
    row |= {"ranks": [found.ranks.inner, found.ranks.used, found.ranks.outer], "points": found.points}
    return row | {"proved": found.proved, "share": found.proved / found.total, "prove_ops": found.operations}


def randomised(claim: Any, domain: Any, read: bool) -> Any:
    """A search whose explanation of what neurons write (or of what they read) is random directions."""
    from certiformer.verifier.low_rank import _Search

    search, rng = _Search(claim.body, domain), np.random.default_rng(0)
    if read:
        turn = np.linalg.qr(rng.normal(size=search.into.shape))[0]
        search.into, search.back = search.into @ turn, turn.T @ search.back
    else:
        directions = np.linalg.qr(rng.normal(size=search._readout[0].shape))[0]
        search.__dict__["_readout"] = directions, search._readout[1]
    for length in search.lengths:
        length.lost[:] = [search._lost(written) for written in length.tables.written]
    return search


def measure(options: Options) -> Section:
    """All ranks, and explanations that are wrong."""
    import torch

    import certiformer as cf
    from certiformer.models import zoo
    from certiformer.verifier.low_rank import Ranks

    torch.set_num_threads(1)
    zooed = zoo.load(MODEL)
    model, domain = zooed.model, zooed.task.domain
    ran = float_run(model, zooed.task)
    claim = cf.Labels(model, zooed.task)
    watch = Watch()
    verdict = cf.prove(claim, domain, engines={"low_rank"})
    spent, cpu = watch.read()
    best = prove_and_check(claim, domain, model)
    print(f"  {best}", flush=True)
    inner, used, outer = best["ranks"]
    rows = {"the ranks that the engine takes": best}
    for rank in OUTER[1::4] if options.quick else OUTER:
        rows[f"read-out of rank {rank}"] = prove_and_check(claim, domain, model, Ranks(16, 9, rank))
    for ranks in () if options.quick else OTHERS:
        rows[f"ranks {ranks[0]}, {ranks[1]}, {ranks[2]}"] = prove_and_check(claim, domain, model, Ranks(*ranks))
    for margin in () if options.quick else MARGINS:
        wanted = cf.TaskMargin(model, zooed.task, margin)
        rows[f"margin at least {margin:g}"] = prove_and_check(wanted, domain, model)
    for what, read in (("written", False), ("read", True)):
        search = randomised(claim, domain, read)
        rows[f"random directions of what is {what}"] = prove_and_check(
            claim, domain, model, Ranks(inner, used, outer), search
        )
    both = best["prove_ops"] + best["check_ops"]
    tables = domain.size() * _folded(model)
    valid = sum(row["checked"] == "Valid" for row in rows.values())
    seconds = f"{spent:.2f} s ({cpu:.2f} s CPU)"
    figures = (
        Figure(
            "modular addition, p = 113: labels, all 12,769 inputs, compact proof: operations of the check",
            "<< float32 run",
            f"{scaled(best['check_ops'])}, proves {best['proved']:,} inputs",
            best["check_ops"] * LESS <= ran["brute_ops"] and best["proved"] == domain.size(),
            "",
            f"{scaled(ran['brute_ops'])} (float32); {scaled(tables)} (from token tables, calculated)",
        ),
        Figure(
            "the same: proof and check together",
            f"<= 1/{LESS} of the float32 run",
            f"{scaled(both)}, 1/{ran['brute_ops'] / both:.0f}",
            both * LESS <= ran["brute_ops"],
        ),
        Figure("the same: time with check", "<= 5 s", seconds, isinstance(verdict, cf.Proved) and spent <= 5),
        Figure("the same: certificates valid", "all", f"{valid} of {len(rows)}", valid == len(rows)),
        Figure(
            "the same: with random directions in place of the right ones",
            "fewer proved",
            " and ".join(f"{row['proved']:,} of 12,769" for row in list(rows.values())[-2:]),
            max(row["proved"] for row in list(rows.values())[-2:]) < best["proved"],
        ),
    )
    columns = (
        *("explanation", "coordinates", "of these used", "read-out", "inputs proved", "share", "points calculated"),
        *("operations, prover", "checker", "float32 run / checker", "prove s", "CPU s", "check s", "CPU s"),
        *("certificate bytes", "checker's verdict"),
    )
    cells = tuple(_cells(name, row, ran["brute_ops"]) for name, row in rows.items())
    notes = (
        "Share: of the 12,769 inputs, all of which the model labels rightly; every proof is one of exactly so many. "
        "Operations: multiply-adds of products, and numbers computed otherwise. Prover: with the search for "
        "directions and ranks (tried before), a decomposition of an n x n matrix as 4.5 n^3. One thread.",
        "From token tables: what running every input would take if only the last position were calculated, and what "
        "heads give the neurons, and the neurons the logits, were tables made once.",
    )
    return Section("compact", "Compact proofs", figures, (Table(f"{MODEL}.", columns, cells),), notes)


def _folded(model: Any) -> int:
    """Multiply-adds for one input of length 3 from tables of what each head gives each neuron, and of W_out W_U."""
    layer = model.config.layers[0]
    return int(layer.d_mlp * (3 * layer.n_heads + model.config.d_vocab_out))


def _cells(name: str, row: dict[str, Any], brute: int) -> tuple[Cell, ...]:
    return (
        *(name, *row["ranks"], row["proved"], f"{row['share']:.4f}", row["points"]),
        *(scaled(row["prove_ops"]), scaled(row["check_ops"]), round(brute / row["check_ops"], 1)),
        *(round(row[key], 3) for key in ("prove_s", "prove_cpu_s", "check_s", "check_cpu_s")),
        *(row["bytes"], row["checked"]),
    )
