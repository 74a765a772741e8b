"""Claims: a quantifier, and a body that is executable on one witness. Builders make the usual ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..compiler.alignment import HeadRole, NeuronRole
from ..compiler.core import Aggregate, CoreProgram, Indices, Tokens, Width
from ..models.circuits import Circuit
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.labels import LabelMachine
from ..models.tasks import Task
from ..models.values import Value, value_to_json
from .alone import Stored
from .balls import Unsupported
from .bodies import AndBody, Body, ComputesBody, InvariantBody, MarginBody, NeverOutputsBody
from .circuit_bodies import FaithfulBody, Through
from .mechanism_bodies import AttendsBody, InterchangeBody, writes
from .reading import FALSE, TRUE, UNDECIDED, Subject
from .theorems import codec_to_json
from .witness import Arithmetic, Outcome, Witness, show_value

Quantifier: TypeAlias = Literal["forall", "exists", "at_least", "at_most", "between"]
REAL_ARITHMETIC: tuple[Arithmetic, ...] = ("real", "precise")
QUANTIFIERS: tuple[Quantifier, ...] = ("forall", "exists", "at_least", "at_most", "between")
COUNTED: tuple[Quantifier, ...] = ("at_least", "at_most", "between")


@dataclass(frozen=True, eq=False)
class Claim:
    """`forall`: the body holds on every input of a domain; `exists`: on one; `at_least`: on at least `share` of them;
    `at_most`: on at most `share`; `between`: on at least `share` and at most `most` of them.

    "At most" means that the body is false of all the others.

    A claim of arity 2 is about all pairs of inputs of equal length from the domain.
    """

    quantifier: Quantifier
    body: Body
    share: Fraction = Fraction(1)
    most: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.quantifier not in QUANTIFIERS:
            raise InputError(f"a quantifier is one of {', '.join(QUANTIFIERS)}, got {self.quantifier!r}")
        for share in (self.share, self.most):
            if not 0 <= share <= 1:
                raise InputError(f"a share must be a number from 0 to 1, got {share}")
        if self.quantifier == "between" and self.share > self.most:
            raise InputError(f"at least {self.share} and at most {self.most} of the inputs cannot be: swap them")

    @property
    def subject(self) -> Subject:
        return self.body.subject

    @property
    def arity(self) -> int:
        return self.body.arity

    def ids(self, witness: Witness) -> tuple[Tensor, ...]:
        """The witness's inputs as token ids [1, pos]. Raises `InputError`."""
        if len(witness.inputs) != self.arity:
            raise InputError(f"this claim's witnesses have {self.arity} inputs, got {len(witness.inputs)}: {witness}")
        if len({len(x) for x in witness.inputs}) != 1:
            raise InputError(f"a witness's inputs must have one length, got {witness}")
        codec = self.subject.codec
        return tuple(torch.tensor([codec.ids(x)[int(codec.bos) :]]) for x in witness.inputs)

    def witness(self, ids: Sequence[Tensor]) -> Witness:
        """The witness that consists of one row of token ids for each input."""
        vocab = self.subject.codec.vocab
        return Witness(tuple(tuple(vocab[t] for t in row.tolist()) for row in ids))

    def holds(self, witness: Witness) -> Outcome:
        """What the body says on one witness, by the model's float32 run."""
        return self.body.outcome(self.ids(witness))

    def holds_really(self, witness: Witness) -> bool | None:
        """What the body says on one witness over the reals; None if the enclosure or the program leaves it open."""
        code = UNDECIDED
        for arithmetic in REAL_ARITHMETIC:
            with contextlib.suppress(Unsupported):
                code = int(self.body.judge(self.ids(witness), arithmetic)[0])
            if code != UNDECIDED:
                break
        return {TRUE: True, FALSE: False}.get(code)

    def holds_batch(self, *token_ids: Tensor, semantics: Arithmetic = "float32") -> Tensor:
        """bool [batch]: where the body holds (certainly, if `real`); token ids [batch, pos], without BOS, per input."""
        return self.body.judge(token_ids, semantics) == TRUE

    def snapshot(self) -> Claim:
        """The same claim about a copy of the model: later changes to the model do not reach it."""
        return Claim(self.quantifier, self.body.with_subject(self.subject.snapshot()), self.share, self.most)

    def exists(self) -> Claim:
        """The body holds on some input."""
        return Claim("exists", self.body)

    def at_least(self, share: float | Fraction) -> Claim:
        """The body holds on at least this share of the inputs."""
        return Claim("at_least", self.body, _share(share))

    def at_most(self, share: float | Fraction) -> Claim:
        """The body holds on at most this share of the inputs, and is false of the others."""
        return Claim("at_most", self.body, _share(share))

    def between(self, least: float | Fraction, most: float | Fraction) -> Claim:
        """The body holds on a share of the inputs from `least` to `most`."""
        return Claim("between", self.body, _share(least), _share(most))

    @property
    def counted(self) -> bool:
        """Whether the claim is about a share of the inputs."""
        return self.quantifier in COUNTED

    def settled(self, true: int, false: int, total: int) -> bool | None:
        """Whether a claim about a share is right (or wrong), if the body is known to hold on `true` of `total` inputs
        and to fail on `false`; None if that is not enough."""
        least, most = Fraction(true, total), Fraction(total - false, total)
        low = self.share if self.quantifier != "at_most" else Fraction(0)
        high = {"at_least": Fraction(1), "at_most": self.share, "between": self.most}[self.quantifier]
        if least >= low and most <= high:
            return True
        return False if most < low or least > high else None

    def negated_by(self, true: int, false: int, total: int) -> dict[str, object]:
        """The quantifier, and its share, of the theorem that refutes the claim. (`settled` said that it is wrong.)"""
        if self.quantifier == "exists":
            return {"quantifier": "none"}
        if self.quantifier != "at_most" and total - false < self.share * total:
            return {"quantifier": "fewer_than", "share": _share_json(self.share)}
        return {
            "quantifier": "more_than",
            "share": _share_json(self.share if self.quantifier == "at_most" else self.most),
        }

    def __and__(self, other: Claim) -> Claim:
        if not isinstance(other, Claim):
            return NotImplemented
        if self.quantifier != "forall" or other.quantifier != "forall":
            raise InputError("only claims about all inputs can be joined by &; prove the others one by one")
        parts = [*parts_of(self.body), *parts_of(other.body)]
        return Claim("forall", AndBody(tuple(parts)))

    def describe(self) -> str:
        share, most = _digits(self.share), _digits(self.most)
        one, many = ("pair of inputs", "pairs of inputs") if self.arity == 2 else ("input", "inputs")
        opening = {
            "forall": f"for every {one}, ",
            "exists": f"for some {one}, ",
            "at_least": f"for at least {share} of the {many}, ",
            "at_most": f"for at most {share} of the {many}, ",
            "between": f"for at least {share} and at most {most} of the {many}, ",
        }
        return opening[self.quantifier] + self.body.describe()

    def __str__(self) -> str:
        return self.describe()

    def to_json(self) -> dict[str, object]:
        """The claim's part of a theorem."""
        data: dict[str, object] = {"quantifier": self.quantifier, "body": self.body.to_json()}
        if self.counted:
            data["share"] = _share_json(self.share)
        if self.quantifier == "between":
            data["most"] = _share_json(self.most)
        return data

    def theorem(self) -> dict[str, object]:
        """All of a theorem but its domain: `to_json`, and the codec, configuration and weights it is about."""
        subject = self.subject
        return {
            **self.to_json(),
            "codec": codec_to_json(subject.codec),
            "config": json.loads(subject.model.config_json()),
            "weights_sha256": subject.model.weights_sha256(),
            "semantics": "real",
        }


def _share(share: float | Fraction) -> Fraction:
    try:
        return Fraction(share)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"a share is a number from 0 to 1, such as 0.99 or Fraction(99, 100), got {share!r}") from None


def _share_json(share: Fraction) -> object:
    return int(share) if share.denominator == 1 else value_to_json(share)


def _digits(share: Fraction) -> str:
    """Six digits, or as many as tell the share from 0 and 1."""
    return next((text for n in (6, 9, 12, 15) if float(text := f"{float(share):.{n}g}") not in (0, 1)), f"{share}")


def parts_of(body: Body) -> tuple[Body, ...]:
    """Those of a conjunction, or the body itself."""
    return body.parts if isinstance(body, AndBody) else (body,)


def subject_of(of: Any, codec: Codec | None = None) -> Subject:
    """A compiled program, or a Transformer with its codec. Raises `InputError`."""
    if isinstance(of, Subject):
        return of
    if isinstance(getattr(of, "model", None), torch.nn.Module):
        return Subject(of.model, codec or of.codec, getattr(of, "alignment", None), getattr(of, "labels", ()))
    if not isinstance(of, torch.nn.Module):
        raise InputError(f"a claim is about a Transformer or a compiled program, got {of!r}")
    if codec is None:
        raise InputError("a model by itself does not say what its tokens mean: pass codec=Codec(...)")
    return Subject(of, codec)


def _core(program: Any, of: Any, subject: Subject) -> CoreProgram:
    """The core program that a claim is about: the compiled one, one given, or one lowered from an s-op."""
    if isinstance(program, CoreProgram):
        return program
    core = getattr(of, "core", None)
    if program is None or program is getattr(of, "program", None):
        if core is None:
            raise InputError("which program? pass one: Computes(model, program, codec=codec)")
        return core  # type: ignore[no-any-return]
    from ..compiler.lower import lower

    return lower(program, subject.codec.vocab, subject.longest, causal=bool(subject.model.config.causal))


def Computes(of: Any, program: Any = None, *, codec: Codec | None = None) -> Claim:
    """The model's decoded output equals the program's value at every position, on every input.

    `of`: a compiled program, or a Transformer with `codec=`. `program`: an s-op or a core program; default: the one
    that was compiled. Raises `InputError`, and the compiler's errors for a program that it refuses.
    """
    subject = subject_of(of, codec)
    return Claim("forall", ComputesBody(subject, _core(program, of, subject)))


def Margin(of: Any, at_least: float | Fraction, *, codec: Codec | None = None) -> Claim:
    """The decoded logit exceeds every other by at least `at_least`, at every position, on every input.

    For categorical read-outs. `at_least` is a number that float64 holds exactly. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    if subject.codec.kind != "categorical":
        raise InputError("a margin compares logits, but this codec is scalar (one logit, nearest point); use Computes")
    return Claim("forall", MarginBody(subject, float64_number(at_least, "a margin")))


def float64_number(number: float | Fraction, what: str) -> Fraction:
    """The number exactly. Raises `InputError` unless float64 holds it."""
    try:
        exact = Fraction(number)
        held = Fraction(float(exact)) == exact
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} must be a finite number, got {number!r}") from None
    if not held:
        raise InputError(f"{what} must be a number that float64 holds exactly, got {number}; try {float(exact)!r}")
    return exact


def NeverOutputs(
    of: Any, outputs: Sequence[Value], *, codec: Codec | None = None, states: LabelMachine | None = None
) -> Claim:
    """No position decodes to one of `outputs`, on any input. Raises `InputError` for values it cannot output anyway.

    `states`: a machine over token ids by whose states a proof may tell prefixes apart, such as a task's `states()`.
    """
    subject = subject_of(of, codec)
    banned = tuple(outputs)
    strange = [value for value in banned if value not in subject.codec.outputs]
    if strange or not banned:
        shown = ", ".join(map(show_value, subject.codec.outputs[:12]))
        raise InputError(f"the model outputs only {shown}; got {', '.join(map(show_value, strange)) or 'no value'}")
    return Claim("forall", NeverOutputsBody(subject, banned, states))


def Invariant(
    of: Any,
    *,
    relabelling: Mapping[Value, Value] | None = None,
    outputs: Literal["same", "relabelled"] = "same",
    irrelevant_positions: Sequence[int] = (),
    codec: Codec | None = None,
) -> Claim:
    """Changing the input in one of two ways changes the outputs only as stated, on every input.

    `relabelling={a: b, ...}` replaces tokens; the outputs stay the `same`, or are `relabelled` likewise.
    `irrelevant_positions`: the outputs at the other positions do not depend on the tokens there. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    if (relabelling is None) == (not irrelevant_positions):
        raise InputError("say either relabelling={...} or irrelevant_positions=[...]")
    if outputs not in ("same", "relabelled"):
        raise InputError(f"outputs must be 'same' or 'relabelled', got {outputs!r}")
    pairs = tuple((relabelling or {}).items())
    strange = [v for pair in pairs for v in pair if v not in subject.codec.vocab]
    if strange:
        raise InputError(f"a relabelling is between tokens of the vocabulary; {show_value(strange[0])} is none")
    for position in irrelevant_positions:
        if not isinstance(position, int) or not 0 <= position < subject.longest:
            raise InputError(f"positions are 0 to {subject.longest - 1}, got {position!r}")
    irrelevant = tuple(sorted(set(irrelevant_positions)))
    return Claim("forall", InvariantBody(subject, pairs, outputs == "relabelled", irrelevant))


def head_of(subject: Subject, head: tuple[int, int]) -> tuple[int, int]:
    """(layer, head). Raises `InputError` for a head that the model has not."""
    try:
        layer, index = head
    except (TypeError, ValueError):
        raise InputError(f"a head is (layer, head), both from 0, got {head!r}") from None
    layers = subject.model.config.layers
    if not (0 <= layer < len(layers) and 0 <= index < layers[layer].n_heads):
        raise InputError(f"the model has no head L{layer}H{index}; its layers have {[x.n_heads for x in layers]} heads")
    return layer, index


def Attends(
    of: Any, head: tuple[int, int], selector: Any, *, tolerance: float = 1e-3, codec: Codec | None = None
) -> Claim:
    """Head (layer, head) attends uniformly to what a selector selects (or, if nothing, to BOS), up to `tolerance`.

    `selector`: a RASP selector, or the position of a selector or of an aggregate or width in the compiled core program.
    The exact statement: `AttendsBody`. Raises `InputError`.
    """
    subject = subject_of(of, codec)
    layer, index = head_of(subject, head)
    if not 0 <= tolerance < 1:
        raise InputError(f"a tolerance must be at least 0 and below 1, got {tolerance!r}")
    if isinstance(selector, int):
        core = subject.alignment.program if subject.alignment else _core(None, of, subject)
        node = selector
    else:
        from ..compiler.rasp import selector_width

        core = _core(selector_width(selector), of, subject)
        node = core.output
    if not 0 <= node < len(core.nodes):
        raise InputError(f"the program has nodes 0 to {len(core.nodes) - 1}, got {node}")
    found = core.nodes[node]
    if isinstance(found, (Aggregate, Width)):
        node = found.selector
    elif hasattr(found, "values"):
        raise InputError(f"node {node} is no selector, aggregate or width; it is {type(found).__name__.lower()}")
    return Claim("forall", AttendsBody(subject, layer, index, core, node, float(tolerance)))


def Faithful(
    of: Any,
    circuit: Circuit | None = None,
    ablation: str | None = None,
    *,
    reference: Tensor | None = None,
    means: Mapping[str, Tensor] | Stored | None = None,
    through: Task | None = None,
    codec: Codec | None = None,
) -> Claim:
    """The circuit alone, everything else ablated, decodes to the same outputs as the model, on every input.

    `circuit`: default the compiled one. `ablation`: `zero`; `mean`: `means`, a stored float32 vector [d_model] by node,
    or over `reference` token ids [batch, pos]; or `resample` (the rest is taken from a second input of equal length,
    whichever it is). Default: the circuit's own, `any` being weakened to `resample`. `through`: a task whose labels a
    proof may go through, where there are too many inputs to enumerate: what both decode to the label, they agree on.
    Raises `InputError`.
    """
    if through is not None and codec is None and isinstance(of, torch.nn.Module):
        codec = through.codec
    subject = subject_of(of, codec)
    circuit = circuit or getattr(of, "circuit", None)
    if circuit is None:
        raise InputError("which circuit? pass one: Faithful(model, circuit)")
    labels = None if through is None else Through(label_machine(subject, through), through.name, through.states)
    return Claim("forall", FaithfulBody.of(subject, circuit, ablation, reference, means, labels))


def label_machine(subject: Subject, task: Task) -> LabelMachine:
    """The machine of a task's labels. Raises `InputError` where there is none, and for models read out everywhere."""
    if subject.model.config.readout == "each":
        raise InputError(f"{task.name} has one label an input; the model has a read-out at each position")
    try:
        machine = task.machine
    except InputError as error:
        raise InputError(f"{task.name} has no label machine, which proofs read: {error}") from None
    if machine is None:
        raise InputError(f"{task.name} has no label machine, which proofs read")
    return machine


def Abstracts(of: Any, program: Any = None, *, codec: Codec | None = None) -> Claim:
    """The program is a causal abstraction of the model, by interchange interventions.

    For each aligned s-op, and all pairs of a base and a source of equal length: taking the s-op's representation from
    the source gives the program's output when the s-op's values are taken from the source. `program`: default the one
    compiled; for another one, s-ops are matched by name. Raises `InputError` if no s-op is aligned.
    """
    subject = subject_of(of, codec)
    alignment = subject.alignment
    if alignment is None:
        raise InputError("Abstracts needs to know which component stands for which s-op: pass a compiled program")
    source = alignment.program
    core = source if program is None or program is getattr(of, "program", None) else _core(program, of, subject)
    by_name = {getattr(node, "name", ""): index for index, node in enumerate(core.nodes)}
    components: tuple[HeadRole | NeuronRole, ...] = (*alignment.heads, *alignment.neurons)
    parts: list[Body] = []
    for node in range(alignment.n_source):
        roles = tuple(role for role in components if role.node == node and writes(role))
        here = node if core is source else by_name.get(source.nodes[node].name or "?")
        if roles and here is not None and not isinstance(core.nodes[here], (Tokens, Indices)):
            parts.append(InterchangeBody(subject, core, here, roles))
    if not parts:
        raise InputError("no component of the model is aligned with an s-op of this program")
    return Claim("forall", parts[0] if len(parts) == 1 else AndBody(tuple(parts)))
