"""What is public is documented."""

import importlib
import inspect
import pkgutil

import pytest

import theory
import ufm

MODULES = [
    module.name
    for package in (ufm, theory)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.split(".")[-1].startswith("__")
]


def undocumented(name, value):
    """Names under a function or class that have no docstring of their own; a dataclass's generated one does not count."""
    if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{value.__name__}("):
        yield name
    if inspect.isclass(value):
        for member, attribute in vars(value).items():
            target = getattr(attribute, "fget", None) or getattr(attribute, "func", None) or attribute
            target = getattr(target, "__func__", target)
            if not member.startswith("_") and inspect.isfunction(target) and not (target.__doc__ or "").strip():
                yield f"{name}.{member}"


@pytest.mark.parametrize("name", ["ufm", "theory", *MODULES])
def test_public_things_have_docstrings(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    own = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or callable(value))
        and getattr(value, "__module__", None) == name
        and hasattr(value, "__name__")
    }
    assert [missing for key, value in own.items() for missing in undocumented(key, value)] == []


@pytest.mark.parametrize("package", [ufm, theory], ids=["ufm", "theory"])
def test_exports(package):
    assert len(set(package.__all__)) == len(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert (value.__doc__ or "").strip(), name
