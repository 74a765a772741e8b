"""Claims about continuous inputs as VNN-LIB queries, with the ONNX network that starts where the claim's inputs are.

A query holds a box of inputs X and the *negation* of the property of the outputs Y, in the form of the verification
competition (VNN-COMP): `sat` is a candidate counterexample, `unsat` says that the property holds. Every number is a
float32 number, written exactly, and rounded so that no counterexample of the claim is lost: the box outwards, the
negated property towards more. So a query is never weaker than its claim; it may have a counterexample that the claim
has not, at its border.

    query = robust_query(Robust(compiled, "blocks.0.hook_resid_pre", 0.25), [3, 1, 2])
    write_vnnlib([query], "folder")
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..models.config import TransformerConfig
from ..models.errors import InputError
from ..models.files import write_atomically
from ..models.onnx_export import onnx_bytes
from ..models.program import input_site
from ..models.transformer import Transformer
from ..models.values import Value
from .affine_regions import EmbeddingBall, check_regions
from .affine_regions import points as points_of
from .balls import enclose
from .claims import Claim
from .reading import Subject
from .stream_bodies import RobustBody

LARGEST = 2_000_000
"""Numbers of one query, about."""
GREATEST = Fraction(float(np.finfo(np.float32).max))
Side = Literal["below", "above"]


@dataclass(frozen=True, eq=False)
class Query:
    """One question for a verifier of networks.

    `text`: the VNN-LIB file, whose X are the network's input [1, pos, d_model] and Y its output, in C order. `onnx`:
    the network from `site` on. `rounded`: constants of the network that float32 does not hold exactly; where there are
    some, what another tool says is about a network that differs from the model in these.
    """

    name: str
    site: str
    onnx: bytes
    text: str
    rounded: tuple[str, ...]


def robust_query(claim: Claim, word: Sequence[Value]) -> Query:
    """Of a claim `Robust(model, site, radius)`, what it says of one word.

    X: the stream at the site, within the radius of what the word gives there. Y: the logits. The negation: at some
    position another output is decoded (a tie counts as one). Raises `InputError` for other claims, for words the
    model cannot read, and where the word's own output is not decided over the reals.
    """
    body = claim.body
    if not isinstance(body, RobustBody) or claim.quantifier != "forall":
        raise InputError(f"a query is made of a claim Robust(...) about all inputs, got: {claim}")
    subject = body.subject
    if not isinstance(subject.model, Transformer):
        raise InputError("queries are about a Transformer; edited copies have no box of inputs yet")
    tokens = torch.tensor([subject.codec.ids(word)])
    expected = _expected(subject, tokens)
    ball = enclose(subject.model, tokens, (body.site,))[body.site]
    radius = Fraction(body.radius)
    box = _box(ball.mid[0], [radius + Fraction(r) for r in ball.rad[0].flatten().tolist()])
    network = onnx_bytes(subject.model, start=body.site, batch=1, length=tokens.shape[1])
    what = f"robust at {body.site}, radius {body.radius!r}, word {list(word)!r}"
    config = subject.model.config
    outputs = config.d_vocab_out * (tokens.shape[1] if config.readout == "each" else 1)
    unsafe = _negated(subject, expected)
    return _query(f"robust_{_file_name(word)}", what, subject.model, body.site, network, box, outputs, unsafe)


def _file_name(word: Sequence[Value]) -> str:
    """The word, if a file may be called so."""
    shown = "-".join(map(str, word))
    plain = len(shown) <= 40 and shown.isascii() and shown.replace("-", "").isalnum()
    return shown if plain else hashlib.sha256(repr(list(word)).encode()).hexdigest()[:12]


def bound_query(
    model: Transformer,
    ball: EmbeddingBall,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
    directions: Tensor | None = None,
    name: str = "bounds",
) -> Query:
    """Of what `output_bounds` is about: low <= directions . logits <= high, for all embeddings in the ball.

    X: the sum of the embeddings. `directions` [k, d_vocab_out], numbers of float32; default: every logit; a last map
    of the network applies them, so that Y are their products. `low`, `high` [pos, k], or [k] for a model that is read
    out once; either may be left out. The negation: one of them is reached or passed. Raises `InputError`.
    """
    n = check_regions(model, [ball])
    if not isinstance(ball, EmbeddingBall):
        raise InputError("a set of tokens is no box of real numbers: queries are about an EmbeddingBall")
    rows = None if directions is None else _rows(directions, model.config.d_vocab_out)
    width = model.config.d_vocab_out if rows is None else len(rows)
    shape = (n, width) if model.config.readout == "each" else (width,)
    sides: list[tuple[Tensor, Side]] = [(low, "below")] if low is not None else []
    sides += [(high, "above")] if high is not None else []
    if not sides:
        raise InputError("a query needs what the outputs are bounded by: low=, high= or both")
    unsafe: list[str] = []
    for bound, side in sides:
        if not isinstance(bound, Tensor) or tuple(bound.shape) != shape or not bool(torch.isfinite(bound).all()):
            got = tuple(bound.shape) if isinstance(bound, Tensor) else bound
            raise InputError(f"bounds must be finite numbers in a tensor of shape {shape}, got {got!r}")
        values = bound.to(torch.float64).flatten().tolist()
        unsafe += [_reached(place, Fraction(value), side) for place, value in enumerate(values)]
    site = input_site(model.config)
    embed = model.parameter("embed.W_E").detach().to(torch.float64)
    learned = model.config.positional == "learned"
    positions = model.parameter("pos_embed.W_pos").detach().to(torch.float64)[:n] if learned else torch.zeros(n, 1)
    centre = points_of(embed, torch.zeros_like(positions), ball)[0][:, 0]
    exact = [Fraction(a) + Fraction(b) for a, b in _pairs(centre, positions)]
    box = [(x - Fraction(ball.eps), x + Fraction(ball.eps)) for x in exact]
    network = onnx_bytes(model, start=site, batch=1, length=n, directions=rows)
    read = "logits" if rows is None else "directions . logits"
    what = f"bounds of {read}, embeddings of {list(ball.tokens)} within {ball.eps!r}"
    return _query(name, what, model, site, network, box, math.prod(shape), unsafe)


def _pairs(centre: Tensor, positions: Tensor) -> Iterable[tuple[float, float]]:
    return zip(centre.flatten().tolist(), positions.expand_as(centre).flatten().tolist(), strict=True)


def _rows(directions: Tensor, outputs: int) -> Tensor:
    if not isinstance(directions, Tensor) or directions.dim() != 2 or directions.shape[1] != outputs:
        got = tuple(directions.shape) if isinstance(directions, Tensor) else directions
        raise InputError(f"directions must be a tensor [direction, d_vocab_out = {outputs}], got {got!r}")
    rows = directions.detach().to(torch.float32)
    exact = torch.equal(rows.to(torch.float64), directions.detach().to(torch.float64))
    if not exact or not bool(rows.isfinite().all()):
        raise InputError("directions must be finite numbers that float32 holds exactly, as the network has them")
    return rows


def _expected(subject: Subject, tokens: Tensor) -> list[int]:
    """The output decoded at each position over the reals."""
    ids = tokens[:, int(subject.codec.bos) :]
    reading = subject.reading(ids, "real")[0]
    if bool((reading.sum(-1) != 1).any()):
        place = int(torch.nonzero(reading.sum(-1) != 1)[0])
        raise InputError(
            f"over the reals, the output at position {place} of this word is not decided: two are too near"
        )
    return [int(place) for place in reading.to(torch.int8).argmax(-1)]


def _negated(subject: Subject, expected: Sequence[int]) -> list[str]:
    """Conditions on Y of which one holds wherever another output is decoded."""
    codec, config = subject.codec, subject.model.config
    first = int(codec.bos) if config.readout == "each" else 0
    found = []
    for place, own in enumerate(expected):
        at = (first + place) * config.d_vocab_out
        if codec.kind == "categorical":
            found += [f"(>= Y_{at + rival} Y_{at + own})" for rival in range(config.d_vocab_out) if rival != own]
            continue
        here = Fraction(codec.points[own])
        below = max((p for p in map(Fraction, codec.points) if p < here), default=None)
        above = min((p for p in map(Fraction, codec.points) if p > here), default=None)
        if below is not None:
            found.append(_reached(at, (below + here) / 2, "below"))
        if above is not None:
            found.append(_reached(at, (here + above) / 2, "above"))
    if not found:
        raise InputError("this model has one output only, and decodes it whatever is added: there is nothing to ask")
    return found


def _reached(place: int, bound: Fraction, side: Side) -> str:
    """Y at most the bound (`below`), or at least it (`above`), or a little earlier."""
    if side == "below":
        return f"(<= Y_{place} {decimal(rounded(bound, up=True))})"
    return f"(>= Y_{place} {decimal(rounded(bound, up=False))})"


def _box(middle: Tensor, radii: Sequence[Fraction]) -> list[tuple[Fraction, Fraction]]:
    values = map(Fraction, middle.flatten().tolist())
    return [(x - r, x + r) for x, r in zip(values, radii, strict=True)]


def rounded(x: Fraction, *, up: bool) -> float:
    """The float32 number next to x, not below it (`up`) or not above it. Raises `InputError` beyond float32's range."""
    found = np.float32(float(x)) if abs(x) <= GREATEST else np.float32(math.inf)
    if math.isfinite(found) and (Fraction(float(found)) < x if up else Fraction(float(found)) > x):
        found = np.nextafter(found, np.float32(math.inf if up else -math.inf))
    if not math.isfinite(found):
        raise InputError("a bound of this query is beyond the range of float32, in which networks are")
    return float(found)


def decimal(x: float) -> str:
    """All digits of a float, without an exponent."""
    text = format(Decimal(x), "f")
    return text if "." in text else f"{text}.0"


def _query(
    name: str,
    what: str,
    model: Transformer,
    site: str,
    network: bytes,
    box: Sequence[tuple[Fraction, Fraction]],
    outputs: int,
    unsafe: Sequence[str],
) -> Query:
    if len(box) + len(unsafe) > LARGEST:
        raise InputError(f"this query has {len(box) + len(unsafe)} numbers; ask about shorter words")
    inexact = _rounded_constants(model.config, site)
    lines = [f"; {what}", f"; weights {model.weights_sha256()}, from {site} on; the negation of the property"]
    lines += [f"; rounded to float32 in the network: {', '.join(inexact)}"] if inexact else []
    lines += [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    for i, (least, most) in enumerate(box):
        lines.append(f"(assert (>= X_{i} {decimal(rounded(least, up=False))}))")
        lines.append(f"(assert (<= X_{i} {decimal(rounded(most, up=True))}))")
    lines += ["(assert (or", *(f"  (and {condition})" for condition in unsafe), "))"]
    return Query(name, site, network, "\n".join(lines) + "\n", inexact)


def _rounded_constants(config: TransformerConfig, site: str) -> tuple[str, ...]:
    """What the network, from a site of the residual stream on, has as the nearest float32 number only."""
    first = 0 if site == input_site(config) else int(site.split(".")[1]) + site.endswith("post")
    found, layers = [], config.layers[first:]
    for index, layer in enumerate(config.layers):
        if index < first or not layer.n_heads:
            continue
        scale, given = float(np.float32(config.scale(index))), config.attention_scale
        same = scale == given if isinstance(given, float) else Fraction(scale) ** 2 * layer.d_head == 1
        found += [] if same else [f"the scale {config.scale(index):.9g} of scores"]
    if config.layer_norm is not None and float(np.float32(config.layer_norm)) != config.layer_norm:
        found.append(f"LayerNorm's epsilon {config.layer_norm!r}")
    if config.activation in ("gelu", "gelu_new") and any(layer.d_mlp for layer in layers):
        found.append(f"the constants of {config.activation}")
    return tuple(dict.fromkeys(found))


def write_vnnlib(queries: Iterable[Query], folder: str | Path, seconds: float = 60.0) -> list[Path]:
    """Writes the queries, their networks (each once) and `instances.csv`, the list that the competition's tools read:
    network, query, seconds. The folder is made if it is not there; files in it of the same names are replaced.

    Gives the paths of the queries. Raises `InputError` if nothing is to be written, or it cannot be.
    """
    found, target = list(queries), Path(folder)
    if not found:
        raise InputError("there is no query to write")
    if not seconds > 0 or not math.isfinite(seconds):
        raise InputError(f"seconds must be a number above 0, got {seconds!r}")
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose a writable place") from None
    networks: dict[bytes, str] = {}
    names: dict[str, int] = {}
    rows, paths = [], []
    for query in found:
        if query.onnx not in networks:
            networks[query.onnx] = f"network_{len(networks)}.onnx"
            write_atomically(target / networks[query.onnx], query.onnx)
        names[query.name] = names.get(query.name, 0) + 1
        again = f"_{names[query.name]}" if names[query.name] > 1 else ""
        paths.append(target / f"{query.name}{again}.vnnlib")
        write_atomically(paths[-1], query.text.encode())
        rows.append(f"{networks[query.onnx]},{paths[-1].name},{seconds:g}\n")
    write_atomically(target / "instances.csv", "".join(rows).encode())
    return paths
