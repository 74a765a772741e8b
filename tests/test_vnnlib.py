"""VNN-LIB queries, read by a parser of their own: never weaker than the claim; answered through onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import certiformer as cf
from certiformer.models import Codec, InputError, LayerConfig, Transformer
from certiformer.verifier.mechanism_bodies import run_replaced
from certiformer.verifier.stream_bodies import RobustBody
from certiformer.verifier.vnnlib import Query, bound_query, decimal, robust_query, rounded, write_vnnlib

from .exported import make, session_of

Array = npt.NDArray[Any]
NUMBER = re.compile(r"-?\d+\.\d+")


@dataclass
class Parsed:
    """A query as its text says: the box of X, exactly, and the disjunction about Y."""

    low: list[Fraction]
    high: list[Fraction]
    outputs: int
    unsafe: Callable[[Array], bool]
    clauses: list[list[tuple[str, str, str]]]


def tree(text: str) -> list[Any]:
    """S-expressions, without comments."""
    words = re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text))
    stack: list[list[Any]] = [[]]
    for word in words:
        if word == "(":
            stack.append([])
        elif word == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    assert len(stack) == 1, "unbalanced"
    return stack[0]


def parse(text: str) -> Parsed:
    names: list[str] = []
    low: dict[str, Fraction] = {}
    high: dict[str, Fraction] = {}
    clauses: list[list[tuple[str, str, str]]] = []
    for command in tree(text):
        match command:
            case ["declare-const", name, "Real"]:
                names.append(name)
            case ["assert", [("<=" | ">=") as kind, name, number]] if name.startswith("X_"):
                assert NUMBER.fullmatch(number) and Fraction(number) == Fraction(float(np.float32(number)))
                side = high if kind == "<=" else low
                assert name not in side
                side[name] = Fraction(number)
            case ["assert", ["or", *parts]]:
                assert not clauses
                for part in parts:
                    assert part[0] == "and"
                    clauses.append([tuple(condition) for condition in part[1:]])
            case _:
                raise AssertionError(f"not VNN-LIB: {command}")
    inputs = [name for name in names if name.startswith("X_")]
    outputs = [name for name in names if name.startswith("Y_")]
    assert names == [f"X_{i}" for i in range(len(inputs))] + [f"Y_{i}" for i in range(len(outputs))]
    assert set(low) == set(high) == set(inputs)

    def value(term: str, y: Array) -> Fraction:
        return Fraction(float(y[int(term[2:])])) if term.startswith("Y_") else Fraction(term)

    def unsafe(y: Array) -> bool:
        holds = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
        flat = y.reshape(-1)
        return any(all(holds[kind](value(a, flat), value(b, flat)) for kind, a, b in clause) for clause in clauses)

    ends = ([side[name] for name in inputs] for side in (low, high))
    return Parsed(*ends, len(outputs), unsafe, clauses)


def outputs_of(query: Query, points: Array, shape: tuple[int, ...]) -> Array:
    session = session_of(query.onnx)
    return np.concatenate([np.asarray(session.run(None, {query.site: x.reshape(shape)})[0]) for x in points])


def sampled(parsed: Parsed, count: int, seed: int = 0) -> Array:
    """float32 points of the box, half of them corners."""
    random = np.random.default_rng(seed)
    low, high = (np.array([float(x) for x in side]) for side in (parsed.low, parsed.high))
    share = random.uniform(size=(count, len(low)))
    share[::2] = np.round(share[::2])
    return np.clip(low + share * (high - low), low, high).astype(np.float32)


CODEC = Codec((0, 1, 2, 3, 4), False, "categorical", ("a", "b", "c", "d"))
MODELS: dict[str, tuple[Transformer, Codec]] = {
    "relu": (make(0, readout="last"), CODEC),
    "each": (make(1, causal=True, layers=(LayerConfig(1, 4, 5),)), CODEC),
    "layer norm": (make(2, layer_norm=1e-5, activation="silu", readout="mean"), CODEC),
    "bos": (make(3), Codec((0, 1, 2, 3), True, "categorical", ("a", "b", "c", "d"))),
    "scalar": (make(4, d_vocab_out=1), Codec((0, 1, 2, 3, 4), False, "scalar", (3, 1, 2, 4), (0.0, -0.5, -0.25, -1.0))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("depth", [0, 1])
def test_counterexamples_satisfy_the_query(name: str, depth: int) -> None:
    """What the attack finds for a radius that is too large, seen through the ONNX network."""
    model, codec = MODELS[name]
    site = "blocks.0.hook_resid_pre" if depth == 0 else "blocks.0.hook_resid_post"
    found = 0
    for word in ([0, 1, 2], [3, 3, 1], [2], [1, 0]):
        claim = cf.Robust(model, site, 2.0, codec=codec)
        query = robust_query(claim, word)
        parsed = parse(query.text)
        body = claim.body
        assert isinstance(body, RobustBody)
        ids = torch.tensor([word])
        added, lead = body.attack(ids)
        tokens = codec.with_bos(ids)
        point = run_replaced(body.subject, tokens, (site,), {site: lambda x, added=added: x + added})[site].detach()
        x = np.clip(point.numpy().reshape(-1), [float(v) for v in parsed.low], [float(v) for v in parsed.high])
        y = outputs_of(query, x[None].astype(np.float32), (1, tokens.shape[1], 8))
        assert y.size == parsed.outputs
        if float(lead[0]) < 0:
            found += 1
            assert parsed.unsafe(y), word
        centre = np.array([float((a + b) / 2) for a, b in zip(parsed.low, parsed.high, strict=True)], dtype=np.float32)
        assert not parsed.unsafe(outputs_of(query, centre[None], (1, tokens.shape[1], 8))), "the word itself is safe"
    assert found >= 2


@pytest.mark.parametrize("name", MODELS)
def test_points_of_a_proved_claim_do_not(name: str) -> None:
    """The radius is quartered until it is proved; then no point of the box is unsafe."""
    model, codec = MODELS[name]
    word = [1, 2, 0]
    for radius in (2.0**-power for power in range(2, 32, 2)):
        claim = cf.Robust(model, "blocks.0.hook_resid_pre", radius, codec=codec)
        if int(claim.body.judge((torch.tensor([word]),), "real")[0]) == 1:
            break
    else:
        raise AssertionError("nothing proved")
    query = robust_query(claim, word)
    parsed = parse(query.text)
    shape = (1, 3 + codec.bos, 8)
    assert not any(parsed.unsafe(y) for y in outputs_of(query, sampled(parsed, 300), shape))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("word", [[1, 2, 0], [3, 3], [0]], ids=str)
def test_the_query_is_the_claims_negation(name: str, word: list[int]) -> None:
    """On any outputs Y: unsafe wherever another output is decoded, and else only in a tie."""
    model, codec = MODELS[name]
    each, scalar = model.config.readout == "each", codec.kind == "scalar"
    parsed = parse(robust_query(cf.Robust(model, "blocks.0.hook_resid_pre", 0.5, codec=codec), word).text)
    width = model.config.d_vocab_out
    with torch.no_grad():
        before = codec.decode_indices(model(codec.encode([word])))
    own = before.reshape(-1).tolist()
    random = np.random.default_rng(0)
    seen = set()
    pool = np.array(sorted(codec.points) or [-1.0, 0.0, 1.0, 2.0])
    middles = (pool[1:] + pool[:-1]) / 2
    for trial in range(300):
        y = random.choice(np.concatenate([pool, middles, pool + 0.1]), size=(parsed.outputs // width, width))
        y = y.astype(np.float32)
        rows = y[int(codec.bos and each) :]
        if trial % 2:  # the right outputs but at one position
            for place in set(range(len(own))) - {trial % len(own)}:
                rows[place, 0 if scalar else own[place]] = codec.points[own[place]] if scalar else 3.0
        changed = bool(
            (codec.decode_indices(torch.from_numpy(y)[None] if each else torch.from_numpy(y)) != before).any()
        )
        tied = bool(np.isin(rows, middles.astype(np.float32)).any()) if scalar else False
        if not scalar:
            tied = any((row == row[best]).sum() > 1 for row, best in zip(rows, own, strict=True))
        assert parsed.unsafe(y) == changed or (tied and not changed), (y, own)
        seen.add(changed)
    assert seen == {True, False}


def test_boxes_hold_all_that_the_claim_is_about() -> None:
    """Exactly: embeddings plus positions, plus and minus the radius, outwards."""
    model, codec = MODELS["each"]
    embed, positions = (model.parameter(name).detach() for name in ("embed.W_E", "pos_embed.W_pos"))
    for radius in (0.1, 1e-9, 3.0, 2.0**-40):
        parsed = parse(robust_query(cf.Robust(model, "blocks.0.hook_resid_pre", radius, codec=codec), [4, 0, 2]).text)
        place = 0
        for position, token in enumerate([4, 0, 2]):
            for i in range(8):
                x = Fraction(float(embed[token, i])) + Fraction(float(positions[position, i]))
                low, high = parsed.low[place], parsed.high[place]
                assert low <= x - Fraction(radius) and high >= x + Fraction(radius)
                assert np.nextafter(np.float32(low), np.float32(9)) > x - Fraction(radius)
                assert np.nextafter(np.float32(high), np.float32(-9)) < x + Fraction(radius)
                place += 1


@given(st.fractions(min_value=-(2**100), max_value=2**100, max_denominator=10**30))
def test_numbers_are_rounded_outwards_and_written_exactly(x: Fraction) -> None:
    up, down = rounded(x, up=True), rounded(x, up=False)
    assert Fraction(down) <= x <= Fraction(up)
    assert (up == down) == (Fraction(float(np.float32(float(x)))) == x)
    assert up == down or float(np.nextafter(np.float32(down), np.float32(np.inf))) == up
    for number in (up, down):
        assert NUMBER.fullmatch(decimal(number)) and Fraction(decimal(number)) == Fraction(number)


def test_tiny_and_huge_numbers() -> None:
    assert rounded(Fraction(1, 2**200), up=True) == 2.0**-149 and rounded(Fraction(1, 2**200), up=False) == 0.0
    assert rounded(Fraction(-1, 2**200), up=False) == -(2.0**-149)
    assert Fraction(decimal(2.0**-149)) == Fraction(1, 2**149)
    with pytest.raises(InputError, match="beyond the range of float32"):
        rounded(Fraction(2**129), up=True)


# Bounds of logits over balls


@pytest.mark.parametrize("name", ["relu", "each", "layer norm"])
@pytest.mark.parametrize("directed", [False, True])
def test_bounds_of_output_bounds_as_queries(name: str, directed: bool) -> None:
    """Proved bounds have no unsafe point; the same ones narrowed to a point's own value have that point."""
    model, _ = MODELS[name]
    ball = cf.EmbeddingBall((1, 2, 0), 0.01)
    directions = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.5, 0.0, 0.25, -2.0]]) if directed else None
    bounds = cf.output_bounds(model, ball, directions)
    # By as much as rounding the box outwards, and float32, may move an output whose bounds are attained:
    query = bound_query(model, ball, low=bounds.low - 1e-6, high=bounds.high + 1e-6, directions=directions)
    parsed = parse(query.text)
    points = sampled(parsed, 100)
    found = outputs_of(query, points, (1, 3, 8))
    assert found[0].size == parsed.outputs == bounds.low.numel()
    assert not any(parsed.unsafe(y) for y in found)
    narrow = bounds.low.clone()
    worst = int(found.reshape(len(points), -1)[:, 0].argmin())
    narrow.view(-1)[0] = float(found[worst].reshape(-1)[0])
    false = parse(bound_query(model, ball, low=narrow, directions=directions).text)
    assert false.unsafe(found[worst])
    assert found.shape[-1] == (2 if directed else 4)


# Files


def test_files_for_the_competitions_tools(tmp_path: Path) -> None:
    model, codec = MODELS["relu"]
    claim = cf.Robust(model, "blocks.0.hook_resid_pre", 0.125, codec=codec)
    queries = [robust_query(claim, word) for word in ([0, 1], [1, 0], [2, 2, 2], [0, 1])]
    paths = write_vnnlib(queries, tmp_path / "out", seconds=30)
    assert [path.name for path in paths] == [
        "robust_0-1.vnnlib",
        "robust_1-0.vnnlib",
        "robust_2-2-2.vnnlib",
        "robust_0-1_2.vnnlib",
    ]
    rows = [line.split(",") for line in (tmp_path / "out" / "instances.csv").read_text().splitlines()]
    assert [row[1] for row in rows] == [path.name for path in paths] and {row[2] for row in rows} == {"30"}
    assert [row[0] for row in rows] == ["network_0.onnx", "network_0.onnx", "network_1.onnx", "network_0.onnx"]
    for (network, name, _), query in zip(rows, queries, strict=True):
        assert (tmp_path / "out" / network).read_bytes() == query.onnx
        assert (tmp_path / "out" / name).read_text() == query.text
    words = Codec(("(", "é\n;"), False, "categorical", ("a", "b", "c", "d"))
    odd = robust_query(cf.Robust(model, "blocks.0.hook_resid_pre", 0.125, codec=words), ["(", "é\n;"])
    assert re.fullmatch(r"robust_[0-9a-f]{12}", odd.name)
    assert parse(odd.text).outputs == 4


def test_what_the_network_rounds_is_said() -> None:
    root = make(0, layers=(LayerConfig(2, 4, 7),), readout="last")
    exact = robust_query(cf.Robust(root, "blocks.0.hook_resid_pre", 0.5, codec=CODEC), [1])
    assert exact.rounded == () and "rounded" not in exact.text
    inexact = make(0, layers=(LayerConfig(2, 3, 7),), activation="gelu", layer_norm=1e-5, readout="last")
    said = robust_query(cf.Robust(inexact, "blocks.0.hook_resid_pre", 0.5, codec=CODEC), [1])
    assert len(said.rounded) == 3 and "the scale 0.577350269 of scores" in said.text


def test_what_is_no_query(tmp_path: Path) -> None:
    model, codec = MODELS["relu"]
    claim = cf.Robust(model, "blocks.0.hook_resid_pre", 0.125, codec=codec)
    ball = cf.EmbeddingBall((1, 2), 0.1)
    low = torch.zeros(4)
    lone = make(0, d_vocab_out=1), Codec((0, 1, 2, 3, 4), False, "categorical", ("only",))
    even = make(0, layers=(), readout="last")
    with torch.no_grad():
        even.parameter("unembed.W_U").zero_()
        even.parameter("unembed.b_U").zero_()
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: robust_query(cf.Margin(model, 0.5, codec=codec), [1]), "a query is made of a claim Robust"),
        (lambda: robust_query(claim.exists(), [1]), "about all inputs"),
        (lambda: robust_query(claim, [9]), "unknown token 9"),
        (
            lambda: robust_query(cf.Robust(lone[0], "blocks.0.hook_resid_pre", 1.0, codec=lone[1]), [1]),
            "one output only",
        ),
        (lambda: bound_query(model, cf.TokenSets([[1], [2]]), low=low), "is no box of real numbers"),  # type: ignore[arg-type]
        (lambda: bound_query(model, ball), "low=, high= or both"),
        (lambda: bound_query(model, ball, low=torch.zeros(2, 4)), r"shape \(4,\)"),
        (lambda: bound_query(model, ball, low=torch.full((4,), torch.inf)), "finite numbers"),
        (lambda: bound_query(model, ball, low=low, directions=torch.zeros(2, 3)), "d_vocab_out = 4"),
        (
            lambda: bound_query(model, ball, low=low, directions=torch.full((1, 4), 0.1, dtype=torch.float64)),
            "float32 holds exactly",
        ),
        (lambda: write_vnnlib([], tmp_path), "no query"),
        (lambda: write_vnnlib([robust_query(claim, [1])], tmp_path, seconds=0), "seconds"),
    ]
    for call, why in cases:
        with pytest.raises(InputError, match=why):
            call()
    assert not list(tmp_path.iterdir())
