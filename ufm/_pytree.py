"""The type of a leaf of a registered pytree."""

from dataclasses import field
from typing import Any

Leaf = Any
"""Beside an array type in the fields of a pytree: what JAX and optax put there while they map, batch or trace it.

The array type says what a leaf is outside transformations; run-time shape checks leave such fields alone.
"""


def static(**options: Any) -> Any:
    """A field of a pytree that is part of a program's key and not a leaf, marked where it is declared."""
    return field(metadata={"static": True}, **options)
