"""Claims about RASP programs themselves, for every input of a domain: no model is involved.

Every claim fails on an input on which one of its programs is undefined; None is a value that equals None alone and is
neither true nor a number. So no claim holds because there is nothing to compare.

    prove(Equivalent(reverse, other), sequences("abc", range(1, 9)))
    prove(Ensures(sort, permutation_of_input), sequences(range(8), range(1, 9)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from ..compiler.core import Value, normalise
from ..compiler.core_json import core_to_json
from ..compiler.interpreter import EvaluationError, evaluate
from ..compiler.lower import lower
from ..compiler.rasp import Selector, SOp, selector_width, tokens
from ..models.errors import InputError
from ..models.languages import Language
from ..models.values import canonical_vocab, value_to_json
from .postconditions import composed as composed
from .postconditions import is_permutation as is_permutation
from .postconditions import is_sorted as is_sorted
from .theorems import domain_to_json
from .witness import Outcome, Witness, show_value

Kind: TypeAlias = Literal["equivalent", "implies", "ensures", "range", "accepts"]
Postcondition: TypeAlias = "SOp | Callable[[SOp, SOp], SOp] | _Made"


@dataclass(frozen=True, eq=False)
class ProgramClaim:
    """What holds at every position, on every input of a domain, of one program or two.

    `equivalent`: the two values are equal. `implies`: where the first is true, the second is. `ensures`: the value is
    true. `range`: it is a number from `least` to `most`. `accepts`: it is true if the input is in `language`, and is
    not otherwise. A value is true if it equals True (so 1 is true, 2 and None are not).
    `words`: how the claim is said.
    """

    kind: Kind
    programs: tuple[SOp, ...]
    words: str
    causal: bool = False
    least: Value = None
    most: Value = None
    language: Language | None = None
    arity: int = 1

    def holds_at(self, values: Sequence[Value], member: bool = False) -> bool:
        """Whether it holds at a position where the programs have these values. `member`: of an input in `language`."""
        first = values[0]
        if self.kind == "equivalent":
            return (first is None) == (values[1] is None) and first == values[1]
        if self.kind == "implies":
            return not is_true(first) or is_true(values[1])
        if self.kind == "ensures":
            return is_true(first)
        if self.kind == "accepts":
            return is_true(first) == member
        return isinstance(first, (int, Fraction)) and self._bounds[0] <= first <= self._bounds[1]

    @property
    def _bounds(self) -> tuple[int | Fraction, int | Fraction]:
        assert isinstance(self.least, (int, Fraction)) and isinstance(self.most, (int, Fraction))
        return self.least, self.most

    def evaluate(self, word: Sequence[Value]) -> list[list[Value]]:
        """The programs' values on an input, by the reference interpreter. Raises `EvaluationError`."""
        return [evaluate(program, list(word), causal=self.causal) for program in self.programs]

    def holds(self, witness: Witness) -> Outcome:
        """What the reference interpreter says on one input."""
        (word,) = witness.inputs
        try:
            rows = self.evaluate(word)
        except EvaluationError as error:
            return Outcome("undefined", note=str(error))
        member = self.language is not None and list(word) in self.language
        columns = [*zip(*rows, strict=True)]
        wrong = [i for i, values in enumerate(columns) if not self.holds_at(values, member)]
        if not wrong:
            return Outcome("true")
        got, expected = self._shown(columns, member)
        return Outcome("false", expected, got, f"fails at position{'s' * (len(wrong) > 1)} {_places(wrong)}")

    def _shown(self, columns: Sequence[Sequence[Value]], member: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        got = tuple(show_value(values[0]) for values in columns)
        if self.kind in ("equivalent", "implies"):
            return got, tuple(show_value(values[1]) for values in columns)
        wanted = {"ensures": "True", "accepts": str(member), "range": f"{self.least} to {self.most}"}[self.kind]
        return got, (wanted,) * len(got)

    def describe(self) -> str:
        """In words."""
        return f"for every input, {self.words}{', read causally' if self.causal else ''}"

    def __str__(self) -> str:
        return self.describe()

    def theorem(self, domain: Language | EveryLength) -> dict[str, object]:
        """What a certificate states (`proofs/SPECIFICATION.md`, section 13), with the programs in core RASP.

        Raises `CompileError` if a program cannot be written so: if it may be undefined, or its tables are too large.
        On every length (section 14) with one prefix program; raises `NoPrefixProgram` if there is none.
        """
        if isinstance(domain, EveryLength):
            from .every_length import theorem_on_every_length

            return theorem_on_every_length(self, domain)
        longest = max(n for n in domain.lengths if domain.size(n))
        cores = [lower(program, domain.vocab, longest, self.causal) for program in self.programs]
        names = ("left", "right") if len(cores) == 2 else ("program",)
        body: dict[str, object] = {"kind": self.kind}
        body |= {name: core_to_json(core, False) for name, core in zip(names, cores, strict=True)}
        if self.kind == "range":
            body |= {"least": value_to_json(self.least), "most": value_to_json(self.most)}
        if self.language is not None:
            language = self.language.complement().complement() if self.language.distinct else self.language
            body["language"] = None if language.is_empty else domain_to_json(language)
        return {"quantifier": "forall", "about": "programs", "domain": domain_to_json(domain), "body": body}


@dataclass(frozen=True)
class EveryLength:
    """All sequences over a vocabulary, of every length from 1 on: a domain of claims about programs, read causally."""

    vocab: tuple[Value, ...]

    def __init__(self, vocab: object) -> None:
        object.__setattr__(self, "vocab", canonical_vocab(vocab))

    def to_json(self) -> dict[str, object]:
        """The domain of a certificate."""
        return {"kind": "every_length", "vocab": [value_to_json(value) for value in self.vocab]}


def is_true(value: Value) -> bool:
    """Whether the value equals True."""
    return isinstance(value, (int, Fraction)) and value == 1


def Equivalent(program: SOp, other: SOp, *, causal: bool = False) -> ProgramClaim:
    """Both programs have the same value at every position (numbers are compared as numbers, None equals None)."""
    _programs(program, other)
    return ProgramClaim("equivalent", (program, other), f"{_name(program)} equals {_name(other)}", causal)


def Implies(premise: SOp, conclusion: SOp, *, causal: bool = False) -> ProgramClaim:
    """At every position where `premise` is true, `conclusion` is true.

    Where the premise is true nowhere in the domain the verdict is `Vacuous`.
    """
    _programs(premise, conclusion)
    words = f"{_name(conclusion)} is true wherever {_name(premise)} is"
    return ProgramClaim("implies", (premise, conclusion), words, causal)


def Ensures(program: SOp, postcondition: Postcondition, *, causal: bool = False) -> ProgramClaim:
    """The postcondition is true at every position.

    `postcondition`: a Boolean program built from `program`; or what makes one, `(input, output) -> SOp`, such as
    `is_sorted`; or one of `equals(reference)`, `accepts_exactly(language)`. It is read causally if the program is.
    """
    _programs(program)
    if isinstance(postcondition, SOp):
        words = f"{_name(postcondition)} is true of {_name(program)}"
        return ProgramClaim("ensures", (postcondition,), words, causal)
    if isinstance(postcondition, _Made):
        return postcondition.build(program, causal)
    if not callable(postcondition):
        raise InputError(f"a postcondition is a program or what makes one of (input, output), got {postcondition!r}")
    made = postcondition(tokens, program)
    if not isinstance(made, SOp):
        raise InputError(f"the postcondition of (input, output) must be a program, got {made!r}")
    name = str(getattr(postcondition, "__name__", "the postcondition")).strip("_")
    return ProgramClaim("ensures", (made,), f"{name} is true of {_name(program)}", causal)


@dataclass(frozen=True)
class _Made:
    """A postcondition that is a claim of its own kind."""

    build: Callable[[SOp, bool], ProgramClaim]


def equals(reference: SOp) -> _Made:
    """The output is the reference program's."""
    _programs(reference)
    return _Made(lambda program, causal: Equivalent(program, reference, causal=causal))


def accepts_exactly(language: Language) -> _Made:
    """The output is true, at every position, on the inputs in the language, and nowhere on the others."""
    if not isinstance(language, Language):
        raise InputError(f"accepts_exactly takes a token language, such as balanced(...), got {language!r}")

    def build(program: SOp, causal: bool) -> ProgramClaim:
        words = f"{_name(program)} is true exactly on {language!r}"
        return ProgramClaim("accepts", (program,), words, causal, language=language)

    return _Made(build)


def Range(program: SOp, least: Value | float, most: Value | float, *, causal: bool = False) -> ProgramClaim:
    """Every value is a number from `least` to `most` (None is not)."""
    _programs(program)
    ends: list[int | Fraction] = []
    for value in (least, most):
        end = normalise(value) if isinstance(value, (int, float, Fraction)) else value
        if not isinstance(end, (int, Fraction)) or isinstance(end, bool):
            raise InputError(f"the ends of a range must be numbers, got {value!r}")
        ends.append(end)
    words = f"{_name(program)} lies in {ends[0]} to {ends[1]}"
    return ProgramClaim("range", (program,), words, causal, ends[0], ends[1])


def AtMostOne(selector: Selector, *, causal: bool = False) -> ProgramClaim:
    """From every position the selector selects at most one."""
    if not isinstance(selector, Selector):
        raise InputError(f"AtMostOne takes a selector, got {selector!r}")
    words = f"at most one key matches in {selector.name or 'the selector'}"
    return ProgramClaim("range", (selector_width(selector),), words, causal, 0, 1)


POSTCONDITIONS: dict[str, Callable[[SOp, SOp], SOp]] = {
    "sorted": is_sorted,
    "permutation_of_input": is_permutation,
}
"""By the names that the command line knows."""


def _programs(*programs: object) -> None:
    for program in programs:
        if not isinstance(program, SOp):
            raise InputError(f"a claim about programs takes s-ops, such as programs.sort(), got {program!r}")


def _name(program: SOp) -> str:
    return program.name or "the program"


def _places(places: Sequence[int]) -> str:
    return ", ".join(map(str, places[:8])) + (", ..." if len(places) > 8 else "")
