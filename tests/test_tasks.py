"""Tasks: label functions against plain references on every word or on samples, domains, names, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from certiformer.compiler import programs
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.rasp import SOp
from certiformer.models import InputError, LayerConfig, Task, TransformerConfig, Value, get_task, sequences
from certiformer.models.task_library import TASKS, task_from_json
from certiformer.models.tasks import check_fit

Word = Sequence[Any]
CLOSING = {"(": ")", "[": "]"}


def last_earlier(word: Word) -> int:
    return max(j for j in range(len(word) - 1) if word[j] == word[-1])


def open_brackets(word: Word) -> list[str] | None:
    """The brackets left open; None if one does not match."""
    stack: list[str] = []
    for token in word:
        if token in CLOSING:
            stack.append(token)
        elif not stack or CLOSING[stack.pop()] != token:
            return None
    return stack


def open_quote(word: Word) -> str | None:
    """The quote that is due, read as Python reads strings."""
    due = None
    for token in word:
        if due is None and token in "\"'":
            due = token
        elif token == due:
            due = None
    return due


def opens_one(word: Word) -> bool:
    """Whether the first quote of the word comes once."""
    found = [token for token in word if token in "\"'"]
    return found.count(found[0]) == 1 if found else False


def summed(word: Word) -> list[int]:
    """The digits of the sum, as long as the numbers."""
    left, right = (int("".join(token.split("+")[side] for token in word)) for side in (0, 1))
    return [int(digit) for digit in str(left + right).zfill(len(word))[-len(word) :]]


# A small task of each family, what it must say, and what its domain is.
Case = tuple[str, dict[str, int], Callable[[Word], object], Callable[[Word], bool]]
CASES: list[Case] = [
    ("max-of-4", {"vocab": 5}, max, lambda w: True),
    ("modular-addition-7", {}, lambda w: (w[0] + w[1]) % 7, lambda w: "=" not in w[:2] and w[2] == "="),
    ("sort-4", {"vocab": 4}, sorted, lambda w: True),
    ("induction-5", {"vocab": 4}, lambda w: w[last_earlier(w) + 1], lambda w: w[-1] in w[:-1]),
    ("addition-2", {}, summed, lambda w: True),
    ("dyck-1-8", {}, lambda w: open_brackets(w) == [], lambda w: True),
    ("dyck-2-6", {}, lambda w: open_brackets(w) == [], lambda w: True),
    ("quotes-5", {"letters": 2}, open_quote, opens_one),
    ("bracket-type-6", {"depth": 3}, lambda w: CLOSING[(open_brackets(w) or [])[-1]], lambda w: nested(w, 3)),
    ("most-frequent-5", {"vocab": 3}, lambda w: max(w, key=w.count), lambda w: True),
]


def nested(word: Word, depth: int) -> bool:
    """Whether all closing brackets match, some bracket is left open, and no more than `depth` ever are."""
    so_far = [open_brackets(word[:end]) for end in range(len(word) + 1)]
    return bool(so_far[-1]) and all(stack is not None and len(stack) <= depth for stack in so_far)


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def test_every_family_has_a_reference() -> None:
    assert {get_task(name, **parameters).family for name, parameters, _, _ in CASES} == set(TASKS)


def test_labels_are_those_of_the_reference_on_every_word(case: Case) -> None:
    name, parameters, reference, _ = case
    task = get_task(name, **parameters)
    for ids in task.domain.batches(5000):
        labels = task.labels(ids)
        assert labels.dtype == np.int64
        assert labels.shape == (ids.shape if task.readout == "each" else ids.shape[:1])
        assert 0 <= labels.min() <= labels.max() < len(task.outputs)
        for row, found in zip(ids.tolist(), labels.tolist(), strict=True):
            wanted: Any = reference([task.vocab[token] for token in row])
            values = [task.outputs[index] for index in found] if task.readout == "each" else task.outputs[found]
            assert values == wanted, row


def test_the_domain_is_what_it_says(case: Case) -> None:
    name, parameters, _, inside = case
    task = get_task(name, **parameters)
    ((length,), words) = task.domain.lengths, sequences(task.vocab, task.domain.lengths)
    sample = words.sample(0, 300) if words.size() > 20_000 else list(words.enumerate())
    for word in sample:
        assert (word in task.domain) == inside(word), word
    assert all(inside(word) and len(word) == length for word in task.domain.sample(1, 100))


def test_labels_do_not_change_their_input(case: Case) -> None:
    task = get_task(case[0], **case[1])
    ((_, ids),) = task.domain.sample_ids(0, 50)
    before = ids.copy()
    task.labels(ids)
    assert np.array_equal(ids, before)


def test_batches_are_words_of_the_tasks_length(case: Case) -> None:
    task = get_task(case[0], **case[1])
    drawn, again = (task.draw(np.random.default_rng([3, 1]), 37) for _ in range(2))
    assert sum(len(ids) for ids in drawn) == 37
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert all(task.domain.contains_ids(ids).all() for ids in drawn)


@pytest.mark.parametrize("name", ["dyck-1-12", "dyck-2-12"])
def test_rare_balanced_words_are_drawn_often(name: str) -> None:
    task = get_task(name)
    labels = np.concatenate([task.labels(ids) for ids in task.draw(np.random.default_rng(0), 1000)])
    assert 0.2 < labels.mean() < 0.6


# At its last position (sort: at each), the library's program of the same name gives the label.
SAME_PROGRAM: list[tuple[str, dict[str, int], Callable[[], SOp]]] = [
    ("max-of-5", {"vocab": 9}, programs.maximum),
    ("sort-5", {"vocab": 6}, programs.sort),
    ("induction-7", {"vocab": 4}, programs.induction),
    ("addition-4", {}, programs.add_decimal),
    ("dyck-2-6", {}, programs.dyck2),
    ("most-frequent-6", {"vocab": 3}, programs.most_frequent),
]


@pytest.mark.parametrize(("name", "parameters", "program"), SAME_PROGRAM, ids=lambda value: str(value)[:20])
def test_a_task_is_what_the_program_computes(name: str, parameters: dict[str, int], program: Callable[[], SOp]) -> None:
    task, sop = get_task(name, **parameters), program()
    for word in task.domain.sample(0, 40):
        computed: list[Value] = list(evaluate(sop, word))
        assert task.label(word) == (computed if task.readout == "each" else computed[-1])


class TestNames:
    def test_a_size_stands_in_the_name_or_beside_it(self) -> None:
        for task in (get_task("max-of-7", vocab=9), get_task("max", length=7, vocab=9), get_task("max-of-7", vocab=9)):
            assert (task.name, task.parameters, task.domain.size()) == ("max-of-7", {"length": 7, "vocab": 9}, 9**7)

    def test_a_family_whose_name_ends_in_a_number(self) -> None:
        assert get_task("dyck-1").name == "dyck-1-16"
        assert get_task("dyck-1-6").parameters == {"length": 6}

    def test_json_gives_the_task_again(self, case: Case) -> None:
        task = get_task(case[0], **case[1])
        again = task_from_json(task.to_json())
        assert (again.name, again.to_json(), again.outputs) == (task.name, task.to_json(), task.outputs)
        assert again.domain.to_json() == task.domain.to_json()

    @pytest.mark.parametrize(
        ("name", "parameters", "message"),
        [
            ("maxof-10", {}, "did you mean max-of"),
            ("summarise", {}, "the tasks are max-of, modular-addition, sort"),
            ("", {}, "no task ''"),
            ("max-of--3", {}, "no task"),
            ("max-of-10", {"length": 9}, "says length 10, but length=9"),
            ("max-of-10", {"depth": 2}, "has the parameters length, vocab; got 'depth'"),
            ("max-of-0", {}, "length of max-of must be an integer of 1 to 512, got 0"),
            ("max-of-4", {"vocab": True}, "vocab of max-of must be an integer"),
            ("max-of-4", {"vocab": 2.0}, "got 2.0"),
            ("induction", {"vocab": 64}, "must be an integer of 2 to 10, got 64"),
            ("dyck-1-7", {}, "length must be even, got 7"),
            ("dyck-1-99999999999999999999", {}, "no task"),
        ],
    )
    def test_what_is_refused(self, name: str, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            get_task(name, **parameters)

    @pytest.mark.parametrize("data", [None, [], {"family": "max-of"}, {"family": "max-of", "parameters": 3}])
    def test_json_of_no_task(self, data: object) -> None:
        with pytest.raises(InputError, match="a task in JSON"):
            task_from_json(data)


class TestBadInput:
    task: Task = get_task("max-of-4", vocab=5)

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            (np.zeros(4, dtype=np.int64), r"int64 array \[batch, n\], got \(4,\)"),
            (np.zeros((2, 4), dtype=np.int32), "of int32"),
            (np.zeros((2, 5), dtype=np.int64), "words of length 4, got 5"),
            (np.full((1, 4), 5), "must be 0 to 4, got 5 to 5"),
            ([[0, 0, 0, 0]], r"got \[\["),
        ],
    )
    def test_labels(self, ids: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.task.labels(ids)

    def test_no_words_no_labels(self) -> None:
        assert self.task.labels(np.zeros((0, 4), dtype=np.int64)).shape == (0,)

    def test_a_word_outside_the_domain(self) -> None:
        with pytest.raises(InputError, match=r"\[1, 2\] is not in the domain of max-of-4"):
            self.task.label([1, 2])

    def test_all_that_does_not_fit_is_said(self) -> None:
        config = TransformerConfig(8, 3, 6, 7, (LayerConfig(1, 8, 0),), readout="mean")
        with pytest.raises(InputError) as caught:
            check_fit(self.task, config)
        for words in ("4 tokens exceed the context, n_ctx = 3", "d_vocab = 6", "d_vocab_out = 7", "'last'", "'mean'"):
            assert words in str(caught.value)

    def test_another_domain_for_the_same_labels(self) -> None:
        task = replace(self.task, domain=sequences(range(5), range(2, 4)))
        assert task.labels(np.array([[1, 3]])).tolist() == [3]
        assert [ids.shape[1] for ids in task.draw(np.random.default_rng(0), 50)] == [2, 3]
