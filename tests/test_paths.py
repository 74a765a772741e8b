"""Bounds conditional on a machine's states: never above any enumerated value; what they prove is true."""

from __future__ import annotations

import copy
import itertools
import json
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.models.automata import Automaton
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.transformer import Transformer
from certiformer.verifier import path_bounds, path_means
from certiformer.verifier.balls import Ball, Unsupported
from certiformer.verifier.bounded_model import BoundedModel
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelMarginBody, LabelsBody
from certiformer.verifier.path_bounds import Margins, PathBounds
from certiformer.verifier.path_search import Search
from certiformer.verifier.reading import Subject
from certiformer.verifier.recheck import objection
from certiformer.verifier.theorems import domain_to_json
from certiformer.verifier.verdicts import Certificate
from certiformer.verifier.word_graph import Inputs, WordGraph, whole_graph, word_graph

from .path_models import random_machine, random_model


def words_of(graph: WordGraph) -> list[tuple[list[int], list[int]]]:
    """Each path: its tokens, and the place of its class at each position."""
    found: list[tuple[int, list[int], list[int]]] = [(node, [], []) for node in range(len(graph.nodes[0]))]
    for edges in graph.edges:
        found = [
            (int(edges.target[e]), [*tokens, int(edges.token[e])], [*classes, e])
            for node, tokens, classes in found
            for e in np.flatnonzero(edges.source == node).tolist()
        ]
    return [(tokens, classes) for _, tokens, classes in found]


def along(found: Margins, classes: list[int]) -> torch.Tensor:
    """[rival]: the bound along one path."""
    group = classes[-1] if len(found.const) > 1 else 0
    total = found.const[group]
    for table, e in zip(found.tables, classes, strict=True):
        total = total + table[e, group]
    return total


def margins(model: Transformer, words: list[list[int]], label: int) -> torch.Tensor:
    """[word, output] in float64: logit_label - logit_output, times n if the read-out is the mean."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(torch.tensor(words))
    times = len(words[0]) if model.config.readout == "mean" else 1
    return (logits[:, label, None] - logits) * times


@pytest.mark.parametrize("seed", range(60))
def test_no_word_of_a_graph_is_below_its_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.3, 1.0, 3.0])))
    tokens, outputs, n = model.config.d_vocab, model.config.d_vocab_out, int(rng.integers(1, 6))
    labels, states = random_machine(rng, 4, tokens, outputs), random_machine(rng, int(rng.integers(1, 4)), tokens, 1)
    seen = 0
    with torch.no_grad():
        prepared = BoundedModel(model, n)
        for label in range(outputs):
            graph = word_graph(labels, label, states.transitions.astype(np.int64), Inputs(np.arange(tokens)), n)
            words = words_of(graph)
            every = np.array(list(itertools.product(range(tokens), repeat=n)))
            assert graph.size == len(words) == int((labels.run(every) == label).sum())
            if not words:
                continue
            rivals = [w for w in range(outputs) if w != label]
            found = PathBounds(prepared, graph).margins([(label, w) for w in rivals])
            exact = margins(model, [t for t, _ in words], label)[:, rivals]
            for (_, classes), value in zip(words, exact, strict=True):
                bound = along(found, classes)
                assert bool((bound <= value).all()), (bound, value)
                seen += 1
            assert bool((found.least().amin(0) <= exact.amin(0)).all())
    assert seen


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_no_word_is_below_a_bound_that_is_shared(seed: int, shared: bool) -> None:
    """Bounds of a part of the words, with what was found over all of them."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.3, 1.0, 3.0])))
    tokens, outputs, n = model.config.d_vocab, model.config.d_vocab_out, int(rng.integers(1, 6))
    labels, states = random_machine(rng, 4, tokens, outputs), random_machine(rng, int(rng.integers(1, 4)), tokens, 1)
    moves, letters = states.transitions.astype(np.int64), np.arange(tokens)
    with torch.no_grad():
        prepared = BoundedModel(model, n)
        base = PathBounds(prepared, whole_graph(moves, letters, n))
        for label in range(outputs):
            graph = word_graph(labels, label, moves, Inputs(letters), n)
            position = int(rng.integers(n))
            graph = graph.by_token(position, letters[rng.random(tokens) < 0.6])
            if not graph.size:
                continue
            rivals = [w for w in range(outputs) if w != label]
            found = PathBounds(prepared, graph, base=base, shared=shared).margins([(label, w) for w in rivals])
            words = words_of(graph)
            exact = margins(model, [t for t, _ in words], label)[:, rivals]
            for (_, classes), value in zip(words, exact, strict=True):
                assert bool((along(found, classes) <= value).all())


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_exact_where_the_states_determine_everything(seed: int) -> None:
    """A machine that remembers the whole prefix leaves nothing open: the bound is the margin."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=0.4)
    n, tokens = 4, model.config.d_vocab
    prefixes = [w for k in range(n + 1) for w in itertools.product(range(tokens), repeat=k)]
    place = {word: i for i, word in enumerate(prefixes)}
    step = [[place.get((*word, t), 0) for t in range(tokens)] for word in prefixes]
    everything = LabelMachine(np.zeros((1, tokens), dtype=np.int32), np.zeros(1, dtype=np.int64))
    graph = word_graph(everything, 0, np.array(step), Inputs(np.arange(tokens)), n)
    with torch.no_grad():
        found = PathBounds(BoundedModel(model, n), graph).margins([(0, 1)])
    for word, classes in words_of(graph):
        bound = float(along(found, classes)[0])
        value = float(margins(model, [word], 0)[0, 1])
        assert bound <= value
        assert bound > value - 1e-6 * (1 + abs(value))


def test_saturated_attention_has_finite_bounds() -> None:
    rng = np.random.default_rng(11)
    for _ in range(10):
        model = random_model(rng, scale=30.0)
        tokens = model.config.d_vocab
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.zeros(1, 4, dtype=torch.int64))
            graph = word_graph(
                random_machine(rng, 2, tokens, 1),
                0,
                np.zeros((1, tokens), dtype=np.int64),
                Inputs(np.arange(tokens)),
                4,
            )
            if not graph.size:
                continue
            found = PathBounds(BoundedModel(model, 4), graph).margins([(0, 1)])
        assert bool(torch.isfinite(found.least()).all())
        assert float(cache["blocks.0.attn.hook_attn_scores"].nan_to_num(neginf=0).abs().max()) > 0


def true_count(model: Transformer, machine: LabelMachine, n: int) -> tuple[int, int]:
    words = np.array(list(itertools.product(range(model.config.d_vocab), repeat=n)))
    labels = machine.run(words)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(torch.from_numpy(words))
    return int((logits.argmax(-1).numpy() == labels).sum()), len(words)


def search(model: Transformer, machine: LabelMachine, states: LabelMachine, n: int) -> Search:
    letters = Inputs(np.arange(model.config.d_vocab))
    deadline = time.monotonic() + 60
    with torch.no_grad():
        models = {n: BoundedModel(model, n)}
        found = Search(models, machine, states.transitions.astype(np.int64), letters, deadline, lambda _: None)
        found.run(found.total + 1)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_what_is_proved_is_true_and_splitting_comes_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    n = 3
    machine = random_machine(rng, 3, model.config.d_vocab, model.config.d_vocab_out, -1)
    states = random_machine(rng, 2, model.config.d_vocab, 1)
    found = search(model, machine, states, n)
    right, total = true_count(model, machine, n)
    assert found.total == total
    assert found.proved <= right
    assert found.proved >= right - 1  # tiny domains are split down to words


def some_inputs(rng: np.random.Generator, tokens: int) -> Inputs:
    """Words over some of the tokens that an automaton accepts."""
    letters = np.sort(rng.choice(tokens, size=int(rng.integers(1, tokens + 1)), replace=False))
    count = int(rng.integers(1, 5))
    moves = rng.integers(0, count, (count, len(letters))).astype(np.int32)
    return Inputs(letters, Automaton(moves, rng.random(count) < 0.6))


@pytest.mark.parametrize("seed", range(40))
def test_graphs_of_any_domain_and_any_order_of_reading(seed: int) -> None:
    """Each input with the label is one path, and nothing else is."""
    rng = np.random.default_rng(seed)
    tokens, n = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    machine = replace(random_machine(rng, 4, tokens, 3, -1), last_first=bool(seed % 2))
    states = random_machine(rng, 2, tokens, 1).transitions.astype(np.int64)
    inputs = some_inputs(rng, tokens)
    every = np.array(list(itertools.product(inputs.letters, repeat=n)), dtype=np.int64)
    assert inputs.automaton is not None
    accepted = inputs.automaton.accepts(np.searchsorted(inputs.letters, every))
    assert inputs.size(n) == accepted.sum()
    for label in range(3):
        wanted = every[accepted & (machine.run(every) == label)].tolist()
        if machine.last_first:
            graphs = {last: word_graph(machine, label, states, inputs, n, last) for last in inputs.letters.tolist()}
            assert all(word[-1] == last for last, graph in graphs.items() for word, _ in words_of(graph))
        else:
            graphs = {0: word_graph(machine, label, states, inputs, n)}
        found = [word for graph in graphs.values() for word, _ in words_of(graph)]
        assert sorted(found) == wanted
        assert sum(graph.size for graph in graphs.values()) == len(wanted)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_proved_of_any_domain_is_true(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    n, tokens = 3, model.config.d_vocab
    machine = replace(random_machine(rng, 3, tokens, model.config.d_vocab_out, -1), last_first=bool(seed % 2))
    inputs = some_inputs(rng, tokens)
    every = np.array(list(itertools.product(inputs.letters, repeat=n)), dtype=np.int64)
    assert inputs.automaton is not None
    every = every[inputs.automaton.accepts(np.searchsorted(inputs.letters, every))]
    with torch.no_grad():
        outputs = model(torch.from_numpy(every)).argmax(-1).numpy() if len(every) else np.zeros(0)
        right = int((outputs == machine.run(every)).sum())
        states = random_machine(rng, 2, tokens, 1).transitions.astype(np.int64)
        found = Search({n: BoundedModel(model, n)}, machine, states, inputs, time.monotonic() + 60, lambda _: None)
        found.run(found.total + 1)  # to the end: the words that are wrong do not stop it
    assert found.total == len(every)
    assert right - 1 <= found.proved <= right


@pytest.mark.parametrize("seed", range(10))
def test_margins_of_labels_are_proved_and_no_greater_ones(seed: int) -> None:
    """The share whose margin is so great: as enumerated, and not one input more, even with another certificate."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.4, 1.0])))
    n, tokens = 3, model.config.d_vocab
    machine = replace(random_machine(rng, 3, tokens, model.config.d_vocab_out), last_first=bool(seed % 2))
    states = random_machine(rng, 2, tokens, 1)
    every = list(itertools.product(range(tokens), repeat=n))
    labels = machine.run(np.array(every))
    lead = np.array([_lead(model, word, int(label)) for word, label in zip(every, labels, strict=True)])
    least = float(np.quantile(lead[lead > 0], 0.3)) if (lead > 0).any() else 1.0
    least = float(np.float32(least * 0.99 + 1e-3))
    assert np.abs(lead - least).min() > 1e-9
    enough, total = int((lead > least).sum()), len(every)
    labelled = claim_of(model, machine, states).body
    assert isinstance(labelled, LabelsBody)
    body = LabelMarginBody(labelled.subject, machine, "a task", Fraction(least), states)
    claim, domain = Claim("forall", body).at_least(Fraction(enough, total)), cf.sequences(range(tokens), n)
    verdict = cf.prove(claim, domain, engines={"paths"}, seconds=60)
    assert isinstance(verdict, cf.Proved), verdict
    proof = json.loads(verdict.certificate.to_bytes())["proof"]
    for share, margin in ((Fraction(enough + 1, total), least), (Fraction(enough, total), float(lead.max()) + 1.0)):
        if share > 1 or not share:
            continue
        false = Claim("forall", replace(body, at_least=Fraction(margin))).at_least(share)
        assert not isinstance(cf.prove(false, domain, engines={"paths"}, seconds=10), cf.Proved)
        forged = Certificate.of({**false.theorem(), "domain": domain_to_json(domain)}, proof)
        assert objection(forged, model) is not None


def _lead(model: Transformer, word: tuple[int, ...], label: int) -> float:
    """The label's logit less the largest other, in float64."""
    against = margins(model, [list(word)], label)[0]
    times = len(word) if model.config.readout == "mean" else 1
    return float(against[torch.arange(len(against)) != label].min()) / times


def _point(ball: Ball) -> Ball:
    return Ball(ball.mid, torch.zeros_like(ball.rad))


def planted_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unsound change of the bounds."""
    if name == "no radius of queries and keys":
        kept = path_bounds.PathBounds._some_ports

        def ports(self, layer, attention, positions, asked):  # type: ignore[no-untyped-def]
            found = kept(self, layer, attention, positions, asked)
            return [path_bounds.Port(_point(x.key), x.value, _point(x.query) if asked else None) for x in found]

        monkeypatch.setattr(path_bounds.PathBounds, "_some_ports", ports)
    elif name == "no radius of values":
        kept_ports = path_bounds.PathBounds._some_ports

        def others(self, layer, attention, positions, asked):  # type: ignore[no-untyped-def]
            found = kept_ports(self, layer, attention, positions, asked)
            return [path_bounds.Port(x.key, _point(x.value), x.query) for x in found]

        monkeypatch.setattr(path_bounds.PathBounds, "_some_ports", others)
    elif name == "the tangent for the chord":
        kept_lines = path_bounds.lines

        def lines(low, high):  # type: ignore[no-untyped-def]
            found = kept_lines(low, high)
            return path_bounds.Lines(found.low, found.slope, torch.zeros_like(found.shift))

        monkeypatch.setattr(path_bounds, "lines", lines)
    elif name == "greatest path":
        for module in (path_bounds, path_means):
            monkeypatch.setattr(
                module, "shortest", lambda prefixes, kinds, costs: -KEPT(prefixes, kinds, [-x for x in costs])
            )
    elif name == "weights swapped":

        def gains(self, level):  # type: ignore[no-untyped-def]
            w = self.weights
            pairs = [*zip(self.values, w.least, w.most, strict=True), (self.own, w.own_least, w.own_most)]
            away = [(v - level[: v.shape[-3]], low, high) for v, low, high in pairs]
            return [torch.maximum(low * x, high * x) for x, low, high in away]

        monkeypatch.setattr(path_means.Means, "gains", gains)
    elif name == "level above the root":
        kept_level = path_means.Means.level

        def level(self):  # type: ignore[no-untyped-def]
            found, _ = kept_level(self)
            found = found + 0.02 * self.range
            return found, self.gains(found)

        monkeypatch.setattr(path_means.Means, "level", level)


KEPT = path_means.shortest
PLANTS = (
    "no radius of queries and keys",
    "no radius of values",
    "the tangent for the chord",
    "greatest path",
    "weights swapped",
    "level above the root",
)


@pytest.mark.parametrize("name", PLANTS)
def test_planted_faults_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_bounds(name, monkeypatch)
    for seed in range(60):
        try:
            test_no_word_of_a_graph_is_below_its_bound(seed)
        except AssertionError:
            return
    pytest.fail(f"{name} was not noticed")


def test_models_outside_the_method_are_refused() -> None:
    config = TransformerConfig(4, 4, 2, 2, (LayerConfig(1, 2, 4),), activation="gelu", readout="last")
    with pytest.raises(Unsupported, match="gelu"):
        BoundedModel(Transformer(config), 3)
    config = TransformerConfig(4, 4, 2, 2, (LayerConfig(1, 2, 0),) * 2, readout="last")
    with pytest.raises(Unsupported, match="causal"):
        BoundedModel(Transformer(config), 3)
    config = TransformerConfig(4, 40, 2, 2, (), readout="last")
    with pytest.raises(Unsupported, match="at least one layer"):
        BoundedModel(Transformer(config), 3)


def test_counts_of_a_leaf_are_never_too_low() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        tokens = int(rng.integers(2, 4))
        machine = random_machine(rng, 3, tokens, 1)
        graph = word_graph(
            machine, 0, random_machine(rng, 2, tokens, 1).transitions.astype(np.int64), Inputs(np.arange(tokens)), 4
        )
        if not graph.size:
            continue
        tables = [rng.integers(-50, 50, size=len(edges)) for edges in graph.edges]
        sums = [sum(int(t[e]) for t, e in zip(tables, classes, strict=True)) for _, classes in words_of(graph)]
        bound = int(rng.integers(-60, 60))
        exact = sum(value <= bound for value in sums)
        assert graph.count_not_above(tables, bound, 2**12) == exact
        assert graph.count_not_above(tables, bound, 4) >= exact


def test_restrictions_keep_the_right_words() -> None:
    rng = np.random.default_rng(9)
    machine, states = random_machine(rng, 3, 3, 1), random_machine(rng, 3, 3, 1)
    graph = word_graph(machine, 0, states.transitions.astype(np.int64), Inputs(np.arange(3)), 4)
    tokens = [word for word, _ in words_of(graph)]
    after = LabelMachine(states.transitions, np.arange(3))
    for time_ in range(1, 5):
        for state in range(3):
            kept = [word for word, _ in words_of(graph.by_state(time_, np.array([state])))]
            prefixes = np.array([word[:time_] for word in tokens]).reshape(len(tokens), time_)
            assert kept == [word for word, s in zip(tokens, after.run(prefixes), strict=True) if s == state]
    kept = [word for word, _ in words_of(graph.by_token(2, np.array([0, 2])))]
    assert kept == [word for word in tokens if word[2] != 1]


def claim_of(model: Transformer, machine: LabelMachine, states: LabelMachine | None = None) -> Claim:
    tokens, outputs = tuple(range(model.config.d_vocab)), tuple(range(model.config.d_vocab_out))
    codec = Codec(tokens, False, "categorical", outputs, max_len=model.config.n_ctx)
    return Claim("forall", LabelsBody(Subject(model, codec), machine, "a task", states))


@pytest.mark.parametrize("seed", range(12))
def test_the_checker_accepts_what_is_proved_and_nothing_false_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=float(rng.choice([0.4, 1.0])))
    n = 3
    machine = random_machine(rng, 3, model.config.d_vocab, model.config.d_vocab_out)
    states = random_machine(rng, 2, model.config.d_vocab, 1)
    right, total = true_count(model, machine, n)
    claim, domain = claim_of(model, machine, states), cf.sequences(range(model.config.d_vocab), n)
    proved = search(model, machine, states, n).proved
    verdict = cf.prove(claim.at_least(Fraction(proved, total)), domain, engines={"paths"}, seconds=60)
    assert isinstance(verdict, cf.Proved), verdict
    if right < total:
        for false in (claim, claim.at_least(Fraction(right + 1, total))):
            assert not isinstance(cf.prove(false, domain, engines={"paths"}, seconds=10), cf.Proved)
    else:
        assert isinstance(cf.prove(claim, domain, engines={"paths"}, seconds=60), cf.Proved)
