"""The transformer: an ordinary torch module with TransformerLens's parameter names, running its model program."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from . import files
from .config import TransformerConfig, parameter_shapes
from .errors import InputError
from .execution import Plan, Run, execute, plan
from .program import LOGITS, Program, model_program
from .sites import NamesFilter, select_sites, unknown


class Transformer(nn.Module):
    """A softmax-attention transformer in float32; new weights are zero (LayerNorm's `w`: one).

    `forward(tokens)` takes integer tokens [batch, pos] with 1 <= pos <= n_ctx and gives logits
    [batch, pos, d_vocab_out], or [batch, d_vocab_out] when the readout is `last` or `mean`.
    Parameters have TransformerLens's names and shapes: `parameter_shapes(config)`.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.program: Program = model_program(config)
        self._known = tuple(dict.fromkeys(operation.output for operation in self.program))
        self._plans: dict[tuple[str, ...], Plan] = {}
        for name, shape in parameter_shapes(config).items():
            fill = 1.0 if name.endswith(".w") else 0.0
            _register(self, name, nn.Parameter(torch.full(shape, fill, dtype=torch.float32)))

    @staticmethod
    def from_parameters(config: TransformerConfig, parameters: Mapping[str, Tensor]) -> Transformer:
        """A model with copies of the given weights. Raises `InputError` listing all that is wrong with them."""
        problems = _problems(config, parameters)
        if problems:
            raise InputError("these weights do not fit the configuration: " + "; ".join(problems))
        model = Transformer(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameters[name])
        return model

    @staticmethod
    def initialised(config: TransformerConfig, seed: int = 0) -> Transformer:
        """A model to train: weights normal with variance 1 / fan-in, embeddings with 1 / d_model, biases zero."""
        model = Transformer(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                leaf = name.rsplit(".", 1)[1]
                if leaf.startswith("W_"):
                    fan_in = {"W_E": config.d_model, "W_pos": config.d_model}.get(leaf, parameter.shape[-2])
                    fan_in *= parameter.shape[0] if leaf == "W_O" else 1
                    parameter.normal_(0.0, 1.0 / math.sqrt(fan_in), generator=generator)
        return model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits; see the class. Raises `InputError` for tokens outside the vocabulary or a bad shape."""
        return self._execute(tokens, (LOGITS,))[LOGITS]

    def run_with_cache(self, tokens: Tensor, names_filter: NamesFilter = None) -> tuple[Tensor, dict[str, Tensor]]:
        """`(logits, cache)`: the cache maps each site the filter names (None: all) to its value on this run.

        A filter is a name, an iterable of names, or a function from name to bool.
        Raises `InputError` for unknown names.
        """
        wanted = select_sites(names_filter, self._known)
        values = self._execute(tokens, (*wanted, LOGITS))
        return values[LOGITS], {site: values[site] for site in wanted}

    def _execute(self, tokens: Tensor, targets: tuple[str, ...]) -> dict[str, Tensor]:
        check_tokens(tokens, self.config)
        if targets not in self._plans:
            self._plans[targets] = plan(self.program, targets)
        return execute(self._plans[targets], Run(tokens, self.parameter))

    def parameter(self, name: str) -> Tensor:
        """One parameter by name. Raises `InputError` with the nearest names."""
        owner: object = self
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if not isinstance(owner, Tensor):
            raise unknown("parameter", name, tuple(parameter_shapes(self.config)))
        return owner

    def config_json(self) -> str:
        """The configuration as canonical JSON: sorted keys, no spaces."""
        return self.config.canonical_json()

    def weights_sha256(self) -> str:
        """SHA-256, in hex, over the parameters in the order of their names.

        Each contributes its UTF-8 name, a newline, `F32`, its decimal sizes joined by commas, a newline, and its
        little-endian float32 values in C order. Raises `InputError` for parameters that are not finite float32.
        """
        self.require_float32()
        digest = hashlib.sha256()
        for name, parameter in sorted(self.named_parameters()):
            sizes = ",".join(map(str, parameter.shape))
            digest.update(f"{name}\nF32{sizes}\n".encode())
            digest.update(files.little_endian(parameter))
        return digest.hexdigest()

    def require_float32(self) -> None:
        """Raises `InputError` naming every parameter that is not float32, not finite or of another shape."""
        problems = _problems(self.config, dict(self.named_parameters()))
        if problems:
            raise InputError("bad weights: " + "; ".join(problems))

    def save(self, path: str | Path, extra: Mapping[str, str] | None = None) -> None:
        """One safetensors file with the configuration in its metadata, written atomically; same model, same bytes.

        `extra` adds metadata of the caller's. Raises `InputError` when the weights are not finite float32.
        """
        parameters = {name: parameter.detach() for name, parameter in self.named_parameters()}
        problems = _problems(self.config, parameters)
        if problems:
            raise InputError("this model cannot be saved: " + "; ".join(problems))
        files.write(path, parameters, {**(extra or {}), files.CONFIG_KEY: self.config_json()})

    @staticmethod
    def load(path: str | Path) -> Transformer:
        """The model saved at `path`. Raises `InputError` for anything else than such a file."""
        return Transformer.load_with_metadata(path)[0]

    @staticmethod
    def load_with_metadata(path: str | Path) -> tuple[Transformer, dict[str, str]]:
        """The model, and the metadata that was saved with it."""
        contents = files.read(path)
        problems = _problems(contents.config, contents.parameters)
        if problems:
            raise InputError(f"{path} is not a valid model: " + "; ".join(problems))
        return Transformer.from_parameters(contents.config, contents.parameters), contents.extra


def check_tokens(tokens: Tensor, config: TransformerConfig) -> None:
    """Raises `InputError` unless `tokens` is an integer tensor [batch, pos] the model can read."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
        got = f"{tuple(tokens.shape)} of {tokens.dtype}" if isinstance(tokens, Tensor) else repr(tokens)
        raise InputError(f"tokens must be an integer tensor of shape [batch, pos], got {got}; encode them with a Codec")
    if not 1 <= tokens.shape[1] <= config.n_ctx:
        raise InputError(f"a sequence must have 1 to n_ctx = {config.n_ctx} tokens, got {tokens.shape[1]}")
    if tokens.numel():
        low, high = (int(bound) for bound in torch.aminmax(tokens))
        if low < 0 or high >= config.d_vocab:
            raise InputError(f"tokens must be 0 to {config.d_vocab - 1}, got {low if low < 0 else high}")


def _problems(config: TransformerConfig, parameters: Mapping[str, Tensor]) -> list[str]:
    """All that is wrong with the parameters, by name."""
    shapes = parameter_shapes(config)
    missing, extra = [n for n in shapes if n not in parameters], [n for n in parameters if n not in shapes]
    problems = [f"missing {', '.join(missing)}"] if missing else []
    problems += [f"unknown {', '.join(map(str, extra))}"] if extra else []
    for name, shape in shapes.items():
        if name not in parameters:
            continue
        parameter = parameters[name]
        if tuple(parameter.shape) != shape:
            problems.append(f"{name} has shape {tuple(parameter.shape)}, must have {shape}")
        elif parameter.dtype != torch.float32:
            problems.append(f"{name} is {parameter.dtype}, must be float32")
        elif not bool(torch.isfinite(parameter).all()):
            problems.append(f"{name} contains NaN or infinite values")
    return problems


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Stores the parameter under its dotted name, making plain modules on the way."""
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.ModuleList() if part == "blocks" else nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    module.register_parameter(leaf, parameter)
