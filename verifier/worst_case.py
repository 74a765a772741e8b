"""The least difference of two logits over all words of a product domain: branch and bound, anytime and resumable.

The lower bound of a group of words comes from `PathBounds`; the words along its least paths, and coordinate search from
the best of them, give the upper one. The group with the least bound is split first, at the position whose token
matters most. What is known at any moment: lower <= the least difference <= upper, the latter attained by `word`.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.errors import InputError
from ..models.files import write_atomically
from ..models.languages import Language
from ..models.transformer import Transformer
from ..models.values import Value
from .balls import check_arithmetic
from .bounded_model import BoundedModel
from .claims import subject_of
from .label_bodies import token_places
from .path_bounds import Margins, PathBounds, magnitude
from .portfolio import check_readable, check_setting
from .reading import Subject
from .word_graph import WordGraph, whole_graph

Restriction = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class LeastDifference:
    """What is known of the least of logit `output` - logit `rival`: a rigorous lower bound over the reals, an upper
    bound (the float32 run's difference on `word`), and how many groups of words were bounded."""

    output: Value
    rival: Value
    lower: float
    upper: float
    word: tuple[Value, ...]
    groups: int
    seconds: float

    @property
    def gap(self) -> float:
        return max(0.0, self.upper - self.lower)

    def __str__(self) -> str:
        shown = " ".join(map(str, self.word))
        return f"{self.lower:.6g} <= least difference <= {self.upper:.6g} (on {shown}), {self.groups} groups"


def least_difference(
    model: Transformer,
    output: Value,
    rival: Value,
    domain: Language,
    *,
    codec: Any = None,
    gap: float = 0.0,
    seconds: float = 60.0,
    resume: str | PathLike[str] | None = None,
    progress: Callable[[LeastDifference], None] | None = None,
) -> LeastDifference:
    """Bounds of the least of logit_output - logit_rival on a domain, until they differ by at most `gap` or time is up.

    For models that `PathBounds` covers and product domains of one length. `resume`: a file that the search goes on
    from if it is there, and writes what is left to (atomically, also after Ctrl-C). Raises `InputError`.
    """
    subject = subject_of(model, codec)
    check_setting("least_difference", subject, domain, seconds)
    check_readable(subject.codec.vocab, subject.longest, domain)
    search = _Search(subject, output, rival, domain, time.monotonic())
    if resume is not None and Path(resume).exists():
        search.read(Path(resume))
    try:
        with torch.no_grad():
            search.run(gap, time.monotonic() + seconds, progress)
    except KeyboardInterrupt:
        pass
    if resume is not None:
        write_atomically(Path(resume), json.dumps(search.to_json(), sort_keys=True).encode())
    return search.result()


class _Search:
    def __init__(self, subject: Subject, output: Value, rival: Value, domain: Language, began: float) -> None:
        check_arithmetic()
        outputs = subject.codec.outputs
        for name, value in (("output", output), ("rival", rival)):
            if value not in outputs:
                raise InputError(
                    f"{name} {value!r} is not among the model's outputs: {', '.join(map(str, outputs[:12]))}"
                )
        if output == rival:
            raise InputError(f"the output and its rival are both {output!r}; their difference is 0")
        lengths = [n for n in domain.lengths if domain.size(n)]
        if len(lengths) != 1 or not domain.is_product():
            raise InputError("least_difference takes a product domain of one length, such as sequences(vocab, 10)")
        (self.n,) = lengths
        letters = np.array(sorted(token_places(subject, domain)), dtype=np.int64)
        self.subject, self.output, self.rival, self.began = subject, output, rival, began
        self.at = outputs.index(output), outputs.index(rival)
        self.model = BoundedModel(subject.model, self.n)
        self.whole = whole_graph(np.zeros((1, len(subject.codec.vocab)), dtype=np.int64), letters, self.n)
        self.letters, self.groups, self.upper = letters, 0, float("inf")
        self.word = np.full(self.n, letters[0])
        self.queue: list[tuple[float, tuple[Restriction, ...], Restriction | None]] = [(-float("inf"), (), None)]
        self.settled = float("inf")
        """The least bound of the groups that cannot be split: single words. The float32 run is no bound of theirs."""
        self.identity = [subject.model.weights_sha256(), list(self.at), letters.tolist(), self.n]

    @property
    def lower(self) -> float:
        return min(self.queue[0][0] if self.queue else self.upper, self.settled, self.upper)

    def result(self) -> LeastDifference:
        word = tuple(self.subject.codec.vocab[int(t)] for t in self.word)
        spent = time.monotonic() - self.began
        return LeastDifference(self.output, self.rival, self.lower, self.upper, word, self.groups, spent)

    def run(self, gap: float, deadline: float, progress: Callable[[LeastDifference], None] | None) -> None:
        """Splits the group with the least bound, as long as that can raise it."""
        said = time.monotonic()
        while self.queue and self.queue[0][0] < self.settled:
            if self.upper - self.lower <= gap or time.monotonic() >= deadline:
                break
            bound, limits, split = heapq.heappop(self.queue)
            try:
                found = [self._look(part) for part in (self._parts(limits, split) if split else [limits])]
            except KeyboardInterrupt:
                heapq.heappush(self.queue, (bound, limits, split))
                raise
            for least, part, choice in found:
                least = max(least, bound)
                if choice is None:
                    self.settled = min(self.settled, least)
                elif least < self.upper:
                    heapq.heappush(self.queue, (least, part, choice))
            if progress and time.monotonic() > said + 0.5:
                said = time.monotonic()
                progress(self.result())

    def _parts(self, limits: tuple[Restriction, ...], split: Restriction) -> list[tuple[Restriction, ...]]:
        """A split's tokens one by one at the query; elsewhere against the others."""
        position, tokens = split
        here = next((set(kept) for at, kept in limits if at == position), set(self.letters.tolist()))
        others = tuple(item for item in limits if item[0] != position)
        if position == self.n - 1:
            return [(*others, (position, (token,))) for token in sorted(here)]
        return [(*others, (position, tuple(sorted(part)))) for part in (set(tokens), here - set(tokens)) if part]

    def _look(self, limits: tuple[Restriction, ...]) -> tuple[float, tuple[Restriction, ...], Restriction | None]:
        """The least bound of a group, and how it would be split."""
        graph = self.whole
        for position, tokens in limits:
            graph = graph.by_token(position, np.array(tokens, dtype=np.int64))
        self.groups += 1
        found = PathBounds(self.model, graph).margins([self.at])
        least = found.least()[:, 0]
        group = int(least.argmin())
        times = self.n if self.subject.model.config.readout == "mean" else 1
        slack = 2 * self.model.rounding * magnitude(*found.of(group, 0))
        bound = (float(least[group]) - slack) / times
        bound -= abs(bound) * 2.0**-50
        self._try(_least_word(found, group))
        return bound, limits, self._split(graph, found, group)

    def _split(self, graph: WordGraph, found: Margins, group: int) -> Restriction | None:
        """The last position first; then where leaving out the least word's token helps most. None: a single word."""
        counts = [len(np.unique(edges.token)) for edges in graph.edges]
        if max(counts) == 1:
            return None
        if counts[-1] > 1:
            return self.n - 1, ()
        const, tables = found.of(group, 0)
        best: tuple[float, Restriction] | None = None
        for j, (table, edges) in enumerate(zip(tables, graph.edges, strict=True)):
            if counts[j] == 1:
                continue
            least = {int(t): float(table[torch.from_numpy(edges.token == t)].min()) for t in np.unique(edges.token)}
            order = sorted(least, key=lambda t: (least[t], t))
            spread = [least[t] for t in order]
            gaps = [
                (spread[k + 1] - spread[k]) * (1 - abs(2 * (k + 1) / len(order) - 1) / 2) for k in range(len(order) - 1)
            ]
            cut = int(np.argmax(gaps))
            score = spread[-1] - spread[0] + gaps[cut]
            if best is None or score > best[0]:
                best = (score, (j, tuple(sorted(order[: cut + 1]))))
        return best[1] if best else None

    def _try(self, word: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Coordinate descent in the float32 run, from a word."""
        value = float(self._differences(word[None])[0])
        while True:
            if value < self.upper:
                self.upper, self.word = value, word
            nearby = np.repeat(word[None], self.n * len(self.letters), 0)
            rows = np.arange(len(nearby))
            nearby[rows, rows // len(self.letters)] = np.tile(self.letters, self.n)
            values = self._differences(nearby)
            at = int(values.argmin())
            if float(values[at]) >= value or value > self.upper + abs(self.upper):
                return
            word, value = nearby[at], float(values[at])

    def _differences(self, words: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        logits: Tensor = self.subject.model(torch.from_numpy(words))
        return (logits[:, self.at[0]] - logits[:, self.at[1]]).double()

    # The file that a search is resumed from

    def to_json(self) -> dict[str, object]:
        return {
            "identity": self.identity,
            "groups": self.groups,
            "upper": self.upper,
            "settled": self.settled,
            "word": self.word.tolist(),
            "queue": [[bound, limits, split] for bound, limits, split in sorted(self.queue, key=lambda x: x[:2])],
        }

    def read(self, path: Path) -> None:
        """Raises `InputError` for another search's file."""
        try:
            data = json.loads(path.read_text())
            if data["identity"] != self.identity:
                raise InputError(
                    f"{path} belongs to another search: other weights, outputs or domain; choose another file"
                )
            self.groups, self.upper, self.settled = int(data["groups"]), float(data["upper"]), float(data["settled"])
            self.word = np.array(data["word"], dtype=np.int64)
            self.queue = [
                (
                    float(b),
                    tuple((int(p), tuple(t)) for p, t in limits),
                    None if s is None else (int(s[0]), tuple(s[1])),
                )
                for b, limits, s in data["queue"]
            ]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(f"{path} is no file of an interrupted search ({error}); remove it to begin anew") from None


def _least_word(found: Margins, group: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The word along the least path of a group."""
    graph, (_, tables) = found.graph, found.of(group, 0)
    behind = graph.behind(tables)
    node, word = int(behind[0].argmin()), []
    for j, edges in enumerate(graph.edges):
        onward = torch.where(graph.sources[j] == node, behind[j + 1][graph.targets[j]] + tables[j], torch.inf)
        edge = int(onward.argmin())
        word.append(int(edges.token[edge]))
        node = int(edges.target[edge])
    return np.array(word, dtype=np.int64)
