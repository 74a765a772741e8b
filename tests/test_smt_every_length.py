"""Claims on every length: what is proved holds as far as can be enumerated; prefix programs mean what programs do."""

from __future__ import annotations

import copy
import random
import time
from itertools import product
from typing import Any

import pytest

import certiformer as cf
from certiformer import proofs
from certiformer.compiler import programs
from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.rasp import full, indices, select, selector_width, tokens
from certiformer.verifier.every_length import prove_every_length
from certiformer.verifier.prefix_evaluator import evaluate_prefix
from certiformer.verifier.prefix_programs import Finite, NoPrefixProgram, PrefixBuilder

from .checker_models import sealed
from .program_mutants import mutant
from .random_programs import case
from .test_smt_programs import first_failure

_NAMES = (
    "bracket_depth compare_binary contains count_distinct count_runs detect_pattern equals_previous frac_prevs "
    "gray_code hist inversions is_first_occurrence is_record is_sorted majority_so_far nested_pairs no_three_zeros "
    "pair_balance parity prefix_count prefix_parity rank shift_by shuffle_dyck1"
).split()


@pytest.mark.parametrize("seed", range(40))
def test_mutants_are_proved_only_if_no_input_refutes_them(seed: int) -> None:
    rng = random.Random(seed)
    entry = LIBRARY[rng.choice(_NAMES)]
    program = entry.build()
    changed = mutant(program, rng)
    assert changed is not None
    claim = cf.Equivalent(program, changed[0], causal=True)
    vocab = entry.vocab(2)
    expected = first_failure(claim, cf.sequences(vocab, range(1, 7 if len(vocab) <= 2 else 6)))
    verdict = cf.prove(claim, cf.EveryLength(vocab))
    if isinstance(verdict, cf.Proved):
        assert expected is None, (entry.name, changed[1])
    elif isinstance(verdict, cf.Refuted):
        assert not isinstance(verdict.evidence, cf.Certificate)
        if expected is not None:
            assert verdict.evidence.inputs == (expected,)
    else:
        assert expected is None


@pytest.mark.parametrize("seed", range(80))
def test_prefix_programs_of_random_programs_have_their_values(seed: int) -> None:
    this = case(seed)
    builder = PrefixBuilder(this.vocab)
    try:
        symbol = builder.program(this.program)
    except NoPrefixProgram:
        return
    for word in (word for n in (1, 2, 3) for word in product(this.vocab, repeat=n)):
        try:
            expected = cf.evaluate(this.program, list(word), causal=True)
        except cf.InputError:
            continue
        if not isinstance(symbol, Finite):
            for place, value in enumerate(expected):
                told = builder.compared("==", symbol, builder.map([], lambda value=value: value))  # type: ignore[misc]
                found = evaluate_prefix(builder.nodes, told.node, this.vocab, word)
                assert found is None or found[place] is True, (this.text, word)
            continue
        found = evaluate_prefix(builder.nodes, symbol.node, this.vocab, word)
        assert found is None or found == expected, (this.text, word)


_OPEN, _CLOSED = (selector_width(select(tokens, full(token), "==")) for token in "()")
_DEPTH = _OPEN - _CLOSED
_NEVER = selector_width(select(_DEPTH < 0, full(True), "==")) == 0


@pytest.mark.parametrize(
    ("claim", "vocab"),
    [
        (cf.Equivalent(programs.shuffle_dyck1(), (_DEPTH == 0) & _NEVER, causal=True), "()"),
        (cf.Equivalent(programs.bracket_depth(), _DEPTH, causal=True), "()a"),
        (cf.Implies(programs.shuffle_dyck1(), _OPEN == _CLOSED, causal=True), "()"),
        (cf.Range(programs.prefix_parity(), 0, 1, causal=True), (0, 1)),
        (cf.Implies(programs.hist() > 2, programs.hist() > 1, causal=True), "ab"),
        (cf.Equivalent(indices % 3, (programs.length() + 2) % 3, causal=True), "ab"),
    ],
    ids=["dyck", "depth", "implies", "parity", "counts", "remainders"],
)
def test_claims_on_every_length(claim: Any, vocab: Any) -> None:
    verdict = prove_every_length(claim, cf.EveryLength(vocab))
    assert first_failure(claim, cf.sequences(vocab, range(1, 7))) is None
    assert isinstance(verdict, cf.Proved), verdict
    domain = cf.EveryLength(vocab)
    assert isinstance(cf.check(verdict.certificate, expect=claim, domain=domain), cf.Valid)
    other = cf.EveryLength((*domain.vocab[:-1], "z") if isinstance(domain.vocab[0], str) else (5, 6))
    assert isinstance(cf.check(verdict.certificate, domain=other), cf.Invalid)
    assert "every length" in str(verdict) and "every length" in proofs.describe(verdict.certificate.theorem)


def test_what_is_refuted_late_is_refuted() -> None:
    """At length 7 for the first time."""
    verdict = cf.prove(cf.Range(programs.hist(), 1, 6, causal=True), cf.EveryLength("ab"))
    assert isinstance(verdict, cf.Refuted) and not isinstance(verdict.evidence, cf.Certificate)
    assert verdict.evidence.inputs == (("a",) * 7,)


def test_false_beyond_all_that_is_tried_is_not_proved() -> None:
    """False at length 41 only."""
    verdict = cf.prove(cf.Range(programs.hist(), 1, 40, causal=True), cf.EveryLength("ab"))
    assert isinstance(verdict, cf.Unknown) and "only" in verdict.reason


def test_a_changed_certificate_is_valid_for_no_false_theorem() -> None:
    """Each integer of the program, and the clip, changed in turn: what stays valid is true up to length 6."""
    verdict = cf.prove(
        cf.Equivalent(programs.shuffle_dyck1(), (_DEPTH == 0) & _NEVER, causal=True), cf.EveryLength("()")
    )
    assert isinstance(verdict, cf.Proved)
    data: Any = copy.deepcopy(verdict.certificate.data)
    words = [word for n in range(1, 7) for word in product("()", repeat=n)]
    changes = 0
    for number, node in enumerate(data["theorem"]["body"]["program"]["nodes"]):
        for name in ("table", "constant", "terms", "by", "default"):
            if name not in node:
                continue
            changed = copy.deepcopy(data)
            target = changed["theorem"]["body"]["program"]["nodes"][number]
            _change(target, name)
            changed["seal"] = proofs.seal(changed)
            changes += 1
            if isinstance(proofs.check(changed), proofs.Valid):
                program = changed["theorem"]["body"]["program"]
                found = [evaluate_prefix(program["nodes"], program["output"], ("(", ")"), word) for word in words]
                assert all(values is not None and set(values) == {True} for values in found), (number, name)
    assert changes > 10


def _change(node: dict[str, Any], name: str) -> None:
    if name == "table" and node["table"]:
        first = node["table"][0]
        node["table"][0] = first.translate(str.maketrans("01", "10")) if isinstance(first, str) else 1 - first
    elif name == "terms" and node["terms"]:
        node["terms"][0][1] += 1
    elif name in ("constant", "by"):
        node[name] += 1


def test_a_clip_that_is_too_small_is_refused() -> None:
    verdict = cf.prove(
        cf.Equivalent(programs.equals_previous(), programs.equals_previous(), causal=True), cf.EveryLength("ab")
    )
    assert isinstance(verdict, cf.Proved)
    far = cf.Implies(_DEPTH > 5, _DEPTH > 4, causal=True)
    proved = cf.prove(far, cf.EveryLength("()"))
    assert isinstance(proved, cf.Proved)
    data: Any = copy.deepcopy(proved.certificate.data)
    data["proof"]["clip"] = 2
    data["seal"] = proofs.seal(data)
    outcome = proofs.check(data)
    assert isinstance(outcome, proofs.Invalid) and "clip" in outcome.why


def test_only_causal_claims_are_about_every_length() -> None:
    with pytest.raises(cf.InputError, match="causal=True"):
        cf.prove(cf.Range(programs.parity(), 0, 1), cf.EveryLength((0, 1)))


def test_a_step_as_wide_as_its_coefficient_costs_no_more_than_the_clip() -> None:
    """From more than the clip on, one token may lead to any count: 10^30 of them are not looked at one by one."""
    nodes: list[Any] = [
        {"kind": "tokens", "values": [0, 1]},
        *({"kind": "select", "keys": 0, "queries": 0, "table": rows} for rows in (["11", "00"], ["00", "11"])),
        {"kind": "sign", "terms": [[1, 1], [2, -(10**30)]], "constant": 1},
        {"kind": "map", "args": [3], "table": [0, -1, 0], "values": [1]},
    ]
    theorem = {
        "quantifier": "forall",
        "about": "programs",
        "domain": {"kind": "every_length", "vocab": [0, 1]},
        "body": {"kind": "prefix_ensures", "program": {"vocab": [0, 1], "nodes": nodes, "output": 4}},
    }
    proof = {"rule": "prefix_states", "clip": 3}
    began = time.monotonic()
    outcome = proofs.check(sealed({"format": "certiformer/1", "theorem": theorem, "proof": proof}))
    assert time.monotonic() - began < 20
    assert isinstance(outcome, proofs.Invalid) and "undefined" in outcome.why  # the sum may be 0, as far as is known
