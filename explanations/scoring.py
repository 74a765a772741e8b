"""How good scores and circuits are: against a reference circuit, exactly, and by sampling what a circuit does alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from html import escape

import torch

from ..models.circuits import INPUT, OUTPUT, Circuit, all_edges, all_nodes
from ..models.config import TransformerConfig
from ..models.errors import InputError
from .graph_runs import run_graph
from .pairs import Setup
from .scored import ScoredCircuit


@dataclass(frozen=True)
class Match:
    """A set against a reference: `precision` and `recall` are None where nothing is claimed, or nothing is to find."""

    found: int
    reference: int
    common: int

    @property
    def precision(self) -> float | None:
        return self.common / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        return self.common / self.reference if self.reference else None

    @property
    def f1(self) -> float | None:
        total = self.found + self.reference
        return 2 * self.common / total if total else None

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True)
class Against:
    """Scores or a circuit against a reference circuit. AUROC is None if all edges (nodes) are of one kind."""

    edges: Match | None
    nodes: Match | None
    edge_auroc: float | None
    node_auroc: float | None

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {
            "edges": self.edges.to_json() if self.edges else None,
            "nodes": self.nodes.to_json() if self.nodes else None,
            "edge_auroc": self.edge_auroc,
            "node_auroc": self.node_auroc,
        }

    def to_text(self) -> str:
        """A line for edges and one for nodes."""
        lines = []
        for what, match, auroc in (("edges", self.edges, self.edge_auroc), ("nodes", self.nodes, self.node_auroc)):
            parts = [f"AUROC {_share(auroc)}"]
            if match:
                parts = [
                    f"precision {_share(match.precision)}, recall {_share(match.recall)}",
                    f"({match.common} common, {match.found} found, {match.reference} in the reference)",
                    *parts,
                ]
            lines.append(f"{what}: {' '.join(parts)}")
        return "\n".join(lines)


def against(found: ScoredCircuit | Circuit, reference: Circuit, config: TransformerConfig | None = None) -> Against:
    """Precision, recall and AUROC of edges and nodes; `input` and `logits` are in every circuit, and not counted.

    Of a `ScoredCircuit`: AUROC of its scores' magnitudes (a node's is the greatest of the edges out of it; an edge
    without a score ranks last), and precision and recall of the circuit that it selects, if it does. Of a `Circuit`
    (then `config` is needed): a member ranks above what is none.
    Raises `InputError` for circuits of another model.
    """
    if isinstance(found, ScoredCircuit):
        config, circuit = found.config, found.chosen
        scores = {edge: abs(score) for edge, score in found.by_edge.items()}
    else:
        if config is None:
            raise InputError("a circuit alone does not say which edges it leaves out: pass config=model.config")
        circuit, scores = found, dict.fromkeys(found.edges, 1.0)
        found.validate(config)
    reference.validate(config)
    edges, inner = tuple(map(str, all_edges(config))), [n for n in all_nodes(config) if n not in (INPUT, OUTPUT)]
    by_node: dict[str, float] = {}
    for edge, score in scores.items():
        source = edge.partition("->")[0]
        by_node[source] = max(score, by_node.get(source, 0.0))
    if isinstance(found, Circuit):
        by_node = {node: float(node in found.nodes) for node in inner}
    match = node_match = None
    if circuit is not None:
        match = _match(circuit.edges, reference.edges)
        node_match = _match(circuit.nodes & set(inner), reference.nodes & set(inner))
    return Against(
        match, node_match, auroc(scores, reference.edges, edges), auroc(by_node, reference.nodes, tuple(inner))
    )


def _match(found: Collection[str], reference: Collection[str]) -> Match:
    return Match(len(found), len(reference), len(set(found) & set(reference)))


def auroc(scores: Mapping[str, float], positive: Collection[str], items: Collection[str]) -> float | None:
    """The share of pairs of a positive and a negative item in which the positive scores higher, ties counted half.

    Exact: pairs are counted in integers (the Mann-Whitney statistic by ranks). Items without a score rank last. None
    if there is no such pair.
    """
    values = {item: scores.get(item, -math.inf) for item in items}
    groups: dict[float, list[int]] = {}
    for item, score in values.items():
        if math.isnan(score):
            raise InputError(f"the score of {item} is NaN; leave it out")
        counts = groups.setdefault(score, [0, 0])
        counts[item in positive] += 1
    negatives = below = doubled = 0
    for score in sorted(groups):
        negative, hits = groups[score]
        doubled += hits * (2 * below + negative)
        below += negative
        negatives += negative
    positives = len(values) - negatives
    return float(Fraction(doubled, 2 * positives * negatives)) if positives and negatives else None


@dataclass(frozen=True)
class Sampled:
    """A circuit alone against the model, on sampled pairs. Says nothing about other inputs.

    `agreement`: the share of pairs on which every decoded output is the model's; `worst_agreement`: the least share of
    positions in one pair. `mean_change`, `worst_change`: of the metric, the worst being the greatest damage.
    `worst`: the pair with the greatest damage, as token ids (clean, source).
    """

    pairs: int
    agreement: float
    worst_agreement: float
    metric: str
    mean_change: float
    worst_change: float
    worst: tuple[tuple[int, ...], tuple[int, ...]]

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return asdict(self)

    def to_text(self) -> str:
        """Mean and worst side by side."""
        rows = (
            (f"on {self.pairs} sampled pairs", "mean", "worst"),
            ("decodes as the model", f"{self.agreement:.6g}", f"{self.worst_agreement:.6g}"),
            (f"{self.metric} changes by", f"{self.mean_change:.5g}", f"{self.worst_change:.5g}"),
        )
        return "\n".join(f"{what:<34} {mean:>12} {worst:>12}" for what, mean, worst in rows)


def sampled_faithfulness(setup: Setup, circuit: Circuit) -> Sampled:
    """Runs the circuit alone on all pairs of the setup. Raises `InputError` for a circuit of another model."""
    cut = setup.layout.outside(circuit)
    sign = 1.0 if setup.measured.larger_is_better else -1.0
    agreements, changes = [], []
    for chunk in setup.chunks():
        logits = run_graph(chunk.model, chunk.clean, cut, chunk.stand_in).logits
        same = setup.labels(setup.positions(logits)) == chunk.labels
        agreements.append(same.double().mean(-1).cpu())
        clean = setup.measured.function(chunk.logits, chunk.logits, chunk.labels)
        changes.append((setup.values(chunk, logits) - clean).double().cpu())
    agreement, change = torch.cat(agreements), torch.cat(changes)
    at = int((sign * change).argmin())
    clean_words = [row for batch, _ in setup.pairs.batches for row in batch.tolist()]
    source_words = [row for _, batch in setup.pairs.batches for row in batch.tolist()]
    return Sampled(
        len(setup.pairs),
        float((agreement == 1).double().mean()),
        float(agreement.min()),
        setup.measured.name,
        float(change.mean()),
        float(change[at]),
        (tuple(clean_words[at]), tuple(source_words[at])),
    )


def table(rows: Mapping[str, Against | Sampled]) -> str:
    """Methods, a line each: edge precision, recall and AUROC, node AUROC; or mean and worst faithfulness."""
    lines = [f"{'':<16} {'edge prec.':>10} {'recall':>8} {'AUROC':>8} {'node AUROC':>10}"]
    sampled = [f"{'':<16} {'agree':>8} {'worst':>8} {'mean change':>12} {'worst change':>12}"]
    for name, row in rows.items():
        if isinstance(row, Against):
            precision, recall = (row.edges.precision, row.edges.recall) if row.edges else (None, None)
            shown = (precision, recall, row.edge_auroc, row.node_auroc)
            widths = (10, 8, 8, 10)
            texts = " ".join(f"{_share(value):>{width}}" for value, width in zip(shown, widths, strict=True))
            lines.append(f"{name:<16} {texts}")
        else:
            sampled.append(
                f"{name:<16} {row.agreement:>8.4f} {row.worst_agreement:>8.4f} {row.mean_change:>12.5g} "
                f"{row.worst_change:>12.5g}"
            )
    return "\n".join([*(lines if len(lines) > 1 else []), *(sampled if len(sampled) > 1 else [])])


def to_svg(scored: ScoredCircuit, circuit: Circuit | None = None) -> str:
    """The circuit's picture with a list of its edges' scores beneath; default: the circuit that is selected.

    Raises `InputError` if none is.
    """
    shown = circuit or scored.circuit()
    picture = shown.to_svg()
    head, _, rest = picture.partition(">")
    size = head.split('viewBox="')[1].split('"')[0].split()
    width, height = float(size[2]), float(size[3])
    values = scored.by_edge
    rows = [edge for edge in scored.ranked() if edge in shown.edges]
    lines = [
        f'<text x="20" y="{height + 20 + 16 * place:g}" font-size="12">{escape(edge)}: {values[edge]:.4g}</text>'
        for place, edge in enumerate(rows)
    ]
    title = f"{scored.method}, {scored.ablation} ablation: {len(shown.edges)} edges"
    lines.append(f'<text x="20" y="16" font-size="12">{escape(title)}</text>')
    total = height + 30 + 16 * len(rows)
    head = head.replace(f'viewBox="0 0 {size[2]} {size[3]}"', f'viewBox="0 0 {max(width, 320):g} {total:g}"')
    return head + ">" + rest.replace("</svg>", "\n".join([*lines, "</svg>"]))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
