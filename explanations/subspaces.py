"""Alignments found: where in a model a variable of a program is held, by a linear readout and by distributed alignment
search (DAS).

Both give an `AlignedSite`; that it is right for every pair of inputs is then a claim (`SubspaceRepresents`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiler.core import CoreProgram
from ..compiler.core_batches import Evaluator, Ints
from ..models.codec import Codec
from ..models.errors import InputError
from ..models.execution import RULES, Run
from ..models.program import LOGITS, needed
from ..models.sites import sites, unknown
from ..models.token_language import Language
from ..models.transformer import Transformer
from .alignments import AlignedSite

Progress = Callable[[str], None]
Batch = tuple[Tensor, Tensor, Tensor]
"""Bases and sources, token ids [batch, pos] without BOS; the program's outputs [batch, read-out] under the exchange, as
indices of the codec's outputs."""


@dataclass(frozen=True, eq=False)
class FoundSubspace:
    """`aligned`: the variable's site and directions [k, d_model].

    `agreement`, on inputs that the search did not see: of DAS, the share of pairs on which exchanging the subspace
    gives the program's output when the variable is exchanged; of a readout, the share of positions read off rightly.
    """

    aligned: AlignedSite
    agreement: float
    method: str
    provenance: str


@dataclass(frozen=True, eq=False)
class Variable:
    """A value node of a core program, which a model on inputs of a domain is said to hold. Raises `InputError`."""

    model: Transformer
    codec: Codec
    program: CoreProgram
    node: int
    domain: Language

    def __post_init__(self) -> None:
        nodes = self.program.nodes
        if not 0 <= self.node < len(nodes) or not hasattr(nodes[self.node], "values"):
            raise InputError(
                f"node {self.node} of {self.program.name} is no variable (it has nodes 0 to {len(nodes) - 1})"
            )
        if self.domain.is_empty:
            raise InputError("the domain is empty: there is nothing to search on; widen it")
        if self.codec.kind != "categorical":
            raise InputError("alignments are searched for in models with categorical codecs; this codec is scalar")
        if strange := [v for v in self.domain.vocab if v not in self.codec.index or v not in self.program.vocab]:
            raise InputError(f"the domain has tokens that the model or the program does not know: {strange[:8]}")

    @property
    def name(self) -> str:
        return self.program.value_node(self.node).name or f"node {self.node}"

    def site_width(self, site: str) -> int:
        """Raises `InputError` for a site that is not [batch, pos, width]."""
        known = sites(self.model.config)
        if site not in known:
            raise unknown("site", site, tuple(known))
        width = known[site].sizes[-1]
        if len(known[site].axes) != 3 or width is None:
            raise InputError(
                f"{site} has axes {known[site].axes}; subspaces are looked for in sites [batch, pos, width]"
            )
        return width

    def words(self, count: int, seed: int) -> list[Tensor]:
        """Uniform words of the domain, token ids [batch, length], a tensor for each length drawn."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise InputError(f"the number of samples must be an integer of at least 2, got {count!r}")
        table = np.array([self.codec.index[token] for token in self.domain.vocab], dtype=np.int64)
        drawn = self.domain.sample_ids(np.random.default_rng(seed), count)
        return [torch.from_numpy(table[rows]) for _, rows in drawn if len(rows)]

    def values(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The variable's values, as indices [batch, pos], and where the program is undefined [batch]."""
        trace = Evaluator(self.program).run(self._tokens(words), (self.node,))
        return torch.from_numpy(np.array(trace.values[self.node])), torch.from_numpy(trace.undefined)

    def pairs(self, count: int, seed: int) -> list[Batch]:
        """Bases with sources of equal length, and what the program gives when the variable is exchanged; those on which
        it is undefined, or gives what the model has no output for, are left out. Raises `InputError` if all are."""
        found = []
        generator = torch.Generator().manual_seed(seed)
        for words in self.words(count, seed):
            source = words[torch.randperm(len(words), generator=generator)]
            given = Evaluator(self.program).run(self._tokens(source), (self.node,))
            known = {self.node: given.values[self.node]}
            trace = Evaluator(self.program).run(self._tokens(words), (self.program.output,), known)
            outputs = np.array(trace.values[self.program.output])
            if self.model.config.readout != "each":
                outputs = outputs[:, -1:]
            place = {value: i for i, value in enumerate(self.codec.outputs)}
            names = self.program.value_node(self.program.output).values
            labels = np.array([place.get(value, -1) for value in names])[outputs]
            good = torch.from_numpy(~(given.undefined | trace.undefined) & (labels >= 0).all(1))
            if bool(good.any()):
                found.append((words[good], source[good], torch.from_numpy(labels)[good]))
        if not found:
            raise InputError(f"the program has no output on any sampled pair when `{self.name}` is exchanged")
        return found

    def _tokens(self, words: Tensor) -> Ints:
        place = {value: i for i, value in enumerate(self.program.vocab)}
        table = np.array([place.get(value, -1) for value in self.codec.vocab], dtype=np.int64)
        ids: Ints = table[words.numpy()]
        return ids

    def run(self, words: Tensor, site: str, move: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The activation at a site [batch, pos, width], and the logits [batch, read-out, out] when it is moved."""
        run = Run(self.codec.with_bos(words), self.model.parameter)
        seen = torch.zeros(())
        for operation in needed(self.model.program, (site, LOGITS)):
            value = RULES[type(operation)](operation, run)
            if operation.output == site:
                seen = value
                value = value if move is None else move(value)
            run.values[operation.output] = value
        logits = run.values[LOGITS]
        return seen, logits.unsqueeze(1) if logits.dim() == 2 else logits[:, int(self.codec.bos) :]


def das(
    variable: Variable,
    site: str,
    k: int,
    *,
    steps: int = 300,
    samples: int = 2000,
    batch: int = 256,
    rate: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> FoundSubspace:
    """Distributed alignment search (Geiger et al., 2024): the k directions of a site for which exchanging their span
    between pairs of inputs best gives the program's outputs when the variable is exchanged, at all positions.

    Adam on the cross-entropy of these outputs, over an orthonormal parametrisation; `agreement` is on `samples` other
    pairs. CPU, deterministic. Raises `InputError`.
    """
    width = variable.site_width(site)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < width:
        raise InputError(f"k, the subspace's dimension, must be an integer from 1 to {width - 1}, got {k!r}")
    pairs = variable.pairs(samples, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        taken = [variable.run(source, site)[0] for _, source, _ in pairs]
    raw = torch.randn(width, k, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=rate)
    weights = torch.tensor([float(len(x)) for x, _, _ in pairs])
    for step in range(steps):
        which = int(torch.multinomial(weights, 1, generator=generator))
        base, _, labels = pairs[which]
        rows = torch.randint(len(base), (min(batch, len(base)),), generator=generator)
        q = torch.linalg.qr(raw).Q
        logits = _exchanged(variable, base[rows], taken[which][rows], site, q)
        loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())
        optimiser.zero_grad()
        (raw.grad,) = torch.autograd.grad(loss, [raw])
        optimiser.step()
        if progress and step % 20 == 0:
            progress(f"DAS: step {step} of {steps}, loss {float(loss.detach()):.4g}")
    directions = torch.linalg.qr(raw.detach()).Q.T.contiguous()
    found = AlignedSite(variable.name, site, directions)
    told = f"DAS, k = {k}, {steps} steps on {samples} pairs drawn uniformly (seed {seed})"
    return FoundSubspace(found, agreement(variable, found, samples, seed + 1), "das", told)


def agreement(variable: Variable, aligned: AlignedSite, samples: int = 2000, seed: int = 1) -> float:
    """The share of sampled pairs on which exchanging the subspace gives the program's outputs when the variable is
    exchanged. Raises `InputError` for another model's site."""
    variable.site_width(aligned.site)
    aligned.validate(variable.model.config)
    if aligned.directions is None:
        raise InputError(f"{aligned.variable} is in the whole of {aligned.site}; name directions")
    right = total = 0
    with torch.no_grad():
        for base, source, labels in variable.pairs(samples, seed):
            taken = variable.run(source, aligned.site)[0]
            logits = _exchanged(variable, base, taken, aligned.site, aligned.directions.T)
            right += int((logits.argmax(-1) == labels).all(-1).sum())
            total += len(base)
    return right / total


def _exchanged(variable: Variable, base: Tensor, taken: Tensor, site: str, q: Tensor) -> Tensor:
    """Logits [batch, read-out, out] with the part of a site in the span of q [width, k] taken from elsewhere."""
    return variable.run(base, site, lambda x: x + (taken - x) @ q @ q.T)[1]


def linear_readout(
    variable: Variable, site: str, *, samples: int = 2000, ridge: float = 1e-3, seed: int = 0
) -> FoundSubspace:
    """The directions by which a linear map reads the variable's value off a site, position by position.

    Ridge regression of the value's one-hot on the activation; the span of the map's rows, as many as it has values less
    one at most (singular values above 1e-4 of the largest). `agreement`: the share of positions of `samples` other
    words at which the map reads the value off. What can be read off need not be used: `SubspaceRepresents` decides.
    Raises `InputError`.
    """
    width = variable.site_width(site)
    x, y = _positions(variable, site, samples, seed)
    used = torch.unique(y)
    if len(used) < 2:
        raise InputError(f"`{variable.name}` has one value on all samples: nothing can be read off; widen the domain")
    targets = (y[:, None] == used).to(torch.float64)
    centre = x.mean(0)
    gram = (x - centre).T @ (x - centre) + ridge * len(x) * torch.eye(width, dtype=torch.float64)
    weights = torch.linalg.solve(gram, (x - centre).T @ (targets - targets.mean(0)))
    left, sizes, _ = torch.linalg.svd(weights, full_matrices=False)
    directions = left[:, sizes > 1e-4 * sizes[0]].T.to(torch.float32).contiguous()
    others, wanted = _positions(variable, site, samples, seed + 1)
    guess = used[((others - centre) @ weights + targets.mean(0)).argmax(-1)]
    found = AlignedSite(variable.name, site, directions[: width - 1])
    told = f"ridge regression ({ridge:g}) on {samples} words drawn uniformly (seed {seed})"
    return FoundSubspace(found, float((guess == wanted).double().mean()), "linear readout", told)


def _positions(variable: Variable, site: str, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations [position, width], float64, and values of the variable [position], BOS left out."""
    activations, values = [], []
    with torch.no_grad():
        for words in variable.words(samples, seed):
            found, undefined = variable.values(words)
            kept = ~undefined
            seen = variable.run(words[kept], site)[0][:, int(variable.codec.bos) :]
            activations.append(seen.flatten(0, 1).to(torch.float64))
            values.append(found[kept].flatten())
    if not sum(map(len, values)):
        raise InputError(f"{variable.program.name} is undefined on every sampled word")
    return torch.cat(activations), torch.cat(values)
