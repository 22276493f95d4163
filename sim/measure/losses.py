"""Cross-entropy of text under a steered language model: its increase, KL, and the two numbers that say how both begin (N9).

The logits of one text at a few strengths are all that is ever held, whatever the number of texts and strengths.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm._batches import map_in_batches
from ufm.distributions import variance
from ufm.measures import slopes
from ufm.steerable import at_once, finite_at, in_batches
from ufm.steering import Steering, as_steering


@runtime_checkable
class SplittableModel(Protocol):
    """A language model that can be split, such as `sim.LanguageModel`."""

    def split(self, prompts: Any, layer: Any = None, *, length: int | None = None, last_only: bool = True) -> Any:
        """The model split at a layer (`sim.Split`), asked about prompts."""
        ...


# What follows takes a split of texts, with the logits of all positions. Those of one text are held at a time, and of a few
# strengths.


@jax.jit
def moments(split: Any, steering: Steering) -> tuple[Float[Array, "n t"], Float[Array, "n t"]]:
    """Half the variance of the slopes of the logits, and the slope of the loss, at strength 0 and every position.

    Args:
        split: of texts, as `resolve` gives it with the steering.
        steering: what the strength is of.
    """

    def of(j):
        logits, derivative = (values[:-1] for values in slopes(split, split.embed(j), steering))
        mean = jnp.sum(jax.nn.softmax(logits) * derivative, axis=-1)
        target = jnp.take_along_axis(derivative, split.tokens[j][1:, None], axis=-1)[:, 0]
        return variance(logits, derivative) / 2, mean - target

    return map_in_batches(of, jnp.arange(split.n_contexts), 1, sharding=split.batch_sharding)


@jax.jit
def increases(
    split: Any, steering: Steering, alphas: Float[Array, "K *k"]
) -> tuple[Float[Array, "n K t"], Float[Array, "n K t"]]:
    """Increase of the loss of the next token, and KL from the unsteered model, at every strength and position, nats.

    The arguments are those of `moments`, and the strengths.
    """

    def of(j):
        state, targets = split.embed(j), split.tokens[j][1:, None]

        def at(logits):
            logits = logits[:-1]
            return logits, jax.nn.logsumexp(logits, axis=-1), jnp.take_along_axis(logits, targets, axis=-1)[:, 0]

        base, total, chosen = at(split.decode(state))
        p = jnp.exp(base - total[:, None])

        def more(alpha):
            logits, new_total, new_chosen = at(split.steered(state, steering, alpha))
            rise = new_total - total
            return rise - (new_chosen - chosen), rise - jnp.sum(p * (logits - base), axis=-1)

        together = min(split.strengths_per_batch, at_once(split, state))
        return map_in_batches(more, alphas, together, sharding=split.batch_sharding)

    return jax.lax.map(of, jnp.arange(split.n_contexts))


@jax.jit
def first_losses(split: Any) -> Float[Array, "n t"]:
    """The loss of the next token of the unsteered model at every position, nats."""

    def of(j):
        logits = split.decode(split.embed(j))[:-1]
        chosen = jnp.take_along_axis(logits, split.tokens[j][1:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    return in_batches(split, of, jnp.arange(split.n_contexts))


class Text(NamedTuple):
    """Sequences of one length T, as rows of tokens, and which of their predictions count, ``[n, T - 1]``."""

    rows: list[list[int]]
    counted: np.ndarray


class Moments(NamedTuple):
    """How the losses of a text move with the strength at 0, per token.

    Attributes:
        curvature: of KL.
        slope: of Delta CE.
        error: the standard error of the slope, if the model drew the text.
        of_rows: the curvature of each row.
    """

    curvature: float
    slope: float
    error: float
    of_rows: Float[np.ndarray, " n"]

    @property
    def score(self) -> float:
        """The size of the slope in standard errors."""
        return abs(self.slope) / self.error


def loss_moments(lm: SplittableModel, text: Text, steering: Any, layer: int | None = None) -> Moments:
    """How the cross-entropy of a text changes near strength 0 (N9). The arguments are those of `loss_increases`."""
    split, parts = _split(lm, text, steering, layer)
    terms = [finite_at(split, 0.0, term) for term in moments(split, parts)]
    curvature, slope = (float(np.mean(np.asarray(term, float)[text.counted])) for term in terms)
    of_rows = np.mean(np.asarray(terms[0], float), axis=1, where=text.counted)
    return Moments(curvature, slope, float(np.sqrt(2 * curvature / text.counted.sum())), of_rows)


class Increases(NamedTuple):
    """The effects of strengths on the loss of a text, nats per token, ``[K]`` each.

    Attributes:
        loss: Delta CE.
        divergence: KL from the unsteered model.
        error: the standard error of ``loss - divergence``, if the model drew the text: then each term has mean 0, given the
            ones before it.
    """

    loss: Float[np.ndarray, " K"]
    divergence: Float[np.ndarray, " K"]
    error: Float[np.ndarray, " K"]


def loss_increases(lm: SplittableModel, text: Text, steering: Any, layer: int | None, alphas: np.ndarray) -> Increases:
    """Delta CE and KL from the unsteered model by strength, nats per token.

    Args:
        lm: a language model.
        text: what the losses are of.
        steering: a `ufm.Steering`, or a vector ``[d]`` that is added after `layer`.
        layer: the block after which a vector is added; None if the steering tells.
        alphas: strengths, ``[K]``.

    Raises:
        ValueError: a strength at which they are not finite.
    """
    away, (split, parts) = alphas != 0, _split(lm, text, steering, layer)
    measured = increases(split, parts, jnp.asarray(alphas[away]))
    for values in measured:
        finite_at(split, alphas[away], values, axis=1)
    loss, divergence = (np.asarray(values, float).swapaxes(1, 2)[text.counted] for values in measured)
    error = np.sqrt(np.sum((loss - divergence) ** 2, axis=0)) / len(loss)
    curves = np.zeros((3, alphas.size))
    curves[:, away] = loss.mean(axis=0), divergence.mean(axis=0), error
    return Increases(*curves)


def _split(lm: SplittableModel, text: Text, steering: Any, layer: int | None) -> tuple[Any, Steering]:
    split = lm.split(text.rows, layer, length=text.counted.shape[1] + 1, last_only=False)
    return split.resolve(as_steering(steering))
