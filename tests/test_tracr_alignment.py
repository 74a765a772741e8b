"""Alignments read off Tracr's weights, models with attention scale 1/sqrt(d_head), and sums of means.

What is certified is compared with enumeration, tolerance zero; wrong weights and programs are not certified.
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks.tracr_library import library, shuffle_dyck

import certiformer as cf
from certiformer.compiler import programs
from certiformer.compiler.analysis import analyse
from certiformer.compiler.compile import compile
from certiformer.compiler.core import Aggregate, Map, Node, Select
from certiformer.compiler.core_evaluator import BatchEvaluator
from certiformer.compiler.lower import lower
from certiformer.compiler.rasp import SOp
from certiformer.models import change_weight, sequences
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.proofs.context import attention_scale
from certiformer.verifier.compose import prove_by_composition
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.head_rule import ROOT_ERROR
from certiformer.verifier.mean_sums import is_mean_sum
from certiformer.verifier.recheck import objection
from certiformer.verifier.verdicts import Certificate

from .perturbations import perturbed
from .planted import Parts, core, proves
from .recorded_tracr import NAMES, recorded

OWN_PROGRAMS: dict[str, list[str]] = {"dyck1": ["()"], "dyck2": ["()", "{}"], "dyck3": ["()", "{}", "[]"]}


def program_of(name: str) -> SOp:
    """Our program for a recorded model; of `shuffle_dyck` as Tracr writes it."""
    pairs = next((pairs for key, pairs in OWN_PROGRAMS.items() if f"shuffle_{key}" in name), None)
    return recorded(name).program if pairs is None else shuffle_dyck(pairs)


def outputs_none(name: str) -> bool:
    found = recorded(name)
    core = lower(program_of(name), found.imported.codec.vocab, found.imported.codec.max_len, causal=found.causal)
    return None in core.value_node(core.output).values


def distinct(names: list[str]) -> list[str]:
    """One for each program at each size: Tracr's test cases repeat them."""
    found: dict[Any, str] = {}
    for name in names:
        meta = recorded(name).meta
        weights = recorded(name).imported.model.weights_sha256()
        found.setdefault((weights, meta["causal"]), name)
    return [*found.values()]


RIGHT = [name for name in NAMES if not name.startswith("wrong") and not outputs_none(name)]
DISTINCT = distinct(RIGHT)
SMALL = [name for name in DISTINCT if recorded(name).imported.codec.max_len <= 6 and "dyck" not in name]  # type: ignore[operator]


def test_most_recorded_models_are_right() -> None:
    assert len(RIGHT) == 57 and len(DISTINCT) > 25
    assert all(n.startswith("wrong") or outputs_none(n) for n in {*NAMES} - {*RIGHT})


@pytest.mark.parametrize("name", DISTINCT)
def test_tracrs_weights_are_proved_by_composition(name: str) -> None:
    """At the full length of each, however many inputs that is; the independent checker agrees."""
    imported = recorded(name).imported
    assert imported.codec.max_len is not None
    claim = cf.Computes(imported, program_of(name))
    found = prove_by_composition(claim, sequences(imported.codec.vocab, range(1, imported.codec.max_len + 1)))
    assert isinstance(found, Certificate), str(found)
    assert objection(found, imported.model) is None


def is_right(claim: cf.Claim, domain: cf.Language) -> bool:
    tally = enumerate_inputs(claim, domain, 60)
    assert tally.complete or tally.false
    return not (tally.false or tally.undefined)


def test_changed_weights_are_certified_only_if_right() -> None:
    rng, outcomes = np.random.default_rng(0), Counter[str]()
    for name in SMALL:
        imported, program = recorded(name).imported, program_of(name)
        domain = sequences(imported.codec.vocab, range(1, 4))
        for _ in range(4):
            parameter = str(rng.choice([n for n, p in imported.model.named_parameters() if bool(p.any())]))
            places = imported.model.parameter(parameter).detach().nonzero().tolist()
            place = tuple(places[rng.integers(len(places))])
            value = float(imported.model.parameter(parameter).detach()[place]) * float(
                rng.choice([0, -1, 0.5, 0.97, 2])
            )
            changed = SimpleNamespace(
                model=change_weight(imported.model, parameter, place, value),
                codec=imported.codec,
                labels=imported.labels,
            )
            claim = cf.Computes(changed, program)
            certified = isinstance(prove_by_composition(claim, domain), Certificate)
            outcomes["certified" if certified else "not"] += 1
            assert not certified or is_right(claim, domain), (name, parameter, place, value)
    assert outcomes["certified"] > 20 and outcomes["not"] > 20, outcomes


def test_another_program_is_certified_only_if_it_is_the_same() -> None:
    rng, outcomes = random.Random(0), Counter[str]()
    for name in SMALL:
        imported = recorded(name).imported
        others = [
            n
            for n in SMALL
            if recorded(n).imported.codec == imported.codec and recorded(n).causal == recorded(name).causal
        ]
        domain = sequences(imported.codec.vocab, range(1, 4))
        for other in rng.sample(others, min(4, len(others))):
            claim = cf.Computes(imported, program_of(other))
            certified = isinstance(prove_by_composition(claim, domain), Certificate)
            outcomes["certified" if certified else "not"] += 1
            assert not certified or is_right(claim, domain), (name, other)
    assert outcomes["certified"] > 10 and outcomes["not"] > 5, outcomes


# Attention scale 1 / sqrt(d_head)


def test_the_scale_is_enclosed() -> None:
    for width in [*range(1, 300), 402, 2**20, 2**24 - 1]:
        layer = SimpleNamespace(d_head=width)
        low, inexact = attention_scale(
            SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(scale=None, layers=[layer]))), 0
        )  # type: ignore[arg-type]
        assert low**2 * width <= 1 <= (low * (1 + inexact)) ** 2 * width
        assert (inexact == 0) == (math.isqrt(width) ** 2 == width and math.isqrt(width).bit_count() == 1)
        ours = Fraction(TransformerConfig(1, 1, 1, 1, (LayerConfig(1, width, 0),)).scale(0))
        error = Fraction(ROOT_ERROR) / 2
        assert ((1 - error) * ours) ** 2 * width < 1 < ((1 + error) * ours) ** 2 * width


def rooted(parts: Parts) -> Parts:
    """The same with scale 1 / sqrt(d_head), queries being as much larger, rounded to float32."""
    parts = parts.copy()
    for number, layer in enumerate(parts.config["layers"]):
        for name in ("W_Q", "b_Q"):
            if layer.n_heads:
                parts.weights[f"blocks.{number}.attn.{name}"] *= np.float32(math.sqrt(layer.d_head))
    parts.config["attention_scale"] = "1/sqrt(d_head)"
    return parts


ROOTED = "reverse sort hist frac_prevs majority shift_by nary_ratio count_runs running_mean maximum compact".split()


@pytest.mark.parametrize("name", ROOTED)
def test_models_with_a_root_are_certified_only_if_right(name: str) -> None:
    entry = programs.LIBRARY[name]
    made = compile(entry.build(), vocab=entry.vocab(3), max_len=3, causal=entry.causal)
    original = rooted(Parts.of(made))
    found = prove_by_composition(original.claim(), original.inputs())
    assert isinstance(found, Certificate) and objection(found, original.claim().subject.model) is None
    for change, parts in perturbed(original, 11, 12):
        if proves(prove_by_composition, parts):
            assert is_right(parts.claim(), parts.inputs()), change


# Sums of means


@pytest.mark.parametrize("seed", range(30))
def test_sums_of_means_hold_on_every_input(seed: int) -> None:
    """What the engine takes for an identity is one, and the checker takes the same."""
    rng = np.random.default_rng(seed)
    values = [tuple(sorted({int(v) for v in rng.integers(-2, 3, 3)})) for _ in range(3)]
    first = [Map((0,), rng.integers(0, len(v), 3).astype(np.int32), v) for v in values[:2]]
    counts = [int(c) for c in rng.integers(-1, 3, 2)]
    wanted = [sum(c * m.values[m.table[t]] for c, m in zip(counts, first, strict=True)) for t in range(3)]  # type: ignore[operator, misc]
    if seed % 3 == 2:
        wanted[int(rng.integers(3))] += 1
    listed = tuple(sorted({*wanted}))
    total = Map((0,), np.array([listed.index(v) for v in wanted], dtype=np.int32), listed)
    related = rng.integers(0, 2, (3, 3)).astype(bool)
    defaults = [int(rng.integers(2)) for _ in range(2)]
    sum_of_defaults = sum(c * d for c, d in zip(counts, defaults, strict=True)) + (seed % 5 == 4)

    def mean(selector: int, value: int, default: int, entries: tuple[Any, ...]) -> Node:
        found = {
            Fraction(a + b + c, k)
            for k, n in ((1, 0), (2, 1), (3, 2))
            for a in entries
            for b in (entries if n else (0,))
            for c in (entries if n > 1 else (0,))
        }
        every = sorted({*found, Fraction(default)})
        numbers = tuple(int(v) if v.denominator == 1 else v for v in every)
        return Aggregate(selector, value, numbers.index(default), numbers)

    nodes = [*first, total, Select(0, 0, related), Select(1, 1, related)]
    nodes += [mean(5, 2, defaults[0], first[0].values), mean(5 + (seed % 7 == 6), 3, defaults[1], first[1].values)]
    nodes.append(mean(5, 4, sum_of_defaults, listed))
    program = core(*nodes)
    analysis = analyse(program)
    assert not analysis.problems
    terms = ((7, counts[0]), (8, counts[1]))
    said = is_mean_sum(analysis, 9, terms)
    differs = False
    for n in (1, 2, 3):
        found = BatchEvaluator(program)(np.array(list(np.ndindex(*[3] * n))), (7, 8, 9))
        numbers = [
            np.array([Fraction(v) for v in program.value_node(i).values], dtype=object)[found[i]] for i in (7, 8, 9)
        ]
        differs |= bool((counts[0] * numbers[0] + counts[1] * numbers[1] != numbers[2]).any())
    assert not (said and differs)
    assert checked(program, 9, terms) == said
    if not seed % 3 == 2 and not seed % 7 == 6 and not seed % 5 == 4:
        assert said


def checked(program: Any, node: int, terms: tuple[tuple[int, int], ...]) -> bool:
    """What the checker says of a sum of means."""
    from certiformer.compiler.core_json import core_to_json
    from certiformer.proofs.core import read_program
    from certiformer.proofs.format import Rejected
    from certiformer.proofs.ranges import Ranges
    from certiformer.proofs.resolving import check_mean_sum

    read = read_program(core_to_json(program))
    ranges = Ranges(read, {n: np.ones(len(program.vocab), dtype=np.bool_) for n in (1, 2, 3)})
    try:
        check_mean_sum(ranges, node, list(terms))
    except Rejected:
        return False
    return True


# Tracr's library in our RASP


def test_the_library_computes_what_ours_does() -> None:
    """But for `sort_unique`, whose values are undefined at repetitions, at every position of random words."""
    rng = random.Random(3)
    same = {"count_less_freq": {"bound": 2}, "detect_pattern": {"pattern": "abc"}, "shift_by": {"offset": 1}}
    for name, build in library(8).items():
        entry = programs.LIBRARY[name]
        program, ours = build(), entry.build(**same.get(name, {}))
        vocab: tuple[Any, ...] = (
            (1, 2, 3)
            if name in ("sort", "sort_unique", "nary_sequencemap")
            else tuple("(){}")
            if "(" in entry.vocab(3)
            else tuple("abc")
        )
        for _ in range(40):
            word = [rng.choice(vocab) for _ in range(rng.randint(1, 8))]
            assert cf.evaluate(program, word) == cf.evaluate(ours, word), (name, word)


@pytest.mark.skipif(importlib.util.find_spec("tracr") is None, reason="Tracr is not installed")
def test_the_library_is_tracrs() -> None:
    from benchmarks.cases import SCALE
    from benchmarks.peer_tracr import builders

    from certiformer.compiler.tracr import from_tracr

    rng = random.Random(4)
    for one in SCALE:
        ours, theirs = library(one.max_len)[one.program](), from_tracr(builders(one)[one.program]())
        for _ in range(10):
            word = [rng.choice(one.vocab) for _ in range(rng.randint(1, one.max_len))]
            assert cf.evaluate(ours, word) == cf.evaluate(theirs, word), one
