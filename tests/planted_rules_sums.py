"""Unsound variants of the rules for scores' scale, sums of means, relief, and ramps by known coordinates."""

from __future__ import annotations

from .planted import Plant

HEAD, SUMS, COMPOSITION, STATE = (
    "verifier.head_rule",
    "verifier.mean_sums",
    "verifier.composition",
    "verifier.abstract_state",
)

SUM_PLANTS = [
    Plant(
        HEAD,
        "self.scale = context.config.scale(layer)",
        "self.scale = 1.0",
        "scores are not divided by the root of d_head",
        "scores divided by their root",
    ),
    Plant(
        COMPOSITION,
        "if not is_mean_sum(self.c.an, width, terms):",
        "if False:",
        "sums of means are not checked",
        "a sum of means of others",
    ),
    Plant(
        SUMS,
        "counts = [-1, *(c for _, c in terms)]",
        "counts = [-1, *(1 for _, c in terms)]",
        "coefficients of a sum of means are dropped",
        "a sum of twice a mean",
    ),
    Plant(
        SUMS,
        " or any(d.selector != aggregates[0].selector for d in aggregates)",
        "",
        "means over different selections are added",
        "a sum of means over others",
    ),
    Plant(
        SUMS,
        "if None in defaults or sum(",
        "if False and sum(",
        "defaults need not add up",
        "a sum of means with another default",
    ),
    Plant(
        HEAD,
        "relief = np.maximum(0.0, (rho - apart) * (1 - 2.0**-40) - TINY)",
        "relief = np.broadcast_to(rho, apart.shape)",
        "every count is spared the error",
        "a count with an error before neurons",
    ),
    Plant(
        COMPOSITION,
        "known &= (rows == rows[0]).all(axis=0)",
        "pass",
        "what one token has all have",
        "no ramp: known of one token only",
    ),
    Plant(
        COMPOSITION,
        "heights = Enclosure.where((lift != 0).any(axis=0), heights + raised, heights)",
        "pass",
        "a known coordinate does not change a ramp's height",
        "no ramp: another height",
    ),
    Plant(
        COMPOSITION,
        "top = product(bos, Enclosure(gap, widen(np.abs(gap) * U, 1))) + exact",
        "top = product(bos, Enclosure(gap, widen(np.abs(gap) * U, 1)))",
        "biases do not change a ramp's height at BOS",
        "no ramp at BOS",
    ),
]
