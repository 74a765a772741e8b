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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .balls import EXP_ERROR, Ball, Unsupported
from .balls import _exp_point as exp_point
from .bounded_model import Attention, BoundedModel, Neurons
from .word_graph import WordGraph, least_entering

ROOT_STEPS = 12
REPAIRS = 4
CLOSE = 2.0**-16
LEAST = -690.0
TINY = 2.0**-900
ENTRIES = 2**25
"""Numbers in one tensor, at most."""


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


@dataclass(frozen=True, eq=False)
class Margins:
    """Lower bounds along the paths of a graph, for each rival: of the paths of group g,

        const[g, rival] + the sum over positions j of tables[j][class of j, g, rival].

    With the read-out `last` the groups are the classes of the last position (tables: infinity for other classes there);
    with the mean there is one.
    """

    graph: WordGraph
    const: Tensor
    tables: list[Tensor]

    def least(self) -> Tensor:
        """[group, rival]: the least bound; up to rounding, which `Search` allows for."""
        return self.const + self.graph.least(self.tables)

    def of(self, group: int, rival: int) -> tuple[float, list[Tensor]]:
        """Constant, and a table [class] for each position."""
        return float(self.const[group, rival]), [table[:, group, rival] for table in self.tables]


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
    """

    def __init__(
        self,
        model: BoundedModel,
        graph: WordGraph,
        tick: Callable[[], None] = lambda: None,
        base: PathBounds | None = None,
        shared: bool = False,
    ) -> None:
        self.model, self.graph, self.n, self.tick = model, graph, graph.n, tick
        self.tokens = [torch.from_numpy(edges.token) for edges in graph.edges]
        self.base, self.places = base, graph.places_in(base.graph) if base else []
        self._ports: dict[int, list[Port]] = {}
        self._lines: dict[tuple[int, int], Lines] = {}
        self._weights: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        last = len(model.blocks) - 1
        for layer, block in enumerate(model.blocks):
            whole = layer < last or model.config.readout == "mean"
            if block.attention is not None:
                for i in range(self.n):
                    taken = self._shared_port(layer, i) if shared and layer else None
                    port = taken or self._port(layer, block.attention, i, whole or i == self.n - 1)
                    self._ports.setdefault(layer, []).append(port)
            if block.neurons is not None:
                for i in range(self.n) if whole else (self.n - 1,):
                    self._lines[layer, i] = self._relax(layer, block.neurons, i, shared and layer < last)

    def margins(self, label: int, rivals: list[int], beyond: float = 0.0) -> Margins:
        """Lower bounds of logit_label - logit_rival - beyond, times n if the read-out is the mean."""
        directions = (self.model.unembed[:, label, None] - self.model.unembed[:, rivals]).T
        const = self.model.unembed_bias[label] - self.model.unembed_bias[rivals] - beyond
        size = self.model.unembed_bias[label].abs() + self.model.unembed_bias[rivals].abs() + abs(beyond)
        last, end = len(self.model.blocks) - 1, self.n - 1
        if self.model.config.readout == "last":
            classes = len(self.tokens[end])
            c, none = directions.expand(classes, *directions.shape), torch.zeros(classes, len(rivals)).double()
            found, tables = self.along(end, c, none + const - 4 * self.model.rounding * size)
            tables = tables or [torch.zeros(len(t), classes, len(rivals), dtype=torch.float64) for t in self.tokens]
            others = ~torch.eye(classes, dtype=torch.bool)
            tables[end] = tables[end].masked_fill(others[..., None], torch.inf)
            return Margins(self.graph, found, tables)
        tables = []
        for i in range(self.n):
            none = torch.zeros(len(self.tokens[i]), len(rivals), dtype=torch.float64)
            c = directions.expand(len(none), *directions.shape)
            tables.append(self.lower(last, i, c, none)[:, None])
        return Margins(self.graph, (self.n * (const - 8 * self.model.rounding * size))[None], tables)

    def lower(self, layer: int, i: int, c: Tensor, const: Tensor, middle: bool = False) -> Tensor:
        """[class, k]: lower bounds of c [class, k, d_model] . x + const, x the stream at i after a layer (`middle`:
        after its attention), over all paths through each class of i."""
        heads = max(layer.n_heads for layer in self.model.config.layers)
        if c.shape[0] * c.shape[1] * max(map(len, self.tokens)) * heads > ENTRIES and c.shape[1] > 1:
            half = c.shape[1] // 2
            parts = ((c[:, :half], const[:, :half]), (c[:, half:], const[:, half:]))
            return torch.cat([self.lower(layer, i, *part, middle) for part in parts], 1)
        self.tick()
        for number in range(layer, -1, -1):
            c, const, tables = self._through(number, i, c, const, middle and number == layer)
            if tables:
                const = const + shortest(self.graph, i, tables).clamp(min=0.0) * (1 - 2.0**-40)
        return self._embedded(i, c, const)

    def along(self, i: int, c: Tensor, const: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `lower` after the last layer, along single paths: const [class, k], and for each j <= i a table
        [class of j, class, k] of what the last layer with attention adds there (none at all without attention)."""
        self.tick()
        kept: list[Tensor] = []
        for number in range(len(self.model.blocks) - 1, -1, -1):
            c, const, tables = self._through(number, i, c, const, False)
            if tables and kept:
                const = const + shortest(self.graph, i, tables).clamp(min=0.0) * (1 - 2.0**-40)
            kept = kept or tables
        return self._embedded(i, c, const), kept

    def _through(
        self, number: int, i: int, c: Tensor, const: Tensor, middle: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One layer back: coefficients and constant, and what its attention adds along single paths."""
        block = self.model.blocks[number]
        if block.neurons is not None and not middle:
            const = self._less(c, const, block.after, 16.0)
            c, const = self._through_neurons(block.neurons, self._lines[number, i], c, const)
        if block.attention is None:
            return c, const, []
        const = self._less(c, const, block.middle, 256.0)
        levels, tables = self._means(number, i, block.attention, c)
        return c, const + c @ block.attention.b_o + levels, tables

    def _embedded(self, i: int, c: Tensor, const: Tensor) -> Tensor:
        const = self._less(c, const, self.model.blocks[0].before, 16.0)
        return const + torch.einsum("akd,ad->ak", c, self.model.embedded[i, self.tokens[i]])

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

    def _range(self, layer: int, i: int, rows: Tensor, bias: Tensor, size: Tensor, middle: bool) -> Ball:
        """[class, row]: rows [row, d_model] . x + bias, within the magnitude `size` [row]."""
        classes = len(self.tokens[i])
        c = torch.cat([rows, -rows]).expand(classes, -1, -1)
        found = self.lower(layer, i, c, torch.cat([bias, -bias]).expand(classes, -1), middle)
        low = found[:, : len(rows)].clamp(min=-size, max=size)
        high = (-found[:, len(rows) :]).clamp(min=-size, max=size)
        mid = (low + high) / 2
        return Ball(mid, torch.maximum(high - mid, mid - low) * (1 + 2.0**-50) + 2.0**-1000)

    def _relax(self, layer: int, neurons: Neurons, i: int, shared: bool) -> Lines:
        known = self._shared_lines(layer, i)
        doubtful = torch.ones(neurons.w_in.shape[1], dtype=torch.bool)
        if known is not None:
            doubtful = ((known.low != known.slope) | (known.shift != 0.0)).any(0)
            if shared or not bool(doubtful.any()):
                return known
        ball = self._range(layer, i, neurons.w_in.T[doubtful], neurons.b_in[doubtful], neurons.size[doubtful], True)
        found = lines(ball.low(), ball.high())
        if known is None:
            return found
        for into, value in zip(
            (known.low, known.slope, known.shift), (found.low, found.slope, found.shift), strict=True
        ):
            into[:, doubtful] = value
        return known

    def _shared_port(self, layer: int, i: int) -> Port | None:
        """The base's, for the classes here."""
        if self.base is None:
            return None
        port, place = self.base._ports[layer][i], self.places[i]
        query = port.query.map(lambda t: t[:, place]) if port.query else None
        return Port(port.key.map(lambda t: t[:, place]), port.value.map(lambda t: t[:, place]), query)

    def _shared_lines(self, layer: int, i: int) -> Lines | None:
        """The base's, for the classes here (a copy)."""
        if self.base is None:
            return None
        known, place = self.base._lines[layer, i], self.places[i]
        return Lines(known.low[place], known.slope[place], known.shift[place])

    def _port(self, layer: int, attention: Attention, i: int, asked: bool) -> Port:
        (q_size, k_size, v_size), count = attention.sizes, 3 if asked else 2
        weights = (attention.w_k, attention.w_v, attention.w_q)[:count]
        biases = (attention.b_k, attention.b_v, attention.b_q)[:count]
        heads, d_model, d_head = attention.w_q.shape
        rows = torch.cat([w.transpose(1, 2).reshape(heads * d_head, d_model) for w in weights])
        bias = torch.cat([b.flatten() for b in biases])
        size = torch.cat([s.flatten() for s in (k_size, v_size, q_size)[:count]])
        if layer:
            ball = self._range(layer - 1, i, rows, bias, size, False)
        else:
            mid = self.model.embedded[i, self.tokens[i]] @ rows.T + bias
            ball = Ball(mid, (4 * self.model.rounding * size).expand_as(mid))
        parts = ball.map(lambda t: t.view(len(self.tokens[i]), count, heads, d_head).permute(1, 2, 0, 3))
        key, value, *query = (Ball(parts.mid[x], parts.rad[x]) for x in range(count))
        return Port(key, value, query[0] if query else None)

    # Attention

    def _bounds_of_weights(self, layer: int, i: int, attention: Attention) -> tuple[list[Tensor], list[Tensor]]:
        """For each key position up to i, [head, class of i, class of j]: bounds of the softmax's weights, not divided
        by their sum. Softmax does not change when q . k' is taken off all scores of a query; k' is the keys' mean."""
        if (layer, i) in self._weights:
            return self._weights[layer, i]
        query, keys = self._ports[layer][i].query, [port.key for port in self._ports[layer][: i + 1]]
        assert query is not None
        mid, rad = torch.cat([k.mid for k in keys], 1), torch.cat([k.rad for k in keys], 1)
        scores = torch.einsum("hae,hbe->hab", query.mid, mid)
        centre = torch.einsum("hab,hbe->hae", (scores * attention.scale.mid).softmax(-1), mid)
        away = (mid[:, None] - centre[:, :, None]).abs()
        spread = torch.einsum("hae,hbe->hab", query.mid.abs() + query.rad, rad)
        spread = spread + torch.einsum("hae,habe->hab", query.rad, away)
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
        lengths = [k.mid.shape[1] for k in keys]
        found = (list(torch.split(least, lengths, -1)), list(torch.split(most, lengths, -1)))
        if (layer < len(self.model.blocks) - 1 or self.model.config.readout == "mean") and sum(lengths) < 2**12:
            self._weights[layer, i] = found
        return found

    def _means(self, layer: int, i: int, attention: Attention, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the heads add to c . x at i: at least levels [class, k] + the sum over j <= i of tables
        [class of j, class, k] along any path, a sum that is never negative."""
        least, most = self._bounds_of_weights(layer, i, attention)
        w = torch.einsum("akd,hed->ahke", c, attention.w_o)
        values = []
        for port in self._ports[layer][: i + 1]:
            low = torch.einsum("hbe,ahke->bahk", port.value.mid, w)
            if layer:
                low -= torch.einsum("hbe,ahke->bahk", port.value.rad, w.abs()) * (1 + 2.0**-40)
            values.append(low)
        problem = _Mean(self.graph, i, values, least, most)
        level, gains = problem.level()
        return level.sum(1), [gain.sum(2) for gain in problem.beyond(gains)]


class _Mean:
    """The least softmax means of heads at a query position i over paths: `values` [class of j, class, head, k], weights
    between `least` and `most` [head, class, class of j], for each position j up to i."""

    def __init__(self, graph: WordGraph, i: int, values: list[Tensor], least: list[Tensor], most: list[Tensor]) -> None:
        self.graph, self.i, self.values = graph, i, values
        self.least, self.most = [[x.permute(2, 1, 0)[..., None].contiguous() for x in xs] for xs in (least, most)]
        self.floor = torch.stack([v.amin(0) for v in values]).amin(0)
        self.range = torch.stack([v.amax(0) for v in values]).amax(0) - self.floor

    def gains(self, level: Tensor) -> list[Tensor]:
        """At most e (v - level) for every weight e within its bounds [class of j, class, head, k]."""
        found = []
        for value, least, most in zip(self.values, self.least, self.most, strict=True):
            away = value - level
            found.append(torch.minimum(least * away, most * away))
        return found

    def level(self) -> tuple[Tensor, list[Tensor]]:
        """A level [class, head, k] that no path's mean is below, and the gains there."""
        guess = torch.nan_to_num(self._search().double(), nan=-torch.inf)
        guess = torch.maximum(torch.minimum(guess, self.floor + self.range), self.floor)
        guess = guess + self._step(guess, self.values, self.least, self.most) - 2.0**-40 * self.range
        guess = torch.maximum(torch.nan_to_num(guess, nan=-torch.inf), self.floor)
        for _ in range(REPAIRS):
            gains = self.gains(guess)
            sums = shortest(self.graph, self.i, gains)
            if not bool((sums < 0).any()):
                return guess, gains
            lower = guess + self._step(guess, self.values, self.least, self.most) - 2.0**-36 * self.range
            guess = torch.where(sums < 0, torch.maximum(torch.minimum(lower, guess), self.floor), guess)
        gains = self.gains(guess)
        sums = shortest(self.graph, self.i, gains)
        near = shortest(self.graph, self.i, self.least)
        lost = torch.where(near > TINY, sums / near.clamp(min=TINY), -torch.inf) * (1 + 2.0**-40)
        level = torch.maximum(self.floor, torch.where(sums < 0, guess + lost, guess))
        return level, self.gains(level)

    def _search(self) -> Tensor:
        """Near the least mean, in float32: Newton's method on the least sum of gains, by the least path's ratio."""
        small = torch.finfo(torch.float32).tiny
        values = [v.float() for v in self.values]
        least, most = [[x.float().clamp(min=small) for x in xs] for xs in (self.least, self.most)]
        total, level = torch.zeros(()), torch.zeros(())
        for value, weight in zip(values, most, strict=True):
            total, level = total + weight.sum(0), level + (value * weight).sum(0)
        level = level / total
        close = CLOSE * self.range.float()
        for number in range(ROOT_STEPS):
            step = self._step(level, values, least, most)
            level = level + step
            if number and bool((step.abs() <= close).all()):
                break
        return level

    def _step(self, level: Tensor, values: list[Tensor], least: list[Tensor], most: list[Tensor]) -> Tensor:
        """Newton's, from a level: the least path's gain over its weight."""
        gains, weights = [], []
        for value, low, high in zip(values, least, most, strict=True):
            away = value - level
            weights.append(torch.where(away >= 0, low, high))
            gains.append(weights[-1] * away)
        gain, weight = shortest_with(self.graph, self.i, gains, weights)
        return gain / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def beyond(self, gains: list[Tensor]) -> list[Tensor]:
        """What each class of j adds to the means beyond the level, at least [class of j, class, head, k]."""
        greatest = -shortest(self.graph, self.i, [-most for most in self.most])
        return [gain / greatest for gain in gains]


def shortest(graph: WordGraph, i: int, costs: list[Tensor]) -> Tensor:
    """[class of i, ...]: the least sum of costs [class of j, class of i, ...] on paths to each class of i."""
    best = torch.zeros(len(graph.nodes[0]), *costs[0].shape[1:], dtype=costs[0].dtype)
    for j in range(i):
        best = least_entering(best[graph.sources[j]] + costs[j], graph.entering[j])
    rows = torch.arange(best.shape[1])
    return best[graph.sources[i], rows] + costs[i][rows, rows]


def shortest_with(graph: WordGraph, i: int, costs: list[Tensor], carried: list[Tensor]) -> tuple[Tensor, Tensor]:
    """As `shortest`, and the sum of `carried` along the path that attains the least."""
    best = torch.zeros(len(graph.nodes[0]), *costs[0].shape[1:], dtype=costs[0].dtype)
    sums = torch.zeros_like(best)
    for j in range(i):
        step, summed = best[graph.sources[j]] + costs[j], sums[graph.sources[j]] + carried[j]
        first = graph.entering[j][0]
        if len(graph.entering[j]) > 8:
            best, at = step[graph.entering[j]].min(0)
            sums = summed[graph.entering[j]].gather(0, at[None])[0]
            continue
        best, sums = step[first], summed[first]
        for edges in graph.entering[j][1:]:
            other = step[edges]
            sums = torch.where(other < best, summed[edges], sums)
            best = torch.minimum(best, other)
    rows, sources = torch.arange(best.shape[1]), graph.sources[i]
    return best[sources, rows] + costs[i][rows, rows], sums[sources, rows] + carried[i][rows, rows]
