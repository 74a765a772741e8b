"""Mean ablation as stored vectors: what each node writes on average, and over what that average was taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .circuits import INPUT, OUTPUT, Edge, all_nodes, parse_edge, parse_head, parse_mlp
from .codec import Codec
from .config import TransformerConfig
from .edits import Given
from .errors import InputError
from .program import input_site
from .token_language import Language
from .transformer import Transformer


@dataclass(frozen=True, eq=False)
class MeanAblation:
    """For each node but `logits` the float32 vector [d_model] that stands for its output, the same at each position.

    `provenance` says what was averaged: which inputs, drawn how, how many. A head's vector is its own contribution,
    without `b_O`. Raises `InputError` for values that are no finite float32 vectors.
    """

    values: Mapping[str, Tensor]
    provenance: str

    def __post_init__(self) -> None:
        for node, value in self.values.items():
            if not isinstance(value, Tensor) or value.dim() != 1 or value.dtype != torch.float32:
                got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
                raise InputError(f"the mean of {node} must be a float32 vector [d_model], got {got}")
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"the mean of {node} has NaN or infinite entries")

    def validate(self, config: TransformerConfig) -> None:
        """Raises `InputError` unless there is exactly one vector of the right width for each node of the model."""
        wanted = set(all_nodes(config)) - {OUTPUT}
        missing, extra = sorted(wanted - set(self.values)), sorted(set(self.values) - wanted)
        if missing or extra:
            raise InputError(f"these means are another model's: missing {missing[:8]}, unknown {extra[:8]}")
        widths = {node: len(value) for node, value in self.values.items() if len(value) != config.d_model}
        if widths:
            raise InputError(f"means must have d_model = {config.d_model} entries, got {widths}")

    def of(self, target: str | Edge) -> Given:
        """The replacement for a node's output or for an edge's contribution, for `Ablate`. Raises `InputError`."""
        name = str(target)
        writer = parse_edge(name).src if "->" in name else name
        if writer not in self.values:
            raise InputError(f"there is no mean of {writer!r}; there are those of {', '.join(list(self.values)[:8])}")
        return Given(self.values[writer])

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`, exact: `MeanAblation.from_json(m.to_json())` has the same bits."""
        return {
            "provenance": self.provenance,
            "values": {node: [float(x) for x in value.tolist()] for node, value in self.values.items()},
        }

    @staticmethod
    def from_json(data: object) -> MeanAblation:
        """Raises `InputError`."""
        if not isinstance(data, dict) or set(data) != {"provenance", "values"}:
            raise InputError(f"means are a JSON object with the keys provenance, values; got {str(data)[:200]}")
        values, provenance = data["values"], data["provenance"]
        if not isinstance(provenance, str) or not isinstance(values, dict):
            raise InputError("the provenance of means is a text, their values an object from node to list of numbers")
        found: dict[str, Tensor] = {}
        for node, row in values.items():
            if not isinstance(row, list) or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in row):
                raise InputError(f"the mean of {node} must be a list of numbers, got {str(row)[:80]}")
            found[node] = torch.tensor(row, dtype=torch.float64).to(torch.float32)
        return MeanAblation(found, provenance)


def mean_activations(
    model: Transformer, inputs: Tensor | Iterable[Tensor], provenance: str | None = None
) -> MeanAblation:
    """The mean of what each node writes, over all positions of all inputs (each position counts the same).

    `inputs`: token ids [batch, pos] as the model reads them (with BOS), or several such batches of any lengths.
    Sums are taken in float64. Raises `InputError` if there is no input.
    """
    batches = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    config = model.config
    nodes = [node for node in all_nodes(config) if node != OUTPUT]
    sums = {node: torch.zeros(config.d_model, dtype=torch.float64) for node in nodes}
    places = {node: written(node, config) for node in nodes}
    wanted = tuple(dict.fromkeys(site for site, _ in places.values()))
    words = positions = 0
    with torch.no_grad():
        for tokens in batches:
            _, cache = model.run_with_cache(tokens, wanted)
            for node, (site, head) in places.items():
                value = cache[site] if head is None else cache[site][:, :, head]
                sums[node] += value.to(torch.float64).sum(dim=(0, 1)).cpu()
            words, positions = words + len(tokens), positions + tokens.numel()
    if not positions:
        raise InputError("a mean is taken over some inputs, got none")
    values = {node: (total / positions).to(torch.float32) for node, total in sums.items()}
    return MeanAblation(values, provenance or f"{words} inputs of the caller's, {positions} positions")


def domain_means(model: Transformer, domain: Language, codec: Codec, samples: int, seed: int = 0) -> MeanAblation:
    """`mean_activations` over words drawn uniformly from a language; where the codec has a BOS, it is put first, and
    its position counts.

    Raises `InputError` for an empty language, and for tokens that the codec does not have.
    """
    strange = [token for token in domain.vocab if token not in codec.index]
    if strange:
        raise InputError(f"the domain has tokens that the model has not: {strange[:8]}")
    ids = torch.tensor([codec.index[token] for token in domain.vocab])
    drawn = [torch.from_numpy(words) for _, words in domain.sample_ids(seed, samples) if len(words)]
    text = f"{samples} words drawn uniformly (seed {seed}) from {domain!r}{', BOS included' if codec.bos else ''}"
    return mean_activations(model, (codec.with_bos(ids[words]) for words in drawn), text)


def written(node: str, config: TransformerConfig) -> tuple[str, int | None]:
    """The site that holds what a node writes, and the head if the node is one."""
    if node == INPUT:
        return input_site(config), None
    if place := parse_head(node):
        return f"blocks.{place[0]}.attn.hook_result", place[1]
    return f"blocks.{parse_mlp(node)}.hook_mlp_out", None
