"""`import` and `export`: models of other tools in, models of ours out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import inputs
from .output import BadInput, ExitCode, Screen, facts, grouped, sequence_text

if TYPE_CHECKING:
    from ..models.codec import Codec
    from ..models.coded import CodedModel
    from ..models.config import TransformerConfig
    from ..models.transformer import Transformer


@dataclass(frozen=True)
class Exporting:
    """A format, and its options as typed."""

    to: str
    output: Path
    site: str | None = None
    length: int | None = None
    double: bool = False
    radius: str | None = None
    word: list[str] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Importing:
    """A format, and its options as typed."""

    source: str
    output: Path
    config: Path | None = None
    readout: str | None = None
    values: str | None = None
    upcast: bool = False


def export_model(path: Path, wanted: Exporting, as_json: bool) -> int:
    """Writes the files, and lists them."""
    if wanted.to not in EXPORTS:
        raise BadInput(f"--to must be one of {', '.join(EXPORTS)}, got {wanted.to!r}")
    own, write = EXPORTS[wanted.to]
    _refuse_others(wanted, own, ("site", "length", "double", "radius", "word", "seconds"), f"--to {wanted.to}")
    source = inputs.model_file(path)
    if wanted.output.exists() and source.exists() and wanted.output.samefile(source):
        raise BadInput(f"{wanted.output} is the model itself, which would be lost; choose another place")
    model, codec = inputs.load_any(path)
    screen = Screen(as_json)
    with screen.progress(f"writing {wanted.to}"):
        written, notes = write(model, codec, wanted)
    data = {"to": wanted.to, "weights_sha256": model.weights_sha256(), "files": list(map(str, written)), "notes": notes}
    screen.show(data, *(f"written: {file}" for file in written), *(f"note: {note}" for note in notes))
    return ExitCode.OK


def _refuse_others(wanted: Exporting | Importing, own: tuple[str, ...], names: tuple[str, ...], where: str) -> None:
    foreign = [f"--{name}" for name in names if getattr(wanted, name) not in (None, False) and name not in own]
    if foreign:
        raise BadInput(f"{', '.join(foreign)} does not go with {where}")


Written = tuple[list[Path], list[str]]
"""Files, and what there is to say of them."""


def _onnx(model: Transformer, codec: Codec | None, wanted: Exporting) -> Written:
    from ..models.onnx_export import to_onnx

    to_onnx(model, wanted.output, start=wanted.site, length=wanted.length, double=wanted.double)
    return [wanted.output], []


def _jax(model: Transformer, codec: Codec | None, wanted: Exporting) -> Written:
    from ..models.jax_files import save_npz

    save_npz(model, wanted.output, codec)
    return [wanted.output], []


def _hugging_face(model: Transformer, codec: Codec | None, wanted: Exporting) -> Written:
    from ..models.hugging_face import save_hugging_face

    save_hugging_face(model, wanted.output, codec)
    return sorted(wanted.output.iterdir()), []


def _transformer_lens(model: Transformer, codec: Codec | None, wanted: Exporting) -> Written:
    from ..models.files import write_atomically
    from ..models.torch_files import torch_bytes
    from ..models.transformer_lens import to_transformer_lens

    state, settings = to_transformer_lens(model)
    beside = wanted.output.with_suffix(".json")
    if beside == wanted.output:
        raise BadInput(
            f"{wanted.output}: the weights and, beside them, a .json are written; choose a name such as x.pt"
        )
    write_atomically(beside, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    write_atomically(wanted.output, torch_bytes(state))
    readout = model.config.readout
    notes = (
        [] if readout == "each" else [f"TransformerLens gives logits at each position; this model's are the {readout}"]
    )
    return [wanted.output, beside], notes


def _vnnlib(model: Transformer, codec: Codec | None, wanted: Exporting) -> Written:
    from ..verifier.stream_claims import Robust
    from ..verifier.vnnlib import robust_query, write_vnnlib

    if codec is None:
        raise BadInput("--to vnnlib needs a model that says what its tokens are: compiled, trained or imported")
    if not wanted.word or wanted.radius is None:
        raise BadInput("--to vnnlib needs --word WORD (may be repeated) and --radius NUMBER")
    from ..models.program import input_site

    site = wanted.site or input_site(model.config)
    claim = Robust(model, site, inputs.parse_bound(wanted.radius, "--radius"), codec=codec)
    words = [inputs.parse_tokens([text], codec.vocab) for text in wanted.word]
    queries = [robust_query(claim, word) for word in words]
    paths = write_vnnlib(queries, wanted.output, 60.0 if wanted.seconds is None else wanted.seconds)
    instances = wanted.output / "instances.csv"
    networks = dict.fromkeys(line.partition(",")[0] for line in instances.read_text().splitlines())
    said = sorted({constant for query in queries for constant in query.rounded})
    notes = [f"the network has as float32 numbers, not exactly: {', '.join(said)}"] if said else []
    return [*(wanted.output / name for name in networks), *paths, instances], notes


EXPORTS: dict[str, tuple[tuple[str, ...], Callable[[Transformer, Codec | None, Exporting], Written]]] = {
    "onnx": (("site", "length", "double"), _onnx),
    "vnnlib": (("site", "radius", "word", "seconds"), _vnnlib),
    "jax": ((), _jax),
    "huggingface": ((), _hugging_face),
    "transformer-lens": ((), _transformer_lens),
}


def import_model(source: Path, wanted: Importing, as_json: bool) -> int:
    """Saves the model with its codec, and says what it is."""
    from .commands import _target

    if wanted.source not in IMPORTS:
        raise BadInput(f"--from must be one of {', '.join(IMPORTS)}, got {wanted.source!r}")
    own, read = IMPORTS[wanted.source]
    _refuse_others(wanted, own, ("config", "readout", "values", "upcast"), f"--from {wanted.source}")
    target = _target(wanted.output, f"{source.resolve().stem}.safetensors", source, wanted.config)
    screen = Screen(as_json)
    with screen.progress(f"reading {source}"):
        found = read(source, wanted)
        found.save(target)
    config, codec = found.model.config, found.codec
    data = {
        "from": wanted.source,
        "path": str(target),
        "config": config.to_json(),
        "codec": codec.to_json(),
        "parameters": config.n_parameters,
        "weights_sha256": found.model.weights_sha256(),
    }
    tokens = f"{sequence_text(codec.vocab[:12])}{' ...' if len(codec.vocab) > 12 else ''}"
    rows = {
        "model": _shape_words(config),
        "vocabulary": f"{grouped(len(codec.vocab))} tokens: {tokens}",
        "lengths": f"1 to {codec.max_len or config.n_ctx}",
        "saved": str(target),
    }
    screen.show(data, facts(rows))
    return ExitCode.OK


def _shape_words(config: TransformerConfig) -> str:
    heads = sum(layer.n_heads for layer in config.layers)
    neurons = sum(layer.d_mlp for layer in config.layers)
    return (
        f"{config.n_layers} layers, {heads} attention heads, {grouped(neurons)} neurons, d_model {config.d_model}, "
        f"{grouped(config.n_parameters)} parameters"
    )


def _from_hugging_face(source: Path, wanted: Importing) -> CodedModel:
    from ..models.coded import CodedModel
    from ..models.hugging_face import load_hugging_face

    found = load_hugging_face(source, upcast=wanted.upcast)
    return CodedModel(found.model, found.codec)


def _from_transformer_lens(source: Path, wanted: Importing) -> CodedModel:
    from ..models.coded import CodedModel, ids_codec
    from ..models.transformer_lens import load_transformer_lens

    if wanted.config is None:
        raise BadInput("--from transformer-lens needs --config FILE, its configuration (`cfg.to_dict()`) as JSON")
    readout = wanted.readout or "each"
    if readout not in ("each", "last", "mean"):
        raise BadInput(f"--readout must be each, last or mean, got {readout!r}")
    model = load_transformer_lens(source, wanted.config, readout=readout, upcast=wanted.upcast)  # type: ignore[arg-type]
    return CodedModel(model, ids_codec(model.config))


def _from_jax(source: Path, wanted: Importing) -> CodedModel:
    from ..models.jax_files import coded_npz

    return coded_npz(source)


def _from_tracr(source: Path, wanted: Importing) -> CodedModel:
    from ..compiler.tracr_models import load_recorded
    from ..models.coded import CodedModel

    values = inputs.parse_values(wanted.values.split(","), "--values") if wanted.values else None
    found = load_recorded(source, values=values)
    return CodedModel(found.model, found.codec)


IMPORTS: dict[str, tuple[tuple[str, ...], Callable[[Path, Importing], CodedModel]]] = {
    "huggingface": (("upcast",), _from_hugging_face),
    "transformer-lens": (("config", "readout", "upcast"), _from_transformer_lens),
    "jax": ((), _from_jax),
    "tracr": (("values",), _from_tracr),
}
