"""Batches of one size, so that a function is compiled once whatever the number of elements."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_in_batches(function: Callable[[Any], Any], xs: Any, most: int) -> Any:
    """`function` of every element along the leading axis, vectorised over equal batches of at most `most`.

    `jax.lax.map` compiles the function a second time, for the elements that its batches leave over. Here the last batch is
    padded with copies of the last element, and cut.

    Args:
        function: of one element.
        xs: a pytree of arrays that share their leading axis, of at least one element.
        most: how many elements at a time; at least 1.
    """
    n = jax.tree.leaves(xs)[0].shape[0]
    steps = -(-n // most)
    size = -(-n // steps)
    if steps == 1:
        return jax.vmap(function)(xs)
    padding = steps * size - n

    def batched(leaf):
        padded = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, axis=0)]) if padding else leaf
        return padded.reshape(steps, size, *leaf.shape[1:])

    results = lax.map(jax.vmap(function), jax.tree.map(batched, xs))
    return jax.tree.map(lambda leaf: leaf.reshape(steps * size, *leaf.shape[2:])[:n], results)


def batched(rows: list[list[int]], length: int, size: int) -> Iterator[tuple[list[list[int]], int]]:
    """Batches of rows cut to a length, each with its number of rows. The last batch is filled up by repeating a row."""
    for k in range(0, len(rows), size):
        part = [row[:length] for row in rows[k : k + size]]
        yield [*part, *part[:1] * (size - len(part))], len(part)
