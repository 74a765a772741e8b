"""Where two runs part: a model beside a program's variables, or a model beside another (ablated, edited) one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compiler.alignment import Alignment, HeadRole, NeuronRole, encoding_matrix
from ..compiler.core import CoreProgram, Indices, Tokens
from ..compiler.core_batches import Evaluator
from ..compiler.core_json import core_to_json
from ..compiler.lower import lower
from ..compiler.rasp import SOp
from ..models.edits import Edited
from ..models.errors import InputError
from ..models.sites import sites
from ..models.transformer import Transformer
from ..models.values import Value
from ..verifier.claims import subject_of
from ..verifier.mechanism_bodies import writes
from ..verifier.reading import Subject, Vocabulary
from ..verifier.witness import show_value

TOLERANCE = 1e-4
"""Activations of two models that differ by no more than this (relative to the greater one above 1) are the same."""
SHOWN = 12


@dataclass(frozen=True)
class Step:
    """One site of a run. `positions`: where the two differ; -1 is BOS. `expected` and `got` are texts at the first."""

    site: str
    what: str
    positions: tuple[int, ...] = ()
    expected: str = ""
    got: str = ""

    @property
    def agrees(self) -> bool:
        return not self.positions

    def __str__(self) -> str:
        line = f"{self.site:<28}{self.what}"
        if self.agrees:
            return f"  = {line}"
        places = ", ".join("BOS" if at < 0 else str(at) for at in self.positions[:6])
        return f"  ! {line}: expected {self.expected}, got {self.got} (at position {places})"


@dataclass(frozen=True)
class Divergence:
    """Two runs, site by site in the order of computation, and the first site at which they differ."""

    title: str
    steps: tuple[Step, ...]

    @property
    def first(self) -> Step | None:
        """The first site that differs; None if none does."""
        return next((step for step in self.steps if not step.agrees), None)

    def __str__(self) -> str:
        wrong = [place for place, step in enumerate(self.steps) if not step.agrees]
        if not wrong:
            return f"{self.title}: no site differs"
        start = max(0, min(wrong[0] - 2, len(self.steps) - SHOWN))
        shown = [str(step) for step in self.steps[start : start + SHOWN]]
        left = [f"  ... {start} sites before these agree"] if start else []
        after = len(self.steps) - start - SHOWN
        left_after = [f"  ... {after} more sites"] if after > 0 else []
        return "\n".join([f"{self.title}; first at {self.steps[wrong[0]].site}", *left, *shown, *left_after])


def divergence(of: Any, other: Any, xs: Sequence[Value], *, codec: Any = None) -> Divergence:
    """Where the run of `of` (a model, or a compiled program) on the tokens `xs` parts from `other`.

    `other` None: `of` is a compiled program, and what each of its components writes is read back, through the
    alignment, as the value of the program's variable and compared with the variable's value. A program (s-op or core
    program): the same with that program's variables, matched by name, and its output. A model (edited or not): the
    activations at every site that both have. Raises `InputError` for tokens the model does not know, and for a model
    without an alignment where one is needed.
    """
    subject = subject_of(of, codec) if not isinstance(of, Edited) else Subject(of, codec)
    ids = torch.tensor([subject.codec.ids(xs)[int(subject.codec.bos) :]])
    if isinstance(getattr(other, "model", None), (Transformer, Edited)):
        other = other.model
    if isinstance(other, (Transformer, Edited)):
        return _between_models(subject, other, ids)
    if other is None or isinstance(other, (CoreProgram, SOp)):
        return _from_program(subject, other, ids)
    raise InputError(f"a run is compared with a program's, a model's or (None) the compiled program's, got {other!r}")


# A model and another one


def _between_models(subject: Subject, other: Transformer | Edited, ids: Tensor) -> Divergence:
    tokens, offset = subject.codec.with_bos(ids), int(subject.codec.bos)
    with torch.no_grad():
        clean, here = subject.model.run_with_cache(tokens)
        changed, there = other.run_with_cache(tokens)
    known = sites(subject.model.config)
    steps = []
    for name, value in here.items():
        if name in there and name in known and there[name].shape == value.shape:
            axes = known[name].axes
            steps.append(_site_step(name, axes, value, there[name], offset))
    steps.append(_site_step("logits", ("batch", "pos", "d_vocab_out")[: clean.dim()], clean, changed, offset))
    return Divergence("the two models' activations", tuple(steps))


def _site_step(name: str, axes: tuple[str, ...], a: Tensor, b: Tensor, offset: int) -> Step:
    scale = torch.maximum(a.abs(), b.abs()).clamp(min=1.0)
    apart = torch.where(torch.isfinite(a) & torch.isfinite(b), (a - b).abs() > TOLERANCE * scale, a != b)[0]
    along = next((axes.index(axis) - 1 for axis in ("pos", "query") if axis in axes), None)
    if not bool(apart.any()):
        return Step(name, "same")
    place = tuple(int(i) for i in apart.nonzero()[0])
    if along is None:
        positions: tuple[int, ...] = (0,)
    else:
        rest = [axis for axis in range(apart.dim()) if axis != along]
        where = apart.any(dim=rest) if rest else apart
        positions = tuple(int(i) - offset for i in where.nonzero()[:, 0])
        first = apart.select(along, positions[0] + offset).nonzero()[0].tolist()
        place = (*(int(i) for i in first[:along]), positions[0] + offset, *(int(i) for i in first[along:]))
    index = ", ".join(map(str, place))
    return Step(name, f"[{index}]", positions, f"{float(a[0][place]):.6g}", f"{float(b[0][place]):.6g}")


# A model and a program's variables


def _from_program(subject: Subject, program: CoreProgram | SOp | None, ids: Tensor) -> Divergence:
    alignment = subject.alignment
    if isinstance(program, SOp):
        config = subject.model.config
        program = lower(program, subject.codec.vocab, subject.longest, causal=bool(config.causal))
    if program is None and alignment is None:
        raise InputError("which program? this model has no alignment of its own: pass the program to compare with")
    core = program or (alignment.program if alignment else None)
    assert core is not None
    steps: list[Step] = []
    if alignment is not None:  # its program has the compiled one's nodes first, then auxiliary ones
        own = _is_prefix(core, alignment.program)
        steps = _variables(subject, alignment, alignment.program if own else core, ids)
    steps.append(_output(subject, core, ids))
    return Divergence(f"the model beside the variables of `{core.name}`", tuple(steps))


def _variables(subject: Subject, alignment: Alignment, core: CoreProgram, ids: Tensor) -> list[Step]:
    """What each component writes, read as a value of its node; those that write one node in one layer together."""
    source = alignment.program
    table = _counterparts(source, core)
    wanted = _values(subject, core, ids, tuple(table.values()))
    groups: dict[tuple[int, str, int], list[HeadRole | NeuronRole]] = {}
    components: tuple[HeadRole | NeuronRole, ...] = (*alignment.heads, *alignment.neurons)
    for role in components:
        kind = "attn" if isinstance(role, HeadRole) else "mlp"
        if writes(role) and role.node in table and table[role.node] in wanted:
            groups.setdefault((role.layer, kind, role.node), []).append(role)
    cache = _cache(subject, ids)
    steps = []
    for (layer, kind, node), roles in sorted(groups.items(), key=lambda item: item[0]):
        written = sum(_written(subject, cache, role) for role in roles)
        assert isinstance(written, Tensor)
        here, there = source.value_node(node), core.value_node(table[node])
        matrix = encoding_matrix(roles[0].encoding, len(here.values), subject.model.config.d_model)
        held = [here.values[i] for i in _nearest(written, matrix)]
        expected = [there.values[i] for i in wanted[table[node]][0].tolist()]
        steps.append(_compared(f"blocks.{layer}.{kind}", here.name or f"node {node}", expected, held))
    return steps


def _counterparts(source: CoreProgram, core: CoreProgram) -> dict[int, int]:
    """For nodes of the aligned program, the node of the other one: itself, or the node of its name."""
    if core is source:
        return {node: node for node in range(len(core.nodes)) if _is_variable(source, node)}
    names = {
        name: i for i, node in enumerate(core.nodes) if (name := getattr(node, "name", "")) and _is_variable(core, i)
    }
    named = {node: getattr(source.nodes[node], "name", "") for node in range(len(source.nodes))}
    return {node: names[name] for node, name in named.items() if name in names and _is_variable(source, node)}


def _is_prefix(core: CoreProgram, source: CoreProgram) -> bool:
    def nodes(program: CoreProgram) -> list[object]:
        found = core_to_json(program)["nodes"]
        return found if isinstance(found, list) else []

    same_setting = (core.vocab, core.max_len, core.causal) == (source.vocab, source.max_len, source.causal)
    return same_setting and nodes(core) == nodes(source)[: len(core.nodes)]


def _is_variable(program: CoreProgram, node: int) -> bool:
    found = program.nodes[node]
    return hasattr(found, "values") and not isinstance(found, (Tokens, Indices))


def _values(subject: Subject, core: CoreProgram, ids: Tensor, nodes: Sequence[int]) -> dict[int, Any]:
    """The nodes' value indices; those that are undefined on this input are left out."""
    words = Vocabulary(subject.codec.vocab, core.vocab).table[ids].numpy().astype(np.int64)
    found = {}
    evaluator = Evaluator(core)
    for node in nodes:
        trace = evaluator.run(words, (node,))
        if not trace.undefined[0]:
            found[node] = trace.values[node]
    return found


def _cache(subject: Subject, ids: Tensor) -> dict[str, Tensor]:
    layers = range(len(subject.model.config.layers))
    known = sites(subject.model.config)
    wanted = [f"blocks.{i}.attn.hook_result" for i in layers] + [f"blocks.{i}.mlp.hook_post" for i in layers]
    with torch.no_grad():
        return subject.model.run_with_cache(  # type: ignore[no-any-return]
            subject.codec.with_bos(ids), [name for name in wanted if name in known]
        )[1]


def _written(subject: Subject, cache: dict[str, Tensor], role: HeadRole | NeuronRole) -> Tensor:
    """What a component adds to the residual stream, [pos, d_model], without BOS."""
    offset = int(subject.codec.bos)
    if isinstance(role, HeadRole):
        return cache[f"blocks.{role.layer}.attn.hook_result"][0, offset:, role.head].to(torch.float64)
    first, end = role.neurons
    model = getattr(subject.model, "base", subject.model)
    post = cache[f"blocks.{role.layer}.mlp.hook_post"][0, offset:, first:end].to(torch.float64)
    weights: Tensor = model.parameter(f"blocks.{role.layer}.mlp.W_out")
    return post @ weights[first:end].detach().to(torch.float64)


def _nearest(written: Tensor, matrix: Any) -> list[int]:
    """For each position the value whose encoding is nearest on the encoding's coordinates."""
    points = torch.from_numpy(matrix)
    used = points.abs().sum(0) > 0
    return torch.cdist(written[:, used], points[:, used]).argmin(-1).tolist()


def _output(subject: Subject, core: CoreProgram, ids: Tensor) -> Step:
    found = _values(subject, core, ids, (core.output,))
    if not found:
        return Step("logits", "the program has no value on this input")
    node = core.value_node(core.output)
    expected = [node.values[i] for i in found[core.output][0].tolist()]
    if subject.model.config.readout != "each":
        expected = expected[-1:]
    reading = subject.reading(ids, "float32")[0]
    got = [subject.codec.outputs[o] for o in reading.to(torch.int8).argmax(-1).tolist()]
    return _compared("logits", f"{node.name or core.name} (decoded)", expected, got)


def _compared(site: str, what: str, expected: Sequence[Value], got: Sequence[Value]) -> Step:
    wrong = tuple(i for i, (a, b) in enumerate(zip(expected, got, strict=True)) if a != b)
    if not wrong:
        return Step(site, f"{what} = [{', '.join(map(show_value, got))}]")
    return Step(site, what, wrong, show_value(expected[wrong[0]]), show_value(got[wrong[0]]))
