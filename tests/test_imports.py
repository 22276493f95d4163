"""Imports point one way, and importing does nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_packages(path):
    """(top-level package, line) of every absolute import in a file, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize(("package", "forbidden"), [("ufm", {"theory", "sim"}), ("theory", {"sim"})])
def test_imports_point_one_way(package, forbidden):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [f"{f}:{line} imports {name}" for f in files for name, line in imported_packages(f) if name in forbidden]
    assert wrong == []


ROOMS = {
    "bridge": set(),
    "measure": set(),
    "directions": {"bridge", "measure"},
    "choosing": {"bridge", "directions", "figures", "measure"},
    "figures": {"measure"},
    "toy": {"measure"},
    "checks": {"bridge", "directions", "figures", "measure", "toy"},
    "experiments": {"bridge", "checks", "directions", "figures", "measure", "toy"},
}
"""Which rooms of `sim` each of them may import; beside them lie the files that any may, and those that may import all."""
FOR_ALL = {"_garbage", "output", "pages", "progress", "tex"}
FOR_NONE = {"bench", "bench_choosing", "bench_gpu", "bench_half", "bench_memory", "cli", "reproduction"}
WITHIN_EXPERIMENTS = {"gpt", "preference", "strength"}


def imported_modules(path):
    """The dotted name of every module that a file imports, and of what it takes from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_of_sim_are_known():
    folders = {path.name for path in (ROOT / "sim").iterdir() if path.is_dir() and path.name not in ("data", "templates")}
    files = {path.stem for path in (ROOT / "sim").glob("*.py")} - {"__init__"}
    assert folders - {"__pycache__"} == set(ROOMS)
    assert files == FOR_ALL | FOR_NONE


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_import_what_lies_below_them(room):
    allowed = ROOMS[room] | {room} | (set() if room in ("bridge", "measure") else FOR_ALL)
    files = sorted((ROOT / "sim" / room).rglob("*.py"))
    imports = {(path, name) for path in files for name in imported_modules(path) if name.startswith("sim.")}
    assert files
    assert [(str(path), name) for path, name in sorted(imports) if name.split(".")[1] not in allowed] == []


@pytest.mark.parametrize("room", sorted(WITHIN_EXPERIMENTS))
def test_the_papers_are_apart(room):
    files = sorted((ROOT / "sim" / "experiments" / room).rglob("*.py"))
    taken = {name.split(".")[2] for path in files for name in imported_modules(path) if name.startswith("sim.experiments.")}
    assert files
    assert taken & WITHIN_EXPERIMENTS <= {room}


def test_no_circles():
    """Of the modules of each package, none imports itself by way of others, wherever in a file the import stands."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("ufm", "theory", "sim")
        for path in (ROOT / package).rglob("*.py")
    }
    taken = {
        name: {
            other if other in modules else other.rpartition(".")[0]
            for other in imported_modules(path)
            if other in modules or other.rpartition(".")[0] in modules
        }
        for name, path in modules.items()
    }
    while taken:
        free = [name for name, others in taken.items() if not (others - {name}) & taken.keys()]
        assert free, f"a circle among {sorted(taken)}"
        for name in free:
            del taken[name]


def test_no_two_classes_of_one_name():
    places = {}
    for path in (path for package in ("ufm", "theory", "sim") for path in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("package", ["ufm", "theory"])
def test_no_plots_files_or_terminal_below_sim(package):
    forbidden = {"matplotlib", "xarray", "h5netcdf", "typer", "tqdm", "jinja2", "flax"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert [(f.name, name) for f in files for name, _ in imported_packages(f) if name in forbidden] == []


IMPORT_EVERYTHING = """
import gc, importlib, pkgutil, sys
import jax
seldom = gc.get_threshold()
before = dict(jax.config.values)
for name in ("ufm", "theory"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
import matplotlib, sim.checks.verify, sim.cli
assert gc.get_threshold() == seldom
from jax._src import xla_bridge
changed = {k for k, v in jax.config.values.items() if before.get(k, v) != v}
print(changed, jax.config.jax_enable_x64, xla_bridge.backends_are_initialized(), matplotlib.get_backend(auto_select=False))
"""


def test_importing_has_no_effects():
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "JAX_ENABLE_X64")}
    command = [sys.executable, "-c", IMPORT_EVERYTHING]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set() False False None"
    assert out.stderr == ""
