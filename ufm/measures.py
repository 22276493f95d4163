"""What steering does to a model, measured through the model: increases of token and concept probability and cross-entropy.

Each function has a closed-form twin of the same name, the same trailing arguments and the same shape in
`theory.predicted`: there the subject is a corpus and the direction its log-odds, here a split model and its steering
vector.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm._check import indices, require, typed
from ufm.concepts import Concepts, concept_log_probabilities
from ufm.corpus import Corpus
from ufm.precision import full, wide
from ufm.steerable import Steerable, finite_at, fitting, known, moved, number, strengths, sweep, sweep_states


@typed
def probability_increase(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    v: Float[Array, " d"],
    alphas: Any,
    *,
    tokens: Sequence[int] | np.ndarray | None = None,
    budget: int | None = None,
) -> Float[Array, "n K t"]:
    """``Delta p(z | c_j, alpha) = softmax_z(f_alpha(c_j)) - softmax_z(f(c_j))`` (S, definition 3.1).

    Args:
        model: a split model.
        contexts: ``[n]``.
        v: steering vector, ``[d]``.
        alphas: steering strengths, ``[K]``, finite.
        tokens: which tokens to keep, ``[t]``; all if left out.
        budget: numbers held at once (`ufm.steerable.at_once`).

    Raises:
        ValueError: a strength or a v that is not finite, a strength at which logits are not, a token outside the vocabulary,
            a context that the model does not have, a v of another width than its hidden states.
    """
    contexts = known(model, contexts)
    vocabulary_size = _vocabulary_size(model)
    chosen = np.arange(vocabulary_size) if tokens is None else indices("tokens", tokens, vocabulary_size, of="tokens")
    v, alphas = number("v", v), strengths(alphas)
    return finite_at(model, alphas, _probability_increase(model, contexts, v, alphas, jnp.asarray(chosen), budget), axis=1)


@partial(jax.jit, static_argnames="budget")
def _probability_increase(model, contexts, v, alphas, tokens, budget):
    def probabilities(logits, _):
        return jnp.exp(logits[tokens] - jax.nn.logsumexp(logits))

    return _increase(model, contexts, v, alphas, probabilities, budget)


@typed
def concept_increase(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    v: Float[Array, " d"],
    alphas: Any,
    concepts: Concepts,
    *,
    budget: int | None = None,
) -> Float[Array, "n K G"]:
    """``Delta p(C | c_j, alpha)``, the mean of Delta p over the tokens of each concept (S, definition 3.5).

    Arguments and errors are those of `probability_increase`; `concepts` is the partition of the model's vocabulary.
    """
    _check_vocabulary("concepts", concepts.vocabulary_size, model)
    contexts, v, alphas = known(model, contexts), number("v", v), strengths(alphas)
    return finite_at(model, alphas, _concept_increase(model, contexts, v, alphas, concepts, budget), axis=1)


@partial(jax.jit, static_argnames=("concepts", "budget"))
def _concept_increase(model, contexts, v, alphas, concepts, budget):
    def totals(logits, _):
        return jax.nn.softmax(concept_log_probabilities(logits, concepts))

    return _increase(model, contexts, v, alphas, totals, budget) / jnp.asarray(concepts.sizes)


@typed
def cross_entropy_increase(
    model: Steerable, corpus: Corpus, v: Float[Array, " d"], alphas: Any, *, budget: int | None = None
) -> Float[Array, " K"]:
    """``Delta CE(alpha) = CE(f_alpha) - CE(f)`` in nats, over all contexts of the corpus (S, definition 3.7).

    Args:
        model: a split model of the corpus: `model.embed` takes its context indices.
        corpus: gives contexts, weights and next-token probabilities.
        v, alphas, budget: as for `probability_increase`.
    """
    known(model, np.arange(corpus.n_contexts))
    _check_vocabulary("corpus", corpus.vocabulary_size, model)
    v, alphas = number("v", v), strengths(alphas)
    return finite_at(model, alphas, _cross_entropy_increase(model, corpus, v, alphas, budget))


@partial(jax.jit, static_argnames="budget")
@full
def _cross_entropy_increase(model, corpus, v, alphas, budget):
    p = jnp.exp(corpus.log_rows)

    def loss(logits, j):
        return jax.nn.logsumexp(logits) - jnp.sum(p[corpus.row[j]].astype(logits.dtype) * logits)

    contexts = jnp.arange(corpus.n_contexts)
    return corpus.weights @ _increase(model, contexts, v, alphas, loss, budget)


@typed
def curvature(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    v: Float[Array, " d"],
    alpha: Float[Array, ""] | float = 0.0,
) -> Float[Array, " n"]:
    """``v^T J^T F J v / 2``, of (beta - alpha)^2 in ``KL(p_alpha || p_beta)`` of every context, ``[n]`` (N9).

    J is the Jacobian of the logits by the hidden state and ``F = diag(p) - p p^T``: half the variance, under the steered
    distribution, of what one JVP gives. At strength 0, and averaged over contexts whose next tokens the model itself
    draws, it is the coefficient of alpha^2 in Delta CE; in the UFM, theorem 3.8 of S.

    Args:
        model: a split model that JAX differentiates.
        contexts: ``[n]``.
        v: steering vector, ``[d]``.
        alpha: where.
    """
    contexts, v, alpha = known(model, contexts), number("v", v), number("alpha", alpha)
    return finite_at(model, alpha, _curvature(model, contexts, v, alpha))


@jax.jit
def _curvature(model, contexts, v, alpha):
    h = wide(model.embed(contexts))
    v = fitting(v, h)
    logits, slope = jax.jvp(lambda a: model.decode(moved(h, v, a)), (jnp.asarray(alpha, h.dtype),), (jnp.ones((), h.dtype),))
    return variance(logits, slope) / 2


@typed
def divergence(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    v: Float[Array, " d"],
    alphas: Any,
    *,
    budget: int | None = None,
) -> Float[Array, "n K"]:
    """``KL(p || p_alpha)`` of the next token from the unsteered model to the steered one, nats.

    Near 0 it is `curvature` times alpha^2 (N9); averaged over text that the model draws, it is Delta CE (N4). Arguments and
    errors are those of `probability_increase`.
    """
    contexts, v, alphas = known(model, contexts), number("v", v), strengths(alphas)
    return finite_at(model, alphas, _divergence(model, contexts, v, alphas, budget), axis=1)


@partial(jax.jit, static_argnames="budget")
def _divergence(model, contexts, v, alphas, budget):
    h = wide(model.embed(contexts))
    base = model.decode(h)
    return sweep_states(model, h, v, alphas.astype(h.dtype), lambda logits, i: kl(base[i], logits), budget=budget)


def kl(base: Float[Array, "*#n V"], other: Float[Array, "*#n V"]) -> Float[Array, "..."]:
    """KL from the softmax of `base` to that of `other`, nats; without cancellation where they are close."""
    log_p, log_q = jax.nn.log_softmax(wide(base)), jax.nn.log_softmax(wide(other))
    p, less = jnp.exp(log_p), log_p - log_q
    # What is added has mean 0, and leaves a sum of terms that are not negative. Where q is much larger than p, their ratio
    # may be too large for a float: there it is multiplied out.
    near = jnp.maximum(less, -1)
    return jnp.sum(jnp.where(less > -1, p * (near + jnp.expm1(-near)), jnp.exp(log_q) - p * (1 - less)), axis=-1)


def variance(logits: Float[Array, "*n V"], of: Float[Array, "*n V"]) -> Float[Array, " *n"]:
    """The variance of a quantity of the next token, under the softmax of logits."""
    p, of = jax.nn.softmax(wide(logits)), wide(of)
    off = of - jnp.sum(p * of, axis=-1, keepdims=True)
    return jnp.sum(p * off * off, axis=-1)


def _vocabulary_size(model: Steerable) -> int:
    return jax.eval_shape(lambda m: m.decode(m.embed(jnp.arange(1))), model).shape[-1]


def _check_vocabulary(argument: str, size: int, model: Steerable) -> None:
    wanted = _vocabulary_size(model)
    require(size == wanted, argument, f"one of the model's {wanted} tokens", f"{size} tokens")


def _increase(model, contexts, v, alphas, measure, budget):
    """A measure at each strength less the same at strength 0, which is swept along with the others."""
    values = sweep(model, contexts, v, jnp.concatenate([jnp.zeros_like(alphas[:1]), alphas]), measure, budget=budget)
    return values[:, 1:] - values[:, :1]
