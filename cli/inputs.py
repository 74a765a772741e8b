"""Arguments of the command line as values: vocabularies, tokens, lengths, programs."""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from .output import BadInput, value_text

if TYPE_CHECKING:
    from ..compiler.programs import Entry
    from ..compiler.rasp import SOp
    from ..models.cards import Trained
    from ..models.values import Value


ZOO = "zoo:"


@dataclass(frozen=True)
class Named:
    """A program, what it is called, and its entry if it is one of the library's."""

    name: str
    program: SOp
    entry: Entry | None


def load_program(text: str) -> Named:
    """A program of the library by name, or `path.py:attribute` (an s-op, or a function giving one)."""
    if ":" in text:
        path, _, attribute = text.rpartition(":")
        return Named(attribute, _program_in_file(Path(path), attribute), None)
    from ..compiler.programs import LIBRARY

    if text not in LIBRARY:
        near = difflib.get_close_matches(text, LIBRARY, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(
            f"no program {text!r} in the library; {hint}`certiformer programs` lists them; your own is path.py:name"
        )
    entry = LIBRARY[text]
    return Named(text, entry.build(), entry)


def _program_in_file(path: Path, attribute: str) -> SOp:
    from ..compiler.rasp import SOp

    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}; a program is a library name or path.py:name")
    specification = importlib.util.spec_from_file_location(f"certiformer_program_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise BadInput(f"{path} is not a Python file; a program is a library name or path.py:name")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{path} does not run: {_where(error, path)}") from error
    if not hasattr(module, attribute):
        names = sorted(name for name, value in vars(module).items() if isinstance(value, SOp))
        raise BadInput(f"{path} has no {attribute!r}; its programs are: {', '.join(names) or 'none'}")
    found = getattr(module, attribute)
    if callable(found) and not isinstance(found, SOp):
        try:
            found = found()
        except Exception as error:
            raise BadInput(f"{attribute}() in {path} fails: {_where(error, path)}") from error
    if not isinstance(found, SOp):
        raise BadInput(f"{attribute} in {path} must be an SOp or a function giving one, got {type(found).__name__}")
    return found


def _where(error: BaseException, path: Path) -> str:
    """The error, with the last line of the user's file that it passed through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line is not None else "")


def is_zoo(text: str) -> bool:
    """Whether a model is named as one of the zoo's: `zoo:max-of-10/1`."""
    return text.startswith(ZOO)


def model_file(text: str | Path) -> Path:
    """The file of a model: a path, or `zoo:NAME`. Raises `InputError` for a NAME that the zoo has not."""
    if not is_zoo(str(text)):
        return Path(text)
    from ..models import zoo

    return zoo.path(str(text).removeprefix(ZOO))


def load_trained_model(text: str | Path) -> Trained:
    """A trained model with its task and card, from a file of `certiformer train` or as `zoo:NAME`."""
    from ..models.cards import load_trained

    return load_trained(model_file(text))


def parse_vocab(text: str, entry: Entry | None = None) -> tuple[Value, ...]:
    """`20`: the tokens 0 to 19, or a library program's own vocabulary of that size; `a,b,c`: these tokens."""
    items = [item.strip() for item in text.split(",")]
    if len(items) == 1 and _integer(items[0]) is not None:
        size = int(items[0])
        if not 1 <= size <= 100_000:
            raise BadInput(f"--vocab must be 1 to 100000 tokens, got {size}; or list them: --vocab a,b,c")
        return tuple(entry.vocab(size)) if entry else tuple(range(size))
    return parse_values(items, "--vocab")


def parse_values(items: Sequence[str], option: str) -> tuple[Value, ...]:
    """Tokens as typed: integers if all are, otherwise strings. Raises `BadInput` for empty and repeated ones."""
    if not all(items):
        raise BadInput(f"{option} has an empty token in {','.join(items)!r}; separate tokens by single commas")
    integers = [_integer(item) for item in items]
    values: tuple[Value, ...] = tuple(items) if None in integers else tuple(integers)
    repeated = sorted({value_text(value) for value in values if values.count(value) > 1})
    if repeated:
        raise BadInput(f"{option} repeats {', '.join(repeated)}; list each token once")
    return values


def parse_lengths(text: str) -> range:
    """`1:32` is every length from 1 to 32; `8` is length 8."""
    first, colon, last = text.partition(":")
    low, high = _integer(first), _integer(last if colon else first)
    if low is None or high is None:
        raise BadInput(f"--lengths must look like 1:32 or 8, got {text!r}")
    if low < 1 or high < low:
        raise BadInput(f"--lengths must be FIRST:LAST with 1 <= FIRST <= LAST, got {text!r}")
    return range(low, high + 1)


def parse_tokens(items: Sequence[str], vocab: Sequence[Value]) -> list[Value]:
    """Tokens by their text. One argument that is no token is split: at commas or spaces, else into characters."""
    known: dict[str, Value] = {value_text(value): value for value in vocab}
    if len(items) == 1 and items[0] not in known:
        text = items[0]
        parts = text.replace(",", " ").split()
        items = parts if len(parts) > 1 else list(text)
        if not all(part in known for part in items) and len(parts) == 1:
            items = parts
    unknown = [item for item in items if item not in known]
    if unknown:
        shown = ", ".join(list(known)[:12]) + (", …" if len(known) > 12 else "")
        raise BadInput(f"unknown token {unknown[0]!r}; the vocabulary has {len(known)}: {shown}")
    return [known[item] for item in items]


def parse_bound(text: str, option: str) -> Fraction:
    """The least float64 number that is at least the decimal or fraction typed."""
    try:
        wanted = Fraction(text)
        nearest = float(wanted)
        return Fraction(nearest if nearest >= wanted else math.nextafter(nearest, math.inf))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise BadInput(f"{option} must be a number such as 0.5 or 1/3, got {text!r}") from None


def _integer(text: str) -> int | None:
    try:
        return int(text) if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() else None
    except ValueError:
        return None
