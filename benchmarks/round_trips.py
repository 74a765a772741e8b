"""Models through other tools' formats: the same weights bit for bit, and the same logits on 10^4 inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .options import Options
from .report import Cell, Figure, Section, Table

INPUTS = 10_000
TARGET = 1e-6
ZOO = (
    *("max-of-4", "max-of-10", "max-of-10-mlp", "modular-addition-113", "induction-12", "quotes-12"),
    *("bracket-type-12", "dyck-1-16", "dyck-1-16-layernorm-gelu"),
)
PROGRAMS = ("sort", "hist", "reverse", "shuffle_dyck1", "frac_prevs")
CHECKPOINTS = ("lm", "tokens", "sequence")
DATA = Path(__file__).parent.parent / "tests" / "data" / "hugging_face"


def models(quick: bool) -> Iterator[tuple[str, Any]]:
    """Trained, compiled, and GPT-2 checkpoints."""
    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models.hugging_face import load_hugging_face

    for name in ZOO[: 2 if quick else None]:
        yield name, cf.zoo.load(name).model
    for name in PROGRAMS[: 1 if quick else None]:
        entry = LIBRARY[name]
        yield name, cf.compile(entry.build(), vocab=entry.vocab(8), max_len=10, causal=entry.causal).model
    for name in CHECKPOINTS[: 1 if quick else None]:
        yield f"GPT-2 {name}", load_hugging_face(DATA / name).model


def compared(model: Any) -> dict[str, Any]:
    """Largest differences of logits, relative to the largest logit; and whether weights come back bit for bit."""
    import jax
    import numpy as np
    import torch
    from tests.exported import difference, in_float64, session_of, words

    from certiformer.models.jax_export import from_jax, to_jax
    from certiformer.models.onnx_export import onnx_bytes
    from certiformer.models.transformer_lens import from_transformer_lens, to_transformer_lens

    batches = words(model, INPUTS).split(1000)
    exact = np.concatenate([in_float64(model, part)["logits"] for part in batches])
    with torch.no_grad():
        ours = np.concatenate([model(part).numpy() for part in batches])
    params, forward = to_jax(model)
    of_jax = np.concatenate([np.asarray(forward(params, part.numpy())) for part in batches])
    with jax.enable_x64(True):
        wide = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
        of_jax64 = np.concatenate([np.asarray(to_jax(model)[1](wide, part.numpy())) for part in batches])
    session = session_of(onnx_bytes(model))
    of_onnx = np.concatenate([session.run(None, {"tokens": part.numpy()})[0] for part in batches])
    of_onnx64 = None
    if model.config.activation != "gelu":  # onnxruntime has no Erf of float64
        session = session_of(onnx_bytes(model, double=True))
        of_onnx64 = np.concatenate([session.run(None, {"tokens": part.numpy()})[0] for part in batches])
    lens = from_transformer_lens(*to_transformer_lens(model), readout=model.config.readout)
    with torch.no_grad():
        of_lens = np.concatenate([lens(part).numpy() for part in batches])
    back = from_jax(params, model.config)
    return {
        "jax64": difference(of_jax64, exact),
        "onnx64": None if of_onnx64 is None else difference(of_onnx64, exact),
        "lens": difference(of_lens, ours),
        "jax": difference(of_jax, ours),
        "onnx": difference(of_onnx, ours),
        "own": difference(ours, exact),
        "same": back.weights_sha256() == model.weights_sha256(),
    }


def tracr_round_trips() -> tuple[int, int]:
    """How many of Tracr's recorded models come back bit for bit from Haiku's names, and of how many."""
    from tests.recorded_tracr import NAMES, recorded

    from certiformer.compiler.tracr import to_haiku
    from certiformer.compiler.tracr_models import build

    same = 0
    for name in NAMES:
        found = recorded(name)
        made = to_haiku(found.imported)
        back = build(made.flat(), made.shape, program=found.program)
        same += back.model.weights_sha256() == found.imported.model.weights_sha256()
    return same, len(NAMES)


def gpt2_round_trips() -> tuple[int, int, float]:
    """How many checkpoints come back bit for bit from a folder that we wrote, of how many; and how far their logits are
    from what transformers computed (recorded, float32)."""
    import json

    import numpy as np
    import torch
    from tests.exported import difference

    from certiformer.models.hugging_face import load_hugging_face, save_hugging_face

    recorded = json.loads((DATA / "recorded.json").read_text())["cases"]
    same, worst = 0, 0.0
    for name in CHECKPOINTS:
        model = load_hugging_face(DATA / name).model
        with tempfile.TemporaryDirectory() as folder:
            save_hugging_face(model, Path(folder) / "out")
            again = load_hugging_face(Path(folder) / "out").model
        same += again.weights_sha256() == model.weights_sha256()
        with torch.no_grad():
            found = model(torch.tensor(recorded[name]["tokens"])).numpy()
        worst = max(worst, difference(found, np.array(recorded[name]["logits"])))
    return same, len(CHECKPOINTS), worst


def measure(options: Options) -> Section:
    """All models, all formats."""
    rows: list[tuple[Cell, ...]] = []
    names = ("jax64", "onnx64", "lens", "jax", "onnx", "own")
    for name, model in models(options.quick):
        found = compared(model)
        rows.append((name, *(found[key] for key in names), found["same"]))
        print(f"  {rows[-1]}", flush=True)

    def worst(column: int) -> float:
        return max(float(row[column] or 0.0) for row in rows)

    def figure(what: str, column: int) -> Figure:
        return Figure(what, "<= 1e-6", f"{worst(column):.1e}, {len(rows)} models", worst(column) <= TARGET)

    same, of = tracr_round_trips()
    kept, checkpoints, far = gpt2_round_trips()
    weights = sum(bool(row[7]) for row in rows)
    above = sum(float(row[c] or 0.0) > TARGET for row in rows for c in (4, 5))
    figures = (
        Figure("ours -> JAX -> ours: weights bit for bit", "all", f"{weights} of {len(rows)}", weights == len(rows)),
        figure("logits through JAX, float64", 1),
        figure("logits through ONNX Runtime, float64", 2),
        figure("logits through TransformerLens's names, float32", 3),
        Figure(
            "logits through JAX and ONNX Runtime in float32 (our own float32 run: its distance to float64)",
            "",
            f"{worst(4):.1e} and {worst(5):.1e} ({worst(6):.1e}); {above} of {2 * len(rows)} above 1e-6",
            None,
        ),
        Figure("Tracr's models -> Haiku's names -> ours: bit for bit", "all", f"{same} of {of}", same == of),
        Figure(
            "GPT-2 checkpoints -> ours -> Hugging Face -> ours: bit for bit; logits beside transformers, float32",
            "all; <= 1e-6",
            f"{kept} of {checkpoints}; {far:.1e}",
            kept == checkpoints and far <= TARGET,
        ),
    )
    columns = (
        *("model", "JAX, float64", "ONNX Runtime, float64", "TransformerLens", "JAX, float32", "ONNX Runtime, float32"),
        *("our float32 to float64", "weights back from JAX"),
    )
    note = (
        f"Largest difference of a logit on {INPUTS} random words of full length, relative to the model's largest one. "
        "In float64 both sides run the float32 weights; ONNX Runtime has no Erf of float64, so models with gelu are "
        "compared in float32 alone there. In float32 both sides round, and sums are in another order: the column "
        "beside says how far our own float32 run is from float64."
    )
    return Section(
        "round_trips", "Other tools' formats", figures, (Table("Each model.", columns, tuple(rows)),), (note,)
    )
