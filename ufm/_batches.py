"""Batches of one size, so that a function is compiled once whatever the number of elements."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def map_in_batches(function: Callable[[Any], Any], xs: Any, most: int, *, sharding: NamedSharding | None = None) -> Any:
    """`function` of every element along the leading axis, vectorised over equal batches of at most `most`.

    `jax.lax.map` compiles the function a second time, for the elements that its batches leave over. Here the last batch is
    padded with copies of the last element, and cut.

    Args:
        function: of one element.
        xs: a pytree of arrays that share their leading axis, of at least one element.
        most: how many elements at a time; at least 1. With a sharding, in each part of a batch.
        sharding: how a batch is spread over devices, along one axis of their mesh. Every device has all results. If there
            are fewer elements than parts, all devices do the same.
    """
    n, parts = jax.tree.leaves(xs)[0].shape[0], parts_of(sharding)
    if n < parts:
        sharding, parts = None, 1
    steps = -(-n // (most * parts))
    size = -(-n // (steps * parts)) * parts
    padding = steps * size - n

    def padded(leaf):
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, axis=0)]) if padding else leaf

    of_batch = _vectorised(function, sharding)
    xs = jax.tree.map(padded, xs)
    if steps == 1:
        results = of_batch(xs)
    else:
        stacked = lax.map(of_batch, jax.tree.map(lambda leaf: leaf.reshape(steps, size, *leaf.shape[1:]), xs))
        results = jax.tree.map(lambda leaf: leaf.reshape(steps * size, *leaf.shape[2:]), stacked)
    return jax.tree.map(lambda leaf: leaf[:n], results) if padding else results


def _vectorised(function: Callable[[Any], Any], sharding: NamedSharding | None) -> Callable[[Any], Any]:
    """`jax.vmap`, with a batch spread over devices; each gets all results."""
    if sharding is None:
        return jax.vmap(function)
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    def over_devices(batch):
        return lax.with_sharding_constraint(jax.vmap(function)(lax.with_sharding_constraint(batch, sharding)), whole)

    return over_devices


def parts_of(sharding: NamedSharding | None) -> int:
    """How many parts a batch has: one where nothing is spread."""
    return 1 if sharding is None else sharding.mesh.shape[sharding.spec[0]]


def batched(rows: list[list[int]], length: int, size: int) -> Iterator[tuple[list[list[int]], int]]:
    """Batches of rows cut to a length, each with its number of rows. The last batch is filled up by repeating a row."""
    for k in range(0, len(rows), size):
        part = [row[:length] for row in rows[k : k + size]]
        yield [*part, *part[:1] * (size - len(part))], len(part)
