"""Cross-entropy of text under a steered language model: its increase, KL, and the two numbers that say how both begin (N9).

The logits of one text at a few strengths are all that is ever held, whatever the number of texts and strengths.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.measures import variance
from ufm.steerable import Steerable, at_once, finite_at


@runtime_checkable
class Split(Steerable, Protocol):
    """A language model split where it is steered, with texts (`sim.bridge.split.Split`)."""

    tokens: Any
    n_contexts: int
    budget: int
    held: int
    together: int

    def everywhere(self, v: Any) -> Any:
        """The steering vector of all positions."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A language model (`sim.bridge.model.LanguageModel`)."""

    def at(self, layer: Any, prompts: Any, *, length: int | None = None, last_only: bool = True) -> Any:
        """Its split at a layer."""
        ...


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

        return jax.lax.map(more, alphas, batch_size=min(cut.together, at_once(cut, h)))

    return jax.lax.map(of, jnp.arange(cut.tokens.shape[0]))


@jax.jit
def first_losses(cut: Split) -> Float[Array, "n t"]:
    """The loss of the next token of the unsteered model at every position, nats."""

    def of(j):
        logits = _per_position(cut.decode(cut.embed(j)), cut)
        chosen = jnp.take_along_axis(logits, cut.tokens[j][1:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    together = max(1, cut.budget // cut.held)
    return jax.lax.map(of, jnp.arange(cut.n_contexts), batch_size=min(together, cut.n_contexts))


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


def loss_moments(lm: LanguageModel, text: Text, v: np.ndarray, layer: int) -> Moments:
    """What happens to the cross-entropy of a text near strength 0, steered along v after a layer (N9)."""
    cut = _cut(lm, text, layer)
    terms = [finite_at(cut, 0.0, term) for term in moments(cut, jnp.asarray(v))]
    curvature, slope = (float(np.mean(np.asarray(term, float)[text.counted])) for term in terms)
    of_rows = np.mean(np.asarray(terms[0], float), axis=1, where=text.counted)
    return Moments(curvature, slope, float(np.sqrt(2 * curvature / text.counted.sum())), of_rows)


def loss_increases(
    lm: LanguageModel, text: Text, v: np.ndarray, layer: int, alphas: np.ndarray
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Delta CE and KL from the unsteered model by strength, nats per token.

    Args:
        lm: a language model.
        text: what the losses are of.
        v: steering vector, ``[d]``.
        layer: the block after which it is added.
        alphas: strengths, ``[K]``.

    Returns:
        Delta CE and KL, ``[K]`` each.

    Raises:
        ValueError: a strength at which they are not finite.
    """
    away, cut = alphas != 0, _cut(lm, text, layer)
    found = increases(cut, jnp.asarray(v), jnp.asarray(alphas[away], v.dtype))
    for values in found:
        finite_at(cut, alphas[away], values, axis=1)
    curves = np.zeros((2, alphas.size))
    curves[:, away] = [np.asarray(values, float).swapaxes(1, 2)[text.counted].mean(axis=0) for values in found]
    return curves[0], curves[1]


def _cut(lm: LanguageModel, text: Text, layer: int) -> Split:
    return lm.at(layer, text.rows, length=text.counted.shape[1] + 1, last_only=False)
