"""Arguments of the command line as values: vocabularies, tokens, lengths, programs."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .output import BadInput, value_text

if TYPE_CHECKING:
    from ..compiler.programs import Entry
    from ..compiler.rasp import SOp
    from ..models.cards import Trained
    from ..models.codec import Codec
    from ..models.coded import CodedModel
    from ..models.transformer import Transformer
    from ..models.values import Value

NUMBER = re.compile(r"[+-]?((\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?|\d+/\d+)", re.ASCII)


ZOO = "zoo:"


@dataclass(frozen=True)
class Named:
    """A program, what it is called, and its entry if it is one of the library's."""

    name: str
    program: SOp
    entry: Entry | None


def load_program(text: str) -> Named:
    """A program of the library by name, or `path.py:attribute` (an s-op, or a function giving one)."""
    if path := source_file(text):
        attribute = text.rpartition(":")[2]
        return Named(attribute, _program_in_file(path, attribute), None)
    from ..compiler.programs import LIBRARY

    if text not in LIBRARY:
        near = difflib.get_close_matches(text, LIBRARY, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise BadInput(
            f"no program {text!r} in the library; {hint}`certiformer programs` lists them; your own is path.py:name"
        )
    entry = LIBRARY[text]
    return Named(text, entry.build(), entry)


def source_file(text: str) -> Path | None:
    """The file of a program given as `path.py:attribute`."""
    path, colon, _ = text.rpartition(":")
    return Path(path) if colon else None


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
        names = ", ".join(_programs_of(module)) or "none"
        raise BadInput(f"{path} has no {attribute!r}; its programs are: {names}")
    found = getattr(module, attribute)
    if callable(found) and not isinstance(found, SOp):
        try:
            found = found()
        except Exception as error:
            raise BadInput(f"{attribute}() in {path} fails: {_where(error, path)}") from error
    if not isinstance(found, SOp):
        raise BadInput(f"{attribute} in {path} must be an SOp or a function giving one, got {type(found).__name__}")
    return found


def _programs_of(module: ModuleType) -> list[str]:
    """The s-ops of the user's file, and functions that may give one; not what it imports from RASP."""
    from ..compiler import rasp

    def is_program(name: str, value: object) -> bool:
        if isinstance(value, rasp.SOp):
            return vars(rasp).get(name) is not value
        own = inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        needed = inspect.signature(value).parameters.values() if own and callable(value) else ()
        return own and all(parameter.default is not parameter.empty for parameter in needed)

    return sorted(name for name, value in vars(module).items() if is_program(name, value))


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

    if Path(text).is_dir():
        raise BadInput(f"{text} is a folder; this needs a trained model, from `certiformer train` or as {ZOO}NAME")
    return load_trained(model_file(text))


def is_trained(text: str | Path) -> bool:
    """Whether a model has the card of a trained one."""
    from ..models.cards import CARD_KEY
    from ..models.transformer import Transformer

    return CARD_KEY in Transformer.load_with_metadata(model_file(text))[1]


def is_coded(text: str | Path) -> bool:
    """Whether a model is an imported one, or a Hugging Face checkpoint's folder."""
    from ..models.coded import is_coded

    return is_coded(model_file(text))


def load_coded(text: str | Path) -> CodedModel:
    """An imported model, or a Hugging Face checkpoint, with its codec."""
    from ..models.coded import CodedModel

    return CodedModel.load(model_file(text))


def load_any(text: str | Path) -> tuple[Transformer, Codec | None]:
    """Any model, and its codec if it has one."""
    from ..compiler.compiled import METADATA_KEY, Compiled
    from ..models.transformer import Transformer

    if is_coded(text):
        found = load_coded(text)
        return found.model, found.codec
    if is_trained(text):
        trained = load_trained_model(text)
        return trained.model, trained.task.codec
    model, metadata = Transformer.load_with_metadata(model_file(text))
    return model, Compiled.load(model_file(text)).codec if METADATA_KEY in metadata else None


def parse_vocab(text: str, entry: Entry | None = None) -> tuple[Value, ...]:
    """`20`: the tokens 0 to 19, or a library program's own vocabulary of that size; `a,b,c`: these tokens."""
    items = [item.strip() for item in text.split(",")]
    size = vocab_size(text)
    if size is not None:
        if not 1 <= size <= 100_000:
            raise BadInput(f"--vocab must be 1 to 100000 tokens, got {size}; or list them: --vocab a,b,c")
        return tuple(entry.vocab(size)) if entry else tuple(range(size))
    return parse_values(items, "--vocab")


def vocab_size(text: str) -> int | None:
    """The size asked for by `20`; None for a list of tokens."""
    return _integer(text.strip())


def parse_values(items: Sequence[str], option: str) -> tuple[Value, ...]:
    """Tokens as typed: exact numbers if all are (1, -2, 0.5, 1/3), otherwise strings.

    Raises `BadInput` for empty and repeated ones, and for division by zero.
    """
    if not all(items):
        raise BadInput(f"{option} has an empty token in {','.join(items)!r}; separate tokens by single commas")
    numbers = [_number(item, option) for item in items]
    values: tuple[Value, ...] = tuple(items) if None in numbers else tuple(numbers)
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
    """Tokens by their text. One argument that is no token is split: at commas or spaces, else into characters.

    Into characters only if every token of the vocabulary is one: `99` is no way to write 9 9 where 19 is a token too.
    """
    known = by_text(vocab)
    if len(items) == 1 and _token(items[0], known) not in known:
        parts = items[0].replace(",", " ").split()
        characters = len(parts) == 1 and all(len(text) == 1 for text in known)
        if characters and _number(parts[0], "a token") is not None:
            characters = all(character in known for character in parts[0])
        items = list(parts[0]) if characters else parts or items
    return listed_tokens(items, vocab)


def listed_tokens(items: Sequence[str], vocab: Sequence[Value]) -> list[Value]:
    """Tokens by their text, each on its own. Raises `BadInput` naming the first that is unknown."""
    known = by_text(vocab)
    found = [_token(item, known) for item in items]
    unknown = [item for item, name in zip(items, found, strict=True) if name not in known]
    if unknown:
        shown = ", ".join(list(known)[:12]) + (", …" if len(known) > 12 else "")
        raise BadInput(f"unknown token {unknown[0]!r}; the vocabulary has {len(known)}: {shown}")
    return [known[name] for name in found]


def _token(item: str, known: dict[str, Value]) -> str:
    """What the token is known as: itself, or if it is a number, that in the usual form (0.5 is 1/2)."""
    number = None if item in known else _number(item, "a token")
    return item if number is None else value_text(number)


def by_text(values: Iterable[Value]) -> dict[str, Value]:
    """Values by what a person types for them; a string that looks like another value is typed in quotes: '1'."""
    known: dict[str, Value] = {}
    for value in sorted(values, key=lambda value: isinstance(value, str)):
        text = value_text(value)
        known[repr(value) if text in known else text] = value
    return known


def parse_bound(text: str, option: str, *, upper: bool = False) -> Fraction:
    """The float64 number next to the decimal or fraction typed that claims no less: at least it, or (`upper`) at most.

    `upper`: the number typed is one that something is not to exceed.
    """
    try:
        wanted = Fraction(text)
        nearest = float(wanted)
        if upper:
            return Fraction(nearest if nearest <= wanted else math.nextafter(nearest, -math.inf))
        return Fraction(nearest if nearest >= wanted else math.nextafter(nearest, math.inf))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise BadInput(f"{option} must be a number such as 0.5 or 1/3, got {text!r}") from None


def _number(text: str, option: str) -> int | Fraction | None:
    """An integer, decimal or fraction, exactly; None for anything else. Raises `BadInput` for division by zero."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        number = Fraction(text)
    except ZeroDivisionError:
        raise BadInput(f"{option} has the fraction {text!r}, whose denominator is zero") from None
    except ValueError:  # more digits than Python reads
        return None
    return number.numerator if number.denominator == 1 else number


def _integer(text: str) -> int | None:
    try:
        return int(text) if text.lstrip("+-").isascii() and text.lstrip("+-").isdigit() else None
    except ValueError:
        return None
