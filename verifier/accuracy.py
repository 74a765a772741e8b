"""Engine `counting`: how many inputs a model labels rightly, bounded below by exact counts of what may go wrong.

For each label y and last token q (a group), the inputs on which a rival w may win are counted by `counting`, for the
sums of `first_layer`; a group's failures are at most the sum over its rivals. Method: the separable sign test (this
project); the split by query and maximum is that of Gross et al., Compact Proofs of Model Performance, 2024.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..models.labels import NO_LABEL, LabelMachine
from .balls import ReadsWeights, Unsupported
from .counting import Arrows, Floats, Integers, exponent_for, over_count
from .first_layer import FirstLayer, first_layer
from .tilting import Tilted, tilt

LEVELS = (32, 128, 512)
NEGLIGIBLE = 1e-5
TILT_NEGLIGIBLE = 5e-4
"""The labels with the fewest inputs are given up without a look, as long as all these are less than this share; there
are two such shares, for labels counted one by one, and for the coarser way."""
FINE = 1e-4
"""A group that loses less than this share of itself is not refined."""
ENTRIES = 2_000_000
MANY = 20_000_000_000
"""Above so many terms (over labels, queries, rivals, positions and tokens) rivals are bounded together (`tilting`)."""


@dataclass(frozen=True)
class Group:
    """The inputs of length n that end in token `query` and have this label: `size` of them, at most `failing` fail.

    `counted`: rival -> the power of two its terms were counted with; every other rival loses on all of the group
    (unless nothing is proved of it). `lost`: the rival that is shown to win on `refuted` of the inputs, and its power.
    """

    n: int
    label: int
    query: int
    size: int
    failing: int
    counted: tuple[tuple[int, int], ...]
    lost: tuple[int, int] | None = None
    refuted: int = 0

    @property
    def proved(self) -> int:
        return self.size - min(self.size, self.failing)


@dataclass
class Mass:
    """Inputs by what is known of them: `proved` right and `refuted`, out of `total`; `looked_at`: in groups that are
    done. The others, `undecided`, are neither: the three add up to the total."""

    total: int
    proved: int = 0
    refuted: int = 0
    looked_at: int = 0

    @property
    def undecided(self) -> int:
        return self.total - self.proved - self.refuted


@dataclass(frozen=True)
class Aim:
    """When counting may stop: `enough(mass)` or at the deadline (`time.monotonic()`). `both`: also count the inputs
    that are labelled wrongly."""

    both: bool = False
    deadline: float = float("inf")
    enough: Callable[[Mass], bool] = lambda mass: False
    progress: Callable[[Mass], None] = lambda mass: None

    def done(self, mass: Mass) -> bool:
        """Whether to stop; tells the progress."""
        self.progress(mass)
        return time.monotonic() > self.deadline or self.enough(mass)


@dataclass(frozen=True)
class Counted:
    """What counting found: groups counted one by one, groups bounded together, and what they add up to."""

    groups: tuple[Group, ...]
    tilted: tuple[Tilted, ...]
    mass: Mass


def count_groups(
    model: ReadsWeights, machine: LabelMachine, letters: Integers, lengths: list[int], aim: Aim | None = None
) -> Counted:
    """Groups with their bounds, greatest labels' mass first, until the aim is met; and the mass proved and refuted.

    The inputs: all words over `letters` (token ids) of these lengths. Raises `Unsupported` for models that
    `first_layer` does not cover.
    """
    if machine.last_first:
        raise Unsupported("label machines that read the last token first are not covered")
    aim = aim or Aim()
    mass = Mass(sum(len(letters) ** n for n in lengths))
    if aim.both:
        mass.refuted = sum(unlabelled(machine, letters, n) for n in lengths)
    groups: list[Group] = []
    tilted: list[Tilted] = []
    for n in lengths:
        layer = first_layer(model, n)
        outputs = layer.direct.mid.shape[1]
        terms = outputs * n * len(letters) ** 2 * len(set(machine.labels.tolist()))
        many = n > 1 and outputs > 1 and terms > MANY
        labels = list(_by_label(machine, letters, n, (TILT_NEGLIGIBLE if many else NEGLIGIBLE) * mass.total))
        if many:
            for found in tilt(layer, labels):
                tilted.append(found)
                mass.proved += found.proved
                mass.looked_at += found.size
                if aim.done(mass):
                    return Counted(tuple(groups), tuple(tilted), mass)
            continue
        for label, queries, arrows, size in labels:
            for part in _parts(queries, layer, arrows):
                for group in _groups(layer, label, part, arrows, size, aim.both):
                    groups.append(group)
                    mass.proved += group.proved
                    mass.refuted += group.refuted
                    mass.looked_at += group.size
                if aim.done(mass):
                    return Counted(tuple(groups), tuple(tilted), mass)
    return Counted(tuple(groups), tuple(tilted), mass)


def unlabelled(machine: LabelMachine, letters: Integers, n: int) -> int:
    """How many words of length n over some letters have no label."""
    return sum(Arrows.of(machine.ending(int(t), NO_LABEL), letters).size(n - 1) for t in letters)


def _by_label(
    machine: LabelMachine, letters: Integers, n: int, negligible: float
) -> Iterator[tuple[int, Integers, Arrows, int]]:
    """For each label, with the most inputs first: queries that leave the same words before them, and these words."""
    found: list[tuple[int, int, list[tuple[Integers, Arrows, int]]]] = []
    for label in sorted(set(machine.labels[machine.labels >= 0].tolist())):
        classes: dict[bytes, list[int]] = {}
        for query in letters.tolist():
            accepting = machine.labels[machine.transitions[:, query]] == label
            classes.setdefault(accepting.tobytes(), []).append(query)
        alike = []
        for members in classes.values():
            arrows = Arrows.of(machine.ending(members[0], label), letters)
            if size := arrows.size(n - 1):
                alike.append((np.array(members, dtype=np.int64), arrows, size))
        found.append((sum(size * len(queries) for queries, _, size in alike), label, alike))
    found.sort(key=lambda item: (item[0], item[1]))
    given_up, first = 0, 0
    while first < len(found) and given_up + found[first][0] < negligible:
        given_up, first = given_up + found[first][0], first + 1
    for _, label, alike in reversed(found[first:]):
        for queries, arrows, size in alike:
            yield label, queries, arrows, size


def _parts(queries: Integers, layer: FirstLayer, arrows: Arrows) -> list[Integers]:
    each = layer.direct.mid.shape[1] * layer.n * len(arrows.tokens)
    return np.array_split(queries, max(1, min(len(queries), len(queries) * each // ENTRIES)))


def _groups(layer: FirstLayer, label: int, queries: Integers, arrows: Arrows, size: int, both: bool) -> Iterator[Group]:
    """The groups of some queries, all with the same words before them."""
    rest, own = layer.below(queries, label, arrows.tokens)
    rivals = rest.shape[1]
    flat = rest.reshape(len(queries) * rivals, *rest.shape[2:])
    least = arrows.least(flat).reshape(len(queries), rivals) + own
    least[:, label] = np.inf
    for i, query in enumerate(queries.tolist()):
        failing, counted, worst = 0, [], (0, label)
        for w in np.flatnonzero(least[i] <= 0).tolist():
            if failing >= size and not both:  # nothing is left to prove of this group
                break
            exponent, count = _count(arrows, rest[i, w], float(own[i, w]), size)
            failing += count
            counted.append((w, exponent))
            worst = max(worst, (count, w))
        group = Group(layer.n, label, query, size, failing, tuple(counted))
        yield _with_lost(layer, group, worst[1], arrows) if both and worst[0] > FINE * size else group


def _count(arrows: Arrows, rest: Floats, own: float, size: int) -> tuple[int, int]:
    """The power of two, and at most how many words have a sum of at most 0: refined as long as that pays."""
    found = 2 * size
    for levels in LEVELS:
        exponent = exponent_for(rest, own, levels)
        before, found = found, over_count(arrows, rest, own, exponent)
        if found <= FINE * size or found > 0.9 * before:
            break
    return exponent, found


def _with_lost(layer: FirstLayer, group: Group, rival: int, arrows: Arrows) -> Group:
    """The group with the number of inputs on which the rival is shown to win."""
    query, ours = np.array([group.query]), np.array([group.label])
    rest, own = layer.below(query, rival, arrows.tokens, ours)
    exponent = exponent_for(rest[0, 0], float(own[0, 0]), LEVELS[-1])
    refuted = group.size - min(group.size, over_count(arrows, rest[0, 0], float(own[0, 0]), exponent))
    return replace(group, lost=(rival, exponent), refuted=refuted) if refuted else group


def proof_of(found: Counted, order: Mapping[int, int]) -> dict[str, object]:
    """Rule `count`: the groups that have something shown; queries by their place among the domain's tokens."""
    listed = []
    for g in sorted(found.groups, key=lambda g: (g.n, g.label, g.query)):
        item: dict[str, object] = {"n": g.n, "label": g.label, "query": order[g.query]}
        if g.proved:
            item["counts"] = [list(pair) for pair in g.counted]
        if g.lost:
            item["lost"] = list(g.lost)
        if len(item) > 3:
            listed.append(item)
    tilted = [entry.to_json(order) for entry in sorted(found.tilted, key=lambda entry: (entry.n, entry.label))]
    return {"rule": "count", "groups": listed, "tilted": tilted}
