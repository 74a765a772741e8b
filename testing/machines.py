"""Stateful testing of interventions: any sequence of edits and their undoing leaves the model what it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ..models.edits import Edit, Edited, edit
from ..models.errors import InputError
from ..models.languages import Language
from ..models.transformer import Transformer
from ..verifier.claims import subject_of
from .circuit_strategies import interventions


def intervention_machine(of: Any, domain: Language, *, codec: Any = None) -> type[RuleBasedStateMachine]:
    """A state machine of edits on one model; `intervention_machine(...).TestCase` is a test class.

    Rules: apply a list of edits to the model as it is edited now, undo the last list, undo any list, start afresh.
    After every step it checks, to the last bit, on a fixed input of the domain (and a copy of the model):

    - the weights and the outputs of the base model are what they were before the first edit;
    - the edited model gives what `edit(base, *all edits at once)` gives, however it was come by;
    - with nothing left to undo, the outputs are the base model's.

    Raises `InputError` for an empty domain.
    """
    subject = subject_of(of, codec)
    if domain.is_empty:
        raise InputError(f"{domain!r} is empty: there is no input to run; widen its lengths or its vocabulary")
    if not isinstance(subject.model, Transformer):
        raise InputError("the machine edits a Transformer or a compiled program, not an edited copy")
    base = subject.model
    length = max(n for n in domain.lengths if domain.size(n))
    word = domain.restricted(length).sample(0, 1)[0]
    tokens = torch.tensor([subject.codec.ids(word)])
    before, digest = _run(base, tokens), base.weights_sha256()
    drawn = interventions(subject, length, stream=False)

    class InterventionMachine(RuleBasedStateMachine):
        """`lists`: the edits in force; `now`: the model with them, made step by step."""

        def __init__(self) -> None:
            super().__init__()
            self.base = copy.deepcopy(base)
            self.lists: list[list[Edit]] = []
            self.now: Transformer | Edited = self.base

        @rule(edits=drawn)
        def apply(self, edits: list[Edit]) -> None:
            self.lists.append(edits)
            self.now = edit(self.now, *edits)

        @precondition(lambda self: self.lists)
        @rule()
        def undo_the_last(self) -> None:
            self.lists.pop()
            self.now = edit(self.base, *(one for edits in self.lists for one in edits))

        @precondition(lambda self: self.lists)
        @rule(data=st.data())
        def undo_any(self, data: st.DataObject) -> None:
            self.lists.pop(data.draw(st.integers(0, len(self.lists) - 1)))
            self.now = self.base
            for edits in self.lists:
                self.now = edit(self.now, *edits)

        @precondition(lambda self: self.lists)
        @rule()
        def start_afresh(self) -> None:
            self.lists, self.now = [], self.base

        @invariant()
        def the_base_is_untouched(self) -> None:
            assert self.base.weights_sha256() == digest, "an edit changed the weights of the model it was applied to"
            assert torch.equal(_run(self.base, tokens), before), (
                "an edit changed the outputs of the model it was applied to"
            )

        @invariant()
        def edits_add_up(self) -> None:
            at_once = edit(self.base, *(one for edits in self.lists for one in edits))
            assert torch.equal(_run(self.now, tokens), _run(at_once, tokens)), "the order in time of edits matters"

        @invariant()
        def nothing_is_left_behind(self) -> None:
            if not self.lists:
                assert torch.equal(_run(self.now, tokens), before), "an undone edit left something behind"

    return InterventionMachine


def _run(model: Transformer | Edited, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)
