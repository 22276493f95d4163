"""Code of a page or a notebook, run for what it prints."""

import contextlib
import io
from types import CodeType
from typing import Any


def printed_by(code: str | CodeType, namespace: dict[str, Any]) -> str:
    """What code prints to standard output; it leaves its names in the namespace."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()
