"""Verified discovery: edges are deleted as long as a prover proves that the rest alone decides as the model does.

`decide(circuit)` is asked about one circuit after the other. Of the result every step has its verdict: of a deletion
that the rest is faithful on every input, of a kept edge that the rest without it is refuted by a witness. Only with
such a witness for each kept edge is the circuit called 1-minimal: no single edge can be deleted. (Under zero, mean and
resample ablation faithfulness is not monotone, so that a smaller circuit, less several edges at once, may exist.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..models.circuits import Circuit, all_edges, full_circuit
from ..models.config import TransformerConfig
from ..models.errors import InputError
from ..models.files import parse_json, write_atomically
from .graph_runs import Progress, faint_edges

Kind: TypeAlias = Literal["proved", "refuted", "unknown"]
FORMAT = "certiformer.verified-discovery/1"


@dataclass(frozen=True)
class Decision:
    """A verdict on one circuit: whether it alone decides as the model does, on every input of a domain.

    `evidence`: plain data, the witness that refutes it. `verdict`: what the prover gave, with the certificate;
    None for decisions read from a file.
    """

    kind: Kind
    text: str
    evidence: object = None
    seconds: float = 0.0
    verdict: object = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(verdict: object, seconds: float = 0.0) -> Decision:
        """From a verdict of `certiformer.prove`, by its name: this package does not know the verifier.

        Raises `InputError` for an empty domain, `KeyboardInterrupt` for a proof that was interrupted.
        """
        kind = type(verdict).__name__
        if kind == "Proved":
            return Decision("proved", str(getattr(verdict, "certificate", "")), None, seconds, verdict)
        if kind == "Refuted":
            evidence: Any = getattr(verdict, "evidence", None)
            data = evidence.to_json() if hasattr(evidence, "to_json") else str(evidence)
            return Decision("refuted", str(evidence), data, seconds, verdict)
        reason = str(getattr(verdict, "reason", verdict))
        if kind == "Unknown":
            if reason == "interrupted":
                raise KeyboardInterrupt
            return Decision("unknown", reason, None, seconds, verdict)
        raise InputError(f"nothing can be discovered here: {reason or kind}")

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {"verdict": self.kind, "text": self.text, "evidence": self.evidence, "seconds": round(self.seconds, 3)}

    @staticmethod
    def from_json(data: object) -> Decision:
        """Raises `InputError`."""
        if not isinstance(data, dict) or set(data) != {"verdict", "text", "evidence", "seconds"}:
            raise InputError(f"a decision has verdict, text, evidence and seconds, got {str(data)[:120]}")
        if data["verdict"] not in ("proved", "refuted", "unknown") or not isinstance(data["text"], str):
            raise InputError(f"a decision is proved, refuted or unknown, got {str(data)[:120]}")
        if isinstance(data["seconds"], bool) or not isinstance(data["seconds"], (int, float)):
            raise InputError(f"a decision's seconds are a number, got {data['seconds']!r}")
        return Decision(data["verdict"], data["text"], data["evidence"], float(data["seconds"]))


@dataclass(frozen=True)
class Deletion:
    """Edges that were deleted at once, and the verdict on what was left: `Proved`."""

    edges: tuple[str, ...]
    decision: Decision

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {"edges": list(self.edges), **self.decision.to_json()}


@dataclass(frozen=True)
class Verified:
    """The circuit with its evidence.

    `faithful`: on the circuit itself. `kept`: by edge, the verdict on the circuit without it (refuted or unknown).
    `deleted`: in order; edges from whose end nothing leads to `logits` go with the edge that led there.
    """

    circuit: Circuit
    faithful: Decision
    kept: Mapping[str, Decision]
    deleted: tuple[Deletion, ...]
    decisions: int
    seconds: float

    @property
    def unknown(self) -> tuple[str, ...]:
        """The kept edges of which it is not known whether they can be deleted."""
        return tuple(edge for edge, decision in self.kept.items() if decision.kind == "unknown")

    @property
    def minimal(self) -> bool:
        """1-minimal: the circuit is proved faithful, and without any one of its edges it is refuted."""
        return self.faithful.kind == "proved" and not self.unknown

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        return {
            "circuit": self.circuit.to_json(),
            "faithful": self.faithful.to_json(),
            "minimal": self.minimal,
            "unknown": list(self.unknown),
            "kept": {edge: decision.to_json() for edge, decision in self.kept.items()},
            "deleted": [deletion.to_json() for deletion in self.deleted],
            "decisions": self.decisions,
            "seconds": round(self.seconds, 3),
        }

    def to_text(self) -> str:
        """What is proved, and each kept edge with what refutes its deletion."""
        gone = sum(len(deletion.edges) for deletion in self.deleted)
        what = {
            "proved": "alone decides as the model does on every input: proved",
            "unknown": "not known to decide as the model does",
            "refuted": "refuted",
        }[self.faithful.kind]
        minimal = "1-minimal: each deletion is refuted" if self.minimal else "not shown 1-minimal"
        if self.unknown:
            minimal += f"; unknown: {', '.join(self.unknown)}"
        head = f"{len(self.circuit.edges)} edges, {gone} deleted; {what}; {minimal}"
        width = max(map(len, self.kept), default=0)
        lines = [f"  {edge:<{width}}  {decision.kind}: {decision.text}" for edge, decision in self.kept.items()]
        tail = f"{self.decisions} decisions in {self.seconds:.1f} s"
        return "\n".join([head, *(["without it:", *lines] if lines else []), tail])


def discover_verified(
    config: TransformerConfig,
    decide: Callable[[Circuit], object],
    *,
    start: Circuit,
    scores: Mapping[str, float] | None = None,
    question: Mapping[str, object] | None = None,
    resume: str | Path | None = None,
    effort: float = 0.0,
    progress: Progress | None = None,
) -> Verified:
    """Deletes edges from `start`, those with the lowest scores first, several at once and then one by one, until none
    can be deleted any more.

    `decide` gives for a circuit a verdict of `certiformer.prove(Faithful(model, circuit, ...), domain)`, or a
    `Decision`. `resume`: a file that is written after every decision and read at the start; `question` says what the
    decisions in it are about, and `effort` what was spent on one at most: unknown ones of less effort are asked again.
    The last circuit is always decided anew, so that the certificate is at hand; so is nothing else from the file.
    The whole model needs no proof. Raises `InputError` for a start that is refuted, and for another question's file;
    passes `KeyboardInterrupt` on (the file then has all decisions so far).
    """
    start.validate(config)
    if start.granularity != "edge":
        raise InputError("edges are deleted one by one; start from a circuit by edges (Circuit.from_edges)")
    book = _Book(decide, Path(resume) if resume else None, question or {}, effort, full_circuit(config), progress)
    search = _Search(start, book, _order(start, config, scores or {}))
    begun = time.perf_counter()
    search.run()
    kept = {edge: search.without((edge,)) for edge in search.order if edge in search.edges}
    final = search.circuit(search.edges)
    faithful = book.fresh(final)
    if faithful.kind == "refuted":
        raise InputError(
            f"the decisions in {resume} are wrong: the circuit they lead to is refuted ({faithful.text}); delete it"
        )
    seconds = time.perf_counter() - begun
    return Verified(final, faithful, kept, tuple(search.deleted), book.asked, seconds)


def _order(start: Circuit, config: TransformerConfig, scores: Mapping[str, float]) -> tuple[str, ...]:
    """The start's edges, the lowest scored first; those without a score before them, ties from the output back."""
    edges = [str(edge) for edge in reversed(all_edges(config)) if str(edge) in start.edges]
    return tuple(sorted(edges, key=lambda edge: abs(scores.get(edge, 0.0))))


class _Book:
    """All decisions so far, by circuit, and the file they are kept in."""

    def __init__(
        self,
        decide: Callable[[Circuit], object],
        path: Path | None,
        question: Mapping[str, object],
        effort: float,
        whole: Circuit,
        progress: Progress | None,
    ) -> None:
        self.decide, self.path, self.question, self.effort = decide, path, question, effort
        self.whole, self.progress = whole.edges, progress
        self.asked = 0
        self.known: dict[frozenset[str], Decision] = {}
        self.here: set[frozenset[str]] = set()
        if path is not None and path.exists():
            self.read(path)

    def ask(self, circuit: Circuit, what: str) -> Decision:
        if circuit.edges == self.whole:
            return Decision("proved", "the whole model: nothing is ablated")
        if circuit.edges not in self.known:
            self.fresh(circuit)
        if self.progress:
            self.progress(self.asked, max(self.asked, len(self.whole)), what)
        return self.known[circuit.edges]

    def fresh(self, circuit: Circuit) -> Decision:
        """Asks the prover, unless it was already asked in this run."""
        if circuit.edges == self.whole:
            return Decision("proved", "the whole model: nothing is ablated")
        if circuit.edges in self.here:
            return self.known[circuit.edges]
        begun = time.perf_counter()
        found = self.decide(circuit)
        decision = found if isinstance(found, Decision) else Decision.of(found, time.perf_counter() - begun)
        self.asked += 1
        self.known[circuit.edges] = decision
        self.here.add(circuit.edges)
        self.write()
        return decision

    def write(self) -> None:
        if self.path is None:
            return
        decisions = [{"edges": sorted(edges), **decision.to_json()} for edges, decision in self.known.items()]
        data = {"format": FORMAT, "question": dict(self.question), "effort": self.effort, "decisions": decisions}
        write_atomically(self.path, json.dumps(data, indent=1, default=str).encode())

    def read(self, path: Path) -> None:
        try:
            data = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot go on from {path}: {error}; choose another file") from None
        keys = {"format", "question", "effort", "decisions"}
        if not isinstance(data, dict) or set(data) != keys or data["format"] != FORMAT:
            raise InputError(f"{path} holds no verified discovery to go on from; choose another file")
        asked = json.loads(json.dumps(dict(self.question), default=str))
        if data["question"] != asked:
            differ = sorted(key for key in {*data["question"], *asked} if data["question"].get(key) != asked.get(key))
            raise InputError(f"{path} is about another {', '.join(differ)}; choose another file")
        more = self.effort > data["effort"]
        for entry in data["decisions"]:
            if not isinstance(entry, dict) or not isinstance(entry.get("edges"), list):
                raise InputError(f"{path} has a decision without its edges; choose another file")
            edges = frozenset(map(str, entry.pop("edges")))
            decision = Decision.from_json(entry)
            if decision.kind != "unknown" or not more:
                self.known[edges] = decision


class _Search:
    """The circuit so far."""

    def __init__(self, start: Circuit, book: _Book, order: tuple[str, ...]) -> None:
        self.start, self.book, self.order = start, book, order
        self.edges = _closed(start.edges)
        self.deleted: list[Deletion] = []

    def run(self) -> None:
        first = self.book.ask(self.circuit(self.edges), "the start")
        if first.kind == "refuted":
            raise InputError(
                f"the circuit to start from does not decide as the model does: {first.text}; start from a larger one"
            )
        if gone := tuple(edge for edge in self.order if edge not in self.edges):
            self.deleted.append(Deletion(gone, first))
        self.several(self.order)
        while self.one_by_one():
            pass

    def several(self, group: tuple[str, ...]) -> None:
        """Deletes the group at once, or what it can of its halves."""
        group = tuple(edge for edge in group if edge in self.edges)
        if not group or self.delete(group) or len(group) == 1:
            return
        middle = len(group) // 2
        self.several(group[:middle])
        self.several(group[middle:])

    def one_by_one(self) -> bool:
        """Whether any single edge could be deleted. What is refuted here is so of the circuit as it is then."""
        before = self.edges
        for edge in self.order:
            if edge in self.edges:
                self.delete((edge,))
        return self.edges != before

    def delete(self, group: tuple[str, ...]) -> bool:
        """Whether the circuit without the group is proved; it then goes, with what leads nowhere any more."""
        decision = self.without(group)
        if decision.kind != "proved":
            return False
        left = _closed(self.edges - set(group))
        self.deleted.append(Deletion(tuple(edge for edge in self.order if edge in self.edges - left), decision))
        self.edges = left
        return True

    def without(self, group: tuple[str, ...]) -> Decision:
        what = group[0] if len(group) == 1 else f"{len(group)} edges"
        return self.book.ask(self.circuit(_closed(self.edges - set(group))), f"without {what}")

    def circuit(self, edges: Iterable[str]) -> Circuit:
        return Circuit.from_edges(edges, self.start.ablation)


def _closed(edges: frozenset[str]) -> frozenset[str]:
    """Less the edges from whose end nothing leads to `logits`: the run of the circuit is the same without them."""
    return edges - faint_edges(edges)
