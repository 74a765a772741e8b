"""Models as ONNX files, operation by operation: the same graph for any runtime, and for tools that read VNN-LIB.

Only elementary operations of opset 17, from before 2023, which verification tools know (no fused attention or
LayerNorm). Causal attention adds 0 or minus infinity to the scores. Tensors have the names of the sites they are.
The extra `certiformer[onnx]` is imported when a model is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import program as ops
from .edits import Edited
from .errors import InputError
from .files import write_atomically
from .program import LOGITS, Operation, reads
from .sites import Site, select_sites, sites
from .transformer import Transformer

OPSET, IR_VERSION = 17, 8
TOKENS = "tokens"
DIRECTIONS = "directions"
LARGEST = 2**31 - 2**20
"""Bytes of weights that one protobuf file can hold, about."""
Array = npt.NDArray[Any]


def to_onnx(
    model: Transformer | Edited,
    path: str | Path,
    *,
    start: str | None = None,
    outputs: Sequence[str] = (LOGITS,),
    length: int | None = None,
    batch: int | None = None,
    double: bool = False,
) -> None:
    """Writes an ONNX file, atomically: int64 `tokens` [batch, pos] in, float32 `logits` out, as `model.forward`.

    `start`: a site (such as `blocks.0.hook_resid_pre`, the sum of the embeddings; float32 [batch, pos, d_model]) that
    is the input instead of tokens; nothing before it is in the file. `outputs`: sites, in place of the logits.
    `length`, `batch`: fixed sizes; default: any at run time. `double`: all in float64, weights exactly (onnxruntime has
    no Erf of float64, so that it runs no such file of a model with `gelu`). Raises `InputError`, also where onnx is not
    installed.
    """
    made = onnx_bytes(model, start=start, outputs=outputs, length=length, batch=batch, double=double)
    write_atomically(path, made)


def onnx_bytes(
    model: Transformer | Edited,
    *,
    start: str | None = None,
    outputs: Sequence[str] = (LOGITS,),
    length: int | None = None,
    batch: int | None = None,
    double: bool = False,
    directions: Tensor | None = None,
) -> bytes:
    """What `to_onnx` writes; the same model gives the same bytes.

    `directions` [k, d_vocab_out], float32: `directions` [.., k] = logits @ directions^T is the output.
    """
    onnx = _onnx()
    known = tuple(operation.output for operation in model.program)
    wanted = select_sites(outputs, known)
    graph = Graph(
        onnx,
        model,
        input=TOKENS if start is None else start,
        outputs=wanted,
        batch=_size("batch", batch),
        length=_length(model, length),
        kind=np.dtype(np.float64 if double else np.float32),
    )
    if start is not None:
        select_sites((start,), known)
        if start in wanted:
            raise InputError(f"{start} is the input; an output must be computed from it")
    if model.config.n_parameters * graph.kind.itemsize > LARGEST:
        raise InputError(f"the model has {model.config.n_parameters} weights, more than one ONNX file can hold")
    for operation in _between(model.program, start, wanted):
        RULES[type(operation)](operation, graph)
    if directions is not None:
        rows = graph.constant("directions.W", directions.detach().to(torch.float32).T)
        graph.add("MatMul", (graph.values[LOGITS], rows), output=DIRECTIONS)
        graph.outputs, graph.values[DIRECTIONS] = (DIRECTIONS,), DIRECTIONS
        logits = graph.sites[LOGITS]
        graph.sites[DIRECTIONS] = Site(DIRECTIONS, logits.axes, (*logits.sizes[:-1], len(directions)))
    made = graph.finish()
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString(deterministic=True))


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise InputError("writing ONNX needs the package onnx: pip install 'certiformer[onnx]'") from None
    return onnx


def _size(name: str, size: int | None) -> int | None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InputError(f"{name} must be an integer of at least 1, or None for any, got {size!r}")
    return size


def _length(model: Transformer | Edited, length: int | None) -> int | None:
    if _size("length", length) is not None and length is not None and length > model.config.n_ctx:
        raise InputError(f"length must be at most n_ctx = {model.config.n_ctx}, got {length}")
    return length


def _between(program: ops.Program, start: str | None, outputs: Sequence[str]) -> tuple[Operation, ...]:
    """The operations that lead from the start to the outputs. Raises `InputError` if more than the start is needed."""
    wanted, kept = set(outputs), []
    for operation in reversed(program):
        if operation.output in wanted and operation.output != start:
            kept.append(operation)
            wanted.update(reads(operation))
    if start is not None and (start not in wanted or any(isinstance(op, ops.Embed) for op in kept)):
        raise InputError(
            f"what is computed does not follow from {start} alone; start at a site of the residual stream, such as "
            "blocks.0.hook_resid_pre"
        )
    return tuple(reversed(kept))


@dataclass(eq=False)
class Graph:
    """An ONNX graph being made. `values`: the tensor of each site so far; `sites`: the axes of each."""

    onnx: Any
    model: Transformer | Edited
    input: str
    outputs: tuple[str, ...]
    batch: int | None
    length: int | None
    kind: np.dtype[Any]
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = sites(self.model.config, self.model.program)
        if self.input != TOKENS:
            self.values[self.input] = self.input

    def add(self, kind: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        """A node; the name of its output."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def chain(self, start: str, *steps: tuple[str, str | None], output: str = "") -> str:
        """Nodes one after the other: each takes what is so far, and a second tensor if it has one."""
        found = start
        for place, (kind, other) in enumerate(steps):
            last = output if place == len(steps) - 1 else ""
            found = self.add(kind, (found,) if other is None else (found, other), output=last)
        return found

    def constant(self, name: str, value: Any) -> str:
        """A stored tensor, once."""
        found = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.constants[name] = found.astype(self.kind) if found.dtype.kind == "f" else found
        return name

    def number(self, value: float) -> str:
        return self.constant(f"number {value!r}", np.asarray(value, dtype=np.float64))

    def integers(self, *values: int) -> str:
        return self.constant(f"integers {values}", np.asarray(values, dtype=np.int64))

    def weight(self, name: str, *, shape: tuple[int, ...] | None = None, order: tuple[int, ...] | None = None) -> str:
        """A parameter, with its axes in another order and then in another shape."""
        value = _parameter(self.model, name)
        value = value if order is None else value.permute(order)
        return self.constant(name, value if shape is None else value.reshape(shape))

    def positions(self) -> str:
        """How many positions there are, int64 [1]."""
        shape = self.add("Shape", (self.input,))
        return self.add("Slice", (shape, self.integers(1), self.integers(2), self.integers(0)))

    def everywhere(self, tensor: str, width: int, output: str) -> str:
        """A tensor broadcast to [batch, pos, width]."""
        shape = self.add("Slice", (self.add("Shape", (self.input,)), self.integers(0), self.integers(2)))
        return self.add("Expand", (tensor, self.add("Concat", (shape, self.integers(width)), axis=0)), output=output)

    def finish(self) -> Any:
        """The model as a protocol buffer, with all that it needs and nothing else."""
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        floats = helper.np_dtype_to_tensor_dtype(self.kind)
        given = (kinds.INT64, [self.batch or "batch", self.length or "pos"])
        if self.input != TOKENS:
            given = (floats, self.sizes(self.input))
        for site in self.outputs:
            if self.values[site] != site:
                self.add("Identity", (self.values[site],), output=site)
        graph = helper.make_graph(
            self.nodes,
            "certiformer",
            [helper.make_tensor_value_info(self.input, *given)],
            [helper.make_tensor_value_info(site, floats, self.sizes(site)) for site in self.outputs],
            [self.onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="certiformer",
        )

    def sizes(self, site: str) -> list[int | str]:
        """The shape of a site's tensor, with names for what is free."""
        free: dict[str, int | str] = {"batch": self.batch or "batch"}
        return [
            free.get(axis, self.length or "pos") if size is None else size
            for axis, size in zip(self.sites[site].axes, self.sites[site].sizes, strict=True)
        ]


def _parameter(model: Transformer | Edited, name: str) -> Tensor:
    return (model.base if isinstance(model, Edited) else model).parameter(name).detach()


def _embed(op: ops.Embed, graph: Graph) -> None:
    graph.values[op.output] = graph.add("Gather", (graph.weight(op.weight), TOKENS), output=op.output)


def _position(op: ops.Position, graph: Graph) -> None:
    table = _parameter(graph.model, op.weight)
    if graph.length is not None:
        rows = graph.constant(op.weight, table[: graph.length])
    else:
        ends = (graph.integers(0), graph.positions(), graph.integers(0))
        rows = graph.add("Slice", (graph.weight(op.weight), *ends))
    shown = graph.everywhere(rows, table.shape[1], op.output) if op.output in graph.outputs else rows
    graph.values[op.output] = shown


def _add(op: ops.Add, graph: Graph) -> None:
    first, *others = (graph.values[site] for site in op.inputs)
    found = graph.chain(first, *(("Add", other) for other in others), output=op.output) if others else first
    graph.values[op.output] = found


def _linear(op: ops.Linear, graph: Graph) -> None:
    steps = (("MatMul", graph.weight(op.weight)), ("Add", graph.weight(op.bias)))
    graph.values[op.output] = graph.chain(graph.values[op.input], *steps, output=op.output)


def _head_linear(op: ops.HeadLinear, graph: Graph) -> None:
    heads, d_model, d_head = _parameter(graph.model, op.weight).shape
    x = graph.values[op.input]
    if len(graph.sites[op.input].axes) == 4:
        own = _per_head(graph, x, graph.weight(op.weight))
        found = graph.add("Add", (own, graph.weight(op.bias)), output=op.output)
    else:
        weight = graph.weight(op.weight, order=(1, 0, 2), shape=(d_model, heads * d_head))
        flat = graph.chain(x, ("MatMul", weight), ("Add", graph.weight(op.bias, shape=(heads * d_head,))))
        found = graph.add("Reshape", (flat, graph.integers(0, 0, heads, d_head)), output=op.output)
    graph.values[op.output] = found


def _per_head(graph: Graph, x: str, weight: str, output: str = "") -> str:
    """x [b, i, h, d] times weight [h, d, e], at each head."""
    turned = graph.add("Transpose", (x,), perm=(0, 2, 1, 3))
    product = graph.add("MatMul", (turned, weight))
    return graph.add("Transpose", (product,), output=output, perm=(0, 2, 1, 3))


def _scores(op: ops.Scores, graph: Graph) -> None:
    query = graph.add("Transpose", (graph.values[op.query],), perm=(0, 2, 1, 3))
    key = graph.add("Transpose", (graph.values[op.key],), perm=(0, 2, 3, 1))
    steps: list[tuple[str, str | None]] = [("MatMul", key)]
    if op.scale != 1.0:
        steps.append(("Mul", graph.number(op.scale)))
    if op.causal:
        steps.append(("Add", _future(graph)))
    graph.values[op.output] = graph.chain(query, *steps, output=op.output)


def _future(graph: Graph) -> str:
    """[query, key]: minus infinity where the key comes later."""
    n = graph.length or graph.model.config.n_ctx
    mask = graph.constant("future", np.triu(np.full((n, n), -np.inf, dtype=np.float64), 1))
    if graph.length is not None:
        return mask
    if "future, cut" not in graph.values:
        here = graph.positions()
        both = graph.add("Concat", (here, here), axis=0)
        ends = (graph.integers(0, 0), both, graph.integers(0, 1))
        graph.values["future, cut"] = graph.add("Slice", (mask, *ends))
    return graph.values["future, cut"]


def _softmax(op: ops.Softmax, graph: Graph) -> None:
    graph.values[op.output] = graph.add("Softmax", (graph.values[op.input],), output=op.output, axis=-1)


def _sparsemax(op: ops.Sparsemax, graph: Graph) -> None:
    """The threshold is the greatest, over i, of (sum of the k scores z_j >= z_i, less 1) / k."""
    scores = graph.values[op.input]
    z = graph.add("Sub", (scores, graph.add("ReduceMax", (scores,), axes=(-1,))))
    own, others = (graph.add("Unsqueeze", (z, graph.integers(axis))) for axis in (-1, -2))
    above = graph.add("GreaterOrEqual", (others, own))
    one, zero, last = graph.number(1.0), graph.number(0.0), graph.integers(-1)
    total = graph.add("ReduceSum", (graph.add("Where", (above, others, zero)), last), keepdims=0)
    count = graph.add("ReduceSum", (graph.add("Where", (above, one, zero)), last), keepdims=0)
    each = graph.chain(total, ("Sub", one), ("Div", count))
    threshold = graph.add("ReduceMax", (each,), axes=(-1,))
    graph.values[op.output] = graph.chain(z, ("Sub", threshold), ("Relu", None), output=op.output)


def _mix(op: ops.Mix, graph: Graph) -> None:
    value = graph.add("Transpose", (graph.values[op.value],), perm=(0, 2, 1, 3))
    mixed = graph.add("MatMul", (graph.values[op.pattern], value))
    graph.values[op.output] = graph.add("Transpose", (mixed,), output=op.output, perm=(0, 2, 1, 3))


def _join(op: ops.Join, graph: Graph) -> None:
    heads, d_head, d_model = _parameter(graph.model, op.weight).shape
    flat = graph.add("Reshape", (graph.values[op.input], graph.integers(0, 0, heads * d_head)))
    weight = graph.constant(f"{op.weight}, flat", _parameter(graph.model, op.weight).reshape(-1, d_model))
    steps = (("MatMul", weight), ("Add", graph.weight(op.bias)))
    graph.values[op.output] = graph.chain(flat, *steps, output=op.output)


def _results(op: ops.Results, graph: Graph) -> None:
    found = _per_head(graph, graph.values[op.input], graph.weight(op.weight), op.output)
    graph.values[op.output] = found


def _activation(op: ops.Activation, graph: Graph) -> None:
    x = graph.values[op.input]
    graph.values[op.output] = ACTIVATIONS[op.function](graph, x, op.output)


def _relu(graph: Graph, x: str, output: str) -> str:
    return graph.add("Relu", (x,), output=output)


def _gelu(graph: Graph, x: str, output: str) -> str:
    """x/2 (1 + erf(x / sqrt(2)))"""
    half = graph.add("Mul", (x, graph.number(0.5)))
    steps = (("Mul", graph.number(math.sqrt(0.5))), ("Erf", None), ("Add", graph.number(1.0)), ("Mul", half))
    return graph.chain(x, *steps, output=output)


def _gelu_new(graph: Graph, x: str, output: str) -> str:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))"""
    half = graph.add("Mul", (x, graph.number(0.5)))
    square = graph.add("Mul", (x, x))
    cube = (("Mul", x), ("Mul", graph.number(0.044715)), ("Add", x), ("Mul", graph.number(math.sqrt(2 / math.pi))))
    return graph.chain(square, *cube, ("Tanh", None), ("Add", graph.number(1.0)), ("Mul", half), output=output)


def _silu(graph: Graph, x: str, output: str) -> str:
    return graph.chain(x, ("Sigmoid", None), ("Mul", x), output=output)


def _leaky_relu(graph: Graph, x: str, output: str) -> str:
    """Not ONNX's LeakyRelu, whose slope is rounded to float32."""
    return graph.add("Max", (x, graph.add("Mul", (x, graph.number(0.01)))), output=output)


def _normalise(op: ops.Normalise, graph: Graph) -> None:
    x = graph.values[op.input]
    centred = graph.add("Sub", (x, graph.add("ReduceMean", (x,), axes=(-1,))))
    variance = graph.add("ReduceMean", (graph.add("Mul", (centred, centred)),), axes=(-1,))
    deviation = graph.chain(variance, ("Add", graph.number(op.eps)), ("Sqrt", None))
    steps = (("Div", deviation), ("Mul", graph.weight(op.weight)), ("Add", graph.weight(op.bias)))
    graph.values[op.output] = graph.chain(centred, *steps, output=op.output)


def _pool(op: ops.Pool, graph: Graph) -> None:
    x = graph.values[op.input]
    if op.how == "last":
        last = graph.constant("last", np.asarray(-1, dtype=np.int64))
        graph.values[op.output] = graph.add("Gather", (x, last), output=op.output, axis=1)
    else:
        graph.values[op.output] = graph.add("ReduceMean", (x,), output=op.output, axes=(1,), keepdims=0)


def _stored(graph: Graph, name: str) -> str:
    """A constant of an edited model."""
    assert isinstance(graph.model, Edited)
    return graph.constant(f"edit {name}", graph.model.constants[name])


def _constant(op: ops.Constant, graph: Graph) -> None:
    value = _stored(graph, op.constant)
    graph.values[op.output] = graph.everywhere(value, graph.constants[value].shape[-1], op.output)


def _sum_heads(op: ops.SumHeads, graph: Graph) -> None:
    bias = graph.weight(op.bias)
    if not op.heads:
        graph.values[op.output] = graph.everywhere(bias, graph.constants[bias].shape[0], op.output)
        return
    some = graph.add("Gather", (graph.values[op.input], graph.integers(*op.heads)), axis=2)
    total = graph.add("ReduceSum", (some, graph.integers(2)), keepdims=0)
    graph.values[op.output] = graph.add("Add", (total, bias), output=op.output)


def _stack_heads(op: ops.StackHeads, graph: Graph) -> None:
    apart = [graph.add("Unsqueeze", (graph.values[site], graph.integers(2))) for site in op.inputs]
    graph.values[op.output] = graph.add("Concat", apart, output=op.output, axis=2)


def _replace(op: ops.Replace, graph: Graph) -> None:
    three = (_stored(graph, op.mask), _stored(graph, op.value), graph.values[op.input])
    graph.values[op.output] = graph.add("Where", three, output=op.output)


def _project(op: ops.Project, graph: Graph) -> None:
    x, value, projector = graph.values[op.input], _stored(graph, op.value), _stored(graph, op.projector)
    if op.head is None:
        part = graph.add("MatMul", (graph.add("Sub", (value, x)), projector))
    else:
        own = graph.add("Gather", (x, graph.constant(f"head {op.head}", np.asarray(op.head, dtype=np.int64))), axis=2)
        moved = graph.add("MatMul", (graph.add("Sub", (value, own)), projector))
        heads = graph.sites[op.output].sizes[2]
        chosen = graph.constant(f"only head {op.head}", np.eye(int(heads or 0))[:, [op.head]])
        part = graph.add("Mul", (graph.add("Unsqueeze", (moved, graph.integers(2))), chosen))
    graph.values[op.output] = graph.add("Add", (x, part), output=op.output)


ACTIVATIONS: dict[str, Callable[[Graph, str, str], str]] = {
    "relu": _relu,
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "silu": _silu,
    "leaky_relu": _leaky_relu,
}

RULES: dict[type[Operation], Callable[[Any, Graph], None]] = {
    ops.Embed: _embed,
    ops.Position: _position,
    ops.Add: _add,
    ops.Linear: _linear,
    ops.HeadLinear: _head_linear,
    ops.Scores: _scores,
    ops.Softmax: _softmax,
    ops.Sparsemax: _sparsemax,
    ops.Mix: _mix,
    ops.Join: _join,
    ops.Results: _results,
    ops.Activation: _activation,
    ops.Normalise: _normalise,
    ops.Pool: _pool,
    ops.Constant: _constant,
    ops.SumHeads: _sum_heads,
    ops.StackHeads: _stack_heads,
    ops.Replace: _replace,
    ops.Project: _project,
}
