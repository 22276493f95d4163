"""Hypotheses that several statements share, in words and as margins."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from theory import tilting
from theory.instance import Instance
from theory.statement import Hypothesis


def chosen(*names: str) -> Mapping[str, Hypothesis]:
    """Some of the shared hypotheses, by name."""
    return {name: _ALL[name] for name in names}


PERFECT = 1e-20
"""Gaps below this, nats, count as 0: training in float64 ends near 1e-30, with log-probabilities right to about 1e-12."""


def _gap_is_zero(instance: Instance):
    # Instances that come from a model carry its gap; closed forms satisfy it by construction.
    return jnp.ones(()) if instance.gap is None else PERFECT - instance.gap


def _not_constant(instance: Instance):
    return jnp.where(tilting.is_constant(instance.log_p, instance.log_odds), -1.0, 1.0)


def spreads(instance: Instance) -> tuple[Float[Array, " V"], ...]:
    """The least and largest log-probability of each token after its own concept's contexts, and after all others."""
    log_p, own = instance.log_p, instance.inside
    a_low = jnp.min(jnp.where(own, log_p, jnp.inf), axis=0)
    a_high = jnp.max(jnp.where(own, log_p, -jnp.inf), axis=0)
    b_low = jnp.min(jnp.where(own, jnp.inf, log_p), axis=0)
    b_high = jnp.max(jnp.where(own, -jnp.inf, log_p), axis=0)
    return a_low, a_high, b_low, b_high


EXACT = 1e-9
"""Log-probabilities this close count as equal: tables come through a softmax."""


def varies(low: Float[Array, " V"], high: Float[Array, " V"]) -> Float[Array, ""]:
    """Positive where some token has two values that are not equal."""
    return jnp.max(jnp.where(high > low, high - low, 0)) - EXACT


def likelier(instance: Instance) -> Float[Array, ""]:
    """Positive where every token is likelier after each context of its own concept than after any other."""
    a_low, _, _, b_high = spreads(instance)
    return jnp.min(a_low - b_high)


def _separated(instance: Instance):
    _, _, b_low, b_high = spreads(instance)
    return jnp.minimum(likelier(instance), -varies(b_low, b_high))


def _assumption_1(instance: Instance):
    a_low, a_high, _, _ = spreads(instance)
    return jnp.minimum(_separated(instance), -varies(a_low, a_high))


def _resolved(instance: Instance):
    m = instance.log_odds
    below = jnp.minimum(jnp.max(m) - m, m - jnp.min(m))
    return jnp.min(jnp.maximum(1e-12 * instance.range - below, below - 2 * tilting.TIE * instance.range))


def _positive(instance: Instance):
    return jnp.min(instance.p)


def _small_noise(instance: Instance):
    m, target = instance.log_odds, instance.in_target
    shares = jnp.sum(jnp.where(target, instance.p * m, 0), axis=-1)
    most = jnp.max(jnp.where(instance.concept != instance.target, shares, -jnp.inf))
    return jnp.min(jnp.where(target, m, jnp.inf)) - most


_ALL: dict[str, Hypothesis] = {
    "A2": Hypothesis(
        "assumption 2: the model has gap 0 (closed forms, or a model trained until its gap is below 1e-20 nats)",
        _gap_is_zero,
    ),
    "not-constant": Hypothesis(
        "M is not constant; if it is, steering does nothing and the theorem says nothing",
        _not_constant,
    ),
    "separated": Hypothesis(
        "assumption 1 in the form the proof uses: every token is likelier after its own concept's contexts "
        "(a > b), and b does not depend on the context. The first factor, a, may depend on it.",
        _separated,
    ),
    "A1": Hypothesis(
        "assumption 1: p(z | c) is a_z after the contexts of z's concept and b_z after all others, a_z > b_z",
        _assumption_1,
    ),
    "positive": Hypothesis("all next-token probabilities are positive", _positive),
    "resolved": Hypothesis(
        "log-odds that are not extreme are not nearly so: closer than 2e-9 of the range they would be taken for ties",
        _resolved,
    ),
    "small-noise": Hypothesis(
        "eps is small: after contexts off the target, the sum of p(z) M(z) over the target's tokens is below their least M",
        _small_noise,
    ),
}
