"""An alignment as JSON: the proof steps of `proofs/SPECIFICATION.md`, section 4, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .alignment import Alignment, Atom, Encoding, HeadRole, NeuronRole, OneHot, Scalar, Scaled
from .core import CoreProgram
from .core_json import node_from_json, node_to_json


def dyadic_to_json(value: float) -> object:
    """A float exactly: an integer, or {"num", "log2den"}."""
    fraction = Fraction(value)
    if fraction.denominator == 1:
        return int(fraction)
    return {"num": fraction.numerator, "log2den": fraction.denominator.bit_length() - 1}


def dyadic_from_json(data: Any) -> float:
    """The inverse of `dyadic_to_json`."""
    if isinstance(data, dict):
        return float(Fraction(int(data["num"]), 2 ** int(data["log2den"])))
    return float(int(data))


def encoding_to_json(encoding: Encoding) -> dict[str, object]:
    """Plain data for `json`."""
    if isinstance(encoding, OneHot):
        return {"kind": "onehot", "dims": list(encoding.dims)}
    if isinstance(encoding, Scalar):
        return {"kind": "scalar", "dim": encoding.dim, "points": [dyadic_to_json(p) for p in encoding.points]}
    return {"kind": "scaled", "by": encoding.by, "of": encoding_to_json(encoding.of)}


def encoding_from_json(data: Any) -> Encoding:
    """The inverse of `encoding_to_json`."""
    if data["kind"] == "onehot":
        return OneHot(tuple(int(d) for d in data["dims"]))
    if data["kind"] == "scalar":
        return Scalar(int(data["dim"]), tuple(dyadic_from_json(p) for p in data["points"]))
    if data["kind"] == "scaled":
        return Scaled(int(data["by"]), encoding_from_json(data["of"]))
    raise ValueError(f"unknown encoding {data['kind']!r}")


def steps_to_json(alignment: Alignment) -> list[dict[str, object]]:
    """Heads and neuron groups layer by layer, then `decode`."""
    layers = sorted({*(h.layer for h in alignment.heads), *(g.layer for g in alignment.neurons)})
    steps: list[dict[str, object]] = []
    for layer in layers:
        for head in sorted((r for r in alignment.heads if r.layer == layer), key=lambda r: r.head):
            step: dict[str, object] = {
                "rule": "head",
                "layer": layer,
                "head": head.head,
                "node": head.node,
                "atoms": [
                    {"key": a.key, "query": a.query, "table": ["".join("01"[int(x)] for x in row) for row in a.table]}
                    for a in head.atoms
                ],
                "reads": list(head.reads),
                "encoding": encoding_to_json(head.encoding),
            }
            if head.affine is not None:
                dim, offset, slope = head.affine
                step["affine"] = {"dim": dim, "offset": dyadic_to_json(offset), "slope": dyadic_to_json(slope)}
            steps.append(step)
        groups = sorted((r for r in alignment.neurons if r.layer == layer), key=lambda r: r.neurons)
        if groups:
            steps.append(
                {
                    "rule": "mlp",
                    "layer": layer,
                    "groups": [
                        {
                            "neurons": list(g.neurons),
                            "reads": list(g.reads),
                            "node": g.node,
                            "encoding": encoding_to_json(g.encoding),
                        }
                        for g in groups
                    ],
                }
            )
    steps.append({"rule": "decode", "reads": list(alignment.decode_reads)})
    return steps


def alignment_to_json(alignment: Alignment) -> dict[str, object]:
    """`{"auxiliary", "width_sums", "steps"}`: the proof of rule `composition` without its name."""
    data: dict[str, object] = {
        "auxiliary": [node_to_json(node) for node in alignment.program.nodes[alignment.n_source :]],
        "width_sums": [{"node": w, "terms": [[p, c] for p, c in terms]} for w, terms in alignment.width_sums],
        "steps": steps_to_json(alignment),
    }
    if alignment.width_shares:
        data["width_shares"] = [{"node": w, "counted": c, "inside": i} for w, c, i in alignment.width_shares]
    return data


def alignment_from_json(data: Mapping[str, Any], core: CoreProgram) -> Alignment:
    """The alignment over `core` that `alignment_to_json` wrote."""
    nodes: list[Any] = list(core.nodes)
    for item in data["auxiliary"]:
        nodes.append(node_from_json(item, nodes))
    heads: list[HeadRole] = []
    neurons: list[NeuronRole] = []
    reads: tuple[int, ...] = ()
    for step in data["steps"]:
        if step["rule"] == "head":
            heads.append(_head(step))
        elif step["rule"] == "mlp":
            for g in step["groups"]:
                first, end = g["neurons"]
                encoding = encoding_from_json(g["encoding"])
                neurons.append(
                    NeuronRole(int(step["layer"]), (int(first), int(end)), _ints(g["reads"]), int(g["node"]), encoding)
                )
        elif step["rule"] == "decode":
            reads = _ints(step["reads"])
    sums = tuple((int(s["node"]), tuple((int(p), int(c)) for p, c in s["terms"])) for s in data["width_sums"])
    shares = tuple((int(s["node"]), int(s["counted"]), int(s["inside"])) for s in data.get("width_shares", ()))
    extended = core.extended(*nodes[len(core.nodes) :])
    return Alignment(extended, len(core.nodes), tuple(heads), tuple(neurons), sums, reads, shares)


def _head(step: Mapping[str, Any]) -> HeadRole:
    atoms = tuple(
        Atom(int(a["key"]), int(a["query"]), np.array([[c == "1" for c in row] for row in a["table"]], dtype=bool))
        for a in step["atoms"]
    )
    affine = None
    if "affine" in step:
        a = step["affine"]
        affine = (int(a["dim"]), dyadic_from_json(a["offset"]), dyadic_from_json(a["slope"]))
    encoding = encoding_from_json(step["encoding"])
    return HeadRole(
        int(step["layer"]), int(step["head"]), int(step["node"]), atoms, _ints(step["reads"]), encoding, affine
    )


def _ints(items: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in items)
