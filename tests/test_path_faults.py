"""Faults planted in the checker's own code for rule `paths`: each is noticed by a check that holds without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Valid, path_bounds, path_graph, path_language, path_minimum, path_model, paths
from certiformer.proofs.format import Rejected
from certiformer.proofs.path_bounds import Bounds, Lines
from certiformer.proofs.path_minimum import Prefixes, Weighted
from certiformer.proofs.path_model import PathModel

from . import path_cases
from .path_checks import check_bounds, check_corners, check_counts, check_mean, check_proof, check_relu
from .test_path_checker import FORGED, LEAVES, majority, wrong_labels

Patch = pytest.MonkeyPatch
Fault = tuple[Callable[[Patch], None], Callable[[int], object]]


def forgeries(seed: int) -> None:
    """No false theorem is accepted."""
    for trees, _ in FORGED.values():
        assert not isinstance(majority().check(trees, Fraction(5, 8)), Valid)
    assert not isinstance(wrong_labels().check(LEAVES, None), Valid)
    counted = [LEAVES[0], {"n": 3, "label": 1, "tree": [["leaf", [[0, 1000]]]]}]
    assert not isinstance(wrong_labels().check(counted, Fraction(6, 8)), Valid)


def setting(owner: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def around(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """`change(found, *arguments)` instead of what the function finds."""
    right = getattr(owner, name)
    return setting(owner, name, lambda *arguments, **more: change(right(*arguments, **more), *arguments))


def both(*plants: Callable[[Patch], None]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        for one in plants:
            one(patch)

    return plant


# --- least means -------------------------------------------------------------------------------------------------


def greatest_terms(head: Weighted, j: int, line: Any) -> Any:
    distance = head.values[j] - line
    return np.maximum(distance * head.low[j], distance * head.high[j])


def greatest_own_term(head: Weighted, line: Any) -> Any:
    distance = head.own - line
    return np.maximum(distance * head.own_low, distance * head.own_high)


def only_low_terms(head: Weighted, j: int, line: Any) -> Any:
    return (head.values[j] - line) * head.low[j]


def only_high_own(head: Weighted, line: Any) -> Any:
    return (head.own - line) * head.own_high


def one_edge(paths_: Prefixes, j: int, best: Any, here: Any, chosen: Any) -> Any:
    """The first edge into a node, instead of the least."""
    step = paths_.graph.steps[j]
    if chosen is not None:
        chosen.append(np.zeros((len(step.first), *here.shape[1:]), dtype=np.int16))
    return best[step.source[step.first]] + here[paths_.kinds[j][step.first]]


MEANS: dict[str, Callable[[Patch], None]] = {
    "least and greatest weights swapped": setting(Weighted, "terms", greatest_terms),
    "of the own key too": setting(Weighted, "own_term", greatest_own_term),
    "least weights for values below the line": setting(Weighted, "terms", only_low_terms),
    "greatest own weight for values above the line": setting(Weighted, "own_term", only_high_own),
    "a path that is not the least": setting(Prefixes, "_advance", one_edge),
    "sums a little below 0 accepted": setting(path_minimum, "accepted", lambda sums: sums >= -1e-3),
    "any sum accepted": setting(path_minimum, "accepted", lambda sums: np.ones(sums.shape, dtype=bool)),
    "heads' sums divided by their least weights": setting(
        Weighted, "greatest_weight", lambda head: head.own_low + 1e-9
    ),
    "the own key left out": setting(Weighted, "own_term", lambda head, line: np.zeros_like(line)),
}


@pytest.mark.parametrize("name", MEANS)
def test_faults_of_means_are_noticed(name: str, monkeypatch: Patch) -> None:
    noticed(MEANS[name], check_mean, monkeypatch)


def test_a_chord_that_is_too_high_is_noticed(monkeypatch: Patch) -> None:
    """Chords are for what the search has not found: it is cut short here, which alone does no harm."""
    monkeypatch.setattr(path_minimum, "ROUNDS", 1)
    chords = []
    right = path_minimum.chord
    monkeypatch.setattr(path_minimum, "chord", lambda *given: chords.append(1) or right(*given))
    for seed in range(100):
        sound(check_mean, seed)
    assert chords
    for wrong in (lambda low, line, at_low, at_line: line, lambda low, line, at_low, at_line: (low + line) / 2):
        monkeypatch.setattr(path_minimum, "chord", wrong)
        with pytest.raises(AssertionError):
            for seed in range(100):
                sound(check_mean, seed)


def sound(check: Callable[[int], object], seed: int) -> None:
    """The check, but for how good bounds are."""
    try:
        check(seed)
    except AssertionError as error:
        if "nearly attained" not in str(error):
            raise
    except Rejected as error:  # the checker itself noticed it
        assert "internal error" not in error.why
        raise


# --- bounds ------------------------------------------------------------------------------------------------------


def without(term: str) -> Callable[..., Any]:
    def radius(q: Any, q_rad: Any, key: Any, rad: Any, shift: Any) -> Any:
        terms = {
            "|q| rad": rad @ np.abs(q).swapaxes(1, 2),
            "q_rad rad": rad @ q_rad.swapaxes(1, 2),
            "q_rad |key - shift|": np.abs(key - shift) @ q_rad.swapaxes(1, 2),
        }
        return sum(found for name, found in terms.items() if name != term)[:, :, 0]

    return radius


def weights_without_radius(center: Any, radius: Any) -> Any:
    return RIGHT_POWERS(center, np.zeros_like(radius))


def weights_of_their_own(center: Any, radius: Any) -> Any:
    """Each key's own greatest score taken off, instead of the query's."""
    low, high = RIGHT_POWERS(center, radius)
    return low / high, np.ones_like(high)


def far_weights_lost(center: Any, radius: Any) -> Any:
    low, high = RIGHT_POWERS(center, radius)
    return low, np.where(high > 1e-100, high, 0.0)


RIGHT_POWERS = path_bounds._powers
BOUNDS: dict[str, Fault] = {
    "boxes without a radius": (
        around(path_bounds, "interval", lambda found, low, high: (found[0], 0 * found[1])), check_bounds),
    "the upper line of ReLU without its shift": (
        around(path_bounds, "relu_lines", lambda lines, *_: replace(lines, shift=0 * lines.shift)), check_bounds),
    "the same, alone": (
        setting(__import__(check_relu.__module__, fromlist=["x"]), "relu_lines",
                lambda low, high: replace(path_bounds.relu_lines(low, high), shift=np.zeros_like(low))), check_relu),
    "the lower line above ReLU": (
        around(path_bounds, "relu_lines", lambda lines, *_: Lines(
            lines.low, lines.high, lines.slope + 0.1, lines.slope, lines.shift)), check_bounds),
    "the upper line's slope for the lower's": (
        around(path_bounds, "relu_lines", lambda lines, *_: Lines(
            lines.low, lines.high, lines.below, lines.below, lines.shift / 2)), check_bounds),
    "scores without |q| rad": (setting(path_bounds, "_radius", without("|q| rad")), check_corners),
    "scores without q_rad rad": (setting(path_bounds, "_radius", without("q_rad rad")), check_corners),
    "scores without q_rad |key - shift|": (
        setting(path_bounds, "_radius", without("q_rad |key - shift|")), check_corners),
    "weights without radius": (setting(path_bounds, "_powers", weights_without_radius), check_corners),
    "weights that are not comparable": (setting(path_bounds, "_powers", weights_of_their_own), check_bounds),
    "far weights lost": (setting(path_bounds, "_powers", far_weights_lost), check_bounds),
    "no margin around weights": (
        lambda patch: (patch.setattr(path_bounds, "LESS", 1.0), patch.setattr(path_bounds, "MORE", 1.0))[0],
        check_bounds),
    "rounding not subtracted": (setting(path_bounds, "_less", lambda total, *_: total), check_bounds),
    "the radius of values left out": (
        setting(Bounds, "_keys", lambda self, number, i, letter: (
            (found := RIGHT_KEYS(self, number, i, letter))[0], 0 * found[1])), check_bounds),
    "negated coefficients for the upper side": (
        around(Bounds, "_range", lambda found, *_: (found[0], found[0])), check_bounds),
    "values of the wrong position": (
        around(PathModel, "__init__", lambda _, model, *__: setattr(
            model, "embedded", np.roll(model.embedded, 1, axis=0))), check_bounds),
    "biases of attention left out": (
        around(PathModel, "_attention" if hasattr(PathModel, "_attention") else "_block",
               lambda block, *_: replace(block, attention=block.attention and replace(
                   block.attention, out_bias=0 * block.attention.out_bias))), check_bounds),
    "biases of neurons left out": (
        around(PathModel, "_block", lambda block, *_: replace(block, neurons=block.neurons and replace(
            block.neurons, bias=0 * block.neurons.bias))), check_bounds),
    "no scale": (setting(PathModel, "_scale", lambda *_: 1.0), check_bounds),
    "a mean's first positions left out": (around(Bounds, "own", lambda found, *_: found[-1:]), check_bounds),
}  # fmt: skip
RIGHT_KEYS = Bounds._keys


@pytest.mark.parametrize("name", BOUNDS)
def test_faults_of_bounds_are_noticed(name: str, monkeypatch: Patch) -> None:
    noticed(*BOUNDS[name], monkeypatch)


def noticed(plant: Callable[[Patch], None], check: Callable[[int], object], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        for seed in range(200):
            sound(check, seed)


# --- graphs, counts and trees ------------------------------------------------------------------------------------


def coarse(delta: Any, closes: Any) -> path_language.Language:
    """States told apart by the tokens they close with, and no further."""
    _, first, block = np.unique(closes, axis=0, return_index=True, return_inverse=True)
    block = block.reshape(-1)
    return path_language.Language(block[delta[first]], closes[first], int(block[0]))


def one_part_less(restrictions: Any, *rest: Any) -> Any:
    return RIGHT_ALLOWED(restrictions[1:], *rest)


def rounded_up(x: Any, power: int) -> Any:
    return np.ceil(x * 2.0**power).astype(np.int64)


def too_few(found: int, *_: Any) -> int:
    return max(0, found - 1)


def unlike_bias(right: Any) -> Any:
    return lambda graph, own, bias: right(graph, own, -bias)


def unlike_bias_to(right: Any) -> Any:
    return lambda graph, base, terms, bias: right(graph, base, terms, -bias)


def spread_too_far(found: Any, *_: Any) -> Any:
    base, terms = found
    return base, [part + 2.0**-6 * np.abs(part).max() for part in terms]


def no_check_of_parts(checker: Any, kind: str, n: int, entry: Any) -> Any:
    return [(kind, entry[1], tuple(part)) for part in entry[2]]


RIGHT_ALLOWED = path_graph._allowed
PROOFS: dict[str, Fault] = {
    "states merged that differ": (setting(path_cases, "minimal", coarse), check_bounds),
    "a restriction forgotten": (setting(path_graph, "_allowed", one_part_less), check_bounds),
    "numbers rounded up": (setting(paths, "_floor", rounded_up), check_counts),
    "one word not counted": (around(paths, "_count", too_few), check_counts),
    "the bias's sign": (setting(paths, "_integers", unlike_bias(paths._integers)), check_counts),
    "the bias's sign, in proofs": (setting(paths, "_integers", unlike_bias(paths._integers)), check_proof),
    "terms along paths too great": (around(path_bounds, "spread", spread_too_far), check_bounds),
    "the base of paths too great": (
        around(path_bounds, "spread", lambda found, *_: (found[0] + 2.0**-6 * np.abs(found[0]), found[1])),
        check_bounds,
    ),
    "an unlisted rival not looked at": (
        both(setting(paths, "_least", lambda *_: 1), setting(paths, "_least_to", lambda *_: 1)),
        forgeries,
    ),
    "the same for classes of the last position": (setting(paths, "_least_to", lambda *_: 1), check_proof),
    "nothing fails in a class of the last position": (setting(paths, "_count_to", lambda *_: 0), check_proof),
    "the bias's sign, in a class of the last position": (
        setting(paths, "_integers_to", unlike_bias_to(paths._integers_to)),
        check_proof,
    ),
    "sizes of the classes too great": (
        around(path_graph.WordGraph, "sizes_of_last", lambda found, *_: [size + 1 for size in found]),
        check_proof,
    ),
    "the least sum of the wrong paths": (around(paths, "_least", lambda found, *_: found + 1), check_counts),
    "the same in proofs": (setting(paths, "_least", lambda *_: 1), check_proof),
    "nothing fails": (setting(paths, "_count", lambda *_: 0), check_proof),
    "parts that overlap accepted": (setting(paths._Checker, "_split", no_check_of_parts), forgeries),
    "the last position's bound only": (around(Bounds, "own", lambda found, *_: found[-1:]), check_proof),
}


@pytest.mark.parametrize("name", PROOFS)
def test_faults_of_proofs_are_noticed(name: str, monkeypatch: Patch) -> None:
    noticed(*PROOFS[name], monkeypatch)


def test_forgeries_are_rejected_without_a_fault() -> None:
    forgeries(0)


def test_magnitudes_bound_what_they_say() -> None:
    """On random models: the stream, pre-activations, queries, keys and values of every word."""
    for seed in range(60):
        case = path_cases.random_case(seed)
        model = path_model.PathModel(case.model(), case.n, np.arange(case.tokens))
        for word in case.words(case.n):
            run = path_cases.Run(case, word)
            for number, block in enumerate(model.blocks):
                assert (np.abs(run.middle[number]) <= block.middle).all()
                assert (np.abs(run.stream[number]) <= block.after).all()
                if block.neurons is not None:
                    assert (np.abs(run.pre[number]) <= block.neurons.size).all()
                if block.attention is not None:
                    found = {"Q": run.q[number], "K": run.k[number], "V": run.v[number]}
                    for letter, size in block.attention.size.items():
                        assert (np.abs(found[letter]) <= size[:, None]).all()
