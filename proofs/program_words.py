"""Theorems about programs in words."""

from __future__ import annotations

from collections.abc import Mapping

from .format import Json
from .prefix_check import read_prefix_theorem
from .program_theorem import read_program_theorem

TRUSTED_BASE = (
    "certiformer.proofs (the checker) and its specification; Python and numpy (integers). That Python functions were "
    "tabulated faithfully into the programs' finite tables is outside the theorem: the tables are the theorem."
)
EVERY_LENGTH = " So is that RASP programs were written faithfully as this prefix program."


def sentence(theorem: Mapping[str, Json]) -> str:
    """What is true of every input of which domain. Raises `Rejected` for a theorem that is not well formed."""
    if is_about_every_length(theorem):
        program = read_prefix_theorem(dict(theorem))
        tokens = ", ".join(map(repr, program.vocab[:12])) + (", …" if len(program.vocab) > 12 else "")
        said = f"the prefix program of {len(program.nodes)} nodes is defined, and true at every position"
        return f"For every sequence of every length from 1 on, of tokens from {tokens}: {said}."
    read = read_program_theorem(dict(theorem))
    body, domain = theorem["body"], read.domain
    left, *rest = (str(body[side]["name"]) for side in ("left", "right", "program") if side in body)
    said = {
        "equivalent": lambda: f"{left} and {rest[0]} are defined and have the same value at every position",
        "implies": lambda: f"{rest[0]} is true at every position where {left} is, and both are defined",
        "ensures": lambda: f"{left} is defined, and true at every position",
        "range": lambda: (
            f"{left} is defined, and a number from {_end(body['least'])} to {_end(body['most'])} everywhere"
        ),
        "accepts": lambda: f"{left} is defined, true everywhere if the input is in the language, and nowhere if not",
    }[read.kind]()
    tokens = ", ".join(map(repr, domain.vocab[:12])) + (", …" if len(domain.vocab) > 12 else "")
    states = len(domain.accept) - 1
    automaton = f" that an automaton of {states} states accepts" if states else ""
    without = " without repetition" if domain.distinct else ""
    causal = " (read causally)" if read.programs[0].causal else ""
    which = f"sequence of {domain.lo} to {domain.hi} tokens from {tokens}{automaton}{without}"
    return f"For every {which}: {said}{causal}."


def _end(number: Json) -> str:
    return f"{number['num']}/{number['den']}" if isinstance(number, dict) and "den" in number else str(number)


def is_about_every_length(theorem: Mapping[str, Json]) -> bool:
    """Whether the domain has no longest word."""
    domain = theorem.get("domain")
    return isinstance(domain, dict) and domain.get("kind") == "every_length"


def describe(theorem: Mapping[str, Json]) -> str:
    """The theorem in words, with the domain's size and the trusted base."""
    every = is_about_every_length(theorem)
    size = "all inputs of every length" if every else f"{read_program_theorem(dict(theorem)).domain.size():,} inputs"
    base = TRUSTED_BASE + (EVERY_LENGTH if every else "")
    return f"{sentence(theorem)}\nDomain: {size}\nTrusted base: {base}"
