"""Balls around a model's logits on many words at once, computing once what words have in common.

In a causal model what happens at a position depends only on the tokens up to there, so it is computed once for each
prefix; before the first attention, once for each token at each position; and where the model is read out at the last
position, what only the other positions would read is left out. Each site's ball is a row for each such case, and the
rules are those of `balls`, on rows: only attention and pooling look at other rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..models import program as ops
from ..models.config import TransformerConfig
from ..models.program import LOGITS, Operation, Program, needed, reads
from ..models.transformer import Transformer
from .balls import RULES, Ball, ReadsWeights, _finite, _Run, as_ball, check_arithmetic
from .perturbed import PerturbedWeights

Level: TypeAlias = Literal["token", "prefix", "last"]


def shareable(model: object) -> bool:
    """Whether it pays: causal models, and one layer read out at the last position. (Not for edited models.)"""
    if not isinstance(model, (Transformer, PerturbedWeights)):
        return False
    config = model.config
    return config.causal or (config.readout == "last" and config.n_layers <= 1)


@dataclass(frozen=True)
class _Rows:
    """The cases that words [batch, pos] consist of. `of[level]` [batch, pos]: the row of each position of each word.

    `token`: one for each token at each position. `prefix`: one for each prefix (of a bidirectional model: for each
    position of each word). `last`: one for each word. `word[level]`, `at[level]`: for each row, a word and a position
    that it is the case of.
    """

    tokens: Tensor
    of: dict[Level, Tensor]
    word: dict[Level, Tensor]
    at: dict[Level, Tensor]

    @staticmethod
    def split(tokens: Tensor, causal: bool) -> _Rows:
        batch, length = tokens.shape
        places = torch.arange(length)
        vocab = int(tokens.max()) + 1
        _, single = torch.unique(tokens + vocab * places, return_inverse=True)
        if causal:
            columns, prefix, count = [], torch.zeros(batch, dtype=torch.int64), 0
            for column in tokens.T:
                _, prefix = torch.unique(prefix * vocab + column, return_inverse=True)
                columns.append(prefix + count)
                count += int(prefix.max()) + 1
            prefixes = torch.stack(columns, 1)
        else:
            prefixes = torch.arange(batch * length).view(batch, length)
        of: dict[Level, Tensor] = {"token": single, "prefix": prefixes}
        word: dict[Level, Tensor] = {"last": torch.arange(batch)}
        at: dict[Level, Tensor] = {"last": torch.full((batch,), length - 1)}
        for level, rows in of.items():
            some = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
            some[rows.flatten()] = torch.arange(batch * length)
            word[level], at[level] = some // length, some % length
        return _Rows(tokens, of, word, at)

    def moved(self, ball: Ball, level: Level, to: Level) -> Ball:
        """Rows of one level as rows of another, which tells no fewer cases apart."""
        if level == to:
            return ball
        index = self.of[level][self.word[to], self.at[to]]
        return ball.map(lambda t: t[index])

    def seen(self, ball: Ball, level: Level, by: Level) -> Ball:
        """[row of `by`, 1, ..] -> [row, pos, ..]: what stands at every position of the row's word."""
        index = self.of[level][self.word[by]]
        if ball.mid.dim() == 3:
            return ball.map(lambda t: t[index, 0])
        return ball.map(lambda t: _by_head(t, index))


def logits_of_words(model: ReadsWeights, tokens: Tensor) -> Ball:
    """Balls around the real logits [batch, pos, out], of token ids [batch, pos]; without positions if the model has one
    read-out. As `enclose` gives them, up to rounding. Raises `Unsupported` as that does.
    """
    check_arithmetic()
    rows = _Rows.split(tokens.to(torch.int64), model.config.causal)
    program = needed(model.program, (LOGITS,))
    alone = _only_last(program, model.config)
    found: dict[str, tuple[Level, Ball]] = {}
    last = {site: step for step, operation in enumerate(program) for site in reads(operation)}
    with torch.no_grad():
        for step, operation in enumerate(program):
            found[operation.output] = _computed(operation, found, rows, model, operation.output in alone)
            for site in reads(operation):
                if last[site] == step:
                    found.pop(site, None)
    level, ball = found[LOGITS]
    _finite(LOGITS, ball)
    if model.config.readout != "each":
        return ball.map(lambda t: t[:, 0])
    return rows.seen(ball, level, "last")


def _only_last(program: Program, config: TransformerConfig) -> set[str]:
    """The sites of which only the last position is read."""
    if config.readout != "last":
        return set()
    everywhere: set[str] = set()
    for operation in reversed(program):
        if isinstance(operation, ops.Scores):
            everywhere.add(operation.key)
        elif isinstance(operation, ops.Mix):
            everywhere.add(operation.value)
        if operation.output in everywhere:
            everywhere.update(reads(operation))
    return {operation.output for operation in program} - everywhere


def _computed(
    op: Operation, found: dict[str, tuple[Level, Ball]], rows: _Rows, model: ReadsWeights, alone: bool
) -> tuple[Level, Ball]:
    finest: Level = "last" if alone else "prefix"

    def run(values: dict[str, Ball], level: Level) -> _Run:
        tokens = rows.tokens[rows.word[level], rows.at[level]].unsqueeze(1)
        return _Run(tokens, model.config, model.parameter, {}, values)

    if isinstance(op, ops.Position):
        return "token", as_ball(model.parameter(op.weight)).map(lambda w: w[rows.at["token"]].unsqueeze(1))
    if isinstance(op, ops.Pool):
        level, x = found[op.input]
        if op.how == "last":
            return "last", rows.moved(x, level, "last")
        words = rows.seen(x, level, "last")
        return "last", RULES[ops.Pool](op, run({op.input: words}, "last")).map(lambda t: t.unsqueeze(1))
    if isinstance(op, ops.Scores):
        query, key = found[op.query], found[op.key]
        values = {op.query: rows.moved(query[1], query[0], finest), op.key: rows.seen(key[1], key[0], finest)}
        scores = RULES[ops.Scores](replace(op, causal=False), run(values, finest))
        hidden = torch.arange(rows.tokens.shape[1]) > rows.at[finest][:, None] if op.causal else None
        return finest, scores if hidden is None else _masked(scores, hidden[:, None, None])
    if isinstance(op, ops.Mix):
        (level, pattern), value = found[op.pattern], found[op.value]
        values = {op.pattern: pattern, op.value: rows.seen(value[1], value[0], level)}
        return level, RULES[ops.Mix](op, run(values, level))
    levels: list[Level] = [found[site][0] for site in reads(op)]
    level = "last" if "last" in levels else finest if "prefix" in levels else "token"
    values = {site: rows.moved(found[site][1], found[site][0], level) for site in reads(op)}
    return level, RULES[type(op)](op, run(values, level))


def _by_head(x: Tensor, index: Tensor) -> Tensor:
    """x[index, 0] of x [row, 1, head, width], laid out in memory with the heads before the positions, as products of
    matrices want it."""
    heads, width = x.shape[2:]
    places = index.unsqueeze(1) * heads + torch.arange(heads)[:, None]
    found = x.reshape(-1, width).index_select(0, places.flatten())
    return found.view(*places.shape, width).transpose(1, 2)


def _masked(scores: Ball, hidden: Tensor) -> Ball:
    return Ball(scores.mid.masked_fill(hidden, -torch.inf), scores.rad.masked_fill(hidden, 0.0))
