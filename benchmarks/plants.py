"""Wrong interpretations of models, each wrong on a known share of the inputs of its domain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

DECADES = (1, 2, 3, 4, 5, 6)
VOCAB, LONGEST = 64, 6
FEW_VOCAB, FEW_LONGEST = 8, 7
SMALL_VOCAB, SMALL_LONGEST = 5, 5


@dataclass(frozen=True)
class Plant:
    """A claim that is wrong on a known share of the inputs of its domain (counted on all of them).

    `shortest`: the least length of an input on which it is wrong.
    """

    what: str
    claim: Any
    domain: Any
    rate: float
    shortest: int

    @property
    def decade(self) -> int:
        return round(-math.log10(self.rate))


def plants(each: int, few_tokens: bool = False) -> dict[int, list[Plant]]:
    """`each` for each decade: faulty weights and circuits as long as there are, up to half; the rest wrong programs,
    over 64 tokens, or all of them over 8, where an input in a million is long."""
    found: dict[int, list[Plant]] = {decade: [] for decade in DECADES}
    sources = ((wrong_programs(), each),) if few_tokens else ((faulty(), each // 2), (rare_programs(), each))
    for source, limit in sources:
        for plant in source:
            if plant.decade in found and len(found[plant.decade]) < limit:
                found[plant.decade].append(plant)
            if all(len(some) >= limit for some in found.values()):
                break
    return found


def faulty() -> Iterator[Plant]:
    """One weight of a compiled model changed, or one edge of its circuit left out."""
    import torch

    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models import change_weight

    rng = np.random.default_rng(0)
    domain = cf.sequences(range(SMALL_VOCAB), range(1, SMALL_LONGEST + 1))
    for name in ("sort", "hist", "most_frequent"):
        entry = LIBRARY[name]
        compiled = cf.compile(entry.build(), vocab=range(SMALL_VOCAB), max_len=SMALL_LONGEST)
        claims = [
            (f"{name} without {e}", cf.Faithful(compiled, compiled.circuit.without([e]), "zero"))
            for e in sorted(compiled.circuit.edges)[:4]
        ]
        parameters = [n for n, p in compiled.model.named_parameters() if bool(p.any())]
        for _ in range(20):
            parameter = parameters[rng.integers(len(parameters))]
            places = compiled.model.parameter(parameter).detach().nonzero().tolist()
            place = tuple(places[rng.integers(len(places))])
            value = float(compiled.model.parameter(parameter).detach()[place])
            changed = change_weight(compiled.model, parameter, place, value * float(rng.choice([0.0, 0.5, -1.0, 0.9])))
            claims.append((f"{name}, {parameter}{list(place)}", cf.Computes(replace(compiled, model=changed))))
        for what, claim in claims:
            wrong = {}
            for n in domain.lengths:
                ids = torch.tensor(list(product(range(SMALL_VOCAB), repeat=n)))
                wrong[n] = int((claim.body.judge((ids,), "float32") == -1).sum())
            if any(wrong.values()):
                shortest = min(n for n, count in wrong.items() if count)
                yield Plant(what, claim, domain, sum(wrong.values()) / domain.size(), shortest)


def rare_programs() -> Iterator[Plant]:
    """A model of `sort` or of the identity over 64 tokens, explained by a program that is wrong where a rare condition
    holds: tokens of some sets at places among the first four, or a token (and another one) several times."""
    import certiformer as cf
    from certiformer.compiler.rasp import Map, aggregate, indices, select, selector_width, tokens, where

    domain = cf.sequences(range(VOCAB), range(1, LONGEST + 1))
    models = [
        (name, cf.compile(program, vocab=range(VOCAB), max_len=LONGEST), program)
        for name, program in (("sort", cf.programs.sort()), ("tokens", tokens))
    ]
    rng = np.random.default_rng(2)

    def times(t: int) -> Any:
        return selector_width(select(tokens, t, "=="))

    def below(place: int, end: int) -> Any:
        at = aggregate(select(indices, place, "=="), tokens, -1)
        return Map(lambda t: 0 <= t < end, at)

    while True:
        a, b = (int(x) for x in rng.choice(VOCAB, 2, replace=False))
        if rng.integers(3):
            places = sorted(int(p) for p in rng.choice(4, int(rng.integers(1, 5)), replace=False))
            ends = [int(2 ** rng.integers(VOCAB.bit_length() - 1)) for _ in places]
            condition: Any = below(places[0], ends[0])
            for place, end in zip(places[1:], ends[1:], strict=True):
                condition = condition & below(place, end)
            wrong = {n: tokens_at(n, places, ends) for n in domain.lengths}
            what = " and ".join(f"below {end} at {place}" for place, end in zip(places, ends, strict=True))
        else:
            k, more = int(rng.integers(1, 5)), int(rng.integers(0, 3))
            condition = (times(a) == k) & (times(b) == more) if more else times(a) >= k
            wrong = {n: repeated(n, k, more) for n in domain.lengths}
            what = f"{a} {k} times and {b} {more} times" if more else f"{a} at least {k} times"
        if not any(wrong.values()):
            continue
        name, compiled, program = models[int(rng.integers(2))]
        claim = cf.Computes(compiled, where(condition, VOCAB - 1 - program, program))
        shortest = min(n for n, count in wrong.items() if count)
        yield Plant(f"{name}, wrong with {what}", claim, domain, sum(wrong.values()) / domain.size(), shortest)


def tokens_at(n: int, places: list[int], ends: list[int], vocab: int = VOCAB) -> int:
    """How many words of length n have a token below each end at its place."""
    return vocab ** (n - len(places)) * math.prod(ends) if n > places[-1] else 0


def repeated(n: int, k: int, more: int, vocab: int = VOCAB) -> int:
    """How many words of length n have one token k times and another `more` times; without `more`, k times at least."""
    if more:
        return math.comb(n, k) * math.comb(n - k, more) * (vocab - 2) ** (n - k - more) if n >= k + more else 0
    return sum(math.comb(n, j) * (vocab - 1) ** (n - j) for j in range(k, n + 1))


def wrong_programs() -> Iterator[Plant]:
    """A model of `sort` or of the identity over 8 tokens, explained by a program that is wrong on a rare condition."""
    import certiformer as cf
    from certiformer.compiler.rasp import aggregate, indices, select, selector_width, tokens, where

    domain = cf.sequences(range(FEW_VOCAB), range(1, FEW_LONGEST + 1))
    words = {n: np.array(list(product(range(FEW_VOCAB), repeat=n)), dtype=np.int8) for n in domain.lengths}
    models = [
        (name, cf.compile(program, vocab=range(FEW_VOCAB), max_len=FEW_LONGEST), program)
        for name, program in (("sort", cf.programs.sort()), ("tokens", tokens))
    ]
    rng = np.random.default_rng(1)
    counted: dict[tuple[int, ...], dict[int, int]] = {}

    def times(t: int) -> Any:
        return selector_width(select(tokens, t, "=="))

    def at(place: int) -> Any:
        return aggregate(select(indices, place, "=="), tokens, -1)

    def column(w: Any, place: int) -> Any:
        return w[:, place] if place < w.shape[1] else np.full(len(w), -1)

    descents = selector_width(select(tokens, tokens, ">") & select(indices, indices, "<"))
    kinds = selector_width(select(tokens, tokens, "==") & select(indices, indices, "<"))
    while True:
        a, b = (int(x) for x in rng.choice(FEW_VOCAB, 2, replace=False))
        k = int(rng.integers(2, 8))
        chosen = sorted(int(p) for p in rng.choice(FEW_LONGEST, int(rng.integers(1, 8)), replace=False))
        values = [int(v) for v in rng.integers(FEW_VOCAB, size=len(chosen))]
        here: Any = at(chosen[0]) == values[0]
        for place, value in zip(chosen[1:], values[1:], strict=True):
            here = here & (at(place) == value)
        options: list[tuple[str, Any, Any, tuple[int, ...]]] = [
            (f"{a} at least {k} times", times(a) >= k, lambda w, a=a, k=k: (w == a).sum(1) >= k, (k,)),
            (
                f"{a} {k} times and {b} after it twice",
                (times(a) == k) & (times(b) == min(2, FEW_LONGEST - k)),
                lambda w, a=a, b=b, k=k: ((w == a).sum(1) == k) & ((w == b).sum(1) == min(2, FEW_LONGEST - k)),
                (k,),
            ),
            (
                f"{values} at {chosen}",
                here,
                lambda w, c=tuple(chosen), v=tuple(values): np.all(
                    [column(w, p) == x for p, x in zip(c, v, strict=True)], axis=0
                ),
                (len(chosen), chosen[-1]),
            ),
            (
                f"a token with {k} greater ones before it",
                descents >= k,
                lambda w, k=k: np.max([(w[:, :i] > w[:, i : i + 1]).sum(1) for i in range(w.shape[1])], axis=0) >= k,
                (k,),
            ),
            (
                f"a token for the {k}th time, first {a}",
                (kinds >= k - 1) & (at(0) == a),
                lambda w, a=a, k=k: (
                    (np.max([(w[:, :i] == w[:, i : i + 1]).sum(1) for i in range(w.shape[1])], axis=0) >= k - 1)
                    & (w[:, 0] == a)
                ),
                (k,),
            ),
        ]
        kind = int(rng.integers(len(options)))
        what, condition, holds, key = options[kind]
        if (kind, *key) not in counted:  # how many, which tokens they are does not change
            counted[kind, *key] = {n: int(holds(w).sum()) for n, w in words.items()}
        wrong = counted[kind, *key]
        if any(wrong.values()):
            name, compiled, program = models[int(rng.integers(2))]
            claim = cf.Computes(compiled, where(condition, FEW_VOCAB - 1 - program, program))
            shortest = min(n for n, count in wrong.items() if count)
            yield Plant(f"{name}, wrong with {what}", claim, domain, sum(wrong.values()) / domain.size(), shortest)
