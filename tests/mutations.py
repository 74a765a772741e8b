"""Mutations of certificates: any field changed, removed, repeated or moved, then resealed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

from certiformer import proofs

Json = Any
Path = tuple[Any, ...]


def places(data: Json, path: Path = ()) -> Iterator[Path]:
    """The paths of all parts of a JSON value, itself included."""
    yield path
    if isinstance(data, dict):
        for key in data:
            yield from places(data[key], (*path, key))
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield from places(item, (*path, index))


def part(data: Json, path: Path) -> Json:
    for key in path:
        data = data[key]
    return data


def _other_leaf(rng: np.random.Generator, item: Json) -> Json:
    if isinstance(item, bool):
        return not item
    if isinstance(item, int):
        return [item + 1, item - 1, -item, 2 * item, 0, 10**30, float(item), str(item), None][int(rng.integers(9))]
    if isinstance(item, float):
        return [item + 1, -item, 0.0, 1e300, int(item)][int(rng.integers(5))]
    if isinstance(item, str):
        if item and set(item) <= {"0", "1"} and rng.random() < 0.8:  # a row of a table
            place = int(rng.integers(len(item)))
            return item[:place] + "10"[int(item[place])] + item[place + 1 :]
        return [item + "x", item[:-1], "", "a", 1, None][int(rng.integers(6))]
    return [0, True, "None", [], {}][int(rng.integers(5))]


def mutate(rng: np.random.Generator, certificate: Json) -> tuple[Json, str]:
    """One changed copy, resealed, and what was changed. Leaves, lists and objects are all candidates."""
    changed = copy.deepcopy(certificate)
    paths = [path for path in places(changed) if path and path[0] != "seal"]
    leaves = [path for path in paths if not isinstance(part(changed, path), (dict, list))]
    inner = [path for path in paths if isinstance(part(changed, path), (dict, list))]
    pool = leaves if rng.random() < 0.6 else inner
    path = pool[int(rng.integers(len(pool)))]
    owner, key, item = part(changed, path[:-1]), path[-1], part(changed, path)
    action = "leaf"
    if not isinstance(item, (dict, list)):
        owner[key] = _other_leaf(rng, item)
    else:
        action = str(rng.choice(["drop", "repeat", "swap", "move", "empty", "surplus"]))
        if action == "drop" and item:
            del item[_some_key(rng, item)]
        elif action == "repeat" and isinstance(item, list) and item:
            item.insert(int(rng.integers(len(item) + 1)), copy.deepcopy(item[int(rng.integers(len(item)))]))
        elif action == "swap" and len(item) > 1:
            one, two = _some_key(rng, item), _some_key(rng, item)
            item[one], item[two] = item[two], item[one]
        elif action == "move":
            owner[key] = copy.deepcopy(part(changed, inner[int(rng.integers(len(inner)))]))
        elif action == "empty":
            owner[key] = type(item)()
        elif isinstance(item, dict):
            item["surplus"] = 1
        else:
            item.append(0)
    changed["seal"] = proofs.seal(changed)
    return changed, f"{action} at {'.'.join(map(str, path))}"


def _some_key(rng: np.random.Generator, item: Json) -> Any:
    keys = list(item) if isinstance(item, dict) else list(range(len(item)))
    return keys[int(rng.integers(len(keys)))]
