"""Codecs: from sequences of values to token ids, and from logits back to values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .errors import InputError
from .values import Value, distinct_values, value_from_json, value_to_json

Kind: TypeAlias = Literal["categorical", "scalar"]


@dataclass(frozen=True)
class Codec:
    """How a model's tokens and logits stand for values.

    Token id t is `vocab[t]`; with `bos`, id len(vocab) is put first, and its position is dropped in decoding.
    `categorical`: the logits' first maximum is the index in `outputs`. `scalar`: the first logit is decoded to the
    output whose entry in `points` is nearest (of two at the same distance, the one listed first).
    `max_len`: the longest sequence, without BOS; None: no limit here.
    """

    vocab: tuple[Value, ...]
    bos: bool
    kind: Kind
    outputs: tuple[Value, ...]
    points: tuple[float, ...] = ()
    max_len: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", distinct_values(self.vocab, "vocabulary"))
        object.__setattr__(self, "outputs", distinct_values(self.outputs, "list of outputs"))
        object.__setattr__(self, "points", tuple(self.points))
        if not isinstance(self.bos, bool):
            raise InputError(f"bos must be True or False, got {self.bos!r}")
        if self.kind not in ("categorical", "scalar"):
            raise InputError(f"kind must be 'categorical' or 'scalar', got {self.kind!r}")
        if len(self.points) != (len(self.outputs) if self.kind == "scalar" else 0):
            raise InputError(
                f"a {self.kind} codec with {len(self.outputs)} outputs must have "
                f"{len(self.outputs) if self.kind == 'scalar' else 'no'} points, got {len(self.points)}"
            )
        for point in self.points:
            if isinstance(point, bool) or not isinstance(point, (int, float)) or not math.isfinite(point):
                raise InputError(f"points must be finite numbers, got {point!r}")
        if len(set(self.points)) != len(self.points):
            raise InputError("two outputs have the same point; give each its own")
        longest = self.max_len
        if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
            raise InputError(f"max_len must be an integer of at least 1 or None, got {longest!r}")

    @cached_property
    def index(self) -> dict[Value, int]:
        """Token id by value."""
        return {value: position for position, value in enumerate(self.vocab)}

    @cached_property
    def _sorted_points(self) -> tuple[Tensor, Tensor]:
        points, order = torch.sort(torch.tensor(self.points, dtype=torch.float64), stable=True)
        return points, order

    def ids(self, sequence: Sequence[Value]) -> list[int]:
        """One sequence's token ids, with BOS. Raises `InputError` for unknown tokens, an empty or too long sequence."""
        if not isinstance(sequence, Iterable):
            raise InputError(f"a sequence must be a list of tokens, got {sequence!r}")
        items = list(sequence)
        if not items:
            raise InputError("a sequence must have at least 1 token, got an empty one")
        if self.max_len is not None and len(items) > self.max_len:
            raise InputError(
                f"a sequence must have at most {self.max_len} tokens, got {len(items)}; "
                "shorten it, or compile with a larger max_len"
            )
        index = self.index
        try:
            found = [index[token] for token in items]
        except (KeyError, TypeError):
            raise self._unknown(items) from None
        if any(isinstance(token, float) for token in items):
            raise self._unknown(items)
        return [len(self.vocab), *found] if self.bos else found

    def _unknown(self, items: list[Value]) -> InputError:
        def known(token: object) -> bool:
            try:
                return not isinstance(token, float) and token in self.index
            except TypeError:
                return False

        position = next(i for i, token in enumerate(items) if not known(token))
        shown = ", ".join(map(repr, self.vocab[:12])) + (", …" if len(self.vocab) > 12 else "")
        return InputError(
            f"unknown token {items[position]!r} at position {position}; the vocabulary has {len(self.vocab)}: {shown}"
        )

    def encode(self, sequences: Sequence[Sequence[Value]]) -> Tensor:
        """Token ids, int64 [batch, pos], of sequences of one length (`batches` takes any). Raises `InputError`."""
        if isinstance(sequences, str) or not isinstance(sequences, Sequence) or not sequences:
            raise InputError(f"encode takes a non-empty list of sequences, got {sequences!r}; write [sequence] for one")
        rows = [self.ids(sequence) for sequence in sequences]
        lengths = sorted({len(row) - self.bos for row in rows})
        if len(lengths) > 1:
            raise InputError(f"sequences in one batch must have one length, got {lengths}; use Codec.batches")
        return torch.tensor(rows, dtype=torch.int64)

    def batches(self, sequences: Sequence[Sequence[Value]]) -> Iterator[tuple[list[int], Tensor]]:
        """The sequences grouped by length: where they stood in the argument, and their token ids [batch, pos]."""
        groups: dict[int, list[int]] = {}
        rows = [self.ids(sequence) for sequence in sequences]
        for position, row in enumerate(rows):
            groups.setdefault(len(row), []).append(position)
        for _, positions in sorted(groups.items()):
            yield positions, torch.tensor([rows[position] for position in positions], dtype=torch.int64)

    def with_bos(self, token_ids: Tensor) -> Tensor:
        """Ids [batch, pos] in the vocabulary's order, as the model reads them: with BOS put first if there is one."""
        if not self.bos:
            return token_ids
        return torch.nn.functional.pad(token_ids, (1, 0), value=len(self.vocab))

    def decode_ids(self, token_ids: Tensor) -> list[list[Value]]:
        """Token ids [batch, pos], as the model reads them, back to sequences."""
        return [[self.vocab[token] for token in row] for row in token_ids[:, int(self.bos) :].tolist()]

    def decode_indices(self, logits: Tensor) -> Tensor:
        """Indices into `outputs`: [batch, pos] from [batch, pos, d_out] (less BOS), [batch] from [batch, d_out].

        Raises `InputError` for NaN logits and for a wrong number of them.
        """
        if logits.dim() not in (2, 3) or logits.shape[-1] < 1:
            raise InputError(f"logits must be [batch, pos, d_out] or [batch, d_out], got {tuple(logits.shape)}")
        if self.kind == "categorical" and logits.shape[-1] != len(self.outputs):
            raise InputError(f"this codec decodes {len(self.outputs)} logits, got {logits.shape[-1]}: another model's")
        if self.bos and logits.dim() == 3:
            logits = logits[:, 1:]
        if bool(torch.isnan(logits).any()):
            raise InputError("logits contain NaN and cannot be decoded; look for overflow in the weights")
        if self.kind == "categorical":
            return logits.argmax(dim=-1)
        points, order = (tensor.to(logits.device) for tensor in self._sorted_points)
        x = logits[..., 0].to(torch.float64).contiguous()
        above = torch.searchsorted(points, x).clamp(max=len(points) - 1)
        below = (above - 1).clamp(min=0)
        far, near = (points[above] - x).abs(), (x - points[below]).abs()
        take_below = (near < far) | ((near == far) & (order[below] < order[above]))
        return order[torch.where(take_below, below, above)]

    def decode(self, logits: Tensor) -> list[list[Value]]:
        """Values by sequence and position; one value a sequence when the model reads out once."""
        indices = self.decode_indices(logits)
        rows = indices.unsqueeze(1).tolist() if indices.dim() == 1 else indices.tolist()
        return [[self.outputs[index] for index in row] for row in rows]

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`; `Codec.from_json(c.to_json()) == c`."""
        return {
            "vocab": [value_to_json(value) for value in self.vocab],
            "bos": self.bos,
            "kind": self.kind,
            "outputs": [value_to_json(value) for value in self.outputs],
            "points": list(self.points),
            "max_len": self.max_len,
        }

    @staticmethod
    def from_json(data: object) -> Codec:
        """Raises `InputError`."""
        keys = {"vocab", "bos", "kind", "outputs", "points", "max_len"}
        if not isinstance(data, dict) or set(data) != keys:
            raise InputError(f"a codec is a JSON object with the keys {sorted(keys)}, got {str(data)[:200]}")
        for key in ("vocab", "outputs", "points"):
            if not isinstance(data[key], list):
                raise InputError(f"a codec's {key} must be a list, got {data[key]!r}")
        return Codec(
            tuple(value_from_json(value) for value in data["vocab"]),
            data["bos"],
            data["kind"],
            tuple(value_from_json(value) for value in data["outputs"]),
            tuple(data["points"]),
            data["max_len"],
        )
