"""Strategies for models that claims can be made about: compiled, compiled with noise, random, and from the zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from hypothesis import strategies as st

from ..compiler.compiled import Compiled
from ..models import zoo
from ..models.codec import Codec
from ..models.config import LayerConfig, TransformerConfig
from ..models.errors import InputError
from ..models.languages import sequences
from ..models.transformer import Transformer
from ..models.values import Value
from ..verifier.reading import Subject
from .program_strategies import DEPTH, Setting, fitting

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Model: TypeAlias = Compiled | Subject


def compiled_models(
    vocab: Iterable[Value],
    max_len: int,
    *,
    size: int = 8,
    depth: int | tuple[int, int] = DEPTH,
    max_layers: int | None = None,
    causal: bool = False,
) -> st.SearchStrategy[Compiled]:
    """Compiled programs; the arguments, errors and shrinking are those of `programs`."""
    setting = Setting.of(vocab, max_len, causal, size, depth, max_layers)

    @st.composite
    def compiled(draw: Draw) -> Compiled:
        return fitting(draw, setting)[1]

    return compiled()


def noisy_models(
    compiled: Compiled | st.SearchStrategy[Compiled], *, scale: float = 0.1
) -> st.SearchStrategy[Compiled]:
    """A compiled program (or a strategy of such), its weights with normal noise of a drawn deviation up to `scale`.

    Half of the time all weights get noise; else one weight is set to another value of its tensor, or to zero. Shrinks
    to no noise. The alignment and circuit stay those of the program, and need not fit the weights any more.
    Raises `InputError` for a negative scale.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < float("inf"):
        raise InputError(f"scale must be a number of at least 0, got {scale!r}")
    drawn = st.just(compiled) if isinstance(compiled, Compiled) else compiled

    @st.composite
    def noisy(draw: Draw) -> Compiled:
        base: Compiled = draw(drawn)
        parameters = {name: value.detach().clone() for name, value in base.model.named_parameters()}
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(parameters)))
            flat = parameters[name].view(-1)
            others = sorted({0.0, *flat.tolist()})
            flat[draw(st.integers(0, len(flat) - 1))] = draw(st.sampled_from(others))
        else:
            steps = draw(st.integers(0, 64))
            generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
            for value in parameters.values():
                value += torch.randn(value.shape, generator=generator) * (scale * steps / 64)
        return replace(base, model=Transformer.from_parameters(base.model.config, parameters), certificate=None)

    return noisy()


def random_models(
    vocab: Iterable[Value],
    max_len: int,
    *,
    outputs: Iterable[Value] | None = None,
    max_layers: int = 2,
    max_heads: int = 2,
    max_width: int = 8,
    causal: bool | None = None,
) -> st.SearchStrategy[Subject]:
    """Small random transformers with a codec, to make claims about: `Computes(model, program)`.

    `outputs`: what they decode to (default: the tokens). `max_width` bounds d_model, d_head and d_mlp. Shrinks to one
    layer without heads or neurons, seed 0. Raises `InputError` for sizes below 1 (layers, heads: below 0).
    """
    codec = Codec(
        sequences(tuple(vocab), max_len).vocab,
        False,
        "categorical",
        tuple(outputs) if outputs is not None else sequences(tuple(vocab), max_len).vocab,
        max_len=max_len,
    )
    for name, number, least in (
        ("max_layers", max_layers, 0),
        ("max_heads", max_heads, 0),
        ("max_width", max_width, 1),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(f"{name} must be an integer of at least {least}, got {number!r}")

    @st.composite
    def model(draw: Draw) -> Subject:
        layers = []
        for _ in range(draw(st.integers(0, max_layers))):
            heads = draw(st.integers(0, max_heads))
            width = draw(st.integers(1, max_width)) if heads else 0
            layers.append(LayerConfig(heads, width, draw(st.integers(0, max_width))))
        config = TransformerConfig(
            draw(st.integers(1, max_width)),
            max_len,
            len(codec.vocab),
            len(codec.outputs),
            tuple(layers),
            causal=draw(st.booleans()) if causal is None else causal,
        )
        return Subject(Transformer.initialised(config, draw(st.integers(0, 2**16))), codec)

    return model()


def zoo_models(names: Sequence[str] | None = None, *, max_parameters: int | None = None) -> st.SearchStrategy[Subject]:
    """Trained models of the zoo with their tasks' codecs; the smallest first.

    `names`: as in `zoo.names()`, default all. Raises `InputError` for unknown names and if none is small enough.
    """
    given = zoo.names() if names is None else tuple(names)
    for name in given:
        zoo.path(name)
    sizes = {name: zoo.path(name).stat().st_size for name in given}
    fitting = [name for name in given if max_parameters is None or sizes[name] <= 4 * max_parameters + 2**15]
    found = [
        name for name in fitting if max_parameters is None or _loaded(name).model.config.n_parameters <= max_parameters
    ]
    if not found:
        raise InputError(
            f"no model of the zoo among {', '.join(given) or 'none'} has at most {max_parameters} parameters"
        )
    return st.sampled_from(sorted(found, key=lambda name: (sizes[name], name))).map(_loaded)


@lru_cache(maxsize=64)
def _loaded(name: str) -> Subject:
    found = zoo.load(name)
    return Subject(found.model, found.task.codec)


def models(vocab: Iterable[Value], max_len: int, *, scale: float = 0.1) -> st.SearchStrategy[Model]:
    """Models of every kind over a vocabulary: compiled, with noise, random. (Those of the zoo have their own tokens.)

    Shrinks to the compiled program `tokens`.
    """
    tokens = tuple(vocab)
    compiled = compiled_models(tokens, max_len)
    return st.one_of(compiled, noisy_models(compiled, scale=scale), random_models(tokens, max_len))
