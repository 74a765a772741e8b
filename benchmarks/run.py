"""Measure, print beside the targets and the peer's figures, and write results.json and RESULTS.md.

python -m benchmarks.run [--only NAME ...] [--quick] [--workers N] [--program NAME ...] [--seconds S] [--report]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from importlib import import_module

from .options import Options
from .report import REPORT, Section, load, machine, markdown, record, show

BENCHMARKS = (
    "library",
    "compile",
    "forward",
    "agreement",
    "random_programs",
    "faults",
    "mutations",
    "accuracy",
    "trained",
    "compact",
    "paths",
    "radius",
    "heads",
    "smt",
    "sparse",
    "affine",
    "explanations",
    "discovery",
    "illusions",
    "abstraction",
    "decompile",
    "circuits",
    "property_testing",
    "round_trips",
    "tracr_scale",
    "chain",
)
_MODULES = {"compile": "compile_times"}


def measurement(name: str) -> Callable[[Options], Section]:
    """The function that measures one benchmark."""
    found: Callable[[Options], Section] = import_module(f".{_MODULES.get(name, name)}", __package__).measure
    return found


def main() -> None:
    """Each benchmark named by `--only` (default: all). The exit code is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer cases")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (timings then disturb each other)")
    parser.add_argument("--program", nargs="+", default=[], help="only these programs of the library")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time (chain)")
    parser.add_argument("--report", action="store_true", help="only write RESULTS.md from results.json")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    if args.report:
        REPORT.write_text(markdown(load()))
        return
    options = Options(args.quick, args.workers, tuple(args.program), args.seconds)
    missed = 0
    for name in args.only:
        print(f"-- {name}", flush=True)
        before, start = machine(), time.perf_counter()
        section = measurement(name)(options)
        print(show(section), flush=True)
        if not args.no_record:
            record(section, quick=args.quick or bool(args.program), seconds=time.perf_counter() - start, before=before)
        missed += sum(figure.met is False for figure in section.figures)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
