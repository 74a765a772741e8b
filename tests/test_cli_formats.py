"""`import` and `export`, and commands on imported models."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from certiformer.cli import execute
from certiformer.compiler.compiled import Compiled
from certiformer.models import Codec, InputError, Transformer, zoo
from certiformer.models.coded import CodedModel
from certiformer.models.hugging_face import load_hugging_face
from certiformer.models.jax_files import load_npz, save_npz
from certiformer.models.transformer_lens import load_transformer_lens

from .exported import MODELS, difference, make, run_onnx, words
from .gpt2_reference import logits_of_folder
from .recorded_tracr import SHAPES, recorded

CHECKPOINTS = Path(__file__).parent / "data" / "hugging_face"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """The exit code, the JSON object on stdout, and stderr."""
    code = int(execute([*map(str, arguments), "--json"]))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, json.loads(out), err


@pytest.fixture(scope="module")
def sort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "sort.safetensors"
    assert execute(["compile", "sort", "--vocab", "3", "--max-len", "3", "-o", str(file)]) == 0
    return file


def test_onnx(sort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data, _ = run(capsys, "export", sort, tmp_path / "sort.onnx", "--to", "onnx")
    model = Compiled.load(sort).model
    assert code == 0 and data["files"] == [str(tmp_path / "sort.onnx")]
    assert data["weights_sha256"] == model.weights_sha256()
    tokens = words(model, 5, 3)
    (found,) = run_onnx((tmp_path / "sort.onnx").read_bytes(), {"tokens": tokens})
    assert difference(found, model(tokens).detach().numpy()) < 1e-6
    site = "blocks.0.hook_resid_post"
    options = ("--site", site, "--length", 2, "--double")
    assert run(capsys, "export", sort, tmp_path / "rest.onnx", "--to", "onnx", *options)[0] == 0
    stream = model.run_with_cache(tokens[:, :2])[1][site].detach().double()
    (found,) = run_onnx((tmp_path / "rest.onnx").read_bytes(), {site: stream})
    assert found.dtype == np.float64 and difference(found, model(tokens[:, :2]).detach().numpy()) < 1e-6


def test_jax_there_and_back(sort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, back = tmp_path / "sort.npz", tmp_path / "back.safetensors"
    assert run(capsys, "export", sort, file, "--to", "jax")[0] == 0
    code, data, _ = run(capsys, "import", file, "--from", "jax", "-o", back)
    assert code == 0 and data["weights_sha256"] == Compiled.load(sort).model.weights_sha256()
    assert CodedModel.load(back).codec == Compiled.load(sort).codec
    with np.load(file) as held:
        assert set(held.files) == {*dict(Compiled.load(sort).model.named_parameters()), "certiformer"}
    first = file.read_bytes()
    assert run(capsys, "export", sort, file, "--to", "jax")[0] == 0 and file.read_bytes() == first


def test_transformer_lens_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data, _ = run(capsys, "export", "zoo:max-of-4", tmp_path / "max.pt", "--to", "transformer-lens")
    assert code == 0 and data["files"] == [str(tmp_path / "max.pt"), str(tmp_path / "max.json")]
    assert data["notes"] == ["TransformerLens gives logits at each position; this model's are the last"]
    options = ("--config", tmp_path / "max.json", "--readout", "last")
    code, data, _ = run(capsys, "import", tmp_path / "max.pt", "--from", "transformer-lens", *options, "-o", tmp_path)
    model = zoo.load("max-of-4").model
    assert code == 0 and data["path"] == str(tmp_path / "max.safetensors")
    found = CodedModel.load(tmp_path / "max.safetensors").model
    assert torch.equal(found(words(model, 20)), model(words(model, 20)))
    assert load_transformer_lens(tmp_path / "max.pt", tmp_path / "max.json").config.d_model == model.config.d_model


def test_hugging_face_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.safetensors"
    code, data, _ = run(capsys, "import", CHECKPOINTS / "tokens", "--from", "huggingface", "-o", tmp_path)
    assert code == 0 and data["path"] == str(file) and data["parameters"] == data["parameters"] > 0
    code, data, _ = run(capsys, "export", file, tmp_path / "again", "--to", "huggingface")
    assert code == 0 and {Path(name).name for name in data["files"]} == {
        "config.json",
        "model.safetensors",
        "certiformer.json",
    }
    again, first = load_hugging_face(tmp_path / "again"), load_hugging_face(CHECKPOINTS / "tokens")
    assert again.codec == first.codec
    assert torch.equal(again.model(words(first.model, 20)), first.model(words(first.model, 20)))


def test_tracr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recorded("lib_sort")
    np.savez(tmp_path / "sort.npz", **found.parameters)  # type: ignore[arg-type]
    (tmp_path / "sort.json").write_text(json.dumps(SHAPES["lib_sort"]))
    values = ",".join(map(str, found.imported.codec.outputs))
    options = ("--values", values) if found.imported.codec.kind == "scalar" else ()
    code, data, _ = run(
        capsys, "import", tmp_path / "sort.npz", "--from", "tracr", *options, "-o", tmp_path / "t.safetensors"
    )
    assert code == 0 and data["weights_sha256"] == found.imported.model.weights_sha256()


def test_vnnlib(sort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--to", "vnnlib", "--radius", "0.01", "--word", "2 0 1", "--word", "021", "--word", "1", "--seconds", 7)
    code, data, _ = run(capsys, "export", sort, tmp_path / "queries", *options)
    names = [Path(name).name for name in data["files"]]
    assert code == 0 and names == [
        "network_0.onnx",
        "network_1.onnx",
        "robust_2-0-1.vnnlib",
        "robust_0-2-1.vnnlib",
        "robust_1.vnnlib",
        "instances.csv",
    ]
    assert {path.name for path in (tmp_path / "queries").iterdir()} == set(names)
    assert "network_1.onnx,robust_1.vnnlib,7\n" in (tmp_path / "queries" / "instances.csv").read_text()
    code, data, _ = run(
        capsys, "export", "zoo:max-of-4", tmp_path / "max", "--to", "vnnlib", "--radius", "1/8", "--word", "3 1 60 2"
    )
    assert code == 0 and data["notes"] == [
        "the network has as float32 numbers, not exactly: the scale 0.176776695 of scores"
    ]


@pytest.mark.parametrize("imported", [False, True])
def test_commands_on_a_checkpoint(imported: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a folder as on what was imported from it; a certificate is about the weights, wherever they came from."""
    model, file = CHECKPOINTS / "sequence", tmp_path / "sequence.safetensors"
    assert run(capsys, "import", model, "--from", "huggingface", "-o", file)[0] == 0
    used = file if imported else model
    code, data, _ = run(capsys, "run", used, "3", "1", "2")
    assert code == 0 and data["output"][0] in ("a", "b", "c", "d") and "program_output" not in data
    certificate = tmp_path / "never.cert"
    seen = set()
    for length in (1, 2):
        every = np.array(list(product(range(11), repeat=length)))
        seen |= {"abcd"[place] for place in logits_of_folder(model, every).argmax(-1)}
    assert seen and seen < set("abcd")
    for output in "abcd":
        expected = "refuted" if output in seen else "proved"
        options = ("--claim", "never-outputs", "--outputs", output, "--lengths", "1:2", "-o", certificate)
        code, data, _ = run(capsys, "prove", used, *options)
        assert data["verdict"] == expected and code == (expected == "refuted")
    assert run(capsys, "check", certificate, "--model", file)[0] == 0
    code, _, err = run(capsys, "check", certificate, "--model", model)
    assert code == 3 and "`certiformer import` makes a file" in err
    code, _, err = run(capsys, "bound", model, "--output", "a", "--rival", "b")
    assert code == 3 and "is a folder; this needs a trained model" in err
    code, _, err = run(capsys, "prove", used, "--claim", "computes")
    assert code == 3 and "its claims are margin, logit-difference, never-outputs, invariant, robust, monotone" in err
    circuit = tmp_path / "circuit.json"
    options = ("--method", "patching", "--top", "20", "--pairs", "8", "--lengths", "2", "--vocab", "1,2,3")
    code, data, _ = run(capsys, "explain", used, *options, "-o", circuit)
    assert code == 0 and circuit.exists()
    options = ("--ablation", "zero", "--seconds", 5, "--edge-seconds", 1, "--lengths", "1:2", "--vocab", "1,2,3")
    code, data, _ = run(capsys, "judge", used, circuit, *options)
    assert code in (0, 1) and data


def test_radius_of_an_imported_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.safetensors"
    CodedModel(make(readout="last"), Codec((0, 1, 2, 3, 4), False, "categorical", (0, 1, 2, 3))).save(file)
    code, data, _ = run(capsys, "radius", file, "--claim", "margin", "--at-least", "0.001", "--lengths", "1")
    assert code in (0, 1) and ("eps" in data or data["verdict"] == "refuted")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "{sort}", "{tmp}/o", "--to", "pickle"), "--to must be one of onnx, vnnlib"),
        (("export", "{sort}", "{tmp}/o", "--to", "huggingface"), "layer_norm=None"),
        (("export", "{sort}", "{tmp}/o", "--to", "jax", "--length", "2"), "--length does not go with --to jax"),
        (("export", "{sort}", "{tmp}/o", "--to", "vnnlib"), "needs --word WORD"),
        (("export", "{sort}", "{tmp}/o", "--to", "vnnlib", "--word", "9", "--radius", "1"), "unknown token '9'"),
        (
            ("export", "{sort}", "{tmp}/o", "--to", "vnnlib", "--word", "1", "--radius", "x"),
            "--radius must be a number",
        ),
        (("export", "{sort}", "{tmp}/o.onnx", "--to", "onnx", "--site", "blocks.7"), "no site 'blocks.7'"),
        (("export", "{sort}", "{sort}", "--to", "onnx"), "is the model itself"),
        (("export", "{sort}", "{tmp}/o.json", "--to", "transformer-lens"), "choose a name such as"),
        (("export", "{tmp}/no", "{tmp}/o", "--to", "onnx"), "cannot read"),
        (("export", "{bare}", "{tmp}/o", "--to", "vnnlib", "--word", "1", "--radius", "1"), "what its tokens are"),
        (("import", "{sort}", "--from", "pickle", "-o", "{tmp}/o"), "--from must be one of huggingface"),
        (("import", "{sort}", "--from", "huggingface", "-o", "{tmp}/o"), "is no folder"),
        (("import", "{sort}", "--from", "jax", "-o", "{tmp}/o"), "holds no parameters"),
        (("import", "{sort}", "--from", "jax", "-o", "{sort}"), "would be lost"),
        (("import", "{sort}", "--from", "jax", "--readout", "last", "-o", "{tmp}/o"), "--readout does not go with"),
        (("import", "{sort}", "--from", "transformer-lens", "-o", "{tmp}/o"), "needs --config FILE"),
        (("import", "{sort}", "--from", "tracr", "-o", "{tmp}/o"), "do not hold a recorded Tracr model"),
        (("run", "{bare}", "1"), "no compiled program"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(
    sort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    bare = tmp_path / "bare.safetensors"
    MODELS["plain"].save(bare)
    code, data, err = run(capsys, *(text.format(sort=sort, tmp=tmp_path, bare=bare) for text in arguments))
    assert code == 3 and message in err and message in data["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["bare.safetensors"]


def test_npz_files_of_something_else(tmp_path: Path) -> None:
    file = tmp_path / "m.npz"
    save_npz(MODELS["gelu"], file)
    model, codec = load_npz(file)
    assert codec is None and model.weights_sha256() == MODELS["gelu"].weights_sha256()
    with np.load(file) as held:
        arrays = dict(held)
    for change, why in (
        ({"certiformer": np.array("{}")}, "no config and codec"),
        ({"certiformer": np.array("{")}, "holds no parameters"),
        ({"unembed.b_U": np.zeros(9, dtype=np.float32)}, "must have"),
        ({"unembed.b_U": np.array([None, 1], dtype=object)}, "holds no parameters"),
        ({"extra": np.zeros(1, dtype=np.float32)}, "unknown extra"),
    ):
        np.savez(file, **{**arrays, **change})  # type: ignore[arg-type]
        with pytest.raises(InputError, match=why):
            load_npz(file)
    np.savez(file, x=np.zeros(1))
    with pytest.raises(InputError, match="no entry 'certiformer'"):
        load_npz(file)
    with pytest.raises(InputError, match="cannot read"):
        load_npz(tmp_path / "none.npz")


def test_a_damaged_codec_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    MODELS["plain"].save(file, extra={"certiformer.codec": "{}"})
    with pytest.raises(InputError, match="the codec in .* is damaged"):
        CodedModel.load(file)
    Transformer(MODELS["plain"].config).save(file)
    with pytest.raises(InputError, match="without a codec"):
        CodedModel.load(file)
