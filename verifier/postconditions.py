"""Postconditions: Boolean programs over a program's input and output, true where what they say holds.

None never selects and is never selected; each of these is false, or counts wrong, where the output is None.
"""

from __future__ import annotations

from ..compiler.rasp import Selector, SOp, indices, select, selector_width

_HERE = select(indices, indices, "==")


def is_number_or_text(output: SOp) -> SOp:
    """The output is not None."""
    return selector_width(select(output, output, True) & _HERE) == 1


def is_sorted(inputs: SOp, output: SOp) -> SOp:
    """No larger value stands to the left, and the value is not None."""
    larger = selector_width(select(output, output, ">") & select(indices, indices, "<"))
    return (larger == 0) & is_number_or_text(output)


def is_permutation(inputs: SOp, output: SOp) -> SOp:
    """The token here occurs as often in the output as in the input: at all positions, the output is a permutation."""
    return _occurrences(output, inputs) == _occurrences(inputs, inputs)


def _occurrences(where: SOp, of: SOp) -> SOp:
    same: Selector = select(where, of, "==")
    return selector_width(same)
