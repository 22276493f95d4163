"""`jax.jit` as the tests have it: it asks for hasty compilation, which is most of what they cost.

A program that is called, rather than traced into another one, is compiled with the options of `theory._compilation`, where
this release of XLA takes them. Everything else is `jax.jit`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LONG = {"_train": {"xla_backend_optimization_level": 1}}
"""More options, by the name of a function: of programs that run for so long that some optimisation pays."""

JIT = jax.jit


def install() -> None:
    """Put `jit` in the place of `jax.jit`, for what is imported from now on."""
    jax.jit = jit


def jit(function: Callable | None = None, **keywords: Any) -> Any:
    """`jax.jit`, also as a decorator with keywords."""
    if function is None:
        return functools.partial(jit, **keywords)
    return JIT(function, **keywords) if "compiler_options" in keywords else Program(function, keywords)


class Program:
    """What `jax.jit` returns of a function, and the same with options for haste."""

    def __init__(self, function: Callable, keywords: dict[str, Any]) -> None:
        # Not the attributes of a function that wraps a program: they are those of that program.
        functools.update_wrapper(self, function, updated=())
        self.plain = JIT(function, **keywords)
        more = LONG.get(getattr(function, "__name__", ""), {})
        self.hasty = functools.cache(lambda: JIT(function, compiler_options=options(more), **keywords))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        # JAX takes options of programs that are called, not of those that are traced.
        return (self.plain if traced(arguments, named) else self.hasty())(*arguments, **named)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


def traced(*arguments: Any) -> bool:
    """Whether arguments, or all that is computed here, are part of a program."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(arguments), jnp.zeros(())))


def options(more: dict[str, Any]) -> dict[str, Any]:
    """What this release takes of the options for haste, and of some more."""
    from theory import _compilation

    return _compilation.taken(_compilation.PLAIN_LOOPS | more)
