"""A search by paths that is interrupted goes on from its file; no other file does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import certiformer as cf
from certiformer.models.codec import Codec
from certiformer.models.errors import InputError
from certiformer.models.labels import LabelMachine
from certiformer.models.tasks import Task
from certiformer.verifier import path_frontier, shares
from certiformer.verifier.claims import Claim
from certiformer.verifier.label_bodies import LabelsBody
from certiformer.verifier.path_bounds import OutOfTime
from certiformer.verifier.path_search import Found, Node, Search
from certiformer.verifier.reading import Subject

from .path_models import random_machine, random_model

LENGTH, SEED = 4, 41


def case(seed: int = SEED) -> tuple[Claim, cf.Language]:
    """That a model of two layers with heads gives one answer on half of all inputs: true, after some splits."""
    rng = np.random.default_rng(seed)
    model = random_model(rng, scale=0.5)
    assert sum(layer.n_heads > 0 for layer in model.config.layers) > 1
    tokens, outputs = range(model.config.d_vocab), range(model.config.d_vocab_out)
    labels = LabelMachine(np.zeros((1, len(tokens)), dtype=np.int32), np.array([1]))
    states = random_machine(rng, 2, len(tokens), 1)
    codec = Codec(tuple(tokens), False, "categorical", tuple(outputs), max_len=model.config.n_ctx)
    body = LabelsBody(Subject(model, codec), labels, "always the same", states)
    return Claim("forall", body).at_least(Fraction(1, 2)), cf.sequences(tokens, LENGTH)


def prove(claim: Claim, domain: cf.Language, file: Path | None = None) -> cf.Verdict:
    return cf.prove(claim, domain, engines={"paths"}, resume=file)


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, int]:
    """The certificate of an uninterrupted search, and how many groups it looks at."""
    kept, count = Search._look, 0

    def look(self: Search, *args: Any) -> Found:
        nonlocal count
        count += 1
        return kept(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_look", look)
        verdict = prove(*case())
    assert isinstance(verdict, cf.Proved) and isinstance(verdict.certificate, cf.Certificate)
    assert count > 12  # else there is little to interrupt
    return verdict.certificate.to_bytes(), count


def stop_at(patch: pytest.MonkeyPatch, place: int, error: type[BaseException]) -> None:
    """The search is interrupted at the end of its so many-th look at a group."""
    kept, count = Search._look, 0

    def look(self: Search, *args: Any) -> Found:
        nonlocal count
        count += 1
        found = kept(self, *args)
        if count == place:
            raise error
        return found

    patch.setattr(Search, "_look", look)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OutOfTime])
@pytest.mark.parametrize("place", [1, 2, 3, 8, 11])
def test_an_interrupted_search_ends_with_the_same_certificate(
    place: int, error: type[BaseException], tmp_path: Path, whole: tuple[bytes, int]
) -> None:
    claim, domain = case()
    file = tmp_path / "search.json"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, place, error)
        verdict = prove(claim, domain, file)
    assert isinstance(verdict, cf.Unknown)
    if error is KeyboardInterrupt:
        assert str(file) in verdict.reason
    resumed = prove(claim, domain, file)
    assert isinstance(resumed, cf.Proved) and isinstance(resumed.certificate, cf.Certificate)
    assert resumed.certificate.to_bytes() == whole[0]
    with pytest.MonkeyPatch.context() as patch:  # what is done is not done again
        patch.setattr(Search, "_look", lambda *args: 1 / 0)
        again = prove(claim, domain, file)
    assert isinstance(again, cf.Proved) and isinstance(again.certificate, cf.Certificate)
    assert again.certificate.to_bytes() == whole[0]


def test_interrupted_at_every_step(tmp_path: Path, whole: tuple[bytes, int]) -> None:
    """Time is up in each look but the first: each call goes one step further."""
    claim, domain = case()
    file, steps = tmp_path / "search.json", 0
    verdict: cf.Verdict | None = None
    while not isinstance(verdict, cf.Proved):
        with pytest.MonkeyPatch.context() as patch:
            kept = Search._take

            def take(self: Search, *args: Any, kept: Callable[..., None] = kept) -> None:
                kept(self, *args)
                self.deadline = 0.0

            patch.setattr(Search, "_take", take)
            verdict = prove(claim, domain, file)
        steps += 1
        assert steps <= 2 * whole[1]
    assert steps > 5
    assert isinstance(verdict.certificate, cf.Certificate)
    assert verdict.certificate.to_bytes() == whole[0]


def test_a_moment_in_which_nothing_may_be_written(tmp_path: Path) -> None:
    """Ctrl-C while results are stored: the file stays as it was."""
    claim, domain = case()
    file = tmp_path / "search.json"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 5, OutOfTime)
        prove(claim, domain, file)
    before = file.read_bytes()

    def follow(self: Search, *args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "_follow", follow)
        assert isinstance(prove(claim, domain, file), cf.Unknown)
    assert file.read_bytes() == before
    assert isinstance(prove(claim, domain, file), cf.Proved)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The file of an interrupted search."""
    file = tmp_path / "search.json"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 8, OutOfTime)
        prove(*case(), file)
    return file


def test_another_claim_has_another_file(left: Path) -> None:
    claim, domain = case()
    others = [
        (case(53)[0], case(53)[1]),
        (claim, cf.sequences(domain.vocab, 3)),
        (Claim("forall", claim.body), domain),
        (Claim("forall", type(claim.body)(**{**vars(claim.body), "states": None})).at_least(0.5), domain),
    ]
    for other, inputs in others:
        with pytest.raises(InputError, match=r"search\.json belongs to another search.*choose another file"):
            prove(other, inputs, left)
    assert isinstance(prove(claim.body and Claim("forall", claim.body).at_least(0.4), domain, left), cf.Proved)


def change(file: Path, edit: Callable[[dict[str, Any]], None], honest: bool) -> None:
    """An edited file; `honest`: with its old hash, which tells. Else with a new one."""
    data = json.loads(file.read_text())
    kept = data.pop("sha256")
    edit(data)
    fresh = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**data, "sha256": kept if honest else fresh}, sort_keys=True))


def leaf(data: dict[str, Any]) -> list[Any]:
    return next(node for tree in data["trees"] for node in tree["nodes"] if node[0] != "split")


def split(data: dict[str, Any]) -> list[Any]:
    return next(node for tree in data["trees"] for node in tree["nodes"] if node[0] == "split")


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "more proved than there is": lambda data: leaf(data).__setitem__(2, 10**9),
    "less than nothing proved": lambda data: leaf(data).__setitem__(2, -1),
    "a node of no kind": lambda data: leaf(data).__setitem__(0, "twig"),
    "a tree too few": lambda data: data["trees"].pop(),
    "a node too few": lambda data: data["trees"][0]["nodes"].pop(),
    "a node too many": lambda data: data["trees"][0]["nodes"].append(["open", [], 0, None]),
    "parts that overlap": lambda data: split(data)[1].__setitem__(2, [[0], [0, 1]]),
    "a split that is none": lambda data: split(data)[1].__setitem__(0, "moods"),
    "a split at no position": lambda data: split(data)[1].__setitem__(1, 99),
    "a group that is not there waits": lambda data: data["waiting"].append([0, 10**6, "split"]),
    "a split group waits": lambda data: data["waiting"].append([0, 0, "own"]),
    "a group waits for nothing": lambda data: data["waiting"][0].__setitem__(2, "lunch"),
    "no groups": lambda data: data.__delitem__("groups"),
    "text for a number": lambda data: data.__setitem__("groups", "many"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_edited_files_are_refused(name: str, left: Path) -> None:
    before = left.read_bytes()
    for honest, why in ((True, "the hash differs"), (False, "")):
        left.write_bytes(before)
        change(left, DAMAGE[name], honest)
        with pytest.raises(InputError, match=rf"search\.json is damaged \(.*{why}.*\); remove it to begin anew"):
            prove(*case(), left)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[1, 2]", "no file of an interrupted search"),
        (b'{"format": "something else"}', "no file of an interrupted search"),
        (b'{"format": "' + path_frontier.FORMAT.encode() + b'", "version": 99}', "has version 99"),
        (b'{"format": "' + path_frontier.FORMAT.encode() + b'", "version": 2}', "the hash differs"),
    ],
)
def test_other_files_are_refused(text: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_bytes(text)
    with pytest.raises(InputError, match=rf"other.*{why}"):
        prove(*case(), file)
    assert file.read_bytes() == text


def test_half_a_file_is_refused(left: Path) -> None:
    text = left.read_bytes()
    for size in range(0, len(text), max(1, len(text) // 12)):
        left.write_bytes(text[:size])
        with pytest.raises(InputError, match="damaged"):
            prove(*case(), left)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(InputError, match="choose"):
            prove(*case(), path)


def test_what_a_forged_file_says_is_proved_is_checked(left: Path) -> None:
    """A file may say, with a hash that fits, that all inputs are proved: the independent checker sees that they are
    not."""
    claim, domain = case()

    def forge(data: dict[str, Any]) -> None:
        sizes: list[int] = []

        def note(node: Node) -> None:
            sizes.extend(each.graph.size for each in node.all())

        with pytest.MonkeyPatch.context() as patch:
            kept = Search.run
            patch.setattr(Search, "run", lambda self, enough: [note(tree.root) for tree in self.trees] and None)
            prove(claim, domain, left)
            patch.setattr(Search, "run", kept)
        nodes = [node for tree in data["trees"] for node in tree["nodes"]]
        for node, size in zip(nodes, sizes, strict=True):
            if node[0] != "split":
                node[:] = ["leaf", [], size, None, None]
        data["waiting"] = []

    change(left, forge, honest=False)
    verdict = prove(claim, domain, left)
    assert isinstance(verdict, cf.Unknown)
    assert "the independent checker does not accept the proof" in verdict.reason


def test_a_file_is_for_claims_that_are_searched(tmp_path: Path) -> None:
    claim, domain = case()
    file = tmp_path / "search.json"
    for refused, options in (
        (Claim("forall", claim.body).at_most(0.5), {}),
        (claim, {"engines": {"enumeration"}}),
        (claim, {"semantics": "float32"}),
    ):
        with pytest.raises(InputError, match="leave it out"):
            cf.prove(refused, domain, resume=file, **options)  # type: ignore[arg-type]
    assert not file.exists()


def test_bounds_of_an_accuracy_are_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C gives what was found, with its certificate; the next call goes on."""
    claim, domain = case()
    body = claim.body
    assert isinstance(body, LabelsBody)
    monkeypatch.setattr(shares, "AT_ONCE", 1)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="too large to enumerate"):
        patch.setattr(shares, "Labels", lambda *_, **__: Claim("forall", body))
        cf.accuracy_bounds(body.subject.model, Task.__new__(Task), domain, resume=tmp_path / "none")
    monkeypatch.setattr(shares, "MAX_INPUTS", 1)
    monkeypatch.setattr(shares, "Labels", lambda *_, **__: Claim("forall", body))
    file, task = tmp_path / "search.json", Task.__new__(Task)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 12, KeyboardInterrupt)
        first = cf.accuracy_bounds(body.subject.model, task, domain, resume=file)
    second = cf.accuracy_bounds(body.subject.model, task, domain, resume=file, seconds=5)
    assert first.engine == second.engine == "paths"
    assert first.total == second.total == domain.size()
    assert second.proved >= first.proved
    assert second.proved > 0
