"""Measure Tracr on the programs of `cases.py`: compile time, size, forward time; written to peer_tracr.json.

    python -m benchmarks.peer_tracr [--only PROGRAM] [--small] [--limit SECONDS] [--output FILE]

Needs an importable `tracr` (google-deepmind/tracr) with jax and dm-haiku. Every case runs in its own process, after
JAX has been warmed up by compiling a small program. `compile_cpu_s` is the first compilation, `compile_again_cpu_s` the
same one repeated, when JAX has every operation of these shapes in its cache: what is left is Tracr's own work. A case
that is not compiled in time is recorded as such. `jit_ms_batch` is `jax.jit(model.forward)`, which returns the residual
stream and scores as well; `jit_outputs_ms_batch` is asked for the outputs only, so that XLA drops the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from .cases import LARGE, SEQUENCES, SMALL, Case

HERE = Path(__file__).parent
RECORD = HERE / "peer_tracr.json"
LIMIT = 240.0
REPEATS = 9
APPLIED = 20
WARM_BELOW = 20.0


def builders(case: Case) -> dict[str, Callable[[], Any]]:
    """Tracr's program for each name in `cases.py`; compare `certiformer.compiler.programs`."""
    from tracr.compiler import lib
    from tracr.rasp import rasp

    tokens, indices = rasp.tokens, rasp.indices
    return {
        "length": lib.make_length,
        "reverse": lambda: lib.make_reverse(tokens),
        "hist": lib.make_hist,
        "sort": lambda: lib.make_sort(tokens, tokens, max_seq_len=case.max_len, min_key=1),
        "sort_unique": lambda: lib.make_sort_unique(tokens, tokens),
        "sort_freq": lambda: lib.make_sort_freq(case.max_len),
        "frac_prevs": lambda: lib.make_frac_prevs(tokens == "a"),
        "pair_balance": lambda: lib.make_pair_balance(tokens, "(", ")"),
        "shuffle_dyck1": lambda: lib.make_shuffle_dyck(["()"]),
        "shuffle_dyck2": lib.make_shuffle_dyck2,
        "count": lambda: lib.make_count(tokens, "a"),
        "count_less_freq": lambda: lib.make_count_less_freq(2),
        "detect_pattern": lambda: lib.detect_pattern(tokens, "abc"),
        "shift_by": lambda: lib.shift_by(1, tokens),
        "nary_sequencemap": lambda: lib.make_nary_sequencemap(lambda x, y, z: x + y - z, tokens, tokens, indices),
    }


def _compile(case: Case) -> Any:
    from tracr.compiler import compiling

    return compiling.compile_rasp_to_model(
        builders(case)[case.program](), set(case.vocab), case.max_len, causal=False, compiler_bos="BOS"
    )


def measure(case: Case) -> dict[str, Any]:
    """One case, in this process."""
    import jax
    import numpy as np

    _compile(Case("length", ("a", "b"), 2)).apply(["BOS", "a"])
    cpu, wall = time.process_time(), time.perf_counter()
    model = _compile(case)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    row: dict[str, Any] = {
        "program": case.program,
        "vocab": len(case.vocab),
        "max_len": case.max_len,
        "large": case.large,
        "compile_cpu_s": round(cpu, 3),
        "compile_s": round(wall, 3),
        "parameters": sum(int(np.prod(x.shape)) for x in jax.tree_util.tree_leaves(model.params)),
        "d_model": len(model.residual_labels),
        "layers": model.model_config.num_layers,
    }
    if cpu < WARM_BELOW:
        cpu = time.process_time()
        _compile(case)
        row["compile_again_cpu_s"] = round(time.process_time() - cpu, 3)
    return row if case.large else {**row, **_forward(case, model)}


def _forward(case: Case, model: Any) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    words = [
        ["BOS", *(case.vocab[i] for i in ids)] for ids in rng.integers(len(case.vocab), size=(SEQUENCES, case.max_len))
    ]
    model.apply(words[0])
    cpu, wall = time.process_time(), time.perf_counter()
    for word in words[:APPLIED]:
        model.apply(word)
    apply_cpu, apply_wall = time.process_time() - cpu, time.perf_counter() - wall
    ids = jnp.array([model.input_encoder.encode(word) for word in words])
    everything, only_outputs = (
        jax.jit(model.forward),
        jax.jit(lambda params, x: model.forward(params, x).unembedded_output),
    )
    whole, outputs = (
        _median_ms(lambda: everything(model.params, ids)),
        _median_ms(lambda: only_outputs(model.params, ids)),
    )
    return {
        "apply_ms_each": round(1000 * apply_wall / APPLIED, 3),
        "apply_cpu_ms_each": round(1000 * apply_cpu / APPLIED, 3),
        "jit_ms_batch": whole[0],
        "jit_cpu_ms_batch": whole[1],
        "jit_outputs_ms_batch": outputs[0],
        "jit_outputs_cpu_ms_batch": outputs[1],
    }


def _median_ms(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU milliseconds; the first run, which compiles, is not counted."""
    import jax

    jax.block_until_ready(run())
    walls, cpus = [], []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return round(1000 * sorted(walls)[REPEATS // 2], 3), round(1000 * sorted(cpus)[REPEATS // 2], 3)


def measure_apart(case: Case, limit: float) -> dict[str, Any]:
    """One case in a process of its own; a row with `stopped_s` when it takes more CPU seconds than the limit."""
    command = [sys.executable, "-m", f"{__package__}.peer_tracr", "--case", json.dumps([*_key(case)])]
    row: dict[str, Any] = {"program": case.program, "vocab": len(case.vocab), "max_len": case.max_len}
    row["large"] = case.large
    bound = (round(limit), round(limit) + 5)
    done = subprocess.run(
        command,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, bound),
    )
    if done.returncode == -signal.SIGXCPU:
        return {**row, "stopped_s": limit}
    if done.returncode:
        return {**row, "error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _key(case: Case) -> tuple[str, bool]:
    return (case.program, case.large)


def available() -> bool:
    """Tracr can be imported here."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("tracr", "jax", "haiku"))


def measure_all(cases: tuple[Case, ...], limit: float = LIMIT) -> dict[str, Any]:
    """The record: all rows, with the date and the versions."""
    rows = []
    for case in cases:
        row = measure_apart(case, limit)
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "dm-haiku", "numpy")}
    return {
        "peer": "google-deepmind/tracr @ 9ce2b8c",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions,
        "sequences": SEQUENCES,
        "limit_s": limit,
        "rows": rows,
    }


def main() -> None:
    """Measure and write the record; the rows of an existing record that are not measured now are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="one program by name")
    parser.add_argument("--small", action="store_true", help="only the small sizes, whose forward pass is timed")
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds per case")
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    every = (*SMALL, *LARGE)
    if args.case:
        key = tuple(json.loads(args.case))
        print(json.dumps(measure(next(case for case in every if _key(case) == key))))
        return
    if not available():
        sys.exit("tracr, jax and dm-haiku must be importable; put Tracr's source on PYTHONPATH")
    chosen = tuple(case for case in (SMALL if args.small else every) if args.only in (None, case.program))
    if not chosen:
        sys.exit(f"no program is called {args.only}; there are {', '.join(sorted({c.program for c in every}))}")
    record = measure_all(chosen, args.limit)
    if args.output.exists():
        new = {(row["program"], row["large"]) for row in record["rows"]}
        old = json.loads(args.output.read_text())["rows"]
        record["rows"] += [row for row in old if (row["program"], row["large"]) not in new]
    args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
