"""The compiler's driver: RASP -> core program -> plan -> layout -> weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import torch

from ..models import Circuit, Codec, LayerConfig, Transformer, TransformerConfig, Value
from ..models.circuits import Edge, all_edges
from ..models.flow import Weights, read, written
from .analysis import Analysis, analyse
from .compiled import Compiled, Sizes
from .components import Axis, Unplannable
from .core import CoreProgram
from .emit import Emitted, emit
from .layout import lay_out
from .lower import CompileError, lower_with_hints
from .margins import design_margin
from .plan import Hint, Plan, plan
from .rasp import SOp

MAX_DEPTH = 20_000
"""Frames of the stack while a program is planned: some six for each step that needs the one before it."""
MAX_LAYERS = 512
SEARCH_SECONDS = 1.5
"""How long a refusal may look for a maximal length that works."""


def compile(
    program: SOp | CoreProgram,
    *,
    vocab: Iterable[Value] | None = None,
    max_len: int | None = None,
    causal: bool = False,
    bos: bool = True,
    reuse: bool = True,
    name: str | None = None,
) -> Compiled:
    """Compile a RASP program to a softmax transformer that computes it on every sequence of 1..max_len tokens.

    `vocab`: the tokens, all numbers or all strings. `causal`: position i sees positions up to i only. `bos`: put a
    beginning-of-sequence token first (needed where a selection can be empty or selected positions are counted).
    `reuse`: give the residual coordinates of dead values to new ones. An output marked `.numerical()` is read off one
    logit, one marked `.categorical()` off a logit per value; unmarked, the compiler chooses (and so inside the
    program). The same program gives the same bytes.

    Limits. At most 1024 positions. Counts are read off a head as 1 / (1 + count), so neighbouring counts near n lie
    1 / n^2 apart. Where all counts have to be told apart (a count that is the output, or says where to look) float32
    does so up to `max_len` 77 if the count may be 0 (`sort`), 98 if it is at least 1 (`hist`, `reverse`), so that a
    count takes at most 99 coordinates as a one-hot. Counts that are compared with small numbers, and averages of few
    values, go further: of the library over 4 tokens, 40 programs of 110 compile at 128. A one-hot value takes a
    coordinate for each of up to 4096 values, a map's table up to 6000 neurons and 2^20 entries, a selection 2^24 pairs
    of key and query values. `CompileError` says which limit was met and, where a smaller `max_len` helps, one that
    works. `Compiled.margin` is the margin by which outputs are read.

    Raises `CompileError` naming everything in the program that cannot be compiled, each with its place, reason and
    remedy.
    """
    hint: Hint = "auto"
    if isinstance(program, CoreProgram):
        core, source, analysis = program, None, analyse(program)
        origins: tuple[str, ...] = tuple(node.name or f"node {i}" for i, node in enumerate(core.nodes))
        if analysis.problems:
            found = [f"{origins[problem.node]}: {problem.reason}" for problem in analysis.problems]
            raise CompileError(f"cannot compile {core.name!r}:", found)
    else:
        lowered = lower_with_hints(program, vocab, max_len, causal, name)
        core, source, analysis, origins = lowered.core, program, lowered.analysis, lowered.origins
        hint = lowered.hints.get(core.output, "auto")
    try:
        planned = _plan_deep(core, analysis, bos, hint)
    except Unplannable as refused:
        problems = [f"{origins[problem.node]}: {problem.reason}" for problem in refused.problems]
        if isinstance(program, SOp) and all(problem.too_long for problem in refused.problems):
            problems += _shorter(program, core, bos)
        head = f"cannot compile {core.name!r} for {len(core.vocab)} tokens and length {core.max_len}:"
        raise CompileError(head, problems) from None
    layers = max([0, *(head.time // 2 + 1 for head in planned.heads), *(g.time // 2 + 1 for g in planned.groups)])
    if layers > MAX_LAYERS:
        raise CompileError(
            f"cannot compile {core.name!r}: its steps need one another in a chain that takes {layers} layers, more "
            f"than {MAX_LAYERS}; write it with fewer attention steps on top of each other"
        )
    layout = lay_out(planned, bos, reuse)
    codec = _codec(planned, core, bos)
    emitted = emit(planned, layout, bos, codec.outputs)
    config = _config(emitted, core, bos, codec)
    model = Transformer.from_parameters(config, {k: torch.from_numpy(v) for k, v in emitted.parameters.items()})
    circuit = Circuit.from_edges(_flowing(config, emitted.parameters), "any")
    sizes = Sizes(layout.d_model, layout.d_model_without)
    margin = design_margin(planned, layout, bos, emitted.bos_errors, len(codec.outputs))
    return Compiled(model, codec, circuit, emitted.alignment, core, sizes, source, margin=margin)


def _plan_deep(core: CoreProgram, analysis: Analysis, bos: bool, hint: Hint) -> Plan:
    """`plan`, which follows what needs what, with a stack as deep as that goes; the deepest programs are refused.

    The stack holds frames of our Python code alone (no user's function runs in it), so only memory limits it.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, MAX_DEPTH))
    try:
        return plan(core, analysis, bos, hint)
    except RecursionError:
        raise CompileError(
            f"cannot compile {core.name!r}: its attention and arithmetic steps nest too deeply, thousands on top of "
            "each other, each of which would be a layer or more of the model; write it with fewer"
        ) from None
    finally:
        sys.setrecursionlimit(limit)


def _shorter(program: SOp, core: CoreProgram, bos: bool) -> list[str]:
    """A line that names the largest maximal length that can be compiled, as far as it is found in `SEARCH_SECONDS`."""
    works, fails, started = 0, core.max_len, time.monotonic()
    while fails - works > 1 and time.monotonic() - started < SEARCH_SECONDS:
        length = min(2 * works or 64, (works + fails) // 2) if works or fails > 64 else (works + fails) // 2
        try:
            lowered = lower_with_hints(program, core.vocab, length, core.causal, core.name)
            _plan_deep(lowered.core, lowered.analysis, bos, lowered.hints.get(lowered.core.output, "auto"))
            works = length
        except (CompileError, Unplannable):
            fails = length
    if not works:
        return []
    return [f"the largest max_len that works is {works}" if fails == works + 1 else f"max_len {works} works"]


def _flowing(config: TransformerConfig, weights: Weights) -> list[Edge]:
    """The edges whose source writes a coordinate that the target reads: `models.flow.flowing` of the whole model."""
    edges = all_edges(config)
    writes = {source: written(source, weights) for source in {edge.src for edge in edges}}
    reads = {target: read(*target, weights) for target in {(edge.dst, edge.slot) for edge in edges}}
    return [edge for edge in edges if (writes[edge.src] & reads[edge.dst, edge.slot]).any()]


def _codec(planned: Plan, core: CoreProgram, bos: bool) -> Codec:
    values = core.value_node(core.output).values
    if isinstance(planned.decode, Axis):
        return Codec(core.vocab, bos, "scalar", values, tuple(float(p) for p in planned.decode.points), core.max_len)
    return Codec(core.vocab, bos, "categorical", values, (), core.max_len)


def _config(emitted: Emitted, core: CoreProgram, bos: bool, codec: Codec) -> TransformerConfig:
    shift = 1 if bos else 0
    return TransformerConfig(
        d_model=emitted.d_model,
        n_ctx=core.max_len + shift,
        d_vocab=len(core.vocab) + shift,
        d_vocab_out=len(codec.outputs) if codec.kind == "categorical" else 1,
        layers=tuple(LayerConfig(*sizes) for sizes in emitted.layers),
        activation="relu",
        causal=core.causal,
        attention_scale=1.0,
    )
