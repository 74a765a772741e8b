"""What training can add to its loss so that more can be proved about the model; the model is an ordinary one.

Bounds on softmax attention are tight where a query's weights are nearly all on one key (`entropy`) or nearly uniform
(`score_variance`), and loose in between; bounds on a network are tight where few of its neurons change sign over the
inputs that are bounded together, and where what a layer writes varies little (`sparsity`; after Xiao, Tjeng, Shafiullah
and Madry, "Training for Faster Adversarial Robustness Verification via Inducing ReLU Stability", ICLR 2019, who
penalise unstable neurons by interval bounds; here activations themselves are penalised, as in the lasso).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .program import Program


def mean_entropy(scores: Tensor) -> Tensor:
    """The entropy, in nats, of softmax(scores) along the keys: its mean over words, heads and queries, in float64.

    `scores`: [batch, head, query, key], -inf where a query does not see a key. From scores and not from weights, so
    that the gradient is finite where weights underflow to 0.
    """
    logs = torch.log_softmax(scores, dim=-1)
    terms = logs.exp() * logs.masked_fill(torch.isneginf(scores), 0.0)
    return -terms.sum(dim=-1).double().mean()


def mean_score_variance(scores: Tensor) -> Tensor:
    """The variance of a query's scores over the keys that it sees (the population's: over n): its mean over words,
    heads and queries, in float64.

    `scores`: [batch, head, query, key], -inf where a query does not see a key. 0 means uniform attention.
    """
    seen = ~torch.isneginf(scores)
    count = seen.sum(dim=-1, keepdim=True)
    finite = scores.masked_fill(~seen, 0.0)  # before any arithmetic: inf - inf has no gradient
    centred = (finite - finite.sum(dim=-1, keepdim=True) / count).masked_fill(~seen, 0.0)
    return (centred.square().sum(dim=-1) / count.squeeze(-1)).double().mean()


def mean_magnitude(values: Tensor) -> Tensor:
    """The L1 norm along the last axis of [batch, pos, width]: its mean over words and positions, in float64."""
    return values.abs().sum(dim=-1).double().mean()


@dataclass(frozen=True)
class Penalty:
    """A sum over the sites of these names in every block that has them."""

    parts: tuple[str, ...]
    term: Callable[[Tensor], Tensor]

    def sites(self, program: Program) -> tuple[str, ...]:
        """The sites of a model's program that it is a sum over."""
        return tuple(op.output for op in program if op.output.split(".", 2)[-1] in self.parts)


PENALTIES: dict[str, Penalty] = {
    "entropy": Penalty(("attn.hook_attn_scores",), mean_entropy),
    "score_variance": Penalty(("attn.hook_attn_scores",), mean_score_variance),
    "sparsity": Penalty(("hook_attn_out", "mlp.hook_post"), mean_magnitude),
}


def sites_of(program: Program, coefficients: Mapping[str, float]) -> tuple[str, ...]:
    """The sites whose values `penalty` needs; none where all coefficients are 0."""
    wanted = (PENALTIES[name].sites(program) for name, coefficient in coefficients.items() if coefficient)
    return tuple(dict.fromkeys(site for sites in wanted for site in sites))


def penalty(program: Program, coefficients: Mapping[str, float], values: Mapping[str, Tensor]) -> Tensor:
    """The sum over penalties of coefficient x sum over its sites, in float64, on the device of the `values`."""
    total = torch.zeros((), dtype=torch.float64)
    for name, coefficient in coefficients.items():
        if coefficient:
            for site in PENALTIES[name].sites(program):
                total = total.to(values[site].device) + coefficient * PENALTIES[name].term(values[site])
    return total
