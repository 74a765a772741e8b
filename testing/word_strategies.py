"""Strategies for token sequences: the words of a token language, alone and in pairs of equal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from ..models.errors import InputError
from ..models.languages import Language
from ..models.values import Value

Draw = Callable[[st.SearchStrategy[int]], int]


@dataclass(frozen=True, eq=False)
class _Reader:
    """A walk along the language's automaton that only takes symbols from which a word can still be finished."""

    language: Language
    lengths: tuple[int, ...]
    _counts: list[list[int]]
    _alive: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(language: Language) -> _Reader:
        """Raises `InputError` for what is no language, and for an empty one."""
        if not isinstance(language, Language):
            raise InputError(
                f"words are drawn from a token language, such as sequences(vocab, length), got {language!r}"
            )
        lengths = tuple(n for n in language.lengths if language.size(n))
        if not lengths:
            raise InputError(f"{language!r} is empty: no word can be drawn; widen its lengths or its vocabulary")
        return _Reader(language, lengths, language.automaton.counts(max(lengths)))

    def draw_length(self, draw: Draw) -> int:
        return self.lengths[draw(st.integers(0, len(self.lengths) - 1))]

    def draw_word(self, draw: Draw, length: int) -> list[Value]:
        state, used, word = 0, set[int](), list[Value]()
        for position in range(length):
            alive = self._symbols(state, length - position - 1)
            if self.language.distinct:
                alive = tuple(symbol for symbol in alive if symbol not in used)
            symbol = alive[draw(st.integers(0, len(alive) - 1))] if len(alive) > 1 else alive[0]
            used.add(symbol)
            word.append(self.language.vocab[symbol])
            state = int(self.language.automaton.transitions[state, symbol])
        return word

    def _symbols(self, state: int, remaining: int) -> tuple[int, ...]:
        key = (state, remaining)
        if key not in self._alive:
            after = self._counts[remaining]
            targets = self.language.automaton.transitions[state].tolist()
            self._alive[key] = tuple(symbol for symbol, target in enumerate(targets) if after[target])
        return self._alive[key]


def words(language: Language) -> st.SearchStrategy[list[Value]]:
    """The words of a token language, as lists of tokens, every word with positive probability.

    Lengths are drawn evenly, tokens along the automaton among those that some word of that length goes on with: nothing
    is drawn and thrown away, however rare the words are. Shrinks to the shortest word, then to the first in the order
    of the vocabulary. Raises `InputError` at once if the language is empty.
    """
    reader = _Reader.of(language)

    @st.composite
    def word(draw: Draw) -> list[Value]:
        return reader.draw_word(draw, reader.draw_length(draw))

    return word()


def pairs(language: Language) -> st.SearchStrategy[tuple[list[Value], list[Value]]]:
    """Pairs (base, source) of words of equal length; as `words`."""
    reader = _Reader.of(language)

    @st.composite
    def pair(draw: Draw) -> tuple[list[Value], list[Value]]:
        length = reader.draw_length(draw)
        return reader.draw_word(draw, length), reader.draw_word(draw, length)

    return pair()
