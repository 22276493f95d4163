"""What is not supported is named at import, with what is."""

import tomllib
from pathlib import Path

import pytest

import ufm
from ufm import _versions

PROJECT = tomllib.loads((Path(ufm.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def dotted(numbers):
    return ".".join(map(str, numbers))


def test_the_lowest_versions_are_those_of_the_package():
    assert PROJECT["requires-python"] == f">={dotted(_versions.PYTHON)}"
    assert f"jax>={dotted(_versions.JAX)}" in PROJECT["dependencies"]


@pytest.mark.parametrize("installed", ["0.9.2", "0.4.38", "0.9.99.dev1"])
def test_an_old_jax_is_named(monkeypatch, installed):
    monkeypatch.setattr(_versions, "version", lambda name: installed)
    with pytest.raises(ImportError, match=rf"JAX {dotted(_versions.JAX)} .*JAX {installed}$"):
        _versions.require_supported()


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(_versions.sys, "version", "3.10.4 (main)")
    with pytest.raises(ImportError, match=r"Python 3\.11 .*Python 3\.10\.4$"):
        _versions.require_supported()


@pytest.mark.parametrize("installed", ["0.10.0", "0.12.0.1", "1.0"])
def test_newer_ones_are_taken(monkeypatch, installed):
    monkeypatch.setattr(_versions, "version", lambda name: installed)
    _versions.require_supported()
