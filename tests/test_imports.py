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


@pytest.mark.parametrize("package", ["ufm", "theory"])
def test_no_plots_files_or_terminal_below_sim(package):
    forbidden = {"matplotlib", "xarray", "h5netcdf", "typer", "tqdm", "jinja2", "flax"}
    files = sorted((ROOT / package).rglob("*.py"))
    assert [(f.name, name) for f in files for name, _ in imported_packages(f) if name in forbidden] == []


IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import jax
before = dict(jax.config.values)
for name in ("ufm", "theory"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
import matplotlib
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
