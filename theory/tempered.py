"""Steering before a norm without a bias: a tempered tilt of the prompt's distribution, its limit, a concept's ceiling (N19).

Normalise the states before they are averaged: ``v' = sum_j w_j h_j / size_j``, with the size that the norm divides by. Then

    p_alpha(z) ~ (p(z)^size e^{alpha M(z)})^{1/steered size},      M = sum_j w_j log p_j,

whatever the sizes of states and sets are, and as alpha goes to +-inf it tends to ``softmax(+-M / ||v'||)``. Any direction
``sum_j u_j h_j`` is of this form, with ``w_j = size_j u_j``. Functions take one prompt; `jax.vmap` does the rest.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ufm._check import in_range, part_of_the_tokens, require, typed
from ufm.normalised import as_seen
from ufm.precision import full

Scalar = Float[Array, ""]


@typed
@full
def size_of(h: Float[Array, "*n d"], *, kind: str = "rms", eps: Scalar | float = 0.0) -> Float[Array, "*n"]:
    """What a norm divides a state by, times ``sqrt(d)``: ``sqrt(||h||^2 + d eps)``, of h less its mean for "layer".

    Args:
        h: hidden states, ``[*n, d]``.
        kind: "rms" or "layer".
        eps: of the norm.

    Raises:
        ValueError: an unknown kind; outside transformations, a negative eps.
    """
    in_range("eps", eps, "a number of at least 0", lambda x: x >= 0)
    return jnp.hypot(jnp.linalg.norm(as_seen(h, kind), axis=-1), jnp.sqrt(h.shape[-1] * eps))


@typed
@full
def direction(
    h: Float[Array, "m d"], weights: Float[Array, " m"], *, kind: str = "rms", eps: Scalar | float = 0.0
) -> Float[Array, " d"]:
    """``v' = sum_j w_j h_j / size_j``, ``[d]``: with the weights of `ufm.contrast`, the difference of normalised means.

    Args:
        h: hidden states, ``[m, d]``.
        weights: w, ``[m]``.
        kind, eps: of the norm that reads the steered state (`size_of`).

    Raises:
        ValueError: outside transformations, states that the norm does not see: of zeros or, for "layer", of equal entries.
    """
    sizes = size_of(h, kind=kind, eps=eps)
    in_range("h", sizes, f"states that a norm of kind {kind!r} sees: their sizes are above 0", lambda x: (x > 0).all())
    return (weights / sizes) @ h


@typed
def log_probabilities(
    log_p: Float[Array, " V"],
    m: Float[Array, " V"],
    alpha: Scalar | float,
    size: Scalar | float,
    steered_size: Scalar | float,
) -> Float[Array, " V"]:
    """``log p_alpha`` of the tempered tilt, ``[V]`` nats.

    Args:
        log_p: of the prompt unsteered, ``[V]`` nats.
        m: ``M = sum_j w_j log p_j``, ``[V]`` nats, up to a constant (`ufm.log_odds` for the weights of a contrast).
        alpha: strength, in units of v'.
        size: of the prompt's state h (`size_of`).
        steered_size: of h + alpha v'.

    Raises:
        ValueError: outside transformations, a size that is not above 0.
    """
    for name, value in (("size", size), ("steered_size", steered_size)):
        in_range(name, value, "a size above 0: of a state that the norm sees", lambda x: x > 0)
    return jax.nn.log_softmax((size / steered_size) * log_p + (alpha / steered_size) * m)


@typed
def limit(m: Float[Array, " V"], length: Scalar | float, sign: int) -> Float[Array, " V"]:
    """``softmax(+-M / ||v'||)``, the probabilities as alpha goes to +inf (`sign` 1) or -inf (-1), ``[V]``.

    Args:
        m: M, ``[V]`` nats.
        length: of v', for "layer" less its mean, above 0; the norm's eps plays no part in it.
        sign: 1 or -1.

    Raises:
        ValueError: another sign; outside transformations, a length that is not above 0.
    """
    require(sign in (1, -1), "sign", "1 or -1", sign)
    in_range("length", length, "a length above 0: of a direction that the norm sees", lambda x: x > 0)
    return jax.nn.softmax(sign * m / length)


@typed
def ceiling(
    log_p: Float[Array, " V"],
    m: Float[Array, " V"],
    target: Bool[Array, " V"],
    length: Scalar | float,
    cosine: Scalar | float,
) -> Scalar:
    """Log-odds of a concept that no strength goes beyond, of either sign: in nats, its share is their sigmoid.

    The log-odds of two tokens are a linear function of the state's direction, and directions have length 1. In the plane of
    h and v' such a function is at most ``sqrt((l^2 - 2 c l n + n^2) / (1 - c^2))``, with l the log-odds of the pair
    unsteered, ``n = (M(z) - M(y)) / ||v'||`` and c the cosine between h and v'. With K the largest of these over z in the
    concept and y outside, the log-odds of the concept are at most ``K + log |T| / (V - |T|)``.

    Args:
        log_p: of the prompt unsteered, ``[V]`` nats.
        m: M, ``[V]`` nats.
        target: the concept's tokens, ``[V]``.
        length: of v', above 0.
        cosine: between h and v', for "layer" both less their means; where the norm has an eps, divide by `size_of` h.

    Raises:
        ValueError: outside transformations, a length that is not above 0, a cosine that is not between -1 and 1, a concept
            of no token or of all.
    """
    in_range("length", length, "a length above 0: of a direction that the norm sees", lambda x: x > 0)
    in_range("cosine", cosine, "a number between -1 and 1: of states that are not parallel", lambda x: -1 < x < 1)
    v = log_p.shape[0]
    part_of_the_tokens("target", target)
    unsteered, far = log_p[:, None] - log_p, (m[:, None] - m) / length
    # As a sum of squares: nothing cancels where h and v' are nearly parallel.
    most = jnp.hypot(unsteered, (far - cosine * unsteered) / jnp.sqrt((1 - cosine) * (1 + cosine)))
    largest = jnp.max(jnp.where(target[:, None] & ~target, most, -jnp.inf))
    count = jnp.sum(target)
    return largest + jnp.log(count) - jnp.log(v - count)
