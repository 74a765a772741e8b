"""A one-layer model as engine `low_rank` sees it: tables of its tokens, in float64 (bounds are the checker's affair).

Nanda et al., Progress measures for grokking via mechanistic interpretability, 2023: what the neurons of such a model
read and write spans few directions. With x the stream before them at the last position, x = mean + base + sum over
heads and positions of attention times value.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ..models.config import TransformerConfig
from ..models.transformer import Transformer
from .first_layer import Floats, Integers

Flags = npt.NDArray[np.bool_]
LEAST_SUM = 2.0**-390


class Operations:
    """How many so far: multiply-adds of products, and numbers computed otherwise. A decomposition of a symmetric n x n
    matrix counts as 4.5 n^3 multiply-adds (Golub and Van Loan, Matrix Computations, section 8.3)."""

    def __init__(self) -> None:
        self.count = 0

    def product(self, x: Floats, y: Floats) -> Floats:
        found = x @ y
        self.count += found.size * x.shape[-1]
        return np.asarray(found)

    def of(self, array: Floats, each: int = 1) -> Floats:
        """An array that was computed from numbers, `each` of them for an entry."""
        self.count += array.size * each
        return array

    def symmetric(self, matrix: Floats) -> tuple[Floats, Floats]:
        """Eigenvalues, the greatest first, and eigenvectors as columns."""
        self.count += 9 * len(matrix) ** 3 // 2
        values, vectors = np.linalg.eigh(matrix)
        return values[::-1], vectors[:, ::-1]


def obstacle(config: TransformerConfig) -> str | None:
    """Why a model is not of this kind; None if it is."""
    if len(config.layers) != 1:
        return f"low-rank factors are for one layer; the model has {len(config.layers)}"
    if config.rare:
        return f"low-rank factors are not for {' and '.join(config.rare)}"
    if config.layer_norm is not None:
        return "low-rank factors are for models without LayerNorm"
    if config.activation != "relu":
        return f"low-rank factors are for the activation 'relu'; the model has {config.activation!r}"
    if config.readout != "last":
        return f"low-rank factors are for the read-out 'last'; the model has {config.readout!r}"
    return None


class Folded:
    """The parameters in float64, parts that the model lacks as zeros."""

    def __init__(self, model: Transformer, operations: Operations) -> None:
        self.config, self.operations = model.config, operations
        layer, d = model.config.layers[0], model.config.d_model
        self.n_heads, self.d_mlp, self.d = layer.n_heads, layer.d_mlp, d

        def weight(name: str, *shape: int) -> Floats:
            lacks = (name.startswith("attn.") and not layer.n_heads) or (name.startswith("mlp.") and not layer.d_mlp)
            if lacks:
                return np.zeros(shape)
            stored = name if "embed" in name else f"blocks.0.{name}"
            return model.parameter(stored).detach().to(torch.float64).numpy()

        self.embed = weight("embed.W_E")
        self.position = weight("pos_embed.W_pos") if model.config.positional == "learned" else None
        heads = dict.fromkeys("QKV", (layer.n_heads, d, layer.d_head))
        self.attn = {letter: weight(f"attn.W_{letter}", *shape) for letter, shape in heads.items()}
        self.bias = {letter: weight(f"attn.b_{letter}", layer.n_heads, layer.d_head) for letter in "QKV"}
        self.W_O, self.b_O = weight("attn.W_O", layer.n_heads, layer.d_head, d), weight("attn.b_O", d)
        self.W_in, self.b_in = weight("mlp.W_in", d, layer.d_mlp), weight("mlp.b_in", layer.d_mlp)
        self.W_out, self.b_out = weight("mlp.W_out", layer.d_mlp, d), weight("mlp.b_out", d)
        self.W_U, self.b_U = weight("unembed.W_U"), weight("unembed.b_U")

    @cached_property
    def metric(self) -> Floats:
        """W_in W_in^T + 1: lengths of what neurons and logits see of the stream."""
        return self.operations.product(self.W_in, self.W_in.T) + np.eye(self.d)

    @cached_property
    def written(self) -> Floats:
        """W_out W_U."""
        return self.operations.product(self.W_out, self.W_U)


class TokenTables:
    """Of each token at each position a row: the power of its score [head][query, row], what its value, less the head's
    mean value, writes to the stream (`written` [head][row, d_model]), and of each query what it adds to the stream
    always, less the `mean` [query, d_model]. Of each word `rows` [word, n] and `query` [word]."""

    def __init__(self, folded: Folded, ids: Integers) -> None:
        self.folded, self.operations, self.n = folded, folded.operations, ids.shape[1]
        product = self.operations.product
        tokens = [np.unique(column) for column in ids.T]
        starts = np.cumsum([0, *(len(found) for found in tokens)])
        self.rows = np.stack(
            [
                start + np.searchsorted(found, column)
                for start, found, column in zip(starts, tokens, ids.T, strict=False)
            ],
            axis=1,
        )
        self.query = self.rows[:, -1] - starts[-2]
        x = folded.embed[np.concatenate(tokens)]
        if folded.position is not None:
            x = x + folded.position[np.repeat(np.arange(self.n), [len(found) for found in tokens])]
        last = x[starts[-2] :]
        base = last + folded.b_O
        scale = folded.config.scale(0) if folded.n_heads else 1.0
        self.powers: list[Floats] = []
        self.written: list[Floats] = []
        for h in range(folded.n_heads):
            query = product(last, folded.attn["Q"][h]) + folded.bias["Q"][h]
            scores = product(product(query, folded.attn["K"][h].T), x.T) * scale
            self.powers.append(self.operations.of(np.exp(scores - scores.max(axis=1, keepdims=True)), 40))
            value = product(x, folded.attn["V"][h]) + folded.bias["V"][h]
            middle = value.mean(axis=0)
            self.written.append(product(value - middle, folded.W_O[h]))
            base = base + middle @ folded.W_O[h]
        self.mean = base.mean(axis=0)
        self.base = base - self.mean

    def attention(self) -> tuple[Floats, Flags]:
        """[head, word, position]; and of which words it is known: all scores of the others are too far below the
        greatest of any token."""
        power = np.zeros((len(self.powers), *self.rows.shape))
        for head, found in enumerate(self.powers):
            power[head] = found[self.query[:, None], self.rows]
        total = power.sum(axis=-1, keepdims=True)
        known = total > LEAST_SUM
        return self.operations.of(power / np.where(known, total, 1.0), 2), np.asarray(known[..., 0].all(axis=0))

    def summed(self, tables: list[Floats], attention: Floats, some: Integers | slice) -> Floats:
        """[word, ...]: sum over heads and positions of attention times a table's rows."""
        rows = self.rows[some]
        shape = tables[0].shape[1] if tables else 0
        found = np.zeros((len(rows), shape))
        for table, weights in zip(tables, attention, strict=True):
            found += (weights[:, None, :] @ table[rows])[:, 0]
        self.operations.count += len(tables) * rows.size * shape
        return found
