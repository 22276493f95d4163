"""How to spend a budget of KL to first order: a strength for each prompt, a mix of several vectors, or both (N23).

Near 0 a vector of strengths a gains a concept ``g . a`` of probability and costs ``a . S a / 2`` nats, with
``g_i = Cov(1_T, M_i)``, S the covariance of the M and all moments under the unsteered distribution. So within a budget
``S^{-1} g`` gains most. The cost is that of KL in either direction: they differ at third order.

Nothing here asks where M comes from. For a model with a linear decoder it is the log-odds (`ufm.log_odds`), for any other
model the derivative of the logits by the strength at 0, one Jacobian-vector product for each prompt and vector.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ufm._check import in_range, part_of_the_tokens, require, typed
from ufm.precision import full


class Response(NamedTuple):
    """What strengths near 0 do to a concept, and what they cost.

    Attributes:
        gains: ``Cov(1_T, M_i)``, the concept's gain of probability per unit of strength, ``[*n, k]``.
        covariance: ``Cov(M_i, M_l)``, twice the cost in nats per unit of strength squared, ``[*n, k, k]``.
    """

    gains: Float[Array, "*n k"]
    covariance: Float[Array, "*n k k"]


@typed
@full
def response(log_p: Float[Array, "*n V"], m: Float[Array, "*n k V"], target: Bool[Array, " V"]) -> Response:
    """The first-order response of a concept to k vectors, for each of a batch of prompts.

    Args:
        log_p: unsteered next-token log-probabilities, ``[*n, V]`` nats.
        m: for each vector the log-odds, or the derivative of the logits by its strength, ``[*n, k, V]`` nats. A constant
            may be added for each prompt.
        target: the tokens of the concept, ``[V]``.

    Gains keep their digits however small the share of the concept, or of the rest, is.

    Raises:
        ValueError: shapes that do not fit; outside transformations, a concept of no token or of all.
    """
    part_of_the_tokens("target", target)
    inside, outside = jnp.where(target, log_p, -jnp.inf), jnp.where(target, -jnp.inf, log_p)
    share, rest = (jnp.exp(jax.nn.logsumexp(part, axis=-1, keepdims=True)) for part in (inside, outside))
    apart = jax.nn.softmax(inside) - jax.nn.softmax(outside)
    centred = m - jnp.einsum("...v,...kv->...k", jnp.exp(log_p), m)[..., None]
    gains = share * rest * jnp.einsum("...v,...kv->...k", apart, centred)
    return Response(gains, jnp.einsum("...v,...kv,...lv->...kl", jnp.exp(log_p), centred, centred))


@typed
@full
def best_strengths(
    gains: Float[Array, "n k"],
    covariance: Float[Array, "n k k"],
    budget: Float[Array, ""] | float,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "n k"]:
    """The strengths of k vectors for each of n prompts that gain a concept most, to first order, within one budget (N23).

    They are ``c S_j^{-1} g_j``, with one c for all prompts, and gain ``sqrt(2 budget sum_j pi_j g_j S_j^{-1} g_j)``.
    Vectors of which one does the same as others share the work evenly (the pseudo-inverse); prompts on which nothing helps
    get strength 0. Negative strengths are meant: such a vector takes away what another one costs.

    Args:
        gains: of the concept, ``[n, k]`` (`response`).
        covariance: ``[n, k, k]``.
        budget: mean KL over the prompts, nats, above 0. At second order: what it is in fact has to be measured.
        weights: pi, the share of each prompt, ``[n]``, of sum 1; even if left out.

    Raises:
        ValueError: shapes that do not fit; outside transformations, a budget or weights that are not positive.
    """
    n, k = gains.shape
    require(n >= 1 and k >= 1, "gains", "at least one prompt and one vector", f"shape {gains.shape}")
    in_range("budget", budget, "a number of nats above 0", lambda x: x > 0)
    if weights is None:
        weights = jnp.full(n, 1 / n, gains.dtype)
    in_range("weights", weights, "positive numbers of sum 1", lambda x: (x > 0).all() and jnp.abs(x.sum() - 1) < 1e-3)
    # In units of the largest gain, which cancels: squares of gains of 1e-20 are 0 in float32.
    largest = jnp.max(jnp.abs(gains))
    gains = gains / jnp.where(largest > 0, largest, 1)
    directions = jnp.einsum("jkl,jl->jk", _inverses(covariance), gains)
    worth = jnp.einsum("j,jk,jk->", weights, gains, directions)
    # A Python float need not be one of this type; its root is.
    root = jnp.sqrt(2 * budget) if isinstance(budget, jax.Array) else math.sqrt(2 * budget)
    return directions * (root / jnp.sqrt(jnp.where(worth > 0, worth, 1)))


def _inverses(covariance: Float[Array, "n k k"]) -> Float[Array, "n k k"]:
    """Pseudo-inverses, of matrices scaled to a diagonal of ones: vectors may be of very different lengths."""
    size = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    inverse_size = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    scale = inverse_size[..., :, None] * inverse_size[..., None, :]
    return jnp.linalg.pinv(scale * covariance, hermitian=True) * scale


@typed
def strength_for_each(
    gains: Float[Array, " n"],
    variances: Float[Array, " n"],
    budget: Float[Array, ""] | float,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, " n"]:
    """The strength of one vector for each prompt: ``alpha_j = c Cov_j(1_T, M) / Var_j(M)`` (N23), ``[n]``.

    The first-order rule. Where budgets are so large that shares bend, an optimum for ``KL(p_alpha || p)`` satisfies the same
    equation with moments under the steered distributions: put those in, and repeat. For the log-odds themselves, in place
    of a concept, one strength for all prompts is optimal at any budget. Equal KL for each prompt is optimal for neither.

    Args:
        gains: ``Cov_j(1_T, M)``, ``[n]`` (`response` with k = 1).
        variances: ``Var_j(M)``, ``[n]`` nats squared.
        budget: mean KL over the prompts, nats, above 0.
        weights: pi, the share of each prompt, ``[n]``, of sum 1; even if left out.

    Raises:
        ValueError: as `best_strengths`.
    """
    return best_strengths(gains[:, None], variances[:, None, None], budget, weights)[:, 0]


@typed
def best_mix(
    gains: Float[Array, " k"], covariance: Float[Array, "k k"], budget: Float[Array, ""] | float
) -> Float[Array, " k"]:
    """The strengths of k vectors that gain a concept most, to first order, within a budget: ``c S^{-1} g`` (N23), ``[k]``.

    For one mix on many prompts, give the means over prompts of `gains` and `covariance`.

    Args:
        gains: of the concept, ``[k]`` (`response`).
        covariance: ``[k, k]``.
        budget: KL in nats, above 0.

    Raises:
        ValueError: as `best_strengths`.
    """
    return best_strengths(gains[None], covariance[None], budget)[0]
