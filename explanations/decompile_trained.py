"""Programs for trained models that are read out once: approximate, with the share of inputs on which they are right.

`read_extremum`: one head of attention, no neurons. The head's scores give an order of the tokens and its values what
each token is copied to; the program copies the token that is first in this order.

`learn_states`: any model on words of one length. A machine is learnt from the model's answers, position by position:
two beginnings are one state if they have the same answers after the same endings (of a sample). It knows nothing of
the weights. (The observation tables of Angluin, 1987, with a sample in place of the equivalence queries.)

Neither proves anything. The label machine that both give is what a proof of the share reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..compiler import rasp
from ..compiler.core import Value
from ..compiler.rasp import SOp
from ..models.config import ROOT_SCALE
from ..models.errors import InputError
from ..models.labels import NO_LABEL, LabelMachine
from ..models.tasks import Task
from ..models.token_language import Ids
from ..models.transformer import Transformer
from .program_text import program_text

Array = npt.NDArray[np.float64]

ENDINGS = 4096
"""Words whose endings are tried at each position; of a beginning so many answers are compared:"""
COMPARED_ENDINGS = 512
MAX_RUNS = 3_000_000
MAX_STATES = 5_000
COMPARED = 1 << 16
SHOWN = 10
BATCH = 1 << 14


@dataclass(frozen=True)
class Disagreement:
    """An input on which model and program differ, and what each gives, by running both."""

    word: tuple[Value, ...]
    model: Value
    program: Value

    def __str__(self) -> str:
        return f"{' '.join(map(str, self.word))}: the model gives {self.model!r}, the program {self.program!r}"


@dataclass(frozen=True, eq=False, repr=False)
class Approximated:
    """A program for a trained model that need not be right everywhere.

    `program`: in RASP, its value at the last position is the answer (None for a machine of states); `text`: as Python,
    or the machine in words. `task`: the same inputs as the model's, labelled by the program. `disagreements`: the first
    among `compared` inputs (all, if they are that few, else a random sample), of which there are `differing`.
    `agreement`: bounds for the share of all inputs on which the model gives the program's answer (`AccuracyBounds`);
    None, with the `reason`, where nothing was proved.
    """

    kind: Literal["extremum", "states"]
    program: SOp | None
    text: str
    task: Task
    disagreements: tuple[Disagreement, ...]
    differing: int
    compared: int
    agreement: Any = None
    reason: str = ""

    def __repr__(self) -> str:
        known = "" if self.agreement is None else f", {self.agreement}"
        return f"<Approximated ({self.kind}): {self.differing} of {self.compared} inputs differ{known}>"

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, object]:
        """Plain data for `json`."""
        bounds = self.agreement
        shares = None if bounds is None else {"least": str(bounds.low), "most": str(bounds.high)}
        return {
            "kind": self.kind,
            "program": self.text,
            "machine": None if self.task.machine is None else self.task.machine.to_json(),
            "agreement": shares,
            "reason": self.reason,
            "differing": self.differing,
            "compared": self.compared,
            "disagreements": [
                {"word": list(d.word), "model": d.model, "program": d.program} for d in self.disagreements
            ],
        }


def approximate(
    model: Transformer, task: Task, *, seed: int = 0, step: Callable[[str], None] = lambda _: None
) -> Approximated:
    """A program for a trained model: `read_extremum` where the model is of that kind, else `learn_states`.

    Raises `InputError` for models that neither takes.
    """
    if model.config.readout == "each":
        raise InputError(
            f"programs are learnt for models that are read out once, and this one has {len(task.outputs)}"
            " outputs at each position"
        )
    rng = np.random.default_rng(seed)
    program: SOp | None = None
    kind: Literal["extremum", "states"]
    if is_one_head(model):
        step("the scores and values of the head")
        kind, (program, machine) = "extremum", read_extremum(model, task)
        text = program_text(program, f"for {task.name}, its value at the last position; read off the weights")
    else:
        kind, machine = "states", learn_states(model, task, rng, step)
        text = machine_text(machine, task)
    found = Task(
        task.family,
        task.parameters,
        f"the program for {task.name}",
        task.domain,
        task.outputs,
        task.readout,
        machine.run,
        build_machine=lambda: machine,
        build_states=task.build_states,
    )
    step("comparing")
    disagreements, differing, compared = _compare(model, found, rng)
    return Approximated(kind, program, text, found, disagreements, differing, compared)


def is_one_head(model: Transformer) -> bool:
    """Whether it is one head of attention, without neurons and LayerNorm, read out at the last position."""
    c = model.config
    alone = len(c.layers) == 1 and c.layers[0].n_heads == 1 and not c.layers[0].d_mlp
    return alone and c.attention == "softmax" and c.layer_norm is None and c.readout == "last" and not c.d_readout


def read_extremum(model: Transformer, task: Task) -> tuple[SOp, LabelMachine]:
    """The program "copy the token that is first in the order of scores", with order and copies read off the weights.

    A token's score is averaged over queries and positions, each query's scores centred; what it is copied to is the
    greatest logit when it has all attention, averaged over positions and queries.
    """
    w = {name: p.detach().cpu().numpy().astype(np.float64) for name, p in model.named_parameters()}
    stream = np.broadcast_to(w["embed.W_E"][None], (task.max_len, *w["embed.W_E"].shape))
    if "pos_embed.W_pos" in w:
        stream = stream + w["pos_embed.W_pos"][: task.max_len, None]

    def head(letter: str, x: Array) -> Array:
        found: Array = x @ w[f"blocks.0.attn.W_{letter}"][0] + w[f"blocks.0.attn.b_{letter}"][0]
        return found

    scale = model.config.attention_scale
    factor = model.config.layers[0].d_head ** -0.5 if scale == ROOT_SCALE else float(scale)
    scores = np.einsum("qd,jtd->qjt", head("Q", stream[-1]), head("K", stream)) * factor
    score = (scores - scores.mean(axis=2, keepdims=True)).mean(axis=(0, 1))
    always = (stream[-1] + w["blocks.0.attn.b_O"]) @ w["unembed.W_U"] + w["unembed.b_U"]
    copied = head("V", stream) @ w["blocks.0.attn.W_O"][0] @ w["unembed.W_U"]
    copies = (copied.mean(axis=0) + always.mean(axis=0)).argmax(axis=1)
    order = np.argsort(-score, kind="stable")
    place = np.argsort(order)
    after = np.minimum(np.arange(len(order) + 1)[:, None], place[None, :])  # state p: the first is in place p
    machine = LabelMachine(_start_first(after), np.concatenate([[NO_LABEL], copies[order]]))
    tokens, outputs = task.vocab, task.outputs
    places = rasp.Map({tokens[t]: int(p) for t, p in enumerate(place)}, rasp.tokens).named("place")
    before = rasp.selector_width(rasp.select(places, places, "<")).named("before")
    chosen = rasp.select(before, before, lambda key, query: key == 0)
    answer = rasp.Map({tokens[t]: outputs[int(c)] for t, c in enumerate(copies)}, rasp.tokens).named("copy")
    return rasp.aggregate(chosen, answer), machine


def _start_first(after: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """States 0..n-1 and the start n, renumbered: the start is 0."""
    return (np.roll(after, 1, axis=0) + 1).astype(np.int32)


def learn_states(
    model: Transformer, task: Task, rng: np.random.Generator, step: Callable[[str], None] = lambda _: None
) -> LabelMachine:
    """The machine of the beginnings that the model tells apart. Raises `InputError` for too many, or lengths."""
    lengths = [n for n in task.domain.lengths if task.domain.size(n)]
    if len(lengths) != 1:
        raise InputError(f"a machine is learnt for words of one length; {task.name} has lengths {lengths}")
    (n,), n_tokens, runs = lengths, len(task.vocab), 0
    pool = task.domain.sample_length(rng, n, ENDINGS)
    beginnings: list[Ids] = [np.zeros(0, dtype=np.int64)]
    rows: list[list[int]] = []
    labels: list[int] = []
    first = 0
    for k in range(1, n + 1):
        step(f"position {k} of {n}: {len(beginnings)} states")
        endings = np.unique(pool[:, k:], axis=0) if k < n else np.zeros((1, 0), dtype=np.int64)
        seen: dict[bytes, int] = {}
        following: list[Ids] = []
        here: list[list[int]] = []
        start = first + len(beginnings)
        for beginning in beginnings:
            grown = np.concatenate([np.tile(beginning, (n_tokens, 1)), np.arange(n_tokens)[:, None]], axis=1)
            words = np.concatenate([np.repeat(grown, len(endings), axis=0), np.tile(endings, (n_tokens, 1))], axis=1)
            belongs = task.domain.contains_ids(words).reshape(n_tokens, -1)
            inside = (belongs & (belongs.cumsum(axis=1) <= COMPARED_ENDINGS)).reshape(-1)
            runs += int(inside.sum())
            if runs > MAX_RUNS or first + len(beginnings) + len(following) > MAX_STATES:
                raise InputError(
                    f"the model tells too many beginnings of {task.name} apart: after {k} of {n} positions it took "
                    f"{runs} runs and {first + len(beginnings) + len(following)} states (the limits are {MAX_RUNS} and "
                    f"{MAX_STATES}); take a smaller task"
                )
            answers = np.full(len(words), NO_LABEL, dtype=np.int64)
            answers[inside] = answers_of(model, words[inside])
            row = []
            for t, told in enumerate(answers.reshape(n_tokens, -1)):
                if (told == NO_LABEL).all():
                    row.append(-1)
                    continue
                key = told.tobytes()
                if key not in seen:
                    seen[key] = start + len(following)
                    following.append(grown[t])
                row.append(seen[key])
            here.append(row)
        rows += here
        labels += [NO_LABEL] * len(beginnings)
        first, beginnings = start, following
    labels += answers_of(model, np.array(beginnings, dtype=np.int64)).tolist()
    dead = first + len(beginnings)
    rows += [[dead] * n_tokens] * (len(beginnings) + 1)
    table = np.array(rows, dtype=np.int32)
    return LabelMachine(np.where(table < 0, dead, table).astype(np.int32), np.array([*labels, NO_LABEL]))


def machine_text(machine: LabelMachine, task: Task) -> str:
    """A Python module whose `answer(word)` runs the machine."""
    rows = [f"    ({', '.join(map(str, row))}), # {state}" for state, row in enumerate(machine.transitions.tolist())]
    labels = [None if label == NO_LABEL else task.outputs[label] for label in machine.labels.tolist()]
    return "\n".join(
        [
            f'"""A machine of {len(labels)} states for {task.name}, learnt from a model\'s answers."""',
            "",
            f"TOKENS = {list(task.vocab)!r}",
            "NEXT = [  # a row for each state: the state after each token; the start is state 0",
            *rows,
            "]",
            f"LABELS = {labels!r}",
            "",
            "",
            "def answer(word):",
            "    state = 0",
            "    for token in word:",
            "        state = NEXT[state][TOKENS.index(token)]",
            "    return LABELS[state]",
            "",
        ]
    ).replace("), #", "),  #")


def answers_of(model: Transformer, words: Ids) -> Ids:
    """The model's answers to words of token ids: indices into its outputs, by its float32 run."""
    found = []
    with torch.no_grad():
        for part in np.array_split(words, max(1, -(-len(words) // BATCH))):
            if len(part):
                found.append(model(torch.from_numpy(np.ascontiguousarray(part))).argmax(dim=-1).numpy())
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _compare(model: Transformer, task: Task, rng: np.random.Generator) -> tuple[tuple[Disagreement, ...], int, int]:
    words: list[Ids] = []
    if task.domain.size() <= COMPARED:
        words += list(task.domain.batches(BATCH))
    else:
        words += [ids for _, ids in task.domain.sample_ids(rng, COMPARED)]
    found: list[Disagreement] = []
    differing = 0
    for ids in words:
        told, wanted = answers_of(model, ids), task.labels(ids)
        wrong = np.flatnonzero(told != wanted)
        differing += len(wrong)
        for i in wrong:
            label = task.outputs[wanted[i]] if wanted[i] != NO_LABEL else None
            found.append(Disagreement(tuple(task.vocab[t] for t in ids[i]), task.outputs[told[i]], label))
    found.sort(key=lambda d: (len(d.word), [task.domain.index[v] for v in d.word]))
    return tuple(found[:SHOWN]), differing, sum(map(len, words))
