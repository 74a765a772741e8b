"""Moves: changes of a word that no program of a theorem can tell apart (section 13 of the specification).

A move renames tokens (one to one, perhaps not all of them) or swaps two neighbouring positions. It is *followed* by a
program if every node has an *action*, a partial map of its values, such that on every word that has only tokens which
the move renames, the node's value at i is in the action's domain, and is moved by it to the node's value, on the moved
word, at the moved place. Actions are derived node by node, from the tables alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .automaton import Domain
from .core import Bits, Ints, Node, Program
from .format import is_number
from .program_theorem import ProgramTheorem

ALL_PAIRS = 32
"""With more tokens only neighbouring ones are swapped."""
NONE = -2
"""In an action: the value is outside its domain. (-1, undefined, is no value; tables move it to itself.)"""


@dataclass(frozen=True)
class Move:
    """`kind` swap: tokens `first` < `second` change places. lower: in words without `first`, `second` becomes `first`.
    places: positions `first` and `second` = first + 1 change places."""

    kind: str
    first: int
    second: int

    def tokens(self, count: int) -> Ints:
        """What each token of the domain becomes; `NONE`: the move is for words without it."""
        found = np.arange(count)
        if self.kind == "swap":
            found[[self.first, self.second]] = self.second, self.first
        elif self.kind == "lower":
            found[self.first], found[self.second] = NONE, self.first
        return found


class _NotFollowed(Exception):
    """The program tells some word from the moved one, as far as its tables show."""


def followed(theorem: ProgramTheorem) -> list[tuple[Move, frozenset[tuple[int, int]]]]:
    """The candidate moves that keep the domain, the programs and the body, each with the aggregates (program, node)
    that must not average, on any word, for that to be so."""
    count = len(theorem.domain.vocab)
    pairs = [(s, t) for s in range(count) for t in range(s + 1, count if count <= ALL_PAIRS else min(s + 2, count))]
    candidates = [Move("swap", s, t) for s, t in pairs]
    candidates += [Move("lower", s, s + 1) for s in range(count - 1)]
    if not theorem.programs[0].causal:
        candidates += [Move("places", j, j + 1) for j in range(theorem.domain.hi - 1)]
    found: list[tuple[Move, frozenset[tuple[int, int]]]] = []
    for move in candidates:
        try:
            if not keeps_domain(theorem.domain, move) or not _keeps_language(theorem, move):
                continue
            read = zip(theorem.programs, theorem.symbols, strict=True)
            actions, single = zip(*(_actions(program, move, symbols) for program, symbols in read), strict=True)
            if not _keeps_body(theorem, actions):
                continue
        except _NotFollowed:
            continue
        unmixed = frozenset((program, node) for program, nodes in enumerate(single) for node in nodes)
        found.append((move, unmixed))
    return found


# The domain and the language


def keeps_domain(domain: Domain, move: Move) -> bool:
    """Whether the moved words of the domain are in the domain."""
    if len(domain.accept) == 1:
        return True  # all words over an alphabet, or those without repetition
    return _simulates(domain.delta, domain.accept, domain.start, move, both_ways=False)


def _keeps_language(theorem: ProgramTheorem, move: Move) -> bool:
    language = theorem.language
    if language is None:
        return True
    return _simulates(theorem.language_delta(), language.accept, language.start, move, both_ways=True)


def _simulates(delta: Ints, accept: Bits, start: int, move: Move, both_ways: bool) -> bool:
    """Whether the automaton accepts the moved word if (`both_ways`: iff) it accepts the word.

    Of positions: whether any two tokens may be read in either order, in all states.
    """
    count = delta.shape[1]
    if move.kind == "places":
        twice = delta[delta]  # [state, a, b]
        return bool((twice == twice.transpose(0, 2, 1)).all())
    tokens = move.tokens(count)
    known = np.flatnonzero(tokens >= 0)
    seen = {(start, start)}
    todo = [(start, start)]
    while todo:
        state, other = todo.pop()
        if accept[state] and not accept[other] or both_ways and accept[other] and not accept[state]:
            return False
        for token in known.tolist():
            pair = int(delta[state, token]), int(delta[other, tokens[token]])
            if pair not in seen:
                seen.add(pair)
                todo.append(pair)
    return True


def _keeps_body(theorem: ProgramTheorem, actions: tuple[Ints, ...]) -> bool:
    """Whether what the body reads of the outputs is as good before the move as after it."""
    tables = []
    for classes, action in zip(theorem.read, actions, strict=True):
        values = np.flatnonzero(action >= 0)
        tables.append((classes[values], classes[action[values]]))
    if theorem.kind != "equivalent":
        return all(np.array_equal(before, after) for before, after in tables)
    (left, moved_left), (right, moved_right) = tables
    before = left[:, None] == right[None, :]
    return np.array_equal(before, moved_left[:, None] == moved_right[None, :])


# The programs


def _actions(program: Program, move: Move, symbols: Ints) -> tuple[Ints, set[int]]:
    """The action on the output's values, and the aggregates that must not average. Raises `_NotFollowed`."""
    found: dict[int, Ints] = {}
    single: set[int] = set()
    for number in _needed(program):
        node = program.nodes[number]
        if node.kind == "tokens":
            action = np.full(len(node.values), NONE)
            action[symbols] = [NONE if t < 0 else symbols[t] for t in move.tokens(len(symbols)).tolist()]
        elif node.kind == "indices":
            action = np.arange(len(node.values))
            if move.kind == "places":
                action[[move.first, move.second]] = move.second, move.first
        elif node.kind == "map":
            action = _map_action(node, [found[arg] for arg in node.args])
        elif node.kind == "linear":
            if not all(_is_identity(found[arg]) for arg in node.args):
                raise _NotFollowed
            action = np.arange(len(node.values))
        elif node.kind == "width":
            action = np.arange(len(node.values))
        elif node.kind == "aggregate":
            action, averages = _aggregate_action(node, program.nodes[node.args[1]], found[node.args[1]])
            if not averages:
                single.add(number)
        else:
            if node.kind == "select":
                _check_select(node, found[node.args[0]], found[node.args[1]])
            continue
        found[number] = action
    return found[program.output], single


def _needed(program: Program) -> list[int]:
    """The nodes that the output depends on, ascending."""
    wanted = {program.output}
    for number in range(program.output, -1, -1):
        if number in wanted:
            wanted.update(program.nodes[number].args)
    return sorted(wanted)


def _is_identity(action: Ints) -> bool:
    return bool(((action == np.arange(len(action))) | (action == NONE)).all())


def _functional(before: Ints, after: Ints, count: int) -> Ints:
    """The action that moves before[k] to after[k] for all k, where -1 must meet -1."""
    if ((before < 0) != (after < 0)).any():
        raise _NotFollowed
    action = np.full(count, NONE)
    defined = before >= 0
    action[before[defined]] = after[defined]
    if (action[before[defined]] != after[defined]).any():
        raise _NotFollowed
    return action


def _map_action(node: Node, actions: list[Ints]) -> Ints:
    """table[v] moves to table[action(v)], for all tuples v of values that the actions know."""
    assert node.table is not None
    if all(np.array_equal(action, np.arange(len(action))) for action in actions):
        return np.arange(len(node.values))
    known = [np.flatnonzero(action >= 0) for action in actions]
    if not all(map(len, known)):
        return np.full(len(node.values), NONE)
    before = node.table[np.ix_(*known)]
    after = node.table[np.ix_(*(action[values] for action, values in zip(actions, known, strict=True)))]
    return _functional(before.ravel(), after.ravel(), len(node.values))


def _check_select(node: Node, keys: Ints, queries: Ints) -> None:
    """The table says of moved values what it says of the values."""
    assert node.table is not None
    of_key, of_query = np.flatnonzero(keys >= 0), np.flatnonzero(queries >= 0)
    before, after = node.table[np.ix_(of_key, of_query)], node.table[np.ix_(keys[of_key], queries[of_query])]
    if not np.array_equal(before, after):
        raise _NotFollowed


def _aggregate_action(node: Node, source: Node, action: Ints) -> tuple[Ints, bool]:
    """The default stays, a common value moves with its action; means stay, if no number is moved.

    Otherwise (the second result is False) no mean may ever be taken.
    """
    position = node.position()
    place = np.array([position.get(item, -1) for item in source.values], dtype=np.int64)
    known = np.flatnonzero(action >= 0)
    if len(np.unique(action[known])) < len(known):
        raise _NotFollowed  # values that differ may not become equal
    before, after = place[known], place[action[known]]
    numeric = np.array([is_number(item) for item in source.values], dtype=np.bool_)
    fixed = np.where(numeric[known], action[known] == known, ~numeric[action[known]])
    averages = bool(fixed.all())
    if averages:
        means = np.array([index for index, item in enumerate(node.values) if is_number(item)], dtype=np.int64)
        before, after = np.concatenate([before, means]), np.concatenate([after, means])
    if node.default >= 0:
        before, after = np.append(before, node.default), np.append(after, node.default)
    return _functional(before, after, len(node.values)), averages
