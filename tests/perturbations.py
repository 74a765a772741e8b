"""Random changes of a compiled model, its explanation or its program; most make the claim false, some do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from certiformer.compiler.alignment import Atom, Encoding, HeadRole, OneHot, Scalar, Scaled
from certiformer.compiler.core import Aggregate, CoreProgram, Linear, Map, Node, Select

from .planted import Parts

Change = Callable[[Parts, np.random.Generator], None]


# --- of the weights


def _entry(parts: Parts, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A weight: half of the time one that is not zero."""
    names = [name for name, array in parts.weights.items() if array.size]
    for _ in range(50):
        name = names[rng.integers(len(names))]
        array = parts.weights[name]
        at = tuple(int(rng.integers(n)) for n in array.shape)
        if rng.random() < 0.05 or array[at] != 0:
            return name, at
    return name, at


def one_weight(parts: Parts, rng: np.random.Generator) -> None:
    """A single weight, by a little, a lot, to zero, or with its sign turned."""
    name, at = _entry(parts, rng)
    array = parts.weights[name]
    amount = float(rng.choice([-1, 1]) * 10.0 ** rng.uniform(-6, 2))
    array[at] = rng.choice([0.0, -array[at], array[at] + amount, array[at] * (1 + amount / 10)])


def a_bias(parts: Parts, rng: np.random.Generator) -> None:
    names = [name for name in parts.weights if ".b_" in name and parts.weights[name].size]
    array = parts.weights[names[rng.integers(len(names))]]
    at = tuple(int(rng.integers(n)) for n in array.shape)
    array[at] += rng.choice([-1, 1]) * 10.0 ** rng.uniform(-4, 2)


def an_embedding(parts: Parts, rng: np.random.Generator) -> None:
    """A token's, a position's or BOS's."""
    array = parts.weights[str(rng.choice(["embed.W_E", "pos_embed.W_pos"]))]
    array[rng.integers(len(array)), rng.integers(array.shape[1])] += rng.choice([-1, 1]) * 10.0 ** rng.uniform(-4, 1)


def attention_scaled(parts: Parts, rng: np.random.Generator) -> None:
    """One head's queries, keys or values, bias included."""
    layers = [name.split(".")[1] for name in parts.weights if name.endswith("W_Q")]
    if not layers:
        return one_weight(parts, rng)
    layer, letter = layers[rng.integers(len(layers))], str(rng.choice(["Q", "Q", "K", "V"]))
    head = rng.integers(len(parts[f"{layer}.attn.W_Q"]))
    factor = np.float32(10.0 ** rng.uniform(-1.5, 0.5))
    parts[f"{layer}.attn.W_{letter}"][head] *= factor
    parts[f"{layer}.attn.b_{letter}"][head] *= factor


def noise(parts: Parts, rng: np.random.Generator) -> None:
    """On all weights."""
    size = 10.0 ** rng.uniform(-5, -1)
    for array in parts.weights.values():
        array += (size * rng.normal(size=array.shape)).astype(np.float32)


def noise_on_what_is_not_zero(parts: Parts, rng: np.random.Generator) -> None:
    size = 10.0 ** rng.uniform(-4, -0.5)
    for array in parts.weights.values():
        array += (array != 0) * (size * rng.normal(size=array.shape)).astype(np.float32)


def idle_dimensions(parts: Parts, rng: np.random.Generator) -> None:
    """Garbage where zero multiplies it: queries without keys, values without outputs, neurons that nobody reads."""
    for name in parts.weights:
        if not name.endswith("W_Q"):
            continue
        prefix = name[: -len("W_Q")]
        q, k, v, o = (parts.weights[prefix + w] for w in ("W_Q", "W_K", "W_V", "W_O"))
        for head in range(len(q)):
            for dim in range(q.shape[2]):
                if not k[head, :, dim].any():
                    q[head, :, dim] = rng.normal(size=len(q[head]))
                if not o[head, dim].any():
                    v[head, :, dim] = rng.normal(size=len(v[head]))
    if rng.random() < 0.5:
        one_weight(parts, rng)


def bos_values(parts: Parts, rng: np.random.Generator) -> None:
    """What BOS holds."""
    parts.weights["embed.W_E"][-1] += (10.0 ** rng.uniform(-3, 0.5) * rng.normal(size=parts.config["d_model"])).astype(
        np.float32
    )


WEIGHTS: tuple[Change, ...] = (
    one_weight,
    one_weight,
    one_weight,
    a_bias,
    an_embedding,
    attention_scaled,
    noise,
    noise_on_what_is_not_zero,
    idle_dimensions,
    bos_values,
)


# --- of the explanation


def _shuffled(encoding: Encoding, rng: np.random.Generator) -> Encoding:
    match encoding:
        case OneHot(dims):
            order = rng.permutation(len(dims))
            return OneHot(tuple(dims[i] for i in order))
        case Scalar(dim, points):
            changed = list(points)
            changed[rng.integers(len(points))] += float(rng.choice([-1, 1]) * 10.0 ** rng.uniform(-3, 1))
            return Scalar(dim, tuple(changed))
        case Scaled(by, of):
            return Scaled(-by, of) if rng.random() < 0.5 else Scaled(by, _shuffled(of, rng))


def another_encoding(parts: Parts, rng: np.random.Generator) -> None:
    roles: list[list[Any]] = [side for side in (parts.heads, parts.neurons) if side]
    if roles:
        side = roles[rng.integers(len(roles))]
        at = rng.integers(len(side))
        side[at] = replace(side[at], encoding=_shuffled(side[at].encoding, rng))


def another_atom(parts: Parts, rng: np.random.Generator) -> None:
    at = [i for i, role in enumerate(parts.heads) if role.atoms]
    if not at:
        return
    i = at[rng.integers(len(at))]
    role: HeadRole = parts.heads[i]
    j = rng.integers(len(role.atoms))
    atom = role.atoms[j]
    changed = atom.table.copy()
    changed[tuple(rng.integers(n) for n in changed.shape)] ^= True
    atoms = [Atom(a.key, a.query, changed) if n == j else a for n, a in enumerate(role.atoms)]
    parts.heads[i] = replace(
        role, atoms=tuple(atoms if rng.random() < 0.7 else [a for a in role.atoms if a is not atom])
    )


def another_node(parts: Parts, rng: np.random.Generator) -> None:
    roles: list[list[Any]] = [side for side in (parts.heads, parts.neurons) if side]
    if roles:
        side = roles[rng.integers(len(roles))]
        at, other = rng.integers(len(side)), rng.integers(len(side))
        side[at] = replace(side[at], node=side[other].node)


def other_reads(parts: Parts, rng: np.random.Generator) -> None:
    values = [i for i, node in enumerate(parts.program.nodes) if hasattr(node, "values")]
    roles: list[list[Any]] = [side for side in (parts.heads, parts.neurons) if side]
    reads = tuple(int(rng.choice(values)) for _ in range(rng.integers(0, 3)))
    if not roles or rng.random() < 0.3:
        parts.reads = reads
        return
    side = roles[rng.integers(len(roles))]
    at = rng.integers(len(side))
    side[at] = replace(side[at], reads=reads)


def a_missing_role(parts: Parts, rng: np.random.Generator) -> None:
    side = parts.heads if parts.heads and rng.random() < 0.5 else parts.neurons
    if side:
        side.pop(int(rng.integers(len(side))))


EXPLANATION: tuple[Change, ...] = (another_encoding, another_atom, another_node, other_reads, a_missing_role)


# --- of the program


def _changed_node(node: Node, rng: np.random.Generator) -> Node:
    match node:
        case Map():
            table = np.array(node.table)
            table[tuple(rng.integers(n) for n in table.shape)] = rng.integers(len(node.values))
            return replace(node, table=table)
        case Select():
            chosen = np.array(node.table)
            chosen[tuple(rng.integers(n) for n in chosen.shape)] ^= True
            return replace(node, table=chosen)
        case Aggregate():
            return replace(node, default=int(rng.integers(-1, len(node.values))))
        case Linear():
            return replace(node, constant=node.constant + int(rng.choice([-1, 1])))
    return node


def another_program(parts: Parts, rng: np.random.Generator) -> None:
    """One entry of one table of the program that is claimed (and explained)."""
    p = parts.program
    count = len(p.nodes) if parts.source is None else parts.source
    at = [i for i, node in enumerate(p.nodes[:count]) if isinstance(node, (Map, Select, Aggregate, Linear))]
    if not at:
        return one_weight(parts, rng)
    i = int(rng.choice(at))
    nodes = (*p.nodes[:i], _changed_node(p.nodes[i], rng), *p.nodes[i + 1 :])
    parts.program = CoreProgram(p.vocab, p.max_len, p.causal, nodes, p.output, p.name)


def perturbed(parts: Parts, seed: int, count: int) -> Iterator[tuple[str, Parts]]:
    """`count` changed copies: two thirds of weights, the rest of the program, or of weights and explanation at once."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        made = parts.copy()
        kind = number % 6
        changes: list[Change] = [another_program] if kind == 4 else [WEIGHTS[rng.integers(len(WEIGHTS))]]
        if kind == 5:
            changes.append(EXPLANATION[rng.integers(len(EXPLANATION))])
        for change in changes:
            change(made, rng)
        yield " + ".join(change.__name__ for change in changes), made
