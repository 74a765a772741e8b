"""Rule `low_rank` where numbers overflow: a false theorem that a first version accepted; work that is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certiformer.proofs import Invalid, Valid, check, near
from certiformer.proofs.format import canonical_json, seal
from certiformer.proofs.model import read_model, write_model

WIDTH, TOKENS = 12, 3
CONFIG: dict[str, Any] = {
    "d_model": WIDTH,
    "n_ctx": 1,
    "d_vocab": TOKENS,
    "d_vocab_out": 2,
    "layers": [{"n_heads": 1, "d_head": 4, "d_mlp": 2}],
    "activation": "relu",
    "causal": True,
    "positional": "none",
    "attention_scale": 1.0,
    "layer_norm": None,
    "readout": "last",
}
SHAPES = {
    "embed.W_E": (TOKENS, WIDTH),
    **{f"blocks.0.attn.W_{x}": (1, WIDTH, 4) for x in "QKV"},
    **{f"blocks.0.attn.b_{x}": (1, 4) for x in "QKV"},
    "blocks.0.attn.W_O": (1, 4, WIDTH),
    "blocks.0.attn.b_O": (WIDTH,),
    "blocks.0.mlp.W_in": (WIDTH, 2),
    "blocks.0.mlp.b_in": (2,),
    "blocks.0.mlp.W_out": (2, WIDTH),
    "blocks.0.mlp.b_out": (WIDTH,),
    "unembed.W_U": (WIDTH, 2),
    "unembed.b_U": (2,),
}
VALUE, OUT = slice(8, 12), 2.0**127
"""Coordinates 0 to 5 are what the factors keep, 6 and 7 the logits, the others a token's value."""


def weights(size: float) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Token 0 decodes to the first output, by a hair; token 1 to the second, token 2 to the first. Terms of the square
    of what the factors leave out of token 0 overflow, one of them to minus infinity."""
    found = {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    for token, value in enumerate([-(2.0**-8), 1.0, -1.0]):
        found["embed.W_E"][token, VALUE] = value * OUT
    found["blocks.0.attn.W_V"][0, VALUE, :] = OUT
    found["blocks.0.attn.W_O"][0, :, :6] = np.array([-0.85, 0.65, 0.65, 0.65, 0.65, 0.65]) * size
    found["blocks.0.mlp.W_in"][:6, 0], found["blocks.0.mlp.W_in"][:6, 1] = OUT, -OUT
    found["blocks.0.mlp.W_out"][0, 7] = found["blocks.0.mlp.W_out"][1, 6] = 1
    found["unembed.W_U"][6, 0] = found["unembed.W_U"][7, 1] = 1
    return found


def digits(array: Any) -> str:
    return np.ascontiguousarray(array).astype("<f4").tobytes().hex()


def certificate(sha256: str, leaders: list[int]) -> bytes:
    """Labels on two thirds of the inputs."""
    labels = {"transitions": [[1, 1, 2]] * 3, "labels": [-1, 0, 1]}
    narrow, widen = np.zeros((WIDTH, 6)), np.zeros((6, WIDTH))
    narrow[:6], widen[:, :6] = np.eye(6) / OUT, np.eye(6) * OUT
    data: dict[str, Any] = {
        "format": "certiformer/1",
        "theorem": {
            "quantifier": "at_least",
            "share": {"num": 2, "den": 3},
            "domain": {"kind": "product", "vocab": ["a", "b", "c"], "lengths": [1, 1]},
            "body": {"kind": "labels", "name": "l", "machine": labels},
            "codec": {"vocab": ["a", "b", "c"], "bos": False, "kind": "categorical", "outputs": [0, 1], "points": []},
            "config": CONFIG,
            "weights_sha256": sha256,
            "semantics": "real",
        },
        "proof": {
            "rule": "low_rank",
            "ranks": [6, 6, 2],
            "narrow": digits(narrow),
            "widen": digits(widen),
            "read": digits(np.eye(2)),
            "write": digits(np.eye(2)[::-1]),
            "middle": digits(np.zeros((1, 2))),
            "words": [{"n": 1, "leaders": leaders}],
        },
    }
    data["seal"] = seal(data)
    return canonical_json(data)


@pytest.mark.parametrize("exponent", [100, 120, 124, 125, 126, 126.5, 127])
@pytest.mark.parametrize("leaders", [[0, 0, -1], [0, 1, -1], [0, 0, 0], [0, 1, 2], [-1, 1, 1]])
def test_an_overflow_is_no_distance_of_zero(leaders: list[int], exponent: float, tmp_path: Path) -> None:
    """The model is right on one token of three."""
    model = weights(2.0**exponent)
    write_model(tmp_path / "m", CONFIG, model)
    found = check(certificate(read_model(tmp_path / "m").sha256, leaders), tmp_path / "m")
    assert _right(model) == 1 and isinstance(found, Invalid)


def _right(model: dict[str, np.ndarray[Any, np.dtype[np.float32]]]) -> int:
    """How many tokens get their label, in fractions."""
    exact = {name: np.vectorize(lambda x: Fraction(float(x)), otypes=[object])(x) for name, x in model.items()}
    right = 0
    for token, label in enumerate([0, 0, 1]):
        x = exact["embed.W_E"][token]
        x = x + (x @ exact["blocks.0.attn.W_V"][0]) @ exact["blocks.0.attn.W_O"][0]
        first, second = (max(value, Fraction(0)) for value in x @ exact["blocks.0.mlp.W_in"])
        right += label == int(first > second)  # the first neuron writes output 1, the second output 0
    return right


def test_too_much_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights(1.0)
    write_model(tmp_path / "m", CONFIG, model)
    monkeypatch.setattr(near, "MAX_WORK", 100)
    found = check(certificate(read_model(tmp_path / "m").sha256, [0, 0, -1]), tmp_path / "m")
    assert isinstance(found, Invalid) and "too many steps" in found.why


def test_nothing_is_calculated_where_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("tables were made")

    monkeypatch.setattr("certiformer.proofs.low_rank.Tables", never)
    write_model(tmp_path / "m", CONFIG, weights(1.0))
    found = check(certificate(read_model(tmp_path / "m").sha256, [-1, -1, -1]), tmp_path / "m")
    assert isinstance(found, Invalid) and not isinstance(found, Valid) and "0 of 3" in found.why
