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


def _concave(tex: str, identities, transform, curve: Curve) -> Claim:
    """The claim that a function of the log-probabilities is strictly concave in alpha for every token."""

    def instances(instance):
        curves = transform(closed_form_curves(instance, TOKENS, jnp.asarray(_NEAR) / instance.range))
        return jnp.min(-_curvatures(curves, _NEAR[1] - _NEAR[0])) + ROUNDING

    def autodiff(instance):
        curves = model_curves(instance, TOKENS)

        def second(alpha):
            return slope(lambda a: slope(lambda b: transform(curves(b)), a), alpha)

        return jnp.min(-jax.vmap(second)(jnp.asarray(_NEAR) / instance.range)) / instance.range**2 + ROUNDING

    @compiled_quickly
    def least_curvature(measured):
        return jnp.min(-_curvatures(transform(measured), 1.0))

    def sweep(swept: Measured):
        # Every twentieth strength, so that a second difference is above the error of the model.
        return float(least_curvature(swept.log_probabilities[:, ::20])) + 1e-9

    return Claim(tex, instances, autodiff, sweep, (curve,), identities)


def _curvature_of_probability(instance: Instance, alpha):
    """Minus the second derivative of every probability: ``sigma_z (Var - (M(z) - E[M])^2)``."""
    m = instance.log_odds

    def context(log_p):
        q = jnp.exp(tilting.log_probabilities(log_p, m, alpha))
        return q * (tilting.variance(log_p, m, alpha) - (m - tilting.mean(log_p, m, alpha)) ** 2)

    return jax.vmap(context)(instance.log_p)


_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \log \sigma_z(f_\alpha(c_j)) = -\operatorname{Var}_\alpha(M) < 0",
    symbolic.IDENTITIES["N1"],
    lambda log_q: log_q,
    Curve(signs.of_variance),
)
_PROBABILITIES_CONCAVE = _concave(
    r"\frac{d^2}{d\alpha^2} \sigma_z(f_\alpha(c_j)) = -\sigma_z(f_\alpha(c_j)) \operatorname{Var}_\alpha(M) < 0",
    symbolic.TWINS["N1"],
    jnp.exp,
    Curve(_curvature_of_probability),
)

STATEMENTS = (
    Statement(
        id="N1",
        title="Log-probabilities are strictly concave",
        source="N1",
        claim=_CONCAVE,
        twin=_PROBABILITIES_CONCAVE,
        hypotheses=chosen("A2", "not-constant", "positive"),
        remarks="Theorem 3.3's bump is a corollary: a strictly concave function has at most one maximum, and rises before "
        "it. Probabilities themselves are not concave.",
        proof="proofs/N1",
        figure="next-token-curves",
    ),
)
