"""The model file: safetensors with float32 parameters, and the configuration in its metadata, both read strictly."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .format import Json, Rejected, boolean, canonical_json, integer, listing, parse_json, record, require, show

MAX_FILE = 2 * 2**30
MAX_HEADER = 16 * 2**20
MAX_SIZE = 2**24
MAX_LAYERS = 1024
Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    n_heads: int
    d_head: int
    d_mlp: int


@dataclass(frozen=True)
class Config:
    """The shape of a model; `scale` is None for "1/sqrt(d_head)"; `layer_norm` is epsilon, None without LayerNorm."""

    d_model: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    layers: tuple[Layer, ...]
    activation: str
    causal: bool
    positional: bool
    scale: float | None
    layer_norm: float | None
    readout: str
    data: dict[str, Json]
    d_readout: int = 0
    sparse: bool = False
    """Sparsemax in place of softmax."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape."""
        d = self.d_model
        shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (self.d_vocab, d)}
        if self.positional:
            shapes["pos_embed.W_pos"] = (self.n_ctx, d)
        norms = []
        for number, layer in enumerate(self.layers):
            name, h, e, m = f"blocks.{number}.", layer.n_heads, layer.d_head, layer.d_mlp
            norms += [f"{name}ln1"] * (h > 0) + [f"{name}ln2"] * (m > 0)
            if h:
                for letter in "QKV":
                    shapes[f"{name}attn.W_{letter}"], shapes[f"{name}attn.b_{letter}"] = (h, d, e), (h, e)
                shapes[f"{name}attn.W_O"], shapes[f"{name}attn.b_O"] = (h, e, d), (d,)
            if m:
                shapes[f"{name}mlp.W_in"], shapes[f"{name}mlp.b_in"] = (d, m), (m,)
                shapes[f"{name}mlp.W_out"], shapes[f"{name}mlp.b_out"] = (m, d), (d,)
        if self.d_readout:
            shapes["readout.W_in"], shapes["readout.b_in"] = (d, self.d_readout), (self.d_readout,)
        shapes["unembed.W_U"] = (self.d_readout or d, self.d_vocab_out)
        shapes["unembed.b_U"] = (self.d_vocab_out,)
        if self.layer_norm is not None:
            for norm in [*norms, "ln_final"]:
                shapes[f"{norm}.w"] = shapes[f"{norm}.b"] = (d,)
        return shapes

    def require_plain(self) -> None:
        """What rules `composition` and `no_flow` are about: also a read-out at each position."""
        self.require_piecewise_linear()
        require(self.readout == "each", f"unsupported: readout {self.readout!r}")

    def require_piecewise_linear(self) -> None:
        """What all rules but `enumerate` and `witness` are about: ReLU, softmax, no LayerNorm, no read-out MLP."""
        require(self.activation == "relu", f"unsupported: activation {self.activation!r}")
        require(self.layer_norm is None, "unsupported: LayerNorm")
        require(self.d_readout == 0, "unsupported: an MLP at the read-out")
        require(not self.sparse, "unsupported: sparsemax attention")

    @property
    def reader(self) -> str:
        """The matrix that reads the residual stream at the end."""
        return "readout.W_in" if self.d_readout else "unembed.W_U"


@dataclass(frozen=True)
class Model:
    config: Config
    weights: dict[str, Weights]
    sha256: str


def read_config(data: Json) -> Config:
    """The configuration's JSON, every field checked."""
    numbers = ("d_model", "n_ctx", "d_vocab", "d_vocab_out")
    others = ("layers", "activation", "causal", "positional", "attention_scale", "layer_norm", "readout")
    some = tuple(name for name in ("d_readout", "attention") if isinstance(data, dict) and name in data)
    item = record(data, "config", numbers + others + some)
    sizes = {name: integer(item[name], f"config {name}", 1, MAX_SIZE) for name in numbers}
    layers = []
    for number, entry in enumerate(listing(item["layers"], "config layers", MAX_LAYERS)):
        layer = record(entry, f"config layer {number}", ("n_heads", "d_head", "d_mlp"))
        heads = integer(layer["n_heads"], "n_heads", 0, MAX_SIZE)
        width = integer(layer["d_head"], "d_head", 1 if heads else 0, MAX_SIZE)
        layers.append(Layer(heads, width, integer(layer["d_mlp"], "d_mlp", 0, MAX_SIZE)))
    for name, allowed in (
        ("activation", ("relu", "gelu", "gelu_new", "silu", "leaky_relu")),
        ("positional", ("learned", "none")),
        ("readout", ("each", "last", "mean")),
    ):
        require(item[name] in allowed, f"config {name} must be one of {allowed}, got {show(item[name])}")
    read_by = integer(item["d_readout"], "config d_readout", 1, MAX_SIZE) if "d_readout" in some else 0
    require(item.get("attention", "sparsemax") == "sparsemax", f"config attention is {show(item.get('attention'))}")
    require(not read_by or item["readout"] != "each", "d_readout is for models with one read-out")
    scale = item["attention_scale"]
    if scale != "1/sqrt(d_head)":
        exact = type(scale) is float or (type(scale) is int and abs(scale) <= 2**53)
        require(exact and abs(scale) < 2.0**100, f"attention_scale is {show(scale)}")
    norm = item["layer_norm"]
    positive = (type(norm) is float and 0 < norm < 2.0**100) or (type(norm) is int and 0 < norm <= 2**53)
    require(norm is None or positive, f"layer_norm is {show(norm)}")
    return Config(
        **sizes,
        layers=tuple(layers),
        activation=item["activation"],
        causal=boolean(item["causal"], "config causal"),
        positional=item["positional"] == "learned",
        scale=None if isinstance(scale, str) else float(scale),
        layer_norm=None if norm is None else float(norm),
        readout=item["readout"],
        d_readout=read_by,
        sparse="attention" in some,
        data=item,
    )


def read_model(path: str | PathLike[str]) -> Model:
    """The model of a safetensors file. Raises `Rejected` for anything unknown, missing, surplus or not finite."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Rejected(f"cannot read the model: {error.strerror or error}") from None
    require(8 < len(content) <= MAX_FILE, f"the model file has {len(content)} bytes; the limit is {MAX_FILE}")
    return parse_model(content)


def parse_model(content: bytes) -> Model:
    """`read_model` on the file's bytes."""
    require(len(content) > 8, f"the model file has {len(content)} bytes")
    (length,) = struct.unpack("<Q", content[:8])
    require(length <= min(MAX_HEADER, len(content) - 8), f"the model's header claims {length} bytes")
    header = parse_json(content[8 : 8 + length])
    body = content[8 + length :]
    require(isinstance(header, dict), "the model's header is not an object")
    metadata = header.pop("__metadata__", None)
    require(isinstance(metadata, dict), "the model has no metadata")
    stored = metadata.get("certiformer")
    require(isinstance(stored, str), "the model's metadata has no configuration under 'certiformer'")
    config = read_config(parse_json(stored.encode("utf-8", "surrogatepass")))
    shapes = config.shapes()
    missing, surplus = sorted(set(shapes) - set(header)), sorted(set(header) - set(shapes))
    require(not missing and not surplus, f"parameters missing: {show(missing)}, surplus: {show(surplus)}")
    weights, spans = {}, []
    for name, shape in shapes.items():
        entry = record(header[name], f"header of {name}", ("dtype", "shape", "data_offsets"))
        require(entry["dtype"] == "F32", f"{name} has dtype {show(entry['dtype'])}; it must be F32")
        require(_same(entry["shape"], shape), f"{name} has shape {show(entry['shape'])}, must be {list(shape)}")
        begin, end = (
            integer(x, f"offset of {name}", 0, len(body)) for x in listing(entry["data_offsets"], "data_offsets", 2, 2)
        )
        require(end - begin == 4 * math.prod(shape), f"{name} has {end - begin} bytes for shape {list(shape)}")
        spans.append((begin, end))
        array = np.frombuffer(body, "<f4", math.prod(shape), begin).reshape(shape).astype(np.float32)
        require(np.isfinite(array).all(), f"{name} holds a NaN or an infinity")
        weights[name] = array
    spans.sort()
    edges = [0, *(end for _, end in spans)]
    require([begin for begin, _ in spans] == edges[:-1] and edges[-1] == len(body), "the tensors do not fill the file")
    return Model(config, weights, weights_sha256(weights))


def _same(shape: Json, expected: tuple[int, ...]) -> bool:
    return isinstance(shape, list) and all(type(n) is int for n in shape) and tuple(shape) == expected


def weights_sha256(weights: dict[str, Weights]) -> str:
    """SHA-256 over the parameters in the order of their names: name, newline, F32, shape, newline, bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}\nF32{','.join(map(str, weights[name].shape))}\n".encode())
        digest.update(np.ascontiguousarray(weights[name]).astype("<f4").tobytes())
    return digest.hexdigest()


def same_config(left: Config, right: Config) -> bool:
    return canonical_json(left.data) == canonical_json(right.data)


def write_model(path: str | Path, config: dict[str, Json], weights: dict[str, Weights]) -> None:
    """A model file, for tests and tools without torch."""
    header: dict[str, Json] = {"__metadata__": {"certiformer": json.dumps(config, sort_keys=True)}}
    chunks, offset = [], 0
    for name in sorted(weights):
        chunk = np.ascontiguousarray(weights[name]).astype("<f4").tobytes()
        shape = list(weights[name].shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + len(chunk)]}
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))
