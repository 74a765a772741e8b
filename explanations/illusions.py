"""The illusion zoo: small models with an explanation that looks right and is wrong, each beside a clean control.

Every model is made by hand, its mechanism is known, and the story is one that a usual evaluation would accept (patching
works, samples agree, the gradient is zero, ...). A judge of explanations should flag all illusions and no control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.circuits import Circuit
from ..models.codec import Codec
from ..models.config import LayerConfig, TransformerConfig
from ..models.errors import InputError
from ..models.languages import Language, sequences
from ..models.stories import CircuitStory, EffectStory, Story, SubspaceStory
from ..models.transformer import Transformer

WORD = (1, 3, 0, 2, 1, 0)
"""The one input on which the circuit of `one_in_a_million` is wrong (of ten tokens; a prefix, for shorter inputs)."""


@dataclass(frozen=True, eq=False)
class Illusion:
    """A model, how to read it, the inputs, and a story about it. `clean`: the story is true (a control).

    `looks_right`: why a usual evaluation accepts the story; `truth`: what is the case.
    """

    name: str
    clean: bool
    model: Transformer
    codec: Codec
    domain: Language
    story: Story
    looks_right: str
    truth: str


def illusions(length: int = 6) -> tuple[Illusion, ...]:
    """All of them, each followed by its control. `length`: of the inputs of `one_in_a_million`, which has 10^length.

    Raises `InputError` unless 1 <= length <= 6.
    """
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= len(WORD):
        raise InputError(f"length must be an integer from 1 to {len(WORD)}, got {length!r}")
    makers: tuple[Callable[[bool], Illusion], ...] = (
        dormant_pathway, backup_head, cancelling_pair, vacuous_alignment, zero_gradient_edge, two_circuits,
        lambda clean: one_in_a_million(clean, length),
    )  # fmt: skip
    return tuple(make(clean) for make in makers for clean in (False, True))


def dormant_pathway(clean: bool) -> Illusion:
    """Makelov, Lange and Nanda (2023): patching a direction works, through a pathway that is never used.

    Of the stream after the first layer, coordinate 0 holds the sign that decides, and 1 holds it too, but nothing reads
    that; 2 would be read by the second layer's neurons, but the first layer's neuron, which writes it, never fires. The
    direction between 1 and 2 carries the sign from 1 into 2, and the neurons write it into 3, which the read-out adds.
    """
    model = _model(4, _layer(0, 1), _layer(0, 2), outputs=2)
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.tensor([[-1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
        model.parameter("blocks.0.mlp.W_in")[0, 0] = 1.0
        model.parameter("blocks.0.mlp.b_in")[0] = -2.0
        model.parameter("blocks.0.mlp.W_out")[0, 2] = 1.0
        model.parameter("blocks.1.mlp.W_in")[2] = torch.tensor([1.0, -1.0])
        model.parameter("blocks.1.mlp.W_out")[:, 3] = torch.tensor([3.0, -3.0])
        model.parameter("unembed.W_U")[[0, 3]] = torch.tensor([-1.0, 1.0])
    direction = torch.tensor([[1.0, 0.0, 0.0, 0.0]]) if clean else torch.tensor([[0.0, 0.5**0.5, 0.5**0.5, 0.0]])
    story = SubspaceStory("blocks.1.hook_resid_pre", direction)
    return Illusion(
        "dormant pathway", clean, model, _bits(), sequences((0, 1), 1), story,
        "patching the direction from a source gives the source's output, always",
        "the direction is the one that is read" if clean
        else "coordinate 0 decides, which the direction does not touch; what of the direction is read never varies",
    )  # fmt: skip


def backup_head(clean: bool) -> Illusion:
    """McGrath et al. (2023), the Hydra effect: a later head does an ablated head's work, and nothing otherwise."""
    model = _model(2, _layer(1, 0), _layer(1, 0), outputs=2)
    with torch.no_grad():
        model.parameter("embed.W_E")[:, 0] = torch.tensor([-1.0, 1.0])
        for layer in (0, 1):
            model.parameter(f"blocks.{layer}.attn.W_V")[0, 0, 0] = 0.0 if layer and clean else 1.0
            model.parameter(f"blocks.{layer}.attn.W_O")[0, 0, 1] = 1.0
        model.parameter("blocks.1.attn.W_V")[0, 1, 0] = 0.0 if clean else -1.0
        model.parameter("unembed.W_U")[1] = torch.tensor([-1.0, 1.0])
        model.parameter("unembed.b_U")[0] = 0.25
    circuit = Circuit.from_edges(["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"], "zero")
    return Illusion(
        "backup head", clean, model, _bits(), sequences((0, 1), 1), CircuitStory(circuit, complete=1),
        "the circuit alone decides as the model does, and without head a0.h0 it does not",
        "nothing else decides" if clean
        else "without a0.h0 the model decides all the same, by a1.h0: the circuit is not complete",
    )  # fmt: skip


def cancelling_pair(clean: bool) -> Illusion:
    """Two heads that undo each other: without either the output changes, without both it does not."""
    model = _model(2, _layer(2, 0), outputs=1)
    with torch.no_grad():
        model.parameter("embed.W_E")[:, 0] = torch.tensor([-1.0, 1.0])
        for head, writes in enumerate((1.0, 1.0) if clean else (2.0, -2.0)):
            model.parameter("blocks.0.attn.W_V")[head, 0, 0] = 1.0
            model.parameter("blocks.0.attn.W_O")[head, 0, 1] = writes
        model.parameter("unembed.W_U")[:, 0] = torch.tensor([-1.0 if clean else 1.0, 1.0])
    outputs = (-3, -1, 0, 1, 3)
    codec = Codec((0, 1), False, "scalar", outputs, tuple(float(y) for y in outputs), 1)
    every = ["input->logits", "a0.h0->logits", "a0.h1->logits"]
    every += [f"input->a0.h{head}<{slot}>" for head in (0, 1) for slot in "qkv"]
    story = CircuitStory(Circuit.from_edges(every, "zero"), minimal=2)
    return Illusion(
        "cancelling pair", clean, model, codec, sequences((0, 1), 1), story,
        "ablating either head changes the output, so both look necessary",
        "both heads are needed" if clean else "without both heads together the output is the same: they do nothing",
    )  # fmt: skip


def vacuous_alignment(clean: bool) -> Illusion:
    """Sutter et al. (2025): with an alignment map that may hold anything, any model "implements" any algorithm.

    Here the map is onto a subspace as wide as the stream, of a model with random weights: whatever is patched is all.
    """
    generator = torch.Generator().manual_seed(0)
    model = _model(4, _layer(1, 4), outputs=2, vocab=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if clean:  # the read-out sees one direction of the stream
            direction = torch.linalg.qr(torch.randn(4, 1, generator=generator)).Q.T.contiguous()
            model.parameter("unembed.W_U").copy_(direction.T @ torch.tensor([[1.0, -1.0]]))
            model.parameter("unembed.b_U").zero_()
    directions = direction if clean else torch.eye(4)
    codec = Codec((0, 1, 2, 3), False, "categorical", (0, 1), (), 1)
    story = SubspaceStory("blocks.0.hook_resid_post", directions)
    return Illusion(
        "vacuous alignment", clean, model, codec, sequences(range(4), 1), story,
        "every interchange intervention in the subspace gives the source's output",
        "the read-out sees this one direction" if clean
        else "so does patching the stream itself: nothing is explained",
    )  # fmt: skip


def zero_gradient_edge(clean: bool) -> Illusion:
    """Attribution patching gives an edge the score zero where a neuron is off, whatever it does when it is on."""
    model = _model(1, _layer(0, 1), outputs=2)
    with torch.no_grad():
        model.parameter("embed.W_E")[:, 0] = torch.tensor([0.0, 1.0])
        model.parameter("blocks.0.mlp.W_in")[0, 0] = 1.0
        model.parameter("blocks.0.mlp.b_in")[0] = -1.0 if clean else -0.5
        model.parameter("blocks.0.mlp.W_out")[0, 0] = 8.0
        model.parameter("unembed.W_U")[0] = torch.tensor([0.0, 1.0])
    return Illusion(
        "zero-gradient edge", clean, model, _bits(), sequences((0, 1), 1),
        EffectStory("input->m0", torch.tensor([-1.0, 1.0]), 0.0, 0.25),
        "on token 0 the gradient along the edge is zero, and so is its attribution score",
        "the neuron is off on every input" if clean else "token 1 as source switches the neuron on",
    )  # fmt: skip


def two_circuits(clean: bool) -> Illusion:
    """Two heads that each do all: either is a faithful circuit, and neither is the mechanism (Meloux et al., 2025)."""
    model = _model(2, _layer(2, 0), outputs=2)
    with torch.no_grad():
        model.parameter("embed.W_E")[:, 0] = torch.tensor([-1.0, 1.0])
        for head in (0, 1):
            model.parameter("blocks.0.attn.W_V")[head, 0, 0] = 1.0
            model.parameter("blocks.0.attn.W_O")[head, 0, 1] = 0.0 if clean and head else 1.0
        model.parameter("unembed.W_U")[1] = torch.tensor([-1.0, 1.0])
        model.parameter("unembed.b_U")[0] = 0.25
    circuit = Circuit.from_edges(["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"], "zero")
    return Illusion(
        "two circuits", clean, model, _bits(), sequences((0, 1), 1), CircuitStory(circuit, minimal=1, unique=True),
        "the circuit alone decides as the model does, and not without its head",
        "nothing else decides" if clean else "the other head decides as well: the circuit is one of two",
    )  # fmt: skip


def one_in_a_million(clean: bool, length: int = 6) -> Illusion:
    """A circuit that agrees with the model on all inputs but one, of 10^length.

    Neuron i of the first layer finds token WORD[i] at position i, the second layer's head averages over positions, and
    its neuron fires if all are found; the circuit leaves that neuron out. In the control it never fires.
    """
    vocab, d = 10, 10 + length + 2
    model = _model(d, _layer(0, length), _layer(1, 1), outputs=2, vocab=vocab, n_ctx=length, readout="last")
    found, decides = 10 + length, 10 + length + 1
    with torch.no_grad():
        model.parameter("embed.W_E")[:, :vocab] = torch.eye(vocab)
        model.parameter("embed.W_E")[:, decides] = -1.0
        model.parameter("pos_embed.W_pos")[:, vocab : vocab + length] = torch.eye(length)
        for place, token in enumerate(WORD[:length]):
            model.parameter("blocks.0.mlp.W_in")[[token, vocab + place], place] = 1.0
            model.parameter("blocks.0.mlp.b_in")[place] = -1.0
            model.parameter("blocks.0.mlp.W_out")[place, found] = 1.0
        model.parameter("blocks.1.attn.W_V")[0, found, 0] = 1.0
        model.parameter("blocks.1.attn.W_O")[0, 0, found] = float(2 * length)
        # the last position reads what it found itself, 0 or 1, and twice the count of what was found
        model.parameter("blocks.1.mlp.W_in")[found, 0] = 1.0
        model.parameter("blocks.1.mlp.b_in")[0] = -(2.0 * length + 1) + (-1.0 if clean else 0.5)
        model.parameter("blocks.1.mlp.W_out")[0, decides] = 4.0
        model.parameter("unembed.W_U")[decides] = torch.tensor([-1.0, 1.0])
    circuit = Circuit.from_edges(["input->logits"], "zero")
    codec = Codec(tuple(range(vocab)), False, "categorical", (False, True), (), length)
    return Illusion(
        f"one in 10^{length}", clean, model, codec, sequences(range(vocab), length), CircuitStory(circuit),
        "the circuit decides as the model does on every one of many thousand random inputs",
        "the neuron that could change the output never fires" if clean
        else f"on {list(WORD[:length])}, and on no other input, the model decides differently",
    )  # fmt: skip


def _layer(heads: int, neurons: int) -> LayerConfig:
    return LayerConfig(heads, 1 if heads else 0, neurons)


def _model(
    d_model: int, *layers: LayerConfig, outputs: int, vocab: int = 2, n_ctx: int = 1, readout: str = "each"
) -> Transformer:
    """A model whose weights are all zero."""
    config = TransformerConfig(d_model, n_ctx, vocab, outputs, layers, readout=readout)  # type: ignore[arg-type]
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def _bits() -> Codec:
    return Codec((0, 1), False, "categorical", (0, 1), (), 1)
