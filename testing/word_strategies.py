"""Strategies for token sequences: the words of a token language, alone and in pairs of equal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from ..models.errors import InputError
from ..models.languages import Language
from ..models.values import Value

Draw = Callable[[st.SearchStrategy[int]], int]


GO_ON = st.integers(0, 2**16)
"""Almost never 0, which is to stop."""


@dataclass
class _Path:
    """A word so far, and the automaton's state after it."""

    state: int = 0
    word: list[Value] = field(default_factory=list)


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

    def draw_words(self, draw: Draw, count: int) -> tuple[list[Value], ...]:
        """`count` words of one length.

        Position by position: whether to go on, then a token for each word. So a shrinker can delete a position as one
        piece; to go on is the rule, and a stop before the drawn length is heeded where all the words may end.
        """
        length = self.lengths[draw(st.integers(0, len(self.lengths) - 1))]
        paths = [_Path() for _ in range(count)]
        for position in range(length):
            if not draw(GO_ON) and position in self.lengths and all(self._counts[0][path.state] for path in paths):
                return tuple(path.word for path in paths)
            for path in paths:
                self._step(draw, path, length - position - 1)
        draw(st.integers(0, 0))  # the stop that is there when a position before it is deleted
        return tuple(path.word for path in paths)

    def _step(self, draw: Draw, path: _Path, remaining: int) -> None:
        language = self.language
        alive = self._symbols(path.state, remaining)
        if language.distinct:
            alive = tuple(symbol for symbol in alive if language.vocab[symbol] not in path.word)
        symbol = alive[0]
        if len(alive) > 1:  # by its number, which does not change when tokens before it do
            number = draw(st.integers(0, len(language.vocab) - 1))
            symbol = number if number in alive else alive[number % len(alive)]
        path.word.append(language.vocab[symbol])
        path.state = int(language.automaton.transitions[path.state, symbol])

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
    is drawn and thrown away, however rare the words are. Shrinks to the shortest word, and towards the first in the
    order of the vocabulary. Raises `InputError` at once if the language is empty.
    """
    reader = _Reader.of(language)

    @st.composite
    def word(draw: Draw) -> list[Value]:
        return reader.draw_words(draw, 1)[0]

    return word()


def pairs(language: Language) -> st.SearchStrategy[tuple[list[Value], list[Value]]]:
    """Pairs (base, source) of words of equal length; as `words`."""
    reader = _Reader.of(language)

    @st.composite
    def pair(draw: Draw) -> tuple[list[Value], list[Value]]:
        base, source = reader.draw_words(draw, 2)
        return base, source

    return pair()
