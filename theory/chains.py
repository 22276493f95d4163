"""Steering over many steps: the text that a model writes when the next context is the token just written (N21).

A steered next-token table is then a Markov chain on tokens, with rows ``q_z(y) ~ p_z(y) e^{alpha M(y)}``, and what steering
does to the share of a set of tokens T adds up over the steps:

    d/dalpha P(token t is of T) at 0  =  sum over k < t of E[ Cov(u_k, M | token t - k - 1) ],
    u_0 = 1_T,    u_{k+1} = Q u_k.

If the probability of T next is a after tokens of T and b after all others, ``u_k`` is ``lambda^k 1_T`` up to a constant,
with ``lambda = a - b``, the eigenvalue that belongs to T: each step then passes on the share lambda of what the last gained.
Functions take ``log_q [V, V]``, the log-probabilities of the next token (columns) after each token (rows).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Num

from theory import tilting
from ufm._check import in_range, part_of_the_tokens, typed, whole_number
from ufm.precision import full

Scalar = Float[Array, ""]


@typed
def steered(log_q: Float[Array, "V V"], m: Float[Array, " V"], alpha: Scalar | float) -> Float[Array, "V V"]:
    """The chain of the steered table: every row tilted by M, ``[V, V]`` nats."""
    return jax.vmap(lambda row: tilting.log_probabilities(row, m, alpha))(log_q)


@typed
@full
def stationary(log_q: Float[Array, "V V"]) -> Float[Array, " V"]:
    """The shares of tokens in the long run, ``[V]``: nu with ``nu Q = nu``, for a chain that has one.

    Raises:
        ValueError: outside transformations, a chain with several: parts of it that never reach each other.
    """
    v = log_q.shape[0]
    nu = jnp.linalg.solve((jnp.eye(v) - jnp.exp(log_q) + 1).T, jnp.ones(v, log_q.dtype))
    in_range("log_q", nu, "a chain with one distribution in the long run", lambda x: jnp.isfinite(x).all())
    return nu


@typed
@full
def shares(
    log_q: Float[Array, "V V"], target: Bool[Array, " V"], start: Float[Array, " V"], steps: int
) -> Float[Array, " steps"]:
    """The probability that token t written is of a set of tokens, for t = 1 to `steps`, ``[steps]``.

    Args:
        log_q: the chain, ``[V, V]`` nats.
        target: the set, ``[V]``.
        start: the distribution of the token before the first, ``[V]``.
        steps: how many, at least 1.

    Raises:
        ValueError: outside transformations, a set of no token or of all, a start that is no distribution.
    """
    _require_walk(target, start)
    steps, q = whole_number("steps", steps, 1), jnp.exp(log_q)

    def step(token, _):
        token = token @ q
        return token, jnp.sum(jnp.where(target, token, 0))

    return lax.scan(step, start, length=steps)[1]


@typed
@full
def response(
    log_q: Float[Array, "V V"], m: Float[Array, " V"], target: Bool[Array, " V"], start: Float[Array, " V"], steps: int
) -> Float[Array, " steps"]:
    """The derivative of `shares` by the strength, at strength 0, ``[steps]``: for any chain.

    Args:
        log_q: the unsteered chain, ``[V, V]`` nats.
        m: log-odds, ``[V]`` nats.
        target, start, steps: as for `shares`.

    Raises:
        ValueError: as `shares`.
    """
    _require_walk(target, start)
    steps, q = whole_number("steps", steps, 1), jnp.exp(log_q)

    def step(carry, _):
        token, moved = carry
        # What the last step moved is passed on, and the covariances are added.
        pushed = token @ (q * (m - (q @ m)[:, None]))
        moved = moved @ q + pushed
        return (token @ q, moved), jnp.sum(jnp.where(target, moved, 0))

    return lax.scan(step, (start, jnp.zeros_like(start)), length=steps)[1]


@typed
@full
def long_run_response(log_q: Float[Array, "V V"], m: Float[Array, " V"], target: Bool[Array, " V"]) -> Scalar:
    """The derivative by the strength of the share in the long run, ``sum_z nu_z Cov_z(Z 1_T, M)`` at strength 0.

    ``Z = (I - Q + 1 nu)^{-1}`` is the fundamental matrix of the chain.

    Args:
        log_q: the unsteered chain, ``[V, V]`` nats.
        m: log-odds, ``[V]`` nats.
        target: the set of tokens, ``[V]``.

    Raises:
        ValueError: as `stationary`; outside transformations, a set of no token or of all.
    """
    part_of_the_tokens("target", target)
    q, nu = jnp.exp(log_q), stationary(log_q)
    lasting = jnp.linalg.solve(jnp.eye(q.shape[0]) - q + nu, target.astype(q.dtype))
    return jnp.einsum("z,zy,zy,y->", nu, q, m - (q @ m)[:, None], lasting)


@typed
def two_shares(log_q: Float[Array, "V V"], target: Bool[Array, " V"]) -> tuple[Float[Array, " 2"], Float[Array, " 2"]]:
    """The least and the largest probability that T comes next, after tokens of T and after all others: two pairs.

    Raises:
        ValueError: outside transformations, a set of no token or of all.
    """
    part_of_the_tokens("target", target)
    share = jnp.exp(jax.nn.logsumexp(jnp.where(target, log_q, -jnp.inf), axis=1))

    def ends(where):
        return jnp.stack([jnp.min(jnp.where(where, share, jnp.inf)), jnp.max(jnp.where(where, share, -jnp.inf))])

    return ends(target), ends(~target)


@typed
def amplification(eigenvalue: Scalar | float, steps: Num[Array, "*n"] | float | int) -> Float[Array, "*n"]:
    """``sum_{k < steps} lambda^k = (1 - lambda^steps) / (1 - lambda)``: what many steps make of the response of one.

    For chains in which the probability of T next is a after tokens of T and b after all others, with ``lambda = a - b``,
    from a stationary start. After infinitely many steps it is ``1 / (1 - lambda)``.

    Args:
        eigenvalue: lambda, above -1 and below 1.
        steps: how many, at least 1; `jax.numpy.inf` for the long run.

    Raises:
        ValueError: outside transformations, another eigenvalue or number of steps.
    """
    in_range("eigenvalue", eigenvalue, "a number above -1 and below 1", lambda x: -1 < x < 1)
    in_range("steps", steps, "at least 1", lambda x: np.all(np.asarray(x) >= 1))
    eigenvalue, steps = jnp.asarray(eigenvalue), jnp.asarray(steps)
    return (1 - eigenvalue**steps) / (1 - eigenvalue)


@typed
@full
def sequence_divergence(
    log_q: Float[Array, "V V"], m: Float[Array, " V"], alpha: Scalar | float, start: Float[Array, " V"], steps: int
) -> Scalar:
    """``KL(p || p_alpha)`` of whole texts of `steps` tokens, nats: by the chain rule, the sum over the steps.

    Args:
        log_q: the unsteered chain, ``[V, V]`` nats.
        m: log-odds, ``[V]`` nats.
        alpha: strength.
        start, steps: as for `shares`.

    Raises:
        ValueError: outside transformations, a start that is no distribution.
    """
    _require_distribution(start)
    steps, q = whole_number("steps", steps, 1), jnp.exp(log_q)
    costs = jnp.sum(q * (log_q - steered(log_q, m, alpha)), axis=1)

    def step(token, _):
        return token @ q, token @ costs

    return jnp.sum(lax.scan(step, start, length=steps)[1])


@typed
def sequence_bound(spread: Scalar | float, alpha: Scalar | float, steps: int) -> Scalar:
    """``steps R^2 alpha^2 / 8`` nats, which KL of whole texts does not exceed, in either direction.

    It holds for any autoregressive model whose next-token distributions are tilted, by log-odds that may depend on the
    context, if the range of all of them is at most `spread`.

    Args:
        spread: R, nats.
        alpha: strength.
        steps: tokens written, at least 1.
    """
    return jnp.asarray(whole_number("steps", steps, 1) * (spread * alpha) ** 2 / 8)


def _require_walk(target: Bool[Array, " V"], start: Float[Array, " V"]) -> None:
    part_of_the_tokens("target", target)
    _require_distribution(start)


def _require_distribution(start: Float[Array, " V"]) -> None:
    def fits(x):
        return (x >= 0).all() and jnp.abs(x.sum() - 1) <= 1e-5

    in_range("start", start, "a distribution: numbers of at least 0 that add up to 1", fits)
