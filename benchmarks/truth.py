"""Whether a certificate's theorem is true of a model: every input of its domain, through rigorous enclosures."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import numpy as np

MAX_WORDS = 70_000
PRECISION = 256
Word = tuple[int, ...]


def theorem_holds(theorem: dict[str, Any], model: Any) -> bool | None:
    """Over the reals; of another model, false. None: this cannot be decided."""
    if theorem["weights_sha256"] != model.weights_sha256() or theorem["config"] != json.loads(model.config_json()):
        return False
    if theorem["semantics"] != "real":
        return None
    found = counts(theorem, model)
    return None if found is None else settled(theorem, *found)


def counts(theorem: dict[str, Any], model: Any) -> tuple[int, int, int] | None:
    """On how many inputs the body is certainly true, certainly false; and how many there are. None: too many."""
    claim = claim_of(theorem["body"], theorem["codec"], model)
    domain, vocab = theorem["domain"], claim.subject.codec.vocab
    letters = np.array([vocab.index(_value(v)) for v in domain["vocab"]])
    low, high = domain["lengths"]
    true = false = total = 0
    for n in range(low, high + 1):
        words = words_of(domain, n)
        if words is None or total + len(words) > MAX_WORDS:
            return None
        if words:
            held, failed = _judged(claim, letters[np.array(words)])
            true, false, total = true + held, false + failed, total + len(words)
    return true, false, total


def settled(theorem: dict[str, Any], true: int, false: int, total: int) -> bool | None:
    """What a quantifier says of these counts; the inputs that are in neither may be either."""
    open_ = total - false
    share = Fraction(_value(theorem.get("share", 1))) * total
    most = Fraction(_value(theorem.get("most", 1))) * total
    sure, possible = {
        "forall": (true == total, not false),
        "none": (false == total, not true),
        "exists": (true > 0, open_ > 0),
        "at_least": (true >= share, open_ >= share),
        "fewer_than": (open_ < share, true < share),
        "at_most": (open_ <= share, true <= share),
        "more_than": (true > share, open_ > share),
        "between": (true >= share and open_ <= most, open_ >= share and true <= most),
    }[theorem["quantifier"]]
    return True if sure else None if possible else False


def _judged(claim: Any, ids: Any) -> tuple[int, int]:
    """How many rows hold, and fail; rows that balls leave open, in higher precision."""
    import torch

    from certiformer.verifier.balls import Unsupported
    from certiformer.verifier.reading import FALSE, TRUE, UNDECIDED

    tokens = torch.from_numpy(ids)
    codes = claim.body.judge((tokens,), "real")
    for row in np.flatnonzero((codes == UNDECIDED).numpy()).tolist():
        if claim.body.kind == "label_margin":
            codes[row] = _precise_margin(claim.body, tokens[row : row + 1])
            continue
        try:
            codes[row] = claim.body.judge((tokens[row : row + 1],), "precise")[0]
        except Unsupported:
            break
    return int((codes == TRUE).sum()), int((codes == FALSE).sum())


def _precise_margin(body: Any, ids: Any) -> int:
    """Whether one input's label leads by the claimed margin, by arb."""
    import flint

    from certiformer.verifier.precise import _logits, precision
    from certiformer.verifier.reading import FALSE, TRUE, UNDECIDED

    label = int(body.machine.run(ids.numpy())[0])
    if label < 0:
        return FALSE
    with precision(PRECISION):
        row = _logits(body.subject.model, ids[0].tolist(), {})
        least = flint.arb(body.at_least.numerator) / body.at_least.denominator
        leads = [row[0, label] - row[0, o] for o in range(row.ncols()) if o != label]
        if all(bool(lead >= least) for lead in leads):
            return TRUE
        return FALSE if any(bool(lead < least) for lead in leads) else UNDECIDED


def words_of(domain: dict[str, Any], n: int) -> list[Word] | None:
    """All words of a length, as places in the domain's vocabulary; None: more than MAX_WORDS."""
    size = len(domain["vocab"])
    if domain["kind"] != "dfa":
        if size**n > MAX_WORDS:
            return None
        return list(product(range(size), repeat=n) if domain["kind"] == "product" else permutations(range(size), n))
    delta = domain["delta"]
    alive = [set(domain["accept"])]
    for _ in range(n):
        alive.append({state for state, row in enumerate(delta) if alive[-1] & set(row)})
    words: list[tuple[Word, int]] = [((), domain["start"])] if domain["start"] in alive[n] else []
    for left in reversed(range(n)):
        words = [((*w, a), t) for w, s in words for a, t in enumerate(delta[s]) if t in alive[left]]
        if len(words) > MAX_WORDS:
            return None
    return [word for word, _ in words]


def _value(data: Any) -> Any:
    return Fraction(data["num"], data["den"]) if isinstance(data, dict) else data


def _number(data: Any) -> Fraction:
    return Fraction(data["num"], 2 ** data["log2den"]) if isinstance(data, dict) else Fraction(data)


def claim_of(body: dict[str, Any], codec: dict[str, Any], model: Any) -> Any:
    """A theorem's body as a claim about all inputs. Raises what the constructors of claims raise."""
    import certiformer as cf
    from certiformer.compiler.core_json import core_from_json
    from certiformer.models import Codec
    from certiformer.verifier.claims import Margin, NeverOutputs

    if body["kind"] == "and":
        claims = [claim_of(part, codec, model) for part in body["parts"]]
        whole = claims[0]
        for claim in claims[1:]:
            whole = whole & claim
        return whole
    values = [tuple(_value(v) for v in codec[key]) for key in ("vocab", "outputs")]
    points = tuple(float(_number(p)) for p in codec["points"])
    read = Codec(values[0], codec["bos"], codec["kind"], values[1], points)
    if body["kind"] in ("labels", "label_margin"):
        return _about_labels(body, read, model)
    if body["kind"] == "margin":
        return Margin(model, _number(body["at_least"]), codec=read)
    if body["kind"] == "never_outputs":
        return NeverOutputs(model, [_value(v) for v in body["outputs"]], codec=read)
    if body["kind"] == "logit_difference":
        return cf.LogitDifference(
            model, *(_value(body[k]) for k in ("output", "rival")), _number(body["at_least"]), codec=read
        )
    return cf.Computes(model, core_from_json(body["program"]), codec=read)


def _about_labels(body: dict[str, Any], codec: Any, model: Any) -> Any:
    from certiformer.models.labels import LabelMachine
    from certiformer.verifier.claims import Claim
    from certiformer.verifier.label_bodies import LabelMarginBody, LabelsBody
    from certiformer.verifier.reading import Subject

    data, subject = body["machine"], Subject(model, codec)
    machine = LabelMachine(np.array(data["transitions"], dtype=np.int32), np.array(data["labels"], dtype=np.int64))
    if body["kind"] == "labels":
        return Claim("forall", LabelsBody(subject, machine, body["name"]))
    return Claim("forall", LabelMarginBody(subject, machine, body["name"], _number(body["at_least"])))
