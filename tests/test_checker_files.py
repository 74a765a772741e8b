"""Malformed and malicious files: a reason, never a crash, never `valid`."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certiformer
from certiformer import proofs
from certiformer.proofs import Invalid, Valid, canonical_json
from certiformer.proofs.__main__ import main
from certiformer.proofs.check import INTERNAL
from certiformer.proofs.model import parse_model

from .checker_models import CASES, Case, echo, previous, sealed


def rejected(outcome: proofs.Outcome) -> Invalid:
    assert isinstance(outcome, Invalid) and outcome.rule != INTERNAL, outcome
    assert outcome.step and outcome.rule and outcome.why
    return outcome


def text_of(case: Case) -> bytes:
    return canonical_json(case.certificate())


WRONG_BYTES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda t: b"", "JSON"),
    ("cut short", lambda t: t[:-1], "JSON"),
    ("a list", lambda t: b"[]", "object"),
    ("not UTF-8", lambda t: b"\xff" + t, "JSON"),
    ("a byte order mark", lambda t: b"\xef\xbb\xbf" + t, "JSON"),
    ("white space", lambda t: t.replace(b":", b": ", 1), "canonical"),
    ("a final newline", lambda t: t + b"\n", "canonical"),
    ("keys out of order", lambda t: json.dumps(dict(reversed(json.loads(t).items()))).encode(), "canonical"),
    ("a key twice", lambda t: t[:-1] + b',"seal":"0"}', "repeats"),
    ("a number with a fraction of zero", lambda t: t.replace(b'"max_len":3', b'"max_len":3.0'), "seal"),
    ("NaN", lambda t: t.replace(b'"max_len":3', b'"max_len":NaN'), "NaN"),
    ("an infinity", lambda t: t.replace(b'"max_len":3', b'"max_len":-Infinity'), "Infinity"),
    ("an overflowing float", lambda t: t.replace(b'"max_len":3', b'"max_len":1e999'), "canonical"),
    ("a number of 5000 digits", lambda t: t.replace(b'"max_len":3', b'"max_len":' + b"9" * 5000), "JSON"),
    ("another format", lambda t: t.replace(b"certiformer/1", b"certiformer/2"), "format"),
    ("another seal", lambda t: t.replace(b'"seal":"', b'"seal":"0'), "seal"),
    ("nested too deeply", lambda t: b"[" * 100 + b"]" * 100, "deep"),
    ("nested absurdly", lambda t: b"[" * 10**6, "JSON"),
    ("a lone surrogate", lambda t: t.replace(b"hand-made", b"\\ud800"), "JSON"),
]


@pytest.mark.parametrize(("flaw", "change", "word"), WRONG_BYTES, ids=[entry[0] for entry in WRONG_BYTES])
def test_wrong_certificate_bytes(flaw: str, change: Callable[[bytes], bytes], word: str) -> None:
    case = echo()
    outcome = rejected(proofs.check(change(text_of(case)), case.model()))
    assert word in outcome.why, (flaw, outcome)


def test_too_many_bytes() -> None:
    assert "bytes" in rejected(proofs.check(b" " * (64 * 2**20 + 1), echo().model())).why


def put(case: Case, path: str, item: Any) -> Any:
    """The resealed certificate with one part replaced."""
    certificate = case.certificate()
    owner = certificate
    *way, last = path.split("/")
    for key in way:
        owner = owner[int(key) if isinstance(owner, list) else key]
    owner[int(last) if isinstance(owner, list) else last] = item
    return sealed(certificate)


BOMBS: list[tuple[str, str, Any]] = [
    ("a long domain", "theorem/domain/lengths", [1, 10**9]),
    ("a huge integer", "theorem/domain/lengths", [1, 10**4000]),
    ("a long program", "theorem/body/program/max_len", 10**9),
    ("a huge coefficient", "theorem/body/program/nodes/2", {"kind": "linear", "args": [1], "coefficients": [10**4200],
      "constant": 0, "values": [0]}),
    ("a huge denominator", "proof/steps/0/encoding", {"kind": "scalar", "dim": 0,
      "points": [{"num": 1, "log2den": 10**9}] * 3}),
    ("many encodings", "proof/steps/0/encoding", {"kind": "sum", "parts": [{"kind": "onehot", "dims": [0] * 3}] * 100}),
    ("many layers of encodings", "proof/steps/0/encoding", None),
    ("a huge factor", "proof/steps/0/encoding", {"kind": "scaled", "by": 10**40,
      "of": {"kind": "onehot", "dims": [0, 1, 2]}}),
    ("a huge layer", "proof/steps/0/layer", 10**30),
    ("a negative head", "proof/steps/0/head", -1),
    ("true for a number", "proof/steps/0/head", False),
    ("a fraction for a number", "proof/steps/0/head", 0.0),
    ("a dyadic for an index", "proof/steps/0/head", {"num": 0, "log2den": 0}),
    ("a value with denominator zero", "theorem/codec/outputs/0", {"num": 1, "den": 0}),
    ("a value with denominator one", "theorem/codec/outputs/0", {"num": 1, "den": 1}),
    ("a value not in lowest terms", "theorem/codec/outputs/0", {"num": 2, "den": 4}),
    ("a float value", "theorem/codec/outputs/0", 0.5),
    ("a list as a value", "theorem/codec/outputs/0", [1]),
    ("a codec kind that is a list", "theorem/codec/kind", ["categorical"]),
    ("an unhashable activation", "theorem/config/activation", {}),
    ("a scale that is infinite", "theorem/config/attention_scale", 10**400),
]  # fmt: skip


@pytest.mark.parametrize(("flaw", "path", "item"), BOMBS, ids=[entry[0] for entry in BOMBS])
def test_bombs_and_wrong_types(flaw: str, path: str, item: Any) -> None:
    if flaw == "many layers of encodings":
        item = {"kind": "onehot", "dims": [0, 1, 2]}
        for _ in range(50):
            item = {"kind": "scaled", "by": 2**20, "of": item}
    case = previous()
    try:
        certificate = put(case, path, item)
    except proofs.Rejected:
        return  # not even JSON
    rejected(proofs.check(certificate, case.model()))


@pytest.mark.parametrize(
    "part", ["theorem", "proof", "theorem/body", "theorem/domain", "theorem/codec", "theorem/config"]
)
@pytest.mark.parametrize("item", [None, [], {}, "x", 1, True])
def test_parts_of_the_wrong_type(part: str, item: Any) -> None:
    case = previous()
    rejected(proofs.check(put(case, part, item), case.model()))


# --- the model file ------------------------------------------------------------------------------------------------


def split(model: bytes) -> tuple[Any, bytes]:
    (length,) = struct.unpack("<Q", model[:8])
    return json.loads(model[8 : 8 + length]), model[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def change_header(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def apply(model: bytes) -> bytes:
        header, body = split(model)
        change(header)
        return join(header, body)

    return apply


def change_config(key: str, item: Any) -> Callable[[bytes], bytes]:
    def change(header: Any) -> None:
        config = json.loads(header["__metadata__"]["certiformer"])
        config[key] = item
        header["__metadata__"]["certiformer"] = json.dumps(config)

    return change_header(change)


def set_float(value: float) -> Callable[[bytes], bytes]:
    def apply(model: bytes) -> bytes:
        header, body = split(model)
        begin = header["embed.W_E"]["data_offsets"][0]
        return join(header, body[:begin] + struct.pack("<f", value) + body[begin + 4 :])

    return apply


def rename(header: Any, old: str, new: str) -> None:
    header[new] = header.pop(old)


WRONG_MODELS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda m: b"", "bytes"),
    ("only a length", lambda m: m[:8], "bytes"),
    ("cut short", lambda m: m[:-4], ""),
    ("too long", lambda m: m + b"\0\0\0\0", "fill"),
    ("a header longer than the file", lambda m: struct.pack("<Q", 2**62) + m[8:], "claims"),
    ("a header that is not JSON", lambda m: m[:8] + b"x" + m[9:], "JSON"),
    ("a header that is a list", lambda m: join([], b""), "object"),
    ("no metadata", change_header(lambda h: h.pop("__metadata__")), "metadata"),
    ("no configuration", change_header(lambda h: h["__metadata__"].clear()), "configuration"),
    ("a NaN", set_float(float("nan")), "NaN"),
    ("an infinity", set_float(float("inf")), "infinity"),
    ("another number", set_float(0.5), "weights"),
    ("a missing parameter", change_header(lambda h: h.pop("unembed.b_U")), "missing"),
    ("a surplus parameter", change_header(lambda h: h.update(extra=h["unembed.b_U"])), "surplus"),
    ("a renamed parameter", change_header(lambda h: rename(h, "unembed.b_U", "unembed.b_V")), "missing"),
    ("half precision", change_header(lambda h: h["unembed.b_U"].update(dtype="F16")), "dtype"),
    ("another shape", change_header(lambda h: h["unembed.b_U"].update(shape=[1, 3])), "shape"),
    ("a shape of floats", change_header(lambda h: h["unembed.b_U"].update(shape=[3.0])), "shape"),
    ("a shape of bools", change_header(lambda h: h["unembed.b_U"].update(shape=[True])), "shape"),
    ("offsets out of range", change_header(lambda h: h["unembed.b_U"].update(data_offsets=[10**12, 10**12 + 12])), ""),
    ("negative offsets", change_header(lambda h: h["unembed.b_U"].update(data_offsets=[-12, 0])), ""),
    ("overlapping tensors", change_header(lambda h: h["unembed.b_U"].update(data_offsets=[0, 12])), "fill"),
    ("a huge d_model", change_config("d_model", 2**40), "d_model"),
    ("a d_model of another size", change_config("d_model", 12), "shape"),
    ("layers that are not a list", change_config("layers", 3), "layers"),
    ("a million layers", change_config("layers", [{"n_heads": 0, "d_head": 0, "d_mlp": 0}] * 10**5), "layers"),
    ("LayerNorm", change_config("layer_norm", 1e-5), "ln_final.w"),
    ("LayerNorm with epsilon 0", change_config("layer_norm", 0.0), "layer_norm"),
    ("LayerNorm with a huge integer", change_config("layer_norm", 2**60), "layer_norm"),
    ("another activation", change_config("activation", "gelu"), "configuration"),
    ("an unknown activation", change_config("activation", "tanh"), "activation"),
    ("an unknown key", change_config("dropout", 0.1), "unknown"),
    ("the other direction", change_config("causal", True), "configuration"),
    ("another scale", change_config("attention_scale", 2.0), "configuration"),
]


@pytest.mark.parametrize(("flaw", "change", "word"), WRONG_MODELS, ids=[entry[0] for entry in WRONG_MODELS])
def test_wrong_model_files(flaw: str, change: Callable[[bytes], bytes], word: str) -> None:
    case = previous()
    outcome = rejected(proofs.check(case.certificate(), change(case.model())))
    assert word in outcome.why, (flaw, outcome)


def test_random_bytes() -> None:
    """Any byte of certificate or model changed: never valid (the seal and the weights' hash see it), never a crash."""
    case = previous()
    text, model = text_of(case), case.model()
    rng = np.random.default_rng(2)
    for _ in range(150):
        place, value = int(rng.integers(len(text))), int(rng.integers(256))
        broken = text[:place] + bytes([value]) + text[place + 1 :]
        if broken != text:
            rejected(proofs.check(broken, model))
        place = int(rng.integers(len(model)))
        broken = model[:place] + bytes([value]) + model[place + 1 :]
        outcome = proofs.check(text, broken)
        if isinstance(outcome, Valid):  # white space of the header
            assert parse_model(broken).sha256 == parse_model(model).sha256
        else:
            rejected(outcome)


def test_missing_files(tmp_path: Path) -> None:
    case = previous()
    (tmp_path / "model").write_bytes(case.model())
    (tmp_path / "cert").write_bytes(text_of(case))
    assert isinstance(proofs.check(tmp_path / "cert", tmp_path / "model"), Valid)
    assert "read" in rejected(proofs.check(tmp_path / "none", tmp_path / "model")).why
    assert "read" in rejected(proofs.check(tmp_path / "cert", tmp_path / "none")).why
    assert "read" in rejected(proofs.check(tmp_path, tmp_path / "model")).why


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = previous()
    (tmp_path / "model").write_bytes(case.model())
    (tmp_path / "cert").write_bytes(text_of(case))
    assert main([str(tmp_path / "cert"), str(tmp_path / "model")]) == 0
    assert "valid" in capsys.readouterr().out
    (tmp_path / "cert").write_bytes(text_of(echo()))
    assert main([str(tmp_path / "cert"), str(tmp_path / "model")]) == 1
    case.proof = {"rule": "hole", "which": ["everything"]}
    (tmp_path / "cert").write_bytes(text_of(case))
    assert main([str(tmp_path / "cert"), str(tmp_path / "model")]) == 2
    assert main([]) == 3


def test_the_checker_needs_neither_torch_nor_z3() -> None:
    code = "import certiformer.proofs, sys; print(sorted({'torch', 'z3', 'sympy', 'networkx'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(certiformer.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[]"


def test_certificates_are_deterministic_bytes() -> None:
    for build in CASES.values():
        assert text_of(build()) == text_of(build())
