"""The programs that Tracr and certiformer are measured on. Plain data: the peer's process imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, replace

Token = int | str


@dataclass(frozen=True)
class Case:
    """One program at one size.

    `program`: its name in `certiformer.compiler.programs`, and in `peer_tracr.BUILDERS`. `large`: among the sizes that
    Tracr takes seconds to compile (the others are the ones whose forward pass is timed).
    """

    program: str
    vocab: tuple[Token, ...]
    max_len: int
    large: bool = False

    @property
    def label(self) -> str:
        return f"{self.program} {len(self.vocab)}/{self.max_len}"


def _numbers(size: int) -> tuple[Token, ...]:
    return tuple(range(1, size + 1))


_LETTERS: tuple[Token, ...] = tuple("abcdefghij")
_BRACKETS: tuple[Token, ...] = tuple("(){}abcdef")

LARGE: tuple[Case, ...] = (
    Case("length", _LETTERS, 10, large=True),
    Case("sort", _numbers(30), 50, large=True),
    Case("sort_freq", _numbers(10), 50, large=True),
    Case("reverse", _numbers(30), 50, large=True),
    Case("nary_sequencemap", _numbers(10), 10, large=True),
    Case("shuffle_dyck2", _BRACKETS, 20, large=True),
    Case("shuffle_dyck1", ("(", ")", "a"), 50, large=True),
)
"""The sizes that the figures to reach are stated at."""

SMALL: tuple[Case, ...] = (
    Case("length", _LETTERS, 10),
    Case("reverse", _LETTERS, 10),
    Case("hist", _LETTERS, 10),
    Case("sort", _numbers(10), 10),
    Case("sort_unique", _numbers(10), 10),
    Case("sort_freq", _LETTERS, 10),
    Case("frac_prevs", _LETTERS, 10),
    Case("pair_balance", _BRACKETS, 10),
    Case("shuffle_dyck1", _BRACKETS, 10),
    Case("shuffle_dyck2", _BRACKETS, 10),
    Case("count", _LETTERS, 10),
    Case("count_less_freq", _LETTERS, 10),
    Case("detect_pattern", _LETTERS, 10),
    Case("shift_by", _LETTERS, 10),
    Case("nary_sequencemap", _numbers(10), 10),
)
"""Tracr's whole library at vocabulary 10, length 10."""

SEQUENCES = 1000
"""Sequences in the forward measurements, all of length `max_len`."""

SCALE: tuple[Case, ...] = tuple(replace(case, max_len=20) for case in SMALL)
"""The same library at vocabulary 10, length 20."""

SCALE_EXACTNESS = (100, 1000)
"""Tracr's default `mlp_exactness`, and one at which its steps do not overlap at length 20."""
