"""Compile Tracr's library at vocabulary 10, length 20, and record what its compiler made of it for `tracr_scale.py`.

    python -m benchmarks.peer_tracr_models [--only PROGRAM] [--limit SECONDS]

Needs an importable `tracr` (google-deepmind/tracr) with jax and dm-haiku. Every model is compiled in its own process,
twice where Tracr's default exactness of 100 is too little for the length: its step functions then overlap, and the
model is wrong (`exactness`). Written to data/tracr_scale.npz and .json: per model the non-zero parameters, all others
being zero, and what `certiformer.compiler.tracr_models.shape_from_json` reads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .cases import SCALE, SCALE_EXACTNESS, Case
from .peer_tracr import available, builders

HERE = Path(__file__).parent
STEM = HERE / "data" / "tracr_scale"
LIMIT = 240.0


def compiled(case: Case, exactness: int) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Its parameters by flat name, and the rest as JSON."""
    import haiku as hk
    import jax
    from tracr.compiler import compiling
    from tracr.rasp import rasp

    expression = builders(case)[case.program]()
    start = time.process_time()
    model = compiling.compile_rasp_to_model(
        expression, set(case.vocab), case.max_len, causal=False, compiler_bos="BOS", mlp_exactness=exactness
    )
    spent = time.process_time() - start
    flat = {
        f"{module}/{name}": np.asarray(value, dtype=np.float32)
        for module, found in model.params.items()
        for name, value in found.items()
    }
    unit = np.eye(len(model.residual_labels), dtype=np.float32)
    unembed = hk.transform(lambda: model.get_compiled_model().unembed(unit, False))
    readout = np.asarray(unembed.apply(model.params, jax.random.PRNGKey(0))).reshape(len(unit), -1)
    dims = readout.argmax(axis=0)
    assert (readout == unit[:, dims]).all(), "Tracr reads outputs off single coordinates"
    categorical = rasp.is_categorical(expression)
    encoder = model.input_encoder
    return flat, {
        "program": case.program,
        "exactness": exactness,
        "vocab": list(case.vocab),
        "max_len": case.max_len,
        "causal": bool(model.model_config.causal),
        "bos": encoder.bos_token,
        "pad": encoder.pad_token,
        "num_layers": model.model_config.num_layers,
        "num_heads": model.model_config.num_heads,
        "input_encoding": [[value, index] for value, index in encoder.encoding_map.items()],
        "output_kind": "categorical" if categorical else "numerical",
        "output_encoding": [[v, i] for v, i in model.output_encoder.encoding_map.items()] if categorical else None,
        "output_dims": dims.tolist(),
        "variables": runs([label.partition(":")[0] for label in model.residual_labels]),
        "shapes": {name: list(value.shape) for name, value in flat.items()},
        "compile_cpu_s": round(spent, 2),
    }


def runs(names: list[str]) -> list[list[Any]]:
    """Equal names that follow each other, as a name and how often."""
    return [[name, len(list(group))] for name, group in itertools.groupby(names)]


def sparse(flat: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """All parameters one after the other: distances between the non-zero ones, and which of the distinct values."""
    whole = np.concatenate([value.reshape(-1) for value in flat.values()])
    at = np.flatnonzero(whole)
    values, which = np.unique(whole[at], return_inverse=True)
    return {"steps": np.diff(at, prepend=0).astype(np.int32), "values": values, "which": which.astype(np.uint16)}


def measure(case: Case, exactness: int, folder: Path) -> None:
    """One model, in this process, written to `folder`."""
    flat, meta = compiled(case, exactness)
    np.savez_compressed(folder / "model.npz", **sparse(flat))
    (folder / "model.json").write_text(json.dumps(meta))


def apart(case: Case, exactness: int, limit: float) -> tuple[dict[str, Any], dict[str, Any]] | str:
    """One model in a process of its own: its arrays and JSON, or why there are none."""
    bound = (round(limit), round(limit) + 5)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", f"{__package__}.peer_tracr_models", "--case", case.program, str(exactness), folder],
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, bound),
        )
        if done.returncode == -signal.SIGXCPU:
            return f"not compiled within {limit:g} CPU seconds"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no message"])[-1]
        with np.load(Path(folder) / "model.npz", allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return arrays, json.loads((Path(folder) / "model.json").read_text())


def main() -> None:
    """Compile and write the record; what an existing record has and is not compiled now is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", help="programs by name")
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds per model")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        program, exactness, folder = args.case
        measure(next(case for case in SCALE if case.program == program), int(exactness), Path(folder))
        return
    if not available():
        sys.exit("tracr, jax and dm-haiku must be importable; put Tracr's source on PYTHONPATH")
    models: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if STEM.with_suffix(".json").exists():
        models = json.loads(STEM.with_suffix(".json").read_text())
        with np.load(STEM.with_suffix(".npz"), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    for case in SCALE:
        for exactness in SCALE_EXACTNESS:
            if args.only and case.program not in args.only:
                continue
            name = f"{case.program}@{exactness}"
            found_ = apart(case, exactness, args.limit)
            if isinstance(found_, str):
                models[name] = {"program": case.program, "exactness": exactness, "failed": found_}
            else:
                parts, models[name] = found_
                arrays |= {f"{name}/{key}": value for key, value in parts.items()}
            print(name, models[name].get("failed") or models[name]["compile_cpu_s"], file=sys.stderr, flush=True)
            np.savez_compressed(STEM.with_suffix(".npz"), **arrays)
            STEM.with_suffix(".json").write_text(json.dumps(models, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
