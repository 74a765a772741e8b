"""The whole chain on one program: compile, prove, check, refute two false claims, explain; and a trained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..proofs.words import about, sentence
from .commands import outcome_data, shape, shape_words
from .output import BadInput, ExitCode, Screen, grouped, plain, sequence_text

if TYPE_CHECKING:
    from ..compiler.compiled import Compiled
    from ..models import Language
    from ..verifier.claims import Claim

T = TypeVar("T")
VOCAB, LENGTH = 20, 32
SECONDS = 60.0
FAULT = ("blocks.0.mlp.W_out", 80)  # one of the neurons that count equal tokens: matters where many are equal
LEFT_OUT = "a0.h0->m1"
SAMPLES = 1000
TRAINED, SHARE = "max-of-10", Fraction(999, 1000)

# In a fresh interpreter: check, then look at what was imported.
CHECK = """
import json, sys
from certiformer.cli import execute
code = execute(sys.argv[1:])
loaded = sorted({"torch", "z3", "sympy"} & set(sys.modules))
if loaded:
    sys.exit(f"the checker imported {loaded}")
sys.exit(code)
"""


@dataclass(frozen=True)
class Story:
    """What has been shown, as text while it happens and as data at the end."""

    screen: Screen
    facts: dict[str, object] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        self._say(f"\n{text}" if self.told else text)

    def line(self, text: str) -> None:
        self._say("\n".join(f"   {row}".rstrip() for row in text.splitlines()))

    def _say(self, text: str) -> None:
        self.told.append(text)
        self.screen.say(text)


def run_demo(folder: Path | None, as_json: bool) -> int:
    """The whole story, in under three minutes on two cores. Exit code 1 if any step ends otherwise than it should."""
    if folder is not None and not folder.is_dir():
        raise BadInput(f"no folder {str(folder)!r}")
    story = Story(Screen(as_json))
    with nullcontext(str(folder)) if folder else tempfile.TemporaryDirectory() as place:
        right = _tell(story, Path(place))
    story.facts.update(as_expected=right, text="\n".join(story.told))
    if as_json:
        story.screen.show(story.facts)
    return ExitCode.OK if right else ExitCode.NO


def _tell(story: Story, folder: Path) -> bool:
    from ..compiler import programs
    from ..compiler.compile import compile as compile_
    from ..models import sequences, zoo
    from ..verifier.claims import Abstracts, Computes
    from ..verifier.task_claims import Accuracy

    started = time.perf_counter()
    story.title(f"1. Compile sort for {VOCAB} tokens and lengths 1 to {LENGTH}")
    compiled, seconds = _timed(lambda: compile_(programs.sort(), vocab=range(VOCAB), max_len=LENGTH, name="sort"))
    story.line(f"{shape_words(compiled)}  ({seconds:.1f} s)")
    story.line(f"for example  {_example(compiled)}")
    story.line("its circuit, known because it was compiled:")
    story.line(compiled.circuit.to_text())
    story.facts["model"] = shape(compiled)

    domain = sequences(vocab=range(VOCAB), length=range(1, LENGTH + 1))
    story.title(f"2. Prove that it sorts, on all {VOCAB}^1 + ... + {VOCAB}^{LENGTH} inputs")
    story.line(f"{about(domain.size())} sequences")
    proved = _prove(story, "sorts", Computes(compiled, compiled.core), domain, "Proved", folder / "sort.cert")
    compiled.save(folder / "sort.safetensors")

    story.title("3. Check the certificate: another program, in a process that never imports torch")
    checked = proved and _check(story, folder)

    story.title("4. Plant a fault: change one weight")
    faulty, change = without_weight(compiled, *FAULT)
    claim = Computes(faulty, compiled.core)
    story.line(change)
    story.line(_sampled(claim, domain))
    found = _prove(story, "faulty", claim, domain, "Refuted")

    story.title(f"5. A wrong explanation: the circuit without its edge {LEFT_OUT}, which is then ablated to zero")
    wrong = _wrong_explanation(story, compiled, domain)

    story.title(
        "6. The right explanation, on every pair of inputs: exchanging what a component holds is exchanging an s-op"
    )
    explained = _prove(story, "abstracts", Abstracts(compiled), domain, "Proved")

    trained = zoo.load(TRAINED)
    story.title(f"7. A trained model, {TRAINED}: it is right on at least {float(SHARE):g} of all its inputs")
    accurate = _prove(story, "accuracy", Accuracy(trained.model, trained.task, SHARE), trained.task.domain, "Proved")
    story.title(f"{time.perf_counter() - started:.0f} s in all")
    return proved and checked and found and wrong and explained and accurate


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _example(compiled: Compiled) -> str:
    """One run of the model."""
    xs = [7, 3, 19, 3, 0]
    return f"{sequence_text(xs)}  ->  {sequence_text(compiled.run(xs))}"


def _prove(
    story: Story, key: str, claim: Claim, domain: Language, expected: str, certificate: Path | None = None
) -> bool:
    """Proves or refutes, says which, keeps the certificate; whether it ended as expected."""
    from ..verifier.portfolio import prove
    from ..verifier.verdicts import Proved, Refuted, Unknown

    with story.screen.progress("proving") as tell:
        verdict, seconds = _timed(lambda: prove(claim, domain, seconds=SECONDS, progress=tell))
    data: dict[str, object] = {"verdict": type(verdict).__name__.lower(), "seconds": round(seconds, 2)}
    match verdict:
        case Proved():
            story.line(str(verdict))
            if certificate:
                verdict.certificate.save(certificate)
                data["certificate_bytes"] = certificate.stat().st_size
        case Refuted():
            story.line(str(verdict))
            data |= {"evidence": plain(verdict.evidence), "outcome": outcome_data(verdict)}
        case Unknown(reason="interrupted"):
            raise KeyboardInterrupt
        case Unknown():
            story.line(str(verdict))
            data["reason"] = verdict.reason
        case _:
            story.line(str(verdict))
    story.facts[key] = data
    return type(verdict).__name__ == expected


def _check(story: Story, folder: Path) -> bool:
    """The independent checker, in a process of its own."""
    package = Path(str(sys.modules[__name__.split(".")[0]].__file__))
    certificate, model = folder / "sort.cert", folder / "sort.safetensors"
    arguments = ["check", str(certificate), "--model", str(model), "--json"]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(package.parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    )
    with story.screen.progress("checking"):
        done, seconds = _timed(
            lambda: subprocess.run(
                [sys.executable, "-c", CHECK, *arguments], env=environment, capture_output=True, text=True, check=False
            )
        )
    result: Mapping[str, Any] = json.loads(done.stdout) if done.stdout else {}
    story.line(f"{grouped(certificate.stat().st_size)} bytes: {result.get('verdict', 'failed')}  ({seconds:.1f} s)")
    if done.returncode:
        story.line(done.stderr.strip() or str(result))
    else:
        story.line(sentence(result["theorem"]))
    story.facts["check"] = {"verdict": result.get("verdict"), "seconds": round(seconds, 2)}
    return done.returncode == 0


def without_weight(compiled: Compiled, name: str, row: int) -> tuple[Compiled, str]:
    """A copy of the model whose largest weight in one row of a matrix is 0, and the change in words."""
    import torch

    from ..models import Transformer

    weights = {key: parameter.detach().clone() for key, parameter in compiled.model.named_parameters()}
    column = int(weights[name][row].abs().argmax())
    before = float(weights[name][row, column])
    with torch.no_grad():
        weights[name][row, column] = 0.0
    model = Transformer.from_parameters(compiled.model.config, weights)
    return replace(compiled, model=model), f"{name}[{row}, {column}]: {before:g} becomes 0"


def _wrong_explanation(story: Story, compiled: Compiled, domain: Language) -> bool:
    """Claims that the model works without one edge of its circuit (zero ablation)."""
    from ..verifier.claims import Faithful

    claim = Faithful(compiled, compiled.circuit.without([LEFT_OUT]), "zero")
    story.line(_sampled(claim, domain))
    return _prove(story, "wrong_explanation", claim, domain, "Refuted")


def _sampled(claim: Claim, domain: Language) -> str:
    """What testing alone would say."""
    from ..verifier.sampling import sample_accuracy

    found = sample_accuracy(claim, domain, SAMPLES)
    return (
        f"tested on {found.trials:,} random inputs it is right on {found.successes:,}: "
        f"a share of {found.low:.4f} to {found.high:.4f} ({found.confidence:.0%} Clopper-Pearson interval)"
    )
