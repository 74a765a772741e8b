"""A Hugging Face checkpoint as files: config.json, weights in one file or several, tokens. No code in it is run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from . import files
from .errors import InputError
from .torch_files import read_torch

CODEC = "certiformer.json"
"""Beside the model's files: what its tokens and outputs stand for, which Hugging Face has no place for."""
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a folder holds; `tokens`: vocab.json with added_tokens.json; `codec`: our own file, if it is there."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokens: dict[str, Any] | None
    codec: dict[str, Any] | None


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is a folder with a config.json."""
    return (Path(path) / "config.json").is_file()


def read_folder(path: str | Path) -> Checkpoint:
    """All of a checkpoint. Raises `InputError` for one that brings code of its own, and for damaged files."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{path} is no folder; a Hugging Face checkpoint is a local folder with a config.json")
    config = _json(folder / "config.json")
    _refuse_code(folder, config)
    tokens = None
    if (folder / "vocab.json").is_file():
        tokens = _json(folder / "vocab.json")
        if (folder / "added_tokens.json").is_file():
            tokens |= _json(folder / "added_tokens.json")
    codec = _json(folder / CODEC) if (folder / CODEC).is_file() else None
    return Checkpoint(config, _weights(folder), tokens, codec)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, got {str(found)[:80]}")
    return found


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Of a model that is defined by code of its own, the weights alone do not say what it computes."""
    code = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".py", ".pyc", ".so"))
    found = [
        f"config.json has {key}" for key in ("auto_map", "trust_remote_code", "custom_pipelines") if config.get(key)
    ]
    found += [f"it holds {name}" for name in code]
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and _json(settings).get("auto_map"):
        found.append("tokenizer_config.json has auto_map")
    if found:
        raise InputError(
            f"{folder} is refused: it brings code of its own ({'; '.join(found)}), which is never run here; "
            "load it where you trust it, and save it as an ordinary GPT-2"
        )


def _weights(folder: Path) -> dict[str, Tensor]:
    """Safetensors before torch's format, one file before several, as Hugging Face looks for them."""
    for name in (SAFETENSORS, TORCH):
        if (folder / name).is_file():
            return _tensors(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _sharded(folder, f"{name}.index.json")
    raise InputError(f"{folder} has no weights: {SAFETENSORS} or {TORCH}, or one of them with .index.json")


def _sharded(folder: Path, index: str) -> dict[str, Tensor]:
    places = _json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{folder / index} must have a weight_map from weights to files")
    outside = sorted({name for name in places.values() if Path(name).name != name or name in (".", "..")})
    if outside:
        raise InputError(f"{folder / index} names files outside its folder: {', '.join(outside[:4])}")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors = _tensors(folder / shard)
        wanted = {name for name, place in places.items() if place == shard}
        if wanted != set(tensors):
            odd = ", ".join(sorted(wanted ^ set(tensors))[:4])
            raise InputError(f"{folder / shard} does not hold the weights that {index} says; they differ in {odd}")
        found |= tensors
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        import safetensors.torch

        try:
            return dict(safetensors.torch.load_file(path))
        except Exception as error:  # the library's own error class is not exported as a type
            raise InputError(f"{path} is no safetensors file that can be read: {error}") from None
    try:
        found = read_torch(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path} holds no state dictionary of tensors")
    return dict(found)


def write_folder(
    path: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], codec: Mapping[str, Any] | None
) -> None:
    """A new folder, there as a whole or not at all. Raises `InputError` if something is at `path` already."""
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"cannot write {path}: it exists; choose a new folder")
    temporary = ""
    try:
        temporary = tempfile.mkdtemp(dir=folder.absolute().parent, prefix=".certiformer-", suffix=".part")
        files.write(Path(temporary) / SAFETENSORS, weights, {"format": "pt"})
        files.write_atomically(Path(temporary) / "config.json", _text(config))
        if codec is not None:
            files.write_atomically(Path(temporary) / CODEC, _text(codec))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o777 & ~umask)
        os.replace(temporary, folder)
        temporary = ""
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose a writable place") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _text(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
