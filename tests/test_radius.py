"""Weight radii against attacks, tolerance zero: no model inside the ball breaks the claim; and planted exact radii."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from unittest import mock

import flint
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.config import LayerConfig, TransformerConfig
from certiformer.models.labels import LabelMachine
from certiformer.models.languages import sequences
from certiformer.models.transformer import Transformer
from certiformer.verifier import balls, perturbed, radius, sharing
from certiformer.verifier.balls import Ball, Unsupported
from certiformer.verifier.claims import Claim
from certiformer.verifier.first_layer import first_layer
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.perturbed import PerturbedWeights
from certiformer.verifier.radius import WeightRadius, rounded_down, weight_radius
from certiformer.verifier.reading import FALSE, TRUE, Subject
from certiformer.verifier.refute import Search

from . import test_configurations, test_counting
from .test_balls import exact_logits

SEEDS = st.integers(0, 2**32 - 1)


# --- models inside a ball


def moved(model: Transformer, eps: float, relative: bool, signs: dict[str, torch.Tensor]) -> Transformer:
    """In float64: each weight w + s eps |w| or w + s eps, made exact by moving it inwards where float64 rounds it."""
    near = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, weight in near.named_parameters():
            step = eps * (weight.abs() if relative else torch.ones_like(weight))
            wanted = weight + signs[name] * step
            weight.copy_(torch.where((wanted - weight).abs() <= step, wanted, torch.nextafter(wanted, weight)))
    return near


def require_inside(model: Transformer, near: Transformer, eps: float, relative: bool) -> None:
    """By exact fractions."""
    for (_, before), (_, after) in zip(model.named_parameters(), near.named_parameters(), strict=True):
        for w, v in zip(before.flatten().tolist(), after.flatten().tolist(), strict=True):
            assert abs(Fraction(v) - Fraction(w)) <= Fraction(eps) * (abs(Fraction(w)) if relative else 1)


def random_signs(model: Transformer, rng: np.random.Generator, size: float = 1.0) -> dict[str, torch.Tensor]:
    """At full radius, or (of size 0) anywhere inside."""
    found = {}
    for name, weight in model.named_parameters():
        sign = rng.choice([-1.0, 1.0], size=tuple(weight.shape))
        found[name] = torch.from_numpy(sign * (size or rng.uniform(size=sign.shape)))
    return found


def attacked(model: Transformer, claim: Claim, ids: torch.Tensor, eps: float, relative: bool) -> list[Transformer]:
    """For some inputs: weights at full radius against the sign of the margin's gradient, taken there again twice."""
    body = claim.body
    assert isinstance(body, LabelsBody)
    labels = body.machine.run(ids.numpy())
    found = []
    for word, label in zip(ids, labels.tolist(), strict=True):
        near = copy.deepcopy(model).double()
        for _ in range(3):
            near.zero_grad()
            logits = near(word[None])[0]
            others = [o for o in range(len(logits)) if o != label]
            (logits[label] - logits[others].max()).backward()
            signs = {
                n: -torch.sign(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in near.named_parameters()
            }
            near = moved(model, eps, relative, signs)
        found.append(near)
    return found


def every_word(claim: Claim, domain: cf.Language) -> list[torch.Tensor]:
    search = Search(claim, domain, math.inf)
    return [search.ids((domain.unrank(n, np.arange(domain.size(n))),))[0] for n in domain.lengths if domain.size(n)]


def broken(claim: Claim, near: Transformer, words: list[torch.Tensor]) -> bool:
    """Whether the claim is certainly false of a model: by balls around its exact logits on every input."""
    body = claim.body.with_subject(Subject(near, claim.subject.codec))
    codes = torch.cat([body.judge((ids,), "real") for ids in words])
    if not claim.counted:
        return bool((codes == FALSE).any())
    return claim.settled(int((codes == TRUE).sum()), int((codes == FALSE).sum()), len(codes)) is False


@given(SEEDS, st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_bounds_hold_for_every_model_of_the_ball(seed: int, relative: bool) -> None:
    """All configurations, by both evaluators, against exact logits of models at full radius and inside."""
    model, _, words = test_configurations.random_case(seed)
    rng = np.random.default_rng(seed)
    eps = float(2.0 ** rng.integers(-20, -1))
    near = PerturbedWeights.of(model, eps, relative=relative)
    tokens = torch.from_numpy(words[:2])
    found: list[Ball] = []
    for enclose in (lambda: balls.enclose(near, tokens)["logits"], lambda: sharing.logits_of_words(near, tokens)):
        try:
            found.append(enclose())
        except Unsupported:
            continue
    flint.ctx.prec = 192
    for size in (1.0, 0.0):
        other = moved(model, eps, relative, random_signs(model, rng, size))
        require_inside(model, other, eps, relative)
        for w, word in enumerate(tokens.tolist()):
            for i, row in enumerate(exact_logits(other, word)):
                for o, value in enumerate(row):
                    for ball in found:
                        at = (w, i, o) if ball.mid.dim() == 3 else (w, o)
                        assert not abs(value - flint.arb(float(ball.mid[at]))) > flint.arb(float(ball.rad[at]))


@pytest.mark.parametrize("seed", range(25))
def test_each_parameter_counts(seed: int) -> None:
    """Only one tensor of weights is perturbed: whoever reads it as exact is found out at once."""
    flint.ctx.prec = 192
    model, _, words = test_configurations.random_case(seed)
    rng, tokens = np.random.default_rng(seed), torch.from_numpy(words[:1])
    whole, none = (PerturbedWeights.of(model, eps, relative=True) for eps in (0.0625, 0.0))
    for name in none.weights:
        near = PerturbedWeights(model.config, model.program, {**none.weights, name: whole.weights[name]})
        signs = {n: s * (n == name) for n, s in random_signs(model, rng).items()}
        exact = exact_logits(moved(model, 0.0625, True, signs), words[0].tolist())
        for ball in (balls.enclose(near, tokens)["logits"], sharing.logits_of_words(near, tokens)):
            for i, row in enumerate(exact):
                for o, value in enumerate(row):
                    at = (0, i, o) if ball.mid.dim() == 3 else (0, o)
                    assert not abs(value - flint.arb(float(ball.mid[at]))) > flint.arb(float(ball.rad[at])), name


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_attention_in_tables_reaches_both_ends(sign: float) -> None:
    """One dimension: the score of token 1 for query 0 is a product of four weights, all with one relative error."""
    config = TransformerConfig(
        1, 2, 2, 1, (LayerConfig(1, 1, 0),), positional="none", readout="last", attention_scale=1.0
    )
    model, eps = Transformer(config), 0.0625
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.parameter("embed.W_E").copy_(torch.tensor([[1.0], [2.0 * sign]]))
        for letter in "QK":
            model.parameter(f"blocks.0.attn.W_{letter}").fill_(1.0)
    tables = first_layer(PerturbedWeights.of(model, eps, relative=True), 2)
    ends = sorted(2 * sign * (1 + side * eps) ** 4 - max(1.0, 2 * sign) for side in (-1, 1))
    for place in range(2):
        low, high = float(tables.least[0, place, 1]), float(tables.most[0, place, 1])
        assert 0.8 * math.exp(ends[0]) < low < math.exp(ends[0]) < math.exp(ends[1]) < high < 1.2 * math.exp(ends[1])


def test_small_balls_are_narrow() -> None:
    """The test above could not fail if bounds were infinite."""
    widest = []
    for seed in range(20):
        model, _, words = test_configurations.random_case(seed)
        near = PerturbedWeights.of(model, 2.0**-40, relative=True)
        widest.append(float(balls.enclose(near, torch.from_numpy(words))["logits"].rad.max()))
    assert sorted(widest)[10] < 1e-7 and min(widest) > 1e-13


@given(st.floats(-(2.0**120), 2.0**120, width=32), st.floats(0, 16))
@settings(max_examples=300, deadline=None)
def test_the_radius_of_a_weight_is_never_too_small(weight: float, eps: float) -> None:
    ball = perturbed._around(torch.tensor([weight]), eps, True)
    assert float(ball.mid) == weight
    assert Fraction(float(ball.rad)) >= Fraction(eps) * abs(Fraction(weight))
    assert (float(ball.rad) == 0) == (weight == 0 or eps == 0)


# --- radii


def true_case(seed: int) -> tuple[Claim, cf.Language]:
    """A claim about labels or a share of them that holds, of one layer and one head."""
    claim, domain = test_counting.random_case(seed)
    share = right(claim, domain)
    return (claim if share == 1 and seed % 2 else claim.at_least(share)), domain


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_model_inside_the_radius_breaks_the_claim(seed: int, relative: bool, counting: bool) -> None:
    claim, domain = true_case(seed)
    with mock.patch.object(radius, "AT_ONCE", 0 if counting else radius.AT_ONCE):
        found = weight_radius(claim, domain, relative=relative)
    if not isinstance(found, WeightRadius):
        return
    assert found.setting.engine == ("counting" if counting and claim.counted else "enumeration")
    model, words, rng = claim.subject.model, every_word(claim, domain), np.random.default_rng(seed)
    near = [moved(model, found.eps, relative, random_signs(model, rng, size)) for size in (1.0,) * 12 + (0.0,) * 3]
    some = [ids[rng.integers(len(ids), size=2)] for ids in words]
    for ids in some:
        if labelled(claim, ids):
            near += attacked(model, claim, ids, found.eps, relative)
    require_inside(model, near[0], found.eps, relative)
    assert not any(broken(claim, other, words) for other in near)


def labelled(claim: Claim, ids: torch.Tensor) -> bool:
    body = claim.body
    assert isinstance(body, LabelsBody)
    return bool((body.machine.run(ids.numpy()) >= 0).all()) and len(body.subject.codec.outputs) > 1


def test_attacks_break_claims_not_far_beyond() -> None:
    """So the attacks of the test above are no mock attacks."""
    tried = beaten = 0
    for seed in range(1, 120, 2):
        claim, domain = true_case(seed)
        words = every_word(claim, domain)
        if claim.counted or not all(labelled(claim, ids) for ids in words):
            continue
        found = weight_radius(claim, domain)
        if not isinstance(found, WeightRadius) or found.eps > 0.02:
            continue
        tried += 1
        model, eps = claim.subject.model, 100 * found.eps
        beaten += any(
            broken(claim, other, words) for ids in words for other in attacked(model, claim, ids[:64], eps, True)
        )
    assert tried >= 3 and beaten >= tried / 2, (beaten, tried)


# --- planted


def planted(bias: float) -> tuple[Claim, cf.Language]:
    """One token, no layer: logits 1 * 1 and 1 * -1 + bias; the label is the first output."""
    model = Transformer(TransformerConfig(1, 1, 1, 2, (), positional="none", readout="last"))
    weights = {"embed.W_E": [[1.0]], "unembed.W_U": [[1.0, -1.0]], "unembed.b_U": [0.0, bias]}
    with torch.no_grad():
        for name, values in weights.items():
            model.parameter(name).copy_(torch.tensor(values))
    machine = LabelMachine(np.zeros((1, 1), dtype=np.int32), np.zeros(1, dtype=np.int64))
    codec = Codec((0,), False, "categorical", (0, 1), (), 1)
    return Claim("forall", LabelsBody(Subject(model, codec), machine, "first")), sequences((0,), 1)


TIGHT = 1.9375


@pytest.mark.parametrize(
    ("relative", "exact"),
    [
        (True, (4 + TIGHT - math.sqrt((4 + TIGHT) ** 2 - 8 * (2 - TIGHT))) / 4),
        (False, (6 - math.sqrt(36 - 8 * (2 - TIGHT))) / 4),
    ],
    ids=["relative", "each"],
)
def test_a_radius_that_is_known(relative: bool, exact: float) -> None:
    """The worst model has margin 2 (1 - e)^2 - b (1 + e), or 2 (1 - e)^2 - (b + 2 e); bounds lose some e^2 only."""
    claim, domain = planted(TIGHT)
    found = weight_radius(claim, domain, relative=relative)
    assert isinstance(found, WeightRadius) and found.beyond is not None
    assert exact / (1 + 2.0**-5) < found.eps < exact < found.beyond * (1 + 2.0**-5)
    words = every_word(claim, domain)
    for factor, breaks in ((0.9999, False), (1.0001, True)):
        (near,) = attacked(claim.subject.model, claim, words[0], factor * exact, relative)
        assert broken(claim, near, words) is breaks
    assert found.setting.engine == "enumeration" and found.inputs == 1


def test_a_claim_that_is_false_is_refuted() -> None:
    claim, domain = planted(3.0)
    found = weight_radius(claim, domain)
    assert isinstance(found, cf.Refuted) and "0" in str(found.evidence)


def test_a_claim_of_the_exact_weights_only_is_unknown() -> None:
    """A tie: the first output wins it, but in no ball."""
    claim, domain = planted(2.0)
    found = weight_radius(claim, domain)
    assert isinstance(found, cf.Unknown)
    assert "no radius above 0" in found.reason and "proved of the exact weights" in found.reason


def test_what_no_weight_can_break_has_the_largest_radius() -> None:
    claim, domain = planted(1.0)
    found = weight_radius(claim.at_least(0), domain)
    assert isinstance(found, WeightRadius) and found.eps == 16 and found.beyond is None
    assert "at no radius that was tried" in str(found)


def counted_case() -> tuple[Claim, cf.Language]:
    """Of every kind of word, the share that is right: all three of its radii are above 0."""
    return next(
        case
        for case in map(test_counting.random_case, range(1000))
        if len(case[0].subject.codec.vocab) == 3
        and len(case[0].subject.codec.outputs) > 1
        and case[1].size() > 30
        and right(case[0], case[1]) > 0.95
    )


def right(claim: Claim, domain: cf.Language) -> Fraction:
    true = sum(int((claim.body.judge((ids,), "real") == TRUE).sum()) for ids in every_word(claim, domain))
    return Fraction(true, domain.size())


def test_stronger_claims_have_smaller_radii_and_the_same_call_gives_the_same() -> None:
    """Shares, by counting and by enumeration; margins."""
    claim, domain = counted_case()
    for few in (0, radius.AT_ONCE):
        with mock.patch.object(radius, "AT_ONCE", few):
            radii = [weight_radius(claim.at_least(share), domain) for share in (0.9, 0.6, 0.3, 0.3)]
        eps = [found.eps for found in radii if isinstance(found, WeightRadius)]
        assert len(eps) == 4 and eps[0] < eps[1] < eps[2] == eps[3] < 16
        assert {found.setting.engine for found in radii} == {"enumeration" if few else "counting"}
    model = planted(1.0)[0].subject
    margins = [weight_radius(cf.Margin(model, at), sequences((0,), 1)) for at in (0.25, 0.5, 0.75, 0.75)]
    eps = [found.eps for found in margins if isinstance(found, WeightRadius)]
    assert len(eps) == 4 and eps[0] > eps[1] > eps[2] == eps[3]


def test_compiled_programs_have_radii_by_enumeration() -> None:
    compiled = cf.compile(cf.programs.sort(), vocab=range(3), max_len=3)
    found = weight_radius(cf.Computes(compiled), sequences(range(3), range(1, 4)))
    assert isinstance(found, WeightRadius) and found.eps > 0
    claim, words = found.setting.claim, torch.tensor([[2, 0, 1]])
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert not broken(claim, moved(compiled.model, found.eps, True, random_signs(compiled.model, rng)), [words])


# --- what is refused


def test_time_that_is_up_is_said() -> None:
    claim, domain = planted(1.0)
    found = weight_radius(claim, domain, seconds=1e-9)
    assert isinstance(found, cf.Unknown) and "time was up" in found.reason


def test_ctrl_c_keeps_what_is_proved() -> None:
    claim, domain = planted(1.0)
    calls = iter([None] * 20)
    said: list[str] = []

    def interrupt(text: str) -> None:
        said.append(text)
        if "proved so far 0.125" in text or next(calls, "end") == "end":
            raise KeyboardInterrupt

    with mock.patch.object(radius._Enumeration, "guess", lambda self, search: -3):
        found = weight_radius(claim, domain, progress=interrupt)
    assert isinstance(found, WeightRadius) and found.eps == 0.125 and "interrupted" in str(found)


def test_claims_that_are_not_covered_are_refused() -> None:
    claim, domain = planted(1.0)
    with pytest.raises(Unsupported, match="all inputs"):
        weight_radius(claim.exists(), domain)
    compiled = cf.compile(cf.programs.sort(), vocab=range(3), max_len=3)
    with pytest.raises(Unsupported, match="faithful"):
        weight_radius(cf.Faithful(compiled), sequences(range(3), range(1, 4)))
    with pytest.raises(Unsupported, match="2\\^20 inputs"):
        weight_radius(cf.Computes(cf.compile(cf.programs.sort(), vocab=range(10), max_len=8)), sequences(range(10), 8))
    with pytest.raises(cf.InputError, match="takes a claim"):
        weight_radius("sort", domain)  # type: ignore[arg-type]
    with pytest.raises(cf.InputError, match="seconds"):
        weight_radius(claim, domain, seconds=0)
    nothing = domain.intersection(domain.complement())
    assert isinstance(weight_radius(claim, nothing), cf.EmptyDomain)


def test_balls_cannot_pass_for_numbers() -> None:
    """In high precision, which takes weights exactly, a ball is an error and no model."""
    claim, domain = planted(1.0)
    near = PerturbedWeights.of(claim.subject.model, 0.1, relative=True)
    body = claim.body.with_subject(Subject(near, claim.subject.codec))
    for semantics in ("precise", "float32"):
        with pytest.raises((AttributeError, TypeError)):
            body.judge((every_word(claim, domain)[0],), semantics)  # type: ignore[arg-type]


def test_digits_are_rounded_down() -> None:
    assert rounded_down(0.0009999999) == "0.000999" and rounded_down(2.0) == "2" and rounded_down(0.0) == "0"
    for x in np.random.default_rng(0).uniform(size=500).tolist():
        assert x * 0.98 < float(rounded_down(x)) <= x


def test_a_layer_beyond_is_counted_on_too_few_inputs_to_enumerate() -> None:
    """Two heads: counting does not apply, and the inputs are too many for enumeration; said with the reason."""
    config = TransformerConfig(2, 4, 64, 2, (LayerConfig(2, 1, 0),), positional="none", readout="last")
    machine = LabelMachine(np.zeros((1, 64), dtype=np.int32), np.zeros(1, dtype=np.int64))
    subject = Subject(Transformer(config), Codec(tuple(range(64)), False, "categorical", (0, 1), (), 4))
    claim = Claim("at_least", LabelsBody(subject, machine, "first"), Fraction(1, 2))
    with pytest.raises(Unsupported, match="counting: .*2 heads"):
        weight_radius(claim, sequences(range(64), 4))
