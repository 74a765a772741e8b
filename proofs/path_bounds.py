"""Bounds of linear functions of the residual stream, conditional on a class of a word graph (rule `paths`).

A class of position i is an edge: a state of the graph and the token read there. Every bound holds for all paths through
the class. A linear function c . x_i + k is moved backwards through the layers: neurons by lines above and below ReLU,
attention by least weighted means over paths (`path_minimum`), embeddings by their values. Bounds of queries, keys,
values and pre-activations may come from the whole graph (`Known`), in which more paths go through the class.

Rounding. With D = d_model + d_head + d_mlp + 64 and a = |c| . (magnitude of the stream at this place), counting in
2^-52 a (a dot product of N terms errs by at most N of its absolute terms). Neurons: out = W_out c: d_model; the
coefficients: 1; out . v: d_mlp + 1; b_in and b_out: d_mlp + d_model; the new c, whose error meets the magnitude before:
d_mlp + 3; adding up: 32. Attention: w = W_O c: d_model; values of layer 0: d_model + 4; al: 2 d_head + 4; b_O and
embedding: 2 d_model + 2; adding up heads: 128 + 32. All this, with factors of 1.01 for what is computed from rounded
numbers, is less than 6 D; 8 D are subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .balls import Floats, exp_near
from .core import Ints
from .format import require
from .path_graph import WordGraph, places
from .path_minimum import GRID, Prefixes, Weighted, spread, together
from .path_model import Attention, Neurons, PathModel

FARTHEST = -590.0
LESS, MORE = 1 - 2.0**-40, 1 + 2.0**-40
MAX_TABLE = 2**25
MAX_FUNCTIONS = 2**27
CHUNK = 2**17
HELD = 2**25
CALLS = 2**13
"""What it takes, at least, to look at one earlier position with one head, as so many meetings."""


@dataclass(frozen=True, eq=False)
class Box:
    """|x - mid| <= rad for a vector of each head [kind, head, d_head]; `kinds` [class]: which of them a class has."""

    mid: Floats
    rad: Floats
    kinds: Ints


@dataclass(frozen=True, eq=False)
class Powers:
    """low <= e^(score - top) <= high for a query of position i and keys at j < i: `low`, `high` [head, kind of i, all
    kinds of all j < i]; of the query's own key [head, class]. `top` depends on head and query class only."""

    low: Floats
    high: Floats
    own_low: Floats
    own_high: Floats


@dataclass(frozen=True, eq=False)
class Lines:
    """ReLU of pre-activations in [low, high]: at least `below` pre, at most `slope` pre + `shift` [class, neuron]."""

    low: Floats
    high: Floats
    below: Floats
    slope: Floats
    shift: Floats


def relu_lines(low: Floats, high: Floats) -> Lines:
    """Sound for any slopes in [0, 1]: ReLU is convex, so a line at or above it at both ends is above it between."""
    below = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, (high > -low).astype(np.float64)))
    slope = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / np.maximum(high - low, 2.0**-1000)))
    slope = np.clip(slope, 0.0, 1.0)
    at_low, at_high = np.maximum(low, 0) - slope * low, np.maximum(high, 0) - slope * high
    shift = np.maximum(at_low, at_high) + (np.abs(low) + np.abs(high)) * 2.0**-50
    return Lines(low, high, below, slope, np.where((low >= 0) | (high <= 0), 0.0, shift))


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a graph's classes from bounds on the whole graph: that holds for more paths, so for these too.

    `boxes`, `lines`: as `Bounds` of the whole graph has them; `places` [position][class]: its class there with the same
    refinement state and token. `shared`: whether these take the place of inner bounds of the graph's own.
    """

    boxes: dict[tuple[int, int, str], Box]
    lines: dict[tuple[int, int], Lines]
    places: list[Ints]
    shared: bool

    def box(self, number: int, i: int, letter: str) -> Box:
        whole = self.boxes[number, i, letter]
        used, kinds = np.unique(whole.kinds[self.places[i]], return_inverse=True)
        return Box(whole.mid[used], whole.rad[used], kinds.reshape(-1))

    def range(self, number: int, i: int) -> tuple[Floats, Floats]:
        """[class, neuron]: bounds of the pre-activations."""
        whole = self.lines[number, i]
        return whole.low[self.places[i]], whole.high[self.places[i]]

    def doubtful(self, number: int, i: int) -> Ints:
        """The neurons that may be on both sides of 0 in some class of i."""
        low, high = self.range(number, i)
        return np.flatnonzero(((low < 0) & (high > 0)).any(axis=0))


def interval(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """(mid, rad) of boxes that contain [low, high]."""
    mid = low / 2 + high / 2
    return mid, np.maximum(high - mid, mid - low) * (1 + 2.0**-50) + 2.0**-900


class Bounds:
    """All bounds of one leaf: a model at one length and a word graph of that length; `known`: what need not be found
    anew, if anything."""

    def __init__(self, model: PathModel, graph: WordGraph, known: Known | None = None) -> None:
        self.model, self.graph, self._known = model, graph, known
        self.boxes: dict[tuple[int, int, str], Box] = {}
        self.powers: dict[tuple[int, int], Powers] = {}
        self.lines: dict[tuple[int, int], Lines] = {}
        layers = model.config.layers
        attending = [number for number, layer in enumerate(layers) if layer.n_heads]
        self._deepest = attending[-1] if attending else -1
        self._mean = model.config.readout == "mean"

    def known(self, graph: WordGraph, shared: bool) -> Known:
        """What these bounds, of the whole graph and `prepared`, say of the classes of another graph."""
        return Known(self.boxes, self.lines, places(graph, self.graph), shared)

    def prepared(self) -> Bounds:
        """Itself, with the boxes and lines of all positions."""
        for i in range(self.model.n):
            self._prepare(i, self._mean or i == self.model.n - 1)
            for number in range(len(self.model.blocks)):
                self.powers.pop((number, i), None)
        return self

    def own(self, directions: Floats) -> list[tuple[int, Floats]]:
        """(i, [class of i, direction]): lower bounds of c . x_i after the last layer, c a row of `directions`
        [direction, d_model]. Positions: all if the read-out is a mean, else the last."""
        n, found = self.model.n, []
        last = len(self.model.blocks) - 1
        for i in range(n):
            final = self._mean or i == n - 1
            self._prepare(i, final)
            if final:
                k = np.zeros((1, len(directions)))
                found.append((i, self.after(last, i, directions[None], k)))
            self._forget(i)
        return found

    def _forget(self, i: int) -> None:
        """What is read at position i alone."""
        for number in range(len(self.model.blocks)):
            self.powers.pop((number, i), None)
            self.lines.pop((number, i), None)

    def along(self, directions: Floats) -> tuple[Floats, list[Floats]]:
        """For the read-out `last`: base [class of n - 1, direction], and for each j < n - 1 terms [class of j, class of
        n - 1, direction]. On a path that ends in class a, c . x_{n-1} after the last layer is at least base[a] + the
        sum over j of terms[j][class of j, a]: the last layer with attention is bounded along the path."""
        i = self.model.n - 1
        for position in range(self.model.n):
            self._prepare(position, position == i)
            if position < i:
                self._forget(position)
        c, k = directions[None], np.zeros((1, len(directions)))
        for number in reversed(range(len(self.model.blocks))):
            block = self.model.blocks[number]
            if block.neurons is not None:
                c, k = self._through_neurons(number, i, block.neurons, c, k)
            if block.attention is None:
                continue
            level, terms = self._spread(number, i, block.attention, c)
            bias = c @ block.attention.out_bias
            k = _less(k + bias + level, np.abs(k), block.rounding, np.abs(c) @ block.middle)
            return self.after(number - 1, i, c, k), terms
        classes = self.graph.steps[i].classes
        none = [np.zeros((step.classes, classes, len(directions))) for step in self.graph.steps[:i]]
        return np.broadcast_to(self._embedded(i, c, k), (classes, len(directions))), none

    def _spread(self, number: int, i: int, attention: Attention, c: Floats) -> tuple[Floats, list[Floats]]:
        """As `_attended`, not minimised over paths: [class, function], and terms [class of j, class, function]."""
        powers, classes = self.powers[number, i], self.graph.steps[i].classes
        mid, rad = self._keys(number, i, "V")
        chosen = np.arange(classes)
        heads = [
            self._weighted(number, i, h, c @ attention.out[h].T, mid[h], rad[h], powers, chosen)
            for h in range(attention.heads)
        ]
        level, terms = spread(heads)
        kinds = [self.boxes[number, j, "V"].kinds for j in range(i)]
        return level, [part[kind] for part, kind in zip(terms, kinds, strict=True)]

    def _prepare(self, i: int, final: bool) -> None:
        """What the bounds of later positions and of position i itself need of position i, layer by layer."""
        shared = self._known is not None and self._known.shared
        for number, block in enumerate(self.model.blocks):
            needed = final or (number < self._deepest and not shared)
            if block.attention is not None:
                for letter in "QKV" if needed else "KV":
                    self.boxes[number, i, letter] = self._box(number, i, letter, block.attention)
            if not needed:
                continue
            if block.attention is not None:
                self.powers[number, i] = self._powers(number, i, block.attention)
            if block.neurons is not None:
                self.lines[number, i] = self._lines(number, i, block.neurons)

    def cost(self, directions: int) -> int:
        """How often a function of a class meets another class or a coordinate: what `own`, `along` and `prepared` (no
        directions) take; and what it takes to begin. Raises `Rejected` if that cannot be held in memory."""
        layers = self.model.config.layers
        widest = max([self.model.config.d_model, *(max(layer.d_mlp, layer.d_head) for layer in layers)])
        heads, wide = max([0, *(x.n_heads for x in layers)]), max([0, *(x.d_head for x in layers)])
        total = seen = 0
        for i, step in enumerate(self.graph.steps):
            seen += step.classes
            functions = self._functions(directions, i)
            most = max(functions, default=0)
            ends = directions if i == self.model.n - 1 else 0
            held = max(step.classes * most * widest, step.classes * seen * max(heads, ends))
            held = max(held, seen * max(most, wide) * heads)
            require(held <= MAX_FUNCTIONS, f"{step.classes} classes at position {i} are too many for this model")
            for layer, count in zip(layers, functions, strict=True):
                if count:
                    total += step.classes * count * (layer.n_heads * seen + widest)
                    total += (i + 1) * CALLS * max(layer.n_heads, 1)
                    total += step.classes * seen * layer.n_heads * (layer.d_head // 8 + 1)
        return total

    def held(self) -> int:
        """At most how many numbers the boxes and lines of all positions are."""
        layers = self.model.config.layers
        each = sum(6 * layer.n_heads * layer.d_head + 5 * layer.d_mlp for layer in layers)
        return each * sum(step.classes for step in self.graph.steps)

    def _functions(self, directions: int, i: int) -> list[int]:
        """How many functions of a class of position i are moved through each layer's attention."""
        layers = self.model.config.layers
        final, shared = self._mean or i == self.model.n - 1, self._known is not None and self._known.shared
        found = [directions if final else 0] * len(layers)
        for number, layer in enumerate(layers):
            if not final and (shared or number > self._deepest):
                break
            for lower in range(0 if shared else number):
                found[lower] += 6 * layer.n_heads * layer.d_head
            if final or number < self._deepest:
                anew = 2 * len(self._anew(number, i))
                for lower in range(number + 1):
                    found[lower] += anew
        return found

    # --- linear functions, moved backwards -----------------------------------------------------------------------

    def after(self, number: int, i: int, c: Floats, k: Floats) -> Floats:
        """[class, function]: below c . x + k, x the stream at i after layer `number`, or before all layers (-1).
        `c` [class or 1, function, d_model], `k` [class or 1, function]."""
        if number < 0:
            return self._embedded(i, c, k)
        neurons = self.model.blocks[number].neurons
        if neurons is not None:
            c, k = self._through_neurons(number, i, neurons, c, k)
        return self.middle(number, i, c, k)

    def middle(self, number: int, i: int, c: Floats, k: Floats) -> Floats:
        """The same for the stream after the attention of layer `number`."""
        block = self.model.blocks[number]
        if block.attention is not None:
            mean = self._attended(number, i, block.attention, c)
            bias = c @ block.attention.out_bias
            k = _less(k + bias + mean, np.abs(k), block.rounding, np.abs(c) @ block.middle)
        return self.after(number - 1, i, c, k)

    def _embedded(self, i: int, c: Floats, k: Floats) -> Floats:
        x = self.model.embedded[i][self.graph.steps[i].token]
        found = np.matmul(c, x[:, :, None])[:, :, 0]
        size = np.abs(c) @ np.abs(self.model.embedded[i]).max(axis=0)
        return _less(k + found, np.abs(k), (c.shape[-1] + 16) * 2.0**-50, size)

    def _through_neurons(self, number: int, i: int, neurons: Neurons, c: Floats, k: Floats) -> tuple[Floats, Floats]:
        lines, block = self.lines[number, i], self.model.blocks[number]
        out = c @ neurons.out.T
        positive, negative = np.maximum(out, 0), np.minimum(out, 0)
        coefficients = positive * lines.below[:, None] + negative * lines.slope[:, None]
        shifts = np.matmul(negative, lines.shift[:, :, None])[:, :, 0]
        more = c @ neurons.out_bias + shifts + coefficients @ neurons.bias
        k = _less(k + more, np.abs(k), block.rounding, np.abs(c) @ block.after)
        return c + coefficients @ neurons.weight.T, k

    # --- what is found of a position beforehand ------------------------------------------------------------------

    def _lines(self, number: int, i: int, neurons: Neurons) -> Lines:
        if self._known is None:
            return relu_lines(*self._range(number, i, neurons.weight.T, neurons.bias, neurons.size, middle=True))
        low, high = self._known.range(number, i)
        some = self._anew(number, i)
        if len(some):
            c, k, size = neurons.weight.T[some], neurons.bias[some], neurons.size[some]
            least, most = self._range(number, i, c, k, size, middle=True)
            low[:, some], high[:, some] = np.maximum(low[:, some], least), np.minimum(high[:, some], most)
        return relu_lines(low, high)

    def _anew(self, number: int, i: int) -> Ints:
        """The neurons whose pre-activations are bounded on this graph itself."""
        width = self.model.config.layers[number].d_mlp
        if self._known is None or not width:
            return np.arange(width)
        if self._known.shared and number < len(self.model.blocks) - 1:
            return np.arange(0)
        return self._known.doubtful(number, i)

    def _range(self, number: int, i: int, c: Floats, k: Floats, size: Floats, middle: bool) -> tuple[Floats, Floats]:
        """([class, function], the same): bounds of functions c . x + k [function] that are at most `size` large."""
        both, add = np.concatenate([c, -c])[None], np.concatenate([k, -k])[None]
        found = self.middle(number, i, both, add) if middle else self.after(number, i, both, add)
        found = np.broadcast_to(found, (self.graph.steps[i].classes, found.shape[1]))
        low, high = np.maximum(found[:, : len(c)], -size), np.minimum(-found[:, len(c) :], size)
        require(bool((low <= high).all()), "internal error: a function's lower bound exceeds its upper bound")
        return low, high

    def _box(self, number: int, i: int, letter: str, attention: Attention) -> Box:
        """Queries, keys or values. In layer 0 the numbers of the tokens; their rounding errors are counted where they
        are used: of values in `Block.rounding`, of queries and keys in `_score_error`. At one position and layer all
        have the same kinds."""
        weight, bias, size = attention.weight[letter], attention.bias[letter], attention.size[letter]
        heads, width = bias.shape
        step = self.graph.steps[i]
        if number and self._known is not None and self._known.shared:
            return self._known.box(number, i, letter)
        if number == 0:
            tokens, kinds = np.unique(step.token, return_inverse=True)
            point = np.einsum("td,hde->the", self.model.embedded[i][tokens], weight) + bias
            return Box(point, np.zeros_like(point), kinds.reshape(-1))
        rows = weight.transpose(0, 2, 1).reshape(heads * width, -1)
        low, high = self._range(number - 1, i, rows, bias.reshape(-1), size.reshape(-1), middle=False)
        mid, rad = interval(low, high)
        shape = (step.classes, heads, width)
        return Box(mid.reshape(shape), rad.reshape(shape), np.arange(step.classes))

    # --- attention -----------------------------------------------------------------------------------------------

    def _keys(self, number: int, i: int, letter: str) -> tuple[Floats, Floats]:
        """(mid, rad) [head, all kinds of all j < i, d_head]."""
        boxes = [self.boxes[number, j, letter] for j in range(i)]
        empty = np.zeros((0, *self.boxes[number, i, letter].mid.shape[1:]))
        mid = np.concatenate([empty, *(box.mid for box in boxes)]).transpose(1, 0, 2)
        return mid, np.concatenate([empty, *(box.rad for box in boxes)]).transpose(1, 0, 2)

    def _powers(self, number: int, i: int, attention: Attention) -> Powers:
        """Intervals of e^(score - top). A score is scale q . (k - k') for a vector k' that depends on the query class
        only, which no softmax notices; k' near the mean key makes the error of q matter least."""
        query, key = self.boxes[number, i, "Q"], self.boxes[number, i, "K"]
        mid, rad = self._keys(number, i, "K")
        queries = len(query.mid)
        require(queries * mid.shape[1] * attention.heads <= MAX_TABLE, "too many pairs of classes at one position")
        q, q_rad = query.mid.transpose(1, 0, 2), query.rad.transpose(1, 0, 2)  # [head, query, d_head]
        own, own_rad = key.mid.transpose(1, 0, 2), key.rad.transpose(1, 0, 2)
        scores = np.concatenate([q @ mid.swapaxes(1, 2), (q * own).sum(axis=2, keepdims=True)], axis=2)
        center = attention.scale * scores
        radius = np.zeros_like(center)
        if number:
            shift = _shift(center, mid, own, attention.size["K"])
            for row in range(queries):
                here = (q[:, row, None], q_rad[:, row, None])
                radius[:, row, :-1] = _radius(*here, mid, rad, shift[:, row, None])
                radius[:, row, -1:] = _radius(*here, own[:, row, None], own_rad[:, row, None], shift[:, row, None])
        radius = abs(attention.scale) * radius + self._score_error(attention)[:, None, None]
        low, high = _powers(center, radius)
        return Powers(low[:, :, :-1], high[:, :, :-1], low[:, :, -1], high[:, :, -1])

    def _score_error(self, attention: Attention) -> Floats:
        """[head]: above the error of any computed bound of a score, S = |scale| |q| . |k| in magnitudes.

        In 2^-52 S: the points q and k of layer 0, 2.1 d_model + 10; scores, 1.1 d_head; radii, 10 d_head + 20; scale,
        sums and differences of at most six S, 24.
        """
        width = self.model.config.d_model + 4 * attention.out.shape[1] + 32
        size = (attention.size["Q"] * attention.size["K"]).sum(axis=1)
        return np.asarray(abs(attention.scale) * size * (width * 2.0**-49) + 2.0**-200)

    def _attended(self, number: int, i: int, attention: Attention, c: Floats) -> Floats:
        """[class, function]: below the sum over heads of the mean of w . v, w = W_O c."""
        powers, steps = self.powers[number, i], self.graph.steps
        classes = steps[i].classes
        mid, rad = self._keys(number, i, "V")
        widest = max(step.classes for step in steps[: i + 1])
        found = np.empty((classes, c.shape[1]))
        every = max(len(mid[0]), 1) * attention.heads
        rows = max(1, min(CHUNK // (widest * c.shape[1]), HELD // (every * c.shape[1])))
        for first in range(0, classes, rows):
            chosen = np.arange(first, min(first + rows, classes))
            some = c if len(c) == 1 else c[chosen]
            heads = [
                self._weighted(number, i, h, some @ attention.out[h].T, mid[h], rad[h], powers, chosen)
                for h in range(attention.heads)
            ]
            found[chosen] = together(heads)
        return found

    def _weighted(
        self, number: int, i: int, h: int, w: Floats, mid: Floats, rad: Floats, powers: Powers, chosen: Ints
    ) -> Weighted:
        """One head for the classes `chosen` of i; `w` [class or 1, function, d_head]."""
        boxes = [self.boxes[number, j, "V"] for j in range(i + 1)]
        ends = np.cumsum([0, *(len(box.mid) for box in boxes[:-1])])
        flat = w.reshape(-1, w.shape[2]).T
        values = mid @ flat
        own_mid, own_rad = boxes[i].mid[boxes[i].kinds[chosen], h], boxes[i].rad[boxes[i].kinds[chosen], h]
        own = np.matmul(w, own_mid[:, :, None])[:, :, 0]
        if number:
            values = values - rad @ np.abs(flat)
            own = own - np.matmul(np.abs(w), own_rad[:, :, None])[:, :, 0]
        values = (values - GRID).reshape(len(mid), *w.shape[:2])
        kind = self.boxes[number, i, "Q"].kinds[chosen]
        low, high = powers.low[h][kind].T[:, :, None], powers.high[h][kind].T[:, :, None]
        spans = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        paths = Prefixes(self.graph, i, [box.kinds for box in boxes[:-1]], self.graph.steps[i].source[chosen])
        return Weighted(
            paths,
            [values[span] for span in spans],
            [np.ascontiguousarray(low[span]) for span in spans],
            [np.ascontiguousarray(high[span]) for span in spans],
            own - GRID,
            powers.own_low[h][kind][:, None],
            powers.own_high[h][kind][:, None],
        )


def _less(total: Floats, k: Floats, rounding: float, size: Floats) -> Floats:
    """Below the true sum that was rounded to `total`: a few terms of which |k| is one and the others at most `size`."""
    return np.asarray(total - (k * 2.0**-48 + size * rounding + 2.0**-90))


def _radius(q: Floats, q_rad: Floats, key: Floats, rad: Floats, shift: Floats) -> Floats:
    """[head, key]: how far (q + dq) (k + dk - shift) can be from q (k - shift), for one query [head, 1, d_head]."""
    wide, apart = np.abs(q) + q_rad, np.abs(key - shift)
    found = rad @ wide.swapaxes(1, 2) + apart @ q_rad.swapaxes(1, 2)
    return np.asarray(found[:, :, 0])


def _shift(scores: Floats, mid: Floats, own: Floats, size: Floats) -> Floats:
    """[head, query, d_head]: the mean of the keys (of earlier positions, and the own one) by softmax of the scores."""
    weight = np.exp(scores - scores.max(axis=2, keepdims=True))
    weight /= weight.sum(axis=2, keepdims=True)
    shift = weight[:, :, :-1] @ mid + weight[:, :, -1:] * own
    return np.asarray(np.clip(shift, -size[:, None], size[:, None]))


def _powers(center: Floats, radius: Floats) -> tuple[Floats, Floats]:
    """(low, high) [head, query, key]: low <= e^(s - top) (1 - 2^-41) and high >= e^(s - top) (1 + 2^-41) for all s
    within `radius` of `center`, `top` of each head and query; powers below e^-590 are 0, or e^-590, instead.

    e^x is computed within 2^-44 of itself, and the difference from top, at most 590, is rounded by 2^-43.
    """
    high = center + radius
    top = high.max(axis=2, keepdims=True)
    above = exp_near(np.clip(high - top, FARTHEST, 0)) * MORE
    low = center - radius - top
    below = np.where(low >= FARTHEST, exp_near(np.clip(low, FARTHEST, 0)) * LESS, 0.0)
    return below, above
