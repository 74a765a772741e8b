"""Strategies: what they draw is what they say, they shrink to the smallest, the impossible is refused at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, seed, settings
from hypothesis import strategies as st

import certiformer as cf
from certiformer.compiler import programs as library
from certiformer.compiler.alignment import Alignment
from certiformer.compiler.rasp import SOp, indices, length, selector_width, tokens
from certiformer.compiler.structure import nodes_of
from certiformer.models import (
    Circuit,
    balanced,
    distinct,
    edit,
    exactly_one,
    regular,
    sequences,
    sorted_sequences,
    star,
)
from certiformer.models import token as letter
from certiformer.models.circuits import INPUT, OUTPUT
from certiformer.models.languages import Language
from certiformer.testing import (
    alignments,
    circuits,
    compiled_models,
    intervention_machine,
    interventions,
    models,
    noisy_models,
    pairs,
    programs,
    random_models,
    words,
    zoo_models,
)
from certiformer.testing.program_source import source
from certiformer.testing.program_strategies import depth_of, operations
from certiformer.verifier.reading import Subject

T = TypeVar("T")
SORT = cf.compile(library.sort(), vocab=range(4), max_len=4)
RARE = regular(letter("a") + star(letter("b")) + letter("a"), vocab="abc", length=range(1, 41))
"""39 words among 3^40."""
LANGUAGES: dict[str, Language] = {
    "product": sequences(range(5), range(1, 9)),
    "rare": RARE,
    "balanced": balanced([("(", ")"), ("[", "]")], 3, range(2, 21)),
    "distinct": distinct(range(6), range(2, 7)),
    "sorted": sorted_sequences(range(5), range(1, 7)),
    "one": exactly_one("a", "ab", range(1, 30)),
    "gaps": sequences("ab", (2, 5, 9)),
}


def drawn(strategy: st.SearchStrategy[T], count: int = 100) -> list[T]:
    """What the strategy gives in `count` fresh draws, nothing shrunk."""
    found: list[T] = []

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found


def smallest(strategy: st.SearchStrategy[T], condition: Callable[[T], bool]) -> T:
    return find(strategy, condition, settings=settings(max_examples=3000, database=None, deadline=None))


# Words


@pytest.mark.parametrize("name", LANGUAGES)
def test_words_are_in_the_language_and_of_all_lengths(name: str) -> None:
    language = LANGUAGES[name]
    found = drawn(words(language), 300)
    assert all(word in language for word in found)
    lengths = {n for n in language.lengths if language.size(n)}
    assert {len(word) for word in found} <= lengths
    assert len({len(word) for word in found}) >= 0.6 * len(lengths)


def test_every_word_can_be_drawn() -> None:
    language = balanced([("(", ")")], 3, range(2, 7))
    every = {tuple(word) for word in language.enumerate()}
    assert {tuple(word) for word in drawn(words(language), 400)} == every


def test_nothing_is_thrown_away() -> None:
    """No filter: as many words as draws, where one sequence in 10^17 is a word."""

    @settings(max_examples=200, database=None, deadline=None)  # too many rejected draws are an error
    @given(words(RARE))
    def test(word: list[cf.Value]) -> None:
        assert word[0] == word[-1] == "a" and set(word[1:-1]) <= {"b"}

    test()


SHRUNK: list[tuple[Language, Callable[[Any], bool], list[Any]]] = [
    (sequences(range(10), range(1, 20)), lambda w: w.count(7) >= 3, [7, 7, 7]),
    (sequences(range(10), range(1, 20)), lambda w: any(a > b for a, b in zip(w, w[1:], strict=False)), [1, 0]),
    (sequences(range(10), range(1, 20)), lambda w: sum(w) >= 12, [3, 9]),
    (sequences("ab", (2, 5, 9)), lambda w: "b" in w, ["a", "b"]),
    (RARE, lambda w: len(w) > 4, ["a", "b", "b", "b", "a"]),
]


@pytest.mark.parametrize("case", range(len(SHRUNK)))
def test_words_shrink_to_the_shortest_and_smallest(case: int) -> None:
    language, condition, expected = SHRUNK[case]
    assert smallest(words(language), condition) == expected


def test_distinct_words_shrink_to_the_shortest() -> None:
    assert sorted(smallest(words(distinct(range(8), range(2, 8))), lambda w: 7 in w)) == [0, 7]


def test_pairs_have_equal_lengths_and_shrink() -> None:
    language = LANGUAGES["balanced"]
    assert all(len(a) == len(b) and a in language and b in language for a, b in drawn(pairs(language)))
    free = sequences(range(10), range(1, 9))
    assert smallest(pairs(free), lambda pair: sum(pair[0]) > sum(pair[1]) + 3) == ([4], [0])


# Programs


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([("abc", False), (range(4), False), ((1, 2), True)]))
def test_programs_compile_within_the_limits_and_are_computed(data: st.DataObject, setting: tuple[Any, bool]) -> None:
    vocab, causal = setting
    program = data.draw(programs(vocab, 4, size=6, depth=2, max_layers=3, causal=causal))
    assert operations(program) <= 6 and depth_of(program) <= 2
    compiled = cf.compile(program, vocab=vocab, max_len=4, causal=causal)
    assert len(compiled.model.config.layers) <= 3
    word = data.draw(words(sequences(vocab, range(1, 5))))
    assert compiled.run(word) == cf.evaluate(program, word, causal=causal)


def test_programs_are_of_many_kinds() -> None:
    found = drawn(programs("abc", 4), 150)
    assert len({source(program) for program in found}) >= 80
    kinds = Counter(type(node).__name__ for program in found for node in nodes_of(program))
    assert {"MapOp", "AggregateOp", "WidthOp", "SelectOp", "AndOp", "OrOp", "NotOp"} <= set(kinds)
    assert {depth_of(program) for program in found} == {0, 1, 2}


def test_a_least_depth_is_kept() -> None:
    assert {depth_of(program) for program in drawn(programs(range(3), 4, depth=(2, 3)), 40)} == {2, 3}


def test_programs_shrink_to_the_simplest() -> None:
    assert smallest(programs("abc", 4), lambda p: True) is tokens
    assert smallest(programs("abc", 4), lambda p: cf.evaluate(p, ["a", "b"]) != ["a", "b"]) is indices
    nested = smallest(programs("ab", 4), lambda p: depth_of(p) == 2)
    assert operations(nested) == 2


IMPOSSIBLE_PROGRAMS: list[tuple[dict[str, Any], str]] = [
    ({"depth": (3, 3), "max_layers": 2}, "depth 3 .* max_layers is 2"),
    ({"depth": (1, 1), "max_layers": 0}, "max_layers is 0"),
    ({"depth": (2, 1)}, "depth"),
    ({"depth": -1}, "depth"),
    ({"size": 1, "depth": (2, 2)}, "at least 2 operations, but size is 1"),
    ({"size": True}, "size"),
    ({"max_layers": 1.5}, "max_layers"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE_PROGRAMS)
def test_impossible_programs_are_refused_at_definition_time(options: dict[str, Any], message: str) -> None:
    for strategy in (programs, compiled_models):
        with pytest.raises(cf.InputError, match=message):
            strategy("abc", 4, **options)


EMPTY = sequences("ab", range(1, 4)).difference(sequences("ab", range(1, 4)))
CUT = Circuit.from_edges(["input->m0"])
IMPOSSIBLE: dict[str, tuple[Callable[[], object], str]] = {
    "words": (lambda: words(EMPTY), "empty"),
    "pairs": (lambda: pairs(EMPTY), "empty"),
    "a list": (lambda: words(["a", "b"]), "token language"),  # type: ignore[arg-type]
    "no tokens": (lambda: programs([], 4), "vocabulary"),
    "no path": (lambda: circuits(SORT, within=CUT), "no path"),
    "another model's circuit": (lambda: circuits(SORT, within=Circuit.from_edges(["input->m9"])), "m9"),
    "no model": (lambda: circuits("sort"), "model"),
    "too long": (lambda: interventions(SORT, 5), "1 to 4"),
    "no edits": (lambda: interventions(SORT, 3, max_edits=0), "max_edits"),
    "no alignment": (lambda: alignments(SORT.model), "compiled"),
    "negative noise": (lambda: noisy_models(SORT, scale=-1), "scale"),
    "negative layers": (lambda: random_models("ab", 3, max_layers=-1), "max_layers"),
    "unknown model": (lambda: zoo_models(["sort-of"]), "sort-of"),
    "too small a limit": (lambda: zoo_models(max_parameters=10), "10 parameters"),
    "a machine without inputs": (lambda: intervention_machine(SORT, EMPTY), "empty"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_the_impossible_is_refused_at_definition_time(name: str) -> None:
    make, message = IMPOSSIBLE[name]
    with pytest.raises(cf.InputError, match=message):
        make()


# Models


def test_models_of_every_kind_run_and_can_be_claimed_about() -> None:
    found = drawn(models("ab", 3), 40)
    assert {type(one) for one in found} == {cf.Compiled, Subject}
    for one in found:
        claim = cf.Computes(one, tokens)
        assert claim.holds(claim.witness([torch.tensor([0, 1])])).status in ("true", "false")


def test_noise_changes_weights_and_shrinks_to_none() -> None:
    digest = SORT.model.weights_sha256()
    found = drawn(noisy_models(SORT), 40)
    assert len({one.model.weights_sha256() for one in found}) >= 20
    assert SORT.model.weights_sha256() == digest, "noise was put into the model it is drawn around"
    assert smallest(noisy_models(SORT), lambda one: True).model.weights_sha256() == digest


def test_random_models_stay_within_their_sizes() -> None:
    for one in drawn(random_models("abc", 5, max_layers=2, max_heads=3, max_width=6, causal=True), 30):
        config = one.model.config
        assert len(config.layers) <= 2 and config.d_model <= 6 and config.causal and config.n_ctx == 5
        assert all(layer.n_heads <= 3 and layer.d_mlp <= 6 and layer.d_head <= 6 for layer in config.layers)
    least = smallest(random_models("ab", 3), lambda one: len(one.model.config.layers) > 0).model.config
    assert len(least.layers) == 1 and not least.layers[0].n_heads and not least.layers[0].d_mlp


def test_zoo_models_are_the_small_ones() -> None:
    found = drawn(zoo_models(max_parameters=9000), 20)
    assert found and all(one.model.config.n_parameters <= 9000 for one in found)


# Circuits, alignments, interventions


def on_a_path(circuit: Circuit) -> bool:
    return circuit.pruned() == circuit and bool(circuit.edges) and {INPUT, OUTPUT} <= circuit.nodes


def test_circuits_are_edges_on_paths_of_all_sizes() -> None:
    found = drawn(circuits(SORT), 150)
    sizes = {len(circuit.edges) for circuit in found}
    assert all(on_a_path(circuit) for circuit in found) and min(sizes) == 1 and max(sizes) >= 30
    for circuit in found:
        circuit.validate(SORT.model.config)
    inside = drawn(circuits(SORT, within=SORT.circuit, ablation="resample"), 50)
    assert all(circuit.edges <= SORT.circuit.edges and circuit.ablation == "resample" for circuit in inside)


THROUGH: dict[str, Callable[[Circuit], bool]] = {
    "a head": lambda circuit: "a0.h0" in circuit.nodes,
    "an edge": lambda circuit: "a0.h1->m0" in circuit.edges,
    "two nodes": lambda circuit: {"m0", "a2.h0"} <= circuit.nodes,
}


@pytest.mark.parametrize("name", THROUGH)
def test_circuits_shrink_until_no_edge_can_be_left_out(name: str) -> None:
    found = smallest(circuits(SORT), THROUGH[name])
    assert not any(THROUGH[name](found.without([edge]).pruned()) for edge in found.edges)
    assert len(found.edges) <= 4


def test_the_simplest_circuit_is_one_edge() -> None:
    assert smallest(circuits(SORT), lambda circuit: True).edges == {"input->logits"}


def test_alignments_shrink_to_the_true_one() -> None:
    found = drawn(alignments(SORT), 60)
    assert all(isinstance(one, Alignment) for one in found)
    assert any(len(one.heads) < len(SORT.alignment.heads) for one in found)
    assert any([r.node for r in one.neurons] != [r.node for r in SORT.alignment.neurons] for one in found)
    assert smallest(alignments(SORT), lambda one: True) == SORT.alignment


@settings(max_examples=60, deadline=None)
@given(interventions(SORT, 3), words(sequences(range(4), 3)))
def test_interventions_fit_the_model(edits: Any, word: list[cf.Value]) -> None:
    ids = torch.tensor([SORT.codec.ids(word)])
    assert edit(SORT.model, *edits)(ids).shape == SORT.model(ids).shape


def test_interventions_are_of_every_kind_and_shrink_to_one() -> None:
    kinds = {type(one).__name__ for edits in drawn(interventions(SORT, 3), 100) for one in edits}
    assert kinds == {"Ablate", "Interchange", "Subspace"}
    (only,) = smallest(interventions(SORT, 3), lambda edits: len(edits) >= 1)
    assert type(only).__name__ == "Ablate"


# Any sequence of edits and their undoing


Machine = intervention_machine(SORT, sequences(range(4), range(1, 5)))
Machine.TestCase.settings = settings(max_examples=10, stateful_step_count=8, deadline=None, database=None)
TestInterventions = Machine.TestCase


def test_the_machine_sees_an_edit_that_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: editing scales a weight of the model that is edited."""
    from certiformer.testing import machines

    compiled = cf.compile(library.hist(), vocab="ab", max_len=3)
    machine = intervention_machine(compiled, sequences("ab", range(1, 4)))

    def careless(model: Any, *edits: Any) -> Any:
        base = getattr(model, "base", model)
        with torch.no_grad():
            base.parameter("unembed.W_U").mul_(1.0 + 0.5 * bool(edits))
        return edit(model, *edits)

    monkeypatch.setattr(machines, "edit", careless)
    machine.TestCase.settings = settings(max_examples=10, stateful_step_count=4, deadline=None, database=None)
    with pytest.raises(AssertionError, match="changed the|matters"):
        machine.TestCase().runTest()


def test_source_is_one_line() -> None:
    program: SOp = library.sort()
    assert "\n" not in source(program) and "select" in source(program)
    assert source(selector_width(~cf.rasp.select(tokens, indices, "<"))).startswith("selector_width(~select(tokens")
    assert source(length)
