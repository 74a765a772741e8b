"""The compiler's driver: what it refuses and how, what it states about the model, what may not take long."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from certiformer.compiler import compiled as compiled_module
from certiformer.compiler import interpreter, programs, selectors
from certiformer.compiler.compile import compile
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core import CoreProgram, Indices, Tokens
from certiformer.compiler.core import Map as CoreMap
from certiformer.compiler.lower import CompileError
from certiformer.compiler.programs import LIBRARY
from certiformer.compiler.rasp import (
    Map,
    Selector,
    SequenceMap,
    SOp,
    aggregate,
    full,
    indices,
    length,
    linear,
    select,
    selector_width,
    tokens,
)

PREVIOUS = select(indices, indices - 1, "==")
NEXT = select(indices, indices + 1, "==")


def refusal(program: SOp, vocab: object = "ab", max_len: int = 5, **options: bool) -> CompileError:
    with pytest.raises(CompileError) as caught:
        compile(program, vocab=vocab, max_len=max_len, **options)  # type: ignore[arg-type]
    return caught.value


def agrees(program: SOp, vocab: list[int], max_len: int) -> Compiled:
    made = compile(program, vocab=vocab, max_len=max_len)
    rng = random.Random(0)
    for _ in range(20):
        xs = rng.choices(vocab, k=rng.randint(1, max_len))
        assert made.run(xs) == interpreter.evaluate(program, xs)
    return made


# -- selectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, 50, 1000])
def test_a_disjunction_that_repeats_itself_is_one_head(n: int) -> None:
    selector = select(tokens, 0, "==")
    for k in range(n):
        selector = selector | select(tokens, k % 3, "==")
    started = time.monotonic()
    made = agrees(selector_width(selector), [0, 1, 2, 3, 4], 5)
    assert time.monotonic() - started < 2
    assert len(made.alignment.heads) == 1


@pytest.mark.parametrize(
    "step",
    [
        lambda s, k: s & select(tokens, k % 3, "!="),
        lambda s, k: ~(s & select(indices, k % 3, "<=")),
        lambda s, k: (s | select(tokens, indices, "==")) & (s | select(indices, tokens, "<")),
        lambda s, k: (s & s) | (s & select(tokens, tokens, "==")),
    ],
)
def test_selectors_that_repeat_their_parts_take_no_longer(step: Callable[[Selector, int], Selector]) -> None:
    selector = select(tokens, tokens, "<=")
    for k in range(40):
        selector = step(selector, k)
    started = time.monotonic()
    agrees(selector_width(selector), [0, 1, 2, 3], 4)
    assert time.monotonic() - started < 2


def test_terms_are_disjoint_and_make_up_the_selector() -> None:
    rng = random.Random(1)
    for _ in range(100):
        made = [
            select(*rng.choice([(tokens, tokens), (indices, tokens), (tokens, indices)]), rng.choice(["<", "==", "!="]))
        ]
        for _ in range(rng.randint(1, 8)):
            a, b = rng.choice(made), rng.choice(made)
            made.append(rng.choice([a & b, a | b, ~a, select(indices, rng.randrange(3), "<=")]))
        agrees(selector_width(made[-1]), [0, 1, 2], 4)


def test_too_many_disjoint_terms_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "MAX_TERMS", 2)
    sources = [(a, b) for a in (tokens, indices, length) for b in (tokens, indices, length)]
    selector = select(tokens, tokens, "==")
    for key, query in sources:
        selector = selector | (select(key, query, "<=") & select(query, key, "<"))
    (problem,) = refusal(selector_width(selector), [0, 1, 2], 4).problems
    assert "test_compile.py:" in problem
    assert "disjoint conjunctions" in problem and "; map keys and queries to fewer values" in problem


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_all_that_cannot_be_planned_is_reported_with_its_place() -> None:
    before, after = aggregate(PREVIOUS, tokens).named("before"), aggregate(NEXT, tokens)
    counted = selector_width(select(tokens, "a", "=="))
    error = refusal(SequenceMap(lambda x, y, n: n, before, after, counted + 0 * indices), bos=False)
    assert len(error.problems) == 3
    for problem in error.problems:
        assert "test_compile.py:" in problem
        assert "may be empty" in problem and "compile with bos=True" in problem
    assert error.problems[0].startswith("'before' (aggregate, test_compile.py:")
    assert "node " not in str(error)


def test_problems_behind_problems_are_reported_too() -> None:
    inner = aggregate(PREVIOUS, tokens, "a").named("inner")
    outer = aggregate(NEXT, inner, "b").named("outer")
    error = refusal(outer, bos=False)
    assert [problem.split()[0] for problem in error.problems] == ["'inner'", "'outer'"]


def test_counts_too_close_for_float32_are_refused_with_a_length_that_works() -> None:
    error = refusal(LIBRARY["hist"].build(), max_len=120)
    reason, remedy = error.problems
    assert "'hist' (selector_width, counting.py:" in reason
    assert "120 has to be told from 119" in reason and "lower max_len" in reason
    assert remedy == "the largest max_len that works is 98"
    assert compile(LIBRARY["hist"].build(), vocab="ab", max_len=98).margin > 0.9
    assert refusal(LIBRARY["hist"].build(), max_len=99)


def test_a_stated_gap_is_smaller_than_what_is_said_to_be_needed() -> None:
    reason = refusal(LIBRARY["sort"].build(), range(4), 100).problems[0]
    words = reason.split()
    gap, needed = float(words[words.index("apart,") - 1]), float(words[words.index("than") + 1])
    assert gap < needed


def test_refusing_is_quick() -> None:
    started = time.process_time()
    refusal(LIBRARY["reverse"].build(), max_len=1024)
    assert time.process_time() - started < 8


def test_a_core_program_with_an_undefined_case_is_refused() -> None:
    vocab = ("a", "b")
    partial = CoreMap((0,), np.array([0, -1], np.int32), (1,), "partial")
    core = CoreProgram(vocab, 2, False, (Tokens(vocab), Indices((0, 1)), partial), 2)
    with pytest.raises(CompileError, match="partial: the map is undefined at"):
        compile(core)


# -- depth -------------------------------------------------------------------------------------------------------------


def test_a_chain_of_two_thousand_maps_compiles() -> None:
    one, two = tokens, tokens
    for _ in range(2000):
        one, two = one + 1, SequenceMap(lambda x, i: (x + i) % 3, two, indices)
    assert compile(one, vocab=[1, 2], max_len=2).run([1, 2]) == [2001, 2002]
    assert compile(two, vocab=[0, 1], max_len=2).run([1, 1]) == [1, (1 + 2000) % 3]


def test_a_chain_of_attention_steps_compiles_or_is_refused_for_its_depth() -> None:
    chain: list[SOp] = [tokens]
    for _ in range(600):
        chain.append(aggregate(PREVIOUS, chain[-1], "a"))
    limit = sys.getrecursionlimit()
    made = compile(chain[60], vocab="ab", max_len=3)
    assert len(made.model.config.layers) == 60 and made.run("bb") == ["a", "a"]
    assert "takes 600 layers" in str(refusal(chain[600], max_len=3))
    deep = chain[600]
    for _ in range(6000):
        deep = aggregate(PREVIOUS, deep, "a")
    assert "nest too deeply" in str(refusal(deep, max_len=3))
    assert sys.getrecursionlimit() == limit


def test_a_deep_sum_compiles() -> None:
    total: SOp = indices
    for _ in range(300):
        total = linear([total, tokens], [1, 1])
    agrees(total, [0, 1], 2)


# -- callables ---------------------------------------------------------------------------------------------------------


def test_a_callable_that_exits_is_a_problem_with_a_place() -> None:
    error = refusal(Map(lambda x: sys.exit("bye"), tokens) + Map(lambda x: [][1], indices))
    assert len(error.problems) == 2
    assert "test_compile.py:" in error.problems[0] and "SystemExit: bye" in error.problems[0]


def test_the_users_interrupt_gets_through() -> None:
    def interrupted(x: object) -> object:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile(Map(interrupted, tokens), vocab="ab", max_len=2)


def test_a_callable_with_a_state_is_refused_and_the_entry_named() -> None:
    calls: list[object] = []
    seen: set[object] = set()

    def counting(x: object) -> int:
        calls.append(x)
        return len(calls)

    def first_time(key: object, query: object) -> bool:
        new = (key, query) not in seen
        seen.add((key, query))
        return new

    def sometimes_undefined(x: object, y: object) -> object:
        calls.append(x)
        return x if len(calls) % 7 else [][0]

    (problem,) = refusal(Map(counting, tokens)).problems
    assert "map counting (test_compile.py:" in problem
    assert "asked twice where tokens = 'b', it gave" in problem and "; remove the state" in problem
    assert "the key = 'b', the query = 'b'" in refusal(selector_width(select(tokens, tokens, first_time))).problems[0]
    refusal(SequenceMap(sometimes_undefined, tokens, indices))
    refusal(Map(lambda x: random.random() < 0.5, indices), max_len=60)


def test_a_callable_of_constants_alone_is_tabulated() -> None:
    assert compile(Map(lambda x: x, full(3)), vocab="ab", max_len=2).run("ab") == [3, 3]


# -- what is stated about the model ------------------------------------------------------------------------------------


def measured_margin(made: Compiled, count: int = 30) -> float:
    """The least gap of the read-out on random inputs, in double precision."""
    model, rng, least = made.model.double(), random.Random(0), math.inf
    inputs = [rng.choices(made.vocab, k=rng.randint(1, made.max_len)) for _ in range(count)]
    with torch.no_grad():
        for _, ids in made.codec.batches(inputs):
            logits = model(ids)[:, int(made.codec.bos) :]
            if made.codec.kind == "scalar":
                points = torch.tensor(sorted(made.codec.points), dtype=torch.float64)
                gaps = (logits[..., :1] - (points[1:] + points[:-1]) / 2).abs()
            else:
                best = logits.topk(min(2, logits.shape[-1]), dim=-1).values
                gaps = best[..., :1] - best[..., 1:]
            least = min(least, float(gaps.min())) if gaps.numel() else least
    return least


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_the_stated_margin_is_positive_and_holds(name: str, bos: bool) -> None:
    entry = LIBRARY[name]
    try:
        made = compile(entry.build(), vocab=entry.vocab(5), max_len=6, causal=entry.causal, bos=bos)
    except CompileError:
        assert not bos
        return
    assert 0 < made.margin <= measured_margin(made) + 1e-12
    if made.codec.kind == "categorical" and len(made.codec.outputs) > 1:
        assert 0.99 < made.margin <= 1


def test_the_margin_of_a_scalar_is_half_the_gap_less_the_error() -> None:
    made = compile(programs.mean(), vocab=[0, 1, 2], max_len=10)
    points = sorted(made.codec.points)
    half = min(b - a for a, b in zip(points, points[1:], strict=False)) / 2
    assert 0.99 * half < made.margin <= half


def test_a_margin_is_lost_where_the_constants_no_longer_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    from certiformer.compiler import margins

    monkeypatch.setattr(margins, "GAIN", 4.0)
    assert compile(programs.hist(), vocab="abc", max_len=9).margin == 0.0


def test_one_output_has_an_infinite_margin_and_files_keep_it(tmp_path: Path) -> None:
    for number, program in enumerate((full(3), LIBRARY["hist"].build())):
        made = compile(program, vocab="ab", max_len=4)
        made.save(tmp_path / f"{number}.safetensors")
        assert Compiled.load(tmp_path / f"{number}.safetensors").margin == made.margin
        assert math.isinf(made.margin) == (number == 0)


def test_sizes_say_the_width_with_and_without_reuse() -> None:
    shared = compile(programs.sort(), vocab=range(5), max_len=6)
    apart = compile(programs.sort(), vocab=range(5), max_len=6, reuse=False)
    assert shared.sizes.d_model == shared.model.config.d_model < shared.sizes.d_model_without_reuse
    assert apart.sizes.d_model == apart.sizes.d_model_without_reuse == shared.sizes.d_model_without_reuse


def test_edges_of_reused_coordinates_are_in_the_circuit_and_said_to_be() -> None:
    extra = {"input->logits", "a0.h0->logits"}
    assert extra <= compile(programs.hist(), vocab="abc", max_len=5).circuit.edges
    assert not extra & compile(programs.hist(), vocab="abc", max_len=5, reuse=False).circuit.edges
    assert compiled_module.Compiled.__doc__ is not None
    assert all(edge in compiled_module.Compiled.__doc__ for edge in extra)


def test_what_is_printed_is_short() -> None:
    made = compile(programs.sort(), vocab=range(20), max_len=12)
    assert repr(made) == str(made)
    for text in ("'sort'", "20 tokens (0, 1, 2, 3, …)", "lengths 1 to 12", "3 layers", "margin 1"):
        assert text in repr(made)
    assert all(len(repr(part)) < 300 for part in (made, made.core, made.alignment))
