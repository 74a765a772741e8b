"""Discovery: how long it takes, what each method finds of compiled circuits, and circuits with every step proved."""

from __future__ import annotations

import time
from typing import Any

from .isolation import Failure, each_apart
from .options import Options
from .report import Cell, Figure, Section, Table

LIMIT = 10.0
PAIRS = 1000
SECONDS = 300.0
PROGRAMS: tuple[tuple[str, int, int], ...] = (
    ("reverse", 4, 6),
    ("hist", 4, 6),
    ("sort", 4, 6),
    ("most_frequent", 4, 6),
    ("shuffle_dyck1", 2, 6),
)
ABLATIONS = ("zero", "mean", "resample")
METHODS = ("patching", "eap", "eap-ig", "acdc")
VERIFIED: tuple[tuple[str, int, int, str], ...] = (
    ("hist", 3, 4, "resample"),
    ("reverse", 3, 4, "resample"),
    ("reverse", 3, 4, "zero"),
    ("add_decimal", 10, 10, "zero"),
)


def big_model() -> Any:
    """Four layers of four heads and an MLP, with LayerNorm, d_model 64, over 32 tokens at length 16."""
    from certiformer.models import LayerConfig, Transformer, TransformerConfig

    layers = tuple(LayerConfig(4, 16, 256) for _ in range(4))
    config = TransformerConfig(64, 16, 32, 32, layers, activation="gelu", causal=True, layer_norm=1e-5, readout="last")
    return Transformer.initialised(config)


def time_methods(pairs: int) -> list[tuple[Cell, ...]]:
    """Seconds of each method on the big model, one thread; the exact ones on a tenth of the pairs."""
    import certiformer as cf
    from certiformer import explanations as ex

    model = big_model()
    tokens = tuple(range(32))
    codec = cf.Codec(tokens, False, "categorical", tokens, max_len=16)
    domain = cf.sequences(tokens, 16)
    rows: list[tuple[Cell, ...]] = []
    for method, count in (("eap", pairs), ("eap-ig", pairs), ("patching", pairs // 10), ("acdc", pairs // 10)):
        sampled = ex.sample_pairs(domain, codec, count)
        setup = ex.Setup(model, sampled, metric="kl" if method == "acdc" else None)
        wall, cpu = time.perf_counter(), time.process_time()
        if method == "acdc":
            ex.acdc(setup, threshold=1e-4)
        else:
            {"eap": ex.eap, "eap-ig": ex.eap_ig, "patching": ex.patching}[method](setup)
        rows.append((method, count, 479, time.perf_counter() - wall, time.process_time() - cpu))
    return rows


def found_by(program: str, vocab: int, length: int) -> list[tuple[Cell, ...]]:
    """AUROC of edges and nodes against the compiled circuit, by ablation and method; ACDC's precision and recall."""
    import certiformer as cf
    from certiformer import explanations as ex
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models.means import domain_means

    entry = LIBRARY[program]
    compiled = cf.compile(
        entry.build(), vocab=entry.vocab(vocab), max_len=length, causal=entry.causal, name=program, reuse=False
    )
    domain = cf.sequences(compiled.codec.vocab, range(1, length + 1))
    pairs = ex.sample_pairs(domain, compiled.codec, 200)
    rows: list[tuple[Cell, ...]] = []
    for ablation in ABLATIONS:
        means = domain_means(compiled.model, domain, compiled.codec, 200) if ablation == "mean" else None
        for method in METHODS:
            one = compiled.model.config.d_vocab_out == 1
            metric = "squared-error" if one else "kl" if method == "acdc" else "logit-difference"
            setup = ex.Setup(compiled.model, pairs, ablation, metric, means)
            if method == "acdc":
                found = ex.acdc(setup, threshold=1e-3)
            else:
                found = {"eap": ex.eap, "eap-ig": ex.eap_ig, "patching": ex.patching}[method](setup)
            result = ex.against(found, compiled.circuit)
            match = result.edges
            rows.append(
                (
                    *(program, ablation, method, len(found.edges), len(compiled.circuit.edges)),
                    *(None if method == "acdc" else result.edge_auroc, result.node_auroc),
                    *((match.precision, match.recall) if match else (None, None)),
                )
            )
    return rows


def verify(program: str, vocab: int, length: int, ablation: str) -> tuple[Cell, ...]:
    """Verified discovery from the whole model, in the order of exact patching."""
    import certiformer as cf
    from certiformer import explanations as ex
    from certiformer.compiler.programs import LIBRARY
    from certiformer.models import full_circuit
    from certiformer.verifier.deciding import Decider

    entry = LIBRARY[program]
    compiled = cf.compile(entry.build(), vocab=entry.vocab(vocab), max_len=length, causal=entry.causal, name=program)
    domain = cf.sequences(compiled.codec.vocab, range(1, length + 1))
    config = compiled.model.config
    setup = ex.Setup(compiled.model, ex.sample_pairs(domain, compiled.codec, 50), ablation)  # type: ignore[arg-type]
    start = time.perf_counter()
    found = ex.discover_verified(
        config,
        Decider(lambda circuit: cf.Faithful(compiled, circuit, ablation), domain, 3.0),
        start=full_circuit(config, ablation),  # type: ignore[arg-type]
        scores=ex.patching(setup).by_edge,
    )
    refuted = sum(decision.kind == "refuted" for decision in found.kept.values())
    return (
        *(program, ablation, str(domain.size()), len(setup.layout.edges), len(found.circuit.edges), refuted),
        *(len(found.unknown), found.minimal, found.decisions, time.perf_counter() - start),
    )


def measure(options: Options) -> Section:
    """Times, agreement with compiled circuits, verified circuits."""
    pairs = PAIRS // 10 if options.quick else PAIRS
    (times,) = each_apart(time_methods, ((pairs,),), SECONDS)
    programs = PROGRAMS[:1] if options.quick else PROGRAMS
    rows: list[tuple[Cell, ...]] = []
    failed: list[tuple[Cell, ...]] = []
    for program, found in zip(programs, each_apart(found_by, programs, SECONDS), strict=True):
        if isinstance(found, Failure):
            failed.append((program[0], found.why))
        else:
            rows += found
    cases = VERIFIED[:1] if options.quick else VERIFIED
    verified: list[tuple[Cell, ...]] = []
    for case, result in zip(cases, each_apart(verify, cases, SECONDS), strict=True):
        if isinstance(result, Failure):
            failed.append((f"{case[0]}, {case[3]}", result.why))
        else:
            verified.append(result)
    seconds = None if isinstance(times, Failure) else float(times[1][4] or 0.0)
    exact = [row for row in rows if row[2] == "patching" and row[1] == "zero"]
    figures = (
        Figure(
            f"EAP-IG, 4 layers of 4 heads, {pairs} pairs, 5 steps: CPU time, one thread",
            f"<= {LIMIT:g} s",
            "-" if seconds is None else f"{seconds:.1f} s",
            seconds is not None and seconds <= LIMIT,
            "EAP-IG's own code allocates its scores on CUDA only",
        ),
        Figure(
            "least edge AUROC of exact patching against compiled circuits, zero ablation",
            "",
            f"{min(float(row[5] or 0) for row in exact):.3f}" if exact else "-",
            None,
        ),
        Figure(
            "verified discovery: circuits 1-minimal, each kept edge with a witness",
            "all",
            f"{sum(bool(row[7]) for row in verified)} of {len(cases)}",
            None,
            "sampled only",
        ),
    )
    tables = [
        Table(
            "Against the compiled circuit, through which alone anything can flow: AUROC of scores, ACDC at 0.001.",
            (
                *("program", "ablation", "method", "edges", "in the circuit", "edge AUROC", "node AUROC"),
                *("edge precision", "edge recall"),
            ),
            tuple(rows),
        ),
        Table(
            "Verified discovery from the whole model; 3 s a decision at most.",
            (
                *("program", "ablation", "inputs", "edges", "kept", "deletions refuted", "unknown", "1-minimal"),
                *("decisions", "wall s"),
            ),
            tuple(verified),
        ),
    ]
    if not isinstance(times, Failure):
        columns = ("method", "pairs", "edges", "wall s", "CPU s")
        tables.insert(0, Table("Times, one thread: d_model 64, 256 neurons a layer, LayerNorm.", columns, tuple(times)))
    else:
        failed.append(("times", times.why))
    if failed:
        tables.append(Table("Not measured.", ("case", "why"), tuple(failed)))
    note = (
        "Compiled circuits are ground truth for any ablation; under resample, sources have the clean input's length, "
        "so that edges which only tell the length are redundant and score 0."
    )
    return Section("discovery", "Discovery of circuits", figures, tuple(tables), (note,))
