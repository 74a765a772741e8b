"""The parameters of `to_jax` as one .npz file, with the configuration and codec: NumPy reads it, and so does this."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

from .codec import Codec
from .coded import CodedModel, ids_codec
from .config import TransformerConfig
from .errors import InputError
from .files import parse_json, write_atomically
from .transformer import Transformer

ABOUT = "certiformer"
"""The entry that is no parameter: JSON with `config` and `codec`."""


def save_npz(model: Transformer, path: str | Path, codec: Codec | None = None) -> None:
    """Every parameter under our name (`dict(numpy.load(path))` is the pytree, with one entry more), atomically."""
    model.require_float32()
    about = {"config": model.config.to_json(), "codec": None if codec is None else codec.to_json()}
    arrays = {name: parameter.detach().cpu().numpy() for name, parameter in model.named_parameters()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays, **{ABOUT: np.array(json.dumps(about, sort_keys=True))})
    write_atomically(path, buffer.getvalue())


def load_npz(path: str | Path) -> tuple[Transformer, Codec | None]:
    """What `save_npz` wrote. Nothing is unpickled. Raises `InputError` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: np.asarray(found[name]) for name in found.files}
        about = parse_json(str(arrays.pop(ABOUT)))
        if not isinstance(about, dict) or set(about) != {"config", "codec"}:
            raise ValueError(f"its entry {ABOUT!r} has no config and codec")
        config = TransformerConfig.from_json(about["config"])
        codec = None if about["codec"] is None else Codec.from_json(about["codec"])
        weights = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        return Transformer.from_parameters(config, weights), codec
    except KeyError:
        raise InputError(f"{path} has no entry {ABOUT!r}: write it with `certiformer export --to jax`") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no parameters of a model of ours: {error}") from None


def coded_npz(path: str | Path) -> CodedModel:
    """The same with a codec: the file's, or else token ids."""
    model, codec = load_npz(path)
    return CodedModel(model, codec or ids_codec(model.config))
