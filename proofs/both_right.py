"""Rule `both_right`: where model and circuit both decode to the label, they agree (section 12 of the specification)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from .bodies import Alone, BodyReader, Faithful, Labels
from .format import Json, rational, record, require, within
from .theorem import Theorem

RULES = ("count", "paths", "enumerate")
Rules = Mapping[str, Callable[[Theorem, dict[str, Json]], None]]


def check_both_right(theorem: Theorem, proof: dict[str, Json], rules: Rules) -> None:
    """Accepts if model and circuit are proved to give the label on shares that must meet on enough of the witnesses.

    With A the witnesses on which the model decodes to the label and B those on which the circuit does: they agree on
    A and B together, and |A and B| >= |A| + |B| - (all). `rules`: what checks the two proofs, by name.
    """
    with within("proof", "both_right"):
        item = record(proof, "proof", ("rule", "name", "machine", "model", "circuit"))
        require(theorem.quantifier in ("forall", "at_least"), "rule both_right proves forall and at_least only")
        require(
            len(theorem.parts) == 1 and isinstance(theorem.parts[0], Faithful), "rule both_right is for one `faithful`"
        )
        (part,) = theorem.parts
        assert isinstance(part, Faithful)
        require(part.alone.ablation != "any", "rule both_right is for ablations zero, mean and resample")
        sizes = [size for size in theorem.domain.sizes().values() if size]
        even = part.arity == 1 or len(sizes) == 1
        require(even, "rule both_right with ablation resample is for domains of words of one length")
        data = {"kind": "labels", "name": item["name"], "machine": item["machine"]}
        (labels,) = BodyReader(theorem.model.config, theorem.codec).parts(data)
        assert isinstance(labels, Labels)
    shares = [_premise(theorem, labels, None, item["model"], rules, "model")]
    shares.append(_premise(theorem, labels, part.alone, item["circuit"], rules, "circuit"))
    with within("proof", "both_right"):
        proved = sum(shares) - 1
        require(proved >= theorem.share, f"they are proved to agree on a share of {proved} only")


def _premise(theorem: Theorem, labels: Labels, alone: Alone | None, data: Json, rules: Rules, which: str) -> Fraction:
    """The share on which the model (or the circuit alone) is proved to decode to the label.

    Of the model with `resample`: a share of the words is that share of the pairs, of which all have one length.
    """
    with within(which, "both_right"):
        item = record(data, f"the premise about the {which}", ("share", "proof"))
        share = rational(item["share"], "share")
        require(0 <= share <= 1, f"the share {share} is not between 0 and 1")
        rule = item["proof"].get("rule") if isinstance(item["proof"], dict) else None
        require(rule in RULES, f"a premise of rule both_right is proved by one of {RULES}")
    premise = replace(theorem, parts=(replace(labels, alone=alone),), programs=(), quantifier="at_least", share=share)
    rules[str(rule)](premise, item["proof"])
    return share
