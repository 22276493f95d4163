"""N1: log-probabilities are strictly concave in the strength. The bump of theorem 3.3 is a corollary."""

import jax
import jax.numpy as jnp
import numpy as np

from theory import signs, symbolic, tilting
from theory._compilation import compiled_quickly
from theory.claims import ROUNDING, TOKENS, closed_form_curves, model_curves, slope
from theory.instance import Instance, Measured
from theory.statement import Claim, Curve, Statement
from theory.statements.hypotheses import chosen

_NEAR = np.linspace(-8, 8, 17)
"""Strengths in units of 1/R at which curvature is well above rounding, or has run out."""


def _curvatures(curves, step):
    """Second differences of values on an even grid, ``[m, K - 2, V]``."""
    return (curves[:, 2:] - 2 * curves[:, 1:-1] + curves[:, :-2]) / step**2


def _log_shares(instance: Instance, log_q):
    """Logarithms of the probabilities of the concepts, ``[..., G]`` from ``[..., V]``."""
    return jax.nn.logsumexp(jnp.where(instance.members, log_q[..., None, :], -jnp.inf), axis=-1)


def _concave(tex: str, identities, transform, curve: Curve) -> Claim:
    """The claim that a function of the instance and its log-probabilities is concave in alpha, for every entry."""

    def instances(instance):
        curves = transform(instance, closed_form_curves(instance, TOKENS, jnp.asarray(_NEAR) / instance.range))
        return jnp.min(-_curvatures(curves, _NEAR[1] - _NEAR[0])) + ROUNDING

    def autodiff(instance):
        curves = model_curves(instance, TOKENS)

        def second(alpha):
            return slope(lambda a: slope(lambda b: transform(instance, curves(b)), a), alpha)

        return jnp.min(-jax.vmap(second)(jnp.asarray(_NEAR) / instance.range)) / instance.range**2 + ROUNDING

    @compiled_quickly
    def least_curvature(instance, measured):
        return jnp.min(-_curvatures(transform(instance, measured), 1.0))

    def sweep(swept: Measured):
        # Every twentieth strength, so that a second difference is above the error of the model.
        return float(least_curvature(swept.instance, swept.log_probabilities[:, ::20])) + 1e-9

    reading = "the least downward curvature of a curve, per unit of (αR)², with 1e-11 for rounding"
    return Claim(tex, instances, autodiff, sweep, (curve,), identities, reading=reading)


def _curvature_of_log_share(instance: Instance, alpha):
    """Minus the second derivative of every concept's log-probability: ``Var(M) - Var(M | C)``."""
    m = instance.log_odds

    def context(log_p):
        def within(mask):
            return tilting.variance(jnp.where(mask, log_p, -jnp.inf), m, alpha)

        return tilting.variance(log_p, m, alpha) - jnp.stack([within(mask) for mask in instance.members])

    return jax.vmap(context)(instance.log_p)


_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \log \sigma_z(f_\alpha(c_j)) = -\operatorname{Var}_\alpha(M) < 0",
    symbolic.IDENTITIES["N1"],
    lambda instance, log_q: log_q,
    Curve(signs.of_variance, beyond=signs.is_varied),
)
_SHARES_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \log F_C(\alpha) = -\operatorname{Var}_\alpha(M) < 0\ \text{for every concept}\ C",
    symbolic.TWINS["N1"],
    _log_shares,
    Curve(_curvature_of_log_share, (-8.0, -4.0)),
)

STATEMENTS = (
    Statement(
        id="N1",
        title="Log-probabilities are strictly concave",
        source="N1",
        claim=_CONCAVE,
        twin=_SHARES_CONCAVE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Theorem 3.3's bump is a corollary: a strictly concave function has at most one maximum, and rises before "
        "it. The log-probability of a concept is not concave: Var(M | C) is taken off.",
        proof="proofs/N1",
        figure="next-token-curves",
    ),
)
