"""Tracr's library on Tracr's own weights at vocabulary 10, length 20: 10^20 inputs each, recorded by
`peer_tracr_models.py`, with the programs as Tracr writes them (`tracr_library.py`).

Each is proved by composition along an alignment read off the weights, or refuted. Where an input of length n refutes
it, all shorter inputs are proved as well, so that no shorter one does.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .cases import SCALE, SCALE_EXACTNESS
from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table, count_text

STEM = Path(__file__).parent / "data" / "tracr_scale"
SECONDS = 120.0
SHORTER_SECONDS = 25.0
COLUMNS = (
    *("program", "exactness", "parameters", "layers", "d_model", "Tracr's compile s", "verdict", "engine", "s"),
    *("check s", "certificate bytes", "smallest input", "model gives", "all shorter ones"),
)


@cache
def _record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(STEM.with_suffix(".json").read_text())
    return found


def load(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """A recorded model, imported, with its program and what was recorded."""
    from certiformer.compiler.tracr_models import build, shape_from_json

    from .tracr_library import library

    meta = dict(_record()[name])
    with np.load(STEM.with_suffix(".npz"), allow_pickle=False) as found:
        steps, values, which = (found[f"{name}/{part}"] for part in ("steps", "values", "which"))
    whole = np.zeros(sum(int(np.prod(shape)) for shape in meta["shapes"].values()), dtype=np.float32)
    whole[np.cumsum(steps.astype(np.int64))] = values[which]
    parameters, at = {}, 0
    for key, shape in meta["shapes"].items():
        parameters[key] = whole[at : at + int(np.prod(shape))].reshape(shape)
        at += int(np.prod(shape))
    meta["residual_labels"] = [label for label, count in meta["variables"] for _ in range(count)]
    program = library(meta["max_len"])[meta["program"]]()
    shape_ = shape_from_json(meta, parameters["token_embed/embeddings"].shape[1])
    return build(parameters, shape_, program=program), program, meta


def decide(name: str, seconds: float) -> dict[str, Any]:
    """One model's verdict, in this process."""
    import certiformer as cf

    imported, program, meta = load(name)
    claim = cf.Computes(imported, program)
    domain = cf.sequences(imported.codec.vocab, range(1, meta["max_len"] + 1))
    start = time.perf_counter()
    verdict = cf.prove(claim, domain, seconds=seconds)
    row: dict[str, Any] = {
        "name": meta["program"],
        "exactness": meta["exactness"],
        "parameters": sum(p.numel() for p in imported.model.parameters()),
        "layers": len(imported.model.config.layers),
        "d_model": imported.model.config.d_model,
        "compile_s": meta["compile_cpu_s"],
        "inputs": count_text(domain.size()),
        "verdict": type(verdict).__name__,
        "seconds": time.perf_counter() - start,
    }
    if isinstance(verdict, cf.Proved):
        row["engine"] = verdict.setting.engine
        with tempfile.TemporaryDirectory() as folder:
            certificate, model = Path(folder) / "proof.cert", Path(folder) / "model.safetensors"
            verdict.certificate.save(certificate)
            imported.model.save(model)
            row["bytes"] = certificate.stat().st_size
            start = time.perf_counter()
            row["checked"] = type(cf.check(certificate, model, expect=claim, domain=domain)).__name__
            row["check_s"] = time.perf_counter() - start
    elif isinstance(verdict, cf.Refuted):
        assert not isinstance(verdict.evidence, cf.Certificate) and verdict.outcome is not None
        row |= {"engine": verdict.setting.engine, "none": "None" in verdict.outcome.expected}
        row |= _least(claim, verdict)
    else:
        row["why"] = getattr(verdict, "reason", str(verdict))
    return row


def _least(claim: Any, verdict: Any) -> dict[str, Any]:
    """The refuting input, exchanged for a shorter one as long as there is one, and what is said of all shorter ones."""
    import certiformer as cf

    while True:
        word, said = list(verdict.evidence.inputs[0]), "there are none"
        if len(word) == 1:
            break
        shorter = cf.sequences(claim.subject.codec.vocab, range(1, len(word)))
        found = cf.prove(claim, shorter, seconds=SHORTER_SECONDS, engines={"composition", "refute"})
        if not isinstance(found, cf.Refuted):
            said = type(found).__name__
            break
        verdict = found
    return {"input": word, "gives": " ".join(verdict.outcome.got), "shorter": said}


def measure(options: Options) -> Section:
    """All recorded models."""
    names = [f"{case.program}@{exactness}" for case in SCALE for exactness in SCALE_EXACTNESS]
    if options.programs:
        names = [name for name in names if name.partition("@")[0] in options.programs]
    elif options.quick:
        names = names[::5]
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    for name, row in zip(
        names, each_apart(decide, [(n, SECONDS) for n in names], 6 * SECONDS, options.workers), strict=True
    ):
        if isinstance(row, Failure):
            failed.append((name, row.why))
            print(f"  {name}: {row.why}", flush=True)
            continue
        rows.append(row)
        print(f"  {name}: {row['verdict']} in {row['seconds']:.2f} s {row.get('input', '')}", flush=True)
        if row["verdict"] == "Unknown":
            failed.append((name, row["why"]))
    return _section(names, rows, failed)


def _section(names: list[str], rows: list[dict[str, Any]], failed: list[tuple[str, str]]) -> Section:
    proved = [row for row in rows if row["verdict"] == "Proved"]
    refuted = [row for row in rows if row["verdict"] == "Refuted"]
    figures = [
        Figure(
            "Tracr's library on its own weights, vocabulary 10, length 20: Proved or Refuted",
            "all",
            f"{len(proved)} proved, {len(refuted)} refuted, of {len(names)}",
            len(proved) + len(refuted) == len(names),
            "no proofs",
        )
    ]
    for exactness in SCALE_EXACTNESS:
        here = [row for row in rows if row["exactness"] == exactness]
        right = sum(row["verdict"] == "Proved" for row in here)
        none = sum(bool(row.get("none")) for row in here)
        text = f"{right} proved, {len(here) - right - none} wrong, {none} with a None that the model cannot output"
        figures.append(
            Figure(f"with mlp_exactness {exactness}" + " (the default)" * (exactness == 100), "", text, None)
        )
    if proved:
        valid = sum(row["checked"] == "Valid" for row in proved)
        figures.append(
            Figure("certificates found valid by the checker", "all", f"{valid} of {len(proved)}", valid == len(proved))
        )
        slow = max(proved, key=lambda row: row["seconds"])
        figures.append(Figure("proof time, worst", "", f"{slow['seconds']:.2f} s ({slow['name']})", None))
    if refuted:
        least = sum(row["shorter"] in ("Proved", "there are none") for row in refuted)
        text = f"{least} of {len(refuted)}"
        figures.append(
            Figure("refuted with an input than which no shorter one fails (proved)", "all", text, least == len(refuted))
        )
    tables = [
        Table("Per model; one thread; proof times include the verifier's own check.", COLUMNS, tuple(map(_row, rows)))
    ]
    if failed:
        tables.append(Table("Not decided.", ("model", "why"), tuple(failed)))
    return Section("tracr_scale", "Tracr's library at vocabulary 10, length 20", tuple(figures), tuple(tables))


def _row(row: dict[str, Any]) -> tuple[Cell, ...]:
    keys = (
        "exactness",
        "parameters",
        "layers",
        "d_model",
        "compile_s",
        "verdict",
        "engine",
        "seconds",
        "check_s",
        "bytes",
    )
    word = " ".join(map(str, row["input"])) if "input" in row else None
    return (row["name"], *(row.get(key) for key in keys), word, row.get("gives"), row.get("shorter"))
