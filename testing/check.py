"""`@interpretation`: a claim as a test, which looks for a counterexample, and proves the claim if asked to."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from hypothesis import currently_in_test_context, is_hypothesis_test
from hypothesis import strategies as st
from hypothesis.control import current_build_context

from ..models.edits import Edited
from ..models.errors import InputError
from ..models.languages import Language
from ..models.transformer import Transformer
from ..verifier.bodies import AndBody, Body, ComputesBody
from ..verifier.circuit_bodies import FaithfulBody
from ..verifier.claims import Claim
from ..verifier.portfolio import check_readable, prove
from ..verifier.sampling import sample_accuracy
from ..verifier.verdicts import Certificate, Proved, Refuted, describe_domain
from ..verifier.witness import Witness
from . import session
from .diverging import divergence
from .guided import EXAMPLES, find_failure
from .session import Record, Status

LONGER = 20
P = ParamSpec("P")
R = TypeVar("R")
MakesClaim: TypeAlias = Claim | Callable[..., Claim]
MakesDomain: TypeAlias = Language | Callable[..., Language]


class InterpretationError(AssertionError):
    """A claim that a test refutes, or cannot establish as asked."""

    certiformer_report = True


@dataclass(frozen=True)
class Checked:
    """What became of a claim. `detail`: why it is unknown; `certificate`: of a proof."""

    claim: Claim
    status: Status
    examples: int
    seconds: float
    detail: str = ""
    certificate: Certificate | None = None
    path: Path | None = None


def interpretation(
    claim: MakesClaim,
    domain: MakesDomain,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    guided: bool = True,
    seconds: float | None = None,
    certify: bool | None = None,
) -> Callable[[Callable[P, R]], Callable[P, None]]:
    """A decorator that makes a test of a claim on a domain.

    The test runs its body (often `...`), then looks for a counterexample on `examples` inputs: a guided search from
    `seed`, or with `guided=False` uniformly random inputs. A counterexample is shrunk, and the test fails with the
    claim, the input, what was expected, and where the runs part. With `pytest --certify` what survives is proved
    within `seconds` (default: `--certify-seconds`), the certificate written, and what stays unknown listed.
    `certify=True`: the test passes only with a proof; `certify=False`: testing is enough.

    `claim` and `domain` may be functions of the test's arguments: fixtures, parameters, or what `@given` draws, whose
    order with `@interpretation` does not matter. Under `@given`, a claim that is no function of them is checked once.
    Raises `InputError` at definition time for an empty domain and for one that the claim has no meaning for.
    """
    if isinstance(claim, Claim) and isinstance(domain, Language):
        _check_question(claim, domain)
    elif isinstance(domain, Language) and domain.is_empty:
        raise InputError(f"{domain!r} is empty: there is nothing to test; widen its lengths or its vocabulary")
    for name, given, kind in (("claim", claim, Claim), ("domain", domain, Language)):
        if not isinstance(given, kind) and not callable(given):
            raise InputError(f"interpretation takes a {name} or a function that makes one, got {given!r}")
    fixed = isinstance(claim, Claim) and isinstance(domain, Language)
    done: dict[str, str] = {}

    def decorate(test: Callable[P, R]) -> Callable[P, None]:
        if is_hypothesis_test(test):
            handle = test.hypothesis  # type: ignore[attr-defined]
            handle.inner_test = decorate(handle.inner_test)
            return test  # type: ignore[return-value]

        @functools.wraps(test)
        def checked(*args: P.args, **options: P.kwargs) -> None:
            __tracebackhide__ = True
            test(*args, **options)
            bound = inspect.signature(test).bind(*args, **options)
            bound.apply_defaults()

            def work() -> None:
                one = claim if isinstance(claim, Claim) else claim(**_wanted(claim, bound.arguments))
                inputs = domain if isinstance(domain, Language) else domain(**_wanted(domain, bound.arguments))
                check_interpretation(
                    one, inputs, examples=examples, seed=seed, guided=guided, seconds=seconds, certify=certify
                )

            if currently_in_test_context():
                _under_given(work, done if fixed else {})
            else:
                work()

        _placed_as(checked, inspect.unwrap(test))
        return checked

    return decorate


def _placed_as(function: Any, test: Any) -> None:
    """Reports name the line of the test, not ours."""
    code = getattr(test, "__code__", None)
    if code is not None:
        names = {name: getattr(code, name) for name in ("co_filename", "co_firstlineno", "co_name")}
        function.__code__ = function.__code__.replace(**names)


def _under_given(work: Callable[[], None], done: dict[str, str]) -> None:
    """Does the work unless it is done for this test, and outside the time that Hypothesis allows an example.

    (The time it takes to draw does not count towards a deadline.)
    """
    here = os.environ.get("PYTEST_CURRENT_TEST", "")

    def once() -> None:
        done.clear()
        try:
            work()
            done[here] = ""
        except InterpretationError as error:
            done[here] = str(error)

    if not here or here not in done:
        current_build_context().data.draw(st.builds(once))
    if done[here]:
        raise InterpretationError(done[here])


def _wanted(make: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The test's arguments that a function asks for by name."""
    parameters = inspect.signature(make).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(arguments)
    missing = [p.name for p in parameters if p.name not in arguments and p.default is inspect.Parameter.empty]
    if missing:
        raise InputError(
            f"the function that makes the claim asks for {', '.join(missing)}, the test has "
            f"{', '.join(arguments) or 'no arguments'}: give the test an argument of that name"
        )
    return {p.name: arguments[p.name] for p in parameters if p.name in arguments}


def _check_question(claim: Claim, domain: Language) -> None:
    if not isinstance(claim, Claim):
        raise InputError(f"a test is made of a claim, such as Computes(compiled), got {claim!r}")
    if not isinstance(domain, Language):
        raise InputError(f"a claim is tested on a token language, such as sequences(vocab, length), got {domain!r}")
    if domain.is_empty:
        raise InputError(f"{domain!r} is empty: there is nothing to test; widen its lengths or its vocabulary")
    check_readable(*claim.body.readable(), domain)


def check_interpretation(
    claim: Claim,
    domain: Language,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    guided: bool = True,
    seconds: float | None = None,
    certify: bool | None = None,
) -> Checked:
    """What `@interpretation` does: tests the claim, proves it if asked to. Raises `InterpretationError` (an
    `AssertionError`) with the shrunk counterexample if it fails, and, with `certify=True`, if it is not proved.
    """
    __tracebackhide__ = True
    _check_question(claim, domain)
    here, began = session.current(), time.monotonic()
    objection = _tested(claim, domain, examples, seed, guided)
    result = Checked(claim, "tested", examples, time.monotonic() - began)
    if objection is not None:
        _record("refuted", claim, objection[0])
        raise InterpretationError(_report(claim, domain, *objection))
    if here.certify if certify is None else certify:
        limit = here.seconds if seconds is None else seconds
        result = _certified(claim, domain, limit, result, here.folder, seed)
    _record(result.status, claim, result.detail)
    if certify and result.status != "proved":
        raise InterpretationError(f"not proved: {claim}\n  {result.detail}")
    return result


def _record(status: Status, claim: Claim, detail: str) -> None:
    session.current().record(Record(status, claim.describe(), detail))


def _tested(
    claim: Claim, domain: Language, examples: int, seed: int, guided: bool
) -> tuple[str, Witness | None] | None:
    """None if testing has no objection, else a line that says which, and the witness if there is one."""
    if claim.counted:
        found = sample_accuracy(claim, domain, examples, seed=seed)
        least = 0 if claim.quantifier == "at_most" else claim.share
        most = 1 if claim.quantifier == "at_least" else claim.most if claim.quantifier == "between" else claim.share
        if found.high < least or found.low > most:
            return f"sampled: {found}", None
        return None
    hit = find_failure(claim, domain, examples=examples, seed=seed, guided=guided)
    if claim.quantifier == "exists":
        return None if hit is not None else (f"no such input among {examples:,} examples", None)
    if hit is None:
        return None
    way = "" if hit.over_the_reals else "; in the float32 run only"
    return f"{hit.witness} (shrunk from length {len(hit.first.inputs[0])}; {hit.runs:,} examples, seed {seed}{way})", (
        hit.witness
    )


def _certified(
    claim: Claim, domain: Language, seconds: float, tested: Checked, folder: Path | None, seed: int
) -> Checked:
    """Proves the claim; where no engine decides it, a search through LONGER times the examples has a last look."""
    __tracebackhide__ = True
    if not isinstance(claim.subject.model, Transformer):
        detail = "an edited model has no weights of its own to certify"
        return Checked(claim, "unknown", tested.examples, tested.seconds, detail)
    began = time.monotonic()
    verdict = prove(claim, domain, seconds=seconds)
    spent = tested.seconds + time.monotonic() - began
    match verdict:
        case Proved(certificate):
            path = None if folder is None else _write(certificate, claim, folder)
            return Checked(claim, "proved", tested.examples, spent, str(path or ""), certificate, path)
        case Refuted(Witness() as witness):
            line = f"{witness} (by {verdict.setting.engine}, after {tested.examples:,} examples had not met it)"
            _record("refuted", claim, line)
            raise InterpretationError(_report(claim, domain, line, witness))
        case Refuted(evidence):
            _record("refuted", claim, str(evidence))
            raise InterpretationError(_report(claim, domain, str(evidence), None))
        case _:
            longer = LONGER * tested.examples
            hit = find_failure(claim, domain, examples=longer, seed=seed) if claim.quantifier == "forall" else None
            if hit is not None and hit.over_the_reals:
                line = f"{hit.witness} (by guided search, {hit.runs:,} of {longer:,} examples)"
                _record("refuted", claim, line)
                raise InterpretationError(_report(claim, domain, line, hit.witness))
            reason = getattr(verdict, "reason", str(verdict))
            return Checked(claim, "unknown", tested.examples, spent, f"{type(verdict).__name__}: {reason}")


def _write(certificate: Certificate, claim: Claim, folder: Path) -> Path:
    """The certificate, and beside it the model, named by the test; the same test gives the same names."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "claim").rpartition(" (")[0] or "claim"
    name = re.sub(r"[^\w.-]+", "-", test.rpartition("/")[2]).strip("-")[:80]
    digest = hashlib.sha256(certificate.to_bytes()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{digest}.cert"
    certificate.save(path)
    model = folder / f"{claim.subject.model.weights_sha256()[:16]}.safetensors"
    if not model.exists():
        claim.subject.model.save(model)
    return path


# Reports


def _report(claim: Claim, domain: Language, line: str, witness: Witness | None) -> str:
    rows = ["refuted", f"  claim:           {claim}", f"  domain:          {describe_domain(domain, claim.arity)}"]
    if witness is None:
        return "\n".join([*rows, f"  because:         {line}"])
    outcome = claim.holds(witness)
    rows.append(f"  counterexample:  {line}")
    if outcome.expected:
        rows += [f"  expected:        [{', '.join(outcome.expected)}]"]
        rows += [f"  got:             [{', '.join(outcome.got)}]"]
    if outcome.positions:
        rows.append(f"  differs at:      position {', '.join(map(str, outcome.positions[:12]))}")
    if outcome.note:
        rows.append(f"  note:            {outcome.note}")
    if parted := where_runs_part(claim.body, witness):
        rows.append("\n".join(["  where the runs part:", *("    " + line for line in parted.splitlines())]))
    return "\n".join(rows)


def where_runs_part(body: Body, witness: Witness) -> str:
    """Site by site, for claims about programs and circuits; empty for the others, whose outcome says it."""
    if isinstance(body, AndBody):
        return next((text for part in body.parts if (text := where_runs_part(part, witness))), "")
    subject, xs = body.subject, witness.inputs[0]
    if isinstance(body, ComputesBody):
        return str(divergence(subject, body.program, xs)) if body.program.nodes else ""
    if isinstance(body, FaithfulBody):
        return str(divergence(subject, _alone(body, witness), xs))
    return ""


def _alone(body: FaithfulBody, witness: Witness) -> Edited:
    """The model with everything outside the claim's circuit ablated, as on this witness."""
    codec = body.subject.codec
    return body.alone.edited(tuple(torch.tensor([codec.ids(x)[int(codec.bos) :]]) for x in witness.inputs))
