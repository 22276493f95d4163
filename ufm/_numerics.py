"""Elementary functions that keep their relative precision where the obvious formula cancels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

NOTHING = 64
"""A component of a vector below this many roundings of it counts as 0: it is what rounding leaves of one."""


def exp_minus_tangent(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """``e^x - 1 - x`` to full relative precision: a series near 0, where the difference would cancel."""
    near = jnp.abs(x) < 0.02
    y = jnp.where(near, x, 0)
    series = y * y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * (1 / 5040 + y / 40320))))))
    return jnp.where(near, series, jnp.expm1(x) - x)
