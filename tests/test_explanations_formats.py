"""Other tools' files: read in the shape their writers give them, written and read back, and refused by name."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from certiformer.explanations import FORMATS, ScoredCircuit, read, unscored, write
from certiformer.explanations.restricted_pickle import ALLOWED
from certiformer.models import Circuit, InputError, LayerConfig, TransformerConfig, full_circuit
from certiformer.models.circuits import all_edges

CONFIG = TransformerConfig(4, 3, 3, 2, (LayerConfig(2, 2, 3), LayerConfig(2, 2, 5)))
ODD = TransformerConfig(4, 3, 3, 2, (LayerConfig(1, 2, 3), LayerConfig(0, 0, 4), LayerConfig(2, 2, 0)))
NO_MLP = TransformerConfig(4, 3, 3, 2, (LayerConfig(2, 2, 0), LayerConfig(2, 2, 5)))
EDGES = tuple(map(str, all_edges(CONFIG)))


def some_circuit(config: TransformerConfig, seed: int, share: float = 0.4) -> ScoredCircuit:
    generator = random.Random(seed)
    edges = list(map(str, all_edges(config)))
    scores = {edge: generator.gauss(0, 1) for edge in edges}
    kept = [edge for edge in edges if generator.random() < share]
    return ScoredCircuit.from_edges(config, scores, "eap", "resample", chosen=kept)


@pytest.mark.parametrize("config", [CONFIG, NO_MLP, ODD], ids=["full", "no MLP in layer 0", "unequal layers"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_read_back(tmp_path: Path, format: Any, config: TransformerConfig) -> None:
    for seed in range(5):
        found = some_circuit(config, seed)
        write(found, tmp_path / "file", format)
        for asked in (None, format):
            back = read(tmp_path / "file", config, asked)
            if format != "auto-circuit":
                assert back.chosen is not None and found.chosen is not None
                assert back.chosen.edges == found.chosen.edges
            if format in ("certiformer", "eap-ig", "eap-ig-pt", "auto-circuit"):
                assert back.by_edge == found.by_edge
            if format == "acdc":
                assert back.by_edge == {e: s for e, s in found.by_edge.items() if e in found.circuit().edges}


def mib_graph() -> dict[str, Any]:
    """As EAP-IG's `to_json` writes it: every node but logits has a flag, every edge a score and a flag."""
    kept = {"input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->logits"}
    nodes = {"input", "a0.h1", "m1"}
    names = ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    return {
        "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4},
        "nodes": {name: {"in_graph": name in nodes or name == "logits"} for name in names},
        "edges": {edge: {"score": 0.25 * place, "in_graph": edge in kept} for place, edge in enumerate(EDGES)},
    }


def test_a_mib_graph(tmp_path: Path) -> None:
    graph = mib_graph()
    (tmp_path / "g.json").write_text(json.dumps(graph))
    found = read(tmp_path / "g.json", CONFIG, ablation="mean")
    assert found.circuit().edges == {"input->a0.h1<v>", "a0.h1->m1", "m1->logits", "input->logits"}
    assert found.circuit().nodes == {"input", "a0.h1", "m1", "logits"}
    assert found.circuit().ablation == found.ablation == "mean"
    assert found.by_edge[EDGES[3]] == 0.75
    write(found, tmp_path / "h.json", "eap-ig")
    assert json.loads((tmp_path / "h.json").read_text()) == graph


def test_scores_of_nodes_are_kept(tmp_path: Path) -> None:
    graph = mib_graph()
    for place, entry in enumerate(graph["nodes"].values()):
        entry["score"] = place / 3
    (tmp_path / "g.json").write_text(json.dumps(graph))
    for format in ("eap-ig", "eap-ig-pt"):
        write(read(tmp_path / "g.json", CONFIG), tmp_path / "h", format)  # type: ignore[arg-type]
        write(read(tmp_path / "h", CONFIG), tmp_path / "i.json", "eap-ig")
        back = json.loads((tmp_path / "i.json").read_text())
        del back["nodes"]["logits"]["score"], graph["nodes"]["logits"]["score"]
        assert back == graph
        graph["nodes"]["logits"]["score"] = 7 / 3


def test_a_graph_as_tensors(tmp_path: Path) -> None:
    """Columns by q, then k, then v of all heads, as EAP-IG has them; half of the table is of edges that are none."""
    sources = ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    targets = [f"a0.h{h}<{s}>" for s in "qkv" for h in range(2)] + ["m0"]
    targets += [f"a1.h{h}<{s}>" for s in "qkv" for h in range(2)] + ["m1", "logits"]
    scores = torch.arange(len(sources) * len(targets), dtype=torch.float32).view(len(sources), -1) / 7
    kept = torch.zeros(len(sources), len(targets), dtype=torch.bool)
    kept[1, targets.index("a1.h1<k>")] = kept[0, targets.index("a0.h0<q>")] = kept[5, -1] = True
    data = {
        "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4},
        "src_nodes": sources,
        "dst_nodes": targets,
        "edges_scores": scores,
        "edges_in_graph": kept,
        "nodes_in_graph": torch.tensor([True, True, False, False, False, True, False]),
    }
    torch.save(data, tmp_path / "g.pt")
    found = read(tmp_path / "g.pt", CONFIG)
    assert found.circuit().edges == {"a0.h0->a1.h1<k>", "input->a0.h0<q>", "a1.h1->logits"}
    for edge in EDGES:
        source, _, target = edge.partition("->")
        assert found.by_edge[edge] == float(scores[sources.index(source), targets.index(target)])
    write(found, tmp_path / "h.pt", "eap-ig-pt")
    back = torch.load(tmp_path / "h.pt", weights_only=True)
    assert back["src_nodes"] == sources and back["dst_nodes"] == targets and torch.equal(back["edges_in_graph"], kept)
    assert torch.equal(back["nodes_in_graph"], data["nodes_in_graph"])


def broken_graph(**changes: Any) -> dict[str, Any]:
    graph = mib_graph()
    for key, value in changes.items():
        graph[key] = {**graph[key], **value} if isinstance(value, dict) else value
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (broken_graph(cfg={"n_heads": 4}), r"n_heads 4 \(this model: 2\)"),
        (broken_graph(cfg={"parallel_attn_mlp": True}), "beside attention"),
        (broken_graph(edges={"a9.h0->logits": {"score": 1.0, "in_graph": True}}), "a9.h0->logits"),
        (broken_graph(edges={"m1->a0.h0<q>": {"score": 1.0, "in_graph": True}}), "m1->a0.h0<q>"),
        (broken_graph(edges={"input->a0.h0": {"score": 1.0, "in_graph": True}}), "ends in <q>, <k> or <v>"),
        (broken_graph(edges={"input->logits": {"score": "high", "in_graph": True}}), "score of input->logits"),
        (broken_graph(edges={"input->logits": {"score": 1.0, "in_graph": 1}}), "in_graph of input->logits"),
        (broken_graph(nodes={"a0.h0": {"in_graph": True, "neurons": [True, False]}}), "a0.h0 is in this graph without"),
        (broken_graph(nodes={"a7.h0": {"in_graph": True}}), "a7.h0"),
        (broken_graph(nodes=[1]), "nodes must be an object"),
        (broken_graph(edges=3), "edges must be an object"),
    ],
)
def test_graphs_of_other_models_are_refused(tmp_path: Path, graph: Any, message: str) -> None:
    (tmp_path / "g.json").write_text(json.dumps(graph))
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "g.json", CONFIG)
    assert "g.json" in str(error.value)


def test_a_kept_edge_of_an_mlp_that_the_model_has_not(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps(mib_graph()))
    read(tmp_path / "g.json", NO_MLP)  # nothing of m0 is in the circuit
    graph = broken_graph(edges={"m0->logits": {"score": 1.0, "in_graph": True}})
    (tmp_path / "g.json").write_text(json.dumps(graph))
    with pytest.raises(InputError, match="m0->logits"):
        read(tmp_path / "g.json", NO_MLP)


class _AcdcIndex:
    """In the shape of ACDC's TorchIndex, for pickling."""

    def __init__(self, parts: list[Any]) -> None:
        self.as_index = tuple(slice(None) if part is None else part for part in parts)
        self.hashable_tuple = tuple(parts)


class _AcdcEdge:
    def __init__(self, present: bool, effect_size: float | None) -> None:
        self.edge_type, self.present, self.effect_size = 0, present, effect_size


for _name, _made in (("TorchIndex", _AcdcIndex), ("Edge", _AcdcEdge)):
    _made.__module__, _made.__qualname__, _made.__name__ = "acdc.TLACDCEdge", _name, _name


@pytest.fixture
def acdc_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Makes pickle write these classes under ACDC's names."""
    module = types.ModuleType("acdc.TLACDCEdge")
    for name, made in (("TorchIndex", _AcdcIndex), ("Edge", _AcdcEdge)):
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "acdc", types.ModuleType("acdc"))
    monkeypatch.setitem(sys.modules, "acdc.TLACDCEdge", module)
    return module


@pytest.mark.usefixtures("acdc_module")
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("style", ["list", "dictionary", "edges"])
def test_acdc_edges(tmp_path: Path, protocol: int, style: str) -> None:
    whole, head1 = _AcdcIndex([None]), _AcdcIndex([None, None, 1])
    rows: list[Any] = [
        (("blocks.1.hook_resid_post", whole, "blocks.0.attn.hook_result", head1), 0.5),
        (("blocks.0.hook_q_input", head1, "hook_embed", whole), -0.25),
        (("blocks.0.hook_q_input", head1, "hook_pos_embed", whole), 0.125),
        (("blocks.0.attn.hook_q", head1, "blocks.0.hook_q_input", head1), 3.0),
        (("blocks.0.hook_v_input", head1, "blocks.0.hook_resid_pre", whole), 1.0),  # its own v is missing: cut off
        (("blocks.1.hook_resid_mid", whole, "blocks.0.hook_mlp_out", whole), 2.0),
        (("blocks.1.hook_mlp_out", whole, "blocks.1.hook_resid_mid", whole), None),
    ]
    if style == "dictionary":
        data: Any = OrderedDict(rows)
    elif style == "edges":
        data = {key: _AcdcEdge(True, effect) for key, effect in rows}
        data["blocks.1.hook_resid_post", whole, "hook_embed", whole] = _AcdcEdge(False, 9.0)
    else:
        data = rows
    (tmp_path / "edges.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    found = read(tmp_path / "edges.pkl", CONFIG)
    assert found.by_edge == {"a0.h1->logits": 0.5, "input->a0.h1<q>": -0.25, "m0->m1": 2.0}
    assert found.circuit().edges == set(found.by_edge)
    assert "coarsened" not in found.details


@pytest.mark.usefixtures("acdc_module")
def test_acdc_reads_what_is_written_for_it(tmp_path: Path) -> None:
    """Python's own unpickler, with ACDC's classes at hand, gives their objects."""
    found = some_circuit(CONFIG, 1)
    write(found, tmp_path / "e.pkl", "acdc")
    rows = pickle.loads((tmp_path / "e.pkl").read_bytes())
    (child, child_index, parent, parent_index), score = rows[0]
    assert isinstance(child_index, _AcdcIndex) and isinstance(parent_index, _AcdcIndex)
    assert child_index.as_index[0] == slice(None) and child_index.hashable_tuple[0] is None
    assert child.startswith("blocks.") and parent.startswith("blocks.") and isinstance(score, float)


def test_interpbench_edges(tmp_path: Path) -> None:
    data = [
        ("hook_embed", "blocks.0.attn.hook_result[1]"),  # by heads: all three inputs
        ("hook_pos_embed", "blocks.0.hook_q_input[0]"),
        ("blocks.0.attn.hook_result[1]", "blocks.1.hook_mlp_out"),
        ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"),
    ]
    (tmp_path / "edges.pkl").write_bytes(pickle.dumps(data))
    found = read(tmp_path / "edges.pkl", CONFIG)
    heads = {f"input->a0.h1<{slot}>" for slot in "qkv"}
    assert found.circuit().edges == heads | {"input->a0.h0<q>", "a0.h1->m1", "m1->logits"}
    assert "input->a0.h0<q>" in found.details["coarsened"] and not found.by_edge
    (tmp_path / "edges.pkl").write_bytes(pickle.dumps([]))
    assert read(tmp_path / "edges.pkl", CONFIG).circuit().edges == frozenset()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([("hook_embed", "blocks.7.hook_mlp_out")], "input->m7"),
        ([("blocks.1.hook_mlp_out", "blocks.0.hook_mlp_in")], "m1->m0"),
        ([("hook_embed", "blocks.0.hook_resid_post")], "hook_embed -> blocks.0.hook_resid_post"),
        ([("hook_embed", "the end")], "got 'the end'"),
        ([("hook_embed", "blocks.0.hook_mlp_in", "x")], "pairs of names"),
        ([(("a", None, "b"), 1.0)], r"\(child, index, parent, index\)"),
        ([(("blocks.0.hook_mlp_in", (0,), "hook_embed", (None,)), 1.0)], r"index of blocks.0.hook_mlp_in"),
        ([(("blocks.0.hook_mlp_in", (None,), "hook_embed", (None,)), "x")], "effect size"),
        (3, "got int"),
        ("text", "edges"),
    ],
)
def test_edges_that_are_none_are_named(tmp_path: Path, data: Any, message: str) -> None:
    (tmp_path / "edges.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "edges.pkl", CONFIG)


class _Attack:
    """Unpickled by Python, this would run a command."""

    def __init__(self, path: Path, called: Any) -> None:
        self.path, self.called = path, called

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.called, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("called", [os.system, eval, exec, getattr], ids=["system", "eval", "exec", "getattr"])
def test_a_malicious_pickle_is_refused_with_what_it_wanted(tmp_path: Path, protocol: int, called: Any) -> None:
    mark = tmp_path / "was-here"
    raw = pickle.dumps([_Attack(mark, called)], protocol=protocol)
    (tmp_path / "edges.pkl").write_bytes(raw)
    message = f"import .*{called.__name__}|no JSON" if protocol >= 2 else "no JSON"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "edges.pkl", CONFIG)
    torch.save({"x": _Attack(mark, called)}, tmp_path / "g.pt")
    with pytest.raises(InputError, match=f"wants to import .*{called.__name__}"):
        read(tmp_path / "g.pt", CONFIG)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["TorchIndex", "Edge", "EdgeType"])
def test_a_pickle_cannot_change_the_classes_that_stand_in(tmp_path: Path, name: str) -> None:
    """BUILD with a pair sets attributes of whatever is on the stack: here, of the class."""
    state = pickle.NONE + pickle.EMPTY_DICT + pickle.dumps("planted", 2)[2:-1] + pickle.NEWTRUE + pickle.SETITEM
    pushed = pickle.GLOBAL + f"acdc.TLACDCEdge\n{name}\n".encode()
    raw = pickle.PROTO + b"\x02" + pushed + state + pickle.TUPLE2 + pickle.BUILD + pickle.STOP
    (tmp_path / "edges.pkl").write_bytes(raw)
    with pytest.raises(InputError):
        read(tmp_path / "edges.pkl", CONFIG)
    assert not any(hasattr(made, "planted") for made in ALLOWED.values())


def test_damaged_files_are_bad_input(tmp_path: Path) -> None:
    generator = random.Random(0)
    found = some_circuit(CONFIG, 3)
    for format in FORMATS:
        write(found, tmp_path / "file", format)  # type: ignore[arg-type]
        raw = (tmp_path / "file").read_bytes()
        for _ in range(40):
            cut = bytearray(raw[: generator.randrange(len(raw))] if generator.random() < 0.3 else raw)
            for _ in range(3):
                if cut:
                    cut[generator.randrange(len(cut))] = generator.randrange(256)
            (tmp_path / "file").write_bytes(bytes(cut))
            try:
                read(tmp_path / "file", CONFIG)
            except InputError:
                pass


def test_auto_circuit_scores(tmp_path: Path) -> None:
    data = {
        "blocks.0.hook_q_input": torch.tensor([[1.0], [2.0]]),
        "blocks.1.hook_mlp_in": torch.arange(6.0),
        "blocks.1.hook_resid_post": torch.arange(7.0) * 10,
    }
    torch.save(data, tmp_path / "scores.pkl")
    found = read(tmp_path / "scores.pkl", CONFIG).by_edge
    assert (found["input->a0.h0<q>"], found["input->a0.h1<q>"]) == (1.0, 2.0)
    assert (found["m0->m1"], found["a1.h1->m1"], found["m1->logits"], found["a0.h0->logits"]) == (3, 5, 60, 10)
    assert len(found) == 2 + 6 + 7
    torch.save({"blocks.1.hook_attn_in": torch.arange(8.0).view(2, 4)}, tmp_path / "scores.pkl")
    found = read(tmp_path / "scores.pkl", CONFIG).by_edge
    assert {found[f"a0.h1->a1.h1<{slot}>"] for slot in "qkv"} == {6.0} and len(found) == 24
    refused: list[tuple[dict[str, Any], str]] = [
        ({"blocks.5.hook_mlp_in": torch.zeros(3)}, "no such modules: blocks.5.hook_mlp_in"),
        ({"blocks.0.hook_mlp_in": torch.zeros(9)}, r"must have shape \(3,\)"),
        ({"blocks.0.hook_mlp_in": torch.zeros(4, 3)}, "not split by position"),
        ({"task": {"eap": torch.zeros(3)}}, r"several sets of prune scores, under \['task'\]"),
    ]
    for broken, message in refused:
        torch.save(broken, tmp_path / "scores.pkl")
        with pytest.raises(InputError, match=message):
            read(tmp_path / "scores.pkl", CONFIG)


def test_a_circuit_without_scores(tmp_path: Path) -> None:
    circuit = full_circuit(CONFIG, "zero")
    write(unscored(circuit, CONFIG), tmp_path / "c.json", "circuit")
    back = read(tmp_path / "c.json", CONFIG)
    assert back.circuit() == circuit and not back.by_edge
    assert Circuit.from_json(json.loads((tmp_path / "c.json").read_text())) == circuit
    with pytest.raises(InputError, match="no such nodes or edges"):
        read(tmp_path / "c.json", NO_MLP)


def test_unequal_layers_are_written_as_the_filled_model_has_them(tmp_path: Path) -> None:
    """EAP-IG makes all names from `cfg`, and finds each in the file."""
    write(some_circuit(ODD, 0), tmp_path / "g.json", "eap-ig")
    graph = json.loads((tmp_path / "g.json").read_text())
    filled = TransformerConfig(4, 3, 3, 2, (LayerConfig(2, 2, 1),) * 3)
    assert graph["cfg"]["n_heads"] == 2
    assert list(graph["edges"]) == list(map(str, all_edges(filled)))
    assert not any(entry["in_graph"] for edge, entry in graph["edges"].items() if "a1." in edge or "m2" in edge)


def test_mixed_granularity_is_refused(tmp_path: Path) -> None:
    by_nodes = Circuit.from_nodes(CONFIG, ["a0.h1", "m1"], "zero")
    (tmp_path / "c.json").write_text(json.dumps(by_nodes.to_json()))
    assert read(tmp_path / "c.json", CONFIG).circuit() == by_nodes
    mixed = {**by_nodes.to_json(), "edges": sorted(by_nodes.edges - {"a0.h1->m1"})}
    (tmp_path / "c.json").write_text(json.dumps(mixed))
    with pytest.raises(InputError, match="mixed: a0.h1->m1"):
        read(tmp_path / "c.json", CONFIG)


def test_what_no_format_says_is_said(tmp_path: Path) -> None:
    infinite = ScoredCircuit.from_edges(CONFIG, {"input->logits": math.inf}, "acdc", "zero", chosen=[])
    with pytest.raises(InputError, match="score of input->logits is inf"):
        write(infinite, tmp_path / "g.json", "eap-ig")
    with pytest.raises(InputError, match="pass top="):
        write(ScoredCircuit.from_edges(CONFIG, {}, "eap", "zero"), tmp_path / "c.json", "circuit")
    with pytest.raises(InputError, match="format must be one of"):
        write(infinite, tmp_path / "g", "dot")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="format must be one of"):
        read(tmp_path / "g", CONFIG, "dot")  # type: ignore[arg-type]
    assert not (tmp_path / "g.json").exists()
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.json", CONFIG)
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="no known format"):
        read(tmp_path / "x.json", CONFIG)
    write(some_circuit(CONFIG, 0), tmp_path / "x.json")
    with pytest.raises(InputError, match="is a JSON file, which is none of format acdc"):
        read(tmp_path / "x.json", CONFIG, "acdc")
    with pytest.raises(InputError, match="another shape"):
        read(tmp_path / "x.json", ODD)


def test_nothing_is_read_beyond_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certiformer.explanations.formats.MAX_BYTES", 10)
    (tmp_path / "x.json").write_text(" " * 11)
    with pytest.raises(InputError, match="11 bytes"):
        read(tmp_path / "x.json", CONFIG)
