"""What must hold of every bound of rule `paths`: on all words, with zero tolerance. All raise AssertionError."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from certiformer.proofs import Invalid, Valid, paths
from certiformer.proofs.bodies import Labels
from certiformer.proofs.format import Rejected
from certiformer.proofs.path_bounds import Bounds, Box, relu_lines
from certiformer.proofs.path_graph import Restriction, WordGraph
from certiformer.proofs.path_minimum import GRID, Prefixes, Weighted, together
from certiformer.proofs.path_model import PathModel

from .path_cases import LONG, Case, Run, leaves, random_case, random_split, random_tree

Array = np.ndarray[Any, Any]
Json = Any


def path(graph: WordGraph, word: tuple[int, ...]) -> list[int]:
    """The classes of a word; AssertionError if it has no path, or two."""
    node, found = 0, []
    for step, token in zip(graph.steps, word, strict=True):
        edges = np.flatnonzero((step.source == node) & (step.token == token))
        assert len(edges) == 1, "a word has one path"
        found.append(int(edges[0]))
        node = int(step.target[edges[0]])
    return found


def cases(
    seed: int, make: Callable[[int], Case] = random_case
) -> Iterator[tuple[Case, int, WordGraph, list[tuple[int, ...]]]]:
    """Leaves of a random case with words: (case, label, graph, words)."""
    case, rng = make(seed), np.random.default_rng(seed + 1)
    for label in range(case.config["d_vocab_out"]):
        restrictions: list[Restriction] = []
        for _ in range(int(rng.integers(3))):
            kind, place, parts = random_split(rng, case, case.n)
            restrictions.append((kind, place, tuple(parts[int(rng.integers(len(parts)))])))
        graph = case.graph(case.n, label, restrictions)
        words = [w for w in case.words(case.n) if case.label(w) == label and case.meets(w, restrictions)]
        assert (graph.size if graph else 0) == len(words), "paths are words"
        if graph is not None:
            yield case, label, graph, words


def check_bounds(seed: int) -> None:
    """Boxes, weights, lines and the bounds of random functions, on all words of random leaves."""
    for case, label, graph, words in cases(seed):
        model = PathModel(case.model(), case.n, np.arange(case.tokens))
        check_words(case, label, words, lambda model=model, graph=graph: Bounds(model, graph), seed)


def check_words(case: Case, label: int, words: list[tuple[int, ...]], make: Callable[[], Bounds], seed: int) -> None:
    """What `make` makes, anew each time, holds on all these words of its graph."""
    rng = np.random.default_rng(seed + label)
    bounds = make()
    assert bounds.cost(3) >= 0
    final = [case.config["readout"] == "mean" or i == case.n - 1 for i in range(case.n)]
    for i in range(case.n):
        bounds._prepare(i, final[i])
    c = rng.normal(size=(3, case.config["d_model"])) * 10.0 ** rng.integers(-3, 4)
    own = make().own(c)
    assert [i for i, _ in own] == [i for i in range(case.n) if final[i]], "the read-out's positions"
    base, terms = make().along(c)
    for word in words:
        run, classes = Run(case, word), path(bounds.graph, word)
        if case.config["readout"] == "last":
            true = run.stream[len(case.config["layers"]) - 1][case.n - 1] @ c.T.astype(LONG)
            added = [part[classes[j], classes[-1]].astype(LONG) for j, part in enumerate(terms)]
            assert (sum(added, base[classes[-1]].astype(LONG)) <= true).all(), "a bound along a path"
        _check_boxes(bounds, run, classes)
        _check_powers(bounds, run, classes)
        _check_lines(bounds, run, classes)
        for i, found in own:
            true = run.stream[len(case.config["layers"]) - 1][i] @ c.T.astype(LONG)
            assert (found[classes[i]] <= true).all(), "a function's bound"
            assert np.isfinite(found).all(), "a bound is finite"


def _check_boxes(bounds: Bounds, run: Run, classes: list[int]) -> None:
    for (number, i, letter), box in bounds.boxes.items():
        true = {"Q": run.q, "K": run.k, "V": run.v}[letter][number][:, i]
        kind = box.kinds[classes[i]]
        radius = box.rad[kind].astype(LONG)
        if number == 0:  # points; their rounding is counted elsewhere
            attention = bounds.model.blocks[0].attention
            assert attention is not None
            radius = (bounds.model.embedded.shape[2] + 4) * LONG(2) ** -52 * attention.size[letter]
        assert (np.abs(true - box.mid[kind]) <= radius).all(), "a box of queries, keys or values"


def _check_powers(bounds: Bounds, run: Run, classes: list[int]) -> None:
    """The scores, less some number that is the same for all keys, have powers within the intervals."""
    for (number, i), powers in bounds.powers.items():
        kind = bounds.boxes[number, i, "Q"].kinds[classes[i]]
        ends = np.cumsum([0, *(len(bounds.boxes[number, j, "K"].mid) for j in range(i))])
        keys = [int(ends[j] + bounds.boxes[number, j, "K"].kinds[classes[j]]) for j in range(i)]
        score = run.score[number][:, i, : i + 1]
        low = np.concatenate([powers.low[:, kind, keys], powers.own_low[:, kind, None]], axis=1)
        high = np.concatenate([powers.high[:, kind, keys], powers.own_high[:, kind, None]], axis=1)
        assert shifted(score, low, high), "weights"


def shifted(score: Array, low: Array, high: Array) -> bool:
    """Some t [head] has low <= e^(score + t) <= high, and room of 2^-41 on both sides."""
    with np.errstate(divide="ignore"):
        least = (np.log(low.astype(LONG)) + LONG(2) ** -41 - score).max(axis=1)
        most = (np.log(high.astype(LONG)) - LONG(2) ** -41 - score).min(axis=1)
    return bool((least <= most).all())


def _check_lines(bounds: Bounds, run: Run, classes: list[int]) -> None:
    for (number, i), lines in bounds.lines.items():
        a, pre = classes[i], run.pre[number][i]
        assert (lines.low[a] <= pre).all() and (pre <= lines.high[a]).all(), "a pre-activation"
        relu = np.maximum(pre, 0)
        assert (lines.below[a] * pre <= relu).all(), "a line below ReLU"
        assert (relu <= lines.slope[a] * pre + lines.shift[a]).all(), "a line above ReLU"


def check_relu(seed: int) -> None:
    """Lines at the ends of intervals and between, in exact arithmetic."""
    rng = np.random.default_rng(seed)
    low = rng.normal(size=20) * 10.0 ** rng.integers(-3, 3, size=20)
    high = low + np.abs(rng.normal(size=20)) * 10.0 ** rng.integers(-3, 3, size=20)
    lines = relu_lines(low[None], high[None])
    for m in range(20):
        below, slope, shift = (Fraction(float(x[0, m])) for x in (lines.below, lines.slope, lines.shift))
        for part in (0, Fraction(1, 3), 1):
            pre = Fraction(float(low[m])) * (1 - part) + Fraction(float(high[m])) * part
            assert below * pre <= max(pre, Fraction(0)) <= slope * pre + shift, "a line of ReLU"


# --- weighted means ----------------------------------------------------------------------------------------------


def check_mean(seed: int) -> None:
    """Random values and weights on random graphs, against all paths and the worst weights, in exact arithmetic."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    graph = case.graph(case.n, 0, [])
    if graph is None:
        return
    i = int(rng.integers(case.n))
    rows, functions = np.arange(graph.steps[i].classes), 2
    prefixes = Prefixes(graph, i, [np.arange(s.classes) for s in graph.steps[:i]], graph.steps[i].source[rows])
    heads, exact = [], []
    for _ in range(int(rng.integers(1, 3))):
        head, intervals = _random_head(rng, graph, i, prefixes, functions)
        heads.append(head)
        exact.append(intervals)
    found = [head.mean() for head in heads]
    total = together(heads)
    words = {tuple(path(graph, w)[: i + 1]) for w in case.words(case.n) if case.label(w) == 0}
    for row, k in itertools.product(rows, range(functions)):
        ending = [w for w in words if w[i] == row]
        true = [
            [_least_mean(head, low, high, w, k) for w in ending] for head, (low, high) in zip(heads, exact, strict=True)
        ]
        for head, means, line in zip(heads, true, found, strict=True):
            assert Fraction(float(line[row, k])) <= min(means), "a least mean"
            spread = float((head.range()[1] - head.range()[0])[row, k])
            assert float(line[row, k]) >= float(min(means)) - 1e-6 * spread, "a least mean is nearly attained"
        jointly = min(map(sum, zip(*true, strict=True)))
        rounding = Fraction(sum(abs(float(line[row, k])) for line in found)) * Fraction(1, 2**48)
        assert Fraction(float(total[row, k])) <= jointly + rounding, "a sum of means"
        separate = sum(float(line[row, k]) for line in found)
        assert total[row, k] >= separate - 1e-12 * (1 + abs(separate)), "together is not worse"


def _random_head(
    rng: np.random.Generator, graph: WordGraph, i: int, prefixes: Prefixes, functions: int
) -> tuple[Weighted, Any]:
    rows = len(prefixes.source)
    kinds = [s.classes for s in graph.steps[:i]]
    spread, wide = float(rng.choice([0.0, 1.0, 5.0, 300.0])), float(rng.choice([0.0, 0.1, 3.0, 200.0]))

    def interval(shape: tuple[int, ...]) -> tuple[Array, Array]:
        score = np.clip(rng.normal(size=shape) * spread, -580, 0)
        high = np.exp(score)
        low = np.where(rng.random(shape) < 0.1, 0.0, np.exp(np.clip(score - rng.random(shape) * wide, -580, 0)))
        return low, high

    shared = bool(rng.integers(2))
    values = [rng.normal(size=(b, 1 if shared else rows, functions)).round(int(rng.integers(3))) for b in kinds]
    true = [interval((b, rows, 1)) for b in [*kinds, 1]]
    low, high = [x * (1 - 2.0**-40) for x, _ in true], [x * (1 + 2.0**-40) for _, x in true]
    own = rng.normal(size=(rows, functions)) - GRID
    values = [x - GRID for x in values]
    return Weighted(prefixes, values, low[:-1], high[:-1], own, low[-1][0], high[-1][0]), (
        [x for x, _ in true], [x for _, x in true],
    )  # fmt: skip


def _least_mean(head: Weighted, low: list[Array], high: list[Array], word: tuple[int, ...], k: int) -> Fraction:
    """The least mean on one path: the smallest values with their greatest weights, the others with their least."""
    i, row = len(word) - 1, word[-1]
    terms = []
    for j, b in enumerate(word[:-1]):
        value = head.values[j][b, min(row, head.values[j].shape[1] - 1), k]
        terms.append((value, low[j][b, row, 0], high[j][b, row, 0]))
    terms.append((head.own[row, k], low[i][0, row, 0], high[i][0, row, 0]))
    exact = sorted(tuple(Fraction(float(x)) for x in term) for term in terms)
    means = []
    for cut in range(1, len(exact) + 1):
        weights = [t[2] for t in exact[:cut]] + [t[1] for t in exact[cut:]]
        means.append(sum(e * t[0] for e, t in zip(weights, exact, strict=True)) / sum(weights))
    return min(means)


def check_corners(seed: int) -> None:
    """Intervals of weights from random boxes of queries and keys: every corner of the boxes is inside."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    layer = {"n_heads": 1, "d_head": 1, "d_mlp": 0}
    case.config |= {"layers": [layer, layer], "d_model": 1, "causal": True, "attention_scale": -0.5}
    from .path_cases import random_weights

    case.weights = random_weights(rng, case.config, 3.0)
    graph = case.graph(case.n, 0, [])
    if graph is None:
        return
    bounds = Bounds(PathModel(case.model(), case.n, np.arange(case.tokens)), graph)
    attention = bounds.model.blocks[1].attention
    assert attention is not None
    for i, step in enumerate(graph.steps):
        for letter in "QK":
            size = attention.size[letter] / 4 * float(rng.choice([0.01, 1.0]))
            shape = (step.classes, 1, 1)
            mid, rad = rng.uniform(-1, 1, size=shape) * size, rng.random(shape) * size
            bounds.boxes[1, i, letter] = Box(mid, rad, np.arange(step.classes))
        powers = bounds._powers(1, i, attention)
        keys = [bounds.boxes[1, j, "K"] for j in range(i)]
        mid, rad = (np.concatenate([np.zeros(0), *(getattr(x, y)[:, 0, 0] for x in keys)]) for y in ("mid", "rad"))
        own, query = bounds.boxes[1, i, "K"], bounds.boxes[1, i, "Q"]
        for a, sign, one, other in itertools.product(range(step.classes), (-1, 1), (-1, 1), (-1, 1)):
            q = LONG(query.mid[a, 0, 0]) + sign * LONG(query.rad[a, 0, 0])
            k = [*(mid.astype(LONG) + one * rad), own.mid[a, 0, 0] + other * LONG(own.rad[a, 0, 0])]
            for mixed in range(2):  # keys at the same corner, or in turn
                turned = (
                    np.array(k) if not mixed else np.array(k) - 2 * one * np.array([*rad, 0]) * (np.arange(len(k)) % 2)
                )
                score = LONG(attention.scale) * q * turned
                low, high = (
                    np.append(powers.low[0, a], powers.own_low[0, a]),
                    np.append(powers.high[0, a], powers.own_high[0, a]),
                )
                assert shifted(score[None], low[None], high[None]), "weights of a corner"


# --- counts and proofs -------------------------------------------------------------------------------------------


def check_counts(seed: int) -> None:
    """Least sums and counts of random numbers on edges, against all paths, in exact arithmetic."""
    rng = np.random.default_rng(seed)
    for case, _, graph, words in cases(seed):
        own = [(i, rng.normal(size=s.classes) * 10.0 ** rng.integers(-9, 3)) for i, s in enumerate(graph.steps)]
        own = own[int(rng.integers(case.n)) :]
        for at, (_, part) in enumerate(own):
            if rng.random() < 0.3:
                part[:] = part.round()
            if rng.random() < 0.1:
                part *= 2.0 ** (-1040 if at else 100)
        bias = Fraction(float(rng.choice([0.0, 1.0, rng.normal()])))
        classes = [path(graph, word) for word in words]
        if rng.random() < 0.5:  # of some word, the sum is exactly 0
            bias = -sum((Fraction(float(part[classes[0][i]])) for i, part in own), Fraction(0))
        sums = paths._integers(graph, own, bias)
        true = [sum((Fraction(float(part[a[i]])) for i, part in own), bias) for a in classes]
        whole = [sum(int(t[x]) for t, x in zip(sums.terms, a, strict=True)) + sums.constant for a in classes]
        assert all(t > 0 for t, w in zip(true, whole, strict=True) if w > 0), "integers are rounded down"
        assert paths._least(graph, sums) == min(whole), "the least sum"
        exact = sum(w <= 0 for w in whole)
        assert exact >= sum(t <= 0 for t in true), "words that may fail"
        for levels in (1, 3, 100):
            assert exact <= paths._count(graph, sums, levels) <= len(words), "a count"
        fine = paths._Sums([t >> 25 for t in sums.terms], sums.constant >> 25)
        few = sum(sum(int(t[x]) for t, x in zip(fine.terms, a, strict=True)) + fine.constant <= 0 for a in classes)
        assert paths._count(graph, fine, 10**6) == few, "a count is exact at many levels"


def trees(case: Case, seed: int) -> Json:
    rng = np.random.default_rng(seed)
    labels = [y for y in range(case.config["d_vocab_out"]) if rng.random() < 0.9]
    return [{"n": case.n, "label": y, "tree": random_tree(rng, case, case.n, y)} for y in labels]


def proved_by(case: Case, found: Json) -> int:
    """What the checker takes as proved, by asking it for ever greater shares."""
    total = case.tokens**case.n
    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        outcome = case.check(found, Fraction(middle, total))
        if isinstance(outcome, Valid):
            low = middle
        else:
            assert isinstance(outcome, Invalid), outcome
            assert "are proved right" in outcome.why or "may win" in outcome.why, outcome
            high = middle
    return low


def check_proof(seed: int) -> tuple[int, int, int]:
    """(proved, right, all) of random trees: never is more proved than is right, in no leaf and not altogether."""
    case = random_case(seed)
    return check_trees(case, trees(case, seed))


def check_trees(case: Case, found: Json) -> tuple[int, int, int]:
    """The same of these trees."""
    right = case.right(case.n)
    proved = proved_by(case, found) if found else 0
    assert proved <= right, "more is proved than is right"
    for tree in found:
        for restrictions, node in leaves(tree["tree"]):
            if node[0] != "open":
                _check_leaf(case, tree["label"], restrictions, node)
    return proved, right, case.tokens**case.n


def _check_leaf(case: Case, label: int, restrictions: list[Restriction], node: Json) -> None:
    words = [w for w in case.words(case.n) if case.label(w) == label and case.meets(w, restrictions)]
    right = sum(int(Run(case, w).logits.argmax()) == label for w in words)
    graph = case.graph(case.n, label, restrictions)
    if graph is None:
        return
    checker = paths._Checker(_Theorem(case), Labels(np.zeros((1, 1)), np.zeros(1)), np.array(case.states))  # type: ignore
    checker.models[case.n] = PathModel(case.model(), case.n, np.arange(case.tokens))
    checker.vocab = np.arange(case.tokens)
    known = checker._whole(case.n).known(graph, True) if node[0] == "shared" else None
    try:
        levels = dict(node[1])
        duels = [(label, w, levels.get(w, 0)) for w in range(case.config["d_vocab_out"]) if w != label]
        proved = checker._leaf(case.n, graph, duels, known)
    except Rejected as error:
        assert "may win" in error.why, error
        return
    assert 0 <= proved <= right, "more is proved of a leaf than is right"


class _Theorem:
    """As much of a theorem as a leaf needs."""

    def __init__(self, case: Case) -> None:
        self.codec = type("Codec", (), {"outputs": tuple(range(case.config["d_vocab_out"]))})()
        self.domain = type("Domain", (), {"vocab": ()})()
