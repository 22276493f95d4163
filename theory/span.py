"""Closed forms for directions in the span of hidden states, ``v = sum_j w_j h_j``, whatever made the weights w (N14, N17).

What such a direction adds to the logits of a model of gap 0 is ``M_v(z) = sum_j w_j log p_j(z)`` (`ufm.log_odds` of the
weights). Under assumption 1 of S it needs only the total weight of each concept, Omega_k: with ``sum_j w_j = 0``,
``M_v(z) = Omega_{g(z)} log(a_z / b_z)``. Weight decay fixes lengths and angles too: `gram`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from theory.instance import Instance
from ufm._check import require, typed
from ufm.precision import full


@typed
@full
def concept_weights(instance: Instance) -> Float[Array, " G"]:
    """Omega_k, the sum of the weights of the contexts of each concept, ``[G]``.

    For a difference of means it is 1 for the target and ``-q_k / q`` for the others, q_k of the q negatives being of k.
    """
    alike = jnp.all(instance.members[instance.concept][:, None] == instance.members, axis=-1)
    return instance.contrast @ alike.astype(instance.log_p.dtype)


@typed
def weights_of_others(instance: Instance) -> Float[Array, " G"]:
    """Omega_k of the other concepts, ``[G]``; -inf for the target, also where it is listed twice."""
    same = jnp.all(instance.members == instance.in_target, axis=-1)
    return jnp.where(same, -jnp.inf, concept_weights(instance))


@typed
@full
def levels(instance: Instance) -> tuple[Float[Array, " V"], Float[Array, " V"]]:
    """log a_z and log b_z of a table that satisfies assumption 1, nats; means, if it does not quite.

    A concept without contexts shows no a: 0 is returned for its tokens.
    """
    own = instance.inside.astype(instance.log_p.dtype)
    log_a = jnp.sum(own * instance.log_p, axis=0) / jnp.maximum(jnp.sum(own, axis=0), 1)
    return log_a, jnp.sum((1 - own) * instance.log_p, axis=0) / jnp.sum(1 - own, axis=0)


class Takeover(NamedTuple):
    """Where the target takes over: bounds of the strength at which it has half of the probability.

    Attributes:
        low: no strength below has the target at one half, ``[m]``.
        high: beyond it the target has more than half, ``[m]``.

    +inf, both, for contexts of the target, and where the target is likelier than the context's own concept unsteered.
    """

    low: Float[Array, " m"]
    high: Float[Array, " m"]


@typed
@full
def takeover(instance: Instance) -> Takeover:
    """The bounds of N17, for weights with ``Omega_T > 0 >= Omega_k`` that sum to 0 on a table of assumption 1.

    With ``Lambda_z = log(a_z / b_z)``, A_g and B_T the probabilities of the context's concept g and of the target, and B the
    rest, at least ``log(A_g / B_T) / (Omega_T max_T Lambda - Omega_g max_g Lambda)``, and at most
    ``alpha + log(1 + B / B_T e^{-alpha Omega_T min_T Lambda}) / (Omega_T min_T Lambda)`` with alpha the same quotient with
    minima in place of maxima.

    Raises:
        ValueError: outside transformations, a table that does not satisfy assumption 1, weights that do not sum to 0, or
            that do not favour the target.
    """
    _require_assumption_1(instance)
    _require_favour(instance)
    log_a, log_b = levels(instance)
    ratio, omega, p = log_a - log_b, concept_weights(instance), instance.p
    target, own, of_target = instance.in_target, instance.inside, omega[instance.target]

    def most(tokens):
        return jnp.max(jnp.where(tokens, ratio, -jnp.inf), axis=-1)

    def least(tokens):
        return jnp.min(jnp.where(tokens, ratio, jnp.inf), axis=-1)

    # Contexts of the target pull as strongly the other way: they are given something harmless.
    pull = jnp.where(instance.concept == instance.target, 0, -omega[instance.concept])
    share, own_share = (jnp.sum(jnp.where(tokens, p, 0), axis=-1) for tokens in (target, own))
    rest = jnp.sum(jnp.where(target | own, 0, p), axis=-1)
    foreign = ~jnp.any(target & own, axis=-1) & (own_share > share)
    ahead = jnp.log(own_share / share)
    low = ahead / (of_target * most(target) + pull * most(own))
    climb = of_target * least(target)
    near = ahead / (climb + pull * least(own))
    high = near + jnp.log1p(rest / share * jnp.exp(-near * climb)) / climb
    return Takeover(jnp.where(foreign, low, jnp.inf), jnp.where(foreign, high, jnp.inf))


@typed
def critical_strength(instance: Instance) -> Float[Array, " m"]:
    """``1 / (Omega_T - Omega_g)`` for each context: where the target takes over as the noise goes to 0 (N17), ``[m]``.

    +inf for contexts of the target, and wherever the direction does not favour the target over the context's concept.

    Raises:
        ValueError: outside transformations, a table that does not satisfy assumption 1.
    """
    _require_assumption_1(instance)
    omega = concept_weights(instance)
    lead = omega[instance.target] - omega[instance.concept]
    return jnp.where(lead > 0, 1 / jnp.where(lead > 0, lead, 1), jnp.inf)


@typed
@full
def gram(log_p: Float[Array, "m V"]) -> Float[Array, "m m"]:
    """``(L L')^{1/2}``, L the table less the mean of each row: the inner products of hidden states under weight decay.

    At rest under equal weight decay of W and H, however much there is, H'H is this function of the log-probabilities *of the
    model*; as the decay goes to 0, of those of the corpus (N14.lengths). With decays ``decay_W, decay_H`` there is a factor
    ``sqrt(decay_W / decay_H)``. The length of ``v = H w`` is then ``(w' H'H w)^{1/2}``.

    Args:
        log_p: log-probabilities, ``[m, V]`` nats, finite.
    """
    centred = log_p - jnp.mean(log_p, axis=-1, keepdims=True)
    left, values, _ = jnp.linalg.svd(centred, full_matrices=False)
    return (left * values) @ left.T


def _require_assumption_1(instance: Instance) -> None:
    if isinstance(instance.log_p, jax.core.Tracer):
        return
    (log_a, log_b), shown = levels(instance), jnp.any(instance.inside, axis=0)
    error = float(jnp.max(jnp.abs(instance.log_p - jnp.where(instance.inside, log_a, log_b))))
    wanted = "a table of assumption 1: one log-probability of a token after its own concept, one after the others"
    require(error <= 1e-6, "instance", wanted, f"log-probabilities that differ by {error:.2g} nats")
    rise = float(jnp.min(jnp.where(shown, log_a - log_b, jnp.inf)))
    require(
        rise > 0, "instance", "tokens that are likelier after their own concept", f"one that is {-rise:.2g} nats less likely"
    )


def _require_favour(instance: Instance) -> None:
    if isinstance(instance.contrast, jax.core.Tracer):
        return
    total, omega = float(jnp.sum(instance.contrast)), concept_weights(instance)
    require(abs(total) <= 1e-6, "instance", "weights that sum to 0", f"a sum of {total:.3g}")
    fits = bool((omega[instance.target] > 0) & (jnp.max(weights_of_others(instance)) <= 1e-9))
    wanted = "a total weight above 0 for the target's contexts, of at most 0 for those of every other concept"
    require(fits, "instance", wanted, ", ".join(f"{float(x):.3g}" for x in omega))
