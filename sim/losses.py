"""Cross-entropy of text under a steered language model: its increase, KL, and the two numbers that say how both begin (N9).

The logits of one text at a few strengths are all that is ever held, whatever the number of texts and strengths.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sim.bridge.split import Split
from ufm.measures import variance
from ufm.steerable import at_once

TOGETHER = 4
"""Strengths decoded together, at most, where all logits of a text are held: a few, so that weights are not read for one."""


def _per_position(logits: Array, cut: Split) -> Float[Array, "t V"]:
    """Logits of all positions but the last, ``[T - 1, V]``."""
    return logits.reshape(cut.tokens.shape[1], -1)[:-1]


@jax.jit
def moments(cut: Split, v: Float[Array, " d"]) -> tuple[Float[Array, "n t"], Float[Array, "n t"]]:
    """Half the variance of the slopes of the logits, and the slope of the loss, at strength 0 and every position.

    Args:
        cut: of texts, with the logits of all positions.
        v: steering vector.
    """

    def of(j):
        h, push = cut.embed(j), cut.everywhere(v)
        one = jnp.ones((), h.dtype)
        logits, slopes = jax.jvp(lambda a: cut.decode(h + a * push), (0 * one,), (one,))
        logits, slopes = _per_position(logits, cut), _per_position(slopes, cut)
        mean = jnp.sum(jax.nn.softmax(logits) * slopes, axis=-1)
        target = jnp.take_along_axis(slopes, cut.tokens[j][1:, None], axis=-1)[:, 0]
        return variance(logits, slopes) / 2, mean - target

    return jax.lax.map(of, jnp.arange(cut.tokens.shape[0]))


@jax.jit
def increases(
    cut: Split, v: Float[Array, " d"], alphas: Float[Array, " K"]
) -> tuple[Float[Array, "n K t"], Float[Array, "n K t"]]:
    """Increase of the loss of the next token, and KL from the unsteered model, at every strength and position, nats.

    Arguments are those of `moments`, and the strengths.
    """

    def of(j):
        h, push, targets = cut.embed(j), cut.everywhere(v), cut.tokens[j][1:, None]

        def at(alpha):
            logits = _per_position(cut.decode(h + alpha * push), cut)
            return logits, jax.nn.logsumexp(logits, axis=-1), jnp.take_along_axis(logits, targets, axis=-1)[:, 0]

        base, total, chosen = at(jnp.zeros((), h.dtype))
        p = jnp.exp(base - total[:, None])

        def more(alpha):
            logits, new_total, new_chosen = at(alpha)
            rise = new_total - total
            return rise - (new_chosen - chosen), rise - jnp.sum(p * (logits - base), axis=-1)

        return jax.lax.map(more, alphas, batch_size=min(TOGETHER, at_once(cut, h)))

    return jax.lax.map(of, jnp.arange(cut.tokens.shape[0]))


@jax.jit
def first_losses(cut: Split) -> Float[Array, "n t"]:
    """The loss of the next token of the unsteered model at every position, nats."""

    def of(j):
        logits = _per_position(cut.decode(cut.embed(j)), cut)
        chosen = jnp.take_along_axis(logits, cut.tokens[j][1:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    return jax.lax.map(of, jnp.arange(cut.tokens.shape[0]))
