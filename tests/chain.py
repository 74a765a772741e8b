"""The whole chain on one program, compared: interpreter, core program, compiled model, Z3's formula, the model over the
reals on every input, proof by composition, independent check.

`follow` runs it for one random program; `summarise` counts what happened to many.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from certiformer import proofs
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core import CoreProgram, Value, normalise
from certiformer.compiler.core_evaluator import BatchEvaluator
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.lower import CompileError
from certiformer.compiler.rasp import AggregateOp, SOp
from certiformer.compiler.structure import nodes_of
from certiformer.models.languages import sequences
from certiformer.verifier.claims import Computes
from certiformer.verifier.compose import prove_by_composition
from certiformer.verifier.enumeration import enumerate_inputs
from certiformer.verifier.smt_encoding import Encoding
from certiformer.verifier.smt_gates import FALSE
from certiformer.verifier.smt_worker import Z3
from certiformer.verifier.verdicts import Certificate

from .random_programs import MAX_LEN, Case, case

Status = Literal["agrees", "refused", "wrong"]


@dataclass(frozen=True)
class Outcome:
    """What happened to one program.

    `detail`: why it was refused, or the first disagreement. `proof`: "proved", or why there is no proof. `formula`:
    "agrees", or on what Z3 differs from the interpreter. `reals`: "true" if the model, over the reals, computes the
    program on every input, "false" or "undecided"; both empty if they were not asked.
    """

    case: Case
    status: Status
    detail: str = ""
    proof: str = ""
    formula: str = ""
    reals: str = ""

    @property
    def proved(self) -> bool:
        return self.proof == "proved"

    @property
    def disagreement(self) -> str:
        """What does not fit together: a bug of one part of the chain. Empty if all agree."""
        if self.status == "refused":
            return ""
        found = [self.detail] if self.status == "wrong" else []
        found += [f"Z3: {self.formula}"] if self.formula not in ("", "agrees") else []
        found += [f"over the reals: {self.reals}"] if self.reals not in ("", "true") else []
        found += [self.proof] if self.proof.startswith("checker") or (self.proved and found) else []
        return "; ".join(found)

    def __str__(self) -> str:
        return f"{self.case.text}\n    {self.status} {self.detail}\n    {self.proof} {self.formula} {self.reals}"


def inputs(vocab: Sequence[Value], max_len: int = MAX_LEN) -> list[list[Value]]:
    """All sequences of 1..max_len tokens."""
    return [list(xs) for n in range(1, max_len + 1) for xs in product(vocab, repeat=n)]


def same(got: Sequence[Value], expected: Sequence[Value]) -> bool:
    """Equal values (True is 1); None only where None is expected."""
    return len(got) == len(expected) and all(g == e for g, e in zip(got, expected, strict=True))


def core_outputs(core: CoreProgram, rows: Sequence[Sequence[Value]]) -> list[list[Value] | None]:
    """The core program's outputs; None for a sequence on which one is undefined."""
    run, values, found = BatchEvaluator(core), core.value_node(core.output).values, {}
    for n in {len(row) for row in rows}:
        at = [i for i, row in enumerate(rows) if len(row) == n]
        ids = np.array([[core.vocab.index(x) for x in rows[i]] for i in at])
        for i, row in zip(at, run(ids)[core.output].tolist(), strict=True):
            found[i] = None if min(row) < 0 else [values[index] for index in row]
    return [found[i] for i in range(len(rows))]


def disagreement(program: SOp, compiled: Compiled, rows: Sequence[Sequence[Value]]) -> str:
    """The first input on which interpreter, core program and model differ, with their outputs; "" if there is none."""
    cores, models = core_outputs(compiled.core, rows), compiled.run_batch(rows)
    for xs, core, model in zip(rows, cores, models, strict=True):
        expected = evaluate(program, xs, causal=compiled.causal)
        if core is None or not same(core, expected) or not same(model, expected):
            return f"on {xs}: interpreter {expected}, core {core}, model {model}"
    return ""


def attempt_proof(compiled: Compiled, max_len: int = MAX_LEN) -> str:
    """Prove by composition and check independently: "proved", or what went wrong."""
    claim = Computes(compiled)
    found = prove_by_composition(claim, sequences(compiled.vocab, range(1, max_len + 1)))
    if not isinstance(found, Certificate):
        return f"no proof: {found.text}"
    with tempfile.TemporaryDirectory() as folder:
        compiled.model.save(Path(folder) / "model.safetensors")
        answer = proofs.check(found.data, Path(folder) / "model.safetensors")
    return "proved" if isinstance(answer, proofs.Valid) else f"checker: {answer}"


def formula(one: Case, lengths: Iterable[int] = (1, 2, 3), program: SOp | None = None) -> str:
    """Whether Z3 finds a word on which the formula has another output than the program (or another `program`):
    "agrees", or the word."""
    means = {node for node in nodes_of(one.program) if isinstance(node, AggregateOp)}
    for n in lengths:
        encoding = Encoding(sequences(one.vocab, n), n, one.causal, means)
        outputs, gates, words = encoding.value(one.program), encoding.gates, []
        for word in product(one.vocab, repeat=n):
            expected = evaluate(one.program if program is None else program, list(word), causal=one.causal)
            right = [choice.get(normalise(v), FALSE) for choice, v in zip(outputs, expected, strict=True)]
            tokens = [choice[t] for choice, t in zip(encoding.tokens, word, strict=True)]
            words.append(gates.all([*tokens, -gates.all([*right, *(-x for x in encoding.undefined)])]))
        differs = gates.any(words)
        if differs == FALSE:
            continue
        inputs = [literal for choice in encoding.tokens for literal in choice.values()]
        queries = Z3()
        queries.load(gates.count, gates.clauses([differs]))
        if queries.check([], inputs, 60.0)["answer"] != "sat":
            return f"no word of length {n} is possible"
        answer = queries.check([differs], inputs, 60.0)
        if answer["answer"] != "unsat":
            return f"{answer['answer']} on {encoding.word(answer.get('true', ()))}"
    return "agrees"


def over_the_reals(compiled: Compiled, max_len: int = MAX_LEN, program: CoreProgram | None = None) -> str:
    """What rigorous enclosures of the model say of the claim (about another `program`), on every input."""
    tally = enumerate_inputs(Computes(compiled, program), sequences(compiled.vocab, range(1, max_len + 1)), 60.0)
    if tally.false or tally.undefined:
        return f"false on {tally.false + tally.undefined} inputs"
    return "true" if tally.complete and tally.true == tally.total else f"undecided on {tally.undecided} inputs"


def follow(one: Case, prove: bool = True, bos: bool = True, everything: bool = False) -> Outcome:
    """Compile and compare on all 120 inputs; then prove, if asked to; then `everything`: Z3 and the reals as well."""
    try:
        compiled = compile(one.program, vocab=one.vocab, max_len=MAX_LEN, causal=one.causal, bos=bos)
    except CompileError as error:
        return Outcome(one, "refused", str(error))
    found = disagreement(one.program, compiled, inputs(one.vocab))
    more = (formula(one), over_the_reals(compiled)) if everything else ("", "")
    return Outcome(one, "wrong" if found else "agrees", found, attempt_proof(compiled) if prove else "", *more)


def run_many(seeds: Iterable[int], prove: bool = True, everything: bool = False) -> list[Outcome]:
    """`follow` for the random program of each seed."""
    return [follow(case(seed), prove, everything=everything) for seed in seeds]


def summarise(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many programs there were, and how many were accepted, agree on all inputs, and are proved."""
    status = Counter(outcome.status for outcome in outcomes)
    return {
        "programs": len(outcomes),
        "accepted": len(outcomes) - status["refused"],
        "agree": status["agrees"],
        "wrong": status["wrong"],
        "proved": sum(outcome.proved for outcome in outcomes),
    }
