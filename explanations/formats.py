"""Other tools' circuits and scores, read and written. Nothing in a file is ever executed.

| format | what it is | written |
| --- | --- | --- |
| `certiformer` | `ScoredCircuit.to_json` | everything |
| `circuit` | `Circuit.to_json` | the selected circuit |
| `eap-ig` | JSON of EAP-IG and MIB: `cfg`, `nodes`, `edges` with score and `in_graph` | all but ablation and means |
| `eap-ig-pt` | the same as tensors in a torch file | likewise |
| `acdc` | ACDC's saved edges: a pickle of (child, index, parent, index), effect size | the selected circuit's edges |
| `interpbench` | `edges.pkl`: a pickle of pairs of TransformerLens names | the selected circuit's edges |
| `auto-circuit` | prune scores: a torch file, from module name to tensor | the scores |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ..models.circuits import Ablation, Circuit
from ..models.config import TransformerConfig
from ..models.errors import InputError
from ..models.files import parse_json, write_atomically
from ..models.torch_files import read_torch, torch_bytes
from ..models.transformer import Transformer
from . import formats_eap_ig, formats_lens
from .restricted_pickle import plain_pickle, read_pickle
from .scored import FORMAT, ScoredCircuit

Format: TypeAlias = Literal["certiformer", "circuit", "eap-ig", "eap-ig-pt", "acdc", "interpbench", "auto-circuit"]
FORMATS: tuple[str, ...] = get_args(Format)
KEYS_OF_CIRCUITS = {"nodes", "edges", "ablation", "granularity"}
MAX_BYTES = 2**28


def read(
    path: str | Path,
    model: Transformer | TransformerConfig,
    format: Format | None = None,
    ablation: Ablation = "resample",
) -> ScoredCircuit:
    """Scores and the selected circuit from a file; None: the format is told from what is in it.

    `ablation`: what the circuit is meant for, in formats that do not say it. Raises `InputError` for a file that is
    damaged, of no such format or of another model, naming all edges that the model does not have.
    """
    config = model if isinstance(model, TransformerConfig) else model.config
    if format is not None and format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    kind, data = _contents(Path(path))
    found = format or _told(kind, data, path)
    if found not in _OF_KIND[kind]:
        raise InputError(f"{path} is a {kind} file, which is none of format {found}; leave the format out")
    try:
        result = _READERS[found](data, config, ablation)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if result.config != config:
        raise InputError(f"{path} is about a model of another shape: {result.config.canonical_json()[:200]}")
    return result


def write(scored: ScoredCircuit, path: str | Path, format: Format = "certiformer") -> None:
    """Writes a file in another tool's format, atomically. See the table above for what it can hold.

    Raises `InputError` for what the format cannot say.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    write_atomically(path, _WRITERS[format](scored))


def _contents(path: Path) -> tuple[str, Any]:
    """What kind of file it is, and what it holds."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} has {size} bytes; circuits of at most {MAX_BYTES} bytes are read")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if raw.startswith(b"PK"):
        return "torch", read_torch(raw, str(path))
    if raw.startswith(b"\x80"):
        return "pickle", read_pickle(raw, str(path))
    try:
        return "JSON", parse_json(raw)
    except ValueError as error:
        what = "; it is neither a pickle nor a torch file either"
        raise InputError(f"{path} is no JSON ({error}){what}") from None


def _told(kind: str, data: Any, path: str | Path) -> str:
    if kind == "pickle":
        entries = list(data.items()) if isinstance(data, dict) else data
        first = entries[0] if isinstance(entries, (list, tuple)) and entries else None
        strings = isinstance(first, (list, tuple)) and all(isinstance(part, str) for part in first)
        return "interpbench" if strings or not entries else "acdc"
    keys = set(data) if isinstance(data, dict) else set()
    if kind == "torch":
        return "eap-ig-pt" if "edges_scores" in keys or "cfg" in keys else "auto-circuit"
    if isinstance(data, dict) and data.get("format") == FORMAT:
        return "certiformer"
    if "cfg" in keys and "edges" in keys:
        return "eap-ig"
    if keys == KEYS_OF_CIRCUITS:
        return "circuit"
    raise InputError(f"{path} is in no known format; its keys are {sorted(map(str, keys))[:8]}; formats: {FORMATS}")


def _circuit(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    circuit = Circuit.from_json(data)
    circuit.validate(config)
    if circuit.granularity == "node":
        by_nodes = Circuit.from_nodes(config, circuit.nodes, circuit.ablation).edges
        if odd := sorted(by_nodes ^ circuit.edges):
            raise InputError(
                f"a circuit by nodes has every edge between them and no other, but it is mixed: {', '.join(odd[:8])}; "
                "give its granularity as 'edge', or the nodes alone"
            )
    return unscored(circuit, config)


def unscored(circuit: Circuit, config: TransformerConfig, method: str = "circuit") -> ScoredCircuit:
    """A circuit without scores. Raises `InputError` if it is another model's."""
    found = ScoredCircuit.from_edges(config, {}, method, circuit.ablation)
    return found.with_chosen(circuit)


def _circuit_bytes(scored: ScoredCircuit) -> bytes:
    return json.dumps(scored.circuit().to_json(), indent=1).encode()


def _own(data: Any, config: TransformerConfig, ablation: Ablation) -> ScoredCircuit:
    return ScoredCircuit.from_json(data)


_OF_KIND: dict[str, tuple[str, ...]] = {
    "JSON": ("certiformer", "circuit", "eap-ig"),
    "torch": ("eap-ig-pt", "auto-circuit"),
    "pickle": ("acdc", "interpbench"),
}
_READERS: dict[str, Callable[[Any, TransformerConfig, Ablation], ScoredCircuit]] = {
    "certiformer": _own,
    "circuit": _circuit,
    "eap-ig": formats_eap_ig.from_json,
    "eap-ig-pt": formats_eap_ig.from_tensors,
    "acdc": formats_lens.from_acdc,
    "interpbench": formats_lens.from_interpbench,
    "auto-circuit": formats_lens.from_auto_circuit,
}
_WRITERS: dict[str, Callable[[ScoredCircuit], bytes]] = {
    "certiformer": lambda scored: json.dumps(scored.to_json(), indent=1, allow_nan=False).encode(),
    "circuit": _circuit_bytes,
    "eap-ig": lambda scored: json.dumps(formats_eap_ig.to_json(scored), allow_nan=False).encode(),
    "eap-ig-pt": lambda scored: torch_bytes(formats_eap_ig.to_tensors(scored)),
    "acdc": lambda scored: plain_pickle(formats_lens.to_acdc(scored)),
    "interpbench": lambda scored: plain_pickle(formats_lens.to_interpbench(scored)),
    "auto-circuit": lambda scored: torch_bytes(formats_lens.to_auto_circuit(scored)),
}
