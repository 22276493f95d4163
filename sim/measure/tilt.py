"""How near steering comes to tilting: in the UFM it is a tilt (S, lemma B.3); elsewhere one can ask.

The steered distribution p_alpha of a context is laid beside distributions ``(p e^{tM})^D``, made to sum to 1:

    none      t = 0                   no steering at all: the yardstick
    theory    t = alpha               what the theory says, with nothing to choose
    scaled    t = c alpha             one scale c for all contexts and strengths, from the slopes of the logits at 0
    closest   t of its own            the nearest tilt there is to each p_alpha: what is left no choice of t can mend
    normed    t = alpha, D not 1      the theory's tilt before a norm, which makes all logits smaller by D

D is 1 in the others. With a norm before the unembedding, D is the size of what it is given without steering over that
with steering (N7); it has nothing to choose either. Distances are ``KL(p_alpha || .)``, from what is measured.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from theory import tilting
from ufm import measures
from ufm._check import finite, require
from ufm.distributions import kl
from ufm.precision import full
from ufm.steerable import Steerable, at_once, known, one_of, pairs, steered_logits, strengths
from ufm.steering import Steering, as_steering

TILTS = ("none", "theory", "scaled", "closest", "normed")
"""The tilts that steered distributions are compared with."""

NOTHING = 1e-9
"""A KL that is rounding of float32 and not steering, nats."""

EDGE = 1e-5
"""How near to the extremes of M, in ranges, a mean may be for its tilt to be looked for: rounding of float32 is below."""


class Slopes(NamedTuple):
    """The slope s of the logits at strength 0 beside M, both as random tokens' under the unsteered p; ``[n]`` each.

    Attributes:
        of_slope: variance of s, nats squared.
        of_log_odds: variance of M.
        shared: their covariance.
    """

    of_slope: Float[np.ndarray, " n"]
    of_log_odds: Float[np.ndarray, " n"]
    shared: Float[np.ndarray, " n"]

    @property
    def scale(self) -> float:
        """The c for which cM is nearest to s over all contexts, in squares weighted with p."""
        return float(self.shared.sum() / self.of_log_odds.sum())

    def r_squared(self, scale: float | None = None) -> float:
        """How much of the variance of s is that of ``scale M``, over all contexts; with the best scale if left out."""
        c = self.scale if scale is None else scale
        left = self.of_slope - 2 * c * self.shared + c**2 * self.of_log_odds
        return float(1 - left.sum() / self.of_slope.sum())

    @property
    def correlations(self) -> Float[np.ndarray, " n"]:
        """The correlation of s and M in each context."""
        return self.shared / np.sqrt(self.of_slope * self.of_log_odds)


def slopes(model: Steerable, contexts: Any, steering: Any, log_odds: Any) -> Slopes:
    """The slope of the logits at strength 0, by one JVP, beside the log-odds: in the UFM the same up to a constant.

    Args:
        model: a split model that JAX differentiates.
        contexts: ``[n]``, what `model.embed` takes.
        steering: a `ufm.Steering`, or a vector ``[d]`` that is added where the model is split.
        log_odds: log-odds, ``[V]`` nats.

    Raises:
        ValueError: log-odds that are not finite or not V; a context that the model does not have; a steering
            that does not fit.
    """
    contexts = known(model, contexts)
    model, parts = model.resolve(as_steering(steering))
    numbers = _slopes(model, contexts, parts, _log_odds(model, contexts, log_odds))
    return Slopes(*(np.asarray(part, float) for part in numbers))


@jax.jit
def _slopes(model: Steerable, contexts: Int[Array, " n"], steering: Steering, log_odds: Array) -> tuple[Array, Array, Array]:
    logits, s = measures.slopes(model, model.embed(contexts), steering)
    p = jax.nn.softmax(logits)
    s, log_odds = (values - jnp.sum(p * values, axis=-1, keepdims=True) for values in (s, log_odds))
    first, second, both = (jnp.sum(p * product, axis=-1) for product in (s * s, log_odds * log_odds, s * log_odds))
    return first, second, both


class Distances(NamedTuple):
    """How far steered distributions are from tilted ones.

    Attributes:
        kl: ``KL(p_alpha || .)`` by one of `TILTS`, context and strength, nats, ``[5, n, K]``.
        closest: the t of the closest tilt, ``[n, K]``.
    """

    kl: Float[np.ndarray, "5 n K"]
    closest: Float[np.ndarray, "n K"]

    @property
    def explained(self) -> Float[np.ndarray, "5 K"]:
        """The share of ``KL(p_alpha || p)`` that each tilt explains, over all contexts; NaN where nothing is to explain."""
        total = self.kl.sum(axis=1)
        return 1 - total / np.where(total[0] > NOTHING * self.kl.shape[1], total[0], np.nan)


def distances(
    model: Steerable,
    contexts: Any,
    steering: Any,
    log_odds: Any,
    alphas: Any,
    scale: float,
    *,
    shrinkage: Any = 1.0,
    budget: int | None = None,
) -> Distances:
    """The distances of the steered distributions from the tilted ones.

    Args:
        model: a split model.
        contexts: ``[n]``.
        steering: a `ufm.Steering`, or a vector ``[d]`` that is added where the model is split.
        log_odds: log-odds, ``[V]`` nats, that are not all the same.
        alphas: strengths, ``[K]``, finite.
        scale: c.
        shrinkage: D, ``[n, K]`` or something that broadcasts to it.
        budget: numbers held at once (`ufm.steerable.at_once`).

    Raises:
        ValueError: as `slopes`; strengths that are not finite.
    """
    contexts = known(model, contexts)
    model, parts = model.resolve(as_steering(steering))
    log_odds = _log_odds(model, contexts, log_odds)
    require(bool(jnp.ptp(log_odds) > 0), "log_odds", "log-odds that are not all the same", "one value")
    alphas = strengths(alphas)
    d = jnp.broadcast_to(jnp.asarray(finite("shrinkage", shrinkage)), (contexts.shape[0], alphas.shape[0]))
    arrays = _distances(model, contexts, parts, log_odds, alphas, d, scale, budget)
    return Distances(*(np.asarray(part, float) for part in arrays))


@partial(jax.jit, static_argnames="budget")
@full
def _distances(model, contexts, steering, log_odds, alphas, shrinkage, scale, budget):
    states = model.embed(contexts)
    base = jax.nn.log_softmax(model.decode(states))
    alphas, (n, k) = alphas.astype(base.dtype), shrinkage.shape
    edge = EDGE * jnp.ptp(log_odds)

    def distance(context: tuple[Array, Any], which: Array) -> tuple[Array, Array]:
        i, state = context
        alpha, d, p = alphas[which], shrinkage[i, which].astype(base.dtype), base[i]
        logits = steered_logits(model, state, steering, alpha)
        mean = jnp.clip(jnp.dot(jax.nn.softmax(logits), log_odds), jnp.min(log_odds) + edge, jnp.max(log_odds) - edge)
        closest, same = tilting.strength_of_mean(p, log_odds, mean), jnp.ones_like(d)
        t, d = jnp.stack([0 * alpha, alpha, scale * alpha, closest, alpha]), jnp.stack([same, same, same, same, d])
        return jax.vmap(lambda t, d: kl(logits, d * (p + tilting.tilt(log_odds, t))))(t, d), closest

    chunk = at_once(model, one_of(states, 0), budget)
    kl_by_tilt, closest = pairs(distance, n, jnp.arange(k), chunk, lambda i: (i, one_of(states, i)))
    return jnp.moveaxis(kl_by_tilt, -1, 0), closest


def reach(alphas: Float[np.ndarray, " K"], explained: Float[np.ndarray, " K"], share: float = 0.9) -> float:
    """The largest positive strength at which at least `share` is explained; 0 if there is none."""
    return float(alphas[(alphas > 0) & (explained >= share)].max(initial=0.0))


def _log_odds(model: Steerable, contexts: Array, log_odds: Any) -> Float[Array, " V"]:
    """Log-odds in the type that the model computes with."""
    logits = jax.eval_shape(lambda split, asked: split.decode(split.embed(asked)), model, contexts)
    array = finite("log_odds", log_odds)
    require(array.shape == logits.shape[-1:], "log_odds", f"{logits.shape[-1]} log-odds", f"shape {array.shape}")
    return jnp.asarray(array, logits.dtype)
