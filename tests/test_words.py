"""A theorem in words: which inputs, how many, what of them; and files that hold no certificate."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from certiformer.cli.words import automaton_lines, listings
from certiformer.proofs import Invalid, Rejected, canonical_json, check, describe
from certiformer.proofs.__main__ import main
from certiformer.proofs.files import objection
from certiformer.proofs.words import about, decimal, digits_of, plain, read_statement, sentence, sizes

from .checker_models import Case, echo, previous, sealed

EDGES = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits"]
CIRCUIT = {"nodes": ["input", "a0.h0", "logits"], "edges": EDGES, "ablation": "any", "granularity": "edge"}
BALANCED = {
    "kind": "dfa",
    "vocab": ["(", ")"],
    "lengths": [2, 4],
    "start": 0,
    "accept": [0],
    "delta": [[1, -1], [-1, 0]],
}


def theorem(case: Case | None = None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {**(case or previous()).certificate()["theorem"], **changes}
    return found


@pytest.mark.parametrize(
    ("quantifier", "share", "opening"),
    [
        ("forall", None, "For every sequence of 1 to 3 tokens from "),
        ("none", None, "For every sequence of 1 to 3 tokens from "),
        ("exists", None, "There is a sequence of 1 to 3 tokens from "),
        ("at_least", {"num": 1, "den": 2}, "For at least 50 % of the sequences of 1 to 3 tokens from "),
        ("at_least", 1, "For at least 100 % of the sequences"),
        ("at_most", {"num": 1, "den": 4}, "For at most 25 % of the sequences of 1 to 3 tokens from "),
        ("more_than", 0, "For more than 0 % of the sequences of 1 to 3 tokens from "),
        ("between", {"num": 1, "den": 4}, "For at least 25 % and at most 75 % of the sequences of 1 to 3 tokens from "),
        ("fewer_than", {"num": 1, "den": 3}, "For less than 33.3333333333 % (0.3333333333333333, exactly 1/3) of the"),
    ],
)
def test_quantifiers(quantifier: str, share: Any, opening: str) -> None:
    most: Any = {"most": {"num": 3, "den": 4}} if quantifier == "between" else {}
    stated = theorem(quantifier=quantifier, **({} if share is None else {"share": share}), **most)
    read_statement(stated)
    told = sentence(stated)
    assert told.startswith(opening) and told.endswith(".")
    assert ("false" in told) == (quantifier in ("none", "fewer_than", "at_most", "between"))
    assert ("for which this holds" in told) == (quantifier == "exists")
    assert "39 inputs" in describe(stated)


def test_a_share_given_as_a_float() -> None:
    share = Fraction(0.1)
    stated = theorem(quantifier="at_least", share={"num": share.numerator, "den": share.denominator})
    assert "For at least 10 % (0.1, exactly 3602879701896397/36028797018963968) of the seq" in sentence(stated)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"kind": "margin", "at_least": {"num": 1, "log2den": 2}}, "exceeds every other by at least 0.25, at every"),
        ({"kind": "never_outputs", "outputs": [None]}, "the model never outputs None"),
        (
            {"kind": "logit_difference", "output": 1, "rival": None, "at_least": {"num": -3, "log2den": 1}},
            "the logit of 1 less the logit of None is at least -1.5, at every position",
        ),
        ({"kind": "faithful", "circuit": CIRCUIT, "ablation": "zero"}, "under zero ablation."),
        ({"kind": "faithful", "circuit": CIRCUIT, "ablation": "any"}, "whatever replaces it"),
    ],
)
def test_claims_about_inputs(body: Any, told: str) -> None:
    assert told in sentence(theorem(body=body))
    assert " x, y" not in describe(theorem(body=body)) and "pairs" not in describe(theorem(body=body))


PAIRS = [
    ({"kind": "faithful", "circuit": CIRCUIT, "ablation": "resample"}, "alone decodes on x as the model does"),
    (
        {
            "kind": "interchange",
            "program": previous().certificate()["theorem"]["body"]["program"],
            "node": 3,
            "heads": [[0, 0]],
            "neurons": [],
        },
        "with head 0 of layer 0 taken from the run on y, the model's decoded output on x equals that of",
    ),
]


@pytest.mark.parametrize(("body", "told"), PAIRS, ids=["faithful", "interchange"])
def test_claims_about_pairs(body: Any, told: str) -> None:
    read_statement(theorem(body=body))
    assert sentence(theorem(body=body)).startswith("For every pair x, y of equally long sequences of 1 to 3 tokens")
    assert told in sentence(theorem(body=body))
    assert sizes(theorem(body=body)) == (39, 9 + 81 + 729)
    assert "819 pairs of inputs, from 39 inputs" in describe(theorem(body=body))
    mixed = {"kind": "and", "parts": [{"kind": "never_outputs", "outputs": [None]}, body]}
    assert "on x, the model never outputs" in sentence(theorem(body=mixed))
    assert "There is a pair x, y" in sentence(theorem(quantifier="exists", body=body))


def test_an_automaton() -> None:
    stated = theorem(domain=BALANCED)
    assert "from '(', ')' that an automaton of 2 states accepts" in sentence(stated)
    assert "Automaton: 2 states, from state 0, accepting in 0" in describe(stated)
    assert automaton_lines(BALANCED) == ["state 0 (start, accepts): '(' -> 1", "state 1: ')' -> 0"]
    assert [title for title, _ in listings(stated)][0] == "The automaton"


def test_an_automaton_too_large_to_count() -> None:
    states = 2**18
    domain = {
        "kind": "dfa",
        "vocab": [0, 1],
        "lengths": [1, 32],
        "start": 0,
        "accept": [0],
        "delta": [[(5 * s + 1) % states, (7 * s + 3) % states] for s in range(states)],
    }
    assert sizes(theorem(domain=domain)) == (None, None)
    assert "too large to count" in describe(theorem(domain=domain))


def test_numbers() -> None:
    assert decimal(Fraction(3)) == "3" and decimal(Fraction(1, 4)) == "0.25"
    assert decimal(Fraction(0.001)) == "0.001 (exactly 1152921504606847/2^60)"
    assert decimal(Fraction(-1, 3)) == "-0.3333333333333333 (exactly -1/3)"
    assert len(decimal(Fraction(2**4095 + 1, 2))) <= 80
    for number in (Fraction(2**600 + 1, 2**500), Fraction(2**400 - 1, 2**401), -Fraction(2**400 + 1, 2**401)):
        text = re.fullmatch("a number between (.*) and (.*)", decimal(number))
        assert text is not None and Fraction(float(text[1])) < number < Fraction(float(text[2]))
    assert about(999_999_999) == "999,999,999"
    assert about(2 * 10**9) == "2000000000 (about 2.00e9)"
    assert about(16384**1024) == f"about 10^{int(1024 * math.log10(16384))}"
    assert digits_of(10**9001 + 7) == "1" + "0" * 9000 + "7"
    assert [plain(item) for item in (None, True, 1, "1", "a\x1b\n")] == ["None", "True", "1", "'1'", r"'a\x1b\n'"]


FLAWS: list[tuple[str, dict[str, Any]]] = [
    ("not an object", {}),
    ("an unknown quantifier", {"quantifier": "most"}),
    ("a share too many", {"share": 1}),
    ("a share above one", {"quantifier": "at_least", "share": 2}),
    ("a greatest share above one", {"quantifier": "between", "share": 0, "most": 2}),
    ("no greatest share", {"quantifier": "between", "share": 0}),
    ("a greatest share too many", {"quantifier": "at_most", "share": 0, "most": 1}),
    ("other semantics", {"semantics": "float32"}),
    ("no hash", {"weights_sha256": "f" * 63}),
    ("an empty vocabulary", {"domain": {"kind": "product", "vocab": [], "lengths": [1, 2]}}),
    ("an empty domain", {"domain": {**BALANCED, "accept": []}}),
    ("long inputs", {"domain": {"kind": "product", "vocab": [0], "lengths": [1, 10**9]}}),
    ("a body of no kind", {"body": {}}),
]


@pytest.mark.parametrize(("flaw", "changes"), FLAWS, ids=[flaw for flaw, _ in FLAWS])
def test_what_is_no_theorem(flaw: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        read_statement(theorem(**changes) if changes else [])


def test_a_wrong_certificate_is_told_from_none() -> None:
    case = previous()
    text, model = canonical_json(case.certificate()), case.model()

    def verdict(certificate: bytes, model: bytes = model) -> str | None:
        outcome = check(certificate, model)
        assert isinstance(outcome, Invalid)
        return objection(outcome, certificate)

    for none in (b"", text[:-1], b"{}", b"[]", text.replace(b"certiformer/1", b"certiformer/9"), b"\x93NUMPY"):
        assert "prove MODEL -o CERT" in str(verdict(none))
    for none in (b"", model[:-1], text):
        assert "compile -o" in str(verdict(text, none))
    wrong = canonical_json(sealed({**case.certificate(), "proof": {"rule": "composition"}}))
    for one in (text.replace(b'"seal":"', b'"seal":"0'), text + b"\n", wrong, canonical_json(echo().certificate())):
        assert verdict(one) is None


def test_exit_status_of_the_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = previous()
    model, certificate, empty = tmp_path / "model", tmp_path / "cert", tmp_path / "empty"
    model.write_bytes(case.model())
    certificate.write_bytes(canonical_json(case.certificate()))
    empty.write_bytes(b"")
    for arguments in ((empty, model), (certificate, empty), (tmp_path / "no", model), (certificate, tmp_path / "no")):
        assert main([str(argument) for argument in arguments]) == 3
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and "certiformer " in err
    certificate.write_bytes(canonical_json(sealed({**case.certificate(), "proof": {"rule": "\x1b[2J"}})))
    assert main([str(certificate), str(model)]) == 1
    assert "\x1b" not in capsys.readouterr().out
