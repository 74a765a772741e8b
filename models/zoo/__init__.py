"""The zoo: trained models that come with the package, each with its card.

`zoo.load("max-of-10/1")` is the second of the models of that name, `zoo.load("max-of-10")` the first. A model's file
is `<name>/<seed>.safetensors` in this folder; with what its card says, `train` makes it again.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ..cards import Trained, load_trained
from ..errors import InputError

FOLDER = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """All models, as `name/seed`."""
    found = (path.relative_to(FOLDER) for path in FOLDER.glob("*/*.safetensors"))
    ordered = sorted((path.parent.name, int(path.stem)) for path in found)
    return tuple(f"{name}/{seed}" for name, seed in ordered)


def path(name: str) -> Path:
    """The file of a model. Raises `InputError`, with the nearest names, if there is none."""
    known = names()
    for candidate in known:  # the lowest seed comes first
        if name in (candidate, candidate.partition("/")[0]):
            return FOLDER / f"{candidate}.safetensors"
    near = difflib.get_close_matches(name, [*known, *(known_name.partition("/")[0] for known_name in known)], n=3)
    hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    raise InputError(f"no model {name!r} in the zoo; {hint}it has {', '.join(known) or 'none'}")


def load(name: str) -> Trained:
    """A model of the zoo with its card and task. Raises `InputError` if there is none of this name."""
    return load_trained(path(name))
