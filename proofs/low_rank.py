"""Rule `low_rank`: inputs of a one-layer model labelled rightly, by low-rank factors of what neurons read and write.

Section 15 of the specification. The factors and the leaders come from the certificate; what they leave out is bounded
here, from the weights, in float64 (`near`).
"""

from __future__ import annotations

import numpy as np

from .balls import UNIT, Floats
from .bodies import LabelMargin, Labels
from .core import Ints
from .exact import above
from .format import Json, integer, integers, listing, record, require, within
from .low_rank_layer import Factors, Layer
from .low_rank_words import Tables
from .model import Config
from .near import Near, Work, up
from .theorem import COUNTED, Theorem

MAX_WORDS = 2**20
MAX_RANK = 2**12
MAX_OUTPUTS = 2**12
MAX_NUMBERS = 2**26
BATCH = 2**22
KEYS = ("rule", "ranks", "narrow", "widen", "read", "write", "middle", "words")


def check_low_rank(theorem: Theorem, proof: dict[str, Json], work: Work | None = None) -> None:
    """Accepts if enough inputs provably get their label (with the margin), as the quantifier says."""
    work = work or Work()
    with within("proof", "low_rank"):
        item = record(proof, "proof", KEYS)
        part = _scope(theorem)
        sizes = {n: size for n, size in theorem.domain.sizes().items() if size}
        total = sum(sizes.values())
        require(total <= MAX_WORDS, f"the domain has {total} inputs; rule low_rank is refused above {MAX_WORDS}")
        factors = read_factors(item, theorem.model.config)
        with np.errstate(all="ignore"):
            layer = Layer(theorem.model, factors, work)
            proved, seen = 0, 0
            for number, entry in enumerate(listing(item["words"], "words", len(sizes))):
                with within(f"words[{number}]", "low_rank"):
                    one = record(entry, "an entry", ("n", "leaders"))
                    n = integer(one["n"], "n", seen + 1, theorem.domain.hi)
                    require(n in sizes, f"the domain has no words of length {n}")
                    leaders = np.array(integers(one["leaders"], "leaders", -1, sizes[n] - 1, sizes[n]), dtype=np.int64)
                    require(len(leaders) == sizes[n], f"there are {sizes[n]} words of length {n}, not {len(leaders)}")
                    proved, seen = proved + _proved(theorem, part, layer, n, leaders), n
        if theorem.quantifier in COUNTED:
            theorem.require_counts(proved, 0, total)
        else:
            require(proved == total, f"the body is proved to hold on only {proved} of {total} inputs")


def _scope(theorem: Theorem) -> Labels | LabelMargin:
    """The one part of the body; or `Rejected`, if this rule says nothing about such a theorem."""
    config = theorem.model.config
    require(theorem.quantifier in ("forall", "at_least"), "rule low_rank proves forall and at_least only")
    fits = len(theorem.parts) == 1 and isinstance(theorem.parts[0], (Labels, LabelMargin))
    require(fits, "rule low_rank is for one `labels` or `label_margin` body")
    (part,) = theorem.parts
    assert isinstance(part, (Labels, LabelMargin))
    require(part.alone is None, "rule low_rank is not for circuits")
    require(len(config.layers) == 1, "rule low_rank is for one layer")
    config.require_piecewise_linear()
    require(config.readout == "last", "rule low_rank is for the read-out 'last'")
    require(theorem.codec.categorical, "rule low_rank is for categorical codecs: it compares logits")
    require(not theorem.codec.bos, "rule low_rank is for codecs without BOS")
    require(config.d_vocab_out <= MAX_OUTPUTS, f"rule low_rank is for at most {MAX_OUTPUTS} outputs")
    return part


def read_factors(item: dict[str, Json], config: Config) -> Factors:
    """The matrices of the proof: float32 numbers, little-endian, in hex."""
    inner, used, outer = (integer(x, "a rank", 0, MAX_RANK) for x in listing(item["ranks"], "ranks", 3, 3))
    require(used <= inner, f"{used} coordinates are used, of {inner}")
    d, hidden = config.d_model, config.layers[0].d_mlp
    return Factors(
        _matrix(item["narrow"], "narrow", d, inner),
        _matrix(item["widen"], "widen", inner, d),
        _matrix(item["read"], "read", hidden, outer),
        _matrix(item["write"], "write", outer, config.d_vocab_out),
        _matrix(item["middle"], "middle", 1, hidden),
        used,
    )


def _matrix(data: Json, what: str, rows: int, columns: int) -> Floats:
    good = isinstance(data, str) and len(data) == 8 * rows * columns and set(data) <= set("0123456789abcdef")
    require(good, f"{what} must be {8 * rows * columns} digits of 0-9a-f, for {rows} x {columns} float32 numbers")
    content = np.frombuffer(bytearray.fromhex(str(data)), "<f4") if data else np.zeros(0)
    found = content.reshape(rows, columns).astype(np.float64)
    require(bool(np.isfinite(found).all()), f"{what} holds a NaN or an infinity")
    return found


def _proved(theorem: Theorem, part: Labels | LabelMargin, layer: Layer, n: int, leaders: Ints) -> int:
    """How many words of length n are proved to get their label.

    The neurons are calculated once for each leader, from the coordinates that are used of its own, and for the others
    from what is usual among the words (any point will do: how far each word is from it is bounded).
    """
    own = leaders >= 0
    require(bool((leaders <= np.arange(len(leaders))).all()), "a leader comes after its word")
    require(bool((leaders[leaders[own]] == leaders[own]).all()), "a leader is not its own leader")
    require(len(leaders) * max(n, len(layer.R.mid)) <= MAX_NUMBERS, "too many words for their length and the ranks")
    ids = np.array([theorem.codec.token(token) for token in theorem.domain.vocab], dtype=np.int64)
    words = ids[np.concatenate(list(theorem.domain.words(n, MAX_WORDS)))]
    labels = _labels(part, words)
    if not (own & (labels >= 0)).any():
        return 0
    tables = Tables(layer, [np.unique(column) for column in words.T])
    step = max(1, BATCH // (n * (len(layer.R.mid) + 4)))
    parts = [tables.coordinates(words[first : first + step]) for first in range(0, len(words), step)]
    inner, left = np.concatenate([part.inner for part in parts]), np.concatenate([part.left for part in parts])
    usable = (labels >= 0) & np.concatenate([part.good for part in parts])
    counted = np.flatnonzero(own & usable)
    if not counted.size:
        return 0
    lead = leaders[counted]
    used, fixed = layer.used, inner[usable, layer.used :].mean(axis=0, keepdims=True)
    point = np.concatenate([inner[lead, :used], np.repeat(fixed, len(lead), axis=0)], axis=1)
    apart = Near(inner[counted] - point, 0.0, layer.work)
    apart = Near(apart.mid, float(up(UNIT * apart.norm())), layer.work)
    outputs = theorem.model.config.d_vocab_out
    pairs, pair = np.unique(lead * outputs + labels[counted], return_inverse=True)
    pair = pair.reshape(-1)
    worst = np.zeros(len(pairs))
    np.maximum.at(worst, pair, up(apart.lengths(layer.inner_gram) + left[counted]))
    least = above(part.at_least) if isinstance(part, LabelMargin) else 0.0
    won = np.zeros(len(pairs), dtype=np.bool_)
    points, which = np.unique(pairs // outputs, return_inverse=True)
    which = which.reshape(-1)
    step = max(1, BATCH // (layer.d_mlp + outputs))
    for first in range(0, len(points), step):
        here = np.flatnonzero((which >= first) & (which < first + step))
        found = tables.logits(inner[points[first : first + step], :used], fixed)
        for some in np.array_split(here, -(-len(here) // step)):
            leads = found.leads(which[some] - first, pairs[some] % outputs, worst[some])
            won[some] = leads >= least if least > 0 else leads > 0
    return int(won[pair].sum())


def _labels(part: Labels | LabelMargin, words: Ints) -> Ints:
    """The label of each word of token ids, as an index into the codec's outputs; -1: none."""
    state = np.zeros(len(words), dtype=np.int64)
    for column in np.roll(words, 1, axis=1).T if part.last_first else words.T:
        state = part.delta[state, column]
    return part.labels[state]
