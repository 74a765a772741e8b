"""Planted faults: one weight changed. None may be proved; how many are refuted, by a witness that is replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .isolation import Failure, Kept
from .options import Options
from .rare_inputs import Words, rare_words
from .report import Cell, Figure, Section, Table, count_text, seconds_text

COMMON, RARE, RARE_EACH = 500, 100, 10
RARE_SHARE = 1e-6
UNIFORM = 4096
PROVE_SECONDS = 20.0
TRIES = 1500
LIMIT = 3600.0

SMALL: tuple[tuple[str, int, int], ...] = (
    ("sort", 3, 5),
    ("reverse", 3, 5),
    ("hist", 3, 5),
    ("sort_freq", 3, 5),
    ("most_frequent", 3, 5),
    ("frac_prevs", 3, 5),
    ("detect_pattern", 3, 6),
    ("shuffle_dyck1", 2, 8),
    ("parity", 2, 8),
    ("induction", 3, 5),
)
"""Program, vocabulary, maximal length: every input is run."""

LARGE: tuple[tuple[str, int, int], ...] = (
    ("hist", 30, 50),
    ("count", 30, 50),
    ("most_frequent", 30, 50),
    ("sort", 30, 50),
    ("sort_freq", 30, 50),
    ("reverse", 30, 50),
    ("length", 30, 50),
    ("parity", 2, 50),
    ("run_length", 30, 50),
    ("count_less_freq", 30, 50),
    ("least_frequent", 30, 50),
)


def _compiled(name: str, size: int, max_len: int) -> Any:
    import certiformer as cf
    from certiformer.compiler.programs import LIBRARY

    entry = LIBRARY[name]
    return cf.compile(entry.build(), vocab=entry.vocab(size), max_len=max_len, causal=entry.causal, name=name)


def changes(model: Any, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Copies of a model with one weight changed: what was done, and the copy. Without end."""
    import torch

    from certiformer.models import Transformer

    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    names = [name for name, tensor in weights.items() if tensor.numel()]
    while True:
        name = names[int(rng.integers(len(names)))]
        flat = weights[name].reshape(-1)
        used = torch.nonzero(flat).reshape(-1)
        pool = used if len(used) and rng.random() < 0.8 else torch.arange(len(flat))
        at = int(pool[int(rng.integers(len(pool)))])
        old = float(flat[at])
        size = float(flat.abs().max()) or 1.0
        ways = {"add": old + size * float(rng.choice([-1.0, -0.3, -0.05, 0.05, 0.3, 1.0]))}
        if old:
            ways |= {"zero": 0.0, "negate": -old, "halve": old / 2, "double": old * 2}
        kind = sorted(ways)[int(rng.integers(len(ways)))]
        flat[at] = ways[kind]
        changed = Transformer.from_parameters(model.config, weights)
        flat[at] = old
        place = tuple(int(i) for i in np.unravel_index(at, weights[name].shape))
        yield f"{name}{list(place)}: {old:g} -> {ways[kind]:g}", changed


class Judge:
    """Where a model's decoded outputs differ from the program's values."""

    def __init__(self, compiled: Any) -> None:
        from certiformer.compiler.core_evaluator import BatchEvaluator

        self.compiled, self.evaluate = compiled, BatchEvaluator(compiled.core)
        values = compiled.core.value_node(compiled.core.output).values
        self.table = np.array([compiled.codec.outputs.index(value) for value in values])

    def expected(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices into the codec's outputs."""
        found: npt.NDArray[np.int64] = self.table[self.evaluate(ids)[self.compiled.core.output]]
        return found

    def wrong(self, model: Any, ids: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """bool [batch]: some position is decoded to another value."""
        import torch

        codec = self.compiled.codec
        with torch.no_grad():
            logits = model(codec.with_bos(torch.from_numpy(np.ascontiguousarray(ids))))
            if not bool(torch.isfinite(logits).all()):
                return np.zeros(len(ids), bool)
            got = codec.decode_indices(logits).numpy()
        differs: npt.NDArray[np.bool_] = (got != expected).any(axis=1)
        return differs


def really_fails(compiled: Any, model: Any, word: npt.NDArray[np.int64]) -> bool:
    """The changed model is wrong on this word over the reals too, not by rounding alone."""
    import certiformer as cf
    from certiformer.verifier.witness import Witness

    claim = cf.Computes(replace(compiled, model=model))
    return claim.holds_really(Witness((tuple(compiled.vocab[int(t)] for t in word),))) is False


def attack(compiled: Any, model: Any, seconds: float) -> dict[str, Any]:
    """What composition alone says of a changed model, and what all engines together say."""
    import certiformer as cf
    from certiformer.verifier.witness import Witness

    claim = cf.Computes(replace(compiled, model=model))
    domain = cf.sequences(compiled.vocab, range(1, compiled.max_len + 1))
    alone = cf.prove(claim, domain, seconds=seconds, engines={"composition"})
    verdict = cf.prove(claim, domain, seconds=seconds)
    row = {"composition": type(alone).__name__, "verdict": type(verdict).__name__, "replayed": False}
    row |= {"engine": verdict.setting.engine, "seconds": verdict.setting.seconds}
    if isinstance(verdict, cf.Refuted) and isinstance(verdict.evidence, Witness):
        real = verdict.setting.semantics == "real"
        replayed = (
            claim.holds_really(verdict.evidence) is False if real else claim.holds(verdict.evidence).status == "false"
        )
        row |= {"replayed": replayed, "float32": claim.holds(verdict.evidence).status}
    return row


def common_faults(name: str, size: int, max_len: int, wanted: int, seed: int) -> list[dict[str, Any]]:
    """Faults that alter the output on some input of the whole, enumerated domain."""
    import certiformer as cf

    compiled = _compiled(name, size, max_len)
    judge, rng = Judge(compiled), np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    domain = cf.sequences(compiled.vocab, range(1, max_len + 1))
    words = [(ids, judge.expected(ids)) for ids in domain.batches(4096)]
    for tried, (what, model) in enumerate(changes(compiled.model, rng)):
        if len(rows) == wanted or tried == TRIES:
            break
        failing = [ids[judge.wrong(model, ids, expected)] for ids, expected in words]
        count = sum(map(len, failing))
        if count and really_fails(compiled, model, next(x for x in failing if len(x))[0]):
            row = {"fault": what, "share": count / domain.size(), "kind": "any"}
            rows.append(row | attack(compiled, model, PROVE_SECONDS))
    return rows


def rare_faults(name: str, size: int, max_len: int, wanted: int, seed: int) -> list[dict[str, Any]]:
    """Faults that no uniform word shows and some rare word does; their failure rate is bounded by how rare."""
    import certiformer as cf

    compiled = _compiled(name, size, max_len)
    judge, rng = Judge(compiled), np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    vocab = len(compiled.vocab)
    uniform = cf.sequences(compiled.vocab, max_len).sample_length(rng, max_len, UNIFORM)
    expected = judge.expected(uniform)
    kinds = list(rare_words(vocab, max_len, rng, 8))
    rare = [(ids, judge.expected(ids), owner) for ids, owner in _by_length(kinds)]
    for tried, (what, model) in enumerate(changes(compiled.model, rng)):
        if len(rows) == wanted or tried == TRIES:
            break
        if judge.wrong(model, uniform[:64], expected[:64]).any():
            continue
        failing = [(ids, owner, found) for ids, e, owner in rare if (found := judge.wrong(model, ids, e)).any()]
        share, kind = _share([kinds[k] for _, owner, found in failing for k in set(owner[found].tolist())])
        if not failing or share > RARE_SHARE or judge.wrong(model, uniform, expected).any():
            continue
        if kind == "short" and tried < TRIES // 2 and 2 * sum(row["kind"] == "short" for row in rows) >= wanted:
            continue
        ids, _, found = failing[0]
        if really_fails(compiled, model, ids[found][0]):
            rows.append({"fault": what, "share": share, "kind": kind} | attack(compiled, model, PROVE_SECONDS))
    return rows


def _by_length(kinds: list[Words]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The words of one length together, and for each the position of its kind."""
    for n in sorted({words.ids.shape[1] for words in kinds}):
        here = [(k, words.ids) for k, words in enumerate(kinds) if words.ids.shape[1] == n]
        yield np.concatenate([ids for _, ids in here]), np.repeat([k for k, _ in here], [len(ids) for _, ids in here])


def _share(failing: list[Words]) -> tuple[float, str]:
    """The failing kinds' shares, summed over families (a family's largest covers its rarer kinds)."""
    largest: dict[str, float] = {}
    for words in failing:
        largest[words.family] = max(largest.get(words.family, 0.0), words.share)
    return sum(largest.values()), ", ".join(sorted(largest))


def measure(options: Options) -> Section:
    """Both groups of faults."""
    divide = 10 if options.quick else 1
    common = [(*x, COMMON // len(SMALL) // divide, 7 + i) for i, x in enumerate(SMALL)]
    rare = [(*x, max(1, RARE_EACH // divide), 70 + i) for i, x in enumerate(LARGE)]
    found, tables, missed = {}, [], []
    kept = Kept("faults")
    for key, run, tasks in (("common", common_faults, common), ("rare", rare_faults, rare)):
        rows: list[dict[str, Any]] = []
        table: list[tuple[Cell, ...]] = []
        for task, result in zip(tasks, kept.each_apart(run, tasks, LIMIT, options.workers), strict=True):
            if isinstance(result, Failure):
                missed.append((key, task[0], result.why))
                print(f"  {key} {task[0]}: {result.why}", flush=True)
                continue
            rows += [row | {"program": f"{task[0]} {task[1]}/{task[2]}"} for row in result]
            table.append(_summary(task, result))
            print(f"  {key} {table[-1]}", flush=True)
        found[key] = rows
        tables.append(Table(_TITLES[key], _COLUMNS, tuple(table)))
    kept.forget()
    strange = [row for rows in found.values() for row in rows if row["composition"] == "Proved" or not row["replayed"]]
    listed = tuple((r["program"], r["fault"], r["share"], r["kind"], r["composition"], r["verdict"]) for r in strange)
    if listed:
        columns = (
            "program",
            "fault",
            "failure rate at most",
            "inputs that show it",
            "composition alone",
            "all engines",
        )
        tables.append(Table("Proved wrongly, or not refuted.", columns, listed))
    if missed:
        tables.append(Table("Not run.", ("group", "program", "why"), tuple(missed)))
    return Section("faults", "Planted faults", tuple(_figures(found, missed, divide)), tuple(tables), (_NOTE,))


def _figures(found: dict[str, list[dict[str, Any]]], missed: list[Any], divide: int) -> Iterator[Figure]:
    rows = [row for group in found.values() for row in group]
    wrongly = sum(row["composition"] == "Proved" for row in rows) + sum(row["verdict"] == "Proved" for row in rows)
    text = f"{wrongly} of {len(rows)}"
    yield Figure("planted faults proved", "none", text, wrongly == 0 and not missed, "no verifier")
    texts = {"common": "faults that alter some output, refuted", "rare": "faults of failure rate <= 10^-6, refuted"}
    for key, least, number in (("common", 0.99, COMMON // divide), ("rare", 0.8, RARE // divide)):
        refuted = sum(row["replayed"] for row in found[key])
        share = refuted / len(found[key]) if found[key] else 0.0
        cost = _sampling_cost(found[key]) if key == "rare" else ""
        met = share >= least and len(found[key]) >= number
        text = f"{100 * share:.1f} % ({refuted} of {len(found[key])} planted)"
        yield Figure(texts[key], f">= {100 * least:g} % of {number}", text, met, "no verifier", cost)


def _sampling_cost(rows: list[dict[str, Any]]) -> str:
    """Uniform samples to meet the median fault once, on average."""
    if not rows:
        return ""
    share = sorted(row["share"] for row in rows)[len(rows) // 2]
    return f"{count_text(int(1 / share))} random inputs to meet the median one once" if share else ""


def _summary(task: tuple[Any, ...], rows: list[dict[str, Any]]) -> tuple[Cell, ...]:
    engines = Counter(row["engine"] for row in rows if row["replayed"])
    times = sorted(row["seconds"] for row in rows)
    return (
        f"{task[0]} {task[1]}/{task[2]}",
        len(rows),
        max((row["share"] for row in rows), default=None),
        min((row["share"] for row in rows), default=None),
        sum(row["composition"] == "Proved" for row in rows),
        sum(row["replayed"] for row in rows),
        ", ".join(f"{engine} {count}" for engine, count in engines.most_common()),
        ", ".join(f"{kind} {count}" for kind, count in Counter(row["kind"] for row in rows).most_common()),
        seconds_text(times[len(times) // 2]) if times else None,
    )


_COLUMNS = (
    *("program", "faults", "greatest failure rate", "least", "proved by composition", "refuted"),
    *("refuted by", "inputs that show them", "median time"),
)
_TITLES = {
    "common": "One weight changed so that some output of the enumerated domain differs.",
    "rare": "One weight changed so that only rare inputs show it (failure rate: an upper bound).",
}
_NOTE = (
    f"A rare fault fails on none of {UNIFORM:,} uniform words and on some word of a rare kind (short; a very frequent "
    "token; a long run; few distinct tokens; ascending; descending). Its failure rate is bounded by the share of "
    "the commonest kind of each family on which it was seen to fail; at most half of a program's faults show on short "
    "words alone, where others are found. Every fault is confirmed over the reals on one input by rigorous balls."
)
