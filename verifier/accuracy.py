"""Engine `counting`: how many inputs a model labels rightly, bounded below by exact counts of what may go wrong.

For each label y and last token q (a group), the inputs on which a rival w may win are counted by `counting`, for the
sums of `first_layer`; a group's failures are at most the sum over its rivals. Method: the separable sign test (this
project); the split by query and maximum is that of Gross et al., Compact Proofs of Model Performance, 2024.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..models.labels import LabelMachine
from ..models.languages import Language
from ..models.transformer import Transformer
from .balls import Unsupported
from .claims import Claim
from .counting import Arrows, Integers
from .first_layer import FirstLayer, first_layer
from .label_bodies import LabelsBody
from .theorems import domain_to_json
from .verdicts import Certificate

BINS = (32, 128, 512)
NEGLIGIBLE = 1e-5
"""The labels with the fewest inputs are given up without a look, as long as all these are less than this share."""
FINE = 1e-4
"""A group that loses less than this share of itself is not refined."""
ENTRIES = 2_000_000
MARGIN = 2**12
"""A least sum below this many units of 2^-40 is not trusted to the checker's own rounding: the rival is counted."""


@dataclass(frozen=True)
class Group:
    """The inputs of length n that end in token `query` and have this label: `size` of them, at most `failing` fail.

    `counted`: rival -> the number of levels its sums were counted at; every other rival loses on all of the group
    (unless nothing is proved of it).
    """

    n: int
    label: int
    query: int
    size: int
    failing: int
    counted: tuple[tuple[int, int], ...]

    @property
    def proved(self) -> int:
        return self.size - min(self.size, self.failing)


@dataclass
class Mass:
    """Inputs by what is known of them: `proved` right, out of `total`; `looked_at`: in groups that are done."""

    total: int
    proved: int = 0
    looked_at: int = 0


def count_groups(
    model: Transformer,
    machine: LabelMachine,
    letters: Integers,
    lengths: list[int],
    *,
    deadline: float = float("inf"),
    progress: Callable[[Mass], None] | None = None,
) -> tuple[list[Group], Mass]:
    """Groups with their bounds, greatest labels' mass first, until the deadline; and the mass proved.

    The inputs: all words over `letters` (token ids) of these lengths. Raises `Unsupported` for models that
    `first_layer` does not cover.
    """
    mass = Mass(sum(len(letters) ** n for n in lengths))
    groups: list[Group] = []
    for n in lengths:
        layer = first_layer(model, n)
        for label, queries, arrows, size in _by_label(machine, letters, n, mass.total):
            for part in _parts(queries, layer, arrows):
                found = list(_groups(layer, label, part, arrows, size))
                groups += found
                mass.proved += sum(group.proved for group in found)
                mass.looked_at += sum(group.size for group in found)
                if progress:
                    progress(mass)
                if time.monotonic() > deadline:
                    return groups, mass
    return groups, mass


def _by_label(
    machine: LabelMachine, letters: Integers, n: int, total: int
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
    while first < len(found) and given_up + found[first][0] < NEGLIGIBLE * total:
        given_up, first = given_up + found[first][0], first + 1
    for _, label, alike in reversed(found[first:]):
        for queries, arrows, size in alike:
            yield label, queries, arrows, size


def _parts(queries: Integers, layer: FirstLayer, arrows: Arrows) -> list[Integers]:
    each = layer.direct.mid.shape[1] * layer.n * len(arrows.tokens)
    return np.array_split(queries, max(1, min(len(queries), len(queries) * each // ENTRIES)))


def _groups(layer: FirstLayer, label: int, queries: Integers, arrows: Arrows, size: int) -> Iterator[Group]:
    """The groups of some queries, all with the same words before them."""
    terms, own = layer.terms(queries, label, arrows.tokens)
    rivals = terms.shape[1]
    flat = terms.reshape(len(queries) * rivals, *terms.shape[2:])
    least = arrows.least(flat).reshape(len(queries), rivals) + own
    least[:, label] = MARGIN
    for i, query in enumerate(queries.tolist()):
        failing, counted = 0, []
        for w in np.flatnonzero(least[i] < MARGIN).tolist():
            if failing >= size:  # nothing is left to prove of this group
                break
            bins, count = _count(arrows, terms[i, w], -int(own[i, w]), size)
            failing += count
            counted.append((w, bins))
        yield Group(layer.n, label, query, size, failing, tuple(counted))


def _count(arrows: Arrows, table: Integers, bound: int, size: int) -> tuple[int, int]:
    """Levels, and at most how many words have a sum of at most `bound`: refined as long as that pays."""
    found = 2 * size
    for bins in BINS:
        before, found = found, arrows.count_not_above(table, bound, bins)
        if found <= FINE * size or found > 0.9 * before:
            break
    return bins, found


def prove_share(
    claim: Claim, domain: Language, deadline: float, progress: Callable[[str], None]
) -> tuple[Certificate | None, str]:
    """A certificate for a claim about a share of the inputs that a `LabelsBody` is about; or why there is none."""
    body = claim.body
    assert isinstance(body, LabelsBody)
    lengths = [n for n in domain.lengths if domain.size(n)]
    alphabets = {domain.alphabet(n) for n in lengths}
    if len(alphabets) != 1 or not domain.is_product():
        return None, "only domains that are products are covered"
    if body.subject.codec.bos or body.subject.codec.kind != "categorical":
        return None, "only categorical codecs without BOS are covered"
    position = {token: i for i, token in enumerate(body.subject.codec.vocab)}
    letters = np.array([position[token] for token in domain.vocab if token in next(iter(alphabets))], dtype=np.int64)

    def say(mass: Mass) -> None:
        share, open_share = mass.proved / mass.total, 1 - mass.looked_at / mass.total
        progress(f"counting: {share:.4%} proved right, {open_share:.4%} not looked at yet")

    try:
        groups, mass = count_groups(body.subject.model, body.machine, letters, lengths, deadline=deadline, progress=say)
    except Unsupported as error:
        return None, str(error)
    if mass.proved < claim.share * mass.total:
        share = mass.proved / mass.total
        return None, f"only {share:.6f} of the inputs are proved right ({mass.looked_at / mass.total:.6f} looked at)"
    order = {int(letter): place for place, letter in enumerate(letters)}
    return Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof_of(groups, order)), ""


def proof_of(groups: list[Group], order: Mapping[int, int]) -> dict[str, object]:
    """Rule `count`: the groups that have something proved; queries by their place among the domain's tokens."""
    listed = [
        {"n": g.n, "label": g.label, "query": order[g.query], "counts": [list(pair) for pair in g.counted]}
        for g in sorted(groups, key=lambda g: (g.n, g.label, g.query))
        if g.proved
    ]
    return {"rule": "count", "groups": listed}
