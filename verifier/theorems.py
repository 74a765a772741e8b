"""The parts of a theorem as canonical data: `proofs/SPECIFICATION.md`, sections 1 and 3."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..compiler.core import Value
from ..models.automata import length_automaton
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.languages import Language
from ..models.values import value_to_json


def number_to_json(value: Fraction | int | float) -> object:
    """An integer, or {"num": a, "log2den": k}. Raises `InputError` for a number that is not dyadic."""
    exact = Fraction(value)
    log2den = exact.denominator.bit_length() - 1
    if exact.denominator != 1 << log2den:
        raise InputError(f"{value} is no fraction over a power of two; write it as a float")
    return exact.numerator if not log2den else {"num": exact.numerator, "log2den": log2den}


def _values(values: tuple[Value, ...]) -> list[object]:
    return [value_to_json(value) for value in values]


def codec_to_json(codec: Codec) -> dict[str, object]:
    """A codec; points as dyadics."""
    return {
        "vocab": _values(codec.vocab),
        "bos": codec.bos,
        "kind": codec.kind,
        "outputs": _values(codec.outputs),
        "points": [number_to_json(point) for point in codec.points],
    }


def domain_to_json(domain: Language) -> dict[str, object]:
    """A token language: a product if every length has all words over the same alphabet, else an automaton.

    Raises `InputError` if the words cannot be written as an automaton of reasonable size.
    """
    lengths = [n for n in domain.lengths if domain.size(n)]
    span = [min(lengths), max(lengths)]
    alphabets = {domain.alphabet(n) for n in lengths}
    if len(lengths) == span[1] - span[0] + 1 and len(alphabets) == 1 and domain.is_product():
        letters = alphabets.pop()
        return {"kind": "product", "vocab": _values(tuple(v for v in domain.vocab if v in letters)), "lengths": span}
    if domain.distinct and len(lengths) == span[1] - span[0] + 1:
        letters = frozenset().union(*alphabets)
        return {"kind": "distinct", "vocab": _values(tuple(v for v in domain.vocab if v in letters)), "lengths": span}
    automaton = domain.complement().complement().automaton if domain.distinct else domain.automaton
    if len(lengths) < span[1] - span[0] + 1:
        here = length_automaton(lengths, len(domain.vocab))
        automaton = automaton.combine(here, lambda word, length: word and length)
    return {
        "kind": "dfa",
        "vocab": _values(domain.vocab),
        "lengths": span,
        "start": 0,
        "accept": np.flatnonzero(automaton.accepting).tolist(),
        "delta": automaton.transitions.tolist(),
    }
