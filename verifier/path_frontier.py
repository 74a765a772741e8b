"""The file that an interrupted search by paths goes on from: its trees, and the groups that wait.

Nothing in it is trusted. It is bound to the question by a hash, and to its own text by another, so that a damaged or
edited file is noticed; and whatever it says is proved has to pass the independent checker, as always.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast

from ..models.errors import InputError
from ..models.files import parse_json, write_atomically
from .path_search import STAGES, Found, Node, Search, Tree
from .path_splits import Split

FORMAT, VERSION = "certiformer: a search by paths", 2
EVERY = 30.0
"""Seconds between two writes."""


@dataclass
class Frontier:
    """The file at `path`, of the search for one question (any JSON value that says what is asked, and of what)."""

    path: Path
    question: object
    written: float = field(default_factory=time.monotonic)

    def restore(self, search: Search) -> None:
        """Lets a search go on from the file, if it is there. Raises `InputError` for any other file."""
        try:
            data = self._read()
            if data is None:
                return
            for tree, item in zip(search.trees, _listed(data["trees"], len(search.trees)), strict=True):
                if {key: item[key] for key in item if key != "nodes"} != tree.name():
                    raise ValueError("its trees are not those of this question")
                nodes = iter(item["nodes"])
                _rebuild(tree.root, nodes)
                if next(nodes, None) is not None:
                    raise ValueError("a tree has nodes to spare")
            places = [(tree, list(tree.root.all())) for tree in search.trees]
            waiting = []
            for which, number, stage in data["waiting"]:
                tree, nodes = places[which]
                if stage not in STAGES or nodes[number].split is not None:
                    raise ValueError("a group cannot wait for that")
                waiting.append((tree, nodes[number], stage))
            left, pause = data["patience"]
            search.go_on_from(waiting, int(data["groups"]), bool(data["worthwhile"]), (int(left), int(pause)))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{self.path} is damaged ({error}); remove it to begin anew") from None

    def _read(self) -> dict[str, Any] | None:
        """What the file says; None if there is none."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}; choose another file") from None
        data = parse_json(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{self.path} is no file of an interrupted search; choose another file")
        if data.get("version") != VERSION:
            raise InputError(
                f"{self.path} has version {data.get('version')!r}, this release reads version {VERSION}; "
                "remove it to begin anew, or go on with the release that wrote it"
            )
        if data.pop("sha256", None) != digest(data):
            raise ValueError("its text is not what was written: the hash differs")
        if data["question"] != digest(self.question):
            raise InputError(
                f"{self.path} belongs to another search: other weights, another claim, domain or machine of states; "
                "choose another file"
            )
        return cast(dict[str, Any], data)

    def now_and_then(self, search: Search) -> None:
        if time.monotonic() > self.written + EVERY:
            self.write(search)

    def write(self, search: Search) -> None:
        """Atomically; nothing, in the moment when a search stores what it found."""
        if not search.steady:
            return
        place = {id(node): number for tree in search.trees for number, node in enumerate(tree.root.all())}
        which = {id(tree): number for number, tree in enumerate(search.trees)}
        data: dict[str, object] = {
            "format": FORMAT,
            "version": VERSION,
            "question": digest(self.question),
            "groups": search.groups,
            "worthwhile": search.worthwhile,
            "patience": search.patience,
            "trees": [_tree_to_json(tree) for tree in search.trees],
            "waiting": [[which[id(tree)], place[id(node)], stage] for tree, node, stage in search.waiting],
        }
        write_atomically(self.path, json.dumps({**data, "sha256": digest(data)}, sort_keys=True).encode())
        self.written = time.monotonic()


def frontier_at(resume: str | PathLike[str] | None, question: object) -> Frontier | None:
    return None if resume is None else Frontier(Path(resume), question)


def digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _listed(items: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if len(items) != count:
        raise ValueError(f"it has {len(items)} trees, not {count}")
    return items


def _tree_to_json(tree: Tree) -> dict[str, object]:
    return {**tree.name(), "nodes": [_node_to_json(node) for node in tree.root.all()]}


def _node_to_json(node: Node) -> list[object]:
    found = node.found
    if node.split is not None:
        return ["split", node.split]
    return [found.kind, found.counts, found.proved, found.choice, found.least if math.isfinite(found.least) else None]


def _rebuild(node: Node, nodes: Any) -> None:
    """The node, and what is below it, from its items in preorder."""
    kind, *rest = cast(list[Any], next(nodes, ["missing"]))
    if kind == "split":
        node.split = split_of(rest[0])
        node.children = node.parts(node.split)
        for child in node.children:
            _rebuild(child, nodes)
    elif kind in ("open", "leaf", "shared"):
        counts, proved, choice = rest[0], int(rest[1]), rest[2]
        if not 0 <= proved <= node.graph.size:
            raise ValueError("a group has more words proved than it has")
        entries = tuple(tuple(int(x) for x in entry) for entry in counts)
        least = -math.inf if rest[3] is None else float(rest[3])
        node.found = Found(kind, entries, proved, None if choice is None else split_of(choice), least)
    else:
        raise ValueError(f"a node is {kind!r}")


def split_of(item: Any) -> Split:
    kind, position, parts = item
    listed = [token for part in parts for token in part]
    if kind not in ("tokens", "states") or not all(parts) or len(set(listed)) < len(listed):
        raise ValueError("a split is none")
    return str(kind), int(position), [[int(token) for token in part] for part in parts]
