"""The theorem of a certificate (section 3 of the specification)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .automaton import Bits, Domain, read_domain
from .bodies import Attends, BodyReader, Computes, Interchange, LabelMargin, LogitDifference, Margin, Part
from .codec import Codec, read_codec
from .core import Program
from .format import Json, rational, record, require, show, within
from .model import Model, read_config, same_config
from .stream_bodies import Represents

QUANTIFIERS = ("forall", "none", "exists", "at_least", "fewer_than", "at_most", "more_than", "between")
COUNTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("at_least", "fewer_than", "at_most", "more_than"), ("share",)),
    "between": ("share", "most"),
}
"""The quantifiers about shares of the witnesses, with their further fields."""


@dataclass(frozen=True)
class Theorem:
    """A well-formed theorem about a model that has the stated configuration and weights.

    `programs`: the distinct ones of the `computes` parts. `share` and `most`: of the quantifiers that have them.
    """

    domain: Domain
    parts: tuple[Part, ...]
    programs: tuple[Program, ...]
    codec: Codec
    model: Model
    quantifier: str = "forall"
    share: Fraction = Fraction(1)
    most: Fraction = Fraction(1)

    def require_counts(self, true: int, false: int, total: int, what: str = "inputs") -> None:
        """`Rejected`, unless the quantifier (one of `COUNTED`) holds of any body true of at least `true` witnesses out
        of `total`, and false of at least `false`."""
        assert self.quantifier in COUNTED
        proved = f"the body is proved to hold on only {true} of {total} {what}"
        open_or_true = f"the body may hold on {total - false} of {total} {what}"
        if self.quantifier in ("at_least", "between"):
            require(true >= self.share * total, proved)
        if self.quantifier == "more_than":
            require(true > self.share * total, proved)
        if self.quantifier == "fewer_than":
            require(total - false < self.share * total, open_or_true)
        if self.quantifier == "at_most":
            require(total - false <= self.share * total, open_or_true)
        if self.quantifier == "between":
            require(total - false <= self.most * total, open_or_true)

    @property
    def arity(self) -> int:
        """How many inputs, of one length, a witness has."""
        return max(part.arity for part in self.parts)

    def alphabets(self, program: Program) -> dict[int, Bits]:
        """For each length with words, which of the program's tokens occur. Raises `Rejected` for unknown tokens."""
        position = {item: index for index, item in enumerate(program.vocab)}
        found = {}
        for n, occurs in self.domain.alphabets().items():
            tokens = [self.domain.vocab[v] for v in np.flatnonzero(occurs)]
            require(all(t in position for t in tokens), f"tokens of {show(tokens)} are not in the program's vocab")
            found[n] = np.zeros(len(program.vocab), dtype=np.bool_)
            found[n][[position[t] for t in tokens]] = True
        return found


def read_theorem(data: Json, model: Model) -> Theorem:
    """The theorem, if it is well formed and about this model."""
    with within("theorem", "theorem"):
        quantifier = data.get("quantifier") if isinstance(data, dict) else None
        require(quantifier in QUANTIFIERS, f"unsupported quantifier {show(quantifier)}")
        keys = ("quantifier", "domain", "body", "codec", "config", "weights_sha256", "semantics")
        item = record(data, "theorem", (*keys, *COUNTED.get(str(quantifier), ())))
        require(item["semantics"] == "real", f"unsupported semantics {show(item['semantics'])}")
        config = read_config(item["config"])
        require(same_config(config, model.config), "the model has another configuration than the theorem")
        require(item["weights_sha256"] == model.sha256, "the model has other weights than the theorem (weights_sha256)")
        domain, codec = read_domain(item["domain"]), read_codec(item["codec"])
        parts = tuple(BodyReader(config, codec).parts(item["body"]))
        programs = {id(part.program): part.program for part in parts if isinstance(part, Computes)}
        shares = [rational(item[key], key) for key in COUNTED.get(str(quantifier), ())]
        for share in shares:
            require(0 <= share <= 1, f"the share {show(share)} is not between 0 and 1")
        theorem = Theorem(domain, parts, tuple(programs.values()), codec, model, str(quantifier), *shares)
        _check_fit(theorem)
        return theorem


def _check_fit(theorem: Theorem) -> None:
    """Codec, domain, program and model belong together."""
    codec, config, domain = theorem.codec, theorem.model.config, theorem.domain
    extra = int(codec.bos)
    require(config.d_vocab >= len(codec.vocab) + extra, "the model's vocabulary is smaller than the codec's")
    require(config.n_ctx >= domain.hi + extra, f"inputs of length {domain.hi} do not fit the model's context")
    if codec.categorical:
        require(config.d_vocab_out == len(codec.outputs), "the model's logits do not match the codec's outputs")
    else:
        require(config.d_vocab_out == 1, "a scalar codec needs a model with one logit")
        margins = any(isinstance(part, (Margin, LabelMargin, LogitDifference)) for part in theorem.parts)
        require(not margins, "a margin needs a categorical codec")
    known = set(codec.vocab)
    unknown = [token for token in domain.vocab if token not in known]
    require(not unknown, f"tokens {show(unknown)} of the domain are not in the codec's vocab")
    require(len(domain.alphabets()) > 0, "the domain is empty")
    for part in theorem.parts:
        if isinstance(part, (Computes, Attends, Interchange, Represents)):
            require(part.program.max_len >= domain.hi, "the domain has longer inputs than the program")
