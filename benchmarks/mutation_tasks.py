"""Certificates about models of tasks, to be mutated: shares by exact counts, labels and margins by enumeration."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np

from .truth import claim_of, counts, words_of

FREE = 6
"""So many tokens at the end of the inputs of a long task vary; the others are those of one input."""


@dataclass(frozen=True)
class TaskSource:
    """A claim about a model. `model`: one of the zoo, on few of its inputs, or `max-of-3`, made by hand and sometimes
    wrong. `over`: the theorem is then made false by as little as can be, and mutated from there on."""

    model: str
    claim: str
    engine: str
    over: bool = False
    program: str = ""

    @property
    def label(self) -> str:
        return f"{self.model} ({self.claim}, {self.engine}{', made false' if self.over else ''})"

    def certify(self) -> tuple[Any, dict[str, Any]]:
        """The model, and a certificate about it as JSON. Raises `RuntimeError` if there is no proof."""
        model, task, domain = _counted_model() if self.model == "max-of-3" else _of_zoo(self.model)
        certificate = _CLAIMS[self.claim](model, task, domain, self.engine)
        data = json.loads(certificate.to_bytes())
        return model, made_false(data, model) if self.over else data


_PAIRS = (
    *(("max-of-3", claim, "counting") for claim in ("at least", "at most", "fewer than", "more than", "between")),
    ("max-of-3", "between", "tilted"),
    *(("max-of-3", claim, "enumeration") for claim in ("between", "fewer than")),
    *(("bracket-type-12", claim, "enumeration") for claim in ("labels", "margin")),
    *(("dyck-1-16-layernorm-gelu", claim, "enumeration") for claim in ("labels", "margin")),
)
TASK_SOURCES = tuple(TaskSource(*pair, over=over) for pair in _PAIRS for over in (False, True))


def made_false(certificate: dict[str, Any], model: Any) -> dict[str, Any]:
    """The same proof under a theorem that is just false: one input more or less, the next float64 above the margin."""
    changed = copy.deepcopy(certificate)
    theorem = changed["theorem"]
    body, kind = theorem["body"], theorem["quantifier"]
    if body["kind"] == "label_margin":
        theorem["body"]["at_least"] = _number_json(_above_the_margin(theorem, model))
    elif kind == "forall":
        state = 0
        domain = theorem["domain"]
        vocab = [theorem["codec"]["vocab"].index(v) for v in domain["vocab"]]
        for place in (words_of(domain, domain["lengths"][0]) or [()])[0]:
            state = body["machine"]["transitions"][state][vocab[place]]
        labels = body["machine"]["labels"]
        labels[state] = (labels[state] + 1) % len(theorem["codec"]["outputs"])
    else:
        found = counts(theorem, model)
        if found is None or found[0] + found[1] != found[2]:
            raise RuntimeError(f"the number of inputs that hold is not known: {found}")
        true, _, total = found
        key, count = {
            "at_least": ("share", true + 1),
            "at_most": ("share", true - 1),
            "fewer_than": ("share", true),
            "more_than": ("share", true),
            "between": ("most", true - 1) if int(certificate["seal"][-1], 16) % 2 else ("share", true + 1),
        }[kind]
        theorem[key] = _share_json(Fraction(count, total))
        if kind == "between" and key == "share":
            theorem["most"] = 1
        elif kind == "between":
            theorem["share"] = 0
    return changed


def _above_the_margin(theorem: dict[str, Any], model: Any) -> float:
    import torch

    claim = claim_of(theorem["body"], theorem["codec"], model)
    domain, vocab = theorem["domain"], claim.subject.codec.vocab
    letters = np.array([vocab.index(v) for v in domain["vocab"]])
    highest = math.inf
    for n in range(domain["lengths"][0], domain["lengths"][1] + 1):
        ids = torch.from_numpy(letters[np.array(words_of(domain, n))])
        highest = min(highest, float(claim.body.bounds(ids, "real")[1].min()))
    return math.nextafter(highest, math.inf)


def _number_json(number: float) -> Any:
    from certiformer.verifier.theorems import number_to_json

    return number_to_json(number)


def _share_json(share: Fraction) -> Any:
    return share.numerator if share.denominator == 1 else {"num": share.numerator, "den": share.denominator}


# Models


def _counted_model() -> tuple[Any, Any, Any]:
    """Attention that grows with the token, but not enough: it takes the maximum of three tokens of five for another."""
    import torch

    from certiformer.models import LayerConfig, Transformer, TransformerConfig, get_task

    task = get_task("max-of-3", vocab=5)
    config = TransformerConfig(5, 3, 5, 5, (LayerConfig(1, 5, 0),), readout="last", attention_scale=1.0)
    model = Transformer(config)
    with torch.no_grad():
        model.parameter("embed.W_E").copy_(torch.eye(5))
        model.parameter("blocks.0.attn.W_Q")[0].fill_(1.0)
        model.parameter("blocks.0.attn.W_K")[0].copy_(torch.diag(torch.tensor([0.0, 1.0, 2.0, 2.5, 4.0])))
        model.parameter("blocks.0.attn.W_V")[0].copy_(torch.eye(5))
        model.parameter("blocks.0.attn.W_O")[0].copy_(torch.eye(5))
        model.parameter("unembed.W_U").copy_(torch.eye(5) - torch.triu(torch.ones(5, 5), 1).T * 0.1)
    return model, task, task.domain


def _of_zoo(name: str) -> tuple[Any, Any, Any]:
    """A model, its task, and of its inputs those that begin as one of them."""
    from certiformer.models import regular, zoo
    from certiformer.models.patterns import any_token, concat, repeat, token

    found = zoo.load(name)
    n, vocab = found.task.max_len, found.task.vocab
    first = found.task.domain.sample(1, 1)[0][: n - FREE]
    some = regular(concat(*map(token, first), repeat(any_token(), FREE, FREE)), vocab=vocab, length=n)
    return found.model, found.task, found.task.domain.intersection(some)


# Claims


def _evidence(verdict: Any) -> Any:
    """The certificate of what is proved, or of the negation of what is refuted."""
    import certiformer as cf

    if isinstance(verdict, cf.Proved):
        return verdict.certificate
    if isinstance(verdict, cf.Refuted) and hasattr(verdict.evidence, "to_bytes"):
        return verdict.evidence
    raise RuntimeError(f"no certificate to start from: {getattr(verdict, 'reason', verdict)}")


def _bounds(model: Any, task: Any, domain: Any, engine: str) -> Any:
    """The share of the inputs that are labelled rightly, between what `engine` finds. `tilted`: many rivals at once,
    as is done where they are too many to be counted one by one."""
    import certiformer as cf
    from certiformer.verifier import accuracy, shares

    at_once = shares.AT_ONCE if engine == "enumeration" else 0
    many = 0 if engine == "tilted" else accuracy.MANY
    with mock.patch.object(shares, "AT_ONCE", at_once), mock.patch.object(accuracy, "MANY", many):
        return cf.accuracy_bounds(model, task, domain)


def _share(model: Any, task: Any, domain: Any, engine: str, negated: bool, lower: bool) -> Any:
    """That a share is at least, at most, less than or more than the nearest bound that is found."""
    import certiformer as cf
    from certiformer.verifier.task_claims import Accuracy

    bounds = _bounds(model, task, domain, engine)
    step = Fraction(1, bounds.total)
    if negated:  # the opposite is refuted
        claim = Accuracy(model, task, at_least=bounds.high + step)
        if lower:
            claim = Accuracy(model, task, at_most=bounds.low - step)
    else:
        claim = Accuracy(model, task, at_least=bounds.low) if lower else Accuracy(model, task, at_most=bounds.high)
    return _evidence(cf.prove(claim, domain, engines={engine}))


def _labels(model: Any, task: Any, domain: Any, engine: str) -> Any:
    import certiformer as cf

    return _evidence(cf.prove(cf.Labels(model, task), domain, engines={engine}))


def _margin(model: Any, task: Any, domain: Any, engine: str) -> Any:
    """A margin hardly smaller than the greatest that enclosures show."""
    import torch

    import certiformer as cf

    body = cf.TaskMargin(model, task, 1).body
    ids = next(iter(domain.batches(10_000)))
    least = float(body.bounds(torch.from_numpy(ids), "real")[0].min())
    return _evidence(cf.prove(cf.TaskMargin(model, task, least * (1 - 2.0**-24)), domain, engines={engine}))


_CLAIMS: dict[str, Callable[[Any, Any, Any, str], Any]] = {
    "at least": lambda *args: _share(*args, negated=False, lower=True),
    "at most": lambda *args: _share(*args, negated=False, lower=False),
    "fewer than": lambda *args: _share(*args, negated=True, lower=False),
    "more than": lambda *args: _share(*args, negated=True, lower=True),
    "between": lambda *args: _bounds(*args).certificate,
    "labels": _labels,
    "margin": _margin,
}
