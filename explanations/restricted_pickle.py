"""Pickles of plain data: containers, strings and numbers, and ACDC's indices of hooks. All else is refused by name."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NoReturn

from ..models.errors import InputError


@dataclass
class HookIndex:
    """Stands for ACDC's `TorchIndex`: where in a hook's tensor. Filled from the pickle's data, runs nothing."""

    hashable_tuple: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.hashable_tuple = state.get("hashable_tuple", ()) if isinstance(state, dict) else ()

    def __hash__(self) -> int:
        return hash(self.hashable_tuple)


@dataclass
class HookEdge:
    """Stands for ACDC's `Edge`."""

    present: Any = True
    effect_size: Any = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.present, self.effect_size = state.get("present", True), state.get("effect_size")

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class HookEdgeType:
    """Stands for ACDC's `EdgeType`."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        """Nothing: without it, a pickle could set attributes of the class itself."""


ACDC_MODULES = ("acdc.TLACDCEdge", "acdc.acdc_utils")
ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (slice, set, frozenset)},
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "TorchIndex"): HookIndex for module in ACDC_MODULES},
    **{(module, "Edge"): HookEdge for module in ACDC_MODULES},
    **{(module, "EdgeType"): HookEdgeType for module in ACDC_MODULES},
}


class _Reader(pickle.Unpickler):
    """Finds nothing but `ALLOWED`."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in ALLOWED:
            raise InputError(
                f"it wants to import {module}.{name}; a pickle may hold only lists, tuples, dictionaries, sets, "
                "strings and numbers (pickles can run code, so nothing else is read)"
            )
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise InputError(f"it refers to an object outside of it, {str(pid)[:80]!r}; that is not read")


def read_pickle(raw: bytes, name: str) -> Any:
    """The plain data in a pickle. Raises `InputError` naming what it wanted to import, and for damaged ones."""
    try:
        return _Reader(io.BytesIO(raw)).load()
    except InputError as error:
        raise InputError(f"{name} is refused: {error}") from None
    except Exception as error:  # a pickle is a program: damaged ones fail in every way
        raise InputError(f"{name} is no pickle that can be read: {type(error).__name__}: {str(error)[:200]}") from None


def plain_pickle(data: Any) -> bytes:
    """A pickle of plain data, in which a `HookIndex` stands under the name of ACDC's class: it is made without ACDC."""
    return pickle.PROTO + b"\x02" + _encoded(data) + pickle.STOP


def _encoded(data: Any) -> bytes:
    if isinstance(data, HookIndex):
        parts = tuple(slice(None) if part is None else part for part in data.hashable_tuple)
        state = {"as_index": parts, "hashable_tuple": data.hashable_tuple}
        made = pickle.GLOBAL + f"{ACDC_MODULES[0]}\nTorchIndex\n".encode() + pickle.EMPTY_TUPLE + pickle.NEWOBJ
        return made + _encoded(state) + pickle.BUILD
    if isinstance(data, slice):
        called = pickle.GLOBAL + b"builtins\nslice\n" + _encoded((data.start, data.stop, data.step))
        return called + pickle.REDUCE
    if isinstance(data, tuple):
        return pickle.MARK + b"".join(map(_encoded, data)) + pickle.TUPLE
    if isinstance(data, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_encoded, data)) + pickle.APPENDS
    if isinstance(data, dict):
        items = b"".join(_encoded(key) + _encoded(value) for key, value in data.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return pickle.dumps(data, protocol=2)[2:-1]  # a string, number or None, less protocol and stop
