"""Registered pytrees: the type of a leaf, static fields, and a registration that tells classes apart."""

from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey

from ufm._check import require, shown

T = TypeVar("T")

Leaf = Any
"""Beside an array type in the fields of a pytree: what JAX and optax put there while they map, batch or trace it.

The array type says what a leaf is outside transformations; run-time shape checks leave such fields alone.
"""


def static(**options: Any) -> Any:
    """A field of a pytree that is part of a program's key and not a leaf, marked where it is declared."""
    return field(metadata={"static": True}, **options)


def pytree(kind: type[T]) -> type[T]:
    """Register a dataclass as a pytree whose structure knows its class.

    `jax.tree_util.register_dataclass` (JAX 0.10 to 0.12) leaves the class out of the comparison of structures, though not
    out of their hash. Where two classes have the same fields, a program that was compiled for one is sometimes run for the
    other, and the result is wrong without an error. So classes that stand for different computations in one place, such as
    interventions, are registered here; it is used in the same way.

    Raises:
        ValueError: something that is no dataclass.
    """
    require(isinstance(kind, type) and is_dataclass(kind), "kind", "a dataclass", shown(kind))
    leaves = tuple(entry.name for entry in fields(kind) if not entry.metadata.get("static"))  # type: ignore[arg-type]
    constants = tuple(entry.name for entry in fields(kind) if entry.metadata.get("static"))  # type: ignore[arg-type]
    keys = tuple(map(GetAttrKey, leaves))

    def flatten(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(value, name) for name in leaves), tuple(getattr(value, name) for name in constants)

    def flatten_with_keys(value: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, static_values = flatten(value)
        return tuple(zip(keys, children, strict=True)), static_values

    def unflatten(static_values: tuple[Any, ...], children: Any) -> T:
        return kind(**dict(zip(leaves, children, strict=True)), **dict(zip(constants, static_values, strict=True)))

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    return kind
