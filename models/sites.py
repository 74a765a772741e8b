"""Sites: the named activations of a model, with their axes and sizes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from . import program as ops
from .config import TransformerConfig, parameter_shapes
from .errors import InputError
from .program import Program, model_program

NamesFilter: TypeAlias = str | Iterable[str] | Callable[[str], bool] | None


@dataclass(frozen=True)
class Site:
    """A named activation. `axes` name its dimensions; `sizes` has an entry for each, None for batch and lengths."""

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]


def sites(config: TransformerConfig, program: Program | None = None) -> dict[str, Site]:
    """Every site of the model (or of an edited `program` of it), in the order of computation."""
    shapes = parameter_shapes(config)
    found: dict[str, Site] = {}

    def site(name: str, axes: str, *sizes: int | None) -> None:
        named = ("batch", *axes.split())
        free = len(named) - len(sizes)
        found[name] = Site(name, named, (None,) * free + sizes)

    for op in model_program(config) if program is None else program:
        match op:
            case ops.Embed() | ops.Position() | ops.Constant() | ops.SumHeads():
                site(op.output, "pos d_model", config.d_model)
            case ops.Linear():
                width = shapes[op.weight][1]
                axis = {ops.LOGITS: "d_vocab_out"}.get(op.output, "d_mlp" if op.output.endswith("pre") else "d_model")
                pooled = "pos" not in found[op.input].axes
                site(op.output, axis if pooled else f"pos {axis}", width)
            case ops.HeadLinear():
                n_heads, _, d_head = shapes[op.weight]
                site(op.output, "pos head d_head", n_heads, d_head)
            case ops.Scores():
                heads = found[op.query].sizes[2]
                found[op.output] = Site(op.output, ("batch", "head", "query", "key"), (None, heads, None, None))
            case ops.Mix():
                found[op.output] = Site(op.output, found[op.value].axes, found[op.value].sizes)
            case ops.Join():
                site(op.output, "pos d_model", config.d_model)
            case ops.Results():
                site(op.output, "pos head d_model", shapes[op.weight][0], config.d_model)
            case ops.StackHeads():
                site(op.output, "pos head d_model", len(op.inputs), config.d_model)
            case ops.Pool():
                site(op.output, "d_model", config.d_model)
            case ops.Add():
                found[op.output] = Site(op.output, found[op.inputs[0]].axes, found[op.inputs[0]].sizes)
            case ops.Softmax() | ops.Sparsemax() | ops.Activation() | ops.Normalise() | ops.Replace() | ops.Project():
                found[op.output] = Site(op.output, found[op.input].axes, found[op.input].sizes)
    return found


def unknown(what: str, name: object, known: Collection[str]) -> InputError:
    """An error that lists the nearest known names."""
    near = difflib.get_close_matches(str(name), list(known), n=4, cutoff=0.4)
    hint = f"near names: {', '.join(near)}" if near else f"known names begin {', '.join(list(known)[:6])}"
    return InputError(f"there is no {what} {name!r} in this model; {hint}")


def select_sites(names_filter: NamesFilter, known: Collection[str]) -> tuple[str, ...]:
    """The sites a filter names: None is all, a string one, an iterable several, a function those it is true of.

    Raises `InputError` for an unknown name, with the nearest known ones.
    """
    if names_filter is None:
        return tuple(known)
    if callable(names_filter):
        return tuple(name for name in known if names_filter(name))
    names = (names_filter,) if isinstance(names_filter, str) else tuple(names_filter)
    for name in names:
        if name not in known:
            raise unknown("site", name, known)
    return names
