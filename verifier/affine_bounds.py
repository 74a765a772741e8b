"""Affine bounds of a transformer's logits over regions of inputs, by linear bounds taken backward.

A linear function of the stream at a position is bounded below by one of the stream below, through each part of the
model (`affine_steps`), down to the embeddings, where its least value over the region is exact: the least entry of each
position's tokens, or a ball's corner. What a step's slopes rest on (scores, pre-activations, LayerNorm's input) is
bounded in the same way first. All regions of a batch, and all positions and rows, are done at once.

- `EmbeddingBall`s, and words: every step stays linear (`LinearAttention`), with errors of second order in the radius.
- `TokenSets`: everything is bounded for each token at a position separately (a class); attention reads other positions
  as tables over their classes (`TableAttention`). A region of few words is split into them.

Sound over the reals for the exact float32 weights. All in float64; each step takes from its rows' constants what its
rounding may add. Never NaN or infinite: softmax is read through differences to its greatest score.
Method: CROWN (Zhang et al., 2018) for the walk and the triangle; the rest is this project's (see the modules).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.errors import InputError
from ..models.program import LOGITS
from ..models.transformer import Transformer
from .affine_attention import Scores, Weights, ends
from .affine_circuit import Circuit
from .affine_lines import lines
from .affine_model import AffineModel, Attention, Neurons
from .affine_norm import Norm, centred
from .affine_regions import EmbeddingBall, Region, TokenSets, check_regions, points
from .affine_steps import TINY, LinearAttention, NeuronsStep, Read, TableAttention, dot
from .balls import Unsupported, check_arithmetic, enclose, exact, matmul

TABLES = 2**24
"""Numbers that rows for each pair of classes may have; beyond it scores are read through singular vectors."""
ENTRIES = 2**22
"""Numbers in one tensor, about."""
CREDITS = (0.4, 0.0)
"""Where a step chooses between linear bounds it does not know how much of their linear parts cancels below. All rows
are taken back under each of these guesses (the share of a linear part's range that is left); the best bound is kept."""
JOINT = 2048
"""At most so many scores of a layer are bounded by rows over all positions."""
OVERFLOW = "bounds overflow float64: the model's weights are too large; scale them down"
WORDS = 1024
"""Words in one batch."""
LEAVES = 64
"""A region of at most this many words is split into them."""


@dataclass(frozen=True, eq=False)
class OutputBounds:
    """low <= directions . logits <= high everywhere in the region: float64, [region, pos, direction], or
    [region, direction] for a model read out `last` or by its `mean`."""

    low: Tensor
    high: Tensor


def output_bounds(
    model: Transformer, regions: Region | Sequence[Region], directions: Tensor | None = None, *, leaves: int = LEAVES
) -> OutputBounds:
    """Bounds of the logits, or of linear functions of them, over each region.

    `regions`: one, or several of one length. `directions` [direction, d_vocab_out]: floating point; default: every
    logit. `leaves`: token regions of at most so many words are split into them.
    A single region (not in a list) gives bounds without the axis for regions.
    Raises `InputError` for regions or directions that do not fit the model, and weights that are not finite or so large
    that bounds would overflow.
    """
    check_arithmetic()
    single = isinstance(regions, (TokenSets, EmbeddingBall))
    wanted: list[Region] = [regions] if isinstance(regions, (TokenSets, EmbeddingBall)) else list(regions)
    n = check_regions(model, wanted)
    if model.config.rare:
        raise InputError(f"bounds over regions do not cover {' and '.join(model.config.rare)} yet")
    rows = _directions(directions, model.config.d_vocab_out)
    if isinstance(leaves, bool) or not isinstance(leaves, int) or leaves < 1:
        raise InputError(f"leaves must be an integer of at least 1, got {leaves!r}")
    with torch.no_grad():
        prepared = AffineModel(model, n)
        found = _of_parts(prepared, wanted, rows, leaves)
    low, high = torch.stack([x[0] for x in found]), torch.stack([x[1] for x in found])
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise InputError(OVERFLOW)
    return OutputBounds(low[0], high[0]) if single else OutputBounds(low, high)


def _directions(directions: Tensor | None, outputs: int) -> Tensor:
    if directions is None:
        return torch.eye(outputs, dtype=torch.float64)
    if not isinstance(directions, Tensor) or directions.dim() != 2 or directions.shape[1] != outputs:
        got = tuple(directions.shape) if isinstance(directions, Tensor) else directions
        raise InputError(f"directions must be a tensor [direction, d_vocab_out = {outputs}], got {got!r}")
    if not directions.is_floating_point() or not bool(torch.isfinite(directions).all()):
        raise InputError("directions must be finite floating-point numbers")
    return directions.detach().to(torch.float64)


def _of_parts(model: AffineModel, regions: Sequence[Region], rows: Tensor, leaves: int) -> list[tuple[Tensor, Tensor]]:
    """Each region's bounds, from the bounds of its parts, batched by how many classes they have."""
    parts: dict[int, list[tuple[int, Tensor, float]]] = {}
    singles: list[tuple[int, tuple[int, ...]]] = []
    positions = model.positions()
    for number, region in enumerate(regions):
        for part in _split(region, leaves):
            if (word := _word(part)) is not None:
                singles.append((number, word))
                continue
            centre, eps = points(model.embed, positions, part)
            parts.setdefault(centre.shape[1], []).append((number, centre, eps))
    found: list[tuple[int, Tensor, Tensor]] = []
    for at in range(0, len(singles), WORDS):
        chunk = singles[at : at + WORDS]
        low, high = _of_words(model, torch.tensor([word for _, word in chunk]), rows)
        found += [(number, *ends) for (number, _), *ends in zip(chunk, low, high, strict=True)]
    for some in parts.values():
        per = max(1, ENTRIES // (some[0][1].numel() * rows.shape[0] * 8))
        for at in range(0, len(some), per):
            group = some[at : at + per]
            eps_all = torch.tensor([x[2] for x in group], dtype=torch.float64)
            low, high = AffineBounds(model, torch.stack([x[1] for x in group]), eps_all).outputs(rows)
            found += [(x[0], *ends) for x, *ends in zip(group, low, high, strict=True)]
    joined: dict[int, tuple[Tensor, Tensor]] = {}
    for number, below, above in found:
        if number in joined:
            below, above = torch.minimum(below, joined[number][0]), torch.maximum(above, joined[number][1])
        joined[number] = (below, above)
    return [joined[number] for number in range(len(regions))]


def _word(region: Region) -> tuple[int, ...] | None:
    """The word that is all of a region."""
    if isinstance(region, EmbeddingBall):
        return region.tokens if region.eps == 0 else None
    return tuple(tokens[0] for tokens in region.sets) if region.words == 1 else None


def _of_words(model: AffineModel, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of single words [word, pos], by balls; where those grow too wide, as of balls of radius 0."""
    try:
        logits = enclose(model.transformer, tokens)[LOGITS]
    except Unsupported:
        centre = model.embed[tokens] + model.positions()
        return AffineBounds(model, centre[:, :, None], torch.zeros(len(tokens), dtype=torch.float64)).outputs(rows)
    found = matmul(logits, exact(rows.T))
    return found.low(), found.high()


def _split(region: Region, leaves: int) -> list[Region]:
    if isinstance(region, EmbeddingBall) or region.words > leaves:
        return [region]
    return [TokenSets((token,) for token in word) for word in itertools.product(*region.sets)]


class AffineBounds:
    """Of a model over a batch of regions: `centre` [batch, pos, class, d] embeddings that may stand at each position,
    or with one class all within `eps` [batch] of them."""

    def __init__(self, model: AffineModel, centre: Tensor, eps: Tensor) -> None:
        self.model, self.config = model, model.config
        self.batch, self.n, self.classes, self.d = centre.shape
        self.items = self.n * self.classes
        self.linear = self.classes == 1
        self.wide = self.linear and bool(eps.any())  # otherwise at most points are linear
        self.embedded = centre.reshape(self.batch, self.items, self.d)
        self.eps = eps[:, None, None]
        self.size = (self.embedded.abs() + self.eps) * (1 + 2.0**-40)
        self.bottom = self.size
        self.steps: list[NeuronsStep | LinearAttention | TableAttention] = []
        for block in model.blocks:
            if block.attention is not None:
                self._add_attention(block.attention)
            if block.neurons is not None:
                self._add_neurons(block.neurons)
        self.last = self._norm()

    def outputs(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """low, high: [batch, pos, direction], or [batch, direction]."""
        model, count = self.model, len(directions)
        rows = directions @ model.unembed.T
        rows = torch.cat([rows, -rows])
        bias = directions @ model.unembed_bias
        lost = 32 * model.rounding * ((directions.abs() + TINY) @ (model.unembed_bias_size + TINY))
        # the rows' own rounding, as that of coefficients of what they multiply
        size = self._read_size(self.last)
        error = (
            32 * model.rounding * ((size + TINY) @ ((directions.abs() + TINY) @ (model.unembed.abs() + TINY).T).T)
        )  # [batch, item, direction]
        mean = self.config.readout == "mean"
        if mean and self.linear:
            found = self._lower((rows / self.n).expand(self.batch, self.items, -1, -1), self.last, whole=True)
            error = error.mean(1)
        else:
            found = self._lower(rows.expand(self.batch, self.items, -1, -1), self.last)
            found = found - torch.cat([error, error], -1)
            found = found.view(self.batch, self.n, self.classes, -1).amin(2)
            error = torch.zeros_like(found[:, :1, :count]).squeeze(1)
            if self.config.readout == "each":
                error = error[:, None]
            elif mean:
                size = found.abs().mean(1)
                found = found.mean(1) - self.model.rounding * size
            else:
                found = found[:, -1]
        low, high = found[..., :count] - error, -found[..., count:] + error
        slack = lost + 2.0**-48 * (low.abs() + high.abs() + bias.abs())
        return low + bias - slack, high + bias + slack

    # Ranges

    def _lower(self, rows: Tensor, norm: Norm | None, whole: bool = False) -> Tensor:
        """Least values of rows [batch, item, k, d] of the stream above the steps so far, or of its LayerNorm:
        [batch, item, k]; `whole`: of the sums over positions [batch, k]."""
        heads = max((layer.n_heads for layer in self.config.layers), default=1)
        per = max(1, ENTRIES // (self.batch * self.items * self.items * max(heads * (1 if self.linear else 2), self.d)))
        return torch.cat([self._best(part, norm, whole) for part in torch.split(rows, per, 2)], -1)

    def _best(self, rows: Tensor, norm: Norm | None, whole: bool) -> Tensor:
        credits = CREDITS if self.wide else CREDITS[:1]
        return torch.stack([self._least(rows, norm, whole, credit) for credit in credits]).amax(0)

    def _least(self, c: Tensor, norm: Norm | None, whole: bool, credit: float) -> Tensor:
        rows = c.shape[2]
        const = torch.zeros(c.shape[:3], dtype=torch.float64)
        if norm is not None:
            c, const = norm.back(c, credit)
        spread = whole  # whether rows are of all positions
        if whole:
            const = const.sum(1)
        for step in reversed(self.steps):
            if isinstance(step, LinearAttention):
                held = const if spread else const.flatten(1)
                c, shift = step.back(c, spread, credit)
                const, spread = held + shift, True
            else:
                c, shift = step.back(c, credit)
                const = const + (shift.sum(1) if spread else shift)
        end = dot(c, self.embedded) - self.eps * c.abs().sum(-1)
        end = end - 8 * self.model.rounding * dot(c.abs() + TINY, self.bottom + TINY)
        if spread:
            const = const + end.sum(1)
            const = const if whole else const.view(self.batch, self.items, rows)
        else:
            const = const + end
        return const - self.model.rounding * 2.0**-2 * const.abs()

    def _range(self, rows: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """Low and high of rows [batch, item, k, d] (exact ones) of the stream or its LayerNorm."""
        found = self._lower(torch.cat([rows, -rows], 2), norm)
        low, high = found[..., : rows.shape[2]], -found[..., rows.shape[2] :]
        lost = 8 * self.model.rounding * dot(rows.abs(), self._read_size(norm))
        return low - lost, high + lost

    def _box(self, rows: Tensor, norm: Norm | None, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same as centre and radius, within `size` if that is given."""
        low, high = self._range(rows, norm)
        middle = (low + high) / 2
        radius = torch.maximum(high - middle, middle - low).clamp(min=0.0)
        radius = radius * (1 + 2.0**-50) + 2.0**-51 * middle.abs()
        return (middle, radius) if size is None else _within(middle, radius, size)

    def _read_size(self, norm: Norm | None) -> Tensor:
        """The magnitude [batch, item, d] of the stream or its LayerNorm."""
        if norm is None:
            return self.size
        middle, radius = norm.box()
        return (middle.abs() + radius) * (1 + 2.0**-40)

    def _same(self, rows: Tensor) -> Tensor:
        return rows.expand(self.batch, self.items, *rows.shape)

    def _norm(self) -> Norm | None:
        if self.model.eps is None:
            return None
        identity = torch.eye(self.d, dtype=torch.float64)
        whole = self.size + self.size.mean(-1, keepdim=True)
        middle, away = self._box(self._same(torch.cat([centred(identity), identity])), None)
        centre, radius = _within(middle[..., : self.d], away[..., : self.d], whole)
        stream = _within(middle[..., self.d :], away[..., self.d :], self.size)
        low, high = self._range(centred(centre)[:, :, None], None)
        lost = 8 * self.model.rounding * (centre.abs() * whole).sum(-1)
        along = (low[..., 0] - lost, high[..., 0] + lost)
        return Norm.of((centre, radius), along, stream, self.model.eps, self.size, self.model.rounding)

    def _read(self, norm: Norm | None) -> Read:
        identity = self._same(torch.eye(self.d, dtype=torch.float64))
        if norm is not None:
            middle, radius = norm.box()
            low, high = self._range(identity, norm)
            low, high = torch.maximum(low, middle - radius), torch.minimum(high, middle + radius)
            centre = (low + high) / 2
            radius = torch.maximum(high - centre, centre - low).clamp(min=0.0) * (1 + 2.0**-50)
            radius = radius + 2.0**-48 * centre.abs()
        else:
            centre, radius = self._box(identity, None, self.size)
            self.size = torch.minimum(self.size, (centre.abs() + radius) * (1 + 2.0**-40))
        return Read(centre, radius, (centre.abs() + radius) * (1 + 2.0**-40))

    # Steps

    def _add_neurons(self, neurons: Neurons) -> None:
        norm = self._norm()
        size = self._read_size(norm)
        inner = (size @ neurons.w_in.abs() + neurons.b_in_size) * (1 + 2.0**-40)
        low, high = self._range(self._same(neurons.w_in.T.contiguous()), norm)
        lost = 8 * self.model.rounding * inner
        low, high = (torch.minimum(torch.maximum(x + neurons.b_in, -inner), inner) for x in (low - lost, high + lost))
        made = lines(self.config.activation, low, torch.maximum(low, high))
        out, bias = neurons.w_out.abs(), neurons.b_out.abs()
        step_size = (self.size + inner @ out + bias) * (1 + 2.0**-40)
        self.steps.append(NeuronsStep(neurons, made, norm, step_size, self.model.rounding))
        self.size = (self.size + torch.maximum(low.abs(), high.abs()) @ out + bias) * (1 + 2.0**-40)

    def _add_attention(self, attention: Attention) -> None:
        norm = self._norm()
        read = self._read(norm)
        scores = self._scores(attention, read, norm)
        rounding = self.model.rounding
        if self.linear:
            step = LinearAttention(attention, read, scores, self._weights(scores, norm), norm, self.wide, rounding)
            self.steps.append(step)
        else:
            self.steps.append(self._tables(attention, read, scores, norm))
        more = torch.einsum("hed,bje->bjhd", attention.ov_size, read.size).amax(1, keepdim=True).sum(2)
        self.size = (self.size + more + attention.bias_size) * (1 + 2.0**-40)

    def _weights(self, scores: Scores, norm: Norm | None) -> Weights:
        """Softmax's weights; how far scores move apart is bounded by rows over all positions, if these are few."""
        weights = Weights.of(scores)
        batch, n, heads, _, d = scores.query.shape
        if n * n * heads > JOINT or not self.wide:
            return weights
        mean = weights.share[:, :, 0]  # [batch, i, head, j]
        pick = torch.eye(n, dtype=torch.float64) - mean[..., None, :]  # [batch, i, head, j, position]
        rows = torch.einsum("bihjp,bihd->bpihjd", pick, scores.key)
        places = torch.arange(n)
        at_query = scores.query - torch.einsum("bihk,bihkd->bihd", mean, scores.query)[:, :, :, None]
        rows[:, places, places] += at_query
        middle, radius = self._joint(rows.flatten(2, 4), norm)
        middle, radius = (x.view(batch, n, heads, n) for x in (middle, radius))
        at = (pick @ scores.fixed[..., None])[..., 0]
        rest = scores.rest + (mean * scores.rest).sum(-1, keepdim=True)
        return weights.within((radius + (middle - at).abs() + rest)[:, :, None])

    def _joint(self, rows: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """Middle and radius [batch, k] of sums over positions of rows [batch, position, k, d]."""
        found = self._lower(torch.cat([rows, -rows], 2), norm, whole=True)
        low, high = found[:, : rows.shape[2]], -found[:, rows.shape[2] :]
        lost = (32 * self.model.rounding * dot(rows.abs(), self._read_size(norm))).sum(1)
        return (low + high) / 2, ((high - low) / 2).clamp(min=0.0) * (1 + 2.0**-40) + lost

    def _tables(self, attention: Attention, read: Read, scores: Scores, norm: Norm | None) -> TableAttention:
        heads, d, d_head = attention.w_v.shape
        rows = self._same(attention.w_v.transpose(1, 2).reshape(heads * d_head, d))
        value = self._box(rows, norm)
        middle, radius = (x.view(*x.shape[:-1], heads, d_head) for x in value)
        least, most = ends(scores.middle, scores.radius)
        own = torch.arange(self.n).repeat_interleave(self.classes)[:, None] == torch.arange(self.n)

        def mine(x: Tensor) -> Tensor:
            shaped = x.view(*x.shape[:-1], self.n, self.classes)
            alone = torch.einsum("bihi->bih", x)[..., None, None]
            return torch.where(own[:, None, :, None], alone, shaped)

        return TableAttention(
            attention, read, (middle, radius), mine(least), mine(most), own, self.classes, self.model.rounding
        )

    def _scores(self, attention: Attention, read: Read, norm: Norm | None) -> Scores:
        """Around the centre of y's box; what all keys of a query have in common is left out."""
        y, qk = read.centre, attention.qk
        key = torch.einsum("bid,hde->bihe", y, qk) + attention.key  # [batch, i, head, d]
        seen = torch.einsum("bihe,bje->bihj", key, y)
        position = torch.arange(self.n).repeat_interleave(self.classes)
        future = (position[None] > position[:, None])[:, None] & self.config.causal
        weight = seen.masked_fill(future, -torch.inf).softmax(-1)
        size = torch.einsum("bid,hde->bihe", read.size, attention.qk_size) + attention.key_size
        size = 2 * torch.einsum("bihe,bje->bihj", size, read.size).amax(-1)
        circuit = self._singular(qk, read, norm)
        rest = circuit.rest(read) + 64 * self.model.rounding * size[..., None] + 2.0**-40
        if not self.linear and key.shape[2] * self.d * self.batch * self.items**2 > TABLES:
            along = self._box(self._same(attention.key), norm)
            radius = (circuit.first(read, weight, along, attention.key) + rest) * (1 + 2.0**-40)
            seen, radius = seen.masked_fill(future, -torch.inf), radius.masked_fill(future, 0.0)
            return Scores(seen, radius, rest, key, key[:, :, :, None], seen, size)
        at = torch.einsum("hde,bje->bjhd", qk, y)  # M y_j
        mean = torch.einsum("bihj,bjhd->bihd", weight, at)
        query = at.transpose(1, 2)[:, None] - mean[:, :, :, None]  # [batch, i, head, j, d]
        key_middle, key_radius = self._along(key, norm)
        query_middle, query_radius = self._at_query(query, read, norm)
        fixed = key_middle + query_middle
        middle = fixed - torch.einsum("bihjd,bid->bihj", query, y)
        radius = (key_radius + query_radius + rest) * (1 + 2.0**-40)
        return Scores(
            *(middle.masked_fill(future, -torch.inf), radius.masked_fill(future, 0.0)),
            *(rest, key, query.masked_fill(future[..., None], 0.0), fixed, size),
        )

    def _singular(self, qk: Tensor, read: Read, norm: Norm | None) -> Circuit:
        """How far y can be from the centre of its box along the singular vectors of each head's qk."""
        heads, d, _ = qk.shape
        rank = min(d, max(layer.d_head for layer in self.config.layers))
        left, sizes, right = torch.linalg.svd(qk)
        left, right = (left * sizes[:, None])[..., :rank], right[:, :rank].transpose(1, 2).contiguous()
        error = (qk - left @ right.transpose(1, 2)).abs() + 2.0**-48 * d * (left.abs() @ right.abs().transpose(1, 2))
        rows = torch.cat([left, right]).transpose(1, 2).reshape(-1, d)
        middle, radius = self._box(self._same(rows), norm)
        shift = (middle - torch.einsum("kd,bid->bik", rows, read.centre)).abs()
        lost = self.model.rounding * (read.centre.abs() @ rows.abs().T)
        away = (radius + shift + lost).view(self.batch, self.items, 2, heads, rank)
        return Circuit(qk, left, right, error, away[:, :, 0], away[:, :, 1], self.model.rounding)

    def _along(self, key: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """Box [batch, i, head, j] of key_i . y_j."""
        rows = key.flatten(1, 2)[:, None].expand(-1, self.items, -1, -1)  # [batch, j, (i, head), d]
        found = (x.view(*x.shape[:-1], *key.shape[1:3]).permute(0, 2, 3, 1) for x in self._box(rows, norm))
        middle, radius = found
        return middle, radius

    def _at_query(self, query: Tensor, read: Read, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """Box [batch, i, head, j] of query_ij . y_i."""
        middle, radius = self._box(query.flatten(2, 3), norm)
        return middle.view(query.shape[:-1]), radius.view(query.shape[:-1])


def _within(middle: Tensor, radius: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a box where nothing is above `size` in absolute value; at least that."""
    low, high = (torch.minimum(torch.maximum(x, -size), size) for x in (middle - radius, middle + radius))
    centre = (low + high) / 2
    return centre, (torch.maximum(high - centre, centre - low)) * (1 + 2.0**-48) + 2.0**-49 * centre.abs()
