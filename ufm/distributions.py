"""Distributions of the next token: how far apart two of them are, and how much a quantity varies under one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.precision import wide


def kl(base: Float[Array, "*#n V"], other: Float[Array, "*#n V"]) -> Float[Array, "..."]:
    """KL from the softmax of `base` to that of `other`, nats; without cancellation where they are close."""
    log_p, log_q = jax.nn.log_softmax(wide(base)), jax.nn.log_softmax(wide(other))
    p, less = jnp.exp(log_p), log_p - log_q
    # What is added has mean 0, and leaves a sum of terms that are not negative. Where q is much larger than p, their ratio
    # may be too large for a float: there it is multiplied out.
    near = jnp.maximum(less, -1)
    return jnp.sum(jnp.where(less > -1, p * (near + jnp.expm1(-near)), jnp.exp(log_q) - p * (1 - less)), axis=-1)


def variance(logits: Float[Array, "*n V"], of: Float[Array, "*n V"]) -> Float[Array, " *n"]:
    """The variance of a quantity of the next token, under the softmax of logits."""
    p, of = jax.nn.softmax(wide(logits)), wide(of)
    off = of - jnp.sum(p * of, axis=-1, keepdims=True)
    return jnp.sum(p * off * off, axis=-1)
