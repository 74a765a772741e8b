"""Small transformers made by hand, with alignments and claims; and engines with one line of their source changed.

`Parts` is a model, its explanation and a claim about it as plain, changeable data. `mutated_engine` executes the
sources of the proof engine again, one of them changed, into fresh module objects; nothing on disk or in the running
engine changes.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from certiformer.compiler.alignment import Alignment, HeadRole, NeuronRole, OneHot
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core import (
    CoreProgram,
    Indices,
    Map,
    Node,
    Tokens,
    Value,
)
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig, parameter_shapes
from certiformer.models.languages import Language, sequences
from certiformer.models.transformer import Transformer
from certiformer.verifier.claims import Claim, Computes
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.reading import Subject
from certiformer.verifier.verdicts import Certificate

Array = np.ndarray[Any, np.dtype[np.float32]]

VOCAB: tuple[Value, ...] = ("a", "b", "c")
LENGTH = 3
TOKENS, PLACES, BOS, OUT, SPARE = range(3), range(3, 6), 6, range(7, 10), range(10, 16)
D_MODEL = 16
ONE_HOT = OneHot(tuple(OUT))


# --- a model, its explanation, a claim -----------------------------------------------------------------------------


@dataclass
class Parts:
    """Everything a claim consists of, to be changed by tests. `source`: the nodes that the claim is about."""

    config: dict[str, Any]
    weights: dict[str, Array]
    program: CoreProgram
    codec: Codec
    heads: list[HeadRole] = field(default_factory=list)
    neurons: list[NeuronRole] = field(default_factory=list)
    sums: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    shares: list[tuple[int, int, int]] = field(default_factory=list)
    reads: tuple[int, ...] = (0,)
    source: int | None = None
    domain: Language | None = None
    claim_of: Callable[[Subject, CoreProgram], Claim] = Computes

    @staticmethod
    def of(compiled: Compiled) -> Parts:
        """A compiled model, opened up."""
        config = {name: getattr(compiled.model.config, name) for name in compiled.model.config.__dataclass_fields__}
        weights = {name: p.detach().numpy().copy() for name, p in compiled.model.named_parameters()}
        a = compiled.alignment
        made = Parts(config, weights, a.program, compiled.codec, [*a.heads], [*a.neurons])
        made.sums, made.shares = dict(a.width_sums), [*a.width_shares]
        made.reads, made.source = a.decode_reads, a.n_source
        return made

    def copy(self) -> Parts:
        weights = {name: array.copy() for name, array in self.weights.items()}
        made = copy.copy(self)
        made.weights, made.config = weights, dict(self.config)
        made.heads, made.neurons = list(self.heads), list(self.neurons)
        made.sums, made.shares = dict(self.sums), list(self.shares)
        return made

    def __getitem__(self, name: str) -> Array:
        """A parameter by its name, `blocks.` left out."""
        return self.weights[name if name in self.weights else f"blocks.{name}"]

    def model(self) -> Transformer:
        parameters = {name: torch.from_numpy(array.astype(np.float32)) for name, array in self.weights.items()}
        return Transformer.from_parameters(TransformerConfig(**self.config), parameters)

    def claim(self) -> Claim:
        n = len(self.program.nodes) if self.source is None else self.source
        p = self.program
        core = CoreProgram(p.vocab, p.max_len, p.causal, p.nodes[:n], p.output, p.name)
        sums = tuple(sorted(self.sums.items()))
        alignment = Alignment(p, n, tuple(self.heads), tuple(self.neurons), sums, self.reads, tuple(self.shares))
        return self.claim_of(Subject(self.model(), self.codec, alignment), core)

    def inputs(self) -> Language:
        return self.domain or sequences(self.program.vocab, range(1, self.program.max_len + 1))


def proves(engine: Callable[[Claim, Language], object], parts: Parts) -> bool:
    """Whether an engine gives a certificate. Numpy may warn in a mutated engine; the verdict is what counts."""
    with np.errstate(all="ignore"):
        return isinstance(engine(parts.claim(), parts.inputs()), Certificate)


def is_true(parts: Parts) -> bool:
    """Whether the claim holds, by rigorous enumeration; one about inputs that the model cannot read does not."""
    claim, domain = parts.claim(), parts.inputs()
    if max(domain.lengths) > claim.subject.longest:
        return False
    tally = enumerate_inputs(claim, domain, 60)
    assert tally.semantics == "real", tally.obstacle
    assert tally.complete or tally.false, "enumeration must not run out of time"
    assert tally.false or not tally.undecided, "enumeration must decide"
    return tally.true == tally.total


# --- hand-made parts -----------------------------------------------------------------------------------------------


def core(*nodes: Node, output: int | None = None, causal: bool = False, length: int = LENGTH) -> CoreProgram:
    """A program over a, b, c whose nodes 0 and 1 are `tokens` and `indices`."""
    every = (Tokens(VOCAB), Indices(tuple(range(length))), *nodes)
    return CoreProgram(VOCAB, length, causal, every, len(every) - 1 if output is None else output, "hand-made")


def table(related: Callable[[int, int], bool], keys: int = 3, queries: int = 3) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """related(key value, query value)."""
    return np.array([[related(k, q) for q in range(queries)] for k in range(keys)], dtype=bool)


def mapping(args: Sequence[int], entries: Any, values: Sequence[Value]) -> Map:
    return Map(tuple(args), np.array(entries, dtype=np.int32), tuple(values))


def blank(
    program: CoreProgram,
    layers: Sequence[tuple[int, int, int]],
    outputs: Sequence[Value] = VOCAB,
    points: Sequence[float] = (),
    bos: bool = True,
    **config: Any,
) -> Parts:
    """No weights but the embeddings: tokens, places and BOS one-hot; layers of (heads, d_head, d_mlp)."""
    n = program.max_len
    settings: dict[str, Any] = {
        "d_model": D_MODEL,
        "n_ctx": n + bos,
        "d_vocab": 3 + bos,
        "d_vocab_out": 1 if points else len(outputs),
        "layers": tuple(LayerConfig(*sizes) for sizes in layers),
        "causal": program.causal,
        "attention_scale": 1.0,
        **config,
    }
    shapes = parameter_shapes(TransformerConfig(**settings))
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    for t in range(3):
        weights["embed.W_E"][t, TOKENS[t]] = 1
    for i in range(min(n, len(PLACES))):
        weights["pos_embed.W_pos"][i + bos, PLACES[i]] = 1
    if bos:
        weights["embed.W_E"][3, BOS] = 1
    codec = Codec(VOCAB, bos, "scalar" if points else "categorical", tuple(outputs), tuple(points), n)
    return Parts(settings, weights, program, codec)


def unembed(parts: Parts, dims: Sequence[int], gain: float = 1.0) -> None:
    for output, dim in enumerate(dims):
        parts["unembed.W_U"][dim, output] = gain


def echo() -> Parts:
    """No layers: the output is the token."""
    parts = blank(core(), [])
    parts.program = CoreProgram(VOCAB, LENGTH, False, parts.program.nodes, 0, "echo")
    unembed(parts, TOKENS)
    return parts


# --- engines with one change ---------------------------------------------------------------------------------------

ENGINE = (
    "compiler.ranges",
    "compiler.means",
    "compiler.widths",
    "compiler.resolving",
    "compiler.analysis",
    "compiler.fibres",
    "compiler.first_position",
    "verifier.rounding",
    "verifier.selector_identity",
    "verifier.mean_sums",
    "verifier.abstract_state",
    "verifier.head_rule",
    "verifier.composition",
    "verifier.suspects",
    "verifier.compose",
)
"""The modules that a proof by composition rests on, each after what it imports."""


class Plant(NamedTuple):
    """In `module`, `old` becomes `new`; `why` that is unsound; `claim`: a false claim that is then certified."""

    module: str
    old: str
    new: str
    why: str
    claim: str


class Outdated(AssertionError):
    """The line to be changed is no longer there: bring the table up to date."""


def source_of(module: str) -> str:
    return Path(str(importlib.import_module(f"certiformer.{module}").__file__)).read_text(encoding="utf-8")


def mutated_source(module: str, old: str, new: str) -> str:
    """The source of a module with `old`, which must occur exactly once, replaced."""
    source = source_of(module)
    if source.count(old) != 1:
        raise Outdated(f"{module} contains {source.count(old)} times, not once:\n{old}")
    return source.replace(old, new)


def mutated_module(module: str, old: str, new: str) -> ModuleType:
    """A module executed anew from its changed source; the imported one stays as it is."""
    changed = ModuleType(f"certiformer.{module}")
    changed.__package__ = changed.__name__.rpartition(".")[0]
    exec(compile(mutated_source(module, old, new), f"<mutated {module}>", "exec", dont_inherit=True), changed.__dict__)
    return changed


@cache
def _code(module: str) -> CodeType:
    return compile(source_of(module), f"<{module}>", "exec", dont_inherit=True)


def _executed(module: str, code: CodeType) -> ModuleType:
    """A fresh module in place of the imported one, from here on until `_restored`."""
    name = f"certiformer.{module}"
    fresh = ModuleType(name)
    fresh.__package__, fresh.__file__ = name.rpartition(".")[0], f"<{module}>"
    sys.modules[name] = fresh
    setattr(sys.modules[fresh.__package__], name.rpartition(".")[2], fresh)
    exec(code, fresh.__dict__)
    return fresh


@contextmanager
def mutated_engine(module: str, old: str, new: str) -> Iterator[Callable[[Claim, Language], object]]:
    """`prove_by_composition` with one text of one module replaced, and all that depends on it executed again.

    Nothing on disk changes; the modules that were imported before are in place again afterwards.
    """
    changed = compile(mutated_source(module, old, new), f"<mutated {module}>", "exec", dont_inherit=True)
    before = {name: importlib.import_module(f"certiformer.{name}") for name in ENGINE}
    try:
        start = ENGINE.index(module)
        made = {name: _executed(name, changed if name == module else _code(name)) for name in ENGINE[start:]}
        yield made["verifier.compose"].prove_by_composition
    finally:
        for name, original in before.items():
            full = f"certiformer.{name}"
            sys.modules[full] = original
            setattr(sys.modules[full.rpartition(".")[0]], full.rpartition(".")[2], original)
