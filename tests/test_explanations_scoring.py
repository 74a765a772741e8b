"""Scored circuits, and scores against a reference: selection, precision, recall, AUROC by counting, faithfulness."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import certiformer as cf
from certiformer.explanations import (
    ScoredCircuit,
    Setup,
    against,
    auroc,
    eap_ig,
    patching,
    sample_pairs,
    sampled_faithfulness,
)
from certiformer.explanations.scoring import table, to_svg
from certiformer.models import (
    Circuit,
    Codec,
    InputError,
    LayerConfig,
    Resample,
    Transformer,
    TransformerConfig,
    edit,
    full_circuit,
    outside,
    sequences,
)
from certiformer.models.circuits import all_edges
from certiformer.models.means import domain_means

CONFIG = TransformerConfig(4, 3, 3, 2, (LayerConfig(2, 2, 3), LayerConfig(1, 2, 0)))


def scored(values: dict[str, float], **kwargs: object) -> ScoredCircuit:
    return ScoredCircuit.from_edges(CONFIG, values, "test", "zero", **kwargs)  # type: ignore[arg-type]


def test_the_top_edges_greedily_from_the_logits() -> None:
    values = {"input->a0.h0<q>": 9.0, "a0.h0->m0": 8.0, "m0->logits": -1.0, "input->logits": 2.0, "a0.h1->logits": 0.5}
    found = scored(values)
    # Greedy: what is scored highest among edges into what is reached; the 9 and 8 are reached through m0 only.
    assert found.circuit(top=1).edges == {"input->logits"}
    assert found.circuit(top=2).edges == {"input->logits"}  # m0->logits has no input yet: pruned
    assert found.circuit(top=4).edges == {"input->logits", "m0->logits", "a0.h0->m0", "input->a0.h0<q>"}
    assert found.circuit(top=2, greedy=False).edges == frozenset()
    assert found.circuit(top=4, greedy=False).edges == set(values) - {"a0.h1->logits"}
    assert found.circuit(top=1, absolute=False).edges == {"input->logits"}
    assert found.circuit(threshold=1.0).edges == set(values) - {"a0.h1->logits"}
    assert found.circuit(threshold=1.0, absolute=False).edges == {"input->logits"}
    assert found.circuit(top=4).ablation == "zero"


def test_a_greedy_circuit_is_what_a_plain_search_selects() -> None:
    generator = random.Random(3)
    edges = list(map(str, all_edges(CONFIG)))
    for _ in range(20):
        found = scored({edge: generator.choice([0.0, 0.5, -0.5, generator.gauss(0, 1)]) for edge in edges})
        kept: list[str] = []
        for top in range(1, len(edges) + 1):
            reached = {"logits", *(edge.partition("->")[0] for edge in kept)}
            into = [e for e in edges if e not in kept and e.partition("->")[2].partition("<")[0] in reached]
            if into:
                kept.append(max(into, key=lambda e: (abs(found.by_edge[e]), -edges.index(e))))
            assert found.circuit(top=top) == Circuit.from_edges(kept, "zero").pruned()
        assert found.circuit(top=len(edges)) == full_circuit(CONFIG, "zero")


def test_what_cannot_be_selected_is_said() -> None:
    found = scored({"input->logits": 1.0})
    with pytest.raises(InputError, match="pass top="):
        found.circuit()
    with pytest.raises(InputError, match="not both"):
        found.circuit(top=1, threshold=0.0)
    with pytest.raises(InputError, match="1 to 1, the number of scored edges, got 2"):
        found.circuit(top=2)
    with pytest.raises(InputError, match="NaN"):
        found.circuit(threshold=math.nan)
    with pytest.raises(InputError, match="no such nodes or edges: a7.h0, a7.h0->logits"):
        scored({"a7.h0->logits": 1.0})
    with pytest.raises(InputError, match="needs as many scores"):
        ScoredCircuit(CONFIG, torch.zeros(3), "x", "zero")
    assert found.with_chosen(Circuit.from_edges(["input->logits"])).circuit().edges == {"input->logits"}


def test_json_is_exact(tmp_path: Path) -> None:
    model = Transformer.initialised(CONFIG)
    edges = list(map(str, all_edges(CONFIG)))
    values = dict(zip(edges, [math.inf, -math.inf, 0.1, 1 / 3, -0.0], strict=False))
    means = domain_means(model, sequences(range(3), 3), Codec((0, 1, 2), False, "categorical", (0, 1)), 5)
    found = ScoredCircuit(
        CONFIG,
        torch.tensor([values.get(e, math.nan) for e in edges], dtype=torch.float64),
        "eap",
        "mean",
        {"metric": "kl"},
        Circuit.from_edges(edges[:2], "mean"),
        means,
    )
    found.save(tmp_path / "a.json")
    back = ScoredCircuit.load(tmp_path / "a.json")
    assert back.by_edge == values and back.details == found.details and back.chosen == found.chosen
    assert (back.method, back.ablation, back.config) == ("eap", "mean", CONFIG)
    assert back.means is not None and torch.equal(back.means.values["m0"], means.values["m0"])
    assert json.loads((tmp_path / "a.json").read_text())["scores"][edges[0]] == "inf"
    for broken in ("{}", "[", '{"a": NaN}'):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(InputError, match="scored circuit"):
            ScoredCircuit.load(tmp_path / "b.json")


def test_auroc_counts_pairs() -> None:
    generator = random.Random(1)
    for size in range(2, 9):
        for _ in range(20):
            items = [f"e{i}" for i in range(size)]
            scores = {item: float(generator.randint(0, 3)) for item in items if generator.random() < 0.8}
            positive = {item for item in items if generator.random() < 0.5}
            pairs = list(itertools.product(positive, set(items) - positive))
            value = lambda item: scores.get(item, -math.inf)  # noqa: E731, B023
            wins = sum((value(p) > value(n)) + 0.5 * (value(p) == value(n)) for p, n in pairs)
            assert auroc(scores, positive, items) == (wins / len(pairs) if pairs else None)
    assert auroc({"a": 1.0, "b": 0.0}, {"a"}, ["a", "b"]) == 1.0
    assert auroc({"a": 1.0, "b": 1.0}, {"a"}, ["a", "b"]) == 0.5
    assert auroc({"a": 1.0}, {"a"}, ["a"]) is None
    with pytest.raises(InputError, match="NaN"):
        auroc({"a": math.nan}, {"a"}, ["a"])


def test_precision_and_recall_by_hand() -> None:
    reference = Circuit.from_edges(["input->a0.h0<v>", "a0.h0->logits", "input->logits"])
    found = Circuit.from_edges(["input->a0.h0<v>", "a0.h0->logits", "a0.h1->logits", "input->a0.h1<q>"])
    result = against(found, reference, CONFIG)
    assert result.edges is not None and result.nodes is not None
    assert (result.edges.precision, result.edges.recall) == (2 / 4, 2 / 3)
    assert (result.nodes.precision, result.nodes.recall) == (1 / 2, 1.0)
    n = len(all_edges(CONFIG))
    # A member ranks above what is none: the area under the two straight lines of the ROC curve.
    assert result.edge_auroc == pytest.approx((1 + 2 / 3 - 2 / (n - 3)) / 2)
    assert result.node_auroc == pytest.approx((1 + 1 - 1 / 3) / 2)
    empty = against(Circuit.from_edges([]), reference, CONFIG)
    assert empty.edges is not None and empty.edges.precision is None and empty.edges.recall == 0.0
    assert "precision -" in empty.to_text()
    with pytest.raises(InputError, match="pass config"):
        against(found, reference)
    with pytest.raises(InputError, match="no such nodes or edges: a5.h0"):
        against(found, Circuit.from_edges(["a5.h0->logits"]), CONFIG)


def test_a_nodes_score_is_its_best_edge_out() -> None:
    found = scored({"a0.h0->logits": 0.1, "a0.h0->m0": -5.0, "a0.h1->logits": 1.0, "m0->logits": 2.0})
    reference = Circuit.from_edges(["input->a0.h0<v>", "a0.h0->logits"])
    assert against(found, reference).node_auroc == 1.0
    assert against(found, reference).edges is None


@pytest.fixture(scope="module")
def compiled() -> cf.Compiled:
    return cf.compile(cf.programs.reverse(), vocab=range(3), max_len=4)


def test_patching_finds_no_edge_outside_the_compiled_circuit(compiled: cf.Compiled) -> None:
    """Ground truth: outside it nothing flows. Exact patching must agree; EAP-IG need not."""
    domain = sequences(range(3), range(1, 5))
    setup = Setup(compiled.model, sample_pairs(domain, compiled.codec, 60), metric="squared-error")
    exact = patching(setup)
    effects = exact.by_edge
    outside_it = [edge for edge in effects if edge not in compiled.circuit.edges]
    assert outside_it and max(effects[edge] for edge in outside_it) < 1e-8
    assert max(effects.values()) > 1e-3
    # Sources have the clean input's length, so that edges which tell the length are redundant; not so under zero.
    zero = patching(Setup(compiled.model, setup.pairs, "zero", "squared-error"))
    of_zero, of_resample = (against(found, compiled.circuit).edge_auroc for found in (zero, exact))
    assert of_zero is not None and of_resample is not None and of_zero > 0.8 > of_resample > 0.5


def test_sampled_faithfulness_is_that_of_the_edited_model(compiled: cf.Compiled) -> None:
    domain = sequences(range(3), 4)
    setup = Setup(compiled.model, sample_pairs(domain, compiled.codec, 40))
    whole = sampled_faithfulness(setup, compiled.circuit)
    assert whole.agreement == 1.0 and whole.worst_agreement == 1.0
    ((clean, source),) = setup.pairs.batches
    circuit = Circuit.from_edges(sorted(compiled.circuit.edges)[::2])
    found = sampled_faithfulness(setup, circuit)
    with torch.no_grad():
        alone = edit(compiled.model, *outside(circuit, compiled.model.config, Resample(source)))(clean)
        same = compiled.codec.decode_indices(alone) == compiled.codec.decode_indices(compiled.model(clean))
    assert found.agreement == pytest.approx(float(same.all(1).double().mean()))
    assert found.worst_agreement == pytest.approx(float(same.double().mean(1).min()))
    assert found.worst_change <= found.mean_change
    assert "sampled" in found.to_text() and json.dumps(found.to_json())
    row = clean.tolist().index(list(found.worst[0]))
    assert source.tolist()[row] == list(found.worst[1]) or clean.tolist().count(list(found.worst[0])) > 1


def test_tables_and_pictures(compiled: cf.Compiled) -> None:
    setup = Setup(compiled.model, sample_pairs(sequences(range(3), 4), compiled.codec, 10))
    found = eap_ig(setup, steps=2)
    chosen = found.with_chosen(found.circuit(top=8))
    text = table({"eap-ig": against(chosen, compiled.circuit), "alone": sampled_faithfulness(setup, chosen.circuit())})
    assert "eap-ig" in text and "worst change" in text and "node AUROC" in text
    root = ElementTree.fromstring(to_svg(chosen))
    assert root.tag.endswith("svg")
    shown = "".join(root.itertext())
    assert all(edge in shown for edge in chosen.circuit().edges)
    assert "*" in chosen.to_text()
    with pytest.raises(InputError, match="pass top="):
        to_svg(found)
