"""Torch files with tensors and plain data only, from bytes and to bytes."""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import torch

from .errors import InputError


def read_torch(raw: bytes, name: str) -> Any:
    """What is in a torch file, on the CPU, with `weights_only=True`: no code of it is run. Raises `InputError`."""
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise InputError(f"{name} is no torch file that can be read: it is damaged, or another kind") from None
        raise InputError(
            f"{name} is refused: it wants to import {wanted[1]}, and only tensors and plain data are read; "
            "save its tensors alone, in a dictionary"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise InputError(f"{name} is no torch file that can be read: {str(error).splitlines()[0][:200]}") from None


def torch_bytes(data: Any) -> bytes:
    """The file that `torch.load(..., weights_only=True)` reads back."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()
