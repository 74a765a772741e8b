"""Label machines against the rules of their tasks: on every word of small domains, on samples of large ones."""

from __future__ import annotations

import numpy as np
import pytest

import certiformer as cf
from certiformer.models.labels import LabelMachine
from certiformer.models.task_library import TASKS, get_task
from certiformer.verifier.task_claims import Labels

SMALL: list[tuple[str, dict[str, int]]] = [
    ("max-of-3", {"vocab": 5}),
    ("max-of-1", {"vocab": 2}),
    ("modular-addition-7", {}),
    ("modular-addition-2", {}),
    ("most-frequent-5", {"vocab": 3}),
    ("most-frequent-8", {"vocab": 2}),
    ("induction-6", {"vocab": 3}),
    ("induction-2", {"vocab": 4}),
    ("induction-5", {"vocab": 4}),
    ("quotes-5", {"letters": 2}),
    ("quotes-4", {"letters": 0}),
    ("dyck-1-2", {}),
    ("dyck-1-10", {}),
    ("dyck-2-6", {}),
    ("bracket-type-7", {"depth": 3}),
    ("bracket-type-5", {"depth": 1}),
]
LARGE = [
    "induction-12",
    "max-of-10",
    "modular-addition-113",
    "quotes-12",
    "dyck-1-16",
    "dyck-1-40",
    "dyck-2-12",
    "bracket-type-12",
]


def machine_of(name: str, parameters: dict[str, int]) -> LabelMachine:
    machine = get_task(name, **parameters).machine
    assert machine is not None
    return machine


@pytest.mark.parametrize(("name", "parameters"), SMALL, ids=[f"{name}-{p}" for name, p in SMALL])
def test_every_word_of_a_small_domain(name: str, parameters: dict[str, int]) -> None:
    task, machine = get_task(name, **parameters), machine_of(name, parameters)
    seen = 0
    for ids in task.domain.batches(4096):
        assert (machine.run(ids) == task.labels(ids)).all()
        seen += len(ids)
    assert seen == task.domain.size() > 0


@pytest.mark.parametrize("name", LARGE)
def test_samples_of_large_domains_and_of_training_batches(name: str) -> None:
    task, machine = get_task(name), machine_of(name, {})
    rng = np.random.default_rng(0)
    for ids in [*task.draw(rng, 2000), task.domain.sample_length(rng, task.max_len, 2000)]:
        inside = task.domain.contains_ids(ids)
        assert (machine.run(ids[inside]) == task.labels(ids[inside])).all()


def test_words_without_a_label_get_none() -> None:
    assert machine_of("modular-addition-5", {}).run(np.array([[1, 5, 2], [1, 2, 3], [5, 5, 5]])).tolist() == [-1] * 3
    assert machine_of("quotes-3", {"letters": 1}).run(np.array([[2, 2, 2], [2, 1, 2]])).tolist() == [-1, 1]
    assert machine_of("bracket-type-2", {}).run(np.array([[0, 1], [0, 3], [2, 0]])).tolist() == [-1, -1, 0]
    assert machine_of("induction-3", {"vocab": 3}).run(np.array([[0, 1, 2], [0, 1, 0]])).tolist() == [-1, 1]


def test_tasks_with_a_label_at_each_position_have_none() -> None:
    """What `sort` and `addition` predict at a position depends on later tokens, and no machine reads ahead."""
    for name in TASKS:
        task = get_task(name)
        assert (task.build_machine is None) == (task.readout == "each")


def test_a_machine_that_is_too_large_is_said_to_be_none() -> None:
    task = get_task("most-frequent-12", vocab=12)
    model = cf.Transformer.initialised(cf.TransformerConfig(8, 12, 12, 12, (), readout="last"))
    with pytest.raises(cf.InputError, match="no label machine.*more than 100000 states"):
        Labels(model, task)


def test_reading_the_last_token_first() -> None:
    """The state depends on the order in which tokens are read."""
    rng = np.random.default_rng(0)
    machine = LabelMachine(rng.integers(0, 5, (5, 3)).astype(np.int32), np.arange(5), last_first=True)
    for n in range(1, 6):
        ids = rng.integers(0, 3, (50, n))
        for word, label in zip(ids.tolist(), machine.run(ids).tolist(), strict=True):
            state = 0
            for token in [word[-1], *word[:-1]]:
                state = int(machine.transitions[state, token])
            assert label == state
