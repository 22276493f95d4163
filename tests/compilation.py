"""`jax.jit` as the tests have it: it asks for hasty compilation, which is most of what they cost.

A program that is called, rather than traced into another one, is compiled with the options of `theory._compilation`, where
this release of XLA takes them. Everything else is `jax.jit`.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LONG = {"_train": {"xla_backend_optimization_level": 1}}
"""More options, by the name of a function: of programs that run for so long that some optimisation pays."""

JIT = jax.jit

PROGRAMS: weakref.WeakSet = weakref.WeakSet()
"""What `jax.jit` returned to this project's code: JAX's own functions have their programs elsewhere."""

MADE: weakref.WeakKeyDictionary[Callable, list[dict[str, Any]]] = weakref.WeakKeyDictionary()
"""The functions that they were made of, and the keywords: JAX keeps what it traced and compiled for as long as the function
lives, for other programs of it, also where the first one is gone."""


def install() -> None:
    """Put `jit` in the place of `jax.jit`, for what is imported from now on."""
    jax.jit = jit


def jit(function: Callable | None = None, **keywords: Any) -> Any:
    """`jax.jit`, also as a decorator with keywords."""
    if function is None:
        return functools.partial(jit, **keywords)
    return _jit(function, **keywords) if "compiler_options" in keywords else Program(function, keywords)


def _jit(function: Callable, **keywords: Any) -> Any:
    program = JIT(function, **keywords)
    PROGRAMS.add(program)
    known = MADE.setdefault(function, [])
    if keywords not in known:
        known.append(keywords)
    return program


def forget() -> None:
    """Trace every program of this project anew when it is next called, and none of JAX's own.

    What was traced of a function holds what the functions that it calls were at that time. `jax.clear_caches` would let the
    programs of `jnp.add` and its like go as well, of which there are many more. Ball arithmetic keeps its own.
    """
    from theory.balls import _programs

    _programs._trace.cache_clear()
    again = [JIT(function, **keywords) for function, known in MADE.items() for keywords in known]
    for program in [*PROGRAMS, *again]:
        program.clear_cache()


class Program:
    """What `jax.jit` returns of a function, and the same with options for haste."""

    def __init__(self, function: Callable, keywords: dict[str, Any]) -> None:
        # Not the attributes of a function that wraps a program: they are those of that program.
        functools.update_wrapper(self, function, updated=())
        self.plain = _jit(function, **keywords)
        more = LONG.get(getattr(function, "__name__", ""), {})
        self.hasty = functools.cache(lambda: _jit(function, compiler_options=options(more), **keywords))

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

    return _compilation.taken(_compilation.LEAN | more)
