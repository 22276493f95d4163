"""The effect of steering on a perfectly trained model, predicted in closed form from its corpus.

Twins of `ufm.measures`: the subject is a corpus instead of a model, the direction its log-odds M ``[V]`` instead of a
steering vector, and shapes are the same. Contexts that share a row of the corpus share their curve.

Everything is read off one array, the concept log-partition ``log sum_{z in C} p(z) e^{alpha M(z)}`` for each distinct row,
strength and concept. Where no probability is too small for it, that array is a matrix product: ``e^{alpha M}`` does not
depend on the context, and p does not depend on alpha.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from theory import tilting
from ufm._check import finite, indices, require, typed
from ufm.concepts import Concepts, concept_log_probabilities
from ufm.corpus import Corpus
from ufm.precision import full
from ufm.steerable import DEFAULT_BUDGET, pairs, strengths


@typed
def probability_increase(
    corpus: Corpus,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    m: Float[Array, " V"],
    alphas: Any,
    *,
    tokens: Sequence[int] | np.ndarray | None = None,
    budget: int = DEFAULT_BUDGET,
) -> Float[Array, "n K t"]:
    """``Delta p(z | c_j, alpha) = p_j(z) e^{alpha M(z) - A_j(alpha)} - p_j(z)`` (S, definition 3.1 and lemma B.3).

    Args:
        corpus: the corpus the model would have learned.
        contexts: context indices, ``[n]``.
        m: log-odds, ``[V]`` nats (`ufm.log_odds`).
        alphas: steering strengths, ``[K]``, finite.
        tokens: which tokens to keep, ``[t]``; all if left out.
        budget: numbers held at once in the largest intermediate array.

    Raises:
        ValueError: a strength, log-odds or product of both that is not finite; a token or a context that does not exist.
    """
    v = corpus.vocabulary_size
    chosen = np.arange(v) if tokens is None else indices("tokens", tokens, v, of="tokens")
    rows, which = _rows(corpus, contexts)
    m, alphas = _tilts(m, alphas, corpus)
    parts = concept_log_partition(rows, m, alphas, corpus.concepts, budget=budget)
    return _token_curves(rows, m, alphas, parts, chosen)[which]


@jax.jit
def _token_curves(rows, m, alphas, parts, tokens):
    log_p, log_z = rows[:, None, tokens], jax.nn.logsumexp(parts, axis=-1, keepdims=True)
    tilts = jax.vmap(lambda alpha: tilting.tilt(m, alpha)[tokens])(alphas)
    return jnp.exp(log_p + tilts - log_z) - jnp.exp(log_p)


@typed
def concept_increase(
    corpus: Corpus,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    m: Float[Array, " V"],
    alphas: Any,
    concepts: Concepts | None = None,
    *,
    budget: int = DEFAULT_BUDGET,
) -> Float[Array, "n K G"]:
    """``Delta p(C | c_j, alpha)``, the mean of Delta p over the tokens of each concept (S, definition 3.5).

    Arguments and errors are those of `probability_increase`; `concepts` is the corpus's own unless given.
    """
    concepts = corpus.concepts if concepts is None else concepts
    size, wanted = concepts.vocabulary_size, corpus.vocabulary_size
    require(size == wanted, "concepts", f"one of the corpus's {wanted} tokens", f"{size} tokens")
    rows, which = _rows(corpus, contexts)
    m, alphas = _tilts(m, alphas, corpus)
    parts = concept_log_partition(rows, m, alphas, concepts, budget=budget)
    return _concept_curves(rows, parts, concepts)[which]


@partial(jax.jit, static_argnames="concepts")
def _concept_curves(rows, parts, concepts):
    base = jnp.exp(concept_log_probabilities(rows, concepts))
    return (jax.nn.softmax(parts, axis=-1) - base[:, None, :]) / jnp.asarray(concepts.sizes)


@typed
def cross_entropy_increase(
    corpus: Corpus, m: Float[Array, " V"], alphas: Any, *, budget: int = DEFAULT_BUDGET
) -> Float[Array, " K"]:
    """``Delta CE(alpha) = sum_j pi_j [A_j(alpha) - alpha E_{p_j} M]`` in nats, for all alpha (S, definition 3.7).

    Arguments and errors are those of `probability_increase`. S, theorem 3.8 is its second-order expansion.
    """
    m, alphas = _tilts(m, alphas, corpus)
    parts = concept_log_partition(corpus.log_rows, m, alphas, corpus.concepts, budget=budget)
    return _expected_increase(parts, corpus, m, alphas)


@jax.jit
@full
def _expected_increase(parts, corpus, m, alphas):
    p = jnp.exp(corpus.log_rows)
    # A(alpha) - alpha E[M], with alpha times the favoured log-odds taken out of both.
    linear = jax.vmap(lambda alpha: alpha * (p @ (m - tilting.favoured(m, alpha))), out_axes=1)(alphas)
    return corpus.row_weights @ (jax.nn.logsumexp(parts, axis=-1) - linear)


@typed
def concept_log_partition(
    log_rows: Float[Array, "r V"],
    m: Float[Array, " V"],
    alphas: Float[Array, " K"],
    concepts: Concepts,
    *,
    budget: int = DEFAULT_BUDGET,
) -> Float[Array, "r K G"]:
    """``log sum_{z in C} p_i(z) e^{alpha M(z) - max(alpha M)}`` for every row i, strength and concept, nats.

    The largest tilt is left out (`theory.tilting.tilt`): probabilities do not need it, and large strengths keep digits.

    Uses a matrix product when every log-probability is known to be above -600 nats, so that nothing that counts can
    underflow; else (smaller or zero probabilities, or inside a transformation) a log-sum-exp of every entry.

    Args:
        log_rows: distinct next-token distributions, ``[r, V]`` nats.
        m: log-odds, ``[V]`` nats.
        alphas: strengths, ``[K]``.
        concepts: the partition of the vocabulary.
        budget: numbers held at once in the largest intermediate array.

    Raises:
        ValueError: a budget below 1.
    """
    require(budget >= 1, "budget", "at least one number at a time", budget)
    safe = not isinstance(log_rows, jax.core.Tracer) and bool(jnp.min(log_rows) > -600 * _share_of_float64(log_rows))
    path = _partition_by_product if safe else _partition_by_logsumexp
    return path(log_rows, m, alphas, concepts, budget)


@partial(jax.jit, static_argnames=("concepts", "budget"))
@full
def _partition_by_product(log_rows, m, alphas, concepts, budget):
    blocks = concepts.blocks
    inside = jnp.asarray(blocks >= 0)
    p = jnp.where(inside, jnp.exp(log_rows)[:, blocks], 0)

    def at(alpha):
        tilts = jnp.where(inside, tilting.tilt(m, alpha)[blocks], -jnp.inf)
        shift = jnp.max(tilts, axis=-1)
        return jnp.exp(tilts - shift[:, None]), shift

    def log_partitions(alpha_chunk):
        factor, shift = jax.vmap(at)(alpha_chunk)
        return jnp.log(jnp.einsum("rgs,kgs->krg", p, factor)) + shift[:, None, :]

    return jnp.moveaxis(_in_chunks(log_partitions, alphas, max(1, budget // blocks.size)), 0, 1)


@partial(jax.jit, static_argnames=("concepts", "budget"))
def _partition_by_logsumexp(log_rows, m, alphas, concepts, budget):
    def log_partition(i, alpha):
        return concept_log_probabilities(log_rows[i] + tilting.tilt(m, alpha), concepts)

    return pairs(log_partition, log_rows.shape[0], alphas, max(1, budget // log_rows.shape[1]))


def _in_chunks(function, alphas, chunk):
    """`function` of `chunk` strengths at a time, results concatenated; the last chunk is padded, then cut."""
    k = alphas.shape[0]
    chunk = min(chunk, k)
    n = -(-k // chunk)
    padded = jnp.concatenate([alphas, jnp.zeros(n * chunk - k, alphas.dtype)]).reshape(n, chunk)
    out = lax.map(function, padded)
    return out.reshape(n * chunk, *out.shape[2:])[:k]


def _rows(corpus: Corpus, contexts: Any) -> tuple[Float[Array, "r V"], np.ndarray]:
    """The distinct rows that some contexts need, and which of them each context has."""
    asked = np.atleast_1d(np.asarray(contexts))
    require(asked.size > 0, "contexts", "at least one", "none")
    outside = asked[(asked < 0) | (asked >= corpus.n_contexts)]
    require(outside.size == 0, "contexts", f"contexts in 0..{corpus.n_contexts - 1}", outside[:5].tolist())
    distinct, which = np.unique(np.asarray(corpus.row)[asked], return_inverse=True)
    return corpus.log_rows[distinct], which


def _tilts(m: Any, alphas: Any, corpus: Corpus) -> tuple[Float[Array, " V"], Float[Array, " K"]]:
    """Log-odds and strengths whose products are finite."""
    array = finite("m", m)
    require(array.shape == (corpus.vocabulary_size,), "m", f"{corpus.vocabulary_size} log-odds", f"shape {array.shape}")
    m, alphas = jnp.asarray(m), strengths(alphas)
    if not isinstance(alphas, jax.core.Tracer):
        largest, dtype = np.abs(np.asarray(alphas, float)).max(), jnp.result_type(m, alphas)
        most = tilting.largest_strength(array, dtype)
        wanted = f"strengths up to {most:.3g}, so that alpha M is finite in {dtype}"
        require(bool(largest <= most), "alphas", wanted, f"{largest:.3g}")
    return m, alphas


def _share_of_float64(array: Float[Array, "..."]) -> float:
    """The exponent range of the precision in use, as a share of float64's (1 in float64, about 1/8 in float32)."""
    return float(jnp.finfo(array.dtype).minexp) / float(jnp.finfo(jnp.float64).minexp)
