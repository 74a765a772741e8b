"""Engine `paths`: how many inputs a model of any depth labels rightly, by bounds conditional on a machine's states.

The inputs of one length with one label are the paths of a `WordGraph`. `PathBounds` gives for each rival w tables with

    logit_label - logit_w >= const + sum_i table_i(class of i)    along every path,

so the paths on which w may win are counted (or there are none: a shortest-path problem). A group of paths of which too
few are proved is split by the states, or the tokens, at one position, where the bounds of the parts differ most, and
each part is bounded anew: the search is anytime, greatest unproved mass first. The certificate holds the splits.
That an output y is never given is proved likewise, over all inputs, with one rival in each group whose logit exceeds
y's; and that one logit less another is at least so much, with these two.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from os import PathLike

import numpy as np
import torch

from ..models.automata import Automaton
from ..models.labels import LabelMachine
from ..models.languages import Language
from .balls import Unsupported, check_arithmetic
from .bodies import Body, NeverOutputsBody
from .bounded_model import BoundedModel
from .claims import Claim
from .enumeration import size_of
from .label_bodies import LabelMarginBody, LabelsBody, not_compared, token_places
from .logit_difference import LogitDifferenceBody
from .path_frontier import frontier_at
from .path_search import Mass, Search
from .reading import Subject
from .recheck import counted
from .reducing import plain
from .theorems import domain_to_json
from .verdicts import Certificate
from .word_graph import Inputs, one_state

File = str | PathLike[str] | None


def prove_by_paths(
    claim: Claim,
    domain: Language,
    deadline: float,
    progress: Callable[[str], None],
    objection: Callable[[Certificate], str | None],
    resume: File = None,
) -> str | None:
    """Why there is no certificate for a claim that is `searched` (about all inputs, or a share of them) to which there
    is no `objection`; None if there was one.

    Of words whose bounds are near 0 the checker may count some more as failing than this engine does, as each tells
    sums apart at so many levels only, and their bounds differ a little: then the search goes on, for twice as many more
    as it lacked. `resume`: a file to go on from, and to write what is left to. Raises `InputError` if it is another
    search's.
    """
    total = size_of(claim, domain)
    enough = total if claim.quantifier == "forall" else -(-claim.share.numerator * total // claim.share.denominator)
    search, why = search_by_paths(claim, domain, enough, deadline, progress, resume)
    if search is None:
        return why
    wanted = enough
    while search.proved >= wanted:
        proof = search.proof()
        problem = objection(Certificate.of({**claim.theorem(), "domain": domain_to_json(domain)}, proof))
        if problem is None:
            return None
        seen = counted(problem)
        if seen is None or wanted == total or time.monotonic() > deadline:
            return f"the independent checker does not accept the proof: {problem}"
        wanted = min(total, max(search.proved + 1, enough + 2 * (search.proved - seen)))
        with torch.no_grad():
            search.run(wanted)
    return _left_open(search, total)


def _left_open(search: Search, total: int) -> str:
    share = f"{search.proved / total:.6f} of the inputs are proved right, in {search.groups} groups"
    least = search.least() if search.pair is not None else -math.inf
    return share if math.isinf(least) else f"{share}; the difference is at least {least:.6g} on all"


def search_by_paths(
    claim: Claim,
    domain: Language,
    enough: int,
    deadline: float,
    progress: Callable[[str], None],
    resume: File = None,
    *,
    anytime: bool = False,
) -> tuple[Search | None, str]:
    """What is found of the inputs of a claim that is `searched`, until `enough` are proved; or why nothing is.

    `anytime`: Ctrl-C ends the search, with what was found; else it is raised again.
    """
    body, stated = claim.body, domain_to_json(domain)
    try:
        if isinstance(body, (LabelsBody, LabelMarginBody)):
            body, domain = plain(body, domain)
    except Unsupported as error:
        return None, str(error)
    if why := not_compared(body.subject):
        return None, why
    if domain.distinct:
        return None, "domains of words without repetition are not covered"
    inputs = _inputs(body.subject, domain)
    if inputs is None:
        return None, "the domain's vocabulary has tokens that the model does not know"
    labels, given, margin, banned = _wanted(body)
    pair = body.pair if isinstance(body, LogitDifferenceBody) else None
    states = (given or one_state(len(body.subject.codec.vocab))).transitions.astype(np.int64)
    check_arithmetic()
    every = enough == domain.size()
    theorem = {key: value for key, value in claim.theorem().items() if key not in ("quantifier", "share")}
    frontier = frontier_at(resume, [theorem, stated, states.tolist(), every])

    def say(mass: Mass) -> None:
        share = mass.proved / mass.total
        progress(f"paths: {share:.4%} proved right, {1 - share:.4%} undecided, {mass.groups} groups")
        if frontier is not None:
            frontier.now_and_then(search)

    try:
        with torch.no_grad():
            models = {n: BoundedModel(body.subject.model, n) for n in domain.lengths if domain.size(n)}
            search = Search(models, labels, states, inputs, deadline, say, margin, banned, pair)
            if frontier is not None:
                frontier.restore(search)
                frontier.write(search)
            try:
                search.run(enough)
            except KeyboardInterrupt:
                if not anytime:
                    raise
            finally:
                if frontier is not None:
                    frontier.write(search)
    except Unsupported as error:
        return None, str(error)
    return search, ""


def _wanted(body: Body) -> tuple[LabelMachine, LabelMachine | None, float, list[int]]:
    """Labels of the words, states to tell prefixes apart by, the margin, and banned outputs."""
    if isinstance(body, NeverOutputsBody):
        banned = [k for k, y in enumerate(body.subject.codec.outputs) if y in body.outputs]
        return one_state(len(body.subject.codec.vocab)), body.states, 0.0, banned
    if isinstance(body, LogitDifferenceBody):
        return one_state(len(body.subject.codec.vocab)), body.states, float(body.at_least), []
    assert isinstance(body, (LabelsBody, LabelMarginBody))
    return body.machine, body.states, float(getattr(body, "at_least", 0.0)), []


def _inputs(subject: Subject, domain: Language) -> Inputs | None:
    """The domain over token ids; None if its vocabulary has others."""
    if domain.is_product() and len({domain.alphabet(n) for n in domain.lengths if domain.size(n)}) == 1:
        return Inputs(np.array(sorted(token_places(subject, domain)), dtype=np.int64))
    ids = [subject.codec.index.get(token, -1) for token in domain.vocab]
    order = np.argsort(ids)
    automaton = Automaton(domain.automaton.transitions[:, order], domain.automaton.accepting)
    return Inputs(np.array(ids, dtype=np.int64)[order], automaton) if min(ids) >= 0 else None
