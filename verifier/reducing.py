"""Claims about a circuit alone as claims about a model: its own, on the domain's words or on pairs of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..models.automata import Automaton
from ..models.labels import LabelMachine
from ..models.languages import sequences
from ..models.token_language import Language
from ..models.transformer import Transformer
from .balls import Unsupported
from .label_bodies import LabelMarginBody, LabelsBody, token_places
from .reading import Subject

Labelled = TypeVar("Labelled", bound=LabelsBody | LabelMarginBody)
MAX_CELLS = 2**22
MAX_STATES = 256
"""Of a machine of states on pairs; where the two inputs' states would be more, only the first input's are read."""


def plain(body: Labelled, domain: Language) -> tuple[Labelled, Language]:
    """The same about the circuit's own model; of pairs, on words of pairs. Raises `Unsupported` where there is none."""
    if body.alone is None:
        return body, domain
    subject = body.alone.reduced
    if body.alone.arity == 1:
        return replace(body, subject=subject, alone=None), domain
    machine = _on_first(body.machine)
    states = None if body.states is None else _on_pairs(body.states)
    found = replace(body, subject=subject, machine=machine, states=states, alone=None)
    return found, pairs(body.subject, domain)


def pairs(subject: Subject, domain: Language) -> Language:
    """Pairs of words of equal length as words of pairs; tokens are numbered as the circuit's own model reads them."""
    if domain.distinct:
        raise Unsupported("pairs of words without repetition are not covered")
    codec, size = subject.codec, len(subject.codec.vocab)
    lengths = [n for n in domain.lengths if domain.size(n)]
    alphabets = {domain.alphabet(n) for n in lengths}
    if domain.is_product() and len(alphabets) == 1:
        ids = sorted(codec.index[token] for token in alphabets.pop())
        return sequences([x * size + y for x in ids for y in ids], lengths)
    order = sorted(range(len(domain.vocab)), key=lambda t: codec.index[domain.vocab[t]])
    step = domain.automaton.transitions[:, order].astype(np.int64)
    count, width = step.shape
    if (count * width) ** 2 > MAX_CELLS:
        raise Unsupported("the domain's automaton is too large for pairs of words")
    both = step[:, None, :, None] * count + step[None, :, None, :]
    accepting = domain.automaton.accepting
    automaton = Automaton(
        both.reshape(count * count, width * width).astype(np.int32), (accepting[:, None] & accepting).reshape(-1)
    )
    ids = [codec.index[domain.vocab[t]] for t in order]
    return Language(tuple(x * size + y for x in ids for y in ids), tuple(lengths), automaton.minimised())


def narrowed(body: LabelsBody, letters: npt.NDArray[np.int64]) -> LabelsBody:
    """The same about a model that has these tokens only, in this order."""
    model, codec = body.subject.model, body.subject.codec
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    weights["embed.W_E"] = weights["embed.W_E"][torch.from_numpy(letters)]
    small = Transformer.from_parameters(replace(model.config, d_vocab=len(letters)), weights)
    subject = Subject(small, replace(codec, vocab=tuple(range(len(letters)))))
    return replace(
        body, subject=subject, machine=replace(body.machine, transitions=body.machine.transitions[:, letters])
    )


def places(body: LabelsBody, domain: Language) -> dict[int, int]:
    """As `token_places`, of the tokens that are counted; pairs have their rank as number, and a theorem's place."""
    found = token_places(body.subject, domain)
    if body.arity == 1:
        return found
    pairs_of = sorted((x, y) for x in found for y in found)
    return {rank: found[x] * len(found) + found[y] for rank, (x, y) in enumerate(pairs_of)}


def _on_first(machine: LabelMachine) -> LabelMachine:
    """The machine that reads the first of each pair of tokens."""
    return replace(machine, transitions=np.repeat(machine.transitions, machine.transitions.shape[1], axis=1))


def _on_pairs(states: LabelMachine) -> LabelMachine:
    """The states of both inputs, if they are few; else those of the first."""
    step = states.transitions.astype(np.int64)
    count, width = step.shape
    if count * count > MAX_STATES:
        return _on_first(states)
    both = step[:, None, :, None] * count + step[None, :, None, :]
    transitions = both.reshape(count * count, width * width).astype(np.int32)
    return LabelMachine(transitions, np.zeros(count * count, dtype=np.int64))
