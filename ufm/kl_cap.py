"""The strength of a prediction, such that it costs no more than a budget of KL from the unsteered model.

Near any strength the change of the logits is linear in it, so that N9's curvature, of the prediction at hand, gives a first
guess; KL itself is measured there and at a few strengths more, and the largest that keeps to the budget is taken.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ufm._numerics import power_for_squares
from ufm.distributions import kl
from ufm.precision import wide

ROUNDS = 4
"""Strengths at which KL is measured, at most."""

ENOUGH = 0.9
"""The part of the budget that is near enough to it."""

Predict = Callable[[Float[Array, " n"]], Float[Array, "n V"]]
"""A function from a factor on each sequence's strength to log-probabilities of its next token."""


def factor_within(predict: Predict, log_p: Float[Array, "n V"], budget: Float[Array, ""]) -> Float[Array, " n"]:
    """The largest factor from 0 to 1 that was found to keep ``KL(p || q)`` within a budget, for each sequence.

    It is 0 where what was steered before costs more than the budget already.

    Args:
        predict: gives log q at a factor.
        log_p: of the unsteered model.
        budget: nats.
    """
    guess, spent = _first_order(predict, log_p, budget)

    def unsettled(search: Any) -> Array:
        k, _, _, _, settled = search
        return (k < ROUNDS) & ~jnp.all(settled)

    def measure(search: Any) -> Any:
        k, here, low, high, settled = search
        nats = kl(log_p, predict(here))
        fits = nats <= budget  # not where it is NaN
        low, high = jnp.where(fits & ~settled, here, low), jnp.where(fits | settled, high, here)
        settled |= fits & ((nats >= ENOUGH * budget) | (here >= 1))
        # KL grows about as the square of the strength. The aim is between what is near enough and the budget.
        aim = here * jnp.sqrt(0.5 * (1 + ENOUGH) * budget / jnp.where(nats > 0, nats, 1))
        margin = 0.1 * (high - low)
        aim = jnp.where(jnp.isfinite(nats) & (nats > 0), aim, 0.5 * (low + high))
        # Where nothing is known to be too much, the whole strength may be the answer.
        last = jnp.where(high > 1, 1.0, high - margin)
        return k + 1, jnp.where(settled, here, jnp.clip(aim, jnp.minimum(low + margin, last), last)), low, high, settled

    nothing = jnp.zeros_like(guess)
    start = (jnp.asarray(0), guess, nothing, jnp.full_like(guess, 1 + 1e-6), spent)
    return lax.while_loop(unsettled, measure, start)[2]


def within_budget(logits: Callable[[Any], Float[Array, " V"]], alpha: Any, budget: Any) -> Float[Array, " V"]:
    """Logits of one prediction, at its strengths or at the part of them that keeps to a budget.

    Args:
        logits: from strengths.
        alpha: the strengths, all of which are lowered by one factor.
        budget: nats of KL from the logits at strength 0.
    """

    def predict(factor: Float[Array, " 1"]) -> Float[Array, "1 V"]:
        return jax.nn.log_softmax(wide(logits(factor[0] * alpha)))[None]

    return logits(factor_within(predict, predict(jnp.zeros(1)), jnp.asarray(budget))[0] * alpha)


def _first_order(
    predict: Predict, log_p: Float[Array, "n V"], budget: Float[Array, ""]
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The factor at which ``Var_p(change of the logits) / 2`` is the budget (N9), and whether it is spent at 0 already."""
    nothing = jnp.zeros(log_p.shape[0], log_p.dtype)
    log_q, slope = jax.jvp(predict, (nothing,), (jnp.ones_like(nothing),))
    p = jnp.exp(log_p)
    change, slope = (x - jnp.sum(p * x, axis=-1, keepdims=True) for x in (log_q - log_p, slope))
    unit = power_for_squares(slope)  # of factors
    slope = slope * unit
    a, b, c = (jnp.sum(p * x * y, axis=-1) for x, y in ((slope, slope), (slope, change), (change, change)))
    room = 2 * budget - c
    root = (jnp.sqrt(jnp.maximum(b * b + a * room, 0)) - b) / jnp.where(a > 0, a, 1)
    guess = jnp.where((a > 0) & (room > 0), jnp.clip(root * unit[:, 0], 0, 1), 1.0)
    return guess, ~(kl(log_p, log_q) <= budget)
