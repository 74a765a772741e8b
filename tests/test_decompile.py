"""Decompilation: programs read off the weights, proved of the model, and never claimed where they are wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import certiformer as cf
from certiformer.compiler.alignment import Alignment, OneHot
from certiformer.compiler.compiled import Compiled
from certiformer.compiler.core import CoreProgram, Map, Select
from certiformer.compiler.core_json import core_to_json
from certiformer.compiler.interpreter import evaluate
from certiformer.compiler.lower import lower
from certiformer.compiler.programs import LIBRARY
from certiformer.explanations import Decompiled, program_text, recover
from certiformer.models import LayerConfig, Transformer

KINDS = {
    "sort": "a rank, by a union of two selections, and a gather at it",
    "hist": "a count",
    "reverse": "an index computed from a length",
    "mean": "an average",
    "running_maximum": "conjunctions",
    "frac_prevs": "an average of truth values",
    "previous_occurrence": "a gather with a default",
    "majority": "sums compared",
    "is_palindrome": "a gather compared with the token",
    "dyck1_bounded": "averages and thresholds",
    "add_binary": "arithmetic on joint values",
    "run_length": "indices subtracted",
    "window_sum": "a sum of several gathers",
    "identity": "no component at all",
}


def small(name: str) -> Compiled:
    entry = LIBRARY[name]
    vocab = entry.vocab(min(3, entry.max_vocab or 3))
    return cf.compile(entry.build(), vocab=vocab, max_len=4, causal=entry.causal, name=name)


def words(compiled: Compiled) -> Iterator[list[Any]]:
    for n in range(1, compiled.max_len + 1):
        yield from map(list, itertools.product(compiled.vocab, repeat=n))


def changed(compiled: Compiled, **parameters: torch.Tensor) -> Compiled:
    """The same with some parameters replaced, by name with `__` for the dots."""
    found = {name: p.detach().clone() for name, p in compiled.model.named_parameters()}
    found |= {name.replace("__", "."): value for name, value in parameters.items()}
    return replace(compiled, model=Transformer.from_parameters(compiled.model.config, found))


def parameter(compiled: Compiled, name: str) -> torch.Tensor:
    return dict(compiled.model.named_parameters())[name].detach().clone()


def agrees_everywhere(compiled: Compiled, found: Decompiled) -> bool:
    """By running all words: the model decodes to what the interpreter says of the recovered program."""
    listed = list(words(compiled))
    rows = compiled.run_batch(listed)
    return all(
        row == evaluate(found.program, word, causal=compiled.causal) for word, row in zip(listed, rows, strict=True)
    )


# Programs of the library come back.


@pytest.mark.parametrize("name", KINDS)
def test_a_library_program_is_recovered_and_proved(name: str) -> None:
    compiled = small(name)
    found = cf.decompile(compiled, source=LIBRARY[name].build())
    assert isinstance(found.verdict, cf.Proved) and found.verdict.certificate.rule == "composition", found.verdict
    assert isinstance(found.equivalence, cf.Proved), found.equivalence
    assert agrees_everywhere(compiled, found)
    lowered = lower(found.program, compiled.vocab, compiled.max_len, compiled.causal)
    assert core_to_json(lowered, False) == core_to_json(found.core, False)


def test_the_certificate_is_about_the_recovered_program(tmp_path: Any) -> None:
    compiled = small("sort")
    found = cf.decompile(compiled)
    compiled.model.save(tmp_path / "m.safetensors")
    expect = cf.Computes(compiled, found.program)
    model = tmp_path / "m.safetensors"
    assert isinstance(cf.check(found.verdict.certificate, model, expect=expect), cf.Valid)
    other = cf.Computes(compiled, cf.programs.sort_descending())
    assert isinstance(cf.check(found.verdict.certificate, model, expect=other), cf.Invalid)


def scrambled(program: CoreProgram) -> CoreProgram:
    """The same names and values, other functions and predicates."""
    nodes = []
    for node in program.nodes:
        if isinstance(node, Map):
            node = replace(node, table=np.zeros_like(node.table))
        elif isinstance(node, Select):
            node = replace(node, table=~node.table)
        nodes.append(node)
    return replace(program, nodes=tuple(nodes))


@pytest.mark.parametrize("name", ["sort", "add_binary", "running_maximum"])
def test_functions_and_predicates_come_from_the_weights_alone(name: str) -> None:
    compiled = small(name)
    given = compiled.alignment
    heads = tuple(
        replace(h, atoms=tuple(replace(a, table=np.zeros_like(a.table)) for a in h.atoms)) for h in given.heads
    )
    blind = replace(given, program=scrambled(given.program), heads=heads, width_sums=(), width_shares=())
    assert recover(compiled.model, compiled.codec, blind).text == recover(compiled.model, compiled.codec, given).text


def test_noise_in_the_weights() -> None:
    compiled = small("sort")
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name.replace(".", "__"): p.detach() + 1e-5 * torch.randn(p.shape, generator=generator)
        for name, p in compiled.model.named_parameters()
    }
    found = cf.decompile(changed(compiled, **noisy), source=cf.programs.sort())
    assert isinstance(found.verdict, cf.Proved) and isinstance(found.equivalence, cf.Proved)
    assert found.text == cf.decompile(compiled).text


@pytest.mark.parametrize("name", ["length", "mean", "running_mean"])
def test_without_a_beginning_of_sequence_token(name: str) -> None:
    entry = LIBRARY[name]
    compiled = cf.compile(entry.build(), vocab=range(3), max_len=4, causal=entry.causal, bos=False)
    found = cf.decompile(compiled, source=entry.build())
    assert isinstance(found.verdict, cf.Proved) and isinstance(found.equivalence, cf.Proved)


def test_counts_by_two_heads_without_that_token_are_not_covered() -> None:
    with pytest.raises(cf.InputError, match="no RASP program"):
        cf.decompile(cf.compile(cf.programs.hist(), vocab=range(3), max_len=4, bos=False))


# Mutated weights: what is recovered is what the model computes, not what was compiled.


def swapped(tensor: torch.Tensor, dim: int, i: int, j: int) -> torch.Tensor:
    order = list(range(tensor.shape[dim]))
    order[i], order[j] = j, i
    return tensor.index_select(dim, torch.tensor(order))


MUTATIONS = (
    "the read-out permutes two outputs",
    "a head looks for another token",
    "neurons write another value",
    "true and false are exchanged",
)


@pytest.fixture(scope="module")
def mutants() -> dict[str, tuple[Compiled, str]]:
    sort, hist, add = small("sort"), small("hist"), small("add_binary")
    tokens = small("equals_previous")
    out = parameter(sort, "unembed.W_U")
    key = parameter(hist, "blocks.0.attn.W_K")
    group = next(r for r in add.alignment.neurons if isinstance(r.encoding, OneHot))
    write = parameter(add, f"blocks.{group.layer}.mlp.W_out")
    a, b, *_ = [d for d in group.encoding.dims if d >= 0]  # type: ignore[union-attr]
    write[slice(*group.neurons)] = swapped(write[slice(*group.neurons)], 1, a, b)
    rows = [d for d in range(1, key.shape[1]) if key[0, d].any()]
    flipped = parameter(tokens, "unembed.W_U")
    return {
        "the read-out permutes two outputs": (changed(sort, unembed__W_U=swapped(out, 1, 0, 1)), "sort"),
        "a head looks for another token": (
            changed(hist, blocks__0__attn__W_K=swapped(key, 1, rows[0], rows[1])),
            "hist",
        ),
        "neurons write another value": (
            changed(add, **{f"blocks__{group.layer}__mlp__W_out": write}),
            "add_binary",
        ),
        "true and false are exchanged": (changed(tokens, unembed__W_U=flipped.flip(1)), "equals_previous"),
    }


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mutated_model_gives_the_mutated_program(mutants: dict[str, tuple[Compiled, str]], what: str) -> None:
    mutant, name = mutants[what]
    found = cf.decompile(mutant, source=LIBRARY[name].build())
    assert isinstance(found.verdict, cf.Proved), found.verdict
    assert agrees_everywhere(mutant, found)
    assert isinstance(found.equivalence, cf.Refuted), found.equivalence
    (word,) = found.equivalence.evidence.inputs
    assert mutant.run(word) != evaluate(LIBRARY[name].build(), list(word), causal=mutant.causal)


@pytest.mark.parametrize("name", ["sort", "add_binary", "frac_prevs"])
def test_no_mutant_is_claimed_to_compute_what_it_does_not(name: str) -> None:
    compiled = small(name)
    rng = np.random.default_rng(0)
    places = [
        (key, tuple(map(int, index)))
        for key, value in compiled.model.named_parameters()
        for index in np.argwhere(value.detach().numpy() != 0)
    ]
    proved = 0
    for at in rng.choice(len(places), 12, replace=False):
        key, index = places[at]
        value = parameter(compiled, key)
        value[index] = float(rng.choice([0.0, -1.0, 0.5, 2.0])) * value[index]
        mutant = changed(compiled, **{key.replace(".", "__"): value})
        try:
            found = cf.decompile(mutant, seconds=5)
        except cf.InputError:
            continue
        if isinstance(found.verdict, cf.Proved):
            proved += 1
            assert agrees_everywhere(mutant, found), (key, index)
    assert proved  # some mutations change nothing that matters


# Wrong alignments and bad input.


def test_the_alignment_of_another_model() -> None:
    sort, other = small("sort"), small("sort_descending")
    with pytest.raises(cf.InputError, match="alignment"):
        cf.decompile(small("hist").model, codec=small("hist").codec, alignment=sort.alignment)
    found = cf.decompile(other.model, codec=other.codec, alignment=sort.alignment, source=cf.programs.sort())
    assert agrees_everywhere(other, found) and isinstance(found.equivalence, cf.Refuted)


def misplaced(alignment: Alignment) -> Alignment:
    """The encodings of one head's output name each other's coordinates."""
    first, *rest = alignment.heads
    assert isinstance(first.encoding, OneHot)
    return replace(alignment, heads=(replace(first, encoding=OneHot(first.encoding.dims[::-1])), *rest))


def test_a_variable_in_the_wrong_place_is_not_proved() -> None:
    compiled = small("last_token")
    at = next(i for i, head in enumerate(compiled.alignment.heads) if isinstance(head.encoding, OneHot))
    heads = compiled.alignment.heads
    moved = misplaced(replace(compiled.alignment, heads=(heads[at], *heads[:at], *heads[at + 1 :])))
    try:
        found = cf.decompile(compiled.model, codec=compiled.codec, alignment=moved)
    except cf.InputError:
        return
    assert not isinstance(found.verdict, cf.Proved) or agrees_everywhere(compiled, found)


def test_bad_input() -> None:
    compiled = small("hist")
    with pytest.raises(cf.InputError, match="no alignment"):
        cf.decompile(compiled.model, codec=compiled.codec)
    with pytest.raises(cf.InputError, match="pass codec"):
        cf.decompile(compiled.model)
    with pytest.raises(cf.InputError, match="a Transformer or a compiled program"):
        cf.decompile("hist")  # type: ignore[arg-type]
    with pytest.raises(cf.InputError, match="an alignment is needed"):
        recover(compiled.model, compiled.codec, compiled.core)  # type: ignore[arg-type]
    config = replace(compiled.model.config, layers=(LayerConfig(1, 2, 0),))
    with pytest.raises(cf.InputError, match="head|neurons|layers"):
        cf.decompile(Transformer(config), codec=compiled.codec, alignment=small("sort").alignment)
    with torch.no_grad():
        compiled.model.get_parameter("unembed.b_U").fill_(float("nan"))
    with pytest.raises(cf.InputError, match="not finite"):
        cf.decompile(compiled)


# Programs as text.


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_text_is_a_module_that_builds_the_program(name: str) -> None:
    compiled = small(name)
    found = recover(compiled.model, compiled.codec, compiled.alignment, name=name)
    scope: dict[str, Any] = {}
    exec(found.text, scope)
    for word in itertools.islice(words(compiled), 40):
        wanted = evaluate(found.program, word, causal=compiled.causal)
        assert evaluate(scope["program"], word, causal=compiled.causal) == wanted


def test_formulas_are_read_where_they_were_written() -> None:
    text = recover(*(lambda c: (c.model, c.codec, c.alignment))(small("reverse"))).text
    assert "- indices - 1" in text and '"=="' in text and "{" not in text


def test_a_callable_that_is_no_formula_has_no_text() -> None:
    with pytest.raises(cf.InputError, match="cannot be written as text"):
        program_text(cf.rasp.Map(lambda x: {0: 1, 1: 0, 2: 2}[x], cf.rasp.tokens))
