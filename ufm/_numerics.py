"""Elementary functions that keep their relative precision where the obvious formula cancels."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

NOTHING = 64
"""A component of a vector below this many roundings of it counts as 0: it is what rounding leaves of one."""


def power_for_squares(x: Float[Array, "*n d"], tiny: Any = True) -> Float[Array, "*n 1"]:
    """The power of two that brings vectors to where their squares are floats: 1 for all but huge ones, and tiny ones.

    Args:
        x: the vectors, in float32 at least.
        tiny: whether tiny ones are to be scaled, or for which ones.
    """
    most = jnp.finfo(x.dtype).maxexp
    edge, power = 2.0 ** (most // 3), 2.0 ** (3 * most // 5)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    is_tiny = (largest < 1 / edge) & (largest > 0) & tiny
    # A choice between constants: no derivative goes through it.
    return jnp.where(largest > edge, 1 / power, jnp.where(is_tiny, power, 1.0)).astype(x.dtype)


def length_of(x: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Euclidean lengths over the last axis, of vectors as large and as small as floats are."""
    size = power_for_squares(x)
    return jnp.linalg.norm(x * size, axis=-1) / size[..., 0]


def exp_minus_tangent(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``e^x - 1 - x`` to full relative precision: a series near 0, where the difference would cancel."""
    near = jnp.abs(x) < 0.02
    # x where it is near 0, and no jump beside it.
    y = jnp.clip(x, -0.02, 0.02)
    series = y * y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * (1 / 5040 + y / 40320))))))
    return jnp.where(near, series, jnp.expm1(x) - x)
