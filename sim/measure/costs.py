"""The cost of steering as far as it tilts predictions: tilts of one prediction, and strengths that keep to a budget.

M are log-odds of a corpus, where a trained model tilts exactly; or the slopes of a model's logits at strength 0, where the
tilt is a forecast from one Jacobian-vector product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from theory import budgets, tilting
from theory.statements.n4_cross_entropy import bounds_of_moments
from ufm.distributions import kl


def tilted(log_p: Float[Array, " V"], m: Float[Array, " V"], alphas: Any) -> Float[Array, "K V"]:
    """Log-probabilities of the tilt of a prediction by M at strengths ``[K]``, nats."""
    return jax.vmap(lambda alpha: tilting.log_probabilities(log_p, m, alpha))(jnp.asarray(alphas))


def safe_strengths(log_p: Float[Array, " V"], m: Float[Array, " V"], nats: np.ndarray) -> dict[str, np.ndarray]:
    """The largest positive strength of a tilt for a budget of ``KL(p || p_alpha)``: by bounds, and exactly.

    Args:
        log_p: the unsteered log-probabilities, ``[V]`` nats.
        m: M, ``[V]`` nats, not constant.
        nats: budgets, ``[B]``.

    Returns:
        "N4", "N18", "N20" and "exact", ``[B]`` each.
    """
    spread, width = budgets.spread_of(log_p, m), float(jnp.ptp(m))
    of_range = np.asarray(budgets.range_within(jnp.asarray(nats))) / width
    of_moments = jax.jit(lambda alpha: bounds_of_moments(spread.variance, width, width * alpha)[1])
    return {
        "N4": strengths_of_costs(of_moments, nats, of_range),
        "N18": np.asarray(budgets.safe_strength(spread.variance, spread.above, jnp.asarray(nats))),
        "N20": of_range,
        "exact": strengths_of_costs(
            jax.jit(lambda alpha: kl(log_p, tilting.log_probabilities(log_p, m, alpha))), nats, of_range
        ),
    }


def strengths_of_costs(cost: Callable[[float], Any], nats: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """The strengths at which a cost that grows without end from 0 is ``nats``, ``[B]``.

    Args:
        cost: of a strength, nats.
        nats: ``[B]``.
        guess: strengths of about the right size, ``[B]``.
    """

    def strength(budget: float, high: float) -> float:
        while float(cost(high)) < budget:
            high *= 2
        return float(brentq(lambda alpha: float(cost(alpha)) - budget, 0, high, xtol=1e-13))

    return np.array([strength(float(budget), float(high)) for budget, high in zip(nats, guess, strict=True)])
