"""Bounds that are conditional on the state of a machine, for a transformer of any depth over all words of a graph.

A word is a path of a `WordGraph`; the *class* of a position is the path's edge there: a token, and what a machine
remembers of the tokens before it. `PathBounds` bounds linear functions of the residual stream at position i over all
paths through a class a, going backward through the layers at i itself, and reading other positions (keys, values)
through boxes that were found, in the same way, for each of their classes:

- attention: with scores s_j known up to intervals from the classes of the query and of j, and values at least v_j,
      mean = sum_j A_j v_j >= L   iff (by this bound)   min over paths of sum_j e_j (v_j - L) >= 0,
  e_j being the end of the weight's interval that the sign asks for: a shortest-path problem. The best L is its root
  (Dinkelbach). Several heads: each has its own L_h, and what a path has beyond them is added along the same path,
      sum_h mean_h >= sum_h L_h + min over paths of sum_j sum_h e_j (v_j - L_h) / (the greatest normaliser of h);
- ReLU: the usual lines, over the pre-activation's range given the class.

So whatever the machine determines costs nothing, and a word's length enters polynomially. One state is enough for one
layer; a finer machine, that is a better explanation of what a position knows, gives tighter bounds. Method: this
project; with one state, one layer and one head it is the separable sign test (`first_layer`). All in float64; each
step takes from the constant what its rounding may add (`BoundedModel.rounding` times magnitudes).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .balls import EXP_ERROR, Ball, Unsupported
from .balls import _exp_point as exp_point
from .bounded_model import Attention, BoundedModel, Neurons
from .path_means import Means, Weights, shortest
from .path_memory import Memory, Rows
from .path_places import Place
from .word_graph import WordGraph

LEAST = -590.0
"""Smaller powers of e count as 0, or as this one; as the checker takes them."""
ENTRIES = 2**18
"""Numbers in one tensor, about: more functions of all classes than that are bounded in parts."""


BATCH = 128
"""Classes that are looked at together, unless one position has more."""


class OutOfTime(Exception):
    """The deadline passed."""


@dataclass(frozen=True, eq=False)
class Port:
    """Keys, values and, where they are read, queries at one position: balls [head, class, d_head]."""

    key: Ball
    value: Ball
    query: Ball | None


@dataclass(frozen=True, eq=False)
class Lines:
    """For each class and neuron [class, neuron]: activation >= low pre, and <= slope pre + shift."""

    low: Tensor
    slope: Tensor
    shift: Tensor

    @classmethod
    def unknown(cls, classes: int, neurons: int) -> Lines:
        """Of which only `doubtful` makes sense."""
        none = torch.zeros(classes, neurons, dtype=torch.float64)
        return cls(none, none + 1, none.clone())

    def rows(self, classes: Tensor) -> Lines:
        """A copy, for some of the classes."""
        return Lines(self.low[classes], self.slope[classes], self.shift[classes])

    def doubtful(self) -> Tensor:
        """bool [class, neuron]: whether the activation is not known to be 0 or the pre-activation itself."""
        return (self.low != self.slope) | (self.shift != 0.0)


@dataclass(frozen=True, eq=False)
class Margins:
    """Lower bounds along the paths of a graph, for each pair of outputs: of the paths of group g,

        const[g, pair] + the sum over positions j of tables[j][class of j, g, pair].

    With the read-out `last` the groups are the classes of the last position (tables: infinity for other classes there);
    with the mean there is one.
    """

    graph: WordGraph
    const: Tensor
    tables: list[Tensor]

    def least(self) -> Tensor:
        """[group, pair]: the least bound; up to rounding, which `Search` allows for."""
        return self.const + self.graph.least(self.tables)

    def of(self, group: int, pair: int) -> tuple[float, list[Tensor]]:
        """Constant, and a table [class] for each position."""
        return float(self.const[group, pair]), [table[:, group, pair] for table in self.tables]

    def only(self, pairs: list[int]) -> Margins:
        """Some of the pairs."""
        return Margins(self.graph, self.const[:, pairs], [table[..., pairs] for table in self.tables])


def magnitude(const: float, tables: list[Tensor]) -> float:
    """At least the size of every finite sum of a constant and one entry of each table."""
    return abs(const) + sum(float(torch.where(torch.isfinite(table), table, 0.0).abs().max()) for table in tables)


def lines(low: Tensor, high: Tensor) -> Lines:
    """For pre-activations between these bounds [class, neuron]."""
    on, off = low >= 0, high <= 0
    slope = torch.where(on, 1.0, torch.where(off, 0.0, high / (high - low).clamp(min=2.0**-900)))
    shift = torch.maximum(-slope * low, high - slope * high) * (1 + 2.0**-48)
    return Lines(
        torch.where(on, 1.0, torch.where(off, 0.0, (high > -low).double())), slope, torch.where(on | off, 0.0, shift)
    )


class PathBounds:
    """Of one model over one graph. `tick` is called now and then, and may raise `OutOfTime`.

    `base`: the same over a graph that has all these paths, and more, with the same states. Neurons that are stable
    there need no range here; with `shared`, queries, keys, values and all layers' neurons but the last's are its.
    `memory`: of bounds that differ from these in their graphs only (for causal models).
    """

    def __init__(
        self,
        model: BoundedModel,
        graph: WordGraph,
        tick: Callable[[], None] = lambda: None,
        base: PathBounds | None = None,
        shared: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self.model, self.graph, self.n, self.tick = model, graph, graph.n, tick
        self.tokens = [torch.from_numpy(edges.token) for edges in graph.edges]
        self.base, self.places = base, graph.places_in(base.graph) if base else []
        self._shared, self._memory = shared, memory if model.config.causal else None
        self._numbers = self._memory.classes(graph) if self._memory else []
        self._ports: dict[int, list[Port]] = {}
        self._lines: dict[tuple[int, int], Lines] = {}
        last, every, final = len(model.blocks) - 1, list(range(self.n)), [self.n - 1]
        for layer, block in enumerate(model.blocks):
            whole = every if layer < last or model.config.readout == "mean" else final
            if block.attention is not None:
                taken = base is not None and shared and layer > 0
                self._ports[layer] = (
                    [self._shared_port(layer, i) for i in every]
                    if taken
                    else self._new_ports(layer, block.attention, whole)
                )
            if block.neurons is not None:
                for i, found in zip(whole, self._relax(layer, block.neurons, whole), strict=True):
                    self._lines[layer, i] = found

    def _find(self, name: tuple[object, ...], positions: list[int], find: Callable[[Place], Rows]) -> list[Rows]:
        """For each of the positions, [class, ...] each: what `find` finds for its classes, asked for those that nothing
        is known of."""
        counts = [len(self.tokens[i]) for i in positions]
        where = torch.repeat_interleave(torch.tensor(positions), torch.tensor(counts))
        classes = torch.cat([torch.arange(count) for count in counts])

        def ask(rows: Tensor) -> Rows:
            order = torch.argsort(where[rows], descending=True, stable=True)
            parts = [
                find(Place(self.graph, self.tokens, where[rows[some]], classes[rows[some]]))
                for some in torch.split(order, self._together(where[rows[order]].tolist()))
            ]
            back = torch.argsort(order)
            return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))

        if self._memory is None:
            found = ask(torch.arange(len(classes)))
        else:
            numbers = [number for i in positions for number in self._numbers[i]]
            found = self._memory.rows((self._shared, *name), numbers, ask)
        return list(zip(*(torch.split(part, counts) for part in found), strict=True))

    @staticmethod
    def _together(positions: list[int]) -> list[int]:
        """How many classes are looked at together: all of a position, and of as many as there is room for."""
        sizes = [0]
        for _, group in itertools.groupby(positions):
            count = len(list(group))
            if sizes[-1] and sizes[-1] + count > BATCH:
                sizes.append(0)
            sizes[-1] += count
        return sizes

    def margins(self, pairs: list[tuple[int, int]], beyond: float = 0.0) -> Margins:
        """For pairs of outputs, lower bounds of logit_first - logit_second - beyond, times n if the read-out is the
        mean."""
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
        bias = self.model.unembed_bias
        directions = (self.model.unembed[:, firsts] - self.model.unembed[:, seconds]).T
        const = bias[firsts] - bias[seconds] - beyond
        size = bias[firsts].abs() + bias[seconds].abs() + abs(beyond)
        end = self.n - 1
        if self.model.config.readout == "last":
            every = torch.arange(len(self.tokens[end]))
            at = Place(self.graph, self.tokens, torch.full_like(every, end), every)
            c, none = directions.expand(len(at), *directions.shape), torch.zeros(len(at), len(pairs)).double()
            found, tables = self.along(at, c, none + const - 4 * self.model.rounding * size)
            return Margins(self.graph, found, tables)
        found_at = self._find(("own", *pairs), list(range(self.n)), lambda at: (self._own(at, directions),))
        tables = [own[:, None] for (own,) in found_at]
        return Margins(self.graph, (self.n * (const - 8 * self.model.rounding * size))[None], tables)

    def _own(self, at: Place, directions: Tensor) -> Tensor:
        none = torch.zeros(len(at), len(directions), dtype=torch.float64)
        return self.lower(len(self.model.blocks) - 1, at, directions.expand(len(at), *directions.shape), none)

    def lower(self, layer: int, at: Place, c: Tensor, const: Tensor, middle: bool = False) -> Tensor:
        """[class, k]: lower bounds of c [class, k, d_model] . x + const, x the stream there after a layer (`middle`:
        after its attention), over all paths through each class."""
        heads = max(layer.n_heads for layer in self.model.config.layers)
        widest = len(at) * max(map(len, self.tokens[: at.groups[0][0] + 1])) * max(heads, 1)
        if c.shape[1] > (most := max(1, ENTRIES // widest)):
            count = -(-c.shape[1] // most)
            parts = zip(c.chunk(count, 1), const.chunk(count, 1), strict=True)
            return torch.cat([self.lower(layer, at, *part, middle) for part in parts], 1)
        self.tick()
        for number in range(layer, -1, -1):
            c, const, tables = self._through(number, at, c, const, middle and number == layer)
            if tables:
                const = const + self._least(number, at, tables)
        return self._embedded(at, c, const)

    def along(self, at: Place, c: Tensor, const: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `lower` after the last layer, along single paths: const [class, k], and for each j <= i a table
        [class of j, class, k] of what the last layer with attention adds there (infinity for other classes of i)."""
        self.tick()
        kept: list[Tensor] = []
        where = 0
        for number in range(len(self.model.blocks) - 1, -1, -1):
            c, const, tables = self._through(number, at, c, const, False)
            if tables and kept:
                const = const + self._least(number, at, tables)
            elif tables:
                kept, where = tables, number
        const = self._embedded(at, c, const)
        own = torch.full((len(at), len(at), c.shape[1]), torch.inf, dtype=torch.float64)
        own[torch.arange(len(at)), torch.arange(len(at))] = kept[-1] if kept else 0.0
        if not kept:
            return const, [*(torch.zeros(len(t), *own.shape[1:], dtype=torch.float64) for t in self.tokens[:-1]), own]
        found = []
        for j, table in enumerate(kept[:-1]):
            kind = torch.empty(len(self.tokens[j]), dtype=torch.int64)
            kind[at.prefixes.steps[j][1].flatten()] = at.keys_of(where).kinds[j].flatten()
            found.append(table[kind])
        return const, [*found, own]

    def _least(self, number: int, at: Place, tables: list[Tensor]) -> Tensor:
        """[class, k]: at most what a layer's heads add along any path, a sum that is never negative."""
        least = shortest(at.prefixes, at.keys_of(number).kinds, tables[:-1]) + tables[-1]
        return least.clamp(min=0.0) * (1 - 2.0**-40)

    def _through(
        self, number: int, at: Place, c: Tensor, const: Tensor, middle: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One layer back: coefficients and constant, and what its attention adds along single paths."""
        block = self.model.blocks[number]
        if block.neurons is not None and not middle:
            const = self._less(c, const, block.after, 16.0)
            c, const = self._through_neurons(block.neurons, self._lines_of(number, at), c, const)
        if block.attention is None:
            return c, const, []
        const = self._less(c, const, block.middle, 256.0)
        levels, tables = self._means(number, at, block.attention, c)
        return c, const + c @ block.attention.b_o + levels, tables

    def _embedded(self, at: Place, c: Tensor, const: Tensor) -> Tensor:
        const = self._less(c, const, self.model.blocks[0].before, 16.0)
        return const + torch.einsum("akd,ad->ak", c, self.model.embedded[at.positions, at.tokens])

    def _less(self, c: Tensor, const: Tensor, size: Tensor, factor: float) -> Tensor:
        """The constant, less what rounding may add to a step whose terms have the magnitudes `size` [d_model]."""
        return const - factor * self.model.rounding * (c.abs() @ size + const.abs())

    @staticmethod
    def _through_neurons(neurons: Neurons, lines: Lines, c: Tensor, const: Tensor) -> tuple[Tensor, Tensor]:
        out = c @ neurons.w_out.T  # [class, k, neuron]
        up, down = out.clamp(min=0.0), out.clamp(max=0.0)
        pre = up * lines.low[:, None] + down * lines.slope[:, None]
        const = const + c @ neurons.b_out + (down * lines.shift[:, None]).sum(-1) + pre @ neurons.b_in
        return c + pre @ neurons.w_in.T, const

    # Ranges, for each class

    def _range(self, layer: int, at: Place, c: Tensor, bias: Tensor, size: Tensor, middle: bool) -> Ball:
        """[class, k]: c [class, k, d_model] . x + bias, within the magnitude `size`, both [class, k]."""
        count = c.shape[1]
        found = self.lower(layer, at, torch.cat([c, -c], 1), torch.cat([bias, -bias], 1), middle)
        low = torch.maximum(torch.minimum(found[:, :count], size), -size)
        high = torch.maximum(torch.minimum(-found[:, count:], size), -size)
        mid = (low + high) / 2
        return Ball(mid, torch.maximum(high - mid, mid - low) * (1 + 2.0**-50) + 2.0**-1000)

    def _lines_of(self, layer: int, at: Place) -> Lines:
        parts = [self._lines[layer, i].rows(rows) for i, rows in at.groups]
        return Lines(*(torch.cat([getattr(part, name) for part in parts]) for name in ("low", "slope", "shift")))

    def _relax(self, layer: int, neurons: Neurons, positions: list[int]) -> list[Lines]:
        """Lines at these positions, by the base's where these are to be shared."""
        known: dict[int, Lines] = {}
        if self.base is not None:
            known = {i: self.base._lines[layer, i].rows(self.places[i]) for i in positions}
            if self._shared and layer < len(self.model.blocks) - 1:
                return list(known.values())

        def find(at: Place) -> Rows:
            if known:
                parts = [known[i].rows(rows) for i, rows in at.groups]
                here = Lines(
                    *(torch.cat([getattr(part, name) for part in parts]) for name in ("low", "slope", "shift"))
                )
            else:
                here = Lines.unknown(len(at), neurons.w_in.shape[1])
            self._tighten(layer, neurons, at, here)
            return here.low, here.slope, here.shift

        return [Lines(*found) for found in self._find(("lines", layer), positions, find)]

    def _tighten(self, layer: int, neurons: Neurons, at: Place, into: Lines) -> None:
        """Lines of the neurons that are not stable yet, class by class."""
        doubtful = into.doubtful()
        counts = doubtful.sum(1)
        first = (~doubtful).to(torch.int8).argsort(dim=1, stable=True)
        for length in range(1, int(counts.max()).bit_length() + 1, 2):  # classes with about as many such neurons
            rows = torch.nonzero((counts >= 2 ** (length - 1)) & (counts < 2 ** (length + 1))).flatten()
            if not len(rows):
                continue
            which = first[rows, : int(counts[rows].max())]
            c, bias, size = neurons.w_in.T[which], neurons.b_in[which], neurons.size[which]
            ball = self._range(layer, at.part(rows), c, bias, size, True)
            found = lines(ball.low(), ball.high())
            meant = doubtful[rows[:, None], which]
            place = rows[:, None].expand_as(which)[meant], which[meant]
            into.low[place], into.slope[place], into.shift[place] = (
                part[meant] for part in (found.low, found.slope, found.shift)
            )

    def _shared_port(self, layer: int, i: int) -> Port:
        """The base's, for the classes here."""
        assert self.base is not None
        port, place = self.base._ports[layer][i], self.places[i]
        query = port.query.map(lambda t: t[:, place]) if port.query else None
        return Port(port.key.map(lambda t: t[:, place]), port.value.map(lambda t: t[:, place]), query)

    def _new_ports(self, layer: int, attention: Attention, asked: list[int]) -> list[Port]:
        """Keys and values of all positions, and the queries of those `asked`."""
        found = {
            i: port
            for some in ([i for i in range(self.n) if i not in asked], asked)
            if some
            for i, port in zip(some, self._some_ports(layer, attention, some, some is asked), strict=True)
        }
        return [found[i] for i in range(self.n)]

    def _some_ports(self, layer: int, attention: Attention, positions: list[int], asked: bool) -> list[Port]:
        (q_size, k_size, v_size), count = attention.sizes, 3 if asked else 2
        weights = (attention.w_k, attention.w_v, attention.w_q)[:count]
        biases = (attention.b_k, attention.b_v, attention.b_q)[:count]
        heads, d_model, d_head = attention.w_q.shape
        rows = torch.cat([w.transpose(1, 2).reshape(heads * d_head, d_model) for w in weights])
        bias = torch.cat([b.flatten() for b in biases])
        size = torch.cat([s.flatten() for s in (k_size, v_size, q_size)[:count]])

        def find(at: Place) -> Rows:
            c, k, sizes = (t.expand(len(at), *t.shape) for t in (rows, bias, size))
            found = self._range(layer - 1, at, c, k, sizes, False)
            return found.mid, found.rad

        if layer:
            balls = [Ball(*found) for found in self._find(("port", layer, count), positions, find)]
        else:
            mids = [self.model.embedded[i, self.tokens[i]] @ rows.T + bias for i in positions]
            balls = [Ball(mid, (4 * self.model.rounding * size).expand_as(mid)) for mid in mids]
        ports = []
        for ball in balls:
            parts = ball.map(lambda t: t.view(len(t), count, heads, d_head).permute(1, 2, 0, 3))
            key, value, *query = (Ball(parts.mid[x], parts.rad[x]) for x in range(count))
            ports.append(Port(key, value, query[0] if query else None))
        return ports

    def _of_rows(self, layer: int, at: Place, which: str) -> Ball:
        """Queries, keys or values [head, row, d_head] of the rows' own classes."""
        parts = [_picked(getattr(self._ports[layer][i], which), rows) for i, rows in at.groups]
        return Ball(torch.cat([part.mid for part in parts], 1), torch.cat([part.rad for part in parts], 1))

    # Attention

    def _weights(self, layer: int, at: Place, attention: Attention) -> Weights:
        """Bounds of the softmax's weights, not divided by their sum. Softmax does not change when q . k' is taken off
        all scores of a query; k' is the keys' mean."""
        if layer in at.weights:
            return at.weights[layer]
        chosen, active = at.keys_of(layer).chosen, at.prefixes.active
        query, own = self._of_rows(layer, at, "query"), self._of_rows(layer, at, "key")
        keys = [_picked(self._ports[layer][j].key, classes) for j, classes in enumerate(chosen)]
        ends = list(itertools.accumulate(map(len, chosen), initial=0))
        wide, diagonal = query.mid.abs() + query.rad, "hae,hae->ha"
        scores = torch.einsum(diagonal, query.mid, own.mid)[..., None].repeat(1, 1, ends[-1] + 1)
        met = torch.zeros(len(at), ends[-1] + 1, dtype=torch.bool)
        met[:, -1] = True
        for key, count, first, end in zip(keys, active, ends, ends[1:], strict=False):
            scores[:, :count, first:end] = torch.einsum("hae,hbe->hab", query.mid[:, :count], key.mid)
            met[:count, first:end] = True
        share = (scores * attention.scale.mid).masked_fill(~met, -torch.inf).softmax(-1)
        centre = share[..., -1:] * own.mid
        for key, count, first, end in zip(keys, active, ends, ends[1:], strict=False):
            centre[:, :count] += torch.einsum("hab,hbe->hae", share[:, :count, first:end], key.mid)
        spread = torch.zeros_like(scores)
        spread[..., -1] = torch.einsum(diagonal, wide, own.rad) + torch.einsum(
            diagonal, query.rad, (own.mid - centre).abs()
        )
        for key, count, first, end in zip(keys, active, ends, ends[1:], strict=False):
            away = (key.mid[:, None] - centre[:, :count, None]).abs()
            spread[:, :count, first:end] = torch.einsum("hae,hbe->hab", wide[:, :count], key.rad) + torch.einsum(
                "hae,habe->hab", query.rad[:, :count], away
            )
        sizes = (attention.sizes[0] * attention.sizes[1]).sum(-1)[:, None, None]
        spread = spread * (1 + 2.0**-40) + 32 * self.model.rounding * sizes
        top = scores.amax(-1, keepdim=True)
        middle, scale = (scores - top) * attention.scale.mid, attention.scale.mid.abs()
        spread = (spread * scale + middle.abs() * 2.0**-44) * (1 + 2.0**-40)
        if not bool(torch.isfinite(spread).all()):
            raise Unsupported("float64 bounds overflow in the scores: the weights are too large")
        low, high = middle - spread, middle + spread
        ceiling = high.amax(-1, keepdim=True).clamp(min=0.0)  # the greatest is at most e^0
        low, high = low - ceiling - ceiling * 2.0**-50, high - ceiling + ceiling * 2.0**-50
        most = exp_point(high.clamp(min=LEAST, max=1.0)) * (1 + 4 * EXP_ERROR)
        least = exp_point(low.clamp(min=LEAST, max=1.0)) * (1 - 4 * EXP_ERROR)
        least = torch.where(low < LEAST, 0.0, least)
        least, most = (x.permute(2, 1, 0)[..., None].contiguous() for x in (least, most))
        spans = list(zip(ends, ends[1:], active, strict=False))
        low_before, high_before = ([side[first:end, :count] for first, end, count in spans] for side in (least, most))
        at.weights[layer] = Weights(low_before, high_before, least[-1], most[-1])
        return at.weights[layer]

    def _means(self, layer: int, at: Place, attention: Attention, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the heads add to c . x: at least levels [class, k] + the sum along any path of tables [kind of j, active
        class, k], one for each j before, and of one for the class itself [class, k]; that sum is never negative."""
        weights, keys = self._weights(layer, at, attention), at.keys_of(layer)
        w = torch.einsum("akd,hed->ahke", c, attention.w_o)
        size = w.abs() if layer else w
        values = []
        for port, chosen, count in zip(self._ports[layer], keys.chosen, at.prefixes.active, strict=False):
            low = torch.einsum("hbe,ahke->bahk", port.value.mid[:, chosen], w[:count])
            if layer:
                low -= torch.einsum("hbe,ahke->bahk", port.value.rad[:, chosen], size[:count]) * (1 + 2.0**-40)
            values.append(low.contiguous())
        value = self._of_rows(layer, at, "value")
        own = torch.einsum("hae,ahke->ahk", value.mid, w)
        if layer:
            own -= torch.einsum("hae,ahke->ahk", value.rad, size) * (1 + 2.0**-40)
        problem = Means(at.prefixes, keys, values, own, weights)
        level, gains = problem.level()
        return level.sum(1), [gain.sum(-2) for gain in problem.beyond(gains)]


def _picked(ball: Ball, classes: Tensor) -> Ball:
    """[head, class, d_head]: of these classes."""
    return ball.map(lambda t: t[:, classes])
