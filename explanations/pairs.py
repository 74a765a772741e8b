"""What discovery runs on: clean inputs, each with a source of equal length, what is measured, and what is put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.codec import Codec
from ..models.errors import InputError
from ..models.means import MeanAblation
from ..models.token_language import Language
from ..models.transformer import Transformer, check_tokens
from .graph_runs import GraphRun, Layout, layout_of, on_device, run_graph

Ablated: TypeAlias = Literal["zero", "mean", "resample"]
MetricName: TypeAlias = Literal["logit-difference", "cross-entropy", "kl", "squared-error"]
MetricFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and source inputs, in batches of one length: token ids [batch, pos] as the model reads them (with BOS).

    Row by row, the source is what a clean input's activations are replaced by under resample ablation. `codec` says
    how logits are read. Raises `InputError` for batches that do not fit each other.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    codec: Codec
    provenance: str = "pairs of the caller's"

    def __post_init__(self) -> None:
        if not self.batches or not all(len(clean) for clean, _ in self.batches):
            raise InputError("discovery needs at least one pair of a clean input and a source, got none")
        for clean, source in self.batches:
            if clean.shape != source.shape:
                raise InputError(
                    f"a source must be as long as its clean input, and there must be one for each; got "
                    f"{tuple(clean.shape)} and {tuple(source.shape)}"
                )

    def __len__(self) -> int:
        return sum(len(clean) for clean, _ in self.batches)


def sample_pairs(domain: Language, codec: Codec, k: int, seed: int = 0) -> Pairs:
    """`k` inputs drawn uniformly from a language, each with an independent, uniform source of the same length.

    Raises `InputError` for an empty language, and for tokens that the codec does not have.
    """
    if k < 1:
        raise InputError(f"the number of pairs must be at least 1, got {k}")
    strange = [token for token in domain.vocab if token not in codec.index]
    if strange:
        raise InputError(f"the domain has tokens that the model has not: {strange[:8]}")
    ids = np.array([codec.index[token] for token in domain.vocab], dtype=np.int64)
    rng = np.random.default_rng(seed)
    batches = []
    for length, words in domain.sample_ids(rng, k):
        if len(words):
            pair = (torch.from_numpy(ids[rows]) for rows in (words, domain.sample_length(rng, length, len(words))))
            clean, source = (codec.with_bos(tokens) for tokens in pair)
            batches.append((clean, source))
    return Pairs(tuple(batches), codec, f"{k} words drawn uniformly (seed {seed}) from {domain!r}, sources likewise")


@dataclass(frozen=True, eq=False)
class Metric:
    """`function(logits, clean, labels)` gives one number an example, [batch].

    `logits` and `clean`, the unedited model's on the same inputs, are [batch, pos, out] without BOS (one position if
    the model reads out once); `labels` [batch, pos] are what the unedited model decodes, as indices of outputs.
    `larger_is_better`: whether damage lowers it.
    """

    name: str
    function: MetricFunction
    larger_is_better: bool

    def damage(self, before: float, after: float) -> float:
        """By how much the metric got worse."""
        return before - after if self.larger_is_better else after - before


def _logit_difference(logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """The label's logit less its strongest rival's; the rival is that of the clean run."""
    label = labels.unsqueeze(-1)
    rival = clean.scatter(-1, label, -torch.inf).argmax(-1, keepdim=True)
    return (logits.gather(-1, label) - logits.gather(-1, rival)).squeeze(-1).mean(-1)


def _cross_entropy(logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(-1)


def _kl(logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """From the clean run's distribution to the other's."""
    return F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(-1).mean(-1)


def _squared_error(logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    return (logits - clean).square().sum(-1).mean(-1)


METRICS: dict[str, Metric] = {
    "logit-difference": Metric("logit-difference", _logit_difference, True),
    "cross-entropy": Metric("cross-entropy", _cross_entropy, False),
    "kl": Metric("kl", _kl, False),
    "squared-error": Metric("squared-error", _squared_error, False),
}


@dataclass(frozen=True, eq=False)
class Setup:
    """A model, the pairs it is run on, what is put in the place of a cut edge's contribution, and what is measured.

    `ablation`: `zero`, `mean` (then `means` are needed) or `resample` (the pair's source). `metric`: a name of
    `METRICS` or a `Metric`; None: the logit difference, or for one logit (a scalar codec) the squared error.
    Raises `InputError` for a combination that cannot be run.
    """

    model: Transformer
    pairs: Pairs
    ablation: Ablated = "resample"
    metric: str | Metric | None = None
    means: MeanAblation | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.ablation not in get_args(Ablated):
            raise InputError(f"ablation must be one of {', '.join(get_args(Ablated))}, got {self.ablation!r}")
        if (self.ablation == "mean") != (self.means is not None):
            raise InputError(
                "mean ablation needs means=mean_activations(model, inputs) or domain_means(...); others take no means"
            )
        if self.means is not None:
            self.means.validate(self.model.config)
        config, codec = self.model.config, self.pairs.codec
        outputs = len(codec.outputs) if codec.kind == "categorical" else 1
        if config.d_vocab_out != outputs:
            raise InputError(f"the codec decodes {outputs} logits, the model has {config.d_vocab_out}: another model's")
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise InputError(f"metric must be one of {', '.join(METRICS)} or a Metric, got {self.metric!r}")
        if config.d_vocab_out == 1 and self.metric in ("logit-difference", "cross-entropy", "kl"):
            raise InputError(f"{self.metric} compares logits, but this model has one; use metric='squared-error'")
        for batch in self.pairs.batches:
            for tokens in batch:
                check_tokens(tokens, config)
        if self.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"there is no device {self.device!r} on this machine; use device='cpu'")

    @property
    def measured(self) -> Metric:
        """The metric itself."""
        if isinstance(self.metric, Metric):
            return self.metric
        default = "squared-error" if self.model.config.d_vocab_out == 1 else "logit-difference"
        return METRICS[self.metric or default]

    @property
    def layout(self) -> Layout:
        return layout_of(self.model.config)

    def positions(self, logits: Tensor) -> Tensor:
        """[batch, pos, out] without BOS."""
        return logits.unsqueeze(1) if logits.dim() == 2 else logits[:, int(self.pairs.codec.bos) :]

    def labels(self, clean: Tensor) -> Tensor:
        """What positions' logits decode to, [batch, pos]."""
        batch, length, width = clean.shape
        # Through one flat axis: decode_indices would take [batch, pos, out] to have a BOS position still.
        return self.pairs.codec.decode_indices(clean.reshape(batch * length, width)).view(batch, length)

    def chunks(self, keep: bool = False) -> Iterator[Chunk]:
        """The pairs, run: in parts, by memory. `keep`: the clean run's values too, for many runs with cut edges."""
        model = on_device(self.model, self.device)
        width = (self.layout.n_rows + 2 * len(self.layout.writers)) * model.config.d_model
        for clean, source in self.pairs.batches:
            size = max(1, ROOM // (width * clean.shape[1]))
            for some, others in zip(torch.split(clean, size), torch.split(source, size), strict=True):
                yield self._chunk(model, some.to(self.device), others.to(self.device), keep)

    def _chunk(self, model: Transformer, clean: Tensor, source: Tensor, keep: bool) -> Chunk:
        run = run_graph(model, clean, keep=keep)
        if self.ablation == "resample":
            stand_in = run_graph(model, source).outputs
        else:
            stand_in = run.outputs.new_zeros(len(self.layout.writers), 1, 1, model.config.d_model)
            if self.means is not None:
                for place, writer in enumerate(self.layout.writers):
                    stand_in[place] = self.means.values[writer]
        logits = self.positions(run.logits)
        return Chunk(model, clean, run if keep else None, run.outputs, stand_in, logits, self.labels(logits))

    def cut_values(self, chunk: Chunk, cut: Tensor) -> Tensor:
        """The metric [batch] of the chunk's clean inputs with these edges cut, bool [reader, writer]."""
        return self.values(chunk, run_graph(chunk.model, chunk.clean, cut, chunk.stand_in, clean=chunk.run).logits)

    def values(self, chunk: Chunk, logits: Tensor) -> Tensor:
        """The metric [batch] of a run's logits as the model gives them. Raises `InputError` if a `Metric` errs."""
        found = self.measured.function(self.positions(logits), chunk.logits, chunk.labels)
        if found.shape != (len(chunk.clean),):
            raise InputError(
                f"the metric {self.measured.name} must give one number an example, shape ({len(chunk.clean)},), "
                f"got {tuple(found.shape)}"
            )
        if not bool(torch.isfinite(found).all()):
            raise InputError(f"the metric {self.measured.name} is infinite or NaN on some input; choose another")
        return found

    def details(self) -> Mapping[str, str]:
        """What is worth keeping with the scores."""
        means = {"means": self.means.provenance} if self.means is not None else {}
        return {"metric": self.measured.name, "pairs": self.pairs.provenance, **means}


ROOM = 2**24
"""Numbers that the activations of a chunk may take."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some pairs: the clean run's outputs [writer, batch, pos, d_model], `logits` and `labels` as `Metric` takes them,
    and what stands in for the outputs at cut edges [writer, batch or 1, pos or 1, d_model]."""

    model: Transformer
    clean: Tensor
    run: GraphRun | None
    outputs: Tensor
    stand_in: Tensor
    logits: Tensor
    labels: Tensor
