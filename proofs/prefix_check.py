"""Rule `prefix_states`: a prefix program's output is true at every position of every word, of any length.

All states that reading a word can lead to are visited. A state has the profiles (values read as keys) of the last
positions, and, for each count of farther positions that a node needs, its value, known between -clip and clip only:
beyond, the state stands for all larger counts, and a step back leads to all that can follow.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TypeAlias

from .format import Json, Rejected, integer, record, require, show, within
from .prefix_program import FAR, PrefixNode, PrefixProgram, read_prefix_program

MAX_STATES = 50_000
MAX_STEPS = 1_000_000
MAX_CLIP = 1024
Profile: TypeAlias = tuple[int, ...]
Form: TypeAlias = tuple[int, int]
"""A count: the number of a `sign` or `modulo` node and -1, or of a `pick` and an index of its value node's values."""
State: TypeAlias = tuple[tuple[Profile, ...], tuple[int, ...]]


class _Again(Exception):
    """A profile or a count was met that is not among those the states are made of."""


@dataclass
class Exploration:
    """`profiles` and `counts` grow until the states need no others; then the visit is complete.

    `rows`: the counts as vectors over `profiles`, those that are multiples of each other once; with its modulus, or 0.
    """

    program: PrefixProgram
    clip: int
    profiles: list[Profile] = field(default_factory=list)
    counts: list[tuple[Form, Profile]] = field(default_factory=list)
    rows: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    places: dict[tuple[Form, Profile], tuple[int, int]] = field(default_factory=dict)
    weights: dict[tuple[Form, Profile, Profile, int], int] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        program = self.program
        nodes = program.nodes
        partial = [n for n, node in enumerate(nodes) if node.kind == "pick" or _has_gaps(node)]
        self.order = program.within([program.output, *partial])
        keys = {nodes[n].args[0] for n in self.order if nodes[n].kind == "select"}
        keys |= {nodes[n].args[1] for n in self.order if nodes[n].kind == "pick"}
        self.keys = sorted(keys)
        self.place_of_key = {node: place for place, node in enumerate(self.keys)}
        self.reach = program.reach
        self.queries = {n: self._queries(nodes[n]) for n in self.order if nodes[n].kind in ("sign", "modulo", "pick")}

    def _queries(self, node: PrefixNode) -> tuple[int, ...]:
        """The nodes that the selectors of a count read at the query position."""
        selectors = [node.args[0]] if node.kind == "pick" else list(node.args)
        found: set[int] = set()
        while selectors:
            this = self.program.nodes[selectors.pop()]
            if this.kind == "select":
                found.add(this.args[1])
            elif this.kind != "offset":
                selectors.extend(this.args)
        return tuple(sorted(found))

    def run(self) -> int:
        """The number of states. Raises `Rejected` if the output is not true somewhere, or that cannot be told."""
        while True:
            self._make_rows()
            try:
                return self._visit()
            except _Again:
                require(len(self.profiles) + len(self.counts) <= 4096, "too many counts")

    def _make_rows(self) -> None:
        self.rows, self.places = [], {}
        known: dict[tuple[tuple[int, ...], int], int] = {}
        for count in self.counts:
            form, query = count
            node = self.program.nodes[form[0]]
            modulus = node.number if node.kind == "modulo" else 0
            row = tuple(self._weight(form, profile, query, FAR) for profile in self.profiles)
            factor = 1
            if modulus:
                row = tuple(weight % modulus for weight in row)
            elif any(row):
                first = next(weight for weight in row if weight)
                factor = math.gcd(*row) * (1 if first > 0 else -1)
                row = tuple(weight // factor for weight in row)
            key = (row, modulus)
            if any(row):
                self.places[count] = (known.setdefault(key, len(known)), factor)
        self.rows = list(known)

    def _weight(self, form: Form, profile: Profile, query: Profile, distance: int) -> int:
        """What a position with this profile adds to a count, seen from a position with these query values."""
        asked = (form, profile, query, distance)
        if asked not in self.weights:
            self.weights[asked] = self._weigh(*asked)
        return self.weights[asked]

    def _weigh(self, form: Form, profile: Profile, query: Profile, distance: int) -> int:
        node = self.program.nodes[form[0]]
        of_query = dict(zip(self.queries[form[0]], query, strict=True))

        def key(number: int) -> int:
            return profile[self.place_of_key[number]]

        if node.kind == "pick":
            held = self.program.selects(node.args[0], key, of_query.__getitem__, distance)
            return int(held and key(node.args[1]) == form[1])
        return sum(
            coefficient * self.program.selects(selector, key, of_query.__getitem__, distance)
            for selector, coefficient in node.terms
        )

    # One step

    def _visit(self) -> int:
        start: State = ((), (0,) * len(self.rows))
        seen = {start}
        todo = [start]
        place = {profile: number for number, profile in enumerate(self.profiles)}
        while todo:
            window, counts = todo.pop()
            for token in range(len(self.program.vocab)):
                profile = self._read(window, counts, token)
                recent = (*window, profile)
                leaving = recent[0] if len(recent) > self.reach else None
                kept = recent[len(recent) - self.reach :] if len(recent) > self.reach else recent
                options: list[tuple[int, ...]] = [(count,) for count in counts]
                if leaving is not None:
                    if leaving not in place:
                        self.profiles.append(leaving)
                        raise _Again
                    options = [
                        self._after(n, count, row[place[leaving]], modulus)
                        for n, (count, (row, modulus)) in enumerate(zip(counts, self.rows, strict=True))
                    ]
                for after in itertools.product(*options):
                    self.steps += 1
                    require(self.steps <= MAX_STEPS, f"more than {MAX_STEPS} steps")
                    state: State = (kept, after)
                    if state not in seen:
                        seen.add(state)
                        todo.append(state)
                        require(len(seen) <= MAX_STATES, f"more than {MAX_STATES} states")
        return len(seen)

    def _after(self, number: int, count: int, change: int, modulus: int) -> tuple[int, ...]:
        """What a count may be after a change."""
        if modulus:
            return ((count + change) % modulus,)
        clip = self.clip

        def clipped(value: int) -> int:
            return max(-clip, min(clip, value))

        if count == clip and change < 0:
            return tuple(sorted({clipped(value) for value in range(max(-clip, clip + change), clip + 1)}))
        if count == -clip and change > 0:
            return tuple(sorted({clipped(value) for value in range(-clip, min(clip, -clip + change) + 1)}))
        return (clipped(count + change),)

    def _read(self, window: tuple[Profile, ...], counts: tuple[int, ...], token: int) -> Profile:
        """The profile of the next position; its output must be true."""
        program, values = self.program, dict[int, int]()
        for number in self.order:
            node = program.nodes[number]
            if node.kind == "tokens":
                values[number] = token
            elif node.kind == "map":
                assert node.table is not None
                values[number] = int(node.table[tuple(values[arg] for arg in node.args)])
            elif node.kind == "sign":
                low, high = self._total(number, -1, values, window, counts)
                require(
                    low is not None and low > 0 or high is not None and high < 0 or low == high == 0,
                    "clip is too small",
                )
                values[number] = 2 if low is not None and low > 0 else 0 if high is not None and high < 0 else 1
            elif node.kind == "modulo":
                low, _ = self._total(number, -1, values, window, counts)
                assert low is not None
                values[number] = low % node.number
            elif node.kind == "pick":
                values[number] = self._pick(number, values, window, counts)
            if values.get(number) == -1:
                raise Rejected(f"node {number} is undefined after some word")
        require(program.is_true(values[program.output]), "the output is not true after some word, as far as is known")
        return tuple(values[number] for number in self.keys)

    def _total(
        self, number: int, choice: int, values: dict[int, int], window: tuple[Profile, ...], counts: tuple[int, ...]
    ) -> tuple[int | None, int | None]:
        """Bounds of constant + count, None where there is none."""
        form = (number, choice)
        node = self.program.nodes[number]
        query = tuple(values[n] for n in self.queries[number])
        here = tuple(values.get(n, -1) for n in self.keys)  # a key that comes later in the program is not read by it
        near = node.constant + self._weight(form, here, query, 0)
        for distance, profile in enumerate(reversed(window), start=1):
            near += self._weight(form, profile, query, distance)
        if (form, query) not in self.places:
            if (form, query) not in self.counts:
                self.counts.append((form, query))
                raise _Again
            return near, near
        place, factor = self.places[form, query]
        far = counts[place]
        total = near + factor * far
        if node.kind == "modulo" or abs(far) < self.clip:
            return total, total
        return (total, None) if far * factor > 0 else (None, total)

    def _pick(self, number: int, values: dict[int, int], window: tuple[Profile, ...], counts: tuple[int, ...]) -> int:
        """The default, or the one value that is selected; -1 if several are, or it is not listed."""
        node = self.program.nodes[number]
        source = self.program.nodes[node.args[1]].values
        held = []
        for index in range(len(source)):
            low, high = self._total(number, index, values, window, counts)
            require(low is not None and low > 0 or high == 0, "clip is too small")
            if low is not None and low > 0:
                held.append(index)
        if not held:
            return node.number
        if len(held) > 1 or source[held[0]] not in node.values:
            return -1
        return node.values.index(source[held[0]])


def _has_gaps(node: PrefixNode) -> bool:
    return node.kind == "map" and node.table is not None and bool((node.table < 0).any())


def check_prefix_theorem(theorem: Json, proof: dict[str, Json]) -> None:
    """Accepts if the program's output is true in every state."""
    with within("theorem", "theorem"):
        program = read_prefix_theorem(theorem)
    with within("proof", "prefix_states"):
        item = record(proof, "proof", ("rule", "clip"))
        Exploration(program, integer(item["clip"], "clip", 1, MAX_CLIP)).run()


def read_prefix_theorem(data: Json) -> PrefixProgram:
    """The program of a theorem about every length."""
    item = record(data, "theorem", ("quantifier", "about", "domain", "body"))
    require(item["quantifier"] == "forall", f"unsupported quantifier {show(item['quantifier'])}")
    require(item["about"] == "programs", f"unsupported subject {show(item['about'])}")
    domain = record(item["domain"], "domain", ("kind", "vocab"))
    require(domain["kind"] == "every_length", f"unknown domain {show(domain['kind'])}")
    body = record(item["body"], "body", ("kind", "program"))
    require(body["kind"] == "prefix_ensures", f"unknown body {show(body['kind'])}")
    program = read_prefix_program(body["program"])
    require(domain["vocab"] == body["program"]["vocab"], "the domain has another vocab than the program")
    return program
