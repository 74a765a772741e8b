"""Rule `interchange`: all pairs of inputs, from one composition; against enumeration, faults and other theorems."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certiformer as cf
from certiformer import proofs
from certiformer.compiler import programs
from certiformer.compiler.compiled import Compiled
from certiformer.models.edits import change_weight
from certiformer.proofs import Invalid, Valid
from certiformer.proofs.check import INTERNAL
from certiformer.verifier.portfolio import theorem
from certiformer.verifier.verdicts import Proved, Refuted

from .checker_judge import is_true
from .checker_models import sealed
from .mutations import mutate

SMALL = ("sort", "hist", "reverse", "most_frequent", "count_less_freq", "majority", "bracket_depth", "frac_prevs")


def made(name: str, size: int = 2, length: int = 3) -> Compiled:
    entry = programs.LIBRARY[name]
    return cf.compile(entry.build(), vocab=entry.vocab(size), max_len=length, causal=entry.causal)


def domain(compiled: Compiled, length: int = 3) -> Any:
    return cf.sequences(compiled.codec.vocab, range(1, length + 1))


def certificate(compiled: Compiled, length: int = 3) -> Any:
    verdict = cf.prove(cf.Abstracts(compiled), domain(compiled, length), engines={"composition"})
    assert isinstance(verdict, Proved), verdict
    return verdict.certificate.data


@pytest.mark.parametrize("name", SMALL)
def test_composition_proves_what_enumeration_proves(name: str, tmp_path: Path) -> None:
    compiled = made(name)
    data = certificate(compiled)
    assert data["proof"]["rule"] == "interchange"
    compiled.model.save(tmp_path / "m.safetensors")
    assert isinstance(proofs.check(data, tmp_path / "m.safetensors"), Valid)
    assert isinstance(cf.prove(cf.Abstracts(compiled), domain(compiled), engines={"enumeration"}), Proved)


def test_a_domain_that_nothing_could_enumerate() -> None:
    """Pairs of words of 20 tokens: more than 10^50."""
    compiled = made("sort", 20, 20)
    data = certificate(compiled, 20)
    assert len(data["theorem"]["body"]["parts"]) == 2
    assert isinstance(proofs.check(data, _saved(compiled)), Valid)


def _saved(compiled: Compiled) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        compiled.model.save(path)
        return path.read_bytes()


@pytest.mark.parametrize("name", ["sort", "hist", "most_frequent", "count_less_freq"])
def test_a_changed_weight_is_proved_only_if_enumeration_proves_it(name: str) -> None:
    """Faults of all sizes anywhere in the model: none is proved that fails on a pair."""
    compiled, rng = made(name), np.random.default_rng(len(name))
    base = certificate(compiled)
    parameters = [(key, p.shape) for key, p in compiled.model.named_parameters() if p.numel()]
    wrong = 0
    for _ in range(8):
        key, shape = parameters[int(rng.integers(len(parameters)))]
        place = tuple(int(rng.integers(size)) for size in shape)
        model = change_weight(compiled.model, key, place, float(rng.choice([0.0, 0.3, -1.0, 2.0, 8.0, 60.0])))
        other = Compiled(**{**{f: getattr(compiled, f) for f in compiled.__dataclass_fields__}, "model": model})
        claim = cf.Abstracts(other)
        stated = theorem(claim, domain(other))
        outcome = proofs.check(sealed({**base, "theorem": stated}), _saved(other))
        assert not isinstance(outcome, Invalid) or outcome.rule != INTERNAL, outcome
        truth = cf.prove(claim, domain(other), engines={"enumeration"})
        wrong += isinstance(truth, Refuted)
        assert isinstance(outcome, Invalid) or isinstance(truth, Proved), (key, place, truth)
    assert wrong > 0


def others(stated: Any) -> list[Any]:
    """Theorems near this one: another node, other heads or neurons, in each part."""
    found = []
    layers = stated["config"]["layers"]
    for number, part in enumerate(stated["body"]["parts"]):
        changed: list[dict[str, Any]] = [{"heads": []}, {"neurons": []}, {"heads": [], "neurons": []}]
        changed += [{"node": n} for n, x in enumerate(part["program"]["nodes"]) if n > 1 and "values" in x]
        changed += [{"heads": [[layer, 0]]} for layer, x in enumerate(layers) if x["n_heads"]]
        for layer, shape in enumerate(layers):
            changed += [{"neurons": [[layer, 0, end]]} for end in {1, shape["d_mlp"]} if end <= shape["d_mlp"]]
            if shape["n_heads"] and [layer, 0] > max([*part["heads"], [-1]]):
                changed.append({"heads": [*part["heads"], [layer, 0]]})
        for change in changed:
            other = copy.deepcopy(stated)
            other["body"]["parts"][number] |= change
            other["body"] = other["body"]["parts"][number]
            found.append(other)
    return found


@pytest.mark.parametrize("name", ["sort", "most_frequent", "reverse"])
def test_another_theorem_is_valid_only_if_true(name: str) -> None:
    compiled = made(name, 2, 2)
    base, model = certificate(compiled, 2), _saved(compiled)
    weights = {key: p.detach().numpy() for key, p in compiled.model.named_parameters()}
    false = valid = 0
    for stated in others(base["theorem"]):
        outcome = proofs.check(sealed({**base, "theorem": stated}), model)
        assert not isinstance(outcome, Invalid) or outcome.rule != INTERNAL, outcome
        truth = is_true(stated, weights)
        false, valid = false + (truth is False), valid + isinstance(outcome, Valid)
        assert isinstance(outcome, Invalid) or truth is not False, stated["body"]
    assert false > 2 and valid > 0


def test_any_change_of_the_certificate_is_refused_or_true() -> None:
    compiled = made("most_frequent", 2, 2)
    base, model = certificate(compiled, 2), _saved(compiled)
    weights = {key: p.detach().numpy() for key, p in compiled.model.named_parameters()}
    rng = np.random.default_rng(5)
    for _ in range(50):
        changed, what = mutate(rng, base)
        outcome = proofs.check(changed, model)
        assert not isinstance(outcome, Invalid) or outcome.rule != INTERNAL, (what, outcome)
        if isinstance(outcome, Valid):
            assert is_true(changed["theorem"], weights) is not False, what


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("width_sums", [{"node": 2, "terms": 5}]),
        ("width_sums", [{"node": 2, "terms": [5]}]),
        ("width_sums", [{"node": 2, "terms": [[]]}]),
        ("width_sums", [{"node": [], "terms": [[2, 1]]}]),
        ("width_sums", [{"node": 2, "terms": [[[], 1]]}]),
        ("width_sums", [5]),
        ("width_shares", 5),
        ("width_shares", []),
        ("width_shares", [{"node": 2, "counted": 3, "inside": []}]),
    ],
)
def test_malformed_facts_are_refused(key: str, facts: Any) -> None:
    compiled = made("sort", 2, 2)
    base = certificate(compiled, 2)
    outcome = proofs.check(sealed({**base, "proof": {**base["proof"], key: facts}}), _saved(compiled))
    assert isinstance(outcome, Invalid) and outcome.rule in ("width_sum", "width_share"), outcome


@pytest.mark.parametrize("rule", [[], {}, ["interchange"], None, 5])
def test_a_rule_that_is_no_name_is_refused(rule: Any) -> None:
    compiled = made("frac_prevs", 2, 2)
    base = certificate(compiled, 2)
    outcome = proofs.check(sealed({**base, "proof": {**base["proof"], "rule": rule}}), _saved(compiled))
    assert isinstance(outcome, Invalid) and "unknown rule" in outcome.why, outcome


def test_what_does_not_depend_on_the_source_is_refused_if_it_should() -> None:
    """Nothing exchanged: the program's values are y's, and the model's x's."""
    compiled = made("reverse", 3, 3)
    stated: Any = theorem(cf.Abstracts(compiled), domain(compiled))
    base = certificate(compiled)
    for part in stated["body"]["parts"]:
        part["heads"], part["neurons"] = [], []
    outcome = proofs.check(sealed({**base, "theorem": stated}), _saved(compiled))
    assert isinstance(outcome, Invalid)


def test_a_program_that_is_not_total_when_it_is_interchanged_is_open() -> None:
    compiled = made("deduplicate")
    verdict = cf.prove(cf.Abstracts(compiled), domain(compiled), engines={"composition"})
    assert not isinstance(verdict, Proved)
    assert isinstance(cf.prove(cf.Abstracts(compiled), domain(compiled), engines={"enumeration"}), Refuted)
