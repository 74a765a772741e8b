"""Which coordinates of the residual stream nodes write and read, and so through which edges anything can flow.

What is put in place of an edge without flow changes nothing (proofs/SPECIFICATION.md, section 6).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .circuits import INPUT, OUTPUT, Circuit, Edge, all_edges, parse_head, parse_mlp
from .config import TransformerConfig

Weights = Mapping[str, npt.NDArray[np.float32]]
Coordinates = npt.NDArray[np.bool_]


def left_out(circuit: Circuit, config: TransformerConfig) -> tuple[Edge, ...]:
    """The edges whose contribution is replaced when only the circuit is kept."""
    if circuit.granularity == "node":
        kept = circuit.nodes | {INPUT, OUTPUT}
        return tuple(e for e in all_edges(config) if e.src not in kept and e.dst in kept)
    return tuple(e for e in all_edges(config) if str(e) not in circuit.edges)


def flowing(circuit: Circuit, config: TransformerConfig, weights: Weights) -> tuple[Edge, ...]:
    """The edges outside the circuit whose source writes a coordinate that the target reads."""
    return tuple(e for e in left_out(circuit, config) if (written(e.src, weights) & read(e.dst, e.slot, weights)).any())


def written(node: str, weights: Weights) -> Coordinates:
    """Coordinates of the residual stream that a node can write."""
    head, mlp = parse_head(node), parse_mlp(node)
    if head is not None:
        rows = [weights[f"blocks.{head[0]}.attn.W_O"][head[1]]]
    elif mlp is not None:
        rows = [weights[f"blocks.{mlp}.mlp.W_out"], weights[f"blocks.{mlp}.mlp.b_out"][None]]
    else:
        rows = [weights["embed.W_E"], *([weights["pos_embed.W_pos"]] if "pos_embed.W_pos" in weights else [])]
    found: Coordinates = np.any([(block != 0).any(axis=0) for block in rows], axis=0)
    return found


def read(node: str, slot: str, weights: Weights) -> Coordinates:
    """Coordinates of the residual stream that a node (a head: its q, k or v) reads."""
    head, mlp = parse_head(node), parse_mlp(node)
    if head is not None:
        block = weights[f"blocks.{head[0]}.attn.W_{slot.upper()}"][head[1]]
    elif mlp is not None:
        block = weights[f"blocks.{mlp}.mlp.W_in"]
    else:
        block = weights["readout.W_in" if "readout.W_in" in weights else "unembed.W_U"]
    found: Coordinates = (block != 0).any(axis=1)
    return found
