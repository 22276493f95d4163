"""The tilted family: the closed forms behind every statement about the unconstrained features model.

Under assumption 2 steering is exponential tilting of the next-token distribution p by the log-odds M (S, lemma B.3):

    softmax_z(f_alpha) = p(z) e^{alpha M(z) - A(alpha)},      A(alpha) = log sum_z p(z) e^{alpha M(z)},

so that A' = E_alpha[M] and A'' = Var_alpha[M]. Functions here take one distribution ``log_p [V]``, the log-odds ``m [V]``
and one strength; `jax.vmap` does the rest. Sweeps at scale are in `theory.predicted`.

The search for roots is our own: optimistix's Newton takes 0.4 to 0.8 of its time on the same function, but has no bracket,
errs up to 4 times as much (4e-15 of the root) and brings three packages whose import adds 0.7 s to the 1.05 s of JAX.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from ufm._check import MOST_READ, in_range, part_of_the_tokens, require, typed
from ufm.precision import full

Scalar = Float[Array, ""]

TIE = 1e-9
"""Log-odds closer than this share of their range R count as equal. Ties are exact in theory; rounding blurs them."""


@typed
def tilt(m: Float[Array, " V"], alpha: Scalar | float) -> Float[Array, " V"]:
    """``alpha M(z)`` less its largest value over the tokens: what the softmax sees of it.

    It is 0 for the tokens that the strength favours most, however large it is, so that nothing is lost to rounding where
    ``alpha M`` itself has no digits left after the point.

    Raises:
        ValueError: outside transformations, a strength at which ``alpha M`` is beyond the largest float; infinite log-odds.
    """
    _require_finite(m)
    if not isinstance(alpha, jax.core.Tracer) and not isinstance(m, jax.core.Tracer):
        most = largest_strength(np.asarray(m, float), m.dtype)
        require(bool(abs(float(alpha)) <= most), "alpha", f"a strength at which alpha M is finite in {m.dtype}", alpha)
    unit = _unit(m)
    return (alpha * unit) * (m / unit - favoured(m, alpha) / unit)


def largest_strength(m: np.ndarray, dtype: np.dtype) -> float:
    """The largest strength at which ``alpha M``, and its range, are finite in a type of floats."""
    return float(jnp.finfo(dtype).max) / 2 / max(np.abs(m).max() / 2, np.ptp(m / 2), 0.5)


def _unit(m: Float[Array, " V"]) -> Scalar:
    """What M is divided by for its differences: 1, or 16 where its range, or the inverse of that, need not be a float."""
    return jnp.where(jnp.max(m) - jnp.min(m) < jnp.finfo(m.dtype).max / 16, 1, 16).astype(m.dtype)


def _require_finite(m: Float[Array, " V"]) -> None:
    """Refuse infinite log-odds; what JAX traces is let through."""
    if not isinstance(m, jax.core.Tracer) and m.size <= MOST_READ:
        bad = np.argwhere(np.isinf(np.asarray(m)))
        require(not len(bad), "m", "finite log-odds", f"an infinite one at index {bad[0].tolist()}" if len(bad) else "")


def favoured(m: Float[Array, " V"], alpha: Scalar | float) -> Scalar:
    """The log-odds that a strength favours most: max M for positive ones, min M for negative ones."""
    return jnp.where(alpha > 0, jnp.max(m), jnp.min(m))


@typed
def log_partition(log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float) -> Scalar:
    """``A(alpha) = log sum_z p(z) e^{alpha M(z)}``, nats."""
    return jax.nn.logsumexp(log_p + tilt(m, alpha)) + alpha * favoured(m, alpha)


@typed
def log_probabilities(log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float) -> Float[Array, " V"]:
    """``log softmax_z(f_alpha)`` for every token (S, lemma B.3), nats."""
    return jax.nn.log_softmax(log_p + tilt(m, alpha))


@typed
@full
def mean(log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float) -> Scalar:
    """``E_alpha[M]``, the slope of the log-partition, nats."""
    return jnp.dot(jnp.exp(log_probabilities(log_p, m, alpha)), m)


@typed
@full
def variance(log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float) -> Scalar:
    """``Var_alpha[M]``, the curvature of the log-partition, nats squared. Centred: never negative, no cancellation."""
    q = jnp.exp(log_probabilities(log_p, m, alpha))
    return jnp.dot(q, (m - jnp.dot(q, m)) ** 2)


class Extremes(NamedTuple):
    """The extremes of the log-odds (S, definition 3.2).

    Attributes:
        highest: mask of the tokens that attain the maximum, ``[V]``.
        lowest: mask of the tokens that attain the minimum, ``[V]``.
        range: R = max M - min M, nats.
    """

    highest: Bool[Array, " V"]
    lowest: Bool[Array, " V"]
    range: Scalar


@typed
def extremes(m: Float[Array, " V"]) -> Extremes:
    """Where the log-odds are extreme, ties within `TIE` of the range included. If M is constant every token is both."""
    _require_finite(m)
    high, low, unit = jnp.max(m), jnp.min(m), _unit(m)
    margin = TIE * unit * (high / unit - low / unit)
    return Extremes(m >= high - margin, m <= low + margin, high - low)


@typed
def is_constant(log_p: Float[Array, "*rows V"], m: Float[Array, " V"]) -> Bool[Array, ""]:
    """Whether M is constant up to the rounding of the log-probabilities it was computed from."""
    _require_finite(m)
    scale = jnp.max(jnp.where(jnp.isfinite(log_p), jnp.abs(log_p), 0))
    return jnp.max(m) - jnp.min(m) <= 64 * jnp.finfo(m.dtype).eps * jnp.maximum(scale, 1)


@typed
def peaks(log_p: Float[Array, " V"], m: Float[Array, " V"]) -> Float[Array, " V"]:
    """The strength at which each token is likeliest, ``alpha_{j,z}``: the root of ``E_alpha[M] = M(z)`` (S, theorem 3.3).

    +inf for the tokens of the highest log-odds, -inf for the lowest, NaN everywhere if M is constant. Differentiable in
    `log_p` and `m` by the implicit function theorem (on the finite entries).
    """
    highest, lowest, spread = extremes(m)
    inner = ~(highest | lowest)
    # Tokens without a peak still pass through the vectorised root finder: they get a harmless target.
    target = jnp.where(inner, m, jnp.max(m) / 2 + jnp.min(m) / 2)
    roots = jax.vmap(lambda value: strength_of_mean(log_p, m, value))(target)
    return jnp.where(spread > 0, jnp.where(inner, roots, jnp.where(highest, jnp.inf, -jnp.inf)), jnp.nan)


@typed
def strength_of_mean(log_p: Float[Array, " V"], m: Float[Array, " V"], value: Scalar | float) -> Scalar:
    """The strength at which ``E_alpha[M]`` is `value`, for one strictly between the extremes of M: the inverse of `mean`.

    Of all tilts of p by M, that strength gives the one nearest to a distribution whose mean of M is `value`, in KL from it.
    """
    _require_finite(m)
    unit = _unit(m)
    spread = jnp.max(m) / unit - jnp.min(m) / unit
    scale = jnp.where(spread > 0, spread, 1)
    return _root_of_mean(log_p, (m / unit - value / unit) / scale) / scale / unit


@typed
def limit(log_p: Float[Array, " V"], m: Float[Array, " V"], sign: int) -> Float[Array, " V"]:
    """``lim softmax_z(f_alpha)`` as alpha goes to +inf (`sign` 1) or -inf (-1): p restricted to the extreme tokens.

    S, proposition B.1, without its ``- p_j(z)``.

    Raises:
        ValueError: another sign.
    """
    require(sign in (1, -1), "sign", "1 or -1", sign)
    highest, lowest, _ = extremes(m)
    return jax.nn.softmax(jnp.where(highest if sign > 0 else lowest, log_p, -jnp.inf))


@typed
def saturation(log_p: Float[Array, " V"], m: Float[Array, " V"], sign: int, tolerance: float) -> Scalar:
    """A strength beyond which every probability is within `tolerance` of its limit (signed as `sign`).

    With g the distance from the extreme log-odds to the next value, the mass off the extreme tokens is at most
    ``e^{-|alpha| g} (1 - p(extreme)) / p(extreme)``.

    Raises:
        ValueError: another sign; a tolerance that is not above 0.
    """
    require(sign in (1, -1), "sign", "1 or -1", sign)
    in_range("tolerance", tolerance, "a number above 0", lambda x: x > 0)
    highest, lowest, _ = extremes(m)
    extreme = highest if sign > 0 else lowest
    signed = m if sign > 0 else -m
    nearest = jnp.max(jnp.where(extreme, -jnp.inf, signed))
    unit = _unit(m)
    g = jnp.max(signed) / unit - nearest / unit
    off = jax.nn.logsumexp(jnp.where(extreme, -jnp.inf, log_p))
    on = jax.nn.logsumexp(jnp.where(extreme, log_p, -jnp.inf))
    # A Python float need not be one of this type; its logarithm is.
    log_tolerance = jnp.log(tolerance) if isinstance(tolerance, jax.core.Tracer) else math.log(tolerance)
    return sign * jnp.maximum(off - on - log_tolerance, 1.0) / g / unit


@typed
def concept_log_odds(
    log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float, members: Bool[Array, " V"]
) -> Scalar:
    """``logit F_C(alpha)``, F_C the probability of the tokens in `members`, nats; precise however small F_C is."""
    tilted = log_p + tilt(m, alpha)
    inside = jax.nn.logsumexp(jnp.where(members, tilted, -jnp.inf))
    return inside - jax.nn.logsumexp(jnp.where(members, -jnp.inf, tilted))


@typed
@full
def conditional_mean(
    log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float, members: Bool[Array, " V"]
) -> Scalar:
    """``mu_C(alpha) = E_alpha[M | Z in C]``, nats (S, appendix B.4).

    Raises:
        ValueError: outside transformations, a concept of no token.
    """
    if not isinstance(members, jax.core.Tracer):
        require(bool(np.any(members)), "members", "at least one token", "none")
    q = jax.nn.softmax(jnp.where(members, log_p + tilt(m, alpha), -jnp.inf))
    return jnp.dot(q, jnp.where(members, m, 0))


@typed
def concept_slope(
    log_p: Float[Array, " V"], m: Float[Array, " V"], alpha: Scalar | float, members: Bool[Array, " V"]
) -> Scalar:
    """``d/dalpha logit F_C = mu_C(alpha) - mu_{C^c}(alpha)``, nats per unit strength (S, equation 12).

    Raises:
        ValueError: outside transformations, a concept of no token or of all.
    """
    part_of_the_tokens("members", members)
    return conditional_mean(log_p, m, alpha, members) - conditional_mean(log_p, m, alpha, ~members)


@full
def _root_of_mean(log_p: Float[Array, " V"], d: Float[Array, " V"]) -> Scalar:
    """The root of ``E_x[d]``, an increasing function of x that changes sign.

    `d` should be of order 1, and centred on the wanted value, so that differences are exact where they are small.
    """

    def value(x):
        return jnp.dot(jax.nn.softmax(log_p + x * d), d)

    def solve(f, guess):
        del f, guess
        return _balance(log_p, d)

    return lax.custom_root(value, jnp.zeros((), d.dtype), solve, lambda g, y: y / g(jnp.ones_like(y)))


@full
def _balance(log_p: Float[Array, " V"], d: Float[Array, " V"]) -> Scalar:
    """Where the terms ``p d e^{xd}`` with d > 0 outweigh those with d < 0: Newton on the difference of their logarithms.

    That difference is nearly linear wherever few terms matter, so that a handful of steps is enough; its slope is between
    the sums of the least and of the largest |d| of both signs, which brackets the root from its value at 0.
    """
    weight = log_p + jnp.log(jnp.abs(d))
    up, down = jnp.where(d > 0, weight, -jnp.inf), jnp.where(d < 0, weight, -jnp.inf)

    def ahead(x):
        """The difference and its slope."""
        rising, falling = up + x * d, down + x * d
        slope = jnp.dot(jax.nn.softmax(rising), d) - jnp.dot(jax.nn.softmax(falling), d)
        return jax.nn.logsumexp(rising) - jax.nn.logsumexp(falling), slope

    start, _ = ahead(jnp.zeros((), d.dtype))
    flattest = jnp.min(jnp.where(d > 0, d, jnp.inf)) + jnp.min(jnp.where(d < 0, -d, jnp.inf))
    steepest = jnp.max(d) - jnp.min(d)
    near, far = -start / steepest, -start / flattest
    low, high = jnp.minimum(near, far), jnp.maximum(near, far)

    def unfinished(carry):
        _, _, x, step, k = carry
        return (jnp.abs(step) > jnp.sqrt(jnp.finfo(d.dtype).eps) * jnp.abs(x)) & (k < 100)

    def improve(carry):
        low, high, x, step, k = carry
        f, slope = ahead(x)
        low, high = jnp.where(f < 0, x, low), jnp.where(f < 0, high, x)
        newton = x - f / slope
        # Bisect when Newton leaves the bracket, or has not halved its step: this bounds the number of steps.
        trust = (newton >= low) & (newton <= high) & ((2 * jnp.abs(newton - x) <= jnp.abs(step)) | (k < 4))
        new = jnp.where(f == 0, x, jnp.where(trust, newton, (low + high) / 2))
        return low, high, new, new - x, k + 1

    _, _, x, _, _ = lax.while_loop(unfinished, improve, (low, high, near, high - low, 0))
    # Near the root a step squares the error. The difference of large logarithms is less precise than the mean itself, so
    # that the last step is on the mean.
    q = jax.nn.softmax(log_p + x * d)
    f = jnp.dot(q, d)
    spread = jnp.dot(q, (d - f) ** 2)
    last = f / jnp.where(spread > 0, spread, 1)
    return jnp.where((spread > 0) & (jnp.abs(last) < 1e-3 * jnp.abs(x)), x - last, x)
