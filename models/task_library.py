"""The tasks: max-of-K, modular addition, sorting, induction, addition, brackets, quotes, the most frequent token."""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .automata import build
from .config import Readout
from .errors import InputError
from .labels import NO_LABEL, LabelMachine, build_machine
from .languages import balanced, sequences
from .tasks import Task
from .token_language import Ids, Language
from .values import Value

Stacks = npt.NDArray[np.int64]
ROUND = (("(", ")"),)
ROUND_AND_SQUARE = (("(", ")"), ("[", "]"))


@dataclass(frozen=True)
class Parts:
    """What a family's builder gives: everything about the task but its name."""

    domain: Language
    outputs: tuple[Value, ...]
    readout: Readout
    rule: Callable[[Ids], Ids]
    training: tuple[Language, ...] = ()
    build_machine: Callable[[], LabelMachine] | None = None
    build_states: Callable[[], LabelMachine] | None = None


@dataclass(frozen=True)
class Parameter:
    """An integer a family takes: its default, and the least and greatest it may be."""

    default: int
    least: int
    most: int


@dataclass(frozen=True)
class Family:
    """Tasks of one kind. The first parameter may stand in the name: `max-of-10` is `max-of` with length 10."""

    name: str
    summary: str
    parameters: Mapping[str, Parameter]
    build: Callable[..., Parts]

    @property
    def size(self) -> str:
        """The parameter that may stand in the name."""
        return next(iter(self.parameters))


# Numbers


def _max_of(length: int, vocab: int) -> Parts:
    domain = sequences(range(vocab), length)

    def machine() -> LabelMachine:
        """State 0: nothing yet; state 1 + m: the maximum is m."""
        after = np.maximum(np.arange(-1, vocab)[:, None], np.arange(vocab)) + 1
        return LabelMachine(after.astype(np.int32), np.arange(-1, vocab))

    return Parts(domain, domain.vocab, "last", lambda ids: ids.max(axis=1), build_machine=machine)


def _sort(length: int, vocab: int) -> Parts:
    domain = sequences(range(vocab), length)
    return Parts(domain, domain.vocab, "each", lambda ids: np.sort(ids, axis=1))


def _most_frequent(length: int, vocab: int) -> Parts:
    def rule(ids: Ids) -> Ids:
        counts = (ids[:, :, None] == ids[:, None, :]).sum(axis=2)
        return _at(ids, counts.argmax(axis=1))

    def machine() -> LabelMachine:
        """The counts so far, in the order of first occurrences."""

        def step(counts: tuple[tuple[int, int], ...], symbol: int) -> tuple[tuple[int, int], ...]:
            found = dict(counts)
            if sum(found.values()) < length:
                found[symbol] = found.get(symbol, 0) + 1
            return tuple(found.items())

        def label(counts: tuple[tuple[int, int], ...]) -> int:
            return max(counts, key=lambda item: item[1])[0] if counts else NO_LABEL

        nothing: tuple[tuple[int, int], ...] = ()
        return build_machine(nothing, step, label, vocab)

    domain = sequences(range(vocab), length)
    return Parts(domain, domain.vocab, "last", rule, build_machine=machine)


def _modular_addition(modulus: int) -> Parts:
    tokens = (*range(modulus), "=")
    accepted, dead = 3, 4

    def step(state: int, symbol: int) -> int:
        wanted = symbol == modulus if state == 2 else symbol < modulus
        return state + 1 if state < accepted and wanted else dead

    automaton = build(0, step, lambda state: state == accepted, len(tokens))
    domain = Language(tokens, (3,), automaton)

    def machine() -> LabelMachine:
        """What was read: nothing; a; the sum of a and b; the sum, and then =."""

        def after(state: tuple[int, int], symbol: int) -> tuple[int, int]:
            place, total = state
            if place >= accepted or (symbol == modulus) != (place == 2):
                return dead, 0
            return place + 1, (total + symbol % modulus) % modulus

        def label(state: tuple[int, int]) -> int:
            return state[1] if state[0] == accepted else NO_LABEL

        return build_machine((0, 0), after, label, len(tokens))

    def rule(ids: Ids) -> Ids:
        return (ids[:, 0] + ids[:, 1]) % modulus

    return Parts(domain, tuple(range(modulus)), "last", rule, build_machine=machine)


def _addition(digits: int) -> Parts:
    tokens = tuple(f"{left}+{right}" for left in range(10) for right in range(10))

    def rule(ids: Ids) -> Ids:
        sums = ids // 10 + ids % 10
        carry = np.zeros(len(ids), dtype=np.int64)
        for place in range(digits - 1, -1, -1):
            sums[:, place] += carry
            carry = sums[:, place] // 10
        return sums % 10

    return Parts(sequences(tokens, digits), tuple(range(10)), "each", rule)


# Looking back


def _induction(length: int, vocab: int) -> Parts:
    def step(state: tuple[int, bool], symbol: int) -> tuple[int, bool]:
        seen, _ = state
        return seen | 1 << symbol, bool(seen >> symbol & 1)

    def rule(ids: Ids) -> Ids:
        earlier = ids[:, :-1] == ids[:, -1:]
        last = length - 2 - earlier[:, ::-1].argmax(axis=1)
        return np.where(earlier.any(axis=1), _at(ids, last + 1), ids[:, 0])

    def machine() -> LabelMachine:
        """The last token (-1: not read yet), what followed it last (-1: nothing yet), and whether it is just before."""

        def after(state: tuple[int, int, bool], symbol: int) -> tuple[int, int, bool]:
            wanted, follower, just_before = state
            if wanted < 0:
                return symbol, -1, False
            return wanted, symbol if just_before else follower, symbol == wanted

        def label(state: tuple[int, int, bool]) -> int:
            wanted, follower, just_before = state
            return wanted if just_before else follower

        return build_machine((-1, -1, False), after, label, vocab, last_first=True)

    def states() -> LabelMachine:
        """The token before."""
        return build_machine(-1, lambda _, symbol: symbol, lambda _: 0, vocab)

    tokens = tuple(range(vocab))
    domain = Language(tokens, (length,), build((0, False), step, lambda state: state[1], vocab))
    return Parts(domain, tokens, "last", rule, build_machine=machine, build_states=states)


def _quotes(length: int, letters: int) -> Parts:
    tokens = ('"', "'", *string.ascii_lowercase[:letters])
    outside, dead = 2, 3

    def step(state: int, symbol: int) -> int:
        if state == outside:
            return min(symbol, outside)
        return dead if symbol == state else state

    domain = Language(tokens, (length,), build(outside, step, lambda state: state < outside, len(tokens)))

    def machine() -> LabelMachine:
        """The first quote, if there was one."""

        def after(opened: int, symbol: int) -> int:
            return symbol if opened == NO_LABEL and symbol < outside else opened

        return build_machine(NO_LABEL, after, lambda opened: opened, len(tokens))

    def rule(ids: Ids) -> Ids:
        return _at(ids, (ids < 2).argmax(axis=1))

    return Parts(domain, ('"', "'"), "last", rule, build_machine=machine)


# Brackets. Token ids: ( 0, ) 1, [ 2, ] 3, as in the canonical order of the tokens.


def _dyck_1(length: int) -> Parts:
    _even(length)
    tokens = ("(", ")")

    def rule(ids: Ids) -> Ids:
        depth = np.cumsum(1 - 2 * ids, axis=1)
        return _flags((depth.min(axis=1) >= 0) & (depth[:, -1] == 0))

    def ending(last: int, least: int) -> Language:
        """Words whose depth is `last` in the end, and never below `least`."""

        def step(depth: int, symbol: int) -> int:
            after = depth + 1 - 2 * symbol
            return after if least <= after <= length and depth >= least else least - 1

        return Language(tokens, (length,), build(0, step, lambda depth: depth == last, 2))

    def machine() -> LabelMachine:
        """The depth; -1 where the word can no longer be balanced."""

        def after(depth: int, symbol: int) -> int:
            deeper = depth + 1 - 2 * symbol
            return deeper if depth >= 0 and 0 <= deeper <= length // 2 else -1

        return build_machine(0, after, lambda depth: int(depth == 0), len(tokens))

    def states() -> LabelMachine:
        """The depth, of unbalanced prefixes too, and whether it was ever negative."""

        def after(state: tuple[int, bool], symbol: int) -> tuple[int, bool]:
            depth = state[0] + 1 - 2 * symbol
            return max(-length, min(length, depth)), state[1] or depth < 0

        return build_machine((0, False), after, lambda _: 0, len(tokens))

    # Balanced words are a third of a batch; most of the others fail in the ways that are hardest to see.
    domain = sequences(tokens, length)
    words = balanced(ROUND, length // 2, length)
    nearly = ending(0, -2).difference(words)
    unclosed = ending(2, 0)
    training = (domain, words, words, ending(0, -length), nearly, unclosed)
    return Parts(domain, (False, True), "mean", rule, training, machine, states)


def _dyck_2(length: int) -> Parts:
    _even(length)
    domain = sequences("()[]", length)
    words = balanced(ROUND_AND_SQUARE, length // 2, length)
    misfit = _one_wrong_bracket(domain.vocab, length)

    def rule(ids: Ids) -> Ids:
        _, depth, nested = _stacks(ids)
        return _flags(nested & (depth == 0))

    def machine() -> LabelMachine:
        return _open_brackets(length // 2, lambda stack: int(not stack), 0)

    return Parts(domain, (False, True), "mean", rule, (domain, words, misfit), machine)


def _open_brackets(depth: int, label: Callable[[tuple[int, ...]], int], wrong: int) -> LabelMachine:
    """The machine whose state is the kinds of the open brackets, at most `depth`; `wrong`: the label of what does not
    nest so."""
    dead = (-1,)

    def after(stack: tuple[int, ...], symbol: int) -> tuple[int, ...]:
        kind, closes = divmod(symbol, 2)
        if stack == dead or (closes and stack[-1:] != (kind,)) or (not closes and len(stack) == depth):
            return dead
        return stack[:-1] if closes else (*stack, kind)

    empty: tuple[int, ...] = ()
    return build_machine(empty, after, lambda stack: wrong if stack == dead else label(stack), 4)


def _one_wrong_bracket(vocab: tuple[Value, ...], length: int) -> Language:
    """Balanced up to one closing bracket of the wrong kind."""
    dead = ((-1,), False)

    def step(state: tuple[tuple[int, ...], bool], symbol: int) -> tuple[tuple[int, ...], bool]:
        stack, wrong = state
        kind, closes = divmod(symbol, 2)
        if state == dead or (closes and not stack) or (not closes and len(stack) == length // 2):
            return dead
        if not closes:
            return (*stack, kind), wrong
        slip = stack[-1] != kind
        return dead if slip and wrong else (stack[:-1], wrong or slip)

    empty: tuple[tuple[int, ...], bool] = ((), False)
    return Language(vocab, (length,), build(empty, step, lambda state: state == ((), True), len(vocab)))


def _bracket_type(length: int, depth: int) -> Parts:
    dead = (-1,)

    def step(stack: tuple[int, ...], symbol: int) -> tuple[int, ...]:
        kind, closes = divmod(symbol, 2)
        if stack == dead or (closes and stack[-1:] != (kind,)) or (not closes and len(stack) == depth):
            return dead
        return stack[:-1] if closes else (*stack, kind)

    def rule(ids: Ids) -> Ids:
        kinds, depths, _ = _stacks(ids)
        return _at(kinds, np.maximum(depths - 1, 0))

    tokens = ("(", ")", "[", "]")
    empty: tuple[int, ...] = ()
    automaton = build(empty, step, lambda stack: stack not in (empty, dead), len(tokens))

    def machine() -> LabelMachine:
        return _open_brackets(depth, lambda stack: stack[-1] if stack else NO_LABEL, NO_LABEL)

    return Parts(Language(tokens, (length,), automaton), (")", "]"), "last", rule, build_machine=machine)


def _stacks(ids: Ids) -> tuple[Stacks, Stacks, npt.NDArray[np.bool_]]:
    """For each word: the kinds of the open brackets [batch, n], how many there are, and whether all so far nest."""
    batch, length = ids.shape
    rows = np.arange(batch)
    kinds = np.zeros((batch, length + 1), dtype=np.int64)
    depth = np.zeros(batch, dtype=np.int64)
    nested = np.ones(batch, dtype=bool)
    for column in ids.T:
        kind, closes = column // 2, column % 2 == 1
        nested &= ~closes | ((depth > 0) & (kinds[rows, np.maximum(depth - 1, 0)] == kind))
        kinds[rows, depth] = np.where(closes, kinds[rows, depth], kind)
        depth = np.maximum(depth + np.where(closes, -1, 1), 0)
    return kinds, depth, nested


def _at(ids: Ids, places: npt.NDArray[np.int64]) -> Ids:
    """From each row the entry at its place."""
    found: Ids = np.take_along_axis(ids, places[:, None], axis=1)[:, 0]
    return found


def _flags(flags: npt.NDArray[np.bool_]) -> Ids:
    """Labels for the outputs False, True."""
    return flags.astype(np.int64)


def _even(length: int) -> None:
    if length % 2:
        raise InputError(f"no word of odd length is balanced; length must be even, got {length}")


TASKS: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "max-of",
            "The largest of the tokens.",
            {"length": Parameter(10, 1, 512), "vocab": Parameter(64, 2, 4096)},
            _max_of,
        ),
        Family(
            "modular-addition",
            "For a, b and =: a + b modulo p.",
            {"modulus": Parameter(113, 2, 1000)},
            _modular_addition,
        ),
        Family(
            "sort",
            "At each position, the token that stands there in ascending order.",
            {"length": Parameter(8, 1, 512), "vocab": Parameter(8, 2, 4096)},
            _sort,
        ),
        Family(
            "induction",
            "The token that followed the last earlier occurrence of the last token, which did occur before.",
            {"length": Parameter(12, 2, 512), "vocab": Parameter(8, 2, 10)},
            _induction,
        ),
        Family(
            "addition",
            "The sum of two numbers, digit by digit, modulo 10^n; a token such as 3+4 holds a digit of each.",
            {"digits": Parameter(3, 1, 32)},
            _addition,
        ),
        Family(
            "dyck-1",
            "Whether ( and ) are balanced.",
            {"length": Parameter(16, 2, 512)},
            _dyck_1,
        ),
        Family(
            "dyck-2",
            "Whether () and [] are properly nested.",
            {"length": Parameter(8, 2, 20)},
            _dyck_2,
        ),
        Family(
            "quotes",
            "Which quote is due: a word opens one string, with \" or ', and does not close it.",
            {"length": Parameter(12, 1, 512), "letters": Parameter(4, 0, 26)},
            _quotes,
        ),
        Family(
            "bracket-type",
            "Which closing bracket is due, after a beginning of properly nested () and [], some of them open.",
            {"length": Parameter(12, 1, 512), "depth": Parameter(4, 1, 10)},
            _bracket_type,
        ),
        Family(
            "most-frequent",
            "The most frequent token; of several, the one that comes first.",
            {"length": Parameter(8, 1, 512), "vocab": Parameter(4, 2, 4096)},
            _most_frequent,
        ),
    )
}
SHORT_NAMES = {"max": "max-of", "mod-add": "modular-addition"}


def get_task(name: str, **parameters: int) -> Task:
    """A task by name: `get_task("max-of-10", vocab=64)`, or `get_task("max", length=10)`; see `TASKS`.

    Raises `InputError` for unknown tasks and parameters, and for parameters outside their range.
    """
    family, given = _family(name)
    for key, value in parameters.items():
        if key not in family.parameters:
            raise InputError(f"{family.name} has the parameters {', '.join(family.parameters)}; got {key!r}")
        if key in given and given[key] != value:
            raise InputError(f"the name {name!r} says {key} {given[key]}, but {key}={value!r} is given too")
        given[key] = value
    for key, value in given.items():
        bounds = family.parameters[key]
        if isinstance(value, bool) or not isinstance(value, int) or not bounds.least <= value <= bounds.most:
            raise InputError(
                f"{key} of {family.name} must be an integer of {bounds.least} to {bounds.most}, got {value!r}"
            )
    values = {key: given.get(key, bounds.default) for key, bounds in family.parameters.items()}
    parts = family.build(**values)
    if parts.domain.is_empty:
        raise InputError(f"{family.name} has no words with {values}")
    return Task(
        family.name,
        values,
        f"{family.name}-{values[family.size]}",
        parts.domain,
        parts.outputs,
        parts.readout,
        parts.rule,
        parts.training,
        parts.build_machine,
        parts.build_states,
    )


def task_from_json(data: object) -> Task:
    """The inverse of `Task.to_json`. Raises `InputError`."""
    if not isinstance(data, dict) or set(data) != {"family", "parameters"} or not isinstance(data["parameters"], dict):
        raise InputError(f"a task in JSON has a family and parameters, got {str(data)[:200]}")
    return get_task(str(data["family"]), **data["parameters"])


def _family(name: str) -> tuple[Family, dict[str, int]]:
    """The family, and its first parameter if the name ends in one."""
    stem, dash, size = name.rpartition("-")
    for known, number in ((name, ""), (stem, size if dash else "")):
        family = TASKS.get(SHORT_NAMES.get(known, known))
        if family and (not number or (number.isascii() and number.isdigit() and len(number) < 10)):
            return family, {family.size: int(number)} if number else {}
    near = difflib.get_close_matches(name.rstrip("-0123456789"), [*TASKS, *SHORT_NAMES], n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"no task {name!r}; {hint}the tasks are {', '.join(TASKS)}, and a size as in max-of-10")
