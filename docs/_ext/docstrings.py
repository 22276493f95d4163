"""Docstrings as they are written in this project, made into what Sphinx expects.

They are prose with code in double backticks; outside those, ``|P|`` is the size of a set and not a substitution, and an
indented paragraph of a module's docstring is a formula to be kept as it is.
"""

import re

import jax
from sphinx.application import Sphinx

# jaxtyping builds its type names from this one, when annotations are evaluated: "Float[Array, 'm V']", as in the source.
jax.Array.__name__ = "Array"

_LITERAL = re.compile(r"(``.*?``)")


def _escape_bars(line: str) -> str:
    parts = _LITERAL.split(line)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


_KINDS_OF_VALUES = {"attribute", "data", "property"}
_kept: dict[str, list[str]] = {}


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    del app, obj, options
    lines[:] = [_escape_bars(line) for line in lines]
    if what == "module":
        starts = [i for i, line in enumerate(lines) if line.startswith("    ") and i > 0 and not lines[i - 1].strip()]
        for i in reversed(starts):
            lines[i:i] = ["::", ""]
    if what in _KINDS_OF_VALUES:
        _kept[name] = list(lines)


def _restore(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Undo napoleon on values: it would read "The table: what it is" as a type and a description."""
    del app, obj, options
    if what in _KINDS_OF_VALUES:
        lines[:] = _kept.pop(name)


def _skip(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Fields of named tuples are documented by their class."""
    del app, what, name, skip, options
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    # Before and after napoleon, which turns sections into fields.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
