"""Torch files with tensors and plain data only, from bytes and to bytes."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from ..models.errors import InputError


def read_torch(raw: bytes, name: str) -> Any:
    """What is in a torch file, on the CPU, with `weights_only=True`: no code of it is run. Raises `InputError`."""
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = str(error).splitlines()
        why = next((line.strip() for line in wanted if "GLOBAL" in line), wanted[0] if wanted else "")
        raise InputError(
            f"{name} is refused: it holds more than tensors and plain data ({why[:200]}); "
            "save its tensors alone, in a dictionary"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise InputError(f"{name} is no torch file that can be read: {str(error).splitlines()[0][:200]}") from None


def torch_bytes(data: Any) -> bytes:
    """The file that `torch.load(..., weights_only=True)` reads back."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()
