"""Claims about the residual stream, nodes and edges of a model; proved by enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from ..compiler.core import CoreProgram
from ..models.circuits import INPUT, OUTPUT, Circuit, all_edges, all_nodes, full_circuit
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.sites import unknown
from ..models.values import Value
from .bodies import AndBody, Body
from .circuit_bodies import AgreeBody, FaithfulBody
from .claims import Claim, Faithful, _core, float64_number, head_of, parts_of, subject_of
from .edge_bodies import EffectBody, HeadTableBody, WritesBody
from .reading import Subject
from .represents import RepresentsBody
from .stream_bodies import MonotoneBody, RobustBody, SubspaceBody, stream_site
from .witness import show_value

ORTHONORMAL = 1e-5
"""How far products of directions may be from those of orthonormal ones."""
MOST_KNOCKOUTS = 1000


def Robust(of: Any, site: str, radius: float | Fraction, *, codec: Codec | None = None) -> Claim:
    """Whatever is added to the residual stream at `site`, up to `radius` in each coordinate at each position, the model
    decodes as it does with nothing added, on every input.

    `site`: `blocks.1.hook_resid_pre`, or the last `hook_resid_post`. `radius`: above 0, a number that float64 holds.
    Proved by interval bounds (IBP) from the site on. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    exact = float64_number(radius, "a radius")
    if exact <= 0:
        raise InputError(f"a radius must be above 0, got {radius}")
    return Claim("forall", RobustBody(subject, depth_of(subject, site), float(exact)))


def Monotone(
    of: Any,
    tokens: Sequence[Value] | None = None,
    outputs: Sequence[Value] | None = None,
    *,
    codec: Codec | None = None,
) -> Claim:
    """Replacing one token by the next one up never lowers a decoded output, on every input.

    `tokens`, `outputs`: their orders, from below; default: the codec's. Tokens left out are not raised; the outputs are
    all listed. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    order = tuple(subject.codec.vocab if tokens is None else tokens)
    heights = tuple(subject.codec.outputs if outputs is None else outputs)
    strange = [token for token in order if token not in subject.codec.vocab]
    if strange or len(set(order)) < len(order) or len(order) < 2:
        shown = ", ".join(map(show_value, order))
        raise InputError(f"tokens must be at least two of the model's, each once, from below; got {shown or 'none'}")
    if len(heights) != len(subject.codec.outputs) or set(heights) != set(subject.codec.outputs):
        missing = [show_value(x) for x in subject.codec.outputs if x not in heights]
        raise InputError(f"outputs must list each of the model's outputs once, from below; missing: {missing}")
    return Claim("forall", MonotoneBody(subject, order, heights))


def SubspaceCarries(
    of: Any,
    site: str,
    directions: Tensor,
    what: Literal["all", "nothing"],
    *,
    complement: bool = False,
    positions: Sequence[int] | None = None,
    codec: Codec | None = None,
) -> Claim:
    """For all pairs of a base and a source of equal length: with the part of the stream at `site` in the span of
    `directions` taken from the source, the model decodes as with all of it taken there (`all`), or as with nothing
    taken (`nothing`).

    `directions` [k, d_model]: orthonormal rows, as float32. `complement`: the part orthogonal to them. `positions`:
    where, BOS not counted; default: everywhere. A subspace carries all, and its complement nothing, if it alone
    represents what matters; Makelov et al. (2023) show subspaces whose patching misleads. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    if what not in ("all", "nothing"):
        raise InputError(f"a subspace is said to carry 'all' or 'nothing', got {what!r}")
    depth = depth_of(subject, site)
    q = _directions(subject, directions)
    gram = q.to(torch.float64) @ q.to(torch.float64).T
    if (away := float((gram - torch.eye(len(q), dtype=torch.float64)).abs().max())) > ORTHONORMAL:
        raise InputError(
            f"directions must be orthonormal rows; their products are up to {away:.3g} off. "
            "Use torch.linalg.qr(directions.T).Q.T, of linearly independent ones"
        )
    places = None if positions is None else tuple(sorted(set(positions)))
    if places is not None and not (places and all(0 <= place < subject.longest for place in places)):
        raise InputError(f"positions are 0 to {subject.longest - 1}, at least one, got {list(positions or ())}")
    return Claim("forall", SubspaceBody(subject, depth, q, bool(complement), places, what))


def SubspaceRepresents(
    of: Any,
    site: str,
    directions: Tensor,
    variable: str | int,
    program: Any = None,
    *,
    positions: Sequence[int] | None = None,
    codec: Codec | None = None,
) -> Claim:
    """For all pairs of a base and a source of equal length: with the part of the stream at `site` in the span of
    `directions` taken from the source, the model decodes to the program's output when the values of `variable` are.

    `variable`: an s-op of the program by its name, or a node of the core program. `program`: default the compiled one.
    `positions`: where both are exchanged; default: everywhere. The alignments of distributed alignment search (Geiger
    et al., 2024) as a claim about every pair. `directions` as for `SubspaceCarries`. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    patch = SubspaceCarries(subject, site, directions, "all", positions=positions).body
    assert isinstance(patch, SubspaceBody)
    core = _core(program, of, subject)
    return Claim("forall", RepresentsBody(subject, patch, core, node_of(core, variable)))


def node_of(core: CoreProgram, variable: str | int) -> int:
    """A value node of a program by name or number. Raises `InputError`."""
    values = {number: node for number, node in enumerate(core.nodes) if hasattr(node, "values")}
    named = [number for number, node in values.items() if node.name == variable or number == variable]
    if isinstance(variable, bool) or len(named) != 1:
        known = ", ".join(f"{node.name or '(no name)'} (node {number})" for number, node in list(values.items())[:16])
        raise InputError(f"{len(named)} variables of {core.name} are called {variable!r}; it has {known}")
    return named[0]


def WritesAtMost(
    of: Any, node: str, directions: Tensor, at_most: float | Fraction, *, codec: Codec | None = None
) -> Claim:
    """What `node` (`a0.h1`, `m0`, `input`) writes measures at most `at_most` along each direction [k, d_model], at
    every position (BOS included) of every input. Raises `InputError`."""
    subject = subject_of(of, codec)
    nodes = [name for name in all_nodes(subject.model.config) if name != OUTPUT]
    if node not in nodes:
        raise unknown("node that writes", node, nodes)
    exact = float64_number(at_most, "at_most")
    if exact < 0:
        raise InputError(f"at_most must be at least 0, got {at_most}")
    return Claim("forall", WritesBody(subject, node, _directions(subject, directions), exact))


def CircuitsAgree(
    of: Any, first: Circuit, second: Circuit, ablation: str | None = None, *, codec: Codec | None = None
) -> Claim:
    """Two circuits, each alone and everything else ablated (`zero` or `resample`), decode to the same outputs, on every
    input. Raises `InputError`."""
    subject = subject_of(of, codec)
    kinds = {ablation} if ablation else {first.ablation, second.ablation}
    if len(kinds) > 1:
        raise InputError(f"the circuits are for different ablations, {sorted(kinds)}; say which: ablation=...")
    wanted = next(iter(kinds))
    if wanted == "mean":
        raise InputError("circuits agree under ablation 'zero' or 'resample' here, got 'mean'")
    parts = (FaithfulBody.of(subject, first, wanted), FaithfulBody.of(subject, second, wanted))
    return Claim("forall", AgreeBody(parts))


def Complete(
    of: Any,
    circuit: Circuit,
    ablation: str | None = None,
    *,
    knockouts: int = 1,
    codec: Codec | None = None,
) -> Claim:
    """Whatever is knocked out of the circuit, at most `knockouts` of its heads and MLPs, the rest of it alone decodes
    as the rest of the model does, on every input.

    Nothing knocked out: it is faithful. Completeness as in Wang et al. (2022), with equality of outputs, for knockouts
    of nodes, ablated as the rest is. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    config = subject.model.config
    circuit.validate(config)
    if isinstance(knockouts, bool) or not isinstance(knockouts, int) or knockouts < 0:
        raise InputError(f"knockouts must be an integer of at least 0, got {knockouts!r}")
    inner = [node for node in circuit.ordered_nodes() if node not in (INPUT, OUTPUT)]
    parts: list[Body] = list(parts_of(Faithful(subject, circuit, ablation).body))
    for count in range(1, knockouts + 1):
        for out in combinations(inner, count):
            if len(parts) >= MOST_KNOCKOUTS:
                raise InputError(
                    f"{len(inner)} nodes have more than {MOST_KNOCKOUTS} knockouts of up to {knockouts}; ask for fewer"
                )
            rest, model = (without_nodes(c, set(out)) for c in (circuit, full_circuit(config, circuit.ablation)))
            parts.append(CircuitsAgree(subject, model, rest, ablation).body)
    return Claim("forall", parts[0] if len(parts) == 1 else AndBody(tuple(parts)))


def without_nodes(circuit: Circuit, nodes: set[str]) -> Circuit:
    """Less the edges from some nodes, so that none of their outputs is read; by edges."""
    kept = [edge for edge in circuit.ordered_edges() if edge.src not in nodes]
    return Circuit(circuit.nodes, frozenset(map(str, kept)), circuit.ablation)


def EdgeEffect(
    of: Any,
    edge: str,
    direction: Tensor,
    score: float | Fraction,
    within: float | Fraction,
    *,
    codec: Codec | None = None,
) -> Claim:
    """For all pairs of an input and a source of equal length: replacing what `edge` carries by what it carries on the
    source lowers direction . logits, at the last read-out, by `score`, to within `within`.

    With a score from attribution patching: how far that is from the true effect, in the worst case. `direction`
    [d_vocab_out]. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    edges = [str(found) for found in all_edges(subject.model.config)]
    if edge not in edges:
        raise unknown("edge", edge, edges)
    width = subject.model.config.d_vocab_out
    if not isinstance(direction, Tensor) or direction.shape != (width,):
        raise InputError(f"direction must be a tensor [d_vocab_out = {width}], got {_shape(direction)}")
    numbers = (float64_number(score, "a score"), float64_number(within, "within"))
    if numbers[1] < 0:
        raise InputError(f"within must be at least 0, got {within}")
    return Claim("forall", EffectBody(subject, edge, _float32(direction, "direction"), *numbers))


def HeadTable(
    of: Any,
    head: tuple[int, int],
    circuit: Literal["ov", "qk"],
    relation: Literal["diagonal", "increasing"],
    at_least: float | Fraction = 0,
    *,
    codec: Codec | None = None,
) -> Claim:
    """About a head's full OV circuit (W_E W_V W_O W_U: token to logit) or QK circuit (query token to key token),
    positions and, of `ov`, biases left out: in the row of every token of the input, the entry of the same value exceeds
    every other (`diagonal`: the head copies, or attends to the same token), or entries increase along the codec's order
    (`increasing`: larger tokens are attended to more), by at least `at_least`.

    All tokens at once: on the domain of words of length 1. For models without LayerNorm. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    layer, number = head_of(subject, head)
    if circuit not in ("ov", "qk") or relation not in ("diagonal", "increasing"):
        raise InputError(f"circuit is 'ov' or 'qk', relation 'diagonal' or 'increasing'; got {circuit!r}, {relation!r}")
    if subject.model.config.layer_norm is not None:
        raise InputError("this model has LayerNorm, so that its heads read no fixed linear function of the tokens")
    if circuit == "ov" and subject.model.config.d_readout:
        raise InputError("this model has an MLP at its read-out, so that a head's OV circuit gives no logits")
    if circuit == "ov" and subject.codec.kind != "categorical":
        raise InputError("this codec is scalar (one logit), so the OV circuit has one column: nothing to compare")
    return Claim(
        "forall", HeadTableBody(subject, layer, number, circuit, relation, float64_number(at_least, "at_least"))
    )


def depth_of(subject: Subject, site: str) -> int:
    """The number of layers before a site of the residual stream. Raises `InputError` for other sites."""
    layers = len(subject.model.config.layers)
    known = {f"blocks.{layer}.hook_resid_post": layer + 1 for layer in range(layers)}
    known |= {stream_site(subject, depth): depth for depth in range(layers + 1)}
    if site not in known:
        raise unknown("site of the residual stream that claims can be about", site, tuple(known))
    return known[site]


def _directions(subject: Subject, directions: Tensor) -> Tensor:
    d = subject.model.config.d_model
    if not isinstance(directions, Tensor) or directions.dim() != 2 or not 1 <= len(directions) <= d:
        raise InputError(f"directions must be a tensor [k, d_model = {d}], 1 <= k <= {d}, got {_shape(directions)}")
    if directions.shape[1] != d:
        raise InputError(f"directions must have d_model = {d} coordinates, got {_shape(directions)}")
    return _float32(directions, "directions")


def _float32(numbers: Tensor, what: str) -> Tensor:
    found = numbers.detach().to(torch.float32).clone()
    if not bool(torch.isfinite(found).all()):
        bad = next(x for x in numbers.flatten().tolist() if not math.isfinite(float(torch.tensor(x).float())))
        raise InputError(f"{what} must be finite float32 numbers, got {bad}")
    return found


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else value
