"""Model files: safetensors, with the configuration as canonical JSON in the metadata key `certiformer`.

The header is written and read here, not by the safetensors library, for two properties it does not give:
the same model gives the same bytes, and nothing is allocated before the sizes are checked against the file's.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import TransformerConfig
from .errors import InputError

CONFIG_KEY = "certiformer"
MAX_HEADER = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Contents:
    """What a model file holds; `extra` is its other metadata."""

    config: TransformerConfig
    parameters: dict[str, Tensor]
    extra: dict[str, str]


def little_endian(tensor: Tensor) -> bytes:
    """The values as little-endian float32, in C order."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).astype("<f4", copy=False).tobytes()


def write(path: str | Path, parameters: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file atomically: the file at `path` is the old one or the whole new one."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    chunks: list[bytes] = []
    offset = 0
    for name in sorted(parameters):
        chunk = little_endian(parameters[name])
        header[name] = {
            "dtype": "F32",
            "shape": list(parameters[name].shape),
            "data_offsets": [offset, offset + len(chunk)],
        }
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, b"".join((struct.pack("<Q", len(text)), text, *chunks)))


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes `data` to a temporary file beside `path`, then renames it. Links are followed.

    Raises `InputError` naming `path` if that is impossible, or if there is something at `path` that is no regular file.
    """
    temporary = ""
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            what = "a folder" if target.is_dir() else "no regular file (a device or pipe)"
            raise InputError(f"cannot write {path}: it is {what}; choose the path of a file")
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".certiformer-", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = ""
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {path}: {reason}; choose a path in a writable folder") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def read(path: str | Path) -> Contents:
    """Reads a model file, never allocating beyond its size. Raises `InputError` naming the file and what is wrong."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise _bad(path, f"it has {size} bytes, too few for a header")
            (length,) = struct.unpack("<Q", start)
            if length > min(MAX_HEADER, size - 8):
                raise _bad(path, f"its header claims {length} bytes, but the file has {size} (limit {MAX_HEADER})")
            header = _header(path, file.read(length))
            metadata = _metadata(path, header.pop("__metadata__", None))
            body_size = size - 8 - length
            layout = _layout(path, header, body_size)
            body = file.read(body_size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(body) != body_size:
        raise _bad(path, "it changed while it was read")
    config = _config(path, metadata.pop(CONFIG_KEY, None))
    parameters = {
        name: torch.from_numpy(np.frombuffer(body, "<f4", math.prod(shape), begin).astype(np.float32).reshape(shape))
        for name, (shape, begin) in layout.items()
    }
    return Contents(config, parameters, metadata)


def _bad(path: str | Path, why: str) -> InputError:
    return InputError(f"{path} is not a certiformer model file: {why}; save the model again with Transformer.save")


def parse_json(text: bytes | str) -> object:
    """Strict JSON: no duplicate keys, no NaN. Raises `ValueError` with the reason, for any text."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it repeats a key")
        return found

    def refuse(constant: str) -> object:
        raise ValueError(f"it contains {constant}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _header(path: str | Path, text: bytes) -> dict[str, object]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _bad(path, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _bad(path, "its header is not a JSON object")
    return header


def _metadata(path: str | Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "its __metadata__ does not map strings to strings")
    return dict(metadata)


def _config(path: str | Path, text: str | None) -> TransformerConfig:
    if text is None:
        raise _bad(path, f"its metadata has no configuration under {CONFIG_KEY!r}")
    try:
        return TransformerConfig.from_json(parse_json(text))
    except (ValueError, TypeError) as error:
        raise _bad(path, f"its configuration is wrong ({error})") from None


def _layout(path: str | Path, header: Mapping[str, object], body: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name to (shape, first byte); the tensors must fill the body exactly, without gap or overlap."""
    spans: list[tuple[int, int, str]] = []
    layout: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _bad(path, f"the header's entry {name!r} is not a tensor's")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype != "F32":
            raise _bad(path, f"{name} has dtype {dtype!r}; only F32 is read")
        if not _sizes(shape) or len(shape) > 4 or not _sizes(offsets) or len(offsets) != 2:
            raise _bad(path, f"{name} has shape {str(shape)[:80]} at {str(offsets)[:80]}")
        begin, end = offsets
        if end > body or end - begin != 4 * math.prod(shape):
            raise _bad(path, f"{name} has shape {shape} at bytes {begin} to {end} of {body}")
        spans.append((begin, end, name))
        layout[name] = (tuple(shape), begin)
    spans.sort()
    ends = [0, *(end for _, end, _ in spans)]
    if [begin for begin, _, _ in spans] != ends[:-1] or ends[-1] != body:
        raise _bad(path, f"its tensors do not fill its {body} bytes of data exactly")
    return layout


def _sizes(numbers: object) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in numbers
    )
