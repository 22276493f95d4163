"""A Python or a JAX that is not supported is refused in one sentence, before anything else can fail."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

PYTHON = (3, 11)
"""The lowest Python, as in pyproject.toml."""

JAX = (0, 10)
"""The lowest JAX, as in pyproject.toml."""


def require_supported() -> None:
    """Compare the Python that runs and the JAX that is installed with the lowest that are supported.

    Raises:
        ImportError: one that is older.
    """
    _require_at_least("Python", sys.version.split()[0], PYTHON)
    try:
        _require_at_least("JAX", version("jax"), JAX)
    except PackageNotFoundError:
        return  # JAX says so itself when it is imported


def _require_at_least(name: str, installed: str, lowest: tuple) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if numbers < lowest:
        wanted = ".".join(str(number) for number in lowest)
        raise ImportError(f"ufm needs {name} {wanted} or later, and this is {name} {installed}")
