"""Ways to a steering vector: which contexts to contrast, their difference of means, and the log-odds it implements.

A *contrast* is one weight per context: 1/|P| on the positive set P, -1/|N| on the negative set N, 0 elsewhere. The
steering vector is the contrast of the hidden states (S, equation 3) and the log-odds M are the same contrast of the
log-probabilities (S, definition 3.2); that the two agree through the softmax is S's lemma B.3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._check import finite, in_range, indices, require, typed
from ufm.concepts import check_count
from ufm.corpus import Corpus
from ufm.precision import full, wide
from ufm.steerable import Steerable, known
from ufm.steering import State, last_of


@typed
def contrast(
    n_contexts: int, positive: Sequence[int] | np.ndarray, negative: Sequence[int] | np.ndarray
) -> Float[Array, " m"]:
    """The contrast of two sets of contexts, ``[m]``; |P| and |N| may differ.

    Raises:
        ValueError: an empty P or N, a context that does not exist or is given twice, P and N sharing a context, or more
            contexts than fit in memory.
    """
    require(n_contexts >= 2, "n_contexts", "at least two contexts to contrast", n_contexts)
    check_count("n_contexts", "contexts", n_contexts)
    p = indices("positive", positive, n_contexts, of="contexts")
    n = indices("negative", negative, n_contexts, of="contexts")
    shared = np.intersect1d(p, n)
    require(shared.size == 0, "negative", "contexts that are not in positive", f"{shared.tolist()} in both")
    weights = np.zeros(n_contexts)
    weights[p] = 1 / p.size
    weights[n] = -1 / n.size
    return jnp.asarray(weights)


@typed
def contrastive(
    corpus: Corpus, target: int, opposite: int, *, size: int | None = None, key: jax.Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """P from the target concept, N from its opposite (S, section 2.2, contrastive setting).

    Args:
        corpus: with at least two concepts.
        target, opposite: two different concepts.
        size: contexts drawn for each of P and N; all of them if left out.
        key: needed when `size` is given.

    Returns:
        P and N as sorted context indices.

    Raises:
        ValueError: a concept that does not exist or has too few contexts, the two being equal, one concept only.
    """
    _check_contrast_possible(corpus, target)
    require(opposite != target, "opposite", f"a concept other than the target {target}", opposite)
    require(0 <= opposite < corpus.concepts.count, "opposite", f"a concept in 0..{corpus.concepts.count - 1}", opposite)
    return _draw_both(corpus.contexts_of(target), corpus.contexts_of(opposite), "opposite", size, key)


@typed
def random_negatives(
    corpus: Corpus, target: int, *, size: int | None = None, key: jax.Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """P from the target concept, N from any contexts outside it (S, section 2.2, random setting).

    Arguments, results and errors are those of `contrastive`.
    """
    _check_contrast_possible(corpus, target)
    others = np.flatnonzero(np.asarray(corpus.concept) != target)
    return _draw_both(corpus.contexts_of(target), others, "corpus", size, key)


@typed
def difference_of_means(model: Steerable, contexts: Int[Array, " m"], weights: Float[Array, " m"]) -> Float[Array, " d"]:
    """The steering vector ``v = mean_P h_j - mean_N h_j`` (S, equation 3) as the contrast `weights` of hidden states.

    Of a language model, split after a block, h_j is the stream at the last token of context j; `sim.make_vector` takes the
    mean over tokens.

    Raises:
        ValueError: no context, one that the model does not have, weights of another number or not finite, or a vector
            that is not finite.
    """
    _check_weights(weights)
    v = _contrast_of_states(model, known(model, contexts), weights)
    in_range("weights", v, "finite sums of weighted hidden states", lambda x: np.isfinite(x).all())
    return v


@jax.jit
@full
def _contrast_of_states(model, contexts, weights):
    states = model.embed(contexts)
    if isinstance(states, State):
        last = last_of(states.mask) - (states.mask.shape[1] - states.stream.shape[1])
        states = jnp.take_along_axis(states.stream, last[:, None, None], axis=1)[:, 0]
    h = wide(states)
    return weights.astype(h.dtype) @ h


@typed
def log_odds(corpus: Corpus, weights: Float[Array, " m"]) -> Float[Array, " V"]:
    """``M(z) = mean_P log p_i(z) - mean_N log p_i(z)`` in nats, ``[V]`` (S, definition 3.2, for any |P| and |N|).

    Raises:
        ValueError: weights of another number than contexts; outside transformations, weights that are not finite, or a
            token of probability 0 in a context of P or N.
    """
    require(weights.shape == corpus.weights.shape, "weights", f"{corpus.n_contexts} weights", f"shape {weights.shape}")
    _check_weights(weights)
    m = _log_odds(corpus, weights)
    if not isinstance(m, jax.core.Tracer):
        bad = np.flatnonzero(~np.isfinite(np.asarray(m)))
        require(
            bad.size == 0,
            "corpus",
            "positive probabilities in the contexts of P and N",
            f"a probability of 0 for tokens {bad[:5].tolist()}",
        )
    return m


@jax.jit
@full
def _log_odds(corpus: Corpus, weights: Float[Array, " m"]) -> Float[Array, " V"]:
    return contrast_of_rows(corpus.log_rows, jnp.zeros(corpus.log_rows.shape[0], weights.dtype).at[corpus.row].add(weights))


def contrast_of_rows(log_p: Float[Array, "m V"], weights: Float[Array, " m"]) -> Float[Array, " V"]:
    """The log-odds M of a table of log-probabilities, nats, ``[V]``, nothing checked: what `log_odds` and margins share."""
    # Rows that P and N use equally, or not at all, must not bring in 0 * inf.
    return weights @ jnp.where(weights[:, None] != 0, log_p, 0)


def _check_weights(weights: Float[Array, " m"]) -> None:
    if not isinstance(weights, jax.core.Tracer):
        finite("weights", weights)


def _check_contrast_possible(corpus: Corpus, target: int) -> None:
    require(corpus.concepts.count >= 2, "corpus", "at least two concepts to contrast", corpus.concepts.count)
    require(0 <= target < corpus.concepts.count, "target", f"a concept in 0..{corpus.concepts.count - 1}", target)


def _draw_both(
    positive: np.ndarray, negative: np.ndarray, source: str, size: int | None, key: jax.Array | None
) -> tuple[np.ndarray, np.ndarray]:
    require(positive.size > 0, "target", "a concept with contexts", "none")
    require(negative.size > 0, source, "contexts to take negatives from", "none")
    if size is None:
        return positive, negative
    require(size >= 1, "size", "at least one context for each of P and N", size)
    require(
        size <= min(positive.size, negative.size),
        "size",
        f"at most the {positive.size} positive and {negative.size} negative contexts",
        size,
    )
    require(key is not None, "key", "a random key to draw contexts with", None)
    assert key is not None
    of_p, of_n = jax.random.split(key)
    return _draw(of_p, positive, size), _draw(of_n, negative, size)


def _draw(key: jax.Array, pool: np.ndarray, size: int) -> np.ndarray:
    return np.sort(np.asarray(jax.random.choice(key, pool, (size,), replace=False)))
