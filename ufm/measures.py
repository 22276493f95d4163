"""Measures of steering's effect on a model, through the model: increases of token and concept probability and cross-entropy.

Each function has a closed-form twin of the same name, the same trailing arguments and the same shape in
`theory.predicted`: there the subject is a corpus and the direction its log-odds, here a split model and a steering.
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
from ufm.distributions import kl, variance
from ufm.precision import full, wide
from ufm.steerable import Steerable, finite_at, known, one_strength, steered_logits, strengths, sweep, sweep_states
from ufm.steering import Steering, as_steering


@typed
def probability_increase(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    steering: Any,
    alphas: Any,
    *,
    tokens: Sequence[int] | np.ndarray | None = None,
    budget: int | None = None,
) -> Float[Array, "n K t"]:
    """``Delta p(z | c_j, alpha) = softmax_z(f_alpha(c_j)) - softmax_z(f(c_j))`` (S, definition 3.1).

    Args:
        model: a split model.
        contexts: ``[n]``.
        steering: a `Steering`, or a vector ``[d]`` that is added where the model is split.
        alphas: steering strengths, ``[K]``, finite; or one for each part of the steering, ``[K, k]``.
        tokens: which tokens to keep, ``[t]``; all if left out.
        budget: numbers held at once (`ufm.steerable.at_once`).

    Raises:
        ValueError: a strength or a steering that is not finite, a strength at which logits are not, a token outside the
            vocabulary, a context that the model does not have, a steering that is made for another model.
    """
    contexts = known(model, contexts)
    model, steering, alphas = _prepared(model, steering, alphas)
    vocabulary_size = _vocabulary_size(model)
    chosen = np.arange(vocabulary_size) if tokens is None else indices("tokens", tokens, vocabulary_size, of="tokens")
    values = _probability_increase(model, contexts, steering, alphas, jnp.asarray(chosen), budget)
    return finite_at(model, alphas, values, axis=1)


@partial(jax.jit, static_argnames="budget")
def _probability_increase(model, contexts, steering, alphas, tokens, budget):
    def probabilities(logits, _):
        return jnp.exp(logits[tokens] - jax.nn.logsumexp(logits))

    return _increase(model, contexts, steering, alphas, probabilities, budget)


@typed
def concept_increase(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    steering: Any,
    alphas: Any,
    concepts: Concepts,
    *,
    budget: int | None = None,
) -> Float[Array, "n K G"]:
    """``Delta p(C | c_j, alpha)``, the mean of Delta p over the tokens of each concept (S, definition 3.5).

    Arguments and errors are those of `probability_increase`; `concepts` is the partition of the model's vocabulary.
    """
    contexts = known(model, contexts)
    model, steering, alphas = _prepared(model, steering, alphas)
    _check_vocabulary("concepts", concepts.vocabulary_size, model)
    return finite_at(model, alphas, _concept_increase(model, contexts, steering, alphas, concepts, budget), axis=1)


@partial(jax.jit, static_argnames=("concepts", "budget"))
def _concept_increase(model, contexts, steering, alphas, concepts, budget):
    def totals(logits, _):
        return jax.nn.softmax(concept_log_probabilities(logits, concepts))

    return _increase(model, contexts, steering, alphas, totals, budget) / jnp.asarray(concepts.sizes)


@typed
def cross_entropy_increase(
    model: Steerable, corpus: Corpus, steering: Any, alphas: Any, *, budget: int | None = None
) -> Float[Array, " K"]:
    """``Delta CE(alpha) = CE(f_alpha) - CE(f)`` in nats, over all contexts of the corpus (S, definition 3.7).

    Args:
        model: a split model of the corpus: `model.embed` takes its context indices.
        corpus: gives contexts, weights and next-token probabilities.
        steering, alphas, budget: as for `probability_increase`.
    """
    known(model, np.arange(corpus.n_contexts))
    model, steering, alphas = _prepared(model, steering, alphas)
    _check_vocabulary("corpus", corpus.vocabulary_size, model)
    return finite_at(model, alphas, _cross_entropy_increase(model, corpus, steering, alphas, budget))


@partial(jax.jit, static_argnames="budget")
@full
def _cross_entropy_increase(model, corpus, steering, alphas, budget):
    p = jnp.exp(corpus.log_rows)

    def loss(logits, j):
        return jax.nn.logsumexp(logits) - jnp.sum(p[corpus.row[j]].astype(logits.dtype) * logits)

    contexts = jnp.arange(corpus.n_contexts)
    return corpus.weights @ _increase(model, contexts, steering, alphas, loss, budget)


@typed
def curvature(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    steering: Any,
    alpha: Float[Array, ""] | float = 0.0,
) -> Float[Array, " n"]:
    """``v^T J^T F J v / 2``, of (beta - alpha)^2 in ``KL(p_alpha || p_beta)`` of every context, ``[n]`` (N9).

    J is the Jacobian of the logits by the hidden state and ``F = diag(p) - p p^T``: half the variance, under the steered
    distribution, of what one JVP gives. At strength 0, and averaged over contexts whose next tokens the model itself
    draws, it is the coefficient of alpha^2 in Delta CE; in the UFM, theorem 3.8 of S.

    Args:
        model: a split model that JAX differentiates.
        contexts: ``[n]``.
        steering: a `Steering`, or a vector ``[d]`` that is added where the model is split.
        alpha: where: a strength, for all parts of the steering.
    """
    contexts, steering = known(model, contexts), as_steering(steering)
    alpha = one_strength(steering, alpha)
    model, steering = model.resolve(steering)
    return finite_at(model, alpha, _curvature(model, contexts, steering, alpha))


@jax.jit
def _curvature(model, contexts, steering, alpha):
    return variance(*slopes(model, model.embed(contexts), steering, alpha)) / 2


def slopes(
    model: Steerable, states: Any, steering: Steering, alpha: Any = 0.0
) -> tuple[Float[Array, "*n V"], Float[Array, "*n V"]]:
    """The logits of states at a strength, and their derivatives by it, from one JVP.

    Args:
        model: a split model that JAX differentiates, split where the steering first acts (`Steerable.resolve`).
        states: as `model.embed` gives them.
        steering: what the strength is of.
        alpha: where.
    """
    kind = wide(jax.tree.leaves(states)[0]).dtype
    unit = jnp.ones((), kind)
    return jax.jvp(lambda a: wide(steered_logits(model, states, steering, a)), (jnp.asarray(alpha, kind),), (unit,))


@typed
def divergence(
    model: Steerable,
    contexts: Int[Array, " n"] | np.ndarray | Sequence[int],
    steering: Any,
    alphas: Any,
    *,
    budget: int | None = None,
) -> Float[Array, "n K"]:
    """``KL(p || p_alpha)`` of the next token from the unsteered model to the steered one, nats.

    Near 0 it is `curvature` times alpha^2 (N9); averaged over text that the model draws, it is Delta CE (N4). Arguments and
    errors are those of `probability_increase`.
    """
    contexts = known(model, contexts)
    model, steering, alphas = _prepared(model, steering, alphas)
    return finite_at(model, alphas, _divergence(model, contexts, steering, alphas, budget), axis=1)


@partial(jax.jit, static_argnames="budget")
def _divergence(model, contexts, steering, alphas, budget):
    states = model.embed(contexts)
    base = wide(steered_logits(model, states, steering, jnp.zeros((), alphas.dtype)))  # rounded as at other strengths
    return sweep_states(model, states, steering, alphas, lambda logits, i: kl(base[i], logits), budget=budget)


def _vocabulary_size(model: Steerable) -> int:
    return jax.eval_shape(_first_logits, model).shape[-1]


@jax.jit
def _first_logits(model: Steerable) -> Float[Array, "..."]:
    return model.decode(model.embed(jnp.arange(1)))


def _prepared(model: Steerable, steering: Any, alphas: Any) -> tuple[Steerable, Steering, Float[Array, "K *k"]]:
    """The checked arguments of a compiled sweep."""
    return *model.resolve(as_steering(steering)), strengths(alphas)


def _check_vocabulary(argument: str, size: int, model: Steerable) -> None:
    wanted = _vocabulary_size(model)
    require(size == wanted, argument, f"one of the model's {wanted} tokens", f"{size} tokens")


def _increase(model, contexts, steering, alphas, measure, budget):
    """A measure at each strength less the same at strength 0, which is swept along with the others."""
    values = sweep(model, contexts, steering, jnp.concatenate([jnp.zeros_like(alphas[:1]), alphas]), measure, budget=budget)
    return values[:, 1:] - values[:, :1]
