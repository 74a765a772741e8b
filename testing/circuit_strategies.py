"""Strategies for explanations and interventions: circuits of a model, alignments, lists of edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..compiler.alignment import Alignment, HeadRole, NeuronRole
from ..models.circuits import INPUT, OUTPUT, Ablation, Circuit, Edge, all_edges, all_nodes
from ..models.config import TransformerConfig
from ..models.edits import Ablate, Edit, Interchange, Mean, Replacement, Resample, Subspace, Zero
from ..models.errors import InputError
from ..models.sites import sites

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Role = TypeVar("Role", HeadRole, NeuronRole)
MAX_CHANGES = 2
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_normalized")
"""Sites whose edits cannot be combined with ablated edges."""


def circuits(of: Any, *, ablation: Ablation = "zero", within: Circuit | None = None) -> st.SearchStrategy[Circuit]:
    """Circuits of a model: a drawn share of its edges, less those on no path from `input` to `logits`; or one path.

    `of`: a model, or a compiled program. `within`: only edges of this circuit (default: of the model).
    Shrinks until no edge can be left out. Raises `InputError` if there is no path.
    """
    config = config_of(of)
    if within is not None:
        within.validate(config)
    edges = tuple(edge for edge in all_edges(config) if within is None or str(edge) in within.edges)
    whole = Circuit.from_edges(edges, ablation).pruned()
    into: dict[str, list[Edge]] = {}
    for edge in edges:
        if str(edge) in whole.edges:
            into.setdefault(edge.dst, []).append(edge)
    if not whole.edges:
        raise InputError("no path leads from input to logits inside this circuit, so it has no subcircuit to draw")

    spare = tuple(edge for edge in edges if str(edge) in whole.edges)

    @st.composite
    def circuit(draw: Draw) -> Circuit:
        tenths = draw(st.integers(0, 10))
        chosen = [edge for edge in spare if tenths and draw(st.integers(0, 9)) >= 10 - tenths]
        found = Circuit.from_edges(chosen, ablation).pruned()
        if found.edges:
            return found
        path, at = list[Edge](), OUTPUT
        while at != INPUT:
            path.append(into[at][draw(st.integers(0, len(into[at]) - 1))])
            at = path[-1].src
        return Circuit.from_edges(path, ablation)

    return circuit()


def alignments(compiled: Any, *, max_changes: int = MAX_CHANGES) -> st.SearchStrategy[Alignment]:
    """A compiled program's alignment with up to `max_changes` mistakes: a component left out, or two swapped.

    With 0 drawn it is the true one, to which it shrinks. Raises `InputError` for what has no alignment.
    """
    true = getattr(compiled, "alignment", None)
    if not isinstance(true, Alignment):
        raise InputError(f"alignments are drawn of a compiled program, got {compiled!r}")

    @st.composite
    def alignment(draw: Draw) -> Alignment:
        found = true
        for _ in range(draw(st.integers(0, max_changes))):
            if found.heads and draw(st.booleans()):
                found = replace(found, heads=_mistaken(draw, found.heads))
            elif found.neurons:
                found = replace(found, neurons=_mistaken(draw, found.neurons))
        return found

    return alignment()


def _mistaken(draw: Draw, roles: tuple[Role, ...]) -> tuple[Role, ...]:
    place: int = draw(st.integers(0, len(roles) - 1))
    other: int = draw(st.integers(0, len(roles) - 1))
    if place == other:
        return roles[:place] + roles[place + 1 :]
    changed = list(roles)
    changed[place] = replace(roles[place], node=roles[other].node, encoding=roles[other].encoding)
    changed[other] = replace(roles[other], node=roles[place].node, encoding=roles[place].encoding)
    return tuple(changed)


def interventions(of: Any, length: int, *, max_edits: int = 3, stream: bool = True) -> st.SearchStrategy[list[Edit]]:
    """Lists of 1 to `max_edits` edits of a model, for inputs of `length` tokens (BOS not counted, if there is one).

    Ablations of nodes and edges by zero, means and other inputs; interchanges of sites; replacements of a direction.
    A list with an ablated edge has no edit of the residual stream itself, which `edit` refuses; with `stream=False` no
    list has one, so that lists can be joined. Shrinks to one ablation by zero. Raises `InputError` for a length that
    the model cannot read.
    """
    config, codec = config_of(of), getattr(of, "codec", None)
    bos = int(codec.bos) if codec is not None else 0
    longest = config.n_ctx - bos
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= longest:
        raise InputError(f"length must be 1 to {longest}, what the model reads, got {length!r}")
    if isinstance(max_edits, bool) or not isinstance(max_edits, int) or max_edits < 1:
        raise InputError(f"max_edits must be an integer of at least 1, got {max_edits!r}")
    n_tokens = len(codec.vocab) if codec is not None else config.d_vocab

    @st.composite
    def source(draw: Draw) -> Tensor:
        word = [draw(st.integers(0, n_tokens - 1)) for _ in range(length)]
        return torch.tensor([[n_tokens] * bos + word])

    nodes = [node for node in all_nodes(config) if node != OUTPUT]
    edges = list(map(str, all_edges(config)))
    every = list(sites(config))
    apart = [name for name in every if not name.endswith(STREAM)]
    families = [_edits(config, source(), length + bos, [*edges, *nodes], apart)]
    families += [_edits(config, source(), length + bos, nodes, every)] if stream else []
    return st.one_of(*(st.lists(edits, min_size=1, max_size=max_edits) for edits in families))


def _edits(
    config: TransformerConfig, source: st.SearchStrategy[Tensor], length: int, targets: list[str], names: list[str]
) -> st.SearchStrategy[Edit]:
    by: st.SearchStrategy[Replacement] = st.one_of(
        st.builds(Zero), st.builds(Resample, source), st.builds(Mean, source, st.booleans())
    )
    ablations: st.SearchStrategy[Edit] = st.builds(Ablate, st.sampled_from(targets), by)
    known = {name: site for name, site in sites(config).items() if name in names}
    placed = [name for name, site in known.items() if {"pos", "query"} & set(site.axes)]
    wide = [name for name, site in known.items() if site.sizes[-1] and "head" not in site.axes]

    @st.composite
    def interchange(draw: Draw) -> Edit:
        site = draw(st.sampled_from(placed))
        heads = dict(zip(known[site].axes, known[site].sizes, strict=True)).get("head")
        head = draw(st.none() | st.integers(0, heads - 1)) if heads else None
        places = draw(st.none() | st.lists(st.integers(0, length - 1), min_size=1, max_size=length, unique=True))
        return Interchange(site, draw(source), None if places is None else tuple(places), head)

    @st.composite
    def subspace(draw: Draw) -> Edit:
        site = draw(st.sampled_from(wide))
        width = known[site].sizes[-1]
        assert width is not None
        direction = torch.zeros(1, width)
        direction[0, draw(st.integers(0, width - 1))] = 1.0
        return Subspace(site, direction, draw(by))

    return st.one_of(ablations, *([interchange()] if placed else []), *([subspace()] if wide else []))


def config_of(of: Any) -> TransformerConfig:
    """The configuration of a model, compiled program or subject. Raises `InputError`."""
    config = getattr(getattr(of, "model", of), "config", None)
    if not isinstance(config, TransformerConfig):
        raise InputError(f"circuits and interventions are of a model or a compiled program, got {of!r}")
    return config
