"""The compiler's driver: RASP -> core program -> plan -> layout -> weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..models import Circuit, Codec, LayerConfig, Transformer, TransformerConfig, Value
from ..models.flow import flowing
from .analysis import analyse
from .compiled import Compiled, Sizes
from .components import Axis, PlanError
from .core import CoreProgram
from .emit import Emitted, emit
from .layout import lay_out
from .lower import CompileError, lower_with_hints
from .plan import Hint, Plan, plan
from .rasp import SOp


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

    Raises `CompileError` naming everything in the program that cannot be compiled, each with its place, reason and
    remedy.
    """
    hint: Hint = "auto"
    if isinstance(program, CoreProgram):
        core, source = program, None
    else:
        lowered = lower_with_hints(program, vocab, max_len, causal, name)
        core, source = lowered.core, program
        hint = lowered.hints.get(core.output, "auto")
    try:
        planned = plan(core, analyse(core), bos, hint)
    except PlanError as error:
        node = core.nodes[error.node] if error.node < len(core.nodes) else None
        label = (node.name if node is not None else "") or f"node {error.node}"
        raise CompileError(f"cannot compile {core.name}: {label}: {error.reason}") from None
    layout = lay_out(planned, bos, reuse)
    codec = _codec(planned, core, bos)
    emitted = emit(planned, layout, bos, codec.outputs)
    config = _config(emitted, core, bos, codec)
    model = Transformer.from_parameters(config, {k: torch.from_numpy(v) for k, v in emitted.parameters.items()})
    circuit = Circuit.from_edges(flowing(Circuit.from_edges((), "any"), config, emitted.parameters), "any")
    return Compiled(
        model, codec, circuit, emitted.alignment, core, Sizes(layout.d_model, layout.d_model_without), source
    )


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
