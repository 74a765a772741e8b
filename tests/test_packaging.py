"""The house: folders, links, who imports whom, what a wheel holds, what starts without torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import certiformer

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "src" / "certiformer"
STDLIB = sys.stdlib_module_names

# Which of our packages may be imported from where; `certiformer` itself (the facade) imports all.
LAYERS: dict[str, set[str]] = {
    "models": set(),
    "compiler": {"models"},
    "explanations": {"models", "compiler"},
    "verifier": {"models", "compiler", "proofs"},
    "proofs": set(),
    "cli": {"models", "compiler", "explanations", "verifier", "proofs"},
    "testing": {"models", "compiler", "verifier"},
}
# Names on an index, where they differ from the module's.
DISTRIBUTION = {"z3": "z3-solver", "flint": "python-flint"}
# Where the packages of extras are imported, and nowhere else.
EXTRAS_ONLY: dict[str, tuple[str, ...]] = {
    "jax": ("compiler/tracr", "models/jax_export.py"),
    "haiku": ("compiler/tracr",),
    "tracr": ("compiler/tracr",),
    "onnx": ("models/onnx_export.py",),
    "cvc5": ("verifier/smt_worker.py",),
    "hypothesis": ("testing/",),
    "pytest": ("testing/",),
}


def sources(package: str) -> Iterator[Path]:
    yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import in a file, wherever it stands in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.level, node.module
            else:
                yield from ((node.level, alias.name) for alias in node.names)


def our_packages(path: Path) -> Iterator[str]:
    """The packages of ours a file imports by relative imports; `certiformer` for the facade."""
    depth = len(path.relative_to(ROOT).parts)  # compiler/x.py is 2
    for level, name in imports(path):
        if level == depth:
            first = name.split(".")[0]
            yield first if first in LAYERS else "certiformer"


def test_every_folder_is_linked() -> None:
    for package in LAYERS:
        link = LINKS / package
        assert link.is_symlink(), f"src/certiformer/{package} is not a symbolic link"
        assert os.readlink(link) == f"../../{package}"
        assert link.resolve() == ROOT / package
        assert (ROOT / package / "__init__.py").is_file()
    assert (LINKS / "py.typed").is_file()
    entries = {path.name for path in LINKS.iterdir()} - {"__pycache__"}
    assert entries == {*LAYERS, "__init__.py", "py.typed"}


def test_the_build_lists_every_folder() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert hatch["targets"]["wheel"]["sources"] == {"src": "", **{name: f"certiformer/{name}" for name in LAYERS}}
    assert set(LAYERS) < set(hatch["only-include"])


@pytest.mark.parametrize("package", LAYERS)
def test_layers(package: str) -> None:
    """models imports nothing of ours, compiler only models, proofs nothing of ours, ..."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in our_packages(path)
        if name not in LAYERS[package] | {package} and package != "cli"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("package", LAYERS)
def test_relative_imports_only(package: str) -> None:
    """Absolute imports of ourselves would give two distinct classes of one name."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(package)
        for level, name in imports(path)
        if level == 0 and name.split(".")[0] in {"certiformer", *LAYERS}
    ]
    assert not wrong, wrong


def test_the_checkers_imports_are_its_trusted_base() -> None:
    allowed = STDLIB | {"numpy", "safetensors", "flint"}
    wrong = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources("proofs")
        for level, name in imports(path)
        if level == 0 and name.split(".")[0] not in allowed
    }
    assert not wrong, wrong


def test_every_third_party_import_is_declared() -> None:
    declared = {
        re.split(r"[^\w.-]", requirement)[0]
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    }
    used = (
        {
            name.split(".")[0]
            for package in LAYERS
            for path in sources(package)
            for level, name in imports(path)
            if level == 0
        }
        - STDLIB
        - set(EXTRAS_ONLY)
    )
    missing = {DISTRIBUTION.get(name, name) for name in used} - declared
    assert not missing, f"imported, but no dependency in pyproject.toml: {sorted(missing)}"


def test_extras_are_imported_where_they_are_asked_for() -> None:
    """Hypothesis and pytest by `testing` alone, JAX, ONNX and Tracr by what reads or writes their models."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for package in LAYERS
        for path in sources(package)
        for level, name in imports(path)
        if level == 0
        and (top := name.split(".")[0]) in EXTRAS_ONLY
        and not str(path.relative_to(ROOT)).startswith(EXTRAS_ONLY[top])
    ]
    assert not wrong, wrong


def modules_after(code: str) -> set[str]:
    """The top-level modules a fresh interpreter has imported after running `code`."""
    script = f"import sys\n{code}\nprint('MODULES', *sorted({{m.split('.')[0] for m in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import certiformer",
        "import certiformer.proofs",
        "import certiformer; certiformer.Valid",
        "from certiformer.cli import execute; assert execute(['check', '--help']) == 0",
        "from certiformer.cli import execute; assert execute(['check', 'no.cert', '--model', 'no.safetensors']) == 3",
        "from certiformer.cli import execute; assert execute(['show', 'missing.cert']) == 3",
    ],
)
def test_starts_without_torch_or_z3(code: str) -> None:
    assert not modules_after(code) & {"torch", "z3", "sympy", "networkx"}


def test_other_tools_are_imported_when_a_model_is_written_for_them() -> None:
    code = "from certiformer.models import jax_export, onnx_export; from certiformer.compiler import tracr"
    code += "; from certiformer.verifier import vnnlib; from certiformer.cli import formats"
    assert not modules_after(code) & {"jax", "haiku", "tracr", "onnx", "onnxruntime"}


@pytest.mark.parametrize("code", ["import certiformer.testing", "import certiformer.testing.plugin"])
def test_the_pytest_plugin_imports_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & {"torch", "z3", "sympy", "networkx", "numpy", "flint", "safetensors", "hypothesis"}


@pytest.mark.parametrize("name", certiformer.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(certiformer, name) is not None


def test_the_lazy_table_and_the_type_checkers_view_agree() -> None:
    tree = ast.parse((LINKS / "__init__.py").read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert seen == certiformer._NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'proof'"):
        certiformer.proof  # type: ignore[attr-defined]  # noqa: B018


def test_the_wheel_holds_certiformer_only(tmp_path: Path) -> None:
    """Built from the tree and put in a place of its own, the wheel imports; its top level is `certiformer` alone."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"certiformer"}
    assert "certiformer/py.typed" in names
    expected = {f"certiformer/{path.relative_to(ROOT)}" for package in LAYERS for path in sources(package)}
    assert expected <= set(names)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import certiformer, certiformer.proofs, certiformer.cli; print(certiformer.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "site")
