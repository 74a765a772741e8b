"""Certificates with one field changed and the seal recomputed: none may be valid for a false theorem."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .isolation import Failure, each_apart
from .mutation_tasks import TASK_SOURCES, TaskSource
from .options import Options
from .report import Cell, Figure, Section, Table
from .truth import theorem_holds

MUTATIONS = 5000
LIMIT = 3600.0
Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A certificate to mutate: a claim about a program, small enough for every input to be run."""

    program: str
    vocab: int
    max_len: int
    claim: str = "computes"
    engine: str = "composition"
    domain: str = "all"
    bos: bool = True

    @property
    def label(self) -> str:
        extra = [x for x in (self.claim, self.engine, self.domain) if x not in ("computes", "composition", "all")]
        text = ", ".join([*extra, *([] if self.bos else ["no BOS"])])
        return f"{self.program} {self.vocab}/{self.max_len}" + (f" ({text})" if text else "")


SOURCES: tuple[Source, ...] = (
    Source("sort", 3, 4),
    Source("sort_freq", 3, 4),
    Source("reverse", 3, 4),
    Source("hist", 3, 4),
    Source("frac_prevs", 3, 4),
    Source("running_mean", 3, 3),
    Source("shuffle_dyck1", 2, 5),
    Source("detect_pattern", 3, 4),
    Source("most_frequent", 3, 4),
    Source("nary_sequencemap", 3, 3),
    Source("frac_prevs", 3, 4, bos=False),
    Source("hist", 3, 4, bos=False),
    Source("length", 2, 4, domain="automaton"),
    Source("sort", 3, 4, claim="margin"),
    Source("count", 3, 4, claim="never_outputs"),
    Source("is_sorted", 3, 4, claim="and"),
    Source("hist", 3, 4, engine="enumeration"),
    Source("sort", 2, 4, engine="enumeration", domain="automaton"),
)
ALL: tuple[Source | TaskSource, ...] = (*SOURCES, *TASK_SOURCES)


# Certificates to start from


def certify(source: Source) -> tuple[Any, dict[str, Any]]:
    """The model, and a certificate about it as JSON. Raises `RuntimeError` if there is no proof."""
    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models.languages import balanced, distinct, sequences
    from certiformer.verifier.claims import Margin, NeverOutputs

    entry = LIBRARY[source.program]
    vocab, lengths = entry.vocab(source.vocab), range(1, source.max_len + 1)
    compiled = cf.compile(
        entry.build(), vocab=vocab, max_len=source.max_len, causal=entry.causal, bos=source.bos, name=source.program
    )
    domain = sequences(vocab, lengths)
    if source.domain == "automaton":
        domain = balanced([vocab[:2]], 2, lengths) if source.program == "length" else distinct(vocab, lengths)
        domain = domain.over(compiled.vocab)
    claim = cf.Computes(compiled)
    if source.claim == "margin":
        claim = Margin(compiled, Fraction(1, 4))
    elif source.claim == "never_outputs":
        domain = sequences(vocab, range(1, source.max_len))
        claim = NeverOutputs(compiled, [source.max_len])
    elif source.claim == "and":
        claim = claim & Margin(compiled, Fraction(1, 8))
    verdict = cf.prove(claim, domain, engines={source.engine}, seconds=60)
    if not isinstance(verdict, cf.Proved):
        raise RuntimeError(f"no certificate to start from: {getattr(verdict, 'reason', verdict)}")
    return compiled.model, json.loads(verdict.certificate.to_bytes())


# Mutations


def leaves(data: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all nodes below the root."""
    if path:
        yield path
    if isinstance(data, dict):
        for key in sorted(data):
            yield from leaves(data[key], (*path, key))
    elif isinstance(data, list):
        for i, item in enumerate(data):
            yield from leaves(item, (*path, i))


def field(path: Path, data: Any) -> str:
    """A path without positions in lists; steps and nodes with their rule or kind."""
    parts: list[str] = []
    for key in path:
        data = data[key]
        if isinstance(key, int):
            kind = (data.get("rule") or data.get("kind")) if isinstance(data, dict) else None
            parts.append(f"[{kind or ''}]")
        else:
            parts.append(f".{key}" if parts else key)
    return "".join(parts)


def at(data: Any, path: Path) -> Any:
    """What stands at a path."""
    for key in path:
        data = data[key]
    return data


def mutate(certificate: dict[str, Any], path: Path, same: list[Path], rng: np.random.Generator) -> dict[str, Any]:
    """A copy with one change at a path. `same`: paths of the same field, whose contents may be taken."""
    changed = copy.deepcopy(certificate)
    parent, key = at(changed, path[:-1]), path[-1]
    old = parent[key]
    ways = ["other"] if len(same) > 1 else []
    if isinstance(old, bool):
        ways += ["not"]
    elif isinstance(old, int):
        ways += ["less", "more", "negative", "zero", "far"]
    elif isinstance(old, str):
        ways += ["text", "character", *(["next"] if old else [])]
    elif isinstance(old, list):
        ways += ["empty", "drop", "twice", "swap", "reverse"]
    elif old is None:
        ways += ["zero"]
    ways += ["remove"] if isinstance(parent, dict) else ["remove", "repeat"]
    how = ways[int(rng.integers(len(ways)))]
    pick = int(rng.integers(1 << 30))
    items = old if isinstance(old, list) else []
    cut = pick % len(items) if items else 0
    if how == "remove":
        del parent[key]
    elif how == "repeat":
        parent.insert(key, copy.deepcopy(old))
    elif how == "other":
        parent[key] = copy.deepcopy(at(certificate, same[pick % len(same)]))
    elif how == "swap":
        other = (cut + 1) % max(1, len(items))
        parent[key] = [items[{cut: other, other: cut}.get(i, i)] for i in range(len(items))]
    elif how == "character":
        flipped = "".join({"0": "1", "1": "0"}.get(c, c) if i == pick % len(old) else c for i, c in enumerate(old))
        parent[key] = flipped if flipped != old else old + "x"
    elif how == "next":
        place, step = pick % len(old), 1 if pick & 64 else -1
        parent[key] = old[:place] + chr(ord(old[place]) + step) + old[place + 1 :]
    else:
        parent[key] = _changed(how, old, items, cut)
    return changed


def _changed(how: str, old: Any, items: list[Any], cut: int) -> Any:
    match how:
        case "not":
            return not old
        case "less":
            return old - 1
        case "more":
            return old + 1
        case "negative":
            return -old or -1
        case "far":
            return old * 2 + 7
        case "text":
            return "x"
        case "drop":
            return items[:cut] + items[cut + 1 :]
        case "twice":
            return items[: cut + 1] + items[cut:]
        case "reverse":
            return items[::-1]
    return [] if how == "empty" else 0


# Judging


def _nameless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _nameless(item) for key, item in data.items() if key != "name"}
    return [_nameless(item) for item in data] if isinstance(data, list) else data


def run_source(source: Source | TaskSource, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` mutations of one certificate, spread evenly over its fields and the model's weights."""
    import tempfile
    from pathlib import Path as File

    from certiformer.proofs import Valid, canonical_json, check, seal

    rng = np.random.default_rng(seed)
    model, certificate = source.certify() if isinstance(source, TaskSource) else certify(source)
    false = isinstance(source, TaskSource) and source.over
    with tempfile.TemporaryDirectory() as folder:
        file = File(folder) / "model.safetensors"
        model.save(file)
        good, truth = check(canonical_json(certificate), file), theorem_holds(certificate["theorem"], model)
        if isinstance(good, Valid) is false or truth is not (not false):
            raise RuntimeError(f"the certificate to start from is {good}, its theorem {truth}")
        fields: dict[str, list[Path]] = {}
        for path in leaves(certificate):
            if path[0] != "seal":
                fields.setdefault(field(path, certificate), []).append(path)
        names = sorted(fields)
        rows = []
        order = [*rng.permutation(len(names))] * (count // len(names) + 1)
        for number in range(count):
            if number % 10 == 9:
                where, changed, altered = _other_weights(certificate, model, rng)
            else:
                where = names[int(order[number])]
                path = fields[where][int(rng.integers(len(fields[where])))]
                changed, altered = mutate(certificate, path, fields[where], rng), model
            if canonical_json(changed) == canonical_json(certificate) and altered is model:
                continue
            changed["seal"] = seal(changed)
            here = file
            if altered is not model:
                here = File(folder) / "changed.safetensors"
                altered.save(here)
            outcome = check(canonical_json(changed), here)
            rows.append({"field": where, **_judge(outcome, changed, certificate, altered, truth)})
    return rows


def _other_weights(
    certificate: dict[str, Any], model: Any, rng: np.random.Generator
) -> tuple[str, dict[str, Any], Any]:
    """One weight changed, and the theorem's hash recomputed."""
    from .faults import changes

    what, altered = next(changes(model, rng))
    changed = copy.deepcopy(certificate)
    changed["theorem"]["weights_sha256"] = altered.weights_sha256()
    return f"weights {what.split('[')[0]}", changed, altered


def _judge(
    outcome: Any, changed: dict[str, Any], certificate: dict[str, Any], model: Any, truth: bool
) -> dict[str, Any]:
    """`truth`: of the theorem of the certificate that was changed."""
    from certiformer.proofs import Holey, Invalid, Valid

    if isinstance(outcome, Invalid):
        crashed = outcome.rule == "internal error"
        named = bool(outcome.step and outcome.rule and outcome.why)
        status = "checker failed" if crashed else "rejected" if named else "rejected, unnamed"
        return {"status": status, "rule": outcome.rule, "why": f"{outcome.step}: {outcome.why}"}
    if isinstance(outcome, Holey):
        return {"status": "holey", "rule": "hole", "why": str(outcome)}
    assert isinstance(outcome, Valid)
    theorem = changed["theorem"]
    if truth and _nameless(theorem) == _nameless(certificate["theorem"]):
        same = _nameless(changed["proof"]) == _nameless(certificate["proof"])
        return {"status": "valid: only a name" if same else "valid: same theorem, another proof", "rule": "", "why": ""}
    found = theorem_holds(theorem, model)
    kinds = {True: "valid: another true theorem", False: "VALID BUT FALSE", None: "valid, truth not decided"}
    return {"status": kinds[found], "rule": "", "why": ""}


def measure(options: Options) -> Section:
    """All sources."""
    total = 400 if options.quick else MUTATIONS
    each = -(-total * 11 // (10 * len(ALL)))  # some change nothing and are left out
    tasks = [(source, each, 11 + i) for i, source in enumerate(ALL)]
    rows: list[dict[str, Any]] = []
    missed: list[tuple[Cell, ...]] = []
    for task, found in zip(tasks, each_apart(run_source, tasks, LIMIT, options.workers), strict=True):
        if isinstance(found, Failure):
            missed.append((task[0].label, found.why))
            print(f"  {task[0].label}: {found.why}", flush=True)
        else:
            rows += [row | {"source": task[0].label} for row in found]
            print(f"  {task[0].label}: {dict(Counter(row['status'] for row in found))}", flush=True)
    counts = Counter(row["status"] for row in rows)
    false = counts["VALID BUT FALSE"] + counts["valid, truth not decided"]
    unnamed = counts["rejected, unnamed"] + counts["checker failed"]
    number = len(rows)
    figures = (
        Figure(
            "mutated and resealed certificates valid for a false theorem",
            f"0 of {total:,}",
            f"{false} of {number:,}",
            false == 0 and number >= total,
            "no certificates",
        ),
        Figure(
            "mutations rejected with step and rule",
            "every semantic change",
            f"{counts['rejected']:,}; without step and rule {unnamed}; still valid, theorem true "
            f"{sum(n for status, n in counts.items() if status.startswith('valid:'))}",
            unnamed == 0 and false == 0,
            "no certificates",
        ),
        Figure("fields mutated", "all rules and fields", f"{len({row['field'] for row in rows}):,} fields", not missed),
    )
    tables = [
        Table("Outcomes.", ("outcome", "mutations"), tuple(sorted(counts.items()))),
        Table(
            "Rejections by the rule that rejected.",
            ("rule", "mutations"),
            tuple(Counter(_rule(row["rule"]) for row in rows if row["rule"]).most_common(40)),
        ),
    ]
    odd = [r for r in rows if r["status"] not in ("rejected", "holey") and not r["status"].startswith("valid:")]
    kept = Counter((r["status"], r["field"]) for r in rows if r["status"].startswith("valid:"))
    if kept:
        tables.append(
            Table("Changes that leave a valid proof of a true theorem.", ("outcome", "field", "mutations"), _flat(kept))
        )
    if odd:
        columns = ("certificate", "field", "outcome", "what")
        listed = tuple((r["source"], r["field"], r["status"], r["why"][:200]) for r in odd[:40])
        tables.append(Table("Neither rejected nor harmless.", columns, listed))
    if missed:
        tables.append(Table("Not run.", ("certificate", "why"), tuple(missed)))
    note = "Truth is decided by running every input of the mutated theorem's domain through rigorous enclosures."
    return Section("mutations", "Mutated certificates", figures, tuple(tables), (note,))


def _rule(rule: str) -> str:
    return "".join(c for c in rule if not c.isdigit()).strip()


def _flat(counts: Counter[tuple[str, str]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple((*key, count) for key, count in counts.most_common(60))
