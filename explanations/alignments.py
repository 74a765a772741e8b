"""Alignments by sites and subspaces: where in a model a variable is said to be, and pyvene's files of them.

A pyvene folder has `config.json` (representations: layer, component, unit, low-rank dimension) and a torch file
`intkey_<key>.bin` for each rotation that was learned. Nothing in either is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..models.config import TransformerConfig
from ..models.edits import Replacement, Subspace
from ..models.errors import InputError
from ..models.files import parse_json, write_atomically
from ..models.sites import sites, unknown
from ..models.torch_files import read_torch, torch_bytes

ORTHONORMAL = 1e-3
"""How far the directions' inner products may be from those of an orthonormal basis: float32 rotations are at 1e-6."""
COMPONENTS = {
    "block_input": "blocks.{}.hook_resid_pre",
    "block_output": "blocks.{}.hook_resid_post",
    "mlp_output": "blocks.{}.hook_mlp_out",
    "mlp_activation": "blocks.{}.mlp.hook_post",
    "attention_output": "blocks.{}.hook_attn_out",
}
"""pyvene's components that are sites here."""
FIELDS = (
    *("layer", "component", "unit", "max_number_of_units", "low_rank_dimension", "intervention_type"),
    *("intervention", "subspace_partition", "group_key", "intervention_link_key", "moe_key"),
    *("source_representation", "hidden_source_representation"),
)
KEYS = (
    "layer_{}_comp_{}_unit_{}_nunit_{}#{}",
    "layer.{}.comp.{}.unit.{}.nunit.{}#{}",
    "layer.{}.repr.{}.unit.{}.nunit.{}#{}",
)
ROTATED, LOW_RANK, WHOLE = "RotatedSpaceIntervention", "LowRankRotatedSpaceIntervention", "VanillaIntervention"


@dataclass(frozen=True, eq=False)
class AlignedSite:
    """A variable is in a site: in the span of `directions` [k, width], orthonormal rows; None: the whole site."""

    variable: str
    site: str
    directions: Tensor | None = None

    def validate(self, config: TransformerConfig) -> None:
        """Raises `InputError` naming the site: if there is none of the name, or its directions are no orthonormal rows
        of its width."""
        known = sites(config)
        if self.site not in known:
            raise unknown("site", self.site, tuple(known))
        if self.directions is None:
            return
        width = known[self.site].sizes[-1]
        shape = tuple(self.directions.shape)
        if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= (width or 0):
            raise InputError(f"the directions at {self.site} must have shape [1 to {width}, {width}], got {shape}")
        if not bool(torch.isfinite(self.directions).all()):
            raise InputError(f"the directions at {self.site} have NaN or infinite entries")
        rows = self.directions.to(torch.float64)
        rank = int(torch.linalg.matrix_rank(rows))
        if rank < shape[0]:
            raise InputError(f"the {shape[0]} directions at {self.site} span only {rank} dimensions; leave some out")
        error = float((rows @ rows.T - torch.eye(shape[0], dtype=torch.float64)).abs().max())
        if error > ORTHONORMAL:
            raise InputError(
                f"the directions at {self.site} are not orthonormal (off by {error:.3g}); orthonormalise them, "
                "for example by torch.linalg.qr(directions.T).Q.T"
            )

    def edit(self, by: Replacement) -> Subspace:
        """The intervention: the variable's part of the site is replaced. Raises `InputError` for a whole site."""
        if self.directions is None:
            raise InputError(f"{self.variable} is in the whole of {self.site}; use Interchange or Ablate")
        return Subspace(self.site, self.directions, by)


def read_pyvene(folder: str | Path, config: TransformerConfig) -> tuple[AlignedSite, ...]:
    """The sites and rotations of a saved pyvene model (`IntervenableModel.save`), in the order of its configuration.

    Rotations of a whole space are taken with their interchanged dimensions. A variable is called by its key.
    Raises `InputError` listing what has no counterpart here.
    """
    folder = Path(folder)
    try:
        data = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no folder of pyvene's: its config.json cannot be read ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("representations"), list):
        raise InputError(f"{folder}/config.json has no list of representations")
    rows = [_representation(entry) for entry in data["representations"]]
    kinds = _listed(data.get("intervention_types"), len(rows), WHOLE)
    dimensions = _listed(data.get("intervention_dimensions"), len(rows), None)
    problems = [
        f"component {row['component']!r} by unit {row['unit']!r}"
        for row in rows
        if row["component"] not in COMPONENTS or row["unit"] != "pos"
    ]
    names = [_kind(kind) for kind in kinds]
    problems += [f"intervention {name}" for name in names if name not in (ROTATED, LOW_RANK, WHOLE)]
    if problems:
        raise InputError(
            f"{folder} has what is no subspace of a site here: {', '.join(dict.fromkeys(problems))}; "
            f"components: {', '.join(COMPONENTS)}; interventions: {ROTATED}, {LOW_RANK}, {WHOLE}"
        )
    found: list[AlignedSite] = []
    counts: dict[tuple[object, ...], int] = {}
    for row, name, dimension in zip(rows, names, dimensions, strict=True):
        place = (row["layer"], row["component"], row["unit"], row["max_number_of_units"])
        counts[place] = counts.get(place, -1) + 1
        key = KEYS[0].format(*place, counts[place])
        directions = None
        if name != WHOLE:
            directions = _rotation(folder, [form.format(*place, counts[place]) for form in KEYS], name, row, dimension)
        aligned = AlignedSite(key, COMPONENTS[row["component"]].format(row["layer"]), directions)
        aligned.validate(config)
        found.append(aligned)
    return tuple(found)


def write_pyvene(aligned: Iterable[AlignedSite], folder: str | Path, config: TransformerConfig) -> None:
    """A folder that pyvene loads: low-rank rotations for subspaces, plain interventions for whole sites.

    The rotation that pyvene computes from the file is the directions' up to rounding. Raises `InputError` for sites
    that pyvene has no name for.
    """
    folder, chosen = Path(folder), tuple(aligned)
    names = {site.split(".", 2)[2]: component for component, site in COMPONENTS.items()}
    representations: list[dict[str, object]] = []
    keys: list[str] = []
    files: dict[str, bytes] = {}
    for one in chosen:
        one.validate(config)
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", one.site)
        if match is None or match[2] not in names:
            raise InputError(f"pyvene has no component for {one.site}; it has those for {', '.join(names)}")
        place = (int(match[1]), names[match[2]], "pos", 1)
        rank = None if one.directions is None else len(one.directions)
        row = dict.fromkeys(FIELDS)
        row.update(layer=place[0], component=place[1], unit="pos", max_number_of_units=1, low_rank_dimension=rank)
        representations.append(dict(row))
        same = sum(key.startswith(KEYS[0].format(*place, "")) for key in keys)
        keys.append(KEYS[0].format(*place, same))
        if one.directions is not None:
            files[f"intkey_{keys[-1]}.bin"] = torch_bytes(_state(one.directions))
    data = {
        "intervention_types": [
            f"<class 'pyvene.models.interventions.{WHOLE if one.directions is None else LOW_RANK}'>" for one in chosen
        ],
        "intervention_dimensions": [None] * len(chosen),
        "mode": "parallel",
        "model_type": None,
        "representations": representations,
        "sorted_keys": keys,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    for name, raw in files.items():
        write_atomically(folder / name, raw)
    write_atomically(folder / "config.json", json.dumps(data, indent=2).encode())


def _representation(entry: Any) -> dict[str, Any]:
    """A representation, which pyvene writes as an object or as a list of its fields."""
    if isinstance(entry, list) and len(entry) <= len(FIELDS):
        entry = dict(zip(FIELDS, entry, strict=False))
    if not isinstance(entry, dict):
        raise InputError(f"a representation is an object or a list of fields, got {str(entry)[:120]}")
    defaults = {"layer": 0, "component": "block_output", "unit": "pos", "max_number_of_units": 1}
    row = {**dict.fromkeys(FIELDS), **defaults, **entry}
    for name in ("layer", "max_number_of_units"):
        if isinstance(row[name], bool) or not isinstance(row[name], int) or row[name] < 0:
            raise InputError(f"a representation's {name} must be an integer from 0, got {row[name]!r}")
    return row


def _listed(values: Any, count: int, default: object) -> list[Any]:
    """One for each representation: a list of them, or one for all."""
    if not isinstance(values, list):
        return [default if values is None else values] * count
    if len(values) not in (0, count):
        raise InputError(f"there are {count} representations, but {len(values)} types or dimensions")
    return list(values) if values else [default] * count


def _kind(text: Any) -> str:
    """`<class 'pyvene.models.interventions.RotatedSpaceIntervention'>` by its last name."""
    found = re.findall(r"\w+", str(text))
    return str(found[-1]) if found else str(text)


def _rotation(folder: Path, keys: Sequence[str], name: str, row: Mapping[str, Any], dimension: Any) -> Tensor:
    """The directions [k, width] of a saved rotation."""
    file = next((folder / f"intkey_{key}.bin" for key in keys if (folder / f"intkey_{key}.bin").is_file()), None)
    if file is None:
        raise InputError(f"{folder} has no file intkey_{keys[0]}.bin with the rotation")
    state = read_torch(file.read_bytes(), str(file))
    prefix = "rotate_layer."
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} holds no state of an intervention, but {type(state).__name__}")
    layer = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    weight = layer.get("weight", layer.get("parametrizations.weight.original"))
    if weight is None or weight.dim() != 2:
        raise InputError(f"{file} has no rotation: its keys are {', '.join(map(str, state))[:200]}")
    if "weight" not in layer:
        module = _rotate_layer(weight.to(torch.float32))
        try:
            module.load_state_dict({key: value.to(torch.float32) for key, value in layer.items()})
            computed = module.weight
            assert isinstance(computed, Tensor)
            weight = computed.detach()
        except RuntimeError as error:
            raise InputError(f"{file} holds another kind of rotation: {str(error).splitlines()[-1].strip()}") from None
    columns = weight.shape[1]
    if name == ROTATED:
        columns = _interchanged(dimension, columns, file)
    elif row["low_rank_dimension"] not in (None, columns):
        raise InputError(f"{file} has rank {columns}, the configuration says {row['low_rank_dimension']}")
    return weight[:, :columns].T.contiguous().to(torch.float32)


def _interchanged(dimension: Any, columns: int, file: Path) -> int:
    """Of a full rotation, the first so many dimensions are interchanged."""
    while isinstance(dimension, list) and len(dimension) == 1:
        dimension = dimension[0]
    if dimension is None:
        return columns
    if isinstance(dimension, bool) or not isinstance(dimension, int) or not 1 <= dimension <= columns:
        raise InputError(f"{file}: its interchanged dimensions must be 1 to {columns}, got {dimension!r}")
    return dimension


def _rotate_layer(weight: Tensor) -> nn.Module:
    """A module whose orthogonal weight torch computes from its parameters, as pyvene's layers do."""
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    made: nn.Module = parametrizations.orthogonal(module)
    return made


def _state(directions: Tensor) -> dict[str, Tensor]:
    """The state of a low-rank rotation onto these directions."""
    module = _rotate_layer(directions.to(torch.float32).T.contiguous())
    return {f"rotate_layer.{key}": value.detach().clone() for key, value in module.state_dict().items()}
