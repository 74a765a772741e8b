"""Planted unsoundness: each premise, inequality and error term of the checker is needed.

Every entry changes one small function of the checker and names a model with a *false* theorem. Without the fault the
checker rejects its certificate; with the fault it accepts it. So no test suite that contains these models would let
the fault pass unnoticed.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Valid, check
from certiformer.proofs.check import INTERNAL
from certiformer.proofs.exact import Exact

from .checker_models import (
    BOS,
    CASES,
    OUT,
    PLACES,
    TOKENS,
    Case,
    codec,
    count_same,
    decode,
    exchange,
    place_rows,
    previous,
    program,
    proof,
    share_of_a,
    twice_previous,
)


def replaced(result: Any) -> Callable[..., Any]:
    return lambda original, *arguments: result


def no_radii(original: Callable[..., Any], *arguments: Any) -> Any:
    return np.zeros_like(original(*arguments))


def all_known(original: Callable[..., Any], context: Any, state: Any) -> Any:
    """Takes what the first token has for what every position has."""
    found = original(context, state)
    level = state.const
    for table in state.encodings.values():
        level = level + table[0]
    return type(found)(np.ones_like(found.coordinates), level, state.eps)


def undivided(original: Callable[..., Any], *arguments: Any) -> Any:
    return Fraction(1), Fraction(0)


# --- models with false theorems ------------------------------------------------------------------------------------


def weak_gap() -> Case:
    """Attention is so soft that two equal other tokens outvote the selected one."""
    return previous(0.5)


def blind_queries() -> Case:
    """Queries look nowhere: all keys get the same score, above BOS."""
    case = previous(80.0, default=False)
    case.weights["blocks.0.attn.W_Q"][:] = 0
    case.weights["blocks.0.attn.b_Q"][0, 3] = -1
    return case


def apart_at_one_token() -> Case:
    """Neurons 2 and 3 read "b" with different weights: no ramp."""
    case = exchange()
    case.weights["blocks.0.mlp.W_in"][TOKENS[1], 3] = 12
    return case


def divided_scores() -> Case:
    """Counts are right with a scale of 1; with 1 / sqrt(4) the scores are too near each other."""
    case = count_same(3.0)
    case.config["attention_scale"] = "1/sqrt(d_head)"
    return case


def another_share() -> Case:
    """The head computes the share of "a"; the claim is about that of "b", said to be as much."""
    case = share_of_a()
    nodes = case.program["nodes"]
    case.proof["auxiliary"] = [copy.deepcopy(nodes[2]), {**copy.deepcopy(nodes[4]), "value": 5}]
    nodes[2]["table"] = [0, 1, 0]
    case.proof["steps"][0]["node"] = 6
    case.proof["steps"][1]["reads"] = [6]
    case.proof["width_sums"] = [{"node": 4, "terms": [[6, 1]]}]
    return case


def loud_sink() -> Case:
    """BOS gets all attention, always."""
    case = previous(80.0, default=False)
    case.weights["blocks.0.attn.b_Q"][0, 3] = 9
    return case


def quiet_sink() -> Case:
    """BOS gets no attention when nothing is selected."""
    case = previous()
    case.weights["blocks.0.attn.b_Q"][0, 3] = -1
    return case


def wrong_default() -> Case:
    """BOS's value says "c" where the program's default is "a"."""
    case = previous()
    case.weights["blocks.0.attn.W_V"][0, BOS] = [0, 0, 1, 0]
    return case


def uneven() -> Case:
    """Keys with "a" weigh e^3 times the others."""
    case = share_of_a()
    case.weights["blocks.0.attn.W_K"][0, TOKENS[0], 0] = 3
    return case


def uneven_called_singular() -> Case:
    case = uneven()
    del case.proof["steps"][0]["affine"]
    return case


def curious_bos() -> Case:
    """As a query, BOS attends to the third place, so that what it hands on depends on the input."""
    case = twice_previous()
    case.weights["blocks.0.attn.W_Q"][0, BOS, 2] = 900
    return case


def unsure_sink() -> Case:
    """In layer 0 only BOS attends, to the third place. In layer 1 a width is read from what BOS then holds."""
    counting = count_same()
    case = twice_previous()
    weights = {name: array for name, array in case.weights.items() if not name.startswith("blocks.")}
    for name, array in counting.weights.items():
        if name.startswith("blocks.0."):
            weights[name] = np.zeros_like(array)
            weights[name.replace(".0.", ".1.", 1)] = array.copy()
    head = "blocks.0.attn."
    for k in range(3):
        weights[head + "W_K"][0, PLACES[k], k] = 1
    weights[head + "b_Q"][0, 3] = 1
    weights[head + "W_K"][0, BOS, 3] = 40
    weights[head + "W_Q"][0, BOS, 2] = 900
    weights[head + "W_V"][0, TOKENS[0], 0] = 1
    weights[head + "W_O"][0, 0, 10] = 1
    weights["blocks.1.attn.W_V"][0, 10, 0] = 1
    weights["unembed.W_U"], weights["unembed.b_U"] = counting.weights["unembed.W_U"], counting.weights["unembed.b_U"]
    select, width = counting.program["nodes"][2:]
    none = {"kind": "select", "keys": 1, "queries": 1, "table": ["000"] * 3}
    gather = {"kind": "aggregate", "selector": 2, "value": 0, "default": 0, "values": ["a", "b", "c"]}
    first = copy.deepcopy(case.proof["steps"][0])
    first["atoms"][0]["table"] = none["table"]
    first["encoding"]["dims"] = [-1, -1, -1]
    second = {**copy.deepcopy(counting.proof["steps"][0]), "layer": 1, "node": 5}
    config = {**case.config, "d_vocab_out": 1}
    made = program(5, none, gather, select, {**width, "selector": 4})
    return Case(config, weights, made, counting.codec, proof(first, second, decode(5)))


def another_selector() -> Case:
    """Model and atoms gather the token itself; the program gathers the one before."""
    case = previous(80.0, default=False)
    same = place_rows(lambda k, q: k == q)
    case.proof["steps"][0]["atoms"][0]["table"] = same
    case.weights["blocks.0.attn.W_Q"][0, PLACES[0] : PLACES[-1] + 1, :3] = 80 * np.eye(3)
    return case


def wrong_width_sum() -> Case:
    """The model counts all tokens; a width sum says that these are the equal ones."""
    case = count_same(related=lambda k, q: True)
    every, width = copy.deepcopy(case.program["nodes"][2:])
    same = {"kind": "select", "keys": 0, "queries": 0, "table": ["100", "010", "001"]}
    case.program = program(3, same, {**width, "selector": 2})
    case.proof["auxiliary"] = [every, {**width, "selector": 4}]
    case.proof["width_sums"] = [{"node": 3, "terms": [[5, 1]]}]
    case.proof["steps"][0]["node"] = 5
    case.proof["steps"][1]["reads"] = [5]
    return case


def wrong_on_c() -> Case:
    """The map's third entry is not what the neurons compute."""
    case = exchange()
    case.weights["blocks.0.mlp.W_out"][4:6, OUT[0] : OUT[1] + 1] = [[0, 0.25], [0, -0.25]]
    return case


def reads_the_place() -> Case:
    """The unembedding reads the place as well."""
    case = CASES["echo"]()
    case.weights["unembed.W_U"][PLACES[2], 0] = 2
    return case


def stray_neuron() -> Case:
    """A neuron of no group writes to an output."""
    case = exchange()
    case.weights["blocks.0.mlp.b_in"][7] = 3
    case.weights["blocks.0.mlp.W_out"][7, OUT[0]] = 1
    return case


def stray_head() -> Case:
    """A head without a step writes to an output."""
    case = previous()
    case.proof["steps"].pop(0)
    case.program["output"] = 0
    case.proof["steps"][0]["reads"] = [0]
    for t in range(3):
        case.weights["unembed.W_U"][TOKENS[t], t] = 0.5
    return case


def noisy_threshold() -> Case:
    """A neuron of no group disturbs the pre-activations of the next layer's ramps."""
    case = exchange()
    config = copy.deepcopy(case.config)
    config["layers"] = [{"n_heads": 0, "d_head": 0, "d_mlp": 1}, config["layers"][0]]
    weights = {n.replace("blocks.0.", "blocks.1."): w for n, w in case.weights.items()}
    for name, shape in (("W_in", (13, 1)), ("b_in", (1,)), ("W_out", (1, 13)), ("b_out", (13,))):
        weights[f"blocks.0.mlp.{name}"] = np.zeros(shape, dtype=np.float32)
    weights["blocks.0.mlp.b_in"][0] = 1
    weights["blocks.0.mlp.W_out"][0, TOKENS[0]] = 1
    case.config, case.weights = config, weights
    case.proof["steps"][0]["layer"] = 1
    return case


def unpaired_neurons() -> Case:
    """Neurons 0 and 1 are no ramp: the second takes back more than the first adds."""
    case = exchange()
    case.weights["blocks.0.mlp.W_out"][1, OUT[1]] = -1
    return case


def place_in_ramps() -> Case:
    """At the third place the ramp of "a" fires for every token."""
    case = exchange()
    case.weights["blocks.0.mlp.W_in"][PLACES[2], :2] = 8
    return case


def wrong_values() -> Case:
    """The head moves "b" where it should move "c"."""
    case = previous()
    case.weights["blocks.0.attn.W_V"][0, TOKENS[2]] = [0, 1, 0, 0]
    return case


def wrong_line() -> Case:
    """The head writes twice the share."""
    case = share_of_a()
    case.weights["blocks.0.attn.W_O"][0, 0, OUT[0]] = 2
    return case


def wrong_shares() -> Case:
    """All keys weigh the same, so that all tokens are counted."""
    case = count_same()
    case.weights["blocks.0.attn.W_Q"][0, TOKENS[0] : TOKENS[-1] + 1, :3] = 40
    return case


def by_enumeration() -> Case:
    case = wrong_on_c()
    case.proof = {"rule": "enumerate"}
    return case


def off_by_more_than_half() -> Case:
    """The scalar logit is nearer to the next point."""
    case = count_same()
    case.weights["unembed.b_U"][0] = 0.06
    return case


def tied_logits() -> Case:
    """All logits are equal."""
    case = CASES["echo"]()
    case.weights["unembed.W_U"][:] = 0
    return case


def unlisted_mean() -> Case:
    """The program's means are not all among its values: it is not well defined."""
    case = share_of_a()
    case.program["nodes"][4]["values"] = [0, 1]
    case.codec = codec([0, 1], [0, 1])
    case.proof["steps"][0]["encoding"]["points"] = [0, 1]
    return case


def undefined_map() -> Case:
    """The map is undefined on "c"."""
    case = exchange()
    case.program["nodes"][2]["table"] = [1, 2, -1]
    return case


def rank_that_is_none() -> Case:
    """Counts "a" among places where an auxiliary width w is 0. As a rank w would be 0 once; it is 0 everywhere."""
    case = count_same(related=lambda k, q: k == 0)
    no_place = {"kind": "select", "keys": 1, "queries": 1, "table": ["000"] * 3}
    width = {"kind": "width", "selector": 2, "values": [0]}
    lowest = {"kind": "select", "keys": 3, "queries": 0, "table": ["111"]}
    is_a = {"kind": "select", "keys": 0, "queries": 0, "table": ["111", "000", "000"]}
    both = {"kind": "and", "left": 4, "right": 5}
    count = {"kind": "width", "selector": 6, "values": [0, 1]}
    case.program = program(7, no_place, width, lowest, is_a, both, count)
    points = [1, {"num": 1, "log2den": 1}]
    case.codec = codec([0, 1], points)
    case.proof["steps"][0].update(node=7, encoding={"kind": "scalar", "dim": OUT[0], "points": points})
    case.proof["steps"][1]["reads"] = [7]
    return case


def one_line_of_logits(logits: tuple[float, float]) -> Case:
    """Always these two logits, as sums in which float64 loses the smaller terms."""
    case = CASES["echo"]()
    case.config["d_vocab_out"] = 2
    case.weights["unembed.W_U"] = np.zeros((13, 2), dtype=np.float32)
    case.weights["unembed.b_U"] = np.array([0, 0], dtype=np.float32)
    case.weights["embed.W_E"][:, 10:13] = (2.0**60, logits[0], -(2.0**60))
    case.weights["unembed.W_U"][10:13, 0] = 1
    case.weights["unembed.b_U"][1] = logits[1]
    case.program = program(2, {"kind": "map", "args": [0], "table": [1, 1, 1], "values": ["no", "yes"]})
    case.codec = codec(["no", "yes"])
    case.proof = {"rule": "enumerate"}
    return case


def lost_in_rounding() -> Case:
    """Over the reals the logits are 1 and 1/2; float64 sees 2^60 + 1 - 2^60 = 0 and 1/2."""
    return one_line_of_logits((1.0, 0.5))


# --- the faults ----------------------------------------------------------------------------------------------------


def flat_image(original: Callable[..., Any], *arguments: Any) -> Any:
    """No hull over the nodes that are not read."""
    tables, ranges, joint, *rest = arguments
    return original({node: table for node, table in tables.items() if node in joint.columns}, ranges, joint, *rest)


def clean_image(original: Callable[..., Any], *arguments: Any) -> Any:
    """No error of what is read."""
    return original(*arguments[:-1], np.zeros_like(arguments[-1]))


def sure_sink(original: Callable[..., Any], context: Any, values: Any, *rest: Any) -> Any:
    """BOS's value taken without its error."""
    return original(context, replace(values, bos_radius=np.zeros_like(values.bos_radius)), *rest)


def all_ramps(original: Callable[..., Any], weight_in: Any, bias: Any, weight_out: Any, known: Any) -> Any:
    """Takes two neurons for a ramp whatever the second one writes."""
    forged = weight_out.copy()
    forged[1::2] = -forged[::2]
    return original(weight_in, bias, forged, known)


def point_counts(original: Callable[..., Any], *arguments: Any) -> Any:
    """Treats every logit as one float64 number."""
    ball = original(*arguments)
    return type(ball)(ball.mid, np.zeros_like(ball.rad))


def all_possible_means(original: Callable[..., Any], self: Any, chosen: Any, most: int) -> Any:
    return np.zeros(len(self.node.values), dtype=np.bool_)


def wider_gaps(original: Callable[..., Any], points: Exact) -> Exact:
    """Half the distance taken for the distance."""
    found: Exact = original(points)
    return Exact(found.data, found.exp + 1)


def first_tuple(original: Callable[..., Any], self: Any, reads: list[int]) -> Any:
    joint = original(self, reads)
    return joint.kept(np.arange(1))


def image_of_defined(original: Callable[..., Any], self: Any, node: Any, index: Any, mask: Any) -> Any:
    """Where a table is undefined nothing is required."""
    return original(self, node, index, mask & (index >= 0))


def certain(original: Callable[..., Any], self: Any, number: int, node: Any) -> Any:
    """Takes every selection for not empty."""
    found = original(self, number, node)
    self.nonempty.add(number)
    return found


def few(original: Callable[..., Any], self: Any, selector: int) -> Any:
    """Takes every selection for a single key."""
    bounds = original(self, selector)
    return type(bounds)(bounds.queries, bounds.lo, np.minimum(bounds.hi, 1))


def lenient_permutation(original: Callable[..., Any], self: Any, number: int, node: Any) -> None:
    """The permutation fact without asking that equal phi have equal places."""
    original(self, number, node)
    if number in self.rank:
        self.permutation.add(number)


def only_the_first_token(original: Callable[..., Any], *arguments: Any) -> Any:
    found = original(*arguments)
    return {n: np.arange(len(occurs)) == 0 for n, occurs in found.items()}


LOW = Fraction(-1000)
FAULTS: list[tuple[str, Callable[[], Case], str, Callable[..., Any]]] = [
    ("a head's leakage times the diameter is dropped", weak_gap, "head_rule.value_diameter", no_radii),
    ("the sink's weight is dropped", loud_sink, "weights.sink_exponent", replaced(LOW)),
    ("the others' weight is dropped", blind_queries, "weights.leak_exponent", replaced(LOW)),
    ("the others' largest score is not looked at", blind_queries, "attention.other_score", replaced(LOW)),
    ("attention without selection is dropped", quiet_sink, "head_rule.weight_without_selection", replaced(0.0)),
    ("uneven attention is dropped", uneven, "head_rule.unevenness", replaced(0.0)),
    ("BOS's attention is dropped", curious_bos, "head_rule.bos_weight", replaced(0.0)),
    ("BOS's error is dropped in a width", unsure_sink, "head_rule._width_error", sure_sink),
    ("no selection is ever empty", wrong_default, "ranges.Ranges._aggregate", certain),
    ("every aggregate is singular", uneven_called_singular, "ranges.Ranges._find_bounds", few),
    ("atoms need not be the selector", another_selector, "resolving.selector_differs", lambda _, a, b: a & False),
    ("width sums need not be identities", wrong_width_sum, "resolving.identity_holds", replaced(True)),
    ("a singular head's values are not looked at", wrong_values, "head_rule._singular_error", no_radii),
    ("a mean's line is not looked at", wrong_line, "head_rule._affine_error", no_radii),
    ("a width's shares are not looked at", wrong_shares, "head_rule._width_error", no_radii),
    ("a group's output is not looked at", wrong_on_c, "mlp_rule._group_error", no_radii),
    ("only the first tuple is looked at", wrong_on_c, "resolving.Resolver.tuples", first_tuple),
    ("only the first token is looked at", wrong_on_c, "theorem.Theorem.alphabets", only_the_first_token),
    ("nodes that are not read are dropped", place_in_ramps, "mlp_rule.image", flat_image),
    ("nodes that are not read are dropped in decoding", reads_the_place, "readout.remaining", replaced({})),
    ("neurons of no group are dropped", stray_neuron, "mlp_rule.stray_error", no_radii),
    ("heads without a step are dropped", stray_head, "composition.idle_error", lambda o, *a: (0 * o(*a)[0],) * 2),
    ("errors do not pass through W_in", noisy_threshold, "mlp_rule.image", clean_image),
    ("ramps need not cancel", unpaired_neurons, "mlp_rule.ramps", all_ramps),
    ("what one token has all have", apart_at_one_token, "mlp_rule.known_coordinates", all_known),
    ("scores are not divided by the root of d_head", divided_scores, "context.attention_scale", undivided),
    ("sums of means are not checked", another_share, "resolving.check_mean_sum", replaced(None)),
    ("a whole gap between points", off_by_more_than_half, "readout.half_gaps", wider_gaps),
    ("logits may tie", tied_logits, "readout.exceeds", lambda _, low, error, strict: low >= -error),
    ("means are not values", unlisted_mean, "ranges._Means.possible", all_possible_means),
    ("undefined is fine", undefined_map, "ranges.Ranges._image", image_of_defined),
    ("any rank is a permutation", rank_that_is_none, "ranges.Ranges._find_rank", lenient_permutation),
    ("rounding is dropped in enumeration", lost_in_rounding, "enumeration.Network.logits", point_counts),
    ("no input is enumerated", by_enumeration, "automaton.Domain.words", lambda _, *a: iter(())),
]


@pytest.mark.parametrize(("fault", "build", "place", "change"), FAULTS, ids=[entry[0] for entry in FAULTS])
def test_a_planted_fault_lets_a_false_theorem_pass(
    fault: str, build: Callable[[], Case], place: str, change: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = build()
    if build is not lost_in_rounding:  # there the judge's float64 is what is wrong
        assert not case.is_true()
    outcome = case.check()
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, outcome
    module, _, name = f"certiformer.proofs.{place}".partition(place.split(".")[0] + ".")
    owner: Any = importlib.import_module(module + place.split(".")[0])
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: change(original, *arguments))
    outcome = case.check()
    assert isinstance(outcome, Valid), (fault, outcome)


def test_a_certificate_for_other_weights_needs_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = exchange().certificate()
    other = wrong_on_c().model()
    case = exchange()
    case.proof = {"rule": "enumerate"}
    assert isinstance(check(certificate, other), Invalid)
    model = importlib.import_module("certiformer.proofs.model")
    monkeypatch.setattr(model, "weights_sha256", lambda weights: certificate["theorem"]["weights_sha256"])
    outcome = check(certificate, other)
    assert isinstance(outcome, Invalid) and "weights" not in outcome.why  # then the proof itself fails
