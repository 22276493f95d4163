"""Functions that are compiled where they are called outside transformations: a loop there is compiled at every call."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np

NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float)

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function, compiled once for each shape of its arguments.

    It is called as it is where one of them is traced: what is a constant of the program or the derivative that is being made
    there stays one. And where one is no pytree of numbers, as an object of a class that JAX does not know.
    """
    program = jax.jit(function)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        leaves = jax.tree.leaves((arguments, named))
        known = all(isinstance(leaf, NUMBERS) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (program if known else function)(*arguments, **named)

    return cast(F, call)
