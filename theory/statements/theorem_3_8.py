"""Theorem 3.8 of S: near 0 the cross-entropy grows like half the mean variance of the log-odds times alpha squared."""

import jax
import jax.numpy as jnp

from theory import symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import exact_split
from theory.instance import Instance, Measured
from theory.statement import Claim, Statement
from theory.statements.hypotheses import chosen
from ufm import cross_entropy_increase, steer
from ufm._numerics import exp_minus_tangent


def mean_variance(instance: Instance):
    """``sum_j pi_j Var_j(M)``, nats squared: twice the coefficient of theorem 3.8."""
    m = instance.log_odds
    return jnp.dot(instance.weights, jax.vmap(lambda log_p: tilting.variance(log_p, m, 0.0))(instance.log_p))


def _variance_within_concepts(instance: Instance):
    """The variance with the contexts of a concept pooled: wrong by the variance between them unless they share their row."""
    m, same = instance.log_odds, (instance.concept == instance.concept[:, None]).astype(instance.log_p.dtype)
    shares = same * instance.weights
    pooled = jnp.log(shares / jnp.sum(shares, axis=-1, keepdims=True) @ instance.p)
    return jnp.dot(instance.weights, jax.vmap(lambda log_p: tilting.variance(log_p, m, 0.0))(pooled))


def divergence_of(log_p, m, alpha):
    """``KL(p || p_alpha)`` of one distribution ``[V]`` and values M ``[V]``, to full relative precision.

    With M less its mean, x = alpha M has mean 0, and the divergence is ``log E[e^x] = log(1 + E[e^x - 1 - x])``: a sum of
    terms that are never negative.
    """
    p = jnp.exp(log_p)
    shift = alpha * (m - jnp.dot(p, m))
    near = jnp.log1p(jnp.dot(p, exp_minus_tangent(jnp.minimum(shift, 300.0))))
    return jnp.where(jnp.max(shift) < 300, near, jax.nn.logsumexp(log_p + shift))


def increases(instance: Instance, alpha):
    """``Delta CE_j(alpha) = KL(p_j || p_{j,alpha})`` of every context, ``[m]``, to full relative precision."""
    return jax.vmap(lambda log_p: divergence_of(log_p, instance.log_odds, alpha))(instance.log_p)


def increase(instance: Instance, alpha):
    """``Delta CE(alpha) = sum_j pi_j Delta CE_j(alpha)``, nats."""
    return jnp.dot(instance.weights, increases(instance, alpha))


def _quadratic(tex: str, identities, coefficient) -> Claim:
    """The claim ``Delta CE = coefficient alpha^2 / 2 + o(alpha^2)``.

    The remainder has an explicit bound: ``e^{-x} + x - 1 <= Delta CE R^2 / Var <= e^x - x - 1`` with ``x = R |alpha|``, for
    each context, so that the ratio of Delta CE to the quadratic differs from 1 by at most ``2 (e^x - 1 - x) / x^2 - 1``,
    which is less than ``x/3 (1 + x/3)`` for ``0 < x <= 1.3``.
    """

    def instances(instance):
        spread = instance.range
        expected = coefficient(instance)

        def slack(x):
            ratio = increase(instance, x / spread) / (expected * (x / spread) ** 2 / 2)
            bound = jnp.abs(x) / 3 * (1 + jnp.abs(x) / 3)
            return bound + 1e-9 - jnp.abs(ratio - 1)

        return jnp.min(jax.vmap(slack)(jnp.asarray([-1e-1, -1e-2, -1e-3, 1e-3, 1e-2, 1e-1])))

    def autodiff(instance):
        (model, contexts, v), spread = exact_split(instance), instance.range

        def cross_entropy(alpha):
            log_q = jax.nn.log_softmax(steer(model, contexts, v, alpha))
            return -jnp.sum(instance.weights[:, None] * instance.p * log_q)

        zero = jnp.zeros(())
        first, second = jax.grad(cross_entropy)(zero), jax.grad(jax.grad(cross_entropy))(zero)
        error = jnp.maximum(jnp.abs(first) / spread, jnp.abs(second - coefficient(instance)) / spread**2)
        return 1e-10 - error

    def sweep(swept: Measured):
        instance = swept.instance
        h = 0.02 / float(instance.range)
        down, up = cross_entropy_increase(swept.model, swept.corpus, swept.v, [-h, h])
        second, first = (up + down) / h**2, (up - down) / (2 * h)
        expected = float(compiled_quickly(coefficient)(instance))
        error = jnp.maximum(jnp.abs(second / expected - 1), jnp.abs(first) / (expected * h) / 10)
        return 1e-3 - float(error)

    reading = (
        "the least slack of the bound |x|/3 · (1 + |x|/3) with x = αR on how far ΔCE over its parabola is from 1, "
        "with 1e-9 for rounding"
    )
    return Claim(tex, instances, autodiff, sweep, identities=identities, reading=reading)


STATEMENTS = (
    Statement(
        id="theorem-3.8",
        title="Cross-entropy is quadratic near 0",
        source="S, theorem 3.8",
        claim=_quadratic(
            r"\Delta\mathrm{CE}(\alpha) = \tfrac12 \sum_j \pi_j \operatorname{Var}_j(M)\, \alpha^2 + o(\alpha^2)",
            symbolic.IDENTITIES["theorem-3.8"],
            mean_variance,
        ),
        twin=_quadratic(
            r"\Delta\mathrm{CE}(\alpha) = \tfrac12 \sum_k \pi(k) \operatorname{Var}_{\bar p_k}(M)\, \alpha^2 + o(\alpha^2),"
            r"\quad \pi(k) = \sum_{j: g(j) = k} \pi_j,\ \bar p_k = \sum_{j: g(j) = k} \frac{\pi_j}{\pi(k)} p_j",
            symbolic.TWINS["theorem-3.8"],
            _variance_within_concepts,
        ),
        hypotheses=chosen("A2", "not-constant", "positive"),
        proof="proofs/theorem-3.8",
        figure="cross-entropy",
        remarks="There is no linear term because training is at rest, which gap 0 implies (N13). The variance is within "
        "contexts: within concepts, or over the whole corpus, it is larger, unless contexts share a row, and wrong.",
    ),
)
