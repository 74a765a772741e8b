"""Unsound changes to the engine of affine bounds, a line each: (module, old, new, why).

Judged by the rules' own tests (`lines`, `norm`, `attention`, and `levels` of tables), or by whole models.
"""

from __future__ import annotations

PLANTS: tuple[tuple[str, str, str, str], ...] = (
    ("lines", "torch.maximum(-slope * low, high - slope * high)", "-slope * low / 2", "a line through a ReLU's graph"),
    ("lines", "(high > -low).double()", "(high > -low).double() * 1.5", "a lower line above a ReLU's end"),
    ("lines", "CURVE = 1.2", "CURVE = 0.0", "a grid's points stand for all between"),
    ("lines", "(rest - error).amin(-1) - lost", "(rest - error).amax(-1) - lost", "a lower line that only touches"),
    ("lines", "(rest + error).amax(-1) + lost", "(rest + error)[..., 0] + lost", "an upper line fit at one end"),
    ("model", "query_bias * scale)", "0 * query_bias * scale)", "the query's bias tells keys apart"),
    ("model", "value_bias = b_v + torch", "value_bias = b_v + 0 * torch", "LayerNorm's bias reaches the values"),
    ("model", "self._weight(\"unembed.b_U\") + bias @", "self._weight(\"unembed.b_U\") + 0 * bias @", "and the logits"),
    ("norm", "(wide - torch.minimum(*ends), ", "(-torch.minimum(*ends), ", "x and its deviation vary together"),
    ("norm", "(-slope * away - loss, ", "(-loss, ", "the second moment grows with the radius squared"),
    ("norm", "ends.clamp(min=0.0) + loss)", "loss)", "1/sqrt is convex"),
    ("norm", "return centred(coefficients), ", "return coefficients, ", "LayerNorm reads x less its mean"),
    ("norm", "* (self.most - middle) - away * (self.most - middle)", "* (self.most - middle)", "both factors vary"),
    ("norm", "(near * near - 2 * half * near).sum(-1)", "(near * near).sum(-1)", "a dual bound without its price"),
    ("norm", "small = (centre.abs() - radius)", "small = (centre.abs() + radius)", "the least square of an interval"),
    ("norm", "* math.sqrt(g.shape[-1]) * (1 + _SLACK)", "", "the norm of z is sqrt(d)"),
    ("norm", " + _dot(g, self.offset).abs()", "", "two boxes have two centres"),
    ("attention", "range_ * (weights.most_sum - 1) + ", "", "the normaliser varies with the scores"),
    ("attention", "kappa = torch.maximum(", "kappa = torch.minimum(", "the tangent where the chord is needed"),
    ("attention", "y, order = y.sort(-1)", "y, order = y.sort(-1, descending=True)", "the greatest mean for the least"),
    ("attention", "apart = (r * (1 - 2 * share) + mean_radius)", "apart = r", "scores differ from their mean"),
    ("attention", "torch.minimum(right, left))", "right)", "a concave function is least at either end"),
    ("attention", " - (c * e - b).abs() * r", "", "a tangent's slope over the interval"),
    ("attention", "middle - radius - ceiling - slack", "middle - ceiling - slack", "a weight's least value"),
    ("attention", "y = value - mean - spread * sigma", "y = value - mean", "values vary with the weights"),
    ("steps", "b.abs(), scores.rest) * (1 + 2.0**-40)", "b.abs(), scores.rest) * 0", "scores are not linear"),
    ("steps", "value, spread * (1 + 2.0**-40), ", "value, spread * 0, ", "values are not constant"),
    ("steps", "inner = up * lines.low_slope", "inner = up * lines.high_slope", "the wrong line for a sign"),
    ("steps", "w.abs(), self.value[1]) * (1 + 2.0**-40)", "w.abs(), self.value[1]) * 0", "a value's box"),
    ("steps", "mine, low)\n        total", "mine, mine)\n        total", "other positions hold other tokens"),
    ("levels", "greatest = most.amax(-1)", "greatest = least.amin(-1).clamp(min=1e-9)", "the greatest normaliser"),
    ("levels", "gain, at = torch.minimum(least * away, most * away)", "gain, at = (most * away)", "a least gain"),
    ("steps", "low = torch.einsum(\"bikhe,bjhe", "low = -torch.einsum(\"bikhe,bjhe", "a value's sign"),
    ("bounds", "- self.eps * c.abs().sum(-1)", "- self.eps * c.sum(-1)", "a ball's corner"),
    ("bounds", "position[None] > position[:, None]", "position[None] > position[:, None] + 1", "the next is not seen"),
    ("bounds", "return torch.minimum(found, other)", "return 0 * torch.minimum(found, other)", "scores are bilinear"),
    ("bounds", ".amin(2)\n", ".amax(2)\n", "the least of all tokens at a position"),
    ("bounds", "(radius + (middle - at).abs() + rest)", "(radius * 0.5)", "scores' joint range"),
    ("bounds", "torch.minimum(below, joined[", "torch.maximum(below, joined[", "all parts"),
    ("bounds", "value = self._box(rows, norm)", "value = self._box(rows, None)", "attention reads the LayerNorm"),
)  # fmt: skip
