"""The Tracr-compiled models recorded in tests/data, imported, each with our program of the same meaning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.rasp import SOp
from certiformer.compiler.tracr_models import TracrModel, build, shape_from_json

DATA = Path(__file__).parent / "data"
SHAPES: dict[str, dict[str, Any]] = json.loads((DATA / "tracr_models.json").read_text())
PROGRAMS: dict[str, dict[str, Any]] = json.loads((DATA / "tracr_pairs.json").read_text())
NAMES = tuple(SHAPES)


@dataclass(frozen=True, eq=False)
class Recorded:
    """One of them. `probes`: inputs in Tracr's token ids, and what Tracr computed on them through JAX."""

    name: str
    meta: dict[str, Any]
    parameters: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    probes: dict[str, np.ndarray[Any, np.dtype[Any]]]
    program: SOp
    imported: TracrModel

    @property
    def causal(self) -> bool:
        return bool(self.meta["causal"])


@cache
def _arrays() -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    with np.load(DATA / "tracr_models.npz", allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@cache
def recorded(name: str) -> Recorded:
    meta, arrays, parameters, at = SHAPES[name], _arrays(), {}, 0
    for key, shape in meta["shapes"].items():
        size = int(np.prod(shape))
        parameters[key] = arrays[f"{name}/weights"][at : at + size].reshape(shape)
        at += size
    kinds = ("tokens", "unembedded", "final_residual")
    probes = {kind: arrays[f"{name}/{kind}"] for kind in kinds if f"{name}/{kind}" in arrays}
    record = PROGRAMS[name]
    program: SOp = LIBRARY[record["program"]].build(**record["options"])
    shape_ = shape_from_json(meta, parameters["token_embed/embeddings"].shape[1])
    return Recorded(name, meta, parameters, probes, program, build(parameters, shape_, program=program))
