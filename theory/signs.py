"""Slopes without their normalisers: sums of exponentials that have the sign of a derivative.

Each is a positive multiple of the derivative it is named after, written so that a strength enters every term once. Ball
arithmetic over an interval of strengths then loses nothing to dependencies between terms (`theory.certificate`).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from theory import tilting
from theory.instance import Instance


def of_tokens(instance: Instance, alpha: Float[Array, ""]) -> Float[Array, "m V"]:
    """The sign of ``d/dalpha softmax_z``: ``sum_z' p(z') (M(z) - M(z')) e^{alpha (M(z') - M(z))}`` (S, lemma B.5).

    Every term decreases in alpha, so the sum does.
    """
    ahead = instance.log_odds[:, None] - instance.log_odds
    return instance.p @ (ahead * jnp.exp(-alpha * ahead)).T


def settled(instance: Instance, alpha: Float[Array, ""]) -> Float[Array, "m V"]:
    """Positive where no sign of `of_tokens` changes any more, farther away from 0 than this strength.

    For alpha > 0: all tokens fall but those of the largest log-odds, which always rise. As `of_tokens` decreases in alpha,
    those that fall go on falling. For alpha < 0 with the least log-odds, and all others rising.
    """
    highest, lowest, _ = tilting.extremes(instance.log_odds)
    slopes = of_tokens(instance, alpha)
    return jnp.where(alpha > 0, jnp.where(highest, jnp.inf, -slopes), jnp.where(lowest, jnp.inf, slopes))


def falling_of_tokens(instance: Instance, alpha: Float[Array, ""]) -> Float[Array, "m V"]:
    """Minus the derivative of `of_tokens`: ``sum_z' p(z') (M(z) - M(z'))^2 e^{alpha (M(z') - M(z))}``."""
    ahead = instance.log_odds[:, None] - instance.log_odds
    return instance.p @ (ahead**2 * jnp.exp(-alpha * ahead)).T


def of_events(instance: Instance, alpha: Float[Array, ""], events: Bool[Array, "E V"]) -> Float[Array, "m E"]:
    """The sign of ``d/dalpha logit F_C``: the sum of ``p(z) p(z') (M(z) - M(z'))`` over z in C and z' outside, tilted."""
    ahead = instance.log_odds[:, None] - instance.log_odds
    return _over_pairs(instance, alpha, ahead, events)


def between_events(
    instance: Instance, alpha: Float[Array, ""], events: Bool[Array, "E V"]
) -> tuple[Float[Array, "m E"], Float[Array, "m E"]]:
    """The signs of ``d/dalpha logit F_C`` less its lower bound, and of its upper bound less it (N5).

    Both are +inf where the bounds are equal, because M is constant on the event and off it: there all three are one.
    """
    m = instance.log_odds
    low, high = slope_bounds(instance, events)
    ahead = m[:, None] - m
    above = _over_pairs(instance, alpha, ahead - low[:, None, None], events)
    below = _over_pairs(instance, alpha, high[:, None, None] - ahead, events)
    # Where log-odds tie, the two are equal, and exact numbers cannot be seen to be so.
    apart = high - low > tilting.TIE * instance.range
    return jnp.where(apart, above, jnp.inf), jnp.where(apart, below, jnp.inf)


def apart(instance: Instance, events: Bool[Array, "E V"]) -> Float[Array, " E"]:
    """How far apart the bounds of `slope_bounds` are; +inf where they are equal.

    Where it is positive, `between_events` is a sum of terms of which none is negative and one is positive, at any strength.
    """
    low, high = slope_bounds(instance, events)
    return jnp.where(high - low > tilting.TIE * instance.range, high - low, jnp.inf)


def slope_bounds(instance: Instance, events: Bool[Array, "E V"]) -> tuple[Float[Array, " E"], Float[Array, " E"]]:
    """``min_C M - max_{C^c} M`` and ``max_C M - min_{C^c} M`` for each event C, nats per unit strength (N5)."""
    m = instance.log_odds

    def least(mask):
        return jnp.min(jnp.where(mask, m, jnp.inf), axis=-1)

    def most(mask):
        return jnp.max(jnp.where(mask, m, -jnp.inf), axis=-1)

    return least(events) - most(~events), most(events) - least(~events)


def of_variance(instance: Instance, alpha: Float[Array, ""]) -> Float[Array, " m"]:
    """The sign of ``Var_alpha M``: the sum of ``p(z) p(z') (M(z) - M(z'))^2`` over pairs of tokens, tilted.

    No term is negative at any strength, and one is positive if M is not constant (`is_varied`).
    """
    ahead = instance.log_odds[:, None] - instance.log_odds
    return jnp.sum((instance.p @ (ahead**2 * _pair_tilt(instance, alpha))) * instance.p, axis=-1)


def is_varied(instance: Instance, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Positive where `of_variance` is, at every strength: the range of M."""
    del alpha
    return instance.range


def _pair_tilt(instance: Instance, alpha):
    m = instance.log_odds
    middle = jnp.max(m) + jnp.min(m)
    return jnp.exp(alpha * (m[:, None] + m - middle))


def _over_pairs(instance: Instance, alpha, values, events):
    """The sum of ``values p(z) p(z')`` over z in each event and z' outside it, tilted: ``[m, E]``."""
    weights = values * _pair_tilt(instance, alpha)
    inside = jnp.where(events, instance.p[:, None, :], 0)
    outside = jnp.where(events, 0, instance.p[:, None, :])
    weights = jnp.broadcast_to(weights, (events.shape[0], *weights.shape[-2:]))
    return jnp.sum(jnp.einsum("jez,ezy->jey", inside, weights) * outside, axis=-1)
