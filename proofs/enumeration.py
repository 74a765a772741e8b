"""Rule `enumerate`: the model is evaluated on every input with rigorous enclosures, and the body decided on each."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from .balls import Ball, Floats, check_arithmetic, point, softmax
from .core import Ints, evaluate
from .exact import grow
from .format import Json, Rejected, record, require, show, within
from .model import Model
from .theorem import Computes, Margin, NeverOutputs, Theorem

MAX_INPUTS = 2**20
MAX_ACTIVATIONS = 2**22


def check_enumeration(theorem: Theorem, proof: dict[str, Json]) -> None:
    """Accepts if every part of the body provably holds on every input of the domain."""
    with within("proof", "enumerate"):
        record(proof, "proof", ("rule",))
        theorem.model.config.require_plain()
        size = theorem.domain.size()
        require(size <= MAX_INPUTS, f"the domain has {size} inputs; enumeration is refused above {MAX_INPUTS}")
        check_arithmetic()
        network = Network(theorem.model)
        position = {item: index for index, item in enumerate(theorem.codec.vocab)}
        ids = np.array([position.get(item, -1) for item in theorem.domain.vocab], dtype=np.int64)
        for n in range(theorem.domain.lo, theorem.domain.hi + 1):
            for words in theorem.domain.words(n, network.batch(n + 1)):
                _check_words(theorem, network, ids, words)


def _check_words(theorem: Theorem, network: Network, ids: Ints, words: Ints) -> None:
    tokens = ids[words]
    require((tokens >= 0).all(), "a token of the domain is not in the codec's vocab")
    if theorem.codec.bos:
        tokens = np.concatenate([np.full((len(words), 1), len(theorem.codec.vocab)), tokens], axis=1)
    with np.errstate(all="ignore"):
        logits = network.logits(tokens)
        logits = logits[:, 1:] if theorem.codec.bos else logits
        low, high = logits.low(), logits.high()
        for part in theorem.parts:
            if isinstance(part, Computes):
                holds = _decodes_to(theorem, low, high, _expected(theorem, part, words))
            elif isinstance(part, NeverOutputs):
                holds = _never(theorem, low, high, part.outputs)
            else:
                require(isinstance(part, Margin), "enumerate proves computes, never_outputs and margin")
                assert isinstance(part, Margin)
                holds = _has_margin(low, high, part.at_least)
            if not holds.all():
                row, place = np.argwhere(~holds)[0]
                word = [theorem.domain.vocab[t] for t in words[row]]
                raise Rejected(f"{type(part).__name__} is not proved at position {place} of {show(word)}")


def _expected(theorem: Theorem, part: Computes, words: Ints) -> Ints:
    """Indices into the codec's outputs of what the program computes, [batch, n]."""
    program, codec = part.program, theorem.codec
    position = {item: index for index, item in enumerate(program.vocab)}
    ids = np.array([position.get(item, -1) for item in theorem.domain.vocab], dtype=np.int64)
    require((ids[words] >= 0).all(), "a token of the domain is not in the program's vocab")
    values = evaluate(program, ids[words])[program.output]
    outputs = {item: index for index, item in enumerate(codec.outputs)}
    index = np.array([outputs.get(y, -1) for y in program.nodes[program.output].values], dtype=np.int64)[values]
    require((index >= 0).all(), "the program gives an output that the codec does not have")
    return index


def _cells(theorem: Theorem) -> tuple[Floats, Floats]:
    """For a scalar codec: float64 intervals inside which logit 0 is strictly nearest to each output's point."""
    points = theorem.codec.points
    if len(points) == 1:
        return np.array([-np.inf]), np.array([np.inf])
    order = sorted(range(len(points)), key=lambda o: points[o])
    low, high = np.full(len(points), -np.inf), np.full(len(points), np.inf)
    for left, right in zip(order, order[1:], strict=False):
        middle = (points[left] + points[right]) / 2
        low[right], high[left] = _float(middle, 1), _float(middle, -1)
    return low, high


def _float(x: Fraction, direction: int) -> float:
    """A float64 strictly above (1) or below (-1) x."""
    try:
        near = x.numerator / x.denominator
    except OverflowError:
        return math.inf if direction * x > 0 else -math.inf if direction > 0 else math.inf
    return float(np.nextafter(np.nextafter(near, direction * np.inf), direction * np.inf))


def _decodes_to(theorem: Theorem, low: Floats, high: Floats, index: Ints) -> np.ndarray:
    if not theorem.codec.categorical:
        least, most = _cells(theorem)
        return np.asarray((low[..., 0] > least[index]) & (high[..., 0] < most[index]))
    own = np.take_along_axis(low, index[..., None], axis=-1)
    return _beats(own[..., 0], high, np.arange(high.shape[-1]) != index[..., None])


def _beats(own: Floats, high: Floats, rivals: np.ndarray) -> np.ndarray:
    """own > high at every rival."""
    return np.asarray(((own[..., None] > high) | ~rivals).all(axis=-1))


def _never(theorem: Theorem, low: Floats, high: Floats, outputs: tuple[object, ...]) -> np.ndarray:
    forbidden = np.array([y in set(outputs) for y in theorem.codec.outputs])
    if theorem.codec.categorical:
        best = np.where(forbidden, -np.inf, low).max(axis=-1)
        return _beats(best, high, np.broadcast_to(forbidden, high.shape))
    least, most = _cells(theorem)
    inside = (low[..., :1] > least) & (high[..., :1] < most)  # in the cell of an output that is allowed
    return np.asarray((inside & ~forbidden).any(axis=-1))


def _has_margin(low: Floats, high: Floats, at_least: Fraction) -> np.ndarray:
    if at_least <= 0:
        return np.ones(low.shape[:-1], dtype=np.bool_)  # the decoded logit is the largest, by definition
    index = low.argmax(axis=-1)[..., None]
    own = np.take_along_axis(low, index, axis=-1)
    gap = own - high
    rivals = np.arange(high.shape[-1]) != index
    safe = gap - np.abs(gap) * 2.0**-50  # at most the true difference
    return np.asarray(((safe > _float(at_least, 1)) | ~rivals).all(axis=-1))


class Network:
    """The model's function over the reals, on batches, in ball arithmetic (section 3 of the specification)."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.weights = {name: array.astype(np.float64) for name, array in model.weights.items()}

    def batch(self, n: int) -> int:
        """How many inputs of n positions to evaluate at once."""
        widest = max(
            [self.config.d_model, self.config.d_vocab_out]
            + [max(layer.d_mlp, layer.n_heads * max(n, layer.d_head)) for layer in self.config.layers]
        )
        return max(1, MAX_ACTIVATIONS // (n * widest))

    def logits(self, tokens: Ints) -> Ball:
        """[batch, pos, d_vocab_out] on token ids [batch, pos]."""
        n = tokens.shape[1]
        x = point(self.weights["embed.W_E"][tokens])
        if self.config.positional:
            x = x + point(self.weights["pos_embed.W_pos"][None, :n])
        visible = np.tril(np.ones((n, n), dtype=np.bool_)) if self.config.causal else np.ones((n, n), dtype=np.bool_)
        for number, layer in enumerate(self.config.layers):
            if layer.n_heads:
                x = x + self._attention(number, x, visible)
            if layer.d_mlp:
                x = x + self._mlp(number, x)
        return x @ point(self.weights["unembed.W_U"]) + point(self.weights["unembed.b_U"])

    def _attention(self, number: int, x: Ball, visible: np.ndarray) -> Ball:
        name = f"blocks.{number}.attn."
        layer = self.config.layers[number]

        def heads(letter: str) -> Ball:
            weight = self.weights[f"{name}W_{letter}"].transpose(1, 0, 2).reshape(self.config.d_model, -1)
            flat = x @ point(weight) + point(self.weights[f"{name}b_{letter}"].reshape(-1))
            return flat.moved((*x.mid.shape[:2], layer.n_heads, layer.d_head), (0, 2, 1, 3))

        scores = times(heads("Q") @ heads("K").swapped(), self._scale(number))
        mixed = softmax(scores, visible) @ heads("V")
        batch, _, n, _ = mixed.mid.shape
        flat = Ball(mixed.mid.transpose(0, 2, 1, 3), mixed.rad.transpose(0, 2, 1, 3))
        joined = flat.moved((batch, n, layer.n_heads * layer.d_head), (0, 1, 2))
        out = self.weights[f"{name}W_O"].reshape(-1, self.config.d_model)
        return joined @ point(out) + point(self.weights[f"{name}b_O"])

    def _scale(self, number: int) -> Ball:
        if self.config.scale is not None:
            return point(self.config.scale)
        near = 1.0 / math.sqrt(self.config.layers[number].d_head)  # two roundings of relative error 2^-53
        return Ball(np.asarray(near), np.asarray(near * 2.0**-50))

    def _mlp(self, number: int, x: Ball) -> Ball:
        name = f"blocks.{number}.mlp."
        post = (x @ point(self.weights[name + "W_in"]) + point(self.weights[name + "b_in"])).relu()
        return post @ point(self.weights[name + "W_out"]) + point(self.weights[name + "b_out"])


def times(x: Ball, factor: Ball) -> Ball:
    """Elementwise product."""
    mid = x.mid * factor.mid
    rad = (np.abs(x.mid) + x.rad) * factor.rad + x.rad * np.abs(factor.mid) + np.abs(mid) * 2.0**-52
    return Ball(mid, grow(rad))
